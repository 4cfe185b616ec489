/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * layout_mapped_ram_open.c - reading a mapped-ram image, ours or QEMU's own, behind libvirt's header or none. Every byte of
 * it may come from somebody hostile: common/ checks the header, the stream and the record before anything follows them.
 *
 * Ours has a record, by which all of it is checked. QEMU's has none: what can be checked is that it is whole.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "align.h"
#include "cleanup.h"
#include "layout_mapped_ram.h"
#include "layout_record.h"
#include "libvirt_header.h"
#include "pages.h"

#define PLACE(op, offset) DIOH_PLACE(op, IMAGE, 0, offset)

#define PIECE_BYTES (64u * 1024)
#define XML_BYTES_MAX (1u << 20) /* looked at for the domain's name */
#define QEMU_MAGIC_BYTES 4u
#define LIBVIRT_VERSION_AT 16u /* fields in libvirt's header */
#define LIBVIRT_DATA_BYTES_AT 20u

static const uint8_t qemu_magic[QEMU_MAGIC_BYTES] = "QEVM";
/* Ours, before its commit: the magic is missing, the version behind it is there. */
static const uint8_t partial_start[8] = { 0, 0, 0, 0, 0, 0, 0, 3 };

bool dioh_mapped_ram_is(const uint8_t *start, size_t count)
{
	if (dioh_libvirt_header_is(start, count))
		return true;
	return count >= sizeof(partial_start) && (memcmp(start, qemu_magic, sizeof(qemu_magic)) == 0 ||
	                                          memcmp(start, partial_start, sizeof(partial_start)) == 0);
}

/* ---- the manager's header ---- */

static int read_domain(struct dioh_image_layout *layout, const struct dioh_libvirt_header *header, struct dioh_error *err)
{
	struct dioh_header_info *info = &layout->header_info;
	struct dioh_libvirt_domain domain;
	uint64_t count = dioh_min(header->data_bytes, XML_BYTES_MAX);
	DIOH_AUTO_FREE char *xml = malloc(count + 1);
	int r;

	if (!xml)
		return dioh_error_errno(err, ENOMEM, PLACE(READ, DIOH_LIBVIRT_HEADER_BYTES), "image: room for its XML");
	r = dioh_image_pread(layout->image, xml, count, dioh_layout_at(layout, DIOH_LIBVIRT_HEADER_BYTES), err);
	if (r < 0)
		return r;
	dioh_libvirt_domain_read(xml, count, &domain);
	memcpy(info->name, domain.name, sizeof(info->name));
	memcpy(info->uuid, domain.uuid, sizeof(info->uuid));
	info->memory_bytes = domain.memory_bytes;
	return 0;
}

static int read_libvirt_header(struct dioh_image_layout *layout, const uint8_t *start, uint64_t file_bytes,
                               struct dioh_error *err)
{
	struct dioh_header_info *info = &layout->header_info;
	struct dioh_libvirt_header header;
	int r = dioh_libvirt_header_read(start, file_bytes, &header, err);

	if (r < 0)
		return r;
	/* QEMU's bitmaps are of its host's longs, and nothing in QEMU's own bytes says of which. */
	if (header.swapped && header.format == DIOH_LIBVIRT_SPARSE)
		return dioh_error_set(err, EOPNOTSUPP, PLACE(PARSE, LIBVIRT_VERSION_AT),
		                      "image: a libvirt save image of format sparse, saved on a host of the other byte order: its "
		                      "bitmaps mean other pages here");
	info->kind = DIOH_HEADER_LIBVIRT;
	info->format = header.format;
	info->flags = (header.complete ? DIOH_HEADER_COMPLETE : 0) | (header.was_running ? DIOH_HEADER_WAS_RUNNING : 0);
	layout->header_bytes = DIOH_LIBVIRT_HEADER_BYTES + (uint64_t)header.data_bytes;
	if (layout->header_bytes > DIOH_HEADER_BYTES_MAX)
		return dioh_error_set(err, EFBIG, PLACE(PARSE, LIBVIRT_DATA_BYTES_AT),
		                      "image: libvirt's header has %" PRIu64 " bytes, which are more than %u", layout->header_bytes,
		                      DIOH_HEADER_BYTES_MAX);
	return read_domain(layout, &header, err);
}

