/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* layout.c - what all layouts share: entries by number, the manager's header, pieces of a commit. */
#include "layout.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "align.h"
#include "clock.h"
#include "layout_mapped_ram.h"
#include "pages.h"

#define PLACE(op, offset) DIOH_PLACE(op, IMAGE, 0, offset)

#define SECTOR_BYTES 512u /* the smallest that a disk writes whole or not at all */

static const struct dioh_layout_ops *const layouts[] = { &dioh_layout_raw, &dioh_layout_container,
	                                            &dioh_layout_mapped_ram };

const struct dioh_layout_ops *dioh_layout_find(uint32_t id)
{
	for (size_t i = 0; i < sizeof(layouts) / sizeof(layouts[0]); i++)
		if (layouts[i]->id == id)
			return layouts[i];
	return NULL;
}

int dioh_layout_detect(struct dioh_image *image, uint32_t *ret_id, struct dioh_error *err)
{
	uint8_t start[16];
	uint64_t file_bytes;
	int r = dioh_image_size(image, &file_bytes, err);

	*ret_id = DIOH_LAYOUT_CONTAINER;
	if (r < 0 || file_bytes < sizeof(start) || image->base_offset > file_bytes - sizeof(start))
		return r;
	r = dioh_image_pread(image, start, sizeof(start), image->base_offset, err);
	if (r == 0 && dioh_mapped_ram_is(start, sizeof(start)))
		*ret_id = DIOH_LAYOUT_MAPPED_RAM;
	return r;
}

int dioh_layout_file_bytes(struct dioh_image_layout *layout, uint64_t *ret_bytes, struct dioh_error *err)
{
	uint64_t file_bytes;
	int r = dioh_image_size(layout->image, &file_bytes, err);

	if (r == 0)
		*ret_bytes = file_bytes - dioh_min(layout->image->base_offset, file_bytes);
	return r;
}

int dioh_layout_check_room(const struct dioh_image_layout *layout, uint64_t needed_bytes, struct dioh_error *err)
{
	const uint64_t available = dioh_image_free_bytes(layout->image);

	if (needed_bytes <= available) /* what is continued has its size */
		return layout->kept ? 0 : dioh_image_check_size(layout->image, dioh_layout_at(layout, layout->image_bytes), err);
	return dioh_error_set(err, ENOSPC, PLACE(SIZE, DIOH_OFFSET_NONE),
	                      "image: it needs at least %" PRIu64 " bytes, and there is room for %" PRIu64
	                      ": nothing was written", needed_bytes, available);
}

/* Of a longer write a power cut may leave the mark, and behind it sectors that are not the old image's any more. */
int dioh_layout_take_mark(struct dioh_image_layout *layout, uint64_t offset, struct dioh_error *err)
{
	const uint64_t at = dioh_layout_at(layout, offset);
	int r = dioh_image_write_zeros(layout->image, at, SECTOR_BYTES - at % SECTOR_BYTES, err);

	return r < 0 ? r : dioh_image_sync(layout->image, err);
}

/* Every kind of image begins with a mark of its own, in its first sector. */
int dioh_layout_invalidate(struct dioh_image_layout *layout, struct dioh_error *err)
{
	uint64_t file_bytes = 0;
	int r = dioh_layout_file_bytes(layout, &file_bytes, err);

	if (r < 0 || file_bytes == 0)
		return r;
	return dioh_layout_take_mark(layout, 0, err);
}

static void free_tables(struct dioh_image_layout *layout)
{
	for (unsigned i = 0; i < layout->stream_count; i++)
		free(layout->streams[i].extents);
	free(layout->regions);
	free(layout->streams);
	layout->regions = NULL;
	layout->streams = NULL;
	layout->region_count = layout->regions_put = 0;
	layout->stream_count = layout->streams_put = 0;
}

int dioh_layout_allocate(struct dioh_image_layout *layout, unsigned region_count, unsigned stream_count,
                         struct dioh_error *err)
{
	free_tables(layout);
	layout->regions = calloc(region_count + 1, sizeof(*layout->regions));
	layout->streams = calloc(stream_count + 1, sizeof(*layout->streams));
	if (!layout->regions || !layout->streams) {
		free_tables(layout);
		return dioh_error_errno(err, ENOMEM, PLACE(NONE, DIOH_OFFSET_NONE), "image: room for its tables");
	}
	layout->region_count = region_count;
	layout->stream_count = stream_count;
	return 0;
}

void dioh_layout_free(struct dioh_image_layout *layout)
{
	free_tables(layout);
	dioh_mapped_ram_free(layout->mapped_ram);
	layout->mapped_ram = NULL;
}

