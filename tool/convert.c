/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * convert.c - the verb `convert`: what IN is, and what OUT is to be. IN is looked at in a session of its own; then two
 * helpers do the work (convert_join.c). No byte of either image is parsed here; of libvirt's header, which IN's
 * helper has checked and hands over, two fields are set anew for OUT.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "align.h"
#include "cleanup.h"
#include "convert.h"

enum format { FORMAT_LIBVIRT_RAW, FORMAT_LIBVIRT_SPARSE, FORMAT_MAPPED_RAM, FORMAT_STREAM, FORMAT_CONTAINER, FORMATS };

static const struct {
	const char *name;
	bool libvirt;
	uint32_t libvirt_format;
	uint32_t layout; /* of OUT */
	enum format other; /* what it becomes without --to */
} formats[] = {
	[FORMAT_LIBVIRT_RAW] = { "libvirt-raw", true, DIOH_TOOL_LIBVIRT_RAW, DIOH_LAYOUT_RAW, FORMAT_LIBVIRT_SPARSE },
	[FORMAT_LIBVIRT_SPARSE] = { "libvirt-sparse", true, DIOH_TOOL_LIBVIRT_SPARSE, DIOH_LAYOUT_MAPPED_RAM,
	                            FORMAT_LIBVIRT_RAW },
	[FORMAT_MAPPED_RAM] = { "mapped-ram", false, 0, DIOH_LAYOUT_MAPPED_RAM, FORMAT_STREAM },
	[FORMAT_STREAM] = { "stream", false, 0, DIOH_LAYOUT_RAW, FORMAT_MAPPED_RAM },
	[FORMAT_CONTAINER] = { "container", false, 0, DIOH_LAYOUT_CONTAINER, FORMAT_MAPPED_RAM },
};

struct options {
	const char *in_path;
	const char *out_path; /* NULL with --stdout */
	const char *to;
	const char *helper;
	uint64_t base_offset;
	uint64_t header_bytes;
	bool to_stdout;
	bool consume;
	bool force;
	bool quiet;
};

struct conversion {
	const struct options *options;
	struct dioh_tool_image in;
	struct stat in_stat;
	struct dioh_msg_open_image_reply open; /* of IN */
	struct dioh_tool_table table;
	enum format from, to;
	uint8_t *header; /* IN's */
	uint64_t header_bytes;
	struct dioh_msg_entry stream_entry; /* IN as layout raw */
	struct dioh_convert_out out;
	uint8_t *out_header;
	uint64_t out_header_bytes;
	uint8_t patch[DIOH_HEADER_PATCH_BYTES_MAX];
	uint32_t patch_bytes;
	struct dioh_consume consume;
	enum dioh_join_side failed;
};

/* ---- IN ----------------------------------------------------------------------------------------------------- */

static int read_header(struct conversion *c, struct dioh_session *session, struct dioh_error *err)
{
	c->header_bytes = c->open.header_bytes;
	c->header = calloc(1, c->header_bytes + 1);
	if (!c->header)
		return dioh_tool_error_set(err, ENOMEM, "there is no memory for its header");
	return c->header_bytes ? dioh_read_header(session, 0, c->header, c->header_bytes, &c->header_bytes, err) : 0;
}

static int look(struct conversion *c, struct dioh_error *err)
{
	const struct dioh_tool_session_options options = {
		.helper = c->options->helper, .image = &c->in, .memory_fd = -1, .open_flags = DIOH_OPEN_INSPECT,
		.header_bytes = c->options->header_bytes
	};
	struct dioh_session *session;
	int r = dioh_tool_session_start(&options, &session, &c->open, err);

	if (r != 0)
		return r;
	r = dioh_tool_table_read(session, c->open.region_count, c->open.stream_count, &c->table, err);
	if (r == 0)
		r = read_header(c, session, err);
	return dioh_tool_session_end(session, r, err);
}

/* For a path in a command that a person may copy. */
static void print_quoted(FILE *file, const char *text)
{
	fputc('\'', file);
	for (; *text; text++)
		if (*text == '\'')
			fputs("'\\''", file);
		else
			fputc(*text, file);
	fputc('\'', file);
}

