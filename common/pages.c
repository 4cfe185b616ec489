/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * pages.c - bits, zero pages, checksums, runs.
 *
 * Owns nothing and keeps no state: every function works on bytes that its caller lends it. Bitmaps may come
 * from an image or from a manager and hold anything; lengths are the caller's and are trusted. No function
 * reads a byte of a bitmap beyond the last bit it was told of, nor a page whose bit is clear: touching a hole
 * through a mapping would allocate it. Called by the memory payload, the layouts and the tests.
 */
#include "pages.h"

#include <limits.h>
#include <string.h>

#include <isa-l.h>

#include "align.h"

/* Bits `first` to `last`, both included, of one byte. */
static uint8_t byte_mask(unsigned first, unsigned last)
{
	return (uint8_t)(0xffu << first & 0xffu >> (7 - last));
}

static void byte_fill(uint8_t *byte, uint8_t mask, bool value)
{
	*byte = value ? *byte | mask : *byte & (uint8_t)~mask;
}

void dioh_bits_fill(uint8_t *bitmap, uint64_t first, uint64_t count, bool value)
{
	uint64_t last, first_byte, last_byte;

	if (count == 0)
		return;

	last = first + count - 1;
	first_byte = first / 8;
	last_byte = last / 8;
	if (first_byte == last_byte) {
		byte_fill(&bitmap[first_byte], byte_mask(first % 8, last % 8), value);
		return;
	}
	byte_fill(&bitmap[first_byte], byte_mask(first % 8, 7), value);
	memset(&bitmap[first_byte + 1], value ? 0xff : 0, last_byte - first_byte - 1);
	byte_fill(&bitmap[last_byte], byte_mask(0, last % 8), value);
}

uint64_t dioh_bits_count(const uint8_t *bitmap, uint64_t count)
{
	uint64_t bytes = count / 8;
	uint64_t total = 0;
	uint64_t i = 0;

	for (; bytes - i >= sizeof(uint64_t); i += sizeof(uint64_t)) {
		uint64_t word;

		memcpy(&word, &bitmap[i], sizeof(word)); /* bitmaps need no alignment */
		total += (unsigned)__builtin_popcountll(word);
	}
	for (; i < bytes; i++)
		total += (unsigned)__builtin_popcount(bitmap[i]);
	if (count % 8 != 0)
		total += (unsigned)__builtin_popcount(bitmap[i] & byte_mask(0, (unsigned)(count % 8) - 1));
	return total;
}

bool dioh_bits_tail_clear(const uint8_t *bitmap, uint64_t bytes, uint64_t count)
{
	uint64_t i = count / 8;

	if (i >= bytes)
		return true;
	if (bitmap[i] >> (count % 8) != 0)
		return false;
	return dioh_is_zero(&bitmap[i + 1], bytes - i - 1);
}

bool dioh_is_zero(const void *data, size_t bytes)
{
	/* ISA-L does not say what it makes of no bytes. Its pointer is not const, but it only reads. */
	return bytes == 0 || isal_zero_detect((void *)(uintptr_t)data, bytes) == 0;
}

unsigned dioh_pages_drop_zero(const uint8_t *data, uint8_t *bitmap, unsigned pages)
{
	unsigned dropped = 0;

	for (unsigned i = 0; i < pages; i++) {
		const uint8_t *page = data + (size_t)i * DIOH_PAGE_BYTES;

		if (!dioh_bit_test(bitmap, i) || !dioh_is_zero(page, DIOH_PAGE_BYTES))
			continue;
		dioh_bits_fill(bitmap, i, 1, false);
		dropped++;
	}
	return dropped;
}

uint32_t dioh_crc32c(uint32_t crc, const void *data, size_t bytes)
{
	const unsigned char *p = data;

	/* ISA-L leaves both inversions to its caller and counts in int. */
	while (bytes > 0) {
		int piece = (int)dioh_min(bytes, INT_MAX & ~4095);

		crc = ~crc32_iscsi((unsigned char *)(uintptr_t)p, piece, ~crc);
		p += piece;
		bytes -= (size_t)piece;
	}
	return crc;
}

uint32_t dioh_pages_crc32c(const uint8_t *data, const uint8_t *bitmap, unsigned pages)
{
	uint32_t crc = 0;
	unsigned count;

	for (unsigned i = 0; i < pages; i += count) {
		count = dioh_pages_same(bitmap, i, pages);
		if (dioh_bit_test(bitmap, i))
			crc = dioh_crc32c(crc, data + (size_t)i * DIOH_PAGE_BYTES,
			                  (size_t)count * DIOH_PAGE_BYTES);
	}
	return crc;
}

unsigned dioh_pages_same(const uint8_t *bitmap, unsigned from, unsigned end)
{
	unsigned i = from;
	uint8_t like;

	if (from >= end)
		return 0;

	like = dioh_bit_test(bitmap, from) ? 0xff : 0;
	while (i < end) {
		unsigned differing = (unsigned)(bitmap[i / 8] ^ like) >> (i % 8);

		if (differing != 0) {
			i += (unsigned)__builtin_ctz(differing);
			break;
		}
		i += 8 - i % 8;
	}
	return (i < end ? i : end) - from;
}

bool dioh_pages_next_run(const uint8_t *bitmap, unsigned pages, unsigned from, const struct dioh_run_limits *limits,
                         struct dioh_run *ret_run)
{
	unsigned first = from;
	unsigned end, stop, stretch;

	if (first < pages && !dioh_bit_test(bitmap, first))
		first += dioh_pages_same(bitmap, first, pages);
	if (first >= pages)
		return false;

	stop = limits->count_max < pages - first ? first + limits->count_max : pages;
	stretch = dioh_pages_same(bitmap, first, stop);
	end = first + stretch;
	while (end < stop) {
		unsigned gap = dioh_pages_same(bitmap, end, stop);
		unsigned next;

		/* A run ends with a present page: no gap at its end, however short. */
		if (gap > limits->gap_max || end + gap == stop)
			break;
		next = dioh_pages_same(bitmap, end + gap, pages);
		if (stretch >= limits->alone_min && next >= limits->alone_min)
			break;
		stretch = next;
		end = next < stop - end - gap ? end + gap + next : stop;
	}
	*ret_run = (struct dioh_run){ .first = first, .count = end - first };
	return true;
}
