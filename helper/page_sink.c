/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "page_sink.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "align.h"
#include "payload.h"

#define RUNS_MAX (DIOH_CHUNK_PAGES / 2)
/* So many gather pages, the others are on their way. */
#define FILLING_MAX (DIOH_SINK_CHUNKS / 2)

static uint64_t region_bytes(const struct dioh_page_sink *sink, unsigned region)
{
	return sink->layout->regions[region].record.bytes;
}

static bool keeps_zeros(const struct dioh_page_sink *sink, unsigned region)
{
	return region_bytes(sink, region) < DIOH_SINK_ZEROS_BYTES;
}

static unsigned chunk_pages(const struct dioh_sink_chunk *chunk)
{
	const uint64_t pages = region_bytes(chunk->sink, chunk->region) / DIOH_PAGE_BYTES;

	return (unsigned)dioh_min(DIOH_CHUNK_PAGES, pages - chunk->chunk * DIOH_CHUNK_PAGES);
}

static uint64_t chunk_at(const struct dioh_sink_chunk *chunk)
{
	struct dioh_image_layout *layout = chunk->sink->layout;

	return dioh_layout_at(layout, layout->regions[chunk->region].record.pages_offset + chunk->chunk * DIOH_CHUNK_BYTES);
}

/* ---- what is known of every chunk ---- */

/* false: no memory; the transfer has failed. */
static bool know_region(struct dioh_page_sink *sink, unsigned region)
{
	const uint64_t bytes = dioh_div_up(dioh_div_up(region_bytes(sink, region), DIOH_CHUNK_BYTES), 8);
	struct dioh_sink_region *known = &sink->regions[region];
	struct dioh_error err;

	if (known->stored)
		return true;
	known->stored = calloc(3, bytes);
	if (known->stored) {
		known->stale = known->stored + bytes;
		known->dusty = known->stale + bytes;
		return true;
	}
	dioh_error_errno(&err, ENOMEM, DIOH_PLACE(NONE, REGION, sink->layout->regions[region].record.number, DIOH_OFFSET_NONE),
	                 "region %" PRIu32 ": room to know what has come", sink->layout->regions[region].record.number);
	dioh_transfer_fail(sink->transfer, &err);
	return false;
}

/* ---- page I/O ---- */

static bool io_ended(struct dioh_io *io)
{
	struct dioh_sink_chunk *chunk = io->owner;
	struct dioh_transfer *transfer = chunk->sink->transfer;
	struct dioh_error err;

	dioh_worker_settle(transfer);
	if (io->result < 0) {
		dioh_error_errno(&err, (int)io->result,
		                 &(const struct dioh_place){ io->write ? DIOH_OP_WRITE : DIOH_OP_READ, DIOH_OBJECT_IMAGE, 0,
		                                             io->offset },
		                 "image: %s%s of %" PRIu64 " bytes at %" PRIu64 " failed",
		                 chunk->sink->layout->image->direct ? "O_DIRECT " : "", io->write ? "write" : "read", io->bytes,
		                 io->offset);
		dioh_transfer_fail(transfer, &err);
		return false;
	}
	dioh_payload_count_io(transfer, io, io->moved);
	return --chunk->ios_left == 0 && !transfer->failed;
}

static void start_io(struct dioh_sink_chunk *chunk, struct dioh_sink_run *run, bool write, unsigned page, unsigned pages,
                     void (*done)(struct dioh_io *io))
{
	const uint64_t bytes = (uint64_t)pages * DIOH_PAGE_BYTES;

	run->iov = (struct iovec){ chunk->pages + page * DIOH_PAGE_BYTES, bytes };
	run->io = (struct dioh_io){
		.write = write,
		.slot = DIOH_SLOT_PAGE,
		.iov = &run->iov,
		.iov_count = 1,
		.offset = chunk_at(chunk) + page * DIOH_PAGE_BYTES,
		.bytes = bytes,
		.moved = bytes,
		.owner = chunk,
		.done = done,
	};
	chunk->ios_left++;
	dioh_worker_submit(chunk->sink->transfer->worker, chunk->sink->transfer, &run->io);
}

