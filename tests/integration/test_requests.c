/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test_requests.c - requests behind the seal that are well-formed and yet cannot be granted: ranges, numbers, overlaps,
 * what is missing at FINISH, what is cancelled. Each refusal leaves the session usable. Two requests that shall meet
 * are laid into the socket of a helper that stands still.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cleanup.h"
#include "fixture.h"
#include "raw_manager.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define SAVE DIOH_DIRECTION_SAVE
#define LOAD DIOH_DIRECTION_LOAD
#define FOUR_MIB RAW_REGION_BYTES

#define TRANSFER(...) ((struct dioh_msg_memory_transfer){ .memory = RAW_MEMORY, .region = RAW_REGION, __VA_ARGS__ })

static void leave(struct raw_manager *m, int status)
{
	assert_true(raw_status_phase(m) >= DIOH_PHASE_READY);
	raw_hang_up(m);
	raw_ends(m, status);
}

static uint32_t ask_memory(struct raw_manager *m, uint32_t type, struct dioh_msg_memory_transfer what)
{
	return raw_request(m, type, &what, sizeof(what));
}

static uint32_t ask_finish(struct raw_manager *m)
{
	const struct dioh_msg_finish finish = { 0 };

	return raw_request(m, DIOH_MSG_FINISH, &finish, sizeof(finish));
}

static void expect_place(const struct dioh_msg_error *error, uint32_t object, uint32_t number, uint64_t offset)
{
	assert_int_equal(error->object, object);
	assert_int_equal(error->number, number);
	assert_true(error->offset == offset);
}

/* ---- ranges and numbers of memory transfers ---- */

static const struct bad_transfer {
	struct dioh_msg_memory_transfer what;
	int code;
	uint32_t object;
	const char *text;
} bad_transfers[] = {
	{ { .memory = 2, .region = 3, .length = MIB }, ENOENT, DIOH_OBJECT_SESSION, "memory 2" },
	{ { .memory = 256, .region = 3, .length = MIB }, EINVAL, DIOH_OBJECT_SESSION, "memory 256" },
	{ { .memory = 1, .region = 0, .length = MIB }, ENOENT, DIOH_OBJECT_SESSION, "region 0" },
	{ { .memory = 1, .region = RAW_ENTRY, .length = MIB }, ENOENT, DIOH_OBJECT_SESSION, "region 5" },
	{ { .memory = 1, .region = 3, .length = 0 }, EINVAL, DIOH_OBJECT_SESSION, "length" },
	{ { .memory = 1, .region = 3, .length = 1 }, EINVAL, DIOH_OBJECT_SESSION, "length" },
	{ { .memory = 1, .region = 3, .length = MIB + 512 }, EINVAL, DIOH_OBJECT_SESSION, "length" },
	{ { .memory = 1, .region = 3, .length = MIB + 4096 }, EINVAL, DIOH_OBJECT_REGION, "region 3" },
	{ { .memory = 1, .region = 3, .length = MIB, .memory_offset = 512 }, EINVAL, DIOH_OBJECT_SESSION,
	  "memory_offset" },
	{ { .memory = 1, .region = 3, .length = MIB, .region_offset = 4096 }, EINVAL, DIOH_OBJECT_SESSION,
	  "region_offset" },
	{ { .memory = 1, .region = 3, .length = FOUR_MIB + MIB }, ERANGE, DIOH_OBJECT_REGION, "region 3" },
	{ { .memory = 1, .region = 3, .length = MIB, .region_offset = FOUR_MIB }, ERANGE, DIOH_OBJECT_REGION,
	  "region 3" },
	{ { .memory = 1, .region = 3, .length = FOUR_MIB, .region_offset = MIB }, ERANGE, DIOH_OBJECT_REGION,
	  "region 3" },
	{ { .memory = 1, .region = 3, .length = MIB, .memory_offset = FOUR_MIB }, ERANGE, DIOH_OBJECT_MEMORY,
	  "memory 1" },
	{ { .memory = 1, .region = 3, .length = FOUR_MIB, .memory_offset = 4096 }, ERANGE, DIOH_OBJECT_MEMORY,
	  "memory 1" },
	{ { .memory = 1, .region = 3, .length = MIB, .region_offset = DIOH_OFFSET_MAX - MIB }, ERANGE,
	  DIOH_OBJECT_REGION, "region 3" },
	{ { .memory = 1, .region = 3, .length = MIB, .region_offset = DIOH_OFFSET_MAX }, EINVAL,
	  DIOH_OBJECT_SESSION, "region_offset" },
	{ { .memory = 1, .region = 3, .length = UINT64_MAX - 4095 }, EINVAL, DIOH_OBJECT_SESSION, "length" },
	{ { .memory = 1, .region = 3, .length = MIB, .flags = DIOH_TRANSFER_SELECTION }, EINVAL, DIOH_OBJECT_SESSION,
	  "selection" },
	{ { .memory = 1, .region = 3, .length = MIB, .flags = 16 }, EINVAL, DIOH_OBJECT_SESSION, "flags" },
};

