/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * seccomp.c - the system calls that are left from the seal on, each with its reason. Three answers for all others: what
 * only an attacker wants kills the process; what the C library may try and can do without gets ENOSYS; anything else is a
 * call that nobody has thought of, most likely a newer C library's: it is named on standard error and the process ends, so
 * that no save is lost without a word. docs/security.md has the table; a test compares the two.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <seccomp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "sandbox.h"

#define LIVES (DIOH_SANDBOX_SERVE | DIOH_SANDBOX_DROP_IN)
#define ENGINES (DIOH_SANDBOX_URING | DIOH_SANDBOX_LIBAIO | DIOH_SANDBOX_SYNC)
#define POLLED (DIOH_SANDBOX_LIBAIO | DIOH_SANDBOX_SYNC)
#define ALL (LIVES | ENGINES)

struct allowed {
	const char *name;
	uint32_t profiles; /* needed by one of these lives and one of these engines */
	const char *who;
	const char *why;
	unsigned argument;   /* looked at if `mask` is set: (argument & mask) == value */
	uint64_t mask;
	uint64_t value;
};

#define FOR(name_, profiles_, who_, why_) { .name = name_, .profiles = profiles_, .who = who_, .why = why_ }
#define IF(name_, profiles_, argument_, mask_, value_, who_, why_)                                                   \
	{ .name = name_, .profiles = profiles_, .who = who_, .why = why_, .argument = argument_, .mask = mask_,      \
	  .value = value_ }

#define WHOLE UINT32_MAX /* an int's bits: the kernel ignores what stands above */

static const struct allowed allowed[] = {
	/* The control connection, and being woken. */
	FOR("recvmsg", DIOH_SANDBOX_SERVE | ENGINES, "channel.c", "requests"),
	FOR("sendmsg", DIOH_SANDBOX_SERVE | ENGINES, "channel.c", "replies and events"),
	IF("ioctl", DIOH_SANDBOX_SERVE | ENGINES, 1, WHOLE, TIOCOUTQ, "session_out.c", "has the manager read all? (SIOCOUTQ)"),
	FOR("poll", ALL, "session.c", "waiting for the manager, a stream's setup, mailboxes"),
	FOR("ppoll", ALL, "stream_port.c", "pauses; what poll does, where the C library has it so"),
	FOR("read", ALL, "mailbox.c, qemu_source.c", "mailboxes, streams"),
	FOR("write", ALL, "mailbox.c, main.c", "mailboxes, messages on standard error"),
	FOR("futex", ALL, "the C library", "locks, joining threads"),
	/* The image's header path. */
	FOR("pread64", ALL, "image.c", "tables, heads and tails"),
	FOR("pwrite64", ALL, "image.c", "tables, heads and tails"),
	FOR("ftruncate", ALL, "image.c", "the image's size"),
	FOR("fallocate", ALL, "image.c, memory.c", "punching holes; room ahead of direct writes"),
	FOR("fsync", ALL, "image.c", "durability"),
	FOR("fdatasync", ALL, "image.c", "durability"),
	FOR("fstat", ALL, "image.c, memory.c", "sizes now"),
	FOR("newfstatat", ALL, "image.c, memory.c", "fstat, where the C library has it so"),
	FOR("statx", DIOH_SANDBOX_SERVE | ENGINES, "memory.c", "a memory's size, without asking a server for it"),
	FOR("fstatfs", ALL, "image.c", "room left for the preflight"),
	FOR("lseek", ALL, "memory.c, image.c", "finding data and holes; how long a file may become"),
	FOR("close", ALL, "stream_port.c", "a stream's end"),
	IF("fcntl", ALL, 1, WHOLE, F_GETFL, "image.c, dropin.c", "heads and tails of a lone O_DIRECT descriptor"),
	IF("fcntl", ALL, 1, WHOLE, F_SETFL, "image.c, dropin.c", "the same"),
	FOR("sync_file_range", ALL, "writeback.c, image.c", "writing behind; whether a write was lost"),
	FOR("fadvise64", ALL, "writeback.c, image.c", "dropping what has been moved from the page cache"),
	/* Memory: the guest's in windows, and our own. Never executable. */
	IF("mmap", ALL, 2, PROT_EXEC, 0, "memory.c", "windows; buffers"),
	FOR("munmap", ALL, "memory.c", "windows; buffers"),
	FOR("mremap", ALL, "the C library", "realloc"),
	FOR("brk", ALL, "the C library", "malloc"),
	FOR("madvise", ALL, "payload_stream.c, the C library", "huge pages for buffers, freeing a thread's stack"),
	IF("mprotect", ALL, 2, PROT_EXEC, 0, "the C library", "growing the heap of a thread"),
	/* The engine that runs. */
	FOR("io_uring_enter", LIVES | DIOH_SANDBOX_URING, "engine_uring.c", "page I/O"),
	IF("io_uring_register", LIVES | DIOH_SANDBOX_URING, 1, WHOLE, IORING_REGISTER_FILES_UPDATE, "engine_uring.c",
	   "letting go of a stream or the image"),
	FOR("preadv2", LIVES | DIOH_SANDBOX_SYNC, "engine_sync.c", "page I/O"),
	FOR("pwritev2", LIVES | DIOH_SANDBOX_SYNC, "engine_sync.c", "page I/O"),
	FOR("io_submit", LIVES | DIOH_SANDBOX_LIBAIO, "engine_libaio.c", "page I/O"),
	FOR("io_getevents", LIVES | DIOH_SANDBOX_LIBAIO, "engine_libaio.c", "page I/O"),
	FOR("io_destroy", LIVES | DIOH_SANDBOX_LIBAIO, "engine_libaio.c", "letting go of the image"),
	FOR("readv", LIVES | POLLED, "engine_polled.c", "streams"),
	FOR("writev", LIVES | POLLED, "engine_polled.c", "streams"),
	/* Ends and signals. */
	FOR("rt_sigreturn", ALL, "guard.c, dropin.c", "memory that is gone, SIGTERM"),
	FOR("rt_sigprocmask", ALL, "the C library", "the end of a thread"),
	FOR("restart_syscall", ALL, "the kernel", "a wait that was stopped and continued"),
	FOR("exit", ALL, "the C library", "the end of a thread"),
	FOR("exit_group", ALL, "main.c", "the end"),
	FOR("clock_gettime", ALL, "clock.h", "where the kernel's own page has no clock"),
};