struct dioh_region *dioh_layout_region(struct dioh_image_layout *layout, uint32_t number)
{
	for (unsigned i = 0; i < layout->regions_put; i++)
		if (layout->regions[i].record.number == number)
			return &layout->regions[i];
	return NULL;
}

struct dioh_stream_entry *dioh_layout_stream(struct dioh_image_layout *layout, uint32_t number)
{
	for (unsigned i = 0; i < layout->streams_put; i++)
		if (layout->streams[i].record.number == number)
			return &layout->streams[i];
	return NULL;
}

static bool name_taken(const struct dioh_image_layout *layout, const struct dioh_msg_entry *entry)
{
	if (entry->kind == DIOH_ENTRY_REGION) {
		for (unsigned i = 0; i < layout->regions_put; i++)
			if (strcmp(layout->regions[i].record.name, entry->name) == 0)
				return true;
		return false;
	}
	for (unsigned i = 0; i < layout->streams_put; i++)
		if (strcmp(layout->streams[i].record.name, entry->name) == 0)
			return true;
	return false;
}

static void put_region(struct dioh_image_layout *layout, const struct dioh_msg_entry *entry)
{
	struct dioh_record_region *record = &layout->regions[layout->regions_put++].record;

	record->number = entry->number;
	record->flags = DIOH_REGION_CHECKSUMS;
	if (entry->flags & DIOH_ENTRY_GUEST_ADDRESS) {
		record->flags |= DIOH_REGION_GUEST_ADDRESS;
		record->guest_address = entry->guest_address;
	}
	record->bytes = entry->bytes;
	record->pages_offset = entry->image_offset; /* raw keeps it, container overwrites it */
	memcpy(record->name, entry->name, sizeof(record->name));
}

static void put_stream(struct dioh_image_layout *layout, const struct dioh_msg_entry *entry)
{
	struct dioh_stream_entry *stream = &layout->streams[layout->streams_put++];

	stream->record.number = entry->number;
	stream->record.flags = DIOH_REGION_CHECKSUMS;
	stream->record.bytes = entry->bytes;
	stream->image_offset = entry->image_offset;
	memcpy(stream->record.name, entry->name, sizeof(stream->record.name));
}

static int put_one(struct dioh_image_layout *layout, const struct dioh_msg_entry *entry, struct dioh_error *err)
{
	bool region = entry->kind == DIOH_ENTRY_REGION;
	const char *kind = region ? "region" : "stream";

	if (region ? layout->regions_put == layout->region_count : layout->streams_put == layout->stream_count)
		return dioh_error_set(err, EINVAL, DIOH_PLACE(PROTOCOL, SESSION, 0, DIOH_OFFSET_NONE),
		                      "PUT_TABLE: %s %" PRIu32 " is one more than was announced", kind, entry->number);
	if (region ? dioh_layout_region(layout, entry->number) != NULL
	           : dioh_layout_stream(layout, entry->number) != NULL)
		return dioh_error_set(err, EEXIST, DIOH_PLACE(PROTOCOL, SESSION, 0, DIOH_OFFSET_NONE),
		                      "PUT_TABLE: %s number %" PRIu32 " is there already", kind, entry->number);
	if (name_taken(layout, entry))
		return dioh_error_set(err, EEXIST, DIOH_PLACE(PROTOCOL, SESSION, 0, DIOH_OFFSET_NONE),
		                      "PUT_TABLE: %s %" PRIu32 ": its name is another one's already", kind, entry->number);
	if (region)
		put_region(layout, entry);
	else
		put_stream(layout, entry);
	return 0;
}

int dioh_layout_put(struct dioh_image_layout *layout, const struct dioh_msg_entry *entries, unsigned count,
                    struct dioh_error *err)
{
	const unsigned regions_before = layout->regions_put;
	const unsigned streams_before = layout->streams_put;

	for (unsigned i = 0; i < count; i++) {
		int r = put_one(layout, &entries[i], err);

		if (r < 0) {
			memset(&layout->regions[regions_before], 0,
			       (layout->regions_put - regions_before) * sizeof(layout->regions[0]));
			memset(&layout->streams[streams_before], 0,
			       (layout->streams_put - streams_before) * sizeof(layout->streams[0]));
			layout->regions_put = regions_before;
			layout->streams_put = streams_before;
			return r;
		}
	}
	return 0;
}

