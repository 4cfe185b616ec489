/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test_mapped_ram.c - streams of QEMU's become mapped-ram images and come back as streams and memories; what cannot be
 * an image is refused, before the older one is touched wherever that can be known. QEMU itself: test_qemu_mapped_ram.py;
 * damaged and foreign images: test_mapped_ram_images.c.
 */
/* timeout: 120 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "align.h"
#include "guest_image.h"
#include "page_sink.h"
#include "pattern.h"
#include "raw_manager.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

#define SAVE DIOH_DIRECTION_SAVE
#define LOAD DIOH_DIRECTION_LOAD
#define RAM GUEST_IN(GUEST_RAM)

/* ---- there and back ---- */

static void round_trip_of(const struct guest *g, struct moves *m, size_t piece, uint32_t flags, uint32_t in_memory)
{
	unlink(m->path);
	must_guest_save(m, g, piece, flags, DIOH_FINISH_DURABLE);
	must_guest_load(g, &m->way, m->path, 0, in_memory);
}

static void by_every_way(void **state)
{
	struct guest g;

	(void)state;
	guest_make(&g, RAM);
	for (unsigned i = 0; i < 12; i++) {
		struct way way = WAY_MAPPED_RAM;
		struct moves m;

		way.engine = i & 1 ? DIOH_ENGINE_SYNC : DIOH_ENGINE_IO_URING;
		way.fds = i / 2 % 3;
		way.base_offset = i >= 6 ? 5 * PAGE : 0;
		way.block_bytes = i % 5 == 4 ? 65536 : 0;
		if (!way_possible(&way))
			continue;
		m = (struct moves)MOVES(way, fixture_path("image"));
		round_trip_of(&g, &m, i % 3 == 2 ? 4093 : 0, 0, RAM);
	}
	guest_free(&g);
}

/* What a stream can have in memories, and what the loader wants to have in memories, is all the same. */
static void any_blocks_in_memories(void **state)
{
	static const uint32_t masks[] = { 0, RAM, RAM | GUEST_IN(GUEST_VGA), GUEST_IN(GUEST_TINY), 15 };
	char path[512];

	(void)state;
	snprintf(path, sizeof(path), "%s", fixture_path("image"));
	for (unsigned i = 0; i < COUNT(masks); i++) {
		struct guest g;

		guest_make(&g, masks[i]);
		must_guest_image(&g, path);
		must_guest_load(&g, &WAY_MAPPED_RAM, path, 0, masks[i]);
		for (unsigned k = 1; k < COUNT(masks); k++)
			must_guest_load(&g, &WAY_MAPPED_RAM, path, masks[k], masks[k]);
		guest_free(&g);
	}
}

static void byte_by_byte(void **state)
{
	static const struct dioh_qemu_block block = { .name = "small", .bytes = 5 * PAGE };
	struct moves m = MOVES(WAY_MAPPED_RAM, fixture_path("image"));
	struct guest g = { .memories = { -1 } };

	(void)state;
	qemu_start(&g.q, &block, 1, 0);
	for (unsigned i = 0; i < QEMU_BLOCKS_MAX; i++)
		g.memories[i] = -1;
	qemu_put_setup(&g.q);
	qemu_put_section(&g.q, QEMU_END);
	qemu_put_page(&g.q, 0, 3, 9);
	qemu_put_page(&g.q, 0, 0, 8);
	qemu_put_section_end(&g.q);
	qemu_put_device(&g.q, 7, 1000, 3);
	qemu_put_end(&g.q);
	round_trip_of(&g, &m, 1, 0, 0);
	guest_free(&g);
}

/* Pages go to and fro between chunks; what came last counts, be it a page of zeros. */
static void pages_that_come_again(void **state)
{
	struct moves m = MOVES(WAY_MAPPED_RAM, fixture_path("image"));
	uint8_t zeros[PAGE] = { 0 };
	uint64_t random = test_seed();
	struct guest g;

	(void)state;
	guest_start(&g, RAM);
	for (unsigned part = 0; part < 4; part++) {
		qemu_put_section(&g.q, QEMU_PART);
		for (unsigned i = 0; i < 400; i++) {
			unsigned block = 1 + test_random(&random) % 3;
			uint64_t page = test_random(&random) % (g.q.blocks[block].bytes / PAGE);
			unsigned kind = test_random(&random) % 4;

			if (kind == 3)
				qemu_put_page_bytes(&g.q, block, page, zeros);
			else
				qemu_put_page(&g.q, block, page, kind ? part * 1000 + i : 0);
		}
		qemu_put_section_end(&g.q);
	}
	qemu_put_section(&g.q, QEMU_END);
	qemu_put_page(&g.q, GUEST_VGA, GUEST_VGA_BYTES / PAGE - 1, 5);
	qemu_put_page(&g.q, GUEST_VGA, 0, 0);
	qemu_put_section_end(&g.q);
	qemu_put_end(&g.q);
	round_trip_of(&g, &m, 0, 0, RAM);
	guest_free(&g);
}

static void start_one_block(struct guest *g, const char *name, uint64_t pages)
{
	struct dioh_qemu_block block = { .bytes = pages * PAGE };

	snprintf(block.name, sizeof(block.name), "%s", name);
	memset(g, 0, sizeof(*g));
	for (unsigned i = 0; i < QEMU_BLOCKS_MAX; i++)
		g->memories[i] = -1;
	qemu_start(&g->q, &block, 1, 0);
	qemu_put_setup(&g->q);
}

