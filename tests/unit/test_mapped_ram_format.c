/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test_mapped_ram_format.c - where the parts of a mapped-ram image come to stand, that record.c and QEMU's format
 * (qemu_stream.c) agree with what is planned, and that a record is believed only beside the setup it was made for.
 *
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
#include "mapped_ram_format.h"

#define KIB UINT64_C(1024)
#define MIB (1024 * KIB)
#define GIB (1024 * MIB)

/* ---- an image ------------------------------------------------------------------------------------ */

enum { BLOCKS_MAX = 12, EXTENTS_MAX = BLOCKS_MAX + DIOH_MAPPED_RAM_TAIL_EXTENTS_MAX };

struct image {
	uint64_t base_offset;
	uint64_t header_bytes;
	uint8_t configuration[64];
	struct dioh_qemu_block blocks[BLOCKS_MAX];
	struct dioh_qemu_setup setup;
	struct dioh_record_head head;
	struct dioh_record_region regions[BLOCKS_MAX];
	struct dioh_record_stream stream;
	struct dioh_record_extent extents[EXTENTS_MAX];
	struct dioh_mapped_ram_plan plan;
};

/* QEMU's magic, version, and the configuration section that names the machine. */
static const uint8_t machine[] = { 'Q', 'E', 'V', 'M', 0, 0, 0, 3, 7, 0, 0, 0, 3, 'q', '3', '5' };

static void begin(struct image *image, uint64_t base_offset, uint64_t header_bytes)
{
	memset(image, 0, sizeof(*image));
	image->base_offset = base_offset;
	image->header_bytes = header_bytes;
	memcpy(image->configuration, machine, sizeof(machine));
	image->setup = (struct dioh_qemu_setup){ .machine = "q35",
		                                 .configuration = image->configuration,
		                                 .configuration_bytes = sizeof(machine),
		                                 .capabilities_at = sizeof(machine),
		                                 .ram_section = 2,
		                                 .ram_version = 4,
		                                 .footers = true,
		                                 .blocks = image->blocks };
}

static void add_block(struct image *image, const char *name, uint64_t bytes)
{
	unsigned i = image->setup.block_count++;

	snprintf(image->blocks[i].name, DIOH_NAME_BYTES, "%s", name);
	image->blocks[i].bytes = bytes;
	image->setup.total_bytes += bytes;
	image->regions[i].number = 100 + i;
}

static int plan(struct image *image, struct dioh_error *err)
{
	return dioh_mapped_ram_plan(&image->setup, image->base_offset, image->header_bytes, &image->head,
	                            image->regions, image->extents, &image->plan, err);
}

/* The stream's entry and what follows from the extents, as the layout keeps them. */
static void describe_stream(struct image *image)
{
	image->stream = (struct dioh_record_stream){ .number = 3, .name = "qemu" };
	image->stream.extent_count = image->head.extent_count;
	for (uint32_t i = 0; i < image->head.extent_count; i++)
		image->stream.bytes += image->extents[i].bytes;
	image->head.extents.bytes = image->head.extent_count * sizeof(image->extents[0]);
	dioh_record_seal(&image->head);
}

/* A tail of some extents, and the state complete. */
static void finish(struct image *image, unsigned tail_extents, uint64_t bytes_each)
{
	uint64_t end = image->plan.tail_offset;

	for (unsigned i = 0; i < tail_extents; i++, end += bytes_each)
		dioh_mapped_ram_place_tail(&image->plan, i, end, bytes_each,
		                           &image->extents[image->head.extent_count + i]);
	image->head.extent_count += tail_extents;
	image->head.image_bytes = end;
	image->head.state = DIOH_STATE_COMPLETE;
	describe_stream(image);
}

static int check(const struct image *image, struct dioh_error *err)
{
	return dioh_mapped_ram_check(&image->setup, image->base_offset, image->header_bytes,
	                             &image->head, image->regions, &image->stream, image->extents, err);
}

