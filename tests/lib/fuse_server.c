/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * fuse_server.c - the server behind fuse_file.h: reads /dev/fuse, answers from a memfd, misbehaves as it is told. One
 * thread, which never touches its own mount. The protocol is linux/fuse.h's.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "clock.h"
#include "fuse_control.h"

#define FILE_NODE 2u
#define FILE_NAME "image"
#define WRITE_BYTES_MAX (1u << 20)
#define BUFFER_BYTES (WRITE_BYTES_MAX + 4096)
#define HELD_MAX 256u
#define TICK_MS 5
#define SECTOR_BYTES 512u
#define BLOCKS (UINT64_C(1) << 28) /* of 4 KiB: the room that STATFS tells of */

#define HANDLE_DIRECT 1u /* fh of what was opened with O_DIRECT */

struct request {
	struct fuse_in_header *in;
	void *body;
	size_t body_bytes;
};

struct server {
	struct fuse_control *control;
	int device;
	int memfd;
	bool async_dio;
	bool direct_io;
	bool direct_all;
	bool fallocate;
	bool seek;
	bool flush;
	char *buffer;
	char *held[HELD_MAX];
	unsigned held_count;
	unsigned released; /* the last release that was carried out */
	int lost_error; /* of a write that was acknowledged: the next FSYNC tells */
};

static struct request request_of(char *buffer)
{
	struct fuse_in_header *in = (struct fuse_in_header *)buffer;

	return (struct request){ in, in + 1, in->len - sizeof(*in) };
}

/* ---- answers ---- */

static void answer(const struct server *s, uint64_t unique, int error, const void *bytes, size_t count)
{
	struct fuse_out_header out = { .len = (uint32_t)(sizeof(out) + count), .error = -error, .unique = unique };
	struct iovec iov[2] = { { &out, sizeof(out) }, { (void *)(uintptr_t)bytes, count } };

	/* ENOENT: whoever asked does not wait any more. */
	(void)!writev(s->device, iov, count ? 2 : 1);
}

static void fill_attr(const struct server *s, uint64_t node, struct fuse_attr *attr)
{
	struct stat st;

	memset(attr, 0, sizeof(*attr));
	attr->ino = node;
	attr->nlink = 1;
	attr->blksize = 4096;
	attr->mode = node == FILE_NODE ? S_IFREG | 0666 : S_IFDIR | 0777;
	if (node == FILE_NODE && fstat(s->memfd, &st) == 0) {
		attr->size = (uint64_t)st.st_size;
		attr->blocks = (uint64_t)st.st_blocks;
	}
}

static void answer_attr(const struct server *s, const struct request *r)
{
	struct fuse_attr_out out = { 0 }; /* valid for no time at all: every fstat(2) asks */

	fill_attr(s, r->in->nodeid, &out.attr);
	answer(s, r->in->unique, 0, &out, sizeof(out));
}

/* ---- the record ---- */

static void note(const struct server *s, uint32_t opcode, uint32_t flags, uint64_t offset, uint64_t bytes,
                 const void *data)
{
	struct fuse_control *control = s->control;
	const struct fuse_step step = { .opcode = opcode, .flags = flags, .offset = offset, .bytes = bytes };
	const uint64_t at = atomic_load(&control->log_bytes), data_bytes = data ? bytes : 0;

	if (!atomic_load(&control->recording))
		return;
	if (at + sizeof(step) + data_bytes > FUSE_LOG_BYTES)
		_exit(1); /* the test fails: half a record proves nothing */
	memcpy(fuse_control_log(control) + at, &step, sizeof(step));
	if (data)
		memcpy(fuse_control_log(control) + at + sizeof(step), data, data_bytes);
	atomic_store(&control->log_bytes, at + sizeof(step) + data_bytes);
}

/* ---- operations ---- */