static void get_region(const struct dioh_record_region *record, struct dioh_msg_entry *entry)
{
	entry->kind = DIOH_ENTRY_REGION;
	entry->number = record->number;
	entry->flags = (record->flags & DIOH_REGION_GUEST_ADDRESS ? DIOH_ENTRY_GUEST_ADDRESS : 0) |
	               (record->flags & DIOH_REGION_CHECKSUMS ? DIOH_ENTRY_CHECKSUMS : 0) |
	               (record->flags & DIOH_REGION_IN_STREAM ? DIOH_ENTRY_IN_STREAM : 0);
	entry->bytes = record->bytes;
	entry->guest_address = record->guest_address;
	entry->image_offset = record->pages_offset;
	entry->present_bytes = record->present_pages * DIOH_PAGE_BYTES;
	memcpy(entry->name, record->name, sizeof(entry->name));
}

static void get_stream(const struct dioh_stream_entry *stream, struct dioh_msg_entry *entry)
{
	entry->kind = DIOH_ENTRY_STREAM;
	entry->number = stream->record.number;
	entry->flags = stream->record.flags & DIOH_REGION_CHECKSUMS ? DIOH_ENTRY_CHECKSUMS : 0;
	entry->bytes = stream->load_bytes ? stream->load_bytes : stream->record.bytes;
	entry->present_bytes = entry->bytes;
	entry->image_offset = stream->record.extent_count > 0 ? stream->extents[0].offset : stream->image_offset;
	memcpy(entry->name, stream->record.name, sizeof(entry->name));
}

bool dioh_layout_get(const struct dioh_image_layout *layout, unsigned index, struct dioh_msg_entry *ret_entry)
{
	memset(ret_entry, 0, sizeof(*ret_entry));
	if (index < layout->regions_put)
		get_region(&layout->regions[index].record, ret_entry);
	else if (index - layout->regions_put < layout->streams_put)
		get_stream(&layout->streams[index - layout->regions_put], ret_entry);
	else
		return false;
	if (layout->image->direction == DIOH_DIRECTION_SAVE || layout->state == DIOH_STATE_PARTIAL)
		ret_entry->present_bytes = 0; /* not known before FINISH has counted */
	return true;
}

int dioh_layout_check_unchanged(struct dioh_image_layout *layout, struct dioh_error *err)
{
	return layout->ops->check_unchanged ? layout->ops->check_unchanged(layout, err) : 0;
}

int dioh_layout_write_header(struct dioh_image_layout *layout, const void *bytes, uint64_t count, uint64_t offset,
                             struct dioh_error *err)
{
	int r;

	if (!dioh_range_ok(offset, count, layout->header_bytes))
		return dioh_error_set(err, ERANGE, PLACE(PROTOCOL, offset),
		                      "WRITE_HEADER: bytes %" PRIu64 " to %" PRIu64 " lie outside a header of %" PRIu64, offset,
		                      offset + count, layout->header_bytes);
	if (offset > layout->header_written)
		return dioh_error_set(err, EINVAL, PLACE(PROTOCOL, offset),
		                      "WRITE_HEADER: bytes %" PRIu64 " to %" PRIu64 " of the header have not come yet",
		                      layout->header_written, offset);
	r = dioh_image_pwrite(layout->image, bytes, count, dioh_layout_at(layout, layout->header_offset + offset), err);
	if (r == 0)
		layout->header_written = dioh_max(layout->header_written, offset + count);
	return r;
}

int dioh_layout_read_header(struct dioh_image_layout *layout, void *bytes, uint64_t offset, uint64_t count,
                            uint64_t *ret_count, struct dioh_error *err)
{
	uint64_t there = layout->header_bytes - dioh_min(offset, layout->header_bytes);
	int r;

	count = dioh_min(count, there);
	r = dioh_image_pread(layout->image, bytes, count, dioh_layout_at(layout, layout->header_offset + offset), err);
	if (r == 0)
		r = dioh_layout_check_unchanged(layout, err);
	if (r == 0)
		*ret_count = count;
	return r;
}

static int find_bitmap(struct dioh_image_layout *layout, uint32_t number, struct dioh_region **ret_region,
                       struct dioh_error *err)
{
	struct dioh_region *region = dioh_layout_region(layout, number);

	if (!region)
		return dioh_error_set(err, ENOENT, PLACE(PROTOCOL, DIOH_OFFSET_NONE),
		                      "region %" PRIu32 " is not in the image's table", number);
	if (layout->ops->id == DIOH_LAYOUT_RAW)
		return dioh_error_set(err, EOPNOTSUPP, PLACE(PROTOCOL, DIOH_OFFSET_NONE), "image: layout raw has no bitmaps");
	if (layout->state == DIOH_STATE_PARTIAL)
		return dioh_error_set(err, ENODATA, PLACE(PROTOCOL, DIOH_OFFSET_NONE),
		                      "image: it is partial: which pages it has is not known");
	*ret_region = region;
	return 0;
}

