/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qemu_stream.h - QEMU's migration stream, as far as its guest memory goes: configuration, RAM setup, pages. Read piece by
 * piece, in bounded memory, without I/O; and the encoders of the same pieces. What follows the RAM section is device
 * state, which only QEMU understands: it passes through as it is.
 *
 * Three forms are read: a *stream* (pages stand in it, each with its offset), the main stream of a *multifd* migration (most
 * or all pages come by other channels, multifd_format.h), and a *mapped-ram image* (a header a block, pages at fixed places
 * outside the stream). Every byte may come from somebody hostile. Integers are big-endian, bitmaps
 * little-endian (as x86 and other little-endian hosts write them).
 *
 * Source: QEMU 10.0, migration/savevm.c, migration/ram.c, docs/devel/migration/mapped-ram.rst. Private to helper, tests
 * and fuzzers.
 */
#ifndef DIOH_QEMU_STREAM_H
#define DIOH_QEMU_STREAM_H

#include <stdbool.h>
#include <stddef.h>

#include "diohelper-protocol.h"
#include "error.h"

/* Most that a configuration section, or what a parser keeps of one, may take. */
#define DIOH_QEMU_CONFIGURATION_BYTES_MAX 65536u
/* Longest encodings: of the RAM section's start up to the first block, of a block, of a page's header. */
#define DIOH_QEMU_RAM_START_BYTES 25u
#define DIOH_QEMU_BLOCK_BYTES_MAX (1u + 255u + 8u + 8u + 28u)
#define DIOH_QEMU_PAGE_HEADER_BYTES_MAX (8u + 1u + 255u + 1u)
#define DIOH_QEMU_SECTION_END_BYTES 13u /* end of records, footer */

/* Capabilities that a stream declares; others are refused by name. */
enum dioh_qemu_capability {
	DIOH_QEMU_IGNORE_SHARED = 1u << 0, /* x-ignore-shared: blocks carry their guest address */
	DIOH_QEMU_MAPPED_RAM = 1u << 1,
};

struct dioh_qemu_block { /* RAMBlock */
	char name[DIOH_NAME_BYTES];
	uint64_t bytes;         /* a multiple of 4096, not 0 */
	uint64_t guest_address; /* IGNORE_SHARED */
	uint64_t bitmap_offset; /* mapped-ram: absolute offsets in the file */
	uint64_t pages_offset;
};

/* What stands before the first page. */
struct dioh_qemu_setup {
	uint32_t capabilities; /* enum dioh_qemu_capability */
	char machine[DIOH_NAME_BYTES];
	/* The configuration section as it came, magic and version in front, but for its capabilities subsection. */
	uint8_t *configuration;
	size_t configuration_bytes;
	size_t capabilities_at; /* where in these bytes that subsection stood, or would stand */
	uint32_t ram_section;   /* the section's id */
	uint32_t ram_version;
	bool footers;         /* sections end with one, unless QEMU was told not to send them */
	bool flushes;         /* multifd: sync points have records of their own, else each end of records is one */
	uint64_t total_bytes; /* of all blocks */
	struct dioh_qemu_block *blocks;
	unsigned block_count; /* 1 to DIOH_REGIONS_MAX */
};

enum dioh_qemu_form { DIOH_QEMU_STREAM, DIOH_QEMU_IMAGE, DIOH_QEMU_MULTIFD };

enum dioh_qemu_event {
	DIOH_QEMU_MORE,     /* all input has been taken: give more */
	DIOH_QEMU_SEEK,     /* image: the next input must be the bytes at `offset` in the file */
	/*
	 * The setup is complete, its section's end included (multifd: up to its footer), and a stream does not start another
	 * section that is sent in parts. Once.
	 */
	DIOH_QEMU_SETUP,
	DIOH_QEMU_PAGE,     /* `page` of `block`; 4096 `bytes`, or NULL: a zero page. Not in images */
	DIOH_QEMU_SYNC,     /* multifd: a sync point. SETUP is one, too */
	DIOH_QEMU_VERBATIM, /* `count` bytes that belong to the stream behind the setup and are no pages */
};

