/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test_pages.c - common/pages.c against known values and against models that are too simple to be wrong.
 *
 * The models run on random input. The seed is printed; DIOH_SEED=N repeats a run. Bitmaps and pages stand in
 * allocations of exactly their size, so that AddressSanitizer and valgrind see a byte read too many.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "chance.h"
#include "pages.h"

#define ROUNDS 3000
#define PAGES_MAX 600 /* more than two chunks */

/* ---- random input ---------------------------------------------------------------------------- */

static unsigned random_below(unsigned limit)
{
	return (unsigned)(random_u64() % limit);
}

static void *allocate(size_t bytes)
{
	void *p = malloc(bytes);

	assert_true(p != NULL || bytes == 0);
	return p;
}

/* Bits in stretches, as guests have them: long and short ones, now and then all alike. */
static uint8_t *random_bitmap(unsigned pages)
{
	size_t bytes = (pages + 7) / 8;
	uint8_t *bitmap = allocate(bytes);
	unsigned stretch_max = 1 + random_below(random_below(4) == 0 ? 2 * PAGES_MAX : 12);
	bool value = random_below(2);

	/* Bits behind the last page may be anything. */
	memset(bitmap, random_below(2) ? 0xff : 0, bytes);
	for (unsigned i = 0; i < pages; value = !value) {
		unsigned end = i + 1 + random_below(stretch_max);

		for (; i < end && i < pages; i++) {
			bitmap[i / 8] &= (uint8_t) ~(1u << (i % 8));
			bitmap[i / 8] |= (uint8_t)(value << (i % 8));
		}
	}
	return bitmap;
}

static bool model_bit(const uint8_t *bitmap, uint64_t i)
{
	return (bitmap[i / 8] & (1u << (i % 8))) != 0;
}

/* ---- CRC32C ---------------------------------------------------------------------------------- */

static uint32_t model_crc32c(uint32_t crc, const uint8_t *data, size_t bytes)
{
	crc = ~crc;
	for (size_t i = 0; i < bytes; i++) {
		crc ^= data[i];
		for (int bit = 0; bit < 8; bit++)
			crc = crc & 1 ? crc >> 1 ^ 0x82f63b78u : crc >> 1;
	}
	return ~crc;
}

/* The check value of the CRC catalogues, and RFC 3720, appendix B.4. */
static void test_crc_known_values(void **state)
{
	uint8_t data[32];

	(void)state;
	assert_int_equal(dioh_crc32c(0, "123456789", 9), 0xe3069283u);
	assert_int_equal(dioh_crc32c(0, "", 0), 0);
	assert_int_equal(dioh_crc32c(0, NULL, 0), 0);
	assert_int_equal(dioh_crc32c(0x12345678, NULL, 0), 0x12345678);

	memset(data, 0, sizeof(data));
	assert_int_equal(dioh_crc32c(0, data, sizeof(data)), 0x8a9136aau);
	memset(data, 0xff, sizeof(data));
	assert_int_equal(dioh_crc32c(0, data, sizeof(data)), 0x62a8ab43u);
	for (unsigned i = 0; i < sizeof(data); i++)
		data[i] = (uint8_t)i;
	assert_int_equal(dioh_crc32c(0, data, sizeof(data)), 0x46dd794eu);
	for (unsigned i = 0; i < sizeof(data); i++)
		data[i] = (uint8_t)(31 - i);
	assert_int_equal(dioh_crc32c(0, data, sizeof(data)), 0x113fdb5cu);
}

static void test_crc_is_the_models_and_continues(void **state)
{
	(void)state;
	for (int round = 0; round < ROUNDS; round++) {
		size_t bytes = random_below(round % 16 == 0 ? 9000 : 300);
		size_t skip = random_below(64); /* every alignment */
		size_t cut = random_below((unsigned)bytes + 1);
		uint8_t *buffer = allocate(skip + bytes);
		uint32_t whole, pieces;

		for (size_t i = 0; i < skip + bytes; i++)
			buffer[i] = (uint8_t)random_u64();
		whole = dioh_crc32c(0, buffer + skip, bytes);
		assert_int_equal(whole, model_crc32c(0, buffer + skip, bytes));
		pieces = dioh_crc32c(0, buffer + skip, cut);
		assert_int_equal(dioh_crc32c(pieces, buffer + skip + cut, bytes - cut), whole);
		free(buffer);
	}
}

