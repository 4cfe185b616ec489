/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test_container_format.c - where a container's parts come to stand, and that record.c accepts what is planned.
 *
 * The worked example of docs/image-format.md is built here byte for byte: page and code cannot drift apart unseen.
 * Random plans: the seed is printed; DIOH_SEED=N repeats a run.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "chance.h"
#include "container_format.h"
#include "pages.h"

#define KIB UINT64_C(1024)
#define MIB (1024 * KIB)
#define GIB (1024 * MIB)

static void name_regions(struct dioh_record_region *regions, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++) {
		regions[i].number = i;
		snprintf(regions[i].name, sizeof(regions[i].name), "region%" PRIu32, i);
	}
}

/* As read back: sealed, against a file of exactly the image's size. */
static void assert_accepted(struct dioh_record_head *head, const struct dioh_record_region *regions,
                            const struct dioh_record_stream *streams,
                            const struct dioh_record_extent *extents)
{
	struct dioh_error err = { 0 };

	dioh_record_seal(head);
	if (dioh_record_check_head(head, head->image_bytes, &err) < 0 ||
	    dioh_record_check_tables(head, regions, streams, extents, &err) < 0)
		fail_msg("a planned image is refused: %s", err.text);
}

static void assert_area(const struct dioh_record_area *area, uint64_t offset, uint64_t bytes)
{
	assert_int_equal(area->offset, offset);
	assert_int_equal(area->bytes, bytes);
	assert_int_equal(area->crc32c, 0);
	assert_int_equal(area->reserved, 0);
}

/* ---- plans ----------------------------------------------------------------------------------- */

static void test_everything_has_its_place(void **state)
{
	struct dioh_record_region regions[2] = { { .bytes = 5 * MIB + 4096 }, { .bytes = 4096 } };
	struct dioh_record_head head = { .region_count = 2, .stream_count = 3, .extent_count = 99 };
	struct dioh_error err = { .code = 1234 };

	(void)state;
	name_regions(regions, 2);
	memset(&regions[0].bitmap, 0xaa, sizeof(regions[0].bitmap)); /* whatever stood there */
	assert_int_equal(dioh_container_plan(&head, 5000, regions, &err), 0);
	assert_int_equal(err.code, 1234);

	assert_int_equal(head.state, DIOH_STATE_PARTIAL);
	assert_int_equal(head.layout, DIOH_LAYOUT_CONTAINER);
	assert_int_equal(head.extent_count, 0);
	assert_area(&head.header, 4096, 5000);
	assert_area(&head.regions, 12288, 2 * 384);
	assert_area(&head.streams, 16384, 3 * 320);
	assert_area(&head.extents, 20480, 0);
	/* Room for 8192 extents of 40 bytes. */
	assert_area(&regions[0].bitmap, 348160, 168); /* 1281 pages: 161 bytes, rounded up to 8 */
	assert_area(&regions[0].checksums, 352256, 24);
	assert_area(&regions[1].bitmap, 356352, 8);
	assert_area(&regions[1].checksums, 360448, 4);
	assert_int_equal(regions[0].pages_offset, 1 * MIB);
	assert_int_equal(regions[1].pages_offset, 7 * MIB);
	assert_int_equal(head.image_bytes, 8 * MIB);
}

static void test_what_is_not_there_stands_nowhere(void **state)
{
	struct dioh_record_head head = { 0 };

	(void)state;
	assert_int_equal(dioh_container_plan(&head, 0, NULL, NULL), 0);
	assert_area(&head.header, 0, 0);
	assert_area(&head.regions, 0, 0);
	assert_area(&head.streams, 0, 0);
	assert_area(&head.extents, 0, 0);
	assert_int_equal(head.image_bytes, 1 * MIB);
	assert_accepted(&head, NULL, NULL, NULL);
}

static void test_random_plans_are_accepted(void **state)
{
	(void)state;
	for (int round = 0; round < 500; round++) {
		struct dioh_record_region regions[20] = { 0 };
		struct dioh_record_stream streams[5] = { 0 };
		struct dioh_record_head head = { .region_count = (uint32_t)(random_u64() % 21),
			                         .stream_count = (uint32_t)(random_u64() % 6) };
		uint64_t header_bytes =
			random_u64() % 3 == 0 ? 0 : random_u64() % (DIOH_HEADER_BYTES_MAX + 1);

		name_regions(regions, head.region_count);
		for (uint32_t i = 0; i < head.region_count; i++)
			regions[i].bytes =
				(1 + random_u64() % (UINT64_C(1) << random_u64() % 30)) * 4096;
		for (uint32_t i = 0; i < head.stream_count; i++) {
			streams[i].number = 100 + i;
			streams[i].name[0] = (char)('a' + i);
		}
		assert_int_equal(dioh_container_plan(&head, header_bytes, regions, NULL), 0);
		assert_int_equal(head.image_bytes % MIB, 0);
		assert_accepted(&head, regions, streams, NULL);
	}
}

