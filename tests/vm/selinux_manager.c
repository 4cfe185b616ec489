/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * selinux_manager.c - a manager for tests/vm/selinux-guest: it runs inside the virtual machine, in the domain that the
 * script gives it, opens what is to be opened, and lets a diohelper work on it. The script decides what is right; this
 * program says "ok", or "error ERRNO SENTENCE" with exit status 1. Exit status 2: it could not even try.
 *
 *   selinux_manager [OPTION...] attach PROGRAM       one session that ends when the image is attached
 *   selinux_manager [OPTION...] seal PROGRAM         one session that ends after SEAL
 *   selinux_manager [OPTION...] roundtrip PROGRAM    save memory and a stream, load both, compare
 *   selinux_manager [OPTION...] run PROGRAM ARG...   execute it with the image as descriptor 3, and answer its exit status
 *   selinux_manager listen PATH                      a socket that somebody could connect to, until killed
 *
 *   -i IMAGE   opened here, before anything is started
 *   -w         open it write-only
 *   -c CATS    start the program with these categories ("c1,c2"), and give sockets and pipes the same
 *   -l LABEL   ask for this label, required
 *   -o ID      ask for this uid and gid
 *   -m LABEL   the label of the guest memory, which is that of this domain's memfds otherwise
 *   -g         guest memory of huge pages
 *   -k         keep the uid
 *   -s         plain system calls; io_uring is required otherwise
 *   -r         require the layer selinux at the seal
 *   -p         print "pid N" once the program stands at its work, and go on when a line comes on standard input
 *
 * The library is linked statically: a copy of this file is all that the guest needs.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "diohelper.h"

#define CANNOT_TRY 2
#define IMAGE_FD 3
#define PAGE_BYTES 4096
#define MEMORY_BYTES (8u << 20)
#define STREAM_BYTES (300u << 10)
#define PIPE_BYTES (1 << 20)
#define CONTEXT_BYTES 256

static struct {
	const char *image, *categories, *label, *memory_label, *program;
	unsigned long owner;
	int access;
	uint32_t engine;
	bool has_owner, huge, keep_uid, require, pause;
} options = { .access = O_RDWR, .engine = DIOH_ENGINE_IO_URING };

static struct dioh_error err;

static _Noreturn void cannot(const char *what)
{
	printf("cannot %s: %s\n", what, strerror(errno));
	exit(CANNOT_TRY);
}

static int refused(void)
{
	printf("error %d %s\n", err.code, err.text);
	return EXIT_FAILURE;
}

/* ---- what libselinux would do: the contexts of what this process makes next ---- */

static void set_context(const char *attribute, const char *context)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/thread-self/attr/%s", attribute);
	fd = open(path, O_WRONLY);
	if (fd < 0 || write(fd, context, strlen(context)) < 0)
		cannot(attribute);
	close(fd);
}

/* Our own domain with other categories. */
static void own_context_with(const char *categories, char context[CONTEXT_BYTES])
{
	int fd = open("/proc/thread-self/attr/current", O_RDONLY);
	ssize_t n = fd < 0 ? -1 : read(fd, context, 128);
	char *level = context;

	if (n <= 0)
		cannot("read the own context");
	close(fd);
	context[n] = '\0';
	for (int colons = 0; colons < 3 && level; colons++)
		level = strchr(colons ? level + 1 : level, ':');
	if (!level)
		cannot("understand the own context");
	snprintf(level, CONTEXT_BYTES - (size_t)(level - context), ":s0:%s", categories);
}

static void set_label(int fd, const char *label)
{
	if (fsetxattr(fd, "security.selinux", label, strlen(label) + 1, 0) < 0)
		cannot("label what it made");
}

static void set_start_contexts(void)
{
	char context[CONTEXT_BYTES];

	if (!options.categories)
		return;
	own_context_with(options.categories, context);
	set_context("sockcreate", context);
	snprintf(context, sizeof(context), "system_u:system_r:diohelper_t:s0:%s", options.categories);
	set_context("exec", context);
}

/* ---- what is saved ---- */

