/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test_mapped_ram_images.c - mapped-ram images as they may be found: ours and QEMU's own, behind libvirt's header, cut
 * off, damaged, partial, or made to do harm. What is right is loaded, everything else is refused with an error that says
 * where, and wrong bytes are never given out as right ones.
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
#include <sys/ioctl.h>
#include <unistd.h>

#include "align.h"
#include "guest_image.h"
#include "libvirt_header.h"
#include "mapped_ram_format.h"
#include "pages.h"
#include "pattern.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

#define SAVE DIOH_DIRECTION_SAVE
#define RAM GUEST_IN(GUEST_RAM)
#define ALL_BLOCKS ((1u << GUEST_BLOCKS) - 1)

/* ---- the image ---- */

static struct {
	struct guest guest;
	char path[512];
	int fd;
	uint8_t *bytes; /* as it was written */
	uint64_t size;
	uint64_t record_at;
	struct dioh_record_head *head; /* in bytes */
	struct dioh_record_region *regions;
	struct dioh_record_extent *extents;
} image;

static void find_record(void)
{
	image.record_at = 0;
	while (memcmp(image.bytes + image.record_at, DIOH_RECORD_MAGIC, 16) != 0)
		image.record_at += PAGE;
	image.head = (void *)(image.bytes + image.record_at);
	image.regions = (void *)(image.bytes + image.head->regions.offset);
	image.extents = (void *)(image.bytes + image.head->extents.offset);
}

static int set_up(void **state)
{
	(void)state;
	snprintf(image.path, sizeof(image.path), "%s", fixture_path("image"));
	guest_make(&image.guest, RAM);
	must_guest_image(&image.guest, image.path);
	image.fd = must_open(image.path, O_RDWR);
	image.size = must_bytes(image.fd);
	image.bytes = malloc(image.size);
	assert_non_null(image.bytes);
	assert_int_equal(pread(image.fd, image.bytes, image.size, 0), image.size);
	find_record();
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	free(image.bytes);
	guest_free(&image.guest);
	return 0;
}

static void put(uint64_t at, const void *bytes, size_t count)
{
	assert_int_equal(pwrite(image.fd, bytes, count, (off_t)at), count);
}

static void restore(void)
{
	assert_int_equal(ftruncate(image.fd, (off_t)image.size), 0);
	put(0, image.bytes, image.size);
}

static void look(struct guest_load *l)
{
	guest_look(l, &image.guest, &WAY_MAPPED_RAM, image.path);
}

/* The error is about the image's bytes, and the session goes on. */
static void expect_refused(struct guest_load *l, uint32_t flags, int code, const char *what, uint64_t at)
{
	const struct dioh_error *err = &l->m.err;

	if (guest_open(l, flags, 0) != -code)
		fail_msg("%s %llu: %s", what, (unsigned long long)at, err->text);
	if ((err->operation != DIOH_OP_PARSE && err->operation != DIOH_OP_CHECKSUM && err->operation != DIOH_OP_READ) ||
	    err->object != DIOH_OBJECT_IMAGE || (code == EBADMSG && err->offset == DIOH_OFFSET_NONE))
		fail_msg("%s %llu: operation %u, object %u: %s", what, (unsigned long long)at, err->operation, err->object,
		         err->text);
}

static void expect_whole(void)
{
	must_guest_load(&image.guest, &WAY_MAPPED_RAM, image.path, 0, RAM);
}

/* ---- cut off ---- */

static unsigned add_edges(uint64_t *sizes, unsigned n, uint64_t offset, uint64_t bytes)
{
	sizes[n++] = offset;
	sizes[n++] = offset + 1;
	sizes[n++] = offset + bytes / 2;
	sizes[n++] = offset + bytes - 1;
	return n;
}

static void cut_off(void **state)
{
	uint64_t sizes[200];
	unsigned n = add_edges(sizes, 0, image.record_at, sizeof(*image.head));
	struct guest_load l;

	(void)state;
	n = add_edges(sizes, n, image.head->regions.offset, image.head->regions.bytes);
	n = add_edges(sizes, n, image.head->extents.offset, image.head->extents.bytes);
	for (unsigned i = 0; i < image.head->region_count; i++) {
		n = add_edges(sizes, n, image.regions[i].bitmap.offset, image.regions[i].bitmap.bytes);
		n = add_edges(sizes, n, image.regions[i].pages_offset, image.regions[i].bytes);
	}
	for (unsigned i = 0; i < image.head->extent_count; i++)
		n = add_edges(sizes, n, image.extents[i].offset, image.extents[i].bytes);
	assert_true(n <= COUNT(sizes));
	look(&l);
	for (unsigned i = 0; i < n; i++) {
		assert_true(sizes[i] < image.size);
		assert_int_equal(ftruncate(image.fd, (off_t)sizes[i]), 0);
		expect_refused(&l, i % 2 ? DIOH_OPEN_INSPECT : 0, EBADMSG, "cut at", sizes[i]);
		put(0, image.bytes, image.size);
	}
	guest_look_away(&l);
	expect_whole();
}

/* ---- a damaged record ---- */

static void flip(uint64_t at)
{
	uint8_t byte = image.bytes[at] ^ (uint8_t)(1u << at % 8);

	put(at, &byte, 1);
}

