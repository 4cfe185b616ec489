/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * payload_qemu_save.c - QEMU's stream to mapped-ram image: its pages go to their places in their blocks, all else into the
 * tail, in order. Pages gather in buffers of a chunk; a chunk that comes again (a running guest's pages are sent more than
 * once) is first completed from the image, and what came last counts.
 *
 *      stream --read--> source --parse--> page:  chunk buffer --[merge]--> page I/O --> bitmap and checksum
 *                                         other: tail buffer --> tail extents, by the header path
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "align.h"
#include "buffers.h"
#include "errand.h"
#include "layout_mapped_ram.h"
#include "pages.h"
#include "payload.h"
#include "stream_port.h"

#define BUFFERS 4u
#define CHUNK_PAGES (DIOH_CHUNK_BYTES / DIOH_PAGE_BYTES)
#define RUNS_MAX (CHUNK_PAGES / 2)

enum buffer_state {
	BUFFER_FREE,
	BUFFER_FILLING,
	BUFFER_MERGING, /* errand: what the image has of this chunk */
	BUFFER_WRITING, /* page I/O */
	BUFFER_STORING, /* errand: bitmap and checksum */
};

struct run_io {
	struct dioh_io io;
	struct iovec iov;
};

struct qemu_save;

struct chunk_buffer {
	struct qemu_save *owner;
	enum buffer_state state;
	unsigned region;
	uint64_t chunk;
	bool again; /* it has been stored before */
	uint8_t *pages;
	uint8_t present[DIOH_CHUNK_BITMAP_BYTES];
	uint8_t came[DIOH_CHUNK_BITMAP_BYTES]; /* in this buffer, present or zero */
	struct dioh_errand errand;
	unsigned ios_left;
	struct run_io *runs; /* RUNS_MAX */
};

struct qemu_save {
	struct dioh_transfer base;
	struct dioh_stream_params params;
	struct dioh_stream_port port;
	struct dioh_qemu_source *source;
	bool input_ended;
	bool piece_waits; /* `piece` has not been dealt with, for want of a buffer */
	struct dioh_qemu_piece piece;
	struct dioh_buffers memory; /* of all buffers */
	struct chunk_buffer buffers[BUFFERS];
	struct chunk_buffer *filling;
	uint8_t **stored; /* a region each: a bit a chunk that has been stored; made when needed */
	/* The tail. */
	struct dioh_errand errand;
	uint8_t *tail; /* DIOH_CHUNK_BYTES */
	uint64_t tail_bytes;
	bool extent_open;
	uint64_t extent_room;
	uint64_t extent_used;
	uint32_t *checksums; /* of the extent: one 4 KiB page */
	bool closed;
};

static struct dioh_image_layout *layout_of(const struct qemu_save *t)
{
	return t->params.layout;
}

/* ---- a chunk's way into the image ---- */

static unsigned chunk_pages(const struct chunk_buffer *buffer)
{
	const struct dioh_record_region *record = &layout_of(buffer->owner)->regions[buffer->region].record;

	return (unsigned)dioh_min(CHUNK_PAGES, record->bytes / DIOH_PAGE_BYTES - buffer->chunk * CHUNK_PAGES);
}

static uint64_t chunk_at(const struct chunk_buffer *buffer)
{
	struct dioh_image_layout *layout = layout_of(buffer->owner);

	return dioh_layout_at(layout, layout->regions[buffer->region].record.pages_offset + buffer->chunk * DIOH_CHUNK_BYTES);
}

static bool wants_checksums(const struct qemu_save *t)
{
	return !(t->params.flags & DIOH_TRANSFER_NO_CHECKSUM);
}

static void store_tables(struct dioh_job *job) /* control-I/O thread */
{
	struct chunk_buffer *buffer = dioh_container_of(job, struct chunk_buffer, errand.job);
	struct dioh_image_layout *layout = layout_of(buffer->owner);
	uint32_t checksum = dioh_pages_crc32c(buffer->pages, buffer->present, chunk_pages(buffer));
	const struct dioh_tables tables = {
		.region = &layout->regions[buffer->region],
		.first_chunk = buffer->chunk,
		.chunks = 1,
		.bitmap = buffer->present,
		.checksums = wants_checksums(buffer->owner) ? &checksum : NULL,
		.fresh = !buffer->again,
	};

	buffer->errand.result = layout->ops->store_tables(layout, &tables, &buffer->errand.error);
	dioh_errand_answer(&buffer->errand);
}

