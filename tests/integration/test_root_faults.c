/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test_root_faults.c - every single request that a small save and a small load make of their disk fails once, in turn, in
 * every way that a disk of our own (fuse_file.h) can make it fail: for each layout, each engine, with two descriptors and
 * with one that has O_DIRECT or not, into nothing and over an older image. What is asked for beside bytes fails, too: the
 * file's and the file system's sizes, where there is data, its directory's sync. And each is left without an answer until
 * the manager has gone. The same on a block device, a loop device over our disk, as far as it passes such things on.
 *
 * A save says that it is complete only if every byte can be loaded again. Else it says what failed, and the image is
 * refused; where the disk did what it was told and then told of an error, or a sync failed, it may as well be whole. A load
 * gives every byte right, or an error. Nothing crashes, nothing hangs; a helper that was left alone is gone as soon as the
 * disk has answered.
 *
 * DIOH_FAULTS=N: only every Nth, 96 without it, and on each ground one of each kind; DIOH_SEED shifts which. 1: all, as
 * `make faults` does it. Needs root, FUSE and a loop device.
 */
/* timeout: 3600 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cleanup.h"
#include "loop_device.h"
#include "sick_disk.h"
#include "specimen.h"

#define HANG_S 30
#define LIFE_S 3600 /* `make faults` has a disk for each half of a layout's faults */
#define LATE_MS 15
#define SHORT_BYTES 512
#define EVERY 96u

struct fault {
	const char *name;
	struct fuse_fault what;
	bool ok_wanted; /* nothing may come of it */
	bool done;      /* what was asked for may have been done */
	bool needs_direct; /* else the kernel hides it from the helper */
	bool no_device;    /* a loop device does not pass it on */
};

static const struct fault of_writes[] = { /* (Linux's loop devices take a short one for a whole one.) */
	{ .name = "EIO", .what = { .kind = FUSE_FAULT_ERROR, .value = EIO } },
	{ .name = "ENOSPC", .what = { .kind = FUSE_FAULT_ERROR, .value = ENOSPC } },
	{ .name = "EDQUOT", .what = { .kind = FUSE_FAULT_ERROR, .value = EDQUOT } },
	{ .name = "short", .what = { .kind = FUSE_FAULT_SHORT, .value = SHORT_BYTES }, .no_device = true },
	/* Of a write within one sector all or nothing is left. */
	{ .name = "torn", .what = { .kind = FUSE_FAULT_TORN, .value = EIO }, .done = true },
	{ .name = "late", .what = { .kind = FUSE_FAULT_LATE, .value = LATE_MS }, .ok_wanted = true },
	{ .name = "done, and EIO", .what = { .kind = FUSE_FAULT_DONE, .value = EIO }, .done = true },
	{ .name = "lost, EIO from the next sync", .what = { .kind = FUSE_FAULT_LOST, .value = EIO } },
	{ .name = "held", .what = { .kind = FUSE_FAULT_HOLD }, .done = true },
	{ .name = NULL },
};

static const struct fault of_others[] = { /* syncs, sizes, holes */
	{ .name = "EIO", .what = { .kind = FUSE_FAULT_ERROR, .value = EIO } },
	{ .name = "ENOSPC", .what = { .kind = FUSE_FAULT_ERROR, .value = ENOSPC } },
	{ .name = "EDQUOT", .what = { .kind = FUSE_FAULT_ERROR, .value = EDQUOT } },
	{ .name = "late", .what = { .kind = FUSE_FAULT_LATE, .value = LATE_MS }, .ok_wanted = true },
	{ .name = "done, and EIO", .what = { .kind = FUSE_FAULT_DONE, .value = EIO }, .done = true },
	{ .name = "held", .what = { .kind = FUSE_FAULT_HOLD }, .done = true },
	{ .name = NULL },
};

static const struct fault of_reads[] = {
	{ .name = "EIO", .what = { .kind = FUSE_FAULT_ERROR, .value = EIO } },
	{ .name = "short", .what = { .kind = FUSE_FAULT_SHORT, .value = SHORT_BYTES }, .needs_direct = true },
	{ .name = "late", .what = { .kind = FUSE_FAULT_LATE, .value = LATE_MS }, .ok_wanted = true },
	{ .name = "held", .what = { .kind = FUSE_FAULT_HOLD }, .done = true },
	{ .name = NULL },
};

static const struct fault of_questions[] = {
	{ .name = "EIO", .what = { .kind = FUSE_FAULT_ERROR, .value = EIO } },
	{ .name = "held", .what = { .kind = FUSE_FAULT_HOLD }, .done = true },
	{ .name = NULL },
};