/* Nothing here has any business with these: whoever calls them has taken us over. */
static const char *const deadly[] = {
	"execve", "execveat", "ptrace", "process_vm_readv", "process_vm_writev", "socket", "socketpair", "connect", "bind",
	"mount", "umount2", "pivot_root", "chroot", "unshare", "setns", "setuid", "setgid", "setreuid", "setregid",
	"setresuid", "setresgid", "setfsuid", "setfsgid", "setgroups", "capset", "init_module", "finit_module", "bpf",
	"kexec_load", "keyctl", "add_key", "perf_event_open", "userfaultfd", "open_by_handle_at", "memfd_create",
	"pidfd_getfd", "fork", "vfork",
};

/* The C library can do without. */
static const char *const absent[] = {
	"clone3", "rseq", "set_robust_list", "getrandom", "membarrier", "sched_getaffinity", "sysinfo", "prctl", "getrusage",
};

/* ---- what is none of these ---- */

#define SENTENCE_START "helper: system call "
#define SENTENCE_END " is not permitted behind the seal: please report it, with the C library's version"

/* The manager's last message, made beforehand but for the number. */
static struct {
	int fd; /* -1: there is no manager */
	struct dioh_msg_header header;
	struct dioh_msg_error error;
} last_words;

static char *append(char *to, const char *text)
{
	while (*text)
		*to++ = *text++;
	return to;
}

static char *append_number(char *to, unsigned number)
{
	if (number >= 10)
		to = append_number(to, number / 10);
	*to++ = (char)('0' + number % 10);
	return to;
}

