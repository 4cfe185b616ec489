/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * worker.h - a data worker: one thread, one engine, the transfers handed to it, stepped in turn within one in-flight
 * budget. It never blocks on image, stream or peer but in its engine's run().
 *
 * open and close: session thread, before the start and after the stop. dioh_worker_begin and the atomics: session thread.
 * Everything else: the worker's own thread.
 */
#ifndef DIOH_WORKER_H
#define DIOH_WORKER_H

#include "bufpool.h"
#include "control.h"
#include "transfer.h"
#include "writeback.h"

enum dioh_cache { /* what page I/O may leave in the page cache */
	DIOH_CACHE_NONE, /* nothing: O_DIRECT, or uncached, or written behind and dropped */
	DIOH_CACHE_KEEP, /* all of it, but only little of it dirty: written behind */
};

struct dioh_worker_config {
	struct dioh_engine_config slots; /* depth and the wake slot are filled in by open */
	uint32_t block_bytes;
	uint32_t in_flight;
	bool direct;
	bool fill_buffers; /* they are to be there before the first I/O */
	enum dioh_cache cache;
	atomic_int *sync_error; /* the image's: of all workers */
	atomic_uint_fast64_t *waits_since_ns; /* the same */
	struct dioh_control *control;
	struct dioh_mailbox *session; /* where a broken engine is reported */
	void (*broken)(struct dioh_job *job);
};

struct dioh_worker {
	struct dioh_worker_config config;
	struct dioh_io_engine *engine;
	struct dioh_mailbox mailbox;
	struct dioh_bufpool pool;
	pthread_t thread;
	bool running;
	atomic_bool stop;

	/* For STATUS, CANCEL and STUCK: image I/Os given to the engine, and when the oldest of them was. */
	atomic_uint in_flight;
	atomic_uint_fast64_t oldest_ns; /* 0: none */

	struct dioh_transfer *transfers;
	bool uncached;     /* image I/O asks for RWF_DONTCACHE */
	bool write_behind; /* it is to be had no other way */
	struct dioh_writeback writeback;
	struct dioh_io *waiting; /* the engine had no room; in order */
	struct dioh_io **waiting_last;
	struct dioh_io flying;   /* ring of image I/Os, oldest first */
	uint8_t *discard;        /* where gaps of loads go: DIOH_GAP_PAGES_MAX pages */
	struct dioh_job broken_job;
	struct dioh_error broken_error;
	int start_result; /* the engine's start; read by the session after the barrier */
	struct dioh_error start_error;
	pthread_barrier_t *barrier;
};

/* Zeros for the gaps of saves: DIOH_GAP_PAGES_MAX pages. */
extern const uint8_t dioh_zero_pages[DIOH_GAP_PAGES_MAX * DIOH_PAGE_BYTES];

int dioh_worker_open(struct dioh_worker *worker, const struct dioh_worker_config *config, struct dioh_error *err);

/*
 * Gives all of them the same engine: SEAL's reply names one, and the system call filter is made for one. There may be no
 * room for it where a probe had some (memory that may be locked, a cgroup's, fs.aio-max-nr): if `any` will do the next best
 * one is taken then.
 */
int dioh_workers_open_engines(struct dioh_worker *workers, unsigned count, const struct dioh_engine_ops *engine, bool any,
                              struct dioh_error *err);

/* Starts the thread; it starts its engine and then waits at the barrier, where start_result is valid. */
int dioh_worker_start(struct dioh_worker *worker, pthread_barrier_t *barrier, struct dioh_error *err);

/* No transfer may be left. */
void dioh_worker_stop(struct dioh_worker *worker);

/* Hands a transfer over. Set transfer->cancel and wake the mailbox to cancel it. */
void dioh_worker_begin(struct dioh_worker *worker, struct dioh_transfer *transfer);

/* Starts an I/O of a transfer; io->done follows, always through the worker's loop. */
void dioh_worker_submit(struct dioh_worker *worker, struct dioh_transfer *transfer, struct dioh_io *io);

/* Has an I/O on a stream end soon, whether the engine has it already or not: io->done follows, at once or later. */
void dioh_worker_cancel(struct dioh_worker *worker, struct dioh_io *io);

/* Has the control-I/O thread handle a job, which ends by posting it back with dioh_worker_answer(). */
void dioh_worker_ask(struct dioh_worker *worker, struct dioh_transfer *transfer, struct dioh_job *job,
                     void (*work)(struct dioh_job *job));
void dioh_worker_answer(struct dioh_worker *worker, struct dioh_job *job, void (*handle)(struct dioh_job *job));

/* An I/O's or a job's end has been handled. */
void dioh_worker_settle(struct dioh_transfer *transfer);

#endif
