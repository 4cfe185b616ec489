/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qemu_stream.c - reading what QEMU's migration streams say of guest memory. (Writing: qemu_stream_put.c.)
 *
 * A parser owns its setup and one page; it trusts no byte of its input. The input is a sequence of items
 * whose lengths are known before they come: expect() says how long the next one is and who handles it,
 * gather() brings it together, and a handler looks at it, expects the next and may answer with a piece.
 * A whole item in the input is handled where it lies, so pages are copied only if they come in pieces.
 *
 *      magic -> configuration_type -> machine -> [subsection ...] -> start -> memory_size
 *        -> [block ...] -> setup_records_end -> setup_footer [-> behind_setup] -> SETUP
 *      section -> part -> record -> [page_name] -> page | zero_page -> record ... -> part_footer -> section ...
 *      section -> command -> section
 *
 * Behind RAM's last section nothing is looked at but for one thing: how such a stream may end (qemu_ending.c).
 *
 * Called by the mapped-ram layout and the payloads in the sealed helper, by the tests and by fuzzers.
 */
#include "qemu_stream.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "align.h"
#include "qemu_ending.h"
#include "qemu_wire.h"

#define MAGIC 0x5145564du /* "QEVM" */
#define STREAM_VERSION 3u
#define RAM_VERSION 4u
#define MAPPED_HEADER_BYTES 28u
#define TARGET_PAGE_BITS 12u
#define UUID_BYTES 16u
#define PAGE_MASK ((uint64_t)DIOH_PAGE_BYTES - 1)

#define NAME_SHOWN_BYTES 64   /* of a name in a sentence */
#define CONFIGURATION_ROOM 512 /* the fixed part, a machine's name, and each known subsection once: 349 at most */
#define BLOCKS_ROOM_FIRST 16u

_Static_assert(CONFIGURATION_ROOM <= DIOH_QEMU_CONFIGURATION_BYTES_MAX, "configuration");
_Static_assert(DIOH_PAGE_BYTES == 1u << TARGET_PAGE_BITS, "a page is QEMU's page");

static const struct {
	uint32_t flag;
	const char *name;
} foreign_flags[] = {
	{ 0x001, "FULL" },          { RECORD_MEM_SIZE, "MEM_SIZE" }, { 0x040, "XBZRLE" }, { 0x080, "HOOK" },
	{ 0x100, "COMPRESS_PAGE" }, { RECORD_FLUSH, "MULTIFD_FLUSH" },
};

enum subsection { PAGE_BITS, CAPABILITIES, UUID };

static const struct {
	const char *name;
	size_t bytes; /* version and the content's fixed part */
} subsections[] = {
	[PAGE_BITS] = { "configuration/target-page-bits", 8 },
	[CAPABILITIES] = { CAPABILITIES_NAME, 8 },
	[UUID] = { "configuration/uuid", 4 + UUID_BYTES },
};

/* Only those pass that announce nothing of postcopy and no bytes that are not theirs. */
static const struct {
	const char *name;
	bool passes;
} commands[] = {
	[0] = { "INVALID", false },
	[1] = { "OPEN_RETURN_PATH", true },
	[2] = { "PING", true },
	[3] = { "POSTCOPY_ADVISE", false },
	[4] = { "POSTCOPY_LISTEN", false },
	[5] = { "POSTCOPY_RUN", false },
	[6] = { "POSTCOPY_RAM_DISCARD", false },
	[7] = { "PACKAGED", false },
	[8] = { "ENABLE_COLO", false },
	[9] = { "POSTCOPY_RESUME", false },
	[10] = { "RECV_BITMAP", false },
	[11] = { "SWITCHOVER_START", true },
};

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

static handler configuration_type, configuration_bytes, machine, configuration_next, early_command;
static handler subsection_name_bytes, subsection_name, subsection_content;
static handler capability_name_bytes, capability_name;
static handler start_head, start, memory_size, block_name_bytes, block, setup_records_end;
static handler setup_footer_type, setup_footer_id, setup_footer, behind_setup;
static handler section, part_head, record, page_name_bytes, page_name, page, zero_page, part_footer;
static handler command, foreign_head, foreign_name;

/* ---- refusing ------------------------------------------------------------------------------------ */

/* `at`: where the field stands that is not as it should be. */
#define REFUSE(p, err, code, at, format, ...)                                                      \
	dioh_error_set(err, code,                                                                  \
	               &(const struct dioh_place){ DIOH_OP_PARSE, object((p)->form), 0, (at) },    \
	               "QEMU %s: " format " (byte %" PRIu64 ")", noun((p)->form), ##__VA_ARGS__,   \
	               (uint64_t)(at))

static uint32_t object(enum dioh_qemu_form form)
{
	return form == DIOH_QEMU_IMAGE ? DIOH_OBJECT_IMAGE : DIOH_OBJECT_STREAM;
}

static const char *noun(enum dioh_qemu_form form)
{
	return form == DIOH_QEMU_IMAGE ? "image" : "stream";
}

/* Where the item at hand stands. */
static uint64_t item_at(const struct dioh_qemu_parser *p)
{
	return p->offset - p->need;
}

struct label {
	char text[NAME_SHOWN_BYTES + 1];
};

/* Names come from the stream and go to a terminal or a log: printable ASCII only. */
static struct label show(const void *name, size_t bytes)
{
	const uint8_t *from = name;
	struct label label;
	size_t n;

	for (n = 0; n < bytes && n < NAME_SHOWN_BYTES; n++)
		label.text[n] = from[n] >= ' ' && from[n] <= '~' ? (char)from[n] : '?';
	label.text[n] = '\0';
	return label;
}