static void unflip(uint64_t at)
{
	put(at, image.bytes + at, 1);
}

/* Every so many bytes, and the last one. */
static void flip_each(struct guest_load *l, const char *what, uint64_t offset, uint64_t bytes, unsigned step)
{
	assert_true(bytes > 0);
	for (uint64_t k = 0; k < bytes + step - 1; k += step) {
		const uint64_t at = dioh_min(k, bytes - 1);

		flip(offset + at);
		expect_refused(l, at % 2 ? 0 : DIOH_OPEN_INSPECT, EBADMSG, what, at);
		unflip(offset + at);
	}
}

static void a_bit_in_the_record(void **state)
{
	const struct dioh_record_head *head = image.head;
	struct guest_load l;

	(void)state;
	look(&l);
	flip_each(&l, "head", image.record_at, sizeof(*head), 3);
	flip_each(&l, "region table", head->regions.offset, head->regions.bytes, 11);
	flip_each(&l, "stream table", head->streams.offset, head->streams.bytes, 7);
	flip_each(&l, "extent table", head->extents.offset, head->extents.bytes, 3);
	for (unsigned i = 0; i < head->region_count; i++) {
		flip_each(&l, "bitmap", image.regions[i].bitmap.offset, image.regions[i].bitmap.bytes, 5);
		flip_each(&l, "checksums", image.regions[i].checksums.offset, image.regions[i].checksums.bytes, 1);
	}
	for (unsigned i = 0; i < head->extent_count; i++)
		flip_each(&l, "extent's checksums", image.extents[i].checksums.offset, image.extents[i].checksums.bytes, 1);
	guest_look_away(&l);
	expect_whole();
}

/* QEMU's own bytes, too. Where the parser cannot follow them it says so first. */
static void a_bit_in_the_setup(void **state)
{
	struct guest_load l;

	(void)state;
	look(&l);
	for (unsigned i = 0; i < GUEST_BLOCKS; i++) {
		for (uint64_t at = image.extents[i].offset; at < image.extents[i].offset + image.extents[i].bytes; at++) {
			int r;

			flip(at);
			r = guest_open(&l, 0, 0);
			/* Magic and block size may make another file of it. */
			if (r != -EBADMSG && r != -EOPNOTSUPP && r != -EFBIG)
				fail_msg("setup, byte %llu: %d: %s", (unsigned long long)at, r, l.m.err.text);
			unflip(at);
		}
	}
	guest_look_away(&l);
	expect_whole();
}

static bool is_present(unsigned block, uint64_t page)
{
	return dioh_bit_test(image.bytes + image.regions[block].bitmap.offset, page);
}

static uint64_t a_present_page(unsigned block, uint64_t from)
{
	while (!is_present(block, from))
		from++;
	return from;
}

static void a_bit_in_the_pages(void **state)
{
	const uint64_t page = a_present_page(GUEST_RAM, 3 * CHUNK / PAGE);
	const uint64_t at = image.regions[GUEST_RAM].pages_offset + page * PAGE;
	struct guest_load l;

	(void)state;
	flip(at + 99);
	look(&l);
	must(guest_open(&l, 0, 0), &l.m.err);
	assert_int_equal(guest_load_memory(&l, GUEST_RAM, 0), -EBADMSG);
	moves_assert_error(&l.m, EBADMSG, CHECKSUM, REGION, GUEST_REGION(GUEST_RAM));
	assert_int_equal(l.m.err.offset, page * PAGE / CHUNK * CHUNK);
	must(guest_load_memory(&l, GUEST_RAM, DIOH_TRANSFER_NO_CHECKSUM), &l.m.err);
	guest_look_away(&l);
	unflip(at + 99);
	expect_whole();
}

/* `at` is somewhere in what the stream brings. What has come until then is right, and the end is missing. */
static void expect_damaged_stream(uint64_t at, uint32_t object, uint32_t number, uint64_t offset)
{
	struct guest_load l;
	struct dioh_msg_entry entry;
	uint32_t count;

	flip(at);
	look(&l);
	must(guest_open(&l, 0, 0), &l.m.err);
	must(dioh_get_table(l.m.session, GUEST_BLOCKS, 1, &entry, &count, &l.m.err), &l.m.err);
	assert_int_equal(guest_load_stream(&l, 0), -EBADMSG);
	assert_error_is(&l.m.err, EBADMSG, DIOH_OP_CHECKSUM, object, number, __FILE__, __LINE__);
	assert_int_equal(l.m.err.offset, offset);
	assert_true(must_bytes(l.sink) < entry.bytes);
	guest_look_away(&l);
	look(&l);
	must(guest_open(&l, 0, 0), &l.m.err);
	must(guest_load_stream(&l, DIOH_TRANSFER_NO_CHECKSUM), &l.m.err);
	guest_look_away(&l);
	unflip(at);
}

