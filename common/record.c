/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * record.c - the integrity record: sealing it, and checking one that may come from a hostile image.
 *
 * Owns nothing. Trusts nothing it reads: dioh_record_check_head() looks at the 4096 bytes of the head
 * only; dioh_record_check_tables() looks at tables whose sizes a checked head has bounded. Both only
 * answer yes, or no with a sentence that names entry, field and byte. What they let pass lies inside the
 * image, overlaps nothing, and stays so far below 2^64 that callers need not fear their sums. Bitmaps,
 * checksums and pages are their readers' business. Called by the layouts in the sealed helper, by the
 * tests and by fuzzers. docs/image-format.md gives the same rules in words.
 *
 * Every stretch of the image that the record names is a `struct span`: one test for its bounds, one for
 * overlaps, one way to name it in a sentence. What regions and streams have in common is a `struct table`.
 */
#include "record.h"

#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "align.h"
#include "cleanup.h"
#include "pages.h"

#define AREA_ALIGNMENT 4096u
#define NAME_SHOWN_BYTES 40 /* of a name in a sentence, which may have two of them */
#define COUNT_OF(array) (sizeof(array) / sizeof((array)[0]))

_Static_assert(sizeof(struct dioh_record_area) == 24, "area");
_Static_assert(sizeof(struct dioh_record_head) == DIOH_RECORD_HEAD_BYTES, "head");
_Static_assert(sizeof(struct dioh_record_region) == 384, "region");
_Static_assert(sizeof(struct dioh_record_stream) == 320, "stream");
_Static_assert(sizeof(struct dioh_record_extent) == 40, "extent");

#define HEAD_AT(field) offsetof(struct dioh_record_head, field)
#define AREA_AT(field) offsetof(struct dioh_record_area, field)
#define REGION_AT(field) offsetof(struct dioh_record_region, field)
#define STREAM_AT(field) offsetof(struct dioh_record_stream, field)
#define EXTENT_AT(field) offsetof(struct dioh_record_extent, field)

