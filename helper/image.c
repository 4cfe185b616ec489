/* SPDX-License-Identifier: LGPL-2.1-or-later */
#define _GNU_SOURCE
#include "image.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "align.h"
#include "cleanup.h"
#include "clock.h"
#include "writeback.h"

#define PLACE(op, offset) DIOH_PLACE(op, IMAGE, 0, offset)

void dioh_image_init(struct dioh_image *image)
{
	struct rlimit limit;

	memset(image, 0, sizeof(*image));
	image->header_fd = -1;
	image->page_fd = -1;
	image->directory_fd = -1;
	image->limit_bytes = getrlimit(RLIMIT_FSIZE, &limit) == 0 ? limit.rlim_cur : RLIM_INFINITY;
	pthread_mutex_init(&image->flag_lock, NULL);
}

void dioh_image_close(struct dioh_image *image)
{
	if (image->page_fd == image->header_fd)
		image->page_fd = -1;
	dioh_cleanup_fd(&image->header_fd);
	dioh_cleanup_fd(&image->page_fd);
	dioh_cleanup_fd(&image->directory_fd);
	image->header_fd = image->page_fd = image->directory_fd = -1;
}

/* An expression, a system call on the image, that may wait for the disk. */
#define timed(image, call)                                \
	({                                                \
		__typeof__(call) timed_answer_;           \
		dioh_clock_start(&(image)->waits_since_ns); \
		timed_answer_ = (call);                   \
		dioh_clock_stop(&(image)->waits_since_ns); \
		timed_answer_;                            \
	})

/*
 * A lone O_DIRECT descriptor cannot do small I/O as it is. While the flag is off a page write that is submitted at the
 * same moment goes through the page cache: slower, but right, since header and page path never share a page.
 */
static int buffered_begin(struct dioh_image *image)
{
	int flags;

	if (!image->lone_direct)
		return 0;
	pthread_mutex_lock(&image->flag_lock);
	flags = fcntl(image->header_fd, F_GETFL);
	if (flags < 0 || fcntl(image->header_fd, F_SETFL, flags & ~O_DIRECT) < 0) {
		int code = errno;

		pthread_mutex_unlock(&image->flag_lock);
		return -code;
	}
	return 0;
}

static void buffered_end(struct dioh_image *image)
{
	int flags;

	if (!image->lone_direct)
		return;
	flags = fcntl(image->header_fd, F_GETFL);
	/* Failing to turn it on again costs speed, not correctness. */
	if (flags >= 0)
		(void)fcntl(image->header_fd, F_SETFL, flags | O_DIRECT);
	pthread_mutex_unlock(&image->flag_lock);
}

int dioh_image_pread(struct dioh_image *image, void *bytes, uint64_t count, uint64_t offset, struct dioh_error *err)
{
	uint64_t done = 0;
	ssize_t n = 1;
	int r = buffered_begin(image);

	if (r < 0)
		return dioh_error_errno(err, r, PLACE(READ, offset), "image: turning O_DIRECT off");
	while (done < count) {
		n = timed(image, pread(image->header_fd, (char *)bytes + done, count - done, (off_t)(offset + done)));
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			break;
		done += (uint64_t)n;
	}
	r = n < 0 ? -errno : 0;
	buffered_end(image);
	if (r < 0)
		return dioh_error_errno(err, r, PLACE(READ, offset + done),
		                        "image: read of %" PRIu64 " bytes at %" PRIu64 " failed", count - done, offset + done);
	if (done < count)
		return dioh_error_set(err, EBADMSG, PLACE(READ, offset + done),
		                      "image: it ends at %" PRIu64 ", where %" PRIu64 " more bytes should stand: it is truncated",
		                      offset + done, count - done);
	return 0;
}

int dioh_image_pwrite(struct dioh_image *image, const void *bytes, uint64_t count, uint64_t offset,
                      struct dioh_error *err)
{
	uint64_t done = 0;
	ssize_t n = 1;
	int r = buffered_begin(image);

