/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * pages.h - bits, zero pages, checksums, runs. A chunk is 256 pages of 4 KiB; its presence is 32 bytes of bitmap.
 * Pure functions; ISA-L does the arithmetic.
 */
#ifndef DIOH_PAGES_H
#define DIOH_PAGES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "diohelper-protocol.h"

#define DIOH_CHUNK_PAGES (DIOH_CHUNK_BYTES / DIOH_PAGE_BYTES)
#define DIOH_CHUNK_BITMAP_BYTES (DIOH_CHUNK_PAGES / 8)

/* Bit i of a bitmap: bit i%8 of byte i/8. */
static inline bool dioh_bit_test(const uint8_t *bitmap, uint64_t i)
{
	return bitmap[i / 8] >> (i % 8) & 1;
}

static inline void dioh_bit_set(uint8_t *bitmap, uint64_t i)
{
	bitmap[i / 8] |= (uint8_t)(1u << (i % 8));
}

/* Sets or clears `count` bits from bit `first`. */
void dioh_bits_fill(uint8_t *bitmap, uint64_t first, uint64_t count, bool value);

/* Bits set among the first `count`; trailing bits of the last byte are not counted. */
uint64_t dioh_bits_count(const uint8_t *bitmap, uint64_t count);

/* No bit at `count` or above is set in `bytes` bytes of bitmap. */
bool dioh_bits_tail_clear(const uint8_t *bitmap, uint64_t bytes, uint64_t count);

/* All `bytes` are zero (ISA-L). */
bool dioh_is_zero(const void *data, size_t bytes);

/*
 * Clears the bit of each present page of a chunk whose bytes are all zero. `data`: the chunk's `pages` pages; pages whose
 * bit is clear are not touched. Returns how many were cleared.
 */
unsigned dioh_pages_drop_zero(const uint8_t *data, uint8_t *bitmap, unsigned pages);

/* CRC32C, continued: start with 0. Same result as RFC 3720's; of no bytes it is 0. */
uint32_t dioh_crc32c(uint32_t crc, const void *data, size_t bytes);

/* CRC32C over the present pages of a chunk, in order; absent pages are not touched. */
uint32_t dioh_pages_crc32c(const uint8_t *data, const uint8_t *bitmap, unsigned pages);

/* A stretch of pages that becomes one I/O: starts and ends with a present page. */
struct dioh_run {
	unsigned first; /* page */
	unsigned count; /* pages, gaps included */
};

struct dioh_run_limits {
	unsigned gap_max;   /* absent pages in a gap that may be joined over */
	unsigned alone_min; /* but not between two stretches of at least so many present pages: they pay for an I/O each */
	unsigned count_max; /* a run's length, >= 1 */
};

/*
 * The next run at or after page `from` of a bitmap of `pages` pages, within `limits`. false: no present page is left, and
 * `ret_run` is not touched.
 */
bool dioh_pages_next_run(const uint8_t *bitmap, unsigned pages, unsigned from, const struct dioh_run_limits *limits,
                         struct dioh_run *ret_run);

/* How many pages from `from` (below `end`) have the same bit as page `from`. */
unsigned dioh_pages_same(const uint8_t *bitmap, unsigned from, unsigned end);

#endif
