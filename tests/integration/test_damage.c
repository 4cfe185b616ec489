/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test_damage.c - a container that was damaged, cut off or never finished: it is refused, with an error that says
 * where, and wrong bytes are never given out as right ones. What docs/image-format.md calls vouched for by nothing may
 * be anything.
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
#include <sys/wait.h>
#include <unistd.h>

#include "align.h"
#include "cleanup.h"
#include "moves.h"
#include "pages.h"
#include "pattern.h"
#include "record.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

#define SAVE DIOH_DIRECTION_SAVE
#define LOAD DIOH_DIRECTION_LOAD

#define HEADER_BYTES 5000u
#define REGION_A 7u
#define REGION_B 2u
#define BYTES_A (3 * MIB + 2 * PAGE)
#define BYTES_B (5 * (uint64_t)PAGE)
#define STREAM 4u
#define STREAM_BYTES (5 * MIB + 777)

/* ---- the image ---- */

static struct {
	char path[512];
	int fd;
	uint8_t *bytes; /* as it was written */
	uint64_t size;
	const struct dioh_record_head *head;
	const struct dioh_record_region *regions;
	const struct dioh_record_stream *streams;
	const struct dioh_record_extent *extents;
	int memory_a, memory_b;
} image;

static void describe(struct moves *m)
{
	static uint8_t header[HEADER_BYTES];

	*m = (struct moves)MOVES(WAY_CONTAINER, image.path);
	pattern_fill(header, sizeof(header), 99, 0);
	m->header = header;
	m->header_bytes = HEADER_BYTES;
	moves_add_region(m, REGION_A, BYTES_A);
	moves_add_region(m, REGION_B, BYTES_B);
	moves_add_stream(m, STREAM, STREAM_BYTES);
}

static int stream_source(uint64_t seed)
{
	int fd = must_open(fixture_path("source"), O_RDWR | O_CREAT | O_TRUNC);

	must_write_pattern(fd, 0, STREAM_BYTES, seed);
	return fd;
}

static void begin_save_of(struct moves *m, int memory_a, uint64_t stream_seed)
{
	describe(m);
	moves_start(m, SAVE);
	moves_attach(m, REGION_A, memory_a, -1);
	moves_attach(m, REGION_B, image.memory_b, -1);
	moves_attach_stream(m, 0, stream_source(stream_seed));
	must(moves_create(m), &m->err);
}

static void begin_save(struct moves *m, int memory_a)
{
	begin_save_of(m, memory_a, 5);
}

static void save_image(uint32_t mode, uint32_t region_flags, uint32_t stream_flags)
{
	struct moves m;

	begin_save(&m, image.memory_a);
	must(moves_region(&m, REGION_A, 0), &m.err);
	must(moves_region(&m, REGION_B, region_flags), &m.err);
	must(moves_wait(&m, moves_begin_stream(&m, 0, STREAM, stream_flags)), &m.err);
	must(moves_finish(&m, mode), &m.err);
	moves_end(&m, 0);
}

static void restore(void)
{
	assert_int_equal(ftruncate(image.fd, 0), 0);
	assert_int_equal(pwrite(image.fd, image.bytes, image.size, 0), image.size);
}

static int set_up(void **state)
{
	(void)state;
	snprintf(image.path, sizeof(image.path), "%s", fixture_path("image"));
	image.memory_a = must_memfd("a", BYTES_A, 0);
	image.memory_b = must_memfd("b", BYTES_B, 0);
	must_fill_mixed(image.memory_a, BYTES_A, 1, 40, test_seed());
	must_fill(image.memory_b, PAGE, 3 * PAGE, test_seed());
	save_image(DIOH_FINISH_DURABLE, 0, 0);
	image.fd = must_open(image.path, O_RDWR);
	image.size = must_bytes(image.fd);
	image.bytes = malloc(image.size);
	assert_non_null(image.bytes);
	assert_int_equal(pread(image.fd, image.bytes, image.size, 0), image.size);
	image.head = (const struct dioh_record_head *)image.bytes;
	image.regions = (const void *)(image.bytes + image.head->regions.offset);
	image.streams = (const void *)(image.bytes + image.head->streams.offset);
	image.extents = (const void *)(image.bytes + image.head->extents.offset);
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	free(image.bytes);
	return 0;
}

