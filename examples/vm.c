/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * vm.c - starts and ends QEMU. See vm.h.
 *
 * QEMU opens the memory by the name /proc/self/fd/N of a descriptor it inherits. It must be a memory-backend-file:
 * newer QEMU leaves only shared memory that has a file's name out of a migration (x-ignore-shared), not that of
 * memory-backend-memfd. Its monitor is one end of a socket pair, so nobody else can reach it.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "vm.h"

#define ARGUMENTS_MAX 40

/* QEMU's command line while it grows; each word is allocated. */
struct arguments {
	char *words[ARGUMENTS_MAX + 1];
	unsigned int count;
	bool failed;
};

int hv_memory_create(int *ret_fd, struct dioh_error *err)
{
	int fd = memfd_create("guest-memory", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	if (fd < 0)
		return hv_fail(err, errno, "a memfd for the guest's memory cannot be made: %m");
	*ret_fd = fd;
	return 0;
}

int hv_memory_size(int fd, uint64_t bytes, struct dioh_error *err)
{
	if (ftruncate(fd, (off_t)bytes) || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL))
		return hv_fail(err, errno, "the guest's memory cannot be given its size: %m");
	return 0;
}

/* ---- the command line ------------------------------------------------------------------------------------------ */

__attribute__((format(printf, 2, 3)))
static void add(struct arguments *arguments, const char *format, ...)
{
	va_list list;
	int n = -1;

	va_start(list, format);
	if (arguments->count < ARGUMENTS_MAX)
		n = vasprintf(&arguments->words[arguments->count], format, list);
	va_end(list);
	if (n < 0)
		arguments->failed = true;
	else
		arguments->words[++arguments->count] = NULL;
}

/* "option key=path,rest": QEMU wants commas in a value doubled. */
static void add_path(struct arguments *arguments, const char *before, const char *path, const char *rest)
{
	char *escaped = calloc(2, strlen(path) + 1), *to = escaped;

	if (!escaped) {
		arguments->failed = true;
		return;
	}
	for (; *path; path++) {
		if (*path == ',')
			*to++ = ',';
		*to++ = *path;
	}
	add(arguments, "%s%s%s", before, escaped, rest);
	free(escaped);
}

static void free_arguments(struct arguments *arguments)
{
	while (arguments->count > 0)
		free(arguments->words[--arguments->count]);
}

static void build_arguments(struct arguments *a, const struct hv_vm *vm, const struct hv_vm_options *options,
                            bool incoming, int monitor_fd)
{
	unsigned long long bytes = vm->machine.memory_bytes;

	add(a, "%s", options->qemu);
	add(a, "-nodefaults");
	add(a, "-no-user-config");
	add(a, "-S");
	add(a, "-display");
	add(a, "none");
	add(a, "-accel");
	add(a, "%s", vm->machine.accel);
	add(a, "-machine");
	add(a, "%s,memory-backend=" HV_MEMORY_NAME, vm->machine.type);
	add(a, "-m");
	add(a, "%lluM", bytes >> 20);
	add(a, "-object");
	if (vm->memory_fd >= 0)
		add(a, "memory-backend-file,id=" HV_MEMORY_NAME ",size=%llu,mem-path=/proc/self/fd/%d,share=on", bytes,
		    vm->memory_fd);
	else
		add(a, "memory-backend-ram,id=" HV_MEMORY_NAME ",size=%llu", bytes);
	/* The image holds no disk: a guest that wrote to it after a save would find it changed after the restore. */
	add(a, "-drive");
	add_path(a, "if=virtio,format=raw,readonly=on,file=", options->disk, "");
	add(a, "-chardev");
	add_path(a, "file,id=serial,append=on,path=", options->serial, "");
	add(a, "-serial");
	add(a, "chardev:serial");
	add(a, "-chardev");
	add(a, "socket,id=monitor,fd=%d", monitor_fd);
	add(a, "-mon");
	add(a, "chardev=monitor,mode=control");
	if (incoming) {
		add(a, "-incoming");
		add(a, "defer");
	}
}

/* ---- the process ----------------------------------------------------------------------------------------------- */

static void keep_open(int fd)
{
	(void)fcntl(fd, F_SETFD, 0);
}

/*
 * In the child. QEMU gets a session of its own, so that Ctrl-C at a terminal reaches us only, and dies with us: nobody
 * else could reach its monitor.
 */
