/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * attacker.c - the helper, taken over: its own main, its own session or drop-in, its own seal; and then, behind the
 * last step of the seal, in the thread that $ATTACK_THREAD names, one attack. test_sandbox.c starts it and judges.
 *
 * $ATTACK_LAYERS (enum layer, hexadecimal) says which layers are left standing: what would raise the others is not
 * done, though the helper is told that it was. $ATTACK_LEAVE_OUT takes one rule out of a layer. The exit status tells:
 * ALLOWED, FAILED plus errno, 1 for what the system call filter trapped; a signal if it killed.
 */
/* LDFLAGS: -Wl,--wrap=dioh_sandbox_seccomp,--wrap=dioh_mailbox_handle,--wrap=dioh_worker_start,--wrap=capng_apply,--wrap=capng_change_id,--wrap=capng_have_capabilities,--wrap=prctl,--wrap=syscall,--wrap=seccomp_load,--wrap=seccomp_rule_add,--wrap=seccomp_rule_add_array */
int helper_main(int argc, char **argv);

#include <sys/mount.h> /* before linux/fs.h, for a glibc before 2.36 */

#define main helper_main
#include "main.c"
#undef main
#include "engine_uring.c"

#include <cap-ng.h>
#include <elf.h>
#include <grp.h>
#include <linux/bpf.h>
#include <linux/landlock.h>
#include <linux/openat2.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <seccomp.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "attacker.h"
#include "sandbox.h"
#include "worker.h"

#ifndef LANDLOCK_SCOPE_SIGNAL
#define LANDLOCK_SCOPE_SIGNAL (1u << 1)
#endif

static struct {
	unsigned layers;
	const char *attack;
	const char *leave_out;
	bool in_worker;
	pid_t manager;
	void *manager_address;
	const char *directory; /* with things to attack */
	unsigned port;
	int control_fd;
} plan;

static struct dioh_worker *worker;

/* ---- the attacks: each answers like a system call, negative with errno ---- */

static const char *in_directory(const char *name)
{
	static char path[256];

	snprintf(path, sizeof(path), "%s/%s", plan.directory, name);
	return path;
}

static int try_open(void)
{
	return open("/etc/passwd", O_RDONLY);
}

static int try_open_secret(void)
{
	return open(in_directory("secret"), O_RDONLY);
}

static int try_openat2(void)
{
	struct open_how how = { .flags = O_RDONLY };

	return (int)syscall(SYS_openat2, AT_FDCWD, "/etc/passwd", &how, sizeof(how));
}

static int try_o_path(void)
{
	return open("/etc/passwd", O_PATH);
}

static int try_stat(void)
{
	struct stat st;

	return (int)syscall(SYS_newfstatat, AT_FDCWD, "/etc/passwd", &st, 0);
}

static int try_own_memory(void)
{
	static const char constant[] = "constant";
	int fd = open("/proc/self/mem", O_RDWR);

	if (fd < 0)
		return -1;
	return pwrite(fd, "changed!", 8, (off_t)(uintptr_t)constant) == 8 ? 0 : -1;
}

static int try_inet(void)
{
	return socket(AF_INET, SOCK_STREAM, 0);
}

static int try_tcp(void)
{
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons((uint16_t)plan.port),
		                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	return fd < 0 ? -1 : connect(fd, (struct sockaddr *)&to, sizeof(to));
}

static int connect_unix(const struct sockaddr_un *to, socklen_t length)
{
	int fd = socket(AF_UNIX, SOCK_DGRAM, 0);

	return fd < 0 ? -1 : connect(fd, (const struct sockaddr *)to, length);
}

static int try_unix(void)
{
	struct sockaddr_un to = { .sun_family = AF_UNIX };

	snprintf(to.sun_path, sizeof(to.sun_path), "%.90s", in_directory("socket"));
	return connect_unix(&to, sizeof(to));
}

/* Its name is its directory's. */
static int try_abstract(void)
{
	struct sockaddr_un to = { .sun_family = AF_UNIX };

	snprintf(to.sun_path + 1, sizeof(to.sun_path) - 1, "%.90s", plan.directory);
	return connect_unix(&to, sizeof(to));
}

/* `script` exits by ALLOWED or FAILED + EPERM. */
static int run_shell(const char *path, const char *script)
{
	char *argv[] = { "sh", "-p", "-c", (char *)(uintptr_t)script, NULL };

	return execve(path, argv, NULL);
}

static int try_exec(void)
{
	return run_shell("/bin/sh", "exit 200");
}

