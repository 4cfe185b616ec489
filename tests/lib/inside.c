/* SPDX-License-Identifier: LGPL-2.1-or-later */
#define _GNU_SOURCE
#include "inside.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "channel.h"
#include "fixture.h"
#include "guard.h"
#include "libvirt_header.h"
#include "pages.h"
#include "proto.h"
#include "qemu_maker.h"
#include "raw_manager.h"
#include "session.h"

#define END_S 30          /* a session that has lost its manager is gone by then, however busy the machine is */
#define ANSWER_MS 20000   /* of sessions that make images */
#define FILE_BYTES_MAX (UINT64_C(64) << 20)

void inside_die(const char *file, int line, const char *what)
{
	fprintf(stderr, "%s:%d: not so: %s\n", file, line, what);
	abort();
}

/* ---- what a process of its own would lose ---- */

int __wrap_dioh_seal_privileges(const struct dioh_identity *identity, uint32_t *ret_layers, struct dioh_error *err);
bool __wrap_dioh_sandbox_seccomp(uint32_t profile, int control_fd);
unsigned __wrap_alarm(unsigned seconds);

int __wrap_dioh_seal_privileges(const struct dioh_identity *identity, uint32_t *ret_layers, struct dioh_error *err)
{
	(void)identity;
	(void)err;
	*ret_layers = INSIDE_LAYERS;
	return 0;
}

bool __wrap_dioh_sandbox_seccomp(uint32_t profile, int control_fd)
{
	(void)profile;
	(void)control_fd;
	return false;
}

/* libFuzzer has a timer of its own, and there is one for all of a process. */
unsigned __wrap_alarm(unsigned seconds)
{
	(void)seconds;
	return 0;
}

void inside_init(void)
{
	const struct rlimit limit = { FILE_BYTES_MAX, FILE_BYTES_MAX };

	signal(SIGPIPE, SIG_IGN);
	signal(SIGXFSZ, SIG_IGN);
	INSIDE_MUST(setrlimit(RLIMIT_FSIZE, &limit) == 0);
	dioh_guard_install();
}

/* ---- a session ---- */

struct start {
	struct dioh_options options;
};

static void *run_session(void *argument)
{
	struct start *start = argument;

	dioh_session_run(&start->options);
	free(start);
	return NULL;
}

void inside_start(struct inside *s)
{
	struct start *start = calloc(1, sizeof(*start));
	int pair[2];

	memset(s, 0, sizeof(*s));
	INSIDE_MUST(start && socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) == 0);
	s->fd = pair[0];
	start->options.fd = pair[1];
	start->options.attach_timeout_s = start->options.stuck_timeout_s = 30;
	INSIDE_MUST(pthread_create(&s->thread, NULL, run_session, start) == 0);
}

