/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * transfer.h - one running piece of work on one payload. The session makes it and hands it to a worker, which steps it
 * until its payload is done, failed or cancelled and nothing is under way any more; then it travels back.
 *
 *      session --start--> worker: step, step, ... --completed--> session: COMPLETE
 *                              \--job--> control-I/O thread --job--> worker
 */
#ifndef DIOH_TRANSFER_H
#define DIOH_TRANSFER_H

#include <stdatomic.h>
#include <stdbool.h>

#include "mailbox.h"

struct dioh_transfer;
struct dioh_worker;

enum dioh_step {
	DIOH_STEP_MORE, /* something was done: step again */
	DIOH_STEP_WAIT, /* nothing to do before I/O, a job, or a block comes back */
	DIOH_STEP_DONE, /* all has been moved and stored */
};

/* What is read or written: payload_memory.c, payload_stream.c. Worker thread only, but for close. */
struct dioh_payload_ops {
	/* Starts at most one block's worth of I/O. On an error it calls dioh_transfer_fail() and answers WAIT. */
	enum dioh_step (*step)(struct dioh_transfer *transfer);
	/* The transfer has failed or was cancelled: end what would wait for a peer. Steps have stopped. Called once. */
	void (*abandon)(struct dioh_transfer *transfer);
	/* Nothing is under way: unmap, close. Runs in the worker's thread before the transfer travels back; it may still fail. */
	void (*close)(struct dioh_transfer *transfer);
};

struct dioh_transfer {
	uint32_t id;
	const struct dioh_payload_ops *payload;
	struct dioh_worker *worker;
	struct dioh_job job;           /* start, then completed */
	struct dioh_mailbox *answers;  /* where `completed` goes */
	void *owner;                   /* the session's own */
	void (*completed)(struct dioh_job *job);
	atomic_bool cancel;            /* set by the session, and when it has failed: who works for it may look at this */
	atomic_uint_fast64_t done_bytes;
	atomic_uint_fast64_t total_bytes; /* 0: not known */

	/* The worker's until it has completed. */
	struct dioh_transfer *next;
	unsigned turn_steps;  /* done in its present turn among the others */
	unsigned outstanding; /* I/Os and jobs under way */
	bool failed;
	bool abandoned;
	bool done;
	struct dioh_error error;
	struct dioh_msg_complete figures; /* all but `error` */
	uint64_t begun_ns;
};

/* Keeps the first error. The worker calls abandon and waits for what is under way. */
void dioh_transfer_fail(struct dioh_transfer *transfer, const struct dioh_error *err);

#endif