/* libvirt's compressed formats: the header stays, with another format in it, and what is behind it is unpacked. */
static void print_unpacking(const struct conversion *c)
{
	static const char *const commands[] = { NULL, "gzip -dc", "bzip2 -dc", "xz -dc", "lzop -dc", "zstd -dc" };

	if (c->open.layout != DIOH_LAYOUT_RAW || c->open.header_kind != DIOH_HEADER_LIBVIRT ||
	    c->open.header_format >= sizeof(commands) / sizeof(commands[0]) || !commands[c->open.header_format])
		return;
	fputs("  IN=", stderr);
	print_quoted(stderr, c->options->in_path);
	fprintf(stderr, "; { head -c 28 \"$IN\"; printf '\\0\\0\\0\\0'; tail -c +33 \"$IN\" | head -c %" PRIu64
	        "; tail -c +%" PRIu64 " \"$IN\" | %s; } >UNPACKED\n", c->open.header_bytes - 32, c->open.header_bytes + 1,
	        commands[c->open.header_format]);
}

static int find_format(struct conversion *c, struct dioh_error *err)
{
	const bool libvirt = c->open.header_kind == DIOH_HEADER_LIBVIRT;

	if (c->open.state == DIOH_STATE_PARTIAL)
		return dioh_tool_error_set(err, ENODATA, "is partial: a save into it did not finish, so it holds no machine");
	if (c->open.layout == DIOH_LAYOUT_CONTAINER)
		c->from = FORMAT_CONTAINER;
	else if (c->open.layout == DIOH_LAYOUT_MAPPED_RAM)
		c->from = libvirt ? FORMAT_LIBVIRT_SPARSE : FORMAT_MAPPED_RAM;
	else if (!libvirt)
		c->from = FORMAT_STREAM;
	else if (c->open.header_format == DIOH_TOOL_LIBVIRT_RAW)
		c->from = FORMAT_LIBVIRT_RAW;
	else
		return dioh_tool_error_set(err, EOPNOTSUPP, "is compressed (format %s): unpack it first, with the command below",
		                           dioh_tool_format_name(c->open.header_format));
	return 0;
}

static int open_in(struct conversion *c, struct dioh_error *err)
{
	int r = dioh_tool_image_open(c->options->in_path, c->options->base_offset, true, &c->in, err);

	if (r == 0 && fstat(c->in.buffered_fd, &c->in_stat) != 0)
		r = dioh_tool_error_set(err, errno, "fstat failed: %s", strerror(errno));
	if (r != 0)
		return r;
	r = look(c, err);
	return r != 0 ? r : find_format(c, err);
}

/* ---- what can become of it ---------------------------------------------------------------------------------- */

static bool is_raw(enum format format)
{
	return formats[format].layout == DIOH_LAYOUT_RAW;
}

/* Regions that have places of their own in IN, and would in OUT. */
static uint32_t regions_apart(const struct conversion *c)
{
	uint32_t count = 0;

	for (uint32_t i = 0; i < c->table.region_count; i++)
		count += !(c->table.entries[i].flags & DIOH_ENTRY_IN_STREAM);
	return count;
}

static int check_container(const struct conversion *c, struct dioh_error *err)
{
	if (c->from != FORMAT_CONTAINER || c->to == FORMAT_CONTAINER)
		return 0;
	if (c->table.stream_count != 1)
		return dioh_tool_error_set(err, EOPNOTSUPP, "has %" PRIu32 " streams, and format %s has one",
		                           c->table.stream_count, formats[c->to].name);
	if (is_raw(c->to) && c->table.region_count > 0)
		return dioh_tool_error_set(err, EOPNOTSUPP,
		                           "is a container, whose memory stands beside its stream: convert it --to mapped-ram, "
		                           "and that --to %s", formats[c->to].name);
	return 0;
}

