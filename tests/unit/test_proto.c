/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test_proto.c - common/proto.c and proto_reply.c: each message as it should be, and each way in which it may not
 * be.
 *
 * A message that is right is kept for each type; every case changes one thing of it. Payloads stand in allocations
 * of exactly their size, so that AddressSanitizer and valgrind see a byte read too many. The random run prints its
 * seed; DIOH_SEED=N repeats it.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "chance.h"
#include "proto.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define ID 77u
#define ROUNDS 20000

enum direction { REQUEST, REPLY, EVENT };

/* Whatever may follow the fixed part is there twice, if it can be. */
struct sample {
	enum direction direction;
	uint32_t type; /* of a reply: its request's */
	uint32_t size;
	unsigned fds;
	bool any_size; /* bytes without a count */
	uint8_t payload[DIOH_PAYLOAD_BYTES_MAX];
};

#define SAMPLES_MAX 64
static struct sample *samples[SAMPLES_MAX];
static unsigned sample_count;

/* ---- messages that are right ----------------------------------------------------------------- */

static struct sample *add(enum direction direction, uint32_t type, const void *payload, size_t size,
                          unsigned fds)
{
	struct sample *sample = calloc(1, sizeof(*sample));

	assert_non_null(sample);
	assert_true(sample_count < SAMPLES_MAX);
	sample->direction = direction;
	sample->type = type;
	sample->size = (uint32_t)size;
	sample->fds = fds;
	if (size > 0)
		memcpy(sample->payload, payload, size);
	samples[sample_count++] = sample;
	return sample;
}

static void append(struct sample *sample, const void *bytes, size_t count)
{
	memcpy(&sample->payload[sample->size], bytes, count);
	sample->size += (uint32_t)count;
}