/* More chunks than can be open at once, as a running guest's pages come: now here, now there. */
static void pages_of_many_chunks(void **state)
{
	const uint64_t pages = 45 * 256 + 7;
	uint64_t random = test_seed();
	struct guest g;

	(void)state;
	start_one_block(&g, "pc.ram", pages);
	qemu_put_section(&g.q, QEMU_PART);
	for (unsigned i = 0; i < 4000; i++)
		qemu_put_page(&g.q, 0, test_random(&random) % pages, test_random(&random) % 4 ? i + 1 : 0);
	qemu_put_section_end(&g.q);
	qemu_put_section(&g.q, QEMU_END);
	for (uint64_t page = 256; page < 512; page++) /* a whole chunk again: its checksum is its buffer's */
		qemu_put_page(&g.q, 0, page, page);
	qemu_put_section_end(&g.q);
	qemu_put_end(&g.q);
	for (unsigned engine = DIOH_ENGINE_IO_URING; engine <= DIOH_ENGINE_SYNC; engine++) {
		struct way way = WAY_MAPPED_RAM;
		struct moves m;

		way.engine = engine;
		m = (struct moves)MOVES(way, fixture_path("image"));
		if (way_possible(&way))
			round_trip_of(&g, &m, 0, engine == DIOH_ENGINE_SYNC ? DIOH_TRANSFER_NO_CHECKSUM : 0, 0);
	}
	guest_free(&g);
}

static bool image_has(const char *path, const uint8_t *page)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	uint8_t there[PAGE];
	bool found = false;

	assert_true(fd >= 0);
	for (off_t at = 0; !found && pread(fd, there, PAGE, at) == PAGE; at += PAGE)
		found = memcmp(there, page, PAGE) == 0;
	close(fd);
	return found;
}

/* Of flash, zero pages are in the image: a QEMU whose firmware is a newer one leaves absent ones as they are. */
static void zeros_of_small_blocks(void **state)
{
	const uint64_t sizes[] = { DIOH_SINK_ZEROS_BYTES - PAGE, DIOH_SINK_ZEROS_BYTES };
	const uint64_t present[] = { 6 + 12, 2 };
	uint8_t zeros[PAGE] = { 0 };

	(void)state;
	for (unsigned i = 0; i < COUNT(sizes); i++) {
		struct moves m = MOVES(WAY_MAPPED_RAM, fixture_path("image"));
		struct guest g;

		start_one_block(&g, "system.flash0", sizes[i] / PAGE);
		qemu_put_section(&g.q, QEMU_PART);
		qemu_put_page(&g.q, 0, 0, 1);
		qemu_put_page(&g.q, 0, 1, 0);
		qemu_put_page_bytes(&g.q, 0, 2, zeros);
		qemu_put_page(&g.q, 0, 3, 2);
		qemu_put_page(&g.q, 0, 4, 0);
		qemu_put_page(&g.q, 0, 300, 0);
		qemu_put_section_end(&g.q);
		for (unsigned chunk = 2; chunk < 14; chunk++) { /* so many that the first one is written before it comes again */
			qemu_put_section(&g.q, QEMU_PART);
			qemu_put_page(&g.q, 0, 256 * chunk + 44, 0);
			qemu_put_section_end(&g.q);
		}
		qemu_put_section(&g.q, QEMU_END);
		qemu_put_page(&g.q, 0, 3, 0);
		qemu_put_page(&g.q, 0, 4, 3);
		qemu_put_section_end(&g.q);
		qemu_put_end(&g.q);
		round_trip_of(&g, &m, 0, 0, 0);
		assert_int_equal(guest_present_bytes(&g, &m.way, m.path, 0), present[i] * PAGE);
		guest_free(&g);
	}
}

/* What the guest has overwritten with zeros is gone from the file, too. */
static void zeros_over_data(void **state)
{
	static const uint64_t zeroed[] = { 0, 5, 255, 256, 300, 301, 599 };
	uint8_t secret[COUNT(zeroed)][PAGE], kept[PAGE];
	struct guest g;

	(void)state;
	start_one_block(&g, "pc.ram", DIOH_SINK_ZEROS_BYTES / PAGE);
	qemu_put_section(&g.q, QEMU_PART);
	for (uint64_t page = 0; page < 600; page++)
		qemu_put_page(&g.q, 0, page, page + 1);
	qemu_put_section_end(&g.q);
	for (unsigned i = 0; i < COUNT(zeroed); i++)
		memcpy(secret[i], g.q.memory[0] + zeroed[i] * PAGE, PAGE);
	memcpy(kept, g.q.memory[0] + 6 * PAGE, PAGE);
	qemu_put_section(&g.q, QEMU_END);
	for (unsigned i = 0; i < COUNT(zeroed); i++)
		qemu_put_page(&g.q, 0, zeroed[i], 0);
	qemu_put_section_end(&g.q);
	qemu_put_end(&g.q);
	for (unsigned flags = 0; flags <= DIOH_TRANSFER_NO_CHECKSUM; flags += DIOH_TRANSFER_NO_CHECKSUM) {
		struct moves m = MOVES(WAY_MAPPED_RAM, fixture_path("image"));

		round_trip_of(&g, &m, 0, flags, 0);
		assert_true(image_has(m.path, kept));
		for (unsigned i = 0; i < COUNT(zeroed); i++)
			assert_false(image_has(m.path, secret[i]));
	}
	guest_free(&g);
}

