/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* multifd_format.c - reading what multifd's channels begin with, and their packets' heads. */
#include "multifd_format.h"

#include <endian.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#define MAGIC 0x11223344u
#define STREAM_MAGIC 0x5145564du /* "QEVM" */
#define VERSION 1u
#define FLAG_SYNC 0x1u

struct init {
	uint32_t magic;
	uint32_t version;
	uint8_t uuid[16];
	uint8_t channel;
	uint8_t reserved[39];
} __attribute__((packed));

struct packet {
	uint32_t magic;
	uint32_t version;
	uint32_t flags;
	uint32_t pages_room; /* 0 in packets of QEMU 9.1 and later that only sync */
	uint32_t data_pages;
	uint32_t data_bytes; /* an older value in packets without pages */
	uint64_t number; /* of all channels' packets, from 0 on */
	uint32_t zero_pages; /* reserved, and 0, before QEMU 9.0 */
	uint32_t reserved32;
	uint64_t reserved64[3];
	char block[256];
	uint64_t offsets[DIOH_MULTIFD_PAGES_MAX];
} __attribute__((packed));

_Static_assert(sizeof(struct init) == DIOH_MULTIFD_INIT_BYTES, "QEMU's MultiFDInit_t");
_Static_assert(sizeof(struct packet) == DIOH_MULTIFD_PACKET_BYTES, "QEMU's MultiFDPacket_t");

static const struct {
	uint32_t flag;
	const char *name;
} foreign_flags[] = {
	{ 0x02, "compression by zlib" }, { 0x04, "compression by zstd" },   { 0x08, "compression by qpl" },
	{ 0x10, "compression by uadk" }, { 0x20, "compression by qatzip" }, { 0x40, "state of a device" },
	{ 0x80, "XBZRLE" },
};

