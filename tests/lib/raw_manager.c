/* SPDX-License-Identifier: LGPL-2.1-or-later */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "raw_manager.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <inttypes.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/io_uring.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cleanup.h"
#include "fixture.h"
#include "proto.h"

#define END_MS 5000
#define ANSWER_MS 10000
#define FDS_MAX 253 /* SCM_MAX_FD */
#define HIGH_FD 100

#define check_at(condition, file, line) _assert_true((condition) ? 1 : 0, #condition, file, line)

/* ---- the process ----------------------------------------------------------------------------- */

#define ARGUMENT(index) (offsetof(struct seccomp_data, args) + (index) * sizeof(uint64_t)) /* its lower half here */

/* Whoever calls `number` (with that value as its argument, unless it is negative) is told `error`. */
static void refuse_call(unsigned number, unsigned argument, int value, int error)
{
	const struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 3),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, ARGUMENT(argument)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)value, 0, value < 0 ? 0 : 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (unsigned)error),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	const struct sock_fprog program = { sizeof(code) / sizeof(code[0]), (struct sock_filter *)(uintptr_t)code };

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ||
	    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) < 0)
		_exit(99);
}

void raw_refuse_calls(const struct raw_options *options)
{
	if (options->no_io_uring)
		refuse_call(SYS_io_uring_setup, 0, -1, EPERM);
	if (options->no_landlock)
		refuse_call(SYS_landlock_create_ruleset, 0, -1, ENOSYS);
	if (options->no_restrictions)
		refuse_call(SYS_io_uring_register, 1, IORING_REGISTER_RESTRICTIONS, EINVAL);
	if (options->no_close_range)
		refuse_call(SYS_close_range, 0, -1, EPERM);
	if (options->no_seccomp) { /* last, since it takes the call that it refuses */
		refuse_call(SYS_seccomp, 0, -1, EPERM);
		refuse_call(SYS_prctl, 0, PR_SET_SECCOMP, EPERM);
	}
}

static void block_alarm(void)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGALRM);
	sigprocmask(SIG_BLOCK, &set, NULL);
	signal(SIGALRM, SIG_IGN);
}

static void prepare_child(const struct raw_options *options)
{
	struct rlimit limit = { options->descriptors_max, options->descriptors_max };

	if (options->alarm_blocked)
		block_alarm();
	if (options->descriptors_max && setrlimit(RLIMIT_NOFILE, &limit) < 0)
		_exit(99);
	if (options->user && geteuid() == 0 &&
	    (setgroups(0, NULL) < 0 || setresgid(options->user, options->user, options->user) < 0 ||
	     setresuid(options->user, options->user, options->user) < 0))
		_exit(99);
	raw_refuse_calls(options);
}

static _Noreturn void run_helper(int fd, const struct raw_options *options)
{
	const char *argv[16] = { fixture_helper(), "serve" };
	char number[24];
	unsigned n = 2;
	int moved = fcntl(fd, F_DUPFD_CLOEXEC, HIGH_FD);
	int program;

	snprintf(number, sizeof(number), "--fd=%d", options->fd_number);
	argv[n++] = number;
	for (unsigned i = 0; options->args && options->args[i] && n < 15; i++)
		argv[n++] = options->args[i];
	if (moved < 0 || dup2(moved, options->fd_number) < 0)
		_exit(99);
	/* By descriptor: another user may not come through the directories. */
	program = open(argv[0], O_PATH | O_CLOEXEC);
	prepare_child(options);
	fexecve(program, (char **)(uintptr_t)argv, environ);
	_exit(99);
}

void raw_start(struct raw_manager *m, const struct raw_options *options)
{
	static const struct raw_options defaults = RAW_OPTIONS_INIT;
	int pair[2];

	memset(m, 0, sizeof(*m));
	m->memfd = m->pipe_fd = -1;
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
	m->fd = pair[0];
	fflush(NULL);
	m->pid = fork();
	assert_true(m->pid >= 0);
	if (m->pid == 0)
		run_helper(pair[1], options ? options : &defaults);
	close(pair[1]);
}

void raw_hang_up(struct raw_manager *m)
{
	if (m->fd >= 0)
		close(m->fd);
	m->fd = -1;
}

int raw_wait(struct raw_manager *m)
{
	DIOH_AUTO_FD int pidfd = (int)syscall(SYS_pidfd_open, m->pid, 0);
	struct pollfd end = { pidfd, POLLIN, 0 };
	int status = -1;

	assert_true(pidfd >= 0);
	if (poll(&end, 1, END_MS) == 0) {
		raw_drop(m);
		fail_msg("the helper has not ended within %d ms", END_MS);
	}
	assert_int_equal(waitpid(m->pid, &status, 0), m->pid);
	m->pid = 0;
	raw_drop(m);
	return status;
}

void raw_ends(struct raw_manager *m, int status)
{
	static struct raw_packet packet;
	int wait_status;

	while (m->fd >= 0 && raw_receive(m, &packet))
		;
	wait_status = raw_wait(m);
	if (!WIFEXITED(wait_status) || WEXITSTATUS(wait_status) != status)
		fail_msg("the helper ended with wait status 0x%x, not with exit status %d",
		         (unsigned)wait_status, status);
}