/* In QEMU's stream zero pages of RAM are often all there is. */
static void nothing_but_zeros(void **state)
{
	struct moves m = MOVES(WAY_MAPPED_RAM, fixture_path("image"));
	struct guest g;

	(void)state;
	guest_start(&g, RAM);
	assert_int_equal(ftruncate(g.memories[GUEST_RAM], 0), 0);
	assert_int_equal(ftruncate(g.memories[GUEST_RAM], (off_t)GUEST_RAM_BYTES), 0);
	memset(g.q.memory[GUEST_RAM], 0, GUEST_RAM_BYTES);
	qemu_put_section(&g.q, QEMU_END);
	guest_put_zeros(&g);
	for (uint64_t page = 1; page < GUEST_VGA_BYTES / PAGE; page++)
		qemu_put_page(&g.q, GUEST_VGA, page, 0);
	qemu_put_section_end(&g.q);
	qemu_put_end(&g.q);
	round_trip_of(&g, &m, 0, 0, RAM);
	guest_free(&g);
}

static void long_device_states(void **state)
{
	static const size_t lengths[] = { 0, 1, MIB - 100, MIB, 3 * MIB + 12345 };

	(void)state;
	for (unsigned i = 0; i < COUNT(lengths); i++) {
		struct moves m = MOVES(WAY_MAPPED_RAM, fixture_path("image"));
		struct guest g;

		guest_start(&g, RAM);
		guest_finish_stream(&g, lengths[i]);
		round_trip_of(&g, &m, 0, 0, RAM);
		guest_free(&g);
	}
}

static void without_checksums(void **state)
{
	struct moves m = MOVES(WAY_MAPPED_RAM, fixture_path("image"));
	struct dioh_msg_entry entries[GUEST_BLOCKS + 1];
	struct guest_load l;
	struct guest g;
	uint32_t count;

	(void)state;
	guest_make(&g, RAM);
	round_trip_of(&g, &m, 0, DIOH_TRANSFER_NO_CHECKSUM, RAM);
	guest_look(&l, &g, &m.way, m.path);
	must(guest_open(&l, 0, 0), &l.m.err);
	must(dioh_get_table(l.m.session, 0, COUNT(entries), entries, &count, &l.m.err), &l.m.err);
	assert_int_equal(count, COUNT(entries));
	for (unsigned i = 0; i < count; i++)
		assert_int_equal(entries[i].flags & DIOH_ENTRY_CHECKSUMS, 0);
	guest_look_away(&l);
	guest_free(&g);
}

/* Stream and memory, which comes in pieces, side by side. */
static void all_at_once(void **state)
{
	struct moves m = MOVES(WAY_MAPPED_RAM, fixture_path("image"));
	uint32_t ids[1 + GUEST_RAM_BYTES / CHUNK + 1];
	struct qemu_feeder feeder;
	struct guest g;
	unsigned n = 0;

	(void)state;
	for (unsigned flags = 0; flags <= DIOH_TRANSFER_NO_CHECKSUM; flags += DIOH_TRANSFER_NO_CHECKSUM, n = 0) {
		m = (struct moves)MOVES(WAY_MAPPED_RAM, fixture_path("image"));
		guest_make(&g, RAM);
		must(guest_create(&m, &g, qemu_feed(&feeder, g.q.bytes, g.q.count, 0)), &m.err);
		ids[n++] = moves_begin_stream(&m, 0, GUEST_ENTRY, flags);
		for (uint64_t at = 0; at < GUEST_RAM_BYTES; at += CHUNK)
			ids[n++] = moves_begin(&m, &(struct dioh_msg_memory_transfer){
				.memory = GUEST_REGION(GUEST_RAM),
				.region = GUEST_REGION(GUEST_RAM),
				.memory_offset = at,
				.region_offset = at,
				.length = dioh_min(CHUNK, GUEST_RAM_BYTES - at),
				.flags = flags,
			});
		while (n > 0)
			must(moves_wait(&m, ids[--n]), &m.err);
		must(moves_finish(&m, DIOH_FINISH_DURABLE), &m.err);
		moves_end(&m, 0);
		qemu_feeder_join(&feeder);
		must_guest_load(&g, &m.way, m.path, 0, RAM);
		guest_free(&g);
	}
}

static void behind_a_header(void **state)
{
	static uint8_t header[70001], again[sizeof(header)];
	char path[512];
	struct guest g;

	(void)state;
	snprintf(path, sizeof(path), "%s", fixture_path("image"));
	pattern_fill(header, sizeof(header), 98, 0);
	guest_make(&g, RAM);
	for (unsigned i = 0; i < 3; i++) {
		static const uint64_t sizes[] = { 1, 4096, sizeof(header) };
		struct moves m = MOVES(WAY_MAPPED_RAM, path);
		struct guest_load l;
		uint64_t count;

		m.way.base_offset = i * PAGE;
		m.header = header;
		m.header_bytes = sizes[i];
		must_guest_save(&m, &g, 0, 0, DIOH_FINISH_DURABLE);
		guest_look(&l, &g, &m.way, path);
		must(dioh_open_image(l.m.session, &(struct dioh_open_options){ .layout = DIOH_LAYOUT_MAPPED_RAM,
		                                                               .header_bytes = sizes[i] },
		                     &l.m.opened, &l.m.err), &l.m.err);
		assert_int_equal(l.m.opened.header_bytes, sizes[i]);
		assert_int_equal(l.m.opened.header_kind, DIOH_HEADER_OPAQUE);
		must(dioh_read_header(l.m.session, 0, again, sizeof(again), &count, &l.m.err), &l.m.err);
		assert_int_equal(count, sizes[i]);
		assert_memory_equal(again, header, sizes[i]);
		guest_expect(&l, RAM);
		guest_look_away(&l);
	}
	guest_free(&g);
}

