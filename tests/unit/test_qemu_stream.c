/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test_qemu_stream.c - QEMU's streams and mapped-ram images, built here byte by byte: what they say, in pieces of any
 * size; where they may end; each refusal; and that the encoders give QEMU's bytes back.
 *
 * A stream is laid down with names for places in it. A refusal is tested by changing the bytes at one place.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "qemu_stream.h"

#define PAGE 4096u
#define ROOM (96u * 1024)
#define COUNT_OF(array) (sizeof(array) / sizeof((array)[0]))
#define SECTION_ID 0x01020304u

/* Places that tests change, in the order in which they come. */
enum place {
	AT_MAGIC,
	AT_CONFIGURATION,
	AT_SUBSECTION, /* the capabilities */
	AT_START,
	AT_SIZE,
	AT_BLOCK0,
	AT_BLOCK1,
	AT_SETUP_END,
	AT_PART,
	AT_PAGE0, /* of block 0, named */
	AT_ZERO,  /* of block 0, continued */
	AT_PAGE1, /* of block 1, named */
	AT_PART_END,
	AT_COMMAND,
	AT_LAST_PART,
	AT_TAIL,
	AT_EOF,
	PLACES,
};

struct stream {
	enum dioh_qemu_form form;
	uint32_t capabilities;
	bool without_footers, without_description;
	bool with_page_bits, with_uuid;
	bool flushes; /* multifd: sync points of their own: at the setup's end and behind the pages */
	uint64_t at[PLACES];
	size_t count;
	uint8_t bytes[ROOM];
};

static struct stream stream; /* too large for a stack */

/* ---- laying down ----------------------------------------------------------------------------- */

static void put(struct stream *s, const void *bytes, size_t count)
{
	assert_in_range(count, 0, ROOM - s->count);
	memcpy(&s->bytes[s->count], bytes, count);
	s->count += count;
}

static void put_be(struct stream *s, unsigned bytes, uint64_t value)
{
	while (bytes-- > 0)
		put(s, &(const uint8_t){ (uint8_t)(value >> 8 * bytes) }, 1);
}

static void put_name(struct stream *s, const char *name)
{
	put_be(s, 1, strlen(name));
	put(s, name, strlen(name));
}

static void put_page(struct stream *s, uint8_t seed)
{
	for (unsigned i = 0; i < PAGE; i++)
		put_be(s, 1, (uint8_t)(seed + i * 7 + i / 256));
}

static void mark(struct stream *s, enum place place)
{
	s->at[place] = s->count;
}

static void put_end(struct stream *s)
{
	put_be(s, 8, 0x10);
	if (s->without_footers)
		return;
	put_be(s, 1, 0x7e);
	put_be(s, 4, SECTION_ID);
}

static void put_configuration(struct stream *s)
{
	unsigned count = (unsigned)__builtin_popcount(s->capabilities);

	mark(s, AT_MAGIC);
	put(s, "QEVM", 4);
	put_be(s, 4, 3);
	mark(s, AT_CONFIGURATION);
	put_be(s, 1, 7);
	put_be(s, 4, 7);
	put(s, "pc-test", 7);
	if (s->with_page_bits) {
		put_be(s, 1, 5);
		put_name(s, "configuration/target-page-bits");
		put_be(s, 4, 1);
		put_be(s, 4, 12);
	}
	mark(s, AT_SUBSECTION);
	if (count > 0) {
		put_be(s, 1, 5);
		put_name(s, "configuration/capabilities");
		put_be(s, 4, 1);
		put_be(s, 4, count);
	}
	if (s->capabilities & DIOH_QEMU_IGNORE_SHARED)
		put_name(s, "x-ignore-shared");
	if (s->capabilities & DIOH_QEMU_MAPPED_RAM)
		put_name(s, "mapped-ram");
	if (s->with_uuid) {
		put_be(s, 1, 5);
		put_name(s, "configuration/uuid");
		put_be(s, 4, 1);
		put(s, "0123456789abcdef", 16);
	}
}

static void put_block(struct stream *s, const char *name, unsigned pages, uint64_t guest_address)
{
	uint64_t bitmap_offset, pages_offset;

	put_name(s, name);
	put_be(s, 8, pages * PAGE);
	if (s->capabilities & DIOH_QEMU_IGNORE_SHARED)
		put_be(s, 8, guest_address);
	if (s->form != DIOH_QEMU_IMAGE)
		return;
	bitmap_offset = s->count + 28;
	pages_offset = (bitmap_offset + 8 + PAGE - 1) / PAGE * PAGE;
	put_be(s, 4, 1);
	put_be(s, 8, PAGE);
	put_be(s, 8, bitmap_offset);
	put_be(s, 8, pages_offset);
	/* What a parser must not look at. */
	while (s->count < pages_offset + pages * PAGE)
		put_be(s, 1, 0xee);
}

static void put_setup(struct stream *s)
{
	put_configuration(s);
	mark(s, AT_START);
	put_be(s, 1, 1);
	put_be(s, 4, SECTION_ID);
	put_name(s, "ram");
	put_be(s, 4, 0);
	put_be(s, 4, 4);
	mark(s, AT_SIZE);
	put_be(s, 8, 4 * PAGE | 0x04);
	mark(s, AT_BLOCK0);
	put_block(s, "pc.ram", 3, UINT64_C(0x123456789abc));
	mark(s, AT_BLOCK1);
	put_block(s, "0000:00:02.0/vga", 1, 0xf0000000);
	mark(s, AT_SETUP_END);
	if (s->flushes)
		put_be(s, 8, 0x200);
	put_end(s);
}

static void put_pages(struct stream *s)
{
	mark(s, AT_PAGE0);
	put_be(s, 8, 2 * PAGE | 0x08);
	put_name(s, "pc.ram");
	put_page(s, 1);
	mark(s, AT_ZERO);
	put_be(s, 8, 0 * PAGE | 0x22);
	put_be(s, 1, 0);
	mark(s, AT_PAGE1);
	put_be(s, 8, 0 * PAGE | 0x08);
	put_name(s, "0000:00:02.0/vga");
	put_page(s, 2);
	if (s->flushes)
		put_be(s, 8, 0x200);
}

static void put_part(struct stream *s, uint8_t type)
{
	put_be(s, 1, type);
	put_be(s, 4, SECTION_ID);
}

static void put_tail(struct stream *s)
{
	static const char description[] = "{\"devices\": [{\"name\": \"timer\"}]}";

	mark(s, AT_TAIL);
	put(s, "\4\0\0\0\5\5timer", 11);
	/* A look-alike: it says that it is 3 bytes long. */
	put(s, "\0\6\0\0\0\3{~{state", 14);
	if (!s->without_footers)
		put(s, "\x7e\0\0\0\5", 5);
	mark(s, AT_EOF);
	put_be(s, 1, 0);
	if (s->without_description)
		return;
	put_be(s, 1, 6);
	put_be(s, 4, strlen(description));
	put(s, description, strlen(description));
}

/* Begins anew with the options that are set. */
static void lay_down(struct stream *s)
{
	s->count = 0;
	put_setup(s);
	mark(s, AT_PART);
	put_part(s, 2);
	if (s->form != DIOH_QEMU_IMAGE)
		put_pages(s);
	mark(s, AT_PART_END);
	put_end(s);
	mark(s, AT_COMMAND);
	put(s, "\x08\0\x0b\0\0", 5);         /* SWITCHOVER_START */
	put(s, "\x08\0\x02\0\4\1\2\3\4", 9); /* PING */
	mark(s, AT_LAST_PART);
	put_part(s, 3);
	if (s->form != DIOH_QEMU_IMAGE) { /* sent again, in the block of the last part's last page */
		put_be(s, 8, 0 * PAGE | 0x28);
		put_page(s, 3);
	}
	put_end(s);
	put_tail(s);
}

