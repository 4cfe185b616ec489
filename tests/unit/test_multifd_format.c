/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test_multifd_format.c - what multifd's channels begin with and their packets: read as written, refused when damaged. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "multifd_maker.h"

#define COUNT_OF(array) (sizeof(array) / sizeof((array)[0]))
#define PAGE ((uint64_t)DIOH_PAGE_BYTES)

/* Where fields stand: QEMU 10.0, migration/multifd.h. */
enum {
	AT_MAGIC = 0, AT_VERSION = 4, AT_FLAGS = 8, AT_ROOM = 12, AT_DATA = 16, AT_BYTES = 20, AT_ZERO = 32, AT_BLOCK = 64,
	AT_OFFSETS = 320,
};

static struct dioh_qemu_block blocks[] = {
	{ .name = "pc.ram", .bytes = 1000 * PAGE },
	{ .name = "pc.ram2", .bytes = 3 * PAGE },
};
static const struct dioh_qemu_setup setup = { .blocks = blocks, .block_count = COUNT_OF(blocks) };

static void test_inits(void **state)
{
	const struct dioh_multifd_init init = { .uuid = "0123456789abcde", .channel = 7 };
	struct dioh_multifd_init read = { 0 };
	uint8_t bytes[DIOH_MULTIFD_INIT_BYTES];
	struct dioh_error err = { 0 };

	(void)state;
	multifd_put_init(bytes, &init);
	assert_memory_equal(bytes, "\x11\x22\x33\x44\0\0\0\1" "0123456789abcde\0\x07", 25);
	assert_int_equal(dioh_multifd_get_init(bytes, 0, &read, &err), 0);
	assert_memory_equal(&read, &init, sizeof(init));
	bytes[7] = 2;
	assert_int_equal(dioh_multifd_get_init(bytes, 0, &read, &err), -EOPNOTSUPP);
	assert_non_null(strstr(err.text, "version 2 is not understood"));
	assert_int_equal(err.offset, 4);
	memcpy(bytes, "QEVM", 4);
	assert_int_equal(dioh_multifd_get_init(bytes, 0, &read, &err), -EBADMSG);
	assert_non_null(strstr(err.text, "it is the main one"));
	memset(bytes, 0, sizeof(bytes));
	assert_int_equal(dioh_multifd_get_init(bytes, 0, &read, &err), -EBADMSG);
}

static void test_packets(void **state)
{
	struct dioh_multifd_packet packet = {
		.number = 5, .block = 1, .data_pages = 2, .zero_pages = 1, .pages = { 2, 0, 1 }
	};
	struct dioh_multifd_packet read;
	uint8_t bytes[DIOH_MULTIFD_PACKET_BYTES];
	struct dioh_error err = { 0 };

	(void)state;
	multifd_put_packet(bytes, &setup, &packet);
	assert_memory_equal(bytes + AT_DATA, "\0\0\0\2\0\0\x20\0\0\0\0\0\0\0\0\5\0\0\0\1", 20);
	assert_memory_equal(bytes + AT_BLOCK, "pc.ram2", 8);
	assert_memory_equal(bytes + AT_OFFSETS, "\0\0\0\0\0\0\x20\0", 8);
	assert_int_equal(dioh_multifd_get_packet(bytes, 0, &setup, &read, &err), 0);
	assert_memory_equal(&read, &packet, sizeof(packet));

	/* As full as can be, and synced by the same packet, as older versions do. */
	packet = (struct dioh_multifd_packet){ .sync = true, .data_pages = 100, .zero_pages = 28 };
	for (unsigned i = 0; i < DIOH_MULTIFD_PAGES_MAX; i++)
		packet.pages[i] = 999 - i;
	multifd_put_packet(bytes, &setup, &packet);
	assert_int_equal(dioh_multifd_get_packet(bytes, 0, &setup, &read, &err), 0);
	assert_memory_equal(&read, &packet, sizeof(packet));

	/* Nothing but a sync: QEMU leaves the size of an earlier packet in it. */
	packet = (struct dioh_multifd_packet){ .sync = true };
	multifd_put_packet(bytes, &setup, &packet);
	bytes[AT_BYTES + 1] = 8;
	assert_int_equal(dioh_multifd_get_packet(bytes, 0, &setup, &read, &err), 0);
	assert_memory_equal(&read, &packet, sizeof(packet));
}

