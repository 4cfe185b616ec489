/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test_channel.c - common/channel.c over real socket pairs: what arrives, what is refused, and that no descriptor
 * is ever left open. Every test counts the process' descriptors before and after.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>

#include "channel.h"
#include "fixture.h"

#define FDS_MANY 253 /* as many as the kernel lets one packet have */

struct fixture {
	int ours;
	int theirs; /* the peer's end, to do everything with that a peer should not do */
	unsigned fds_before;
	struct dioh_message message;
	struct dioh_error err;
};

static int set_up(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	int pair[2];

	assert_non_null(f);
	f->fds_before = must_count_descriptors();
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
	f->ours = pair[0];
	f->theirs = pair[1];
	memset(&f->err, 0x5a, sizeof(f->err));
	memset(&f->message, 0x5a, sizeof(f->message));
	*state = f;
	return 0;
}

static int tear_down(void **state)
{
	struct fixture *f = *state;
	unsigned fds_before = f->fds_before;

	close(f->ours);
	if (f->theirs >= 0)
		close(f->theirs);
	free(f);
	if (must_count_descriptors() == fds_before)
		return 0;
	print_error("%u descriptors were open before, %u are now\n", fds_before, must_count_descriptors());
	return -1;
}

static void close_theirs(struct fixture *f)
{
	close(f->theirs);
	f->theirs = -1;
}

/* ---- a peer that sends what it likes --------------------------------------------------------- */

static void send_raw(int fd, const void *bytes, size_t count, const int *fds, unsigned fd_count)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(FDS_MANY * sizeof(int))];
	} control = { 0 };
	struct iovec iov = { (void *)(uintptr_t)bytes, count };
	struct msghdr packet = { .msg_iov = &iov, .msg_iovlen = 1 };

	if (fd_count > 0) {
		struct cmsghdr *cmsg;

		packet.msg_control = control.bytes;
		packet.msg_controllen = CMSG_SPACE(fd_count * sizeof(int));
		cmsg = CMSG_FIRSTHDR(&packet);
		cmsg->cmsg_level = SOL_SOCKET;
		cmsg->cmsg_type = SCM_RIGHTS;
		cmsg->cmsg_len = CMSG_LEN(fd_count * sizeof(int));
		memcpy(CMSG_DATA(cmsg), fds, fd_count * sizeof(int));
	}
	assert_int_equal(sendmsg(fd, &packet, MSG_NOSIGNAL), count);
}

/* A packet of `count` bytes that says it has `size` bytes of payload. */
static void send_packet(int fd, size_t count, uint32_t size, unsigned fd_count)
{
	uint8_t *bytes = calloc(1, count > sizeof(struct dioh_msg_header)
	                                   ? count
	                                   : sizeof(struct dioh_msg_header));
	struct dioh_msg_header header = { .type = DIOH_MSG_SEAL, .id = 5, .size = size };
	int fds[FDS_MANY];

	assert_non_null(bytes);
	memcpy(bytes, &header, sizeof(header));
	for (unsigned i = 0; i < fd_count; i++)
		fds[i] = fd;
	send_raw(fd, bytes, count, fds, fd_count);
	free(bytes);
}

static void assert_no_fds(const struct dioh_message *message)
{
	assert_int_equal(message->fd_count, 0);
	for (unsigned i = 0; i < DIOH_FDS_MAX; i++)
		assert_int_equal(message->fds[i], -1);
}

/* Malformed, with a sentence; no descriptor stays; and the next packet is as good as ever. */
static void assert_malformed(struct fixture *f)
{
	unsigned fds = must_count_descriptors();

	assert_int_equal(dioh_channel_receive(f->ours, &f->message, MSG_DONTWAIT, &f->err),
	                 -EBADMSG);
	assert_int_equal(f->err.code, EBADMSG);
	assert_int_equal(f->err.operation, DIOH_OP_PROTOCOL);
	assert_int_equal(f->err.object, DIOH_OBJECT_SESSION);
	assert_true(strlen(f->err.text) > 0);
	assert_no_fds(&f->message);
	assert_int_equal(must_count_descriptors(), fds);
	send_packet(f->theirs, sizeof(struct dioh_msg_header) + 8, 8, 0);
	assert_int_equal(dioh_channel_receive(f->ours, &f->message, MSG_DONTWAIT, &f->err), 0);
	assert_int_equal(f->message.header.size, 8);
}

