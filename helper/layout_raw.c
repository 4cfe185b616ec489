/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * layout_raw.c - the manager says where everything stands: flat memory files, somebody's own format. There is no
 * bitmap, no checksum and no mark of ours: absent pages are punched out of a file and zeroed on a device, the header
 * that the manager writes first is the invalidation, and FINISH's patch of it is the mark.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "align.h"
#include "cleanup.h"
#include "layout.h"
#include "pages.h"

#define PLACE(op, offset) DIOH_PLACE(op, IMAGE, 0, offset)

/* A stream's file grows in steps: large ones, since each takes the inode's lock. */
#define STREAM_STEP_BYTES (UINT64_C(64) << 20)

struct span {
	uint64_t first;
	uint64_t end;
};

static int by_first(const void *a, const void *b)
{
	const struct span *x = a, *y = b;

	if (x->first != y->first)
		return x->first < y->first ? -1 : 1;
	return x->end > y->end ? -1 : x->end < y->end; /* what is empty, a stream to be saved, lies inside the other */
}

static unsigned collect_spans(const struct dioh_image_layout *layout, struct span *spans)
{
	unsigned n = 0;

	if (layout->header_bytes)
		spans[n++] = (struct span){ 0, layout->header_bytes };
	for (unsigned i = 0; i < layout->region_count; i++) {
		const struct dioh_record_region *record = &layout->regions[i].record;

		spans[n++] = (struct span){ record->pages_offset, record->pages_offset + record->bytes };
	}
	for (unsigned i = 0; i < layout->stream_count; i++) {
		const struct dioh_stream_entry *entry = &layout->streams[i];

		spans[n++] = (struct span){ entry->image_offset, entry->image_offset + entry->record.bytes };
	}
	return n;
}

static int check_overlap(struct dioh_image_layout *layout, struct dioh_error *err)
{
	unsigned room = layout->region_count + layout->stream_count + 1;
	DIOH_AUTO_FREE struct span *spans = calloc(room, sizeof(*spans));
	unsigned n;

	if (!spans)
		return dioh_error_errno(err, ENOMEM, PLACE(NONE, DIOH_OFFSET_NONE), "image: room for its tables");
	n = collect_spans(layout, spans);
	qsort(spans, n, sizeof(*spans), by_first);
	layout->image_bytes = 0;
	for (unsigned i = 0; i < n; i++) {
		if (spans[i].end >= DIOH_OFFSET_MAX)
			return dioh_error_set(err, EFBIG, PLACE(PARSE, spans[i].first),
			                      "image: an entry at %" PRIu64 " ends beyond what a file can hold", spans[i].first);
		if (i > 0 && spans[i].first < layout->image_bytes)
			return dioh_error_set(err, EINVAL, PLACE(PARSE, spans[i].first),
			                      "image: the entry at %" PRIu64 " begins inside another one that ends at %" PRIu64,
			                      spans[i].first, layout->image_bytes);
		layout->image_bytes = dioh_max(layout->image_bytes, spans[i].end);
	}
	return 0;
}

/* Streams that are to be saved have no length yet by which they could overlap. */
static int check_streams_apart(const struct dioh_image_layout *layout, struct dioh_error *err)
{
	for (unsigned i = 0; i < layout->stream_count; i++)
		for (unsigned k = 0; k < i; k++)
			if (layout->streams[i].image_offset == layout->streams[k].image_offset)
				return dioh_error_set(err, EINVAL, PLACE(PARSE, layout->streams[i].image_offset),
				                      "image: streams %" PRIu32 " and %" PRIu32 " are both to begin at %" PRIu64,
				                      layout->streams[k].record.number, layout->streams[i].record.number,
				                      layout->streams[i].image_offset);
	return 0;
}

static int check_regions(struct dioh_image_layout *layout, struct dioh_error *err)
{
	for (unsigned i = 0; i < layout->region_count; i++) {
		struct dioh_record_region *record = &layout->regions[i].record;

		record->flags &= ~(uint32_t)DIOH_REGION_CHECKSUMS;
		if (!dioh_is_aligned(record->pages_offset, DIOH_PAGE_BYTES))
			return dioh_error_set(err, EINVAL, DIOH_PLACE(PARSE, REGION, record->number, record->pages_offset),
			                      "region %" PRIu32 ": its offset %" PRIu64 " is not a multiple of %u", record->number,
			                      record->pages_offset, DIOH_PAGE_BYTES);
	}
	for (unsigned i = 0; i < layout->stream_count; i++)
		layout->streams[i].record.flags = 0;
	return check_overlap(layout, err);
}

