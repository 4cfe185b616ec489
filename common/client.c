/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * client.c - the public API, but for what is in the image (client_image.c): each function makes a request of its arguments
 * and its results of the reply.
 *
 * Owns the session's life. Trusts the caller's pointers and nothing else: values are checked before they are sent
 * (exchange.c, by proto.c), and what the helper answers before it is handed on. Called by managers.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "diohelper.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cleanup.h"
#include "deadline.h"
#include "exchange.h"
#include "proto.h"
#include "spawn.h"

#define FEATURES_KNOWN (DIOH_FEATURE_VERBATIM * 2 - 1)

#define PLACE DIOH_PLACE(PROTOCOL, SESSION, 0, DIOH_OFFSET_NONE)

/* ---- starting and ending --------------------------------------------------------------------- */

static int check_agreement(const struct dioh_msg_hello *reply, uint64_t required,
                           struct dioh_error *err)
{
	uint64_t lacking = required & ~reply->offered;
	uint64_t unknown = reply->required & ~(uint64_t)FEATURES_KNOWN;

	if (reply->version_min != DIOH_PROTOCOL_VERSION)
		return dioh_error_set(err, EPROTONOSUPPORT, PLACE,
		                      "the helper chose protocol version %" PRIu32
		                      ", which is not %u",
		                      reply->version_min, DIOH_PROTOCOL_VERSION);
	if (lacking != 0)
		return dioh_error_set(err, ENOTSUP, PLACE,
		                      "the helper lacks a required feature: %s (0x%" PRIx64 ")",
		                      dioh_feature_name(lacking), lacking);
	if (unknown != 0)
		return dioh_error_set(err, ENOTSUP, PLACE,
		                      "the helper requires a feature unknown here: %s (0x%" PRIx64
		                      ")",
		                      dioh_feature_name(unknown), unknown);
	return 0;
}

/*
 * With a descriptor of this process the helper notices its end even if a forked child keeps the socket open. Only where
 * there can be none does a session go without: what is promised is not left out because there are no descriptors left.
 */
static int open_ourselves(int *ret_pidfd, struct dioh_error *err)
{
	*ret_pidfd = (int)syscall(SYS_pidfd_open, getpid(), 0);
	if (*ret_pidfd >= 0 || errno == ENOSYS || errno == EPERM || errno == EINVAL)
		return 0;
	return dioh_error_errno(err, errno, PLACE, "no pidfd of this process for HELLO");
}

static int exchange_hello(struct dioh_session *session, uint64_t required,
                          struct dioh_msg_hello *ret_reply, struct dioh_error *err)
{
	DIOH_AUTO_FD int pidfd = -1;
	struct dioh_msg_hello hello = {
		.version_min = DIOH_PROTOCOL_VERSION,
		.version_max = DIOH_PROTOCOL_VERSION,
		.offered = FEATURES_KNOWN,
		.required = required,
	};
	struct dioh_request request = {
		.type = DIOH_MSG_HELLO,
		.payload = &hello,
		.size = sizeof(hello),
		.fds = &pidfd,
		.ret_reply = ret_reply,
	};
	int r;

	r = open_ourselves(&pidfd, err);
	if (r < 0)
		return r;
	request.fd_count = pidfd >= 0;
	return dioh_exchange(session, &request, err);
}

static int say_hello(struct dioh_session *session, uint64_t required, int64_t deadline,
                     struct dioh_error *err)
{
	struct dioh_msg_hello reply;
	int r;

	session->deadline = deadline;
	r = exchange_hello(session, required, &reply, err);
	session->deadline = -1;
	if (r < 0)
		return r;
	r = check_agreement(&reply, required, err);
	if (r < 0)
		return r;
	session->info.version = reply.version_min;
	session->info.features = reply.offered;
	return 0;
}

/* The child's control_fd is taken over in any case. */
static int greet_child(const struct dioh_child *child, uint64_t required, int64_t deadline,
                       struct dioh_session **ret_session, struct dioh_error *err)
{
	struct dioh_session *session;
	int r;

	r = dioh_session_new(child->control_fd, child->pid, &session, err);
	if (r < 0) {
		close(child->control_fd);
		return r;
	}
	r = say_hello(session, required, deadline, err);
	if (r < 0) {
		dioh_session_free(session);
		return dioh_child_blame(child, r, err);
	}
	*ret_session = session;
	return 0;
}

int dioh_spawn(const struct dioh_spawn_options *options, uint64_t required,
               struct dioh_session **ret_session, struct dioh_error *err)
{
	int64_t deadline = dioh_deadline(DIOH_HELLO_MS);
	struct dioh_child child;
	int r;

	r = dioh_child_start(options, deadline, &child, err);
	if (r < 0)
		return r;
	r = greet_child(&child, required, deadline, ret_session, err);
	close(child.report_fd);
	if (r < 0)
		dioh_child_abandon(child.pid);
	return r;
}

