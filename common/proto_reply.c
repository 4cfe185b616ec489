/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * proto_reply.c - what a well-formed reply or event is.
 *
 * As proto.c, for what the helper sends. A manager need not trust the helper: sizes, counts and numbers are bounded
 * here. Names in a table are an image's: any bytes, but none behind their end. Called by the library's exchange.c.
 */
#include "exam.h"

#define ERRNO_MAX 4095
#define IMAGE_ASKS (DIOH_IMAGE_ASK_MODE * 2 - 1)
#define IMAGE_NOTES (DIOH_IMAGE_NOTE_DROPPED_BEHIND * 2 - 1)

/* ---- replies --------------------------------------------------------------------------------- */

static void check_hello_reply(struct exam *x)
{
	struct dioh_msg_hello hello;

	TAKE(x, hello);
	reserved(x, hello.reserved[0] | hello.reserved[1]);
	within(x, "version_min", hello.version_min, hello.version_max, hello.version_max);
}

static void check_attach_image_reply(struct exam *x)
{
	struct dioh_msg_attach_image_reply image;

	TAKE(x, image);
	terminated(x, "label_before", image.label_before, sizeof(image.label_before));
	terminated(x, "label_after", image.label_after, sizeof(image.label_after));
	known(x, "done", image.done, IMAGE_ASKS);
	within(x, "kind", image.kind, DIOH_IMAGE_REGULAR, DIOH_IMAGE_BLOCK_DEVICE);
	within(x, "direct", image.direct, 0, 1);
	within(x, "engine", image.engine, DIOH_ENGINE_IO_URING, DIOH_ENGINE_SYNC);
	known(x, "notes", image.notes, IMAGE_NOTES);
	within(x, "block_bytes", image.block_bytes, 1, DIOH_BLOCK_BYTES_MAX);
	within(x, "in_flight", image.in_flight, 1, DIOH_IN_FLIGHT_MAX);
	within(x, "workers", image.workers, 1, DIOH_WORKERS_MAX);
}

static void check_attach_memory_reply(struct exam *x)
{
	struct dioh_msg_attach_memory_reply memory;

	TAKE(x, memory);
	reserved(x, memory.reserved);
	within(x, "kind", memory.kind, DIOH_MEMORY_SHMEM, DIOH_MEMORY_FILE);
}

static void check_attach_stream_reply(struct exam *x)
{
	struct dioh_msg_attach_stream_reply stream;

	TAKE(x, stream);
	reserved(x, stream.reserved);
	within(x, "kind", stream.kind, DIOH_STREAM_PIPE, DIOH_STREAM_FILE);
}

static void check_seal_reply(struct exam *x)
{
	struct dioh_msg_seal_reply seal;

	TAKE(x, seal);
	reserved(x, seal.reserved);
	terminated(x, "context", seal.context, sizeof(seal.context));
	known(x, "layers", seal.layers, LAYERS);
	within(x, "engine", seal.engine, DIOH_ENGINE_IO_URING, DIOH_ENGINE_SYNC);
}

static void check_image_reply(struct exam *x)
{
	struct dioh_msg_image_reply image;

	TAKE(x, image);
	reserved(x, image.reserved);
	within(x, "ready", image.ready, 0, 1);
}

static void check_open_image_reply(struct exam *x)
{
	struct dioh_msg_open_image_reply open;

	TAKE(x, open);
	terminated(x, "domain_uuid", open.domain_uuid, sizeof(open.domain_uuid));
	terminated(x, "domain_name", open.domain_name, sizeof(open.domain_name));
	within(x, "layout", open.layout, DIOH_LAYOUT_RAW, DIOH_LAYOUT_MAPPED_RAM);
	within(x, "state", open.state, DIOH_STATE_UNKNOWN, DIOH_STATE_WRITTEN);
	check_counts(x, open.region_count, open.stream_count, open.header_bytes);
	within(x, "image_bytes", open.image_bytes, 0, DIOH_OFFSET_MAX);
	within(x, "ready", open.ready, 0, 1);
	within(x, "header_kind", open.header_kind, DIOH_HEADER_OPAQUE, DIOH_HEADER_LIBVIRT);
	known(x, "header_flags", open.header_flags, DIOH_HEADER_COMPLETE | DIOH_HEADER_WAS_RUNNING);
}

