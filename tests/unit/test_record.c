/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test_record.c - what common/record.c accepts and, field by field, what it refuses.
 *
 * A valid image is changed in one place at a time; the refusal must carry the right errno, the offset of the field
 * at fault and a sentence that names it. Random changes are compared with a model that is too simple to be wrong; the
 * seed is printed, DIOH_SEED=N repeats a run.
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

#include "align.h"
#include "chance.h"
#include "container_format.h"
#include "pages.h"

#define KIB UINT64_C(1024)
#define MIB (1024 * KIB)
#define GIB (1024 * MIB)

#define HEAD_AT(field) offsetof(struct dioh_record_head, field)

/* ---- a valid image --------------------------------------------------------------------------- */

enum { REGIONS = 3, STREAMS = 3, EXTENTS = 3 };

struct image {
	struct dioh_record_head head;
	struct dioh_record_region regions[REGIONS];
	struct dioh_record_stream streams[STREAMS];
	struct dioh_record_extent extents[EXTENTS];
};

/* After a change of the head: whoever changes it can compute a CRC, too. */
static void reseal(struct image *image)
{
	image->head.crc32c = dioh_crc32c(0, &image->head, HEAD_AT(crc32c));
}

static void make_image(struct image *image)
{
	struct dioh_record_head *head = &image->head;
	uint64_t end;

	*image = (struct image){
		.head = { .region_count = REGIONS, .stream_count = STREAMS },
		.regions = { { .number = 7,
		               .flags = DIOH_REGION_GUEST_ADDRESS | DIOH_REGION_CHECKSUMS,
		               .bytes = 5 * MIB + 4096,
		               .present_pages = 1281,
		               .name = "pc.ram" },
		             { .number = 2, .bytes = 16 * MIB, .name = "vga.vram" },
		             { .number = 9,
		               .flags = DIOH_REGION_CHECKSUMS,
		               .bytes = 4096,
		               .name = "pc.bios" } },
		.streams = { { .number = 4,
		               .flags = DIOH_REGION_CHECKSUMS,
		               .bytes = 4 * MIB + 12345,
		               .first_extent = 0,
		               .extent_count = 2,
		               .name = "vmstate" },
		             { .number = 1,
		               .bytes = 1,
		               .first_extent = 2,
		               .extent_count = 1,
		               .name = "extra" },
		             { .number = 2, .name = "empty" } },
	};
	assert_int_equal(dioh_container_plan(head, 100, image->regions, NULL), 0);
	end = head->image_bytes;
	for (int i = 0; i < EXTENTS; i++) {
		static const uint64_t bytes[EXTENTS] = { 4 * MIB, 12345, 1 };

		dioh_container_place_extent(end, bytes[i], &image->extents[i]);
		end = dioh_align_up(image->extents[i].offset + bytes[i], 4096);
	}
	head->image_bytes = end;
	head->extent_count = EXTENTS;
	head->extents.bytes = sizeof(image->extents);
	head->state = DIOH_STATE_COMPLETE;
	dioh_record_seal(head);
}

static int check_head(const struct image *image, struct dioh_error *err)
{
	return dioh_record_check_head(&image->head, 1000 * MIB, err);
}

static int check_tables(const struct image *image, struct dioh_error *err)
{
	return dioh_record_check_tables(&image->head, image->regions, image->streams,
	                                image->extents, err);
}

static void assert_accepted(const struct image *image)
{
	struct dioh_error err = { .code = 1234, .text = "untouched" };

	if (check_head(image, &err) != 0 || check_tables(image, &err) != 0)
		fail_msg("a valid image is refused: %s", err.text);
	assert_int_equal(err.code, 1234);
	assert_string_equal(err.text, "untouched");
}

/* ---- refusals -------------------------------------------------------------------------------- */

typedef int check_fn(const struct image *image, struct dioh_error *err);

static void assert_refused(const struct image *image, check_fn *check, int code, uint64_t at,
                           const char *part, const char *change)
{
	struct dioh_error err = { 0 };
	char byte[40];
	int r = check(image, &err);

	snprintf(byte, sizeof(byte), "(byte %" PRIu64 ")", at);
	if (r != -code || err.code != code)
		fail_msg("%s: got %d instead of %d: %s", change, r, -code, err.text);
	if (!strstr(err.text, part) || strncmp(err.text, "image: ", 7) != 0 ||
	    !strstr(err.text, byte))
		fail_msg("%s: \"%s\" does not say \"%s\" or \"%s\"", change, err.text, part, byte);
	assert_int_equal(err.operation, DIOH_OP_PARSE);
	assert_int_equal(err.object, DIOH_OBJECT_IMAGE);
	assert_int_equal(err.number, 0);
	assert_int_equal(err.offset, at);
	assert_int_equal(check(image, NULL), -code);
}

