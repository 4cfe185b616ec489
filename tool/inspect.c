/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * inspect.c - the verb `inspect`: what an image says about itself, in any state. No memory and no stream is attached:
 * the helper reads head, tables and the manager's header, and that is all.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "align.h"
#include "tool.h"

/* A header that people may want to read as it is: a line of JSON, some XML. */
#define HEADER_SHOWN_MAX 4096u

struct options {
	const char *path;
	const char *helper;
	uint64_t base_offset;
	uint64_t header_bytes;
	bool json;
};

struct inspection {
	struct dioh_tool_image image;
	struct dioh_msg_open_image_reply open;
	struct dioh_tool_table table;
	bool record;
	char header[HEADER_SHOWN_MAX];
	size_t header_count; /* bytes to show; 0: none */
	bool in_file;        /* else on a device, of which nothing is allocated */
	uint64_t allocated_bytes;
	uint64_t file_bytes;
};

/* ---- reading ------------------------------------------------------------------------------------------------ */

/* Keeps the header if it is short and text; NULs at its end, as C programs write them, do not count. */
static int read_header(struct dioh_session *session, struct inspection *inspection, struct dioh_error *err)
{
	uint64_t count = 0;
	int r;

	if (inspection->open.header_bytes == 0 || inspection->open.header_bytes > HEADER_SHOWN_MAX)
		return 0;
	r = dioh_read_header(session, 0, inspection->header, inspection->open.header_bytes, &count, err);
	if (r != 0)
		return r;
	while (count > 0 && inspection->header[count - 1] == '\0')
		count--;
	if (dioh_tool_is_text(inspection->header, count))
		inspection->header_count = count;
	return 0;
}

static int read_image(const struct options *options, struct inspection *inspection, struct dioh_error *err)
{
	const struct dioh_tool_session_options session_options = {
		.helper = options->helper, .image = &inspection->image, .memory_fd = -1, .open_flags = DIOH_OPEN_INSPECT,
		.header_bytes = options->header_bytes
	};
	struct dioh_session *session;
	int r;

	r = dioh_tool_session_start(&session_options, &session, &inspection->open, err);
	if (r != 0)
		return r;
	r = dioh_tool_table_read(session, inspection->open.region_count, inspection->open.stream_count,
	                         &inspection->table, err);
	if (r == 0)
		r = read_header(session, inspection, err);
	return dioh_tool_session_end(session, r, err);
}

static int read_allocation(struct inspection *inspection, struct dioh_error *err)
{
	struct stat st;

	if (fstat(inspection->image.buffered_fd, &st) != 0)
		return dioh_tool_error_set(err, errno, "fstat failed: %s", strerror(errno));
	inspection->in_file = S_ISREG(st.st_mode);
	inspection->allocated_bytes = (uint64_t)st.st_blocks * 512;
	inspection->file_bytes = (uint64_t)st.st_size;
	return 0;
}

/* A partial image's bitmaps are not yet there to count. */
static bool presence_known(const struct inspection *inspection)
{
	return inspection->open.state != DIOH_STATE_PARTIAL;
}

/* ---- holes -------------------------------------------------------------------------------------------------- */

#define TABLES_BYTES 65536u /* heads, tables, ends of blocks: more is no matter here */
#define ABSENT_BYTES_MIN (UINT64_C(1) << 20)

/* Bytes of pages that an image need not have room for. */
static uint64_t absent_bytes(const struct dioh_tool_table *table)
{
	uint64_t absent = 0;

	for (uint32_t i = 0; i < table->region_count; i++)
		absent += table->entries[i].bytes - table->entries[i].present_bytes;
	return absent;
}

