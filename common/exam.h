/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * exam.h - the tests that proto.c and proto_reply.c make lists of. Private to these two.
 *
 * The first test that fails decides, and all after it do nothing. What makes a message malformed (EBADMSG, the end
 * of a session) therefore stands before what is only out of range (EINVAL).
 */
#ifndef DIOH_EXAM_H
#define DIOH_EXAM_H

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "align.h"
#include "proto.h"

/* A message under examination, and the verdict so far. */
struct exam {
	const char *name;
	const char *kind; /* what follows the name in a sentence: "", "'s reply" */
	const uint8_t *payload;
	uint32_t size;
	unsigned fd_count;
	const char *part; /* of an array; NULL: the message itself */
	uint32_t index;
	int result;
	struct dioh_error *err;
};

/* What there is to know of a type of message before its fields are looked at. */
struct shape {
	uint32_t bytes_min;
	uint32_t bytes_max;
	unsigned fds_min;
	unsigned fds_max;
	void (*check)(struct exam *x); /* NULL: there is nothing in it that could be wrong */
};

#define EXACTLY(message) sizeof(struct dioh_msg_##message), sizeof(struct dioh_msg_##message)
#define AT_LEAST(message) sizeof(struct dioh_msg_##message), DIOH_PAYLOAD_BYTES_MAX
#define EMPTY 0, 0

/* Tables have a row per request, for it and for its reply. */
#define ROW(message) [DIOH_MSG_##message / 2]

#define ENTRIES_MAX (DIOH_REGIONS_MAX + DIOH_STREAMS_MAX)
#define LAYERS (DIOH_LAYER_SELINUX * 2 - 1)

/* Copied, since a payload need not be aligned. */
#define TAKE(x, variable) memcpy(&(variable), (x)->payload, sizeof(variable))

