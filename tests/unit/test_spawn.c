/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test_spawn.c - dioh_spawn() and dioh_close(): a real child, which is this program run anew as
 * `serve --fd=3 SCRIPT [ARGUMENT]`. Scripts are as in tests/lib/fake_helper.h. What stands between the library and the
 * kernel forks in between, as another thread would, or keeps the child from its work.
 */
/* LDFLAGS: -Wl,--wrap=fork,--wrap=kill,--wrap=socketpair,--wrap=poll,--wrap=clock_gettime,--wrap=sigaction */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fake_helper.h"
#include "fixture.h"
#include "leap.h"
#include "spawn.h"

#define DELAY_MS 60
#define GONE_MS 2000

/* ---- between the library and the kernel -------------------------------------------------------- */

static struct {
	pid_t manager; /* we */
	bool forks;    /* dioh_spawn() comes between two forks of another thread */
	pid_t bystanders[2];
	bool stalls;          /* the child makes no connection */
	bool lacks_room;      /* a socket has room for short messages only */
	bool survives;        /* SIGKILL does not reach the child, as where the kernel holds on to it */
	pid_t survivor;
} world;

int __wrap_socketpair(int domain, int type, int protocol, int pair[2]);
int __real_socketpair(int domain, int type, int protocol, int pair[2]);
pid_t __wrap_fork(void);
pid_t __real_fork(void);
int __wrap_kill(pid_t pid, int number);
int __real_kill(pid_t pid, int number);
int __wrap_sigaction(int number, const struct sigaction *action, struct sigaction *ret_before);
int __real_sigaction(int number, const struct sigaction *action, struct sigaction *ret_before);

/* Somebody who has nothing to do with it, and a copy of everything that is open now. */
static pid_t fork_bystander(void)
{
	pid_t pid = __real_fork();

	if (pid != 0)
		return pid;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (;;)
		pause();
}

static void end_bystander(pid_t pid)
{
	assert_true(pid > 0);
	assert_int_equal(waitpid(pid, NULL, WNOHANG), 0);
	assert_int_equal(__real_kill(pid, SIGKILL), 0);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
}

pid_t __wrap_fork(void)
{
	pid_t pid;

	if (!world.forks)
		return __real_fork();
	world.bystanders[0] = fork_bystander();
	pid = __real_fork();
	if (pid != 0)
		world.bystanders[1] = fork_bystander();
	return pid;
}

int __wrap_socketpair(int domain, int type, int protocol, int pair[2])
{
	int r = __real_socketpair(domain, type, protocol, pair), bytes = 1;

	if (world.stalls && getpid() != world.manager) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;)
			pause();
	}
	for (int i = 0; i < 2 && r == 0 && world.lacks_room; i++)
		r = setsockopt(pair[i], SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes)); /* as few as there can be */
	return r;
}

/* As glibc's since 2.41, where another thread was just starting a process of its own. */
int __wrap_sigaction(int number, const struct sigaction *action, struct sigaction *ret_before)
{
	while (world.manager && getpid() != world.manager)
		pause();
	return __real_sigaction(number, action, ret_before);
}

int __wrap_kill(pid_t pid, int number)
{
	if (!world.survives)
		return __real_kill(pid, number);
	world.survivor = pid;
	return 0;
}

/* ---- the helper as a child ------------------------------------------------------------------- */

static const char *this_program;
static const char *child_argument;

/* Handlers cannot outlive exec; sanitizers bring some of their own. */
static bool no_signal_is_ignored_or_blocked(void)
{
	struct sigaction action;
	sigset_t mask;

	sigprocmask(SIG_SETMASK, NULL, &mask);
	for (int number = 1; number < 32; number++) {
		if (sigaction(number, NULL, &action) < 0 || action.sa_handler == SIG_IGN ||
		    sigismember(&mask, number) != 0)
			return false;
	}
	return true;
}

