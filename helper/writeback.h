/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * writeback.h - buffered writes that do not flood the page cache, where RWF_DONTCACHE is not to be had: writing behind,
 * and dropping what has been written. Two windows are on their way to the disk while the next fills; who would begin a
 * further one waits. A worker's own; the waiting is done by the control-I/O thread.
 */
#ifndef DIOH_WRITEBACK_H
#define DIOH_WRITEBACK_H

#include <stdatomic.h>
#include <stdbool.h>

#include "mailbox.h"

/* Large enough that the disk sees long runs, small enough to be nothing beside a guest. */
#define DIOH_WRITEBACK_WINDOW_BYTES (UINT64_C(16) << 20)

struct dioh_writeback_window { /* the range of the file that its writes have touched, gaps included */
	uint64_t start;
	uint64_t end;
};

struct dioh_writeback {
	int fd;
	bool known; /* sync_file_range(2), here; without it nothing is lost but the even pace */
	bool drop; /* what is clean leaves the cache */
	struct dioh_mailbox *control;
	struct dioh_mailbox *worker;
	atomic_int *sync_error; /* the image's, */
	atomic_uint_fast64_t *waits_since_ns; /* and this */
	uint64_t dirty_bytes; /* written since the window before was sent off */
	struct dioh_writeback_window filling;
	/* The control-I/O thread's while `running`. */
	struct dioh_writeback_window sent;
	struct dioh_writeback_window before;
	bool running;
	struct dioh_job job;
};

/* Whether the kernel, and what filters its calls, let sync_file_range(2) through for this descriptor. */
bool dioh_writeback_known(int fd);

/* Counts a write that has completed; sends a full window off. */
void dioh_writeback_wrote(struct dioh_writeback *writeback, uint64_t offset, uint64_t bytes);

/* What has been read is not to stay. */
void dioh_writeback_read(const struct dioh_writeback *writeback, uint64_t offset, uint64_t bytes);

/* No more may be written for now; the worker's mailbox wakes when that changes. */
bool dioh_writeback_full(const struct dioh_writeback *writeback);

#endif
