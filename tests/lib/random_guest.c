/* SPDX-License-Identifier: LGPL-2.1-or-later */
#define _GNU_SOURCE
#include "random_guest.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "moves.h"

#define PLAIN_STREAM_BYTES_MAX 100000u
#define DEVICE_BYTES_MAX 20000u

#define die(what) fixture_die(__FILE__, __LINE__, what, strerror(errno))

static unsigned below(uint64_t *random, unsigned n)
{
	return (unsigned)(test_random(random) % n);
}

/* Mostly small, on each side of a chunk's end; some that take a while; now and then one that workers share (protocol.md). */
static uint64_t some_bytes(uint64_t *random)
{
	static const unsigned pages[] = { 1, 7, 256, 257, 300, 1024, 2000 };
	const unsigned n = below(random, 300);

	if (n == 0)
		return 128 * MIB + (1 + below(random, 8192)) * PAGE;
	return (n < 8 ? 8192 + below(random, 8192) : pages[below(random, 7)]) * PAGE;
}

static void make_memories(struct random_guest *guest, const char *name, uint64_t *random)
{
	guest->count = 1 + below(random, RANDOM_GUEST_MEMORIES);
	for (unsigned i = 0; i < guest->count; i++) {
		guest->bytes[i] = some_bytes(random);
		guest->memories[i] = must_memfd("guest", guest->bytes[i], 0);
		must_fill_mixed(guest->memories[i], guest->bytes[i], 1, 30, test_random(random));
		(void)snprintf(guest->name[i], sizeof(guest->name[i]), "%.20s.%u", name, i);
	}
}

/* Pages of the block that is in the stream, some of them twice. */
static void put_pages(struct qemu_maker *q, unsigned block, uint64_t *random)
{
	const uint64_t pages = q->blocks[block].bytes / PAGE;

	for (uint64_t page = 0; page < pages; page++)
		qemu_put_page(q, block, page, below(random, 4) ? test_random(random) | 1 : 0);
	for (unsigned i = 0; i < 20; i++)
		qemu_put_page(q, block, below(random, (unsigned)pages), below(random, 2) ? test_random(random) | 1 : 0);
}

static void make_qemus_stream(struct random_guest *guest, uint64_t *random)
{
	struct dioh_qemu_block blocks[RANDOM_GUEST_MEMORIES + 1] = { 0 };
	struct qemu_maker *q = &guest->q;

	for (unsigned i = 0; i < guest->count; i++) {
		memcpy(blocks[i].name, guest->name[i], sizeof(guest->name[i]));
		blocks[i].bytes = guest->bytes[i];
		blocks[i].guest_address = i * GIB;
	}
	(void)snprintf(blocks[guest->count].name, sizeof(blocks[0].name), "%s's vga", guest->name[0]);
	blocks[guest->count].bytes = (1 + below(random, 300)) * PAGE;
	blocks[guest->count].guest_address = UINT64_C(64) * GIB;
	qemu_start(q, blocks, guest->count + 1, DIOH_QEMU_IGNORE_SHARED);
	qemu_put_setup(q);
	qemu_put_section(q, QEMU_PART);
	put_pages(q, guest->count, random);
	qemu_put_section_end(q);
	qemu_put_section(q, QEMU_END);
	qemu_put_section_end(q);
	qemu_put_device(q, 3, below(random, DEVICE_BYTES_MAX), test_random(random));
	qemu_put_end(q);
}

void random_guest_make(struct random_guest *guest, uint32_t layout, const char *name, uint64_t seed)
{
	uint64_t random = seed;

	*guest = (struct random_guest){ .layout = layout };
	make_memories(guest, name, &random);
	if (layout != DIOH_LAYOUT_MAPPED_RAM) {
		guest->stream_bytes = below(&random, 4) ? below(&random, PLAIN_STREAM_BYTES_MAX) : 0;
		guest->stream = must_memfd("stream", guest->stream_bytes, 0);
		must_fill(guest->stream, 0, guest->stream_bytes, test_random(&random));
		return;
	}
	make_qemus_stream(guest, &random);
	guest->stream_bytes = guest->q.count;
	guest->stream = must_memfd("stream", 0, 0);
	if (pwrite(guest->stream, guest->q.bytes, guest->q.count, 0) != (ssize_t)guest->q.count)
		die("a stream");
}

void random_guest_free(struct random_guest *guest)
{
	for (unsigned i = 0; i < guest->count; i++)
		close(guest->memories[i]);
	if (guest->count)
		close(guest->stream);
	qemu_free(&guest->q);
	guest->count = 0;
}

unsigned random_guest_entries(const struct random_guest *guest, bool load, struct dioh_msg_entry *ret_entries)
{
	const bool raw = guest->layout == DIOH_LAYOUT_RAW;
	uint64_t at = 0;

	for (unsigned i = 0; i < guest->count; i++) {
		ret_entries[i] = region_entry(i, guest->name[i], guest->bytes[i]);
		ret_entries[i].image_offset = raw ? at : 0;
		at += guest->bytes[i];
	}
	ret_entries[guest->count] = stream_entry(RANDOM_GUEST_ENTRY, "state");
	ret_entries[guest->count].image_offset = raw ? at : 0;
	ret_entries[guest->count].bytes = load ? guest->stream_bytes : 0;
	return guest->count + 1;
}

/* ---- what came back ---- */

/* What a QEMU gets is another stream of the same: the block's pages, and behind them what stood behind them. */
static const char *qemus_stream_differs(const struct random_guest *guest, const uint8_t *bytes, size_t count)
{
	const unsigned block = guest->count;
	struct qemu_reader sent, got;
	const char *what = NULL;

	qemu_read(&sent, guest->q.bytes, guest->q.count);
	qemu_read(&got, bytes, count);
	if (!got.setup || got.setup->block_count != guest->count + 1)
		what = "the blocks of QEMU's stream";
	else if (memcmp(got.memory[block], guest->q.memory[block], guest->q.blocks[block].bytes) != 0)
		what = "memory in QEMU's stream";
	else if (got.verbatim_count < sent.verbatim_count ||
	         memcmp(got.verbatim + got.verbatim_count - sent.verbatim_count, sent.verbatim, sent.verbatim_count) != 0)
		what = "device state in QEMU's stream";
	qemu_reader_free(&sent);
	qemu_reader_free(&got);
	return what;
}

static const char *stream_differs(const struct random_guest *guest, int stream)
{
	const uint64_t count = must_bytes(stream);
	const char *what;
	uint8_t *bytes;

	if (guest->layout != DIOH_LAYOUT_MAPPED_RAM)
		return same_bytes(guest->stream, stream) ? NULL : "the stream";
	bytes = malloc(count + 1);
	if (!bytes || pread(stream, bytes, count, 0) != (ssize_t)count)
		die("a stream");
	what = qemus_stream_differs(guest, bytes, count);
	free(bytes);
	return what;
}

const char *random_guest_differs(const struct random_guest *guest, const int *memories, int stream)
{
	for (unsigned i = 0; i < guest->count; i++)
		if (!same_bytes(guest->memories[i], memories[i]))
			return guest->name[i];
	return stream_differs(guest, stream);
}
