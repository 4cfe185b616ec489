/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * layout_mapped_ram.c - an image that a stock QEMU restores: QEMU's own format, its setup made anew from what the stream
 * said, memory saved in place like any region's, the device state behind it; the integrity record in the first gap. QEMU's
 * magic is missing until everything else is durable. Opening one is in layout_mapped_ram_open.c.
 */
#include "layout_mapped_ram.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "align.h"
#include "cleanup.h"
#include "layout_record.h"
#include "pages.h"

#define PLACE(op, offset) DIOH_PLACE(op, IMAGE, 0, offset)

#define QEMU_MAGIC_BYTES 4u
/* Longest extent of the setup: what dioh_mapped_ram_put_extent() may need. */
#define SETUP_EXTENT_BYTES_MAX                                                                                         \
	(DIOH_QEMU_CONFIGURATION_BYTES_MAX + 64 + DIOH_QEMU_RAM_START_BYTES + DIOH_QEMU_BLOCK_BYTES_MAX)

/* ---- the setup ---- */

void dioh_mapped_ram_free(struct dioh_mapped_ram *mapped_ram)
{
	if (!mapped_ram)
		return;
	dioh_qemu_source_close(&mapped_ram->source);
	dioh_qemu_parser_free(mapped_ram->image);
	free(mapped_ram->setup.blocks);
	free(mapped_ram);
}

uint8_t *dioh_mapped_ram_take_input(struct dioh_image_layout *layout, size_t *ret_bytes)
{
	struct dioh_qemu_source *source = &layout->mapped_ram->source;
	uint8_t *input = source->input;

	*ret_bytes = source->filled;
	source->input = NULL;
	return input;
}

int dioh_mapped_ram_take_setup(struct dioh_mapped_ram *mapped_ram, const struct dioh_qemu_setup *setup,
                               struct dioh_error *err)
{
	struct dioh_qemu_block *blocks = calloc(setup->block_count, sizeof(*blocks));

	if (!blocks)
		return dioh_error_errno(err, ENOMEM, PLACE(NONE, DIOH_OFFSET_NONE), "image: room for its blocks");
	memcpy(blocks, setup->blocks, setup->block_count * sizeof(*blocks));
	mapped_ram->setup = *setup;
	mapped_ram->setup.blocks = blocks;
	return 0;
}

static int check_readable(const struct dioh_image_layout *layout, struct dioh_error *err)
{
	if (layout->image->readable)
		return 0;
	return dioh_error_set(err, EBADF, PLACE(ATTACH, DIOH_OFFSET_NONE),
	                      "image: its descriptor is write-only; mapped-ram also needs reading (O_RDWR)");
}

/* Waits for the stream: nothing of the image is touched before its setup has been understood. */
static int mapped_ram_prepare(struct dioh_image_layout *layout, struct dioh_error *err)
{
	struct dioh_mapped_ram *mapped_ram;
	int r = check_readable(layout, err);

	if (r < 0)
		return r;
	mapped_ram = layout->mapped_ram = calloc(1, sizeof(*mapped_ram));
	if (!mapped_ram)
		return dioh_error_errno(err, ENOMEM, PLACE(NONE, DIOH_OFFSET_NONE), "image: room for its layout");
	r = dioh_qemu_source_open(&mapped_ram->source, layout->device_state.channels > 0, err);
	if (r == 0)
		r = dioh_qemu_source_read_setup(&mapped_ram->source, layout, err);
	if (r == 0)
		r = dioh_mapped_ram_take_setup(mapped_ram, dioh_qemu_parser_setup(mapped_ram->source.parser), err);
	return r;
}

/* ---- the manager's table and QEMU's blocks ---- */

static const struct dioh_region *find_put(const struct dioh_region *put, unsigned count, const char *name)
{
	for (unsigned i = 0; i < count; i++)
		if (strcmp(put[i].record.name, name) == 0)
			return &put[i];
	return NULL;
}

static int check_put_known(const struct dioh_mapped_ram *mapped_ram, const struct dioh_region *put, unsigned count,
                           struct dioh_error *err)
{
	for (unsigned i = 0; i < count; i++) {
		unsigned k = 0;

		while (k < mapped_ram->setup.block_count &&
		       strcmp(mapped_ram->setup.blocks[k].name, put[i].record.name) != 0)
			k++;
		if (k == mapped_ram->setup.block_count)
			return dioh_error_set(err, ENOENT, DIOH_PLACE(PARSE, REGION, put[i].record.number, DIOH_OFFSET_NONE),
			                      "region %" PRIu32 ": QEMU has no RAM block \"%.100s\"", put[i].record.number,
			                      put[i].record.name);
	}
	return 0;
}