/* Changes one field to `value`, expects the refusal, and puts the field back. */
#define REFUSED(image, check, field, value, code, at, part)                                        \
	do {                                                                                       \
		__typeof__(field) before = (field);                                                \
		(field) = (value);                                                                 \
		reseal(image);                                                                     \
		assert_refused(image, check, code, at, part, #field " = " #value);                 \
		(field) = before;                                                                  \
		reseal(image);                                                                     \
	} while (0)

/* The head's field, refused by the head's check. */
#define HEAD(image, field, value, code, part)                                                      \
	REFUSED(image, check_head, (image)->head.field, value, code, HEAD_AT(field), part)

/* An entry's field, refused by the tables' check, after the head's has let it pass. */
#define ENTRY(image, table, i, field, value, part)                                                 \
	REFUSED(image, check_tables, (image)->table[i].field, value, EBADMSG,                      \
	        (image)->head.table.offset + (i) * sizeof((image)->table[0]) +                     \
	                offsetof(__typeof__((image)->table[0]), field),                            \
	        part)

#define REGION(image, i, field, value, part) ENTRY(image, regions, i, field, value, part)
#define STREAM(image, i, field, value, part) ENTRY(image, streams, i, field, value, part)
#define EXTENT(image, i, field, value, part) ENTRY(image, extents, i, field, value, part)

/* ---- the structs are what the page says ------------------------------------------------------ */

static void test_struct_offsets(void **state)
{
	const struct {
		size_t is, should_be;
	} offsets[] = {
		{ sizeof(struct dioh_record_head), 4096 },
		{ HEAD_AT(version), 16 },
		{ HEAD_AT(state), 20 },
		{ HEAD_AT(incompatible), 24 },
		{ HEAD_AT(compatible), 32 },
		{ HEAD_AT(layout), 40 },
		{ HEAD_AT(page_bytes), 44 },
		{ HEAD_AT(chunk_bytes), 48 },
		{ HEAD_AT(region_count), 52 },
		{ HEAD_AT(stream_count), 56 },
		{ HEAD_AT(extent_count), 60 },
		{ HEAD_AT(image_bytes), 64 },
		{ HEAD_AT(header), 72 },
		{ HEAD_AT(regions), 96 },
		{ HEAD_AT(streams), 120 },
		{ HEAD_AT(extents), 144 },
		{ HEAD_AT(reserved), 168 },
		{ HEAD_AT(crc32c), 4092 },
		{ sizeof(struct dioh_record_area), 24 },
		{ offsetof(struct dioh_record_area, bytes), 8 },
		{ offsetof(struct dioh_record_area, crc32c), 16 },
		{ offsetof(struct dioh_record_area, reserved), 20 },
		{ sizeof(struct dioh_record_region), 384 },
		{ offsetof(struct dioh_record_region, flags), 4 },
		{ offsetof(struct dioh_record_region, bytes), 8 },
		{ offsetof(struct dioh_record_region, guest_address), 16 },
		{ offsetof(struct dioh_record_region, pages_offset), 24 },
		{ offsetof(struct dioh_record_region, present_pages), 32 },
		{ offsetof(struct dioh_record_region, bitmap), 40 },
		{ offsetof(struct dioh_record_region, checksums), 64 },
		{ offsetof(struct dioh_record_region, name), 88 },
		{ offsetof(struct dioh_record_region, reserved), 344 },
		{ sizeof(struct dioh_record_stream), 320 },
		{ offsetof(struct dioh_record_stream, flags), 4 },
		{ offsetof(struct dioh_record_stream, bytes), 8 },
		{ offsetof(struct dioh_record_stream, first_extent), 16 },
		{ offsetof(struct dioh_record_stream, extent_count), 20 },
		{ offsetof(struct dioh_record_stream, name), 24 },
		{ offsetof(struct dioh_record_stream, reserved), 280 },
		{ sizeof(struct dioh_record_extent), 40 },
		{ offsetof(struct dioh_record_extent, bytes), 8 },
		{ offsetof(struct dioh_record_extent, checksums), 16 },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(offsets) / sizeof(offsets[0]); i++)
		assert_int_equal(offsets[i].is, offsets[i].should_be);
}

static void test_sizes_that_follow(void **state)
{
	(void)state;
	assert_int_equal(dioh_record_bitmap_bytes(4096), 8);
	assert_int_equal(dioh_record_bitmap_bytes(64 * 4096), 8);
	assert_int_equal(dioh_record_bitmap_bytes(65 * 4096), 16);
	assert_int_equal(dioh_record_bitmap_bytes(DIOH_REGION_BYTES_MAX), 2 * GIB);
	assert_int_equal(dioh_record_checksums_bytes(4096), 4);
	assert_int_equal(dioh_record_checksums_bytes(MIB), 4);
	assert_int_equal(dioh_record_checksums_bytes(MIB + 1), 8);
	assert_int_equal(dioh_record_checksums_bytes(DIOH_REGION_BYTES_MAX), 256 * MIB);
}

/* ---- the head -------------------------------------------------------------------------------- */

static void test_seal_fills_what_is_fixed(void **state)
{
	struct dioh_record_head head = { .state = DIOH_STATE_WRITTEN,
		                         .image_bytes = 77,
		                         .compatible = 5 };

	(void)state;
	dioh_record_seal(&head);
	assert_memory_equal(head.magic, "diohelper record", 16);
	assert_int_equal(head.version, 0x80000001u);
	assert_int_equal(head.page_bytes, 4096);
	assert_int_equal(head.chunk_bytes, MIB);
	assert_int_equal(head.crc32c, dioh_crc32c(0, &head, 4092));
	assert_int_equal(head.state, DIOH_STATE_WRITTEN);
	assert_int_equal(head.image_bytes, 77);
	assert_int_equal(head.compatible, 5);
}

static void test_a_valid_image_is_accepted_in_every_state(void **state)
{
	struct image image;

	(void)state;
	make_image(&image);
	assert_accepted(&image);
	image.head.state = DIOH_STATE_WRITTEN;
	reseal(&image);
	assert_accepted(&image);
	image.head.state = DIOH_STATE_PARTIAL;
	reseal(&image);
	assert_accepted(&image);
}

static void test_every_bit_of_the_head_counts(void **state)
{
	struct image image;
	uint8_t *bytes = (uint8_t *)&image.head;

	(void)state;
	make_image(&image);
	for (size_t bit = 0; bit < 8 * sizeof(image.head); bit++) {
		uint64_t at = bit < 8 * sizeof(image.head.magic) ? HEAD_AT(magic) : HEAD_AT(crc32c);

		bytes[bit / 8] ^= (uint8_t)(1u << (bit % 8));
		assert_refused(&image, check_head, EBADMSG, at, at == 0 ? "magic" : "damaged",
		               "a bit flipped");
		bytes[bit / 8] ^= (uint8_t)(1u << (bit % 8));
	}
	assert_accepted(&image);
}

static void test_all_zero_and_all_ones_are_no_heads(void **state)
{
	struct image image;

	(void)state;
	memset(&image, 0, sizeof(image));
	assert_refused(&image, check_head, EBADMSG, 0, "no diohelper record", "zeros");
	memset(&image, 0xff, sizeof(image));
	assert_refused(&image, check_head, EBADMSG, 0, "no diohelper record", "ones");
}

static void test_head_identity(void **state)
{
	struct image image;

	(void)state;
	make_image(&image);
	HEAD(&image, magic[0], 'D', EBADMSG, "magic");
	HEAD(&image, version, 0x80000002u, EOPNOTSUPP, "version 0x80000002");
	HEAD(&image, version, 1, EOPNOTSUPP, "version 0x00000001");
	HEAD(&image, incompatible, 1, EOPNOTSUPP, "incompatible features 0x0000000000000001");
	HEAD(&image, incompatible, UINT64_C(1) << 63, EOPNOTSUPP, "0x8000000000000000");
	HEAD(&image, layout, DIOH_LAYOUT_DETECT, EOPNOTSUPP, "layout 0");
	HEAD(&image, layout, DIOH_LAYOUT_RAW, EOPNOTSUPP, "layout 1");
	HEAD(&image, layout, DIOH_LAYOUT_MAPPED_RAM + 1, EOPNOTSUPP, "layout 4");
	HEAD(&image, layout, 0x102, EOPNOTSUPP, "layout 258");
	/* Another layout's rules are other rules: that of mapped-ram has one stream. */
	REFUSED(&image, check_head, image.head.layout, DIOH_LAYOUT_MAPPED_RAM, EBADMSG,
	        HEAD_AT(stream_count), "stream count is 3, not within 1 and 1");
	assert_accepted(&image);
	image.head.layout = DIOH_LAYOUT_RAW; /* a head that has not been checked */
	assert_refused(&image, check_tables, EOPNOTSUPP, HEAD_AT(layout), "layout 1", "raw tables");
}

/* What makes all else meaningless is said first. */
static void test_head_identity_goes_before_the_rest(void **state)
{
	struct image image;

	(void)state;
	make_image(&image);
	image.head.state = 9;
	image.head.region_count = UINT32_MAX;
	image.head.reserved[0] = 1;
	HEAD(&image, version, 0x80000002u, EOPNOTSUPP, "version");
	HEAD(&image, incompatible, 1, EOPNOTSUPP, "incompatible");
}

static void test_head_numbers(void **state)
{
	struct image image;

	(void)state;
	make_image(&image);
	HEAD(&image, state, 0, EBADMSG, "state is 0");
	HEAD(&image, state, 4, EBADMSG, "state is 4");
	HEAD(&image, state, 9, EBADMSG, "state is 9");
	HEAD(&image, state, UINT32_MAX, EBADMSG, "state");
	HEAD(&image, page_bytes, 0, EBADMSG, "page size is 0");
	HEAD(&image, page_bytes, 8192, EBADMSG, "page size is 8192");
	HEAD(&image, chunk_bytes, 4096, EBADMSG, "chunk size is 4096");
	HEAD(&image, chunk_bytes, 2 * MIB, EBADMSG, "chunk size is 2097152");
	HEAD(&image, region_count, DIOH_REGIONS_MAX + 1, EBADMSG, "region count is 1025");
	HEAD(&image, region_count, UINT32_MAX, EBADMSG, "region count");
	HEAD(&image, stream_count, DIOH_STREAMS_MAX + 1, EBADMSG, "stream count is 65");
	HEAD(&image, stream_count, UINT32_MAX, EBADMSG, "stream count");
	HEAD(&image, extent_count, DIOH_EXTENTS_MAX + 1, EBADMSG, "extent count is 8193");
	HEAD(&image, extent_count, UINT32_MAX, EBADMSG, "extent count");
	assert_accepted(&image);
}

static void test_extents_need_a_stream(void **state)
{
	struct image image;

	(void)state;
	make_image(&image);
	image.head.stream_count = 0;
	image.head.streams = (struct dioh_record_area){ 0 };
	reseal(&image);
	HEAD(&image, extent_count, 3, EBADMSG, "extent count is 3");
	HEAD(&image, extent_count, 1, EBADMSG, "extent count is 1");
}

/* A count within its limit, but not the one its table has room for. */
static void test_head_counts_match_the_tables(void **state)
{
	struct image image;

	(void)state;
	make_image(&image);
	REFUSED(&image, check_head, image.head.region_count, 4, EBADMSG, HEAD_AT(regions.bytes),
	        "region table");
	REFUSED(&image, check_head, image.head.region_count, 0, EBADMSG, HEAD_AT(regions.bytes),
	        "region table");
	REFUSED(&image, check_head, image.head.stream_count, 2, EBADMSG, HEAD_AT(streams.bytes),
	        "stream table");
	REFUSED(&image, check_head, image.head.extent_count, 4, EBADMSG, HEAD_AT(extents.bytes),
	        "extent table");
	HEAD(&image, regions.bytes, 0, EBADMSG, "the region table: 0 bytes long instead of 1152");
	HEAD(&image, regions.bytes, UINT64_MAX, EBADMSG, "the region table");
	HEAD(&image, streams.bytes, 3 * 320 + 1, EBADMSG,
	     "the stream table: 961 bytes long instead of 960");
	HEAD(&image, extents.bytes, 3 * 40 - 1, EBADMSG,
	     "the extent table: 119 bytes long instead of 120");
	HEAD(&image, header.bytes, DIOH_HEADER_BYTES_MAX + 1, EBADMSG,
	     "the manager's header: 16777217 bytes");
	HEAD(&image, header.bytes, UINT64_MAX, EBADMSG, "the manager's header");
	assert_accepted(&image);
}

static void test_image_size(void **state)
{
	struct dioh_error err;
	struct image image;
	uint64_t image_bytes;

	(void)state;
	make_image(&image);
	image_bytes = image.head.image_bytes;
	HEAD(&image, image_bytes, 0, EBADMSG, "image size is 0");
	HEAD(&image, image_bytes, 4095, EBADMSG, "image size is 4095");
	HEAD(&image, image_bytes, DIOH_OFFSET_MAX + 1, EBADMSG, "image size");
	HEAD(&image, image_bytes, UINT64_MAX, EBADMSG, "image size is 18446744073709551615");
	image.head.image_bytes = DIOH_OFFSET_MAX;
	reseal(&image);
	assert_int_equal(dioh_record_check_head(&image.head, DIOH_OFFSET_MAX, NULL), 0);
	image.head.image_bytes = image_bytes;
	reseal(&image);

	assert_int_equal(dioh_record_check_head(&image.head, image_bytes, NULL), 0);
	assert_int_equal(dioh_record_check_head(&image.head, UINT64_MAX, NULL), 0);
	assert_int_equal(dioh_record_check_head(&image.head, image_bytes - 1, &err), -EBADMSG);
	assert_int_equal(err.offset, HEAD_AT(image_bytes));
	assert_non_null(strstr(err.text, "truncated"));
	assert_int_equal(dioh_record_check_head(&image.head, 0, NULL), -EBADMSG);
}

static void test_a_partial_image_may_be_short(void **state)
{
	struct image image;

	(void)state;
	make_image(&image);
	image.head.state = DIOH_STATE_WRITTEN;
	reseal(&image);
	assert_int_equal(dioh_record_check_head(&image.head, 4096, NULL), -EBADMSG);
	image.head.state = DIOH_STATE_PARTIAL;
	reseal(&image);
	assert_int_equal(dioh_record_check_head(&image.head, 4096, NULL), 0);
}

static void test_the_smallest_image(void **state)
{
	struct dioh_record_head head = { .layout = DIOH_LAYOUT_CONTAINER,
		                         .state = DIOH_STATE_COMPLETE,
		                         .image_bytes = 4096 };

	(void)state;
	dioh_record_seal(&head);
	assert_int_equal(dioh_record_check_head(&head, 4096, NULL), 0);
	assert_int_equal(dioh_record_check_tables(&head, NULL, NULL, NULL, NULL), 0);
}

/* As a save leaves it that has not come far: planned, no extent yet. */
static void test_a_partial_images_tables_can_be_checked(void **state)
{
	struct image image;

	(void)state;
	make_image(&image);
	assert_int_equal(dioh_container_plan(&image.head, 100, image.regions, NULL), 0);
	for (int i = 0; i < STREAMS; i++) {
		image.streams[i].bytes = 0;
		image.streams[i].first_extent = 0;
		image.streams[i].extent_count = 0;
	}
	dioh_record_seal(&image.head);
	assert_true(image.head.extents.offset != 0);
	assert_accepted(&image);
}

#define HEAD_AREA_OUTSIDE(image, area, noun)                                                       \
	do {                                                                                       \
		uint64_t bytes = (image)->head.area.bytes;                                         \
		HEAD(image, area.offset, (image)->head.image_bytes, EBADMSG, noun " [");           \
		HEAD(image, area.offset, (image)->head.image_bytes - bytes + 1, EBADMSG,           \
		     "lies outside");                                                              \
		HEAD(image, area.offset, UINT64_MAX, EBADMSG,                                      \
		     "18446744073709551615) lies outside");                                        \
		HEAD(image, area.offset, UINT64_MAX - bytes + 1, EBADMSG, "lies outside");         \
		HEAD(image, area.offset, -bytes, EBADMSG, "lies outside");                         \
		HEAD(image, area.offset, (image)->head.area.offset + 1, EBADMSG,                   \
		     "a multiple of 4096");                                                        \
		HEAD(image, area.offset, (image)->head.area.offset + 2048, EBADMSG,                \
		     noun " at offset");                                                           \
		HEAD(image, area.reserved, 1, EBADMSG, noun ": reserved");                         \
		HEAD(image, area.reserved, 0x80000000u, EBADMSG, "reserved");                      \
	} while (0)

static void test_head_areas(void **state)
{
	struct image image;

	(void)state;
	make_image(&image);
	HEAD_AREA_OUTSIDE(&image, header, "the manager's header");
	HEAD_AREA_OUTSIDE(&image, regions, "the region table");
	HEAD_AREA_OUTSIDE(&image, streams, "the stream table");
	HEAD_AREA_OUTSIDE(&image, extents, "the extent table");
	assert_accepted(&image);
}

static void test_head_areas_may_end_where_the_image_ends(void **state)
{
	struct image image;

	(void)state;
	make_image(&image);
	image.head.extents.offset = image.head.image_bytes;
	image.head.image_bytes += image.head.extents.bytes;
	reseal(&image);
	assert_accepted(&image);
}

static void test_empty_areas(void **state)
{
	struct image image;

	(void)state;
	make_image(&image);
	image.head = (struct dioh_record_head){ 0 };
	assert_int_equal(dioh_container_plan(&image.head, 0, NULL, NULL), 0);
	dioh_record_seal(&image.head);
	assert_int_equal(check_head(&image, NULL), 0);
	assert_int_equal(dioh_record_check_tables(&image.head, NULL, NULL, NULL, NULL), 0);

	HEAD(&image, header.offset, 4096, EBADMSG, "the manager's header: 0 bytes long");
	HEAD(&image, regions.offset, 4096, EBADMSG, "the region table: 0 bytes long");
	HEAD(&image, streams.offset, UINT64_MAX, EBADMSG, "the stream table: 0 bytes long");
	HEAD(&image, extents.offset, image.head.image_bytes + 1, EBADMSG,
	     "the extent table: 0 bytes long");
	REFUSED(&image, check_head, image.head.header.crc32c, 1, EBADMSG, HEAD_AT(header),
	        "CRC 0x00000001");
	REFUSED(&image, check_head, image.head.extents.crc32c, 1, EBADMSG, HEAD_AT(extents),
	        "CRC 0x00000001");
	image.head.extents.offset = image.head.image_bytes;
	reseal(&image);
	assert_int_equal(check_head(&image, NULL), 0);
}

static void test_head_reserved(void **state)
{
	struct image image;

	(void)state;
	make_image(&image);
	for (size_t i = 0; i < sizeof(image.head.reserved); i += i % 64 == 0 ? 1 : 61)
		REFUSED(&image, check_head, image.head.reserved[i], 0x80, EBADMSG,
		        HEAD_AT(reserved), "reserved");
	HEAD(&image, reserved[0], 1, EBADMSG, "reserved");
	REFUSED(&image, check_head, image.head.reserved[sizeof(image.head.reserved) - 1], 1,
	        EBADMSG, HEAD_AT(reserved), "reserved");
	assert_accepted(&image);
}

/* A younger writer's compatible feature may use bytes that are reserved today. */
static void test_a_compatible_feature_may_use_reserved_bytes(void **state)
{
	struct image image;

	(void)state;
	make_image(&image);
	image.head.compatible = UINT64_C(1) << 40;
	reseal(&image);
	assert_accepted(&image);
	image.head.reserved[100] = 1;
	image.head.regions.reserved = 1;
	image.regions[0].reserved[2] = 1;
	image.regions[1].bitmap.reserved = 1;
	image.streams[0].reserved[0] = 1;
	image.extents[0].checksums.reserved = 1;
	reseal(&image);
	assert_accepted(&image);
	image.head.compatible = 0;
	reseal(&image);
	assert_int_equal(check_head(&image, NULL), -EBADMSG);
	assert_int_equal(check_tables(&image, NULL), -EBADMSG);
}

/* ---- the tables' entries --------------------------------------------------------------------- */

static void test_region_numbers(void **state)
{
	struct image image;

	(void)state;
	make_image(&image);
	REGION(&image, 0, flags, 4, "region 7 \"pc.ram\": unknown flags 0x4");
	REGION(&image, 2, flags, 0x80000001u, "region 9 \"pc.bios\": unknown flags 0x80000000");
	REGION(&image, 1, bytes, 0, "region 2 \"vga.vram\": its size 0");
	REGION(&image, 1, bytes, 16 * MIB + 1, "its size 16777217");
	REGION(&image, 1, bytes, DIOH_REGION_BYTES_MAX + 4096, "its size");
	REGION(&image, 1, bytes, UINT64_MAX - 4095, "its size");
	REGION(&image, 0, present_pages, 1282, "region 7 \"pc.ram\": 1282 present pages");
	REGION(&image, 2, present_pages, UINT64_MAX, "present pages");
	REGION(&image, 0, reserved[0], 1, "region 7 \"pc.ram\": reserved");
	ENTRY(&image, regions, 2, bitmap.reserved, 1, "region 9 \"pc.bios\": its bitmap: reserved");
	ENTRY(&image, regions, 2, checksums.reserved, 1,
	      "region 9 \"pc.bios\": its checksums: reserved");
	REFUSED(&image, check_tables, image.regions[0].reserved[4], UINT64_C(1) << 63, EBADMSG,
	        image.head.regions.offset + offsetof(struct dioh_record_region, reserved),
	        "reserved");
	assert_accepted(&image);
}

/* A region whose size has changed no longer fits its bitmap; a page more than a chunk, no longer its checksums. */
static void test_region_areas_have_the_right_length(void **state)
{
	struct image image;

	(void)state;
	make_image(&image);
	REGION(&image, 0, bitmap.bytes, 161,
	       "region 7 \"pc.ram\": its bitmap: 161 bytes long instead of 168");
	REGION(&image, 0, bitmap.bytes, 176, "its bitmap: 176 bytes long");
	REGION(&image, 0, bitmap.bytes, 0, "its bitmap: 0 bytes long");
	REGION(&image, 0, bitmap.bytes, UINT64_MAX, "its bitmap");
	REGION(&image, 1, checksums.bytes, 60,
	       "region 2 \"vga.vram\": its checksums: 60 bytes long instead of 64");
	REGION(&image, 1, checksums.bytes, 68, "its checksums: 68 bytes long");
	REGION(&image, 1, checksums.bytes, 0, "its checksums: 0 bytes long");
	REFUSED(&image, check_tables, image.regions[1].bytes, 17 * MIB, EBADMSG,
	        image.head.regions.offset + 384 + offsetof(struct dioh_record_region, bitmap.bytes),
	        "its bitmap");
	REFUSED(&image, check_tables, image.regions[0].bytes, 5 * MIB, EBADMSG,
	        image.head.regions.offset + offsetof(struct dioh_record_region, present_pages),
	        "present pages");
	image.regions[0].present_pages = 0;
	image.regions[0].bitmap.bytes = 160;
	REFUSED(&image, check_tables, image.regions[0].bytes, 5 * MIB, EBADMSG,
	        image.head.regions.offset + offsetof(struct dioh_record_region, checksums.bytes),
	        "its checksums");
}

#define ENTRY_AREA_OUTSIDE(image, table, i, field, size, alignment, noun)                          \
	do {                                                                                       \
		uint64_t offset = (image)->table[i].field, end = (image)->head.image_bytes;        \
		ENTRY(image, table, i, field, end, noun " [");                                     \
		ENTRY(image, table, i, field, dioh_align_up(end, alignment),                       \
		      "lies outside the image of");                                                \
		ENTRY(image, table, i, field, end - (size) + 1, "lies outside");                   \
		ENTRY(image, table, i, field, -(uint64_t)(size), "lies outside");                  \
		ENTRY(image, table, i, field, UINT64_MAX - (size) / 2, "lies outside");            \
		ENTRY(image, table, i, field, UINT64_MAX, "18446744073709551615) lies outside");   \
		ENTRY(image, table, i, field, offset + (alignment) / 2, noun " at offset");        \
		ENTRY(image, table, i, field, offset + 1, "does not start at a multiple of ");     \
	} while (0)

static void test_region_areas_lie_in_the_image(void **state)
{
	struct image image;

	(void)state;
	make_image(&image);
	for (size_t i = 0; i < REGIONS; i++) {
		uint64_t bytes = image.regions[i].bytes;

		ENTRY_AREA_OUTSIDE(&image, regions, i, bitmap.offset,
		                   dioh_record_bitmap_bytes(bytes), 4096, "its bitmap");
		ENTRY_AREA_OUTSIDE(&image, regions, i, checksums.offset,
		                   dioh_record_checksums_bytes(bytes), 4096, "its checksums");
		ENTRY_AREA_OUTSIDE(&image, regions, i, pages_offset, bytes, MIB, "its pages");
	}
	assert_accepted(&image);
}

static void test_extents_lie_in_the_image(void **state)
{
	struct image image;

	(void)state;
	make_image(&image);
	for (size_t i = 0; i < EXTENTS; i++) {
		uint64_t bytes = image.extents[i].bytes;

		ENTRY_AREA_OUTSIDE(&image, extents, i, offset, bytes, 4096, "its data");
		ENTRY_AREA_OUTSIDE(&image, extents, i, checksums.offset,
		                   dioh_record_checksums_bytes(bytes), 4096, "its checksums");
	}
	EXTENT(&image, 2, checksums.offset, UINT64_MAX, "extent 2: its checksums");
	assert_accepted(&image);
}

/* The head passes its own check: only the tables show that the image is too short for them. */
static void test_an_image_too_short_for_its_tables(void **state)
{
	struct image image;

	(void)state;
	make_image(&image);
	image.head.image_bytes = image.extents[2].offset; /* the last extent's byte */
	reseal(&image);
	assert_int_equal(check_head(&image, NULL), 0);
	assert_refused(&image, check_tables, EBADMSG,
	               image.head.extents.offset + 2 * 40 +
	                       offsetof(struct dioh_record_extent, offset),
	               "extent 2: its data", "image_bytes");
	make_image(&image);
	image.head.image_bytes = image.regions[2].pages_offset + 4095;
	reseal(&image);
	assert_int_equal(check_head(&image, NULL), 0);
	assert_refused(&image, check_tables, EBADMSG,
	               image.head.regions.offset + 2 * 384 +
	                       offsetof(struct dioh_record_region, pages_offset),
	               "region 9 \"pc.bios\": its pages", "image_bytes");
}

/* ---- streams and extents --------------------------------------------------------------------- */

static void test_extent_sizes(void **state)
{
	struct image image;

	(void)state;
	make_image(&image);
	EXTENT(&image, 0, bytes, 0, "extent 0: its size 0");
	EXTENT(&image, 0, bytes, GIB + 1, "extent 0: its size 1073741825");
	EXTENT(&image, 0, bytes, UINT64_MAX, "extent 0: its size");
	EXTENT(&image, 0, checksums.bytes, 12,
	       "extent 0: its checksums: 12 bytes long instead of 16");
	EXTENT(&image, 1, checksums.bytes, 8, "extent 1: its checksums: 8 bytes long instead of 4");
	EXTENT(&image, 1, checksums.bytes, 0, "extent 1: its checksums: 0 bytes long");
	EXTENT(&image, 2, checksums.reserved, 1, "extent 2: its checksums: reserved");
	/* Not the stream's last. */
	EXTENT(&image, 0, bytes, 4 * MIB - 1, "stream 4 \"vmstate\": extent 0 is not its last");
	EXTENT(&image, 0, bytes, 4 * MIB - 4096, "extent 0 is not its last");
	assert_accepted(&image);
}

static void test_stream_numbers(void **state)
{
	struct image image;

	(void)state;
	make_image(&image);
	STREAM(&image, 0, flags, DIOH_REGION_GUEST_ADDRESS,
	       "stream 4 \"vmstate\": unknown flags 0x1");
	STREAM(&image, 0, flags, 0x82, "unknown flags 0x80");
	STREAM(&image, 1, reserved[0], 1, "stream 1 \"extra\": reserved");
	REFUSED(&image, check_tables, image.streams[2].reserved[4], 1, EBADMSG,
	        image.head.streams.offset + 2 * 320 + offsetof(struct dioh_record_stream, reserved),
	        "reserved");
	assert_accepted(&image);
}

static void test_extents_add_up_to_their_stream(void **state)
{
	struct image image;
	uint64_t stream0;

	(void)state;
	make_image(&image);
	stream0 = image.head.streams.offset + offsetof(struct dioh_record_stream, bytes);
	STREAM(&image, 0, bytes, 4 * MIB + 12346,
	       "stream 4 \"vmstate\": its extents hold 4206649 bytes, not 4206650");
	STREAM(&image, 0, bytes, 0, "its extents hold");
	STREAM(&image, 0, bytes, UINT64_MAX, "its extents hold");
	STREAM(&image, 2, bytes, 1, "stream 2 \"empty\": its extents hold 0 bytes, not 1");
	REFUSED(&image, check_tables, image.extents[1].bytes, 12344, EBADMSG, stream0,
	        "its extents hold 4206648");
	REFUSED(&image, check_tables, image.streams[0].extent_count, 1, EBADMSG, stream0,
	        "hold 4194304 bytes");
	assert_accepted(&image);
}

static void test_extents_are_in_the_table(void **state)
{
	struct image image;
	uint64_t stream0;

	(void)state;
	make_image(&image);
	stream0 = image.head.streams.offset + offsetof(struct dioh_record_stream, first_extent);
	STREAM(&image, 0, first_extent, 2,
	       "stream 4 \"vmstate\": its 2 extents from 2 on lie outside the table of 3");
	STREAM(&image, 0, first_extent, UINT32_MAX, "lie outside");
	STREAM(&image, 0, first_extent, UINT32_MAX - 1, "lie outside"); /* + 2 wraps */
	STREAM(&image, 2, first_extent, 4,
	       "stream 2 \"empty\": its 0 extents from 4 on lie outside");
	REFUSED(&image, check_tables, image.streams[0].extent_count, 4, EBADMSG, stream0,
	        "lie outside");
	REFUSED(&image, check_tables, image.streams[0].extent_count, UINT32_MAX, EBADMSG, stream0,
	        "lie outside");
	image.streams[2].first_extent = 3; /* none, behind the last */
	assert_accepted(&image);
}

static void test_an_extent_has_one_stream(void **state)
{
	struct image image;

	(void)state;
	make_image(&image);
	STREAM(&image, 1, first_extent, 1,
	       "stream 1 \"extra\": extent 1 belongs to another stream");
	image.streams[1].extent_count = 0;
	image.streams[1].bytes = 0;
	assert_refused(&image, check_tables, EBADMSG, image.head.extents.offset + 2 * 40,
	               "extent 2 belongs to no stream", "the last extent left over");
	make_image(&image);
	image.streams[0].first_extent = 1;
	image.streams[0].extent_count = 1;
	image.streams[0].bytes = 12345;
	assert_refused(&image, check_tables, EBADMSG, image.head.extents.offset,
	               "extent 0 belongs to no stream", "the first extent left over");
}

/* ---- names and numbers ----------------------------------------------------------------------- */

static void test_names_end(void **state)
{
	struct image image;
	uint64_t region = offsetof(struct dioh_record_region, name);
	uint64_t stream = offsetof(struct dioh_record_stream, name);

	(void)state;
	make_image(&image);
	memset(image.regions[1].name, 'x', DIOH_NAME_BYTES - 1);
	assert_accepted(&image); /* 255 bytes and a NUL */
	image.regions[1].name[DIOH_NAME_BYTES - 1] = 'x';
	assert_refused(&image, check_tables, EBADMSG, image.head.regions.offset + 384 + region,
	               "region table, entry 1: its name has no end", "no NUL");
	make_image(&image);
	memset(image.streams[2].name, 'x', DIOH_NAME_BYTES);
	assert_refused(&image, check_tables, EBADMSG, image.head.streams.offset + 2 * 320 + stream,
	               "stream table, entry 2: its name has no end", "no NUL");
	make_image(&image);
	REGION(&image, 0, name[0], '\0', "region table, entry 0: its name is empty");
	STREAM(&image, 1, name[0], '\0', "stream table, entry 1: its name is empty");
}

static void test_numbers_are_unique_within_a_kind(void **state)
{
	struct image image;

	(void)state;
	make_image(&image);
	REGION(&image, 1, number, 7,
	       "region 7 \"vga.vram\": entry 0 of the table has the same number");
	REGION(&image, 2, number, 2, "region 2 \"pc.bios\": entry 1");
	STREAM(&image, 2, number, 4,
	       "stream 4 \"empty\": entry 0 of the table has the same number");
	image.regions[0].number = UINT32_MAX;
	image.streams[0].number = UINT32_MAX; /* another kind */
	assert_accepted(&image);
}

static void test_names_are_unique_within_a_kind(void **state)
{
	struct image image;
	uint64_t region = offsetof(struct dioh_record_region, name);
	uint64_t stream = offsetof(struct dioh_record_stream, name);

	(void)state;
	make_image(&image);
	strcpy(image.regions[2].name, "pc.ram");
	assert_refused(&image, check_tables, EBADMSG, image.head.regions.offset + 2 * 384 + region,
	               "region 9 \"pc.ram\": entry 0 of the table has the same name",
	               "a name twice");
	make_image(&image);
	strcpy(image.streams[1].name, "vmstate");
	assert_refused(&image, check_tables, EBADMSG, image.head.streams.offset + 320 + stream,
	               "stream 1 \"vmstate\": entry 0 of the table has the same name",
	               "a name twice");
	make_image(&image);
	strcpy(image.regions[1].name, "vmstate"); /* another kind */
	strcpy(image.regions[2].name, "pc.ra");
	assert_accepted(&image);
	strcpy(image.regions[2].name + 6, "behind the NUL, nobody looks");
	assert_accepted(&image);
}

static void test_names_in_sentences_are_short_and_printable(void **state)
{
	struct dioh_error err = { 0 };
	struct image image;

	(void)state;
	make_image(&image);
	strcpy(image.regions[0].name, "a ~\033[31m\n\x80\xff\x7f");
	image.regions[0].reserved[0] = 1;
	assert_int_equal(check_tables(&image, &err), -EBADMSG);
	assert_non_null(strstr(err.text, "region 7 \"a ~?[31m????\": reserved"));
	memset(image.regions[0].name, 'x', 200);
	image.regions[0].name[200] = '\0';
	assert_int_equal(check_tables(&image, &err), -EBADMSG);
	assert_non_null(strstr(err.text, "xxx\": reserved bytes are not zero (byte "));
}

/* ---- overlaps -------------------------------------------------------------------------------- */

static void test_overlaps(void **state)
{
	struct image image;

	(void)state;
	make_image(&image);
	/* Each on top of its neighbours: head, header, tables, bitmap, checksums, pages, extents. */
	REFUSED(&image, check_tables, image.head.header.offset, 0, EBADMSG, HEAD_AT(header),
	        "the manager's header [0, 100) overlaps the head [0, 4096)");
	REFUSED(&image, check_tables, image.head.regions.offset, 4096, EBADMSG, HEAD_AT(regions),
	        "the region table [4096, 5248) overlaps the manager's header [4096, 4196)");
	REFUSED(&image, check_tables, image.head.streams.offset, 0, EBADMSG, HEAD_AT(streams),
	        "the stream table");
	REFUSED(&image, check_tables, image.head.extents.offset, 8192, EBADMSG, HEAD_AT(extents),
	        "the extent table");
	REGION(&image, 0, bitmap.offset, image.head.regions.offset,
	       "region 7 \"pc.ram\": its bitmap [8192, 8360) overlaps");
	REGION(&image, 0, checksums.offset, 0, "its checksums [0, 24) overlaps the head");
	REGION(&image, 1, checksums.offset, image.regions[1].bitmap.offset,
	       "overlaps region 2 \"vga.vram\": its bitmap");
	REGION(&image, 1, pages_offset, image.regions[0].pages_offset + 5 * MIB,
	       "overlaps region 7 \"pc.ram\": its pages");
	REGION(&image, 2, pages_offset, image.regions[1].pages_offset + 15 * MIB,
	       "overlaps region 2 \"vga.vram\"");
	EXTENT(&image, 1, offset, image.extents[0].offset + 4 * MIB - 4096, "extent 1: its data");
	EXTENT(&image, 2, offset, image.extents[1].offset + 12288, "overlaps extent 1: its data");
	EXTENT(&image, 2, checksums.offset, image.regions[1].pages_offset + 8 * MIB,
	       "overlaps region 2 \"vga.vram\"");
	assert_accepted(&image);
}

static void test_side_by_side_is_no_overlap(void **state)
{
	struct image image;

	(void)state;
	make_image(&image);
	/* Region 1's 16 MiB straight behind region 0's last chunk; extent 2 straight behind extent 1's last page. */
	image.regions[1].pages_offset = image.regions[0].pages_offset + 6 * MIB;
	image.regions[2].pages_offset = image.regions[1].pages_offset + 16 * MIB;
	image.extents[2].offset = image.extents[1].offset + 16384;
	image.extents[2].checksums.offset = image.extents[2].offset + 4096;
	assert_accepted(&image);
}

struct model_span {
	uint64_t offset, bytes;
};

static uint64_t model_head_offset(const struct image *image)
{
	const struct dioh_record_area *bitmap = &image->regions[0].bitmap;

	if (image->head.layout == DIOH_LAYOUT_CONTAINER)
		return 0;
	return (bitmap->offset + bitmap->bytes + 4095) / 4096 * 4096;
}

static bool model_overlaps(const struct image *image)
{
	struct model_span spans[5 + 3 * REGIONS + 2 * EXTENTS] = {
		{ model_head_offset(image), 4096 },
		{ image->head.header.offset, image->head.header.bytes },
		{ image->head.regions.offset, image->head.regions.bytes },
		{ image->head.streams.offset, image->head.streams.bytes },
		{ image->head.extents.offset, image->head.extents.bytes },
	};
	size_t n = 5;

	for (size_t i = 0; i < image->head.region_count; i++) {
		const struct dioh_record_region *region = &image->regions[i];

		spans[n++] = (struct model_span){ region->bitmap.offset, region->bitmap.bytes };
		spans[n++] =
			(struct model_span){ region->checksums.offset, region->checksums.bytes };
		spans[n++] = (struct model_span){ region->pages_offset, region->bytes };
	}
	for (size_t i = 0; i < image->head.extent_count; i++) {
		const struct dioh_record_extent *extent = &image->extents[i];

		spans[n++] =
			(struct model_span){ extent->checksums.offset, extent->checksums.bytes };
		spans[n++] = (struct model_span){ extent->offset, extent->bytes };
	}
	for (size_t a = 0; a < n; a++)
		for (size_t b = 0; b < a; b++)
			if (spans[a].offset < spans[b].offset + spans[b].bytes &&
			    spans[b].offset < spans[a].offset + spans[a].bytes)
				return true;
	return false;
}

/* Areas thrown into an image, at aligned places inside it: some overlap, some do not. */
static void test_random_places_are_judged_as_by_the_model(void **state)
{
	unsigned apart = 0, overlapping = 0;

	(void)state;
	for (int round = 0; round < 4000; round++) {
		struct image image;
		uint64_t *offsets[] = {
			&image.head.header.offset,          &image.head.regions.offset,
			&image.head.streams.offset,         &image.head.extents.offset,
			&image.regions[0].bitmap.offset,    &image.regions[0].checksums.offset,
			&image.regions[1].bitmap.offset,    &image.regions[1].checksums.offset,
			&image.regions[2].bitmap.offset,    &image.regions[2].checksums.offset,
			&image.extents[0].checksums.offset, &image.extents[0].offset,
			&image.extents[1].checksums.offset, &image.extents[1].offset,
			&image.extents[2].checksums.offset, &image.extents[2].offset,
		};
		uint64_t room_mib = UINT64_C(30) << random_u64() % 5; /* crowded or not */
		bool overlaps;

		make_image(&image);
		image.head.image_bytes = 512 * MIB;
		for (size_t i = 0; i < sizeof(offsets) / sizeof(offsets[0]); i++)
			if (random_u64() % 3 == 0)
				*offsets[i] = random_u64() % (room_mib * 256) * 4096;
		for (size_t i = 0; i < REGIONS; i++)
			if (random_u64() % 3 == 0)
				image.regions[i].pages_offset = random_u64() % room_mib * MIB;
		reseal(&image);
		overlaps = model_overlaps(&image);
		(*(overlaps ? &overlapping : &apart))++;
		assert_int_equal(check_head(&image, NULL), 0);
		assert_int_equal(check_tables(&image, NULL), overlaps ? -EBADMSG : 0);
	}
	print_message("%u with an overlap, %u without\n", overlapping, apart);
	assert_true(apart > 100 && overlapping > 100);
}

/* ---- mapped-ram ------------------------------------------------------------------------------ */

/* Two blocks, their headers, and a tail of more than a chunk, as a writer puts them. */
static void make_mapped(struct image *image)
{
	*image = (struct image){
		.head = { .layout = DIOH_LAYOUT_MAPPED_RAM,
		          .state = DIOH_STATE_COMPLETE,
		          .region_count = 2,
		          .stream_count = 1,
		          .extent_count = 3,
		          .header = { .bytes = 5000 },
		          .regions = { .offset = 12288, .bytes = 2 * 384 },
		          .streams = { .offset = 16384, .bytes = 320 },
		          .extents = { .offset = 20480, .bytes = 3 * 40 } },
		.regions = { { .number = 7,
		               .flags = DIOH_REGION_CHECKSUMS,
		               .bytes = 5 * MIB + 4096,
		               .present_pages = 1281,
		               .pages_offset = 2 * MIB,
		               .bitmap = { .offset = 5400, .bytes = 168 },
		               .checksums = { .offset = 24576, .bytes = 24 },
		               .name = "pc.ram" },
		             { .number = 2,
		               .bytes = 4096,
		               .pages_offset = 8 * MIB,
		               .bitmap = { .offset = 7 * MIB + 4096 + 40, .bytes = 8 },
		               .checksums = { .offset = 28672, .bytes = 4 },
		               .name = "pc.bios" } },
		.streams = { { .number = 4,
		               .flags = DIOH_REGION_CHECKSUMS,
		               .bytes = 400 + 40 + MIB + 17,
		               .extent_count = 3,
		               .name = "qemu" } },
		.extents = { { .offset = 5000, .bytes = 400, .checksums = { .offset = 32768, .bytes = 4 } },
		             { .offset = 7 * MIB + 4096,
		               .bytes = 40,
		               .checksums = { .offset = 32772, .bytes = 4 } },
		             { .offset = 8 * MIB + 4096,
		               .bytes = MIB + 17,
		               .checksums = { .offset = 36864, .bytes = 8 } } },
	};
	image->head.image_bytes = 9 * MIB + 4096 + 17;
	dioh_record_seal(&image->head);
}

enum { MAPPED_HEAD = 8192 };

static void test_mapped_ram_is_accepted_in_every_state(void **state)
{
	struct image image;

	(void)state;
	make_mapped(&image);
	for (uint32_t s = DIOH_STATE_PARTIAL; s <= DIOH_STATE_WRITTEN; s++) {
		image.head.state = s;
		reseal(&image);
		assert_accepted(&image);
	}
	image.head.header.bytes = 0;
	reseal(&image);
	assert_accepted(&image);
}

static void test_mapped_ram_has_regions_and_one_stream(void **state)
{
	struct image image;

	(void)state;
	make_mapped(&image);
	HEAD(&image, region_count, 0, EBADMSG, "region count is 0, not within 1 and 1024");
	HEAD(&image, region_count, DIOH_REGIONS_MAX + 1, EBADMSG, "region count is 1025");
	HEAD(&image, stream_count, 0, EBADMSG, "stream count is 0, not within 1 and 1");
	HEAD(&image, stream_count, 2, EBADMSG, "stream count is 2, not within 1 and 1");
	HEAD(&image, extent_count, DIOH_EXTENTS_MAX + 1, EBADMSG, "extent count is 8193");
	assert_accepted(&image);
}

/* libvirt edits its XML in place. A container's header has a CRC. */
static void test_mapped_ram_has_no_crc_of_the_header(void **state)
{
	struct image image;

	(void)state;
	make_mapped(&image);
	HEAD(&image, header.crc32c, 1, EBADMSG, "the manager's header: it has no CRC in this layout");
	HEAD(&image, header.crc32c, UINT32_MAX, EBADMSG, "0xffffffff stands there");
	assert_accepted(&image);
	make_image(&image);
	image.head.header.crc32c = 1;
	reseal(&image);
	assert_accepted(&image);
}

/* QEMU's own bytes stand anywhere and have any length; what a container must not do. */
static void test_mapped_ram_is_not_on_boundaries(void **state)
{
	struct image image;

	(void)state;
	make_mapped(&image);
	image.regions[0].bitmap.offset = 5401;
	image.regions[1].bitmap.offset += 3;
	image.extents[0].offset = 5001;
	image.extents[0].bytes = 399;
	image.extents[1].offset += 1;
	image.extents[2].offset += 5;
	image.extents[2].bytes -= 5;
	image.streams[0].bytes -= 6;
	image.extents[1].checksums.offset = 32780;
	image.extents[2].checksums.offset = 32784;
	image.regions[0].pages_offset = MIB + 4096;
	assert_accepted(&image);
}

static void test_mapped_ram_keeps_what_is_ours_on_boundaries(void **state)
{
	struct image image;

	(void)state;
	make_mapped(&image);
	HEAD_AREA_OUTSIDE(&image, header, "the manager's header");
	HEAD_AREA_OUTSIDE(&image, regions, "the region table");
	HEAD_AREA_OUTSIDE(&image, streams, "the stream table");
	HEAD_AREA_OUTSIDE(&image, extents, "the extent table");
	for (size_t i = 0; i < 2; i++) {
		uint64_t bytes = image.regions[i].bytes;

		ENTRY_AREA_OUTSIDE(&image, regions, i, checksums.offset,
		                   dioh_record_checksums_bytes(bytes), 4096, "its checksums");
		ENTRY_AREA_OUTSIDE(&image, regions, i, pages_offset, bytes, 4096, "its pages");
		REGION(&image, i, checksums.offset, image.regions[i].checksums.offset + 4,
		       "a multiple of 4096");
	}
	for (size_t i = 0; i < 3; i++)
		ENTRY_AREA_OUTSIDE(&image, extents, i, checksums.offset,
		                   dioh_record_checksums_bytes(image.extents[i].bytes), 4,
		                   "its checksums");
	assert_accepted(&image);
}

static void test_mapped_rams_own_bytes_lie_in_the_image(void **state)
{
	struct image image;
	uint64_t end;

	(void)state;
	make_mapped(&image);
	end = image.head.image_bytes;
	for (size_t i = 0; i < 2; i++) {
		REGION(&image, i, bitmap.offset, end, "its bitmap [");
		REGION(&image, i, bitmap.offset, end - image.regions[i].bitmap.bytes + 1, "lies outside");
		REGION(&image, i, bitmap.offset, UINT64_MAX - 3, "lies outside");
	}
	for (size_t i = 0; i < 3; i++) {
		EXTENT(&image, i, offset, end, "its data [");
		EXTENT(&image, i, offset, end - image.extents[i].bytes + 1, "lies outside");
		EXTENT(&image, i, offset, -image.extents[i].bytes, "lies outside");
		EXTENT(&image, i, bytes, 0, "its size 0 is not within");
		EXTENT(&image, i, bytes, GIB + 1, "its size 1073741825 is not within");
	}
	EXTENT(&image, 0, checksums.bytes, 8, "extent 0: its checksums: 8 bytes long instead of 4");
	EXTENT(&image, 2, checksums.bytes, 4, "extent 2: its checksums: 4 bytes long instead of 8");
	STREAM(&image, 0, bytes, 400 + 40 + MIB + 18, "its extents hold 1049033 bytes, not 1049034");
	assert_accepted(&image);
}

/* It stands at the first boundary behind the first bitmap, wherever that is. */
static void test_mapped_rams_head_has_its_place(void **state)
{
	struct image image;
	uint64_t bitmap = 0;

	(void)state;
	make_mapped(&image);
	REFUSED(&image, check_tables, image.head.header.offset, MAPPED_HEAD, EBADMSG,
	        MAPPED_HEAD + HEAD_AT(header),
	        "the manager's header [8192, 13192) overlaps the head [8192, 12288)");
	REFUSED(&image, check_tables, image.head.regions.offset, MAPPED_HEAD, EBADMSG,
	        MAPPED_HEAD + HEAD_AT(regions), "overlaps the head");
	REGION(&image, 0, checksums.offset, MAPPED_HEAD, "its checksums [8192, 8216) overlaps the head");
	EXTENT(&image, 1, offset, MAPPED_HEAD + 4095, /* if only by a byte */
	       "extent 1: its data [12287, 12327) overlaps the head");
	EXTENT(&image, 0, checksums.offset, MAPPED_HEAD + 4092, "extent 0: its checksums");
	assert_accepted(&image);

	image.regions[0].bitmap.offset = MAPPED_HEAD - 168; /* ends right there */
	assert_accepted(&image);
	image.regions[0].bitmap.offset++;
	assert_refused(&image, check_tables, EBADMSG, 12288 + HEAD_AT(regions),
	               "the region table [12288, 13056) overlaps the head [12288, 16384)",
	               "the bitmap ends a byte later");
	bitmap = image.head.image_bytes - 168; /* and the image with it */
	image.regions[0].bitmap.offset = bitmap;
	assert_refused(&image, check_tables, EBADMSG, dioh_align_up(bitmap + 168, 4096),
	               "the head [", "no room for the head");
	image.head.image_bytes = dioh_align_up(bitmap + 168, 4096) + 4095;
	reseal(&image);
	assert_refused(&image, check_tables, EBADMSG, dioh_align_up(bitmap + 168, 4096),
	               "lies outside", "a byte too few for the head");
}

static void test_nothing_of_mapped_ram_overlaps(void **state)
{
	struct image image;

	(void)state;
	make_mapped(&image);
	EXTENT(&image, 0, offset, 4999, "overlaps the manager's header [0, 5000)");
	REGION(&image, 1, bitmap.offset, image.extents[1].offset + 39, "overlaps extent 1: its data");
	REGION(&image, 1, bitmap.offset, image.regions[0].pages_offset + 5 * MIB, "overlaps region 7");
	REGION(&image, 1, pages_offset, image.extents[2].offset + 8192, "overlaps extent 2: its data");
	EXTENT(&image, 2, offset, image.extents[2].offset - 1, "overlaps region 2 \"pc.bios\": its pages");
	EXTENT(&image, 1, checksums.offset, 32768, "overlaps extent 0: its checksums");
	assert_accepted(&image);
	image.regions[0].checksums.offset = 0; /* where a container's head would be */
	image.head.header.bytes = 0;
	reseal(&image);
	assert_accepted(&image);
}

static void test_random_places_in_mapped_ram(void **state)
{
	unsigned apart = 0, overlapping = 0;

	(void)state;
	for (int round = 0; round < 4000; round++) {
		struct image image;
		const struct {
			uint64_t *offset, alignment;
		} places[] = {
			{ &image.head.header.offset, 4096 },
			{ &image.head.regions.offset, 4096 },
			{ &image.head.streams.offset, 4096 },
			{ &image.head.extents.offset, 4096 },
			{ &image.regions[0].bitmap.offset, 1 },
			{ &image.regions[0].checksums.offset, 4096 },
			{ &image.regions[0].pages_offset, 4096 },
			{ &image.regions[1].bitmap.offset, 1 },
			{ &image.regions[1].checksums.offset, 4096 },
			{ &image.regions[1].pages_offset, 4096 },
			{ &image.extents[0].offset, 1 },
			{ &image.extents[0].checksums.offset, 4 },
			{ &image.extents[1].offset, 1 },
			{ &image.extents[1].checksums.offset, 4 },
			{ &image.extents[2].offset, 1 },
			{ &image.extents[2].checksums.offset, 4 },
		};
		uint64_t room = MIB << random_u64() % 9; /* crowded or not */
		bool overlaps;

		make_mapped(&image);
		image.head.image_bytes = 512 * MIB;
		for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++)
			if (random_u64() % 4 == 0)
				*places[i].offset = dioh_align_down(random_u64() % room,
				                                    places[i].alignment);
		reseal(&image);
		overlaps = model_overlaps(&image);
		(*(overlaps ? &overlapping : &apart))++;
		assert_int_equal(check_head(&image, NULL), 0);
		assert_int_equal(check_tables(&image, NULL), overlaps ? -EBADMSG : 0);
	}
	print_message("%u with an overlap, %u without\n", overlapping, apart);
	assert_true(apart > 100 && overlapping > 100);
}