static int find_header(struct dioh_image_layout *layout, uint64_t file_bytes, struct dioh_error *err)
{
	uint8_t start[DIOH_LIBVIRT_HEADER_BYTES];
	int r;

	if (file_bytes < sizeof(start))
		return dioh_error_set(err, EBADMSG, PLACE(PARSE, 0), "image: %" PRIu64 " bytes are too few for an image",
		                      file_bytes);
	r = dioh_image_pread(layout->image, start, sizeof(start), dioh_layout_at(layout, 0), err);
	if (r == 0 && dioh_libvirt_header_is(start, sizeof(start)))
		return read_libvirt_header(layout, start, file_bytes, err);
	return r;
}

/* ---- QEMU's setup ---- */

struct reader {
	struct dioh_image_layout *layout;
	uint64_t at;       /* in the file: next byte to be read */
	uint64_t file_end;
	uint8_t *bytes;    /* PIECE_BYTES */
	const uint8_t *next;
	size_t left;
	bool magic_missing;
};

static int fill(struct reader *reader, struct dioh_error *err)
{
	uint64_t count = dioh_min(reader->file_end - dioh_min(reader->at, reader->file_end), PIECE_BYTES);
	int r = dioh_layout_wanted(reader->layout, err);

	if (r == 0 && count == 0)
		return dioh_error_set(err, EBADMSG, PLACE(PARSE, reader->at),
		                      "image: it ends at %" PRIu64 ", inside QEMU's stream: it is truncated", reader->file_end);
	if (r == 0)
		r = dioh_image_pread(reader->layout->image, reader->bytes, count, reader->at, err);
	if (r == 0 && reader->magic_missing && count >= sizeof(partial_start))
		memcpy(reader->bytes, qemu_magic, sizeof(qemu_magic));
	reader->magic_missing = false;
	reader->at += count;
	reader->next = reader->bytes;
	reader->left = count;
	return r;
}

/* Parses up to an event other than MORE and SEEK. */
static int next_piece(struct reader *reader, struct dioh_qemu_parser *parser, struct dioh_qemu_piece *ret_piece,
                      struct dioh_error *err)
{
	for (;;) {
		int r = reader->left == 0 ? fill(reader, err) : 0;

		if (r == 0)
			r = dioh_qemu_parse(parser, &reader->next, &reader->left, ret_piece, err);
		if (r < 0)
			return r;
		if (ret_piece->event == DIOH_QEMU_SEEK) {
			reader->at = ret_piece->offset;
			reader->left = 0;
		} else if (ret_piece->event != DIOH_QEMU_MORE) {
			return 0;
		}
	}
}

static int look_at_magic(struct dioh_image_layout *layout, uint64_t file_bytes, bool *ret_missing,
                         struct dioh_error *err)
{
	const uint64_t at = layout->mapped_ram->stream_offset;
	uint8_t start[sizeof(partial_start)];
	int r;

	if (file_bytes < at + sizeof(start))
		return dioh_error_set(err, EBADMSG, PLACE(PARSE, file_bytes),
		                      "image: it ends at %" PRIu64 ", before QEMU's stream: it is truncated", file_bytes);
	r = dioh_image_pread(layout->image, start, sizeof(start), dioh_layout_at(layout, at), err);
	*ret_missing = r == 0 && memcmp(start, partial_start, sizeof(start)) == 0;
	return r;
}

static int read_setup(struct reader *reader, struct dioh_error *err)
{
	struct dioh_mapped_ram *mapped_ram = reader->layout->mapped_ram;
	const struct dioh_qemu_block *last;
	struct dioh_qemu_piece piece = { .event = DIOH_QEMU_MORE };
	int r;

	mapped_ram->image = dioh_qemu_parser_new(DIOH_QEMU_IMAGE, reader->at, err);
	if (!mapped_ram->image)
		return -ENOMEM;
	r = next_piece(reader, mapped_ram->image, &piece, err);
	if (r == 0)
		r = dioh_mapped_ram_take_setup(mapped_ram, dioh_qemu_parser_setup(mapped_ram->image), err);
	if (r < 0)
		return r;
	last = &mapped_ram->setup.blocks[mapped_ram->setup.block_count - 1];
	mapped_ram->plan.tail_offset = last->pages_offset + last->bytes - reader->layout->image->base_offset;
	mapped_ram->setup_end_bytes = dioh_qemu_parser_offset(mapped_ram->image) - last->pages_offset - last->bytes;
	return 0;
}

