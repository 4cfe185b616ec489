/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * map.c - the verb `map`: which pages of each region are in an image, and where: what `qemu-img map` says of a disk. The
 * helper has checked tables and bitmaps; here bits become runs, which are printed as they are found, so that memory does
 * not grow with the image.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "align.h"
#include "tool.h"

#define PIECE_BYTES DIOH_PAYLOAD_BYTES_MAX /* of a bitmap: 2 GiB of memory */

struct options {
	const char *path;
	const char *helper;
	uint64_t base_offset;
	uint64_t header_bytes;
	bool json;
};

struct map {
	const struct options *options;
	const struct dioh_msg_entry *region;
	uint64_t run_page; /* where the run at hand began */
	bool run_present;
	bool first;        /* nothing has been printed of this array */
	uint8_t bits[PIECE_BYTES];
};

/* ---- a run -------------------------------------------------------------------------------------------------- */

static void print_json_run(struct map *map, uint64_t start, uint64_t length)
{
	/* In the order that qemu-img has. */
	printf("%s\n        {\"start\": %" PRIu64 ", \"length\": %" PRIu64 ", \"depth\": 0, \"present\": %s, \"zero\": %s, "
	       "\"data\": %s", map->first ? "" : ",", start, length, map->run_present ? "true" : "false",
	       map->run_present ? "false" : "true", map->run_present ? "true" : "false");
	if (map->run_present)
		printf(", \"offset\": %" PRIu64, map->options->base_offset + map->region->image_offset + start);
	putchar('}');
}

static void print_run(struct map *map, uint64_t end_page)
{
	const uint64_t start = map->run_page * DIOH_PAGE_BYTES;
	const uint64_t length = (end_page - map->run_page) * DIOH_PAGE_BYTES;

	if (length == 0)
		return;
	if (map->options->json)
		print_json_run(map, start, length);
	else if (map->run_present)
		printf("0x%-16" PRIx64 " 0x%-16" PRIx64 " 0x%" PRIx64 "\n", start, length,
		       map->options->base_offset + map->region->image_offset + start);
	map->first = false;
	map->run_page = end_page;
}

static void take_bits(struct map *map, uint64_t first_page, uint64_t pages)
{
	for (uint64_t i = 0; i < pages;) {
		const uint8_t byte = map->bits[i / 8];
		const bool present = byte >> i % 8 & 1;

		if (present != map->run_present)
			print_run(map, first_page + i);
		map->run_present = present;
		/* Most bytes are all the same. */
		i += i % 8 == 0 && (byte == 0 || byte == 0xff) ? dioh_min(8, pages - i) : 1;
	}
}

/* ---- a region ----------------------------------------------------------------------------------------------- */

static int map_region(struct map *map, struct dioh_session *session, struct dioh_error *err)
{
	const uint64_t pages = map->region->bytes / DIOH_PAGE_BYTES;

	map->run_page = 0;
	map->run_present = false;
	map->first = true;
	for (uint64_t page = 0; page < pages; page += PIECE_BYTES * 8) {
		const uint64_t wanted = dioh_div_up(dioh_min(pages - page, PIECE_BYTES * 8), 8);
		uint64_t count = 0;
		int r = dioh_read_bitmap(session, map->region->number, page / 8, map->bits, wanted, &count, err);

		if (r == 0 && count != wanted)
			r = dioh_tool_error_set(err, EBADMSG, "the helper has %" PRIu64 " bytes of a bitmap instead of %" PRIu64,
			                        count, wanted);
		if (r != 0)
			return r;
		take_bits(map, page, dioh_min(pages - page, PIECE_BYTES * 8));
	}
	print_run(map, pages);
	return 0;
}

static int begin_region(const struct map *map, bool first, struct dioh_error *err)
{
	json_t *name = dioh_tool_json_name(map->region->name);
	char *text = name ? json_dumps(name, JSON_ENCODE_ANY | JSON_ENSURE_ASCII) : NULL;
	char escaped[DIOH_TOOL_ESCAPED_BYTES];

	json_decref(name);
	if (!text)
		return dioh_tool_error_set(err, ENOMEM, "there is no memory for a name");
	dioh_tool_escape_name(map->region->name, escaped);
	if (map->options->json)
		printf("%s\n    {\"number\": %" PRIu32 ", \"name\": %s, \"bytes\": %" PRIu64 ", \"map\": [", first ? "" : ",",
		       map->region->number, text, map->region->bytes);
	else
		printf("%sregion %" PRIu32 " \"%s\", %" PRIu64 " bytes\n%-18s %-18s %s\n", first ? "" : "\n",
		       map->region->number, escaped, map->region->bytes, "Offset", "Length", "Mapped to");
	free(text);
	return 0;
}

