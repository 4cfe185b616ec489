/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test_hostile.c - records whose checksums are right and whose contents are not: made by somebody who wants the helper
 * to read, write or allocate what it should not. They are refused, whatever the flags are, and the helper lives on.
 * DIOH_SEED=N for other random ones.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "cleanup.h"
#include "moves.h"
#include "pages.h"
#include "pattern.h"
#include "record.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

#define REGION_BYTES (MIB + 2 * PAGE)
#define STREAM_BYTES (4 * MIB + 100)

#define REGIONS 2u
#define STREAMS 2u
#define EXTENTS 3u

struct record {
	struct dioh_record_head head;
	struct dioh_record_region regions[REGIONS];
	struct dioh_record_stream streams[STREAMS];
	struct dioh_record_extent extents[EXTENTS];
};

static struct record right;
static int image;
static uint64_t image_bytes;

/* ---- the image ---- */

static void describe(struct moves *m)
{
	*m = (struct moves)MOVES(WAY_CONTAINER, fixture_path("image"));
	m->header = "manager";
	m->header_bytes = 8;
	moves_add_region(m, 0, REGION_BYTES);
	moves_add_region(m, 1, REGION_BYTES);
	moves_add_stream(m, 0, 0);
	moves_add_stream(m, 1, 0);
}

static void read_at(void *bytes, size_t count, uint64_t offset)
{
	assert_int_equal(pread(image, bytes, count, (off_t)offset), count);
}

static void write_at(const void *bytes, size_t count, uint64_t offset)
{
	assert_int_equal(pwrite(image, bytes, count, (off_t)offset), count);
}

static int set_up(void **state)
{
	int memory = must_memfd("memory", REGION_BYTES, 0);
	struct moves m;

	(void)state;
	must_fill_mixed(memory, REGION_BYTES, 1, 20, 1);
	describe(&m);
	moves_start(&m, DIOH_DIRECTION_SAVE);
	for (unsigned i = 0; i < 2; i++) {
		int source = must_open(fixture_path("source"), O_RDWR | O_CREAT | O_TRUNC);

		must_write_pattern(source, 0, i ? MIB : STREAM_BYTES, i);
		moves_attach(&m, i, memory, -1);
		moves_attach_stream(&m, i, source);
		unlink(fixture_path("source"));
	}
	must(moves_create(&m), &m.err);
	for (unsigned i = 0; i < 2; i++) {
		must(moves_region(&m, i, 0), &m.err);
		must(moves_wait(&m, moves_begin_stream(&m, i, i, 0)), &m.err);
	}
	must(moves_finish(&m, DIOH_FINISH_DURABLE), &m.err);
	moves_end(&m, 0);
	close(memory);
	image = must_open(fixture_path("image"), O_RDWR);
	image_bytes = must_bytes(image);
	read_at(&right.head, sizeof(right.head), 0);
	assert_int_equal(right.head.extent_count, EXTENTS);
	read_at(right.regions, sizeof(right.regions), right.head.regions.offset);
	read_at(right.streams, sizeof(right.streams), right.head.streams.offset);
	read_at(right.extents, sizeof(right.extents), right.head.extents.offset);
	return 0;
}

/* Writes a record with all its checksums right; tables stand where the right one has them. */
static void reseal(const struct record *wrong)
{
	struct record r = *wrong;

	r.head.regions.crc32c = dioh_crc32c(0, r.regions, sizeof(r.regions));
	r.head.streams.crc32c = dioh_crc32c(0, r.streams, sizeof(r.streams));
	r.head.extents.crc32c = dioh_crc32c(0, r.extents, sizeof(r.extents));
	r.head.crc32c = dioh_crc32c(0, &r.head, sizeof(r.head) - 4);
	write_at(&r.head, sizeof(r.head), 0);
	write_at(r.regions, sizeof(r.regions), right.head.regions.offset);
	write_at(r.streams, sizeof(r.streams), right.head.streams.offset);
	write_at(r.extents, sizeof(r.extents), right.head.extents.offset);
}

static void look(struct moves *m, int memory)
{
	describe(m);
	moves_start(m, DIOH_DIRECTION_LOAD);
	moves_attach(m, 0, memory, -1);
	moves_attach(m, 1, memory, -1);
	moves_attach_stream(m, 0, must_open(fixture_path("sink"), O_RDWR | O_CREAT | O_TRUNC));
	must_seal(m->session);
}

/* ---- one wrong field ---- */

#define FIELD(member) offsetof(struct record, member), sizeof(((struct record *)0)->member)
#define FIRST_PAGES (right.regions[0].pages_offset)

struct edit {
	const char *what;
	size_t offset;
	size_t bytes;
	uint64_t value;
};

