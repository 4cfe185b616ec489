/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * check.c - compares every checksum in an image by loading it and throwing the bytes away.
 *
 * Where it is wanted, entries without checksums are read as well: that they can be is all that is learnt then.
 *
 * Regions are loaded window by window, two at a time, into one small memory. A load that meets damage names one chunk
 * and ends; which other chunks it had looked at by then is not known, so what stands before and what stands behind the
 * damaged chunk are loaded again, each by itself. Every damaged chunk is found that way, and each retry is smaller than
 * what failed. Streams follow, one after the other, into pipes that are drained here: a damaged stream ends where its
 * first damage is.
 *
 * Called by check_image.c. Trusts nothing that the helper says further than it has to.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "align.h"
#include "tool.h"

#define WINDOWS 2u
#define WINDOW_BYTES (DIOH_TOOL_CHECK_MEMORY_BYTES / WINDOWS)
#define WINDOW_CHUNKS (WINDOW_BYTES / DIOH_CHUNK_BYTES)
/* Retries lie apart from each other in the windows that are being looked at, with a damaged chunk between any two. */
#define RETRIES_MAX (WINDOWS * WINDOW_CHUNKS)
#define POLL_MS 500 /* the bar moves even if nothing happens */
#define DRAIN_BYTES 65536u

struct piece {
	uint32_t entry; /* index in the table */
	uint64_t offset;
	uint64_t bytes;
};

struct window {
	bool busy;
	uint32_t transfer;
	struct piece piece;
};

struct checker {
	const struct dioh_tool_check_options *options;
	struct dioh_tool_check *result;
	struct window windows[WINDOWS];
	struct piece retries[RETRIES_MAX];
	uint32_t retry_count;
	struct piece next; /* where the regions have not been looked at yet */
	bool *given_up;    /* regions of which nothing more can be read */
	struct dioh_tool_progress progress;
	uint64_t done_bytes;
};

/* ---- results ------------------------------------------------------------------------------------------------ */

static void add_damage(struct checker *checker, uint32_t entry, uint64_t offset, uint64_t bytes,
                       const struct dioh_error *error)
{
	struct dioh_tool_check *result = checker->result;
	struct dioh_tool_damage *damage;

	if (result->damage_count == DIOH_TOOL_DAMAGES_MAX) {
		result->stopped = true;
		return;
	}
	damage = &result->damages[result->damage_count++];
	damage->entry = entry;
	damage->offset = offset;
	damage->bytes = bytes;
	damage->mismatch = error->operation == DIOH_OP_CHECKSUM;
	snprintf(damage->text, sizeof(damage->text), "%s", error->text);
	result->entries[entry].damages++;
	result->stopped = result->damage_count == DIOH_TOOL_DAMAGES_MAX;
}

static int compare_damages(const void *a, const void *b)
{
	const struct dioh_tool_damage *x = a, *y = b;

	if (x->entry != y->entry)
		return x->entry < y->entry ? -1 : 1;
	return (x->offset > y->offset) - (x->offset < y->offset);
}

static void advance(struct checker *checker, uint32_t entry, uint64_t bytes)
{
	checker->result->entries[entry].read_bytes += bytes;
	checker->done_bytes += bytes;
	dioh_tool_progress_draw(&checker->progress, checker->done_bytes);
}

/* What the image itself is to blame for. Anything else means that the check cannot go on. */
static bool is_damage(const struct dioh_error *err)
{
	return err->operation == DIOH_OP_CHECKSUM || err->operation == DIOH_OP_PARSE || err->operation == DIOH_OP_READ;
}

/* ---- regions ------------------------------------------------------------------------------------------------ */

/* The next window of the regions that are to be read. */
static bool next_window(struct checker *checker, struct piece *ret_piece)
{
	const struct dioh_tool_table *table = checker->options->table;
	struct piece *next = &checker->next;

	for (; next->entry < table->region_count; next->entry++, next->offset = 0) {
		const struct dioh_msg_entry *entry = &table->entries[next->entry];

		if (!checker->result->entries[next->entry].wanted || checker->given_up[next->entry] ||
		    next->offset >= entry->bytes)
			continue;
		next->bytes = dioh_min(WINDOW_BYTES, entry->bytes - next->offset);
		*ret_piece = *next;
		next->offset += next->bytes;
		return true;
	}
	return false;
}