static void a_bit_in_the_stream(void **state)
{
	const struct dioh_record_extent *tail = &image.extents[GUEST_BLOCKS];
	const struct dioh_record_region *vga = &image.regions[GUEST_VGA], *bios = &image.regions[GUEST_BIOS];
	const uint64_t last = GUEST_VGA_BYTES / PAGE - 2;

	(void)state;
	expect_damaged_stream(tail->offset + 200, DIOH_OBJECT_IMAGE, 0, tail->offset);
	expect_damaged_stream(bios->pages_offset + a_present_page(GUEST_BIOS, 0) * PAGE, DIOH_OBJECT_REGION, bios->number, 0);
	expect_damaged_stream(vga->pages_offset + a_present_page(GUEST_VGA, last) * PAGE, DIOH_OBJECT_REGION, vga->number,
	                      GUEST_VGA_BYTES / CHUNK * CHUNK);
	expect_whole();
}

/* ---- a record that is sound in itself ---- */

static void seal(struct dioh_record_head *head, const struct dioh_record_region *regions,
                 const struct dioh_record_extent *extents)
{
	head->regions.crc32c = dioh_crc32c(0, regions, head->regions.bytes);
	head->extents.crc32c = dioh_crc32c(0, extents, head->extents.bytes);
	dioh_record_seal(head);
	put(head->regions.offset, regions, head->regions.bytes);
	put(head->extents.offset, extents, head->extents.bytes);
	put(image.record_at, head, sizeof(*head));
}

struct contradiction {
	struct dioh_record_head head;
	struct dioh_record_region regions[GUEST_BLOCKS];
	struct dioh_record_extent extents[GUEST_BLOCKS + 1];
};

static void another_name(struct contradiction *c)
{
	c->regions[GUEST_BIOS].name[0]++;
}

static void smaller_region(struct contradiction *c)
{
	struct dioh_record_region *region = &c->regions[GUEST_VGA];

	region->bytes -= PAGE;
}

static void other_pages(struct contradiction *c)
{
	c->regions[GUEST_RAM].pages_offset += PAGE;
	c->regions[GUEST_RAM].bytes -= PAGE;
}

static void fewer_regions(struct contradiction *c)
{
	c->head.region_count = 1;
	c->head.regions.bytes = sizeof(c->regions[0]);
}

static void other_extent(struct contradiction *c)
{
	c->extents[1].offset++;
	c->extents[2].bytes--;
}

static void container(struct contradiction *c)
{
	c->head.layout = DIOH_LAYOUT_CONTAINER;
}

static void longer_header(struct contradiction *c)
{
	c->head.header.bytes = 0;
	c->head.header.offset = PAGE;
}

static void too_many_pages(struct contradiction *c)
{
	c->regions[GUEST_TINY].present_pages ^= 1;
}

static void a_record_of_another_image(void **state)
{
	static const struct {
		const char *what;
		int code;
		void (*contradict)(struct contradiction *c);
	} contradictions[] = {
		{ "another name", EBADMSG, another_name },     { "a smaller region", EBADMSG, smaller_region },
		{ "other pages", EBADMSG, other_pages },       { "fewer regions", EBADMSG, fewer_regions },
		{ "another extent", EBADMSG, other_extent },   { "a container", EOPNOTSUPP, container },
		{ "a longer header", EBADMSG, longer_header }, { "too many pages", EBADMSG, too_many_pages },
	};
	struct guest_load l;

	(void)state;
	look(&l);
	for (unsigned i = 0; i < COUNT(contradictions); i++) {
		struct contradiction c;

		c.head = *image.head;
		memcpy(c.regions, image.regions, sizeof(c.regions));
		memcpy(c.extents, image.extents, sizeof(c.extents));
		contradictions[i].contradict(&c);
		seal(&c.head, c.regions, c.extents);
		expect_refused(&l, 0, contradictions[i].code, contradictions[i].what, i);
		expect_refused(&l, DIOH_OPEN_INSPECT, contradictions[i].code, contradictions[i].what, i);
		restore();
	}
	guest_look_away(&l);
	expect_whole();
}

/* It says that it is partial, and has fewer regions than QEMU's bytes have blocks. */
static void a_partial_record_of_another_image(void **state)
{
	struct dioh_record_head head = *image.head;
	struct guest_load l;

	(void)state;
	head.state = DIOH_STATE_PARTIAL;
	head.region_count = 1;
	head.regions.bytes = sizeof(struct dioh_record_region);
	head.extent_count = 0;
	head.extents.bytes = 0;
	head.extents.crc32c = 0;
	dioh_record_seal(&head);
	put(image.record_at, &head, sizeof(head));
	look(&l);
	assert_int_equal(guest_open(&l, DIOH_OPEN_INSPECT, ALL_BLOCKS), -EBADMSG);
	if (!strstr(l.m.err.text, "regions"))
		fail_msg("%s", l.m.err.text);
	expect_refused(&l, DIOH_OPEN_INSPECT, EBADMSG, "fewer regions", 0);
	expect_refused(&l, 0, ENODATA, "fewer regions", 0);
	guest_look_away(&l);
	restore();
	expect_whole();
}

/* ---- states ---- */

static void inspect(const char *path, uint32_t state_wanted, unsigned regions)
{
	struct guest_load l;

	guest_look(&l, &image.guest, &WAY_MAPPED_RAM, path);
	must(guest_open(&l, DIOH_OPEN_INSPECT, 0), &l.m.err);
	assert_int_equal(l.m.opened.layout, DIOH_LAYOUT_MAPPED_RAM);
	assert_int_equal(l.m.opened.state, state_wanted);
	assert_int_equal(l.m.opened.region_count, regions);
	if (regions) {
		const struct dioh_msg_stream_transfer what = { .stream = 0, .entry = GUEST_ENTRY };

		assert_int_equal(dioh_load_stream(l.m.session, &what, NULL, &l.m.err), -EPROTO);
	}
	guest_look_away(&l);
}