static void expect_refused(struct moves *m, const struct edit *edit)
{
	static const uint32_t flags[] = { 0, DIOH_OPEN_INSPECT, DIOH_OPEN_ACCEPT_WRITTEN };
	struct record wrong = right;

	memcpy((uint8_t *)&wrong + edit->offset, &edit->value, edit->bytes);
	if (memcmp(&wrong, &right, sizeof(wrong)) == 0)
		fail_msg("%s: nothing was changed", edit->what);
	reseal(&wrong);
	for (unsigned i = 0; i < COUNT(flags); i++) {
		if (moves_open_sealed(m, flags[i]) != -EBADMSG)
			fail_msg("%s: %llx, flags %u: %s", edit->what, (unsigned long long)edit->value, flags[i], m->err.text);
		if (m->err.object != DIOH_OBJECT_IMAGE ||
		    (m->err.operation != DIOH_OP_PARSE && m->err.operation != DIOH_OP_CHECKSUM))
			fail_msg("%s: operation %u, object %u: %s", edit->what, m->err.operation, m->err.object, m->err.text);
	}
}

static void all_refused(const struct edit *edits, size_t count)
{
	int memory = must_memfd("loaded", REGION_BYTES, 0);
	struct moves m;

	look(&m, memory);
	for (size_t i = 0; i < count; i++)
		expect_refused(&m, &edits[i]);
	reseal(&right);
	must(moves_open_sealed(&m, 0), &m.err);
	moves_end(&m, 0);
	close(memory);
}

static void heads(void **state)
{
	const struct edit edits[] = {
		{ "state", FIELD(head.state), 4 },
		{ "state", FIELD(head.state), 0 },
		{ "page size", FIELD(head.page_bytes), 65536 },
		{ "chunk size", FIELD(head.chunk_bytes), 4096 },
		{ "regions", FIELD(head.region_count), UINT32_MAX },
		{ "regions", FIELD(head.region_count), DIOH_REGIONS_MAX + 1 },
		{ "regions", FIELD(head.region_count), 1 },
		{ "streams", FIELD(head.stream_count), 0x80000000 },
		{ "extents", FIELD(head.extent_count), DIOH_EXTENTS_MAX + 1 },
		{ "extents", FIELD(head.extent_count), UINT32_MAX },
		{ "image bytes", FIELD(head.image_bytes), UINT64_MAX },
		{ "image bytes", FIELD(head.image_bytes), image_bytes + 1 },
		{ "image bytes", FIELD(head.image_bytes), 4095 },
		{ "image bytes", FIELD(head.image_bytes), image_bytes / 2 },
		{ "header", FIELD(head.header.offset), UINT64_MAX - 4095 },
		{ "header", FIELD(head.header.offset), 0 },
		{ "header", FIELD(head.header.offset), 4097 },
		{ "header", FIELD(head.header.bytes), UINT64_MAX },
		{ "header", FIELD(head.header.bytes), DIOH_HEADER_BYTES_MAX + 1 },
		{ "header", FIELD(head.header.reserved), 1 },
		{ "region table", FIELD(head.regions.offset), image_bytes },
		{ "region table", FIELD(head.regions.offset), 0 },
		{ "region table", FIELD(head.regions.bytes), 384 },
		{ "region table", FIELD(head.regions.bytes), UINT64_MAX },
		{ "stream table", FIELD(head.streams.offset), right.head.regions.offset },
		{ "extent table", FIELD(head.extents.offset), right.head.streams.offset },
		{ "extent table", FIELD(head.extents.bytes), 0 },
		{ "reserved", FIELD(head.reserved[3923]), 1 },
	};

	(void)state;
	all_refused(edits, COUNT(edits));
}

