/* SPDX-License-Identifier: LGPL-2.1-or-later */
#define _GNU_SOURCE
#include "buffers.h"

#include <stddef.h>
#include <sys/mman.h>

#include "align.h"

#define HUGE_PAGE_BYTES (UINT64_C(2) << 20)

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

void dioh_buffers_close(struct dioh_buffers *buffers)
{
	if (buffers->map)
		munmap(buffers->map, buffers->map_bytes);
	buffers->map = NULL;
}
