/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test_malformed.c - messages that are none, and descriptors where none belong, sent to a real helper. Which values of
 * which field are refused is test_proto.c's business and only sampled here.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "fixture.h"
#include "proto.h"
#include "raw_manager.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define FDS_MAX 253u /* that the kernel takes along with one packet */

#define SAVE DIOH_DIRECTION_SAVE

static _Alignas(8) uint8_t payload[DIOH_PAYLOAD_BYTES_MAX];

static void reach_save(struct raw_manager *m, enum raw_stage stage)
{
	raw_reach(m, NULL, fixture_path("image"), SAVE, stage);
}

/* ---- messages that are none ---- */

static void unknown_types_are_refused(void **state)
{
	static const uint32_t types[] = { 0, 42, 44, 128, 130, 1, 3, 25, 129, 131, 133, 254, 65536, UINT32_MAX - 1,
		                          UINT32_MAX };

	(void)state;
	for (int sealed = 0; sealed < 2; sealed++) {
		struct raw_manager m;

		reach_save(&m, sealed ? RAW_STAGE_SEALED : RAW_STAGE_ATTACH);
		for (size_t i = 0; i < COUNT(types); i++) {
			char number[16];

			snprintf(number, sizeof(number), "%u", (unsigned)types[i]);
			raw_call_refused(&m, types[i], payload, i * 100, EOPNOTSUPP, number);
			assert_int_equal(raw_status_phase(&m), sealed ? DIOH_PHASE_READY : DIOH_PHASE_ATTACH);
		}
		raw_hang_up(&m);
		raw_ends(&m, 0);
	}
}

/* Sends bytes that are no message, in phase attach. With an answer the first 16 are a readable header. */
static void expect_malformed(const void *bytes, size_t count, const char *text)
{
	struct dioh_msg_header header;
	struct dioh_msg_error error;
	struct raw_manager m;

	reach_save(&m, RAW_STAGE_ATTACH);
	assert_true(raw_send(&m, bytes, count, NULL, 0));
	if (count >= sizeof(header)) {
		memcpy(&header, bytes, sizeof(header));
		error = raw_refused(&m, header.type, header.id, EBADMSG, text);
		assert_int_equal(error.operation, DIOH_OP_PROTOCOL);
		assert_int_equal(error.object, DIOH_OBJECT_SESSION);
	}
	raw_ends(&m, 1);
}

static size_t message(uint8_t *bytes, uint32_t type, uint32_t flags, uint32_t id, uint32_t size)
{
	const struct dioh_msg_header header = { .type = type, .flags = flags, .id = id, .size = size };

	memcpy(bytes, &header, sizeof(header));
	return sizeof(header) + raw_sample(type, SAVE, bytes + sizeof(header));
}

static void short_packets(void **state)
{
	_Alignas(8) uint8_t bytes[512];
	size_t whole = message(bytes, DIOH_MSG_SAVE_MEMORY, 0, 7, sizeof(struct dioh_msg_memory_transfer));

	(void)state;
	for (size_t count = 1; count < whole; count++) {
		expect_malformed(bytes, count, count < sizeof(struct dioh_msg_header) ? NULL : "bytes of payload");
		/* And with a size that is honest, but not the message's. */
		if (count >= sizeof(struct dioh_msg_header)) {
			uint8_t honest[512];

			(void)message(honest, DIOH_MSG_SAVE_MEMORY, 0, 7, (uint32_t)count - 16);
			expect_malformed(honest, count, "SAVE_MEMORY");
		}
	}
}

static void long_packets(void **state)
{
	static uint8_t bytes[16 + DIOH_PAYLOAD_BYTES_MAX + 4096];

	(void)state;
	(void)message(bytes, DIOH_MSG_STATUS, 0, 9, 1);
	expect_malformed(bytes, 17, "STATUS");
	(void)message(bytes, DIOH_MSG_WRITE_HEADER, 0, 9, DIOH_PAYLOAD_BYTES_MAX + 1);
	expect_malformed(bytes, 16 + DIOH_PAYLOAD_BYTES_MAX + 1, "longer");
	(void)message(bytes, DIOH_MSG_WRITE_HEADER, 0, 9, DIOH_PAYLOAD_BYTES_MAX);
	expect_malformed(bytes, sizeof(bytes), "longer");
	(void)message(bytes, DIOH_MSG_STATUS, 0, 9, UINT32_MAX);
	expect_malformed(bytes, 16, "bytes of payload");
}

