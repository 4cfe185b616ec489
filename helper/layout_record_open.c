/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * layout_record_open.c - reading an integrity record. Every byte of it may come from somebody hostile: the head and the tables
 * are checked by common/record.c, areas by their checksums, before anything follows them. Nothing is held that grows with
 * what an image claims but its tables, which have limits.
 */
#include <errno.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "align.h"
#include "cleanup.h"
#include "layout_record.h"
#include "pages.h"
#include "record.h"

#define PLACE(op, offset) DIOH_PLACE(op, IMAGE, 0, offset)

/* Areas are checked and summed in pieces of this size, whatever they claim to be long. */
#define PIECE_BYTES (64u * 1024)

/* ---- reading areas ---- */

int dioh_record_sum_area(struct dioh_image_layout *layout, const struct dioh_record_area *area,
                         struct dioh_area_sum *ret_sum, struct dioh_error *err)
{
	DIOH_AUTO_FREE uint8_t *piece = malloc(PIECE_BYTES);

	if (!piece)
		return dioh_error_errno(err, ENOMEM, PLACE(READ, area->offset), "image: room for a piece of it");
	memset(ret_sum, 0, sizeof(*ret_sum));
	for (uint64_t done = 0; done < area->bytes;) {
		uint64_t n = dioh_min(area->bytes - done, PIECE_BYTES);
		int r = dioh_layout_wanted(layout, err);

		if (r == 0)
			r = dioh_image_pread(layout->image, piece, n, dioh_layout_at(layout, area->offset + done), err);
		if (r < 0)
			return r;
		ret_sum->crc = dioh_crc32c(ret_sum->crc, piece, n);
		ret_sum->bits += dioh_bits_count(piece, n * 8);
		if (n >= sizeof(ret_sum->last))
			memcpy(ret_sum->last, piece + n - sizeof(ret_sum->last), sizeof(ret_sum->last));
		done += n;
	}
	return 0;
}

static int check_area(struct dioh_image_layout *layout, const struct dioh_record_area *area, const char *owner,
                      const char *what, struct dioh_area_sum *ret_sum, struct dioh_error *err)
{
	int r = dioh_record_sum_area(layout, area, ret_sum, err);

	if (r < 0)
		return r;
	if (ret_sum->crc != area->crc32c)
		return dioh_error_set(err, EBADMSG, PLACE(CHECKSUM, area->offset),
		                      "image: %s%s at %" PRIu64 " is damaged: its checksum is %08" PRIx32 ", not %08" PRIx32,
		                      owner, what, area->offset, ret_sum->crc, area->crc32c);
	return 0;
}

static int read_table(struct dioh_image_layout *layout, const struct dioh_record_area *area, const char *what,
                      void **ret_table, struct dioh_error *err)
{
	DIOH_AUTO_FREE void *table = malloc(area->bytes + 1);
	uint32_t crc;
	int r;

	if (!table)
		return dioh_error_errno(err, ENOMEM, PLACE(READ, area->offset), "image: room for its %s", what);
	r = dioh_image_pread(layout->image, table, area->bytes, dioh_layout_at(layout, area->offset), err);
	if (r < 0)
		return r;
	crc = dioh_crc32c(0, table, area->bytes);
	if (layout->head.state != DIOH_STATE_PARTIAL && crc != area->crc32c)
		return dioh_error_set(err, EBADMSG, PLACE(CHECKSUM, area->offset),
		                      "image: its %s at %" PRIu64 " is damaged: its checksum is %08" PRIx32 ", not %08" PRIx32,
		                      what, area->offset, crc, area->crc32c);
	*ret_table = table;
	table = NULL;
	return 0;
}

/* ---- open ---- */

static int check_state(struct dioh_image_layout *layout, uint32_t flags, struct dioh_error *err)
{
	uint32_t state = layout->head.state;

	if (flags & DIOH_OPEN_INSPECT)
		return 0;
	if (state == DIOH_STATE_PARTIAL)
		return dioh_error_set(err, ENODATA, PLACE(PARSE, offsetof(struct dioh_record_head, state)),
		                      "image: it is partial: a save into it did not finish, so it holds no machine");
	if (state == DIOH_STATE_WRITTEN && !(flags & DIOH_OPEN_ACCEPT_WRITTEN))
		return dioh_error_set(err, ESTALE, PLACE(PARSE, offsetof(struct dioh_record_head, state)),
		                      "image: it was written but never synced; accept that only if the host has not been down "
		                      "since");
	return 0;
}