/* ---- looking at it ---- */

struct looker {
	struct moves m;
	int loaded_a, loaded_b, sink;
};

/* A sealed session that may OPEN_IMAGE again and again, as long as it is refused. */
static void look(struct looker *l)
{
	l->loaded_a = must_memfd("loaded a", BYTES_A, 0);
	l->loaded_b = must_memfd("loaded b", BYTES_B, 0);
	l->sink = must_open(fixture_path("sink"), O_RDWR | O_CREAT | O_TRUNC);
	must_fill(l->loaded_a, 0, BYTES_A, 1);
	must_fill(l->loaded_b, 0, BYTES_B, 2);
	describe(&l->m);
	moves_start(&l->m, LOAD);
	moves_attach(&l->m, REGION_A, l->loaded_a, -1);
	moves_attach(&l->m, REGION_B, l->loaded_b, -1);
	moves_attach_stream(&l->m, 0, fcntl(l->sink, F_DUPFD_CLOEXEC, 0));
	must_seal(l->m.session);
}

static void look_away(struct looker *l)
{
	moves_end(&l->m, 0);
	close(l->loaded_a);
	close(l->loaded_b);
	close(l->sink);
}

static int open_again(struct looker *l, uint32_t flags)
{
	const struct dioh_open_options options = { .flags = flags };

	return dioh_open_image(l->m.session, &options, &l->m.opened, &l->m.err);
}

/* The error is about the image's bytes, says where, and the session goes on. */
static void expect_refused(struct looker *l, uint32_t flags, int code, const char *what, uint64_t at)
{
	struct dioh_error *err = &l->m.err;

	if (open_again(l, flags) != -code)
		fail_msg("%s %llu: %s", what, (unsigned long long)at, err->text);
	if ((err->operation != DIOH_OP_PARSE && err->operation != DIOH_OP_CHECKSUM && err->operation != DIOH_OP_READ) ||
	    err->object != DIOH_OBJECT_IMAGE || strncmp(err->text, "image: ", 7) != 0 ||
	    (code == EBADMSG && err->offset == DIOH_OFFSET_NONE))
		fail_msg("%s %llu: operation %u, object %u: %s", what, (unsigned long long)at, err->operation, err->object,
		         err->text);
}

static void expect_whole(struct looker *l)
{
	struct moves *m = &l->m;
	uint8_t header[HEADER_BYTES];
	uint64_t count;

	must(open_again(l, 0), &m->err);
	must(dioh_read_header(m->session, 0, header, sizeof(header), &count, &m->err), &m->err);
	assert_int_equal(count, HEADER_BYTES);
	assert_memory_equal(header, m->header, HEADER_BYTES);
	must(moves_region(m, REGION_A, 0), &m->err);
	must(moves_region(m, REGION_B, 0), &m->err);
	must(moves_wait(m, moves_begin_stream(m, 0, STREAM, 0)), &m->err);
	assert_true(same_bytes(image.memory_a, l->loaded_a));
	assert_true(same_bytes(image.memory_b, l->loaded_b));
	assert_int_equal(must_bytes(l->sink), STREAM_BYTES);
	assert_true(same_pattern(l->sink, 0, STREAM_BYTES, 5));
}

static void expect_whole_image(void)
{
	struct looker l;

	look(&l);
	expect_whole(&l);
	look_away(&l);
}

static void poke(uint64_t at, uint8_t byte)
{
	assert_int_equal(pwrite(image.fd, &byte, 1, (off_t)at), 1);
}

static void flip(uint64_t at, uint64_t *state)
{
	poke(at, image.bytes[at] ^ (uint8_t)(1u << test_random(state) % 8));
}

static void unflip(uint64_t at)
{
	poke(at, image.bytes[at]);
}

/* ---- a flipped bit in the record ---- */

struct range {
	const char *what;
	uint64_t offset;
	uint64_t bytes;
};

static struct range of_area(const char *what, const struct dioh_record_area *area)
{
	return (struct range){ what, area->offset, area->bytes };
}

#define RANGES_MAX 16u

