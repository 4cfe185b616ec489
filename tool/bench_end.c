/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * bench_end.c - the end of a helper or a drop-in. It may still be writing to the target, so it is waited for; but one that
 * hangs with its disk is not waited for without end: whoever started bench is told then who still writes, and where.
 * Called by bench_run.c and bench_stream.c.
 */
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench.h"
#include "cleanup.h"

/* A second signal ends the waiting, but not within this time: timeout(1) and a terminal that goes send theirs twice. */
#define SECOND_SIGNAL_MS 500
#define STEP_MS 5 /* where there is no pidfd */

static int abandon(struct dioh_bench *bench, pid_t pid, struct dioh_error *err)
{
	struct dioh_bench_target *target = &bench->target;

	target->abandoned = true;
	if (bench->progress)
		dioh_tool_progress_end(bench->progress);
	fprintf(stderr, DIOH_TOOL_NAME ": a helper (pid %d) still writes to %s: %s\n", (int)pid,
	        target->created ? target->created : target->path,
	        target->created ? "that is removed now, and its room is free when the helper has ended" :
	                          "do not use or remove it until the helper has ended");
	return dioh_tool_error_set(err, ETIMEDOUT, "the helper has not ended: the disk may hang");
}

/* What is left of the time after `since_ns`; -1: it has not begun. */
static int left_ms(uint64_t since_ns, int signals)
{
	const uint64_t limit_ms = signals > 1 ? SECOND_SIGNAL_MS : DIOH_TOOL_END_TIMEOUT_MS;
	const uint64_t gone_ms = (dioh_tool_now_ns() - since_ns) / 1000000;

	if (since_ns == 0)
		return -1;
	return gone_ms < limit_ms ? (int)(limit_ms - gone_ms) : 0;
}

int dioh_bench_end(struct dioh_bench *bench, pid_t pid, bool told, int *ret_status, struct dioh_error *err)
{
	DIOH_AUTO_FD int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	uint64_t told_ns = told ? dioh_tool_now_ns() : 0;

	for (;;) {
		const int signals = dioh_bench_interruptions();
		const pid_t ended = waitpid(pid, ret_status, WNOHANG);
		int left;

		if (ended == pid)
			return 0;
		if (ended < 0)
			return dioh_tool_error_set(err, errno, "waiting for the helper failed: %s", strerror(errno));
		if (signals && told_ns == 0) { /* as the terminal may have done already */
			kill(pid, SIGTERM);
			told_ns = dioh_tool_now_ns();
		}
		left = left_ms(told_ns, signals);
		if (left == 0)
			return abandon(bench, pid, err);
		dioh_bench_signals_sleep(pidfd, pidfd < 0 ? STEP_MS : left, signals);
	}
}