static void begin(enum dioh_qemu_form form, uint32_t capabilities)
{
	memset(&stream, 0, sizeof(stream));
	stream.form = form;
	stream.capabilities = capabilities;
	lay_down(&stream);
}

/* Puts `count` bytes in the place of `gone` bytes. What comes behind is moved. */
static void splice(struct stream *s, size_t at, size_t gone, const void *bytes, size_t count)
{
	assert_in_range(count, 0, ROOM - s->count);
	memmove(&s->bytes[at + count], &s->bytes[at + gone], s->count - at - gone);
	memcpy(&s->bytes[at], bytes, count);
	s->count = s->count + count - gone;
}

/* ---- parsing, into a transcript that does not depend on how the input was split -------------- */

struct transcript {
	size_t count;
	uint64_t setup_offset;
	unsigned seeks, copied_pages, syncs;
	uint8_t bytes[2 * ROOM];
};

static void note(struct transcript *t, const void *bytes, size_t count)
{
	assert_in_range(count, 0, sizeof(t->bytes) - t->count);
	memcpy(&t->bytes[t->count], bytes, count);
	t->count += count;
}

static bool is_inside(const uint8_t *bytes, const uint8_t *from, size_t count)
{
	return bytes >= from && bytes < from + count;
}

static void note_piece(struct transcript *t, const struct dioh_qemu_parser *p,
                       const struct dioh_qemu_piece *piece, const uint8_t *input, size_t input_bytes)
{
	const struct dioh_qemu_setup *setup = dioh_qemu_parser_setup(p);

	switch (piece->event) {
	case DIOH_QEMU_MORE:
		break;
	case DIOH_QEMU_SEEK:
		t->seeks++;
		assert_null(setup);
		break;
	case DIOH_QEMU_SETUP:
		assert_int_equal(t->count, 0);
		assert_non_null(setup);
		t->setup_offset = dioh_qemu_parser_offset(p);
		note(t, "S", 1);
		break;
	case DIOH_QEMU_PAGE:
		assert_true(piece->block < setup->block_count);
		assert_true(piece->page < setup->blocks[piece->block].bytes / PAGE);
		note(t, piece->bytes ? "P" : "Z", 1);
		note(t, &piece->block, sizeof(piece->block));
		note(t, &piece->page, sizeof(piece->page));
		if (piece->bytes)
			note(t, piece->bytes, PAGE);
		t->copied_pages += piece->bytes && !is_inside(piece->bytes, input, input_bytes);
		break;
	case DIOH_QEMU_SYNC:
		t->syncs++;
		note(t, "Y", 1);
		break;
	case DIOH_QEMU_VERBATIM: /* however many bytes come at a time */
		assert_true(piece->count > 0);
		for (size_t i = 0; i < piece->count; i++) {
			note(t, "v", 1);
			note(t, &piece->bytes[i], 1);
		}
		break;
	}
}

/* Feeds [*at, end) in one piece, or up to a SEEK. */
static int feed(struct dioh_qemu_parser *p, const struct stream *s, uint64_t *at, uint64_t end,
                struct transcript *t, struct dioh_error *err)
{
	const uint8_t *input = &s->bytes[*at], *bytes = input;
	size_t input_bytes = (size_t)(end - *at), count = input_bytes;
	struct dioh_qemu_piece piece = { 0 };
	int r;

	do {
		r = dioh_qemu_parse(p, &bytes, &count, &piece, err);
		if (r < 0)
			return r;
		note_piece(t, p, &piece, input, input_bytes);
		if (piece.event == DIOH_QEMU_SEEK) {
			assert_true(piece.offset >= *at + (input_bytes - count));
			assert_int_equal(dioh_qemu_parser_offset(p), piece.offset);
			*at = piece.offset;
			return 0;
		}
		assert_int_equal(dioh_qemu_parser_offset(p), *at + (input_bytes - count));
	} while (piece.event != DIOH_QEMU_MORE);
	assert_int_equal(count, 0);
	*at = end;
	return 0;
}

/* The first `total` bytes: in pieces of at most `step`, and none goes across `split`. */
static int parse(struct dioh_qemu_parser *p, const struct stream *s, size_t total, size_t step,
                 size_t split, struct transcript *t, struct dioh_error *err)
{
	uint64_t at = 0;

	t->count = 0;
	t->seeks = 0;
	t->copied_pages = 0;
	t->syncs = 0;
	while (at < total) {
		uint64_t end = at + step < total ? at + step : total;
		int r;

		if (at < split && split < end)
			end = split;
		r = feed(p, s, &at, end, t, err);
		if (r < 0)
			return r;
	}
	return 0;
}

static struct dioh_qemu_parser *new_parser(const struct stream *s)
{
	struct dioh_qemu_parser *p = dioh_qemu_parser_new(s->form, 0, NULL);

	assert_non_null(p);
	return p;
}

static void assert_accepted(const struct stream *s, size_t step, size_t split, struct transcript *t)
{
	struct dioh_qemu_parser *p = new_parser(s);
	struct dioh_error err = { .code = 1234 };

	if (parse(p, s, s->count, step, split, t, &err) < 0 || dioh_qemu_parser_end(p, &err) < 0)
		fail_msg("refused: %s", err.text);
	assert_int_equal(err.code, 1234);
	dioh_qemu_parser_free(p);
}

static struct transcript transcript, other;

/* ---- what a stream says ---------------------------------------------------------------------- */

static void test_a_stream_tells_its_setup(void **state)
{
	struct dioh_qemu_parser *p;
	const struct dioh_qemu_setup *setup;

	(void)state;
	begin(DIOH_QEMU_STREAM, DIOH_QEMU_IGNORE_SHARED);
	p = new_parser(&stream);
	assert_int_equal(parse(p, &stream, stream.count, ROOM, 0, &transcript, NULL), 0);
	setup = dioh_qemu_parser_setup(p);
	assert_int_equal(setup->capabilities, DIOH_QEMU_IGNORE_SHARED);
	assert_string_equal(setup->machine, "pc-test");
	assert_int_equal(setup->configuration_bytes, stream.at[AT_SUBSECTION]);
	assert_memory_equal(setup->configuration, stream.bytes, setup->configuration_bytes);
	assert_int_equal(setup->capabilities_at, stream.at[AT_SUBSECTION]);
	assert_int_equal(setup->ram_section, SECTION_ID);
	assert_int_equal(setup->ram_version, 4);
	assert_true(setup->footers);
	assert_int_equal(setup->total_bytes, 4 * PAGE);
	assert_int_equal(setup->block_count, 2);
	assert_string_equal(setup->blocks[0].name, "pc.ram");
	assert_int_equal(setup->blocks[0].bytes, 3 * PAGE);
	assert_int_equal(setup->blocks[0].guest_address, UINT64_C(0x123456789abc));
	assert_string_equal(setup->blocks[1].name, "0000:00:02.0/vga");
	assert_int_equal(setup->blocks[1].bytes, PAGE);
	assert_int_equal(setup->blocks[1].guest_address, 0xf0000000);
	assert_int_equal(transcript.setup_offset, stream.at[AT_PART]);
	dioh_qemu_parser_free(p);
}