static const struct {
	uint32_t opcode;
	const char *name;
	const struct fault *faults;
	bool no_device; /* a loop device has no need of it */
} requests[] = {
	{ FUSE_WRITE, "write", of_writes, false },
	{ FUSE_FSYNC, "sync", of_others, false },
	{ FUSE_SETATTR, "size", of_others, true },
	{ FUSE_FALLOCATE, "fallocate", of_others, false },
	{ FUSE_FSYNCDIR, "directory's sync", of_others, true },
	{ FUSE_READ, "read", of_reads, false },
	{ FUSE_GETATTR, "stat", of_questions, true },
	{ FUSE_LSEEK, "seek", of_questions, true },
	{ FUSE_STATFS, "free space", of_questions, true },
};

#define REQUESTS (sizeof(requests) / sizeof(requests[0]))
#define KINDS (sizeof(of_writes) / sizeof(of_writes[0]))

/* What the image is, and how the kernel asks our disk for it: sick_disk.h says why not one does for all engines. */
static const struct ground {
	const char *name;
	struct fuse_file_options options;
	bool sync, others; /* engines */
	bool device;       /* a loop device over the file */
} grounds[] = {
	{ "file", { .async_dio = true, .fallocate = true, .seek = true, .life_s = LIFE_S }, .others = true },
	{ "file", { .direct_io = true, .direct_all = true, .fallocate = true, .seek = true, .life_s = LIFE_S }, .sync = true },
	{ "device", { .direct_io = true, .direct_all = true, .fallocate = true, .seek = true, .life_s = LIFE_S },
	  .sync = true, .others = true, .device = true },
};

static struct {
	const struct ground *ground;
	struct fuse_file *file;
	struct way way;
	bool over; /* an older image */
	unsigned every;
	unsigned turn;
	bool tried[2][REQUESTS][KINDS]; /* on this ground, of saves and loads */
	unsigned saves, loads, complete, refused, whole, errors; /* whole: though an error was told of */
	unsigned left_alone;
} now;

static struct loop_device device = { .fd = -1 };
static atomic_bool *created; /* the image, by the manager, which may be a child */

/* ---- one fault ---- */

static struct specimen specimen(enum specimen_content content)
{
	if (now.ground->device)
		return (struct specimen){ .way = now.way, .path = device.path, .content = content };
	return (struct specimen){ .way = now.way, .path = fuse_file_path(now.file), .content = content,
	                          .directory = fuse_file_directory(now.file) };
}

/* What a device has in memory goes to the disk, with errors that nobody has been told of, and is read from there again. */
static void forget(void)
{
	if (!now.ground->device)
		return;
	(void)fsync(device.fd);
	loop_device_forget(&device);
}

static void die(const char *what, unsigned request, const struct fault *fault, unsigned index, const struct specimen *s)
{
	fail_msg("%s on a %s%s: %s %u, %s: %s: %s [%s]", way_name(&now.way), now.ground->name,
	         now.over ? ", over an older image" : "", requests[request].name, index, fault->name, what, s->err.text, s->wrong);
}

static void set(unsigned request, const struct fault *fault, unsigned index)
{
	struct fuse_fault what = fault->what;

	what.after = index;
	what.times = 1;
	/* What a device cannot read ahead the kernel reads once more. */
	what.same_place = now.ground->device && requests[request].opcode == FUSE_READ && what.kind == FUSE_FAULT_ERROR;
	alarm(HANG_S);
	fuse_file_set_fault(now.file, requests[request].opcode, &what);
}

/* Answers whether it was hit. */
static bool unset(unsigned request)
{
	const bool hit = fuse_file_hits(now.file, requests[request].opcode) > 0;

	fuse_file_release(now.file, 0);
	while (fuse_file_held(now.file) > 0) /* what nobody waited for */
		usleep(200);
	forget();
	return hit;
}

static bool is_told(const struct dioh_error *err)
{
	return err->code > 0 && err->operation != DIOH_OP_NONE && err->object != 0 && err->text[0];
}

static void begin_image(void)
{
	struct specimen s = specimen(SPECIMEN_OLD);

	if (ftruncate(fuse_file_memfd(now.file), 0) < 0 ||
	    (now.ground->device && ftruncate(fuse_file_memfd(now.file), SPECIMEN_DEVICE_BYTES) < 0))
		fail_msg("ftruncate: %s", strerror(errno));
	forget();
	if (now.over && !specimen_save(&s))
		fail_msg("the older image: %s", s.err.text);
	forget();
}

static bool is_sync(unsigned request)
{
	return requests[request].opcode == FUSE_FSYNC || requests[request].opcode == FUSE_FSYNCDIR;
}

/* ---- without an answer until the manager has gone ---- */

static bool is_left(const struct fault *fault)
{
	return fault->what.kind == FUSE_FAULT_HOLD;
}

