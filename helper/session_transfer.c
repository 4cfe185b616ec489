/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * session_transfer.c - transfers from the door's side: what may begin, and CANCEL. session_running.c has what happens to it
 * then.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "align.h"
#include "proto.h"
#include "session.h"

#define PLACE DIOH_PLACE(PROTOCOL, SESSION, 0, DIOH_OFFSET_NONE)

/* Less is not worth a second worker; and parts that begin at huge pages' boundaries share none. */
#define PART_BYTES_MIN (UINT64_C(64) << 20)

/* ---- the list ---- */

static struct dioh_running *find_running(const struct dioh_session_state *session, uint32_t id)
{
	for (struct dioh_running *running = session->running; running; running = running->next)
		if (running->id == id)
			return running;
	return NULL;
}

bool dioh_session_busy(const struct dioh_session_state *session)
{
	return session->running || (session->request && session->request->active) || session->finish.active;
}

/* ---- beginning ---- */

static int check_ready(const struct dioh_session_state *session, const struct dioh_message *message,
                       struct dioh_error *err)
{
	const char *name = dioh_msg_name(message->header.type);

	if (session->stage != IMAGE_READY)
		return dioh_wrong_stage(session, message, err);
	if (session->layout.inspect_only)
		return dioh_error_set(err, EPROTO, PLACE, "%s is not permitted: the image was opened for inspection only",
		                      name);
	if (find_running(session, message->header.id))
		return dioh_error_set(err, EEXIST, PLACE, "%s: id %" PRIu32 " names a transfer that still runs", name,
		                      message->header.id);
	if (session->running_count + session->completes_waiting >= DIOH_TRANSFERS_MAX)
		return dioh_error_set(err, EBUSY, PLACE, "%s: %u transfers run already", name, DIOH_TRANSFERS_MAX);
	return 0;
}

static struct dioh_running *new_running(struct dioh_session_state *session, const struct dioh_message *message,
                                        struct dioh_error *err)
{
	struct dioh_running *running = calloc(1, sizeof(*running));

	if (!running) {
		dioh_error_errno(err, ENOMEM, PLACE, "%s", dioh_msg_name(message->header.type));
		return NULL;
	}
	running->session = session;
	running->id = message->header.id;
	running->save = session->image.direction == DIOH_DIRECTION_SAVE;
	return running;
}

/* ---- SAVE_MEMORY, LOAD_MEMORY ---- */

static int find_memory(struct dioh_session_state *session, const struct dioh_msg_memory_transfer *what,
                       const struct dioh_memory **ret_memory, struct dioh_error *err)
{
	const struct dioh_memory *memory = &session->memories[what->memory];

	if (memory->fd < 0)
		return dioh_error_set(err, ENOENT, PLACE, "memory %" PRIu32 " was not attached", what->memory);
	if (what->flags & DIOH_TRANSFER_SELECTION && memory->selection_fd < 0)
		return dioh_error_set(err, EINVAL, PLACE, "memory %" PRIu32 " was attached without a selection", what->memory);
	if (memory->kind == DIOH_MEMORY_HUGETLB && !dioh_is_aligned(what->memory_offset, DIOH_CHUNK_BYTES))
		return dioh_error_set(err, EINVAL, PLACE,
		                      "memory %" PRIu32 ": offset %" PRIu64 " is not a multiple of 1 MiB, as hugetlb needs",
		                      what->memory, what->memory_offset);
	*ret_memory = memory;
	return 0;
}

static int check_region_source(const struct dioh_session_state *session, const struct dioh_region *region,
                               struct dioh_error *err)
{
	const struct dioh_record_region *record = &region->record;

	if (session->image.direction == DIOH_DIRECTION_LOAD || !(record->flags & DIOH_REGION_IN_STREAM))
		return 0;
	return dioh_error_set(err, EINVAL, DIOH_PLACE(PROTOCOL, REGION, record->number, DIOH_OFFSET_NONE),
	                      "region %" PRIu32 " \"%.64s\": its pages come with QEMU's stream: it was not in the table",
	                      record->number, record->name);
}

static int check_region_range(const struct dioh_region *region, const struct dioh_msg_memory_transfer *what,
                              struct dioh_error *err)
{
	const struct dioh_record_region *record = &region->record;
	const uint64_t end = what->region_offset + what->length;

