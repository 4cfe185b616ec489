/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * files.c - which file has a name, who writes it, and the names of what is not complete yet (NAME.partial): what stands at
 * such a name is never written through. It is removed if it can be an interrupted run's, and a new file is made. Called
 * by ingest.c, convert.c, convert_consume.c and bench_target.c.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "cleanup.h"
#include "tool.h"

#define PARTIAL_MODE 0600
#define LOCK_WAIT_MS 10000 /* the helper of a run that was killed has to end first */
#define LOCK_STEP_MS 20

bool dioh_tool_is_same_file(const struct stat *a, const struct stat *b)
{
	if (S_ISBLK(a->st_mode) && S_ISBLK(b->st_mode))
		return a->st_rdev == b->st_rdev;
	return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

bool dioh_tool_has_name(int fd, const char *path)
{
	struct stat named, st;

	return lstat(path, &named) == 0 && fstat(fd, &st) == 0 && named.st_dev == st.st_dev && named.st_ino == st.st_ino;
}

uint64_t dioh_tool_file_room(int fd)
{
	struct statvfs fs;
	struct stat st;

	/* A tmpfs without a limit tells of no blocks at all. */
	if (fstatvfs(fd, &fs) != 0 || fs.f_blocks == 0 || fstat(fd, &st) != 0)
		return UINT64_MAX;
	return (uint64_t)fs.f_bavail * fs.f_frsize + (uint64_t)st.st_blocks * 512;
}

/*
 * QEMU holds locks at these places of an image, one byte for each permission, as long as it has the image open. One that begins
 * before is none of these: NFS makes a lock of all bytes of another run's flock(2), for which dioh_tool_lock() waits.
 */
int dioh_tool_check_unused(int fd, struct dioh_error *err)
{
	static const off_t starts[] = { 100, 200 };

	for (size_t i = 0; i < sizeof(starts) / sizeof(starts[0]); i++) {
		struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = starts[i], .l_len = 4 };

		if (fcntl(fd, F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK && lock.l_start >= starts[0])
			return dioh_tool_error_set(err, EBUSY,
			                           "is locked by another program, as QEMU locks a disk that it uses");
	}
	return 0;
}

/*
 * A helper has the same open file: the lock is held for as long as anybody could still write. Who had it before may have
 * removed the file, or named it in another way.
 */
int dioh_tool_lock(int fd, const char *path, struct dioh_error *err)
{
	const uint64_t until_ns = dioh_tool_now_ns() + LOCK_WAIT_MS * UINT64_C(1000000);
	struct stat named, st;

	while (flock(fd, LOCK_EX | LOCK_NB) != 0) {
		if (errno != EWOULDBLOCK)
			break; /* this file system has no locks: without them the work can be done, too */
		if (dioh_tool_now_ns() >= until_ns)
			return dioh_tool_error_set(err, EBUSY, "%.120s is in use by another run", path);
		(void)poll(NULL, 0, LOCK_STEP_MS);
	}
	if (stat(path, &named) != 0 || fstat(fd, &st) != 0 || !dioh_tool_is_same_file(&named, &st))
		return dioh_tool_error_set(err, EBUSY, "%.120s was replaced by another run", path);
	return 0;
}

int dioh_tool_rename_new(const char *from, const char *to)
{
	if (renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE) == 0)
		return 0;
	return errno == EINVAL ? rename(from, to) : -1; /* this file system can't: what was seen before has to do */
}

/* ---- what is partial ---------------------------------------------------------------------------------------- */

int dioh_tool_partial_check(const char *path, struct dioh_error *err)
{
	struct stat st;

	if (lstat(path, &st) != 0)
		return errno == ENOENT ? 0 : dioh_tool_error_set(err, errno, "%.120s: %s", path, strerror(errno));
	if (!S_ISREG(st.st_mode) || st.st_nlink != 1 || st.st_uid != geteuid() || (st.st_mode & 07777) != PARTIAL_MODE)
		return dioh_tool_error_set(err, EEXIST,
		                           "%.120s is in the way, and may be somebody's own (it is no file of this user's with "
		                           "mode 0600 and one name): move it away", path);
	return 1;
}

int dioh_tool_partial_remove(const char *path, struct dioh_error *err)
{
	DIOH_AUTO_FD int fd = -1;
	int r = dioh_tool_partial_check(path, err);

	if (r <= 0)
		return r;
	fd = open(path, O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
	if (fd < 0)
		return dioh_tool_error_set(err, errno, "%.120s cannot be opened: %s", path, strerror(errno));
	r = dioh_tool_lock(fd, path, err);
	if (r == 0 && unlink(path) != 0)
		r = dioh_tool_error_set(err, errno, "%.120s cannot be removed: %s", path, strerror(errno));
	return r;
}

int dioh_tool_partial_open(const char *path, struct dioh_error *err)
{
	DIOH_AUTO_FD int fd = -1;
	int r = dioh_tool_partial_remove(path, err);

	if (r != 0)
		return r;
	fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_NOCTTY | O_CLOEXEC, PARTIAL_MODE);
	if (fd < 0)
		return dioh_tool_error_set(err, errno, "%.120s cannot be made: %s", path, strerror(errno));
	r = dioh_tool_lock(fd, path, err);
	return r != 0 ? r : dioh_steal_fd(&fd);
}