/* Of an image without a record: that the device state is there to its end. On a device nothing says where that is. */
static int read_tail(struct reader *reader, struct dioh_error *err)
{
	const bool has_end = reader->layout->image->kind == DIOH_IMAGE_REGULAR;
	const uint64_t tail_at = reader->layout->mapped_ram->plan.tail_offset + reader->layout->image->base_offset;
	struct dioh_qemu_parser *parser = reader->layout->mapped_ram->image;
	struct dioh_qemu_piece piece = { .event = DIOH_QEMU_MORE };

	if (has_end && reader->file_end > tail_at && reader->file_end - tail_at > DIOH_MAPPED_RAM_TAIL_BYTES_MAX)
		return dioh_error_set(err, EFBIG, PLACE(PARSE, tail_at),
		                      "image: %" PRIu64 " bytes of device state are more than %" PRIu64, reader->file_end - tail_at,
		                      DIOH_MAPPED_RAM_TAIL_BYTES_MAX);
	while (reader->left > 0 || (reader->at < reader->file_end && (has_end || !dioh_qemu_parser_in_tail(parser)))) {
		int r = next_piece(reader, parser, &piece, err);

		if (r < 0)
			return r;
	}
	return has_end ? dioh_qemu_parser_end(parser, err) : 0;
}

/* ---- without a record ---- */

static int adopt_bitmap(struct dioh_image_layout *layout, const struct dioh_qemu_block *block,
                        struct dioh_record_region *record, struct dioh_error *err)
{
	const uint64_t pages = block->bytes / DIOH_PAGE_BYTES;
	struct dioh_area_sum sum;
	int r;

	record->bitmap.offset = block->bitmap_offset - layout->image->base_offset;
	record->bitmap.bytes = dioh_record_bitmap_bytes(block->bytes);
	record->pages_offset = block->pages_offset - layout->image->base_offset;
	r = dioh_record_sum_area(layout, &record->bitmap, &sum, err);
	if (r < 0)
		return r;
	if (pages % 64 && !dioh_bits_tail_clear(sum.last, 8, pages % 64))
		return dioh_error_set(err, EBADMSG, PLACE(PARSE, record->bitmap.offset),
		                      "image: block \"%.100s\": its bitmap has bits behind its last page", block->name);
	record->present_pages = sum.bits;
	return 0;
}

static int open_foreign(struct reader *reader, uint32_t flags, struct dioh_error *err)
{
	struct dioh_image_layout *layout = reader->layout;
	const struct dioh_mapped_ram *mapped_ram = layout->mapped_ram;
	struct dioh_stream_entry *entry = &layout->streams[0];
	struct dioh_record_extent *tail;
	int r = 0;

	for (unsigned i = 0; i < layout->region_count && r == 0; i++) {
		layout->regions[i].record.flags &= ~(uint32_t)DIOH_REGION_CHECKSUMS;
		r = adopt_bitmap(layout, &mapped_ram->setup.blocks[i], &layout->regions[i].record, err);
	}
	if (r == 0 && !(flags & DIOH_OPEN_INSPECT))
		r = read_tail(reader, err);
	if (r < 0)
		return r;
	tail = dioh_layout_grow_extents(layout, entry, err);
	if (!tail)
		return -EFBIG;
	tail->offset = mapped_ram->plan.tail_offset;
	tail->bytes = reader->file_end - layout->image->base_offset - tail->offset;
	strcpy(entry->record.name, "device state");
	layout->image_bytes = tail->offset + tail->bytes;
	layout->state = DIOH_STATE_UNKNOWN;
	if (layout->header_info.kind == DIOH_HEADER_LIBVIRT)
		layout->state = layout->header_info.flags & DIOH_HEADER_COMPLETE ? DIOH_STATE_COMPLETE : DIOH_STATE_PARTIAL;
	return 0;
}