static void on_init(const struct server *s, const struct request *r)
{
	const struct fuse_init_in *in = r->body;
	struct fuse_init_out out = {
		.major = FUSE_KERNEL_VERSION,
		.minor = FUSE_KERNEL_MINOR_VERSION,
		.max_readahead = in->max_readahead,
		.flags = in->flags & (FUSE_ASYNC_READ | FUSE_BIG_WRITES | FUSE_MAX_PAGES |
		                      (s->async_dio ? FUSE_ASYNC_DIO : 0)),
		.max_background = 128,
		.congestion_threshold = 128,
		.max_write = WRITE_BYTES_MAX,
		.max_pages = WRITE_BYTES_MAX / 4096,
		.time_gran = 1,
	};

	answer(s, r->in->unique, 0, &out, sizeof(out));
}

static void on_lookup(const struct server *s, const struct request *r)
{
	struct fuse_entry_out out = { .nodeid = FILE_NODE };

	if (strcmp(r->body, FILE_NAME) != 0) {
		answer(s, r->in->unique, ENOENT, NULL, 0);
		return;
	}
	fill_attr(s, FILE_NODE, &out.attr);
	answer(s, r->in->unique, 0, &out, sizeof(out));
}

static void on_setattr(const struct server *s, const struct request *r)
{
	const struct fuse_setattr_in *in = r->body;

	if (r->in->nodeid == FILE_NODE && in->valid & FATTR_SIZE) {
		if (ftruncate(s->memfd, (off_t)in->size) < 0) {
			answer(s, r->in->unique, errno, NULL, 0);
			return;
		}
		note(s, FUSE_SETATTR, 0, in->size, 0, NULL);
	}
	answer_attr(s, r);
}

static void on_open(const struct server *s, const struct request *r)
{
	const struct fuse_open_in *in = r->body;
	struct fuse_open_out out = { 0 };

	if (in->flags & O_DIRECT && r->in->opcode == FUSE_OPEN) {
		out.fh = HANDLE_DIRECT;
		out.open_flags = s->direct_io ? FOPEN_DIRECT_IO : 0;
	}
	if (s->direct_all && r->in->opcode == FUSE_OPEN)
		out.open_flags = FOPEN_DIRECT_IO;
	answer(s, r->in->unique, 0, &out, sizeof(out));
}

static void read_some(const struct server *s, const struct request *r, uint32_t most)
{
	static char bytes[WRITE_BYTES_MAX];
	const struct fuse_read_in *in = r->body;
	const uint32_t count = in->size < most ? in->size : most;
	ssize_t n = count > sizeof(bytes) ? -1 : pread(s->memfd, bytes, count, (off_t)in->offset);

	answer(s, r->in->unique, n < 0 ? EIO : 0, bytes, n < 0 ? 0 : (size_t)n);
}

static void on_read(const struct server *s, const struct request *r)
{
	read_some(s, r, UINT32_MAX);
}

static void write_some(const struct server *s, const struct request *r, uint32_t most)
{
	const struct fuse_write_in *in = r->body;
	struct fuse_write_out out = { 0 };
	ssize_t n = pwrite(s->memfd, in + 1, in->size < most ? in->size : most, (off_t)in->offset);

	if (n > 0)
		note(s, FUSE_WRITE, 0, in->offset, (uint64_t)n, in + 1);
	out.size = n < 0 ? 0 : (uint32_t)n;
	answer(s, r->in->unique, n < 0 ? EIO : 0, &out, n < 0 ? 0 : sizeof(out));
}

static void on_write(const struct server *s, const struct request *r)
{
	write_some(s, r, UINT32_MAX);
}

static void on_statfs(const struct server *s, const struct request *r)
{
	const struct fuse_statfs_out out = {
		.st = { .blocks = BLOCKS, .bfree = BLOCKS, .bavail = BLOCKS, .bsize = 4096, .frsize = 4096, .namelen = 255 },
	};

	answer(s, r->in->unique, 0, &out, sizeof(out));
}

static void on_nothing(const struct server *s, const struct request *r)
{
	answer(s, r->in->unique, 0, NULL, 0);
}

static void on_fsync(const struct server *s, const struct request *r)
{
	const struct fuse_fsync_in *in = r->body;

	note(s, FUSE_FSYNC, in->fsync_flags, 0, 0, NULL);
	answer(s, r->in->unique, 0, NULL, 0);
}