/* A page that was freed looks like zeros, and one machine's image like another's, but for checksums. */
static int check_consumable(const struct conversion *c, struct dioh_error *err)
{
	if (c->open.compatible_features) /* who does not know what they mean may not write to it, and would lose them */
		return dioh_tool_error_set(err, EOPNOTSUPP, "cannot be freed behind the work (--consume): it has features that are "
		                                            "not known here");
	for (uint32_t i = 0; i < c->table.region_count; i++)
		if (!(c->table.entries[i].flags & (DIOH_ENTRY_IN_STREAM | DIOH_ENTRY_CHECKSUMS)))
			return dioh_tool_error_set(err, EOPNOTSUPP,
			                           "cannot be freed behind the work (--consume): region %" PRIu32 " has no "
			                           "checksums, and nothing else would tell freed pages from zeros",
			                           c->table.entries[i].number);
	return 0;
}

static int check_pair(const struct conversion *c, struct dioh_error *err)
{
	int r;

	if (formats[c->to].libvirt && !formats[c->from].libvirt)
		return dioh_tool_error_set(err, EOPNOTSUPP,
		                           "has no header of libvirt's, which format %s needs: the domain's XML stands there",
		                           formats[c->to].name);
	if (is_raw(c->from) && c->from == c->to)
		return dioh_tool_error_set(err, EINVAL, "is in format %s already", formats[c->to].name);
	if (is_raw(c->from) && !S_ISREG(c->in_stat.st_mode))
		return dioh_tool_error_set(err, EOPNOTSUPP,
		                           "is a device with a stream on it, and nothing says where that ends: copy it into a file");
	if (c->options->consume && (is_raw(c->to) || regions_apart(c) == 0))
		return dioh_tool_error_set(err, EOPNOTSUPP,
		                           "cannot be freed behind the work (--consume): %s would be read as a stream, which "
		                           "has to be read from its start again after an interruption",
		                           formats[c->from].name);
	r = c->options->consume ? check_consumable(c, err) : 0;
	return r != 0 ? r : check_container(c, err);
}

static int choose_target(struct conversion *c, struct dioh_error *err)
{
	c->to = formats[c->from].other;
	if (c->options->to_stdout)
		c->to = FORMAT_STREAM;
	for (unsigned i = 0; c->options->to && i < FORMATS; i++)
		if (strcmp(formats[i].name, c->options->to) == 0)
			c->to = i;
	return check_pair(c, err);
}

/* ---- headers ------------------------------------------------------------------------------------------------ */

/* libvirt's, marked partial, for what stands behind it in OUT. Its mark comes last. */
static int make_libvirt_header(struct conversion *c, struct dioh_error *err)
{
	memcpy(c->out_header, c->header, c->header_bytes);
	if (!dioh_tool_libvirt_set_format(c->out_header, c->header_bytes, formats[c->to].libvirt_format))
		return dioh_tool_error_set(err, EOPNOTSUPP, "was saved on a host of the other byte order");
	memcpy(c->out_header, DIOH_TOOL_LIBVIRT_PARTIAL, DIOH_TOOL_LIBVIRT_MAGIC_BYTES);
	memcpy(c->patch, DIOH_TOOL_LIBVIRT_COMPLETE, DIOH_TOOL_LIBVIRT_MAGIC_BYTES);
	c->patch_bytes = DIOH_TOOL_LIBVIRT_MAGIC_BYTES;
	return 0;
}

/* Somebody else's: it may have a mark in it, so its beginning comes last. */
static void copy_header(struct conversion *c)
{
	c->patch_bytes = (uint32_t)dioh_min(c->header_bytes, sizeof(c->patch));
	memcpy(c->patch, c->header, c->patch_bytes);
	memcpy(c->out_header + c->patch_bytes, c->header + c->patch_bytes, c->header_bytes - c->patch_bytes);
}

static int make_header(struct conversion *c, struct dioh_error *err)
{
	const bool keeps = !formats[c->from].libvirt && !is_raw(c->to);

	if (c->header_bytes == 0 || (!formats[c->to].libvirt && !keeps)) {
		if (c->header_bytes > 0 && !c->options->quiet)
			fprintf(stderr, DIOH_TOOL_NAME ": note: format %s has no place for the header of IN (%" PRIu64
			        " bytes%s): it is left out\n", formats[c->to].name, c->header_bytes,
			        formats[c->from].libvirt ? ", with the domain's XML" : "");
		return 0;
	}
	c->out_header_bytes = c->header_bytes;
	c->out_header = calloc(1, c->header_bytes);
	if (!c->out_header)
		return dioh_tool_error_set(err, ENOMEM, "there is no memory for its header");
	if (formats[c->to].libvirt)
		return make_libvirt_header(c, err);
	copy_header(c);
	if (c->to == FORMAT_MAPPED_RAM && !c->options->quiet)
		fprintf(stderr, DIOH_TOOL_NAME ": note: OUT has IN's header of %" PRIu64 " bytes in front: QEMU's bytes begin "
		        "there (file:OUT,offset=%" PRIu64 ")\n", c->header_bytes, c->header_bytes);
	return 0;
}

