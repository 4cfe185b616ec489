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
	*progress = (struct dioh_tool_progress){ on, total_bytes, dioh_tool_now_ns(), 0 };
}

static void draw(const struct dioh_tool_progress *progress, uint64_t done_bytes, double seconds)
{
	double part = progress->total_bytes ? (double)done_bytes / (double)progress->total_bytes : 0;
	double rate = seconds > 0 ? (double)done_bytes / seconds : 0;
	char bar[BAR_COLUMNS + 1];

	if (part > 1)
		part = 1;
	memset(bar, ' ', BAR_COLUMNS);
	memset(bar, '#', (size_t)(part * BAR_COLUMNS));
	bar[BAR_COLUMNS] = '\0';
	fprintf(stderr, "\r\033[K[%s] %3.0f%%  %.0f MiB/s", bar, 100 * part, rate / (1024 * 1024));
	if (part > 0 && seconds > 1)
		fprintf(stderr, "  %.0f s left", seconds * (1 - part) / part);
	fflush(stderr);
}

void dioh_tool_progress_draw(struct dioh_tool_progress *progress, uint64_t done_bytes)
{
	uint64_t now = dioh_tool_now_ns();

	if (!progress->on || now - progress->drawn_ns < DRAW_EVERY_NS)
		return;
	progress->drawn_ns = now;
	draw(progress, done_bytes, (double)(now - progress->started_ns) / 1e9);
}

void dioh_tool_progress_end(struct dioh_tool_progress *progress)
{
	if (progress->on && progress->drawn_ns)
		fputs("\r\033[K", stderr);
	progress->on = false;
}