/* Power may have failed before it was there. */
static void zero_region_table(const char *path)
{
	static const struct dioh_record_region none[GUEST_BLOCKS];
	int fd = must_open(path, O_RDWR);

	assert_int_equal(pwrite(fd, none, sizeof(none), (off_t)image.head->regions.offset), sizeof(none));
	close(fd);
}

/* At every step of a save that is not the last one. */
static void partial(void **state)
{
	char path[512];

	(void)state;
	snprintf(path, sizeof(path), "%s", fixture_path("partial"));
	for (unsigned steps = 0; steps < 3; steps++) {
		struct moves m = MOVES(WAY_MAPPED_RAM, path);
		struct qemu_feeder feeder;

		must(guest_create(&m, &image.guest, qemu_feed(&feeder, image.guest.q.bytes, image.guest.q.count, 0)), &m.err);
		if (steps > 0)
			must(moves_wait(&m, guest_begin_stream(&m)), &m.err);
		if (steps > 1)
			guest_save_memory(&m, &image.guest, 0);
		moves_end(&m, 1);
		qemu_feeder_join(&feeder);
		guest_expect_open(&image.guest, path, 0, ENODATA);
		inspect(path, DIOH_STATE_PARTIAL, GUEST_BLOCKS);
		zero_region_table(path);
		guest_expect_open(&image.guest, path, 0, ENODATA);
		inspect(path, DIOH_STATE_PARTIAL, 0);
	}
}

/* All is there but QEMU's magic, as when power fails in the middle of the commit. */
static void without_magic(void **state)
{
	(void)state;
	put(0, "\0\0\0\0", 4);
	guest_expect_open(&image.guest, image.path, 0, ENODATA);
	inspect(image.path, DIOH_STATE_PARTIAL, GUEST_BLOCKS);
	restore();
	expect_whole();
}

/*
 * Where the tables stand before the record's head, a save onto a device has zeroed some while the head is still there: but
 * QEMU's magic has gone before. Nothing else tells who does without checksums.
 */
static void saved_over_while_open(void **state)
{
	static const uint8_t zeros[512];
	const struct dioh_record_area *bitmap = &image.regions[GUEST_RAM].bitmap;
	struct guest_load l;
	uint64_t count;
	uint8_t byte;

	(void)state;
	assert_true(bitmap->offset < image.record_at && bitmap->bytes <= sizeof(zeros));
	look(&l);
	must(guest_open(&l, 0, 0), &l.m.err);
	put(0, zeros, sizeof(zeros));
	put(bitmap->offset, zeros, bitmap->bytes);
	assert_int_equal(guest_load_memory(&l, GUEST_RAM, DIOH_TRANSFER_NO_CHECKSUM), -EBADMSG);
	moves_assert_error(&l.m, EBADMSG, PARSE, IMAGE, 0);
	assert_int_equal(dioh_read_header(l.m.session, 0, &byte, 1, &count, &l.m.err), -EBADMSG);
	guest_look_away(&l);
	restore();
}

static void must_read(int fd, uint64_t bytes)
{
	uint8_t some[65536];

	while (bytes > 0) {
		const ssize_t n = read(fd, some, bytes < sizeof(some) ? bytes : sizeof(some));

		assert_true(n > 0);
		bytes -= (uint64_t)n;
	}
}

/* Until nothing more has come for a while. */
static void let_it_fill(int pipe_end)
{
	int before = -1, now = 0;

	while (now != before) {
		before = now;
		usleep(50000);
		assert_int_equal(ioctl(pipe_end, FIONREAD, &now), 0);
	}
}

/* When all has been read from it, and the last of that stands in the way to who wants the stream: only the last look tells. */
static void saved_over_while_its_stream_is_read(void **state)
{
	static const uint8_t zeros[512];
	struct moves l = MOVES(WAY_MAPPED_RAM, image.path);
	struct dioh_msg_entry table[GUEST_BLOCKS + 1];
	uint32_t count, id;
	int ends[2];

	(void)state;
	assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
	moves_start(&l, DIOH_DIRECTION_LOAD);
	moves_attach_stream(&l, 0, ends[1]);
	must(moves_open(&l, 0), &l.err);
	must(dioh_get_table(l.session, 0, GUEST_BLOCKS + 1, table, &count, &l.err), &l.err);
	id = moves_begin_stream(&l, 0, table[count - 1].number, 0);
	must_read(ends[0], table[count - 1].bytes - (uint64_t)fcntl(ends[0], F_GETPIPE_SZ) - PAGE);
	let_it_fill(ends[0]);
	put(0, zeros, sizeof(zeros));
	moves_end_saved_over(&l, id, ends[0]);
	restore();
}

