/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * record_span.h - what record.c (the head) and record_tables.c (the tables) share: each layout's rules, the stretches of
 * an image that a record names, and the sentences in which they are refused. Nobody else includes this.
 */
#ifndef DIOH_RECORD_SPAN_H
#define DIOH_RECORD_SPAN_H

#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>

#include "record.h"

#define HEAD_AT(field) offsetof(struct dioh_record_head, field)
#define AREA_AT(field) offsetof(struct dioh_record_area, field)
#define REGION_AT(field) offsetof(struct dioh_record_region, field)
#define STREAM_AT(field) offsetof(struct dioh_record_stream, field)
#define EXTENT_AT(field) offsetof(struct dioh_record_extent, field)

/* `at`: where in the image the field stands that is not as it should be. */
#define REFUSE(err, code, at, format, ...)                                                         \
	dioh_error_set(err, code, DIOH_PLACE(PARSE, IMAGE, 0, at),                                 \
	               "image: " format " (byte %" PRIu64 ")", ##__VA_ARGS__, (uint64_t)(at))

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
	SPAN_KINDS,
};

struct span { /* a stretch of the image */
	enum span_kind kind;
	uint32_t index; /* of the region or extent it belongs to */
	uint64_t offset;
	uint64_t bytes;
};

struct layout_rules { /* in what layouts differ; all else holds for each of them */
	uint32_t layout;
	bool head_behind_bitmap; /* of region 0, at the next 4 KiB boundary; else the head stands at 0 */
	bool header_summed;      /* the manager's header has a CRC */
	uint32_t region_flags;   /* enum dioh_record_region_flag */
	uint32_t regions_min;
	uint32_t streams_min, streams_max;
	uint32_t extent_unit; /* every extent but a stream's last is a multiple of it */
	uint32_t alignment[SPAN_KINDS];
};

struct table { /* what regions and streams have in common */
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
	const struct layout_rules *rules;
	uint64_t head_offset; /* 0 where it is not known yet */
	const struct dioh_record_region *regions;
	const struct dioh_record_stream *streams;
	const struct dioh_record_extent *extents;
	struct table region_table, stream_table;
};

struct label {
	char text[104];
};

/* -EOPNOTSUPP for a layout that has no record, or none that is known here. */
int dioh_record_rules(const struct dioh_record_head *head, const struct layout_rules **ret_rules,
                      struct dioh_error *err);

const char *dioh_record_entry_name(const struct table *table, uint32_t i);
uint32_t dioh_record_entry_u32(const struct table *table, uint32_t i, size_t field);

/* Where in the image an entry's field stands. */
uint64_t dioh_record_entry_at(const struct table *table, uint32_t i, size_t field);
uint64_t dioh_record_extent_at(const struct tables *tables, uint32_t i, size_t field);

/* `region 3 "pc.ram"`. Names come from the image and go to a terminal or a log: printable ASCII only. */
struct label dioh_record_label_entry(const struct table *table, uint32_t i);

/* `region 3 "pc.ram": its bitmap` */
struct label dioh_record_label_span(const struct tables *tables, const struct span *span);

/* Where in the image the span is named. */
uint64_t dioh_record_span_at(const struct tables *tables, const struct span *span);

/* A span's end for a sentence: a hostile one may wrap. */
uint64_t dioh_record_span_end(const struct span *span);

/* Inside the image, and where its layout lets it start? */
int dioh_record_check_span(const struct tables *tables, const struct span *span, struct dioh_error *err);

/*
 * Reserved bytes are zero, unless a compatible feature is set that is younger than this reader: they may be its bytes. It
 * changes nothing for a reader that does not know it.
 */
bool dioh_record_reserved_ok(const struct dioh_record_head *head, const void *reserved, size_t bytes);

/* An area that must have `bytes` bytes. */
int dioh_record_check_area(const struct tables *tables, enum span_kind kind, uint32_t index,
                           const struct dioh_record_area *area, uint64_t bytes, struct dioh_error *err);

#endif