static int check_socket(int fd, struct dioh_error *err)
{
	int domain, type;
	socklen_t bytes = sizeof(int);

	if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &bytes) < 0 ||
	    getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &bytes) < 0)
		return dioh_error_errno(err, errno, PLACE, "the control connection is no socket");
	if (domain != AF_UNIX || type != SOCK_SEQPACKET)
		return dioh_error_set(err, EINVAL, PLACE,
		                      "the control connection is not of type SOCK_SEQPACKET");
	return 0;
}

int dioh_connect(int fd, uint64_t required, struct dioh_session **ret_session,
                 struct dioh_error *err)
{
	struct dioh_session *session;
	int r;

	r = check_socket(fd, err);
	if (r < 0)
		return r;
	r = dioh_session_new(fd, -1, &session, err);
	if (r < 0)
		return r;
	r = say_hello(session, required, dioh_deadline(DIOH_HELLO_MS), err);
	if (r < 0) {
		session->fd = -1; /* it stays the caller's */
		dioh_session_free(session);
		return r;
	}
	(void)fcntl(fd, F_SETFD, FD_CLOEXEC);
	*ret_session = session;
	return 0;
}

void dioh_session_info(const struct dioh_session *session, struct dioh_hello_info *ret_info)
{
	*ret_info = session->info;
}

int dioh_session_pid(const struct dioh_session *session)
{
	return session->pid;
}

int dioh_session_fd(const struct dioh_session *session)
{
	return session->fd;
}

int dioh_close(struct dioh_session *session, int timeout_ms, int *ret_status)
{
	pid_t pid;

	if (!session)
		return 0;
	pid = session->pid;
	dioh_session_free(session);
	return pid > 0 ? dioh_child_wait(pid, timeout_ms, ret_status) : 0;
}

/* ---- attach ---------------------------------------------------------------------------------- */

/* Adds a descriptor that is there to those to be sent, and its bit to those announced. */
static void add_fd(int *fds, unsigned *count, uint32_t *announced, int fd, uint32_t bit)
{
	if (fd < 0)
		return;
	fds[(*count)++] = fd;
	*announced |= bit;
}

static int fill_image(const struct dioh_image_options *options, struct dioh_msg_attach_image *image,
                      struct dioh_error *err)
{
	size_t label_bytes = options->label ? strlen(options->label) : 0;

	if (label_bytes >= sizeof(image->label))
		return dioh_error_set(err, ENAMETOOLONG, PLACE,
		                      "ATTACH_IMAGE: label has %zu bytes, more than %zu",
		                      label_bytes, sizeof(image->label) - 1);
	*image = (struct dioh_msg_attach_image){
		.direction = options->direction,
		.direct = options->direct,
		.engine = options->engine,
		.block_bytes = options->block_bytes,
		.in_flight = options->in_flight,
		.workers = options->workers,
		.ask = options->ask,
		.base_offset = options->base_offset,
		.uid = options->uid,
		.gid = options->gid,
		.mode = options->mode,
	};
	if (label_bytes > 0)
		memcpy(image->label, options->label, label_bytes);
	return 0;
}

int dioh_attach_image(struct dioh_session *session, const struct dioh_image_options *options,
                      struct dioh_msg_attach_image_reply *ret_info, struct dioh_error *err)
{
	struct dioh_msg_attach_image image;
	int fds[DIOH_FDS_MAX];
	struct dioh_request request = {
		.type = DIOH_MSG_ATTACH_IMAGE,
		.payload = &image,
		.size = sizeof(image),
		.fds = fds,
		.ret_reply = ret_info,
	};
	int r;

	r = fill_image(options, &image, err);
	if (r < 0)
		return r;
	add_fd(fds, &request.fd_count, &image.fds, options->buffered_fd, DIOH_IMAGE_FD_BUFFERED);
	add_fd(fds, &request.fd_count, &image.fds, options->direct_fd, DIOH_IMAGE_FD_DIRECT);
	add_fd(fds, &request.fd_count, &image.fds, options->directory_fd, DIOH_IMAGE_FD_DIRECTORY);
	return dioh_exchange(session, &request, err);
}

int dioh_attach_memory(struct dioh_session *session, uint32_t memory,
                       const struct dioh_memory_options *options,
                       struct dioh_msg_attach_memory_reply *ret_info, struct dioh_error *err)
{
	struct dioh_msg_attach_memory attach = {
		.memory = memory,
		.advice = options->advice,
		.bytes = options->bytes,
	};
	int fds[DIOH_FDS_MAX];
	struct dioh_request request = {
		.type = DIOH_MSG_ATTACH_MEMORY,
		.payload = &attach,
		.size = sizeof(attach),
		.fds = fds,
		.ret_reply = ret_info,
	};

	add_fd(fds, &request.fd_count, &attach.fds, options->fd, DIOH_MEMORY_FD_MEMORY);
	add_fd(fds, &request.fd_count, &attach.fds, options->selection_fd,
	       DIOH_MEMORY_FD_SELECTION);
	return dioh_exchange(session, &request, err);
}