static bool next_piece(struct checker *checker, struct piece *ret_piece)
{
	if (checker->result->stopped)
		return false;
	if (checker->retry_count > 0) {
		*ret_piece = checker->retries[--checker->retry_count];
		return true;
	}
	return next_window(checker, ret_piece);
}

static int begin_load(struct checker *checker, unsigned index, const struct piece *piece, struct dioh_error *err)
{
	const struct dioh_msg_memory_transfer what = {
		.memory = 0,
		.region = checker->options->table->entries[piece->entry].number,
		.memory_offset = index * WINDOW_BYTES,
		.region_offset = piece->offset,
		.length = piece->bytes,
	};
	struct window *window = &checker->windows[index];
	int r = dioh_load_memory(checker->options->session, &what, &window->transfer, err);

	if (r != 0)
		return r;
	window->piece = *piece;
	window->busy = true;
	return 0;
}

static int fill_windows(struct checker *checker, bool *ret_busy, struct dioh_error *err)
{
	bool busy = false;

	for (unsigned i = 0; i < WINDOWS; i++) {
		struct piece piece;
		int r;

		if (!checker->windows[i].busy && next_piece(checker, &piece)) {
			r = begin_load(checker, i, &piece, err);
			if (r != 0)
				return r;
		}
		busy = busy || checker->windows[i].busy;
	}
	*ret_busy = busy;
	return 0;
}

static void retry(struct checker *checker, uint32_t entry, uint64_t offset, uint64_t end)
{
	if (offset >= end)
		return;
	checker->retries[checker->retry_count++] = (struct piece){ entry, offset, end - offset };
}

/* Nothing more of this region can be had: its bitmap is damaged, or something else that all its chunks need. */
static void give_up(struct checker *checker, uint32_t entry, const struct dioh_error *error)
{
	uint32_t kept = 0;

	if (checker->given_up[entry])
		return;
	checker->given_up[entry] = true;
	for (uint32_t i = 0; i < checker->retry_count; i++)
		if (checker->retries[i].entry != entry)
			checker->retries[kept++] = checker->retries[i];
	checker->retry_count = kept;
	add_damage(checker, entry, DIOH_OFFSET_NONE, 0, error);
}

/* Where in the region a failed load met damage; false: the error names no place inside of what was loaded. */
static bool find_place(const struct checker *checker, const struct piece *piece, const struct dioh_error *error,
                       uint64_t *ret_offset)
{
	const struct dioh_msg_entry *entry = &checker->options->table->entries[piece->entry];
	/* Page i stands at image_offset + i * 4096; a failed read is told by its place in the file. */
	uint64_t pages = checker->options->base_offset + entry->image_offset;
	uint64_t offset = error->offset;

	if (offset == DIOH_OFFSET_NONE)
		return false;
	if (error->object == DIOH_OBJECT_IMAGE && error->operation == DIOH_OP_READ && offset >= pages)
		offset -= pages;
	else if (error->object != DIOH_OBJECT_REGION || error->number != entry->number)
		return false;
	if (offset < piece->offset || offset - piece->offset >= piece->bytes)
		return false;
	*ret_offset = dioh_align_down(offset, DIOH_CHUNK_BYTES);
	return true;
}

static int take_region_failure(struct checker *checker, const struct piece *piece, const struct dioh_error *error,
                               struct dioh_error *err)
{
	uint64_t end = piece->offset + piece->bytes;
	uint64_t chunk, chunk_end;

	if (!is_damage(error)) {
		*err = *error;
		return -error->code;
	}
	if (checker->given_up[piece->entry])
		return 0;
	if (!find_place(checker, piece, error, &chunk)) {
		give_up(checker, piece->entry, error);
		return 0;
	}
	chunk_end = dioh_min(chunk + DIOH_CHUNK_BYTES, end);
	add_damage(checker, piece->entry, chunk, chunk_end - chunk, error);
	retry(checker, piece->entry, chunk_end, end);
	retry(checker, piece->entry, piece->offset, chunk);
	return 0;
}

