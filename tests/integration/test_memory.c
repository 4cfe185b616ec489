/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test_memory.c - memory goes into images and comes back identical, whatever way the image is reached, in whatever
 * pieces, whatever stood in the image or the memory before. Runs again on tmpfs. DIOH_SEED=N for other memory.
 */
/* timeout: 120 */
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

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

#define SAVE DIOH_DIRECTION_SAVE
#define LOAD DIOH_DIRECTION_LOAD

static int mixed(uint64_t bytes, unsigned granule_pages, uint64_t seed)
{
	int fd = must_memfd("mixed", bytes, 0);

	must_fill_mixed(fd, bytes, granule_pages, 400 / granule_pages, seed);
	return fd;
}

static int garbage(uint64_t bytes, uint64_t seed)
{
	int fd = must_memfd("garbage", bytes, 0);

	must_fill(fd, 0, bytes, seed);
	return fd;
}

static void close_all(const int *fds, unsigned count)
{
	for (unsigned i = 0; i < count; i++)
		close(fds[i]);
}

/* ---- whole regions, every way ---- */

static const uint64_t sizes[] = { 21 * MIB + 12 * 1024, PAGE, MIB, 3 * PAGE };

static void make_memories(int *fds, int (*make)(uint64_t bytes, uint64_t seed), uint64_t seed)
{
	for (unsigned i = 0; i < COUNT(sizes); i++)
		fds[i] = make(sizes[i], seed + i);
}

static int mixed_pages(uint64_t bytes, uint64_t seed)
{
	return mixed(bytes, 1, seed);
}

static int fresh(uint64_t bytes, uint64_t seed)
{
	(void)seed;
	return must_memfd("fresh", bytes, 0);
}

static void expect_same(const int *a, const int *b)
{
	for (unsigned i = 0; i < COUNT(sizes); i++)
		assert_true(same_bytes(a[i], b[i]));
}

static void expect_load(const struct way *way, const char *path, const int *source, uint32_t flags, uint64_t seed)
{
	int loaded[COUNT(sizes)];

	make_memories(loaded, flags & DIOH_TRANSFER_FRESH ? fresh : garbage, seed);
	must_load_all(way, path, loaded, COUNT(sizes), flags);
	expect_same(source, loaded);
	close_all(loaded, COUNT(sizes));
}

static void round_trip(const struct way *way, uint64_t seed)
{
	static const uint32_t load_flags[] = { 0, DIOH_TRANSFER_FRESH, DIOH_TRANSFER_NO_CHECKSUM };
	const char *path = fixture_path("round");
	uint64_t blocks[COUNT(sizes)];
	int source[COUNT(sizes)];

	make_memories(source, mixed_pages, seed);
	for (unsigned i = 0; i < COUNT(sizes); i++)
		blocks[i] = must_blocks_bytes(source[i]);
	must_save_all(way, path, source, COUNT(sizes), 0);
	for (unsigned i = 0; i < COUNT(sizes); i++)
		assert_int_equal(must_blocks_bytes(source[i]), blocks[i]);
	expect_load(way, path, source, load_flags[seed % COUNT(load_flags)], seed + 100);
	close_all(source, COUNT(sizes));
	if (seed % 2)
		unlink(path); /* else the next one is saved over it */
}

static void every_way(void **state)
{
	static const uint32_t layouts[] = { DIOH_LAYOUT_CONTAINER, DIOH_LAYOUT_RAW };
	static const uint32_t engines[] = { DIOH_ENGINE_IO_URING, DIOH_ENGINE_LIBAIO, DIOH_ENGINE_SYNC };
	static const uint32_t blocks[] = { 64 * 1024, 1 << 20, 4 << 20 };
	uint64_t seed = test_seed();

	(void)state;
	for (unsigned i = 0; i < 2 * 3 * 3 * 3; i++) {
		const struct way way = {
			.layout = layouts[i % 2],
			.engine = engines[i / 2 % 3],
			.fds = i / 6 % 3,
			.block_bytes = blocks[i / 18],
			.base_offset = i % 5 == 0 ? 12 * 1024 : 0,
		};

		if (!way_possible(&way))
			continue;
		print_message("%s\n", way_name(&way));
		round_trip(&way, seed++);
	}
}

/* ---- what is in an image, and what is not ---- */

