/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * convert_join.c - two sealed helpers: one loads IN, one saves OUT. Streams go through pipes that the tool does not touch;
 * regions that have a place of their own in both go through windows of one memfd, several at once:
 *
 *      IN --LOAD_STREAM--> pipe ---------> SAVE_STREAM--> OUT
 *      IN --LOAD_MEMORY--> windows of a memfd --SAVE_MEMORY--> OUT
 *
 * A stream's setup may be what OUT's layout depends on, so the loads of streams begin before OUT is created. Called by
 * convert.c.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "align.h"
#include "cleanup.h"
#include "convert.h"

#define PIPE_BYTES (1 << 20)
#define WINDOWS 4u
#define WINDOW_BYTES (UINT64_C(32) << 20)
#define POLL_MS 500        /* the bar moves even if nothing happens */
#define OTHER_SIDE_MS 5000 /* for the other side to say what this one's failure comes of */

enum window_state { WINDOW_FREE, WINDOW_LOADING, WINDOW_LOADED, WINDOW_SAVING };

struct window {
	enum window_state state;
	uint32_t transfer;
	struct dioh_join_place place;
	uint64_t bytes;
};

struct side {
	struct dioh_session *session;
	uint32_t streams[DIOH_STREAMS_MAX]; /* transfers */
	uint32_t streams_left;
};

struct join {
	const struct dioh_join_options *options;
	struct side sides[DIOH_JOIN_SIDES];
	enum dioh_join_side failed;
	int memory_fd;
	int pipes[DIOH_STREAMS_MAX][2]; /* -1: none */
	struct dioh_tool_table table;   /* IN's */
	struct dioh_msg_entry *regions; /* those that go through memory */
	uint32_t region_count;
	struct window windows[WINDOWS];
	struct dioh_join_place next;
	struct dioh_join_place synced;
	struct dioh_event event;
	struct dioh_tool_progress progress;
	uint64_t saved_bytes;  /* of regions */
	uint64_t stream_bytes; /* so far */
};

static int fail_at(struct join *join, enum dioh_join_side side, int r)
{
	if (r < 0)
		join->failed = side;
	return r;
}

/* ---- what is attached --------------------------------------------------------------------------------------- */

static int make_pipes(struct join *join, struct dioh_error *err)
{
	for (uint32_t i = 0; i < join->options->stream_count; i++) {
		if (pipe2(join->pipes[i], O_CLOEXEC) != 0)
			return dioh_tool_error_set(err, errno, "making a pipe failed: %s", strerror(errno));
		/* Larger is faster; a limit on it is no failure. */
		(void)fcntl(join->pipes[i][0], F_SETPIPE_SZ, PIPE_BYTES);
	}
	return 0;
}

/* The ends are the helpers' alone, so that each sees the other go. */
static void close_ends(struct join *join, unsigned end)
{
	for (uint32_t i = 0; i < DIOH_STREAMS_MAX; i++)
		dioh_cleanup_fd(&join->pipes[i][end]);
	for (uint32_t i = 0; i < DIOH_STREAMS_MAX; i++)
		join->pipes[i][end] = -1;
}

/* All else of IN is taken from this session. */
static int check_header(struct join *join, struct dioh_error *err)
{
	const uint64_t bytes = join->options->in_header_bytes;
	DIOH_AUTO_FREE uint8_t *header = malloc(bytes + 1);
	uint64_t count = 0;
	int r;

	if (!header)
		return dioh_tool_error_set(err, ENOMEM, "there is no memory for its header");
	r = dioh_read_header(join->sides[DIOH_JOIN_IN].session, 0, header, bytes + 1, &count, err);
	if (r == 0 && (count != bytes || memcmp(header, join->options->in_header, bytes) != 0))
		r = dioh_tool_error_set(err, ESTALE, "was saved over meanwhile: its header is another one than before");
	return r;
}

