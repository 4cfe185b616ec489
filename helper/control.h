/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * control.h - the control-I/O thread: the header path, sizing and syncs, one after another. A job's handler does the
 * work and posts the job on to whoever waits for it.
 */
#ifndef DIOH_CONTROL_H
#define DIOH_CONTROL_H

#include <stdatomic.h>
#include <stdbool.h>

#include "mailbox.h"

struct dioh_control {
	struct dioh_mailbox mailbox;
	pthread_t thread;
	pthread_barrier_t *barrier;
	bool running;
	atomic_bool stop;
};

int dioh_control_open(struct dioh_control *control, struct dioh_error *err);
/* The thread waits at the barrier before anything else, like the workers. */
int dioh_control_start(struct dioh_control *control, pthread_barrier_t *barrier, struct dioh_error *err);

/* Waits for the job at hand. Nothing may be posted any more. */
void dioh_control_stop(struct dioh_control *control);

#endif