/* ---- a chunk's way into the image ---- */

static bool whole(const struct dioh_sink_chunk *chunk)
{
	return chunk->came_pages == chunk_pages(chunk);
}

/* Its buffer has all that there is of it. */
static bool can_sum(const struct dioh_sink_chunk *chunk)
{
	return !chunk->again || whole(chunk);
}

static int store(struct dioh_sink_chunk *chunk, const uint32_t *checksum, bool fresh)
{
	struct dioh_image_layout *layout = chunk->sink->layout;
	const struct dioh_tables tables = {
		.region = &layout->regions[chunk->region],
		.first_chunk = chunk->chunk,
		.chunks = 1,
		.bitmap = chunk->stored,
		.checksums = chunk->sink->checksums ? (uint32_t *)checksum : NULL,
		.fresh = fresh,
	};

	return layout->ops->store_tables(layout, &tables, &chunk->errand.error);
}

static void store_chunk(struct dioh_job *job) /* control-I/O thread */
{
	struct dioh_sink_chunk *chunk = dioh_container_of(job, struct dioh_sink_chunk, errand.job);
	uint32_t checksum = 0; /* until the end */

	if (chunk->sink->checksums && can_sum(chunk))
		checksum = dioh_pages_crc32c(chunk->pages, chunk->stored, chunk_pages(chunk));
	chunk->errand.result = store(chunk, &checksum, !chunk->again);
	dioh_errand_answer(&chunk->errand);
}

static void ask_to_store(struct dioh_sink_chunk *chunk)
{
	chunk->state = DIOH_SINK_STORING;
	dioh_errand_ask(&chunk->errand, store_chunk);
}

static void write_done(struct dioh_io *io)
{
	if (io_ended(io))
		ask_to_store(io->owner);
}

static void write_chunk(struct dioh_sink_chunk *chunk)
{
	const unsigned pages = chunk_pages(chunk);
	unsigned runs = 0;

	chunk->state = DIOH_SINK_WRITING;
	for (unsigned page = 0, count; page < pages; page += count) {
		count = dioh_pages_same(chunk->present, page, pages);
		if (dioh_bit_test(chunk->present, page))
			start_io(chunk, &chunk->runs[runs++], true, page, count, write_done);
	}
	if (runs == 0)
		ask_to_store(chunk);
}

static int load(struct dioh_sink_chunk *chunk, uint8_t *ret_bitmap)
{
	struct dioh_image_layout *layout = chunk->sink->layout;
	struct dioh_tables tables = { .region = &layout->regions[chunk->region], .first_chunk = chunk->chunk, .chunks = 1,
		                      .bitmap = ret_bitmap };

	return layout->ops->load_tables(layout, &tables, &chunk->errand.error);
}

/* What stands there already and has not come again stays. */
static void load_chunk(struct dioh_job *job) /* control-I/O thread */
{
	struct dioh_sink_chunk *chunk = dioh_container_of(job, struct dioh_sink_chunk, errand.job);
	uint8_t there[DIOH_CHUNK_BITMAP_BYTES];

	chunk->errand.result = load(chunk, there);
	for (unsigned i = 0; i < sizeof(there) && chunk->errand.result == 0; i++) {
		chunk->became_zero |= (there[i] & chunk->came[i] & ~chunk->present[i]) != 0;
		chunk->stored[i] = (uint8_t)((there[i] & ~chunk->came[i]) | chunk->present[i]);
	}
	dioh_errand_answer(&chunk->errand);
}

