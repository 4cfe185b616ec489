/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qemu_ending.h - where the device state behind a migration stream's memory may end. Nobody but QEMU can follow it; but a
 * stream ends with a description of its devices (a 0 byte, 0x06, be32 length, so many bytes of JSON), or, where that is
 * switched off, with the 0 byte behind a section's footer. Zeros behind the description are no part of it, and no harm: QEMU
 * does not look at them, and a copy of a volume has them. Of the parser: see qemu_parser.h.
 */
#ifndef DIOH_QEMU_ENDING_H
#define DIOH_QEMU_ENDING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define DIOH_QEMU_ENDINGS 4u /* a description's first 6 bytes may look like another's: no more than that overlap */

struct dioh_qemu_ending {
	struct { /* what looks like the start of a description says how long it is */
		uint64_t start; /* of the JSON */
		uint64_t end;
	} candidates[DIOH_QEMU_ENDINGS];
	unsigned next;
	uint64_t data_end; /* behind the last byte that is not 0 */
	uint64_t zero_end; /* behind the last 0 byte before that: JSON has none */
	uint8_t last[6];   /* bytes, the newest at the end: a footer and a 0 byte; 0, 0x06 and a length */
};

void dioh_qemu_ending_init(struct dioh_qemu_ending *ending);

/* The next bytes of the device state, which stand at `offset`. */
void dioh_qemu_ending_watch(struct dioh_qemu_ending *ending, const uint8_t *bytes, size_t count, uint64_t offset);

/* Whether the stream may end here. `footers`: its sections have them. */
bool dioh_qemu_ending_may_be(const struct dioh_qemu_ending *ending, bool footers);

#endif