/* All that is vouched for, pages and stream data aside. */
static unsigned record_ranges(struct range *ranges)
{
	unsigned n = 0;

	ranges[n++] = (struct range){ "head", 0, sizeof(*image.head) };
	ranges[n++] = of_area("manager's header", &image.head->header);
	ranges[n++] = of_area("region table", &image.head->regions);
	ranges[n++] = of_area("stream table", &image.head->streams);
	ranges[n++] = of_area("extent table", &image.head->extents);
	for (unsigned i = 0; i < image.head->region_count; i++) {
		ranges[n++] = of_area("bitmap", &image.regions[i].bitmap);
		ranges[n++] = of_area("checksums", &image.regions[i].checksums);
	}
	for (unsigned i = 0; i < image.head->extent_count; i++)
		ranges[n++] = of_area("extent's checksums", &image.extents[i].checksums);
	assert_true(n <= RANGES_MAX);
	return n;
}

static void a_bit_in_the_record(void **state)
{
	struct range ranges[RANGES_MAX];
	unsigned count = record_ranges(ranges);
	uint64_t random = test_seed();
	struct looker l;

	(void)state;
	assert_int_equal(image.head->extent_count, 2);
	look(&l);
	for (unsigned i = 0; i < count; i++) {
		assert_true(ranges[i].bytes > 0);
		for (uint64_t k = 0; k < ranges[i].bytes; k++) {
			flip(ranges[i].offset + k, &random);
			expect_refused(&l, k % 64 ? 0 : DIOH_OPEN_INSPECT, EBADMSG, ranges[i].what, k);
			unflip(ranges[i].offset + k);
		}
	}
	expect_whole(&l);
	look_away(&l);
}

/* ---- in pages, streams, and where nothing stands ---- */

static bool is_present(const struct dioh_record_region *region, uint64_t page)
{
	return dioh_bit_test(image.bytes + region->bitmap.offset, page);
}

static void damaged_page(struct looker *l, const struct dioh_record_region *region, uint64_t at)
{
	struct moves *m = &l->m;

	if (!is_present(region, at / PAGE)) {
		must(moves_region(m, region->number, 0), &m->err);
		return;
	}
	assert_int_equal(moves_region(m, region->number, 0), -EBADMSG);
	moves_assert_error(m, EBADMSG, CHECKSUM, REGION, region->number);
	assert_int_equal(m->err.offset, at / CHUNK * CHUNK);
	must(moves_region(m, region->number, DIOH_TRANSFER_NO_CHECKSUM), &m->err); /* asked for, and it is as it says */
}

static void a_bit_in_the_pages(void **state)
{
	uint64_t random = test_seed() + 1;
	struct looker l;

	(void)state;
	look(&l);
	must(open_again(&l, 0), &l.m.err);
	for (unsigned i = 0; i < 120; i++) {
		const struct dioh_record_region *region = &image.regions[i % 2];
		/* First and last bytes, then anywhere. */
		uint64_t at = i < 2 ? 0 : i < 4 ? region->bytes - 1 : test_random(&random) % region->bytes;

		flip(region->pages_offset + at, &random);
		damaged_page(&l, region, at);
		unflip(region->pages_offset + at);
	}
	must(moves_region(&l.m, REGION_A, 0), &l.m.err);
	must(moves_region(&l.m, REGION_B, 0), &l.m.err);
	assert_true(same_bytes(image.memory_a, l.loaded_a));
	assert_true(same_bytes(image.memory_b, l.loaded_b));
	look_away(&l);
}

static uint64_t stream_place(uint64_t at)
{
	const struct dioh_record_extent *extent = image.extents;

	for (; at >= extent->bytes; extent++)
		at -= extent->bytes;
	return extent->offset + at;
}

static void a_bit_in_the_stream(void **state)
{
	uint64_t random = test_seed() + 2;

	(void)state;
	for (unsigned i = 0; i < 40; i++) {
		uint64_t at = i == 0 ? 0 : i == 1 ? STREAM_BYTES - 1 : test_random(&random) % STREAM_BYTES;
		struct looker l;

		flip(stream_place(at), &random);
		look(&l);
		must(open_again(&l, 0), &l.m.err);
		assert_int_equal(moves_wait(&l.m, moves_begin_stream(&l.m, 0, STREAM, 0)), -EBADMSG);
		moves_assert_error(&l.m, EBADMSG, CHECKSUM, STREAM, 0);
		assert_int_equal(l.m.err.offset, at / CHUNK * CHUNK);
		/* What the reader got is right as far as it goes. */
		assert_true(must_bytes(l.sink) <= at / CHUNK * CHUNK);
		assert_true(same_pattern(l.sink, 0, must_bytes(l.sink), 5));
		look_away(&l);
		unflip(stream_place(at));
	}
	expect_whole_image();
}