void inside_send(struct inside *s, const void *bytes, size_t count, const int *fds, unsigned fd_count)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(8 * sizeof(int))];
	} control = { 0 };
	struct iovec iov = { (void *)(uintptr_t)bytes, count };
	struct msghdr packet = { .msg_iov = &iov, .msg_iovlen = 1 };

	INSIDE_MUST(fd_count <= 8);
	if (fd_count > 0) {
		packet.msg_control = control.bytes;
		packet.msg_controllen = CMSG_SPACE(fd_count * sizeof(int));
		*CMSG_FIRSTHDR(&packet) = (struct cmsghdr){ .cmsg_len = CMSG_LEN(fd_count * sizeof(int)),
			                                    .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS };
		memcpy(CMSG_DATA(CMSG_FIRSTHDR(&packet)), fds, fd_count * sizeof(int));
	}
	/* Full, when replies are not waited for: then this one is not sent. */
	if (sendmsg(s->fd, &packet, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
		s->ended = errno == EPIPE || errno == ECONNRESET || s->ended;
}

void inside_request(struct inside *s, uint32_t type, const void *payload, size_t size, const int *fds, unsigned fd_count)
{
	static _Alignas(8) uint8_t bytes[sizeof(struct dioh_msg_header) + DIOH_PAYLOAD_BYTES_MAX];
	const struct dioh_msg_header header = { .type = type, .id = ++s->last_id, .size = (uint32_t)size };

	memcpy(bytes, &header, sizeof(header));
	if (size > 0)
		memcpy(bytes + sizeof(header), payload, size);
	s->pending_type = type;
	inside_send(s, bytes, sizeof(header) + size, fds, fd_count);
}

/* With flag ERROR it refuses a message of the type before, which nobody knows. */
static bool is_event(const struct dioh_msg_header *header)
{
	const uint32_t type = header->type;

	if (header->flags & DIOH_MSG_ERROR)
		return false;
	return type == DIOH_MSG_PROGRESS || type == DIOH_MSG_COMPLETE || type == DIOH_MSG_STUCK || type == DIOH_MSG_BROKEN;
}

static bool has_complete(uint32_t request)
{
	return (request >= DIOH_MSG_SAVE_MEMORY && request <= DIOH_MSG_LOAD_STREAM) || request == DIOH_MSG_FINISH;
}

/* None without a request, none twice. */
static void take_complete(struct inside *s, uint32_t id)
{
	unsigned i = 0;

	while (i < s->running_count && s->running[i] != id)
		i++;
	INSIDE_MUST(i < s->running_count);
	s->running[i] = s->running[--s->running_count];
}

static void take_event(struct inside *s, const struct dioh_message *message)
{
	const struct dioh_msg_complete *complete = (const struct dioh_msg_complete *)message->payload;
	struct dioh_error err;

	INSIDE_MUST(dioh_proto_check_event(&message->header, message->payload, message->fd_count, &err) == 0);
	if (message->header.type != DIOH_MSG_COMPLETE)
		return;
	take_complete(s, message->header.id);
	if (s->finish_id && message->header.id == s->finish_id)
		s->finished = complete->error.code == 0;
}

/* true: it was the reply to the last request. */
static bool take_reply(struct inside *s, const struct dioh_message *message)
{
	const struct dioh_msg_header *header = &message->header;
	const bool refused = header->flags & DIOH_MSG_ERROR;
	const bool mine = s->pending_type && header->type == (s->pending_type | 1) && header->id == s->last_id;
	struct dioh_error err;

	/* What was no message, or is unknown, is answered as it came; the form of other answers is fixed. */
	if ((mine || !refused) && header->type <= (DIOH_MSG_FINISH | 1) &&
	    dioh_proto_check_reply(header, message->payload, message->fd_count, header->type & ~1u, header->id, &err) < 0)
		inside_die(__FILE__, __LINE__, err.text);
	if (!refused && has_complete(header->type & ~1u)) {
		INSIDE_MUST(s->running_count < INSIDE_RUNNING_MAX);
		s->running[s->running_count++] = header->id;
		if ((header->type & ~1u) == DIOH_MSG_FINISH)
			s->finish_id = header->id;
	}
	if (mine)
		s->last_code = refused ? ((const struct dioh_msg_error *)message->payload)->code : 0;
	return mine;
}

/* Reads until `wanted` says so. */
static bool read_until(struct inside *s, int timeout_ms, bool (*wanted)(struct inside *s, bool replied))
{
	static struct dioh_message message;
	const int64_t end = (int64_t)now_ms() + timeout_ms;
	bool replied = false;

	while (!wanted(s, replied)) {
		struct pollfd wait = { .fd = s->fd, .events = POLLIN };
		const int left = (int)(end - (int64_t)now_ms());
		struct dioh_error err;
		int r;

		if (s->ended && timeout_ms == 0)
			return false;
		if (poll(&wait, 1, left > 0 ? left : 0) <= 0)
			return false;
		r = dioh_channel_receive(s->fd, &message, MSG_DONTWAIT, &err);
		if (r == -EPIPE) {
			s->ended = true;
			return false;
		}
		INSIDE_MUST(r == 0 && message.fd_count == 0);
		if (is_event(&message.header))
			take_event(s, &message);
		else
			replied = take_reply(s, &message) || replied;
	}
	return true;
}

static bool wants_reply(struct inside *s, bool replied)
{
	(void)s;
	return replied;
}

static bool wants_completes(struct inside *s, bool replied)
{
	(void)replied;
	return s->running_count == 0;
}

bool inside_reply(struct inside *s, int timeout_ms)
{
	return read_until(s, timeout_ms, wants_reply);
}

bool inside_complete(struct inside *s, int timeout_ms)
{
	return read_until(s, timeout_ms, wants_completes);
}

void inside_end(struct inside *s)
{
	struct timespec limit;

	close(s->fd);
	s->fd = -1;
	clock_gettime(CLOCK_REALTIME, &limit);
	limit.tv_sec += END_S;
	INSIDE_MUST(pthread_timedjoin_np(s->thread, NULL, &limit) == 0);
}

/* ---- images ---- */

/* A request that must be granted, and what it begins must succeed. */
static void ask(struct inside *s, uint32_t type, const void *payload, size_t size, const int *fd)
{
	inside_request(s, type, payload, size, fd, fd ? 1 : 0);
	INSIDE_MUST(inside_reply(s, ANSWER_MS) && s->last_code == 0);
	INSIDE_MUST(!has_complete(type) || type == DIOH_MSG_SAVE_STREAM || inside_complete(s, ANSWER_MS));
}

static void ask_sample(struct inside *s, uint32_t type, const int *fd)
{
	static _Alignas(8) uint8_t payload[DIOH_PAYLOAD_BYTES_MAX];

	ask(s, type, payload, raw_sample(type, DIOH_DIRECTION_SAVE, payload), fd);
}

static int make_memory(void)
{
	int fd = memfd_create("ram", MFD_CLOEXEC);

	INSIDE_MUST(fd >= 0 && ftruncate(fd, (off_t)INSIDE_RAM_BYTES) == 0);
	must_fill(fd, 2 * DIOH_PAGE_BYTES, 5 * DIOH_PAGE_BYTES, 1);
	must_fill(fd, DIOH_CHUNK_BYTES, 2 * DIOH_PAGE_BYTES, 2);
	return fd;
}

static const struct dioh_qemu_block blocks[] = {
	{ .name = "ram", .bytes = INSIDE_RAM_BYTES },
	{ .name = "bios", .bytes = 16 * DIOH_PAGE_BYTES, .guest_address = 0xfffc0000 },
};

/* The stream of a guest; a few pages of the second block, or all memory if it is a foreign image's. */
static void make_stream(struct qemu_maker *q, bool pages)
{
	qemu_start(q, blocks, 2, pages ? DIOH_QEMU_IGNORE_SHARED : 0);
	qemu_put_setup(q);
	qemu_put_section(q, QEMU_PART);
	for (unsigned i = 0; i < 16 && pages; i++)
		qemu_put_page(q, 1, i, i % 4);
	qemu_put_section_end(q);
	qemu_put_section(q, QEMU_END);
	qemu_put_section_end(q);
	qemu_put_device(q, 3, 300, 2);
	qemu_put_end(q);
}

static void feed(int ends[2], uint32_t layout)
{
	struct qemu_maker q;

	INSIDE_MUST(pipe2(ends, O_CLOEXEC) == 0);
	if (layout != DIOH_LAYOUT_MAPPED_RAM) {
		INSIDE_MUST(write(ends[1], "a stream", 8) == 8);
	} else {
		make_stream(&q, true);
		INSIDE_MUST(fcntl(ends[1], F_SETPIPE_SZ, 1 << 20) > 0);
		INSIDE_MUST(write(ends[1], q.bytes, q.count) == (ssize_t)q.count);
		qemu_free(&q);
	}
	close(ends[1]);
}

static void create(struct inside *s, uint32_t layout)
{
	const struct dioh_msg_create_image message = { .layout = layout, .region_count = 1, .stream_count = 1,
		                                       .header_bytes = layout == DIOH_LAYOUT_CONTAINER ? 8 : 0,
		                                       .stream = RAW_STREAM };
	struct {
		struct dioh_msg_put_table table;
		struct dioh_msg_entry entries[2];
	} put = { { .count = 2 },
		  { { .kind = DIOH_ENTRY_REGION, .number = RAW_REGION, .bytes = INSIDE_RAM_BYTES, .name = "ram" },
		    { .kind = DIOH_ENTRY_STREAM, .number = RAW_ENTRY, .name = "state" } } };

	ask(s, DIOH_MSG_CREATE_IMAGE, &message, sizeof(message), NULL);
	ask(s, DIOH_MSG_PUT_TABLE, &put, sizeof(put), NULL);
	if (message.header_bytes)
		ask_sample(s, DIOH_MSG_WRITE_HEADER, NULL);
}

static void remember(struct inside_image *image)
{
	off_t bytes = lseek(image->fd, 0, SEEK_END);

	INSIDE_MUST(bytes > 0);
	image->bytes = (size_t)bytes;
	image->map = mmap(NULL, image->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, image->fd, 0);
	image->right = malloc(image->bytes);
	INSIDE_MUST(image->map != MAP_FAILED && image->right);
	memcpy(image->right, image->map, image->bytes);
	while (image->record_at + DIOH_RECORD_HEAD_BYTES <= image->bytes &&
	       memcmp(image->map + image->record_at, DIOH_RECORD_MAGIC, 16) != 0)
		image->record_at += DIOH_PAGE_BYTES;
}

void inside_make_image(struct inside_image *image, uint32_t layout)
{
	const struct dioh_msg_memory_transfer save = { .memory = RAW_MEMORY, .region = RAW_REGION,
		                                       .length = INSIDE_RAM_BYTES };
	int memory = make_memory();
	struct inside s;
	int ends[2];

	memset(image, 0, sizeof(*image));
	image->fd = memfd_create("image", MFD_CLOEXEC);
	INSIDE_MUST(image->fd >= 0);
	feed(ends, layout);
	inside_start(&s);
	ask_sample(&s, DIOH_MSG_HELLO, NULL);
	ask_sample(&s, DIOH_MSG_ATTACH_IMAGE, &image->fd);
	ask_sample(&s, DIOH_MSG_ATTACH_MEMORY, &memory);
	ask_sample(&s, DIOH_MSG_ATTACH_STREAM, &ends[0]);
	close(ends[0]);
	ask_sample(&s, DIOH_MSG_SEAL, NULL);
	create(&s, layout);
	ask_sample(&s, DIOH_MSG_SAVE_STREAM, NULL);
	ask(&s, DIOH_MSG_SAVE_MEMORY, &save, sizeof(save), NULL);
	ask_sample(&s, DIOH_MSG_FINISH, NULL);
	INSIDE_MUST(s.finished);
	inside_end(&s);
	close(memory);
	remember(image);
	INSIDE_MUST(image->record_at < image->bytes);
}

#define LIBVIRT_BYTES 4096u

static void put_libvirt_header(int fd)
{
	static const char xml[] = "<domain type='kvm'><name>vm</name><uuid>c7a5fdbd-edaf-9455-926a-d65c16db1809</uuid>"
	                          "<memory unit='KiB'>5132</memory></domain>";
	const uint32_t fields[] = { 2, LIBVIRT_BYTES - DIOH_LIBVIRT_HEADER_BYTES, 1, DIOH_LIBVIRT_SPARSE, 0 };
	uint8_t header[LIBVIRT_BYTES] = "LibvirtQemudSave";

	memcpy(header + 16, fields, sizeof(fields));
	memcpy(header + DIOH_LIBVIRT_HEADER_BYTES, xml, sizeof(xml));
	INSIDE_MUST(pwrite(fd, header, sizeof(header), 0) == sizeof(header));
}

void inside_make_foreign_image(struct inside_image *image, bool libvirt)
{
	struct qemu_maker q;

	memset(image, 0, sizeof(*image));
	image->fd = memfd_create("image", MFD_CLOEXEC);
	INSIDE_MUST(image->fd >= 0);
	make_stream(&q, false);
	for (unsigned i = 0; i < 6 * DIOH_PAGE_BYTES; i++)
		q.memory[0][i + DIOH_PAGE_BYTES] = (uint8_t)(i % 251);
	qemu_write_image(&q, image->fd, libvirt ? LIBVIRT_BYTES : 0);
	if (libvirt)
		put_libvirt_header(image->fd);
	qemu_free(&q);
	remember(image);
	image->record_at = 0; /* it has none */
}

/* ---- changes ---- */

struct parts {
	struct dioh_record_head *head;
	struct dioh_record_region *regions;
	struct dioh_record_extent *extents;
};

/* As the image was made: what a change does to the record does not lead the next one astray. */
static struct parts find_parts(const struct inside_image *image, uint8_t *bytes)
{
	const struct dioh_record_head *right = (const void *)(image->right + image->record_at);
	struct parts parts = { .head = (void *)(bytes + image->record_at) };

	parts.regions = (void *)(bytes + right->regions.offset);
	parts.extents = (void *)(bytes + right->extents.offset);
	return parts;
}

/* Where the named part of the image stands. */
static size_t part_at(const struct inside_image *image, unsigned part)
{
	const struct parts parts = find_parts(image, image->right);

	switch (part) {
	case 1: return parts.head->regions.offset;
	case 2: return parts.head->streams.offset;
	case 3: return parts.head->extents.offset;
	case 4: return parts.regions[0].bitmap.offset;
	case 5: return parts.regions[0].checksums.offset;
	case 6: return parts.extents[0].checksums.offset;
	case 7: return parts.regions[parts.head->region_count - 1].bitmap.offset;
	default: return image->record_at;
	}
}

static void change(struct inside_image *image, size_t at, const uint8_t *bytes, size_t count)
{
	if (at > image->bytes || count > image->bytes - at ||
	    image->changes == sizeof(image->changed) / sizeof(image->changed[0]))
		return;
	memcpy(image->map + at, bytes, count);
	image->changed[image->changes].at = at;
	image->changed[image->changes++].count = count;
}

static bool inside_bounds(const struct inside_image *image, const struct dioh_record_area *area)
{
	return area->offset <= image->bytes && area->bytes <= image->bytes - area->offset;
}

static void reseal_area(const struct inside_image *image, struct dioh_record_area *area)
{
	if (inside_bounds(image, area))
		area->crc32c = dioh_crc32c(0, image->map + area->offset, area->bytes);
}

static void reseal_record(struct inside_image *image)
{
	const struct parts right = find_parts(image, image->right);
	struct parts parts = find_parts(image, image->map);

	for (unsigned i = 0; i < right.head->region_count; i++) {
		struct dioh_record_region *region = &parts.regions[i];

		reseal_area(image, &region->bitmap);
		if (inside_bounds(image, &region->bitmap))
			region->present_pages = dioh_bits_count(image->map + region->bitmap.offset, region->bitmap.bytes * 8);
		reseal_area(image, &region->checksums);
	}
	for (unsigned i = 0; i < right.head->extent_count; i++)
		reseal_area(image, &parts.extents[i].checksums);
	reseal_area(image, &parts.head->header);
	reseal_area(image, &parts.head->regions);
	reseal_area(image, &parts.head->streams);
	reseal_area(image, &parts.head->extents);
	parts.head->crc32c = dioh_crc32c(0, parts.head, offsetof(struct dioh_record_head, crc32c));
}

static bool has_record(const struct inside_image *image)
{
	return memcmp(image->right + image->record_at, DIOH_RECORD_MAGIC, 16) == 0;
}

size_t inside_change_image(struct inside_image *image, const uint8_t *data, size_t size, unsigned max, bool reseal)
{
	size_t used = 0, cut = image->bytes;

	for (unsigned i = 0; i < max && used + 5 <= size; i++) {
		const uint8_t *at = data + used;
		const unsigned part = at[0] & 15;
		const uint32_t place = at[1] | at[2] << 8 | (uint32_t)at[3] << 16;
		size_t count = (at[4] & 15) + 1u;

		count = count < size - used - 5 ? count : size - used - 5;
		used += 5 + count;
		if (part == 15)
			cut = place;
		else if (part < 8 && has_record(image))
			change(image, part_at(image, part) + place % DIOH_RECORD_HEAD_BYTES, at + 5, count);
		else
			change(image, place, at + 5, count);
	}
	if (reseal && has_record(image))
		reseal_record(image);
	if (cut < image->bytes) {
		INSIDE_MUST(ftruncate(image->fd, (off_t)cut) == 0);
		image->cut = true;
	}
	return used;
}

void inside_restore_image(struct inside_image *image)
{
	if (image->cut) {
		INSIDE_MUST(ftruncate(image->fd, (off_t)image->bytes) == 0);
		memcpy(image->map, image->right, image->bytes);
	}
	for (unsigned i = 0; i < image->changes && !image->cut; i++)
		memcpy(image->map + image->changed[i].at, image->right + image->changed[i].at, image->changed[i].count);
	if (has_record(image) && !image->cut) { /* what was resealed */
		const struct dioh_record_head *head = find_parts(image, image->right).head;
		const struct dioh_record_area *tables[] = { &head->regions, &head->extents };

		memcpy(image->map + image->record_at, head, sizeof(*head));
		for (unsigned i = 0; i < 2; i++)
			memcpy(image->map + tables[i]->offset, image->right + tables[i]->offset, tables[i]->bytes);
	}
	image->changes = 0;
	image->cut = false;
}

void inside_restore_whole_image(struct inside_image *image)
{
	image->cut = true;
	inside_restore_image(image);
}