static void test_the_largest_image(void **state)
{
	struct dioh_record_region *regions = calloc(DIOH_REGIONS_MAX, sizeof(*regions));
	struct dioh_record_stream streams[DIOH_STREAMS_MAX] = { 0 };
	struct dioh_record_head head = { .region_count = DIOH_REGIONS_MAX,
		                         .stream_count = DIOH_STREAMS_MAX };

	(void)state;
	assert_non_null(regions);
	name_regions(regions, DIOH_REGIONS_MAX);
	for (uint32_t i = 0; i < DIOH_REGIONS_MAX; i++)
		regions[i].bytes = DIOH_MEMORY_BYTES_MAX / DIOH_REGIONS_MAX;
	for (uint32_t i = 0; i < DIOH_STREAMS_MAX; i++) {
		streams[i].number = i;
		snprintf(streams[i].name, sizeof(streams[i].name), "%" PRIu32, i);
	}
	assert_int_equal(dioh_container_plan(&head, DIOH_HEADER_BYTES_MAX, regions, NULL), 0);
	assert_true(head.image_bytes > DIOH_MEMORY_BYTES_MAX);
	assert_true(head.image_bytes < DIOH_OFFSET_MAX);
	assert_accepted(&head, regions, streams, NULL);
	free(regions);
}

/* ---- refusals -------------------------------------------------------------------------------- */

static void assert_refused(struct dioh_record_head *head, uint64_t header_bytes,
                           struct dioh_record_region *region, int code, const char *part)
{
	const struct dioh_record_head head_before = *head;
	const struct dioh_record_region region_before = *region;
	struct dioh_error err = { 0 };

	assert_int_equal(dioh_container_plan(head, header_bytes, region, &err), -code);
	assert_int_equal(dioh_container_plan(head, header_bytes, region, NULL), -code);
	assert_int_equal(err.code, code);
	assert_int_equal(err.object, DIOH_OBJECT_IMAGE);
	assert_int_equal(err.number, 0);
	if (!strstr(err.text, part))
		fail_msg("\"%s\" does not say \"%s\"", err.text, part);
	assert_memory_equal(head, &head_before, sizeof(*head));
	assert_memory_equal(region, &region_before, sizeof(*region));
}

static void test_too_much_is_refused_and_nothing_changed(void **state)
{
	struct dioh_record_head one = { .region_count = 1 };
	struct dioh_record_head regions = { .region_count = DIOH_REGIONS_MAX + 1 };
	struct dioh_record_head streams = { .stream_count = DIOH_STREAMS_MAX + 1 };
	struct dioh_record_region region = { .number = 5, .bytes = 4096 };

	(void)state;
	assert_refused(&one, DIOH_HEADER_BYTES_MAX + 1, &region, EFBIG, "16777217 bytes");
	assert_refused(&one, UINT64_MAX, &region, EFBIG, "manager's header");
	assert_refused(&regions, 0, &region, EFBIG, "1025 regions");
	assert_refused(&streams, 0, &region, EFBIG, "65 streams");
	region.bytes = DIOH_REGION_BYTES_MAX + 4096;
	assert_refused(&one, 0, &region, EFBIG, "region 5");
	region.bytes = UINT64_MAX - 4095;
	assert_refused(&one, 0, &region, EFBIG, "region 5");
}

static void test_too_much_memory_is_refused(void **state)
{
	struct dioh_record_head head = { .region_count = 2 };
	struct dioh_record_region regions[2] = { { .bytes = DIOH_MEMORY_BYTES_MAX }, { .bytes = 4096 } };
	struct dioh_error err;

	(void)state;
	assert_refused(&head, 0, regions, EFBIG, "70368744181760 bytes together");
	regions[0].bytes -= 4096;
	name_regions(regions, 2);
	assert_int_equal(dioh_container_plan(&head, 0, regions, NULL), 0);
	assert_accepted(&head, regions, NULL, NULL);
	regions[1].bytes += 4096; /* no other rule minds */
	assert_int_equal(dioh_record_check_tables(&head, regions, NULL, NULL, &err), -EBADMSG);
	assert_non_null(strstr(err.text, "70368744181760 bytes together"));
}

