/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * payload_memory_load.c - image to memory. Present pages are read aside, checked, and copied to their place: that costs less
 * than reading into a mapping whose pages must first be made, cleared and mapped, and keeps unselected pages untouched.
 * Where huge pages are wanted (hugetlb, or advice for it) a mapping is what makes them, and pages are read straight into
 * it, where the file system does that. Absent pages are left zero: erased, unless the destination is fresh.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "align.h"
#include "clock.h"
#include "guard.h"
#include "payload_memory.h"

/* ---- a span's tables ---- */

static void span_loaded(struct dioh_job *job)
{
	struct span *span = dioh_container_of(job, struct span, job);

	dioh_span_answered(span);
	span->state = SPAN_OPEN;
}

static void load_span(struct dioh_job *job) /* control-I/O thread */
{
	struct span *span = dioh_container_of(job, struct span, job);
	struct dioh_image_layout *layout = span->owner->params.layout;

	span->job_result = layout->ops->load_tables(layout, &span->tables, &span->job_error);
	dioh_worker_answer(span->owner->base.worker, job, span_loaded);
}

static void finish_span(struct span *span)
{
	if (span->walked && span->units == 0)
		dioh_span_close(span);
}

/* ---- absent pages ---- */

/* Erased at once: 0.3 s a GiB, and longer in huge pages, in which nothing else would be looked at. Huge pages stay whole. */
#define ERASE_BYTES (UINT64_C(64) << 20)
#define ERASE_CHUNKS ((unsigned)(ERASE_BYTES / DIOH_CHUNK_BYTES))

static void flush_erase(struct memory_transfer *t)
{
	struct dioh_error err;

	if (t->erase_first < t->erase_end &&
	    dioh_memory_erase(t->params.memory, dioh_memory_at(t, t->erase_first), t->erase_end - t->erase_first, &err) < 0)
		dioh_memory_fail(t, &err);
	t->erase_first = t->erase_end = 0;
}

static void erase(struct memory_transfer *t, uint64_t first, uint64_t end)
{
	if (first != t->erase_end || t->erase_first == t->erase_end) {
		flush_erase(t);
		t->erase_first = first;
	}
	t->erase_end = end;
	if (t->erase_end / ERASE_BYTES > t->erase_first / ERASE_BYTES)
		flush_erase(t);
}

/* Stretches of pages from `at` that are absent (and selected) are collected, neighbours joined. */
static void erase_absent(struct memory_transfer *t, const struct span *span, uint64_t at, unsigned pages)
{
	const unsigned first = dioh_span_page(span, at);
	const unsigned end = first + pages;

	if (t->params.flags & DIOH_TRANSFER_FRESH)
		return;
	for (unsigned page = first; page < end;) {
		unsigned same = dioh_pages_same(span->bitmap, page, end);

		if (span->selected)
			same = (unsigned)dioh_min(same, dioh_pages_same(span->selected, page, end));
		if (!dioh_bit_test(span->bitmap, page) && (!span->selected || dioh_bit_test(span->selected, page)))
			erase(t, span->first + (uint64_t)page * DIOH_PAGE_BYTES,
			      span->first + (uint64_t)(page + same) * DIOH_PAGE_BYTES);
		page += same;
	}
}

/* ---- a unit that has been read ---- */

struct check {
	const uint8_t *data;
	const uint8_t *bitmap;
	unsigned pages;
	uint32_t sum;
};

static void sum_chunk(void *argument)
{
	struct check *check = argument;

	check->sum = dioh_pages_crc32c(check->data, check->bitmap, check->pages);
}

static void fail_touch(struct memory_transfer *t, uint64_t memory_at)
{
	struct dioh_error err;

	dioh_error_set(&err, EFAULT, DIOH_PLACE(WRITE, MEMORY, t->params.memory->number, memory_at),
	               "memory %" PRIu32 ": a page at or behind %" PRIu64
	               " cannot be touched: it was truncated, or its RAM is bad", t->params.memory->number, memory_at);
	dioh_memory_fail(t, &err);
}

static void fail_checksum(struct memory_transfer *t, uint64_t at, uint32_t sum, uint32_t stored)
{
	const struct dioh_record_region *record = &t->params.region->record;
	uint64_t chunk = dioh_region_at(t, at);
	struct dioh_error err;

	dioh_error_set(&err, EBADMSG, DIOH_PLACE(CHECKSUM, REGION, record->number, chunk),
	               "region %" PRIu32 " \"%.64s\": the 1 MiB chunk at %" PRIu64 " is damaged: its checksum is %08" PRIx32
	               ", not %08" PRIx32, record->number, record->name, chunk, sum, stored);
	dioh_memory_fail(t, &err);
}

