/* SPDX-License-Identifier: LGPL-2.1-or-later */
#define _GNU_SOURCE
#include "fuse_file.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "clock.h"
#include "fixture.h"
#include "fuse_control.h"

#define START_MS 5000
#define STOP_MS 100
#define LIFE_S 300
#define DIRECTORY_BYTES 400

struct fuse_file {
	bool taken;
	struct fuse_control *control;
	size_t control_bytes;
	char directory[DIRECTORY_BYTES];
	char path[DIRECTORY_BYTES + sizeof("/image")];
	int memfd;
	pid_t server; /* 0: there is none */
	pid_t owner;
};

static struct fuse_file files[FUSE_FILES_MAX];

/* ---- life ---- */

/* A mount in a namespace of our own ends with us, even if we are killed. */
static const char *own_namespace(void)
{
	static bool done;

	if (done)
		return NULL;
	if (unshare(CLONE_NEWNS) < 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
		return "no mount namespace of our own to be had";
	done = true;
	return NULL;
}

static _Noreturn void become_server(struct fuse_file *file, const struct fuse_file_options *options)
{
	const unsigned memfd = (unsigned)file->memfd;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != file->owner)
		_exit(1);
	signal(SIGALRM, SIG_DFL);
	alarm(options->life_s ? options->life_s : LIFE_S);
	/* A socket or a pipe that a server kept open would never end for its reader. */
	if (memfd > STDERR_FILENO + 1)
		(void)syscall(SYS_close_range, STDERR_FILENO + 1, memfd - 1, 0);
	(void)syscall(SYS_close_range, memfd + 1, ~0u, 0);
	fuse_server_run(file->control, file->directory, file->memfd, options);
}

static const char *wait_for_mount(struct fuse_file *file)
{
	static char why[128];
	int state = 0;

	for (unsigned ms = 0; ms < START_MS && state == 0; ms++) {
		sleep_ms(1);
		state = atomic_load(&file->control->state);
	}
	if (state == 1)
		return NULL;
	(void)snprintf(why, sizeof(why), "no FUSE mount to be had: %s", strerror(state ? -state : ETIMEDOUT));
	return why;
}

/*
 * close(2) asks the server once, learns that it knows no FLUSH, and asks no more: else a close, and with it the exit of
 * whoever has the file open, would wait for a server that does not answer; even our own exit, which is to end the server.
 */
