/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test_client.c - the public API against a helper that is not one: a thread that plays a script at the other end of a
 * socket pair, or, for dioh_spawn(), this program run anew as `serve --fd=3 SCRIPT`.
 *
 * Scripts make no assertions, since cmocka's work in the test's own thread only: what goes wrong in a script is kept and
 * fails the test when the script is over.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "exchange.h"
#include "proto.h"

#define FEATURES_ALL (DIOH_FEATURE_LAYOUT_MAPPED_RAM * 2 - 1)
#define DELAY_MS 60

/* ---- the fake helper ------------------------------------------------------------------------- */

struct fake {
	int fd; /* -1: the script has closed it */
	void (*script)(struct fake *fake);
	pthread_t thread;
	char failure[DIOH_TEXT_BYTES + 32];
	struct dioh_message in;
};

static void blame(struct fake *fake, const char *what, long value)
{
	if (fake->failure[0] == '\0')
		snprintf(fake->failure, sizeof(fake->failure), "%s (%ld)", what, value);
}

static void hang_up(struct fake *fake)
{
	close(fake->fd);
	fake->fd = -1;
}

/* Takes the next request, which must be well-formed and of this type. */
static void take(struct fake *fake, uint32_t type)
{
	struct dioh_error err = { .text = "" };
	int r;

	dioh_message_close_fds(&fake->in);
	if (fake->failure[0] != '\0' || fake->fd < 0)
		return;
	do
		r = dioh_channel_receive(fake->fd, &fake->in, 0, &err);
	while (r == -EINTR);
	if (r == 0)
		r = dioh_proto_check_request(&fake->in.header, fake->in.payload, fake->in.fd_count,
		                             &err);
	if (r < 0)
		blame(fake, err.text, r);
	else if (fake->in.header.type != type)
		blame(fake, "another request was expected; this came", fake->in.header.type);
	if (fake->failure[0] != '\0' && fake->fd >= 0)
		hang_up(fake); /* so that nobody waits for a reply */
}

static void send_message(struct fake *fake, struct dioh_msg_header header, const void *payload,
                         size_t size)
{
	struct dioh_error err;

	header.size = (uint32_t)size;
	if (fake->fd >= 0 &&
	    dioh_channel_send(fake->fd, &header, payload, NULL, 0, 0, &err) < 0)
		blame(fake, err.text, err.code);
}

static void reply(struct fake *fake, const void *payload, size_t size)
{
	struct dioh_msg_header header = { .type = fake->in.header.type + 1,
		                          .id = fake->in.header.id };

	send_message(fake, header, payload, size);
}

static void refuse(struct fake *fake, int code, const char *text)
{
	struct dioh_msg_header header = { .type = fake->in.header.type + 1,
		                          .flags = DIOH_MSG_ERROR,
		                          .id = fake->in.header.id };
	struct dioh_error err;
	struct dioh_msg_error wire;

	dioh_error_set(&err, code, DIOH_PLACE(WRITE, REGION, 7, 8192), "%s", text);
	dioh_error_encode(&err, &wire);
	send_message(fake, header, &wire, sizeof(wire));
}

/* `total` tells one COMPLETE from another. */
static void complete(struct fake *fake, uint32_t id, int code, uint64_t total)
{
	struct dioh_msg_header header = { .type = DIOH_MSG_COMPLETE, .id = id };
	struct dioh_msg_complete event = { .total_bytes = total };

	event.error.code = code;
	if (code != 0)
		strcpy(event.error.text, "image: it failed");
	send_message(fake, header, &event, sizeof(event));
}

static void progress(struct fake *fake, uint32_t count, uint64_t done)
{
	struct dioh_msg_header header = { .type = DIOH_MSG_PROGRESS };
	struct {
		struct dioh_msg_progress head;
		struct dioh_msg_progress_entry entries[DIOH_TRANSFERS_MAX];
	} event = { .head = { .phase = DIOH_PHASE_TRANSFER, .count = count } };

	for (uint32_t i = 0; i < count; i++)
		event.entries[i] = (struct dioh_msg_progress_entry){ .transfer = i,
			                                             .phase = DIOH_PHASE_TRANSFER,
			                                             .done_bytes = done };
	send_message(fake, header, &event, sizeof(event.head) + count * sizeof(event.entries[0]));
}

static void stuck(struct fake *fake, uint32_t in_flight)
{
	struct dioh_msg_header header = { .type = DIOH_MSG_STUCK };
	struct dioh_msg_stuck event = { .in_flight = in_flight };

	send_message(fake, header, &event, sizeof(event));
}

static void greet(struct fake *fake)
{
	struct dioh_msg_hello hello = { .version_min = 1,
		                        .version_max = 1,
		                        .offered = FEATURES_ALL };

	take(fake, DIOH_MSG_HELLO);
	reply(fake, &hello, sizeof(hello));
}

static void status(struct fake *fake)
{
	struct dioh_msg_status_reply now = { .phase = DIOH_PHASE_READY, .in_flight = 5 };

	take(fake, DIOH_MSG_STATUS);
	reply(fake, &now, sizeof(now));
}

/* Accepts a transfer and answers its id. */
static uint32_t accept_transfer(struct fake *fake, uint32_t type)
{
	take(fake, type);
	reply(fake, NULL, 0);
	return fake->in.header.id;
}

static void sleep_ms(long ms)
{
	struct timespec left = { 0, ms * 1000000 };

	while (nanosleep(&left, &left) < 0 && errno == EINTR)
		continue;
}

/* Nothing more may come: the manager has gone, or is going to. */
static void await_hangup(struct fake *fake)
{
	struct dioh_error err;
	int r;

	dioh_message_close_fds(&fake->in);
	if (fake->fd < 0)
		return;
	do
		r = dioh_channel_receive(fake->fd, &fake->in, 0, &err);
	while (r == -EINTR);
	if (r != -EPIPE)
		blame(fake, "a message came behind the script's end", fake->in.header.type);
	dioh_message_close_fds(&fake->in);
	hang_up(fake);
}

static void *play(void *argument)
{
	struct fake *fake = argument;
	sigset_t all;

	sigfillset(&all); /* signals are the test's */
	pthread_sigmask(SIG_SETMASK, &all, NULL);
	fake->script(fake);
	await_hangup(fake);
	return NULL;
}

/* ---- fixture --------------------------------------------------------------------------------- */

struct fixture {
	unsigned fds_before;
	struct fake fake;
	struct dioh_session *session;
	struct dioh_error err, untouched;
};

static unsigned count_fds(void)
{
	DIR *directory = opendir("/proc/self/fd");
	unsigned count = 0;

	assert_non_null(directory);
	while (readdir(directory))
		count++;
	closedir(directory);
	return count;
}

static int set_up(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	assert_non_null(f);
	f->fds_before = count_fds();
	f->fake.fd = -1;
	memset(&f->err, 0x5a, sizeof(f->err));
	f->untouched = f->err;
	*state = f;
	return 0;
}

static int tear_down(void **state)
{
	struct fixture *f = *state;
	unsigned fds_before = f->fds_before;

	free(f);
	if (count_fds() == fds_before)
		return 0;
	print_error("%u descriptors were open before, %u are now\n", fds_before, count_fds());
	return -1;
}

