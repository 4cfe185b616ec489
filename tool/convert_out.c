/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * convert_out.c - the file or device that `convert` writes: whose place it may take, whether there is room for it, the
 * descriptors that the helper gets, and its name, which a stream has only when it is complete.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "cleanup.h"
#include "convert.h"

static int open_directory(struct dioh_convert_out *out, struct dioh_error *err)
{
	out->directory_fd = dioh_tool_open_directory(out->name);
	if (out->directory_fd < 0)
		return dioh_tool_error_set(err, errno, "its directory cannot be opened: %s", strerror(errno));
	return 0;
}

/* A stream has no mark: what is not complete has another name. */
static int name_out(struct dioh_convert_out *out, struct dioh_error *err)
{
	const char *suffix = out->is_stream ? ".partial" : "";
	int n = snprintf(out->path, sizeof(out->path), "%s%s", out->name, suffix);

	if (n < 0 || (size_t)n >= sizeof(out->path))
		return dioh_tool_error_set(err, ENAMETOOLONG, "its name is too long");
	return 0;
}

/* `fd` -1: what has the name; else the name is "". */
static int check_file(const struct dioh_convert_out *out, const char *path, int fd, struct dioh_error *err)
{
	struct stat st;
	int r;

	if ((fd >= 0 ? fstat(fd, &st) : stat(path, &st)) != 0)
		return dioh_tool_error_set(err, errno, "fstat failed: %s", strerror(errno));
	if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
		return dioh_tool_error_set(err, EINVAL, "is neither a regular file nor a block device");
	if (dioh_tool_is_same_file(out->in, &st))
		return dioh_tool_error_set(err, EINVAL, "is IN itself");
	if (S_ISBLK(st.st_mode) && out->is_stream)
		return dioh_tool_error_set(err, EINVAL, "is a device: nothing would say where a stream on it ends");
	r = out->consume ? 0 : dioh_consume_check_other(out->name, fd, err);
	if (r == 0 && !out->force && (!S_ISREG(st.st_mode) || st.st_size > 0) &&
	    !(out->consume && dioh_consume_is_out(out->consume, path, fd)))
		return dioh_tool_error_set(err, EEXIST, "exists; --force overwrites it");
	return r;
}

/* What cannot be opened for reading is refused for other reasons, or nobody's disk. */
static int check_unused(const char *path, struct dioh_error *err)
{
	DIOH_AUTO_FD int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);

	return fd >= 0 ? dioh_tool_check_unused(fd, err) : 0;
}

/* Before anything is made, and with a stream, which takes OUT's own name only in the end, once more then. */
static int check_name(const struct dioh_convert_out *out, struct dioh_error *err)
{
	const char *path = out->name;
	struct stat st;
	int r = access(path, F_OK) == 0 ? check_file(out, path, -1, err) : 0;

	if (r == 0)
		r = check_unused(path, err);
	if (r == 0 && out->is_stream && lstat(path, &st) == 0 && S_ISLNK(st.st_mode))
		r = dioh_tool_error_set(err, EINVAL, "is a symbolic link, whose place a stream would take: name the file itself");
	return r;
}

int dioh_convert_out_prepare(struct dioh_convert_out *out, struct dioh_error *err)
{
	int r = name_out(out, err);

	if (r == 0)
		r = open_directory(out, err);
	return r == 0 ? check_name(out, err) : r;
}

/* Is IN's room OUT's? Subvolumes of one btrfs, which have numbers of their own, have as much left as each other. */
static bool shares_room(const struct dioh_convert_out *out, int fd)
{
	struct statvfs mine, other;
	struct stat st;

	if (fstat(fd, &st) != 0 || st.st_dev == out->in->st_dev)
		return true;
	return fstatvfs(fd, &mine) != 0 || fstatvfs(out->consume->in_fd, &other) != 0 ||
	       (mine.f_blocks == other.f_blocks && mine.f_bfree == other.f_bfree && mine.f_frsize == other.f_frsize);
}

/* An OUT that is overwritten is lost with the first byte, and so is an IN with the first that is freed. */
static bool can_lose(const struct dioh_convert_out *out, int fd)
{
	struct stat st;

	if (out->is_stream || (out->consume && dioh_consume_has_begun(out->consume)))
		return false;
	if (fd < 0 || fstat(fd, &st) != 0)
		return out->consume;
	return S_ISREG(st.st_mode) && (out->consume || st.st_size > 0);
}

/*
 * What OUT takes nobody knows before it is there (a file system may compress, a stream may bring a page twice): so the room
 * is looked at only if there is something to lose.
 */
int dioh_convert_out_check_room(const struct dioh_convert_out *out, uint64_t data_bytes, uint64_t ahead_bytes,
                                struct dioh_error *err)
{
	DIOH_AUTO_FD int mine = open(out->name, O_PATH | O_CLOEXEC);
	const int fd = mine >= 0 ? mine : out->directory_fd;
	const bool ahead = out->consume && shares_room(out, fd);
	const uint64_t needed = ahead ? ahead_bytes : data_bytes, room = dioh_tool_file_room(fd);
	char needed_text[DIOH_TOOL_SIZE_BYTES], room_text[DIOH_TOOL_SIZE_BYTES];

