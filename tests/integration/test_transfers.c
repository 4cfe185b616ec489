/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* timeout: 120 */
/*
 * test_transfers.c - transfers beside each other, memory that is cut short under them, regions that are huge and nearly
 * empty.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "cleanup.h"
#include "moves.h"
#include "pages.h"
#include "pattern.h"

#define SAVE DIOH_DIRECTION_SAVE
#define LOAD DIOH_DIRECTION_LOAD

/* ---- several at once ---- */

#define REGIONS 4u
#define STREAMS 2u
#define REGION_BYTES (24 * MIB + 8 * 1024)
#define STREAM_BYTES (6 * MIB + 5)

struct crowd {
	struct moves m;
	int memories[REGIONS];
	struct peer peers[STREAMS];
	uint32_t ids[REGIONS + STREAMS];
	atomic_bool beside; /* a PROGRESS has shown both streams under way: their peers stop half-way until it has */
};

static void crowd_describe(struct crowd *c, const struct way *way, const char *path)
{
	memset(c, 0, sizeof(*c));
	c->m = (struct moves)MOVES(*way, path);
	for (unsigned i = 0; i < REGIONS; i++)
		moves_add_region(&c->m, i, REGION_BYTES);
	for (unsigned i = 0; i < STREAMS; i++)
		moves_add_stream(&c->m, i, STREAM_BYTES)->image_offset += i * 13; /* on no page boundary */
}

static void crowd_attach(struct crowd *c, uint32_t direction)
{
	const bool save = direction == SAVE;

	moves_start(&c->m, direction);
	for (unsigned i = 0; i < REGIONS; i++)
		moves_attach(&c->m, i, c->memories[i], -1);
	for (unsigned i = 0; i < STREAMS; i++) {
		int ends[2];

		assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
		c->peers[i] = (struct peer){
			.fd = ends[save], .seed = i + 1, .bytes = STREAM_BYTES + !save, .gate = &c->beside
		};
		moves_attach_stream(&c->m, i, ends[!save]);
	}
}

static void crowd_begin(struct crowd *c, uint32_t direction)
{
	for (unsigned i = 0; i < REGIONS; i++) {
		const struct dioh_msg_memory_transfer what = { .memory = i, .region = i, .length = REGION_BYTES };

		c->ids[i] = moves_begin(&c->m, &what);
	}
	for (unsigned i = 0; i < STREAMS; i++) {
		c->ids[REGIONS + i] = moves_begin_stream(&c->m, i, i, 0);
		if (direction == SAVE)
			peer_write(&c->peers[i]);
		else
			peer_read(&c->peers[i]);
	}
}

static void look_at_progress(struct crowd *c, const struct dioh_event *event)
{
	unsigned under_way = 0;

	for (unsigned i = 0; i < event->progress_count; i++) {
		const struct dioh_msg_progress_entry *entry = &event->progress[i];

		assert_true(entry->total_bytes == 0 || entry->done_bytes <= entry->total_bytes);
		if (entry->transfer >= c->ids[REGIONS] && entry->done_bytes > 0 && entry->done_bytes < STREAM_BYTES)
			under_way++;
	}
	if (under_way == STREAMS)
		atomic_store(&c->beside, true);
}

static void crowd_wait(struct crowd *c)
{
	unsigned left = REGIONS + STREAMS;

	while (left > 0) {
		struct dioh_event event;

		assert_int_equal(dioh_poll(c->m.session, &event, 30000, &c->m.err), 1);
		if (event.type == DIOH_EVENT_PROGRESS)
			look_at_progress(c, &event);
		if (event.type != DIOH_EVENT_COMPLETE)
			continue;
		if (event.error.code)
			fail_msg("%s", event.error.text);
		left--;
	}
}

