/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * convert.c - the verb `convert`: what IN is, what OUT is to be, and the files. IN is looked at in a session of its own;
 * then two helpers do the work (convert_join.c). No byte of either image is parsed here; of libvirt's header, which IN's
 * helper has checked and hands over, two fields are set anew for OUT.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
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
	/* OUT */
	char out_path[DIOH_TOOL_PATH_BYTES]; /* as it is written: not OUT's name, if only that says that it is complete */
	bool out_created;
	int out_fd, direct_fd, directory_fd, sync_fd;
	uint8_t *out_header;
	uint64_t out_header_bytes;
	uint8_t patch[DIOH_HEADER_PATCH_BYTES_MAX];
	uint32_t patch_bytes;
	struct dioh_consume consume;
	enum dioh_join_side failed;
};

/* ---- IN ----------------------------------------------------------------------------------------------------- */

static int end_session(struct dioh_session *session, int r, struct dioh_error *err)
{
	struct dioh_error end_err;
	int end = dioh_tool_session_end(session, &end_err);

	if (r == 0 && end != 0)
		*err = end_err;
	return r != 0 ? r : end;
}

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
	return end_session(session, r, err);
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

/* ---- OUT ---------------------------------------------------------------------------------------------------- */

static int open_directory(struct conversion *c, struct dioh_error *err)
{
	c->directory_fd = dioh_tool_open_directory(c->options->out_path);
	if (c->directory_fd < 0)
		return dioh_tool_error_set(err, errno, "its directory cannot be opened: %s", strerror(errno));
	return 0;
}

/* A stream has no mark: what is not complete has another name. */
static int name_out(struct conversion *c, struct dioh_error *err)
{
	const char *suffix = c->to == FORMAT_STREAM ? ".partial" : "";
	int n = snprintf(c->out_path, sizeof(c->out_path), "%s%s", c->options->out_path, suffix);

	if (n < 0 || (size_t)n >= sizeof(c->out_path))
		return dioh_tool_error_set(err, ENAMETOOLONG, "its name is too long");
	return 0;
}

/* `fd` -1: what has the name; else the name is "". */
static int check_out(const struct conversion *c, const char *path, int fd, struct dioh_error *err)
{
	struct stat out;

	if ((fd >= 0 ? fstat(fd, &out) : stat(path, &out)) != 0)
		return dioh_tool_error_set(err, errno, "fstat failed: %s", strerror(errno));
	if (!S_ISREG(out.st_mode) && !S_ISBLK(out.st_mode))
		return dioh_tool_error_set(err, EINVAL, "is neither a regular file nor a block device");
	if (dioh_tool_is_same_file(&c->in_stat, &out))
		return dioh_tool_error_set(err, EINVAL, "is IN itself");
	if (S_ISBLK(out.st_mode) && c->to == FORMAT_STREAM)
		return dioh_tool_error_set(err, EINVAL, "is a device: nothing would say where a stream on it ends");
	if (!c->options->force && (!S_ISREG(out.st_mode) || out.st_size > 0) && !dioh_consume_is_out(&c->consume, path, fd))
		return dioh_tool_error_set(err, EEXIST, "exists; --force overwrites it");
	return 0;
}

/* What cannot be opened for reading is refused for other reasons, or nobody's disk. */
static int check_unused(const char *path, struct dioh_error *err)
{
	DIOH_AUTO_FD int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);

	return fd >= 0 ? dioh_tool_check_unused(fd, err) : 0;
}

/* Before anything is made, and with a stream, which takes OUT's own name only in the end, once more then. */
static int check_out_name(const struct conversion *c, struct dioh_error *err)
{
	const char *path = c->options->out_path;
	struct stat st;
	int r = access(path, F_OK) == 0 ? check_out(c, path, -1, err) : 0;

	if (r == 0)
		r = check_unused(path, err);
	if (r == 0 && c->to == FORMAT_STREAM && lstat(path, &st) == 0 && S_ISLNK(st.st_mode))
		r = dioh_tool_error_set(err, EINVAL, "is a symbolic link, whose place a stream would take: name the file itself");
	return r;
}

