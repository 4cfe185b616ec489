/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * fuzz_image.h - opening a hostile image, as fuzz_container.c and fuzz_mapped_ram.c do: the layout's own code of the
 * helper, on a file, without a session. An input is a byte of choices, and then changes to a good image (inside.h).
 *
 * What opens must be sound: names, sizes and places within their limits, tables to be read to their ends; an error must say
 * where and what.
 */
#ifndef DIOH_FUZZ_IMAGE_H
#define DIOH_FUZZ_IMAGE_H

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "align.h"
#include "fuzz.h"
#include "inside.h"
#include "layout.h"
#include "pages.h"

enum fuzz_image_choice {
	CHOICE_INSPECT = 1, /* OPEN_IMAGE's flags */
	CHOICE_ACCEPT_WRITTEN = 2,
	CHOICE_RESEAL = 4, /* CRCs are put right behind the changes */
	CHOICE_OTHER = 8,  /* the harness's own */
};

static inline uint32_t fuzz_open_flags(uint8_t choices)
{
	return (choices & CHOICE_INSPECT ? (uint32_t)DIOH_OPEN_INSPECT : 0) |
	       (choices & CHOICE_ACCEPT_WRITTEN ? (uint32_t)DIOH_OPEN_ACCEPT_WRITTEN : 0);
}

static inline void fuzz_check_error(int r, const struct dioh_error *err)
{
	CHECK(err->code == -r && err->text[0] != '\0' && memchr(err->text, 0, sizeof(err->text)));
	CHECK(err->object == DIOH_OBJECT_IMAGE || err->object == DIOH_OBJECT_REGION);
}

static inline void fuzz_check_entry(const struct dioh_image_layout *layout, const struct dioh_msg_entry *entry)
{
	CHECK(memchr(entry->name, 0, sizeof(entry->name)));
	CHECK(entry->kind == DIOH_ENTRY_REGION || entry->kind == DIOH_ENTRY_STREAM);
	CHECK(entry->image_offset <= DIOH_OFFSET_MAX);
	if (entry->kind == DIOH_ENTRY_STREAM)
		return;
	CHECK(entry->bytes > 0 && entry->bytes % DIOH_PAGE_BYTES == 0 && entry->bytes <= DIOH_REGION_BYTES_MAX);
	CHECK(entry->present_bytes <= entry->bytes);
	CHECK(layout->state == DIOH_STATE_PARTIAL || layout->inspect_only || entry->image_offset <= layout->image_bytes);
}

/* Chunks at both ends of a region, as a load asks for them: bits behind its last page are clear. */
static inline void fuzz_load_tables(struct dioh_image_layout *layout, struct dioh_region *region)
{
	const uint64_t chunks = dioh_div_up(region->record.bytes, DIOH_CHUNK_BYTES);
	uint8_t bitmap[2 * DIOH_CHUNK_BITMAP_BYTES];
	uint32_t checksums[2];
	const uint64_t firsts[] = { 0, chunks > 2 ? chunks - 2 : 0 };

	for (unsigned i = 0; i < 2; i++) {
		struct dioh_tables tables = { .region = region, .first_chunk = firsts[i],
			                      .chunks = (unsigned)dioh_min(2, chunks), .bitmap = bitmap,
			                      .checksums = region->record.flags & DIOH_REGION_CHECKSUMS ? checksums : NULL };
		struct dioh_error err = { 0 };
		int r = layout->ops->load_tables(layout, &tables, &err);

		if (r < 0)
			fuzz_check_error(r, &err);
	}
}

static inline void fuzz_load_extents(struct dioh_image_layout *layout, const struct dioh_stream_entry *entry)
{
	static uint32_t checksums[DIOH_EXTENT_BYTES_MAX / DIOH_CHUNK_BYTES];

	for (unsigned i = 0; i < entry->record.extent_count; i++) {
		struct dioh_error err = { 0 };
		int r;

		CHECK(entry->extents[i].bytes <= DIOH_EXTENT_BYTES_MAX);
		r = layout->ops->load_extent(layout, entry, i, checksums, &err);
		if (r < 0)
			fuzz_check_error(r, &err);
	}
}

static inline void fuzz_check_layout(struct dioh_image_layout *layout)
{
	const unsigned count = layout->region_count + layout->stream_count;
	static uint8_t header[DIOH_PAYLOAD_BYTES_MAX];
	struct dioh_msg_entry entry;
	struct dioh_error err = { 0 };
	uint64_t got;

	CHECK(layout->ready && layout->region_count <= DIOH_REGIONS_MAX && layout->stream_count <= DIOH_STREAMS_MAX);
	for (unsigned i = 0; i < count; i++) {
		CHECK(dioh_layout_get(layout, i, &entry));
		fuzz_check_entry(layout, &entry);
	}
	CHECK(!dioh_layout_get(layout, count, &entry));
	if (dioh_layout_read_header(layout, header, 0, sizeof(header), &got, &err) == 0)
		CHECK(got <= sizeof(header));
	if (layout->inspect_only) /* nothing is loaded then */
		return;
	CHECK(layout->state != DIOH_STATE_PARTIAL); /* QEMU's own keep none */
	for (unsigned i = 0; i < layout->region_count; i++)
		fuzz_load_tables(layout, &layout->regions[i]);
	for (unsigned i = 0; i < layout->stream_count; i++)
		fuzz_load_extents(layout, &layout->streams[i]);
}

/* One opening, with a table of one entry or none. Answers open's result. */
static inline int fuzz_open(int fd, uint32_t id, uint32_t flags, const struct dioh_msg_entry *wanted)
{
	const atomic_bool abandoned = false;
	struct dioh_image image;
	struct dioh_image_layout layout = { .image = &image, .abandoned = &abandoned };
	struct dioh_error err = { 0 };
	int r = 0;

	dioh_image_init(&image);
	image.header_fd = image.page_fd = fd;
	image.direction = DIOH_DIRECTION_LOAD;
	image.kind = DIOH_IMAGE_REGULAR;
	image.readable = true;
	if (id == DIOH_LAYOUT_DETECT)
		r = dioh_layout_detect(&image, &id, &err);
	layout.ops = dioh_layout_find(id);
	CHECK(r < 0 || layout.ops);
	if (r == 0)
		r = dioh_layout_allocate(&layout, wanted ? 1 : 0, 0, &err);
	if (r == 0 && wanted)
		r = dioh_layout_put(&layout, wanted, 1, &err);
	if (r == 0)
		r = layout.ops->open(&layout, flags, &err);
	if (r < 0)
		fuzz_check_error(r, &err);
	else
		fuzz_check_layout(&layout);
	dioh_layout_free(&layout);
	return r;
}

#endif
