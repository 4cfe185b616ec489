/* SPDX-License-Identifier: LGPL-2.1-or-later */
#define _GNU_SOURCE
#include "moves.h"
#include "proto.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "align.h"
#include "cleanup.h"

#define die(what) fixture_die(__FILE__, __LINE__, what, strerror(errno))

/* ---- ways ---- */

const char *way_name(const struct way *way)
{
	static const char *const fds[] = { "two descriptors", "lone buffered", "lone direct" };
	static const char *const layouts[] = {
		[DIOH_LAYOUT_RAW] = "raw",
		[DIOH_LAYOUT_CONTAINER] = "container",
		[DIOH_LAYOUT_MAPPED_RAM] = "mapped-ram",
	};
	static char name[160];

	snprintf(name, sizeof(name), "%s, %s, %s, block %u, base %llu",
	         layouts[way->layout], dioh_engine_name(way->engine), fds[way->fds], way->block_bytes,
	         (unsigned long long)way->base_offset);
	return name;
}

static bool has_io_uring(void)
{
	struct io_uring_params params = { 0 };
	int fd = (int)syscall(SYS_io_uring_setup, 1, &params);

	if (fd >= 0)
		close(fd);
	return fd >= 0;
}

static bool is_tmpfs(void)
{
	struct statfs fs;

	return statfs(fixture_dir(), &fs) == 0 && fs.f_type == TMPFS_MAGIC;
}

static bool has_direct(void)
{
	int fd = open(fixture_path("probe"), O_RDWR | O_CREAT | O_DIRECT | O_CLOEXEC, 0600);

	if (fd >= 0)
		close(fd);
	return fd >= 0;
}

/* What is left out is told once, and counts: tests/run. */
static void tell_absent(bool *told, const char *what)
{
	if (!*told)
		print_message("skipped: %s\n", what);
	*told = true;
}

bool way_possible(const struct way *way)
{
	static bool told_uring, told_direct;
	static int uring = -1, direct = -1;

	if (uring < 0) {
		uring = has_io_uring();
		direct = has_direct();
	}
	if (!uring && way->engine == DIOH_ENGINE_IO_URING) {
		tell_absent(&told_uring, "no io_uring here");
		return false;
	}
	if (!direct && way->fds == WAY_LONE_DIRECT) {
		tell_absent(&told_direct, is_tmpfs() ? "no O_DIRECT on tmpfs before Linux 6.6" : "no O_DIRECT here");
		return false;
	}
	return true;
}

void for_each_way(void (*test)(const struct way *way))
{
	for (unsigned i = 0; i < 6; i++) {
		const struct way way = {
			.layout = i % 2 ? DIOH_LAYOUT_RAW : DIOH_LAYOUT_CONTAINER,
			.engine = DIOH_ENGINE_IO_URING + i / 2,
		};

		if (way_possible(&way))
			test(&way);
	}
}

/* ---- a session ---- */

static struct dioh_msg_entry *add_entry(struct moves *m, struct dioh_msg_entry entry, uint64_t alignment)
{
	uint64_t end = m->header_bytes;

	if (m->entry_count == MOVES_ENTRIES_MAX)
		fixture_die(__FILE__, __LINE__, "moves_add", "too many entries");
	for (unsigned i = 0; i < m->entry_count; i++)
		end = dioh_max(end, m->entries[i].image_offset + m->entries[i].bytes);
	entry.image_offset = dioh_align_up(end, alignment);
	m->entries[m->entry_count] = entry;
	return &m->entries[m->entry_count++];
}

struct dioh_msg_entry *moves_add_region(struct moves *m, uint32_t number, uint64_t bytes)
{
	char name[32];

	snprintf(name, sizeof(name), "region %u", number);
	return add_entry(m, region_entry(number, name, bytes), PAGE);
}

struct dioh_msg_entry *moves_add_stream(struct moves *m, uint32_t number, uint64_t bytes)
{
	struct dioh_msg_entry entry;
	char name[32];

	snprintf(name, sizeof(name), "stream %u", number);
	entry = stream_entry(number, name);
	entry.bytes = bytes;
	return add_entry(m, entry, 1);
}

void moves_start(struct moves *m, uint32_t direction)
{
	struct fixture_image image = {
		.path = m->path,
		.no_direct = m->way.fds == WAY_LONE_BUFFERED,
		.lone_direct = m->way.fds == WAY_LONE_DIRECT,
	};

	image.options.engine = m->way.engine;
	image.options.block_bytes = m->way.block_bytes;
	image.options.in_flight = m->in_flight;
	image.options.workers = m->way.workers;
	image.options.base_offset = m->way.base_offset;
	m->session = must_session(&image, direction);
}

