/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * convert_consume.c - `convert --consume`: room for IN and OUT together is not needed, because IN's pages are freed behind
 * the work. What keeps this safe is an order: OUT durable up to a place -> the place durable in a file beside OUT -> IN's
 * pages before it freed. A run that is interrupted, by whatever, goes on from the place in that file; what has been
 * freed is then in OUT. IN's tables and streams are never freed, so that it can be opened again, and so that it can be
 * told from another image that was saved into the same file in between. The end has an order, too: OUT complete -> that
 * durable in the file -> IN's mark away -> the file away.
 *
 * Owns OUT.consume. Trusts it as far as its own directory: who may write there may harm OUT anyway. Called by convert.c.
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

#define STATE_SUFFIX ".consume"
#define STATE_BYTES_MAX 4096u
#define STATE_VERSION 3
#define FORMAT_BYTES 32u
/* A container's or record's head and all checksums are in front of this, but for regions of more than 16 TiB. */
#define IDENTITY_BYTES_MAX (UINT64_C(1) << 30)
#define PIECE_BYTES (1u << 20)
#define MARK_BYTES 512u /* docs/image-format.md, "What a crash leaves behind", step 1 */

/* ---- the state ---------------------------------------------------------------------------------------------- */

struct state {
	char format[FORMAT_BYTES]; /* of OUT */
	uint64_t in_bytes;
	uint64_t base_offset;
	uint64_t header_bytes;
	uint64_t identity;
	struct dioh_consume_file out;
	struct dioh_join_place place;
	bool done; /* OUT is complete */
};

/* No device numbers: after a reboot the same file may be on another. */
static json_t *make_state(const struct dioh_consume *consume, const struct dioh_consume_file *out,
                          const struct dioh_join_place *place, bool done)
{
	return json_pack("{s:i, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:b}", "version", STATE_VERSION, "format",
	                 consume->format, "in_bytes", (json_int_t)consume->in_bytes, "base_offset",
	                 (json_int_t)consume->base_offset, "header_bytes", (json_int_t)consume->header_bytes, "in_identity",
	                 (json_int_t)consume->identity, "out_inode", (json_int_t)out->inode, "out_born_ns",
	                 (json_int_t)out->born_ns, "region", (json_int_t)place->index, "offset",
	                 (json_int_t)place->offset, "done", (int)done);
}

static int write_all(int fd, const char *text)
{
	size_t left = strlen(text);

	while (left > 0) {
		ssize_t count = write(fd, text, left);

		if (count < 0 && errno != EINTR)
			return -errno;
		text += count < 0 ? 0 : count;
		left -= count < 0 ? 0 : (size_t)count;
	}
	return fsync(fd) != 0 ? -errno : 0;
}

/* Whole and durable, or as it was before. */
static int replace_state(struct dioh_consume *consume, const char *text, struct dioh_error *err)
{
	DIOH_AUTO_FD int fd = dioh_tool_partial_open(consume->new_path, err);
	int r;

	if (fd < 0)
		return fd;
	r = write_all(fd, text);
	if (r == 0 && rename(consume->new_path, consume->state_path) != 0)
		r = -errno;
	if (r == 0 && fsync(consume->directory_fd) != 0)
		r = -errno;
	if (r == 0)
		return 0;
	(void)unlink(consume->new_path);
	return dioh_tool_error_set(err, -r, "%.120s cannot be written: %s", consume->state_path, strerror(-r));
}

/* `fd` -1: what has the name; else the name is "". */
static int tell_file(const char *path, int fd, struct dioh_consume_file *ret_file)
{
	struct statx st;

	if (statx(fd >= 0 ? fd : AT_FDCWD, path, AT_EMPTY_PATH, STATX_TYPE | STATX_INO | STATX_BTIME, &st) != 0)
		return -errno;
	*ret_file = (struct dioh_consume_file){ .inode = st.stx_ino };
	if (S_ISREG(st.stx_mode) && (st.stx_mask & STATX_BTIME)) /* a device's node is made anew with each boot */
		ret_file->born_ns = (int64_t)((uint64_t)st.stx_btime.tv_sec * UINT64_C(1000000000) + st.stx_btime.tv_nsec);
	return 0;
}

static bool is_file(const struct dioh_consume_file *file, const char *path, int fd)
{
	struct dioh_consume_file other;

	return tell_file(path, fd, &other) == 0 && other.inode == file->inode &&
	       (other.born_ns == file->born_ns || other.born_ns == 0 || file->born_ns == 0);
}

