/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * layout_record.c - the integrity record as container and mapped-ram have it: bitmaps and checksums stored and loaded piece
 * by piece, tables and head written. Reading one is in layout_record_open.c.
 */
#define _GNU_SOURCE
#include "layout_record.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "align.h"
#include "pages.h"
#include "record.h"

#define PLACE(op, offset) DIOH_PLACE(op, IMAGE, 0, offset)

/* ---- tables: between records in entries and arrays on disk ---- */

int dioh_record_write_regions(struct dioh_image_layout *layout, uint32_t *ret_crc, struct dioh_error *err)
{
	uint32_t crc = 0;

	for (unsigned i = 0; i < layout->region_count; i++) {
		const struct dioh_record_region *record = &layout->regions[i].record;
		uint64_t offset = dioh_layout_at(layout, layout->head.regions.offset + i * sizeof(*record));
		int r = dioh_image_pwrite(layout->image, record, sizeof(*record), offset, err);

		if (r < 0)
			return r;
		crc = dioh_crc32c(crc, record, sizeof(*record));
	}
	*ret_crc = crc;
	return 0;
}

int dioh_record_write_streams(struct dioh_image_layout *layout, uint32_t *ret_crc, struct dioh_error *err)
{
	uint32_t crc = 0;

	for (unsigned i = 0; i < layout->stream_count; i++) {
		const struct dioh_record_stream *record = &layout->streams[i].record;
		uint64_t offset = dioh_layout_at(layout, layout->head.streams.offset + i * sizeof(*record));
		int r = dioh_image_pwrite(layout->image, record, sizeof(*record), offset, err);

		if (r < 0)
			return r;
		crc = dioh_crc32c(crc, record, sizeof(*record));
	}
	*ret_crc = crc;
	return 0;
}

static int write_extents(struct dioh_image_layout *layout, uint32_t *ret_crc, struct dioh_error *err)
{
	uint64_t offset = dioh_layout_at(layout, layout->head.extents.offset);
	uint32_t crc = 0;

	for (unsigned i = 0; i < layout->stream_count; i++) {
		const struct dioh_stream_entry *entry = &layout->streams[i];
		uint64_t bytes = entry->record.extent_count * sizeof(*entry->extents);
		int r = bytes ? dioh_image_pwrite(layout->image, entry->extents, bytes, offset, err) : 0;

		if (r < 0)
			return r;
		crc = dioh_crc32c(crc, entry->extents, bytes);
		offset += bytes;
	}
	*ret_crc = crc;
	return 0;
}

int dioh_record_write_head(struct dioh_image_layout *layout, uint32_t state, struct dioh_error *err)
{
	layout->head.state = state;
	dioh_record_seal(&layout->head);
	return dioh_image_pwrite(layout->image, &layout->head, sizeof(layout->head), dioh_layout_at(layout, layout->record_offset), err);
}

/* ---- is it still the same image? ---- */

int dioh_record_check_ours(struct dioh_image_layout *layout, struct dioh_error *err)
{
	struct dioh_record_head head;
	int r = dioh_image_pread(layout->image, &head, sizeof(head), dioh_layout_at(layout, layout->record_offset), err);

	if (r == 0 && memcmp(&head, &layout->head, sizeof(head)) != 0)
		r = dioh_error_set(err, EBADMSG, PLACE(PARSE, layout->record_offset),
		                   "image: its head has changed: something else was saved into it meanwhile");
	return r;
}

int dioh_record_check_unchanged(struct dioh_image_layout *layout, struct dioh_error *err)
{
	/* One that is being made may change; QEMU's own have no record. */
	if (layout->state == DIOH_STATE_PARTIAL || !layout->head.magic[0])
		return 0;
	return dioh_record_check_ours(layout, err);
}

/* ---- continuing ---- */

static bool is_same_area(const struct dioh_record_area *a, const struct dioh_record_area *b)
{
	return a->offset == b->offset && a->bytes == b->bytes;
}

