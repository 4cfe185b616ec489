/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * session_progress.c - how far it is: STATUS, when it is asked; PROGRESS and STUCK, as they are due. These two are sent only
 * to a manager that has read all that came before, so that they neither fill its socket nor delay anything that matters.
 */
#include "align.h"
#include "clock.h"
#include "session.h"

#define TICK_NS (100 * DIOH_NS_PER_MS)
#define SAMPLE_NS DIOH_NS_PER_S

/* ---- what is waited for ---- */

unsigned dioh_session_in_flight(const struct dioh_session_state *session, uint64_t *ret_oldest_ns)
{
	uint64_t now = dioh_now_ns();
	uint64_t oldest = 0;
	unsigned in_flight = 0;

	for (unsigned i = 0; i < session->worker_count; i++) {
		uint64_t since = atomic_load(&session->workers[i].oldest_ns);

		in_flight += atomic_load(&session->workers[i].in_flight);
		if (since)
			oldest = dioh_max(oldest, now - dioh_min(since, now));
	}
	*ret_oldest_ns = oldest;
	return in_flight;
}

struct dioh_msg_stuck dioh_session_waits(const struct dioh_session_state *session, uint64_t now)
{
	struct dioh_msg_stuck stuck = { 0 };
	uint64_t since = atomic_load(&session->image.waits_since_ns);

	stuck.in_flight = dioh_session_in_flight(session, &stuck.oldest_ns);
	if (since && since < now) {
		stuck.in_flight++;
		if (now - since > stuck.oldest_ns)
			stuck.oldest_ns = now - since;
	}
	return stuck;
}

/* ---- STATUS ---- */

/* What goes on. The door's phases (session.h) are what is permitted. */
static uint32_t phase_of(const struct dioh_session_state *session)
{
	if (session->finished)
		return DIOH_PHASE_FINISHED;
	if (!session->sealed)
		return DIOH_PHASE_ATTACH;
	if (session->finish.active || session->request->active)
		return DIOH_PHASE_SYNC;
	return session->running ? DIOH_PHASE_TRANSFER : DIOH_PHASE_READY;
}

int dioh_on_status(struct dioh_session_state *session, struct dioh_message *message, struct dioh_error *err)
{
	struct dioh_msg_status_reply reply = { .phase = phase_of(session), .transfers = session->running_count };

	(void)err;
	reply.in_flight = dioh_session_in_flight(session, &reply.oldest_ns);
	reply.done_bytes = session->done_bytes;
	for (const struct dioh_running *running = session->running; running; running = running->next)
		reply.done_bytes += dioh_running_done_bytes(running);
	dioh_session_reply(session, DIOH_MSG_STATUS, message->header.id, &reply, sizeof(reply));
	return 0;
}

/* ---- PROGRESS, STUCK ---- */

struct progress {
	struct dioh_msg_progress head;
	struct dioh_msg_progress_entry entries[DIOH_TRANSFERS_MAX + 1];
};

static void sample_rate(struct dioh_running *running, uint64_t done, uint64_t now)
{
	uint64_t elapsed = now - running->sampled_ns;

	/* The first figure comes early, later ones over a second or so. */
	if (elapsed < SAMPLE_NS && running->bytes_per_second)
		return;
	if (elapsed < TICK_NS / 2)
		return;
	running->bytes_per_second = (uint64_t)((double)(done - running->sampled_bytes) * 1e9 / (double)elapsed);
	running->sampled_bytes = done;
	running->sampled_ns = now;
}

static void add_running(struct progress *progress, struct dioh_running *running, uint64_t now)
{
	struct dioh_msg_progress_entry *entry = &progress->entries[progress->head.count++];
	uint64_t done = dioh_running_done_bytes(running);

	sample_rate(running, done, now);
	*entry = (struct dioh_msg_progress_entry){
		.transfer = running->id,
		.phase = DIOH_PHASE_TRANSFER,
		.done_bytes = done,
		.total_bytes = dioh_running_total_bytes(running),
		.bytes_per_second = running->bytes_per_second,
	};
}

static void send_progress(struct dioh_session_state *session, uint64_t now)
{
	struct progress progress = { .head.phase = DIOH_PHASE_TRANSFER };

	for (struct dioh_running *running = session->running; running; running = running->next)
		add_running(&progress, running, now);
	if (session->finish.active)
		progress.entries[progress.head.count++] =
			(struct dioh_msg_progress_entry){ .transfer = session->finish.id, .phase = DIOH_PHASE_SYNC };
	if (!session->running)
		progress.head.phase = DIOH_PHASE_SYNC;
	dioh_session_event(session, DIOH_MSG_PROGRESS, 0, &progress,
	                   (uint32_t)(sizeof(progress.head) + progress.head.count * sizeof(progress.entries[0])));
}

static void send_stuck(struct dioh_session_state *session, uint64_t now)
{
	const uint64_t limit = session->options->stuck_timeout_s * DIOH_NS_PER_S;
	const struct dioh_msg_stuck stuck = dioh_session_waits(session, now);

	if (stuck.oldest_ns < limit || now - session->stuck_ns < limit)
		return;
	session->stuck_ns = now;
	dioh_session_event(session, DIOH_MSG_STUCK, 0, &stuck, sizeof(stuck));
}

void dioh_session_tick(struct dioh_session_state *session)
{
	uint64_t now = dioh_now_ns();

	if (!session->sealed || session->hung_up || !dioh_session_busy(session) || now - session->progress_ns < TICK_NS)
		return;
	if (!dioh_session_out_empty(session))
		return;
	session->progress_ns = now;
	send_stuck(session, now);
	send_progress(session, now);
}
