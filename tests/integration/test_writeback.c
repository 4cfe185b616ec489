/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test_writeback.c - the kernel tells once that what was written to the page cache is lost, and whoever asks first. With
 * several workers that is one of them; from then on no save of the session ends well, in whatever worker, and FINISH says
 * the same (faulty_engine.c). On tmpfs, which has no uncached writes, so that the helper writes behind.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cleanup.h"
#include "moves.h"

#define SMALL 0u
#define LARGE 1u /* more than may be under way behind the writer */
#define LARGE_BYTES (40 * MIB)
#define STREAM 2u

static char faulty[512];

static void begin(struct moves *m, uint32_t workers, int *ret_stream)
{
	static const uint64_t bytes[] = { [SMALL] = MIB, [LARGE] = LARGE_BYTES };
	struct moves fresh = MOVES(WAY_CONTAINER, fixture_path("image"));
	int ends[2];

	fresh.way.fds = WAY_LONE_BUFFERED;
	fresh.way.workers = workers;
	*m = fresh;
	for (uint32_t i = SMALL; i <= LARGE; i++)
		moves_add_region(m, i, bytes[i]);
	moves_add_stream(m, STREAM, 0);
	moves_start(m, DIOH_DIRECTION_SAVE);
	for (uint32_t i = SMALL; i <= LARGE; i++) {
		DIOH_AUTO_FD int memory = must_memfd("memory", bytes[i], 0);

		must_fill(memory, 0, bytes[i], i);
		moves_attach(m, i, memory, -1);
	}
	assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
	moves_attach_stream(m, STREAM, ends[0]);
	*ret_stream = ends[1];
	must(moves_create(m), &m->err);
}

static void set_fault(const char *kind, int error)
{
	char fault[64];

	(void)snprintf(fault, sizeof(fault), "%s:0:%d", kind, error);
	setenv("DIOH_FAULT", fault, 1);
}

static void expect_lost(struct moves *m, int code, int r)
{
	assert_int_equal(r, -code);
	moves_assert_error(m, code, SYNC, IMAGE, 0);
}

static void expect_refused(const char *path)
{
	struct moves m = MOVES(WAY_CONTAINER, path);

	moves_start(&m, DIOH_DIRECTION_LOAD);
	assert_int_equal(moves_open(&m, 0), -ENODATA);
	moves_end(&m, 0);
}

/* The stream is the first worker's, which the small memory takes, too; the large one is the second's, if there is one. */
static void lose(uint32_t workers, int code)
{
	struct moves m;
	uint32_t transfer;
	int stream;

	set_fault("writeback", code);
	begin(&m, workers, &stream);
	transfer = moves_begin_stream(&m, STREAM, STREAM, 0);
	assert_int_equal(write(stream, "some", 4), 4);
	must(moves_region(&m, SMALL, 0), &m.err);
	expect_lost(&m, code, moves_region(&m, LARGE, 0));
	expect_lost(&m, code, moves_wait(&m, transfer)); /* though nobody has said anything more */
	assert_int_equal(write(stream, "more", 4), -1);
	assert_int_equal(errno, EPIPE);
	close(stream);
	expect_lost(&m, code, moves_region(&m, SMALL, 0));
	expect_lost(&m, code, moves_region(&m, LARGE, 0));
	expect_lost(&m, code, moves_finish(&m, DIOH_FINISH_WRITTEN));
	moves_end(&m, 1);
	expect_refused(m.path);
}

/* With whatever errno the file system has for it, some of which the call itself might have had. */
static void one_worker(void **state)
{
	static const int codes[] = { ENOSPC, EIO, EINTR, EINVAL, ESPIPE, ENOSYS, EOPNOTSUPP, EPERM };

	(void)state;
	for (unsigned i = 0; i < sizeof(codes) / sizeof(codes[0]); i++)
		lose(1, codes[i]);
}

static void several_workers(void **state)
{
	(void)state;
	lose(2, ENOSPC);
	lose(3, ENOSPC);
}

/* What the file system says may be what a malformed message is called, which ends a session: this does not. */
static void a_damaged_file_system(void **state)
{
	struct moves m;
	int stream;

	(void)state;
	set_fault("writeback", EBADMSG);
	begin(&m, 1, &stream);
	close(stream);
	assert_int_equal(moves_region(&m, LARGE, 0), -EBADMSG);
	moves_assert_error(&m, EBADMSG, SYNC, IMAGE, 0);
	for (int i = 0; i < 2; i++) {
		assert_int_equal(moves_finish(&m, DIOH_FINISH_DURABLE), -EBADMSG);
		moves_assert_error(&m, EBADMSG, SYNC, IMAGE, 0);
		moves_assert_alive(&m);
	}
	moves_end(&m, 1);
	expect_refused(m.path);
}

/* The last of it, too: what has no error ends well. */
static void nothing_lost(void **state)
{
	struct moves m;
	uint32_t transfer;
	int stream;

	(void)state;
	set_fault("none", 0);
	begin(&m, 2, &stream);
	close(stream);
	transfer = moves_begin_stream(&m, STREAM, STREAM, 0);
	must(moves_wait(&m, transfer), &m.err);
	must(moves_region(&m, SMALL, 0), &m.err);
	must(moves_region(&m, LARGE, 0), &m.err);
	must(moves_finish(&m, DIOH_FINISH_DURABLE), &m.err);
	moves_end(&m, 0);
}

static void drop_in(void **state)
{
	char command[2048];

	(void)state;
	set_fault("writeback", EOPNOTSUPP);
	(void)snprintf(command, sizeof(command), "head -c %u /dev/zero | DIOHELPER_KEEP_CACHE=1 '%s' image 1 >'%s' 2>'%s'",
	               (unsigned)LARGE_BYTES, faulty, fixture_path("image"), fixture_path("messages"));
	assert_int_not_equal(system(command), 0);
	(void)snprintf(command, sizeof(command), "grep -q 'Operation not supported' '%s'", fixture_path("messages"));
	assert_int_equal(system(command), 0);
}

/* Whether the helper writes behind here. */
static bool possible(void)
{
	struct dioh_msg_attach_image_reply info;
	const struct fixture_image image = { .path = fixture_path("image"), .no_direct = true, .ret_info = &info };

	must_close(must_session(&image, DIOH_DIRECTION_SAVE), 0);
	return info.notes & DIOH_IMAGE_NOTE_DROPPED_BEHIND;
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(nothing_lost),
		cmocka_unit_test(one_worker),
		cmocka_unit_test(several_workers),
		cmocka_unit_test(a_damaged_file_system),
		cmocka_unit_test(drop_in),
	};

	(void)argc;
	fixture_prefer_tmpfs();
	if (!possible()) {
		printf("this directory's file system has uncached writes: nothing is written behind (TEST_DIR=)\n");
		return 77;
	}
	(void)snprintf(faulty, sizeof(faulty), "%.*s/faulty_engine", (int)(strrchr(argv[0], '/') - argv[0]), argv[0]);
	setenv("DIOHELPER", faulty, 1);
	signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
