/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test_session.c - the door of a real helper over a real socket: each message in each phase, and HELLO. Messages that
 * are none: test_malformed.c.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "cleanup.h"
#include "fixture.h"
#include "proto.h"
#include "raw_manager.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

#define SAVE DIOH_DIRECTION_SAVE
#define LOAD DIOH_DIRECTION_LOAD
#define UNKNOWN_FEATURE (UINT64_C(1) << 62) /* permitted, and refused by its number */

static _Alignas(8) uint8_t payload[DIOH_PAYLOAD_BYTES_MAX];

static void expect_place(const struct dioh_msg_error *error, uint32_t operation, uint32_t object)
{
	assert_int_equal(error->operation, operation);
	assert_int_equal(error->object, object);
}

/* ---- each message in each phase: the table of docs/protocol.md, "Phases" ---- */

#define AT(stage) (1u << RAW_STAGE_##stage)
#define SEALED_ON (AT(SEALED) | AT(TABLE) | AT(READY) | AT(TRANSFER))

static const struct permission {
	uint32_t type;
	uint32_t save, load; /* AT() bits: where it is permitted, or refused with another code than EPROTO */
} permissions[] = {
	{ DIOH_MSG_HELLO, AT(START), AT(START) },
	{ DIOH_MSG_ATTACH_IMAGE, AT(ATTACH) | AT(IMAGE), AT(ATTACH) | AT(IMAGE) },
	{ DIOH_MSG_ATTACH_MEMORY, AT(IMAGE), AT(IMAGE) },
	{ DIOH_MSG_ATTACH_STREAM, AT(IMAGE), AT(IMAGE) },
	{ DIOH_MSG_SEAL, AT(IMAGE), AT(IMAGE) },
	{ DIOH_MSG_CREATE_IMAGE, AT(SEALED), 0 },
	{ DIOH_MSG_PUT_TABLE, AT(TABLE), AT(TABLE) },
	{ DIOH_MSG_WRITE_HEADER, AT(READY) | AT(TRANSFER), 0 },
	{ DIOH_MSG_OPEN_IMAGE, 0, AT(SEALED) },
	{ DIOH_MSG_GET_TABLE, AT(READY) | AT(TRANSFER), AT(READY) | AT(TRANSFER) },
	{ DIOH_MSG_READ_HEADER, 0, AT(READY) | AT(TRANSFER) },
	{ DIOH_MSG_SAVE_MEMORY, AT(READY) | AT(TRANSFER), 0 },
	{ DIOH_MSG_LOAD_MEMORY, 0, AT(READY) | AT(TRANSFER) },
	{ DIOH_MSG_SAVE_STREAM, AT(READY) | AT(TRANSFER), 0 },
	{ DIOH_MSG_LOAD_STREAM, 0, AT(READY) | AT(TRANSFER) },
	{ DIOH_MSG_STATUS, ~AT(START), ~AT(START) },
	{ DIOH_MSG_CANCEL, SEALED_ON | AT(FINISH), SEALED_ON | AT(FINISH) },
	{ DIOH_MSG_FINISH, SEALED_ON, SEALED_ON },
	{ DIOH_MSG_READ_BITMAP, 0, AT(READY) | AT(TRANSFER) },
	{ DIOH_MSG_KEEP_REGION, AT(READY) | AT(TRANSFER), 0 },
};

static uint32_t say_sample(struct raw_manager *m, uint32_t type)
{
	size_t size = raw_sample(type, m->direction, payload);
	int null_fd = raw_needs_descriptor(type) ? open("/dev/null", O_RDWR | O_CLOEXEC) : -1;
	uint32_t id = raw_request_fds(m, type, payload, size, &null_fd, null_fd >= 0);

	if (null_fd >= 0)
		close(null_fd);
	return id;
}

static void expect_not_permitted(struct raw_manager *m, uint32_t type)
{
	struct dioh_msg_error error = raw_refused(m, type, say_sample(m, type), EPROTO, dioh_msg_name(type));

	expect_place(&error, DIOH_OP_PROTOCOL, DIOH_OBJECT_SESSION);
	assert_int_equal(error.number, 0);
	assert_true(error.offset == UINT64_MAX);
	if (!strstr(error.text, "not permitted") && !strstr(error.text, "comes first"))
		fail_msg("does not say what is wrong: %s", error.text);
}

