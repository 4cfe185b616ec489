/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * output.c - text for people. Names and headers come from images and may be meant to fool a terminal or its reader:
 * whatever is not plainly visible is escaped. Called by the verbs.
 */
#include <errno.h>
#include <langinfo.h>
#include <string.h>

#include "tool.h"

#define ONE_ESCAPED_BYTES 16u /* "\u{10ffff}" and its NUL */

const char *dioh_tool_layout_name(uint32_t layout)
{
	switch (layout) {
	case DIOH_LAYOUT_RAW:
		return "raw";
	case DIOH_LAYOUT_CONTAINER:
		return "container";
	case DIOH_LAYOUT_MAPPED_RAM:
		return "mapped-ram";
	default:
		return "unknown";
	}
}

const char *dioh_tool_state_name(uint32_t state)
{
	switch (state) {
	case DIOH_STATE_PARTIAL:
		return "partial";
	case DIOH_STATE_COMPLETE:
		return "complete";
	case DIOH_STATE_WRITTEN:
		return "written";
	default:
		return "unknown";
	}
}

const char *dioh_tool_format_name(uint32_t format)
{
	static const char *const names[] = { "raw", "gzip", "bzip2", "xz", "lzop", "zstd", "sparse" };

	return format < sizeof(names) / sizeof(names[0]) ? names[format] : "unknown";
}

void dioh_tool_format_size(uint64_t bytes, char text[DIOH_TOOL_SIZE_BYTES])
{
	if (bytes < 1024)
		snprintf(text, DIOH_TOOL_SIZE_BYTES, "%u bytes", (unsigned)bytes);
	else if (bytes < 1024 * 1024)
		snprintf(text, DIOH_TOOL_SIZE_BYTES, "%.1f KiB", (double)bytes / 1024);
	else
		snprintf(text, DIOH_TOOL_SIZE_BYTES, "%.1f MiB", (double)bytes / (1024 * 1024));
}

/* ---- UTF-8 -------------------------------------------------------------------------------------------------- */

/* Length of the sequence that begins with `first`, and the bits it brings; 0: none may begin so. */
static size_t sequence_bytes(unsigned char first, uint32_t *ret_bits)
{
	if (first < 0x80) {
		*ret_bits = first;
		return 1;
	}
	if (first >= 0xc2 && first <= 0xdf) {
		*ret_bits = first & 0x1f;
		return 2;
	}
	if (first >= 0xe0 && first <= 0xef) {
		*ret_bits = first & 0x0f;
		return 3;
	}
	if (first >= 0xf0 && first <= 0xf4) {
		*ret_bits = first & 0x07;
		return 4;
	}
	return 0;
}

/* Decodes one character: how many bytes it has, 0 if they are not valid UTF-8. */
static size_t decode(const char *bytes, size_t count, uint32_t *ret_code)
{
	static const uint32_t smallest[] = { 0, 0, 0x80, 0x800, 0x10000 };
	uint32_t code = 0;
	size_t length = sequence_bytes((unsigned char)bytes[0], &code);

	if (length == 0 || length > count)
		return 0;
	for (size_t i = 1; i < length; i++) {
		if (((unsigned char)bytes[i] & 0xc0) != 0x80)
			return 0;
		code = code << 6 | ((unsigned char)bytes[i] & 0x3f);
	}
	if (code < smallest[length] || code > 0x10ffff || (code >= 0xd800 && code <= 0xdfff))
		return 0;
	*ret_code = code;
	return length;
}

