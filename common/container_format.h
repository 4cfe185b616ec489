/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * container_format.h - where things stand in a container: record head, manager header, tables, bitmaps and checksums
 * on 4 KiB boundaries, then page areas on 1 MiB boundaries, then stream extents. Pure functions.
 */
#ifndef DIOH_CONTAINER_FORMAT_H
#define DIOH_CONTAINER_FORMAT_H

#include "record.h"

/*
 * Fills the areas of `head` and, in each of `regions` (number, flags, bytes, guest_address and name are given),
 * pages_offset, bitmap and checksums; head->image_bytes becomes the end of the fixed part, a multiple of 1 MiB:
 * stream extents start there. head->state becomes PARTIAL, layout CONTAINER, extent_count 0; all areas' CRCs are 0.
 * Needs head->region_count and stream_count. The extent table's area has its offset and room for DIOH_EXTENTS_MAX
 * if there are streams, but 0 bytes: extent_count and the area's `bytes` are set when they are final. Every other area
 * of 0 bytes has offset 0.
 * Errors, with nothing changed: -EFBIG for more or larger entries than an image may have (within these limits no image
 * can pass DIOH_OFFSET_MAX); -EINVAL for a region whose size is 0 or no multiple of 4096.
 */
int dioh_container_plan(struct dioh_record_head *head, uint64_t header_bytes, struct dioh_record_region *regions,
                        struct dioh_error *err);

/* Size of the next extent of a stream that has `extent_count` already: 4 MiB, doubling up to DIOH_EXTENT_BYTES_MAX. */
uint64_t dioh_container_extent_bytes(uint32_t extent_count);

/*
 * An extent of `bytes` (1 to DIOH_EXTENT_BYTES_MAX) whose 4 KiB checksum page stands at `offset`, a multiple of 4096; its
 * data follows. When the stream ends, the same call with the bytes that came makes the last extent what it is to be.
 */
void dioh_container_place_extent(uint64_t offset, uint64_t bytes, struct dioh_record_extent *ret_extent);

#endif
