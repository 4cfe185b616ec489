/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * bench_plot.c - the rates as bars with their spread, drawn by gnuplot. It reads a script and writes the picture to a pipe:
 * it opens no file and is told no file's name. The file is made before anything is measured, beside the one that was asked
 * for, and takes its place once the picture is whole. Called by bench.c.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench.h"
#include "cleanup.h"

#define BAR_PIXELS 60u
#define WIDTH_PIXELS_MIN 800u
#define WIDTH_PIXELS_MAX 8000u
#define COPY_BYTES 65536u
#define NOT_STARTED 127

/* ---- before anything is measured ---------------------------------------------------------------------------- */

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

/* What is renamed over a device or a FIFO would not go into it, and over a directory it cannot be. */
static int check_place(const char *path, struct dioh_error *err)
{
	struct stat st;

	if (stat(path, &st) == 0 && !S_ISREG(st.st_mode))
		return dioh_tool_error_set(err, EINVAL, "--plot: %.160s is there, and is not a regular file", path);
	return 0;
}

/* As open(2) would make it, not for its owner alone. */
static void permit(int fd)
{
	const mode_t mask = umask(0);

	umask(mask);
	(void)fchmod(fd, 0666 & ~mask);
}

int dioh_bench_plot_create(const char *path, struct dioh_bench_plot *ret_plot, struct dioh_error *err)
{
	struct dioh_bench_plot plot = { .path = path };
	int r = check_place(path, err);

	if (r != 0)
		return r;
	if (!found_in_path("gnuplot"))
		return dioh_tool_error_set(err, ENOENT, "--plot needs gnuplot, and there is none in PATH: install it (package "
		                           "gnuplot or gnuplot-nox), or leave --plot out");
	if (asprintf(&plot.made, "%s.XXXXXX", path) < 0)
		return dioh_tool_error_set(err, ENOMEM, "there is no memory for a file's name");
	plot.fd = mkostemp(plot.made, O_CLOEXEC);
	if (plot.fd < 0) {
		dioh_tool_error_set(err, errno, "--plot: %.160s cannot be created: %s", path, strerror(errno));
		free(plot.made);
		return -err->code;
	}
	permit(plot.fd);
	*ret_plot = plot;
	return 0;
}

void dioh_bench_plot_free(struct dioh_bench_plot *plot)
{
	if (!plot->made)
		return;
	dioh_cleanup_fd(&plot->fd);
	if (!plot->is_drawn)
		(void)unlink(plot->made);
	free(plot->made);
	plot->made = NULL;
}

/* ---- the script --------------------------------------------------------------------------------------------- */

/* In gnuplot's single quotes only the quote itself means something; a newline ends them and is followed by commands. */
static void put_quoted(FILE *script, const char *text)
{
	fputc('\'', script);
	for (; *text; text++) {
		if ((unsigned char)*text < ' ' || *text == 0x7f)
			fprintf(script, "\\x%02x", (unsigned char)*text);
		else
			fputc(*text, script);
		if (*text == '\'')
			fputc('\'', script);
	}
	fputc('\'', script);
}

static void put_setup(FILE *script, const struct dioh_bench_setup *setup)
{
	fprintf(script, "%uK %u/%u", setup->block_bytes / 1024, setup->in_flight, setup->workers);
}

/* The helper's defaults are not the same for a save and a load. */
static void put_label(FILE *script, const struct dioh_bench_row *save, const struct dioh_bench_row *load)
{
	if (save->payload != DIOH_BENCH_MEMORY) {
		fprintf(script, "\"%s\"", dioh_bench_payload_name(save));
		return;
	}
	fprintf(script, "\"%s ", dioh_bench_engine_name(save->setup.engine));
	put_setup(script, &save->setup);
	if (!dioh_bench_same_setup(&save->setup, &load->setup)) {
		fputs(", load ", script);
		put_setup(script, &load->setup);
	}
	fputc('"', script);
}

static void put_rate(FILE *script, const struct dioh_bench_row *row)
{
	struct dioh_bench_spread spread = dioh_bench_row_spread(row, dioh_bench_mib_per_s);

	fprintf(script, " %.1f %.1f %.1f", spread.median, spread.min, spread.max);
}

