/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test_root_powercut.c - the power goes in the middle of a save: whatever a disk may then hold is no image, or is one whose
 * every byte is right.
 *
 * A disk of our own (fuse_file.h) writes down what a save tells it: writes with their bytes, sizes, holes, syncs.
 * power_cut.h makes of it what a power cut may leave. On a file, and on a block device (a loop device over our disk, whose
 * steps are then those of the device); into nothing, over an older complete image of each layout, and continuing an image
 * of an earlier save. test_powercut.c has something of it for whoever has no FUSE.
 *
 * How a file system keeps its own promises is not tested here, nor the directory's entry.
 *
 * DIOH_REPLAYS: how many by chance, besides the others; with it an earlier save has ended in each of the ways that there are,
 * else in one of them for each layout and place. DIOH_SEED: which. Needs root, FUSE and a loop device.
 */
/* timeout: 480 */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cleanup.h"
#include "fuse_file.h"
#include "loop_device.h"
#include "power_cut.h"

#define REPLAYS 200u /* of `make check-root`; `make powercut` asks for more */
#define CASES (3u * 2u * 4u + 2u * 2u * POWER_EARLIER)
#define EVERY 16u /* refused disk is continued; `make powercut`: each LONG_EVERY */
#define LONG_EVERY 3u

static struct power_cut now; /* of the running case */
static struct fuse_file *file;
static struct loop_device loop;
static char replayed[512]; /* what the disks are written to */

/* ---- a save, written down ---- */

static void must_save_old(const char *path)
{
	struct specimen s = { .way = { .layout = now.before }, .path = path, .content = SPECIMEN_OLD };

	if (!specimen_save(&s))
		fail_msg("layout %u: %s %s", now.before, s.err.text, s.wrong);
}

static void sync_image(const struct specimen *s)
{
	DIOH_AUTO_FD int fd = must_open(s->path, O_RDWR);

	assert_int_equal(fdatasync(fd), 0);
}

static void collect(uint64_t *cursor)
{
	struct fuse_step step;

	while (fuse_file_step(file, cursor, &step))
		*power_cut_step(&now) = step;
}

static void record_save(const char *path)
{
	const struct specimen s = { .way = { .layout = now.layout }, .path = path, .sync = sync_image };
	uint64_t cursor = 0;

	if (now.before != DIOH_LAYOUT_DETECT)
		must_save_old(path);
	power_cut_begin(&now, fuse_file_memfd(file));
	fuse_file_record(file, true);
	if (now.earlier) {
		power_cut_save_earlier(&now, &s);
		collect(&cursor);
		now.begun = now.count;
	}
	power_cut_save(&now, &s);
	fuse_file_record(file, false);
	collect(&cursor);
}

/* ---- cases ---- */

static void forget(void)
{
	loop_device_forget(&loop);
}

static const char *open_places(void)
{
	static unsigned number;
	const char *why;
	char name[32];

	(void)snprintf(name, sizeof(name), "replay%u", number++);
	(void)snprintf(replayed, sizeof(replayed), "%s", fixture_path(name));
	now.fd = must_open(replayed, O_RDWR | O_CREAT | O_TRUNC);
	now.written = now.device ? forget : NULL;
	loop.fd = -1;
	(void)snprintf(now.path, sizeof(now.path), "%s", replayed);
	if (!now.device)
		return NULL;
	if (ftruncate(now.fd, SPECIMEN_DEVICE_BYTES) < 0 || ftruncate(fuse_file_memfd(file), SPECIMEN_DEVICE_BYTES) < 0)
		return "no room for a device";
	why = loop_device_open(&loop, now.fd, 512);
	(void)snprintf(now.path, sizeof(now.path), "%s", loop.path);
	return why;
}

static const char *record(void)
{
	DIOH_AUTO_FD int backing = -1;
	struct loop_device disk;
	const char *why;

	if (!now.device) {
		record_save(fuse_file_path(file));
		return NULL;
	}
	backing = must_open(fuse_file_path(file), O_RDWR);
	why = loop_device_open(&disk, backing, 512);
	if (why)
		return why;
	record_save(disk.path);
	loop_device_close(&disk);
	return NULL;
}

/* Whatever of it there is. */
static void end_case(void)
{
	if (now.fd >= 0) {
		(void)unlink(replayed);
		close(now.fd);
	}
	loop_device_close(&loop);
	fuse_file_stop(file);
	file = NULL;
	now.fd = loop.fd = -1;
}