static void crowd_save(struct crowd *c)
{
	crowd_attach(c, SAVE);
	must(moves_create(&c->m), &c->m.err);
	crowd_begin(c, SAVE);
	crowd_wait(c);
	assert_true(c->beside);
	must(moves_finish(&c->m, DIOH_FINISH_DURABLE), &c->m.err);
	moves_end(&c->m, 0);
	for (unsigned i = 0; i < STREAMS; i++)
		peer_join(&c->peers[i]);
}

static void crowd_load(struct crowd *c)
{
	crowd_attach(c, LOAD);
	must(moves_open(&c->m, 0), &c->m.err);
	crowd_begin(c, LOAD);
	crowd_wait(c);
	for (unsigned i = 0; i < STREAMS; i++)
		peer_assert_read(&c->peers[i], STREAM_BYTES);
	assert_true(c->beside);
	moves_end(&c->m, 0);
}

static void all_at_once(const struct way *way)
{
	struct crowd save, load;

	crowd_describe(&save, way, fixture_path("crowd"));
	crowd_describe(&load, way, save.m.path);
	for (unsigned i = 0; i < REGIONS; i++) {
		save.memories[i] = must_memfd("memory", REGION_BYTES, 0);
		must_fill(save.memories[i], 0, REGION_BYTES, test_seed() + i);
		load.memories[i] = must_memfd("loaded", REGION_BYTES, 0);
	}
	crowd_save(&save);
	crowd_load(&load);
	for (unsigned i = 0; i < REGIONS; i++) {
		assert_true(same_bytes(save.memories[i], load.memories[i]));
		close(save.memories[i]);
		close(load.memories[i]);
	}
}

static void several_at_once(void **state)
{
	(void)state;
	for_each_way(all_at_once);
}

static void finish_with_one_missing(void **state)
{
	int memory = must_memfd("memory", MIB, 0), null_fd = must_open(fixture_path("empty"), O_RDONLY | O_CREAT);
	struct moves m = MOVES(WAY_CONTAINER, fixture_path("missing"));

	(void)state;
	for (unsigned i = 0; i < REGIONS; i++)
		moves_add_region(&m, i, i == 2 ? 3 * MIB : MIB);
	moves_add_stream(&m, 7, 0);
	moves_start(&m, SAVE);
	for (unsigned i = 0; i < REGIONS; i++)
		moves_attach(&m, i, memory, -1);
	moves_attach_stream(&m, 0, null_fd);
	must(moves_create(&m), &m.err);
	for (unsigned i = 0; i < REGIONS; i++)
		if (i != 2)
			must(moves_region(&m, i, 0), &m.err);
	assert_true(ftruncate(memory, 3 * MIB) == 0);
	must(moves_piece(&m, &(struct dioh_msg_memory_transfer){ .memory = 2, .region = 2, .length = MIB }), &m.err);
	assert_int_equal(moves_finish(&m, DIOH_FINISH_DURABLE), -ENODATA);
	moves_assert_error(&m, ENODATA, FINISH, REGION, 2);
	assert_int_equal(m.err.offset, MIB);
	assert_non_null(strstr(m.err.text, "region 2"));
	must(moves_region(&m, 2, 0), &m.err);
	assert_int_equal(moves_finish(&m, DIOH_FINISH_DURABLE), -ENODATA);
	moves_assert_error(&m, ENODATA, FINISH, STREAM, 7);
	must(moves_wait(&m, moves_begin_stream(&m, 0, 7, 0)), &m.err);
	must(moves_finish(&m, DIOH_FINISH_DURABLE), &m.err);
	moves_end(&m, 0);
	close(memory);
}

/* ---- one by several workers ---- */

#define WORKERS 3u
#define PARTS_BYTES (200 * MIB + 3 * PAGE) /* no multiple of anything that it could be divided by */

static void check_sums(const struct moves *m)
{
	const struct dioh_msg_complete *sums = &m->complete;
	uint64_t ios = 0;

	assert_int_equal(sums->total_bytes, PARTS_BYTES);
	assert_int_equal(sums->data_bytes + sums->zero_bytes + sums->hole_bytes, PARTS_BYTES);
	for (unsigned i = 0; i < DIOH_HISTOGRAM_BUCKETS; i++)
		ios += sums->histogram[i];
	assert_int_equal(ios, sums->io_count);
	assert_true(sums->elapsed_ns > 0);
}

