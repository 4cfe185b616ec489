/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test_space.c - images that may not become as large as they have to (RLIMIT_FSIZE): an error that says what and
 * where, and no complete image. Full file systems: test_root_space.c.
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
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "cleanup.h"
#include "moves.h"
#include "pattern.h"

#define SAVE DIOH_DIRECTION_SAVE
#define LOAD DIOH_DIRECTION_LOAD

/* What we spawn next may not make files longer; RLIM_INFINITY takes it back. */
static void limit_files(rlim_t bytes)
{
	struct rlimit limit;

	assert_int_equal(getrlimit(RLIMIT_FSIZE, &limit), 0);
	limit.rlim_cur = bytes == RLIM_INFINITY ? limit.rlim_max : bytes;
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
}

static void start_limited(struct moves *m, rlim_t bytes)
{
	limit_files(bytes);
	moves_start(m, SAVE);
	limit_files(RLIM_INFINITY);
}

static void no_image(const struct way *way, const char *path)
{
	struct moves m = MOVES(*way, path);

	moves_start(&m, LOAD);
	m.way.layout = DIOH_LAYOUT_CONTAINER;
	assert_true(moves_open(&m, 0) < 0);
	assert_true(m.err.code == ENODATA || m.err.code == EBADMSG);
	moves_end(&m, 0);
}

/* An older image stays, as long as it is known beforehand. */
static void fixed_part(const struct way *way)
{
	int memory = must_memfd("memory", 8 * MIB, 0);
	int old = must_memfd("old", MIB, 0), loaded = must_memfd("loaded", MIB, 0);
	struct moves m = MOVES(*way, fixture_path("fixed"));

	must_fill(old, 0, MIB, 1);
	must_save_all(way, m.path, &old, 1, 0);
	moves_add_region(&m, 0, 8 * MIB);
	start_limited(&m, 4 * MIB);
	moves_attach(&m, 0, memory, -1);
	assert_int_equal(moves_create(&m), -EFBIG);
	moves_assert_error(&m, EFBIG, SIZE, IMAGE, 0);
	assert_true(m.err.offset > 4 * MIB);
	assert_non_null(strstr(m.err.text, "image"));
	moves_assert_alive(&m);
	moves_end(&m, 1);
	must_load_all(way, m.path, &loaded, 1, 0);
	assert_true(same_bytes(old, loaded));
	close(memory);
	close(old);
	close(loaded);
}

static void the_fixed_part_is_too_large(void **state)
{
	(void)state;
	for_each_way(fixed_part);
}

/* A stream that fits, and one that does not, with another transfer beside it that is none the worse. */
static int limited_stream(const struct way *way, uint64_t bytes, rlim_t limit, struct moves *m)
{
	int memory = must_memfd("memory", MIB, 0);
	int source = must_open(fixture_path("source"), O_RDWR | O_CREAT | O_TRUNC);
	uint32_t id;
	int r;

	must_fill(memory, 0, MIB, 1);
	must_write_pattern(source, 0, bytes, 2);
	*m = (struct moves)MOVES(*way, fixture_path("limited"));
	unlink(m->path);
	moves_add_region(m, 0, MIB);
	moves_add_stream(m, 0, bytes)->image_offset += 9;
	start_limited(m, limit);
	moves_attach(m, 0, memory, -1);
	moves_attach_stream(m, 0, source);
	must(moves_create(m), &m->err);
	id = moves_begin_stream(m, 0, 0, 0);
	must(moves_region(m, 0, 0), &m->err);
	r = moves_wait(m, id);
	close(memory);
	return r;
}

static void streams_in_limits(const struct way *way)
{
	const uint64_t bytes = 7 * MIB + 5;
	/* As raw: the region, 9 bytes, the stream. As a container: 1 MiB of tables, the region, an extent's checksums. */
	const uint64_t end = way->layout == DIOH_LAYOUT_RAW ? MIB + 9 + bytes : 2 * MIB + 2 * PAGE + bytes + MIB;
	int sink = must_open(fixture_path("sink"), O_RDWR | O_CREAT | O_TRUNC);
	struct moves m, load;

	must(limited_stream(way, bytes, end, &m), &m.err);
	must(moves_finish(&m, DIOH_FINISH_DURABLE), &m.err);
	moves_end(&m, 0);
	load = (struct moves)MOVES(*way, m.path);
	moves_add_region(&load, 0, MIB);
	moves_add_stream(&load, 0, bytes)->image_offset += 9;
	moves_start(&load, LOAD);
	moves_attach_stream(&load, 0, fcntl(sink, F_DUPFD_CLOEXEC, 0));
	must(moves_open(&load, 0), &load.err);
	must(moves_wait(&load, moves_begin_stream(&load, 0, 0, 0)), &load.err);
	assert_true(same_pattern(sink, 0, bytes, 2));
	moves_end(&load, 0);
	close(sink);

	assert_int_equal(limited_stream(way, bytes, 5 * MIB, &m), -EFBIG);
	assert_int_equal(m.err.code, EFBIG);
	assert_int_equal(m.err.object, DIOH_OBJECT_IMAGE);
	assert_true(m.err.operation == DIOH_OP_SIZE || m.err.operation == DIOH_OP_WRITE);
	assert_true(m.err.offset != DIOH_OFFSET_NONE && m.err.text[0]);
	assert_int_equal(moves_finish(&m, DIOH_FINISH_DURABLE), -ENODATA);
	moves_assert_error(&m, ENODATA, FINISH, STREAM, 0);
	moves_end(&m, 1);
	no_image(way, m.path);
}

static void streams_grow_as_far_as_they_may(void **state)
{
	(void)state;
	for_each_way(streams_in_limits);
}

/* A raw image that has its size already is not made longer; a page write beyond the limit is an error of its own. */
static void writes_beyond(const struct way *way)
{
	int memory = must_memfd("memory", 8 * MIB, 0);
	struct moves m = MOVES(*way, fixture_path("beyond"));
	int image;

	if (way->layout != DIOH_LAYOUT_RAW)
		return;
	image = must_open(m.path, O_RDWR | O_CREAT | O_TRUNC);
	assert_int_equal(ftruncate(image, 8 * MIB), 0);
	must_fill(memory, 0, 8 * MIB, 1);
	moves_add_region(&m, 0, 8 * MIB);
	start_limited(&m, 4 * MIB);
	moves_attach(&m, 0, memory, -1);
	must(moves_create(&m), &m.err);
	assert_int_equal(moves_region(&m, 0, 0), -EFBIG);
	moves_assert_error(&m, EFBIG, WRITE, IMAGE, 0);
	assert_true(m.err.offset >= 4 * MIB && m.err.offset < 8 * MIB);
	moves_assert_alive(&m);
	assert_int_equal(moves_finish(&m, DIOH_FINISH_DURABLE), -ENODATA);
	moves_end(&m, 1);
	close(image);
	close(memory);
}

static void pages_beyond_the_limit(void **state)
{
	(void)state;
	for_each_way(writes_beyond);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_fixed_part_is_too_large),
		cmocka_unit_test(streams_grow_as_far_as_they_may),
		cmocka_unit_test(pages_beyond_the_limit),
	};

	signal(SIGXFSZ, SIG_DFL); /* the helper must see to it itself */
	return cmocka_run_group_tests_name("space", tests, NULL, NULL);
}