static struct label show_block(const struct dioh_qemu_block *entry)
{
	return show(entry->name, strlen(entry->name));
}

static bool is_printable(const uint8_t *name, size_t bytes)
{
	for (size_t i = 0; i < bytes; i++) {
		if (name[i] < ' ' || name[i] > '~')
			return false;
	}
	return true;
}

static bool is_name(const char *name, const uint8_t *item, size_t bytes)
{
	return strlen(name) == bytes && memcmp(name, item, bytes) == 0;
}

static bool is_known_section(uint8_t type)
{
	return type >= SECTION_START && type <= SECTION_COMMAND;
}

/* ---- items --------------------------------------------------------------------------------------- */

static int expect(struct dioh_qemu_parser *p, handler *handle, size_t need)
{
	p->handle = handle;
	p->need = need;
	return 0;
}

static int pass_item(struct dioh_qemu_parser *p, const uint8_t *item, struct dioh_qemu_piece *piece)
{
	*piece = (struct dioh_qemu_piece){ .event = DIOH_QEMU_VERBATIM,
		                           .bytes = item,
		                           .count = p->need };
	return 1;
}

/* The item ends with a name's length: `name` is to handle as many bytes, and `more` behind them. */
static int expect_name(struct dioh_qemu_parser *p, const uint8_t *item, handler *name, size_t more,
                       const char *whose, struct dioh_error *err)
{
	p->name_bytes = item[p->need - 1];
	if (p->name_bytes == 0)
		return REFUSE(p, err, -EBADMSG, p->offset - 1, "%s has an empty name", whose);
	return expect(p, name, p->name_bytes + more);
}

/* ---- the configuration --------------------------------------------------------------------------- */

static void keep(struct dioh_qemu_parser *p, const void *bytes, size_t count)
{
	memcpy(&p->configuration[p->setup.configuration_bytes], bytes, count);
	p->setup.configuration_bytes += count;
}

static int magic(struct dioh_qemu_parser *p, const uint8_t *item, struct dioh_qemu_piece *piece,
                 struct dioh_error *err)
{
	(void)piece;
	if (get_be32(item) != MAGIC)
		return REFUSE(p, err, -EBADMSG, item_at(p),
		              "it starts with 0x%08" PRIx32 " instead of QEMU's magic", get_be32(item));
	if (get_be32(&item[4]) != STREAM_VERSION)
		return REFUSE(p, err, -EOPNOTSUPP, item_at(p) + 4,
		              "version %" PRIu32 " is not understood, only %u", get_be32(&item[4]),
		              STREAM_VERSION);
	keep(p, item, 8);
	return expect(p, configuration_type, 1);
}

static int configuration_type(struct dioh_qemu_parser *p, const uint8_t *item,
                              struct dioh_qemu_piece *piece, struct dioh_error *err)
{
	(void)piece;
	if (*item != SECTION_CONFIGURATION)
		return REFUSE(p, err, is_known_section(*item) ? -EOPNOTSUPP : -EBADMSG, item_at(p),
		              "it has no configuration section, but a section of type 0x%02x", *item);
	keep(p, item, 1);
	return expect(p, configuration_bytes, 4);
}

static int configuration_bytes(struct dioh_qemu_parser *p, const uint8_t *item,
                               struct dioh_qemu_piece *piece, struct dioh_error *err)
{
	uint32_t bytes = get_be32(item);

	(void)piece;
	if (bytes == 0)
		return REFUSE(p, err, -EBADMSG, item_at(p), "the machine's name is empty");
	if (bytes >= DIOH_NAME_BYTES)
		return REFUSE(p, err, -EFBIG, item_at(p),
		              "the machine's name of %" PRIu32 " bytes is longer than %u", bytes,
		              DIOH_NAME_BYTES - 1);
	keep(p, item, 4);
	return expect(p, machine, bytes);
}

static int machine(struct dioh_qemu_parser *p, const uint8_t *item, struct dioh_qemu_piece *piece,
                   struct dioh_error *err)
{
	(void)piece;
	if (!is_printable(item, p->need))
		return REFUSE(p, err, -EBADMSG, item_at(p),
		              "the machine's name \"%s\" has characters that are not printable",
		              show(item, p->need).text);
	memcpy(p->setup.machine, item, p->need);
	keep(p, item, p->need);
	p->setup.capabilities_at = p->setup.configuration_bytes;
	return expect(p, configuration_next, 1);
}

/* Both forms begin alike; what declares mapped-ram has its pages elsewhere. */
static int check_form(const struct dioh_qemu_parser *p, struct dioh_error *err)
{
	bool mapped = p->setup.capabilities & DIOH_QEMU_MAPPED_RAM;

	if (mapped && p->form != DIOH_QEMU_IMAGE)
		return REFUSE(p, err, -EOPNOTSUPP, item_at(p),
		              "it declares mapped-ram: it is an image, whose pages do not stand in the stream");
	if (!mapped && p->form == DIOH_QEMU_IMAGE)
		return REFUSE(p, err, -EOPNOTSUPP, item_at(p),
		              "it does not declare mapped-ram: it is a stream, whose pages stand in it");
	/* QEMU 10.0 cannot load that: it writes guest addresses that it does not read. */
	if (mapped && (p->setup.capabilities & DIOH_QEMU_IGNORE_SHARED))
		return REFUSE(p, err, -EOPNOTSUPP, item_at(p),
		              "it declares both mapped-ram and x-ignore-shared, which QEMU cannot load");
	return 0;
}