	if (r < 0)
		return dioh_error_errno(err, r, PLACE(WRITE, offset), "image: turning O_DIRECT off");
	while (done < count) {
		n = timed(image, pwrite(image->header_fd, (const char *)bytes + done, count - done, (off_t)(offset + done)));
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			break;
		done += (uint64_t)n;
	}
	r = n < 0 ? -errno : n == 0 && done < count ? -ENOSPC : 0;
	buffered_end(image);
	if (r < 0)
		return dioh_error_errno(err, r, PLACE(WRITE, offset + done),
		                        "image: write of %" PRIu64 " bytes at %" PRIu64 " failed", count - done,
		                        offset + done);
	return 0;
}

int dioh_image_write_zeros(struct dioh_image *image, uint64_t offset, uint64_t count, struct dioh_error *err)
{
	static const uint8_t zeros[64 * 1024];

	while (count > 0) {
		uint64_t n = dioh_min(count, sizeof(zeros));
		int r = dioh_image_pwrite(image, zeros, n, offset, err);

		if (r < 0)
			return r;
		offset += n;
		count -= n;
	}
	return 0;
}

/*
 * -EOPNOTSUPP, which is no error yet: no holes are to be had here. A device that punches some answers zeros then: Linux never
 * takes it for a mere hint. If it has another objection (sectors larger than a page: EINVAL) writing will tell what is wrong.
 */
static int punch(struct dioh_image *image, uint64_t offset, uint64_t count, struct dioh_error *err)
{
	const int mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
	int r;

	do
		r = timed(image, fallocate(image->header_fd, mode, (off_t)offset, (off_t)count));
	while (r < 0 && errno == EINTR);
	if (r == 0)
		return 0;
	if (errno == EOPNOTSUPP || image->kind == DIOH_IMAGE_BLOCK_DEVICE)
		return -EOPNOTSUPP;
	return dioh_error_errno(err, errno, PLACE(SIZE, offset),
	                        "image: punching a hole of %" PRIu64 " bytes at %" PRIu64 " failed", count, offset);
}

int dioh_image_punch(struct dioh_image *image, uint64_t offset, uint64_t count, struct dioh_error *err)
{
	int r = image->kind == DIOH_IMAGE_BLOCK_DEVICE ? 0 : punch(image, offset, count, err);

	return r == -EOPNOTSUPP ? 0 : r;
}

int dioh_image_erase(struct dioh_image *image, uint64_t offset, uint64_t count, struct dioh_error *err)
{
	int r = punch(image, offset, count, err);

	return r == -EOPNOTSUPP ? dioh_image_write_zeros(image, offset, count, err) : r;
}

int dioh_image_resize(struct dioh_image *image, uint64_t bytes, struct dioh_error *err)
{
	int r;

	do
		r = timed(image, ftruncate(image->header_fd, (off_t)bytes));
	while (r < 0 && errno == EINTR);
	if (r < 0)
		return dioh_error_errno(err, errno, PLACE(SIZE, bytes), "image: setting its size to %" PRIu64 " bytes failed",
		                        bytes);
	atomic_store(&image->metadata_changed, true);
	return 0;
}

int dioh_image_extend(struct dioh_image *image, uint64_t start, uint64_t end, struct dioh_error *err)
{
	if (image->direct && timed(image, fallocate(image->header_fd, 0, (off_t)start, (off_t)(end - start))) == 0) {
		atomic_store(&image->metadata_changed, true);
		return 0;
	}
	/* No such call, no room for all of it, or the page cache gathers what is to be allocated: writing will do. */
	return dioh_image_resize(image, end, err);
}

off_t dioh_image_seek(struct dioh_image *image, uint64_t offset, int whence)
{
	return timed(image, TEMP_FAILURE_RETRY(lseek(image->header_fd, (off_t)offset, whence)));
}

int dioh_image_size(struct dioh_image *image, uint64_t *ret_bytes, struct dioh_error *err)
{
	struct stat st;

	if (image->kind == DIOH_IMAGE_BLOCK_DEVICE) {
		*ret_bytes = image->device_bytes;
		return 0;
	}
	if (timed(image, TEMP_FAILURE_RETRY(fstat(image->header_fd, &st))) < 0)
		return dioh_error_errno(err, errno, PLACE(SIZE, DIOH_OFFSET_NONE), "image: fstat failed");
	*ret_bytes = (uint64_t)st.st_size;
	return 0;
}

