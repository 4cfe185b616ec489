/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "intervals.h"

#include <errno.h>
#include <string.h>

int dioh_intervals_add(struct dioh_intervals *set, uint64_t first, uint64_t end)
{
	unsigned low = 0;
	unsigned high;

	if (first >= end)
		return 0;
	while (low < set->count && set->at[low].end < first)
		low++;
	high = low; /* [low, high): ranges that touch the new one */
	while (high < set->count && set->at[high].first <= end)
		high++;
	if (low == high && set->count == DIOH_INTERVALS_MAX)
		return -ENOBUFS;
	if (low < high) {
		if (set->at[low].first < first)
			first = set->at[low].first;
		if (set->at[high - 1].end > end)
			end = set->at[high - 1].end;
	}
	memmove(&set->at[low + 1], &set->at[high], (set->count - high) * sizeof(set->at[0]));
	set->at[low] = (struct dioh_interval){ first, end };
	set->count = set->count - (high - low) + 1;
	return 0;
}

int dioh_intervals_remove(struct dioh_intervals *set, uint64_t first, uint64_t end)
{
	struct dioh_intervals left = { .count = 0 };

	for (unsigned i = 0; i < set->count; i++) {
		const struct dioh_interval *at = &set->at[i];
		uint64_t before_end = at->end < first ? at->end : first;
		uint64_t after_first = at->first > end ? at->first : end;

		if (at->first < before_end && dioh_intervals_add(&left, at->first, before_end) < 0)
			return -ENOBUFS;
		if (after_first < at->end && dioh_intervals_add(&left, after_first, at->end) < 0)
			return -ENOBUFS;
	}
	*set = left;
	return 0;
}

bool dioh_intervals_overlap(const struct dioh_intervals *set, uint64_t first, uint64_t end)
{
	for (unsigned i = 0; i < set->count; i++)
		if (set->at[i].first < end && first < set->at[i].end)
			return true;
	return false;
}

uint64_t dioh_intervals_first_gap(const struct dioh_intervals *set, uint64_t first)
{
	for (unsigned i = 0; i < set->count; i++)
		if (set->at[i].first <= first && first < set->at[i].end)
			return set->at[i].end;
	return first;
}
