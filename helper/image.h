/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * image.h - the image's descriptors, and the header path: small, buffered, blocking I/O at any offset. The page path
 * (helper/engine.h) has the same descriptors in its own file table. Offsets here count from the start of the file or
 * device. Errors name the image, the operation and the offset.
 *
 * Used by the control-I/O thread.
 */
#ifndef DIOH_IMAGE_H
#define DIOH_IMAGE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/types.h>

#include "error.h"

struct dioh_image {
	int header_fd;    /* the header path's */
	int page_fd;      /* the page path's: O_DIRECT if `direct`; may equal header_fd */
	int directory_fd; /* or -1 */
	uint32_t direction;
	uint32_t kind;
	bool direct; /* page I/O has O_DIRECT; DIRECT_CHECKSUMS in `notes`: the kernel copies what is written all the same */
	bool lone_direct; /* header_fd has O_DIRECT: the header path turns it off for each of its writes and reads */
	bool readable;      /* header_fd */
	bool page_readable; /* page_fd */
	bool server_seeks; /* SEEK_DATA may ask who has not been told yet what stands in our page cache */
	bool reads_present_only; /* into memory that is not there yet it would read through the page cache: btrfs */
	uint32_t notes;
	uint32_t memory_alignment;
	uint32_t offset_alignment;
	uint32_t engine; /* chosen at attach */
	bool any_engine; /* another may take its place */
	uint32_t block_bytes;
	uint32_t in_flight;
	uint32_t workers;
	uint64_t base_offset;
	uint64_t device_bytes; /* capacity of a block device */
	uint64_t limit_bytes;  /* RLIMIT_FSIZE */
	pthread_mutex_t flag_lock;
	atomic_bool metadata_changed; /* size, owner, mode or label changed since the last full sync */
	atomic_int sync_error;        /* errno: the kernel may have dropped dirty data: never call this image complete */
	atomic_uint_fast64_t waits_since_ns; /* the control-I/O thread, in a system call on it; 0: in none. For STUCK */
};

void dioh_image_init(struct dioh_image *image);
void dioh_image_close(struct dioh_image *image);

int dioh_image_pread(struct dioh_image *image, void *bytes, uint64_t count, uint64_t offset, struct dioh_error *err);
int dioh_image_pwrite(struct dioh_image *image, const void *bytes, uint64_t count, uint64_t offset,
                      struct dioh_error *err);

/* Writes zeros: for devices and where punching is not to be had. */
int dioh_image_write_zeros(struct dioh_image *image, uint64_t offset, uint64_t count, struct dioh_error *err);

/* Gives the range's room back. Where there are no holes, so on a device, what stands there stays. */
int dioh_image_punch(struct dioh_image *image, uint64_t offset, uint64_t count, struct dioh_error *err);
/* Makes the range read as zeros: a hole in a file, zeros on a device. */
int dioh_image_erase(struct dioh_image *image, uint64_t offset, uint64_t count, struct dioh_error *err);

/* Regular files: sets the size. */
int dioh_image_resize(struct dioh_image *image, uint64_t bytes, struct dioh_error *err);

/*
 * Regular files: makes it end at `end`, for a save that is going to fill all from `start` on. Direct writes find their
 * blocks allocated then, where the file system can do that: the kernel carries them out at once, without a thread that
 * may wait for the allocation.
 */
int dioh_image_extend(struct dioh_image *image, uint64_t start, uint64_t end, struct dioh_error *err);

/*
 * fdatasync(2), of what may not know it: a pipe, some file systems. 0 there, too (EINVAL time and again); else -errno. Of a
 * file that was written to EROFS is a failure: its file system has broken down.
 */
int dioh_sync_if_known(int fd);

/*
 * Before SEEK_DATA: a server that is asked gets what others have left in our page cache. A failure is for good: what is
 * lost is told once.
 */
int dioh_image_prepare_seek(struct dioh_image *image, struct dioh_error *err);

/* lseek(2). Nobody relies on the position that it leaves. */
off_t dioh_image_seek(struct dioh_image *image, uint64_t offset, int whence);

/* Regular files: its size now; devices: the capacity. */
int dioh_image_size(struct dioh_image *image, uint64_t *ret_bytes, struct dioh_error *err);

/*
 * Regular files: EFBIG, and nothing has been touched, if the file may not become so long: by the file system's limit, or by
 * RLIMIT_FSIZE.
 */
int dioh_image_check_size(struct dioh_image *image, uint64_t bytes, struct dioh_error *err);

/* What the file system still has for this file, its present blocks included; UINT64_MAX: not known. */
uint64_t dioh_image_free_bytes(struct dioh_image *image);

/*
 * Data durable; with fsync(2) instead of fdatasync(2) once metadata has changed. EINVAL and EROFS are errors here: an
 * image that cannot be synced cannot be durable.
 */
int dioh_image_sync(struct dioh_image *image, struct dioh_error *err);

/* Buffered page I/O leaves nothing in the page cache; to be called when all is durable. */
void dioh_image_drop_cache(struct dioh_image *image);

/* The directory entry durable, if a directory was attached. */
int dioh_image_sync_directory(struct dioh_image *image, struct dioh_error *err);

#endif