static void test_broken_pages_are_refused(void **state)
{
	struct dioh_record_head head = { .region_count = 1 };
	struct dioh_record_region region = { .number = 5 };

	(void)state;
	assert_refused(&head, 0, &region, EINVAL, "region 5: its 0 bytes");
	region.bytes = 4095;
	assert_refused(&head, 0, &region, EINVAL, "region 5: its 4095 bytes");
	region.bytes = MIB + 1;
	assert_refused(&head, 0, &region, EINVAL, "region 5: its 1048577 bytes");
}

/* ---- extents --------------------------------------------------------------------------------- */

static void test_extents_grow(void **state)
{
	(void)state;
	assert_int_equal(dioh_container_extent_bytes(0), 4 * MIB);
	assert_int_equal(dioh_container_extent_bytes(1), 8 * MIB);
	assert_int_equal(dioh_container_extent_bytes(7), 512 * MIB);
	assert_int_equal(dioh_container_extent_bytes(8), 1 * GIB);
	assert_int_equal(dioh_container_extent_bytes(9), 1 * GIB);
	assert_int_equal(dioh_container_extent_bytes(DIOH_EXTENTS_MAX), 1 * GIB);
	assert_int_equal(dioh_container_extent_bytes(UINT32_MAX), 1 * GIB);
}

static void test_an_extent_follows_its_checksums(void **state)
{
	const struct {
		uint64_t bytes, checksums_bytes;
	} cases[] = { { 1, 4 }, { MIB, 4 }, { MIB + 1, 8 }, { 4 * MIB, 16 }, { GIB, 4096 } };

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct dioh_record_extent extent;

		memset(&extent, 0xaa, sizeof(extent));
		dioh_container_place_extent(3 * MIB, cases[i].bytes, &extent);
		assert_int_equal(extent.offset, 3 * MIB + 4096);
		assert_int_equal(extent.bytes, cases[i].bytes);
		assert_area(&extent.checksums, 3 * MIB, cases[i].checksums_bytes);
	}
}

/* Three streams that grow in turn, as transfers running at once make them. */
static void test_streams_that_grow_in_turn_are_accepted(void **state)
{
	enum { STREAMS = 3, EXTENTS_EACH = 10 };
	struct dioh_record_stream streams[STREAMS] = { 0 };
	struct dioh_record_extent extents[STREAMS * EXTENTS_EACH];
	struct dioh_record_head head = { .stream_count = STREAMS };
	uint64_t end;

	(void)state;
	assert_int_equal(dioh_container_plan(&head, 0, NULL, NULL), 0);
	end = head.image_bytes;
	for (uint32_t j = 0; j < EXTENTS_EACH; j++)
		for (uint32_t i = 0; i < STREAMS; i++) {
			struct dioh_record_extent *extent = &extents[i * EXTENTS_EACH + j];
			uint64_t bytes = dioh_container_extent_bytes(j);

			if (j == EXTENTS_EACH - 1)
				bytes = bytes / (i + 2) + 17;
			dioh_container_place_extent(end, bytes, extent);
			end = (extent->offset + extent->bytes + 4095) & ~UINT64_C(4095);
			streams[i].bytes += bytes;
		}
	for (uint32_t i = 0; i < STREAMS; i++) {
		streams[i].number = i;
		streams[i].name[0] = (char)('a' + i);
		streams[i].first_extent = i * EXTENTS_EACH;
		streams[i].extent_count = EXTENTS_EACH;
	}
	head.extent_count = STREAMS * EXTENTS_EACH;
	head.extents.bytes = head.extent_count * sizeof(extents[0]);
	head.image_bytes = end;
	head.state = DIOH_STATE_COMPLETE;
	assert_accepted(&head, NULL, streams, extents);
}

/* ---- the worked example ---------------------------------------------------------------------- */

static uint8_t *example; /* the image, as a file */

static void seal_area(struct dioh_record_area *area)
{
	area->crc32c = dioh_crc32c(0, example + area->offset, area->bytes);
}

static void put(const struct dioh_record_area *area, const void *data)
{
	memcpy(example + area->offset, data, area->bytes);
}