static void wrong_headers(void **state)
{
	_Alignas(8) uint8_t bytes[512];

	(void)state;
	(void)message(bytes, DIOH_MSG_STATUS, 1, 9, 0);
	expect_malformed(bytes, 16, "flags");
	(void)message(bytes, DIOH_MSG_STATUS, 0x80000000, 9, 0);
	expect_malformed(bytes, 16, "flags");
	(void)message(bytes, DIOH_MSG_STATUS, 0, 0, 0);
	expect_malformed(bytes, 16, "id");
}

static void sizes_of_all_messages(void **state)
{
	static uint8_t bytes[16 + 1024];

	(void)state;
	for (uint32_t type = DIOH_MSG_HELLO; type <= DIOH_MSG_KEEP_REGION; type += 2) {
		const size_t whole = message(bytes, type, 0, 3, 0);
		const bool open_ended = type == DIOH_MSG_WRITE_HEADER;
		const size_t less = open_ended ? whole - 8 : whole - 1; /* no byte of the header is none */

		if (raw_needs_descriptor(type))
			continue; /* its number of descriptors is looked at first */
		if (whole > 16) {
			(void)message(bytes, type, 0, 3, (uint32_t)less - 16);
			expect_malformed(bytes, less, dioh_msg_name(type));
		}
		(void)message(bytes, type, 0, 3, (uint32_t)whole + 1 - 16);
		if (!open_ended)
			expect_malformed(bytes, whole + 1, dioh_msg_name(type));
	}
}

static void reserved_fields(void **state)
{
	static const struct {
		uint32_t type;
		size_t offset;
	} fields[] = {
		{ DIOH_MSG_HELLO, offsetof(struct dioh_msg_hello, reserved[0]) },
		{ DIOH_MSG_HELLO, offsetof(struct dioh_msg_hello, reserved[1]) + 7 },
		{ DIOH_MSG_SEAL, offsetof(struct dioh_msg_seal, reserved) },
		{ DIOH_MSG_PUT_TABLE,
		  sizeof(struct dioh_msg_put_table) + offsetof(struct dioh_msg_entry, reserved) },
		{ DIOH_MSG_PUT_TABLE, sizeof(struct dioh_msg_put_table) + sizeof(struct dioh_msg_entry) +
		                              offsetof(struct dioh_msg_entry, reserved) + 3 },
		{ DIOH_MSG_READ_HEADER, offsetof(struct dioh_msg_read_header, reserved) },
		{ DIOH_MSG_SAVE_MEMORY, offsetof(struct dioh_msg_memory_transfer, reserved) },
		{ DIOH_MSG_LOAD_MEMORY, offsetof(struct dioh_msg_memory_transfer, reserved) },
		{ DIOH_MSG_SAVE_STREAM, offsetof(struct dioh_msg_stream_transfer, reserved) },
		{ DIOH_MSG_LOAD_STREAM, offsetof(struct dioh_msg_stream_transfer, reserved) },
		{ DIOH_MSG_CANCEL, offsetof(struct dioh_msg_cancel, reserved) },
		{ DIOH_MSG_KEEP_REGION, offsetof(struct dioh_msg_keep_region, reserved) },
	};
	static uint8_t bytes[1024];

	(void)state;
	for (size_t i = 0; i < COUNT(fields); i++) {
		size_t whole = message(bytes, fields[i].type, 0, 3, 0);

		(void)message(bytes, fields[i].type, 0, 3, (uint32_t)whole - 16);
		bytes[16 + fields[i].offset] ^= 0x10;
		expect_malformed(bytes, whole, "reserved");
	}
}

static void reserved_fields_beside_descriptors(void **state)
{
	static const struct {
		uint32_t type;
		size_t offset;
	} fields[] = {
		{ DIOH_MSG_ATTACH_IMAGE, offsetof(struct dioh_msg_attach_image, reserved) },
		{ DIOH_MSG_ATTACH_MEMORY, offsetof(struct dioh_msg_attach_memory, reserved) },
		{ DIOH_MSG_ATTACH_STREAM, offsetof(struct dioh_msg_attach_stream, reserved) },
	};

	(void)state;
	for (size_t i = 0; i < COUNT(fields); i++) {
		int fd = open("/dev/null", O_RDWR | O_CLOEXEC);
		size_t size = raw_sample(fields[i].type, SAVE, payload);
		struct raw_manager m;
		uint32_t id;

		payload[fields[i].offset] = 1;
		reach_save(&m, RAW_STAGE_ATTACH);
		id = raw_request_fds(&m, fields[i].type, payload, size, &fd, 1);
		raw_refused(&m, fields[i].type, id, EBADMSG, "reserved");
		raw_ends(&m, 1);
		close(fd);
	}
}

