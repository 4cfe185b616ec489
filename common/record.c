/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * record.c - the integrity record's head: sealing it, and checking one that may come from a hostile image.
 *
 * Owns nothing. Trusts nothing it reads: dioh_record_check_head() looks at the 4096 bytes of the head only;
 * record_tables.c looks at tables whose sizes a checked head has bounded. Both only answer yes, or no with
 * a sentence that names entry, field and byte. What they let pass lies inside the image, overlaps nothing,
 * and stays so far below 2^64 that callers need not fear their sums. Bitmaps, checksums and pages are
 * their readers' business. Called by the layouts in the sealed helper, by the tests and by fuzzers.
 * docs/image-format.md gives the same rules in words.
 */
#include "record.h"

#include <errno.h>
#include <string.h>

#include "align.h"
#include "pages.h"
#include "record_span.h"

#define COUNT_OF(array) (sizeof(array) / sizeof((array)[0]))

_Static_assert(sizeof(struct dioh_record_area) == 24, "area");
_Static_assert(sizeof(struct dioh_record_head) == DIOH_RECORD_HEAD_BYTES, "head");
_Static_assert(sizeof(struct dioh_record_region) == 384, "region");
_Static_assert(sizeof(struct dioh_record_stream) == 320, "stream");
_Static_assert(sizeof(struct dioh_record_extent) == 40, "extent");

uint64_t dioh_record_bitmap_bytes(uint64_t region_bytes)
{
	return dioh_div_up(dioh_div_up(region_bytes, DIOH_PAGE_BYTES), 64) * 8;
}

uint64_t dioh_record_checksums_bytes(uint64_t region_bytes)
{
	return dioh_div_up(region_bytes, DIOH_CHUNK_BYTES) * sizeof(uint32_t);
}

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
static int check_identity(const struct dioh_record_head *head,
                          const struct layout_rules **ret_rules, struct dioh_error *err)
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
	return dioh_record_rules(head, ret_rules, err);
}

static int check_numbers(const struct dioh_record_head *head, const struct layout_rules *rules,
                         struct dioh_error *err)
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
		{ "region count", HEAD_AT(region_count), head->region_count, rules->regions_min,
		  DIOH_REGIONS_MAX },
		{ "stream count", HEAD_AT(stream_count), head->stream_count, rules->streams_min,
		  rules->streams_max },
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

static int check_head_areas(const struct dioh_record_head *head, const struct layout_rules *rules,
                            struct dioh_error *err)
{
	const struct tables tables = { .head = head, .rules = rules };
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
	if (!rules->header_summed && head->header.crc32c != 0)
		return REFUSE(err, -EBADMSG, HEAD_AT(header.crc32c),
		              "the manager's header: it has no CRC in this layout, but 0x%08" PRIx32
		              " stands there", head->header.crc32c);
	for (size_t i = 0; i < COUNT_OF(areas); i++) {
		int r = dioh_record_check_area(&tables, areas[i].kind, 0, areas[i].area, areas[i].bytes, err);

		if (r < 0)
			return r;
	}
	return 0;
}

int dioh_record_check_head(const struct dioh_record_head *head, uint64_t file_bytes,
                           struct dioh_error *err)
{
	const struct layout_rules *rules;
	int r;

	r = check_identity(head, &rules, err);
	if (r < 0)
		return r;
	if (!dioh_record_reserved_ok(head, head->reserved, sizeof(head->reserved)))
		return REFUSE(err, -EBADMSG, HEAD_AT(reserved),
		              "the head's reserved bytes are not zero");
	r = check_numbers(head, rules, err);
	if (r < 0)
		return r;
	r = check_image_bytes(head, file_bytes, err);
	if (r < 0)
		return r;
	return check_head_areas(head, rules, err);
}