	if (!dioh_range_ok(what->region_offset, what->length, record->bytes))
		return dioh_error_set(err, ERANGE, DIOH_PLACE(PROTOCOL, REGION, what->region, what->region_offset),
		                      "region %" PRIu32 ": bytes %" PRIu64 " to %" PRIu64 " lie outside its %" PRIu64,
		                      what->region, what->region_offset, end, record->bytes);
	if (end != record->bytes && !dioh_is_aligned(what->length, DIOH_CHUNK_BYTES))
		return dioh_error_set(err, EINVAL, DIOH_PLACE(PROTOCOL, REGION, what->region, what->region_offset),
		                      "region %" PRIu32 ": a length of %" PRIu64
		                      " neither is a multiple of 1 MiB nor reaches the region's end", what->region,
		                      what->length);
	return 0;
}

static int check_memory_range(const struct dioh_memory *memory, const struct dioh_msg_memory_transfer *what,
                              struct dioh_error *err)
{
	uint64_t bytes;
	int r = dioh_memory_known_bytes(memory, &bytes, err);

	if (r < 0)
		return r;
	if (!dioh_range_ok(what->memory_offset, what->length, bytes))
		return dioh_error_set(err, ERANGE, DIOH_PLACE(PROTOCOL, MEMORY, what->memory, what->memory_offset),
		                      "memory %" PRIu32 ": bytes %" PRIu64 " to %" PRIu64 " lie outside its %" PRIu64,
		                      what->memory, what->memory_offset, what->memory_offset + what->length, bytes);
	return 0;
}

static int check_selection_range(const struct dioh_memory *memory, const struct dioh_msg_memory_transfer *what,
                                 struct dioh_error *err)
{
	const uint64_t pages = (what->region_offset + what->length) / DIOH_PAGE_BYTES;
	uint64_t bytes;
	int r;

	if (!(what->flags & DIOH_TRANSFER_SELECTION))
		return 0;
	r = dioh_memory_known_selection_bytes(memory, &bytes, err);
	if (r == 0 && bytes < dioh_div_up(pages, 8))
		r = dioh_error_set(err, ERANGE, DIOH_PLACE(PROTOCOL, MEMORY, what->memory, bytes),
		                   "memory %" PRIu32 ": its selection has %" PRIu64 " bytes, and %" PRIu64
		                   " pages of the region need a bit", what->memory, bytes, pages);
	return r;
}

static bool overlap(uint64_t a_first, uint64_t a_end, uint64_t b_first, uint64_t b_end)
{
	return a_first < b_end && b_first < a_end;
}

static int check_no_overlap(const struct dioh_session_state *session, const struct dioh_running *mine,
                            struct dioh_error *err)
{
	for (const struct dioh_running *other = session->running; other; other = other->next) {
		if (other->region && other->region == mine->region &&
		    overlap(mine->region_first, mine->region_end, other->region_first, other->region_end))
			return dioh_error_set(err, EBUSY,
			                      DIOH_PLACE(PROTOCOL, REGION, mine->region->record.number, mine->region_first),
			                      "region %" PRIu32 ": the range overlaps that of transfer %" PRIu32 ", which runs",
			                      mine->region->record.number, other->id);
		if (other->memory && other->memory == mine->memory &&
		    overlap(mine->memory_first, mine->memory_end, other->memory_first, other->memory_end))
			return dioh_error_set(err, EBUSY,
			                      DIOH_PLACE(PROTOCOL, MEMORY, mine->memory->number, mine->memory_first),
			                      "memory %" PRIu32 ": the range overlaps that of transfer %" PRIu32 ", which runs",
			                      mine->memory->number, other->id);
	}
	return 0;
}

static void set_ranges(struct dioh_running *running, struct dioh_region *region, const struct dioh_memory *memory,
                       const struct dioh_msg_memory_transfer *what)
{
	running->region = region;
	running->region_first = what->region_offset;
	running->region_end = what->region_offset + what->length;
	running->memory = memory;
	running->memory_first = what->memory_offset;
	running->memory_end = what->memory_offset + what->length;
}

static uint64_t chunk_end(uint64_t bytes)
{
	return dioh_div_up(bytes, DIOH_CHUNK_BYTES);
}

/* Whether a save would lengthen a piece that is there, or join some, rather than add one. */
static bool adjoins(const struct dioh_intervals *set, const struct dioh_running *save)
{
	const uint64_t first = save->region_first / DIOH_CHUNK_BYTES;

	return dioh_intervals_overlap(set, first - (first > 0), chunk_end(save->region_end) + 1);
}

/*
 * Whether there is room for what `covered` becomes if these saves end well, in whatever order: a save that has ended cannot
 * be refused any more. `mine`: one that is to begin, or NULL.
 */