/* A section of which only the name is read. */
static int expect_foreign(struct dioh_qemu_parser *p, uint8_t type)
{
	p->foreign = type;
	return expect(p, foreign_head, 5);
}

static int configuration_next(struct dioh_qemu_parser *p, const uint8_t *item,
                              struct dioh_qemu_piece *piece, struct dioh_error *err)
{
	int r;

	(void)piece;
	if (*item == SUBSECTION)
		return expect(p, subsection_name_bytes, 1);
	r = check_form(p, err);
	if (r < 0)
		return r;
	p->configured = true;
	p->stage = "in the RAM section's start";
	if (*item == SECTION_START)
		return expect(p, start_head, 5);
	if (*item == SECTION_FULL)
		return expect_foreign(p, *item);
	if (*item == SECTION_COMMAND)
		return expect(p, early_command, 4);
	return REFUSE(p, err, is_known_section(*item) ? -EOPNOTSUPP : -EBADMSG, item_at(p),
	              "a section of type 0x%02x instead of the RAM section's start", *item);
}

static const char *command_name(uint32_t number)
{
	return number < COUNT_OF(commands) ? commands[number].name : "unknown";
}

/* Postcopy begins with one, and so does a migration that wants answers. */
static int early_command(struct dioh_qemu_parser *p, const uint8_t *item,
                         struct dioh_qemu_piece *piece, struct dioh_error *err)
{
	(void)piece;
	return REFUSE(p, err, -EOPNOTSUPP, item_at(p) - 1,
	              "command %" PRIu32 ", %s, instead of the RAM section's start is not understood",
	              get_be16(item), command_name(get_be16(item)));
}

static int subsection_name_bytes(struct dioh_qemu_parser *p, const uint8_t *item,
                                 struct dioh_qemu_piece *piece, struct dioh_error *err)
{
	(void)piece;
	return expect_name(p, item, subsection_name, 0, "a subsection of the configuration", err);
}

static int subsection_name(struct dioh_qemu_parser *p, const uint8_t *item,
                           struct dioh_qemu_piece *piece, struct dioh_error *err)
{
	(void)piece;
	for (unsigned i = 0; i < COUNT_OF(subsections); i++) {
		if (!is_name(subsections[i].name, item, p->need))
			continue;
		if (p->subsections_seen & 1u << i)
			return REFUSE(p, err, -EBADMSG, item_at(p), "it has two subsections \"%s\"",
			              subsections[i].name);
		p->subsections_seen |= 1u << i;
		p->subsection = i;
		return expect(p, subsection_content, subsections[i].bytes);
	}
	return REFUSE(p, err, -EOPNOTSUPP, item_at(p),
	              "the configuration's subsection \"%s\" is not understood",
	              show(item, p->need).text);
}

static void keep_subsection(struct dioh_qemu_parser *p, const uint8_t *content)
{
	const char *name = subsections[p->subsection].name;
	const uint8_t head[] = { SUBSECTION, (uint8_t)strlen(name) };

	keep(p, head, sizeof(head));
	keep(p, name, strlen(name));
	keep(p, content, p->need);
}

static int page_bits(struct dioh_qemu_parser *p, const uint8_t *item, struct dioh_error *err)
{
	uint32_t bits = get_be32(&item[4]);

	if (bits != TARGET_PAGE_BITS)
		return REFUSE(p, err, -EOPNOTSUPP, item_at(p) + 4,
		              "\"configuration/target-page-bits\" is %" PRIu32 ", but only %u is understood",
		              bits, TARGET_PAGE_BITS);
	keep_subsection(p, item);
	/* QEMU puts the capabilities behind this one. */
	if (!(p->subsections_seen & 1u << CAPABILITIES))
		p->setup.capabilities_at = p->setup.configuration_bytes;
	return expect(p, configuration_next, 1);
}

static int next_capability(struct dioh_qemu_parser *p)
{
	if (p->capabilities_left == 0)
		return expect(p, configuration_next, 1);
	p->capabilities_left--;
	return expect(p, capability_name_bytes, 1);
}

static int subsection_content(struct dioh_qemu_parser *p, const uint8_t *item,
                              struct dioh_qemu_piece *piece, struct dioh_error *err)
{
	(void)piece;
	if (get_be32(item) != SUBSECTION_VERSION)
		return REFUSE(p, err, -EOPNOTSUPP, item_at(p),
		              "version %" PRIu32 " of \"%s\" is not understood, only %u",
		              get_be32(item), subsections[p->subsection].name, SUBSECTION_VERSION);
	if (p->subsection == PAGE_BITS)
		return page_bits(p, item, err);
	if (p->subsection == CAPABILITIES) {
		p->setup.capabilities_at = p->setup.configuration_bytes;
		p->capabilities_left = get_be32(&item[4]);
		return next_capability(p);
	}
	keep_subsection(p, item);
	return expect(p, configuration_next, 1);
}

static int capability_name_bytes(struct dioh_qemu_parser *p, const uint8_t *item,
                                 struct dioh_qemu_piece *piece, struct dioh_error *err)
{
	(void)piece;
	return expect_name(p, item, capability_name, 0, "a capability", err);
}

/* None may come twice: however many are announced, no more are read than there are. */
static int capability_name(struct dioh_qemu_parser *p, const uint8_t *item,
                           struct dioh_qemu_piece *piece, struct dioh_error *err)
{
	(void)piece;
	for (unsigned i = 0; i < COUNT_OF(capabilities); i++) {
		if (!is_name(capabilities[i].name, item, p->need))
			continue;
		if (p->setup.capabilities & capabilities[i].capability)
			return REFUSE(p, err, -EBADMSG, item_at(p), "it declares \"%s\" twice",
			              capabilities[i].name);
		p->setup.capabilities |= capabilities[i].capability;
		return next_capability(p);
	}
	return REFUSE(p, err, -EOPNOTSUPP, item_at(p),
	              "it declares the capability \"%s\", which is not understood",
	              show(item, p->need).text);
}

