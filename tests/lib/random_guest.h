/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * random_guest.h - guests of random sizes and contents that never ran, for saves in each layout: memories, a stream
 * (mapped-ram: QEMU's, with a block of memory in it), their table; and whether what an image has given back is that guest.
 * May be used by several threads; what cannot be had ends the program.
 */
#ifndef DIOH_RANDOM_GUEST_H
#define DIOH_RANDOM_GUEST_H

#include "fixture.h"
#include "qemu_maker.h"

#define RANDOM_GUEST_MEMORIES 3u
#define RANDOM_GUEST_ENTRY 7u /* the stream's */

struct random_guest {
	uint32_t layout; /* enum dioh_layout, that it is saved in */
	unsigned count;  /* of memories, which are regions 0 and on; 0: there is no guest */
	int memories[RANDOM_GUEST_MEMORIES];
	uint64_t bytes[RANDOM_GUEST_MEMORIES];
	char name[RANDOM_GUEST_MEMORIES][32];
	int stream; /* a file: what the stream brings */
	uint64_t stream_bytes;
	struct qemu_maker q; /* mapped-ram */
};

/* `name` begins the names of its regions. */
void random_guest_make(struct random_guest *guest, uint32_t layout, const char *name, uint64_t seed);
void random_guest_free(struct random_guest *guest);

/* Entries as a manager announces them, for a save or a load; raw: with their places. */
unsigned random_guest_entries(const struct random_guest *guest, bool load, struct dioh_msg_entry *ret_entries);

/* What of it is not as it was in these memories and this file; NULL: nothing. */
const char *random_guest_differs(const struct random_guest *guest, const int *memories, int stream);

#endif