static void written_but_never_synced(void **state)
{
	struct moves m = MOVES(WAY_MAPPED_RAM, fixture_path("written"));
	struct guest_load l;

	(void)state;
	must_guest_save(&m, &image.guest, 0, 0, DIOH_FINISH_WRITTEN);
	guest_expect_open(&image.guest, m.path, 0, ESTALE);
	inspect(m.path, DIOH_STATE_WRITTEN, GUEST_BLOCKS);
	guest_look(&l, &image.guest, &WAY_MAPPED_RAM, m.path);
	must(guest_open(&l, DIOH_OPEN_ACCEPT_WRITTEN, 0), &l.m.err);
	guest_expect(&l, RAM);
	guest_look_away(&l);
	m = (struct moves)MOVES(WAY_MAPPED_RAM, fixture_path("written"));
	must_guest_save(&m, &image.guest, 0, DIOH_TRANSFER_NO_CHECKSUM, DIOH_FINISH_WRITTEN);
	guest_expect_open(&image.guest, m.path, DIOH_OPEN_ACCEPT_WRITTEN, ESTALE);
}

/* ---- QEMU's own images ---- */

static int foreign_file(char *ret_path, struct qemu_maker *q, uint64_t at)
{
	int fd;

	snprintf(ret_path, 512, "%s", fixture_path("foreign"));
	fd = must_open(ret_path, O_RDWR | O_CREAT | O_TRUNC);
	qemu_write_image(q, fd, at);
	return fd;
}

/* QEMU's parts have no pages in them. */
static void foreign_guest(struct guest *g)
{
	guest_start(g, ALL_BLOCKS);
	guest_finish_stream(g, 3000);
}

static void as_qemu_writes_it(void **state)
{
	static const uint32_t tables[] = { 0, RAM, RAM | GUEST_IN(GUEST_TINY), ALL_BLOCKS };
	struct dioh_msg_entry entries[GUEST_BLOCKS];
	struct guest_load l;
	char path[512];
	struct guest g;
	uint32_t count;

	(void)state;
	foreign_guest(&g);
	for (unsigned i = 0; i < 2 * COUNT(tables); i++) {
		struct way way = WAY_MAPPED_RAM;

		way.base_offset = i % 2 ? 3 * PAGE : 0;
		close(foreign_file(path, &g.q, way.base_offset));
		must_guest_load(&g, &way, path, tables[i / 2], tables[i / 2]);
	}
	close(foreign_file(path, &g.q, 0));
	guest_look(&l, &g, &WAY_MAPPED_RAM, path);
	must(guest_open(&l, DIOH_OPEN_INSPECT, 0), &l.m.err);
	assert_int_equal(l.m.opened.state, DIOH_STATE_UNKNOWN);
	must(dioh_get_table(l.m.session, 0, COUNT(entries), entries, &count, &l.m.err), &l.m.err);
	for (unsigned i = 0; i < count; i++)
		assert_int_equal(entries[i].flags, DIOH_ENTRY_IN_STREAM);
	assert_int_equal(entries[GUEST_RAM].present_bytes, must_count_data(g.memories[GUEST_RAM]));
	guest_look_away(&l);
	guest_free(&g);
}

/* Our image without its record is one of QEMU's. */
static void ours_without_a_record(void **state)
{
	static const uint8_t zeros[PAGE];

	(void)state;
	put(image.record_at, zeros, sizeof(zeros));
	must_guest_load(&image.guest, &WAY_MAPPED_RAM, image.path, RAM, RAM);
	must_guest_load(&image.guest, &WAY_MAPPED_RAM, image.path, 0, 0);
	restore();
}

static void tables_for_it(void **state)
{
	struct guest_load l;
	char path[512];
	struct guest g;

	(void)state;
	foreign_guest(&g);
	close(foreign_file(path, &g.q, 0));
	guest_look(&l, &g, &WAY_MAPPED_RAM, path);
	l.m.entries[0].name[0]++;
	assert_int_equal(guest_open(&l, 0, RAM), -ENOENT);
	moves_assert_error(&l.m, ENOENT, PARSE, REGION, GUEST_REGION(GUEST_RAM));
	l.m.entries[0].name[0]--;
	l.m.entries[0].bytes += PAGE;
	assert_int_equal(guest_open(&l, 0, RAM), -EINVAL);
	l.m.entries[0].bytes -= PAGE;
	l.m.entries[0].flags = 0; /* nobody knows its address */
	assert_int_equal(guest_open(&l, 0, RAM), -EINVAL);
	l.m.entries[0].flags = DIOH_ENTRY_GUEST_ADDRESS;
	must(guest_open(&l, 0, RAM), &l.m.err);
	guest_expect(&l, RAM);
	guest_look_away(&l);
	guest_free(&g);
	/* Ours knows it. */
	look(&l);
	l.m.entries[0].guest_address += PAGE;
	assert_int_equal(guest_open(&l, 0, RAM), -EINVAL);
	moves_assert_error(&l.m, EINVAL, PARSE, REGION, GUEST_REGION(GUEST_RAM));
	l.m.entries[0].guest_address -= PAGE;
	must(guest_open(&l, 0, RAM), &l.m.err);
	guest_expect(&l, RAM);
	guest_look_away(&l);
}

/* Fields of a block's header, behind its name. */
enum header_field { AT_BYTES = 0, AT_VERSION = 8, AT_PAGE_BYTES = 12, AT_BITMAP = 20, AT_PAGES = 28 };

struct bad_field {
	const char *what;
	unsigned block;
	enum header_field at;
	unsigned bytes;
	uint64_t value;
	int code;
};

