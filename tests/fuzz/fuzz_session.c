/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* LDFLAGS: -Wl,--wrap=dioh_seal_privileges,--wrap=dioh_sandbox_seccomp,--wrap=alarm */
/*
 * fuzz_session.c - a whole session, from the manager's side: the helper's own code and threads (inside.h), told what an
 * input says.
 *
 * The first byte says how far a well-behaved manager has come before the input takes over; the next ones may damage the
 * image that a load finds. Then come steps: well-formed requests with some of their bytes changed and descriptors of any
 * kind, packets of any bytes, and what a hostile manager does besides: shrinks the memory, closes streams, half-closes the
 * socket. Replies are waited for or not.
 *
 * Held against the helper: each reply and event is well-formed, no transfer completes twice or without having been asked
 * for; what is said to be complete opens; the session ends when its manager hangs up; no descriptor is left.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "fixture.h"
#include "fuzz_image.h"
#include "raw_manager.h"

#define STEPS_MAX 24
#define REPLY_MS 100 /* where none comes: CREATE_IMAGE waits for a stream's setup */

/* ---- the input ---- */

struct input {
	const uint8_t *data;
	size_t left;
};

static uint8_t next(struct input *input)
{
	if (input->left == 0)
		return 0;
	input->left--;
	return *input->data++;
}

/* ---- what a manager has in hand ---- */

enum kind {
	KIND_IMAGE, KIND_IMAGE_DIRECT, KIND_IMAGE_READ_ONLY, KIND_MEMORY, KIND_SELECTION, KIND_STREAM, KIND_STREAM_OTHER_END,
	KIND_SOCKET, KIND_DIRECTORY, KIND_NULL, KIND_EVENT, KIND_CONTROL, KIND_PIDFD, KIND_APPEND, KIND_PATH, KIND_OTHER_FILE,
	KINDS,
};

struct hand {
	struct inside s;
	uint32_t direction;
	struct inside_image *loads; /* NULL: a save */
	int fds[KINDS];
	int pair[2];
};

static struct inside_image images[3]; /* container, mapped-ram, QEMU's own */
static uint8_t payload[DIOH_PAYLOAD_BYTES_MAX] __attribute__((aligned(8)));

static int reopen(int fd, int flags)
{
	char path[32];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	return open(path, flags | O_CLOEXEC);
}

static int new_file(const char *name, uint64_t bytes)
{
	int fd = memfd_create(name, MFD_CLOEXEC);

	CHECK(fd >= 0 && ftruncate(fd, (off_t)bytes) == 0);
	CHECK(bytes == 0 || pwrite(fd, "bytes", 5, (off_t)bytes / 2) == 5);
	return fd;
}

static void close_kind(struct hand *hand, enum kind kind)
{
	if (hand->fds[kind] >= 0 && kind != KIND_IMAGE && kind != KIND_SOCKET)
		close(hand->fds[kind]);
	if (kind != KIND_IMAGE && kind != KIND_SOCKET)
		hand->fds[kind] = -1;
}

static void make_stream(struct hand *hand)
{
	int ends[2];
	const bool saves = hand->direction == DIOH_DIRECTION_SAVE;

	close_kind(hand, KIND_STREAM);
	close_kind(hand, KIND_STREAM_OTHER_END);
	CHECK(pipe2(ends, O_CLOEXEC | O_NONBLOCK) == 0);
	hand->fds[KIND_STREAM] = ends[saves ? 0 : 1];
	hand->fds[KIND_STREAM_OTHER_END] = ends[saves ? 1 : 0];
}

static int make(struct hand *hand, enum kind kind)
{
	const int image = hand->fds[KIND_IMAGE];

	switch (kind) {
	case KIND_IMAGE_DIRECT: return reopen(image, O_RDWR | O_DIRECT);
	case KIND_IMAGE_READ_ONLY: return reopen(image, O_RDONLY);
	case KIND_APPEND: return reopen(image, O_RDWR | O_APPEND);
	case KIND_PATH: return reopen(image, O_PATH);
	case KIND_MEMORY: return new_file("memory", RAW_REGION_BYTES);
	case KIND_SELECTION: return new_file("selection", RAW_REGION_BYTES / DIOH_PAGE_BYTES / 8);
	case KIND_OTHER_FILE: return new_file("file", 5);
	case KIND_SOCKET: return hand->pair[0];
	case KIND_DIRECTORY: return open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	case KIND_NULL: return open("/dev/null", O_RDWR | O_CLOEXEC);
	case KIND_EVENT: return eventfd(0, EFD_CLOEXEC);
	case KIND_CONTROL: return dup(hand->s.fd);
	case KIND_PIDFD: return (int)syscall(SYS_pidfd_open, getpid(), 0);
	default: return -1;
	}
}

