/* SPDX-License-Identifier: LGPL-2.1-or-later */
#define _GNU_SOURCE
#include "qemu_maker.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "align.h"
#include "fixture.h"
#include "pages.h"
#include "pattern.h"

#define PAGE ((uint64_t)DIOH_PAGE_BYTES)
#define RAM_SECTION 2u
#define IMAGE_ALIGNMENT (UINT64_C(1) << 20)

static const char machine[] = "pc-q35-10.0";
static const uint8_t configuration_head[] = { 'Q', 'E', 'V', 'M', 0, 0, 0, 3, 7, 0, 0, 0, sizeof(machine) - 1 };

#define die(what) fixture_die(__FILE__, __LINE__, what, strerror(errno))

/* ---- bytes ---- */

void qemu_put(struct qemu_maker *q, const void *bytes, size_t count)
{
	while (q->count + count > q->room) {
		q->room = q->room ? 2 * q->room : 1u << 16;
		q->bytes = realloc(q->bytes, q->room);
		if (!q->bytes)
			die("qemu_put");
	}
	memcpy(q->bytes + q->count, bytes, count);
	q->count += count;
}

void qemu_put_be(struct qemu_maker *q, uint64_t value, unsigned bytes)
{
	for (unsigned i = bytes; i > 0; i--) {
		uint8_t byte = (uint8_t)(value >> (i - 1) * 8);

		qemu_put(q, &byte, 1);
	}
}

void qemu_put_name(struct qemu_maker *q, const char *name)
{
	qemu_put_be(q, strlen(name), 1);
	qemu_put(q, name, strlen(name));
}

/* ---- the setup ---- */

void qemu_start(struct qemu_maker *q, const struct dioh_qemu_block *blocks, unsigned count, uint32_t capabilities)
{
	assert_true(count <= QEMU_BLOCKS_MAX);
	memset(q, 0, sizeof(*q));
	memcpy(q->configuration, configuration_head, sizeof(configuration_head));
	memcpy(q->configuration + sizeof(configuration_head), machine, sizeof(machine) - 1);
	q->setup = (struct dioh_qemu_setup){
		.capabilities = capabilities,
		.configuration = q->configuration,
		.configuration_bytes = sizeof(configuration_head) + sizeof(machine) - 1,
		.ram_section = RAM_SECTION,
		.ram_version = 4,
		.footers = true,
		.blocks = q->blocks,
		.block_count = count,
	};
	q->setup.capabilities_at = q->setup.configuration_bytes;
	for (unsigned i = 0; i < count; i++) {
		q->blocks[i] = blocks[i];
		q->setup.total_bytes += blocks[i].bytes;
		q->memory[i] = calloc(1, blocks[i].bytes);
		assert_non_null(q->memory[i]);
	}
}

void qemu_free(struct qemu_maker *q)
{
	for (unsigned i = 0; i < QEMU_BLOCKS_MAX; i++)
		free(q->memory[i]);
	free(q->bytes);
	memset(q, 0, sizeof(*q));
}

static void put_head(struct qemu_maker *q, uint32_t capabilities)
{
	uint8_t bytes[1024];

	qemu_put(q, bytes, dioh_qemu_put_configuration(bytes, &q->setup, capabilities));
	qemu_put(q, bytes, dioh_qemu_put_ram_start(bytes, &q->setup));
}

static void put_block(struct qemu_maker *q, unsigned i, uint32_t capabilities)
{
	uint8_t bytes[DIOH_QEMU_BLOCK_BYTES_MAX];

	qemu_put(q, bytes, dioh_qemu_put_block(bytes, &q->blocks[i], capabilities));
}

void qemu_put_setup(struct qemu_maker *q)
{
	put_head(q, q->setup.capabilities);
	for (unsigned i = 0; i < q->setup.block_count; i++)
		put_block(q, i, q->setup.capabilities);
	qemu_put_section_end(q);
	q->setup_bytes = q->count;
}

/* ---- sections ---- */

void qemu_put_section(struct qemu_maker *q, enum qemu_section type)
{
	qemu_put_be(q, type, 1);
	qemu_put_be(q, RAM_SECTION, 4);
	q->named = 0;
}

