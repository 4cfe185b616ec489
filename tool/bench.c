/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * bench.c - the verb `bench`: measures a disk by saving memory to it and loading it back, as a manager does, with a
 * sealed helper for each measurement. All combinations are measured in turn, round by round: what changes in the
 * meantime, on the disk or beside it, then meets all of them.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "align.h"
#include "bench.h"

/* --quick: no measurement begins that would, after the last one's time, end later than this; there is more to do. */
#define QUICK_NS UINT64_C(7000000000)
/* --quick tries the disk with this much, and then takes as much as such a disk moves in so many seconds, all in all. */
#define QUICK_TRIAL_BYTES (UINT64_C(32) << 20)
#define QUICK_SECONDS 4.0

/* ---- which engines ------------------------------------------------------------------------------------------ */

static int take_missing(struct dioh_bench *bench, uint32_t engine, const struct dioh_error *why, struct dioh_error *err)
{
	struct dioh_bench_missing *missing;

	if (bench->options->engines_given || why->code != EOPNOTSUPP) {
		*err = *why;
		return -why->code;
	}
	missing = &bench->result.missing[bench->result.missing_count++];
	missing->engine = engine;
	snprintf(missing->text, sizeof(missing->text), "%s", why->text);
	return 0;
}

/* Those asked for that are to be had. Asked for by name, one that is not is an error. */
static int find_engines(struct dioh_bench *bench, struct dioh_bench_list *ret_engines, struct dioh_error *err)
{
	const struct dioh_bench_list *asked = &bench->options->engines;
	struct dioh_bench_list engines = { 0, { 0 } };

	for (uint32_t i = 0; i < asked->count; i++) {
		struct dioh_msg_attach_image_reply image;
		struct dioh_error why;
		int r = dioh_bench_probe(bench, asked->values[i], false, &image, &why);

		if (r == 0 && image.engine != asked->values[i])
			r = dioh_tool_error_set(&why, EOPNOTSUPP, "engine %s does not serve this file: %s would run instead",
			                        dioh_bench_engine_name(asked->values[i]),
			                        dioh_bench_engine_name(image.engine));
		else if (r == 0 && !bench->options->engines_given && dioh_bench_engine_blocks(&image))
			r = dioh_tool_error_set(&why, EOPNOTSUPP, "engine libaio is for direct I/O, without which it waits at each "
			                        "submission (--engine=libaio measures it)");
		if (r == 0 && engines.count == 0)
			bench->result.image = image;
		if (r == 0)
			engines.values[engines.count++] = asked->values[i];
		else if (take_missing(bench, asked->values[i], &why, err) != 0)
			return -err->code;
	}
	if (engines.count == 0)
		return dioh_tool_error_set(err, EOPNOTSUPP, "no engine is to be had: %.160s", bench->result.missing[0].text);
	*ret_engines = engines;
	return 0;
}

/* What a manager gets that asks for nothing. */
static int find_defaults(struct dioh_bench *bench, struct dioh_error *err)
{
	for (unsigned load = 0; load < 2; load++) {
		struct dioh_msg_attach_image_reply image;
		int r = dioh_bench_probe(bench, DIOH_ENGINE_ANY, load, &image, err);

		if (r != 0)
			return r;
		bench->result.defaults[load] = (struct dioh_bench_setup){ image.engine, image.block_bytes, image.in_flight,
			                                                  image.workers };
	}
	return 0;
}

/* ---- which rows --------------------------------------------------------------------------------------------- */

static struct dioh_bench_setup with_defaults(struct dioh_bench_setup setup, const struct dioh_bench_setup *defaults)
{
	setup.block_bytes = setup.block_bytes ? setup.block_bytes : defaults->block_bytes;
	setup.in_flight = setup.in_flight ? setup.in_flight : defaults->in_flight;
	setup.workers = setup.workers ? setup.workers : defaults->workers;
	return setup;
}

static int add_row(struct dioh_bench *bench, enum dioh_bench_payload payload, bool load,
                   const struct dioh_bench_setup *setup, struct dioh_error *err)
{
	struct dioh_bench_result *result = &bench->result;
	struct dioh_bench_sample *samples = calloc(bench->options->repeat, sizeof(*samples));
	struct dioh_bench_row *rows = realloc(result->rows, (result->row_count + 1) * sizeof(*rows));

	if (rows)
		result->rows = rows;
	if (!rows || !samples) {
		free(samples);
		return dioh_tool_error_set(err, ENOMEM, "there is no memory for so many combinations");
	}
	rows[result->row_count++] = (struct dioh_bench_row){
		payload, load, with_defaults(*setup, &result->defaults[load]), 0, samples
	};
	return 0;
}

static int add_pair(struct dioh_bench *bench, enum dioh_bench_payload payload, const struct dioh_bench_setup *setup,
                    struct dioh_error *err)
{
	int r = add_row(bench, payload, false, setup, err);