/* ISA-L counts in int: more than 2 GiB go in pieces. Pages that are only read cost no memory. */
static void test_crc_of_more_than_an_int_counts(void **state)
{
	const size_t bytes = ((size_t)2 << 30) + 12345;
	uint8_t *data;
	uint32_t pieces = 0;

	(void)state;
	data = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
	            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (data == MAP_FAILED) {
		print_message("skipped: no room for 2 GiB of address space here\n");
		skip();
	}
	data[INT32_MAX - 4096] = 1; /* on both sides of the place where the pieces meet */
	data[INT32_MAX] = 2;
	data[bytes - 1] = 3;
	for (size_t done = 0; done < bytes;) {
		size_t piece = bytes - done < (size_t)1 << 20 ? bytes - done : (size_t)1 << 20;

		pieces = dioh_crc32c(pieces, data + done, piece);
		done += piece;
	}
	assert_int_equal(dioh_crc32c(0, data, bytes), pieces);
	munmap(data, bytes);
}

/* ---- bits ------------------------------------------------------------------------------------ */

static void test_bit_order(void **state)
{
	uint8_t bitmap[3] = { 0 };

	(void)state;
	dioh_bit_set(bitmap, 0);
	dioh_bit_set(bitmap, 9);
	dioh_bit_set(bitmap, 23);
	assert_int_equal(bitmap[0], 0x01);
	assert_int_equal(bitmap[1], 0x02);
	assert_int_equal(bitmap[2], 0x80);
	assert_true(dioh_bit_test(bitmap, 9));
	assert_false(dioh_bit_test(bitmap, 8));
}

static void test_fill_every_range(void **state)
{
	enum { BITS = 40 };

	(void)state;
	for (unsigned first = 0; first <= BITS; first++)
		for (unsigned count = 0; count <= BITS - first; count++)
			for (unsigned value = 0; value < 2; value++) {
				uint8_t bitmap[BITS / 8];

				memset(bitmap, value ? 0 : 0xff, sizeof(bitmap));
				dioh_bits_fill(bitmap, first, count, value);
				for (unsigned i = 0; i < BITS; i++) {
					bool inside = i >= first && i < first + count;

					assert_int_equal(model_bit(bitmap, i), inside == value);
				}
			}
}

static void test_fill_keeps_the_others(void **state)
{
	(void)state;
	for (int round = 0; round < ROUNDS; round++) {
		unsigned pages = 1 + random_below(PAGES_MAX);
		size_t bytes = (pages + 7) / 8;
		uint8_t *bitmap = random_bitmap(pages);
		uint8_t *before = allocate(bytes);
		unsigned first = random_below(pages + 1);
		unsigned count = random_below(pages - first + 1);
		bool value = random_below(2);

		memcpy(before, bitmap, bytes);
		dioh_bits_fill(bitmap, first, count, value);
		for (unsigned i = 0; i < bytes * 8; i++) {
			bool inside = i >= first && i < first + count;

			assert_int_equal(model_bit(bitmap, i),
			                 inside ? value : model_bit(before, i));
		}
		free(before);
		free(bitmap);
	}
}