static int match_put(struct dioh_record_region *record, const struct dioh_record_region *put, struct dioh_error *err)
{
	record->number = put->number;
	record->flags &= ~(uint32_t)DIOH_REGION_IN_STREAM;
	if (put->bytes != record->bytes)
		return dioh_error_set(err, EINVAL, DIOH_PLACE(PARSE, REGION, put->number, DIOH_OFFSET_NONE),
		                      "region %" PRIu32 " \"%.64s\": it is to have %" PRIu64 " bytes, and QEMU's block has %" PRIu64,
		                      put->number, put->name, put->bytes, record->bytes);
	if (!(put->flags & DIOH_REGION_GUEST_ADDRESS))
		return 0;
	if (record->flags & DIOH_REGION_GUEST_ADDRESS && record->guest_address != put->guest_address)
		return dioh_error_set(err, EINVAL, DIOH_PLACE(PARSE, REGION, put->number, DIOH_OFFSET_NONE),
		                      "region %" PRIu32 " \"%.64s\": it is to stand at guest address %" PRIu64
		                      ", and QEMU's block is at %" PRIu64, put->number, put->name, put->guest_address,
		                      record->guest_address);
	record->flags |= DIOH_REGION_GUEST_ADDRESS;
	record->guest_address = put->guest_address;
	return 0;
}

static bool number_put(const struct dioh_region *put, unsigned count, uint32_t number)
{
	for (unsigned i = 0; i < count; i++)
		if (put[i].record.number == number)
			return true;
	return false;
}

int dioh_mapped_ram_adopt_table(struct dioh_image_layout *layout, struct dioh_error *err)
{
	const struct dioh_mapped_ram *mapped_ram = layout->mapped_ram;
	const unsigned put_count = layout->regions_put;
	DIOH_AUTO_FREE struct dioh_region *put = layout->regions;
	uint32_t next_number = 0;
	int r;

	layout->regions = calloc(mapped_ram->setup.block_count + 1, sizeof(*layout->regions));
	layout->region_count = layout->regions_put = 0;
	if (!layout->regions)
		return dioh_error_errno(err, ENOMEM, PLACE(NONE, DIOH_OFFSET_NONE), "image: room for its tables");
	layout->region_count = layout->regions_put = mapped_ram->setup.block_count;
	r = check_put_known(mapped_ram, put, put_count, err);
	for (unsigned i = 0; i < layout->region_count && r == 0; i++) {
		const struct dioh_qemu_block *block = &mapped_ram->setup.blocks[i];
		const struct dioh_region *mine = find_put(put, put_count, block->name);
		struct dioh_record_region *record = &layout->regions[i].record;

		memcpy(record->name, block->name, sizeof(record->name));
		record->bytes = block->bytes;
		record->flags = DIOH_REGION_IN_STREAM | DIOH_REGION_CHECKSUMS;
		if (mapped_ram->setup.capabilities & DIOH_QEMU_IGNORE_SHARED) {
			record->flags |= DIOH_REGION_GUEST_ADDRESS;
			record->guest_address = block->guest_address;
		}
		if (mine) {
			r = match_put(record, &mine->record, err);
			continue;
		}
		while (number_put(put, put_count, next_number))
			next_number++;
		record->number = next_number++;
	}
	return r;
}

int dioh_mapped_ram_check_in_stream(const struct dioh_image_layout *layout, unsigned block, uint32_t number,
                                    uint64_t offset, struct dioh_error *err)
{
	const struct dioh_record_region *record = &layout->regions[block].record;

	if (record->flags & DIOH_REGION_IN_STREAM)
		return 0;
	return dioh_error_set(err, EBADMSG, DIOH_PLACE(PARSE, STREAM, number, offset),
	                      "stream %" PRIu32 ": it brings pages of block \"%.64s\", which is to be saved from a memory: QEMU "
	                      "leaves out only shared memory of a named file", number, record->name);
}

/* ---- create ---- */

