/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test_properties.c - what has many cases, held against models that are too plain to be wrong: sets of intervals against an
 * array of flags; which pages of a memory hold data, and its selection, against what was written; stream extents as they
 * grow, several streams at once, against every byte of the image having one owner. test_pages.c has bits and runs.
 */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "align.h"
#include "container_format.h"
#include "intervals.h"
#include "layout.h"
#include "memory.h"
#include "moves.h"
#include "pages.h"

static uint64_t state_of_chance;

static unsigned below(unsigned n)
{
	return (unsigned)(test_random(&state_of_chance) % n);
}

static int seed(void **state)
{
	(void)state;
	state_of_chance = test_seed();
	return 0;
}

/* ---- intervals ---- */

#define NUMBERS 700u /* more than twice DIOH_INTERVALS_MAX: the set can be full */

static unsigned model_ranges(const bool *in)
{
	unsigned count = 0;

	for (unsigned i = 0; i < NUMBERS; i++)
		count += in[i] && (i == 0 || !in[i - 1]);
	return count;
}

static void compare(const struct dioh_intervals *set, const bool *in)
{
	unsigned first = below(NUMBERS), end = first + 1 + below(NUMBERS - first), gap = first;
	bool overlap = false;

	assert_int_equal(set->count, model_ranges(in));
	for (unsigned i = 0; i < set->count; i++) {
		assert_true(set->at[i].first < set->at[i].end && set->at[i].end <= NUMBERS);
		assert_true(i == 0 || set->at[i - 1].end < set->at[i].first);
		for (uint64_t k = set->at[i].first; k < set->at[i].end; k++)
			assert_true(in[k]);
	}
	for (unsigned i = first; i < end; i++)
		overlap |= in[i];
	assert_int_equal(dioh_intervals_overlap(set, first, end), overlap);
	while (gap < NUMBERS && in[gap])
		gap++;
	assert_int_equal(dioh_intervals_first_gap(set, first), gap);
}

static void intervals_are_the_models(void **state)
{
	unsigned refused = 0, changed = 0;

	(void)state;
	for (unsigned round = 0; round < 40; round++) {
		struct dioh_intervals set = { .count = 0 };
		const bool scattered = round % 4 == 0; /* so that it comes to be full */
		const unsigned longest = 1 + below(40);
		bool in[NUMBERS] = { false };

		for (unsigned step = 0; step < (scattered ? 1500 : 600); step++) {
			const bool add = below(scattered ? 16 : 3) > 0;
			const unsigned first = scattered ? below(NUMBERS / 2) * 2 : below(NUMBERS);
			const unsigned end = scattered ? first + 1 : (unsigned)dioh_min(first + below(longest), NUMBERS);
			bool after[NUMBERS];
			int r = add ? dioh_intervals_add(&set, first, end) : dioh_intervals_remove(&set, first, end);

			memcpy(after, in, sizeof(in));
			for (unsigned i = first; i < end; i++)
				after[i] = add;
			/* Refused exactly where it would be more ranges than there is room for. */
			assert_int_equal(r, model_ranges(after) > DIOH_INTERVALS_MAX ? -ENOBUFS : 0);
			refused += r < 0;
			changed += r == 0;
			if (r == 0)
				memcpy(in, after, sizeof(in));
			compare(&set, in);
		}
	}
	assert_true(refused > 0 && changed > 1000);
}

/* ---- memory ---- */

#define PAGES 1500u

static void must_write(int fd, unsigned page, unsigned count)
{
	static uint8_t bytes[64 * PAGE];

	memset(bytes, 1 + (int)page % 255, count * PAGE);
	assert_int_equal(pwrite(fd, bytes, count * PAGE, (off_t)(page * PAGE)), count * PAGE);
}

