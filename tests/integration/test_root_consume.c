/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test_root_consume.c - `diohelper-tool convert --consume` frees IN's pages behind the work, and what is freed must be in
 * OUT whatever happens then. OUT is on a disk of our own (fuse_file.h). At each of its syncs in turn, either the power
 * goes: the sync fails, and OUT loses all that no earlier sync has made durable, or all but the first sector of each write;
 * or, while the sync is under way, the file that says how far it is can no longer be written. The next run goes on, every
 * byte is in OUT, and IN is no image. If another machine has been saved into IN by then, it is not made part of the first.
 * Needs root and FUSE.
 */
/* timeout: 240 */
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
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "align.h"
#include "cleanup.h"
#include "fuse_file.h"
#include "guest_image.h"

#define MEMORY_BYTES (400 * MIB) /* IN is freed in steps of 128 MiB or more */
#define SYNCS_MIN 5u             /* two of the new image, a step, data, mark */
#define MARK_BYTES 512u
#define SECTOR_BYTES 512u
#define STEP_MS 2
#define HANG_S 60

static const struct format { /* what is converted into it is of the other one */
	const char *name;
	char kept[512]; /* a machine in it */
} *target;
static struct format formats[] = { { .name = "container" }, { .name = "mapped-ram" } };

static struct fuse_file *disk;
static int memory = -1;
static char in[512], out[512], state[600];

/* ---- the machine ---- */

static void save_machine(void)
{
	static const struct dioh_qemu_block block = { .name = "pc.ram", .bytes = MEMORY_BYTES };
	struct guest g = { .memories = { memory } };

	for (unsigned i = 1; i < QEMU_BLOCKS_MAX; i++)
		g.memories[i] = -1;
	qemu_start(&g.q, &block, 1, DIOH_QEMU_IGNORE_SHARED);
	qemu_put_setup(&g.q);
	qemu_put_section(&g.q, QEMU_END);
	qemu_put_section_end(&g.q);
	qemu_put_device(&g.q, 3, 5000, 1);
	qemu_put_end(&g.q);
	must_guest_image(&g, formats[1].kept);
	qemu_free(&g.q);
}

static void expect_machine(void)
{
	struct way way = WAY_CONTAINER;
	DIOH_AUTO_FD int loaded = must_memfd("loaded", MEMORY_BYTES, 0);
	struct moves m;

	way.fds = WAY_LONE_BUFFERED;
	m = (struct moves)MOVES(way, out);
	moves_add_region(&m, GUEST_REGION(0), MEMORY_BYTES);
	moves_start(&m, DIOH_DIRECTION_LOAD);
	moves_attach(&m, GUEST_REGION(0), loaded, -1);
	must(moves_open(&m, 0), &m.err);
	must(moves_region(&m, GUEST_REGION(0), 0), &m.err);
	moves_end(&m, 0);
	assert_true(same_bytes(memory, loaded));
}

/* Its tables and all that no step has freed would be there still. */
static void expect_no_mark(void)
{
	const uint8_t zeros[MARK_BYTES] = { 0 };
	uint8_t bytes[MARK_BYTES];
	DIOH_AUTO_FD int fd = open(in, O_RDONLY | O_CLOEXEC);

	assert_int_equal(pread(fd, bytes, sizeof(bytes), 0), sizeof(bytes));
	assert_memory_equal(bytes, zeros, sizeof(zeros));
}

/* ---- conversions ---- */

static pid_t convert(const char *how, const char *from, const char *to)
{
	const char *tool = getenv("DIOHELPER_TOOL");
	const pid_t pid = fork();

	if (pid != 0)
		return pid;
	(void)!freopen("/dev/null", "w", stderr);
	execl(tool ? tool : "build/diohelper-tool", "diohelper-tool", "convert", how, "--to", target->name, from, to,
	      (char *)NULL);
	_exit(127);
}

static pid_t begin_conversion(void)
{
	return convert("--consume", in, out);
}