static void send_last_words(void)
{
	struct iovec parts[] = { { &last_words.header, sizeof(last_words.header) },
		                 { &last_words.error, sizeof(last_words.error) } };
	const struct msghdr message = { .msg_iov = parts, .msg_iovlen = 2 };

	if (last_words.fd >= 0)
		(void)!sendmsg(last_words.fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
}

/* In a signal handler, behind the filter: formatted by hand. */
static void on_sigsys(int signal_number, siginfo_t *info, void *context)
{
	char *end = last_words.error.text + sizeof(SENTENCE_START) - 1;

	(void)signal_number;
	(void)context;
	end = append(append_number(end, (unsigned)info->si_syscall), SENTENCE_END);
	send_last_words();
	*end++ = '\n';
	(void)!write(STDERR_FILENO, last_words.error.text, (size_t)(end - last_words.error.text));
	_exit(EXIT_FAILURE);
}

static void prepare_last_words(int control_fd)
{
	struct dioh_error err;

	last_words.fd = control_fd;
	last_words.header.type = DIOH_MSG_BROKEN;
	last_words.header.size = sizeof(last_words.error);
	dioh_error_set(&err, ENOSYS, DIOH_PLACE(SEAL, SESSION, 0, DIOH_OFFSET_NONE), SENTENCE_START);
	dioh_error_encode(&err, &last_words.error);
}

static void install_handler(void)
{
	struct sigaction action = { .sa_sigaction = on_sigsys, .sa_flags = SA_SIGINFO };

	sigfillset(&action.sa_mask);
	sigaction(SIGSYS, &action, NULL);
}

/* ---- the filter ---- */

uint32_t dioh_sandbox_engine(uint32_t engine)
{
	return engine == DIOH_ENGINE_IO_URING ? DIOH_SANDBOX_URING
	       : engine == DIOH_ENGINE_LIBAIO ? DIOH_SANDBOX_LIBAIO
	                                      : DIOH_SANDBOX_SYNC;
}

static bool applies(const struct allowed *rule, uint32_t profile)
{
	return rule->profiles & profile & LIVES && rule->profiles & profile & ENGINES;
}

static int add_allowed(scmp_filter_ctx filter, const struct allowed *rule)
{
	const int number = seccomp_syscall_resolve_name(rule->name);
	const struct scmp_arg_cmp compare = SCMP_CMP64(rule->argument, SCMP_CMP_MASKED_EQ, rule->mask, rule->value);

	if (number < 0) /* this architecture has none of that name */
		return 0;
	return seccomp_rule_add_array(filter, SCMP_ACT_ALLOW, number, rule->mask ? 1 : 0, &compare);
}

static int add_all(scmp_filter_ctx filter, uint32_t action, const char *const *names, size_t count)
{
	int r = 0;

	for (size_t i = 0; i < count && r == 0; i++) {
		const int number = seccomp_syscall_resolve_name(names[i]);

		if (number >= 0)
			r = seccomp_rule_add(filter, action, number, 0);
	}
	return r;
}

static int add_refused(scmp_filter_ctx filter)
{
	int r = 0;

	if (!DIOH_SANDBOX_WATCHED)
		r = add_all(filter, SCMP_ACT_ERRNO(ENOSYS), absent, sizeof(absent) / sizeof(absent[0]));
	/* LeakSanitizer starts a process that traces this one. */
	for (size_t i = 0; i < sizeof(deadly) / sizeof(deadly[0]) && r == 0; i++)
		if (!DIOH_SANDBOX_WATCHED || strcmp(deadly[i], "ptrace") != 0)
			r = add_all(filter, SCMP_ACT_KILL_PROCESS, &deadly[i], 1);
	return r;
}

static int fill(scmp_filter_ctx filter, uint32_t profile)
{
	int r = add_refused(filter);

	for (size_t i = 0; i < sizeof(allowed) / sizeof(allowed[0]) && r == 0 && !DIOH_SANDBOX_WATCHED; i++)
		if (applies(&allowed[i], profile))
			r = add_allowed(filter, &allowed[i]);
	return r;
}

bool dioh_sandbox_seccomp(uint32_t profile, int control_fd)
{
	scmp_filter_ctx filter = seccomp_init(DIOH_SANDBOX_WATCHED ? SCMP_ACT_ALLOW : SCMP_ACT_TRAP);
	int r = filter ? 0 : -ENOMEM;

	if (r == 0)
		r = seccomp_attr_set(filter, SCMP_FLTATR_CTL_TSYNC, 1);
	if (r == 0) /* seal.c has set it */
		r = seccomp_attr_set(filter, SCMP_FLTATR_CTL_NNP, 0);
	if (r == 0) /* calls of another ABI (32 bits on x86_64) */
		r = seccomp_attr_set(filter, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);
	if (r == 0)
		r = fill(filter, profile);
	prepare_last_words(control_fd);
	install_handler();
	if (r == 0)
		r = seccomp_load(filter);
	seccomp_release(filter);
	return r == 0;
}

/* ---- for people ---- */

static void print_profiles(FILE *to, uint32_t profiles)
{
	static const char *const names[] = { "serve", "drop-in", "io_uring", "libaio", "sync" };

	for (unsigned i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (profiles >> i & 1)
			fprintf(to, " %s", names[i]);
}

void dioh_sandbox_print(FILE *to)
{
	for (size_t i = 0; i < sizeof(allowed) / sizeof(allowed[0]); i++) {
		fprintf(to, "%s:", allowed[i].name);
		print_profiles(to, allowed[i].profiles);
		fprintf(to, ": %s: %s\n", allowed[i].who, allowed[i].why);
	}
}
