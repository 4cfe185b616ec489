/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * bench.h - what the files of the verb `bench` share.
 *
 *   bench.c            the flow: target, memory, engines, rounds, report
 *   bench_options.c    the command line
 *   bench_target.c     PATH: what is written to, and removed in the end
 *   bench_memory.c     the memory that is saved and loaded
 *   bench_signal.c     Ctrl-C
 *   bench_run.c        one save or load of memory, by a sealed helper
 *   bench_stream.c     one stream through the drop-in
 *   bench_end.c        waiting for the helper's end
 *   bench_result.c     rows, medians, the best, the advice
 *   bench_report.c     table and CSV;  bench_json.c: JSON;  bench_plot.c: a picture, by gnuplot
 */
#ifndef DIOH_BENCH_H
#define DIOH_BENCH_H

#include <sys/types.h>

#include "tool.h"

#define DIOH_BENCH_MIB (UINT64_C(1) << 20)
#define DIOH_BENCH_GIB (UINT64_C(1) << 30)

/* ---- the command line (bench_options.c) --------------------------------------------------------------------- */

#define DIOH_BENCH_LIST_MAX 16u
#define DIOH_BENCH_REPEAT_MAX 99u

struct dioh_bench_list {
	uint32_t count;
	uint32_t values[DIOH_BENCH_LIST_MAX];
};

struct dioh_bench_options {
	const char *path;
	const char *helper;
	const char *plot; /* NULL: none */
	uint64_t size_bytes;
	uint32_t zero_percent;
	uint32_t holes_percent;
	uint32_t repeat;
	uint32_t layout; /* enum dioh_layout: CONTAINER or RAW */
	bool no_checksum;
	bool buffered;
	bool streams;
	bool quick;
	bool destroy;
	bool json;
	bool csv;
	bool engines_given; /* else those that are to be had */
	struct dioh_bench_list engines; /* enum dioh_engine */
	struct dioh_bench_list blocks;  /* bytes; in this and the next two 0 is the helper's default */
	struct dioh_bench_list depths;
	struct dioh_bench_list workers;
};

/* -1 to go on, else the exit status. */
int dioh_bench_options_parse(int argc, char **argv, struct dioh_bench_options *ret_options);

const char *dioh_bench_engine_name(uint32_t engine);

/* ---- interruption (bench_signal.c) -------------------------------------------------------------------------- */

/* From now on SIGINT, SIGTERM and SIGHUP are remembered, and what waits comes back with an error. */
void dioh_bench_signals_catch(void);
/* The signal that came; 0: none. */
int dioh_bench_interrupted(void);
/* How many came. */
int dioh_bench_interruptions(void);
/* A session's socket, or our end of a pipe, at which an interruption is to end the waiting; -1: none any more. */
void dioh_bench_signals_watch(int fd);
/* Until `fd` (-1: none) is readable, the time (-1: none) is over, or more than the `seen` interruptions have come. */
void dioh_bench_signals_sleep(int fd, int timeout_ms, int seen);
/* Ends this program by the signal that came, as its caller expects. Returns if there was none. */
void dioh_bench_signals_raise(void);

/* ---- the target (bench_target.c) ---------------------------------------------------------------------------- */

struct dioh_bench_target {
	const char *path;
	char *created;  /* the name of a file of our own, to be removed; NULL: it was there before */
	bool is_device;
	bool used;      /* something is about to be written */
	bool abandoned; /* a helper that has not ended may still be writing */
	int buffered_fd;
	int direct_fd; /* -1: not asked for, or not to be had */
};

int dioh_bench_target_open(const struct dioh_bench_options *options, struct dioh_bench_target *ret_target,
                           struct dioh_error *err);

/* Removes what was made; what was there before is left empty. Closed it is in any case. `target` may be half open. */
int dioh_bench_target_close(struct dioh_bench_target *target, struct dioh_error *err);

/* There is room for `needed_bytes` of image data of a memory of `size_bytes`; -ENOSPC says what is needed. */
int dioh_bench_target_check_room(const struct dioh_bench_target *target, uint64_t size_bytes, uint64_t needed_bytes,
                                 struct dioh_error *err);

/* Another open file description of the target, at its beginning. `flags`: access mode, O_DIRECT. -errno. */
int dioh_bench_target_reopen(const struct dioh_bench_target *target, int flags);