static bool is_same_region(const struct dioh_record_region *a, const struct dioh_record_region *b)
{
	return a->number == b->number && a->bytes == b->bytes && a->pages_offset == b->pages_offset &&
	       ((a->flags ^ b->flags) & DIOH_REGION_IN_STREAM) == 0 && is_same_area(&a->bitmap, &b->bitmap) &&
	       is_same_area(&a->checksums, &b->checksums) && memcmp(a->name, b->name, sizeof(a->name)) == 0;
}

static int refuse_kept(const char *what, struct dioh_error *err)
{
	return dioh_error_set(err, EINVAL, PLACE(PARSE, DIOH_OFFSET_NONE),
	                      "image: it cannot be continued: what stands there is %s", what);
}

static bool is_record(const struct dioh_record_head *head)
{
	return memcmp(head->magic, DIOH_RECORD_MAGIC, sizeof(head->magic)) == 0 && head->version == DIOH_RECORD_VERSION;
}

static bool is_same_head(const struct dioh_record_head *a, const struct dioh_record_head *b)
{
	return a->incompatible == b->incompatible && a->layout == b->layout && a->page_bytes == b->page_bytes &&
	       a->chunk_bytes == b->chunk_bytes && a->region_count == b->region_count && a->stream_count == b->stream_count &&
	       is_same_area(&a->header, &b->header) && is_same_area(&a->regions, &b->regions);
}

/*
 * Its state does not count, nor does its CRC: if the power went while a state was being written there may be sectors of two
 * heads, and what is kept would be lost with them. All that is believed of it is what it has in common with ours.
 */
int dioh_record_check_kept(struct dioh_image_layout *layout, struct dioh_error *err)
{
	struct dioh_record_head head;
	uint64_t file_bytes;
	int r = dioh_layout_file_bytes(layout, &file_bytes, err);

	if (r == 0 && file_bytes < layout->image_bytes)
		r = refuse_kept("shorter", err);
	if (r == 0)
		r = dioh_image_pread(layout->image, &head, sizeof(head), dioh_layout_at(layout, layout->record_offset), err);
	if (r == 0 && !is_record(&head))
		r = refuse_kept("no image", err);
	if (r < 0)
		return r;
	if (head.compatible) /* who does not know what they mean may not write to it */
		return refuse_kept("an image with features that are not known here", err);
	dioh_record_seal(&layout->head);
	if (!is_same_head(&head, &layout->head))
		return refuse_kept("another image", err);
	for (unsigned i = 0; i < layout->region_count && r == 0; i++) {
		struct dioh_record_region there;

		r = dioh_image_pread(layout->image, &there, sizeof(there),
		                     dioh_layout_at(layout, head.regions.offset + i * sizeof(there)), err);
		if (r == 0 && !is_same_region(&there, &layout->regions[i].record))
			r = refuse_kept("an image of other regions", err);
		if (r == 0 && !(there.flags & DIOH_REGION_CHECKSUMS) &&
		    !(layout->regions[i].record.flags & DIOH_REGION_IN_STREAM)) {
			layout->regions[i].unsummed = true;
			layout->regions[i].record.flags &= ~(uint32_t)DIOH_REGION_CHECKSUMS; /* should this save be interrupted, too */
		}
	}
	return r;
}

/* ---- bitmaps and checksums of regions ---- */

struct table_range { /* of a region's bitmap or checksum area */
	uint64_t offset; /* in the file */
	uint64_t bytes;
};

static struct table_range table_range(const struct dioh_image_layout *layout, const struct dioh_record_area *area,
                                      const struct dioh_tables *tables, uint64_t bytes_per_chunk)
{
	uint64_t first = tables->first_chunk * bytes_per_chunk;

	/* The last chunk may be a short one, whose bitmap is shorter than others'. */
	return (struct table_range){ dioh_layout_at(layout, area->offset + first),
		                     dioh_min(tables->chunks * bytes_per_chunk, area->bytes - first) };
}

