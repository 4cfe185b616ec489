/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * buffers.h - memory that a disk reads and writes: address space only, it takes memory once it is used; in huge pages where
 * they are to be had. A buffer of 1 MiB is then one piece of memory to the disk, and not 256.
 */
#ifndef DIOH_BUFFERS_H
#define DIOH_BUFFERS_H

#include <stdbool.h>
#include <stdint.h>

struct dioh_buffers {
	void *map; /* NULL: none */
	uint64_t map_bytes;
	uint8_t *first; /* on a huge page's boundary */
};

/* false: no address space. */
bool dioh_buffers_open(struct dioh_buffers *buffers, uint64_t bytes);
/* Has it take its memory now. */
void dioh_buffers_fill(const struct dioh_buffers *buffers);
/* May be called for none. */
void dioh_buffers_close(struct dioh_buffers *buffers);

#endif