static int start_in(struct join *join, struct dioh_error *err)
{
	struct dioh_tool_session_options in = join->options->in;
	struct dioh_msg_open_image_reply open;
	int writers[DIOH_STREAMS_MAX];
	int r;

	for (uint32_t i = 0; i < join->options->stream_count; i++)
		writers[i] = join->pipes[i][1];
	in.helper = join->options->helper;
	in.memory_fd = join->memory_fd;
	in.stream_fds = writers;
	in.stream_count = join->options->stream_count;
	r = dioh_tool_session_start(&in, &join->sides[DIOH_JOIN_IN].session, &open, err);
	close_ends(join, 1);
	if (r == 0)
		r = dioh_tool_table_read(join->sides[DIOH_JOIN_IN].session, join->options->region_count,
		                         join->options->stream_count, &join->table, err);
	if (r == 0)
		r = check_header(join, err);
	return fail_at(join, DIOH_JOIN_IN, r);
}

static int attach_out(struct join *join, struct dioh_session *session, struct dioh_error *err)
{
	struct dioh_image_options image_options = DIOH_IMAGE_OPTIONS_INIT;
	struct dioh_memory_options memory_options = DIOH_MEMORY_OPTIONS_INIT;
	int r;

	image_options.buffered_fd = join->options->out.buffered_fd;
	image_options.direct_fd = join->options->out.direct_fd;
	image_options.directory_fd = join->options->out.directory_fd;
	image_options.direction = DIOH_DIRECTION_SAVE;
	memory_options.fd = join->memory_fd;
	r = dioh_attach_image(session, &image_options, NULL, err);
	if (r == 0)
		r = dioh_attach_memory(session, 0, &memory_options, NULL, err);
	for (uint32_t i = 0; r == 0 && i < join->options->stream_count; i++)
		r = dioh_attach_stream(session, i, join->pipes[i][0], NULL, err);
	return r != 0 ? r : dioh_seal(session, DIOH_TOOL_LAYERS, NULL, err);
}

static int start_out(struct join *join, struct dioh_error *err)
{
	const uint64_t required = DIOH_FEATURE_LAYOUT_RAW | DIOH_FEATURE_LAYOUT_CONTAINER |
	                          DIOH_FEATURE_LAYOUT_MAPPED_RAM | DIOH_FEATURE_STREAM | DIOH_FEATURE_CHECKSUM |
	                          (join->options->durable ? DIOH_FEATURE_CONTINUE : 0);
	struct side *out = &join->sides[DIOH_JOIN_OUT];
	int r = dioh_tool_spawn(join->options->helper, required, &out->session, err);

	if (r == 0)
		r = attach_out(join, out->session, err);
	close_ends(join, 0);
	return fail_at(join, DIOH_JOIN_OUT, r);
}

/* ---- OUT's table -------------------------------------------------------------------------------------------- */

static int choose_regions(struct join *join, struct dioh_error *err)
{
	join->regions = calloc(join->table.region_count + 1, sizeof(*join->regions));
	if (!join->regions)
		return dioh_tool_error_set(err, ENOMEM, "there is no memory for a table");
	for (uint32_t i = 0; i < join->table.region_count; i++)
		if (!(join->table.entries[i].flags & DIOH_ENTRY_IN_STREAM))
			join->regions[join->region_count++] = join->table.entries[i];
	return 0;
}

/* What a save may say of an entry of a load. */
static struct dioh_msg_entry announced(const struct join *join, const struct dioh_msg_entry *entry)
{
	struct dioh_msg_entry mine = { .kind = entry->kind, .number = entry->number };

	memcpy(mine.name, entry->name, sizeof(mine.name));
	if (entry->kind == DIOH_ENTRY_REGION) {
		mine.bytes = entry->bytes;
		mine.flags = entry->flags & DIOH_ENTRY_GUEST_ADDRESS;
		mine.guest_address = mine.flags ? entry->guest_address : 0;
	} else if (join->options->out.layout == DIOH_LAYOUT_RAW) {
		mine.image_offset = join->options->out.header_bytes;
	}
	return mine;
}