static void warn_stuck(struct checker *checker, const struct dioh_msg_stuck *stuck)
{
	if (checker->progress.on && checker->progress.drawn_ns)
		fputs("\r\033[K", stderr);
	fprintf(stderr, DIOH_TOOL_NAME ": the disk does not answer: %" PRIu32 " reads wait, the oldest for %" PRIu64
	        " s\n", stuck->in_flight, stuck->oldest_ns / UINT64_C(1000000000));
}

static int take_region_event(struct checker *checker, const struct dioh_event *event, struct dioh_error *err)
{
	if (event->type == DIOH_EVENT_STUCK)
		warn_stuck(checker, &event->stuck);
	if (event->type != DIOH_EVENT_COMPLETE)
		return 0;
	for (unsigned i = 0; i < WINDOWS; i++) {
		struct window *window = &checker->windows[i];

		if (!window->busy || window->transfer != event->transfer)
			continue;
		window->busy = false;
		if (event->error.code != 0)
			return take_region_failure(checker, &window->piece, &event->error, err);
		advance(checker, window->piece.entry, event->complete.data_bytes);
		return 0;
	}
	return dioh_tool_error_set(err, EBADMSG, "the helper completed a transfer that does not run");
}

static int check_regions(struct checker *checker, struct dioh_error *err)
{
	struct dioh_event *event = malloc(sizeof(*event));
	bool busy;
	int r;

	if (!event)
		return dioh_tool_error_set(err, ENOMEM, "there is no memory for an event");
	while ((r = fill_windows(checker, &busy, err)) == 0 && busy) {
		r = dioh_poll(checker->options->session, event, POLL_MS, err);
		if (r > 0)
			r = take_region_event(checker, event, err);
		else if (r == -EINTR)
			r = 0;
		if (r != 0)
			break;
		dioh_tool_progress_draw(&checker->progress, checker->done_bytes);
	}
	free(event);
	return r;
}

/* ---- streams ------------------------------------------------------------------------------------------------ */

struct stream {
	uint32_t entry; /* index in the table */
	uint32_t transfer;
	int fd;
	uint64_t got_bytes;
	bool ended;     /* the pipe */
	bool completed; /* the transfer */
	struct dioh_error error;
};

/* Throws away what is in the pipe. */
static int drain(struct checker *checker, struct stream *stream, struct dioh_error *err)
{
	static char bytes[DRAIN_BYTES];

	while (!stream->ended) {
		ssize_t count = read(stream->fd, bytes, sizeof(bytes));

		if (count < 0 && errno == EINTR)
			continue;
		if (count < 0 && errno == EAGAIN)
			return 0;
		if (count < 0)
			return dioh_tool_error_set(err, errno, "reading a stream's pipe failed: %s", strerror(errno));
		stream->ended = count == 0;
		stream->got_bytes += (uint64_t)count;
		advance(checker, stream->entry, (uint64_t)count);
	}
	return 0;
}

static int take_stream_events(struct checker *checker, struct stream *stream, struct dioh_error *err)
{
	struct dioh_event event;
	int r;

	while ((r = dioh_poll(checker->options->session, &event, 0, err)) > 0) {
		if (event.type == DIOH_EVENT_STUCK)
			warn_stuck(checker, &event.stuck);
		if (event.type != DIOH_EVENT_COMPLETE || event.transfer != stream->transfer)
			continue;
		stream->completed = true;
		stream->error = event.error;
	}
	return r == -EINTR ? 0 : r;
}

/* The helper closes its end behind the last byte, so both ends are waited for. */
static int run_stream(struct checker *checker, struct stream *stream, struct dioh_error *err)
{
	int r = 0;

	while (r == 0 && !(stream->completed && (stream->ended || stream->error.code != 0))) {
		struct pollfd fds[] = {
			{ .fd = dioh_session_fd(checker->options->session), .events = POLLIN },
			{ .fd = stream->ended ? -1 : stream->fd, .events = POLLIN },
		};

		if (poll(fds, 2, POLL_MS) < 0 && errno != EINTR)
			return dioh_tool_error_set(err, errno, "poll failed: %s", strerror(errno));
		r = drain(checker, stream, err);
		if (r == 0)
			r = take_stream_events(checker, stream, err);
	}
	return r != 0 ? r : drain(checker, stream, err);
}