/* Returns the manager's end. */
static int start_fake(struct fixture *f, void (*script)(struct fake *fake))
{
	int pair[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
	f->fake.fd = pair[1];
	f->fake.script = script;
	assert_int_equal(pthread_create(&f->fake.thread, NULL, play, &f->fake), 0);
	return pair[0];
}

static void connect_to(struct fixture *f, void (*script)(struct fake *fake))
{
	int fd = start_fake(f, script);

	assert_int_equal(dioh_connect(fd, 0, &f->session, &f->err), 0);
	assert_int_equal(dioh_session_fd(f->session), fd);
	assert_int_equal(dioh_session_pid(f->session), -1);
}

static void end_fake(struct fixture *f)
{
	pthread_join(f->fake.thread, NULL);
	assert_string_equal(f->fake.failure, "");
}

static void disconnect(struct fixture *f)
{
	assert_int_equal(dioh_close(f->session, 0, NULL), 0);
	end_fake(f);
}

static void assert_untouched(const struct fixture *f)
{
	assert_memory_equal(&f->err, &f->untouched, sizeof(f->err));
}

/* The connection is beyond use, and says so whatever is asked of it. */
static void assert_broken(struct fixture *f, int code)
{
	struct dioh_msg_memory_transfer what = { .length = 4096 };
	struct dioh_msg_status_reply now;
	struct dioh_event event;

	for (int i = 0; i < 2; i++) {
		assert_int_equal(dioh_status(f->session, &now, &f->err), -code);
		assert_int_equal(f->err.code, code);
		assert_int_equal(f->err.object, DIOH_OBJECT_SESSION);
		assert_int_equal(dioh_poll(f->session, &event, -1, &f->err), -code);
		assert_int_equal(dioh_save_memory(f->session, &what, NULL, NULL), -code);
		assert_int_equal(dioh_seal(f->session, 0, NULL, NULL), -code);
	}
}

static uint32_t begin_save(struct fixture *f)
{
	struct dioh_msg_memory_transfer what = { .length = 4096 };
	uint32_t transfer = 0;

	assert_int_equal(dioh_save_memory(f->session, &what, &transfer, &f->err), 0);
	assert_int_not_equal(transfer, 0);
	return transfer;
}

static void ask_status(struct fixture *f)
{
	struct dioh_msg_status_reply now = { 0 };

	assert_int_equal(dioh_status(f->session, &now, &f->err), 0);
	assert_int_equal(now.in_flight, 5);
}

static struct dioh_event next_event(struct fixture *f, int type)
{
	struct dioh_event event;

	assert_int_equal(dioh_poll(f->session, &event, 5000, &f->err), 1);
	assert_int_equal(event.type, type);
	return event;
}

/* ---- HELLO ----------------------------------------------------------------------------------- */

static bool is_pidfd_of_ours(int fd)
{
	char path[64], line[128];
	FILE *info;
	int pid = -1;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	info = fopen(path, "r");
	if (!info)
		return false;
	while (fgets(line, sizeof(line), info))
		if (sscanf(line, "Pid: %d", &pid) == 1)
			break;
	fclose(info);
	return pid == (int)getpid();
}

static void script_hello(struct fake *fake)
{
	struct dioh_msg_hello hello = { .version_min = 1,
		                        .version_max = 1,
		                        .offered = DIOH_FEATURE_STREAM };

	take(fake, DIOH_MSG_HELLO);
	if (fake->in.fd_count != 1 || !is_pidfd_of_ours(fake->in.fds[0]))
		blame(fake, "no pidfd of the manager came", fake->in.fd_count);
	memcpy(&hello, fake->in.payload, sizeof(hello));
	if (hello.version_min != 1 || hello.version_max != 1)
		blame(fake, "versions", hello.version_max);
	if (hello.offered != FEATURES_ALL || hello.required != DIOH_FEATURE_STREAM)
		blame(fake, "features", (long)hello.required);
	hello.offered = DIOH_FEATURE_STREAM | UINT64_C(1) << 40;
	hello.required = DIOH_FEATURE_CHECKSUM; /* which every manager has */
	reply(fake, &hello, sizeof(hello));
}

static void test_hello(void **state)
{
	struct fixture *f = *state;
	struct dioh_hello_info info;
	int fd = start_fake(f, script_hello);

	assert_int_equal(fcntl(fd, F_SETFD, 0), 0);
	assert_int_equal(dioh_connect(fd, DIOH_FEATURE_STREAM, &f->session, &f->err), 0);
	assert_untouched(f);
	dioh_session_info(f->session, &info);
	assert_int_equal(info.version, 1);
	assert_true(info.features == (DIOH_FEATURE_STREAM | UINT64_C(1) << 40));
	assert_int_equal(fcntl(fd, F_GETFD), FD_CLOEXEC);
	disconnect(f);
	assert_int_equal(fcntl(fd, F_GETFD), -1); /* it was the session's */
}

static void connect_in_vain(struct fixture *f, void (*script)(struct fake *fake), int code,
                            const char *text)
{
	struct dioh_session *session = (void *)f;
	int fd = start_fake(f, script);

	assert_int_equal(dioh_connect(fd, DIOH_FEATURE_STREAM, &session, &f->err), -code);
	assert_int_equal(f->err.code, code);
	assert_non_null(strstr(f->err.text, text));
	assert_ptr_equal(session, f);
	assert_int_equal(close(fd), 0); /* it stayed the caller's */
	end_fake(f);
}

static void script_no_version(struct fake *fake)
{
	take(fake, DIOH_MSG_HELLO);
	refuse(fake, EPROTONOSUPPORT, "versions 1 to 1 and 5 to 7");
}

static void script_feature_lacking(struct fake *fake)
{
	struct dioh_msg_hello hello = { .version_min = 1,
		                        .version_max = 1,
		                        .offered = DIOH_FEATURE_LABEL };

	take(fake, DIOH_MSG_HELLO);
	reply(fake, &hello, sizeof(hello));
}

static void script_requires_more(struct fake *fake)
{
	struct dioh_msg_hello hello = { .version_min = 1,
		                        .version_max = 1,
		                        .offered = FEATURES_ALL,
		                        .required = DIOH_FEATURE_STREAM | UINT64_C(1) << 20 };

	take(fake, DIOH_MSG_HELLO);
	reply(fake, &hello, sizeof(hello));
}

static void script_another_version(struct fake *fake)
{
	struct dioh_msg_hello hello = { .version_min = 2,
		                        .version_max = 2,
		                        .offered = FEATURES_ALL };

	take(fake, DIOH_MSG_HELLO);
	reply(fake, &hello, sizeof(hello));
}

static void script_hang_up_at_hello(struct fake *fake)
{
	take(fake, DIOH_MSG_HELLO);
	hang_up(fake);
}

static void script_short_hello(struct fake *fake)
{
	take(fake, DIOH_MSG_HELLO);
	reply(fake, "x", 1);
}

static void test_hello_in_vain(void **state)
{
	struct fixture *f = *state;

	connect_in_vain(f, script_no_version, EPROTONOSUPPORT, "versions 1 to 1 and 5 to 7");
	connect_in_vain(f, script_feature_lacking, ENOTSUP, "lacks a required feature: stream");
	connect_in_vain(f, script_requires_more, ENOTSUP, "0x100000");
	connect_in_vain(f, script_another_version, EPROTONOSUPPORT, "version 2");
	connect_in_vain(f, script_hang_up_at_hello, EPIPE, "closed");
	connect_in_vain(f, script_short_hello, EBADMSG, "HELLO's reply");
}

static void test_connect_to_something_else(void **state)
{
	struct fixture *f = *state;
	struct dioh_session *session = NULL;
	int pair[2], null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);

	assert_int_equal(dioh_connect(-1, 0, &session, &f->err), -EBADF);
	assert_int_equal(dioh_connect(null_fd, 0, &session, &f->err), -ENOTSOCK);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
	assert_int_equal(dioh_connect(pair[0], 0, &session, &f->err), -EINVAL);
	assert_null(session);
	assert_int_equal(close(pair[0]) | close(pair[1]) | close(null_fd), 0);
	assert_int_equal(dioh_close(NULL, -1, NULL), 0);
}

/* ---- before the seal ------------------------------------------------------------------------- */

static bool is_device(int fd, unsigned minor_number)
{
	struct stat st;

	return fstat(fd, &st) == 0 && S_ISCHR(st.st_mode) && major(st.st_rdev) == 1 &&
	       minor(st.st_rdev) == minor_number;
}

#define DEV_NULL 3
#define DEV_ZERO 5

static bool is_directory(int fd)
{
	struct stat st;

	return fstat(fd, &st) == 0 && S_ISDIR(st.st_mode);
}

static void expect_that(struct fake *fake, bool right, const char *what)
{
	if (!right)
		blame(fake, what, -1);
}

static void script_attach(struct fake *fake)
{
	const struct dioh_msg_attach_image *image = (const void *)fake->in.payload;
	const struct dioh_msg_attach_memory *memory = (const void *)fake->in.payload;
	const struct dioh_msg_attach_stream *stream = (const void *)fake->in.payload;
	const struct dioh_msg_seal *seal = (const void *)fake->in.payload;
	struct dioh_msg_attach_image_reply image_reply = { .kind = 1,
		                                           .engine = DIOH_ENGINE_SYNC,
		                                           .block_bytes = 65536,
		                                           .in_flight = 8,
		                                           .workers = 1,
		                                           .file_bytes = 4711 };
	struct dioh_msg_attach_memory_reply memory_reply = { .kind = 2, .bytes = 8192 };
	struct dioh_msg_attach_stream_reply stream_reply = { .kind = 3 };
	struct dioh_msg_seal_reply seal_reply = { .layers = 5, .uid = 65534, .engine = 1 };
	const int *fds = fake->in.fds;

	greet(fake);
	take(fake, DIOH_MSG_ATTACH_IMAGE);
	expect_that(fake, fake->in.fd_count == 3, "number of descriptors");
	expect_that(fake, is_device(fds[0], DEV_NULL) && is_device(fds[1], DEV_ZERO), "image");
	expect_that(fake, is_directory(fds[2]), "directory");
	expect_that(fake, image->fds == 7 && image->direction == 1 && image->direct == 1, "modes");
	expect_that(fake, image->engine == 3 && image->block_bytes == 65536, "engine");
	expect_that(fake, image->in_flight == 8 && image->workers == 2, "depth");
	expect_that(fake, image->ask == 13 && image->base_offset == 8192, "ask");
	expect_that(fake, image->uid == 1 && image->gid == 2 && image->mode == 0640, "owner");
	expect_that(fake, strcmp(image->label, "a:b:c") == 0, "label");
	reply(fake, &image_reply, sizeof(image_reply));

	take(fake, DIOH_MSG_ATTACH_IMAGE); /* a lone direct one */
	expect_that(fake, fake->in.fd_count == 1 && image->fds == 2, "lone descriptor");
	expect_that(fake, is_device(fds[0], DEV_ZERO), "lone direct");
	reply(fake, &image_reply, sizeof(image_reply));

	take(fake, DIOH_MSG_ATTACH_MEMORY);
	expect_that(fake, fake->in.fd_count == 2 && memory->fds == 3, "memory's descriptors");
	expect_that(fake, is_device(fds[0], DEV_NULL) && is_device(fds[1], DEV_ZERO), "memory");
	expect_that(fake, memory->memory == 9 && memory->advice == 1, "number of the memory");
	expect_that(fake, memory->bytes == 8192, "size of the memory");
	reply(fake, &memory_reply, sizeof(memory_reply));

	take(fake, DIOH_MSG_ATTACH_STREAM);
	expect_that(fake, fake->in.fd_count == 1 && stream->stream == 4, "stream");
	reply(fake, &stream_reply, sizeof(stream_reply));

	take(fake, DIOH_MSG_SEAL);
	expect_that(fake, seal->required == 3, "layers");
	reply(fake, &seal_reply, sizeof(seal_reply));
	take(fake, DIOH_MSG_SEAL);
	reply(fake, &seal_reply, sizeof(seal_reply));
}

