/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * channel.c - one packet with its descriptors.
 *
 * Owns nothing between calls. The peer is not trusted: whatever it sends, a descriptor that arrives is either
 * handed to the caller or closed before the function returns. Called by the helper's session and by the library's
 * exchange.c.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "channel.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

/*
 * The kernel's SCM_MAX_FD. With room for all of them, those that nobody wants arrive here and are closed here; with
 * less the kernel would drop them and MSG_CTRUNC would be all that there is to see.
 */
#define FDS_RECEIVED_MAX 253u

#ifndef SCM_PIDFD
#define SCM_PIDFD 4 /* Linux 6.5 */
#endif

#define PLACE DIOH_PLACE(PROTOCOL, SESSION, 0, DIOH_OFFSET_NONE)

/* An end that closed with unread messages of ours resets the connection; one that did not ends it. */
static bool is_gone(int error)
{
	return error == EPIPE || error == ECONNRESET;
}

static int peer_gone(struct dioh_error *err)
{
	return dioh_error_set(err, EPIPE, PLACE, "the peer has closed the control connection");
}

/* ---- sending --------------------------------------------------------------------------------- */

#define SNDBUF_BYTES (2 * (int)DIOH_PAYLOAD_BYTES_MAX)

void dioh_channel_make_room(int fd)
{
	int bytes = 0;
	socklen_t size = sizeof(bytes);

	if (getsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, &size) < 0 || bytes >= SNDBUF_BYTES)
		return;
	bytes = SNDBUF_BYTES;
	(void)setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes)); /* if it did not help, sending will tell */
}

union send_control {
	struct cmsghdr align;
	char bytes[CMSG_SPACE(DIOH_FDS_MAX * sizeof(int))];
};

static void add_fds(struct msghdr *packet, union send_control *control, const int *fds,
                    unsigned fd_count)
{
	struct cmsghdr *cmsg;

	if (fd_count == 0)
		return;

	memset(control, 0, sizeof(*control));
	packet->msg_control = control->bytes;
	packet->msg_controllen = CMSG_SPACE(fd_count * sizeof(int));
	cmsg = CMSG_FIRSTHDR(packet);
	cmsg->cmsg_level = SOL_SOCKET;
	cmsg->cmsg_type = SCM_RIGHTS;
	cmsg->cmsg_len = CMSG_LEN(fd_count * sizeof(int));
	memcpy(CMSG_DATA(cmsg), fds, fd_count * sizeof(int));
}

static int send_failed(int error, struct dioh_error *err)
{
	if (error == EAGAIN || error == EWOULDBLOCK)
		return -EAGAIN;
	if (is_gone(error))
		return peer_gone(err);
	if (error == EBADF)
		return dioh_error_errno(err, error, PLACE,
		                        "a descriptor to be sent is not open");
	return dioh_error_errno(err, error, PLACE, "sending on the control connection failed");
}

int dioh_channel_send(int fd, const struct dioh_msg_header *header, const void *payload,
                      const int *fds, unsigned fd_count, int flags, struct dioh_error *err)
{
	/* sendmsg(2) reads only. */
	struct iovec iov[2] = {
		{ (void *)(uintptr_t)header, sizeof(*header) },
		{ (void *)(uintptr_t)payload, header->size },
	};
	struct msghdr packet = { .msg_iov = iov, .msg_iovlen = 2 };
	union send_control control;
	ssize_t sent;

	if (header->size > DIOH_PAYLOAD_BYTES_MAX || fd_count > DIOH_FDS_MAX)
		return dioh_error_set(err, EMSGSIZE, PLACE,
		                      "%" PRIu32 " bytes with %u descriptors are no message",
		                      header->size, fd_count);
	add_fds(&packet, &control, fds, fd_count);
	do
		sent = sendmsg(fd, &packet, flags | MSG_NOSIGNAL);
	while (sent < 0 && errno == EINTR);
	/* Packets go as a whole or not at all. */
	return sent < 0 ? send_failed(errno, err) : 0;
}

/* ---- receiving ------------------------------------------------------------------------------- */

union receive_control {
	struct cmsghdr align;
	/* Whoever made the socket may have asked for credentials and a pidfd too; they are not looked at. */
	char bytes[CMSG_SPACE(FDS_RECEIVED_MAX * sizeof(int)) + CMSG_SPACE(sizeof(struct ucred)) +
	           CMSG_SPACE(sizeof(int))];
};

static void take_fd(struct dioh_message *message, int fd, unsigned *count)
{
	if (*count < DIOH_FDS_MAX)
		message->fds[message->fd_count++] = fd;
	else
		close(fd);
	*count += 1;
}

/* SO_PASSPIDFD: the kernel adds the sender's pidfd to each packet. */
static void drop_pidfd(struct cmsghdr *cmsg)
{
	int fd;

	memcpy(&fd, CMSG_DATA(cmsg), sizeof(fd));
	if (fd >= 0)
		close(fd);
}