static void refuse_bad_transfers(struct raw_manager *m, uint32_t type, uint32_t wrong_flag)
{
	uint32_t id;

	for (size_t i = 0; i < COUNT(bad_transfers); i++) {
		const struct bad_transfer *bad = &bad_transfers[i];
		struct dioh_msg_error error =
			raw_refused(m, type, ask_memory(m, type, bad->what), bad->code, bad->text);

		assert_int_equal(error.operation, DIOH_OP_PROTOCOL);
		assert_int_equal(error.object, bad->object);
	}
	id = ask_memory(m, type, TRANSFER(.length = FOUR_MIB, .flags = wrong_flag));
	raw_refused(m, type, id, EINVAL, "flags");
}

static void bad_ranges_are_refused(void **state)
{
	struct raw_manager m;
	uint32_t id;

	(void)state;
	raw_reach_own(&m, SAVE, RAW_STAGE_READY);
	refuse_bad_transfers(&m, DIOH_MSG_SAVE_MEMORY, DIOH_TRANSFER_FRESH);
	assert_int_equal(ftruncate(m.memfd, 2 * MIB), 0); /* it counts what the memory has now */
	id = ask_memory(&m, DIOH_MSG_SAVE_MEMORY, TRANSFER(.length = FOUR_MIB));
	raw_refused(&m, DIOH_MSG_SAVE_MEMORY, id, ERANGE, "memory 1");
	leave(&m, 1);
	raw_reach_own(&m, LOAD, RAW_STAGE_READY);
	refuse_bad_transfers(&m, DIOH_MSG_LOAD_MEMORY, DIOH_TRANSFER_NO_SCAN);
	leave(&m, 0);
}

/* ---- transfers that meet ---- */

struct meeting {
	uint64_t memory_offset, region_offset;
	uint32_t object; /* of EBUSY; 0: they may both run */
};

static void meet(uint32_t direction, const struct meeting *meeting)
{
	const uint32_t type = direction == SAVE ? DIOH_MSG_SAVE_MEMORY : DIOH_MSG_LOAD_MEMORY;
	struct raw_manager m;
	uint32_t first, second;

	raw_reach_own(&m, direction, RAW_STAGE_READY);
	raw_stop(&m);
	first = ask_memory(&m, type, TRANSFER(.length = 2 * MIB));
	second = ask_memory(&m, type, TRANSFER(.length = MIB, .memory_offset = meeting->memory_offset,
	                                       .region_offset = meeting->region_offset));
	raw_continue(&m);
	raw_reply(&m, type, first, NULL, 0);
	if (meeting->object) {
		struct dioh_msg_error error = raw_refused(&m, type, second, EBUSY, "overlaps");

		expect_place(&error, meeting->object, meeting->object == DIOH_OBJECT_REGION ? RAW_REGION : RAW_MEMORY,
		             meeting->object == DIOH_OBJECT_REGION ? meeting->region_offset : meeting->memory_offset);
	} else {
		raw_reply(&m, type, second, NULL, 0);
		assert_int_equal(raw_complete(&m, second, NULL), 0);
	}
	assert_int_equal(raw_complete(&m, first, NULL), 0);
	leave(&m, direction == SAVE);
}

static void transfers_that_overlap(void **state)
{
	static const struct meeting meetings[] = {
		{ 2 * MIB, 2 * MIB, 0 },
		{ 2 * MIB, MIB, DIOH_OBJECT_REGION },
		{ 3 * MIB, 0, DIOH_OBJECT_REGION },
		{ 2 * MIB - 4096, 2 * MIB, DIOH_OBJECT_MEMORY },
		{ 0, 3 * MIB, DIOH_OBJECT_MEMORY },
	};

	(void)state;
	for (size_t i = 0; i < COUNT(meetings); i++) {
		meet(SAVE, &meetings[i]);
		meet(LOAD, &meetings[i]);
	}
}

static void ids_are_not_used_twice(void **state)
{
	const struct dioh_msg_memory_transfer what = TRANSFER(.length = FOUR_MIB);
	const struct dioh_msg_keep_region keep = { .region = RAW_REGION, .length = FOUR_MIB };
	struct raw_manager m;
	uint32_t stream_id, reused;

	(void)state;
	raw_reach_own(&m, SAVE, RAW_STAGE_TRANSFER);
	stream_id = m.last_id;
	m.last_id = stream_id - 1;
	reused = raw_request(&m, DIOH_MSG_SAVE_MEMORY, &what, sizeof(what));
	assert_int_equal(reused, stream_id);
	raw_refused(&m, DIOH_MSG_SAVE_MEMORY, reused, EEXIST, "SAVE_MEMORY");
	m.last_id = stream_id - 1;
	raw_call_refused(&m, DIOH_MSG_KEEP_REGION, &keep, sizeof(keep), EEXIST, "KEEP_REGION"); /* though it begins none */
	close(m.pipe_fd);
	m.pipe_fd = -1;
	assert_int_equal(raw_complete(&m, stream_id, NULL), 0);
	m.last_id = stream_id - 1; /* it is free again */
	reused = raw_request(&m, DIOH_MSG_SAVE_MEMORY, &what, sizeof(what));
	raw_reply(&m, DIOH_MSG_SAVE_MEMORY, reused, NULL, 0);
	assert_int_equal(raw_complete(&m, reused, NULL), 0);
	leave(&m, 1);
}

