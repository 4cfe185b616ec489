/* SPDX-License-Identifier: LGPL-2.1-or-later */
#define _GNU_SOURCE
#include "attach.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "align.h"
#include "engine.h"
#include "payload.h"
#include "proto.h"

#define IMAGE_PLACE DIOH_PLACE(ATTACH, IMAGE, 0, DIOH_OFFSET_NONE)

#define DEFAULT_BLOCK_BYTES (1u << 20)
/*
 * Loads: what has been read is soon copied on, by a processor that finds few buffers in its cache and not many: 4 were
 * 1.25 times as fast as 16, and as fast as the disk. Saves gain nothing by fewer.
 */
#define DEFAULT_IN_FLIGHT_SAVE 16u
#define DEFAULT_IN_FLIGHT_LOAD 4u
/* What a load copies into memory that is not there yet, one processor cannot make as fast as a disk reads it. */
#define DEFAULT_WORKERS_SAVE 1u
#define DEFAULT_WORKERS_LOAD 2u

/* Linux 6.1; the C library's headers may be older, and have spare bytes where statx(2) has stx_dio_mem_align and the next. */
#ifndef STATX_DIOALIGN
#define STATX_DIOALIGN 0x2000u
#endif
#define STATX_DIO_ALIGNMENTS_AT 0x98

/* ---- any descriptor ---- */

static const char *kind_of(mode_t mode)
{
	switch (mode & S_IFMT) {
	case S_IFREG: return "a regular file";
	case S_IFDIR: return "a directory";
	case S_IFBLK: return "a block device";
	case S_IFCHR: return "a character device";
	case S_IFIFO: return "a pipe";
	case S_IFSOCK: return "a socket";
	case S_IFLNK: return "a symbolic link";
	default: return "something without a file type";
	}
}

static const char *mode_of(int flags)
{
	switch (flags & O_ACCMODE) {
	case O_RDONLY: return "read-only";
	case O_WRONLY: return "write-only";
	default: return "read-write";
	}
}

static int get_flags(int fd, const struct dioh_place *place, const char *what, int *ret_flags, struct dioh_error *err)
{
	int flags = fcntl(fd, F_GETFL);

	if (flags < 0)
		return dioh_error_errno(err, errno, place, "%s: F_GETFL failed", what);
	if (flags & O_PATH)
		return dioh_error_set(err, EBADF, place, "%s: the descriptor was opened with O_PATH, which permits no I/O", what);
	*ret_flags = flags;
	return 0;
}

static int get_stat(int fd, const struct dioh_place *place, const char *what, struct stat *ret_st,
                    struct dioh_error *err)
{
	/* A file system may be interrupted: by work that an io_uring has left for this thread. */
	if (TEMP_FAILURE_RETRY(fstat(fd, ret_st)) < 0)
		return dioh_error_errno(err, errno, place, "%s: fstat failed", what);
	return 0;
}

/*
 * FUSE hands SEEK_DATA on to its server, whatever pages of a mapping are dirty here: a guest's pages were taken for holes. These
 * look at the page cache, too; of others that is not known.
 */
static bool sees_dirty_pages(unsigned long magic)
{
	return magic == TMPFS_MAGIC || magic == EXT4_SUPER_MAGIC || magic == XFS_SUPER_MAGIC || magic == BTRFS_SUPER_MAGIC;
}

/* ---- image ---- */

static int check_image_fd(int fd, const char *what, uint32_t direction, struct stat *ret_st, int *ret_flags,
                          struct dioh_error *err)
{
	int r = get_flags(fd, IMAGE_PLACE, what, ret_flags, err);

	if (r == 0)
		r = get_stat(fd, IMAGE_PLACE, what, ret_st, err);
	if (r < 0)
		return r;
	if (S_ISDIR(ret_st->st_mode))
		return dioh_error_set(err, EISDIR, IMAGE_PLACE, "%s: it is a directory, not a file or block device", what);
	if (!S_ISREG(ret_st->st_mode) && !S_ISBLK(ret_st->st_mode))
		return dioh_error_set(err, EINVAL, IMAGE_PLACE, "%s: it is %s, not a file or block device", what,
		                      kind_of(ret_st->st_mode));
	if (*ret_flags & O_APPEND)
		return dioh_error_set(err, EINVAL, IMAGE_PLACE,
		                      "%s: it was opened with O_APPEND, which would send every write to its end", what);
	if (direction == DIOH_DIRECTION_SAVE && (*ret_flags & O_ACCMODE) == O_RDONLY)
		return dioh_error_set(err, EBADF, IMAGE_PLACE, "%s: it is open read-only, and a save must write", what);
	if (direction == DIOH_DIRECTION_LOAD && (*ret_flags & O_ACCMODE) == O_WRONLY)
		return dioh_error_set(err, EBADF, IMAGE_PLACE, "%s: it is open write-only, and a load must read", what);
	return 0;
}

