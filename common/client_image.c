/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * client_image.c - the public API for what is in the image beside pages: its table, the manager's header, which pages
 * there are. What is longer than a message goes and comes in pieces.
 *
 * Trusts the caller's pointers and nothing else, as client.c does. Called by managers.
 */
#include "diohelper.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "align.h"
#include "exchange.h"
#include "proto.h"

#define HEADER_PIECE_BYTES (DIOH_PAYLOAD_BYTES_MAX - sizeof(struct dioh_msg_write_header))

#define PLACE DIOH_PLACE(PROTOCOL, SESSION, 0, DIOH_OFFSET_NONE)

/* ---- what goes out in pieces: the table, the manager's header ---- */

static int count_entries(const struct dioh_msg_entry *entries, uint32_t count,
                         uint32_t *ret_regions, uint32_t *ret_streams, struct dioh_error *err)
{
	uint32_t regions = 0, streams = 0;

	for (uint32_t i = 0; i < count; i++) {
		if (entries[i].kind == DIOH_ENTRY_REGION)
			regions++;
		else if (entries[i].kind == DIOH_ENTRY_STREAM)
			streams++;
		else
			return dioh_error_set(err, EINVAL, PLACE,
			                      "entry %" PRIu32 " is neither a region nor a stream",
			                      i);
	}
	*ret_regions = regions;
	*ret_streams = streams;
	return 0;
}

/* The entries from `first` on that go into one message; its payload is made in session->out. */
static struct dioh_request make_piece(struct dioh_session *session, uint32_t first, uint32_t count,
                                      const struct dioh_msg_entry *entries)
{
	struct dioh_msg_put_table table = { .first = first,
		                            .count = (uint32_t)dioh_min(count - first, DIOH_ENTRIES_PER_MESSAGE_MAX) };

	memcpy(session->out, &table, sizeof(table));
	memcpy(session->out + sizeof(table), &entries[first], table.count * sizeof(*entries));
	return (struct dioh_request){ .type = DIOH_MSG_PUT_TABLE, .payload = session->out,
		                      .size = (uint32_t)(sizeof(table) + table.count * sizeof(*entries)) };
}

static int check_unique(const struct dioh_msg_entry *entries, uint32_t count, struct dioh_error *err)
{
	for (uint32_t i = 0; i < count; i++)
		for (uint32_t k = 0; k < i; k++) {
			if (entries[i].kind != entries[k].kind)
				continue;
			if (entries[i].number == entries[k].number)
				return dioh_error_set(err, EEXIST, PLACE, "entry %" PRIu32 ": its number, %" PRIu32
				                      ", is that of entry %" PRIu32, i, entries[i].number, k);
			if (strcmp(entries[i].name, entries[k].name) == 0)
				return dioh_error_set(err, EEXIST, PLACE, "entry %" PRIu32 ": its name is that of entry %" PRIu32,
				                      i, k);
		}
	return 0;
}

/* Before anything is sent: a table refused half-way would leave an image that is neither created nor not. */
static int check_entries(struct dioh_session *session, uint32_t layout, const struct dioh_msg_entry *entries,
                         uint32_t count, uint32_t *ret_regions, uint32_t *ret_streams, struct dioh_error *err)
{
	int r = count_entries(entries, count, ret_regions, ret_streams, err);

	for (uint32_t first = 0; first < count && r == 0; first += DIOH_ENTRIES_PER_MESSAGE_MAX) {
		const struct dioh_request request = make_piece(session, first, count, entries);

		r = dioh_exchange_check(&request, err);
	}
	if (r == 0)
		r = dioh_proto_check_places(layout, entries, count, err);
	return r < 0 ? r : check_unique(entries, count, err);
}

/* `total` is what is known of the image so far: once it is ready that is what counts. */
static void take_image_reply(struct dioh_msg_image_reply *total,
                             const struct dioh_msg_image_reply *reply)
{
	if (reply->ready || !total->ready)
		*total = *reply;
}

static int put_table(struct dioh_session *session, const struct dioh_msg_entry *entries,
                     uint32_t count, struct dioh_msg_image_reply *total, struct dioh_error *err)
{
	for (uint32_t first = 0; first < count; first += DIOH_ENTRIES_PER_MESSAGE_MAX) {
		struct dioh_request request = make_piece(session, first, count, entries);
		struct dioh_msg_image_reply reply;
		int r;

		request.ret_reply = &reply;
		r = dioh_exchange(session, &request, err);
		if (r < 0)
			return r;
		take_image_reply(total, &reply);
	}
	return 0;
}