/* ---- as many as there may be ---- */

static void attach_all(struct raw_manager *m, int *ret_writers)
{
	const struct dioh_msg_attach_image image = { .fds = DIOH_IMAGE_FD_BUFFERED, .direction = SAVE };
	const struct dioh_msg_attach_memory memory = { .memory = RAW_MEMORY, .fds = DIOH_MEMORY_FD_MEMORY };
	int fd = raw_open_image(fixture_path("many"), SAVE);
	int ends[2];

	raw_reply(m, DIOH_MSG_ATTACH_IMAGE, raw_request_fds(m, DIOH_MSG_ATTACH_IMAGE, &image, sizeof(image), &fd, 1),
	          NULL, 0);
	close(fd);
	fd = must_memfd("ram", FOUR_MIB, 0);
	raw_reply(m, DIOH_MSG_ATTACH_MEMORY,
	          raw_request_fds(m, DIOH_MSG_ATTACH_MEMORY, &memory, sizeof(memory), &fd, 1), NULL, 0);
	close(fd);
	for (uint32_t i = 0; i < DIOH_STREAMS_MAX; i++) {
		const struct dioh_msg_attach_stream stream = { .stream = i };
		uint32_t id;

		assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
		id = raw_request_fds(m, DIOH_MSG_ATTACH_STREAM, &stream, sizeof(stream), &ends[0], 1);
		raw_reply(m, DIOH_MSG_ATTACH_STREAM, id, NULL, 0);
		close(ends[0]);
		ret_writers[i] = ends[1];
	}
}

static void create_many(struct raw_manager *m)
{
	const struct dioh_msg_create_image create = { .layout = DIOH_LAYOUT_CONTAINER, .region_count = 1,
		                                      .stream_count = DIOH_STREAMS_MAX };
	const struct dioh_msg_seal seal = { 0 };
	static struct {
		struct dioh_msg_put_table table;
		struct dioh_msg_entry entries[1 + DIOH_STREAMS_MAX];
	} put;
	char name[16];

	put.table.count = 1 + DIOH_STREAMS_MAX;
	put.entries[0] = region_entry(RAW_REGION, "ram", FOUR_MIB);
	for (uint32_t i = 0; i < DIOH_STREAMS_MAX; i++) {
		snprintf(name, sizeof(name), "stream %u", (unsigned)i);
		put.entries[1 + i] = stream_entry(i, name);
	}
	raw_call(m, DIOH_MSG_SEAL, &seal, sizeof(seal), NULL, 0);
	raw_call(m, DIOH_MSG_CREATE_IMAGE, &create, sizeof(create), NULL, 0);
	raw_call(m, DIOH_MSG_PUT_TABLE, &put, sizeof(put), NULL, 0);
}

static void no_more_than_64_transfers(void **state)
{
	const struct dioh_msg_keep_region keep = { .region = RAW_REGION, .length = FOUR_MIB };
	struct dioh_msg_status_reply status;
	int writers[DIOH_STREAMS_MAX];
	uint32_t ids[DIOH_STREAMS_MAX], id;
	struct raw_manager m;

	(void)state;
	raw_reach(&m, NULL, NULL, SAVE, RAW_STAGE_ATTACH);
	attach_all(&m, writers);
	create_many(&m);
	for (uint32_t i = 0; i < DIOH_STREAMS_MAX; i++) {
		const struct dioh_msg_stream_transfer what = { .stream = i, .entry = i };

		ids[i] = raw_request(&m, DIOH_MSG_SAVE_STREAM, &what, sizeof(what));
		raw_reply(&m, DIOH_MSG_SAVE_STREAM, ids[i], NULL, 0);
	}
	raw_call(&m, DIOH_MSG_STATUS, NULL, 0, &status, sizeof(status));
	assert_int_equal(status.transfers, DIOH_TRANSFERS_MAX);
	id = ask_memory(&m, DIOH_MSG_SAVE_MEMORY, TRANSFER(.length = FOUR_MIB));
	raw_refused(&m, DIOH_MSG_SAVE_MEMORY, id, EBUSY, "64");
	raw_call_refused(&m, DIOH_MSG_KEEP_REGION, &keep, sizeof(keep), EBUSY, "KEEP_REGION: 64");
	close(writers[17]); /* one ends, one may begin */
	assert_int_equal(raw_complete(&m, ids[17], NULL), 0);
	id = ask_memory(&m, DIOH_MSG_SAVE_MEMORY, TRANSFER(.length = FOUR_MIB));
	raw_reply(&m, DIOH_MSG_SAVE_MEMORY, id, NULL, 0);
	assert_int_equal(raw_complete(&m, id, NULL), 0);
	leave(&m, 1);
	for (uint32_t i = 0; i < DIOH_STREAMS_MAX; i++)
		if (i != 17)
			close(writers[i]);
}

