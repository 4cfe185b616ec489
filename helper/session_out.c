/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * session_out.c - sending without ever waiting. What the socket does not take is kept; while anything is kept, no request
 * is read, so that what is kept is bounded: one reply, and one COMPLETE for each transfer that may run.
 */
#include <errno.h>
#include <linux/sockios.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "session.h"

static void sent(struct dioh_session_state *session, const struct dioh_out *out)
{
	if (out->completes)
		session->completes_waiting--;
}

void dioh_session_flush(struct dioh_session_state *session)
{
	while (session->out) {
		struct dioh_out *out = session->out;
		struct dioh_error err;
		int r = dioh_channel_send(session->fd, &out->header, out->payload, NULL, 0, MSG_DONTWAIT, &err);

		if (r == -EAGAIN)
			return;
		if (r < 0) {
			if (r != -EPIPE)
				fprintf(stderr, "diohelper: %s\n", err.text);
			dioh_session_hang_up(session);
			return;
		}
		session->out = out->next;
		if (!session->out)
			session->out_last = &session->out;
		sent(session, out);
		free(out);
	}
}

void dioh_session_drop_out(struct dioh_session_state *session)
{
	while (session->out) {
		struct dioh_out *out = session->out;

		session->out = out->next;
		sent(session, out);
		free(out);
	}
	session->out_last = &session->out;
}

static void send_message(struct dioh_session_state *session, const struct dioh_msg_header *header, const void *payload)
{
	struct dioh_out *out;

	if (session->hung_up)
		return;
	out = malloc(sizeof(*out) + header->size);
	if (!out) {
		/* A peer that would wait for an answer for ever is worse off than one that sees the end. */
		dioh_session_hang_up(session);
		session->exit_status = 1;
		return;
	}
	out->next = NULL;
	out->completes = header->type == DIOH_MSG_COMPLETE;
	out->header = *header;
	if (header->size)
		memcpy(out->payload, payload, header->size);
	if (out->completes)
		session->completes_waiting++;
	*session->out_last = out;
	session->out_last = &out->next;
	dioh_session_flush(session);
}

void dioh_session_reply(struct dioh_session_state *session, uint32_t type, uint32_t id, const void *payload, uint32_t size)
{
	const struct dioh_msg_header header = { .type = type + 1, .id = id, .size = size };

	send_message(session, &header, payload);
}

void dioh_session_refuse(struct dioh_session_state *session, uint32_t type, uint32_t id, const struct dioh_error *err)
{
	struct dioh_msg_error wire;
	const struct dioh_msg_header header = {
		.type = type | 1, .flags = DIOH_MSG_ERROR, .id = id, .size = sizeof(wire)
	};

	dioh_error_encode(err, &wire);
	send_message(session, &header, &wire);
}

void dioh_session_event(struct dioh_session_state *session, uint32_t type, uint32_t id, const void *payload, uint32_t size)
{
	const struct dioh_msg_header header = { .type = type, .id = id, .size = size };

	send_message(session, &header, payload);
}

bool dioh_session_out_empty(const struct dioh_session_state *session)
{
	int unread = 0;

	/* unix(7): bytes that the peer has not received yet. */
	return !session->out && ioctl(session->fd, SIOCOUTQ, &unread) == 0 && unread == 0;
}
