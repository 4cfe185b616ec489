/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * fuzz_proto.c - one packet of any bytes, as both ends check it: first through the channel, with as many descriptors as
 * the first byte says, then as a request, as a reply and as an event.
 *
 * The header's size field is put right if the first byte's highest bit is set: else little gets past the channel.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "channel.h"
#include "fuzz.h"
#include "proto.h"

#define PACKET_BYTES_MAX (sizeof(struct dioh_msg_header) + DIOH_PAYLOAD_BYTES_MAX + 64)
#define FDS_SENT_MAX 7u

static void check_error(int r, const struct dioh_error *err)
{
	CHECK(err->code == -r && err->text[0] != '\0' && memchr(err->text, 0, sizeof(err->text)));
}

static void check_names(const struct dioh_msg_header *header, const uint8_t *payload)
{
	const struct dioh_msg_put_table *table = (const void *)payload;
	const struct dioh_msg_entry *entries = (const void *)(table + 1);

	if (header->type != DIOH_MSG_PUT_TABLE)
		return;
	CHECK(table->count > 0 && sizeof(*table) + table->count * sizeof(*entries) == header->size);
	for (uint32_t i = 0; i < table->count; i++) {
		CHECK(entries[i].name[0] && memchr(entries[i].name, 0, sizeof(entries[i].name)));
		CHECK(entries[i].kind != DIOH_ENTRY_REGION ||
		      (entries[i].bytes > 0 && entries[i].bytes % DIOH_PAGE_BYTES == 0 &&
		       entries[i].bytes <= DIOH_REGION_BYTES_MAX));
		CHECK(entries[i].image_offset <= DIOH_OFFSET_MAX);
	}
}

/* In memory that ends where the payload ends. */
static void check_all(const struct dioh_msg_header *header, const uint8_t *bytes, unsigned fd_count)
{
	uint8_t *payload = malloc(header->size ? header->size : 1);
	struct dioh_error err = { 0 };
	int r;

	CHECK(payload != NULL);
	memcpy(payload, bytes, header->size);
	r = dioh_proto_check_request(header, payload, fd_count, &err);
	CHECK(r == 0 || r == -EBADMSG || r == -EINVAL || r == -EOPNOTSUPP);
	if (r < 0)
		check_error(r, &err);
	else
		check_names(header, payload);
	CHECK(r < 0 || (header->type % 2 == 0 && header->id && !header->flags && fd_count <= DIOH_FDS_MAX));
	r = dioh_proto_check_reply(header, payload, fd_count, header->type & ~1u, header->id, &err);
	if (r < 0)
		check_error(r, &err);
	CHECK(r < 0 || (header->type % 2 && fd_count == 0));
	r = dioh_proto_check_event(header, payload, fd_count, &err);
	if (r < 0)
		check_error(r, &err);
	CHECK(r < 0 || (header->type % 2 && header->type > 128 && fd_count == 0));
	CHECK(dioh_msg_name(header->type));
	free(payload);
}

static void send_packet(int fd, const uint8_t *bytes, size_t count, unsigned fd_count)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(FDS_SENT_MAX * sizeof(int))];
	} control = { 0 };
	struct iovec iov = { (void *)(uintptr_t)bytes, count };
	struct msghdr packet = { .msg_iov = &iov, .msg_iovlen = 1 };
	int fds[FDS_SENT_MAX];

	for (unsigned i = 0; i < fd_count; i++)
		fds[i] = fd;
	if (fd_count > 0) {
		packet.msg_control = control.bytes;
		packet.msg_controllen = CMSG_SPACE(fd_count * sizeof(int));
		*CMSG_FIRSTHDR(&packet) = (struct cmsghdr){ .cmsg_len = CMSG_LEN(fd_count * sizeof(int)),
			                                    .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS };
		memcpy(CMSG_DATA(CMSG_FIRSTHDR(&packet)), fds, fd_count * sizeof(int));
	}
	CHECK(sendmsg(fd, &packet, MSG_DONTWAIT) == (ssize_t)count);
}

static int next_descriptor(void)
{
	int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);

	CHECK(fd >= 0);
	close(fd);
	return fd;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static uint8_t packet[PACKET_BYTES_MAX];
	static struct dioh_message message;
	struct dioh_error err = { 0 };
	int pair[2], before, r;
	unsigned fd_count;

	if (size < 2 || size - 1 > PACKET_BYTES_MAX)
		return 0;
	fd_count = data[0] & FDS_SENT_MAX;
	memcpy(packet, data + 1, size - 1);
	if (data[0] & 0x80 && size - 1 >= sizeof(struct dioh_msg_header))
		((struct dioh_msg_header *)packet)->size = (uint32_t)(size - 1 - sizeof(struct dioh_msg_header));
	CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) == 0);
	before = next_descriptor();
	send_packet(pair[0], packet, size - 1, fd_count);
	r = dioh_channel_receive(pair[1], &message, MSG_DONTWAIT, &err);
	CHECK(r == 0 || r == -EBADMSG);
	if (r < 0)
		check_error(r, &err);
	CHECK(r == 0 ? message.fd_count == fd_count : message.fd_count == 0);
	if (r == 0)
		check_all(&message.header, message.payload, message.fd_count);
	dioh_message_close_fds(&message);
	CHECK(next_descriptor() == before); /* none is left */
	close(pair[0]);
	close(pair[1]);
	return 0;
}