static void save_chunk(struct raw_manager *m, uint64_t first, uint64_t length)
{
	uint32_t id = ask_memory(m, DIOH_MSG_SAVE_MEMORY,
	                         TRANSFER(.length = length, .memory_offset = first, .region_offset = first));

	raw_reply(m, DIOH_MSG_SAVE_MEMORY, id, NULL, 0);
	assert_int_equal(raw_complete(m, id, NULL), 0);
}

/* ---- streams ---- */

static uint32_t ask_stream(struct raw_manager *m, uint32_t type, uint32_t stream, uint32_t entry)
{
	const struct dioh_msg_stream_transfer what = { .stream = stream, .entry = entry };

	return raw_request(m, type, &what, sizeof(what));
}

static void refuse_stream(struct raw_manager *m, uint32_t type, uint32_t stream, uint32_t entry, int code,
                          const char *text)
{
	raw_refused(m, type, ask_stream(m, type, stream, entry), code, text);
}

static void streams_are_used_once(void **state)
{
	const uint32_t type = DIOH_MSG_SAVE_STREAM;
	struct raw_manager m;

	(void)state;
	raw_reach_own(&m, SAVE, RAW_STAGE_TRANSFER);
	refuse_stream(&m, type, DIOH_STREAMS_MAX, RAW_ENTRY, EINVAL, "stream 64");
	refuse_stream(&m, type, 1, RAW_ENTRY, ENOENT, "stream 1 ");
	refuse_stream(&m, type, RAW_STREAM, RAW_ENTRY, EBADF, "stream 0 ");
	close(m.pipe_fd);
	m.pipe_fd = -1;
	assert_int_equal(raw_complete(&m, m.last_id - 3, NULL), 0);
	refuse_stream(&m, type, RAW_STREAM, RAW_ENTRY, EBADF, "stream 0 ");
	leave(&m, 1);
	raw_reach_own(&m, SAVE, RAW_STAGE_READY);
	refuse_stream(&m, type, RAW_STREAM, RAW_REGION, ENOENT, "stream entry 3 ");
	leave(&m, 1);
	raw_reach_own(&m, LOAD, RAW_STAGE_READY);
	refuse_stream(&m, DIOH_MSG_LOAD_STREAM, RAW_STREAM, 99, ENOENT, "stream entry 99 ");
	leave(&m, 0);
}

/* ---- the table and the header ---- */

struct put {
	struct dioh_msg_put_table table;
	struct dioh_msg_entry entries[3];
};

static void refuse_put(struct raw_manager *m, const struct put *put, int code, const char *text)
{
	size_t size = sizeof(put->table) + put->table.count * sizeof(put->entries[0]);

	raw_call_refused(m, DIOH_MSG_PUT_TABLE, put, size, code, text);
}

/* A table for two regions and a stream. What is refused has no effect: the right one is taken at the end. */
static void tables_that_are_refused(void **state)
{
	const struct dioh_msg_create_image create = { .layout = DIOH_LAYOUT_CONTAINER, .region_count = 2,
		                                      .stream_count = 1 };
	const struct put right = { { .count = 3 },
		                   { region_entry(1, "a", MIB), region_entry(2, "b", MIB), stream_entry(1, "a") } };
	struct put put = right;
	struct dioh_msg_image_reply reply;
	struct raw_manager m;

	(void)state;
	raw_reach_own(&m, SAVE, RAW_STAGE_SEALED);
	raw_call(&m, DIOH_MSG_CREATE_IMAGE, &create, sizeof(create), &reply, sizeof(reply));
	assert_int_equal(reply.ready, 0);
	put.table.first = 1;
	refuse_put(&m, &put, EINVAL, "PUT_TABLE");
	put = right;
	put.entries[1].number = 1;
	refuse_put(&m, &put, EEXIST, "region number 1");
	put = right;
	strcpy(put.entries[1].name, "a");
	refuse_put(&m, &put, EEXIST, "region 2: its name");
	put = right;
	put.entries[2] = region_entry(3, "c", MIB);
	refuse_put(&m, &put, EINVAL, "region");
	put = right;
	put.entries[1] = stream_entry(2, "b");
	refuse_put(&m, &put, EINVAL, "stream");
	put = right;
	put.entries[2].bytes = 4096;
	refuse_put(&m, &put, EINVAL, "stream 1");
	put = right;
	put.entries[0].bytes = 4097;
	refuse_put(&m, &put, EINVAL, "bytes");
	put = right;
	put.entries[0].name[1] = '\n';
	refuse_put(&m, &put, EINVAL, "name");
	raw_call(&m, DIOH_MSG_PUT_TABLE, &right, sizeof(right), &reply, sizeof(reply));
	assert_int_equal(reply.ready, 1);
	leave(&m, 1);
}

