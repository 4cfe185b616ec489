/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test_client.c - the public API, call by call: what a helper is sent, and what becomes of its replies. The helper
 * is a thread that plays a script (tests/lib/fake_helper.h). Events are test_events.c's business, dioh_spawn() is
 * test_spawn.c's.
 */
/* LDFLAGS: -Wl,--wrap=syscall,--wrap=poll,--wrap=clock_gettime */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "fake_helper.h"
#include "leap.h"

/* ---- between the library and the kernel ------------------------------------------------------ */

static int pidfd_error; /* what pidfd_open(2) fails with; 0: it does not */

long __wrap_syscall(long number, long a, long b, long c, long d, long e, long f);
long __real_syscall(long number, long a, long b, long c, long d, long e, long f);

long __wrap_syscall(long number, long a, long b, long c, long d, long e, long f)
{
	if (number != SYS_pidfd_open || pidfd_error == 0)
		return __real_syscall(number, a, b, c, d, e, f);
	errno = pidfd_error;
	return -1;
}

/* ---- HELLO ----------------------------------------------------------------------------------- */

static bool is_pidfd_of_ours(int fd)
{
	char path[64], line[128];
	FILE *info;
	int pid = -1;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	info = fopen(path, "r");
	if (!info)
		return false;
	while (fgets(line, sizeof(line), info))
		if (sscanf(line, "Pid: %d", &pid) == 1)
			break;
	fclose(info);
	return pid == (int)getpid();
}

/* valgrind may not know them. The library then does without. */
static bool has_pidfds(void)
{
	int fd = (int)syscall(SYS_pidfd_open, getpid(), 0);

	if (fd >= 0)
		close(fd);
	return fd >= 0;
}

static void script_hello(struct fake *fake)
{
	struct dioh_msg_hello hello = { .version_min = 1,
		                        .version_max = 1,
		                        .offered = DIOH_FEATURE_STREAM };

	fake_take(fake, DIOH_MSG_HELLO);
	if (fake->in.fd_count == 1)
		fake_expect(fake, is_pidfd_of_ours(fake->in.fds[0]), "a pidfd of the manager");
	else
		fake_expect(fake, !has_pidfds(), "a descriptor with HELLO");
	memcpy(&hello, fake->in.payload, sizeof(hello));
	if (hello.version_min != 1 || hello.version_max != 1)
		fake_blame(fake, "versions", hello.version_max);
	if (hello.offered != FEATURES_ALL || hello.required != DIOH_FEATURE_STREAM)
		fake_blame(fake, "features", (long)hello.required);
	hello.offered = DIOH_FEATURE_STREAM | UINT64_C(1) << 40;
	hello.required = DIOH_FEATURE_CHECKSUM; /* which every manager has */
	fake_reply(fake, &hello, sizeof(hello));
}

static void test_hello(void **state)
{
	struct client *f = *state;
	struct dioh_hello_info info;
	int fd = client_start_fake(f, script_hello);

	assert_int_equal(fcntl(fd, F_SETFD, 0), 0);
	assert_int_equal(dioh_connect(fd, DIOH_FEATURE_STREAM, &f->session, &f->err), 0);
	client_assert_untouched(f);
	dioh_session_info(f->session, &info);
	assert_int_equal(info.version, 1);
	assert_true(info.features == (DIOH_FEATURE_STREAM | UINT64_C(1) << 40));
	assert_int_equal(fcntl(fd, F_GETFD), FD_CLOEXEC);
	client_disconnect(f);
	assert_int_equal(fcntl(fd, F_GETFD), -1); /* it was the session's */
}

static void connect_in_vain(struct client *f, void (*script)(struct fake *fake), int code,
                            const char *text)
{
	struct dioh_session *session = (void *)f;
	int fd = client_start_fake(f, script);

	assert_int_equal(dioh_connect(fd, DIOH_FEATURE_STREAM, &session, &f->err), -code);
	assert_int_equal(f->err.code, code);
	assert_non_null(strstr(f->err.text, text));
	assert_ptr_equal(session, f);
	assert_int_equal(close(fd), 0); /* it stayed the caller's */
	client_end_fake(f);
}

static void script_no_version(struct fake *fake)
{
	fake_take(fake, DIOH_MSG_HELLO);
	fake_refuse(fake, EPROTONOSUPPORT, "versions 1 to 1 and 5 to 7");
}

static void script_feature_lacking(struct fake *fake)
{
	struct dioh_msg_hello hello = { .version_min = 1,
		                        .version_max = 1,
		                        .offered = DIOH_FEATURE_LABEL };

	fake_take(fake, DIOH_MSG_HELLO);
	fake_reply(fake, &hello, sizeof(hello));
}

static void script_requires_more(struct fake *fake)
{
	struct dioh_msg_hello hello = { .version_min = 1,
		                        .version_max = 1,
		                        .offered = FEATURES_ALL,
		                        .required = DIOH_FEATURE_STREAM | UINT64_C(1) << 20 };

	fake_take(fake, DIOH_MSG_HELLO);
	fake_reply(fake, &hello, sizeof(hello));
}

static void script_another_version(struct fake *fake)
{
	struct dioh_msg_hello hello = { .version_min = 2, .version_max = 2, .offered = FEATURES_ALL };

	fake_take(fake, DIOH_MSG_HELLO);
	fake_reply(fake, &hello, sizeof(hello));
}

static void script_hang_up_at_hello(struct fake *fake)
{
	fake_take(fake, DIOH_MSG_HELLO);
	fake_hang_up(fake);
}

static void script_short_hello(struct fake *fake)
{
	fake_take(fake, DIOH_MSG_HELLO);
	fake_reply(fake, "x", 1);
}

