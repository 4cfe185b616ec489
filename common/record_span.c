/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * record_span.c - what layouts have in different ways, and the stretches of an image that its record names.
 *
 * Every stretch is a `struct span`: one test for its bounds, one way to name it in a sentence. What regions
 * and streams have in common is a `struct table`. Owns nothing, trusts nothing that it is given but the
 * place of the entries in memory. Called by record.c and record_tables.c.
 */
#include "record_span.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "align.h"
#include "pages.h"

#define AREA_ALIGNMENT 4096u
#define NAME_SHOWN_BYTES 40 /* of a name in a sentence, which may have two of them */
#define COUNT_OF(array) (sizeof(array) / sizeof((array)[0]))

static const struct layout_rules layouts[] = {
	{
		.layout = DIOH_LAYOUT_CONTAINER,
		.header_summed = true,
		.region_flags = DIOH_REGION_GUEST_ADDRESS | DIOH_REGION_CHECKSUMS,
		.streams_max = DIOH_STREAMS_MAX,
		.extent_unit = DIOH_CHUNK_BYTES,
		.alignment = {
			[SPAN_HEAD] = AREA_ALIGNMENT,
			[SPAN_HEADER] = AREA_ALIGNMENT,
			[SPAN_REGIONS] = AREA_ALIGNMENT,
			[SPAN_STREAMS] = AREA_ALIGNMENT,
			[SPAN_EXTENTS] = AREA_ALIGNMENT,
			[SPAN_BITMAP] = AREA_ALIGNMENT,
			[SPAN_CHECKSUMS] = AREA_ALIGNMENT,
			[SPAN_PAGES] = DIOH_PAGES_ALIGNMENT,
			[SPAN_EXTENT_CHECKSUMS] = AREA_ALIGNMENT,
			[SPAN_EXTENT] = AREA_ALIGNMENT,
		},
	},
	{
		/* QEMU's bitmaps and bytes stand where QEMU puts them, and libvirt edits its header in place. */
		.layout = DIOH_LAYOUT_MAPPED_RAM,
		.region_flags = DIOH_REGION_GUEST_ADDRESS | DIOH_REGION_CHECKSUMS | DIOH_REGION_IN_STREAM,
		.head_behind_bitmap = true,
		.regions_min = 1,
		.streams_min = 1,
		.streams_max = 1,
		.extent_unit = 1,
		.alignment = {
			[SPAN_HEAD] = AREA_ALIGNMENT,
			[SPAN_HEADER] = AREA_ALIGNMENT,
			[SPAN_REGIONS] = AREA_ALIGNMENT,
			[SPAN_STREAMS] = AREA_ALIGNMENT,
			[SPAN_EXTENTS] = AREA_ALIGNMENT,
			[SPAN_BITMAP] = 1,
			[SPAN_CHECKSUMS] = AREA_ALIGNMENT,
			[SPAN_PAGES] = DIOH_PAGE_BYTES,
			[SPAN_EXTENT_CHECKSUMS] = sizeof(uint32_t),
			[SPAN_EXTENT] = 1,
		},
	},
};