static bool ends_fit(const struct dioh_intervals *covered, const struct dioh_running *others,
                     const struct dioh_region *region, const struct dioh_running *mine)
{
	unsigned pieces = covered->count + (mine && !adjoins(covered, mine));

	for (const struct dioh_running *other = others; other; other = other->next)
		pieces += other->region == region && !adjoins(covered, other);
	return pieces <= DIOH_INTERVALS_MAX;
}

static bool is_fresh(const struct dioh_running *running)
{
	return !running->session->layout.kept &&
	       !dioh_intervals_overlap(&running->region->touched, running->region_first / DIOH_CHUNK_BYTES,
	                               chunk_end(running->region_end));
}

/* From now on these chunks hold neither what they held nor, yet, what they are to hold. Refused, it has no effect. */
static int mark_touched(const struct dioh_running *running, struct dioh_error *err)
{
	struct dioh_region *region = running->region;
	const uint64_t first = running->region_first / DIOH_CHUNK_BYTES;
	const uint64_t end = chunk_end(running->region_end);
	struct dioh_intervals left = region->covered;

	if (dioh_intervals_remove(&left, first, end) < 0 || !ends_fit(&left, running->session->running, region, running) ||
	    dioh_intervals_add(&region->touched, first, end) < 0)
		return dioh_error_set(err, ENOBUFS, DIOH_PLACE(PROTOCOL, REGION, region->record.number, running->region_first),
		                      "region %" PRIu32 " has been saved in more than %u separate pieces; fill the gaps first",
		                      region->record.number, DIOH_INTERVALS_MAX);
	region->covered = left;
	return 0;
}

static unsigned part_count(const struct dioh_session_state *session, uint64_t length)
{
	return (unsigned)dioh_max(1, dioh_min(session->worker_count, length / PART_BYTES_MIN));
}

/* The range as one part for each worker, as equal as they can be. */
static int make_parts(struct dioh_memory_params *params, unsigned count, struct dioh_running *running,
                      struct dioh_error *err)
{
	const uint64_t end = params->region_offset + params->length;
	const uint64_t part_bytes = dioh_align_up(dioh_div_up(params->length, count), PART_BYTES_MIN);

	while (params->region_offset < end || running->part_count == 0) {
		struct dioh_transfer *part;

		params->length = dioh_min(part_bytes, end - params->region_offset);
		part = dioh_payload_memory(params, err);
		if (!part)
			return -ENOMEM;
		running->parts[running->part_count++] = part;
		params->region_offset += params->length;
		params->memory_offset += params->length;
	}
	return 0;
}

static int begin_memory(struct dioh_session_state *session, const struct dioh_msg_memory_transfer *what,
                        struct dioh_running *running, struct dioh_error *err)
{
	struct dioh_memory_params params = {
		.save = running->save,
		.layout = &session->layout,
		.region = running->region,
		.memory = running->memory,
		.memory_offset = what->memory_offset,
		.region_offset = what->region_offset,
		.length = what->length,
		.memory_end = what->memory_offset + what->length,
		.flags = what->flags,
	};
	int r;

	if (running->save)
		params.tables_fresh = is_fresh(running);
	r = make_parts(&params, part_count(session, params.length), running, err);
	if (r == 0 && running->save)
		r = mark_touched(running, err);
	if (r == 0)
		dioh_running_begin(session, running);
	return r;
}

int dioh_on_memory_transfer(struct dioh_session_state *session, struct dioh_message *message, struct dioh_error *err)
{
	const struct dioh_msg_memory_transfer *what = (const struct dioh_msg_memory_transfer *)message->payload;
	struct dioh_running *running;
	struct dioh_region *region;
	const struct dioh_memory *memory = NULL;
	int r = check_ready(session, message, err);

	if (r == 0)
		r = find_memory(session, what, &memory, err);
	if (r < 0)
		return r;
	region = dioh_layout_region(&session->layout, what->region);
	if (!region)
		return dioh_error_set(err, ENOENT, PLACE, "region %" PRIu32 " is not in the image's table", what->region);
	r = check_region_source(session, region, err);
	if (r == 0)
		r = check_region_range(region, what, err);
	if (r == 0)
		r = check_memory_range(memory, what, err);
	if (r == 0)
		r = check_selection_range(memory, what, err);
	if (r < 0)
		return r;
	running = new_running(session, message, err);
	if (!running)
		return -ENOMEM;
	set_ranges(running, region, memory, what);
	r = check_no_overlap(session, running, err);
	if (r == 0)
		r = begin_memory(session, what, running, err);
	if (r < 0) {
		dioh_running_free(running);
		return r;
	}
	dioh_session_reply(session, message->header.type, message->header.id, NULL, 0);
	return 0;
}