static void test_attach(void **state)
{
	struct fixture *f = *state;
	int null_fd = open("/dev/null", O_RDONLY), zero_fd = open("/dev/zero", O_RDONLY);
	int directory_fd = open("/", O_RDONLY | O_DIRECTORY);
	struct dioh_image_options image = { null_fd, zero_fd, directory_fd, 1, 1, 3, 65536, 8, 2,
		                            13,      8192,    1,            2, 0640, "a:b:c" };
	struct dioh_image_options lone = DIOH_IMAGE_OPTIONS_INIT;
	struct dioh_memory_options memory = { null_fd, zero_fd, 1, 8192 };
	struct dioh_msg_attach_image_reply image_reply = { 0 };
	struct dioh_msg_attach_memory_reply memory_reply = { 0 };
	struct dioh_msg_attach_stream_reply stream_reply = { 0 };
	struct dioh_msg_seal_reply seal_reply = { 0 };

	connect_to(f, script_attach);
	assert_int_equal(dioh_attach_image(f->session, &image, &image_reply, &f->err), 0);
	assert_true(image_reply.file_bytes == 4711);
	lone.direct_fd = zero_fd;
	lone.direction = DIOH_DIRECTION_LOAD;
	assert_int_equal(dioh_attach_image(f->session, &lone, NULL, &f->err), 0);
	assert_int_equal(dioh_attach_memory(f->session, 9, &memory, &memory_reply, &f->err), 0);
	assert_true(memory_reply.bytes == 8192);
	assert_int_equal(dioh_attach_stream(f->session, 4, null_fd, &stream_reply, &f->err), 0);
	assert_int_equal(stream_reply.kind, DIOH_STREAM_FILE);
	assert_int_equal(dioh_seal(f->session, 3, &seal_reply, &f->err), 0);
	assert_int_equal(seal_reply.uid, 65534);
	assert_int_equal(dioh_seal(f->session, 3, NULL, NULL), 0);
	assert_untouched(f);
	disconnect(f);
	assert_int_equal(close(null_fd) | close(zero_fd) | close(directory_fd), 0);
}

static void script_only_status(struct fake *fake)
{
	greet(fake);
	status(fake);
}

/* What is wrong with the arguments is found out here: the helper never sees it, and the session goes on. */
static void test_own_mistakes(void **state)
{
	struct fixture *f = *state;
	int null_fd = open("/dev/null", O_RDONLY);
	char label[DIOH_LABEL_BYTES + 1];
	struct dioh_image_options image = DIOH_IMAGE_OPTIONS_INIT;
	struct dioh_memory_options memory = DIOH_MEMORY_OPTIONS_INIT;
	struct dioh_msg_memory_transfer transfer = { .length = 4096, .reserved = 1 };
	struct dioh_msg_stream_transfer stream = { .stream = DIOH_STREAMS_MAX };
	uint32_t begun = 4711;

	connect_to(f, script_only_status);
	image.direction = DIOH_DIRECTION_SAVE;
	assert_int_equal(dioh_attach_image(f->session, &image, NULL, &f->err), -EINVAL);
	assert_int_equal(f->err.code, EINVAL);
	image.buffered_fd = null_fd;
	image.label = "nobody asked for it";
	assert_int_equal(dioh_attach_image(f->session, &image, NULL, &f->err), -EINVAL);
	memset(label, 'x', sizeof(label) - 1);
	label[sizeof(label) - 1] = '\0';
	image.label = label;
	assert_int_equal(dioh_attach_image(f->session, &image, NULL, &f->err), -ENAMETOOLONG);
	image.label = NULL;
	image.buffered_fd = 12345; /* not open */
	assert_int_equal(dioh_attach_image(f->session, &image, NULL, &f->err), -EBADF);
	assert_int_equal(dioh_attach_memory(f->session, 0, &memory, NULL, &f->err), -EINVAL);
	assert_int_equal(dioh_attach_stream(f->session, 0, -1, NULL, &f->err), -EBADF);
	assert_int_equal(dioh_seal(f->session, UINT32_MAX, NULL, NULL), -EINVAL);
	/* A reserved field that is not zero would end the session, were it sent. */
	assert_int_equal(dioh_save_memory(f->session, &transfer, &begun, &f->err), -EINVAL);
	assert_int_equal(dioh_load_stream(f->session, &stream, &begun, &f->err), -EINVAL);
	assert_int_equal(begun, 4711);
	ask_status(f);
	disconnect(f);
	close(null_fd);
}

static void script_refusals(struct fake *fake)
{
	greet(fake);
	take(fake, DIOH_MSG_SEAL);
	refuse(fake, EPERM, "no\tway");
	take(fake, DIOH_MSG_SAVE_MEMORY);
	refuse(fake, ENOENT, "there is no region 3");
	status(fake);
}

static void test_refusals(void **state)
{
	struct fixture *f = *state;
	struct dioh_msg_seal_reply seal = { .uid = 4711 };
	struct dioh_msg_memory_transfer what = { .region = 3, .length = 4096 };
	uint32_t transfer = 4711;

	connect_to(f, script_refusals);
	assert_int_equal(dioh_seal(f->session, 1, &seal, &f->err), -EPERM);
	assert_int_equal(f->err.code, EPERM);
	assert_int_equal(f->err.operation, DIOH_OP_WRITE);
	assert_int_equal(f->err.object, DIOH_OBJECT_REGION);
	assert_int_equal(f->err.number, 7);
	assert_true(f->err.offset == 8192);
	assert_string_equal(f->err.text, "no?way");
	assert_int_equal(seal.uid, 4711);
	assert_int_equal(dioh_save_memory(f->session, &what, &transfer, NULL), -ENOENT);
	assert_int_equal(transfer, 4711);
	ask_status(f);
	disconnect(f);
}

/* ---- the image ------------------------------------------------------------------------------- */

#define ENTRIES 450u /* three messages */
#define HEADER_BYTES 150000u

static struct dioh_msg_entry *make_entries(void)
{
	struct dioh_msg_entry *entries = calloc(ENTRIES, sizeof(*entries));

	assert_non_null(entries);
	for (uint32_t i = 0; i < ENTRIES; i++) {
		entries[i].kind = i % 50 == 0 ? DIOH_ENTRY_STREAM : DIOH_ENTRY_REGION;
		entries[i].number = i;
		entries[i].bytes = i % 50 == 0 ? 0 : 4096;
		snprintf(entries[i].name, sizeof(entries[i].name), "entry%u", i);
	}
	return entries;
}

static uint8_t header_byte(uint64_t i)
{
	return (uint8_t)(i * 13 + i / 251);
}

static uint8_t *make_header(void)
{
	uint8_t *header = malloc(HEADER_BYTES);

	assert_non_null(header);
	for (uint64_t i = 0; i < HEADER_BYTES; i++)
		header[i] = header_byte(i);
	return header;
}

static void take_pieces_of_table(struct fake *fake, uint32_t ready_with)
{
	for (uint32_t first = 0; first < ENTRIES && fake->failure[0] == '\0';) {
		struct dioh_msg_image_reply answer = { .free_bytes = first };
		struct dioh_msg_put_table table;
		struct dioh_msg_entry entry;

		take(fake, DIOH_MSG_PUT_TABLE);
		memcpy(&table, fake->in.payload, sizeof(table));
		expect_that(fake, table.first == first, "first entry");
		for (uint32_t i = 0; i < table.count; i++) {
			memcpy(&entry, fake->in.payload + sizeof(table) + i * sizeof(entry),
			       sizeof(entry));
			expect_that(fake, entry.number == first + i, "an entry");
		}
		first += table.count;
		answer.ready = first == ready_with;
		answer.image_bytes = first;
		reply(fake, &answer, sizeof(answer));
		if (table.count == 0)
			return;
	}
}

static void take_pieces_of_header(struct fake *fake, uint64_t first, uint64_t bytes, uint32_t ready)
{
	for (uint64_t done = 0; done < bytes && fake->failure[0] == '\0';) {
		struct dioh_msg_image_reply answer = { .ready = ready, .free_bytes = 99 };
		struct dioh_msg_write_header header;
		uint64_t count;

		take(fake, DIOH_MSG_WRITE_HEADER);
		memcpy(&header, fake->in.payload, sizeof(header));
		count = fake->in.header.size - sizeof(header);
		expect_that(fake, header.offset == first + done, "offset in the header");
		for (uint64_t i = 0; i < count; i++)
			expect_that(fake,
			            fake->in.payload[sizeof(header) + i] == header_byte(done + i),
			            "a byte of the header");
		done += count;
		reply(fake, &answer, sizeof(answer));
		if (fake->fd < 0)
			return;
	}
}

static void take_create(struct fake *fake)
{
	const struct dioh_msg_create_image *create = (const void *)fake->in.payload;
	struct dioh_msg_image_reply answer = { 0 };

	take(fake, DIOH_MSG_CREATE_IMAGE);
	expect_that(fake, create->layout == DIOH_LAYOUT_CONTAINER, "layout");
	expect_that(fake, create->region_count == 441 && create->stream_count == 9, "counts");
	expect_that(fake, create->header_bytes == HEADER_BYTES, "header bytes");
	reply(fake, &answer, sizeof(answer));
}

/* Ready with the table, as a container is; a header's replies that say less do not count. */
static void script_create(struct fake *fake)
{
	greet(fake);
	take_create(fake);
	take_pieces_of_table(fake, ENTRIES);
	take_pieces_of_header(fake, 0, HEADER_BYTES, 0);
	take_create(fake);
	take_pieces_of_table(fake, 0);
	take_pieces_of_header(fake, 0, HEADER_BYTES, 1); /* raw: with the header */
	take_create(fake);
	take_pieces_of_table(fake, 0);
	status(fake);
}

static void test_create_image(void **state)
{
	struct fixture *f = *state;
	struct dioh_msg_entry *entries = make_entries();
	uint8_t *header = make_header();
	struct dioh_create_options options = { .layout = DIOH_LAYOUT_CONTAINER,
		                               .entry_count = ENTRIES,
		                               .entries = entries,
		                               .header_bytes = HEADER_BYTES,
		                               .header = header };
	struct dioh_msg_image_reply info = { 0 };

	connect_to(f, script_create);
	assert_int_equal(dioh_create_image(f->session, &options, &info, &f->err), 0);
	assert_int_equal(info.ready, 1);
	assert_true(info.image_bytes == ENTRIES);
	assert_int_equal(dioh_create_image(f->session, &options, &info, &f->err), 0);
	assert_int_equal(info.ready, 1);
	assert_true(info.free_bytes == 99);
	options.header = NULL;
	assert_int_equal(dioh_create_image(f->session, &options, &info, &f->err), 0);
	assert_int_equal(info.ready, 0);
	assert_true(info.image_bytes == ENTRIES); /* the last reply's */
	ask_status(f);
	assert_untouched(f);
	disconnect(f);
	free(entries);
	free(header);
}