static uint32_t phase_at(enum raw_stage stage)
{
	if (stage < RAW_STAGE_SEALED)
		return DIOH_PHASE_ATTACH;
	return stage == RAW_STAGE_TRANSFER ? DIOH_PHASE_TRANSFER : DIOH_PHASE_READY;
}

static void refuse_all_at(uint32_t direction, enum raw_stage stage)
{
	struct raw_manager m;

	raw_reach_own(&m, direction, stage);
	for (size_t i = 0; i < COUNT(permissions); i++) {
		const uint32_t at = direction == SAVE ? permissions[i].save : permissions[i].load;

		if (at & 1u << stage)
			continue;
		if (stage >= RAW_STAGE_SEALED && raw_needs_descriptor(permissions[i].type))
			continue; /* its descriptor makes it malformed */
		expect_not_permitted(&m, permissions[i].type);
	}
	assert_int_equal(raw_status_phase(&m), phase_at(stage));
	raw_drop(&m);
}

static void refused_in_wrong_phase(void **state)
{
	(void)state;
	for (enum raw_stage stage = RAW_STAGE_ATTACH; stage <= RAW_STAGE_TRANSFER; stage++) {
		refuse_all_at(SAVE, stage);
		refuse_all_at(LOAD, stage);
	}
}

static void only_hello_starts(void **state)
{
	(void)state;
	for (size_t i = 1; i < COUNT(permissions); i++) {
		struct raw_manager m;

		raw_start(&m, NULL);
		m.direction = SAVE;
		expect_not_permitted(&m, permissions[i].type);
		raw_ends(&m, 1);
	}
}

/* What lies in the socket behind FINISH is looked at before FINISH can have come to its end. */
static void refused_while_finishing(void **state)
{
	(void)state;
	for (size_t i = 0; i < COUNT(permissions); i++) {
		const uint32_t type = permissions[i].type;
		struct raw_manager m;
		uint32_t finish, id;

		if (raw_needs_descriptor(type) || permissions[i].load & AT(FINISH))
			continue;
		raw_reach_own(&m, LOAD, RAW_STAGE_FINISH);
		finish = m.last_id;
		id = say_sample(&m, type);
		raw_continue(&m);
		raw_reply(&m, DIOH_MSG_FINISH, finish, NULL, 0);
		raw_refused(&m, type, id, EPROTO, dioh_msg_name(type));
		assert_int_equal(raw_complete(&m, finish, NULL), 0);
		raw_ends(&m, 0);
	}
}

static void status_and_cancel_while_finishing(void **state)
{
	struct dioh_msg_status_reply status;
	struct dioh_msg_cancel cancel = { 0 };
	struct raw_manager m;
	uint32_t finish, ask, all, unknown;

	(void)state;
	raw_reach_own(&m, LOAD, RAW_STAGE_FINISH);
	finish = m.last_id;
	ask = say_sample(&m, DIOH_MSG_STATUS);
	all = raw_request(&m, DIOH_MSG_CANCEL, &cancel, sizeof(cancel));
	cancel.transfer = 12345;
	unknown = raw_request(&m, DIOH_MSG_CANCEL, &cancel, sizeof(cancel));
	raw_continue(&m);
	raw_reply(&m, DIOH_MSG_FINISH, finish, NULL, 0);
	raw_reply(&m, DIOH_MSG_STATUS, ask, &status, sizeof(status));
	assert_int_equal(status.phase, DIOH_PHASE_SYNC);
	raw_reply(&m, DIOH_MSG_CANCEL, all, NULL, 0);
	raw_refused(&m, DIOH_MSG_CANCEL, unknown, ENOENT, "12345");
	assert_int_equal(raw_complete(&m, finish, NULL), 0); /* a load has nothing left to cancel */
	raw_ends(&m, 0);
}

