/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * session_image.c - requests of the header path. Each is copied, carried out by the control-I/O thread, and answered when
 * it comes back; the door lets no other one in meanwhile, so that the layout belongs to one thread at a time.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>

#include "align.h"
#include "layout_mapped_ram.h"
#include "proto.h"
#include "session.h"

#define PLACE DIOH_PLACE(PROTOCOL, SESSION, 0, DIOH_OFFSET_NONE)

/* ---- there and back ---- */

static void answered(struct dioh_job *job) /* session thread */
{
	struct dioh_image_request *request = dioh_container_of(job, struct dioh_image_request, job);
	struct dioh_session_state *session = request->session;

	request->active = false;
	if (request->result < 0)
		dioh_session_refuse(session, request->type, request->id, &request->error);
	else
		dioh_session_reply(session, request->type, request->id, request->reply, request->reply_size);
}

static void answer(struct dioh_image_request *request, int result) /* control-I/O thread */
{
	request->result = result;
	request->job.handle = answered;
	dioh_mailbox_post(&request->session->mailbox, &request->job);
}

static int ask(struct dioh_session_state *session, const struct dioh_message *message, void (*work)(struct dioh_job *))
{
	struct dioh_image_request *request = session->request;

	atomic_store(&session->abandoned, false); /* a CANCEL before it was not for it */
	request->active = true;
	request->type = message->header.type;
	request->id = message->header.id;
	request->size = message->header.size;
	request->reply_size = 0;
	memcpy(request->payload, message->payload, message->header.size);
	request->job.handle = work;
	dioh_mailbox_post(&session->control.mailbox, &request->job);
	return 0;
}

/* ---- what CREATE_IMAGE, PUT_TABLE and WRITE_HEADER answer ---- */

/* Most that the pages and tables may take: no more memory is there than is allocated. */
static uint64_t needed_bytes(const struct dioh_session_state *session)
{
	uint64_t regions = 0;
	uint64_t allocated = 0;

	for (unsigned i = 0; i < session->layout.regions_put; i++)
		regions += session->layout.regions[i].record.bytes;
	for (unsigned i = 0; i < DIOH_MEMORIES_MAX; i++) {
		const struct dioh_memory *memory = &session->memories[i];
		struct stat st;

		if (memory->fd >= 0 && fstat(memory->fd, &st) == 0)
			allocated += memory->server_seeks ? (uint64_t)st.st_size : (uint64_t)st.st_blocks * 512;
	}
	return session->layout.image_bytes - dioh_min(regions, session->layout.image_bytes) +
	       dioh_min(regions, allocated);
}

static void fill_image_reply(struct dioh_session_state *session)
{
	struct dioh_msg_image_reply *reply = (struct dioh_msg_image_reply *)session->request->reply;

	memset(reply, 0, sizeof(*reply));
	session->request->reply_size = sizeof(*reply);
	if (session->stage != IMAGE_READY)
		return;
	reply->ready = 1;
	reply->image_bytes = session->layout.image_bytes;
	reply->needed_bytes = needed_bytes(session);
	reply->free_bytes = dioh_image_free_bytes(&session->image);
}

/* ---- creating ---- */

/* What is wrong with a stream shows before anything is touched. */
static bool can_keep_stream(const struct dioh_image_layout *layout, const struct dioh_error *err)
{
	return layout->ops->is_qemus && layout->device_state.channels == 0 && err->operation == DIOH_OP_PARSE &&
	       err->object == DIOH_OBJECT_STREAM;
}

static void keep_stream(struct dioh_session_state *session)
{
	struct dioh_session_stream *stream = &session->streams[session->layout.device_state.stream];

	stream->early = dioh_mapped_ram_take_input(&session->layout, &stream->early_bytes);
	dioh_layout_free(&session->layout);
	session->stage = IMAGE_REFUSED;
}

static int create(struct dioh_session_state *session, struct dioh_error *err)
{
	struct dioh_image_layout *layout = &session->layout;
	int r = layout->ops->prepare ? layout->ops->prepare(layout, err) : 0;

	if (r == 0)
		r = layout->ops->create(layout, err);
	if (r < 0) {
		session->stage = IMAGE_BROKEN;
		if (can_keep_stream(layout, err))
			keep_stream(session);
		return r;
	}
	session->stage = layout->ready ? IMAGE_READY : IMAGE_HEADER;
	return 0;
}