static void written(struct chunk_buffer *buffer)
{
	buffer->state = BUFFER_STORING;
	dioh_errand_ask(&buffer->errand, store_tables);
}

static void run_done(struct dioh_io *io)
{
	struct chunk_buffer *buffer = io->owner;
	struct dioh_transfer *transfer = &buffer->owner->base;
	struct dioh_error err;

	dioh_worker_settle(transfer);
	if (io->result < 0) {
		dioh_error_errno(&err, (int)io->result, DIOH_PLACE(WRITE, IMAGE, 0, io->offset),
		                 "image: %swrite of %" PRIu64 " bytes at %" PRIu64 " failed",
		                 layout_of(buffer->owner)->image->direct ? "O_DIRECT " : "", io->bytes, io->offset);
		dioh_transfer_fail(transfer, &err);
		return;
	}
	dioh_payload_count_io(transfer, io, io->moved);
	if (--buffer->ios_left == 0 && !transfer->failed)
		written(buffer);
}

static void write_run(struct chunk_buffer *buffer, struct run_io *run, unsigned page, unsigned pages)
{
	const uint64_t bytes = (uint64_t)pages * DIOH_PAGE_BYTES;

	run->iov = (struct iovec){ buffer->pages + page * DIOH_PAGE_BYTES, bytes };
	run->io = (struct dioh_io){
		.write = true,
		.slot = DIOH_SLOT_PAGE,
		.iov = &run->iov,
		.iov_count = 1,
		.offset = chunk_at(buffer) + page * DIOH_PAGE_BYTES,
		.bytes = bytes,
		.moved = bytes,
		.owner = buffer,
		.done = run_done,
	};
	buffer->ios_left++;
	dioh_worker_submit(buffer->owner->base.worker, &buffer->owner->base, &run->io);
}

static void write_pages(struct chunk_buffer *buffer)
{
	const unsigned pages = chunk_pages(buffer);
	unsigned runs = 0;

	buffer->state = BUFFER_WRITING;
	for (unsigned page = 0, count; page < pages; page += count) {
		count = dioh_pages_same(buffer->present, page, pages);
		if (dioh_bit_test(buffer->present, page))
			write_run(buffer, &buffer->runs[runs++], page, count);
	}
	if (runs == 0)
		written(buffer);
}

/* ---- a chunk that comes again ---- */

static int merge_page(struct chunk_buffer *buffer, unsigned page)
{
	int r = dioh_image_pread(layout_of(buffer->owner)->image, buffer->pages + page * DIOH_PAGE_BYTES, DIOH_PAGE_BYTES,
	                         chunk_at(buffer) + page * DIOH_PAGE_BYTES, &buffer->errand.error);

	if (r == 0)
		dioh_bit_set(buffer->present, page);
	return r;
}

/* What stands there already and has not come again. */
static void merge(struct dioh_job *job) /* control-I/O thread */
{
	struct chunk_buffer *buffer = dioh_container_of(job, struct chunk_buffer, errand.job);
	struct dioh_image_layout *layout = layout_of(buffer->owner);
	uint8_t there[DIOH_CHUNK_BITMAP_BYTES];
	struct dioh_tables tables = { .region = &layout->regions[buffer->region], .first_chunk = buffer->chunk, .chunks = 1,
		                      .bitmap = there };
	int r = layout->ops->load_tables(layout, &tables, &buffer->errand.error);

	for (unsigned page = 0; page < chunk_pages(buffer) && r == 0; page++)
		if (dioh_bit_test(there, page) && !dioh_bit_test(buffer->came, page))
			r = merge_page(buffer, page);
	buffer->errand.result = r;
	dioh_errand_answer(&buffer->errand);
}

static bool mark_stored(struct qemu_save *t, unsigned region, uint64_t chunk, bool *ret_again)
{
	const uint64_t chunks = dioh_div_up(layout_of(t)->regions[region].record.bytes, DIOH_CHUNK_BYTES);

	if (!t->stored[region])
		t->stored[region] = calloc(dioh_div_up(chunks, 8), 1);
	if (!t->stored[region])
		return false;
	*ret_again = dioh_bit_test(t->stored[region], chunk);
	dioh_bit_set(t->stored[region], chunk);
	return true;
}