/* ---- the work ----------------------------------------------------------------------------------------------- */

/* IN as layout raw: all behind its header is one stream. */
static uint64_t raw_stream_bytes(const struct conversion *c)
{
	return (uint64_t)c->in_stat.st_size - c->options->base_offset - c->header_bytes;
}

static uint64_t streams_bytes(const struct conversion *c)
{
	uint64_t bytes = 0;

	for (uint32_t i = 0; i < c->table.stream_count; i++)
		bytes = dioh_min(bytes + c->table.entries[c->table.region_count + i].bytes, DIOH_OFFSET_MAX);
	return bytes;
}

/* Of IN: what it has of pages, and its streams. */
static uint64_t data_bytes(const struct conversion *c)
{
	uint64_t bytes = streams_bytes(c);

	if (is_raw(c->from))
		return raw_stream_bytes(c);
	for (uint32_t i = 0; i < c->table.region_count; i++)
		if (!(c->table.entries[i].flags & DIOH_ENTRY_IN_STREAM))
			bytes = dioh_min(bytes + c->table.entries[i].present_bytes, DIOH_OFFSET_MAX);
	return bytes;
}

/* What OUT may well take before --consume has freed anything. */
static uint64_t ahead_bytes(const struct conversion *c)
{
	return dioh_min(data_bytes(c), streams_bytes(c) + DIOH_JOIN_STEP_BYTES);
}

/* How IN is opened for its load. */
static void fill_in(struct conversion *c, struct dioh_tool_session_options *in)
{
	*in = (struct dioh_tool_session_options){ .helper = c->options->helper, .image = &c->in, .memory_fd = -1,
		                                  .layout = c->open.layout, .header_bytes = 0 };
	if (is_raw(c->from)) {
		c->stream_entry = (struct dioh_msg_entry){
			.kind = DIOH_ENTRY_STREAM, .name = "migration stream", .image_offset = c->header_bytes,
			.bytes = raw_stream_bytes(c)
		};
		in->header_bytes = c->header_bytes;
		in->regions = &c->stream_entry;
		in->region_count = 1;
	} else if (c->open.layout == DIOH_LAYOUT_MAPPED_RAM) {
		in->header_bytes = c->options->header_bytes;
		in->open_flags = is_raw(c->to) ? DIOH_OPEN_ALL_IN_STREAM : 0;
	}
}

static bool wants_progress(const struct conversion *c)
{
	return !c->options->quiet && isatty(STDERR_FILENO);
}

static int check_in(struct conversion *c, struct dioh_error *err)
{
	const struct dioh_tool_image_check_options in = {
		.helper = c->options->helper, .image = &c->in, .header_bytes = c->options->header_bytes, .open = &c->open,
		.table = &c->table, .read_all = true, .progress = wants_progress(c)
	};
	int r;

	c->failed = DIOH_JOIN_IN;
	r = dioh_consume_check(&c->consume, &in, err);
	c->failed = r < 0 ? c->failed : DIOH_JOIN_OUT;
	return r;
}