static int make_memory(void)
{
	int fd;

	fd = memfd_create("memory", MFD_CLOEXEC | (options.huge ? MFD_HUGETLB : 0));
	if (fd < 0 || ftruncate(fd, MEMORY_BYTES) < 0)
		cannot("make memory");
	if (options.memory_label) /* a memfd takes no notice of attr/fscreate */
		set_label(fd, options.memory_label);
	return fd;
}

/* Every third page is a hole. hugetlbfs knows no write(2). */
static void fill(int fd)
{
	unsigned char *map = mmap(NULL, MEMORY_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (map == MAP_FAILED)
		cannot("map memory");
	for (size_t page = 0; page < MEMORY_BYTES / PAGE_BYTES; page++)
		if (page % 3)
			for (size_t i = 0; i < PAGE_BYTES; i += 64)
				map[page * PAGE_BYTES + i] = (unsigned char)(page % 251 + 1);
	munmap(map, MEMORY_BYTES);
}

static bool same_memory(int one, int other)
{
	void *a = mmap(NULL, MEMORY_BYTES, PROT_READ, MAP_SHARED, one, 0);
	void *b = mmap(NULL, MEMORY_BYTES, PROT_READ, MAP_SHARED, other, 0);

	if (a == MAP_FAILED || b == MAP_FAILED)
		cannot("map memory");
	return memcmp(a, b, MEMORY_BYTES) == 0;
}

/* With categories, a pipe gets what libvirt gives to a guest's: the type of images, and the guest's categories. */
static void make_pipe(int fds[2])
{
	char context[CONTEXT_BYTES];

	if (pipe2(fds, O_CLOEXEC) < 0 || fcntl(fds[1], F_SETPIPE_SZ, PIPE_BYTES) < 0)
		cannot("make a pipe");
	if (!options.categories)
		return;
	snprintf(context, sizeof(context), "system_u:object_r:svirt_image_t:s0:%s", options.categories);
	set_label(fds[0], context);
}

/* Fits the pipe, so that it needs no reader yet. */
static void put_stream(int fd)
{
	static unsigned char bytes[STREAM_BYTES];

	for (size_t i = 0; i < STREAM_BYTES; i++)
		bytes[i] = (unsigned char)(i * 7 / 5);
	if (write(fd, bytes, STREAM_BYTES) != STREAM_BYTES)
		cannot("fill the pipe");
}

static bool same_stream(int fd)
{
	size_t got = 0;
	unsigned char bytes[4096];
	ssize_t n;

	while ((n = read(fd, bytes, sizeof(bytes))) > 0)
		for (ssize_t i = 0; i < n; i++, got++)
			if (got >= STREAM_BYTES || bytes[i] != (unsigned char)(got * 7 / 5))
				return false;
	return n == 0 && got == STREAM_BYTES;
}

/* ---- sessions ---- */

static void pause_for_inspection(int pid)
{
	char line[16];

	if (!options.pause)
		return;
	printf("pid %d\n", pid);
	fflush(stdout);
	if (!fgets(line, sizeof(line), stdin))
		cannot("read the line that says to go on");
}

/* Opened here: our own output is the script's, which the helper has no business with. */
static int null_fd(void)
{
	int fd = open("/dev/null", O_RDWR | O_CLOEXEC);

	if (fd < 0)
		cannot("open /dev/null");
	return fd;
}

static int start(struct dioh_session **ret_session)
{
	const char *args[4] = { NULL };
	struct dioh_spawn_options spawn = DIOH_SPAWN_OPTIONS_INIT;
	int n = 0;

	if (options.label)
		args[n++] = "--allow=label";
	if (options.has_owner)
		args[n++] = "--allow=owner";
	if (options.keep_uid)
		args[n++] = "--keep-uid";
	spawn.program = options.program;
	spawn.args = args;
	spawn.stderr_fd = null_fd();
	set_start_contexts();
	return dioh_spawn(&spawn, 0, ret_session, &err);
}

static int open_image(int flags)
{
	int fd = open(options.image, options.access | O_CLOEXEC | flags, 0600);

	if (fd < 0)
		cannot(options.image);
	return fd;
}

static int attach_image(struct dioh_session *session, uint32_t direction)
{
	struct dioh_image_options image = DIOH_IMAGE_OPTIONS_INIT;
	int r;

	image.direction = direction;
	image.engine = options.engine;
	image.buffered_fd = open_image(direction == DIOH_DIRECTION_SAVE ? O_CREAT : 0);
	image.direct_fd = open_image(O_DIRECT);
	if (direction == DIOH_DIRECTION_SAVE && options.label) {
		image.ask |= DIOH_IMAGE_ASK_LABEL_REQUIRED;
		image.label = options.label;
	}
	if (direction == DIOH_DIRECTION_SAVE && options.has_owner) {
		image.ask |= DIOH_IMAGE_ASK_OWNER;
		image.uid = image.gid = (uint32_t)options.owner;
	}
	r = dioh_attach_image(session, &image, NULL, &err);
	close(image.buffered_fd);
	close(image.direct_fd);
	return r;
}

static int attach_payloads(struct dioh_session *session, int memory_fd, int stream_fd)
{
	struct dioh_memory_options memory = DIOH_MEMORY_OPTIONS_INIT;
	int r;

	memory.fd = memory_fd;
	r = dioh_attach_memory(session, 0, &memory, NULL, &err);
	if (r == 0)
		r = dioh_attach_stream(session, 0, stream_fd, NULL, &err);
	if (r == 0)
		r = dioh_seal(session, options.require ? DIOH_LAYER_SELINUX : 0, NULL, &err);
	return r;
}

static uint32_t begun; /* the transfer that was begun last */

static int wait_for(struct dioh_session *session, int r)
{
	return r < 0 ? r : dioh_wait(session, begun, NULL, &err);
}

static int save_content(struct dioh_session *session)
{
	struct dioh_msg_entry entries[2] = {
		{ .kind = DIOH_ENTRY_REGION, .bytes = MEMORY_BYTES, .name = "memory" },
		{ .kind = DIOH_ENTRY_STREAM, .name = "state" },
	};
	struct dioh_create_options create = { .layout = DIOH_LAYOUT_CONTAINER, .entry_count = 2, .entries = entries };
	struct dioh_msg_memory_transfer memory = { .length = MEMORY_BYTES };
	struct dioh_msg_stream_transfer stream = { 0 };
	int r = dioh_create_image(session, &create, NULL, &err);

	if (r == 0)
		r = wait_for(session, dioh_save_memory(session, &memory, &begun, &err));
	if (r == 0)
		r = wait_for(session, dioh_save_stream(session, &stream, &begun, &err));
	if (r == 0)
		r = wait_for(session, dioh_finish(session, DIOH_FINISH_DURABLE, 0, NULL, 0, &begun, &err));
	return r;
}

static int load_content(struct dioh_session *session)
{
	struct dioh_open_options open_options = { .layout = DIOH_LAYOUT_DETECT };
	struct dioh_msg_memory_transfer memory = { .length = MEMORY_BYTES };
	struct dioh_msg_stream_transfer stream = { 0 };
	int r = dioh_open_image(session, &open_options, NULL, &err);

	if (r == 0)
		r = wait_for(session, dioh_load_memory(session, &memory, &begun, &err));
	if (r == 0)
		r = wait_for(session, dioh_load_stream(session, &stream, &begun, &err));
	if (r == 0)
		r = wait_for(session, dioh_finish(session, DIOH_FINISH_DURABLE, 0, NULL, 0, &begun, &err));
	return r;
}

static int session_of(uint32_t direction, int memory_fd, int stream_fd, int (*content)(struct dioh_session *))
{
	struct dioh_session *session = NULL;
	int status = 0;
	int r = start(&session);

	if (r == 0)
		r = attach_image(session, direction);
	if (r == 0 && content)
		r = attach_payloads(session, memory_fd, stream_fd);
	close(stream_fd); /* ours: the pipe's end is to be seen */
	if (r == 0 && content) {
		pause_for_inspection(dioh_session_pid(session));
		r = content(session);
	}
	dioh_close(session, -1, &status);
	if (r == 0 && content && status != 0) {
		printf("the helper ended with wait status %d\n", status);
		exit(EXIT_FAILURE);
	}
	return r;
}

static int attach(void)
{
	if (session_of(DIOH_DIRECTION_SAVE, -1, -1, NULL) < 0)
		return refused();
	puts("ok");
	return EXIT_SUCCESS;
}

static int no_content(struct dioh_session *session)
{
	(void)session;
	return 0;
}

static int seal(void)
{
	int in[2];

	make_pipe(in);
	if (session_of(DIOH_DIRECTION_SAVE, make_memory(), in[0], no_content) < 0)
		return refused();
	puts("ok");
	return EXIT_SUCCESS;
}

static int roundtrip(void)
{
	int saved = make_memory(), loaded = make_memory();
	int in[2], out[2];

	fill(saved);
	make_pipe(in);
	put_stream(in[1]);
	close(in[1]);
	if (session_of(DIOH_DIRECTION_SAVE, saved, in[0], save_content) < 0)
		return refused();
	make_pipe(out);
	if (session_of(DIOH_DIRECTION_LOAD, loaded, out[1], load_content) < 0)
		return refused();
	if (!same_memory(saved, loaded) || !same_stream(out[0])) {
		puts("what was loaded is not what was saved");
		return EXIT_FAILURE;
	}
	puts("ok");
	return EXIT_SUCCESS;
}

/* ---- another program ---- */

static _Noreturn void execute(char **argv, int stdin_fd, int image_fd)
{
	int null = null_fd();

	set_start_contexts();
	if (dup2(stdin_fd, STDIN_FILENO) >= 0 && (image_fd < 0 || dup2(image_fd, IMAGE_FD) >= 0) &&
	    dup2(null, STDOUT_FILENO) >= 0 && dup2(null, STDERR_FILENO) >= 0)
		execv(argv[0], argv);
	_exit(126);
}

/* It inherits the image, and a pipe with some data as its standard input. */
static int run(char **argv)
{
	int image_fd = options.image ? fcntl(open_image(O_CREAT), F_DUPFD_CLOEXEC, 10) : -1;
	int in[2], executed[2], status;
	pid_t pid;
	char byte;

	make_pipe(in);
	make_pipe(executed);
	put_stream(in[1]);
	fflush(stdout);
	pid = fork();
	if (pid == 0)
		execute(argv, in[0], image_fd);
	close(executed[1]);
	(void)!read(executed[0], &byte, 1); /* its end: the child is the other program now */
	pause_for_inspection(pid);
	close(in[1]);
	if (pid < 0 || waitpid(pid, &status, 0) < 0)
		cannot("start a process");
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static int listen_at(const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
	if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 || listen(fd, 16) < 0)
		cannot(path);
	for (;;)
		pause();
}

int main(int argc, char **argv)
{
	int option;

	while ((option = getopt(argc, argv, "+i:wc:l:o:m:gksrp")) != -1) {
		switch (option) {
		case 'i': options.image = optarg; break;
		case 'w': options.access = O_WRONLY; break;
		case 'c': options.categories = optarg; break;
		case 'l': options.label = optarg; break;
		case 'o': options.has_owner = true; options.owner = strtoul(optarg, NULL, 10); break;
		case 'm': options.memory_label = optarg; break;
		case 'g': options.huge = true; break;
		case 'k': options.keep_uid = true; break;
		case 's': options.engine = DIOH_ENGINE_SYNC; break;
		case 'r': options.require = true; break;
		case 'p': options.pause = true; break;
		default: return CANNOT_TRY;
		}
	}
	if (argc - optind < 2)
		return CANNOT_TRY;
	options.program = argv[optind + 1];
	if (strcmp(argv[optind], "attach") == 0)
		return attach();
	if (strcmp(argv[optind], "seal") == 0)
		return seal();
	if (strcmp(argv[optind], "roundtrip") == 0)
		return roundtrip();
	if (strcmp(argv[optind], "listen") == 0)
		return listen_at(argv[optind + 1]);
	if (strcmp(argv[optind], "run") == 0)
		return run(argv + optind + 1);
	return CANNOT_TRY;
}