static void fail_memory(struct qemu_save *t)
{
	struct dioh_error err;

	dioh_error_errno(&err, ENOMEM, DIOH_PLACE(NONE, STREAM, t->params.stream, DIOH_OFFSET_NONE),
	                 "stream %" PRIu32 ": room to know what has come", t->params.stream);
	dioh_transfer_fail(&t->base, &err);
}

/* The buffer being filled goes on its way. */
static void store_filling(struct qemu_save *t)
{
	struct chunk_buffer *buffer = t->filling;

	t->filling = NULL;
	if (!mark_stored(t, buffer->region, buffer->chunk, &buffer->again)) {
		fail_memory(t);
		return;
	}
	dioh_pages_drop_zero(buffer->pages, buffer->present, chunk_pages(buffer));
	if (!buffer->again) {
		write_pages(buffer);
		return;
	}
	buffer->state = BUFFER_MERGING;
	dioh_errand_ask(&buffer->errand, merge);
}

/* Those whose errand has come back go on. */
static void advance_buffers(struct qemu_save *t)
{
	for (unsigned i = 0; i < BUFFERS; i++) {
		struct chunk_buffer *buffer = &t->buffers[i];

		if (buffer->errand.runs)
			continue;
		if (buffer->state == BUFFER_MERGING)
			write_pages(buffer);
		else if (buffer->state == BUFFER_STORING)
			buffer->state = BUFFER_FREE;
	}
}

/* ---- the tail ---- */

static int open_extent(struct qemu_save *t)
{
	struct dioh_image_layout *layout = layout_of(t);
	struct dioh_stream_entry *entry = t->params.entry;
	int r = layout->ops->add_extent(layout, entry, &t->errand.error);

	if (r < 0)
		return r;
	t->extent_open = true;
	t->extent_used = 0;
	t->extent_room = entry->extents[entry->record.extent_count - 1].bytes;
	memset(t->checksums, 0, DIOH_PAGE_BYTES);
	return 0;
}

static int close_extent(struct qemu_save *t)
{
	struct dioh_image_layout *layout = layout_of(t);
	struct dioh_stream_entry *entry = t->params.entry;
	const unsigned last = entry->record.extent_count - 1;

	entry->extents[last].bytes = t->extent_used;
	t->extent_open = false;
	return layout->ops->store_extent(layout, entry, last, t->checksums, &t->errand.error);
}

static int write_tail(struct qemu_save *t)
{
	struct dioh_image_layout *layout = layout_of(t);
	const struct dioh_stream_entry *entry = t->params.entry;
	int r = t->extent_open ? 0 : open_extent(t);
	uint64_t at;

	if (r < 0)
		return r;
	at = entry->extents[entry->record.extent_count - 1].offset + t->extent_used;
	if (t->tail_bytes > t->extent_room - t->extent_used)
		return dioh_error_errno(&t->errand.error, ENOSPC, DIOH_PLACE(WRITE, IMAGE, 0, at),
		                        "image: no room for more device state");
	t->checksums[t->extent_used / DIOH_CHUNK_BYTES] = dioh_crc32c(0, t->tail, t->tail_bytes);
	r = dioh_image_pwrite(layout->image, t->tail, t->tail_bytes, dioh_layout_at(layout, at), &t->errand.error);
	t->extent_used += t->tail_bytes;
	t->tail_bytes = 0;
	if (r == 0 && t->extent_used == t->extent_room)
		r = close_extent(t);
	return r;
}

static void store_tail(struct dioh_job *job) /* control-I/O thread */
{
	struct qemu_save *t = dioh_container_of(job, struct qemu_save, errand.job);

	t->errand.result = write_tail(t);
	dioh_errand_answer(&t->errand);
}

static void finish_entry(struct qemu_save *t)
{
	struct dioh_record_stream *record = &t->params.entry->record;

	record->bytes = 0;
	for (unsigned i = 0; i < record->extent_count; i++)
		record->bytes += t->params.entry->extents[i].bytes;
	if (!wants_checksums(t))
		record->flags &= ~(uint32_t)DIOH_REGION_CHECKSUMS;
}

static void close_tail(struct dioh_job *job) /* control-I/O thread */
{
	struct qemu_save *t = dioh_container_of(job, struct qemu_save, errand.job);
	int r = t->tail_bytes ? write_tail(t) : 0;

	if (r == 0 && t->extent_open)
		r = close_extent(t);
	finish_entry(t);
	t->errand.result = r;
	dioh_errand_answer(&t->errand);
}

/* ---- pieces of the stream ---- */

