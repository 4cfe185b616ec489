/* SPDX-License-Identifier: LGPL-2.1-or-later */
#define _GNU_SOURCE
#include "guest_image.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static const struct dioh_qemu_block guest_blocks[GUEST_BLOCKS] = {
	[GUEST_RAM] = { .name = "pc.ram", .bytes = GUEST_RAM_BYTES, .guest_address = 0 },
	[GUEST_BIOS] = { .name = "pc.bios", .bytes = MIB / 4, .guest_address = 0xfffc0000 },
	[GUEST_VGA] = { .name = "0000:00:02.0/vga.vram", .bytes = GUEST_VGA_BYTES, .guest_address = 0xfd000000 },
	[GUEST_TINY] = { .name = "/rom@etc/acpi/rsdp", .bytes = PAGE, .guest_address = 0 },
};

/* ---- the guest ---- */

static void make_memory(struct guest *g, unsigned block)
{
	const uint64_t bytes = g->q.blocks[block].bytes;

	g->memories[block] = must_memfd(g->q.blocks[block].name, bytes, 0);
	must_fill_mixed(g->memories[block], bytes, 1, 40, test_seed() + block);
	assert_int_equal(pread(g->memories[block], g->q.memory[block], bytes, 0), bytes);
}

void guest_start(struct guest *g, uint32_t in_memory)
{
	qemu_start(&g->q, guest_blocks, GUEST_BLOCKS, in_memory ? DIOH_QEMU_IGNORE_SHARED : 0);
	for (unsigned i = 0; i < QEMU_BLOCKS_MAX; i++)
		g->memories[i] = -1;
	for (unsigned i = 0; i < GUEST_BLOCKS; i++)
		if (in_memory & GUEST_IN(i))
			make_memory(g, i);
	qemu_put_setup(&g->q);
}

static bool in_stream(const struct guest *g, unsigned block)
{
	return g->memories[block] < 0;
}

/* All pages in a first pass, some of which are zero; then some once more, of chunks that are stored by then. */
static void put_block(struct guest *g, unsigned block, unsigned pass)
{
	const uint64_t pages = g->q.blocks[block].bytes / PAGE;

	for (uint64_t page = 0; page < pages && in_stream(g, block); page++) {
		if (pass > 0 && page % (5 * pass) > 1)
			continue;
		qemu_put_page(&g->q, block, page, (page + pass) % 4 ? block + 8 * pass + 1 : 0);
	}
}

void guest_put_zeros(struct guest *g)
{
	for (unsigned i = 0; i < g->q.setup.block_count; i++)
		if (in_stream(g, i))
			qemu_put_page(&g->q, i, 0, 0);
}

void guest_finish_stream(struct guest *g, size_t device_bytes)
{
	struct qemu_maker *q = &g->q;

	qemu_put_command(q, 2, "ping", 4);
	for (unsigned pass = 0; pass < 3; pass++) {
		qemu_put_section(q, QEMU_PART);
		for (unsigned i = 0; i < GUEST_BLOCKS; i++)
			put_block(g, i, pass);
		qemu_put_section_end(q);
	}
	qemu_put_command(q, 11, "", 0);
	qemu_put_section(q, QEMU_END);
	qemu_put_section_end(q);
	qemu_put_device(q, 0, 16, 1);
	qemu_put_device(q, 3, device_bytes, 2);
	qemu_put_end(q);
}

void guest_make(struct guest *g, uint32_t in_memory)
{
	guest_start(g, in_memory);
	guest_finish_stream(g, 5000);
}

void guest_free(struct guest *g)
{
	for (unsigned i = 0; i < QEMU_BLOCKS_MAX; i++)
		if (g->memories[i] >= 0)
			close(g->memories[i]);
	qemu_free(&g->q);
}

/* ---- saving ---- */

static void add_region(struct moves *m, const struct guest *g, unsigned block)
{
	const struct dioh_qemu_block *from = &g->q.blocks[block];
	struct dioh_msg_entry *entry = moves_add_region(m, GUEST_REGION(block), from->bytes);

	memcpy(entry->name, from->name, sizeof(entry->name));
	entry->flags = DIOH_ENTRY_GUEST_ADDRESS;
	entry->guest_address = from->guest_address;
}

int guest_create(struct moves *m, const struct guest *g, int stream)
{
	for (unsigned i = 0; i < g->q.setup.block_count; i++)
		if (!in_stream(g, i))
			add_region(m, g, i);
	moves_add_stream(m, GUEST_ENTRY, 0);
	moves_start(m, DIOH_DIRECTION_SAVE);
	for (unsigned i = 0; i < g->q.setup.block_count; i++)
		if (!in_stream(g, i))
			moves_attach(m, GUEST_REGION(i), g->memories[i], -1);
	moves_attach_stream(m, 0, stream);
	return moves_create(m);
}