static int write_piece(struct dioh_session *session, uint64_t offset, const uint8_t *bytes,
                       uint32_t count, struct dioh_msg_image_reply *ret_reply,
                       struct dioh_error *err)
{
	struct dioh_msg_write_header header = { .offset = offset };
	struct dioh_request request = {
		.type = DIOH_MSG_WRITE_HEADER,
		.payload = session->out,
		.size = (uint32_t)sizeof(header) + count,
		.ret_reply = ret_reply,
	};

	memcpy(session->out, &header, sizeof(header));
	memcpy(session->out + sizeof(header), bytes, count);
	return dioh_exchange(session, &request, err);
}

static int write_header(struct dioh_session *session, uint64_t offset, const uint8_t *bytes,
                        uint64_t count, struct dioh_msg_image_reply *total, struct dioh_error *err)
{
	if (!dioh_range_ok(offset, count, DIOH_HEADER_BYTES_MAX))
		return dioh_error_set(err, EINVAL, PLACE,
		                      "WRITE_HEADER: %" PRIu64 " bytes at offset %" PRIu64
		                      " end behind %u",
		                      count, offset, DIOH_HEADER_BYTES_MAX);
	for (uint64_t done = 0, piece; done < count; done += piece) {
		struct dioh_msg_image_reply reply;
		int r;

		piece = dioh_min(count - done, HEADER_PIECE_BYTES);
		r = write_piece(session, offset + done, bytes + done, (uint32_t)piece, &reply, err);
		if (r < 0)
			return r;
		take_image_reply(total, &reply);
	}
	return 0;
}

/* ---- the image ---- */

int dioh_create_image(struct dioh_session *session, const struct dioh_create_options *options,
                      struct dioh_msg_image_reply *ret_info, struct dioh_error *err)
{
	struct dioh_msg_create_image create = {
		.layout = options->layout,
		.flags = options->flags,
		.header_bytes = options->header_bytes,
		.stream = options->stream,
		.channels = options->channels,
	};
	struct dioh_msg_image_reply reply;
	struct dioh_request request = {
		.type = DIOH_MSG_CREATE_IMAGE,
		.payload = &create,
		.size = sizeof(create),
		.ret_reply = &reply,
	};
	int r;

	r = check_entries(session, options->layout, options->entries, options->entry_count, &create.region_count,
	                  &create.stream_count, err);
	if (r < 0)
		return r;
	r = dioh_exchange(session, &request, err);
	if (r < 0)
		return r;
	r = put_table(session, options->entries, options->entry_count, &reply, err);
	if (r == 0 && options->header)
		r = write_header(session, 0, options->header, options->header_bytes, &reply, err);
	if (r == 0 && ret_info)
		*ret_info = reply;
	return r;
}

int dioh_write_header(struct dioh_session *session, uint64_t offset, const void *bytes,
                      uint64_t count, struct dioh_error *err)
{
	struct dioh_msg_image_reply reply = { 0 };

	return write_header(session, offset, bytes, count, &reply, err);
}

int dioh_open_image(struct dioh_session *session, const struct dioh_open_options *options,
                    struct dioh_msg_open_image_reply *ret_info, struct dioh_error *err)
{
	struct dioh_msg_open_image open = {
		.layout = options->layout,
		.flags = options->flags,
		.header_bytes = options->header_bytes,
	};
	struct dioh_msg_open_image_reply info;
	struct dioh_request request = {
		.type = DIOH_MSG_OPEN_IMAGE,
		.payload = &open,
		.size = sizeof(open),
		.ret_reply = &info,
	};
	struct dioh_msg_image_reply reply;
	int r;

	r = check_entries(session, options->layout, options->entries, options->entry_count, &open.region_count,
	                  &open.stream_count, err);
	if (r < 0)
		return r;
	r = dioh_exchange(session, &request, err);
	if (r < 0)
		return r;
	reply = (struct dioh_msg_image_reply){ .ready = info.ready,
		                               .image_bytes = info.image_bytes };
	r = put_table(session, options->entries, options->entry_count, &reply, err);
	if (r < 0)
		return r;
	info.ready = reply.ready;
	info.image_bytes = reply.image_bytes;
	if (ret_info)
		*ret_info = info;
	return 0;
}