static void check_chunk(struct memory_transfer *t, const struct span *span, uint64_t at, unsigned pages,
                        const uint8_t *data)
{
	unsigned first = dioh_span_page(span, at);
	struct check check = { .data = data, .bitmap = span->bitmap + first / 8, .pages = pages };
	uint32_t stored = span->tables.checksums[first / DIOH_CHUNK_PAGES];
	const void *fault;

	if (!dioh_guard_run(sum_chunk, &check, &fault))
		fail_touch(t, dioh_memory_at(t, at));
	else if (check.sum != stored)
		fail_checksum(t, at, check.sum, stored);
}

static void check_unit(struct memory_transfer *t, const struct dioh_block *block, const uint8_t *data)
{
	const struct span *span = block->span;
	uint64_t begun = dioh_now_ns();

	for (unsigned page = 0; page < block->pages && !t->base.failed; page += DIOH_CHUNK_PAGES)
		check_chunk(t, span, block->first + (uint64_t)page * DIOH_PAGE_BYTES,
		            (unsigned)dioh_min(DIOH_CHUNK_PAGES, block->pages - page),
		            data + (uint64_t)page * DIOH_PAGE_BYTES);
	t->base.figures.scan_ns += dioh_now_ns() - begun;
}

struct copy {
	uint8_t *to;
	const uint8_t *from;
	size_t bytes;
};

static void copy_bytes(void *argument)
{
	const struct copy *copy = argument;

	memcpy(copy->to, copy->from, copy->bytes);
}

static void copy_by_mapping(struct memory_transfer *t, struct dioh_block *block, uint64_t within, size_t bytes)
{
	uint64_t at = dioh_memory_at(t, block->first + within);
	struct copy copy = { .from = block->bounce + within, .bytes = bytes };
	struct dioh_error err;
	const void *fault;

	copy.to = dioh_block_map(block, &err);
	if (!copy.to) {
		dioh_memory_fail(t, &err);
		return;
	}
	copy.to += within;
	if (!dioh_guard_run(copy_bytes, &copy, &fault))
		fail_touch(t, at);
}

static void copy_stretch(struct memory_transfer *t, struct dioh_block *block, uint64_t within, size_t bytes)
{
	uint64_t at = dioh_memory_at(t, block->first + within);
	struct dioh_error err;

	if (dioh_memory_is_huge(t->params.memory))
		copy_by_mapping(t, block, within, bytes);
	else if (dioh_memory_pwrite(t->params.memory, block->bounce + within, bytes, at, &err) < 0)
		dioh_memory_fail(t, &err);
}

static void copy_unit(struct memory_transfer *t, struct dioh_block *block)
{
	const struct span *span = block->span;
	const unsigned first = dioh_span_page(span, block->first);
	const unsigned end = first + block->pages;

	for (unsigned page = first; page < end && !t->base.failed;) {
		unsigned same = dioh_pages_same(span->bitmap, page, end);
		uint64_t within = (uint64_t)(page - first) * DIOH_PAGE_BYTES;

		if (span->selected)
			same = (unsigned)dioh_min(same, dioh_pages_same(span->selected, page, end));
		if (dioh_bit_test(span->bitmap, page) && (!span->selected || dioh_bit_test(span->selected, page)))
			copy_stretch(t, block, within, (size_t)same * DIOH_PAGE_BYTES);
		page += same;
	}
}

static void load_io_done(struct dioh_io *io)
{
	struct dioh_block *block = io->owner;
	struct memory_transfer *t = block->owner;
	struct span *span = block->span;

	if (!dioh_block_io_done(io))
		return;
	if (!t->base.failed && span->tables.checksums)
		check_unit(t, block, t->aside ? block->bounce : dioh_window_at(&block->window, dioh_memory_at(t, block->first)));
	if (!t->base.failed && t->aside)
		copy_unit(t, block);
	dioh_block_end(block);
	finish_span(span);
}

/* ---- walking ---- */

/* Where the unit is read to. NULL: err is set. */
static uint8_t *unit_data(struct memory_transfer *t, struct dioh_block *block, struct dioh_error *err)
{
	return t->aside ? block->bounce : dioh_block_map(block, err);
}

static void read_unit(struct memory_transfer *t, struct dioh_block *block)
{
	struct dioh_error err;
	uint8_t *data = unit_data(t, block, &err);

	if (data)
		dioh_block_start(t, block, data, load_io_done);
	else
		dioh_memory_fail(t, &err);
}

