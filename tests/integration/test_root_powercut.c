/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test_root_powercut.c - the power goes in the middle of a save: whatever a disk may then hold is no image, or is one whose
 * every byte is right.
 *
 * A disk of our own (fuse_file.h) writes down what a save tells it: writes with their bytes, sizes, holes, syncs. From that
 * the disks are made that a power cut may leave: behind any step, all that a sync had made durable; of the rest all, nothing,
 * one step, all but one; or each by chance done, left out, or (a write) done in some of its sectors only, 512 or 4096 bytes
 * each. Each is given to a helper. On a file, and on a block device (a loop device over our disk, whose steps are then
 * those of the device); into nothing and over an older complete image of each layout.
 *
 * What is durable: by fsync everything, by fdatasync all but a file's becoming shorter, which nobody needs to read it.
 * Of mapped-ram also what libvirt and a stock QEMU would make of it, who know nothing of our record: libvirt's mark stands
 * only on what is whole, and so does QEMU's magic, even if libvirt's mark is not there yet.
 *
 * How a file system keeps its own promises is not tested here, nor the directory's entry.
 *
 * DIOH_REPLAYS: how many by chance, besides the others. DIOH_SEED: which. Needs root, FUSE and a loop device.
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
#include <linux/falloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "align.h"
#include "cleanup.h"
#include "fuse_file.h"
#include "loop_device.h"
#include "pages.h"
#include "specimen.h"

#define STEPS_MAX 512u
#define DISK_BYTES SPECIMEN_DEVICE_BYTES
#define REPLAYS 360u /* of `make check-root`; `make powercut` asks for more */
#define HANG_S 60
#define CASES (3u * 2u * 4u)

struct disk {
	uint8_t *bytes; /* DISK_BYTES; behind `size` zeros */
	uint64_t size;
};

struct history {
	struct disk before;
	struct fuse_step steps[STEPS_MAX];
	unsigned count;
};

struct replay { /* one disk that a power cut may leave */
	unsigned cut;     /* so many steps had been begun */
	bool all;         /* and all of these were done; else by chance */
	bool none;        /* nothing but what is durable */
	unsigned only;    /* of the others only this step, counted from 1 */
	unsigned without; /* or all but this one */
	unsigned sector;  /* bytes */
	uint64_t seed;
};

static struct { /* of the running case */
	uint32_t layout;
	uint32_t before; /* enum dioh_layout; DETECT: nothing was there */
	bool device;
	struct history history;
	struct disk disk; /* made of it */
	struct fuse_file *file;
	struct loop_device loop;
	char path[512]; /* where it is given to a helper */
	int fd;
} now;

static struct {
	unsigned replays, refused, old, new;
	enum specimen_verdict last;
} seen;

/* ---- a save, written down ---- */

static void must_save(uint32_t layout, enum specimen_content content, const char *path)
{
	struct specimen s = { .way = { .layout = layout }, .path = path, .content = content };

	if (!specimen_save(&s))
		fail_msg("layout %u: %s %s", layout, s.err.text, s.wrong);
}

static void copy_disk(struct disk *disk, int fd)
{
	disk->size = must_bytes(fd);
	assert_true(disk->size <= DISK_BYTES);
	memset(disk->bytes, 0, DISK_BYTES);
	assert_int_equal(pread(fd, disk->bytes, disk->size, 0), disk->size);
}

static void collect(struct history *history, const struct fuse_file *file)
{
	uint64_t cursor = 0;

	history->count = 0;
	while (fuse_file_step(file, &cursor, &history->steps[history->count]))
		if (++history->count == STEPS_MAX)
			fail_msg("more than %u steps", STEPS_MAX);
}

static void record_save(const char *path)
{
	if (now.before != DIOH_LAYOUT_DETECT)
		must_save(now.before, SPECIMEN_OLD, path);
	copy_disk(&now.history.before, fuse_file_memfd(now.file));
	fuse_file_record(now.file, true);
	must_save(now.layout, SPECIMEN_NEW, path);
	fuse_file_record(now.file, false);
	collect(&now.history, now.file);
}

/* ---- disks that may be left ---- */

static void put_sectors(struct disk *disk, const struct fuse_step *step, unsigned sector, uint64_t *random)
{
	for (uint64_t done = 0; done < step->bytes;) {
		const uint64_t at = step->offset + done;
		const uint64_t n = dioh_min(step->bytes - done, sector - at % sector);

		if (!random || test_random(random) & 1) {
			memcpy(disk->bytes + at, step->data + done, n);
			disk->size = dioh_max(disk->size, at + n);
		}
		done += n;
	}
}

