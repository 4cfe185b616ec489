/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* payload_stream.c - see payload_stream.h: buffers and their image I/O. */
#define _GNU_SOURCE
#include "payload_stream.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "align.h"

#define BUFFERS_BYTES (DIOH_STREAM_BUFFERS * DIOH_STREAM_BUFFER_BYTES)

/* ---- image I/O of a buffer ---- */

struct parts { /* of a buffer's data */
	uint64_t head; /* up to the first page boundary */
	uint64_t body;
	uint64_t tail; /* behind the last one */
};

static struct parts parts_of(const struct stream_buffer *buffer)
{
	struct parts parts = { 0 };

	if (!dioh_is_aligned(buffer->image_at, DIOH_PAGE_BYTES))
		parts.head = dioh_min(DIOH_PAGE_BYTES - buffer->image_at % DIOH_PAGE_BYTES, buffer->bytes);
	parts.body = dioh_align_down(buffer->bytes - parts.head, DIOH_PAGE_BYTES);
	parts.tail = buffer->bytes - parts.head - parts.body;
	return parts;
}

uint64_t dioh_stream_place(struct stream_buffer *buffer, uint64_t image_at)
{
	uint64_t within = image_at % DIOH_PAGE_BYTES;

	buffer->image_at = image_at;
	buffer->data = buffer->pages + within;
	buffer->bytes = 0;
	buffer->drained = 0;
	return DIOH_STREAM_BUFFER_BYTES - within;
}

static void image_part_done(struct stream_buffer *buffer)
{
	struct dioh_transfer *transfer = &buffer->owner->base;

	dioh_worker_settle(transfer);
	if (--buffer->outstanding == 0 && !transfer->failed)
		buffer->image_done(buffer);
}

static void body_done(struct dioh_io *io)
{
	struct stream_buffer *buffer = io->owner;
	struct stream_transfer *t = buffer->owner;
	struct dioh_error err;

	if (io->result == -ENODATA) {
		dioh_error_set(&err, EBADMSG, DIOH_PLACE(READ, IMAGE, 0, io->offset),
		               "image: it ends at %" PRIu64 ", inside stream %" PRIu32 ": it is truncated", io->offset,
		               t->params.entry->record.number);
		dioh_transfer_fail(&t->base, &err);
	} else if (io->result < 0) {
		dioh_error_errno(&err, (int)io->result,
		                 &(const struct dioh_place){ io->write ? DIOH_OP_WRITE : DIOH_OP_READ, DIOH_OBJECT_IMAGE, 0,
		                                             io->offset },
		                 "image: %s%s of %" PRIu64 " bytes at %" PRIu64 " failed",
		                 t->params.layout->image->direct ? "O_DIRECT " : "", io->write ? "write" : "read", io->bytes,
		                 io->offset);
		dioh_transfer_fail(&t->base, &err);
	} else {
		dioh_payload_count_io(&t->base, io, io->moved);
	}
	image_part_done(buffer);
}

static void ends_done(struct dioh_job *job)
{
	struct stream_buffer *buffer = dioh_container_of(job, struct stream_buffer, job);

	if (buffer->job_result < 0)
		dioh_transfer_fail(&buffer->owner->base, &buffer->job_error);
	image_part_done(buffer);
}

static int move_end(struct stream_buffer *buffer, uint64_t within, uint64_t bytes)
{
	struct dioh_image_layout *layout = buffer->owner->params.layout;
	uint64_t at = dioh_layout_at(layout, buffer->image_at + within);

	if (bytes == 0)
		return 0;
	if (buffer->owner->params.save)
		return dioh_image_pwrite(layout->image, buffer->data + within, bytes, at, &buffer->job_error);
	return dioh_image_pread(layout->image, buffer->data + within, bytes, at, &buffer->job_error);
}

static void move_ends(struct dioh_job *job) /* control-I/O thread */
{
	struct stream_buffer *buffer = dioh_container_of(job, struct stream_buffer, job);
	struct parts parts = parts_of(buffer);

	buffer->job_result = move_end(buffer, 0, parts.head);
	if (buffer->job_result == 0)
		buffer->job_result = move_end(buffer, parts.head + parts.body, parts.tail);
	dioh_worker_answer(buffer->owner->base.worker, job, ends_done);
}