/* What is wrong with the world that it was born into, bit by bit. */
static void child_inspect(struct fake *fake)
{
	struct dioh_msg_status_reply findings = { .phase = DIOH_PHASE_ATTACH };
	bool clean = no_signal_is_ignored_or_blocked();

	fake_greet(fake);
	fake_take(fake, DIOH_MSG_STATUS);
	findings.transfers |= fake_is_device(0, DEV_NULL) ? 0 : 1;
	findings.transfers |= fake_is_device(1, DEV_NULL) ? 0 : 2;
	findings.transfers |= fcntl(3, F_GETFD) == 0 ? 0 : 4;
	findings.transfers |= clean ? 0 : 8;
	findings.transfers |= fcntl(2, F_GETFD) == 0 ? 0 : 16;
	findings.transfers |= write(2, "here\n", 5) == 5 ? 0 : 32;
	findings.transfers |= getppid() > 0 && child_argument ? 0 : 64;
	fake_reply(fake, &findings, sizeof(findings));
}

static void child_greet(struct fake *fake)
{
	fake_greet(fake);
}

static void child_leave_greeting(struct fake *fake)
{
	fake_greet(fake);
	_exit(5);
}

static void child_die(struct fake *fake)
{
	fake_greet(fake);
	fake_take(fake, DIOH_MSG_STATUS);
	raise(atoi(child_argument));
}

static void child_hang_up(struct fake *fake)
{
	fake_greet(fake);
	fake_take(fake, DIOH_MSG_STATUS);
	fake_hang_up(fake);
	for (;;)
		pause();
}

static void child_refuse(struct fake *fake)
{
	fake_take(fake, DIOH_MSG_HELLO);
	fake_refuse(fake, ENOTSUP, "not with me");
}

static void child_refuse_and_stay(struct fake *fake)
{
	child_refuse(fake);
	for (;;)
		pause();
}

static void child_linger(struct fake *fake)
{
	fake_greet(fake);
	fake_await_hangup(fake);
	for (;;)
		pause();
}

static void child_say_nothing(struct fake *fake)
{
	(void)fake;
	for (;;)
		pause();
}

/* A long message each way. */
static void child_talk(struct fake *fake)
{
	const struct dioh_msg_image_reply reply = { 0 };
	static const uint8_t bytes[DIOH_PAYLOAD_BYTES_MAX];

	fake_greet(fake);
	fake_take(fake, DIOH_MSG_WRITE_HEADER);
	fake_expect(fake, fake->in.header.size == DIOH_PAYLOAD_BYTES_MAX, "a piece of the longest size");
	fake_reply(fake, &reply, sizeof(reply));
	fake_take(fake, DIOH_MSG_READ_HEADER);
	fake_reply(fake, bytes, sizeof(bytes));
}

static void child_leave(struct fake *fake)
{
	(void)fake;
	_exit(atoi(child_argument));
}

static const struct {
	const char *name;
	void (*script)(struct fake *fake);
} child_scripts[] = {
	{ "inspect", child_inspect },
	{ "greet", child_greet },
	{ "leave-greeting", child_leave_greeting },
	{ "die", child_die },
	{ "hang-up", child_hang_up },
	{ "refuse", child_refuse },
	{ "refuse-and-stay", child_refuse_and_stay },
	{ "linger", child_linger },
	{ "say-nothing", child_say_nothing },
	{ "talk", child_talk },
	{ "leave", child_leave },
};

/* serve --fd=3 SCRIPT [ARGUMENT] */
static int child_main(int argc, char **argv)
{
	static struct fake fake = { .fd = 3 };

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	dioh_channel_make_room(fake.fd);
	if (argc < 4 || strcmp(argv[2], "--fd=3") != 0)
		return 90;
	child_argument = argc > 4 ? argv[4] : NULL;
	for (size_t i = 0; i < sizeof(child_scripts) / sizeof(child_scripts[0]); i++) {
		if (strcmp(argv[3], child_scripts[i].name) != 0)
			continue;
		child_scripts[i].script(&fake);
		fake_await_hangup(&fake);
		return fake.failure[0] == '\0' ? 7 : 91;
	}
	return 92;
}