/* A chunk that gathers pages goes on its way. */
static void send_off(struct dioh_sink_chunk *chunk)
{
	struct dioh_page_sink *sink = chunk->sink;

	if (sink->last == chunk)
		sink->last = NULL;
	if (!know_region(sink, chunk->region))
		return;
	if (!keeps_zeros(sink, chunk->region))
		dioh_pages_drop_zero(chunk->pages, chunk->present, chunk_pages(chunk));
	chunk->again = dioh_bit_test(sink->regions[chunk->region].stored, chunk->chunk);
	chunk->became_zero = false;
	memcpy(chunk->stored, chunk->present, sizeof(chunk->stored));
	if (!chunk->again) {
		write_chunk(chunk);
		return;
	}
	chunk->state = DIOH_SINK_LOADING;
	dioh_errand_ask(&chunk->errand, load_chunk);
}

static void stored(struct dioh_sink_chunk *chunk)
{
	const struct dioh_sink_region *known = &chunk->sink->regions[chunk->region];

	dioh_bit_set(known->stored, chunk->chunk);
	dioh_bits_fill(known->stale, chunk->chunk, 1, !can_sum(chunk));
	if (chunk->became_zero)
		dioh_bit_set(known->dusty, chunk->chunk);
	chunk->state = DIOH_SINK_FREE;
}

/* ---- at the end: chunks of which some pages came again ---- */

static int punch_absent(struct dioh_sink_chunk *chunk)
{
	const unsigned pages = chunk_pages(chunk);
	int r = 0;

	for (unsigned page = 0, count; page < pages && r == 0; page += count) {
		count = dioh_pages_same(chunk->stored, page, pages);
		if (!dioh_bit_test(chunk->stored, page))
			r = dioh_image_erase(chunk->sink->layout->image, chunk_at(chunk) + page * DIOH_PAGE_BYTES,
			                     (uint64_t)count * DIOH_PAGE_BYTES, &chunk->errand.error);
	}
	return r;
}

static void check_chunk(struct dioh_job *job) /* control-I/O thread */
{
	struct dioh_sink_chunk *chunk = dioh_container_of(job, struct dioh_sink_chunk, errand.job);
	int r = load(chunk, chunk->stored);

	if (r == 0 && chunk->dusty)
		r = punch_absent(chunk);
	chunk->errand.result = r;
	dioh_errand_answer(&chunk->errand);
}

static void sum_chunk(struct dioh_job *job) /* control-I/O thread */
{
	struct dioh_sink_chunk *chunk = dioh_container_of(job, struct dioh_sink_chunk, errand.job);
	struct dioh_image *image = chunk->sink->layout->image;
	const unsigned pages = chunk_pages(chunk);
	uint32_t checksum;
	int r = 0;

	if (!image->page_readable)
		r = dioh_image_pread(image, chunk->pages, (uint64_t)pages * DIOH_PAGE_BYTES, chunk_at(chunk), &chunk->errand.error);
	if (r == 0) {
		checksum = dioh_pages_crc32c(chunk->pages, chunk->stored, pages);
		r = store(chunk, &checksum, false);
	}
	chunk->errand.result = r;
	dioh_errand_answer(&chunk->errand);
}

static void ask_to_sum(struct dioh_sink_chunk *chunk)
{
	chunk->state = DIOH_SINK_SUMMING;
	dioh_errand_ask(&chunk->errand, sum_chunk);
}

static void read_done(struct dioh_io *io)
{
	if (io_ended(io))
		ask_to_sum(io->owner);
}

static void checked(struct dioh_sink_chunk *chunk)
{
	if (!chunk->stale) {
		chunk->state = DIOH_SINK_FREE;
		return;
	}
	if (!chunk->sink->layout->image->page_readable) {
		ask_to_sum(chunk);
		return;
	}
	chunk->state = DIOH_SINK_READING;
	start_io(chunk, &chunk->runs[0], false, 0, chunk_pages(chunk), read_done);
}