int dioh_layout_read_bitmap(struct dioh_image_layout *layout, uint32_t region, uint64_t offset, void *bytes,
                            uint32_t *count, struct dioh_error *err)
{
	struct dioh_tables tables = { .bitmap = bytes, .first_chunk = offset / DIOH_CHUNK_BITMAP_BYTES };
	uint64_t left;
	int r = find_bitmap(layout, region, &tables.region, err);

	if (r < 0)
		return r;
	left = dioh_div_up(tables.region->record.bytes, 8 * DIOH_PAGE_BYTES);
	left -= dioh_min(left, offset);
	/* Whole chunks: the caller's room is a multiple of theirs, or larger than asked for. */
	*count = (uint32_t)dioh_min(left, *count);
	tables.chunks = (unsigned)dioh_div_up(*count, DIOH_CHUNK_BITMAP_BYTES);
	return *count ? layout->ops->load_tables(layout, &tables, err) : 0;
}

int dioh_layout_wanted(const struct dioh_image_layout *layout, struct dioh_error *err)
{
	if (!atomic_load(layout->abandoned))
		return 0;
	return dioh_error_set(err, ECANCELED, DIOH_PLACE(CANCEL, SESSION, 0, DIOH_OFFSET_NONE),
	                      "it was cancelled while the image was being looked at");
}

int dioh_tables_wanted(const struct dioh_tables *tables, struct dioh_error *err)
{
	if (!tables->cancelled || !atomic_load(tables->cancelled))
		return 0;
	return dioh_error_set(err, ECANCELED, DIOH_PLACE(CANCEL, SESSION, 0, DIOH_OFFSET_NONE),
	                      "the transfer was cancelled");
}

int dioh_layout_patch_header(struct dioh_image_layout *layout, const struct dioh_commit *commit,
                             struct dioh_error *err)
{
	if (commit->patch_bytes == 0)
		return 0;
	return dioh_layout_write_header(layout, commit->patch, commit->patch_bytes, commit->patch_offset, err);
}

int dioh_layout_commit_sync(struct dioh_image_layout *layout, struct dioh_commit *commit, struct dioh_error *err)
{
	uint64_t begun = dioh_now_ns();
	int r;

	if (commit->mode == DIOH_FINISH_WRITTEN)
		return 0;
	r = dioh_image_sync(layout->image, err);
	commit->sync_ns += dioh_now_ns() - begun;
	return r;
}

int dioh_layout_commit_sync_directory(struct dioh_image_layout *layout, struct dioh_commit *commit,
                                      struct dioh_error *err)
{
	uint64_t begun = dioh_now_ns();
	int r;

	if (commit->mode == DIOH_FINISH_WRITTEN)
		return 0;
	r = dioh_image_sync_directory(layout->image, err);
	commit->sync_ns += dioh_now_ns() - begun;
	return r;
}

int dioh_layout_commit_may_mark(const struct dioh_commit *commit, struct dioh_error *err)
{
	if (!atomic_load(commit->cancelled))
		return 0;
	return dioh_error_set(err, ECANCELED, DIOH_PLACE(CANCEL, SESSION, 0, DIOH_OFFSET_NONE),
	                      "FINISH was cancelled before the image was marked complete: it stays partial");
}

struct dioh_record_extent *dioh_layout_grow_extents(struct dioh_image_layout *layout, struct dioh_stream_entry *entry,
                                                    struct dioh_error *err)
{
	unsigned count = entry->record.extent_count;

	if (layout->extents_used == DIOH_EXTENTS_MAX) {
		dioh_error_set(err, EFBIG, DIOH_PLACE(WRITE, IMAGE, 0, DIOH_OFFSET_NONE),
		               "image: its streams need more than %u extents", DIOH_EXTENTS_MAX);
		return NULL;
	}
	if (count == entry->extents_room) {
		unsigned room = count ? 2 * count : 16;
		struct dioh_record_extent *extents = realloc(entry->extents, room * sizeof(*extents));

		if (!extents) {
			dioh_error_errno(err, ENOMEM, DIOH_PLACE(WRITE, IMAGE, 0, DIOH_OFFSET_NONE), "image: room for an extent");
			return NULL;
		}
		entry->extents = extents;
		entry->extents_room = room;
	}
	layout->extents_used++;
	entry->record.extent_count++;
	memset(&entry->extents[count], 0, sizeof(entry->extents[count]));
	return &entry->extents[count];
}

void dioh_layout_drop_extent(struct dioh_image_layout *layout, struct dioh_stream_entry *entry)
{
	entry->record.extent_count--;
	layout->extents_used--;
}