/* ---- with one ---- */

/* What the manager's table chose is kept while the record's own takes its place. */
static int choose_again(struct dioh_image_layout *layout, const struct dioh_record_region *chosen, unsigned count,
                        bool renumber, struct dioh_error *err)
{
	for (unsigned i = 0; i < count; i++) {
		struct dioh_record_region *record = &layout->regions[i].record;

		if (record->flags & DIOH_REGION_GUEST_ADDRESS && chosen[i].flags & DIOH_REGION_GUEST_ADDRESS &&
		    record->guest_address != chosen[i].guest_address)
			return dioh_error_set(err, EINVAL, DIOH_PLACE(PARSE, REGION, chosen[i].number, DIOH_OFFSET_NONE),
			                      "region %" PRIu32 " \"%.64s\": it is to stand at guest address %" PRIu64
			                      ", and was saved from %" PRIu64, chosen[i].number, record->name,
			                      chosen[i].guest_address, record->guest_address);
		if (chosen[i].flags & DIOH_REGION_GUEST_ADDRESS)
			record->guest_address = chosen[i].guest_address;
		record->flags |= chosen[i].flags & DIOH_REGION_GUEST_ADDRESS;
		record->flags = (record->flags & ~(uint32_t)DIOH_REGION_IN_STREAM) | (chosen[i].flags & DIOH_REGION_IN_STREAM);
		if (renumber)
			record->number = chosen[i].number;
	}
	return 0;
}

static int check_record(struct dioh_image_layout *layout, struct dioh_error *err)
{
	struct dioh_mapped_ram *mapped_ram = layout->mapped_ram;
	DIOH_AUTO_FREE struct dioh_record_region *regions = calloc(layout->region_count, sizeof(*regions));

	if (!regions)
		return dioh_error_errno(err, ENOMEM, PLACE(NONE, DIOH_OFFSET_NONE), "image: room for its tables");
	for (unsigned i = 0; i < layout->region_count; i++)
		regions[i] = layout->regions[i].record;
	mapped_ram->tail_first = mapped_ram->setup.block_count;
	return dioh_mapped_ram_check(&mapped_ram->setup, layout->image->base_offset, mapped_ram->stream_offset,
	                             &layout->head, regions, &layout->streams[0].record, layout->streams[0].extents, err);
}

/* Not only what stands behind the setup goes to QEMU: of the setup itself all bytes are vouched for, too. */
static int check_setup_extent(struct dioh_image_layout *layout, unsigned index, uint8_t *chunk, uint32_t *checksums,
                              struct dioh_error *err)
{
	const struct dioh_stream_entry *entry = &layout->streams[0];
	const struct dioh_record_extent *extent = &entry->extents[index];
	int r = dioh_record_load_extent(layout, entry, index, checksums, err);

	for (uint64_t done = 0; r == 0 && done < extent->bytes; done += DIOH_CHUNK_BYTES) {
		const uint64_t bytes = dioh_min(extent->bytes - done, DIOH_CHUNK_BYTES);
		const uint64_t at = extent->offset + done;

		r = dioh_image_pread(layout->image, chunk, bytes, dioh_layout_at(layout, at), err);
		if (r == 0 && dioh_crc32c(0, chunk, bytes) != checksums[done / DIOH_CHUNK_BYTES])
			r = dioh_error_set(err, EBADMSG, PLACE(CHECKSUM, at),
			                   "image: QEMU's setup is damaged: its bytes at %" PRIu64 " do not match their checksum", at);
	}
	return r;
}

