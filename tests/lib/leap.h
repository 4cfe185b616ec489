/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * leap.h - limits that nobody has time to wait for: a long wait is over at once, nothing having come, and the clock says
 * that it has lasted. A test that asks for it links with
 *
 *     LDFLAGS: -Wl,--wrap=poll,--wrap=clock_gettime
 */
#ifndef DIOH_LEAP_H
#define DIOH_LEAP_H

#include <stdbool.h>

#define LEAP_MS 10000 /* a wait that may last longer is a long one */

/* The long wait by poll(2) that leaps: 1 is the next one, 2 that behind it; 0: none does. The clock stays where it is. */
void leap_at(unsigned wait);

/* Whether it has come to that. */
bool leap_was_made(void);

/* How many waits by poll(2) there have been, long or short; who only asks does not wait. */
unsigned leap_count_waits(void);

#endif
