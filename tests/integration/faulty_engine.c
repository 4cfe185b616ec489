/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * faulty_engine.c - the helper, its own main and all, with a fault in front of its engine: what no disk of ours can do to
 * it. test_engine_faults.c and others start it and judge. $DIOH_FAULT, KIND:INDEX, says what becomes of the image's I/O
 * number INDEX:
 *
 *   short    no more than a page of it is asked of the kernel
 *   odd      all is done, but 1000 bytes are told of
 *   eagain, eintr, eio    it is not done, and the engine says so
 *   ecanceled             the same: so io_uring says that it can have no thread, which RLIMIT_NPROC may be the reason for
 *   stream                the same, but INDEX counts the I/O of streams
 *   nothing  it is not done, and the engine tells of 0 bytes
 *   reorder  from here on completions are kept until nothing else is under way, and come last one first
 *
 * Or what the kernel may answer beside it:
 *
 *   writeback  sync_file_range(2) number INDEX tells of ENOSPC; that the bytes are gone nobody is told again
 *   punch      fallocate(2) can make no holes in files
 *   ring       there is no memory for io_uring number INDEX, nor for any behind it; a probe's is smaller
 *   aio        the same, and the kernel has not so many I/Os left for libaio either
 *   broken     behind it the kernel carries out nothing any more
 *   erase      of memory no more than INDEX bytes can be erased at once
 *   parts      there is no memory for a memory transfer's part number INDEX, of all that are asked for
 *
 *   sync       fsync(2) or fdatasync(2) number INDEX, of the image or its directory, tells of EIO, and only that one
 *   header     the header path's write number INDEX does
 *
 * KIND:INDEX:ERRNO, a number: writeback, sync and header tell of that. That it came to that is said on standard error. Or
 * nothing is wrong, and there stands what a save tells its disk:
 *
 *   record     each struct fuse_step, and what was written: I/Os when they are done, syncs before they begin
 */
/* LDFLAGS: -Wl,--wrap=dioh_engine_find,--wrap=sync_file_range,--wrap=fallocate64,--wrap=dioh_payload_memory,--wrap=dioh_memory_erase */
/* LDFLAGS: -Wl,--wrap=io_uring_queue_init_params,--wrap=io_setup */
/* LDFLAGS: -Wl,--wrap=pwrite64,--wrap=ftruncate64,--wrap=fsync,--wrap=fdatasync */
int helper_main(int argc, char **argv);

#define main helper_main
#include "main.c"
#undef main

#include <fcntl.h>
#include <libaio.h>
#include <liburing.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>

#include "engine.h"
#include "fuse_file.h"
#include "memory.h"
#include "payload.h"

const struct dioh_engine_ops *__wrap_dioh_engine_find(uint32_t id);
const struct dioh_engine_ops *__real_dioh_engine_find(uint32_t id);

#define PROBE_DEPTH_MAX 4

static const char *const kinds[] = { "short", "odd", "eagain", "eintr", "eio", "ecanceled", "stream", "nothing", "reorder",
	                             "writeback", "punch", "ring", "aio", "parts", "erase", "broken", "sync", "header",
	                             "record" };
enum kind { SHORT, ODD, AGAIN, INTERRUPTED, FAILED, CANCELED, STREAM, NOTHING, REORDER, WRITEBACK, PUNCH, RING,
	    AIO, PARTS, ERASE, BROKEN, SYNC, HEADER, RECORD, KINDS };

static struct {
	enum kind kind;
	unsigned long index;
	int error; /* 0: the kind's own */
} fault = { .kind = KINDS };

struct faulty {
	struct dioh_io_engine base;
	struct dioh_io_engine *real;
	unsigned long count; /* of the image's I/Os so far, or the streams' */
	struct dioh_io *cut; /* under way with less than it should */
	size_t cut_bytes;    /* of its first part */
	unsigned cut_count;
	struct dioh_io *odd;
	struct dioh_io *own; /* never given to the engine */
	struct dioh_io *kept; /* completed, last one first */
	unsigned kept_count;
	unsigned under_way;
};

static const struct dioh_engine_ops *real_ops;
static struct dioh_engine_ops faulty_ops;

static void say_hit(void)
{
	static const char text[] = "fault: hit\n";

	(void)!write(STDERR_FILENO, text, sizeof(text) - 1);
}