static struct dioh_spawn_options child_options(const char *const *args)
{
	struct dioh_spawn_options options = DIOH_SPAWN_OPTIONS_INIT;

	options.program = this_program;
	options.args = args;
	return options;
}

static void spawn(struct client *f, const char *const *args)
{
	struct dioh_spawn_options options = child_options(args);

	assert_int_equal(dioh_spawn(&options, 0, &f->session, &f->err), 0);
	assert_true(dioh_session_pid(f->session) > 0);
}

static void assert_no_child(void)
{
	assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
	assert_int_equal(errno, ECHILD);
}

static void close_child(struct client *f, int exit_status)
{
	int wait_status = -1;

	assert_int_equal(dioh_close(f->session, 5000, &wait_status), 0);
	assert_true(WIFEXITED(wait_status));
	assert_int_equal(WEXITSTATUS(wait_status), exit_status);
	assert_no_child();
}

static void assert_findings(struct client *f, uint32_t findings)
{
	struct dioh_msg_status_reply now = { 0 };

	assert_int_equal(dioh_status(f->session, &now, &f->err), 0);
	assert_int_equal(now.transfers, findings);
}

static void do_nothing(int number)
{
	(void)number;
}

static void test_spawn(void **state)
{
	struct client *f = *state;
	static const char *const args[] = { "inspect", "argument", NULL };
	struct sigaction ignore = { .sa_handler = SIG_IGN }, handle = { .sa_handler = do_nothing };
	struct sigaction back = { .sa_handler = SIG_DFL };
	sigset_t block, mask;

	sigaction(SIGUSR1, &ignore, NULL);
	sigaction(SIGUSR2, &handle, NULL);
	sigemptyset(&block);
	sigaddset(&block, SIGTERM);
	sigprocmask(SIG_BLOCK, &block, NULL);
	spawn(f, args);
	sigprocmask(SIG_SETMASK, NULL, &mask); /* ours is as it was */
	assert_int_equal(sigismember(&mask, SIGTERM), 1);
	assert_int_equal(sigismember(&mask, SIGUSR1), 0);
	sigprocmask(SIG_UNBLOCK, &block, NULL);
	sigaction(SIGUSR1, &back, NULL);
	sigaction(SIGUSR2, &back, NULL);

	assert_int_equal(fcntl(dioh_session_fd(f->session), F_GETFD), FD_CLOEXEC);
	assert_findings(f, 0);
	client_assert_untouched(f);
	close_child(f, 7);
}

static void assert_stderr_arrives(struct client *f, const struct dioh_spawn_options *options,
                                  int read_fd)
{
	char line[16] = "";

	assert_int_equal(dioh_spawn(options, 0, &f->session, &f->err), 0);
	assert_findings(f, 0);
	assert_int_equal(read(read_fd, line, sizeof(line)), 5);
	assert_string_equal(line, "here\n");
	close_child(f, 7);
}

static void test_spawn_with_stderr(void **state)
{
	struct client *f = *state;
	static const char *const args[] = { "inspect", "argument", NULL };
	struct dioh_spawn_options options = child_options(args);
	int pipe_fds[2], saved_fd = dup(STDOUT_FILENO);

	assert_int_equal(pipe(pipe_fds), 0);
	assert_int_equal(fcntl(pipe_fds[0], F_SETFL, O_NONBLOCK), 0);
	options.stderr_fd = pipe_fds[1];
	assert_stderr_arrives(f, &options, pipe_fds[0]);
	/* A number that the helper has another use for. */
	fflush(stdout);
	assert_int_equal(dup2(pipe_fds[1], STDOUT_FILENO), STDOUT_FILENO);
	options.stderr_fd = STDOUT_FILENO;
	assert_stderr_arrives(f, &options, pipe_fds[0]);
	assert_int_equal(dup2(saved_fd, STDOUT_FILENO), STDOUT_FILENO);
	assert_int_equal(close(pipe_fds[0]) | close(pipe_fds[1]) | close(saved_fd), 0);
}