static int check_ignores_shared(const struct dioh_image_layout *layout, struct dioh_error *err)
{
	if (layout->regions_put == 0 || layout->mapped_ram->setup.capabilities & DIOH_QEMU_IGNORE_SHARED)
		return 0;
	return dioh_error_set(err, EINVAL, DIOH_PLACE(PARSE, STREAM, layout->device_state.stream, DIOH_OFFSET_NONE),
	                      "stream %" PRIu32 ": it brings all memory itself: capability x-ignore-shared is off, so no region "
	                      "can be saved from a memory", layout->device_state.stream);
}

static int adopt_plan(struct dioh_image_layout *layout, const struct dioh_record_region *regions,
                      const struct dioh_record_extent *extents, struct dioh_error *err)
{
	for (unsigned i = 0; i < layout->region_count; i++) {
		struct dioh_record_extent *extent = dioh_layout_grow_extents(layout, &layout->streams[0], err);

		if (!extent)
			return -EFBIG;
		*extent = extents[i];
		layout->regions[i].record = regions[i];
	}
	layout->mapped_ram->tail_first = layout->region_count;
	layout->record_offset = layout->mapped_ram->plan.record_offset;
	layout->header_offset = 0;
	layout->image_bytes = layout->head.image_bytes;
	layout->extents_end = layout->mapped_ram->plan.tail_offset;
	/* Their table is written by the commit: before it a head that names them would speak of what is not there. */
	layout->head.extent_count = 0;
	layout->head.extents.bytes = 0;
	return 0;
}

static int plan(struct dioh_image_layout *layout, struct dioh_error *err)
{
	struct dioh_mapped_ram *mapped_ram = layout->mapped_ram;
	const unsigned count = layout->region_count;
	DIOH_AUTO_FREE struct dioh_record_region *regions = calloc(count, sizeof(*regions));
	DIOH_AUTO_FREE struct dioh_record_extent *extents = calloc(count, sizeof(*extents));
	int r;

	if (!regions || !extents)
		return dioh_error_errno(err, ENOMEM, PLACE(NONE, DIOH_OFFSET_NONE), "image: room for its tables");
	for (unsigned i = 0; i < count; i++)
		regions[i] = layout->regions[i].record;
	r = dioh_mapped_ram_plan(&mapped_ram->setup, layout->image->base_offset, layout->header_bytes, &layout->head, regions,
	                         extents, &mapped_ram->plan, err);
	mapped_ram->stream_offset = layout->header_bytes;
	return r < 0 ? r : adopt_plan(layout, regions, extents, err);
}

static int preflight(struct dioh_image_layout *layout, struct dioh_error *err)
{
	uint64_t needed = layout->regions[0].record.pages_offset;

	if (layout->image->kind == DIOH_IMAGE_BLOCK_DEVICE)
		needed = layout->image_bytes + DIOH_PAGE_BYTES; /* device state there will be */
	return dioh_layout_check_room(layout, needed, err);
}

/* Bitmaps, tables and checksums must read as zeros until they are stored. */
static int clear(struct dioh_image_layout *layout, struct dioh_error *err)
{
	struct dioh_image *image = layout->image;
	int r;

	if (image->kind == DIOH_IMAGE_REGULAR) {
		r = dioh_image_resize(image, dioh_layout_at(layout, 0), err);
		return r < 0 ? r : dioh_image_resize(image, dioh_layout_at(layout, layout->image_bytes), err);
	}
	r = dioh_image_write_zeros(image, dioh_layout_at(layout, 0), layout->regions[0].record.pages_offset, err);
	for (unsigned i = 1; i < layout->region_count && r == 0; i++) {
		const struct dioh_record_area *bitmap = &layout->regions[i].record.bitmap;

		r = dioh_image_write_zeros(image, dioh_layout_at(layout, bitmap->offset), bitmap->bytes, err);
	}
	return r;
}

/*
 * What is known of a region is what will have come. Its pages are absent by that, whatever stands there: where there are holes
 * their room is given back; zeros, which could be tens of GiB, are not written.
 */
static int forget(struct dioh_image_layout *layout, const struct dioh_record_region *record, struct dioh_error *err)
{
	struct dioh_image *image = layout->image;
	int r = dioh_image_write_zeros(image, dioh_layout_at(layout, record->bitmap.offset), record->bitmap.bytes, err);

	if (r == 0)
		r = dioh_image_write_zeros(image, dioh_layout_at(layout, record->checksums.offset), record->checksums.bytes, err);
	if (r == 0)
		r = dioh_image_punch(image, dioh_layout_at(layout, record->pages_offset), record->bytes, err);
	return r;
}