static int create_out(struct join *join, struct dioh_error *err)
{
	const struct dioh_join_out *out = &join->options->out;
	const uint32_t stream_count = join->options->stream_count;
	DIOH_AUTO_FREE struct dioh_msg_entry *entries = calloc(join->region_count + stream_count + 1, sizeof(*entries));
	const struct dioh_create_options options = {
		.layout = out->layout, .entry_count = join->region_count + stream_count, .entries = entries,
		.header_bytes = out->header_bytes, .header = out->header_bytes ? out->header : NULL,
		.flags = out->keep ? DIOH_CREATE_CONTINUE : 0
	};

	if (!entries)
		return dioh_tool_error_set(err, ENOMEM, "there is no memory for a table");
	for (uint32_t i = 0; i < join->region_count; i++)
		entries[i] = announced(join, &join->regions[i]);
	for (uint32_t i = 0; i < stream_count; i++)
		entries[join->region_count + i] = announced(join, &join->table.entries[join->table.region_count + i]);
	return dioh_create_image(join->sides[DIOH_JOIN_OUT].session, &options, NULL, err);
}

/* A region's end, which may be anywhere, is no place to begin at: the next one's start is. */
static void leave_region(struct join *join)
{
	struct dioh_join_place *next = &join->next;

	while (next->index < join->region_count && next->offset >= join->regions[next->index].bytes)
		*next = (struct dioh_join_place){ next->index + 1, 0 };
}

/* What an earlier run has brought stays. */
static int keep_regions(struct join *join, struct dioh_error *err)
{
	const struct dioh_join_place *place = &join->options->place;
	int r = 0;

	for (uint32_t i = 0; r == 0 && i < join->region_count && i <= place->index; i++) {
		const uint64_t bytes = i < place->index ? join->regions[i].bytes : place->offset;

		if (bytes > 0)
			r = dioh_keep_region(join->sides[DIOH_JOIN_OUT].session, join->regions[i].number, 0, bytes, err);
		join->saved_bytes += bytes;
	}
	join->progress.base_bytes = join->saved_bytes;
	join->next = join->synced = *place;
	leave_region(join);
	return r;
}

static int begin_streams(struct join *join, enum dioh_join_side which, struct dioh_error *err)
{
	struct side *side = &join->sides[which];

	for (uint32_t i = 0; i < join->options->stream_count; i++) {
		const struct dioh_msg_stream_transfer what = {
			.stream = i, .entry = join->table.entries[join->table.region_count + i].number
		};
		int r = which == DIOH_JOIN_IN ? dioh_load_stream(side->session, &what, &side->streams[i], err) :
		                                dioh_save_stream(side->session, &what, &side->streams[i], err);

		if (r != 0)
			return fail_at(join, which, r);
		side->streams_left++;
	}
	return 0;
}

/* ---- regions, window by window ------------------------------------------------------------------------------ */

static bool next_piece(struct join *join, struct window *window)
{
	struct dioh_join_place *next = &join->next;

	if (next->index >= join->region_count)
		return false;
	window->place = *next;
	window->bytes = dioh_min(WINDOW_BYTES, join->regions[next->index].bytes - next->offset);
	next->offset += window->bytes;
	leave_region(join);
	return true;
}

/* A side may have as many streams as there are transfers: their ends make room. */
static bool has_room(const struct join *join, enum dioh_join_side which)
{
	const enum window_state busy = which == DIOH_JOIN_IN ? WINDOW_LOADING : WINDOW_SAVING;
	uint32_t running = join->sides[which].streams_left;

	for (unsigned i = 0; i < WINDOWS; i++)
		running += join->windows[i].state == busy;
	return running < DIOH_TRANSFERS_MAX;
}

/* A load leaves nothing in a window of what was in it: absent pages are punched. */
static int move_window(struct join *join, unsigned index, enum dioh_join_side which, struct dioh_error *err)
{
	struct window *window = &join->windows[index];
	struct dioh_session *session = join->sides[which].session;
	const struct dioh_msg_memory_transfer what = {
		.memory = 0, .region = join->regions[window->place.index].number, .memory_offset = index * WINDOW_BYTES,
		.region_offset = window->place.offset, .length = window->bytes
	};
	int r = which == DIOH_JOIN_IN ? dioh_load_memory(session, &what, &window->transfer, err) :
	                                dioh_save_memory(session, &what, &window->transfer, err);

	if (r == 0)
		window->state = which == DIOH_JOIN_IN ? WINDOW_LOADING : WINDOW_SAVING;
	return fail_at(join, which, r);
}