uint32_t guest_begin_stream(struct moves *m)
{
	return moves_begin_stream(m, 0, GUEST_ENTRY, 0);
}

void guest_save_memory(struct moves *m, const struct guest *g, uint32_t flags)
{
	for (unsigned i = 0; i < g->q.setup.block_count; i++)
		if (!in_stream(g, i))
			must(moves_region(m, GUEST_REGION(i), flags), &m->err);
}

void must_guest_save(struct moves *m, const struct guest *g, size_t piece, uint32_t flags, uint32_t mode)
{
	struct qemu_feeder feeder;

	must(guest_create(m, g, qemu_feed(&feeder, g->q.bytes, g->q.count, piece)), &m->err);
	must(moves_wait(m, moves_begin_stream(m, 0, GUEST_ENTRY, flags)), &m->err);
	assert_int_equal(m->complete.total_bytes, g->q.count);
	guest_save_memory(m, g, flags);
	must(moves_finish(m, mode), &m->err);
	moves_end(m, 0);
	qemu_feeder_join(&feeder);
}

void must_guest_image(const struct guest *g, const char *path)
{
	struct moves m = MOVES(WAY_MAPPED_RAM, path);

	must_guest_save(&m, g, 0, 0, DIOH_FINISH_DURABLE);
}

/* ---- loading ---- */

void guest_look(struct guest_load *l, const struct guest *g, const struct way *way, const char *path)
{
	memset(l, 0, sizeof(*l));
	l->m = (struct moves)MOVES(*way, path);
	l->g = g;
	moves_start(&l->m, DIOH_DIRECTION_LOAD);
	for (unsigned i = 0; i < g->q.setup.block_count; i++) {
		l->memories[i] = must_memfd("loaded", g->q.blocks[i].bytes, 0);
		must_fill(l->memories[i], 0, g->q.blocks[i].bytes, 77 + i);
		add_region(&l->m, g, i);
		moves_attach(&l->m, GUEST_REGION(i), l->memories[i], -1);
	}
	l->sink = must_open(fixture_path("sink"), O_RDWR | O_CREAT | O_TRUNC);
	moves_attach_stream(&l->m, 0, fcntl(l->sink, F_DUPFD_CLOEXEC, 0));
	must_seal(l->m.session);
}

int guest_open(struct guest_load *l, uint32_t flags, uint32_t table)
{
	struct dioh_msg_entry entries[QEMU_BLOCKS_MAX];
	struct dioh_open_options options = { .flags = flags, .entries = entries };

	for (unsigned i = 0; i < l->g->q.setup.block_count; i++) {
		if (!(table & GUEST_IN(i)))
			continue;
		entries[options.entry_count] = l->m.entries[i];
		entries[options.entry_count++].image_offset = 0;
	}
	if (table)
		options.layout = DIOH_LAYOUT_MAPPED_RAM;
	return dioh_open_image(l->m.session, &options, &l->m.opened, &l->m.err);
}

static uint32_t find_number(struct guest_load *l, const char *name, uint32_t *ret_entry)
{
	struct dioh_msg_entry entries[QEMU_BLOCKS_MAX + 1];
	uint32_t count, number = UINT32_MAX;

	must(dioh_get_table(l->m.session, 0, QEMU_BLOCKS_MAX + 1, entries, &count, &l->m.err), &l->m.err);
	assert_int_equal(count, l->g->q.setup.block_count + 1);
	for (unsigned i = 0; i + 1 < count; i++)
		if (strcmp(entries[i].name, name) == 0)
			number = entries[i].number;
	assert_int_equal(entries[count - 1].kind, DIOH_ENTRY_STREAM);
	*ret_entry = entries[count - 1].number;
	return number;
}

int guest_load_memory(struct guest_load *l, unsigned block, uint32_t flags)
{
	const struct dioh_qemu_block *from = &l->g->q.blocks[block];
	uint32_t entry;
	const struct dioh_msg_memory_transfer what = {
		.memory = GUEST_REGION(block),
		.region = find_number(l, from->name, &entry),
		.length = from->bytes,
		.flags = flags,
	};

	return moves_piece(&l->m, &what);
}

int guest_load_stream(struct guest_load *l, uint32_t flags)
{
	uint32_t entry;

	find_number(l, "", &entry);
	return moves_wait(&l->m, moves_begin_stream(&l->m, 0, entry, flags));
}

static void expect_loaded(const struct guest_load *l, unsigned block)
{
	const uint64_t bytes = l->g->q.blocks[block].bytes;
	uint8_t *loaded = malloc(bytes);

	assert_non_null(loaded);
	assert_int_equal(pread(l->memories[block], loaded, bytes, 0), bytes);
	assert_memory_equal(loaded, l->g->q.memory[block], bytes);
	free(loaded);
}

