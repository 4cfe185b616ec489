/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * kinds.h - the kinds of memory that a guest may have, made and filled as a guest would: through a mapping. Needs root, to
 * let the kernel make huge pages; what is set for that is set back when the program ends.
 */
#ifndef DIOH_KINDS_H
#define DIOH_KINDS_H

#include <stdbool.h>
#include <stdint.h>

#define KIND_GRANULE_BYTES (UINT64_C(2) << 20)

enum memory_kind { KIND_MEMFD, KIND_THP, KIND_HUGETLB, KIND_TMPFS_FILE, KIND_COUNT };

const char *kind_name(enum memory_kind kind);
/* Before the first is made, in a mount namespace of our own. NULL, or why it is not to be had here. */
const char *kind_prepare(enum memory_kind kind, uint64_t bytes_at_once);
int must_kind(enum memory_kind kind, uint64_t bytes);

/*
 * Fills it: of each four granules of 2 MiB two with data, one is left a hole, one is half data, half zeros that are there.
 * With `full` all is data. Answers the bytes that are not zero.
 */
uint64_t must_fill_kind(int fd, uint64_t bytes, bool full, uint64_t seed);

/* How much of the memory a process has mapped by huge pages of shmem, once it has touched each granule that has data. */
uint64_t must_huge_bytes(int fd, uint64_t bytes);

#endif