static bool next_to_check(struct dioh_page_sink *sink, struct dioh_sink_chunk *ret_chunk)
{
	for (; sink->check_region < sink->layout->region_count; sink->check_region++, sink->check_chunk = 0) {
		const struct dioh_sink_region *known = &sink->regions[sink->check_region];
		const uint64_t count = dioh_div_up(region_bytes(sink, sink->check_region), DIOH_CHUNK_BYTES);

		while (known->stored && sink->check_chunk < count) {
			const uint64_t at = sink->check_chunk++;

			ret_chunk->stale = sink->checksums && dioh_bit_test(known->stale, at);
			ret_chunk->dusty = sink->layout->image->kind == DIOH_IMAGE_REGULAR && dioh_bit_test(known->dusty, at);
			ret_chunk->region = sink->check_region;
			ret_chunk->chunk = at;
			if (ret_chunk->stale || ret_chunk->dusty)
				return true;
		}
	}
	return false;
}

bool dioh_sink_finish(struct dioh_page_sink *sink)
{
	bool gathering = false, all_free = true;

	for (unsigned i = 0; i < DIOH_SINK_CHUNKS; i++) {
		if (sink->chunks[i].state == DIOH_SINK_FILLING)
			send_off(&sink->chunks[i]);
		gathering |= sink->chunks[i].state >= DIOH_SINK_FILLING && sink->chunks[i].state <= DIOH_SINK_STORING;
	}
	if (gathering || sink->transfer->failed)
		return false;
	for (unsigned i = 0; i < DIOH_SINK_CHUNKS; i++) {
		struct dioh_sink_chunk *chunk = &sink->chunks[i];

		if (chunk->state == DIOH_SINK_FREE && next_to_check(sink, chunk)) {
			chunk->state = DIOH_SINK_CHECKING;
			dioh_errand_ask(&chunk->errand, check_chunk);
		}
		all_free &= chunk->state == DIOH_SINK_FREE;
	}
	return all_free;
}

/* ---- pages ---- */

static struct dioh_sink_chunk *oldest_filling(struct dioh_page_sink *sink, unsigned *ret_filling)
{
	struct dioh_sink_chunk *oldest = NULL;

	*ret_filling = 0;
	for (unsigned i = 0; i < DIOH_SINK_CHUNKS; i++) {
		struct dioh_sink_chunk *chunk = &sink->chunks[i];

		if (chunk->state != DIOH_SINK_FILLING)
			continue;
		++*ret_filling;
		if (chunk->fills == 0 && (!oldest || chunk->used < oldest->used))
			oldest = chunk;
	}
	return oldest;
}

static struct dioh_sink_chunk *open_chunk(struct dioh_page_sink *sink, unsigned region, uint64_t number)
{
	struct dioh_sink_chunk *free_one = NULL, *oldest;
	unsigned filling;

	for (unsigned i = 0; i < DIOH_SINK_CHUNKS; i++) {
		struct dioh_sink_chunk *chunk = &sink->chunks[i];

		if (chunk->state == DIOH_SINK_FREE)
			free_one = chunk;
		else if (chunk->region == region && chunk->chunk == number)
			return chunk->state == DIOH_SINK_FILLING ? chunk : NULL;
	}
	oldest = oldest_filling(sink, &filling);
	if (oldest && filling >= FILLING_MAX)
		send_off(oldest);
	if (!free_one)
		return NULL;
	free_one->state = DIOH_SINK_FILLING;
	free_one->region = region;
	free_one->chunk = number;
	free_one->fills = free_one->came_pages = 0;
	memset(free_one->came, 0, sizeof(free_one->came));
	memset(free_one->present, 0, sizeof(free_one->present));
	return free_one;
}

static uint8_t *page_in(const struct dioh_sink_chunk *chunk, uint64_t page)
{
	return chunk->pages + page % DIOH_CHUNK_PAGES * DIOH_PAGE_BYTES;
}

/* NULL: no room now. */
static struct dioh_sink_chunk *take(struct dioh_page_sink *sink, unsigned region, uint64_t page, bool present)
{
	const uint64_t number = page / DIOH_CHUNK_PAGES;
	const unsigned within = (unsigned)(page % DIOH_CHUNK_PAGES);
	struct dioh_sink_chunk *chunk = sink->last;