static void read_fault(void)
{
	const char *wish = getenv("DIOH_FAULT"), *colon = wish ? strchr(wish, ':') : NULL;

	for (unsigned i = 0; colon && i < KINDS; i++)
		if (strlen(kinds[i]) == (size_t)(colon - wish) && strncmp(wish, kinds[i], strlen(kinds[i])) == 0)
			fault.kind = i;
	fault.index = colon ? strtoul(colon + 1, NULL, 10) : 0;
	colon = colon ? strchr(colon + 1, ':') : NULL;
	fault.error = colon ? atoi(colon + 1) : 0;
}

/* ---- the record ---- */

static void must_write(const void *bytes, size_t count)
{
	if (write(STDERR_FILENO, bytes, count) != (ssize_t)count)
		abort(); /* half a record proves nothing */
}

static void record(struct fuse_step step, const struct iovec *iov)
{
	static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
	uint64_t left = iov ? step.bytes : 0;

	if (fault.kind != RECORD)
		return;
	pthread_mutex_lock(&lock);
	must_write(&step, sizeof(step));
	for (; left > 0; iov++) {
		const size_t n = iov->iov_len < left ? iov->iov_len : left;

		must_write(iov->iov_base, n);
		left -= n;
	}
	pthread_mutex_unlock(&lock);
}

static void record_io(const struct dioh_io *io)
{
	if (io->write && !io->stream && io->result > 0)
		record((struct fuse_step){ .opcode = FUSE_WRITE, .offset = io->offset, .bytes = (uint64_t)io->result }, io->iov);
}

/* ---- the engine ---- */

static int faulty_open(const struct dioh_engine_config *config, struct dioh_io_engine **ret_engine, struct dioh_error *err)
{
	struct faulty *f = calloc(1, sizeof(*f));
	int r;

	if (!f)
		return dioh_error_errno(err, ENOMEM, DIOH_PLACE(SEAL, SESSION, 0, DIOH_OFFSET_NONE), "helper: an engine");
	r = real_ops->open(config, &f->real, err);
	if (r < 0) {
		free(f);
		return r;
	}
	f->base = *f->real;
	f->base.ops = &faulty_ops;
	*ret_engine = &f->base;
	return 0;
}

static int faulty_start(struct dioh_io_engine *engine, struct dioh_error *err)
{
	struct faulty *f = (struct faulty *)engine;

	return f->real->ops->start(f->real, err);
}

static bool take_own(struct faulty *f, struct dioh_io *io, int64_t result)
{
	io->result = result;
	io->engine_next = f->own;
	f->own = io;
	return true;
}

/* Asks for a page of it. */
static void cut(struct faulty *f, struct dioh_io *io)
{
	f->cut = io;
	f->cut_bytes = io->iov->iov_len;
	f->cut_count = io->iov_count;
	io->iov_count = 1;
	if (io->iov->iov_len > DIOH_PAGE_BYTES)
		io->iov->iov_len = DIOH_PAGE_BYTES;
}

static void mend(struct faulty *f, struct dioh_io *io)
{
	if (io == f->cut) {
		io->iov->iov_len = f->cut_bytes;
		io->iov_count = f->cut_count;
		f->cut = NULL;
	}
	if (io == f->odd) {
		io->result = io->result > 1000 ? 1000 : io->result;
		f->odd = NULL;
	}
}

static bool faulty_queue(struct dioh_io_engine *engine, struct dioh_io *io)
{
	static const int64_t results[KINDS] = { [AGAIN] = -EAGAIN, [INTERRUPTED] = -EINTR, [FAILED] = -EIO,
		                                [CANCELED] = -ECANCELED, [STREAM] = -ECANCELED, [NOTHING] = 0 };
	struct faulty *f = (struct faulty *)engine;
	const bool counts = io->stream == (fault.kind == STREAM);
	const bool hit = fault.kind <= REORDER && counts && f->count == fault.index;

	if (hit && fault.kind >= AGAIN && fault.kind <= NOTHING) {
		f->count++;
		say_hit();
		return take_own(f, io, results[fault.kind]);
	}
	if (hit && fault.kind == SHORT)
		cut(f, io);
	if (!f->real->ops->queue(f->real, io)) {
		mend(f, io);
		return false;
	}
	if (hit && fault.kind == ODD)
		f->odd = io;
	if (hit)
		say_hit();
	f->count += counts;
	f->under_way++;
	return true;
}

static void faulty_submit(struct dioh_io_engine *engine)
{
	struct faulty *f = (struct faulty *)engine;

	f->real->ops->submit(f->real);
}

