/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * engine_libaio.c - the kernel's older asynchronous I/O, for O_DIRECT where io_uring is not to be had. Buffered I/O is done
 * while it is submitted. io_submit(2), io_getevents(2).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <libaio.h>
#include <stdlib.h>
#include <string.h>

#include "engine_polled.h"

#define EVENTS_PER_CALL 64

struct libaio_engine {
	struct dioh_polled polled;
	io_context_t context;
	struct iocb *iocbs; /* as many as I/Os may be queued */
	struct iocb **free_iocbs;
	unsigned free_count;
	struct iocb **prepared; /* to be submitted */
	unsigned prepared_count;
};

/* For no events it is refused (EINVAL) wherever it is permitted at all; to destroy a context takes 30 ms. */
static int libaio_probe(void)
{
	io_context_t context = NULL;
	int r = io_setup(0, &context);

	return r == -EINVAL ? 0 : r;
}

static void free_engine(struct libaio_engine *engine)
{
	free(engine->iocbs);
	free(engine->free_iocbs);
	free(engine->prepared);
	free(engine);
}

static struct libaio_engine *new_engine(unsigned depth)
{
	struct libaio_engine *engine = calloc(1, sizeof(*engine));

	if (!engine)
		return NULL;
	engine->iocbs = calloc(depth, sizeof(*engine->iocbs));
	engine->free_iocbs = calloc(depth, sizeof(*engine->free_iocbs));
	engine->prepared = calloc(depth, sizeof(*engine->prepared));
	if (!engine->iocbs || !engine->free_iocbs || !engine->prepared) {
		free_engine(engine);
		return NULL;
	}
	while (engine->free_count < depth) {
		engine->free_iocbs[engine->free_count] = &engine->iocbs[engine->free_count];
		engine->free_count++;
	}
	return engine;
}

static int libaio_open(const struct dioh_engine_config *config, struct dioh_io_engine **ret_engine,
                       struct dioh_error *err)
{
	const struct dioh_place *place = DIOH_PLACE(SEAL, SESSION, 0, DIOH_OFFSET_NONE);
	struct libaio_engine *engine = new_engine(config->depth);
	int r;

	if (!engine)
		return dioh_error_errno(err, ENOMEM, place, "helper: libaio");
	r = io_setup((int)config->depth, &engine->context);
	if (r < 0) {
		free_engine(engine);
		return dioh_error_errno(err, r, place, "helper: io_setup for %u I/Os failed", config->depth);
	}
	r = dioh_polled_open(&engine->polled, &dioh_engine_libaio, config, err);
	if (r < 0) {
		io_destroy(engine->context);
		free_engine(engine);
		return r;
	}
	*ret_engine = &engine->polled.base;
	return 0;
}

static int libaio_start(struct dioh_io_engine *base, struct dioh_error *err)
{
	(void)err;
	dioh_polled_start((struct dioh_polled *)base);
	return 0;
}

static bool libaio_queue(struct dioh_io_engine *base, struct dioh_io *io)
{
	struct libaio_engine *engine = (struct libaio_engine *)base;
	const int fd = engine->polled.fds[io->slot];
	struct iocb *iocb;

	if (!dioh_polled_take(&engine->polled, io))
		return false;
	if (io->stream)
		return true;
	iocb = engine->free_iocbs[--engine->free_count];
	if (io->write)
		io_prep_pwritev(iocb, fd, io->iov, (int)io->iov_count, (long long)io->offset);
	else
		io_prep_preadv(iocb, fd, io->iov, (int)io->iov_count, (long long)io->offset);
	if (io->uncached)
		iocb->aio_rw_flags = RWF_DONTCACHE;
	io_set_eventfd(iocb, engine->polled.done_fd);
	iocb->data = io;
	engine->prepared[engine->prepared_count++] = iocb;
	return true;
}

static void end(struct libaio_engine *engine, struct iocb *iocb, int64_t result)
{
	struct dioh_io *io = iocb->data;

	engine->free_iocbs[engine->free_count++] = iocb;
	dioh_polled_complete(&engine->polled, io, result);
}

/* A request that is refused as such (EINVAL, EOPNOTSUPP) is the first one; those behind it have not been looked at. */
static void submit_prepared(struct libaio_engine *engine)
{
	unsigned done = 0;

	while (done < engine->prepared_count) {
		int n = io_submit(engine->context, (long)(engine->prepared_count - done), engine->prepared + done);

		if (n == -EINTR)
			continue;
		if (n == -EAGAIN) /* the kernel has no room: with the next call */
			break;
		if (n < 0)
			end(engine, engine->prepared[done], n);
		done += n > 0 ? (unsigned)n : 1;
	}
	engine->prepared_count -= done;
	memmove(engine->prepared, engine->prepared + done, engine->prepared_count * sizeof(*engine->prepared));
}

static void libaio_submit(struct dioh_io_engine *base)
{
	dioh_polled_perform_streams((struct dioh_polled *)base);
	submit_prepared((struct libaio_engine *)base);
}

static int take_events(struct libaio_engine *engine, struct dioh_error *err)
{
	struct io_event events[EVENTS_PER_CALL];
	int n;

	do {
		n = io_getevents(engine->context, 0, EVENTS_PER_CALL, events, &(struct timespec){ 0 });
		for (int i = 0; i < n; i++)
			end(engine, events[i].obj, (int64_t)events[i].res);
	} while (n == EVENTS_PER_CALL || n == -EINTR);
	if (n < 0)
		return dioh_error_errno(err, n, DIOH_PLACE(NONE, SESSION, 0, DIOH_OFFSET_NONE), "helper: io_getevents failed");
	return 0;
}

static int libaio_run(struct dioh_io_engine *base, bool wait, struct dioh_io **ret_completed, struct dioh_error *err)
{
	struct libaio_engine *engine = (struct libaio_engine *)base;
	int r;

	libaio_submit(base);
	r = take_events(engine, err);
	if (r == 0 && wait && !engine->polled.completed) {
		dioh_polled_wait(&engine->polled);
		dioh_polled_perform_streams(&engine->polled);
		r = take_events(engine, err);
	}
	*ret_completed = dioh_polled_reap(&engine->polled);
	return r;
}

static void libaio_close(struct dioh_io_engine *base)
{
	struct libaio_engine *engine = (struct libaio_engine *)base;

	if (!engine)
		return;
	io_destroy(engine->context);
	dioh_polled_close(&engine->polled);
	free_engine(engine);
}

const struct dioh_engine_ops dioh_engine_libaio = {
	.id = DIOH_ENGINE_LIBAIO,
	.probe = libaio_probe,
	.open = libaio_open,
	.start = libaio_start,
	.queue = libaio_queue,
	.submit = libaio_submit,
	.run = libaio_run,
	.cancel = dioh_polled_cancel,
	.close_slot = dioh_polled_close_slot,
	.close = libaio_close,
};