/* Made when it is first wanted. Where one cannot be had here another file does. */
static int descriptor(struct hand *hand, enum kind kind)
{
	if (hand->fds[kind] < 0 && (kind == KIND_STREAM || kind == KIND_STREAM_OTHER_END))
		make_stream(hand);
	if (hand->fds[kind] < 0)
		hand->fds[kind] = make(hand, kind);
	if (hand->fds[kind] < 0)
		hand->fds[kind] = new_file("instead", 0);
	return hand->fds[kind];
}

/* ---- a well-behaved manager ---- */

static void say(struct hand *hand, uint32_t type, int kind)
{
	const size_t size = raw_sample(type, hand->direction, payload);
	const int fd = kind < KINDS ? descriptor(hand, (enum kind)kind) : -1;

	inside_request(&hand->s, type, payload, size, &fd, fd >= 0 ? 1 : 0);
	inside_reply(&hand->s, REPLY_MS);
}

static void begin(struct hand *hand, unsigned stages)
{
	const bool saves = hand->direction == DIOH_DIRECTION_SAVE;

	if (stages >= 1)
		say(hand, DIOH_MSG_HELLO, KINDS);
	if (stages >= 2)
		say(hand, DIOH_MSG_ATTACH_IMAGE, KIND_IMAGE);
	if (stages >= 3)
		say(hand, DIOH_MSG_ATTACH_MEMORY, KIND_MEMORY);
	if (stages >= 3)
		say(hand, DIOH_MSG_ATTACH_STREAM, KIND_STREAM);
	if (stages >= 4)
		say(hand, DIOH_MSG_SEAL, KINDS);
	if (stages >= 5)
		say(hand, saves ? DIOH_MSG_CREATE_IMAGE : DIOH_MSG_OPEN_IMAGE, KINDS);
	if (stages >= 6 && saves) {
		say(hand, DIOH_MSG_PUT_TABLE, KINDS);
		say(hand, DIOH_MSG_WRITE_HEADER, KINDS);
	}
	if (stages >= 7)
		say(hand, saves ? DIOH_MSG_SAVE_MEMORY : DIOH_MSG_LOAD_MEMORY, KINDS);
}

/* ---- steps ---- */

/* Some bytes of a message are others: small numbers, all ones, or any. */
static void alter(struct input *input, uint8_t *bytes, size_t size, unsigned times)
{
	for (unsigned i = 0; i < times && size > 0; i++) {
		const unsigned place = next(input) | next(input) << 8;
		const unsigned how = next(input);

		for (unsigned k = 0; k <= (how & 7); k++)
			bytes[(place + k) % size] = how & 0x80 ? next(input) : (uint8_t)((how >> 3 & 15) * 17);
	}
}

/* A helper whose seal fails exits, and takes with it what it had begun; we cannot. */
static void keep_seal(uint32_t type, uint8_t *bytes, size_t size)
{
	struct dioh_msg_seal *seal = (void *)bytes;

	if (type == DIOH_MSG_SEAL && size >= sizeof(*seal))
		seal->required &= INSIDE_LAYERS;
}

static void request(struct hand *hand, struct input *input)
{
	const uint32_t type = DIOH_MSG_HELLO + 2u * (next(input) % 20u); /* to KEEP_REGION */
	const uint8_t how = next(input); /* 0-1: descriptors, 2-4: changes, 5: another size, 6-7: wait */
	size_t size = raw_sample(type, hand->direction, payload);
	const unsigned fd_count = how & 3;
	int fds[3];

	for (unsigned i = 0; i < fd_count; i++)
		fds[i] = descriptor(hand, (enum kind)(next(input) % KINDS));
	alter(input, payload, size, how >> 2 & 7);
	if (how & 0x20) {
		const size_t before = size;

		size = (size_t)(next(input) | next(input) << 8);
		if (size > before)
			memset(payload + before, 0, size - before);
	}
	keep_seal(type, payload, size);
	inside_request(&hand->s, type, payload, size, fds, fd_count);
	if (how & 0x40)
		inside_reply(&hand->s, REPLY_MS);
	if (how & 0x80)
		inside_complete(&hand->s, REPLY_MS);
}

