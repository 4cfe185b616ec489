/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * spawn.c - the helper as a child process.
 *
 * Owns the child between fork and exec: there, in a copy of a process that may have any number of threads, only
 * async-signal-safe calls are made, and whatever the child needs has been prepared before. Trusts its caller; the
 * program that it starts is whatever stands there under this name. Called by client.c and, for sentences, by
 * exchange.c.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cleanup.h"
#include "deadline.h"

#define CONTROL_FD 3
#define CONTROL_ARGUMENT "--fd=3"
#define DUPLICATES_MIN 10 /* above the numbers that are about to be given out */
#define EXIT_NOT_STARTED 127
#define DESCRIBE_MS 100 /* between the end of the connection and that of the process */
#define WAIT_STEP_MS 5  /* where there is no pidfd */

#define PLACE DIOH_PLACE(SPAWN, SESSION, 0, DIOH_OFFSET_NONE)

/* ---- in the child ---------------------------------------------------------------------------- */

enum stage { STAGE_DESCRIPTORS, STAGE_PROGRAM };

struct failure { /* what the child reports of itself, if it does not come as far as the program */
	int error;
	int stage;
};

struct launch {
	const char *program;
	char **argv;
	int control_fd;
	int stderr_fd; /* -1: inherited */
	int report_fd; /* close-on-exec: its end without a report is success */
	int cgroup_fd; /* -1: the caller's cgroup */
};

static _Noreturn void give_up(int report_fd, int stage)
{
	struct failure failure = { errno, stage };
	ssize_t written;

	do
		written = write(report_fd, &failure, sizeof(failure));
	while (written < 0 && errno == EINTR);
	_exit(EXIT_NOT_STARTED);
}

/* Out of the way of descriptors 0 to 3, which may be any of those at hand. */
static int move_up(int fd, int report_fd)
{
	int moved = fcntl(fd, F_DUPFD_CLOEXEC, DUPLICATES_MIN);

	if (moved < 0)
		give_up(report_fd, STAGE_DESCRIPTORS);
	return moved;
}

static void place_fd(int fd, int number, int report_fd)
{
	if (dup2(fd, number) < 0)
		give_up(report_fd, STAGE_DESCRIPTORS);
}

static void arrange_fds(struct launch *launch)
{
	int stderr_flags = fcntl(STDERR_FILENO, F_GETFD);
	bool has_stderr = launch->stderr_fd >= 0 ||
	                  (stderr_flags >= 0 && !(stderr_flags & FD_CLOEXEC));
	int null_fd;

	launch->report_fd = move_up(launch->report_fd, launch->report_fd);
	launch->control_fd = move_up(launch->control_fd, launch->report_fd);
	if (launch->stderr_fd >= 0)
		launch->stderr_fd = move_up(launch->stderr_fd, launch->report_fd);
	null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	if (null_fd < 0)
		give_up(launch->report_fd, STAGE_DESCRIPTORS);
	null_fd = move_up(null_fd, launch->report_fd);

	place_fd(null_fd, STDIN_FILENO, launch->report_fd);
	place_fd(null_fd, STDOUT_FILENO, launch->report_fd);
	if (launch->stderr_fd >= 0)
		place_fd(launch->stderr_fd, STDERR_FILENO, launch->report_fd);
	else if (!has_stderr)
		place_fd(null_fd, STDERR_FILENO, launch->report_fd);
	place_fd(launch->control_fd, CONTROL_FD, launch->report_fd);
}

/* Handlers end with exec, but what is ignored stays so, and a blocked SIGALRM would disarm the attach timer. */
static void reset_signals(void)
{
	struct sigaction action = { .sa_handler = SIG_DFL };
	sigset_t none;

	for (int number = 1; number < _NSIG; number++)
		(void)sigaction(number, &action, NULL); /* refused for some, which are as they should be */
	sigemptyset(&none);
	(void)pthread_sigmask(SIG_SETMASK, &none, NULL);
}

static _Noreturn void run_child(struct launch *launch)
{
	arrange_fds(launch);
	reset_signals();
	if (strchr(launch->program, '/'))
		execv(launch->program, launch->argv);
	else
		execvp(launch->program, launch->argv);
	give_up(launch->report_fd, STAGE_PROGRAM);
}

/* ---- in the caller --------------------------------------------------------------------------- */

static char **make_argv(const char *program, const char *const *args)
{
	size_t count = 0, n = 0;
	const char **argv;

	while (args && args[count])
		count++;
	argv = calloc(count + 4, sizeof(*argv));
	if (!argv)
		return NULL;
	argv[n++] = program;
	argv[n++] = "serve";
	argv[n++] = CONTROL_ARGUMENT;
	for (size_t i = 0; i < count; i++)
		argv[n++] = args[i];
	return (char **)argv; /* execve(2) does not write to them */
}

/* As fork(2), but born in the cgroup: nothing of it is ever charged to the caller's. */
static pid_t fork_into(int cgroup_fd)
{
	struct clone_args args = {
		.flags = CLONE_INTO_CGROUP,
		.exit_signal = SIGCHLD,
		.cgroup = (uint64_t)cgroup_fd,
	};

	return (pid_t)syscall(SYS_clone3, &args, sizeof(args));
}

