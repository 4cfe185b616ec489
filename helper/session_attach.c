/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* session_attach.c - HELLO, ATTACH_*, SEAL: what happens while there is one thread and some privilege left. */
#define _GNU_SOURCE
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "attach.h"
#include "capabilities.h"
#include "label.h"
#include "proto.h"
#include "sandbox.h"
#include "session.h"

#define PROTOCOL_PLACE DIOH_PLACE(PROTOCOL, SESSION, 0, DIOH_OFFSET_NONE)
#define SEAL_PLACE DIOH_PLACE(SEAL, SESSION, 0, DIOH_OFFSET_NONE)

/* ---- HELLO ---- */

static int take_pidfd(struct dioh_session_state *session, struct dioh_message *message, struct dioh_error *err)
{
	struct stat st;

	if (message->fd_count == 0)
		return 0;
	/*
	 * Signal 0 sends nothing; EBADF is the answer for what is no pidfd. A directory of /proc is as good as one there,
	 * but poll(2) tells nothing about it.
	 */
	if ((syscall(SYS_pidfd_send_signal, message->fds[0], 0, NULL, 0) < 0 && errno == EBADF) ||
	    fstat(message->fds[0], &st) < 0 || S_ISDIR(st.st_mode))
		return dioh_error_set(err, EINVAL, PROTOCOL_PLACE, "HELLO: its descriptor is no pidfd");
	session->manager_pidfd = message->fds[0];
	message->fds[0] = -1;
	return 0;
}

int dioh_on_hello(struct dioh_session_state *session, struct dioh_message *message, struct dioh_error *err)
{
	const struct dioh_msg_hello *hello = (const struct dioh_msg_hello *)message->payload;
	const uint64_t missing = hello->required & ~DIOH_FEATURES_OFFERED;
	struct dioh_msg_hello reply = {
		.version_min = DIOH_PROTOCOL_VERSION,
		.version_max = DIOH_PROTOCOL_VERSION,
		.offered = DIOH_FEATURES_OFFERED,
	};
	int r;

	if (hello->version_min > DIOH_PROTOCOL_VERSION || hello->version_max < DIOH_PROTOCOL_VERSION)
		return dioh_error_set(err, EPROTONOSUPPORT, PROTOCOL_PLACE,
		                      "HELLO: the manager speaks protocol versions %" PRIu32 " to %" PRIu32
		                      ", this helper speaks %u", hello->version_min, hello->version_max,
		                      DIOH_PROTOCOL_VERSION);
	if (missing)
		return dioh_error_set(err, ENOTSUP, PROTOCOL_PLACE,
		                      "HELLO: the manager requires feature %s (0x%" PRIx64 "), which this helper has not",
		                      dioh_feature_name(missing), missing);
	r = take_pidfd(session, message, err);
	if (r < 0)
		return r;
	session->phase = PHASE_ATTACH;
	dioh_session_reply(session, DIOH_MSG_HELLO, message->header.id, &reply, sizeof(reply));
	return 0;
}

/* ---- ATTACH_* ---- */

static void disown_fds(struct dioh_message *message)
{
	for (unsigned i = 0; i < message->fd_count; i++)
		message->fds[i] = -1;
}

/* All but those that the image does not need. */
static void disown_image_fds(struct dioh_message *message, const struct dioh_image *image)
{
	for (unsigned i = 0; i < message->fd_count; i++)
		if (message->fds[i] == image->header_fd || message->fds[i] == image->page_fd ||
		    message->fds[i] == image->directory_fd)
			message->fds[i] = -1;
}

int dioh_on_attach_image(struct dioh_session_state *session, struct dioh_message *message, struct dioh_error *err)
{
	const struct dioh_msg_attach_image *request = (const struct dioh_msg_attach_image *)message->payload;
	struct dioh_msg_attach_image_reply reply = { 0 };
	int r;

	if (session->image_attached)
		return dioh_error_set(err, EEXIST, PROTOCOL_PLACE, "ATTACH_IMAGE: this session has its image already");
	r = dioh_label_check(request, session->options->allow, err);
	if (r == 0)
		r = dioh_examine_image(request, message->fds, &session->image, err);
	if (r == 0)
		r = dioh_label_image(request, &session->image, &reply, err);
	if (r == 0)
		r = dioh_image_size(&session->image, &reply.file_bytes, err);
	if (r == 0)
		r = dioh_settle_image(request, &session->image, err);
	if (r < 0) {
		dioh_image_init(&session->image);
		return r;
	}
	disown_image_fds(message, &session->image);
	session->image_attached = true;
	reply.kind = session->image.kind;
	reply.direct = session->image.direct && !(session->image.notes & DIOH_IMAGE_NOTE_DIRECT_CHECKSUMS);
	reply.engine = session->image.engine;
	reply.notes = session->image.notes;
	reply.memory_alignment = reply.direct ? session->image.memory_alignment : 0;
	reply.offset_alignment = reply.direct ? session->image.offset_alignment : 0;
	reply.block_bytes = session->image.block_bytes;
	reply.in_flight = session->image.in_flight;
	reply.workers = session->image.workers;
	dioh_session_reply(session, DIOH_MSG_ATTACH_IMAGE, message->header.id, &reply, sizeof(reply));
	return 0;
}