static enum dioh_step load_unit(struct memory_transfer *t, struct span *span)
{
	struct dioh_worker *worker = t->base.worker;
	struct dioh_block *block = dioh_bufpool_take(&worker->pool);
	unsigned present;

	if (!block)
		return DIOH_STEP_WAIT;
	block->owner = t;
	block->span = span;
	block->first = t->cursor;
	block->pages = (unsigned)(dioh_min(worker->pool.unit_bytes, span->first + span->bytes - t->cursor) / DIOH_PAGE_BYTES);
	span->units++;
	t->cursor += (uint64_t)block->pages * DIOH_PAGE_BYTES;
	span->walked = t->cursor == span->first + span->bytes;
	erase_absent(t, span, block->first, block->pages);
	present = (unsigned)dioh_bits_count(span->bitmap + dioh_span_page(span, block->first) / 8, block->pages);
	t->base.figures.data_bytes += (uint64_t)present * DIOH_PAGE_BYTES;
	t->base.figures.hole_bytes += (uint64_t)(block->pages - present) * DIOH_PAGE_BYTES;
	if (!t->base.failed)
		read_unit(t, block);
	if (block->outstanding == 0) {
		dioh_block_end(block);
		finish_span(span);
	}
	return DIOH_STEP_MORE;
}

/* Chunks without a present page, up to the span's end, or as many as may be erased in a step. */
static unsigned absent_chunks(const struct span *span, uint64_t at)
{
	static const uint8_t none[DIOH_CHUNK_BITMAP_BYTES];
	unsigned first = dioh_span_page(span, at) / DIOH_CHUNK_PAGES;
	unsigned end = (unsigned)dioh_min(span->tables.chunks, first + ERASE_CHUNKS - at / DIOH_CHUNK_BYTES % ERASE_CHUNKS);
	unsigned chunk = first;

	while (chunk < end && memcmp(span->bitmap + chunk * DIOH_CHUNK_BITMAP_BYTES, none, sizeof(none)) == 0)
		chunk++;
	return chunk - first;
}

/* Of nothing the checksum is 0. */
static void check_absent(struct memory_transfer *t, const struct span *span, unsigned chunks)
{
	const uint32_t *stored = span->tables.checksums;
	const unsigned first = dioh_span_page(span, t->cursor) / DIOH_CHUNK_PAGES;

	for (unsigned i = 0; stored && i < chunks && !t->base.failed; i++)
		if (stored[first + i] != 0)
			fail_checksum(t, t->cursor + i * DIOH_CHUNK_BYTES, 0, stored[first + i]);
}

static void skip_absent(struct memory_transfer *t, struct span *span, unsigned chunks)
{
	uint64_t bytes = dioh_min((uint64_t)chunks * DIOH_CHUNK_BYTES, span->first + span->bytes - t->cursor);

	check_absent(t, span, chunks);
	erase_absent(t, span, t->cursor, (unsigned)(bytes / DIOH_PAGE_BYTES));
	t->base.figures.hole_bytes += bytes;
	atomic_fetch_add_explicit(&t->base.done_bytes, bytes, memory_order_relaxed);
	t->cursor += bytes;
	span->walked = t->cursor == span->first + span->bytes;
	finish_span(span);
}

static enum dioh_step end_step(struct memory_transfer *t)
{
	flush_erase(t);
	if (t->base.outstanding > 0 || t->base.failed)
		return DIOH_STEP_WAIT;
	if (t->looked)
		return dioh_memory_done(t);
	t->looked = true;
	dioh_errand_ask_unchanged(&t->last_look, t->params.layout);
	return DIOH_STEP_WAIT;
}

enum dioh_step dioh_memory_load_step(struct dioh_transfer *transfer)
{
	struct memory_transfer *t = (struct memory_transfer *)transfer;
	struct span *span = dioh_span_current(t);
	unsigned absent;

	if (!span && t->cursor == t->params.length)
		return end_step(t);
	if (!span) {
		span = dioh_span_open(t);
		if (span)
			dioh_span_ask(span, SPAN_LOADING, load_span);
		return DIOH_STEP_WAIT;
	}
	if (span->state != SPAN_OPEN)
		return DIOH_STEP_WAIT;
	absent = absent_chunks(span, t->cursor);
	if (absent > 0) {
		skip_absent(t, span, absent);
		return DIOH_STEP_MORE;
	}
	return load_unit(t, span);
}