	return r == 0 ? add_row(bench, payload, true, setup, err) : r;
}

/* The number of a combination names one value of each list. */
static struct dioh_bench_setup setup_at(const struct dioh_bench_options *options, const struct dioh_bench_list *engines,
                                        uint32_t number)
{
	struct dioh_bench_setup setup;

	setup.workers = options->workers.values[number % options->workers.count];
	number /= options->workers.count;
	setup.in_flight = options->depths.values[number % options->depths.count];
	number /= options->depths.count;
	setup.block_bytes = options->blocks.values[number % options->blocks.count];
	number /= options->blocks.count;
	setup.engine = engines->values[number];
	return setup;
}

static int add_rows(struct dioh_bench *bench, const struct dioh_bench_list *engines, struct dioh_error *err)
{
	const struct dioh_bench_options *options = bench->options;
	uint32_t combinations = engines->count * options->blocks.count * options->depths.count * options->workers.count;
	const struct dioh_bench_setup none = { 0, 0, 0, 0 };
	int r = 0;

	for (uint32_t i = 0; r == 0 && i < combinations; i++) {
		const struct dioh_bench_setup setup = setup_at(options, engines, i);

		r = add_pair(bench, DIOH_BENCH_MEMORY, &setup, err);
	}
	if (r == 0 && options->streams && bench->target.direct_fd >= 0)
		r = add_pair(bench, DIOH_BENCH_STREAM_DIRECT, &none, err);
	if (r == 0 && options->streams)
		r = add_pair(bench, DIOH_BENCH_STREAM_BUFFERED, &none, err);
	return r;
}

/* ---- measuring ---------------------------------------------------------------------------------------------- */

static int measure(struct dioh_bench *bench, const struct dioh_bench_row *row, struct dioh_bench_sample *ret_sample,
                   struct dioh_error *err)
{
	int r;

	if (row->payload == DIOH_BENCH_MEMORY)
		r = dioh_bench_measure_memory(bench, &row->setup, row->load, ret_sample, err);
	else
		r = dioh_bench_measure_stream(bench, row->payload == DIOH_BENCH_STREAM_DIRECT, row->load, ret_sample, err);
	if (r == 0)
		bench->done_bytes += bench->bytes;
	return r;
}

/* As much as the time is enough for, going by the trial: filling it, and as many measurements as there are to be. */
static uint64_t quick_bytes(const struct dioh_bench *bench, double slower_s)
{
	const double measurements = (double)bench->result.row_count * bench->options->repeat;
	const double trial_s = (double)bench->memory.fill_ns / 1e9 + slower_s * measurements;
	const double times = trial_s > 0 ? QUICK_SECONDS / trial_s : 1;
	const uint64_t trial_mib = bench->bytes / DIOH_BENCH_MIB;

	return times > 1 ? (uint64_t)(times * (double)trial_mib) * DIOH_BENCH_MIB : bench->bytes;
}

/*
 * The first save and load are not counted: the first file on a disk, and memory that the host has yet to give to a
 * virtual machine, are slower than what follows.
 */
static int warm_up(struct dioh_bench *bench, struct dioh_error *err)
{
	struct dioh_bench_sample save, load;
	uint64_t full = bench->bytes;
	int r;

	if (bench->options->quick)
		bench->bytes = dioh_min(full, QUICK_TRIAL_BYTES);
	r = dioh_bench_memory_fill(&bench->memory, bench->bytes, err);
	if (r == 0)
		r = measure(bench, &bench->result.rows[0], &save, err);
	if (r == 0)
		r = measure(bench, &bench->result.rows[1], &load, err);
	if (r != 0 || !bench->options->quick)
		return r;
	bench->bytes = dioh_min(full, quick_bytes(bench, save.seconds > load.seconds ? save.seconds : load.seconds));
	return dioh_bench_memory_fill(&bench->memory, bench->bytes, err);
}

/* With --quick there may be no time for a further measurement. The first save and load are made in any case. */
static bool is_late(const struct dioh_bench *bench)
{
	return bench->options->quick && bench->result.rows[0].count > 0 &&
	       dioh_tool_now_ns() - bench->begun_ns + bench->pair_ns > QUICK_NS;
}

/* A load without the save before it would find another's image: rows come in pairs. */
static int run_round(struct dioh_bench *bench, struct dioh_error *err)
{
	struct dioh_bench_result *result = &bench->result;

	for (uint32_t i = 0; i < result->row_count; i += 2) {
		uint64_t pair_begun_ns = dioh_tool_now_ns();

		if (is_late(bench)) {
			result->stopped_early = true;
			return 0;
		}
		for (struct dioh_bench_row *row = &result->rows[i]; row <= &result->rows[i + 1]; row++) {
			int r = measure(bench, row, &row->samples[row->count], err);

			if (r != 0)
				return r;
			row->count++;
		}
		bench->pair_ns = dioh_tool_now_ns() - pair_begun_ns;
	}
	return 0;
}