static void on_fallocate(const struct server *s, const struct request *r)
{
	const struct fuse_fallocate_in *in = r->body;

	if (!s->fallocate) {
		answer(s, r->in->unique, EOPNOTSUPP, NULL, 0);
		return;
	}
	if (fallocate(s->memfd, (int)in->mode, (off_t)in->offset, (off_t)in->length) < 0) {
		answer(s, r->in->unique, errno, NULL, 0);
		return;
	}
	note(s, FUSE_FALLOCATE, in->mode, in->offset, in->length, NULL);
	answer(s, r->in->unique, 0, NULL, 0);
}

static void on_unknown(const struct server *s, const struct request *r)
{
	answer(s, r->in->unique, ENOSYS, NULL, 0);
}

static void on_flush(const struct server *s, const struct request *r)
{
	answer(s, r->in->unique, s->flush ? 0 : ENOSYS, NULL, 0);
}

static void on_lseek(const struct server *s, const struct request *r)
{
	const struct fuse_lseek_in *in = r->body;
	struct fuse_lseek_out out = { 0 };
	off_t found;

	if (!s->seek) {
		on_unknown(s, r);
		return;
	}
	found = lseek(s->memfd, (off_t)in->offset, (int)in->whence);
	out.offset = found < 0 ? 0 : (uint64_t)found;
	answer(s, r->in->unique, found < 0 ? errno : 0, &out, found < 0 ? 0 : sizeof(out));
}

static void on_unanswered(const struct server *s, const struct request *r)
{
	(void)s;
	(void)r;
}

typedef void handler(const struct server *s, const struct request *r);

static handler *const handlers[FUSE_OPCODES_MAX] = {
	[FUSE_INIT] = on_init,
	[FUSE_LOOKUP] = on_lookup,
	[FUSE_GETATTR] = answer_attr,
	[FUSE_SETATTR] = on_setattr,
	[FUSE_OPEN] = on_open,
	[FUSE_OPENDIR] = on_open,
	[FUSE_READ] = on_read,
	[FUSE_WRITE] = on_write,
	[FUSE_STATFS] = on_statfs,
	[FUSE_FSYNC] = on_fsync,
	[FUSE_FSYNCDIR] = on_nothing,
	[FUSE_FLUSH] = on_flush,
	[FUSE_RELEASE] = on_nothing,
	[FUSE_RELEASEDIR] = on_nothing,
	[FUSE_DESTROY] = on_nothing,
	[FUSE_FALLOCATE] = on_fallocate,
	[FUSE_LSEEK] = on_lseek,
	[FUSE_FORGET] = on_unanswered,
	[FUSE_BATCH_FORGET] = on_unanswered,
};

static void carry_out(const struct server *s, const struct request *r)
{
	handler *known = r->in->opcode < FUSE_OPCODES_MAX ? handlers[r->in->opcode] : NULL;

	(known ? known : on_unknown)(s, r);
}

/* ---- faults ---- */

/* Which descriptor, and where; of opcodes that have neither the first byte of a buffered one. */
static void place_of(const struct request *r, bool *ret_direct, uint64_t *ret_offset)
{
	const struct fuse_read_in *read_in = r->body;
	const struct fuse_write_in *write_in = r->body;
	const struct fuse_fsync_in *fsync_in = r->body;

	*ret_direct = false;
	*ret_offset = 0;
	if (r->in->opcode == FUSE_READ) {
		*ret_direct = read_in->fh == HANDLE_DIRECT;
		*ret_offset = read_in->offset;
	} else if (r->in->opcode == FUSE_WRITE) {
		*ret_direct = write_in->fh == HANDLE_DIRECT;
		*ret_offset = write_in->offset;
	} else if (r->in->opcode == FUSE_FSYNC) {
		*ret_direct = fsync_in->fh == HANDLE_DIRECT;
	}
}

/* Is this request to be hit? */
static enum fuse_fault_kind fault_of(const struct request *r, struct fuse_rule *rule)
{
	const enum fuse_fault_kind kind = atomic_load(&rule->kind);
	const unsigned handles = atomic_load(&rule->handles);
	const unsigned after = atomic_load(&rule->after);
	const unsigned times = atomic_load(&rule->times);
	uint64_t offset;
	unsigned seen;
	bool direct, again;

