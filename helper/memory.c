/* SPDX-License-Identifier: LGPL-2.1-or-later */
#define _GNU_SOURCE
#include "memory.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "align.h"
#include "guard.h"
#include "pages.h"

#define PLACE(op, offset) DIOH_PLACE(op, MEMORY, memory->number, offset)

/* How far data is taken to go on, if holes do no harm. Behind a hole as long as that it is looked up: it may be one page. */
#define COARSE_BYTES (UINT64_C(256) << 10)

#define HUGE_PAGE_BYTES (UINT64_C(2) << 20) /* of the machines there are; with others the advice has no effect */

/* Of it or its selection. May wait for who else has the file. */
static int file_bytes(const struct dioh_memory *memory, int fd, const char *what, uint64_t *ret_bytes,
                      struct dioh_error *err)
{
	struct stat st;

	if (TEMP_FAILURE_RETRY(fstat(fd, &st)) < 0)
		return dioh_error_errno(err, errno, PLACE(SEEK, DIOH_OFFSET_NONE), "memory %" PRIu32 ": fstat%s failed",
		                        memory->number, what);
	*ret_bytes = (uint64_t)st.st_size;
	return 0;
}

static int known_bytes(const struct dioh_memory *memory, int fd, const char *what, uint64_t *ret_bytes,
                       struct dioh_error *err)
{
	struct statx stx;

	/* A container's filter may not know the call. */
	if (statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_SIZE, &stx) < 0)
		return file_bytes(memory, fd, what, ret_bytes, err);
	*ret_bytes = stx.stx_size;
	return 0;
}

static uint64_t usable(const struct dioh_memory *memory, uint64_t bytes)
{
	return memory->limit_bytes ? dioh_min(memory->limit_bytes, bytes) : bytes;
}

int dioh_memory_bytes(const struct dioh_memory *memory, uint64_t *ret_bytes, struct dioh_error *err)
{
	int r = file_bytes(memory, memory->fd, "", ret_bytes, err);

	if (r == 0)
		*ret_bytes = usable(memory, *ret_bytes);
	return r;
}

int dioh_memory_known_bytes(const struct dioh_memory *memory, uint64_t *ret_bytes, struct dioh_error *err)
{
	int r = known_bytes(memory, memory->fd, "", ret_bytes, err);

	if (r == 0)
		*ret_bytes = usable(memory, *ret_bytes);
	return r;
}

int dioh_memory_known_selection_bytes(const struct dioh_memory *memory, uint64_t *ret_bytes, struct dioh_error *err)
{
	return known_bytes(memory, memory->selection_fd, " of its selection", ret_bytes, err);
}

static int seek(const struct dioh_memory *memory, uint64_t offset, int whence, uint64_t *ret, struct dioh_error *err)
{
	off_t found = TEMP_FAILURE_RETRY(lseek(memory->fd, (off_t)offset, whence));

	if (found < 0 && errno == ENXIO) { /* no data from here to the end */
		*ret = DIOH_OFFSET_NONE;
		return 0;
	}
	if (found < 0)
		return dioh_error_errno(err, errno, PLACE(SEEK, offset), "memory %" PRIu32 ": %s at %" PRIu64 " failed",
		                        memory->number, whence == SEEK_DATA ? "SEEK_DATA" : "SEEK_HOLE", offset);
	*ret = (uint64_t)found;
	return 0;
}

/* `offset`: where the search for this data began. */
static int find_hole(const struct dioh_memory *memory, bool coarse, uint64_t offset, uint64_t data, uint64_t *ret_hole,
                     struct dioh_error *err)
{
	if (!coarse || data - offset >= COARSE_BYTES)
		return seek(memory, data, SEEK_HOLE, ret_hole, err);
	*ret_hole = dioh_align_down(data, COARSE_BYTES) + COARSE_BYTES;
	return 0;
}

static int look_up(const struct dioh_memory *memory, struct dioh_memory_extent *extent, uint64_t offset,
                   struct dioh_error *err)
{
	uint64_t data;
	uint64_t hole = DIOH_OFFSET_NONE;
	int r;

	if (extent->from <= offset && offset < extent->hole)
		return 0;
	r = seek(memory, offset, SEEK_DATA, &data, err);
	if (r == 0 && data != DIOH_OFFSET_NONE)
		r = find_hole(memory, extent->coarse, offset, data, &hole, err);
	if (r < 0)
		return r;
	if (data != DIOH_OFFSET_NONE)
		data = dioh_max(offset, dioh_align_down(data, DIOH_PAGE_BYTES));
	if (hole != DIOH_OFFSET_NONE)
		hole = dioh_align_up(hole, DIOH_PAGE_BYTES);
	extent->from = offset;
	extent->data = data;
	extent->hole = hole;
	return 0;
}

