/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qemu_parser.h - inside the parser of QEMU's migration streams (qemu_stream.h is its outside): what its files share.
 *
 * The input is a sequence of items whose lengths are known before they come: expect() says how long the next one is and
 * who handles it, a handler looks at it, expects the next and may answer with a piece.
 *
 *      qemu_stream.c         the parser's life; brings the items together
 *      qemu_configuration.c  magic -> configuration_type -> machine -> [subsection ...]
 *      qemu_ram_setup.c        -> start -> memory_size -> [block ...] -> setup_records_end -> setup_footer
 *                                 [-> behind_setup] -> SETUP
 *      qemu_sections.c       section -> part -> record -> [page_name] -> page | zero_page -> record ... -> part_footer
 *                              -> section -> command -> section ...
 *      qemu_ending.c         how a stream may end; nothing else is looked at behind RAM's last section
 */
#ifndef DIOH_QEMU_PARSER_H
#define DIOH_QEMU_PARSER_H

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "qemu_ending.h"
#include "qemu_wire.h"

#define PAGE_MASK ((uint64_t)DIOH_PAGE_BYTES - 1)
#define NAME_SHOWN_BYTES 64    /* of a name in a sentence */
#define CONFIGURATION_ROOM 512 /* the fixed part, a machine's name, and each known subsection once: 349 at most */

_Static_assert(CONFIGURATION_ROOM <= DIOH_QEMU_CONFIGURATION_BYTES_MAX, "configuration");

enum subsection { PAGE_BITS, CAPABILITIES, UUID };

/* 0: go on; 1: a piece is there; negative: the error. */
typedef int handler(struct dioh_qemu_parser *p, const uint8_t *item, struct dioh_qemu_piece *piece,
                    struct dioh_error *err);

struct dioh_qemu_parser {
	enum dioh_qemu_form form;
	uint64_t offset; /* behind the last byte taken */
	handler *handle; /* the next item's */
	size_t need;     /* bytes of that item, at least 1 */
	size_t have;     /* of them in `buffer` */
	bool untake;     /* the handler looked at the byte only: it belongs to the next item */
	const char *stage;
	uint64_t verbatim_left; /* to pass as they are, before the next item */
	bool in_tail;           /* everything else passes as it is */
	bool sync_due;          /* answered next */

	struct dioh_qemu_setup setup;
	bool configured;
	bool setup_done;
	unsigned blocks_room;
	uint64_t blocks_bytes; /* of the blocks so far */
	unsigned subsections_seen;
	enum subsection subsection;
	uint32_t capabilities_left;
	size_t name_bytes; /* of the name that comes next */
	enum section_type foreign; /* the section that will be refused by its name */

	bool last_part;
	bool block_known;
	bool page_is_zero;
	unsigned block; /* of the last record */
	uint64_t page;
	struct dioh_qemu_ending ending;

	struct dioh_error error; /* final; code 0: none so far */
	uint8_t configuration[CONFIGURATION_ROOM];
	uint8_t buffer[DIOH_PAGE_BYTES];
};

/* ---- refusing ---------------------------------------------------------------------------------------------------- */

/* `at`: where the field stands that is not as it should be. */
#define REFUSE(p, err, code, at, format, ...)                                                      \
	dioh_error_set(err, code,                                                                  \
	               &(const struct dioh_place){ DIOH_OP_PARSE, object((p)->form), 0, (at) },    \
	               "QEMU %s: " format " (byte %" PRIu64 ")", noun((p)->form), ##__VA_ARGS__,   \
	               (uint64_t)(at))

static inline uint32_t object(enum dioh_qemu_form form)
{
	return form == DIOH_QEMU_IMAGE ? DIOH_OBJECT_IMAGE : DIOH_OBJECT_STREAM;
}

static inline const char *noun(enum dioh_qemu_form form)
{
	return form == DIOH_QEMU_IMAGE ? "image" : "stream";
}

/* Where the item at hand stands. */
static inline uint64_t item_at(const struct dioh_qemu_parser *p)
{
	return p->offset - p->need;
}

struct label {
	char text[NAME_SHOWN_BYTES + 1];
};

/* Names come from the stream and go to a terminal or a log: printable ASCII only. */
static inline struct label show(const void *name, size_t bytes)
{
	const uint8_t *from = name;
	struct label label;
	size_t n;

	for (n = 0; n < bytes && n < NAME_SHOWN_BYTES; n++)
		label.text[n] = from[n] >= ' ' && from[n] <= '~' ? (char)from[n] : '?';
	label.text[n] = '\0';
	return label;
}

static inline struct label show_block(const struct dioh_qemu_block *entry)
{
	return show(entry->name, strlen(entry->name));
}

static inline bool is_printable(const uint8_t *name, size_t bytes)
{
	for (size_t i = 0; i < bytes; i++) {
		if (name[i] < ' ' || name[i] > '~')
			return false;
	}
	return true;
}

static inline bool is_name(const char *name, const uint8_t *item, size_t bytes)
{
	return strlen(name) == bytes && memcmp(name, item, bytes) == 0;
}

static inline bool is_known_section(uint8_t type)
{
	return type >= SECTION_START && type <= SECTION_COMMAND;
}

/* ---- items ------------------------------------------------------------------------------------------------------- */

static inline int expect(struct dioh_qemu_parser *p, handler *handle, size_t need)
{
	p->handle = handle;
	p->need = need;
	return 0;
}

static inline int pass_item(struct dioh_qemu_parser *p, const uint8_t *item, struct dioh_qemu_piece *piece)
{
	*piece = (struct dioh_qemu_piece){ .event = DIOH_QEMU_VERBATIM,
		                           .bytes = item,
		                           .count = p->need };
	return 1;
}

/* The item ends with a name's length: `name` is to handle as many bytes, and `more` behind them. */
static inline int expect_name(struct dioh_qemu_parser *p, const uint8_t *item, handler *name, size_t more,
                              const char *whose, struct dioh_error *err)
{
	p->name_bytes = item[p->need - 1];
	if (p->name_bytes == 0)
		return REFUSE(p, err, -EBADMSG, p->offset - 1, "%s has an empty name", whose);
	return expect(p, name, p->name_bytes + more);
}

/* ---- from file to file ----------------------------------------------------------------------------------------- */

/* The first item of each: the stream (8 bytes), the RAM section's start (5), a section behind it (1). */
handler dioh_qemu_magic, dioh_qemu_start_head, dioh_qemu_section;

/* A section of which only the name is read, to refuse it by. */
int dioh_qemu_expect_foreign(struct dioh_qemu_parser *p, uint8_t type);

/* "unknown" if it has none. */
const char *dioh_qemu_command_name(uint32_t number);

/* Whether `id`, the last thing read, is the RAM section's. `what`: of which part of a section. */
int dioh_qemu_check_section(const struct dioh_qemu_parser *p, const uint8_t *id, const char *what,
                            struct dioh_error *err);

/* QEMU 8.1.0 to 8.1.2 put multifd's sync points into streams without multifd, too, where they mean nothing. */
bool dioh_qemu_is_idle_flush(const struct dioh_qemu_parser *p, uint64_t value);

/* A record that is neither page nor end where it stands. */
int dioh_qemu_refuse_record(const struct dioh_qemu_parser *p, uint64_t value, const char *where,
                            struct dioh_error *err);

#endif
