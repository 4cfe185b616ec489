/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * fuzz_record.c - an integrity record's head and tables, from any bytes.
 *
 * The input is the head's 168 bytes of fields, then region table, stream table and extent table, one behind the other;
 * what it lacks is zero. Magic, version and the head's CRC are put right, as whoever wants to harm can do, too. The input
 * is also tried as a head as it stands. What passes must lie in the image, and nothing in it must overlap.
 */
#include <string.h>

#include "fuzz.h"
#include "record.h"

#define FIELDS_BYTES offsetof(struct dioh_record_head, reserved)
#define FILE_BYTES (UINT64_C(1) << 40)
#define SPANS_MAX 400 /* for comparing each with each; larger images are only checked for bounds */

struct input {
	const uint8_t *data;
	size_t left;
};

/* Memory of exactly `bytes`, so that sanitizers see one too far; NULL for none. */
static void *take(struct input *input, size_t bytes)
{
	uint8_t *taken = bytes > 0 ? calloc(1, bytes) : NULL;
	size_t count = bytes < input->left ? bytes : input->left;

	CHECK(taken != NULL || bytes == 0);
	if (count > 0)
		memcpy(taken, input->data, count);
	input->data += count;
	input->left -= count;
	return taken;
}

struct span {
	uint64_t offset, bytes;
};

struct image {
	const struct dioh_record_head *head;
	struct dioh_record_region *regions;
	struct dioh_record_stream *streams;
	struct dioh_record_extent *extents;
	struct span spans[SPANS_MAX];
	size_t count;
};

static void add_span(struct image *image, uint64_t offset, uint64_t bytes)
{
	CHECK(bytes <= image->head->image_bytes && offset <= image->head->image_bytes - bytes);
	if (image->count < SPANS_MAX)
		image->spans[image->count++] = (struct span){ offset, bytes };
}

static void add_area(struct image *image, const struct dioh_record_area *area)
{
	add_span(image, area->offset, area->bytes);
}

static uint64_t head_offset(const struct image *image)
{
	const struct dioh_record_area *bitmap;

	if (image->head->layout == DIOH_LAYOUT_CONTAINER)
		return 0;
	bitmap = &image->regions[0].bitmap;
	return (bitmap->offset + bitmap->bytes + 4095) / 4096 * 4096;
}

static void check_sound(struct image *image)
{
	const struct dioh_record_head *head = image->head;

	add_span(image, head_offset(image), DIOH_RECORD_HEAD_BYTES);
	add_area(image, &head->header);
	add_area(image, &head->regions);
	add_area(image, &head->streams);
	add_area(image, &head->extents);
	for (uint32_t i = 0; i < head->region_count; i++) {
		add_area(image, &image->regions[i].bitmap);
		add_area(image, &image->regions[i].checksums);
		add_span(image, image->regions[i].pages_offset, image->regions[i].bytes);
	}
	for (uint32_t i = 0; i < head->extent_count; i++) {
		add_area(image, &image->extents[i].checksums);
		add_span(image, image->extents[i].offset, image->extents[i].bytes);
	}
	for (size_t a = 0; a < image->count; a++)
		for (size_t b = 0; b < a; b++) {
			const struct span *one = &image->spans[a], *other = &image->spans[b];

			CHECK(one->bytes == 0 || other->bytes == 0 ||
			        one->offset + one->bytes <= other->offset ||
			        other->offset + other->bytes <= one->offset);
		}
}

static void try_tables(const struct dioh_record_head *head, struct input *input)
{
	struct image image = { .head = head };

	image.regions = take(input, head->region_count * sizeof(*image.regions));
	image.streams = take(input, head->stream_count * sizeof(*image.streams));
	image.extents = take(input, head->extent_count * sizeof(*image.extents));
	if (dioh_record_check_tables(head, image.regions, image.streams, image.extents, NULL) == 0)
		check_sound(&image);
	free(image.extents);
	free(image.streams);
	free(image.regions);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct dioh_record_head *head = calloc(1, sizeof(*head));
	struct input input = { data, size };

	CHECK(head != NULL);
	memcpy(head, data, size < sizeof(*head) ? size : sizeof(*head));
	(void)dioh_record_check_head(head, FILE_BYTES, NULL);

	memset(head, 0, sizeof(*head));
	memcpy(head, data, size < FIELDS_BYTES ? size : FIELDS_BYTES);
	dioh_record_seal(head);
	input.data += size < FIELDS_BYTES ? size : FIELDS_BYTES;
	input.left -= size < FIELDS_BYTES ? size : FIELDS_BYTES;
	if (dioh_record_check_head(head, FILE_BYTES, NULL) == 0)
		try_tables(head, &input);
	free(head);
	return 0;
}