static void script_create_fails(struct fake *fake)
{
	struct dioh_msg_image_reply answer = { 0 };

	greet(fake);
	take_create(fake);
	take(fake, DIOH_MSG_PUT_TABLE);
	reply(fake, &answer, sizeof(answer));
	take(fake, DIOH_MSG_PUT_TABLE);
	refuse(fake, ENOSPC, "too little space");
	take(fake, DIOH_MSG_CREATE_IMAGE);
	refuse(fake, EPROTO, "not again");
	take(fake, DIOH_MSG_WRITE_HEADER);
	reply(fake, &answer, sizeof(answer));
	take(fake, DIOH_MSG_WRITE_HEADER);
	refuse(fake, EIO, "the disk");
}

static void test_create_image_fails(void **state)
{
	struct fixture *f = *state;
	struct dioh_msg_entry *entries = make_entries();
	uint8_t *header = make_header();
	struct dioh_create_options options = { .layout = DIOH_LAYOUT_CONTAINER,
		                               .entry_count = ENTRIES,
		                               .entries = entries,
		                               .header_bytes = HEADER_BYTES,
		                               .header = header };
	struct dioh_msg_image_reply info = { .image_bytes = 4711 };

	connect_to(f, script_create_fails);
	entries[7].kind = 3; /* found before anything is sent */
	assert_int_equal(dioh_create_image(f->session, &options, &info, &f->err), -EINVAL);
	entries[7].kind = DIOH_ENTRY_REGION;
	assert_int_equal(dioh_create_image(f->session, &options, &info, &f->err), -ENOSPC);
	assert_string_equal(f->err.text, "too little space");
	assert_int_equal(dioh_create_image(f->session, &options, &info, &f->err), -EPROTO);
	assert_int_equal(dioh_write_header(f->session, 0, header, HEADER_BYTES, &f->err), -EIO);
	assert_true(info.image_bytes == 4711);
	disconnect(f);
	free(entries);
	free(header);
}

static void script_write_header(struct fake *fake)
{
	greet(fake);
	take_pieces_of_header(fake, 1000, HEADER_BYTES, 1);
	status(fake);
}

static void test_write_header(void **state)
{
	struct fixture *f = *state;
	uint8_t *header = make_header();

	connect_to(f, script_write_header);
	assert_int_equal(dioh_write_header(f->session, 1000, header, HEADER_BYTES, &f->err), 0);
	assert_int_equal(dioh_write_header(f->session, 1000, header, 0, &f->err), 0);
	assert_untouched(f);
	assert_int_equal(dioh_write_header(f->session, DIOH_HEADER_BYTES_MAX - HEADER_BYTES + 1,
	                                   header, HEADER_BYTES, &f->err),
	                 -EINVAL);
	assert_int_equal(dioh_write_header(f->session, UINT64_MAX, header, 2, &f->err), -EINVAL);
	ask_status(f);
	disconnect(f);
	free(header);
}

static void script_open(struct fake *fake)
{
	const struct dioh_msg_open_image *open = (const void *)fake->in.payload;
	struct dioh_msg_open_image_reply answer = { .layout = DIOH_LAYOUT_CONTAINER,
		                                    .state = DIOH_STATE_COMPLETE,
		                                    .region_count = 2,
		                                    .image_bytes = 8192,
		                                    .ready = 1 };

	greet(fake);
	take(fake, DIOH_MSG_OPEN_IMAGE);
	expect_that(fake, open->layout == DIOH_LAYOUT_DETECT, "layout");
	expect_that(fake, open->flags == DIOH_OPEN_INSPECT, "flags");
	reply(fake, &answer, sizeof(answer));

	take(fake, DIOH_MSG_OPEN_IMAGE);
	expect_that(fake, open->region_count == 441 && open->stream_count == 9, "counts");
	expect_that(fake, open->header_bytes == 17, "header bytes");
	answer = (struct dioh_msg_open_image_reply){ .layout = DIOH_LAYOUT_RAW };
	reply(fake, &answer, sizeof(answer));
	take_pieces_of_table(fake, ENTRIES);
	take(fake, DIOH_MSG_OPEN_IMAGE);
	refuse(fake, ENODATA, "partial");
	status(fake);
}

static void test_open_image(void **state)
{
	struct fixture *f = *state;
	struct dioh_msg_entry *entries = make_entries();
	struct dioh_open_options options = { .flags = DIOH_OPEN_INSPECT };
	struct dioh_open_options raw = { .layout = DIOH_LAYOUT_RAW,
		                         .entry_count = ENTRIES,
		                         .entries = entries,
		                         .header_bytes = 17 };
	struct dioh_msg_open_image_reply info = { 0 };

	connect_to(f, script_open);
	assert_int_equal(dioh_open_image(f->session, &options, &info, &f->err), 0);
	assert_int_equal(info.state, DIOH_STATE_COMPLETE);
	assert_int_equal(info.ready, 1);
	assert_true(info.image_bytes == 8192);
	assert_int_equal(dioh_open_image(f->session, &raw, &info, &f->err), 0);
	assert_int_equal(info.layout, DIOH_LAYOUT_RAW);
	assert_int_equal(info.ready, 1);
	assert_true(info.image_bytes == ENTRIES);
	assert_untouched(f);
	info.ready = 4711;
	assert_int_equal(dioh_open_image(f->session, &options, &info, &f->err), -ENODATA);
	raw.layout = DIOH_LAYOUT_CONTAINER; /* entries are raw's */
	assert_int_equal(dioh_open_image(f->session, &raw, &info, &f->err), -EINVAL);
	assert_int_equal(info.ready, 4711);
	ask_status(f);
	disconnect(f);
	free(entries);
}

/* A table of `there` entries, regions all. */
static void answer_table(struct fake *fake, uint32_t there)
{
	uint8_t payload[DIOH_PAYLOAD_BYTES_MAX] = { 0 };
	struct dioh_msg_get_table asked;
	struct dioh_msg_get_table_reply answer;

	take(fake, DIOH_MSG_GET_TABLE);
	memcpy(&asked, fake->in.payload, sizeof(asked));
	answer.first = asked.first;
	answer.count = asked.first >= there ? 0 : there - asked.first;
	if (answer.count > asked.count)
		answer.count = asked.count;
	memcpy(payload, &answer, sizeof(answer));
	for (uint32_t i = 0; i < answer.count; i++) {
		struct dioh_msg_entry entry = { .kind = DIOH_ENTRY_REGION,
			                        .number = asked.first + i,
			                        .bytes = 4096,
			                        .name = "r" };

		memcpy(&payload[sizeof(answer) + i * sizeof(entry)], &entry, sizeof(entry));
	}
	reply(fake, payload, sizeof(answer) + answer.count * sizeof(struct dioh_msg_entry));
}

static void script_get_table(struct fake *fake)
{
	greet(fake);
	for (int i = 0; i < 3; i++)
		answer_table(fake, 450);
	for (int i = 0; i < 3; i++)
		answer_table(fake, 400);
	answer_table(fake, 450);
	answer_table(fake, 450);
	status(fake);
}

static void test_get_table(void **state)
{
	struct fixture *f = *state;
	struct dioh_msg_entry *entries = calloc(ENTRIES, sizeof(*entries));
	uint32_t count = 4711;

	assert_non_null(entries);
	connect_to(f, script_get_table);
	assert_int_equal(dioh_get_table(f->session, 0, 450, entries, &count, &f->err), 0);
	assert_int_equal(count, 450);
	for (uint32_t i = 0; i < 450; i++)
		assert_int_equal(entries[i].number, i);
	assert_int_equal(dioh_get_table(f->session, 0, 450, entries, &count, &f->err), 0);
	assert_int_equal(count, 400);
	assert_int_equal(dioh_get_table(f->session, 440, 450, entries, &count, &f->err), 0);
	assert_int_equal(count, 10);
	assert_int_equal(entries[9].number, 449);
	assert_int_equal(dioh_get_table(f->session, 450, 1, entries, &count, &f->err), 0);
	assert_int_equal(count, 0);
	assert_int_equal(dioh_get_table(f->session, 0, 0, entries, &count, &f->err), 0);
	assert_int_equal(count, 0);
	assert_untouched(f);
	ask_status(f);
	disconnect(f);
	free(entries);
}

static void answer_table_beside(struct fake *fake, uint32_t first, uint32_t count)
{
	struct {
		struct dioh_msg_get_table_reply head;
		struct dioh_msg_entry entries[2];
	} answer = { .head = { first, count } };

	take(fake, DIOH_MSG_GET_TABLE);
	for (uint32_t i = 0; i < count; i++)
		answer.entries[i] = (struct dioh_msg_entry){ .kind = DIOH_ENTRY_STREAM, .name = "s" };
	reply(fake, &answer, sizeof(answer.head) + count * sizeof(answer.entries[0]));
}

static void script_table_from_elsewhere(struct fake *fake)
{
	greet(fake);
	answer_table_beside(fake, 1, 1);
}

static void script_table_too_long(struct fake *fake)
{
	greet(fake);
	answer_table_beside(fake, 0, 2);
}

static void test_get_table_beside(void **state)
{
	void (*scripts[])(struct fake *) = { script_table_from_elsewhere, script_table_too_long };
	struct fixture *f = *state;
	struct dioh_msg_entry entry;
	uint32_t count = 4711;

	for (int i = 0; i < 2; i++) {
		connect_to(f, scripts[i]);
		assert_int_equal(dioh_get_table(f->session, 0, 1, &entry, &count, &f->err),
		                 -EBADMSG);
		assert_int_equal(count, 4711);
		assert_broken(f, EBADMSG);
		disconnect(f);
	}
}

static void answer_header(struct fake *fake, uint64_t there)
{
	uint8_t payload[DIOH_PAYLOAD_BYTES_MAX];
	struct dioh_msg_read_header asked;
	uint64_t count;

	take(fake, DIOH_MSG_READ_HEADER);
	memcpy(&asked, fake->in.payload, sizeof(asked));
	count = asked.offset >= there ? 0 : there - asked.offset;
	if (count > asked.bytes)
		count = asked.bytes;
	for (uint64_t i = 0; i < count; i++)
		payload[i] = header_byte(asked.offset + i);
	reply(fake, payload, count);
}

