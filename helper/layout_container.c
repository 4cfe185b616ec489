/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * layout_container.c - our own container (docs/image-format.md): the integrity record, page areas at fixed places,
 * stream extents behind them. The record's head is the mark: it says partial from before the first page until
 * everything else is durable. Opening one is in layout_container_open.c.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "align.h"
#include "cleanup.h"
#include "container_format.h"
#include "layout_container.h"
#include "pages.h"

#define PLACE(op, offset) DIOH_PLACE(op, IMAGE, 0, offset)

/* ---- tables: between records in entries and arrays on disk ---- */

static int write_regions(struct dioh_image_layout *layout, uint32_t *ret_crc, struct dioh_error *err)
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

static int write_streams(struct dioh_image_layout *layout, uint32_t *ret_crc, struct dioh_error *err)
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

static int write_head(struct dioh_image_layout *layout, uint32_t state, struct dioh_error *err)
{
	layout->head.state = state;
	dioh_record_seal(&layout->head);
	return dioh_image_pwrite(layout->image, &layout->head, sizeof(layout->head), dioh_layout_at(layout, 0), err);
}

/* ---- create ---- */

static int plan(struct dioh_image_layout *layout, struct dioh_error *err)
{
	DIOH_AUTO_FREE struct dioh_record_region *records = calloc(layout->region_count + 1, sizeof(*records));
	int r;

	if (!records)
		return dioh_error_errno(err, ENOMEM, PLACE(NONE, DIOH_OFFSET_NONE), "image: room for its tables");
	for (unsigned i = 0; i < layout->region_count; i++)
		records[i] = layout->regions[i].record;
	memset(&layout->head, 0, sizeof(layout->head));
	layout->head.layout = DIOH_LAYOUT_CONTAINER;
	layout->head.region_count = layout->region_count;
	layout->head.stream_count = layout->stream_count;
	r = dioh_container_plan(&layout->head, layout->header_bytes, records, err);
	if (r < 0)
		return r;
	for (unsigned i = 0; i < layout->region_count; i++)
		layout->regions[i].record = records[i];
	layout->header_offset = layout->head.header.offset;
	layout->image_bytes = layout->head.image_bytes;
	layout->extents_end = layout->head.image_bytes;
	return 0;
}

/* Where the first page area starts: all that stands before it goes by the header path. */
static uint64_t tables_end(const struct dioh_image_layout *layout)
{
	return layout->region_count ? layout->regions[0].record.pages_offset : layout->image_bytes;
}

static int preflight(struct dioh_image_layout *layout, struct dioh_error *err)
{
	uint64_t needed = tables_end(layout);
	uint64_t available = dioh_image_free_bytes(layout->image);

	if (layout->image->kind == DIOH_IMAGE_BLOCK_DEVICE)
		needed = layout->image_bytes;
	if (needed > available)
		return dioh_error_set(err, ENOSPC, PLACE(SIZE, DIOH_OFFSET_NONE),
		                      "image: it needs at least %" PRIu64 " bytes, and there is room for %" PRIu64
		                      ": nothing was written", needed, available);
	return 0;
}

/* What stands there now, if anything, is durably no complete image any more. */
static int invalidate(struct dioh_image_layout *layout, struct dioh_error *err)
{
	uint64_t file_bytes;
	int r = dioh_layout_file_bytes(layout, &file_bytes, err);

	if (r < 0 || file_bytes == 0)
		return r;
	r = write_head(layout, DIOH_STATE_PARTIAL, err);
	return r < 0 ? r : dioh_image_sync(layout->image, err);
}

/* Bitmaps and tables must read as zeros until they are stored. */
static int clear(struct dioh_image_layout *layout, struct dioh_error *err)
{
	int r;

	if (layout->image->kind == DIOH_IMAGE_BLOCK_DEVICE)
		return dioh_image_write_zeros(layout->image, dioh_layout_at(layout, 0), tables_end(layout), err);
	r = dioh_image_resize(layout->image, dioh_layout_at(layout, 0), err);
	return r < 0 ? r : dioh_image_resize(layout->image, dioh_layout_at(layout, layout->image_bytes), err);
}

