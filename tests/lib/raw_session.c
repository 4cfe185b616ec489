/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* raw_session.c - raw_manager.h's samples, and sessions brought to a stage with them. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "raw_manager.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cleanup.h"
#include "fixture.h"

/* ---- samples --------------------------------------------------------------------------------- */

static const struct dioh_msg_hello hello = {
	.version_min = 1, .version_max = 1,
	.offered = DIOH_FEATURE_LAYOUT_CONTAINER | DIOH_FEATURE_STREAM | DIOH_FEATURE_CHECKSUM,
};
static const struct dioh_msg_attach_image attach_image = { .fds = DIOH_IMAGE_FD_BUFFERED };
static const struct dioh_msg_attach_memory attach_memory = { .memory = RAW_MEMORY,
	                                                     .fds = DIOH_MEMORY_FD_MEMORY };
static const struct dioh_msg_attach_stream attach_stream = { .stream = RAW_STREAM };
static const struct dioh_msg_seal seal;
static const struct dioh_msg_create_image create_image = {
	.layout = DIOH_LAYOUT_CONTAINER, .region_count = 1, .stream_count = 1,
	.header_bytes = RAW_HEADER_BYTES,
};
static const struct {
	struct dioh_msg_put_table table;
	struct dioh_msg_entry entries[2];
} put_table = {
	{ .count = 2 },
	{
		{ .kind = DIOH_ENTRY_REGION, .number = RAW_REGION, .bytes = RAW_REGION_BYTES,
		  .name = "ram" },
		{ .kind = DIOH_ENTRY_STREAM, .number = RAW_ENTRY, .name = "state" },
	},
};
static const struct {
	struct dioh_msg_write_header header;
	uint8_t bytes[RAW_HEADER_BYTES];
} write_header = { { 0 }, "header!" };
static const struct dioh_msg_open_image open_image;
static const struct dioh_msg_get_table get_table = { .count = 200 };
static const struct dioh_msg_read_header read_header = { .bytes = RAW_HEADER_BYTES };
static const struct dioh_msg_read_bitmap read_bitmap = { .region = RAW_REGION, .bytes = 32 };
static const struct dioh_msg_keep_region keep_region = { .region = RAW_REGION, .length = RAW_REGION_BYTES };
static const struct dioh_msg_memory_transfer memory_transfer = {
	.memory = RAW_MEMORY, .region = RAW_REGION, .length = RAW_REGION_BYTES,
};
static const struct dioh_msg_stream_transfer stream_transfer = { .stream = RAW_STREAM,
	                                                         .entry = RAW_ENTRY };
static const struct dioh_msg_cancel cancel;
static const struct dioh_msg_finish finish;

static const struct {
	const void *bytes;
	size_t size;
} samples[] = {
#define SAMPLE(message, value) [DIOH_MSG_##message / 2] = { &(value), sizeof(value) }
	SAMPLE(HELLO, hello),
	SAMPLE(ATTACH_IMAGE, attach_image),
	SAMPLE(ATTACH_MEMORY, attach_memory),
	SAMPLE(ATTACH_STREAM, attach_stream),
	SAMPLE(SEAL, seal),
	SAMPLE(CREATE_IMAGE, create_image),
	SAMPLE(PUT_TABLE, put_table),
	SAMPLE(WRITE_HEADER, write_header),
	SAMPLE(OPEN_IMAGE, open_image),
	SAMPLE(GET_TABLE, get_table),
	SAMPLE(READ_HEADER, read_header),
	SAMPLE(SAVE_MEMORY, memory_transfer),
	SAMPLE(LOAD_MEMORY, memory_transfer),
	SAMPLE(SAVE_STREAM, stream_transfer),
	SAMPLE(LOAD_STREAM, stream_transfer),
	SAMPLE(CANCEL, cancel),
	SAMPLE(FINISH, finish),
	SAMPLE(READ_BITMAP, read_bitmap),
	SAMPLE(KEEP_REGION, keep_region),
};

size_t raw_sample(uint32_t type, uint32_t direction, void *ret_payload)
{
	const bool known = type / 2 < sizeof(samples) / sizeof(samples[0]);
	const size_t size = known ? samples[type / 2].size : 0;

	if (size > 0) /* STATUS has no payload */
		memcpy(ret_payload, samples[type / 2].bytes, size);
	if (type == DIOH_MSG_ATTACH_IMAGE)
		((struct dioh_msg_attach_image *)ret_payload)->direction = direction;
	return size;
}

/* ---- whole sessions -------------------------------------------------------------------------- */

bool raw_needs_descriptor(uint32_t type)
{
	return type == DIOH_MSG_ATTACH_IMAGE || type == DIOH_MSG_ATTACH_MEMORY || type == DIOH_MSG_ATTACH_STREAM;
}

static _Alignas(8) uint8_t payload[DIOH_PAYLOAD_BYTES_MAX];

static void say(struct raw_manager *m, uint32_t type, const int *fds, unsigned fd_count)
{
	size_t size = raw_sample(type, m->direction, payload);
	uint32_t id = raw_request_fds(m, type, payload, size, fds, fd_count);

	raw_reply(m, type, id, NULL, 0);
}

