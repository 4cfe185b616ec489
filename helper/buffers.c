/* SPDX-License-Identifier: LGPL-2.1-or-later */
#define _GNU_SOURCE
#include "buffers.h"

#include <stddef.h>
#include <sys/mman.h>

#include "align.h"

#define HUGE_PAGE_BYTES (UINT64_C(2) << 20)

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

bool dioh_buffers_open(struct dioh_buffers *buffers, uint64_t bytes)
{
	const uint64_t map_bytes = bytes + HUGE_PAGE_BYTES;
	void *map = mmap(NULL, map_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (map == MAP_FAILED)
		return false;
	(void)madvise(map, map_bytes, MADV_HUGEPAGE);
	buffers->map = map;
	buffers->map_bytes = map_bytes;
	buffers->first = (uint8_t *)dioh_align_up((uintptr_t)map, HUGE_PAGE_BYTES);
	return true;
}

void dioh_buffers_fill(const struct dioh_buffers *buffers)
{
	/* Linux 5.14. Before, it is used as it comes. */
	(void)madvise(buffers->first, buffers->map_bytes - HUGE_PAGE_BYTES, MADV_POPULATE_WRITE);
}

void dioh_buffers_close(struct dioh_buffers *buffers)
{
	if (buffers->map)
		munmap(buffers->map, buffers->map_bytes);
	buffers->map = NULL;
}