static void test_an_image_tells_its_places(void **state)
{
	struct dioh_qemu_parser *p;
	const struct dioh_qemu_setup *setup;

	(void)state;
	begin(DIOH_QEMU_IMAGE, DIOH_QEMU_MAPPED_RAM);
	p = new_parser(&stream);
	assert_int_equal(parse(p, &stream, stream.count, ROOM, 0, &transcript, NULL), 0);
	setup = dioh_qemu_parser_setup(p);
	assert_int_equal(transcript.seeks, 2);
	assert_int_equal(setup->block_count, 2);
	assert_int_equal(setup->blocks[0].bitmap_offset, stream.at[AT_BLOCK0] + 7 + 8 + 28);
	assert_int_equal(setup->blocks[0].pages_offset, 4096);
	assert_int_equal(setup->blocks[1].bitmap_offset, stream.at[AT_BLOCK1] + 17 + 8 + 28);
	assert_int_equal(setup->blocks[1].pages_offset, 5 * PAGE);
	assert_int_equal(stream.at[AT_SETUP_END], 6 * PAGE);
	dioh_qemu_parser_free(p);
}

static void note_verbatim(struct transcript *t, enum place from, uint64_t end)
{
	for (uint64_t i = stream.at[from]; i < end; i++) {
		note(t, "v", 1);
		note(t, &stream.bytes[i], 1);
	}
}

static void note_page(struct transcript *t, const char *kind, unsigned block, uint64_t page,
                      uint64_t bytes_at)
{
	note(t, kind, 1);
	note(t, &block, sizeof(block));
	note(t, &page, sizeof(page));
	if (bytes_at > 0)
		note(t, &stream.bytes[bytes_at], PAGE);
}

static void test_pages_and_what_is_between_them(void **state)
{
	struct transcript *t = &other;

	(void)state;
	begin(DIOH_QEMU_STREAM, 0);
	assert_accepted(&stream, ROOM, 0, &transcript);
	assert_int_equal(transcript.copied_pages, 0);

	t->count = 0;
	note(t, "S", 1);
	note_verbatim(t, AT_PART, stream.at[AT_PAGE0]);
	note_page(t, "P", 0, 2, stream.at[AT_ZERO] - PAGE);
	note_page(t, "Z", 0, 0, 0);
	note_page(t, "P", 1, 0, stream.at[AT_PART_END] - PAGE);
	note_verbatim(t, AT_PART_END, stream.at[AT_LAST_PART] + 5);
	note_page(t, "P", 1, 0, stream.at[AT_LAST_PART] + 5 + 8);
	stream.at[AT_TAIL] -= 13; /* the last part's end goes with it */
	note_verbatim(t, AT_TAIL, stream.count);
	assert_int_equal(transcript.count, t->count);
	assert_memory_equal(transcript.bytes, t->bytes, t->count);
}

/* The name may come though the block is that of the page before; the block is kept from part to part. */
static void test_blocks_named_again(void **state)
{
	static const uint8_t again[] = "\0\0\0\0\0\0\x10\x02\6pc.ram"; /* its NUL is the fill */

	(void)state;
	begin(DIOH_QEMU_STREAM, 0);
	splice(&stream, stream.at[AT_ZERO], 0, again, sizeof(again));
	assert_accepted(&stream, ROOM, 0, &transcript);
	other.count = 0;
	note(&other, "S", 1);
	note_verbatim(&other, AT_PART, stream.at[AT_PAGE0]);
	note_page(&other, "P", 0, 2, stream.at[AT_ZERO] - PAGE);
	note_page(&other, "Z", 0, 1, 0);
	note_page(&other, "Z", 0, 0, 0);
	assert_memory_equal(transcript.bytes, other.bytes, other.count);
}

static void test_an_image_passes_all_behind_its_setup(void **state)
{
	(void)state;
	begin(DIOH_QEMU_IMAGE, DIOH_QEMU_MAPPED_RAM);
	assert_accepted(&stream, ROOM, 0, &transcript);
	other.count = 0;
	note(&other, "S", 1);
	note_verbatim(&other, AT_PART, stream.count);
	assert_int_equal(transcript.count, other.count);
	assert_memory_equal(transcript.bytes, other.bytes, other.count);
}

/* ---- pieces ---------------------------------------------------------------------------------- */

static void assert_pieces_do_not_matter(void)
{
	static const size_t steps[] = { 1, 2, 3, 7, 8, 100, PAGE - 1, PAGE, PAGE + 1 };

	assert_accepted(&stream, ROOM, 0, &transcript);
	for (size_t i = 0; i < COUNT_OF(steps) + stream.count; i++) {
		bool is_step = i < COUNT_OF(steps);

		assert_accepted(&stream, is_step ? steps[i] : ROOM, is_step ? 0 : i - COUNT_OF(steps),
		                &other);
		if (other.count != transcript.count ||
		    memcmp(other.bytes, transcript.bytes, other.count) != 0 ||
		    other.setup_offset != transcript.setup_offset)
			fail_msg("other pieces with %s %zu", is_step ? "steps of" : "a split at",
			         is_step ? steps[i] : i - COUNT_OF(steps));
	}
}

static void test_a_stream_may_be_split_anywhere(void **state)
{
	(void)state;
	begin(DIOH_QEMU_STREAM, DIOH_QEMU_IGNORE_SHARED);
	stream.with_uuid = true;
	lay_down(&stream);
	assert_pieces_do_not_matter();
	stream.without_footers = true;
	stream.with_page_bits = true;
	lay_down(&stream);
	assert_pieces_do_not_matter();
}

static void test_an_image_may_be_split_anywhere(void **state)
{
	(void)state;
	begin(DIOH_QEMU_IMAGE, DIOH_QEMU_MAPPED_RAM);
	assert_pieces_do_not_matter();
}

static void test_only_split_pages_are_copied(void **state)
{
	(void)state;
	begin(DIOH_QEMU_STREAM, 0);
	assert_accepted(&stream, ROOM, stream.at[AT_ZERO] - 1, &transcript);
	assert_int_equal(transcript.copied_pages, 1);
	assert_accepted(&stream, ROOM, stream.at[AT_ZERO], &transcript);
	assert_int_equal(transcript.copied_pages, 0);
	assert_accepted(&stream, 1, 0, &transcript);
	assert_int_equal(transcript.copied_pages, 3);
}

static void test_nothing_is_taken_from_no_input(void **state)
{
	const uint8_t *bytes = NULL;
	size_t count = 0;
	struct dioh_qemu_piece piece;
	struct dioh_qemu_parser *p = dioh_qemu_parser_new(DIOH_QEMU_IMAGE, 777, NULL);

	(void)state;
	assert_int_equal(dioh_qemu_parse(p, &bytes, &count, &piece, NULL), 0);
	assert_int_equal(piece.event, DIOH_QEMU_MORE);
	assert_int_equal(dioh_qemu_parser_offset(p), 777);
	dioh_qemu_parser_free(p);
	dioh_qemu_parser_free(NULL);
}

/* ---- ends ------------------------------------------------------------------------------------ */

/* Does the stream's first `total` bytes make a whole one? */
static int end_of(size_t total, size_t step, struct dioh_error *err)
{
	struct dioh_qemu_parser *p = new_parser(&stream);
	int r;

	assert_int_equal(parse(p, &stream, total, step, 0, &transcript, NULL), 0);
	r = dioh_qemu_parser_end(p, err);
	dioh_qemu_parser_free(p);
	return r;
}

static void assert_ends_too_early(size_t total, size_t step)
{
	struct dioh_error err = { 0 };

	if (end_of(total, step, &err) != -EBADMSG)
		fail_msg("it may end at %zu of %zu", total, stream.count);
	assert_int_equal(err.offset, total);
	assert_non_null(strstr(err.text, "ends too early"));
}

