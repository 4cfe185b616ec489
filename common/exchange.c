/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * exchange.c - requests and replies, and events in between.
 *
 * Owns the connection, and the events that arrived while somebody waited for a reply. At most one request is under
 * way, so a message that is no event is its reply or a breach. Neither side is trusted: the caller's requests are
 * checked before they are sent, what the helper sends before it is looked at. What is kept is bounded: a place for
 * each transfer that has been begun and whose COMPLETE has not been handed out (there are DIOH_BEGUN_MAX of them,
 * and no transfer is begun without one), the newest PROGRESS and the newest STUCK.
 *
 * A connection that has failed once stays so: its error is kept and answered from then on. But events that came
 * before are handed out first: a COMPLETE may be the helper's last word.
 *
 * Called by client.c and client_image.c.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "exchange.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "deadline.h"
#include "proto.h"
#include "spawn.h"

#define PLACE DIOH_PLACE(PROTOCOL, SESSION, 0, DIOH_OFFSET_NONE)
#define DESCRIBE_MS 100 /* between the end of the connection and that of the process */

int dioh_session_new(int fd, pid_t pid, struct dioh_session **ret_session, struct dioh_error *err)
{
	struct dioh_session *session = calloc(1, sizeof(*session));

	if (!session)
		return dioh_error_errno(err, ENOMEM, PLACE, "no memory for a session");
	session->fd = fd;
	session->pid = pid;
	session->deadline = -1;
	dioh_channel_make_room(fd);
	*ret_session = session;
	return 0;
}

void dioh_session_free(struct dioh_session *session)
{
	if (!session)
		return;
	if (session->fd >= 0) {
		(void)shutdown(session->fd, SHUT_RDWR); /* close(2) is not enough while there are copies of it */
		close(session->fd);
	}
	free(session);
}

/* ---- the end of a connection ----------------------------------------------------------------- */

/* What every call answers from then on. `wait_ms`: so long the caller may wait to learn how the child ended. */
static int answer_broken(struct dioh_session *session, int wait_ms, struct dioh_error *err)
{
	if (wait_ms < 0 || wait_ms > DESCRIBE_MS)
		wait_ms = DESCRIBE_MS;
	if (session->end_untold)
		session->end_untold = !dioh_child_describe_end(session->pid, wait_ms, session->broken.text);
	if (err)
		*err = session->broken;
	return -session->broken.code;
}

static int become_broken(struct dioh_session *session, const struct dioh_error *why)
{
	session->broken = *why;
	return -why->code;
}

/* Its peer is gone: there may be more to say of that. */
static int lose_peer(struct dioh_session *session, const struct dioh_error *why)
{
	session->end_untold = session->pid > 0;
	return become_broken(session, why);
}

int dioh_exchange_break(struct dioh_session *session, const char *what, struct dioh_error *err)
{
	struct dioh_error why;

	dioh_error_set(&why, EBADMSG, PLACE, "%s", what);
	become_broken(session, &why);
	return answer_broken(session, 0, err);
}

/* ---- events ---------------------------------------------------------------------------------- */

static struct dioh_begun *find_begun(struct dioh_session *session, uint32_t id)
{
	for (unsigned i = 0; i < DIOH_BEGUN_MAX; i++)
		if (session->begun[i].id == id)
			return &session->begun[i];
	return NULL;
}

static int keep_complete(struct dioh_session *session, struct dioh_error *err)
{
	const struct dioh_message *in = &session->in;
	struct dioh_begun *begun = find_begun(session, in->header.id);

	if (!begun || begun->arrival != 0)
		return dioh_error_set(err, EBADMSG, PLACE,
		                      "COMPLETE came for transfer %" PRIu32 ", which does not run",
		                      in->header.id);
	memcpy(&begun->complete, in->payload, sizeof(begun->complete));
	begun->arrival = ++session->arrivals;
	return 0;
}

static void keep_progress(struct dioh_session *session)
{
	const uint8_t *payload = session->in.payload;
	struct dioh_msg_progress *progress = &session->progress;

	memcpy(progress, payload, sizeof(*progress));
	memcpy(session->progress_entries, payload + sizeof(*progress),
	       progress->count * sizeof(session->progress_entries[0]));
	session->progress_arrival = ++session->arrivals;
}

static void keep_stuck(struct dioh_session *session)
{
	memcpy(&session->stuck, session->in.payload, sizeof(session->stuck));
	session->stuck_arrival = ++session->arrivals;
}

