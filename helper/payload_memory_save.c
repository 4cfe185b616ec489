/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * payload_memory_save.c - memory to image. Pages that SEEK_DATA shows, those right behind them, and of these what the
 * selection names are copied aside, and what was copied is examined and written: memory that changes meanwhile cannot make
 * a checksum wrong. Huge pages are examined and written where they are.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "align.h"
#include "clock.h"
#include "guard.h"
#include "payload_memory.h"

/* ---- a span's end: its tables are stored ---- */

static void span_stored(struct dioh_job *job)
{
	struct span *span = dioh_container_of(job, struct span, job);

	dioh_span_answered(span);
	dioh_span_close(span);
}

static void store_span(struct dioh_job *job) /* control-I/O thread */
{
	struct span *span = dioh_container_of(job, struct span, job);
	struct dioh_image_layout *layout = span->owner->params.layout;

	/* Several may have been waiting here, one behind the other, while the transfer ended. */
	span->job_result = dioh_tables_wanted(&span->tables, &span->job_error);
	if (span->job_result == 0)
		span->job_result = layout->ops->store_tables(layout, &span->tables, &span->job_error);
	dioh_worker_answer(span->owner->base.worker, job, span_stored);
}

static void finish_span(struct span *span)
{
	if (span->walked && span->units == 0 && span->state == SPAN_OPEN && !span->owner->base.failed)
		dioh_span_ask(span, SPAN_STORING, store_span);
}

/* ---- a unit ---- */

static void save_io_done(struct dioh_io *io)
{
	struct dioh_block *block = io->owner;
	struct span *span = block->span;

	if (!dioh_block_io_done(io))
		return;
	dioh_block_end(block);
	finish_span(span);
}

struct scan {
	const uint8_t *data;
	uint8_t *bitmap;
	unsigned pages;
	bool drop_zero;
	bool checksum;
	volatile unsigned dropped;
	uint32_t *ret_checksum;
};

static void scan_chunk(void *argument)
{
	struct scan *scan = argument;

	if (scan->drop_zero)
		scan->dropped = dioh_pages_drop_zero(scan->data, scan->bitmap, scan->pages);
	if (scan->checksum)
		*scan->ret_checksum = dioh_pages_crc32c(scan->data, scan->bitmap, scan->pages);
}

static void fail_touch(struct memory_transfer *t, uint64_t memory_at)
{
	struct dioh_error err;

	dioh_error_set(&err, EFAULT, DIOH_PLACE(READ, MEMORY, t->params.memory->number, memory_at),
	               "memory %" PRIu32 ": the page at %" PRIu64 " cannot be read: it was truncated, or its RAM is bad",
	               t->params.memory->number, memory_at);
	dioh_memory_fail(t, &err);
}

/* Which pages of a chunk hold something: bits, zero pages dropped, checksum. `data`: the chunk's bytes. */
static bool examine_chunk(struct memory_transfer *t, struct span *span, uint64_t at, unsigned pages, const uint8_t *data)
{
	unsigned first = dioh_span_page(span, at);
	struct scan scan = {
		.data = data,
		.bitmap = span->bitmap + first / 8,
		.pages = pages,
		.drop_zero = !(t->params.flags & DIOH_TRANSFER_NO_SCAN),
		.checksum = !(t->params.flags & DIOH_TRANSFER_NO_CHECKSUM),
		.ret_checksum = &span->checksums[first / DIOH_CHUNK_PAGES],
	};
	const void *fault;
	uint64_t begun = dioh_now_ns();

	if (!dioh_guard_run(scan_chunk, &scan, &fault)) {
		uint64_t within = (uint64_t)((const uint8_t *)fault - data);

		fail_touch(t, dioh_memory_at(t, at) + dioh_align_down(within, DIOH_PAGE_BYTES));
		return false;
	}
	t->base.figures.scan_ns += dioh_now_ns() - begun;
	t->base.figures.zero_bytes += (uint64_t)scan.dropped * DIOH_PAGE_BYTES;
	return true;
}

/* The chunk's candidates: pages that may hold data, of those selected. Answers how many. */
static int find_candidates(struct memory_transfer *t, struct span *span, uint64_t at, unsigned pages,
                           struct dioh_error *err)
{
	unsigned first = dioh_span_page(span, at);
	uint8_t *bitmap = span->bitmap + first / 8;
	int r = 0;

	if (dioh_memory_shows_holes(t->params.memory))
		r = dioh_memory_data_pages(t->params.memory, &t->extent, dioh_memory_at(t, at), pages, bitmap, err);
	else
		dioh_bits_fill(bitmap, 0, pages, true);
	if (r < 0)
		return r;
	for (unsigned i = 0; span->selected && i < dioh_div_up(pages, 8); i++)
		bitmap[i] &= span->selected[first / 8 + i];
	r = (int)dioh_bits_count(bitmap, pages);
	t->base.figures.hole_bytes += (uint64_t)(pages - (unsigned)r) * DIOH_PAGE_BYTES;
	return r;
}

/* Copies the chunk's candidates to where they stand in the block's buffer. A short gap may be written along: as zeros. */
static int copy_candidates(struct memory_transfer *t, const struct span *span, uint64_t at, unsigned pages, uint8_t *data,
                           struct dioh_error *err)
{
	const uint8_t *bitmap = span->bitmap + dioh_span_page(span, at) / 8;
	int r = 0;

