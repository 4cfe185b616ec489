/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * engine.h - how I/O is submitted. An engine belongs to one worker; it knows descriptors as slots of a file table that
 * is fixed before the seal, and nothing of images, memory or transfers.
 *
 *      payload_*.c  --io-->  worker.c  --io-->  engine_{uring,libaio,sync}.c  -->  kernel
 *
 * The worker continues short image I/O, repeats EINTR and EAGAIN, and keeps what the engine has no room for.
 */
#ifndef DIOH_ENGINE_H
#define DIOH_ENGINE_H

#include <stdbool.h>
#include <sys/uio.h>

#include "error.h"

/* Slots of the file table. */
enum {
	DIOH_SLOT_WAKE = 0, /* the worker's mailbox: run() returns when it becomes readable */
	DIOH_SLOT_PAGE = 1, /* the image, page path */
	DIOH_SLOT_STREAM = 2, /* the first of DIOH_STREAMS_MAX */
	DIOH_SLOTS_MAX = DIOH_SLOT_STREAM + DIOH_STREAMS_MAX,
};

/* Linux 6.14; older headers lack the name. */
#ifndef RWF_DONTCACHE
#define RWF_DONTCACHE 0x00000080
#endif

struct dioh_io {
	bool write;
	bool stream; /* no offset; may move less than asked; result 0 of a read is the end */
	bool uncached; /* RWF_DONTCACHE: the page cache is not to keep it; -EOPNOTSUPP where that is not to be had */
	unsigned slot;
	struct iovec *iov; /* changed by the worker when it continues a short I/O */
	unsigned iov_count;
	uint64_t offset;
	uint64_t bytes; /* sum of iov; what is still to be moved */
	int64_t result; /* bytes, or -errno */
	void *owner;    /* the payload's own */
	uint64_t moved; /* the payload's own: bytes at the start */
	/* Called by the worker once all is moved (result 0; streams: bytes) or it failed (-errno). */
	void (*done)(struct dioh_io *io);
	/* The worker's own. */
	uint64_t begun_ns;
	unsigned stalls;
	bool tracked;
	bool cancelled; /* not to be tried again */
	struct dioh_io *prev;
	struct dioh_io *next;
	/* The engine's own. */
	struct dioh_io *engine_next;
};

struct dioh_io_engine;

struct dioh_engine_config {
	unsigned depth;           /* I/Os that may be queued at once, at least */
	int fds[DIOH_SLOTS_MAX];  /* -1: an empty slot */
	unsigned fd_count;
};

struct dioh_engine_ops {
	uint32_t id; /* enum dioh_engine */
	/* 0 if this kernel and its sandbox permit the engine, else -errno. */
	int (*probe)(void);
	/* Before the seal, in any thread: takes the descriptors into its table. They stay the caller's. */
	int (*open)(const struct dioh_engine_config *config, struct dioh_io_engine **ret_engine, struct dioh_error *err);
	/* Behind the seal, in the worker's thread, once, before any other call. */
	int (*start)(struct dioh_io_engine *engine, struct dioh_error *err);
	/* Takes an I/O. false: full, offer it again after run(). May not call io->done. */
	bool (*queue)(struct dioh_io_engine *engine, struct dioh_io *io);
	/* Hands what is queued to the kernel. Does not wait. */
	void (*submit)(struct dioh_io_engine *engine);
	/*
	 * Submits, and if `wait` waits until an I/O is complete or DIOH_SLOT_WAKE is readable (which it resets). Answers
	 * completed I/Os as a list through engine_next, their `result` set. A negative answer means that the engine is
	 * beyond use.
	 */
	int (*run)(struct dioh_io_engine *engine, bool wait, struct dioh_io **ret_completed, struct dioh_error *err);
	/* Asks for an early end of a stream I/O (-ECANCELED, or its result); it still completes through run(). */
	void (*cancel)(struct dioh_io_engine *engine, struct dioh_io *io);
	/* Drops the table's hold on a stream, so that its peer sees the end. No I/O on it may be queued. */
	void (*close_slot)(struct dioh_io_engine *engine, unsigned slot);
	/* Nothing may be in flight. NULL is accepted. */
	void (*close)(struct dioh_io_engine *engine);
};

struct dioh_io_engine { /* first member of every engine */
	const struct dioh_engine_ops *ops;
	unsigned threads; /* of its own, beside the worker */
	bool restricted; /* it can do nothing but its I/O on the descriptors of its table, whoever uses it */
};

extern const struct dioh_engine_ops dioh_engine_uring;
extern const struct dioh_engine_ops dioh_engine_libaio;
extern const struct dioh_engine_ops dioh_engine_sync;

/* The engine to use when `wanted` (enum dioh_engine) is asked for; NULL: not to be had, err says why. */
const struct dioh_engine_ops *dioh_engine_choose(uint32_t wanted, struct dioh_error *err);

/* The one of that id (IO_URING to SYNC), whether it is to be had or not. */
const struct dioh_engine_ops *dioh_engine_find(uint32_t id);

/* Whether to choose it unasked: buffered, libaio does all of an I/O while it is submitted, one after the other. */
bool dioh_engine_suits(uint32_t id, bool direct);

/* The next best one if that one could not be opened, though its probe had room; NULL: there is none left. */
const struct dioh_engine_ops *dioh_engine_fall_back(const struct dioh_engine_ops *failed, bool direct);

#endif