/* `at`: where in the image the field stands that is not as it should be. */
#define REFUSE(err, code, at, format, ...)                                                         \
	dioh_error_set(err, code, DIOH_PLACE(PARSE, IMAGE, 0, at),                                 \
	               "image: " format " (byte %" PRIu64 ")", ##__VA_ARGS__, (uint64_t)(at))

struct table {
	const char *noun;
	const uint8_t *entries;
	size_t entry_bytes;
	uint32_t count;
	uint32_t flags_known;
	uint64_t offset; /* of the first entry in the image */
	size_t number_at, flags_at, name_at, reserved_at;
};

struct tables {
	const struct dioh_record_head *head;
	const struct dioh_record_region *regions;
	const struct dioh_record_stream *streams;
	const struct dioh_record_extent *extents;
	struct table region_table, stream_table;
};

enum span_kind {
	SPAN_HEAD,
	SPAN_HEADER,
	SPAN_REGIONS,
	SPAN_STREAMS,
	SPAN_EXTENTS,
	SPAN_BITMAP, /* from here on: a region's */
	SPAN_CHECKSUMS,
	SPAN_PAGES,
	SPAN_EXTENT_CHECKSUMS, /* from here on: an extent's */
	SPAN_EXTENT,
};

struct span { /* a stretch of the image */
	enum span_kind kind;
	uint32_t index; /* of the region or extent it belongs to */
	uint64_t offset;
	uint64_t bytes;
};

static const struct {
	const char *noun;
	size_t field; /* where the head or the entry names it */
} span_kinds[] = {
	[SPAN_HEAD] = { "the head", 0 },
	[SPAN_HEADER] = { "the manager's header", HEAD_AT(header) },
	[SPAN_REGIONS] = { "the region table", HEAD_AT(regions) },
	[SPAN_STREAMS] = { "the stream table", HEAD_AT(streams) },
	[SPAN_EXTENTS] = { "the extent table", HEAD_AT(extents) },
	[SPAN_BITMAP] = { "its bitmap", REGION_AT(bitmap) },
	[SPAN_CHECKSUMS] = { "its checksums", REGION_AT(checksums) },
	[SPAN_PAGES] = { "its pages", REGION_AT(pages_offset) },
	[SPAN_EXTENT_CHECKSUMS] = { "its checksums", EXTENT_AT(checksums) },
	[SPAN_EXTENT] = { "its data", EXTENT_AT(offset) },
};

/* ---- entries, and naming them in a sentence ------------------------------------------------------ */

static const char *entry_name(const struct table *table, uint32_t i)
{
	return (const char *)&table->entries[i * table->entry_bytes + table->name_at];
}

static uint32_t entry_u32(const struct table *table, uint32_t i, size_t field)
{
	uint32_t value;

	memcpy(&value, &table->entries[i * table->entry_bytes + field], sizeof(value));
	return value;
}

static uint64_t entry_at(const struct table *table, uint32_t i, size_t field)
{
	return table->offset + i * table->entry_bytes + field;
}

static uint64_t extent_at(const struct tables *tables, uint32_t i, size_t field)
{
	return tables->head->extents.offset + i * sizeof(struct dioh_record_extent) + field;
}

struct label {
	char text[NAME_SHOWN_BYTES + 64];
};

/* `region 3 "pc.ram"`. Names come from the image and go to a terminal or a log: printable ASCII only. */
static struct label label_entry(const struct table *table, uint32_t i)
{
	const char *name = entry_name(table, i);
	char shown[NAME_SHOWN_BYTES + 1];
	struct label label;
	size_t n;

	for (n = 0; n < NAME_SHOWN_BYTES && name[n] != '\0'; n++)
		shown[n] = name[n] >= ' ' && name[n] <= '~' ? name[n] : '?';
	shown[n] = '\0';
	snprintf(label.text, sizeof(label.text), "%s %" PRIu32 " \"%s\"", table->noun,
	         entry_u32(table, i, table->number_at), shown);
	return label;
}

/* `region 3 "pc.ram": its bitmap` */
static struct label label_span(const struct tables *tables, const struct span *span)
{
	const char *noun = span_kinds[span->kind].noun;
	struct label label, owner;

	if (span->kind < SPAN_BITMAP) {
		snprintf(label.text, sizeof(label.text), "%s", noun);
	} else if (span->kind < SPAN_EXTENT_CHECKSUMS) {
		owner = label_entry(&tables->region_table, span->index);
		snprintf(label.text, sizeof(label.text), "%.100s: %s", owner.text, noun);
	} else {
		snprintf(label.text, sizeof(label.text), "extent %" PRIu32 ": %s", span->index,
		         noun);
	}
	return label;
}

/* Where in the image the span is named. */
static uint64_t span_at(const struct tables *tables, const struct span *span)
{
	size_t field = span_kinds[span->kind].field;

	if (span->kind < SPAN_BITMAP)
		return field;
	if (span->kind < SPAN_EXTENT_CHECKSUMS)
		return entry_at(&tables->region_table, span->index, field);
	return extent_at(tables, span->index, field);
}

/* A span's end for a sentence: a hostile one may wrap. */
static uint64_t span_end(const struct span *span)
{
	return span->bytes <= UINT64_MAX - span->offset ? span->offset + span->bytes : UINT64_MAX;
}

/* ---- one span ------------------------------------------------------------------------------------ */

static int check_span(const struct tables *tables, const struct span *span, uint64_t alignment,
                      struct dioh_error *err)
{
	uint64_t image_bytes = tables->head->image_bytes;

	if (!dioh_range_ok(span->offset, span->bytes, image_bytes))
		return REFUSE(err, -EBADMSG, span_at(tables, span),
		              "%s [%" PRIu64 ", %" PRIu64 ") lies outside the image of %" PRIu64
		              " bytes", label_span(tables, span).text, span->offset, span_end(span),
		              image_bytes);
	if (!dioh_is_aligned(span->offset, alignment))
		return REFUSE(err, -EBADMSG, span_at(tables, span),
		              "%s at offset %" PRIu64 " does not start at a multiple of %" PRIu64,
		              label_span(tables, span).text, span->offset, alignment);
	return 0;
}

/*
 * Reserved bytes are zero, unless a compatible feature is set that is younger than this reader: they may
 * be its bytes. It changes nothing for a reader that does not know it.
 */
static bool reserved_ok(const struct dioh_record_head *head, const void *reserved, size_t bytes)
{
	return head->compatible != 0 || dioh_is_zero(reserved, bytes);
}

/* An area of no bytes stands nowhere; but the extent table keeps its place while it is empty. */
static bool empty_area_ok(const struct tables *tables, enum span_kind kind,
                          const struct dioh_record_area *area)
{
	if (area->crc32c != 0)
		return false;
	return area->offset == 0 ||
	       (kind == SPAN_EXTENTS && area->offset <= tables->head->image_bytes);
}

static int check_area(const struct tables *tables, enum span_kind kind, uint32_t index,
                      const struct dioh_record_area *area, uint64_t bytes, struct dioh_error *err)
{
	const struct span span = { kind, index, area->offset, area->bytes };
	uint64_t at = span_at(tables, &span);

	if (area->bytes != bytes)
		return REFUSE(err, -EBADMSG, at + AREA_AT(bytes),
		              "%s: %" PRIu64 " bytes long instead of %" PRIu64,
		              label_span(tables, &span).text, area->bytes, bytes);
	if (!reserved_ok(tables->head, &area->reserved, sizeof(area->reserved)))
		return REFUSE(err, -EBADMSG, at + AREA_AT(reserved),
		              "%s: reserved bytes are not zero", label_span(tables, &span).text);
	if (bytes > 0)
		return check_span(tables, &span, AREA_ALIGNMENT, err);
	if (!empty_area_ok(tables, kind, area))
		return REFUSE(err, -EBADMSG, at,
		              "%s: 0 bytes long, but its offset is %" PRIu64 " and its CRC 0x%08"
		              PRIx32, label_span(tables, &span).text, area->offset, area->crc32c);
	return 0;
}

/* ---- the head ------------------------------------------------------------------------------------ */

static uint32_t head_crc32c(const struct dioh_record_head *head)
{
	return dioh_crc32c(0, head, HEAD_AT(crc32c));
}

void dioh_record_seal(struct dioh_record_head *head)
{
	memcpy(head->magic, DIOH_RECORD_MAGIC, sizeof(head->magic));
	head->version = DIOH_RECORD_VERSION;
	head->page_bytes = DIOH_PAGE_BYTES;
	head->chunk_bytes = DIOH_CHUNK_BYTES;
	head->crc32c = head_crc32c(head);
}

/* A record, undamaged, of a kind we know? Until that is settled no other field means anything. */
static int check_identity(const struct dioh_record_head *head, struct dioh_error *err)
{
	uint64_t unknown = head->incompatible & ~DIOH_RECORD_INCOMPATIBLE_KNOWN;
	uint32_t crc = head_crc32c(head);

	if (memcmp(head->magic, DIOH_RECORD_MAGIC, sizeof(head->magic)) != 0)
		return REFUSE(err, -EBADMSG, HEAD_AT(magic),
		              "no diohelper record stands here: the magic is missing");
	if (head->crc32c != crc)
		return REFUSE(err, -EBADMSG, HEAD_AT(crc32c),
		              "the head is damaged: its CRC32C is 0x%08" PRIx32 ", not 0x%08" PRIx32
		              " as stored", crc, head->crc32c);
	if (head->version != DIOH_RECORD_VERSION)
		return REFUSE(err, -EOPNOTSUPP, HEAD_AT(version),
		              "format version 0x%08" PRIx32 " is not known here, only 0x%08" PRIx32,
		              head->version, DIOH_RECORD_VERSION);
	if (unknown != 0)
		return REFUSE(err, -EOPNOTSUPP, HEAD_AT(incompatible),
		              "incompatible features 0x%016" PRIx64 " are not known here", unknown);
	if (head->layout != DIOH_LAYOUT_CONTAINER)
		return REFUSE(err, -EOPNOTSUPP, HEAD_AT(layout),
		              "layout %" PRIu32 " is not known here, only %u, the container",
		              head->layout, DIOH_LAYOUT_CONTAINER);
	return 0;
}

static int check_numbers(const struct dioh_record_head *head, struct dioh_error *err)
{
	uint32_t extents_max = head->stream_count > 0 ? DIOH_EXTENTS_MAX : 0;
	const struct {
		const char *name;
		size_t at;
		uint32_t value, min, max;
	} numbers[] = {
		{ "state", HEAD_AT(state), head->state, DIOH_STATE_PARTIAL, DIOH_STATE_WRITTEN },
		{ "page size", HEAD_AT(page_bytes), head->page_bytes, DIOH_PAGE_BYTES,
		  DIOH_PAGE_BYTES },
		{ "chunk size", HEAD_AT(chunk_bytes), head->chunk_bytes, DIOH_CHUNK_BYTES,
		  DIOH_CHUNK_BYTES },
		{ "region count", HEAD_AT(region_count), head->region_count, 0, DIOH_REGIONS_MAX },
		{ "stream count", HEAD_AT(stream_count), head->stream_count, 0, DIOH_STREAMS_MAX },
		{ "extent count", HEAD_AT(extent_count), head->extent_count, 0, extents_max },
	};

	for (size_t i = 0; i < COUNT_OF(numbers); i++)
		if (numbers[i].value < numbers[i].min || numbers[i].value > numbers[i].max)
			return REFUSE(err, -EBADMSG, numbers[i].at,
			              "the head's %s is %" PRIu32 ", not within %" PRIu32 " and %"
			              PRIu32, numbers[i].name, numbers[i].value, numbers[i].min,
			              numbers[i].max);
	return 0;
}

static int check_image_bytes(const struct dioh_record_head *head, uint64_t file_bytes,
                             struct dioh_error *err)
{
	if (head->image_bytes < DIOH_RECORD_HEAD_BYTES || head->image_bytes > DIOH_OFFSET_MAX)
		return REFUSE(err, -EBADMSG, HEAD_AT(image_bytes),
		              "the head's image size is %" PRIu64 ", not within %u and %" PRIu64,
		              head->image_bytes, DIOH_RECORD_HEAD_BYTES, DIOH_OFFSET_MAX);
	if (head->image_bytes > file_bytes && head->state != DIOH_STATE_PARTIAL)
		return REFUSE(err, -EBADMSG, HEAD_AT(image_bytes),
		              "it is truncated: %" PRIu64 " bytes are there, it has %" PRIu64,
		              file_bytes, head->image_bytes);
	return 0;
}

static int check_head_areas(const struct dioh_record_head *head, struct dioh_error *err)
{
	const struct tables tables = { .head = head };
	const struct {
		enum span_kind kind;
		const struct dioh_record_area *area;
		uint64_t bytes;
	} areas[] = {
		{ SPAN_HEADER, &head->header, head->header.bytes },
		{ SPAN_REGIONS, &head->regions,
		  head->region_count * sizeof(struct dioh_record_region) },
		{ SPAN_STREAMS, &head->streams,
		  head->stream_count * sizeof(struct dioh_record_stream) },
		{ SPAN_EXTENTS, &head->extents,
		  head->extent_count * sizeof(struct dioh_record_extent) },
	};

	if (head->header.bytes > DIOH_HEADER_BYTES_MAX)
		return REFUSE(err, -EBADMSG, HEAD_AT(header.bytes),
		              "the manager's header: %" PRIu64 " bytes are more than %u",
		              head->header.bytes, DIOH_HEADER_BYTES_MAX);
	for (size_t i = 0; i < COUNT_OF(areas); i++) {
		int r = check_area(&tables, areas[i].kind, 0, areas[i].area, areas[i].bytes, err);

		if (r < 0)
			return r;
	}
	return 0;
}

int dioh_record_check_head(const struct dioh_record_head *head, uint64_t file_bytes,
                           struct dioh_error *err)
{
	int r;

	r = check_identity(head, err);
	if (r < 0)
		return r;
	if (!reserved_ok(head, head->reserved, sizeof(head->reserved)))
		return REFUSE(err, -EBADMSG, HEAD_AT(reserved),
		              "the head's reserved bytes are not zero");
	r = check_numbers(head, err);
	if (r < 0)
		return r;
	r = check_image_bytes(head, file_bytes, err);
	if (r < 0)
		return r;
	return check_head_areas(head, err);
}

/* ---- entries ------------------------------------------------------------------------------------- */

uint64_t dioh_record_bitmap_bytes(uint64_t region_bytes)
{
	return dioh_div_up(dioh_div_up(region_bytes, DIOH_PAGE_BYTES), 64) * 8;
}

uint64_t dioh_record_checksums_bytes(uint64_t region_bytes)
{
	return dioh_div_up(region_bytes, DIOH_CHUNK_BYTES) * sizeof(uint32_t);
}

/* What regions and streams have in common. Goes first: only then is the name fit for a label. */
static int check_entry(const struct tables *tables, const struct table *table, uint32_t i,
                       struct dioh_error *err)
{
	const char *name = entry_name(table, i);
	uint32_t unknown = entry_u32(table, i, table->flags_at) & ~table->flags_known;
	const uint8_t *entry = &table->entries[i * table->entry_bytes];

	if (memchr(name, '\0', DIOH_NAME_BYTES) == NULL)
		return REFUSE(err, -EBADMSG, entry_at(table, i, table->name_at),
		              "%s table, entry %" PRIu32 ": its name has no end", table->noun, i);
	if (name[0] == '\0')
		return REFUSE(err, -EBADMSG, entry_at(table, i, table->name_at),
		              "%s table, entry %" PRIu32 ": its name is empty", table->noun, i);
	if (unknown != 0)
		return REFUSE(err, -EBADMSG, entry_at(table, i, table->flags_at),
		              "%s: unknown flags 0x%" PRIx32, label_entry(table, i).text, unknown);
	if (!reserved_ok(tables->head, &entry[table->reserved_at],
	                 table->entry_bytes - table->reserved_at))
		return REFUSE(err, -EBADMSG, entry_at(table, i, table->reserved_at),
		              "%s: reserved bytes are not zero", label_entry(table, i).text);
	return 0;
}

static int check_region_bytes(const struct tables *tables, uint32_t i, struct dioh_error *err)
{
	const struct table *table = &tables->region_table;
	uint64_t bytes = tables->regions[i].bytes;
	uint64_t present_pages = tables->regions[i].present_pages;

	if (bytes == 0 || bytes > DIOH_REGION_BYTES_MAX || !dioh_is_aligned(bytes, DIOH_PAGE_BYTES))
		return REFUSE(err, -EBADMSG, entry_at(table, i, REGION_AT(bytes)),
		              "%s: its size %" PRIu64 " is not 1 to %" PRIu64 " pages of %u bytes",
		              label_entry(table, i).text, bytes,
		              DIOH_REGION_BYTES_MAX / DIOH_PAGE_BYTES, DIOH_PAGE_BYTES);
	if (present_pages > bytes / DIOH_PAGE_BYTES)
		return REFUSE(err, -EBADMSG, entry_at(table, i, REGION_AT(present_pages)),
		              "%s: %" PRIu64 " present pages are more than it has, %" PRIu64,
		              label_entry(table, i).text, present_pages, bytes / DIOH_PAGE_BYTES);
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
	r = check_area(tables, SPAN_BITMAP, i, &region->bitmap,
	               dioh_record_bitmap_bytes(region->bytes), err);
	if (r < 0)
		return r;
	r = check_area(tables, SPAN_CHECKSUMS, i, &region->checksums,
	               dioh_record_checksums_bytes(region->bytes), err);
	if (r < 0)
		return r;
	return check_span(tables, &pages, DIOH_PAGES_ALIGNMENT, err);
}

static int check_extent(const struct tables *tables, uint32_t i, struct dioh_error *err)
{
	const struct dioh_record_extent *extent = &tables->extents[i];
	const struct span data = { SPAN_EXTENT, i, extent->offset, extent->bytes };
	int r;

	if (extent->bytes == 0 || extent->bytes > DIOH_EXTENT_BYTES_MAX)
		return REFUSE(err, -EBADMSG, extent_at(tables, i, EXTENT_AT(bytes)),
		              "extent %" PRIu32 ": its size %" PRIu64 " is not within 1 and %" PRIu64,
		              i, extent->bytes, DIOH_EXTENT_BYTES_MAX);
	r = check_area(tables, SPAN_EXTENT_CHECKSUMS, i, &extent->checksums,
	               dioh_record_checksums_bytes(extent->bytes), err);
	if (r < 0)
		return r;
	return check_span(tables, &data, AREA_ALIGNMENT, err);
}

/* The stream's extents, which the head's table has. `used`: those that belong to some stream already. */
static int check_stream_extents(const struct tables *tables, uint32_t i, bool *used,
                                struct dioh_error *err)
{
	const struct dioh_record_stream *stream = &tables->streams[i];
	const struct table *table = &tables->stream_table;
	uint32_t end = stream->first_extent + stream->extent_count;
	uint64_t bytes = 0;

	for (uint32_t e = stream->first_extent; e < end; e++) {
		if (used[e])
			return REFUSE(err, -EBADMSG, entry_at(table, i, STREAM_AT(first_extent)),
			              "%s: extent %" PRIu32 " belongs to another stream as well",
			              label_entry(table, i).text, e);
		used[e] = true;
		if (e + 1 < end && !dioh_is_aligned(tables->extents[e].bytes, DIOH_CHUNK_BYTES))
			return REFUSE(err, -EBADMSG, extent_at(tables, e, EXTENT_AT(bytes)),
			              "%s: extent %" PRIu32 " is not its last, but its %" PRIu64
			              " bytes are no multiple of %u", label_entry(table, i).text, e,
			              tables->extents[e].bytes, DIOH_CHUNK_BYTES);
		bytes += tables->extents[e].bytes;
	}
	if (bytes != stream->bytes)
		return REFUSE(err, -EBADMSG, entry_at(table, i, STREAM_AT(bytes)),
		              "%s: its extents hold %" PRIu64 " bytes, not %" PRIu64,
		              label_entry(table, i).text, bytes, stream->bytes);
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
		return REFUSE(err, -EBADMSG, entry_at(table, i, STREAM_AT(first_extent)),
		              "%s: its %" PRIu32 " extents from %" PRIu32 " on lie outside the table"
		              " of %" PRIu32, label_entry(table, i).text, stream->extent_count,
		              stream->first_extent, extent_count);
	return check_stream_extents(tables, i, used, err);
}

static int check_entries(const struct tables *tables, struct dioh_error *err)
{
	const struct dioh_record_head *head = tables->head;
	bool used[DIOH_EXTENTS_MAX] = { false };
	int r = 0;

	for (uint32_t i = 0; i < head->region_count && r == 0; i++)
		r = check_region(tables, i, err);
	for (uint32_t i = 0; i < head->extent_count && r == 0; i++)
		r = check_extent(tables, i, err);
	for (uint32_t i = 0; i < head->stream_count && r == 0; i++)
		r = check_stream(tables, i, used, err);
	for (uint32_t i = 0; i < head->extent_count && r == 0; i++)
		if (!used[i])
			r = REFUSE(err, -EBADMSG, extent_at(tables, i, 0),
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
		keys[i].name = entry_name(table, i);
		keys[i].number = entry_u32(table, i, table->number_at);
		keys[i].index = i;
	}

	qsort(keys, table->count, sizeof(keys[0]), by_number);
	for (uint32_t i = 1; i < table->count; i++)
		if (keys[i].number == keys[i - 1].number)
			return REFUSE(err, -EBADMSG,
			              entry_at(table, keys[i].index, table->number_at),
			              "%s: entry %" PRIu32 " of the table has the same number",
			              label_entry(table, keys[i].index).text, keys[i - 1].index);

	qsort(keys, table->count, sizeof(keys[0]), by_name);
	for (uint32_t i = 1; i < table->count; i++)
		if (strcmp(keys[i].name, keys[i - 1].name) == 0)
			return REFUSE(err, -EBADMSG,
			              entry_at(table, keys[i].index, table->name_at),
			              "%s: entry %" PRIu32 " of the table has the same name",
			              label_entry(table, keys[i].index).text, keys[i - 1].index);
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

	add_span(list, SPAN_HEAD, 0, 0, DIOH_RECORD_HEAD_BYTES);
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

/* Every span has passed check_span(): its end does not wrap. Once sorted, overlaps are neighbours. */
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

		if (span_end(a) > b->offset)
			return REFUSE(err, -EBADMSG, span_at(tables, b),
			              "%s [%" PRIu64 ", %" PRIu64 ") overlaps %s [%" PRIu64 ", %"
			              PRIu64 ")", label_span(tables, b).text, b->offset, span_end(b),
			              label_span(tables, a).text, a->offset, span_end(a));
	}
	return 0;
}

int dioh_record_check_tables(const struct dioh_record_head *head,
                             const struct dioh_record_region *regions,
                             const struct dioh_record_stream *streams,
                             const struct dioh_record_extent *extents, struct dioh_error *err)
{
	const struct tables tables = {
		.head = head,
		.regions = regions,
		.streams = streams,
		.extents = extents,
		.region_table = { "region", (const uint8_t *)regions, sizeof(*regions),
		                  head->region_count,
		                  DIOH_REGION_GUEST_ADDRESS | DIOH_REGION_CHECKSUMS,
		                  head->regions.offset, REGION_AT(number), REGION_AT(flags),
		                  REGION_AT(name), REGION_AT(reserved) },
		.stream_table = { "stream", (const uint8_t *)streams, sizeof(*streams),
		                  head->stream_count, DIOH_REGION_CHECKSUMS, head->streams.offset,
		                  STREAM_AT(number), STREAM_AT(flags), STREAM_AT(name),
		                  STREAM_AT(reserved) },
	};
	int r;

	r = check_entries(&tables, err);
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