static void assert_accepted(const struct image *image)
{
	struct dioh_error err = { .code = 1234 };

	if (dioh_record_check_head(&image->head, image->head.image_bytes, &err) < 0 ||
	    dioh_record_check_tables(&image->head, image->regions, &image->stream, image->extents,
	                             &err) < 0 ||
	    check(image, &err) < 0)
		fail_msg("a planned image is refused: %s", err.text);
	assert_int_equal(err.code, 1234);
}

static void assert_area(const struct dioh_record_area *area, uint64_t offset, uint64_t bytes)
{
	assert_int_equal(area->offset, offset);
	assert_int_equal(area->bytes, bytes);
	assert_int_equal(area->crc32c, 0);
	assert_int_equal(area->reserved, 0);
}

static void assert_extent(const struct dioh_record_extent *extent, uint64_t offset, uint64_t bytes,
                          uint64_t checksums_offset, uint64_t checksums_bytes)
{
	assert_int_equal(extent->offset, offset);
	assert_int_equal(extent->bytes, bytes);
	assert_area(&extent->checksums, checksums_offset, checksums_bytes);
}

/* ---- plans --------------------------------------------------------------------------------------- */

/*
 * Configuration 16 bytes and 47 for its capabilities, the RAM section's start 25, pc.ram's header 1 + 6 + 8 + 28, that of
 * pc.bios one more.
 */
enum { EXTENT0_BYTES = 16 + 47 + 25 + 43, EXTENT1_BYTES = 44 };

static void make_two_blocks(struct image *image, uint64_t base_offset)
{
	begin(image, base_offset, 5000);
	add_block(image, "pc.ram", 5 * MIB + 4096);
	add_block(image, "pc.bios", 4096);
	memset(&image->regions[0].bitmap, 0xaa, sizeof(image->regions[0].bitmap)); /* whatever stood there */
	memset(&image->extents[0], 0xaa, sizeof(image->extents[0]));
}

static void test_everything_has_its_place(void **state)
{
	struct dioh_error err = { .code = 1234 };
	struct image image;

	(void)state;
	make_two_blocks(&image, 0);
	image.regions[1].flags = DIOH_REGION_CHECKSUMS;
	image.regions[1].guest_address = 77;
	assert_int_equal(plan(&image, &err), 0);
	assert_int_equal(err.code, 1234);

	assert_int_equal(image.head.state, DIOH_STATE_PARTIAL);
	assert_int_equal(image.head.layout, DIOH_LAYOUT_MAPPED_RAM);
	assert_int_equal(image.head.region_count, 2);
	assert_int_equal(image.head.stream_count, 1);
	assert_int_equal(image.head.extent_count, 2);
	assert_area(&image.head.header, 0, 5000);
	assert_area(&image.regions[0].bitmap, 5000 + EXTENT0_BYTES, 168);
	assert_int_equal(image.plan.record_offset, 8192);
	assert_area(&image.head.regions, 12288, 2 * 384);
	assert_area(&image.head.streams, 16384, 320);
	assert_area(&image.head.extents, 20480, 2 * 40);
	/* Room for 18 extents of 40 bytes. */
	assert_area(&image.regions[0].checksums, 24576, 24);
	assert_area(&image.regions[1].checksums, 28672, 4);
	assert_extent(&image.extents[0], 5000, EXTENT0_BYTES, 32768, 4);
	assert_extent(&image.extents[1], 7 * MIB + 4096, EXTENT1_BYTES, 32772, 4);
	assert_int_equal(image.plan.tail_checksums_offset, 36864);
	assert_int_equal(image.regions[0].pages_offset, 2 * MIB);
	assert_area(&image.regions[1].bitmap, 7 * MIB + 4096 + EXTENT1_BYTES, 8);
	assert_int_equal(image.regions[1].pages_offset, 8 * MIB);
	assert_int_equal(image.plan.tail_offset, 8 * MIB + 4096);
	assert_int_equal(image.head.image_bytes, 8 * MIB + 4096);

	assert_string_equal(image.regions[0].name, "pc.ram");
	assert_string_equal(image.regions[1].name, "pc.bios");
	assert_int_equal(image.regions[0].bytes, 5 * MIB + 4096);
	assert_int_equal(image.regions[1].bytes, 4096);
	for (unsigned i = 0; i < 2; i++) {
		assert_int_equal(image.blocks[i].bitmap_offset, image.regions[i].bitmap.offset);
		assert_int_equal(image.blocks[i].pages_offset, image.regions[i].pages_offset);
		assert_int_equal(image.regions[i].number, 100 + i);
	}
	assert_int_equal(image.regions[1].flags, DIOH_REGION_CHECKSUMS);
	assert_int_equal(image.regions[1].guest_address, 77);
}