static void image_is_no_larger(const struct way *way)
{
	const uint64_t bytes = 48 * MIB + 20 * 1024;
	const char *path = fixture_path("blocks");
	int memory = mixed(bytes, 16, test_seed());
	int image;

	unlink(path);
	must_save_all(way, path, &memory, 1, 0);
	image = must_open(path, O_RDONLY);
	if (must_blocks_bytes(image) > must_count_data(memory) + 2 * MIB)
		fail_msg("%s: %llu bytes of blocks for %llu of data", way_name(way), (unsigned long long)must_blocks_bytes(image),
		         (unsigned long long)must_count_data(memory));
	close(image);
	close(memory);
}

static void images_are_no_larger_than_data(void **state)
{
	(void)state;
	for_each_way(image_is_no_larger);
}

static void figures_add_up(const struct way *way)
{
	const uint64_t bytes = 9 * MIB + 7 * PAGE;
	int memory = mixed(bytes, 1, test_seed() + 1);
	struct moves m = MOVES(*way, fixture_path("figures"));

	moves_add_region(&m, 0, bytes);
	moves_start(&m, SAVE);
	moves_attach(&m, 0, memory, -1);
	must(moves_create(&m), &m.err);
	must(moves_region(&m, 0, 0), &m.err);
	assert_int_equal(m.complete.data_bytes, must_count_data(memory));
	assert_int_equal(m.complete.data_bytes + m.complete.zero_bytes + m.complete.hole_bytes, bytes);
	assert_int_equal(m.complete.total_bytes, bytes);
	assert_true(m.complete.data_bytes + m.complete.zero_bytes >= must_blocks_bytes(memory));
	assert_true(m.complete.hole_bytes > 0);
	assert_true(m.complete.io_bytes >= m.complete.data_bytes);
	must(moves_region(&m, 0, DIOH_TRANSFER_NO_SCAN), &m.err);
	assert_int_equal(m.complete.data_bytes, must_blocks_bytes(memory));
	assert_int_equal(m.complete.zero_bytes, 0);
	must(moves_finish(&m, DIOH_FINISH_DURABLE), &m.err);
	moves_end(&m, 0);
	close(memory);
}

static void figures(void **state)
{
	(void)state;
	for_each_way(figures_add_up);
}

static struct dioh_msg_entry first_entry(struct moves *m)
{
	struct dioh_msg_entry entry;
	uint32_t count;

	must(dioh_get_table(m->session, 0, 1, &entry, &count, &m->err), &m->err);
	assert_int_equal(count, 1);
	return entry;
}

static void with_flags(const struct way *way, uint32_t flags)
{
	const bool sums = way->layout == DIOH_LAYOUT_CONTAINER && !(flags & DIOH_TRANSFER_NO_CHECKSUM);
	const uint64_t bytes = 5 * MIB + 12 * 1024;
	int memory = mixed(bytes, 1, test_seed() + flags), loaded = garbage(bytes, 3);
	struct moves m = MOVES(*way, fixture_path("flags"));
	struct dioh_msg_entry entry;

	must_save_all(way, m.path, &memory, 1, flags);
	moves_add_region(&m, 0, bytes);
	moves_start(&m, LOAD);
	moves_attach(&m, 0, loaded, -1);
	must(moves_open(&m, 0), &m.err);
	entry = first_entry(&m);
	assert_int_equal(!!(entry.flags & DIOH_ENTRY_CHECKSUMS), sums);
	if (way->layout == DIOH_LAYOUT_CONTAINER)
		assert_int_equal(entry.present_bytes,
		                 flags & DIOH_TRANSFER_NO_SCAN ? must_blocks_bytes(memory) : must_count_data(memory));
	must(moves_region(&m, 0, 0), &m.err);
	moves_end(&m, 0);
	assert_true(same_bytes(memory, loaded));
	close(memory);
	close(loaded);
}

static void save_flags(const struct way *way)
{
	with_flags(way, DIOH_TRANSFER_NO_SCAN);
	with_flags(way, DIOH_TRANSFER_NO_CHECKSUM);
	with_flags(way, DIOH_TRANSFER_NO_SCAN | DIOH_TRANSFER_NO_CHECKSUM);
}

static void no_scan_no_checksum(void **state)
{
	(void)state;
	for_each_way(save_flags);
}

/* Bytes before the image's are none of its business. */
static void base_is_kept(const struct way *given)
{
	struct way way = *given;
	const char *path = fixture_path("base");
	int memory = mixed(3 * MIB + PAGE, 1, test_seed()), loaded = garbage(3 * MIB + PAGE, 9);
	int before = garbage(5 * PAGE, 77), image;

	way.base_offset = 5 * PAGE;
	image = must_open(path, O_RDWR | O_CREAT | O_TRUNC);
	must_fill(image, 0, 3 * MIB, 77); /* the same bytes as `before`, and more behind them */
	must_save_all(&way, path, &memory, 1, 0);
	assert_true(same_range(image, 0, before, 0, 5 * PAGE));
	must_load_all(&way, path, &loaded, 1, 0);
	assert_true(same_bytes(memory, loaded));
	close(before);
	close(image);
	close(memory);
	close(loaded);
}