static int check_setup(struct dioh_image_layout *layout, struct dioh_error *err)
{
	DIOH_AUTO_FREE uint8_t *chunk = malloc(DIOH_CHUNK_BYTES);
	DIOH_AUTO_FREE uint32_t *checksums = malloc(DIOH_PAGE_BYTES);
	int r = 0;

	if (!(layout->streams[0].record.flags & DIOH_REGION_CHECKSUMS))
		return 0;
	if (!chunk || !checksums)
		return dioh_error_errno(err, ENOMEM, PLACE(NONE, DIOH_OFFSET_NONE), "image: room for its setup");
	for (unsigned i = 0; i < layout->mapped_ram->setup.block_count && r == 0; i++)
		r = check_setup_extent(layout, i, chunk, checksums, err);
	return r;
}

/* A partial image's record is compared no further: its extents are not known, and its tables may not be there yet. */
static int check_count(const struct dioh_image_layout *layout, unsigned count, struct dioh_error *err)
{
	if (layout->region_count == count || (layout->region_count == 0 && layout->state == DIOH_STATE_PARTIAL))
		return 0;
	return dioh_error_set(err, EBADMSG, PLACE(PARSE, layout->record_offset),
	                      "image: the record is another image's: it has %u regions, QEMU's bytes have %u blocks",
	                      layout->region_count, count);
}

static int open_ours(struct dioh_image_layout *layout, uint32_t flags, bool chosen, bool magic_missing,
                     struct dioh_error *err)
{
	const uint64_t header_bytes = layout->header_bytes;
	const unsigned count = layout->region_count;
	DIOH_AUTO_FREE struct dioh_record_region *choice = calloc(count, sizeof(*choice));
	int r;

	if (!choice)
		return dioh_error_errno(err, ENOMEM, PLACE(NONE, DIOH_OFFSET_NONE), "image: room for its tables");
	for (unsigned i = 0; i < count; i++)
		choice[i] = layout->regions[i].record;
	r = dioh_record_open(layout, flags, err);
	if (r == 0)
		r = check_count(layout, count, err);
	if (r == 0 && layout->state != DIOH_STATE_PARTIAL)
		r = check_record(layout, err);
	if (r == 0 && layout->state != DIOH_STATE_PARTIAL && !magic_missing)
		r = check_setup(layout, err);
	layout->header_offset = 0;
	layout->header_bytes = header_bytes;
	if (r == 0 && chosen)
		r = choose_again(layout, choice, layout->region_count, !(flags & DIOH_OPEN_ALL_IN_STREAM), err);
	return r;
}

/* QEMU leaves the gap empty: what stands there and is no record is one that was damaged. */
static int has_record(struct dioh_image_layout *layout, bool *ret_has, struct dioh_error *err)
{
	const struct dioh_mapped_ram *mapped_ram = layout->mapped_ram;
	const uint64_t pages_offset = mapped_ram->setup.blocks[0].pages_offset - layout->image->base_offset;
	int r;

	*ret_has = false;
	layout->record_offset = dioh_mapped_ram_record_offset(&mapped_ram->setup, layout->image->base_offset);
	if (layout->record_offset + sizeof(layout->head) > pages_offset) /* no gap: this is the guest's */
		return 0;
	r = dioh_image_pread(layout->image, &layout->head, sizeof(layout->head),
	                     dioh_layout_at(layout, layout->record_offset), err);
	*ret_has = r == 0 && !dioh_is_zero(&layout->head, sizeof(layout->head));
	return r;
}

static int check_magic(struct dioh_image_layout *layout, struct dioh_error *err)
{
	const uint64_t at = layout->mapped_ram->stream_offset;
	uint8_t magic[QEMU_MAGIC_BYTES];
	int r;

	if (layout->state == DIOH_STATE_PARTIAL)
		return 0;
	r = dioh_image_pread(layout->image, magic, sizeof(magic), dioh_layout_at(layout, at), err);
	if (r == 0 && memcmp(magic, qemu_magic, sizeof(magic)) != 0)
		r = dioh_error_set(err, EBADMSG, PLACE(PARSE, at),
		                   "image: QEMU's magic has gone: something else was saved into it meanwhile");
	return r;
}

int dioh_mapped_ram_load_tables(struct dioh_image_layout *layout, struct dioh_tables *tables, struct dioh_error *err)
{
	int r = dioh_record_load_tables(layout, tables, err);

	return r < 0 ? r : check_magic(layout, err);
}