static void put_field(int fd, const struct qemu_maker *q, const struct bad_field *bad)
{
	const uint64_t at = q->header_at[bad->block] + 1 + strlen(q->blocks[bad->block].name) + bad->at;

	for (unsigned i = 0; i < bad->bytes; i++) {
		uint8_t byte = (uint8_t)(bad->value >> (bad->bytes - 1 - i) * 8);

		assert_int_equal(pwrite(fd, &byte, 1, (off_t)(at + i)), 1);
	}
}

static void expect_bad_foreign(const struct guest *g, const char *path, int code, const char *what)
{
	struct guest_load l;

	guest_look(&l, g, &WAY_MAPPED_RAM, path);
	expect_refused(&l, 0, code, what, 0);
	expect_refused(&l, DIOH_OPEN_INSPECT, code, what, 0);
	guest_look_away(&l);
}

static void headers_that_lie(void **state)
{
	static const uint64_t wraps = UINT64_MAX - PAGE + 1;
	struct guest g;
	char path[512];

	(void)state;
	foreign_guest(&g);
	close(foreign_file(path, &g.q, 0)); /* now its places are known */
	{
		const struct dioh_qemu_block *ram = &g.q.blocks[GUEST_RAM], *vga = &g.q.blocks[GUEST_VGA];
		const struct bad_field bad[] = {
			{ "page size 0", 0, AT_PAGE_BYTES, 8, 0, EOPNOTSUPP },
			{ "page size 2 MiB", 0, AT_PAGE_BYTES, 8, 2 * MIB, EOPNOTSUPP },
			{ "version 2", 1, AT_VERSION, 4, 2, EOPNOTSUPP },
			{ "bitmap in front of its header", 2, AT_BITMAP, 8, 0, EBADMSG },
			{ "bitmap behind its pages", 2, AT_BITMAP, 8, vga->pages_offset, EBADMSG },
			{ "bitmap wild", 0, AT_BITMAP, 8, wraps, EBADMSG },
			{ "pages unaligned", 0, AT_PAGES, 8, ram->pages_offset + 512, EBADMSG },
			{ "pages on the bitmap", 0, AT_PAGES, 8, 0, EBADMSG },
			{ "pages behind the end", 3, AT_PAGES, 8, 1 * GIB, EBADMSG },
			{ "pages wild", 0, AT_PAGES, 8, wraps, EBADMSG },
			{ "pages of one on another's", 0, AT_PAGES, 8, ram->pages_offset + MIB, EBADMSG },
			{ "size 0", 1, AT_BYTES, 8, 0, EBADMSG },
			{ "size that wraps", 1, AT_BYTES, 8, wraps, EBADMSG },
			{ "size that is none", 1, AT_BYTES, 8, 5000, EBADMSG },
			{ "size that is too much", 3, AT_BYTES, 8, 2 * PAGE, EBADMSG },
		};

		for (unsigned i = 0; i < COUNT(bad); i++) {
			int fd = foreign_file(path, &g.q, 0);

			put_field(fd, &g.q, &bad[i]);
			close(fd);
			expect_bad_foreign(&g, path, bad[i].code, bad[i].what);
		}
	}
	guest_free(&g);
}

static void two_of_a_name(void **state)
{
	const struct dioh_qemu_block blocks[] = { { .name = "twin", .bytes = PAGE }, { .name = "twin", .bytes = PAGE } };
	struct guest g;
	char path[512];

	(void)state;
	foreign_guest(&g);
	qemu_free(&g.q);
	qemu_start(&g.q, blocks, 1, 0);
	qemu_put_setup(&g.q);
	qemu_free(&g.q);
	qemu_start(&g.q, blocks, 2, 0);
	qemu_put_setup(&g.q);
	close(foreign_file(path, &g.q, 0));
	g.q.setup.block_count = 1; /* attached is one */
	expect_bad_foreign(&g, path, EBADMSG, "two of a name");
	guest_free(&g);
}

static void bits_behind_the_last_page(void **state)
{
	struct guest g;
	char path[512];
	int fd;

	(void)state;
	foreign_guest(&g);
	fd = foreign_file(path, &g.q, 0);
	assert_int_equal(pwrite(fd, "\3", 1, (off_t)g.q.blocks[GUEST_TINY].bitmap_offset), 1);
	close(fd);
	expect_bad_foreign(&g, path, EBADMSG, "a bit too many");
	guest_free(&g);
}

static void foreign_cut_off(void **state)
{
	struct guest g;
	char path[512];

	(void)state;
	foreign_guest(&g);
	for (unsigned i = 0; i < 8; i++) {
		int fd = foreign_file(path, &g.q, 0);
		const struct dioh_qemu_block *last = &g.q.blocks[GUEST_TINY];
		const uint64_t tail = last->pages_offset + last->bytes, end = must_bytes(fd);
		const uint64_t sizes[] = { 20, 100, g.q.blocks[0].bitmap_offset + 3, last->pages_offset - 5, tail, tail + 10,
			                   end - 2000, end - 1 };

		assert_int_equal(ftruncate(fd, (off_t)sizes[i]), 0);
		close(fd);
		print_message("cut at %llu of %llu\n", (unsigned long long)sizes[i], (unsigned long long)end);
		guest_expect_open(&g, path, 0, EBADMSG);
	}
	guest_free(&g);
}

