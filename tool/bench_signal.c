/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * bench_signal.c - Ctrl-C. A handler remembers the signal and cuts the connection that the program may be waiting at:
 * whatever it does then fails, and it comes out by the way that removes its file. Called by bench.c and bench_run.c.
 */
#include <errno.h>
#include <signal.h>
#include <sys/socket.h>

#include "bench.h"

static const int ending[] = { SIGINT, SIGTERM, SIGHUP };

/* A handler can reach nothing but what is static. */
static volatile sig_atomic_t caught;
static volatile sig_atomic_t watched_fd = -1;

static void remember(int number)
{
	int saved = errno;

	caught = number;
	if (watched_fd >= 0)
		shutdown(watched_fd, SHUT_RDWR);
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

void dioh_bench_signals_watch(int session_fd)
{
	watched_fd = session_fd;
	if (session_fd >= 0 && caught) /* it came in between */
		shutdown(session_fd, SHUT_RDWR);
}

void dioh_bench_signals_raise(void)
{
	if (!caught)
		return;
	signal(caught, SIG_DFL);
	raise(caught);
}