static int write_state(struct dioh_consume *consume, const struct dioh_join_place *place, bool done,
                       struct dioh_error *err)
{
	struct dioh_consume_file out;
	json_t *state;
	char *text;
	int r = tell_file("", consume->out_fd, &out);

	if (r < 0)
		return dioh_tool_error_set(err, -r, "statx failed: %s", strerror(-r));
	state = make_state(consume, &out, place, done);
	text = state ? json_dumps(state, JSON_INDENT(1)) : NULL;
	json_decref(state);
	if (!text)
		return dioh_tool_error_set(err, ENOMEM, "there is no memory for the state");
	r = replace_state(consume, text, err);
	free(text);
	return r;
}

static int refuse_state(const struct dioh_consume *consume, const char *why, struct dioh_error *err)
{
	return dioh_tool_error_set(err, EINVAL, "%.120s, which an earlier --consume has left, %s", consume->state_path, why);
}

static bool parse_state(const json_t *json, struct state *ret_state)
{
	json_int_t bytes, base, header, identity, out_inode, out_born, region, offset;
	const char *format;
	int version, done;

	if (json_unpack((json_t *)json, "{s:i, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:b}", "version", &version, "format",
	                &format, "in_bytes", &bytes, "base_offset", &base, "header_bytes", &header, "in_identity", &identity,
	                "out_inode", &out_inode, "out_born_ns", &out_born, "region", &region, "offset", &offset, "done",
	                &done) != 0 ||
	    version != STATE_VERSION || strlen(format) >= FORMAT_BYTES || header < 0 || header > DIOH_HEADER_BYTES_MAX ||
	    region < 0 || region > DIOH_REGIONS_MAX || offset < 0 || offset % DIOH_CHUNK_BYTES != 0)
		return false;
	*ret_state = (struct state){
		.in_bytes = (uint64_t)bytes, .base_offset = (uint64_t)base, .header_bytes = (uint64_t)header,
		.identity = (uint64_t)identity, .out = { (uint64_t)out_inode, out_born }, .place = { (uint32_t)region, (uint64_t)offset },
		.done = done != 0
	};
	strcpy(ret_state->format, format);
	return true;
}

/* 1: there is one; 0: there is none. */
static int read_state(const struct dioh_consume *consume, struct state *ret_state, struct dioh_error *err)
{
	DIOH_AUTO_FD int fd = open(consume->state_path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NOCTTY | O_NONBLOCK);
	char text[STATE_BYTES_MAX];
	json_t *json;
	ssize_t count;
	bool good;

	if (fd < 0 && errno == ENOENT)
		return 0;
	count = fd < 0 ? -1 : read(fd, text, sizeof(text));
	if (count < 0)
		return dioh_tool_error_set(err, errno, "%.120s cannot be read: %s", consume->state_path, strerror(errno));
	json = json_loadb(text, (size_t)count, 0, NULL);
	good = json && parse_state(json, ret_state);
	json_decref(json);
	return good ? 1 : refuse_state(consume, "cannot be understood", err);
}

static bool is_start(const struct dioh_join_place *place)
{
	return place->index == 0 && place->offset == 0;
}

bool dioh_consume_has_begun(const struct dioh_consume *consume)
{
	return !is_start(&consume->place);
}

static int take_state(struct dioh_consume *consume, const struct state *state, struct dioh_error *err)
{
	if (strcmp(state->format, consume->format) != 0 || state->in_bytes != consume->in_bytes ||
	    state->base_offset != consume->base_offset)
		return refuse_state(consume, "is of another IN or another format", err);
	if (state->identity != consume->identity)
		return refuse_state(consume, "is of another image than the one that is in IN now: remove it to begin with this one",
		                    err);
	consume->resumed = true;
	consume->out = state->out;
	consume->place = state->place;
	consume->whole = !dioh_consume_has_begun(consume);
	return 0;
}

/* ---- which image is in IN ----------------------------------------------------------------------------------- */

/* FNV-1a: an image is to be told from another one, not from one that was made to look the same. */
static uint64_t hash(uint64_t value, const uint8_t *bytes, size_t count)
{
	for (size_t i = 0; i < count; i++)
		value = (value ^ bytes[i]) * UINT64_C(0x100000001b3);
	return value;
}