static int try_exec_capabilities(void)
{
	return run_shell("/bin/sh", "while read -r k v; do case $k$v in CapEff:0000000000000000) exit 65;; CapEff:*) exit 200;; "
	                            "esac; done </proc/self/status");
}

static int try_exec_set_uid(void)
{
	return run_shell(in_directory("set-uid"), "while read -r k r e x; do case $k$e in Uid:" SET_UID_TEXT ") exit 200;; "
	                                          "Uid:*) exit 65;; esac; done </proc/self/status");
}

/* exit_group(ATTACK_ALLOWED), and no interpreter, which would have to be opened. */
static const struct {
	Elf64_Ehdr head;
	Elf64_Phdr segment;
	uint32_t code[3];
} tiny_program = {
	.head = {
		.e_ident = { ELFMAG0, ELFMAG1, ELFMAG2, ELFMAG3, ELFCLASS64, ELFDATA2LSB, EV_CURRENT },
		.e_type = ET_EXEC,
#ifdef __aarch64__
		.e_machine = EM_AARCH64,
#else
		.e_machine = EM_X86_64,
#endif
		.e_version = EV_CURRENT,
		.e_entry = 0x400000 + sizeof(Elf64_Ehdr) + sizeof(Elf64_Phdr),
		.e_phoff = sizeof(Elf64_Ehdr),
		.e_ehsize = sizeof(Elf64_Ehdr),
		.e_phentsize = sizeof(Elf64_Phdr),
		.e_phnum = 1,
	},
	.segment = {
		.p_type = PT_LOAD, .p_flags = PF_R | PF_X, .p_vaddr = 0x400000,
		.p_filesz = sizeof(tiny_program), .p_memsz = sizeof(tiny_program), .p_align = 0x1000,
	},
#ifdef __aarch64__
	.code = { 0xd2801900, 0xd2800bc8, 0xd4000001 }, /* mov x0, #200; mov x8, #94; svc #0 */
#else
	.code = { 0x0000c8bf, 0x00e7b800, 0x050f0000 }, /* mov $200, %edi; mov $231, %eax; syscall */
#endif
};

static int try_exec_memory(void)
{
	char *none[] = { NULL };
	int fd = memfd_create("program", 0);

	if (fd < 0 || write(fd, &tiny_program, sizeof(tiny_program)) != sizeof(tiny_program))
		return -1;
	return (int)syscall(SYS_execveat, fd, "", none, none, AT_EMPTY_PATH);
}

static int try_trace_me(void)
{
	return (int)ptrace(PTRACE_TRACEME, 0, NULL, NULL);
}

static int try_trace(void)
{
	return (int)ptrace(PTRACE_SEIZE, plan.manager, NULL, NULL);
}

static int try_kill(void)
{
	return kill(plan.manager, SIGURG); /* which does nothing */
}

static int try_setuid(void)
{
	return (int)syscall(SYS_setuid, 0); /* the C library would have the other threads do it too */
}

static int try_ring_setup(void)
{
	struct io_uring_params params = { 0 };

	return (int)syscall(SYS_io_uring_setup, 4, &params);
}

static struct io_uring *ring(void)
{
	return &((struct uring_engine *)worker->engine)->ring;
}

static int try_ring_register(void)
{
	return (int)syscall(SYS_io_uring_register, ring()->ring_fd, IORING_REGISTER_PERSONALITY, NULL, 0);
}

/* What is held already may be put into the table: nothing is won by that. */
static int try_ring_update(void)
{
	int fd = STDERR_FILENO;
	struct io_uring_files_update update = { .offset = DIOH_SLOTS_MAX - 1, .fds = (uintptr_t)&fd };

	return (int)syscall(SYS_io_uring_register, ring()->ring_fd, IORING_REGISTER_FILES_UPDATE, &update, 1);
}

static int through_ring(struct io_uring_sqe *sqe)
{
	static char tag;
	struct io_uring_cqe *cqe;
	int r;

	io_uring_sqe_set_data(sqe, &tag);
	do {
		r = io_uring_submit_and_wait(ring(), 1);
		while (r >= 0 && io_uring_peek_cqe(ring(), &cqe) == 0) {
			const bool ours = io_uring_cqe_get_data(cqe) == &tag;
			const int result = cqe->res;

			io_uring_cqe_seen(ring(), cqe);
			if (!ours)
				continue;
			errno = result < 0 ? -result : 0;
			return result;
		}
	} while (r >= 0);
	errno = -r;
	return r;
}