/* With all signals blocked, so that no handler of the caller's ever runs in the child. */
static pid_t fork_child(struct launch *launch)
{
	sigset_t all, before;
	pid_t pid;
	int error;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	pid = launch->cgroup_fd >= 0 ? fork_into(launch->cgroup_fd) : fork();
	if (pid == 0)
		run_child(launch);
	error = errno;
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	errno = error;
	return pid;
}

static int not_started(const struct launch *launch, pid_t pid, const struct failure *failure,
                       struct dioh_error *err)
{
	(void)dioh_child_wait(pid, -1, NULL);
	if (failure->stage == STAGE_PROGRAM)
		return dioh_error_errno(err, failure->error, PLACE, "cannot execute %s",
		                        launch->program);
	return dioh_error_errno(err, failure->error, PLACE, "cannot arrange the descriptors of %s",
	                        launch->program);
}

static int launch_child(struct launch *launch, pid_t *ret_pid, struct dioh_error *err)
{
	DIOH_AUTO_FD int report_fd = -1;
	struct failure failure;
	ssize_t got;
	int pipe_fds[2];
	pid_t pid;

	if (pipe2(pipe_fds, O_CLOEXEC) < 0)
		return dioh_error_errno(err, errno, PLACE, "no pipe to start %s with",
		                        launch->program);
	report_fd = pipe_fds[0];
	launch->report_fd = pipe_fds[1];
	pid = fork_child(launch);
	if (pid < 0) {
		int error = errno;

		close(pipe_fds[1]);
		return dioh_error_errno(err, error, PLACE, "cannot start a process for %s%s",
		                        launch->program,
		                        launch->cgroup_fd >= 0 ? " in the cgroup" : "");
	}
	close(pipe_fds[1]);
	do
		got = read(report_fd, &failure, sizeof(failure));
	while (got < 0 && errno == EINTR);
	if (got == (ssize_t)sizeof(failure))
		return not_started(launch, pid, &failure, err);
	*ret_pid = pid;
	return 0;
}

int dioh_child_start(const struct dioh_spawn_options *options, int control_fd, pid_t *ret_pid,
                     struct dioh_error *err)
{
	static const struct dioh_spawn_options defaults = DIOH_SPAWN_OPTIONS_INIT;
	DIOH_AUTO_FREE char **argv = NULL;
	struct launch launch;

	if (!options)
		options = &defaults;
	launch = (struct launch){
		.program = options->program ? options->program : "diohelper",
		.control_fd = control_fd,
		.stderr_fd = options->stderr_fd,
		.report_fd = -1,
		.cgroup_fd = options->cgroup_fd,
	};
	argv = make_argv(launch.program, options->args);
	if (!argv)
		return dioh_error_errno(err, ENOMEM, PLACE, "cannot start %s", launch.program);
	launch.argv = argv;
	return launch_child(&launch, ret_pid, err);
}

/* ---- its end --------------------------------------------------------------------------------- */

/* Waits until the child can be reaped, or the time is over, or a signal came. */
static void await_end(pid_t pid, int timeout_ms)
{
	DIOH_AUTO_FD int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	struct pollfd end = { pidfd, POLLIN, 0 };

	if (pidfd < 0 && (timeout_ms < 0 || timeout_ms > WAIT_STEP_MS))
		timeout_ms = WAIT_STEP_MS;
	poll(&end, pidfd < 0 ? 0 : 1, timeout_ms);
}

int dioh_child_wait(pid_t pid, int timeout_ms, int *ret_status)
{
	int64_t deadline = dioh_deadline(timeout_ms);

	for (;;) {
		int status, left = dioh_deadline_left(deadline);
		pid_t reaped = waitpid(pid, &status, WNOHANG);

		if (reaped == pid && ret_status)
			*ret_status = status;
		if (reaped == pid)
			return 0;
		if (reaped < 0)
			return -errno;
		if (left == 0)
			return -ETIMEDOUT;
		await_end(pid, left);
	}
}

static void describe(const siginfo_t *end, char text[DIOH_TEXT_BYTES])
{
	const char *name = end->si_code == CLD_EXITED ? NULL : sigabbrev_np(end->si_status);

	if (end->si_code == CLD_EXITED)
		snprintf(text, DIOH_TEXT_BYTES, "the helper has ended with exit status %d",
		         end->si_status);
	else if (end->si_status == SIGALRM)
		snprintf(text, DIOH_TEXT_BYTES,
		         "the helper was ended by its attach timer: a file system did not answer");
	else
		snprintf(text, DIOH_TEXT_BYTES, "the helper was killed by signal %d (SIG%s)",
		         end->si_status, name ? name : "?");
}

void dioh_child_describe_end(pid_t pid, char text[DIOH_TEXT_BYTES])
{
	int64_t deadline = dioh_deadline(DESCRIBE_MS);

	for (;;) {
		siginfo_t end = { 0 };
		int left = dioh_deadline_left(deadline);

		if (waitid(P_PID, (id_t)pid, &end, WEXITED | WNOHANG | WNOWAIT) < 0)
			return;
		if (end.si_pid == pid) {
			describe(&end, text);
			return;
		}
		if (left == 0)
			return;
		await_end(pid, left);
	}
}
