/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * payload.h - what is moved: memory or a stream. Makers, for the session; the operations themselves are behind struct
 * dioh_payload_ops (transfer.h).
 */
#ifndef DIOH_PAYLOAD_H
#define DIOH_PAYLOAD_H

#include "engine.h"
#include "layout.h"
#include "memory.h"
#include "transfer.h"

struct dioh_memory_params {
	bool save;
	struct dioh_image_layout *layout;
	struct dioh_region *region;
	const struct dioh_memory *memory;
	uint64_t memory_offset;
	uint64_t region_offset; /* a multiple of DIOH_CHUNK_BYTES */
	uint64_t length;        /* a multiple of DIOH_PAGE_BYTES */
	uint64_t memory_end; /* what the memory must still reach when it is done: the end of the whole, where this is a part */
	uint32_t flags;         /* enum dioh_transfer_flag */
	bool tables_fresh;      /* save: no transfer has touched these chunks since create */
};

/* A stream's pipe, if it may be so large: four times as fast as the default 64 KiB. */
#define DIOH_PIPE_BYTES (1 << 20)

struct dioh_stream_params {
	bool save;
	struct dioh_image_layout *layout;
	struct dioh_stream_entry *entry;
	uint32_t stream; /* the attached stream: number, descriptor, slot */
	int fd;          /* closed, and the slot emptied, when the transfer ends */
	unsigned slot;
	bool large_pipe; /* of DIOH_PIPE_BYTES at least */
	uint32_t flags;
	const uint8_t *early; /* save: bytes of it that have been read already: the session's */
	size_t early_bytes;
	unsigned channel_count; /* mapped-ram, save: streams numbered stream + 1 and on; the same holds for them */
	int channel_fds[DIOH_STREAMS_MAX - 1];
};

/* Ranges have been checked by the session. NULL: out of memory, err set. Freed by free(3) once it has travelled back. */
struct dioh_transfer *dioh_payload_memory(const struct dioh_memory_params *params, struct dioh_error *err);
struct dioh_transfer *dioh_payload_stream(const struct dioh_stream_params *params, struct dioh_error *err);
/* mapped-ram: composes QEMU's stream into the image (save), or makes it of what is there (load). */
struct dioh_transfer *dioh_payload_qemu_save(const struct dioh_stream_params *params, struct dioh_error *err);
struct dioh_transfer *dioh_payload_qemu_load(const struct dioh_stream_params *params, struct dioh_error *err);

/* Counts an image I/O that has ended in a transfer's figures. */
void dioh_payload_count_io(struct dioh_transfer *transfer, const struct dioh_io *io, uint64_t bytes);

#endif