static bool inside(uint64_t at, uint64_t offset, uint64_t bytes)
{
	return at >= offset && at - offset < bytes;
}

static bool means_something(uint64_t at)
{
	struct range ranges[RANGES_MAX];
	unsigned count = record_ranges(ranges);

	for (unsigned i = 0; i < count; i++)
		if (inside(at, ranges[i].offset, ranges[i].bytes))
			return true;
	for (unsigned i = 0; i < image.head->region_count; i++)
		if (inside(at, image.regions[i].pages_offset, image.regions[i].bytes) &&
		    is_present(&image.regions[i], (at - image.regions[i].pages_offset) / PAGE))
			return true;
	for (unsigned i = 0; i < image.head->extent_count; i++)
		if (inside(at, image.extents[i].offset, image.extents[i].bytes))
			return true;
	return false;
}

/* Everything else at once: gaps, unused room, absent pages, what stands behind the image. */
static void what_means_nothing_is_ignored(void **state)
{
	uint64_t random = test_seed() + 3;
	uint8_t *all = malloc(image.size);

	(void)state;
	assert_non_null(all);
	for (uint64_t at = 0; at < image.size; at++)
		all[at] = at % 64 && !means_something(at / 64 * 64) && !means_something(at) ? (uint8_t)test_random(&random)
		                                                                           : image.bytes[at];
	assert_int_equal(pwrite(image.fd, all, image.size, 0), image.size);
	assert_int_equal(pwrite(image.fd, "behind", 6, (off_t)image.size + 100000), 6);
	expect_whole_image();
	restore();
	free(all);
}

/* ---- cut off ---- */

static int longest_first(const void *a, const void *b)
{
	const uint64_t *x = a, *y = b;

	return *x > *y ? -1 : *x < *y;
}

static unsigned boundaries(uint64_t *sizes)
{
	struct range ranges[RANGES_MAX + 8];
	unsigned count = record_ranges(ranges), n = 0;

	for (unsigned i = 0; i < image.head->region_count; i++)
		ranges[count++] = (struct range){ "pages", image.regions[i].pages_offset, image.regions[i].bytes };
	for (unsigned i = 0; i < image.head->extent_count; i++)
		ranges[count++] = (struct range){ "extent", image.extents[i].offset, image.extents[i].bytes };
	for (unsigned i = 0; i < count; i++) {
		for (int d = -1; d <= 1; d++) {
			sizes[n++] = ranges[i].offset + (ranges[i].offset ? (uint64_t)d : 0);
			sizes[n++] = ranges[i].offset + ranges[i].bytes + (uint64_t)d;
			sizes[n++] = ranges[i].offset + ranges[i].bytes / 2;
		}
	}
	qsort(sizes, n, sizeof(*sizes), longest_first);
	return n;
}

static void cut_off_at_each_boundary(void **state)
{
	uint64_t sizes[(RANGES_MAX + 8) * 9];
	unsigned count = boundaries(sizes);
	struct looker l;

	(void)state;
	look(&l);
	for (unsigned i = 0; i < count; i++) {
		if (sizes[i] >= image.size)
			continue;
		assert_int_equal(ftruncate(image.fd, (off_t)sizes[i]), 0);
		expect_refused(&l, i % 2 ? DIOH_OPEN_INSPECT : 0, EBADMSG, "cut at", sizes[i]);
	}
	restore();
	expect_whole(&l);
	look_away(&l);
}

