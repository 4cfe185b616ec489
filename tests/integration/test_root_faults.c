/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test_root_faults.c - every single request that a small save and a small load make of their disk fails once, in turn, in
 * every way that a disk of our own (fuse_file.h) can make it fail: for each layout, each engine, with and without O_DIRECT,
 * into nothing and over an older image.
 *
 * A save says that it is complete only if every byte can be loaded again. Else it says what failed, and the image is
 * refused; where the disk did what it was told and then told of an error, or a sync failed, it may as well be whole. A load
 * gives every byte right, or an error. Nothing crashes, nothing hangs.
 *
 * DIOH_FAULTS=N: only every Nth, 16 without it, and DIOH_SEED shifts which; 1: all, as `make faults` does it. Needs root
 * and FUSE.
 */
/* timeout: 900 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fuse_file.h"
#include "specimen.h"

#define HANG_S 30
#define LATE_MS 15
#define SHORT_BYTES 512
#define EVERY 16u

struct fault {
	const char *name;
	struct fuse_fault what;
	bool ok_wanted; /* nothing may come of it */
	bool done;      /* what was asked for may have been done */
	bool needs_direct; /* else the kernel hides it from the helper */
};

static const struct fault of_writes[] = {
	{ .name = "EIO", .what = { .kind = FUSE_FAULT_ERROR, .value = EIO } },
	{ .name = "ENOSPC", .what = { .kind = FUSE_FAULT_ERROR, .value = ENOSPC } },
	{ .name = "EDQUOT", .what = { .kind = FUSE_FAULT_ERROR, .value = EDQUOT } },
	{ .name = "short", .what = { .kind = FUSE_FAULT_SHORT, .value = SHORT_BYTES } },
	/* Of a write within one sector all or nothing is left. */
	{ .name = "torn", .what = { .kind = FUSE_FAULT_TORN, .value = EIO }, .done = true },
	{ .name = "late", .what = { .kind = FUSE_FAULT_LATE, .value = LATE_MS }, .ok_wanted = true },
	{ .name = "done, and EIO", .what = { .kind = FUSE_FAULT_DONE, .value = EIO }, .done = true },
	{ .name = "lost, EIO from the next sync", .what = { .kind = FUSE_FAULT_LOST, .value = EIO } },
	{ .name = NULL },
};

static const struct fault of_others[] = { /* syncs, sizes, holes */
	{ .name = "EIO", .what = { .kind = FUSE_FAULT_ERROR, .value = EIO } },
	{ .name = "ENOSPC", .what = { .kind = FUSE_FAULT_ERROR, .value = ENOSPC } },
	{ .name = "EDQUOT", .what = { .kind = FUSE_FAULT_ERROR, .value = EDQUOT } },
	{ .name = "late", .what = { .kind = FUSE_FAULT_LATE, .value = LATE_MS }, .ok_wanted = true },
	{ .name = "done, and EIO", .what = { .kind = FUSE_FAULT_DONE, .value = EIO }, .done = true },
	{ .name = NULL },
};

static const struct fault of_reads[] = {
	{ .name = "EIO", .what = { .kind = FUSE_FAULT_ERROR, .value = EIO } },
	{ .name = "short", .what = { .kind = FUSE_FAULT_SHORT, .value = SHORT_BYTES }, .needs_direct = true },
	{ .name = "late", .what = { .kind = FUSE_FAULT_LATE, .value = LATE_MS }, .ok_wanted = true },
	{ .name = NULL },
};

static const struct {
	uint32_t opcode;
	const char *name;
	const struct fault *faults;
} requests[] = {
	{ FUSE_WRITE, "write", of_writes }, { FUSE_FSYNC, "sync", of_others }, { FUSE_SETATTR, "size", of_others },
	{ FUSE_FALLOCATE, "fallocate", of_others }, { FUSE_READ, "read", of_reads },
};

#define REQUESTS (sizeof(requests) / sizeof(requests[0]))

static struct {
	struct fuse_file *file;
	struct way way;
	bool direct; /* what is short comes short */
	bool over; /* an older image */
	unsigned every;
	unsigned turn;
	unsigned saves, loads, complete, refused, whole, errors; /* whole: though an error was told of */
} now;

/* ---- one fault ---- */