	for (unsigned page = 0, same; page < pages && r == 0; page += same) {
		const uint64_t within = (uint64_t)page * DIOH_PAGE_BYTES;

		same = dioh_pages_same(bitmap, page, pages);
		if (dioh_bit_test(bitmap, page))
			r = dioh_memory_pread(t->params.memory, data + within, (uint64_t)same * DIOH_PAGE_BYTES,
			                      dioh_memory_at(t, at) + within, err);
		else if (same <= DIOH_GAP_PAGES_MAX)
			memset(data + within, 0, (size_t)same * DIOH_PAGE_BYTES);
	}
	return r;
}

static bool save_chunk(struct memory_transfer *t, struct dioh_block *block, unsigned page, uint8_t *unit)
{
	struct span *span = block->span;
	const uint64_t at = block->first + (uint64_t)page * DIOH_PAGE_BYTES;
	const unsigned pages = (unsigned)dioh_min(DIOH_CHUNK_PAGES, block->pages - page);
	uint8_t *data = unit + (uint64_t)page * DIOH_PAGE_BYTES;
	struct dioh_error err;
	int r = find_candidates(t, span, at, pages, &err);

	if (r > 0 && t->aside && copy_candidates(t, span, at, pages, data, &err) < 0)
		r = -1;
	if (r < 0)
		dioh_memory_fail(t, &err);
	return r == 0 || (r > 0 && examine_chunk(t, span, at, pages, data));
}

/* The unit's bytes: mapped, or copied. NULL: it failed. */
static uint8_t *examine_unit(struct memory_transfer *t, struct dioh_block *block)
{
	struct dioh_error err;
	uint8_t *unit = t->aside ? block->bounce : dioh_block_map(block, &err);

	if (!unit)
		dioh_memory_fail(t, &err);
	for (unsigned page = 0; unit && page < block->pages; page += DIOH_CHUNK_PAGES)
		if (!save_chunk(t, block, page, unit))
			return NULL;
	return unit;
}

static enum dioh_step save_unit(struct memory_transfer *t, struct span *span)
{
	struct dioh_worker *worker = t->base.worker;
	struct dioh_block *block = dioh_bufpool_take(&worker->pool);
	uint8_t *data;

	if (!block)
		return DIOH_STEP_WAIT;
	block->owner = t;
	block->span = span;
	block->first = t->cursor;
	block->pages = (unsigned)(dioh_min(worker->pool.unit_bytes, span->first + span->bytes - t->cursor) / DIOH_PAGE_BYTES);
	span->units++;
	t->cursor += (uint64_t)block->pages * DIOH_PAGE_BYTES;
	span->walked = t->cursor == span->first + span->bytes;
	data = examine_unit(t, block);
	if (data) {
		unsigned present = (unsigned)dioh_bits_count(span->bitmap + dioh_span_page(span, block->first) / 8, block->pages);

		t->base.figures.data_bytes += (uint64_t)present * DIOH_PAGE_BYTES;
		dioh_block_start(t, block, data, save_io_done);
	}
	if (block->outstanding == 0) { /* all zero, or failed */
		dioh_block_end(block);
		finish_span(span);
	}
	return DIOH_STEP_MORE;
}

/* ---- walking ---- */

static void skip_to(struct memory_transfer *t, uint64_t to)
{
	t->base.figures.hole_bytes += to - t->cursor;
	atomic_fetch_add_explicit(&t->base.done_bytes, to - t->cursor, memory_order_relaxed);
	t->cursor = to;
}

/* The chunk of the next data at or after the cursor, at most `end`; both from the transfer's start. */
static int next_data_chunk(struct memory_transfer *t, uint64_t end, uint64_t *ret_at)
{
	struct dioh_error err;
	uint64_t data;

	*ret_at = t->cursor;
	if (!dioh_memory_shows_holes(t->params.memory))
		return 0;
	if (dioh_memory_next_data(t->params.memory, &t->extent, dioh_memory_at(t, t->cursor), dioh_memory_at(t, end), &data,
	                          &err) < 0) {
		dioh_memory_fail(t, &err);
		return -1;
	}
	data -= t->params.memory_offset;
	*ret_at = data == end ? end : dioh_max(t->cursor, dioh_align_down(data, DIOH_CHUNK_BYTES));
	return 0;
}

enum dioh_step dioh_memory_save_step(struct dioh_transfer *transfer)
{
	struct memory_transfer *t = (struct memory_transfer *)transfer;
	struct span *span = dioh_span_current(t);
	uint64_t at;

	if (!span && t->cursor == t->params.length)
		return transfer->outstanding == 0 ? dioh_memory_done(t) : DIOH_STEP_WAIT;
	/* Tables that read as zeros already need no span where there is nothing but hole. (raw: old bytes stand there.) */
	if (!span && t->params.tables_fresh && t->params.layout->ops->starts_absent) {
		if (next_data_chunk(t, t->params.length, &at) < 0)
			return DIOH_STEP_WAIT;
		skip_to(t, at);
		if (t->cursor == t->params.length)
			return DIOH_STEP_MORE;
	}
	if (!span)
		span = dioh_span_open(t);
	if (!span)
		return DIOH_STEP_WAIT;
	if (next_data_chunk(t, span->first + span->bytes, &at) < 0)
		return DIOH_STEP_WAIT;
	if (at > t->cursor) {
		skip_to(t, at);
		span->walked = t->cursor == span->first + span->bytes;
		finish_span(span);
		return DIOH_STEP_MORE;
	}
	return save_unit(t, span);
}