static void a_reader_that_goes_away(void **state)
{
	struct guest_load l;
	struct guest g;
	int ends[2];

	(void)state;
	guest_make(&g, RAM);
	must_guest_image(&g, fixture_path("image"));
	l.m = (struct moves)MOVES(WAY_MAPPED_RAM, fixture_path("image"));
	moves_start(&l.m, LOAD);
	must_ends(PEER_PIPE, ends);
	moves_attach_stream(&l.m, 0, ends[1]);
	must(moves_open(&l.m, 0), &l.m.err);
	close(ends[0]);
	assert_int_equal(moves_wait(&l.m, moves_begin_stream(&l.m, 0, GUEST_ENTRY, 0)), -EPIPE);
	moves_assert_error(&l.m, EPIPE, WRITE, STREAM, 0);
	moves_end(&l.m, 0);
	guest_free(&g);
}

/* ---- an older image ---- */

static struct {
	char path[512];
	uint8_t *bytes;
	uint64_t count;
} older;

static uint8_t *read_file(const char *path, uint64_t *ret_count)
{
	int fd = must_open(path, O_RDONLY);
	uint8_t *bytes;

	*ret_count = must_bytes(fd);
	bytes = malloc(*ret_count + 1);
	assert_non_null(bytes);
	assert_int_equal(pread(fd, bytes, *ret_count, 0), *ret_count);
	close(fd);
	return bytes;
}

static void make_older(void)
{
	struct guest g;

	snprintf(older.path, sizeof(older.path), "%s", fixture_path("older"));
	unlink(older.path);
	guest_make(&g, RAM);
	must_guest_image(&g, older.path);
	guest_free(&g);
	free(older.bytes);
	older.bytes = read_file(older.path, &older.count);
}

static void expect_older_untouched(const char *what)
{
	uint64_t count;
	uint8_t *bytes = read_file(older.path, &count);

	if (count != older.count || memcmp(bytes, older.bytes, count) != 0)
		fail_msg("%s: the older image was touched", what);
	free(bytes);
}

static void expect_older_gone(const struct guest *g, const char *what)
{
	print_message("%s\n", what);
	guest_expect_open(g, older.path, 0, ENODATA);
	guest_expect_open(g, older.path, DIOH_OPEN_ACCEPT_WRITTEN, ENODATA);
	guest_expect_open(g, older.path, DIOH_OPEN_INSPECT, 0);
}

/* Whatever stood there before: no byte of the image says so. */
static void save_over(const struct guest *g, const char *fresh)
{
	struct moves m = MOVES(WAY_MAPPED_RAM, older.path);
	uint64_t counts[2];
	uint8_t *bytes[2];

	must_guest_save(&m, g, 0, 0, DIOH_FINISH_DURABLE);
	bytes[0] = read_file(fresh, &counts[0]);
	bytes[1] = read_file(older.path, &counts[1]);
	assert_int_equal(counts[0], counts[1]);
	assert_memory_equal(bytes[0], bytes[1], counts[0]);
	free(bytes[0]);
	free(bytes[1]);
}

static void over_older_images(void **state)
{
	char fresh[512];
	struct guest g;
	int fd;

	(void)state;
	snprintf(fresh, sizeof(fresh), "%s", fixture_path("fresh"));
	make_older();
	guest_start(&g, RAM | GUEST_IN(GUEST_VGA));
	guest_finish_stream(&g, 100);
	must_guest_image(&g, fresh);
	save_over(&g, fresh); /* a longer one, by its device state and more */
	fd = must_open(older.path, O_RDWR | O_TRUNC);
	must_save_all(&WAY_CONTAINER, older.path, g.memories, 1, 0);
	save_over(&g, fresh);
	must_write_pattern(fd, 0, 30 * MIB, 3);
	save_over(&g, fresh);
	close(fd);
	guest_free(&g);
}

/* ---- requests that do not fit ---- */

struct bad_table {
	const char *what;
	int code;
	uint32_t object;
	void (*spoil)(struct moves *m);
};

static void unknown_name(struct moves *m)
{
	m->entries[0].name[3]++;
}

static void wrong_size(struct moves *m)
{
	m->entries[0].bytes -= PAGE;
}

static void wrong_address(struct moves *m)
{
	m->entries[0].guest_address = PAGE;
}

static void another_stream_entry(struct moves *m)
{
	moves_add_stream(m, GUEST_ENTRY + 1, 0);
}

static void no_stream_entry(struct moves *m)
{
	m->entry_count--;
}

static void describe_save(struct moves *m, const struct guest *g)
{
	struct dioh_msg_entry *entry;

	*m = (struct moves)MOVES(WAY_MAPPED_RAM, older.path);
	entry = moves_add_region(m, GUEST_REGION(GUEST_RAM), GUEST_RAM_BYTES);
	memcpy(entry->name, g->q.blocks[GUEST_RAM].name, sizeof(entry->name));
	entry->flags = DIOH_ENTRY_GUEST_ADDRESS;
	moves_add_stream(m, GUEST_ENTRY, 0);
}

