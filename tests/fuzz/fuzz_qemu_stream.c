/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * fuzz_qemu_stream.c - the parser of QEMU's streams and mapped-ram images against any bytes.
 *
 * The first byte chooses form, first offset and the size of the pieces; the rest is the stream. In an image, what comes
 * next in the input is taken for what stands at the place sought: bitmaps and pages need no room in it.
 *
 * Held against the parser: what its pieces and its setup promise; that other pieces give the same answer; that an error
 * is final; and that a setup, encoded and parsed again, is the same.
 */
#include <errno.h>
#include <stdbool.h>
#include <string.h>

#include "fuzz.h"
#include "qemu_stream.h"

#define INPUT_BYTES_MAX (64u << 10)
#define CHOICE_IMAGE 0x01
#define CHOICE_MULTIFD 0x40 /* unless it is an image */
#define CHOICE_OFFSET 0x80
#define OFFSET 4188u /* a header of libvirt's stands in front */

static const size_t steps[] = { 1, 2, 5, 8, 57, 4095, 4096, 5000 };

struct answer { /* what a stream comes to, in whatever pieces */
	uint64_t hash;
	uint64_t offset;
	struct dioh_error err;
	int end;
};

struct run {
	struct dioh_qemu_parser *parser;
	enum dioh_qemu_form form;
	uint64_t offset; /* that the parser should have */
	const struct dioh_qemu_setup *setup;
	struct answer answer;
};

static void hash_bytes(uint64_t *hash, const void *bytes, size_t count)
{
	const uint8_t *from = bytes;

	for (size_t i = 0; i < count; i++) /* FNV-1a; every byte is read */
		*hash = (*hash ^ from[i]) * UINT64_C(0x100000001b3);
}

static void hash_u64(uint64_t *hash, uint64_t value)
{
	hash_bytes(hash, &value, sizeof(value));
}

/* ---- what is promised ------------------------------------------------------------------------ */

static void check_blocks(const struct dioh_qemu_setup *setup, uint64_t at)
{
	uint64_t sum = 0;

	CHECK(setup->block_count >= 1 && setup->block_count <= DIOH_REGIONS_MAX);
	for (unsigned i = 0; i < setup->block_count; i++) {
		const struct dioh_qemu_block *block = &setup->blocks[i];

		CHECK(block->name[0] != '\0' && memchr(block->name, 0, sizeof(block->name)));
		CHECK(block->bytes > 0 && block->bytes % DIOH_PAGE_BYTES == 0);
		CHECK(block->bytes <= DIOH_REGION_BYTES_MAX);
		sum += block->bytes;
		if (!(setup->capabilities & DIOH_QEMU_MAPPED_RAM))
			continue;
		CHECK(block->bitmap_offset > at);
		CHECK(block->pages_offset % DIOH_PAGE_BYTES == 0);
		CHECK(block->pages_offset >= block->bitmap_offset + block->bytes / DIOH_PAGE_BYTES / 8);
		CHECK(block->pages_offset + block->bytes <= DIOH_OFFSET_MAX);
		at = block->pages_offset + block->bytes;
	}
	CHECK(sum == setup->total_bytes);
}

static void check_setup(const struct run *run, uint64_t start)
{
	const struct dioh_qemu_setup *setup = run->setup;
	bool mapped = setup->capabilities & DIOH_QEMU_MAPPED_RAM;

	CHECK(mapped == (run->form == DIOH_QEMU_IMAGE));
	CHECK(setup->machine[0] != '\0' && memchr(setup->machine, 0, sizeof(setup->machine)));
	CHECK(setup->configuration_bytes <= DIOH_QEMU_CONFIGURATION_BYTES_MAX);
	CHECK(setup->capabilities_at >= 14 && setup->capabilities_at <= setup->configuration_bytes);
	CHECK(setup->ram_version == 4);
	check_blocks(setup, start);
}

/* Inside the input as a whole, or outside of it: in the parser, where the sanitizer sees what is read. */
static void check_bytes(const uint8_t *bytes, size_t count, const uint8_t *input, size_t input_bytes)
{
	uintptr_t from = (uintptr_t)bytes, start = (uintptr_t)input, end = start + input_bytes;

	CHECK(count > 0 && bytes);
	CHECK((from >= start && from + count <= end) || from + count <= start || from >= end);
}

