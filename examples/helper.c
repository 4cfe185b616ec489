/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * helper.c - a session with diohelper. See helper.h.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "helper.h"

#define PATIENCE_MS 1000
#define BLAME_MS 200 /* what a helper that failed needs at most to say so, QEMU having noticed already */

/* What makes the helper worth its name to us: without these it would read hostile bytes with our privileges. */
#define REQUIRED_LAYERS (DIOH_LAYER_STRAYS_CLOSED | DIOH_LAYER_NO_CAPABILITIES | DIOH_LAYER_NO_NEW_PRIVS)
#define REQUIRED_FEATURES                                                                                              \
	(DIOH_FEATURE_LAYOUT_CONTAINER | DIOH_FEATURE_LAYOUT_MAPPED_RAM | DIOH_FEATURE_STREAM | DIOH_FEATURE_CHECKSUM)

static int attach(struct hv_helper *helper, uint32_t direction, const struct hv_image *image, int memory_fd,
                  int stream_fd, struct dioh_error *err)
{
	struct dioh_image_options image_options = DIOH_IMAGE_OPTIONS_INIT;
	struct dioh_memory_options memory_options = DIOH_MEMORY_OPTIONS_INIT;
	struct dioh_msg_attach_memory_reply memory_info;
	struct dioh_msg_attach_stream_reply stream_info;
	int rc;

	image_options.buffered_fd = image->buffered_fd;
	image_options.direct_fd = image->direct_fd;
	image_options.directory_fd = image->directory_fd;
	image_options.direction = direction;
	image_options.base_offset = image->base_offset;
	rc = dioh_attach_image(helper->session, &image_options, &helper->image, err);
	if (rc)
		return rc;
	memory_options.fd = memory_fd;
	rc = dioh_attach_memory(helper->session, HV_MEMORY, &memory_options, &memory_info, err);
	if (rc)
		return rc;
	return dioh_attach_stream(helper->session, HV_STREAM, stream_fd, &stream_info, err);
}

int hv_helper_start(struct hv_helper *helper, const struct hv_helper_options *options, uint32_t direction,
                    const struct hv_image *image, int memory_fd, int stream_fd, struct dioh_error *err)
{
	struct dioh_spawn_options spawn_options = DIOH_SPAWN_OPTIONS_INIT;
	struct dioh_msg_seal_reply sealed;
	int rc;

	*helper = (struct hv_helper){ .cancel = options->cancel, .reporter = options->reporter, .stage = "starting" };
	spawn_options.program = options->program;
	rc = dioh_spawn(&spawn_options, REQUIRED_FEATURES, &helper->session, err);
	if (rc == 0)
		rc = attach(helper, direction, image, memory_fd, stream_fd, err);
	if (rc == 0)
		rc = dioh_seal(helper->session, REQUIRED_LAYERS, &sealed, err);
	if (rc == 0)
		helper->image.engine = sealed.engine; /* there may have been no room for the one chosen before */
	return rc;
}

/* ---- a call that waits ------------------------------------------------------------------------------------------ */

struct create_call {
	struct dioh_session *session;
	const struct dioh_create_options *options;
	struct dioh_error error;
	int rc;
	int done_fd; /* closed when the call has returned */
};

static void *call_create(void *argument)
{
	struct create_call *call = argument;
	struct dioh_msg_image_reply info;

	call->rc = dioh_create_image(call->session, call->options, &info, &call->error);
	hv_close(&call->done_fd);
	return NULL;
}

/* The call has a thread to itself, and this one watches for a cancel: shutting the connection down ends the call. */
int hv_helper_create_image(struct hv_helper *helper, const struct dioh_create_options *options, struct dioh_error *err)
{
	struct create_call call = { .session = helper->session, .options = options };
	HV_CLOSE int wait_fd = -1;
	pthread_t thread;
	int pair[2], rc;

	if (pipe2(pair, O_CLOEXEC))
		return hv_fail(err, errno, "no pipe to wait with: %m");
	wait_fd = pair[0];
	call.done_fd = pair[1];
	rc = pthread_create(&thread, NULL, call_create, &call);
	if (rc) {
		hv_close(&call.done_fd);
		return hv_fail(err, rc, "no thread to wait with: %s", strerror(rc));
	}
	rc = hv_wait_readable(helper->cancel, wait_fd, -1, err);
	if (rc < 0)
		(void)shutdown(dioh_session_fd(helper->session), SHUT_RDWR);
	(void)pthread_join(thread, NULL);
	if (rc < 0)
		return rc;
	if (call.rc && err)
		*err = call.error;
	return call.rc;
}