static int open_image(struct dioh_session_state *session, struct dioh_error *err)
{
	int r = session->layout.ops->open(&session->layout, session->open_flags, err);

	session->stage = IMAGE_READY;
	if (r < 0) { /* as if it had not been asked: it may be asked again */
		dioh_layout_free(&session->layout);
		session->stage = IMAGE_NONE;
	}
	return r;
}

static void fill_open_reply(struct dioh_session_state *session)
{
	const struct dioh_image_layout *layout = &session->layout;
	struct dioh_msg_open_image_reply *reply = (struct dioh_msg_open_image_reply *)session->request->reply;

	const struct dioh_header_info *info = &layout->header_info;

	*reply = (struct dioh_msg_open_image_reply){
		.layout = layout->ops->id,
		.state = layout->state,
		.region_count = layout->region_count,
		.stream_count = layout->stream_count,
		.header_bytes = layout->header_bytes,
		.image_bytes = layout->image_bytes,
		.compatible_features = layout->compatible,
		.ready = session->stage == IMAGE_READY,
		.header_kind = info->kind,
		.header_format = info->format,
		.header_flags = info->flags,
		.domain_memory_bytes = info->memory_bytes,
	};
	memcpy(reply->domain_uuid, info->uuid, sizeof(reply->domain_uuid));
	memcpy(reply->domain_name, info->name, sizeof(reply->domain_name));
	session->request->reply_size = sizeof(*reply);
}

static int begin_layout(struct dioh_session_state *session, uint32_t id, uint32_t regions, uint32_t streams,
                        uint64_t header_bytes, struct dioh_error *err)
{
	struct dioh_image_layout *layout = &session->layout;

	memset(layout, 0, sizeof(*layout));
	layout->ops = dioh_layout_find(id);
	layout->image = &session->image;
	layout->abandoned = &session->abandoned;
	layout->header_bytes = header_bytes;
	if (!layout->ops)
		return dioh_error_set(err, EOPNOTSUPP, PLACE, "layout %s is not served by this helper", dioh_layout_name(id));
	return dioh_layout_allocate(layout, regions, streams, err);
}

static void do_create(struct dioh_job *job)
{
	struct dioh_image_request *request = dioh_container_of(job, struct dioh_image_request, job);
	struct dioh_session_state *session = request->session;
	const struct dioh_msg_create_image *message = (const struct dioh_msg_create_image *)request->payload;
	int r = begin_layout(session, message->layout, message->region_count, message->stream_count,
	                     message->header_bytes, &request->error);

	session->layout.kept = message->flags & DIOH_CREATE_CONTINUE;
	session->layout.device_state = (struct dioh_device_state){ session->streams[message->stream].fd, message->stream,
		                                                   message->channels };
	if (r == 0) {
		session->stage = IMAGE_TABLE;
		session->opening = false;
		if (dioh_layout_table_complete(&session->layout))
			r = create(session, &request->error);
	}
	if (r == 0)
		fill_image_reply(session);
	answer(request, r);
}

static void do_open(struct dioh_job *job)
{
	struct dioh_image_request *request = dioh_container_of(job, struct dioh_image_request, job);
	struct dioh_session_state *session = request->session;
	const struct dioh_msg_open_image *message = (const struct dioh_msg_open_image *)request->payload;
	uint32_t id = message->layout;
	int r = 0;

	if (id == DIOH_LAYOUT_DETECT)
		r = dioh_layout_detect(&session->image, &id, &request->error);
	if (r == 0)
		r = begin_layout(session, id, message->region_count, message->stream_count, message->header_bytes,
		                 &request->error);
	session->opening = true;
	session->open_flags = message->flags;
	if (r == 0 && !dioh_layout_table_complete(&session->layout))
		session->stage = IMAGE_TABLE;
	else if (r == 0)
		r = open_image(session, &request->error);
	if (r == 0)
		fill_open_reply(session);
	answer(request, r);
}

static int complete_table(struct dioh_session_state *session, struct dioh_error *err)
{
	int r = session->opening ? open_image(session, err) : create(session, err);

	if (r == 0)
		fill_image_reply(session);
	return r;
}

/* A save learns a stream's length from its end; announcing one makes no sense. */
static int check_stream_lengths(const struct dioh_session_state *session, const struct dioh_msg_entry *entries,
                                uint32_t count, struct dioh_error *err)
{
	for (uint32_t i = 0; i < count && !session->opening; i++)
		if (entries[i].kind == DIOH_ENTRY_STREAM && entries[i].bytes != 0)
			return dioh_error_set(err, EINVAL, PLACE,
			                      "PUT_TABLE: stream %" PRIu32 ": a stream to be saved has no length yet",
			                      entries[i].number);
	return 0;
}