static void any_packet(struct hand *hand, struct input *input)
{
	uint8_t bytes[64];
	const size_t count = next(input) % sizeof(bytes) + 1u;
	const int fd = descriptor(hand, (enum kind)(next(input) % KINDS));

	for (size_t i = 0; i < count; i++)
		bytes[i] = next(input);
	if (count >= 16)
		keep_seal(((struct dioh_msg_header *)bytes)->type, bytes + 16, count - 16);
	hand->s.pending_type = 0;
	inside_send(&hand->s, bytes, count, &fd, bytes[0] & 1);
}

static void feed_stream(struct hand *hand, struct input *input)
{
	uint8_t bytes[256];
	const size_t count = next(input);
	ssize_t n;

	for (size_t i = 0; i < count; i++)
		bytes[i] = next(input);
	if (hand->direction == DIOH_DIRECTION_SAVE)
		n = write(descriptor(hand, KIND_STREAM_OTHER_END), bytes, count);
	else
		n = read(descriptor(hand, KIND_STREAM_OTHER_END), bytes, sizeof(bytes));
	(void)n;
}

static void step(struct hand *hand, struct input *input)
{
	switch (next(input) % 12) {
	case 8: any_packet(hand, input); break;
	case 9: /* a file changes its size under the helper */
		(void)!ftruncate(descriptor(hand, next(input) & 1 ? KIND_MEMORY : KIND_SELECTION), next(input) * 4096);
		break;
	case 10: close_kind(hand, next(input) & 1 ? KIND_STREAM : KIND_STREAM_OTHER_END); break;
	case 11:
		if (next(input) == 255)
			shutdown(hand->s.fd, SHUT_WR);
		else
			feed_stream(hand, input);
		break;
	default: request(hand, input);
	}
}

/* ---- the whole ---- */

static void first_time(void)
{
	static const uint32_t layouts[] = { DIOH_LAYOUT_CONTAINER, DIOH_LAYOUT_MAPPED_RAM };

	inside_init();
	for (unsigned i = 0; i < 2; i++)
		inside_make_image(&images[i], layouts[i]);
	inside_make_foreign_image(&images[2], false);
}

static void take_image(struct hand *hand, struct input *input, uint8_t choices)
{
	const unsigned which = choices >> 1 & 3;

	hand->direction = choices & 1 ? DIOH_DIRECTION_LOAD : DIOH_DIRECTION_SAVE;
	if (choices & 1 && which < 3) {
		const unsigned changes = next(input) % 8;
		const size_t used = inside_change_image(&images[which], input->data, input->left, changes, true);

		input->data += used;
		input->left -= used;
		hand->loads = &images[which];
		hand->fds[KIND_IMAGE] = images[which].fd;
	} else {
		hand->fds[KIND_IMAGE] = new_file("image", which * 4096);
	}
}

/* Of a container that stands at the file's start there is something to be seen. */
static void check_finished(int fd)
{
	struct dioh_record_head head = { .state = 0 };

	if (pread(fd, &head, sizeof(head), 0) != sizeof(head) || memcmp(head.magic, DIOH_RECORD_MAGIC, sizeof(head.magic)) != 0)
		return;
	CHECK(head.state == DIOH_STATE_COMPLETE || head.state == DIOH_STATE_WRITTEN);
	CHECK(head.state == DIOH_STATE_WRITTEN || fuzz_open(fd, DIOH_LAYOUT_CONTAINER, 0, NULL) == 0);
}

static void put_down(struct hand *hand)
{
	for (unsigned kind = 0; kind < KINDS; kind++)
		close_kind(hand, (enum kind)kind);
	close(hand->pair[0]);
	close(hand->pair[1]);
	if (hand->loads)
		inside_restore_whole_image(hand->loads); /* it may have been attached for a save */
	else
		close(hand->fds[KIND_IMAGE]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input input = { data, size };
	struct hand hand = { .direction = 0 };
	uint8_t choices;
	unsigned before;

	if (size < 1 || size > 2048)
		return 0;
	if (!images[2].map)
		first_time();
	memset(hand.fds, 0xff, sizeof(hand.fds));
	before = must_count_descriptors();
	choices = next(&input);
	take_image(&hand, &input, choices);
	CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, hand.pair) == 0);
	inside_start(&hand.s);
	begin(&hand, choices >> 3 & 7);
	for (unsigned i = 0; i < STEPS_MAX && input.left > 0 && !hand.s.ended; i++)
		step(&hand, &input);
	inside_reply(&hand.s, 0);
	close_kind(&hand, KIND_CONTROL); /* or it is no hangup */
	inside_end(&hand.s);
	if (hand.s.finished && !hand.loads)
		check_finished(hand.fds[KIND_IMAGE]);
	put_down(&hand);
	CHECK(must_count_descriptors() == before);
	return 0;
}
