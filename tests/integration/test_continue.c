/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test_continue.c - images that a save goes on with (CREATE_IMAGE's CONTINUE, KEEP_REGION): until FINISH nobody takes one for
 * complete, whatever it was before; what is kept is as good as it was, with checksums or without; what comes anew leaves
 * nothing of what stood there; a region that comes by another way makes it another image. `convert --consume`, which uses
 * all this: test_tool_convert.py.
 */
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
#include <unistd.h>

#include "diohelper-image.h"
#include "guest_image.h"
#include "record.h"

#define SAVE DIOH_DIRECTION_SAVE
#define LOAD DIOH_DIRECTION_LOAD
#define RAM GUEST_IN(GUEST_RAM)

static char healthy[512], faulty[512]; /* helpers; faulty_engine.c */

/* ---- a container ---- */

#define REGION 3u
#define REGION_BYTES (5 * MIB + 3 * (uint64_t)PAGE)

static void describe(struct moves *m, int memory, uint32_t create_flags)
{
	*m = (struct moves)MOVES(WAY_CONTAINER, fixture_path("container"));
	m->create_flags = create_flags;
	moves_add_region(m, REGION, REGION_BYTES);
	moves_start(m, SAVE);
	moves_attach(m, REGION, memory, -1);
}

static void begin(struct moves *m, int memory, uint32_t create_flags)
{
	describe(m, memory, create_flags);
	must(moves_create(m), &m->err);
}

static int save_range(struct moves *m, uint64_t from, uint64_t to, uint32_t flags)
{
	return moves_piece(m, &(struct dioh_msg_memory_transfer){ .memory = REGION, .region = REGION, .memory_offset = from,
	                                                          .region_offset = from, .length = to - from, .flags = flags });
}

static void keep(struct moves *m, uint64_t from, uint64_t to)
{
	must(dioh_keep_region(m->session, REGION, from, to - from, &m->err), &m->err);
}

/* Another session goes on with the image; what came up to `bytes` is kept. */
static void go_on(struct moves *m, int memory, uint64_t bytes)
{
	begin(m, memory, DIOH_CREATE_CONTINUE);
	keep(m, 0, bytes);
}

static void finish(struct moves *m)
{
	must(moves_finish(m, DIOH_FINISH_DURABLE), &m->err);
	moves_end(m, 0);
}

/* The image can be loaded, and is `memory`. */
static void expect(int memory, bool checksums)
{
	struct moves m = MOVES(WAY_CONTAINER, fixture_path("container"));
	int loaded = must_memfd("loaded", REGION_BYTES, 0);
	struct dioh_msg_entry entry;
	uint32_t count;

	moves_add_region(&m, REGION, REGION_BYTES);
	moves_start(&m, LOAD);
	moves_attach(&m, REGION, loaded, -1);
	must(moves_open(&m, 0), &m.err);
	must(dioh_get_table(m.session, 0, 1, &entry, &count, &m.err), &m.err);
	assert_int_equal(!!(entry.flags & DIOH_ENTRY_CHECKSUMS), checksums);
	must(moves_region(&m, REGION, 0), &m.err);
	moves_end(&m, 0);
	assert_true(same_bytes(memory, loaded));
	close(loaded);
}

static int some_memory(uint64_t seed)
{
	int memory = must_memfd("memory", REGION_BYTES, 0);

	must_fill_mixed(memory, REGION_BYTES, 1, 40, seed);
	return memory;
}

static void kept_without_checksums(void **state)
{
	int memory = some_memory(test_seed());
	struct moves m;

	(void)state;
	begin(&m, memory, 0);
	must(save_range(&m, 0, REGION_BYTES, DIOH_TRANSFER_NO_CHECKSUM), &m.err);
	finish(&m);
	expect(memory, false);
	go_on(&m, memory, REGION_BYTES);
	finish(&m);
	expect(memory, false);
	/* A part of it with checksums makes no difference: an entry has them, or not. */
	go_on(&m, memory, 2 * MIB);
	must(save_range(&m, 2 * MIB, REGION_BYTES, 0), &m.err);
	finish(&m);
	expect(memory, false);
	close(memory);
}

/* The save that made none did not come to its end, nor did the one after it. */
static void kept_without_checksums_of_an_interrupted_save(void **state)
{
	int memory = some_memory(test_seed() + 1);
	struct moves m;

	(void)state;
	begin(&m, memory, 0);
	must(save_range(&m, 0, MIB, 0), &m.err);
	must(save_range(&m, MIB, 2 * MIB, DIOH_TRANSFER_NO_CHECKSUM), &m.err);
	moves_end(&m, 1);
	go_on(&m, memory, 2 * MIB);
	moves_end(&m, 1);
	go_on(&m, memory, 2 * MIB);
	must(save_range(&m, 2 * MIB, REGION_BYTES, 0), &m.err);
	finish(&m);
	expect(memory, false);
	close(memory);
}

static void kept_with_checksums(void **state)
{
	int memory = some_memory(test_seed() + 2);
	struct moves m;

	(void)state;
	begin(&m, memory, 0);
	must(save_range(&m, 0, 3 * MIB, 0), &m.err);
	moves_end(&m, 1);
	go_on(&m, memory, 3 * MIB);
	must(save_range(&m, 3 * MIB, REGION_BYTES, 0), &m.err);
	finish(&m);
	expect(memory, true);
	close(memory);
}

/* ---- the head ---- */

static void spoil_head(uint64_t offset)
{
	int fd = must_open(fixture_path("container"), O_RDWR);
	uint8_t byte;

	assert_int_equal(pread(fd, &byte, 1, (off_t)offset), 1);
	byte ^= 1;
	assert_int_equal(pwrite(fd, &byte, 1, (off_t)offset), 1);
	close(fd);
}

/* Of a state that was being written when the power went there may be some sectors: what is kept is not lost with it. */
static void a_torn_head_is_continued(void **state)
{
	int memory = some_memory(test_seed() + 4);
	struct moves m;

	(void)state;
	begin(&m, memory, 0);
	must(save_range(&m, 0, REGION_BYTES, 0), &m.err);
	finish(&m);
	spoil_head(offsetof(struct dioh_record_head, crc32c));
	moves_start(&m, LOAD);
	assert_int_equal(moves_open(&m, 0), -EBADMSG);
	moves_end(&m, 0);
	go_on(&m, memory, REGION_BYTES);
	finish(&m);
	expect(memory, true);
	close(memory);
}

/* But it is ours, and of this image. */
static void another_head_is_not(void **state)
{
	static const uint64_t offsets[] = {
		offsetof(struct dioh_record_head, magic), offsetof(struct dioh_record_head, version),
		offsetof(struct dioh_record_head, incompatible), offsetof(struct dioh_record_head, layout),
		offsetof(struct dioh_record_head, page_bytes), offsetof(struct dioh_record_head, chunk_bytes),
		offsetof(struct dioh_record_head, region_count), offsetof(struct dioh_record_head, stream_count),
		offsetof(struct dioh_record_head, header), offsetof(struct dioh_record_head, regions),
	};
	int memory = some_memory(test_seed() + 5);
	struct moves m;

	(void)state;
	begin(&m, memory, 0);
	must(save_range(&m, 0, REGION_BYTES, 0), &m.err);
	finish(&m);
	for (unsigned i = 0; i < sizeof(offsets) / sizeof(offsets[0]); i++) {
		spoil_head(offsets[i]);
		describe(&m, memory, DIOH_CREATE_CONTINUE);
		assert_int_equal(moves_create(&m), -EINVAL);
		moves_assert_error(&m, EINVAL, PARSE, IMAGE, 0);
		moves_end(&m, 1);
		spoil_head(offsets[i]);
	}
	expect(memory, true);
	close(memory);
}

/* ---- the marks ---- */

static int open_state(const char *path, uint32_t flags, uint32_t *ret_state)
{
	struct moves m = MOVES(WAY_CONTAINER, path);
	int r;

	moves_start(&m, LOAD);
	r = moves_open(&m, flags);
	*ret_state = r == 0 ? m.opened.state : DIOH_STATE_UNKNOWN;
	moves_end(&m, 0);
	return r;
}

static void expect_partial(const char *path)
{
	uint32_t state;

	assert_int_equal(open_state(path, 0, &state), -ENODATA);
	assert_int_equal(open_state(path, DIOH_OPEN_ACCEPT_WRITTEN, &state), -ENODATA);
	assert_int_equal(open_state(path, DIOH_OPEN_INSPECT, &state), 0);
	assert_int_equal(state, DIOH_STATE_PARTIAL);
}

static void a_continued_container_is_partial(void **state)
{
	int memory = some_memory(test_seed() + 3);
	struct moves m;

	(void)state;
	begin(&m, memory, 0);
	must(save_range(&m, 0, REGION_BYTES, 0), &m.err);
	finish(&m);
	for (unsigned finishes = 0; finishes < 2; finishes++) {
		begin(&m, memory, DIOH_CREATE_CONTINUE);
		expect_partial(m.path);
		keep(&m, 0, REGION_BYTES);
		expect_partial(m.path);
		if (finishes)
			finish(&m);
		else
			moves_end(&m, 1);
	}
	expect(memory, true);
	close(memory);
}

/* Who does not know what they mean may read such an image, and not write to it. */
static void unknown_features_are_left_alone(void **state)
{
	int memory = some_memory(test_seed() + 4), fd;
	struct dioh_record_head head;
	struct moves m;
	uint32_t there;

	(void)state;
	begin(&m, memory, 0);
	must(save_range(&m, 0, REGION_BYTES, 0), &m.err);
	finish(&m);
	fd = must_open(m.path, O_RDWR);
	assert_int_equal(pread(fd, &head, sizeof(head), 0), sizeof(head));
	head.compatible = UINT64_C(1) << 40;
	dioh_record_seal(&head);
	assert_int_equal(pwrite(fd, &head, sizeof(head), 0), sizeof(head));
	close(fd);
	m = (struct moves)MOVES(WAY_CONTAINER, fixture_path("container"));
	m.create_flags = DIOH_CREATE_CONTINUE;
	moves_add_region(&m, REGION, REGION_BYTES);
	moves_start(&m, SAVE);
	assert_int_equal(moves_create(&m), -EINVAL);
	moves_assert_error(&m, EINVAL, PARSE, IMAGE, 0);
	moves_end(&m, 1);
	assert_int_equal(open_state(fixture_path("container"), 0, &there), 0);
	assert_int_equal(there, DIOH_STATE_COMPLETE);
	expect(memory, true);
	close(memory);
}

static void expect_qemus_magic(const char *path, const char *magic)
{
	int fd = must_open(path, O_RDONLY);
	char there[4];

	assert_int_equal(pread(fd, there, sizeof(there), 0), sizeof(there));
	assert_memory_equal(there, magic, sizeof(there));
	close(fd);
}

/* Goes on with the guest's image up to where it is ready. */
static void guest_continue(struct moves *m, const struct guest *g, struct qemu_feeder *feeder)
{
	*m = (struct moves)MOVES(WAY_MAPPED_RAM, fixture_path("mapped-ram"));
	m->create_flags = DIOH_CREATE_CONTINUE;
	must(guest_create(m, g, qemu_feed(feeder, g->q.bytes, g->q.count, 0)), &m->err);
}

static void keep_ram(struct moves *m)
{
	must(dioh_keep_region(m->session, GUEST_REGION(GUEST_RAM), 0, GUEST_RAM_BYTES, &m->err), &m->err);
}

static void a_continued_mapped_ram_image_is_partial(void **state)
{
	struct qemu_feeder feeder;
	struct guest g;
	struct moves m;

	(void)state;
	guest_make(&g, RAM);
	must_guest_image(&g, fixture_path("mapped-ram"));
	expect_qemus_magic(fixture_path("mapped-ram"), "QEVM");
	for (unsigned finishes = 0; finishes < 2; finishes++) {
		guest_continue(&m, &g, &feeder);
		expect_partial(m.path);
		expect_qemus_magic(m.path, "\0\0\0\0"); /* so no QEMU takes it for a migration */
		must(moves_wait(&m, guest_begin_stream(&m)), &m.err);
		keep_ram(&m);
		expect_partial(m.path);
		expect_qemus_magic(m.path, "\0\0\0\0");
		if (finishes)
			finish(&m);
		else
			moves_end(&m, 1);
		qemu_feeder_join(&feeder);
	}
	expect_qemus_magic(fixture_path("mapped-ram"), "QEVM");
	must_guest_load(&g, &WAY_MAPPED_RAM, fixture_path("mapped-ram"), 0, RAM);
	guest_free(&g);
}

/*
 * QEMU's magic is away whatever happens. But the record has to say partial by itself: what is behind a header of libvirt's
 * is looked at by others, and a magic may come back with an old sector.
 */
static void the_record_says_so_itself(void **state)
{
	struct qemu_feeder feeder;
	struct guest g;
	struct moves m;
	int fd;

	(void)state;
	guest_make(&g, RAM);
	must_guest_image(&g, fixture_path("mapped-ram"));
	guest_continue(&m, &g, &feeder);
	moves_end(&m, 1);
	qemu_feeder_join(&feeder);
	fd = must_open(fixture_path("mapped-ram"), O_RDWR);
	assert_int_equal(pwrite(fd, "QEVM", 4, 0), 4);
	close(fd);
	expect_partial(fixture_path("mapped-ram"));
	guest_free(&g);
}

/* A manager that looks at its own header only must not take for complete what is not any more. */
static void the_managers_mark_goes_first(void **state)
{
	static const uint8_t gone[512];
	uint8_t header[5000] = "LibvirtQemudSave", there[sizeof(gone)];
	struct moves m = MOVES(WAY_MAPPED_RAM, fixture_path("mapped-ram"));
	struct qemu_feeder feeder;
	struct guest g;
	int fd;

	(void)state;
	guest_make(&g, RAM);
	m.header = header;
	m.header_bytes = sizeof(header);
	must_guest_save(&m, &g, 0, 0, DIOH_FINISH_DURABLE);
	m = (struct moves)MOVES(WAY_MAPPED_RAM, fixture_path("mapped-ram"));
	m.header_bytes = sizeof(header); /* its bytes would come later */
	m.create_flags = DIOH_CREATE_CONTINUE;
	must(guest_create(&m, &g, qemu_feed(&feeder, g.q.bytes, g.q.count, 0)), &m.err);
	moves_end(&m, 1);
	qemu_feeder_join(&feeder);
	fd = must_open(fixture_path("mapped-ram"), O_RDONLY);
	assert_int_equal(pread(fd, there, sizeof(there), 0), sizeof(there));
	assert_memory_equal(there, gone, sizeof(gone));
	close(fd);
	guest_free(&g);
}

/* ---- what comes anew ---- */

static bool has_data(const char *path, uint64_t from, uint64_t bytes)
{
	int fd = must_open(path, O_RDONLY);
	off_t data = lseek(fd, (off_t)from, SEEK_DATA);

	close(fd);
	return data >= 0 && (uint64_t)data < from + bytes;
}

static uint64_t place_of(struct moves *m, const char *name)
{
	struct dioh_msg_entry entries[GUEST_BLOCKS + 1];
	uint32_t count;

	must(dioh_get_table(m->session, 0, GUEST_BLOCKS + 1, entries, &count, &m->err), &m->err);
	for (unsigned i = 0; i < count; i++)
		if (strcmp(entries[i].name, name) == 0)
			return entries[i].image_offset;
	fail_msg("there is no %s", name);
	return 0;
}

/* Of the video memory all pages are data, or one comes, and is zero. RAM is the same in all these guests. */
static void make_vga(struct guest *g, bool data)
{
	guest_start(g, RAM);
	qemu_put_section(&g->q, QEMU_END);
	guest_put_zeros(g);
	for (uint64_t page = 0; page < (data ? GUEST_VGA_BYTES / PAGE : 1); page++)
		qemu_put_page(&g->q, GUEST_VGA, page, data ? page + 1 : 0);
	qemu_put_section_end(&g->q);
	qemu_put_end(&g->q);
}

/*
 * An image of the first guest is continued with the second one, and loads as that. Is anything in the video memory's place, but
 * for its first page, which came again?
 */
static bool vga_stays(const struct guest *first, const struct guest *second, const char *helper)
{
	struct qemu_feeder feeder;
	struct moves m;
	uint64_t vga;

	must_guest_image(first, fixture_path("mapped-ram"));
	setenv("DIOHELPER", helper, 1);
	guest_continue(&m, second, &feeder);
	vga = place_of(&m, first->q.blocks[GUEST_VGA].name);
	must(moves_wait(&m, guest_begin_stream(&m)), &m.err);
	keep_ram(&m);
	finish(&m);
	qemu_feeder_join(&feeder);
	setenv("DIOHELPER", healthy, 1);
	must_guest_load(second, &WAY_MAPPED_RAM, fixture_path("mapped-ram"), 0, RAM);
	return has_data(fixture_path("mapped-ram"), vga + PAGE, GUEST_VGA_BYTES - PAGE);
}

/* The video memory was data, and is zeros now: nothing of it stays in the file. */
static void pages_that_come_no_more(void **state)
{
	struct guest data, zeros;

	(void)state;
	make_vga(&data, true);
	make_vga(&zeros, false);
	assert_false(vga_stays(&data, &zeros, healthy));
	guest_free(&data);
	guest_free(&zeros);
}

/* What stood there stays then, and is absent all the same. Zeros in its place would take room, and time. */
static void where_no_hole_can_be_made(void **state)
{
	struct guest data, zeros;

	(void)state;
	make_vga(&data, true);
	make_vga(&zeros, false);
	setenv("DIOH_FAULT", "punch:0", 1);
	assert_true(vga_stays(&data, &zeros, faulty));
	assert_false(vga_stays(&zeros, &zeros, faulty));
	unsetenv("DIOH_FAULT");
	guest_free(&data);
	guest_free(&zeros);
}

/* ---- another image ---- */

#define VGA_NUMBER 1u /* its number when it is in the stream, and RAM is not: blocks get the lowest ones, BIOS first */

static void add_block(struct moves *m, uint32_t number, const struct dioh_qemu_block *block)
{
	struct dioh_msg_entry *entry = moves_add_region(m, number, block->bytes);

	memcpy(entry->name, block->name, sizeof(entry->name));
}

/* RAM and video memory are in memories, and have these numbers. */
static int create_with_vga(struct moves *m, const struct guest *g, uint32_t create_flags, struct qemu_feeder *feeder)
{
	*m = (struct moves)MOVES(WAY_MAPPED_RAM, fixture_path("mapped-ram"));
	m->create_flags = create_flags;
	add_block(m, GUEST_REGION(GUEST_RAM), &g->q.blocks[GUEST_RAM]);
	add_block(m, VGA_NUMBER, &g->q.blocks[GUEST_VGA]);
	moves_add_stream(m, GUEST_ENTRY, 0);
	moves_start(m, SAVE);
	moves_attach(m, GUEST_REGION(GUEST_RAM), g->memories[GUEST_RAM], -1);
	moves_attach(m, VGA_NUMBER, g->memories[GUEST_VGA], -1);
	moves_attach_stream(m, 0, qemu_feed(feeder, g->q.bytes, g->q.count, 0));
	return moves_create(m);
}

static void expect_another(struct moves *m, int r, struct qemu_feeder *feeder)
{
	assert_int_equal(r, -EINVAL);
	moves_assert_error(m, EINVAL, PARSE, IMAGE, 0);
	moves_end(m, 1);
	qemu_feeder_join(feeder);
}

/*
 * What a stream that broke off has left of a chunk may have a checksum that matches: nobody can vouch for such a region, so
 * it is not kept as a memory's.
 */
static void what_came_by_the_stream_is_in_a_memory_now(void **state)
{
	struct guest streamed, mapped;
	struct qemu_feeder feeder;
	struct moves m;

	(void)state;
	guest_make(&streamed, RAM);
	guest_make(&mapped, RAM | GUEST_IN(GUEST_VGA));
	must_guest_image(&streamed, fixture_path("mapped-ram"));
	expect_another(&m, create_with_vga(&m, &mapped, DIOH_CREATE_CONTINUE, &feeder), &feeder);
	must_guest_load(&streamed, &WAY_MAPPED_RAM, fixture_path("mapped-ram"), 0, RAM);
	guest_free(&streamed);
	guest_free(&mapped);
}

static void what_was_in_a_memory_comes_by_the_stream_now(void **state)
{
	struct guest streamed, mapped;
	struct qemu_feeder feeder;
	struct moves m;

	(void)state;
	guest_make(&streamed, RAM);
	guest_make(&mapped, RAM | GUEST_IN(GUEST_VGA));
	must(create_with_vga(&m, &mapped, 0, &feeder), &m.err);
	must(moves_wait(&m, guest_begin_stream(&m)), &m.err);
	must(moves_region(&m, GUEST_REGION(GUEST_RAM), 0), &m.err);
	must(moves_region(&m, VGA_NUMBER, 0), &m.err);
	finish(&m);
	qemu_feeder_join(&feeder);
	m = (struct moves)MOVES(WAY_MAPPED_RAM, fixture_path("mapped-ram"));
	m.create_flags = DIOH_CREATE_CONTINUE;
	expect_another(&m, guest_create(&m, &streamed, qemu_feed(&feeder, streamed.q.bytes, streamed.q.count, 0)), &feeder);
	must_guest_load(&mapped, &WAY_MAPPED_RAM, fixture_path("mapped-ram"), 0, RAM | GUEST_IN(GUEST_VGA));
	guest_free(&streamed);
	guest_free(&mapped);
}

int main(int argc, char **argv)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(kept_without_checksums),
		cmocka_unit_test(kept_without_checksums_of_an_interrupted_save),
		cmocka_unit_test(kept_with_checksums),
		cmocka_unit_test(a_torn_head_is_continued),
		cmocka_unit_test(another_head_is_not),
		cmocka_unit_test(a_continued_container_is_partial),
		cmocka_unit_test(unknown_features_are_left_alone),
		cmocka_unit_test(a_continued_mapped_ram_image_is_partial),
		cmocka_unit_test(the_record_says_so_itself),
		cmocka_unit_test(the_managers_mark_goes_first),
		cmocka_unit_test(pages_that_come_no_more),
		cmocka_unit_test(where_no_hole_can_be_made),
		cmocka_unit_test(what_came_by_the_stream_is_in_a_memory_now),
		cmocka_unit_test(what_was_in_a_memory_comes_by_the_stream_now),
	};

	(void)argc;
	(void)snprintf(healthy, sizeof(healthy), "%s", fixture_helper());
	(void)snprintf(faulty, sizeof(faulty), "%.*s/faulty_engine", (int)(strrchr(argv[0], '/') - argv[0]), argv[0]);
	signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests_name("continue", tests, NULL, NULL);
}
