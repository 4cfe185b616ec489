/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test_session_faults.c - what the door keeps of a region while things go wrong beside it: a save that fails, memory that
 * is not to be had (faulty_engine.c). What COMPLETE called saved is saved, and what is refused has had no effect. And that a
 * load does not erase without end at one go, in which neither CANCEL nor anything else would be looked at.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cleanup.h"
#include "moves.h"

#define PIECES_MAX 256u
#define WORKERS 2u
#define PART_BYTES (64 * MIB) /* the least that a second worker takes */

static void begin_save(struct moves *m, int memory, uint64_t bytes, uint32_t workers, const char *fault)
{
	*m = (struct moves)MOVES(WAY_CONTAINER, fixture_path("image"));
	setenv("DIOH_FAULT", fault, 1);
	m->way.workers = workers;
	moves_add_region(m, 0, bytes);
	moves_start(m, DIOH_DIRECTION_SAVE);
	moves_attach(m, 0, memory, -1);
	must(moves_create(m), &m->err);
}

/* Refused or failed, it answers that. */
static int save(struct moves *m, uint64_t chunk, uint64_t chunks)
{
	const struct dioh_msg_memory_transfer what = { .memory_offset = chunk * CHUNK, .region_offset = chunk * CHUNK,
		                                       .length = chunks * CHUNK };
	uint32_t transfer;
	int r = dioh_save_memory(m->session, &what, &transfer, &m->err);

	return r < 0 ? r : moves_wait(m, transfer);
}

static void expect_too_many_pieces(struct moves *m, int r)
{
	assert_int_equal(r, -ENOBUFS);
	moves_assert_error(m, ENOBUFS, PROTOCOL, REGION, 0);
}

/* A whole save that fails leaves one piece that was begun, and none that is saved: then single chunks, apart. */
static void what_is_saved_has_room(void **state)
{
	const uint64_t chunks = 2 * PIECES_MAX + 3;
	DIOH_AUTO_FD int memory = must_memfd("memory", chunks * CHUNK, 0);
	struct moves m;

	(void)state;
	must_fill(memory, 0, PAGE, 1);
	begin_save(&m, memory, chunks * CHUNK, 1, "eio:0");
	assert_int_equal(save(&m, 0, chunks), -EIO);
	for (uint64_t i = 0; i < PIECES_MAX; i++)
		must(save(&m, 2 * i, 1), &m.err);
	expect_too_many_pieces(&m, save(&m, 2 * PIECES_MAX, 1));
	must(save(&m, 2 * PIECES_MAX - 1, 1), &m.err); /* behind the last piece: that grows */
	must(save(&m, 1, 1), &m.err);                  /* joins two */
	must(save(&m, 2 * PIECES_MAX + 1, 1), &m.err); /* and there is room for one more */
	for (uint64_t i = 3; i < 2 * PIECES_MAX; i += 2)
		must(save(&m, i, 1), &m.err);
	must(save(&m, 2 * PIECES_MAX, 1), &m.err);
	must(save(&m, 2 * PIECES_MAX + 2, 1), &m.err);
	must(moves_finish(&m, DIOH_FINISH_DURABLE), &m.err);
	moves_end(&m, 0);
}

/* It is refused between its first part and its second: what was saved before still is. */
static void a_refused_save_takes_nothing_away(void **state)
{
	DIOH_AUTO_FD int memory = must_memfd("memory", WORKERS * PART_BYTES, 0);
	struct moves m;

	(void)state;
	begin_save(&m, memory, WORKERS * PART_BYTES, WORKERS, "parts:3");
	must(moves_region(&m, 0, 0), &m.err);
	assert_int_equal(save(&m, 0, WORKERS * PART_BYTES / CHUNK), -ENOMEM);
	must(moves_finish(&m, DIOH_FINISH_DURABLE), &m.err);
	moves_end(&m, 0);
}

/* It says so, on its socket too, and exits: it does not crash. */
static void a_broken_engine_is_told(void **state)
{
	DIOH_AUTO_FD int memory = must_memfd("memory", CHUNK, 0);
	struct moves m;

	(void)state;
	must_fill(memory, 0, CHUNK, 1);
	begin_save(&m, memory, CHUNK, 1, "broken:0");
	assert_int_equal(save(&m, 0, 1), -EPIPE);
	moves_assert_error(&m, EPIPE, NONE, SESSION, 0);
	assert_non_null(strstr(m.err.text, "the engine"));
	assert_non_null(strstr(m.err.text, " (EIO)"));
	moves_end(&m, 1);
}

static void is_erased_in_pieces(void **state)
{
	const uint64_t bytes = 2 * GIB + 5 * MIB + PAGE, base = 3 * PAGE;
	DIOH_AUTO_FD int memory = must_memfd("memory", bytes, 0), loaded = must_memfd("loaded", base + bytes, 0);
	struct moves m;

	(void)state;
	must_fill(memory, GIB / 2, 3 * MIB, 1);
	begin_save(&m, memory, bytes, 1, "none:0");
	must(moves_region(&m, 0, 0), &m.err);
	must(moves_finish(&m, DIOH_FINISH_DURABLE), &m.err);
	moves_end(&m, 0);
	must_fill(loaded, base + GIB / 2 - 2 * MIB, 4 * MIB, 2);
	must_fill(loaded, base + bytes - MIB, MIB, 3);
	setenv("DIOH_FAULT", "erase:67108864", 1);
	m = (struct moves)MOVES(WAY_CONTAINER, m.path);
	moves_start(&m, DIOH_DIRECTION_LOAD);
	moves_attach(&m, 0, loaded, -1);
	must(moves_open(&m, 0), &m.err);
	must(moves_piece(&m, &(const struct dioh_msg_memory_transfer){ .memory_offset = base, .length = bytes }), &m.err);
	moves_end(&m, 0);
	assert_true(same_range(memory, 0, loaded, base, bytes));
	assert_int_equal(must_blocks_bytes(loaded), must_blocks_bytes(memory));
}

int main(int argc, char **argv)
{
	static char faulty[512];
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_is_saved_has_room),
		cmocka_unit_test(a_refused_save_takes_nothing_away),
		cmocka_unit_test(a_broken_engine_is_told),
		cmocka_unit_test(is_erased_in_pieces),
	};

	(void)argc;
	(void)snprintf(faulty, sizeof(faulty), "%.*s/faulty_engine", (int)(strrchr(argv[0], '/') - argv[0]), argv[0]);
	setenv("DIOHELPER", faulty, 1);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