/* A header-path request is answered by the thread that reads further requests first. */
static void header_path_is_one_at_a_time(void **state)
{
	const struct dioh_msg_get_table get = { .count = 1 };
	struct dioh_msg_status_reply status;
	struct raw_manager m;
	uint32_t first, second, ask;

	(void)state;
	raw_reach_own(&m, LOAD, RAW_STAGE_READY);
	raw_stop(&m);
	first = raw_request(&m, DIOH_MSG_GET_TABLE, &get, sizeof(get));
	second = say_sample(&m, DIOH_MSG_LOAD_MEMORY);
	ask = say_sample(&m, DIOH_MSG_STATUS);
	raw_continue(&m);
	raw_refused(&m, DIOH_MSG_LOAD_MEMORY, second, EBUSY, "GET_TABLE");
	raw_reply(&m, DIOH_MSG_STATUS, ask, &status, sizeof(status));
	assert_int_equal(status.phase, DIOH_PHASE_SYNC);
	raw_reply(&m, DIOH_MSG_GET_TABLE, first, NULL, 0);
	raw_call(&m, DIOH_MSG_GET_TABLE, &get, sizeof(get), NULL, 0);
	raw_hang_up(&m);
	raw_ends(&m, 0);
}

static void inspection_permits_no_transfer(void **state)
{
	const struct dioh_msg_open_image open_it = { .flags = DIOH_OPEN_INSPECT };
	struct raw_manager m;

	(void)state;
	raw_reach_own(&m, LOAD, RAW_STAGE_SEALED);
	raw_call(&m, DIOH_MSG_OPEN_IMAGE, &open_it, sizeof(open_it), NULL, 0);
	expect_not_permitted(&m, DIOH_MSG_LOAD_MEMORY);
	expect_not_permitted(&m, DIOH_MSG_LOAD_STREAM);
	raw_hang_up(&m);
	raw_ends(&m, 0);
}

static void second_attach_is_refused(void **state)
{
	struct raw_manager m;

	(void)state;
	raw_reach_own(&m, SAVE, RAW_STAGE_IMAGE);
	raw_refused(&m, DIOH_MSG_ATTACH_IMAGE, say_sample(&m, DIOH_MSG_ATTACH_IMAGE), EEXIST, "ATTACH_IMAGE");
	raw_refused(&m, DIOH_MSG_ATTACH_MEMORY, say_sample(&m, DIOH_MSG_ATTACH_MEMORY), EEXIST, "ATTACH_MEMORY");
	raw_refused(&m, DIOH_MSG_ATTACH_STREAM, say_sample(&m, DIOH_MSG_ATTACH_STREAM), EEXIST, "ATTACH_STREAM");
	assert_int_equal(raw_status_phase(&m), DIOH_PHASE_ATTACH);
	raw_hang_up(&m);
	raw_ends(&m, 0);
}

/* ---- HELLO ---- */

static void expect_no_hello(const struct dioh_msg_hello *hello, int code, const char *text)
{
	struct raw_manager m;

	raw_start(&m, NULL);
	raw_call_refused(&m, DIOH_MSG_HELLO, hello, sizeof(*hello), code, text);
	raw_ends(&m, 1);
}

static void hello_versions(void **state)
{
	struct dioh_msg_hello hello = { .version_min = 7, .version_max = 9 };
	struct dioh_msg_hello reply;
	struct raw_manager m;

	(void)state;
	expect_no_hello(&hello, EPROTONOSUPPORT, "versions 7 to 9");
	expect_no_hello(&hello, EPROTONOSUPPORT, "speaks 1");
	hello.version_min = hello.version_max = 0;
	expect_no_hello(&hello, EPROTONOSUPPORT, "versions 0 to 0");
	hello.version_min = 2;
	expect_no_hello(&hello, EINVAL, "version_min");
	hello.version_min = 0;
	hello.version_max = UINT32_MAX;
	raw_start(&m, NULL);
	raw_call(&m, DIOH_MSG_HELLO, &hello, sizeof(hello), &reply, sizeof(reply));
	assert_int_equal(reply.version_min, DIOH_PROTOCOL_VERSION);
	assert_int_equal(reply.version_max, DIOH_PROTOCOL_VERSION);
	assert_int_equal(reply.reserved[0] | reply.reserved[1] | reply.required, 0);
	assert_true(reply.offered & DIOH_FEATURE_LAYOUT_CONTAINER);
	raw_hang_up(&m);
	raw_ends(&m, 0);
}