static void carry_out(struct disk *disk, const struct fuse_step *step, unsigned sector, uint64_t *random)
{
	assert_true(step->offset + step->bytes <= DISK_BYTES);
	if (step->opcode == FUSE_WRITE) {
		put_sectors(disk, step, sector, random);
	} else if (step->opcode == FUSE_SETATTR) {
		if (step->offset < disk->size)
			memset(disk->bytes + step->offset, 0, disk->size - step->offset);
		disk->size = step->offset;
	} else if (step->opcode == FUSE_FALLOCATE) {
		if (step->flags & FALLOC_FL_PUNCH_HOLE)
			memset(disk->bytes + step->offset, 0, step->bytes);
		else
			disk->size = dioh_max(disk->size, step->offset + step->bytes);
	}
}

static bool is_durable(const struct history *history, unsigned index, uint64_t size, unsigned cut)
{
	const struct fuse_step *step = &history->steps[index];
	const bool shorter = step->opcode == FUSE_SETATTR && step->offset < size;

	for (unsigned i = index + 1; i < cut; i++)
		if (history->steps[i].opcode == FUSE_FSYNC &&
		    !(shorter && history->steps[i].flags & FUSE_FSYNC_FDATASYNC))
			return true;
	return false;
}

static void make_disk(struct disk *disk, const struct history *history, const struct replay *replay)
{
	uint64_t random = replay->seed;

	disk->size = history->before.size;
	memcpy(disk->bytes, history->before.bytes, DISK_BYTES);
	for (unsigned i = 0; i < replay->cut; i++) {
		const struct fuse_step *step = &history->steps[i];
		uint64_t chance = test_random(&random) % 4;

		if (replay->all || is_durable(history, i, disk->size, replay->cut))
			chance = 3;
		else if (replay->only || replay->without)
			chance = replay->only == i + 1 || (replay->without && replay->without != i + 1) ? 3 : 0;
		else if (replay->none)
			chance = 0;
		if (chance > 0)
			carry_out(disk, step, replay->sector, chance == 1 ? &random : NULL);
	}
}

/* Leaves out what is zero: quick, and a raw image's holes are holes. */
static void write_disk(const struct disk *disk)
{
	if (ftruncate(now.fd, 0) < 0 || ftruncate(now.fd, (off_t)disk->size) < 0)
		fail_msg("%s: %s", now.path, strerror(errno));
	for (uint64_t at = 0; at < disk->size; at += PAGE) {
		const uint64_t n = dioh_min(PAGE, disk->size - at);

		if (!dioh_is_zero(disk->bytes + at, n))
			assert_int_equal(pwrite(now.fd, disk->bytes + at, n, (off_t)at), n);
	}
	if (now.device)
		loop_device_forget(&now.loop);
}

/* ---- what they are worth ---- */

/* How many syncs were done: before the first one the older image may be whole still, behind it it may not. */
static unsigned count_syncs(const struct history *history, unsigned cut)
{
	unsigned count = 0;

	for (unsigned i = 0; i < cut; i++)
		count += history->steps[i].opcode == FUSE_FSYNC;
	return count;
}

static void judge(const struct replay *replay, enum specimen_verdict verdict, const struct specimen *s)
{
	const unsigned count = now.history.count;
	bool right = verdict == SPECIMEN_REFUSED || verdict == SPECIMEN_IS_OLD || verdict == SPECIMEN_IS_NEW;

	if (verdict == SPECIMEN_IS_OLD && (now.before == DIOH_LAYOUT_DETECT || count_syncs(&now.history, replay->cut) > 0))
		right = false;
	if (replay->cut == 0 && verdict != (now.before == DIOH_LAYOUT_DETECT ? SPECIMEN_REFUSED : SPECIMEN_IS_OLD))
		right = false;
	if (replay->cut == count && verdict != SPECIMEN_IS_NEW) /* it was said to be complete */
		right = false;
	seen.replays++;
	seen.last = verdict;
	seen.refused += verdict == SPECIMEN_REFUSED;
	seen.old += verdict == SPECIMEN_IS_OLD;
	seen.new += verdict == SPECIMEN_IS_NEW;
	if (!right)
		fail_msg("layout %u over %u on a %s, cut behind step %u of %u (%u syncs), %s (only %u, without %u), sectors of %u, "
		         "seed %llu: %s: %s %s", now.layout, now.before, now.device ? "device" : "file", replay->cut, count,
		         count_syncs(&now.history, replay->cut), replay->all ? "all" : replay->none ? "only durable" : "some",
		         replay->only, replay->without,
		         replay->sector, (unsigned long long)replay->seed, specimen_verdict_name(verdict), s->wrong, s->err.text);
}

