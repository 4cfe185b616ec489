/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test_root_space.c - full file systems and block devices: a small ext4 on a loop device, a small tmpfs, a bare loop
 * device. Needs root, mount and mkfs.ext4.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "loop_device.h"
#include "moves.h"
#include "pattern.h"
#include "places.h"

#define SAVE DIOH_DIRECTION_SAVE
#define LOAD DIOH_DIRECTION_LOAD

#define SKIPPED 77
#define SMALL_BYTES (48 * MIB)

static char ext4[512], tmpfs[512];
static struct loop_device device = { .fd = -1 };
static pid_t owner;

/* ---- places ---- */

static void undo(void)
{
	if (getpid() != owner)
		return;
	umount2(ext4, MNT_DETACH);
	umount2(tmpfs, MNT_DETACH);
}

static bool run(const char *command)
{
	return system(command) == 0;
}

static int make_backing(const char *name)
{
	int fd = must_open(fixture_path(name), O_RDWR | O_CREAT | O_TRUNC);

	if (ftruncate(fd, SMALL_BYTES) < 0)
		fixture_die(__FILE__, __LINE__, name, strerror(errno));
	return fd;
}

static const char *make_device(void)
{
	int file = make_backing("device.img");
	const char *why = loop_device_open(&device, file, 512);

	close(file);
	return why;
}

/* NULL, or what is missing. */
static const char *make_places(void)
{
	const char *why = place_own_namespace();
	char command[1280];

	if (why)
		return why;
	fixture_dir(); /* its removal comes after undo() */
	owner = getpid();
	atexit(undo);
	snprintf(ext4, sizeof(ext4), "%s", fixture_path("ext4"));
	snprintf(tmpfs, sizeof(tmpfs), "%s", fixture_path("tmpfs"));
	if (mkdir(ext4, 0700) < 0 || mkdir(tmpfs, 0700) < 0)
		return "no directories to mount on";
	close(make_backing("ext4.img"));
	snprintf(command, sizeof(command), "mkfs.ext4 -q -m 0 %s && mount -o loop %s %s", fixture_path("ext4.img"),
	         fixture_path("ext4.img"), ext4);
	if (!run(command))
		return "no loop device, mkfs.ext4 or mount here";
	if (mount("tmpfs", tmpfs, "tmpfs", 0, "size=24m") < 0)
		return "no tmpfs can be mounted here";
	return make_device();
}

static void for_each_small(void (*test)(const struct way *way, const char *path))
{
	const char *const dirs[] = { ext4, tmpfs };

	for (unsigned i = 0; i < 8; i++) {
		const struct way way = {
			.layout = i & 1 ? DIOH_LAYOUT_RAW : DIOH_LAYOUT_CONTAINER,
			.engine = i & 2 ? DIOH_ENGINE_SYNC : DIOH_ENGINE_IO_URING,
		};
		char path[600];

		if (!way_possible(&way))
			continue;
		snprintf(path, sizeof(path), "%s/image", dirs[i / 4]);
		print_message("%s: %s\n", path, way_name(&way));
		unlink(path);
		test(&way, path);
		unlink(path);
	}
}

/* ---- no space ---- */

static void expect_no_space(struct moves *m)
{
	if (m->err.code != ENOSPC || m->err.object != DIOH_OBJECT_IMAGE || m->err.operation != DIOH_OP_WRITE ||
	    m->err.offset == DIOH_OFFSET_NONE)
		fail_msg("code %d, operation %u, object %u, offset %lld: %s", m->err.code, m->err.operation, m->err.object,
		         (long long)m->err.offset, m->err.text);
	assert_non_null(strstr(m->err.text, "No space left on device"));
}

static void expect_partial(const struct way *way, const char *path)
{
	struct moves m = MOVES(*way, path);

	if (way->layout == DIOH_LAYOUT_RAW)
		return;
	moves_start(&m, LOAD);
	assert_int_equal(moves_open(&m, 0), -ENODATA);
	moves_end(&m, 0);
}