int dioh_attach_stream(struct dioh_session *session, uint32_t stream, int fd,
                       struct dioh_msg_attach_stream_reply *ret_info, struct dioh_error *err)
{
	struct dioh_msg_attach_stream attach = { .stream = stream };
	struct dioh_request request = {
		.type = DIOH_MSG_ATTACH_STREAM,
		.payload = &attach,
		.size = sizeof(attach),
		.fds = &fd,
		.fd_count = 1,
		.ret_reply = ret_info,
	};

	return dioh_exchange(session, &request, err);
}

int dioh_seal(struct dioh_session *session, uint32_t required, struct dioh_msg_seal_reply *ret_info,
              struct dioh_error *err)
{
	struct dioh_msg_seal seal = { .required = required };
	struct dioh_request request = {
		.type = DIOH_MSG_SEAL,
		.payload = &seal,
		.size = sizeof(seal),
		.ret_reply = ret_info,
	};

	return dioh_exchange(session, &request, err);
}

/* ---- transfers ------------------------------------------------------------------------------- */

static int begin(struct dioh_session *session, uint32_t type, const void *payload, size_t size,
                 uint32_t *ret_transfer, struct dioh_error *err)
{
	struct dioh_request request = { .type = type, .payload = payload, .size = (uint32_t)size };

	return dioh_exchange_begin(session, &request, ret_transfer, err);
}

int dioh_save_memory(struct dioh_session *session, const struct dioh_msg_memory_transfer *what,
                     uint32_t *ret_transfer, struct dioh_error *err)
{
	return begin(session, DIOH_MSG_SAVE_MEMORY, what, sizeof(*what), ret_transfer, err);
}

int dioh_load_memory(struct dioh_session *session, const struct dioh_msg_memory_transfer *what,
                     uint32_t *ret_transfer, struct dioh_error *err)
{
	return begin(session, DIOH_MSG_LOAD_MEMORY, what, sizeof(*what), ret_transfer, err);
}

int dioh_save_stream(struct dioh_session *session, const struct dioh_msg_stream_transfer *what,
                     uint32_t *ret_transfer, struct dioh_error *err)
{
	return begin(session, DIOH_MSG_SAVE_STREAM, what, sizeof(*what), ret_transfer, err);
}

int dioh_load_stream(struct dioh_session *session, const struct dioh_msg_stream_transfer *what,
                     uint32_t *ret_transfer, struct dioh_error *err)
{
	return begin(session, DIOH_MSG_LOAD_STREAM, what, sizeof(*what), ret_transfer, err);
}

int dioh_finish(struct dioh_session *session, uint32_t mode, uint64_t patch_offset,
                const void *patch, uint32_t patch_bytes, uint32_t *ret_transfer,
                struct dioh_error *err)
{
	struct dioh_msg_finish finish = { .mode = mode,
		                          .patch_bytes = patch_bytes,
		                          .patch_offset = patch_offset };

	if (patch_bytes > DIOH_HEADER_PATCH_BYTES_MAX || (patch_bytes > 0 && !patch))
		return dioh_error_set(err, EINVAL, PLACE, "FINISH: a patch has bytes, at most %u",
		                      DIOH_HEADER_PATCH_BYTES_MAX);
	memcpy(session->out, &finish, sizeof(finish));
	if (patch_bytes > 0)
		memcpy(session->out + sizeof(finish), patch, patch_bytes);
	return begin(session, DIOH_MSG_FINISH, session->out, sizeof(finish) + patch_bytes,
	             ret_transfer, err);
}

int dioh_cancel(struct dioh_session *session, uint32_t transfer, uint32_t *ret_in_flight,
                struct dioh_error *err)
{
	struct dioh_msg_cancel cancel = { .transfer = transfer };
	struct dioh_msg_cancel_reply reply;
	struct dioh_request request = {
		.type = DIOH_MSG_CANCEL,
		.payload = &cancel,
		.size = sizeof(cancel),
		.ret_reply = &reply,
	};
	int r;

	r = dioh_exchange(session, &request, err);
	if (r == 0 && ret_in_flight)
		*ret_in_flight = reply.in_flight;
	return r;
}

int dioh_status(struct dioh_session *session, struct dioh_msg_status_reply *ret_status,
                struct dioh_error *err)
{
	struct dioh_request request = { .type = DIOH_MSG_STATUS, .ret_reply = ret_status };

	return dioh_exchange(session, &request, err);
}

/* ---- events ---------------------------------------------------------------------------------- */

int dioh_poll(struct dioh_session *session, struct dioh_event *ret_event, int timeout_ms,
              struct dioh_error *err)
{
	return dioh_exchange_poll(session, ret_event, timeout_ms, err);
}

int dioh_wait(struct dioh_session *session, uint32_t transfer,
              struct dioh_msg_complete *ret_complete, struct dioh_error *err)
{
	return dioh_exchange_wait(session, transfer, ret_complete, err);
}