static int join_files(struct conversion *c, struct dioh_error *err)
{
	struct dioh_join_options join = {
		.helper = c->options->helper, .stream_count = c->table.stream_count, .region_count = c->table.region_count,
		.in_header = c->header, .in_header_bytes = c->header_bytes, .progress = wants_progress(c),
		.place = c->consume.place,
		.out = { .buffered_fd = c->out.fd, .direct_fd = c->out.direct_fd, .directory_fd = c->out.directory_fd,
		         .sync_fd = c->out.sync_fd, .layout = formats[c->to].layout, .header_bytes = c->out_header_bytes,
		         .header = c->out_header, .patch = c->patch, .patch_bytes = c->patch_bytes,
		         .keep = dioh_consume_has_begun(&c->consume) },
		.durable = c->options->consume ? dioh_consume_durable : NULL, .owner = &c->consume,
	};
	int r;

	fill_in(c, &join.in);
	r = dioh_join_run(&join, &c->failed, err);
	c->failed = r < 0 ? c->failed : DIOH_JOIN_OUT;
	return r;
}

static void choose_out(struct conversion *c)
{
	c->out.name = c->options->out_path;
	c->out.in = &c->in_stat;
	c->out.consume = c->options->consume ? &c->consume : NULL;
	c->out.is_stream = c->to == FORMAT_STREAM;
	c->out.to_be_emptied = is_raw(c->to);
	c->out.force = c->options->force;
}

static int convert_to_file(struct conversion *c, struct dioh_error *err)
{
	int r = c->options->consume ? dioh_consume_begin(&c->in, &c->open, &c->table, c->options->out_path,
	                                                 formats[c->to].name, &c->consume, err) : 0;

	if (r == 0)
		r = make_header(c, err);
	if (r != 0)
		return r;
	c->failed = DIOH_JOIN_OUT;
	choose_out(c);
	r = dioh_convert_out_prepare(&c->out, err);
	if (r == 0)
		r = dioh_convert_out_check_room(&c->out, data_bytes(c), ahead_bytes(c), err);
	if (r == 0 && c->options->consume)
		r = check_in(c, err);
	if (r == 0)
		r = dioh_convert_out_open(&c->out, err);
	if (r == 0 && c->options->consume)
		r = dioh_consume_take_out(&c->consume, c->out.fd, c->out.directory_fd, err);
	if (r == 0)
		r = join_files(c, err);
	if (r == 0)
		r = dioh_convert_out_name(&c->out, err);
	if (r == 0)
		return c->options->consume ? dioh_consume_end(&c->consume, err) : 0;
	if (dioh_convert_out_drop(&c->out) && c->options->consume)
		dioh_consume_drop(&c->consume);
	return r;
}

/* One helper is enough: it writes the stream itself. */
static int convert_to_stdout(struct conversion *c, struct dioh_error *err)
{
	const int stdout_fd = STDOUT_FILENO;
	const struct dioh_msg_stream_transfer what = { .entry = c->table.entries[c->table.region_count].number };
	struct dioh_msg_open_image_reply open;
	struct dioh_tool_session_options in;
	struct dioh_session *session;
	struct stat out;
	uint32_t transfer;
	int r = make_header(c, err);

	if (r == 0 && fstat(stdout_fd, &out) == 0 && dioh_tool_is_same_file(&c->in_stat, &out))
		r = dioh_tool_error_set(err, EINVAL, "standard output is IN itself");
	fill_in(c, &in);
	in.stream_fds = &stdout_fd;
	in.stream_count = 1;
	if (r != 0)
		return r;
	r = dioh_tool_session_start(&in, &session, &open, err);
	if (r == 0) {
		r = dioh_load_stream(session, &what, &transfer, err);
		if (r == 0)
			r = dioh_wait(session, transfer, NULL, err);
		r = dioh_tool_session_end(session, r, err);
	}
	if (r != 0)
		dioh_tool_name_stream("standard output", err);
	return r;
}

static void close_all(struct conversion *c)
{
	dioh_consume_close(&c->consume);
	dioh_convert_out_close(&c->out);
	dioh_tool_image_close(&c->in);
	free(c->table.entries);
	free(c->header);
	free(c->out_header);
}

static int convert_all(struct conversion *c, struct dioh_error *err)
{
	const struct options *options = c->options;
	int r;

	if (options->consume) {
		c->failed = DIOH_JOIN_OUT;
		r = dioh_consume_finish(options->in_path, options->base_offset, options->out_path, err);
		if (r > 0 && !options->quiet)
			fprintf(stderr, DIOH_TOOL_NAME ": note: an earlier run has made OUT complete; what it left of IN's mark is "
			        "gone now\n");
		if (r != 0)
			return r < 0 ? r : 0;
		c->failed = DIOH_JOIN_IN;
	}
	r = open_in(c, err);
	if (r == 0)
		r = choose_target(c, err);
	if (r != 0)
		return r;
	return options->to_stdout ? convert_to_stdout(c, err) : convert_to_file(c, err);
}