void raw_drop(struct raw_manager *m)
{
	raw_hang_up(m);
	dioh_cleanup_fd(&m->memfd);
	dioh_cleanup_fd(&m->pipe_fd);
	m->memfd = m->pipe_fd = -1;
	if (m->pid <= 0)
		return;
	kill(m->pid, SIGKILL);
	waitpid(m->pid, NULL, 0);
	m->pid = 0;
}

void raw_stop(const struct raw_manager *m)
{
	int status;

	assert_int_equal(kill(m->pid, SIGSTOP), 0);
	assert_int_equal(waitpid(m->pid, &status, WUNTRACED), m->pid);
	assert_true(WIFSTOPPED(status));
}

void raw_continue(const struct raw_manager *m)
{
	assert_int_equal(kill(m->pid, SIGCONT), 0);
}

/* ---- packets --------------------------------------------------------------------------------- */

bool raw_send(struct raw_manager *m, const void *bytes, size_t count, const int *fds,
              unsigned fd_count)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(FDS_MAX * sizeof(int))];
	} control = { 0 };
	struct iovec iov = { (void *)(uintptr_t)bytes, count };
	struct msghdr packet = { .msg_iov = &iov, .msg_iovlen = 1 };
	ssize_t sent;

	assert_true(fd_count <= FDS_MAX);
	if (fd_count > 0) {
		packet.msg_control = control.bytes;
		packet.msg_controllen = CMSG_SPACE(fd_count * sizeof(int));
		*CMSG_FIRSTHDR(&packet) = (struct cmsghdr){
			.cmsg_len = CMSG_LEN(fd_count * sizeof(int)),
			.cmsg_level = SOL_SOCKET,
			.cmsg_type = SCM_RIGHTS,
		};
		memcpy(CMSG_DATA(CMSG_FIRSTHDR(&packet)), fds, fd_count * sizeof(int));
	}
	sent = sendmsg(m->fd, &packet, MSG_NOSIGNAL);
	if (sent < 0 && (errno == EPIPE || errno == ECONNRESET))
		return false;
	assert_int_equal(sent, (ssize_t)count);
	return true;
}

uint32_t raw_request_fds(struct raw_manager *m, uint32_t type, const void *payload, size_t size,
                         const int *fds, unsigned fd_count)
{
	static uint8_t bytes[sizeof(struct dioh_msg_header) + DIOH_PAYLOAD_BYTES_MAX];
	const struct dioh_msg_header header = { .type = type, .id = ++m->last_id,
		                                .size = (uint32_t)size };

	memcpy(bytes, &header, sizeof(header));
	if (size > 0)
		memcpy(bytes + sizeof(header), payload, size);
	(void)raw_send(m, bytes, sizeof(header) + size, fds, fd_count);
	return header.id;
}

uint32_t raw_request(struct raw_manager *m, uint32_t type, const void *payload, size_t size)
{
	return raw_request_fds(m, type, payload, size, NULL, 0);
}

bool raw_receive(struct raw_manager *m, struct raw_packet *ret_packet)
{
	struct iovec iov[2] = { { &ret_packet->header, sizeof(ret_packet->header) },
		                { ret_packet->payload, sizeof(ret_packet->payload) } };
	struct msghdr packet = { .msg_iov = iov, .msg_iovlen = 2 };
	struct pollfd readable = { m->fd, POLLIN, 0 };
	ssize_t received;

	if (poll(&readable, 1, ANSWER_MS) == 0)
		fail_msg("nothing came within %d ms", ANSWER_MS);
	do
		received = recvmsg(m->fd, &packet, 0);
	while (received < 0 && errno == ECONNRESET); /* told once, before the last packets */
	assert_true(received >= 0);
	if (received == 0)
		return false;
	assert_false(packet.msg_flags & MSG_TRUNC);
	assert_int_equal(received, sizeof(ret_packet->header) + ret_packet->header.size);
	ret_packet->bytes = (size_t)received;
	return true;
}

/* ---- replies --------------------------------------------------------------------------------- */

static void keep_event(struct raw_manager *m, const struct raw_packet *packet)
{
	struct dioh_error err;

	if (dioh_proto_check_event(&packet->header, packet->payload, 0, &err) < 0)
		fail_msg("%s", err.text);
	if (packet->header.type != DIOH_MSG_COMPLETE)
		return;
	assert_true(m->complete_count < sizeof(m->completes) / sizeof(m->completes[0]));
	m->completes[m->complete_count].id = packet->header.id;
	memcpy(&m->completes[m->complete_count++].complete, packet->payload,
	       sizeof(struct dioh_msg_complete));
}

static bool is_event(const struct dioh_msg_header *header)
{
	return header->flags == 0 && (header->type == DIOH_MSG_PROGRESS || header->type == DIOH_MSG_COMPLETE ||
	                              header->type == DIOH_MSG_STUCK);
}

