/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * exchange.h - the manager's end of a connection: one request and its reply at a time, and the events that come in
 * between. client.c and client_image.c make the public API of it.
 */
#ifndef DIOH_EXCHANGE_H
#define DIOH_EXCHANGE_H

#include <stdbool.h>
#include <sys/types.h>

#include "channel.h"

/* Those that may run at once, and FINISH. */
#define DIOH_BEGUN_MAX (DIOH_TRANSFERS_MAX + 1)

struct dioh_begun { /* a transfer from its request until its COMPLETE has been handed to the caller */
	uint32_t id;      /* 0: a free place */
	uint64_t arrival; /* of its COMPLETE; 0: not yet */
	struct dioh_msg_complete complete;
};

struct dioh_session {
	int fd;
	pid_t pid; /* -1: no child of ours */
	struct dioh_hello_info info;
	uint32_t last_id;
	int64_t deadline; /* for HELLO's reply; -1: a request may take as long as the disk does */
	struct dioh_error broken; /* code 0: the connection is good; else what every further call answers */
	bool end_untold;          /* the child may yet tell how it ended, and `broken` does not */

	/* Events that wait for dioh_poll(). An arrival is a number that grows; 0: there is none. */
	uint64_t arrivals;
	struct dioh_begun begun[DIOH_BEGUN_MAX];
	uint64_t progress_arrival;
	struct dioh_msg_progress progress;
	struct dioh_msg_progress_entry progress_entries[DIOH_TRANSFERS_MAX];
	uint64_t stuck_arrival;
	struct dioh_msg_stuck stuck;

	/* A message being made; client.c's and client_image.c's. */
	union {
		uint64_t align;
		uint8_t out[DIOH_PAYLOAD_BYTES_MAX];
	};
	/* The message last received: the reply, once dioh_exchange() has returned. */
	struct dioh_message in;
};

struct dioh_request {
	uint32_t type;
	uint32_t size;
	const void *payload;
	const int *fds;
	unsigned fd_count;
	void *ret_reply; /* NULL, or where the reply's payload goes, which has a fixed size */
};

/* Takes over fd. -ENOMEM. */
int dioh_session_new(int fd, pid_t pid, struct dioh_session **ret_session, struct dioh_error *err);

/* Shuts the connection down, in whatever forked child has a copy of it, and closes it. The child is left alone. */
void dioh_session_free(struct dioh_session *session);

/*
 * Sends a request and waits for its reply, which is then in session->in. Interruptions are of no interest: a reply
 * must not be lost. -EINVAL: the request is malformed, and has not been sent. -ETIMEDOUT: the session's deadline came
 * first; nothing more can be asked then.
 */
int dioh_exchange(struct dioh_session *session, const struct dioh_request *request, struct dioh_error *err);

/* Whether a request is well-formed, without sending it: -EINVAL, as dioh_exchange() would answer. */
int dioh_exchange_check(const struct dioh_request *request, struct dioh_error *err);

/* As dioh_exchange(), for a request that begins a transfer. -EBUSY: too many are under way. */
int dioh_exchange_begin(struct dioh_session *session, const struct dioh_request *request, uint32_t *ret_transfer,
                        struct dioh_error *err);

/*
 * The peer broke the protocol in a way that only the caller could see. Returns -EBADMSG, as every call from now on.
 */
int dioh_exchange_break(struct dioh_session *session, const char *what, struct dioh_error *err);

/* What dioh_poll() and dioh_wait() promise. */
int dioh_exchange_poll(struct dioh_session *session, struct dioh_event *ret_event, int timeout_ms,
                       struct dioh_error *err);
int dioh_exchange_wait(struct dioh_session *session, uint32_t transfer, struct dioh_msg_complete *ret_complete,
                       struct dioh_error *err);

#endif