void qemu_put_section_end(struct qemu_maker *q)
{
	uint8_t bytes[DIOH_QEMU_SECTION_END_BYTES];

	qemu_put(q, bytes, dioh_qemu_put_section_end(bytes, &q->setup));
}

static void put_page_header(struct qemu_maker *q, unsigned block, uint64_t page, bool zero)
{
	uint8_t bytes[DIOH_QEMU_PAGE_HEADER_BYTES_MAX];
	const char *name = q->named == block + 1 ? NULL : q->blocks[block].name;

	qemu_put(q, bytes, dioh_qemu_put_page(bytes, name, page, zero));
	q->named = block + 1;
}

void qemu_put_page_bytes(struct qemu_maker *q, unsigned block, uint64_t page, const void *bytes)
{
	put_page_header(q, block, page, false);
	qemu_put(q, bytes, PAGE);
	memcpy(q->memory[block] + page * PAGE, bytes, PAGE);
}

void qemu_put_page(struct qemu_maker *q, unsigned block, uint64_t page, uint64_t seed)
{
	uint8_t bytes[DIOH_PAGE_BYTES];

	if (seed) {
		pattern_fill(bytes, PAGE, seed, page * PAGE);
		qemu_put_page_bytes(q, block, page, bytes);
		return;
	}
	put_page_header(q, block, page, true);
	memset(q->memory[block] + page * PAGE, 0, PAGE);
}

void qemu_put_command(struct qemu_maker *q, uint16_t number, const void *bytes, uint16_t count)
{
	qemu_put_be(q, 8, 1);
	qemu_put_be(q, number, 2);
	qemu_put_be(q, count, 2);
	qemu_put(q, bytes, count);
}

void qemu_put_device(struct qemu_maker *q, uint32_t section, size_t bytes, uint64_t seed)
{
	uint8_t *state = malloc(bytes + 1);

	assert_non_null(state);
	pattern_fill(state, bytes, seed, 0);
	qemu_put_be(q, 4, 1); /* FULL */
	qemu_put_be(q, section, 4);
	qemu_put_name(q, "device");
	qemu_put_be(q, 0, 4);
	qemu_put_be(q, 1, 4);
	qemu_put(q, state, bytes);
	qemu_put_be(q, 0x7e, 1);
	qemu_put_be(q, section, 4);
	free(state);
}

void qemu_put_end(struct qemu_maker *q)
{
	static const char description[] = "{\"page_size\": 4096, \"devices\": []}";

	qemu_put_be(q, 0, 1);
	qemu_put_be(q, 6, 1);
	qemu_put_be(q, sizeof(description) - 1, 4);
	qemu_put(q, description, sizeof(description) - 1);
}

/* ---- a mapped-ram image ---- */

static void must_pwrite(int fd, const void *bytes, size_t count, uint64_t at)
{
	if (pwrite(fd, bytes, count, (off_t)at) != (ssize_t)count)
		die("pwrite");
}

static void write_pages(const struct qemu_maker *q, unsigned i, int fd)
{
	const struct dioh_qemu_block *block = &q->blocks[i];
	const uint64_t pages = block->bytes / PAGE;
	const size_t bitmap_bytes = dioh_div_up(pages, 64) * 8;
	uint8_t *bitmap = calloc(1, bitmap_bytes);

	assert_non_null(bitmap);
	for (uint64_t page = 0; page < pages; page++) {
		const uint8_t *bytes = q->memory[i] + page * PAGE;

		if (dioh_is_zero(bytes, PAGE))
			continue;
		dioh_bit_set(bitmap, page);
		must_pwrite(fd, bytes, PAGE, block->pages_offset + page * PAGE);
	}
	must_pwrite(fd, bitmap, bitmap_bytes, block->bitmap_offset);
	free(bitmap);
}

/* What has been put since `from` goes into the file and is taken back. */
static uint64_t write_out(struct qemu_maker *q, size_t from, int fd, uint64_t at)
{
	const size_t count = q->count - from;

	must_pwrite(fd, q->bytes + from, count, at);
	q->count = from;
	return at + count;
}