/* Guest memory that begins where a record would: it is the guest's, whatever it says. */
static void a_guest_that_plays_record(void **state)
{
	const struct dioh_qemu_block blocks[] = { { .name = "ram", .bytes = PAGE } };
	struct dioh_record_head head = *image.head;
	struct guest g;
	char path[512];
	uint64_t base;
	struct way way = WAY_MAPPED_RAM;

	(void)state;
	foreign_guest(&g);
	qemu_free(&g.q);
	for (unsigned i = 0; i < GUEST_BLOCKS; i++) {
		close(g.memories[i]);
		g.memories[i] = -1;
	}
	qemu_start(&g.q, blocks, 1, 0);
	qemu_put_setup(&g.q);
	qemu_put_section(&g.q, QEMU_END);
	qemu_put_section_end(&g.q);
	qemu_put_end(&g.q);
	memcpy(g.q.memory[0], &head, PAGE);
	/* The bitmap ends in the page in front of the pages. */
	base = MIB - PAGE;
	way.base_offset = base;
	close(foreign_file(path, &g.q, base));
	assert_int_equal(g.q.blocks[0].pages_offset, base + PAGE);
	must_guest_load(&g, &way, path, 0, 0);
	guest_free(&g);
}

/* ---- libvirt's header ---- */

static const char xml[] = "<domain type='kvm'><name>vm</name><uuid>c7a5fdbd-edaf-9455-926a-d65c16db1809</uuid>"
                          "<memory unit='KiB'>5132</memory></domain>";

#define LIBVIRT_BYTES 4096u

static void make_libvirt(uint8_t *header, const char *magic, uint32_t format, uint32_t version)
{
	const uint32_t fields[] = { version, LIBVIRT_BYTES - DIOH_LIBVIRT_HEADER_BYTES, 1, format, 0 };

	memset(header, 0, LIBVIRT_BYTES);
	memcpy(header, magic, 16);
	memcpy(header + 16, fields, sizeof(fields));
	memcpy(header + DIOH_LIBVIRT_HEADER_BYTES, xml, sizeof(xml));
}

/* As a host of the other byte order writes it. */
static void swap_libvirt(uint8_t *header)
{
	for (uint8_t *field = header + 16; field < header + 36; field += 4) {
		uint32_t value;

		memcpy(&value, field, sizeof(value));
		value = __builtin_bswap32(value);
		memcpy(field, &value, sizeof(value));
	}
}

static void behind_libvirts_header(void **state)
{
	uint8_t header[LIBVIRT_BYTES];
	struct moves m = MOVES(WAY_MAPPED_RAM, fixture_path("libvirt"));
	struct qemu_feeder feeder;
	struct guest_load l;
	uint32_t finish;

	(void)state;
	make_libvirt(header, DIOH_LIBVIRT_MAGIC_PARTIAL, DIOH_LIBVIRT_SPARSE, 2);
	m.header = header;
	m.header_bytes = sizeof(header);
	must(guest_create(&m, &image.guest, qemu_feed(&feeder, image.guest.q.bytes, image.guest.q.count, 0)), &m.err);
	inspect(m.path, DIOH_STATE_PARTIAL, GUEST_BLOCKS);
	guest_save_memory(&m, &image.guest, 0);
	must(moves_wait(&m, guest_begin_stream(&m)), &m.err);
	guest_expect_open(&image.guest, m.path, 0, ENODATA);
	inspect(m.path, DIOH_STATE_PARTIAL, GUEST_BLOCKS);
	must(dioh_finish(m.session, DIOH_FINISH_DURABLE, 0, DIOH_LIBVIRT_MAGIC_COMPLETE, 16, &finish, &m.err), &m.err);
	must(moves_wait(&m, finish), &m.err);
	moves_end(&m, 0);
	qemu_feeder_join(&feeder);

	guest_look(&l, &image.guest, &WAY_MAPPED_RAM, m.path);
	must(guest_open(&l, 0, 0), &l.m.err);
	assert_int_equal(l.m.opened.state, DIOH_STATE_COMPLETE);
	assert_int_equal(l.m.opened.header_kind, DIOH_HEADER_LIBVIRT);
	assert_int_equal(l.m.opened.header_format, DIOH_LIBVIRT_SPARSE);
	assert_int_equal(l.m.opened.header_flags, DIOH_HEADER_COMPLETE | DIOH_HEADER_WAS_RUNNING);
	assert_string_equal(l.m.opened.domain_name, "vm");
	assert_string_equal(l.m.opened.domain_uuid, "c7a5fdbd-edaf-9455-926a-d65c16db1809");
	assert_int_equal(l.m.opened.domain_memory_bytes, 5132 * 1024);
	assert_int_equal(l.m.opened.header_bytes, sizeof(header));
	guest_expect(&l, RAM);
	guest_look_away(&l);
}

static int libvirt_file(struct guest *g, const uint8_t *header, char *ret_path)
{
	int fd = foreign_file(ret_path, &g->q, LIBVIRT_BYTES);

	assert_int_equal(pwrite(fd, header, LIBVIRT_BYTES, 0), LIBVIRT_BYTES);
	return fd;
}

