/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* payload_memory.c - see payload_memory.h: spans, runs, the ends of I/Os. Worker thread, but for the maker. */
#include "payload_memory.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "align.h"
#include "clock.h"

void dioh_payload_count_io(struct dioh_transfer *transfer, const struct dioh_io *io, uint64_t bytes)
{
	uint64_t us = (dioh_now_ns() - io->begun_ns) / 1000;
	unsigned bucket = us ? 63 - (unsigned)__builtin_clzll(us) : 0;

	transfer->figures.io_bytes += bytes;
	transfer->figures.io_count++;
	transfer->figures.histogram[bucket < DIOH_HISTOGRAM_BUCKETS ? bucket : DIOH_HISTOGRAM_BUCKETS - 1]++;
}

void dioh_memory_fail(struct memory_transfer *t, const struct dioh_error *err)
{
	dioh_transfer_fail(&t->base, err);
}

enum dioh_step dioh_memory_done(struct memory_transfer *t)
{
	struct dioh_error err;

	if (dioh_memory_check_end(t->params.memory, t->params.memory_end,
	                          t->params.save ? DIOH_OP_READ : DIOH_OP_WRITE, &err) == 0)
		return DIOH_STEP_DONE;
	dioh_memory_fail(t, &err);
	return DIOH_STEP_WAIT;
}

/* ---- spans ---- */

static uint64_t span_chunks_max(const struct memory_transfer *t)
{
	return dioh_min(DIOH_SPAN_BYTES, dioh_align_up(t->params.length, DIOH_CHUNK_BYTES)) / DIOH_CHUNK_BYTES;
}

struct span *dioh_span_current(struct memory_transfer *t)
{
	for (unsigned i = 0; i < DIOH_SPANS; i++) {
		struct span *span = &t->spans[i];

		if (span->state != SPAN_FREE && !span->walked)
			return span;
	}
	return NULL;
}

static int read_selection(struct span *span, struct dioh_error *err)
{
	const struct memory_transfer *t = span->owner;

	return dioh_memory_selection(t->params.memory, dioh_region_at(t, span->first) / DIOH_PAGE_BYTES,
	                             span->bytes / DIOH_PAGE_BYTES, span->selected, err);
}

struct span *dioh_span_open(struct memory_transfer *t)
{
	const uint64_t chunks = span_chunks_max(t);
	uint64_t boundary;
	struct span *span = NULL;
	struct dioh_error err;

	for (unsigned i = 0; i < DIOH_SPANS && !span; i++)
		if (t->spans[i].state == SPAN_FREE)
			span = &t->spans[i];
	if (!span)
		return NULL;
	boundary = dioh_align_down(dioh_region_at(t, t->cursor), DIOH_SPAN_BYTES) + DIOH_SPAN_BYTES;
	span->state = SPAN_OPEN;
	span->walked = false;
	span->units = 0;
	span->first = t->cursor;
	span->bytes = dioh_min(boundary - dioh_region_at(t, t->cursor), t->params.length - t->cursor);
	memset(span->bitmap, 0, chunks * DIOH_CHUNK_BITMAP_BYTES);
	memset(span->checksums, 0, chunks * sizeof(*span->checksums));
	if (span->selected && read_selection(span, &err) < 0) {
		dioh_memory_fail(t, &err);
		return NULL;
	}
	return span;
}

void dioh_span_close(struct span *span)
{
	span->state = SPAN_FREE;
}

void dioh_span_ask(struct span *span, enum span_state state, void (*work)(struct dioh_job *job))
{
	struct memory_transfer *t = span->owner;
	const bool checksums = !(t->params.flags & DIOH_TRANSFER_NO_CHECKSUM);

	span->state = state;
	span->tables = (struct dioh_tables){
		.region = t->params.region,
		.first_chunk = dioh_region_at(t, span->first) / DIOH_CHUNK_BYTES,
		.chunks = (unsigned)dioh_div_up(span->bytes, DIOH_CHUNK_BYTES),
		.bitmap = span->bitmap,
		.checksums = checksums ? span->checksums : NULL,
		.fresh = t->params.tables_fresh,
		.cancelled = &t->base.cancel,
	};
	span->job_begun_ns = dioh_now_ns();
	dioh_worker_ask(t->base.worker, &t->base, &span->job, work);
}

void dioh_span_answered(struct span *span)
{
	struct memory_transfer *t = span->owner;

	t->base.figures.table_ns += dioh_now_ns() - span->job_begun_ns;
	if (span->job_result < 0)
		dioh_memory_fail(t, &span->job_error);
	dioh_worker_settle(&t->base);
}

/* ---- units ---- */