/* In every layout but raw the places are the helper's to choose. */
static void places_that_are_refused(void **state)
{
	static const struct {
		uint32_t direction, layout;
	} rows[] = {
		{ SAVE, DIOH_LAYOUT_CONTAINER }, { SAVE, DIOH_LAYOUT_MAPPED_RAM }, { LOAD, DIOH_LAYOUT_MAPPED_RAM },
	};

	(void)state;
	for (size_t i = 0; i < COUNT(rows); i++) {
		const struct dioh_msg_create_image create = { .layout = rows[i].layout, .region_count = 1, .stream_count = 1 };
		const struct dioh_msg_open_image open_it = { .layout = rows[i].layout, .region_count = 1 };
		struct put put = { { .count = 1 }, { region_entry(1, "a", MIB) } };
		struct raw_manager m;

		raw_reach_own(&m, rows[i].direction, RAW_STAGE_SEALED);
		if (rows[i].direction == SAVE)
			raw_call(&m, DIOH_MSG_CREATE_IMAGE, &create, sizeof(create), NULL, 0);
		else
			raw_call(&m, DIOH_MSG_OPEN_IMAGE, &open_it, sizeof(open_it), NULL, 0);
		put.entries[0].image_offset = MIB;
		refuse_put(&m, &put, EINVAL, "region 1: image_offset");
		put.entries[0] = stream_entry(1, "a");
		put.entries[0].image_offset = 77;
		refuse_put(&m, &put, EINVAL, "stream 1: image_offset");
		leave(&m, rows[i].direction == SAVE);
	}
}

static void places_in_layout_raw(void **state)
{
	const struct dioh_msg_create_image create = { .layout = DIOH_LAYOUT_RAW, .region_count = 1, .stream_count = 1 };
	struct put put = { { .count = 2 }, { region_entry(1, "a", MIB), stream_entry(1, "a") } };
	struct dioh_msg_image_reply reply;
	struct raw_manager m;

	(void)state;
	put.entries[0].image_offset = MIB;
	put.entries[1].image_offset = 77;
	raw_reach_own(&m, SAVE, RAW_STAGE_SEALED);
	raw_call(&m, DIOH_MSG_CREATE_IMAGE, &create, sizeof(create), NULL, 0);
	raw_call(&m, DIOH_MSG_PUT_TABLE, &put, sizeof(put.table) + 2 * sizeof(put.entries[0]), &reply, sizeof(reply));
	assert_int_equal(reply.ready, 1);
	leave(&m, 1);
}

static void refuse_early(struct raw_manager *m, uint32_t type)
{
	uint8_t bytes[512];
	const size_t size = raw_sample(type, SAVE, bytes);
	const struct dioh_msg_error error = raw_call_refused(m, type, bytes, size, EPROTO, NULL);

	assert_non_null(strstr(error.text, "is not permitted: a raw image's header comes first"));
}

/* The header is what says that the image is not what it was: nothing is written before it. */
static void raw_waits_for_its_header(void **state)
{
	static const uint32_t early[] = { DIOH_MSG_SAVE_MEMORY, DIOH_MSG_SAVE_STREAM, DIOH_MSG_KEEP_REGION,
		                          DIOH_MSG_GET_TABLE };
	const struct dioh_msg_create_image create = { .layout = DIOH_LAYOUT_RAW, .region_count = 1,
		                                      .header_bytes = RAW_HEADER_BYTES };
	const struct dioh_msg_finish finish = { .mode = DIOH_FINISH_DURABLE };
	struct put put = { { .count = 1 }, { region_entry(RAW_REGION, "a", FOUR_MIB) } };
	struct dioh_msg_image_reply reply;
	struct dioh_msg_error error;
	struct raw_manager m;
	uint8_t bytes[64];

	(void)state;
	put.entries[0].image_offset = MIB;
	raw_reach_own(&m, SAVE, RAW_STAGE_SEALED);
	raw_call(&m, DIOH_MSG_CREATE_IMAGE, &create, sizeof(create), NULL, 0);
	raw_call(&m, DIOH_MSG_PUT_TABLE, &put, sizeof(put.table) + sizeof(put.entries[0]), &reply, sizeof(reply));
	assert_int_equal(reply.ready, 0);
	for (size_t i = 0; i < COUNT(early); i++)
		refuse_early(&m, early[i]);
	error = raw_call_refused(&m, DIOH_MSG_FINISH, &finish, sizeof(finish), ENODATA, NULL);
	assert_int_equal(error.object, DIOH_OBJECT_REGION);
	raw_call(&m, DIOH_MSG_WRITE_HEADER, bytes, raw_sample(DIOH_MSG_WRITE_HEADER, SAVE, bytes), &reply, sizeof(reply));
	assert_int_equal(reply.ready, 1);
	save_chunk(&m, 0, FOUR_MIB);
	leave(&m, 1);
}

