/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * engine_polled.h - what the engines without a ring share: streams, which are waited for with poll(2) so that a silent peer
 * holds up nobody else; the wake-up; completed I/Os. How image I/O is done is each engine's own; that some of it is done
 * shows on an eventfd.
 */
#ifndef DIOH_ENGINE_POLLED_H
#define DIOH_ENGINE_POLLED_H

#include "engine.h"

struct dioh_polled { /* first member of the engine */
	struct dioh_io_engine base;
	int fds[DIOH_SLOTS_MAX];
	bool unblocked[DIOH_SLOTS_MAX]; /* O_NONBLOCK was set by us: others may have the same open file */
	int done_fd;                    /* eventfd: image I/O has been done */
	unsigned room;                  /* I/Os that may still be taken */
	struct dioh_io *streams;        /* not yet tried, or not ready; in order */
	struct dioh_io *completed;
	struct dioh_io **completed_last;
};

int dioh_polled_open(struct dioh_polled *polled, const struct dioh_engine_ops *ops,
                     const struct dioh_engine_config *config, struct dioh_error *err);
void dioh_polled_close(struct dioh_polled *polled);

/* Behind the seal: streams must not block us from now on. */
void dioh_polled_start(struct dioh_polled *polled);

/* Counts an I/O in; false: full. Streams are kept here, image I/O is the engine's. */
bool dioh_polled_take(struct dioh_polled *polled, struct dioh_io *io);
void dioh_polled_complete(struct dioh_polled *polled, struct dioh_io *io, int64_t result);

/* Each stream I/O whose peer is ready. */
void dioh_polled_perform_streams(struct dioh_polled *polled);
/* Until the wake-up, a stream, or image I/O that has been done. Resets the wake-up and done_fd. */
void dioh_polled_wait(struct dioh_polled *polled);
/* Hands out what has been completed. */
struct dioh_io *dioh_polled_reap(struct dioh_polled *polled);

/* Operations of struct dioh_engine_ops. */
void dioh_polled_cancel(struct dioh_io_engine *engine, struct dioh_io *io);
void dioh_polled_close_slot(struct dioh_io_engine *engine, unsigned slot);

#endif