static void bytes_before_the_base_are_kept(void **state)
{
	(void)state;
	for_each_way(base_is_kept);
}

/* What an older image had where memory has holes now must not come back. */
static void save_over(const struct way *way)
{
	const uint64_t bytes = 12 * MIB;
	const char *path = fixture_path("over");
	int old = garbage(bytes, 5), sparse = must_memfd("sparse", bytes, 0), empty = must_memfd("empty", bytes, 0);
	int loaded = garbage(bytes, 6);

	must_save_all(way, path, &old, 1, 0);
	must_fill(sparse, 7 * MIB + 5 * PAGE, 9 * PAGE, 8);
	must_save_all(way, path, &sparse, 1, 0);
	must_load_all(way, path, &loaded, 1, 0);
	assert_true(same_bytes(sparse, loaded));
	must_save_all(way, path, &old, 1, 0);
	must_save_all(way, path, &empty, 1, 0);
	must_load_all(way, path, &loaded, 1, 0);
	assert_true(same_bytes(empty, loaded));
	close(old);
	close(sparse);
	close(empty);
	close(loaded);
}

static void holes_over_an_older_image(void **state)
{
	(void)state;
	for_each_way(save_over);
}

/* ---- pieces ---- */

#define PIECES 9u
#define SHIFT (3 * (uint64_t)PAGE) /* of the region in its memory */

static void shuffle(unsigned *order, unsigned count, uint64_t *state)
{
	for (unsigned i = 0; i < count; i++)
		order[i] = i;
	for (unsigned i = count - 1; i > 0; i--) {
		unsigned k = test_random(state) % (i + 1), kept = order[i];

		order[i] = order[k];
		order[k] = kept;
	}
}

/* Pieces of a region in random order, four at a time. */
static void move_in_pieces(struct moves *m, uint64_t bytes, uint64_t *state)
{
	uint32_t ids[PIECES];
	unsigned order[PIECES];

	shuffle(order, PIECES, state);
	for (unsigned i = 0; i < PIECES; i++) {
		const uint64_t at = order[i] * 2 * MIB;
		const struct dioh_msg_memory_transfer what = {
			.region = 0, .region_offset = at, .memory_offset = SHIFT + at,
			.length = order[i] == PIECES - 1 ? bytes - at : 2 * MIB,
		};

		if (i >= 4)
			must(moves_wait(m, ids[i - 4]), &m->err);
		ids[i] = moves_begin(m, &what);
	}
	for (unsigned i = PIECES - 4; i < PIECES; i++)
		must(moves_wait(m, ids[i]), &m->err);
}

static void pieces_go(struct moves *m, uint32_t direction, int memory, uint64_t bytes, uint64_t *state)
{
	moves_start(m, direction);
	moves_attach(m, 0, memory, -1);
	must(direction == SAVE ? moves_create(m) : moves_open(m, 0), &m->err);
	move_in_pieces(m, bytes, state);
	if (direction == SAVE)
		must(moves_finish(m, DIOH_FINISH_DURABLE), &m->err);
	moves_end(m, 0);
}

static void in_pieces(const struct way *way)
{
	const uint64_t bytes = 16 * MIB + 12 * 1024, all = bytes + 2 * SHIFT;
	uint64_t state = test_seed();
	int memory = mixed(all, 1, test_seed() + 7), loaded = garbage(all, 4), before = garbage(all, 4);
	struct moves save = MOVES(*way, fixture_path("pieces")), load = MOVES(*way, save.path);

	moves_add_region(&save, 0, bytes);
	moves_add_region(&load, 0, bytes);
	pieces_go(&save, SAVE, memory, bytes, &state);
	pieces_go(&load, LOAD, loaded, bytes, &state);
	assert_true(same_range(memory, SHIFT, loaded, SHIFT, bytes));
	assert_true(same_range(before, 0, loaded, 0, SHIFT));
	assert_true(same_range(before, SHIFT + bytes, loaded, SHIFT + bytes, SHIFT));
	close(before);
	close(memory);
	close(loaded);
}

static void pieces_in_any_order(void **state)
{
	(void)state;
	for_each_way(in_pieces);
}