static void start_save(struct moves *m, int memory, int stream)
{
	moves_start(m, SAVE);
	if (memory >= 0)
		moves_attach(m, GUEST_REGION(GUEST_RAM), memory, -1);
	moves_attach_stream(m, 0, stream);
}

static void tables_that_do_not_fit(void **state)
{
	static const struct bad_table bad[] = {
		{ "unknown name", ENOENT, DIOH_OBJECT_REGION, unknown_name },
		{ "wrong size", EINVAL, DIOH_OBJECT_REGION, wrong_size },
		{ "wrong address", EINVAL, DIOH_OBJECT_REGION, wrong_address },
		{ "two stream entries", EINVAL, DIOH_OBJECT_SESSION, another_stream_entry },
		{ "no stream entry", EINVAL, DIOH_OBJECT_SESSION, no_stream_entry },
	};
	struct guest g;

	(void)state;
	make_older();
	guest_make(&g, RAM);
	for (unsigned i = 0; i < COUNT(bad); i++) {
		struct qemu_feeder feeder;
		struct moves m;

		describe_save(&m, &g);
		bad[i].spoil(&m);
		start_save(&m, g.memories[GUEST_RAM], qemu_feed(&feeder, g.q.bytes, g.q.count, 0));
		if (moves_create(&m) != -bad[i].code || m.err.object != bad[i].object)
			fail_msg("%s: object %u: %s", bad[i].what, m.err.object, m.err.text);
		moves_assert_alive(&m);
		moves_end(&m, bad[i].object != DIOH_OBJECT_SESSION); /* refused at the door there was no save yet */
		qemu_feeder_join(&feeder);
		expect_older_untouched(bad[i].what);
	}
	guest_free(&g);
}

/* Known without the stream, and said without waiting for it. */
static void no_wait_for_a_stream_in_vain(void **state)
{
	struct guest g;
	struct moves m;
	int ends[2];

	(void)state;
	make_older();
	guest_start(&g, RAM);
	must_ends(PEER_PIPE, ends);
	describe_save(&m, &g);
	another_stream_entry(&m);
	start_save(&m, g.memories[GUEST_RAM], ends[0]);
	assert_int_equal(moves_create(&m), -EINVAL);
	moves_assert_error(&m, EINVAL, PROTOCOL, SESSION, 0);
	moves_end(&m, 0);
	close(ends[1]);
	expect_older_untouched("a stream that does not come");
	guest_free(&g);
}

static void memory_without_ignore_shared(void **state)
{
	struct qemu_feeder feeder;
	struct guest g;
	struct moves m;

	(void)state;
	make_older();
	guest_make(&g, 0);
	describe_save(&m, &g);
	start_save(&m, must_memfd("ram", GUEST_RAM_BYTES, 0), qemu_feed(&feeder, g.q.bytes, g.q.count, 0));
	assert_int_equal(moves_create(&m), -EINVAL);
	moves_assert_error(&m, EINVAL, PARSE, STREAM, 0);
	moves_end(&m, 1);
	qemu_feeder_join(&feeder);
	expect_older_untouched("no x-ignore-shared");
	guest_free(&g);
}

static int try_region(struct moves *m, uint32_t region, uint64_t length)
{
	const struct dioh_msg_memory_transfer what = {
		.memory = GUEST_REGION(GUEST_RAM), .region = region, .length = length
	};

	return dioh_save_memory(m->session, &what, NULL, &m->err);
}

static int try_stream(struct moves *m, uint32_t stream)
{
	const struct dioh_msg_stream_transfer what = { .stream = stream, .entry = GUEST_ENTRY };

	return dioh_save_stream(m->session, &what, NULL, &m->err);
}

static void transfers_that_do_not_fit(void **state)
{
	struct dioh_msg_entry entries[GUEST_BLOCKS + 1];
	struct qemu_feeder feeder;
	struct guest g;
	struct moves m;
	uint32_t count;
	int ends[2];

	(void)state;
	make_older();
	guest_make(&g, RAM);
	describe_save(&m, &g);
	must_ends(PEER_PIPE, ends);
	start_save(&m, g.memories[GUEST_RAM], qemu_feed(&feeder, g.q.bytes, g.q.count, 0));
	moves_attach_stream(&m, 1, ends[0]);
	must(moves_create(&m), &m.err);
	must(dioh_get_table(m.session, 0, COUNT(entries), entries, &count, &m.err), &m.err);
	assert_int_equal(count, COUNT(entries));
	for (unsigned i = 0; i < GUEST_BLOCKS; i++) {
		assert_string_equal(entries[i].name, g.q.blocks[i].name);
		assert_int_equal(!!(entries[i].flags & DIOH_ENTRY_IN_STREAM), i != GUEST_RAM);
	}
	assert_int_equal(try_region(&m, entries[GUEST_BIOS].number, entries[GUEST_BIOS].bytes), -EINVAL);
	moves_assert_error(&m, EINVAL, PROTOCOL, REGION, entries[GUEST_BIOS].number);
	assert_int_equal(try_stream(&m, 1), -EINVAL);
	assert_int_equal(moves_finish(&m, DIOH_FINISH_DURABLE), -ENODATA);
	moves_assert_error(&m, ENODATA, FINISH, REGION, GUEST_REGION(GUEST_RAM));
	guest_save_memory(&m, &g, 0);
	assert_int_equal(moves_finish(&m, DIOH_FINISH_DURABLE), -ENODATA);
	moves_assert_error(&m, ENODATA, FINISH, STREAM, GUEST_ENTRY);
	must(moves_wait(&m, guest_begin_stream(&m)), &m.err);
	must(moves_finish(&m, DIOH_FINISH_DURABLE), &m.err);
	moves_end(&m, 0);
	qemu_feeder_join(&feeder);
	close(ends[1]);
	must_guest_load(&g, &WAY_MAPPED_RAM, older.path, 0, RAM);
	guest_free(&g);
}