static struct chunk_buffer *start_buffer(struct qemu_save *t, unsigned region, uint64_t chunk)
{
	struct chunk_buffer *free_one = NULL;

	for (unsigned i = 0; i < BUFFERS; i++) {
		struct chunk_buffer *buffer = &t->buffers[i];

		if (buffer->state == BUFFER_FREE)
			free_one = buffer;
		else if (buffer->region == region && buffer->chunk == chunk)
			return NULL; /* it is still on its way */
	}
	if (!free_one)
		return NULL;
	free_one->state = BUFFER_FILLING;
	free_one->region = region;
	free_one->chunk = chunk;
	memset(free_one->present, 0, sizeof(free_one->present));
	memset(free_one->came, 0, sizeof(free_one->came));
	return free_one;
}

static void put_page(struct chunk_buffer *buffer, unsigned page, const uint8_t *bytes)
{
	uint8_t *to = buffer->pages + page * DIOH_PAGE_BYTES;

	dioh_bit_set(buffer->came, page);
	dioh_bits_fill(buffer->present, page, 1, bytes != NULL);
	if (bytes)
		memcpy(to, bytes, DIOH_PAGE_BYTES);
}

static bool from_memory(struct qemu_save *t, unsigned region)
{
	const struct dioh_record_region *record = &layout_of(t)->regions[region].record;
	struct dioh_error err;

	if (record->flags & DIOH_REGION_IN_STREAM)
		return false;
	dioh_error_set(&err, EBADMSG, DIOH_PLACE(PARSE, STREAM, t->params.stream, t->base.figures.total_bytes),
	               "stream %" PRIu32 ": it brings pages of block \"%.64s\", which is to be saved from a memory: QEMU leaves "
	               "out only shared memory of a named file", t->params.stream, record->name);
	dioh_transfer_fail(&t->base, &err);
	return true;
}

/* false: it has to wait for a buffer. */
static bool take_page(struct qemu_save *t, const struct dioh_qemu_piece *piece)
{
	const uint64_t chunk = piece->page / CHUNK_PAGES;

	if (from_memory(t, piece->block))
		return true;
	if (t->filling && (t->filling->region != piece->block || t->filling->chunk != chunk))
		store_filling(t);
	if (!t->filling)
		t->filling = start_buffer(t, piece->block, chunk);
	if (!t->filling)
		return false;
	put_page(t->filling, (unsigned)(piece->page % CHUNK_PAGES), piece->bytes);
	return true;
}

/* false: the tail's buffer is on its way. What could be taken is gone from the piece. */
static bool take_tail(struct qemu_save *t, struct dioh_qemu_piece *piece)
{
	while (piece->count > 0) {
		uint64_t n;

		if (t->errand.runs)
			return false;
		n = dioh_min(piece->count, DIOH_CHUNK_BYTES - t->tail_bytes);
		memcpy(t->tail + t->tail_bytes, piece->bytes, n);
		t->tail_bytes += n;
		piece->bytes += n;
		piece->count -= n;
		if (t->tail_bytes == DIOH_CHUNK_BYTES)
			dioh_errand_ask(&t->errand, store_tail);
	}
	return true;
}

static bool take_piece(struct qemu_save *t)
{
	if (t->piece.event == DIOH_QEMU_PAGE)
		return take_page(t, &t->piece);
	if (t->piece.event == DIOH_QEMU_VERBATIM)
		return take_tail(t, &t->piece);
	return true;
}

static void fail_parse(struct qemu_save *t, struct dioh_error *err)
{
	if (err->object == DIOH_OBJECT_STREAM)
		err->number = t->params.stream;
	dioh_transfer_fail(&t->base, err);
}

/* All that has come. false: something has to be waited for. */
static bool parse(struct qemu_save *t)
{
	struct dioh_error err;

	while (!t->base.failed) {
		if (!t->piece_waits) {
			if (t->source->left == 0)
				return true;
			if (dioh_qemu_parse(t->source->parser, &t->source->next, &t->source->left, &t->piece, &err) < 0) {
				fail_parse(t, &err);
				return false;
			}
		}
		t->piece_waits = !take_piece(t);
		if (t->piece_waits)
			return false;
	}
	return false;
}

/* ---- the transfer ---- */