static int run_all(struct dioh_bench *bench, struct dioh_error *err)
{
	const struct dioh_bench_options *options = bench->options;
	struct dioh_tool_progress progress;
	uint64_t rows = (uint64_t)options->repeat * bench->result.row_count;
	int r;

	bench->progress = &progress; /* cppcheck-suppress autoVariables ; used below here only, and taken away again */
	bench->target.used = true;
	dioh_tool_progress_start(&progress, isatty(STDERR_FILENO), (rows + 2) * bench->bytes);
	r = warm_up(bench, err);
	bench->result.bytes = bench->bytes;
	if (options->quick) /* the trial has shown how much it will be */
		progress.total_bytes = rows * bench->bytes + bench->done_bytes;
	for (uint32_t i = 0; r == 0 && !bench->result.stopped_early && i < options->repeat; i++)
		r = run_round(bench, err);
	dioh_tool_progress_end(&progress);
	bench->progress = NULL;
	return r;
}

/* ---- the verb ----------------------------------------------------------------------------------------------- */

static int prepare(struct dioh_bench *bench, struct dioh_error *err)
{
	const struct dioh_bench_options *options = bench->options;
	uint64_t data = dioh_bench_memory_data_bytes(options, options->size_bytes);
	struct dioh_bench_list engines = { 0, { 0 } };
	int r = dioh_bench_target_open(options, &bench->target, err);

	if (r == 0)
		r = dioh_bench_target_check_room(&bench->target, options->size_bytes,
		                                 options->streams ? options->size_bytes : data, err);
	if (r == 0)
		r = find_engines(bench, &engines, err);
	if (r == 0)
		r = find_defaults(bench, err);
	if (r == 0)
		r = add_rows(bench, &engines, err);
	if (r == 0)
		r = dioh_bench_memory_create(options, &bench->memory, err);
	bench->bytes = options->size_bytes;
	return r;
}

static int report(const struct dioh_bench *bench, struct dioh_error *err)
{
	if (bench->options->json)
		return dioh_bench_print_json(bench->options, &bench->result, err);
	if (bench->options->csv)
		dioh_bench_print_csv(&bench->result);
	else
		dioh_bench_print_table(bench->options, &bench->result);
	return 0;
}

static void free_all(struct dioh_bench *bench)
{
	for (uint32_t i = 0; i < bench->result.row_count; i++)
		free(bench->result.rows[i].samples);
	free(bench->result.rows);
	dioh_bench_memory_free(&bench->memory);
	dioh_bench_plot_free(&bench->plot);
}

static void complain(const struct dioh_bench_options *options, const struct dioh_error *err)
{
	fprintf(stderr, DIOH_TOOL_NAME ": %s: ", options->path);
	dioh_tool_print_text(stderr, "", err->text, strnlen(err->text, sizeof(err->text)));
}

/* There is one document on standard output, whatever fails behind it. */
static int bench_all(const struct dioh_bench_options *options)
{
	struct dioh_bench bench = {
		.options = options, .target = { .buffered_fd = -1, .direct_fd = -1 }, .memory = { .fd = -1 },
		.begun_ns = dioh_tool_now_ns()
	};
	struct dioh_error err;
	int r = options->plot ? dioh_bench_plot_create(options->plot, &bench.plot, &err) : 0;

	if (r == 0)
		r = prepare(&bench, &err);
	if (r == 0)
		r = run_all(&bench, &err);
	if (r == 0)
		r = report(&bench, &err);
	if (r != 0 && options->json && !dioh_bench_interrupted())
		dioh_bench_print_json_failure(options->path, &err);
	if (r == 0 && options->plot)
		r = dioh_bench_plot_draw(&bench.plot, options, &bench.result, &err);
	if (r != 0 && !dioh_bench_interrupted())
		complain(options, &err);
	free_all(&bench);
	if (dioh_bench_target_close(&bench.target, &err) != 0) {
		complain(options, &err);
		return DIOH_TOOL_FAILED;
	}
	return r == 0 ? DIOH_TOOL_OK : DIOH_TOOL_FAILED;
}

static int run(int argc, char **argv)
{
	struct dioh_bench_options options;
	int status = dioh_bench_options_parse(argc, argv, &options);

	if (status >= 0)
		return status;
	dioh_bench_signals_catch();
	status = bench_all(&options);
	if (dioh_bench_interrupted()) {
		fprintf(stderr, DIOH_TOOL_NAME ": interrupted\n");
		dioh_bench_signals_raise();
	}
	return status;
}

const struct dioh_tool_verb dioh_tool_bench = { "bench", "how fast a disk saves and loads", run };