/* What is in IN, as one stream if it is one. */
static uint64_t data_bytes(const struct conversion *c)
{
	uint64_t bytes = 0;

	if (is_raw(c->from))
		return (uint64_t)c->in_stat.st_size - c->options->base_offset - c->header_bytes;
	for (uint32_t i = 0; i < c->table.region_count + c->table.stream_count; i++) {
		const struct dioh_msg_entry *entry = &c->table.entries[i];

		if (entry->kind == DIOH_ENTRY_STREAM)
			bytes += entry->bytes;
		else if (!(entry->flags & DIOH_ENTRY_IN_STREAM))
			bytes += entry->present_bytes;
		bytes = dioh_min(bytes, DIOH_OFFSET_MAX);
	}
	return bytes;
}

/*
 * An OUT that is overwritten is lost with the first byte. What the new one takes nobody knows before it is there (a file
 * system may compress, a stream may bring a page twice): so the room is looked at only if there is something to lose.
 */
static int check_room(const struct conversion *c, struct dioh_error *err)
{
	DIOH_AUTO_FD int fd = open(c->options->out_path, O_PATH | O_CLOEXEC);
	char needed_text[DIOH_TOOL_SIZE_BYTES], room_text[DIOH_TOOL_SIZE_BYTES];
	const uint64_t needed = data_bytes(c);
	struct stat st;
	uint64_t room;

	if (c->to == FORMAT_STREAM || c->options->consume || fd < 0 || fstat(fd, &st) != 0 || !S_ISREG(st.st_mode) ||
	    st.st_size == 0)
		return 0;
	room = dioh_tool_file_room(fd);
	if (needed <= room)
		return 0;
	dioh_tool_format_size(needed, needed_text);
	dioh_tool_format_size(room, room_text);
	return dioh_tool_error_set(err, ENOSPC, "IN has %s of data, and there is room for %s: nothing was written. Whoever does "
	                           "not want this OUT any more removes it first", needed_text, room_text);
}

static int open_partial(struct conversion *c, struct dioh_error *err)
{
	struct stat st;

	if (stat(c->out_path, &st) == 0 && dioh_tool_is_same_file(&c->in_stat, &st))
		return dioh_tool_error_set(err, EINVAL, "%.120s, as OUT is called until it is complete, is IN itself", c->out_path);
	c->out_fd = dioh_tool_partial_open(c->out_path, err);
	c->out_created = c->out_fd >= 0;
	return c->out_fd < 0 ? c->out_fd : 0;
}