/* Writes what is not zero of a range that reads as zeros, in 4 KiB pieces; everything, if it may hold something. */
static int store_range(struct dioh_image_layout *layout, struct table_range range, const void *bytes, bool fresh,
                       struct dioh_error *err)
{
	uint64_t done = 0;

	while (done < range.bytes) {
		uint64_t at = range.offset + done;
		uint64_t n = dioh_min(range.bytes - done, DIOH_PAGE_BYTES - at % DIOH_PAGE_BYTES);
		int r = 0;

		if (!fresh) {
			n = range.bytes - done;
			r = dioh_image_pwrite(layout->image, (const char *)bytes + done, n, at, err);
		} else if (!dioh_is_zero((const char *)bytes + done, n)) {
			r = dioh_image_pwrite(layout->image, (const char *)bytes + done, n, at, err);
		}
		if (r < 0)
			return r;
		done += n;
	}
	return 0;
}

/* Whoever continues this image, if its save is interrupted, has to know that these chunks' checksums mean nothing. */
static int store_unsummed(struct dioh_image_layout *layout, struct dioh_region *region, struct dioh_error *err)
{
	struct dioh_record_region record = region->record;
	const uint64_t index = (uint64_t)(region - layout->regions);

	if (region->unsummed)
		return 0;
	region->unsummed = true;
	record.flags &= ~(uint32_t)DIOH_REGION_CHECKSUMS;
	return dioh_image_pwrite(layout->image, &record, sizeof(record),
	                         dioh_layout_at(layout, layout->head.regions.offset + index * sizeof(record)), err);
}

int dioh_record_store_tables(struct dioh_image_layout *layout, const struct dioh_tables *tables,
                             struct dioh_error *err)
{
	const struct dioh_record_region *record = &tables->region->record;
	int r = store_range(layout, table_range(layout, &record->bitmap, tables, DIOH_CHUNK_BITMAP_BYTES), tables->bitmap,
	                    tables->fresh, err);

	if (r < 0)
		return r;
	if (!tables->checksums)
		return store_unsummed(layout, tables->region, err);
	return store_range(layout, table_range(layout, &record->checksums, tables, sizeof(uint32_t)), tables->checksums,
	                   tables->fresh, err);
}

/* open() has seen that there are none; but these bytes have been read anew. */
static int check_bits_end(const struct dioh_tables *tables, struct dioh_error *err)
{
	const struct dioh_record_region *record = &tables->region->record;
	const uint64_t pages = record->bytes / DIOH_PAGE_BYTES - tables->first_chunk * DIOH_CHUNK_PAGES;

	if (dioh_bits_tail_clear(tables->bitmap, (uint64_t)tables->chunks * DIOH_CHUNK_BITMAP_BYTES, pages))
		return 0;
	return dioh_error_set(err, EBADMSG, PLACE(PARSE, record->bitmap.offset),
	                      "image: region %" PRIu32 "'s bitmap at %" PRIu64 " is damaged: it has bits behind its last page",
	                      record->number, record->bitmap.offset);
}

int dioh_record_load_tables(struct dioh_image_layout *layout, struct dioh_tables *tables, struct dioh_error *err)
{
	const struct dioh_record_region *record = &tables->region->record;
	struct table_range range = table_range(layout, &record->bitmap, tables, DIOH_CHUNK_BITMAP_BYTES);
	int r;

	if (!(record->flags & DIOH_REGION_CHECKSUMS))
		tables->checksums = NULL;
	memset(tables->bitmap, 0, tables->chunks * DIOH_CHUNK_BITMAP_BYTES);
	r = dioh_image_pread(layout->image, tables->bitmap, range.bytes, range.offset, err);
	if (r == 0)
		r = check_bits_end(tables, err);
	if (r == 0 && tables->checksums) {
		range = table_range(layout, &record->checksums, tables, sizeof(uint32_t));
		r = dioh_image_pread(layout->image, tables->checksums, range.bytes, range.offset, err);
	}
	return r < 0 ? r : dioh_record_check_unchanged(layout, err);
}