static void script_read_header(struct fake *fake)
{
	greet(fake);
	for (int i = 0; i < 3; i++)
		answer_header(fake, HEADER_BYTES);
	for (int i = 0; i < 3; i++)
		answer_header(fake, 140000);
	answer_header(fake, HEADER_BYTES);
	take(fake, DIOH_MSG_READ_HEADER);
	reply(fake, "abcdef", 6);
}

static void test_read_header(void **state)
{
	struct fixture *f = *state;
	uint8_t *bytes = malloc(HEADER_BYTES);
	uint64_t count = 4711;

	assert_non_null(bytes);
	connect_to(f, script_read_header);
	assert_int_equal(dioh_read_header(f->session, 0, bytes, HEADER_BYTES, &count, &f->err), 0);
	assert_true(count == HEADER_BYTES);
	for (uint64_t i = 0; i < HEADER_BYTES; i++)
		assert_int_equal(bytes[i], header_byte(i));
	assert_int_equal(dioh_read_header(f->session, 0, bytes, HEADER_BYTES, &count, &f->err), 0);
	assert_true(count == 140000);
	assert_int_equal(dioh_read_header(f->session, 149990, bytes, 20, &count, &f->err), 0);
	assert_true(count == 10);
	assert_int_equal(bytes[9], header_byte(149999));
	assert_int_equal(dioh_read_header(f->session, 0, bytes, 0, &count, &f->err), 0);
	assert_true(count == 0);
	assert_untouched(f);
	assert_int_equal(dioh_read_header(f->session, 0, bytes, 5, &count, &f->err), -EBADMSG);
	assert_broken(f, EBADMSG);
	disconnect(f);
	free(bytes);
}

/* ---- transfers ------------------------------------------------------------------------------- */

static void script_transfers(struct fake *fake)
{
	const struct dioh_msg_memory_transfer *memory = (const void *)fake->in.payload;
	const struct dioh_msg_stream_transfer *stream = (const void *)fake->in.payload;
	const struct dioh_msg_finish *finish = (const void *)fake->in.payload;
	const struct dioh_msg_cancel *cancel = (const void *)fake->in.payload;
	struct dioh_msg_cancel_reply answer = { .in_flight = 12 };
	uint32_t id;

	greet(fake);
	id = accept_transfer(fake, DIOH_MSG_SAVE_MEMORY);
	expect_that(fake, memory->region == 3 && memory->length == 8192, "SAVE_MEMORY");
	complete(fake, id, 0, 1);
	id = accept_transfer(fake, DIOH_MSG_LOAD_MEMORY);
	expect_that(fake, memory->region == 3, "LOAD_MEMORY");
	complete(fake, id, EIO, 2);
	id = accept_transfer(fake, DIOH_MSG_SAVE_STREAM);
	expect_that(fake, stream->stream == 4 && stream->entry == 5, "SAVE_STREAM");
	complete(fake, id, 0, 3);
	id = accept_transfer(fake, DIOH_MSG_LOAD_STREAM);
	expect_that(fake, stream->stream == 4 && stream->entry == 5, "LOAD_STREAM");
	take(fake, DIOH_MSG_CANCEL);
	expect_that(fake, cancel->transfer == id, "CANCEL");
	reply(fake, &answer, sizeof(answer));
	complete(fake, id, ECANCELED, 4);
	id = accept_transfer(fake, DIOH_MSG_FINISH);
	expect_that(fake, finish->mode == 1 && finish->patch_offset == 77, "FINISH");
	expect_that(fake, finish->patch_bytes == 5, "size of the patch");
	expect_that(fake, memcmp(fake->in.payload + sizeof(*finish), "patch", 5) == 0, "patch");
	complete(fake, id, 0, 5);
	hang_up(fake); /* as the helper does after FINISH */
}

static void assert_completes(struct fixture *f, uint32_t transfer, int code, uint64_t total)
{
	struct dioh_event event = next_event(f, DIOH_EVENT_COMPLETE);

	assert_int_equal(event.transfer, transfer);
	assert_int_equal(event.error.code, code);
	if (code != 0)
		assert_string_equal(event.error.text, "image: it failed");
	assert_true(event.complete.total_bytes == total);
}

static void test_transfers(void **state)
{
	struct fixture *f = *state;
	struct dioh_msg_memory_transfer memory = { .region = 3, .length = 8192 };
	struct dioh_msg_stream_transfer stream = { .stream = 4, .entry = 5 };
	struct dioh_event event;
	uint32_t transfer = 0, before, in_flight = 0;

	connect_to(f, script_transfers);
	assert_int_equal(dioh_save_memory(f->session, &memory, &transfer, &f->err), 0);
	assert_completes(f, transfer, 0, 1);
	before = transfer;
	assert_int_equal(dioh_load_memory(f->session, &memory, &transfer, &f->err), 0);
	assert_int_not_equal(transfer, before);
	assert_completes(f, transfer, EIO, 2);
	assert_int_equal(dioh_save_stream(f->session, &stream, &transfer, &f->err), 0);
	assert_completes(f, transfer, 0, 3);
	assert_int_equal(dioh_load_stream(f->session, &stream, &transfer, &f->err), 0);
	assert_int_equal(dioh_cancel(f->session, transfer, &in_flight, &f->err), 0);
	assert_int_equal(in_flight, 12);
	assert_completes(f, transfer, ECANCELED, 4);
	assert_int_equal(dioh_finish(f->session, 1, 77, "patch", 5, &transfer, &f->err), 0);
	assert_completes(f, transfer, 0, 5);
	assert_untouched(f);
	assert_int_equal(dioh_poll(f->session, &event, 5000, &f->err), -EPIPE);
	disconnect(f);
}

static void script_finish(struct fake *fake)
{
	const struct dioh_msg_finish *finish = (const void *)fake->in.payload;

	greet(fake);
	complete(fake, accept_transfer(fake, DIOH_MSG_FINISH), 0, 0);
	expect_that(fake, fake->in.header.size == sizeof(*finish), "no patch");
}

static void test_finish_patches(void **state)
{
	struct fixture *f = *state;
	uint8_t patch[DIOH_HEADER_PATCH_BYTES_MAX + 1] = { 0 };
	uint32_t transfer = 0;

	connect_to(f, script_finish);
	assert_int_equal(dioh_finish(f->session, 0, 0, NULL, 5, &transfer, &f->err), -EINVAL);
	assert_int_equal(dioh_finish(f->session, 0, 0, patch, sizeof(patch), &transfer, &f->err),
	                 -EINVAL);
	assert_int_equal(dioh_finish(f->session, 2, 0, NULL, 0, &transfer, &f->err), -EINVAL);
	assert_int_equal(transfer, 0);
	assert_int_equal(dioh_finish(f->session, 0, 0, NULL, 0, &transfer, &f->err), 0);
	assert_int_equal(dioh_wait(f->session, transfer, NULL, NULL), 0);
	disconnect(f);
}

/* ---- events ---------------------------------------------------------------------------------- */

static void script_interleaved(struct fake *fake)
{
	uint32_t first, second;

	greet(fake);
	first = accept_transfer(fake, DIOH_MSG_SAVE_MEMORY);
	second = accept_transfer(fake, DIOH_MSG_SAVE_MEMORY);
	progress(fake, 2, 100);
	stuck(fake, 1);
	complete(fake, second, EIO, 2);
	progress(fake, 1, 200);
	stuck(fake, 3);
	complete(fake, first, 0, 1);
	progress(fake, DIOH_TRANSFERS_MAX, 300);
	status(fake);
}

/* Every COMPLETE, the newest of the others, in the order in which they came. */
static void test_events_before_a_reply(void **state)
{
	struct fixture *f = *state;
	struct dioh_event event;
	uint32_t first, second;

	connect_to(f, script_interleaved);
	first = begin_save(f);
	second = begin_save(f);
	ask_status(f);
	assert_completes(f, second, EIO, 2);
	event = next_event(f, DIOH_EVENT_STUCK);
	assert_int_equal(event.stuck.in_flight, 3);
	assert_completes(f, first, 0, 1);
	event = next_event(f, DIOH_EVENT_PROGRESS);
	assert_int_equal(event.phase, DIOH_PHASE_TRANSFER);
	assert_int_equal(event.progress_count, DIOH_TRANSFERS_MAX);
	assert_int_equal(event.progress[DIOH_TRANSFERS_MAX - 1].transfer, DIOH_TRANSFERS_MAX - 1);
	assert_true(event.progress[5].done_bytes == 300);
	assert_int_equal(dioh_poll(f->session, &event, 0, &f->err), 0);
	assert_untouched(f);
	disconnect(f);
}

static void script_all_at_once(struct fake *fake)
{
	uint32_t ids[DIOH_TRANSFERS_MAX], finish;

	greet(fake);
	for (unsigned i = 0; i < DIOH_TRANSFERS_MAX; i++)
		ids[i] = accept_transfer(fake, DIOH_MSG_SAVE_MEMORY);
	finish = accept_transfer(fake, DIOH_MSG_FINISH);
	for (unsigned i = DIOH_TRANSFERS_MAX; i-- > 0;)
		complete(fake, ids[i], 0, i);
	complete(fake, finish, 0, 1000);
	status(fake);
	complete(fake, accept_transfer(fake, DIOH_MSG_SAVE_MEMORY), 0, 2000);
}

