/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * engine_sync.c - plain preadv2(2) and pwritev2(2) by a few threads, for where nothing else is permitted. The worker
 * queues, the threads take, and what is done comes back over the eventfd.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/uio.h>
#include <unistd.h>

#include "align.h"
#include "engine_polled.h"

/* Enough to keep a disk busy with 1 MiB each; more gained nothing where it was tried. */
#define THREADS_MAX 8u
#define STACK_BYTES (256u * 1024)

struct sync_engine {
	struct dioh_polled polled;
	pthread_t threads[THREADS_MAX];
	pthread_barrier_t started;
	pthread_mutex_t lock; /* all that follows */
	pthread_cond_t work;
	struct dioh_io *queued;
	struct dioh_io **queued_last;
	struct dioh_io *done;
	struct dioh_io **done_last;
	bool stop;
	bool running;         /* the worker's */
};

static int sync_probe(void)
{
	return 0;
}

static unsigned wanted_threads(const struct dioh_engine_config *config)
{
	return (unsigned)dioh_min(config->depth, THREADS_MAX);
}

static int sync_open(const struct dioh_engine_config *config, struct dioh_io_engine **ret_engine, struct dioh_error *err)
{
	struct sync_engine *engine = calloc(1, sizeof(*engine));
	int r;

	if (!engine)
		return dioh_error_errno(err, ENOMEM, DIOH_PLACE(SEAL, SESSION, 0, DIOH_OFFSET_NONE), "helper: sync engine");
	r = dioh_polled_open(&engine->polled, &dioh_engine_sync, config, err);
	if (r < 0) {
		free(engine);
		return r;
	}
	pthread_mutex_init(&engine->lock, NULL);
	pthread_cond_init(&engine->work, NULL);
	engine->queued_last = &engine->queued;
	engine->done_last = &engine->done;
	engine->polled.base.threads = wanted_threads(config);
	*ret_engine = &engine->polled.base;
	return 0;
}

/* ---- the threads ---- */

static int64_t perform(const struct sync_engine *engine, const struct dioh_io *io)
{
	const int fd = engine->polled.fds[io->slot];
	const int count = (int)io->iov_count;
	const int flags = io->uncached ? RWF_DONTCACHE : 0;
	ssize_t n = io->write ? pwritev2(fd, io->iov, count, (off_t)io->offset, flags)
	                      : preadv2(fd, io->iov, count, (off_t)io->offset, flags);

	return n < 0 ? -errno : n;
}

/* With the lock held. NULL: the end. */
static struct dioh_io *take(struct sync_engine *engine)
{
	struct dioh_io *io;

	while (!engine->queued && !engine->stop)
		pthread_cond_wait(&engine->work, &engine->lock);
	io = engine->queued;
	if (!io)
		return NULL;
	engine->queued = io->engine_next;
	if (!engine->queued)
		engine->queued_last = &engine->queued;
	return io;
}

/* With the lock held. */
static void give_back(struct sync_engine *engine, struct dioh_io *io)
{
	const uint64_t one = 1;

	io->engine_next = NULL;
	*engine->done_last = io;
	engine->done_last = &io->engine_next;
	(void)!write(engine->polled.done_fd, &one, sizeof(one));
}

static void *thread_main(void *argument)
{
	struct sync_engine *engine = argument;
	struct dioh_io *io;

	pthread_barrier_wait(&engine->started);
	pthread_mutex_lock(&engine->lock);
	while ((io = take(engine))) {
		pthread_mutex_unlock(&engine->lock);
		io->result = perform(engine, io);
		pthread_mutex_lock(&engine->lock);
		give_back(engine, io);
	}
	pthread_mutex_unlock(&engine->lock);
	return NULL;
}

static void stop_threads(struct sync_engine *engine, unsigned count)
{
	pthread_mutex_lock(&engine->lock);
	engine->stop = true;
	pthread_cond_broadcast(&engine->work);
	pthread_mutex_unlock(&engine->lock);
	for (unsigned i = 0; i < count; i++)
		pthread_join(engine->threads[i], NULL);
}

static int start_thread(struct sync_engine *engine, unsigned i)
{
	pthread_attr_t attr;
	int r;

	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, STACK_BYTES);
	r = pthread_create(&engine->threads[i], &attr, thread_main, engine);
	pthread_attr_destroy(&attr);
	return r;
}

/* All of them, and on their way, before the system call filter: the start of a thread takes calls that it refuses. */
static int sync_start(struct dioh_io_engine *base, struct dioh_error *err)
{
	struct sync_engine *engine = (struct sync_engine *)base;

	dioh_polled_start(&engine->polled);
	pthread_barrier_init(&engine->started, NULL, base->threads + 1);
	for (unsigned i = 0; i < base->threads; i++) {
		int r = start_thread(engine, i);

		if (r != 0) /* those that wait at the barrier end with the process, which is what a failed seal means */
			return dioh_error_errno(err, r, DIOH_PLACE(SEAL, SESSION, 0, DIOH_OFFSET_NONE),
			                        "helper: starting an I/O thread failed");
	}
	pthread_barrier_wait(&engine->started);
	engine->running = true;
	return 0;
}

/* ---- the worker ---- */

static bool sync_queue(struct dioh_io_engine *base, struct dioh_io *io)
{
	struct sync_engine *engine = (struct sync_engine *)base;

	if (!dioh_polled_take(&engine->polled, io))
		return false;
	if (io->stream)
		return true;
	pthread_mutex_lock(&engine->lock);
	*engine->queued_last = io;
	engine->queued_last = &io->engine_next;
	pthread_cond_signal(&engine->work);
	pthread_mutex_unlock(&engine->lock);
	return true;
}

static void sync_submit(struct dioh_io_engine *base)
{
	dioh_polled_perform_streams((struct dioh_polled *)base);
}

static void take_done(struct sync_engine *engine)
{
	struct dioh_io *done;

	pthread_mutex_lock(&engine->lock);
	done = engine->done;
	engine->done = NULL;
	engine->done_last = &engine->done;
	pthread_mutex_unlock(&engine->lock);
	while (done) {
		struct dioh_io *next = done->engine_next;

		dioh_polled_complete(&engine->polled, done, done->result);
		done = next;
	}
}

static int sync_run(struct dioh_io_engine *base, bool wait, struct dioh_io **ret_completed, struct dioh_error *err)
{
	struct sync_engine *engine = (struct sync_engine *)base;

	(void)err;
	dioh_polled_perform_streams(&engine->polled);
	take_done(engine);
	if (wait && !engine->polled.completed) {
		dioh_polled_wait(&engine->polled);
		dioh_polled_perform_streams(&engine->polled);
		take_done(engine);
	}
	*ret_completed = dioh_polled_reap(&engine->polled);
	return 0;
}

static void sync_close(struct dioh_io_engine *base)
{
	struct sync_engine *engine = (struct sync_engine *)base;

	if (!engine)
		return;
	if (engine->running)
		stop_threads(engine, base->threads);
	dioh_polled_close(&engine->polled);
	free(engine);
}

const struct dioh_engine_ops dioh_engine_sync = {
	.id = DIOH_ENGINE_SYNC,
	.probe = sync_probe,
	.open = sync_open,
	.start = sync_start,
	.queue = sync_queue,
	.submit = sync_submit,
	.run = sync_run,
	.cancel = dioh_polled_cancel,
	.close_slot = dioh_polled_close_slot,
	.close = sync_close,
};