/* 0: right; else the line where it went wrong. */
static int spawn_without_standard_descriptors(const struct dioh_spawn_options *options,
                                              unsigned closed)
{
	struct dioh_spawn_options nothing = DIOH_SPAWN_OPTIONS_INIT;
	struct dioh_msg_status_reply now = { 0 };
	struct dioh_session *session;
	int wait_status = -1;

	nothing.program = "/nowhere/diohelper";
	for (int fd = 0; fd < 4; fd++)
		if (closed & 1u << fd)
			close(fd);
	if (dioh_spawn(&nothing, 0, &session, NULL) != -ENOENT)
		return 4;
	if (dioh_spawn(options, 0, &session, NULL) < 0)
		return 1;
	if (dioh_status(session, &now, NULL) < 0)
		return 2;
	if (now.transfers != 0)
		return 100 + (int)now.transfers;
	if (dioh_close(session, 5000, &wait_status) < 0 || wait_status != 7 << 8)
		return 3;
	return 0;
}

/* Whatever numbers the library's own descriptors get, the helper has its own where they belong. */
static void test_spawn_without_standard_descriptors(void **state)
{
	static const char *const args[] = { "inspect", "argument", NULL };
	struct dioh_spawn_options options = child_options(args);

	(void)state;
	for (unsigned closed = 1; closed < 16; closed++) {
		int wait_status;
		pid_t pid = fork();

		assert_true(pid >= 0);
		if (pid == 0)
			_exit(spawn_without_standard_descriptors(&options, closed));
		assert_int_equal(waitpid(pid, &wait_status, 0), pid);
		if (wait_status != 0)
			print_error("closed: 0x%x\n", closed);
		assert_int_equal(wait_status, 0);
	}
}

static void spawn_in_vain(struct client *f, const struct dioh_spawn_options *options, int code,
                          const char *text)
{
	struct dioh_session *session = (void *)f;

	assert_int_equal(dioh_spawn(options, 0, &session, &f->err), -code);
	assert_int_equal(f->err.code, code);
	if (!strstr(f->err.text, text))
		print_error("%s\n", f->err.text);
	assert_non_null(strstr(f->err.text, text));
	assert_ptr_equal(session, f);
	assert_no_child();
}

static void test_spawn_of_nothing(void **state)
{
	struct client *f = *state;
	struct dioh_spawn_options options = DIOH_SPAWN_OPTIONS_INIT;
	char *path = strdup(getenv("PATH") ? getenv("PATH") : "/bin");

	options.program = "/nowhere/diohelper";
	spawn_in_vain(f, &options, ENOENT, "cannot execute /nowhere/diohelper: No such file");
	assert_int_equal(f->err.operation, DIOH_OP_SPAWN);
	options.program = "/etc/passwd";
	spawn_in_vain(f, &options, EACCES, "/etc/passwd: Permission denied");
	options.program = "/";
	spawn_in_vain(f, &options, EACCES, "cannot execute /");
	assert_int_equal(setenv("PATH", "/nowhere", 1), 0);
	options.program = NULL;
	spawn_in_vain(f, &options, ENOENT, "cannot execute diohelper: No such file");
	spawn_in_vain(f, NULL, ENOENT, "cannot execute diohelper: No such file");
	assert_int_equal(setenv("PATH", path, 1), 0);
	free(path);
}

/* Through PATH, by a name without a slash. */
static void test_spawn_through_path(void **state)
{
	struct client *f = *state;
	static const char *const args[] = { "greet", NULL };
	struct dioh_spawn_options options = child_options(args);
	char *path = strdup(getenv("PATH") ? getenv("PATH") : "/bin");
	char *directory = strdup(this_program), *slash = strrchr(directory, '/');

	*slash = '\0';
	options.program = slash + 1;
	assert_int_equal(setenv("PATH", directory, 1), 0);
	assert_int_equal(dioh_spawn(&options, 0, &f->session, &f->err), 0);
	assert_int_equal(setenv("PATH", path, 1), 0);
	close_child(f, 7);
	free(path);
	free(directory);
}