/* Most that the file needs: what is before and behind the image is taken for data. */
static uint64_t needed_bytes(const struct inspection *inspection)
{
	const struct dioh_tool_table *table = &inspection->table;
	uint64_t image_end = inspection->image.base_offset + inspection->open.image_bytes;
	uint64_t needed = inspection->image.base_offset + inspection->open.header_bytes + TABLES_BYTES;
	uint64_t streams = 0, in_streams = 0;

	for (uint32_t i = 0; i < table->region_count; i++) {
		const struct dioh_msg_entry *entry = &table->entries[i];

		needed += entry->present_bytes + entry->bytes / DIOH_PAGE_BYTES / 4; /* bitmap, checksums */
		in_streams += entry->flags & DIOH_ENTRY_IN_STREAM ? entry->present_bytes : 0;
	}
	for (uint32_t i = 0; i < table->stream_count; i++)
		streams += table->entries[table->region_count + i].bytes;
	needed += streams - dioh_min(in_streams, streams); /* pages that are in both stand there once */
	return needed + inspection->file_bytes - dioh_min(image_end, inspection->file_bytes);
}

/*
 * Most of the holes hold blocks, and these are much more than the data. Not each hole counts: saves write short ones along,
 * so where zero pages are strewn among others some room is taken by any image.
 */
static bool holes_filled(const struct inspection *inspection)
{
	uint64_t absent = absent_bytes(&inspection->table);
	uint64_t needed = needed_bytes(inspection);
	uint64_t excess = inspection->allocated_bytes - dioh_min(needed, inspection->allocated_bytes);

	if (!inspection->in_file || !presence_known(inspection) || absent < ABSENT_BYTES_MIN)
		return false;
	return excess > absent / 2 && excess > needed / 2;
}

/* ---- for people --------------------------------------------------------------------------------------------- */

struct column {
	const char *title;
	bool right; /* aligned to the right */
	void (*cell)(const struct inspection *, const struct dioh_msg_entry *, char text[DIOH_TOOL_ESCAPED_BYTES]);
};

#define CELL DIOH_TOOL_ESCAPED_BYTES

static void cell_number(const struct inspection *inspection, const struct dioh_msg_entry *entry, char text[CELL])
{
	(void)inspection;
	snprintf(text, CELL, "%" PRIu32, entry->number);
}

static void cell_name(const struct inspection *inspection, const struct dioh_msg_entry *entry, char text[CELL])
{
	(void)inspection;
	dioh_tool_escape_name(entry->name, text);
}

static void cell_size(const struct inspection *inspection, const struct dioh_msg_entry *entry, char text[CELL])
{
	bool unknown = entry->kind == DIOH_ENTRY_STREAM && !presence_known(inspection);

	if (unknown)
		strcpy(text, "-");
	else
		dioh_tool_format_size(entry->bytes, text);
}

static void cell_address(const struct inspection *inspection, const struct dioh_msg_entry *entry, char text[CELL])
{
	(void)inspection;
	if (entry->flags & DIOH_ENTRY_GUEST_ADDRESS)
		snprintf(text, CELL, "0x%" PRIx64, entry->guest_address);
	else
		strcpy(text, "-");
}

static void cell_present(const struct inspection *inspection, const struct dioh_msg_entry *entry, char text[CELL])
{
	char size[DIOH_TOOL_SIZE_BYTES];

	if (!presence_known(inspection)) {
		strcpy(text, "-");
		return;
	}
	dioh_tool_format_size(entry->present_bytes, size);
	snprintf(text, CELL, "%s (%.1f%%)", size,
	         entry->bytes ? 100.0 * (double)entry->present_bytes / (double)entry->bytes : 0.0);
}

static void cell_checksums(const struct inspection *inspection, const struct dioh_msg_entry *entry, char text[CELL])
{
	if (!presence_known(inspection))
		strcpy(text, "-");
	else
		strcpy(text, entry->flags & DIOH_ENTRY_CHECKSUMS ? "yes" : "no");
}

static void cell_in_stream(const struct inspection *inspection, const struct dioh_msg_entry *entry, char text[CELL])
{
	(void)inspection;
	strcpy(text, entry->flags & DIOH_ENTRY_IN_STREAM ? "yes" : "no");
}

