/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * spawn.c - the helper as a child process.
 *
 * Owns the child between fork and exec: there, in a copy of a process that may have any number of threads, only
 * async-signal-safe calls are made, and whatever the child needs has been prepared before. The caller's other threads
 * may fork at any moment, and what they fork keeps copies of all descriptors: so nothing here waits for the end of a
 * file that somebody else might hold open. Trusts its caller; the program that it starts is whatever stands there under
 * this name. Called by client.c and, for sentences, by exchange.c.
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
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cleanup.h"
#include "deadline.h"

#define CONTROL_FD 3
#define CONTROL_ARGUMENT "--fd=3"
#define DUPLICATES_MIN 10 /* above the numbers that are about to be given out */
#define EXIT_NOT_STARTED 127
#define KERNEL_SIGSET_BYTES ((_NSIG - 1 + 7) / 8)
#define END_WITHOUT_HELLO_MS 1000
#define END_AFTER_KILL_MS 1000
#define WAIT_STEP_MS 5 /* where there is no pidfd */

#define PLACE DIOH_PLACE(SPAWN, SESSION, 0, DIOH_OFFSET_NONE)

/* ---- in the child ---------------------------------------------------------------------------- */

enum stage { STAGE_DESCRIPTORS, STAGE_PROGRAM };

/* What the child says of itself: without an error, and with the caller's end of the connection; or its last words. */
struct report {
	int error;
	int stage;
};

union fd_control {
	struct cmsghdr align;
	char bytes[CMSG_SPACE(sizeof(int))];
};

struct launch {
	const char *program;
	char **argv;
	int stderr_fd; /* -1: inherited */
	int report_fd; /* close-on-exec */
	int cgroup_fd; /* -1: the caller's cgroup */
};

/* `fd`: -1, or what goes along. */
static int send_report(int report_fd, struct report *report, int fd)
{
	union fd_control control = { .bytes = { 0 } };
	struct iovec iov = { report, sizeof(*report) };
	struct msghdr packet = { .msg_iov = &iov, .msg_iovlen = 1 };
	ssize_t sent;

	if (fd >= 0) {
		packet.msg_control = control.bytes;
		packet.msg_controllen = sizeof(control.bytes);
		control.align.cmsg_level = SOL_SOCKET;
		control.align.cmsg_type = SCM_RIGHTS;
		control.align.cmsg_len = CMSG_LEN(sizeof(fd));
		memcpy(CMSG_DATA(&control.align), &fd, sizeof(fd));
	}
	do
		sent = sendmsg(report_fd, &packet, MSG_NOSIGNAL);
	while (sent < 0 && errno == EINTR);
	return sent < 0 ? -errno : 0;
}