static int map_all(struct map *map, struct dioh_session *session, const struct dioh_tool_table *table,
                   struct dioh_error *err)
{
	int r = 0;

	if (map->options->json)
		fputs("[", stdout);
	for (uint32_t i = 0; r == 0 && i < table->region_count; i++) {
		map->region = &table->entries[i];
		r = begin_region(map, i == 0, err);
		if (r == 0)
			r = map_region(map, session, err);
		if (r == 0 && map->options->json)
			printf("%s]}", map->first ? "" : "\n    ");
	}
	if (r == 0 && map->options->json)
		fputs("\n]\n", stdout);
	return r;
}

/* ---- the verb ----------------------------------------------------------------------------------------------- */

/* What is said before the first byte is printed. */
static int check(const struct dioh_msg_open_image_reply *open, struct dioh_error *err)
{
	if (open->layout == DIOH_LAYOUT_RAW)
		return dioh_tool_error_set(err, EOPNOTSUPP, "is a stream: its memory has no places in it");
	if (open->state == DIOH_STATE_PARTIAL)
		return dioh_tool_error_set(err, ENODATA, "is partial: which pages it has is not known");
	return 0;
}

static int map_in_session(const struct options *options, struct dioh_session *session,
                          const struct dioh_msg_open_image_reply *open, bool *ret_begun, struct dioh_error *err)
{
	struct map *map = calloc(1, sizeof(*map));
	struct dioh_tool_table table = { 0 };
	int r;

	if (!map)
		return dioh_tool_error_set(err, ENOMEM, "there is no memory for a map");
	r = check(open, err);
	if (r == 0)
		r = dioh_tool_table_read(session, open->region_count, open->stream_count, &table, err);
	if (r == 0) {
		map->options = options;
		*ret_begun = true;
		r = map_all(map, session, &table, err);
	}
	free(table.entries);
	free(map);
	return r;
}

/* `ret_begun`: something has been printed. */
static int map_image(const struct options *options, bool *ret_begun, struct dioh_error *err)
{
	struct dioh_tool_image image;
	const struct dioh_tool_session_options session_options = {
		.helper = options->helper, .image = &image, .memory_fd = -1, .open_flags = DIOH_OPEN_INSPECT,
		.header_bytes = options->header_bytes
	};
	struct dioh_msg_open_image_reply open;
	struct dioh_session *session;
	int r = dioh_tool_image_open(options->path, options->base_offset, false, &image, err);

	if (r != 0)
		return r;
	r = dioh_tool_session_start(&session_options, &session, &open, err);
	if (r == 0) {
		r = map_in_session(options, session, &open, ret_begun, err);
		r = dioh_tool_session_end(session, r, err);
	}
	dioh_tool_image_close(&image);
	return r;
}

static int run(int argc, char **argv)
{
	struct options options = { 0 };
	const struct dioh_tool_option table[] = {
		{ "json", NULL, "print JSON, as qemu-img map does, for each region", &options.json, NULL, NULL },
		{ "base-offset", "SIZE", DIOH_TOOL_BASE_OFFSET_HELP, NULL, NULL, &options.base_offset },
		{ "header-bytes", "SIZE", DIOH_TOOL_HEADER_BYTES_HELP, NULL, NULL, &options.header_bytes },
		{ "helper", "PATH", DIOH_TOOL_HELPER_HELP, NULL, &options.helper, NULL },
	};
	const struct dioh_tool_usage usage = {
		"map", "IMAGE", "Prints which pages of each region are in IMAGE, and where. Pages that are not are zero.",
		table, sizeof(table) / sizeof(table[0])
	};
	struct dioh_error err;
	bool begun = false;
	int status = dioh_tool_parse(&usage, argc, argv, &options.path);

	if (status < 0)
		status = dioh_tool_check_place(usage.verb, options.base_offset, options.header_bytes);
	if (status >= 0)
		return status;
	if (map_image(&options, &begun, &err) != 0)
		return dioh_tool_fail(options.path, options.base_offset, options.json && !begun, &err);
	return DIOH_TOOL_OK;
}

const struct dioh_tool_verb dioh_tool_map = { "map", "which pages are in an image, and where", run };