/* Pages of the regions in the stream come anew. */
static int forget_streamed(struct dioh_image_layout *layout, struct dioh_error *err)
{
	int r = 0;

	for (unsigned i = 0; i < layout->region_count && r == 0; i++)
		if (layout->regions[i].record.flags & DIOH_REGION_IN_STREAM)
			r = forget(layout, &layout->regions[i].record, err);
	return r;
}

/* What is continued loses its manager's mark, which comes again with the header, and then QEMU's, if it had come so far. */
static int keep(struct dioh_image_layout *layout, struct dioh_error *err)
{
	static const uint8_t none[QEMU_MAGIC_BYTES];
	int r = dioh_record_check_kept(layout, err);

	if (r == 0 && layout->header_bytes > 0)
		r = dioh_layout_take_mark(layout, 0, err);
	if (r == 0)
		r = dioh_image_pwrite(layout->image, none, sizeof(none),
		                      dioh_layout_at(layout, layout->mapped_ram->stream_offset), err);
	if (r == 0)
		r = dioh_record_write_head(layout, DIOH_STATE_PARTIAL, err);
	if (r == 0)
		r = dioh_image_sync(layout->image, err);
	if (r == 0)
		r = forget_streamed(layout, err);
	if (r == 0 && layout->image->kind == DIOH_IMAGE_REGULAR)
		r = dioh_image_resize(layout->image, dioh_layout_at(layout, layout->image_bytes), err);
	return r;
}

static int write_setup_extent(struct dioh_image_layout *layout, unsigned index, uint8_t *bytes, struct dioh_error *err)
{
	const struct dioh_record_extent *extent = &layout->streams[0].extents[index];
	uint32_t checksum;
	size_t count = dioh_mapped_ram_put_extent(bytes, &layout->mapped_ram->setup, index);
	int r;

	checksum = dioh_crc32c(0, bytes, count);
	r = dioh_record_store_extent(layout, &layout->streams[0], index, &checksum, err);
	if (index == 0) /* not an image of QEMU's before the commit says so */
		memset(bytes, 0, QEMU_MAGIC_BYTES);
	return r < 0 ? r : dioh_image_pwrite(layout->image, bytes, count, dioh_layout_at(layout, extent->offset), err);
}

/* The tail begins with it, and brings it again. Until then a partial image can be parsed, and looked at. */
static int write_setup_end(struct dioh_image_layout *layout, uint8_t *bytes, struct dioh_error *err)
{
	const size_t count = dioh_qemu_put_section_end(bytes, &layout->mapped_ram->setup);

	return dioh_image_pwrite(layout->image, bytes, count, dioh_layout_at(layout, layout->mapped_ram->plan.tail_offset),
	                         err);
}

static int write_setup(struct dioh_image_layout *layout, struct dioh_error *err)
{
	DIOH_AUTO_FREE uint8_t *bytes = malloc(SETUP_EXTENT_BYTES_MAX);
	uint32_t crc;
	int r = bytes ? 0 : dioh_error_errno(err, ENOMEM, PLACE(WRITE, DIOH_OFFSET_NONE), "image: room for its setup");

	for (unsigned i = 0; i < layout->region_count && r == 0; i++)
		r = write_setup_extent(layout, i, bytes, err);
	if (r == 0)
		r = write_setup_end(layout, bytes, err);
	if (r == 0)
		r = dioh_record_write_regions(layout, &crc, err);
	if (r == 0)
		r = dioh_record_write_streams(layout, &crc, err);
	return r;
}

/*
 * Who does not look at the manager's header takes what begins with QEMU's magic for an image: that is taken away, too, before
 * anything else may be there in part.
 */
static int invalidate(struct dioh_image_layout *layout, struct dioh_error *err)
{
	uint64_t file_bytes = 0;
	int r = dioh_layout_invalidate(layout, err);

	if (r == 0)
		r = dioh_layout_file_bytes(layout, &file_bytes, err);
	if (r < 0 || layout->header_bytes == 0 || file_bytes <= layout->header_bytes)
		return r;
	return dioh_layout_take_mark(layout, layout->mapped_ram->stream_offset, err);
}

