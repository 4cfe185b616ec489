/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test_degraded.c - a sealed helper does all its work on each engine, and where a layer of the seal, or io_uring, is
 * not to be had: an image is saved around holes, made durable, loaded, cancelled; SEAL's reply says what is missing.
 * test_seal.c has the other half: with the missing layer required, nothing is written.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <linux/landlock.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "cleanup.h"
#include "fixture.h"
#include "raw_manager.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define SAVE DIOH_DIRECTION_SAVE
#define LOAD DIOH_DIRECTION_LOAD
#define KEPT (DIOH_LAYER_STRAYS_CLOSED | DIOH_LAYER_NO_CAPABILITIES | DIOH_LAYER_NO_NEW_PRIVS)

struct environment {
	const char *name;
	struct raw_options options;
	uint32_t engine;  /* asked for */
	uint32_t missing; /* layers */
};

static const char *const keep_uid[] = { "--keep-uid", NULL };

static const struct environment environments[] = {
	{ "io_uring", RAW_OPTIONS_INIT, DIOH_ENGINE_IO_URING, 0 },
	{ "libaio", RAW_OPTIONS_INIT, DIOH_ENGINE_LIBAIO, 0 },
	{ "sync", RAW_OPTIONS_INIT, DIOH_ENGINE_SYNC, 0 },
	{ "io_uring disabled", { .fd_number = 3, .no_io_uring = true }, DIOH_ENGINE_ANY, 0 },
	{ "no Landlock", { .fd_number = 3, .no_landlock = true }, DIOH_ENGINE_ANY, DIOH_LAYER_LANDLOCK },
	{ "no close_range", { .fd_number = 3, .no_close_range = true }, DIOH_ENGINE_ANY, 0 },
	{ "no seccomp", { .fd_number = 3, .no_seccomp = true }, DIOH_ENGINE_ANY, DIOH_LAYER_SECCOMP },
	{ "no ring restrictions", { .fd_number = 3, .no_restrictions = true }, DIOH_ENGINE_ANY,
	  DIOH_LAYER_RING_RESTRICTIONS },
	{ "nothing", { .fd_number = 3, .no_io_uring = true, .no_landlock = true, .no_seccomp = true }, DIOH_ENGINE_ANY,
	  DIOH_LAYER_LANDLOCK | DIOH_LAYER_SECCOMP },
	{ "unprivileged", { .fd_number = 3, .user = 12345 }, DIOH_ENGINE_ANY, DIOH_LAYER_SECUREBITS },
	{ "keeps its uid", { .fd_number = 3, .args = keep_uid }, DIOH_ENGINE_ANY, 0 },
};

static bool ring_here(const struct environment *e)
{
	return !e->options.no_io_uring && syscall(SYS_io_uring_setup, 0, NULL) < 0 && errno == EFAULT;
}

static void check_reply(const struct environment *e, const struct dioh_msg_seal_reply *reply)
{
	uint32_t missing = e->missing;

	if (e->missing & DIOH_LAYER_RING_RESTRICTIONS && !ring_here(e))
		missing = 0;
	if (reply->layers & missing || (reply->layers & KEPT) != KEPT)
		fail_msg("%s: layers 0x%x", e->name, reply->layers);
	if (!(missing & DIOH_LAYER_SECCOMP))
		assert_true(reply->layers & DIOH_LAYER_SECCOMP);
	if (!(missing & DIOH_LAYER_RING_RESTRICTIONS))
		assert_true(reply->layers & DIOH_LAYER_RING_RESTRICTIONS);
	if (e->engine || ring_here(e))
		assert_int_equal(reply->engine, e->engine ? e->engine : DIOH_ENGINE_IO_URING);
	else /* libaio for direct I/O */
		assert_in_range(reply->engine, DIOH_ENGINE_LIBAIO, DIOH_ENGINE_SYNC);
}

static int open_image(const char *name, int flags)
{
	int fd = open(fixture_path(name), flags | O_CLOEXEC, 0600);

	if (fd < 0 && !(flags & O_DIRECT))
		fail_msg("%s: %s", name, strerror(errno));
	return fd;
}

static void attach_image(struct raw_manager *m, const struct environment *e, const char *name)
{
	const int access = m->direction == SAVE ? O_RDWR : O_RDONLY;
	DIOH_AUTO_FD int buffered = open_image(name, access | (m->direction == SAVE ? O_CREAT : 0));
	DIOH_AUTO_FD int direct = open_image(name, access | O_DIRECT); /* not everywhere */
	const struct dioh_msg_attach_image image = {
		.fds = direct >= 0 ? 3 : 1, .direction = m->direction, .engine = e->engine,
	};
	const int fds[] = { buffered, direct };

	raw_reply(m, DIOH_MSG_ATTACH_IMAGE,
	          raw_request_fds(m, DIOH_MSG_ATTACH_IMAGE, &image, sizeof(image), fds, direct >= 0 ? 2 : 1), NULL, 0);
}