	if (kind == FUSE_FAULT_NONE)
		return FUSE_FAULT_NONE;
	place_of(r, &direct, &offset);
	if (handles != FUSE_HANDLES_ALL && direct != (handles == FUSE_HANDLES_DIRECT))
		return FUSE_FAULT_NONE;
	seen = atomic_fetch_add(&rule->seen, 1);
	again = atomic_load(&rule->same_place) && offset == atomic_load(&rule->hit_offset);
	if (seen < after || (times && seen - after >= times && !again))
		return FUSE_FAULT_NONE;
	if (atomic_load(&rule->hits) == 0)
		atomic_store(&rule->hit_offset, offset);
	atomic_fetch_add(&rule->hits, 1);
	return kind;
}

/* Power went, or a cable: of a write some sectors are there and others are not. */
static void write_torn(const struct server *s, const struct request *r)
{
	const struct fuse_write_in *in = r->body;

	for (uint32_t done = 0; done < in->size;) {
		const uint64_t at = in->offset + done;
		const uint32_t room = SECTOR_BYTES - at % SECTOR_BYTES;
		const uint32_t n = in->size - done < room ? in->size - done : room;

		if (at / SECTOR_BYTES % 2 == 0)
			(void)!pwrite(s->memfd, (const char *)(in + 1) + done, n, (off_t)at);
		done += n;
	}
}

/* Carries a request out, and tells of it something else. */
static void carry_out_mute(struct server *s, const struct request *r)
{
	const int device = s->device;

	s->device = -1;
	carry_out(s, r);
	s->device = device;
}

static void lose(struct server *s, const struct request *r, int error)
{
	const struct fuse_write_in *in = r->body;
	const struct fuse_write_out out = { .size = in->size };

	s->lost_error = error;
	answer(s, r->in->unique, 0, &out, sizeof(out));
}

static void hold(struct server *s)
{
	if (s->held_count == HELD_MAX)
		_exit(1); /* which aborts the connection: the test fails, and does not hang */
	s->held[s->held_count++] = s->buffer;
	s->buffer = malloc(BUFFER_BYTES);
	if (!s->buffer)
		_exit(1);
	atomic_store(&s->control->held, s->held_count);
}

static void let_go(struct server *s, unsigned index, int error)
{
	struct request r = request_of(s->held[index]);

	if (error)
		answer(s, r.in->unique, error, NULL, 0);
	else
		carry_out(s, &r);
	free(s->held[index]);
	s->held[index] = s->held[--s->held_count];
	atomic_store(&s->control->held, s->held_count);
}

static void on_interrupt(struct server *s, const struct request *r)
{
	const struct fuse_interrupt_in *in = r->body;

	if (!atomic_load(&s->control->obey_interrupts))
		return;
	for (unsigned i = 0; i < s->held_count; i++) {
		if (request_of(s->held[i]).in->unique == in->unique) {
			let_go(s, i, EINTR);
			return;
		}
	}
}

static void count(struct server *s, const struct request *r)
{
	const uint32_t opcode = r->in->opcode;
	uint64_t offset;
	bool direct;

	place_of(r, &direct, &offset);
	atomic_fetch_add(&s->control->counts[opcode], 1);
	if (direct)
		atomic_fetch_add(&s->control->counts_direct[opcode], 1);
}

