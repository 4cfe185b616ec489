/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qemu_sections.c - the sections behind the RAM section's start, up to its end: pages, commands, and those that are refused
 * by their name.
 *
 * Of the parser: see qemu_parser.h.
 */
#include "qemu_parser.h"

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

static const struct {
	uint32_t flag;
	const char *name;
} foreign_flags[] = {
	{ 0x001, "FULL" },          { RECORD_MEM_SIZE, "MEM_SIZE" }, { 0x040, "XBZRLE" }, { 0x080, "HOOK" },
	{ 0x100, "COMPRESS_PAGE" }, { RECORD_FLUSH, "MULTIFD_FLUSH" },
};

static handler part_head, record, page_name_bytes, page_name, page, zero_page, part_footer;
static handler command, foreign_head, foreign_name;

/* ---- sections that are refused by their name --------------------------------------------------------------------- */

int dioh_qemu_expect_foreign(struct dioh_qemu_parser *p, uint8_t type)
{
	p->foreign = type;
	return expect(p, foreign_head, 5);
}

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

/* ---- sections up to the RAM section's end -------------------------------------------------------- */

int dioh_qemu_check_section(const struct dioh_qemu_parser *p, const uint8_t *id, const char *what,
                            struct dioh_error *err)
{
	if (get_be32(id) != p->setup.ram_section)
		return REFUSE(p, err, -EBADMSG, p->offset - 4,
		              "a section's %s names section %" PRIu32 " instead of %" PRIu32 ", \"ram\"",
		              what, get_be32(id), p->setup.ram_section);
	return 0;
}

int dioh_qemu_section(struct dioh_qemu_parser *p, const uint8_t *item, struct dioh_qemu_piece *piece,
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
		return dioh_qemu_expect_foreign(p, *item);
	case SECTION_EOF:
		return REFUSE(p, err, -EBADMSG, item_at(p), "it ends before the RAM section does");
	default:
		return REFUSE(p, err, -EBADMSG, item_at(p),
		              "a section of type 0x%02x before the RAM section's end", *item);
	}
}

const char *dioh_qemu_command_name(uint32_t number)
{
	return number < COUNT_OF(commands) ? commands[number].name : "unknown";
}

static int command(struct dioh_qemu_parser *p, const uint8_t *item, struct dioh_qemu_piece *piece,
                   struct dioh_error *err)
{
	uint32_t number = get_be16(item);

	if (number >= COUNT_OF(commands) || !commands[number].passes)
		return REFUSE(p, err, -EOPNOTSUPP, item_at(p),
		              "command %" PRIu32 ", %s, is not understood", number, dioh_qemu_command_name(number));
	pass_item(p, item, piece);
	p->verbatim_left = get_be16(&item[2]);
	expect(p, dioh_qemu_section, 1);
	return 1;
}

static int part_head(struct dioh_qemu_parser *p, const uint8_t *item, struct dioh_qemu_piece *piece,
                     struct dioh_error *err)
{
	int r = dioh_qemu_check_section(p, item, "part", err);

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
	return expect(p, dioh_qemu_section, 1);
}

static int part_footer(struct dioh_qemu_parser *p, const uint8_t *item,
                       struct dioh_qemu_piece *piece, struct dioh_error *err)
{
	int r;

	if (*item != SECTION_FOOTER)
		return REFUSE(p, err, -EBADMSG, item_at(p),
		              "a part of section \"ram\" has no footer, but the section's start had one");
	r = dioh_qemu_check_section(p, &item[1], "footer", err);
	if (r < 0)
		return r;
	pass_item(p, item, piece);
	part_is_done(p);
	return 1;
}

/* ---- records: pages, and the end of a part ------------------------------------------------------- */

int dioh_qemu_refuse_record(const struct dioh_qemu_parser *p, uint64_t value, const char *where,
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

bool dioh_qemu_is_idle_flush(const struct dioh_qemu_parser *p, uint64_t value)
{
	return value == RECORD_FLUSH && p->form == DIOH_QEMU_STREAM;
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
	if (dioh_qemu_is_idle_flush(p, value))
		return expect(p, record, 8);
	if (kind != RECORD_ZERO && kind != RECORD_PAGE)
		return dioh_qemu_refuse_record(p, value, "in a part of the RAM section", err);
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