/* ---- any content ----------------------------------------------------------------------------- */

static uint64_t random_value(const struct image *image)
{
	switch (random_u64() % 6) {
	case 0:
		return random_u64();
	case 1:
		return random_u64() >> random_u64() % 64;
	case 2:
		return -(random_u64() % 8192);
	case 3:
		return image->head.image_bytes + random_u64() % 3 - 1;
	case 4:
		return random_u64() % 70 * MIB;
	default:
		return random_u64() % 16 * 4096;
	}
}

static void scribble(void *bytes, size_t size, size_t width, const struct image *image)
{
	uint64_t value = random_value(image);
	size_t at = random_u64() % (size / width) * width;

	memcpy((uint8_t *)bytes + at, &value, width);
}

/* Whatever the fields say: no crash, no sanitizer's complaint, and what passes is in bounds. */
static void test_random_heads(void **state)
{
	unsigned accepted = 0;

	(void)state;
	for (int round = 0; round < 20000; round++) {
		struct image image;
		int r;

		(round % 2 ? make_image : make_mapped)(&image);
		for (uint64_t changes = 1 + random_u64() % 3; changes > 0; changes--)
			scribble((uint8_t *)&image.head + HEAD_AT(state),
			         HEAD_AT(reserved) - HEAD_AT(state), random_u64() % 2 ? 4 : 8,
			         &image);
		reseal(&image);
		r = check_head(&image, NULL);
		assert_true(r == 0 || r == -EBADMSG || r == -EOPNOTSUPP);
		if (r < 0)
			continue;
		accepted++;
		assert_true(image.head.region_count <= 1024 && image.head.extent_count <= 8192);
		assert_true(image.head.state >= 1 && image.head.state <= 3);
		assert_true(image.head.image_bytes <= 1000 * MIB ||
		            image.head.state == DIOH_STATE_PARTIAL);
		assert_true(image.head.header.bytes <= image.head.image_bytes);
		assert_true(image.head.header.offset <=
		            image.head.image_bytes - image.head.header.bytes);
		assert_true(image.head.regions.offset <=
		            image.head.image_bytes - image.head.regions.bytes);
		assert_true(image.head.streams.offset <=
		            image.head.image_bytes - image.head.streams.bytes);
		assert_true(image.head.extents.offset <=
		            image.head.image_bytes - image.head.extents.bytes);
	}
	assert_true(accepted > 0);
}