/* false: it came to its end first. */
static bool holds_up(pid_t manager, int *ret_status)
{
	while (fuse_file_held(now.file) == 0) {
		if (waitpid(manager, ret_status, WNOHANG) == manager)
			return false;
		usleep(200);
	}
	return true;
}

/* The disk answers, and the helper, which is ours to reap now and still of its manager's process group, goes. */
static void see_it_go(pid_t manager, struct specimen *s)
{
	int status;

	fuse_file_release(now.file, 0);
	now.left_alone++;
	while (waitpid(-manager, &status, 0) > 0)
		if (!WIFEXITED(status) || WEXITSTATUS(status) > 1)
			(void)snprintf(s->wrong, sizeof(s->wrong), "a helper that was left alone ended with wait status 0x%x",
			               (unsigned)status);
	assert_int_equal(errno, ECHILD);
}

/* Does `what` as a manager of its own, which is killed while the request is held. Answers whether it went well. */
static bool goes_well_alone(bool (*what)(struct specimen *), struct specimen *s)
{
	int status = 0;
	pid_t manager;

	fflush(NULL);
	manager = fork();
	if (manager == 0) {
		setpgid(0, 0);
		alarm(HANG_S);
		_exit(!what(s));
	}
	assert_true(manager > 0);
	(void)setpgid(manager, manager);
	if (!holds_up(manager, &status))
		return WIFEXITED(status) && WEXITSTATUS(status) == 0;
	kill(manager, SIGKILL);
	assert_int_equal(waitpid(manager, &status, 0), manager);
	see_it_go(manager, s);
	return false;
}

/* ---- saves ---- */

static void watch(enum specimen_step step, pid_t helper, void *context)
{
	(void)helper;
	(void)context;
	atomic_store(created, atomic_load(created) || step == SPECIMEN_CREATED);
}

static void judge_save(unsigned request, const struct fault *fault, unsigned index, bool ok, struct specimen *s)
{
	struct specimen again = specimen(SPECIMEN_NEW);
	enum specimen_verdict verdict;

	if (s->wrong[0])
		die("the save ended badly", request, fault, index, s);
	if (!ok && (fault->ok_wanted || (!is_left(fault) && !is_told(&s->err))))
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
	if (!ok && verdict == SPECIMEN_IS_NEW && (fault->done || is_sync(request)))
		return;
	if (!ok && verdict == SPECIMEN_IS_OLD && now.over && !atomic_load(created))
		return;
	die(ok ? "complete, and it is not" : "not complete, and it is taken", request, fault, index, &again);
}

/* false: there are not so many requests. */
static bool save_with(unsigned request, const struct fault *fault, unsigned index)
{
	struct specimen s = specimen(SPECIMEN_NEW);
	bool ok, hit;

	begin_image();
	s.watch = watch;
	atomic_store(created, false);
	set(request, fault, index);
	ok = is_left(fault) ? goes_well_alone(specimen_save, &s) : specimen_save(&s);
	hit = unset(request);
	now.saves += hit;
	if (ok && hit && is_left(fault) && requests[request].opcode != FUSE_READ)
		die("complete, and the disk had not answered", request, fault, index, &s);
	judge_save(request, fault, index, ok, &s);
	return hit;
}

/* ---- loads ---- */

static bool loads_well(struct specimen *s)
{
	return specimen_load(s, now.way.layout) == SPECIMEN_IS_NEW;
}

/* What a load that was left alone has done to memory nobody may use: it has gone, and that is all that is asked. */
static void leave_load(unsigned request, const struct fault *fault, unsigned index)
{
	struct specimen s = specimen(SPECIMEN_NEW);
	const bool ok = goes_well_alone(loads_well, &s);

	/* What the kernel reads ahead nobody may wait for. */
	if (s.wrong[0] || (!ok && fuse_file_hits(now.file, requests[request].opcode) == 0))
		die("a load that was left alone", request, fault, index, &s);
}

