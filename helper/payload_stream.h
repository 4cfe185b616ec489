/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * payload_stream.h - private to payload_stream.c (buffers and their image I/O), payload_stream_save.c,
 * payload_stream_load.c.
 *
 * A stream passes through a few aligned buffers: while one is filled from its source, others drain to the destination.
 * In a buffer the data starts where its place in the file starts within a page, so that all but an odd head and an odd
 * tail can be moved by the page path; these two go by the header path.
 *
 *      save:  stream --read--> buffer --[head job] [page I/O] [tail job]--> extent
 *      load:  extent --[head job] [page I/O] [tail job]--> buffer --write, in order--> stream
 */
#ifndef DIOH_PAYLOAD_STREAM_H
#define DIOH_PAYLOAD_STREAM_H

#include "buffers.h"
#include "errand.h"
#include "payload.h"
#include "stream_port.h"
#include "worker.h"

#define DIOH_STREAM_BUFFERS 4u
#define DIOH_STREAM_BUFFER_BYTES DIOH_CHUNK_BYTES /* one checksum a buffer, where the layout has checksums */

enum buffer_state { BUFFER_FREE, BUFFER_FILLING, BUFFER_FULL, BUFFER_DRAINING };

struct stream_transfer;

struct stream_buffer {
	struct stream_transfer *owner;
	enum buffer_state state;
	uint8_t *pages;    /* DIOH_STREAM_BUFFER_BYTES, page-aligned */
	uint8_t *data;     /* in pages, at the file offset's place within its page */
	uint64_t bytes;    /* of data */
	uint64_t drained;  /* load: what the stream has taken */
	uint64_t image_at; /* in the image */
	uint64_t stream_at;
	uint32_t checksum; /* load: as stored */
	unsigned outstanding;
	struct dioh_io io;
	struct iovec iov;
	struct dioh_job job;
	int job_result;
	struct dioh_error job_error;
	void (*image_done)(struct stream_buffer *buffer);
};

struct stream_transfer {
	struct dioh_transfer base;
	struct dioh_stream_params params;
	struct dioh_buffers memory; /* of all buffers */
	struct stream_buffer buffers[DIOH_STREAM_BUFFERS];
	uint64_t stream_at; /* next byte to be read from the source */
	bool ended;         /* the source has no more */
	struct dioh_stream_port port;
	/* The extent at hand. */
	bool extent_valid;
	unsigned extent_index;
	struct dioh_record_extent extent; /* a copy: the table is the control-I/O thread's */
	uint64_t extent_used;
	uint32_t *checksums; /* of its chunks: one 4 KiB page */
	bool closed;         /* save: the last extent has been stored */
	bool looked;         /* load: it has been seen, or is being looked, whether it is still the same image */
	bool no_room;        /* save: no further extent is to be had: the stream must end here */
	struct dioh_error room_error;
	uint8_t probe;
	struct dioh_errand errand;
	unsigned drain_next; /* load: buffer to be written next */
	unsigned fill_next;
};

struct stream_buffer *dioh_stream_free_buffer(struct stream_transfer *t);

/* Places a buffer at an image offset: where its data starts, and how much fits. */
uint64_t dioh_stream_place(struct stream_buffer *buffer, uint64_t image_at);

/* Moves the buffer's data to or from its place in the image; image_done follows, unless the transfer has failed. */
void dioh_stream_image_io(struct stream_buffer *buffer, void (*image_done)(struct stream_buffer *buffer));

enum dioh_step dioh_stream_save_step(struct dioh_transfer *transfer);
enum dioh_step dioh_stream_load_step(struct dioh_transfer *transfer);

#endif