/*
 * What stands in front of the first page: heads, tables, bitmaps and the checksums of all pages, which are read as
 * bytes without a meaning. A header in front of a mapped-ram image is left out: libvirt's may be edited in place.
 */
static int identify(struct dioh_consume *consume, const struct dioh_tool_table *table, struct dioh_error *err)
{
	DIOH_AUTO_FREE uint8_t *piece = malloc(PIECE_BYTES);
	uint64_t at = consume->base_offset + consume->header_bytes, end = consume->base_offset + IDENTITY_BYTES_MAX;

	if (!piece)
		return dioh_tool_error_set(err, ENOMEM, "there is no memory to read into");
	consume->identity = UINT64_C(0xcbf29ce484222325);
	for (uint32_t i = 0; i < table->region_count; i++)
		end = dioh_min(end, consume->base_offset + table->entries[i].image_offset);
	while (at < end) {
		ssize_t count = pread(consume->in_fd, piece, dioh_min(end - at, PIECE_BYTES), (off_t)at);

		if (count < 0 && errno == EINTR)
			continue;
		if (count <= 0)
			return dioh_tool_error_set(err, count < 0 ? errno : EBADMSG, "reading at %" PRIu64 " failed: %s", at,
			                           count < 0 ? strerror(errno) : "it ends there");
		consume->identity = hash(consume->identity, piece, (size_t)count);
		at += (uint64_t)count;
	}
	return 0;
}

/* ---- beginning and end -------------------------------------------------------------------------------------- */

static bool has_either_name(const struct dioh_consume *consume, const struct stat *in)
{
	struct stat st;

	return (stat(consume->state_path, &st) == 0 && dioh_tool_is_same_file(&st, in)) ||
	       (stat(consume->new_path, &st) == 0 && dioh_tool_is_same_file(&st, in));
}