static void start_body(struct stream_buffer *buffer, const struct parts *parts)
{
	struct stream_transfer *t = buffer->owner;
	struct dioh_io *io = &buffer->io;

	buffer->iov = (struct iovec){ buffer->data + parts->head, parts->body };
	*io = (struct dioh_io){
		.write = t->params.save,
		.slot = DIOH_SLOT_PAGE,
		.iov = &buffer->iov,
		.iov_count = 1,
		.offset = dioh_layout_at(t->params.layout, buffer->image_at + parts->head),
		.bytes = parts->body,
		.moved = parts->body,
		.owner = buffer,
		.done = body_done,
	};
	dioh_worker_submit(t->base.worker, &t->base, io);
}

void dioh_stream_image_io(struct stream_buffer *buffer, void (*image_done)(struct stream_buffer *buffer))
{
	struct stream_transfer *t = buffer->owner;
	struct parts parts = parts_of(buffer);
	bool ends = parts.head || parts.tail;

	buffer->image_done = image_done;
	buffer->outstanding = (parts.body ? 1 : 0) + (ends ? 1 : 0);
	if (parts.body)
		start_body(buffer, &parts);
	if (ends)
		dioh_worker_ask(t->base.worker, &t->base, &buffer->job, move_ends);
}

/* ---- the transfer ---- */

struct stream_buffer *dioh_stream_free_buffer(struct stream_transfer *t)
{
	struct stream_buffer *buffer = &t->buffers[t->fill_next];

	if (buffer->state != BUFFER_FREE)
		return NULL;
	t->fill_next = (t->fill_next + 1) % DIOH_STREAM_BUFFERS;
	return buffer;
}

static void stream_abandon(struct dioh_transfer *transfer)
{
	struct stream_transfer *t = (struct stream_transfer *)transfer;

	dioh_port_abandon(&t->port);
}

static void free_buffers(struct stream_transfer *t)
{
	dioh_buffers_close(&t->memory);
	free(t->checksums);
	t->checksums = NULL;
}

static void stream_close(struct dioh_transfer *transfer)
{
	struct stream_transfer *t = (struct stream_transfer *)transfer;

	dioh_port_close(&t->port);
	free_buffers(t);
}

static const struct dioh_payload_ops save_ops = {
	.step = dioh_stream_save_step,
	.abandon = stream_abandon,
	.close = stream_close,
};

static const struct dioh_payload_ops load_ops = {
	.step = dioh_stream_load_step,
	.abandon = stream_abandon,
	.close = stream_close,
};

static bool allocate(struct stream_transfer *t)
{
	if (!dioh_buffers_open(&t->memory, BUFFERS_BYTES))
		return false;
	for (unsigned i = 0; i < DIOH_STREAM_BUFFERS; i++) {
		t->buffers[i].owner = t;
		t->buffers[i].pages = t->memory.first + i * DIOH_STREAM_BUFFER_BYTES;
	}
	t->checksums = calloc(1, DIOH_PAGE_BYTES);
	return t->checksums != NULL;
}

struct dioh_transfer *dioh_payload_stream(const struct dioh_stream_params *params, struct dioh_error *err)
{
	struct stream_transfer *t = calloc(1, sizeof(*t));

	if (t) {
		t->params = *params;
		dioh_port_init(&t->port, &t->base, params);
		t->errand.transfer = &t->base;
		t->base.payload = params->save ? &save_ops : &load_ops;
		if (!params->save)
			atomic_store(&t->base.total_bytes, params->entry->record.bytes);
		if (allocate(t))
			return &t->base;
		free_buffers(t);
		free(t);
	}
	dioh_error_errno(err, ENOMEM, DIOH_PLACE(NONE, STREAM, params->stream, DIOH_OFFSET_NONE),
	                 "stream %" PRIu32 ": room for its buffers", params->stream);
	return NULL;
}