/* Answers how many came, of which the message has at most DIOH_FDS_MAX and the rest are closed. */
static unsigned take_fds(struct dioh_message *message, struct msghdr *packet)
{
	unsigned count = 0;

	for (struct cmsghdr *cmsg = CMSG_FIRSTHDR(packet); cmsg; cmsg = CMSG_NXTHDR(packet, cmsg)) {
		if (cmsg->cmsg_level == SOL_SOCKET && cmsg->cmsg_type == SCM_PIDFD)
			drop_pidfd(cmsg);
		if (cmsg->cmsg_level != SOL_SOCKET || cmsg->cmsg_type != SCM_RIGHTS)
			continue;
		for (size_t at = 0; at + sizeof(int) <= cmsg->cmsg_len - CMSG_LEN(0);
		     at += sizeof(int)) {
			int fd;

			memcpy(&fd, CMSG_DATA(cmsg) + at, sizeof(fd));
			take_fd(message, fd, &count);
		}
	}
	return count;
}

/*
 * A reset is reported once, before what the peer sent last: its last words, a COMPLETE perhaps. They are what this
 * function goes on to read; behind them comes the end.
 */
static ssize_t receive_packet(int fd, struct msghdr *packet, int flags)
{
	bool reset = false;

	for (;;) {
		ssize_t received = recvmsg(fd, packet, flags | MSG_CMSG_CLOEXEC);

		if (received >= 0)
			return received;
		if (errno == ECONNRESET && !reset)
			reset = true;
		else if (errno != EINTR || !(flags & MSG_DONTWAIT))
			return -1;
	}
}

static int receive_failed(int error, struct dioh_error *err)
{
	if (error == EAGAIN || error == EWOULDBLOCK)
		return -EAGAIN;
	if (is_gone(error))
		return peer_gone(err);
	return dioh_error_errno(err, error, PLACE, "receiving on the control connection failed");
}

static int check_packet(const struct dioh_message *message, const struct msghdr *packet,
                        size_t bytes, unsigned fds, struct dioh_error *err)
{
	if (bytes == 0)
		return peer_gone(err);
	if (bytes < sizeof(message->header))
		return dioh_error_set(err, EBADMSG, PLACE,
		                      "a message of %zu bytes is shorter than its header", bytes);
	if (packet->msg_flags & MSG_TRUNC)
		return dioh_error_set(err, EBADMSG, PLACE, "a message is longer than %zu bytes",
		                      bytes);
	if (message->header.size != bytes - sizeof(message->header))
		return dioh_error_set(err, EBADMSG, PLACE,
		                      "a message says that it has %" PRIu32
		                      " bytes of payload, it has %zu",
		                      message->header.size, bytes - sizeof(message->header));
	if (packet->msg_flags & MSG_CTRUNC)
		return dioh_error_set(err, EBADMSG, PLACE,
		                      "descriptors of a message were lost on the way: there are too many, "
		                      "or SELinux does not permit us to have one");
	if (fds > DIOH_FDS_MAX)
		return dioh_error_set(err, EBADMSG, PLACE,
		                      "%u descriptors came with a message, more than %u", fds,
		                      DIOH_FDS_MAX);
	return 0;
}

int dioh_channel_receive(int fd, struct dioh_message *ret_message, int flags,
                         struct dioh_error *err)
{
	struct dioh_message *message = ret_message;
	struct iovec iov[2] = {
		{ &message->header, sizeof(message->header) },
		{ message->payload, sizeof(message->payload) },
	};
	union receive_control control;
	struct msghdr packet = {
		.msg_iov = iov,
		.msg_iovlen = 2,
		.msg_control = control.bytes,
		.msg_controllen = sizeof(control.bytes),
	};
	ssize_t received;
	unsigned fds;
	int r;

	memset(&message->header, 0, sizeof(message->header));
	message->fd_count = 0;
	for (unsigned i = 0; i < DIOH_FDS_MAX; i++)
		message->fds[i] = -1;

	received = receive_packet(fd, &packet, flags);
	if (received < 0)
		return receive_failed(errno, err);
	fds = take_fds(message, &packet);
	r = check_packet(message, &packet, (size_t)received, fds, err);
	if (r < 0)
		dioh_message_close_fds(message);
	if (r < 0 && (size_t)received < sizeof(message->header))
		memset(&message->header, 0, sizeof(message->header));
	return r;
}

void dioh_message_close_fds(struct dioh_message *message)
{
	for (unsigned i = 0; i < message->fd_count; i++) {
		if (message->fds[i] >= 0)
			close(message->fds[i]);
		message->fds[i] = -1;
	}
	message->fd_count = 0;
}