/* ---- streams that are none ---- */

/* CREATE_IMAGE fails with a sentence that has these words in it, and the older image has not been touched. */
static void refused_before(const struct guest *g, size_t count, int code, const char *words, const char *what)
{
	struct qemu_feeder feeder;
	struct moves m;

	describe_save(&m, g);
	start_save(&m, g->memories[GUEST_RAM], qemu_feed(&feeder, g->q.bytes, count, 0));
	if (moves_create(&m) != -code || !strstr(m.err.text, words))
		fail_msg("%s: %s", what, m.err.text);
	moves_assert_error(&m, code, PARSE, STREAM, 0);
	moves_assert_alive(&m);
	moves_end(&m, 1);
	qemu_feeder_join(&feeder);
	expect_older_untouched(what);
}

/* The transfer fails, with such a sentence too, and the image is partial. */
static void refused_behind(const struct guest *g, size_t count, int code, const char *words, const char *what)
{
	struct qemu_feeder feeder;
	struct moves m;

	describe_save(&m, g);
	start_save(&m, g->memories[GUEST_RAM], qemu_feed(&feeder, g->q.bytes, count, 0));
	must(moves_create(&m), &m.err);
	if (moves_wait(&m, guest_begin_stream(&m)) != -code || !strstr(m.err.text, words))
		fail_msg("%s: %s", what, m.err.text);
	moves_assert_error(&m, code, PARSE, STREAM, 0);
	assert_int_equal(try_stream(&m, 0), -EBADF);
	guest_save_memory(&m, g, 0);
	assert_int_equal(moves_finish(&m, DIOH_FINISH_DURABLE), -ENODATA);
	moves_end(&m, 1);
	qemu_feeder_join(&feeder);
	expect_older_gone(g, what);
}

/* Where the sender leaves out what is shared, but nobody has said that a block is, none of its pages comes. */
static void block_that_was_left_out(void **state)
{
	struct guest g;

	(void)state;
	make_older();
	guest_start(&g, RAM);
	qemu_put_section(&g.q, QEMU_END);
	qemu_put_page(&g.q, GUEST_VGA, 0, 1);
	qemu_put_section_end(&g.q);
	qemu_put_end(&g.q);
	refused_behind(&g, g.q.count, EBADMSG, "no page of block \"pc.bios\" has come", "a block that was left out");
	guest_free(&g);
}

/* The main stream of multifd, from a QEMU that announces its channels' sync points by nothing but the ends of parts. */
static void stream_without_its_channels(void **state)
{
	struct moves m = MOVES(WAY_MAPPED_RAM, fixture_path("image"));
	struct qemu_feeder feeder;
	struct guest g;

	(void)state;
	guest_start(&g, 0);
	qemu_put_section(&g.q, QEMU_END);
	guest_put_zeros(&g);
	qemu_put_section_end(&g.q);
	qemu_put_end(&g.q);
	must(guest_create(&m, &g, qemu_feed(&feeder, g.q.bytes, g.q.count, 0)), &m.err);
	assert_int_equal(moves_wait(&m, guest_begin_stream(&m)), -EBADMSG);
	assert_non_null(strstr(m.err.text, "no page that is not zero has come"));
	moves_end(&m, 1);
	qemu_feeder_join(&feeder);
	guest_free(&g);
}

#define BEFORE_RAMS_END "it ends too early, before the RAM section's end"

static void cut_before(const struct guest *g, size_t count)
{
	char words[80];

	snprintf(words, sizeof(words), "it ends after %zu bytes, before its RAM setup is complete", count);
	refused_before(g, count, EBADMSG, words, "cut in the setup");
}

static void a_stream_that_ends_early(void **state)
{
	struct guest g;
	size_t pages;

	(void)state;
	make_older();
	guest_start(&g, RAM);
	for (size_t count = 0; count < g.q.count; count += 1 + count / 3)
		cut_before(&g, count);
	cut_before(&g, g.q.count - 1);
	cut_before(&g, g.q.count); /* behind the setup: the byte that says so is missing */
	guest_finish_stream(&g, 5000);
	refused_behind(&g, g.q.setup_bytes + 1, EBADMSG, BEFORE_RAMS_END,
	               "cut behind the first byte that tells what follows");
	pages = g.q.setup_bytes + 9 + 5; /* behind ping and a part's head */
	refused_behind(&g, pages + 4, EBADMSG, BEFORE_RAMS_END, "cut in a record");
	refused_behind(&g, pages + 3000, EBADMSG, BEFORE_RAMS_END, "cut in a page");
	refused_behind(&g, g.q.count - 5200, EBADMSG, BEFORE_RAMS_END, "cut about the RAM section's end");
	refused_behind(&g, g.q.count - 1000, EBADMSG, "it ends too early, in the device state", "cut in a device");
	refused_behind(&g, g.q.count - 1, EBADMSG, "it ends too early, in the device state", "cut in the description");
	guest_free(&g);
}