static void expect_stream_bytes(struct raw_manager *m, uint64_t bytes)
{
	const struct dioh_msg_get_table get = { .count = 2 };
	struct {
		struct dioh_msg_get_table_reply table;
		struct dioh_msg_entry entries[2];
	} got;

	raw_call(m, DIOH_MSG_GET_TABLE, &get, sizeof(get), &got, sizeof(got));
	assert_int_equal(got.entries[1].kind, DIOH_ENTRY_STREAM);
	assert_int_equal(got.entries[1].bytes, bytes);
	assert_int_equal(got.entries[0].present_bytes, 0);
	assert_int_equal(got.entries[1].present_bytes, 0);
}

/* What a stream has brought is told once it has come; what is present in an image, once that is complete. */
static void tables_while_saving(void **state)
{
	struct raw_manager m;

	(void)state;
	raw_reach_own(&m, SAVE, RAW_STAGE_READY);
	expect_stream_bytes(&m, 0);
	leave(&m, 1);
	raw_reach_own(&m, SAVE, RAW_STAGE_SAVED);
	expect_stream_bytes(&m, RAW_STREAM_BYTES);
	leave(&m, 1);
}

static void images_that_are_refused(void **state)
{
	struct dioh_msg_create_image create = { .layout = DIOH_LAYOUT_MAPPED_RAM, .stream = DIOH_STREAMS_MAX - 1 };
	struct dioh_msg_open_image open_it = { .layout = DIOH_LAYOUT_MAPPED_RAM };
	const char *path = fixture_path("empty");
	struct dioh_msg_error error;
	struct raw_manager m;

	(void)state;
	raw_reach_own(&m, SAVE, RAW_STAGE_SEALED);
	raw_call_refused(&m, DIOH_MSG_CREATE_IMAGE, &create, sizeof(create), ENOENT, "was not attached");
	create.stream = 0;
	create.layout = DIOH_LAYOUT_DETECT;
	raw_call_refused(&m, DIOH_MSG_CREATE_IMAGE, &create, sizeof(create), EINVAL, "layout");
	leave(&m, 0);
	close(raw_open_image(path, SAVE));
	raw_reach(&m, NULL, path, LOAD, RAW_STAGE_SEALED);
	raw_call_refused(&m, DIOH_MSG_OPEN_IMAGE, &open_it, sizeof(open_it), EBADMSG, "too few");
	open_it.layout = DIOH_LAYOUT_DETECT;
	for (open_it.flags = 0; open_it.flags <= 3; open_it.flags++) {
		error = raw_call_refused(&m, DIOH_MSG_OPEN_IMAGE, &open_it, sizeof(open_it), EBADMSG, "image");
		assert_int_equal(error.object, DIOH_OBJECT_IMAGE);
	}
	open_it.flags = 0;
	open_it.region_count = 1;
	raw_call_refused(&m, DIOH_MSG_OPEN_IMAGE, &open_it, sizeof(open_it), EINVAL, "region_count");
	leave(&m, 0);
}

static void headers_that_are_refused(void **state)
{
	struct {
		struct dioh_msg_write_header header;
		char bytes[RAW_HEADER_BYTES + 1];
	} write_it = { { .offset = 1 }, "12345678" };
	const struct dioh_msg_read_header behind = { .offset = RAW_HEADER_BYTES, .bytes = 100 };
	const struct dioh_msg_get_table past = { .first = 2, .count = 10 };
	struct dioh_msg_get_table_reply table;
	struct raw_manager m;
	char none;

	(void)state;
	raw_reach_own(&m, SAVE, RAW_STAGE_READY);
	raw_call_refused(&m, DIOH_MSG_WRITE_HEADER, &write_it, 8 + 1, EINVAL, NULL); /* a gap */
	write_it.header.offset = 0;
	raw_call_refused(&m, DIOH_MSG_WRITE_HEADER, &write_it, 8 + RAW_HEADER_BYTES + 1, ERANGE, NULL);
	write_it.header.offset = UINT64_MAX;
	raw_call_refused(&m, DIOH_MSG_WRITE_HEADER, &write_it, 8 + 1, EINVAL, "offset");
	leave(&m, 1);
	raw_reach_own(&m, LOAD, RAW_STAGE_READY);
	raw_call(&m, DIOH_MSG_READ_HEADER, &behind, sizeof(behind), &none, 0);
	raw_call(&m, DIOH_MSG_GET_TABLE, &past, sizeof(past), &table, sizeof(table));
	assert_int_equal(table.count, 0);
	leave(&m, 0);
}