void moves_attach(struct moves *m, uint32_t number, int memfd, int selection_fd)
{
	must_attach_memory(m->session, number, memfd, selection_fd);
}

void moves_attach_stream(struct moves *m, uint32_t number, int fd)
{
	struct dioh_msg_attach_stream_reply info;

	must(dioh_attach_stream(m->session, number, fd, &info, &m->err), &m->err);
	close(fd);
}

int moves_create_sealed(struct moves *m)
{
	struct dioh_msg_entry entries[MOVES_ENTRIES_MAX];
	const struct dioh_create_options options = {
		.layout = m->way.layout,
		.entry_count = m->entry_count,
		.entries = entries,
		.header_bytes = m->header_bytes,
		.header = m->header,
		.channels = m->channels,
		.flags = m->create_flags,
	};

	memcpy(entries, m->entries, sizeof(entries));
	for (unsigned i = 0; i < m->entry_count; i++) {
		if (entries[i].kind == DIOH_ENTRY_STREAM)
			entries[i].bytes = 0;
		if (m->way.layout != DIOH_LAYOUT_RAW)
			entries[i].image_offset = 0;
	}
	return dioh_create_image(m->session, &options, &m->created, &m->err);
}

int moves_create(struct moves *m)
{
	must_seal(m->session);
	return moves_create_sealed(m);
}

int moves_open_sealed(struct moves *m, uint32_t flags)
{
	const bool raw = m->way.layout == DIOH_LAYOUT_RAW;
	const struct dioh_open_options options = {
		.layout = raw ? DIOH_LAYOUT_RAW : DIOH_LAYOUT_DETECT,
		.flags = flags,
		.entry_count = raw ? m->entry_count : 0,
		.entries = raw ? m->entries : NULL,
		.header_bytes = raw ? m->header_bytes : 0,
	};

	return dioh_open_image(m->session, &options, &m->opened, &m->err);
}

int moves_open(struct moves *m, uint32_t flags)
{
	must_seal(m->session);
	return moves_open_sealed(m, flags);
}

static bool saves(const struct moves *m)
{
	return m->created.ready; /* a session that loads has created nothing */
}

uint32_t moves_begin(struct moves *m, const struct dioh_msg_memory_transfer *what)
{
	uint32_t id;

	must(saves(m) ? dioh_save_memory(m->session, what, &id, &m->err)
	              : dioh_load_memory(m->session, what, &id, &m->err), &m->err);
	return id;
}

uint32_t moves_begin_stream(struct moves *m, uint32_t stream, uint32_t entry, uint32_t flags)
{
	const struct dioh_msg_stream_transfer what = { .stream = stream, .entry = entry, .flags = flags };
	uint32_t id;

	must(saves(m) ? dioh_save_stream(m->session, &what, &id, &m->err)
	              : dioh_load_stream(m->session, &what, &id, &m->err), &m->err);
	return id;
}

int moves_wait(struct moves *m, uint32_t transfer)
{
	return dioh_wait(m->session, transfer, &m->complete, &m->err);
}

int moves_piece(struct moves *m, const struct dioh_msg_memory_transfer *what)
{
	return moves_wait(m, moves_begin(m, what));
}

static uint64_t region_bytes(const struct moves *m, uint32_t number)
{
	for (unsigned i = 0; i < m->entry_count; i++)
		if (m->entries[i].kind == DIOH_ENTRY_REGION && m->entries[i].number == number)
			return m->entries[i].bytes;
	fixture_die(__FILE__, __LINE__, "moves_region", "no such region");
}

int moves_region(struct moves *m, uint32_t number, uint32_t flags)
{
	const struct dioh_msg_memory_transfer what = {
		.memory = number, .region = number, .length = region_bytes(m, number), .flags = flags
	};

	return moves_piece(m, &what);
}

int moves_finish(struct moves *m, uint32_t mode)
{
	uint32_t id;
	int r = dioh_finish(m->session, mode, 0, NULL, 0, &id, &m->err);

	return r < 0 ? r : moves_wait(m, id);
}

void moves_end(struct moves *m, int status)
{
	must_close(m->session, status);
	m->session = NULL;
}

void moves_assert_alive(struct moves *m)
{
	struct dioh_msg_status_reply status;

	must(dioh_status(m->session, &status, &m->err), &m->err);
}