static void put_capability(struct qemu_maker *q, const char *name)
{
	qemu_put(q, q->configuration, q->setup.configuration_bytes);
	qemu_put_be(q, 5, 1);
	qemu_put_name(q, "configuration/capabilities");
	qemu_put_be(q, 1, 4);
	qemu_put_be(q, 1, 4);
	qemu_put_name(q, name);
}

static void start_bare(struct guest *g)
{
	guest_start(g, RAM);
	g->q.count = 0;
}

static void what_is_not_known_before(void **state)
{
	struct guest g;

	(void)state;
	make_older();
	start_bare(&g);
	put_capability(&g.q, "x-colo");
	refused_before(&g, g.q.count, EOPNOTSUPP, "the capability \"x-colo\"", "unknown capability");
	g.q.count = 0;
	put_capability(&g.q, "mapped-ram");
	qemu_put_be(&g.q, 1, 1);
	refused_before(&g, g.q.count, EOPNOTSUPP, "it declares mapped-ram", "mapped-ram");
	g.q.count = 0;
	qemu_put(&g.q, g.q.configuration, g.q.setup.configuration_bytes);
	qemu_put_device(&g.q, 1, 10, 1);
	refused_before(&g, g.q.count, EOPNOTSUPP, "the state of section \"device\"", "a device before RAM");
	g.q.count = 0;
	qemu_put_setup(&g.q);
	qemu_put_device(&g.q, 1, 10, 1);
	refused_before(&g, g.q.count, EOPNOTSUPP, "the state of section \"device\"", "a device behind RAM's setup");
	g.q.bytes[g.q.setup_bytes] = 1;
	refused_before(&g, g.q.count, EOPNOTSUPP, "the start of section \"device\"", "another section in parts");
	g.q.count = 0;
	qemu_put(&g.q, "LibvirtQemudSave", 16);
	refused_before(&g, g.q.count, EBADMSG, "instead of QEMU's magic", "no magic");
	guest_free(&g);
}

static void what_is_not_known_behind(void **state)
{
	static const struct {
		uint32_t flag;
		const char *words;
	} foreign[] = {
		{ 0x40, "flag XBZRLE" }, { 0x80, "flag HOOK" }, { 0x100, "flag COMPRESS_PAGE" },
	};
	struct guest g;
	size_t setup;

	(void)state;
	make_older();
	guest_start(&g, RAM);
	setup = g.q.count;
	qemu_put_section(&g.q, QEMU_PART);
	qemu_put_section_end(&g.q);
	qemu_put_device(&g.q, 1, 10, 1);
	refused_behind(&g, g.q.count, EOPNOTSUPP, "the state of section \"device\"", "a device before RAM's end");
	g.q.count = setup;
	qemu_put_command(&g.q, 7, "abcd", 4);
	refused_behind(&g, g.q.count, EOPNOTSUPP, "command 7, PACKAGED", "a package");
	for (unsigned i = 0; i < COUNT(foreign); i++) {
		g.q.count = setup;
		qemu_put_section(&g.q, QEMU_PART);
		qemu_put_page(&g.q, GUEST_BIOS, 0, 3);
		qemu_put_be(&g.q, foreign[i].flag, 8);
		refused_behind(&g, g.q.count, EOPNOTSUPP, foreign[i].words, "a record's flag");
	}
	g.q.count = setup;
	qemu_put_section(&g.q, QEMU_PART);
	qemu_put_be(&g.q, g.q.blocks[GUEST_BIOS].bytes | 2, 8);
	qemu_put_name(&g.q, g.q.blocks[GUEST_BIOS].name);
	qemu_put_be(&g.q, 0, 1);
	refused_behind(&g, g.q.count, EBADMSG, "block \"pc.bios\": a page at offset", "a page behind its block");
	guest_free(&g);
}

static void pages_of_a_memory(void **state)
{
	struct guest g;

	(void)state;
	make_older();
	guest_start(&g, RAM);
	qemu_put_section(&g.q, QEMU_PART);
	qemu_put_page(&g.q, GUEST_BIOS, 0, 1);
	qemu_put_page(&g.q, GUEST_RAM, 7, 1);
	refused_behind(&g, g.q.count, EBADMSG, "it brings pages of block \"pc.ram\"", "pages of what is in a memory");
	guest_free(&g);
}

/* ---- a stream that does not come ---- */

/* A save of all blocks from the stream, of which `count` bytes come; the stream's other end. */
static int begin_hanging(const struct guest *g, size_t count, struct moves *m)
{
	int ends[2];

	must_ends(PEER_PIPE, ends);
	assert_int_equal(write(ends[1], g->q.bytes, count), count);
	describe_save(m, g);
	start_save(m, -1, ends[0]);
	must_seal(m->session);
	return ends[1];
}

