/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test_keep_region.c - a save that was interrupted goes on in another session: CREATE_IMAGE with CONTINUE, KEEP_REGION. What is
 * named counts as saved, and nothing else does; what is not the same image is left alone. (With mapped-ram, and killed at
 * any moment: test_tool_convert.py; with the power gone: test_root_consume.c.)
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cleanup.h"
#include "moves.h"

#define REGIONS 2u

static const uint64_t bytes[REGIONS] = { 4 * MIB, 3 * MIB + 5 * PAGE };
static int memories[REGIONS];
static char healthy[512], faulty[512]; /* helpers; faulty_engine.c */

/* A session that has created the image, or been refused. The image's layout is the container's. */
static int begin(struct moves *m, uint32_t flags, uint64_t bytes_1)
{
	*m = (struct moves)MOVES(WAY_CONTAINER, fixture_path("image"));
	m->create_flags = flags;
	moves_add_region(m, 0, bytes[0]);
	moves_add_region(m, 1, bytes_1);
	moves_start(m, DIOH_DIRECTION_SAVE);
	for (uint32_t i = 0; i < REGIONS; i++)
		moves_attach(m, i, memories[i], -1);
	return moves_create(m);
}

static int save(struct moves *m, uint32_t region, uint64_t from, uint64_t to)
{
	return moves_piece(m, &(const struct dioh_msg_memory_transfer){ .memory = region, .region = region,
	                   .memory_offset = from, .region_offset = from, .length = to - from });
}

static int keep(struct moves *m, uint32_t region, uint64_t from, uint64_t to)
{
	return dioh_keep_region(m->session, region, from, to - from, &m->err);
}

/* All of region 0 and two chunks of region 1 have been saved. */
static void interrupted(void)
{
	struct moves m;

	(void)unlink(fixture_path("image"));
	for (uint32_t i = 0; i < REGIONS; i++)
		must_fill_mixed(memories[i], bytes[i], 1, 30, test_seed() + i);
	must(begin(&m, 0, bytes[1]), &m.err);
	must(save(&m, 0, 0, bytes[0]), &m.err);
	must(save(&m, 1, 0, 2 * MIB), &m.err);
	moves_end(&m, 1);
}

static void expect_missing(struct moves *m, uint32_t region, uint64_t from)
{
	assert_int_equal(moves_finish(m, DIOH_FINISH_DURABLE), -ENODATA);
	moves_assert_error(m, ENODATA, FINISH, REGION, region);
	assert_int_equal(m->err.offset, from);
}

static int open_it(void)
{
	struct moves m = MOVES(WAY_CONTAINER, fixture_path("image"));
	int r;

	moves_start(&m, DIOH_DIRECTION_LOAD);
	r = moves_open(&m, 0);
	moves_end(&m, 0);
	return r;
}

static void expect_whole(void)
{
	int loaded[REGIONS];

	for (uint32_t i = 0; i < REGIONS; i++) {
		loaded[i] = must_memfd("loaded", bytes[i], 0);
		must_fill(loaded[i], 0, bytes[i], 88);
	}
	must_load_all(&WAY_CONTAINER, fixture_path("image"), loaded, REGIONS, 0);
	for (uint32_t i = 0; i < REGIONS; i++) {
		assert_true(same_bytes(memories[i], loaded[i]));
		close(loaded[i]);
	}
}

/* Region 1's second chunk has changed meanwhile: it is not kept. */
static void what_is_kept_counts(void **state)
{
	struct moves m;

	(void)state;
	interrupted();
	must_fill(memories[1], MIB + 7 * PAGE, 9 * PAGE, 5);
	must(begin(&m, DIOH_CREATE_CONTINUE, bytes[1]), &m.err);
	expect_missing(&m, 0, 0);
	must(keep(&m, 0, MIB, bytes[0]), &m.err);
	expect_missing(&m, 0, 0);
	must(keep(&m, 0, 0, MIB), &m.err);
	expect_missing(&m, 1, 0);
	must(keep(&m, 1, 0, MIB), &m.err);
	expect_missing(&m, 1, MIB);
	must(save(&m, 1, 2 * MIB, bytes[1]), &m.err);
	expect_missing(&m, 1, MIB);
	must(save(&m, 1, MIB, 2 * MIB), &m.err);
	must(moves_finish(&m, DIOH_FINISH_DURABLE), &m.err);
	moves_end(&m, 0);
	expect_whole();
}

/* What has been kept may be saved again all the same. */
static void what_is_saved_again_replaces(void **state)
{
	struct moves m;

	(void)state;
	interrupted();
	must_fill_mixed(memories[0], bytes[0], 1, 30, 815);
	must(begin(&m, DIOH_CREATE_CONTINUE, bytes[1]), &m.err);
	must(keep(&m, 0, 0, bytes[0]), &m.err);
	must(keep(&m, 1, 0, 2 * MIB), &m.err);
	must(save(&m, 0, 0, bytes[0]), &m.err);
	must(save(&m, 1, 2 * MIB, bytes[1]), &m.err);
	must(moves_finish(&m, DIOH_FINISH_DURABLE), &m.err);
	moves_end(&m, 0);
	expect_whole();
}