static void die(const char *what, unsigned request, const struct fault *fault, unsigned index, const struct specimen *s)
{
	fail_msg("%s%s: %s %u, %s: %s: %s [%s]", way_name(&now.way), now.over ? ", over an older image" : "",
	         requests[request].name, index, fault->name, what, s->err.text, s->wrong);
}

static void set(unsigned request, const struct fault *fault, unsigned index)
{
	struct fuse_fault what = fault->what;

	what.after = index;
	what.times = 1;
	alarm(HANG_S);
	fuse_file_set_fault(now.file, requests[request].opcode, &what);
}

/* Answers whether it was hit. */
static bool unset(unsigned request)
{
	const bool hit = fuse_file_hits(now.file, requests[request].opcode) > 0;

	fuse_file_release(now.file, 0);
	return hit;
}

static bool is_told(const struct dioh_error *err)
{
	return err->code > 0 && err->operation != DIOH_OP_NONE && err->object != 0 && err->text[0];
}

static struct specimen specimen(enum specimen_content content)
{
	return (struct specimen){ .way = now.way, .path = fuse_file_path(now.file), .content = content };
}

static void begin_image(void)
{
	struct specimen s = specimen(SPECIMEN_OLD);

	if (ftruncate(fuse_file_memfd(now.file), 0) < 0)
		fail_msg("ftruncate: %s", strerror(errno));
	if (now.over && !specimen_save(&s))
		fail_msg("the older image: %s", s.err.text);
}

struct created {
	bool seen;
};

static void watch(enum specimen_step step, pid_t helper, void *context)
{
	struct created *created = context;

	(void)helper;
	created->seen |= step == SPECIMEN_CREATED;
}

static void judge_save(unsigned request, const struct fault *fault, unsigned index, bool ok, bool created,
                       struct specimen *s)
{
	struct specimen again = specimen(SPECIMEN_NEW);
	enum specimen_verdict verdict;

	if (s->wrong[0])
		die("the save ended badly", request, fault, index, s);
	if (!ok && (fault->ok_wanted || !is_told(&s->err)))
		die("the save failed, or does not say why", request, fault, index, s);
	again.way.fds = WAY_LONE_BUFFERED;
	again.way.engine = DIOH_ENGINE_SYNC;
	verdict = specimen_load(&again, DIOH_LAYOUT_DETECT);
	now.complete += ok;
	now.refused += !ok && verdict == SPECIMEN_REFUSED;
	now.whole += !ok && verdict == SPECIMEN_IS_NEW;
	if (ok && verdict == SPECIMEN_IS_NEW)
		return;
	if (!ok && verdict == SPECIMEN_REFUSED)
		return;
	if (!ok && verdict == SPECIMEN_IS_NEW && (fault->done || requests[request].opcode == FUSE_FSYNC))
		return;
	if (!ok && verdict == SPECIMEN_IS_OLD && now.over && !created)
		return;
	die(ok ? "complete, and it is not" : "not complete, and it is taken", request, fault, index, &again);
}

/* false: there are not so many requests. */
static bool save_with(unsigned request, const struct fault *fault, unsigned index)
{
	struct specimen s = specimen(SPECIMEN_NEW);
	struct created created = { 0 };
	bool ok, hit;

	begin_image();
	s.watch = watch;
	s.context = &created;
	set(request, fault, index);
	ok = specimen_save(&s);
	hit = unset(request);
	now.saves += hit;
	judge_save(request, fault, index, ok, created.seen, &s);
	return hit;
}

static bool load_with(unsigned request, const struct fault *fault, unsigned index)
{
	struct specimen s = specimen(SPECIMEN_NEW);
	enum specimen_verdict verdict;
	bool hit;

	set(request, fault, index);
	verdict = specimen_load(&s, now.way.layout);
	hit = unset(request);
	now.loads += hit;
	now.errors += verdict != SPECIMEN_IS_NEW;
	if (verdict == SPECIMEN_IS_NEW)
		return hit;
	if (verdict == SPECIMEN_WRONG || verdict == SPECIMEN_IS_OLD || fault->ok_wanted || !is_told(&s.err))
		die("a load that is wrong, or does not say why", request, fault, index, &s);
	if (fault->what.kind == FUSE_FAULT_ERROR && s.err.code != fault->what.value)
		die("a load that says something else", request, fault, index, &s);
	return hit;
}