/* The image shrinks when it is open already. */
static void cut_off_while_open(void **state)
{
	struct looker l;

	(void)state;
	look(&l);
	must(open_again(&l, 0), &l.m.err);
	assert_int_equal(ftruncate(image.fd, (off_t)(image.regions[0].pages_offset + MIB + 5 * PAGE + 100)), 0);
	assert_int_equal(moves_region(&l.m, REGION_A, 0), -EBADMSG);
	moves_assert_error(&l.m, EBADMSG, READ, IMAGE, 0);
	assert_int_equal(moves_wait(&l.m, moves_begin_stream(&l.m, 0, STREAM, 0)), -EBADMSG);
	moves_assert_error(&l.m, EBADMSG, READ, IMAGE, 0);
	moves_assert_alive(&l.m);
	look_away(&l);
	restore();
}

/* Without its bits a chunk is not one of zeros. */
static void bitmap_damaged_while_open(void **state)
{
	struct looker l;

	(void)state;
	look(&l);
	must(open_again(&l, 0), &l.m.err);
	for (unsigned i = 0; i < DIOH_CHUNK_BITMAP_BYTES; i++)
		poke(image.regions[0].bitmap.offset + DIOH_CHUNK_BITMAP_BYTES + i, 0);
	assert_int_equal(moves_region(&l.m, REGION_A, 0), -EBADMSG);
	moves_assert_error(&l.m, EBADMSG, CHECKSUM, REGION, REGION_A);
	assert_int_equal(l.m.err.offset, MIB);
	look_away(&l);
	restore();
}

/* Bits behind the last page are none, and a chunk that has no others is not one of zeros either. */
static void bits_behind_the_end_while_open(void **state)
{
	struct looker l;

	(void)state;
	assert_true(BYTES_B / PAGE < 8);
	look(&l);
	must(open_again(&l, 0), &l.m.err);
	poke(image.regions[1].bitmap.offset, 0x80);
	assert_int_equal(moves_region(&l.m, REGION_B, 0), -EBADMSG);
	moves_assert_error(&l.m, EBADMSG, PARSE, IMAGE, 0);
	look_away(&l);
	restore();
}

static void expect_changed(struct looker *l)
{
	uint8_t header[HEADER_BYTES];
	uint64_t count;

	assert_int_equal(moves_region(&l->m, REGION_A, 0), -EBADMSG);
	moves_assert_error(&l->m, EBADMSG, PARSE, IMAGE, 0);
	assert_int_equal(dioh_read_header(l->m.session, 0, header, sizeof(header), &count, &l->m.err), -EBADMSG);
	moves_assert_error(&l->m, EBADMSG, PARSE, IMAGE, 0);
}

/* Its tables are empty first: what was opened before is not a guest of zeros for that, nor is it the new one. */
static void saved_over_while_open(void **state)
{
	struct looker l;
	struct moves m;

	(void)state;
	look(&l);
	must(open_again(&l, 0), &l.m.err);
	begin_save(&m, image.memory_a);
	expect_changed(&l);
	must(moves_region(&m, REGION_A, 0), &m.err);
	must(moves_region(&m, REGION_B, DIOH_TRANSFER_NO_CHECKSUM), &m.err); /* else it is the same image again */
	must(moves_wait(&m, moves_begin_stream(&m, 0, STREAM, 0)), &m.err);
	must(moves_finish(&m, DIOH_FINISH_DURABLE), &m.err);
	moves_end(&m, 0);
	expect_changed(&l);
	moves_assert_alive(&l.m);
	look_away(&l);
	restore();
}

static void save_other_stream(void)
{
	struct moves m;

	begin_save_of(&m, image.memory_a, 6);
	must(moves_region(&m, REGION_A, 0), &m.err);
	must(moves_region(&m, REGION_B, 0), &m.err);
	must(moves_wait(&m, moves_begin_stream(&m, 0, STREAM, 0)), &m.err);
	must(moves_finish(&m, DIOH_FINISH_DURABLE), &m.err);
	moves_end(&m, 0);
}

/* Nothing else tells that bytes without checksums are another save's. */
static void stream_saved_over_while_open(void **state)
{
	struct looker l;

	(void)state;
	save_image(DIOH_FINISH_DURABLE, 0, DIOH_TRANSFER_NO_CHECKSUM);
	look(&l);
	must(open_again(&l, 0), &l.m.err);
	save_other_stream();
	assert_int_equal(moves_wait(&l.m, moves_begin_stream(&l.m, 0, STREAM, 0)), -EBADMSG);
	moves_assert_error(&l.m, EBADMSG, PARSE, IMAGE, 0);
	moves_assert_alive(&l.m);
	look_away(&l);
	restore();
}