/* Neither acts on a terminal nor hides from its reader: no controls, no joiners, no change of direction, no tags. */
static bool is_visible(uint32_t code)
{
	static const uint32_t hidden[][2] = {
		{ 0x00, 0x1f }, { 0x7f, 0x9f }, { 0xad, 0xad }, { 0x34f, 0x34f }, { 0x61c, 0x61c }, { 0x115f, 0x1160 },
		{ 0x17b4, 0x17b5 }, { 0x180b, 0x180f }, { 0x2000, 0x200f }, { 0x2028, 0x202f }, { 0x205f, 0x206f },
		{ 0x3164, 0x3164 }, { 0xe000, 0xf8ff }, { 0xfe00, 0xfe0f }, { 0xfeff, 0xfeff }, { 0xffa0, 0xffa0 },
		{ 0xfff0, 0xffff }, { 0x1bca0, 0x1bca3 }, { 0x1d173, 0x1d17a }, { 0xe0000, 0x10ffff },
	};

	for (size_t i = 0; i < sizeof(hidden) / sizeof(hidden[0]); i++)
		if (code >= hidden[i][0] && code <= hidden[i][1])
			return false;
	return true;
}

static bool terminal_takes_utf8(void)
{
	return strcmp(nl_langinfo(CODESET), "UTF-8") == 0;
}

/* Escapes the character at `bytes`; returns how many bytes it has. */
static size_t escape_one(const char *bytes, size_t count, char escaped[ONE_ESCAPED_BYTES])
{
	uint32_t code = 0;
	size_t length = decode(bytes, count, &code);

	if (length == 0) {
		snprintf(escaped, ONE_ESCAPED_BYTES, "\\x%02x", (unsigned char)bytes[0]);
		return 1;
	}
	if (code == '\\')
		strcpy(escaped, "\\\\");
	else if (is_visible(code) && (code < 0x80 || terminal_takes_utf8()))
		snprintf(escaped, ONE_ESCAPED_BYTES, "%.*s", (int)length, bytes);
	else if (code < 0x80)
		snprintf(escaped, ONE_ESCAPED_BYTES, "\\x%02x", (unsigned)code);
	else
		snprintf(escaped, ONE_ESCAPED_BYTES, "\\u{%x}", (unsigned)code);
	return length;
}

void dioh_tool_escape_name(const char *name, char escaped[DIOH_TOOL_ESCAPED_BYTES])
{
	size_t count = strnlen(name, DIOH_NAME_BYTES);
	size_t used = 0;

	escaped[0] = '\0';
	for (size_t i = 0; i < count;) {
		char one[ONE_ESCAPED_BYTES];

		i += escape_one(name + i, count - i, one);
		if (used + strlen(one) >= DIOH_TOOL_ESCAPED_BYTES)
			return;
		strcpy(escaped + used, one);
		used += strlen(one);
	}
}

size_t dioh_tool_columns(const char *escaped)
{
	size_t columns = 0;

	for (; *escaped; escaped++)
		columns += ((unsigned char)*escaped & 0xc0) != 0x80;
	return columns;
}

bool dioh_tool_is_text(const char *bytes, size_t count)
{
	for (size_t i = 0; i < count;) {
		uint32_t code = 0;
		size_t length = decode(bytes + i, count - i, &code);

		if (length == 0 || (!is_visible(code) && code != '\n' && code != '\t'))
			return false;
		i += length;
	}
	return true;
}

void dioh_tool_print_text(FILE *file, const char *indent, const char *bytes, size_t count)
{
	bool line_begins = true;

	for (size_t i = 0; i < count;) {
		char one[ONE_ESCAPED_BYTES];

		if (line_begins)
			fputs(indent, file);
		line_begins = bytes[i] == '\n';
		if (bytes[i] == '\n' || bytes[i] == '\t' || bytes[i] == '\\') {
			fputc(bytes[i++], file);
		} else {
			i += escape_one(bytes + i, count - i, one);
			fputs(one, file);
		}
	}
	if (!line_begins)
		fputc('\n', file);
}

/* ---- errors ------------------------------------------------------------------------------------------------- */

int dioh_tool_error_set(struct dioh_error *err, int code, const char *format, ...)
{
	va_list arguments;

	memset(err, 0, sizeof(*err));
	err->code = code;
	err->offset = DIOH_OFFSET_NONE;
	va_start(arguments, format);
	vsnprintf(err->text, sizeof(err->text), format, arguments);
	va_end(arguments);
	return -code;
}