int dioh_image_check_size(struct dioh_image *image, uint64_t bytes, struct dioh_error *err)
{
	if (image->kind == DIOH_IMAGE_BLOCK_DEVICE)
		return 0;
	/* Behind the file system's limit there is no position either. */
	if (bytes <= image->limit_bytes && (dioh_image_seek(image, bytes, SEEK_SET) >= 0 || errno != EINVAL))
		return 0;
	return dioh_error_errno(err, EFBIG, PLACE(SIZE, bytes),
	                        "image: it would have %" PRIu64 " bytes, nothing was written", bytes);
}

uint64_t dioh_image_free_bytes(struct dioh_image *image)
{
	struct statvfs vfs;
	struct stat st;

	if (image->kind == DIOH_IMAGE_BLOCK_DEVICE)
		return image->device_bytes - dioh_min(image->base_offset, image->device_bytes);
	if (timed(image, fstatvfs(image->header_fd, &vfs)) < 0 || timed(image, fstat(image->header_fd, &st)) < 0 ||
	    vfs.f_blocks == 0)
		return UINT64_MAX;
	return (uint64_t)vfs.f_bavail * vfs.f_frsize + (uint64_t)st.st_blocks * 512;
}

/* Never a second time, not for EINTR either: that a write was lost is told once, and may have been called so by a server. */
static int sync_fd(struct dioh_image *image, int fd, bool whole)
{
	return timed(image, whole ? fsync(fd) : fdatasync(fd)) < 0 ? -errno : 0;
}

/* That a write was lost is told once, by whatever errno: so it is asked for apart from fdatasync(2), which may not be known. */
static int write_back(int fd)
{
	const unsigned all = SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER;

	return dioh_writeback_known(fd) && sync_file_range(fd, 0, 0, all) < 0 ? -errno : 0;
}

/* Who knows no fdatasync(2) says so each time. (Older kernels do not wait for FUSE above: then the first time tells.) */
int dioh_sync_if_known(int fd)
{
	int r = write_back(fd);

	if (r < 0 || fdatasync(fd) == 0)
		return r;
	r = -errno;
	return r == -EINVAL && fdatasync(fd) < 0 && errno == EINVAL ? 0 : r;
}

int dioh_image_sync(struct dioh_image *image, struct dioh_error *err)
{
	bool whole = atomic_exchange(&image->metadata_changed, false);
	int r = sync_fd(image, image->header_fd, whole);

	if (r == 0)
		return 0;
	atomic_store(&image->sync_error, -r);
	return dioh_error_errno(err, r, PLACE(SYNC, DIOH_OFFSET_NONE), "image: %s failed, what was written may be lost",
	                        whole ? "fsync" : "fdatasync");
}

int dioh_image_prepare_seek(struct dioh_image *image, struct dioh_error *err)
{
	int r = -atomic_load(&image->sync_error);

	if (r == 0 && image->kind == DIOH_IMAGE_REGULAR && image->server_seeks)
		r = timed(image, dioh_sync_if_known(image->header_fd));
	if (r == 0 || r == -EROFS) /* we have written nothing */
		return 0;
	atomic_store(&image->sync_error, -r);
	return dioh_error_errno(err, r, PLACE(SYNC, DIOH_OFFSET_NONE),
	                        "image: fdatasync failed, so where it has data is not known");
}

void dioh_image_drop_cache(struct dioh_image *image)
{
	if (!image->direct)
		(void)timed(image, posix_fadvise(image->page_fd, (off_t)image->base_offset, 0, POSIX_FADV_DONTNEED)); /* a hint */
}

int dioh_image_sync_directory(struct dioh_image *image, struct dioh_error *err)
{
	int r;

	if (image->directory_fd < 0)
		return 0;
	r = sync_fd(image, image->directory_fd, true);
	if (r < 0)
		return dioh_error_errno(err, r, PLACE(SYNC, DIOH_OFFSET_NONE), "image: fsync of its directory failed");
	return 0;
}
