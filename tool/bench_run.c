/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * bench_run.c - one measurement: memory saved or loaded by a sealed helper of its own, as any manager does it. The clock
 * runs from CREATE_IMAGE (OPEN_IMAGE) until all is durable (loaded); spawning and sealing are outside of it, but inside of
 * the CPU time. Called by bench.c.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/resource.h>

#include "bench.h"

#define FEATURES (DIOH_FEATURE_LAYOUT_RAW | DIOH_FEATURE_LAYOUT_CONTAINER | DIOH_FEATURE_CHECKSUM)
#define REGION_NAME "ram"

double dioh_bench_children_cpu_s(void)
{
	struct rusage usage;

	getrusage(RUSAGE_CHILDREN, &usage);
	return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
	       (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

/* ---- a helper, up to the seal ------------------------------------------------------------------------------- */

static int attach(struct dioh_session *session, const struct dioh_bench *bench, const struct dioh_bench_setup *setup,
                  bool load, struct dioh_msg_attach_image_reply *ret_image, struct dioh_error *err)
{
	struct dioh_image_options image = DIOH_IMAGE_OPTIONS_INIT;
	struct dioh_memory_options memory = DIOH_MEMORY_OPTIONS_INIT;
	struct dioh_msg_attach_memory_reply memory_info;
	struct dioh_msg_seal_reply seal;
	int r;

	image.buffered_fd = bench->target.buffered_fd;
	image.direct_fd = bench->target.direct_fd;
	image.direction = load ? DIOH_DIRECTION_LOAD : DIOH_DIRECTION_SAVE;
	image.direct = bench->options->buffered ? DIOH_DIRECT_NEVER : DIOH_DIRECT_PREFER;
	image.engine = setup->engine;
	image.block_bytes = setup->block_bytes;
	image.in_flight = setup->in_flight;
	image.workers = setup->workers;
	r = dioh_attach_image(session, &image, ret_image, err);
	if (r == 0 && bench->memory.fd >= 0) {
		memory.fd = bench->memory.fd;
		r = dioh_attach_memory(session, 0, &memory, &memory_info, err);
	}
	if (r != 0)
		return r;
	return dioh_seal(session, DIOH_TOOL_LAYERS, &seal, err);
}

/* Also after a failure the helper is waited for: it may still be writing to the target. */
static int end(struct dioh_bench *bench, struct dioh_session *session, int r, struct dioh_error *err)
{
	const pid_t pid = dioh_session_pid(session);
	struct dioh_error end_err;
	int status = 0, end_r;

	dioh_bench_signals_watch(-1);
	end_r = dioh_close(session, 0, &status);
	if (end_r == -ETIMEDOUT)
		end_r = dioh_bench_end(bench, pid, true, &status, &end_err);
	else if (end_r != 0)
		dioh_tool_error_set(&end_err, -end_r, "waiting for the helper failed: %s", strerror(-end_r));
	if (end_r == 0)
		end_r = dioh_tool_check_status(status, &end_err);
	if (r == 0 && end_r != 0) {
		*err = end_err;
		r = end_r;
	}
	return r;
}

int dioh_bench_probe(struct dioh_bench *bench, uint32_t engine, bool load,
                     struct dioh_msg_attach_image_reply *ret_image, struct dioh_error *err)
{
	const struct dioh_bench_setup setup = { .engine = engine };
	struct dioh_session *session;
	int r = dioh_tool_spawn(bench->options->helper, FEATURES, &session, err);

	if (r != 0)
		return r;
	dioh_bench_signals_watch(dioh_session_fd(session));
	return end(bench, session, attach(session, bench, &setup, load, ret_image, err), err);
}

/* ---- waiting ------------------------------------------------------------------------------------------------ */

static void warn_stuck(const struct dioh_msg_stuck *stuck)
{
	fprintf(stderr, "\n" DIOH_TOOL_NAME ": the disk does not answer: %" PRIu32 " I/Os wait, the oldest for %" PRIu64
	        " s\n", stuck->in_flight, stuck->oldest_ns / UINT64_C(1000000000));
}

static void draw(const struct dioh_bench *bench, const struct dioh_event *event)
{
	uint64_t done = bench->done_bytes;

	for (uint32_t i = 0; i < event->progress_count; i++)
		done += event->progress[i].done_bytes;
	dioh_tool_progress_draw(bench->progress, done);
}

static int wait_for(const struct dioh_bench *bench, struct dioh_session *session, uint32_t transfer,
                    struct dioh_msg_complete *ret_complete, struct dioh_error *err)
{
	for (;;) {
		struct dioh_event event;
		int r = dioh_poll(session, &event, -1, err);

		if (r < 0 && (r != -EINTR || dioh_bench_interrupted()))
			return r;
		if (r <= 0)
			continue;
		if (event.type == DIOH_EVENT_PROGRESS)
			draw(bench, &event);
		if (event.type == DIOH_EVENT_STUCK)
			warn_stuck(&event.stuck);
		if (event.type != DIOH_EVENT_COMPLETE || event.transfer != transfer)
			continue;
		if (event.error.code == 0) {
			*ret_complete = event.complete;
			return 0;
		}
		*err = event.error;
		return -event.error.code;
	}
}

/* ---- save and load ------------------------------------------------------------------------------------------ */

static struct dioh_msg_entry region_of(const struct dioh_bench *bench)
{
	return (struct dioh_msg_entry){ .kind = DIOH_ENTRY_REGION, .bytes = bench->bytes, .name = REGION_NAME };
}

static struct dioh_msg_memory_transfer transfer_of(const struct dioh_bench *bench, uint32_t flags)
{
	if (bench->options->no_checksum || bench->options->layout == DIOH_LAYOUT_RAW)
		flags |= DIOH_TRANSFER_NO_CHECKSUM;
	return (struct dioh_msg_memory_transfer){ .length = bench->bytes, .flags = flags };
}

static int save(const struct dioh_bench *bench, struct dioh_session *session, struct dioh_msg_complete *ret_moved,
                struct dioh_msg_complete *ret_finished, struct dioh_error *err)
{
	const struct dioh_msg_entry region = region_of(bench);
	const struct dioh_create_options create = {
		.layout = bench->options->layout, .entry_count = 1, .entries = &region
	};
	const struct dioh_msg_memory_transfer what = transfer_of(bench, 0);
	uint32_t transfer;
	int r = dioh_create_image(session, &create, NULL, err);

	if (r == 0)
		r = dioh_save_memory(session, &what, &transfer, err);
	if (r == 0)
		r = wait_for(bench, session, transfer, ret_moved, err);
	if (r == 0)
		r = dioh_finish(session, DIOH_FINISH_DURABLE, 0, NULL, 0, &transfer, err);
	return r == 0 ? wait_for(bench, session, transfer, ret_finished, err) : r;
}

static int load(const struct dioh_bench *bench, struct dioh_session *session, struct dioh_msg_complete *ret_moved,
                struct dioh_error *err)
{
	const bool raw = bench->options->layout == DIOH_LAYOUT_RAW;
	const struct dioh_msg_entry region = region_of(bench);
	const struct dioh_open_options options = {
		.layout = bench->options->layout, .entry_count = raw, .entries = raw ? &region : NULL
	};
	const struct dioh_msg_memory_transfer what = transfer_of(bench, DIOH_TRANSFER_FRESH);
	struct dioh_msg_open_image_reply info;
	uint32_t transfer;
	int r = dioh_open_image(session, &options, &info, err);

	if (r == 0)
		r = dioh_load_memory(session, &what, &transfer, err);
	return r == 0 ? wait_for(bench, session, transfer, ret_moved, err) : r;
}

static int prepare(const struct dioh_bench *bench, bool load, struct dioh_error *err)
{
	int r;

	if (load) {
		r = dioh_bench_target_drop_cache(&bench->target, err);
		return r == 0 ? dioh_bench_memory_before_load(&bench->memory, bench->bytes, err) : r;
	}
	r = dioh_bench_target_empty(&bench->target, err);
	return r == 0 ? dioh_bench_memory_before_save(&bench->memory, err) : r;
}

bool dioh_bench_engine_blocks(const struct dioh_msg_attach_image_reply *image)
{
	return image->engine == DIOH_ENGINE_LIBAIO && !image->direct;
}

static double wait_share(const struct dioh_msg_attach_image_reply *image, const struct dioh_msg_complete *moved)
{
	const double worked_ns = (double)moved->elapsed_ns * image->workers; /* io_ns is a sum over them */

	if (dioh_bench_engine_blocks(image))
		return -1;
	return worked_ns > 0 ? (double)moved->io_ns / worked_ns : 0;
}

static struct dioh_bench_sample make_sample(const struct dioh_bench *bench,
                                            const struct dioh_msg_attach_image_reply *image,
                                            const struct dioh_msg_complete *moved,
                                            const struct dioh_msg_complete *finished, uint64_t elapsed_ns)
{
	struct dioh_bench_sample sample = {
		.bytes = bench->bytes,
		.seconds = (double)elapsed_ns / 1e9,
		.sync_seconds = (double)finished->sync_ns / 1e9,
		.wait_share = wait_share(image, moved),
		.cached_bytes = DIOH_OFFSET_NONE,
		.io_bytes = moved->io_bytes,
		.io_count = moved->io_count,
		.zero_bytes = moved->zero_bytes,
	};

	memcpy(sample.histogram, moved->histogram, sizeof(sample.histogram));
	return sample;
}

static int run_session(struct dioh_bench *bench, const struct dioh_bench_setup *setup, bool is_load,
                       struct dioh_bench_sample *ret_sample, struct dioh_error *err)
{
	struct dioh_msg_complete moved, finished = { .sync_ns = 0 };
	struct dioh_msg_attach_image_reply image;
	struct dioh_session *session;
	uint64_t begun_ns;
	int r = dioh_tool_spawn(bench->options->helper, FEATURES, &session, err);

	if (r != 0)
		return r;
	dioh_bench_signals_watch(dioh_session_fd(session));
	r = attach(session, bench, setup, is_load, &image, err);
	begun_ns = dioh_tool_now_ns();
	if (r == 0 && is_load)
		r = load(bench, session, &moved, err);
	else if (r == 0)
		r = save(bench, session, &moved, &finished, err);
	if (r == 0)
		*ret_sample = make_sample(bench, &image, &moved, &finished, dioh_tool_now_ns() - begun_ns);
	return end(bench, session, r, err);
}

int dioh_bench_measure_memory(struct dioh_bench *bench, const struct dioh_bench_setup *setup, bool is_load,
                              struct dioh_bench_sample *ret_sample, struct dioh_error *err)
{
	struct dioh_bench_sample sample;
	double cpu_before_s;
	int r = prepare(bench, is_load, err);

	if (r != 0)
		return r;
	cpu_before_s = dioh_bench_children_cpu_s();
	r = run_session(bench, setup, is_load, &sample, err);
	if (r == 0 && is_load)
		r = dioh_bench_memory_check(&bench->memory, bench->bytes, err);
	if (r != 0)
		return r;
	sample.cpu_seconds = dioh_bench_children_cpu_s() - cpu_before_s;
	if (!is_load)
		sample.cached_bytes = dioh_bench_target_cached(&bench->target);
	*ret_sample = sample;
	return 0;
}
