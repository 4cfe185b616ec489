/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* clock.h - time that only goes forward. */
#ifndef DIOH_CLOCK_H
#define DIOH_CLOCK_H

#include <stdatomic.h>
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

/* Around a system call that may wait for the disk: others see for how long it has. errno stays. 0: none is under way. */
static inline void dioh_clock_start(atomic_uint_fast64_t *since_ns)
{
	atomic_store(since_ns, dioh_now_ns());
}

static inline void dioh_clock_stop(atomic_uint_fast64_t *since_ns)
{
	atomic_store(since_ns, 0);
}

#endif