static _Noreturn void give_up(int report_fd, int stage)
{
	struct report report = { errno, stage };

	(void)send_report(report_fd, &report, -1);
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

/*
 * The connection is made here, and one end handed back. So the helper's end never exists in the caller's process, where
 * whatever another thread forks would keep a copy of it, and would hide that the helper has gone.
 */
static int make_connection(int report_fd)
{
	struct report report = { 0 };
	int pair[2];

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		give_up(report_fd, STAGE_DESCRIPTORS);
	if (send_report(report_fd, &report, pair[0]) < 0)
		give_up(report_fd, STAGE_DESCRIPTORS);
	close(pair[0]);
	return move_up(pair[1], report_fd);
}

static void arrange_fds(struct launch *launch)
{
	int stderr_flags = fcntl(STDERR_FILENO, F_GETFD);
	bool has_stderr = launch->stderr_fd >= 0 ||
	                  (stderr_flags >= 0 && !(stderr_flags & FD_CLOEXEC));
	int control_fd, null_fd;

	launch->report_fd = move_up(launch->report_fd, launch->report_fd);
	control_fd = make_connection(launch->report_fd);
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
	place_fd(control_fd, CONTROL_FD, launch->report_fd);
}

/* What rt_sigaction(2) reads, which sigaction(3) hides; large enough for each architecture's. */
struct kernel_sigaction {
	unsigned long words[8];
};

/*
 * Handlers end with exec, but what is ignored stays so, and a blocked SIGALRM would disarm the attach timer. Not by
 * sigaction(3): since glibc 2.41 it waits for a lock where the signal is SIGABRT, and the copy that clone3(2) made of it
 * may be held by a thread that does not exist here.
 */
static void reset_signals(void)
{
	const struct kernel_sigaction action = { .words = { 0 } }; /* SIG_DFL, no flags */
	sigset_t none;

	for (int number = 1; number < _NSIG; number++) /* refused for some, which are as they should be */
		(void)syscall(SYS_rt_sigaction, number, &action, NULL, KERNEL_SIGSET_BYTES);
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

static int await_report(int report_fd, int64_t deadline)
{
	struct pollfd report = { report_fd, POLLIN, 0 };
	int r;

	do
		r = poll(&report, 1, dioh_deadline_left(deadline));
	while (r < 0 && errno == EINTR);
	return r < 0 ? -errno : r == 0 ? -ETIMEDOUT : 0;
}

/* Without waiting. `ret_fd`: -1 if none came. -EPIPE: there is nobody any more who could report. */
static int receive_report(int report_fd, struct report *ret_report, int *ret_fd)
{
	union fd_control control;
	struct iovec iov = { ret_report, sizeof(*ret_report) };
	struct msghdr packet = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control.bytes,
		.msg_controllen = sizeof(control.bytes),
	};
	struct cmsghdr *cmsg;
	ssize_t got;

	do
		got = recvmsg(report_fd, &packet, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	while (got < 0 && errno == EINTR);
	if (got != (ssize_t)sizeof(*ret_report))
		return got < 0 ? -errno : -EPIPE;
	*ret_fd = -1;
	cmsg = CMSG_FIRSTHDR(&packet);
	if (cmsg && cmsg->cmsg_level == SOL_SOCKET && cmsg->cmsg_type == SCM_RIGHTS)
		memcpy(ret_fd, CMSG_DATA(cmsg), sizeof(*ret_fd));
	return 0;
}

static int take_connection(int report_fd, int64_t deadline, int *ret_control_fd)
{
	struct report report;
	int fd, r;

	r = await_report(report_fd, deadline);
	if (r == 0)
		r = receive_report(report_fd, &report, &fd);
	if (r == 0)
		r = -report.error;
	if (r < 0)
		return r;
	if (fd < 0)
		return -EMFILE; /* which the kernel does not tell here: it only leaves the descriptor out */
	*ret_control_fd = fd;
	return 0;
}

static int not_started(const struct launch *launch, int r, struct dioh_error *err)
{
	if (r == -ETIMEDOUT)
		return dioh_error_set(err, r, PLACE, "the process for %s has not run within %d s%s",
		                      launch->program, DIOH_HELLO_MS / 1000,
		                      launch->cgroup_fd >= 0 ? ": is its cgroup frozen?" : "");
	if (r == -EPIPE)
		return dioh_error_set(err, r, PLACE, "the process for %s has ended before it was that",
		                      launch->program);
	return dioh_error_errno(err, r, PLACE, "cannot arrange the descriptors of %s", launch->program);
}

static int launch_child(struct launch *launch, int64_t deadline, struct dioh_child *child,
                        struct dioh_error *err)
{
	DIOH_AUTO_FD int report_fd = -1;
	int pair[2], error, r;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		return dioh_error_errno(err, errno, PLACE, "no socket pair to start %s with",
		                        launch->program);
	report_fd = pair[0];
	launch->report_fd = pair[1];
	child->pid = fork_child(launch);
	error = errno;
	close(pair[1]);
	if (child->pid < 0)
		return dioh_error_errno(err, error, PLACE, "cannot start a process for %s%s",
		                        launch->program,
		                        launch->cgroup_fd >= 0 ? " in the cgroup" : "");
	r = take_connection(report_fd, deadline, &child->control_fd);
	if (r < 0) {
		dioh_child_abandon(child->pid);
		return not_started(launch, r, err);
	}
	child->report_fd = dioh_steal_fd(&report_fd);
	return 0;
}

int dioh_child_start(const struct dioh_spawn_options *options, int64_t deadline,
                     struct dioh_child *ret_child, struct dioh_error *err)
{
	static const struct dioh_spawn_options defaults = DIOH_SPAWN_OPTIONS_INIT;
	DIOH_AUTO_FREE char **argv = NULL;
	struct launch launch;

	if (!options)
		options = &defaults;
	launch = (struct launch){
		.program = options->program ? options->program : "diohelper",
		.stderr_fd = options->stderr_fd,
		.report_fd = -1,
		.cgroup_fd = options->cgroup_fd,
	};
	argv = make_argv(launch.program, options->args);
	if (!argv)
		return dioh_error_errno(err, ENOMEM, PLACE, "cannot start %s", launch.program);
	launch.argv = argv;
	ret_child->program = launch.program;
	return launch_child(&launch, deadline, ret_child, err);
}

int dioh_child_blame(const struct dioh_child *child, int r, struct dioh_error *err)
{
	struct report report;
	int fd;

	if (r != -EPIPE || receive_report(child->report_fd, &report, &fd) < 0)
		return r;
	return dioh_error_errno(err, report.error, PLACE,
	                        report.stage == STAGE_PROGRAM ? "cannot execute %s"
	                                                      : "cannot arrange the descriptors of %s",
	                        child->program);
}

/* ---- its end --------------------------------------------------------------------------------- */

/* Waits until the child can be reaped, or the time is over, or a signal came. */
static void await_end(pid_t pid, int timeout_ms)
{
	DIOH_AUTO_FD int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	struct pollfd end = { pidfd, POLLIN, 0 };

	if (pidfd < 0 && (timeout_ms < 0 || timeout_ms > WAIT_STEP_MS))
		timeout_ms = WAIT_STEP_MS;
	poll(&end, 1, timeout_ms); /* which passes over a descriptor that is none */
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

/* Nothing has been attached to such a helper, so no I/O of it can be in flight. */
void dioh_child_abandon(pid_t pid)
{
	if (dioh_child_wait(pid, END_WITHOUT_HELLO_MS, NULL) != -ETIMEDOUT)
		return;
	kill(pid, SIGKILL);
	(void)dioh_child_wait(pid, END_AFTER_KILL_MS, NULL); /* the kernel may hold on to it */
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

bool dioh_child_describe_end(pid_t pid, int timeout_ms, char text[DIOH_TEXT_BYTES])
{
	int64_t deadline = dioh_deadline(timeout_ms);

	for (;;) {
		siginfo_t end = { 0 };
		int left = dioh_deadline_left(deadline);

		if (waitid(P_PID, (id_t)pid, &end, WEXITED | WNOHANG | WNOWAIT) < 0)
			return false;
		if (end.si_pid == pid) {
			describe(&end, text);
			return true;
		}
		if (left == 0)
			return false;
		await_end(pid, left);
	}
}
