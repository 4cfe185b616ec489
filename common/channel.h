/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * channel.h - one message over the control socket, with its descriptors. EINTR, stray descriptors and truncation
 * are handled here only. Used by both ends.
 */
#ifndef DIOH_CHANNEL_H
#define DIOH_CHANNEL_H

#include "error.h"

struct dioh_message {
	struct dioh_msg_header header;
	unsigned fd_count;
	int fds[DIOH_FDS_MAX]; /* owned by whoever received the message; -1 once taken */
	union {
		uint64_t align;
		uint8_t payload[DIOH_PAYLOAD_BYTES_MAX];
	};
};

/* Each end does so for itself: the longest message must fit, whatever net.core.wmem_default says. */
void dioh_channel_make_room(int fd);

/*
 * Sends header, payload and descriptors as one packet. Returns 0; -EAGAIN (with err untouched): the socket is full
 * and `flags` had MSG_DONTWAIT; -EPIPE: the peer is gone. Never raises SIGPIPE. The descriptors stay the caller's.
 */
int dioh_channel_send(int fd, const struct dioh_msg_header *header, const void *payload, const int *fds,
                      unsigned fd_count, int flags, struct dioh_error *err);

/*
 * Receives one packet. Returns 0 and fills `ret_message`, whose descriptors (O_CLOEXEC) are the caller's now;
 * -EAGAIN (err untouched) with MSG_DONTWAIT; -EPIPE: the peer has closed, and all that it sent before has been
 * received; -EBADMSG: shorter than a header, longer than a message may be, its size field lies, more descriptors
 * than DIOH_FDS_MAX, or descriptors were lost (MSG_CTRUNC): every descriptor received has been closed. The packet
 * is consumed in each case but -EAGAIN. -EINTR is returned, not retried, when `flags` has no MSG_DONTWAIT.
 *
 * On failure the message has no descriptors, and its header is what came, to be answered; all zero if none came
 * whole.
 */
int dioh_channel_receive(int fd, struct dioh_message *ret_message, int flags, struct dioh_error *err);

/* Closes the descriptors that nobody took. */
void dioh_message_close_fds(struct dioh_message *message);

#endif
