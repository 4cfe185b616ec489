/* SPDX-License-Identifier: LGPL-2.1-or-later */
#define _GNU_SOURCE
#include "fixture.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "align.h"
#include "chance.h"
#include "cleanup.h"
#include "clock.h"

#define PIECE_BYTES (1u << 20)

_Noreturn void fixture_die(const char *file, int line, const char *what, const char *why)
{
	fprintf(stderr, "%s:%d: %s: %s\n", file, line, what, why);
	exit(1);
}

#define die(what) fixture_die(__FILE__, __LINE__, what, strerror(errno))

/* ---- where ---- */

static char dir[256];
static pid_t dir_owner;

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	(void)st;
	(void)type;
	(void)ftw;
	return remove(path);
}

static void remove_dir(void)
{
	if (getpid() == dir_owner)
		nftw(dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

/*
 * A test that is stopped, by its time limit or by somebody, leaves nothing behind either: what it has set up is undone at
 * exit. A child of it just dies. Should exit() hang, SIGKILL follows.
 */
static void leave(int signal_number)
{
	static const char own[] = "the test's own time limit is over\n", stopped[] = "the test was stopped\n";
	static atomic_flag leaving = ATOMIC_FLAG_INIT;

	if (getpid() != dir_owner) {
		signal(signal_number, SIG_DFL);
		raise(signal_number);
	} else if (!atomic_flag_test_and_set(&leaving)) {
		(void)!write(STDERR_FILENO, signal_number == SIGALRM ? own : stopped,
		             signal_number == SIGALRM ? sizeof(own) - 1 : sizeof(stopped) - 1);
		exit(1);
	}
}

static void leave_on_signals(void)
{
	static const int numbers[] = { SIGTERM, SIGALRM, SIGINT, SIGHUP };
	struct sigaction before;

	for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++)
		if (sigaction(numbers[i], NULL, &before) == 0 && before.sa_handler == SIG_DFL)
			signal(numbers[i], leave);
}

const char *fixture_dir(void)
{
	const char *base = getenv("TEST_DIR");

	if (dir[0])
		return dir;
	if (!base)
		base = getenv("TMPDIR");
	snprintf(dir, sizeof(dir), "%s/diohelper-test.XXXXXX", base ? base : "/var/tmp");
	if (!mkdtemp(dir))
		die(dir);
	dir_owner = getpid();
	atexit(remove_dir);
	leave_on_signals();
	return dir;
}

void fixture_prefer_tmpfs(void)
{
	DIOH_AUTO_FD int probe = open("/dev/shm", O_TMPFILE | O_RDWR | O_DIRECT | O_CLOEXEC, 0600);

	if (probe >= 0)
		(void)setenv("TEST_DIR", "/dev/shm", 0);
}

const char *fixture_path(const char *name)
{
	static char paths[8][512];
	static unsigned next;
	char *path = paths[next++ % 8];

	snprintf(path, sizeof(paths[0]), "%s/%s", fixture_dir(), name);
	return path;
}

const char *fixture_helper(void)
{
	const char *helper = getenv("DIOHELPER");

	return helper ? helper : "build/diohelper";
}

/* ---- time, and what is there ---- */

uint64_t now_ms(void)
{
	return dioh_now_ns() / DIOH_NS_PER_MS;
}

void sleep_ms(unsigned ms)
{
	struct timespec left = { ms / 1000, (long)(ms % 1000) * 1000000 };

	while (nanosleep(&left, &left) < 0 && errno == EINTR)
		continue;
}

unsigned must_count_entries(const char *directory)
{
	DIR *opened = opendir(directory);
	unsigned count = 0;

	if (!opened)
		die(directory);
	while (readdir(opened))
		count++;
	closedir(opened);
	return count - 2; /* "." and ".." */
}

unsigned must_count_descriptors(void)
{
	return must_count_entries("/proc/self/fd") - 1; /* the one that counts */
}

/* ---- memory ---- */

int must_memfd(const char *name, uint64_t bytes, unsigned flags)
{
	int fd = memfd_create(name, MFD_CLOEXEC | flags);

	if (fd < 0 || ftruncate(fd, (off_t)bytes) < 0)
		die("memfd");
	return fd;
}

static void must_pwrite(int fd, const void *bytes, size_t count, uint64_t offset)
{
	if (pwrite(fd, bytes, count, (off_t)offset) != (ssize_t)count)
		die("pwrite");
}

void must_fill(int fd, uint64_t offset, uint64_t bytes, uint64_t seed)
{
	static _Thread_local uint64_t piece[PIECE_BYTES / sizeof(uint64_t)];
	uint64_t state = seed;

	for (uint64_t done = 0; done < bytes; done += sizeof(piece)) {
		for (size_t i = 0; i < sizeof(piece) / sizeof(piece[0]); i++)
			piece[i] = test_random(&state);
		must_pwrite(fd, piece, dioh_min(sizeof(piece), bytes - done), offset + done);
	}
}

void must_fill_zero(int fd, uint64_t offset, uint64_t bytes)
{
	static const uint8_t zeros[PIECE_BYTES];

	for (uint64_t done = 0; done < bytes; done += sizeof(zeros))
		must_pwrite(fd, zeros, dioh_min(sizeof(zeros), bytes - done), offset + done);
}

void must_fill_mixed(int fd, uint64_t bytes, unsigned granule_pages, unsigned longest, uint64_t seed)
{
	const uint64_t granule = (uint64_t)granule_pages * DIOH_PAGE_BYTES;
	uint64_t state = seed;

	for (uint64_t at = 0; at < bytes;) {
		uint64_t length = dioh_min((1 + test_random(&state) % longest) * granule, bytes - at);
		unsigned kind = test_random(&state) % 3;

		if (kind == 0)
			must_fill(fd, at, length, test_random(&state));
		else if (kind == 1)
			must_fill_zero(fd, at, length);
		at += length;
	}
}

uint64_t must_blocks_bytes(int fd)
{
	struct stat st;

	if (fstat(fd, &st) < 0)
		die("fstat");
	return (uint64_t)st.st_blocks * 512;
}

bool same_range(int fd_a, uint64_t offset_a, int fd_b, uint64_t offset_b, uint64_t bytes)
{
	static _Thread_local uint8_t a[PIECE_BYTES], b[PIECE_BYTES];

	for (uint64_t done = 0; done < bytes; done += sizeof(a)) {
		size_t n = dioh_min(sizeof(a), bytes - done);

		if (pread(fd_a, a, n, (off_t)(offset_a + done)) != (ssize_t)n ||
		    pread(fd_b, b, n, (off_t)(offset_b + done)) != (ssize_t)n) {
			fprintf(stderr, "short read at %llu\n", (unsigned long long)done);
			return false;
		}
		if (memcmp(a, b, n) == 0)
			continue;
		for (size_t i = 0; i < n; i++) {
			if (a[i] != b[i]) {
				fprintf(stderr, "byte %llu differs: %02x, %02x\n", (unsigned long long)(done + i), a[i],
				        b[i]);
				return false;
			}
		}
	}
	return true;
}

bool same_bytes(int fd_a, int fd_b)
{
	struct stat a, b;

	if (fstat(fd_a, &a) < 0 || fstat(fd_b, &b) < 0)
		die("fstat");
	if (a.st_size != b.st_size) {
		fprintf(stderr, "sizes differ: %llu, %llu\n", (unsigned long long)a.st_size, (unsigned long long)b.st_size);
		return false;
	}
	return same_range(fd_a, 0, fd_b, 0, (uint64_t)a.st_size);
}

/* ---- sessions ---- */

struct dioh_session *must_session(const struct fixture_image *image, uint32_t direction)
{
	const int access = direction == DIOH_DIRECTION_SAVE ? O_RDWR | O_CREAT : O_RDONLY;
	struct dioh_spawn_options spawn = DIOH_SPAWN_OPTIONS_INIT;
	struct dioh_image_options options = image->options;
	struct dioh_msg_attach_image_reply info;
	struct dioh_session *session;
	struct dioh_error err;
	DIOH_AUTO_FD int buffered = -1;
	DIOH_AUTO_FD int direct = -1;

	buffered = open(image->path, access | O_CLOEXEC, 0600);
	if (buffered < 0)
		die(image->path);
	if (!image->no_direct)
		direct = open(image->path, (access & ~O_CREAT) | O_DIRECT | O_CLOEXEC);
	spawn.program = fixture_helper();
	spawn.args = image->args;
	must(dioh_spawn(&spawn, 0, &session, &err), &err);
	options.buffered_fd = image->lone_direct ? -1 : buffered;
	options.direct_fd = direct;
	options.directory_fd = -1;
	options.direction = direction;
	must(dioh_attach_image(session, &options, &info, &err), &err);
	if (image->ret_info)
		*image->ret_info = info;
	return session;
}

void must_attach_memory(struct dioh_session *session, uint32_t number, int fd, int selection_fd)
{
	struct dioh_memory_options options = DIOH_MEMORY_OPTIONS_INIT;
	struct dioh_msg_attach_memory_reply info;
	struct dioh_error err;

	options.fd = fd;
	options.selection_fd = selection_fd;
	must(dioh_attach_memory(session, number, &options, &info, &err), &err);
}

void must_seal(struct dioh_session *session)
{
	struct dioh_msg_seal_reply info;
	struct dioh_error err;

	must(dioh_seal(session, 0, &info, &err), &err);
}

void must_close(struct dioh_session *session, int status)
{
	int wait_status = 0;

	if (dioh_close(session, 30000, &wait_status) < 0 || !WIFEXITED(wait_status) ||
	    WEXITSTATUS(wait_status) != status) {
		fprintf(stderr, "helper ended with wait status 0x%x, expected exit status %d\n", wait_status, status);
		exit(1);
	}
}

struct dioh_msg_entry region_entry(uint32_t number, const char *name, uint64_t bytes)
{
	struct dioh_msg_entry entry = { .kind = DIOH_ENTRY_REGION, .number = number, .bytes = bytes };

	snprintf(entry.name, sizeof(entry.name), "%s", name);
	return entry;
}

struct dioh_msg_entry stream_entry(uint32_t number, const char *name)
{
	struct dioh_msg_entry entry = { .kind = DIOH_ENTRY_STREAM, .number = number };

	snprintf(entry.name, sizeof(entry.name), "%s", name);
	return entry;
}

static int move_all(struct dioh_session *session, bool save, const struct fixture_region *regions, unsigned count,
                    uint32_t flags, struct dioh_msg_complete *ret_complete, struct dioh_error *err)
{
	uint32_t ids[64];
	int r = 0;

	for (unsigned i = 0; i < count && r == 0; i++) {
		struct dioh_msg_memory_transfer what = {
			.memory = i, .region = regions[i].number, .length = regions[i].bytes, .flags = flags
		};

		r = save ? dioh_save_memory(session, &what, &ids[i], err) : dioh_load_memory(session, &what, &ids[i], err);
	}
	for (unsigned i = 0; i < count && r == 0; i++)
		r = dioh_wait(session, ids[i], ret_complete, err);
	return r;
}

static int create(struct dioh_session *session, const struct fixture_region *regions, unsigned count,
                  struct dioh_error *err)
{
	struct dioh_create_options create_options = { .layout = DIOH_LAYOUT_CONTAINER, .entry_count = count };
	struct dioh_msg_image_reply info;
	struct dioh_msg_entry entries[64];

	for (unsigned i = 0; i < count; i++)
		entries[i] = region_entry(regions[i].number, regions[i].name, regions[i].bytes);
	create_options.entries = entries;
	return dioh_create_image(session, &create_options, &info, err);
}

int fixture_save(const struct fixture_image *image, const struct fixture_region *regions, unsigned count,
                 uint32_t flags, struct dioh_msg_complete *ret_complete, struct dioh_error *err)
{
	struct dioh_session *session = must_session(image, DIOH_DIRECTION_SAVE);
	uint32_t finish;
	int r;

	for (unsigned i = 0; i < count; i++)
		must_attach_memory(session, i, regions[i].memfd, -1);
	must_seal(session);
	r = create(session, regions, count, err);
	if (r == 0)
		r = move_all(session, true, regions, count, flags, ret_complete, err);
	if (r == 0)
		r = dioh_finish(session, DIOH_FINISH_DURABLE, 0, NULL, 0, &finish, err);
	if (r == 0)
		r = dioh_wait(session, finish, NULL, err);
	must_close(session, r < 0);
	return r;
}

int fixture_load(const struct fixture_image *image, const struct fixture_region *regions, unsigned count,
                 uint32_t flags, struct dioh_msg_complete *ret_complete, struct dioh_error *err)
{
	struct dioh_session *session = must_session(image, DIOH_DIRECTION_LOAD);
	struct dioh_open_options options = { .layout = DIOH_LAYOUT_DETECT };
	struct dioh_msg_open_image_reply info;
	int r;

	for (unsigned i = 0; i < count; i++)
		must_attach_memory(session, i, regions[i].memfd, -1);
	must_seal(session);
	r = dioh_open_image(session, &options, &info, err);
	if (r == 0)
		r = move_all(session, false, regions, count, flags, ret_complete, err);
	must_close(session, 0);
	return r;
}