static void test_hello_in_vain(void **state)
{
	struct client *f = *state;

	connect_in_vain(f, script_no_version, EPROTONOSUPPORT, "versions 1 to 1 and 5 to 7");
	connect_in_vain(f, script_feature_lacking, ENOTSUP, "lacks a required feature: stream");
	connect_in_vain(f, script_requires_more, ENOTSUP, "0x100000");
	connect_in_vain(f, script_another_version, EPROTONOSUPPORT, "version 2");
	connect_in_vain(f, script_hang_up_at_hello, EPIPE, "closed");
	connect_in_vain(f, script_short_hello, EBADMSG, "HELLO's reply");
}

static void script_without_pidfd(struct fake *fake)
{
	struct dioh_msg_hello hello = { .version_min = 1, .version_max = 1, .offered = FEATURES_ALL };

	fake_take(fake, DIOH_MSG_HELLO);
	fake_expect(fake, fake->in.fd_count == 0, "no descriptor with HELLO");
	fake_reply(fake, &hello, sizeof(hello));
}

static void script_nothing(struct fake *fake)
{
	(void)fake;
}

/* A kernel without pidfds, or a filter, is no reason to fail; a shortage is. */
static void test_hello_without_pidfd(void **state)
{
	static const int none[] = { ENOSYS, EPERM, EINVAL }, shortages[] = { EMFILE, ENFILE, ENOMEM };
	struct client *f = *state;

	for (int i = 0; i < 3; i++) {
		pidfd_error = none[i];
		client_connect(f, script_without_pidfd);
		client_assert_untouched(f);
		client_disconnect(f);
	}
	for (int i = 0; i < 3; i++) {
		pidfd_error = shortages[i];
		connect_in_vain(f, script_nothing, shortages[i], "no pidfd of this process");
	}
	pidfd_error = 0;
}

static void script_silence(struct fake *fake)
{
	fake_take(fake, DIOH_MSG_HELLO);
	fake_await_hangup(fake);
}

static void test_hello_is_never_answered(void **state)
{
	struct client *f = *state;

	leap_at(1);
	connect_in_vain(f, script_silence, ETIMEDOUT, "HELLO was not answered within 30 s");
	assert_true(leap_was_made());
}

/* Nor even read. */
static void test_hello_has_no_room(void **state)
{
	struct client *f = *state;
	struct dioh_session *session = NULL;
	int pair[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
	while (send(pair[0], "", 1, MSG_DONTWAIT) == 1)
		continue;
	assert_int_equal(errno, EAGAIN);
	leap_at(1);
	assert_int_equal(dioh_connect(pair[0], 0, &session, &f->err), -ETIMEDOUT);
	assert_true(leap_was_made());
	assert_null(session);
	assert_int_equal(close(pair[0]) | close(pair[1]), 0);
}

static void test_connect_to_something_else(void **state)
{
	struct client *f = *state;
	struct dioh_session *session = NULL;
	int pair[2], null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);

	assert_int_equal(dioh_connect(-1, 0, &session, &f->err), -EBADF);
	assert_int_equal(dioh_connect(null_fd, 0, &session, &f->err), -ENOTSOCK);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
	assert_int_equal(dioh_connect(pair[0], 0, &session, &f->err), -EINVAL);
	assert_null(session);
	assert_int_equal(close(pair[0]) | close(pair[1]) | close(null_fd), 0);
	assert_int_equal(dioh_close(NULL, -1, NULL), 0);
}

/* ---- before the seal ------------------------------------------------------------------------- */

static bool is_directory(int fd)
{
	struct stat st;

	return fstat(fd, &st) == 0 && S_ISDIR(st.st_mode);
}

static void script_attach(struct fake *fake)
{
	const struct dioh_msg_attach_image *image = (const void *)fake->in.payload;
	const struct dioh_msg_attach_memory *memory = (const void *)fake->in.payload;
	const struct dioh_msg_attach_stream *stream = (const void *)fake->in.payload;
	const struct dioh_msg_seal *seal = (const void *)fake->in.payload;
	struct dioh_msg_attach_image_reply image_reply = { .kind = 1,
		                                           .engine = DIOH_ENGINE_SYNC,
		                                           .block_bytes = 65536,
		                                           .in_flight = 8,
		                                           .workers = 1,
		                                           .file_bytes = 4711 };
	struct dioh_msg_attach_memory_reply memory_reply = { .kind = 2, .bytes = 8192 };
	struct dioh_msg_attach_stream_reply stream_reply = { .kind = 3 };
	struct dioh_msg_seal_reply seal_reply = { .layers = 5, .uid = 65534, .engine = 1 };
	const int *fds = fake->in.fds;

	fake_greet(fake);
	fake_take(fake, DIOH_MSG_ATTACH_IMAGE);
	fake_expect(fake, fake->in.fd_count == 3, "number of descriptors");
	fake_expect(fake, fake_is_device(fds[0], DEV_NULL) && fake_is_device(fds[1], DEV_ZERO),
	            "image");
	fake_expect(fake, is_directory(fds[2]), "directory");
	fake_expect(fake, image->fds == 7 && image->direction == 1 && image->direct == 1, "modes");
	fake_expect(fake, image->engine == 3 && image->block_bytes == 65536, "engine");
	fake_expect(fake, image->in_flight == 8 && image->workers == 2, "depth");
	fake_expect(fake, image->ask == 13 && image->base_offset == 8192, "ask");
	fake_expect(fake, image->uid == 1 && image->gid == 2 && image->mode == 0640, "owner");
	fake_expect(fake, strcmp(image->label, "a:b:c") == 0, "label");
	fake_reply(fake, &image_reply, sizeof(image_reply));

	fake_take(fake, DIOH_MSG_ATTACH_IMAGE); /* a lone direct one */
	fake_expect(fake, fake->in.fd_count == 1 && image->fds == 2, "lone descriptor");
	fake_expect(fake, fake_is_device(fds[0], DEV_ZERO), "lone direct");
	fake_reply(fake, &image_reply, sizeof(image_reply));

	fake_take(fake, DIOH_MSG_ATTACH_MEMORY);
	fake_expect(fake, fake->in.fd_count == 2 && memory->fds == 3, "memory's descriptors");
	fake_expect(fake, fake_is_device(fds[0], DEV_NULL) && fake_is_device(fds[1], DEV_ZERO),
	            "memory");
	fake_expect(fake, memory->memory == 9 && memory->advice == 1, "number of the memory");
	fake_expect(fake, memory->bytes == 8192, "size of the memory");
	fake_reply(fake, &memory_reply, sizeof(memory_reply));

	fake_take(fake, DIOH_MSG_ATTACH_STREAM);
	fake_expect(fake, fake->in.fd_count == 1 && stream->stream == 4, "stream");
	fake_reply(fake, &stream_reply, sizeof(stream_reply));

	fake_take(fake, DIOH_MSG_SEAL);
	fake_expect(fake, seal->required == 3, "layers");
	fake_reply(fake, &seal_reply, sizeof(seal_reply));
	fake_take(fake, DIOH_MSG_SEAL);
	fake_reply(fake, &seal_reply, sizeof(seal_reply));
}

