/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * session_running.c - transfers that run, from the door's side: handed to the workers, a memory transfer in parts where there
 * are several; cancelled; and ended, when the last part has come back. One part that fails takes the others with it. What a
 * region has had saved into it is kept here, since FINISH asks for it.
 */
#include <stdlib.h>
#include <string.h>

#include "align.h"
#include "clock.h"
#include "session.h"

static void completed(struct dioh_job *job);

/* Streams are in the first worker's ring only. */
static struct dioh_worker *choose_worker(struct dioh_session_state *session, const struct dioh_running *running)
{
	return &session->workers[running->entry ? 0 : session->worker_next++ % session->worker_count];
}

void dioh_running_begin(struct dioh_session_state *session, struct dioh_running *running)
{
	running->next = session->running;
	running->begun_ns = running->sampled_ns = dioh_now_ns();
	running->parts_left = running->part_count;
	session->running = running;
	session->running_count++;
	for (unsigned i = 0; i < running->part_count; i++) {
		struct dioh_transfer *part = running->parts[i];

		part->id = running->id;
		part->answers = &session->mailbox;
		part->completed = completed;
		part->owner = running;
		dioh_worker_begin(choose_worker(session, running), part);
	}
}

uint64_t dioh_running_done_bytes(const struct dioh_running *running)
{
	uint64_t done = 0;

	for (unsigned i = 0; i < running->part_count; i++)
		done += atomic_load(&running->parts[i]->done_bytes);
	return done;
}

uint64_t dioh_running_total_bytes(const struct dioh_running *running)
{
	uint64_t total = 0;

	for (unsigned i = 0; i < running->part_count; i++)
		total += atomic_load(&running->parts[i]->total_bytes);
	return total;
}

void dioh_running_cancel(struct dioh_running *running)
{
	for (unsigned i = 0; i < running->part_count; i++) {
		atomic_store(&running->parts[i]->cancel, true);
		dioh_mailbox_wake(&running->parts[i]->worker->mailbox);
	}
}

void dioh_running_free(struct dioh_running *running)
{
	for (unsigned i = 0; i < running->part_count; i++) {
		running->parts[i]->payload->close(running->parts[i]);
		free(running->parts[i]);
	}
	free(running);
}

/* ---- the end ---- */

static void record_success(struct dioh_running *running)
{
	if (!running->save)
		return;
	if (running->entry)
		running->entry->saved = true;
	/* It cannot fail: when the save began it was seen to that there is room, whatever has ended since. */
	if (running->region)
		(void)dioh_intervals_add(&running->region->covered, running->region_first / DIOH_CHUNK_BYTES,
		                         dioh_div_up(running->region_end, DIOH_CHUNK_BYTES));
}

void dioh_session_complete(struct dioh_session_state *session, uint32_t id, struct dioh_msg_complete *figures,
                           const struct dioh_error *err)
{
	memset(&figures->error, 0, sizeof(figures->error));
	if (err)
		dioh_error_encode(err, &figures->error);
	dioh_session_event(session, DIOH_MSG_COMPLETE, id, figures, sizeof(*figures));
}

static void add_figures(struct dioh_msg_complete *sum, const struct dioh_msg_complete *part)
{
	sum->total_bytes += part->total_bytes;
	sum->data_bytes += part->data_bytes;
	sum->zero_bytes += part->zero_bytes;
	sum->hole_bytes += part->hole_bytes;
	sum->io_bytes += part->io_bytes;
	sum->io_count += part->io_count;
	sum->scan_ns += part->scan_ns;
	sum->io_ns += part->io_ns;
	sum->table_ns += part->table_ns;
	for (unsigned i = 0; i < DIOH_HISTOGRAM_BUCKETS; i++)
		sum->histogram[i] += part->histogram[i];
}

static void end(struct dioh_running *running)
{
	struct dioh_session_state *session = running->session;
	struct dioh_running **link = &session->running;

	while (*link != running)
		link = &(*link)->next;
	*link = running->next;
	session->running_count--;
	if (running->entry)
		running->entry->busy = false;
	if (!running->failed)
		record_success(running);
	session->done_bytes += dioh_running_done_bytes(running);
	running->figures.elapsed_ns = dioh_now_ns() - running->begun_ns;
	dioh_session_complete(session, running->id, &running->figures, running->failed ? &running->error : NULL);
	for (unsigned i = 0; i < running->part_count; i++)
		free(running->parts[i]);
	free(running);
}

/* What a worker has found out all look at, also who waits for a stream that is silent. */
static void tell_of_sync_error(struct dioh_session_state *session)
{
	if (!atomic_load(&session->image.sync_error))
		return;
	for (unsigned i = 0; i < session->worker_count; i++)
		dioh_mailbox_wake(&session->workers[i].mailbox);
}

static void completed(struct dioh_job *job)
{
	struct dioh_transfer *part = dioh_container_of(job, struct dioh_transfer, job);
	struct dioh_running *running = part->owner;

	tell_of_sync_error(running->session);
	add_figures(&running->figures, &part->figures);
	if (part->failed && !running->failed) {
		running->failed = true;
		running->error = part->error;
		dioh_running_cancel(running);
	}
	if (--running->parts_left == 0)
		end(running);
}
