/* SPDX-License-Identifier: LGPL-2.1-or-later */
#define _GNU_SOURCE
#include "power_cut.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include <errno.h>
#include <linux/falloc.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "align.h"
#include "pages.h"

#define HANG_S 60

struct replay { /* one disk that a power cut may leave */
	unsigned cut;     /* so many steps had been begun */
	bool all;         /* and all of these were done; else by chance */
	bool none;        /* nothing but what is durable */
	unsigned only;    /* of the others only this step, counted from 1 */
	unsigned without; /* or all but this one */
	unsigned sector;  /* bytes */
	uint64_t seed;
};

int power_cut_prepare(struct power_cut *p)
{
	p->fd = -1;
	p->disk.bytes = malloc(SPECIMEN_DEVICE_BYTES);
	p->first.bytes = malloc(SPECIMEN_DEVICE_BYTES);
	return p->disk.bytes && p->first.bytes ? 0 : -1;
}

void power_cut_begin(struct power_cut *p, int fd)
{
	p->count = 0;
	p->replays = p->refused = p->old = p->new = 0;
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

static void make_disk(struct power_disk *disk, const struct power_cut *history, const struct replay *replay)
{
	uint64_t random = replay->seed;

	disk->size = history->first.size;
	memcpy(disk->bytes, history->first.bytes, SPECIMEN_DEVICE_BYTES);
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

/* How many syncs were done: before the first one the older image may be whole still, behind it it may not. */
static unsigned count_syncs(const struct power_cut *history, unsigned cut)
{
	unsigned count = 0;

	for (unsigned i = 0; i < cut; i++)
		count += history->steps[i].opcode == FUSE_FSYNC;
	return count;
}

static void judge(struct power_cut *p, const struct replay *replay, enum specimen_verdict verdict, const struct specimen *s)
{
	const unsigned count = p->count;
	bool right = verdict == SPECIMEN_REFUSED || verdict == SPECIMEN_IS_OLD || verdict == SPECIMEN_IS_NEW;

	if (verdict == SPECIMEN_IS_OLD && (p->before == DIOH_LAYOUT_DETECT || count_syncs(p, replay->cut) > 0))
		right = false;
	if (replay->cut == 0 && verdict != (p->before == DIOH_LAYOUT_DETECT ? SPECIMEN_REFUSED : SPECIMEN_IS_OLD))
		right = false;
	if (replay->cut == count && verdict != SPECIMEN_IS_NEW) /* it was said to be complete */
		right = false;
	p->replays++;
	p->last = verdict;
	p->refused += verdict == SPECIMEN_REFUSED;
	p->old += verdict == SPECIMEN_IS_OLD;
	p->new += verdict == SPECIMEN_IS_NEW;
	if (!right)
		fail_msg("layout %u over %u on a %s, cut behind step %u of %u (%u syncs), %s (only %u, without %u), sectors of %u, "
		         "seed %llu: %s: %s %s", p->layout, p->before, p->device ? "device" : "file", replay->cut, count,
		         count_syncs(p, replay->cut), replay->all ? "all" : replay->none ? "only durable" : "some",
		         replay->only, replay->without,
		         replay->sector, (unsigned long long)replay->seed, specimen_verdict_name(verdict), s->wrong, s->err.text);
}

static enum specimen_verdict look(const struct power_cut *p, struct specimen *s)
{
	*s = (struct specimen){ .way = { .layout = p->layout, .engine = DIOH_ENGINE_SYNC, .fds = WAY_LONE_BUFFERED },
		                .path = p->path };
	write_disk(p);
	return specimen_load(s, DIOH_LAYOUT_DETECT);
}

/* A disk that was refused. If QEMU's magic is there libvirt's mark may follow at any moment: nothing else does. */
static void ask_libvirt_and_qemu(struct power_cut *p, const struct replay *replay, const struct specimen *refused)
{
	struct specimen s;

	if (memcmp(p->disk.bytes, "LibvirtQemudSave", 16) == 0)
		fail_msg("cut behind step %u, seed %llu: libvirt takes it, and it is refused: %s", replay->cut,
		         (unsigned long long)replay->seed, refused->err.text);
	if (memcmp(p->disk.bytes, "LibvirtQemudPart", 16) != 0 ||
	    memcmp(p->disk.bytes + SPECIMEN_HEADER_BYTES, "QEVM", 4) != 0)
		return;
	memcpy(p->disk.bytes, "LibvirtQemudSave", 16);
	judge(p, replay, look(p, &s), &s);
	if (p->last != SPECIMEN_IS_NEW)
		fail_msg("cut behind step %u, seed %llu: QEMU takes it, and it is not whole", replay->cut,
		         (unsigned long long)replay->seed);
}

/*
 * A disk whose manager's header is gone, and QEMU's magic is not: for a manager that does not look at its header that is an
 * image. It may be the older one, then, and must be whole.
 */
static void ask_who_skips_the_header(struct power_cut *p, const struct replay *replay)
{
	static const uint8_t zeros[512];
	enum specimen_verdict verdict;
	struct specimen s;

	if (p->before != DIOH_LAYOUT_MAPPED_RAM || memcmp(p->disk.bytes, zeros, sizeof(zeros)) != 0 ||
	    memcmp(p->disk.bytes + SPECIMEN_HEADER_BYTES, "QEVM", 4) != 0)
		return;
	memcpy(p->disk.bytes, p->first.bytes, sizeof(zeros));
	verdict = look(p, &s);
	if (verdict != SPECIMEN_REFUSED && verdict != SPECIMEN_IS_OLD)
		fail_msg("cut behind step %u, seed %llu: without its header it is %s: %s %s", replay->cut,
		         (unsigned long long)replay->seed, specimen_verdict_name(verdict), s.wrong, s.err.text);
}

static void run_replay(struct power_cut *p, const struct replay *replay)
{
	struct specimen s;

	alarm(HANG_S);
	make_disk(&p->disk, p, replay);
	judge(p, replay, look(p, &s), &s);
	if (p->layout == DIOH_LAYOUT_MAPPED_RAM && p->last == SPECIMEN_REFUSED)
		ask_libvirt_and_qemu(p, replay, &s);
	if (p->last == SPECIMEN_REFUSED)
		ask_who_skips_the_header(p, replay);
}

/* What is open before a sync, one step at a time: it alone, and all but it. */
static void run_single_steps(struct power_cut *p)
{
	for (unsigned step = 0; step < p->count; step++) {
		unsigned cut = step + 1;

		if (p->steps[step].opcode == FUSE_FSYNC)
			continue;
		while (cut < p->count && p->steps[cut].opcode != FUSE_FSYNC)
			cut++;
		run_replay(p, &(struct replay){ .cut = cut, .only = step + 1, .sector = PAGE });
		run_replay(p, &(struct replay){ .cut = cut, .without = step + 1, .sector = PAGE });
	}
}

/* Every prefix; before every sync also that alone which is durable; then by chance, where much is not. */
void power_cut_run(struct power_cut *p, unsigned wanted, uint64_t seed)
{
	const unsigned count = p->count;

	for (unsigned cut = 0; cut <= count; cut++)
		run_replay(p, &(struct replay){ .cut = cut, .all = true, .sector = PAGE });
	for (unsigned cut = 1; cut <= count; cut++)
		if (cut == count || p->steps[cut].opcode == FUSE_FSYNC)
			run_replay(p, &(struct replay){ .cut = cut, .none = true, .sector = PAGE });
	run_single_steps(p);
	for (unsigned i = 0; i < wanted; i++) {
		struct replay replay = { .sector = test_random(&seed) % 2 ? 512 : PAGE };

		replay.cut = test_random(&seed) % 5 ? 1 + (unsigned)(test_random(&seed) % count) : 1;
		if (test_random(&seed) % 4) /* up to the next sync: most is open there */
			while (replay.cut < count && p->steps[replay.cut].opcode != FUSE_FSYNC)
				replay.cut++;
		replay.seed = test_random(&seed);
		run_replay(p, &replay);
	}
}

void power_cut_summary(const struct power_cut *p)
{
	static const char *const names[] = { "nothing", "raw", "container", "mapped-ram" };

	alarm(0);
	print_message("%s over %s on a %s: %u steps, %u replays: %u refused, %u the older image, %u the newer\n",
	              names[p->layout], names[p->before], p->device ? "device" : "file", p->count, p->replays, p->refused,
	              p->old, p->new);
	assert_true(p->refused > 0 && p->new > 0);
	assert_int_equal(p->old > 0, p->before != DIOH_LAYOUT_DETECT);
}