/* Random stretches of data and of bits; a page of zeros is data, too. */
static void make_memory(struct dioh_memory *memory, bool *data, bool *selected)
{
	uint8_t bits[(PAGES + 7) / 8] = { 0 };

	*memory = (struct dioh_memory){ .number = 1, .kind = DIOH_MEMORY_SHMEM, .page_bytes = PAGE };
	memory->fd = must_memfd("memory", PAGES * PAGE, 0);
	memory->selection_fd = must_memfd("selection", sizeof(bits), 0);
	memset(data, 0, PAGES * sizeof(*data));
	for (unsigned i = 0, count; i < PAGES; i += count + below(30)) {
		count = (unsigned)dioh_min(1 + below(below(3) ? 5 : 60), PAGES - i);
		must_write(memory->fd, i, count);
		memset(data + i, true, count * sizeof(*data));
	}
	for (unsigned i = 0; i < PAGES; i++) {
		selected[i] = below(2);
		if (selected[i])
			dioh_bit_set(bits, i);
	}
	assert_int_equal(pwrite(memory->selection_fd, bits, sizeof(bits), 0), sizeof(bits));
}

static void expect_bits(const uint8_t *bits, const bool *model, unsigned first, unsigned count)
{
	for (unsigned i = 0; i < count; i++)
		if (dioh_bit_test(bits, i) != model[first + i])
			fail_msg("page %u, the %uth from %u: the bit is %d", first + i, i, first, dioh_bit_test(bits, i));
}

#define PIECE_PAGES 64u /* 256 KiB */

/* Nothing with data is left out, and only what follows data in the same piece is let in. */
static void expect_bits_coarsely(const uint8_t *bits, const bool *data, unsigned first, unsigned count)
{
	for (unsigned i = 0; i < count; i++) {
		const unsigned page = first + i;
		bool may = data[page];

		for (unsigned before = page; !may && before % PIECE_PAGES != 0;)
			may = data[--before];
		if (dioh_bit_test(bits, i) ? !may : data[page])
			fail_msg("page %u, the %uth from %u: the bit is %d", page, i, first, dioh_bit_test(bits, i));
	}
}

static void pages_are_the_models(void **state)
{
	(void)state;
	for (unsigned round = 0; round < 12; round++) {
		struct dioh_memory_extent extent = { 0 }, coarse = { .coarse = true };
		struct dioh_memory memory;
		bool data[PAGES], selected[PAGES];
		struct dioh_error err;

		make_memory(&memory, data, selected);
		for (unsigned step = 0; step < 200; step++) { /* from anywhere, with what the step before has looked up */
			const unsigned first = below(PAGES), count = (unsigned)dioh_min(1 + below(300), PAGES - first);
			const unsigned whole = first - first % 8;
			uint8_t bits[300 / 8 + 2];

			memset(bits, 0xa5, sizeof(bits));
			must(dioh_memory_data_pages(&memory, &extent, first * PAGE, count, bits, &err), &err);
			expect_bits(bits, data, first, count);
			must(dioh_memory_data_pages(&memory, &coarse, first * PAGE, count, bits, &err), &err);
			expect_bits_coarsely(bits, data, first, count);
			must(dioh_memory_selection(&memory, whole, count, bits, &err), &err);
			expect_bits(bits, selected, whole, count);
		}
		close(memory.fd);
		close(memory.selection_fd);
	}
}

/* ---- extents ---- */

#define STREAMS 3u

static void must_create(struct dioh_image_layout *layout, struct dioh_image *image, const struct dioh_layout_ops *ops,
                        unsigned streams)
{
	struct dioh_msg_entry entries[STREAMS] = { { 0 } };
	struct dioh_error err;

	dioh_image_init(image);
	image->header_fd = image->page_fd = must_memfd("image", 0, 0);
	image->kind = DIOH_IMAGE_REGULAR;
	image->direction = DIOH_DIRECTION_SAVE;
	image->readable = true;
	memset(layout, 0, sizeof(*layout));
	layout->ops = ops;
	layout->image = image;
	for (unsigned i = 0; i < streams; i++)
		entries[i] = stream_entry(i, (const char *const[]){ "a", "b", "c" }[i]);
	must(dioh_layout_allocate(layout, 0, streams, &err), &err);
	must(dioh_layout_put(layout, entries, streams, &err), &err);
	must(layout->ops->create(layout, &err), &err);
}

