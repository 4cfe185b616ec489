/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * mapped_ram_format.c - where a writer puts things in a mapped-ram image, and whether a record that was found
 * in one speaks of it.
 *
 * Two ways of counting meet here: QEMU's headers hold offsets in the file, the record's count from the image's
 * start. Only blocks' bitmap_offset and pages_offset are the former. A writer's sizes come from a setup that
 * qemu_stream.c has bounded; they are bounded here once more, so that no sum below can wrap. A reader's setup
 * may say anything: it is compared, and nothing is computed from it that could do harm by wrapping.
 * Called by the mapped-ram layout and the tests; docs/image-format.md describes the same algorithm.
 */
#include "mapped_ram_format.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "align.h"
#include "cleanup.h"

#define AREA_ALIGNMENT 4096u /* header path and page path never share a page of the page cache */
#define TAIL_CHECKSUMS_BYTES 4096u /* of one extent */
#define CHECKSUM_BYTES sizeof(uint32_t)
#define COUNT_OF(array) (sizeof(array) / sizeof((array)[0]))
#define SETUP_EXTENT_BYTES_MAX                                                                     \
	(DIOH_QEMU_CONFIGURATION_BYTES_MAX + 64u + DIOH_QEMU_RAM_START_BYTES + DIOH_QEMU_BLOCK_BYTES_MAX)
/* An image that starts behind this is not made: then no offset in it passes DIOH_OFFSET_MAX. */
#define BASE_OFFSET_MAX (DIOH_OFFSET_MAX / 2)

/* At the limits, bitmaps, checksums and alignment are far less than a second helping of the pages. */
_Static_assert(DIOH_REGIONS_MAX * DIOH_REGION_BYTES_MAX * 2 + 2 * DIOH_HEADER_BYTES_MAX +
                       DIOH_MAPPED_RAM_TAIL_BYTES_MAX <
               DIOH_OFFSET_MAX - BASE_OFFSET_MAX,
               "an image within its limits may pass DIOH_OFFSET_MAX");
_Static_assert(SETUP_EXTENT_BYTES_MAX <= DIOH_CHUNK_BYTES, "a setup extent has more than one checksum");
_Static_assert(DIOH_EXTENT_BYTES_MAX / DIOH_CHUNK_BYTES * CHECKSUM_BYTES <= TAIL_CHECKSUMS_BYTES,
               "an extent's checksums do not fit their page");
_Static_assert(DIOH_REGIONS_MAX + DIOH_MAPPED_RAM_TAIL_EXTENTS_MAX <= DIOH_EXTENTS_MAX, "extents");

/* ---- planning ------------------------------------------------------------------------------------ */

#define TOO_LARGE(err, ...)                                                                        \
	dioh_error_set(err, -EFBIG, DIOH_PLACE(SIZE, IMAGE, 0, DIOH_OFFSET_NONE), __VA_ARGS__)

static int check_sizes(const struct dioh_qemu_setup *setup, uint64_t base_offset,
                       uint64_t header_bytes, struct dioh_error *err)
{
	if (base_offset > BASE_OFFSET_MAX)
		return TOO_LARGE(err, "image: its start at %" PRIu64 " is beyond %" PRIu64, base_offset,
		                 BASE_OFFSET_MAX);
	if (header_bytes > DIOH_HEADER_BYTES_MAX)
		return TOO_LARGE(err, "image: a manager's header of %" PRIu64 " bytes is longer than %u",
		                 header_bytes, DIOH_HEADER_BYTES_MAX);
	if (setup->configuration_bytes > DIOH_QEMU_CONFIGURATION_BYTES_MAX)
		return TOO_LARGE(err, "image: QEMU's configuration of %zu bytes is longer than %u",
		                 setup->configuration_bytes, DIOH_QEMU_CONFIGURATION_BYTES_MAX);
	if (setup->block_count > DIOH_REGIONS_MAX)
		return TOO_LARGE(err, "image: %u blocks are more than it may have, %u",
		                 setup->block_count, DIOH_REGIONS_MAX);
	for (unsigned i = 0; i < setup->block_count; i++)
		if (setup->blocks[i].bytes > DIOH_REGION_BYTES_MAX)
			return TOO_LARGE(err, "image: block %u: its %" PRIu64 " bytes are more than %" PRIu64,
			                 i, setup->blocks[i].bytes, DIOH_REGION_BYTES_MAX);
	return 0;
}

