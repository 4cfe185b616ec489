/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * bench_target.c - PATH, the file or device that is measured: opened, emptied between measurements, asked for what it
 * left in the page cache, removed. A file of our own keeps its name until the end: some file systems sync a file
 * without one faster, because nobody could find it again. Called by bench.c, bench_run.c and bench_stream.c.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bench.h"
#include "cleanup.h"

/* What an image takes besides its data: head, tables, and a checksum for each MiB. */
#define OVERHEAD_BYTES (UINT64_C(8) << 20)
#define OVERHEAD_SHARE 4096u

#define MINCORE_WINDOW_BYTES DIOH_BENCH_GIB
#define OPEN_FLAGS (O_RDWR | O_CLOEXEC | O_NOCTTY)

/* ---- opening ------------------------------------------------------------------------------------------------ */

static int create_in_directory(struct dioh_bench_target *target, struct dioh_error *err)
{
	char *name;

	if (asprintf(&name, "%s/diohelper-bench.XXXXXX", target->path) < 0)
		return dioh_tool_error_set(err, ENOMEM, "there is no memory for a file's name");
	target->buffered_fd = mkostemp(name, O_CLOEXEC);
	if (target->buffered_fd < 0) {
		dioh_tool_error_set(err, errno, "no file can be made in this directory: %s", strerror(errno));
		free(name);
		return -err->code;
	}
	target->created = name;
	return 0;
}

static int create_file(struct dioh_bench_target *target, struct dioh_error *err)
{
	char *name = strdup(target->path);

	if (!name)
		return dioh_tool_error_set(err, ENOMEM, "there is no memory for a file's name");
	target->buffered_fd = open(name, OPEN_FLAGS | O_CREAT | O_EXCL, 0600);
	if (target->buffered_fd < 0) {
		dioh_tool_error_set(err, errno, "cannot be created: %s", strerror(errno));
		free(name);
		return -err->code;
	}
	target->created = name;
	return 0;
}

/* O_EXCL: refused if it is mounted, swap, a part of a RAID or of a mapped device, or opened so by somebody else. */
static int take_device(struct dioh_bench_target *target, bool destroy, struct dioh_error *err)
{
	int fd;

	if (!destroy)
		return dioh_tool_error_set(err, EEXIST, "is a block device: --destroy permits to overwrite it");
	fd = open(target->path, OPEN_FLAGS | O_EXCL);
	if (fd < 0)
		return dioh_tool_error_set(err, errno, "cannot be opened exclusively: %s%s", strerror(errno),
		                           errno == EBUSY ? " (is it mounted?)" : "");
	dioh_cleanup_fd(&target->buffered_fd);
	target->buffered_fd = fd;
	target->is_device = true;
	return 0;
}

static int take_existing(struct dioh_bench_target *target, bool destroy, struct dioh_error *err)
{
	struct stat st;
	char size[DIOH_TOOL_SIZE_BYTES];

	if (fstat(target->buffered_fd, &st) != 0)
		return dioh_tool_error_set(err, errno, "fstat failed: %s", strerror(errno));
	if (dioh_tool_check_unused(target->buffered_fd, err) != 0)
		return -err->code;
	if (S_ISBLK(st.st_mode))
		return take_device(target, destroy, err);
	if (!S_ISREG(st.st_mode))
		return dioh_tool_error_set(err, EINVAL, "is neither a directory, nor a regular file, nor a block device");
	if (st.st_size == 0 || destroy)
		return 0;
	dioh_tool_format_size(st.st_size, size);
	return dioh_tool_error_set(err, EEXIST, "has a content of %s: --destroy permits to overwrite it", size);
}

/* O_NONBLOCK: opening a FIFO must not wait for its other end. */
static int open_buffered(struct dioh_bench_target *target, bool destroy, struct dioh_error *err)
{
	int r;

	target->buffered_fd = open(target->path, OPEN_FLAGS | O_NONBLOCK);
	if (target->buffered_fd < 0 && errno == EISDIR)
		return create_in_directory(target, err);
	if (target->buffered_fd < 0 && errno == ENOENT)
		return create_file(target, err);
	if (target->buffered_fd < 0)
		return dioh_tool_error_set(err, errno, "cannot be opened: %s", strerror(errno));
	r = take_existing(target, destroy, err);
	if (r == 0 && fcntl(target->buffered_fd, F_SETFL, 0) != 0)
		return dioh_tool_error_set(err, errno, "fcntl failed: %s", strerror(errno));
	return r;
}

int dioh_bench_target_open(const struct dioh_bench_options *options, struct dioh_bench_target *ret_target,
                           struct dioh_error *err)
{
	struct dioh_bench_target target = { .path = options->path, .buffered_fd = -1, .direct_fd = -1 };
	int r = open_buffered(&target, options->destroy, err);

	if (r != 0) {
		dioh_cleanup_fd(&target.buffered_fd); /* nothing has been made, and nothing is to be emptied */
		return r;
	}
	if (!options->buffered) {
		/* EINVAL: there is none here. The helper says so, and works without. */
		r = dioh_bench_target_reopen(&target, O_RDWR | O_DIRECT);
		target.direct_fd = r >= 0 ? r : -1;
	}
	*ret_target = target;
	return 0;
}