/* A malformed message ends what runs, too. */
static void malformed_cancels(void **state)
{
	static const uint8_t bytes[20] = { DIOH_MSG_STATUS, 0, 0, 0, 0, 0, 0, 0, 99 };
	struct raw_manager m;
	uint32_t transfer;

	(void)state;
	reach_save(&m, RAW_STAGE_TRANSFER);
	transfer = m.last_id;
	assert_true(raw_send(&m, bytes, sizeof(bytes), NULL, 0));
	raw_refused(&m, DIOH_MSG_STATUS, 99, EBADMSG, "bytes of payload");
	assert_int_equal(raw_complete(&m, transfer, NULL), ECANCELED);
	raw_ends(&m, 1);
}

/* An empty packet cannot be told from the end; nor can half a hangup from a whole one. */
static void other_ends(void **state)
{
	struct raw_manager m;

	(void)state;
	reach_save(&m, RAW_STAGE_SEALED);
	assert_true(raw_send(&m, "", 0, NULL, 0));
	raw_ends(&m, 0);
	reach_save(&m, RAW_STAGE_SEALED);
	assert_int_equal(shutdown(m.fd, SHUT_WR), 0);
	raw_ends(&m, 0);
	reach_save(&m, RAW_STAGE_TRANSFER);
	assert_int_equal(shutdown(m.fd, SHUT_WR), 0);
	raw_ends(&m, 1);
}

/* ---- descriptors ---- */

/* The writing end of a pipe shows whether anybody still has it. */
static void open_pipe(int *ret_ends)
{
	assert_int_equal(pipe2(ret_ends, O_CLOEXEC), 0);
}

static void expect_closed(int *ends)
{
	struct pollfd reader = { ends[0], POLLIN, 0 };

	close(ends[1]);
	assert_int_equal(poll(&reader, 1, 5000), 1);
	assert_true(reader.revents & POLLHUP);
	close(ends[0]);
}

static uint32_t request_with(struct raw_manager *m, uint32_t type, int fd, unsigned fd_count)
{
	size_t size = raw_sample(type, SAVE, payload);
	int fds[FDS_MAX];

	for (unsigned i = 0; i < fd_count; i++)
		fds[i] = fd;
	return raw_request_fds(m, type, payload, size, fds, fd_count);
}

static void expect_descriptors_refused(enum raw_stage stage, uint32_t type, unsigned fd_count)
{
	struct raw_manager m;
	int ends[2];
	uint32_t id;

	open_pipe(ends);
	reach_save(&m, stage);
	id = request_with(&m, type, ends[1], fd_count);
	raw_refused(&m, type, id, EBADMSG, "descriptors");
	raw_ends(&m, 1);
	expect_closed(ends);
}

static void wrong_numbers_of_descriptors(void **state)
{
	static const unsigned counts[] = { 0, 1, 2, 3, 4, 5, 64, FDS_MAX };

	(void)state;
	for (uint32_t type = DIOH_MSG_HELLO; type <= DIOH_MSG_KEEP_REGION; type += 2) {
		for (size_t j = 0; j < COUNT(counts); j++) {
			const bool right = counts[j] == raw_needs_descriptor(type) ||
			                   (type == DIOH_MSG_HELLO && counts[j] == 1);

			if (!right)
				expect_descriptors_refused(type == DIOH_MSG_HELLO ? RAW_STAGE_START : RAW_STAGE_ATTACH,
				                           type, counts[j]);
		}
	}
}

/* The first three would do; those behind them make it malformed all the same. */
static void more_than_were_announced(void **state)
{
	const struct dioh_msg_attach_image image = { .fds = 7, .direction = SAVE };

	(void)state;
	for (unsigned count = 4; count <= FDS_MAX; count += 83) {
		struct raw_manager m;
		int fds[FDS_MAX], ends[2];
		uint32_t id;

		open_pipe(ends);
		for (unsigned i = 0; i < count; i++)
			fds[i] = ends[1];
		reach_save(&m, RAW_STAGE_ATTACH);
		id = raw_request_fds(&m, DIOH_MSG_ATTACH_IMAGE, &image, sizeof(image), fds, count);
		raw_refused(&m, DIOH_MSG_ATTACH_IMAGE, id, EBADMSG, "descriptors");
		raw_ends(&m, 1);
		expect_closed(ends);
	}
}

