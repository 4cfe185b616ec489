/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* qemu_ending.c - see qemu_ending.h. */
#include "qemu_ending.h"

#include "qemu_wire.h"

void dioh_qemu_ending_init(struct dioh_qemu_ending *ending)
{
	memset(ending, 0, sizeof(*ending));
	/* No byte in front of the device state belongs to its end. */
	memset(ending->last, 0xff, sizeof(ending->last));
	ending->zero_end = UINT64_MAX; /* nor is it a description that ends at 0 */
}

/* The byte that stands `back` before bytes[i], perhaps in an earlier piece. */
static uint8_t byte_before(const struct dioh_qemu_ending *ending, const uint8_t *bytes, size_t i, size_t back)
{
	return back <= i ? bytes[i - back] : ending->last[sizeof(ending->last) + i - back];
}

/* bytes[i], at `offset`, is a '{': do a 0 byte, 0x06 and a length stand before it? */
static void consider_ending(struct dioh_qemu_ending *ending, const uint8_t *bytes, size_t i, uint64_t offset)
{
	uint64_t length = 0;

	if (byte_before(ending, bytes, i, 6) != SECTION_EOF ||
	    byte_before(ending, bytes, i, 5) != SECTION_DESCRIPTION)
		return;
	for (size_t back = 4; back > 0; back--)
		length = length << 8 | byte_before(ending, bytes, i, back);
	ending->candidates[ending->next].start = offset;
	ending->candidates[ending->next].end = offset + length;
	ending->next = (ending->next + 1) % DIOH_QEMU_ENDINGS;
}

/* Zeros at the very end may stand behind the description: they count once something follows them. */
static void watch_zeros(struct dioh_qemu_ending *ending, const uint8_t *bytes, size_t count, uint64_t offset)
{
	const uint8_t *zero;

	while (count > 0 && bytes[count - 1] == 0)
		count--;
	if (count == 0)
		return;
	zero = memrchr(bytes, 0, count);
	if (zero)
		ending->zero_end = offset + (uint64_t)(zero - bytes) + 1;
	else if (ending->data_end < offset)
		ending->zero_end = offset;
	ending->data_end = offset + count;
}

void dioh_qemu_ending_watch(struct dioh_qemu_ending *ending, const uint8_t *bytes, size_t count, uint64_t offset)
{
	const uint8_t *end = bytes + count;
	uint8_t last[sizeof(ending->last)];

	for (const uint8_t *brace = bytes;; brace++) {
		brace = brace < end ? memchr(brace, '{', (size_t)(end - brace)) : NULL;
		if (!brace)
			break;
		consider_ending(ending, bytes, (size_t)(brace - bytes), offset + (uint64_t)(brace - bytes));
	}
	watch_zeros(ending, bytes, count, offset);
	for (size_t back = 1; back <= sizeof(last); back++)
		last[sizeof(last) - back] = byte_before(ending, bytes, count, back);
	memcpy(ending->last, last, sizeof(last));
}

/* Most bytes of a device state are 0: one alone says little, but behind a footer it ends a stream. */
bool dioh_qemu_ending_may_be(const struct dioh_qemu_ending *ending, bool footers)
{
	if (ending->last[sizeof(ending->last) - 1] == 0 && (!footers || ending->last[0] == SECTION_FOOTER))
		return true;
	for (unsigned i = 0; i < DIOH_QEMU_ENDINGS; i++) {
		if (ending->candidates[i].end == ending->data_end && ending->candidates[i].start >= ending->zero_end)
			return true;
	}
	return false;
}