uint8_t *dioh_block_map(struct dioh_block *block, struct dioh_error *err)
{
	const struct memory_transfer *t = block->owner;
	const uint64_t at = dioh_memory_at(t, block->first);
	const uint64_t bytes = (uint64_t)block->pages * DIOH_PAGE_BYTES;

	if (!block->window.map && dioh_memory_map(t->params.memory, at, bytes, !t->params.save, &block->window, err) < 0)
		return NULL;
	return dioh_window_at(&block->window, at);
}

/* ---- runs ---- */

/* The run's pages as a vector: present ones in the unit's mapping, gaps in the worker's own pages. */
static unsigned fill_mapped(const struct memory_transfer *t, const uint8_t *bitmap, uint8_t *data, const struct dioh_run *run,
                         struct iovec *iov)
{
	/* A save only reads what it is given. */
	void *gap = t->params.save ? (void *)(uintptr_t)dioh_zero_pages : t->base.worker->discard;
	const unsigned end = run->first + run->count;
	unsigned count = 0;

	for (unsigned page = run->first; page < end;) {
		unsigned same = dioh_pages_same(bitmap, page, end);

		iov[count].iov_base = dioh_bit_test(bitmap, page) ? data + (uint64_t)page * DIOH_PAGE_BYTES : gap;
		iov[count].iov_len = (size_t)same * DIOH_PAGE_BYTES;
		count++;
		page += same;
	}
	return count;
}

/* Gaps and all. (btrfs reads nothing directly that names one buffer twice.) */
static unsigned fill_aside(uint8_t *data, const struct dioh_run *run, struct iovec *iov)
{
	iov->iov_base = data + (uint64_t)run->first * DIOH_PAGE_BYTES;
	iov->iov_len = (size_t)run->count * DIOH_PAGE_BYTES;
	return 1;
}

static void fill_io(struct memory_transfer *t, struct dioh_block *block, uint8_t *data, const struct dioh_run *run,
                    struct iovec *iov, struct dioh_io *io)
{
	const struct span *span = block->span;
	const uint8_t *bitmap = span->bitmap + dioh_span_page(span, block->first) / 8;
	const uint64_t pages_offset = dioh_layout_at(t->params.layout, t->params.region->record.pages_offset);

	io->write = t->params.save;
	io->stream = false;
	io->slot = DIOH_SLOT_PAGE;
	io->iov = iov;
	io->iov_count = t->aside ? fill_aside(data, run, iov) : fill_mapped(t, bitmap, data, run, iov);
	io->offset = pages_offset + dioh_region_at(t, block->first) + (uint64_t)run->first * DIOH_PAGE_BYTES;
	io->bytes = (uint64_t)run->count * DIOH_PAGE_BYTES;
}

void dioh_block_start(struct memory_transfer *t, struct dioh_block *block, uint8_t *data,
                      void (*done)(struct dioh_io *io))
{
	struct dioh_worker *worker = t->base.worker;
	const struct span *span = block->span;
	const uint8_t *bitmap = span->bitmap + dioh_span_page(span, block->first) / 8;
	const struct dioh_run_limits limits = {
		.gap_max = DIOH_GAP_PAGES_MAX,
		.alone_min = DIOH_ALONE_PAGES_MIN,
		.count_max = worker->pool.block_bytes / DIOH_PAGE_BYTES,
	};
	struct iovec *iov = block->iovs;
	struct dioh_run run = { 0 };

	while (dioh_pages_next_run(bitmap, block->pages, run.first + run.count, &limits, &run)) {
		struct dioh_io *io = &block->ios[block->io_count++];

		fill_io(t, block, data, &run, iov, io);
		iov += io->iov_count;
		io->done = done;
		io->owner = block;
		io->moved = io->bytes;
		block->outstanding++;
		dioh_worker_submit(worker, &t->base, io);
	}
}

static const char *what_failed(const struct dioh_io *io)
{
	return io->write ? "write" : "read";
}

static void fail_io(struct memory_transfer *t, const struct dioh_block *block, const struct dioh_io *io)
{
	const bool direct = t->params.layout->image->direct;
	struct dioh_error err;

	if (io->result == -EFAULT && !t->aside)
		dioh_error_set(&err, EFAULT,
		               DIOH_PLACE(READ, MEMORY, t->params.memory->number, dioh_memory_at(t, block->first)),
		               "memory %" PRIu32 ": a page at or behind %" PRIu64
		               " cannot be touched: it was truncated, or its RAM is bad", t->params.memory->number,
		               dioh_memory_at(t, block->first));
	else if (io->result == -ENODATA)
		dioh_error_set(&err, EBADMSG, DIOH_PLACE(READ, IMAGE, 0, io->offset),
		               "image: it ends at %" PRIu64 ", inside region %" PRIu32 ": it is truncated", io->offset,
		               t->params.region->record.number);
	else
		dioh_error_errno(&err, (int)io->result,
		                 &(const struct dioh_place){ io->write ? DIOH_OP_WRITE : DIOH_OP_READ, DIOH_OBJECT_IMAGE, 0,
		                                             io->offset },
		                 "image: %s%s of %" PRIu64 " bytes at %" PRIu64 " failed", direct ? "O_DIRECT " : "",
		                 what_failed(io), io->bytes, io->offset);
	dioh_memory_fail(t, &err);
}