static void next_reply(struct raw_manager *m, struct raw_packet *packet, const char *file, int line)
{
	do {
		check_at(raw_receive(m, packet), file, line);
		if (is_event(&packet->header))
			keep_event(m, packet);
	} while (is_event(&packet->header));
}

void raw_reply_at(struct raw_manager *m, uint32_t type, uint32_t id, void *ret_payload, size_t size,
                  const char *file, int line)
{
	static struct raw_packet packet;

	next_reply(m, &packet, file, line);
	if (packet.header.flags == DIOH_MSG_ERROR)
		print_error("%s:%d: refused: %.255s\n", file, line,
		            ((struct dioh_msg_error *)packet.payload)->text);
	check_at(packet.header.flags == 0, file, line);
	check_at(packet.header.type == type + 1, file, line);
	check_at(packet.header.id == id, file, line);
	if (ret_payload) {
		check_at(packet.header.size == size, file, line);
		memcpy(ret_payload, packet.payload, size);
	}
}

static void check_error(const struct dioh_msg_error *error, int code, const char *text,
                        const char *file, int line)
{
	size_t length = strnlen(error->text, sizeof(error->text));

	if (error->code != code || (text && !strstr(error->text, text)))
		print_error("%s:%d: expected errno %d and \"%s\", got %d: %.255s\n", file, line, code,
		            text ? text : "", error->code, error->text);
	check_at(error->code == code, file, line);
	check_at(!text || strstr(error->text, text), file, line);
	check_at(error->reserved == 0, file, line);
	check_at(length > 8 && length < sizeof(error->text), file, line);
	check_at(strchr(error->text, ' ') && !strchr(error->text, '\n'), file, line);
	for (size_t i = length; i < sizeof(error->text); i++)
		check_at(error->text[i] == '\0', file, line);
}

struct dioh_msg_error raw_refused_at(struct raw_manager *m, uint32_t type, uint32_t id, int code,
                                     const char *text, const char *file, int line)
{
	static struct raw_packet packet;
	struct dioh_msg_error error;

	next_reply(m, &packet, file, line);
	check_at(packet.header.flags == DIOH_MSG_ERROR, file, line);
	check_at(packet.header.type == (type | 1), file, line);
	check_at(packet.header.id == id, file, line);
	check_at(packet.header.size == sizeof(error), file, line);
	memcpy(&error, packet.payload, sizeof(error));
	check_error(&error, code, text, file, line);
	return error;
}

static bool take_complete(struct raw_manager *m, uint32_t id, struct dioh_msg_complete *ret)
{
	for (unsigned i = 0; i < m->complete_count; i++) {
		if (m->completes[i].id != id)
			continue;
		*ret = m->completes[i].complete;
		m->completes[i] = m->completes[--m->complete_count];
		return true;
	}
	return false;
}

int raw_complete(struct raw_manager *m, uint32_t id, struct dioh_msg_complete *ret_complete)
{
	static struct raw_packet packet;
	struct dioh_msg_complete complete;

	while (!take_complete(m, id, &complete)) {
		assert_true(raw_receive(m, &packet));
		keep_event(m, &packet);
	}
	if (ret_complete)
		*ret_complete = complete;
	return complete.error.code;
}

uint32_t raw_status_phase(struct raw_manager *m)
{
	struct dioh_msg_status_reply status;

	raw_call(m, DIOH_MSG_STATUS, NULL, 0, &status, sizeof(status));
	assert_int_equal(status.reserved, 0);
	return status.phase;
}

/* ---- /proc ----------------------------------------------------------------------------------- */

uint64_t raw_proc_status(const char *path, const char *name, int base)
{
	DIOH_AUTO_FREE char *line = NULL;
	size_t room = 0, length = strlen(name);
	FILE *file = fopen(path, "re");
	uint64_t value = 0;
	bool found = false;

	assert_non_null(file);
	while (!found && getline(&line, &room, file) > 0) {
		found = strncmp(line, name, length) == 0 && line[length] == ':';
		if (found)
			value = strtoull(line + length + 1, NULL, base);
	}
	fclose(file);
	if (!found)
		fail_msg("%s has no %s", path, name);
	return value;
}

int raw_proc_descriptors(pid_t pid)
{
	char path[32];
	int count = 0;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/fd", (int)pid);
	dir = opendir(path);
	if (!dir)
		return -1;
	while (readdir(dir))
		count++;
	closedir(dir);
	return count - 2;
}

uint64_t raw_proc_cpu_ms(pid_t pid)
{
	unsigned long user, system;
	char path[32];
	FILE *file;

	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	file = fopen(path, "re");
	assert_non_null(file);
	/* proc_pid_stat(5): fields 14 and 15; the name, field 2, has no spaces here. */
	assert_int_equal(fscanf(file,
	                        "%*d %*s %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user,
	                        &system), 2);
	fclose(file);
	return (user + system) * 1000 / (unsigned long)sysconf(_SC_CLK_TCK);
}