static bool same_file(const struct stat *a, const struct stat *b)
{
	if (S_ISBLK(a->st_mode) && S_ISBLK(b->st_mode))
		return a->st_rdev == b->st_rdev; /* device nodes may differ */
	return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

static int check_directory_fd(int fd, struct dioh_error *err)
{
	struct stat st;
	int flags;
	int r = get_flags(fd, IMAGE_PLACE, "image: the directory", &flags, err);

	if (r == 0)
		r = get_stat(fd, IMAGE_PLACE, "image: the directory", &st, err);
	if (r == 0 && !S_ISDIR(st.st_mode))
		r = dioh_error_set(err, ENOTDIR, IMAGE_PLACE, "image: the directory descriptor is %s", kind_of(st.st_mode));
	return r;
}

/* Which descriptor serves which path. */
static int choose_descriptors(const struct dioh_msg_attach_image *request, const int *fds, struct dioh_image *image,
                              struct stat *ret_st, struct dioh_error *err)
{
	const bool has_buffered = request->fds & DIOH_IMAGE_FD_BUFFERED;
	const bool has_direct = request->fds & DIOH_IMAGE_FD_DIRECT;
	struct stat buffered_st = { 0 }, direct_st = { 0 };
	int buffered_flags = 0, direct_flags = 0;
	int next = 0;
	int r = 0;

	if (has_buffered) {
		image->header_fd = image->page_fd = fds[next++];
		r = check_image_fd(image->header_fd, "image: the buffered descriptor", request->direction, &buffered_st,
		                   &buffered_flags, err);
	}
	if (r == 0 && has_direct) {
		image->page_fd = fds[next++];
		r = check_image_fd(image->page_fd, "image: the direct descriptor", request->direction, &direct_st,
		                   &direct_flags, err);
	}
	if (r < 0)
		return r;
	if (has_buffered && buffered_flags & O_DIRECT)
		return dioh_error_set(err, EINVAL, IMAGE_PLACE,
		                      "image: the buffered descriptor has O_DIRECT; small I/O needs one without");
	if (has_direct && !(direct_flags & O_DIRECT))
		return dioh_error_set(err, EINVAL, IMAGE_PLACE, "image: the direct descriptor was opened without O_DIRECT");
	if (has_buffered && has_direct && !same_file(&buffered_st, &direct_st))
		return dioh_error_set(err, EINVAL, IMAGE_PLACE,
		                      "image: the buffered and the direct descriptor are of two different files");
	if (!has_buffered) {
		image->header_fd = image->page_fd;
		image->lone_direct = true;
		image->notes |= DIOH_IMAGE_NOTE_LONE_DIRECT;
	} else if (!has_direct) {
		image->notes |= DIOH_IMAGE_NOTE_LONE_BUFFERED;
	}
	image->direct = has_direct;
	image->page_readable = ((has_direct ? direct_flags : buffered_flags) & O_ACCMODE) != O_WRONLY;
	image->readable = ((has_buffered ? buffered_flags : direct_flags) & O_ACCMODE) != O_WRONLY;
	*ret_st = has_buffered ? buffered_st : direct_st;
	if (request->fds & DIOH_IMAGE_FD_DIRECTORY) {
		image->directory_fd = fds[next];
		return check_directory_fd(image->directory_fd, err);
	}
	return 0;
}

/* One aligned direct read: does the file system do it? An empty or write-only file is taken at its word. */
static int probe_direct_read(int fd, uint32_t alignment)
{
	void *map = mmap(NULL, DIOH_PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ssize_t n;
	int r;

	if (map == MAP_FAILED)
		return -errno;
	n = pread(fd, map, alignment, 0);
	r = n < 0 && errno != EBADF ? -errno : 0;
	munmap(map, DIOH_PAGE_BYTES);
	return r;
}

/* STATX_DIOALIGN (Linux 6.1), else the device's sector size, else a try. 0/0: the file has no direct I/O. */
static void find_alignment(struct dioh_image *image)
{
	struct statx stx;
	uint32_t alignments[2];
	int sector;

	image->memory_alignment = image->offset_alignment = 0;
	if (statx(image->page_fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &stx) == 0 && stx.stx_mask & STATX_DIOALIGN) {
		memcpy(alignments, (const char *)&stx + STATX_DIO_ALIGNMENTS_AT, sizeof(alignments));
		image->memory_alignment = alignments[0];
		image->offset_alignment = alignments[1];
		return;
	}
	if (image->kind == DIOH_IMAGE_BLOCK_DEVICE && ioctl(image->page_fd, BLKSSZGET, &sector) == 0 && sector > 0) {
		image->memory_alignment = image->offset_alignment = (uint32_t)sector;
		return;
	}
	for (uint32_t alignment = 512; alignment <= DIOH_PAGE_BYTES; alignment *= 2) {
		if (probe_direct_read(image->page_fd, alignment) == 0) {
			image->memory_alignment = image->offset_alignment = alignment;
			return;
		}
	}
}

/* The page path goes on as a buffered one: by the buffered descriptor, or with O_DIRECT off again on the lone one. */
static int give_up_direct(struct dioh_image *image, struct dioh_error *err)
{
	int flags;

	image->direct = false;
	image->memory_alignment = image->offset_alignment = 0;
	if (!image->lone_direct) {
		image->page_fd = image->header_fd; /* the other one goes with its message */
		return 0;
	}
	image->lone_direct = false;
	flags = fcntl(image->page_fd, F_GETFL);
	if (flags < 0 || fcntl(image->page_fd, F_SETFL, flags & ~O_DIRECT) < 0)
		return dioh_error_errno(err, errno, IMAGE_PLACE, "image: turning O_DIRECT off failed");
	return 0;
}

/* Its file system; 0: not to be learnt. */
static unsigned long magic_of(const struct dioh_image *image)
{
	struct statfs fs;

	return fstatfs(image->page_fd, &fs) == 0 ? (unsigned long)fs.f_type : 0;
}

static bool is_on(const struct dioh_image *image, unsigned long magic)
{
	return magic_of(image) == magic;
}

/*
 * What the page cache holds at once: a page, and since Linux 6.12 a block where a file system has larger ones. The header path
 * makes one dirty while the page path writes beside it, within the same one: the kernel cannot drop it then, takes that for
 * possible corruption, and fails the next sync. Elsewhere (NFS) what is called a block is no unit of the cache.
 */
static uint64_t cache_unit_bytes(const struct dioh_image *image)
{
	const uint64_t page_bytes = (uint64_t)sysconf(_SC_PAGESIZE);
	int block_bytes;

	if (image->direction != DIOH_DIRECTION_SAVE || image->kind != DIOH_IMAGE_REGULAR)
		return DIOH_PAGE_BYTES;
	if ((is_on(image, XFS_SUPER_MAGIC) || is_on(image, EXT4_SUPER_MAGIC)) &&
	    ioctl(image->page_fd, FIGETBSZ, &block_bytes) == 0)
		return dioh_max(page_bytes, (uint64_t)block_bytes);
	return page_bytes;
}

/*
 * Since Linux 6.15, and stable kernels of 2025, btrfs carries a direct write to a file with checksums out through the page
 * cache, without a word: it would have to be sure that nobody changes the bytes between sum and disk. It drops the pages
 * when they are written, so nothing is better than that here. Reads are direct. Mounted with nodatasum it would be
 * direct, but a file does not show that.
 */
static bool copies_direct_writes(const struct dioh_image *image)
{
	int flags;

	return image->direction == DIOH_DIRECTION_SAVE && is_on(image, BTRFS_SUPER_MAGIC) &&
	       ioctl(image->page_fd, FS_IOC_GETFLAGS, &flags) == 0 && !(flags & FS_NOCOW_FL);
}

/* How buffered page I/O keeps out of the page cache. A write-only descriptor cannot be asked. */
static uint32_t find_uncached(const struct dioh_image *image)
{
	char byte;
	struct iovec iov = { &byte, 1 };

	if (preadv2(image->page_fd, &iov, 1, 0, RWF_DONTCACHE) >= 0)
		return DIOH_IMAGE_NOTE_UNCACHED;
	return errno == EOPNOTSUPP ? DIOH_IMAGE_NOTE_DROPPED_BEHIND : 0;
}

static int decide_direct(const struct dioh_msg_attach_image *request, struct dioh_image *image, struct dioh_error *err)
{
	const char *why = "only a buffered descriptor came";
	int r = 0;

	if (image->direct) {
		find_alignment(image);
		if (image->offset_alignment == 0) {
			image->notes |= DIOH_IMAGE_NOTE_DIRECT_UNSUPPORTED;
			why = "the file system has no direct I/O for it";
		} else if (image->offset_alignment > DIOH_PAGE_BYTES || image->memory_alignment > DIOH_PAGE_BYTES) {
			image->notes |= DIOH_IMAGE_NOTE_DIRECT_ALIGNMENT;
			why = "direct I/O on it needs more than 4096-byte alignment";
		} else if (cache_unit_bytes(image) > DIOH_PAGE_BYTES) {
			image->notes |= DIOH_IMAGE_NOTE_DIRECT_ALIGNMENT;
			why = "the page cache keeps it in units of more than 4096 bytes";
		} else if (request->direct != DIOH_DIRECT_NEVER && !copies_direct_writes(image)) {
			return 0;
		} else if (request->direct != DIOH_DIRECT_NEVER) {
			image->notes |= DIOH_IMAGE_NOTE_DIRECT_CHECKSUMS;
			why = "btrfs keeps checksums of it, and Linux then writes it through the page cache; files that are made "
			      "in a directory after chattr +C have none";
		}
	}
	if (request->direct == DIOH_DIRECT_REQUIRE)
		return dioh_error_set(err, EOPNOTSUPP, IMAGE_PLACE, "image: direct I/O is required, but %s", why);
	if (image->notes & DIOH_IMAGE_NOTE_DIRECT_CHECKSUMS)
		return 0;
	if (image->direct)
		r = give_up_direct(image, err);
	if (r == 0)
		image->notes |= find_uncached(image);
	return r;
}

static int set_kind(struct dioh_image *image, const struct stat *st, struct dioh_error *err)
{
	if (S_ISREG(st->st_mode)) {
		image->kind = DIOH_IMAGE_REGULAR;
		return 0;
	}
	image->kind = DIOH_IMAGE_BLOCK_DEVICE;
	if (ioctl(image->header_fd, BLKGETSIZE64, &image->device_bytes) < 0)
		return dioh_error_errno(err, errno, IMAGE_PLACE, "image: asking for the device's size failed");
	return 0;
}

static int choose_engine(const struct dioh_msg_attach_image *request, struct dioh_image *image, struct dioh_error *err)
{
	const struct dioh_engine_ops *engine = dioh_engine_choose(request->engine, err);

	if (!engine)
		return -EOPNOTSUPP;
	image->engine = engine->id;
	image->any_engine = request->engine == DIOH_ENGINE_ANY;
	if (image->any_engine && engine->id != DIOH_ENGINE_IO_URING)
		image->notes |= DIOH_IMAGE_NOTE_ENGINE_FALLBACK;
	return 0;
}

static uint32_t default_in_flight(const struct dioh_msg_attach_image *request)
{
	return request->direction == DIOH_DIRECTION_SAVE ? DEFAULT_IN_FLIGHT_SAVE : DEFAULT_IN_FLIGHT_LOAD;
}

static uint32_t default_workers(const struct dioh_msg_attach_image *request)
{
	const long processors = sysconf(_SC_NPROCESSORS_ONLN);

	if (request->direction == DIOH_DIRECTION_SAVE || processors < (long)DEFAULT_WORKERS_LOAD)
		return DEFAULT_WORKERS_SAVE;
	return DEFAULT_WORKERS_LOAD;
}

int dioh_examine_image(const struct dioh_msg_attach_image *request, const int *fds, struct dioh_image *ret_image,
                      struct dioh_error *err)
{
	struct dioh_image image;
	struct stat st;
	int r;

	dioh_image_init(&image);
	image.direction = request->direction;
	image.base_offset = request->base_offset;
	image.block_bytes = request->block_bytes ? request->block_bytes : DEFAULT_BLOCK_BYTES;
	image.in_flight = request->in_flight ? request->in_flight : default_in_flight(request);
	image.workers = request->workers ? request->workers : default_workers(request);
	r = choose_descriptors(request, fds, &image, &st, err);
	if (r == 0)
		r = set_kind(&image, &st, err);
	if (r == 0)
		r = choose_engine(request, &image, err);
	if (r == 0)
		*ret_image = image;
	return r;
}

int dioh_settle_image(const struct dioh_msg_attach_image *request, struct dioh_image *image, struct dioh_error *err)
{
	int r = decide_direct(request, image, err);

	if (r < 0)
		return r;
	image->reads_present_only =
		image->direct && image->direction == DIOH_DIRECTION_LOAD && is_on(image, BTRFS_SUPER_MAGIC);
	image->server_seeks = !sees_dirty_pages(magic_of(image));
	if (image->any_engine && !dioh_engine_suits(image->engine, image->direct))
		image->engine = DIOH_ENGINE_SYNC;
	return 0;
}

/* ---- memory ---- */

static int check_memory_access(const struct dioh_place *place, const char *what, int flags, bool load,
                               struct dioh_error *err)
{
	if ((flags & O_ACCMODE) == O_WRONLY || (load && (flags & O_ACCMODE) != O_RDWR))
		return dioh_error_set(err, EBADF, place, "%s: it is open %s, and a %s needs it open %s", what, mode_of(flags),
		                      load ? "load" : "save", load ? "read-write" : "for reading");
	if (load && flags & O_APPEND) /* pwrite(2) would make it longer, and leave the guest's pages as they are */
		return dioh_error_set(err, EINVAL, place,
		                      "%s: it was opened with O_APPEND, which would send every write to its end", what);
	return 0;
}

static int find_memory_kind(struct dioh_memory *memory, const struct dioh_place *place, const char *what,
                            struct dioh_error *err)
{
	struct statfs fs;

	if (TEMP_FAILURE_RETRY(fstatfs(memory->fd, &fs)) < 0)
		return dioh_error_errno(err, errno, place, "%s: fstatfs failed", what);
	memory->page_bytes = DIOH_PAGE_BYTES;
	if (fs.f_type == HUGETLBFS_MAGIC) {
		memory->kind = DIOH_MEMORY_HUGETLB;
		memory->page_bytes = (uint64_t)fs.f_bsize;
	} else {
		memory->kind = fs.f_type == TMPFS_MAGIC ? DIOH_MEMORY_SHMEM : DIOH_MEMORY_FILE;
		memory->server_seeks = !sees_dirty_pages((unsigned long)fs.f_type);
	}
	return 0;
}

static int check_seals(struct dioh_memory *memory, const struct dioh_place *place, const char *what, bool load,
                       uint32_t *ret_seals, struct dioh_error *err)
{
	int seals = fcntl(memory->fd, F_GET_SEALS);

	*ret_seals = seals < 0 ? 0 : (uint32_t)seals; /* EINVAL: a file that cannot be sealed */
	if (load && *ret_seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE))
		return dioh_error_set(err, EPERM, place, "%s: it is sealed against writing, and a load must write", what);
	return 0;
}

/* Who saves it empties it first; a stream would go round in it. */
static int check_not_image(const struct stat *st, const struct dioh_image *image, const struct dioh_place *place,
                           const char *what, struct dioh_error *err)
{
	struct stat image_st;
	int r = get_stat(image->header_fd, place, "image", &image_st, err);

	if (r == 0 && same_file(st, &image_st))
		r = dioh_error_set(err, EINVAL, place, "%s: it is the image itself", what);
	return r;
}

static int check_selection(int fd, const struct dioh_image *image, const struct dioh_place *place, struct dioh_error *err)
{
	struct stat st;
	int flags;
	int r = get_flags(fd, place, "the selection", &flags, err);

	if (r == 0)
		r = get_stat(fd, place, "the selection", &st, err);
	if (r < 0)
		return r;
	if (!S_ISREG(st.st_mode))
		return dioh_error_set(err, EINVAL, place, "the selection: it is %s, not a memfd or file", kind_of(st.st_mode));
	if ((flags & O_ACCMODE) == O_WRONLY)
		return dioh_error_set(err, EBADF, place, "the selection: it is open write-only, and it must be read");
	return check_not_image(&st, image, place, "the selection", err);
}

static int check_memory_file(const struct dioh_msg_attach_memory *request, const struct dioh_image *image,
                             struct dioh_memory *memory, struct stat *st, const struct dioh_place *place,
                             const char *what, struct dioh_error *err)
{
	int r = get_stat(memory->fd, place, what, st, err);

	if (r < 0)
		return r;
	if (!S_ISREG(st->st_mode))
		return dioh_error_set(err, EINVAL, place, "%s: it is %s, not a memfd or file", what, kind_of(st->st_mode));
	r = check_not_image(st, image, place, what, err);
	if (r < 0)
		return r;
	if (request->bytes > (uint64_t)st->st_size)
		return dioh_error_set(err, ERANGE, place, "%s: it has %" PRIu64 " bytes, not the %" PRIu64 " announced", what,
		                      (uint64_t)st->st_size, request->bytes);
	return 0;
}

int dioh_examine_memory(const struct dioh_msg_attach_memory *request, const int *fds, const struct dioh_image *image,
                       struct dioh_memory *ret_memory, struct dioh_msg_attach_memory_reply *ret_reply,
                       struct dioh_error *err)
{
	const bool load = image->direction == DIOH_DIRECTION_LOAD;
	const struct dioh_place *place = DIOH_PLACE(ATTACH, MEMORY, request->memory, DIOH_OFFSET_NONE);
	struct dioh_memory memory = { .number = request->memory, .fd = fds[0], .selection_fd = -1 };
	struct stat st;
	char what[32];
	int flags;
	int r;

	(void)snprintf(what, sizeof(what), "memory %" PRIu32, request->memory);
	memory.limit_bytes = request->bytes;
	memory.advice = request->advice;
	r = get_flags(memory.fd, place, what, &flags, err);
	if (r == 0)
		r = check_memory_file(request, image, &memory, &st, place, what, err);
	if (r == 0)
		r = check_memory_access(place, what, flags, load, err);
	if (r == 0)
		r = find_memory_kind(&memory, place, what, err);
	if (r == 0)
		r = check_seals(&memory, place, what, load, &ret_reply->seals, err);
	if (r == 0 && request->fds & DIOH_MEMORY_FD_SELECTION) {
		memory.selection_fd = fds[1];
		r = check_selection(memory.selection_fd, image, place, err);
	}
	if (r < 0)
		return r;
	ret_reply->kind = memory.kind;
	ret_reply->bytes = (uint64_t)st.st_size;
	ret_reply->page_bytes = memory.page_bytes;
	*ret_memory = memory;
	return 0;
}

/* ---- stream ---- */

bool dioh_enlarge_pipe(int fd)
{
	int bytes = fcntl(fd, F_GETPIPE_SZ);

	if (bytes > 0 && bytes < DIOH_PIPE_BYTES) /* EPERM beyond the user's share: it works as it is, slower */
		bytes = fcntl(fd, F_SETPIPE_SZ, DIOH_PIPE_BYTES);
	return bytes >= DIOH_PIPE_BYTES;
}

/* Others keep packets apart, and have no end. */
static bool is_stream_socket(int fd)
{
	socklen_t length = sizeof(int);
	int type;

	return getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &length) == 0 && type == SOCK_STREAM;
}

