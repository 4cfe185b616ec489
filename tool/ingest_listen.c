/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * ingest_listen.c - the socket of `ingest --listen`. Owns its name for as long as nobody, or not everybody, has connected:
 * whatever ends the wait, but for SIGKILL, removes it. Whoever may connect is trusted with the image's content. Called
 * by ingest.c.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cleanup.h"
#include "ingest.h"

/* ---- signals ------------------------------------------------------------------------------------------------ */

/* They wait, and can be polled for. What is ignored by whoever started us, as nohup does, stays so. */
static int hold_signals(sigset_t *ret_before)
{
	static const int ending[] = { SIGINT, SIGTERM, SIGHUP };
	struct sigaction action;
	sigset_t held;

	sigemptyset(&held);
	for (size_t i = 0; i < sizeof(ending) / sizeof(ending[0]); i++)
		if (sigaction(ending[i], NULL, &action) == 0 && action.sa_handler != SIG_IGN)
			sigaddset(&held, ending[i]);
	sigprocmask(SIG_BLOCK, &held, ret_before);
	return signalfd(-1, &held, SFD_CLOEXEC);
}

/* ---- the socket --------------------------------------------------------------------------------------------- */

/*
 * To connect would be taken for a QEMU. By another type of socket nobody can: but if somebody has this one open, it is
 * the type that is complained of (EPROTOTYPE).
 */
static bool is_abandoned(const struct sockaddr_un *address)
{
	DIOH_AUTO_FD int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	struct stat st;

	return fd >= 0 && stat(address->sun_path, &st) == 0 && S_ISSOCK(st.st_mode) &&
	       connect(fd, (const struct sockaddr *)address, sizeof(*address)) != 0 && errno == ECONNREFUSED;
}

/* What has the name already is not ours to remove: two that found an abandoned socket would remove each other's. */
static int listen_at(const struct sockaddr_un *address, struct dioh_error *err)
{
	DIOH_AUTO_FD int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	mode_t mask;
	int r;

	if (fd < 0)
		return dioh_tool_error_set(err, errno, "--listen: socket failed: %s", strerror(errno));
	mask = umask(0177);
	r = bind(fd, (const struct sockaddr *)address, sizeof(*address)) != 0 ? errno : 0;
	umask(mask);
	if (r == EADDRINUSE && is_abandoned(address))
		return dioh_tool_error_set(err, r, "--listen: %s: nobody listens on this socket any more: remove it",
		                           address->sun_path);
	if (r != 0)
		return dioh_tool_error_set(err, r, "--listen: %s: %s", address->sun_path, strerror(r));
	if (listen(fd, SOMAXCONN) != 0) {
		r = dioh_tool_error_set(err, errno, "--listen: %s: %s", address->sun_path, strerror(errno));
		unlink(address->sun_path);
		return r;
	}
	return dioh_steal_fd(&fd);
}

static int accept_one(int listener, int signals_fd, int *ret_fd, struct dioh_error *err)
{
	struct pollfd fds[] = { { .fd = listener, .events = POLLIN }, { .fd = signals_fd, .events = POLLIN } };

	for (;;) {
		if (poll(fds, 2, -1) < 0 && errno != EINTR)
			return dioh_tool_error_set(err, errno, "--listen: poll failed: %s", strerror(errno));
		if (fds[1].revents)
			return dioh_tool_error_set(err, EINTR, "--listen: ended by a signal before a QEMU had connected");
		*ret_fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
		if (*ret_fd >= 0)
			return 0;
		if (errno != EINTR && errno != EAGAIN && errno != ECONNABORTED)
			return dioh_tool_error_set(err, errno, "--listen: accept failed: %s", strerror(errno));
	}
}

int dioh_ingest_accept(const struct sockaddr_un *address, uint32_t count, int *ret_fds, struct dioh_error *err)
{
	sigset_t before;
	DIOH_AUTO_FD int signals_fd = hold_signals(&before);
	DIOH_AUTO_FD int listener = -1;
	int r = 0;

	if (signals_fd < 0)
		r = dioh_tool_error_set(err, errno, "--listen: signalfd failed: %s", strerror(errno));
	if (r == 0)
		r = listener = listen_at(address, err);
	if (r >= 0) {
		r = 0;
		for (uint32_t i = 0; r == 0 && i < count; i++)
			r = accept_one(listener, signals_fd, &ret_fds[i], err);
		unlink(address->sun_path);
	}
	sigprocmask(SIG_SETMASK, &before, NULL); /* a signal that has come ends the program here */
	return r;
}