/* What is being placed, and how far it has come: all offsets from the image's start. */
struct planner {
	struct dioh_qemu_setup *setup;
	uint64_t base_offset;
	uint64_t end;     /* of what has been placed */
	uint8_t *scratch; /* for one setup extent, of which only the length counts here */
};

/* Takes `bytes` at the next boundary and answers their offset. */
static uint64_t take(struct planner *planner, uint64_t bytes, uint64_t alignment)
{
	uint64_t offset = dioh_align_up(planner->end, alignment);

	planner->end = offset + bytes;
	return offset;
}

static struct dioh_record_area take_area(struct planner *planner, uint64_t bytes, uint64_t room)
{
	return (struct dioh_record_area){ .offset = take(planner, room, AREA_ALIGNMENT),
		                          .bytes = bytes };
}

/* A block's header, with all that stands before the first one's, and its bitmap. */
static void place_setup(struct planner *planner, unsigned i, struct dioh_record_region *region,
                        struct dioh_record_extent *extent)
{
	struct dioh_qemu_block *block = &planner->setup->blocks[i];

	extent->bytes = dioh_mapped_ram_put_extent(planner->scratch, planner->setup, i);
	extent->offset = take(planner, extent->bytes, 1);
	memcpy(region->name, block->name, sizeof(region->name));
	region->bytes = block->bytes;
	region->bitmap = (struct dioh_record_area){ .bytes = dioh_record_bitmap_bytes(block->bytes) };
	region->bitmap.offset = take(planner, region->bitmap.bytes, 1);
	block->bitmap_offset = planner->base_offset + region->bitmap.offset;
}

/* On a boundary of the file: large pages of the page cache and of the guest may fall together. */
static void place_pages(struct planner *planner, unsigned i, struct dioh_record_region *region)
{
	struct dioh_qemu_block *block = &planner->setup->blocks[i];

	block->pages_offset = dioh_align_up(planner->base_offset + planner->end,
	                                    DIOH_MAPPED_RAM_PAGES_ALIGNMENT);
	region->pages_offset = block->pages_offset - planner->base_offset;
	planner->end = region->pages_offset + region->bytes;
}

/* Head, tables and checksums, behind block 0's bitmap. */
static void place_record(struct planner *planner, struct dioh_record_head *head,
                         struct dioh_record_region *regions, struct dioh_record_extent *extents,
                         struct dioh_mapped_ram_plan *ret_plan)
{
	uint64_t count = planner->setup->block_count, packed;
	uint64_t regions_bytes = count * sizeof(*regions), extents_bytes = count * sizeof(*extents);
	uint64_t extents_room = extents_bytes + DIOH_MAPPED_RAM_TAIL_EXTENTS_MAX * sizeof(*extents);

	ret_plan->record_offset = take(planner, DIOH_RECORD_HEAD_BYTES, AREA_ALIGNMENT);
	head->regions = take_area(planner, regions_bytes, regions_bytes);
	head->streams = take_area(planner, sizeof(struct dioh_record_stream),
	                          sizeof(struct dioh_record_stream));
	head->extents = take_area(planner, extents_bytes, extents_room);
	for (unsigned i = 0; i < count; i++) {
		uint64_t bytes = dioh_record_checksums_bytes(planner->setup->blocks[i].bytes);

		regions[i].checksums = take_area(planner, bytes, bytes);
	}
	packed = take(planner, count * CHECKSUM_BYTES, AREA_ALIGNMENT);
	for (unsigned i = 0; i < count; i++)
		extents[i].checksums = (struct dioh_record_area){ .offset = packed + i * CHECKSUM_BYTES,
			                                          .bytes = CHECKSUM_BYTES };
	ret_plan->tail_checksums_offset = take(
		planner, DIOH_MAPPED_RAM_TAIL_EXTENTS_MAX * TAIL_CHECKSUMS_BYTES, AREA_ALIGNMENT);
}

int dioh_mapped_ram_plan(struct dioh_qemu_setup *setup, uint64_t base_offset, uint64_t header_bytes,
                         struct dioh_record_head *head, struct dioh_record_region *regions,
                         struct dioh_record_extent *extents, struct dioh_mapped_ram_plan *ret_plan,
                         struct dioh_error *err)
{
	DIOH_AUTO_FREE uint8_t *scratch = malloc(SETUP_EXTENT_BYTES_MAX);
	struct planner planner = { setup, base_offset, header_bytes, scratch };
	int r;