static void assert_header_came(const struct fixture *f, uint32_t size)
{
	assert_int_equal(f->message.header.type, DIOH_MSG_SEAL);
	assert_int_equal(f->message.header.id, 5);
	assert_int_equal(f->message.header.size, size);
}

/* ---- what is right --------------------------------------------------------------------------- */

static void assert_same_file(int a, int b)
{
	struct stat one, other;

	assert_int_equal(fstat(a, &one), 0);
	assert_int_equal(fstat(b, &other), 0);
	assert_true(one.st_ino == other.st_ino && one.st_dev == other.st_dev);
}

static void test_payloads(void **state)
{
	static const uint32_t sizes[] = {
		0, 1, 7, 8, 4096, DIOH_PAYLOAD_BYTES_MAX - 1, DIOH_PAYLOAD_BYTES_MAX
	};
	uint8_t *payload = malloc(DIOH_PAYLOAD_BYTES_MAX);
	struct fixture *f = *state;

	assert_non_null(payload);
	for (size_t i = 0; i < DIOH_PAYLOAD_BYTES_MAX; i++)
		payload[i] = (uint8_t)(i * 7 + i / 256);
	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		struct dioh_msg_header header = { .type = 4, .flags = 1, .id = 9, .size = sizes[i] };

		assert_int_equal(dioh_channel_send(f->theirs, &header, payload, NULL, 0, 0, &f->err),
		                 0);
		assert_int_equal(dioh_channel_receive(f->ours, &f->message, 0, &f->err), 0);
		assert_memory_equal(&f->message.header, &header, sizeof(header));
		if (sizes[i] > 0)
			assert_memory_equal(f->message.payload, payload, sizes[i]);
		assert_no_fds(&f->message);
	}
	free(payload);
	assert_int_equal(f->err.code, 0x5a5a5a5a); /* success leaves it alone */
}

static void test_descriptors(void **state)
{
	struct fixture *f = *state;
	int null_fd = open("/dev/null", O_RDONLY), zero_fd = open("/dev/zero", O_RDONLY);
	int root_fd = open("/", O_RDONLY | O_DIRECTORY);
	int fds[] = { null_fd, zero_fd, root_fd };
	struct dioh_msg_header header = { .type = 4, .id = 9 };

	for (unsigned count = 0; count <= 3; count++) {
		assert_int_equal(dioh_channel_send(f->theirs, &header, NULL, fds, count, 0, &f->err),
		                 0);
		assert_int_equal(dioh_channel_receive(f->ours, &f->message, 0, &f->err), 0);
		assert_int_equal(f->message.fd_count, count);
		for (unsigned i = 0; i < DIOH_FDS_MAX; i++) {
			if (i >= count) {
				assert_int_equal(f->message.fds[i], -1);
				continue;
			}
			assert_same_file(f->message.fds[i], fds[i]);
			assert_int_not_equal(f->message.fds[i], fds[i]);
			assert_int_equal(fcntl(f->message.fds[i], F_GETFD), FD_CLOEXEC);
			assert_int_equal(fcntl(fds[i], F_GETFD), 0); /* the sender's stay */
		}
		dioh_message_close_fds(&f->message);
		assert_no_fds(&f->message);
	}
	for (int i = 0; i < 3; i++)
		assert_int_equal(close(fds[i]), 0);
}

static void test_taken_descriptors_stay_open(void **state)
{
	struct fixture *f = *state;
	int fds[] = { f->theirs, f->theirs };
	struct dioh_msg_header header = { .type = 4, .id = 9 };
	int taken;

	assert_int_equal(dioh_channel_send(f->theirs, &header, NULL, fds, 2, 0, &f->err), 0);
	assert_int_equal(dioh_channel_receive(f->ours, &f->message, 0, &f->err), 0);
	taken = f->message.fds[0];
	f->message.fds[0] = -1;
	dioh_message_close_fds(&f->message);
	dioh_message_close_fds(&f->message); /* twice does no harm */
	assert_int_equal(close(taken), 0);
}

/* Whoever made the socket may have asked for the sender's credentials. */
static void test_credentials_are_passed_over(void **state)
{
	struct fixture *f = *state;
	int on = 1;
	struct dioh_msg_header header = { .type = 4, .id = 9 };

	assert_int_equal(setsockopt(f->ours, SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)), 0);
	assert_int_equal(dioh_channel_send(f->theirs, &header, NULL, &f->theirs, 1, 0, &f->err), 0);
	assert_int_equal(dioh_channel_receive(f->ours, &f->message, 0, &f->err), 0);
	assert_int_equal(f->message.fd_count, 1);
	dioh_message_close_fds(&f->message);
	send_packet(f->theirs, sizeof(header), 0, FDS_MANY);
	assert_malformed(f);
	assert_int_equal(strtoul(f->err.text, NULL, 10), FDS_MANY); /* there was room for both */
}