static void test_spawn_of_what_does_not_answer(void **state)
{
	struct client *f = *state;
	static const char *const leave[] = { "leave", "2", NULL };
	static const char *const refuse_it[] = { "refuse", NULL };
	static const char *const stay[] = { "refuse-and-stay", NULL };
	struct dioh_spawn_options options = child_options(leave);
	uint64_t begun;

	spawn_in_vain(f, &options, EPIPE, "the helper has ended with exit status 2");
	options.args = refuse_it;
	spawn_in_vain(f, &options, ENOTSUP, "not with me");
	options.args = stay;
	begun = now_ms();
	spawn_in_vain(f, &options, ENOTSUP, "not with me"); /* and its child is gone all the same */
	assert_true(now_ms() - begun >= 1000);
}

/* ---- what other threads fork ------------------------------------------------------------------- */

/*
 * Copies of the helper's end of the connection would hide that it is gone, and of a pipe that it was executed. (If they
 * do, this test does not end.)
 */
static void test_spawn_beside_forks(void **state)
{
	struct client *f = *state;
	static const char *const args[] = { "greet", NULL };
	struct dioh_event event;
	pid_t pid;
	int r;

	world.forks = true;
	spawn(f, args);
	world.forks = false;
	pid = dioh_session_pid(f->session);
	assert_int_equal(kill(pid, SIGKILL), 0);
	r = dioh_poll(f->session, &event, -1, &f->err);
	for (int i = 0; i < 2; i++)
		end_bystander(world.bystanders[i]);
	assert_int_equal(r, -EPIPE);
	assert_int_equal(dioh_close(f->session, -1, NULL), 0);
	assert_no_child();
}

/* Nor do they keep an error from its caller. */
static void test_spawn_of_nothing_beside_forks(void **state)
{
	struct client *f = *state;
	struct dioh_spawn_options options = DIOH_SPAWN_OPTIONS_INIT;
	struct dioh_session *session;
	int r;

	options.program = "/nowhere/diohelper";
	world.forks = true;
	r = dioh_spawn(&options, 0, &session, &f->err);
	world.forks = false;
	for (int i = 0; i < 2; i++)
		end_bystander(world.bystanders[i]);
	assert_int_equal(r, -ENOENT);
	assert_string_equal(f->err.text, "cannot execute /nowhere/diohelper: No such file or directory");
	assert_no_child();
}

/* It closes the connection in whoever else has it. */
static void test_close_beside_a_fork(void **state)
{
	struct client *f = *state;
	static const char *const args[] = { "greet", NULL };
	int wait_status = -1, r;
	pid_t bystander;

	spawn(f, args);
	bystander = fork_bystander();
	r = dioh_close(f->session, 10000, &wait_status);
	end_bystander(bystander);
	assert_int_equal(r, 0);
	assert_int_equal(WEXITSTATUS(wait_status), 7);
	assert_no_child();
}

/* ---- who never answers ------------------------------------------------------------------------- */

/* The limit is for both waits together: the first leaps, or the second. */
static void spawn_and_leap(struct client *f, const char *script, unsigned wait, const char *text)
{
	const char *const args[] = { script, NULL };
	struct dioh_spawn_options options = child_options(args);

	leap_at(wait);
	spawn_in_vain(f, &options, ETIMEDOUT, text);
	assert_true(leap_was_made());
}

static void test_spawn_of_who_says_nothing(void **state)
{
	struct client *f = *state;

	spawn_and_leap(f, "say-nothing", 2, "HELLO was not answered within 30 s");
	assert_int_equal(f->err.object, DIOH_OBJECT_SESSION);
}

/* As in a cgroup that is frozen. */
static void test_spawn_of_what_does_not_run(void **state)
{
	struct client *f = *state;

	world.stalls = true;
	spawn_and_leap(f, "greet", 1, "has not run within 30 s");
	world.stalls = false;
	assert_int_equal(f->err.operation, DIOH_OP_SPAWN);
}