static int mapped_ram_create(struct dioh_image_layout *layout, struct dioh_error *err)
{
	int r = check_ignores_shared(layout, err);

	if (r == 0)
		r = dioh_mapped_ram_adopt_table(layout, err);
	if (r == 0)
		r = plan(layout, err);
	if (r == 0)
		r = preflight(layout, err);
	if (r == 0 && layout->kept)
		r = keep(layout, err);
	if (r == 0 && !layout->kept)
		r = invalidate(layout, err);
	if (r == 0 && !layout->kept)
		r = clear(layout, err);
	if (r == 0)
		r = write_setup(layout, err);
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

/* ---- the tail ---- */

static uint64_t tail_room(const struct dioh_image_layout *layout)
{
	const struct dioh_image *image = layout->image;
	uint64_t capacity = image->device_bytes - dioh_min(image->base_offset, image->device_bytes);

	if (image->kind != DIOH_IMAGE_BLOCK_DEVICE)
		return DIOH_EXTENT_BYTES_MAX;
	return dioh_min(DIOH_EXTENT_BYTES_MAX, capacity - dioh_min(layout->extents_end, capacity));
}

static int mapped_ram_add_extent(struct dioh_image_layout *layout, struct dioh_stream_entry *entry,
                                 struct dioh_error *err)
{
	const unsigned index = entry->record.extent_count - layout->mapped_ram->tail_first;
	const uint64_t room = tail_room(layout);
	struct dioh_record_extent *extent;

	if (room == 0)
		return dioh_error_errno(err, ENOSPC, PLACE(WRITE, layout->extents_end), "image: no room for more device state");
	if (index == DIOH_MAPPED_RAM_TAIL_EXTENTS_MAX)
		return dioh_error_set(err, EFBIG, PLACE(WRITE, layout->extents_end),
		                      "image: more than %" PRIu64 " bytes of device state",
		                      layout->extents_end - layout->mapped_ram->plan.tail_offset);
	extent = dioh_layout_grow_extents(layout, entry, err);
	if (!extent)
		return -EFBIG;
	dioh_mapped_ram_place_tail(&layout->mapped_ram->plan, index, layout->extents_end, room, extent);
	layout->extents_end += room;
	return 0;
}

/* ---- commit ---- */

static int write_magic(struct dioh_image_layout *layout, struct dioh_error *err)
{
	static const uint8_t magic[QEMU_MAGIC_BYTES] = "QEVM";

	return dioh_image_pwrite(layout->image, magic, sizeof(magic),
	                         dioh_layout_at(layout, layout->mapped_ram->stream_offset), err);
}

/* Each mark is durable before the next one speaks of what stands behind it. */
static int mapped_ram_commit(struct dioh_image_layout *layout, struct dioh_commit *commit, struct dioh_error *err)
{
	const bool written = commit->mode == DIOH_FINISH_WRITTEN;
	int r = dioh_record_check_ours(layout, err);

	if (r == 0)
		r = dioh_record_write_tables(layout, err);
	if (r == 0 && layout->image->kind == DIOH_IMAGE_REGULAR)
		r = dioh_image_resize(layout->image, dioh_layout_at(layout, layout->head.image_bytes), err);
	if (r == 0)
		r = dioh_layout_commit_sync(layout, commit, err);
	if (r == 0)
		r = dioh_layout_commit_may_mark(commit, err);
	if (r == 0)
		r = dioh_record_write_head(layout, written ? DIOH_STATE_WRITTEN : DIOH_STATE_COMPLETE, err);
	if (r == 0)
		r = dioh_layout_commit_sync(layout, commit, err);
	if (r == 0)
		r = write_magic(layout, err);
	if (r == 0 && commit->patch_bytes > 0)
		r = dioh_layout_commit_sync(layout, commit, err);
	if (r == 0)
		r = dioh_layout_patch_header(layout, commit, err);
	if (r == 0)
		r = dioh_layout_commit_sync(layout, commit, err);
	if (r == 0)
		r = dioh_layout_commit_sync_directory(layout, commit, err);
	return r;
}

const struct dioh_layout_ops dioh_layout_mapped_ram = {
	.id = DIOH_LAYOUT_MAPPED_RAM,
	.starts_absent = true,
	.is_qemus = true,
	.prepare = mapped_ram_prepare,
	.create = mapped_ram_create,
	.open = dioh_mapped_ram_open,
	.store_tables = dioh_record_store_tables,
	.load_tables = dioh_mapped_ram_load_tables,
	.add_extent = mapped_ram_add_extent,
	.store_extent = dioh_record_store_extent,
	.load_extent = dioh_record_load_extent,
	.check_unchanged = dioh_mapped_ram_check_unchanged,
	.commit = mapped_ram_commit,
};