int dioh_mapped_ram_check_unchanged(struct dioh_image_layout *layout, struct dioh_error *err)
{
	int r = dioh_record_check_unchanged(layout, err);

	return r < 0 ? r : check_magic(layout, err);
}

/* ---- what a load will give ---- */

static int check_addresses(const struct dioh_image_layout *layout, struct dioh_error *err)
{
	for (unsigned i = 0; i < layout->region_count; i++) {
		const struct dioh_record_region *record = &layout->regions[i].record;

		if (!(record->flags & (DIOH_REGION_IN_STREAM | DIOH_REGION_GUEST_ADDRESS)))
			return dioh_error_set(err, EINVAL, DIOH_PLACE(PARSE, REGION, record->number, DIOH_OFFSET_NONE),
			                      "region %" PRIu32 " \"%.64s\": the image does not say at which guest address it "
			                      "stands, and QEMU will ask: give it in the table", record->number, record->name);
	}
	return 0;
}

static bool libvirt_says_partial(const struct dioh_image_layout *layout)
{
	return layout->header_info.kind == DIOH_HEADER_LIBVIRT && !(layout->header_info.flags & DIOH_HEADER_COMPLETE);
}

static int check_opened_state(const struct dioh_image_layout *layout, uint32_t flags, struct dioh_error *err)
{
	if (flags & DIOH_OPEN_INSPECT || layout->state != DIOH_STATE_PARTIAL)
		return 0;
	return dioh_error_set(err, ENODATA, PLACE(PARSE, 0),
	                      "image: it is partial: a save into it did not finish, so it holds no machine");
}

/* ---- open ---- */

/* libvirt's other formats, and a migration stream behind no header: only to be looked at. */
static int open_stream_only(struct dioh_image_layout *layout, uint32_t flags, uint64_t file_bytes,
                            struct dioh_error *err)
{
	static const char *const formats[] = { "raw", "gzip", "bzip2", "xz", "lzop", "zstd" };
	struct dioh_stream_entry *entry;
	int r;

	if (!(flags & DIOH_OPEN_INSPECT))
		return dioh_error_set(err, EOPNOTSUPP, PLACE(PARSE, 28),
		                      "image: a libvirt save image of format %s: only format sparse is mapped-ram",
		                      formats[layout->header_info.format]);
	r = dioh_layout_allocate(layout, 0, 1, err);
	if (r < 0)
		return r;
	layout->streams_put = 1;
	entry = &layout->streams[0];
	strcpy(entry->record.name, "migration stream");
	entry->image_offset = layout->header_bytes;
	entry->record.bytes = file_bytes - layout->header_bytes;
	layout->ops = &dioh_layout_raw;
	layout->image_bytes = file_bytes;
	layout->state = DIOH_STATE_UNKNOWN;
	if (layout->header_info.kind == DIOH_HEADER_LIBVIRT)
		layout->state = layout->header_info.flags & DIOH_HEADER_COMPLETE ? DIOH_STATE_COMPLETE : DIOH_STATE_PARTIAL;
	layout->inspect_only = true;
	layout->ready = true;
	return 0;
}

/* Is it no image, but the stream of a migration? */
static bool is_plain_stream(struct reader *reader)
{
	struct dioh_qemu_parser *parser = dioh_qemu_parser_new(DIOH_QEMU_STREAM, 0, NULL);
	struct dioh_qemu_piece piece = { .event = DIOH_QEMU_MORE };
	bool plain = false;
	int r;

	if (!parser)
		return false;
	reader->at = dioh_layout_at(reader->layout, reader->layout->mapped_ram->stream_offset);
	reader->left = 0;
	r = next_piece(reader, parser, &piece, NULL);
	/* One that has more in it than RAM is a stream none the less. */
	if (r == 0 ? piece.event == DIOH_QEMU_SETUP : r == -EOPNOTSUPP)
		plain = dioh_qemu_parser_configured(parser);
	dioh_qemu_parser_free(parser);
	return plain;
}

