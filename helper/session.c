/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * session.c - the door. Every request comes through one table, which says in which phase and direction it is permitted;
 * what is not is refused by name. The session thread polls here and never blocks on image, stream or memory once the
 * session is sealed; before that it may, under a timer.
 *
 *      start --HELLO--> attach --SEAL--> transfer --FINISH--> finish --COMPLETE--> exit 0
 *
 * A violated protocol is answered, if there is a header to answer to, and ends the session like a hangup: what runs is
 * cancelled, and the process ends once nothing is in flight any more.
 */
#define _GNU_SOURCE
#include "session.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "cleanup.h"
#include "clock.h"
#include "proto.h"

#define TICK_MS 100
/* Requests handled before the loop looks at anything else again. */
#define REQUESTS_PER_ROUND 16

#define PLACE DIOH_PLACE(PROTOCOL, SESSION, 0, DIOH_OFFSET_NONE)

struct door_row {
	uint32_t type;
	uint32_t phases;
	uint32_t direction; /* 0: both */
	bool header_path;   /* not while the control-I/O thread is at another one */
	dioh_handler *handler;
};

static const struct door_row door[] = {
	{ DIOH_MSG_HELLO, PHASE_START, 0, false, dioh_on_hello },
	{ DIOH_MSG_ATTACH_IMAGE, PHASE_ATTACH, 0, false, dioh_on_attach_image },
	{ DIOH_MSG_ATTACH_MEMORY, PHASE_ATTACH, 0, false, dioh_on_attach_memory },
	{ DIOH_MSG_ATTACH_STREAM, PHASE_ATTACH, 0, false, dioh_on_attach_stream },
	{ DIOH_MSG_SEAL, PHASE_ATTACH, 0, false, dioh_on_seal },
	{ DIOH_MSG_CREATE_IMAGE, PHASE_TRANSFER, DIOH_DIRECTION_SAVE, true, dioh_on_create_image },
	{ DIOH_MSG_PUT_TABLE, PHASE_TRANSFER, 0, true, dioh_on_put_table },
	{ DIOH_MSG_WRITE_HEADER, PHASE_TRANSFER, DIOH_DIRECTION_SAVE, true, dioh_on_write_header },
	{ DIOH_MSG_OPEN_IMAGE, PHASE_TRANSFER, DIOH_DIRECTION_LOAD, true, dioh_on_open_image },
	{ DIOH_MSG_GET_TABLE, PHASE_TRANSFER, 0, true, dioh_on_get_table },
	{ DIOH_MSG_READ_HEADER, PHASE_TRANSFER, DIOH_DIRECTION_LOAD, true, dioh_on_read_header },
	{ DIOH_MSG_SAVE_MEMORY, PHASE_TRANSFER, DIOH_DIRECTION_SAVE, true, dioh_on_memory_transfer },
	{ DIOH_MSG_LOAD_MEMORY, PHASE_TRANSFER, DIOH_DIRECTION_LOAD, true, dioh_on_memory_transfer },
	{ DIOH_MSG_SAVE_STREAM, PHASE_TRANSFER, DIOH_DIRECTION_SAVE, true, dioh_on_stream_transfer },
	{ DIOH_MSG_LOAD_STREAM, PHASE_TRANSFER, DIOH_DIRECTION_LOAD, true, dioh_on_stream_transfer },
	{ DIOH_MSG_STATUS, PHASE_ATTACH | PHASE_TRANSFER | PHASE_FINISH, 0, false, dioh_on_status },
	{ DIOH_MSG_CANCEL, PHASE_TRANSFER | PHASE_FINISH, 0, false, dioh_on_cancel },
	{ DIOH_MSG_FINISH, PHASE_TRANSFER, 0, true, dioh_on_finish },
	{ DIOH_MSG_READ_BITMAP, PHASE_TRANSFER, DIOH_DIRECTION_LOAD, true, dioh_on_read_bitmap },
	{ DIOH_MSG_KEEP_REGION, PHASE_TRANSFER, DIOH_DIRECTION_SAVE, true, dioh_on_keep_region },
};

static const struct door_row *find_row(uint32_t type)
{
	for (size_t i = 0; i < sizeof(door) / sizeof(door[0]); i++)
		if (door[i].type == type)
			return &door[i];
	return NULL;
}

static const char *phase_name(uint32_t phase)
{
	switch (phase) {
	case PHASE_START: return "start";
	case PHASE_ATTACH: return "attach";
	case PHASE_TRANSFER: return "transfer";
	default: return "finish";
	}
}

/* What would have to come, or should have come, before. */
static const char *phase_hint(uint32_t phase, uint32_t permitted)
{
	if (permitted > phase)
		return phase == PHASE_START ? "HELLO comes first" : "SEAL comes first";
	if (permitted == PHASE_START)
		return "it has come already";
	return phase == PHASE_FINISH ? "FINISH has been accepted" : "SEAL has been passed";
}