static int convert(const struct options *options)
{
	struct conversion c = { .options = options, .in = { .buffered_fd = -1, .direct_fd = -1 },
		                .out = DIOH_CONVERT_OUT_INIT, .consume = { .in_fd = -1 } };
	struct dioh_error err;
	int status = DIOH_TOOL_OK;
	int r = convert_all(&c, &err);

	if (r != 0) {
		const bool in = c.failed == DIOH_JOIN_IN;

		status = dioh_tool_fail(in ? options->in_path : options->out_path, in ? options->base_offset : 0, false, &err);
		print_unpacking(&c);
	}
	close_all(&c);
	return status;
}

/* ---- the verb ----------------------------------------------------------------------------------------------- */

static int check_options(const char *verb, const struct options *options)
{
	unsigned i = 0;

	while (options->to && i < FORMATS && strcmp(formats[i].name, options->to) != 0)
		i++;
	if (i == FORMATS)
		return dioh_tool_usage_error(verb, "--to: %s is none of libvirt-raw, libvirt-sparse, mapped-ram, stream, container",
		                             options->to);
	if (options->to_stdout && options->out_path)
		return dioh_tool_usage_error(verb, "%s: with --stdout there is no OUT", options->out_path);
	if (!options->to_stdout && !options->out_path)
		return dioh_tool_usage_error(verb, "OUT is missing; try --help");
	if (options->to_stdout && options->to && i != FORMAT_STREAM)
		return dioh_tool_usage_error(verb, "--to: what --stdout writes is a stream: other formats have places in a file");
	if (options->to_stdout && (options->consume || options->force))
		return dioh_tool_usage_error(verb, "--%s: not with --stdout", options->consume ? "consume" : "force");
	if (options->to_stdout && isatty(STDOUT_FILENO))
		return dioh_tool_usage_error(verb, "--stdout: standard output is a terminal");
	return dioh_tool_check_place(verb, options->base_offset, options->header_bytes);
}

static int run(int argc, char **argv)
{
	struct options options = { 0 };
	const char *operands[2] = { NULL, NULL };
	const struct dioh_tool_option table[] = {
		{ "to", "FORMAT", "libvirt-raw, libvirt-sparse, mapped-ram, stream or container", NULL, &options.to, NULL },
		{ "stdout", NULL, "write a migration stream to standard output; there is no OUT", &options.to_stdout, NULL, NULL },
		{ "consume", NULL, "free IN's pages once they are durable in OUT; can be interrupted and run again",
		  &options.consume, NULL, NULL },
		{ "force", NULL, "overwrite OUT", &options.force, NULL, NULL },
		{ "quiet", NULL, "no progress, no notes", &options.quiet, NULL, NULL },
		{ "base-offset", "SIZE", "where in IN the image starts (default 0)", NULL, NULL, &options.base_offset },
		{ "header-bytes", "SIZE", DIOH_TOOL_HEADER_BYTES_HELP, NULL, NULL, &options.header_bytes },
		{ "helper", "PATH", DIOH_TOOL_HELPER_HELP, NULL, &options.helper, NULL },
	};
	const struct dioh_tool_usage usage = {
		"convert", "IN OUT",
		"Makes an image of another format of IN. OUT says that it is complete only when it is, and durable.\n"
		"Without --to: libvirt-raw and libvirt-sparse become each other, a stream and a container become mapped-ram,\n"
		"mapped-ram becomes a stream.",
		table, sizeof(table) / sizeof(table[0])
	};
	int status = dioh_tool_parse_operands(&usage, argc, argv, 2, operands);

	options.in_path = operands[0];
	options.out_path = operands[1];
	if (status < 0)
		status = check_options(usage.verb, &options);
	return status >= 0 ? status : convert(&options);
}

const struct dioh_tool_verb dioh_tool_convert = { "convert", "make an image of another format", run };
