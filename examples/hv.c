/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * hv.c - errors and waiting that can be cancelled. See hv.h.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#include "hv.h"

int hv_fail(struct dioh_error *err, int code, const char *format, ...)
{
	va_list arguments;

	if (!err)
		return -code;
	memset(err, 0, sizeof(*err));
	err->code = code;
	err->offset = DIOH_OFFSET_NONE;
	va_start(arguments, format);
	(void)vsnprintf(err->text, sizeof(err->text), format, arguments);
	va_end(arguments);
	return -code;
}

void hv_close(int *fd)
{
	if (*fd >= 0)
		(void)close(*fd);
	*fd = -1;
}

int64_t hv_now_ms(void)
{
	struct timespec now;

	(void)clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

int hv_cancel_init(struct hv_cancel *cancel, struct dioh_error *err)
{
	sigset_t signals;

	sigemptyset(&signals);
	sigaddset(&signals, SIGINT);
	sigaddset(&signals, SIGTERM);
	sigaddset(&signals, SIGCHLD);
	if (sigprocmask(SIG_BLOCK, &signals, NULL))
		return hv_fail(err, errno, "signals cannot be blocked: %m");
	/* A client or a helper that is gone shows in the return value. The others may have been ignored by who started us. */
	(void)signal(SIGPIPE, SIG_IGN);
	(void)signal(SIGINT, SIG_DFL);
	(void)signal(SIGTERM, SIG_DFL);
	(void)signal(SIGCHLD, SIG_DFL);
	*cancel = (struct hv_cancel){ .signal_fd = -1, .client_fd = -1 };
	cancel->signal_fd = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
	if (cancel->signal_fd < 0)
		return hv_fail(err, errno, "signals cannot be read from a descriptor: %m");
	return 0;
}

/* A SIGCHLD only wakes its reader up: the children are looked after where nothing else runs (see vm.c). */
static void read_signals(struct hv_cancel *cancel)
{
	struct signalfd_siginfo info;

	while (read(cancel->signal_fd, &info, sizeof(info)) == (ssize_t)sizeof(info)) {
		if (info.ssi_signo == SIGCHLD)
			continue;
		cancel->cancelled = true;
		if (info.ssi_signo == SIGTERM)
			cancel->quit = true;
	}
}

int hv_wait_readable(struct hv_cancel *cancel, int fd, int timeout_ms, struct dioh_error *err)
{
	struct pollfd polled[3] = { { .fd = fd, .events = POLLIN }, { .fd = -1 }, { .fd = -1 } };
	int n;

	if (cancel) {
		polled[1] = (struct pollfd){ .fd = cancel->signal_fd, .events = POLLIN };
		polled[2] = (struct pollfd){ .fd = cancel->client_fd, .events = POLLIN };
	}
	do
		n = poll(polled, 3, timeout_ms);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return hv_fail(err, errno, "poll failed: %m");
	if (polled[1].revents)
		read_signals(cancel);
	if (polled[2].revents)
		cancel->cancelled = true;
	if (cancel && cancel->cancelled)
		return hv_fail(err, ECANCELED, "cancelled");
	return polled[0].revents ? 1 : 0;
}
