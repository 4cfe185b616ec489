/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* intervals.h - a bounded set of half-open integer ranges: which chunks of a region have been saved. */
#ifndef DIOH_INTERVALS_H
#define DIOH_INTERVALS_H

#include <stdbool.h>
#include <stdint.h>

/* Ranges that do not touch. Transfers of a region in order make one; this allows for some disorder. */
#define DIOH_INTERVALS_MAX 256u

struct dioh_interval {
	uint64_t first;
	uint64_t end;
};

struct dioh_intervals {
	unsigned count;
	struct dioh_interval at[DIOH_INTERVALS_MAX]; /* ascending, with gaps between */
};

/* Adds a range, joining neighbours. -ENOBUFS: too many separate ranges; the set is unchanged. */
int dioh_intervals_add(struct dioh_intervals *set, uint64_t first, uint64_t end);

/* Takes a range out. -ENOBUFS as above: a hole in the middle makes two of one. */
int dioh_intervals_remove(struct dioh_intervals *set, uint64_t first, uint64_t end);

bool dioh_intervals_overlap(const struct dioh_intervals *set, uint64_t first, uint64_t end);

/* The first number at or after `first` that is not in the set. */
uint64_t dioh_intervals_first_gap(const struct dioh_intervals *set, uint64_t first);

#endif