int dioh_bench_target_empty(const struct dioh_bench_target *target, struct dioh_error *err);

/* Makes the next reader read the disk. */
int dioh_bench_target_drop_cache(const struct dioh_bench_target *target, struct dioh_error *err);

/* Bytes of the target in the page cache; DIOH_OFFSET_NONE: not to be known. */
uint64_t dioh_bench_target_cached(const struct dioh_bench_target *target);

/* ---- the memory (bench_memory.c) ---------------------------------------------------------------------------- */

struct dioh_bench_memory {
	int fd;           /* -1: none */
	uint64_t bytes;   /* that have been filled, out of --size */
	uint64_t fill_ns; /* that took */
	uint32_t zero_percent;
	uint32_t holes_percent;
};

/* With room for --size; nothing is filled. */
int dioh_bench_memory_create(const struct dioh_bench_options *options, struct dioh_bench_memory *ret_memory,
                             struct dioh_error *err);
/* Fills the first `bytes`, as far as they are not yet. */
int dioh_bench_memory_fill(struct dioh_bench_memory *memory, uint64_t bytes, struct dioh_error *err);
void dioh_bench_memory_free(struct dioh_bench_memory *memory);

/* Bytes of `bytes` of memory that are data. */
uint64_t dioh_bench_memory_data_bytes(const struct dioh_bench_options *options, uint64_t bytes);

/* Writes the zero pages that a load leaves out. */
int dioh_bench_memory_before_save(const struct dioh_bench_memory *memory, struct dioh_error *err);

/* Gives the first `bytes` back to the system: the load brings them again. */
int dioh_bench_memory_before_load(const struct dioh_bench_memory *memory, uint64_t bytes, struct dioh_error *err);

/* The first `bytes` hold what they did before; a page in each unit is looked at. */
int dioh_bench_memory_check(const struct dioh_bench_memory *memory, uint64_t bytes, struct dioh_error *err);

/* Fills `count` bytes, a multiple of 8, with what no disk can compress. */
void dioh_bench_fill(void *bytes, size_t count, uint64_t seed);

/* ---- results (bench_result.c) ------------------------------------------------------------------------------- */

struct dioh_bench_setup {
	uint32_t engine;
	uint32_t block_bytes;
	uint32_t in_flight;
	uint32_t workers;
};

enum dioh_bench_payload { DIOH_BENCH_MEMORY, DIOH_BENCH_STREAM_DIRECT, DIOH_BENCH_STREAM_BUFFERED };

struct dioh_bench_sample { /* one measurement */
	uint64_t bytes;
	double seconds; /* all of it, the sync included */
	double cpu_seconds;
	double sync_seconds;
	double wait_share;     /* of the workers' time they only waited for the image; negative: not known */
	uint64_t cached_bytes; /* save: left in the page cache; DIOH_OFFSET_NONE: not known */
	uint64_t io_bytes;
	uint64_t io_count;
	uint64_t zero_bytes;
	uint64_t histogram[DIOH_HISTOGRAM_BUCKETS];
};

struct dioh_bench_row { /* one line of the report: the same thing measured `count` times */
	enum dioh_bench_payload payload;
	bool load;
	struct dioh_bench_setup setup; /* memory */
	uint32_t count;
	struct dioh_bench_sample *samples; /* room for --repeat */
};

struct dioh_bench_missing { /* an engine that is not to be had, or of no use here */
	uint32_t engine;
	char text[DIOH_TEXT_BYTES];
};

struct dioh_bench_result {
	struct dioh_bench_row *rows;
	uint32_t row_count;
	struct dioh_msg_attach_image_reply image; /* of the first engine */
	struct dioh_bench_setup defaults[2]; /* what the helper does when it is asked for nothing: a save, a load */
	struct dioh_bench_missing missing[DIOH_BENCH_LIST_MAX];
	uint32_t missing_count;
	uint64_t bytes;     /* that each measurement moved */
	bool stopped_early; /* --quick: there was no time for everything */
};

struct dioh_bench_spread {
	double median, min, max;
};

bool dioh_bench_same_setup(const struct dioh_bench_setup *a, const struct dioh_bench_setup *b);

typedef double dioh_bench_figure(const struct dioh_bench_sample *sample);
dioh_bench_figure dioh_bench_mib_per_s, dioh_bench_cpu_s_per_gib, dioh_bench_sync_s, dioh_bench_seconds,
	dioh_bench_wait_share, dioh_bench_cached_bytes, dioh_bench_io_bytes, dioh_bench_io_count,
	dioh_bench_zero_bytes;