/* ---- sections that are refused by their name ----------------------------------------------------- */

static int foreign_head(struct dioh_qemu_parser *p, const uint8_t *item,
                        struct dioh_qemu_piece *piece, struct dioh_error *err)
{
	(void)piece;
	return expect_name(p, item, foreign_name, 0, "a section", err);
}

static int foreign_name(struct dioh_qemu_parser *p, const uint8_t *item,
                        struct dioh_qemu_piece *piece, struct dioh_error *err)
{
	(void)piece;
	return REFUSE(p, err, -EOPNOTSUPP, item_at(p),
	              "%s of section \"%s\" before the end of the RAM section is not understood",
	              p->foreign == SECTION_START ? "the start" : "the state",
	              show(item, p->need).text);
}

/* ---- the RAM section's start --------------------------------------------------------------------- */

static int start_head(struct dioh_qemu_parser *p, const uint8_t *item,
                      struct dioh_qemu_piece *piece, struct dioh_error *err)
{
	(void)piece;
	p->setup.ram_section = get_be32(item);
	return expect_name(p, item, start, 8, "a section", err);
}

static int start(struct dioh_qemu_parser *p, const uint8_t *item, struct dioh_qemu_piece *piece,
                 struct dioh_error *err)
{
	const uint8_t *instance = &item[p->name_bytes];
	uint64_t at = item_at(p) + p->name_bytes;

	(void)piece;
	if (!is_name("ram", item, p->name_bytes))
		return REFUSE(p, err, -EOPNOTSUPP, item_at(p),
		              "the start of section \"%s\" instead of \"ram\" is not understood",
		              show(item, p->name_bytes).text);
	if (get_be32(instance) != 0)
		return REFUSE(p, err, -EBADMSG, at, "section \"ram\" is instance %" PRIu32
		              " instead of 0", get_be32(instance));
	p->setup.ram_version = get_be32(&instance[4]);
	if (p->setup.ram_version != RAM_VERSION)
		return REFUSE(p, err, -EOPNOTSUPP, at + 4,
		              "version %" PRIu32 " of section \"ram\" is not understood, only %u",
		              p->setup.ram_version, RAM_VERSION);
	return expect(p, memory_size, 8);
}

/* A record that is neither page nor end where it stands. */
static int refuse_record(const struct dioh_qemu_parser *p, uint64_t value, const char *where,
                         struct dioh_error *err)
{
	uint32_t flags = (uint32_t)(value & PAGE_MASK);

	for (unsigned i = 0; i < COUNT_OF(foreign_flags); i++) {
		if (flags & foreign_flags[i].flag)
			return REFUSE(p, err, -EOPNOTSUPP, item_at(p),
			              "a RAM record with flag %s (flags 0x%03" PRIx32 ") %s is not understood",
			              foreign_flags[i].name, flags, where);
	}
	return REFUSE(p, err, -EBADMSG, item_at(p), "a RAM record 0x%016" PRIx64 " %s", value, where);
}

static int memory_size(struct dioh_qemu_parser *p, const uint8_t *item,
                       struct dioh_qemu_piece *piece, struct dioh_error *err)
{
	uint64_t value = get_be64(item);

	(void)piece;
	if ((value & PAGE_MASK) != RECORD_MEM_SIZE)
		return refuse_record(p, value, "where the memory's size should stand", err);
	p->setup.total_bytes = value & ~PAGE_MASK;
	if (p->setup.total_bytes == 0)
		return REFUSE(p, err, -EBADMSG, item_at(p), "it has 0 bytes of memory");
	return expect(p, block_name_bytes, 1);
}

static int block_name_bytes(struct dioh_qemu_parser *p, const uint8_t *item,
                            struct dioh_qemu_piece *piece, struct dioh_error *err)
{
	size_t more = 8;

	(void)piece;
	if (p->setup.block_count == DIOH_REGIONS_MAX)
		return REFUSE(p, err, -EFBIG, item_at(p), "it has more than %u blocks", DIOH_REGIONS_MAX);
	if (*item == 0)
		return REFUSE(p, err, -EBADMSG, item_at(p),
		              "block %u has an empty name; the blocks before it have %" PRIu64
		              " of %" PRIu64 " bytes", p->setup.block_count, p->blocks_bytes,
		              p->setup.total_bytes);
	if (p->setup.capabilities & DIOH_QEMU_IGNORE_SHARED)
		more += 8;
	if (p->setup.capabilities & DIOH_QEMU_MAPPED_RAM)
		more += MAPPED_HEADER_BYTES;
	return expect_name(p, item, block, more, "a block", err);
}

static int check_block_name(const struct dioh_qemu_parser *p, const struct dioh_qemu_block *entry,
                            const uint8_t *name, struct dioh_error *err)
{
	if (!is_printable(name, p->name_bytes))
		return REFUSE(p, err, -EBADMSG, item_at(p),
		              "block %u: its name \"%s\" has characters that are not printable",
		              p->setup.block_count, show(name, p->name_bytes).text);
	for (unsigned i = 0; i < p->setup.block_count; i++) {
		if (strcmp(p->setup.blocks[i].name, entry->name) == 0)
			return REFUSE(p, err, -EBADMSG, item_at(p), "blocks %u and %u are both \"%s\"",
			              i, p->setup.block_count, show_block(entry).text);
	}
	return 0;
}

