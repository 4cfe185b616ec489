/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * payload_qemu_save.c - QEMU's stream to mapped-ram image: its pages go to their places in their blocks, all else into the
 * tail, in order. A running guest's pages are sent more than once; what came last counts.
 *
 *      stream --read--> source --parse--> page:  page_sink.h --> page I/O, bitmap, checksum
 *                                         other: tail buffer --> tail extents, by the header path
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "align.h"
#include "errand.h"
#include "layout_mapped_ram.h"
#include "page_sink.h"
#include "pages.h"
#include "qemu_channel.h"
#include "payload.h"
#include "stream_port.h"

struct qemu_save {
	struct dioh_transfer base;
	struct dioh_stream_params params;
	struct dioh_stream_port port;
	struct dioh_qemu_source *source;
	bool input_ended;
	bool piece_waits; /* `piece` has not been dealt with, for want of a buffer */
	struct dioh_qemu_piece piece;
	struct dioh_page_sink sink;
	struct dioh_qemu_channel *channels; /* params.channel_count of them; NULL: none */
	bool at_sync; /* the stream is at a sync point: the channels have to get there, too */
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

static bool wants_checksums(const struct qemu_save *t)
{
	return !(t->params.flags & DIOH_TRANSFER_NO_CHECKSUM);
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

static bool from_memory(struct qemu_save *t, unsigned block)
{
	struct dioh_error err;

	if (dioh_mapped_ram_check_in_stream(layout_of(t), block, t->params.stream, t->base.figures.total_bytes, &err) == 0)
		return false;
	dioh_transfer_fail(&t->base, &err);
	return true;
}

/* false: it has to wait for a buffer. */
static bool take_page(struct qemu_save *t, const struct dioh_qemu_piece *piece)
{
	struct dioh_sink_chunk *chunk;
	uint8_t *to;

	if (from_memory(t, piece->block))
		return true;
	if (!piece->bytes)
		return dioh_sink_zero(&t->sink, piece->block, piece->page);
	to = dioh_sink_page(&t->sink, piece->block, piece->page, &chunk);
	if (!to)
		return false;
	memcpy(to, piece->bytes, DIOH_PAGE_BYTES);
	dioh_sink_filled(chunk, 1);
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
	if (t->piece.event == DIOH_QEMU_SYNC)
		t->at_sync = true;
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

	while (!t->base.failed && !t->at_sync) {
		if (!t->piece_waits) {
			if (dioh_qemu_parse(t->source->parser, &t->source->next, &t->source->left, &t->piece, &err) < 0) {
				fail_parse(t, &err);
				return false;
			}
			if (t->piece.event == DIOH_QEMU_MORE)
				return true;
		}
		t->piece_waits = !take_piece(t);
		if (t->piece_waits)
			return false;
	}
	return false;
}

/* ---- multifd's channels ---- */

static bool all_channels(const struct qemu_save *t, enum dioh_channel_state state)
{
	for (unsigned i = 0; i < t->params.channel_count; i++)
		if (t->channels[i].state != state)
			return false;
	return true;
}

static void go_on_channels(struct qemu_save *t)
{
	for (unsigned i = 0; i < t->params.channel_count; i++)
		dioh_channel_go_on(&t->channels[i]);
}

static void fail_sync(struct qemu_save *t)
{
	struct dioh_error err;

	for (unsigned i = 0; i < t->params.channel_count; i++) {
		const struct dioh_qemu_channel *channel = &t->channels[i];

		if (channel->state != DIOH_CHANNEL_ENDED)
			continue;
		dioh_error_set(&err, EBADMSG, DIOH_PLACE(PARSE, STREAM, channel->port.number, channel->offset),
		               "stream %" PRIu32 ": this multifd channel ends without the sync point that stream %" PRIu32
		               " has at byte %" PRIu64, channel->port.number, t->params.stream,
		               dioh_qemu_parser_offset(t->source->parser));
		dioh_transfer_fail(&t->base, &err);
		return;
	}
}

/*
 * Between two sync points a page comes once. So what stands behind one waits until everything in front of it has come, on
 * every channel and in the stream: then a buffer gets the newer bytes last, and buffers of one chunk follow each other.
 * Behind RAM's end there is nothing to wait for; some versions of QEMU sync there once more on the channels alone.
 */
static void sync_channels(struct qemu_save *t)
{
	if (t->at_sync && all_channels(t, DIOH_CHANNEL_SYNCED)) {
		t->at_sync = false;
		go_on_channels(t);
	} else if (t->at_sync) {
		fail_sync(t);
	} else if (dioh_qemu_parser_in_tail(t->source->parser)) {
		go_on_channels(t);
	}
}

static void step_channels(struct qemu_save *t)
{
	for (unsigned i = 0; i < t->params.channel_count; i++)
		dioh_channel_step(&t->channels[i]);
	sync_channels(t);
	for (unsigned i = 0; i < t->params.channel_count; i++)
		dioh_channel_step(&t->channels[i]);
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
	atomic_fetch_add_explicit(&t->base.done_bytes, (uint64_t)io->result, memory_order_relaxed);
	t->input_ended = io->result == 0;
	if (t->input_ended && dioh_qemu_parser_end(t->source->parser, &err) < 0)
		fail_parse(t, &err);
}

/*
 * QEMU sends each page of each block once, at least. A block of which none came is shared memory that the sender left out
 * (virtio-mem's may be empty, so this is not asked of others); a stream of nothing but zeros is a multifd migration's.
 */
static int check_whole(struct qemu_save *t, struct dioh_error *err)
{
	const struct dioh_image_layout *layout = layout_of(t);
	const bool ignores_shared = layout->mapped_ram->setup.capabilities & DIOH_QEMU_IGNORE_SHARED;
	const struct dioh_place place = { DIOH_OP_PARSE, DIOH_OBJECT_STREAM, t->params.stream, t->base.figures.total_bytes };

	for (unsigned i = 0; i < layout->region_count && ignores_shared; i++) {
		const struct dioh_record_region *record = &layout->regions[i].record;

		if (record->flags & DIOH_REGION_IN_STREAM && !t->sink.regions[i].came)
			return dioh_error_set(err, EBADMSG, &place,
			                      "stream %" PRIu32 ": no page of block \"%.64s\" has come: x-ignore-shared left it out, so it "
			                      "is to be named as a region and saved from its memory", t->params.stream, record->name);
	}
	if (!ignores_shared && !t->channels && !t->sink.has_data)
		return dioh_error_set(err, EBADMSG, &place,
		                      "stream %" PRIu32 ": no page that is not zero has come: is it a multifd migration's, without "
		                      "its channels?", t->params.stream);
	return t->channels ? dioh_channels_check_whole(t->channels, err) : 0;
}

static enum dioh_step end_step(struct qemu_save *t)
{
	struct dioh_error err;

	if (!t->closed && check_whole(t, &err) < 0) {
		dioh_transfer_fail(&t->base, &err);
		return DIOH_STEP_WAIT;
	}
	if (!dioh_sink_finish(&t->sink) || t->errand.runs)
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
	bool was_at_sync;

	dioh_sink_advance(&t->sink);
	if (t->channels)
		step_channels(t);
	if (t->port.under_way)
		return DIOH_STEP_WAIT;
	was_at_sync = t->at_sync;
	if (!parse(t)) /* a sync point is looked at once more: the channels may be there already */
		return t->at_sync && !was_at_sync ? DIOH_STEP_MORE : DIOH_STEP_WAIT;
	if (t->input_ended)
		return all_channels(t, DIOH_CHANNEL_ENDED) ? end_step(t) : DIOH_STEP_WAIT;
	dioh_port_move(&t->port, t->source->input, DIOH_QEMU_INPUT_BYTES, read_done);
	return DIOH_STEP_WAIT;
}

static void save_abandon(struct dioh_transfer *transfer)
{
	struct qemu_save *t = (struct qemu_save *)transfer;

	dioh_port_abandon(&t->port);
	for (unsigned i = 0; i < t->params.channel_count; i++)
		dioh_port_abandon(&t->channels[i].port);
}

static void free_buffers(struct qemu_save *t)
{
	dioh_sink_close(&t->sink);
	free(t->channels);
	free(t->tail);
	free(t->checksums);
}

static void save_close(struct dioh_transfer *transfer)
{
	struct qemu_save *t = (struct qemu_save *)transfer;

	dioh_port_close(&t->port);
	for (unsigned i = 0; i < t->params.channel_count; i++)
		dioh_port_close(&t->channels[i].port);
	free_buffers(t);
}

static const struct dioh_payload_ops save_ops = { .step = save_step, .abandon = save_abandon, .close = save_close };

static bool open_channels(struct qemu_save *t)
{
	const unsigned count = t->params.channel_count;

	if (count == 0)
		return true;
	t->channels = calloc(count, sizeof(*t->channels));
	for (unsigned i = 0; t->channels && i < count; i++)
		dioh_channel_open(t->channels, i, &t->sink, dioh_qemu_parser_setup(t->source->parser), &t->params);
	t->at_sync = true; /* the setup's end is one */
	return t->channels;
}

static bool allocate(struct qemu_save *t)
{
	const bool open = dioh_sink_open(&t->sink, &t->base, t->params.layout, t->params.flags);

	t->tail = malloc(DIOH_CHUNK_BYTES);
	t->checksums = calloc(1, DIOH_PAGE_BYTES);
	return open && t->tail && t->checksums && open_channels(t);
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
		atomic_store(&t->base.done_bytes, t->base.figures.total_bytes);
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