/* Places ascend, nothing overlaps, and the file reaches to the end of the last. */
static void check_extents(const struct dioh_image_layout *layout, uint64_t *end)
{
	uint64_t owned = layout->image_bytes, last = layout->image_bytes;

	for (unsigned i = 0; i < STREAMS; i++) {
		const struct dioh_stream_entry *entry = &layout->streams[i];

		for (unsigned k = 0; k < entry->record.extent_count; k++) {
			const struct dioh_record_extent *extent = &entry->extents[k];

			assert_int_equal(extent->bytes, dioh_min((UINT64_C(4) << 20) << dioh_min(k, 20), DIOH_EXTENT_BYTES_MAX));
			assert_int_equal(extent->checksums.offset + PAGE, extent->offset);
			assert_int_equal(extent->checksums.bytes, extent->bytes / MIB * 4);
			assert_true(k == 0 || entry->extents[k - 1].offset + entry->extents[k - 1].bytes <= extent->checksums.offset);
			owned += PAGE + extent->bytes;
			last = dioh_max(last, extent->offset + extent->bytes);
		}
	}
	/* As many bytes as there are have one owner each: if two had the same, the sum would be larger than the end. */
	assert_int_equal(owned, last);
	assert_int_equal(must_bytes(layout->image->header_fd), last);
	*end = last;
}

static void extents_have_one_owner_each(void **state)
{
	struct dioh_image_layout layout;
	struct dioh_image image;
	uint64_t end = 0, before = 0;
	struct dioh_error err;

	(void)state;
	must_create(&layout, &image, &dioh_layout_container, STREAMS);
	for (unsigned step = 0; step < 60; step++) {
		must(layout.ops->add_extent(&layout, &layout.streams[below(STREAMS)], &err), &err);
		check_extents(&layout, &end);
		assert_true(end > before);
		before = end;
	}
	dioh_layout_free(&layout);
	dioh_image_close(&image);
}

/* So many and no more, whoever asks. The file is not asked for its size: none has so large a one. */
static void extents_have_a_limit(void **state)
{
	struct dioh_image_layout layout;
	struct dioh_image image;
	struct dioh_error err;
	unsigned model[STREAMS] = { 0 }, all = 0;

	(void)state;
	must_create(&layout, &image, &dioh_layout_container, STREAMS);
	for (unsigned step = 0; all < DIOH_EXTENTS_MAX; step++) {
		const unsigned i = below(STREAMS);
		struct dioh_record_extent *extent = NULL;

		if (below(8) || model[i] == 0) {
			extent = dioh_layout_grow_extents(&layout, &layout.streams[i], &err);
			assert_non_null(extent);
			assert_int_equal(extent->offset, 0); /* nothing of one that was there before */
			extent->offset = 1 + step;
			model[i]++;
			all++;
		} else {
			dioh_layout_drop_extent(&layout, &layout.streams[i]);
			model[i]--;
			all--;
		}
		assert_int_equal(layout.streams[i].record.extent_count, model[i]);
		assert_int_equal(layout.extents_used, all);
	}
	for (unsigned i = 0; i < STREAMS; i++)
		assert_null(dioh_layout_grow_extents(&layout, &layout.streams[i], &err));
	assert_int_equal(err.code, EFBIG);
	dioh_layout_free(&layout);
	dioh_image_close(&image);
}

/* A terabyte and a half. Steps are not counted: the stream just goes on. */
static void a_raw_stream_has_no_such_limit(void **state)
{
	struct dioh_image_layout layout;
	struct dioh_stream_entry *entry;
	struct dioh_image image;
	struct dioh_error err;
	uint64_t at = 0;

	(void)state;
	must_create(&layout, &image, &dioh_layout_raw, 1);
	entry = &layout.streams[0];
	for (unsigned step = 0; step < 3 * DIOH_EXTENTS_MAX; step++) {
		const struct dioh_record_extent *extent;

		must(layout.ops->add_extent(&layout, entry, &err), &err);
		extent = &entry->extents[entry->record.extent_count - 1];
		assert_int_equal(extent->offset, at);
		at += extent->bytes;
		must(layout.ops->store_extent(&layout, entry, entry->record.extent_count - 1, NULL, &err), &err);
	}
	assert_true(at > UINT64_C(1) << 40);
	assert_int_equal(layout.image_bytes, at);
	dioh_layout_free(&layout);
	dioh_image_close(&image);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(intervals_are_the_models),
		cmocka_unit_test(pages_are_the_models),
		cmocka_unit_test(extents_have_one_owner_each),
		cmocka_unit_test(extents_have_a_limit),
		cmocka_unit_test(a_raw_stream_has_no_such_limit),
	};

	return cmocka_run_group_tests(tests, seed, NULL);
}
