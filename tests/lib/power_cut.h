/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * power_cut.h - the power goes in the middle of a save: from what a disk was told, step by step, the disks are made that may
 * be left, and each is given to a helper. Behind any step: all that a sync had made durable; of the rest all, nothing, one
 * step, all but one, all but what is behind the first sector of one; or each by chance done, left out, or (a write) done in
 * some of its sectors only, 512 or 4096 bytes each. What is left is no image, or one whose every byte is right: specimen.h's
 * newer content, or the older one until the first sync.
 *
 * What is durable: by fsync everything, by fdatasync all but a file's becoming shorter, which nobody needs to read it. Of
 * mapped-ram also what libvirt and a stock QEMU would make of it, who know nothing of our record: libvirt's mark stands
 * only on what is whole, and so does QEMU's magic, even if libvirt's mark is not there yet.
 *
 * The save may be one that continues the image of an earlier one (CREATE_IMAGE's CONTINUE), which has ended in one of the ways
 * below: the power goes in the later one, and what the earlier one had told the disk and not made durable is as open then as
 * anything. A disk that is refused is continued once more, with what a manager may keep: that ends in a right image. (Where
 * no earlier save had come so far that there is something to continue, it may be refused, too.)
 *
 * For cmocka programs, which say where the steps come from.
 */
#ifndef DIOH_POWER_CUT_H
#define DIOH_POWER_CUT_H

#include "fuse_file.h"
#include "specimen.h"

#define POWER_STEPS_MAX 512u

struct power_disk {
	uint8_t *bytes; /* SPECIMEN_DEVICE_BYTES; behind `size` zeros */
	uint64_t size;
};

struct power_earlier { /* how a save has ended that a later one continues */
	const char *name;
	enum specimen_step leave; /* its manager went behind this step; SPAWNED: it finished */
	bool killed;              /* or it was killed there */
	enum dioh_finish_mode mode;
	bool syncs_chunk; /* what is kept of it its manager had made durable: as soon as that was there, */
	bool syncs;       /* or behind it all; a durable FINISH needs neither */
	bool keeps;       /* or nothing is */
};

#define POWER_EARLIER 7u
extern const struct power_earlier power_earlier[POWER_EARLIER]; /* the killed one last: only a disk knows what it was told */

struct power_cut {
	uint32_t layout;
	uint32_t before; /* enum dioh_layout: whose complete image may be there still; DETECT: nobody's */
	const struct power_earlier *earlier; /* NULL: nothing is continued */
	unsigned every; /* of the disks that are refused each so-manyth is continued; 0: none */
	bool brief; /* only up to the save's second sync, and where it has ended */
	bool device;
	struct power_disk first; /* before the first step */
	struct fuse_step steps[POWER_STEPS_MAX];
	unsigned count;
	unsigned begun; /* of them the earlier save's */
	uint8_t header[512]; /* as these left it */
	struct power_disk disk;   /* made of them */
	char path[512];           /* where it is given to a helper, */
	int fd;                   /* and written */
	void (*written)(void);    /* has been; may be NULL */
	/* What came of it. */
	unsigned replays, refused, old, new, continued;
	enum specimen_verdict last;
};

/* Once. -1: no memory. */
int power_cut_prepare(struct power_cut *p);
/* A new history, which begins with what this file holds. */
void power_cut_begin(struct power_cut *p, int fd);
/*
 * The save that the power cuts short, and the one before it, which fails the running test if it does not end as it was to.
 * `how` says way, path, directory and messages; and with `sync` how a manager makes durable what is there.
 */
void power_cut_save_earlier(struct power_cut *p, const struct specimen *how);
void power_cut_save(struct power_cut *p, const struct specimen *how);
/* Room for the next step. */
struct fuse_step *power_cut_step(struct power_cut *p);
/* Every prefix, before every sync that alone which is durable, each open step alone and left out; then so many by chance. */
void power_cut_run(struct power_cut *p, unsigned wanted, uint64_t seed);
/* Prints what came of it, of which there must be some of each. */
void power_cut_summary(const struct power_cut *p);

#endif