static int check_image_first(const struct dioh_session_state *session, const char *name, struct dioh_error *err)
{
	if (session->image_attached)
		return 0;
	return dioh_error_set(err, EPROTO, PROTOCOL_PLACE,
	                      "%s: ATTACH_IMAGE comes first, since its direction says what is needed", name);
}

int dioh_on_attach_memory(struct dioh_session_state *session, struct dioh_message *message, struct dioh_error *err)
{
	const struct dioh_msg_attach_memory *request = (const struct dioh_msg_attach_memory *)message->payload;
	struct dioh_memory *memory = &session->memories[request->memory];
	struct dioh_msg_attach_memory_reply reply = { 0 };
	int r = check_image_first(session, "ATTACH_MEMORY", err);

	if (r < 0)
		return r;
	if (memory->fd >= 0)
		return dioh_error_set(err, EEXIST, PROTOCOL_PLACE, "ATTACH_MEMORY: number %" PRIu32 " is taken",
		                      request->memory);
	r = dioh_examine_memory(request, message->fds, &session->image, memory, &reply, err);
	if (r < 0)
		return r;
	disown_fds(message);
	dioh_session_reply(session, DIOH_MSG_ATTACH_MEMORY, message->header.id, &reply, sizeof(reply));
	return 0;
}

int dioh_on_attach_stream(struct dioh_session_state *session, struct dioh_message *message, struct dioh_error *err)
{
	const struct dioh_msg_attach_stream *request = (const struct dioh_msg_attach_stream *)message->payload;
	struct dioh_session_stream *stream = &session->streams[request->stream];
	struct dioh_msg_attach_stream_reply reply = { 0 };
	int r = check_image_first(session, "ATTACH_STREAM", err);

	if (r < 0)
		return r;
	if (stream->known)
		return dioh_error_set(err, EEXIST, PROTOCOL_PLACE, "ATTACH_STREAM: number %" PRIu32 " is taken",
		                      request->stream);
	r = dioh_examine_stream(request->stream, message->fds[0], &session->image, &reply.kind, &stream->large_pipe, err);
	if (r < 0)
		return r;
	stream->fd = message->fds[0];
	stream->known = true;
	stream->kind = reply.kind;
	disown_fds(message);
	dioh_session_reply(session, DIOH_MSG_ATTACH_STREAM, message->header.id, &reply, sizeof(reply));
	return 0;
}

/* ---- SEAL: seal.c explains the order ---- */

/*
 * Streams are the first worker's: a ring keeps what is in its table open, and a stream's other end sees it end only when no
 * ring has it any more.
 */
static void forget_streams(struct dioh_engine_config *slots)
{
	for (unsigned i = 0; i < DIOH_STREAMS_MAX; i++)
		slots->fds[DIOH_SLOT_STREAM + i] = -1;
}

static int open_threads(struct dioh_session_state *session, struct dioh_error *err)
{
	struct dioh_worker_config config = {
		.block_bytes = session->image.block_bytes,
		.in_flight = session->image.in_flight,
		.direct = session->image.direct,
		.fill_buffers = session->image.reads_present_only,
		.sync_error = &session->image.sync_error,
		.waits_since_ns = &session->image.waits_since_ns,
		.control = &session->control,
		.session = &session->mailbox,
		.broken = dioh_session_broken,
	};
	int r;

	config.slots.fd_count = DIOH_SLOTS_MAX;
	config.slots.fds[DIOH_SLOT_PAGE] = session->image.page_fd;
	for (unsigned i = 0; i < DIOH_STREAMS_MAX; i++)
		config.slots.fds[DIOH_SLOT_STREAM + i] = session->streams[i].fd;
	r = dioh_control_open(&session->control, err);
	session->workers = calloc(session->image.workers, sizeof(*session->workers));
	session->request = calloc(1, sizeof(*session->request));
	if (r == 0 && (!session->workers || !session->request))
		r = dioh_error_errno(err, ENOMEM, SEAL_PLACE, "helper: room for its workers");
	if (r == 0)
		session->request->session = session;
	for (unsigned i = 0; i < session->image.workers && r == 0; i++) {
		session->worker_count++;
		r = dioh_worker_open(&session->workers[i], &config, err);
		forget_streams(&config.slots);
	}
	if (r == 0)
		r = dioh_workers_open_engines(session->workers, session->worker_count, dioh_engine_find(session->image.engine),
		                              session->image.any_engine, err);
	return r;
}

