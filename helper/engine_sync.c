/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * engine_sync.c - plain preadv2(2) and pwritev2(2), one at a time, for where nothing else is permitted. Image I/O is done
 * when it is run; streams are waited for with poll(2), so that a silent peer holds up nobody else.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine.h"

struct sync_engine {
	struct dioh_io_engine base;
	int fds[DIOH_SLOTS_MAX];
	bool unblocked[DIOH_SLOTS_MAX]; /* O_NONBLOCK was set by us: others may have the same open file */
	unsigned depth;
	unsigned queued;
	struct dioh_io *waiting;    /* not yet tried, or a stream that is not ready; in order */
	struct dioh_io *completed;
	struct dioh_io **completed_last;
};

static int sync_probe(void)
{
	return 0;
}

static int sync_open(const struct dioh_engine_config *config, struct dioh_io_engine **ret_engine, struct dioh_error *err)
{
	struct sync_engine *engine = calloc(1, sizeof(*engine));

	if (!engine)
		return dioh_error_errno(err, ENOMEM, DIOH_PLACE(SEAL, SESSION, 0, DIOH_OFFSET_NONE), "helper: sync engine");
	engine->base.ops = &dioh_engine_sync;
	engine->base.restricted = true; /* there is no ring */
	engine->depth = config->depth;
	engine->completed_last = &engine->completed;
	memcpy(engine->fds, config->fds, sizeof(engine->fds));
	*ret_engine = &engine->base;
	return 0;
}

static int sync_start(struct dioh_io_engine *base, struct dioh_error *err)
{
	struct sync_engine *engine = (struct sync_engine *)base;

	(void)err;
	/* Between poll's answer and the read or write a stream may have changed: it must not block us then. */
	for (unsigned i = DIOH_SLOT_STREAM; i < DIOH_SLOTS_MAX; i++) {
		int flags = engine->fds[i] >= 0 ? fcntl(engine->fds[i], F_GETFL) : -1;

		if (flags >= 0 && !(flags & O_NONBLOCK))
			engine->unblocked[i] = fcntl(engine->fds[i], F_SETFL, flags | O_NONBLOCK) == 0;
	}
	return 0;
}

static bool sync_queue(struct dioh_io_engine *base, struct dioh_io *io)
{
	struct sync_engine *engine = (struct sync_engine *)base;
	struct dioh_io **last = &engine->waiting;

	if (engine->queued == engine->depth)
		return false;
	while (*last)
		last = &(*last)->engine_next;
	io->engine_next = NULL;
	*last = io;
	engine->queued++;
	return true;
}

static void complete(struct sync_engine *engine, struct dioh_io *io, int64_t result)
{
	io->result = result;
	io->engine_next = NULL;
	*engine->completed_last = io;
	engine->completed_last = &io->engine_next;
	engine->queued--;
}

static int64_t perform(struct sync_engine *engine, const struct dioh_io *io)
{
	int fd = engine->fds[io->slot];
	int count = (int)io->iov_count;
	int flags = io->uncached ? RWF_DONTCACHE : 0;
	ssize_t n;

	if (io->stream)
		n = io->write ? writev(fd, io->iov, count) : readv(fd, io->iov, count);
	else if (io->write)
		n = pwritev2(fd, io->iov, count, (off_t)io->offset, flags);
	else
		n = preadv2(fd, io->iov, count, (off_t)io->offset, flags);
	return n < 0 ? -errno : n;
}

/* Does every image I/O that waits, and each stream I/O whose peer is ready. */
static void perform_ready(struct sync_engine *engine)
{
	struct dioh_io **link = &engine->waiting;

	while (*link) {
		struct dioh_io *io = *link;
		int64_t result = perform(engine, io);

		if (io->stream && result == -EAGAIN) {
			link = &io->engine_next;
			continue;
		}
		*link = io->engine_next;
		complete(engine, io, result);
	}
}

static void sync_submit(struct dioh_io_engine *base)
{
	perform_ready((struct sync_engine *)base);
}

static void wait_ready(struct sync_engine *engine)
{
	struct pollfd polls[DIOH_SLOTS_MAX];
	unsigned count = 0;
	uint64_t value;

	polls[count++] = (struct pollfd){ .fd = engine->fds[DIOH_SLOT_WAKE], .events = POLLIN };
	for (struct dioh_io *io = engine->waiting; io && count < DIOH_SLOTS_MAX; io = io->engine_next)
		polls[count++] = (struct pollfd){ .fd = engine->fds[io->slot], .events = io->write ? POLLOUT : POLLIN };
	if (poll(polls, count, -1) > 0 && polls[0].revents)
		(void)!read(engine->fds[DIOH_SLOT_WAKE], &value, sizeof(value));
}

static int sync_run(struct dioh_io_engine *base, bool wait, struct dioh_io **ret_completed, struct dioh_error *err)
{
	struct sync_engine *engine = (struct sync_engine *)base;

	(void)err;
	perform_ready(engine);
	if (wait && !engine->completed) {
		wait_ready(engine);
		perform_ready(engine);
	}
	*ret_completed = engine->completed;
	engine->completed = NULL;
	engine->completed_last = &engine->completed;
	return 0;
}

static void sync_cancel(struct dioh_io_engine *base, struct dioh_io *io)
{
	struct sync_engine *engine = (struct sync_engine *)base;

	for (struct dioh_io **link = &engine->waiting; *link; link = &(*link)->engine_next) {
		if (*link == io) {
			*link = io->engine_next;
			complete(engine, io, -ECANCELED);
			return;
		}
	}
}

static void sync_close_slot(struct dioh_io_engine *base, unsigned slot)
{
	struct sync_engine *engine = (struct sync_engine *)base;
	int flags = engine->unblocked[slot] ? fcntl(engine->fds[slot], F_GETFL) : -1;

	if (flags >= 0)
		(void)fcntl(engine->fds[slot], F_SETFL, flags & ~O_NONBLOCK);
	/* The descriptor itself is the session's to close. */
	engine->fds[slot] = -1;
}

static void sync_close(struct dioh_io_engine *base)
{
	free(base);
}

const struct dioh_engine_ops dioh_engine_sync = {
	.id = DIOH_ENGINE_SYNC,
	.probe = sync_probe,
	.open = sync_open,
	.start = sync_start,
	.queue = sync_queue,
	.submit = sync_submit,
	.run = sync_run,
	.cancel = sync_cancel,
	.close_slot = sync_close_slot,
	.close = sync_close,
};