/* As many as there can be arrive during one call, and none is lost; and no more than that is ever begun. */
static void test_as_many_as_there_can_be(void **state)
{
	struct fixture *f = *state;
	struct dioh_msg_memory_transfer what = { .length = 4096 };
	uint32_t ids[DIOH_TRANSFERS_MAX], finish = 0, more = 4711;

	connect_to(f, script_all_at_once);
	for (unsigned i = 0; i < DIOH_TRANSFERS_MAX; i++)
		ids[i] = begin_save(f);
	assert_int_equal(dioh_save_memory(f->session, &what, &more, &f->err), -EBUSY);
	f->err = f->untouched;
	assert_int_equal(dioh_finish(f->session, 0, 0, NULL, 0, &finish, &f->err), 0);
	assert_int_equal(dioh_finish(f->session, 0, 0, NULL, 0, &more, NULL), -EBUSY);
	ask_status(f);
	assert_int_equal(dioh_save_memory(f->session, &what, &more, NULL), -EBUSY);
	assert_int_equal(more, 4711);
	for (unsigned i = DIOH_TRANSFERS_MAX; i-- > 0;)
		assert_completes(f, ids[i], 0, i);
	assert_completes(f, finish, 0, 1000);
	assert_int_equal(dioh_wait(f->session, begin_save(f), NULL, &f->err), 0);
	assert_untouched(f);
	disconnect(f);
}

static void script_ids(struct fake *fake)
{
	greet(fake);
	for (int i = 0; i < 3; i++)
		(void)accept_transfer(fake, DIOH_MSG_SAVE_MEMORY);
}

/* Ids are never 0, and never those of a transfer that runs. */
static void test_ids_wrap_around(void **state)
{
	struct fixture *f = *state;
	uint32_t first, second, third;

	connect_to(f, script_ids);
	f->session->last_id = 0;
	first = begin_save(f);
	f->session->last_id = UINT32_MAX - 1;
	second = begin_save(f);
	third = begin_save(f);
	assert_int_equal(first, 1);
	assert_int_equal(second, UINT32_MAX);
	assert_int_equal(third, 2);
	disconnect(f);
}

static void script_wait(struct fake *fake)
{
	uint32_t first, second, third;

	greet(fake);
	first = accept_transfer(fake, DIOH_MSG_SAVE_MEMORY);
	second = accept_transfer(fake, DIOH_MSG_SAVE_MEMORY);
	third = accept_transfer(fake, DIOH_MSG_SAVE_MEMORY);
	progress(fake, 3, 100);
	complete(fake, third, 0, 3);
	stuck(fake, 1);
	complete(fake, first, ENOSPC, 1);
	status(fake);
	sleep_ms(DELAY_MS);
	progress(fake, 1, 200);
	complete(fake, second, 0, 2);
}

static void start_alarms(bool on);

static void test_wait(void **state)
{
	struct fixture *f = *state;
	struct dioh_msg_complete figures = { 0 };
	struct dioh_event event;
	uint32_t first, second, third;

	connect_to(f, script_wait);
	first = begin_save(f);
	second = begin_save(f);
	third = begin_save(f);
	assert_int_equal(dioh_wait(f->session, 4711, &figures, &f->err), -ENOENT);
	assert_int_equal(dioh_wait(f->session, 0, &figures, &f->err), -ENOENT);
	assert_int_equal(dioh_wait(f->session, first, &figures, &f->err), -ENOSPC);
	assert_int_equal(f->err.code, ENOSPC);
	assert_string_equal(f->err.text, "image: it failed");
	assert_true(figures.total_bytes == 1);
	f->err = f->untouched;
	ask_status(f);
	start_alarms(true); /* signals do not end the wait */
	assert_int_equal(dioh_wait(f->session, second, &figures, &f->err), 0);
	start_alarms(false);
	assert_true(figures.total_bytes == 2);
	assert_untouched(f);
	assert_int_equal(dioh_wait(f->session, second, NULL, NULL), -ENOENT); /* it was taken */
	assert_completes(f, third, 0, 3);                                     /* it was kept */
	assert_int_equal(dioh_poll(f->session, &event, 0, &f->err), 0);       /* the rest was dropped */
	disconnect(f);
}

/* ---- the end comes early --------------------------------------------------------------------- */

static void script_close_in_call(struct fake *fake)
{
	uint32_t first, second;

	greet(fake);
	first = accept_transfer(fake, DIOH_MSG_SAVE_MEMORY);
	second = accept_transfer(fake, DIOH_MSG_SAVE_MEMORY);
	(void)accept_transfer(fake, DIOH_MSG_SAVE_MEMORY);
	take(fake, DIOH_MSG_STATUS);
	progress(fake, 1, 100);
	complete(fake, first, 0, 1);
	complete(fake, second, EIO, 2);
	hang_up(fake);
}

static void test_end_in_a_call(void **state)
{
	struct fixture *f = *state;
	struct dioh_msg_status_reply now = { .phase = 4711 };
	struct dioh_msg_complete figures = { .total_bytes = 4711 };
	uint32_t first, second, third;

	connect_to(f, script_close_in_call);
	first = begin_save(f);
	second = begin_save(f);
	third = begin_save(f);
	assert_int_equal(dioh_status(f->session, &now, &f->err), -EPIPE);
	assert_int_equal(f->err.code, EPIPE);
	assert_int_equal(now.phase, 4711);
	/* What came before is still there. */
	assert_int_equal(dioh_wait(f->session, second, NULL, NULL), -EIO);
	assert_completes(f, first, 0, 1);
	assert_int_equal(dioh_wait(f->session, third, &figures, &f->err), -EPIPE);
	assert_true(figures.total_bytes == 4711);
	assert_broken(f, EPIPE);
	disconnect(f);
}

static void script_close_before_call(struct fake *fake)
{
	uint32_t id;

	greet(fake);
	id = accept_transfer(fake, DIOH_MSG_SAVE_MEMORY);
	complete(fake, id, 0, 1);
	hang_up(fake);
}

/* The next request cannot even be sent. A COMPLETE that waits in the socket must come all the same. */
static void test_end_before_a_call(void **state)
{
	struct fixture *f = *state;
	struct dioh_msg_status_reply now;
	uint32_t transfer;

	connect_to(f, script_close_before_call);
	transfer = begin_save(f);
	end_fake(f);
	assert_int_equal(dioh_status(f->session, &now, &f->err), -EPIPE);
	assert_completes(f, transfer, 0, 1);
	assert_broken(f, EPIPE);
	assert_int_equal(dioh_close(f->session, 0, NULL), 0);
}

static void script_close_with_unread_request(struct fake *fake)
{
	struct pollfd request = { fake->fd, POLLIN, 0 };
	uint32_t id;

	greet(fake);
	id = accept_transfer(fake, DIOH_MSG_SAVE_MEMORY);
	complete(fake, id, 0, 1);
	poll(&request, 1, 5000); /* STATUS is there and stays unread: that resets the connection */
	hang_up(fake);
}

static void test_reset_in_a_call(void **state)
{
	struct fixture *f = *state;
	struct dioh_msg_status_reply now;
	uint32_t transfer;

	connect_to(f, script_close_with_unread_request);
	transfer = begin_save(f);
	assert_int_equal(dioh_status(f->session, &now, &f->err), -EPIPE);
	assert_completes(f, transfer, 0, 1);
	assert_broken(f, EPIPE);
	disconnect(f);
}

static void script_shut_for_reading(struct fake *fake)
{
	greet(fake);
	shutdown(fake->fd, SHUT_RD);
	progress(fake, 0, 0); /* the sign that it is done */
	take(fake, DIOH_MSG_STATUS);
	fake->failure[0] = '\0'; /* nothing can come */
	sleep_ms(DELAY_MS);
}

/* Requests do not get through, and still the end is not there: nobody may wait for it. */
static void test_shut_for_reading(void **state)
{
	struct fixture *f = *state;
	struct dioh_msg_status_reply now;

	connect_to(f, script_shut_for_reading);
	(void)next_event(f, DIOH_EVENT_PROGRESS);
	assert_int_equal(dioh_status(f->session, &now, &f->err), -EPIPE);
	assert_broken(f, EPIPE);
	disconnect(f);
}

/* ---- a helper that breaks the protocol ------------------------------------------------------- */

static void bad_status(struct fake *fake, struct dioh_msg_header change, size_t size)
{
	struct dioh_msg_status_reply now = { .phase = DIOH_PHASE_READY, .in_flight = 5 };
	struct dioh_msg_header header;

	greet(fake);
	take(fake, DIOH_MSG_STATUS);
	header = (struct dioh_msg_header){ .type = fake->in.header.type + 1 + change.type,
		                           .flags = change.flags,
		                           .id = fake->in.header.id + change.id };
	send_message(fake, header, &now, size);
}

#define STATUS_BYTES sizeof(struct dioh_msg_status_reply)

static void script_other_id(struct fake *fake)
{
	bad_status(fake, (struct dioh_msg_header){ .id = 1 }, STATUS_BYTES);
}

static void script_other_type(struct fake *fake)
{
	bad_status(fake, (struct dioh_msg_header){ .type = 2 }, STATUS_BYTES);
}

static void script_short_reply(struct fake *fake)
{
	bad_status(fake, (struct dioh_msg_header){ 0 }, STATUS_BYTES - 1);
}

static void script_unknown_flag(struct fake *fake)
{
	bad_status(fake, (struct dioh_msg_header){ .flags = 2 }, STATUS_BYTES);
}

static void script_no_error_struct(struct fake *fake)
{
	bad_status(fake, (struct dioh_msg_header){ .flags = DIOH_MSG_ERROR }, STATUS_BYTES);
}

static void script_unknown_event(struct fake *fake)
{
	bad_status(fake, (struct dioh_msg_header){ .type = 200 }, STATUS_BYTES);
}

static void script_bad_phase(struct fake *fake)
{
	struct dioh_msg_status_reply now = { .phase = 99 };

	greet(fake);
	take(fake, DIOH_MSG_STATUS);
	reply(fake, &now, sizeof(now));
}

static void script_error_without_code(struct fake *fake)
{
	struct dioh_msg_header header = { .type = DIOH_MSG_STATUS + 1, .flags = DIOH_MSG_ERROR };
	struct dioh_msg_error error = { .code = 0 };

	greet(fake);
	take(fake, DIOH_MSG_STATUS);
	header.id = fake->in.header.id;
	send_message(fake, header, &error, sizeof(error));
}