/* The name is an image's: any bytes but none. */
static void check_got_entry(struct exam *x, const struct dioh_msg_entry *entry)
{
	reserved(x, entry->reserved);
	terminated(x, "name", entry->name, sizeof(entry->name));
	check_entry(x, entry);
	known(x, "flags", entry->flags, DIOH_ENTRY_GUEST_ADDRESS | DIOH_ENTRY_CHECKSUMS | DIOH_ENTRY_IN_STREAM);
	if (entry->kind == DIOH_ENTRY_REGION)
		within(x, "present_bytes", entry->present_bytes, 0, entry->bytes);
}

static void check_get_table_reply(struct exam *x)
{
	struct dioh_msg_get_table_reply table;

	TAKE(x, table);
	fits(x, sizeof(table), table.count, sizeof(struct dioh_msg_entry));
	within(x, "count", table.count, 0, DIOH_ENTRIES_PER_MESSAGE_MAX);
	if (x->result == 0)
		each_entry(x, table.count, check_got_entry);
}

static void check_status_reply(struct exam *x)
{
	struct dioh_msg_status_reply status;

	TAKE(x, status);
	reserved(x, status.reserved);
	within(x, "phase", status.phase, DIOH_PHASE_ATTACH, DIOH_PHASE_FINISHED);
}

static void check_cancel_reply(struct exam *x)
{
	struct dioh_msg_cancel_reply cancel;

	TAKE(x, cancel);
	reserved(x, cancel.reserved);
}

/* ---- errors and events ----------------------------------------------------------------------- */

static void check_error_fields(struct exam *x, const struct dioh_msg_error *error)
{
	within(x, "operation", error->operation, DIOH_OP_NONE, DIOH_OP_FINISH);
	within(x, "object", error->object, DIOH_OBJECT_NONE, DIOH_OBJECT_REGION);
	terminated(x, "text", error->text, sizeof(error->text));
}

static void check_error(struct exam *x)
{
	struct dioh_msg_error error;

	TAKE(x, error);
	reserved(x, error.reserved);
	within(x, "code", (uint32_t)error.code, 1, ERRNO_MAX);
	check_error_fields(x, &error);
}

static void check_progress(struct exam *x)
{
	struct dioh_msg_progress progress;
	struct dioh_msg_progress_entry entry;

	TAKE(x, progress);
	fits(x, sizeof(progress), progress.count, sizeof(entry));
	within(x, "phase", progress.phase, DIOH_PHASE_ATTACH, DIOH_PHASE_FINISHED);
	within(x, "count", progress.count, 0, DIOH_TRANSFERS_MAX);
	x->part = "entry";
	for (x->index = 0; x->index < progress.count && x->result == 0; x->index++) {
		memcpy(&entry, x->payload + sizeof(progress) + x->index * sizeof(entry),
		       sizeof(entry));
		within(x, "phase", entry.phase, DIOH_PHASE_ATTACH, DIOH_PHASE_FINISHED);
	}
}

static void check_complete(struct exam *x)
{
	struct dioh_msg_complete complete;

	TAKE(x, complete);
	reserved(x, complete.error.reserved);
	within(x, "code", (uint32_t)complete.error.code, 0, ERRNO_MAX);
	if (complete.error.code != 0)
		check_error_fields(x, &complete.error);
}

static void check_stuck(struct exam *x)
{
	struct dioh_msg_stuck stuck;

	TAKE(x, stuck);
	reserved(x, stuck.reserved);
}

/* ---- the table ------------------------------------------------------------------------------- */