/* Nobody waits for ever for what even SIGKILL does not end: it is left to whoever reaps our children. */
static void test_spawn_leaves_what_does_not_end(void **state)
{
	struct client *f = *state;
	static const char *const args[] = { "say-nothing", NULL };
	struct dioh_spawn_options options = child_options(args);
	struct dioh_session *session = NULL;

	leap_at(2);
	world.survives = true;
	assert_int_equal(dioh_spawn(&options, 0, &session, &f->err), -ETIMEDOUT);
	world.survives = false;
	assert_null(session);
	assert_true(world.survivor > 0);
	end_bystander(world.survivor);
	assert_no_child();
}

/* Where net.core.wmem_default is small, and the library asks for more. */
static void test_long_messages_have_room(void **state)
{
	struct client *f = *state;
	static const char *const args[] = { "talk", NULL };
	static uint8_t bytes[DIOH_PAYLOAD_BYTES_MAX];
	uint64_t count = 0;

	world.lacks_room = true;
	spawn(f, args);
	world.lacks_room = false;
	assert_int_equal(dioh_write_header(f->session, 0, bytes,
	                                   sizeof(bytes) - sizeof(struct dioh_msg_write_header), &f->err), 0);
	assert_int_equal(dioh_read_header(f->session, 0, bytes, sizeof(bytes), &count, &f->err), 0);
	assert_int_equal(count, sizeof(bytes));
	close_child(f, 7);
}

/* ---- its end ------------------------------------------------------------------------------------ */

static void assert_death(struct client *f, int number, const char *text)
{
	char argument[16];
	const char *const args[] = { "die", argument, NULL };
	struct dioh_msg_status_reply now;
	int wait_status = -1;

	snprintf(argument, sizeof(argument), "%d", number);
	spawn(f, args);
	assert_int_equal(dioh_status(f->session, &now, &f->err), -EPIPE);
	assert_int_equal(f->err.object, DIOH_OBJECT_SESSION);
	if (!strstr(f->err.text, text))
		print_error("%s\n", f->err.text);
	assert_non_null(strstr(f->err.text, text));
	client_assert_broken(f, EPIPE);
	assert_int_equal(dioh_close(f->session, 5000, &wait_status), 0);
	assert_true(WIFSIGNALED(wait_status)); /* telling how it ended did not reap it */
	assert_int_equal(WTERMSIG(wait_status), number);
	assert_no_child();
}

static void test_death_is_described(void **state)
{
	struct client *f = *state;

	assert_death(f, SIGALRM, "ended by its attach timer: a file system did not answer");
	assert_death(f, SIGKILL, "killed by signal 9 (SIGKILL)");
	assert_death(f, SIGTERM, "killed by signal 15 (SIGTERM)");
}

/* Also when it had ended before it was asked anything. */
static void test_end_between_calls_is_described(void **state)
{
	struct client *f = *state;
	static const char *const args[] = { "leave-greeting", NULL };
	struct dioh_msg_status_reply now;
	siginfo_t info;

	spawn(f, args);
	assert_int_equal(waitid(P_PID, (id_t)dioh_session_pid(f->session), &info, WEXITED | WNOWAIT),
	                 0);
	assert_int_equal(dioh_status(f->session, &now, &f->err), -EPIPE);
	assert_string_equal(f->err.text, "the helper has ended with exit status 5");
	client_assert_broken(f, EPIPE);
	assert_string_equal(f->err.text, "the helper has ended with exit status 5");
	close_child(f, 5);
}