/* Over the row's samples, of which there is at least one. */
struct dioh_bench_spread dioh_bench_row_spread(const struct dioh_bench_row *row, dioh_bench_figure *figure);

/* A share's latency in microseconds, out of all samples' histograms; negative: there is none. */
double dioh_bench_row_latency_us(const struct dioh_bench_row *row, double share);

/* The row of memory that was fastest; NULL: none was measured. */
const struct dioh_bench_row *dioh_bench_best(const struct dioh_bench_result *result, bool load);

#define DIOH_BENCH_ADVICE_BYTES 512u

void dioh_bench_advise(const struct dioh_bench_options *options, const struct dioh_bench_result *result,
                       char advice[DIOH_BENCH_ADVICE_BYTES]);

/* Why page I/O is not direct; NULL: it is. */
const char *dioh_bench_not_direct(const struct dioh_bench_options *options, const struct dioh_bench_result *result);

const char *dioh_bench_payload_name(const struct dioh_bench_row *row);

/* ---- measuring ---------------------------------------------------------------------------------------------- */

struct dioh_bench_plot {
	const char *path;
	char *made; /* the name that its file has for now; NULL: there is none */
	bool is_drawn; /* it has its own name */
	int fd;
};

struct dioh_bench {
	const struct dioh_bench_options *options;
	struct dioh_bench_target target;
	struct dioh_bench_memory memory;
	struct dioh_bench_plot plot;
	struct dioh_bench_result result;
	uint64_t bytes; /* that a measurement moves */
	struct dioh_tool_progress *progress;
	uint64_t done_bytes; /* by the measurements before this one */
	uint64_t begun_ns;
	uint64_t pair_ns; /* what the last save and load took, with everything around them */
};

/* Whether an engine is to be had, and what a save or load does with it by default (bench_run.c). */
int dioh_bench_probe(struct dioh_bench *bench, uint32_t engine, bool load,
                     struct dioh_msg_attach_image_reply *ret_image, struct dioh_error *err);

/* It submits no I/O in the background, so that nothing tells waiting for the disk from work (bench_run.c). */
bool dioh_bench_engine_blocks(const struct dioh_msg_attach_image_reply *image);

/* One save or load of memory (bench_run.c). */
int dioh_bench_measure_memory(struct dioh_bench *bench, const struct dioh_bench_setup *setup, bool load,
                              struct dioh_bench_sample *ret_sample, struct dioh_error *err);

/* One stream through the drop-in (bench_stream.c). */
int dioh_bench_measure_stream(struct dioh_bench *bench, bool direct, bool load, struct dioh_bench_sample *ret_sample,
                              struct dioh_error *err);

/*
 * Waits for a child's end (bench_end.c). `told`: it has been told to end, and is given up after DIOH_TOOL_END_TIMEOUT_MS
 * (-ETIMEDOUT), which stderr is told; else it is once this program is interrupted. A second signal ends that at once.
 */
int dioh_bench_end(struct dioh_bench *bench, pid_t pid, bool told, int *ret_status, struct dioh_error *err);

/* CPU time of all children that have been waited for, in seconds. */
double dioh_bench_children_cpu_s(void);

/* ---- reports ------------------------------------------------------------------------------------------------ */

void dioh_bench_print_table(const struct dioh_bench_options *options, const struct dioh_bench_result *result);
void dioh_bench_print_csv(const struct dioh_bench_result *result);
int dioh_bench_print_json(const struct dioh_bench_options *options, const struct dioh_bench_result *result,
                          struct dioh_error *err);
void dioh_bench_print_json_failure(const char *path, const struct dioh_error *err);

/* Before anything is measured: gnuplot is there to draw, and there is a file to draw into. */
int dioh_bench_plot_create(const char *path, struct dioh_bench_plot *ret_plot, struct dioh_error *err);
/* What stood at the path before is untouched unless this succeeds. */
int dioh_bench_plot_draw(struct dioh_bench_plot *plot, const struct dioh_bench_options *options,
                         const struct dioh_bench_result *result, struct dioh_error *err);
/* Removes what is no picture. */
void dioh_bench_plot_free(struct dioh_bench_plot *plot);

#endif