static int keep_event(struct dioh_session *session, struct dioh_error *err)
{
	const struct dioh_message *in = &session->in;
	int r = dioh_proto_check_event(&in->header, in->payload, in->fd_count, err);

	if (r < 0)
		return r;
	if (in->header.type == DIOH_MSG_COMPLETE)
		return keep_complete(session, err);
	if (in->header.type == DIOH_MSG_PROGRESS)
		keep_progress(session);
	else if (in->header.type == DIOH_MSG_STUCK)
		keep_stuck(session);
	return 0;
}

/* ---- receiving ------------------------------------------------------------------------------- */

static bool is_event(uint32_t type)
{
	return type >= DIOH_MSG_PROGRESS;
}

/*
 * The helper's last words tell why it is gone. Their errno is only named: by its value the helper's end would look like
 * the failure of a transfer or a request, which it is not.
 */
static int take_last_words(const struct dioh_message *in, struct dioh_error *err)
{
	struct dioh_msg_error wire;
	struct dioh_error last;
	const char *known;
	char name[32];

	memcpy(&wire, in->payload, sizeof(wire));
	dioh_error_decode(&wire, &last);
	known = strerrorname_np(last.code);
	if (known)
		snprintf(name, sizeof(name), "%s", known);
	else
		snprintf(name, sizeof(name), "errno %d", last.code);
	*err = last;
	err->object = DIOH_OBJECT_SESSION;
	err->code = EPIPE;
	snprintf(err->text, sizeof(err->text), "%.*s (%s)",
	         (int)(sizeof(err->text) - sizeof(" ()") - strlen(name)), last.text, name);
	return -err->code;
}

/* 1: the reply to `awaited` (NULL: none is due); 0: an event, which has been kept. */
static int examine(struct dioh_session *session, const struct dioh_msg_header *awaited,
                   struct dioh_error *err)
{
	struct dioh_message *in = &session->in;
	int r;

	if (is_event(in->header.type))
		r = keep_event(session, err);
	else if (!awaited)
		r = dioh_error_set(err, EBADMSG, PLACE,
		                   "the helper sent a message of type %" PRIu32 " unasked",
		                   in->header.type);
	else
		r = dioh_proto_check_reply(&in->header, in->payload, in->fd_count, awaited->type,
		                           awaited->id, err);
	dioh_message_close_fds(in);
	if (r < 0) {
		err->code = EBADMSG; /* whatever is wrong with it */
		return -EBADMSG;
	}
	if (in->header.type == DIOH_MSG_BROKEN)
		return take_last_words(in, err);
	return is_event(in->header.type) ? 0 : 1;
}

/* Takes one message, without waiting. -EAGAIN: there is none; any other failure is the connection's end. */
static int receive(struct dioh_session *session, const struct dioh_msg_header *awaited)
{
	struct dioh_error why;
	int r = dioh_channel_receive(session->fd, &session->in, MSG_DONTWAIT, &why);

	if (r == -EAGAIN)
		return r;
	if (r == -EPIPE)
		return lose_peer(session, &why);
	if (r == 0)
		r = examine(session, awaited, &why);
	return r < 0 ? become_broken(session, &why) : r;
}

/* 0: ready, or not in time; -EINTR. Errors of the socket count as ready: who reads then learns of them. */
static int await(struct dioh_session *session, short events, int timeout_ms)
{
	struct pollfd ready = { session->fd, events, 0 };

	return poll(&ready, 1, timeout_ms) < 0 && errno == EINTR ? -EINTR : 0;
}

/* As await(), for a request, which no signal interrupts; or -ETIMEDOUT, which is the connection's end. */
static int await_for(struct dioh_session *session, const struct dioh_msg_header *header, short events)
{
	int left = dioh_deadline_left(session->deadline);
	struct dioh_error why;

	if (left != 0) {
		(void)await(session, events, left);
		return 0;
	}
	dioh_error_set(&why, ETIMEDOUT, PLACE, "%s was not answered within %d s",
	               dioh_msg_name(header->type), DIOH_HELLO_MS / 1000);
	return become_broken(session, &why);
}

/* ---- requests -------------------------------------------------------------------------------- */

/* An id that neither a transfer nor, as far as that is possible, a recent request has. */
static uint32_t next_id(struct dioh_session *session)
{
	do
		session->last_id++;
	while (session->last_id == 0 || find_begun(session, session->last_id));
	return session->last_id;
}