#define ADD(direction, message, value, fds) \
	add(direction, DIOH_MSG_##message, &(value), sizeof(value), fds)

static const struct dioh_msg_entry region = {
	.kind = DIOH_ENTRY_REGION,
	.number = 3,
	.flags = DIOH_ENTRY_GUEST_ADDRESS,
	.bytes = 8192,
	.guest_address = UINT64_C(1) << 32,
	.image_offset = 4096,
	.name = "pc.ram",
};

static const struct dioh_msg_entry stream = {
	.kind = DIOH_ENTRY_STREAM,
	.number = UINT32_MAX,
	.bytes = 12345,
	.image_offset = 17,
	.name = "g\xc3\xa9r\xc3\xa4t",
};

static void add_requests_before_seal(void)
{
	struct dioh_msg_hello hello = {
		.version_min = 1, .version_max = 2, .offered = UINT64_MAX, .required = UINT64_MAX
	};
	struct dioh_msg_attach_image image = {
		.fds = DIOH_IMAGE_FD_BUFFERED | DIOH_IMAGE_FD_DIRECT,
		.direction = DIOH_DIRECTION_SAVE,
		.block_bytes = 1u << 20,
		.in_flight = DIOH_IN_FLIGHT_MAX,
		.workers = DIOH_WORKERS_MAX,
		.ask = DIOH_IMAGE_ASK_LABEL_IF_ENABLED | DIOH_IMAGE_ASK_OWNER | DIOH_IMAGE_ASK_MODE,
		.base_offset = DIOH_OFFSET_MAX - 4096,
		.uid = 107,
		.gid = 107,
		.mode = 0600,
		.label = "system_u:object_r:svirt_image_t:s0:c1,c2",
	};
	struct dioh_msg_attach_memory memory = { .memory = DIOH_MEMORIES_MAX - 1,
		                                 .fds = DIOH_MEMORY_FD_MEMORY |
		                                        DIOH_MEMORY_FD_SELECTION,
		                                 .bytes = 4096 };
	struct dioh_msg_attach_stream attach = { .stream = DIOH_STREAMS_MAX - 1 };
	struct dioh_msg_seal seal = { .required = DIOH_LAYER_NO_CAPABILITIES | DIOH_LAYER_SELINUX };

	ADD(REQUEST, HELLO, hello, 1);
	ADD(REQUEST, ATTACH_IMAGE, image, 2);
	ADD(REQUEST, ATTACH_MEMORY, memory, 2);
	ADD(REQUEST, ATTACH_STREAM, attach, 1);
	ADD(REQUEST, SEAL, seal, 0);
}

static void add_requests_about_image(void)
{
	struct dioh_msg_create_image create = { .layout = DIOH_LAYOUT_CONTAINER,
		                                .region_count = DIOH_REGIONS_MAX,
		                                .stream_count = DIOH_STREAMS_MAX,
		                                .header_bytes = DIOH_HEADER_BYTES_MAX };
	struct dioh_msg_put_table put = { .first = 5, .count = 2 };
	struct dioh_msg_write_header write = { .offset = DIOH_HEADER_BYTES_MAX - 5 };
	struct dioh_msg_open_image open = { .layout = DIOH_LAYOUT_RAW,
		                            .flags = DIOH_OPEN_INSPECT,
		                            .region_count = 1,
		                            .stream_count = 1,
		                            .header_bytes = 1 };
	struct dioh_msg_get_table get = { .first = 1, .count = DIOH_ENTRIES_PER_MESSAGE_MAX };
	struct dioh_msg_read_header read = { .offset = 9, .bytes = DIOH_PAYLOAD_BYTES_MAX };
	struct dioh_msg_read_bitmap bitmap = { .region = 7, .offset = 64, .bytes = DIOH_PAYLOAD_BYTES_MAX };
	struct dioh_msg_keep_region keep = { .region = 7, .offset = DIOH_CHUNK_BYTES, .length = 4096 };
	struct sample *sample;

	ADD(REQUEST, CREATE_IMAGE, create, 0);
	sample = ADD(REQUEST, PUT_TABLE, put, 0);
	append(sample, &region, sizeof(region));
	append(sample, &stream, sizeof(stream));
	sample = ADD(REQUEST, WRITE_HEADER, write, 0);
	append(sample, "hello", 5);
	sample->any_size = true;
	ADD(REQUEST, OPEN_IMAGE, open, 0);
	ADD(REQUEST, GET_TABLE, get, 0);
	ADD(REQUEST, READ_HEADER, read, 0);
	ADD(REQUEST, READ_BITMAP, bitmap, 0);
	ADD(REQUEST, KEEP_REGION, keep, 0);
}

static void add_requests_about_transfers(void)
{
	struct dioh_msg_memory_transfer save = { .memory = 1,
		                                 .region = 3,
		                                 .memory_offset = 4096,
		                                 .region_offset = DIOH_CHUNK_BYTES,
		                                 .length = 4096,
		                                 .flags = DIOH_TRANSFER_SELECTION |
		                                          DIOH_TRANSFER_NO_SCAN |
		                                          DIOH_TRANSFER_NO_CHECKSUM };
	struct dioh_msg_memory_transfer load = save;
	struct dioh_msg_stream_transfer transfer = { .stream = 2,
		                                     .entry = UINT32_MAX,
		                                     .flags = DIOH_TRANSFER_NO_CHECKSUM };
	struct dioh_msg_cancel cancel = { .transfer = 9 };
	struct dioh_msg_finish finish = { .mode = DIOH_FINISH_WRITTEN,
		                          .patch_bytes = 4,
		                          .patch_offset = DIOH_HEADER_BYTES_MAX - 4 };

	load.flags = DIOH_TRANSFER_SELECTION | DIOH_TRANSFER_FRESH | DIOH_TRANSFER_NO_CHECKSUM;
	ADD(REQUEST, SAVE_MEMORY, save, 0);
	ADD(REQUEST, LOAD_MEMORY, load, 0);
	ADD(REQUEST, SAVE_STREAM, transfer, 0);
	ADD(REQUEST, LOAD_STREAM, transfer, 0);
	add(REQUEST, DIOH_MSG_STATUS, NULL, 0, 0);
	ADD(REQUEST, CANCEL, cancel, 0);
	append(ADD(REQUEST, FINISH, finish, 0), "done", 4);
}

static void add_replies_before_seal(void)
{
	struct dioh_msg_hello hello = { .version_min = 1, .version_max = 1, .offered = UINT64_MAX };
	struct dioh_msg_attach_image_reply image = {
		.kind = DIOH_IMAGE_BLOCK_DEVICE,
		.direct = 1,
		.engine = DIOH_ENGINE_IO_URING,
		.notes = DIOH_IMAGE_NOTE_ENGINE_FALLBACK,
		.block_bytes = 1u << 20,
		.in_flight = 16,
		.workers = 1,
	};
	struct dioh_msg_attach_memory_reply memory = { .kind = DIOH_MEMORY_HUGETLB,
		                                       .seals = UINT32_MAX };
	struct dioh_msg_attach_stream_reply attach = { .kind = DIOH_STREAM_SOCKET };
	struct dioh_msg_seal_reply seal = { .layers = DIOH_LAYER_SELINUX,
		                            .engine = DIOH_ENGINE_SYNC };

	ADD(REPLY, HELLO, hello, 0);
	ADD(REPLY, ATTACH_IMAGE, image, 0);
	ADD(REPLY, ATTACH_MEMORY, memory, 0);
	ADD(REPLY, ATTACH_STREAM, attach, 0);
	ADD(REPLY, SEAL, seal, 0);
}

static void add_other_replies(void)
{
	static const uint32_t empty[] = { DIOH_MSG_SAVE_MEMORY, DIOH_MSG_LOAD_MEMORY,
		                          DIOH_MSG_SAVE_STREAM, DIOH_MSG_LOAD_STREAM,
		                          DIOH_MSG_FINISH, DIOH_MSG_KEEP_REGION };
	struct dioh_msg_image_reply image = { .ready = 1, .free_bytes = UINT64_MAX };
	struct dioh_msg_open_image_reply open = { .layout = DIOH_LAYOUT_CONTAINER,
		                                  .state = DIOH_STATE_COMPLETE,
		                                  .region_count = DIOH_REGIONS_MAX,
		                                  .compatible_features = UINT64_MAX,
		                                  .ready = 1 };
	struct dioh_msg_get_table_reply table = { .first = 0, .count = 2 };
	struct dioh_msg_status_reply status = { .phase = DIOH_PHASE_FINISHED };
	struct dioh_msg_cancel_reply cancel = { .in_flight = 4 };
	struct sample *sample;

	ADD(REPLY, CREATE_IMAGE, image, 0);
	ADD(REPLY, PUT_TABLE, image, 0);
	ADD(REPLY, WRITE_HEADER, image, 0);
	ADD(REPLY, OPEN_IMAGE, open, 0);
	sample = ADD(REPLY, GET_TABLE, table, 0);
	append(sample, &region, sizeof(region));
	append(sample, &stream, sizeof(stream));
	sample = add(REPLY, DIOH_MSG_READ_HEADER, "bytes", 5, 0);
	sample->any_size = true;
	sample = add(REPLY, DIOH_MSG_READ_BITMAP, "bytes", 5, 0);
	sample->any_size = true;
	for (size_t i = 0; i < COUNT(empty); i++)
		add(REPLY, empty[i], NULL, 0, 0);
	ADD(REPLY, STATUS, status, 0);
	ADD(REPLY, CANCEL, cancel, 0);
}

static void add_events(void)
{
	struct dioh_msg_progress progress = { .phase = DIOH_PHASE_TRANSFER, .count = 2 };
	struct dioh_msg_progress_entry entry = { .transfer = 4, .phase = DIOH_PHASE_TRANSFER };
	struct dioh_msg_complete complete = {
		.error = { .code = EIO,
		           .operation = DIOH_OP_FINISH,
		           .object = DIOH_OBJECT_REGION,
		           .text = "bad" },
	};
	struct dioh_msg_stuck stuck = { .in_flight = 3 };
	struct dioh_msg_error broken = { .code = ENOSYS, .text = "bad" };
	struct sample *sample;

	sample = ADD(EVENT, PROGRESS, progress, 0);
	append(sample, &entry, sizeof(entry));
	append(sample, &entry, sizeof(entry));
	ADD(EVENT, COMPLETE, complete, 0);
	ADD(EVENT, STUCK, stuck, 0);
	ADD(EVENT, BROKEN, broken, 0);
}

static int make_samples(void **state)
{
	(void)state;
	add_requests_before_seal();
	add_requests_about_image();
	add_requests_about_transfers();
	add_replies_before_seal();
	add_other_replies();
	add_events();
	return 0;
}

static int free_samples(void **state)
{
	(void)state;
	while (sample_count > 0)
		free(samples[--sample_count]);
	return 0;
}

static struct sample *find(enum direction direction, uint32_t type)
{
	for (unsigned i = 0; i < sample_count; i++)
		if (samples[i]->direction == direction && samples[i]->type == type)
			return samples[i];
	fail_msg("no sample of type %" PRIu32, type);
	return NULL;
}

static struct dioh_msg_header header_of(const struct sample *sample)
{
	struct dioh_msg_header header = { .type = sample->type, .id = ID, .size = sample->size };

	if (sample->direction == REPLY)
		header.type++;
	if (sample->direction == EVENT && sample->type != DIOH_MSG_COMPLETE)
		header.id = 0;
	return header;
}

/* ---- checking -------------------------------------------------------------------------------- */

static int check_at(enum direction direction, uint32_t type, const struct dioh_msg_header *header,
                    const void *payload, unsigned fds, struct dioh_error *err)
{
	switch (direction) {
	case REQUEST:
		return dioh_proto_check_request(header, payload, fds, err);
	case REPLY:
		return dioh_proto_check_reply(header, payload, fds, type, ID, err);
	case EVENT:
		break;
	}
	return dioh_proto_check_event(header, payload, fds, err);
}

/*
 * Also: success leaves err alone, failure fills it with a sentence that names the message, and NULL changes
 * nothing.
 */
static int check(const struct sample *sample, const struct dioh_msg_header *header,
                 const uint8_t *payload, unsigned fds)
{
	uint8_t *exact = malloc(header->size + 1);
	struct dioh_error err, untouched;
	int r;

	assert_non_null(exact);
	memset(&err, 0x5a, sizeof(err));
	untouched = err;
	/* At an odd address: a payload need not be aligned. */
	memcpy(exact + 1, payload, header->size);
	r = check_at(sample->direction, sample->type, header, exact + 1, fds, &err);
	assert_int_equal(check_at(sample->direction, sample->type, header, exact + 1, fds, NULL), r);
	free(exact);
	if (r == 0) {
		assert_memory_equal(&err, &untouched, sizeof(err));
		return 0;
	}
	assert_int_equal(err.code, -r);
	assert_int_equal(err.operation, DIOH_OP_PROTOCOL);
	assert_int_equal(err.object, DIOH_OBJECT_SESSION);
	if (header->type < DIOH_MSG_PROGRESS || sample->direction == EVENT)
		assert_memory_equal(err.text, dioh_msg_name(header->type),
		                    strlen(dioh_msg_name(header->type)));
	return r;
}

static int check_sample(const struct sample *sample)
{
	struct dioh_msg_header header = header_of(sample);

	return check(sample, &header, sample->payload, sample->fds);
}

#define FOR_EACH_SAMPLE(sample) \
	for (unsigned i_ = 0; i_ < sample_count && ((sample) = samples[i_], true); i_++)

static void describe(const struct sample *sample, const char *what, uint64_t value)
{
	static const char *const directions[] = { "request", "reply", "event" };

	print_error("%s (%s): %s %" PRIu64 "\n", dioh_msg_name(sample->type),
	            directions[sample->direction], what, value);
}

static void expect(const struct sample *sample, int expected, int r, const char *what,
                   uint64_t value)
{
	if (r != expected)
		describe(sample, what, value);
	assert_int_equal(r, expected);
}

/* ---- every message --------------------------------------------------------------------------- */

static void test_samples_are_right(void **state)
{
	const struct sample *sample;

	(void)state;
	assert_int_equal(sample_count, 20 + 20 + 4);
	FOR_EACH_SAMPLE(sample)
	expect(sample, 0, check_sample(sample), "as it is, bytes", sample->size);
}

static void test_every_other_length(void **state)
{
	const struct sample *sample;

	(void)state;
	FOR_EACH_SAMPLE(sample)
	{
		struct dioh_msg_header header = header_of(sample);
		uint32_t shortest = sample->direction == REQUEST ? 9 : 0; /* of those of any size */

		for (header.size = 0; header.size < sample->size + 700; header.size++) {
			bool right = header.size == sample->size ||
			             (sample->any_size && header.size >= shortest);
			int r;

			if (sample->any_size && header.size > sample->size)
				break;
			r = check(sample, &header, sample->payload, sample->fds);
			expect(sample, right ? 0 : -EBADMSG, r, "bytes", header.size);
		}
	}
}

static void test_too_long_for_any(void **state)
{
	const struct sample *sample;

	(void)state;
	FOR_EACH_SAMPLE(sample)
	{
		struct dioh_msg_header header = header_of(sample);
		struct dioh_error err;

		header.size = DIOH_PAYLOAD_BYTES_MAX + 1; /* the payload is not looked at */
		expect(sample, -EBADMSG,
		       check_at(sample->direction, sample->type, &header, sample->payload,
		                sample->fds, &err),
		       "bytes", header.size);
	}
}

static void test_every_number_of_descriptors(void **state)
{
	const struct sample *sample;

	(void)state;
	FOR_EACH_SAMPLE(sample)
	{
		struct dioh_msg_header header = header_of(sample);

		for (unsigned fds = 0; fds <= DIOH_FDS_MAX + 1; fds++) {
			bool hello = sample->direction == REQUEST && sample->type == DIOH_MSG_HELLO;
			bool right = fds == sample->fds || (hello && fds == 0);
			int r = check(sample, &header, sample->payload, fds);

			expect(sample, right ? 0 : -EBADMSG, r, "descriptors", fds);
		}
	}
}

static void test_headers(void **state)
{
	const struct sample *sample;

	(void)state;
	FOR_EACH_SAMPLE(sample)
	{
		for (unsigned bit = 0; bit < 32; bit++) {
			struct dioh_msg_header header = header_of(sample);

			header.flags = 1u << bit;
			if (sample->direction == REPLY && header.flags == DIOH_MSG_ERROR)
				continue;
			expect(sample, -EBADMSG,
			       check(sample, &header, sample->payload, sample->fds), "flags bit",
			       bit);
		}
	}
}

static void test_ids(void **state)
{
	const struct sample *sample;

	(void)state;
	FOR_EACH_SAMPLE(sample)
	{
		struct dioh_msg_header header = header_of(sample);

		if (sample->direction == REQUEST)
			header.id = 0;
		else if (sample->direction == REPLY)
			header.id = ID + 1;
		else
			header.id = header.id == 0 ? ID : 0;
		expect(sample, -EBADMSG, check(sample, &header, sample->payload, sample->fds), "id",
		       header.id);
	}
}

static bool is_request(uint32_t type)
{
	return type % 2 == 0 && type >= DIOH_MSG_HELLO && type <= DIOH_MSG_KEEP_REGION;
}

static void test_unknown_types(void **state)
{
	struct dioh_msg_header header = { .id = ID };
	struct dioh_error err;

	(void)state;
	for (uint32_t type = 0; type < 300; type++) {
		header.type = type < 290 ? type : UINT32_MAX - (type - 290);
		if (!is_request(header.type)) {
			assert_int_equal(dioh_proto_check_request(&header, NULL, 0, &err),
			                 -EOPNOTSUPP);
			assert_int_equal(dioh_proto_check_reply(&header, NULL, 0, header.type, ID,
			                                        &err),
			                 -EOPNOTSUPP);
		}
		if (header.type < DIOH_MSG_PROGRESS || header.type > DIOH_MSG_BROKEN ||
		    header.type % 2 == 0)
			assert_int_equal(dioh_proto_check_event(&header, NULL, 0, &err),
			                 -EOPNOTSUPP);
	}
}

/* A malformed header counts for more than a type that is not known. */
static void test_unknown_and_malformed(void **state)
{
	struct dioh_msg_header header = { .type = 1000, .flags = 1, .id = ID };

	(void)state;
	assert_int_equal(dioh_proto_check_request(&header, NULL, 0, NULL), -EBADMSG);
	header.flags = 0;
	header.size = DIOH_PAYLOAD_BYTES_MAX + 1;
	assert_int_equal(dioh_proto_check_request(&header, NULL, 0, NULL), -EBADMSG);
}

static void test_reply_to_another_request(void **state)
{
	const struct sample *sample = find(REPLY, DIOH_MSG_SAVE_MEMORY);
	struct dioh_msg_header header = header_of(sample);

	(void)state;
	for (uint32_t type = 0; type < 200; type++) {
		header.type = type;
		expect(sample, type == DIOH_MSG_SAVE_MEMORY + 1 ? 0 : -EBADMSG,
		       check(sample, &header, sample->payload, 0), "type", type);
	}
}

static void test_error_replies(void **state)
{
	struct dioh_msg_error error = { .code = EIO,
		                        .operation = DIOH_OP_READ,
		                        .object = DIOH_OBJECT_IMAGE,
		                        .offset = UINT64_MAX,
		                        .text = "image: read failed" };
	const struct sample *sample;

	(void)state;
	FOR_EACH_SAMPLE(sample)
	{
		struct dioh_msg_header header = header_of(sample);

		if (sample->direction != REPLY)
			continue;
		header.flags = DIOH_MSG_ERROR;
		for (header.size = 0; header.size < sizeof(error); header.size++)
			expect(sample, -EBADMSG, check(sample, &header, (const void *)&error, 0),
			       "error's bytes", header.size);
		expect(sample, 0, check(sample, &header, (const void *)&error, 0), "error's bytes",
		       header.size);
		expect(sample, -EBADMSG, check(sample, &header, (const void *)&error, 1),
		       "descriptors", 1);
	}
}

static void test_fields_of_errors(void **state)
{
	static const struct dioh_msg_error right = { .code = EIO, .text = "no" };
	const struct sample *sample = find(REPLY, DIOH_MSG_SEAL);
	struct dioh_msg_header header = header_of(sample);
	struct dioh_msg_error error = right;

	(void)state;
	header.flags = DIOH_MSG_ERROR;
	header.size = sizeof(error);
#define CHECK_ERROR() check(sample, &header, (const void *)&error, 0)
	assert_int_equal(CHECK_ERROR(), 0);
	error.code = 4095;
	assert_int_equal(CHECK_ERROR(), 0);
	error.code = 4096;
	assert_int_equal(CHECK_ERROR(), -EINVAL);
	error.code = 0;
	assert_int_equal(CHECK_ERROR(), -EINVAL);
	error.code = -EIO;
	assert_int_equal(CHECK_ERROR(), -EINVAL);
	error = right;
	error.operation = DIOH_OP_SPAWN;
	assert_int_equal(CHECK_ERROR(), -EINVAL);
	error = right;
	error.object = DIOH_OBJECT_REGION + 1;
	assert_int_equal(CHECK_ERROR(), -EINVAL);
	error = right;
	error.reserved = UINT64_C(1) << 63;
	assert_int_equal(CHECK_ERROR(), -EBADMSG);
	error = right;
	memset(error.text, 'x', sizeof(error.text));
	assert_int_equal(CHECK_ERROR(), -EBADMSG);
#undef CHECK_ERROR
}

static void test_complete_without_error(void **state)
{
	const struct sample *sample = find(EVENT, DIOH_MSG_COMPLETE);
	struct dioh_msg_header header = header_of(sample);
	struct dioh_msg_complete complete = { .error = { .operation = 99, .object = 99 } };

	(void)state;
	/* "code 0: success, and then its other fields mean nothing" */
	assert_int_equal(check(sample, &header, (const void *)&complete, 0), 0);
	complete.error.code = EIO;
	assert_int_equal(check(sample, &header, (const void *)&complete, 0), -EINVAL);
}

/* ---- every field ----------------------------------------------------------------------------- */

struct field_case {
	enum direction direction;
	uint32_t type;
	size_t offset;
	size_t bytes;
	uint64_t value;
	int expected;
};

static void run_case(const struct field_case *c)
{
	const struct sample *sample = find(c->direction, c->type);
	struct sample changed = *sample;
	int r;

	/* A case that changes nothing proves nothing. */
	assert_true(c->expected == 0 ||
	            memcmp(&changed.payload[c->offset], &c->value, c->bytes) != 0);
	memcpy(&changed.payload[c->offset], &c->value, c->bytes); /* little-endian */
	r = check_sample(&changed);
	if (r != c->expected)
		print_error("offset %zu ", c->offset);
	expect(sample, c->expected, r, "value", c->value);
}

#define FIELD(direction, message, type, field, value, expected) \
	{ \
		direction, DIOH_MSG_##message, offsetof(struct dioh_msg_##type, field), \
			sizeof(((struct dioh_msg_##type *)NULL)->field), value, expected \
	}

static void test_reserved(void **state)
{
	static const struct field_case cases[] = {
		FIELD(REQUEST, HELLO, hello, reserved[0], 0, -EBADMSG),
		FIELD(REQUEST, HELLO, hello, reserved[1], 0, -EBADMSG),
		FIELD(REQUEST, ATTACH_IMAGE, attach_image, reserved, 0, -EBADMSG),
		FIELD(REQUEST, ATTACH_MEMORY, attach_memory, reserved, 0, -EBADMSG),
		FIELD(REQUEST, ATTACH_STREAM, attach_stream, reserved, 0, -EBADMSG),
		FIELD(REQUEST, SEAL, seal, reserved, 0, -EBADMSG),
		FIELD(REQUEST, READ_HEADER, read_header, reserved, 0, -EBADMSG),
		FIELD(REQUEST, KEEP_REGION, keep_region, reserved, 0, -EBADMSG),
		FIELD(REQUEST, SAVE_MEMORY, memory_transfer, reserved, 0, -EBADMSG),
		FIELD(REQUEST, LOAD_MEMORY, memory_transfer, reserved, 0, -EBADMSG),
		FIELD(REQUEST, SAVE_STREAM, stream_transfer, reserved, 0, -EBADMSG),
		FIELD(REQUEST, LOAD_STREAM, stream_transfer, reserved, 0, -EBADMSG),
		FIELD(REQUEST, CANCEL, cancel, reserved, 0, -EBADMSG),
		FIELD(REPLY, HELLO, hello, reserved[0], 0, -EBADMSG),
		FIELD(REPLY, HELLO, hello, reserved[1], 0, -EBADMSG),
		FIELD(REPLY, ATTACH_MEMORY, attach_memory_reply, reserved, 0, -EBADMSG),
		FIELD(REPLY, ATTACH_STREAM, attach_stream_reply, reserved, 0, -EBADMSG),
		FIELD(REPLY, SEAL, seal_reply, reserved, 0, -EBADMSG),
		FIELD(REPLY, CREATE_IMAGE, image_reply, reserved, 0, -EBADMSG),
		FIELD(REPLY, PUT_TABLE, image_reply, reserved, 0, -EBADMSG),
		FIELD(REPLY, WRITE_HEADER, image_reply, reserved, 0, -EBADMSG),
		FIELD(REPLY, STATUS, status_reply, reserved, 0, -EBADMSG),
		FIELD(REPLY, CANCEL, cancel_reply, reserved, 0, -EBADMSG),
		FIELD(EVENT, COMPLETE, complete, error.reserved, 0, -EBADMSG),
		FIELD(EVENT, STUCK, stuck, reserved, 0, -EBADMSG),
	};

	(void)state;
	for (size_t i = 0; i < COUNT(cases); i++) {
		for (size_t bit = 0; bit < cases[i].bytes * 8; bit++) {
			struct field_case one = cases[i];

			one.value = UINT64_C(1) << bit;
			run_case(&one);
		}
	}
}

#define PAGE DIOH_PAGE_BYTES
#define CHUNK DIOH_CHUNK_BYTES

static void test_values_before_seal(void **state)
{
#define HELLO(field, value, expected) FIELD(REQUEST, HELLO, hello, field, value, expected)
#define IMAGE(field, value, expected) \
	FIELD(REQUEST, ATTACH_IMAGE, attach_image, field, value, expected)
#define MEMORY(field, value, expected) \
	FIELD(REQUEST, ATTACH_MEMORY, attach_memory, field, value, expected)
	static const struct field_case cases[] = {
		HELLO(version_min, 0, 0),
		HELLO(version_min, 2, 0),
		HELLO(version_min, 3, -EINVAL),
		HELLO(version_max, 0, -EINVAL),
		/* Descriptors that are announced and do not come are malformed, unknown ones a bad value. */
		IMAGE(fds, DIOH_IMAGE_FD_BUFFERED, -EBADMSG),
		IMAGE(fds, 7, -EBADMSG),
		IMAGE(fds, 0, -EBADMSG),
		IMAGE(fds, DIOH_IMAGE_FD_DIRECT | DIOH_IMAGE_FD_DIRECTORY, 0),
		IMAGE(fds, DIOH_IMAGE_FD_BUFFERED | 8, -EINVAL),
		IMAGE(fds, DIOH_IMAGE_FD_DIRECTORY | 8, -EINVAL),
		IMAGE(direction, 0, -EINVAL),
		IMAGE(direction, 2, 0),
		IMAGE(direction, 3, -EINVAL),
		IMAGE(direct, 2, 0),
		IMAGE(direct, 3, -EINVAL),
		IMAGE(engine, 3, 0),
		IMAGE(engine, 4, -EINVAL),
		IMAGE(block_bytes, 0, 0),
		IMAGE(block_bytes, DIOH_BLOCK_BYTES_MIN, 0),
		IMAGE(block_bytes, DIOH_BLOCK_BYTES_MIN / 2, -EINVAL),
		IMAGE(block_bytes, DIOH_BLOCK_BYTES_MAX, 0),
		IMAGE(block_bytes, DIOH_BLOCK_BYTES_MAX * 2, -EINVAL),
		IMAGE(block_bytes, DIOH_BLOCK_BYTES_MIN + 4096, -EINVAL),
		IMAGE(in_flight, 0, 0),
		IMAGE(in_flight, DIOH_IN_FLIGHT_MAX + 1, -EINVAL),
		IMAGE(workers, 0, 0),
		IMAGE(workers, DIOH_WORKERS_MAX + 1, -EINVAL),
		IMAGE(ask, 16, -EINVAL),
		IMAGE(ask, 15, -EINVAL), /* both labels */
		IMAGE(ask, 13, 0),
		IMAGE(ask, 12, -EINVAL), /* a label nobody asked for */
		IMAGE(ask, 10, -EINVAL), /* an owner nobody asked for */
		IMAGE(ask, 6, -EINVAL),  /* a mode nobody asked for */
		IMAGE(base_offset, 0, 0),
		IMAGE(base_offset, 512, -EINVAL),
		IMAGE(base_offset, DIOH_OFFSET_MAX, -EINVAL),
		IMAGE(mode, 07777, 0),
		IMAGE(mode, 010000, -EINVAL),
		IMAGE(label[0], 0, -EBADMSG), /* bytes behind its end */
		IMAGE(label[3], '\n', -EINVAL),
		IMAGE(label[3], 0x7f, -EINVAL),
		IMAGE(label[3], 0xc3, 0),
		IMAGE(label[255], 'x', -EBADMSG),
		MEMORY(memory, DIOH_MEMORIES_MAX, -EINVAL),
		MEMORY(fds, DIOH_MEMORY_FD_MEMORY, -EBADMSG),
		MEMORY(fds, DIOH_MEMORY_FD_MEMORY | 4, -EINVAL),
		MEMORY(fds, DIOH_MEMORY_FD_SELECTION | 4, -EINVAL),
		MEMORY(advice, 1, 0),
		MEMORY(advice, 2, -EINVAL),
		MEMORY(bytes, 0, 0),
		MEMORY(bytes, DIOH_OFFSET_MAX - 1, 0),
		MEMORY(bytes, DIOH_OFFSET_MAX, -EINVAL),
		FIELD(REQUEST, ATTACH_STREAM, attach_stream, stream, DIOH_STREAMS_MAX, -EINVAL),
		FIELD(REQUEST, SEAL, seal, required, DIOH_LAYER_SELINUX * 2, -EINVAL),
		FIELD(REQUEST, SEAL, seal, required, UINT32_C(1) << 31, -EINVAL),
		FIELD(REQUEST, SEAL, seal, required, DIOH_LAYER_SELINUX * 2 - 1, 0),
	};

	(void)state;
	for (size_t i = 0; i < COUNT(cases); i++)
		run_case(&cases[i]);
}

static void test_values_about_image(void **state)
{
#define CREATE(field, value, expected) \
	FIELD(REQUEST, CREATE_IMAGE, create_image, field, value, expected)
#define OPEN(field, value, expected) FIELD(REQUEST, OPEN_IMAGE, open_image, field, value, expected)
	static const struct field_case cases[] = {
		CREATE(layout, DIOH_LAYOUT_DETECT, -EINVAL),
		CREATE(layout, DIOH_LAYOUT_RAW, 0),
		CREATE(layout, DIOH_LAYOUT_MAPPED_RAM, 0),
		CREATE(layout, DIOH_LAYOUT_MAPPED_RAM + 1, -EINVAL),
		CREATE(region_count, DIOH_REGIONS_MAX + 1, -EINVAL),
		CREATE(region_count, 0, 0),
		CREATE(stream_count, DIOH_STREAMS_MAX + 1, -EINVAL),
		CREATE(flags, DIOH_CREATE_CONTINUE, 0),
		CREATE(flags, 2, -EINVAL),
		CREATE(header_bytes, DIOH_HEADER_BYTES_MAX + 1, -EINVAL),
		CREATE(stream, 1, -EINVAL),
		CREATE(channels, 1, -EINVAL),
		FIELD(REQUEST, PUT_TABLE, put_table, count, 0, -EBADMSG),
		FIELD(REQUEST, PUT_TABLE, put_table, count, 1, -EBADMSG),
		FIELD(REQUEST, PUT_TABLE, put_table, count, 3, -EBADMSG),
		FIELD(REQUEST, PUT_TABLE, put_table, count, UINT32_MAX, -EBADMSG),
		FIELD(REQUEST, PUT_TABLE, put_table, first, 1086, 0),
		FIELD(REQUEST, PUT_TABLE, put_table, first, 1087, -EINVAL),
		FIELD(REQUEST, PUT_TABLE, put_table, first, UINT32_MAX, -EINVAL),
		FIELD(REQUEST, WRITE_HEADER, write_header, offset, 0, 0),
		FIELD(REQUEST, WRITE_HEADER, write_header, offset, DIOH_HEADER_BYTES_MAX - 4,
		      -EINVAL),
		FIELD(REQUEST, WRITE_HEADER, write_header, offset, UINT64_MAX, -EINVAL),
		OPEN(layout, DIOH_LAYOUT_DETECT, -EINVAL), /* what only raw may say */
		OPEN(layout, DIOH_LAYOUT_CONTAINER, -EINVAL),
		OPEN(layout, DIOH_LAYOUT_MAPPED_RAM + 1, -EINVAL),
		OPEN(flags, 3, 0),
		OPEN(flags, DIOH_OPEN_ALL_IN_STREAM, -EINVAL), /* mapped-ram's, and without a table */
		OPEN(flags, 8, -EINVAL),
		OPEN(region_count, DIOH_REGIONS_MAX + 1, -EINVAL),
		OPEN(stream_count, DIOH_STREAMS_MAX + 1, -EINVAL),
		OPEN(header_bytes, DIOH_HEADER_BYTES_MAX + 1, -EINVAL),
		FIELD(REQUEST, GET_TABLE, get_table, count, 0, -EINVAL),
		FIELD(REQUEST, GET_TABLE, get_table, count, DIOH_ENTRIES_PER_MESSAGE_MAX + 1,
		      -EINVAL),
		FIELD(REQUEST, GET_TABLE, get_table, first, 1088, 0),
		FIELD(REQUEST, GET_TABLE, get_table, first, 1089, -EINVAL),
		FIELD(REQUEST, READ_HEADER, read_header, bytes, 0, -EINVAL),
		FIELD(REQUEST, READ_HEADER, read_header, bytes, 1, 0),
		FIELD(REQUEST, READ_HEADER, read_header, bytes, DIOH_PAYLOAD_BYTES_MAX + 1, -EINVAL),
		FIELD(REQUEST, READ_HEADER, read_header, offset, DIOH_HEADER_BYTES_MAX, 0),
		FIELD(REQUEST, READ_HEADER, read_header, offset, DIOH_HEADER_BYTES_MAX + 1, -EINVAL),
		FIELD(REQUEST, READ_BITMAP, read_bitmap, bytes, 0, -EINVAL),
		FIELD(REQUEST, READ_BITMAP, read_bitmap, bytes, DIOH_PAYLOAD_BYTES_MAX + 1, -EINVAL),
		FIELD(REQUEST, READ_BITMAP, read_bitmap, offset, 33, -EINVAL),
		FIELD(REQUEST, READ_BITMAP, read_bitmap, offset, DIOH_REGION_BYTES_MAX / 4096 / 8, 0),
		FIELD(REQUEST, READ_BITMAP, read_bitmap, offset, DIOH_REGION_BYTES_MAX / 4096 / 8 + 32, -EINVAL),
		FIELD(REQUEST, KEEP_REGION, keep_region, offset, 4096, -EINVAL),
		FIELD(REQUEST, KEEP_REGION, keep_region, offset, DIOH_OFFSET_MAX, -EINVAL),
		FIELD(REQUEST, KEEP_REGION, keep_region, length, 0, -EINVAL),
		FIELD(REQUEST, KEEP_REGION, keep_region, length, 4097, -EINVAL),
	};

	(void)state;
	for (size_t i = 0; i < COUNT(cases); i++)
		run_case(&cases[i]);
}

static int check_image(const struct dioh_msg_attach_image *image, unsigned fds)
{
	struct sample changed = *find(REQUEST, DIOH_MSG_ATTACH_IMAGE);

	memcpy(changed.payload, image, sizeof(*image));
	changed.fds = fds;
	return check_sample(&changed);
}

static void test_image_as_a_whole(void **state)
{
	const struct dioh_msg_attach_image right = { .fds = DIOH_IMAGE_FD_BUFFERED,
		                                     .direction = DIOH_DIRECTION_LOAD };
	struct dioh_msg_attach_image image = right;

	(void)state;
	assert_int_equal(check_image(&image, 1), 0);
	image.fds = DIOH_IMAGE_FD_DIRECTORY;
	assert_int_equal(check_image(&image, 1), -EINVAL);
	image = right;
	image.ask = 16;
	assert_int_equal(check_image(&image, 1), -EINVAL);
	image = right;
	image.uid = 1;
	assert_int_equal(check_image(&image, 1), -EINVAL);
	image = right;
	image.gid = 1;
	assert_int_equal(check_image(&image, 1), -EINVAL);
	image.ask = DIOH_IMAGE_ASK_OWNER;
	assert_int_equal(check_image(&image, 1), 0);
	image = right;
	image.ask = DIOH_IMAGE_ASK_LABEL_REQUIRED;
	assert_int_equal(check_image(&image, 1), -EINVAL);
	memset(image.label, 'l', sizeof(image.label) - 1);
	assert_int_equal(check_image(&image, 1), 0);
	image.label[sizeof(image.label) - 1] = 'l';
	assert_int_equal(check_image(&image, 1), -EBADMSG);
}

static void test_selection_without_memory(void **state)
{
	struct sample changed = *find(REQUEST, DIOH_MSG_ATTACH_MEMORY);
	struct dioh_msg_attach_memory memory = { .fds = DIOH_MEMORY_FD_SELECTION };

	(void)state;
	memcpy(changed.payload, &memory, sizeof(memory));
	changed.fds = 1;
	assert_int_equal(check_sample(&changed), -EINVAL);
}

static void test_what_only_raw_says(void **state)
{
	struct sample changed = *find(REQUEST, DIOH_MSG_OPEN_IMAGE);
	struct dioh_msg_open_image open = { .layout = DIOH_LAYOUT_CONTAINER };

	(void)state;
	memcpy(changed.payload, &open, sizeof(open));
	assert_int_equal(check_sample(&changed), 0);
	open.layout = DIOH_LAYOUT_MAPPED_RAM + 1;
	memcpy(changed.payload, &open, sizeof(open));
	assert_int_equal(check_sample(&changed), -EINVAL);
	for (int field = 0; field < 3; field++) {
		open = (struct dioh_msg_open_image){ .layout = DIOH_LAYOUT_CONTAINER,
			                             .region_count = field == 0,
			                             .stream_count = field == 1,
			                             .header_bytes = field == 2 };
		memcpy(changed.payload, &open, sizeof(open));
		assert_int_equal(check_sample(&changed), -EINVAL);
	}
}

static void test_mapped_ram_stream(void **state)
{
	struct sample changed = *find(REQUEST, DIOH_MSG_CREATE_IMAGE);
	struct dioh_msg_create_image create = { .layout = DIOH_LAYOUT_MAPPED_RAM,
		                                .stream = DIOH_STREAMS_MAX - 1 };

	(void)state;
	memcpy(changed.payload, &create, sizeof(create));
	assert_int_equal(check_sample(&changed), 0);
	create.stream = DIOH_STREAMS_MAX;
	memcpy(changed.payload, &create, sizeof(create));
	assert_int_equal(check_sample(&changed), -EINVAL);
	create.stream = 0;
	create.channels = DIOH_STREAMS_MAX - 1;
	memcpy(changed.payload, &create, sizeof(create));
	assert_int_equal(check_sample(&changed), 0);
	create.channels = DIOH_STREAMS_MAX;
	memcpy(changed.payload, &create, sizeof(create));
	assert_int_equal(check_sample(&changed), -EINVAL);
}

static void test_values_about_transfers(void **state)
{
#define SAVE(field, value, expected) \
	FIELD(REQUEST, SAVE_MEMORY, memory_transfer, field, value, expected)
#define LOAD(field, value, expected) \
	FIELD(REQUEST, LOAD_MEMORY, memory_transfer, field, value, expected)
	static const struct field_case cases[] = {
		SAVE(memory, DIOH_MEMORIES_MAX, -EINVAL),
		SAVE(region, UINT32_MAX, 0),
		SAVE(memory_offset, 0, 0),
		SAVE(memory_offset, PAGE / 2, -EINVAL),
		SAVE(memory_offset, DIOH_OFFSET_MAX - PAGE, 0),
		SAVE(memory_offset, DIOH_OFFSET_MAX, -EINVAL),
		SAVE(memory_offset, UINT64_MAX - PAGE + 1, -EINVAL),
		SAVE(region_offset, PAGE, -EINVAL),
		SAVE(region_offset, DIOH_OFFSET_MAX, -EINVAL),
		SAVE(region_offset, UINT64_MAX - CHUNK + 1, -EINVAL),
		SAVE(length, 0, -EINVAL),
		SAVE(length, PAGE + 512, -EINVAL),
		SAVE(length, CHUNK, 0),
		SAVE(length, DIOH_OFFSET_MAX, -EINVAL),
		SAVE(length, UINT64_MAX - PAGE + 1, -EINVAL),
		SAVE(flags, 0, 0),
		SAVE(flags, DIOH_TRANSFER_FRESH, -EINVAL),
		SAVE(flags, 16, -EINVAL),
		LOAD(flags, 0, 0),
		LOAD(flags, DIOH_TRANSFER_NO_SCAN, -EINVAL),
		LOAD(flags, 16, -EINVAL),
		LOAD(length, 0, -EINVAL),
		FIELD(REQUEST, SAVE_STREAM, stream_transfer, stream, DIOH_STREAMS_MAX, -EINVAL),
		FIELD(REQUEST, SAVE_STREAM, stream_transfer, flags, DIOH_TRANSFER_SELECTION,
		      -EINVAL),
		FIELD(REQUEST, SAVE_STREAM, stream_transfer, flags, 0, 0),
		FIELD(REQUEST, LOAD_STREAM, stream_transfer, stream, DIOH_STREAMS_MAX, -EINVAL),
		FIELD(REQUEST, LOAD_STREAM, stream_transfer, flags, DIOH_TRANSFER_FRESH, -EINVAL),
		FIELD(REQUEST, CANCEL, cancel, transfer, 0, 0),
		FIELD(REQUEST, FINISH, finish, mode, 0, 0),
		FIELD(REQUEST, FINISH, finish, mode, 2, -EINVAL),
		FIELD(REQUEST, FINISH, finish, patch_bytes, 3, -EBADMSG),
		FIELD(REQUEST, FINISH, finish, patch_bytes, 5, -EBADMSG),
		FIELD(REQUEST, FINISH, finish, patch_bytes, UINT32_MAX - 15, -EBADMSG),
		FIELD(REQUEST, FINISH, finish, patch_offset, DIOH_HEADER_BYTES_MAX - 3, -EINVAL),
		FIELD(REQUEST, FINISH, finish, patch_offset, UINT64_MAX, -EINVAL),
	};

	(void)state;
	for (size_t i = 0; i < COUNT(cases); i++)
		run_case(&cases[i]);
}

static void test_place_of_no_patch(void **state)
{
	struct sample changed = *find(REQUEST, DIOH_MSG_FINISH);
	struct dioh_msg_finish finish = { .patch_bytes = 0 };

	(void)state;
	for (uint64_t offset = 0; offset <= 1; offset++) {
		finish.patch_offset = offset;
		memcpy(changed.payload, &finish, sizeof(finish));
		changed.size = sizeof(finish);
		assert_int_equal(check_sample(&changed), offset ? -EINVAL : 0);
	}
}

static void test_longest_patch(void **state)
{
	struct sample changed = *find(REQUEST, DIOH_MSG_FINISH);
	struct dioh_msg_finish finish = { .patch_bytes = DIOH_HEADER_PATCH_BYTES_MAX };

	(void)state;
	for (int more = 0; more <= 1; more++) {
		finish.patch_bytes = DIOH_HEADER_PATCH_BYTES_MAX + (uint32_t)more;
		memcpy(changed.payload, &finish, sizeof(finish));
		changed.size = (uint32_t)sizeof(finish) + finish.patch_bytes;
		assert_int_equal(check_sample(&changed), more ? -EINVAL : 0);
	}
}

static void test_values_of_replies(void **state)
{
#define R_IMAGE(field, value, expected) \
	FIELD(REPLY, ATTACH_IMAGE, attach_image_reply, field, value, expected)
#define R_OPEN(field, value, expected) \
	FIELD(REPLY, OPEN_IMAGE, open_image_reply, field, value, expected)
	static const struct field_case cases[] = {
		FIELD(REPLY, HELLO, hello, version_min, 0, -EINVAL),
		FIELD(REPLY, HELLO, hello, version_max, 2, -EINVAL),
		R_IMAGE(kind, 0, -EINVAL),
		R_IMAGE(kind, 3, -EINVAL),
		R_IMAGE(direct, 2, -EINVAL),
		R_IMAGE(engine, 0, -EINVAL),
		R_IMAGE(engine, 4, -EINVAL),
		R_IMAGE(notes, 256, -EINVAL),
		R_IMAGE(done, DIOH_IMAGE_ASK_MODE * 2, -EINVAL),
		R_IMAGE(block_bytes, 0, -EINVAL),
		R_IMAGE(block_bytes, DIOH_BLOCK_BYTES_MAX + 1, -EINVAL),
		R_IMAGE(in_flight, 0, -EINVAL),
		R_IMAGE(in_flight, DIOH_IN_FLIGHT_MAX + 1, -EINVAL),
		R_IMAGE(workers, 0, -EINVAL),
		R_IMAGE(workers, DIOH_WORKERS_MAX + 1, -EINVAL),
		FIELD(REPLY, ATTACH_MEMORY, attach_memory_reply, kind, 0, -EINVAL),
		FIELD(REPLY, ATTACH_MEMORY, attach_memory_reply, kind, 4, -EINVAL),
		FIELD(REPLY, ATTACH_STREAM, attach_stream_reply, kind, 0, -EINVAL),
		FIELD(REPLY, ATTACH_STREAM, attach_stream_reply, kind, 4, -EINVAL),
		FIELD(REPLY, SEAL, seal_reply, layers, DIOH_LAYER_SELINUX * 2, -EINVAL),
		FIELD(REPLY, SEAL, seal_reply, engine, 0, -EINVAL),
		FIELD(REPLY, SEAL, seal_reply, engine, 4, -EINVAL),
		FIELD(REPLY, CREATE_IMAGE, image_reply, ready, 2, -EINVAL),
		FIELD(REPLY, PUT_TABLE, image_reply, ready, 2, -EINVAL),
		FIELD(REPLY, WRITE_HEADER, image_reply, ready, 2, -EINVAL),
		R_OPEN(layout, 0, -EINVAL),
		R_OPEN(layout, 4, -EINVAL),
		R_OPEN(state, 4, -EINVAL),
		R_OPEN(region_count, DIOH_REGIONS_MAX + 1, -EINVAL),
		R_OPEN(stream_count, DIOH_STREAMS_MAX + 1, -EINVAL),
		R_OPEN(header_bytes, DIOH_HEADER_BYTES_MAX + 1, -EINVAL),
		R_OPEN(image_bytes, DIOH_OFFSET_MAX + 1, -EINVAL),
		R_OPEN(ready, 2, -EINVAL),
		FIELD(REPLY, GET_TABLE, get_table_reply, count, 1, -EBADMSG),
		FIELD(REPLY, GET_TABLE, get_table_reply, count, 3, -EBADMSG),
		FIELD(REPLY, STATUS, status_reply, phase, 0, -EINVAL),
		FIELD(REPLY, STATUS, status_reply, phase, 6, -EINVAL),
		FIELD(EVENT, PROGRESS, progress, phase, 0, -EINVAL),
		FIELD(EVENT, PROGRESS, progress, phase, 6, -EINVAL),
		FIELD(EVENT, PROGRESS, progress, count, 1, -EBADMSG),
		FIELD(EVENT, PROGRESS, progress, count, 3, -EBADMSG),
		FIELD(EVENT, COMPLETE, complete, error.code, 4096, -EINVAL),
		FIELD(EVENT, COMPLETE, complete, error.code, UINT32_MAX, -EINVAL),
		FIELD(EVENT, COMPLETE, complete, error.operation, DIOH_OP_SPAWN, -EINVAL),
		FIELD(EVENT, COMPLETE, complete, error.object, 6, -EINVAL),
	};

	(void)state;
	for (size_t i = 0; i < COUNT(cases); i++)
		run_case(&cases[i]);
}

/* Labels come from a file, and who reads them must find their end. */
static void test_texts_of_replies(void **state)
{
	static const struct {
		uint32_t type;
		size_t offset;
	} texts[] = {
		{ DIOH_MSG_ATTACH_IMAGE, offsetof(struct dioh_msg_attach_image_reply, label_before) },
		{ DIOH_MSG_ATTACH_IMAGE, offsetof(struct dioh_msg_attach_image_reply, label_after) },
		{ DIOH_MSG_SEAL, offsetof(struct dioh_msg_seal_reply, context) },
	};

	(void)state;
	for (size_t i = 0; i < COUNT(texts); i++) {
		struct sample changed = *find(REPLY, texts[i].type);

		memset(&changed.payload[texts[i].offset], 'l', DIOH_LABEL_BYTES - 1);
		assert_int_equal(check_sample(&changed), 0);
		changed.payload[texts[i].offset + DIOH_LABEL_BYTES - 1] = 'l';
		assert_int_equal(check_sample(&changed), -EBADMSG);
	}
}

static void test_progress_entries(void **state)
{
	struct sample changed = *find(EVENT, DIOH_MSG_PROGRESS);
	struct dioh_msg_progress progress = { .phase = DIOH_PHASE_SYNC };
	struct dioh_msg_progress_entry entry = { .phase = DIOH_PHASE_SYNC };
	uint32_t count;

	(void)state;
	for (count = 0; count <= DIOH_TRANSFERS_MAX + 1; count++) {
		progress.count = count;
		memcpy(changed.payload, &progress, sizeof(progress));
		changed.size = sizeof(progress) + count * (uint32_t)sizeof(entry);
		memcpy(&changed.payload[changed.size], &entry,
		       sizeof(entry)); /* for the next round */
		assert_int_equal(check_sample(&changed), count > DIOH_TRANSFERS_MAX ? -EINVAL : 0);
	}
	progress.count = 2;
	memcpy(changed.payload, &progress, sizeof(progress));
	changed.size = sizeof(progress) + 2 * sizeof(entry);
	entry.phase = DIOH_PHASE_FINISHED + 1;
	memcpy(&changed.payload[sizeof(progress) + sizeof(entry)], &entry, sizeof(entry));
	assert_int_equal(check_sample(&changed), -EINVAL);
}

/* ---- entries --------------------------------------------------------------------------------- */

static void put(enum direction direction, uint32_t type, const struct dioh_msg_entry *entry,
                int expected)
{
	struct sample changed = *find(direction, type);
	struct dioh_error err;
	struct dioh_msg_header header = header_of(&changed);

	memcpy(&changed.payload[changed.size - sizeof(*entry)], entry, sizeof(*entry));
	expect(&changed, expected, check_sample(&changed), "second entry's kind", entry->kind);
	if (expected == 0)
		return;
	(void)check_at(direction, type, &header, changed.payload, 0, &err);
	assert_non_null(strstr(err.text, "entry 1: "));
}

struct entry_case {
	size_t offset;
	size_t bytes;
	uint64_t value;
	int expected_put;
	int expected_got;
};

#define ENTRY(field, value, put_, got) \
	{ \
		offsetof(struct dioh_msg_entry, field), \
			sizeof(((struct dioh_msg_entry *)0)->field), value, put_, got \
	}

static void run_entry_cases(const struct dioh_msg_entry *right, const struct entry_case *cases,
                            size_t count)
{
	put(REQUEST, DIOH_MSG_PUT_TABLE, right, 0);
	put(REPLY, DIOH_MSG_GET_TABLE, right, 0);
	for (size_t i = 0; i < count; i++) {
		struct dioh_msg_entry entry = *right;

		memcpy((uint8_t *)&entry + cases[i].offset, &cases[i].value, cases[i].bytes);
		print_message("offset %zu value %" PRIu64 "\n", cases[i].offset, cases[i].value);
		put(REQUEST, DIOH_MSG_PUT_TABLE, &entry, cases[i].expected_put);
		put(REPLY, DIOH_MSG_GET_TABLE, &entry, cases[i].expected_got);
	}
}

static void test_region_entries(void **state)
{
	static const struct entry_case cases[] = {
		ENTRY(kind, 0, -EINVAL, -EINVAL),
		ENTRY(kind, 3, -EINVAL, -EINVAL),
		ENTRY(number, UINT32_MAX, 0, 0),
		ENTRY(flags, DIOH_ENTRY_GUEST_ADDRESS | DIOH_ENTRY_CHECKSUMS, -EINVAL, 0),
		ENTRY(flags, DIOH_ENTRY_GUEST_ADDRESS | DIOH_ENTRY_IN_STREAM, -EINVAL, 0),
		ENTRY(flags, DIOH_ENTRY_GUEST_ADDRESS | 8, -EINVAL, -EINVAL),
		ENTRY(flags, 0, -EINVAL, 0), /* with an address */
		ENTRY(reserved, 1, -EBADMSG, -EBADMSG),
		ENTRY(bytes, 0, -EINVAL, -EINVAL),
		ENTRY(bytes, 4096, 0, 0),
		ENTRY(bytes, 4097, -EINVAL, -EINVAL),
		ENTRY(bytes, DIOH_REGION_BYTES_MAX, 0, 0),
		ENTRY(bytes, DIOH_REGION_BYTES_MAX + 4096, -EINVAL, -EINVAL),
		ENTRY(bytes, UINT64_MAX - 4095, -EINVAL, -EINVAL),
		ENTRY(image_offset, 512, -EINVAL, -EINVAL),
		ENTRY(image_offset, DIOH_OFFSET_MAX - 8192, 0, 0),
		ENTRY(image_offset, DIOH_OFFSET_MAX - 4096, -EINVAL, -EINVAL),
		ENTRY(image_offset, DIOH_OFFSET_MAX, -EINVAL, -EINVAL),
		ENTRY(image_offset, UINT64_MAX - 4095, -EINVAL, -EINVAL),
		ENTRY(present_bytes, 4096, -EINVAL, 0),
		ENTRY(present_bytes, 12288, -EINVAL, -EINVAL),
		ENTRY(name[0], 0, -EBADMSG, -EINVAL),
		ENTRY(name[1], '\n', -EINVAL, 0),
		ENTRY(name[1], 0x1f, -EINVAL, 0),
		ENTRY(name[1], 0x7f, -EINVAL, 0),
		ENTRY(name[1], 0x80, 0, 0),
		ENTRY(name[100], 'x', -EBADMSG,
		      0), /* what an image has behind a name is not looked at */
	};

	(void)state;
	run_entry_cases(&region, cases, COUNT(cases));
}

static void test_stream_entries(void **state)
{
	static const struct entry_case cases[] = {
		ENTRY(flags, DIOH_ENTRY_CHECKSUMS, -EINVAL, 0),
		ENTRY(flags, DIOH_ENTRY_GUEST_ADDRESS, -EINVAL, 0),
		ENTRY(guest_address, 1, -EINVAL, 0),
		ENTRY(bytes, 0, 0, 0),
		ENTRY(bytes, DIOH_OFFSET_MAX - 17, 0, 0),
		ENTRY(bytes, DIOH_OFFSET_MAX - 16, -EINVAL, -EINVAL),
		ENTRY(bytes, DIOH_OFFSET_MAX, -EINVAL, -EINVAL),
		ENTRY(bytes, UINT64_MAX, -EINVAL, -EINVAL),
		ENTRY(image_offset, DIOH_OFFSET_MAX - 1, -EINVAL, -EINVAL),
		ENTRY(image_offset, UINT64_MAX, -EINVAL, -EINVAL),
		ENTRY(present_bytes, 12345, -EINVAL, 0),
		ENTRY(reserved, UINT32_MAX, -EBADMSG, -EBADMSG),
	};

	(void)state;
	run_entry_cases(&stream, cases, COUNT(cases));
}

static void test_entries_at_the_end_of_everything(void **state)
{
	struct dioh_msg_entry entry = stream;

	(void)state;
	entry.image_offset = 0;
	entry.bytes = DIOH_OFFSET_MAX;
	put(REQUEST, DIOH_MSG_PUT_TABLE, &entry, -EINVAL);
	entry.image_offset = DIOH_OFFSET_MAX;
	entry.bytes = 0;
	put(REQUEST, DIOH_MSG_PUT_TABLE, &entry, -EINVAL);
	entry.image_offset--;
	put(REQUEST, DIOH_MSG_PUT_TABLE, &entry, 0);
}

static void test_entry_names(void **state)
{
	struct dioh_msg_entry entry = region;

	(void)state;
	memset(entry.name, 0, sizeof(entry.name));
	put(REQUEST, DIOH_MSG_PUT_TABLE, &entry, -EINVAL);
	put(REPLY, DIOH_MSG_GET_TABLE, &entry, -EINVAL);
	memset(entry.name, 'n', sizeof(entry.name) - 1);
	put(REQUEST, DIOH_MSG_PUT_TABLE, &entry, 0);
	put(REPLY, DIOH_MSG_GET_TABLE, &entry, 0);
	entry.name[sizeof(entry.name) - 1] = 'n';
	put(REQUEST, DIOH_MSG_PUT_TABLE, &entry, -EBADMSG);
	put(REPLY, DIOH_MSG_GET_TABLE, &entry, -EBADMSG);
}

static void test_number_of_entries(void **state)
{
	struct sample *request = find(REQUEST, DIOH_MSG_PUT_TABLE);
	struct sample *reply = find(REPLY, DIOH_MSG_GET_TABLE);

	(void)state;
	for (uint32_t count = 0; count <= DIOH_ENTRIES_PER_MESSAGE_MAX + 1; count++) {
		struct dioh_msg_put_table table = { .first = 0, .count = count };
		bool many = count > DIOH_ENTRIES_PER_MESSAGE_MAX;
		struct sample changed = *request;

		memcpy(changed.payload, &table, sizeof(table));
		for (uint32_t i = 0; i < count; i++)
			memcpy(&changed.payload[sizeof(table) + i * sizeof(region)], &region,
			       sizeof(region));
		changed.size = (uint32_t)(sizeof(table) + count * sizeof(region));
		expect(request, many || count == 0 ? -EINVAL : 0, check_sample(&changed), "count",
		       count);
		changed.direction = REPLY;
		changed.type = DIOH_MSG_GET_TABLE;
		expect(reply, many ? -EINVAL : 0, check_sample(&changed), "count", count);
	}
}

/* What ends the session counts for more than what does not. */
static void test_malformed_before_out_of_range(void **state)
{
	struct sample changed = *find(REQUEST, DIOH_MSG_ATTACH_IMAGE);
	struct dioh_msg_attach_image image;
	struct dioh_msg_entry entries[2] = { region, stream };

	(void)state;
	memcpy(&image, changed.payload, sizeof(image));
	image.direction = 99;
	image.reserved = 1;
	memcpy(changed.payload, &image, sizeof(image));
	assert_int_equal(check_sample(&changed), -EBADMSG);

	changed = *find(REQUEST, DIOH_MSG_PUT_TABLE);
	entries[0].kind = 99;
	entries[1].reserved = 1;
	memcpy(&changed.payload[changed.size - sizeof(entries)], entries, sizeof(entries));
	assert_int_equal(check_sample(&changed), -EBADMSG);
}

static void test_sentences(void **state)
{
	struct sample changed = *find(REQUEST, DIOH_MSG_SAVE_MEMORY);
	struct dioh_msg_memory_transfer transfer;
	struct dioh_msg_header header = header_of(&changed);
	struct dioh_error err;

	(void)state;
	memcpy(&transfer, changed.payload, sizeof(transfer));
	transfer.region_offset = 4096;
	dioh_proto_check_request(&header, &transfer, 0, &err);
	assert_string_equal(err.text,
	                    "SAVE_MEMORY: region_offset 4096 is not a multiple of 1048576");
	header.type = DIOH_MSG_SEAL + 1;
	header.size = 0;
	dioh_proto_check_reply(&header, NULL, 0, DIOH_MSG_SEAL, ID, &err);
	assert_string_equal(err.text, "SEAL's reply: its size 0 is not within 280 and 280");
	header.type = 4711;
	dioh_proto_check_request(&header, NULL, 0, &err);
	assert_string_equal(err.text, "unknown: no request has the type 4711");
}

/* ---- names ----------------------------------------------------------------------------------- */

static void test_names(void **state)
{
	(void)state;
	assert_string_equal(dioh_msg_name(DIOH_MSG_HELLO), "HELLO");
	assert_string_equal(dioh_msg_name(DIOH_MSG_FINISH + 1), "FINISH");
	assert_string_equal(dioh_msg_name(DIOH_MSG_COMPLETE), "COMPLETE");
	assert_string_equal(dioh_msg_name(DIOH_MSG_COMPLETE + 1), "unknown");
	assert_string_equal(dioh_msg_name(0), "unknown");
	assert_string_equal(dioh_msg_name(UINT32_MAX), "unknown");
	for (uint32_t type = DIOH_MSG_HELLO; type <= DIOH_MSG_FINISH + 1; type++)
		assert_string_not_equal(dioh_msg_name(type), "unknown");
	assert_string_equal(dioh_engine_name(DIOH_ENGINE_IO_URING), "io_uring");
	assert_string_equal(dioh_engine_name(DIOH_ENGINE_SYNC + 1), "unknown");
	assert_string_equal(dioh_layout_name(DIOH_LAYOUT_CONTAINER), "container");
	assert_string_equal(dioh_layout_name(UINT32_MAX), "unknown");
	assert_string_equal(dioh_feature_name(0), "none");
	assert_string_equal(dioh_feature_name(DIOH_FEATURE_STREAM | DIOH_FEATURE_LABEL), "stream");
	assert_string_equal(dioh_feature_name(DIOH_FEATURE_LAYOUT_MAPPED_RAM), "layout-mapped-ram");
	assert_string_equal(dioh_feature_name(DIOH_FEATURE_CONTINUE), "continue");
	assert_string_equal(dioh_feature_name(DIOH_FEATURE_MULTIFD), "multifd");
	assert_string_equal(dioh_feature_name(DIOH_FEATURE_VERBATIM), "verbatim");
	assert_string_equal(dioh_feature_name(UINT64_C(1) << 63), "unknown");
	assert_string_equal(dioh_layer_name(0), "none");
	assert_string_equal(dioh_layer_name(DIOH_LAYER_SECCOMP), "seccomp");
	assert_string_equal(dioh_layer_name(DIOH_LAYER_SELINUX), "selinux");
	assert_string_equal(dioh_layer_name(UINT32_C(1) << 31), "unknown");
}

/* ---- anything -------------------------------------------------------------------------------- */

/* Nothing crashes, nothing is read past the payload, and every answer is one of those promised. */
static void test_random_changes(void **state)
{
	unsigned accepted = 0, refused = 0;

	(void)state;
	random_set_up(NULL);
	for (unsigned round = 0; round < ROUNDS; round++) {
		struct sample *changed = samples[random_u64() % sample_count];
		uint8_t before[DIOH_PAYLOAD_BYTES_MAX];
		struct dioh_msg_header header = header_of(changed);
		int r;

		memcpy(before, changed->payload, changed->size);
		for (unsigned i = 0; i < 1 + random_u64() % 3 && changed->size > 0; i++)
			changed->payload[random_u64() % changed->size] = (uint8_t)random_u64();
		if (random_u64() % 8 == 0)
			header.size = (uint32_t)(random_u64() % (changed->size + 1));
		r = check(changed, &header, changed->payload, (unsigned)(random_u64() % 4));
		memcpy(changed->payload, before, changed->size);
		assert_true(r == 0 || r == -EBADMSG || r == -EINVAL);
		accepted += r == 0;
		refused += r < 0;
	}
	assert_true(accepted > 0 && refused > 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_samples_are_right),
		cmocka_unit_test(test_every_other_length),
		cmocka_unit_test(test_too_long_for_any),
		cmocka_unit_test(test_every_number_of_descriptors),
		cmocka_unit_test(test_headers),
		cmocka_unit_test(test_ids),
		cmocka_unit_test(test_unknown_types),
		cmocka_unit_test(test_unknown_and_malformed),
		cmocka_unit_test(test_reply_to_another_request),
		cmocka_unit_test(test_error_replies),
		cmocka_unit_test(test_fields_of_errors),
		cmocka_unit_test(test_complete_without_error),
		cmocka_unit_test(test_reserved),
		cmocka_unit_test(test_values_before_seal),
		cmocka_unit_test(test_values_about_image),
		cmocka_unit_test(test_image_as_a_whole),
		cmocka_unit_test(test_selection_without_memory),
		cmocka_unit_test(test_what_only_raw_says),
		cmocka_unit_test(test_mapped_ram_stream),
		cmocka_unit_test(test_values_about_transfers),
		cmocka_unit_test(test_place_of_no_patch),
		cmocka_unit_test(test_longest_patch),
		cmocka_unit_test(test_values_of_replies),
		cmocka_unit_test(test_texts_of_replies),
		cmocka_unit_test(test_progress_entries),
		cmocka_unit_test(test_region_entries),
		cmocka_unit_test(test_stream_entries),
		cmocka_unit_test(test_entries_at_the_end_of_everything),
		cmocka_unit_test(test_entry_names),
		cmocka_unit_test(test_number_of_entries),
		cmocka_unit_test(test_malformed_before_out_of_range),
		cmocka_unit_test(test_sentences),
		cmocka_unit_test(test_names),
		cmocka_unit_test(test_random_changes),
	};

	return cmocka_run_group_tests(tests, make_samples, free_samples);
}