static void script_descriptors(struct fake *fake)
{
	struct dioh_msg_status_reply now = { .phase = DIOH_PHASE_READY };
	struct dioh_msg_header header = { .type = DIOH_MSG_STATUS + 1, .size = sizeof(now) };
	int fds[] = { fake->fd, fake->fd };
	struct dioh_error err;

	greet(fake);
	take(fake, DIOH_MSG_STATUS);
	header.id = fake->in.header.id;
	if (dioh_channel_send(fake->fd, &header, &now, fds, 2, 0, &err) < 0)
		blame(fake, err.text, err.code);
}

static void script_too_short_for_a_header(struct fake *fake)
{
	greet(fake);
	take(fake, DIOH_MSG_STATUS);
	if (send(fake->fd, "oops", 4, 0) != 4)
		blame(fake, "send", errno);
}

static void script_size_lies(struct fake *fake)
{
	struct dioh_msg_header header = { .type = DIOH_MSG_STATUS + 1, .size = STATUS_BYTES };

	greet(fake);
	take(fake, DIOH_MSG_STATUS);
	header.id = fake->in.header.id;
	if (send(fake->fd, &header, sizeof(header), 0) != (ssize_t)sizeof(header))
		blame(fake, "send", errno);
}

static void script_complete_of_nothing(struct fake *fake)
{
	greet(fake);
	take(fake, DIOH_MSG_STATUS);
	complete(fake, 4711, 0, 1);
}

static void script_progress_lies(struct fake *fake)
{
	struct dioh_msg_header header = { .type = DIOH_MSG_PROGRESS };
	struct dioh_msg_progress event = { .phase = DIOH_PHASE_TRANSFER, .count = UINT32_MAX };

	greet(fake);
	take(fake, DIOH_MSG_STATUS);
	send_message(fake, header, &event, sizeof(event));
}

static void script_request(struct fake *fake)
{
	struct dioh_msg_header header = { .type = DIOH_MSG_STATUS, .id = 1 };

	greet(fake);
	take(fake, DIOH_MSG_STATUS);
	send_message(fake, header, NULL, 0);
}

static void test_breaches_in_a_call(void **state)
{
	void (*scripts[])(struct fake *) = {
		script_other_id,
		script_other_type,
		script_short_reply,
		script_unknown_flag,
		script_no_error_struct,
		script_unknown_event,
		script_bad_phase,
		script_error_without_code,
		script_descriptors,
		script_too_short_for_a_header,
		script_size_lies,
		script_complete_of_nothing,
		script_progress_lies,
		script_request,
	};
	struct fixture *f = *state;

	for (size_t i = 0; i < sizeof(scripts) / sizeof(scripts[0]); i++) {
		struct dioh_msg_status_reply now = { .phase = 4711 };

		connect_to(f, scripts[i]);
		print_message("breach %zu\n", i);
		assert_int_equal(dioh_status(f->session, &now, &f->err), -EBADMSG);
		assert_int_equal(f->err.code, EBADMSG);
		assert_true(strlen(f->err.text) > 0);
		assert_int_equal(now.phase, 4711);
		assert_broken(f, EBADMSG);
		disconnect(f);
	}
}

static void script_unasked_reply(struct fake *fake)
{
	greet(fake);
	reply(fake, NULL, 0);
}

static void script_complete_twice(struct fake *fake)
{
	uint32_t id;

	greet(fake);
	id = accept_transfer(fake, DIOH_MSG_SAVE_MEMORY);
	complete(fake, id, 0, 1);
	complete(fake, id, 0, 2);
	status(fake);
}

static void test_breaches_between_calls(void **state)
{
	struct fixture *f = *state;
	struct dioh_msg_status_reply now;
	struct dioh_event event;
	uint32_t transfer;

	connect_to(f, script_unasked_reply);
	assert_int_equal(dioh_poll(f->session, &event, 5000, &f->err), -EBADMSG);
	assert_non_null(strstr(f->err.text, "unasked"));
	assert_broken(f, EBADMSG);
	disconnect(f);

	connect_to(f, script_complete_twice);
	transfer = begin_save(f);
	assert_int_equal(dioh_status(f->session, &now, &f->err), -EBADMSG);
	assert_completes(f, transfer, 0, 1);
	assert_broken(f, EBADMSG);
	disconnect(f);
}

/* ---- waiting --------------------------------------------------------------------------------- */

static long now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void script_late_event(struct fake *fake)
{
	greet(fake);
	take(fake, DIOH_MSG_STATUS);
	sleep_ms(2 * DELAY_MS);
	progress(fake, 0, 0);
	(void)status;
	{
		struct dioh_msg_status_reply now = { .phase = DIOH_PHASE_READY, .in_flight = 5 };

		reply(fake, &now, sizeof(now));
	}
}

static void do_nothing(int number)
{
	(void)number;
}

/* A signal every 10 ms: had one come before the wait, the next ends it. */
static void start_alarms(bool on)
{
	struct sigaction action = { .sa_handler = on ? do_nothing : SIG_DFL };
	struct itimerval timer = { { 0, on ? 10000 : 0 }, { 0, on ? 10000 : 0 } };

	if (on)
		assert_int_equal(sigaction(SIGALRM, &action, NULL), 0);
	assert_int_equal(setitimer(ITIMER_REAL, &timer, NULL), 0);
	if (!on)
		assert_int_equal(sigaction(SIGALRM, &action, NULL), 0);
}

static void test_poll_waits(void **state)
{
	struct fixture *f = *state;
	struct dioh_event event;
	long begun;

	connect_to(f, script_only_status);
	memset(&event, 0x5a, sizeof(event));
	begun = now_ms();
	assert_int_equal(dioh_poll(f->session, &event, 0, &f->err), 0);
	assert_int_equal(dioh_poll(f->session, &event, DELAY_MS, &f->err), 0);
	assert_true(now_ms() - begun >= DELAY_MS);
	assert_int_equal(event.type, 0x5a5a5a5a);
	assert_untouched(f);
	start_alarms(true);
	assert_int_equal(dioh_poll(f->session, &event, -1, &f->err), -EINTR);
	start_alarms(false);
	assert_int_equal(f->err.code, EINTR);
	ask_status(f); /* it was no harm */
	disconnect(f);
}

/* A reply must not be lost because a signal came while it was awaited. */
static void test_signals_in_a_call(void **state)
{
	struct fixture *f = *state;

	connect_to(f, script_late_event);
	start_alarms(true);
	ask_status(f);
	start_alarms(false);
	(void)next_event(f, DIOH_EVENT_PROGRESS);
	disconnect(f);
}

static void script_event_loop(struct fake *fake)
{
	uint32_t first, second;

	greet(fake);
	first = accept_transfer(fake, DIOH_MSG_SAVE_MEMORY);
	second = accept_transfer(fake, DIOH_MSG_SAVE_MEMORY);
	sleep_ms(DELAY_MS);
	progress(fake, 2, 1);
	complete(fake, first, 0, 1);
	complete(fake, second, 0, 2);
}

/* A caller with an event loop of its own: the descriptor becomes readable, and is read until nothing is left. */
static void test_own_event_loop(void **state)
{
	struct fixture *f = *state;
	struct pollfd watched;
	unsigned completed = 0;

	connect_to(f, script_event_loop);
	(void)begin_save(f);
	(void)begin_save(f);
	watched = (struct pollfd){ dioh_session_fd(f->session), POLLIN, 0 };
	while (completed < 2) {
		struct dioh_event event;
		int r;

		assert_int_equal(poll(&watched, 1, 5000), 1);
		while ((r = dioh_poll(f->session, &event, 0, &f->err)) == 1)
			completed += event.type == DIOH_EVENT_COMPLETE;
		assert_int_equal(r, 0);
	}
	disconnect(f);
}

#define EVENTS_MANY 3000 /* many times what a socket holds */

static void script_talks_before_it_listens(struct fake *fake)
{
	uint32_t ids[3], type = 0;

	greet(fake);
	for (int i = 0; i < 3; i++)
		ids[i] = accept_transfer(fake, DIOH_MSG_SAVE_MEMORY);
	for (int i = 0; i < EVENTS_MANY; i++) {
		progress(fake, DIOH_TRANSFERS_MAX, (uint64_t)i);
		if (i % 1000 == 0)
			complete(fake, ids[i / 1000], 0, (uint64_t)i);
	}
	while (fake->fd >= 0 && fake->failure[0] == '\0' && type != DIOH_MSG_STATUS) {
		struct dioh_error err;

		if (dioh_channel_receive(fake->fd, &fake->in, 0, &err) < 0)
			blame(fake, err.text, err.code);
		type = fake->in.header.type;
	}
	{
		struct dioh_msg_status_reply now = { .phase = DIOH_PHASE_READY, .in_flight = 5 };

		reply(fake, &now, sizeof(now));
	}
}

/* The socket is full in both directions: who waits to send must listen, or both wait for ever. */
static void test_full_socket(void **state)
{
	struct fixture *f = *state;
	struct dioh_msg_header filler = { .type = DIOH_MSG_CANCEL, .id = 1, .size = 4096 };
	static const uint8_t bytes[4096];
	uint32_t ids[3];

	connect_to(f, script_talks_before_it_listens);
	for (int i = 0; i < 3; i++)
		ids[i] = begin_save(f);
	while (dioh_channel_send(dioh_session_fd(f->session), &filler, bytes, NULL, 0, MSG_DONTWAIT,
	                         &f->err) == 0)
		continue;
	ask_status(f);
	for (int i = 0; i < 3; i++)
		assert_completes(f, ids[i], 0, (uint64_t)i * 1000);
	assert_true(next_event(f, DIOH_EVENT_PROGRESS).progress[0].done_bytes == EVENTS_MANY - 1);
	disconnect(f);
}

/* ---- the helper as a child ------------------------------------------------------------------- */

static const char *this_program;
static const char *child_argument;

static bool signals_are_as_at_the_start(void)
{
	struct sigaction action;
	sigset_t mask;

	sigprocmask(SIG_SETMASK, NULL, &mask);
	for (int number = 1; number < 32; number++) {
		if (number == SIGKILL || number == SIGSTOP)
			continue;
		if (sigaction(number, NULL, &action) < 0 || action.sa_handler != SIG_DFL ||
		    sigismember(&mask, number) != 0)
			return false;
	}
	return true;
}

