/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * verify.c - the verb `verify`: is every byte of an image what was saved, and is the image finished? A session of its own
 * learns what the image holds, so that the one that checks it (check_image.c) can be given what that needs.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tool.h"

struct options {
	const char *path;
	const char *helper;
	uint64_t base_offset;
	uint64_t header_bytes;
	bool json;
	bool quiet;
};

struct verification {
	const struct options *options;
	struct dioh_tool_image image;
	struct dioh_msg_open_image_reply open;
	struct dioh_tool_table table;
	bool record;
	struct dioh_tool_check check; /* empty if the image is partial */
};

/* ---- reading ------------------------------------------------------------------------------------------------ */

static int look(struct verification *verification, struct dioh_error *err)
{
	const struct dioh_tool_session_options options = {
		.helper = verification->options->helper, .image = &verification->image, .memory_fd = -1,
		.open_flags = DIOH_OPEN_INSPECT, .header_bytes = verification->options->header_bytes
	};
	struct dioh_session *session;
	int r = dioh_tool_session_start(&options, &session, &verification->open, err);

	if (r != 0)
		return r;
	r = dioh_tool_table_read(session, verification->open.region_count, verification->open.stream_count,
	                         &verification->table, err);
	verification->record = r == 0 && dioh_tool_has_record(&verification->open, &verification->table);
	return dioh_tool_session_end(session, r, err);
}

/* Of libvirt's formats only one has places for its pages. */
static int check_layout(const struct verification *verification, struct dioh_error *err)
{
	const struct dioh_msg_open_image_reply *open = &verification->open;

	if (open->layout != DIOH_LAYOUT_RAW)
		return 0;
	if (open->header_kind != DIOH_HEADER_LIBVIRT)
		return dioh_tool_error_set(err, EOPNOTSUPP,
		                           "is a migration stream, which has neither checksums nor places that could be checked: "
		                           "`convert --to mapped-ram` makes an image of it that can be");
	return dioh_tool_error_set(err, EOPNOTSUPP,
	                           "is a save image of libvirt's in format %s, which has neither checksums nor a structure "
	                           "that could be checked: only format sparse can be verified",
	                           dioh_tool_format_name(open->header_format));
}

static int read_everything(struct verification *verification, struct dioh_error *err)
{
	const struct options *options = verification->options;
	const struct dioh_tool_image_check_options check = {
		.helper = options->helper, .image = &verification->image, .header_bytes = options->header_bytes,
		.open = &verification->open, .table = &verification->table,
		.accept_written = verification->open.state == DIOH_STATE_WRITTEN, /* not if it has become that meanwhile */
		.read_all = !verification->record, .progress = !options->quiet && isatty(STDERR_FILENO)
	};
	struct dioh_tool_table table;
	int r = check_layout(verification, err);

	if (r == 0)
		r = dioh_tool_check_image(&check, &table, &verification->check, err);
	if (r != 0)
		return r;
	free(verification->table.entries);
	verification->table = table; /* with other regions in it the stream of a mapped-ram image has another length */
	return 0;
}

/* ---- results ------------------------------------------------------------------------------------------------ */

struct figures {
	uint32_t region_count; /* checked */
	uint32_t stream_count;
	uint32_t unchecked_count; /* without checksums */
	uint64_t region_bytes;
	uint64_t stream_bytes;
	uint64_t unchecked_bytes; /* read without being checked */
};

static struct figures count_figures(const struct verification *verification)
{
	const struct dioh_tool_table *table = &verification->table;
	struct figures figures = { 0 };

	for (uint32_t i = 0; verification->check.entries && i < table->region_count + table->stream_count; i++) {
		const struct dioh_tool_entry_check *check = &verification->check.entries[i];

		if (!check->checked) {
			figures.unchecked_count++;
			figures.unchecked_bytes += check->read_bytes;
		} else if (i < table->region_count) {
			figures.region_count++;
			figures.region_bytes += check->read_bytes;
		} else {
			figures.stream_count++;
			figures.stream_bytes += check->read_bytes;
		}
	}
	return figures;
}

/* The worst that can be said of the image, in one word. */
static const char *result_name(const struct verification *verification)
{
	if (verification->open.state == DIOH_STATE_PARTIAL)
		return "partial";
	if (verification->check.damage_count > 0)
		return "damaged";
	if (verification->open.state == DIOH_STATE_WRITTEN)
		return "written";
	return "ok";
}

static const char *kind_name(const struct dioh_msg_entry *entry)
{
	return entry->kind == DIOH_ENTRY_REGION ? "region" : "stream";
}

/* ---- for people --------------------------------------------------------------------------------------------- */

static void print_path(const struct verification *verification)
{
	/* The path is the caller's own, and what he typed: no escapes, as with any program's messages. */
	printf("%s: ", verification->options->path);
}