bool dioh_block_io_done(struct dioh_io *io)
{
	struct dioh_block *block = io->owner;
	struct memory_transfer *t = block->owner;

	if (io->result < 0)
		fail_io(t, block, io);
	else
		dioh_payload_count_io(&t->base, io, io->moved);
	dioh_worker_settle(&t->base);
	return --block->outstanding == 0;
}

void dioh_block_end(struct dioh_block *block)
{
	struct memory_transfer *t = block->owner;
	struct span *span = block->span;

	if (!t->base.failed)
		atomic_fetch_add_explicit(&t->base.done_bytes, (uint64_t)block->pages * DIOH_PAGE_BYTES, memory_order_relaxed);
	span->units--;
	dioh_window_unmap(&block->window);
	dioh_bufpool_give(&t->base.worker->pool, block);
}

/* ---- the transfer ---- */

static void memory_abandon(struct dioh_transfer *transfer)
{
	(void)transfer; /* I/O on memory ends by itself */
}

static void memory_close(struct dioh_transfer *transfer)
{
	struct memory_transfer *t = (struct memory_transfer *)transfer;

	for (unsigned i = 0; i < DIOH_SPANS; i++) {
		dioh_span_close(&t->spans[i]);
		free(t->spans[i].bitmap);
		free(t->spans[i].selected);
		free(t->spans[i].checksums);
		t->spans[i].bitmap = t->spans[i].selected = NULL;
		t->spans[i].checksums = NULL;
	}
}

static const struct dioh_payload_ops save_ops = {
	.step = dioh_memory_save_step,
	.abandon = memory_abandon,
	.close = memory_close,
};

static const struct dioh_payload_ops load_ops = {
	.step = dioh_memory_load_step,
	.abandon = memory_abandon,
	.close = memory_close,
};

static bool allocate_spans(struct memory_transfer *t)
{
	const uint64_t chunks = span_chunks_max(t);

	for (unsigned i = 0; i < DIOH_SPANS; i++) {
		struct span *span = &t->spans[i];

		span->owner = t;
		span->bitmap = calloc(chunks, DIOH_CHUNK_BITMAP_BYTES);
		span->checksums = calloc(chunks, sizeof(*span->checksums));
		if (t->params.flags & DIOH_TRANSFER_SELECTION)
			span->selected = calloc(chunks, DIOH_CHUNK_BITMAP_BYTES);
		if (!span->bitmap || !span->checksums || (t->params.flags & DIOH_TRANSFER_SELECTION && !span->selected))
			return false;
	}
	return true;
}

/* A mapped load must not touch unselected pages, which an I/O over short gaps would. */
static bool goes_aside(const struct dioh_memory_params *params)
{
	if (!dioh_memory_is_huge(params->memory))
		return true;
	if (params->save)
		return !dioh_memory_may_map(params->memory);
	return params->flags & DIOH_TRANSFER_SELECTION || params->layout->image->reads_present_only;
}

struct dioh_transfer *dioh_payload_memory(const struct dioh_memory_params *params, struct dioh_error *err)
{
	struct memory_transfer *t = calloc(1, sizeof(*t));

	if (t) {
		t->params = *params;
		t->last_look.transfer = &t->base;
		t->base.payload = params->save ? &save_ops : &load_ops;
		t->base.figures.total_bytes = params->length;
		atomic_store(&t->base.total_bytes, params->length);
		t->aside = goes_aside(params);
		/* What is copied aside allocates nothing, and the scan drops what is zero. */
		t->extent.coarse = t->aside && !(params->flags & DIOH_TRANSFER_NO_SCAN);
		if (allocate_spans(t))
			return &t->base;
		memory_close(&t->base);
		free(t);
	}
	dioh_error_errno(err, ENOMEM, DIOH_PLACE(NONE, REGION, params->region->record.number, DIOH_OFFSET_NONE),
	                 "region %" PRIu32 ": room for its transfer", params->region->record.number);
	return NULL;
}