static int try_ring_raw(void)
{
	static _Alignas(4096) char buffer[4096];
	struct io_uring_sqe *sqe = io_uring_get_sqe(ring());

	io_uring_prep_read(sqe, worker->config.slots.fds[DIOH_SLOT_PAGE], buffer, sizeof(buffer), 0);
	return through_ring(sqe);
}

static int try_ring_open(void)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(ring());

	io_uring_prep_openat(sqe, AT_FDCWD, "/etc/passwd", O_RDONLY, 0);
	return through_ring(sqe);
}

static int try_ring_socket(void)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(ring());

	io_uring_prep_rw(IORING_OP_SOCKET, sqe, AF_INET, NULL, 0, SOCK_STREAM);
	return through_ring(sqe);
}

static int try_mount(void)
{
	const char *where = in_directory("mount");
	int r = mount("none", where, "tmpfs", 0, NULL);

	if (r == 0)
		umount2(where, MNT_DETACH);
	return r;
}

static int try_unshare(void)
{
	return unshare(CLONE_NEWNS);
}

static int try_read_manager(void)
{
	char byte;
	struct iovec here = { &byte, 1 }, there = { plan.manager_address, 1 };

	return process_vm_readv(plan.manager, &here, 1, &there, 1, 0) == 1 ? 0 : -1;
}

static int try_fork(void)
{
	pid_t pid = fork();

	if (pid == 0)
		_exit(0);
	return pid < 0 ? -1 : waitpid(pid, NULL, 0) == pid ? 0 : -1;
}

static int try_mprotect(void)
{
	void *map = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	return map == MAP_FAILED ? -1 : mprotect(map, 4096, PROT_READ | PROT_EXEC);
}

static int try_mmap(void)
{
	return mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED ? -1 : 0;
}

/* The manager has sent one, which lies behind a message or two. */
static int try_receive(void)
{
	for (;;) {
		union {
			struct cmsghdr align;
			char bytes[CMSG_SPACE(sizeof(int))];
		} control;
		char bytes[512];
		struct iovec iov = { bytes, sizeof(bytes) };
		struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control,
			                  .msg_controllen = sizeof(control) };

		if (recvmsg(plan.control_fd, &message, 0) < 0)
			return -1;
		if (CMSG_FIRSTHDR(&message) && CMSG_FIRSTHDR(&message)->cmsg_type == SCM_RIGHTS)
			return 0;
	}
}

static int try_chmod(void)
{
	return chmod(in_directory("secret"), 0600);
}

static int try_bpf(void)
{
	union bpf_attr attr = { .map_type = BPF_MAP_TYPE_LPM_TRIE, .key_size = 8, .value_size = 8, .max_entries = 1,
		                .map_flags = BPF_F_NO_PREALLOC };

	return (int)syscall(SYS_bpf, BPF_MAP_CREATE, &attr, sizeof(attr));
}

static const struct {
	const char *name;
	int (*attack)(void);
} attacks[] = {
	{ "open", try_open },
	{ "open a secret", try_open_secret },
	{ "openat2", try_openat2 },
	{ "open O_PATH", try_o_path },
	{ "stat", try_stat },
	{ "write /proc/self/mem", try_own_memory },
	{ "socket AF_INET", try_inet },
	{ "connect TCP", try_tcp },
	{ "connect unix path", try_unix },
	{ "connect abstract", try_abstract },
	{ "execve", try_exec },
	{ "execve for capabilities", try_exec_capabilities },
	{ "execve set-uid", try_exec_set_uid },
	{ "memfd + execveat", try_exec_memory },
	{ "ptrace TRACEME", try_trace_me },
	{ "ptrace the manager", try_trace },
	{ "kill the manager", try_kill },
	{ "read manager's memory", try_read_manager },
	{ "setuid(0)", try_setuid },
	{ "io_uring_setup", try_ring_setup },
	{ "ring: register", try_ring_register },
	{ "ring: update files", try_ring_update },
	{ "ring: raw descriptor", try_ring_raw },
	{ "ring: OPENAT", try_ring_open },
	{ "ring: SOCKET", try_ring_socket },
	{ "mount", try_mount },
	{ "unshare", try_unshare },
	{ "fork", try_fork },
	{ "mprotect PROT_EXEC", try_mprotect },
	{ "mmap PROT_EXEC", try_mmap },
	{ "receive a descriptor", try_receive },
	{ "chmod", try_chmod },
	{ "bpf", try_bpf },
};

