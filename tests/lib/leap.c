/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* leap.c - a clock that jumps over long waits. One thread at a time waits long: the test's own. */
#include "leap.h"

#include <poll.h>
#include <stdatomic.h>
#include <time.h>

static unsigned long_waits_left;
static bool made;
static atomic_uint waits;
static atomic_int ahead_seconds;

int __real_poll(struct pollfd *fds, nfds_t count, int timeout_ms);
int __wrap_poll(struct pollfd *fds, nfds_t count, int timeout_ms);
int __real_clock_gettime(clockid_t clock, struct timespec *now);
int __wrap_clock_gettime(clockid_t clock, struct timespec *now);

void leap_at(unsigned wait)
{
	long_waits_left = wait;
	made = false;
}

bool leap_was_made(void)
{
	return made;
}

unsigned leap_count_waits(void)
{
	return waits;
}

int __wrap_poll(struct pollfd *fds, nfds_t count, int timeout_ms)
{
	if (timeout_ms != 0)
		waits++;
	if (timeout_ms <= LEAP_MS || long_waits_left == 0 || --long_waits_left != 0)
		return __real_poll(fds, count, timeout_ms);
	made = true;
	ahead_seconds += timeout_ms / 1000 + 1;
	return 0;
}

int __wrap_clock_gettime(clockid_t clock, struct timespec *now)
{
	int r = __real_clock_gettime(clock, now);

	now->tv_sec += ahead_seconds;
	return r;
}