/* What the caller did wrong costs him an error, not the session. */
static int check_own(const struct dioh_msg_header *header, const struct dioh_request *request,
                     struct dioh_error *err)
{
	int r = dioh_proto_check_request(header, request->payload, request->fd_count, err);

	if (r == 0)
		return 0;
	if (err)
		err->code = EINVAL;
	return -EINVAL;
}

int dioh_exchange_check(const struct dioh_request *request, struct dioh_error *err)
{
	const struct dioh_msg_header header = { .type = request->type, .id = 1, .size = request->size };

	return check_own(&header, request, err);
}

/*
 * The helper reads no request while it cannot get rid of what it has to say: who waits for room must listen. At the
 * end of the connection what has arrived is taken in first.
 */
static int send_request(struct dioh_session *session, const struct dioh_msg_header *header,
                        const struct dioh_request *request, struct dioh_error *err)
{
	struct dioh_error why;
	int r, end;

	for (;;) {
		r = dioh_channel_send(session->fd, header, request->payload, request->fds,
		                      request->fd_count, MSG_DONTWAIT, &why);
		if (r != -EAGAIN && r != -EPIPE)
			break;
		end = r == -EAGAIN ? await_for(session, header, POLLIN | POLLOUT) : 0;
		if (end == 0)
			end = receive(session, NULL);
		if (end == -EAGAIN && r == -EPIPE)
			end = lose_peer(session, &why);
		if (end != 0 && end != -EAGAIN)
			return answer_broken(session, DESCRIBE_MS, err);
	}
	if (r < 0 && err)
		*err = why;
	return r;
}

static int await_reply(struct dioh_session *session, const struct dioh_msg_header *awaited,
                       struct dioh_error *err)
{
	int r;

	do {
		r = receive(session, awaited);
		if (r == -EAGAIN || r == 0)
			r = await_for(session, awaited, POLLIN);
	} while (r == 0);
	return r < 0 ? answer_broken(session, DESCRIBE_MS, err) : 0;
}

static int refused(const struct dioh_session *session, struct dioh_error *err)
{
	struct dioh_msg_error wire;
	struct dioh_error decoded;

	memcpy(&wire, session->in.payload, sizeof(wire));
	dioh_error_decode(&wire, &decoded);
	if (err)
		*err = decoded;
	return -decoded.code;
}

static int exchange(struct dioh_session *session, uint32_t id, const struct dioh_request *request,
                    struct dioh_error *err)
{
	struct dioh_msg_header header = { .type = request->type, .id = id, .size = request->size };
	int r;

	r = check_own(&header, request, err);
	if (r < 0)
		return r;
	r = send_request(session, &header, request, err);
	if (r < 0)
		return r;
	r = await_reply(session, &header, err);
	if (r < 0)
		return r;
	if (session->in.header.flags & DIOH_MSG_ERROR)
		return refused(session, err);
	if (request->ret_reply)
		memcpy(request->ret_reply, session->in.payload, session->in.header.size);
	return 0;
}

int dioh_exchange(struct dioh_session *session, const struct dioh_request *request,
                  struct dioh_error *err)
{
	if (session->broken.code != 0)
		return answer_broken(session, 0, err);
	return exchange(session, next_id(session), request, err);
}

/* The last place is FINISH's. */
static struct dioh_begun *free_place(struct dioh_session *session, uint32_t type)
{
	unsigned count = 0;

	for (unsigned i = 0; i < DIOH_BEGUN_MAX; i++)
		count += session->begun[i].id != 0;
	if (count == DIOH_BEGUN_MAX || (count == DIOH_TRANSFERS_MAX && type != DIOH_MSG_FINISH))
		return NULL;
	return find_begun(session, 0);
}

int dioh_exchange_begin(struct dioh_session *session, const struct dioh_request *request,
                        uint32_t *ret_transfer, struct dioh_error *err)
{
	struct dioh_begun *begun;
	uint32_t id;
	int r;

	if (session->broken.code != 0)
		return answer_broken(session, 0, err);
	begun = free_place(session, request->type);
	if (!begun)
		return dioh_error_set(err, EBUSY, PLACE,
		                      "%s: %u transfers run, or have ended unnoticed",
		                      dioh_msg_name(request->type), DIOH_TRANSFERS_MAX);
	id = next_id(session);
	*begun = (struct dioh_begun){ .id = id };
	r = exchange(session, id, request, err);
	if (r < 0) {
		*begun = (struct dioh_begun){ 0 };
		return r;
	}
	if (ret_transfer)
		*ret_transfer = id;
	return 0;
}