static int move_windows(struct join *join, bool *ret_busy, struct dioh_error *err)
{
	const bool streams = join->sides[DIOH_JOIN_IN].streams_left > 0 || join->sides[DIOH_JOIN_OUT].streams_left > 0;
	int r = 0;

	*ret_busy = streams;
	if (streams && join->options->durable) /* OUT may refuse them, in their last byte perhaps: before anything is freed */
		return 0;
	for (unsigned i = 0; r == 0 && i < WINDOWS; i++) {
		struct window *window = &join->windows[i];

		if (window->state == WINDOW_LOADED && has_room(join, DIOH_JOIN_OUT))
			r = move_window(join, i, DIOH_JOIN_OUT, err);
		else if (window->state == WINDOW_FREE && has_room(join, DIOH_JOIN_IN) && next_piece(join, window))
			r = move_window(join, i, DIOH_JOIN_IN, err);
		*ret_busy = *ret_busy || window->state != WINDOW_FREE;
	}
	return r;
}

/* ---- what is durable ---------------------------------------------------------------------------------------- */

static bool is_before(const struct dioh_join_place *a, const struct dioh_join_place *b)
{
	return a->index != b->index ? a->index < b->index : a->offset < b->offset;
}

static uint64_t distance(const struct join *join, const struct dioh_join_place *from, const struct dioh_join_place *to)
{
	uint64_t bytes = to->offset;

	for (uint32_t i = from->index; i < to->index; i++)
		bytes += join->regions[i].bytes;
	return bytes - from->offset;
}

static int make_durable(struct join *join, struct dioh_error *err)
{
	struct dioh_join_place place = join->next;
	int r;

	for (unsigned i = 0; i < WINDOWS; i++)
		if (join->windows[i].state != WINDOW_FREE && is_before(&join->windows[i].place, &place))
			place = join->windows[i].place;
	if (!join->options->durable || distance(join, &join->synced, &place) < DIOH_JOIN_STEP_BYTES)
		return 0;
	/*
	 * Bitmaps and checksums of what has been completed are in the page cache, pages on the disk or in its cache. The kernel
	 * tells of lost writes once for each time a file was opened: not to us, by a descriptor that the helper has, too.
	 */
	if (fdatasync(join->options->out.sync_fd) != 0)
		return fail_at(join, DIOH_JOIN_OUT, dioh_tool_error_set(err, errno, "fdatasync failed: %s", strerror(errno)));
	r = join->options->durable(join->options->owner, join->regions, &place, err);
	join->synced = place;
	return fail_at(join, DIOH_JOIN_IN, r);
}

/* ---- events ------------------------------------------------------------------------------------------------- */

static void take_progress(struct join *join, enum dioh_join_side which)
{
	const struct dioh_event *event = &join->event;
	uint64_t bytes = 0;

	if (which != DIOH_JOIN_OUT)
		return;
	for (uint32_t i = 0; i < event->progress_count; i++)
		for (uint32_t k = 0; k < join->options->stream_count; k++)
			if (event->progress[i].transfer == join->sides[which].streams[k])
				bytes += event->progress[i].done_bytes;
	join->stream_bytes = dioh_max(join->stream_bytes, bytes);
}