static int check_permitted(const struct dioh_session_state *session, const struct door_row *row, struct dioh_error *err)
{
	const char *name = dioh_msg_name(row->type);

	if (!(row->phases & session->phase))
		return dioh_error_set(err, EPROTO, PLACE, "%s is not permitted in phase %s: %s", name,
		                      phase_name(session->phase), phase_hint(session->phase, row->phases));
	if (row->direction && row->direction != session->image.direction)
		return dioh_error_set(err, EPROTO, PLACE, "%s is not permitted: this session %s", name,
		                      session->image.direction == DIOH_DIRECTION_SAVE ? "saves" : "loads");
	if (row->header_path && session->sealed && session->request->active)
		return dioh_error_set(err, EBUSY, PLACE, "%s: %s (id %" PRIu32 ") is still being carried out", name,
		                      dioh_msg_name(session->request->type), session->request->id);
	return 0;
}

/* ---- requests ---- */

static void end_session(struct dioh_session_state *session)
{
	session->ending = true;
	session->left_ns = dioh_now_ns();
	session->exit_status = 1;
	dioh_session_cancel_all(session);
}

static void refuse_and_end(struct dioh_session_state *session, const struct dioh_msg_header *header,
                           const struct dioh_error *err)
{
	if (header->type)
		dioh_session_refuse(session, header->type, header->id, err);
	fprintf(stderr, "diohelper: %s\n", err->text);
	end_session(session);
}

static int check_form(const struct dioh_session_state *session, struct dioh_error *err)
{
	const struct dioh_message *message = &session->message;

	if (message->fd_count > 0 && session->sealed)
		return dioh_error_set(err, EBADMSG, PLACE, "%s: descriptors came with it, and SEAL has been passed",
		                      dioh_msg_name(message->header.type));
	return dioh_proto_check_request(&message->header, message->payload, message->fd_count, err);
}

static void handle_request(struct dioh_session_state *session)
{
	const bool timed = !session->sealed && session->message.fd_count > 0;
	struct dioh_message *message = &session->message;
	const struct dioh_msg_header *header = &message->header;
	const struct door_row *row;
	struct dioh_error err;
	bool malformed;
	int r;

	/* A file system that does not answer is waited for uninterruptibly, also by close(2): only a fatal signal ends that. */
	if (timed)
		alarm(session->options->attach_timeout_s);
	r = check_form(session, &err);
	malformed = r == -EBADMSG; /* a file system may answer that, too */
	if (r == 0) {
		row = find_row(header->type);
		assert(row);
		r = check_permitted(session, row, &err);
		if (r == 0)
			r = row->handler(session, message, &err);
	}
	if (r < 0 && (malformed || session->phase == PHASE_START))
		refuse_and_end(session, header, &err);
	else if (r < 0)
		dioh_session_refuse(session, header->type, header->id, &err);
	dioh_message_close_fds(message);
	if (timed)
		alarm(0);
}

/* Leaving without FINISH is good order only where there was nothing to complete. */
static int status_of_hangup(const struct dioh_session_state *session)
{
	const bool busy = dioh_session_busy(session); /* then the stage is not ours to read */
	const bool saved = !busy && session->image.direction == DIOH_DIRECTION_SAVE &&
	                   session->stage != IMAGE_NONE;

	return session->exit_status || busy || saved ? 1 : 0;
}

void dioh_session_hang_up(struct dioh_session_state *session)
{
	if (session->hung_up)
		return;
	session->exit_status = session->finished ? session->exit_status : status_of_hangup(session);
	session->hung_up = true;
	session->left_ns = dioh_now_ns();
	dioh_session_drop_out(session);
	dioh_session_cancel_all(session);
}

static void read_requests(struct dioh_session_state *session)
{
	for (int i = 0; i < REQUESTS_PER_ROUND && !session->out && !session->ending && !session->hung_up; i++) {
		struct dioh_error err;
		int r = dioh_channel_receive(session->fd, &session->message, MSG_DONTWAIT, &err);

		if (r == -EAGAIN)
			return;
		if (r == 0)
			handle_request(session);
		else if (r == -EBADMSG)
			refuse_and_end(session, &session->message.header, &err);
		else
			dioh_session_hang_up(session);
	}
}

/* ---- the loop ---- */

static void clear_event(int fd)
{
	uint64_t count;

	(void)!read(fd, &count, sizeof(count));
}

