/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* bench_options.c - the command line of the verb `bench`. Everything that can be wrong with it is told before any I/O. */
#include <stdlib.h>
#include <string.h>

#include "bench.h"

#define VERB "bench"
#define SIZE_BYTES_DEFAULT DIOH_BENCH_GIB
#define SIZE_BYTES_QUICK (UINT64_C(256) << 20)
#define REPEAT_DEFAULT 3u

struct texts { /* as they were given */
	const char *size, *engine, *block, *depth, *workers, *zero, *holes, *layout, *repeat;
};

static const char *const engine_names[] = {
	[DIOH_ENGINE_IO_URING] = "io_uring",
	[DIOH_ENGINE_LIBAIO] = "libaio",
	[DIOH_ENGINE_SYNC] = "sync",
};

#define ENGINE_NAMES (sizeof(engine_names) / sizeof(engine_names[0]))

const char *dioh_bench_engine_name(uint32_t engine)
{
	return engine < ENGINE_NAMES && engine_names[engine] ? engine_names[engine] : "unknown";
}

/* ---- one value ---------------------------------------------------------------------------------------------- */

typedef bool parse_value(const char *text, uint32_t *ret_value);

static bool parse_engine(const char *text, uint32_t *ret_value)
{
	for (uint32_t i = 0; i < ENGINE_NAMES; i++)
		if (engine_names[i] && strcmp(text, engine_names[i]) == 0) {
			*ret_value = i;
			return true;
		}
	return false;
}

static bool parse_number(const char *text, uint64_t min, uint64_t max, uint32_t *ret_value)
{
	uint64_t value;

	if (!dioh_tool_parse_size(text, &value) || value < min || value > max)
		return false;
	*ret_value = (uint32_t)value;
	return true;
}

static bool parse_block(const char *text, uint32_t *ret_value)
{
	uint32_t value;

	if (!parse_number(text, DIOH_BLOCK_BYTES_MIN, DIOH_BLOCK_BYTES_MAX, &value) || (value & (value - 1)) != 0)
		return false;
	*ret_value = value;
	return true;
}

static bool parse_depth(const char *text, uint32_t *ret_value)
{
	return parse_number(text, 1, DIOH_IN_FLIGHT_MAX, ret_value);
}

static bool parse_workers(const char *text, uint32_t *ret_value)
{
	return parse_number(text, 1, DIOH_WORKERS_MAX, ret_value);
}

static bool parse_percent(const char *text, uint32_t *ret_value)
{
	return parse_number(text, 0, 100, ret_value);
}

static bool parse_repeat(const char *text, uint32_t *ret_value)
{
	return parse_number(text, 1, DIOH_BENCH_REPEAT_MAX, ret_value);
}

static bool parse_layout(const char *text, uint32_t *ret_value)
{
	if (strcmp(text, dioh_tool_layout_name(DIOH_LAYOUT_CONTAINER)) == 0)
		*ret_value = DIOH_LAYOUT_CONTAINER;
	else if (strcmp(text, dioh_tool_layout_name(DIOH_LAYOUT_RAW)) == 0)
		*ret_value = DIOH_LAYOUT_RAW;
	else
		return false;
	return true;
}

/* Leaves the default where the option was not given. -1 to go on, else the exit status. */
static int take(const char *name, const char *text, parse_value *parse, const char *wanted, uint32_t *value)
{
	if (!text || parse(text, value))
		return -1;
	return dioh_tool_usage_error(VERB, "--%s: %s is not %s", name, text, wanted);
}

static int take_size(const char *text, uint64_t *bytes)
{
	if (text && (!dioh_tool_parse_size(text, bytes) || *bytes == 0 || *bytes % DIOH_BENCH_MIB != 0))
		return dioh_tool_usage_error(VERB, "--size: %s is not a multiple of 1M, and 1M at least", text);
	if (*bytes > DIOH_REGION_BYTES_MAX)
		return dioh_tool_usage_error(VERB, "--size: more than %lluT",
		                             (unsigned long long)(DIOH_REGION_BYTES_MAX >> 40));
	return -1;
}

/* ---- lists of values ---------------------------------------------------------------------------------------- */

static bool contains(const struct dioh_bench_list *list, uint32_t value)
{
	for (uint32_t i = 0; i < list->count; i++)
		if (list->values[i] == value)
			return true;
	return false;
}

static int add_value(const char *name, const char *text, parse_value *parse, const char *wanted,
                     struct dioh_bench_list *list)
{
	uint32_t value = 0;
	int status = take(name, text, parse, wanted, &value);

	if (status >= 0)
		return status;
	if (contains(list, value))
		return dioh_tool_usage_error(VERB, "--%s: %s is in the list twice", name, text);
	if (list->count == DIOH_BENCH_LIST_MAX)
		return dioh_tool_usage_error(VERB, "--%s: more than %u values", name, DIOH_BENCH_LIST_MAX);
	list->values[list->count++] = value;
	return -1;
}

/* "a,b,c" instead of the default. */
static int take_list(const char *name, const char *text, parse_value *parse, const char *wanted,
                     struct dioh_bench_list *list)
{
	char value[32];
	int status = -1;

	if (!text)
		return -1;
	list->count = 0;
	while (status < 0) {
		size_t length = strcspn(text, ",");

		snprintf(value, sizeof(value), "%.*s", (int)(length < sizeof(value) ? length : sizeof(value)), text);
		status = add_value(name, value, parse, wanted, list);
		if (text[length] == '\0')
			break;
		text += length + 1;
	}
	return status;
}

/* ---- all of them -------------------------------------------------------------------------------------------- */