static void test_attach(void **state)
{
	struct client *f = *state;
	int null_fd = open("/dev/null", O_RDONLY), zero_fd = open("/dev/zero", O_RDONLY);
	int directory_fd = open("/", O_RDONLY | O_DIRECTORY);
	struct dioh_image_options image = { null_fd, zero_fd, directory_fd, 1, 1, 3,    65536,  8,
		                            2,       13,      8192,         1, 2, 0640, "a:b:c" };
	struct dioh_image_options lone = DIOH_IMAGE_OPTIONS_INIT;
	struct dioh_memory_options memory = { null_fd, zero_fd, 1, 8192 };
	struct dioh_msg_attach_image_reply image_reply = { 0 };
	struct dioh_msg_attach_memory_reply memory_reply = { 0 };
	struct dioh_msg_attach_stream_reply stream_reply = { 0 };
	struct dioh_msg_seal_reply seal_reply = { 0 };

	client_connect(f, script_attach);
	assert_int_equal(dioh_attach_image(f->session, &image, &image_reply, &f->err), 0);
	assert_true(image_reply.file_bytes == 4711);
	lone.direct_fd = zero_fd;
	lone.direction = DIOH_DIRECTION_LOAD;
	assert_int_equal(dioh_attach_image(f->session, &lone, NULL, &f->err), 0);
	assert_int_equal(dioh_attach_memory(f->session, 9, &memory, &memory_reply, &f->err), 0);
	assert_true(memory_reply.bytes == 8192);
	assert_int_equal(dioh_attach_stream(f->session, 4, null_fd, &stream_reply, &f->err), 0);
	assert_int_equal(stream_reply.kind, DIOH_STREAM_FILE);
	assert_int_equal(dioh_seal(f->session, 3, &seal_reply, &f->err), 0);
	assert_int_equal(seal_reply.uid, 65534);
	assert_int_equal(dioh_seal(f->session, 3, NULL, NULL), 0);
	client_assert_untouched(f);
	client_disconnect(f);
	assert_int_equal(close(null_fd) | close(zero_fd) | close(directory_fd), 0);
}

static void script_only_status(struct fake *fake)
{
	fake_greet(fake);
	fake_status(fake);
}

/* What is wrong with the arguments is found out here: the helper never sees it, and the session goes on. */
static void test_own_mistakes(void **state)
{
	struct client *f = *state;
	int null_fd = open("/dev/null", O_RDONLY);
	char label[DIOH_LABEL_BYTES + 1];
	struct dioh_image_options image = DIOH_IMAGE_OPTIONS_INIT;
	struct dioh_memory_options memory = DIOH_MEMORY_OPTIONS_INIT;
	struct dioh_msg_memory_transfer transfer = { .length = 4096, .reserved = 1 };
	struct dioh_msg_stream_transfer stream = { .stream = DIOH_STREAMS_MAX };
	uint32_t begun = 4711;

	client_connect(f, script_only_status);
	image.direction = DIOH_DIRECTION_SAVE;
	assert_int_equal(dioh_attach_image(f->session, &image, NULL, &f->err), -EINVAL);
	assert_int_equal(f->err.code, EINVAL);
	image.buffered_fd = null_fd;
	image.label = "nobody asked for it";
	assert_int_equal(dioh_attach_image(f->session, &image, NULL, &f->err), -EINVAL);
	memset(label, 'x', sizeof(label) - 1);
	label[sizeof(label) - 1] = '\0';
	image.label = label;
	assert_int_equal(dioh_attach_image(f->session, &image, NULL, &f->err), -ENAMETOOLONG);
	image.label = NULL;
	image.buffered_fd = 12345; /* not open */
	assert_int_equal(dioh_attach_image(f->session, &image, NULL, &f->err), -EBADF);
	assert_int_equal(f->err.code, EBADF);
	assert_int_equal(dioh_attach_memory(f->session, 0, &memory, NULL, &f->err), -EINVAL);
	assert_int_equal(dioh_attach_stream(f->session, 0, -1, NULL, &f->err), -EBADF);
	assert_int_equal(dioh_seal(f->session, UINT32_MAX, NULL, NULL), -EINVAL);
	/* A reserved field that is not zero would end the session, were it sent. */
	assert_int_equal(dioh_save_memory(f->session, &transfer, &begun, &f->err), -EINVAL);
	assert_int_equal(dioh_load_stream(f->session, &stream, &begun, &f->err), -EINVAL);
	assert_int_equal(begun, 4711);
	client_ask_status(f);
	client_disconnect(f);
	close(null_fd);
}