/* A shorter stream that cannot be told: where a look-alike of a description ends, behind QEMU_VM_EOF, behind a 0 byte. */
static bool looks_like_an_end(size_t total)
{
	return total == stream.at[AT_TAIL] + 11 + 6 + 3 || total == stream.at[AT_EOF] + 1 ||
	       (stream.without_footers && total > stream.at[AT_TAIL] && stream.bytes[total - 1] == 0);
}

static void test_every_earlier_end_is_an_error(void **state)
{
	(void)state;
	for (int i = 0; i < 4; i++) {
		enum dioh_qemu_form form = i & 1 ? DIOH_QEMU_IMAGE : DIOH_QEMU_STREAM;

		begin(form, form == DIOH_QEMU_IMAGE ? DIOH_QEMU_MAPPED_RAM : 0);
		stream.without_footers = i & 2;
		lay_down(&stream);
		for (size_t total = 0; total < stream.count; total++) {
			if (looks_like_an_end(total))
				continue;
			/* An image's parser stands behind the pages where their bytes are missing. */
			if (form == DIOH_QEMU_IMAGE && total >= stream.at[AT_BLOCK0] &&
			    total < stream.at[AT_SETUP_END])
				assert_int_equal(end_of(total, ROOM, NULL), -EBADMSG);
			else
				assert_ends_too_early(total, ROOM);
		}
	}
}

static void test_an_end_is_found_in_any_pieces(void **state)
{
	(void)state;
	begin(DIOH_QEMU_STREAM, 0);
	for (size_t step = 1; step < 60; step++) {
		assert_int_equal(end_of(stream.count, step, NULL), 0);
		assert_int_equal(end_of(stream.at[AT_EOF] + 1, step, NULL), 0);
		assert_ends_too_early(stream.count - 1, step);
		assert_ends_too_early(stream.at[AT_EOF], step);
		stream.bytes[stream.count] = 'x'; /* behind the description nothing may come */
		assert_ends_too_early(stream.count + 1, step);
	}
}

/* As a copy from a volume has them; QEMU does not look there. */
static void test_zeros_behind_the_end(void **state)
{
	struct dioh_error err = { 0 };
	size_t whole;

	(void)state;
	begin(DIOH_QEMU_STREAM, 0);
	whole = stream.count;
	memset(&stream.bytes[whole], 0, 100);
	for (size_t step = 1; step < 60; step++) {
		for (size_t zeros = 1; zeros < 100; zeros += 7)
			assert_int_equal(end_of(whole + zeros, step, NULL), 0);
		stream.bytes[whole + 70] = 'x';
		assert_int_equal(end_of(whole + 70, step, NULL), 0);
		assert_int_equal(end_of(whole + 71, step, &err), -EBADMSG);
		assert_non_null(strstr(err.text, "in the device state, or something stands behind its end"));
		assert_ends_too_early(whole + 90, step);
		stream.bytes[whole + 70] = 0;
	}
	stream.bytes[whole - 1] = 0; /* the description itself is cut */
	assert_ends_too_early(whole, ROOM);
	assert_ends_too_early(whole + 50, ROOM);
	assert_ends_too_early(whole + 50, 1);
}

static void test_a_description_has_no_zero_bytes(void **state)
{
	(void)state;
	begin(DIOH_QEMU_STREAM, 0);
	stream.bytes[stream.at[AT_EOF] + 20] = 0;
	assert_ends_too_early(stream.count, ROOM);
	assert_ends_too_early(stream.count, 5);
}

/* A length that looks like another description's start: of two that overlap either may be the true one. */
static void test_descriptions_that_overlap(void **state)
{
	static const uint8_t first[] = { 0, 6, 0, 0, 0, 6, '{', 'a', 'b', 'c', '{', '}' };
	static const uint8_t second[] = { 0, 6, 0, 6, 0, 0, '{', 0xb, '{' };

	(void)state;
	begin(DIOH_QEMU_STREAM, 0);
	stream.count = stream.at[AT_EOF];
	put(&stream, first, sizeof(first));
	assert_int_equal(end_of(stream.count, ROOM, NULL), 0);
	assert_int_equal(end_of(stream.count, 1, NULL), 0);
	stream.count = stream.at[AT_EOF];
	put(&stream, second, sizeof(second));
	memset(&stream.bytes[stream.count], ' ', ROOM - stream.count);
	/* The second one: behind 00 06 comes the length 00 00 7b 0b; its JSON would begin with the last brace. */
	assert_int_equal(end_of(stream.count - 1 + 0x7b0b, ROOM, NULL), 0);
	assert_int_equal(end_of(stream.count - 1 + 0x7b0b, 1, NULL), 0);
	assert_ends_too_early(stream.count - 1 + 0x7b0b + 1, ROOM);
}

static void test_a_stream_without_a_description(void **state)
{
	(void)state;
	begin(DIOH_QEMU_STREAM, 0);
	stream.without_description = true;
	for (int i = 0; i < 2; i++) {
		lay_down(&stream);
		assert_int_equal(end_of(stream.count, ROOM, NULL), 0);
		assert_int_equal(end_of(stream.count, 1, NULL), 0);
		assert_ends_too_early(stream.count - 1, ROOM);
		stream.without_footers = true;
	}
}

/* ---- refusals -------------------------------------------------------------------------------- */

static void assert_refused_in_steps(int code, uint64_t at, const char *part, size_t step)
{
	struct dioh_qemu_parser *p = new_parser(&stream);
	const uint8_t *bytes = stream.bytes;
	size_t count = 1;
	struct dioh_qemu_piece piece = { .offset = 4321 };
	struct dioh_error err = { 0 }, again = { 0 };
	char byte[40];
	int r = parse(p, &stream, stream.count, step, 0, &transcript, &err);

	snprintf(byte, sizeof(byte), "(byte %" PRIu64 ")", at);
	if (r != -code || err.code != code)
		fail_msg("got %d instead of %d: %s", r, -code, err.text);
	if (!strstr(err.text, part) || !strstr(err.text, byte))
		fail_msg("\"%s\" does not say \"%s\" or \"%s\"", err.text, part, byte);
	assert_int_equal(err.operation, DIOH_OP_PARSE);
	assert_int_equal(err.object, stream.form == DIOH_QEMU_IMAGE ? DIOH_OBJECT_IMAGE : DIOH_OBJECT_STREAM);
	assert_int_equal(err.offset, at);

	/* That is final, and nothing else is touched. */
	assert_int_equal(dioh_qemu_parse(p, &bytes, &count, &piece, &again), -code);
	assert_memory_equal(&again, &err, sizeof(err));
	assert_ptr_equal(bytes, stream.bytes);
	assert_int_equal(count, 1);
	assert_int_equal(piece.offset, 4321);
	assert_int_equal(dioh_qemu_parser_end(p, NULL), -code);
	dioh_qemu_parser_free(p);
}

static void assert_refused(int code, uint64_t at, const char *part)
{
	assert_refused_in_steps(code, at, part, ROOM);
	assert_refused_in_steps(code, at, part, 1);
}

struct refusal {
	enum place place;
	size_t plus; /* behind the place: where the change starts */
	size_t gone, count;
	const char *bytes;
	int code;
	int field; /* behind the change: where the refused field stands */
	const char *part;
};

static void assert_refusals(enum dioh_qemu_form form, uint32_t declared,
                            const struct refusal *refusals, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		const struct refusal *r = &refusals[i];
		uint64_t at;

		begin(form, declared);
		at = stream.at[r->place] + r->plus;
		splice(&stream, at, r->gone, r->bytes, r->count);
		assert_refused(r->code, at + (uint64_t)r->field, r->part);
	}
}

#define TO(bytes) sizeof(bytes) - 1, sizeof(bytes) - 1, bytes /* in the place of as many */
#define IN(gone, bytes) gone, sizeof(bytes) - 1, bytes

