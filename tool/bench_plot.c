/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* bench_plot.c - the rates as bars with their spread, drawn by gnuplot, which gets a script through a pipe. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench.h"

#define BAR_PIXELS 60u
#define WIDTH_PIXELS_MIN 800u
#define WIDTH_PIXELS_MAX 8000u

static bool found_in_path(const char *program)
{
	const char *path = getenv("PATH");

	while (path && *path) {
		size_t length = strcspn(path, ":");
		char name[DIOH_TOOL_PATH_BYTES];

		if (snprintf(name, sizeof(name), "%.*s/%s", (int)length, path, program) < (int)sizeof(name) &&
		    access(name, X_OK) == 0)
			return true;
		path += length + (path[length] == ':');
	}
	return false;
}

int dioh_bench_plot_check(struct dioh_error *err)
{
	if (found_in_path("gnuplot"))
		return 0;
	return dioh_tool_error_set(err, ENOENT, "--plot needs gnuplot, and there is none in PATH: install it (package "
	                           "gnuplot or gnuplot-nox), or leave --plot out");
}

/* In gnuplot's single quotes only the quote itself means something. */
static void put_quoted(FILE *script, const char *text)
{
	fputc('\'', script);
	for (; *text; text++) {
		if (*text == '\'')
			fputc('\'', script);
		fputc(*text, script);
	}
	fputc('\'', script);
}

static void put_data(FILE *script, const struct dioh_bench_result *result, bool load)
{
	fprintf(script, "$%s << END\n", load ? "load" : "save");
	for (uint32_t i = 0; i < result->row_count; i++) {
		const struct dioh_bench_row *row = &result->rows[i];
		struct dioh_bench_spread spread;

		if (!row->count || row->load != load)
			continue;
		spread = dioh_bench_row_spread(row, dioh_bench_mib_per_s);
		if (row->payload == DIOH_BENCH_MEMORY)
			fprintf(script, "\"%s %uK %u/%u\"", dioh_bench_engine_name(row->setup.engine),
			        row->setup.block_bytes / 1024, row->setup.in_flight, row->setup.workers);
		else
			fprintf(script, "\"%s\"", dioh_bench_payload_name(row));
		fprintf(script, " %.1f %.1f %.1f\n", spread.median, spread.min, spread.max);
	}
	fputs("END\n", script);
}

static void put_script(FILE *script, const struct dioh_bench_options *options, const struct dioh_bench_result *result)
{
	uint32_t width = 200 + result->row_count * BAR_PIXELS;
	bool svg = strcmp(options->plot + strlen(options->plot) - 4, ".svg") == 0;

	if (width < WIDTH_PIXELS_MIN)
		width = WIDTH_PIXELS_MIN;
	if (width > WIDTH_PIXELS_MAX)
		width = WIDTH_PIXELS_MAX;
	put_data(script, result, false);
	put_data(script, result, true);
	fprintf(script, "set terminal %s size %u,600 noenhanced\nset output ", svg ? "svg" : "png", width);
	put_quoted(script, options->plot);
	fputs("\nset title ", script);
	put_quoted(script, options->path);
	fputs(" noenhanced\nset ylabel 'MiB/s'\nset yrange [0:*]\nset grid ytics\nset key outside top\n"
	      "set style data histogram\nset style histogram errorbars gap 1 lw 1\nset style fill solid 0.6\n"
	      "set xtics rotate by -45\n"
	      "plot $save using 2:3:4:xtic(1) title 'save', $load using 2:3:4 title 'load'\n", script);
}

/* gnuplot complains on our standard error by itself. */
int dioh_bench_plot(const struct dioh_bench_options *options, const struct dioh_bench_result *result,
                    struct dioh_error *err)
{
	FILE *script = popen("exec gnuplot", "we");
	int status;

	if (!script)
		return dioh_tool_error_set(err, errno, "gnuplot cannot be started: %s", strerror(errno));
	put_script(script, options, result);
	status = pclose(script);
	if (status != 0)
		return dioh_tool_error_set(err, EIO, "gnuplot could not draw into %.160s", options->plot);
	return 0;
}
