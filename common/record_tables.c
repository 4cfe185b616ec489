/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * record_tables.c - checking the tables of an integrity record against its head.
 *
 * Entries first, each on its own; then no two of a kind alike; then no two stretches of the image on top of
 * each other. Owns nothing but memory for the last; trusts a head that has passed dioh_record_check_head()
 * and nothing else. Called as record.c is.
 */
#include "record.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "align.h"
#include "cleanup.h"
#include "record_span.h"

/* ---- entries ------------------------------------------------------------------------------------- */

/* What regions and streams have in common. Goes first: only then is the name fit for a label. */
static int check_entry(const struct tables *tables, const struct table *table, uint32_t i,
                       struct dioh_error *err)
{
	const char *name = dioh_record_entry_name(table, i);
	uint32_t unknown = dioh_record_entry_u32(table, i, table->flags_at) & ~table->flags_known;
	const uint8_t *entry = &table->entries[i * table->entry_bytes];

	if (memchr(name, '\0', DIOH_NAME_BYTES) == NULL)
		return REFUSE(err, -EBADMSG, dioh_record_entry_at(table, i, table->name_at),
		              "%s table, entry %" PRIu32 ": its name has no end", table->noun, i);
	if (name[0] == '\0')
		return REFUSE(err, -EBADMSG, dioh_record_entry_at(table, i, table->name_at),
		              "%s table, entry %" PRIu32 ": its name is empty", table->noun, i);
	if (unknown != 0)
		return REFUSE(err, -EBADMSG, dioh_record_entry_at(table, i, table->flags_at),
		              "%s: unknown flags 0x%" PRIx32, dioh_record_label_entry(table, i).text, unknown);
	if (!dioh_record_reserved_ok(tables->head, &entry[table->reserved_at],
	                 table->entry_bytes - table->reserved_at))
		return REFUSE(err, -EBADMSG, dioh_record_entry_at(table, i, table->reserved_at),
		              "%s: reserved bytes are not zero", dioh_record_label_entry(table, i).text);
	return 0;
}

static int check_region_bytes(const struct tables *tables, uint32_t i, struct dioh_error *err)
{
	const struct table *table = &tables->region_table;
	uint64_t bytes = tables->regions[i].bytes;
	uint64_t present_pages = tables->regions[i].present_pages;

	if (bytes == 0 || bytes > DIOH_REGION_BYTES_MAX || !dioh_is_aligned(bytes, DIOH_PAGE_BYTES))
		return REFUSE(err, -EBADMSG, dioh_record_entry_at(table, i, REGION_AT(bytes)),
		              "%s: its size %" PRIu64 " is not 1 to %" PRIu64 " pages of %u bytes",
		              dioh_record_label_entry(table, i).text, bytes,
		              DIOH_REGION_BYTES_MAX / DIOH_PAGE_BYTES, DIOH_PAGE_BYTES);
	if (present_pages > bytes / DIOH_PAGE_BYTES)
		return REFUSE(err, -EBADMSG, dioh_record_entry_at(table, i, REGION_AT(present_pages)),
		              "%s: %" PRIu64 " present pages are more than it has, %" PRIu64,
		              dioh_record_label_entry(table, i).text, present_pages, bytes / DIOH_PAGE_BYTES);
	return 0;
}

static int check_region(const struct tables *tables, uint32_t i, struct dioh_error *err)
{
	const struct dioh_record_region *region = &tables->regions[i];
	const struct span pages = { SPAN_PAGES, i, region->pages_offset, region->bytes };
	int r;

	r = check_entry(tables, &tables->region_table, i, err);
	if (r < 0)
		return r;
	r = check_region_bytes(tables, i, err);
	if (r < 0)
		return r;
	r = dioh_record_check_area(tables, SPAN_BITMAP, i, &region->bitmap,
	                           dioh_record_bitmap_bytes(region->bytes), err);
	if (r < 0)
		return r;
	r = dioh_record_check_area(tables, SPAN_CHECKSUMS, i, &region->checksums,
	                           dioh_record_checksums_bytes(region->bytes), err);
	if (r < 0)
		return r;
	return dioh_record_check_span(tables, &pages, err);
}

