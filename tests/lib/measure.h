/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* measure.h - what the benchmark programs look at besides the clock: memory and CPU time of a helper, the page cache. */
#ifndef DIOH_MEASURE_H
#define DIOH_MEASURE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

double measure_now_s(void);

/* User and system time of all children that have been waited for. */
double measure_children_cpu_s(void);

/* How much of a file is in the page cache. */
uint64_t measure_cached_bytes(const char *path);

/* A field of /proc/PID/status in KiB; 0 if there is no such process any more. `field` has no colon. */
uint64_t measure_status_kib(int pid, const char *field);

/* Looks every few milliseconds at RssAnon + VmPTE of a process, in a thread. */
struct measure_sampler {
	pthread_t thread;
	int pid;
	atomic_bool stop;
	uint64_t most_kib;
};
void measure_sampler_start(struct measure_sampler *sampler, int pid);
uint64_t measure_sampler_stop(struct measure_sampler *sampler); /* the most that was seen, in KiB */

#endif