/* ---- FINISH ---- */

static struct dioh_msg_error refuse_finish(struct raw_manager *m, int code, const char *text)
{
	return raw_refused(m, DIOH_MSG_FINISH, ask_finish(m), code, text);
}

static void finish_names_what_is_missing(void **state)
{
	uint8_t bytes[64];
	struct dioh_msg_error error;
	struct raw_manager m;
	uint32_t id;

	(void)state;
	raw_reach_own(&m, SAVE, RAW_STAGE_READY);
	error = refuse_finish(&m, ENODATA, "region 3");
	expect_place(&error, DIOH_OBJECT_REGION, RAW_REGION, 0);
	save_chunk(&m, 0, MIB);
	save_chunk(&m, 3 * MIB, MIB);
	error = refuse_finish(&m, ENODATA, "region 3");
	expect_place(&error, DIOH_OBJECT_REGION, RAW_REGION, MIB);
	save_chunk(&m, MIB, 2 * MIB);
	error = refuse_finish(&m, ENODATA, "stream 5");
	expect_place(&error, DIOH_OBJECT_STREAM, RAW_ENTRY, UINT64_MAX);
	id = ask_stream(&m, DIOH_MSG_SAVE_STREAM, RAW_STREAM, RAW_ENTRY);
	raw_reply(&m, DIOH_MSG_SAVE_STREAM, id, NULL, 0);
	refuse_finish(&m, EBUSY, "FINISH");
	close(m.pipe_fd);
	m.pipe_fd = -1;
	assert_int_equal(raw_complete(&m, id, NULL), 0);
	error = refuse_finish(&m, ENODATA, "header");
	expect_place(&error, DIOH_OBJECT_IMAGE, 0, 0);
	raw_call(&m, DIOH_MSG_WRITE_HEADER, bytes, raw_sample(DIOH_MSG_WRITE_HEADER, SAVE, bytes), NULL, 0);
	id = ask_finish(&m);
	raw_reply(&m, DIOH_MSG_FINISH, id, NULL, 0);
	assert_int_equal(raw_complete(&m, id, NULL), 0);
	raw_ends(&m, 0);
}

static void patches_that_are_refused(void **state)
{
	struct {
		struct dioh_msg_finish finish;
		char patch[8];
	} finish = { { .patch_bytes = 8, .patch_offset = 1 }, "1234567" };
	struct raw_manager m;

	(void)state;
	raw_reach_own(&m, SAVE, RAW_STAGE_SAVED);
	raw_call_refused(&m, DIOH_MSG_FINISH, &finish, sizeof(finish), ERANGE, "patch");
	finish.finish.patch_offset = 0;
	finish.finish.mode = 2;
	raw_call_refused(&m, DIOH_MSG_FINISH, &finish, sizeof(finish), EINVAL, "mode");
	leave(&m, 1);
	raw_reach_own(&m, LOAD, RAW_STAGE_READY);
	finish.finish.mode = 0;
	raw_call_refused(&m, DIOH_MSG_FINISH, &finish, sizeof(finish), EINVAL, "patch");
	finish.finish.patch_bytes = 0; /* a place and nothing to put there: whatever the header's size is */
	finish.finish.patch_offset = 1;
	raw_call_refused(&m, DIOH_MSG_FINISH, &finish, sizeof(finish.finish), EINVAL, "patch_offset");
	leave(&m, 0);
}

/* ---- CANCEL ---- */

static void cancel(struct raw_manager *m, uint32_t transfer)
{
	const struct dioh_msg_cancel request = { .transfer = transfer };
	struct dioh_msg_cancel_reply reply;

	raw_call(m, DIOH_MSG_CANCEL, &request, sizeof(request), &reply, sizeof(reply));
	assert_int_equal(reply.reserved, 0);
}

static void cancel_what_does_not_run(void **state)
{
	const struct dioh_msg_cancel request = { .transfer = 4711 };
	struct raw_manager m;

	(void)state;
	raw_reach_own(&m, SAVE, RAW_STAGE_TRANSFER);
	raw_call_refused(&m, DIOH_MSG_CANCEL, &request, sizeof(request), ENOENT, "4711");
	leave(&m, 1);
	raw_reach_own(&m, LOAD, RAW_STAGE_SEALED);
	cancel(&m, 0);
	leave(&m, 0);
}

