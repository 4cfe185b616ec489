/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * power_cut.h - the power goes in the middle of a save: from what a disk was told, step by step, the disks are made that may
 * be left, and each is given to a helper. Behind any step: all that a sync had made durable; of the rest all, nothing, one
 * step, all but one; or each by chance done, left out, or (a write) done in some of its sectors only, 512 or 4096 bytes each.
 * What is left is no image, or one whose every byte is right: specimen.h's newer content, or the older one until the first
 * sync.
 *
 * What is durable: by fsync everything, by fdatasync all but a file's becoming shorter, which nobody needs to read it. Of
 * mapped-ram also what libvirt and a stock QEMU would make of it, who know nothing of our record: libvirt's mark stands
 * only on what is whole, and so does QEMU's magic, even if libvirt's mark is not there yet.
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

struct power_cut {
	uint32_t layout;
	uint32_t before; /* enum dioh_layout; DETECT: nothing was there */
	bool device;
	struct power_disk first; /* before the first step */
	struct fuse_step steps[POWER_STEPS_MAX];
	unsigned count;
	struct power_disk disk;   /* made of them */
	char path[512];           /* where it is given to a helper, */
	int fd;                   /* and written */
	void (*written)(void);    /* has been; may be NULL */
	/* What came of it. */
	unsigned replays, refused, old, new;
	enum specimen_verdict last;
};

/* Once. -1: no memory. */
int power_cut_prepare(struct power_cut *p);
/* A new history, which begins with what this file holds. */
void power_cut_begin(struct power_cut *p, int fd);
/* Room for the next step. */
struct fuse_step *power_cut_step(struct power_cut *p);
/* Every prefix, before every sync that alone which is durable, each open step alone and left out; then so many by chance. */
void power_cut_run(struct power_cut *p, unsigned wanted, uint64_t seed);
/* Prints what came of it, of which there must be some of each. */
void power_cut_summary(const struct power_cut *p);

#endif