static void do_put_table(struct dioh_job *job)
{
	struct dioh_image_request *request = dioh_container_of(job, struct dioh_image_request, job);
	struct dioh_session_state *session = request->session;
	const struct dioh_msg_put_table *message = (const struct dioh_msg_put_table *)request->payload;
	const struct dioh_msg_entry *entries = (const struct dioh_msg_entry *)(message + 1);
	struct dioh_image_layout *layout = &session->layout;
	int r = check_stream_lengths(session, entries, message->count, &request->error);

	if (r == 0)
		r = dioh_proto_check_places(layout->ops->id, entries, message->count, &request->error);
	if (r == 0 && message->first != layout->regions_put + layout->streams_put)
		r = dioh_error_set(&request->error, EINVAL, PLACE,
		                   "PUT_TABLE: it starts at entry %" PRIu32 ", and entry %u comes next", message->first,
		                   layout->regions_put + layout->streams_put);
	if (r == 0)
		r = dioh_layout_put(layout, entries, message->count, &request->error);
	if (r == 0 && dioh_layout_table_complete(layout))
		r = complete_table(session, &request->error);
	else if (r == 0)
		fill_image_reply(session);
	answer(request, r);
}

static int write_header(struct dioh_session_state *session, struct dioh_error *err)
{
	const struct dioh_image_request *request = session->request;
	const struct dioh_msg_write_header *message = (const struct dioh_msg_write_header *)request->payload;
	struct dioh_image_layout *layout = &session->layout;
	int r = dioh_layout_write_header(layout, message + 1, request->size - sizeof(*message), message->offset, err);

	if (r < 0 || session->stage != IMAGE_HEADER || layout->header_written < layout->header_bytes)
		return r;
	/* raw: the manager's own header is what says that the image is not complete any more. */
	r = dioh_image_sync(layout->image, err);
	if (r == 0) {
		layout->ready = true;
		session->stage = IMAGE_READY;
	}
	return r;
}

static void do_write_header(struct dioh_job *job)
{
	struct dioh_image_request *request = dioh_container_of(job, struct dioh_image_request, job);
	struct dioh_session_state *session = request->session;
	int r = write_header(session, &request->error);

	if (r == 0)
		fill_image_reply(session);
	else if (session->stage == IMAGE_HEADER && request->error.operation != DIOH_OP_PROTOCOL)
		session->stage = IMAGE_BROKEN;
	answer(request, r);
}

static void do_get_table(struct dioh_job *job)
{
	struct dioh_image_request *request = dioh_container_of(job, struct dioh_image_request, job);
	struct dioh_session_state *session = request->session;
	const struct dioh_msg_get_table *message = (const struct dioh_msg_get_table *)request->payload;
	struct dioh_msg_get_table_reply *reply = (struct dioh_msg_get_table_reply *)request->reply;
	struct dioh_msg_entry *entries = (struct dioh_msg_entry *)(reply + 1);

	reply->first = message->first;
	reply->count = 0;
	/* An index behind every table's end also keeps the sum from wrapping. */
	while (message->first <= DIOH_REGIONS_MAX + DIOH_STREAMS_MAX && reply->count < message->count &&
	       dioh_layout_get(&session->layout, message->first + reply->count, &entries[reply->count]))
		reply->count++;
	request->reply_size = (uint32_t)(sizeof(*reply) + reply->count * sizeof(*entries));
	answer(request, 0);
}

static void do_read_header(struct dioh_job *job)
{
	struct dioh_image_request *request = dioh_container_of(job, struct dioh_image_request, job);
	struct dioh_session_state *session = request->session;
	const struct dioh_msg_read_header *message = (const struct dioh_msg_read_header *)request->payload;
	uint64_t count;
	int r = dioh_layout_read_header(&session->layout, request->reply, message->offset, message->bytes, &count,
	                                &request->error);

	if (r == 0)
		request->reply_size = (uint32_t)count;
	answer(request, r);
}

static void do_read_bitmap(struct dioh_job *job)
{
	struct dioh_image_request *request = dioh_container_of(job, struct dioh_image_request, job);
	struct dioh_session_state *session = request->session;
	const struct dioh_msg_read_bitmap *message = (const struct dioh_msg_read_bitmap *)request->payload;
	uint32_t count = message->bytes;
	int r = dioh_layout_read_bitmap(&session->layout, message->region, message->offset, request->reply, &count,
	                                &request->error);

	if (r == 0)
		request->reply_size = count;
	answer(request, r);
}