static int open_in(struct dioh_consume *consume, const struct dioh_tool_image *image, struct dioh_error *err)
{
	struct stat st, mine;

	consume->in_fd = open(image->path, O_RDWR | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
	if (consume->in_fd < 0)
		return dioh_tool_error_set(err, errno, "cannot be opened for writing, as --consume needs: %s", strerror(errno));
	if (fstat(consume->in_fd, &mine) != 0 || fstat(image->buffered_fd, &st) != 0)
		return dioh_tool_error_set(err, errno, "fstat failed: %s", strerror(errno));
	if (st.st_dev != mine.st_dev || st.st_ino != mine.st_ino)
		return dioh_tool_error_set(err, ESTALE, "was replaced while it was being opened");
	if (!S_ISREG(st.st_mode))
		return dioh_tool_error_set(err, EINVAL, "is a device, which has no room to give back: not with --consume");
	consume->in_bytes = (uint64_t)st.st_size;
	consume->base_offset = image->base_offset;
	if (has_either_name(consume, &st))
		return dioh_tool_error_set(err, EINVAL, "has the name that the state of this conversion is to have");
	return dioh_tool_lock(consume->in_fd, image->path, err);
}

static int name_state(struct dioh_consume *consume, const char *out_path, struct dioh_error *err)
{
	int n;

	snprintf(consume->state_path, sizeof(consume->state_path), "%s" STATE_SUFFIX, out_path);
	n = snprintf(consume->new_path, sizeof(consume->new_path), "%s" STATE_SUFFIX ".new", out_path);
	if (n < 0 || (size_t)n >= sizeof(consume->new_path))
		return dioh_tool_error_set(err, ENAMETOOLONG, "OUT's name is too long");
	return 0;
}

bool dioh_consume_is_out(const struct dioh_consume *consume, const char *path, int fd)
{
	return consume->resumed && is_file(&consume->out, path, fd);
}

/* Nobody else than that conversion may write to it: what was freed of its IN is nowhere else. */
int dioh_consume_check_other(const char *out_path, int out_fd, struct dioh_error *err)
{
	struct dioh_consume consume = { .in_fd = -1 };
	struct state state;
	int r = name_state(&consume, out_path, err);

	if (r < 0) /* then none can have that name either */
		return 0;
	r = read_state(&consume, &state, err);
	if (r <= 0 || is_start(&state.place) || !is_file(&state.out, out_fd >= 0 ? "" : out_path, out_fd))
		return r < 0 ? r : 0;
	return refuse_state(&consume, "says that what it has freed of an image is here: go on with --consume, or remove that file to "
	                              "give that image up", err);
}

static int check_begun(const struct dioh_consume *consume, const char *out_path, int out_fd, struct dioh_error *err)
{
	if (dioh_consume_has_begun(consume) && !dioh_consume_is_out(consume, out_path, out_fd))
		return refuse_state(consume, "says that a part of IN is in another OUT already", err);
	return 0;
}

int dioh_consume_begin(const struct dioh_tool_image *image, const struct dioh_msg_open_image_reply *open,
                       const struct dioh_tool_table *table, const char *out_path, const char *format,
                       struct dioh_consume *ret_consume, struct dioh_error *err)
{
	struct dioh_consume *consume = ret_consume;
	struct state state;
	int r;

	*consume = (struct dioh_consume){ .format = format, .in_fd = -1, .out_fd = -1, .directory_fd = -1, .whole = true };
	consume->header_bytes = open->layout == DIOH_LAYOUT_MAPPED_RAM ? open->header_bytes : 0;
	r = name_state(consume, out_path, err);
	if (r == 0)
		r = open_in(consume, image, err);
	if (r == 0)
		r = identify(consume, table, err);
	if (r == 0)
		r = read_state(consume, &state, err);
	if (r > 0)
		r = take_state(consume, &state, err);
	return r != 0 ? r : check_begun(consume, out_path, -1, err);
}

static int refuse_damaged(const struct dioh_tool_check *check, struct dioh_error *err)
{
	char more[64] = "";

	if (check->damage_count > 1)
		snprintf(more, sizeof(more), " (it is damaged in %" PRIu32 " places: `verify` names them)", check->damage_count);
	return dioh_tool_error_set(err, EBADMSG, "%.150s%s", check->damages[0].text, more);
}

int dioh_consume_check(const struct dioh_consume *consume, const struct dioh_tool_image_check_options *in,
                       struct dioh_error *err)
{
	struct dioh_tool_table table;
	struct dioh_tool_check check;
	struct dioh_error why;
	int r = consume->whole ? dioh_tool_check_image(in, &table, &check, &why) : 0;

	if (r == 0 && consume->whole) {
		r = check.damage_count > 0 ? refuse_damaged(&check, &why) : 0;
		dioh_tool_check_free(&check);
		free(table.entries);
	}
	if (r == 0)
		return 0;
	return dioh_tool_error_set(err, why.code, "%.200s: this run has freed nothing of it%s", why.text,
	                           why.code == EBADMSG ? " (if an earlier one into another OUT has, go on with that)" : "");
}

/* Before OUT is touched there is a state, so that a new run knows whose a partial OUT is. */
int dioh_consume_take_out(struct dioh_consume *consume, int out_fd, int directory_fd, struct dioh_error *err)
{
	int r;

	consume->out_fd = out_fd;
	consume->directory_fd = directory_fd;
	r = check_begun(consume, "", out_fd, err);
	return r != 0 ? r : write_state(consume, &consume->place, false, err);
}

static bool is_reached(const struct dioh_join_place *a, const struct dioh_join_place *b)
{
	return a->index != b->index ? a->index > b->index : a->offset >= b->offset;
}

/* The region's pages between two places of it. */
static int free_pages(struct dioh_consume *consume, const struct dioh_msg_entry *region, uint64_t from, uint64_t to,
                      struct dioh_error *err)
{
	const uint64_t at = consume->base_offset + region->image_offset + from;

	if (from >= to)
		return 0;
	if (region->image_offset > consume->in_bytes || region->bytes > consume->in_bytes - region->image_offset)
		to = dioh_min(to, consume->in_bytes - dioh_min(region->image_offset, consume->in_bytes));
	if (fallocate(consume->in_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)at, (off_t)(to - from)) == 0) {
		consume->whole = false;
		return 0;
	}
	consume->whole = consume->whole && errno == EOPNOTSUPP;
	return dioh_tool_error_set(err, errno, "freeing %" PRIu64 " bytes at %" PRIu64 " failed: %s", to - from, at,
	                           strerror(errno));
}

int dioh_consume_durable(void *owner, const struct dioh_msg_entry *regions, const struct dioh_join_place *place,
                         struct dioh_error *err)
{
	struct dioh_consume *consume = owner;
	int r = write_state(consume, place, false, err);