static void run_case(unsigned wanted, uint64_t seed)
{
	const struct fuse_file_options options = { .async_dio = true, .fallocate = true, .record = true };
	static unsigned number;
	char name[32];
	const char *why;

	(void)snprintf(name, sizeof(name), "disk%u", number++);
	file = fuse_file_start(name, &options, &why);
	if (!why)
		why = open_places();
	if (!why)
		why = record();
	if (why) {
		print_message("skipped: %s\n", why);
		skip();
	}
	power_cut_run(&now, wanted, seed);
	end_case();
}

static unsigned wanted(void)
{
	const char *wish = getenv("DIOH_REPLAYS");

	return (wish ? (unsigned)strtoul(wish, NULL, 0) : REPLAYS) / CASES + 1;
}

static void power_cuts(bool device, uint32_t layout)
{
	now.device = device;
	now.layout = layout;
	now.earlier = NULL;
	for (now.before = DIOH_LAYOUT_DETECT; now.before <= DIOH_LAYOUT_MAPPED_RAM; now.before++) {
		run_case(wanted(), test_seed() + 16 * layout + 4 * now.before + device);
		power_cut_summary(&now);
	}
}

static void continued_power_cuts(bool device, uint32_t layout)
{
	const unsigned step = getenv("DIOH_REPLAYS") ? 1 : POWER_EARLIER, turn = 2 * (layout == DIOH_LAYOUT_CONTAINER) + device;

	now.device = device;
	now.layout = layout;
	for (unsigned i = turn % step; i < POWER_EARLIER; i += step) {
		now.earlier = &power_earlier[i];
		now.before = DIOH_LAYOUT_DETECT;
		run_case(wanted(), test_seed() + 64 + 32 * layout + 2 * i + device);
		power_cut_summary(&now);
	}
}

#define CASE(name, cuts, device, layout) \
	static void name(void **state) { (void)state; cuts(device, layout); }

CASE(raw_on_a_file, power_cuts, false, DIOH_LAYOUT_RAW)
CASE(container_on_a_file, power_cuts, false, DIOH_LAYOUT_CONTAINER)
CASE(mapped_ram_on_a_file, power_cuts, false, DIOH_LAYOUT_MAPPED_RAM)
CASE(raw_on_a_device, power_cuts, true, DIOH_LAYOUT_RAW)
CASE(container_on_a_device, power_cuts, true, DIOH_LAYOUT_CONTAINER)
CASE(mapped_ram_on_a_device, power_cuts, true, DIOH_LAYOUT_MAPPED_RAM)
CASE(container_continued_on_a_file, continued_power_cuts, false, DIOH_LAYOUT_CONTAINER)
CASE(mapped_ram_continued_on_a_file, continued_power_cuts, false, DIOH_LAYOUT_MAPPED_RAM)
CASE(container_continued_on_a_device, continued_power_cuts, true, DIOH_LAYOUT_CONTAINER)
CASE(mapped_ram_continued_on_a_device, continued_power_cuts, true, DIOH_LAYOUT_MAPPED_RAM)

static int clean_up(void **state)
{
	(void)state;
	end_case();
	return 0;
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(raw_on_a_file, clean_up),
		cmocka_unit_test_teardown(container_on_a_file, clean_up),
		cmocka_unit_test_teardown(mapped_ram_on_a_file, clean_up),
		cmocka_unit_test_teardown(raw_on_a_device, clean_up),
		cmocka_unit_test_teardown(container_on_a_device, clean_up),
		cmocka_unit_test_teardown(mapped_ram_on_a_device, clean_up),
		cmocka_unit_test_teardown(container_continued_on_a_file, clean_up),
		cmocka_unit_test_teardown(mapped_ram_continued_on_a_file, clean_up),
		cmocka_unit_test_teardown(container_continued_on_a_device, clean_up),
		cmocka_unit_test_teardown(mapped_ram_continued_on_a_device, clean_up),
	};

	loop.fd = -1;
	now.every = getenv("DIOH_REPLAYS") ? LONG_EVERY : EVERY;
	if (power_cut_prepare(&now) < 0)
		return 1;
	if (argc > 1) /* one case only */
		cmocka_set_test_filter(argv[1]);
	fixture_prefer_tmpfs();
	return cmocka_run_group_tests(tests, specimen_prepare, NULL);
}