int dioh_examine_stream(uint32_t stream, int fd, const struct dioh_image *image, uint32_t *ret_kind, bool *ret_large_pipe,
                        struct dioh_error *err)
{
	const bool load = image->direction == DIOH_DIRECTION_LOAD;
	const struct dioh_place *place = DIOH_PLACE(ATTACH, STREAM, stream, DIOH_OFFSET_NONE);
	struct stat st;
	char what[32];
	int flags;
	int r;

	(void)snprintf(what, sizeof(what), "stream %" PRIu32, stream);
	r = get_flags(fd, place, what, &flags, err);
	if (r == 0)
		r = get_stat(fd, place, what, &st, err);
	if (r < 0)
		return r;
	if ((flags & O_ACCMODE) == (load ? O_RDONLY : O_WRONLY))
		return dioh_error_set(err, EBADF, place, "%s: it is open %s, and a %s must %s it", what, mode_of(flags),
		                      load ? "load" : "save", load ? "write" : "read");
	if (S_ISFIFO(st.st_mode))
		*ret_kind = DIOH_STREAM_PIPE;
	else if (is_stream_socket(fd))
		*ret_kind = DIOH_STREAM_SOCKET;
	else if (S_ISREG(st.st_mode))
		*ret_kind = DIOH_STREAM_FILE;
	else
		return dioh_error_set(err, EINVAL, place, "%s: it is %s, not a pipe, stream socket or file", what,
		                      kind_of(st.st_mode));
	r = check_not_image(&st, image, place, what, err);
	if (r == 0)
		*ret_large_pipe = dioh_enlarge_pipe(fd);
	return r;
}