	if (r == 0)
		consume->place = *place;
	while (r == 0 && !is_reached(&consume->freed, place)) {
		const bool last = consume->freed.index == place->index;
		const struct dioh_msg_entry *region = &regions[consume->freed.index];

		r = free_pages(consume, region, consume->freed.offset, last ? place->offset : region->bytes, err);
		consume->freed = last ? *place : (struct dioh_join_place){ consume->freed.index + 1, 0 };
	}
	return r;
}

/* ---- the end ------------------------------------------------------------------------------------------------ */

static int zero_and_sync(int fd, uint64_t at, struct dioh_error *err)
{
	static const uint8_t zeros[MARK_BYTES];
	ssize_t count = pwrite(fd, zeros, sizeof(zeros), (off_t)at);

	if (count >= 0 && count != (ssize_t)sizeof(zeros))
		errno = EIO;
	if (count != (ssize_t)sizeof(zeros) || fdatasync(fd) != 0)
		return dioh_tool_error_set(err, errno, "is complete, but IN cannot be marked as no image: writing at %" PRIu64
		                           " failed: %s", at, strerror(errno));
	return 0;
}

/* IN's beginning, and then QEMU's behind a header: dioh_consume_finish() goes by the first of them. */
static int finish(const struct dioh_consume *consume, struct dioh_error *err)
{
	int r = zero_and_sync(consume->in_fd, consume->base_offset, err);

	if (r == 0 && consume->header_bytes > 0)
		r = zero_and_sync(consume->in_fd, consume->base_offset + consume->header_bytes, err);
	if (r != 0)
		return r;
	if (unlink(consume->state_path) != 0 || fsync(consume->directory_fd) != 0)
		return dioh_tool_error_set(err, errno, "%.120s cannot be removed: %s", consume->state_path, strerror(errno));
	return 0;
}

int dioh_consume_end(struct dioh_consume *consume, struct dioh_error *err)
{
	int r = write_state(consume, &consume->place, true, err);

	return r != 0 ? r : finish(consume, err);
}

/* OUT's name went first: a state alone has a new run begin anew. */
void dioh_consume_drop(struct dioh_consume *consume)
{
	(void)unlink(consume->state_path);
	(void)fsync(consume->directory_fd);
}

static bool has_no_mark(int fd, uint64_t at)
{
	static const uint8_t zeros[MARK_BYTES];
	uint8_t bytes[MARK_BYTES];

	return pread(fd, bytes, sizeof(bytes), (off_t)at) == (ssize_t)sizeof(bytes) &&
	       memcmp(bytes, zeros, sizeof(zeros)) == 0;
}

static bool is_done(const struct dioh_consume *consume, const struct state *state, const char *out_path)
{
	struct stat in;

	return state->done && is_file(&state->out, out_path, -1) &&
	       fstat(consume->in_fd, &in) == 0 && S_ISREG(in.st_mode) && (uint64_t)in.st_size == state->in_bytes &&
	       consume->base_offset == state->base_offset && has_no_mark(consume->in_fd, consume->base_offset);
}

/* Whatever else is not as it should be here is for dioh_consume_begin() to complain of. */
int dioh_consume_finish(const char *in_path, uint64_t base_offset, const char *out_path, struct dioh_error *err)
{
	DIOH_AUTO_FD int in_fd = open(in_path, O_RDWR | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
	struct dioh_consume consume = { .in_fd = in_fd, .base_offset = base_offset };
	DIOH_AUTO_FD int directory_fd = -1;
	struct state state;

	if (in_fd >= 0 && dioh_tool_lock(in_fd, in_path, err) != 0)
		return -err->code;
	if (in_fd < 0 || name_state(&consume, out_path, err) != 0 || read_state(&consume, &state, err) <= 0 ||
	    !is_done(&consume, &state, out_path))
		return 0;
	directory_fd = dioh_tool_open_directory(out_path);
	if (directory_fd < 0)
		return dioh_tool_error_set(err, errno, "its directory cannot be opened: %s", strerror(errno));
	consume.header_bytes = state.header_bytes;
	consume.directory_fd = directory_fd;
	return finish(&consume, err) == 0 ? 1 : -err->code;
}

void dioh_consume_close(struct dioh_consume *consume)
{
	dioh_cleanup_fd(&consume->in_fd);
	consume->in_fd = -1;
}