/* QEMU's offsets are the file's, the record's count from the image; pages stand on the file's boundaries. */
static void test_an_image_may_start_anywhere_in_its_file(void **state)
{
	struct image image;

	(void)state;
	make_two_blocks(&image, 3 * MIB + 4096);
	assert_int_equal(plan(&image, NULL), 0);
	assert_int_equal(image.plan.record_offset, 8192);
	assert_area(&image.regions[0].bitmap, 5000 + EXTENT0_BYTES, 168);
	assert_int_equal(image.blocks[0].bitmap_offset, 3 * MIB + 4096 + 5000 + EXTENT0_BYTES);
	assert_int_equal(image.blocks[0].pages_offset, 4 * MIB);
	assert_int_equal(image.regions[0].pages_offset, MIB - 4096);
	assert_int_equal(image.blocks[1].pages_offset, 10 * MIB);
	assert_int_equal(image.regions[1].pages_offset, 7 * MIB - 4096);
	assert_int_equal(image.plan.tail_offset, 7 * MIB);
}

static void test_the_tails_extents_have_their_checksums(void **state)
{
	struct dioh_mapped_ram_plan at = { .tail_checksums_offset = 36864 };
	struct dioh_record_extent extent;

	(void)state;
	memset(&extent, 0xaa, sizeof(extent));
	dioh_mapped_ram_place_tail(&at, 0, 10 * MIB, 1, &extent);
	assert_extent(&extent, 10 * MIB, 1, 36864, 4);
	dioh_mapped_ram_place_tail(&at, 1, 10 * MIB + 1, MIB + 1, &extent);
	assert_extent(&extent, 10 * MIB + 1, MIB + 1, 40960, 8);
	dioh_mapped_ram_place_tail(&at, 15, GIB, DIOH_EXTENT_BYTES_MAX, &extent);
	assert_extent(&extent, GIB, GIB, 36864 + 15 * 4096, 4096);
}

static void make_random(struct image *image)
{
	unsigned blocks = 1 + (unsigned)(random_u64() % BLOCKS_MAX);

	begin(image, random_u64() % 3 == 0 ? 0 : random_u64() % (8 * MIB / 4096) * 4096,
	      random_u64() % 3 == 0 ? 0 : random_u64() % (DIOH_HEADER_BYTES_MAX + 1));
	for (unsigned i = 0; i < blocks; i++) {
		char name[DIOH_NAME_BYTES];

		memset(name, 'a' + (int)i, sizeof(name));
		name[1 + random_u64() % 255] = '\0';
		add_block(image, name, (1 + random_u64() % (UINT64_C(1) << random_u64() % 30)) * 4096);
	}
}

struct stretch {
	uint64_t offset, bytes;
};