#define REFUSE(err, code, at, format, ...)                                                                             \
	dioh_error_set(err, code, &(const struct dioh_place){ DIOH_OP_PARSE, DIOH_OBJECT_STREAM, 0, (at) },            \
	               "multifd channel: " format " (byte %" PRIu64 ")", ##__VA_ARGS__, (uint64_t)(at))

static int check_head(uint32_t magic, uint32_t version, uint64_t at, struct dioh_error *err)
{
	if (magic == STREAM_MAGIC)
		return REFUSE(err, EBADMSG, at, "it begins like a migration stream: it is the main one");
	if (magic != MAGIC)
		return REFUSE(err, EBADMSG, at, "0x%08" PRIx32 " stands where multifd's magic should", magic);
	if (version != VERSION)
		return REFUSE(err, EOPNOTSUPP, at + 4, "version %" PRIu32 " is not understood, only %u", version, VERSION);
	return 0;
}

int dioh_multifd_get_init(const uint8_t bytes[DIOH_MULTIFD_INIT_BYTES], uint64_t at, struct dioh_multifd_init *ret_init,
                          struct dioh_error *err)
{
	struct init init;
	int r;

	memcpy(&init, bytes, sizeof(init));
	r = check_head(be32toh(init.magic), be32toh(init.version), at, err);
	if (r < 0)
		return r;
	memcpy(ret_init->uuid, init.uuid, sizeof(init.uuid));
	ret_init->channel = init.channel;
	return 0;
}

static int check_flags(uint32_t flags, uint64_t at, struct dioh_error *err)
{
	for (unsigned i = 0; i < sizeof(foreign_flags) / sizeof(foreign_flags[0]); i++)
		if (flags & foreign_flags[i].flag)
			return REFUSE(err, EOPNOTSUPP, at + 8, "a packet with %s (flags 0x%" PRIx32 ") is not understood",
			              foreign_flags[i].name, flags);
	if (flags & ~FLAG_SYNC)
		return REFUSE(err, EOPNOTSUPP, at + 8, "a packet with flags 0x%" PRIx32 " is not understood", flags);
	return 0;
}

static int check_counts(const struct packet *packet, uint64_t at, struct dioh_error *err)
{
	const uint32_t room = be32toh(packet->pages_room);
	const uint32_t data = be32toh(packet->data_pages), zero = be32toh(packet->zero_pages);

	if (room > DIOH_MULTIFD_PAGES_MAX)
		return REFUSE(err, EBADMSG, at + 12, "packets for %" PRIu32 " pages, not %u", room, DIOH_MULTIFD_PAGES_MAX);
	if (data > room || zero > room - data)
		return REFUSE(err, EBADMSG, at + 16,
		              "a packet for %" PRIu32 " pages with %" PRIu32 " of data and %" PRIu32 " of zeros", room, data,
		              zero);
	if (data > 0 && be32toh(packet->data_bytes) != data * DIOH_PAGE_BYTES)
		return REFUSE(err, EBADMSG, at + 20, "a packet with %" PRIu32 " pages is followed by %" PRIu32 " bytes", data,
		              be32toh(packet->data_bytes));
	return 0;
}

static int find_block(const struct packet *packet, const struct dioh_qemu_setup *setup, uint64_t at,
                      unsigned *ret_block, struct dioh_error *err)
{
	const uint64_t name_at = at + offsetof(struct packet, block);
	char shown[65];
	unsigned i;

	for (i = 0; i < setup->block_count; i++) {
		if (strncmp(setup->blocks[i].name, packet->block, sizeof(packet->block)) == 0) {
			*ret_block = i;
			return 0;
		}
	}
	for (i = 0; i < sizeof(shown) - 1 && packet->block[i]; i++)
		shown[i] = packet->block[i] >= ' ' && packet->block[i] <= '~' ? packet->block[i] : '?';
	shown[i] = '\0';
	return REFUSE(err, EBADMSG, name_at, "pages of block \"%s\", which the stream's setup does not have", shown);
}

static int get_pages(const struct packet *packet, const struct dioh_qemu_block *block, uint64_t at,
                     struct dioh_multifd_packet *ret_packet, struct dioh_error *err)
{
	for (unsigned i = 0; i < ret_packet->data_pages + ret_packet->zero_pages; i++) {
		const uint64_t offset = be64toh(packet->offsets[i]);

		if (offset % DIOH_PAGE_BYTES != 0 || offset >= block->bytes)
			return REFUSE(err, EBADMSG, at + offsetof(struct packet, offsets) + 8 * (uint64_t)i,
			              "block \"%.64s\": a page at offset %" PRIu64 " of its %" PRIu64 " bytes", block->name, offset,
			              block->bytes);
		ret_packet->pages[i] = offset / DIOH_PAGE_BYTES;
	}
	return 0;
}

int dioh_multifd_get_packet(const uint8_t bytes[DIOH_MULTIFD_PACKET_BYTES], uint64_t at,
                            const struct dioh_qemu_setup *setup, struct dioh_multifd_packet *ret_packet,
                            struct dioh_error *err)
{
	struct dioh_multifd_packet answer = { 0 };
	struct packet packet;
	int r;

	memcpy(&packet, bytes, sizeof(packet));
	r = check_head(be32toh(packet.magic), be32toh(packet.version), at, err);
	if (r == 0)
		r = check_flags(be32toh(packet.flags), at, err);
	if (r == 0)
		r = check_counts(&packet, at, err);
	if (r < 0)
		return r;
	answer.sync = be32toh(packet.flags) & FLAG_SYNC;
	answer.number = be64toh(packet.number);
	answer.data_pages = be32toh(packet.data_pages);
	answer.zero_pages = be32toh(packet.zero_pages);
	if (answer.data_pages + answer.zero_pages > 0)
		r = find_block(&packet, setup, at, &answer.block, err);
	if (r == 0)
		r = get_pages(&packet, &setup->blocks[answer.block], at, &answer, err);
	if (r == 0)
		*ret_packet = answer;
	return r;
}
