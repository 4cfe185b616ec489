/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * bufpool.h - blocks: a worker's in-flight budget. Each block is what one step of a memory transfer needs for its I/O,
 * allocated once. One thread.
 */
#ifndef DIOH_BUFPOOL_H
#define DIOH_BUFPOOL_H

#include "buffers.h"
#include "engine.h"
#include "memory.h"

/* Absent pages inside a run that are moved along, since one I/O costs more than they do. */
#define DIOH_GAP_PAGES_MAX 7u

/* But stretches of 64 KiB stay apart: an image takes no more blocks than there is data in long stretches. */
#define DIOH_ALONE_PAGES_MIN 16u

struct dioh_block {
	struct dioh_block *next;
	struct dioh_io *ios;
	struct iovec *iovs;
	unsigned io_count;
	unsigned outstanding; /* I/Os under way */
	uint8_t *bounce;      /* page-aligned buffer of unit_bytes; takes memory once it is used */
	struct dioh_window window; /* the unit's memory, where it is mapped */
	/* The transfer's own. */
	void *owner;
	void *span;
	uint64_t first; /* byte in the transfer */
	unsigned pages;
};

struct dioh_bufpool {
	uint32_t block_bytes;  /* largest I/O */
	uint32_t unit_bytes;   /* memory that a block stands for: block_bytes, but at least a chunk */
	unsigned count;
	struct dioh_block *blocks;
	struct dioh_block *free;
	struct dioh_buffers buffers; /* all bounce buffers */
};

int dioh_bufpool_open(struct dioh_bufpool *pool, uint32_t block_bytes, unsigned count, struct dioh_error *err);
void dioh_bufpool_close(struct dioh_bufpool *pool);

/* NULL: none is free. */
struct dioh_block *dioh_bufpool_take(struct dioh_bufpool *pool);
void dioh_bufpool_give(struct dioh_bufpool *pool, struct dioh_block *block);

/* The most I/Os a pool's blocks may make at once. */
unsigned dioh_bufpool_ios_max(const struct dioh_bufpool *pool);

#endif