__attribute__((noreturn))
static void become_qemu(const struct hv_vm *vm, char **words, int monitor_fd, pid_t parent)
{
	int null_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
	sigset_t none;

	(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(1);
	(void)setsid();
	(void)dup2(null_fd, STDIN_FILENO);
	(void)signal(SIGPIPE, SIG_DFL);
	sigemptyset(&none);
	(void)sigprocmask(SIG_SETMASK, &none, NULL);
	if (vm->memory_fd >= 0)
		keep_open(vm->memory_fd);
	keep_open(monitor_fd);
	(void)execvp(words[0], words);
	(void)dprintf(STDERR_FILENO, "dioh-hypervisor: %s: %m\n", words[0]);
	_exit(127);
}

static int spawn(struct hv_vm *vm, const struct hv_vm_options *options, bool incoming, int monitor_fd,
                 struct dioh_error *err)
{
	struct arguments arguments = { .count = 0 };
	pid_t parent = getpid();
	int rc = 0;

	build_arguments(&arguments, vm, options, incoming, monitor_fd);
	if (arguments.failed) {
		rc = hv_fail(err, ENOMEM, "no memory for QEMU's command line");
	} else {
		vm->pid = fork();
		if (vm->pid == 0)
			become_qemu(vm, arguments.words, monitor_fd, parent);
		if (vm->pid < 0)
			rc = hv_fail(err, errno, "QEMU cannot be started: %m");
	}
	free_arguments(&arguments);
	return rc;
}

/* The type with its version: "q35" is another machine in another QEMU. */
static int learn_type(struct hv_vm *vm, struct dioh_error *err)
{
	static const char suffix[] = "-machine";
	json_t *result;
	const char *type;
	size_t length;
	int rc;

	rc = hv_qmp_command(&vm->qmp, "qom-get", json_pack("{s:s, s:s}", "path", "/machine", "property", "type"), &result,
	                    err);
	if (rc)
		return rc;
	type = json_string_value(result);
	length = type ? strlen(type) : 0;
	if (length <= strlen(suffix) || length - strlen(suffix) >= HV_NAME_BYTES ||
	    strcmp(type + length - strlen(suffix), suffix) != 0)
		rc = hv_fail(err, EBADMSG, "QEMU does not say what machine it is");
	else
		(void)snprintf(vm->machine.type, HV_NAME_BYTES, "%.*s", (int)(length - strlen(suffix)), type);
	json_decref(result);
	return rc;
}

static int learn_version(struct hv_vm *vm, struct dioh_error *err)
{
	int major, minor, micro, rc;
	json_t *result;

	rc = hv_qmp_command(&vm->qmp, "query-version", NULL, &result, err);
	if (rc)
		return rc;
	if (json_unpack(result, "{s:{s:i, s:i, s:i}}", "qemu", "major", &major, "minor", &minor, "micro", &micro))
		rc = hv_fail(err, EBADMSG, "QEMU does not say which version it is");
	else
		(void)snprintf(vm->machine.qemu_version, HV_NAME_BYTES, "%d.%d.%d", major, minor, micro);
	json_decref(result);
	return rc;
}

int hv_vm_start(struct hv_vm *vm, const struct hv_vm_options *options, bool incoming, struct hv_cancel *cancel,
                struct dioh_error *err)
{
	int pair[2], rc;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
		return hv_fail(err, errno, "no socket for QEMU's monitor: %m");
	rc = spawn(vm, options, incoming, pair[1], err);
	hv_close(&pair[1]);
	if (rc) {
		hv_close(&pair[0]);
		return rc;
	}
	rc = hv_qmp_open(&vm->qmp, pair[0], cancel, err);
	if (rc == -EPIPE)
		return hv_fail(err, EPIPE, "%s ended before it was ready; it will have said why", options->qemu);
	if (rc == 0)
		rc = learn_type(vm, err);
	if (rc == 0)
		rc = learn_version(vm, err);
	return rc;
}

bool hv_vm_knows_mapped_ram(const struct hv_vm *vm)
{
	return atoi(vm->machine.qemu_version) >= 9;
}

int hv_vm_stop(struct hv_vm *vm, struct dioh_error *err)
{
	return hv_qmp_command(&vm->qmp, "stop", NULL, NULL, err);
}

int hv_vm_cont(struct hv_vm *vm, struct dioh_error *err)
{
	return hv_qmp_command(&vm->qmp, "cont", NULL, NULL, err);
}

bool hv_vm_alive(struct hv_vm *vm)
{
	pid_t pid;

	while ((pid = waitpid(-1, NULL, WNOHANG)) > 0) {
		if (pid == vm->pid)
			vm->pid = -1;
	}
	return vm->pid > 0;
}

void hv_vm_end(struct hv_vm *vm)
{
	/* Killed, not asked: the disk is read-only and the memory ours, it has nothing to put away. */
	if (vm->pid > 0) {
		(void)kill(vm->pid, SIGKILL);
		(void)waitpid(vm->pid, NULL, 0);
		vm->pid = -1;
	}
	hv_qmp_close(&vm->qmp);
	hv_close(&vm->memory_fd);
}
