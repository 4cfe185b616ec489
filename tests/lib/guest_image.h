/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * guest_image.h - a guest of pages and blocks that never ran: its stream, saves of it into mapped-ram images, loads of
 * these, and whether what comes back is that guest. For cmocka programs.
 */
#ifndef DIOH_GUEST_IMAGE_H
#define DIOH_GUEST_IMAGE_H

#include "moves.h"
#include "qemu_maker.h"

/* The blocks of guest_start(). RAM is in a memory, the others come with the stream. */
enum guest_block { GUEST_RAM, GUEST_BIOS, GUEST_VGA, GUEST_TINY, GUEST_BLOCKS };

#define GUEST_REGION(block) (10u + (block)) /* number of the region and of its memory */
#define GUEST_ENTRY 4u
#define GUEST_IN(block) (1u << (block)) /* in masks of blocks that are in a memory */

#define GUEST_RAM_BYTES (5 * MIB + 3 * (uint64_t)PAGE)
#define GUEST_VGA_BYTES (3 * MIB + 5 * (uint64_t)PAGE)

#define WAY_MAPPED_RAM ((struct way){ .layout = DIOH_LAYOUT_MAPPED_RAM })

struct guest {
	struct qemu_maker q; /* its memory[] is what must come back, of all blocks */
	int memories[QEMU_BLOCKS_MAX]; /* -1: in the stream */
};

/* Its blocks, and the setup of its stream. With nothing in a memory the stream does not say x-ignore-shared. */
void guest_start(struct guest *g, uint32_t in_memory);
/* In a section: a zero page of each block in the stream. QEMU never leaves out one wholly. */
void guest_put_zeros(struct guest *g);
/* The rest of the stream: pages, some of them more than once, commands, devices of so many bytes. */
void guest_finish_stream(struct guest *g, size_t device_bytes);
/* Both, with a small device. */
void guest_make(struct guest *g, uint32_t in_memory);
void guest_free(struct guest *g);

/* ---- saving ---- */

/* Starts a session, attaches memories and stream 0 (our copy is closed) and creates the image: the error, in m->err. */
int guest_create(struct moves *m, const struct guest *g, int stream);
uint32_t guest_begin_stream(struct moves *m);
/* SAVE_MEMORY of all blocks that are in a memory. */
void guest_save_memory(struct moves *m, const struct guest *g, uint32_t flags);
/* All of it. m: way, path and header; `piece` as in struct qemu_feeder. */
void must_guest_save(struct moves *m, const struct guest *g, size_t piece, uint32_t flags, uint32_t mode);
/* The usual: into `path`, by two descriptors and io_uring. */
void must_guest_image(const struct guest *g, const char *path);

/* ---- loading ---- */

struct guest_load {
	struct moves m;
	const struct guest *g;
	int memories[QEMU_BLOCKS_MAX]; /* full of garbage */
	int sink;
};

/* A sealed session that may open the image again and again, as long as it is refused. */
void guest_look(struct guest_load *l, const struct guest *g, const struct way *way, const char *path);
/* `table`: blocks to be loaded into memories, 0: no table. Layout DETECT without one. */
int guest_open(struct guest_load *l, uint32_t flags, uint32_t table);
int guest_load_memory(struct guest_load *l, unsigned block, uint32_t flags);
int guest_load_stream(struct guest_load *l, uint32_t flags);
/* Loads `in_memory` and the stream of the others, and compares. */
void guest_expect(struct guest_load *l, uint32_t in_memory);
void guest_look_away(struct guest_load *l);
/* All of it: looks, opens, expects. */
void must_guest_load(const struct guest *g, const struct way *way, const char *path, uint32_t table,
                     uint32_t in_memory);

/* Of a block, by the image's bitmap. */
uint64_t guest_present_bytes(const struct guest *g, const struct way *way, const char *path, unsigned block);

/* Does OPEN_IMAGE answer this? flags: DIOH_OPEN_* */
void guest_expect_open(const struct guest *g, const char *path, uint32_t flags, int code);

#endif
