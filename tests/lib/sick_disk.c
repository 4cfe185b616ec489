/* SPDX-License-Identifier: LGPL-2.1-or-later */
#define _GNU_SOURCE
#include "sick_disk.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cleanup.h"
#include "fixture.h"

#define STEP_MS 5
#define END_MS 3000

const struct sick_engine sick_uring = { .engine = DIOH_ENGINE_IO_URING, .async_dio = true };
const struct sick_engine sick_uring_thread = { .engine = DIOH_ENGINE_IO_URING };
const struct sick_engine sick_sync = { .engine = DIOH_ENGINE_SYNC, .direct_io = true };

static struct sick_disk *opened; /* by the running test */

/* ---- the ground ---- */

struct fuse_file *sick_file(const struct fuse_file_options *options)
{
	static unsigned number;
	struct fuse_file *file;
	const char *why;
	char name[32];

	(void)snprintf(name, sizeof(name), "mount%u", number++);
	file = fuse_file_start(name, options, &why);
	if (!file) {
		print_message("skipped: %s\n", why);
		skip();
	}
	return file;
}

void sick_open(struct sick_disk *disk, const struct sick_engine *engine, bool only_root)
{
	const struct fuse_file_options options = {
		.async_dio = engine->async_dio, .direct_io = engine->direct_io, .only_root = only_root,
		.fallocate = engine->fallocate
	};
	*disk = (struct sick_disk){ .engine = engine, .messages_fd = -1, .memfd = -1 };
	disk->file = sick_file(&options);
	opened = disk;
	disk->messages_fd = must_memfd("messages", 0, 0);
	disk->memfd = must_memfd("guest", SICK_MEMORY_BYTES, 0);
	must_fill(disk->memfd, 0, SICK_MEMORY_BYTES, 7);
}

void sick_close(struct sick_disk *disk)
{
	dioh_close(disk->session, 0, NULL);
	disk->session = NULL;
	fuse_file_stop(disk->file); /* whatever waited for the disk has its answer now */
	disk->file = NULL;
	if (disk->pid > 0) {
		kill(disk->pid, SIGKILL);
		(void)waitpid(disk->pid, NULL, 0);
	}
	disk->pid = 0;
	if (disk->messages_fd >= 0)
		close(disk->messages_fd);
	if (disk->memfd >= 0)
		close(disk->memfd);
	opened = NULL;
}

int sick_teardown(void **state)
{
	(void)state;
	if (opened)
		sick_close(opened);
	return 0;
}

/* ---- sessions ---- */

static void spawn(struct sick_disk *disk, const char *const *args)
{
	struct dioh_spawn_options options = DIOH_SPAWN_OPTIONS_INIT;
	struct dioh_error err;

	options.program = fixture_helper();
	options.args = args;
	options.stderr_fd = disk->messages_fd;
	must(dioh_spawn(&options, 0, &disk->session, &err), &err);
	disk->pid = dioh_session_pid(disk->session);
}

static int open_image(const struct sick_disk *disk, int flags)
{
	int fd = open(disk->path ? disk->path : fuse_file_path(disk->file), flags | O_CLOEXEC);

	if (fd < 0)
		fail_msg("opening the image: %s", strerror(errno));
	return fd;
}

int sick_attach(struct sick_disk *disk, uint32_t direction, const char *const *args, struct dioh_error *err)
{
	const int access = direction == DIOH_DIRECTION_SAVE ? O_RDWR : O_RDONLY;
	struct dioh_image_options options = DIOH_IMAGE_OPTIONS_INIT;
	struct dioh_msg_attach_image_reply info;
	DIOH_AUTO_FD int buffered = open_image(disk, access);
	DIOH_AUTO_FD int direct = open_image(disk, access | O_DIRECT);
	int r;

	spawn(disk, args);
	options.buffered_fd = buffered;
	options.direct_fd = direct;
	options.direction = direction;
	options.engine = disk->engine->engine;
	r = dioh_attach_image(disk->session, &options, &info, err);
	if (r == 0)
		assert_int_equal(info.direct, 1);
	return r;
}

void sick_begin_save(struct sick_disk *disk, const char *const *args)
{
	const struct dioh_msg_entry entry = region_entry(SICK_REGION, "ram", SICK_MEMORY_BYTES);
	const struct dioh_create_options create = { .layout = DIOH_LAYOUT_CONTAINER, .entry_count = 1,
		                                    .entries = &entry };
	struct dioh_msg_image_reply info;
	struct dioh_error err;

	must(sick_attach(disk, DIOH_DIRECTION_SAVE, args, &err), &err);
	must_attach_memory(disk->session, 0, disk->memfd, -1);
	must_seal(disk->session);
	must(dioh_create_image(disk->session, &create, &info, &err), &err);
}

int sick_begin_load(struct sick_disk *disk, int memfd, const char *const *args, struct dioh_error *err)
{
	const struct dioh_open_options options = { .layout = DIOH_LAYOUT_DETECT };
	struct dioh_msg_open_image_reply info;

	must(sick_attach(disk, DIOH_DIRECTION_LOAD, args, err), err);
	must_attach_memory(disk->session, 0, memfd, -1);
	must_seal(disk->session);
	return dioh_open_image(disk->session, &options, &info, err);
}

static const struct dioh_msg_memory_transfer everything = { .region = SICK_REGION, .length = SICK_MEMORY_BYTES };

uint32_t sick_save_memory(struct sick_disk *disk)
{
	struct dioh_error err;
	uint32_t transfer;

	must(dioh_save_memory(disk->session, &everything, &transfer, &err), &err);
	return transfer;
}

uint32_t sick_finish(struct sick_disk *disk)
{
	struct dioh_error err;
	uint32_t transfer;

	must(dioh_finish(disk->session, DIOH_FINISH_DURABLE, 0, NULL, 0, &transfer, &err), &err);
	return transfer;
}