static void test_refused_configurations(void **state)
{
	static const struct refusal refusals[] = {
		{ AT_MAGIC, 0, TO("QEVN"), EBADMSG, 0, "0x5145564e instead of QEMU's magic" },
		{ AT_MAGIC, 4, TO("\0\0\0\2"), EOPNOTSUPP, 0, "version 2 is not understood, only 3" },
		{ AT_CONFIGURATION, 0, TO("\1"), EOPNOTSUPP, 0, "no configuration section, but a section of type 0x01" },
		{ AT_CONFIGURATION, 0, TO("x"), EBADMSG, 0, "no configuration section" },
		{ AT_CONFIGURATION, 1, TO("\0\0\0\0"), EBADMSG, 0, "machine's name is empty" },
		{ AT_CONFIGURATION, 1, TO("\0\0\1\0"), EFBIG, 0, "name of 256 bytes is longer than 255" },
		{ AT_CONFIGURATION, 1, TO("\xff\xff\xff\xff"), EFBIG, 0, "name of 4294967295 bytes" },
		{ AT_CONFIGURATION, 5, TO("p\0"), EBADMSG, 0, "\"p?-test\" has characters that are not printable" },
		{ AT_CONFIGURATION, 11, TO("\x80"), EBADMSG, -6, "not printable" },
		{ AT_SUBSECTION, 1, TO("\0"), EBADMSG, 0, "a subsection of the configuration has an empty name" },
		{ AT_SUBSECTION, 16, TO("X"), EOPNOTSUPP, -14, "subsection \"configuration/Xapabilities\" is not understood" },
		{ AT_SUBSECTION, 1, IN(27, "\x19" "configuration/capabilitie"), EOPNOTSUPP, 1, "\"configuration/capabilitie\"" },
		{ AT_SUBSECTION, 28, TO("\0\0\0\2"), EOPNOTSUPP, 0, "version 2 of \"configuration/capabilities\"" },
		{ AT_SUBSECTION, 36, TO("\0"), EBADMSG, 0, "a capability has an empty name" },
		{ AT_SUBSECTION, 37, TO("X"), EOPNOTSUPP, 0, "capability \"X-ignore-shared\", which is not" },
		{ AT_SUBSECTION, 35, IN(1, "\2\x0fx-ignore-shared"), EBADMSG, 18, "declares \"x-ignore-shared\" twice" },
		{ AT_SUBSECTION, 35, IN(1, "\2\x0amapped-ram"), EOPNOTSUPP, 28, "it declares mapped-ram: it is an image" },
		{ AT_START, 0, IN(0, "\5\x1a" "configuration/capabilities"), EBADMSG, 2,
		  "two subsections \"configuration/capabilities\"" },
		{ AT_START, 0, IN(0, "\5\x1e" "configuration/target-page-bits\0\0\0\1\0\0\0\x10"), EOPNOTSUPP, 36,
		  "\"configuration/target-page-bits\" is 16, but only 12" },
		{ AT_START, 0, IN(0, "\5\x12" "configuration/uuid\0\0\0\0" "0123456789abcdef"), EOPNOTSUPP, 20,
		  "version 0 of \"configuration/uuid\"" },
	};

	(void)state;
	assert_refusals(DIOH_QEMU_STREAM, DIOH_QEMU_IGNORE_SHARED, refusals, COUNT_OF(refusals));
	/* A list that is longer than it is: what comes next is read as a name's length, here 1. */
	begin(DIOH_QEMU_STREAM, DIOH_QEMU_IGNORE_SHARED);
	stream.bytes[stream.at[AT_SUBSECTION] + 35] = 2;
	assert_refused(EOPNOTSUPP, stream.at[AT_START] + 1, "capability \"?\", which is not understood");
}

static void test_refused_starts(void **state)
{
	static const struct refusal refusals[] = {
		{ AT_START, 0, TO("\x08\0\3\0\1"), EOPNOTSUPP, 0, "command 3, POSTCOPY_ADVISE, instead of the RAM section's" },
		{ AT_START, 0, TO("\x08\xff\xff\0\0"), EOPNOTSUPP, 0, "command 65535, unknown, instead of" },
		{ AT_START, 0, TO("\x02"), EOPNOTSUPP, 0, "type 0x02 instead of the RAM section's start" },
		{ AT_START, 0, TO("\0"), EBADMSG, 0, "type 0x00 instead" },
		{ AT_START, 0, TO("\xaa"), EBADMSG, 0, "type 0xaa instead" },
		{ AT_START, 0, TO("\x04"), EOPNOTSUPP, 6, "the state of section \"ram\" before the end of" },
		{ AT_START, 5, TO("\0"), EBADMSG, 0, "a section has an empty name" },
		{ AT_START, 5, IN(4, "\5block"), EOPNOTSUPP, 1, "start of section \"block\" instead of \"ram\"" },
		{ AT_START, 5, IN(4, "\4ram\x1b"), EOPNOTSUPP, 1, "section \"ram?\"" },
		{ AT_START, 9, TO("\0\0\0\1"), EBADMSG, 0, "instance 1 instead of 0" },
		{ AT_START, 13, TO("\0\0\0\3"), EOPNOTSUPP, 0, "version 3 of section \"ram\"" },
		{ AT_START, 13, TO("\0\0\0\5"), EOPNOTSUPP, 0, "version 5 of section \"ram\"" },
		{ AT_SIZE, 6, TO("\x40\x10"), EBADMSG, -6, "a RAM record 0x0000000000004010 where the memory's size" },
		{ AT_SIZE, 6, TO("\x40\x80"), EOPNOTSUPP, -6, "flag HOOK (flags 0x080) where the memory's size" },
		{ AT_SIZE, 6, TO("\x00\x04"), EBADMSG, -6, "0 bytes of memory" },
	};

	(void)state;
	assert_refusals(DIOH_QEMU_STREAM, 0, refusals, COUNT_OF(refusals));
	/* The first block completes the size: the second one is not expected any more. */
	begin(DIOH_QEMU_STREAM, 0);
	stream.bytes[stream.at[AT_SIZE] + 6] = 0x30;
	assert_refused(EBADMSG, stream.at[AT_BLOCK1],
	               "a RAM record 0x10303030303a3030 where the RAM section's start should end");
}

static void test_refused_blocks(void **state)
{
	static const struct refusal refusals[] = {
		{ AT_BLOCK0, 0, TO("\0"), EBADMSG, 0, "block 0 has an empty name; the blocks before it have 0 of 16384 bytes" },
		{ AT_BLOCK0, 3, TO("\0"), EBADMSG, -2, "block 0: its name \"pc?ram\" has characters" },
		{ AT_BLOCK0, 3, TO("\n"), EBADMSG, -2, "not printable" },
		{ AT_BLOCK0, 3, TO("\x7f"), EBADMSG, -2, "not printable" },
		{ AT_BLOCK0, 7, TO("\0\0\0\0\0\0\0\0"), EBADMSG, 0, "\"pc.ram\": its 0 bytes are not one or more pages" },
		{ AT_BLOCK0, 7, TO("\0\0\0\0\0\0\x30\1"), EBADMSG, 0, "its 12289 bytes are not one or more pages of 4096" },
		{ AT_BLOCK0, 7, TO("\xff\xff\xff\xff\xff\xff\xf0\0"), EBADMSG, 0,
		  "are more than the 16384 that are left of 16384" },
		{ AT_BLOCK1, 0, IN(17, "\6pc.ram"), EBADMSG, 1, "blocks 0 and 1 are both \"pc.ram\"" },
		{ AT_BLOCK1, 17, TO("\0\0\0\0\0\0\x20\0"), EBADMSG, 0, "its 8192 bytes are more than the 4096 that are left" },
		{ AT_SETUP_END, 7, TO("\x80"), EOPNOTSUPP, -7, "flag HOOK" },
		{ AT_SETUP_END, 0, TO("\x80"), EBADMSG, 0, "a RAM record 0x8000000000000010" },
		{ AT_SETUP_END, 9, TO("\x0f"), EBADMSG, 0, "a section's footer names section 251790084 instead of 16909060" },
		/* Without a footer, what stands there is a section. */
		{ AT_SETUP_END, 8, TO("\x7d"), EBADMSG, 0, "a section of type 0x7d before the RAM section's end" },
	};

	(void)state;
	assert_refusals(DIOH_QEMU_STREAM, 0, refusals, COUNT_OF(refusals));
	/* Fewer bytes than the size says: the end of the records is taken for a block. */
	begin(DIOH_QEMU_STREAM, 0);
	stream.bytes[stream.at[AT_SIZE] + 6] = 0x50;
	assert_refused(EBADMSG, stream.at[AT_SETUP_END],
	               "block 2 has an empty name; the blocks before it have 16384 of 20480");
}

