/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * convert_consume.c - `convert --consume`: room for IN and OUT together is not needed, because IN's pages are freed behind
 * the work. What keeps this safe is an order: OUT durable up to a place -> the place durable in a file beside OUT -> IN's
 * pages before it freed. A run that is interrupted, by whatever, goes on from the place in that file; what has been
 * freed is then in OUT. IN's tables and streams are never freed, so that it can be opened again.
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

/* ---- the state ---------------------------------------------------------------------------------------------- */

static json_t *make_state(const struct dioh_consume *consume, const struct stat *in, const struct stat *out,
                          const struct dioh_join_place *place)
{
	return json_pack("{s:i, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "version", 1, "format", consume->format,
	                 "in_device", (json_int_t)in->st_dev, "in_inode", (json_int_t)in->st_ino, "in_bytes",
	                 (json_int_t)consume->in_bytes, "base_offset", (json_int_t)consume->base_offset, "out_device",
	                 (json_int_t)out->st_dev, "out_inode", (json_int_t)out->st_ino, "region", (json_int_t)place->index,
	                 "offset", (json_int_t)place->offset);
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
static int replace_state(struct dioh_consume *consume, const char *text)
{
	DIOH_AUTO_FD int fd = open(consume->new_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
	int r;

	if (fd < 0)
		return -errno;
	r = write_all(fd, text);
	if (r == 0 && rename(consume->new_path, consume->state_path) != 0)
		r = -errno;
	if (r == 0 && fsync(consume->directory_fd) != 0)
		r = -errno;
	return r;
}

static int write_state(struct dioh_consume *consume, const struct dioh_join_place *place, struct dioh_error *err)
{
	struct stat in, out = { 0 };
	json_t *state;
	char *text;
	int r;

	if (fstat(consume->in_fd, &in) != 0 || (consume->out_fd >= 0 && fstat(consume->out_fd, &out) != 0))
		return dioh_tool_error_set(err, errno, "fstat failed: %s", strerror(errno));
	state = make_state(consume, &in, &out, place);
	text = state ? json_dumps(state, JSON_INDENT(1)) : NULL;
	json_decref(state);
	if (!text)
		return dioh_tool_error_set(err, ENOMEM, "there is no memory for the state");
	r = replace_state(consume, text);
	free(text);
	if (r < 0)
		return dioh_tool_error_set(err, -r, "%.120s cannot be written: %s", consume->state_path, strerror(-r));
	return 0;
}

static int refuse_state(const struct dioh_consume *consume, const char *why, struct dioh_error *err)
{
	return dioh_tool_error_set(err, EINVAL, "%.120s, which an earlier --consume has left, %s", consume->state_path, why);
}

static int take_state(struct dioh_consume *consume, const json_t *state, struct dioh_error *err)
{
	json_int_t device, inode, bytes, base, out_device, out_inode, region, offset;
	const char *format;
	struct stat in;
	int version;

	if (json_unpack((json_t *)state, "{s:i, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "version", &version,
	                "format", &format, "in_device", &device, "in_inode", &inode, "in_bytes", &bytes, "base_offset", &base,
	                "out_device", &out_device, "out_inode", &out_inode, "region", &region, "offset", &offset) != 0 ||
	    version != 1 || region < 0 || region > DIOH_REGIONS_MAX || offset < 0 || offset % DIOH_CHUNK_BYTES != 0)
		return refuse_state(consume, "cannot be understood", err);
	if (fstat(consume->in_fd, &in) != 0)
		return dioh_tool_error_set(err, errno, "fstat failed: %s", strerror(errno));
	if (strcmp(format, consume->format) != 0 || (dev_t)device != in.st_dev || (ino_t)inode != in.st_ino ||
	    (uint64_t)bytes != consume->in_bytes || (uint64_t)base != consume->base_offset)
		return refuse_state(consume, "is of another IN or another format", err);
	consume->resumed = true;
	consume->out_device = (dev_t)out_device;
	consume->out_inode = (ino_t)out_inode;
	consume->place = consume->freed = (struct dioh_join_place){ (uint32_t)region, (uint64_t)offset };
	return 0;
}

static int read_state(struct dioh_consume *consume, struct dioh_error *err)
{
	DIOH_AUTO_FD int fd = open(consume->state_path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	char text[STATE_BYTES_MAX];
	json_t *state;
	ssize_t count;
	int r;

	if (fd < 0 && errno == ENOENT)
		return 0;
	count = fd < 0 ? -1 : read(fd, text, sizeof(text));
	if (count < 0)
		return dioh_tool_error_set(err, errno, "%.120s cannot be read: %s", consume->state_path, strerror(errno));
	state = json_loadb(text, (size_t)count, 0, NULL);
	r = state ? take_state(consume, state, err) : refuse_state(consume, "cannot be understood", err);
	json_decref(state);
	return r;
}

/* ---- beginning and end -------------------------------------------------------------------------------------- */

static int open_in(struct dioh_consume *consume, const char *path, const struct dioh_tool_image *image,
                   struct dioh_error *err)
{
	struct stat st, mine;

	consume->in_fd = open(path, O_RDWR | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
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
	return 0;
}

int dioh_consume_begin(const char *in_path, const struct dioh_tool_image *image, const char *out_path, const char *format,
                       struct dioh_consume *ret_consume, struct dioh_error *err)
{
	struct dioh_consume *consume = ret_consume;
	int n;

	*consume = (struct dioh_consume){ .format = format, .in_fd = -1, .out_fd = -1, .directory_fd = -1 };
	snprintf(consume->state_path, sizeof(consume->state_path), "%s" STATE_SUFFIX, out_path);
	n = snprintf(consume->new_path, sizeof(consume->new_path), "%s" STATE_SUFFIX ".new", out_path);
	if (n < 0 || (size_t)n >= sizeof(consume->new_path))
		return dioh_tool_error_set(err, ENAMETOOLONG, "OUT's name is too long");
	n = open_in(consume, in_path, image, err);
	return n != 0 ? n : read_state(consume, err);
}

/* Before OUT is touched there is a state, so that a new run knows whose a partial OUT is. */
int dioh_consume_take_out(struct dioh_consume *consume, int out_fd, int directory_fd, struct dioh_error *err)
{
	const bool begun = consume->place.index > 0 || consume->place.offset > 0;
	struct stat st;

	consume->out_fd = out_fd;
	consume->directory_fd = directory_fd;
	if (fstat(out_fd, &st) != 0)
		return dioh_tool_error_set(err, errno, "fstat failed: %s", strerror(errno));
	if (begun && (st.st_dev != consume->out_device || st.st_ino != consume->out_inode))
		return refuse_state(consume, "says that a part of IN is in another OUT already", err);
	return begun ? 0 : write_state(consume, &consume->place, err);
}

static bool is_reached(const struct dioh_join_place *a, const struct dioh_join_place *b)
{
	return a->index != b->index ? a->index > b->index : a->offset >= b->offset;
}

/* The region's pages between two places of it. */
static int free_pages(const struct dioh_consume *consume, const struct dioh_msg_entry *region, uint64_t from, uint64_t to,
                      struct dioh_error *err)
{
	const uint64_t at = consume->base_offset + region->image_offset + from;

	if (from >= to)
		return 0;
	if (region->image_offset > consume->in_bytes || region->bytes > consume->in_bytes - region->image_offset)
		to = dioh_min(to, consume->in_bytes - dioh_min(region->image_offset, consume->in_bytes));
	if (fallocate(consume->in_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)at, (off_t)(to - from)) != 0)
		return dioh_tool_error_set(err, errno, "freeing %" PRIu64 " bytes at %" PRIu64 " failed: %s", to - from, at,
		                           strerror(errno));
	return 0;
}

int dioh_consume_durable(void *owner, const struct dioh_msg_entry *regions, const struct dioh_join_place *place,
                         struct dioh_error *err)
{
	struct dioh_consume *consume = owner;
	int r = write_state(consume, place, err);

	while (r == 0 && !is_reached(&consume->freed, place)) {
		const bool last = consume->freed.index == place->index;
		const struct dioh_msg_entry *region = &regions[consume->freed.index];

		r = free_pages(consume, region, consume->freed.offset, last ? place->offset : region->bytes, err);
		consume->freed = last ? *place : (struct dioh_join_place){ consume->freed.index + 1, 0 };
	}
	return r;
}

int dioh_consume_end(struct dioh_consume *consume, struct dioh_error *err)
{
	if (unlink(consume->state_path) != 0 || fsync(consume->directory_fd) != 0)
		return dioh_tool_error_set(err, errno, "%.120s cannot be removed: %s", consume->state_path, strerror(errno));
	return 0;
}

void dioh_consume_close(struct dioh_consume *consume)
{
	dioh_cleanup_fd(&consume->in_fd);
	consume->in_fd = -1;
}