static void cancelled_session_goes_on(void **state)
{
	struct dioh_msg_complete complete;
	struct raw_manager m;

	(void)state;
	raw_reach_own(&m, SAVE, RAW_STAGE_TRANSFER);
	cancel(&m, m.last_id);
	assert_int_equal(raw_complete(&m, m.last_id - 1, &complete), ECANCELED);
	assert_int_equal(complete.error.operation, DIOH_OP_CANCEL);
	assert_true(strlen(complete.error.text) > 8);
	assert_int_equal(raw_status_phase(&m), DIOH_PHASE_READY);
	refuse_stream(&m, DIOH_MSG_SAVE_STREAM, RAW_STREAM, RAW_ENTRY, EBADF, "stream 0");
	save_chunk(&m, 0, FOUR_MIB);
	refuse_finish(&m, ENODATA, "stream 5");
	leave(&m, 1);
	raw_reach_own(&m, LOAD, RAW_STAGE_TRANSFER);
	cancel(&m, 0);
	assert_int_equal(raw_complete(&m, m.last_id - 1, NULL), ECANCELED);
	leave(&m, 0);
}

/* It may have ended before it could be cancelled; what counts is what its COMPLETE says. */
static void cancelled_memory_counts_as_not_saved(void **state)
{
	struct raw_manager m;
	uint32_t id, cancelling;
	const struct dioh_msg_cancel all = { 0 };
	int code;

	(void)state;
	raw_reach_own(&m, SAVE, RAW_STAGE_READY);
	raw_stop(&m);
	id = ask_memory(&m, DIOH_MSG_SAVE_MEMORY, TRANSFER(.length = FOUR_MIB));
	cancelling = raw_request(&m, DIOH_MSG_CANCEL, &all, sizeof(all));
	raw_continue(&m);
	raw_reply(&m, DIOH_MSG_SAVE_MEMORY, id, NULL, 0);
	raw_reply(&m, DIOH_MSG_CANCEL, cancelling, NULL, 0);
	code = raw_complete(&m, id, NULL);
	if (code != 0)
		assert_int_equal(code, ECANCELED);
	refuse_finish(&m, ENODATA, code ? "region 3" : "stream 5");
	save_chunk(&m, 0, FOUR_MIB);
	refuse_finish(&m, ENODATA, "stream 5");
	leave(&m, 1);
}

/* CANCEL is for what runs, not for what comes: neither for FINISH nor for the sums that it makes. */
static void cancelled_before_finish(void **state)
{
	const struct dioh_msg_finish request = { .mode = DIOH_FINISH_DURABLE };
	struct raw_manager m;
	uint32_t finish;

	(void)state;
	raw_reach_own(&m, SAVE, RAW_STAGE_SAVED);
	cancel(&m, 0);
	finish = raw_request(&m, DIOH_MSG_FINISH, &request, sizeof(request));
	raw_reply(&m, DIOH_MSG_FINISH, finish, NULL, 0);
	assert_int_equal(raw_complete(&m, finish, NULL), 0);
	raw_ends(&m, 0);
}

static void finish_can_be_cancelled(void **state)
{
	struct raw_manager m;
	struct dioh_msg_cancel request = { 0 };
	uint32_t finish, cancelling;
	int code;

	(void)state;
	raw_reach_own(&m, SAVE, RAW_STAGE_FINISH);
	finish = m.last_id;
	request.transfer = finish;
	cancelling = raw_request(&m, DIOH_MSG_CANCEL, &request, sizeof(request));
	raw_continue(&m);
	raw_reply(&m, DIOH_MSG_FINISH, finish, NULL, 0);
	raw_reply(&m, DIOH_MSG_CANCEL, cancelling, NULL, 0);
	code = raw_complete(&m, finish, NULL);
	if (code != 0)
		assert_int_equal(code, ECANCELED);
	raw_ends(&m, code != 0);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(bad_ranges_are_refused),
		cmocka_unit_test(transfers_that_overlap),
		cmocka_unit_test(ids_are_not_used_twice),
		cmocka_unit_test(no_more_than_64_transfers),
		cmocka_unit_test(streams_are_used_once),
		cmocka_unit_test(tables_that_are_refused),
		cmocka_unit_test(places_that_are_refused),
		cmocka_unit_test(places_in_layout_raw),
		cmocka_unit_test(raw_waits_for_its_header),
		cmocka_unit_test(tables_while_saving),
		cmocka_unit_test(images_that_are_refused),
		cmocka_unit_test(headers_that_are_refused),
		cmocka_unit_test(finish_names_what_is_missing),
		cmocka_unit_test(patches_that_are_refused),
		cmocka_unit_test(cancel_what_does_not_run),
		cmocka_unit_test(cancelled_session_goes_on),
		cmocka_unit_test(cancelled_memory_counts_as_not_saved),
		cmocka_unit_test(cancelled_before_finish),
		cmocka_unit_test(finish_can_be_cancelled),
	};

	return cmocka_run_group_tests_name("requests", tests, NULL, NULL);
}