/* Rows come in pairs, a save and its load. */
static void put_data(FILE *script, const struct dioh_bench_result *result)
{
	fputs("$rates << END\n", script);
	for (uint32_t i = 0; i + 1 < result->row_count; i += 2) {
		const struct dioh_bench_row *save = &result->rows[i], *load = &result->rows[i + 1];

		if (!save->count || !load->count)
			continue;
		put_label(script, save, load);
		put_rate(script, save);
		put_rate(script, load);
		fputc('\n', script);
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
	put_data(script, result);
	fprintf(script, "set terminal %s size %u,600 noenhanced\nset title ", svg ? "svg" : "png", width);
	put_quoted(script, options->path);
	fputs(" noenhanced\nset ylabel 'MiB/s'\nset yrange [0:*]\nset grid ytics\nset key outside top\n"
	      "set style data histogram\nset style histogram errorbars gap 1 lw 1\nset style fill solid 0.6\n"
	      "set xtics rotate by -45\n"
	      "plot $rates using 2:3:4:xtic(1) title 'save', $rates using 5:6:7 title 'load'\n", script);
}

/* A file of no name, at its beginning; NULL and errno. */
static FILE *make_script(const struct dioh_bench_options *options, const struct dioh_bench_result *result)
{
	DIOH_AUTO_FD int fd = memfd_create("script", MFD_CLOEXEC);
	FILE *script = fd >= 0 ? fdopen(fd, "w") : NULL;

	if (!script)
		return NULL;
	(void)dioh_steal_fd(&fd); /* it is the stream's */
	put_script(script, options, result);
	if (fflush(script) == 0 && lseek(fileno(script), 0, SEEK_SET) == 0)
		return script;
	fclose(script);
	return NULL;
}

/* ---- drawing ------------------------------------------------------------------------------------------------ */

/* It complains on our standard error by itself. */
static _Noreturn void become_gnuplot(int script_fd, int picture_fd)
{
	signal(SIGPIPE, SIG_DFL); /* ignoring it would be inherited */
	if (dup2(script_fd, STDIN_FILENO) >= 0 && dup2(picture_fd, STDOUT_FILENO) >= 0)
		execlp("gnuplot", "gnuplot", (char *)NULL);
	dprintf(STDERR_FILENO, "gnuplot cannot be started: %s\n", strerror(errno));
	_exit(NOT_STARTED);
}

static int write_all(int fd, const char *bytes, size_t count)
{
	while (count > 0) {
		ssize_t n = write(fd, bytes, count);

		if (n < 0 && errno != EINTR)
			return -errno;
		if (n > 0) {
			bytes += n;
			count -= (size_t)n;
		}
	}
	return 0;
}

/* All that comes, and that is something. */
static int take_picture(int from_fd, const struct dioh_bench_plot *plot, struct dioh_error *err)
{
	char bytes[COPY_BYTES];
	bool some = false;
	ssize_t n;
	int r = 0;

	while (r == 0 && (n = read(from_fd, bytes, sizeof(bytes))) != 0) {
		if (n < 0 && (errno != EINTR || dioh_bench_interrupted()))
			return dioh_tool_error_set(err, errno, "reading gnuplot's picture failed: %s", strerror(errno));
		some = some || n > 0;
		r = n > 0 ? write_all(plot->fd, bytes, (size_t)n) : 0;
	}
	if (r == 0 && fsync(plot->fd) != 0)
		r = -errno;
	if (r != 0)
		return dioh_tool_error_set(err, -r, "--plot: writing %.160s failed: %s", plot->path, strerror(-r));
	return some ? 0 : dioh_tool_error_set(err, EIO, "gnuplot drew nothing");
}

/* Waits for gnuplot, and tells it to end if nobody takes its picture any more. */
static int end(pid_t pid, int r, struct dioh_error *err)
{
	int status = 0;
	pid_t ended;

	if (r != 0)
		kill(pid, SIGTERM);
	do
		ended = waitpid(pid, &status, 0);
	while (ended < 0 && errno == EINTR);
	if (r == 0 && (ended < 0 || status != 0))
		r = dioh_tool_error_set(err, EIO, "gnuplot failed: there is no picture");
	return r;
}

static int draw(int script_fd, const struct dioh_bench_plot *plot, struct dioh_error *err)
{
	int ends[2], r;
	pid_t pid;

	if (pipe2(ends, O_CLOEXEC) != 0)
		return dioh_tool_error_set(err, errno, "no pipe could be made: %s", strerror(errno));
	pid = fork();
	if (pid == 0)
		become_gnuplot(script_fd, ends[1]);
	close(ends[1]);
	if (pid < 0)
		r = dioh_tool_error_set(err, errno, "fork failed: %s", strerror(errno));
	else
		r = take_picture(ends[0], plot, err);
	close(ends[0]);
	return pid < 0 ? r : end(pid, r, err);
}

int dioh_bench_plot_draw(struct dioh_bench_plot *plot, const struct dioh_bench_options *options,
                         const struct dioh_bench_result *result, struct dioh_error *err)
{
	FILE *script = make_script(options, result);
	int r;

	if (!script)
		return dioh_tool_error_set(err, errno, "no script for gnuplot could be made: %s", strerror(errno));
	r = draw(fileno(script), plot, err);
	fclose(script);
	if (r != 0)
		return r;
	if (rename(plot->made, plot->path) != 0)
		return dioh_tool_error_set(err, errno, "--plot: %.160s cannot be replaced: %s", plot->path, strerror(errno));
	plot->is_drawn = true;
	return 0;
}