static void hello_features(void **state)
{
	struct dioh_msg_hello hello = { .version_min = 1, .version_max = 1 };

	(void)state;
	hello.required = DIOH_FEATURE_STREAM | UNKNOWN_FEATURE;
	expect_no_hello(&hello, ENOTSUP, "0x4000000000000000");
	hello.required = UINT64_C(1) << 63;
	expect_no_hello(&hello, ENOTSUP, "0x8000000000000000");
}

/* The library's side of the same: a helper that answers nonsense. */
static int connect_to(const struct dioh_msg_hello *answer, struct dioh_error *err)
{
	const struct dioh_msg_header header = { .type = DIOH_MSG_HELLO + 1, .id = 1, .size = sizeof(*answer) };
	struct dioh_session *session;
	uint8_t bytes[sizeof(header) + sizeof(*answer)];
	int pair[2], r;

	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
	memcpy(bytes, &header, sizeof(header));
	memcpy(bytes + sizeof(header), answer, sizeof(*answer));
	/* It lies there before HELLO is sent, and is the answer to its id all the same. */
	assert_int_equal(send(pair[1], bytes, sizeof(bytes), 0), sizeof(bytes));
	r = dioh_connect(pair[0], DIOH_FEATURE_STREAM, &session, err);
	assert_true(r < 0); /* the answers here are none that could be accepted */
	close(pair[0]);
	close(pair[1]);
	return r;
}

static void library_checks_hello_too(void **state)
{
	struct dioh_msg_hello answer = { .version_min = 2, .version_max = 2, .offered = DIOH_FEATURE_STREAM };
	struct dioh_session *session;
	struct dioh_spawn_options options = DIOH_SPAWN_OPTIONS_INIT;
	struct dioh_error err;

	(void)state;
	assert_int_equal(connect_to(&answer, &err), -EPROTONOSUPPORT);
	answer.version_min = answer.version_max = 1;
	answer.offered = DIOH_FEATURE_LAYOUT_RAW;
	assert_int_equal(connect_to(&answer, &err), -ENOTSUP);
	assert_non_null(strstr(err.text, "stream"));
	answer.offered = answer.required = DIOH_FEATURE_STREAM | UINT64_C(1) << 40;
	assert_int_equal(connect_to(&answer, &err), -ENOTSUP);
	assert_non_null(strstr(err.text, "0x10000000000"));
	options.program = fixture_helper();
	assert_int_equal(dioh_spawn(&options, UNKNOWN_FEATURE, &session, &err), -ENOTSUP);
	assert_non_null(strstr(err.text, "0x4000000000000000"));
}

static void hello_takes_a_pidfd_only(void **state)
{
	static const char *const others[] = { "/dev/null", "/", "/proc/self" };
	const struct dioh_msg_hello hello = { .version_min = 1, .version_max = 1 };

	(void)state;
	for (size_t i = 0; i < COUNT(others); i++) {
		int fd = open(others[i], O_RDONLY | O_CLOEXEC);
		struct raw_manager m;
		uint32_t id;

		assert_true(fd >= 0);
		raw_start(&m, NULL);
		id = raw_request_fds(&m, DIOH_MSG_HELLO, &hello, sizeof(hello), &fd, 1);
		raw_refused(&m, DIOH_MSG_HELLO, id, EINVAL, "pidfd");
		raw_ends(&m, 1);
		close(fd);
	}
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(refused_in_wrong_phase),
		cmocka_unit_test(only_hello_starts),
		cmocka_unit_test(refused_while_finishing),
		cmocka_unit_test(status_and_cancel_while_finishing),
		cmocka_unit_test(header_path_is_one_at_a_time),
		cmocka_unit_test(inspection_permits_no_transfer),
		cmocka_unit_test(second_attach_is_refused),
		cmocka_unit_test(hello_versions),
		cmocka_unit_test(hello_features),
		cmocka_unit_test(library_checks_hello_too),
		cmocka_unit_test(hello_takes_a_pidfd_only),
	};

	return cmocka_run_group_tests_name("session", tests, NULL, NULL);
}