static void no_descriptors_behind_the_seal(void **state)
{
	(void)state;
	for (uint32_t type = DIOH_MSG_HELLO; type <= DIOH_MSG_KEEP_REGION; type += 2)
		expect_descriptors_refused(RAW_STAGE_SEALED, type, 1);
	expect_descriptors_refused(RAW_STAGE_SEALED, 1000, 1); /* whatever its type */
	expect_descriptors_refused(RAW_STAGE_TRANSFER, DIOH_MSG_STATUS, FDS_MAX);
}

/* What does not fit into the helper's table of descriptors is lost on the way: MSG_CTRUNC. */
static void lost_descriptors(void **state)
{
	struct raw_options options = RAW_OPTIONS_INIT;
	struct raw_manager m;
	int ends[2];
	uint32_t id;

	(void)state;
	options.descriptors_max = 5; /* 0 to 3 are taken */
	open_pipe(ends);
	raw_reach(&m, &options, NULL, SAVE, RAW_STAGE_ATTACH);
	id = request_with(&m, DIOH_MSG_ATTACH_IMAGE, ends[1], 3);
	raw_refused(&m, DIOH_MSG_ATTACH_IMAGE, id, EBADMSG, "lost");
	raw_ends(&m, 1);
	expect_closed(ends);
}

static void refuse_with_descriptors(struct raw_manager *m, int fd)
{
	const struct dioh_msg_attach_memory memory = { .memory = 2, .fds = 3 };
	const struct dioh_msg_attach_stream stream = { .stream = DIOH_STREAMS_MAX };
	struct dioh_msg_attach_image image = { .fds = 7, .direction = SAVE };
	const int fds[3] = { fd, fd, fd };
	uint32_t id;

	id = raw_request_fds(m, DIOH_MSG_ATTACH_IMAGE, &image, sizeof(image), fds, 3);
	raw_refused(m, DIOH_MSG_ATTACH_IMAGE, id, EINVAL, "pipe");
	id = raw_request_fds(m, DIOH_MSG_ATTACH_MEMORY, &memory, sizeof(memory), fds, 2);
	raw_refused(m, DIOH_MSG_ATTACH_MEMORY, id, EPROTO, "ATTACH_MEMORY");
	id = raw_request_fds(m, 1000, NULL, 0, fds, 3);
	raw_refused(m, 1000, id, EOPNOTSUPP, "1000");
	id = raw_request_fds(m, DIOH_MSG_ATTACH_STREAM, &stream, sizeof(stream), fds, 1);
	raw_refused(m, DIOH_MSG_ATTACH_STREAM, id, EINVAL, "stream 64");
}

static void refused_messages_leak_no_descriptor(void **state)
{
	struct raw_options options = RAW_OPTIONS_INIT;
	struct raw_manager m;
	int ends[2], before;

	(void)state;
	options.descriptors_max = 32; /* a leak is noticed also where /proc cannot be looked into */
	raw_reach(&m, &options, NULL, SAVE, RAW_STAGE_ATTACH);
	before = raw_proc_descriptors(m.pid);
	open_pipe(ends);
	for (int i = 0; i < 1000; i++)
		refuse_with_descriptors(&m, ends[1]);
	expect_closed(ends);
	assert_int_equal(raw_proc_descriptors(m.pid), before);
	assert_int_equal(raw_status_phase(&m), DIOH_PHASE_ATTACH);
	raw_hang_up(&m);
	raw_ends(&m, 0);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(unknown_types_are_refused),
		cmocka_unit_test(short_packets),
		cmocka_unit_test(long_packets),
		cmocka_unit_test(wrong_headers),
		cmocka_unit_test(sizes_of_all_messages),
		cmocka_unit_test(reserved_fields),
		cmocka_unit_test(reserved_fields_beside_descriptors),
		cmocka_unit_test(malformed_cancels),
		cmocka_unit_test(other_ends),
		cmocka_unit_test(wrong_numbers_of_descriptors),
		cmocka_unit_test(more_than_were_announced),
		cmocka_unit_test(no_descriptors_behind_the_seal),
		cmocka_unit_test(lost_descriptors),
		cmocka_unit_test(refused_messages_leak_no_descriptor),
	};

	return cmocka_run_group_tests_name("malformed", tests, NULL, NULL);
}