/* ---- events ---- */

/* The next event at all; false: none came by then. */
static bool next_event(struct sick_disk *disk, uint64_t until_ms, struct dioh_event *ret_event)
{
	const uint64_t now = now_ms();
	struct dioh_error err;

	return must(dioh_poll(disk->session, ret_event, now < until_ms ? (int)(until_ms - now) : 0, &err), &err) == 1;
}

void sick_event(struct sick_disk *disk, uint32_t type, unsigned limit_ms, struct dioh_event *ret_event)
{
	const uint64_t until = now_ms() + limit_ms;

	while (next_event(disk, until, ret_event)) {
		if (ret_event->type == type)
			return;
		if (ret_event->type == DIOH_EVENT_COMPLETE)
			fail_msg("COMPLETE came, code %d: %s", ret_event->error.code, ret_event->error.text);
	}
	fail_msg("no event of type %u within %u ms", type, limit_ms);
}

void sick_no_complete(struct sick_disk *disk, unsigned ms)
{
	const uint64_t until = now_ms() + ms;
	struct dioh_event event;

	while (next_event(disk, until, &event))
		if (event.type == DIOH_EVENT_COMPLETE)
			fail_msg("COMPLETE came, code %d: %s", event.error.code, event.error.text);
}

int sick_complete(struct sick_disk *disk, uint32_t transfer, unsigned limit_ms, struct dioh_event *ret_event)
{
	const uint64_t until = now_ms() + limit_ms;

	while (next_event(disk, until, ret_event)) {
		if (ret_event->type != DIOH_EVENT_COMPLETE)
			continue;
		assert_int_equal(ret_event->transfer, transfer);
		return ret_event->error.code;
	}
	fail_msg("no COMPLETE within %u ms", limit_ms);
	return -1;
}

void sick_wait_held(struct sick_disk *disk, unsigned count, unsigned limit_ms)
{
	for (unsigned ms = 0; fuse_file_held(disk->file) < count; ms += STEP_MS) {
		if (ms >= limit_ms)
			fail_msg("%u requests are held, not %u", fuse_file_held(disk->file), count);
		sleep_ms(STEP_MS);
	}
}

/* ---- ends ---- */

void sick_hang_up(struct sick_disk *disk)
{
	int status;

	/* 0: it had ended already, and has been reaped. */
	if (dioh_close(disk->session, 0, &status) == 0)
		fail_msg("the helper was gone already, wait status 0x%x", (unsigned)status);
	disk->session = NULL;
}

int sick_reap(struct sick_disk *disk, unsigned limit_ms)
{
	for (unsigned ms = 0; ms <= limit_ms; ms += STEP_MS) {
		int status;

		if (waitpid(disk->pid, &status, WNOHANG) == disk->pid) {
			disk->pid = 0;
			return status;
		}
		sleep_ms(STEP_MS);
	}
	fail_msg("the helper is still there after %u ms", limit_ms);
	return -1;
}

void sick_not_gone(struct sick_disk *disk, unsigned ms)
{
	siginfo_t info = { 0 };

	sleep_ms(ms);
	if (waitid(P_PID, (id_t)disk->pid, &info, WEXITED | WNOHANG | WNOWAIT) < 0 || info.si_pid != 0)
		fail_msg("the helper is gone, status %d", info.si_status);
}

void sick_end(struct sick_disk *disk, int status)
{
	int wait_status = -1;
	int r = dioh_close(disk->session, END_MS, &wait_status);

	disk->session = NULL;
	if (r < 0)
		fail_msg("the helper does not end: %s", strerror(-r));
	disk->pid = 0;
	if (!WIFEXITED(wait_status) || WEXITSTATUS(wait_status) != status)
		fail_msg("the helper ended with wait status 0x%x, not exit status %d", (unsigned)wait_status, status);
}

static void read_messages(const struct sick_disk *disk, char *ret_text, size_t room)
{
	ssize_t n = pread(disk->messages_fd, ret_text, room - 1, 0);

	ret_text[n > 0 ? n : 0] = '\0';
}

void sick_says(const struct sick_disk *disk, const char *text, unsigned limit_ms)
{
	char said[4096];

	for (unsigned ms = 0; ms <= limit_ms; ms += STEP_MS) {
		read_messages(disk, said, sizeof(said));
		if (strstr(said, text))
			return;
		sleep_ms(STEP_MS);
	}
	fail_msg("the helper did not say \"%s\" within %u ms but \"%s\"", text, limit_ms, said);
}

void sick_says_nothing(const struct sick_disk *disk)
{
	char said[4096];

	read_messages(disk, said, sizeof(said));
	assert_string_equal(said, "");
}

/* ---- what came of it ---- */

void sick_image_is_complete(struct sick_disk *disk)
{
	DIOH_AUTO_FD int copy = must_memfd("copy", SICK_MEMORY_BYTES, 0);
	struct dioh_event event;
	struct dioh_error err;
	uint32_t transfer;

	must(sick_begin_load(disk, copy, NULL, &err), &err);
	must(dioh_load_memory(disk->session, &everything, &transfer, &err), &err);
	if (sick_complete(disk, transfer, 5000, &event) != 0)
		fail_msg("load: %s", event.error.text);
	sick_end(disk, 0);
	assert_true(same_bytes(disk->memfd, copy));
}

void sick_image_is_refused(struct sick_disk *disk, int code)
{
	DIOH_AUTO_FD int copy = must_memfd("copy", SICK_MEMORY_BYTES, 0);
	struct dioh_error err;
	int r = sick_begin_load(disk, copy, NULL, &err);

	assert_int_equal(r, -code);
	sick_end(disk, 0);
}