static void test_random_tables(void **state)
{
	unsigned accepted = 0;

	(void)state;
	for (int round = 0; round < 20000; round++) {
		struct dioh_error err = { 0 };
		struct image image;
		int r;

		(round % 2 ? make_image : make_mapped)(&image);
		switch (random_u64() % 3) {
		case 0:
			scribble(image.regions, sizeof(image.regions), random_u64() % 2 ? 4 : 8,
			         &image);
			break;
		case 1:
			scribble(image.streams, sizeof(image.streams), random_u64() % 2 ? 4 : 8,
			         &image);
			break;
		default:
			scribble(image.extents, sizeof(image.extents), random_u64() % 2 ? 4 : 8,
			         &image);
		}
		r = check_tables(&image, &err);
		assert_true(r == 0 || r == -EBADMSG);
		if (r < 0) {
			assert_true(err.offset >= image.head.regions.offset ||
			            err.offset - model_head_offset(&image) < 4096);
			assert_true(strlen(err.text) > 20);
			continue;
		}
		accepted++;
		assert_false(model_overlaps(&image));
	}
	assert_true(accepted > 0);
}

/* ---- as large as it gets --------------------------------------------------------------------- */

struct large {
	struct dioh_record_head head;
	struct dioh_record_region regions[DIOH_REGIONS_MAX];
	struct dioh_record_stream streams[DIOH_STREAMS_MAX];
	struct dioh_record_extent extents[DIOH_EXTENTS_MAX];
};

