/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* session_finish.c - FINISH: refused while anything is missing; else the layout's commit, by the control-I/O thread. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "align.h"
#include "clock.h"
#include "proto.h"
#include "session.h"

#define PLACE DIOH_PLACE(FINISH, SESSION, 0, DIOH_OFFSET_NONE)

/* ---- is all there? ---- */

static int check_regions(const struct dioh_image_layout *layout, struct dioh_error *err)
{
	for (unsigned i = 0; i < layout->region_count; i++) {
		const struct dioh_record_region *record = &layout->regions[i].record;
		uint64_t gap;

		if (record->flags & DIOH_REGION_IN_STREAM)
			continue;
		gap = dioh_intervals_first_gap(&layout->regions[i].covered, 0);

		if (gap < dioh_div_up(record->bytes, DIOH_CHUNK_BYTES))
			return dioh_error_set(err, ENODATA, DIOH_PLACE(FINISH, REGION, record->number, gap * DIOH_CHUNK_BYTES),
			                      "FINISH: region %" PRIu32 " \"%.100s\" has not been saved from byte %" PRIu64 " on",
			                      record->number, record->name, gap * DIOH_CHUNK_BYTES);
	}
	return 0;
}

static int check_streams(const struct dioh_image_layout *layout, struct dioh_error *err)
{
	for (unsigned i = 0; i < layout->stream_count; i++) {
		const struct dioh_record_stream *record = &layout->streams[i].record;

		if (!layout->streams[i].saved)
			return dioh_error_set(err, ENODATA, DIOH_PLACE(FINISH, STREAM, record->number, DIOH_OFFSET_NONE),
			                      "FINISH: stream %" PRIu32 " \"%.100s\" has not been saved", record->number,
			                      record->name);
	}
	return 0;
}

static int check_complete(const struct dioh_session_state *session, struct dioh_error *err)
{
	const struct dioh_image_layout *layout = &session->layout;
	const int sync_error = atomic_load(&session->image.sync_error);
	int r;

	if (session->stage != IMAGE_READY && session->stage != IMAGE_HEADER)
		return dioh_error_set(err, ENODATA, PLACE, "FINISH: there is no image yet");
	if (sync_error) /* what is missing is missing because of that */
		return dioh_error_errno(err, sync_error, DIOH_PLACE(SYNC, IMAGE, 0, DIOH_OFFSET_NONE),
		                        "FINISH: a sync has failed before, what was written may be lost");
	r = check_regions(layout, err);
	if (r == 0)
		r = check_streams(layout, err);
	if (r == 0 && layout->header_written < layout->header_bytes)
		r = dioh_error_set(err, ENODATA, DIOH_PLACE(FINISH, IMAGE, 0, layout->header_written),
		                   "FINISH: of the header's %" PRIu64 " bytes only %" PRIu64 " have come", layout->header_bytes,
		                   layout->header_written);
	return r;
}

static int check_patch(const struct dioh_session_state *session, const struct dioh_msg_finish *request,
                       struct dioh_error *err)
{
	if (session->image.direction == DIOH_DIRECTION_LOAD && request->patch_bytes)
		return dioh_error_set(err, EINVAL, PLACE, "FINISH: a load has no header to patch");
	if (!dioh_range_ok(request->patch_offset, request->patch_bytes, session->layout.header_bytes))
		return dioh_error_set(err, ERANGE, DIOH_PLACE(FINISH, IMAGE, 0, request->patch_offset),
		                      "FINISH: a patch of %" PRIu32 " bytes at %" PRIu64 " lies outside a header of %" PRIu64,
		                      request->patch_bytes, request->patch_offset, session->layout.header_bytes);
	return 0;
}

/* ---- the commit ---- */

static void committed(struct dioh_job *job)
{
	struct dioh_finish *finish = dioh_container_of(job, struct dioh_finish, job);
	struct dioh_session_state *session = finish->session;
	struct dioh_msg_complete figures = { .elapsed_ns = dioh_now_ns() - finish->begun_ns,
		                             .sync_ns = finish->commit.sync_ns };

	finish->active = false;
	session->finished = true;
	session->exit_status = finish->result < 0;
	dioh_session_complete(session, finish->id, &figures, finish->result < 0 ? &finish->error : NULL);
}

static void commit(struct dioh_job *job) /* control-I/O thread */
{
	struct dioh_finish *finish = dioh_container_of(job, struct dioh_finish, job);
	struct dioh_image_layout *layout = &finish->session->layout;

	if (finish->session->image.direction == DIOH_DIRECTION_SAVE)
		finish->result = layout->ops->commit(layout, &finish->commit, &finish->error);
	if (finish->result == 0 && finish->commit.mode == DIOH_FINISH_DURABLE)
		dioh_image_drop_cache(&finish->session->image);
	finish->job.handle = committed;
	dioh_mailbox_post(&finish->session->mailbox, &finish->job);
}

static void begin(struct dioh_session_state *session, const struct dioh_message *message)
{
	const struct dioh_msg_finish *request = (const struct dioh_msg_finish *)message->payload;
	struct dioh_finish *finish = &session->finish;

	finish->session = session;
	finish->active = true;
	finish->id = message->header.id;
	finish->begun_ns = dioh_now_ns();
	finish->commit.mode = request->mode;
	finish->commit.patch_offset = request->patch_offset;
	finish->commit.patch_bytes = request->patch_bytes;
	finish->commit.cancelled = &session->abandoned;
	memcpy(finish->commit.patch, request + 1, request->patch_bytes);
	finish->job.handle = commit;
	dioh_mailbox_post(&session->control.mailbox, &finish->job);
}

int dioh_on_finish(struct dioh_session_state *session, struct dioh_message *message, struct dioh_error *err)
{
	const struct dioh_msg_finish *request = (const struct dioh_msg_finish *)message->payload;
	int r = 0;

	if (session->running)
		return dioh_error_set(err, EBUSY, PLACE, "FINISH: transfer %" PRIu32 " still runs", session->running->id);
	if (session->image.direction == DIOH_DIRECTION_SAVE)
		r = check_complete(session, err);
	if (r == 0)
		r = check_patch(session, request, err);
	if (r < 0)
		return r;
	session->phase = PHASE_FINISH;
	/* Before the reply: if nobody is there to take it, that is a cancel. */
	atomic_store(&session->abandoned, false);
	dioh_session_reply(session, DIOH_MSG_FINISH, message->header.id, NULL, 0);
	begin(session, message);
	return 0;
}