static inline void fail(struct exam *x, int code, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

static inline void fail(struct exam *x, int code, const char *format, ...)
{
	char place[32] = "", what[DIOH_TEXT_BYTES] = "";
	va_list args;

	if (x->result < 0)
		return;

	if (x->part)
		snprintf(place, sizeof(place), "%s %" PRIu32 ": ", x->part, x->index);
	va_start(args, format);
	vsnprintf(what, sizeof(what), format, args);
	va_end(args);
	x->result = dioh_error_set(x->err, code, DIOH_PLACE(PROTOCOL, SESSION, 0, DIOH_OFFSET_NONE),
	                           "%s%s: %s%s", x->name, x->kind, place, what);
}

/* ---- malformed ------------------------------------------------------------------------------- */

static inline void reserved(struct exam *x, uint64_t value)
{
	if (value != 0)
		fail(x, EBADMSG, "reserved is not zero");
}

static inline void descriptors(struct exam *x, uint32_t announced)
{
	if (x->fd_count != (unsigned)__builtin_popcount(announced))
		fail(x, EBADMSG, "%u descriptors came, %d were announced", x->fd_count,
		     __builtin_popcount(announced));
}

/* What follows the fixed part is `count` parts of `bytes` each. */
static inline void fits(struct exam *x, uint64_t fixed_bytes, uint32_t count, uint64_t bytes)
{
	if (x->size != fixed_bytes + count * bytes)
		fail(x, EBADMSG,
		     "its size %" PRIu32 " is not that of %" PRIu32 " parts of %" PRIu64 " bytes",
		     x->size, count, bytes);
}

static inline void terminated(struct exam *x, const char *field, const char *text, size_t bytes)
{
	if (memchr(text, '\0', bytes) == NULL)
		fail(x, EBADMSG, "%s has no end", field);
}

/* Bytes behind a text are as good as reserved. */
static inline void zero_behind(struct exam *x, const char *field, const char *text, size_t bytes)
{
	for (size_t i = strnlen(text, bytes); i < bytes; i++)
		if (text[i] != '\0')
			fail(x, EBADMSG, "bytes behind the end of %s are not zero", field);
}

/* ---- out of range ---------------------------------------------------------------------------- */

static inline void within(struct exam *x, const char *field, uint64_t value, uint64_t min,
                          uint64_t max)
{
	if (value < min || value > max)
		fail(x, EINVAL, "%s %" PRIu64 " is not within %" PRIu64 " and %" PRIu64, field,
		     value, min, max);
}

static inline void known(struct exam *x, const char *field, uint32_t flags, uint32_t known_flags)
{
	if ((flags & ~known_flags) != 0)
		fail(x, EINVAL, "%s has unknown flags 0x%" PRIx32, field, flags & ~known_flags);
}

static inline void zero_unless(struct exam *x, const char *field, uint64_t value, bool wanted,
                               const char *reason)
{
	if (!wanted && value != 0)
		fail(x, EINVAL, "%s is not zero, which it is unless %s", field, reason);
}

static inline void aligned(struct exam *x, const char *field, uint64_t value, uint64_t alignment)
{
	if (!dioh_is_aligned(value, alignment))
		fail(x, EINVAL, "%s %" PRIu64 " is not a multiple of %" PRIu64, field, value,
		     alignment);
}

static inline void below_end(struct exam *x, const char *field, uint64_t offset, uint64_t bytes,
                             uint64_t end)
{
	if (!dioh_range_ok(offset, bytes, end))
		fail(x, EINVAL, "%" PRIu64 " bytes at %s %" PRIu64 " end behind %" PRIu64, bytes,
		     field, offset, end);
}

/* The encoding is not looked at; control characters would only deceive whoever reads a listing. */
static inline void printable(struct exam *x, const char *field, const char *text, size_t bytes)
{
	for (size_t i = 0; i < bytes && text[i] != '\0'; i++)
		if ((unsigned char)text[i] < 0x20 || text[i] == 0x7f)
			fail(x, EINVAL, "%s has a control character in it", field);
}

/* ---- what both directions share -------------------------------------------------------------- */

static inline void check_counts(struct exam *x, uint32_t regions, uint32_t streams,
                                uint64_t header_bytes)
{
	within(x, "region_count", regions, 0, DIOH_REGIONS_MAX);
	within(x, "stream_count", streams, 0, DIOH_STREAMS_MAX);
	within(x, "header_bytes", header_bytes, 0, DIOH_HEADER_BYTES_MAX);
}

static inline void check_region_entry(struct exam *x, const struct dioh_msg_entry *entry)
{
	within(x, "bytes", entry->bytes, DIOH_PAGE_BYTES, DIOH_REGION_BYTES_MAX);
	aligned(x, "bytes", entry->bytes, DIOH_PAGE_BYTES);
	aligned(x, "image_offset", entry->image_offset, DIOH_PAGE_BYTES);
}

/* What holds for an entry in either direction. */
static inline void check_entry(struct exam *x, const struct dioh_msg_entry *entry)
{
	within(x, "kind", entry->kind, DIOH_ENTRY_REGION, DIOH_ENTRY_STREAM);
	if (entry->kind == DIOH_ENTRY_REGION)
		check_region_entry(x, entry);
	within(x, "bytes", entry->bytes, 0, DIOH_OFFSET_MAX - 1);
	within(x, "image_offset", entry->image_offset, 0, DIOH_OFFSET_MAX - 1);
	below_end(x, "image_offset", entry->image_offset, entry->bytes, DIOH_OFFSET_MAX);
	if (entry->name[0] == '\0')
		fail(x, EINVAL, "name is empty");
}

static inline void each_entry(struct exam *x, uint32_t count,
                              void (*check)(struct exam *x, const struct dioh_msg_entry *entry))
{
	struct dioh_msg_entry entry;

	x->part = "entry";
	for (x->index = 0; x->index < count && x->result == 0; x->index++) {
		memcpy(&entry,
		       x->payload + sizeof(struct dioh_msg_put_table) + x->index * sizeof(entry),
		       sizeof(entry));
		check(x, &entry);
	}
	x->part = NULL;
}

_Static_assert(sizeof(struct dioh_msg_put_table) == sizeof(struct dioh_msg_get_table_reply),
               "each_entry() serves both tables");

/* ---- the shape ------------------------------------------------------------------------------- */

static inline const struct shape *find_row(const struct shape *rows, uint32_t request_type)
{
	bool there = request_type % 2 == 0 && request_type >= DIOH_MSG_HELLO &&
	             request_type <= DIOH_MSG_KEEP_REGION;

	return there ? &rows[request_type / 2] : NULL;
}

static inline struct exam begin_exam(const struct dioh_msg_header *header, const void *payload,
                                     unsigned fd_count, const char *kind, struct dioh_error *err)
{
	return (struct exam){
		.name = dioh_msg_name(header->type),
		.kind = kind,
		.payload = payload,
		.size = header->size,
		.fd_count = fd_count,
		.err = err,
	};
}

static inline int check_shape(struct exam *x, const struct shape *shape)
{
	if (x->fd_count < shape->fds_min || x->fd_count > shape->fds_max)
		fail(x, EBADMSG, "%u descriptors came, not %u to %u", x->fd_count, shape->fds_min,
		     shape->fds_max);
	if (x->size < shape->bytes_min || x->size > shape->bytes_max)
		fail(x, EBADMSG, "its size %" PRIu32 " is not within %" PRIu32 " and %" PRIu32,
		     x->size, shape->bytes_min, shape->bytes_max);
	if (x->result == 0 && shape->check)
		shape->check(x);
	return x->result;
}

#endif
