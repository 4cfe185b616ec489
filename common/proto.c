/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * proto.c - what a well-formed request is.
 *
 * Pure functions on bytes that a manager chose: nothing in them is trusted, not even that they are aligned. A table
 * says how long each request is and how many descriptors it brings; a function per request, which is a list of
 * tests (exam.h), looks at what its fields say. docs/protocol.md has the rules. Called by the helper's session for
 * what comes in, and by the library before it sends: what a caller got wrong shall not cost him the session.
 */
#include "exam.h"

#define IMAGE_FDS (DIOH_IMAGE_FD_BUFFERED | DIOH_IMAGE_FD_DIRECT | DIOH_IMAGE_FD_DIRECTORY)
#define IMAGE_LABEL (DIOH_IMAGE_ASK_LABEL_REQUIRED | DIOH_IMAGE_ASK_LABEL_IF_ENABLED)
#define IMAGE_ASKS (IMAGE_LABEL | DIOH_IMAGE_ASK_OWNER | DIOH_IMAGE_ASK_MODE)
#define MEMORY_FDS (DIOH_MEMORY_FD_MEMORY | DIOH_MEMORY_FD_SELECTION)
#define OPEN_FLAGS (DIOH_OPEN_ACCEPT_WRITTEN | DIOH_OPEN_INSPECT | DIOH_OPEN_ALL_IN_STREAM)
#define SAVE_FLAGS (DIOH_TRANSFER_SELECTION | DIOH_TRANSFER_NO_SCAN | DIOH_TRANSFER_NO_CHECKSUM)
#define LOAD_FLAGS (DIOH_TRANSFER_SELECTION | DIOH_TRANSFER_FRESH | DIOH_TRANSFER_NO_CHECKSUM)

/* ---- before the seal ------------------------------------------------------------------------- */

static void check_hello(struct exam *x)
{
	struct dioh_msg_hello hello;

	TAKE(x, hello);
	reserved(x, hello.reserved[0] | hello.reserved[1]);
	within(x, "version_min", hello.version_min, 0, hello.version_max);
}

static void check_label(struct exam *x, const struct dioh_msg_attach_image *image)
{
	if ((image->ask & IMAGE_LABEL) == IMAGE_LABEL)
		fail(x, EINVAL, "a label is either required or set if enabled, not both");
	zero_unless(x, "label", image->label[0] != '\0', image->ask & IMAGE_LABEL,
	            "ask has a LABEL flag");
	if ((image->ask & IMAGE_LABEL) != 0 && image->label[0] == '\0')
		fail(x, EINVAL, "label is empty");
	printable(x, "label", image->label, sizeof(image->label));
}

static void check_attach_image(struct exam *x)
{
	struct dioh_msg_attach_image image;

	TAKE(x, image);
	reserved(x, image.reserved);
	terminated(x, "label", image.label, sizeof(image.label));
	zero_behind(x, "label", image.label, sizeof(image.label));
	descriptors(x, image.fds);
	known(x, "fds", image.fds, IMAGE_FDS);
	if ((image.fds & (DIOH_IMAGE_FD_BUFFERED | DIOH_IMAGE_FD_DIRECT)) == 0)
		fail(x, EINVAL, "fds names neither a buffered nor a direct descriptor");
	within(x, "direction", image.direction, DIOH_DIRECTION_SAVE, DIOH_DIRECTION_LOAD);
	within(x, "direct", image.direct, DIOH_DIRECT_PREFER, DIOH_DIRECT_NEVER);
	within(x, "engine", image.engine, DIOH_ENGINE_ANY, DIOH_ENGINE_SYNC);
	if (image.block_bytes != 0)
		within(x, "block_bytes", image.block_bytes, DIOH_BLOCK_BYTES_MIN,
		       DIOH_BLOCK_BYTES_MAX);
	if ((image.block_bytes & (image.block_bytes - 1)) != 0)
		fail(x, EINVAL, "block_bytes %" PRIu32 " is not a power of two", image.block_bytes);
	within(x, "in_flight", image.in_flight, 0, DIOH_IN_FLIGHT_MAX);
	within(x, "workers", image.workers, 0, DIOH_WORKERS_MAX);
	known(x, "ask", image.ask, IMAGE_ASKS);
	within(x, "base_offset", image.base_offset, 0, DIOH_OFFSET_MAX - 1);
	aligned(x, "base_offset", image.base_offset, DIOH_PAGE_BYTES);
	zero_unless(x, "uid", image.uid, image.ask & DIOH_IMAGE_ASK_OWNER, "ask has OWNER");
	zero_unless(x, "gid", image.gid, image.ask & DIOH_IMAGE_ASK_OWNER, "ask has OWNER");
	zero_unless(x, "mode", image.mode, image.ask & DIOH_IMAGE_ASK_MODE, "ask has MODE");
	within(x, "mode", image.mode, 0, 07777);
	check_label(x, &image);
}