static void check_piece(struct run *run, const struct dioh_qemu_piece *piece, uint64_t start,
                        const uint8_t *input, size_t input_bytes)
{
	uint64_t *hash = &run->answer.hash;

	switch (piece->event) {
	case DIOH_QEMU_MORE:
		return;
	case DIOH_QEMU_SEEK:
		CHECK(run->form == DIOH_QEMU_IMAGE && !run->setup);
		CHECK(piece->offset >= run->offset && piece->offset <= DIOH_OFFSET_MAX);
		run->offset = piece->offset;
		return;
	case DIOH_QEMU_SETUP:
		CHECK(!run->setup);
		run->setup = dioh_qemu_parser_setup(run->parser);
		CHECK(run->setup);
		check_setup(run, start);
		hash_u64(hash, run->offset);
		return;
	case DIOH_QEMU_PAGE:
		CHECK(run->form != DIOH_QEMU_IMAGE && run->setup);
		CHECK(piece->block < run->setup->block_count);
		CHECK(piece->page < run->setup->blocks[piece->block].bytes / DIOH_PAGE_BYTES);
		hash_u64(hash, piece->block);
		hash_u64(hash, piece->page);
		CHECK(piece->count == (piece->bytes ? DIOH_PAGE_BYTES : 0));
		if (!piece->bytes)
			return;
		break;
	case DIOH_QEMU_SYNC:
		CHECK(run->form == DIOH_QEMU_MULTIFD && run->setup);
		hash_u64(hash, run->offset);
		return;
	case DIOH_QEMU_VERBATIM:
		CHECK(run->setup);
		break;
	default:
		CHECK(!"an event that there is not");
	}
	check_bytes(piece->bytes, piece->count, input, input_bytes);
	hash_bytes(hash, piece->bytes, piece->count);
}

/* ---- parsing --------------------------------------------------------------------------------- */

static void check_error_is_final(struct run *run)
{
	const uint8_t *bytes = (const uint8_t *)"", *before = bytes;
	size_t count = 1;
	struct dioh_qemu_piece piece;
	struct dioh_error again = { 0 };
	int code = run->answer.err.code;

	CHECK(code == EBADMSG || code == EOPNOTSUPP || code == EFBIG);
	CHECK(run->answer.err.text[0] != '\0' && memchr(run->answer.err.text, 0, DIOH_TEXT_BYTES));
	CHECK(run->answer.err.offset <= dioh_qemu_parser_offset(run->parser));
	CHECK(dioh_qemu_parse(run->parser, &bytes, &count, &piece, &again) == -code);
	CHECK(bytes == before && count == 1);
	CHECK(memcmp(&again, &run->answer.err, sizeof(again)) == 0);
	CHECK(dioh_qemu_parser_end(run->parser, NULL) == -code);
}

/* One piece of the input, in memory of its own. Answers how much of it was taken, or an error. */
static int feed(struct run *run, const uint8_t *data, size_t size, uint64_t start, size_t *taken)
{
	uint8_t *input = malloc(size);
	const uint8_t *bytes = input;
	size_t count = size;
	struct dioh_qemu_piece piece = { .event = DIOH_QEMU_VERBATIM };
	int r = 0;

	CHECK(input);
	memcpy(input, data, size);
	while (piece.event != DIOH_QEMU_MORE && piece.event != DIOH_QEMU_SEEK) {
		size_t before = count;

		r = dioh_qemu_parse(run->parser, &bytes, &count, &piece, &run->answer.err);
		if (r < 0)
			break;
		CHECK(count <= before && bytes == input + (size - count));
		/* There is an end to it. */
		CHECK(count < before || piece.event == DIOH_QEMU_MORE || piece.event == DIOH_QEMU_SETUP ||
		      piece.event == DIOH_QEMU_SYNC);
		run->offset += before - count;
		check_piece(run, &piece, start, input, size);
		CHECK(dioh_qemu_parser_offset(run->parser) == run->offset);
		CHECK(dioh_qemu_parser_setup(run->parser) == run->setup);
	}
	CHECK(r < 0 || piece.event != DIOH_QEMU_MORE || count == 0);
	*taken = size - count;
	free(input);
	return r;
}