static _Noreturn void attack(void)
{
	for (size_t i = 0; i < sizeof(attacks) / sizeof(attacks[0]); i++)
		if (strcmp(attacks[i].name, plan.attack) == 0)
			_exit(attacks[i].attack() < 0 ? ATTACK_FAILED + errno : ATTACK_ALLOWED);
	_exit(ATTACK_UNKNOWN);
}

/* ---- where it starts: behind the last step of the seal ---- */

static atomic_bool go;

bool __real_dioh_sandbox_seccomp(uint32_t profile);
bool __wrap_dioh_sandbox_seccomp(uint32_t profile);
void __real_dioh_mailbox_handle(struct dioh_mailbox *mailbox);
void __wrap_dioh_mailbox_handle(struct dioh_mailbox *mailbox);
int __real_dioh_worker_start(struct dioh_worker *which, pthread_barrier_t *barrier, struct dioh_error *err);
int __wrap_dioh_worker_start(struct dioh_worker *which, pthread_barrier_t *barrier, struct dioh_error *err);

int __wrap_dioh_worker_start(struct dioh_worker *which, pthread_barrier_t *barrier, struct dioh_error *err)
{
	worker = which;
	return __real_dioh_worker_start(which, barrier, err);
}

bool __wrap_dioh_sandbox_seccomp(uint32_t profile)
{
	(void)__real_dioh_sandbox_seccomp(profile);
	if (!worker || worker->engine->ops != &dioh_engine_uring)
		_exit(ATTACK_NO_RING);
	if (!plan.in_worker)
		attack();
	atomic_store(&go, true);
	dioh_mailbox_wake(&worker->mailbox);
	for (;;)
		poll(NULL, 0, -1);
}

void __wrap_dioh_mailbox_handle(struct dioh_mailbox *mailbox)
{
	if (worker && mailbox == &worker->mailbox && atomic_load(&go))
		attack();
	__real_dioh_mailbox_handle(mailbox);
}

/* ---- layers that are left out ---- */

int __real_capng_apply(capng_select_t set);
int __wrap_capng_apply(capng_select_t set);
int __real_capng_change_id(int uid, int gid, capng_flags_t flag);
int __wrap_capng_change_id(int uid, int gid, capng_flags_t flag);
capng_results_t __real_capng_have_capabilities(capng_select_t set);
capng_results_t __wrap_capng_have_capabilities(capng_select_t set);
int __real_prctl(int option, unsigned long a, unsigned long b, unsigned long c, unsigned long d);
int __wrap_prctl(int option, unsigned long a, unsigned long b, unsigned long c, unsigned long d);
int __real_seccomp_load(const scmp_filter_ctx filter);
int __wrap_seccomp_load(const scmp_filter_ctx filter);

int __wrap_capng_apply(capng_select_t set)
{
	return plan.layers & LAYER_CAPABILITIES ? __real_capng_apply(set) : 0;
}

/* Which takes the capabilities of who was root with it, as the kernel has it. */
int __wrap_capng_change_id(int uid, int gid, capng_flags_t flag)
{
	if (plan.layers & LAYER_CAPABILITIES)
		return __real_capng_change_id(uid, gid, flag);
	if (setgroups(0, NULL) < 0 || setresgid((gid_t)gid, (gid_t)gid, (gid_t)gid) < 0)
		return -1;
	return setresuid((uid_t)uid, (uid_t)uid, (uid_t)uid);
}

capng_results_t __wrap_capng_have_capabilities(capng_select_t set)
{
	return plan.layers & LAYER_CAPABILITIES ? __real_capng_have_capabilities(set) : CAPNG_NONE;
}

int __wrap_prctl(int option, unsigned long a, unsigned long b, unsigned long c, unsigned long d)
{
	if ((option == PR_SET_NO_NEW_PRIVS && !(plan.layers & LAYER_NO_NEW_PRIVS)) ||
	    (option == PR_SET_SECUREBITS && !(plan.layers & LAYER_SECUREBITS)) ||
	    (option == PR_SET_DUMPABLE && plan.layers != LAYER_ALL))
		return 0;
	return __real_prctl(option, a, b, c, d);
}

int __wrap_seccomp_load(const scmp_filter_ctx filter)
{
	return plan.layers & LAYER_SECCOMP ? __real_seccomp_load(filter) : -EPERM;
}

/* ---- rules that are left out ---- */