static int start_workers(struct dioh_session_state *session, pthread_barrier_t *barrier, struct dioh_error *err)
{
	for (unsigned i = 0; i < session->worker_count; i++) {
		int r = dioh_worker_start(&session->workers[i], barrier, err);

		if (r < 0)
			return r;
	}
	pthread_barrier_wait(barrier);
	for (unsigned i = 0; i < session->worker_count; i++) {
		if (session->workers[i].start_result < 0) {
			*err = session->workers[i].start_error;
			return session->workers[i].start_result;
		}
	}
	return 0;
}

static int start_threads(struct dioh_session_state *session, struct dioh_error *err)
{
	static pthread_barrier_t barrier; /* outlives a failure in which some worker still waits at it */
	int r;

	pthread_barrier_init(&barrier, NULL, session->worker_count + 2);
	r = dioh_control_start(&session->control, &barrier, err);
	return r < 0 ? r : start_workers(session, &barrier, err);
}

static int check_layers(uint32_t required, uint32_t layers, struct dioh_error *err)
{
	const uint32_t missing = required & ~layers;

	if (!missing)
		return 0;
	return dioh_error_set(err, EPERM, SEAL_PLACE,
	                      "SEAL: layer %s (0x%" PRIx32 ") is required and not to be had here", dioh_layer_name(missing),
	                      missing);
}

/*
 * A binary without its label runs in its manager's domain, and no policy of ours confines it. A context is
 * user:role:type[:range].
 */
static bool in_own_domain(const char *context)
{
	static const char domain[] = "diohelper_t";
	const char *role = strchr(context, ':');
	const char *type = role ? strchr(role + 1, ':') : NULL;
	const size_t length = type ? strcspn(type + 1, ":") : 0;

	return length == sizeof(domain) - 1 && strncmp(type + 1, domain, length) == 0;
}

static bool rings_restricted(const struct dioh_session_state *session)
{
	for (unsigned i = 0; i < session->worker_count; i++)
		if (!session->workers[i].engine->restricted)
			return false;
	return true;
}

/* With every thread there, as the last thing. */
static void filter_calls(struct dioh_session_state *session)
{
	if (rings_restricted(session))
		session->layers |= DIOH_LAYER_RING_RESTRICTIONS;
	if (in_own_domain(session->context))
		session->layers |= DIOH_LAYER_SELINUX;

	if (dioh_sandbox_seccomp(DIOH_SANDBOX_SERVE | dioh_sandbox_engine(session->workers[0].engine->ops->id), session->fd))
		session->layers |= DIOH_LAYER_SECCOMP;
}

static int seal(struct dioh_session_state *session, uint32_t required, struct dioh_error *err)
{
	int r = open_threads(session, err);

	dioh_label_own_context(session->context);
	if (r == 0)
		r = dioh_seal_privileges(&session->options->identity, &session->layers, err);
	if (r < 0)
		return r;
	session->uid = getuid();
	session->gid = getgid();
	r = start_threads(session, err);
	if (r < 0)
		return r;
	filter_calls(session);
	return check_layers(required, session->layers, err);
}

int dioh_on_seal(struct dioh_session_state *session, struct dioh_message *message, struct dioh_error *err)
{
	const struct dioh_msg_seal *request = (const struct dioh_msg_seal *)message->payload;
	struct dioh_msg_seal_reply reply = { 0 };
	int r;

	if (!session->image_attached)
		return dioh_error_set(err, EPROTO, PROTOCOL_PLACE, "SEAL: ATTACH_IMAGE comes first");
	r = dioh_mailbox_open(&session->mailbox, err);
	if (r == 0) {
		session->sealed = true;
		r = seal(session, request->required, err);
	}
	if (r < 0) {
		session->half_built = true;
		session->ending = true;
		session->exit_status = 1;
		return r;
	}
	session->phase = PHASE_TRANSFER;
	reply.layers = session->layers;
	reply.uid = session->uid;
	reply.gid = session->gid;
	reply.threads = session->worker_count * (1 + session->workers[0].engine->threads) + 2;
	reply.engine = session->workers[0].engine->ops->id;
	memcpy(reply.context, session->context, sizeof(reply.context));
	dioh_session_reply(session, DIOH_MSG_SEAL, message->header.id, &reply, sizeof(reply));
	return 0;
}
