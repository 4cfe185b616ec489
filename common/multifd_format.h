/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * multifd_format.h - what QEMU's capability multifd sends beside its migration stream: some channels, each of which names
 * itself once and then brings packets. A packet says which pages of which block it is about; the bytes of those that are
 * not zero follow it. Pure functions on bytes; every byte may come from somebody hostile. Integers are big-endian.
 *
 *      init  { packet [pages' bytes] } ...
 *
 * A channel's packet with SYNC stands where the stream has a sync point (DIOH_QEMU_SYNC): pages behind it may be the same
 * as pages in front of it on another channel, and are newer.
 *
 * Source: QEMU 10.0, migration/multifd.h, multifd.c, multifd-nocomp.c; QEMU 7.2 leaves zero pages to the stream. Private to
 * helper, tests and fuzzers.
 */
#ifndef DIOH_MULTIFD_FORMAT_H
#define DIOH_MULTIFD_FORMAT_H

#include "qemu_stream.h"

#define DIOH_MULTIFD_INIT_BYTES 64u
#define DIOH_MULTIFD_PAGES_MAX 128u /* of a packet: 512 KiB of pages of 4 KiB */
#define DIOH_MULTIFD_PACKET_BYTES (320u + 8u * DIOH_MULTIFD_PAGES_MAX)

struct dioh_multifd_init {
	uint8_t uuid[16]; /* the machine's */
	uint8_t channel;  /* from 0 on */
};

struct dioh_multifd_packet {
	bool sync;
	uint64_t number; /* in the order in which they were begun, over all channels, from 0 on */
	unsigned block; /* index in the setup; with pages only */
	unsigned data_pages;
	unsigned zero_pages;
	uint64_t pages[DIOH_MULTIFD_PAGES_MAX]; /* numbers in the block: data, then zero */
};

/*
 * -EBADMSG: not QEMU's, or contradicting itself or the setup; -EOPNOTSUPP: a version or flag (compression, devices' state)
 * that is not understood, named. Object STREAM, operation PARSE, offset `at`: of these bytes in the channel.
 */
int dioh_multifd_get_init(const uint8_t bytes[DIOH_MULTIFD_INIT_BYTES], uint64_t at, struct dioh_multifd_init *ret_init,
                          struct dioh_error *err);
int dioh_multifd_get_packet(const uint8_t bytes[DIOH_MULTIFD_PACKET_BYTES], uint64_t at,
                            const struct dioh_qemu_setup *setup, struct dioh_multifd_packet *ret_packet,
                            struct dioh_error *err);

#endif