static int leave_clean(const struct dioh_bench_target *target, struct dioh_error *err)
{
	struct dioh_error why;

	if (!target->created) {
		/* Emptying what a helper writes to would wait for it. */
		if (!target->used || target->abandoned || dioh_bench_target_empty(target, &why) == 0)
			return 0;
		return dioh_tool_error_set(err, why.code, "what was written stays in it: %.200s", why.text);
	}
	if (unlink(target->created) == 0 || errno == ENOENT)
		return 0;
	return dioh_tool_error_set(err, errno, "the file %.160s could not be removed: %s", target->created,
	                           strerror(errno));
}

int dioh_bench_target_close(struct dioh_bench_target *target, struct dioh_error *err)
{
	int r = leave_clean(target, err);

	dioh_cleanup_fd(&target->direct_fd);
	dioh_cleanup_fd(&target->buffered_fd);
	free(target->created);
	*target = (struct dioh_bench_target){ .path = target->path, .buffered_fd = -1, .direct_fd = -1 };
	return r;
}

int dioh_bench_target_reopen(const struct dioh_bench_target *target, int flags)
{
	char name[32];
	int fd;

	snprintf(name, sizeof(name), "/proc/self/fd/%d", target->buffered_fd);
	fd = open(name, flags | O_CLOEXEC | O_NOCTTY);
	return fd >= 0 ? fd : -errno;
}

/* ---- room --------------------------------------------------------------------------------------------------- */

static uint64_t device_room(int fd)
{
	off_t end = lseek(fd, 0, SEEK_END);

	return end < 0 ? UINT64_MAX : (uint64_t)end;
}

int dioh_bench_target_check_room(const struct dioh_bench_target *target, uint64_t size_bytes, uint64_t needed_bytes,
                                 struct dioh_error *err)
{
	/* On a device every page has its place, whether it is in the image or not. */
	uint64_t data = target->is_device ? size_bytes : needed_bytes;
	uint64_t needed = data + size_bytes / OVERHEAD_SHARE + OVERHEAD_BYTES;
	uint64_t room = target->is_device ? device_room(target->buffered_fd) :
	                                    dioh_tool_file_room(target->buffered_fd);
	char needed_text[DIOH_TOOL_SIZE_BYTES], room_text[DIOH_TOOL_SIZE_BYTES];

	if (needed <= room)
		return 0;
	dioh_tool_format_size(needed, needed_text);
	dioh_tool_format_size(room, room_text);
	return dioh_tool_error_set(err, ENOSPC, "the image needs %s, and the %s has room for %s: choose a smaller --size",
	                           needed_text, target->is_device ? "device" : "file system", room_text);
}

/* ---- between measurements ----------------------------------------------------------------------------------- */

int dioh_bench_target_empty(const struct dioh_bench_target *target, struct dioh_error *err)
{
	if (target->is_device)
		return 0;
	if (ftruncate(target->buffered_fd, 0) != 0 || fsync(target->buffered_fd) != 0)
		return dioh_tool_error_set(err, errno, "emptying the file failed: %s", strerror(errno));
	return 0;
}

int dioh_bench_target_drop_cache(const struct dioh_bench_target *target, struct dioh_error *err)
{
	int r;

	if (fsync(target->buffered_fd) != 0)
		return dioh_tool_error_set(err, errno, "syncing the image failed: %s", strerror(errno));
	r = posix_fadvise(target->buffered_fd, 0, 0, POSIX_FADV_DONTNEED);
	if (r != 0)
		return dioh_tool_error_set(err, r, "dropping the image from the page cache failed: %s", strerror(r));
	return 0;
}

/* ---- the page cache ----------------------------------------------------------------------------------------- */

/* Adds what of a window is resident; false: it is not to be known. */
static bool count_window(int fd, uint64_t offset, size_t bytes, unsigned char *vector, uint64_t *cached)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE), pages = (bytes + page - 1) / page;
	void *map = mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, (off_t)offset);
	bool known;

	if (map == MAP_FAILED)
		return false;
	known = mincore(map, bytes, vector) == 0;
	munmap(map, bytes);
	for (size_t i = 0; known && i < pages; i++)
		*cached += (vector[i] & 1) * (uint64_t)page;
	return known;
}

uint64_t dioh_bench_target_cached(const struct dioh_bench_target *target)
{
	off_t end = lseek(target->buffered_fd, 0, SEEK_END);
	DIOH_AUTO_FREE unsigned char *vector = malloc(MINCORE_WINDOW_BYTES / 4096);
	uint64_t cached = 0;

	if (end < 0 || !vector)
		return DIOH_OFFSET_NONE;
	for (uint64_t offset = 0; offset < (uint64_t)end; offset += MINCORE_WINDOW_BYTES) {
		uint64_t bytes = (uint64_t)end - offset;

		if (bytes > MINCORE_WINDOW_BYTES)
			bytes = MINCORE_WINDOW_BYTES;
		if (!count_window(target->buffered_fd, offset, bytes, vector, &cached))
			return DIOH_OFFSET_NONE;
	}
	return cached;
}