static int check_block_bytes(const struct dioh_qemu_parser *p, const struct dioh_qemu_block *entry,
                             struct dioh_error *err)
{
	uint64_t at = item_at(p) + p->name_bytes;
	uint64_t rest = p->setup.total_bytes - p->blocks_bytes;

	if (entry->bytes == 0 || (entry->bytes & PAGE_MASK) != 0)
		return REFUSE(p, err, -EBADMSG, at,
		              "block \"%s\": its %" PRIu64 " bytes are not one or more pages of %u",
		              show_block(entry).text, entry->bytes, DIOH_PAGE_BYTES);
	if (entry->bytes > rest)
		return REFUSE(p, err, -EBADMSG, at,
		              "block \"%s\": its %" PRIu64 " bytes are more than the %" PRIu64
		              " that are left of %" PRIu64, show_block(entry).text, entry->bytes, rest,
		              p->setup.total_bytes);
	if (entry->bytes > DIOH_REGION_BYTES_MAX)
		return REFUSE(p, err, -EFBIG, at,
		              "block \"%s\": its %" PRIu64 " bytes are more than %" PRIu64,
		              show_block(entry).text, entry->bytes, DIOH_REGION_BYTES_MAX);
	return 0;
}

/* Behind the mapped-ram header come, in this order and without overlap: bitmap, at once, and pages. */
static int check_mapped_offsets(const struct dioh_qemu_parser *p, const struct dioh_qemu_block *entry,
                                uint64_t at, struct dioh_error *err)
{
	uint64_t bitmap_bytes = dioh_align_up(dioh_div_up(entry->bytes / DIOH_PAGE_BYTES, 8), 8);

	if (entry->bitmap_offset != p->offset)
		return REFUSE(p, err, -EBADMSG, at + 12,
		              "block \"%s\": its bitmap at offset %" PRIu64
		              " does not start at the end of its header, %" PRIu64,
		              show_block(entry).text, entry->bitmap_offset, p->offset);
	if (entry->pages_offset & PAGE_MASK)
		return REFUSE(p, err, -EBADMSG, at + 20,
		              "block \"%s\": its pages at offset %" PRIu64
		              " do not start at a multiple of %u", show_block(entry).text,
		              entry->pages_offset, DIOH_PAGE_BYTES);
	if (!dioh_range_ok(entry->bitmap_offset, bitmap_bytes, entry->pages_offset))
		return REFUSE(p, err, -EBADMSG, at + 12,
		              "block \"%s\": its bitmap of %" PRIu64 " bytes at offset %" PRIu64
		              " runs into its pages at %" PRIu64, show_block(entry).text, bitmap_bytes,
		              entry->bitmap_offset, entry->pages_offset);
	if (!dioh_range_ok(entry->pages_offset, entry->bytes, DIOH_OFFSET_MAX))
		return REFUSE(p, err, -EBADMSG, at + 20,
		              "block \"%s\": its pages at offset %" PRIu64 " end beyond %" PRIu64,
		              show_block(entry).text, entry->pages_offset, DIOH_OFFSET_MAX);
	return 0;
}

static int mapped_header(const struct dioh_qemu_parser *p, struct dioh_qemu_block *entry,
                         const uint8_t *header, struct dioh_error *err)
{
	uint64_t at = p->offset - MAPPED_HEADER_BYTES;
	uint32_t version = get_be32(header);
	uint64_t page_bytes = get_be64(&header[4]);

	entry->bitmap_offset = get_be64(&header[12]);
	entry->pages_offset = get_be64(&header[20]);
	if (version > MAPPED_VERSION_MAX)
		return REFUSE(p, err, -EOPNOTSUPP, at,
		              "block \"%s\": version %" PRIu32
		              " of its mapped-ram header is not understood, only up to %u",
		              show_block(entry).text, version, MAPPED_VERSION_MAX);
	if (page_bytes != DIOH_PAGE_BYTES)
		return REFUSE(p, err, -EOPNOTSUPP, at + 4,
		              "block \"%s\": pages of %" PRIu64 " bytes are not understood, only of %u",
		              show_block(entry).text, page_bytes, DIOH_PAGE_BYTES);
	return check_mapped_offsets(p, entry, at, err);
}

static int add_block(struct dioh_qemu_parser *p, const struct dioh_qemu_block *entry,
                     struct dioh_error *err)
{
	struct dioh_qemu_block *blocks = p->setup.blocks;
	unsigned room = p->blocks_room;

	if (p->setup.block_count == room) {
		room = room ? 2 * room : BLOCKS_ROOM_FIRST;
		blocks = reallocarray(blocks, room, sizeof(*blocks));
		if (!blocks)
			return REFUSE(p, err, -ENOMEM, item_at(p), "no memory for its blocks");
		p->setup.blocks = blocks;
		p->blocks_room = room;
	}
	blocks[p->setup.block_count++] = *entry;
	p->blocks_bytes += entry->bytes;
	return 0;
}

/* QEMU says nowhere how many blocks there are: the last one completes the memory's size. */
static int block(struct dioh_qemu_parser *p, const uint8_t *item, struct dioh_qemu_piece *piece,
                 struct dioh_error *err)
{
	struct dioh_qemu_block entry = { .bytes = get_be64(&item[p->name_bytes]) };
	const uint8_t *field = &item[p->name_bytes + 8];
	int r;