static void regions(void **state)
{
	const struct edit edits[] = {
		{ "flags", FIELD(regions[0].flags), 4 },
		{ "bytes", FIELD(regions[0].bytes), 0 },
		{ "bytes", FIELD(regions[0].bytes), REGION_BYTES + 1 },
		{ "bytes", FIELD(regions[0].bytes), REGION_BYTES + 64 * PAGE },
		{ "bytes", FIELD(regions[0].bytes), UINT64_MAX - 4095 },
		{ "bytes", FIELD(regions[0].bytes), DIOH_REGION_BYTES_MAX + PAGE },
		{ "pages", FIELD(regions[0].pages_offset), 0 },
		{ "pages", FIELD(regions[0].pages_offset), FIRST_PAGES + PAGE },
		{ "pages", FIELD(regions[0].pages_offset), UINT64_MAX - MIB + 1 },
		{ "pages", FIELD(regions[0].pages_offset), UINT64_C(1) << 62 },
		{ "pages", FIELD(regions[0].pages_offset), (image_bytes + MIB) / MIB * MIB },
		{ "pages", FIELD(regions[1].pages_offset), FIRST_PAGES },
		{ "pages", FIELD(regions[1].pages_offset), FIRST_PAGES + MIB },
		{ "present", FIELD(regions[0].present_pages), UINT64_MAX },
		{ "present", FIELD(regions[0].present_pages), right.regions[0].present_pages + 1 },
		{ "present", FIELD(regions[0].present_pages), REGION_BYTES / PAGE + 1 },
		{ "bitmap", FIELD(regions[0].bitmap.offset), 0 },
		{ "bitmap", FIELD(regions[0].bitmap.offset), UINT64_MAX - 4095 },
		{ "bitmap", FIELD(regions[0].bitmap.offset), image_bytes / PAGE * PAGE },
		{ "bitmap", FIELD(regions[0].bitmap.offset), FIRST_PAGES },
		{ "bitmap", FIELD(regions[0].bitmap.offset), right.regions[0].bitmap.offset + 8 },
		{ "bitmap", FIELD(regions[0].bitmap.bytes), 32 },
		{ "bitmap", FIELD(regions[0].bitmap.bytes), UINT64_MAX },
		{ "bitmap", FIELD(regions[1].bitmap.offset), right.regions[0].bitmap.offset },
		{ "bitmap", FIELD(regions[1].bitmap.crc32c), 0 },
		{ "checksums", FIELD(regions[0].checksums.offset), UINT64_MAX },
		{ "checksums", FIELD(regions[0].checksums.offset), right.head.extents.offset },
		{ "checksums", FIELD(regions[0].checksums.bytes), 4 },
		{ "checksums", FIELD(regions[0].checksums.bytes), 0 },
		{ "checksums", FIELD(regions[0].checksums.crc32c), 1 },
		{ "number twice", FIELD(regions[1].number), 0 },
		{ "name", FIELD(regions[0].name[0]), 0 },
		{ "name twice", FIELD(regions[1].name[7]), '0' },
		{ "reserved", FIELD(regions[0].reserved[4]), 1 },
		{ "reserved", FIELD(regions[1].bitmap.reserved), 1 },
	};

	(void)state;
	all_refused(edits, COUNT(edits));
}

static void streams(void **state)
{
	const struct edit edits[] = {
		{ "flags", FIELD(streams[0].flags), 1 },
		{ "bytes", FIELD(streams[0].bytes), STREAM_BYTES - 1 },
		{ "bytes", FIELD(streams[0].bytes), UINT64_MAX },
		{ "bytes", FIELD(streams[1].bytes), 0 },
		{ "first extent", FIELD(streams[0].first_extent), 1 },
		{ "first extent", FIELD(streams[1].first_extent), UINT32_MAX },
		{ "extents", FIELD(streams[1].extent_count), UINT32_MAX },
		{ "extents", FIELD(streams[1].extent_count), 2 },
		{ "extents", FIELD(streams[0].extent_count), 1 },
		{ "number twice", FIELD(streams[1].number), 0 },
		{ "name", FIELD(streams[0].name[0]), 0 },
		{ "reserved", FIELD(streams[0].reserved[0]), 1 },
		{ "extent's offset", FIELD(extents[0].offset), 0 },
		{ "extent's offset", FIELD(extents[0].offset), UINT64_MAX - 4095 },
		{ "extent's offset", FIELD(extents[0].offset), right.extents[0].offset + 1 },
		{ "extent's offset", FIELD(extents[1].offset), right.extents[0].offset },
		{ "extent's offset", FIELD(extents[1].offset), right.head.regions.offset },
		{ "extent's offset", FIELD(extents[2].offset), FIRST_PAGES },
		{ "extent's bytes", FIELD(extents[0].bytes), 0 },
		{ "extent's bytes", FIELD(extents[0].bytes), 4 * MIB - 1 },
		{ "extent's bytes", FIELD(extents[0].bytes), UINT64_MAX },
		{ "extent's bytes", FIELD(extents[0].bytes), GIB + MIB },
		{ "extent's checksums", FIELD(extents[0].checksums.offset), 0 },
		{ "extent's checksums", FIELD(extents[0].checksums.offset), right.extents[0].offset },
		{ "extent's checksums", FIELD(extents[0].checksums.offset), UINT64_MAX - 4095 },
		{ "extent's checksums", FIELD(extents[0].checksums.bytes), 4096 },
		{ "extent's checksums", FIELD(extents[0].checksums.bytes), UINT64_MAX },
		{ "extent's checksums", FIELD(extents[0].checksums.crc32c), 1 },
		{ "extent's checksums", FIELD(extents[0].checksums.reserved), 1 },
	};

	(void)state;
	all_refused(edits, COUNT(edits));
}

