/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * layout_container.c - our own container (docs/image-format.md): the integrity record, page areas at fixed places,
 * stream extents behind them. The record's head is the mark: it says partial from before the first page until
 * everything else is durable.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "align.h"
#include "cleanup.h"
#include "container_format.h"
#include "layout_record.h"

#define PLACE(op, offset) DIOH_PLACE(op, IMAGE, 0, offset)

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

	if (layout->image->kind == DIOH_IMAGE_BLOCK_DEVICE)
		needed = layout->image_bytes;
	return dioh_layout_check_room(layout, needed, err);
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

/* What is continued is partial again; its streams are saved anew. */
static int keep(struct dioh_image_layout *layout, struct dioh_error *err)
{
	int r = dioh_record_check_kept(layout, err);

	if (r == 0)
		r = dioh_record_write_head(layout, DIOH_STATE_PARTIAL, err);
	if (r == 0)
		r = dioh_image_sync(layout->image, err);
	if (r == 0 && layout->image->kind == DIOH_IMAGE_REGULAR)
		r = dioh_image_resize(layout->image, dioh_layout_at(layout, layout->image_bytes), err);
	return r;
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
	if (r == 0 && layout->kept)
		r = keep(layout, err);
	if (r == 0 && !layout->kept)
		r = dioh_layout_invalidate(layout, err);
	if (r == 0 && !layout->kept)
		r = clear(layout, err);
	if (r == 0)
		r = dioh_record_write_regions(layout, &crc, err);
	if (r == 0)
		r = dioh_record_write_streams(layout, &crc, err);
	if (r == 0)
		r = dioh_record_write_head(layout, DIOH_STATE_PARTIAL, err);
	if (r == 0)
		r = dioh_image_sync(layout->image, err);
	if (r < 0)
		return r;
	layout->state = DIOH_STATE_PARTIAL;
	layout->ready = true;
	return 0;
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

/* ---- commit ---- */

static int container_commit(struct dioh_image_layout *layout, struct dioh_commit *commit, struct dioh_error *err)
{
	const bool written = commit->mode == DIOH_FINISH_WRITTEN;
	int r = dioh_record_check_ours(layout, err);

	if (r == 0)
		r = dioh_layout_patch_header(layout, commit, err);
	if (r == 0)
		r = dioh_record_write_tables(layout, err);
	if (r == 0 && layout->image->kind == DIOH_IMAGE_REGULAR)
		r = dioh_image_resize(layout->image, dioh_layout_at(layout, layout->head.image_bytes), err);
	if (r == 0)
		r = dioh_layout_commit_sync(layout, commit, err); /* all but the mark is durable */
	if (r == 0)
		r = dioh_layout_commit_may_mark(commit, err);
	if (r == 0)
		r = dioh_record_write_head(layout, written ? DIOH_STATE_WRITTEN : DIOH_STATE_COMPLETE, err);
	if (r == 0)
		r = dioh_layout_commit_sync(layout, commit, err);
	if (r == 0)
		r = dioh_layout_commit_sync_directory(layout, commit, err);
	return r;
}

/* ---- open ---- */

static int container_open(struct dioh_image_layout *layout, uint32_t flags, struct dioh_error *err)
{
	uint64_t file_bytes;
	int r = dioh_layout_file_bytes(layout, &file_bytes, err);

	if (r < 0)
		return r;
	if (file_bytes < sizeof(layout->head))
		return dioh_error_set(err, EBADMSG, PLACE(PARSE, 0),
		                      "image: %" PRIu64 " bytes are too few for an image: not one of ours, or truncated",
		                      file_bytes);
	r = dioh_record_open(layout, flags, err);
	if (r < 0)
		return r;
	layout->inspect_only = flags & DIOH_OPEN_INSPECT;
	layout->ready = true;
	return 0;
}

const struct dioh_layout_ops dioh_layout_container = {
	.id = DIOH_LAYOUT_CONTAINER,
	.starts_absent = true,
	.create = container_create,
	.open = container_open,
	.store_tables = dioh_record_store_tables,
	.load_tables = dioh_record_load_tables,
	.add_extent = container_add_extent,
	.store_extent = dioh_record_store_extent,
	.load_extent = dioh_record_load_extent,
	.check_unchanged = dioh_record_check_unchanged,
	.commit = container_commit,
};