static void print_damage(const struct verification *verification, const struct dioh_tool_damage *damage)
{
	const struct dioh_msg_entry *entry = &verification->table.entries[damage->entry];
	char name[DIOH_TOOL_ESCAPED_BYTES];

	dioh_tool_escape_name(entry->name, name);
	print_path(verification);
	printf("%s %" PRIu32 " \"%s\": damaged", kind_name(entry), entry->number, name);
	if (damage->offset != DIOH_OFFSET_NONE && damage->bytes == 0)
		printf(" from offset %" PRIu64 " on", damage->offset);
	else if (damage->offset != DIOH_OFFSET_NONE)
		printf(" at offset %" PRIu64 ", %" PRIu64 " bytes", damage->offset, damage->bytes);
	if (damage->mismatch) {
		puts(": the checksum does not match");
		return;
	}
	printf(": ");
	dioh_tool_print_text(stdout, "", damage->text, strnlen(damage->text, sizeof(damage->text)));
}

static void print_unchecked(const struct verification *verification)
{
	const struct dioh_tool_table *table = &verification->table;

	if (!verification->record && verification->check.entries) {
		print_path(verification);
		puts("it has no record, so there are no checksums to compare: its structure was checked, and whether all of it "
		     "can be read");
		return;
	}
	for (uint32_t i = 0; verification->check.entries && i < table->region_count + table->stream_count; i++) {
		char name[DIOH_TOOL_ESCAPED_BYTES];

		if (verification->check.entries[i].checked)
			continue;
		dioh_tool_escape_name(table->entries[i].name, name);
		print_path(verification);
		printf("%s %" PRIu32 " \"%s\": not checked: it has no checksums\n", kind_name(&table->entries[i]),
		       table->entries[i].number, name);
	}
}

static void print_figures(const struct verification *verification)
{
	const struct figures figures = count_figures(verification);
	double seconds = (double)verification->check.elapsed_ns / 1e9;
	uint64_t bytes = figures.region_bytes + figures.stream_bytes + figures.unchecked_bytes;
	char region_size[DIOH_TOOL_SIZE_BYTES], stream_size[DIOH_TOOL_SIZE_BYTES], read_size[DIOH_TOOL_SIZE_BYTES];

	dioh_tool_format_size(figures.region_bytes, region_size);
	dioh_tool_format_size(figures.stream_bytes, stream_size);
	printf("regions checked: %" PRIu32 " (%s), streams checked: %" PRIu32 " (%s)", figures.region_count,
	       region_size, figures.stream_count, stream_size);
	dioh_tool_format_size(figures.unchecked_bytes, read_size);
	if (figures.unchecked_bytes)
		printf(", only read: %s", read_size);
	if (seconds > 0)
		printf(", %.1f s, %.0f MiB/s", seconds, (double)bytes / (1024 * 1024) / seconds);
	putchar('\n');
}

static void print_verdict(const struct verification *verification)
{
	const struct dioh_tool_check *check = &verification->check;

	print_path(verification);
	if (verification->open.state == DIOH_STATE_PARTIAL) {
		puts("partial: a save began and did not finish");
		return;
	}
	if (check->damage_count > 0)
		printf("damaged in %" PRIu32 " place%s%s\n", check->damage_count, check->damage_count == 1 ? "" : "s",
		       check->stopped ? " at least: looking for more was given up" : "");
	if (verification->open.state == DIOH_STATE_WRITTEN) {
		if (check->damage_count > 0)
			print_path(verification);
		puts("written, but never made durable: do not rely on it after a crash of the host");
	} else if (check->damage_count == 0) {
		puts(count_figures(verification).unchecked_count ? "ok, as far as it can be checked" : "ok");
	}
}

static void print_human(const struct verification *verification)
{
	bool ok = strcmp(result_name(verification), "ok") == 0;

	for (uint32_t i = 0; i < verification->check.damage_count; i++)
		print_damage(verification, &verification->check.damages[i]);
	if (!verification->options->quiet)
		print_unchecked(verification);
	if (!ok || !verification->options->quiet)
		print_verdict(verification);
	if (verification->check.entries && !verification->options->quiet)
		print_figures(verification);
}

/* ---- for programs ------------------------------------------------------------------------------------------- */

static json_t *json_entry(const struct verification *verification, uint32_t index)
{
	const struct dioh_msg_entry *entry = &verification->table.entries[index];
	const struct dioh_tool_entry_check *check =
		verification->check.entries ? &verification->check.entries[index] : NULL;
	bool checked = check && check->checked;
	uint64_t bytes = check ? check->read_bytes : 0;

	return json_pack("{s:I, s:o, s:b, s:o, s:o, s:I}", "number", (json_int_t)entry->number, "name",
	                 dioh_tool_json_name(entry->name), "checked", checked, "checked_bytes",
	                 dioh_tool_json_bytes(checked ? bytes : 0), "read_bytes", dioh_tool_json_bytes(bytes), "damages",
	                 (json_int_t)(check ? check->damages : 0));
}