/* Who must not wait gets what is known; there may be more to be known later. */
static void test_end_is_described_without_waiting(void **state)
{
	struct client *f = *state;
	static const char *const args[] = { "hang-up", NULL };
	struct dioh_msg_header status = { .type = DIOH_MSG_STATUS, .id = 4711 };
	struct pollfd end;
	struct dioh_event event;
	siginfo_t info;
	unsigned waits;
	pid_t pid;

	spawn(f, args);
	pid = dioh_session_pid(f->session);
	end = (struct pollfd){ dioh_session_fd(f->session), POLLIN, 0 };
	assert_int_equal(dioh_channel_send(end.fd, &status, NULL, NULL, 0, 0, NULL), 0);
	assert_int_equal(poll(&end, 1, -1), 1);
	waits = leap_count_waits();
	assert_int_equal(dioh_poll(f->session, &event, 0, &f->err), -EPIPE);
	assert_int_equal(leap_count_waits(), waits);
	assert_string_equal(f->err.text, "the peer has closed the control connection");
	assert_int_equal(kill(pid, SIGKILL), 0);
	assert_int_equal(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT), 0);
	assert_int_equal(dioh_poll(f->session, &event, 0, &f->err), -EPIPE);
	assert_string_equal(f->err.text, "the helper was killed by signal 9 (SIGKILL)");
	client_assert_broken(f, EPIPE);
	assert_int_equal(dioh_close(f->session, -1, NULL), 0);
}

/* It lives, but there is nothing to say to it any more. Nobody waits for its end then. */
static void test_hangup_is_no_end(void **state)
{
	struct client *f = *state;
	static const char *const args[] = { "hang-up", NULL };
	struct dioh_msg_status_reply now;
	pid_t pid;

	spawn(f, args);
	pid = dioh_session_pid(f->session);
	assert_int_equal(dioh_status(f->session, &now, &f->err), -EPIPE);
	assert_string_equal(f->err.text, "the peer has closed the control connection");
	assert_int_equal(kill(pid, SIGKILL), 0);
	assert_int_equal(dioh_close(f->session, -1, NULL), 0);
}

static void test_close_in_time_or_not(void **state)
{
	struct client *f = *state;
	static const char *const args[] = { "linger", NULL };
	int wait_status = 4711;
	pid_t pid;
	uint64_t begun;

	spawn(f, args);
	pid = dioh_session_pid(f->session);
	begun = now_ms();
	client_alarms(true); /* which do not shorten it */
	assert_int_equal(dioh_close(f->session, 2 * DELAY_MS, &wait_status), -ETIMEDOUT);
	client_alarms(false);
	assert_true(now_ms() - begun >= 2 * DELAY_MS);
	assert_int_equal(wait_status, 4711);
	assert_int_equal(kill(pid, SIGKILL), 0); /* it was not killed, and is ours to reap */
	assert_int_equal(waitpid(pid, &wait_status, 0), pid);
	assert_int_equal(WTERMSIG(wait_status), SIGKILL);

	spawn(f, args);
	pid = dioh_session_pid(f->session);
	assert_int_equal(kill(pid, SIGKILL), 0);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
	assert_int_equal(dioh_close(f->session, -1, &wait_status), -ECHILD);
}

static void test_close_waits_for_ever(void **state)
{
	struct client *f = *state;
	static const char *const args[] = { "greet", NULL };
	int wait_status = 0;

	spawn(f, args);
	assert_int_equal(dioh_close(f->session, -1, &wait_status), 0);
	assert_int_equal(WEXITSTATUS(wait_status), 7);
	spawn(f, args);
	assert_int_equal(dioh_close(f->session, -1, NULL), 0);
	assert_no_child();
}

static void test_spawn_in_no_cgroup(void **state)
{
	struct client *f = *state;
	static const char *const args[] = { "inspect", "argument", NULL };
	struct dioh_spawn_options options = child_options(args);
	struct dioh_session *session = NULL;
	int directory_fd = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	options.cgroup_fd = directory_fd;
	assert_true(dioh_spawn(&options, 0, &session, &f->err) < 0);
	assert_null(session);
	assert_non_null(strstr(f->err.text, "in the cgroup"));
	assert_no_child();
	close(directory_fd);
}

static char cgroup[128]; /* of our own; "": there is none */