static void parts_load(const struct way *way, const char *path, int memory, uint32_t workers)
{
	int loaded = must_memfd("loaded", PARTS_BYTES, 0);
	struct moves m = MOVES(*way, path);

	must_fill(loaded, 0, PARTS_BYTES, 5);
	m.way.workers = workers;
	moves_add_region(&m, 0, PARTS_BYTES);
	moves_start(&m, LOAD);
	moves_attach(&m, 0, loaded, -1);
	must(moves_open(&m, 0), &m.err);
	must(moves_region(&m, 0, 0), &m.err);
	check_sums(&m);
	moves_end(&m, 0);
	assert_true(same_bytes(memory, loaded));
	close(loaded);
}

/* What several save one loads, and the reverse. */
static void parts(const struct way *way)
{
	int memory = must_memfd("memory", PARTS_BYTES, 0);

	must_fill_mixed(memory, PARTS_BYTES, 1, 600, test_seed());
	for (uint32_t workers = 1; workers <= WORKERS; workers += WORKERS - 1) {
		struct moves m = MOVES(*way, fixture_path("parts"));

		m.way.workers = workers;
		moves_add_region(&m, 0, PARTS_BYTES);
		moves_start(&m, SAVE);
		moves_attach(&m, 0, memory, -1);
		must(moves_create(&m), &m.err);
		must(moves_region(&m, 0, 0), &m.err);
		check_sums(&m);
		must(moves_finish(&m, DIOH_FINISH_DURABLE), &m.err);
		moves_end(&m, 0);
		parts_load(way, m.path, memory, 1 + WORKERS - workers);
	}
	close(memory);
}

static void one_in_parts(void **state)
{
	(void)state;
	for_each_way(parts);
}

static void parts_cancelled(void **state)
{
	int memory = must_memfd("memory", PARTS_BYTES, 0);
	struct moves m = MOVES(WAY_CONTAINER, fixture_path("parts"));
	uint32_t id, in_flight;
	int r;

	(void)state;
	must_fill(memory, 0, PARTS_BYTES, 1);
	m.way.workers = WORKERS;
	moves_add_region(&m, 0, PARTS_BYTES);
	moves_start(&m, SAVE);
	moves_attach(&m, 0, memory, -1);
	must(moves_create(&m), &m.err);
	id = moves_begin(&m, &(struct dioh_msg_memory_transfer){ .length = PARTS_BYTES });
	must(dioh_cancel(m.session, id, &in_flight, &m.err), &m.err);
	r = moves_wait(&m, id);
	assert_true(r == 0 || r == -ECANCELED);
	/* One COMPLETE for all parts: what comes next is the next transfer's. */
	must(moves_region(&m, 0, 0), &m.err);
	check_sums(&m);
	must(moves_finish(&m, DIOH_FINISH_DURABLE), &m.err);
	moves_end(&m, 0);
	parts_load(&m.way, m.path, memory, 1);
	close(memory);
}

/* ---- cut short ---- */

#define CUT_BYTES (256 * MIB) /* long enough that it is cut before it has been moved */
#define CUT_AT (CUT_BYTES / 2)

/* The layout and the engine have no part in it together: three ways will do. */
static void for_cut_ways(void (*test)(const struct way *way))
{
	static const struct way ways[] = {
		{ .layout = DIOH_LAYOUT_CONTAINER, .engine = DIOH_ENGINE_IO_URING },
		{ .layout = DIOH_LAYOUT_RAW, .engine = DIOH_ENGINE_SYNC },
		{ .layout = DIOH_LAYOUT_CONTAINER, .workers = 2 },
	};

	for (unsigned i = 0; i < sizeof(ways) / sizeof(ways[0]); i++)
		if (way_possible(&ways[i]))
			test(&ways[i]);
}