static void test_blocks_beyond_what_is_possible(void **state)
{
	(void)state;
	begin(DIOH_QEMU_STREAM, 0);
	memset(&stream.bytes[stream.at[AT_SIZE]], 0xff, 6);
	assert_refused(EFBIG, stream.at[AT_SIZE], "are more than 70368744177664");

	begin(DIOH_QEMU_STREAM, 0);
	splice(&stream, stream.at[AT_SIZE], 8, "\0\0\x40\0\0\0\x10\x04", 8);
	assert_refused(EFBIG, stream.at[AT_SIZE], "it has 70368744181760 bytes of memory");

	begin(DIOH_QEMU_STREAM, 0); /* as many as there may be: the blocks that follow are too few */
	splice(&stream, stream.at[AT_SIZE], 8, "\0\0\x40\0\0\0\0\x04", 8);
	assert_refused(EBADMSG, stream.at[AT_SETUP_END], "of 70368744177664 bytes");

	begin(DIOH_QEMU_STREAM, 0);
	stream.count = stream.at[AT_SIZE];
	put_be(&stream, 8, UINT64_C(1) << 40 | 0x04);
	for (unsigned i = 0; i < 1025; i++) {
		char name[16];

		snprintf(name, sizeof(name), "block%u", i);
		stream.at[AT_BLOCK1] = stream.count;
		put_block(&stream, name, 1, 0);
	}
	assert_refused(EFBIG, stream.at[AT_BLOCK1], "more than 1024 blocks");
}

static void test_refused_sections(void **state)
{
	static const struct refusal refusals[] = {
		{ AT_PART, 0, TO("\0"), EBADMSG, 0, "it ends before the RAM section does" },
		{ AT_PART, 0, TO("\x07"), EBADMSG, 0, "a section of type 0x07 before" },
		{ AT_PART, 0, IN(5, "\1\0\0\0\1\5block"), EOPNOTSUPP, 6, "the start of section \"block\" before the end of" },
		{ AT_PART, 0, IN(5, "\4\0\0\0\1\5timer"), EOPNOTSUPP, 6, "the state of section \"timer\" before the end of" },
		{ AT_PART, 0, IN(5, "\4\0\0\0\1\0"), EBADMSG, 5, "a section has an empty name" },
		{ AT_PART, 1, TO("\2"), EBADMSG, 0, "a section's part names section 33686276 instead of 16909060" },
		{ AT_PART_END, 8, TO("\x02"), EBADMSG, 0, "has no footer, but the section's start had one" },
		{ AT_PART_END, 9, TO("\2"), EBADMSG, 0, "a section's footer names section 33686276" },
		{ AT_COMMAND, 1, TO("\0\3"), EOPNOTSUPP, 0, "command 3, POSTCOPY_ADVISE, is not understood" },
		{ AT_COMMAND, 1, TO("\0\7"), EOPNOTSUPP, 0, "command 7, PACKAGED, is not understood" },
		{ AT_COMMAND, 1, TO("\0\0"), EOPNOTSUPP, 0, "command 0, INVALID" },
		{ AT_COMMAND, 1, TO("\0\x0c"), EOPNOTSUPP, 0, "command 12, unknown" },
		{ AT_LAST_PART, 0, TO("\0"), EBADMSG, 0, "it ends before the RAM section does" },
	};

	(void)state;
	assert_refusals(DIOH_QEMU_STREAM, 0, refusals, COUNT_OF(refusals));
}

/* Whoever lays an image out of the setup has not begun by then. */
static void test_other_sections_are_refused_before_the_setup_is_given(void **state)
{
	static const enum dioh_qemu_form forms[] = { DIOH_QEMU_STREAM, DIOH_QEMU_MULTIFD, DIOH_QEMU_IMAGE };

	(void)state;
	for (unsigned i = 0; i < 4 * COUNT_OF(forms); i++) {
		const enum dioh_qemu_form form = forms[i % COUNT_OF(forms)];
		struct dioh_qemu_parser *p;

		begin(form, form == DIOH_QEMU_IMAGE ? DIOH_QEMU_MAPPED_RAM : 0);
		stream.without_footers = i / COUNT_OF(forms) & 1 && form != DIOH_QEMU_MULTIFD;
		lay_down(&stream);
		splice(&stream, stream.at[AT_PART], 5, i / COUNT_OF(forms) & 2 ? "\4\0\0\0\1\5other" : "\1\0\0\0\1\5other", 11);
		for (size_t step = 1; step <= ROOM; step *= ROOM) {
			p = new_parser(&stream);
			assert_false(dioh_qemu_parser_configured(p));
			assert_int_equal(parse(p, &stream, stream.count, step, 0, &transcript, NULL), -EOPNOTSUPP);
			assert_true(dioh_qemu_parser_configured(p));
			assert_int_equal(dioh_qemu_parser_setup(p) == NULL, form == DIOH_QEMU_STREAM);
			dioh_qemu_parser_free(p);
		}
	}
}