static int take_stream_result(struct checker *checker, const struct stream *stream, struct dioh_error *err)
{
	const struct dioh_msg_entry *entry = &checker->options->table->entries[stream->entry];
	const struct dioh_error *error = &stream->error;

	if (error->code != 0 && !is_damage(error)) {
		*err = *error;
		return -error->code;
	}
	if (error->code != 0) {
		uint64_t offset = error->object == DIOH_OBJECT_STREAM ? error->offset : DIOH_OFFSET_NONE;

		add_damage(checker, stream->entry, offset, 0, error);
	} else if (stream->got_bytes != entry->bytes) {
		return dioh_tool_error_set(err, EBADMSG, "stream %" PRIu32 " brought %" PRIu64 " of %" PRIu64 " bytes",
		                           entry->number, stream->got_bytes, entry->bytes);
	}
	return 0;
}

static int check_stream(struct checker *checker, uint32_t index, struct dioh_error *err)
{
	const struct dioh_tool_table *table = checker->options->table;
	struct stream stream = { .entry = table->region_count + index, .fd = checker->options->stream_fds[index] };
	const struct dioh_msg_stream_transfer what = { .stream = index, .entry = table->entries[stream.entry].number };
	int r = dioh_load_stream(checker->options->session, &what, &stream.transfer, err);

	if (r == 0)
		r = run_stream(checker, &stream, err);
	return r != 0 ? r : take_stream_result(checker, &stream, err);
}

static int check_streams(struct checker *checker, struct dioh_error *err)
{
	const struct dioh_tool_table *table = checker->options->table;
	int r = 0;

	for (uint32_t i = 0; r == 0 && i < table->stream_count && !checker->result->stopped; i++)
		if (checker->result->entries[table->region_count + i].wanted)
			r = check_stream(checker, i, err);
	return r;
}

/* ---- the whole ---------------------------------------------------------------------------------------------- */

void dioh_tool_check_free(struct dioh_tool_check *check)
{
	free(check->entries);
	free(check->damages);
	check->entries = NULL;
	check->damages = NULL;
}

/* Marks what will be read and checked; answers how many bytes that is. */
static uint64_t plan(const struct dioh_tool_check_options *options, struct dioh_tool_entry_check *entries)
{
	const struct dioh_tool_table *table = options->table;
	uint64_t total = 0;

	for (uint32_t i = 0; i < table->region_count + table->stream_count; i++) {
		const struct dioh_msg_entry *entry = &table->entries[i];

		entries[i].checked = entry->flags & DIOH_ENTRY_CHECKSUMS;
		entries[i].wanted = entries[i].checked || options->read_all;
		if (entries[i].wanted)
			total += entry->kind == DIOH_ENTRY_REGION ? entry->present_bytes : entry->bytes;
	}
	return total;
}

static int check_all(struct checker *checker, struct dioh_error *err)
{
	uint64_t total = plan(checker->options, checker->result->entries);
	int r;

	dioh_tool_progress_start(&checker->progress, checker->options->progress, total);
	r = check_regions(checker, err);
	if (r == 0)
		r = check_streams(checker, err);
	dioh_tool_progress_end(&checker->progress);
	checker->result->elapsed_ns = dioh_tool_now_ns() - checker->progress.started_ns;
	return r;
}

int dioh_tool_check_run(const struct dioh_tool_check_options *options, struct dioh_tool_check *ret_check,
                        struct dioh_error *err)
{
	uint32_t count = options->table->region_count + options->table->stream_count;
	struct dioh_tool_check result = { .entries = calloc(count + 1, sizeof(*result.entries)),
	                                  .damages = calloc(DIOH_TOOL_DAMAGES_MAX, sizeof(*result.damages)) };
	struct checker *checker = calloc(1, sizeof(*checker));
	int r;

	if (checker)
		checker->given_up = calloc(count + 1, sizeof(*checker->given_up));
	if (!checker || !checker->given_up || !result.entries || !result.damages) {
		r = dioh_tool_error_set(err, ENOMEM, "there is no memory for the check");
	} else {
		checker->options = options;
		checker->result = &result;
		r = check_all(checker, err);
	}
	if (checker)
		free(checker->given_up);
	free(checker);
	if (r != 0) {
		dioh_tool_check_free(&result);
		return r;
	}
	qsort(result.damages, result.damage_count, sizeof(*result.damages), compare_damages);
	*ret_check = result;
	return 0;
}