static void check_attach_memory(struct exam *x)
{
	struct dioh_msg_attach_memory memory;

	TAKE(x, memory);
	reserved(x, memory.reserved);
	descriptors(x, memory.fds);
	known(x, "fds", memory.fds, MEMORY_FDS);
	if ((memory.fds & DIOH_MEMORY_FD_MEMORY) == 0)
		fail(x, EINVAL, "fds does not name the memory");
	within(x, "memory", memory.memory, 0, DIOH_MEMORIES_MAX - 1);
	within(x, "advice", memory.advice, DIOH_MEMORY_ADVICE_NONE, DIOH_MEMORY_ADVICE_HUGEPAGE);
	within(x, "bytes", memory.bytes, 0, DIOH_OFFSET_MAX - 1);
}

static void check_attach_stream(struct exam *x)
{
	struct dioh_msg_attach_stream stream;

	TAKE(x, stream);
	reserved(x, stream.reserved);
	within(x, "stream", stream.stream, 0, DIOH_STREAMS_MAX - 1);
}

static void check_seal(struct exam *x)
{
	struct dioh_msg_seal seal;

	TAKE(x, seal);
	reserved(x, seal.reserved);
	known(x, "required", seal.required, LAYERS);
}

/* ---- the image ------------------------------------------------------------------------------- */

static void check_create_image(struct exam *x)
{
	struct dioh_msg_create_image create;

	TAKE(x, create);
	within(x, "layout", create.layout, DIOH_LAYOUT_RAW, DIOH_LAYOUT_MAPPED_RAM);
	check_counts(x, create.region_count, create.stream_count, create.header_bytes);
	known(x, "flags", create.flags, create.layout == DIOH_LAYOUT_RAW ? 0 : DIOH_CREATE_CONTINUE);
	zero_unless(x, "stream", create.stream, create.layout == DIOH_LAYOUT_MAPPED_RAM,
	            "layout is mapped-ram");
	within(x, "stream", create.stream, 0, DIOH_STREAMS_MAX - 1);
	zero_unless(x, "channels", create.channels, create.layout == DIOH_LAYOUT_MAPPED_RAM,
	            "layout is mapped-ram");
	within(x, "channels", create.channels, 0, DIOH_STREAMS_MAX - 1);
}

static void check_put_entry(struct exam *x, const struct dioh_msg_entry *entry)
{
	bool has_address = entry->kind == DIOH_ENTRY_REGION &&
	                   (entry->flags & DIOH_ENTRY_GUEST_ADDRESS);

	check_entry(x, entry);
	known(x, "flags", entry->flags,
	      entry->kind == DIOH_ENTRY_REGION ? DIOH_ENTRY_GUEST_ADDRESS : 0);
	zero_unless(x, "guest_address", entry->guest_address, has_address,
	            "flags has GUEST_ADDRESS");
	zero_unless(x, "present_bytes", entry->present_bytes, false, "GET_TABLE answers it");
	printable(x, "name", entry->name, sizeof(entry->name));
}

static void check_put_entry_form(struct exam *x, const struct dioh_msg_entry *entry)
{
	reserved(x, entry->reserved);
	terminated(x, "name", entry->name, sizeof(entry->name));
	zero_behind(x, "name", entry->name, sizeof(entry->name));
}

static void check_put_table(struct exam *x)
{
	struct dioh_msg_put_table table;

	TAKE(x, table);
	fits(x, sizeof(table), table.count, sizeof(struct dioh_msg_entry));
	if (x->result == 0)
		each_entry(x, table.count, check_put_entry_form);
	within(x, "count", table.count, 1, DIOH_ENTRIES_PER_MESSAGE_MAX);
	below_end(x, "first", table.first, table.count, ENTRIES_MAX);
	if (x->result == 0)
		each_entry(x, table.count, check_put_entry);
}

int dioh_proto_check_places(uint32_t layout, const struct dioh_msg_entry *entries, uint32_t count, struct dioh_error *err)
{
	for (uint32_t i = 0; i < count && layout != DIOH_LAYOUT_RAW; i++)
		if (entries[i].image_offset != 0)
			return dioh_error_set(err, EINVAL, DIOH_PLACE(PROTOCOL, SESSION, 0, DIOH_OFFSET_NONE),
			                      "PUT_TABLE: %s %" PRIu32 ": image_offset is not zero, which it is unless layout is raw",
			                      entries[i].kind == DIOH_ENTRY_REGION ? "region" : "stream", entries[i].number);
	return 0;
}

