/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* payload_stream_load.c - image to stream: several reads ahead, written in order, and only once their checksum is right. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "align.h"
#include "pages.h"
#include "payload_stream.h"

/* ---- extents ---- */

static void next_extent(struct dioh_job *job) /* control-I/O thread */
{
	struct stream_transfer *t = dioh_container_of(job, struct stream_transfer, errand.job);
	struct dioh_image_layout *layout = t->params.layout;
	const struct dioh_stream_entry *entry = t->params.entry;

	if (t->extent_valid)
		t->extent_index++;
	t->extent_valid = t->extent_index < entry->record.extent_count;
	t->ended = !t->extent_valid;
	t->extent_used = 0;
	t->errand.result = 0;
	if (t->extent_valid) {
		t->extent = entry->extents[t->extent_index];
		t->errand.result = layout->ops->load_extent(layout, entry, t->extent_index, t->checksums, &t->errand.error);
	}
	dioh_errand_answer(&t->errand);
}

/* ---- buffers ---- */

static bool checked(const struct stream_transfer *t)
{
	return t->params.entry->record.flags & DIOH_REGION_CHECKSUMS && !(t->params.flags & DIOH_TRANSFER_NO_CHECKSUM);
}

static void filled(struct stream_buffer *buffer)
{
	struct stream_transfer *t = buffer->owner;
	struct dioh_error err;
	uint32_t sum;

	buffer->state = BUFFER_FULL;
	if (!checked(t))
		return;
	sum = dioh_crc32c(0, buffer->data, buffer->bytes);
	if (sum == buffer->checksum)
		return;
	dioh_error_set(&err, EBADMSG, DIOH_PLACE(CHECKSUM, STREAM, t->params.stream, buffer->stream_at),
	               "stream %" PRIu32 " \"%.64s\": its bytes from %" PRIu64 " on are damaged: their checksum is %08" PRIx32
	               ", not %08" PRIx32, t->params.entry->record.number, t->params.entry->record.name, buffer->stream_at,
	               sum, buffer->checksum);
	dioh_transfer_fail(&t->base, &err);
}

static bool fill(struct stream_transfer *t)
{
	struct stream_buffer *buffer = dioh_stream_free_buffer(t);
	uint64_t room;

	if (!buffer)
		return false;
	buffer->state = BUFFER_FILLING;
	room = dioh_stream_place(buffer, t->extent.offset + t->extent_used);
	buffer->bytes = dioh_min(room, t->extent.bytes - t->extent_used);
	buffer->stream_at = t->stream_at;
	buffer->checksum = t->checksums[t->extent_used / DIOH_CHUNK_BYTES % (DIOH_PAGE_BYTES / sizeof(uint32_t))];
	t->extent_used += buffer->bytes;
	t->stream_at += buffer->bytes;
	dioh_stream_image_io(buffer, filled);
	return true;
}

static void write_done(struct dioh_io *io)
{
	struct stream_transfer *t = io->owner;
	struct stream_buffer *buffer = &t->buffers[t->drain_next];

	if (!dioh_port_moved(&t->port, io))
		return;
	buffer->drained += (uint64_t)io->result;
	t->base.figures.total_bytes += (uint64_t)io->result;
	t->base.figures.data_bytes = t->base.figures.total_bytes;
	atomic_store_explicit(&t->base.done_bytes, t->base.figures.total_bytes, memory_order_relaxed);
	if (buffer->drained < buffer->bytes)
		return;
	buffer->state = BUFFER_FREE;
	t->drain_next = (t->drain_next + 1) % DIOH_STREAM_BUFFERS;
}

static void drain(struct stream_transfer *t)
{
	struct stream_buffer *buffer = &t->buffers[t->drain_next];

	if (t->port.under_way || (buffer->state != BUFFER_FULL && buffer->state != BUFFER_DRAINING))
		return;
	buffer->state = BUFFER_DRAINING;
	dioh_port_move(&t->port, buffer->data + buffer->drained, buffer->bytes - buffer->drained, write_done);
}

static enum dioh_step end_step(struct stream_transfer *t)
{
	if (t->base.outstanding > 0 || t->buffers[t->drain_next].state != BUFFER_FREE)
		return DIOH_STEP_WAIT;
	if (t->port.fd < 0)
		return DIOH_STEP_DONE;
	if (t->looked)
		dioh_port_ask_close(&t->port, &t->errand);
	else
		dioh_errand_ask_unchanged(&t->errand, t->params.layout);
	t->looked = true;
	return DIOH_STEP_WAIT;
}

enum dioh_step dioh_stream_load_step(struct dioh_transfer *transfer)
{
	struct stream_transfer *t = (struct stream_transfer *)transfer;

	drain(t);
	if (t->errand.runs)
		return DIOH_STEP_WAIT;
	if (t->ended)
		return end_step(t);
	if (!t->extent_valid || t->extent_used == t->extent.bytes) {
		dioh_errand_ask(&t->errand, next_extent);
		return DIOH_STEP_WAIT;
	}
	return fill(t) ? DIOH_STEP_MORE : DIOH_STEP_WAIT;
}
