/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* spawn.h - the helper as a child process: starting it, waiting for it, telling how it ended. */
#ifndef DIOH_SPAWN_H
#define DIOH_SPAWN_H

#include <sys/types.h>

#include "error.h"

/*
 * Starts `diohelper serve` with `control_fd` (which stays the caller's) as its control socket. Returns 0 once the
 * program runs. The errno of what failed before: finding and executing the program included, as a sentence that
 * names it.
 */
int dioh_child_start(const struct dioh_spawn_options *options, int control_fd, pid_t *ret_pid, struct dioh_error *err);

/*
 * Reaps it. 0; -ETIMEDOUT: it still runs; -ECHILD: somebody else has reaped it. Interruptions are of no interest.
 */
int dioh_child_wait(pid_t pid, int timeout_ms, int *ret_status);

/*
 * If the child has ended, or does so within a moment, makes a sentence of it; else leaves `text` alone. It is not
 * reaped: that is dioh_close()'s business, or the caller's.
 */
void dioh_child_describe_end(pid_t pid, char text[DIOH_TEXT_BYTES]);

#endif
