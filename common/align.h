/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* align.h - arithmetic on sizes and offsets. Alignments are powers of two. */
#ifndef DIOH_ALIGN_H
#define DIOH_ALIGN_H

#include <stdbool.h>
#include <stdint.h>

static inline bool dioh_is_aligned(uint64_t value, uint64_t alignment)
{
	return (value & (alignment - 1)) == 0;
}

static inline uint64_t dioh_align_down(uint64_t value, uint64_t alignment)
{
	return value & ~(alignment - 1);
}

/* The caller keeps values below DIOH_OFFSET_MAX, so this cannot wrap. */
static inline uint64_t dioh_align_up(uint64_t value, uint64_t alignment)
{
	return (value + alignment - 1) & ~(alignment - 1);
}

static inline uint64_t dioh_div_up(uint64_t value, uint64_t unit)
{
	return value / unit + (value % unit != 0);
}

static inline uint64_t dioh_min(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static inline uint64_t dioh_max(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

/* [offset, offset + bytes) lies in [0, limit), without wrapping. */
static inline bool dioh_range_ok(uint64_t offset, uint64_t bytes, uint64_t limit)
{
	return offset <= limit && bytes <= limit - offset;
}

#endif
