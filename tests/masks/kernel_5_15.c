/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * kernel_5_15.c - makes the kernel look like Linux 5.15 to a helper: linked to the helper's own objects, which are those
 * of the product, as diohelper-5.15. What a system call shows in its registers is refused by a filter; what stands in
 * memory is changed on the way: a flag that 5.15 had not becomes one that no kernel has, so the answer is the kernel's own.
 * Of that time's libcap-ng (0.7) it has that it needs /proc.
 *
 * With DIOH_MASK_SAYS in its environment it says on standard error what it has hidden, each once.
 */
/* LDFLAGS: -Wl,--wrap=statx,--wrap=syscall,--wrap=preadv64v2,--wrap=pwritev64v2,--wrap=preadv2,--wrap=pwritev2,--wrap=io_submit,--wrap=io_uring_queue_init_params,--wrap=io_uring_submit,--wrap=io_uring_submit_and_wait,--wrap=io_uring_submit_and_get_events,--wrap=capng_get_caps_process */
#include <errno.h>
#include <fcntl.h>
#include <libaio.h>
#include <liburing.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/landlock.h>
#include <linux/seccomp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/* What 5.15 had. */
#define SETUP_FLAGS 0x7fu       /* to IORING_SETUP_R_DISABLED */
#define RING_FEATURES 0x7ffu    /* to IORING_FEAT_RSRC_TAGS */
#define ENTER_FLAGS 0xfu        /* to IORING_ENTER_EXT_ARG */
#define REGISTER_LAST 19u       /* IORING_REGISTER_IOWQ_MAX_WORKERS */
#define SYSCALL_LAST 448u       /* process_mrelease; from 424 on all architectures have the same numbers */
#define RWF_KNOWN 0x1f          /* to RWF_APPEND */
#define LANDLOCK_FS_KNOWN ((UINT64_C(1) << 13) - 1)
#define STATX_KNOWN 0x1fffu     /* to STATX_MNT_ID */

#define RWF_OF_NO_KERNEL 0x40000000

enum hidden { HIDDEN_RING_FLAGS, HIDDEN_FIXED_CANCEL, HIDDEN_STATX, HIDDEN_LANDLOCK, HIDDEN_RWF, HIDDEN_COUNT };

static void say(enum hidden what)
{
	static const char *const texts[] = { "masked: flags of io_uring_setup\n",
		                             "masked: a cancel with FIXED_FILE\n", "masked: fields of statx\n",
		                             "masked: Landlock's ABI\n", "masked: flags of a read or write\n" };
	static atomic_bool said[HIDDEN_COUNT];

	if (getenv("DIOH_MASK_SAYS") && !atomic_exchange(&said[what], true))
		(void)!write(STDERR_FILENO, texts[what], strlen(texts[what]));
}

/* ---- what stands in registers ---- */

#define ARGUMENT(index) (offsetof(struct seccomp_data, args) + (index) * sizeof(uint64_t)) /* its lower half here */

static void __attribute__((constructor)) filter_calls(void)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, SYSCALL_LAST, 7, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_register, 0, 2),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, ARGUMENT(1)),
		BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, REGISTER_LAST, 5, 3),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_enter, 0, 2),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, ARGUMENT(3)),
		BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, ~ENTER_FLAGS, 2, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EINVAL),
	};
	const struct sock_fprog program = { sizeof(code) / sizeof(code[0]), code };

	/* EPERM: a test has taken such filters away; the rest is hidden all the same. */
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ||
	    (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) < 0 && errno != EPERM))
		_exit(99);
}

/* ---- io_uring ---- */

int __real_io_uring_queue_init_params(unsigned entries, struct io_uring *ring, struct io_uring_params *params);
int __wrap_io_uring_queue_init_params(unsigned entries, struct io_uring *ring, struct io_uring_params *params);
int __wrap_io_uring_queue_init_params(unsigned entries, struct io_uring *ring, struct io_uring_params *params)
{
	int r;

	if (params->flags & ~SETUP_FLAGS) {
		say(HIDDEN_RING_FLAGS);
		return -EINVAL;
	}
	r = __real_io_uring_queue_init_params(entries, ring, params);
	params->features &= RING_FEATURES;
	if (r == 0)
		ring->features &= RING_FEATURES;
	return r;
}

static int hide_rwf(int flags)
{
	if (!(flags & ~RWF_KNOWN))
		return flags;
	say(HIDDEN_RWF);
	return (flags & RWF_KNOWN) | RWF_OF_NO_KERNEL;
}