/* All that is placed and what room is kept, in whatever order. */
static size_t collect(const struct image *image, struct stretch *to)
{
	unsigned count = image->setup.block_count;
	size_t n = 0;

	to[n++] = (struct stretch){ 0, image->header_bytes };
	to[n++] = (struct stretch){ image->plan.record_offset, 4096 };
	to[n++] = (struct stretch){ image->head.regions.offset, image->head.regions.bytes };
	to[n++] = (struct stretch){ image->head.streams.offset, image->head.streams.bytes };
	to[n++] = (struct stretch){ image->head.extents.offset, (count + 16) * 40 };
	to[n++] = (struct stretch){ image->plan.tail_checksums_offset, 16 * 4096 };
	to[n++] = (struct stretch){ image->plan.tail_offset, UINT64_C(16) << 30 };
	for (unsigned i = 0; i < count; i++) {
		const struct dioh_record_region *region = &image->regions[i];
		const struct dioh_record_extent *extent = &image->extents[i];

		to[n++] = (struct stretch){ region->bitmap.offset, region->bitmap.bytes };
		to[n++] = (struct stretch){ region->checksums.offset, region->checksums.bytes };
		to[n++] = (struct stretch){ region->pages_offset, region->bytes };
		to[n++] = (struct stretch){ extent->offset, extent->bytes };
		to[n++] = (struct stretch){ extent->checksums.offset, extent->checksums.bytes };
	}
	return n;
}

static void assert_apart(const struct image *image)
{
	struct stretch all[7 + 5 * BLOCKS_MAX];
	size_t n = collect(image, all);

	for (size_t a = 0; a < n; a++)
		for (size_t b = 0; b < a; b++)
			assert_false(all[a].offset < all[b].offset + all[b].bytes &&
			             all[b].offset < all[a].offset + all[a].bytes);
}

static void assert_boundaries(const struct image *image)
{
	assert_int_equal(image->plan.record_offset % 4096, 0);
	assert_int_equal(image->plan.tail_offset % 4096, 0);
	assert_int_equal(image->plan.tail_checksums_offset % 4096, 0);
	for (unsigned i = 0; i < image->setup.block_count; i++) {
		const struct dioh_record_region *region = &image->regions[i];
		const struct dioh_record_extent *extent = &image->extents[i];

		assert_int_equal(image->blocks[i].pages_offset % (2 * MIB), 0);
		assert_int_equal(region->checksums.offset % 4096, 0);
		assert_int_equal(region->bitmap.offset, extent->offset + extent->bytes);
		if (i > 0)
			assert_int_equal(extent->offset, image->regions[i - 1].pages_offset +
			                                         image->regions[i - 1].bytes);
	}
}

static void test_random_plans_are_accepted(void **state)
{
	(void)state;
	for (int round = 0; round < 500; round++) {
		struct image image;

		make_random(&image);
		assert_int_equal(plan(&image, NULL), 0);
		assert_apart(&image);
		assert_boundaries(&image);
		assert_int_equal(dioh_mapped_ram_record_offset(&image.setup, image.base_offset),
		                 image.plan.record_offset);
		describe_stream(&image);
		assert_accepted(&image); /* as a save leaves it that has not come far */
		finish(&image, 1 + (unsigned)(random_u64() % 16), 1 + random_u64() % GIB);
		assert_accepted(&image);
	}
}