/* ---- all of them ---- */

static unsigned counted(unsigned request)
{
	return fuse_file_count(now.file, requests[request].opcode);
}

static void each(unsigned request, unsigned count, bool (*with)(unsigned, const struct fault *, unsigned))
{
	for (const struct fault *fault = requests[request].faults; fault->name; fault++) {
		if (fault->needs_direct && !now.direct)
			continue;
		for (unsigned i = 0; i < count; i++)
			if (now.turn++ % now.every == 0)
				(void)with(request, fault, i);
	}
}

static void every_save(void)
{
	struct specimen s = specimen(SPECIMEN_NEW);
	unsigned before[REQUESTS], count[REQUESTS];

	begin_image();
	for (unsigned i = 0; i < REQUESTS; i++)
		before[i] = counted(i);
	if (!specimen_save(&s))
		fail_msg("%s: a save without a fault: %s", way_name(&now.way), s.err.text);
	for (unsigned i = 0; i < REQUESTS; i++)
		count[i] = counted(i) - before[i];
	assert_true(count[0] > 3 && count[1] > 1);
	for (unsigned i = 0; i < REQUESTS; i++)
		each(i, count[i], save_with);
}

static void every_load(void)
{
	const unsigned reads = REQUESTS - 1;
	struct specimen s = specimen(SPECIMEN_NEW);
	unsigned before;

	begin_image();
	if (!specimen_save(&s))
		fail_msg("%s: a save without a fault: %s", way_name(&now.way), s.err.text);
	before = counted(reads);
	assert_int_equal(specimen_load(&s, now.way.layout), SPECIMEN_IS_NEW);
	each(reads, counted(reads) - before, load_with);
}

static void faults_of(uint32_t layout)
{
	for (unsigned i = 0; i < 6; i++) {
		now.way = (struct way){ .layout = layout, .engine = DIOH_ENGINE_IO_URING + i / 2,
			                .fds = i % 2 ? WAY_LONE_BUFFERED : WAY_TWO };
		if (!way_possible(&now.way) || (now.way.engine == DIOH_ENGINE_SYNC) != now.direct)
			continue;
		for (unsigned over = 0; over < 2; over++) {
			now.over = over;
			every_save();
		}
		every_load();
	}
}

/* With the engines that Linux shows short I/O as it is, and with the others: sick_disk.h says why. */
static void faults(uint32_t layout)
{
	const char *wish = getenv("DIOH_FAULTS"), *why;
	static unsigned number;
	char name[32];

	memset(&now, 0, sizeof(now));
	now.every = wish ? (unsigned)strtoul(wish, NULL, 0) : EVERY;
	now.turn = (unsigned)(test_seed() % now.every);
	for (unsigned direct = 0; direct < 2; direct++) {
		const struct fuse_file_options options = { .async_dio = !direct, .direct_io = direct, .direct_all = direct,
			                                   .fallocate = true };

		(void)snprintf(name, sizeof(name), "mount%u", number++);
		now.file = fuse_file_start(name, &options, &why);
		if (!now.file) {
			print_message("skipped: %s\n", why);
			skip();
		}
		now.direct = direct;
		faults_of(layout);
		fuse_file_stop(now.file);
		now.file = NULL;
	}
	alarm(0);
	print_message("faults in %u saves: %u complete, %u refused, %u whole though a sync or an answer failed; in %u loads: "
	              "%u errors\n", now.saves, now.complete, now.refused, now.whole, now.loads, now.errors);
	assert_true(now.saves > 0 && now.refused > 0 && now.complete > 0 && now.errors > 0);
}

static void raw(void **state)
{
	(void)state;
	faults(DIOH_LAYOUT_RAW);
}

static void container(void **state)
{
	(void)state;
	faults(DIOH_LAYOUT_CONTAINER);
}

static void mapped_ram(void **state)
{
	(void)state;
	faults(DIOH_LAYOUT_MAPPED_RAM);
}

static int stop(void **state)
{
	(void)state;
	fuse_file_stop(now.file);
	now.file = NULL;
	return 0;
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(raw, stop),
		cmocka_unit_test_teardown(container, stop),
		cmocka_unit_test_teardown(mapped_ram, stop),
	};

	if (argc > 1) /* one layout only */
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests(tests, specimen_prepare, NULL);
}
