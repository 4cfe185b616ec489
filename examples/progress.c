/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * progress.c - shows how far a save or a restore is. See hv.h.
 *
 * On a terminal a bar with rate and time left, drawn over itself. Elsewhere, a log or a test, a line when a stage
 * begins and at most one a second after.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "hv.h"

#define BAR_CHARS 24
#define LINE_INTERVAL_MS 1000
#define BAR_INTERVAL_MS 50

char *hv_format_bytes(char text[HV_SIZE_CHARS], uint64_t bytes)
{
	static const char *const units[] = { "B", "KiB", "MiB", "GiB", "TiB" };
	double value = (double)bytes;
	unsigned int unit = 0;

	while (value >= 1024 && unit < 4) {
		value /= 1024;
		unit++;
	}
	(void)snprintf(text, HV_SIZE_CHARS, unit ? "%.1f %s" : "%.0f %s", value, units[unit]);
	return text;
}

/* ", ETA 1:05" or nothing. */
static void format_eta(char *text, size_t size, const struct hv_progress *progress)
{
	uint64_t seconds;

	text[0] = '\0';
	if (!progress->bytes_per_second || progress->done_bytes > progress->total_bytes)
		return;
	seconds = (progress->total_bytes - progress->done_bytes) / progress->bytes_per_second;
	(void)snprintf(text, size, ", ETA %" PRIu64 ":%02" PRIu64, seconds / 60, seconds % 60);
}

static void draw_bar(const struct hv_progress *progress)
{
	char bar[BAR_CHARS + 1];
	size_t filled;

	if (!progress->total_bytes)
		return;
	if (progress->done_bytes >= progress->total_bytes)
		filled = BAR_CHARS;
	else
		filled = (size_t)((double)progress->done_bytes / (double)progress->total_bytes * BAR_CHARS);
	memset(bar, '.', BAR_CHARS);
	memset(bar, '#', filled);
	bar[BAR_CHARS] = '\0';
	(void)fprintf(stderr, "[%s] ", bar);
}

static void draw_figures(const struct hv_progress *progress)
{
	char done[HV_SIZE_CHARS], total[HV_SIZE_CHARS], rate[HV_SIZE_CHARS], eta[32];

	(void)fprintf(stderr, "%s", hv_format_bytes(done, progress->done_bytes));
	if (progress->total_bytes)
		(void)fprintf(stderr, " of %s", hv_format_bytes(total, progress->total_bytes));
	if (progress->bytes_per_second)
		(void)fprintf(stderr, ", %s/s", hv_format_bytes(rate, progress->bytes_per_second));
	format_eta(eta, sizeof(eta), progress);
	(void)fputs(eta, stderr);
}

void hv_display_progress(struct hv_display *display, const struct hv_progress *progress)
{
	int64_t now_ms = hv_now_ms();
	bool begins = strncmp(display->stage, progress->stage, sizeof(display->stage) - 1) != 0;

	if (!begins && now_ms - display->last_ms < (display->terminal ? BAR_INTERVAL_MS : LINE_INTERVAL_MS))
		return;
	display->last_ms = now_ms;
	(void)snprintf(display->stage, sizeof(display->stage), "%s", progress->stage);
	(void)fprintf(stderr, "%s%s", display->terminal ? "\r" : "", progress->stage);
	if (progress->total_bytes || progress->done_bytes) {
		(void)fputs(display->terminal ? " " : ": ", stderr);
		if (display->terminal)
			draw_bar(progress);
		draw_figures(progress);
	}
	/* On a terminal what is left of a longer line is erased; the next stage draws over this one. */
	(void)fputs(display->terminal ? "\033[K" : "\n", stderr);
	(void)fflush(stderr);
	display->drawn = display->terminal;
}

void hv_display_end(struct hv_display *display)
{
	if (display->drawn)
		(void)fputs("\r\033[K", stderr);
	display->drawn = false;
	display->stage[0] = '\0';
}

static void report(struct hv_reporter *reporter, const struct hv_progress *progress)
{
	hv_display_progress((struct hv_display *)reporter, progress); /* its first member */
}

void hv_display_init(struct hv_display *display)
{
	*display = (struct hv_display){ .reporter = { report }, .terminal = isatty(STDERR_FILENO) };
}
