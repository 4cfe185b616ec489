/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * layout_record.h - what the layouts with an integrity record share (container, mapped-ram). The record's head stands at
 * layout->record_offset, everything else where the record says. Control-I/O thread.
 */
#ifndef DIOH_LAYOUT_RECORD_H
#define DIOH_LAYOUT_RECORD_H

#include "layout.h"

struct dioh_area_sum {
	uint32_t crc;
	uint64_t bits;   /* set in it */
	uint8_t last[8]; /* its last bytes, if it has so many */
};

int dioh_record_sum_area(struct dioh_image_layout *layout, const struct dioh_record_area *area,
                         struct dioh_area_sum *ret_sum, struct dioh_error *err);

/* Sets the state, seals the head, writes it. */
int dioh_record_write_head(struct dioh_image_layout *layout, uint32_t state, struct dioh_error *err);
int dioh_record_write_regions(struct dioh_image_layout *layout, uint32_t *ret_crc, struct dioh_error *err);
int dioh_record_write_streams(struct dioh_image_layout *layout, uint32_t *ret_crc, struct dioh_error *err);

/* For an image that is continued: its record must be that of the very image that has been laid out, whatever its state. */
int dioh_record_check_kept(struct dioh_image_layout *layout, struct dioh_error *err);

/* All tables with their sums as they are to stay: regions, streams, extents; head->image_bytes. */
int dioh_record_write_tables(struct dioh_image_layout *layout, struct dioh_error *err);

/* Reads and checks head, tables and areas, as `flags` (enum dioh_open_flag) permit; fills in the layout but for `ready`. */
int dioh_record_open(struct dioh_image_layout *layout, uint32_t flags, struct dioh_error *err);

/*
 * For loads, behind a read of what open() has checked: EBADMSG if the head is not that of open() any more. A save takes a
 * container's away before it touches anything else, so what was read while it stood is this image's. (Empty tables would be a
 * guest of zeros.)
 */
int dioh_record_check_unchanged(struct dioh_image_layout *layout, struct dioh_error *err);

/*
 * For commits, first of all: EBADMSG if the head is not the one that we have written. What another save has put there is not to
 * be called complete by us, nor to be touched. (One of the same description that has not ended looks like ours.)
 */
int dioh_record_check_ours(struct dioh_image_layout *layout, struct dioh_error *err);

/* Operations of struct dioh_layout_ops. */
int dioh_record_store_tables(struct dioh_image_layout *layout, const struct dioh_tables *tables,
                             struct dioh_error *err);
int dioh_record_load_tables(struct dioh_image_layout *layout, struct dioh_tables *tables, struct dioh_error *err);
int dioh_record_store_extent(struct dioh_image_layout *layout, const struct dioh_stream_entry *entry, unsigned index,
                             const uint32_t *checksums, struct dioh_error *err);
int dioh_record_load_extent(struct dioh_image_layout *layout, const struct dioh_stream_entry *entry, unsigned index,
                            uint32_t *ret_checksums, struct dioh_error *err);

#endif