static void cell_offset(const struct inspection *inspection, const struct dioh_msg_entry *entry, char text[CELL])
{
	if (entry->kind == DIOH_ENTRY_STREAM && (entry->bytes == 0 || !presence_known(inspection)))
		strcpy(text, "-");
	else
		snprintf(text, CELL, "%" PRIu64, entry->image_offset);
}

static const struct column region_columns[] = {
	{ "number", true, cell_number },       { "name", false, cell_name },
	{ "size", true, cell_size },           { "guest address", true, cell_address },
	{ "present", true, cell_present },     { "checksums", false, cell_checksums },
	{ "image offset", true, cell_offset }, { "in stream", false, cell_in_stream }, /* the last: mapped-ram only */
};

static const struct column stream_columns[] = {
	{ "number", true, cell_number },       { "name", false, cell_name },
	{ "size", true, cell_size },           { "checksums", false, cell_checksums },
	{ "image offset", true, cell_offset },
};

#define COLUMNS_MAX (sizeof(region_columns) / sizeof(region_columns[0]))
#define STREAM_COLUMNS (sizeof(stream_columns) / sizeof(stream_columns[0]))

static void print_cell(const char *text, size_t width, bool right, bool last)
{
	size_t columns = dioh_tool_columns(text);
	int padding = width > columns ? (int)(width - columns) : 0;

	if (right)
		printf("%*s%s", padding, "", text);
	else
		printf("%s%*s", text, last ? 0 : padding, "");
	fputs(last ? "\n" : "  ", stdout);
}

static void print_entries(const struct inspection *inspection, const char *title, const struct column *columns,
                          size_t column_count, const struct dioh_msg_entry *entries, uint32_t count)
{
	size_t widths[COLUMNS_MAX];
	char text[CELL];

	if (count == 0)
		return;
	for (size_t c = 0; c < column_count; c++) {
		widths[c] = strlen(columns[c].title);
		for (uint32_t i = 0; i < count; i++) {
			columns[c].cell(inspection, &entries[i], text);
			if (dioh_tool_columns(text) > widths[c])
				widths[c] = dioh_tool_columns(text);
		}
	}
	printf("\n%s:\n", title);
	for (size_t c = 0; c < column_count; c++) {
		fputs(c == 0 ? "  " : "", stdout);
		print_cell(columns[c].title, widths[c], columns[c].right, c + 1 == column_count);
	}
	for (uint32_t i = 0; i < count; i++)
		for (size_t c = 0; c < column_count; c++) {
			fputs(c == 0 ? "  " : "", stdout);
			columns[c].cell(inspection, &entries[i], text);
			print_cell(text, widths[c], columns[c].right, c + 1 == column_count);
		}
}

static const char *state_remark(const struct inspection *inspection)
{
	switch (inspection->open.state) {
	case DIOH_STATE_PARTIAL:
		return ": a save began and did not finish; nothing below is certain";
	case DIOH_STATE_WRITTEN:
		return ": never made durable";
	case DIOH_STATE_COMPLETE:
		return inspection->record ? "" : ": libvirt's header says so, and nothing else";
	default:
		return ": nothing in the image says whether it is complete";
	}
}

static void print_domain(const struct dioh_msg_open_image_reply *open)
{
	char name[DIOH_TOOL_ESCAPED_BYTES], uuid[DIOH_TOOL_ESCAPED_BYTES], size[DIOH_TOOL_SIZE_BYTES];
	char domain_uuid[DIOH_NAME_BYTES] = "";

	memcpy(domain_uuid, open->domain_uuid, sizeof(open->domain_uuid));
	dioh_tool_escape_name(open->domain_name, name);
	dioh_tool_escape_name(domain_uuid, uuid);
	dioh_tool_format_size(open->domain_memory_bytes, size);
	printf("domain:  \"%s\", uuid %s, ", name, *uuid ? uuid : "not known");
	if (open->domain_memory_bytes)
		printf("memory %s, ", size);
	puts(open->header_flags & DIOH_HEADER_WAS_RUNNING ? "was running" : "was not running");
}

