/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * payload_qemu_load.c - mapped-ram image to stream: what a QEMU still needs that has its memory already. The setup is
 * encoded anew, then come the pages of the regions that are in the stream, zero pages included (ROMs are not empty in a
 * fresh QEMU), then the device state as it stands in the image. Everything is small: it goes by the header path.
 *
 *      setup | end of setup | part: pages of the regions in the stream | tail behind the setup's end
 *
 * With no region in a memory of its own this is a plain migration stream.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "align.h"
#include "errand.h"
#include "layout_mapped_ram.h"
#include "pages.h"
#include "payload.h"
#include "stream_port.h"

#define CHUNK_PAGES (DIOH_CHUNK_BYTES / DIOH_PAGE_BYTES)
/* Holds the longest thing made at once: a chunk's pages with their headers, or the setup of few blocks. */
#define OUT_BYTES (DIOH_CHUNK_BYTES + CHUNK_PAGES * 16 + DIOH_QEMU_CONFIGURATION_BYTES_MAX + DIOH_REGIONS_MAX * 512)

enum stage { STAGE_SETUP, STAGE_PART, STAGE_PAGES, STAGE_PART_END, STAGE_TAIL, STAGE_LAST_LOOK, STAGE_CLOSE, STAGE_END };

struct qemu_load {
	struct dioh_transfer base;
	struct dioh_stream_params params;
	struct dioh_stream_port port;
	struct dioh_errand errand;
	enum stage stage;
	uint8_t *out; /* OUT_BYTES: [written, filled) is to be written */
	size_t written;
	size_t filled;
	/* Pages: the chunk at hand. */
	unsigned region;
	uint64_t chunk;
	bool chunk_read;
	uint8_t *pages; /* DIOH_CHUNK_BYTES */
	uint8_t bitmap[DIOH_CHUNK_BITMAP_BYTES];
	/* Tail. */
	unsigned extent;
	uint64_t extent_used;
	uint64_t tail_skip;   /* bytes of it that are not for the stream: the setup's end */
	uint32_t *checksums;  /* of the extent: one 4 KiB page */
};

static struct dioh_mapped_ram *qemus(const struct qemu_load *t)
{
	return t->params.layout->mapped_ram;
}

/* ---- how long it will be ---- */

static uint32_t capabilities(const struct dioh_image_layout *layout)
{
	for (unsigned i = 0; i < layout->region_count; i++)
		if (!(layout->regions[i].record.flags & DIOH_REGION_IN_STREAM))
			return DIOH_QEMU_IGNORE_SHARED;
	return 0;
}

static bool any_in_stream(const struct dioh_image_layout *layout)
{
	for (unsigned i = 0; i < layout->region_count; i++)
		if (layout->regions[i].record.flags & DIOH_REGION_IN_STREAM)
			return true;
	return false;
}

/* The blocks as the stream has them: with the guest addresses that were given or saved. */
static size_t put_setup(const struct dioh_image_layout *layout, uint8_t *out)
{
	const struct dioh_qemu_setup *setup = &layout->mapped_ram->setup;
	const uint32_t with = capabilities(layout);
	size_t n = dioh_qemu_put_configuration(out, setup, with);

	n += dioh_qemu_put_ram_start(out + n, setup);
	for (unsigned i = 0; i < setup->block_count; i++) {
		struct dioh_qemu_block block = setup->blocks[i];

		block.guest_address = layout->regions[i].record.guest_address;
		n += dioh_qemu_put_block(out + n, &block, with);
	}
	return n + dioh_qemu_put_section_end(out + n, setup);
}

static uint64_t pages_bytes(const struct dioh_record_region *record)
{
	uint8_t header[DIOH_QEMU_PAGE_HEADER_BYTES_MAX];
	const uint64_t absent = record->bytes / DIOH_PAGE_BYTES - record->present_pages;
	const uint64_t name = dioh_qemu_put_page(header, record->name, 0, false) - dioh_qemu_put_page(header, NULL, 0, false);

	return name + record->present_pages * (dioh_qemu_put_page(header, NULL, 0, false) + DIOH_PAGE_BYTES) +
	       absent * dioh_qemu_put_page(header, NULL, 0, true);
}