#ifndef SO_PASSPIDFD
#define SO_PASSPIDFD 76 /* Linux 6.5 */
#endif

/* Or for its pidfd, which comes with each packet, and which nobody would ever close. */
static void test_pidfds_are_closed(void **state)
{
	struct fixture *f = *state;
	struct dioh_msg_header header = { .type = 4, .id = 9 };
	unsigned fds = must_count_descriptors();
	int on = 1;

	if (setsockopt(f->ours, SOL_SOCKET, SO_PASSPIDFD, &on, sizeof(on)) < 0) {
		print_message("skipped: no SO_PASSPIDFD before Linux 6.5\n");
		skip();
	}
	assert_int_equal(setsockopt(f->ours, SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)), 0);
	assert_int_equal(dioh_channel_send(f->theirs, &header, NULL, &f->theirs, 1, 0, &f->err), 0);
	assert_int_equal(dioh_channel_receive(f->ours, &f->message, 0, &f->err), 0);
	assert_int_equal(f->message.fd_count, 1);
	dioh_message_close_fds(&f->message);
	assert_int_equal(must_count_descriptors(), fds);
	send_packet(f->theirs, sizeof(header), 0, FDS_MANY);
	assert_malformed(f);
	assert_int_equal(strtoul(f->err.text, NULL, 10), FDS_MANY); /* there was room for all of it */
	assert_int_equal(must_count_descriptors(), fds);
}

/* ---- what is malformed ----------------------------------------------------------------------- */

static void test_too_many_descriptors(void **state)
{
	static const unsigned counts[] = { DIOH_FDS_MAX + 1, 16, FDS_MANY };
	struct fixture *f = *state;

	for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
		send_packet(f->theirs, sizeof(struct dioh_msg_header), 0, counts[i]);
		assert_int_equal(dioh_channel_receive(f->ours, &f->message, 0, &f->err), -EBADMSG);
		assert_header_came(f, 0);
		assert_int_equal(strtoul(f->err.text, NULL, 10), counts[i]);
		send_packet(f->theirs, sizeof(struct dioh_msg_header), 0, counts[i]);
		assert_malformed(f);
	}
}

static void test_shorter_than_a_header(void **state)
{
	static const struct dioh_msg_header none = { 0 };
	struct fixture *f = *state;

	for (size_t bytes = 1; bytes < sizeof(struct dioh_msg_header); bytes++) {
		for (unsigned fds = 0; fds <= DIOH_FDS_MAX + 1; fds++) {
			send_packet(f->theirs, bytes, 0, fds);
			assert_malformed(f);
		}
		send_packet(f->theirs, bytes, 0, 0);
		assert_int_equal(dioh_channel_receive(f->ours, &f->message, 0, &f->err), -EBADMSG);
		assert_memory_equal(&f->message.header, &none, sizeof(none));
		assert_non_null(strstr(f->err.text, "shorter than its header"));
	}
}

static void test_size_lies(void **state)
{
	static const struct {
		size_t bytes;
		uint32_t size;
	} cases[] = { { 0, 1 },      { 1, 0 },
		      { 8, 7 },      { 8, 9 },
		      { 100, 0 },    { 100, UINT32_MAX },
		      { 100, 1000 }, { DIOH_PAYLOAD_BYTES_MAX, DIOH_PAYLOAD_BYTES_MAX + 1 } };
	struct fixture *f = *state;

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		size_t bytes = sizeof(struct dioh_msg_header) + cases[i].bytes;

		send_packet(f->theirs, bytes, cases[i].size, 2);
		assert_int_equal(dioh_channel_receive(f->ours, &f->message, 0, &f->err), -EBADMSG);
		assert_header_came(f, cases[i].size); /* so that it can be answered */
		send_packet(f->theirs, bytes, cases[i].size, 2);
		assert_malformed(f);
	}
}

static void test_oversized(void **state)
{
	static const size_t payloads[] = { DIOH_PAYLOAD_BYTES_MAX + 1, 100000 };
	struct fixture *f = *state;

	for (size_t i = 0; i < sizeof(payloads) / sizeof(payloads[0]); i++) {
		size_t bytes = sizeof(struct dioh_msg_header) + payloads[i];

		send_packet(f->theirs, bytes, (uint32_t)payloads[i], 1);
		assert_malformed(f);
		send_packet(f->theirs, bytes, DIOH_PAYLOAD_BYTES_MAX,
		            1); /* as if the rest were not there */
		assert_malformed(f);
	}
}