static int take_complete(struct join *join, enum dioh_join_side which, struct dioh_error *err)
{
	const struct dioh_event *event = &join->event;
	struct side *side = &join->sides[which];

	if (event->error.code != 0) {
		*err = event->error;
		return -event->error.code;
	}
	for (uint32_t i = 0; i < join->options->stream_count; i++)
		if (side->streams[i] == event->transfer) {
			side->streams_left--;
			return 0;
		}
	for (unsigned i = 0; i < WINDOWS; i++) {
		struct window *window = &join->windows[i];
		const enum window_state busy = which == DIOH_JOIN_IN ? WINDOW_LOADING : WINDOW_SAVING;

		if (window->state != busy || window->transfer != event->transfer)
			continue;
		join->saved_bytes += which == DIOH_JOIN_OUT ? window->bytes : 0;
		window->state = which == DIOH_JOIN_IN ? WINDOW_LOADED : WINDOW_FREE;
		return 0;
	}
	return dioh_tool_error_set(err, EBADMSG, "the helper completed a transfer that does not run");
}

static void warn_stuck(const struct join *join)
{
	if (join->progress.on && join->progress.drawn_ns)
		fputs("\r\033[K", stderr);
	fprintf(stderr, DIOH_TOOL_NAME ": the disk does not answer: %" PRIu32 " I/Os wait, the oldest for %" PRIu64 " s\n",
	        join->event.stuck.in_flight, join->event.stuck.oldest_ns / UINT64_C(1000000000));
}

/* All events of a side that have come. */
static int take_events(struct join *join, enum dioh_join_side which, struct dioh_error *err)
{
	int r;

	while ((r = dioh_poll(join->sides[which].session, &join->event, 0, err)) > 0) {
		if (join->event.type == DIOH_EVENT_STUCK)
			warn_stuck(join);
		else if (join->event.type == DIOH_EVENT_PROGRESS)
			take_progress(join, which);
		r = join->event.type == DIOH_EVENT_COMPLETE ? take_complete(join, which, err) : 0;
		if (r < 0)
			break;
	}
	return fail_at(join, which, r == -EINTR ? 0 : r);
}

static int wait_for_events(struct join *join, struct dioh_error *err)
{
	struct pollfd fds[DIOH_JOIN_SIDES];
	int r = 0;

	for (unsigned i = 0; i < DIOH_JOIN_SIDES; i++)
		fds[i] = (struct pollfd){ .fd = dioh_session_fd(join->sides[i].session), .events = POLLIN };
	if (poll(fds, DIOH_JOIN_SIDES, POLL_MS) < 0 && errno != EINTR)
		return dioh_tool_error_set(err, errno, "poll failed: %s", strerror(errno));
	for (unsigned i = 0; r == 0 && i < DIOH_JOIN_SIDES; i++)
		r = take_events(join, i, err);
	return r;
}

static int move_all(struct join *join, struct dioh_error *err)
{
	bool busy = true;
	int r;

	/* What came while other replies were awaited. */
	r = take_events(join, DIOH_JOIN_IN, err);
	if (r == 0)
		r = take_events(join, DIOH_JOIN_OUT, err);
	while (r == 0 && (r = move_windows(join, &busy, err)) == 0 && busy) {
		r = wait_for_events(join, err);
		if (r == 0)
			r = make_durable(join, err);
		dioh_tool_progress_draw(&join->progress, join->saved_bytes + join->stream_bytes);
	}
	return r;
}

/* ---- from beginning to end ---------------------------------------------------------------------------------- */

static uint64_t now_ms(void)
{
	return dioh_tool_now_ns() / 1000000;
}

/* A stream that ended too early, or has no reader any more: the other side knows why. */
static bool comes_of_other_side(const struct dioh_error *err, enum dioh_join_side side)
{
	if (side == DIOH_JOIN_IN)
		return err->code == EPIPE && err->object == DIOH_OBJECT_STREAM;
	return err->object == DIOH_OBJECT_STREAM;
}