/* As a save does it first of all. */
static void must_take_mark(const char *path)
{
	static const uint8_t zeros[512];
	int fd = must_open(path, O_RDWR);

	assert_int_equal(pwrite(fd, zeros, sizeof(zeros), 0), sizeof(zeros));
	close(fd);
}

/* The reader of the stream takes his time meanwhile. */
static void save_over_while_read(uint64_t bytes)
{
	struct moves m = MOVES(WAY_CONTAINER, fixture_path("long")), l = m;
	int source = must_open(fixture_path("source"), O_RDWR | O_CREAT | O_TRUNC);
	int ends[2];
	uint8_t byte;
	uint32_t id;

	must_write_pattern(source, 0, bytes, 5);
	moves_add_stream(&m, STREAM, 0);
	moves_start(&m, SAVE);
	moves_attach_stream(&m, 0, source);
	must(moves_create(&m), &m.err);
	must(moves_wait(&m, moves_begin_stream(&m, 0, STREAM, DIOH_TRANSFER_NO_CHECKSUM)), &m.err);
	must(moves_finish(&m, DIOH_FINISH_DURABLE), &m.err);
	moves_end(&m, 0);
	assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
	moves_start(&l, LOAD);
	moves_attach_stream(&l, 0, ends[1]);
	must(moves_open(&l, 0), &l.err);
	id = moves_begin_stream(&l, 0, STREAM, 0);
	assert_int_equal(read(ends[0], &byte, 1), 1);
	must_take_mark(fixture_path("long"));
	moves_end_saved_over(&l, id, ends[0]);
}

/* Of several extents, or of one, so that nothing of the image is looked at behind it but its head. */
static void saved_over_while_read(void **state)
{
	(void)state;
	save_over_while_read(24 * MIB);
	save_over_while_read(3 * MIB);
}

/* Another save came between, and has ended: its image is not called ours, nor touched. */
static void saved_over_before_finish(void **state)
{
	int other = must_memfd("other", BYTES_A, 0);
	struct moves m;

	(void)state;
	must_fill(other, 0, BYTES_A, 77);
	begin_save(&m, other);
	must(moves_region(&m, REGION_A, 0), &m.err);
	must(moves_region(&m, REGION_B, 0), &m.err);
	must(moves_wait(&m, moves_begin_stream(&m, 0, STREAM, 0)), &m.err);
	save_image(DIOH_FINISH_DURABLE, 0, 0);
	assert_int_equal(moves_finish(&m, DIOH_FINISH_DURABLE), -EBADMSG);
	moves_assert_error(&m, EBADMSG, PARSE, IMAGE, 0);
	moves_end(&m, 1);
	expect_whole_image();
	restore();
	close(other);
}

/* A raw file's holes are absent pages; what lies behind its end is none. */
static void raw_cut_off_while_open(void **state)
{
	const char *path = fixture_path("raw");
	int memory = must_memfd("memory", BYTES_A, 0);
	struct moves m = MOVES(WAY_RAW, path);

	(void)state;
	must_save_all(&WAY_RAW, path, &image.memory_a, 1, 0);
	moves_add_region(&m, 0, BYTES_A);
	moves_start(&m, LOAD);
	moves_attach(&m, 0, memory, -1);
	must(moves_open(&m, 0), &m.err);
	assert_int_equal(truncate(path, PAGE), 0);
	assert_int_equal(moves_region(&m, 0, 0), -EBADMSG);
	moves_assert_error(&m, EBADMSG, READ, IMAGE, 0);
	moves_end(&m, 0);
	close(memory);
}