void qemu_write_image(struct qemu_maker *q, int fd, uint64_t at)
{
	const size_t stream_bytes = q->count;
	const uint32_t header_bytes = 8 + 28; /* behind a block's name */

	put_head(q, DIOH_QEMU_MAPPED_RAM);
	for (unsigned i = 0; i < q->setup.block_count; i++) {
		struct dioh_qemu_block *block = &q->blocks[i];

		at = write_out(q, stream_bytes, fd, at);
		q->header_at[i] = at;
		block->bitmap_offset = at + 1 + strlen(block->name) + header_bytes;
		block->pages_offset = dioh_align_up(block->bitmap_offset + dioh_div_up(block->bytes / PAGE, 64) * 8,
		                                    IMAGE_ALIGNMENT);
		put_block(q, i, DIOH_QEMU_MAPPED_RAM);
		write_out(q, stream_bytes, fd, at);
		write_pages(q, i, fd);
		at = block->pages_offset + block->bytes;
	}
	qemu_put_section_end(q);
	at = write_out(q, stream_bytes, fd, at);
	must_pwrite(fd, q->bytes + q->setup_bytes, stream_bytes - q->setup_bytes, at);
}

/* ---- reading ---- */

static void take_piece(struct qemu_reader *r, const struct dioh_qemu_piece *piece)
{
	switch (piece->event) {
	case DIOH_QEMU_SETUP:
		r->setup = dioh_qemu_parser_setup(r->parser);
		assert_true(r->setup->block_count <= QEMU_BLOCKS_MAX);
		for (unsigned i = 0; i < r->setup->block_count; i++) {
			r->memory[i] = malloc(r->setup->blocks[i].bytes);
			assert_non_null(r->memory[i]);
			memset(r->memory[i], 0xee, r->setup->blocks[i].bytes);
		}
		break;
	case DIOH_QEMU_PAGE:
		r->pages[piece->block]++;
		if (piece->bytes)
			memcpy(r->memory[piece->block] + piece->page * PAGE, piece->bytes, PAGE);
		else
			memset(r->memory[piece->block] + piece->page * PAGE, 0, PAGE);
		break;
	case DIOH_QEMU_VERBATIM:
		memcpy(r->verbatim + r->verbatim_count, piece->bytes, piece->count);
		r->verbatim_count += piece->count;
		break;
	default:
		break;
	}
}

void qemu_read(struct qemu_reader *r, const uint8_t *bytes, size_t count)
{
	struct dioh_qemu_piece piece;
	struct dioh_error err;

	memset(r, 0, sizeof(*r));
	r->parser = dioh_qemu_parser_new(DIOH_QEMU_STREAM, 0, &err);
	r->verbatim = malloc(count + 1);
	assert_non_null(r->parser);
	assert_non_null(r->verbatim);
	while (count > 0) {
		if (dioh_qemu_parse(r->parser, &bytes, &count, &piece, &err) < 0)
			fail_msg("%s", err.text);
		take_piece(r, &piece);
	}
	if (dioh_qemu_parser_end(r->parser, &err) < 0)
		fail_msg("%s", err.text);
}

void qemu_reader_free(struct qemu_reader *r)
{
	for (unsigned i = 0; i < QEMU_BLOCKS_MAX; i++)
		free(r->memory[i]);
	free(r->verbatim);
	dioh_qemu_parser_free(r->parser);
	memset(r, 0, sizeof(*r));
}

/* ---- into a pipe ---- */

static void *feeder_main(void *argument)
{
	struct qemu_feeder *feeder = argument;
	size_t done = 0;

	while (done < feeder->count) {
		size_t n = feeder->piece ? dioh_min(feeder->piece, feeder->count - done) : feeder->count - done;
		ssize_t written = write(feeder->fd, feeder->bytes + done, n);

		if (written < 0 && errno == EINTR)
			continue;
		if (written <= 0) /* whoever reads has seen enough */
			break;
		done += (size_t)written;
	}
	close(feeder->fd);
	return NULL;
}

int qemu_feed(struct qemu_feeder *feeder, const uint8_t *bytes, size_t count, size_t piece)
{
	int ends[2];

	must_ends(PEER_PIPE, ends);
	*feeder = (struct qemu_feeder){ .fd = ends[1], .bytes = bytes, .count = count, .piece = piece };
	if (pthread_create(&feeder->thread, NULL, feeder_main, feeder) != 0)
		die("pthread_create");
	return ends[0];
}

void qemu_feeder_join(struct qemu_feeder *feeder)
{
	pthread_join(feeder->thread, NULL);
}