uint64_t dioh_mapped_ram_load_bytes(const struct dioh_image_layout *layout)
{
	const struct dioh_mapped_ram *mapped_ram = layout->mapped_ram;
	const struct dioh_stream_entry *entry = &layout->streams[0];
	uint8_t *scratch = malloc(OUT_BYTES);
	uint64_t bytes;

	if (!scratch)
		return 0; /* not known */
	bytes = put_setup(layout, scratch);
	if (any_in_stream(layout))
		bytes += dioh_qemu_put_part_start(scratch, &mapped_ram->setup) +
		         dioh_qemu_put_section_end(scratch, &mapped_ram->setup);
	free(scratch);
	for (unsigned i = 0; i < layout->region_count; i++)
		if (layout->regions[i].record.flags & DIOH_REGION_IN_STREAM)
			bytes += pages_bytes(&layout->regions[i].record);
	for (unsigned i = mapped_ram->tail_first; i < entry->record.extent_count; i++)
		bytes += entry->extents[i].bytes;
	return bytes - mapped_ram->setup_end_bytes;
}

/* ---- pages ---- */

static unsigned chunk_pages(const struct dioh_record_region *record, uint64_t chunk)
{
	return (unsigned)dioh_min(CHUNK_PAGES, record->bytes / DIOH_PAGE_BYTES - chunk * CHUNK_PAGES);
}

static int read_pages(struct qemu_load *t, const struct dioh_record_region *record, unsigned pages)
{
	struct dioh_image_layout *layout = t->params.layout;
	const uint64_t at = dioh_layout_at(layout, record->pages_offset + t->chunk * DIOH_CHUNK_BYTES);
	unsigned page = 0;
	int r = 0;

	while (page < pages && r == 0) {
		unsigned count = dioh_pages_same(t->bitmap, page, pages);

		if (dioh_bit_test(t->bitmap, page))
			r = dioh_image_pread(layout->image, t->pages + page * DIOH_PAGE_BYTES, (uint64_t)count * DIOH_PAGE_BYTES,
			                     at + page * DIOH_PAGE_BYTES, &t->errand.error);
		page += count;
	}
	return r;
}

static int check_chunk(struct qemu_load *t, const struct dioh_record_region *record, unsigned pages, uint32_t wanted)
{
	const uint32_t sum = dioh_pages_crc32c(t->pages, t->bitmap, pages);

	if (sum == wanted)
		return 0;
	return dioh_error_set(&t->errand.error, EBADMSG,
	                      DIOH_PLACE(CHECKSUM, REGION, record->number, t->chunk * DIOH_CHUNK_BYTES),
	                      "region %" PRIu32 " \"%.64s\": its pages from %" PRIu64 " on are damaged: their checksum is %08"
	                      PRIx32 ", not %08" PRIx32, record->number, record->name, t->chunk * DIOH_CHUNK_BYTES, sum, wanted);
}

static void read_chunk(struct dioh_job *job) /* control-I/O thread */
{
	struct qemu_load *t = dioh_container_of(job, struct qemu_load, errand.job);
	struct dioh_image_layout *layout = t->params.layout;
	struct dioh_region *region = &layout->regions[t->region];
	const unsigned pages = chunk_pages(&region->record, t->chunk);
	uint32_t checksum;
	struct dioh_tables tables = { .region = region, .first_chunk = t->chunk, .chunks = 1, .bitmap = t->bitmap,
		                      .checksums = &checksum };
	int r = layout->ops->load_tables(layout, &tables, &t->errand.error);

	if (r == 0)
		r = read_pages(t, &region->record, pages);
	if (r == 0 && tables.checksums && !(t->params.flags & DIOH_TRANSFER_NO_CHECKSUM))
		r = check_chunk(t, &region->record, pages, checksum);
	t->errand.result = r;
	t->chunk_read = true;
	dioh_errand_answer(&t->errand);
}