static void make_large(struct large *large)
{
	uint32_t each = DIOH_EXTENTS_MAX / DIOH_STREAMS_MAX;
	uint64_t end;

	large->head.region_count = DIOH_REGIONS_MAX;
	large->head.stream_count = DIOH_STREAMS_MAX;
	for (uint32_t i = 0; i < DIOH_REGIONS_MAX; i++) {
		large->regions[i].number = UINT32_MAX - i;
		large->regions[i].bytes = GIB;
		memset(large->regions[i].name, 'r', 200); /* names that differ late */
		snprintf(large->regions[i].name + 200, 50, "%" PRIu32, i * 7919 % DIOH_REGIONS_MAX);
	}
	assert_int_equal(dioh_container_plan(&large->head, 1, large->regions, NULL), 0);
	end = large->head.image_bytes;
	for (uint32_t i = 0; i < DIOH_EXTENTS_MAX; i++) {
		dioh_container_place_extent(end, DIOH_EXTENT_BYTES_MAX, &large->extents[i]);
		end = large->extents[i].offset + DIOH_EXTENT_BYTES_MAX;
	}
	for (uint32_t i = 0; i < DIOH_STREAMS_MAX; i++) {
		large->streams[i].number = i;
		large->streams[i].bytes = each * DIOH_EXTENT_BYTES_MAX;
		large->streams[i].first_extent = i * each;
		large->streams[i].extent_count = each;
		snprintf(large->streams[i].name, DIOH_NAME_BYTES, "stream %" PRIu32, i);
	}
	large->head.extent_count = DIOH_EXTENTS_MAX;
	large->head.extents.bytes = sizeof(large->extents);
	large->head.image_bytes = end;
	large->head.state = DIOH_STATE_COMPLETE;
	dioh_record_seal(&large->head);
}