	memcpy(entry.name, item, p->name_bytes);
	if (p->setup.capabilities & DIOH_QEMU_IGNORE_SHARED)
		entry.guest_address = get_be64(field);
	r = check_block_name(p, &entry, item, err);
	if (r == 0)
		r = check_block_bytes(p, &entry, err);
	if (r == 0 && p->form == DIOH_QEMU_IMAGE)
		r = mapped_header(p, &entry, field, err);
	if (r == 0)
		r = add_block(p, &entry, err);
	if (r < 0)
		return r;

	if (p->blocks_bytes < p->setup.total_bytes)
		expect(p, block_name_bytes, 1);
	else
		expect(p, setup_records_end, 8);
	if (p->form != DIOH_QEMU_IMAGE)
		return 0;
	p->offset = entry.pages_offset + entry.bytes;
	*piece = (struct dioh_qemu_piece){ .event = DIOH_QEMU_SEEK, .offset = p->offset };
	return 1;
}

static int setup_is_done(struct dioh_qemu_parser *p, struct dioh_qemu_piece *piece)
{
	p->setup_done = true;
	p->stage = "before the RAM section's end";
	expect(p, section, 1);
	*piece = (struct dioh_qemu_piece){ .event = DIOH_QEMU_SETUP };
	return 1;
}

static int check_section(const struct dioh_qemu_parser *p, const uint8_t *id, const char *what,
                         struct dioh_error *err)
{
	if (get_be32(id) != p->setup.ram_section)
		return REFUSE(p, err, -EBADMSG, p->offset - 4,
		              "a section's %s names section %" PRIu32 " instead of %" PRIu32 ", \"ram\"",
		              what, get_be32(id), p->setup.ram_section);
	return 0;
}

static int setup_records_end(struct dioh_qemu_parser *p, const uint8_t *item,
                             struct dioh_qemu_piece *piece, struct dioh_error *err)
{
	if (get_be64(item) == RECORD_FLUSH && p->form == DIOH_QEMU_MULTIFD && !p->setup.flushes) {
		p->setup.flushes = true;
		return expect(p, setup_records_end, 8);
	}
	if (get_be64(item) != RECORD_EOS)
		return refuse_record(p, get_be64(item), "where the RAM section's start should end", err);
	if (p->form != DIOH_QEMU_MULTIFD)
		return expect(p, setup_footer_type, 1);
	p->setup.footers = true;
	setup_is_done(p, piece);
	expect(p, setup_footer, 5);
	return 1;
}

/* Multifd: QEMU sends it when it has filled the channels, and these are read only behind the setup. */
static int setup_footer(struct dioh_qemu_parser *p, const uint8_t *item,
                        struct dioh_qemu_piece *piece, struct dioh_error *err)
{
	int r;

	(void)piece;
	if (*item != SECTION_FOOTER)
		return REFUSE(p, err, -EOPNOTSUPP, item_at(p),
		              "sections without footers are not understood in a multifd migration");
	r = check_section(p, &item[1], "footer", err);
	return r < 0 ? r : expect(p, section, 1);
}

/* Footers can be switched off in QEMU. All sections have them, or none. */
static int setup_footer_type(struct dioh_qemu_parser *p, const uint8_t *item,
                             struct dioh_qemu_piece *piece, struct dioh_error *err)
{
	p->setup.footers = *item == SECTION_FOOTER;
	if (p->setup.footers)
		return expect(p, setup_footer_id, 4);
	return behind_setup(p, item, piece, err);
}

static int setup_footer_id(struct dioh_qemu_parser *p, const uint8_t *item,
                           struct dioh_qemu_piece *piece, struct dioh_error *err)
{
	int r = check_section(p, item, "footer", err);

	if (r < 0)
		return r;
	return p->form == DIOH_QEMU_STREAM ? expect(p, behind_setup, 1) : setup_is_done(p, piece);
}

/*
 * QEMU starts all that is sent in parts before it sends the first part of anything. So this byte tells whether there is
 * something else than RAM, while nothing has been made of the setup yet. An image may end here, if it is partial.
 */
static int behind_setup(struct dioh_qemu_parser *p, const uint8_t *item,
                        struct dioh_qemu_piece *piece, struct dioh_error *err)
{
	(void)err;
	if ((*item == SECTION_START || *item == SECTION_FULL) && p->form == DIOH_QEMU_STREAM)
		return expect_foreign(p, *item);
	p->untake = true;
	return setup_is_done(p, piece);
}

/* ---- sections up to the RAM section's end -------------------------------------------------------- */

static int section(struct dioh_qemu_parser *p, const uint8_t *item, struct dioh_qemu_piece *piece,
                   struct dioh_error *err)
{
	switch (*item) {
	case SECTION_PART:
	case SECTION_END:
		pass_item(p, item, piece);
		p->last_part = *item == SECTION_END;
		expect(p, part_head, 4);
		return 1;
	case SECTION_COMMAND:
		pass_item(p, item, piece);
		expect(p, command, 4);
		return 1;
	case SECTION_START:
	case SECTION_FULL:
		return expect_foreign(p, *item);
	case SECTION_EOF:
		return REFUSE(p, err, -EBADMSG, item_at(p), "it ends before the RAM section does");
	default:
		return REFUSE(p, err, -EBADMSG, item_at(p),
		              "a section of type 0x%02x before the RAM section's end", *item);
	}
}

static int command(struct dioh_qemu_parser *p, const uint8_t *item, struct dioh_qemu_piece *piece,
                   struct dioh_error *err)
{
	uint32_t number = get_be16(item);

