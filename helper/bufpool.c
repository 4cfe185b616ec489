/* SPDX-License-Identifier: LGPL-2.1-or-later */
#define _GNU_SOURCE
#include "bufpool.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "align.h"

static unsigned unit_pages(const struct dioh_bufpool *pool)
{
	return pool->unit_bytes / DIOH_PAGE_BYTES;
}

/*
 * A run and what keeps it from the next are longer than a gap that would be joined: a longer gap, its own full length, or
 * a stretch that stands alone.
 */
static unsigned unit_ios(const struct dioh_bufpool *pool)
{
	return unit_pages(pool) / (DIOH_GAP_PAGES_MAX + 2) + 1;
}

static int block_open(struct dioh_bufpool *pool, struct dioh_block *block)
{
	block->ios = calloc(unit_ios(pool), sizeof(*block->ios));
	block->iovs = calloc(unit_pages(pool), sizeof(*block->iovs));
	return block->ios && block->iovs ? 0 : -ENOMEM;
}

int dioh_bufpool_open(struct dioh_bufpool *pool, uint32_t block_bytes, unsigned count, struct dioh_error *err)
{
	memset(pool, 0, sizeof(*pool));
	pool->block_bytes = block_bytes;
	pool->unit_bytes = (uint32_t)dioh_max(block_bytes, DIOH_CHUNK_BYTES);
	pool->blocks = calloc(count, sizeof(*pool->blocks));
	pool->count = pool->blocks ? count : 0;
	if (!pool->blocks || !dioh_buffers_open(&pool->buffers, (uint64_t)count * pool->unit_bytes))
		goto no_room;
	for (unsigned i = 0; i < count; i++) {
		if (block_open(pool, &pool->blocks[i]) < 0)
			goto no_room;
		pool->blocks[i].bounce = pool->buffers.first + (uint64_t)i * pool->unit_bytes;
		dioh_bufpool_give(pool, &pool->blocks[i]);
	}
	return 0;
no_room:
	dioh_bufpool_close(pool);
	return dioh_error_errno(err, ENOMEM, DIOH_PLACE(SEAL, SESSION, 0, DIOH_OFFSET_NONE), "helper: room for %u blocks",
	                        count);
}

void dioh_bufpool_close(struct dioh_bufpool *pool)
{
	for (unsigned i = 0; i < pool->count; i++) {
		free(pool->blocks[i].ios);
		free(pool->blocks[i].iovs);
	}
	dioh_buffers_close(&pool->buffers);
	free(pool->blocks);
	memset(pool, 0, sizeof(*pool));
}

struct dioh_block *dioh_bufpool_take(struct dioh_bufpool *pool)
{
	struct dioh_block *block = pool->free;

	if (block) {
		pool->free = block->next;
		block->io_count = 0;
		block->outstanding = 0;
	}
	return block;
}

void dioh_bufpool_give(struct dioh_bufpool *pool, struct dioh_block *block)
{
	block->next = pool->free;
	pool->free = block;
}

unsigned dioh_bufpool_ios_max(const struct dioh_bufpool *pool)
{
	return pool->count * unit_ios(pool);
}
