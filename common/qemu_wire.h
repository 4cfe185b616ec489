/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qemu_wire.h - the numbers and big-endian fields that QEMU's migration streams are made of: what their reader (see
 * qemu_parser.h) and their writer (qemu_stream_put.c) share.
 */
#ifndef DIOH_QEMU_WIRE_H
#define DIOH_QEMU_WIRE_H

#include <stdint.h>
#include <string.h>

#include "qemu_stream.h"

#define SUBSECTION_VERSION 1u
#define MAPPED_VERSION_MAX 1u
#define CAPABILITIES_NAME "configuration/capabilities" /* of the subsection */

#define COUNT_OF(array) (sizeof(array) / sizeof((array)[0]))

enum section_type {
	SECTION_EOF = 0x00,
	SECTION_START = 0x01,
	SECTION_PART = 0x02,
	SECTION_END = 0x03,
	SECTION_FULL = 0x04,
	SUBSECTION = 0x05,
	SECTION_DESCRIPTION = 0x06,
	SECTION_CONFIGURATION = 0x07,
	SECTION_COMMAND = 0x08,
	SECTION_FOOTER = 0x7e,
};

enum record_flag {
	RECORD_ZERO = 0x02,
	RECORD_MEM_SIZE = 0x04,
	RECORD_PAGE = 0x08,
	RECORD_EOS = 0x10,
	RECORD_CONTINUE = 0x20, /* the block is that of the record before */
	RECORD_FLUSH = 0x200,   /* multifd: a sync point */
};

/* In the order in which QEMU lists them. */
static const struct {
	uint32_t capability;
	const char *name;
} capabilities[] = {
	{ DIOH_QEMU_IGNORE_SHARED, "x-ignore-shared" },
	{ DIOH_QEMU_MAPPED_RAM, "mapped-ram" },
};

static inline uint32_t get_be16(const uint8_t *from)
{
	return (uint32_t)from[0] << 8 | from[1];
}

static inline uint32_t get_be32(const uint8_t *from)
{
	return get_be16(from) << 16 | get_be16(&from[2]);
}

static inline uint64_t get_be64(const uint8_t *from)
{
	return (uint64_t)get_be32(from) << 32 | get_be32(&from[4]);
}

static inline uint8_t *put_u8(uint8_t *to, uint8_t value)
{
	*to = value;
	return to + 1;
}

static inline uint8_t *put_be32(uint8_t *to, uint32_t value)
{
	for (int shift = 24; shift >= 0; shift -= 8)
		to = put_u8(to, (uint8_t)(value >> shift));
	return to;
}

static inline uint8_t *put_be64(uint8_t *to, uint64_t value)
{
	return put_be32(put_be32(to, (uint32_t)(value >> 32)), (uint32_t)value);
}

static inline uint8_t *put_bytes(uint8_t *to, const void *from, size_t count)
{
	memcpy(to, from, count);
	return to + count;
}

static inline uint8_t *put_name(uint8_t *to, const char *name)
{
	size_t count = strnlen(name, DIOH_NAME_BYTES - 1);

	return put_bytes(put_u8(to, (uint8_t)count), name, count);
}

#endif
