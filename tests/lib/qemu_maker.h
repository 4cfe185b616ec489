/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qemu_maker.h - migration streams and mapped-ram images such as QEMU writes them, made without QEMU; and a reader that
 * says what memory a stream describes. What a maker has put is remembered, to be compared with what comes back.
 */
#ifndef DIOH_QEMU_MAKER_H
#define DIOH_QEMU_MAKER_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "qemu_stream.h"

#define QEMU_BLOCKS_MAX 8u

enum qemu_section { QEMU_PART = 2, QEMU_END = 3 };

/* A stream being made; all zeros but for `setup` and `blocks`, which qemu_start() fills in. */
struct qemu_maker {
	uint8_t *bytes;
	size_t count;
	size_t room;
	struct dioh_qemu_setup setup;
	struct dioh_qemu_block blocks[QEMU_BLOCKS_MAX];
	uint8_t *memory[QEMU_BLOCKS_MAX]; /* as the pages put so far make it */
	unsigned named; /* the block of the page before, plus 1 */
	size_t setup_bytes; /* where the first section behind the setup begins */
	uint64_t header_at[QEMU_BLOCKS_MAX]; /* image: where the block's name's length stands in the file */
	uint8_t configuration[512];
};

/* ---- making ---- */

/* Blocks by name, bytes and guest address; `capabilities`: enum dioh_qemu_capability. Nothing is put yet. */
void qemu_start(struct qemu_maker *q, const struct dioh_qemu_block *blocks, unsigned count, uint32_t capabilities);
void qemu_free(struct qemu_maker *q);

void qemu_put(struct qemu_maker *q, const void *bytes, size_t count);
void qemu_put_be(struct qemu_maker *q, uint64_t value, unsigned bytes);
void qemu_put_name(struct qemu_maker *q, const char *name);

/* Configuration and the RAM section's start, end included. */
void qemu_put_setup(struct qemu_maker *q);
void qemu_put_section(struct qemu_maker *q, enum qemu_section type);
void qemu_put_section_end(struct qemu_maker *q);
/* A page of pseudo-random bytes; seed 0: a zero page. */
void qemu_put_page(struct qemu_maker *q, unsigned block, uint64_t page, uint64_t seed);
/* A page with its bytes, all zero though they may be. */
void qemu_put_page_bytes(struct qemu_maker *q, unsigned block, uint64_t page, const void *bytes);
void qemu_put_command(struct qemu_maker *q, uint16_t number, const void *bytes, uint16_t count);
/* A device with a state of so many bytes. */
void qemu_put_device(struct qemu_maker *q, uint32_t section, size_t bytes, uint64_t seed);
/* The end, with a description of the devices. */
void qemu_put_end(struct qemu_maker *q);

/*
 * A mapped-ram image as QEMU writes it into a file: at `at` the setup, bitmaps and pages of q->memory at their places
 * (pages on 1 MiB boundaries), then q's bytes behind the setup, which must have no pages.
 */
void qemu_write_image(struct qemu_maker *q, int fd, uint64_t at);

/* ---- reading ---- */

struct qemu_reader {
	struct dioh_qemu_parser *parser;
	const struct dioh_qemu_setup *setup;
	uint8_t *memory[QEMU_BLOCKS_MAX];
	uint64_t pages[QEMU_BLOCKS_MAX]; /* that came, zero pages included */
	uint8_t *verbatim; /* all that is neither setup nor page */
	size_t verbatim_count;
};

/* Parses a whole stream; fails the running test if it is none. */
void qemu_read(struct qemu_reader *r, const uint8_t *bytes, size_t count);
void qemu_reader_free(struct qemu_reader *r);

/* ---- into a pipe ---- */

struct qemu_feeder { /* a thread that writes bytes, then closes */
	int fd;
	const uint8_t *bytes;
	size_t count;
	size_t piece; /* 0: as many as go */
	pthread_t thread;
};

/* Answers the end to read from. */
int qemu_feed(struct qemu_feeder *feeder, const uint8_t *bytes, size_t count, size_t piece);
void qemu_feeder_join(struct qemu_feeder *feeder);

#endif