static void put_chunk(struct qemu_load *t)
{
	const struct dioh_record_region *record = &t->params.layout->regions[t->region].record;
	const unsigned pages = chunk_pages(record, t->chunk);

	for (unsigned i = 0; i < pages; i++) {
		const bool present = dioh_bit_test(t->bitmap, i);
		const char *name = t->chunk == 0 && i == 0 ? record->name : NULL;

		t->filled += dioh_qemu_put_page(t->out + t->filled, name, t->chunk * CHUNK_PAGES + i, !present);
		if (!present)
			continue;
		memcpy(t->out + t->filled, t->pages + i * DIOH_PAGE_BYTES, DIOH_PAGE_BYTES);
		t->filled += DIOH_PAGE_BYTES;
	}
	t->chunk_read = false;
	t->chunk++;
}

static void pages_step(struct qemu_load *t)
{
	const struct dioh_image_layout *layout = t->params.layout;

	if (t->chunk_read) {
		put_chunk(t);
		return;
	}
	while (t->region < layout->region_count) {
		const struct dioh_record_region *record = &layout->regions[t->region].record;

		if (record->flags & DIOH_REGION_IN_STREAM && t->chunk * DIOH_CHUNK_BYTES < record->bytes) {
			dioh_errand_ask(&t->errand, read_chunk);
			return;
		}
		t->region++;
		t->chunk = 0;
	}
	t->stage = STAGE_PART_END;
}

/* ---- tail ---- */

static int check_tail(struct qemu_load *t, uint64_t bytes, uint32_t wanted)
{
	const struct dioh_record_stream *record = &t->params.entry->record;
	const uint64_t at = t->params.entry->extents[t->extent].offset + t->extent_used;
	const uint32_t sum = dioh_crc32c(0, t->out, bytes);

	if (!(record->flags & DIOH_REGION_CHECKSUMS) || t->params.flags & DIOH_TRANSFER_NO_CHECKSUM || sum == wanted)
		return 0;
	return dioh_error_set(&t->errand.error, EBADMSG, DIOH_PLACE(CHECKSUM, IMAGE, 0, at),
	                      "stream %" PRIu32 " \"%.64s\": its bytes at %" PRIu64
	                      " of the image are damaged: their checksum is %08" PRIx32 ", not %08" PRIx32, record->number,
	                      record->name, at, sum, wanted);
}

static void read_tail(struct dioh_job *job) /* control-I/O thread */
{
	struct qemu_load *t = dioh_container_of(job, struct qemu_load, errand.job);
	struct dioh_image_layout *layout = t->params.layout;
	const struct dioh_record_extent *extent = &t->params.entry->extents[t->extent];
	const uint64_t bytes = dioh_min(extent->bytes - t->extent_used, DIOH_CHUNK_BYTES);
	int r = 0;

	if (t->extent_used == 0)
		r = layout->ops->load_extent(layout, t->params.entry, t->extent, t->checksums, &t->errand.error);
	if (r == 0)
		r = dioh_image_pread(layout->image, t->out, bytes, dioh_layout_at(layout, extent->offset + t->extent_used),
		                     &t->errand.error);
	if (r == 0)
		r = check_tail(t, bytes, t->checksums[t->extent_used / DIOH_CHUNK_BYTES % (DIOH_PAGE_BYTES / sizeof(uint32_t))]);
	t->errand.result = r;
	t->extent_used += bytes;
	t->filled = bytes;
	t->written = dioh_min(t->tail_skip, bytes);
	t->tail_skip -= t->written;
	dioh_errand_answer(&t->errand);
}

static void tail_step(struct qemu_load *t)
{
	const struct dioh_stream_entry *entry = t->params.entry;

	if (t->extent < entry->record.extent_count && t->extent_used == entry->extents[t->extent].bytes) {
		t->extent++;
		t->extent_used = 0;
	}
	if (t->extent < entry->record.extent_count)
		dioh_errand_ask(&t->errand, read_tail);
	else
		t->stage = STAGE_LAST_LOOK;
}

