/* SPDX-License-Identifier: LGPL-2.1-or-later */
#define _GNU_SOURCE
#include "power_cut.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include <errno.h>
#include <linux/falloc.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "align.h"
#include "pages.h"

#define HANG_S 60
#define SECTOR_BYTES 512u
#define BRIEF_SYNCS 2u

struct replay { /* one disk that a power cut may leave */
	unsigned cut;     /* so many steps had been begun */
	bool all;         /* and all of these were done; else by chance */
	bool none;        /* nothing but what is durable */
	unsigned only;    /* of the others only this step, counted from 1 */
	unsigned without; /* or all but this one, */
	bool torn;        /* of which then the first sector is done */
	unsigned sector;  /* bytes */
	uint64_t seed;
};

const struct power_earlier power_earlier[POWER_EARLIER] = {
	{ .name = "complete", .keeps = true },
	{ .name = "left with a chunk synced", .leave = SPECIMEN_MEMORY_SAVED, .syncs_chunk = true, .keeps = true },
	{ .name = "written", .mode = DIOH_FINISH_WRITTEN },
	{ .name = "left in FINISH", .leave = SPECIMEN_FINISH_BEGUN, .syncs_chunk = true, .keeps = true },
	{ .name = "written, then synced", .mode = DIOH_FINISH_WRITTEN, .syncs = true, .keeps = true },
	{ .name = "created", .leave = SPECIMEN_CREATED },
	{ .name = "killed", .leave = SPECIMEN_MEMORY_BEGUN, .killed = true, .syncs_chunk = true, .keeps = true },
};

int power_cut_prepare(struct power_cut *p)
{
	p->fd = -1;
	p->disk.bytes = calloc(1, SPECIMEN_DEVICE_BYTES);
	p->first.bytes = calloc(1, SPECIMEN_DEVICE_BYTES);
	return p->disk.bytes && p->first.bytes ? 0 : -1;
}

void power_cut_begin(struct power_cut *p, int fd)
{
	p->count = p->begun = 0;
	p->replays = p->refused = p->old = p->new = p->continued = 0;
	p->first.size = must_bytes(fd);
	assert_true(p->first.size <= SPECIMEN_DEVICE_BYTES);
	memset(p->first.bytes, 0, SPECIMEN_DEVICE_BYTES);
	assert_int_equal(pread(fd, p->first.bytes, p->first.size, 0), p->first.size);
}

struct fuse_step *power_cut_step(struct power_cut *p)
{
	if (p->count == POWER_STEPS_MAX)
		fail_msg("more than %u steps", POWER_STEPS_MAX);
	return &p->steps[p->count++];
}

/* ---- the saves ---- */

static void kill_helper(enum specimen_step step, pid_t helper, void *context)
{
	const struct power_earlier *earlier = context;

	if (step == earlier->leave)
		kill(helper, SIGKILL);
}

void power_cut_save_earlier(struct power_cut *p, const struct specimen *how)
{
	const struct power_earlier *earlier = p->earlier;
	struct specimen s = *how;

	s.content = SPECIMEN_BEGUN;
	s.leave = earlier->killed ? SPECIMEN_SPAWNED : earlier->leave;
	s.mode = earlier->mode;
	s.sync = earlier->syncs_chunk ? how->sync : NULL;
	s.watch = earlier->killed ? kill_helper : NULL;
	s.context = (void *)(uintptr_t)earlier;
	if (earlier->killed)
		s.way.engine = DIOH_ENGINE_SYNC; /* of which nothing lands behind the helper's end */
	if (specimen_save(&s) != (earlier->leave == SPECIMEN_SPAWNED) || (s.wrong[0] && !earlier->killed))
		fail_msg("%s: it was to be %s: %s %s", way_name(&s.way), earlier->name, s.err.text, s.wrong);
	if (earlier->syncs)
		how->sync(how);
}

void power_cut_save(struct power_cut *p, const struct specimen *how)
{
	struct specimen s = *how;

	s.content = SPECIMEN_NEW;
	s.sync = NULL;
	s.continues = p->earlier != NULL;
	s.keeps = s.continues && p->earlier->keeps;
	if (!specimen_save(&s))
		fail_msg("%s: %s %s", way_name(&s.way), s.err.text, s.wrong);
}

/* ---- disks that may be left ---- */

static void put_sectors(struct power_disk *disk, const struct fuse_step *step, unsigned sector, uint64_t *random)
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