/* ---- handing events out ---------------------------------------------------------------------- */

static void hand_out_complete(struct dioh_begun *begun, struct dioh_event *ret_event)
{
	ret_event->type = DIOH_EVENT_COMPLETE;
	ret_event->transfer = begun->id;
	ret_event->complete = begun->complete;
	dioh_error_decode(&begun->complete.error, &ret_event->error);
	*begun = (struct dioh_begun){ 0 };
}

static void hand_out_progress(struct dioh_session *session, struct dioh_event *ret_event)
{
	ret_event->type = DIOH_EVENT_PROGRESS;
	ret_event->phase = session->progress.phase;
	ret_event->progress_count = session->progress.count;
	memcpy(ret_event->progress, session->progress_entries,
	       session->progress.count * sizeof(ret_event->progress[0]));
	session->progress_arrival = 0;
}

static void hand_out_stuck(struct dioh_session *session, struct dioh_event *ret_event)
{
	ret_event->type = DIOH_EVENT_STUCK;
	ret_event->stuck = session->stuck;
	session->stuck_arrival = 0;
}

static struct dioh_begun *first_completed(struct dioh_session *session)
{
	struct dioh_begun *first = NULL;

	for (unsigned i = 0; i < DIOH_BEGUN_MAX; i++) {
		struct dioh_begun *begun = &session->begun[i];

		if (begun->arrival != 0 && (!first || begun->arrival < first->arrival))
			first = begun;
	}
	return first;
}

static bool comes_before(uint64_t arrival, uint64_t other)
{
	return arrival != 0 && (other == 0 || arrival < other);
}

/* In the order of their arrival. */
static bool hand_out(struct dioh_session *session, struct dioh_event *ret_event)
{
	struct dioh_begun *completed = first_completed(session);
	uint64_t complete = completed ? completed->arrival : 0;
	uint64_t progress = session->progress_arrival, stuck = session->stuck_arrival;

	if (complete == 0 && progress == 0 && stuck == 0)
		return false;

	memset(ret_event, 0, sizeof(*ret_event));
	if (comes_before(complete, progress) && comes_before(complete, stuck))
		hand_out_complete(completed, ret_event);
	else if (comes_before(progress, stuck))
		hand_out_progress(session, ret_event);
	else
		hand_out_stuck(session, ret_event);
	return true;
}

int dioh_exchange_poll(struct dioh_session *session, struct dioh_event *ret_event, int timeout_ms,
                       struct dioh_error *err)
{
	int64_t deadline = dioh_deadline(timeout_ms);

	for (;;) {
		int left = dioh_deadline_left(deadline);

		if (hand_out(session, ret_event))
			return 1;
		if (session->broken.code != 0)
			return answer_broken(session, left, err);
		if (receive(session, NULL) != -EAGAIN)
			continue;
		if (left == 0)
			return 0;
		if (await(session, POLLIN, left) == -EINTR)
			return dioh_error_errno(err, EINTR, PLACE, "waiting for an event");
	}
}

static int end_wait(struct dioh_session *session, struct dioh_begun *begun,
                    struct dioh_msg_complete *ret_complete, struct dioh_error *err)
{
	struct dioh_error result;

	dioh_error_decode(&begun->complete.error, &result);
	if (ret_complete)
		*ret_complete = begun->complete;
	if (result.code != 0 && err)
		*err = result;
	*begun = (struct dioh_begun){ 0 };
	session->progress_arrival = 0;
	session->stuck_arrival = 0;
	return -result.code;
}

int dioh_exchange_wait(struct dioh_session *session, uint32_t transfer,
                       struct dioh_msg_complete *ret_complete, struct dioh_error *err)
{
	struct dioh_begun *begun = transfer != 0 ? find_begun(session, transfer) : NULL;

	if (!begun)
		return dioh_error_set(err, ENOENT, PLACE,
		                      "there is no transfer %" PRIu32 " to wait for", transfer);
	while (begun->arrival == 0) {
		if (session->broken.code != 0)
			return answer_broken(session, DESCRIBE_MS, err);
		if (receive(session, NULL) == -EAGAIN)
			(void)await(session, POLLIN, -1);
	}
	return end_wait(session, begun, ret_complete, err);
}
