/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qemu_ram_setup.c - the start of a migration stream's RAM section: the blocks, and in an image where their pages stand.
 *
 * Of the parser: see qemu_parser.h.
 */
#include "qemu_parser.h"

#include <stdlib.h>

#include "align.h"

#define RAM_VERSION 4u
#define MAPPED_HEADER_BYTES 28u
#define BLOCKS_ROOM_FIRST 16u

static handler start, memory_size, block_name_bytes, block, setup_records_end;
static handler setup_footer_type, setup_footer_id, setup_footer, behind_setup;

int dioh_qemu_start_head(struct dioh_qemu_parser *p, const uint8_t *item,
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

static int memory_size(struct dioh_qemu_parser *p, const uint8_t *item,
                       struct dioh_qemu_piece *piece, struct dioh_error *err)
{
	uint64_t value = get_be64(item);

	(void)piece;
	if ((value & PAGE_MASK) != RECORD_MEM_SIZE)
		return dioh_qemu_refuse_record(p, value, "where the memory's size should stand", err);
	p->setup.total_bytes = value & ~PAGE_MASK;
	if (p->setup.total_bytes == 0)
		return REFUSE(p, err, -EBADMSG, item_at(p), "it has 0 bytes of memory");
	if (p->setup.total_bytes > DIOH_MEMORY_BYTES_MAX)
		return REFUSE(p, err, -EFBIG, item_at(p),
		              "it has %" PRIu64 " bytes of memory, which are more than %" PRIu64,
		              p->setup.total_bytes, DIOH_MEMORY_BYTES_MAX);
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
	expect(p, dioh_qemu_section, 1);
	*piece = (struct dioh_qemu_piece){ .event = DIOH_QEMU_SETUP };
	return 1;
}

static int setup_records_end(struct dioh_qemu_parser *p, const uint8_t *item,
                             struct dioh_qemu_piece *piece, struct dioh_error *err)
{
	if (get_be64(item) == RECORD_FLUSH && p->form == DIOH_QEMU_MULTIFD && !p->setup.flushes) {
		p->setup.flushes = true;
		return expect(p, setup_records_end, 8);
	}
	if (dioh_qemu_is_idle_flush(p, get_be64(item)))
		return expect(p, setup_records_end, 8);
	if (get_be64(item) != RECORD_EOS)
		return dioh_qemu_refuse_record(p, get_be64(item), "where the RAM section's start should end", err);
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
	r = dioh_qemu_check_section(p, &item[1], "footer", err);
	return r < 0 ? r : expect(p, dioh_qemu_section, 1);
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
	int r = dioh_qemu_check_section(p, item, "footer", err);

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
		return dioh_qemu_expect_foreign(p, *item);
	p->untake = true;
	return setup_is_done(p, piece);
}
