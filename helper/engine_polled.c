/* SPDX-License-Identifier: LGPL-2.1-or-later */
#define _GNU_SOURCE
#include "engine_polled.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

int dioh_polled_open(struct dioh_polled *polled, const struct dioh_engine_ops *ops,
                     const struct dioh_engine_config *config, struct dioh_error *err)
{
	polled->done_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (polled->done_fd < 0)
		return dioh_error_errno(err, errno, DIOH_PLACE(SEAL, SESSION, 0, DIOH_OFFSET_NONE), "helper: an eventfd");
	polled->base.ops = ops;
	polled->base.restricted = true; /* there is no ring */
	polled->room = config->depth;
	polled->completed_last = &polled->completed;
	memcpy(polled->fds, config->fds, sizeof(polled->fds));
	return 0;
}

void dioh_polled_close(struct dioh_polled *polled)
{
	close(polled->done_fd);
}

void dioh_polled_start(struct dioh_polled *polled)
{
	/* Between poll's answer and the read or write a stream may have changed: it must not block us then. */
	for (unsigned i = DIOH_SLOT_STREAM; i < DIOH_SLOTS_MAX; i++) {
		int flags = polled->fds[i] >= 0 ? fcntl(polled->fds[i], F_GETFL) : -1;

		if (flags >= 0 && !(flags & O_NONBLOCK))
			polled->unblocked[i] = fcntl(polled->fds[i], F_SETFL, flags | O_NONBLOCK) == 0;
	}
}

bool dioh_polled_take(struct dioh_polled *polled, struct dioh_io *io)
{
	struct dioh_io **last = &polled->streams;

	if (polled->room == 0)
		return false;
	polled->room--;
	io->engine_next = NULL;
	if (!io->stream)
		return true;
	while (*last)
		last = &(*last)->engine_next;
	*last = io;
	return true;
}

void dioh_polled_complete(struct dioh_polled *polled, struct dioh_io *io, int64_t result)
{
	io->result = result;
	io->engine_next = NULL;
	*polled->completed_last = io;
	polled->completed_last = &io->engine_next;
	polled->room++;
}

void dioh_polled_perform_streams(struct dioh_polled *polled)
{
	struct dioh_io **link = &polled->streams;

	while (*link) {
		struct dioh_io *io = *link;
		const int fd = polled->fds[io->slot];
		ssize_t n = io->write ? writev(fd, io->iov, (int)io->iov_count) : readv(fd, io->iov, (int)io->iov_count);

		if (n < 0 && errno == EAGAIN) {
			link = &io->engine_next;
			continue;
		}
		*link = io->engine_next;
		dioh_polled_complete(polled, io, n < 0 ? -errno : n);
	}
}

void dioh_polled_wait(struct dioh_polled *polled)
{
	struct pollfd polls[DIOH_SLOTS_MAX] = {
		{ .fd = polled->fds[DIOH_SLOT_WAKE], .events = POLLIN },
		{ .fd = polled->done_fd, .events = POLLIN },
	};
	unsigned count = 2;
	uint64_t value;

	for (struct dioh_io *io = polled->streams; io && count < DIOH_SLOTS_MAX; io = io->engine_next)
		polls[count++] = (struct pollfd){ .fd = polled->fds[io->slot], .events = io->write ? POLLOUT : POLLIN };
	if (poll(polls, count, -1) <= 0)
		return;
	for (unsigned i = 0; i < 2; i++)
		if (polls[i].revents)
			(void)!read(polls[i].fd, &value, sizeof(value));
}

struct dioh_io *dioh_polled_reap(struct dioh_polled *polled)
{
	struct dioh_io *completed = polled->completed;

	polled->completed = NULL;
	polled->completed_last = &polled->completed;
	return completed;
}

void dioh_polled_cancel(struct dioh_io_engine *engine, struct dioh_io *io)
{
	struct dioh_polled *polled = (struct dioh_polled *)engine;

	for (struct dioh_io **link = &polled->streams; *link; link = &(*link)->engine_next) {
		if (*link == io) {
			*link = io->engine_next;
			dioh_polled_complete(polled, io, -ECANCELED);
			return;
		}
	}
}

void dioh_polled_close_slot(struct dioh_io_engine *engine, unsigned slot)
{
	struct dioh_polled *polled = (struct dioh_polled *)engine;
	int flags = polled->unblocked[slot] ? fcntl(polled->fds[slot], F_GETFL) : -1;

	if (flags >= 0)
		(void)fcntl(polled->fds[slot], F_SETFL, flags & ~O_NONBLOCK);
	/* The descriptor itself is the session's to close. */
	polled->fds[slot] = -1;
}