static int check_capacity(struct dioh_image_layout *layout, struct dioh_error *err)
{
	uint64_t file_bytes;
	int r = dioh_layout_file_bytes(layout, &file_bytes, err);

	if (r == 0 && layout->image->kind == DIOH_IMAGE_BLOCK_DEVICE && layout->image_bytes > file_bytes)
		r = dioh_error_set(err, ENOSPC, PLACE(SIZE, file_bytes),
		                   "image: it needs %" PRIu64 " bytes, and the device has %" PRIu64 ": nothing was written",
		                   layout->image_bytes, file_bytes);
	layout->file_bytes_kept = file_bytes;
	return r;
}

static int raw_create(struct dioh_image_layout *layout, struct dioh_error *err)
{
	int r = check_regions(layout, err);

	if (r == 0)
		r = check_streams_apart(layout, err);
	if (r == 0)
		r = check_capacity(layout, err);
	if (r == 0 && layout->image->kind == DIOH_IMAGE_REGULAR && layout->image_bytes > layout->file_bytes_kept)
		r = dioh_image_resize(layout->image, dioh_layout_at(layout, layout->image_bytes), err);
	if (r < 0)
		return r;
	layout->state = DIOH_STATE_UNKNOWN;
	layout->extents_end = dioh_max(layout->image_bytes, layout->file_bytes_kept);
	layout->ready = layout->header_bytes == 0; /* else the header must come first: session, WRITE_HEADER */
	return 0;
}

static int raw_open(struct dioh_image_layout *layout, uint32_t flags, struct dioh_error *err)
{
	uint64_t file_bytes;
	int r = check_regions(layout, err);

	if (r == 0 && layout->region_count > 0)
		r = dioh_image_prepare_seek(layout->image, err);
	if (r == 0)
		r = dioh_layout_file_bytes(layout, &file_bytes, err);
	if (r < 0)
		return r;
	if (layout->image_bytes > file_bytes)
		return dioh_error_set(err, EBADMSG, PLACE(PARSE, file_bytes),
		                      "image: its entries reach to %" PRIu64 ", but it ends at %" PRIu64 ": truncated",
		                      layout->image_bytes, file_bytes);
	for (unsigned i = 0; i < layout->stream_count; i++) {
		struct dioh_stream_entry *entry = &layout->streams[i];
		struct dioh_record_extent *extent;

		if (entry->record.bytes == 0)
			continue;
		extent = dioh_layout_grow_extents(layout, entry, err);
		if (!extent)
			return -EFBIG;
		*extent = (struct dioh_record_extent){ .offset = entry->image_offset, .bytes = entry->record.bytes };
	}
	layout->inspect_only = flags & DIOH_OPEN_INSPECT;
	layout->ready = true;
	return 0;
}

/* ---- pages ---- */

/* So much is erased at once: a device that can only be written zeros to takes a while for it. */
#define ERASE_PAGES 16384u

/* Absent pages must read as zeros: what is not data now may have been data in an older file. */
static int raw_store_tables(struct dioh_image_layout *layout, const struct dioh_tables *tables, struct dioh_error *err)
{
	const struct dioh_record_region *record = &tables->region->record;
	const uint64_t first = tables->first_chunk * DIOH_CHUNK_BYTES;
	const unsigned pages = (unsigned)(dioh_min((uint64_t)tables->chunks * DIOH_CHUNK_BYTES, record->bytes - first) /
	                                  DIOH_PAGE_BYTES);

	for (unsigned page = 0; page < pages;) {
		unsigned same = (unsigned)dioh_min(dioh_pages_same(tables->bitmap, page, pages), ERASE_PAGES);
		uint64_t offset = record->pages_offset + first + (uint64_t)page * DIOH_PAGE_BYTES;
		bool beyond = layout->image->kind == DIOH_IMAGE_REGULAR && offset >= layout->file_bytes_kept && tables->fresh;

		if (!dioh_bit_test(tables->bitmap, page) && !beyond) {
			int r = dioh_tables_wanted(tables, err);

			if (r == 0)
				r = dioh_image_erase(layout->image, dioh_layout_at(layout, offset),
				                     (uint64_t)same * DIOH_PAGE_BYTES, err);
			if (r < 0)
				return r;
		}
		page += same;
	}
	return 0;
}