static void test_refused_packets(void **state)
{
	static const struct {
		unsigned at, count;
		unsigned field; /* that is refused; 0: the changed one */
		const char *bytes;
		int code;
		const char *part;
	} refusals[] = {
		{ AT_MAGIC, 1, 0, "\x12", EBADMSG, "0x12223344 stands where multifd's magic should" },
		{ AT_VERSION, 4, 0, "\0\0\0\0", EOPNOTSUPP, "version 0" },
		{ AT_FLAGS, 4, 0, "\0\0\0\2", EOPNOTSUPP, "compression by zlib" },
		{ AT_FLAGS, 4, 0, "\0\0\0\5", EOPNOTSUPP, "compression by zstd" },
		{ AT_FLAGS, 4, 0, "\0\0\0\x20", EOPNOTSUPP, "compression by qatzip" },
		{ AT_FLAGS, 4, 0, "\0\0\0\x40", EOPNOTSUPP, "state of a device" },
		{ AT_FLAGS, 4, 0, "\x80\0\0\0", EOPNOTSUPP, "flags 0x80000000" },
		{ AT_ROOM, 4, 0, "\0\0\0\x81", EBADMSG, "packets for 129 pages" },
		{ AT_ROOM, 4, AT_DATA, "\0\0\0\2", EBADMSG, "for 2 pages with 2 of data and 1 of zeros" },
		{ AT_DATA, 4, 0, "\0\0\0\x81", EBADMSG, "with 129 of data" },
		{ AT_DATA, 4, 0, "\xff\xff\xff\xff", EBADMSG, "with 4294967295 of data" },
		{ AT_ZERO, 4, AT_DATA, "\0\0\0\x7f", EBADMSG, "127 of zeros" },
		{ AT_ZERO, 4, AT_DATA, "\xff\xff\xff\xfe", EBADMSG, "4294967294 of zeros" },
		{ AT_BYTES, 4, 0, "\0\0\x20\1", EBADMSG, "2 pages is followed by 8193 bytes" },
		{ AT_BLOCK, 7, 0, "pc.ram3", EBADMSG, "\"pc.ram3\", which the stream's setup does not have" },
		{ AT_BLOCK, 7, 0, "\0c.ram2", EBADMSG, "\"\"" },
		{ AT_BLOCK, 2, 0, "\x1b[", EBADMSG, "\"?[.ram2\"" },
		{ AT_OFFSETS, 8, 0, "\0\0\0\0\0\0\x30\0", EBADMSG, "a page at offset 12288 of its 12288 bytes" },
		{ AT_OFFSETS + 8, 8, 0, "\0\0\0\0\0\0\x00\1", EBADMSG, "a page at offset 1 of" },
		{ AT_OFFSETS + 16, 8, 0, "\xff\xff\xff\xff\xff\xff\xf0\0", EBADMSG, "a page at offset 18446744073709547520" },
	};
	const struct dioh_multifd_packet packet = { .block = 1, .data_pages = 2, .zero_pages = 1, .pages = { 2, 0, 1 } };

	(void)state;
	for (size_t i = 0; i < COUNT_OF(refusals); i++) {
		struct dioh_multifd_packet read = { .block = 77 };
		uint8_t bytes[DIOH_MULTIFD_PACKET_BYTES];
		const unsigned at = 1000 + (refusals[i].field ? refusals[i].field : refusals[i].at);
		struct dioh_error err = { 0 };
		char byte[40];

		multifd_put_packet(bytes, &setup, &packet);
		memcpy(bytes + refusals[i].at, refusals[i].bytes, refusals[i].count);
		assert_int_equal(dioh_multifd_get_packet(bytes, 1000, &setup, &read, &err), -refusals[i].code);
		snprintf(byte, sizeof(byte), "(byte %u)", at);
		if (!strstr(err.text, refusals[i].part) || !strstr(err.text, byte))
			fail_msg("\"%s\" does not say \"%s\" or \"%s\"", err.text, refusals[i].part, byte);
		assert_int_equal(err.offset, at);
		assert_int_equal(read.block, 77);
	}
}

/* A name that fills its field has no NUL: it is none that a setup can have. */
static void test_a_name_without_an_end(void **state)
{
	const struct dioh_multifd_packet packet = { .zero_pages = 1 };
	uint8_t bytes[DIOH_MULTIFD_PACKET_BYTES];
	struct dioh_multifd_packet read;
	struct dioh_error err = { 0 };

	(void)state;
	memset(blocks[1].name, 'x', sizeof(blocks[1].name) - 1);
	multifd_put_packet(bytes, &setup, &packet);
	memset(bytes + AT_BLOCK, 'x', 256);
	assert_int_equal(dioh_multifd_get_packet(bytes, 0, &setup, &read, &err), -EBADMSG);
	bytes[AT_BLOCK + 255] = 0;
	assert_int_equal(dioh_multifd_get_packet(bytes, 0, &setup, &read, &err), 0);
	assert_int_equal(read.block, 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_inits),
		cmocka_unit_test(test_packets),
		cmocka_unit_test(test_refused_packets),
		cmocka_unit_test(test_a_name_without_an_end),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