void assert_error_is(const struct dioh_error *err, int code, uint32_t operation, uint32_t object, uint32_t number,
                     const char *file, int line)
{
	if (err->code == code && err->operation == operation && err->object == object && err->number == number &&
	    err->text[0])
		return;
	print_error("code %d, operation %u, object %u, number %u, offset %lld: %s\n", err->code, err->operation,
	            err->object, err->number, (long long)err->offset, err->text);
	print_error("expected: code %d, operation %u, object %u, number %u\n", code, operation, object, number);
	_fail(file, line);
}

void moves_end_saved_over(struct moves *m, uint32_t transfer, int reader)
{
	uint8_t bytes[65536];

	while (read(reader, bytes, sizeof(bytes)) > 0)
		continue;
	assert_int_equal(moves_wait(m, transfer), -EBADMSG);
	moves_assert_error(m, EBADMSG, PARSE, IMAGE, 0);
	moves_end(m, 0);
	close(reader);
}

/* ---- whole saves and loads ---- */

static void begin_all(struct moves *m, const int *memfds, unsigned count, uint32_t direction)
{
	for (unsigned i = 0; i < count; i++)
		moves_add_region(m, i, must_bytes(memfds[i]));
	moves_start(m, direction);
	for (unsigned i = 0; i < count; i++)
		moves_attach(m, i, memfds[i], -1);
}

void must_save_all(const struct way *way, const char *path, const int *memfds, unsigned count, uint32_t flags)
{
	struct moves m = MOVES(*way, path);

	begin_all(&m, memfds, count, DIOH_DIRECTION_SAVE);
	must(moves_create(&m), &m.err);
	for (unsigned i = 0; i < count; i++)
		must(moves_region(&m, i, flags), &m.err);
	must(moves_finish(&m, DIOH_FINISH_DURABLE), &m.err);
	moves_end(&m, 0);
}

void must_load_all(const struct way *way, const char *path, const int *memfds, unsigned count, uint32_t flags)
{
	struct moves m = MOVES(*way, path);

	begin_all(&m, memfds, count, DIOH_DIRECTION_LOAD);
	must(moves_open(&m, 0), &m.err);
	for (unsigned i = 0; i < count; i++)
		must(moves_region(&m, i, flags), &m.err);
	moves_end(&m, 0);
}

uint64_t must_bytes(int fd)
{
	struct stat st;

	if (fstat(fd, &st) < 0)
		die("fstat");
	return (uint64_t)st.st_size;
}

static uint64_t count_pages(int fd, uint64_t from, uint64_t to)
{
	static const uint8_t zeros[PAGE];
	uint8_t page[PAGE];
	uint64_t count = 0;

	for (uint64_t at = from; at < to; at += PAGE) {
		if (pread(fd, page, PAGE, (off_t)at) < 0)
			die("pread");
		count += memcmp(page, zeros, PAGE) != 0;
	}
	return count;
}

uint64_t must_count_data(int fd)
{
	const uint64_t bytes = must_bytes(fd);
	uint64_t count = 0;

	for (uint64_t at = 0; at < bytes;) {
		off_t data = lseek(fd, (off_t)at, SEEK_DATA);
		off_t hole;

		if (data < 0 && errno == ENXIO)
			break;
		hole = data < 0 ? -1 : lseek(fd, data, SEEK_HOLE);
		if (hole < 0)
			die("lseek");
		count += count_pages(fd, (uint64_t)data, (uint64_t)hole);
		at = (uint64_t)hole;
	}
	return count * PAGE;
}

int must_open(const char *path, int flags)
{
	int fd = open(path, flags | O_CLOEXEC, 0600);

	if (fd < 0)
		die(path);
	return fd;
}

/* ---- places ---- */

int again_on_tmpfs(char **argv)
{
	int status = 0;
	pid_t pid;

	if (getenv("TEST_DIR"))
		return 0;
	if (access("/dev/shm", W_OK) < 0) {
		print_message("skipped: /dev/shm cannot be written, so nothing is run on tmpfs\n");
		return 0;
	}
	print_message("once more on tmpfs:\n");
	fflush(NULL);
	pid = fork();
	if (pid == 0) {
		setenv("TEST_DIR", "/dev/shm", 1);
		execv("/proc/self/exe", argv);
		_exit(127);
	}
	if (pid < 0 || waitpid(pid, &status, 0) < 0)
		die("again_on_tmpfs");
	return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}