static void script_refusals(struct fake *fake)
{
	fake_greet(fake);
	fake_take(fake, DIOH_MSG_SEAL);
	fake_refuse(fake, EPERM, "no\tway");
	fake_take(fake, DIOH_MSG_SAVE_MEMORY);
	fake_refuse(fake, ENOENT, "there is no region 3");
	fake_status(fake);
}

static void script_refuses_many(struct fake *fake)
{
	fake_greet(fake);
	for (int i = 0; i < 2 * (int)DIOH_TRANSFERS_MAX; i++) {
		fake_take(fake, DIOH_MSG_SAVE_MEMORY);
		fake_refuse(fake, EBUSY, "it overlaps");
	}
	fake_complete(fake, fake_accept(fake, DIOH_MSG_SAVE_MEMORY), 0, 0);
}

/* A refused transfer takes nobody's place. */
static void test_many_refusals(void **state)
{
	struct client *f = *state;
	struct dioh_msg_memory_transfer what = { .length = 4096 };

	client_connect(f, script_refuses_many);
	for (int i = 0; i < 2 * (int)DIOH_TRANSFERS_MAX; i++) {
		assert_int_equal(dioh_save_memory(f->session, &what, NULL, &f->err), -EBUSY);
		assert_string_equal(f->err.text, "it overlaps");
	}
	assert_int_equal(dioh_wait(f->session, client_begin_save(f), NULL, NULL), 0);
	client_disconnect(f);
}

static void test_refusals(void **state)
{
	struct client *f = *state;
	struct dioh_msg_seal_reply seal = { .uid = 4711 };
	struct dioh_msg_memory_transfer what = { .region = 3, .length = 4096 };
	uint32_t transfer = 4711;

	client_connect(f, script_refusals);
	assert_int_equal(dioh_seal(f->session, 1, &seal, &f->err), -EPERM);
	assert_int_equal(f->err.code, EPERM);
	assert_int_equal(f->err.operation, DIOH_OP_WRITE);
	assert_int_equal(f->err.object, DIOH_OBJECT_REGION);
	assert_int_equal(f->err.number, 7);
	assert_true(f->err.offset == 8192);
	assert_string_equal(f->err.text, "no?way");
	assert_int_equal(seal.uid, 4711);
	assert_int_equal(dioh_save_memory(f->session, &what, &transfer, NULL), -ENOENT);
	assert_int_equal(transfer, 4711);
	client_ask_status(f);
	client_disconnect(f);
}

/* ---- the image ------------------------------------------------------------------------------- */

#define ENTRIES 450u /* three messages */
#define HEADER_BYTES 150000u

static struct dioh_msg_entry *make_entries(void)
{
	struct dioh_msg_entry *entries = calloc(ENTRIES, sizeof(*entries));

	assert_non_null(entries);
	for (uint32_t i = 0; i < ENTRIES; i++) {
		entries[i].kind = i % 50 == 0 ? DIOH_ENTRY_STREAM : DIOH_ENTRY_REGION;
		entries[i].number = i;
		entries[i].bytes = i % 50 == 0 ? 0 : 4096;
		snprintf(entries[i].name, sizeof(entries[i].name), "entry%u", i);
	}
	return entries;
}

static uint8_t header_byte(uint64_t i)
{
	return (uint8_t)(i * 13 + i / 251);
}

static uint8_t *make_header(void)
{
	uint8_t *header = malloc(HEADER_BYTES);

	assert_non_null(header);
	for (uint64_t i = 0; i < HEADER_BYTES; i++)
		header[i] = header_byte(i);
	return header;
}

static void take_pieces_of_table(struct fake *fake, uint32_t ready_with)
{
	for (uint32_t first = 0; first < ENTRIES && fake->failure[0] == '\0';) {
		struct dioh_msg_image_reply answer = { .free_bytes = first };
		struct dioh_msg_put_table table;
		struct dioh_msg_entry entry;

		fake_take(fake, DIOH_MSG_PUT_TABLE);
		memcpy(&table, fake->in.payload, sizeof(table));
		fake_expect(fake, table.first == first, "first entry");
		for (uint32_t i = 0; i < table.count; i++) {
			memcpy(&entry, fake->in.payload + sizeof(table) + i * sizeof(entry),
			       sizeof(entry));
			fake_expect(fake, entry.number == first + i, "an entry");
		}
		first += table.count;
		answer.ready = first == ready_with;
		answer.image_bytes = first;
		fake_reply(fake, &answer, sizeof(answer));
		if (table.count == 0)
			return;
	}
}

static void take_pieces_of_header(struct fake *fake, uint64_t first, uint64_t bytes, uint32_t ready)
{
	for (uint64_t done = 0; done < bytes && fake->failure[0] == '\0';) {
		struct dioh_msg_image_reply answer = { .ready = ready, .free_bytes = 99 };
		struct dioh_msg_write_header header;
		uint64_t count;

		fake_take(fake, DIOH_MSG_WRITE_HEADER);
		memcpy(&header, fake->in.payload, sizeof(header));
		count = fake->in.header.size - sizeof(header);
		fake_expect(fake, header.offset == first + done, "offset in the header");
		for (uint64_t i = 0; i < count; i++)
			fake_expect(fake,
			            fake->in.payload[sizeof(header) + i] == header_byte(done + i),
			            "a byte of the header");
		done += count;
		fake_reply(fake, &answer, sizeof(answer));
		if (fake->fd < 0)
			return;
	}
}