static const char *learn_flush(const struct fuse_file *file)
{
	int fd = open(file->path, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return "the FUSE file cannot be opened";
	close(fd);
	return NULL;
}

static void stop_at_exit(void)
{
	for (unsigned i = 0; i < FUSE_FILES_MAX; i++)
		if (files[i].taken && getpid() == files[i].owner)
			fuse_file_stop(&files[i]);
}

static const char *start(struct fuse_file *file, const char *name, const struct fuse_file_options *options)
{
	static bool registered;
	const char *why = own_namespace();

	if (why)
		return why;
	(void)snprintf(file->directory, sizeof(file->directory), "%s", fixture_path(name));
	(void)snprintf(file->path, sizeof(file->path), "%s/image", file->directory);
	if (mkdir(file->directory, 0755) < 0)
		return "no directory for the mount";
	file->control_bytes = sizeof(*file->control) + (options->record ? FUSE_LOG_BYTES : 0);
	file->control = mmap(NULL, file->control_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE,
	                     -1, 0);
	file->memfd = (int)syscall(SYS_memfd_create, "fuse file", MFD_CLOEXEC);
	if (file->control == MAP_FAILED || file->memfd < 0)
		return "no memory for a FUSE file";
	file->owner = getpid();
	if (!registered)
		atexit(stop_at_exit); /* behind fixture_dir()'s handler, so it runs before it */
	registered = true;
	file->server = fork();
	if (file->server == 0)
		become_server(file, options);
	if (file->server < 0)
		return "no process for a FUSE server";
	why = wait_for_mount(file);
	return why ? why : learn_flush(file);
}

struct fuse_file *fuse_file_start(const char *name, const struct fuse_file_options *options, const char **ret_why)
{
	struct fuse_file *file = files;

	while (file < files + FUSE_FILES_MAX && file->taken)
		file++;
	*ret_why = "too many FUSE files";
	if (file == files + FUSE_FILES_MAX)
		return NULL;
	*file = (struct fuse_file){ .taken = true, .memfd = -1 };
	*ret_why = start(file, name, options);
	if (!*ret_why)
		return file;
	fuse_file_stop(file);
	return NULL;
}

static void end_server(struct fuse_file *file)
{
	for (unsigned ms = 0; ms < STOP_MS; ms++) {
		if (waitpid(file->server, NULL, WNOHANG) == file->server)
			return;
		sleep_ms(1);
	}
	/* Somebody has the file open still. With its server dead the kernel answers whatever waits. */
	kill(file->server, SIGKILL);
	(void)waitpid(file->server, NULL, 0);
}

void fuse_file_stop(struct fuse_file *file)
{
	if (!file)
		return;
	if (file->server > 0) {
		fuse_file_release(file, 0);
		(void)umount2(file->directory, MNT_DETACH);
		end_server(file);
		(void)rmdir(file->directory);
	}
	file->server = 0;
	if (file->control && file->control != MAP_FAILED)
		(void)munmap(file->control, file->control_bytes);
	file->control = NULL;
	if (file->memfd >= 0)
		close(file->memfd);
	file->memfd = -1;
	file->taken = false;
}

const char *fuse_file_path(const struct fuse_file *file)
{
	return file->path;
}

const char *fuse_file_directory(const struct fuse_file *file)
{
	return file->directory;
}

int fuse_file_memfd(const struct fuse_file *file)
{
	return file->memfd;
}

/* ---- what it is told ---- */

void fuse_file_set_fault(struct fuse_file *file, uint32_t opcode, const struct fuse_fault *fault)
{
	struct fuse_rule *rule = &file->control->rules[opcode];

	atomic_store(&rule->kind, FUSE_FAULT_NONE);
	atomic_store(&rule->value, fault->value);
	atomic_store(&rule->handles, fault->handles);
	atomic_store(&rule->after, fault->after);
	atomic_store(&rule->times, fault->times);
	atomic_store(&rule->same_place, fault->same_place);
	atomic_store(&rule->seen, 0);
	atomic_store(&rule->hits, 0);
	atomic_store(&rule->hit_offset, 0);
	atomic_store(&rule->kind, fault->kind);
}

void fuse_file_obey_interrupts(struct fuse_file *file, bool obey)
{
	atomic_store(&file->control->obey_interrupts, obey);
}

void fuse_file_release(struct fuse_file *file, int error)
{
	fuse_control_calm(file->control);
	atomic_store(&file->control->release_error, error);
	atomic_store(&file->control->frozen, false);
	atomic_fetch_add(&file->control->release, 1);
}

void fuse_file_release_held(struct fuse_file *file)
{
	atomic_store(&file->control->release_error, 0);
	atomic_fetch_add(&file->control->release, 1);
}

void fuse_file_release_later(struct fuse_file *file, unsigned ms)
{
	atomic_store(&file->control->release_at_ns, dioh_now_ns() + ms * DIOH_NS_PER_MS);
}

/* ---- what it tells ---- */

unsigned fuse_file_held(const struct fuse_file *file)
{
	return atomic_load(&file->control->held);
}

unsigned fuse_file_count(const struct fuse_file *file, uint32_t opcode)
{
	return atomic_load(&file->control->counts[opcode]);
}

unsigned fuse_file_hits(const struct fuse_file *file, uint32_t opcode)
{
	return atomic_load(&file->control->rules[opcode].hits);
}

uint64_t fuse_file_hit_offset(const struct fuse_file *file, uint32_t opcode)
{
	return atomic_load(&file->control->rules[opcode].hit_offset);
}

unsigned fuse_file_count_handles(const struct fuse_file *file, uint32_t opcode, enum fuse_fault_handles handles)
{
	const unsigned all = atomic_load(&file->control->counts[opcode]);
	const unsigned direct = atomic_load(&file->control->counts_direct[opcode]);

	return handles == FUSE_HANDLES_ALL ? all : handles == FUSE_HANDLES_DIRECT ? direct : all - direct;
}

/* ---- what was carried out ---- */

void fuse_file_record(struct fuse_file *file, bool on)
{
	if (on)
		atomic_store(&file->control->log_bytes, 0);
	atomic_store(&file->control->recording, on);
}

bool fuse_file_step(const struct fuse_file *file, uint64_t *cursor, struct fuse_step *ret_step)
{
	const uint8_t *log = fuse_control_log(file->control);

	if (*cursor >= atomic_load(&file->control->log_bytes))
		return false;
	memcpy(ret_step, log + *cursor, sizeof(*ret_step));
	*cursor += sizeof(*ret_step);
	ret_step->data = log + *cursor;
	if (ret_step->opcode == FUSE_WRITE)
		*cursor += ret_step->bytes;
	return true;
}