static void test_refused_records(void **state)
{
	static const struct refusal refusals[] = {
		{ AT_PAGE0, 6, TO("\x20\x48"), EOPNOTSUPP, -6, "flag XBZRLE (flags 0x048) in a part" },
		{ AT_PAGE0, 6, TO("\x20\x80"), EOPNOTSUPP, -6, "flag HOOK (flags 0x080)" },
		{ AT_PAGE0, 6, TO("\x21\x00"), EOPNOTSUPP, -6, "flag COMPRESS_PAGE (flags 0x100)" },
		{ AT_PAGE0, 6, TO("\x22\x00"), EOPNOTSUPP, -6, "flag MULTIFD_FLUSH (flags 0x200)" },
		{ AT_PAGE0, 6, TO("\x20\x04"), EOPNOTSUPP, -6, "flag MEM_SIZE (flags 0x004)" },
		{ AT_PAGE0, 6, TO("\x20\x01"), EOPNOTSUPP, -6, "flag FULL (flags 0x001)" },
		{ AT_PAGE0, 6, TO("\x28\x08"), EBADMSG, -6, "a RAM record 0x0000000000002808 in a part" },
		{ AT_PAGE0, 6, TO("\x20\x0a"), EBADMSG, -6, "a RAM record 0x000000000000200a" },
		{ AT_PAGE0, 6, TO("\x20\x18"), EBADMSG, -6, "a RAM record" },
		{ AT_PAGE0, 6, TO("\x20\x10"), EBADMSG, -6, "a RAM record" },
		{ AT_PAGE0, 6, TO("\x20\x20"), EBADMSG, -6, "a RAM record" },
		{ AT_PAGE0, 6, TO("\x20\x00"), EBADMSG, -6, "a RAM record" },
		{ AT_PAGE0, 6, TO("\x20\x28"), EBADMSG, -6, "a page continues a block, but none was named" },
		{ AT_PAGE0, 8, TO("\0"), EBADMSG, 0, "a page's block has an empty name" },
		{ AT_PAGE0, 9, TO("x"), EBADMSG, 0, "a page of block \"xc.ram\", which it does not have" },
		{ AT_PAGE0, 8, IN(7, "\3pc."), EBADMSG, 1, "a page of block \"pc.\"" },
		{ AT_PAGE0, 8, IN(7, "\7pc.ram\0"), EBADMSG, 1, "a page of block \"pc.ram?\"" },
		{ AT_PAGE0, 6, TO("\x30\x08"), EBADMSG, -6, "block \"pc.ram\": a page at offset 12288 of its 12288 bytes" },
		{ AT_PAGE0, 0, TO("\xff"), EBADMSG, 0, "block \"pc.ram\": a page at offset 18374686479671631872 of" },
		{ AT_ZERO, 6, TO("\x30\x22"), EBADMSG, -6, "a page at offset 12288 of its 12288 bytes" },
		{ AT_ZERO, 8, TO("\1"), EBADMSG, 0, "\"pc.ram\": the zero page at offset 0 is filled with 0x01" },
		{ AT_PAGE1, 6, TO("\x10\x08"), EBADMSG, -6, "block \"0000:00:02.0/vga\": a page at offset 4096 of its 4096" },
	};

	(void)state;
	assert_refusals(DIOH_QEMU_STREAM, 0, refusals, COUNT_OF(refusals));
}

static void test_refused_images(void **state)
{
	/* The block's name and length take 15 bytes, then comes the header. */
	static const struct refusal refusals[] = {
		{ AT_BLOCK0, 15, TO("\0\0\0\2"), EOPNOTSUPP, 0, "version 2 of its mapped-ram header" },
		{ AT_BLOCK0, 19, TO("\0\0\0\0\0\0\0\0"), EOPNOTSUPP, 0, "\"pc.ram\": pages of 0 bytes are not understood" },
		{ AT_BLOCK0, 19, TO("\0\0\0\0\0\x20\0\0"), EOPNOTSUPP, 0,
		  "pages of 2097152 bytes are not understood, only of 4096" },
		{ AT_BLOCK0, 27, TO("\0\0\0\0\0\0\0\0"), EBADMSG, 0, "its bitmap at offset 0 does not start at the end of its header" },
		{ AT_BLOCK0, 27, TO("\0\0\0\0\0\0\x0f\xf8"), EBADMSG, 0,
		  "its bitmap at offset 4088 does not start at the end of its header" },
		{ AT_BLOCK0, 27, TO("\xff\xff\xff\xff\xff\xff\xff\xff"), EBADMSG, 0, "does not start at the end of its header" },
		{ AT_BLOCK0, 35, TO("\0\0\0\0\0\0\x12\0"), EBADMSG, 0,
		  "its pages at offset 4608 do not start at a multiple of 4096" },
		{ AT_BLOCK0, 35, TO("\0\0\0\0\0\0\0\0"), EBADMSG, -8, "runs into its pages at 0" },
		{ AT_BLOCK0, 35, TO("\x3f\xff\xff\xff\xff\xff\xe0\0"), EBADMSG, 0, "end beyond 4611686018427387904" },
		{ AT_BLOCK0, 35, TO("\xff\xff\xff\xff\xff\xff\xf0\0"), EBADMSG, 0, "end beyond 4611686018427387904" },
		{ AT_BLOCK1, 25 + 12, TO("\0\0\0\0\0\0\0\x10"), EBADMSG, 0,
		  "\"0000:00:02.0/vga\": its bitmap at offset 16 does not start" },
		{ AT_PART_END, 7, TO("\x08"), EBADMSG, -7, "a page stands in the stream, but its pages have places" },
		{ AT_SUBSECTION, 35, IN(1, "\2\x0fx-ignore-shared"), EOPNOTSUPP, 28, "both mapped-ram and x-ignore-shared" },
	};

	(void)state;
	assert_refusals(DIOH_QEMU_IMAGE, DIOH_QEMU_MAPPED_RAM, refusals, COUNT_OF(refusals));
}

static void test_the_other_form_is_refused(void **state)
{
	(void)state;
	begin(DIOH_QEMU_STREAM, 0);
	stream.form = DIOH_QEMU_IMAGE;
	assert_refused(EOPNOTSUPP, stream.at[AT_START], "does not declare mapped-ram: it is a stream");
	begin(DIOH_QEMU_IMAGE, DIOH_QEMU_MAPPED_RAM);
	stream.form = DIOH_QEMU_STREAM;
	assert_refused(EOPNOTSUPP, stream.at[AT_START], "it declares mapped-ram: it is an image");
}

/* QEMU 8.1.0 to 8.1.2: in the setup, in each part and at the end. They are as if they were not there. */
static void test_sync_points_of_no_multifd(void **state)
{
	static const unsigned places[] = { AT_PAGE0, AT_SETUP_END }; /* the later one first: the earlier one moves it */
	static struct transcript without, with;

	(void)state;
	begin(DIOH_QEMU_STREAM, 0);
	assert_accepted(&stream, ROOM, 0, &without);
	for (unsigned i = 0; i < sizeof(places) / sizeof(places[0]); i++)
		splice(&stream, stream.at[places[i]], 0, "\0\0\0\0\0\0\2\0", 8);
	assert_accepted(&stream, ROOM, 0, &with);
	assert_int_equal(with.syncs, 0);
	assert_int_equal(with.count, without.count);
	assert_memory_equal(with.bytes, without.bytes, with.count);
}

/* Where its channels are to be waited for: at records of their own, or where each part ends. */
static void test_a_multifd_stream_has_sync_points(void **state)
{
	(void)state;
	for (unsigned flushes = 0; flushes < 2; flushes++) {
		begin(DIOH_QEMU_MULTIFD, 0);
		stream.flushes = flushes;
		lay_down(&stream);
		assert_accepted(&stream, ROOM, 0, &transcript);
		assert_int_equal(transcript.syncs, flushes ? 1 : 2);
		for (size_t step = 1; step < 40; step += 3) {
			assert_accepted(&stream, step, 0, &other);
			assert_int_equal(other.count, transcript.count);
			assert_memory_equal(other.bytes, transcript.bytes, other.count);
		}
	}
	/* Without one in the setup there are none; and with one there is one. */
	begin(DIOH_QEMU_MULTIFD, 0);
	splice(&stream, stream.at[AT_PAGE0], 0, "\0\0\0\0\0\0\2\0", 8);
	assert_refused(EOPNOTSUPP, stream.at[AT_PAGE0], "flag MULTIFD_FLUSH");
	begin(DIOH_QEMU_MULTIFD, 0);
	splice(&stream, stream.at[AT_SETUP_END], 0, "\0\0\0\0\0\0\2\0\0\0\0\0\0\0\2\0", 16);
	assert_refused(EOPNOTSUPP, stream.at[AT_SETUP_END] + 8, "flag MULTIFD_FLUSH");
	begin(DIOH_QEMU_MULTIFD, DIOH_QEMU_MAPPED_RAM);
	assert_refused(EOPNOTSUPP, stream.at[AT_START], "declares mapped-ram");
}