/* What is wrong with the world that it was born into, bit by bit. */
static void child_inspect(struct fake *fake)
{
	struct dioh_msg_status_reply findings = { .phase = DIOH_PHASE_ATTACH };
	bool clean = signals_are_as_at_the_start();

	greet(fake);
	take(fake, DIOH_MSG_STATUS);
	findings.transfers |= is_device(0, DEV_NULL) ? 0 : 1;
	findings.transfers |= is_device(1, DEV_NULL) ? 0 : 2;
	findings.transfers |= fcntl(3, F_GETFD) == 0 ? 0 : 4;
	findings.transfers |= clean ? 0 : 8;
	findings.transfers |= fcntl(2, F_GETFD) == 0 ? 0 : 16;
	findings.transfers |= write(2, "here\n", 5) == 5 ? 0 : 32;
	findings.transfers |= getppid() > 0 && child_argument ? 0 : 64;
	reply(fake, &findings, sizeof(findings));
}

static void child_die(struct fake *fake)
{
	greet(fake);
	take(fake, DIOH_MSG_STATUS);
	raise(atoi(child_argument));
}

static void child_refuse(struct fake *fake)
{
	take(fake, DIOH_MSG_HELLO);
	refuse(fake, ENOTSUP, "not with me");
}

static void child_refuse_and_stay(struct fake *fake)
{
	child_refuse(fake);
	for (;;)
		pause();
}

static void child_linger(struct fake *fake)
{
	greet(fake);
	await_hangup(fake);
	for (;;)
		pause();
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
	{ "die", child_die },
	{ "refuse", child_refuse },
	{ "refuse-and-stay", child_refuse_and_stay },
	{ "linger", child_linger },
	{ "leave", child_leave },
};

/* serve --fd=3 SCRIPT [ARGUMENT] */
static int child_main(int argc, char **argv)
{
	static struct fake fake = { .fd = 3 };

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (argc < 4 || strcmp(argv[2], "--fd=3") != 0)
		return 90;
	child_argument = argc > 4 ? argv[4] : NULL;
	for (size_t i = 0; i < sizeof(child_scripts) / sizeof(child_scripts[0]); i++) {
		if (strcmp(argv[3], child_scripts[i].name) != 0)
			continue;
		child_scripts[i].script(&fake);
		await_hangup(&fake);
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

static void spawn(struct fixture *f, const char *const *args)
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

static void close_child(struct fixture *f, int exit_status)
{
	int wait_status = -1;

	assert_int_equal(dioh_close(f->session, 5000, &wait_status), 0);
	assert_true(WIFEXITED(wait_status));
	assert_int_equal(WEXITSTATUS(wait_status), exit_status);
	assert_no_child();
}

static void assert_findings(struct fixture *f, uint32_t findings)
{
	struct dioh_msg_status_reply now = { 0 };

	assert_int_equal(dioh_status(f->session, &now, &f->err), 0);
	assert_int_equal(now.transfers, findings);
}

static void test_spawn(void **state)
{
	struct fixture *f = *state;
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
	assert_untouched(f);
	close_child(f, 7);
}

static void test_spawn_with_stderr(void **state)
{
	struct fixture *f = *state;
	static const char *const args[] = { "inspect", "argument", NULL };
	struct dioh_spawn_options options = child_options(args);
	char line[16] = "";
	int pipe_fds[2];

	assert_int_equal(pipe(pipe_fds), 0);
	options.stderr_fd = pipe_fds[1];
	assert_int_equal(dioh_spawn(&options, 0, &f->session, &f->err), 0);
	close(pipe_fds[1]);
	assert_findings(f, 0);
	assert_int_equal(read(pipe_fds[0], line, sizeof(line)), 5);
	assert_string_equal(line, "here\n");
	close_child(f, 7);
	close(pipe_fds[0]);
}

/* 0: right; else the line where it went wrong. */
static int spawn_without_standard_descriptors(const struct dioh_spawn_options *options,
                                              unsigned closed)
{
	struct dioh_msg_status_reply now = { 0 };
	struct dioh_session *session;
	int wait_status = -1;

	for (int fd = 0; fd < 4; fd++)
		if (closed & 1u << fd)
			close(fd);
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

static void spawn_in_vain(struct fixture *f, const struct dioh_spawn_options *options, int code,
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
	struct fixture *f = *state;
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
	struct fixture *f = *state;
	static const char *const args[] = { "inspect", "argument", NULL };
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
	struct fixture *f = *state;
	static const char *const leave[] = { "leave", "2", NULL };
	static const char *const refuse_it[] = { "refuse", NULL };
	static const char *const stay[] = { "refuse-and-stay", NULL };
	struct dioh_spawn_options options = child_options(leave);
	long begun;

	spawn_in_vain(f, &options, EPIPE, "the helper has ended with exit status 2");
	options.args = refuse_it;
	spawn_in_vain(f, &options, ENOTSUP, "not with me");
	options.args = stay;
	begun = now_ms();
	spawn_in_vain(f, &options, ENOTSUP, "not with me"); /* and its child is gone all the same */
	assert_true(now_ms() - begun >= 1000);
}

static void assert_death(struct fixture *f, int number, const char *text)
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
	assert_broken(f, EPIPE);
	assert_int_equal(dioh_close(f->session, 5000, &wait_status), 0);
	assert_true(WIFSIGNALED(wait_status)); /* telling how it ended did not reap it */
	assert_int_equal(WTERMSIG(wait_status), number);
	assert_no_child();
}

static void test_death_is_described(void **state)
{
	struct fixture *f = *state;

	assert_death(f, SIGALRM, "ended by its attach timer: a file system did not answer");
	assert_death(f, SIGKILL, "killed by signal 9 (SIGKILL)");
	assert_death(f, SIGTERM, "killed by signal 15 (SIGTERM)");
}

static void test_close_in_time_or_not(void **state)
{
	struct fixture *f = *state;
	static const char *const args[] = { "linger", NULL };
	int wait_status = 4711;
	pid_t pid;
	long begun;

	spawn(f, args);
	pid = dioh_session_pid(f->session);
	begun = now_ms();
	start_alarms(true); /* which do not shorten it */
	assert_int_equal(dioh_close(f->session, 2 * DELAY_MS, &wait_status), -ETIMEDOUT);
	start_alarms(false);
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
	struct fixture *f = *state;
	static const char *const args[] = { "inspect", "argument", NULL };
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
	struct fixture *f = *state;
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

/* A cgroup v2 directory of our own, removed behind us; -1: not to be had here. */
static int make_cgroup(char *path, size_t path_bytes)
{
	static const char *const roots[] = { "/sys/fs/cgroup", "/sys/fs/cgroup/unified" };

	for (size_t i = 0; i < sizeof(roots) / sizeof(roots[0]); i++) {
		char controllers[64];

		snprintf(controllers, sizeof(controllers), "%s/cgroup.procs", roots[i]);
		snprintf(path, path_bytes, "%s/dioh-test-%d", roots[i], (int)getpid());
		if (access(controllers, F_OK) == 0 && mkdir(path, 0755) == 0)
			return open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	}
	return -1;
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
	struct fixture *f = *state;
	static const char *const args[] = { "inspect", "argument", NULL };
	struct dioh_spawn_options options = child_options(args);
	char path[128];
	int r;

	options.cgroup_fd = make_cgroup(path, sizeof(path));
	if (options.cgroup_fd < 0) {
		print_message("skipped: no cgroup v2 directory can be made here\n");
		skip();
	}
	r = dioh_spawn(&options, 0, &f->session, &f->err);
	close(options.cgroup_fd);
	if (r < 0)
		rmdir(path);
	if (r == -ENOSYS) { /* what valgrind answers */
		print_message("skipped: no clone3(2) here\n");
		skip();
	}
	assert_int_equal(r, 0);
	assert_true(is_in_cgroup(dioh_session_pid(f->session), strrchr(path, '/')));
	assert_findings(f, 0);
	close_child(f, 7);
	assert_int_equal(rmdir(path), 0);
}

#define TEST(function) cmocka_unit_test_setup_teardown(function, set_up, tear_down)

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		TEST(test_hello),
		TEST(test_hello_in_vain),
		TEST(test_connect_to_something_else),
		TEST(test_attach),
		TEST(test_own_mistakes),
		TEST(test_refusals),
		TEST(test_create_image),
		TEST(test_create_image_fails),
		TEST(test_write_header),
		TEST(test_open_image),
		TEST(test_get_table),
		TEST(test_get_table_beside),
		TEST(test_read_header),
		TEST(test_transfers),
		TEST(test_finish_patches),
		TEST(test_events_before_a_reply),
		TEST(test_as_many_as_there_can_be),
		TEST(test_ids_wrap_around),
		TEST(test_wait),
		TEST(test_end_in_a_call),
		TEST(test_end_before_a_call),
		TEST(test_reset_in_a_call),
		TEST(test_shut_for_reading),
		TEST(test_breaches_in_a_call),
		TEST(test_breaches_between_calls),
		TEST(test_poll_waits),
		TEST(test_signals_in_a_call),
		TEST(test_own_event_loop),
		TEST(test_full_socket),
		TEST(test_spawn),
		TEST(test_spawn_with_stderr),
		TEST(test_spawn_without_standard_descriptors),
		TEST(test_spawn_of_nothing),
		TEST(test_spawn_through_path),
		TEST(test_spawn_of_what_does_not_answer),
		TEST(test_death_is_described),
		TEST(test_close_in_time_or_not),
		TEST(test_close_waits_for_ever),
		TEST(test_spawn_in_no_cgroup),
		TEST(test_spawn_in_cgroup),
	};
	static char path[4096];

	if (argc > 1 && strcmp(argv[1], "serve") == 0)
		return child_main(argc, argv);
	if (readlink("/proc/self/exe", path, sizeof(path) - 1) < 0)
		return 1;
	this_program = path;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