static int check_written_has_checksums(struct dioh_image_layout *layout, struct dioh_error *err)
{
	for (unsigned i = 0; i < layout->region_count; i++)
		if (!(layout->regions[i].record.flags & DIOH_REGION_CHECKSUMS))
			return dioh_error_set(err, ESTALE, PLACE(PARSE, DIOH_OFFSET_NONE),
			                      "image: it was never synced, and region %" PRIu32 " \"%s\" has no checksums that "
			                      "could show what is missing", layout->regions[i].record.number,
			                      layout->regions[i].record.name);
	for (unsigned i = 0; i < layout->stream_count; i++)
		if (!(layout->streams[i].record.flags & DIOH_REGION_CHECKSUMS))
			return dioh_error_set(err, ESTALE, PLACE(PARSE, DIOH_OFFSET_NONE),
			                      "image: it was never synced, and stream %" PRIu32 " \"%s\" has no checksums that "
			                      "could show what is missing", layout->streams[i].record.number,
			                      layout->streams[i].record.name);
	return 0;
}

static int adopt_extents(struct dioh_image_layout *layout, const struct dioh_record_extent *extents,
                         struct dioh_error *err)
{
	for (unsigned i = 0; i < layout->stream_count; i++) {
		struct dioh_stream_entry *entry = &layout->streams[i];
		uint64_t bytes = entry->record.extent_count * sizeof(*extents);

		entry->extents = malloc(bytes + 1);
		if (!entry->extents)
			return dioh_error_errno(err, ENOMEM, PLACE(READ, DIOH_OFFSET_NONE), "image: room for its extents");
		memcpy(entry->extents, extents + entry->record.first_extent, bytes);
		entry->extents_room = entry->record.extent_count;
	}
	return 0;
}

/* A save that ended in its FINISH may have left stream entries that name extents the head knows nothing of. */
static void forget_extents(struct dioh_record_stream *streams, unsigned count)
{
	for (unsigned i = 0; i < count; i++) {
		streams[i].bytes = 0;
		streams[i].first_extent = 0;
		streams[i].extent_count = 0;
	}
}

static int read_tables(struct dioh_image_layout *layout, struct dioh_error *err)
{
	const struct dioh_record_head *head = &layout->head;
	DIOH_AUTO_FREE void *regions = NULL;
	DIOH_AUTO_FREE void *streams = NULL;
	DIOH_AUTO_FREE void *extents = NULL;
	int r = read_table(layout, &head->regions, "region table", &regions, err);

	if (r == 0)
		r = read_table(layout, &head->streams, "stream table", &streams, err);
	if (r == 0)
		r = read_table(layout, &head->extents, "extent table", &extents, err);
	if (r == 0 && head->state == DIOH_STATE_PARTIAL)
		forget_extents(streams, head->stream_count);
	if (r == 0)
		r = dioh_record_check_tables(head, regions, streams, extents, err);
	if (r == 0)
		r = dioh_layout_allocate(layout, head->region_count, head->stream_count, err);
	if (r < 0)
		return r;
	for (unsigned i = 0; i < head->region_count; i++)
		layout->regions[i].record = ((struct dioh_record_region *)regions)[i];
	for (unsigned i = 0; i < head->stream_count; i++)
		layout->streams[i].record = ((struct dioh_record_stream *)streams)[i];
	layout->regions_put = head->region_count;
	layout->streams_put = head->stream_count;
	return adopt_extents(layout, extents, err);
}

/* A partial image's may not be there yet, or be an older one's: it is looked at without them then. */
static int look_at_tables(struct dioh_image_layout *layout, struct dioh_error *err)
{
	int r = read_tables(layout, err);

	if (r == -EBADMSG && layout->head.state == DIOH_STATE_PARTIAL)
		r = dioh_layout_allocate(layout, 0, 0, err);
	return r;
}

static int check_region_areas(struct dioh_image_layout *layout, const struct dioh_record_region *record,
                              struct dioh_error *err)
{
	const uint64_t pages = record->bytes / DIOH_PAGE_BYTES;
	char owner[64];
	struct dioh_area_sum sum;
	int r;