static void take_create(struct fake *fake)
{
	const struct dioh_msg_create_image *create = (const void *)fake->in.payload;
	struct dioh_msg_image_reply answer = { 0 };

	fake_take(fake, DIOH_MSG_CREATE_IMAGE);
	fake_expect(fake, create->layout == DIOH_LAYOUT_CONTAINER, "layout");
	fake_expect(fake, create->region_count == 441 && create->stream_count == 9, "counts");
	fake_expect(fake, create->header_bytes == HEADER_BYTES, "header bytes");
	fake_reply(fake, &answer, sizeof(answer));
}

/* Ready with the table, as a container is; a header's replies that say less do not count. */
static void script_create(struct fake *fake)
{
	fake_greet(fake);
	take_create(fake);
	take_pieces_of_table(fake, ENTRIES);
	take_pieces_of_header(fake, 0, HEADER_BYTES, 0);
	take_create(fake);
	take_pieces_of_table(fake, 0);
	take_pieces_of_header(fake, 0, HEADER_BYTES, 1); /* raw: with the header */
	take_create(fake);
	take_pieces_of_table(fake, 0);
	fake_status(fake);
}

static void test_create_image(void **state)
{
	struct client *f = *state;
	struct dioh_msg_entry *entries = make_entries();
	uint8_t *header = make_header();
	struct dioh_create_options options = { .layout = DIOH_LAYOUT_CONTAINER,
		                               .entry_count = ENTRIES,
		                               .entries = entries,
		                               .header_bytes = HEADER_BYTES,
		                               .header = header };
	struct dioh_msg_image_reply info = { 0 };

	client_connect(f, script_create);
	assert_int_equal(dioh_create_image(f->session, &options, &info, &f->err), 0);
	assert_int_equal(info.ready, 1);
	assert_true(info.image_bytes == ENTRIES);
	assert_int_equal(dioh_create_image(f->session, &options, &info, &f->err), 0);
	assert_int_equal(info.ready, 1);
	assert_true(info.free_bytes == 99);
	options.header = NULL;
	assert_int_equal(dioh_create_image(f->session, &options, &info, &f->err), 0);
	assert_int_equal(info.ready, 0);
	assert_true(info.image_bytes == ENTRIES); /* the last reply's */
	client_ask_status(f);
	client_assert_untouched(f);
	client_disconnect(f);
	free(entries);
	free(header);
}

static void script_create_fails(struct fake *fake)
{
	struct dioh_msg_image_reply answer = { 0 };

	fake_greet(fake);
	take_create(fake);
	fake_take(fake, DIOH_MSG_PUT_TABLE);
	fake_reply(fake, &answer, sizeof(answer));
	fake_take(fake, DIOH_MSG_PUT_TABLE);
	fake_refuse(fake, ENOSPC, "too little space");
	fake_take(fake, DIOH_MSG_CREATE_IMAGE);
	fake_refuse(fake, EPROTO, "not again");
	fake_take(fake, DIOH_MSG_WRITE_HEADER);
	fake_reply(fake, &answer, sizeof(answer));
	fake_take(fake, DIOH_MSG_WRITE_HEADER);
	fake_refuse(fake, EIO, "the disk");
}

static void test_create_image_fails(void **state)
{
	struct client *f = *state;
	struct dioh_msg_entry *entries = make_entries();
	uint8_t *header = make_header();
	struct dioh_create_options options = { .layout = DIOH_LAYOUT_CONTAINER,
		                               .entry_count = ENTRIES,
		                               .entries = entries,
		                               .header_bytes = HEADER_BYTES,
		                               .header = header };
	struct dioh_msg_image_reply info = { .image_bytes = 4711 };
	const struct dioh_msg_entry seventh = entries[7];

	client_connect(f, script_create_fails);
	entries[7].kind = 3; /* found before anything is sent */
	assert_int_equal(dioh_create_image(f->session, &options, &info, &f->err), -EINVAL);
	entries[7] = seventh;
	entries[ENTRIES - 1].bytes = 4097; /* in another message than the first */
	assert_int_equal(dioh_create_image(f->session, &options, &info, &f->err), -EINVAL);
	entries[ENTRIES - 1].bytes = 4096;
	entries[ENTRIES - 1].image_offset = 4096; /* for layout raw */
	assert_int_equal(dioh_create_image(f->session, &options, &info, &f->err), -EINVAL);
	assert_non_null(strstr(f->err.text, "image_offset"));
	entries[ENTRIES - 1].image_offset = 0;
	entries[ENTRIES - 1].number = 7;
	assert_int_equal(dioh_create_image(f->session, &options, &info, &f->err), -EEXIST);
	entries[ENTRIES - 1].number = ENTRIES - 1;
	memcpy(entries[7].name, entries[ENTRIES - 1].name, sizeof(entries[7].name));
	assert_int_equal(dioh_create_image(f->session, &options, &info, &f->err), -EEXIST);
	entries[7] = seventh;
	assert_int_equal(dioh_create_image(f->session, &options, &info, &f->err), -ENOSPC);
	assert_string_equal(f->err.text, "too little space");
	assert_int_equal(dioh_create_image(f->session, &options, &info, &f->err), -EPROTO);
	assert_int_equal(dioh_write_header(f->session, 0, header, HEADER_BYTES, &f->err), -EIO);
	assert_true(info.image_bytes == 4711);
	client_disconnect(f);
	free(entries);
	free(header);
}

static void script_write_header(struct fake *fake)
{
	fake_greet(fake);
	take_pieces_of_header(fake, 1000, HEADER_BYTES, 1);
	fake_status(fake);
}