/* The image shrinks while it is made: FINISH reads its tables once more, to sum them. */
static void cut_off_before_finish(void **state)
{
	const char *path = fixture_path("cut");
	int memory = must_memfd("memory", 2 * MIB, 0);
	struct moves m = MOVES(WAY_CONTAINER, path), l = m;

	(void)state;
	must_fill(memory, 0, 2 * MIB, 1);
	moves_add_region(&m, REGION_A, 2 * MIB);
	moves_start(&m, DIOH_DIRECTION_SAVE);
	moves_attach(&m, REGION_A, memory, -1);
	must(moves_create(&m), &m.err);
	must(moves_region(&m, REGION_A, 0), &m.err);
	assert_int_equal(truncate(path, PAGE), 0);
	assert_int_equal(moves_finish(&m, DIOH_FINISH_DURABLE), -EBADMSG);
	moves_assert_error(&m, EBADMSG, READ, IMAGE, 0);
	moves_end(&m, 1);
	moves_start(&l, DIOH_DIRECTION_LOAD);
	assert_true(moves_open(&l, 0) < 0);
	moves_end(&l, 0);
	close(memory);
}

/* ---- versions, features, states ---- */

static void write_head(struct dioh_record_head *head)
{
	head->crc32c = dioh_crc32c(0, head, sizeof(*head) - 4);
	assert_int_equal(pwrite(image.fd, head, sizeof(*head), 0), sizeof(*head));
}

static void what_is_too_new(void **state)
{
	struct dioh_record_head head = *image.head;
	struct looker l;

	(void)state;
	look(&l);
	for (unsigned bit = 0; bit < 64; bit++) {
		head.incompatible = UINT64_C(1) << bit;
		write_head(&head);
		expect_refused(&l, bit % 2 ? DIOH_OPEN_INSPECT : 0, EOPNOTSUPP, "incompatible bit", bit);
	}
	head = *image.head;
	head.version++;
	write_head(&head);
	expect_refused(&l, 0, EOPNOTSUPP, "version", head.version);
	head = *image.head;
	head.layout = DIOH_LAYOUT_MAPPED_RAM;
	write_head(&head);
	expect_refused(&l, 0, EOPNOTSUPP, "layout", head.layout);
	head = *image.head;
	head.compatible = UINT64_C(1) << 63; /* whoever does not know it may go on */
	head.reserved[5] = 1;
	write_head(&head);
	expect_whole(&l);
	assert_true(l.m.opened.compatible_features == UINT64_C(1) << 63);
	restore();
	look_away(&l);
}

static void expect_state(int code, uint32_t flags)
{
	struct looker l;

	look(&l);
	if (code) {
		expect_refused(&l, flags, code, "state, flags", flags);
	} else {
		must(open_again(&l, flags), &l.m.err);
		moves_assert_alive(&l.m);
	}
	look_away(&l);
}

static void expect_partial(void)
{
	expect_state(ENODATA, 0);
	expect_state(ENODATA, DIOH_OPEN_ACCEPT_WRITTEN);
	expect_state(0, DIOH_OPEN_INSPECT);
}