static void take(struct server *s, const struct request *r)
{
	const uint32_t opcode = r->in->opcode;
	struct fuse_rule *rule;

	if (opcode >= FUSE_OPCODES_MAX) {
		on_unknown(s, r);
		return;
	}
	count(s, r);
	if (opcode == FUSE_FSYNC && s->lost_error) {
		answer(s, r->in->unique, s->lost_error, NULL, 0);
		s->lost_error = 0;
		return;
	}
	rule = &s->control->rules[opcode];
	switch (opcode == FUSE_INTERRUPT ? FUSE_FAULT_NONE : fault_of(r, rule)) {
	case FUSE_FAULT_HOLD:
		hold(s);
		break;
	case FUSE_FAULT_ERROR:
		answer(s, r->in->unique, atomic_load(&rule->value), NULL, 0);
		break;
	case FUSE_FAULT_SHORT:
		(opcode == FUSE_READ ? read_some : write_some)(s, r, (uint32_t)atomic_load(&rule->value));
		break;
	case FUSE_FAULT_LATE:
		hold(s);
		atomic_store(&s->control->release_at_ns, dioh_now_ns() + (uint64_t)atomic_load(&rule->value) * 1000000u);
		break;
	case FUSE_FAULT_TORN:
		write_torn(s, r);
		answer(s, r->in->unique, atomic_load(&rule->value), NULL, 0);
		break;
	case FUSE_FAULT_DONE:
		carry_out_mute(s, r);
		answer(s, r->in->unique, atomic_load(&rule->value), NULL, 0);
		break;
	case FUSE_FAULT_LOST:
		lose(s, r, atomic_load(&rule->value));
		break;
	case FUSE_FAULT_FREEZE:
		carry_out(s, r);
		atomic_store(&s->control->frozen, true);
		break;
	default:
		if (opcode == FUSE_INTERRUPT)
			on_interrupt(s, r);
		else
			carry_out(s, r);
	}
}

void fuse_control_calm(struct fuse_control *control)
{
	for (unsigned i = 0; i < FUSE_OPCODES_MAX; i++)
		atomic_store(&control->rules[i].kind, FUSE_FAULT_NONE);
}

static void look_for_release(struct server *s)
{
	const uint64_t at = atomic_load(&s->control->release_at_ns);
	unsigned release;

	if (at && dioh_now_ns() >= at) {
		atomic_store(&s->control->release_at_ns, 0);
		atomic_store(&s->control->release_error, 0);
		atomic_store(&s->control->frozen, false);
		fuse_control_calm(s->control);
		atomic_fetch_add(&s->control->release, 1);
	}
	release = atomic_load(&s->control->release);
	if (release == s->released)
		return;
	s->released = release;
	s->lost_error = 0;
	while (s->held_count > 0)
		let_go(s, 0, atomic_load(&s->control->release_error));
}

/* ---- the process ---- */

static void read_one(struct server *s)
{
	ssize_t n = read(s->device, s->buffer, BUFFER_BYTES);
	struct request r;

	if (n < 0 && errno == ENODEV)
		_exit(0); /* unmounted */
	if (n < (ssize_t)sizeof(struct fuse_in_header))
		return;
	look_for_release(s); /* what the test has ended before it asked again is over */
	r = request_of(s->buffer);
	take(s, &r);
}

static _Noreturn void serve(struct server *s)
{
	for (;;) {
		const bool frozen = atomic_load(&s->control->frozen);
		struct pollfd device = { .fd = frozen ? -1 : s->device, .events = POLLIN };

		look_for_release(s);
		if (poll(&device, 1, frozen || s->held_count ? TICK_MS : -1) > 0)
			read_one(s);
	}
}

static int mount_on(const char *path, int device, bool only_root)
{
	char data[128];

	(void)snprintf(data, sizeof(data), "fd=%d,rootmode=40000,user_id=0,group_id=0%s", device,
	               only_root ? "" : ",allow_other");
	return mount("diohelper-test", path, "fuse", MS_NOSUID | MS_NODEV, data) < 0 ? -errno : 0;
}

_Noreturn void fuse_server_run(struct fuse_control *control, const char *path, int memfd,
                               const struct fuse_file_options *options)
{
	struct server s = {
		.control = control,
		.memfd = memfd,
		.async_dio = options->async_dio,
		.direct_io = options->direct_io,
		.direct_all = options->direct_all,
		.fallocate = options->fallocate,
		.seek = options->seek,
		.flush = options->flush,
	};
	int r;

	s.device = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	r = s.device < 0 ? -errno : mount_on(path, s.device, options->only_root);
	s.buffer = malloc(BUFFER_BYTES);
	if (r == 0 && !s.buffer)
		r = -ENOMEM;
	atomic_store(&control->state, r < 0 ? r : 1);
	if (r < 0)
		_exit(1);
	serve(&s);
}