/* Keeps what has completed, the last one in front. */
static void keep(struct faulty *f, struct dioh_io *completed)
{
	while (completed) {
		struct dioh_io *next = completed->engine_next;

		record_io(completed);
		mend(f, completed);
		completed->engine_next = f->kept;
		f->kept = completed;
		f->kept_count++;
		f->under_way--;
		completed = next;
	}
}

static int faulty_run(struct dioh_io_engine *engine, bool wait, struct dioh_io **ret_completed, struct dioh_error *err)
{
	struct faulty *f = (struct faulty *)engine;
	const bool reorders = fault.kind == REORDER && f->count > fault.index;
	struct dioh_io *completed = NULL, **last = &f->own;
	int r;

	if (fault.kind == BROKEN && f->count > fault.index) {
		say_hit();
		return dioh_error_errno(err, EIO, DIOH_PLACE(NONE, SESSION, 0, DIOH_OFFSET_NONE), "helper: the engine");
	}
	r = f->real->ops->run(f->real, wait && !f->own && !(f->kept && f->under_way == 0), &completed, err);
	if (r < 0)
		return r;
	keep(f, completed);
	if (f->kept && (!reorders || f->under_way == 0)) {
		while (*last)
			last = &(*last)->engine_next;
		*last = f->kept;
		f->kept = NULL;
		f->kept_count = 0;
	}
	*ret_completed = f->own;
	f->own = NULL;
	return 0;
}

static void faulty_cancel(struct dioh_io_engine *engine, struct dioh_io *io)
{
	struct faulty *f = (struct faulty *)engine;

	f->real->ops->cancel(f->real, io);
}

static void faulty_close_slot(struct dioh_io_engine *engine, unsigned slot)
{
	struct faulty *f = (struct faulty *)engine;

	f->real->ops->close_slot(f->real, slot);
}

static void faulty_close(struct dioh_io_engine *engine)
{
	struct faulty *f = (struct faulty *)engine;

	if (!f)
		return;
	f->real->ops->close(f->real);
	free(f);
}

const struct dioh_engine_ops *__wrap_dioh_engine_find(uint32_t id)
{
	real_ops = __real_dioh_engine_find(id);
	faulty_ops = (struct dioh_engine_ops){
		.id = real_ops->id,
		.probe = real_ops->probe,
		.open = faulty_open,
		.start = faulty_start,
		.queue = faulty_queue,
		.submit = faulty_submit,
		.run = faulty_run,
		.cancel = faulty_cancel,
		.close_slot = faulty_close_slot,
		.close = faulty_close,
	};
	return &faulty_ops;
}

/* ---- beside the engine ---- */

int __real_sync_file_range(int fd, off64_t offset, off64_t bytes, unsigned flags);
int __wrap_sync_file_range(int fd, off64_t offset, off64_t bytes, unsigned flags);

int __wrap_sync_file_range(int fd, off64_t offset, off64_t bytes, unsigned flags)
{
	static unsigned long calls; /* by one thread, the control-I/O thread */

	if (flags == 0 || fault.kind != WRITEBACK || calls++ != fault.index)
		return __real_sync_file_range(fd, offset, bytes, flags);
	say_hit();
	errno = fault.error ? fault.error : ENOSPC;
	return -1;
}

/* fallocate(2), with offsets of 64 bits. */
int __real_fallocate64(int fd, int mode, off64_t offset, off64_t bytes);
int __wrap_fallocate64(int fd, int mode, off64_t offset, off64_t bytes);

int __wrap_fallocate64(int fd, int mode, off64_t offset, off64_t bytes)
{
	if (fault.kind != PUNCH || !(mode & FALLOC_FL_PUNCH_HOLE)) {
		int r = __real_fallocate64(fd, mode, offset, bytes);

		if (r == 0)
			record((struct fuse_step){ FUSE_FALLOCATE, (uint32_t)mode, (uint64_t)offset, (uint64_t)bytes, NULL }, NULL);
		return r;
	}
	say_hit();
	errno = EOPNOTSUPP;
	return -1;
}

int __real_io_uring_queue_init_params(unsigned entries, struct io_uring *ring, struct io_uring_params *params);
int __wrap_io_uring_queue_init_params(unsigned entries, struct io_uring *ring, struct io_uring_params *params);

int __wrap_io_uring_queue_init_params(unsigned entries, struct io_uring *ring, struct io_uring_params *params)
{
	static unsigned long rings;
	int r;

	if (fault.kind < RING || fault.kind > AIO || entries <= PROBE_DEPTH_MAX || rings < fault.index) {
		r = __real_io_uring_queue_init_params(entries, ring, params);
		rings += r == 0 && entries > PROBE_DEPTH_MAX;
		return r;
	}
	say_hit();
	return -ENOMEM;
}