static void test_count_and_tail(void **state)
{
	(void)state;
	for (int round = 0; round < ROUNDS; round++) {
		unsigned pages = 1 + random_below(PAGES_MAX);
		size_t bytes = (pages + 7) / 8;
		uint8_t *bitmap = random_bitmap(pages);
		unsigned count = random_below(pages + 1);
		uint64_t set = 0, behind = 0;

		for (unsigned i = 0; i < bytes * 8; i++)
			*(i < count ? &set : &behind) += model_bit(bitmap, i);
		assert_int_equal(dioh_bits_count(bitmap, count), set);
		assert_int_equal(dioh_bits_tail_clear(bitmap, bytes, count), behind == 0);

		/* A single bit behind the end, or none. */
		dioh_bits_fill(bitmap, count, bytes * 8 - count, false);
		assert_true(dioh_bits_tail_clear(bitmap, bytes, count));
		if (count < bytes * 8) {
			dioh_bit_set(bitmap, count + random_below((unsigned)bytes * 8 - count));
			assert_false(dioh_bits_tail_clear(bitmap, bytes, count));
		}
		free(bitmap);
	}
}

static void test_tail_ends_with_the_bitmap(void **state)
{
	const uint8_t bitmap[1] = { 0xff };
	const uint8_t guarded[8] = { 0x07, 0x00, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff };

	(void)state;
	assert_true(dioh_bits_tail_clear(guarded, 2, 3));
	assert_true(dioh_bits_tail_clear(guarded, 1, 3));
	assert_false(dioh_bits_tail_clear(guarded, 3, 3));
	assert_true(dioh_bits_tail_clear(bitmap, 0, 0));
	assert_true(dioh_bits_tail_clear(bitmap, 1, 8));
	assert_true(dioh_bits_tail_clear(bitmap, 1, 1000));
	assert_false(dioh_bits_tail_clear(bitmap, 1, 7));
}

/* ---- zero pages ------------------------------------------------------------------------------ */

static void test_is_zero(void **state)
{
	(void)state;
	assert_true(dioh_is_zero(NULL, 0));
	for (size_t bytes = 1; bytes < 700; bytes += bytes < 200 ? 1 : 37) {
		uint8_t *data = calloc(1, bytes);

		assert_non_null(data);
		assert_true(dioh_is_zero(data, bytes));
		for (size_t i = 0; i < bytes; i++) {
			data[i] = (uint8_t)(1u << (i % 8));
			assert_false(dioh_is_zero(data, bytes));
			data[i] = 0;
		}
		free(data);
	}
}

/*
 * Pages of a mapping in which those that the bitmap excludes cannot be read at all: a page touched too much is a
 * SIGSEGV. A present page is zero, or has a single byte that is not.
 */