static void save_range(struct moves *m, uint64_t first, uint64_t bytes)
{
	const struct dioh_msg_memory_transfer what = {
		.memory_offset = first, .region_offset = first, .length = bytes
	};

	must(moves_piece(m, &what), &m->err);
}

/* Pages that were data, zero and hole become zero, data, hole and data again. */
static void change(int memory, uint64_t first, uint64_t bytes, uint64_t *state)
{
	for (uint64_t at = first; at < first + bytes; at += 2 * PAGE) {
		unsigned kind = test_random(state) % 4;

		if (kind == 0)
			must_fill(memory, at, PAGE, test_random(state));
		else if (kind == 1)
			must_fill_zero(memory, at, 2 * PAGE);
		else if (kind == 2)
			assert_int_equal(fallocate(memory, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)at, PAGE), 0);
	}
}

static void save_twice(const struct way *way)
{
	const uint64_t bytes = 7 * MIB + 3 * PAGE;
	uint64_t state = test_seed();
	int memory = mixed(bytes, 1, test_seed() + 9), loaded = garbage(bytes, 4);
	struct moves m = MOVES(*way, fixture_path("passes"));

	moves_add_region(&m, 0, bytes);
	moves_start(&m, SAVE);
	moves_attach(&m, 0, memory, -1);
	must(moves_create(&m), &m.err);
	save_range(&m, 0, bytes);
	change(memory, MIB, 4 * MIB, &state);
	assert_int_equal(fallocate(memory, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 2 * MIB, MIB), 0);
	save_range(&m, MIB, 4 * MIB);
	must_fill_zero(memory, 4 * MIB, MIB); /* of what was data, nothing is left in its tables */
	save_range(&m, 4 * MIB, MIB);
	must_fill_zero(memory, 7 * MIB, 3 * PAGE);
	save_range(&m, 6 * MIB, MIB + 3 * PAGE);
	must(moves_finish(&m, DIOH_FINISH_DURABLE), &m.err);
	moves_end(&m, 0);
	must_load_all(way, m.path, &loaded, 1, 0);
	assert_true(same_bytes(memory, loaded));
	close(memory);
	close(loaded);
}

static void a_later_pass_replaces(void **state)
{
	(void)state;
	for_each_way(save_twice);
}

/* ---- selection ---- */

static int random_selection(uint64_t bytes, uint64_t *state)
{
	const uint64_t pages = bytes / PAGE;
	int fd = must_memfd("selection", (pages + 7) / 8, 0);

	for (uint64_t i = 0; i < (pages + 7) / 8; i++) {
		/* Some chunks all, some none, the rest page by page. */
		unsigned kind = i / DIOH_CHUNK_BITMAP_BYTES % 4;
		uint8_t byte = kind == 0 ? 0xff : kind == 1 ? 0 : (uint8_t)test_random(state);

		assert_int_equal(pwrite(fd, &byte, 1, (off_t)i), 1);
	}
	return fd;
}

static bool selected(int selection, uint64_t page)
{
	uint8_t byte;

	assert_int_equal(pread(selection, &byte, 1, (off_t)(page / 8)), 1);
	return byte >> page % 8 & 1;
}

/* Page by page: selected ones as in `yes`, the others as in `no`. */
static void expect_selected(int loaded, int selection, int yes, int no, uint64_t bytes)
{
	for (uint64_t at = 0; at < bytes; at += PAGE)
		if (!same_range(loaded, at, selected(selection, at / PAGE) ? yes : no, at, PAGE))
			fail_msg("page %llu is not as selected", (unsigned long long)(at / PAGE));
}

static void selection_on_save(const struct way *way)
{
	const uint64_t bytes = 6 * MIB + 5 * PAGE;
	uint64_t state = test_seed();
	int memory = mixed(bytes, 1, test_seed() + 11), loaded = garbage(bytes, 4), zeros = must_memfd("zeros", bytes, 0);
	int selection = random_selection(bytes, &state);
	struct moves m = MOVES(*way, fixture_path("selection"));

	moves_add_region(&m, 0, bytes);
	moves_start(&m, SAVE);
	moves_attach(&m, 0, memory, selection);
	must(moves_create(&m), &m.err);
	if (test_random(&state) % 2) /* whatever an earlier pass had */
		must(moves_region(&m, 0, 0), &m.err);
	must(moves_region(&m, 0, DIOH_TRANSFER_SELECTION), &m.err);
	must(moves_finish(&m, DIOH_FINISH_DURABLE), &m.err);
	moves_end(&m, 0);
	must_load_all(way, m.path, &loaded, 1, 0);
	expect_selected(loaded, selection, memory, zeros, bytes);
	close(memory);
	close(loaded);
	close(zeros);
	close(selection);
}