static int seek_image(struct dioh_image_layout *layout, uint64_t at, int whence, uint64_t end, uint64_t *ret,
                      struct dioh_error *err)
{
	off_t found = dioh_image_seek(layout->image, at, whence);

	if (found < 0 && errno == ENXIO)
		found = (off_t)end;
	if (found < 0)
		return dioh_error_errno(err, errno, PLACE(SEEK, at), "image: looking for data at %" PRIu64 " failed", at);
	*ret = dioh_min((uint64_t)found, end);
	return 0;
}

/* Behind its end a file has no data either: that is no absent page. */
static int check_end(struct dioh_image_layout *layout, uint64_t end, struct dioh_error *err)
{
	uint64_t file_bytes;
	int r = dioh_layout_file_bytes(layout, &file_bytes, err);

	if (r == 0 && end > file_bytes)
		r = dioh_error_set(err, EBADMSG, PLACE(READ, dioh_layout_at(layout, file_bytes)),
		                   "image: it ends at %" PRIu64 ", inside a region: it is truncated",
		                   dioh_layout_at(layout, file_bytes));
	return r;
}

/* Present is what the file has data for; everything, on a device. */
static int raw_load_tables(struct dioh_image_layout *layout, struct dioh_tables *tables, struct dioh_error *err)
{
	const struct dioh_record_region *record = &tables->region->record;
	const uint64_t first = tables->first_chunk * DIOH_CHUNK_BYTES;
	const uint64_t bytes = dioh_min((uint64_t)tables->chunks * DIOH_CHUNK_BYTES, record->bytes - first);
	const uint64_t start = dioh_layout_at(layout, record->pages_offset + first);
	uint64_t at = start;

	tables->checksums = NULL;
	memset(tables->bitmap, 0, tables->chunks * DIOH_CHUNK_BITMAP_BYTES);
	if (layout->image->kind == DIOH_IMAGE_BLOCK_DEVICE) {
		dioh_bits_fill(tables->bitmap, 0, bytes / DIOH_PAGE_BYTES, true);
		return 0;
	}
	while (at < start + bytes) {
		uint64_t data = at, hole = at;
		int r = seek_image(layout, at, SEEK_DATA, start + bytes, &data, err);

		if (r == 0)
			r = data < start + bytes ? seek_image(layout, data, SEEK_HOLE, start + bytes, &hole, err) : 0;
		if (r < 0)
			return r;
		if (data == start + bytes)
			break;
		data = dioh_align_down(data, DIOH_PAGE_BYTES);
		hole = dioh_align_up(hole, DIOH_PAGE_BYTES);
		dioh_bits_fill(tables->bitmap, (data - start) / DIOH_PAGE_BYTES, (hole - data) / DIOH_PAGE_BYTES, true);
		at = hole;
	}
	return check_end(layout, record->pages_offset + first + bytes, err);
}

/* ---- streams: one extent each, of whatever length, without checksums ---- */

/* How far a stream may reach: up to what stands behind it. */
static uint64_t stream_limit(struct dioh_image_layout *layout, const struct dioh_stream_entry *entry)
{
	uint64_t limit = DIOH_OFFSET_MAX;

	for (unsigned i = 0; i < layout->region_count; i++)
		if (layout->regions[i].record.pages_offset >= entry->image_offset)
			limit = dioh_min(limit, layout->regions[i].record.pages_offset);
	for (unsigned i = 0; i < layout->stream_count; i++)
		if (layout->streams[i].image_offset > entry->image_offset)
			limit = dioh_min(limit, layout->streams[i].image_offset);
	if (layout->image->kind == DIOH_IMAGE_BLOCK_DEVICE)
		limit = dioh_min(limit, layout->image->device_bytes -
		                                dioh_min(layout->image->base_offset, layout->image->device_bytes));
	return limit;
}