/* true: it has converted all. */
static bool end_conversion(pid_t pid)
{
	int status;

	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status) && WEXITSTATUS(status) <= 1);
	return WEXITSTATUS(status) == 0;
}

static void save_both(void)
{
	const struct format *const before = target;

	save_machine();
	(void)unlink(formats[0].kept);
	target = formats;
	assert_true(end_conversion(convert("--quiet", formats[1].kept, formats[0].kept)));
	target = before;
}

/* The same file gets it, if it is there already. */
static void put_in(void)
{
	const struct format *source = target == formats ? &formats[1] : formats;
	char command[2048];

	(void)snprintf(command, sizeof(command), "cp --sparse=always '%s' '%s'", source->kept, in);
	assert_int_equal(system(command), 0);
}

static void begin_anew(void)
{
	alarm(HANG_S);
	(void)unlink(state);
	put_in();
	assert_int_equal(ftruncate(fuse_file_memfd(disk), 0), 0);
	fuse_file_record(disk, true);
}

/* ---- the power goes ---- */

static void redo(const struct fuse_step *step)
{
	const int fd = fuse_file_memfd(disk);
	int r = 0;

	if (step->opcode == FUSE_WRITE)
		r = pwrite(fd, step->data, step->bytes, (off_t)step->offset) == (ssize_t)step->bytes ? 0 : -1;
	else if (step->opcode == FUSE_SETATTR)
		r = ftruncate(fd, (off_t)step->offset);
	else if (step->opcode == FUSE_FALLOCATE)
		r = fallocate(fd, (int)step->flags, (off_t)step->offset, (off_t)step->bytes);
	assert_int_equal(r, 0);
}

/* OUT as the last sync has left it; `torn`: and the first sector of what was written behind it. */
static void forget_the_rest(bool torn)
{
	struct fuse_step step;
	unsigned count = 0, durable = 0;
	uint64_t cursor = 0;

	fuse_file_record(disk, false);
	while (fuse_file_step(disk, &cursor, &step)) {
		count++;
		if (step.opcode == FUSE_FSYNC)
			durable = count;
	}
	assert_int_equal(ftruncate(fuse_file_memfd(disk), 0), 0);
	cursor = 0;
	for (unsigned i = 0; i < durable && fuse_file_step(disk, &cursor, &step); i++)
		redo(&step);
	while (torn && fuse_file_step(disk, &cursor, &step)) {
		step.bytes = dioh_min(step.bytes, SECTOR_BYTES - step.offset % SECTOR_BYTES);
		if (step.opcode == FUSE_WRITE)
			redo(&step);
	}
}

/* false: there are not so many syncs. */
static bool power_goes_at(unsigned sync, bool torn)
{
	bool hit;

	begin_anew();
	fuse_file_fault(disk, FUSE_FSYNC, .kind = FUSE_FAULT_ERROR, .value = EIO, .after = sync, .times = 1);
	assert_true(end_conversion(begin_conversion()) == (fuse_file_hits(disk, FUSE_FSYNC) == 0));
	hit = fuse_file_hits(disk, FUSE_FSYNC) > 0;
	fuse_file_release(disk, 0);
	if (hit) {
		forget_the_rest(torn);
		assert_true(end_conversion(begin_conversion()));
	}
	expect_machine();
	expect_no_mark();
	return hit;
}

static bool power_goes(unsigned sync)
{
	return power_goes_at(sync, false);
}

static bool power_tears(unsigned sync)
{
	return power_goes_at(sync, true);
}

static void each_sync(bool (*with)(unsigned sync))
{
	for (target = formats; target < formats + 2; target++) {
		unsigned sync = 0;

		while (with(sync))
			sync++;
		alarm(0);
		print_message("to %s: %u syncs\n", target->name, sync);
		assert_true(sync >= SYNCS_MIN);
	}
}

