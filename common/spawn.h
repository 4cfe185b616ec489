/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* spawn.h - the helper as a child process: starting it, waiting for it, telling how it ended. */
#ifndef DIOH_SPAWN_H
#define DIOH_SPAWN_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "error.h"

/* From the helper's start to its answer to HELLO: no disk is in this, so what takes longer is no helper. */
#define DIOH_HELLO_MS 30000

struct dioh_child {
	const char *program; /* borrowed */
	pid_t pid;
	int control_fd; /* the caller's end of the connection */
	int report_fd;  /* where a child that does not become the program says why */
};

/*
 * Starts a process that makes the connection and becomes `diohelper serve` on it. Returns 0 once the caller's end is
 * there: whether the program can be found and executed is seen by talking to it, see dioh_child_blame(). Both
 * descriptors are the caller's then. -ETIMEDOUT: `deadline` (deadline.h) came first.
 */
int dioh_child_start(const struct dioh_spawn_options *options, int64_t deadline, struct dioh_child *ret_child,
                     struct dioh_error *err);

/*
 * The first words to the child have failed with `r`, and `err` is filled. If that is because it has not become the
 * program, the errno of that, as a sentence that names the program; else `r`.
 */
int dioh_child_blame(const struct dioh_child *child, int r, struct dioh_error *err);

/*
 * For a child that HELLO has not succeeded with: gives it a moment to end by itself, kills it, and reaps it; unless the
 * kernel does not let go of it, for which nobody waits: it stays a child of the caller's.
 */
void dioh_child_abandon(pid_t pid);

/*
 * Reaps it. 0; -ETIMEDOUT: it still runs; -ECHILD: somebody else has reaped it. Interruptions are of no interest.
 */
int dioh_child_wait(pid_t pid, int timeout_ms, int *ret_status);

/*
 * If the child has ended, or does so in time, makes a sentence of it; else leaves `text` alone and answers false. It is
 * not reaped: that is dioh_close()'s business, or the caller's.
 */
bool dioh_child_describe_end(pid_t pid, int timeout_ms, char text[DIOH_TEXT_BYTES]);

#endif