static void print_header(const struct inspection *inspection)
{
	const struct dioh_msg_open_image_reply *open = &inspection->open;

	printf("header:  %" PRIu64 " bytes", open->header_bytes);
	if (open->header_kind == DIOH_HEADER_LIBVIRT)
		printf(", libvirt's, of a save image in format %s%s", dioh_tool_format_name(open->header_format),
		       open->header_flags & DIOH_HEADER_COMPLETE ? "" : ", marked partial");
	putchar('\n');
	if (open->header_kind == DIOH_HEADER_LIBVIRT)
		print_domain(open);
	if (inspection->header_count)
		dioh_tool_print_text(stdout, "    ", inspection->header, inspection->header_count);
}

static void print_image(const struct inspection *inspection)
{
	const struct dioh_msg_open_image_reply *open = &inspection->open;
	char size[DIOH_TOOL_SIZE_BYTES];

	fputs("image:   ", stdout);
	dioh_tool_print_text(stdout, "", inspection->image.path, strlen(inspection->image.path));
	printf("layout:  %s\n", dioh_tool_layout_name(open->layout));
	printf("state:   %s%s\n", dioh_tool_state_name(open->state), state_remark(inspection));
	dioh_tool_format_size(open->image_bytes, size);
	printf("size:    %s (%" PRIu64 " bytes)", size, open->image_bytes);
	if (inspection->image.base_offset)
		printf(" from offset %" PRIu64, inspection->image.base_offset);
	printf("\nrecord:  %s\n", inspection->record ? "yes" : "no: nothing in it has checksums");
	print_header(inspection);
}

static void print_warning(const struct inspection *inspection)
{
	char allocated[DIOH_TOOL_SIZE_BYTES], needed[DIOH_TOOL_SIZE_BYTES];

	if (!holes_filled(inspection))
		return;
	dioh_tool_format_size(inspection->allocated_bytes, allocated);
	dioh_tool_format_size(needed_bytes(inspection), needed);
	printf("warning: most of what could be holes in it takes room on the disk: %s for %s of data; a copy without --sparse\n"
	       "         does that, and `fallocate --dig-holes` gives back what is zero\n", allocated, needed);
}

static void print_human(const struct inspection *inspection)
{
	const struct dioh_tool_table *table = &inspection->table;
	bool mapped_ram = inspection->open.layout == DIOH_LAYOUT_MAPPED_RAM;

	print_image(inspection);
	print_warning(inspection);
	print_entries(inspection, "regions", region_columns, mapped_ram ? COLUMNS_MAX : COLUMNS_MAX - 1, table->entries,
	              table->region_count);
	print_entries(inspection, "streams", stream_columns, STREAM_COLUMNS, table->entries + table->region_count,
	              table->stream_count);
}

/* ---- for programs ------------------------------------------------------------------------------------------- */

static json_t *json_known(bool known, json_t *value)
{
	if (known)
		return value;
	json_decref(value);
	return json_null();
}

static json_t *json_entry(const struct inspection *inspection, const struct dioh_msg_entry *entry)
{
	bool known = presence_known(inspection);
	json_t *checksums = json_known(known, json_boolean(entry->flags & DIOH_ENTRY_CHECKSUMS));
	json_t *name = dioh_tool_json_name(entry->name);
	json_t *offset = dioh_tool_json_bytes(entry->image_offset);

	if (entry->kind == DIOH_ENTRY_STREAM)
		return json_pack("{s:I, s:o, s:o, s:o, s:o}", "number", (json_int_t)entry->number, "name", name,
		                 "bytes", json_known(known, dioh_tool_json_bytes(entry->bytes)), "checksums", checksums,
		                 "image_offset", json_known(known && entry->bytes, offset));
	return json_pack("{s:I, s:o, s:o, s:o, s:o, s:o, s:o, s:b}", "number", (json_int_t)entry->number, "name", name,
	                 "bytes", dioh_tool_json_bytes(entry->bytes), "guest_address",
	                 json_known(entry->flags & DIOH_ENTRY_GUEST_ADDRESS, dioh_tool_json_hex(entry->guest_address)),
	                 "present_bytes", json_known(known, dioh_tool_json_bytes(entry->present_bytes)), "checksums",
	                 checksums, "image_offset", offset, "in_stream", (entry->flags & DIOH_ENTRY_IN_STREAM) != 0);
}

