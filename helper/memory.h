/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * memory.h - an attached memory: where it has data, copying or mapping it, emptying it, its selection. Nothing here
 * touches a hole through a mapping: that would allocate it in the guest. Offsets count from the start of the memory.
 */
#ifndef DIOH_MEMORY_H
#define DIOH_MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "error.h"

struct dioh_memory {
	uint32_t number;
	int fd;           /* -1: the number is free */
	int selection_fd; /* or -1 */
	uint32_t kind;
	bool server_seeks; /* SEEK_DATA may ask who has not been told yet what was written through a mapping */
	uint32_t advice;
	uint64_t page_bytes;  /* what a mapping is made of: 4096, or the huge page size */
	uint64_t limit_bytes; /* given at attach; 0: none */
};

/*
 * A stretch of data that has been looked up: [data, hole); what lies between `from` and `data` is a hole. `coarse`: there
 * may be short holes in it. SEEK_HOLE walks to the data's end, which may be the memory's: 14 ms for each GiB.
 */
struct dioh_memory_extent {
	bool coarse;
	uint64_t from;
	uint64_t data;
	uint64_t hole;
};

/* Bytes usable now. */
int dioh_memory_bytes(const struct dioh_memory *memory, uint64_t *ret_bytes, struct dioh_error *err);

/*
 * The same, and the size of its selection, for who may not wait: as far as this kernel knows. What another host has made of a
 * file meanwhile (FUSE, NFS) shows when it is moved.
 */
int dioh_memory_known_bytes(const struct dioh_memory *memory, uint64_t *ret_bytes, struct dioh_error *err);
int dioh_memory_known_selection_bytes(const struct dioh_memory *memory, uint64_t *ret_bytes, struct dioh_error *err);

/*
 * Start of data at or after `offset`, at most `end`. `extent` is the caller's cache, zeroed at first but for `coarse`.
 * Rounded outwards to 4096 bytes.
 */
int dioh_memory_next_data(const struct dioh_memory *memory, struct dioh_memory_extent *extent, uint64_t offset,
                          uint64_t end, uint64_t *ret_data, struct dioh_error *err);

/* Sets the bit of each of `pages` pages from `offset` that holds data (coarse: that may); clears the others. */
int dioh_memory_data_pages(const struct dioh_memory *memory, struct dioh_memory_extent *extent, uint64_t offset,
                           unsigned pages, uint8_t *ret_bitmap, struct dioh_error *err);

/*
 * Whether SEEK_DATA tells data from holes: not in hugetlb memory, where all that can be known is that none is missing, nor
 * where a server is asked, who may call a hole what is data.
 */
bool dioh_memory_shows_holes(const struct dioh_memory *memory);

/*
 * Whether moving through a mapping is cheap: in huge pages, or where they are wanted, which a mapping makes. In pages of
 * 4 KiB, mapping and pinning each costs more than copying it: saves took 0.31 CPU seconds a GiB, and take 0.21.
 */
bool dioh_memory_is_huge(const struct dioh_memory *memory);

/* Whether touching a mapping cannot allocate what is a hole, which hugetlb memory does not show. */
bool dioh_memory_may_map(const struct dioh_memory *memory);

/* A window. `bytes` and the pointer's place follow the memory's own page size; use dioh_window_at(). */
struct dioh_window {
	uint8_t *map; /* NULL: none */
	uint64_t first;
	uint64_t bytes;
};

int dioh_memory_map(const struct dioh_memory *memory, uint64_t offset, uint64_t bytes, bool writable,
                    struct dioh_window *ret_window, struct dioh_error *err);
void dioh_window_unmap(struct dioh_window *window);

static inline uint8_t *dioh_window_at(const struct dioh_window *window, uint64_t offset)
{
	return window->map + (offset - window->first);
}

/* Copies without a mapping, so without allocating. */
int dioh_memory_pread(const struct dioh_memory *memory, void *bytes, uint64_t count, uint64_t offset,
                      struct dioh_error *err);

/*
 * Copies without a mapping. For pages that are not there yet this takes half the CPU of reading into a mapping: none is
 * cleared first, none is mapped. Refuses to write behind the memory's end (EFAULT), where it would make it longer again.
 * Not for hugetlb, which has no write(2).
 */
int dioh_memory_pwrite(const struct dioh_memory *memory, const void *bytes, uint64_t count, uint64_t offset,
                       struct dioh_error *err);

/* EFAULT if the memory ends before `end`: it was cut short, and what SEEK_DATA calls a hole there is none. */
int dioh_memory_check_end(const struct dioh_memory *memory, uint64_t end, uint32_t operation, struct dioh_error *err);

/*
 * Makes a range zero: punched where that is to be had, so that nothing is allocated; else zeros are written to what is
 * not zero already.
 */
int dioh_memory_erase(const struct dioh_memory *memory, uint64_t offset, uint64_t count, struct dioh_error *err);

/* Bits [first_page, first_page + pages) of the selection, from bit 0 of `ret_bitmap`. first_page % 8 == 0. */
int dioh_memory_selection(const struct dioh_memory *memory, uint64_t first_page, uint64_t pages, uint8_t *ret_bitmap,
                          struct dioh_error *err);

#endif
