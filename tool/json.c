/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * json.c - the pieces that the verbs' JSON documents are made of. The keys are documented in docs/tool.md and do not
 * change. Strings are ASCII with escapes, whatever stands in the image.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "cleanup.h"
#include "tool.h"

/* Text that is not UTF-8 cannot be a JSON string: it becomes one with \xNN for every byte that is not plain ASCII. */
static json_t *escaped_text(const char *bytes, size_t count)
{
	DIOH_AUTO_FREE char *text = malloc(4 * count + 1);
	size_t used = 0;

	for (size_t i = 0; text && i < count; i++) {
		unsigned char c = (unsigned char)bytes[i];

		if (c >= 0x20 && c < 0x7f && c != '\\')
			text[used++] = (char)c;
		else
			used += (size_t)snprintf(text + used, sizeof("\\xff"), "\\x%02x", c);
	}
	return text ? json_stringn(text, used) : NULL;
}

json_t *dioh_tool_json_text(const char *bytes, size_t count)
{
	json_t *text = json_stringn(bytes, count);

	return text ? text : escaped_text(bytes, count);
}

json_t *dioh_tool_json_name(const char name[DIOH_NAME_BYTES])
{
	return dioh_tool_json_text(name, strnlen(name, DIOH_NAME_BYTES));
}

json_t *dioh_tool_json_hex(uint64_t value)
{
	char text[2 + 16 + 1];

	snprintf(text, sizeof(text), "0x%" PRIx64, value);
	return json_string(text);
}

json_t *dioh_tool_json_bytes(uint64_t value)
{
	/* Sizes and offsets lie below 2^62; whoever sends more gets what JSON can hold. */
	return json_integer(value > INT64_MAX ? INT64_MAX : (json_int_t)value);
}

static const char *operation_name(uint32_t operation)
{
	static const char *const names[] = {
		"none", "protocol", "attach", "label", "seal", "parse", "checksum", "read",
		"write", "sync", "size", "seek", "map", "cancel", "finish", "spawn",
	};

	return operation < sizeof(names) / sizeof(names[0]) ? names[operation] : "unknown";
}

static const char *object_name(uint32_t object)
{
	static const char *const names[] = { "none", "session", "image", "memory", "stream", "region" };

	return object < sizeof(names) / sizeof(names[0]) ? names[object] : "unknown";
}

json_t *dioh_tool_json_error(const struct dioh_error *err)
{
	json_t *offset = err->offset == DIOH_OFFSET_NONE ? json_null() : dioh_tool_json_bytes(err->offset);

	return json_pack("{s:i, s:s, s:s, s:I, s:o, s:o}", "code", err->code, "operation",
	                 operation_name(err->operation), "object", object_name(err->object), "number",
	                 (json_int_t)err->number, "offset", offset, "text",
	                 dioh_tool_json_text(err->text, strnlen(err->text, sizeof(err->text))));
}

static json_t *text_or_null(const char *text, size_t room)
{
	size_t count = strnlen(text, room);

	return count ? dioh_tool_json_text(text, count) : json_null();
}

/* What libvirt's header tells; null without one. */
static json_t *libvirt_header(const struct dioh_msg_open_image_reply *open)
{
	json_t *memory = open->domain_memory_bytes ? dioh_tool_json_bytes(open->domain_memory_bytes) : json_null();

	if (open->header_kind != DIOH_HEADER_LIBVIRT) {
		json_decref(memory);
		return json_null();
	}
	return json_pack("{s:s, s:b, s:b, s:o, s:o, s:o}", "format", dioh_tool_format_name(open->header_format),
	                 "complete", (open->header_flags & DIOH_HEADER_COMPLETE) != 0, "was_running",
	                 (open->header_flags & DIOH_HEADER_WAS_RUNNING) != 0, "name",
	                 text_or_null(open->domain_name, sizeof(open->domain_name)), "uuid",
	                 text_or_null(open->domain_uuid, sizeof(open->domain_uuid)), "memory_bytes", memory);
}

json_t *dioh_tool_json_image(const char *path, uint64_t base_offset, const struct dioh_msg_open_image_reply *open,
                             bool record)
{
	json_t *root = json_pack("{s:o, s:o}", "image", dioh_tool_json_text(path, strlen(path)), "base_offset",
	                         dioh_tool_json_bytes(base_offset));

	if (!root || !open)
		return root;
	if (json_object_set_new(root, "layout", json_string(dioh_tool_layout_name(open->layout))) != 0 ||
	    json_object_set_new(root, "state", json_string(dioh_tool_state_name(open->state))) != 0 ||
	    json_object_set_new(root, "image_bytes", dioh_tool_json_bytes(open->image_bytes)) != 0 ||
	    json_object_set_new(root, "record", json_boolean(record)) != 0 ||
	    json_object_set_new(root, "header_bytes", dioh_tool_json_bytes(open->header_bytes)) != 0 ||
	    json_object_set_new(root, "libvirt", libvirt_header(open)) != 0 ||
	    json_object_set_new(root, "compatible_features", dioh_tool_json_hex(open->compatible_features)) != 0) {
		json_decref(root);
		return NULL;
	}
	return root;
}

int dioh_tool_json_print(json_t *root, struct dioh_error *err)
{
	int r;

	if (!root)
		return dioh_tool_error_set(err, ENOMEM, "memory ran out while the JSON document was made");
	r = json_dumpf(root, stdout, JSON_INDENT(2) | JSON_ENSURE_ASCII | JSON_PRESERVE_ORDER);
	json_decref(root);
	if (r != 0 || putchar('\n') == EOF)
		return dioh_tool_error_set(err, EIO, "printing the JSON document failed");
	return 0;
}

int dioh_tool_fail(const char *path, uint64_t base_offset, bool json, const struct dioh_error *err)
{
	struct dioh_error print_err;

	fprintf(stderr, DIOH_TOOL_NAME ": %s: ", path);
	dioh_tool_print_text(stderr, "", err->text, strnlen(err->text, sizeof(err->text)));
	if (json) {
		json_t *root = dioh_tool_json_image(path, base_offset, NULL, false);

		if (json_object_set_new(root, "result", json_string("unreadable")) != 0 ||
		    json_object_set_new(root, "error", dioh_tool_json_error(err)) != 0) {
			json_decref(root);
			root = NULL;
		}
		(void)dioh_tool_json_print(root, &print_err);
	}
	return DIOH_TOOL_FAILED;
}
