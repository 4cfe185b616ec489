/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * engine_uring.c - io_uring(7) on a fixed file table. The ring is made disabled before the seal and enabled by the
 * worker: with SINGLE_ISSUER it belongs to the thread that enables it. Guest memory is never registered: that would
 * allocate its holes.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "engine.h"

#define PLACE(op) DIOH_PLACE(op, SESSION, 0, DIOH_OFFSET_NONE)

/* Room beside the I/Os themselves for the wake-up, and for a cancel of each stream's: there is one in its life. */
#define SPARE_ENTRIES (1 + DIOH_STREAMS_MAX)

struct uring_engine {
	struct dioh_io_engine base;
	struct io_uring ring;
	unsigned room; /* I/Os that may still be taken */
	int fds[DIOH_SLOTS_MAX];
	bool blocked[DIOH_SLOTS_MAX]; /* O_NONBLOCK was cleared by us: others may have the same open file */
	bool fixed_cancels; /* have to have FIXED_FILE; else must not */
	bool wake_armed;
	uint64_t wake_value;
};

/* user_data of what is not a struct dioh_io. */
static char tag_wake, tag_cancel;

/* From the newest kernels' flags to the oldest: SINGLE_ISSUER came with 6.0, DEFER_TASKRUN with 6.1. */
static const unsigned setups[] = {
#ifdef IORING_SETUP_DEFER_TASKRUN /* liburing 2.3 */
	IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN,
#endif
#ifdef IORING_SETUP_SINGLE_ISSUER /* liburing 2.2 */
	IORING_SETUP_SINGLE_ISSUER,
#endif
	0,
};

static int ring_open(struct io_uring *ring, unsigned entries)
{
	int r = -EINVAL;

	for (size_t i = 0; i < sizeof(setups) / sizeof(setups[0]) && r == -EINVAL; i++) {
		struct io_uring_params params = { .flags = setups[i] | IORING_SETUP_R_DISABLED };

		r = io_uring_queue_init_params(entries, ring, &params);
	}
	return r;
}

static int uring_probe(void)
{
	struct io_uring ring;
	int r = ring_open(&ring, 4);

	if (r == 0)
		io_uring_queue_exit(&ring);
	return r;
}

/* Whether a cancel may have FIXED_FILE, which means nothing there: Linux before 6.0 answers EINVAL, others ENOENT. */
static bool cancels_with_fixed_file(void)
{
	struct io_uring ring;
	struct io_uring_sqe *sqe;
	struct io_uring_cqe *cqe;
	bool with = false;

	if (io_uring_queue_init(1, &ring, 0) < 0)
		return false;
	sqe = io_uring_get_sqe(&ring);
	io_uring_prep_cancel(sqe, &tag_cancel, 0);
	sqe->flags |= IOSQE_FIXED_FILE;
	if (io_uring_submit_and_wait(&ring, 1) == 1 && io_uring_peek_cqe(&ring, &cqe) == 0)
		with = cqe->res == -ENOENT;
	io_uring_queue_exit(&ring);
	return with;
}

/*
 * Nothing but reads, writes and cancels, and those on the file table only, where cancels can do with that: what can't be
 * reached by a system call any more is not to be had through the ring either. By the system call, as below.
 */
static bool restrict_ring(struct io_uring *ring, bool table_only)
{
	struct io_uring_restriction rules[] = {
		{ .opcode = IORING_RESTRICTION_SQE_OP, .sqe_op = IORING_OP_READV },
		{ .opcode = IORING_RESTRICTION_SQE_OP, .sqe_op = IORING_OP_WRITEV },
		{ .opcode = IORING_RESTRICTION_SQE_OP, .sqe_op = IORING_OP_READ },
		{ .opcode = IORING_RESTRICTION_SQE_OP, .sqe_op = IORING_OP_ASYNC_CANCEL },
		{ .opcode = IORING_RESTRICTION_SQE_FLAGS_ALLOWED, .sqe_flags = IOSQE_FIXED_FILE },
		{ .opcode = IORING_RESTRICTION_SQE_FLAGS_REQUIRED, .sqe_flags = table_only ? IOSQE_FIXED_FILE : 0 },
		{ .opcode = IORING_RESTRICTION_REGISTER_OP, .register_op = IORING_REGISTER_ENABLE_RINGS },
		{ .opcode = IORING_RESTRICTION_REGISTER_OP, .register_op = IORING_REGISTER_FILES_UPDATE },
	};

	return syscall(SYS_io_uring_register, ring->ring_fd, IORING_REGISTER_RESTRICTIONS, rules,
	               sizeof(rules) / sizeof(rules[0])) == 0;
}