static void selection_on_load(const struct way *way)
{
	const uint64_t bytes = 6 * MIB + 5 * PAGE;
	uint64_t state = test_seed() + 1;
	int memory = mixed(bytes, 1, test_seed() + 12), loaded = garbage(bytes, 4), before = garbage(bytes, 4);
	int selection = random_selection(bytes, &state);
	struct moves m = MOVES(*way, fixture_path("selection"));

	must_save_all(way, m.path, &memory, 1, 0);
	moves_add_region(&m, 0, bytes);
	moves_start(&m, LOAD);
	moves_attach(&m, 0, loaded, selection);
	must(moves_open(&m, 0), &m.err);
	must(moves_region(&m, 0, DIOH_TRANSFER_SELECTION), &m.err);
	moves_end(&m, 0);
	expect_selected(loaded, selection, memory, before, bytes);
	close(memory);
	close(loaded);
	close(before);
	close(selection);
}

static void selections(void **state)
{
	(void)state;
	for_each_way(selection_on_save);
	for_each_way(selection_on_load);
}

/* ---- other memory ---- */

static int memory_file(const char *name, int filled_from)
{
	int fd = must_open(fixture_path(name), O_RDWR | O_CREAT | O_TRUNC);
	const uint64_t bytes = must_bytes(filled_from);
	void *piece = malloc(bytes);

	assert_non_null(piece);
	assert_int_equal(ftruncate(fd, (off_t)bytes), 0);
	assert_int_equal(pread(filled_from, piece, bytes, 0), bytes);
	for (uint64_t at = 0; at < bytes; at += PAGE)
		if (!dioh_is_zero((char *)piece + at, PAGE))
			assert_int_equal(pwrite(fd, (char *)piece + at, PAGE, (off_t)at), PAGE);
	free(piece);
	return fd;
}

static void file_is_memory(const struct way *way)
{
	const uint64_t bytes = 5 * MIB + 3 * PAGE;
	int memory = mixed(bytes, 1, test_seed() + 13), other = garbage(bytes, 14);
	int source = memory_file("source", memory), loaded = memory_file("loaded", other);
	const char *path = fixture_path("of-file");
	uint64_t blocks = must_blocks_bytes(source);

	must_save_all(way, path, &source, 1, 0);
	assert_int_equal(must_blocks_bytes(source), blocks);
	must_load_all(way, path, &loaded, 1, 0);
	assert_true(same_bytes(memory, loaded));
	close(memory);
	close(other);
	close(source);
	close(loaded);
}

static void files_are_memory(void **state)
{
	(void)state;
	for_each_way(file_is_memory);
}

/* The mapping that makes huge pages takes what is read directly. */
static void load_with_advice(const struct way *way)
{
	const uint64_t bytes = 11 * MIB + 5 * PAGE;
	struct dioh_memory_options options = DIOH_MEMORY_OPTIONS_INIT;
	struct dioh_msg_attach_memory_reply info;
	int memory = mixed(bytes, 1, test_seed() + 15), loaded = garbage(bytes, 4);
	struct moves m = MOVES(*way, fixture_path("advice"));

	must_save_all(way, m.path, &memory, 1, 0);
	moves_add_region(&m, 0, bytes);
	moves_start(&m, LOAD);
	options.fd = loaded;
	options.advice = DIOH_MEMORY_ADVICE_HUGEPAGE;
	must(dioh_attach_memory(m.session, 0, &options, &info, &m.err), &m.err);
	must(moves_open(&m, 0), &m.err);
	must(moves_region(&m, 0, 0), &m.err);
	moves_end(&m, 0);
	assert_true(same_bytes(memory, loaded));
	close(memory);
	close(loaded);
}

static void huge_pages_wanted(void **state)
{
	(void)state;
	for_each_way(load_with_advice);
}

int main(int argc, char **argv)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_way),
		cmocka_unit_test(images_are_no_larger_than_data),
		cmocka_unit_test(figures),
		cmocka_unit_test(no_scan_no_checksum),
		cmocka_unit_test(bytes_before_the_base_are_kept),
		cmocka_unit_test(holes_over_an_older_image),
		cmocka_unit_test(pieces_in_any_order),
		cmocka_unit_test(a_later_pass_replaces),
		cmocka_unit_test(selections),
		cmocka_unit_test(files_are_memory),
		cmocka_unit_test(huge_pages_wanted),
	};
	int failed = cmocka_run_group_tests_name("memory", tests, NULL, NULL);

	(void)argc;
	return failed ? failed : again_on_tmpfs(argv);
}
