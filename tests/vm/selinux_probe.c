/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * selinux_probe.c - what code inside a taken-over helper could try, one attempt an execution, with no other layer in the
 * way: tests/vm/selinux-guest labels it like diohelper and has it started by a manager, with the image as descriptor 3.
 * The exit status is the attempt's errno, 0 if it succeeded. (So it needs no descriptor to report through.)
 *
 *   selinux_probe ATTEMPT [ARGUMENT]
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#define IMAGE_FD 3
#define NO_SUCH_ATTEMPT 255

/* Every attempt answers like a system call: negative is failure, with errno. */

static int try_nothing(const char *argument)
{
	(void)argument;
	return 0;
}

static int try_open(const char *path)
{
	return open(path, O_RDONLY);
}

static int try_create(const char *path)
{
	return open(path, O_WRONLY | O_CREAT, 0600);
}

static int try_reopen(const char *argument)
{
	char path[32];

	(void)argument;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", IMAGE_FD);
	return open(path, O_RDWR);
}

static int try_connect(const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
	return fd < 0 ? -1 : connect(fd, (struct sockaddr *)&address, sizeof(address));
}

static int try_inet(const char *argument)
{
	(void)argument;
	return socket(AF_INET, SOCK_STREAM, 0);
}

static int try_udp(const char *argument)
{
	(void)argument;
	return socket(AF_INET, SOCK_DGRAM, 0);
}

static int try_netlink(const char *argument)
{
	(void)argument;
	return socket(AF_NETLINK, SOCK_RAW, 0);
}

static int try_exec(const char *path)
{
	return execl(path, path, "-c", "exit 0", (char *)NULL);
}

/* A program that is in memory only. */
static int try_exec_memory(const char *path)
{
	static char bytes[2 << 20];
	int in = open("/proc/self/exe", O_RDONLY), fd = memfd_create("program", 0);
	ssize_t n = read(in, bytes, sizeof(bytes));

	(void)path;
	if (in < 0 || fd < 0 || n <= 0 || write(fd, bytes, (size_t)n) != n)
		return -1;
	return (int)syscall(SYS_execveat, fd, "", (char *[]){ "probe", "nothing", NULL }, (char *[]){ NULL }, AT_EMPTY_PATH);
}

static int try_signal(const char *pid)
{
	return kill(atoi(pid), SIGTERM);
}

static int try_trace(const char *pid)
{
	return (int)ptrace(PTRACE_SEIZE, atoi(pid), NULL, NULL);
}

/* The kernel is asked for writable memory to become executable: what injected code needs. */
static int try_executable_memory(const char *argument)
{
	void *map = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	(void)argument;
	return map == MAP_FAILED ? -1 : mprotect(map, 4096, PROT_READ | PROT_EXEC);
}

static int try_sqpoll(const char *argument)
{
	struct io_uring_params params = { .flags = IORING_SETUP_SQPOLL };

	(void)argument;
	return (int)syscall(SYS_io_uring_setup, 4, &params);
}

static int try_ring(const char *argument)
{
	struct io_uring_params params = { 0 };

	(void)argument;
	return (int)syscall(SYS_io_uring_setup, 4, &params);
}

static int try_map_image(const char *argument)
{
	(void)argument;
	return mmap(NULL, 4096, PROT_READ, MAP_SHARED, IMAGE_FD, 0) == MAP_FAILED ? -1 : 0;
}

static int try_write_image(const char *argument)
{
	struct stat st;

	(void)argument;
	if (fstat(IMAGE_FD, &st) < 0)
		return -1;
	if (S_ISCHR(st.st_mode)) { /* a descriptor that may not be inherited has become a null device */
		errno = EACCES;
		return -1;
	}
	return (int)pwrite(IMAGE_FD, "x", 1, 0);
}

static int try_label_image(const char *label)
{
	return fsetxattr(IMAGE_FD, "security.selinux", label, strlen(label) + 1, 0);
}

static int try_unlink_beside(const char *path)
{
	return unlink(path);
}

static const struct {
	const char *name;
	int (*attempt)(const char *argument);
} attempts[] = {
	{ "nothing", try_nothing },
	{ "open", try_open },
	{ "create", try_create },
	{ "reopen", try_reopen },
	{ "connect", try_connect },
	{ "tcp", try_inet },
	{ "udp", try_udp },
	{ "netlink", try_netlink },
	{ "exec", try_exec },
	{ "exec-memory", try_exec_memory },
	{ "signal", try_signal },
	{ "trace", try_trace },
	{ "executable-memory", try_executable_memory },
	{ "ring", try_ring },
	{ "sqpoll", try_sqpoll },
	{ "map-image", try_map_image },
	{ "write-image", try_write_image },
	{ "label-image", try_label_image },
	{ "unlink", try_unlink_beside },
};

int main(int argc, char **argv)
{
	for (size_t i = 0; argc > 1 && i < sizeof(attempts) / sizeof(attempts[0]); i++)
		if (strcmp(attempts[i].name, argv[1]) == 0)
			return attempts[i].attempt(argc > 2 ? argv[2] : "") < 0 ? errno : 0;
	return NO_SUCH_ATTEMPT;
}