/* Version 0 is as good as 1. */
static void test_an_image_of_version_0(void **state)
{
	(void)state;
	begin(DIOH_QEMU_IMAGE, DIOH_QEMU_MAPPED_RAM);
	memcpy(&stream.bytes[stream.at[AT_BLOCK0] + 15], "\0\0\0\0", 4);
	assert_accepted(&stream, ROOM, 0, &transcript);
}

/* ---- encoders -------------------------------------------------------------------------------- */

static void assert_bytes(const uint8_t *bytes, size_t count, uint64_t from, uint64_t end)
{
	assert_int_equal(count, end - from);
	assert_memory_equal(bytes, &stream.bytes[from], count);
}

static void assert_same_bytes(void)
{
	struct dioh_qemu_parser *p = new_parser(&stream);
	const uint64_t *at = stream.at;
	const struct dioh_qemu_setup *setup;
	uint8_t bytes[1024];
	size_t count;

	assert_int_equal(parse(p, &stream, stream.count, ROOM, 0, &transcript, NULL), 0);
	setup = dioh_qemu_parser_setup(p);
	count = dioh_qemu_put_configuration(bytes, setup, setup->capabilities);
	assert_true(count <= setup->configuration_bytes + 64);
	assert_bytes(bytes, count, 0, at[AT_START]);
	count = dioh_qemu_put_ram_start(bytes, setup);
	assert_int_equal(count, DIOH_QEMU_RAM_START_BYTES);
	assert_bytes(bytes, count, at[AT_START], at[AT_BLOCK0]);
	for (unsigned i = 0; i < setup->block_count; i++) {
		bool image = stream.form == DIOH_QEMU_IMAGE;
		enum place place = AT_BLOCK0 + i;

		count = dioh_qemu_put_block(bytes, &setup->blocks[i], setup->capabilities);
		assert_bytes(bytes, count, at[place],
		             image ? setup->blocks[i].bitmap_offset : at[place + 1]);
	}
	count = dioh_qemu_put_section_end(bytes, setup);
	assert_bytes(bytes, count, at[AT_SETUP_END], at[AT_PART]);
	assert_true(count <= DIOH_QEMU_SECTION_END_BYTES);
	count = dioh_qemu_put_part_start(bytes, setup);
	assert_bytes(bytes, count, at[AT_PART], at[AT_PART] + 5);
	dioh_qemu_parser_free(p);
}

static void test_setups_are_encoded_as_they_came(void **state)
{
	static const uint32_t declared[] = { 0, DIOH_QEMU_IGNORE_SHARED, DIOH_QEMU_MAPPED_RAM };

	(void)state;
	for (unsigned i = 0; i < 3 * 8; i++) {
		begin(declared[i % 3] & DIOH_QEMU_MAPPED_RAM ? DIOH_QEMU_IMAGE : DIOH_QEMU_STREAM,
		      declared[i % 3]);
		stream.with_page_bits = i / 3 & 1;
		stream.with_uuid = i / 3 & 2;
		stream.without_footers = i / 3 & 4;
		lay_down(&stream);
		assert_same_bytes();
	}
}

/* A stream's setup, encoded as an image's, begins as that image does: and the other way round. */
static void test_capabilities_are_exchanged(void **state)
{
	static const uint32_t declared[] = { 0, DIOH_QEMU_IGNORE_SHARED, DIOH_QEMU_MAPPED_RAM };

	(void)state;
	for (unsigned i = 0; i < 3 * 3 * 4; i++) {
		uint32_t from = declared[i % 3], to = declared[i / 3 % 3];
		struct dioh_qemu_parser *p;
		uint8_t bytes[1024];
		size_t count;

		begin(from & DIOH_QEMU_MAPPED_RAM ? DIOH_QEMU_IMAGE : DIOH_QEMU_STREAM, from);
		stream.with_page_bits = i / 9 & 1;
		stream.with_uuid = i / 9 & 2;
		lay_down(&stream);
		p = new_parser(&stream);
		assert_int_equal(parse(p, &stream, stream.count, ROOM, 0, &transcript, NULL), 0);
		stream.capabilities = to;
		lay_down(&stream);
		count = dioh_qemu_put_configuration(bytes, dioh_qemu_parser_setup(p), to);
		assert_bytes(bytes, count, 0, stream.at[AT_START]);
		dioh_qemu_parser_free(p);
	}
}

static void test_pages_are_encoded_as_they_came(void **state)
{
	uint8_t bytes[DIOH_QEMU_PAGE_HEADER_BYTES_MAX];
	char name[DIOH_NAME_BYTES];
	size_t count;

	(void)state;
	begin(DIOH_QEMU_STREAM, 0);
	count = dioh_qemu_put_page(bytes, "pc.ram", 2, false);
	assert_bytes(bytes, count, stream.at[AT_PAGE0], stream.at[AT_ZERO] - PAGE);
	count = dioh_qemu_put_page(bytes, NULL, 0, true);
	assert_bytes(bytes, count, stream.at[AT_ZERO], stream.at[AT_PAGE1]);
	memset(name, 'n', sizeof(name) - 1);
	name[sizeof(name) - 1] = '\0';
	assert_int_equal(dioh_qemu_put_page(bytes, name, 0, true), sizeof(bytes));
}

static void test_the_longest_block_fits(void **state)
{
	struct dioh_qemu_block entry = { .bytes = PAGE };
	uint8_t bytes[DIOH_QEMU_BLOCK_BYTES_MAX];

	(void)state;
	memset(entry.name, 'n', sizeof(entry.name) - 1);
	assert_int_equal(dioh_qemu_put_block(bytes, &entry, DIOH_QEMU_IGNORE_SHARED | DIOH_QEMU_MAPPED_RAM),
	                 sizeof(bytes));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_a_stream_tells_its_setup),
		cmocka_unit_test(test_an_image_tells_its_places),
		cmocka_unit_test(test_pages_and_what_is_between_them),
		cmocka_unit_test(test_blocks_named_again),
		cmocka_unit_test(test_an_image_passes_all_behind_its_setup),
		cmocka_unit_test(test_a_stream_may_be_split_anywhere),
		cmocka_unit_test(test_an_image_may_be_split_anywhere),
		cmocka_unit_test(test_only_split_pages_are_copied),
		cmocka_unit_test(test_nothing_is_taken_from_no_input),
		cmocka_unit_test(test_every_earlier_end_is_an_error),
		cmocka_unit_test(test_an_end_is_found_in_any_pieces),
		cmocka_unit_test(test_zeros_behind_the_end),
		cmocka_unit_test(test_a_description_has_no_zero_bytes),
		cmocka_unit_test(test_descriptions_that_overlap),
		cmocka_unit_test(test_a_stream_without_a_description),
		cmocka_unit_test(test_refused_configurations),
		cmocka_unit_test(test_refused_starts),
		cmocka_unit_test(test_refused_blocks),
		cmocka_unit_test(test_blocks_beyond_what_is_possible),
		cmocka_unit_test(test_refused_sections),
		cmocka_unit_test(test_other_sections_are_refused_before_the_setup_is_given),
		cmocka_unit_test(test_refused_records),
		cmocka_unit_test(test_refused_images),
		cmocka_unit_test(test_the_other_form_is_refused),
		cmocka_unit_test(test_sync_points_of_no_multifd),
		cmocka_unit_test(test_a_multifd_stream_has_sync_points),
		cmocka_unit_test(test_an_image_of_version_0),
		cmocka_unit_test(test_setups_are_encoded_as_they_came),
		cmocka_unit_test(test_capabilities_are_exchanged),
		cmocka_unit_test(test_pages_are_encoded_as_they_came),
		cmocka_unit_test(test_the_longest_block_fits),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