/* ---- the transfer ---- */

static void write_done(struct dioh_io *io)
{
	struct qemu_load *t = io->owner;

	if (!dioh_port_moved(&t->port, io))
		return;
	t->written += (size_t)io->result;
	t->base.figures.total_bytes += (uint64_t)io->result;
	t->base.figures.data_bytes = t->base.figures.total_bytes;
	atomic_store_explicit(&t->base.done_bytes, t->base.figures.total_bytes, memory_order_relaxed);
}

/* Makes what comes next; or asks for it. */
static void produce(struct qemu_load *t)
{
	const struct dioh_image_layout *layout = t->params.layout;

	t->written = t->filled = 0;
	switch (t->stage) {
	case STAGE_SETUP:
		t->filled = put_setup(layout, t->out);
		t->stage = any_in_stream(layout) ? STAGE_PART : STAGE_TAIL;
		break;
	case STAGE_PART:
		t->filled = dioh_qemu_put_part_start(t->out, &qemus(t)->setup);
		t->stage = STAGE_PAGES;
		break;
	case STAGE_PAGES:
		pages_step(t);
		break;
	case STAGE_PART_END:
		t->filled = dioh_qemu_put_section_end(t->out, &qemus(t)->setup);
		t->stage = STAGE_TAIL;
		break;
	case STAGE_TAIL:
		tail_step(t);
		break;
	case STAGE_LAST_LOOK:
		dioh_errand_ask_unchanged(&t->errand, t->params.layout);
		t->stage = STAGE_CLOSE;
		break;
	case STAGE_CLOSE:
		dioh_port_ask_close(&t->port, &t->errand);
		t->stage = STAGE_END;
		break;
	case STAGE_END:
		break;
	}
}

static enum dioh_step load_step(struct dioh_transfer *transfer)
{
	struct qemu_load *t = (struct qemu_load *)transfer;

	if (t->port.under_way || t->errand.runs)
		return DIOH_STEP_WAIT;
	if (t->written < t->filled) {
		dioh_port_move(&t->port, t->out + t->written, t->filled - t->written, write_done);
		return DIOH_STEP_WAIT;
	}
	if (t->stage == STAGE_END)
		return DIOH_STEP_DONE;
	produce(t);
	return DIOH_STEP_MORE;
}

static void load_abandon(struct dioh_transfer *transfer)
{
	dioh_port_abandon(&((struct qemu_load *)transfer)->port);
}

static void free_buffers(struct qemu_load *t)
{
	free(t->out);
	free(t->pages);
	free(t->checksums);
	t->out = t->pages = NULL;
	t->checksums = NULL;
}

static void load_close(struct dioh_transfer *transfer)
{
	struct qemu_load *t = (struct qemu_load *)transfer;

	dioh_port_close(&t->port);
	free_buffers(t);
}

static const struct dioh_payload_ops load_ops = { .step = load_step, .abandon = load_abandon, .close = load_close };

struct dioh_transfer *dioh_payload_qemu_load(const struct dioh_stream_params *params, struct dioh_error *err)
{
	struct qemu_load *t = calloc(1, sizeof(*t));

	if (t) {
		t->params = *params;
		t->base.payload = &load_ops;
		atomic_store(&t->base.total_bytes, params->entry->load_bytes);
		dioh_port_init(&t->port, &t->base, params);
		t->errand.transfer = &t->base;
		t->extent = params->layout->mapped_ram->tail_first;
		t->tail_skip = params->layout->mapped_ram->setup_end_bytes;
		t->out = malloc(OUT_BYTES);
		t->pages = malloc(DIOH_CHUNK_BYTES);
		t->checksums = calloc(1, DIOH_PAGE_BYTES);
		if (t->out && t->pages && t->checksums)
			return &t->base;
		free_buffers(t);
		free(t);
	}
	dioh_error_errno(err, ENOMEM, DIOH_PLACE(NONE, STREAM, params->stream, DIOH_OFFSET_NONE),
	                 "stream %" PRIu32 ": room for its buffers", params->stream);
	return NULL;
}