static enum specimen_verdict look(struct specimen *s)
{
	*s = (struct specimen){ .way = { .layout = now.layout, .engine = DIOH_ENGINE_SYNC, .fds = WAY_LONE_BUFFERED },
		                .path = now.device ? now.loop.path : now.path };
	write_disk(&now.disk);
	return specimen_load(s, DIOH_LAYOUT_DETECT);
}

/* A disk that was refused. If QEMU's magic is there libvirt's mark may follow at any moment: nothing else does. */
static void ask_libvirt_and_qemu(const struct replay *replay, const struct specimen *refused)
{
	struct specimen s;

	if (memcmp(now.disk.bytes, "LibvirtQemudSave", 16) == 0)
		fail_msg("cut behind step %u, seed %llu: libvirt takes it, and it is refused: %s", replay->cut,
		         (unsigned long long)replay->seed, refused->err.text);
	if (memcmp(now.disk.bytes, "LibvirtQemudPart", 16) != 0 ||
	    memcmp(now.disk.bytes + SPECIMEN_HEADER_BYTES, "QEVM", 4) != 0)
		return;
	memcpy(now.disk.bytes, "LibvirtQemudSave", 16);
	judge(replay, look(&s), &s);
	if (seen.last != SPECIMEN_IS_NEW)
		fail_msg("cut behind step %u, seed %llu: QEMU takes it, and it is not whole", replay->cut,
		         (unsigned long long)replay->seed);
}

/*
 * A disk whose manager's header is gone, and QEMU's magic is not: for a manager that does not look at its header that is an
 * image. It may be the older one, then, and must be whole.
 */
static void ask_who_skips_the_header(const struct replay *replay)
{
	static const uint8_t zeros[512];
	enum specimen_verdict verdict;
	struct specimen s;

	if (now.before != DIOH_LAYOUT_MAPPED_RAM || memcmp(now.disk.bytes, zeros, sizeof(zeros)) != 0 ||
	    memcmp(now.disk.bytes + SPECIMEN_HEADER_BYTES, "QEVM", 4) != 0)
		return;
	memcpy(now.disk.bytes, now.history.before.bytes, sizeof(zeros));
	verdict = look(&s);
	if (verdict != SPECIMEN_REFUSED && verdict != SPECIMEN_IS_OLD)
		fail_msg("cut behind step %u, seed %llu: without its header it is %s: %s %s", replay->cut,
		         (unsigned long long)replay->seed, specimen_verdict_name(verdict), s.wrong, s.err.text);
}

static void run_replay(const struct replay *replay)
{
	struct specimen s;

	alarm(HANG_S);
	make_disk(&now.disk, &now.history, replay);
	judge(replay, look(&s), &s);
	if (now.layout == DIOH_LAYOUT_MAPPED_RAM && seen.last == SPECIMEN_REFUSED)
		ask_libvirt_and_qemu(replay, &s);
	if (seen.last == SPECIMEN_REFUSED)
		ask_who_skips_the_header(replay);
}

/* What is open before a sync, one step at a time: it alone, and all but it. */
static void run_single_steps(void)
{
	const struct history *history = &now.history;

	for (unsigned step = 0; step < history->count; step++) {
		unsigned cut = step + 1;

		if (history->steps[step].opcode == FUSE_FSYNC)
			continue;
		while (cut < history->count && history->steps[cut].opcode != FUSE_FSYNC)
			cut++;
		run_replay(&(struct replay){ .cut = cut, .only = step + 1, .sector = PAGE });
		run_replay(&(struct replay){ .cut = cut, .without = step + 1, .sector = PAGE });
	}
}

/* Every prefix; before every sync also that alone which is durable; then by chance, where much is not. */
static void run_replays(unsigned wanted, uint64_t seed)
{
	const unsigned count = now.history.count;

	for (unsigned cut = 0; cut <= count; cut++)
		run_replay(&(struct replay){ .cut = cut, .all = true, .sector = PAGE });
	for (unsigned cut = 1; cut <= count; cut++)
		if (cut == count || now.history.steps[cut].opcode == FUSE_FSYNC)
			run_replay(&(struct replay){ .cut = cut, .none = true, .sector = PAGE });
	run_single_steps();
	for (unsigned i = 0; i < wanted; i++) {
		struct replay replay = { .sector = test_random(&seed) % 2 ? 512 : PAGE };

		replay.cut = test_random(&seed) % 5 ? 1 + (unsigned)(test_random(&seed) % count) : 1;
		if (test_random(&seed) % 4) /* up to the next sync: most is open there */
			while (replay.cut < count && now.history.steps[replay.cut].opcode != FUSE_FSYNC)
				replay.cut++;
		replay.seed = test_random(&seed);
		run_replay(&replay);
	}
}