int dioh_memory_next_data(const struct dioh_memory *memory, struct dioh_memory_extent *extent, uint64_t offset,
                          uint64_t end, uint64_t *ret_data, struct dioh_error *err)
{
	int r = look_up(memory, extent, offset, err);

	if (r < 0)
		return r;
	*ret_data = dioh_min(dioh_max(extent->data, offset), end);
	return 0;
}

int dioh_memory_data_pages(const struct dioh_memory *memory, struct dioh_memory_extent *extent, uint64_t offset,
                           unsigned pages, uint8_t *ret_bitmap, struct dioh_error *err)
{
	const uint64_t end = offset + (uint64_t)pages * DIOH_PAGE_BYTES;
	uint64_t at = offset;

	memset(ret_bitmap, 0, dioh_div_up(pages, 8));
	while (at < end) {
		uint64_t data, stop;
		int r = dioh_memory_next_data(memory, extent, at, end, &data, err);

		if (r < 0)
			return r;
		stop = dioh_min(extent->hole, end);
		if (data < stop)
			dioh_bits_fill(ret_bitmap, (data - offset) / DIOH_PAGE_BYTES, (stop - data) / DIOH_PAGE_BYTES, true);
		at = dioh_max(data, stop);
	}
	return 0;
}

bool dioh_memory_shows_holes(const struct dioh_memory *memory)
{
	return memory->kind != DIOH_MEMORY_HUGETLB && !memory->server_seeks;
}

bool dioh_memory_is_huge(const struct dioh_memory *memory)
{
	return memory->kind == DIOH_MEMORY_HUGETLB || memory->advice == DIOH_MEMORY_ADVICE_HUGEPAGE;
}

bool dioh_memory_may_map(const struct dioh_memory *memory)
{
	struct stat st;

	if (memory->server_seeks) /* how much there is its server would have to be asked, too: nobody waits for that here */
		return false;
	if (dioh_memory_shows_holes(memory))
		return true;
	return fstat(memory->fd, &st) == 0 && (uint64_t)st.st_blocks * 512 >= (uint64_t)st.st_size;
}

/* A mapping has huge pages only where it holds all of one: what is around the range is mapped along. */
static uint64_t map_granule(const struct dioh_memory *memory)
{
	const bool huge = memory->advice == DIOH_MEMORY_ADVICE_HUGEPAGE;

	return huge ? dioh_max(memory->page_bytes, HUGE_PAGE_BYTES) : memory->page_bytes;
}

int dioh_memory_map(const struct dioh_memory *memory, uint64_t offset, uint64_t bytes, bool writable,
                    struct dioh_window *ret_window, struct dioh_error *err)
{
	uint64_t granule = map_granule(memory);
	uint64_t first = dioh_align_down(offset, granule);
	uint64_t length = dioh_align_up(offset + bytes, granule) - first;
	/* Mapped for writing behind its end, a hugetlb file becomes longer again: nobody would notice that it was truncated. */
	int r = writable ? dioh_memory_check_end(memory, offset + bytes, DIOH_OP_WRITE, err) : 0;
	void *map;

	if (r < 0)
		return r;
	map = mmap(NULL, length, writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, memory->fd, (off_t)first);
	if (map == MAP_FAILED)
		return dioh_error_errno(err, errno, PLACE(MAP, offset),
		                        "memory %" PRIu32 ": mapping %" PRIu64 " bytes at %" PRIu64 " failed", memory->number,
		                        length, first);
	if (writable && memory->advice == DIOH_MEMORY_ADVICE_HUGEPAGE)
		(void)madvise(map, length, MADV_HUGEPAGE); /* a hint: without THP the load is merely slower to use */
	*ret_window = (struct dioh_window){ .map = map, .first = first, .bytes = length };
	return 0;
}

void dioh_window_unmap(struct dioh_window *window)
{
	if (window->map)
		munmap(window->map, window->bytes);
	window->map = NULL;
}

int dioh_memory_pread(const struct dioh_memory *memory, void *bytes, uint64_t count, uint64_t offset,
                      struct dioh_error *err)
{
	uint64_t done = 0;

	while (done < count) {
		ssize_t n = pread(memory->fd, (char *)bytes + done, count - done, (off_t)(offset + done));

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return dioh_error_errno(err, errno, PLACE(READ, offset + done),
			                        "memory %" PRIu32 ": read at %" PRIu64 " failed", memory->number,
			                        offset + done);
		if (n == 0)
			return dioh_error_set(err, EFAULT, PLACE(READ, offset + done),
			                      "memory %" PRIu32 ": it ends at %" PRIu64 ": it was truncated meanwhile",
			                      memory->number, offset + done);
		done += (uint64_t)n;
	}
	return 0;
}

int dioh_memory_check_end(const struct dioh_memory *memory, uint64_t end, uint32_t operation, struct dioh_error *err)
{
	struct dioh_place place = { operation, DIOH_OBJECT_MEMORY, memory->number, 0 };
	int r = dioh_memory_bytes(memory, &place.offset, err);

	if (r == 0 && end > place.offset)
		r = dioh_error_set(err, EFAULT, &place,
		                   "memory %" PRIu32 ": it ends at %" PRIu64 ": it was truncated meanwhile", memory->number,
		                   place.offset);
	return r;
}