static void the_power_goes(void **state_)
{
	(void)state_;
	each_sync(power_goes);
}

static void the_power_tears_writes(void **state_)
{
	(void)state_;
	each_sync(power_tears);
}

/* ---- how far it is cannot be said ---- */

static bool is_over(pid_t pid)
{
	siginfo_t info = { 0 };

	assert_int_equal(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOHANG | WNOWAIT), 0);
	return info.si_pid == pid;
}

static bool cannot_say(unsigned sync)
{
	char obstacle[700];
	pid_t pid;
	bool held;

	begin_anew();
	(void)snprintf(obstacle, sizeof(obstacle), "%s.new", state);
	fuse_file_fault(disk, FUSE_FSYNC, .kind = FUSE_FAULT_HOLD, .after = sync, .times = 1);
	pid = begin_conversion();
	while (fuse_file_held(disk) == 0 && !is_over(pid))
		usleep(STEP_MS * 1000);
	held = fuse_file_held(disk) > 0;
	if (held)
		assert_int_equal(mkdir(obstacle, 0700), 0);
	fuse_file_release(disk, 0);
	fuse_file_record(disk, false);
	if (!end_conversion(pid)) {
		assert_int_equal(rmdir(obstacle), 0);
		assert_true(end_conversion(begin_conversion()));
	} else if (held) { /* it had nothing more to say */
		assert_int_equal(rmdir(obstacle), 0);
	}
	expect_machine();
	expect_no_mark();
	return held;
}

static void how_far_cannot_be_said(void **state_)
{
	(void)state_;
	each_sync(cannot_say);
}

/* ---- another machine is saved into IN ---- */

static void another_machine(void **state_)
{
	(void)state_;
	for (target = formats; target < formats + 2; target++) {
		begin_anew();
		fuse_file_fault(disk, FUSE_FSYNC, .kind = FUSE_FAULT_ERROR, .value = EIO, .after = SYNCS_MIN - 2, .times = 1);
		assert_false(end_conversion(begin_conversion()));
		fuse_file_release(disk, 0);
		fuse_file_record(disk, false);
		must_fill(memory, 0, MIB, (uint64_t)(1 + target - formats));
		save_both();
		put_in();
		assert_false(end_conversion(begin_conversion()));
		assert_int_equal(unlink(state), 0);
		assert_int_equal(ftruncate(fuse_file_memfd(disk), 0), 0);
		assert_true(end_conversion(begin_conversion()));
		expect_machine();
		alarm(0);
	}
}

/* ---- all of it ---- */

static int begin(void **state_)
{
	(void)state_;
	(void)snprintf(in, sizeof(in), "%s", fixture_path("in"));
	for (unsigned i = 0; i < 2; i++)
		(void)snprintf(formats[i].kept, sizeof(formats[i].kept), "%s", fixture_path(formats[i].name));
	(void)snprintf(out, sizeof(out), "%s", fixture_path("out"));
	(void)snprintf(state, sizeof(state), "%s.consume", out);
	memory = must_memfd("memory", MEMORY_BYTES, 0);
	for (uint64_t at = 0; at < MEMORY_BYTES; at += 10 * MIB)
		must_fill(memory, at, MIB, at);
	save_both();
	return symlink(fuse_file_path(disk), out);
}

static int end(void **state_)
{
	(void)state_;
	close(memory);
	return 0;
}

int main(void)
{
	static const struct fuse_file_options options = { .async_dio = true, .fallocate = true, .record = true };
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_power_goes),
		cmocka_unit_test(the_power_tears_writes),
		cmocka_unit_test(how_far_cannot_be_said),
		cmocka_unit_test(another_machine),
	};
	const char *why;
	int r;

	disk = fuse_file_start("disk", &options, &why);
	if (!disk) {
		printf("%s\n", why);
		return 77;
	}
	r = cmocka_run_group_tests(tests, begin, end);
	fuse_file_stop(disk);
	return r;
}