/* ---- what comes in pieces ---- */

static int get_piece(struct dioh_session *session, uint32_t first, uint32_t count,
                     struct dioh_msg_entry *ret_entries, uint32_t *ret_count,
                     struct dioh_error *err)
{
	struct dioh_msg_get_table table = { .first = first, .count = count };
	struct dioh_msg_get_table_reply reply;
	struct dioh_request request = { .type = DIOH_MSG_GET_TABLE,
		                        .payload = &table,
		                        .size = sizeof(table) };
	int r;

	r = dioh_exchange(session, &request, err);
	if (r < 0)
		return r;
	memcpy(&reply, session->in.payload, sizeof(reply));
	if (reply.first != first || reply.count > count)
		return dioh_exchange_break(session,
		                           "GET_TABLE's reply: these entries were not asked for",
		                           err);
	memcpy(ret_entries, session->in.payload + sizeof(reply),
	       reply.count * sizeof(*ret_entries));
	*ret_count = reply.count;
	return 0;
}

int dioh_get_table(struct dioh_session *session, uint32_t first, uint32_t count,
                   struct dioh_msg_entry *ret_entries, uint32_t *ret_count, struct dioh_error *err)
{
	uint32_t done = 0;

	while (done < count) {
		uint32_t wanted = (uint32_t)dioh_min(count - done, DIOH_ENTRIES_PER_MESSAGE_MAX);
		uint32_t got = 0;
		int r;

		r = get_piece(session, first + done, wanted, &ret_entries[done], &got, err);
		if (r < 0)
			return r;
		done += got;
		if (got < wanted)
			break;
	}
	*ret_count = done;
	return 0;
}

/* A request whose reply is bytes: as many as there are of those that were asked for. */
static int ask_bytes(struct dioh_session *session, const struct dioh_request *request, uint32_t wanted, uint8_t *bytes,
                     uint32_t *ret_count, struct dioh_error *err)
{
	int r = dioh_exchange(session, request, err);

	if (r < 0)
		return r;
	if (session->in.header.size > wanted)
		return dioh_exchange_break(session, "a reply has more bytes than were asked for", err);
	memcpy(bytes, session->in.payload, session->in.header.size);
	*ret_count = session->in.header.size;
	return 0;
}

int dioh_read_header(struct dioh_session *session, uint64_t offset, void *bytes, uint64_t count,
                     uint64_t *ret_count, struct dioh_error *err)
{
	uint64_t done = 0;

	while (done < count) {
		const struct dioh_msg_read_header what = {
			.offset = offset + done, .bytes = (uint32_t)dioh_min(count - done, DIOH_PAYLOAD_BYTES_MAX),
		};
		const struct dioh_request request = { .type = DIOH_MSG_READ_HEADER, .payload = &what, .size = sizeof(what) };
		uint32_t got = 0;
		int r = ask_bytes(session, &request, what.bytes, (uint8_t *)bytes + done, &got, err);

		if (r < 0)
			return r;
		done += got;
		if (got < what.bytes)
			break;
	}
	*ret_count = done;
	return 0;
}

int dioh_read_bitmap(struct dioh_session *session, uint32_t region, uint64_t offset, void *bytes, uint64_t count,
                     uint64_t *ret_count, struct dioh_error *err)
{
	uint64_t done = 0;

	while (done < count) {
		const struct dioh_msg_read_bitmap what = {
			.region = region, .offset = offset + done,
			.bytes = (uint32_t)dioh_min(count - done, DIOH_PAYLOAD_BYTES_MAX),
		};
		const struct dioh_request request = { .type = DIOH_MSG_READ_BITMAP, .payload = &what, .size = sizeof(what) };
		uint32_t got = 0;
		int r = ask_bytes(session, &request, what.bytes, (uint8_t *)bytes + done, &got, err);

		if (r < 0)
			return r;
		done += got;
		if (got < what.bytes)
			break;
	}
	*ret_count = done;
	return 0;
}

int dioh_keep_region(struct dioh_session *session, uint32_t region, uint64_t offset, uint64_t length,
                     struct dioh_error *err)
{
	const struct dioh_msg_keep_region what = { .region = region, .offset = offset, .length = length };
	struct dioh_request request = { .type = DIOH_MSG_KEEP_REGION, .payload = &what, .size = sizeof(what) };

	return dioh_exchange(session, &request, err);
}