static void read_done(struct dioh_io *io)
{
	struct qemu_save *t = io->owner;
	struct dioh_error err;

	if (!dioh_port_moved(&t->port, io))
		return;
	t->source->next = t->source->input;
	t->source->left = (size_t)io->result;
	t->base.figures.total_bytes += (uint64_t)io->result;
	t->base.figures.data_bytes = t->base.figures.total_bytes;
	atomic_store_explicit(&t->base.done_bytes, t->base.figures.total_bytes, memory_order_relaxed);
	t->input_ended = io->result == 0;
	if (t->input_ended && dioh_qemu_parser_end(t->source->parser, &err) < 0)
		fail_parse(t, &err);
}

static bool all_free(const struct qemu_save *t)
{
	for (unsigned i = 0; i < BUFFERS; i++)
		if (t->buffers[i].state != BUFFER_FREE)
			return false;
	return true;
}

static enum dioh_step end_step(struct qemu_save *t)
{
	if (t->filling)
		store_filling(t);
	if (!all_free(t) || t->errand.runs)
		return DIOH_STEP_WAIT;
	if (t->closed)
		return DIOH_STEP_DONE;
	t->closed = true;
	dioh_errand_ask(&t->errand, close_tail);
	return DIOH_STEP_WAIT;
}

static enum dioh_step save_step(struct dioh_transfer *transfer)
{
	struct qemu_save *t = (struct qemu_save *)transfer;

	advance_buffers(t);
	if (t->port.under_way)
		return DIOH_STEP_WAIT;
	if (!parse(t))
		return DIOH_STEP_WAIT;
	if (t->input_ended)
		return end_step(t);
	dioh_port_move(&t->port, t->source->input, DIOH_QEMU_INPUT_BYTES, read_done);
	return DIOH_STEP_WAIT;
}

static void save_abandon(struct dioh_transfer *transfer)
{
	dioh_port_abandon(&((struct qemu_save *)transfer)->port);
}

static void free_buffers(struct qemu_save *t)
{
	dioh_buffers_close(&t->memory);
	for (unsigned i = 0; i < BUFFERS; i++)
		free(t->buffers[i].runs);
	for (unsigned i = 0; t->stored && i < t->params.layout->region_count; i++)
		free(t->stored[i]);
	free(t->stored);
	free(t->tail);
	free(t->checksums);
}

static void save_close(struct dioh_transfer *transfer)
{
	struct qemu_save *t = (struct qemu_save *)transfer;

	dioh_port_close(&t->port);
	free_buffers(t);
}

static const struct dioh_payload_ops save_ops = { .step = save_step, .abandon = save_abandon, .close = save_close };

static bool allocate(struct qemu_save *t)
{
	bool all = dioh_buffers_open(&t->memory, BUFFERS * DIOH_CHUNK_BYTES);

	for (unsigned i = 0; i < BUFFERS; i++) {
		struct chunk_buffer *buffer = &t->buffers[i];

		buffer->owner = t;
		buffer->errand.transfer = &t->base;
		buffer->pages = all ? t->memory.first + i * DIOH_CHUNK_BYTES : NULL;
		buffer->runs = calloc(RUNS_MAX, sizeof(*buffer->runs));
		all = all && buffer->runs;
	}
	t->stored = calloc(t->params.layout->region_count, sizeof(*t->stored));
	t->tail = malloc(DIOH_CHUNK_BYTES);
	t->checksums = calloc(1, DIOH_PAGE_BYTES);
	return all && t->stored && t->tail && t->checksums;
}

/* The tail begins with the end of the setup, which the parser has taken. */
static void begin_tail(struct qemu_save *t)
{
	t->tail_bytes = dioh_qemu_put_section_end(t->tail, &layout_of(t)->mapped_ram->setup);
}

struct dioh_transfer *dioh_payload_qemu_save(const struct dioh_stream_params *params, struct dioh_error *err)
{
	struct qemu_save *t = calloc(1, sizeof(*t));

	if (t) {
		t->params = *params;
		t->base.payload = &save_ops;
		dioh_port_init(&t->port, &t->base, params);
		t->errand.transfer = &t->base;
		t->source = &params->layout->mapped_ram->source;
		t->base.figures.total_bytes = dioh_qemu_parser_offset(t->source->parser) + t->source->left;
		if (allocate(t)) {
			begin_tail(t);
			return &t->base;
		}
		free_buffers(t);
		free(t);
	}
	dioh_error_errno(err, ENOMEM, DIOH_PLACE(NONE, STREAM, params->stream, DIOH_OFFSET_NONE),
	                 "stream %" PRIu32 ": room for its buffers", params->stream);
	return NULL;
}