static json_t *json_entries(const struct inspection *inspection, const struct dioh_msg_entry *entries, uint32_t count)
{
	json_t *array = json_array();

	for (uint32_t i = 0; array && i < count; i++)
		if (json_array_append_new(array, json_entry(inspection, &entries[i])) != 0) {
			json_decref(array);
			return NULL;
		}
	return array;
}

static json_t *json_document(const struct inspection *inspection)
{
	const struct dioh_tool_table *table = &inspection->table;
	json_t *root = dioh_tool_json_image(inspection->image.path, inspection->image.base_offset, &inspection->open,
	                                    inspection->record);
	json_t *header = inspection->header_count ?
		dioh_tool_json_text(inspection->header, inspection->header_count) : json_null();

	if (json_object_set_new(root, "header_text", header) != 0 ||
	    json_object_set_new(root, "allocated_bytes",
	                        json_known(inspection->in_file, dioh_tool_json_bytes(inspection->allocated_bytes))) != 0 ||
	    json_object_set_new(root, "holes_filled", json_boolean(holes_filled(inspection))) != 0 ||
	    json_object_set_new(root, "regions", json_entries(inspection, table->entries, table->region_count)) != 0 ||
	    json_object_set_new(root, "streams", json_entries(inspection, table->entries + table->region_count,
	                                                      table->stream_count)) != 0) {
		json_decref(root);
		return NULL;
	}
	return root;
}

/* ---- the verb ----------------------------------------------------------------------------------------------- */

static int inspect(const struct options *options, struct dioh_error *err)
{
	struct inspection inspection;
	int r;

	memset(&inspection, 0, sizeof(inspection));
	r = dioh_tool_image_open(options->path, options->base_offset, false, &inspection.image, err);
	if (r != 0)
		return r;
	r = read_image(options, &inspection, err);
	if (r == 0)
		r = read_allocation(&inspection, err);
	inspection.record = r == 0 && dioh_tool_has_record(&inspection.open, &inspection.table);
	if (r == 0 && options->json)
		r = dioh_tool_json_print(json_document(&inspection), err);
	else if (r == 0)
		print_human(&inspection);
	free(inspection.table.entries);
	dioh_tool_image_close(&inspection.image);
	return r;
}

static int run(int argc, char **argv)
{
	struct options options = { 0 };
	const struct dioh_tool_option table[] = {
		{ "json", NULL, "print a JSON document instead of tables", &options.json, NULL, NULL },
		{ "base-offset", "SIZE", DIOH_TOOL_BASE_OFFSET_HELP, NULL, NULL, &options.base_offset },
		{ "header-bytes", "SIZE", DIOH_TOOL_HEADER_BYTES_HELP, NULL, NULL, &options.header_bytes },
		{ "helper", "PATH", DIOH_TOOL_HELPER_HELP, NULL, &options.helper, NULL },
	};
	const struct dioh_tool_usage usage = {
		"inspect", "IMAGE", "Shows what IMAGE holds, whatever its state. Exit status 1 if it cannot be read.", table,
		sizeof(table) / sizeof(table[0])
	};
	struct dioh_error err;
	int status = dioh_tool_parse(&usage, argc, argv, &options.path);

	if (status < 0)
		status = dioh_tool_check_place(usage.verb, options.base_offset, options.header_bytes);
	if (status >= 0)
		return status;
	if (inspect(&options, &err) == 0)
		return DIOH_TOOL_OK;
	return dioh_tool_fail(options.path, options.base_offset, options.json, &err);
}

const struct dioh_tool_verb dioh_tool_inspect = { "inspect", "what an image holds", run };