	if (number >= COUNT_OF(commands) || !commands[number].passes)
		return REFUSE(p, err, -EOPNOTSUPP, item_at(p),
		              "command %" PRIu32 ", %s, is not understood", number, command_name(number));
	pass_item(p, item, piece);
	p->verbatim_left = get_be16(&item[2]);
	expect(p, section, 1);
	return 1;
}

static int part_head(struct dioh_qemu_parser *p, const uint8_t *item, struct dioh_qemu_piece *piece,
                     struct dioh_error *err)
{
	int r = check_section(p, item, "part", err);

	if (r < 0)
		return r;
	pass_item(p, item, piece);
	expect(p, record, 8);
	return 1;
}

static int part_is_done(struct dioh_qemu_parser *p)
{
	if (p->last_part) {
		p->in_tail = true;
		p->stage = "in the device state";
	}
	return expect(p, section, 1);
}

static int part_footer(struct dioh_qemu_parser *p, const uint8_t *item,
                       struct dioh_qemu_piece *piece, struct dioh_error *err)
{
	int r;

	if (*item != SECTION_FOOTER)
		return REFUSE(p, err, -EBADMSG, item_at(p),
		              "a part of section \"ram\" has no footer, but the section's start had one");
	r = check_section(p, &item[1], "footer", err);
	if (r < 0)
		return r;
	pass_item(p, item, piece);
	part_is_done(p);
	return 1;
}

/* ---- records: pages, and the end of a part ------------------------------------------------------- */

static int records_end(struct dioh_qemu_parser *p, const uint8_t *item, struct dioh_qemu_piece *piece)
{
	pass_item(p, item, piece);
	p->sync_due = p->form == DIOH_QEMU_MULTIFD && !p->setup.flushes;
	if (p->setup.footers)
		expect(p, part_footer, 5);
	else
		part_is_done(p);
	return 1;
}

/* The block is known: does it have the page? */
static int record_is_complete(struct dioh_qemu_parser *p, uint64_t record_at, struct dioh_error *err)
{
	const struct dioh_qemu_block *entry = &p->setup.blocks[p->block];

	if (p->page >= entry->bytes / DIOH_PAGE_BYTES)
		return REFUSE(p, err, -EBADMSG, record_at,
		              "block \"%s\": a page at offset %" PRIu64 " of its %" PRIu64 " bytes",
		              show_block(entry).text, p->page * DIOH_PAGE_BYTES, entry->bytes);
	return p->page_is_zero ? expect(p, zero_page, 1) : expect(p, page, DIOH_PAGE_BYTES);
}

static int record(struct dioh_qemu_parser *p, const uint8_t *item, struct dioh_qemu_piece *piece,
                  struct dioh_error *err)
{
	uint64_t value = get_be64(item);
	uint32_t kind = (uint32_t)(value & PAGE_MASK & ~(uint64_t)RECORD_CONTINUE);

	if (value == RECORD_EOS)
		return records_end(p, item, piece);
	if (value == RECORD_FLUSH && p->setup.flushes) {
		*piece = (struct dioh_qemu_piece){ .event = DIOH_QEMU_SYNC };
		expect(p, record, 8);
		return 1;
	}
	if (kind != RECORD_ZERO && kind != RECORD_PAGE)
		return refuse_record(p, value, "in a part of the RAM section", err);
	if (p->form == DIOH_QEMU_IMAGE)
		return REFUSE(p, err, -EBADMSG, item_at(p),
		              "a page stands in the stream, but its pages have places of their own");
	p->page = value / DIOH_PAGE_BYTES;
	p->page_is_zero = kind == RECORD_ZERO;
	if (!(value & RECORD_CONTINUE))
		return expect(p, page_name_bytes, 1);
	if (!p->block_known)
		return REFUSE(p, err, -EBADMSG, item_at(p),
		              "a page continues a block, but none was named before it");
	return record_is_complete(p, item_at(p), err);
}

static int page_name_bytes(struct dioh_qemu_parser *p, const uint8_t *item,
                           struct dioh_qemu_piece *piece, struct dioh_error *err)
{
	(void)piece;
	return expect_name(p, item, page_name, 0, "a page's block", err);
}

static bool find_block(struct dioh_qemu_parser *p, const uint8_t *name, size_t bytes)
{
	if (p->block_known && is_name(p->setup.blocks[p->block].name, name, bytes))
		return true;
	for (unsigned i = 0; i < p->setup.block_count; i++) {
		if (is_name(p->setup.blocks[i].name, name, bytes)) {
			p->block = i;
			p->block_known = true;
			return true;
		}
	}
	return false;
}

static int page_name(struct dioh_qemu_parser *p, const uint8_t *item, struct dioh_qemu_piece *piece,
                     struct dioh_error *err)
{
	(void)piece;
	if (!find_block(p, item, p->need))
		return REFUSE(p, err, -EBADMSG, item_at(p), "a page of block \"%s\", which it does not have",
		              show(item, p->need).text);
	return record_is_complete(p, item_at(p) - 9, err);
}

static int hand_out_page(struct dioh_qemu_parser *p, const uint8_t *bytes,
                         struct dioh_qemu_piece *piece)
{
	*piece = (struct dioh_qemu_piece){ .event = DIOH_QEMU_PAGE,
		                           .block = p->block,
		                           .page = p->page,
		                           .bytes = bytes,
		                           .count = bytes ? DIOH_PAGE_BYTES : 0 };
	expect(p, record, 8);
	return 1;
}

static int page(struct dioh_qemu_parser *p, const uint8_t *item, struct dioh_qemu_piece *piece,
                struct dioh_error *err)
{
	(void)err;
	return hand_out_page(p, item, piece);
}