	if (!chunk || chunk->region != region || chunk->chunk != number) {
		chunk = open_chunk(sink, region, number);
		if (!chunk)
			return NULL;
		chunk->used = ++sink->clock;
		sink->last = chunk;
	}
	sink->regions[region].came = true;
	if (!dioh_bit_test(chunk->came, within)) {
		dioh_bit_set(chunk->came, within);
		chunk->came_pages++;
	}
	dioh_bits_fill(chunk->present, within, 1, present);
	return chunk;
}

uint8_t *dioh_sink_page(struct dioh_page_sink *sink, unsigned region, uint64_t page, struct dioh_sink_chunk **ret_chunk)
{
	struct dioh_sink_chunk *chunk = take(sink, region, page, true);

	if (!chunk)
		return NULL;
	sink->has_data = true;
	chunk->fills++;
	*ret_chunk = chunk;
	return page_in(chunk, page);
}

void dioh_sink_filled(struct dioh_sink_chunk *chunk, unsigned pages)
{
	chunk->fills -= pages;
	if (chunk->fills == 0 && whole(chunk))
		send_off(chunk);
}

bool dioh_sink_zero(struct dioh_page_sink *sink, unsigned region, uint64_t page)
{
	const bool kept = keeps_zeros(sink, region);
	struct dioh_sink_chunk *chunk = take(sink, region, page, kept);

	if (!chunk)
		return false;
	if (kept)
		memset(page_in(chunk, page), 0, DIOH_PAGE_BYTES);
	if (chunk->fills == 0 && whole(chunk))
		send_off(chunk);
	return true;
}

/* ---- the sink ---- */

void dioh_sink_advance(struct dioh_page_sink *sink)
{
	for (unsigned i = 0; i < DIOH_SINK_CHUNKS; i++) {
		struct dioh_sink_chunk *chunk = &sink->chunks[i];

		if (chunk->errand.runs)
			continue;
		if (chunk->state == DIOH_SINK_LOADING)
			write_chunk(chunk);
		else if (chunk->state == DIOH_SINK_STORING)
			stored(chunk);
		else if (chunk->state == DIOH_SINK_CHECKING)
			checked(chunk);
		else if (chunk->state == DIOH_SINK_SUMMING)
			chunk->state = DIOH_SINK_FREE;
	}
}

bool dioh_sink_open(struct dioh_page_sink *sink, struct dioh_transfer *transfer, struct dioh_image_layout *layout,
                    uint32_t flags)
{
	bool all = dioh_buffers_open(&sink->memory, DIOH_SINK_CHUNKS * DIOH_CHUNK_BYTES);

	sink->transfer = transfer;
	sink->layout = layout;
	sink->checksums = !(flags & DIOH_TRANSFER_NO_CHECKSUM);
	for (unsigned i = 0; i < DIOH_SINK_CHUNKS; i++) {
		struct dioh_sink_chunk *chunk = &sink->chunks[i];

		chunk->sink = sink;
		chunk->errand.transfer = transfer;
		chunk->pages = all ? sink->memory.first + i * DIOH_CHUNK_BYTES : NULL;
		chunk->runs = calloc(RUNS_MAX, sizeof(*chunk->runs));
		all = all && chunk->runs;
	}
	sink->regions = calloc(layout->region_count, sizeof(*sink->regions));
	return all && sink->regions;
}

void dioh_sink_close(struct dioh_page_sink *sink)
{
	dioh_buffers_close(&sink->memory);
	for (unsigned i = 0; i < DIOH_SINK_CHUNKS; i++)
		free(sink->chunks[i].runs);
	for (unsigned i = 0; sink->regions && i < sink->layout->region_count; i++)
		free(sink->regions[i].stored);
	free(sink->regions);
}
