/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* deadline.h - the end of a wait that may be interrupted, in milliseconds as poll(2) has them; -1: for ever. */
#ifndef DIOH_DEADLINE_H
#define DIOH_DEADLINE_H

#include <limits.h>
#include <stdint.h>
#include <time.h>

static inline int64_t dioh_deadline_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static inline int64_t dioh_deadline(int timeout_ms)
{
	return timeout_ms < 0 ? -1 : dioh_deadline_now() + timeout_ms;
}

/* What is left of it: a timeout for poll(2). */
static inline int dioh_deadline_left(int64_t deadline)
{
	int64_t left;

	if (deadline < 0)
		return -1;
	left = deadline - dioh_deadline_now();
	if (left < 0)
		return 0;
	return left > INT_MAX ? INT_MAX : (int)left;
}

#endif
