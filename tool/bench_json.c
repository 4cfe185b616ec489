/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* bench_json.c - the results as a JSON document. Its keys are documented in docs/tool.md and do not change. */
#include <string.h>

#include "bench.h"

static json_t *known(bool is_known, json_t *value)
{
	if (is_known)
		return value;
	json_decref(value);
	return json_null();
}

static double median(const struct dioh_bench_row *row, dioh_bench_figure *figure)
{
	return dioh_bench_row_spread(row, figure).median;
}

static json_t *json_rates(const struct dioh_bench_row *row)
{
	json_t *array = json_array();

	for (uint32_t i = 0; array && i < row->count; i++)
		if (json_array_append_new(array, json_real(dioh_bench_mib_per_s(&row->samples[i]))) != 0) {
			json_decref(array);
			return NULL;
		}
	return array;
}

/* What was asked for. */
static json_t *json_setup(const struct dioh_bench_row *row)
{
	const struct dioh_bench_setup *setup = &row->setup;
	bool memory = row->payload == DIOH_BENCH_MEMORY;

	return json_pack("{s:s, s:s, s:o, s:o, s:o, s:o, s:o}", "operation", row->load ? "load" : "save", "payload",
	                 memory ? "memory" : "stream", "descriptor",
	                 known(!memory, json_string(row->payload == DIOH_BENCH_STREAM_DIRECT ? "direct" : "buffered")),
	                 "engine", known(memory, json_string(dioh_bench_engine_name(setup->engine))), "block_bytes",
	                 known(memory, json_integer(setup->block_bytes)), "in_flight",
	                 known(memory, json_integer(setup->in_flight)), "workers",
	                 known(memory, json_integer(setup->workers)));
}

/* What came out. */
static json_t *json_figures(const struct dioh_bench_row *row)
{
	struct dioh_bench_spread mib_per_s = dioh_bench_row_spread(row, dioh_bench_mib_per_s);
	double p50_us = dioh_bench_row_latency_us(row, 0.50), p99_us = dioh_bench_row_latency_us(row, 0.99);
	double cached = median(row, dioh_bench_cached_bytes), wait_share = median(row, dioh_bench_wait_share);
	bool memory = row->payload == DIOH_BENCH_MEMORY;

	return json_pack("{s:I, s:f, s:f, s:f, s:o, s:f, s:f, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "repeats",
	                 (json_int_t)row->count, "mib_per_s", mib_per_s.median, "mib_per_s_min", mib_per_s.min,
	                 "mib_per_s_max", mib_per_s.max, "mib_per_s_all", json_rates(row), "seconds",
	                 median(row, dioh_bench_seconds), "cpu_s_per_gib", median(row, dioh_bench_cpu_s_per_gib),
	                 "latency_p50_us", known(p50_us >= 0, json_real(p50_us)), "latency_p99_us",
	                 known(p99_us >= 0, json_real(p99_us)), "page_cache_bytes",
	                 known(!row->load && cached >= 0, json_integer((json_int_t)cached)), "sync_s",
	                 known(!row->load, json_real(median(row, dioh_bench_sync_s))), "wait_share",
	                 known(memory && wait_share >= 0, json_real(wait_share)), "io_bytes",
	                 known(memory, json_integer((json_int_t)median(row, dioh_bench_io_bytes))), "io_count",
	                 known(memory, json_integer((json_int_t)median(row, dioh_bench_io_count))), "zero_bytes",
	                 known(memory && !row->load, json_integer((json_int_t)median(row, dioh_bench_zero_bytes))));
}

static json_t *json_row(const struct dioh_bench_row *row)
{
	json_t *object, *figures;

	if (!row)
		return json_null();
	object = json_setup(row);
	figures = json_figures(row);
	if (!object || !figures || json_object_update(object, figures) != 0) {
		json_decref(object);
		object = NULL;
	}
	json_decref(figures);
	return object;
}

static json_t *json_rows(const struct dioh_bench_result *result)
{
	json_t *array = json_array();

	for (uint32_t i = 0; array && i < result->row_count; i++)
		if (result->rows[i].count && json_array_append_new(array, json_row(&result->rows[i])) != 0) {
			json_decref(array);
			return NULL;
		}
	return array;
}

static json_t *json_missing(const struct dioh_bench_result *result)
{
	json_t *array = json_array();

	for (uint32_t i = 0; array && i < result->missing_count; i++) {
		const struct dioh_bench_missing *missing = &result->missing[i];
		json_t *object = json_pack("{s:s, s:o}", "engine", dioh_bench_engine_name(missing->engine), "text",
		                           dioh_tool_json_text(missing->text, strlen(missing->text)));

		if (json_array_append_new(array, object) != 0) {
			json_decref(array);
			return NULL;
		}
	}
	return array;
}

static json_t *json_circumstances(const struct dioh_bench_options *options, const struct dioh_bench_result *result)
{
	const struct dioh_msg_attach_image_reply *image = &result->image;

	return json_pack("{s:o, s:s, s:s, s:b, s:I, s:I, s:o, s:I, s:I, s:s, s:b, s:b, s:b, s:o}", "path",
	                 dioh_tool_json_text(options->path, strlen(options->path)), "result", "ok", "kind",
	                 image->kind == DIOH_IMAGE_BLOCK_DEVICE ? "device" : "file", "direct", image->direct != 0,
	                 "memory_alignment_bytes", (json_int_t)image->memory_alignment, "offset_alignment_bytes",
	                 (json_int_t)image->offset_alignment, "size_bytes", dioh_tool_json_bytes(result->bytes),
	                 "zero_percent", (json_int_t)options->zero_percent, "holes_percent",
	                 (json_int_t)options->holes_percent, "layout", dioh_tool_layout_name(options->layout),
	                 "checksums", !options->no_checksum && options->layout != DIOH_LAYOUT_RAW, "quick",
	                 options->quick, "stopped_early", result->stopped_early, "engines_missing",
	                 json_missing(result));
}

int dioh_bench_print_json(const struct dioh_bench_options *options, const struct dioh_bench_result *result,
                          struct dioh_error *err)
{
	json_t *root = json_circumstances(options, result);
	char advice[DIOH_BENCH_ADVICE_BYTES];

	dioh_bench_advise(options, result, advice);
	if (json_object_set_new(root, "best", json_pack("{s:o, s:o}", "save", json_row(dioh_bench_best(result, false)),
	                                                "load", json_row(dioh_bench_best(result, true)))) != 0 ||
	    json_object_set_new(root, "advice", json_string(advice)) != 0 ||
	    json_object_set_new(root, "runs", json_rows(result)) != 0) {
		json_decref(root);
		root = NULL;
	}
	return dioh_tool_json_print(root, err);
}

void dioh_bench_print_json_failure(const char *path, const struct dioh_error *err)
{
	struct dioh_error ignored;

	(void)dioh_tool_json_print(json_pack("{s:o, s:s, s:o}", "path", dioh_tool_json_text(path, strlen(path)), "result",
	                                     "failed", "error", dioh_tool_json_error(err)), &ignored);
}
