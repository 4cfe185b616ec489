/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * record.h - the integrity record (include/diohelper-image.h) as bytes: checking and sealing with CRC32C. Pure
 * functions; every byte checked here may come from a hostile image. Private to helper, tests and fuzzers.
 */
#ifndef DIOH_RECORD_H
#define DIOH_RECORD_H

#include "diohelper-image.h"
#include "error.h"

/* Fills in magic, version, page and chunk size, and the CRC over the whole head. Everything else is the caller's. */
void dioh_record_seal(struct dioh_record_head *head);

/*
 * Is this a record we can read? `head` is DIOH_RECORD_HEAD_BYTES as read, `file_bytes` what the file has from the
 * image's start on. Checks magic, CRC, version, incompatible features, reserved bytes, state, counts, sizes of the
 * table areas, and that every area lies within image_bytes and image_bytes within file_bytes. Any state passes; the
 * caller decides. A partial image's image_bytes may exceed file_bytes. Reserved bytes may be anything when a compatible
 * feature is set that is not known here: they may be its bytes. Errors: -EBADMSG (not an image, damaged, truncated),
 * -EOPNOTSUPP (version, feature, layout); object IMAGE, operation PARSE, with the offset of the field.
 * Layouts: container and mapped-ram, each with its own rules; the caller decides which one it reads here. The head of
 * mapped-ram does not stand at the image's start: offsets of its fields count from the head.
 */
int dioh_record_check_head(const struct dioh_record_head *head, uint64_t file_bytes, struct dioh_error *err);

/*
 * Checks the tables (as read from their areas, whose CRCs the caller has compared) against a head that has passed
 * dioh_record_check_head(): numbers unique within a kind, names NUL-terminated, unique within a kind and not empty, flags
 * known, reserved bytes zero, sizes in range and page multiples, bitmap and checksum areas of exactly the right length,
 * extents that add up to each stream's bytes and belong to exactly one stream, all inside image_bytes, and no two areas
 * (head, header, tables, bitmaps, checksums, page areas, extents) overlap. In a container page areas stand on 1 MiB and
 * all else on 4 KiB boundaries, and an extent that is not a stream's last is a multiple of 1 MiB. In mapped-ram page areas
 * stand on 4 KiB and extents' checksums on 4 byte boundaries, bitmaps and extents anywhere, and the head at the first
 * 4 KiB boundary behind region 0's bitmap. A table with no entries may be NULL. Errors as above; offsets count from the
 * image's start.
 * O(n log n) in the number of areas; allocates that much, which the limits bound. -ENOMEM.
 */
int dioh_record_check_tables(const struct dioh_record_head *head, const struct dioh_record_region *regions,
                             const struct dioh_record_stream *streams, const struct dioh_record_extent *extents,
                             struct dioh_error *err);

/* Sizes that follow from a region's size. */
uint64_t dioh_record_bitmap_bytes(uint64_t region_bytes);    /* a bit a page, rounded up to 8 bytes */
uint64_t dioh_record_checksums_bytes(uint64_t region_bytes); /* four bytes a chunk */

#endif