static struct run parse(enum dioh_qemu_form form, uint64_t start, const uint8_t *data, size_t size,
                        size_t step)
{
	struct run run = { .form = form, .offset = start };
	int r = 0;

	run.parser = dioh_qemu_parser_new(form, start, NULL);
	CHECK(run.parser);
	for (size_t at = 0, taken; r == 0 && at < size; at += taken)
		r = feed(&run, &data[at], size - at < step ? size - at : step, start, &taken);
	if (r < 0) {
		CHECK(r == -run.answer.err.code);
		check_error_is_final(&run);
		return run;
	}
	run.answer.offset = run.offset;
	run.answer.end = dioh_qemu_parser_end(run.parser, &run.answer.err);
	CHECK(run.answer.end == 0 || run.answer.end == -EBADMSG);
	CHECK(run.answer.end < 0 || run.setup);
	return run;
}

static bool same_answer(const struct answer *a, const struct answer *b)
{
	return a->hash == b->hash && a->offset == b->offset && a->end == b->end &&
	       memcmp(&a->err, &b->err, sizeof(a->err)) == 0;
}

/* ---- encoding -------------------------------------------------------------------------------- */

static bool same_setup(const struct dioh_qemu_setup *a, const struct dioh_qemu_setup *b)
{
	return a->capabilities == b->capabilities && strcmp(a->machine, b->machine) == 0 &&
	       a->configuration_bytes == b->configuration_bytes &&
	       memcmp(a->configuration, b->configuration, a->configuration_bytes) == 0 &&
	       a->ram_section == b->ram_section && a->footers == b->footers &&
	       a->total_bytes == b->total_bytes && a->block_count == b->block_count &&
	       memcmp(a->blocks, b->blocks, a->block_count * sizeof(*a->blocks)) == 0;
}

static size_t encode(uint8_t *to, const struct dioh_qemu_setup *setup)
{
	size_t count = dioh_qemu_put_configuration(to, setup, setup->capabilities);

	CHECK(count <= setup->configuration_bytes + 64);
	count += dioh_qemu_put_ram_start(&to[count], setup);
	for (unsigned i = 0; i < setup->block_count; i++)
		count += dioh_qemu_put_block(&to[count], &setup->blocks[i], setup->capabilities);
	count += dioh_qemu_put_section_end(&to[count], setup);
	/* Behind it a section has to start, or nobody knows that there was no footer. */
	return count + dioh_qemu_put_part_start(&to[count], setup);
}

static void check_encoders(const struct run *run, uint64_t start)
{
	const struct dioh_qemu_setup *setup = run->setup;
	size_t room = setup->configuration_bytes + 64 + DIOH_QEMU_RAM_START_BYTES +
	              setup->block_count * DIOH_QEMU_BLOCK_BYTES_MAX + DIOH_QEMU_SECTION_END_BYTES + 5;
	uint8_t *bytes = malloc(room);
	struct run again;

	CHECK(bytes);
	again = parse(run->form, start, bytes, encode(bytes, setup), room);
	if (!again.setup)
		fprintf(stderr, "%s\n", again.answer.err.text);
	CHECK(again.setup && same_setup(setup, again.setup));
	dioh_qemu_parser_free(again.parser);
	free(bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	enum dioh_qemu_form form;
	struct run whole, pieces;
	uint64_t start;

	if (size < 1 || size > INPUT_BYTES_MAX)
		return 0;
	form = data[0] & CHOICE_MULTIFD ? DIOH_QEMU_MULTIFD : DIOH_QEMU_STREAM;
	if (data[0] & CHOICE_IMAGE)
		form = DIOH_QEMU_IMAGE;
	start = data[0] & CHOICE_OFFSET ? OFFSET : 0;
	whole = parse(form, start, &data[1], size - 1, INPUT_BYTES_MAX);
	pieces = parse(form, start, &data[1], size - 1, steps[data[0] >> 1 & 7]);
	CHECK(same_answer(&whole.answer, &pieces.answer));
	if (whole.setup)
		check_encoders(&whole, start);
	dioh_qemu_parser_free(whole.parser);
	dioh_qemu_parser_free(pieces.parser);
	return 0;
}
