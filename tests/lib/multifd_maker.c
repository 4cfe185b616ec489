/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* multifd_maker.c - see multifd_maker.h. Fields are put one by one, at the places that QEMU's structures give them. */
#include "multifd_maker.h"

#include <string.h>

#define MAGIC 0x11223344u
#define VERSION 1u
#define FLAG_SYNC 0x1u

static uint8_t *put_be(uint8_t *to, uint64_t value, unsigned bytes)
{
	for (unsigned i = 0; i < bytes; i++)
		to[i] = (uint8_t)(value >> (8 * (bytes - 1 - i)));
	return to + bytes;
}

void multifd_put_init(uint8_t to[DIOH_MULTIFD_INIT_BYTES], const struct dioh_multifd_init *init)
{
	memset(to, 0, DIOH_MULTIFD_INIT_BYTES);
	to = put_be(to, MAGIC, 4);
	to = put_be(to, VERSION, 4);
	memcpy(to, init->uuid, sizeof(init->uuid));
	to[sizeof(init->uuid)] = init->channel;
}

void multifd_put_packet(uint8_t to[DIOH_MULTIFD_PACKET_BYTES], const struct dioh_qemu_setup *setup,
                        const struct dioh_multifd_packet *packet)
{
	const unsigned count = packet->data_pages + packet->zero_pages;
	const size_t name_bytes = sizeof(setup->blocks[0].name);

	memset(to, 0, DIOH_MULTIFD_PACKET_BYTES);
	to = put_be(to, MAGIC, 4);
	to = put_be(to, VERSION, 4);
	to = put_be(to, packet->sync ? FLAG_SYNC : 0, 4);
	to = put_be(to, count ? DIOH_MULTIFD_PAGES_MAX : 0, 4);
	to = put_be(to, packet->data_pages, 4);
	to = put_be(to, packet->data_pages * DIOH_PAGE_BYTES, 4);
	to = put_be(to, packet->number, 8);
	to = put_be(to, packet->zero_pages, 4);
	to += 4 + 3 * 8; /* reserved */
	if (count)
		memcpy(to, setup->blocks[packet->block].name, name_bytes);
	to += name_bytes;
	for (unsigned i = 0; i < count; i++)
		to = put_be(to, packet->pages[i] * DIOH_PAGE_BYTES, 8);
}