static bool load_with(unsigned request, const struct fault *fault, unsigned index)
{
	struct specimen s = specimen(SPECIMEN_NEW);
	enum specimen_verdict verdict;
	bool hit;

	set(request, fault, index);
	if (is_left(fault)) {
		leave_load(request, fault, index);
		return unset(request);
	}
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

static bool can_be(unsigned request, const struct fault *fault)
{
	if (now.ground->device)
		return !requests[request].no_device && !fault->no_device;
	return !fault->needs_direct || now.ground->options.direct_all;
}

/* Each so-manyth of all; and of each kind one, whichever, on each ground. */
static void each(unsigned request, unsigned count, bool loads)
{
	for (const struct fault *fault = requests[request].faults; fault->name; fault++) {
		bool *tried = &now.tried[loads][request][fault - requests[request].faults];

		if (!can_be(request, fault))
			continue;
		for (unsigned i = 0; i < count; i++) {
			if (now.turn++ % now.every != 0 && (*tried || i != test_seed() % count))
				continue;
			*tried = true;
			(void)(loads ? load_with : save_with)(request, fault, i);
		}
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
		each(i, count[i], false);
}

static void every_load(void)
{
	struct specimen s = specimen(SPECIMEN_NEW);
	unsigned before[REQUESTS], count[REQUESTS];

	begin_image();
	if (!specimen_save(&s))
		fail_msg("%s: a save without a fault: %s", way_name(&now.way), s.err.text);
	forget();
	for (unsigned i = 0; i < REQUESTS; i++)
		before[i] = counted(i);
	assert_int_equal(specimen_load(&s, now.way.layout), SPECIMEN_IS_NEW);
	for (unsigned i = 0; i < REQUESTS; i++)
		count[i] = counted(i) - before[i];
	forget();
	for (unsigned i = 0; i < REQUESTS; i++)
		each(i, count[i], true);
}

static void faults_of(uint32_t layout)
{
	for (unsigned i = 0; i < 9; i++) {
		now.way = (struct way){ .layout = layout, .engine = DIOH_ENGINE_IO_URING + i / 3, .fds = i % 3 };
		if (!way_possible(&now.way) || !(now.way.engine == DIOH_ENGINE_SYNC ? now.ground->sync : now.ground->others))
			continue;
		for (unsigned over = 0; over < 2; over++) {
			now.over = over;
			every_save();
		}
		every_load();
	}
}

static void open_ground(const struct ground *ground)
{
	const char *why = NULL;

	now.ground = ground;
	now.file = sick_file(&ground->options);
	memset(now.tried, 0, sizeof(now.tried));
	if (ground->device) {
		DIOH_AUTO_FD int backing = must_open(fuse_file_path(now.file), O_RDWR);

		assert_int_equal(ftruncate(fuse_file_memfd(now.file), SPECIMEN_DEVICE_BYTES), 0);
		why = loop_device_open(&device, backing, 512);
	}
	if (why) {
		print_message("skipped: %s\n", why);
		skip();
	}
}

static int close_ground(void **state)
{
	(void)state;
	loop_device_close(&device);
	fuse_file_stop(now.file);
	now.file = NULL;
	return 0;
}

static void faults(bool on_device, uint32_t layout)
{
	const char *wish = getenv("DIOH_FAULTS");

	memset(&now, 0, sizeof(now));
	now.every = wish ? (unsigned)strtoul(wish, NULL, 0) : EVERY;
	now.turn = (unsigned)(test_seed() % now.every);
	for (unsigned i = 0; i < sizeof(grounds) / sizeof(grounds[0]); i++) {
		if (grounds[i].device != on_device)
			continue;
		open_ground(&grounds[i]);
		faults_of(layout);
		(void)close_ground(NULL);
	}
	alarm(0);
	print_message("faults in %u saves: %u complete, %u refused, %u whole though a sync or an answer failed; in %u loads: "
	              "%u errors; %u helpers left alone\n", now.saves, now.complete, now.refused, now.whole, now.loads, now.errors,
	              now.left_alone);
	assert_true(now.saves > 0 && now.refused > 0 && now.complete > 0 && now.errors > 0 && now.left_alone > 0);
}

#define CASE(name, device, layout) \
	static void name(void **state) { (void)state; faults(device, layout); }

CASE(raw, false, DIOH_LAYOUT_RAW)
CASE(container, false, DIOH_LAYOUT_CONTAINER)
CASE(mapped_ram, false, DIOH_LAYOUT_MAPPED_RAM)
CASE(raw_on_a_device, true, DIOH_LAYOUT_RAW)
CASE(container_on_a_device, true, DIOH_LAYOUT_CONTAINER)
CASE(mapped_ram_on_a_device, true, DIOH_LAYOUT_MAPPED_RAM)

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(raw, close_ground),
		cmocka_unit_test_teardown(container, close_ground),
		cmocka_unit_test_teardown(mapped_ram, close_ground),
		cmocka_unit_test_teardown(raw_on_a_device, close_ground),
		cmocka_unit_test_teardown(container_on_a_device, close_ground),
		cmocka_unit_test_teardown(mapped_ram_on_a_device, close_ground),
	};

	created = mmap(NULL, sizeof(*created), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (created == MAP_FAILED || prctl(PR_SET_CHILD_SUBREAPER, 1) < 0)
		return 1;
	if (argc > 1) /* one case only */
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests(tests, specimen_prepare, NULL);
}