/* ---- KEEP_REGION ---- */

/* What a save that failed has begun to replace is neither what stood there nor what should. */
static int check_not_mixed(const struct dioh_running *mine, struct dioh_error *err)
{
	const struct dioh_region *region = mine->region;
	const uint64_t first = mine->region_first / DIOH_CHUNK_BYTES, end = chunk_end(mine->region_end);

	for (unsigned i = 0; i < region->touched.count; i++) {
		const uint64_t from = dioh_max(region->touched.at[i].first, first);
		const uint64_t gap = dioh_intervals_first_gap(&region->covered, from);

		if (gap < dioh_min(region->touched.at[i].end, end))
			return dioh_error_set(err, EINVAL, DIOH_PLACE(PROTOCOL, REGION, region->record.number, gap * DIOH_CHUNK_BYTES),
			                      "region %" PRIu32 ": from byte %" PRIu64 " on a save of this session has failed or was "
			                      "cancelled half-way: save that again, it cannot be kept", region->record.number,
			                      gap * DIOH_CHUNK_BYTES);
	}
	return 0;
}

static int check_kept(const struct dioh_session_state *session, const struct dioh_region *region,
                      const struct dioh_msg_keep_region *what, struct dioh_error *err)
{
	const struct dioh_msg_memory_transfer as_save = { .region = what->region, .region_offset = what->offset,
		                                          .length = what->length };
	struct dioh_running mine = { .region = (struct dioh_region *)region, .region_first = what->offset,
		                     .region_end = what->offset + what->length };
	int r;

	if (!session->layout.kept)
		return dioh_error_set(err, EINVAL, PLACE, "KEEP_REGION: the image was not created with CONTINUE");
	r = check_region_source(session, region, err);
	if (r == 0)
		r = check_region_range(region, &as_save, err);
	if (r == 0)
		r = check_no_overlap(session, &mine, err);
	return r < 0 ? r : check_not_mixed(&mine, err);
}

int dioh_on_keep_region(struct dioh_session_state *session, struct dioh_message *message, struct dioh_error *err)
{
	const struct dioh_msg_keep_region *what = (const struct dioh_msg_keep_region *)message->payload;
	const uint64_t first = what->offset / DIOH_CHUNK_BYTES, end = chunk_end(what->offset + what->length);
	struct dioh_intervals covered;
	struct dioh_region *region;
	int r = check_ready(session, message, err);

	if (r < 0)
		return r;
	region = dioh_layout_region(&session->layout, what->region);
	if (!region)
		return dioh_error_set(err, ENOENT, PLACE, "region %" PRIu32 " is not in the image's table", what->region);
	r = check_kept(session, region, what, err);
	if (r < 0)
		return r;
	covered = region->covered;
	if (dioh_intervals_add(&covered, first, end) < 0 || !ends_fit(&covered, session->running, region, NULL) ||
	    dioh_intervals_add(&region->touched, first, end) < 0)
		return dioh_error_set(err, ENOBUFS, PLACE, "region %" PRIu32 " is kept in more than %u separate pieces",
		                      what->region, DIOH_INTERVALS_MAX);
	region->covered = covered;
	dioh_session_reply(session, message->header.type, message->header.id, NULL, 0);
	return 0;
}

/* ---- SAVE_STREAM, LOAD_STREAM ---- */

static int check_stream(struct dioh_session_state *session, const struct dioh_msg_stream_transfer *what,
                        struct dioh_stream_entry **ret_entry, struct dioh_error *err)
{
	const struct dioh_session_stream *stream = &session->streams[what->stream];
	struct dioh_stream_entry *entry = dioh_layout_stream(&session->layout, what->entry);

	if (!stream->known)
		return dioh_error_set(err, ENOENT, PLACE, "stream %" PRIu32 " was not attached", what->stream);
	if (stream->fd < 0)
		return dioh_error_set(err, EBADF, PLACE, "stream %" PRIu32 " has been used: it serves one transfer",
		                      what->stream);
	if (!entry)
		return dioh_error_set(err, ENOENT, PLACE, "stream entry %" PRIu32 " is not in the image's table", what->entry);
	if (session->image.direction == DIOH_DIRECTION_SAVE && entry->begun)
		return dioh_error_set(err, entry->busy ? EBUSY : EEXIST, PLACE,
		                      "stream entry %" PRIu32 " %s: an entry is saved once", what->entry,
		                      entry->busy ? "is being saved" : "has been saved into already");
	if (session->layout.ops->is_qemus && session->image.direction == DIOH_DIRECTION_SAVE &&
	    what->stream != session->layout.device_state.stream)
		return dioh_error_set(err, EINVAL, PLACE,
		                      "stream %" PRIu32 " is not the one that CREATE_IMAGE named for the device state, %" PRIu32,
		                      what->stream, session->layout.device_state.stream);
	*ret_entry = entry;
	return 0;
}