static int open_setup(struct reader *reader, uint32_t flags, struct dioh_error *err)
{
	struct dioh_image_layout *layout = reader->layout;
	const bool magic_missing = reader->magic_missing;
	const bool chosen = layout->regions_put > 0 || flags & DIOH_OPEN_ALL_IN_STREAM;
	bool record = false;
	int r = read_setup(reader, err);

	if (r == 0)
		r = dioh_mapped_ram_adopt_table(layout, err);
	if (r == 0)
		r = has_record(layout, &record, err);
	if (r == 0)
		r = record ? open_ours(layout, flags, chosen, magic_missing, err) : open_foreign(reader, flags, err);
	if (r == 0 && (magic_missing || libvirt_says_partial(layout)))
		layout->state = DIOH_STATE_PARTIAL;
	if (r == 0)
		r = check_opened_state(layout, flags, err);
	if (r == 0)
		r = check_addresses(layout, err);
	return r;
}

static int allocate_stream(struct dioh_image_layout *layout, struct dioh_error *err)
{
	free(layout->streams);
	layout->streams = calloc(2, sizeof(*layout->streams));
	layout->stream_count = layout->streams_put = layout->streams ? 1 : 0;
	return layout->streams ? 0 : dioh_error_errno(err, ENOMEM, PLACE(NONE, DIOH_OFFSET_NONE), "image: room for its tables");
}

/* A save of libvirt's that was broken off may have left no more than its header. */
static int open_header_only(struct dioh_image_layout *layout, uint64_t file_bytes, struct dioh_error *err)
{
	int r = dioh_layout_allocate(layout, 0, 0, err);

	layout->state = DIOH_STATE_PARTIAL;
	layout->image_bytes = file_bytes;
	layout->inspect_only = true;
	layout->ready = true;
	return r;
}

int dioh_mapped_ram_open(struct dioh_image_layout *layout, uint32_t flags, struct dioh_error *err)
{
	DIOH_AUTO_FREE uint8_t *bytes = malloc(PIECE_BYTES);
	struct dioh_mapped_ram *mapped_ram = calloc(1, sizeof(*mapped_ram));
	struct reader reader = { .layout = layout, .bytes = bytes };
	uint64_t file_bytes;
	int r;

	layout->mapped_ram = mapped_ram;
	if (!bytes || !mapped_ram)
		return dioh_error_errno(err, ENOMEM, PLACE(NONE, DIOH_OFFSET_NONE), "image: room for its layout");
	r = dioh_layout_file_bytes(layout, &file_bytes, err);
	if (r == 0 && layout->header_bytes == 0)
		r = find_header(layout, file_bytes, err);
	if (r < 0)
		return r;
	if (layout->header_info.kind == DIOH_HEADER_LIBVIRT && layout->header_info.format != DIOH_LIBVIRT_SPARSE)
		return open_stream_only(layout, flags, file_bytes, err);
	mapped_ram->stream_offset = layout->header_bytes;
	reader.at = dioh_layout_at(layout, mapped_ram->stream_offset);
	reader.file_end = dioh_layout_at(layout, file_bytes);
	r = look_at_magic(layout, file_bytes, &reader.magic_missing, err);
	if (r == 0 && (reader.magic_missing || libvirt_says_partial(layout)))
		layout->state = DIOH_STATE_PARTIAL;
	if (r == 0) /* before what is missing behind it is called damage */
		r = check_opened_state(layout, flags, err);
	if (r == 0)
		r = allocate_stream(layout, err);
	if (r == 0)
		r = open_setup(&reader, flags, err);
	if (r < 0 && flags & DIOH_OPEN_INSPECT && layout->header_info.kind == DIOH_HEADER_OPAQUE && is_plain_stream(&reader))
		return open_stream_only(layout, flags, file_bytes, err);
	if (r == -EBADMSG && flags & DIOH_OPEN_INSPECT && libvirt_says_partial(layout))
		return open_header_only(layout, file_bytes, err);
	if (r < 0)
		return r;
	if (layout->state != DIOH_STATE_PARTIAL)
		layout->streams[0].load_bytes = dioh_mapped_ram_load_bytes(layout);
	layout->inspect_only = flags & DIOH_OPEN_INSPECT;
	layout->ready = true;
	return 0;
}