int __real_io_setup(int depth, io_context_t *ret_context);
int __wrap_io_setup(int depth, io_context_t *ret_context);

int __wrap_io_setup(int depth, io_context_t *ret_context)
{
	if (fault.kind != AIO || depth <= PROBE_DEPTH_MAX)
		return __real_io_setup(depth, ret_context);
	say_hit();
	return -EAGAIN;
}

int __real_ftruncate64(int fd, off64_t bytes);
int __wrap_ftruncate64(int fd, off64_t bytes);

int __wrap_ftruncate64(int fd, off64_t bytes)
{
	int r = __real_ftruncate64(fd, bytes);

	if (r == 0)
		record((struct fuse_step){ .opcode = FUSE_SETATTR, .offset = (uint64_t)bytes }, NULL);
	return r;
}

/* Call number INDEX, counted together: the header path's are all one thread's at a time. */
static bool fails(enum kind kind)
{
	static atomic_ulong calls;

	if (fault.kind != kind || atomic_fetch_add(&calls, 1) != fault.index)
		return false;
	say_hit();
	errno = fault.error ? fault.error : EIO;
	return true;
}

/* In a save nothing else is written so. */
ssize_t __real_pwrite64(int fd, const void *bytes, size_t count, off64_t offset);
ssize_t __wrap_pwrite64(int fd, const void *bytes, size_t count, off64_t offset);

ssize_t __wrap_pwrite64(int fd, const void *bytes, size_t count, off64_t offset)
{
	ssize_t n = fails(HEADER) ? -1 : __real_pwrite64(fd, bytes, count, offset);

	if (n > 0)
		record((struct fuse_step){ .opcode = FUSE_WRITE, .offset = (uint64_t)offset, .bytes = (uint64_t)n },
		       &(struct iovec){ (void *)(uintptr_t)bytes, (size_t)n });
	return n;
}

static void record_sync(int fd, uint32_t flags)
{
	struct stat st;

	if (fault.kind == RECORD && fstat(fd, &st) == 0)
		record((struct fuse_step){ .opcode = S_ISDIR(st.st_mode) ? FUSE_FSYNCDIR : FUSE_FSYNC, .flags = flags }, NULL);
}

int __real_fsync(int fd);
int __wrap_fsync(int fd);

int __wrap_fsync(int fd)
{
	record_sync(fd, 0);
	return fails(SYNC) ? -1 : __real_fsync(fd);
}

int __real_fdatasync(int fd);
int __wrap_fdatasync(int fd);

int __wrap_fdatasync(int fd)
{
	record_sync(fd, FUSE_FSYNC_FDATASYNC);
	return fails(SYNC) ? -1 : __real_fdatasync(fd);
}

struct dioh_transfer *__real_dioh_payload_memory(const struct dioh_memory_params *params, struct dioh_error *err);
struct dioh_transfer *__wrap_dioh_payload_memory(const struct dioh_memory_params *params, struct dioh_error *err);

struct dioh_transfer *__wrap_dioh_payload_memory(const struct dioh_memory_params *params, struct dioh_error *err)
{
	static unsigned long parts; /* by one thread, the session's */

	if (fault.kind != PARTS || parts++ != fault.index)
		return __real_dioh_payload_memory(params, err);
	say_hit();
	dioh_error_errno(err, ENOMEM, DIOH_PLACE(NONE, SESSION, 0, DIOH_OFFSET_NONE), "a part");
	return NULL;
}

int __real_dioh_memory_erase(const struct dioh_memory *memory, uint64_t offset, uint64_t count, struct dioh_error *err);
int __wrap_dioh_memory_erase(const struct dioh_memory *memory, uint64_t offset, uint64_t count, struct dioh_error *err);

int __wrap_dioh_memory_erase(const struct dioh_memory *memory, uint64_t offset, uint64_t count, struct dioh_error *err)
{
	if (fault.kind != ERASE || count <= fault.index)
		return __real_dioh_memory_erase(memory, offset, count, err);
	say_hit();
	return dioh_error_errno(err, EIO, DIOH_PLACE(SIZE, MEMORY, memory->number, offset), "too much at once");
}

int main(int argc, char **argv)
{
	read_fault();
	return helper_main(argc, argv);
}