static int check_large(const struct large *large, struct dioh_error *err)
{
	return dioh_record_check_tables(&large->head, large->regions, large->streams,
	                                large->extents, err);
}

static void test_the_largest_tables(void **state)
{
	struct large *large = calloc(1, sizeof(*large));
	struct dioh_record_extent *last;
	struct dioh_error err = { 0 };

	(void)state;
	assert_non_null(large);
	make_large(large);
	assert_int_equal(dioh_record_check_head(&large->head, large->head.image_bytes, NULL), 0);
	if (check_large(large, &err) < 0)
		fail_msg("refused: %s", err.text);

	last = &large->extents[DIOH_EXTENTS_MAX - 1];
	last->offset -= 4096;
	assert_int_equal(check_large(large, &err), -EBADMSG);
	assert_non_null(strstr(err.text, "extent 8191: its data"));
	last->offset += 4096;
	large->regions[1000].number = large->regions[17].number;
	assert_int_equal(check_large(large, &err), -EBADMSG);
	assert_non_null(strstr(err.text, "entry 17 of the table has the same number"));
	free(large);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_struct_offsets),
		cmocka_unit_test(test_sizes_that_follow),
		cmocka_unit_test(test_seal_fills_what_is_fixed),
		cmocka_unit_test(test_a_valid_image_is_accepted_in_every_state),
		cmocka_unit_test(test_every_bit_of_the_head_counts),
		cmocka_unit_test(test_all_zero_and_all_ones_are_no_heads),
		cmocka_unit_test(test_head_identity),
		cmocka_unit_test(test_head_identity_goes_before_the_rest),
		cmocka_unit_test(test_head_numbers),
		cmocka_unit_test(test_extents_need_a_stream),
		cmocka_unit_test(test_head_counts_match_the_tables),
		cmocka_unit_test(test_image_size),
		cmocka_unit_test(test_a_partial_image_may_be_short),
		cmocka_unit_test(test_the_smallest_image),
		cmocka_unit_test(test_a_partial_images_tables_can_be_checked),
		cmocka_unit_test(test_head_areas),
		cmocka_unit_test(test_head_areas_may_end_where_the_image_ends),
		cmocka_unit_test(test_empty_areas),
		cmocka_unit_test(test_head_reserved),
		cmocka_unit_test(test_a_compatible_feature_may_use_reserved_bytes),
		cmocka_unit_test(test_region_numbers),
		cmocka_unit_test(test_region_areas_have_the_right_length),
		cmocka_unit_test(test_region_areas_lie_in_the_image),
		cmocka_unit_test(test_extents_lie_in_the_image),
		cmocka_unit_test(test_an_image_too_short_for_its_tables),
		cmocka_unit_test(test_extent_sizes),
		cmocka_unit_test(test_stream_numbers),
		cmocka_unit_test(test_extents_add_up_to_their_stream),
		cmocka_unit_test(test_extents_are_in_the_table),
		cmocka_unit_test(test_an_extent_has_one_stream),
		cmocka_unit_test(test_names_end),
		cmocka_unit_test(test_numbers_are_unique_within_a_kind),
		cmocka_unit_test(test_names_are_unique_within_a_kind),
		cmocka_unit_test(test_names_in_sentences_are_short_and_printable),
		cmocka_unit_test(test_overlaps),
		cmocka_unit_test(test_side_by_side_is_no_overlap),
		cmocka_unit_test(test_random_places_are_judged_as_by_the_model),
		cmocka_unit_test(test_mapped_ram_is_accepted_in_every_state),
		cmocka_unit_test(test_mapped_ram_has_regions_and_one_stream),
		cmocka_unit_test(test_mapped_ram_has_no_crc_of_the_header),
		cmocka_unit_test(test_mapped_ram_is_not_on_boundaries),
		cmocka_unit_test(test_mapped_ram_keeps_what_is_ours_on_boundaries),
		cmocka_unit_test(test_mapped_rams_own_bytes_lie_in_the_image),
		cmocka_unit_test(test_mapped_rams_head_has_its_place),
		cmocka_unit_test(test_nothing_of_mapped_ram_overlaps),
		cmocka_unit_test(test_random_places_in_mapped_ram),
		cmocka_unit_test(test_random_heads),
		cmocka_unit_test(test_random_tables),
		cmocka_unit_test(test_the_largest_tables),
	};

	return cmocka_run_group_tests(tests, random_set_up, NULL);
}