/*
 * The kernel lets one thread at a time write to a file, and the others spin meanwhile: a third of a load's CPU time. Here
 * they sleep instead.
 */
static ssize_t write_alone(const struct dioh_memory *memory, const char *bytes, size_t count, off_t offset)
{
	static pthread_mutex_t writing[DIOH_MEMORIES_MAX] = { [0 ... DIOH_MEMORIES_MAX - 1] = PTHREAD_MUTEX_INITIALIZER };
	ssize_t n;

	pthread_mutex_lock(&writing[memory->number]);
	do
		n = pwrite(memory->fd, bytes, count, offset);
	while (n < 0 && errno == EINTR);
	pthread_mutex_unlock(&writing[memory->number]);
	return n;
}

int dioh_memory_pwrite(const struct dioh_memory *memory, const void *bytes, uint64_t count, uint64_t offset,
                       struct dioh_error *err)
{
	uint64_t done = 0;
	int r = dioh_memory_check_end(memory, offset + count, DIOH_OP_WRITE, err);

	while (r == 0 && done < count) {
		ssize_t n = write_alone(memory, (const char *)bytes + done, count - done, (off_t)(offset + done));

		if (n <= 0)
			return dioh_error_errno(err, n < 0 ? errno : ENOSPC, PLACE(WRITE, offset + done),
			                        "memory %" PRIu32 ": write at %" PRIu64 " failed", memory->number,
			                        offset + done);
		done += (uint64_t)n;
	}
	return r;
}

static void zero_page(void *page)
{
	memset(page, 0, DIOH_PAGE_BYTES);
}

static int overwrite_page(const struct dioh_memory *memory, uint64_t offset, struct dioh_error *err)
{
	struct dioh_window window;
	const void *fault;
	bool touched;
	int r = dioh_memory_map(memory, offset, DIOH_PAGE_BYTES, true, &window, err);

	if (r < 0)
		return r;
	touched = dioh_guard_run(zero_page, dioh_window_at(&window, offset), &fault);
	dioh_window_unmap(&window);
	if (!touched)
		return dioh_error_set(err, EFAULT, PLACE(WRITE, offset),
		                      "memory %" PRIu32 ": the page at %" PRIu64 " cannot be written: truncated, or bad RAM",
		                      memory->number, offset);
	return 0;
}

/* Page by page, by a read that does not allocate, then only what is not zero by a mapping. */
static int overwrite_with_zeros(const struct dioh_memory *memory, uint64_t offset, uint64_t count,
                                struct dioh_error *err)
{
	uint8_t page[DIOH_PAGE_BYTES];

	for (uint64_t done = 0; done < count; done += DIOH_PAGE_BYTES) {
		int r = dioh_memory_pread(memory, page, sizeof(page), offset + done, err);

		if (r == 0 && !dioh_is_zero(page, sizeof(page)))
			r = overwrite_page(memory, offset + done, err);
		if (r < 0)
			return r;
	}
	return 0;
}

int dioh_memory_erase(const struct dioh_memory *memory, uint64_t offset, uint64_t count, struct dioh_error *err)
{
	int r;

	/* Part of a huge page cannot be given back, and older kernels leave it as it was. */
	if (memory->kind == DIOH_MEMORY_HUGETLB)
		return overwrite_with_zeros(memory, offset, count, err);
	do
		r = fallocate(memory->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)count);
	while (r < 0 && errno == EINTR);
	if (r == 0)
		return 0;
	if (errno == EOPNOTSUPP)
		return overwrite_with_zeros(memory, offset, count, err);
	return dioh_error_errno(err, errno, PLACE(SIZE, offset),
	                        "memory %" PRIu32 ": punching a hole of %" PRIu64 " bytes at %" PRIu64 " failed",
	                        memory->number, count, offset);
}

int dioh_memory_selection(const struct dioh_memory *memory, uint64_t first_page, uint64_t pages, uint8_t *ret_bitmap,
                          struct dioh_error *err)
{
	uint64_t count = dioh_div_up(pages, 8);
	uint64_t offset = first_page / 8;
	uint64_t done = 0;

	while (done < count) {
		ssize_t n = pread(memory->selection_fd, ret_bitmap + done, count - done, (off_t)(offset + done));

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return dioh_error_errno(err, errno, PLACE(READ, offset + done),
			                        "memory %" PRIu32 ": reading its selection at %" PRIu64 " failed",
			                        memory->number, offset + done);
		if (n == 0)
			return dioh_error_set(err, ERANGE, PLACE(READ, offset + done),
			                      "memory %" PRIu32 ": its selection ends at byte %" PRIu64 ", page %" PRIu64
			                      " of the region has no bit", memory->number, offset + done, (offset + done) * 8);
		done += (uint64_t)n;
	}
	return 0;
}
