/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * specimen.h - one small save and one small load of every layout, for tests that break them: disks that fail, kills, power
 * cuts. There are an older and a newer content, so that what an image holds can be told. Nothing that goes wrong
 * in a session ends the test: it is answered, and what an image is worth is a verdict.
 *
 * Each content has two memories, a stream (mapped-ram: QEMU's, with a block in it) and a manager's header, which has a mark
 * in its first bytes (raw: ours; mapped-ram: libvirt's; the container needs none).
 */
#ifndef DIOH_SPECIMEN_H
#define DIOH_SPECIMEN_H

#include <sys/types.h>

#include "moves.h"

#define SPECIMEN_HEADER_BYTES 5000u /* more than a page: of container and mapped-ram, where QEMU's bytes follow */
#define SPECIMEN_DEVICE_BYTES (16 * MIB) /* has room for every layout's image */

/*
 * BEGUN (not with layout raw) is what another save may go on with until it is the newer content: its entries are the same,
 * and so is the first memory's first chunk. All else differs.
 */
enum specimen_content { SPECIMEN_OLD, SPECIMEN_NEW, SPECIMEN_BEGUN, SPECIMEN_CONTENTS };

enum specimen_step { /* what has just been done */
	SPECIMEN_SPAWNED,
	SPECIMEN_ATTACHED,
	SPECIMEN_SEALED,
	SPECIMEN_CREATED,
	SPECIMEN_STREAM_BEGUN,
	SPECIMEN_STREAM_SAVED,
	SPECIMEN_MEMORY_BEGUN,
	SPECIMEN_MEMORY_SAVED,
	SPECIMEN_FINISH_BEGUN,
	SPECIMEN_FINISHED,
	SPECIMEN_STEPS
};

enum specimen_verdict {
	SPECIMEN_REFUSED, /* OPEN_IMAGE (raw: the mark): partial, or no image */
	SPECIMEN_FAILED,  /* something is not to be had: an error was given, and it is not that */
	SPECIMEN_IS_OLD,  /* it opens, and every byte is the older content's, or the begun one's */
	SPECIMEN_IS_NEW,
	SPECIMEN_WRONG,   /* a wrong byte was given for right, or the helper crashed */
};

struct specimen {
	struct way way;
	const char *path;
	const char *directory; /* of the image, given to the helper in a save; NULL: none is */
	enum specimen_content content; /* save */
	void (*watch)(enum specimen_step step, pid_t helper, void *context); /* save; may be NULL */
	void *context;
	/* Save: the first memory's first chunk comes before the rest, and is made durable by this; may be NULL. */
	void (*sync)(const struct specimen *s);
	bool continues; /* save: CREATE_IMAGE's CONTINUE, */
	bool keeps;     /* and that chunk is kept */
	enum specimen_step leave;   /* save: the manager hangs up behind it; SPAWNED: it does not */
	enum dioh_finish_mode mode; /* save */
	int messages; /* where the helper's standard error goes; 0: nowhere */
	/* Answered: why a save failed, why an image was refused. */
	struct dioh_error err;
	int wait_status;
	char wrong[160]; /* of SPECIMEN_WRONG and _FAILED: what */
};

/* A group's setup: makes the contents, saves and loads each once, in fixture_dir(), without any fault. */
int specimen_prepare(void **state);

/* true: FINISH's COMPLETE came without an error. Ends the helper. */
bool specimen_save(struct specimen *s);

/*
 * Loads what stands there. `layout`: DIOH_LAYOUT_DETECT finds out what it is, in the file itself as well; with any other
 * only the helper reads the image, which must be of that layout and `content`.
 */
enum specimen_verdict specimen_load(struct specimen *s, uint32_t layout);
const char *specimen_verdict_name(enum specimen_verdict verdict);

#endif