static void wait_and_handle(struct dioh_session_state *session)
{
	struct pollfd polls[3] = {
		{ .fd = session->hung_up ? -1 : session->fd, .events = session->out ? POLLOUT | POLLRDHUP : POLLIN },
		{ .fd = session->sealed ? session->mailbox.event_fd : -1, .events = POLLIN },
		{ .fd = session->hung_up ? -1 : session->manager_pidfd, .events = POLLIN },
	};

	/* While ending, the socket is only written to. */
	if (session->ending && !session->out)
		polls[0].fd = -1;
	if (poll(polls, 3, dioh_session_busy(session) ? TICK_MS : -1) < 0)
		return; /* EINTR: the loop comes by again */
	if (polls[1].revents) {
		clear_event(session->mailbox.event_fd);
		dioh_mailbox_handle(&session->mailbox);
	}
	if (polls[0].revents & POLLOUT)
		dioh_session_flush(session);
	if (polls[0].revents & POLLIN)
		read_requests(session);
	else if (polls[0].revents & (POLLHUP | POLLRDHUP | POLLERR))
		dioh_session_hang_up(session);
	if (polls[2].revents)
		dioh_session_hang_up(session);
}

/*
 * I/O that does not come back must not keep the process: the manager has been told, or has gone. Nor must a memory or a stream
 * that is a file and hangs: what is cancelled has no other reason to last so long. FINISH knows neither, and may still make
 * the image complete.
 */
static bool given_up(const struct dioh_session_state *session)
{
	const uint64_t limit = session->options->stuck_timeout_s * DIOH_NS_PER_S;
	const uint64_t now = dioh_now_ns();
	struct dioh_msg_stuck waits;

	if ((!session->hung_up && !session->ending) || now - session->left_ns < limit)
		return false;
	waits = dioh_session_waits(session, now);
	if (waits.oldest_ns >= limit) {
		fprintf(stderr, "diohelper: %u I/Os have not come back for %" PRIu64 " seconds: leaving them, they may still land\n",
		        waits.in_flight, waits.oldest_ns / DIOH_NS_PER_S);
		return true;
	}
	if (!dioh_session_busy(session) || session->finish.active)
		return false;
	fprintf(stderr, "diohelper: what was cancelled %" PRIu64 " seconds ago has not ended: leaving it\n",
	        (now - session->left_ns) / DIOH_NS_PER_S);
	return true;
}

static bool over(const struct dioh_session_state *session)
{
	if (session->hung_up)
		return !dioh_session_busy(session);
	return (session->ending || session->finished) && !session->out && !dioh_session_busy(session);
}

static void close_all(struct dioh_session_state *session)
{
	for (unsigned i = 0; i < session->worker_count; i++)
		dioh_worker_stop(&session->workers[i]);
	free(session->workers);
	if (session->sealed) {
		dioh_control_stop(&session->control);
		dioh_mailbox_close(&session->mailbox);
	}
	dioh_layout_free(&session->layout);
	dioh_session_drop_out(session);
	dioh_image_close(&session->image);
	for (unsigned i = 0; i < DIOH_MEMORIES_MAX; i++) {
		dioh_cleanup_fd(&session->memories[i].fd);
		dioh_cleanup_fd(&session->memories[i].selection_fd);
	}
	for (unsigned i = 0; i < DIOH_STREAMS_MAX; i++) {
		dioh_cleanup_fd(&session->streams[i].fd);
		free(session->streams[i].early);
	}
	dioh_cleanup_fd(&session->manager_pidfd);
	close(session->fd);
	free(session->request);
	free(session);
}

static struct dioh_session_state *new_session(const struct dioh_options *options)
{
	struct dioh_session_state *session = calloc(1, sizeof(*session));

	if (!session)
		return NULL;
	session->options = options;
	session->fd = options->fd;
	session->manager_pidfd = -1;
	session->phase = PHASE_START;
	session->out_last = &session->out;
	dioh_image_init(&session->image);
	for (unsigned i = 0; i < DIOH_MEMORIES_MAX; i++)
		session->memories[i].fd = session->memories[i].selection_fd = -1;
	for (unsigned i = 0; i < DIOH_STREAMS_MAX; i++)
		session->streams[i].fd = -1;
	return session;
}

/* What is not taken down goes with the process; until then a leak checker finds it here. */
static struct dioh_session_state *volatile left;

int dioh_session_run(const struct dioh_options *options)
{
	struct dioh_session_state *session = new_session(options);
	int status;

	if (!session) {
		fprintf(stderr, "diohelper: no memory for a session\n");
		return 1;
	}
	left = session;
	dioh_channel_make_room(session->fd);
	while (!over(session)) {
		wait_and_handle(session);
		dioh_session_tick(session);
		if (given_up(session))
			return 1; /* without closing anything: that would wait */
	}
	status = session->exit_status;
	if (!session->half_built)
		close_all(session);
	return status;
}
