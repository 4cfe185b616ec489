/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* clock.h - time that only goes forward. */
#ifndef DIOH_CLOCK_H
#define DIOH_CLOCK_H

#include <stdint.h>
#include <time.h>

#define DIOH_NS_PER_S UINT64_C(1000000000)
#define DIOH_NS_PER_MS UINT64_C(1000000)

static inline uint64_t dioh_now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * DIOH_NS_PER_S + (uint64_t)now.tv_nsec;
}

#endif
