/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* payload_stream_save.c - stream to image: read to its end, placed in extents that are taken as it grows. */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "align.h"
#include "pages.h"
#include "payload_stream.h"

/* ---- extents ---- */

static bool wants_checksums(const struct stream_transfer *t)
{
	return !(t->params.flags & DIOH_TRANSFER_NO_CHECKSUM);
}

/* The extent at hand keeps what it holds of the stream; one that holds nothing goes. */
static int store_extent(struct stream_transfer *t)
{
	struct dioh_image_layout *layout = t->params.layout;
	struct dioh_stream_entry *entry = t->params.entry;
	unsigned count = entry->record.extent_count;

	if (count == 0 || t->no_room) /* none, or stored already */
		return 0;
	if (t->extent_used == 0) {
		dioh_layout_drop_extent(layout, entry);
		return 0;
	}
	entry->extents[count - 1].bytes = t->extent_used;
	return layout->ops->store_extent(layout, entry, count - 1, t->checksums, &t->errand.error);
}

/* That there is no room is no error yet: the stream may end just here. */
static void take_extent(struct stream_transfer *t)
{
	struct dioh_image_layout *layout = t->params.layout;
	struct dioh_stream_entry *entry = t->params.entry;

	t->no_room = layout->ops->add_extent(layout, entry, &t->room_error) < 0;
	if (!t->no_room)
		t->extent = entry->extents[entry->record.extent_count - 1];
}

/* Stores the extent at hand; takes a further one unless the stream has ended. */
static void turn_extent(struct dioh_job *job) /* control-I/O thread */
{
	struct stream_transfer *t = dioh_container_of(job, struct stream_transfer, errand.job);
	struct dioh_record_stream *record = &t->params.entry->record;
	int r = store_extent(t);

	if (r == 0 && t->ended) {
		record->bytes = t->stream_at;
		if (!wants_checksums(t))
			record->flags &= ~(uint32_t)DIOH_REGION_CHECKSUMS;
	} else if (r == 0) {
		take_extent(t);
	}
	t->extent_used = 0;
	memset(t->checksums, 0, DIOH_PAGE_BYTES);
	t->errand.result = r;
	dioh_errand_answer(&t->errand);
}

/* ---- buffers ---- */

static void drained(struct stream_buffer *buffer)
{
	struct stream_transfer *t = buffer->owner;

	t->base.figures.data_bytes += buffer->bytes;
	buffer->state = BUFFER_FREE;
}

static void drain(struct stream_transfer *t, struct stream_buffer *buffer)
{
	uint64_t chunk = (buffer->image_at - t->extent.offset) / DIOH_CHUNK_BYTES;

	/* Layouts with checksums start extents on a page, so that buffers and chunks are the same there. */
	if (t->extent.checksums.offset)
		t->checksums[chunk] = dioh_crc32c(0, buffer->data, buffer->bytes);
	buffer->state = BUFFER_DRAINING;
	dioh_stream_image_io(buffer, drained);
}

static struct stream_buffer *filling(struct stream_transfer *t)
{
	for (unsigned i = 0; i < DIOH_STREAM_BUFFERS; i++)
		if (t->buffers[i].state == BUFFER_FILLING)
			return &t->buffers[i];
	return NULL;
}

static uint64_t room_in(const struct stream_transfer *t, const struct stream_buffer *buffer)
{
	uint64_t buffer_room = DIOH_STREAM_BUFFER_BYTES - (uint64_t)(buffer->data - buffer->pages) - buffer->bytes;

	return dioh_min(buffer_room, t->extent.bytes - t->extent_used);
}

/* So many bytes more are in the buffer; 0: the stream's end. */
static void filled(struct stream_transfer *t, struct stream_buffer *buffer, uint64_t bytes)
{
	buffer->bytes += bytes;
	t->extent_used += bytes;
	t->stream_at += bytes;
	t->base.figures.total_bytes = t->stream_at;
	atomic_store_explicit(&t->base.done_bytes, t->stream_at, memory_order_relaxed);
	t->ended = bytes == 0;
	if (buffer->bytes > 0 && (t->ended || room_in(t, buffer) == 0))
		drain(t, buffer);
	else if (t->ended)
		buffer->state = BUFFER_FREE;
}

static void read_done(struct dioh_io *io)
{
	struct stream_transfer *t = io->owner;
	struct stream_buffer *buffer = filling(t);

	if (!dioh_port_moved(&t->port, io))
		return;
	assert(buffer); /* it was what has been read into */
	filled(t, buffer, (uint64_t)io->result);
}

/* What was read of the stream before it became ours. */
static void take_early(struct stream_transfer *t, struct stream_buffer *buffer)
{
	const uint64_t bytes = dioh_min(room_in(t, buffer), t->params.early_bytes - t->stream_at);

	memcpy(buffer->data + buffer->bytes, t->params.early + t->stream_at, bytes);
	filled(t, buffer, bytes);
}

/* A byte for which there is no room, or the end. */
static void probe_done(struct dioh_io *io)
{
	struct stream_transfer *t = io->owner;

	if (!dioh_port_moved(&t->port, io))
		return;
	t->ended = io->result == 0;
	if (!t->ended)
		dioh_transfer_fail(&t->base, &t->room_error);
}

static bool all_free(const struct stream_transfer *t)
{
	for (unsigned i = 0; i < DIOH_STREAM_BUFFERS; i++)
		if (t->buffers[i].state != BUFFER_FREE)
			return false;
	return true;
}

static enum dioh_step end_step(struct stream_transfer *t)
{
	if (!all_free(t) || t->errand.runs)
		return DIOH_STEP_WAIT;
	if (t->closed)
		return DIOH_STEP_DONE;
	t->closed = true;
	dioh_errand_ask(&t->errand, turn_extent);
	return DIOH_STEP_WAIT;
}

enum dioh_step dioh_stream_save_step(struct dioh_transfer *transfer)
{
	struct stream_transfer *t = (struct stream_transfer *)transfer;
	struct stream_buffer *buffer;

	if (t->ended)
		return end_step(t);
	if (t->port.under_way || t->errand.runs)
		return DIOH_STEP_WAIT;
	if (t->no_room && t->stream_at < t->params.early_bytes) {
		dioh_transfer_fail(&t->base, &t->room_error);
		return DIOH_STEP_WAIT;
	}
	if (t->no_room) {
		dioh_port_move(&t->port, &t->probe, sizeof(t->probe), probe_done);
		return DIOH_STEP_WAIT;
	}
	buffer = filling(t);
	if (!buffer && t->extent_used == t->extent.bytes) {
		dioh_errand_ask(&t->errand, turn_extent);
		return DIOH_STEP_WAIT;
	}
	if (!buffer) {
		buffer = dioh_stream_free_buffer(t);
		if (!buffer)
			return DIOH_STEP_WAIT;
		buffer->state = BUFFER_FILLING;
		dioh_stream_place(buffer, t->extent.offset + t->extent_used);
	}
	if (t->stream_at < t->params.early_bytes) {
		take_early(t, buffer);
		return DIOH_STEP_MORE;
	}
	dioh_port_move(&t->port, buffer->data + buffer->bytes, room_in(t, buffer), read_done);
	return DIOH_STEP_WAIT;
}