struct dioh_qemu_piece {
	enum dioh_qemu_event event;
	uint64_t offset;
	unsigned block;
	uint64_t page;
	const uint8_t *bytes; /* in the input, or in the parser; valid until the next call */
	size_t count;
};

struct dioh_qemu_parser;

/*
 * `start`: the file offset of the first byte (image), for error messages and to check offsets against; 0 for streams.
 * An image is taken to declare mapped-ram, the others not to; what does is refused. NULL: out of memory, err set.
 */
struct dioh_qemu_parser *dioh_qemu_parser_new(enum dioh_qemu_form form, uint64_t start, struct dioh_error *err);
void dioh_qemu_parser_free(struct dioh_qemu_parser *parser);

/*
 * Takes some of the input (*bytes, *count are advanced) and answers with one piece. Errors, which are final: -EBADMSG
 * (not QEMU's, damaged, contradicting itself; duplicate names, lengths that are no page multiples, 0, or wrap; total and
 * sum differing), -EOPNOTSUPP (a version, section, capability, command or flag that is not understood, named in the
 * sentence), -EFBIG (more blocks, larger configuration), -ENOMEM. Object STREAM or IMAGE, operation PARSE, offset: of the
 * field in the stream, or in the file.
 *
 * The sections between setup and the RAM section's end: COMMAND passes verbatim, PART and END of RAM pass verbatim without
 * the pages in them, START of anything else and FULL are refused by name. Once RAM's END and its footer have come
 * everything passes verbatim. In an image the RAM section's parts hold no pages. The setup's own end (end of records,
 * footer if there is one) passes in neither: the encoder below makes it anew.
 */
int dioh_qemu_parse(struct dioh_qemu_parser *parser, const uint8_t **bytes, size_t *count,
                    struct dioh_qemu_piece *ret_piece, struct dioh_error *err);

/*
 * The input has ended. -EBADMSG with the offset if that was too early: before RAM's END, or where a stream of QEMU can't
 * end: it ends with the description of its devices (a 0 byte, 0x06, be32 length, so many bytes of JSON), or, where that
 * is switched off, with the 0 byte behind a section's footer. Without footers any 0 byte has to do: an end that is too
 * early may then go unnoticed. Behind the description there may be zeros.
 */
int dioh_qemu_parser_end(const struct dioh_qemu_parser *parser, struct dioh_error *err);

/* Valid once SETUP has been answered, until the parser is freed. NULL before. */
const struct dioh_qemu_setup *dioh_qemu_parser_setup(const struct dioh_qemu_parser *parser);
/* The configuration has come, and is one of this form. */
bool dioh_qemu_parser_configured(const struct dioh_qemu_parser *parser);
/* RAM's END has come: no page and no sync point follows. */
bool dioh_qemu_parser_in_tail(const struct dioh_qemu_parser *parser);
/* Bytes taken so far; image: the file offset behind the last of them. */
uint64_t dioh_qemu_parser_offset(const struct dioh_qemu_parser *parser);

/* ---- encoders: answer the length; `to` has room for what the constants above say ---- */

/* Magic, version and configuration with other capabilities: configuration_bytes + 64 are enough. */
size_t dioh_qemu_put_configuration(uint8_t *to, const struct dioh_qemu_setup *setup, uint32_t capabilities);
/* The RAM section's start, up to the first block. */
size_t dioh_qemu_put_ram_start(uint8_t *to, const struct dioh_qemu_setup *setup);
/* A block as `capabilities` have it. Without the bitmap. */
size_t dioh_qemu_put_block(uint8_t *to, const struct dioh_qemu_block *block, uint32_t capabilities);
/* End of records and footer: ends the setup, and each part. */
size_t dioh_qemu_put_section_end(uint8_t *to, const struct dioh_qemu_setup *setup);
/* Begins a part that pages follow. */
size_t dioh_qemu_put_part_start(uint8_t *to, const struct dioh_qemu_setup *setup);
/* A page's header; a zero page is no more than that. `name`: NULL if the block is that of the page before it. */
size_t dioh_qemu_put_page(uint8_t *to, const char *name, uint64_t page, bool zero);

#endif