static int uring_open(const struct dioh_engine_config *config, struct dioh_io_engine **ret_engine,
                      struct dioh_error *err)
{
	struct uring_engine *engine = calloc(1, sizeof(*engine));
	int r;

	if (!engine)
		return dioh_error_errno(err, ENOMEM, PLACE(SEAL), "helper: io_uring");
	r = ring_open(&engine->ring, config->depth + SPARE_ENTRIES);
	if (r < 0) {
		free(engine);
		return dioh_error_errno(err, r, PLACE(SEAL), "helper: io_uring_setup failed");
	}
	engine->base.ops = &dioh_engine_uring;
	engine->room = config->depth;
	memcpy(engine->fds, config->fds, sizeof(engine->fds));
	r = io_uring_register_files(&engine->ring, config->fds, config->fd_count);
	if (r < 0) {
		io_uring_queue_exit(&engine->ring);
		free(engine);
		return dioh_error_errno(err, r, PLACE(SEAL), "helper: io_uring_register of the descriptors failed");
	}
	engine->fixed_cancels = cancels_with_fixed_file();
	engine->base.restricted = restrict_ring(&engine->ring, engine->fixed_cancels);
	*ret_engine = &engine->base;
	return 0;
}

static struct io_uring_sqe *take_sqe(struct uring_engine *engine)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&engine->ring);

	if (!sqe) {
		io_uring_submit(&engine->ring);
		sqe = io_uring_get_sqe(&engine->ring);
	}
	return sqe;
}

static void arm_wake(struct uring_engine *engine)
{
	struct io_uring_sqe *sqe = take_sqe(engine);

	if (!sqe)
		return; /* tried again by the next run() */
	io_uring_prep_read(sqe, DIOH_SLOT_WAKE, &engine->wake_value, sizeof(engine->wake_value), 0);
	sqe->flags |= IOSQE_FIXED_FILE;
	io_uring_sqe_set_data(sqe, &tag_wake);
	engine->wake_armed = true;
}

static int uring_start(struct dioh_io_engine *base, struct dioh_error *err)
{
	struct uring_engine *engine = (struct uring_engine *)base;

	/* By the system call: Debian 12's liburing.so.2 has no io_uring_enable_rings. */
	if (syscall(SYS_io_uring_register, engine->ring.ring_fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0) < 0)
		return dioh_error_errno(err, errno, PLACE(SEAL), "helper: enabling the io_uring failed");
	/* io_uring answers EAGAIN for a descriptor with O_NONBLOCK where it would otherwise wait for its peer. */
	for (unsigned i = DIOH_SLOT_STREAM; i < DIOH_SLOTS_MAX; i++) {
		int flags = engine->fds[i] >= 0 ? fcntl(engine->fds[i], F_GETFL) : 0;

		if (flags & O_NONBLOCK)
			engine->blocked[i] = fcntl(engine->fds[i], F_SETFL, flags & ~O_NONBLOCK) == 0;
	}
	arm_wake(engine);
	return 0;
}

static bool uring_queue(struct dioh_io_engine *base, struct dioh_io *io)
{
	struct uring_engine *engine = (struct uring_engine *)base;
	/* A stream's position is its own. */
	uint64_t offset = io->stream ? (uint64_t)-1 : io->offset;
	struct io_uring_sqe *sqe;

	if (engine->room == 0)
		return false;
	sqe = take_sqe(engine);
	if (!sqe)
		return false;
	if (io->write)
		io_uring_prep_writev(sqe, (int)io->slot, io->iov, io->iov_count, offset);
	else
		io_uring_prep_readv(sqe, (int)io->slot, io->iov, io->iov_count, offset);
	if (io->uncached)
		sqe->rw_flags = RWF_DONTCACHE;
	sqe->flags |= IOSQE_FIXED_FILE;
	io_uring_sqe_set_data(sqe, io);
	engine->room--;
	return true;
}