static uint8_t *random_pages(const uint8_t *bitmap, unsigned pages, bool *ret_zero)
{
	uint8_t *data = mmap(NULL, (size_t)pages * DIOH_PAGE_BYTES, PROT_READ | PROT_WRITE,
	                     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	assert_true(data != MAP_FAILED);
	for (unsigned i = 0; i < pages; i++) {
		uint8_t *page = data + (size_t)i * DIOH_PAGE_BYTES;

		ret_zero[i] = random_below(2);
		if (!ret_zero[i])
			page[random_below(DIOH_PAGE_BYTES)] = (uint8_t)(1 + random_below(255));
		if (!model_bit(bitmap, i))
			assert_int_equal(mprotect(page, DIOH_PAGE_BYTES, PROT_NONE), 0);
	}
	return data;
}

static void require_4k_pages(void)
{
	if (sysconf(_SC_PAGESIZE) != DIOH_PAGE_BYTES) {
		print_message("skipped: this host's pages are not 4096 bytes\n");
		skip();
	}
}

static void test_drop_zero(void **state)
{
	(void)state;
	require_4k_pages();
	for (int round = 0; round < 200; round++) {
		unsigned pages = 1 + random_below(DIOH_CHUNK_PAGES);
		size_t bytes = (pages + 7) / 8;
		uint8_t *bitmap = random_bitmap(pages);
		uint8_t *before = allocate(bytes);
		bool zero[DIOH_CHUNK_PAGES];
		uint8_t *data = random_pages(bitmap, pages, zero);
		unsigned dropped = 0;

		memcpy(before, bitmap, bytes);
		for (unsigned i = 0; i < pages; i++)
			dropped += model_bit(before, i) && zero[i];
		assert_int_equal(dioh_pages_drop_zero(data, bitmap, pages), dropped);
		for (unsigned i = 0; i < pages; i++)
			assert_int_equal(model_bit(bitmap, i), model_bit(before, i) && !zero[i]);
		for (unsigned i = pages; i < bytes * 8; i++)
			assert_int_equal(model_bit(bitmap, i), model_bit(before, i));
		munmap(data, (size_t)pages * DIOH_PAGE_BYTES);
		free(before);
		free(bitmap);
	}
}

static void test_crc_over_present_pages(void **state)
{
	(void)state;
	require_4k_pages();
	for (int round = 0; round < 200; round++) {
		unsigned pages = 1 + random_below(DIOH_CHUNK_PAGES);
		uint8_t *bitmap = random_bitmap(pages);
		bool zero[DIOH_CHUNK_PAGES];
		uint8_t *data = random_pages(bitmap, pages, zero);
		uint32_t crc = 0;

		for (unsigned i = 0; i < pages; i++)
			if (model_bit(bitmap, i))
				crc = dioh_crc32c(crc, data + (size_t)i * DIOH_PAGE_BYTES,
				                  DIOH_PAGE_BYTES);
		assert_int_equal(dioh_pages_crc32c(data, bitmap, pages), crc);
		munmap(data, (size_t)pages * DIOH_PAGE_BYTES);
		free(bitmap);
	}
}

static void test_crc_over_no_page_is_0(void **state)
{
	const uint8_t bitmap[DIOH_CHUNK_BITMAP_BYTES] = { 0 };

	(void)state;
	assert_int_equal(dioh_pages_crc32c(NULL, bitmap, DIOH_CHUNK_PAGES), 0);
	assert_int_equal(dioh_pages_crc32c(NULL, bitmap, 0), 0);
}

/* ---- runs ------------------------------------------------------------------------------------ */

static void test_same(void **state)
{
	(void)state;
	for (int round = 0; round < ROUNDS; round++) {
		unsigned pages = 1 + random_below(PAGES_MAX);
		uint8_t *bitmap = random_bitmap(pages);
		unsigned from = random_below(pages + 1);
		unsigned end = from + random_below(pages - from + 1);
		unsigned count = 0;

		while (from + count < end &&
		       model_bit(bitmap, from + count) == model_bit(bitmap, from))
			count++;
		assert_int_equal(dioh_pages_same(bitmap, from, end), count);
		free(bitmap);
	}
}

/* Length of the stretch of present pages that holds `page`, from `from` on. */
static unsigned model_stretch(const uint8_t *bitmap, unsigned pages, unsigned from, unsigned page)
{
	unsigned first = page, end = page;

	while (first > from && model_bit(bitmap, first - 1))
		first--;
	while (end < pages && model_bit(bitmap, end))
		end++;
	return end - first;
}

static bool model_next_run(const uint8_t *bitmap, unsigned pages, unsigned from, const struct dioh_run_limits *limits,
                           struct dioh_run *ret_run)
{
	unsigned first, last;

	for (first = from; first < pages && !model_bit(bitmap, first); first++)
		;
	if (first >= pages)
		return false;
	last = first;
	for (unsigned i = first + 1; i < pages && i - first < limits->count_max; i++) {
		if (!model_bit(bitmap, i))
			continue;
		if (i - last - 1 > limits->gap_max)
			break;
		if (i - last > 1 && model_stretch(bitmap, pages, first, last) >= limits->alone_min &&
		    model_stretch(bitmap, pages, first, i) >= limits->alone_min)
			break;
		last = i;
	}
	*ret_run = (struct dioh_run){ first, last - first + 1 };
	return true;
}

static void test_runs_are_the_models(void **state)
{
	(void)state;
	for (int round = 0; round < ROUNDS; round++) {
		unsigned pages = 1 + random_below(PAGES_MAX);
		uint8_t *bitmap = random_bitmap(pages);
		struct dioh_run_limits limits = {
			.gap_max = random_below(4) == 0 ? UINT32_MAX : random_below(20),
			.alone_min = random_below(4) == 0 ? UINT32_MAX : 1 + random_below(20),
			.count_max = random_below(4) == 0 ? UINT32_MAX : 1 + random_below(40),
		};
		struct dioh_run run, expected;
		unsigned from = random_below(8) == 0 ? random_below(pages + 2) : 0;
		bool more;

		do {
			more = model_next_run(bitmap, pages, from, &limits, &expected);
			assert_int_equal(more, dioh_pages_next_run(bitmap, pages, from, &limits, &run));
			if (!more)
				break;
			assert_int_equal(run.first, expected.first);
			assert_int_equal(run.count, expected.count);
			from = run.first + run.count;
		} while (more);
		free(bitmap);
	}
}

/* What the model does not say by itself: runs miss no present page, and none is longer or more gapped than allowed. */
static void test_runs_cover_every_present_page_once(void **state)
{
	(void)state;
	for (int round = 0; round < ROUNDS; round++) {
		unsigned pages = 1 + random_below(PAGES_MAX);
		uint8_t *bitmap = random_bitmap(pages);
		unsigned gap_max = random_below(6), count_max = 1 + random_below(64);
		struct dioh_run_limits limits = { gap_max, 1 + random_below(32), count_max };
		struct dioh_run run;
		uint64_t present = 0;
		unsigned from = 0;

		while (dioh_pages_next_run(bitmap, pages, from, &limits, &run)) {
			unsigned gap = 0;

			assert_true(run.first >= from && run.count >= 1 && run.count <= count_max);
			assert_true(run.first + run.count <= pages);
			assert_true(model_bit(bitmap, run.first));
			assert_true(model_bit(bitmap, run.first + run.count - 1));
			for (unsigned i = run.first; i < run.first + run.count; i++) {
				present += model_bit(bitmap, i);
				gap = model_bit(bitmap, i) ? 0 : gap + 1;
				assert_true(gap <= gap_max);
			}
			from = run.first + run.count;
		}
		assert_int_equal(present, dioh_bits_count(bitmap, pages));
		free(bitmap);
	}
}

static void test_no_run_leaves_the_output(void **state)
{
	const uint8_t bitmap[2] = { 0x01, 0x00 };
	const struct dioh_run_limits limits = { 4, 16, 4 };
	struct dioh_run run = { 77, 88 };

	(void)state;
	assert_false(dioh_pages_next_run(bitmap, 16, 1, &limits, &run));
	assert_false(dioh_pages_next_run(bitmap, 16, 16, &limits, &run));
	assert_false(dioh_pages_next_run(bitmap, 0, 0, &limits, &run));
	assert_int_equal(run.first, 77);
	assert_int_equal(run.count, 88);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_crc_known_values),
		cmocka_unit_test(test_crc_is_the_models_and_continues),
		cmocka_unit_test(test_crc_of_more_than_an_int_counts),
		cmocka_unit_test(test_bit_order),
		cmocka_unit_test(test_fill_every_range),
		cmocka_unit_test(test_fill_keeps_the_others),
		cmocka_unit_test(test_count_and_tail),
		cmocka_unit_test(test_tail_ends_with_the_bitmap),
		cmocka_unit_test(test_is_zero),
		cmocka_unit_test(test_drop_zero),
		cmocka_unit_test(test_crc_over_present_pages),
		cmocka_unit_test(test_crc_over_no_page_is_0),
		cmocka_unit_test(test_same),
		cmocka_unit_test(test_runs_are_the_models),
		cmocka_unit_test(test_runs_cover_every_present_page_once),
		cmocka_unit_test(test_no_run_leaves_the_output),
	};

	return cmocka_run_group_tests(tests, random_set_up, NULL);
}