static void as_libvirt_writes_it(void **state)
{
	static const struct {
		const char *magic;
		uint32_t format, version;
		int code; /* of an open */
		int inspect_code;
		bool swapped;
	} cases[] = {
		{ DIOH_LIBVIRT_MAGIC_COMPLETE, DIOH_LIBVIRT_SPARSE, 2, 0, 0, false },
		{ DIOH_LIBVIRT_MAGIC_COMPLETE, DIOH_LIBVIRT_SPARSE, 2, EOPNOTSUPP, EOPNOTSUPP, true },
		{ DIOH_LIBVIRT_MAGIC_PARTIAL, DIOH_LIBVIRT_SPARSE, 2, EOPNOTSUPP, EOPNOTSUPP, true },
		{ DIOH_LIBVIRT_MAGIC_COMPLETE, DIOH_LIBVIRT_RAW, 2, EOPNOTSUPP, 0, true }, /* streams have no bitmaps */
		{ DIOH_LIBVIRT_MAGIC_PARTIAL, DIOH_LIBVIRT_SPARSE, 2, ENODATA, 0, false },
		{ DIOH_LIBVIRT_MAGIC_COMPLETE, DIOH_LIBVIRT_RAW, 2, EOPNOTSUPP, 0, false },
		{ DIOH_LIBVIRT_MAGIC_COMPLETE, DIOH_LIBVIRT_ZSTD, 2, EOPNOTSUPP, 0, false },
		{ DIOH_LIBVIRT_MAGIC_PARTIAL, DIOH_LIBVIRT_ZSTD, 2, EOPNOTSUPP, 0, false },
		{ DIOH_LIBVIRT_MAGIC_COMPLETE, DIOH_LIBVIRT_SPARSE, 9, EOPNOTSUPP, EOPNOTSUPP, false },
		{ DIOH_LIBVIRT_MAGIC_COMPLETE, 7, 2, EOPNOTSUPP, EOPNOTSUPP, false },
	};
	struct guest g;
	char path[512];

	(void)state;
	foreign_guest(&g);
	for (unsigned i = 0; i < COUNT(cases); i++) {
		uint8_t header[LIBVIRT_BYTES];

		make_libvirt(header, cases[i].magic, cases[i].format, cases[i].version);
		if (cases[i].swapped)
			swap_libvirt(header);
		close(libvirt_file(&g, header, path));
		guest_expect_open(&g, path, 0, cases[i].code);
		guest_expect_open(&g, path, DIOH_OPEN_INSPECT, cases[i].inspect_code);
		if (cases[i].code == 0)
			must_guest_load(&g, &WAY_MAPPED_RAM, path, RAM, RAM);
	}
	guest_free(&g);
}

static void libvirt_headers_that_lie(void **state)
{
	static const uint32_t lengths[] = { 0, UINT32_MAX, 0x7fffffff, 64u << 20 };
	uint8_t header[LIBVIRT_BYTES];
	struct guest g;
	char path[512];
	int fd;

	(void)state;
	foreign_guest(&g);
	for (unsigned i = 0; i < COUNT(lengths); i++) {
		make_libvirt(header, DIOH_LIBVIRT_MAGIC_COMPLETE, DIOH_LIBVIRT_SPARSE, 2);
		memcpy(header + 20, &lengths[i], sizeof(lengths[i]));
		close(libvirt_file(&g, header, path));
		expect_bad_foreign(&g, path, EBADMSG, "a header's length");
	}
	/* A save of libvirt's that got no further. */
	make_libvirt(header, DIOH_LIBVIRT_MAGIC_PARTIAL, DIOH_LIBVIRT_SPARSE, 2);
	fd = libvirt_file(&g, header, path);
	assert_int_equal(ftruncate(fd, LIBVIRT_BYTES + 100), 0);
	close(fd);
	guest_expect_open(&g, path, 0, ENODATA);
	inspect(path, DIOH_STATE_PARTIAL, 0);
	guest_free(&g);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(cut_off),
		cmocka_unit_test(a_bit_in_the_record),
		cmocka_unit_test(a_bit_in_the_setup),
		cmocka_unit_test(a_bit_in_the_pages),
		cmocka_unit_test(a_bit_in_the_stream),
		cmocka_unit_test(a_record_of_another_image),
		cmocka_unit_test(a_partial_record_of_another_image),
		cmocka_unit_test(partial),
		cmocka_unit_test(without_magic),
		cmocka_unit_test(saved_over_while_open),
		cmocka_unit_test(saved_over_while_its_stream_is_read),
		cmocka_unit_test(written_but_never_synced),
		cmocka_unit_test(as_qemu_writes_it),
		cmocka_unit_test(ours_without_a_record),
		cmocka_unit_test(tables_for_it),
		cmocka_unit_test(headers_that_lie),
		cmocka_unit_test(two_of_a_name),
		cmocka_unit_test(bits_behind_the_last_page),
		cmocka_unit_test(foreign_cut_off),
		cmocka_unit_test(a_guest_that_plays_record),
		cmocka_unit_test(behind_libvirts_header),
		cmocka_unit_test(as_libvirt_writes_it),
		cmocka_unit_test(libvirt_headers_that_lie),
	};

	signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests_name("mapped-ram images", tests, set_up, tear_down);
}