static void mask_queued(struct io_uring *ring)
{
	const struct io_uring_sq *sq = &ring->sq;

	for (unsigned i = sq->sqe_head; i != sq->sqe_tail; i++) {
		struct io_uring_sqe *sqe = &sq->sqes[i & *sq->kring_mask];

		if (sqe->opcode == IORING_OP_READV || sqe->opcode == IORING_OP_WRITEV)
			sqe->rw_flags = hide_rwf(sqe->rw_flags);
		if (sqe->opcode == IORING_OP_ASYNC_CANCEL && sqe->flags & IOSQE_FIXED_FILE) {
			say(HIDDEN_FIXED_CANCEL);
			sqe->off = 1; /* -EINVAL, as it was until 6.0 */
		}
	}
}

int __real_io_uring_submit(struct io_uring *ring);
int __wrap_io_uring_submit(struct io_uring *ring);
int __wrap_io_uring_submit(struct io_uring *ring)
{
	mask_queued(ring);
	return __real_io_uring_submit(ring);
}

int __real_io_uring_submit_and_wait(struct io_uring *ring, unsigned count);
int __wrap_io_uring_submit_and_wait(struct io_uring *ring, unsigned count);
int __wrap_io_uring_submit_and_wait(struct io_uring *ring, unsigned count)
{
	mask_queued(ring);
	return __real_io_uring_submit_and_wait(ring, count);
}

int __real_io_uring_submit_and_get_events(struct io_uring *ring);
int __wrap_io_uring_submit_and_get_events(struct io_uring *ring);
int __wrap_io_uring_submit_and_get_events(struct io_uring *ring)
{
	mask_queued(ring);
	return __real_io_uring_submit_and_get_events(ring);
}

/* ---- libcap-ng ---- */

int __real_capng_get_caps_process(void);
int __wrap_capng_get_caps_process(void);
int __wrap_capng_get_caps_process(void)
{
	const int fd = open("/proc/self/status", O_RDONLY | O_CLOEXEC); /* the bounding set is in it */

	if (fd < 0)
		return -1;
	close(fd);
	return __real_capng_get_caps_process();
}

/* ---- libaio, and plain reads and writes ---- */

int __real_io_submit(io_context_t context, long count, struct iocb **iocbs);
int __wrap_io_submit(io_context_t context, long count, struct iocb **iocbs);
int __wrap_io_submit(io_context_t context, long count, struct iocb **iocbs)
{
	for (long i = 0; i < count; i++)
		iocbs[i]->aio_rw_flags = hide_rwf(iocbs[i]->aio_rw_flags);
	return __real_io_submit(context, count, iocbs);
}

#define WRAP_RW(name)                                                                               \
	ssize_t __real_##name(int fd, const struct iovec *iov, int count, off_t offset, int flags); \
	ssize_t __wrap_##name(int fd, const struct iovec *iov, int count, off_t offset, int flags); \
	ssize_t __wrap_##name(int fd, const struct iovec *iov, int count, off_t offset, int flags)  \
	{                                                                                           \
		return __real_##name(fd, iov, count, offset, hide_rwf(flags));                      \
	}

WRAP_RW(preadv2)
WRAP_RW(pwritev2)
WRAP_RW(preadv64v2)
WRAP_RW(pwritev64v2)

/* ---- statx, Landlock ---- */

int __real_statx(int fd, const char *path, int flags, unsigned mask, struct statx *stx);
int __wrap_statx(int fd, const char *path, int flags, unsigned mask, struct statx *stx);
int __wrap_statx(int fd, const char *path, int flags, unsigned mask, struct statx *stx)
{
	const size_t known_bytes = offsetof(struct statx, stx_mnt_id) + sizeof(stx->stx_mnt_id);
	int r = __real_statx(fd, path, flags, mask, stx);

	if (r < 0)
		return r;
	if (stx->stx_mask & ~STATX_KNOWN)
		say(HIDDEN_STATX);
	stx->stx_mask &= STATX_KNOWN;
	memset((char *)stx + known_bytes, 0, sizeof(*stx) - known_bytes);
	return 0;
}

static long landlock_create_ruleset(const uint64_t *attr, size_t size, unsigned flags)
{
	if (flags & LANDLOCK_CREATE_RULESET_VERSION) {
		say(HIDDEN_LANDLOCK);
		return 1;
	}
	for (size_t i = 1; i < size / sizeof(*attr); i++) {
		if (attr[i]) {
			errno = E2BIG;
			return -1;
		}
	}
	if (attr && attr[0] & ~LANDLOCK_FS_KNOWN) {
		errno = EINVAL;
		return -1;
	}
	return 0;
}

long __real_syscall(long number, ...);
long __wrap_syscall(long number, ...);
long __wrap_syscall(long number, ...)
{
	long a[6];
	va_list list;

	va_start(list, number);
	for (unsigned i = 0; i < 6; i++)
		a[i] = va_arg(list, long);
	va_end(list);
	if (number == SYS_landlock_create_ruleset) {
		long r = landlock_create_ruleset((const uint64_t *)a[0], (size_t)a[1], (unsigned)a[2]);

		if (r != 0)
			return r;
	}
	return __real_syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