struct dioh_msg_memory_transfer hv_whole_memory(uint64_t bytes, uint32_t flags)
{
	return (struct dioh_msg_memory_transfer){ .memory = HV_MEMORY, .region = 0, .length = bytes, .flags = flags };
}

struct dioh_msg_stream_transfer hv_whole_stream(void)
{
	return (struct dioh_msg_stream_transfer){ .stream = HV_STREAM, .entry = 0 };
}

/* ---- events ---------------------------------------------------------------------------------------------------- */

void hv_helper_stage(struct hv_helper *helper, const char *stage)
{
	struct hv_progress progress = { .stage = stage };

	helper->stage = stage;
	helper->reporter->progress(helper->reporter, &progress);
}

static void report(struct hv_helper *helper, const struct dioh_event *event)
{
	struct hv_progress progress = { .stage = helper->stage };
	uint32_t i;

	for (i = 0; i < event->progress_count; i++) {
		progress.done_bytes += event->progress[i].done_bytes;
		progress.total_bytes += event->progress[i].total_bytes;
		progress.bytes_per_second += event->progress[i].bytes_per_second;
	}
	helper->reporter->progress(helper->reporter, &progress);
}

static int complete(struct hv_helper *helper, const struct dioh_event *event, struct dioh_error *err)
{
	struct hv_transfer *transfers[] = { &helper->state, &helper->memory, &helper->finish };
	unsigned int i;

	for (i = 0; i < sizeof(transfers) / sizeof(transfers[0]); i++) {
		if (transfers[i]->id != event->transfer)
			continue;
		transfers[i]->completed = true;
		transfers[i]->error = event->error;
		transfers[i]->figures = event->complete;
	}
	if (event->error.code && err)
		*err = event->error;
	return -event->error.code;
}

static int take_event(struct hv_helper *helper, const struct dioh_event *event, struct dioh_error *err)
{
	switch (event->type) {
	case DIOH_EVENT_PROGRESS:
		report(helper, event);
		return 0;
	case DIOH_EVENT_COMPLETE:
		return complete(helper, event, err);
	case DIOH_EVENT_STUCK:
		hv_helper_stage(helper, "waiting for a disk that does not answer");
		return 0;
	default:
		return 0;
	}
}

int hv_helper_turn(struct hv_helper *helper, int timeout_ms, struct dioh_error *err)
{
	struct dioh_event event;
	int rc = dioh_poll(helper->session, &event, 0, err);

	if (rc == -EINTR)
		return 0;
	if (rc > 0)
		return take_event(helper, &event, err);
	if (rc == 0)
		rc = hv_wait_readable(helper->cancel, dioh_session_fd(helper->session), timeout_ms, err);
	return rc < 0 ? rc : 0;
}

int hv_helper_wait(struct hv_helper *helper, const struct hv_transfer *transfer, struct dioh_error *err)
{
	int rc = 0;

	while (rc == 0 && !transfer->completed)
		rc = hv_helper_turn(helper, PATIENCE_MS, err);
	return rc;
}

int hv_helper_blame(struct hv_helper *helper, int code, struct dioh_error *err)
{
	int64_t deadline_ms = hv_now_ms() + BLAME_MS;
	struct dioh_error its_error;
	int rc = 0;

	if (code == -ECANCELED)
		return code;
	while (rc == 0 && !helper->state.completed && hv_now_ms() < deadline_ms)
		rc = hv_helper_turn(helper, BLAME_MS, &its_error);
	/* A reader that went away is what QEMU's failure looks like from the helper's side: that explains nothing. */
	if (rc == 0 || rc == -ECANCELED || (rc == -EPIPE && its_error.object != DIOH_OBJECT_SESSION))
		return code;
	if (err)
		*err = its_error;
	return rc;
}

int hv_helper_close(struct hv_helper *helper, int timeout_ms)
{
	int rc = dioh_close(helper->session, timeout_ms, NULL);

	helper->session = NULL;
	return rc;
}
