/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test_powercut.c - the power goes in the middle of a save into a file, for whoever has no FUSE: the helper itself, with a
 * recorder in front of its engine and its system calls (faulty_engine.c), writes down what it tells the disk. What it had
 * under way when a sync began counts as not durable: no disk promises more. power_cut.h makes of it what may be left.
 *
 * Each layout, into nothing and over older images of its own and of another, and continuing an image of an earlier save, all
 * engines in turn. Behind all of it stands the directory's sync. DIOH_SEED: which disks. test_root_powercut.c asks a disk
 * instead, and has block devices, too.
 */
/* timeout: 180 */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "power_cut.h"

#define BY_CHANCE 8u /* in each case */
#define EVERY 8u /* refused disk is continued */

static struct power_cut now;
static char recorder[512], helper[512], image[512];
static uint8_t *log_bytes;

static void must_save_old(struct way way)
{
	struct specimen s = { .way = { .layout = now.before, .fds = way.fds }, .path = image, .content = SPECIMEN_OLD };

	if (!specimen_save(&s))
		fail_msg("%s: %s %s", way_name(&s.way), s.err.text, s.wrong);
}

/* A manager's, between what its helper does: all I/O is done by then. */
static void sync_image(const struct specimen *s)
{
	const struct fuse_step step = { .opcode = FUSE_FSYNC, .flags = FUSE_FSYNC_FDATASYNC };

	assert_int_equal(write(s->messages, &step, sizeof(step)), sizeof(step));
}

/* Steps, and behind each its bytes. `earlier_bytes`: of an earlier save. */
static void read_record(int messages, uint64_t earlier_bytes)
{
	const uint64_t count = must_bytes(messages);
	uint64_t at = 0;

	free(log_bytes);
	log_bytes = malloc(count + 1);
	assert_non_null(log_bytes);
	assert_int_equal(pread(messages, log_bytes, count, 0), count);
	while (at < count) {
		struct fuse_step *step = power_cut_step(&now);

		now.begun += at < earlier_bytes;
		assert_true(count - at >= sizeof(*step));
		memcpy(step, log_bytes + at, sizeof(*step));
		at += sizeof(*step);
		if (step->opcode != FUSE_WRITE)
			continue;
		assert_true(count - at >= step->bytes);
		step->data = log_bytes + at;
		at += step->bytes;
	}
	assert_true(now.count > 3);
	assert_int_equal(now.steps[now.count - 1].opcode, FUSE_FSYNCDIR);
}

static void record_save(struct way way)
{
	const struct specimen s = { .way = way, .path = image, .directory = fixture_dir(), .sync = sync_image,
		                    .messages = must_memfd("messages", 0, 0) };
	uint64_t earlier_bytes = 0;
	int before;

	(void)unlink(image);
	if (now.before != DIOH_LAYOUT_DETECT)
		must_save_old(way);
	before = must_open(image, O_RDWR | O_CREAT);
	power_cut_begin(&now, before);
	close(before);
	setenv("DIOHELPER", recorder, 1);
	setenv("DIOH_FAULT", "record:0", 1);
	if (now.earlier) {
		power_cut_save_earlier(&now, &s);
		earlier_bytes = must_bytes(s.messages);
	}
	power_cut_save(&now, &s);
	setenv("DIOHELPER", helper, 1);
	read_record(s.messages, earlier_bytes);
	close(s.messages);
}

/* The engine and the descriptors are not the question here: each has its turn. */
static struct way some_way(void)
{
	static unsigned turn;
	struct way way = { .layout = now.layout, .engine = DIOH_ENGINE_IO_URING + turn % 3, .fds = turn / 3 % 3 };

	turn++;
	if (!way_possible(&(struct way){ .fds = WAY_LONE_DIRECT }))
		way.fds = WAY_LONE_BUFFERED;
	if (!way_possible(&way))
		way.engine = DIOH_ENGINE_SYNC;
	return way;
}

static void run_case(void)
{
	static unsigned number;

	record_save(some_way());
	now.fd = must_open(now.path, O_RDWR | O_CREAT | O_TRUNC);
	power_cut_run(&now, BY_CHANCE, test_seed() + 8 * now.layout + number++);
	close(now.fd);
	power_cut_summary(&now);
}

static void power_cuts(uint32_t layout)
{
	const uint32_t other = layout == DIOH_LAYOUT_RAW ? DIOH_LAYOUT_MAPPED_RAM : DIOH_LAYOUT_RAW;
	const uint32_t before[] = { DIOH_LAYOUT_DETECT, layout, other };

	now.layout = layout;
	now.earlier = NULL;
	now.brief = false;
	for (unsigned i = 0; i < sizeof(before) / sizeof(before[0]); i++) {
		now.before = before[i];
		run_case();
	}
}

/* Not one whose helper was killed: it would not have told all. The first one is the one that leaves most behind. */
static void continued_power_cuts(uint32_t layout)
{
	now.layout = layout;
	for (now.earlier = power_earlier; !now.earlier->killed; now.earlier++) {
		now.before = DIOH_LAYOUT_DETECT;
		now.brief = now.earlier > power_earlier;
		run_case();
	}
}

static void raw(void **state)
{
	(void)state;
	power_cuts(DIOH_LAYOUT_RAW);
}

static void container(void **state)
{
	(void)state;
	power_cuts(DIOH_LAYOUT_CONTAINER);
}

static void mapped_ram(void **state)
{
	(void)state;
	power_cuts(DIOH_LAYOUT_MAPPED_RAM);
}

static void container_continued(void **state)
{
	(void)state;
	continued_power_cuts(DIOH_LAYOUT_CONTAINER);
}

static void mapped_ram_continued(void **state)
{
	(void)state;
	continued_power_cuts(DIOH_LAYOUT_MAPPED_RAM);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(raw),
		cmocka_unit_test(container),
		cmocka_unit_test(mapped_ram),
		cmocka_unit_test(container_continued),
		cmocka_unit_test(mapped_ram_continued),
	};

	fixture_prefer_tmpfs();
	(void)snprintf(helper, sizeof(helper), "%s", fixture_helper());
	(void)snprintf(recorder, sizeof(recorder), "%.*s/faulty_engine", (int)(strrchr(argv[0], '/') - argv[0]), argv[0]);
	(void)snprintf(image, sizeof(image), "%s", fixture_path("image"));
	(void)snprintf(now.path, sizeof(now.path), "%s", fixture_path("left"));
	now.every = EVERY;
	if (power_cut_prepare(&now) < 0)
		return 1;
	if (argc > 1) /* one case only */
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests(tests, specimen_prepare, NULL);
}