/* PROGRESS goes on for as long as a side waits, so it is all in all that it has so long. */
static void look_at_other_side(struct join *join, struct dioh_error *err)
{
	const enum dioh_join_side other = join->failed == DIOH_JOIN_IN ? DIOH_JOIN_OUT : DIOH_JOIN_IN;
	struct side *side = &join->sides[other], *failed = &join->sides[join->failed];
	struct dioh_error ignored;
	uint64_t until_ms;

	if (!side->session || side->streams_left == 0 || !comes_of_other_side(err, join->failed))
		return;
	/* Whoever waits for it sees that it is gone. */
	(void)dioh_tool_session_end(failed->session, 0, &ignored);
	failed->session = NULL;
	until_ms = now_ms() + OTHER_SIDE_MS;
	for (uint64_t now = now_ms(); now < until_ms; now = now_ms()) {
		if (dioh_poll(side->session, &join->event, (int)(until_ms - now), &ignored) <= 0)
			return;
		if (join->event.type != DIOH_EVENT_COMPLETE)
			continue;
		if (join->event.error.code != 0 && !comes_of_other_side(&join->event.error, other)) {
			*err = join->event.error;
			join->failed = other;
		}
		return;
	}
}

/* FINISH has said what OUT is: however the helper ends, it stays that. */
static void end_out(struct side *out)
{
	struct dioh_error err;

	if (dioh_tool_session_end(out->session, 0, &err) != 0)
		fprintf(stderr, DIOH_TOOL_NAME ": note: OUT is complete and durable, but %s\n", err.text);
	out->session = NULL;
}

static int finish_out(struct join *join, struct dioh_error *err)
{
	struct side *out = &join->sides[DIOH_JOIN_OUT];
	uint32_t transfer;
	int r = dioh_finish(out->session, DIOH_FINISH_DURABLE, 0, join->options->out.patch, join->options->out.patch_bytes,
	                    &transfer, err);

	if (r == 0)
		r = dioh_wait(out->session, transfer, NULL, err);
	if (r == 0)
		end_out(out);
	return fail_at(join, DIOH_JOIN_OUT, r);
}

static void start_progress(struct join *join)
{
	uint64_t total = 0;

	for (uint32_t i = 0; i < join->region_count; i++)
		total += join->regions[i].bytes;
	for (uint32_t i = 0; i < join->table.stream_count; i++)
		total += join->table.entries[join->table.region_count + i].bytes;
	dioh_tool_progress_start(&join->progress, join->options->progress, total);
}

static int run(struct join *join, struct dioh_error *err)
{
	int r = dioh_tool_make_memory(WINDOWS * WINDOW_BYTES, &join->memory_fd, err);

	if (r == 0)
		r = make_pipes(join, err);
	if (r == 0)
		r = start_in(join, err);
	if (r == 0)
		r = choose_regions(join, err);
	if (r == 0)
		r = start_out(join, err);
	if (r != 0)
		return r;
	start_progress(join);
	r = begin_streams(join, DIOH_JOIN_IN, err);
	if (r == 0)
		r = fail_at(join, DIOH_JOIN_OUT, create_out(join, err));
	if (r == 0 && join->options->out.keep)
		r = fail_at(join, DIOH_JOIN_OUT, keep_regions(join, err));
	if (r == 0)
		r = begin_streams(join, DIOH_JOIN_OUT, err);
	if (r == 0)
		r = move_all(join, err);
	if (r < 0)
		look_at_other_side(join, err);
	dioh_tool_progress_end(&join->progress);
	return r == 0 ? finish_out(join, err) : r;
}

int dioh_join_run(const struct dioh_join_options *options, enum dioh_join_side *ret_side, struct dioh_error *err)
{
	struct join *join = calloc(1, sizeof(*join));
	int r;

	if (!join)
		return dioh_tool_error_set(err, ENOMEM, "there is no memory for the work");
	join->options = options;
	join->memory_fd = -1;
	memset(join->pipes, -1, sizeof(join->pipes));
	r = run(join, err);
	if (r < 0)
		*ret_side = join->failed;
	for (unsigned i = 0; i < DIOH_JOIN_SIDES; i++)
		(void)dioh_tool_session_end(join->sides[i].session, 0, &join->event.error); /* what counts has been said */
	close_ends(join, 0);
	close_ends(join, 1);
	dioh_cleanup_fd(&join->memory_fd);
	free(join->table.entries);
	free(join->regions);
	free(join);
	return r;
}
