/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * summary.c - what a save or a restore has moved, in words. See save.h.
 */
#include <stdio.h>

#include "save.h"

static double seconds(uint64_t ns)
{
	return (double)ns / 1e9;
}

static uint64_t rate(uint64_t bytes, uint64_t ns)
{
	return ns ? (uint64_t)((double)bytes / seconds(ns)) : 0;
}

static const char *engine_name(uint32_t engine)
{
	switch (engine) {
	case DIOH_ENGINE_IO_URING:
		return "io_uring";
	case DIOH_ENGINE_LIBAIO:
		return "libaio";
	case DIOH_ENGINE_SYNC:
		return "sync";
	default:
		return "unknown engine";
	}
}

static const char *directness(const struct dioh_msg_attach_image_reply *image)
{
	if (image->notes & DIOH_IMAGE_NOTE_DIRECT_CHECKSUMS)
		return "through the page cache: btrfs keeps checksums of the file";
	return image->direct ? "direct" : "buffered";
}

void hv_summarize(char summary[HV_SUMMARY_BYTES], const char *what, const struct hv_helper *helper, int64_t stopped_ms)
{
	const struct dioh_msg_complete *memory = &helper->memory.figures;
	char text[6][HV_SIZE_CHARS];
	int n;

	n = snprintf(summary, HV_SUMMARY_BYTES,
	             "%s: memory of %s: %s data, %s zero, %s holes\n"
	             "  pages moved by %s (%s) in %.2f s, %s/s; device state of %s",
	             what, hv_format_bytes(text[0], memory->total_bytes), hv_format_bytes(text[1], memory->data_bytes),
	             hv_format_bytes(text[2], memory->zero_bytes), hv_format_bytes(text[3], memory->hole_bytes),
	             engine_name(helper->image.engine), directness(&helper->image),
	             seconds(memory->elapsed_ns), hv_format_bytes(text[4], rate(memory->data_bytes, memory->elapsed_ns)),
	             hv_format_bytes(text[5], helper->state.figures.data_bytes));
	if (helper->finish.figures.sync_ns && n < HV_SUMMARY_BYTES)
		n += snprintf(summary + n, (size_t)(HV_SUMMARY_BYTES - n), "; %.2f s until it was durable",
		              seconds(helper->finish.figures.sync_ns));
	if (stopped_ms >= 0 && n < HV_SUMMARY_BYTES)
		(void)snprintf(summary + n, (size_t)(HV_SUMMARY_BYTES - n), "\n  the guest has stood still for %.2f s",
		               (double)stopped_ms / 1000);
}