static void test_write_header(void **state)
{
	struct client *f = *state;
	uint8_t *header = make_header();

	client_connect(f, script_write_header);
	assert_int_equal(dioh_write_header(f->session, 1000, header, HEADER_BYTES, &f->err), 0);
	assert_int_equal(dioh_write_header(f->session, 1000, header, 0, &f->err), 0);
	client_assert_untouched(f);
	assert_int_equal(dioh_write_header(f->session, DIOH_HEADER_BYTES_MAX - HEADER_BYTES + 1,
	                                   header, HEADER_BYTES, &f->err),
	                 -EINVAL);
	assert_int_equal(dioh_write_header(f->session, UINT64_MAX, header, 2, &f->err), -EINVAL);
	client_ask_status(f);
	client_disconnect(f);
	free(header);
}

/* A socket may come with less room than the longest message takes. */
static void test_write_header_with_little_room(void **state)
{
	const int little = 32768; /* the kernel doubles it */
	struct client *f = *state;
	uint8_t *header = make_header();
	int fd = client_start_fake(f, script_write_header);

	assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &little, sizeof(little)), 0);
	assert_int_equal(dioh_connect(fd, 0, &f->session, &f->err), 0);
	assert_int_equal(dioh_write_header(f->session, 1000, header, HEADER_BYTES, &f->err), 0);
	client_ask_status(f);
	client_disconnect(f);
	free(header);
}

static void script_open(struct fake *fake)
{
	const struct dioh_msg_open_image *open = (const void *)fake->in.payload;
	struct dioh_msg_open_image_reply answer = { .layout = DIOH_LAYOUT_CONTAINER,
		                                    .state = DIOH_STATE_COMPLETE,
		                                    .region_count = 2,
		                                    .image_bytes = 8192,
		                                    .ready = 1 };

	fake_greet(fake);
	fake_take(fake, DIOH_MSG_OPEN_IMAGE);
	fake_expect(fake, open->layout == DIOH_LAYOUT_DETECT, "layout");
	fake_expect(fake, open->flags == DIOH_OPEN_INSPECT, "flags");
	fake_reply(fake, &answer, sizeof(answer));

	fake_take(fake, DIOH_MSG_OPEN_IMAGE);
	fake_expect(fake, open->region_count == 441 && open->stream_count == 9, "counts");
	fake_expect(fake, open->header_bytes == 17, "header bytes");
	answer = (struct dioh_msg_open_image_reply){ .layout = DIOH_LAYOUT_RAW };
	fake_reply(fake, &answer, sizeof(answer));
	take_pieces_of_table(fake, ENTRIES);
	fake_take(fake, DIOH_MSG_OPEN_IMAGE);
	fake_refuse(fake, ENODATA, "partial");
	fake_status(fake);
}

static void test_open_image(void **state)
{
	struct client *f = *state;
	struct dioh_msg_entry *entries = make_entries();
	struct dioh_open_options options = { .flags = DIOH_OPEN_INSPECT };
	struct dioh_open_options raw = { .layout = DIOH_LAYOUT_RAW,
		                         .entry_count = ENTRIES,
		                         .entries = entries,
		                         .header_bytes = 17 };
	struct dioh_msg_open_image_reply info = { 0 };

	client_connect(f, script_open);
	assert_int_equal(dioh_open_image(f->session, &options, &info, &f->err), 0);
	assert_int_equal(info.state, DIOH_STATE_COMPLETE);
	assert_int_equal(info.ready, 1);
	assert_true(info.image_bytes == 8192);
	assert_int_equal(dioh_open_image(f->session, &raw, &info, &f->err), 0);
	assert_int_equal(info.layout, DIOH_LAYOUT_RAW);
	assert_int_equal(info.ready, 1);
	assert_true(info.image_bytes == ENTRIES);
	client_assert_untouched(f);
	info.ready = 4711;
	assert_int_equal(dioh_open_image(f->session, &options, &info, &f->err), -ENODATA);
	raw.layout = DIOH_LAYOUT_CONTAINER; /* entries are raw's */
	assert_int_equal(dioh_open_image(f->session, &raw, &info, &f->err), -EINVAL);
	assert_int_equal(info.ready, 4711);
	client_ask_status(f);
	client_disconnect(f);
	free(entries);
}

/* A table of `there` entries, regions all. */
static void answer_table(struct fake *fake, uint32_t there)
{
	uint8_t payload[DIOH_PAYLOAD_BYTES_MAX] = { 0 };
	struct dioh_msg_get_table asked;
	struct dioh_msg_get_table_reply answer;

	fake_take(fake, DIOH_MSG_GET_TABLE);
	memcpy(&asked, fake->in.payload, sizeof(asked));
	answer.first = asked.first;
	answer.count = asked.first >= there ? 0 : there - asked.first;
	if (answer.count > asked.count)
		answer.count = asked.count;
	memcpy(payload, &answer, sizeof(answer));
	for (uint32_t i = 0; i < answer.count; i++) {
		struct dioh_msg_entry entry = { .kind = DIOH_ENTRY_REGION,
			                        .number = asked.first + i,
			                        .bytes = 4096,
			                        .name = "r" };

		memcpy(&payload[sizeof(answer) + i * sizeof(entry)], &entry, sizeof(entry));
	}
	fake_reply(fake, payload, sizeof(answer) + answer.count * sizeof(struct dioh_msg_entry));
}

static void script_get_table(struct fake *fake)
{
	fake_greet(fake);
	for (int i = 0; i < 3; i++)
		answer_table(fake, 450);
	for (int i = 0; i < 3; i++)
		answer_table(fake, 400);
	answer_table(fake, 450);
	answer_table(fake, 450);
	fake_status(fake);
}