static int check_extent(const struct tables *tables, uint32_t i, struct dioh_error *err)
{
	const struct dioh_record_extent *extent = &tables->extents[i];
	const struct span data = { SPAN_EXTENT, i, extent->offset, extent->bytes };
	int r;

	if (extent->bytes == 0 || extent->bytes > DIOH_EXTENT_BYTES_MAX)
		return REFUSE(err, -EBADMSG, dioh_record_extent_at(tables, i, EXTENT_AT(bytes)),
		              "extent %" PRIu32 ": its size %" PRIu64 " is not within 1 and %" PRIu64,
		              i, extent->bytes, DIOH_EXTENT_BYTES_MAX);
	r = dioh_record_check_area(tables, SPAN_EXTENT_CHECKSUMS, i, &extent->checksums,
	                           dioh_record_checksums_bytes(extent->bytes), err);
	if (r < 0)
		return r;
	return dioh_record_check_span(tables, &data, err);
}

/* The stream's extents, which the head's table has. `used`: those that belong to some stream already. */
static int check_stream_extents(const struct tables *tables, uint32_t i, bool *used,
                                struct dioh_error *err)
{
	const struct dioh_record_stream *stream = &tables->streams[i];
	const struct table *table = &tables->stream_table;
	uint32_t end = stream->first_extent + stream->extent_count;
	uint32_t unit = tables->rules->extent_unit;
	uint64_t bytes = 0;

	for (uint32_t e = stream->first_extent; e < end; e++) {
		if (used[e])
			return REFUSE(err, -EBADMSG,
			              dioh_record_entry_at(table, i, STREAM_AT(first_extent)),
			              "%s: extent %" PRIu32 " belongs to another stream as well",
			              dioh_record_label_entry(table, i).text, e);
		used[e] = true;
		if (e + 1 < end && !dioh_is_aligned(tables->extents[e].bytes, unit))
			return REFUSE(err, -EBADMSG, dioh_record_extent_at(tables, e, EXTENT_AT(bytes)),
			              "%s: extent %" PRIu32 " is not its last, but its %" PRIu64
			              " bytes are no multiple of %" PRIu32,
			              dioh_record_label_entry(table, i).text, e,
			              tables->extents[e].bytes, unit);
		bytes += tables->extents[e].bytes;
	}
	if (bytes != stream->bytes)
		return REFUSE(err, -EBADMSG, dioh_record_entry_at(table, i, STREAM_AT(bytes)),
		              "%s: its extents hold %" PRIu64 " bytes, not %" PRIu64,
		              dioh_record_label_entry(table, i).text, bytes, stream->bytes);
	return 0;
}

static int check_stream(const struct tables *tables, uint32_t i, bool *used, struct dioh_error *err)
{
	const struct dioh_record_stream *stream = &tables->streams[i];
	const struct table *table = &tables->stream_table;
	uint32_t extent_count = tables->head->extent_count;
	int r;

	r = check_entry(tables, table, i, err);
	if (r < 0)
		return r;
	if (!dioh_range_ok(stream->first_extent, stream->extent_count, extent_count))
		return REFUSE(err, -EBADMSG, dioh_record_entry_at(table, i, STREAM_AT(first_extent)),
		              "%s: its %" PRIu32 " extents from %" PRIu32 " on lie outside the table"
		              " of %" PRIu32, dioh_record_label_entry(table, i).text,
		              stream->extent_count, stream->first_extent, extent_count);
	return check_stream_extents(tables, i, used, err);
}

/* Each is within its limit: the sum does not wrap. */
static int check_memory(const struct tables *tables, struct dioh_error *err)
{
	uint64_t bytes = 0;

	for (uint32_t i = 0; i < tables->head->region_count; i++)
		bytes += tables->regions[i].bytes;
	if (bytes > DIOH_MEMORY_BYTES_MAX)
		return REFUSE(err, -EBADMSG, tables->head->regions.offset,
		              "its regions have %" PRIu64 " bytes together, which are more than %" PRIu64, bytes,
		              DIOH_MEMORY_BYTES_MAX);
	return 0;
}