static void test_the_largest_image(void **state)
{
	const uint64_t base_offset = DIOH_OFFSET_MAX / 2;
	struct dioh_qemu_block *blocks = calloc(DIOH_REGIONS_MAX, sizeof(*blocks));
	struct dioh_record_region *regions = calloc(DIOH_REGIONS_MAX, sizeof(*regions));
	struct dioh_record_extent *extents = calloc(DIOH_EXTENTS_MAX, sizeof(*extents));
	uint8_t *configuration = calloc(1, DIOH_QEMU_CONFIGURATION_BYTES_MAX);
	struct dioh_qemu_setup setup = { .configuration = configuration,
		                         .configuration_bytes = DIOH_QEMU_CONFIGURATION_BYTES_MAX,
		                         .blocks = blocks,
		                         .block_count = DIOH_REGIONS_MAX };
	struct dioh_record_stream stream = { .name = "qemu", .extent_count = DIOH_REGIONS_MAX };
	struct dioh_record_head head = { 0 };
	struct dioh_mapped_ram_plan planned;

	(void)state;
	assert_true(blocks && regions && extents && configuration);
	for (unsigned i = 0; i < DIOH_REGIONS_MAX; i++) {
		memset(blocks[i].name, 'x', 255);
		snprintf(blocks[i].name, 10, "%u", i);
		blocks[i].bytes = DIOH_MEMORY_BYTES_MAX / DIOH_REGIONS_MAX;
		regions[i].number = i;
	}
	assert_int_equal(dioh_mapped_ram_plan(&setup, base_offset, DIOH_HEADER_BYTES_MAX, &head, regions,
	                                      extents, &planned, NULL), 0);
	assert_true(head.image_bytes > DIOH_MEMORY_BYTES_MAX);
	assert_true(base_offset + head.image_bytes + (UINT64_C(16) << 30) < DIOH_OFFSET_MAX);
	for (unsigned i = 0; i < DIOH_REGIONS_MAX; i++)
		stream.bytes += extents[i].bytes;
	dioh_record_seal(&head);
	assert_int_equal(dioh_record_check_head(&head, head.image_bytes, NULL), 0);
	assert_int_equal(dioh_record_check_tables(&head, regions, &stream, extents, NULL), 0);
	assert_int_equal(dioh_mapped_ram_check(&setup, base_offset, DIOH_HEADER_BYTES_MAX, &head, regions,
	                                       &stream, extents, NULL), 0);

	setup.block_count = 90; /* the tail's extents, of all things, need a page more */
	assert_int_equal(dioh_mapped_ram_plan(&setup, 0, 0, &head, regions, extents, &planned, NULL), 0);
	assert_int_equal(regions[0].checksums.offset, head.extents.offset + 8192);
	free(configuration);
	free(extents);
	free(regions);
	free(blocks);
}

/* ---- QEMU's bytes -------------------------------------------------------------------------------- */

/* What stands at `offset` of the file, from the planned setup extents and the setup's end. */
static size_t read_planned(const struct image *image, uint64_t offset, uint8_t *to)
{
	for (unsigned i = 0; i < image->setup.block_count; i++)
		if (image->base_offset + image->extents[i].offset == offset) {
			size_t count = dioh_mapped_ram_put_extent(to, &image->setup, i);

			assert_int_equal(count, image->extents[i].bytes);
			return count;
		}
	assert_int_equal(offset, image->base_offset + image->plan.tail_offset);
	return dioh_qemu_put_section_end(to, &image->setup);
}

/* The parser as at a reader's: it says where it wants to go on. */
static void parse_planned(const struct image *image, struct dioh_qemu_parser *parser)
{
	uint8_t buffer[DIOH_QEMU_BLOCK_BYTES_MAX + 256];
	const uint8_t *bytes = buffer;
	struct dioh_qemu_piece piece = { 0 };
	size_t count = read_planned(image, image->base_offset + image->header_bytes, buffer);

	while (piece.event != DIOH_QEMU_SETUP) {
		struct dioh_error err = { 0 };

		if (dioh_qemu_parse(parser, &bytes, &count, &piece, &err) < 0)
			fail_msg("QEMU's bytes are refused: %s", err.text);
		if (piece.event == DIOH_QEMU_SEEK) {
			assert_int_equal(count, 0); /* up to the bitmap, and nothing behind it */
			count = read_planned(image, piece.offset, buffer);
			bytes = buffer;
		} else {
			assert_int_equal(piece.event, DIOH_QEMU_SETUP); /* MORE: an extent ends too early */
		}
	}
}