static int open_itself(struct conversion *c, struct dioh_error *err)
{
	const int fd = open(c->out_path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOCTTY, 0600);
	struct stat st;
	int r = 0;

	c->out_fd = fd;
	if (c->out_fd < 0 && errno == EEXIST) /* O_EXCL: no device that is mounted, or in use in another way */
		c->out_fd = open(c->out_path, O_RDWR | O_EXCL | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
	if (c->out_fd < 0 || fstat(c->out_fd, &st) != 0)
		return dioh_tool_error_set(err, errno, "cannot be opened: %s%s", strerror(errno),
		                           errno == EBUSY ? " (is it mounted?)" : "");
	if (S_ISREG(st.st_mode))
		r = dioh_tool_lock(c->out_fd, c->out_path, err);
	c->out_created = fd >= 0 && r == 0; /* else it is the other's who has locked it */
	return r != 0 ? r : check_out(c, "", c->out_fd, err);
}

static int open_out(struct conversion *c, struct dioh_error *err)
{
	struct stat st;
	int r = c->to == FORMAT_STREAM ? open_partial(c, err) : open_itself(c, err);

	if (r != 0)
		return r;
	(void)fcntl(c->out_fd, F_SETFL, 0);
	/* EINVAL: this file system has none. Whatever else it is, without O_DIRECT the work can be done too. */
	c->direct_fd = open(c->out_path, O_RDWR | O_CLOEXEC | O_NOCTTY | O_NONBLOCK | O_DIRECT);
	if (c->direct_fd >= 0)
		(void)fcntl(c->direct_fd, F_SETFL, O_DIRECT);
	if (c->options->consume && (c->sync_fd = open(c->out_path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK)) < 0)
		return dioh_tool_error_set(err, errno, "cannot be opened once more: %s", strerror(errno));
	/* Layout raw makes no file shorter. */
	if (is_raw(c->to) && fstat(c->out_fd, &st) == 0 && S_ISREG(st.st_mode) && ftruncate(c->out_fd, 0) != 0)
		return dioh_tool_error_set(err, errno, "cannot be emptied: %s", strerror(errno));
	return 0;
}

/* Only now has a stream its name. */
static int name_stream(struct conversion *c, struct dioh_error *err)
{
	const char *path = c->options->out_path;
	bool there;
	int r;

	if (c->to != FORMAT_STREAM)
		return 0;
	if (!dioh_tool_has_name(c->out_fd, c->out_path))
		return dioh_tool_error_set(err, ESTALE, "%.120s was replaced by somebody else", c->out_path);
	r = check_out_name(c, err);
	if (r != 0)
		return r;
	there = faccessat(AT_FDCWD, path, F_OK, AT_SYMLINK_NOFOLLOW) == 0;
	if ((there ? rename(c->out_path, path) : dioh_tool_rename_new(c->out_path, path)) != 0)
		return dioh_tool_error_set(err, errno, "renaming it failed: %s", strerror(errno));
	if (fsync(c->directory_fd) != 0)
		return dioh_tool_error_set(err, errno, "is complete, but its name could not be made durable: %s", strerror(errno));
	return 0;
}

/* What was made for nothing goes; what IN has been freed for stays, and so does what has OUT's name already. */
static void drop_out(struct conversion *c)
{
	if (!c->out_created || (c->options->consume && !c->consume.whole) || !dioh_tool_has_name(c->out_fd, c->out_path))
		return;
	(void)unlink(c->out_path);
	if (c->options->consume)
		dioh_consume_drop(&c->consume);
}

/* ---- the work ----------------------------------------------------------------------------------------------- */

/* How IN is opened for its load. */
static void fill_in(struct conversion *c, struct dioh_tool_session_options *in)
{
	*in = (struct dioh_tool_session_options){ .helper = c->options->helper, .image = &c->in, .memory_fd = -1,
		                                  .layout = c->open.layout, .header_bytes = 0 };
	if (is_raw(c->from)) {
		c->stream_entry = (struct dioh_msg_entry){
			.kind = DIOH_ENTRY_STREAM, .name = "migration stream", .image_offset = c->header_bytes,
			.bytes = (uint64_t)c->in_stat.st_size - c->options->base_offset - c->header_bytes
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
		.out = { .buffered_fd = c->out_fd, .direct_fd = c->direct_fd, .directory_fd = c->directory_fd,
		         .sync_fd = c->sync_fd, .layout = formats[c->to].layout, .header_bytes = c->out_header_bytes, .header = c->out_header,
		         .patch = c->patch, .patch_bytes = c->patch_bytes,
		         .keep = c->consume.place.index > 0 || c->consume.place.offset > 0 },
		.durable = c->options->consume ? dioh_consume_durable : NULL, .owner = &c->consume,
	};
	int r;

	fill_in(c, &join.in);
	r = dioh_join_run(&join, &c->failed, err);
	c->failed = r < 0 ? c->failed : DIOH_JOIN_OUT;
	return r;
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
	r = name_out(c, err);
	if (r == 0)
		r = open_directory(c, err);
	if (r == 0)
		r = check_out_name(c, err);
	if (r == 0 && c->options->consume)
		r = check_in(c, err);
	if (r == 0)
		r = check_room(c, err);
	if (r == 0)
		r = open_out(c, err);
	if (r == 0 && c->options->consume)
		r = dioh_consume_take_out(&c->consume, c->out_fd, c->directory_fd, err);
	if (r == 0)
		r = join_files(c, err);
	if (r == 0)
		r = name_stream(c, err);
	if (r != 0)
		drop_out(c);
	else if (c->options->consume)
		r = dioh_consume_end(&c->consume, err);
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
		r = end_session(session, r, err);
	}
	if (r != 0)
		dioh_tool_name_stream("standard output", err);
	return r;
}

static void close_all(struct conversion *c)
{
	dioh_consume_close(&c->consume);
	dioh_cleanup_fd(&c->out_fd);
	dioh_cleanup_fd(&c->direct_fd);
	dioh_cleanup_fd(&c->directory_fd);
	dioh_cleanup_fd(&c->sync_fd);
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
	struct conversion c = { .options = options, .in = { .buffered_fd = -1, .direct_fd = -1 }, .out_fd = -1,
		                .direct_fd = -1, .directory_fd = -1, .sync_fd = -1, .consume = { .in_fd = -1 } };
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