static struct dioh_transfer *new_stream_transfer(const struct dioh_stream_params *params, struct dioh_error *err)
{
	if (!params->layout->ops->is_qemus)
		return dioh_payload_stream(params, err);
	return params->save ? dioh_payload_qemu_save(params, err) : dioh_payload_qemu_load(params, err);
}

int dioh_on_stream_transfer(struct dioh_session_state *session, struct dioh_message *message, struct dioh_error *err)
{
	const struct dioh_msg_stream_transfer *what = (const struct dioh_msg_stream_transfer *)message->payload;
	struct dioh_stream_params params = { .layout = &session->layout, .stream = what->stream, .flags = what->flags };
	struct dioh_transfer *transfer;
	struct dioh_running *running;
	int r = check_ready(session, message, err);

	if (r == 0)
		r = check_stream(session, what, &params.entry, err);
	if (r < 0)
		return r;
	running = new_running(session, message, err);
	if (!running)
		return -ENOMEM;
	params.save = running->save;
	params.fd = session->streams[what->stream].fd;
	params.large_pipe = session->streams[what->stream].large_pipe;
	params.slot = DIOH_SLOT_STREAM + what->stream;
	params.early = session->streams[what->stream].early;
	params.early_bytes = session->streams[what->stream].early_bytes;
	params.channel_count = running->save ? session->layout.device_state.channels : 0;
	for (unsigned i = 0; i < params.channel_count; i++)
		params.channel_fds[i] = session->streams[what->stream + 1 + i].fd;
	transfer = new_stream_transfer(&params, err);
	if (!transfer) {
		free(running);
		return -ENOMEM;
	}
	for (unsigned i = 0; i <= params.channel_count; i++)
		session->streams[what->stream + i].fd = -1; /* the transfer's now */
	running->entry = params.entry;
	params.entry->busy = params.entry->begun = running->save;
	running->parts[running->part_count++] = transfer;
	dioh_running_begin(session, running);
	dioh_session_reply(session, message->header.type, message->header.id, NULL, 0);
	return 0;
}

void dioh_session_broken(struct dioh_job *job)
{
	const struct dioh_worker *worker = dioh_container_of(job, struct dioh_worker, broken_job);
	struct dioh_session_state *session = dioh_container_of(worker->config.session, struct dioh_session_state, mailbox);
	struct dioh_msg_error last_words;

	fprintf(stderr, "diohelper: %s\n", worker->broken_error.text);
	dioh_error_encode(&worker->broken_error, &last_words);
	dioh_session_event(session, DIOH_MSG_BROKEN, 0, &last_words, sizeof(last_words));
	/* I/O may be in flight that nobody can wait for any more: nothing may be taken down, nothing called complete. */
	_exit(EXIT_FAILURE);
}

/* ---- CANCEL ---- */

void dioh_session_cancel_all(struct dioh_session_state *session)
{
	for (struct dioh_running *running = session->running; running; running = running->next)
		dioh_running_cancel(running);
	atomic_store(&session->abandoned, true);
}

int dioh_on_cancel(struct dioh_session_state *session, struct dioh_message *message, struct dioh_error *err)
{
	const struct dioh_msg_cancel *request = (const struct dioh_msg_cancel *)message->payload;
	struct dioh_running *running = find_running(session, request->transfer);
	struct dioh_msg_cancel_reply reply = { 0 };
	uint64_t oldest_ns;

	if (request->transfer == 0) {
		dioh_session_cancel_all(session);
	} else if (running) {
		dioh_running_cancel(running);
	} else if (session->finish.active && session->finish.id == request->transfer) {
		atomic_store(&session->abandoned, true);
	} else {
		return dioh_error_set(err, ENOENT, PLACE, "CANCEL: no transfer %" PRIu32 " runs", request->transfer);
	}
	reply.in_flight = dioh_session_in_flight(session, &oldest_ns);
	dioh_session_reply(session, DIOH_MSG_CANCEL, message->header.id, &reply, sizeof(reply));
	return 0;
}