static int container_create(struct dioh_image_layout *layout, struct dioh_error *err)
{
	uint32_t crc;
	int r;

	if (!layout->image->readable)
		return dioh_error_set(err, EBADF, PLACE(ATTACH, DIOH_OFFSET_NONE),
		                      "image: its descriptor is write-only; a container also needs reading (O_RDWR)");
	r = plan(layout, err);
	if (r == 0)
		r = preflight(layout, err);
	if (r == 0)
		r = invalidate(layout, err);
	if (r == 0)
		r = clear(layout, err);
	if (r == 0)
		r = write_regions(layout, &crc, err);
	if (r == 0)
		r = write_streams(layout, &crc, err);
	if (r == 0)
		r = write_head(layout, DIOH_STATE_PARTIAL, err);
	if (r == 0)
		r = dioh_image_sync(layout->image, err);
	if (r < 0)
		return r;
	layout->state = DIOH_STATE_PARTIAL;
	layout->ready = true;
	return 0;
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

static int container_store_tables(struct dioh_image_layout *layout, const struct dioh_tables *tables,
                                  struct dioh_error *err)
{
	struct dioh_record_region *record = &tables->region->record;
	int r = store_range(layout, table_range(layout, &record->bitmap, tables, DIOH_CHUNK_BITMAP_BYTES), tables->bitmap,
	                    tables->fresh, err);

	if (r < 0)
		return r;
	if (!tables->checksums) {
		record->flags &= ~(uint32_t)DIOH_REGION_CHECKSUMS;
		return 0;
	}
	return store_range(layout, table_range(layout, &record->checksums, tables, sizeof(uint32_t)), tables->checksums,
	                   tables->fresh, err);
}

static int container_load_tables(struct dioh_image_layout *layout, struct dioh_tables *tables, struct dioh_error *err)
{
	const struct dioh_record_region *record = &tables->region->record;
	struct table_range range = table_range(layout, &record->bitmap, tables, DIOH_CHUNK_BITMAP_BYTES);
	int r;

	memset(tables->bitmap, 0, tables->chunks * DIOH_CHUNK_BITMAP_BYTES);
	r = dioh_image_pread(layout->image, tables->bitmap, range.bytes, range.offset, err);
	if (r < 0 || !(record->flags & DIOH_REGION_CHECKSUMS) || !tables->checksums) {
		tables->checksums = NULL;
		return r;
	}
	range = table_range(layout, &record->checksums, tables, sizeof(uint32_t));
	return dioh_image_pread(layout->image, tables->checksums, range.bytes, range.offset, err);
}

/* ---- stream extents ---- */

static uint64_t extent_room(const struct dioh_image_layout *layout, uint64_t wanted)
{
	uint64_t end = layout->extents_end + DIOH_PAGE_BYTES;
	uint64_t capacity = layout->image->device_bytes - dioh_min(layout->image->base_offset, layout->image->device_bytes);

	if (layout->image->kind != DIOH_IMAGE_BLOCK_DEVICE)
		return wanted;
	return dioh_min(wanted, dioh_align_down(capacity - dioh_min(end, capacity), DIOH_CHUNK_BYTES));
}

/* The file grows before it is written; where its size is limited, a smaller step may still fit. */
static int grow_file(struct dioh_image_layout *layout, uint64_t *bytes, struct dioh_error *err)
{
	struct dioh_error why = { 0 };
	int r = 0;

	if (layout->image->kind == DIOH_IMAGE_BLOCK_DEVICE)
		return 0;
	for (; *bytes >= DIOH_CHUNK_BYTES; *bytes /= 2) {
		uint64_t end = layout->extents_end + DIOH_PAGE_BYTES + *bytes;

		r = dioh_image_resize(layout->image, dioh_layout_at(layout, end), &why);
		if (r != -EFBIG)
			break;
	}
	if (r < 0 && err)
		*err = why;
	return r;
}

static int container_add_extent(struct dioh_image_layout *layout, struct dioh_stream_entry *entry,
                                struct dioh_error *err)
{
	uint64_t bytes = extent_room(layout, dioh_container_extent_bytes(entry->record.extent_count));
	struct dioh_record_extent *extent;
	int r;

	if (bytes == 0)
		return dioh_error_errno(err, ENOSPC, PLACE(WRITE, layout->extents_end), "image: no room for more of stream %"
		                        PRIu32, entry->record.number);
	r = grow_file(layout, &bytes, err);
	if (r < 0)
		return r;
	extent = dioh_layout_grow_extents(layout, entry, err);
	if (!extent)
		return -EFBIG;
	dioh_container_place_extent(layout->extents_end, bytes, extent);
	layout->extents_end = dioh_align_up(extent->offset + extent->bytes, DIOH_PAGE_BYTES);
	return 0;
}

static int container_store_extent(struct dioh_image_layout *layout, const struct dioh_stream_entry *entry,
                                  unsigned index, const uint32_t *checksums, struct dioh_error *err)
{
	struct dioh_record_extent *extent = &entry->extents[index];

	extent->checksums.bytes = dioh_div_up(extent->bytes, DIOH_CHUNK_BYTES) * sizeof(uint32_t);
	extent->checksums.crc32c = dioh_crc32c(0, checksums, extent->checksums.bytes);
	return dioh_image_pwrite(layout->image, checksums, extent->checksums.bytes,
	                         dioh_layout_at(layout, extent->checksums.offset), err);
}

static int container_load_extent(struct dioh_image_layout *layout, const struct dioh_stream_entry *entry,
                                 unsigned index, uint32_t *ret_checksums, struct dioh_error *err)
{
	const struct dioh_record_area *area = &entry->extents[index].checksums;
	int r;

	if (!(entry->record.flags & DIOH_REGION_CHECKSUMS))
		return 0; /* what stands there means nothing */
	r = dioh_image_pread(layout->image, ret_checksums, area->bytes, dioh_layout_at(layout, area->offset), err);
	if (r == 0 && dioh_crc32c(0, ret_checksums, area->bytes) != area->crc32c)
		r = dioh_error_set(err, EBADMSG, PLACE(CHECKSUM, area->offset),
		                   "image: the checksums of stream %" PRIu32 " at %" PRIu64 " are damaged",
		                   entry->record.number, area->offset);
	return r;
}

/* ---- commit ---- */

static int sum_regions(struct dioh_image_layout *layout, struct dioh_error *err)
{
	for (unsigned i = 0; i < layout->region_count; i++) {
		struct dioh_record_region *record = &layout->regions[i].record;
		struct dioh_area_sum sum;
		int r = dioh_container_sum_area(layout, &record->bitmap, &sum, err);

		if (r < 0)
			return r;
		record->bitmap.crc32c = sum.crc;
		record->present_pages = sum.bits;
		r = dioh_container_sum_area(layout, &record->checksums, &sum, err);
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

static int write_tables(struct dioh_image_layout *layout, struct dioh_error *err)
{
	struct dioh_area_sum header;
	int r = sum_regions(layout, err);

	number_extents(layout);
	if (r == 0)
		r = write_regions(layout, &layout->head.regions.crc32c, err);
	if (r == 0)
		r = write_streams(layout, &layout->head.streams.crc32c, err);
	if (r == 0)
		r = write_extents(layout, &layout->head.extents.crc32c, err);
	if (r == 0)
		r = dioh_container_sum_area(layout, &layout->head.header, &header, err);
	if (r == 0)
		layout->head.header.crc32c = header.crc;
	return r;
}

static int container_commit(struct dioh_image_layout *layout, struct dioh_commit *commit, struct dioh_error *err)
{
	const bool written = commit->mode == DIOH_FINISH_WRITTEN;
	int r = dioh_layout_patch_header(layout, commit, err);

	if (r == 0)
		r = write_tables(layout, err);
	if (r == 0 && layout->image->kind == DIOH_IMAGE_REGULAR)
		r = dioh_image_resize(layout->image, dioh_layout_at(layout, layout->head.image_bytes), err);
	if (r == 0)
		r = dioh_layout_commit_sync(layout, commit, err); /* all but the mark is durable */
	if (r == 0)
		r = dioh_layout_commit_may_mark(commit, err);
	if (r == 0)
		r = write_head(layout, written ? DIOH_STATE_WRITTEN : DIOH_STATE_COMPLETE, err);
	if (r == 0)
		r = dioh_layout_commit_sync(layout, commit, err);
	if (r == 0)
		r = dioh_layout_commit_sync_directory(layout, commit, err);
	return r;
}

const struct dioh_layout_ops dioh_layout_container = {
	.id = DIOH_LAYOUT_CONTAINER,
	.starts_absent = true,
	.create = container_create,
	.open = dioh_container_open,
	.store_tables = container_store_tables,
	.load_tables = container_load_tables,
	.add_extent = container_add_extent,
	.store_extent = container_store_extent,
	.load_extent = container_load_extent,
	.commit = container_commit,
};
