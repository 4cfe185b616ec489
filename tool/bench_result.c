/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* bench_result.c - what the measurements amount to: medians, latencies, the best, and a sentence of advice. Pure. */
#include <stdlib.h>
#include <string.h>

#include "bench.h"

/* ---- figures ------------------------------------------------------------------------------------------------ */

double dioh_bench_mib_per_s(const struct dioh_bench_sample *sample)
{
	return sample->seconds > 0 ? (double)sample->bytes / DIOH_BENCH_MIB / sample->seconds : 0;
}

double dioh_bench_cpu_s_per_gib(const struct dioh_bench_sample *sample)
{
	return sample->cpu_seconds / ((double)sample->bytes / DIOH_BENCH_GIB);
}

double dioh_bench_sync_s(const struct dioh_bench_sample *sample)
{
	return sample->sync_seconds;
}

double dioh_bench_seconds(const struct dioh_bench_sample *sample)
{
	return sample->seconds;
}

double dioh_bench_wait_share(const struct dioh_bench_sample *sample)
{
	return sample->wait_share;
}

/* Negative: not known. */
double dioh_bench_cached_bytes(const struct dioh_bench_sample *sample)
{
	return sample->cached_bytes == DIOH_OFFSET_NONE ? -1 : (double)sample->cached_bytes;
}

double dioh_bench_io_bytes(const struct dioh_bench_sample *sample)
{
	return (double)sample->io_bytes;
}

double dioh_bench_io_count(const struct dioh_bench_sample *sample)
{
	return (double)sample->io_count;
}

double dioh_bench_zero_bytes(const struct dioh_bench_sample *sample)
{
	return (double)sample->zero_bytes;
}

static int compare(const void *a, const void *b)
{
	const double *x = a, *y = b;

	return (*x > *y) - (*x < *y);
}

struct dioh_bench_spread dioh_bench_row_spread(const struct dioh_bench_row *row, dioh_bench_figure *figure)
{
	double values[DIOH_BENCH_REPEAT_MAX];
	uint32_t n = row->count;

	for (uint32_t i = 0; i < n; i++)
		values[i] = figure(&row->samples[i]);
	qsort(values, n, sizeof(values[0]), compare);
	return (struct dioh_bench_spread){ (values[(n - 1) / 2] + values[n / 2]) / 2, values[0], values[n - 1] };
}

/* Bucket i holds [2^i, 2^(i+1)) microseconds, taken as spread evenly in it. */
double dioh_bench_row_latency_us(const struct dioh_bench_row *row, double share)
{
	uint64_t buckets[DIOH_HISTOGRAM_BUCKETS] = { 0 }, total = 0;
	double wanted, below = 0;

	for (uint32_t i = 0; i < row->count; i++)
		for (unsigned b = 0; b < DIOH_HISTOGRAM_BUCKETS; b++) {
			buckets[b] += row->samples[i].histogram[b];
			total += row->samples[i].histogram[b];
		}
	wanted = share * (double)total;
	for (unsigned b = 0; b < DIOH_HISTOGRAM_BUCKETS; b++) {
		double in = (double)buckets[b];

		if (in > 0 && below + in >= wanted)
			return (double)(UINT64_C(1) << b) * (1 + (wanted - below) / in);
		below += in;
	}
	return -1;
}

const char *dioh_bench_payload_name(const struct dioh_bench_row *row)
{
	static const char *const names[] = { "memory", "stream, direct", "stream, buffered" };

	return names[row->payload];
}

/* ---- the best ----------------------------------------------------------------------------------------------- */

static double rate(const struct dioh_bench_row *row)
{
	return dioh_bench_row_spread(row, dioh_bench_mib_per_s).median;
}

const struct dioh_bench_row *dioh_bench_best(const struct dioh_bench_result *result, bool load)
{
	const struct dioh_bench_row *best = NULL;

	for (uint32_t i = 0; i < result->row_count; i++) {
		const struct dioh_bench_row *row = &result->rows[i];

		if (row->count && row->payload == DIOH_BENCH_MEMORY && row->load == load &&
		    (!best || rate(row) > rate(best)))
			best = row;
	}
	return best;
}

bool dioh_bench_same_setup(const struct dioh_bench_setup *a, const struct dioh_bench_setup *b)
{
	return a->engine == b->engine && a->block_bytes == b->block_bytes && a->in_flight == b->in_flight &&
	       a->workers == b->workers;
}