/*
 * A stream stands in one piece: what has been stored of it becomes one extent, so that their number is no limit. NULL:
 * nothing has.
 */
static const struct dioh_record_extent *join_stored(struct dioh_image_layout *layout, struct dioh_stream_entry *entry)
{
	if (entry->record.extent_count == 0)
		return NULL;
	if (entry->record.extent_count > 1) {
		entry->extents[0].bytes += entry->extents[1].bytes;
		dioh_layout_drop_extent(layout, entry);
	}
	return entry->extents;
}

static int raw_add_extent(struct dioh_image_layout *layout, struct dioh_stream_entry *entry, struct dioh_error *err)
{
	const struct dioh_record_extent *before = join_stored(layout, entry);
	uint64_t offset = before ? before->offset + before->bytes : entry->image_offset;
	/* Ends on a step, so that only a stream's first extent starts unaligned. */
	uint64_t end = dioh_min(dioh_align_up(offset + 1, STREAM_STEP_BYTES), stream_limit(layout, entry));
	struct dioh_record_extent *extent;

	if (end <= offset)
		return dioh_error_errno(err, layout->image->kind == DIOH_IMAGE_BLOCK_DEVICE ? ENOSPC : EFBIG,
		                        PLACE(WRITE, offset),
		                        "image: stream %" PRIu32 " has no room beyond %" PRIu64, entry->record.number, offset);
	/*
	 * Near a limit (RLIMIT_FSIZE) the whole step does not fit, but the stream may; and some file systems (FUSE) make files
	 * longer by writes only: these will tell.
	 */
	if (layout->image->kind == DIOH_IMAGE_REGULAR && end > layout->extents_end &&
	    dioh_image_extend(layout->image, dioh_layout_at(layout, dioh_max(offset, layout->extents_end)),
	                      dioh_layout_at(layout, end), NULL) == 0)
		layout->extents_end = end;
	extent = dioh_layout_grow_extents(layout, entry, err);
	if (!extent)
		return -EFBIG;
	extent->offset = offset;
	extent->bytes = end - offset;
	return 0;
}

static int raw_store_extent(struct dioh_image_layout *layout, const struct dioh_stream_entry *entry, unsigned index,
                            const uint32_t *checksums, struct dioh_error *err)
{
	const struct dioh_record_extent *extent = &entry->extents[index];

	(void)checksums;
	(void)err;
	layout->image_bytes = dioh_max(layout->image_bytes, extent->offset + extent->bytes);
	return 0;
}

static int raw_load_extent(struct dioh_image_layout *layout, const struct dioh_stream_entry *entry, unsigned index,
                           uint32_t *ret_checksums, struct dioh_error *err)
{
	(void)layout;
	(void)entry;
	(void)index;
	(void)ret_checksums;
	(void)err;
	return 0;
}

static int raw_commit(struct dioh_image_layout *layout, struct dioh_commit *commit, struct dioh_error *err)
{
	/* What we made longer ends where its data ends; what was longer before stays. */
	uint64_t end = dioh_max(layout->image_bytes, layout->file_bytes_kept);
	int r = 0;

	if (layout->image->kind == DIOH_IMAGE_REGULAR && layout->extents_end > end)
		r = dioh_image_resize(layout->image, dioh_layout_at(layout, end), err);
	if (r == 0)
		r = dioh_layout_commit_sync(layout, commit, err);
	if (r == 0)
		r = dioh_layout_commit_may_mark(commit, err);
	if (r == 0 && commit->patch_bytes) {
		r = dioh_layout_patch_header(layout, commit, err);
		if (r == 0)
			r = dioh_layout_commit_sync(layout, commit, err);
	}
	if (r == 0)
		r = dioh_layout_commit_sync_directory(layout, commit, err);
	return r;
}

const struct dioh_layout_ops dioh_layout_raw = {
	.id = DIOH_LAYOUT_RAW,
	.create = raw_create,
	.open = raw_open,
	.store_tables = raw_store_tables,
	.load_tables = raw_load_tables,
	.add_extent = raw_add_extent,
	.store_extent = raw_store_extent,
	.load_extent = raw_load_extent,
	.commit = raw_commit,
};