static void test_qemus_bytes_are_read_back(void **state)
{
	(void)state;
	for (int round = 0; round < 200; round++) {
		const struct dioh_qemu_setup *found;
		struct dioh_qemu_parser *parser;
		struct image image;

		make_random(&image);
		assert_int_equal(plan(&image, NULL), 0);
		finish(&image, 1, 100);
		parser = dioh_qemu_parser_new(DIOH_QEMU_IMAGE, image.base_offset + image.header_bytes, NULL);
		assert_non_null(parser);
		parse_planned(&image, parser);
		found = dioh_qemu_parser_setup(parser);
		assert_int_equal(found->capabilities, DIOH_QEMU_MAPPED_RAM);
		assert_int_equal(found->block_count, image.setup.block_count);
		assert_int_equal(found->total_bytes, image.setup.total_bytes);
		assert_int_equal(dioh_mapped_ram_record_offset(found, image.base_offset),
		                 image.plan.record_offset);
		assert_int_equal(dioh_mapped_ram_check(found, image.base_offset, image.header_bytes,
		                                       &image.head, image.regions, &image.stream,
		                                       image.extents, NULL), 0);
		dioh_qemu_parser_free(parser);
	}
}

/* ---- too large ----------------------------------------------------------------------------------- */

static void assert_too_large(struct image *image, const char *part)
{
	struct image before;
	struct dioh_error err = { 0 };

	memcpy(&before, image, sizeof(before));
	assert_int_equal(plan(image, NULL), -EFBIG);
	assert_int_equal(plan(image, &err), -EFBIG);
	assert_int_equal(err.code, EFBIG);
	assert_int_equal(err.operation, DIOH_OP_SIZE);
	assert_int_equal(err.object, DIOH_OBJECT_IMAGE);
	if (!strstr(err.text, part))
		fail_msg("\"%s\" does not say \"%s\"", err.text, part);
	assert_memory_equal(image, &before, sizeof(before));
}

static void test_too_much_is_refused_and_nothing_changed(void **state)
{
	struct image image;

	(void)state;
	make_two_blocks(&image, DIOH_OFFSET_MAX / 2 + 4096);
	assert_too_large(&image, "its start at 2305843009213698048");
	image.base_offset = UINT64_MAX - 4095;
	assert_too_large(&image, "its start at");
	make_two_blocks(&image, 0);
	image.header_bytes = DIOH_HEADER_BYTES_MAX + 1;
	assert_too_large(&image, "header of 16777217 bytes");
	image.header_bytes = UINT64_MAX;
	assert_too_large(&image, "manager's header");
	make_two_blocks(&image, 0);
	image.setup.configuration_bytes = DIOH_QEMU_CONFIGURATION_BYTES_MAX + 1;
	assert_too_large(&image, "configuration of 65537 bytes");
	make_two_blocks(&image, 0);
	image.setup.block_count = DIOH_REGIONS_MAX + 1;
	assert_too_large(&image, "1025 blocks");
	make_two_blocks(&image, 0);
	image.blocks[1].bytes = DIOH_REGION_BYTES_MAX + 4096;
	assert_too_large(&image, "block 1: its 70368744181760 bytes");
	image.blocks[1].bytes = UINT64_MAX - 4095;
	assert_too_large(&image, "block 1");
}

/* ---- a record beside a setup --------------------------------------------------------------------- */

static void assert_refused(const struct image *image, uint64_t at, const char *part, const char *change)
{
	struct dioh_error err = { 0 };
	char byte[40];
	int r = check(image, &err);

	snprintf(byte, sizeof(byte), "(byte %" PRIu64 ")", at);
	if (r != -EBADMSG || err.code != EBADMSG)
		fail_msg("%s: got %d: %s", change, r, err.text);
	if (!strstr(err.text, part) || !strstr(err.text, byte))
		fail_msg("%s: \"%s\" does not say \"%s\" or \"%s\"", change, err.text, part, byte);
	assert_int_equal(err.operation, DIOH_OP_PARSE);
	assert_int_equal(err.object, DIOH_OBJECT_IMAGE);
	assert_int_equal(err.offset, at);
	assert_int_equal(check(image, NULL), -EBADMSG);
}