/* ---- cases ---- */

static const char *open_places(void)
{
	static unsigned number;
	char name[32];

	(void)snprintf(name, sizeof(name), "replay%u", number++);
	(void)snprintf(now.path, sizeof(now.path), "%s", fixture_path(name));
	now.fd = must_open(now.path, O_RDWR | O_CREAT | O_TRUNC);
	now.loop.fd = -1;
	if (!now.device)
		return NULL;
	if (ftruncate(now.fd, DISK_BYTES) < 0 || ftruncate(fuse_file_memfd(now.file), DISK_BYTES) < 0)
		return "no room for a device";
	return loop_device_open(&now.loop, now.fd);
}

static const char *record(void)
{
	DIOH_AUTO_FD int backing = -1;
	struct loop_device disk;
	const char *why;

	if (!now.device) {
		record_save(fuse_file_path(now.file));
		return NULL;
	}
	backing = must_open(fuse_file_path(now.file), O_RDWR);
	why = loop_device_open(&disk, backing);
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
		(void)unlink(now.path);
		close(now.fd);
	}
	loop_device_close(&now.loop);
	fuse_file_stop(now.file);
	now.file = NULL;
	now.fd = now.loop.fd = -1;
}

static void run_case(unsigned wanted, uint64_t seed)
{
	const struct fuse_file_options options = { .async_dio = true, .fallocate = true, .record = true };
	static unsigned number;
	char name[32];
	const char *why;

	(void)snprintf(name, sizeof(name), "disk%u", number++);
	now.file = fuse_file_start(name, &options, &why);
	if (!why)
		why = open_places();
	if (!why)
		why = record();
	if (why) {
		print_message("skipped: %s\n", why);
		skip();
	}
	run_replays(wanted, seed);
	end_case();
}

static void power_cuts(bool device, uint32_t layout)
{
	const char *wish = getenv("DIOH_REPLAYS");
	const unsigned wanted = (wish ? (unsigned)strtoul(wish, NULL, 0) : REPLAYS) / CASES + 1;

	now.device = device;
	now.layout = layout;
	for (now.before = DIOH_LAYOUT_DETECT; now.before <= DIOH_LAYOUT_MAPPED_RAM; now.before++) {
		memset(&seen, 0, sizeof(seen));
		run_case(wanted, test_seed() + 16 * layout + 4 * now.before + device);
		print_message("%s over %u on a %s: %u steps, %u replays: %u refused, %u the older image, %u the newer\n",
		              layout == DIOH_LAYOUT_RAW ? "raw" : layout == DIOH_LAYOUT_CONTAINER ? "container" : "mapped-ram",
		              now.before, device ? "device" : "file", now.history.count, seen.replays, seen.refused, seen.old,
		              seen.new);
		assert_true(seen.refused > 0 && seen.new > 0);
		assert_int_equal(seen.old > 0, now.before != DIOH_LAYOUT_DETECT);
	}
	alarm(0);
}

#define CASE(name, device, layout) \
	static void name(void **state) { (void)state; power_cuts(device, layout); }

CASE(raw_on_a_file, false, DIOH_LAYOUT_RAW)
CASE(container_on_a_file, false, DIOH_LAYOUT_CONTAINER)
CASE(mapped_ram_on_a_file, false, DIOH_LAYOUT_MAPPED_RAM)
CASE(raw_on_a_device, true, DIOH_LAYOUT_RAW)
CASE(container_on_a_device, true, DIOH_LAYOUT_CONTAINER)
CASE(mapped_ram_on_a_device, true, DIOH_LAYOUT_MAPPED_RAM)

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
	};

	now.fd = now.loop.fd = -1;
	now.disk.bytes = malloc(DISK_BYTES);
	now.history.before.bytes = malloc(DISK_BYTES);
	if (!now.disk.bytes || !now.history.before.bytes)
		return 1;
	if (argc > 1) /* one case only */
		cmocka_set_test_filter(argv[1]);
	if (!getenv("TEST_DIR") && access("/dev/shm", W_OK) == 0) /* thousands of disks */
		setenv("TEST_DIR", "/dev/shm", 1);
	return cmocka_run_group_tests(tests, specimen_prepare, NULL);
}