/* A complete image that is continued is partial from then on, and whole again in the end. */
static void what_is_continued_is_partial(void **state)
{
	struct moves m;

	what_is_kept_counts(state);
	must(begin(&m, DIOH_CREATE_CONTINUE, bytes[1]), &m.err);
	moves_end(&m, 1);
	assert_int_equal(open_it(), -ENODATA);
	must(begin(&m, DIOH_CREATE_CONTINUE, bytes[1]), &m.err);
	must(keep(&m, 0, 0, bytes[0]), &m.err);
	must(keep(&m, 1, 0, bytes[1]), &m.err);
	must(moves_finish(&m, DIOH_FINISH_DURABLE), &m.err);
	moves_end(&m, 0);
	expect_whole();
}

static void what_is_not_there_is_refused(void **state)
{
	struct moves m;

	(void)state;
	interrupted();
	must(begin(&m, 0, bytes[1]), &m.err);
	assert_int_equal(keep(&m, 0, 0, bytes[0]), -EINVAL);
	expect_missing(&m, 0, 0);
	moves_end(&m, 1);
	must(begin(&m, DIOH_CREATE_CONTINUE, bytes[1]), &m.err);
	assert_int_equal(keep(&m, 5, 0, MIB), -ENOENT);
	assert_int_equal(keep(&m, 1, 0, 4 * MIB), -ERANGE);
	assert_int_equal(keep(&m, 1, 3 * MIB, bytes[1] + MIB), -ERANGE);
	moves_end(&m, 1);
}

/* Some of region 0's new chunks stand there, and some old ones. */
static void what_a_save_has_half_replaced_is_refused(void **state)
{
	struct moves m;

	(void)state;
	interrupted();
	must_fill_mixed(memories[0], bytes[0], 1, 30, 815);
	setenv("DIOHELPER", faulty, 1);
	setenv("DIOH_FAULT", "eio:2", 1);
	must(begin(&m, DIOH_CREATE_CONTINUE, bytes[1]), &m.err);
	setenv("DIOHELPER", healthy, 1);
	unsetenv("DIOH_FAULT");
	must(keep(&m, 0, 0, bytes[0]), &m.err);
	assert_int_equal(save(&m, 0, MIB, bytes[0]), -EIO);
	for (uint64_t from = 0; from <= MIB; from += MIB) {
		assert_int_equal(keep(&m, 0, from, bytes[0]), -EINVAL);
		moves_assert_error(&m, EINVAL, PROTOCOL, REGION, 0);
		assert_int_equal(m.err.offset, MIB);
		assert_non_null(strstr(m.err.text, "save that again"));
	}
	expect_missing(&m, 0, MIB);
	must(keep(&m, 0, 0, MIB), &m.err); /* once more: it was not touched */
	must(save(&m, 0, MIB, 2 * MIB), &m.err);
	must(keep(&m, 0, 0, 2 * MIB), &m.err);
	assert_int_equal(keep(&m, 0, 3 * MIB, bytes[0]), -EINVAL);
	assert_int_equal(m.err.offset, 3 * MIB);
	must(save(&m, 0, 0, bytes[0]), &m.err);
	must(keep(&m, 0, 0, bytes[0]), &m.err);
	must(keep(&m, 1, 0, 2 * MIB), &m.err);
	must(save(&m, 1, 2 * MIB, bytes[1]), &m.err);
	must(moves_finish(&m, DIOH_FINISH_DURABLE), &m.err);
	moves_end(&m, 0);
	expect_whole();
}

static void another_image_is_left_alone(void **state)
{
	const char *path = fixture_path("image");
	struct moves m;
	int copy, fd;

	what_is_kept_counts(state);
	fd = must_open(path, O_RDONLY);
	copy = must_memfd("copy", must_bytes(fd), 0);
	for (uint64_t at = 0; at < must_bytes(fd); at += PAGE) {
		uint8_t page[PAGE];
		const ssize_t n = pread(fd, page, sizeof(page), (off_t)at);

		assert_true(n > 0 && pwrite(copy, page, (size_t)n, (off_t)at) == n);
	}
	assert_int_equal(begin(&m, DIOH_CREATE_CONTINUE, bytes[1] - MIB), -EINVAL);
	assert_int_equal(m.err.operation, DIOH_OP_PARSE);
	moves_end(&m, 1);
	assert_true(same_bytes(fd, copy));
	close(fd);
	close(copy);
	assert_int_equal(truncate(path, 0), 0);
	assert_int_equal(begin(&m, DIOH_CREATE_CONTINUE, bytes[1]), -EINVAL);
	moves_end(&m, 1);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_is_kept_counts),
		cmocka_unit_test(what_is_saved_again_replaces),
		cmocka_unit_test(what_is_continued_is_partial),
		cmocka_unit_test(what_is_not_there_is_refused),
		cmocka_unit_test(what_a_save_has_half_replaced_is_refused),
		cmocka_unit_test(another_image_is_left_alone),
	};

	(void)argc;
	(void)snprintf(healthy, sizeof(healthy), "%s", fixture_helper());
	(void)snprintf(faulty, sizeof(faulty), "%.*s/faulty_engine", (int)(strrchr(argv[0], '/') - argv[0]), argv[0]);
	for (uint32_t i = 0; i < REGIONS; i++)
		memories[i] = must_memfd("memory", bytes[i], 0);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