/* Changes one field, expects the refusal, and puts the field back. */
#define REFUSED(image, field, value, at, part)                                                     \
	do {                                                                                       \
		__typeof__((image)->field) before = (image)->field;                                \
		(image)->field = (value);                                                          \
		assert_refused(image, at, part, #field " = " #value);                              \
		(image)->field = before;                                                           \
	} while (0)

/* By one, by a page, and to something wild: a difference is a difference. */
#define COUNTS(image, field, at, part)                                                             \
	do {                                                                                       \
		REFUSED(image, field, (image)->field + 1, at, part);                               \
		REFUSED(image, field, (image)->field - 1, at, part);                               \
		REFUSED(image, field, (image)->field + 4096, at, part);                            \
		REFUSED(image, field, ~(image)->field, at, part);                                  \
	} while (0)

#define HEAD_AT(image, field) ((image)->plan.record_offset + offsetof(struct dioh_record_head, field))
#define REGION_AT(image, i, field)                                                                 \
	((image)->head.regions.offset + (i)*384 + offsetof(struct dioh_record_region, field))
#define EXTENT_AT(image, i, field)                                                                 \
	((image)->head.extents.offset + (i)*40 + offsetof(struct dioh_record_extent, field))

static void test_every_field_of_the_record_counts(void **state)
{
	struct image image;

	(void)state;
	make_two_blocks(&image, 4096);
	assert_int_equal(plan(&image, NULL), 0);
	finish(&image, 2, 1000);
	assert_accepted(&image);

	COUNTS(&image, head.layout, HEAD_AT(&image, layout), "the head's layout is ");
	COUNTS(&image, head.region_count, HEAD_AT(&image, region_count), "the head's count of regions is ");
	COUNTS(&image, head.header.offset, HEAD_AT(&image, header.offset), "header's offset is ");
	COUNTS(&image, head.header.bytes, HEAD_AT(&image, header.bytes), "header's length is ");
	COUNTS(&image, head.image_bytes, HEAD_AT(&image, image_bytes), "the image ends at ");
	for (unsigned i = 0; i < 2; i++) {
		COUNTS(&image, regions[i].bytes, REGION_AT(&image, i, bytes), ": its size is ");
		COUNTS(&image, regions[i].bitmap.offset, REGION_AT(&image, i, bitmap), "bitmap's offset is ");
		COUNTS(&image, regions[i].pages_offset, REGION_AT(&image, i, pages_offset), "pages' offset is ");
		REFUSED(&image, regions[i].name[0], 'P', REGION_AT(&image, i, name), "its name is not ");
		REFUSED(&image, regions[i].name[5], '\0', REGION_AT(&image, i, name), "its name is not ");
		COUNTS(&image, extents[i].bytes, EXTENT_AT(&image, i, bytes), ": its size is ");
	}
	REFUSED(&image, regions[0].name[6], 'x', REGION_AT(&image, 0, name), "region 0: its name is not ");
	for (unsigned i = 0; i < 4; i++)
		COUNTS(&image, extents[i].offset, EXTENT_AT(&image, i, offset), ": its offset is ");
	/* A tail's extent is as long as it says, but the next one starts where it ends, or the image ends there. */
	COUNTS(&image, extents[2].bytes, EXTENT_AT(&image, 3, offset), "extent 3: its offset is ");
	COUNTS(&image, extents[3].bytes, HEAD_AT(&image, image_bytes), "the image ends at ");
	COUNTS(&image, stream.first_extent, image.head.streams.offset, "not all extents");
	COUNTS(&image, stream.extent_count, image.head.streams.offset, "not all extents");
	REFUSED(&image, head.extent_count, 3, HEAD_AT(&image, image_bytes), "the image ends at ");
	REFUSED(&image, head.extent_count, 1, HEAD_AT(&image, extent_count), "1 extents are fewer than 3");
	assert_accepted(&image);
}

static void test_a_complete_image_has_a_tail(void **state)
{
	struct image image;

	(void)state;
	make_two_blocks(&image, 0);
	assert_int_equal(plan(&image, NULL), 0);
	describe_stream(&image);
	assert_accepted(&image);
	REFUSED(&image, head.state, DIOH_STATE_COMPLETE, HEAD_AT(&image, extent_count),
	        "2 extents are fewer than 3");
	REFUSED(&image, head.state, DIOH_STATE_WRITTEN, HEAD_AT(&image, extent_count),
	        "2 extents are fewer than 3");
	image.head.extent_count = 1;
	assert_refused(&image, HEAD_AT(&image, extent_count), "1 extents are fewer than 2", "one too few");
}

/* The other side: the same record beside another image's setup. */
static void test_every_field_of_the_setup_counts(void **state)
{
	struct image image;

	(void)state;
	make_two_blocks(&image, 4096);
	assert_int_equal(plan(&image, NULL), 0);
	finish(&image, 1, 1000);
	COUNTS(&image, header_bytes, HEAD_AT(&image, header.bytes), "header's length is ");
	REFUSED(&image, setup.block_count, 1, HEAD_AT(&image, region_count), "count of regions is 2, not 1");
	REFUSED(&image, setup.block_count, 3, HEAD_AT(&image, region_count), "count of regions is 2, not 3");
	for (unsigned i = 0; i < 2; i++) {
		COUNTS(&image, blocks[i].pages_offset, REGION_AT(&image, i, pages_offset), "pages' offset is ");
		COUNTS(&image, blocks[i].bitmap_offset, REGION_AT(&image, i, bitmap), "bitmap's offset is ");
		COUNTS(&image, blocks[i].bytes, REGION_AT(&image, i, bytes), ": its size is ");
		REFUSED(&image, blocks[i].name[1], 'C', REGION_AT(&image, i, name), "its name is not ");
	}
	REFUSED(&image, base_offset, 0, REGION_AT(&image, 0, bitmap), "bitmap's offset is ");
	REFUSED(&image, base_offset, 8192, REGION_AT(&image, 0, bitmap), "bitmap's offset is ");
	assert_accepted(&image);
}

/* Blocks in another order: each is there, none at its place. */
static void test_the_order_counts(void **state)
{
	struct dioh_qemu_block first;
	struct image image;

	(void)state;
	make_two_blocks(&image, 0);
	assert_int_equal(plan(&image, NULL), 0);
	finish(&image, 1, 1000);
	first = image.blocks[0];
	image.blocks[0] = image.blocks[1];
	image.blocks[1] = first;
	assert_refused(&image, REGION_AT(&image, 0, name), "region 0: its name", "blocks exchanged");
}

/* Whatever the setup says, a record made for another one does not pass, and nothing happens. */
static void test_random_setups(void **state)
{
	(void)state;
	for (int round = 0; round < 2000; round++) {
		struct image image;
		unsigned i;
		uint64_t change = (1 + random_u64() % 4095) << random_u64() % 52;

		make_random(&image);
		assert_int_equal(plan(&image, NULL), 0);
		finish(&image, 1, 1000);
		i = (unsigned)(random_u64() % image.setup.block_count);
		switch (random_u64() % 4) {
		case 0:
			image.blocks[i].bytes += change;
			break;
		case 1:
			image.blocks[i].bitmap_offset -= change;
			break;
		case 2:
			image.blocks[i].pages_offset += change;
			break;
		default:
			image.header_bytes ^= change;
		}
		assert_int_equal(check(&image, NULL), -EBADMSG);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_everything_has_its_place),
		cmocka_unit_test(test_an_image_may_start_anywhere_in_its_file),
		cmocka_unit_test(test_the_tails_extents_have_their_checksums),
		cmocka_unit_test(test_random_plans_are_accepted),
		cmocka_unit_test(test_the_largest_image),
		cmocka_unit_test(test_qemus_bytes_are_read_back),
		cmocka_unit_test(test_too_much_is_refused_and_nothing_changed),
		cmocka_unit_test(test_every_field_of_the_record_counts),
		cmocka_unit_test(test_a_complete_image_has_a_tail),
		cmocka_unit_test(test_every_field_of_the_setup_counts),
		cmocka_unit_test(test_the_order_counts),
		cmocka_unit_test(test_random_setups),
	};

	return cmocka_run_group_tests(tests, random_set_up, NULL);
}