static int check_entries(const struct tables *tables, struct dioh_error *err)
{
	const struct dioh_record_head *head = tables->head;
	bool used[DIOH_EXTENTS_MAX] = { false };
	int r = 0;

	for (uint32_t i = 0; i < head->region_count && r == 0; i++)
		r = check_region(tables, i, err);
	if (r == 0)
		r = check_memory(tables, err);
	for (uint32_t i = 0; i < head->extent_count && r == 0; i++)
		r = check_extent(tables, i, err);
	for (uint32_t i = 0; i < head->stream_count && r == 0; i++)
		r = check_stream(tables, i, used, err);
	for (uint32_t i = 0; i < head->extent_count && r == 0; i++)
		if (!used[i])
			r = REFUSE(err, -EBADMSG, dioh_record_extent_at(tables, i, 0),
			           "extent %" PRIu32 " belongs to no stream", i);
	return r;
}

/* ---- no two entries alike ------------------------------------------------------------------------ */

struct key {
	const char *name;
	uint32_t number;
	uint32_t index;
};

/* Equals by index, so that the same image always gets the same sentence. */
static int by_number(const void *one, const void *other)
{
	const struct key *a = one, *b = other;

	if (a->number != b->number)
		return a->number < b->number ? -1 : 1;
	return (a->index > b->index) - (a->index < b->index);
}

static int by_name(const void *one, const void *other)
{
	const struct key *a = one, *b = other;
	int order = strcmp(a->name, b->name);

	return order != 0 ? order : (a->index > b->index) - (a->index < b->index);
}

static int check_unique(const struct table *table, struct dioh_error *err)
{
	struct key keys[DIOH_REGIONS_MAX]; /* streams are fewer */

	for (uint32_t i = 0; i < table->count; i++) {
		keys[i].name = dioh_record_entry_name(table, i);
		keys[i].number = dioh_record_entry_u32(table, i, table->number_at);
		keys[i].index = i;
	}

	qsort(keys, table->count, sizeof(keys[0]), by_number);
	for (uint32_t i = 1; i < table->count; i++)
		if (keys[i].number == keys[i - 1].number)
			return REFUSE(err, -EBADMSG,
			              dioh_record_entry_at(table, keys[i].index, table->number_at),
			              "%s: entry %" PRIu32 " of the table has the same number",
			              dioh_record_label_entry(table, keys[i].index).text, keys[i - 1].index);

	qsort(keys, table->count, sizeof(keys[0]), by_name);
	for (uint32_t i = 1; i < table->count; i++)
		if (strcmp(keys[i].name, keys[i - 1].name) == 0)
			return REFUSE(err, -EBADMSG,
			              dioh_record_entry_at(table, keys[i].index, table->name_at),
			              "%s: entry %" PRIu32 " of the table has the same name",
			              dioh_record_label_entry(table, keys[i].index).text, keys[i - 1].index);
	return 0;
}

/* ---- no two spans overlap ------------------------------------------------------------------------ */

struct span_list {
	struct span *spans;
	size_t count;
};

static void add_span(struct span_list *list, enum span_kind kind, uint32_t index, uint64_t offset,
                     uint64_t bytes)
{
	if (bytes > 0)
		list->spans[list->count++] = (struct span){ kind, index, offset, bytes };
}

static void add_area(struct span_list *list, enum span_kind kind, uint32_t index,
                     const struct dioh_record_area *area)
{
	add_span(list, kind, index, area->offset, area->bytes);
}

/* At most 5 spans, 3 more for each region and 2 for each extent. */
static void collect_spans(const struct tables *tables, struct span_list *list)
{
	const struct dioh_record_head *head = tables->head;

	add_span(list, SPAN_HEAD, 0, tables->head_offset, DIOH_RECORD_HEAD_BYTES);
	add_area(list, SPAN_HEADER, 0, &head->header);
	add_area(list, SPAN_REGIONS, 0, &head->regions);
	add_area(list, SPAN_STREAMS, 0, &head->streams);
	add_area(list, SPAN_EXTENTS, 0, &head->extents);
	for (uint32_t i = 0; i < head->region_count; i++) {
		const struct dioh_record_region *region = &tables->regions[i];

		add_area(list, SPAN_BITMAP, i, &region->bitmap);
		add_area(list, SPAN_CHECKSUMS, i, &region->checksums);
		add_span(list, SPAN_PAGES, i, region->pages_offset, region->bytes);
	}
	for (uint32_t i = 0; i < head->extent_count; i++) {
		const struct dioh_record_extent *extent = &tables->extents[i];

		add_area(list, SPAN_EXTENT_CHECKSUMS, i, &extent->checksums);
		add_span(list, SPAN_EXTENT, i, extent->offset, extent->bytes);
	}
}