	if (!can_lose(out, mine) || needed <= room)
		return 0;
	dioh_tool_format_size(needed, needed_text);
	dioh_tool_format_size(room, room_text);
	if (ahead)
		return dioh_tool_error_set(err, ENOSPC, "%s come before anything of IN is freed, and there is room for %s: nothing was "
		                           "written, and nothing freed", needed_text, room_text);
	return dioh_tool_error_set(err, ENOSPC, "IN has %s of data, and there is room for %s: nothing was written%s", needed_text,
	                           room_text, out->consume ? ", and nothing freed, which would give no room here" :
	                           ". Whoever does not want this OUT any more removes it first");
}

static int open_partial(struct dioh_convert_out *out, struct dioh_error *err)
{
	struct stat st;

	if (stat(out->path, &st) == 0 && dioh_tool_is_same_file(out->in, &st))
		return dioh_tool_error_set(err, EINVAL, "%.120s, as OUT is called until it is complete, is IN itself", out->path);
	out->fd = dioh_tool_partial_open(out->path, err);
	out->created = out->fd >= 0;
	return out->fd < 0 ? out->fd : 0;
}

static int open_itself(struct dioh_convert_out *out, struct dioh_error *err)
{
	const int fd = open(out->path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOCTTY, 0600);
	struct stat st;
	int r = 0;

	out->fd = fd;
	if (out->fd < 0 && errno == EEXIST) /* O_EXCL: no device that is mounted, or in use in another way */
		out->fd = open(out->path, O_RDWR | O_EXCL | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
	if (out->fd < 0 || fstat(out->fd, &st) != 0)
		return dioh_tool_error_set(err, errno, "cannot be opened: %s%s", strerror(errno),
		                           errno == EBUSY ? " (is it mounted?)" : "");
	if (S_ISREG(st.st_mode))
		r = dioh_tool_lock(out->fd, out->path, err);
	out->created = fd >= 0 && r == 0; /* else it is the other's who has locked it */
	return r != 0 ? r : check_file(out, "", out->fd, err);
}

int dioh_convert_out_open(struct dioh_convert_out *out, struct dioh_error *err)
{
	struct stat st;
	int r = out->is_stream ? open_partial(out, err) : open_itself(out, err);

	if (r != 0)
		return r;
	(void)fcntl(out->fd, F_SETFL, 0);
	/* EINVAL: this file system has none. Whatever else it is, without O_DIRECT the work can be done too. */
	out->direct_fd = open(out->path, O_RDWR | O_CLOEXEC | O_NOCTTY | O_NONBLOCK | O_DIRECT);
	if (out->direct_fd >= 0)
		(void)fcntl(out->direct_fd, F_SETFL, O_DIRECT);
	if (out->consume && (out->sync_fd = open(out->path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK)) < 0)
		return dioh_tool_error_set(err, errno, "cannot be opened once more: %s", strerror(errno));
	/* Layout raw makes no file shorter. */
	if (out->to_be_emptied && fstat(out->fd, &st) == 0 && S_ISREG(st.st_mode) && ftruncate(out->fd, 0) != 0)
		return dioh_tool_error_set(err, errno, "cannot be emptied: %s", strerror(errno));
	return 0;
}

int dioh_convert_out_name(struct dioh_convert_out *out, struct dioh_error *err)
{
	const char *path = out->name;
	bool there;
	int r;

	if (!out->is_stream)
		return 0;
	if (!dioh_tool_has_name(out->fd, out->path))
		return dioh_tool_error_set(err, ESTALE, "%.120s was replaced by somebody else", out->path);
	r = check_name(out, err);
	if (r != 0)
		return r;
	there = faccessat(AT_FDCWD, path, F_OK, AT_SYMLINK_NOFOLLOW) == 0;
	if ((there ? rename(out->path, path) : dioh_tool_rename_new(out->path, path)) != 0)
		return dioh_tool_error_set(err, errno, "renaming it failed: %s", strerror(errno));
	if (fsync(out->directory_fd) != 0)
		return dioh_tool_error_set(err, errno, "is complete, but its name could not be made durable: %s", strerror(errno));
	return 0;
}

bool dioh_convert_out_drop(const struct dioh_convert_out *out)
{
	/* What IN has been freed for stays, and so does what has OUT's name already. */
	if (!out->created || (out->consume && !out->consume->whole) || !dioh_tool_has_name(out->fd, out->path))
		return false;
	(void)unlink(out->path);
	return true;
}

void dioh_convert_out_close(struct dioh_convert_out *out)
{
	dioh_cleanup_fd(&out->fd);
	dioh_cleanup_fd(&out->direct_fd);
	dioh_cleanup_fd(&out->directory_fd);
	dioh_cleanup_fd(&out->sync_fd);
}