static const struct shape replies[] = {
	ROW(HELLO) = { EXACTLY(hello), 0, 0, check_hello_reply },
	ROW(ATTACH_IMAGE) = { EXACTLY(attach_image_reply), 0, 0, check_attach_image_reply },
	ROW(ATTACH_MEMORY) = { EXACTLY(attach_memory_reply), 0, 0, check_attach_memory_reply },
	ROW(ATTACH_STREAM) = { EXACTLY(attach_stream_reply), 0, 0, check_attach_stream_reply },
	ROW(SEAL) = { EXACTLY(seal_reply), 0, 0, check_seal_reply },
	ROW(CREATE_IMAGE) = { EXACTLY(image_reply), 0, 0, check_image_reply },
	ROW(PUT_TABLE) = { EXACTLY(image_reply), 0, 0, check_image_reply },
	ROW(WRITE_HEADER) = { EXACTLY(image_reply), 0, 0, check_image_reply },
	ROW(OPEN_IMAGE) = { EXACTLY(open_image_reply), 0, 0, check_open_image_reply },
	ROW(GET_TABLE) = { AT_LEAST(get_table_reply), 0, 0, check_get_table_reply },
	ROW(READ_HEADER) = { 0, DIOH_PAYLOAD_BYTES_MAX, 0, 0, NULL },
	ROW(SAVE_MEMORY) = { EMPTY, 0, 0, NULL },
	ROW(LOAD_MEMORY) = { EMPTY, 0, 0, NULL },
	ROW(SAVE_STREAM) = { EMPTY, 0, 0, NULL },
	ROW(LOAD_STREAM) = { EMPTY, 0, 0, NULL },
	ROW(STATUS) = { EXACTLY(status_reply), 0, 0, check_status_reply },
	ROW(CANCEL) = { EXACTLY(cancel_reply), 0, 0, check_cancel_reply },
	ROW(FINISH) = { EMPTY, 0, 0, NULL },
	ROW(READ_BITMAP) = { 0, DIOH_PAYLOAD_BYTES_MAX, 0, 0, NULL },
	ROW(KEEP_REGION) = { EMPTY, 0, 0, NULL },
};

static const struct shape error_reply = { EXACTLY(error), 0, 0, check_error };
static const struct shape progress_event = { AT_LEAST(progress), 0, 0, check_progress };
static const struct shape complete_event = { EXACTLY(complete), 0, 0, check_complete };
static const struct shape stuck_event = { EXACTLY(stuck), 0, 0, check_stuck };
static const struct shape broken_event = { EXACTLY(error), 0, 0, check_error };

static const struct shape *find_event(uint32_t type)
{
	switch (type) {
	case DIOH_MSG_PROGRESS:
		return &progress_event;
	case DIOH_MSG_COMPLETE:
		return &complete_event;
	case DIOH_MSG_STUCK:
		return &stuck_event;
	case DIOH_MSG_BROKEN:
		return &broken_event;
	default:
		return NULL;
	}
}

int dioh_proto_check_reply(const struct dioh_msg_header *header, const void *payload,
                           unsigned fd_count, uint32_t request_type, uint32_t request_id,
                           struct dioh_error *err)
{
	struct exam x = begin_exam(header, payload, fd_count, "'s reply", err);
	const struct shape *shape = find_row(replies, request_type);

	if (!shape)
		fail(&x, EOPNOTSUPP, "no request has the type %" PRIu32, request_type);
	if (header->type != request_type + 1)
		fail(&x, EBADMSG, "type %" PRIu32 " came, %" PRIu32 " was expected", header->type,
		     request_type + 1);
	if (header->id != request_id)
		fail(&x, EBADMSG, "id %" PRIu32 " came, %" PRIu32 " was expected", header->id,
		     request_id);
	if ((header->flags & ~(uint32_t)DIOH_MSG_ERROR) != 0)
		fail(&x, EBADMSG, "unknown flags 0x%" PRIx32, header->flags);
	if (header->flags & DIOH_MSG_ERROR)
		shape = &error_reply;
	return x.result < 0 ? x.result : check_shape(&x, shape);
}

int dioh_proto_check_event(const struct dioh_msg_header *header, const void *payload,
                           unsigned fd_count, struct dioh_error *err)
{
	struct exam x = begin_exam(header, payload, fd_count, "", err);
	const struct shape *shape = find_event(header->type);

	if (!shape)
		fail(&x, EOPNOTSUPP, "no event has the type %" PRIu32, header->type);
	if (header->flags != 0)
		fail(&x, EBADMSG, "flags 0x%" PRIx32 " is not zero", header->flags);
	if ((header->id != 0) != (header->type == DIOH_MSG_COMPLETE))
		fail(&x, EBADMSG, "id is %" PRIu32, header->id);
	return x.result < 0 ? x.result : check_shape(&x, shape);
}