static void carry_out(struct power_disk *disk, const struct fuse_step *step, unsigned sector, uint64_t *random)
{
	assert_true(step->offset + step->bytes <= SPECIMEN_DEVICE_BYTES);
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

static bool is_durable(const struct power_cut *history, unsigned index, uint64_t size, unsigned cut)
{
	const struct fuse_step *step = &history->steps[index];
	const bool shorter = step->opcode == FUSE_SETATTR && step->offset < size;

	for (unsigned i = index + 1; i < cut; i++)
		if (history->steps[i].opcode == FUSE_FSYNC &&
		    !(shorter && history->steps[i].flags & FUSE_FSYNC_FDATASYNC))
			return true;
	return false;
}

static void tear(struct power_disk *disk, const struct fuse_step *step)
{
	struct fuse_step start = *step;

	start.bytes = dioh_min(step->bytes, SECTOR_BYTES - step->offset % SECTOR_BYTES);
	put_sectors(disk, &start, SECTOR_BYTES, NULL);
}

static void make_disk(struct power_disk *disk, const struct power_cut *history, const struct replay *replay)
{
	uint64_t random = replay->seed;

	if (disk->size > history->first.size)
		memset(disk->bytes + history->first.size, 0, disk->size - history->first.size);
	disk->size = history->first.size;
	memcpy(disk->bytes, history->first.bytes, disk->size);
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
		else if (replay->torn)
			tear(disk, step);
	}
}

/* Leaves out what is zero: quick, and a raw image's holes are holes. */
static void write_disk(const struct power_cut *p)
{
	const struct power_disk *disk = &p->disk;

	if (ftruncate(p->fd, 0) < 0 || ftruncate(p->fd, (off_t)disk->size) < 0)
		fail_msg("%s: %s", p->path, strerror(errno));
	for (uint64_t at = 0; at < disk->size; at += PAGE) {
		const uint64_t n = dioh_min(PAGE, disk->size - at);

		if (!dioh_is_zero(disk->bytes + at, n))
			assert_int_equal(pwrite(p->fd, disk->bytes + at, n, (off_t)at), n);
	}
	if (p->written)
		p->written();
}

/* ---- what they are worth ---- */

/* How many syncs the save has done: before the first one the older image may be whole still, behind it it may not. */
static unsigned count_syncs(const struct power_cut *history, unsigned cut)
{
	unsigned count = 0;

	for (unsigned i = history->begun; i < cut; i++)
		count += history->steps[i].opcode == FUSE_FSYNC;
	return count;
}

static bool may_be_old(const struct power_cut *p, const struct replay *replay)
{
	return p->before != DIOH_LAYOUT_DETECT && count_syncs(p, replay->cut) == 0;
}

/* Who asks for no syncs is told by the record alone that there were none: of all else anything may be there. */
static bool is_unsynced(const struct power_cut *p, const struct replay *replay)
{
	return p->earlier && p->earlier->mode == DIOH_FINISH_WRITTEN && count_syncs(p, replay->cut) == 0;
}

static _Noreturn void die(const struct power_cut *p, const struct replay *replay, const char *what, const struct specimen *s)
{
	fail_msg("layout %u over %u%s%s on a %s, cut behind step %u of %u (%u of an earlier save, %u syncs behind them), %s (only "
	         "%u, without %u%s), sectors of %u, seed %llu: %s: %s %s", p->layout, p->before, p->earlier ? ", continued: " : "",
	         p->earlier ? p->earlier->name : "", p->device ? "device" : "file", replay->cut, p->count, p->begun,
	         count_syncs(p, replay->cut), replay->all ? "all" : replay->none ? "only durable" : "some", replay->only,
	         replay->without, replay->torn ? ", torn" : "", replay->sector, (unsigned long long)replay->seed, what, s->wrong,
	         s->err.text);
	abort();
}