static void set_defaults(struct dioh_bench_options *options)
{
	options->layout = DIOH_LAYOUT_CONTAINER;
	options->engines = (struct dioh_bench_list){ 3, { DIOH_ENGINE_IO_URING, DIOH_ENGINE_LIBAIO, DIOH_ENGINE_SYNC } };
	options->workers = (struct dioh_bench_list){ 1, { 0 } };
	options->size_bytes = options->quick ? SIZE_BYTES_QUICK : SIZE_BYTES_DEFAULT;
	options->repeat = options->quick ? 1 : REPEAT_DEFAULT;
	if (options->quick) {
		options->blocks = (struct dioh_bench_list){ 1, { 0 } };
		options->depths = (struct dioh_bench_list){ 1, { 0 } };
	} else {
		options->blocks = (struct dioh_bench_list){ 3, { 256u << 10, 1u << 20, 4u << 20 } };
		options->depths = (struct dioh_bench_list){ 2, { 4, 16 } };
	}
}

static int take_texts(const struct texts *texts, struct dioh_bench_options *options)
{
	int status;

	if ((status = take_size(texts->size, &options->size_bytes)) < 0 &&
	    (status = take_list("engine", texts->engine, parse_engine, "an engine (io_uring, libaio, sync)",
	                        &options->engines)) < 0 &&
	    (status = take_list("block", texts->block, parse_block, "a power of two from 64K to 4M",
	                        &options->blocks)) < 0 &&
	    (status = take_list("depth", texts->depth, parse_depth, "a number from 1 to 128", &options->depths)) < 0 &&
	    (status = take_list("workers", texts->workers, parse_workers, "a number from 1 to 16",
	                        &options->workers)) < 0 &&
	    (status = take("zero", texts->zero, parse_percent, "a percentage", &options->zero_percent)) < 0 &&
	    (status = take("holes", texts->holes, parse_percent, "a percentage", &options->holes_percent)) < 0 &&
	    (status = take("layout", texts->layout, parse_layout, "a layout (container, raw)", &options->layout)) < 0)
		status = take("repeat", texts->repeat, parse_repeat, "a number from 1 to 99", &options->repeat);
	options->engines_given = texts->engine != NULL;
	return status;
}

static bool ends_with(const char *text, const char *ending)
{
	size_t length = strlen(text), ending_length = strlen(ending);

	return length > ending_length && strcmp(text + length - ending_length, ending) == 0;
}

static int check_plot(const char *plot)
{
	if (!plot)
		return -1;
	if (!ends_with(plot, ".svg") && !ends_with(plot, ".png"))
		return dioh_tool_usage_error(VERB, "--plot: %s ends neither in .svg nor in .png", plot);
	return -1;
}

static int check(const struct dioh_bench_options *options)
{
	if (options->zero_percent + options->holes_percent > 100)
		return dioh_tool_usage_error(VERB, "--zero and --holes: more than 100 percent together");
	if (options->json && options->csv)
		return dioh_tool_usage_error(VERB, "--json and --csv: one of them only");
	return check_plot(options->plot);
}

int dioh_bench_options_parse(int argc, char **argv, struct dioh_bench_options *ret_options)
{
	struct dioh_bench_options options = { .path = NULL };
	struct texts texts = { .engine = NULL };
	const struct dioh_tool_option table[] = {
		{ "quick", NULL, "all in 10 s: less memory, the defaults, no repeats", &options.quick, NULL, NULL },
		{ "size", "SIZE", "memory to save and load (default 1G; with --quick 256M)", NULL, &texts.size, NULL },
		{ "repeat", "N", "how often each is measured (default 3)", NULL, &texts.repeat, NULL },
		{ "engine", "LIST", "of io_uring, libaio, sync (default: those to be had)", NULL, &texts.engine, NULL },
		{ "block", "LIST", "block sizes (default 256K,1M,4M)", NULL, &texts.block, NULL },
		{ "depth", "LIST", "blocks in flight (default 4,16)", NULL, &texts.depth, NULL },
		{ "workers", "LIST", "data workers (default: as the helper does)", NULL, &texts.workers, NULL },
		{ "zero", "PERCENT", "share of pages that are zero (default 0)", NULL, &texts.zero, NULL },
		{ "holes", "PERCENT", "share of pages that are holes (default 0)", NULL, &texts.holes, NULL },
		{ "layout", "LAYOUT", "container or raw (default container)", NULL, &texts.layout, NULL },
		{ "no-checksum", NULL, "no checksums in the container", &options.no_checksum, NULL, NULL },
		{ "buffered", NULL, "no direct I/O", &options.buffered, NULL, NULL },
		{ "streams", NULL, "also pipes through the drop-in", &options.streams, NULL, NULL },
		{ "destroy", NULL, "PATH may be a block device or a file with content: it is lost", &options.destroy,
		  NULL, NULL },
		{ "json", NULL, "print a JSON document instead of a table", &options.json, NULL, NULL },
		{ "csv", NULL, "print comma-separated values instead of a table", &options.csv, NULL, NULL },
		{ "plot", "FILE", "draw the rates into FILE.svg or FILE.png, by gnuplot", NULL, &options.plot, NULL },
		{ "helper", "PATH", DIOH_TOOL_HELPER_HELP, NULL, &options.helper, NULL },
	};
	const struct dioh_tool_usage usage = {
		VERB, "PATH",
		"Measures how fast memory is saved to PATH and loaded from it. PATH is a directory (a file is made in it, and\n"
		"removed), a file, or a block device. LIST is values with commas between.",
		table, sizeof(table) / sizeof(table[0])
	};
	int status = dioh_tool_parse(&usage, argc, argv, &options.path);

	if (status >= 0)
		return status;
	set_defaults(&options);
	status = take_texts(&texts, &options);
	if (status < 0)
		status = check(&options);
	if (status < 0)
		*ret_options = options;
	return status;
}