static int zero_page(struct dioh_qemu_parser *p, const uint8_t *item, struct dioh_qemu_piece *piece,
                     struct dioh_error *err)
{
	if (*item != 0)
		return REFUSE(p, err, -EBADMSG, item_at(p),
		              "block \"%s\": the zero page at offset %" PRIu64 " is filled with 0x%02x",
		              show_block(&p->setup.blocks[p->block]).text, p->page * DIOH_PAGE_BYTES,
		              *item);
	return hand_out_page(p, NULL, piece);
}

/* ---- the parser ---------------------------------------------------------------------------------- */

struct dioh_qemu_parser *dioh_qemu_parser_new(enum dioh_qemu_form form, uint64_t start_offset,
                                              struct dioh_error *err)
{
	struct dioh_qemu_parser *p = calloc(1, sizeof(*p));

	if (!p) {
		dioh_error_errno(err, -ENOMEM,
		                 &(const struct dioh_place){ DIOH_OP_PARSE, object(form), 0,
		                                             DIOH_OFFSET_NONE },
		                 "QEMU %s: cannot be parsed", noun(form));
		return NULL;
	}
	p->form = form;
	p->offset = start_offset;
	p->stage = "in the configuration";
	p->setup.configuration = p->configuration;
	dioh_qemu_ending_init(&p->ending);
	expect(p, magic, 8);
	return p;
}

void dioh_qemu_parser_free(struct dioh_qemu_parser *parser)
{
	if (!parser)
		return;
	free(parser->setup.blocks);
	free(parser);
}

struct input {
	const uint8_t *bytes;
	size_t count;
};

static void take(struct dioh_qemu_parser *p, struct input *input, size_t count)
{
	input->bytes += count;
	input->count -= count;
	p->offset += count;
}

/* The next item: in the input if it lies there as a whole, else in the parser. NULL: it is not complete. */
static const uint8_t *gather(struct dioh_qemu_parser *p, struct input *input)
{
	const uint8_t *item = input->bytes;
	size_t count = (size_t)dioh_min(p->need - p->have, input->count);

	if (count == 0)
		return NULL;
	take(p, input, count);
	if (count == p->need)
		return item;
	memcpy(&p->buffer[p->have], item, count);
	p->have += count;
	if (p->have < p->need)
		return NULL;
	p->have = 0;
	return p->buffer;
}

static int pass_verbatim(struct dioh_qemu_parser *p, struct input *input,
                         struct dioh_qemu_piece *piece)
{
	size_t count = input->count;

	if (p->in_tail) {
		dioh_qemu_ending_watch(&p->ending, input->bytes, count, p->offset);
	} else {
		count = (size_t)dioh_min(count, p->verbatim_left);
		p->verbatim_left -= count;
	}
	*piece = (struct dioh_qemu_piece){ .event = DIOH_QEMU_VERBATIM,
		                           .bytes = input->bytes,
		                           .count = count };
	take(p, input, count);
	return 1;
}

static int next_piece(struct dioh_qemu_parser *p, struct input *input,
                      struct dioh_qemu_piece *piece, struct dioh_error *err)
{
	int r = 0;

	if (p->sync_due) {
		p->sync_due = false;
		*piece = (struct dioh_qemu_piece){ .event = DIOH_QEMU_SYNC };
		return 0;
	}
	while (r == 0) {
		const uint8_t *item;

		if (input->count > 0 && (p->in_tail || p->verbatim_left > 0))
			return pass_verbatim(p, input, piece);
		item = gather(p, input);
		if (!item) {
			*piece = (struct dioh_qemu_piece){ .event = DIOH_QEMU_MORE };
			return 1;
		}
		r = p->handle(p, item, piece, err);
	}
	if (p->untake) { /* an item of one byte always comes from this input */
		p->untake = false;
		input->bytes--;
		input->count++;
		p->offset--;
	}
	return r;
}

static int give_error(const struct dioh_error *from, struct dioh_error *err)
{
	if (err)
		*err = *from;
	return -from->code;
}

int dioh_qemu_parse(struct dioh_qemu_parser *parser, const uint8_t **bytes, size_t *count,
                    struct dioh_qemu_piece *ret_piece, struct dioh_error *err)
{
	struct input input = { *bytes, *count };
	struct dioh_qemu_piece piece;

	if (parser->error.code != 0)
		return give_error(&parser->error, err);
	if (next_piece(parser, &input, &piece, &parser->error) < 0)
		return give_error(&parser->error, err);
	*bytes = input.bytes;
	*count = input.count;
	*ret_piece = piece;
	return 0;
}

int dioh_qemu_parser_end(const struct dioh_qemu_parser *parser, struct dioh_error *err)
{
	if (parser->error.code != 0)
		return give_error(&parser->error, err);
	if (parser->in_tail && dioh_qemu_ending_may_be(&parser->ending, parser->setup.footers, parser->offset))
		return 0;
	return REFUSE(parser, err, -EBADMSG, parser->offset, "it ends too early, %s", parser->stage);
}

const struct dioh_qemu_setup *dioh_qemu_parser_setup(const struct dioh_qemu_parser *parser)
{
	return parser->setup_done ? &parser->setup : NULL;
}

bool dioh_qemu_parser_configured(const struct dioh_qemu_parser *parser)
{
	return parser->configured;
}

bool dioh_qemu_parser_in_tail(const struct dioh_qemu_parser *parser)
{
	return parser->in_tail;
}

uint64_t dioh_qemu_parser_offset(const struct dioh_qemu_parser *parser)
{
	return parser->offset;
}