static int by_offset(const void *one, const void *other)
{
	const struct span *a = one, *b = other;

	if (a->offset != b->offset)
		return a->offset < b->offset ? -1 : 1;
	if (a->kind != b->kind)
		return a->kind < b->kind ? -1 : 1;
	return (a->index > b->index) - (a->index < b->index);
}

/* No span is unchecked here: their ends do not wrap. Once sorted, overlaps are neighbours. */
static int check_overlaps(const struct tables *tables, struct dioh_error *err)
{
	const struct dioh_record_head *head = tables->head;
	size_t room = 5 + 3 * (size_t)head->region_count + 2 * (size_t)head->extent_count;
	DIOH_AUTO_FREE struct span *spans = calloc(room, sizeof(*spans));
	struct span_list list = { spans, 0 };

	if (!spans) /* UNTESTED: at most half a MiB, and sanitizers do not let it fail */
		return REFUSE(err, -ENOMEM, 0, "no memory to check it for overlaps");
	collect_spans(tables, &list);
	qsort(spans, list.count, sizeof(*spans), by_offset);
	for (size_t i = 1; i < list.count; i++) {
		const struct span *a = &spans[i - 1], *b = &spans[i];

		if (dioh_record_span_end(a) > b->offset)
			return REFUSE(err, -EBADMSG, dioh_record_span_at(tables, b),
			              "%s [%" PRIu64 ", %" PRIu64 ") overlaps %s [%" PRIu64 ", %"
			              PRIu64 ")", dioh_record_label_span(tables, b).text, b->offset, dioh_record_span_end(b),
			              dioh_record_label_span(tables, a).text, a->offset, dioh_record_span_end(a));
	}
	return 0;
}

/* Region 0's bitmap has been checked: its end does not wrap. In a container nothing can be wrong here. */
static int find_head(struct tables *tables, struct dioh_error *err)
{
	struct span head = { .kind = SPAN_HEAD, .bytes = DIOH_RECORD_HEAD_BYTES };

	if (tables->rules->head_behind_bitmap) {
		const struct dioh_record_area *bitmap = &tables->regions[0].bitmap;

		head.offset = dioh_align_up(bitmap->offset + bitmap->bytes,
		                            tables->rules->alignment[SPAN_HEAD]);
	}
	tables->head_offset = head.offset;
	return dioh_record_check_span(tables, &head, err);
}

int dioh_record_check_tables(const struct dioh_record_head *head,
                             const struct dioh_record_region *regions,
                             const struct dioh_record_stream *streams,
                             const struct dioh_record_extent *extents, struct dioh_error *err)
{
	struct tables tables = {
		.head = head,
		.regions = regions,
		.streams = streams,
		.extents = extents,
		.region_table = { "region", (const uint8_t *)regions, sizeof(*regions),
		                  head->region_count,
		                  0 /* the layout says */, head->regions.offset, REGION_AT(number), REGION_AT(flags),
		                  REGION_AT(name), REGION_AT(reserved) },
		.stream_table = { "stream", (const uint8_t *)streams, sizeof(*streams),
		                  head->stream_count, DIOH_REGION_CHECKSUMS, head->streams.offset,
		                  STREAM_AT(number), STREAM_AT(flags), STREAM_AT(name),
		                  STREAM_AT(reserved) },
	};
	int r;

	r = dioh_record_rules(head, &tables.rules, err);
	if (r < 0)
		return r;
	tables.region_table.flags_known = tables.rules->region_flags;
	r = check_entries(&tables, err);
	if (r < 0)
		return r;
	r = find_head(&tables, err);
	if (r < 0)
		return r;
	r = check_unique(&tables.region_table, err);
	if (r < 0)
		return r;
	r = check_unique(&tables.stream_table, err);
	if (r < 0)
		return r;
	return check_overlaps(&tables, err);
}
