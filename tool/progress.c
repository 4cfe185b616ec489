/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* progress.c - a bar with rate and time left on a terminal's stderr. Called by what takes long. */
#include <string.h>
#include <time.h>

#include "tool.h"

#define DRAW_EVERY_NS UINT64_C(100000000)
#define BAR_COLUMNS 30u

uint64_t dioh_tool_now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

void dioh_tool_progress_start(struct dioh_tool_progress *progress, bool on, uint64_t total_bytes)
{
	*progress = (struct dioh_tool_progress){ .on = on, .total_bytes = total_bytes, .started_ns = dioh_tool_now_ns() };
}

void dioh_tool_progress_text(const struct dioh_tool_progress *progress, uint64_t done_bytes, double seconds,
                             char text[DIOH_TOOL_PROGRESS_BYTES])
{
	const double done = (double)done_bytes, total = (double)progress->total_bytes;
	const double rate = seconds > 0 && done_bytes > progress->base_bytes ? (done - (double)progress->base_bytes) / seconds : 0;
	const double part = done < total ? done / total : total > 0;
	char bar[BAR_COLUMNS + 1];
	int n;

	memset(bar, ' ', BAR_COLUMNS);
	memset(bar, '#', (size_t)(part * BAR_COLUMNS));
	bar[BAR_COLUMNS] = '\0';
	n = snprintf(text, DIOH_TOOL_PROGRESS_BYTES, "[%s] %3.0f%%  %.0f MiB/s", bar, 100 * part, rate / (1024 * 1024));
	if (rate > 0 && part > 0 && seconds > 1)
		snprintf(text + n, DIOH_TOOL_PROGRESS_BYTES - (size_t)n, "  %.0f s left", total * (1 - part) / rate);
}

void dioh_tool_progress_draw(struct dioh_tool_progress *progress, uint64_t done_bytes)
{
	uint64_t now = dioh_tool_now_ns();
	char text[DIOH_TOOL_PROGRESS_BYTES];

	if (!progress->on || now - progress->drawn_ns < DRAW_EVERY_NS)
		return;
	progress->drawn_ns = now;
	dioh_tool_progress_text(progress, done_bytes, (double)(now - progress->started_ns) / 1e9, text);
	fprintf(stderr, "\r\033[K%s", text);
	fflush(stderr);
}

void dioh_tool_progress_end(struct dioh_tool_progress *progress)
{
	if (progress->on && progress->drawn_ns)
		fputs("\r\033[K", stderr);
	progress->on = false;
}
