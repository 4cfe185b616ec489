/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * places.h - where an image may stand: file systems and block devices made for the test, on loop devices, zram and a FUSE
 * mount (fuse_file.h), one at a time. Needs root and a mount namespace of the program's own: place_own_namespace(), first of
 * all. What is made is undone when the place is closed or the program ends.
 */
#ifndef DIOH_PLACES_H
#define DIOH_PLACES_H

#include <stdbool.h>
#include <stdint.h>

#include "fuse_file.h"

enum place_kind {
	PLACE_EXT4,
	PLACE_XFS,
	PLACE_XFS_16K, /* blocks larger than a page: Linux 6.12 */
	PLACE_BTRFS,       /* as it comes: with checksums */
	PLACE_BTRFS_NOCOW, /* in a directory with chattr +C */
	PLACE_TMPFS,
	PLACE_FUSE,
	PLACE_LOOP_512,
	PLACE_LOOP_4096,
	PLACE_ZRAM,
	PLACE_NETWORK, /* a loop device on a FUSE file: a disk behind a server */
	PLACE_COUNT,
};

struct place {
	enum place_kind kind;
	char path[512]; /* of the image: a file that need not be there, or a device */
	bool is_device;
	struct fuse_file *fuse; /* the server, or NULL */
};

/* NULL, or why not. */
const char *place_own_namespace(void);

const char *place_name(enum place_kind kind);
/* With room for `bytes` (sparse). NULL, or why it is not to be had here; then there is nothing to close. */
const char *place_open(struct place *place, enum place_kind kind, uint64_t bytes);
void place_close(struct place *place);

#endif