static void uring_submit(struct dioh_io_engine *base)
{
	/* What could not be submitted (EBUSY, EAGAIN, EINTR) stays in the ring for the next call. */
	(void)io_uring_submit(&((struct uring_engine *)base)->ring);
}

static struct dioh_io *reap(struct uring_engine *engine)
{
	struct dioh_io *first = NULL;
	struct dioh_io **last = &first;
	struct io_uring_cqe *cqe;

	while (io_uring_peek_cqe(&engine->ring, &cqe) == 0) {
		void *data = io_uring_cqe_get_data(cqe);

		if (data == &tag_wake) {
			engine->wake_armed = false;
		} else if (data != &tag_cancel) {
			struct dioh_io *io = data;

			io->result = cqe->res;
			io->engine_next = NULL;
			*last = io;
			last = &io->engine_next;
			engine->room++;
		}
		io_uring_cqe_seen(&engine->ring, cqe);
	}
	return first;
}

/* DEFER_TASKRUN: completions wait in the kernel, which is to be entered for them even if there is nothing to submit. */
static int enter_at_once(struct io_uring *ring)
{
#ifdef IORING_SETUP_DEFER_TASKRUN
	return io_uring_submit_and_get_events(ring);
#else
	return io_uring_submit(ring);
#endif
}

static int uring_run(struct dioh_io_engine *base, bool wait, struct dioh_io **ret_completed, struct dioh_error *err)
{
	struct uring_engine *engine = (struct uring_engine *)base;
	int r;

	if (!engine->wake_armed)
		arm_wake(engine);
	r = wait ? io_uring_submit_and_wait(&engine->ring, 1) : enter_at_once(&engine->ring);
	if (r < 0 && r != -EINTR && r != -EAGAIN && r != -EBUSY)
		return dioh_error_errno(err, r, PLACE(NONE), "helper: io_uring_enter failed");
	*ret_completed = reap(engine);
	return 0;
}

static void uring_cancel(struct dioh_io_engine *base, struct dioh_io *io)
{
	struct uring_engine *engine = (struct uring_engine *)base;
	struct io_uring_sqe *sqe = take_sqe(engine);

	/* Nobody would ask again. There is an entry even while the kernel takes none. */
	assert(sqe);
	io_uring_prep_cancel(sqe, io, 0);
	if (engine->fixed_cancels)
		sqe->flags |= IOSQE_FIXED_FILE; /* of no meaning here, but the ring permits nothing without */
	io_uring_sqe_set_data(sqe, &tag_cancel);
	(void)io_uring_submit(&engine->ring);
}

static void uring_close_slot(struct dioh_io_engine *base, unsigned slot)
{
	struct uring_engine *engine = (struct uring_engine *)base;
	const uint64_t one = 1;
	int none = -1;
	int flags = engine->blocked[slot] ? fcntl(engine->fds[slot], F_GETFL) : -1;

	if (flags >= 0)
		(void)fcntl(engine->fds[slot], F_SETFL, flags | O_NONBLOCK);
	(void)io_uring_register_files_update(&engine->ring, slot, &none, 1);
	/*
	 * Before Linux 6.13 (commit 7029acd8a950) a file stays open until every request of the ring has ended that is older than
	 * its removal. One is always under way: it ends and is made anew.
	 */
	(void)!write(engine->fds[DIOH_SLOT_WAKE], &one, sizeof(one));
}

static void uring_close(struct dioh_io_engine *base)
{
	struct uring_engine *engine = (struct uring_engine *)base;

	if (!engine)
		return;
	io_uring_queue_exit(&engine->ring);
	free(engine);
}

const struct dioh_engine_ops dioh_engine_uring = {
	.id = DIOH_ENGINE_IO_URING,
	.probe = uring_probe,
	.open = uring_open,
	.start = uring_start,
	.queue = uring_queue,
	.submit = uring_submit,
	.run = uring_run,
	.cancel = uring_cancel,
	.close_slot = uring_close_slot,
	.close = uring_close,
};