static void killed(struct moves *m)
{
	int status;

	kill(dioh_session_pid(m->session), SIGKILL);
	assert_int_equal(dioh_close(m->session, 30000, &status), 0);
	assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

/* Until CREATE_IMAGE the older image stands; from its reply on there is none. */
static void killed_over_an_older_image(void **state)
{
	struct moves m;

	(void)state;
	describe(&m);
	moves_start(&m, SAVE);
	moves_attach(&m, REGION_A, image.memory_a, -1);
	must_seal(m.session);
	killed(&m);
	expect_whole_image();

	moves_start(&m, SAVE);
	moves_attach(&m, REGION_A, image.memory_a, -1);
	must(moves_create(&m), &m.err);
	killed(&m);
	expect_partial();
	restore();

	moves_start(&m, SAVE);
	moves_attach(&m, REGION_A, image.memory_a, -1);
	must(moves_create(&m), &m.err);
	must(moves_region(&m, REGION_A, 0), &m.err);
	killed(&m);
	expect_partial();
	restore();
}

/* What power failed in the middle of: the head is there, and the tables are not. That is no damage. */
static void partial_without_tables(void **state)
{
	static const uint8_t zeros[1024];
	struct looker l;
	struct moves m;

	(void)state;
	begin_save(&m, image.memory_a);
	killed(&m);
	assert_true(image.head->region_count * sizeof(*image.regions) <= sizeof(zeros));
	assert_int_equal(pwrite(image.fd, zeros, image.head->region_count * sizeof(*image.regions),
	                        (off_t)image.head->regions.offset), image.head->region_count * sizeof(*image.regions));
	expect_partial();
	look(&l);
	must(open_again(&l, DIOH_OPEN_INSPECT), &l.m.err);
	assert_int_equal(l.m.opened.state, DIOH_STATE_PARTIAL);
	assert_int_equal(l.m.opened.region_count + l.m.opened.stream_count, 0);
	look_away(&l);
	restore();
}

static void nothing_is_finished_by_halves(void **state)
{
	struct moves m;

	(void)state;
	describe(&m);
	moves_start(&m, SAVE);
	moves_attach(&m, REGION_A, image.memory_a, -1);
	must(moves_create(&m), &m.err);
	must(moves_region(&m, REGION_A, 0), &m.err);
	assert_int_equal(moves_finish(&m, DIOH_FINISH_DURABLE), -ENODATA);
	moves_assert_error(&m, ENODATA, FINISH, REGION, REGION_B);
	assert_int_equal(m.err.offset, 0);
	moves_end(&m, 1);
	expect_partial();
	restore();
}

static void written_but_never_synced(void **state)
{
	struct looker l;

	(void)state;
	save_image(DIOH_FINISH_WRITTEN, 0, 0);
	expect_state(ESTALE, 0);
	expect_state(0, DIOH_OPEN_INSPECT);
	look(&l);
	must(open_again(&l, DIOH_OPEN_ACCEPT_WRITTEN), &l.m.err);
	assert_int_equal(l.m.opened.state, DIOH_STATE_WRITTEN);
	must(moves_region(&l.m, REGION_A, 0), &l.m.err);
	assert_true(same_bytes(image.memory_a, l.loaded_a));
	look_away(&l);
	save_image(DIOH_FINISH_WRITTEN, DIOH_TRANSFER_NO_CHECKSUM, 0);
	expect_state(ESTALE, DIOH_OPEN_ACCEPT_WRITTEN);
	save_image(DIOH_FINISH_WRITTEN, 0, DIOH_TRANSFER_NO_CHECKSUM);
	expect_state(ESTALE, DIOH_OPEN_ACCEPT_WRITTEN);
	restore();
}

/* What says that it has no checksums is not checked by what stands in their place. */
static void without_checksums(void **state)
{
	struct dioh_record_head head;
	struct dioh_record_region region;
	struct dioh_record_extent extent;

	(void)state;
	save_image(DIOH_FINISH_DURABLE, DIOH_TRANSFER_NO_CHECKSUM, DIOH_TRANSFER_NO_CHECKSUM);
	assert_int_equal(pread(image.fd, &head, sizeof(head), 0), sizeof(head));
	assert_int_equal(pread(image.fd, &region, sizeof(region), (off_t)(head.regions.offset + sizeof(region))),
	                 sizeof(region));
	assert_int_equal(pread(image.fd, &extent, sizeof(extent), (off_t)head.extents.offset), sizeof(extent));
	poke(region.checksums.offset, 0x5a);
	poke(extent.checksums.offset, 0x5a);
	expect_whole_image();
	restore();
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_bit_in_the_record),
		cmocka_unit_test(a_bit_in_the_pages),
		cmocka_unit_test(a_bit_in_the_stream),
		cmocka_unit_test(what_means_nothing_is_ignored),
		cmocka_unit_test(cut_off_at_each_boundary),
		cmocka_unit_test(cut_off_while_open),
		cmocka_unit_test(bitmap_damaged_while_open),
		cmocka_unit_test(bits_behind_the_end_while_open),
		cmocka_unit_test(saved_over_while_open),
		cmocka_unit_test(stream_saved_over_while_open),
		cmocka_unit_test(saved_over_while_read),
		cmocka_unit_test(saved_over_before_finish),
		cmocka_unit_test(raw_cut_off_while_open),
		cmocka_unit_test(cut_off_before_finish),
		cmocka_unit_test(what_is_too_new),
		cmocka_unit_test(killed_over_an_older_image),
		cmocka_unit_test(partial_without_tables),
		cmocka_unit_test(nothing_is_finished_by_halves),
		cmocka_unit_test(written_but_never_synced),
		cmocka_unit_test(without_checksums),
	};

	return cmocka_run_group_tests_name("damage", tests, set_up, tear_down);
}
