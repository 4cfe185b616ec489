/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * bench_signal.c - Ctrl-C. A handler remembers the signal and cuts the connection that the program may be waiting at:
 * whatever it does then fails, and it comes out by the way that removes its file. Called by bench.c and by what waits.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>

#include "bench.h"

static const int ending[] = { SIGINT, SIGTERM, SIGHUP };

/* A handler can reach nothing but what is static. */
static volatile sig_atomic_t caught;
static volatile sig_atomic_t interruptions;
static volatile sig_atomic_t watched_fd = -1;

/* At a socket that is shut down, or a pipe that does not block, nobody begins to wait any more. */
static void cut(int fd)
{
	if (shutdown(fd, SHUT_RDWR) != 0)
		(void)fcntl(fd, F_SETFL, O_NONBLOCK);
}

static void remember(int number)
{
	int saved = errno;

	caught = number;
	interruptions = interruptions + 1;
	if (watched_fd >= 0)
		cut(watched_fd);
	errno = saved;
}

void dioh_bench_signals_catch(void)
{
	struct sigaction action = { .sa_handler = remember }; /* no SA_RESTART: what waits is to return */

	for (size_t i = 0; i < sizeof(ending) / sizeof(ending[0]); i++) {
		struct sigaction before;

		/* Ignored by whoever started us, as nohup does: it stays so. */
		if (sigaction(ending[i], NULL, &before) == 0 && before.sa_handler != SIG_IGN)
			sigaction(ending[i], &action, NULL);
	}
	/* A drop-in or gnuplot that ends early is told by its exit status. */
	signal(SIGPIPE, SIG_IGN);
}

int dioh_bench_interrupted(void)
{
	return caught;
}

int dioh_bench_interruptions(void)
{
	return interruptions;
}

void dioh_bench_signals_watch(int fd)
{
	watched_fd = fd;
	if (fd >= 0 && caught) /* it came in between */
		cut(fd);
}

void dioh_bench_signals_sleep(int fd, int timeout_ms, int seen)
{
	const struct timespec timeout = { timeout_ms / 1000, timeout_ms % 1000 * 1000000L };
	struct pollfd readable = { fd, POLLIN, 0 };
	sigset_t set, before;

	sigemptyset(&set);
	for (size_t i = 0; i < sizeof(ending) / sizeof(ending[0]); i++)
		sigaddset(&set, ending[i]);
	/* Only ppoll lets them in: none comes between the look and the sleep. */
	sigprocmask(SIG_BLOCK, &set, &before);
	if (interruptions == seen)
		(void)ppoll(&readable, fd < 0 ? 0 : 1, timeout_ms < 0 ? NULL : &timeout, &before);
	sigprocmask(SIG_SETMASK, &before, NULL);
}

void dioh_bench_signals_raise(void)
{
	if (!caught)
		return;
	signal(caught, SIG_DFL);
	raise(caught);
}