	snprintf(owner, sizeof(owner), "region %" PRIu32 "'s ", record->number);
	r = check_area(layout, &record->bitmap, owner, "bitmap", &sum, err);
	if (r < 0)
		return r;
	/* The bitmap is a whole number of 8-byte words: bits behind the last page can only stand in the last one. */
	if (sum.bits != record->present_pages || (pages % 64 && !dioh_bits_tail_clear(sum.last, 8, pages % 64)))
		return dioh_error_set(err, EBADMSG, PLACE(PARSE, record->bitmap.offset),
		                      "image: %sbitmap at %" PRIu64 " does not agree with its %" PRIu64 " present pages", owner,
		                      record->bitmap.offset, record->present_pages);
	if (record->flags & DIOH_REGION_CHECKSUMS)
		r = check_area(layout, &record->checksums, owner, "checksums", &sum, err);
	return r;
}

static int check_stream_areas(struct dioh_image_layout *layout, const struct dioh_stream_entry *entry,
                              struct dioh_error *err)
{
	char owner[64];
	struct dioh_area_sum sum;
	int r = 0;

	snprintf(owner, sizeof(owner), "stream %" PRIu32 "'s ", entry->record.number);
	if (!(entry->record.flags & DIOH_REGION_CHECKSUMS))
		return 0;
	for (unsigned i = 0; i < entry->record.extent_count && r == 0; i++)
		r = check_area(layout, &entry->extents[i].checksums, owner, "checksums", &sum, err);
	return r;
}

static int check_areas(struct dioh_image_layout *layout, struct dioh_error *err)
{
	struct dioh_area_sum sum;
	int r = 0;

	/* libvirt edits the XML in its header in place. */
	if (layout->head.layout == DIOH_LAYOUT_CONTAINER)
		r = check_area(layout, &layout->head.header, "", "the manager's header", &sum, err);

	for (unsigned i = 0; i < layout->region_count && r == 0; i++)
		r = check_region_areas(layout, &layout->regions[i].record, err);
	for (unsigned i = 0; i < layout->stream_count && r == 0; i++)
		r = check_stream_areas(layout, &layout->streams[i], err);
	return r;
}

/* Not damaged, but by another layout's rules: these would find faults that are none. */
static bool is_of_another_layout(const struct dioh_image_layout *layout)
{
	const struct dioh_record_head *head = &layout->head;

	return head->layout != layout->ops->id && memcmp(head->magic, DIOH_RECORD_MAGIC, sizeof(head->magic)) == 0 &&
	       dioh_crc32c(0, head, offsetof(struct dioh_record_head, crc32c)) == head->crc32c;
}

int dioh_record_open(struct dioh_image_layout *layout, uint32_t flags, struct dioh_error *err)
{
	uint64_t file_bytes;
	int r = dioh_layout_file_bytes(layout, &file_bytes, err);

	if (r == 0)
		r = dioh_image_pread(layout->image, &layout->head, sizeof(layout->head),
		                     dioh_layout_at(layout, layout->record_offset), err);
	if (r == 0 && is_of_another_layout(layout))
		return dioh_error_set(err, EOPNOTSUPP, PLACE(PARSE, offsetof(struct dioh_record_head, layout)),
		                      "image: its record speaks of layout %" PRIu32 ", which cannot stand here",
		                      layout->head.layout);
	if (r == 0)
		r = dioh_record_check_head(&layout->head, file_bytes, err);
	if (r == 0)
		r = check_state(layout, flags, err);
	if (r == 0)
		r = look_at_tables(layout, err);
	if (r == 0 && layout->head.state == DIOH_STATE_WRITTEN && !(flags & DIOH_OPEN_INSPECT))
		r = check_written_has_checksums(layout, err);
	if (r == 0 && layout->head.state != DIOH_STATE_PARTIAL)
		r = check_areas(layout, err);
	if (r < 0)
		return r;
	layout->state = layout->head.state;
	layout->compatible = layout->head.compatible;
	layout->header_offset = layout->head.header.offset;
	layout->header_bytes = layout->head.header.bytes;
	layout->image_bytes = layout->head.image_bytes;
	return 0;
}