static const struct {
	const char *noun;
	size_t field; /* where the head or the entry names it */
} span_kinds[SPAN_KINDS] = {
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

int dioh_record_rules(const struct dioh_record_head *head, const struct layout_rules **ret_rules,
                      struct dioh_error *err)
{
	for (size_t i = 0; i < COUNT_OF(layouts); i++)
		if (layouts[i].layout == head->layout) {
			*ret_rules = &layouts[i];
			return 0;
		}
	return REFUSE(err, -EOPNOTSUPP, HEAD_AT(layout),
	              "layout %" PRIu32 " is not known here, only %u, the container, and %u, mapped-ram",
	              head->layout, DIOH_LAYOUT_CONTAINER, DIOH_LAYOUT_MAPPED_RAM);
}

/* ---- entries, and naming them in a sentence ------------------------------------------------------ */

const char *dioh_record_entry_name(const struct table *table, uint32_t i)
{
	return (const char *)&table->entries[i * table->entry_bytes + table->name_at];
}

uint32_t dioh_record_entry_u32(const struct table *table, uint32_t i, size_t field)
{
	uint32_t value;

	memcpy(&value, &table->entries[i * table->entry_bytes + field], sizeof(value));
	return value;
}

uint64_t dioh_record_entry_at(const struct table *table, uint32_t i, size_t field)
{
	return table->offset + i * table->entry_bytes + field;
}

uint64_t dioh_record_extent_at(const struct tables *tables, uint32_t i, size_t field)
{
	return tables->head->extents.offset + i * sizeof(struct dioh_record_extent) + field;
}

struct label dioh_record_label_entry(const struct table *table, uint32_t i)
{
	const char *name = dioh_record_entry_name(table, i);
	char shown[NAME_SHOWN_BYTES + 1];
	struct label label;
	size_t n;

	for (n = 0; n < NAME_SHOWN_BYTES && name[n] != '\0'; n++)
		shown[n] = name[n] >= ' ' && name[n] <= '~' ? name[n] : '?';
	shown[n] = '\0';
	snprintf(label.text, sizeof(label.text), "%s %" PRIu32 " \"%s\"", table->noun,
	         dioh_record_entry_u32(table, i, table->number_at), shown);
	return label;
}

struct label dioh_record_label_span(const struct tables *tables, const struct span *span)
{
	const char *noun = span_kinds[span->kind].noun;
	struct label label, owner;

	if (span->kind < SPAN_BITMAP) {
		snprintf(label.text, sizeof(label.text), "%s", noun);
	} else if (span->kind < SPAN_EXTENT_CHECKSUMS) {
		owner = dioh_record_label_entry(&tables->region_table, span->index);
		snprintf(label.text, sizeof(label.text), "%.100s: %s", owner.text, noun);
	} else {
		snprintf(label.text, sizeof(label.text), "extent %" PRIu32 ": %s", span->index,
		         noun);
	}
	return label;
}

uint64_t dioh_record_span_at(const struct tables *tables, const struct span *span)
{
	size_t field = span_kinds[span->kind].field;

	if (span->kind < SPAN_BITMAP)
		return tables->head_offset + field;
	if (span->kind < SPAN_EXTENT_CHECKSUMS)
		return dioh_record_entry_at(&tables->region_table, span->index, field);
	return dioh_record_extent_at(tables, span->index, field);
}

uint64_t dioh_record_span_end(const struct span *span)
{
	return span->bytes <= UINT64_MAX - span->offset ? span->offset + span->bytes : UINT64_MAX;
}

/* ---- one span ------------------------------------------------------------------------------------ */

int dioh_record_check_span(const struct tables *tables, const struct span *span,
                           struct dioh_error *err)
{
	uint64_t image_bytes = tables->head->image_bytes;
	uint32_t alignment = tables->rules->alignment[span->kind];

	if (!dioh_range_ok(span->offset, span->bytes, image_bytes))
		return REFUSE(err, -EBADMSG, dioh_record_span_at(tables, span),
		              "%s [%" PRIu64 ", %" PRIu64 ") lies outside the image of %" PRIu64
		              " bytes", dioh_record_label_span(tables, span).text, span->offset,
		              dioh_record_span_end(span), image_bytes);
	if (!dioh_is_aligned(span->offset, alignment))
		return REFUSE(err, -EBADMSG, dioh_record_span_at(tables, span),
		              "%s at offset %" PRIu64 " does not start at a multiple of %" PRIu32,
		              dioh_record_label_span(tables, span).text, span->offset, alignment);
	return 0;
}

bool dioh_record_reserved_ok(const struct dioh_record_head *head, const void *reserved,
                             size_t bytes)
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

int dioh_record_check_area(const struct tables *tables, enum span_kind kind, uint32_t index,
                           const struct dioh_record_area *area, uint64_t bytes,
                           struct dioh_error *err)
{
	const struct span span = { kind, index, area->offset, area->bytes };
	uint64_t at = dioh_record_span_at(tables, &span);

	if (area->bytes != bytes)
		return REFUSE(err, -EBADMSG, at + AREA_AT(bytes),
		              "%s: %" PRIu64 " bytes long instead of %" PRIu64,
		              dioh_record_label_span(tables, &span).text, area->bytes, bytes);
	if (!dioh_record_reserved_ok(tables->head, &area->reserved, sizeof(area->reserved)))
		return REFUSE(err, -EBADMSG, at + AREA_AT(reserved),
		              "%s: reserved bytes are not zero",
		              dioh_record_label_span(tables, &span).text);
	if (bytes > 0)
		return dioh_record_check_span(tables, &span, err);
	if (!empty_area_ok(tables, kind, area))
		return REFUSE(err, -EBADMSG, at,
		              "%s: 0 bytes long, but its offset is %" PRIu64 " and its CRC 0x%08"
		              PRIx32, dioh_record_label_span(tables, &span).text, area->offset,
		              area->crc32c);
	return 0;
}