static void judge(struct power_cut *p, const struct replay *replay, enum specimen_verdict verdict, const struct specimen *s)
{
	bool right = verdict == SPECIMEN_REFUSED || verdict == SPECIMEN_IS_OLD || verdict == SPECIMEN_IS_NEW;

	if (verdict == SPECIMEN_FAILED && is_unsynced(p, replay)) {
		verdict = SPECIMEN_REFUSED;
		right = true;
	}
	if (verdict == SPECIMEN_IS_OLD && !may_be_old(p, replay))
		right = false;
	if (replay->cut == p->begun && replay->all &&
	    verdict != (p->before == DIOH_LAYOUT_DETECT ? SPECIMEN_REFUSED : SPECIMEN_IS_OLD))
		right = false;
	if (replay->cut == p->count && verdict != SPECIMEN_IS_NEW) /* it was said to be complete */
		right = false;
	p->replays++;
	p->last = verdict;
	p->refused += verdict == SPECIMEN_REFUSED;
	p->old += verdict == SPECIMEN_IS_OLD;
	p->new += verdict == SPECIMEN_IS_NEW;
	if (!right)
		die(p, replay, specimen_verdict_name(verdict), s);
}

static struct specimen specimen_left(const struct power_cut *p)
{
	return (struct specimen){ .way = { .layout = p->layout, .engine = DIOH_ENGINE_SYNC, .fds = WAY_LONE_BUFFERED },
		                  .path = p->path };
}

static enum specimen_verdict look(const struct power_cut *p, struct specimen *s)
{
	*s = specimen_left(p);
	write_disk(p);
	return specimen_load(s, DIOH_LAYOUT_DETECT);
}

/* A disk that was refused: a save continues it, and is right then. Or there is nothing to continue. */
static void go_on(struct power_cut *p, const struct replay *replay)
{
	struct specimen s = specimen_left(p), left = specimen_left(p);
	enum specimen_verdict verdict;
	bool ok;

	s.content = SPECIMEN_NEW;
	s.continues = true;
	s.keeps = p->earlier && p->earlier->keeps;
	ok = specimen_save(&s);
	if (!ok && (p->earlier || s.err.code != EINVAL || s.err.operation != DIOH_OP_PARSE))
		die(p, replay, "it cannot be continued", &s);
	verdict = specimen_load(&left, DIOH_LAYOUT_DETECT);
	if (verdict != (ok ? SPECIMEN_IS_NEW : SPECIMEN_REFUSED))
		die(p, replay, ok ? "continued, it is not right" : "it was to be left alone", &left);
	p->continued += ok;
	if (p->written)
		p->written(); /* or what the device has in memory would land on the next disk */
}

/* A disk that was refused. If QEMU's magic is there libvirt's mark may follow at any moment: nothing else does. */
static void ask_libvirt_and_qemu(struct power_cut *p, const struct replay *replay, const struct specimen *refused)
{
	struct specimen s;

	if (is_unsynced(p, replay))
		return;
	if (memcmp(p->disk.bytes, "LibvirtQemudSave", 16) == 0)
		die(p, replay, "libvirt takes it", refused);
	if (memcmp(p->disk.bytes, "LibvirtQemudPart", 16) != 0 ||
	    memcmp(p->disk.bytes + SPECIMEN_HEADER_BYTES, "QEVM", 4) != 0)
		return;
	memcpy(p->disk.bytes, "LibvirtQemudSave", 16);
	judge(p, replay, look(p, &s), &s);
	if (p->last != SPECIMEN_IS_NEW && !may_be_old(p, replay))
		die(p, replay, "QEMU takes it, and it is not whole", &s);
}

/*
 * A disk whose manager's header is gone, and QEMU's magic is not: for a manager that does not look at its header that is an
 * image. It may be the older one, then, and must be whole.
 */
static void ask_who_skips_the_header(struct power_cut *p, const struct replay *replay)
{
	static const uint8_t zeros[sizeof(p->header)];
	enum specimen_verdict verdict;
	struct specimen s;

	if (p->before != DIOH_LAYOUT_MAPPED_RAM || memcmp(p->disk.bytes, zeros, sizeof(zeros)) != 0 ||
	    memcmp(p->disk.bytes + SPECIMEN_HEADER_BYTES, "QEVM", 4) != 0)
		return;
	memcpy(p->disk.bytes, p->header, sizeof(p->header));
	verdict = look(p, &s);
	if (verdict != SPECIMEN_REFUSED && verdict != SPECIMEN_IS_OLD)
		die(p, replay, "without its header it is not right", &s);
}