/* Behind the part that brings the pages everything QEMU sent stands as it was. */
static void expect_verbatim(const struct qemu_reader *loaded, const struct guest *g)
{
	struct qemu_reader sent;

	qemu_read(&sent, g->q.bytes, g->q.count);
	assert_true(loaded->verbatim_count >= sent.verbatim_count);
	assert_memory_equal(loaded->verbatim + loaded->verbatim_count - sent.verbatim_count, sent.verbatim,
	                    sent.verbatim_count);
	qemu_reader_free(&sent);
}

static void expect_block(const struct guest_load *l, const struct qemu_reader *loaded, unsigned block,
                         uint32_t in_memory)
{
	const struct dioh_qemu_block *got = &loaded->setup->blocks[block], *sent = &l->g->q.blocks[block];

	assert_string_equal(got->name, sent->name);
	assert_int_equal(got->bytes, sent->bytes);
	if (in_memory & GUEST_IN(block)) {
		assert_int_equal(got->guest_address, sent->guest_address);
		assert_int_equal(loaded->pages[block], 0);
		expect_loaded(l, block);
	} else {
		assert_int_equal(loaded->pages[block], sent->bytes / PAGE);
		assert_memory_equal(loaded->memory[block], l->g->q.memory[block], sent->bytes);
	}
}

static void expect_stream(const struct guest_load *l, uint32_t in_memory)
{
	const uint64_t bytes = must_bytes(l->sink);
	uint8_t *stream = mmap(NULL, bytes, PROT_READ, MAP_PRIVATE, l->sink, 0);
	struct qemu_reader loaded;

	assert_true(stream != MAP_FAILED);
	qemu_read(&loaded, stream, bytes);
	assert_int_equal(loaded.setup->capabilities, in_memory ? DIOH_QEMU_IGNORE_SHARED : 0);
	assert_string_equal(loaded.setup->machine, "pc-q35-10.0");
	assert_int_equal(loaded.setup->block_count, l->g->q.setup.block_count);
	for (unsigned i = 0; i < loaded.setup->block_count; i++)
		expect_block(l, &loaded, i, in_memory);
	expect_verbatim(&loaded, l->g);
	qemu_reader_free(&loaded);
	munmap(stream, bytes);
}

void guest_expect(struct guest_load *l, uint32_t in_memory)
{
	struct dioh_msg_entry entry;
	uint32_t count;

	must(dioh_get_table(l->m.session, l->g->q.setup.block_count, 1, &entry, &count, &l->m.err), &l->m.err);
	for (unsigned i = 0; i < l->g->q.setup.block_count; i++)
		if (in_memory & GUEST_IN(i))
			must(guest_load_memory(l, i, 0), &l->m.err);
	must(guest_load_stream(l, 0), &l->m.err);
	assert_int_equal(l->m.complete.total_bytes, must_bytes(l->sink));
	assert_int_equal(entry.bytes, must_bytes(l->sink)); /* it was known before */
	expect_stream(l, in_memory);
}

void guest_look_away(struct guest_load *l)
{
	moves_end(&l->m, 0);
	for (unsigned i = 0; i < l->g->q.setup.block_count; i++)
		close(l->memories[i]);
	close(l->sink);
}

void must_guest_load(const struct guest *g, const struct way *way, const char *path, uint32_t table,
                     uint32_t in_memory)
{
	struct guest_load l;

	guest_look(&l, g, way, path);
	must(guest_open(&l, 0, table), &l.m.err);
	guest_expect(&l, in_memory);
	guest_look_away(&l);
}

uint64_t guest_present_bytes(const struct guest *g, const struct way *way, const char *path, unsigned block)
{
	struct dioh_msg_entry entry;
	struct guest_load l;
	uint32_t count;

	guest_look(&l, g, way, path);
	must(guest_open(&l, 0, 0), &l.m.err);
	must(dioh_get_table(l.m.session, block, 1, &entry, &count, &l.m.err), &l.m.err);
	assert_string_equal(entry.name, g->q.blocks[block].name);
	guest_look_away(&l);
	return entry.present_bytes;
}

void guest_expect_open(const struct guest *g, const char *path, uint32_t flags, int code)
{
	struct guest_load l;
	int r;

	guest_look(&l, g, &WAY_MAPPED_RAM, path);
	r = guest_open(&l, flags, 0);
	if (r != -code)
		fail_msg("%s, flags %u: %d instead of %d: %s", path, flags, -r, code, r < 0 ? l.m.err.text : "it opened");
	if (r == 0)
		moves_assert_alive(&l.m);
	guest_look_away(&l);
}