static void memory_too_large(const struct way *way, const char *path)
{
	int memory = must_memfd("memory", 80 * MIB, 0), small = must_memfd("small", MIB, 0);
	struct moves m = MOVES(*way, path);

	must_fill(memory, 0, 80 * MIB, 1);
	must_fill(small, 0, MIB, 2);
	moves_add_region(&m, 0, 80 * MIB);
	moves_add_region(&m, 1, MIB);
	moves_start(&m, SAVE);
	moves_attach(&m, 0, memory, -1);
	moves_attach(&m, 1, small, -1);
	must(moves_create(&m), &m.err);
	assert_true(m.created.needed_bytes > m.created.free_bytes); /* a manager could have known */
	assert_int_equal(moves_region(&m, 0, 0), -ENOSPC);
	expect_no_space(&m);
	moves_assert_alive(&m);
	assert_int_equal(moves_finish(&m, DIOH_FINISH_DURABLE), -ENODATA);
	moves_end(&m, 1);
	expect_partial(way, path);
	close(memory);
	close(small);
}

static void memory_on_a_full_file_system(void **state)
{
	(void)state;
	for_each_small(memory_too_large);
}

static void stream_too_long(const struct way *way, const char *path)
{
	struct moves m = MOVES(*way, path);
	struct peer writer = { .seed = 1, .bytes = 80 * MIB };
	int ends[2];

	moves_add_stream(&m, 0, 0);
	moves_start(&m, SAVE);
	assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
	moves_attach_stream(&m, 0, ends[0]);
	writer.fd = ends[1];
	must(moves_create(&m), &m.err);
	peer_write(&writer);
	assert_int_equal(moves_wait(&m, moves_begin_stream(&m, 0, 0, 0)), -ENOSPC);
	expect_no_space(&m);
	moves_assert_alive(&m);
	moves_end(&m, 1);
	peer_join(&writer);
	assert_int_equal(writer.code, EPIPE); /* nobody reads on */
	expect_partial(way, path);
}

static void stream_on_a_full_file_system(void **state)
{
	(void)state;
	for_each_small(stream_too_long);
}

/* What stands there is not touched when it is known beforehand that a new image cannot fit. */
static void preflight(const struct way *way, const char *path)
{
	int old = must_memfd("old", MIB, 0), loaded = must_memfd("loaded", MIB, 0), huge;
	struct moves m = MOVES(*way, path);

	if (way->layout == DIOH_LAYOUT_RAW)
		return;
	must_fill(old, 0, MIB, 3);
	must_save_all(way, path, &old, 1, 0);
	huge = must_memfd("huge", 4096 * GIB, 0);
	moves_add_region(&m, 0, 4096 * GIB); /* its bitmap alone has 128 MiB */
	moves_start(&m, SAVE);
	moves_attach(&m, 0, huge, -1);
	assert_int_equal(moves_create(&m), -ENOSPC);
	moves_assert_error(&m, ENOSPC, SIZE, IMAGE, 0);
	assert_non_null(strstr(m.err.text, "nothing was written"));
	moves_end(&m, 1);
	must_load_all(way, path, &loaded, 1, 0);
	assert_true(same_bytes(old, loaded));
	close(huge);
	close(old);
	close(loaded);
}

static void preflight_keeps_what_stands_there(void **state)
{
	(void)state;
	for_each_small(preflight);
}

/* ---- a block device ---- */

static void describe(struct moves *m, const struct way *way, uint64_t bytes, uint64_t stream_bytes)
{
	*m = (struct moves)MOVES(*way, device.path);
	moves_add_region(m, 0, bytes);
	moves_add_stream(m, 0, stream_bytes)->image_offset += 7;
}

static void save_device(const struct way *way, int memory, uint64_t stream_bytes)
{
	int source = must_open(fixture_path("source"), O_RDWR | O_CREAT | O_TRUNC);
	struct moves m;

	must_write_pattern(source, 0, stream_bytes, 5);
	describe(&m, way, must_bytes(memory), stream_bytes);
	moves_start(&m, SAVE);
	moves_attach(&m, 0, memory, -1);
	moves_attach_stream(&m, 0, source);
	must(moves_create(&m), &m.err);
	must(moves_region(&m, 0, 0), &m.err);
	must(moves_wait(&m, moves_begin_stream(&m, 0, 0, 0)), &m.err);
	must(moves_finish(&m, DIOH_FINISH_DURABLE), &m.err);
	moves_end(&m, 0);
}