	if (!scratch) /* UNTESTED: 66 KiB, and sanitizers do not let it fail */
		return dioh_error_errno(err, ENOMEM, DIOH_PLACE(SIZE, IMAGE, 0, DIOH_OFFSET_NONE),
		                        "image: room to plan it");
	r = check_sizes(setup, base_offset, header_bytes, err);
	if (r < 0)
		return r;

	head->header = (struct dioh_record_area){ .bytes = header_bytes };
	for (unsigned i = 0; i < setup->block_count; i++) {
		place_setup(&planner, i, &regions[i], &extents[i]);
		if (i == 0)
			place_record(&planner, head, regions, extents, ret_plan);
		place_pages(&planner, i, &regions[i]);
	}
	ret_plan->tail_offset = planner.end;
	head->image_bytes = planner.end;
	head->region_count = setup->block_count;
	head->stream_count = 1;
	head->extent_count = setup->block_count;
	head->layout = DIOH_LAYOUT_MAPPED_RAM;
	head->state = DIOH_STATE_PARTIAL;
	return 0;
}

size_t dioh_mapped_ram_put_extent(uint8_t *to, const struct dioh_qemu_setup *setup, unsigned index)
{
	size_t count = 0;

	if (index == 0) {
		count += dioh_qemu_put_configuration(to, setup, DIOH_QEMU_MAPPED_RAM);
		count += dioh_qemu_put_ram_start(to + count, setup);
	}
	return count + dioh_qemu_put_block(to + count, &setup->blocks[index], DIOH_QEMU_MAPPED_RAM);
}

void dioh_mapped_ram_place_tail(const struct dioh_mapped_ram_plan *plan, unsigned index,
                                uint64_t offset, uint64_t bytes,
                                struct dioh_record_extent *ret_extent)
{
	*ret_extent = (struct dioh_record_extent){
		.offset = offset,
		.bytes = bytes,
		.checksums = { .offset = plan->tail_checksums_offset +
		                         index * (uint64_t)TAIL_CHECKSUMS_BYTES,
		               .bytes = dioh_record_checksums_bytes(bytes) },
	};
}

uint64_t dioh_mapped_ram_record_offset(const struct dioh_qemu_setup *setup, uint64_t base_offset)
{
	const struct dioh_qemu_block *block = &setup->blocks[0];

	return dioh_align_up(block->bitmap_offset - base_offset +
	                             dioh_record_bitmap_bytes(block->bytes),
	                     AREA_ALIGNMENT);
}

/* ---- checking ------------------------------------------------------------------------------------ */