static json_t *json_entries(const struct verification *verification, uint32_t first, uint32_t count)
{
	json_t *array = json_array();

	for (uint32_t i = 0; array && i < count; i++)
		if (json_array_append_new(array, json_entry(verification, first + i)) != 0) {
			json_decref(array);
			return NULL;
		}
	return array;
}

static json_t *json_damage(const struct verification *verification, const struct dioh_tool_damage *damage)
{
	const struct dioh_msg_entry *entry = &verification->table.entries[damage->entry];
	bool placed = damage->offset != DIOH_OFFSET_NONE;

	return json_pack("{s:s, s:I, s:o, s:o, s:o, s:o}", "kind", kind_name(entry), "number",
	                 (json_int_t)entry->number, "name", dioh_tool_json_name(entry->name), "offset",
	                 placed ? dioh_tool_json_bytes(damage->offset) : json_null(), "bytes",
	                 damage->bytes ? dioh_tool_json_bytes(damage->bytes) : json_null(), "text",
	                 dioh_tool_json_text(damage->text, strnlen(damage->text, sizeof(damage->text))));
}

static json_t *json_damages(const struct verification *verification)
{
	json_t *array = json_array();

	for (uint32_t i = 0; array && i < verification->check.damage_count; i++)
		if (json_array_append_new(array, json_damage(verification, &verification->check.damages[i])) != 0) {
			json_decref(array);
			return NULL;
		}
	return array;
}

static json_t *json_document(const struct verification *verification)
{
	const struct dioh_tool_table *table = &verification->table;
	const struct figures figures = count_figures(verification);
	json_t *root = dioh_tool_json_image(verification->options->path, verification->options->base_offset,
	                                    &verification->open, verification->record);

	if (json_object_set_new(root, "result", json_string(result_name(verification))) != 0 ||
	    json_object_set_new(root, "checked_bytes",
	                        dioh_tool_json_bytes(figures.region_bytes + figures.stream_bytes)) != 0 ||
	    json_object_set_new(root, "unchecked", json_integer(figures.unchecked_count)) != 0 ||
	    json_object_set_new(root, "elapsed_ns", dioh_tool_json_bytes(verification->check.elapsed_ns)) != 0 ||
	    json_object_set_new(root, "regions", json_entries(verification, 0, table->region_count)) != 0 ||
	    json_object_set_new(root, "streams", json_entries(verification, table->region_count,
	                                                      table->stream_count)) != 0 ||
	    json_object_set_new(root, "damages", json_damages(verification)) != 0 ||
	    json_object_set_new(root, "damages_stopped", json_boolean(verification->check.stopped)) != 0) {
		json_decref(root);
		return NULL;
	}
	return root;
}

/* ---- the verb ----------------------------------------------------------------------------------------------- */

static int verify(const struct options *options, bool *ret_ok, struct dioh_error *err)
{
	struct verification verification = { .options = options };
	int r = dioh_tool_image_open(options->path, options->base_offset, true, &verification.image, err);

	if (r != 0)
		return r;
	r = look(&verification, err);
	if (r == 0 && verification.open.state != DIOH_STATE_PARTIAL)
		r = read_everything(&verification, err);
	if (r == 0 && options->json)
		r = dioh_tool_json_print(json_document(&verification), err);
	else if (r == 0)
		print_human(&verification);
	if (r == 0)
		*ret_ok = strcmp(result_name(&verification), "ok") == 0;
	dioh_tool_check_free(&verification.check);
	free(verification.table.entries);
	dioh_tool_image_close(&verification.image);
	return r;
}

static int run(int argc, char **argv)
{
	struct options options = { 0 };
	const struct dioh_tool_option table[] = {
		{ "json", NULL, "print a JSON document instead of sentences", &options.json, NULL, NULL },
		{ "quiet", NULL, "print nothing if all is well, and no progress", &options.quiet, NULL, NULL },
		{ "base-offset", "SIZE", DIOH_TOOL_BASE_OFFSET_HELP, NULL, NULL, &options.base_offset },
		{ "header-bytes", "SIZE", DIOH_TOOL_HEADER_BYTES_HELP, NULL, NULL, &options.header_bytes },
		{ "helper", "PATH", DIOH_TOOL_HELPER_HELP, NULL, &options.helper, NULL },
	};
	const struct dioh_tool_usage usage = {
		"verify", "IMAGE",
		"Compares every checksum in IMAGE. Exit status 1 if it is damaged, partial or was never made durable.",
		table, sizeof(table) / sizeof(table[0])
	};
	struct dioh_error err;
	bool ok = false;
	int status = dioh_tool_parse(&usage, argc, argv, &options.path);

	if (status < 0)
		status = dioh_tool_check_place(usage.verb, options.base_offset, options.header_bytes);
	if (status >= 0)
		return status;
	if (verify(&options, &ok, &err) != 0)
		return dioh_tool_fail(options.path, options.base_offset, options.json, &err);
	return ok ? DIOH_TOOL_OK : DIOH_TOOL_FAILED;
}

const struct dioh_tool_verb dioh_tool_verify = { "verify", "whether an image is whole and undamaged", run };