/* Data and holes by turns of 64 KiB; or data all over. */
static int cuttable(bool holes)
{
	int fd = must_memfd("cut", CUT_BYTES, 0);
	uint8_t *map = mmap(NULL, CUT_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	assert_true(map != MAP_FAILED);
	for (uint64_t at = 0; at < CUT_BYTES; at += PAGE)
		if (!holes || at / (16 * PAGE) % 2)
			map[at + at / PAGE % PAGE] = 1;
	munmap(map, CUT_BYTES);
	return fd;
}

static void expect_cut(struct moves *m, int memory, uint64_t cut_at, uint32_t operation, uint32_t at_end)
{
	const struct dioh_msg_memory_transfer what = { .length = CUT_BYTES };
	uint32_t id = moves_begin(m, &what);

	assert_int_equal(ftruncate(memory, (off_t)cut_at), 0);
	assert_int_equal(moves_wait(m, id), -EFAULT);
	/* What was moved before the cut is missed at the end only. */
	if (m->err.operation != at_end)
		assert_error_is(&m->err, EFAULT, operation, DIOH_OBJECT_MEMORY, 0, __FILE__, __LINE__);
	assert_int_equal(m->err.code, EFAULT);
	assert_true(m->err.offset < CUT_BYTES);
	assert_non_null(strstr(m->err.text, "memory 0"));
	moves_assert_alive(m);
}

static void cut_save(const struct way *way, bool holes, uint64_t cut_at)
{
	int memory = cuttable(holes);
	struct moves m = MOVES(*way, fixture_path("cut"));

	moves_add_region(&m, 0, CUT_BYTES);
	moves_start(&m, SAVE);
	moves_attach(&m, 0, memory, -1);
	must(moves_create(&m), &m.err);
	expect_cut(&m, memory, cut_at, DIOH_OP_READ, DIOH_OP_READ);
	assert_int_equal(moves_finish(&m, DIOH_FINISH_DURABLE), -ENODATA);
	/* With its size back, and now mostly holes, it can be saved after all. */
	assert_int_equal(ftruncate(memory, PAGE), 0);
	assert_int_equal(ftruncate(memory, CUT_BYTES), 0);
	must(moves_region(&m, 0, 0), &m.err);
	must(moves_finish(&m, DIOH_FINISH_DURABLE), &m.err);
	moves_end(&m, 0);
	close(memory);
}

static void cut_saves(const struct way *way)
{
	cut_save(way, false, CUT_AT);
	cut_save(way, true, CUT_AT + 5 * PAGE);
}

static void memory_cut_during_save(void **state)
{
	(void)state;
	for_cut_ways(cut_saves);
}

static void cut_load(const struct way *way, bool holes, uint32_t advice)
{
	struct dioh_memory_options options = DIOH_MEMORY_OPTIONS_INIT;
	struct dioh_msg_attach_memory_reply info;
	int memory = cuttable(holes), loaded = must_memfd("loaded", CUT_BYTES, 0);
	struct moves m = MOVES(*way, fixture_path("cut"));

	must_save_all(way, m.path, &memory, 1, 0);
	moves_add_region(&m, 0, CUT_BYTES);
	moves_start(&m, LOAD);
	options.fd = loaded;
	options.advice = advice;
	must(dioh_attach_memory(m.session, 0, &options, &info, &m.err), &m.err);
	must(moves_open(&m, 0), &m.err);
	expect_cut(&m, loaded, CUT_AT, advice ? DIOH_OP_READ : DIOH_OP_WRITE, DIOH_OP_WRITE);
	assert_int_equal(ftruncate(loaded, CUT_BYTES), 0);
	if (!advice) {
		must(moves_region(&m, 0, 0), &m.err);
		assert_true(same_bytes(memory, loaded));
	}
	moves_end(&m, 0);
	close(memory);
	close(loaded);
}

static void cut_loads(const struct way *way)
{
	cut_load(way, false, DIOH_MEMORY_ADVICE_NONE);
	cut_load(way, false, DIOH_MEMORY_ADVICE_HUGEPAGE);
}

static void memory_cut_during_load(void **state)
{
	(void)state;
	for_cut_ways(cut_loads);
}

/* Only absent pages are left to be made when it is cut: nothing would be touched any more. */
static void cut_behind_the_data(const struct way *way)
{
	int memory = must_memfd("memory", CUT_BYTES, 0), loaded = must_memfd("loaded", CUT_BYTES, 0);
	struct moves m = MOVES(*way, fixture_path("cut"));

	must_fill(memory, 0, 100 * MIB, 1);
	must_save_all(way, m.path, &memory, 1, 0);
	moves_add_region(&m, 0, CUT_BYTES);
	moves_start(&m, LOAD);
	moves_attach(&m, 0, loaded, -1);
	must(moves_open(&m, 0), &m.err);
	expect_cut(&m, loaded, CUT_AT, DIOH_OP_WRITE, DIOH_OP_WRITE);
	moves_end(&m, 0);
	moves_start(&m, SAVE);
	moves_attach(&m, 0, memory, -1);
	must(moves_create(&m), &m.err);
	expect_cut(&m, memory, CUT_AT, DIOH_OP_READ, DIOH_OP_READ);
	moves_end(&m, 1);
	close(memory);
	close(loaded);
}

static void memory_cut_where_it_is_empty(void **state)
{
	(void)state;
	for_cut_ways(cut_behind_the_data);
}

/* ---- huge and nearly empty ---- */

#define HUGE_BYTES (512 * GIB)
#define RUNS 32u

static void fill_sparse(int memory, uint64_t *places)
{
	uint64_t state = test_seed();

	for (unsigned i = 0; i < RUNS; i++) {
		places[i] = test_random(&state) % (HUGE_BYTES / MIB - 4) * MIB + test_random(&state) % 256 * PAGE;
		must_fill(memory, places[i], 2 * MIB, state);
	}
	places[RUNS] = HUGE_BYTES - MIB;
	must_fill(memory, places[RUNS], MIB, state);
}

static void sparse(const struct way *way)
{
	const char *path = fixture_path("sparse");
	int memory = must_memfd("sparse", HUGE_BYTES, 0), loaded = must_memfd("loaded", HUGE_BYTES, 0), image;
	uint64_t places[RUNS + 1], blocks;

	fill_sparse(memory, places);
	blocks = must_blocks_bytes(memory);
	unlink(path);
	must_save_all(way, path, &memory, 1, 0);
	assert_int_equal(must_blocks_bytes(memory), blocks);
	image = must_open(path, O_RDONLY);
	assert_true(must_blocks_bytes(image) <= blocks + 2 * MIB);
	close(image);
	must_fill(loaded, 5 * GIB + PAGE, 2 * MIB, 3); /* to be gone */
	must_load_all(way, path, &loaded, 1, 0);
	for (unsigned i = 0; i <= RUNS; i++)
		assert_true(same_range(memory, places[i], loaded, places[i], i < RUNS ? 2 * MIB : MIB));
	assert_int_equal(must_blocks_bytes(loaded), blocks);
	close(memory);
	close(loaded);
}

static void huge_sparse_region(void **state)
{
	(void)state;
	for_each_way(sparse);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(several_at_once),
		cmocka_unit_test(finish_with_one_missing),
		cmocka_unit_test(one_in_parts),
		cmocka_unit_test(parts_cancelled),
		cmocka_unit_test(memory_cut_during_save),
		cmocka_unit_test(memory_cut_during_load),
		cmocka_unit_test(memory_cut_where_it_is_empty),
		cmocka_unit_test(huge_sparse_region),
	};

	return cmocka_run_group_tests_name("transfers", tests, NULL, NULL);
}