static void fill_example_region(struct dioh_record_region *region)
{
	static const struct {
		uint64_t page;
		uint8_t byte;
	} present[] = { { 0, 0x11 }, { 2, 0x22 }, { 257, 0x33 } };
	uint8_t *pages = example + region->pages_offset;
	uint8_t bitmap[40] = { 0 };
	uint32_t checksums[2];

	for (size_t i = 0; i < sizeof(present) / sizeof(present[0]); i++) {
		memset(pages + present[i].page * 4096, present[i].byte, 4096);
		dioh_bit_set(bitmap, present[i].page);
	}
	checksums[0] = dioh_pages_crc32c(pages, bitmap, 256);
	checksums[1] = dioh_pages_crc32c(pages + MIB, bitmap + 32, 2);
	put(&region->bitmap, bitmap);
	put(&region->checksums, checksums);
	region->present_pages = dioh_bits_count(bitmap, 258);
	seal_area(&region->bitmap);
	seal_area(&region->checksums);
}

static void fill_example_stream(struct dioh_record_extent *extent, const char *data)
{
	uint32_t checksum = dioh_crc32c(0, data, extent->bytes);

	memcpy(example + extent->offset, data, extent->bytes);
	put(&extent->checksums, &checksum);
	seal_area(&extent->checksums);
}

static void make_example(struct dioh_record_head *head)
{
	struct dioh_record_region region = { .number = 7,
		                             .flags = DIOH_REGION_GUEST_ADDRESS |
		                                      DIOH_REGION_CHECKSUMS,
		                             .bytes = MIB + 2 * 4096,
		                             .guest_address = 4 * GIB,
		                             .name = "ram" };
	struct dioh_record_stream stream = {
		.flags = DIOH_REGION_CHECKSUMS, .bytes = 5, .extent_count = 1, .name = "device"
	};
	struct dioh_record_extent extent;

	*head = (struct dioh_record_head){ .region_count = 1, .stream_count = 1 };
	assert_int_equal(dioh_container_plan(head, 8, &region, NULL), 0);
	dioh_container_place_extent(head->image_bytes, 5, &extent);
	head->image_bytes = extent.offset + extent.bytes;
	head->extent_count = 1;
	head->extents.bytes = sizeof(extent);
	head->state = DIOH_STATE_COMPLETE;

	example = calloc(1, head->image_bytes);
	assert_non_null(example);
	fill_example_region(&region);
	fill_example_stream(&extent, "hello");
	put(&head->header, "example\n");
	put(&head->regions, &region);
	put(&head->streams, &stream);
	put(&head->extents, &extent);
	seal_area(&head->header);
	seal_area(&head->regions);
	seal_area(&head->streams);
	seal_area(&head->extents);
	dioh_record_seal(head);
	memcpy(example, head, sizeof(*head));
	assert_accepted(head, &region, &stream, &extent);
}

/* With DIOH_TEST_EXAMPLE=FILE the image is written there: that is where the page's hex dump comes from. */
static void write_example(uint64_t bytes)
{
	const char *path = getenv("DIOH_TEST_EXAMPLE");
	FILE *file;

	if (!path)
		return;
	file = fopen(path, "wb");
	assert_non_null(file);
	assert_int_equal(fwrite(example, 1, bytes, file), bytes);
	assert_int_equal(fclose(file), 0);
}

/* The numbers are those of docs/image-format.md, "Worked example". */
static void test_the_worked_example(void **state)
{
	struct dioh_record_head head;

	(void)state;
	make_example(&head);
	write_example(head.image_bytes);
	assert_int_equal(head.image_bytes, 3149829);
	assert_int_equal(head.crc32c, 0x8fd354eeu);
	assert_int_equal(head.header.crc32c, 0x9086ac84u);
	assert_int_equal(head.regions.crc32c, 0x0d2bb009u);
	assert_int_equal(head.streams.crc32c, 0x6d1f396cu);
	assert_int_equal(head.extents.crc32c, 0x2b67f294u);
	assert_int_equal(dioh_crc32c(0, example, head.image_bytes), 0x97e7fbd5u);
	free(example);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_everything_has_its_place),
		cmocka_unit_test(test_what_is_not_there_stands_nowhere),
		cmocka_unit_test(test_random_plans_are_accepted),
		cmocka_unit_test(test_the_largest_image),
		cmocka_unit_test(test_too_much_is_refused_and_nothing_changed),
		cmocka_unit_test(test_too_much_memory_is_refused),
		cmocka_unit_test(test_broken_pages_are_refused),
		cmocka_unit_test(test_extents_grow),
		cmocka_unit_test(test_an_extent_follows_its_checksums),
		cmocka_unit_test(test_streams_that_grow_in_turn_are_accepted),
		cmocka_unit_test(test_the_worked_example),
	};

	return cmocka_run_group_tests(tests, random_set_up, NULL);
}