long __real_syscall(long number, long a, long b, long c, long d, long e, long f);
long __wrap_syscall(long number, long a, long b, long c, long d, long e, long f);
int __real_seccomp_rule_add(scmp_filter_ctx filter, uint32_t action, int number, unsigned count, ...);
int __wrap_seccomp_rule_add(scmp_filter_ctx filter, uint32_t action, int number, unsigned count, ...);
int __real_seccomp_rule_add_array(scmp_filter_ctx filter, uint32_t action, int number, unsigned count,
                                  const struct scmp_arg_cmp *arguments);
int __wrap_seccomp_rule_add_array(scmp_filter_ctx filter, uint32_t action, int number, unsigned count,
                                  const struct scmp_arg_cmp *arguments);

static bool leaves_out(const char *rule)
{
	return strcmp(plan.leave_out, rule) == 0;
}

int __wrap_seccomp_rule_add(scmp_filter_ctx filter, uint32_t action, int number, unsigned count, ...)
{
	return number == SCMP_SYS(setuid) && leaves_out("seccomp: setuid") ? 0 :
	       __real_seccomp_rule_add(filter, action, number, count);
}

int __wrap_seccomp_rule_add_array(scmp_filter_ctx filter, uint32_t action, int number, unsigned count,
                                  const struct scmp_arg_cmp *arguments)
{
	if (number == SCMP_SYS(mprotect) && leaves_out("seccomp: mprotect's argument"))
		count = 0;
	return __real_seccomp_rule_add_array(filter, action, number, count, arguments);
}

static long restrict_less(long ring_fd, const struct io_uring_restriction *rules, long count)
{
	struct io_uring_restriction fewer[32];
	long n = 0;

	for (long i = 0; i < count; i++)
		if (rules[i].opcode != IORING_RESTRICTION_SQE_FLAGS_REQUIRED || !leaves_out("ring: attached files only"))
			fewer[n++] = rules[i];
	if (leaves_out("ring: no registering"))
		fewer[n++] = (struct io_uring_restriction){ .opcode = IORING_RESTRICTION_REGISTER_OP,
			                                    .register_op = IORING_REGISTER_PERSONALITY };
	return __real_syscall(SYS_io_uring_register, ring_fd, IORING_REGISTER_RESTRICTIONS, (long)fewer, n, 0, 0);
}

/* struct landlock_ruleset_attr of the newest kernels. */
struct ruleset {
	uint64_t fs, net, scoped;
};

static long handle_less(const struct ruleset *full, long bytes, long flags)
{
	struct ruleset attr = { 0 };

	memcpy(&attr, full, (size_t)bytes);
	if (leaves_out("landlock: signals"))
		attr.scoped &= ~(uint64_t)LANDLOCK_SCOPE_SIGNAL;
	if (leaves_out("landlock: reading"))
		attr.fs &= ~(uint64_t)LANDLOCK_ACCESS_FS_READ_FILE;
	return __real_syscall(SYS_landlock_create_ruleset, (long)&attr, bytes, flags, 0, 0, 0);
}

long __wrap_syscall(long number, long a, long b, long c, long d, long e, long f)
{
	if (number == SYS_landlock_create_ruleset && !(plan.layers & LAYER_LANDLOCK)) {
		errno = ENOSYS;
		return -1;
	}
	if (number == SYS_landlock_create_ruleset && a)
		return handle_less((const struct ruleset *)a, b, c);
	if (number == SYS_io_uring_register && b == IORING_REGISTER_RESTRICTIONS) {
		if (plan.layers & LAYER_RING)
			return restrict_less(a, (const struct io_uring_restriction *)c, d);
		errno = EINVAL;
		return -1;
	}
	return __real_syscall(number, a, b, c, d, e, f);
}

/* ---- the life ---- */

static const char *get(const char *name)
{
	const char *value = getenv(name);

	return value ? value : "";
}

int main(int argc, char **argv)
{
	int fd = -1;

	plan.layers = (unsigned)strtoul(get(ATTACK_LAYERS), NULL, 16);
	plan.attack = get(ATTACK_NAME);
	plan.leave_out = get(ATTACK_LEAVE_OUT);
	plan.in_worker = strcmp(get(ATTACK_THREAD), "worker") == 0;
	plan.directory = get(ATTACK_DIRECTORY);
	plan.port = (unsigned)strtoul(get(ATTACK_PORT), NULL, 10);
	plan.manager_address = (void *)(uintptr_t)strtoull(get(ATTACK_ADDRESS), NULL, 16);
	plan.manager = getppid();
	for (int i = 1; i < argc; i++)
		(void)sscanf(argv[i], "--fd=%d", &fd);
	plan.control_fd = fd >= 0 ? fd : STDOUT_FILENO;
	return helper_main(argc, argv);
}
