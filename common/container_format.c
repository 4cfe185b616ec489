/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * container_format.c - where a writer puts things in a container.
 *
 * Only writers come here: a reader follows the areas that it finds in the record and relies on none of
 * this. Sizes come from the manager; they are bounded here once more, so that no sum below can wrap.
 * Called by the container layout and the tests; docs/image-format.md describes the same algorithm.
 */
#include "container_format.h"

#include <errno.h>
#include <inttypes.h>

#include "align.h"

#define AREA_ALIGNMENT 4096u /* header path and page path never share a page of the page cache */
#define EXTENT_CHECKSUMS_BYTES 4096u
#define EXTENT_BYTES_FIRST (UINT64_C(4) << 20) /* device state is a few MiB: an extent or two */

/* At the limits, bitmaps, checksums and alignment are far less than a second helping of the pages. */
_Static_assert(DIOH_REGIONS_MAX * DIOH_REGION_BYTES_MAX * 2 + 2 * DIOH_HEADER_BYTES_MAX < DIOH_OFFSET_MAX,
               "an image within its limits may pass DIOH_OFFSET_MAX");
_Static_assert(DIOH_EXTENT_BYTES_MAX / DIOH_CHUNK_BYTES * sizeof(uint32_t) <= EXTENT_CHECKSUMS_BYTES,
               "an extent's checksums do not fit their page");

#define REFUSE(err, code, ...)                                                                     \
	dioh_error_set(err, code, DIOH_PLACE(SIZE, IMAGE, 0, DIOH_OFFSET_NONE), __VA_ARGS__)

static int check_sizes(const struct dioh_record_head *head, uint64_t header_bytes,
                       const struct dioh_record_region *regions, struct dioh_error *err)
{
	uint64_t sum = 0;

	if (header_bytes > DIOH_HEADER_BYTES_MAX)
		return REFUSE(err, -EFBIG, "image: a manager's header of %" PRIu64 " bytes is longer than %u",
		              header_bytes, DIOH_HEADER_BYTES_MAX);
	if (head->region_count > DIOH_REGIONS_MAX || head->stream_count > DIOH_STREAMS_MAX)
		return REFUSE(err, -EFBIG, "image: %" PRIu32 " regions and %" PRIu32
		              " streams are more than it may have, %u and %u", head->region_count,
		              head->stream_count, DIOH_REGIONS_MAX, DIOH_STREAMS_MAX);
	for (uint32_t i = 0; i < head->region_count; i++) {
		uint64_t bytes = regions[i].bytes;

		if (bytes > DIOH_REGION_BYTES_MAX)
			return REFUSE(err, -EFBIG, "image: region %" PRIu32 ": its %" PRIu64
			              " bytes are more than %" PRIu64, regions[i].number, bytes,
			              DIOH_REGION_BYTES_MAX);
		if (bytes == 0 || !dioh_is_aligned(bytes, DIOH_PAGE_BYTES))
			return REFUSE(err, -EINVAL, "image: region %" PRIu32 ": its %" PRIu64
			              " bytes are not one or more pages of %u", regions[i].number, bytes,
			              DIOH_PAGE_BYTES);
		sum += bytes;
	}
	if (sum > DIOH_MEMORY_BYTES_MAX)
		return REFUSE(err, -EFBIG, "image: its regions have %" PRIu64 " bytes together, which are more than %" PRIu64,
		              sum, DIOH_MEMORY_BYTES_MAX);
	return 0;
}

/* Places an area at the next boundary behind `*end` and moves `*end` behind `room` bytes of it. */
static void place(struct dioh_record_area *area, uint64_t *end, uint64_t bytes, uint64_t room)
{
	*area = (struct dioh_record_area){ 0 };
	if (room == 0)
		return;
	area->offset = dioh_align_up(*end, AREA_ALIGNMENT);
	area->bytes = bytes;
	*end = area->offset + room;
}

static void place_tables(struct dioh_record_head *head, uint64_t header_bytes, uint64_t *end)
{
	uint64_t regions_bytes = head->region_count * sizeof(struct dioh_record_region);
	uint64_t streams_bytes = head->stream_count * sizeof(struct dioh_record_stream);
	uint64_t extents_room = 0;

	if (head->stream_count > 0)
		extents_room = DIOH_EXTENTS_MAX * sizeof(struct dioh_record_extent);
	place(&head->header, end, header_bytes, header_bytes);
	place(&head->regions, end, regions_bytes, regions_bytes);
	place(&head->streams, end, streams_bytes, streams_bytes);
	place(&head->extents, end, 0, extents_room);
}

static void place_regions(struct dioh_record_region *regions, uint32_t count, uint64_t *end)
{
	for (uint32_t i = 0; i < count; i++) {
		uint64_t bitmap_bytes = dioh_record_bitmap_bytes(regions[i].bytes);
		uint64_t checksums_bytes = dioh_record_checksums_bytes(regions[i].bytes);

		place(&regions[i].bitmap, end, bitmap_bytes, bitmap_bytes);
		place(&regions[i].checksums, end, checksums_bytes, checksums_bytes);
	}
	for (uint32_t i = 0; i < count; i++) {
		regions[i].pages_offset = dioh_align_up(*end, DIOH_PAGES_ALIGNMENT);
		*end = regions[i].pages_offset + regions[i].bytes;
	}
}

int dioh_container_plan(struct dioh_record_head *head, uint64_t header_bytes,
                        struct dioh_record_region *regions, struct dioh_error *err)
{
	uint64_t end = DIOH_RECORD_HEAD_BYTES;
	int r;

	r = check_sizes(head, header_bytes, regions, err);
	if (r < 0)
		return r;

	place_tables(head, header_bytes, &end);
	place_regions(regions, head->region_count, &end);
	head->image_bytes = dioh_align_up(end, DIOH_PAGES_ALIGNMENT);
	head->extent_count = 0;
	head->layout = DIOH_LAYOUT_CONTAINER;
	head->state = DIOH_STATE_PARTIAL;
	return 0;
}

uint64_t dioh_container_extent_bytes(uint32_t extent_count)
{
	uint64_t bytes = EXTENT_BYTES_FIRST;

	while (extent_count-- > 0 && bytes < DIOH_EXTENT_BYTES_MAX)
		bytes *= 2;
	return bytes;
}

void dioh_container_place_extent(uint64_t offset, uint64_t bytes,
                                 struct dioh_record_extent *ret_extent)
{
	*ret_extent = (struct dioh_record_extent){
		.offset = offset + EXTENT_CHECKSUMS_BYTES,
		.bytes = bytes,
		.checksums = { .offset = offset, .bytes = dioh_record_checksums_bytes(bytes) },
	};
}