/* The session spoken byte by byte: its table is asked for, which waits for the stream. */
static uint32_t ask_for_table(struct raw_manager *raw)
{
	const struct dioh_msg_create_image create = { .layout = DIOH_LAYOUT_MAPPED_RAM, .stream_count = 1 };
	struct {
		struct dioh_msg_put_table head;
		struct dioh_msg_entry entry;
	} table = { .head.count = 1, .entry = stream_entry(GUEST_ENTRY, "device state") };
	const struct dioh_msg_cancel nothing = { 0 };
	struct dioh_msg_cancel_reply cancelled;
	struct dioh_msg_image_reply reply;
	uint32_t id;

	raw_call(raw, DIOH_MSG_CREATE_IMAGE, &create, sizeof(create), &reply, sizeof(reply));
	/* It cancels what runs, not what comes. */
	raw_call(raw, DIOH_MSG_CANCEL, &nothing, sizeof(nothing), &cancelled, sizeof(cancelled));
	id = raw_request(raw, DIOH_MSG_PUT_TABLE, &table, sizeof(table));
	usleep(200000);
	assert_int_equal(raw_status_phase(raw), DIOH_PHASE_SYNC);
	return id;
}

static void hang_up_on(const struct guest *g, size_t count)
{
	struct moves m;
	int end = begin_hanging(g, count, &m);
	struct raw_manager raw = { .fd = dioh_session_fd(m.session), .last_id = 1000 };
	uint64_t begun;

	ask_for_table(&raw);
	begun = now_ms();
	moves_end(&m, 1);
	assert_true(now_ms() - begun < 1000);
	close(end);
	expect_older_untouched("a hangup while the stream hangs");
}

static void cancel_on(const struct guest *g, size_t count)
{
	const struct dioh_msg_cancel all = { 0 };
	struct dioh_msg_cancel_reply cancelled;
	struct moves m;
	int end = begin_hanging(g, count, &m);
	struct raw_manager raw = { .fd = dioh_session_fd(m.session), .last_id = 1000 };
	uint32_t id = ask_for_table(&raw);
	uint64_t begun = now_ms();

	raw_call(&raw, DIOH_MSG_CANCEL, &all, sizeof(all), &cancelled, sizeof(cancelled));
	raw_refused(&raw, DIOH_MSG_PUT_TABLE, id, ECANCELED, NULL);
	assert_true(now_ms() - begun < 1000);
	moves_end(&m, 1);
	close(end);
	expect_older_untouched("a CANCEL while the stream hangs");
}

static void a_stream_that_hangs(void **state)
{
	struct guest g;

	(void)state;
	make_older();
	guest_start(&g, RAM);
	hang_up_on(&g, 0);
	hang_up_on(&g, g.q.count / 2);
	cancel_on(&g, 0);
	cancel_on(&g, g.q.count - 1);
	guest_free(&g);
}

/* ---- the image's file may not grow ---- */

static void limit_files(rlim_t bytes)
{
	struct rlimit limit;

	assert_int_equal(getrlimit(RLIMIT_FSIZE, &limit), 0);
	limit.rlim_cur = bytes == RLIM_INFINITY ? limit.rlim_max : bytes;
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
}

static void no_room_for_the_tail(void **state)
{
	struct qemu_feeder feeder;
	struct guest g;
	struct moves m;
	uint64_t end;

	(void)state;
	make_older();
	guest_start(&g, RAM);
	guest_finish_stream(&g, 4 * MIB);
	must_guest_image(&g, older.path);
	end = must_bytes(must_open(older.path, O_RDONLY));
	describe_save(&m, &g);
	limit_files(end - 2 * MIB);
	start_save(&m, g.memories[GUEST_RAM], qemu_feed(&feeder, g.q.bytes, g.q.count, 0));
	limit_files(RLIM_INFINITY);
	must(moves_create(&m), &m.err);
	assert_int_equal(moves_wait(&m, guest_begin_stream(&m)), -EFBIG);
	moves_assert_error(&m, EFBIG, WRITE, IMAGE, 0);
	guest_save_memory(&m, &g, 0);
	assert_int_equal(moves_finish(&m, DIOH_FINISH_DURABLE), -ENODATA);
	moves_end(&m, 1);
	qemu_feeder_join(&feeder);
	expect_older_gone(&g, "no room for the tail");
	guest_free(&g);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(by_every_way),
		cmocka_unit_test(any_blocks_in_memories),
		cmocka_unit_test(byte_by_byte),
		cmocka_unit_test(pages_that_come_again),
		cmocka_unit_test(pages_of_many_chunks),
		cmocka_unit_test(zeros_of_small_blocks),
		cmocka_unit_test(zeros_over_data),
		cmocka_unit_test(nothing_but_zeros),
		cmocka_unit_test(long_device_states),
		cmocka_unit_test(block_that_was_left_out),
		cmocka_unit_test(stream_without_its_channels),
		cmocka_unit_test(without_checksums),
		cmocka_unit_test(all_at_once),
		cmocka_unit_test(behind_a_header),
		cmocka_unit_test(a_reader_that_goes_away),
		cmocka_unit_test(over_older_images),
		cmocka_unit_test(tables_that_do_not_fit),
		cmocka_unit_test(no_wait_for_a_stream_in_vain),
		cmocka_unit_test(memory_without_ignore_shared),
		cmocka_unit_test(transfers_that_do_not_fit),
		cmocka_unit_test(a_stream_that_ends_early),
		cmocka_unit_test(what_is_not_known_before),
		cmocka_unit_test(what_is_not_known_behind),
		cmocka_unit_test(pages_of_a_memory),
		cmocka_unit_test(a_stream_that_hangs),
		cmocka_unit_test(no_room_for_the_tail),
	};

	signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests_name("mapped-ram", tests, NULL, NULL);
}