static void test_get_table(void **state)
{
	struct client *f = *state;
	struct dioh_msg_entry *entries = calloc(ENTRIES, sizeof(*entries));
	uint32_t count = 4711;

	assert_non_null(entries);
	client_connect(f, script_get_table);
	assert_int_equal(dioh_get_table(f->session, 0, 450, entries, &count, &f->err), 0);
	assert_int_equal(count, 450);
	for (uint32_t i = 0; i < 450; i++)
		assert_int_equal(entries[i].number, i);
	assert_int_equal(dioh_get_table(f->session, 0, 450, entries, &count, &f->err), 0);
	assert_int_equal(count, 400);
	assert_int_equal(dioh_get_table(f->session, 440, 450, entries, &count, &f->err), 0);
	assert_int_equal(count, 10);
	assert_int_equal(entries[9].number, 449);
	assert_int_equal(dioh_get_table(f->session, 450, 1, entries, &count, &f->err), 0);
	assert_int_equal(count, 0);
	assert_int_equal(dioh_get_table(f->session, 0, 0, entries, &count, &f->err), 0);
	assert_int_equal(count, 0);
	client_assert_untouched(f);
	count = 4711;
	assert_int_equal(dioh_get_table(f->session, DIOH_REGIONS_MAX + DIOH_STREAMS_MAX + 1, 1, entries, &count, &f->err),
	                 -EINVAL);
	assert_int_equal(count, 4711);
	client_ask_status(f);
	client_disconnect(f);
	free(entries);
}

static void answer_table_beside(struct fake *fake, uint32_t first, uint32_t count)
{
	struct {
		struct dioh_msg_get_table_reply head;
		struct dioh_msg_entry entries[2];
	} answer = { .head = { first, count } };

	fake_take(fake, DIOH_MSG_GET_TABLE);
	for (uint32_t i = 0; i < count; i++)
		answer.entries[i] = (struct dioh_msg_entry){ .kind = DIOH_ENTRY_STREAM,
			                                     .name = "s" };
	fake_reply(fake, &answer, sizeof(answer.head) + count * sizeof(answer.entries[0]));
}

static void script_table_from_elsewhere(struct fake *fake)
{
	fake_greet(fake);
	answer_table_beside(fake, 1, 1);
}

static void script_table_too_long(struct fake *fake)
{
	fake_greet(fake);
	answer_table_beside(fake, 0, 2);
}

static void test_get_table_beside(void **state)
{
	void (*scripts[])(struct fake *) = { script_table_from_elsewhere, script_table_too_long };
	struct client *f = *state;
	struct dioh_msg_entry entry;
	uint32_t count = 4711;

	for (int i = 0; i < 2; i++) {
		client_connect(f, scripts[i]);
		assert_int_equal(dioh_get_table(f->session, 0, 1, &entry, &count, &f->err),
		                 -EBADMSG);
		assert_int_equal(count, 4711);
		client_assert_broken(f, EBADMSG);
		client_disconnect(f);
	}
}

static void answer_header(struct fake *fake, uint64_t there)
{
	uint8_t payload[DIOH_PAYLOAD_BYTES_MAX];
	struct dioh_msg_read_header asked;
	uint64_t count;

	fake_take(fake, DIOH_MSG_READ_HEADER);
	memcpy(&asked, fake->in.payload, sizeof(asked));
	count = asked.offset >= there ? 0 : there - asked.offset;
	if (count > asked.bytes)
		count = asked.bytes;
	for (uint64_t i = 0; i < count; i++)
		payload[i] = header_byte(asked.offset + i);
	fake_reply(fake, payload, count);
}

static void script_read_header(struct fake *fake)
{
	fake_greet(fake);
	for (int i = 0; i < 3; i++)
		answer_header(fake, HEADER_BYTES);
	for (int i = 0; i < 3; i++)
		answer_header(fake, 140000);
	answer_header(fake, HEADER_BYTES);
	fake_take(fake, DIOH_MSG_READ_HEADER);
	fake_reply(fake, "abcdef", 6);
}

static void test_read_header(void **state)
{
	struct client *f = *state;
	uint8_t *bytes = malloc(HEADER_BYTES);
	uint64_t count = 4711;

	assert_non_null(bytes);
	client_connect(f, script_read_header);
	assert_int_equal(dioh_read_header(f->session, 0, bytes, HEADER_BYTES, &count, &f->err), 0);
	assert_true(count == HEADER_BYTES);
	for (uint64_t i = 0; i < HEADER_BYTES; i++)
		assert_int_equal(bytes[i], header_byte(i));
	assert_int_equal(dioh_read_header(f->session, 0, bytes, HEADER_BYTES, &count, &f->err), 0);
	assert_true(count == 140000);
	assert_int_equal(dioh_read_header(f->session, 149990, bytes, 20, &count, &f->err), 0);
	assert_true(count == 10);
	assert_int_equal(bytes[9], header_byte(149999));
	assert_int_equal(dioh_read_header(f->session, 0, bytes, 0, &count, &f->err), 0);
	assert_true(count == 0);
	client_assert_untouched(f);
	assert_int_equal(dioh_read_header(f->session, 0, bytes, 5, &count, &f->err), -EBADMSG);
	client_assert_broken(f, EBADMSG);
	client_disconnect(f);
	free(bytes);
}

/* ---- transfers ------------------------------------------------------------------------------- */

