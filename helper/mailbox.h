/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * mailbox.h - how the helper's threads talk: a job is posted to a thread's mailbox, and that thread handles it. A job
 * belongs to whoever posted it until it has been handled; posting it on (to another mailbox, with another handler) is
 * how answers travel. No thread ever waits for another but by its mailbox.
 */
#ifndef DIOH_MAILBOX_H
#define DIOH_MAILBOX_H

#include <pthread.h>
#include <stddef.h>

#include "error.h"

struct dioh_job {
	struct dioh_job *next;
	void (*handle)(struct dioh_job *job); /* runs in the thread that owns the mailbox */
};

struct dioh_mailbox {
	pthread_mutex_t lock;
	struct dioh_job *first;
	struct dioh_job **last;
	int event_fd; /* readable while there is a job */
};

int dioh_mailbox_open(struct dioh_mailbox *mailbox, struct dioh_error *err);
void dioh_mailbox_close(struct dioh_mailbox *mailbox);

/* Never fails, never blocks. Any thread. */
void dioh_mailbox_post(struct dioh_mailbox *mailbox, struct dioh_job *job);

/* Makes event_fd readable without a job: the owner looks at whatever else it looks at. Any thread. */
void dioh_mailbox_wake(struct dioh_mailbox *mailbox);

/* Handles what has been posted, in order. The owning thread only. Does not wait. */
void dioh_mailbox_handle(struct dioh_mailbox *mailbox);

#define dioh_container_of(ptr, type, member) ((type *)((char *)(ptr) - offsetof(type, member)))

#endif
