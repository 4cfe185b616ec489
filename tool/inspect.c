/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * inspect.c - the verb `inspect`: what an image says about itself, in any state. No memory and no stream is attached:
 * the helper reads head, tables and the manager's header, and that is all.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "tool.h"

/* A header that people may want to read as it is: a line of JSON, some XML. */
#define HEADER_SHOWN_MAX 4096u

struct inspection {
	struct dioh_tool_image image;
	struct dioh_msg_open_image_reply open;
	struct dioh_tool_table table;
	char header[HEADER_SHOWN_MAX];
	size_t header_count; /* bytes to show; 0: none */
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

static int read_image(const char *helper, struct inspection *inspection, struct dioh_error *err)
{
	const struct dioh_tool_session_options options = {
		.helper = helper, .image = &inspection->image, .memory_fd = -1, .open_flags = DIOH_OPEN_INSPECT
	};
	struct dioh_session *session;
	struct dioh_error end_err;
	int r, end;

	r = dioh_tool_session_start(&options, &session, &inspection->open, err);
	if (r != 0)
		return r;
	r = dioh_tool_table_read(session, &inspection->open, &inspection->table, err);
	if (r == 0)
		r = read_header(session, inspection, err);
	end = dioh_tool_session_end(session, &end_err);
	if (r == 0 && end != 0) {
		*err = end_err;
		r = end;
	}
	return r;
}

/* A partial image's bitmaps are not yet there to count. */
static bool presence_known(const struct inspection *inspection)
{
	return inspection->open.state != DIOH_STATE_PARTIAL;
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

static void cell_offset(const struct inspection *inspection, const struct dioh_msg_entry *entry, char text[CELL])
{
	(void)inspection;
	if (entry->kind == DIOH_ENTRY_STREAM && entry->bytes == 0)
		strcpy(text, "-");
	else
		snprintf(text, CELL, "%" PRIu64, entry->image_offset);
}

static const struct column region_columns[] = {
	{ "number", true, cell_number },       { "name", false, cell_name },
	{ "size", true, cell_size },           { "guest address", true, cell_address },
	{ "present", true, cell_present },     { "checksums", false, cell_checksums },
	{ "image offset", true, cell_offset },
};

static const struct column stream_columns[] = {
	{ "number", true, cell_number },       { "name", false, cell_name },
	{ "size", true, cell_size },           { "checksums", false, cell_checksums },
	{ "image offset", true, cell_offset },
};

#define COLUMNS_MAX (sizeof(region_columns) / sizeof(region_columns[0]))

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

static const char *state_remark(uint32_t state)
{
	switch (state) {
	case DIOH_STATE_PARTIAL:
		return ": a save began and did not finish; nothing below is certain";
	case DIOH_STATE_WRITTEN:
		return ": never made durable";
	default:
		return "";
	}
}

static void print_human(const struct inspection *inspection)
{
	const struct dioh_msg_open_image_reply *open = &inspection->open;
	const struct dioh_tool_table *table = &inspection->table;
	char size[DIOH_TOOL_SIZE_BYTES];

	fputs("image:   ", stdout);
	dioh_tool_print_text(stdout, "", inspection->image.path, strlen(inspection->image.path));
	printf("layout:  %s\n", dioh_tool_layout_name(open->layout));
	printf("state:   %s%s\n", dioh_tool_state_name(open->state), state_remark(open->state));
	dioh_tool_format_size(open->image_bytes, size);
	printf("size:    %s (%" PRIu64 " bytes)", size, open->image_bytes);
	if (inspection->image.base_offset)
		printf(" from offset %" PRIu64, inspection->image.base_offset);
	printf("\nheader:  %" PRIu64 " bytes\n", open->header_bytes);
	if (inspection->header_count)
		dioh_tool_print_text(stdout, "    ", inspection->header, inspection->header_count);
	print_entries(inspection, "regions", region_columns, sizeof(region_columns) / sizeof(region_columns[0]),
	              table->entries, table->region_count);
	print_entries(inspection, "streams", stream_columns, sizeof(stream_columns) / sizeof(stream_columns[0]),
	              table->entries + table->region_count, table->stream_count);
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
	return json_pack("{s:I, s:o, s:o, s:o, s:o, s:o, s:o}", "number", (json_int_t)entry->number, "name", name,
	                 "bytes", dioh_tool_json_bytes(entry->bytes), "guest_address",
	                 json_known(entry->flags & DIOH_ENTRY_GUEST_ADDRESS, dioh_tool_json_hex(entry->guest_address)),
	                 "present_bytes", json_known(known, dioh_tool_json_bytes(entry->present_bytes)), "checksums",
	                 checksums, "image_offset", offset);
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
	json_t *root = dioh_tool_json_image(inspection->image.path, inspection->image.base_offset, &inspection->open);
	json_t *header = inspection->header_count ?
		dioh_tool_json_text(inspection->header, inspection->header_count) : json_null();

	if (json_object_set_new(root, "header_text", header) != 0 ||
	    json_object_set_new(root, "regions", json_entries(inspection, table->entries, table->region_count)) != 0 ||
	    json_object_set_new(root, "streams", json_entries(inspection, table->entries + table->region_count,
	                                                      table->stream_count)) != 0) {
		json_decref(root);
		return NULL;
	}
	return root;
}

/* ---- the verb ----------------------------------------------------------------------------------------------- */

static int inspect(const char *path, uint64_t base_offset, const char *helper, bool json, struct dioh_error *err)
{
	struct inspection inspection;
	int r;

	memset(&inspection, 0, sizeof(inspection));
	r = dioh_tool_image_open(path, base_offset, false, &inspection.image, err);
	if (r != 0)
		return r;
	r = read_image(helper, &inspection, err);
	if (r == 0 && json)
		r = dioh_tool_json_print(json_document(&inspection), err);
	else if (r == 0)
		print_human(&inspection);
	free(inspection.table.entries);
	dioh_tool_image_close(&inspection.image);
	return r;
}

static int run(int argc, char **argv)
{
	bool json = false;
	const char *helper = NULL, *path;
	uint64_t base_offset = 0;
	const struct dioh_tool_option options[] = {
		{ "json", NULL, "print a JSON document instead of tables", &json, NULL, NULL },
		{ "base-offset", "SIZE", DIOH_TOOL_BASE_OFFSET_HELP, NULL, NULL, &base_offset },
		{ "helper", "PATH", DIOH_TOOL_HELPER_HELP, NULL, &helper, NULL },
	};
	const struct dioh_tool_usage usage = {
		"inspect", "IMAGE", "Shows what IMAGE holds, whatever its state. Exit status 1 if it cannot be read.", options,
		sizeof(options) / sizeof(options[0])
	};
	struct dioh_error err;
	int status = dioh_tool_parse(&usage, argc, argv, &path);

	if (status < 0)
		status = dioh_tool_check_base_offset(usage.verb, base_offset);
	if (status >= 0)
		return status;
	if (inspect(path, base_offset, helper, json, &err) == 0)
		return DIOH_TOOL_OK;
	return dioh_tool_fail(path, base_offset, json, &err);
}

const struct dioh_tool_verb dioh_tool_inspect = { "inspect", "what an image holds", run };