static void script_transfers(struct fake *fake)
{
	const struct dioh_msg_memory_transfer *memory = (const void *)fake->in.payload;
	const struct dioh_msg_stream_transfer *stream = (const void *)fake->in.payload;
	const struct dioh_msg_finish *finish = (const void *)fake->in.payload;
	const struct dioh_msg_cancel *cancel = (const void *)fake->in.payload;
	struct dioh_msg_cancel_reply answer = { .in_flight = 12 };
	uint32_t id;

	fake_greet(fake);
	id = fake_accept(fake, DIOH_MSG_SAVE_MEMORY);
	fake_expect(fake, memory->region == 3 && memory->length == 8192, "SAVE_MEMORY");
	fake_complete(fake, id, 0, 1);
	id = fake_accept(fake, DIOH_MSG_LOAD_MEMORY);
	fake_expect(fake, memory->region == 3, "LOAD_MEMORY");
	fake_complete(fake, id, EIO, 2);
	id = fake_accept(fake, DIOH_MSG_SAVE_STREAM);
	fake_expect(fake, stream->stream == 4 && stream->entry == 5, "SAVE_STREAM");
	fake_complete(fake, id, 0, 3);
	id = fake_accept(fake, DIOH_MSG_LOAD_STREAM);
	fake_expect(fake, stream->stream == 4 && stream->entry == 5, "LOAD_STREAM");
	fake_take(fake, DIOH_MSG_CANCEL);
	fake_expect(fake, cancel->transfer == id, "CANCEL");
	fake_reply(fake, &answer, sizeof(answer));
	fake_complete(fake, id, ECANCELED, 4);
	id = fake_accept(fake, DIOH_MSG_FINISH);
	fake_expect(fake, finish->mode == 1 && finish->patch_offset == 77, "FINISH");
	fake_expect(fake, finish->patch_bytes == 5, "size of the patch");
	fake_expect(fake, memcmp(fake->in.payload + sizeof(*finish), "patch", 5) == 0, "patch");
	fake_complete(fake, id, 0, 5);
	fake_hang_up(fake); /* as the helper does after FINISH */
}

static void test_transfers(void **state)
{
	struct client *f = *state;
	struct dioh_msg_memory_transfer memory = { .region = 3, .length = 8192 };
	struct dioh_msg_stream_transfer stream = { .stream = 4, .entry = 5 };
	struct dioh_event event;
	uint32_t transfer = 0, before, in_flight = 0;

	client_connect(f, script_transfers);
	assert_int_equal(dioh_save_memory(f->session, &memory, &transfer, &f->err), 0);
	client_assert_completes(f, transfer, 0, 1);
	before = transfer;
	assert_int_equal(dioh_load_memory(f->session, &memory, &transfer, &f->err), 0);
	assert_int_not_equal(transfer, before);
	client_assert_completes(f, transfer, EIO, 2);
	assert_int_equal(dioh_save_stream(f->session, &stream, &transfer, &f->err), 0);
	client_assert_completes(f, transfer, 0, 3);
	assert_int_equal(dioh_load_stream(f->session, &stream, &transfer, &f->err), 0);
	assert_int_equal(dioh_cancel(f->session, transfer, &in_flight, &f->err), 0);
	assert_int_equal(in_flight, 12);
	client_assert_completes(f, transfer, ECANCELED, 4);
	assert_int_equal(dioh_finish(f->session, 1, 77, "patch", 5, &transfer, &f->err), 0);
	client_assert_completes(f, transfer, 0, 5);
	client_assert_untouched(f);
	assert_int_equal(dioh_poll(f->session, &event, 5000, &f->err), -EPIPE);
	client_disconnect(f);
}

static void script_finish(struct fake *fake)
{
	const struct dioh_msg_finish *finish = (const void *)fake->in.payload;

	fake_greet(fake);
	fake_complete(fake, fake_accept(fake, DIOH_MSG_FINISH), 0, 0);
	fake_expect(fake, fake->in.header.size == sizeof(*finish), "no patch");
}

static void test_finish_patches(void **state)
{
	struct client *f = *state;
	uint8_t patch[DIOH_HEADER_PATCH_BYTES_MAX + 1] = { 0 };
	uint32_t transfer = 0;

	client_connect(f, script_finish);
	assert_int_equal(dioh_finish(f->session, 0, 0, NULL, 5, &transfer, &f->err), -EINVAL);
	assert_int_equal(dioh_finish(f->session, 0, 0, patch, sizeof(patch), &transfer, &f->err),
	                 -EINVAL);
	assert_int_equal(dioh_finish(f->session, 0, 0, patch, UINT32_MAX, &transfer, &f->err),
	                 -EINVAL);
	assert_int_equal(dioh_finish(f->session, 2, 0, NULL, 0, &transfer, &f->err), -EINVAL);
	assert_int_equal(transfer, 0);
	assert_int_equal(dioh_finish(f->session, 0, 0, NULL, 0, &transfer, &f->err), 0);
	assert_int_equal(dioh_wait(f->session, transfer, NULL, NULL), 0);
	client_disconnect(f);
}

#define TEST(function) cmocka_unit_test_setup_teardown(function, client_set_up, client_tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_hello),
		TEST(test_hello_in_vain),
		TEST(test_hello_without_pidfd),
		TEST(test_hello_is_never_answered),
		TEST(test_hello_has_no_room),
		TEST(test_connect_to_something_else),
		TEST(test_attach),
		TEST(test_own_mistakes),
		TEST(test_refusals),
		TEST(test_many_refusals),
		TEST(test_create_image),
		TEST(test_create_image_fails),
		TEST(test_write_header),
		TEST(test_write_header_with_little_room),
		TEST(test_open_image),
		TEST(test_get_table),
		TEST(test_get_table_beside),
		TEST(test_read_header),
		TEST(test_transfers),
		TEST(test_finish_patches),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