/* valgrind keeps a limit of its own and leaves the kernel's alone, which is the one that matters here. */
static bool limit_is_real(rlim_t limit)
{
	FILE *limits = fopen("/proc/self/limits", "r");
	unsigned long soft = 0;
	char line[256];

	assert_non_null(limits);
	while (fgets(line, sizeof(line), limits))
		if (sscanf(line, "Max open files %lu", &soft) == 1)
			break;
	fclose(limits);
	return soft == limit;
}

static void require_limits(const struct rlimit *before)
{
	struct rlimit narrow = *before;
	bool real;

	narrow.rlim_cur--;
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &narrow), 0);
	real = limit_is_real(narrow.rlim_cur);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, before), 0);
	if (real)
		return;
	print_message("skipped: setrlimit(2) does not reach the kernel, as under valgrind\n");
	skip();
}

/* No room for descriptors: the kernel drops them, and says so. */
static void test_lost_descriptors(void **state)
{
	struct fixture *f = *state;
	struct rlimit before, narrow;
	int highest = dup(f->ours), r;

	assert_true(highest >= 0);
	close(highest); /* the next number that would be given out */
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
	require_limits(&before);
	for (int room = 0; room < 3; room++) {
		send_packet(f->theirs, sizeof(struct dioh_msg_header), 0, 3);
		narrow = before;
		narrow.rlim_cur = (rlim_t)(highest + room);
		assert_int_equal(setrlimit(RLIMIT_NOFILE, &narrow), 0);
		r = dioh_channel_receive(f->ours, &f->message, 0, &f->err);
		assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
		assert_int_equal(r, -EBADMSG);
		assert_no_fds(&f->message);
		assert_header_came(f, 0);
	}
}

/* It cannot be told from the end of the connection, but its descriptors can. */
static void test_empty_packet(void **state)
{
	struct fixture *f = *state;
	int fds[] = { f->theirs, f->theirs };

	send_raw(f->theirs, "", 0, fds, 2);
	assert_int_equal(dioh_channel_receive(f->ours, &f->message, 0, &f->err), -EPIPE);
	assert_no_fds(&f->message);
}

/* ---- the end --------------------------------------------------------------------------------- */

static void test_end(void **state)
{
	struct fixture *f = *state;
	struct dioh_msg_header header = { .type = 4, .id = 9 };

	close_theirs(f);
	assert_int_equal(dioh_channel_receive(f->ours, &f->message, 0, &f->err), -EPIPE);
	assert_int_equal(f->err.code, EPIPE);
	assert_no_fds(&f->message);
	memset(&f->err, 0, sizeof(f->err));
	/* SIGPIPE would end this test. */
	assert_int_equal(dioh_channel_send(f->ours, &header, NULL, NULL, 0, 0, &f->err), -EPIPE);
	assert_int_equal(f->err.code, EPIPE);
	assert_int_equal(dioh_channel_send(f->ours, &header, NULL, NULL, 0, MSG_DONTWAIT, NULL),
	                 -EPIPE);
}

/* A peer that ends without having read everything resets the connection. What it said before still counts. */
static void test_last_words(void **state)
{
	struct fixture *f = *state;
	struct dioh_msg_header header = { .type = 4, .id = 9 };

	for (header.id = 1; header.id <= 2; header.id++)
		assert_int_equal(dioh_channel_send(f->theirs, &header, NULL, NULL, 0, 0, &f->err),
		                 0);
	assert_int_equal(dioh_channel_send(f->ours, &header, NULL, NULL, 0, 0, &f->err), 0);
	close_theirs(f);
	for (uint32_t id = 1; id <= 2; id++) {
		assert_int_equal(dioh_channel_receive(f->ours, &f->message, MSG_DONTWAIT, &f->err),
		                 0);
		assert_int_equal(f->message.header.id, id);
	}
	assert_int_equal(dioh_channel_receive(f->ours, &f->message, MSG_DONTWAIT, &f->err), -EPIPE);
}

static void test_reset_seen_by_send(void **state)
{
	struct fixture *f = *state;
	struct dioh_msg_header header = { .type = 4, .id = 9 };

	assert_int_equal(dioh_channel_send(f->ours, &header, NULL, NULL, 0, 0, &f->err), 0);
	close_theirs(f);
	assert_int_equal(dioh_channel_send(f->ours, &header, NULL, NULL, 0, 0, &f->err), -EPIPE);
	assert_int_equal(dioh_channel_receive(f->ours, &f->message, 0, &f->err), -EPIPE);
}