static void check_write_header(struct exam *x)
{
	struct dioh_msg_write_header header;

	TAKE(x, header);
	below_end(x, "offset", header.offset, x->size - sizeof(header), DIOH_HEADER_BYTES_MAX);
}

static void check_open_image(struct exam *x)
{
	struct dioh_msg_open_image open;
	bool raw, mapped_ram;

	TAKE(x, open);
	raw = open.layout == DIOH_LAYOUT_RAW;
	mapped_ram = open.layout == DIOH_LAYOUT_MAPPED_RAM;
	within(x, "layout", open.layout, DIOH_LAYOUT_DETECT, DIOH_LAYOUT_MAPPED_RAM);
	known(x, "flags", open.flags, OPEN_FLAGS);
	check_counts(x, open.region_count, open.stream_count, open.header_bytes);
	zero_unless(x, "region_count", open.region_count, raw || mapped_ram, "layout is raw or mapped-ram");
	if (open.flags & DIOH_OPEN_ALL_IN_STREAM) {
		within(x, "layout", open.layout, DIOH_LAYOUT_MAPPED_RAM, DIOH_LAYOUT_MAPPED_RAM);
		zero_unless(x, "region_count", open.region_count, false, "flags has ALL_IN_STREAM");
	}
	zero_unless(x, "stream_count", open.stream_count, raw, "layout is raw");
	zero_unless(x, "header_bytes", open.header_bytes, raw || mapped_ram, "layout is raw or mapped-ram");
}

static void check_get_table(struct exam *x)
{
	struct dioh_msg_get_table table;

	TAKE(x, table);
	within(x, "first", table.first, 0, ENTRIES_MAX);
	within(x, "count", table.count, 1, DIOH_ENTRIES_PER_MESSAGE_MAX);
}

static void check_read_header(struct exam *x)
{
	struct dioh_msg_read_header header;

	TAKE(x, header);
	reserved(x, header.reserved);
	within(x, "offset", header.offset, 0, DIOH_HEADER_BYTES_MAX);
	within(x, "bytes", header.bytes, 1, DIOH_PAYLOAD_BYTES_MAX);
}

static void check_read_bitmap(struct exam *x)
{
	struct dioh_msg_read_bitmap bitmap;

	TAKE(x, bitmap);
	within(x, "bytes", bitmap.bytes, 1, DIOH_PAYLOAD_BYTES_MAX);
	within(x, "offset", bitmap.offset, 0, DIOH_REGION_BYTES_MAX / DIOH_PAGE_BYTES / 8);
	aligned(x, "offset", bitmap.offset, DIOH_CHUNK_BYTES / DIOH_PAGE_BYTES / 8);
}

/* ---- transfers ------------------------------------------------------------------------------- */

static void check_memory_transfer(struct exam *x, uint32_t flags)
{
	struct dioh_msg_memory_transfer transfer;

	TAKE(x, transfer);
	reserved(x, transfer.reserved);
	within(x, "memory", transfer.memory, 0, DIOH_MEMORIES_MAX - 1);
	known(x, "flags", transfer.flags, flags);
	aligned(x, "memory_offset", transfer.memory_offset, DIOH_PAGE_BYTES);
	aligned(x, "region_offset", transfer.region_offset, DIOH_CHUNK_BYTES);
	within(x, "length", transfer.length, DIOH_PAGE_BYTES, DIOH_OFFSET_MAX);
	aligned(x, "length", transfer.length, DIOH_PAGE_BYTES);
	below_end(x, "memory_offset", transfer.memory_offset, transfer.length, DIOH_OFFSET_MAX);
	below_end(x, "region_offset", transfer.region_offset, transfer.length, DIOH_OFFSET_MAX);
}

static void check_save_memory(struct exam *x)
{
	check_memory_transfer(x, SAVE_FLAGS);
}

static void check_load_memory(struct exam *x)
{
	check_memory_transfer(x, LOAD_FLAGS);
}

static void check_stream_transfer(struct exam *x)
{
	struct dioh_msg_stream_transfer transfer;

	TAKE(x, transfer);
	reserved(x, transfer.reserved);
	within(x, "stream", transfer.stream, 0, DIOH_STREAMS_MAX - 1);
	known(x, "flags", transfer.flags, DIOH_TRANSFER_NO_CHECKSUM);
}