static void load_device(const struct way *way, int memory, uint64_t stream_bytes)
{
	const uint64_t bytes = must_bytes(memory);
	int sink = must_open(fixture_path("sink"), O_RDWR | O_CREAT | O_TRUNC), loaded = must_memfd("loaded", bytes, 0);
	struct moves m;

	must_fill(loaded, 0, bytes, 9);
	describe(&m, way, bytes, stream_bytes);
	moves_start(&m, LOAD);
	moves_attach(&m, 0, loaded, -1);
	moves_attach_stream(&m, 0, fcntl(sink, F_DUPFD_CLOEXEC, 0));
	must(moves_open(&m, 0), &m.err);
	must(moves_region(&m, 0, 0), &m.err);
	must(moves_wait(&m, moves_begin_stream(&m, 0, 0, 0)), &m.err);
	moves_end(&m, 0);
	assert_true(same_bytes(memory, loaded));
	assert_int_equal(must_bytes(sink), stream_bytes);
	assert_true(same_pattern(sink, 0, stream_bytes, 5));
	close(sink);
	close(loaded);
}

static int mixed(uint64_t bytes, uint64_t seed)
{
	int fd = must_memfd("mixed", bytes, 0);

	must_fill_mixed(fd, bytes, 1, 300, seed);
	return fd;
}

static void device_way(const struct way *given)
{
	struct way way = *given;
	int first = mixed(20 * MIB + 3 * PAGE, test_seed()), second = mixed(9 * MIB + PAGE, test_seed() + 1);

	for (way.fds = WAY_TWO; way.fds <= WAY_LONE_DIRECT; way.fds++) {
		way.base_offset = way.fds * PAGE;
		save_device(&way, first, 5 * MIB + 1);
		load_device(&way, first, 5 * MIB + 1);
		save_device(&way, second, 77); /* over it: nothing of the older one comes back */
		load_device(&way, second, 77);
	}
	close(first);
	close(second);
}

static void images_on_a_device(void **state)
{
	(void)state;
	for_each_way(device_way);
}

/* Up to the device's last byte, and one byte more. */
static void device_end(const struct way *way)
{
	const uint64_t base = 2 * PAGE;
	const uint64_t room = way->layout == DIOH_LAYOUT_RAW ? SMALL_BYTES - base - 4096 : 0;
	struct moves m = MOVES(*way, device.path);
	struct peer writer = { .seed = 1, .bytes = room ? room : 64 * MIB };
	int ends[2], r;

	m.way.base_offset = base;
	moves_add_stream(&m, 0, 0)->image_offset = 4096;
	for (unsigned more = 0; more < 2; more++) {
		moves_start(&m, SAVE);
		assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
		moves_attach_stream(&m, 0, ends[0]);
		writer.fd = ends[1];
		writer.bytes += more;
		must(moves_create(&m), &m.err);
		peer_write(&writer);
		r = moves_wait(&m, moves_begin_stream(&m, 0, 0, 0));
		assert_int_equal(r, room && !more ? 0 : -ENOSPC);
		if (r == 0)
			must(moves_finish(&m, DIOH_FINISH_DURABLE), &m.err);
		else
			expect_no_space(&m);
		moves_end(&m, r != 0);
		peer_join(&writer);
	}
	expect_partial(&m.way, device.path);
}

static void up_to_the_end_of_a_device(void **state)
{
	(void)state;
	for_each_way(device_end);
}

static void region_beyond_a_device(const struct way *way)
{
	int memory = must_memfd("memory", 64 * MIB, 0);
	struct moves m = MOVES(*way, device.path);

	moves_add_region(&m, 0, 64 * MIB);
	moves_start(&m, SAVE);
	moves_attach(&m, 0, memory, -1);
	assert_int_equal(moves_create(&m), -ENOSPC);
	moves_assert_error(&m, ENOSPC, SIZE, IMAGE, 0);
	assert_non_null(strstr(m.err.text, "nothing was written"));
	moves_end(&m, 1);
	close(memory);
}

static void too_large_for_a_device(void **state)
{
	(void)state;
	for_each_way(region_beyond_a_device);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(memory_on_a_full_file_system),
		cmocka_unit_test(stream_on_a_full_file_system),
		cmocka_unit_test(preflight_keeps_what_stands_there),
		cmocka_unit_test(images_on_a_device),
		cmocka_unit_test(up_to_the_end_of_a_device),
		cmocka_unit_test(too_large_for_a_device),
	};
	const char *why;

	if (geteuid() != 0) {
		puts("needs root");
		return SKIPPED;
	}
	why = make_places();
	if (why) {
		puts(why);
		return SKIPPED;
	}
	signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests_name("space of root", tests, NULL, NULL);
}
