/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* bench_report.c - the results for people, as a table, and for spreadsheets, as CSV. docs/tool.md says what they mean. */
#include <inttypes.h>
#include <string.h>

#include "bench.h"

/* ---- the table ---------------------------------------------------------------------------------------------- */

static void print_rate(const struct dioh_bench_row *row)
{
	struct dioh_bench_spread spread = dioh_bench_row_spread(row, dioh_bench_mib_per_s);
	char range[32];

	snprintf(range, sizeof(range), "%.0f-%.0f", spread.min, spread.max);
	printf("  %7.0f  %13s", spread.median, row->count > 1 ? range : "-");
}

static void print_latency(const struct dioh_bench_row *row, double share)
{
	double us = dioh_bench_row_latency_us(row, share);

	if (us < 0)
		printf("  %8s", "-");
	else
		printf("  %8.2f", us / 1000);
}

static void print_setup(const struct dioh_bench_row *row)
{
	if (row->payload != DIOH_BENCH_MEMORY)
		printf("%-8s  %6s  %5s  %7s", "drop-in", "-", "-", "-");
	else
		printf("%-8s  %5uK  %5u  %7u", dioh_bench_engine_name(row->setup.engine), row->setup.block_bytes / 1024,
		       row->setup.in_flight, row->setup.workers);
}

static void print_after_save(const struct dioh_bench_row *row)
{
	double cached = dioh_bench_row_spread(row, dioh_bench_cached_bytes).median;

	if (row->load || cached < 0)
		printf("  %6s", "-");
	else
		printf("  %6.1f", cached / DIOH_BENCH_MIB);
	if (row->load)
		printf("  %6s\n", "-");
	else
		printf("  %6.3f\n", dioh_bench_row_spread(row, dioh_bench_sync_s).median);
}

static void print_row(const struct dioh_bench_row *row)
{
	printf("%-4s  %-16s  ", row->load ? "load" : "save", dioh_bench_payload_name(row));
	print_setup(row);
	print_rate(row);
	printf("  %7.3f", dioh_bench_row_spread(row, dioh_bench_cpu_s_per_gib).median);
	print_latency(row, 0.50);
	print_latency(row, 0.99);
	print_after_save(row);
}

static void print_head(const struct dioh_bench_options *options, const struct dioh_bench_result *result)
{
	const char *not_direct = dioh_bench_not_direct(options, result);
	char size[DIOH_TOOL_SIZE_BYTES];

	dioh_tool_print_text(stdout, "", options->path, strlen(options->path));
	dioh_tool_format_size(result->bytes, size);
	printf("%s of memory, %u %% zero pages, %u %% holes; %s, %s; %s; %u round%s\n", size, options->zero_percent,
	       options->holes_percent, dioh_tool_layout_name(options->layout),
	       options->no_checksum || options->layout == DIOH_LAYOUT_RAW ? "no checksums" : "checksums",
	       not_direct ? not_direct : "direct I/O", options->repeat, options->repeat == 1 ? "" : "s");
	for (uint32_t i = 0; i < result->missing_count; i++)
		printf("left out: %s\n", result->missing[i].text);
	if (result->stopped_early)
		puts("There was no time for everything.");
	puts("");
}

void dioh_bench_print_table(const struct dioh_bench_options *options, const struct dioh_bench_result *result)
{
	char advice[DIOH_BENCH_ADVICE_BYTES];

	print_head(options, result);
	printf("%-4s  %-16s  %-8s  %6s  %5s  %7s  %7s  %13s  %7s  %8s  %8s  %6s  %6s\n", "", "", "engine", "block",
	       "depth", "workers", "MiB/s", "min-max", "CPU", "p50", "p99", "cached", "sync");
	printf("%-4s  %-16s  %-8s  %6s  %5s  %7s  %7s  %13s  %7s  %8s  %8s  %6s  %6s\n", "", "", "", "", "", "", "", "",
	       "s/GiB", "ms", "ms", "MiB", "s");
	for (uint32_t i = 0; i < result->row_count; i++)
		if (result->rows[i].count)
			print_row(&result->rows[i]);
	dioh_bench_advise(options, result, advice);
	printf("\n%s\n", advice);
}

/* ---- CSV ---------------------------------------------------------------------------------------------------- */

static void print_csv_row(const struct dioh_bench_row *row)
{
	struct dioh_bench_spread mib_per_s = dioh_bench_row_spread(row, dioh_bench_mib_per_s);
	double p50_us = dioh_bench_row_latency_us(row, 0.50), p99_us = dioh_bench_row_latency_us(row, 0.99);
	double cached = dioh_bench_row_spread(row, dioh_bench_cached_bytes).median;

	printf("%s,", row->load ? "load" : "save");
	if (row->payload == DIOH_BENCH_MEMORY)
		printf("memory,,%s,%" PRIu32 ",%" PRIu32 ",%" PRIu32, dioh_bench_engine_name(row->setup.engine),
		       row->setup.block_bytes, row->setup.in_flight, row->setup.workers);
	else
		printf("stream,%s,,,,", row->payload == DIOH_BENCH_STREAM_DIRECT ? "direct" : "buffered");
	printf(",%" PRIu32 ",%.1f,%.1f,%.1f,%.4f,", row->count, mib_per_s.median, mib_per_s.min, mib_per_s.max,
	       dioh_bench_row_spread(row, dioh_bench_cpu_s_per_gib).median);
	if (p50_us >= 0)
		printf("%.1f,%.1f,", p50_us, p99_us);
	else
		printf(",,");
	if (!row->load && cached >= 0)
		printf("%.0f", cached);
	printf(",");
	if (!row->load)
		printf("%.4f", dioh_bench_row_spread(row, dioh_bench_sync_s).median);
	puts("");
}

void dioh_bench_print_csv(const struct dioh_bench_result *result)
{
	puts("operation,payload,descriptor,engine,block_bytes,in_flight,workers,repeats,mib_per_s,mib_per_s_min,"
	     "mib_per_s_max,cpu_s_per_gib,latency_p50_us,latency_p99_us,page_cache_bytes,sync_s");
	for (uint32_t i = 0; i < result->row_count; i++)
		if (result->rows[i].count)
			print_csv_row(&result->rows[i]);
}