static void run_replay(struct power_cut *p, const struct replay *replay)
{
	struct specimen s;

	alarm(HANG_S);
	make_disk(&p->disk, p, replay);
	judge(p, replay, look(p, &s), &s);
	if (p->last != SPECIMEN_REFUSED)
		return;
	if (p->layout != DIOH_LAYOUT_RAW && p->every && p->refused % p->every == 0)
		go_on(p, replay);
	if (p->layout == DIOH_LAYOUT_MAPPED_RAM)
		ask_libvirt_and_qemu(p, replay, &s);
	if (p->last == SPECIMEN_REFUSED)
		ask_who_skips_the_header(p, replay);
}

/* What is open before a sync, one step at a time: it alone, all but it, and all but what is behind its first sector. */
static void run_single_steps(struct power_cut *p, unsigned last)
{
	for (unsigned step = 0; step < last; step++) {
		unsigned cut = step + 1;

		if (p->steps[step].opcode == FUSE_FSYNC)
			continue;
		while (cut < last && p->steps[cut].opcode != FUSE_FSYNC)
			cut++;
		if (cut < p->begun)
			continue;
		run_replay(p, &(struct replay){ .cut = cut, .only = step + 1, .sector = PAGE });
		run_replay(p, &(struct replay){ .cut = cut, .without = step + 1, .sector = PAGE });
		if (p->steps[step].opcode == FUSE_WRITE && p->steps[step].bytes > SECTOR_BYTES)
			run_replay(p, &(struct replay){ .cut = cut, .without = step + 1, .torn = true, .sector = PAGE });
	}
}

/* Behind the save's first syncs what was there before makes little difference. */
static unsigned brief_end(const struct power_cut *p)
{
	unsigned syncs = 0, cut = p->begun;

	while (cut < p->count && syncs < BRIEF_SYNCS)
		syncs += p->steps[cut++].opcode == FUSE_FSYNC;
	return cut;
}

/* What stands there when the save begins. An earlier one that was left in its FINISH may have come to its end. */
static void look_at_first(struct power_cut *p)
{
	struct specimen s;

	make_disk(&p->disk, p, &(struct replay){ .cut = p->begun, .all = true, .sector = PAGE });
	memcpy(p->header, p->disk.bytes, sizeof(p->header));
	if (p->earlier)
		p->before = look(p, &s) == SPECIMEN_IS_OLD ? p->layout : DIOH_LAYOUT_DETECT;
}

/* Every prefix; before every sync also that alone which is durable; then by chance, where much is not. */
void power_cut_run(struct power_cut *p, unsigned wanted, uint64_t seed)
{
	const unsigned first = p->begun + 1, last = p->brief ? brief_end(p) : p->count;

	look_at_first(p);
	for (unsigned cut = p->begun; cut <= last; cut++)
		run_replay(p, &(struct replay){ .cut = cut, .all = true, .sector = PAGE });
	if (last < p->count)
		run_replay(p, &(struct replay){ .cut = p->count, .all = true, .sector = PAGE });
	for (unsigned cut = first; cut <= last; cut++)
		if (cut == p->count || p->steps[cut].opcode == FUSE_FSYNC)
			run_replay(p, &(struct replay){ .cut = cut, .none = true, .sector = PAGE });
	run_single_steps(p, last);
	for (unsigned i = 0; i < wanted; i++) {
		struct replay replay = { .sector = test_random(&seed) % 2 ? SECTOR_BYTES : PAGE };

		replay.cut = test_random(&seed) % 5 ? first + (unsigned)(test_random(&seed) % (last - p->begun)) : first;
		if (test_random(&seed) % 4) /* up to the next sync: most is open there */
			while (replay.cut < last && p->steps[replay.cut].opcode != FUSE_FSYNC)
				replay.cut++;
		replay.seed = test_random(&seed);
		run_replay(p, &replay);
	}
}

void power_cut_summary(const struct power_cut *p)
{
	static const char *const names[] = { "nothing", "raw", "container", "mapped-ram" };

	alarm(0);
	print_message("%s%s%s over %s on a %s: %u steps, %u replays: %u refused, %u of them continued, %u the older image, %u the "
	              "newer\n", names[p->layout], p->earlier ? ", continued: " : "", p->earlier ? p->earlier->name : "",
	              names[p->before], p->device ? "device" : "file", p->count - p->begun, p->replays, p->refused,
	              p->continued, p->old, p->new);
	assert_true(p->refused > 0 && p->new > 0);
	assert_int_equal(p->old > 0, p->before != DIOH_LAYOUT_DETECT);
	assert_int_equal(p->continued > 0, p->every && p->layout != DIOH_LAYOUT_RAW);
}