/* A name without an end, and bits for pages that there are not. */
static void names_and_bitmaps(void **state)
{
	const uint64_t last_byte = right.regions[0].bitmap.offset + right.regions[0].bitmap.bytes - 1;
	int memory = must_memfd("loaded", REGION_BYTES, 0);
	uint8_t bitmap[40], beyond = 0x80;
	struct record wrong = right;
	struct moves m;

	(void)state;
	look(&m, memory);
	memset(wrong.regions[1].name, 'x', sizeof(wrong.regions[1].name));
	reseal(&wrong);
	assert_int_equal(moves_open_sealed(&m, 0), -EBADMSG);
	moves_assert_error(&m, EBADMSG, PARSE, IMAGE, 0);

	wrong = right;
	assert_int_equal(right.regions[0].bitmap.bytes, sizeof(bitmap));
	write_at(&beyond, 1, last_byte);
	read_at(bitmap, sizeof(bitmap), right.regions[0].bitmap.offset);
	wrong.regions[0].bitmap.crc32c = dioh_crc32c(0, bitmap, sizeof(bitmap));
	wrong.regions[0].present_pages++;
	reseal(&wrong);
	assert_int_equal(moves_open_sealed(&m, 0), -EBADMSG);
	moves_assert_error(&m, EBADMSG, PARSE, IMAGE, 0);
	beyond = 0;
	write_at(&beyond, 1, last_byte);
	reseal(&right);
	must(moves_open_sealed(&m, 0), &m.err);
	moves_end(&m, 0);
	close(memory);
}

/* ---- anything ---- */

static uint64_t strange_value(uint64_t *random)
{
	const uint64_t values[] = { 0, 1, 4095, 4096, MIB, UINT32_MAX, UINT64_MAX, UINT64_MAX - 4095, image_bytes,
		                    UINT64_C(1) << 62, UINT64_C(1) << 63, test_random(random) };
	uint64_t value = values[test_random(random) % COUNT(values)];

	return test_random(random) % 3 ? value : value + (test_random(random) % 17 - 8) * PAGE;
}

/* A few words of the record become strange ones; names are left alone, since anything is right there. */
static struct record strange_record(uint64_t *random)
{
	struct record wrong = right;
	uint64_t *words = (uint64_t *)&wrong;

	for (unsigned i = 0; i < 1 + test_random(random) % 3; i++) {
		size_t from = sizeof(wrong.head) / 8, at;

		if (test_random(random) % 4 == 0)
			at = 2 + test_random(random) % 20;
		else
			at = from + test_random(random) % (sizeof(wrong) / 8 - from);
		words[at] = strange_value(random);
	}
	if (test_random(random) % 4 == 0) /* tables are looked at without their checksums then */
		wrong.head.state = DIOH_STATE_PARTIAL;
	return wrong;
}

static void try_to_load(struct moves *m)
{
	const struct dioh_msg_memory_transfer what = { .length = REGION_BYTES };
	const struct dioh_msg_stream_transfer stream = { .stream = 0 };
	struct dioh_msg_entry entries[8];
	uint32_t id, count;

	must(dioh_get_table(m->session, 0, 8, entries, &count, &m->err), &m->err);
	if (dioh_load_memory(m->session, &what, &id, &m->err) == 0)
		(void)moves_wait(m, id);
	if (dioh_load_stream(m->session, &stream, &id, &m->err) == 0)
		(void)moves_wait(m, id);
}

static void anything(void **state)
{
	uint64_t random = test_seed();
	int memory = must_memfd("loaded", REGION_BYTES, 0);
	unsigned refused = 0, accepted = 0;
	struct moves m;

	(void)state;
	look(&m, memory);
	for (unsigned i = 0; i < 500; i++) {
		struct record wrong = strange_record(&random);

		reseal(&wrong);
		if (moves_open_sealed(&m, i % 3 ? 0 : DIOH_OPEN_INSPECT) < 0) {
			assert_int_not_equal(m.err.code, EPIPE);
			refused++;
			continue;
		}
		accepted++;
		try_to_load(&m);
		moves_assert_alive(&m);
		moves_end(&m, 0);
		look(&m, memory);
	}
	reseal(&right);
	must(moves_open_sealed(&m, 0), &m.err);
	moves_end(&m, 0);
	print_message("%u were refused, %u accepted\n", refused, accepted);
	assert_true(refused > 100 && accepted > 20);
	close(memory);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(heads),
		cmocka_unit_test(regions),
		cmocka_unit_test(streams),
		cmocka_unit_test(names_and_bitmaps),
		cmocka_unit_test(anything),
	};

	return cmocka_run_group_tests_name("hostile", tests, set_up, NULL);
}