/* A cgroup v2 directory, removed by the test's teardown; -1: not to be had here. */
static int make_cgroup(void)
{
	static const char *const roots[] = { "/sys/fs/cgroup", "/sys/fs/cgroup/unified" };

	for (size_t i = 0; i < sizeof(roots) / sizeof(roots[0]); i++) {
		char controllers[64];

		snprintf(controllers, sizeof(controllers), "%s/cgroup.procs", roots[i]);
		snprintf(cgroup, sizeof(cgroup), "%s/dioh-test-%d", roots[i], (int)getpid());
		if (access(controllers, F_OK) == 0 && mkdir(cgroup, 0755) == 0)
			return open(cgroup, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	}
	cgroup[0] = '\0';
	return -1;
}

/* Of a test that failed something may live in it still. */
static bool remove_cgroup(void)
{
	char path[sizeof(cgroup) + sizeof("/cgroup.kill")];
	int r = rmdir(cgroup), fd;

	if (r == 0)
		return true;
	snprintf(path, sizeof(path), "%s/cgroup.kill", cgroup);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd >= 0 && write(fd, "1", 1) == 1)
		for (unsigned ms = 0; ms < GONE_MS && (r = rmdir(cgroup)) < 0 && errno == EBUSY; ms++)
			usleep(1000);
	if (fd >= 0)
		close(fd);
	return r == 0;
}

static int cgroup_tear_down(void **state)
{
	if (cgroup[0] && !remove_cgroup())
		print_error("%s cannot be removed: %s\n", cgroup, strerror(errno));
	cgroup[0] = '\0';
	return client_tear_down(state);
}

static bool is_in_cgroup(pid_t pid, const char *name)
{
	char path[64], line[512];
	bool found = false;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/%d/cgroup", (int)pid);
	file = fopen(path, "r");
	assert_non_null(file);
	while (fgets(line, sizeof(line), file))
		found = found || (strncmp(line, "0::", 3) == 0 && strstr(line, name));
	fclose(file);
	return found;
}

static void test_spawn_in_cgroup(void **state)
{
	struct client *f = *state;
	static const char *const args[] = { "inspect", "argument", NULL };
	struct dioh_spawn_options options = child_options(args);
	int r;

	options.cgroup_fd = make_cgroup();
	if (options.cgroup_fd < 0) {
		print_message("skipped: no cgroup v2 directory can be made here\n");
		skip();
	}
	r = dioh_spawn(&options, 0, &f->session, &f->err);
	close(options.cgroup_fd);
	if (r == -ENOSYS) { /* what valgrind answers */
		print_message("skipped: no clone3(2) here\n");
		skip();
	}
	assert_int_equal(r, 0);
	assert_true(is_in_cgroup(dioh_session_pid(f->session), strrchr(cgroup, '/')));
	assert_findings(f, 0);
	close_child(f, 7);
	assert_int_equal(rmdir(cgroup), 0);
	cgroup[0] = '\0';
}

#define TEST(function) cmocka_unit_test_setup_teardown(function, client_set_up, client_tear_down)

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		TEST(test_spawn),
		TEST(test_spawn_with_stderr),
		TEST(test_spawn_without_standard_descriptors),
		TEST(test_spawn_of_nothing),
		TEST(test_spawn_through_path),
		TEST(test_spawn_of_what_does_not_answer),
		TEST(test_spawn_beside_forks),
		TEST(test_spawn_of_nothing_beside_forks),
		TEST(test_close_beside_a_fork),
		TEST(test_spawn_of_who_says_nothing),
		TEST(test_spawn_of_what_does_not_run),
		TEST(test_spawn_leaves_what_does_not_end),
		TEST(test_long_messages_have_room),
		TEST(test_death_is_described),
		TEST(test_end_between_calls_is_described),
		TEST(test_end_is_described_without_waiting),
		TEST(test_hangup_is_no_end),
		TEST(test_close_in_time_or_not),
		TEST(test_close_waits_for_ever),
		TEST(test_spawn_in_no_cgroup),
		cmocka_unit_test_setup_teardown(test_spawn_in_cgroup, client_set_up, cgroup_tear_down),
	};
	static char path[4096];

	if (argc > 1 && strcmp(argv[1], "serve") == 0)
		return child_main(argc, argv);
	if (readlink("/proc/self/exe", path, sizeof(path) - 1) < 0)
		return 1;
	this_program = path;
	world.manager = getpid();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