int raw_open_image(const char *path, uint32_t direction)
{
	int flags = direction == DIOH_DIRECTION_SAVE ? O_RDWR | O_CREAT : O_RDONLY;
	int fd = open(path, flags | O_CLOEXEC, 0600);

	assert_true(fd >= 0);
	return fd;
}

static void attach_all(struct raw_manager *m, const char *path)
{
	DIOH_AUTO_FD int image = raw_open_image(path, m->direction);
	int ends[2];

	say(m, DIOH_MSG_ATTACH_IMAGE, &image, 1);
	m->memfd = must_memfd("ram", RAW_REGION_BYTES, 0);
	must_fill(m->memfd, 0, RAW_REGION_BYTES / 2, 1);
	say(m, DIOH_MSG_ATTACH_MEMORY, &m->memfd, 1);
	assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
	m->pipe_fd = ends[m->direction == DIOH_DIRECTION_SAVE];
	say(m, DIOH_MSG_ATTACH_STREAM, &ends[m->direction == DIOH_DIRECTION_LOAD], 1);
	close(ends[m->direction == DIOH_DIRECTION_LOAD]);
}

static void open_raw_table(struct raw_manager *m)
{
	struct dioh_msg_open_image raw = { .layout = DIOH_LAYOUT_RAW, .region_count = 1 };

	raw_call(m, DIOH_MSG_OPEN_IMAGE, &raw, sizeof(raw), NULL, 0);
}

static void reach_ready(struct raw_manager *m, enum raw_stage stage)
{
	if (m->direction == DIOH_DIRECTION_SAVE)
		say(m, DIOH_MSG_CREATE_IMAGE, NULL, 0);
	else if (stage == RAW_STAGE_TABLE)
		open_raw_table(m);
	else
		say(m, DIOH_MSG_OPEN_IMAGE, NULL, 0);
	if (m->direction == DIOH_DIRECTION_SAVE && stage > RAW_STAGE_TABLE)
		say(m, DIOH_MSG_PUT_TABLE, NULL, 0);
}

/* Any number of bytes into the stream, then its end. */
static void feed_stream(struct raw_manager *m)
{
	static const uint8_t bytes[RAW_STREAM_BYTES] = { 42 };

	for (size_t done = 0; done < sizeof(bytes);) {
		ssize_t n = write(m->pipe_fd, bytes + done, sizeof(bytes) - done);

		assert_true(n > 0);
		done += (size_t)n;
	}
	close(m->pipe_fd);
	m->pipe_fd = -1;
}

static void save_all(struct raw_manager *m)
{
	say(m, DIOH_MSG_WRITE_HEADER, NULL, 0);
	say(m, DIOH_MSG_SAVE_MEMORY, NULL, 0);
	assert_int_equal(raw_complete(m, m->last_id, NULL), 0);
	say(m, DIOH_MSG_SAVE_STREAM, NULL, 0);
	feed_stream(m);
	assert_int_equal(raw_complete(m, m->last_id, NULL), 0);
}

static void reach_end(struct raw_manager *m, enum raw_stage stage)
{
	if (stage == RAW_STAGE_TRANSFER)
		say(m, m->direction == DIOH_DIRECTION_SAVE ? DIOH_MSG_SAVE_STREAM : DIOH_MSG_LOAD_STREAM,
		    NULL, 0);
	if (stage >= RAW_STAGE_SAVED && m->direction == DIOH_DIRECTION_SAVE)
		save_all(m);
	if (stage == RAW_STAGE_FINISH) {
		raw_stop(m);
		(void)raw_request(m, DIOH_MSG_FINISH, &finish, sizeof(finish));
	}
}

void raw_reach(struct raw_manager *m, const struct raw_options *options, const char *path,
               uint32_t direction, enum raw_stage stage)
{
	raw_start(m, options);
	m->direction = direction;
	if (stage >= RAW_STAGE_ATTACH)
		say(m, DIOH_MSG_HELLO, NULL, 0);
	if (stage >= RAW_STAGE_IMAGE)
		attach_all(m, path);
	if (stage >= RAW_STAGE_SEALED)
		say(m, DIOH_MSG_SEAL, NULL, 0);
	if (stage >= RAW_STAGE_TABLE)
		reach_ready(m, stage);
	reach_end(m, stage);
}

void raw_make_image(const char *path)
{
	struct raw_manager m;

	raw_reach(&m, NULL, path, DIOH_DIRECTION_SAVE, RAW_STAGE_SAVED);
	say(&m, DIOH_MSG_FINISH, NULL, 0);
	assert_int_equal(raw_complete(&m, m.last_id, NULL), 0);
	raw_ends(&m, 0);
}

static const char *complete_image(void)
{
	static char path[512];

	if (!path[0]) {
		(void)snprintf(path, sizeof(path), "%s", fixture_path("complete"));
		raw_make_image(path);
	}
	return path;
}

void raw_reach_own(struct raw_manager *m, uint32_t direction, enum raw_stage stage)
{
	const char *path = direction == DIOH_DIRECTION_SAVE ? fixture_path("image") : complete_image();

	raw_reach(m, NULL, path, direction, stage);
}