/* The row of the helper's defaults; NULL: they were not measured. */
static const struct dioh_bench_row *default_row(const struct dioh_bench_result *result, bool load)
{
	for (uint32_t i = 0; i < result->row_count; i++) {
		const struct dioh_bench_row *row = &result->rows[i];

		if (row->count && row->payload == DIOH_BENCH_MEMORY && row->load == load &&
		    dioh_bench_same_setup(&row->setup, &result->defaults[load]))
			return row;
	}
	return NULL;
}

/* ---- advice ------------------------------------------------------------------------------------------------- */

/* Less than this between two setups is noise on most disks. */
#define AS_GOOD 0.95
/* From these shares of the time on something limits. */
#define SYNC_LIMITS 0.3
#define CPU_LIMITS 0.8

const char *dioh_bench_not_direct(const struct dioh_bench_options *options, const struct dioh_bench_result *result)
{
	if (result->image.direct)
		return NULL;
	if (options->buffered)
		return "without direct I/O, as asked for";
	if (result->image.notes & DIOH_IMAGE_NOTE_DIRECT_ALIGNMENT)
		return "without direct I/O, which would need more than 4096-byte alignment here, or blocks of at most 4096 bytes";
	if (result->image.notes & DIOH_IMAGE_NOTE_DIRECT_CHECKSUMS)
		return "saves without direct I/O, since btrfs keeps checksums of the file (see chattr +C)";
	return "without direct I/O, which is not to be had here";
}

static const char *limit_of(const struct dioh_bench_row *save)
{
	double seconds = dioh_bench_row_spread(save, dioh_bench_seconds).median;
	double sync_s = dioh_bench_row_spread(save, dioh_bench_sync_s).median;
	double wait_share = dioh_bench_row_spread(save, dioh_bench_wait_share).median;
	double gib = (double)save->samples[0].bytes / DIOH_BENCH_GIB;
	double cpu_s = dioh_bench_row_spread(save, dioh_bench_cpu_s_per_gib).median * gib;

	if (sync_s > SYNC_LIMITS * seconds)
		return "the final sync takes much of a save: a larger memory would tell more of the disk";
	if (cpu_s > CPU_LIMITS * seconds * save->setup.workers)
		return "the helper's CPU time limits a save, so that more workers may help";
	if (wait_share < 0)
		return "what limits a save is not to be known, since libaio blocks without direct I/O";
	if (wait_share < 1 - CPU_LIMITS)
		return "what is done to the memory, more than the disk, limits a save";
	return "the disk is the limit";
}

static void describe(const struct dioh_bench_setup *setup, char *text, size_t size)
{
	bool mib = setup->block_bytes >= DIOH_BENCH_MIB; /* a power of two: nothing stands behind the point */

	snprintf(text, size, "%s, blocks of %u %s, %u in flight, %u worker%s", dioh_bench_engine_name(setup->engine),
	         setup->block_bytes >> (mib ? 20 : 10), mib ? "MiB" : "KiB", setup->in_flight, setup->workers,
	         setup->workers == 1 ? "" : "s");
}

static bool is_as_good(const struct dioh_bench_row *row, const struct dioh_bench_row *best)
{
	return row && rate(row) >= AS_GOOD * rate(best);
}

void dioh_bench_advise(const struct dioh_bench_options *options, const struct dioh_bench_result *result,
                       char advice[DIOH_BENCH_ADVICE_BYTES])
{
	const struct dioh_bench_row *save = dioh_bench_best(result, false), *load = dioh_bench_best(result, true);
	const char *not_direct = dioh_bench_not_direct(options, result);
	char how_save[128], how_load[128];
	bool keep;

	if (!save || !load) {
		snprintf(advice, DIOH_BENCH_ADVICE_BYTES, "Too little was measured to advise anything.");
		return;
	}
	keep = is_as_good(default_row(result, false), save) && is_as_good(default_row(result, true), load);
	if (keep) {
		save = default_row(result, false);
		load = default_row(result, true);
	}
	describe(&save->setup, how_save, sizeof(how_save));
	describe(&load->setup, how_load, sizeof(how_load));
	snprintf(advice, DIOH_BENCH_ADVICE_BYTES, "%s: %.0f MiB/s saved (%s) and %.0f MiB/s loaded (%s), %s; %s.",
	         keep ? "Leave the defaults, which are as good as anything here" : "Best here", rate(save), how_save,
	         rate(load), how_load, not_direct ? not_direct : "by direct I/O", limit_of(save));
}