/* A sealed session with the image, memory RAW_MEMORY and stream RAW_STREAM. */
static void seal(struct raw_manager *m, const struct environment *e, uint32_t direction, const char *name, int memfd,
                 int stream_fd)
{
	const struct dioh_msg_attach_memory memory = { .memory = RAW_MEMORY, .fds = DIOH_MEMORY_FD_MEMORY };
	const struct dioh_msg_attach_stream stream = { .stream = RAW_STREAM };
	const struct dioh_msg_seal request = { 0 };
	struct dioh_msg_seal_reply reply;

	raw_reach(m, &e->options, NULL, direction, RAW_STAGE_ATTACH);
	attach_image(m, e, name);
	raw_reply(m, DIOH_MSG_ATTACH_MEMORY,
	          raw_request_fds(m, DIOH_MSG_ATTACH_MEMORY, &memory, sizeof(memory), &memfd, 1), NULL, 0);
	raw_reply(m, DIOH_MSG_ATTACH_STREAM,
	          raw_request_fds(m, DIOH_MSG_ATTACH_STREAM, &stream, sizeof(stream), &stream_fd, 1), NULL, 0);
	close(stream_fd);
	raw_call(m, DIOH_MSG_SEAL, &request, sizeof(request), &reply, sizeof(reply));
	check_reply(e, &reply);
}

static uint32_t say(struct raw_manager *m, uint32_t type)
{
	static _Alignas(8) uint8_t payload[DIOH_PAYLOAD_BYTES_MAX];
	size_t size = raw_sample(type, m->direction, payload);

	raw_call(m, type, payload, size, NULL, 0);
	return m->last_id;
}

static void carry_out(struct raw_manager *m, uint32_t type)
{
	assert_int_equal(raw_complete(m, say(m, type), NULL), 0);
}

static void make_pipe(int ends[2], const char *text)
{
	assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
	if (text)
		assert_int_equal(write(ends[1], text, strlen(text)), strlen(text));
}

/* Data, zeros and holes: direct writes beside holes of the image, and fallocate on it. */
static int holey_memory(uint64_t seed)
{
	int memfd = must_memfd("ram", RAW_REGION_BYTES, 0);

	must_fill_mixed(memfd, RAW_REGION_BYTES, 1, 40, seed);
	return memfd;
}

static void save(const struct environment *e, int memfd)
{
	struct raw_manager m;
	int ends[2];

	make_pipe(ends, "device state");
	close(ends[1]);
	seal(&m, e, SAVE, "image", memfd, ends[0]);
	say(&m, DIOH_MSG_CREATE_IMAGE);
	say(&m, DIOH_MSG_PUT_TABLE);
	say(&m, DIOH_MSG_WRITE_HEADER);
	carry_out(&m, DIOH_MSG_SAVE_MEMORY);
	carry_out(&m, DIOH_MSG_SAVE_STREAM);
	carry_out(&m, DIOH_MSG_FINISH);
	raw_ends(&m, 0);
}

static void load(const struct environment *e, int memfd)
{
	char text[64] = "";
	struct raw_manager m;
	int ends[2];

	make_pipe(ends, NULL);
	seal(&m, e, LOAD, "image", memfd, ends[1]);
	say(&m, DIOH_MSG_OPEN_IMAGE);
	say(&m, DIOH_MSG_READ_HEADER);
	carry_out(&m, DIOH_MSG_LOAD_MEMORY);
	carry_out(&m, DIOH_MSG_LOAD_STREAM);
	carry_out(&m, DIOH_MSG_FINISH);
	raw_ends(&m, 0);
	assert_int_equal(read(ends[0], text, sizeof(text)), strlen("device state"));
	assert_string_equal(text, "device state");
	close(ends[0]);
}

/* A stream that does not end is cancelled, and the session goes on to the end of another transfer. */
static void cancel(const struct environment *e, int memfd)
{
	struct dioh_msg_cancel request = { 0 };
	struct raw_manager m;
	int ends[2];

	make_pipe(ends, "device st");
	seal(&m, e, SAVE, "cancelled", memfd, ends[0]);
	say(&m, DIOH_MSG_CREATE_IMAGE);
	say(&m, DIOH_MSG_PUT_TABLE);
	request.transfer = say(&m, DIOH_MSG_SAVE_STREAM);
	raw_call(&m, DIOH_MSG_CANCEL, &request, sizeof(request), NULL, 0);
	assert_int_equal(raw_complete(&m, request.transfer, NULL), ECANCELED);
	carry_out(&m, DIOH_MSG_SAVE_MEMORY);
	raw_hang_up(&m);
	raw_ends(&m, 1); /* no FINISH: the image is partial */
	close(ends[1]);
}

static void works_everywhere(void **state)
{
	(void)state;
	for (size_t i = 0; i < COUNT(environments); i++) {
		const struct environment *e = &environments[i];
		DIOH_AUTO_FD int saved = holey_memory(i + 1);
		DIOH_AUTO_FD int loaded = must_memfd("loaded", RAW_REGION_BYTES, 0);

		if (e->engine == DIOH_ENGINE_IO_URING && !ring_here(e)) {
			print_message("skipped: %s is not to be had here\n", e->name);
			continue;
		}
		print_message("%s\n", e->name);
		must_fill(loaded, 0, RAW_REGION_BYTES, 99); /* what was there has to go */
		save(e, saved);
		load(e, loaded);
		assert_true(same_bytes(saved, loaded));
		cancel(e, saved);
	}
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(works_everywhere),
	};

	return cmocka_run_group_tests_name("degraded environments", tests, NULL, NULL);
}
