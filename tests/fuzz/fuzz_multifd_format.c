/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * fuzz_multifd_format.c - what a multifd channel brings, from any bytes: an init and packets, each with the bytes of its
 * pages behind it; cut short at the end, the rest of a packet is zeros.
 *
 * Held against the codec: what it promises of pages and blocks; that an error leaves the answer alone; and that a packet,
 * written and read again, is the same.
 */
#include <errno.h>
#include <string.h>

#include "fuzz.h"
#include "multifd_maker.h"

#define PACKETS_MAX 64u

static struct dioh_qemu_block blocks[] = {
	{ .name = "pc.ram", .bytes = 300 * DIOH_PAGE_BYTES },
	{ .name = "0000:00:02.0/vga.vram", .bytes = DIOH_PAGE_BYTES },
};
static const struct dioh_qemu_setup setup = { .blocks = blocks, .block_count = sizeof(blocks) / sizeof(blocks[0]) };

static void check_error(int r, const struct dioh_error *err, uint64_t at, size_t bytes)
{
	CHECK(r == -err->code && (r == -EBADMSG || r == -EOPNOTSUPP));
	CHECK(err->text[0] != '\0' && memchr(err->text, 0, DIOH_TEXT_BYTES));
	CHECK(err->offset >= at && err->offset < at + bytes);
}

static void check_packet(const struct dioh_multifd_packet *packet)
{
	uint8_t bytes[DIOH_MULTIFD_PACKET_BYTES];
	struct dioh_multifd_packet again;
	const unsigned count = packet->data_pages + packet->zero_pages;

	CHECK(packet->data_pages <= DIOH_MULTIFD_PAGES_MAX && packet->zero_pages <= DIOH_MULTIFD_PAGES_MAX);
	CHECK(count <= DIOH_MULTIFD_PAGES_MAX);
	CHECK(packet->block < setup.block_count);
	for (unsigned i = 0; i < count; i++)
		CHECK(packet->pages[i] < blocks[packet->block].bytes / DIOH_PAGE_BYTES);
	multifd_put_packet(bytes, &setup, packet);
	CHECK(dioh_multifd_get_packet(bytes, 0, &setup, &again, NULL) == 0);
	CHECK(memcmp(&again, packet, sizeof(again)) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	uint8_t bytes[DIOH_MULTIFD_PACKET_BYTES];
	struct dioh_multifd_init init = { .channel = 201 };
	struct dioh_error err;
	size_t at = 0;
	int r;

	if (size >= DIOH_MULTIFD_INIT_BYTES) {
		r = dioh_multifd_get_init(data, 0, &init, &err);
		if (r < 0) {
			check_error(r, &err, 0, DIOH_MULTIFD_INIT_BYTES);
			CHECK(init.channel == 201);
		}
		at = DIOH_MULTIFD_INIT_BYTES;
	}
	for (unsigned i = 0; i < PACKETS_MAX && at < size; i++) {
		struct dioh_multifd_packet packet = { .block = 77 };
		const size_t n = size - at < sizeof(bytes) ? size - at : sizeof(bytes);

		memset(bytes, 0, sizeof(bytes));
		memcpy(bytes, data + at, n);
		r = dioh_multifd_get_packet(bytes, at, &setup, &packet, &err);
		if (r < 0) {
			check_error(r, &err, at, sizeof(bytes));
			CHECK(packet.block == 77);
			return 0;
		}
		check_packet(&packet);
		at += n + packet.data_pages * (size_t)DIOH_PAGE_BYTES;
	}
	return 0;
}
