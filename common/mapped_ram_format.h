/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * mapped_ram_format.h - where things stand in a mapped-ram image of ours: QEMU's own format, with the integrity record in
 * the gap between the first block's bitmap and its pages, which QEMU skips. Pure functions.
 *
 *      manager's header
 *      magic, configuration, RAM start, block 0's header
 *      block 0's bitmap
 *      the record: head on a 4 KiB boundary, tables, checksums      ) in the gap
 *      block 0's pages, on a 2 MiB boundary of the file
 *      block 1's header | its bitmap | gap | its pages, on a 2 MiB boundary
 *      ...
 *      end of the setup, device state ("tail")
 *
 * The record has a region a block, in QEMU's order, whose bitmap area is QEMU's bitmap; and one stream entry, whose
 * extents are QEMU's bytes outside bitmaps, gaps and pages: one up to block 0's bitmap, one for each further block's
 * header, then the tail's.
 */
#ifndef DIOH_MAPPED_RAM_FORMAT_H
#define DIOH_MAPPED_RAM_FORMAT_H

#include "qemu_stream.h"
#include "record.h"

#define DIOH_MAPPED_RAM_PAGES_ALIGNMENT (UINT64_C(2) << 20)
/* The tail grows in extents of DIOH_EXTENT_BYTES_MAX: so much device state can be. */
#define DIOH_MAPPED_RAM_TAIL_EXTENTS_MAX 16u
#define DIOH_MAPPED_RAM_TAIL_BYTES_MAX (DIOH_MAPPED_RAM_TAIL_EXTENTS_MAX * DIOH_EXTENT_BYTES_MAX)

struct dioh_mapped_ram_plan { /* offsets from the image's start */
	uint64_t record_offset;
	uint64_t tail_offset;           /* a multiple of 4096: behind the last block's pages */
	uint64_t tail_checksums_offset; /* room for DIOH_MAPPED_RAM_TAIL_EXTENTS_MAX * 4096 bytes */
};

/*
 * Places `setup`'s blocks behind `header_bytes` of the manager's, in an image that starts at `base_offset` (a multiple of
 * 4096) of its file: fills each block's bitmap_offset and pages_offset (absolute), head (state PARTIAL, layout MAPPED_RAM,
 * region_count, stream_count 1, the areas; extent table with room for block_count + DIOH_MAPPED_RAM_TAIL_EXTENTS_MAX, its
 * bytes and count those of the setup's extents; image_bytes the tail's start), in regions[block_count] (number, flags and
 * guest_address are the caller's) name, bytes, pages_offset, bitmap and checksums, and extents[block_count]: those of the
 * setup. `setup`'s capabilities are not looked at: the image has mapped-ram. The header's area has no CRC in this layout:
 * libvirt edits its XML in place. Errors, with nothing changed: -EFBIG (more or larger than an image may have, or a
 * base_offset beyond half of DIOH_OFFSET_MAX), -ENOMEM.
 */
int dioh_mapped_ram_plan(struct dioh_qemu_setup *setup, uint64_t base_offset, uint64_t header_bytes,
                         struct dioh_record_head *head, struct dioh_record_region *regions,
                         struct dioh_record_extent *extents, struct dioh_mapped_ram_plan *ret_plan,
                         struct dioh_error *err);

/* QEMU's bytes of setup extent `index` (at most configuration_bytes + 64 + 25 + 300 bytes); answers their count. */
size_t dioh_mapped_ram_put_extent(uint8_t *to, const struct dioh_qemu_setup *setup, unsigned index);

/* The tail's extent `index` (0 to ..._MAX - 1), of `bytes`, starting at `offset` from the image's start. */
void dioh_mapped_ram_place_tail(const struct dioh_mapped_ram_plan *plan, unsigned index, uint64_t offset, uint64_t bytes,
                                struct dioh_record_extent *ret_extent);

/* Where an image with this setup (as parsed) has its record, if it has one: from the image's start. */
uint64_t dioh_mapped_ram_record_offset(const struct dioh_qemu_setup *setup, uint64_t base_offset);

/*
 * Does a record that has passed dioh_record_check_head() and _tables() speak of the image that `setup` was parsed from?
 * Same blocks in the same order and places, extents exactly QEMU's bytes; a partial image may have no tail yet.
 * `regions`, `streams`, `extents`: its tables.
 * `stream_offset`: where QEMU's magic stands, from the image's start. -EBADMSG, naming what differs.
 */
int dioh_mapped_ram_check(const struct dioh_qemu_setup *setup, uint64_t base_offset, uint64_t stream_offset,
                          const struct dioh_record_head *head, const struct dioh_record_region *regions,
                          const struct dioh_record_stream *streams, const struct dioh_record_extent *extents,
                          struct dioh_error *err);

#endif