/* ---- waiting --------------------------------------------------------------------------------- */

static void test_would_block(void **state)
{
	static const struct dioh_msg_header none = { 0 };
	struct fixture *f = *state;
	struct dioh_msg_header header = { .type = 4, .id = 9, .size = 1000 };
	uint8_t payload[1000] = { 0 };
	unsigned sent = 0, received = 0;
	int r;

	assert_int_equal(dioh_channel_receive(f->ours, &f->message, MSG_DONTWAIT, &f->err), -EAGAIN);
	assert_no_fds(&f->message);
	assert_memory_equal(&f->message.header, &none, sizeof(none));
	while ((r = dioh_channel_send(f->theirs, &header, payload, NULL, 0, MSG_DONTWAIT,
	                              &f->err)) == 0)
		sent++;
	assert_int_equal(r, -EAGAIN);
	assert_true(sent > 0);
	assert_int_equal(f->err.code, 0x5a5a5a5a); /* waiting is no error */
	while ((r = dioh_channel_receive(f->ours, &f->message, MSG_DONTWAIT, &f->err)) == 0)
		received++;
	assert_int_equal(r, -EAGAIN);
	assert_int_equal(received, sent);
	assert_int_equal(f->err.code, 0x5a5a5a5a);
}

static void do_nothing(int number)
{
	(void)number;
}

/* A signal every 10 ms: had one come before the wait, the next ends it. One that comes late does nothing, either. */
static void start_alarms(bool on)
{
	struct sigaction action = { .sa_handler = on ? do_nothing : SIG_IGN };
	struct itimerval timer = { { 0, on ? 10000 : 0 }, { 0, on ? 10000 : 0 } };

	if (on)
		assert_int_equal(sigaction(SIGALRM, &action, NULL), 0);
	assert_int_equal(setitimer(ITIMER_REAL, &timer, NULL), 0);
	if (!on)
		assert_int_equal(sigaction(SIGALRM, &action, NULL), 0);
}

static void test_interrupted(void **state)
{
	struct fixture *f = *state;

	start_alarms(true);
	assert_int_equal(dioh_channel_receive(f->ours, &f->message, 0, &f->err), -EINTR);
	start_alarms(false);
	assert_no_fds(&f->message);
}

/* ---- what is not sent ------------------------------------------------------------------------ */

static void test_unsendable(void **state)
{
	struct fixture *f = *state;
	struct dioh_msg_header header = { .type = 4, .id = 9, .size = DIOH_PAYLOAD_BYTES_MAX + 1 };
	uint8_t *payload = calloc(1, DIOH_PAYLOAD_BYTES_MAX + 1);
	int fds[] = { f->ours, f->ours, f->ours, f->ours };

	assert_non_null(payload);
	assert_int_equal(dioh_channel_send(f->ours, &header, payload, NULL, 0, 0, &f->err),
	                 -EMSGSIZE);
	header.size = 0;
	assert_int_equal(dioh_channel_send(f->ours, &header, payload, fds, 4, 0, &f->err),
	                 -EMSGSIZE);
	fds[1] = 12345;
	assert_int_equal(dioh_channel_send(f->ours, &header, payload, fds, 2, 0, &f->err), -EBADF);
	assert_int_equal(f->err.code, EBADF);
	fds[1] = -1;
	assert_int_equal(dioh_channel_send(f->ours, &header, payload, fds, 2, 0, &f->err), -EBADF);
	free(payload);
	assert_int_equal(dioh_channel_receive(f->theirs, &f->message, MSG_DONTWAIT, &f->err),
	                 -EAGAIN);
}

#define TEST(function) cmocka_unit_test_setup_teardown(function, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_payloads),
		TEST(test_descriptors),
		TEST(test_taken_descriptors_stay_open),
		TEST(test_credentials_are_passed_over),
		TEST(test_pidfds_are_closed),
		TEST(test_too_many_descriptors),
		TEST(test_shorter_than_a_header),
		TEST(test_size_lies),
		TEST(test_oversized),
		TEST(test_lost_descriptors),
		TEST(test_empty_packet),
		TEST(test_end),
		TEST(test_last_words),
		TEST(test_reset_seen_by_send),
		TEST(test_would_block),
		TEST(test_interrupted),
		TEST(test_unsendable),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