#define HEAD_AT(field) offsetof(struct dioh_record_head, field)
#define REFUSE(err, at, format, ...)                                                               \
	dioh_error_set(err, -EBADMSG, DIOH_PLACE(PARSE, IMAGE, 0, at),                             \
	               "image: the record is another image's: " format " (byte %" PRIu64 ")",      \
	               ##__VA_ARGS__, (uint64_t)(at))

/* A number that the record and QEMU's own bytes both have. `at`: the record's. */
struct number {
	const char *what;
	uint64_t at;
	uint64_t recorded;
	uint64_t found;
};

static int check_numbers(const struct number *numbers, size_t count, const char *entry, unsigned i,
                         struct dioh_error *err)
{
	for (size_t n = 0; n < count; n++)
		if (numbers[n].recorded != numbers[n].found)
			return REFUSE(err, numbers[n].at, "%s %u: its %s is %" PRIu64 ", in QEMU's bytes %" PRIu64,
			              entry, i, numbers[n].what, numbers[n].recorded, numbers[n].found);
	return 0;
}

static int check_head(const struct dioh_qemu_setup *setup, uint64_t head_offset,
                      uint64_t stream_offset, const struct dioh_record_head *head,
                      struct dioh_error *err)
{
	const struct {
		const char *what;
		size_t at;
		uint64_t recorded, expected;
	} numbers[] = {
		{ "layout", HEAD_AT(layout), head->layout, DIOH_LAYOUT_MAPPED_RAM },
		{ "count of regions", HEAD_AT(region_count), head->region_count, setup->block_count },
		{ "manager's header's offset", HEAD_AT(header.offset), head->header.offset, 0 },
		{ "manager's header's length", HEAD_AT(header.bytes), head->header.bytes, stream_offset },
	};
	/* Of a complete image at least the setup's own end is in the tail. */
	uint32_t extents_min = setup->block_count + (head->state != DIOH_STATE_PARTIAL);

	for (size_t i = 0; i < COUNT_OF(numbers); i++)
		if (numbers[i].recorded != numbers[i].expected)
			return REFUSE(err, head_offset + numbers[i].at, "the head's %s is %" PRIu64 ", not %" PRIu64,
			              numbers[i].what, numbers[i].recorded, numbers[i].expected);
	if (head->extent_count < extents_min)
		return REFUSE(err, head_offset + HEAD_AT(extent_count),
		              "%" PRIu32 " extents are fewer than %" PRIu32, head->extent_count, extents_min);
	return 0;
}

static int check_region(const struct dioh_qemu_block *block, uint64_t base_offset,
                        const struct dioh_record_head *head,
                        const struct dioh_record_region *region, unsigned i, struct dioh_error *err)
{
	const uint64_t at = head->regions.offset + i * sizeof(*region);
	const struct number numbers[] = {
		{ "size", at + offsetof(struct dioh_record_region, bytes), region->bytes, block->bytes },
		{ "bitmap's offset", at + offsetof(struct dioh_record_region, bitmap),
		  region->bitmap.offset, block->bitmap_offset - base_offset },
		{ "pages' offset", at + offsetof(struct dioh_record_region, pages_offset),
		  region->pages_offset, block->pages_offset - base_offset },
	};

	if (strncmp(region->name, block->name, sizeof(region->name)) != 0)
		return REFUSE(err, at + offsetof(struct dioh_record_region, name),
		              "region %u: its name is not that of QEMU's block", i);
	return check_numbers(numbers, COUNT_OF(numbers), "region", i, err);
}

/* `*end`: up to where QEMU's bytes have been accounted for. `bytes`: what must follow there. */
static int check_extent(const struct dioh_record_head *head, const struct dioh_record_extent *extent,
                        unsigned i, uint64_t bytes, uint64_t *end, struct dioh_error *err)
{
	const uint64_t at = head->extents.offset + i * sizeof(*extent);
	const struct number numbers[] = {
		{ "offset", at + offsetof(struct dioh_record_extent, offset), extent->offset, *end },
		{ "size", at + offsetof(struct dioh_record_extent, bytes), extent->bytes, bytes },
	};

	*end += extent->bytes;
	return check_numbers(numbers, COUNT_OF(numbers), "extent", i, err);
}

/* A setup extent goes up to its block's bitmap, the tail from the last block's pages to the image's end. */
static int check_extents(const struct dioh_qemu_setup *setup, uint64_t base_offset,
                         uint64_t stream_offset, const struct dioh_record_head *head,
                         const struct dioh_record_extent *extents, struct dioh_error *err)
{
	uint64_t end = stream_offset;
	int r = 0;

	for (unsigned i = 0; i < setup->block_count && r == 0; i++) {
		const struct dioh_qemu_block *block = &setup->blocks[i];
		uint64_t bytes = block->bitmap_offset - base_offset - end;

		r = check_extent(head, &extents[i], i, bytes, &end, err);
		end = block->pages_offset - base_offset + block->bytes;
	}
	for (unsigned i = setup->block_count; i < head->extent_count && r == 0; i++)
		r = check_extent(head, &extents[i], i, extents[i].bytes, &end, err);
	if (r == 0 && head->image_bytes != end)
		r = REFUSE(err, dioh_mapped_ram_record_offset(setup, base_offset) + HEAD_AT(image_bytes),
		           "the image ends at %" PRIu64 ", QEMU's bytes at %" PRIu64, head->image_bytes,
		           end);
	return r;
}

int dioh_mapped_ram_check(const struct dioh_qemu_setup *setup, uint64_t base_offset,
                          uint64_t stream_offset, const struct dioh_record_head *head,
                          const struct dioh_record_region *regions,
                          const struct dioh_record_stream *streams,
                          const struct dioh_record_extent *extents, struct dioh_error *err)
{
	int r;

	r = check_head(setup, dioh_mapped_ram_record_offset(setup, base_offset), stream_offset, head, err);
	for (unsigned i = 0; i < setup->block_count && r == 0; i++)
		r = check_region(&setup->blocks[i], base_offset, head, &regions[i], i, err);
	if (r == 0)
		r = check_extents(setup, base_offset, stream_offset, head, extents, err);
	if (r < 0)
		return r;
	if (streams[0].first_extent != 0 || streams[0].extent_count != head->extent_count)
		return REFUSE(err, head->streams.offset, "not all extents are QEMU's stream");
	return 0;
}