/* ---- stream extents ---- */

int dioh_record_store_extent(struct dioh_image_layout *layout, const struct dioh_stream_entry *entry,
                             unsigned index, const uint32_t *checksums, struct dioh_error *err)
{
	struct dioh_record_extent *extent = &entry->extents[index];

	extent->checksums.bytes = dioh_div_up(extent->bytes, DIOH_CHUNK_BYTES) * sizeof(uint32_t);
	extent->checksums.crc32c = dioh_crc32c(0, checksums, extent->checksums.bytes);
	return dioh_image_pwrite(layout->image, checksums, extent->checksums.bytes,
	                         dioh_layout_at(layout, extent->checksums.offset), err);
}

int dioh_record_load_extent(struct dioh_image_layout *layout, const struct dioh_stream_entry *entry,
                            unsigned index, uint32_t *ret_checksums, struct dioh_error *err)
{
	const struct dioh_record_area *area = &entry->extents[index].checksums;
	int r;

	if (!(entry->record.flags & DIOH_REGION_CHECKSUMS)) /* what stands there means nothing */
		return dioh_record_check_unchanged(layout, err);
	r = dioh_image_pread(layout->image, ret_checksums, area->bytes, dioh_layout_at(layout, area->offset), err);
	if (r == 0 && dioh_crc32c(0, ret_checksums, area->bytes) != area->crc32c)
		r = dioh_error_set(err, EBADMSG, PLACE(CHECKSUM, area->offset),
		                   "image: the checksums of stream %" PRIu32 " at %" PRIu64 " are damaged",
		                   entry->record.number, area->offset);
	return r;
}

/* ---- all tables ---- */

static int sum_regions(struct dioh_image_layout *layout, struct dioh_error *err)
{
	for (unsigned i = 0; i < layout->region_count; i++) {
		struct dioh_record_region *record = &layout->regions[i].record;
		struct dioh_area_sum sum;
		int r = dioh_record_sum_area(layout, &record->bitmap, &sum, err);

		if (r < 0)
			return r;
		if (layout->regions[i].unsummed)
			record->flags &= ~(uint32_t)DIOH_REGION_CHECKSUMS;
		record->bitmap.crc32c = sum.crc;
		record->present_pages = sum.bits;
		r = dioh_record_sum_area(layout, &record->checksums, &sum, err);
		if (r < 0)
			return r;
		record->checksums.crc32c = sum.crc;
	}
	return 0;
}

static void number_extents(struct dioh_image_layout *layout)
{
	uint64_t end = layout->image_bytes;
	uint32_t next = 0;

	for (unsigned i = 0; i < layout->stream_count; i++) {
		struct dioh_record_stream *record = &layout->streams[i].record;

		record->first_extent = next;
		next += record->extent_count;
		for (unsigned k = 0; k < record->extent_count; k++)
			end = dioh_max(end, layout->streams[i].extents[k].offset + layout->streams[i].extents[k].bytes);
	}
	layout->head.extent_count = next;
	layout->head.extents.bytes = (uint64_t)next * sizeof(struct dioh_record_extent);
	layout->head.image_bytes = end;
}

int dioh_record_write_tables(struct dioh_image_layout *layout, struct dioh_error *err)
{
	struct dioh_area_sum header;
	int r = sum_regions(layout, err);

	number_extents(layout);
	if (r == 0)
		r = dioh_record_write_regions(layout, &layout->head.regions.crc32c, err);
	if (r == 0)
		r = dioh_record_write_streams(layout, &layout->head.streams.crc32c, err);
	if (r == 0)
		r = write_extents(layout, &layout->head.extents.crc32c, err);
	if (r < 0 || layout->head.layout != DIOH_LAYOUT_CONTAINER)
		return r;
	r = dioh_record_sum_area(layout, &layout->head.header, &header, err);
	if (r == 0)
		layout->head.header.crc32c = header.crc;
	return r;
}