static void check_keep_region(struct exam *x)
{
	struct dioh_msg_keep_region keep;

	TAKE(x, keep);
	reserved(x, keep.reserved);
	aligned(x, "offset", keep.offset, DIOH_CHUNK_BYTES);
	within(x, "length", keep.length, DIOH_PAGE_BYTES, DIOH_OFFSET_MAX);
	aligned(x, "length", keep.length, DIOH_PAGE_BYTES);
	below_end(x, "offset", keep.offset, keep.length, DIOH_OFFSET_MAX);
}

static void check_cancel(struct exam *x)
{
	struct dioh_msg_cancel cancel;

	TAKE(x, cancel);
	reserved(x, cancel.reserved);
}

static void check_finish(struct exam *x)
{
	struct dioh_msg_finish finish;

	TAKE(x, finish);
	fits(x, sizeof(finish), finish.patch_bytes, 1);
	within(x, "mode", finish.mode, DIOH_FINISH_DURABLE, DIOH_FINISH_WRITTEN);
	within(x, "patch_bytes", finish.patch_bytes, 0, DIOH_HEADER_PATCH_BYTES_MAX);
	zero_unless(x, "patch_offset", finish.patch_offset, finish.patch_bytes > 0, "there is a patch");
	below_end(x, "patch_offset", finish.patch_offset, finish.patch_bytes,
	          DIOH_HEADER_BYTES_MAX);
}

/* ---- the table ------------------------------------------------------------------------------- */

static const struct shape requests[] = {
	ROW(HELLO) = { EXACTLY(hello), 0, 1, check_hello },
	ROW(ATTACH_IMAGE) = { EXACTLY(attach_image), 1, 3, check_attach_image },
	ROW(ATTACH_MEMORY) = { EXACTLY(attach_memory), 1, 2, check_attach_memory },
	ROW(ATTACH_STREAM) = { EXACTLY(attach_stream), 1, 1, check_attach_stream },
	ROW(SEAL) = { EXACTLY(seal), 0, 0, check_seal },
	ROW(CREATE_IMAGE) = { EXACTLY(create_image), 0, 0, check_create_image },
	ROW(PUT_TABLE) = { AT_LEAST(put_table), 0, 0, check_put_table },
	ROW(WRITE_HEADER) = { sizeof(struct dioh_msg_write_header) + 1, DIOH_PAYLOAD_BYTES_MAX, 0,
	                      0, check_write_header },
	ROW(OPEN_IMAGE) = { EXACTLY(open_image), 0, 0, check_open_image },
	ROW(GET_TABLE) = { EXACTLY(get_table), 0, 0, check_get_table },
	ROW(READ_HEADER) = { EXACTLY(read_header), 0, 0, check_read_header },
	ROW(SAVE_MEMORY) = { EXACTLY(memory_transfer), 0, 0, check_save_memory },
	ROW(LOAD_MEMORY) = { EXACTLY(memory_transfer), 0, 0, check_load_memory },
	ROW(SAVE_STREAM) = { EXACTLY(stream_transfer), 0, 0, check_stream_transfer },
	ROW(LOAD_STREAM) = { EXACTLY(stream_transfer), 0, 0, check_stream_transfer },
	ROW(STATUS) = { EMPTY, 0, 0, NULL },
	ROW(CANCEL) = { EXACTLY(cancel), 0, 0, check_cancel },
	ROW(FINISH) = { AT_LEAST(finish), 0, 0, check_finish },
	ROW(READ_BITMAP) = { EXACTLY(read_bitmap), 0, 0, check_read_bitmap },
	ROW(KEEP_REGION) = { EXACTLY(keep_region), 0, 0, check_keep_region },
};

int dioh_proto_check_request(const struct dioh_msg_header *header, const void *payload,
                             unsigned fd_count, struct dioh_error *err)
{
	struct exam x = begin_exam(header, payload, fd_count, "", err);
	const struct shape *shape = find_row(requests, header->type);

	if (header->flags != 0)
		fail(&x, EBADMSG, "flags 0x%" PRIx32 " is not zero", header->flags);
	if (header->id == 0)
		fail(&x, EBADMSG, "id is zero");
	if (header->size > DIOH_PAYLOAD_BYTES_MAX)
		fail(&x, EBADMSG, "its size %" PRIu32 " is more than %u", header->size,
		     DIOH_PAYLOAD_BYTES_MAX);
	if (!shape)
		fail(&x, EOPNOTSUPP, "no request has the type %" PRIu32, header->type);
	return x.result < 0 ? x.result : check_shape(&x, shape);
}