/* ---- handlers ---- */

int dioh_wrong_stage(const struct dioh_session_state *session, const struct dioh_message *message,
                     struct dioh_error *err)
{
	const char *name = dioh_msg_name(message->header.type);
	const char *why = "CREATE_IMAGE or OPEN_IMAGE comes first";

	if (session->stage == IMAGE_REFUSED)
		why = "its stream was refused, and can only be saved as it is: CREATE_IMAGE with layout raw";
	else if (session->stage == IMAGE_BROKEN)
		why = "creating the image failed half-way; this session can only be closed";
	else if (session->stage == IMAGE_TABLE)
		why = "the table's other entries come first";
	else if (session->stage == IMAGE_HEADER)
		why = "a raw image's header comes first";
	else if (session->stage == IMAGE_READY)
		why = "the image has been created or opened already";
	return dioh_error_set(err, EPROTO, PLACE, "%s is not permitted: %s", name, why);
}

/* The stream that brings the device state, and multifd's channels behind it. */
static int check_streams(const struct dioh_session_state *session, const struct dioh_msg_create_image *create_image,
                         struct dioh_error *err)
{
	const uint64_t last = (uint64_t)create_image->stream + create_image->channels;

	if (last >= DIOH_STREAMS_MAX)
		return dioh_error_set(err, EINVAL, PLACE,
		                      "CREATE_IMAGE: stream %" PRIu32 " has no room for %" PRIu32 " channels behind it",
		                      create_image->stream, create_image->channels);
	for (uint64_t i = create_image->stream; i <= last; i++)
		if (session->streams[i].fd < 0)
			return dioh_error_set(err, ENOENT, PLACE, "CREATE_IMAGE: stream %" PRIu64 " was not attached", i);
	return 0;
}

int dioh_on_create_image(struct dioh_session_state *session, struct dioh_message *message, struct dioh_error *err)
{
	const struct dioh_msg_create_image *create_image = (const struct dioh_msg_create_image *)message->payload;
	const bool as_it_is = session->stage == IMAGE_REFUSED && create_image->layout == DIOH_LAYOUT_RAW;

	if (session->stage != IMAGE_NONE && !as_it_is)
		return dioh_wrong_stage(session, message, err);
	if (create_image->layout == DIOH_LAYOUT_MAPPED_RAM) {
		int r = check_streams(session, create_image, err);

		if (r < 0)
			return r;
	}
	if (create_image->layout == DIOH_LAYOUT_MAPPED_RAM && create_image->stream_count != 1)
		return dioh_error_set(err, EINVAL, PLACE,
		                      "CREATE_IMAGE: a mapped-ram image has one stream entry, the device state, not %" PRIu32,
		                      create_image->stream_count);
	return ask(session, message, do_create);
}

int dioh_on_open_image(struct dioh_session_state *session, struct dioh_message *message, struct dioh_error *err)
{
	return session->stage == IMAGE_NONE ? ask(session, message, do_open) : dioh_wrong_stage(session, message, err);
}

int dioh_on_put_table(struct dioh_session_state *session, struct dioh_message *message, struct dioh_error *err)
{
	return session->stage == IMAGE_TABLE ? ask(session, message, do_put_table) : dioh_wrong_stage(session, message, err);
}

int dioh_on_write_header(struct dioh_session_state *session, struct dioh_message *message, struct dioh_error *err)
{
	if (session->stage != IMAGE_HEADER && session->stage != IMAGE_READY)
		return dioh_wrong_stage(session, message, err);
	return ask(session, message, do_write_header);
}

int dioh_on_get_table(struct dioh_session_state *session, struct dioh_message *message, struct dioh_error *err)
{
	return session->stage == IMAGE_READY ? ask(session, message, do_get_table) : dioh_wrong_stage(session, message, err);
}

int dioh_on_read_header(struct dioh_session_state *session, struct dioh_message *message, struct dioh_error *err)
{
	return session->stage == IMAGE_READY ? ask(session, message, do_read_header) : dioh_wrong_stage(session, message, err);
}

int dioh_on_read_bitmap(struct dioh_session_state *session, struct dioh_message *message, struct dioh_error *err)
{
	return session->stage == IMAGE_READY ? ask(session, message, do_read_bitmap) : dioh_wrong_stage(session, message, err);
}
