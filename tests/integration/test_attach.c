/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test_attach.c - what a descriptor must be: each kind that is none, each access mode that does not do. A refusal
 * leaves the session as it was, so one session serves many of them. Block devices: test_root_attach.c.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cleanup.h"
#include "fixture.h"
#include "raw_manager.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

#define SAVE DIOH_DIRECTION_SAVE
#define LOAD DIOH_DIRECTION_LOAD
#define BUFFERED DIOH_IMAGE_FD_BUFFERED
#define DIRECT DIOH_IMAGE_FD_DIRECT
#define BOTH (BUFFERED | DIRECT)
#define DIRECTORY DIOH_IMAGE_FD_DIRECTORY

static void start(struct raw_manager *m)
{
	raw_reach(m, NULL, NULL, SAVE, RAW_STAGE_ATTACH);
}

static void stop(struct raw_manager *m)
{
	assert_int_equal(raw_status_phase(m), DIOH_PHASE_ATTACH);
	raw_hang_up(m);
	raw_ends(m, 0);
}

static int open_file(const char *name, int flags)
{
	int fd = open(fixture_path(name), flags | O_CREAT | O_CLOEXEC, 0600);

	if (fd < 0)
		print_error("%s, flags 0%o: %s\n", fixture_path(name), (unsigned)flags, strerror(errno));
	assert_true(fd >= 0);
	return fd;
}

static int open_path(const char *path, int flags)
{
	int fd = open(path, flags | O_CLOEXEC);

	assert_true(fd >= 0);
	return fd;
}

/* The same file again, with another access mode. */
static int reopen(int fd, int flags)
{
	char path[32];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	return open_path(path, flags);
}

/* Some file systems know no O_DIRECT. */
static bool has_direct(void)
{
	int fd = open(fixture_path("direct-probe"), O_RDWR | O_CREAT | O_DIRECT | O_CLOEXEC, 0600);

	if (fd >= 0)
		close(fd);
	else
		print_message("no O_DIRECT in %s\n", fixture_dir());
	return fd >= 0;
}

static void expect_place(const struct dioh_msg_error *error, uint32_t operation, uint32_t object, uint32_t number)
{
	assert_int_equal(error->operation, operation);
	assert_int_equal(error->object, object);
	assert_int_equal(error->number, number);
}

/* ---- ATTACH_IMAGE ---- */

static void refuse_image(struct raw_manager *m, const struct dioh_msg_attach_image *image, const int *fds, int code,
                         const char *text)
{
	unsigned count = (unsigned)__builtin_popcount(image->fds);
	uint32_t id = raw_request_fds(m, DIOH_MSG_ATTACH_IMAGE, image, sizeof(*image), fds, count);
	struct dioh_msg_error error = raw_refused(m, DIOH_MSG_ATTACH_IMAGE, id, code, text);

	if (error.operation != DIOH_OP_PROTOCOL && error.object != DIOH_OBJECT_SESSION)
		expect_place(&error, image->ask ? DIOH_OP_LABEL : DIOH_OP_ATTACH, DIOH_OBJECT_IMAGE, 0);
}

/* One buffered descriptor, which is closed here. */
static void refuse_lone(struct raw_manager *m, uint32_t direction, int fd, int code, const char *text)
{
	const struct dioh_msg_attach_image image = { .fds = BUFFERED, .direction = direction };

	refuse_image(m, &image, &fd, code, text);
	close(fd);
}

static struct dioh_msg_attach_image_reply accept_image(const struct dioh_msg_attach_image *image, const int *fds)
{
	struct dioh_msg_attach_image_reply reply;
	struct raw_manager m;
	uint32_t id;

	start(&m);
	id = raw_request_fds(&m, DIOH_MSG_ATTACH_IMAGE, image, sizeof(*image), fds,
	                     (unsigned)__builtin_popcount(image->fds));
	raw_reply(&m, DIOH_MSG_ATTACH_IMAGE, id, &reply, sizeof(reply));
	stop(&m);
	return reply;
}

static void image_of_wrong_kind(void **state)
{
	struct raw_manager m;
	int ends[2], pair[2];

	(void)state;
	assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	start(&m);
	refuse_lone(&m, LOAD, open_path("/", O_RDONLY | O_DIRECTORY), EISDIR, "directory");
	refuse_lone(&m, SAVE, open_path("/", O_RDONLY | O_DIRECTORY), EISDIR, "directory");
	refuse_lone(&m, LOAD, open_path("/", O_PATH), EBADF, "O_PATH");
	refuse_lone(&m, SAVE, reopen(open_file("image", O_RDWR), O_PATH), EBADF, "O_PATH");
	refuse_lone(&m, LOAD, ends[0], EINVAL, "pipe");
	refuse_lone(&m, SAVE, ends[1], EINVAL, "pipe");
	refuse_lone(&m, SAVE, pair[0], EINVAL, "socket");
	refuse_lone(&m, LOAD, pair[1], EINVAL, "socket");
	refuse_lone(&m, SAVE, open_path("/dev/null", O_RDWR), EINVAL, "character device");
	refuse_lone(&m, LOAD, open_path("/dev/zero", O_RDWR), EINVAL, "character device");
	stop(&m);
}

static void image_of_wrong_access(void **state)
{
	struct raw_manager m;

	(void)state;
	start(&m);
	refuse_lone(&m, SAVE, open_file("image", O_RDWR | O_APPEND), EINVAL, "O_APPEND");
	refuse_lone(&m, LOAD, open_file("image", O_RDONLY | O_APPEND), EINVAL, "O_APPEND");
	refuse_lone(&m, SAVE, open_file("image", O_RDONLY), EBADF, "read-only");
	refuse_lone(&m, LOAD, open_file("image", O_WRONLY), EBADF, "write-only");
	stop(&m);
}

static void image_descriptors_that_do_not_fit(void **state)
{
	struct dioh_msg_attach_image image = { .fds = BOTH, .direction = SAVE };
	struct raw_manager m;
	int plain = open_file("image", O_RDWR), other = open_file("other", O_RDWR);
	int direct, other_direct;

	(void)state;
	start(&m);
	refuse_image(&m, &image, (int[]){ plain, plain }, EINVAL, "without O_DIRECT");
	if (has_direct()) {
		direct = open_file("image", O_RDWR | O_DIRECT);
		other_direct = open_file("other", O_RDWR | O_DIRECT);
		refuse_image(&m, &image, (int[]){ plain, other_direct }, EINVAL, "different files");
		refuse_image(&m, &image, (int[]){ direct, other_direct }, EINVAL, "has O_DIRECT");
		refuse_image(&m, &image, (int[]){ direct, plain }, EINVAL, "O_DIRECT");
		refuse_lone(&m, SAVE, direct, EINVAL, "has O_DIRECT");
		refuse_image(&m, &image, (int[]){ plain, reopen(other_direct, O_RDONLY | O_DIRECT) }, EBADF, "direct");
		close(other_direct);
	}
	image.fds = DIRECT;
	refuse_image(&m, &image, &plain, EINVAL, "without O_DIRECT");
	image.fds = BUFFERED | DIRECTORY;
	refuse_image(&m, &image, (int[]){ plain, other }, ENOTDIR, "directory");
	refuse_image(&m, &image, (int[]){ plain, open_path("/", O_PATH) }, EBADF, "O_PATH");
	stop(&m);
	close(plain);
	close(other);
}

static void image_numbers(void **state)
{
	static const struct {
		struct dioh_msg_attach_image image;
		const char *text;
	} cases[] = {
		{ { .base_offset = 1 }, "base_offset" },
		{ { .base_offset = 512 }, "base_offset" },
		{ { .base_offset = DIOH_OFFSET_MAX }, "base_offset" },
		{ { .block_bytes = DIOH_BLOCK_BYTES_MIN / 2 }, "block_bytes" },
		{ { .block_bytes = DIOH_BLOCK_BYTES_MAX * 2 }, "block_bytes" },
		{ { .block_bytes = DIOH_BLOCK_BYTES_MIN + 4096 }, "block_bytes" },
		{ { .in_flight = DIOH_IN_FLIGHT_MAX + 1 }, "in_flight" },
		{ { .workers = DIOH_WORKERS_MAX + 1 }, "workers" },
		{ { .direct = 3 }, "direct" },
		{ { .engine = 4 }, "engine" },
		{ { .ask = 16 }, "ask" },
		{ { .uid = 5 }, "uid" },
		{ { .mode = 0600 }, "mode" },
	};
	struct raw_manager m;
	int plain = open_file("image", O_RDWR);

	(void)state;
	start(&m);
	for (size_t i = 0; i < COUNT(cases); i++) {
		struct dioh_msg_attach_image image = cases[i].image;

		image.fds = BUFFERED;
		image.direction = SAVE;
		refuse_image(&m, &image, &plain, EINVAL, cases[i].text);
	}
	refuse_lone(&m, 0, dup(plain), EINVAL, "direction");
	refuse_lone(&m, 3, dup(plain), EINVAL, "direction");
	stop(&m);
	close(plain);
}

/* ---- label, owner, mode: what takes root is in test_root_label.c ---- */

#define LABEL "system_u:object_r:x:s0"

static const struct {
	struct dioh_msg_attach_image image;
	const char *name;
	const char *option;
	const char *others;
} asks[] = {
	{ { .ask = DIOH_IMAGE_ASK_LABEL_REQUIRED, .label = LABEL }, "label", "--allow=label", "--allow=owner,mode" },
	{ { .ask = DIOH_IMAGE_ASK_LABEL_IF_ENABLED, .label = LABEL }, "label", "--allow=label", "--allow=owner,mode" },
	{ { .ask = DIOH_IMAGE_ASK_OWNER }, "owner", "--allow=owner", "--allow=label,mode" },
	{ { .ask = DIOH_IMAGE_ASK_MODE, .mode = 0640 }, "mode", "--allow=mode", "--allow=label,owner" },
};

static void start_allowing(struct raw_manager *m, const char *option)
{
	const char *args[] = { option, NULL };
	struct raw_options options = RAW_OPTIONS_INIT;

	options.args = option ? args : NULL;
	raw_reach(m, &options, NULL, SAVE, RAW_STAGE_ATTACH);
}

static struct dioh_msg_attach_image asking_for(size_t i)
{
	struct dioh_msg_attach_image image = asks[i].image;

	image.fds = BUFFERED;
	image.direction = SAVE;
	if (image.ask & DIOH_IMAGE_ASK_OWNER) { /* ours already: that takes no privilege */
		image.uid = getuid();
		image.gid = getgid();
	}
	return image;
}

static mode_t mode_of(int fd)
{
	struct stat st;

	assert_int_equal(fstat(fd, &st), 0);
	return st.st_mode & 07777;
}

/* And nothing is done: not even on the descriptor. */
static void image_asks_for_what_is_not_allowed(void **state)
{
	int plain = open_file("image", O_RDWR);
	struct raw_manager m;

	(void)state;
	assert_int_equal(fchmod(plain, 0600), 0);
	for (size_t i = 0; i < COUNT(asks) * 2; i++) {
		struct dioh_msg_attach_image image = asking_for(i / 2);

		start_allowing(&m, i % 2 ? asks[i / 2].others : NULL);
		refuse_image(&m, &image, &plain, EPERM, asks[i / 2].option);
		if (has_direct()) {
			int direct = open_file("image", O_RDWR | O_DIRECT);

			image.fds = DIRECT;
			image.direct = DIOH_DIRECT_NEVER;
			refuse_image(&m, &image, &direct, EPERM, asks[i / 2].option);
			assert_true(fcntl(direct, F_GETFL) & O_DIRECT);
			close(direct);
		}
		stop(&m);
	}
	assert_int_equal(mode_of(plain), 0600);
	close(plain);
}

static bool has_selinux(void)
{
	char context[64] = "";
	int fd = open("/proc/self/attr/current", O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, context, sizeof(context) - 1);

	if (fd >= 0)
		close(fd);
	return n > 0 && strchr(context, ':') != strrchr(context, ':');
}

/* What is refused late leaves the descriptor's flags as they were, too. */
static void refuse_with_direct(struct raw_manager *m, struct dioh_msg_attach_image image)
{
	int direct;

	if (!has_direct())
		return;
	direct = open_file("image", O_RDWR | O_DIRECT);
	image.fds = DIRECT;
	image.direct = DIOH_DIRECT_NEVER;
	refuse_image(m, &image, &direct, EOPNOTSUPP, "SELinux");
	assert_true(fcntl(direct, F_GETFL) & O_DIRECT);
	close(direct);
}

static void image_asks_for_what_is_allowed(void **state)
{
	struct dioh_msg_attach_image_reply reply;
	struct raw_manager m;
	int plain = open_file("image", O_RDWR);

	(void)state;
	assert_int_equal(fchmod(plain, 0600), 0);
	for (size_t i = 0; i < COUNT(asks); i++) {
		const struct dioh_msg_attach_image image = asking_for(i);
		const bool label = strcmp(asks[i].name, "label") == 0;

		if (label && has_selinux())
			continue; /* that label is none: tests/vm has real ones */
		start_allowing(&m, i % 2 ? asks[i].option : "--allow=label,owner,mode");
		if (image.ask & DIOH_IMAGE_ASK_LABEL_REQUIRED) {
			refuse_image(&m, &image, &plain, EOPNOTSUPP, "SELinux");
			refuse_with_direct(&m, image);
		} else {
			raw_reply(&m, DIOH_MSG_ATTACH_IMAGE,
			          raw_request_fds(&m, DIOH_MSG_ATTACH_IMAGE, &image, sizeof(image), &plain, 1), &reply,
			          sizeof(reply));
			assert_int_equal(reply.done, label ? 0 : image.ask);
			assert_string_equal(reply.label_before, "");
			assert_string_equal(reply.label_after, "");
		}
		stop(&m);
	}
	assert_int_equal(mode_of(plain), 0640);
	close(plain);
}

/* Nobody who is not root can give a file away; that ends nothing. */
static void unprivileged_manager_gives_nothing_away(void **state)
{
	struct dioh_msg_attach_image image = {
		.fds = BUFFERED, .direction = SAVE, .ask = DIOH_IMAGE_ASK_OWNER, .uid = 1, .gid = 1,
	};
	static const char *const args[] = { "--allow=owner,mode", NULL };
	struct raw_options options = RAW_OPTIONS_INIT;
	int plain = open_file("image", O_RDWR);
	struct dioh_msg_error error;
	struct raw_manager m;

	(void)state;
	options.args = args;
	options.user = 12345;
	raw_reach(&m, &options, NULL, SAVE, RAW_STAGE_ATTACH);
	error = raw_refused(&m, DIOH_MSG_ATTACH_IMAGE,
	                    raw_request_fds(&m, DIOH_MSG_ATTACH_IMAGE, &image, sizeof(image), &plain, 1), EPERM, "uid 1");
	expect_place(&error, DIOH_OP_LABEL, DIOH_OBJECT_IMAGE, 0);
	image.ask = image.uid = image.gid = 0;
	raw_reply(&m, DIOH_MSG_ATTACH_IMAGE,
	          raw_request_fds(&m, DIOH_MSG_ATTACH_IMAGE, &image, sizeof(image), &plain, 1), NULL, 0);
	stop(&m);
	close(plain);
}

static void allow_names_what_there_is(void **state)
{
	static const char *const wrong[] = { "--allow=", "--allow=labels", "--allow=label,", "--allow=owner,,mode",
		                             "--allow=mod", "--allow" };

	(void)state;
	for (size_t i = 0; i < COUNT(wrong); i++) {
		const char *args[] = { wrong[i], NULL };
		struct raw_options options = RAW_OPTIONS_INIT;
		struct raw_manager m;

		options.args = args;
		raw_start(&m, &options);
		raw_ends(&m, 2);
	}
}

static void image_asks_for_what_is_not_served(void **state)
{
	struct dioh_msg_attach_image image = { .fds = BUFFERED, .direction = SAVE };
	struct raw_manager m;
	int plain = open_file("image", O_RDWR);

	(void)state;
	start(&m);
	image.direct = DIOH_DIRECT_REQUIRE;
	refuse_image(&m, &image, &plain, EOPNOTSUPP, "required");
	stop(&m);
	close(plain);
}

static bool is_direct(int fd)
{
	return fcntl(fd, F_GETFL) & O_DIRECT;
}

static void image_is_accepted(void **state)
{
	struct dioh_msg_attach_image image = { .fds = BUFFERED, .direction = SAVE, .base_offset = 8192 };
	struct dioh_msg_attach_image_reply reply;
	int plain = open_file("image", O_RDWR);

	(void)state;
	assert_int_equal(ftruncate(plain, 12345), 0);
	reply = accept_image(&image, &plain);
	assert_int_equal(reply.kind, DIOH_IMAGE_REGULAR);
	assert_int_equal(reply.direct, 0);
	assert_int_equal(reply.notes & DIOH_IMAGE_NOTE_LONE_BUFFERED, DIOH_IMAGE_NOTE_LONE_BUFFERED);
	assert_int_equal(!(reply.notes & DIOH_IMAGE_NOTE_UNCACHED), !!(reply.notes & DIOH_IMAGE_NOTE_DROPPED_BEHIND));
	assert_int_equal(reply.memory_alignment | reply.offset_alignment, 0);
	assert_int_equal(reply.block_bytes, 1 << 20);
	assert_int_equal(reply.in_flight, 16);
	assert_int_equal(reply.workers, 1);
	assert_int_equal(reply.file_bytes, 12345);
	assert_int_not_equal(reply.engine, DIOH_ENGINE_ANY);
	image.fds |= DIRECTORY;
	reply = accept_image(&image, (int[]){ plain, open_path(fixture_dir(), O_RDONLY | O_DIRECTORY) });
	assert_int_equal(reply.kind, DIOH_IMAGE_REGULAR);
	close(plain);
}

/* Two names of one file are one file; and what is asked of the direct descriptor is done with care. */
static void image_with_a_direct_descriptor(void **state)
{
	struct dioh_msg_attach_image image = { .fds = BOTH, .direction = SAVE };
	struct dioh_msg_attach_image_reply reply;
	struct raw_manager m;
	int plain, direct;

	(void)state;
	if (!has_direct()) {
		print_message("skipped: no O_DIRECT here\n");
		skip();
	}
	plain = open_file("image", O_RDWR);
	(void)unlink(fixture_path("second-name"));
	assert_int_equal(link(fixture_path("image"), fixture_path("second-name")), 0);
	direct = open_file("second-name", O_RDWR | O_DIRECT);
	reply = accept_image(&image, (int[]){ plain, direct });
	assert_int_equal(reply.direct, !(reply.notes & DIOH_IMAGE_NOTE_DIRECT_UNSUPPORTED));
	assert_int_equal(reply.direct, reply.offset_alignment > 0);
	/* A refused request has no effect, not even on the descriptor's flags. */
	image.direct = DIOH_DIRECT_NEVER;
	image.ask = DIOH_IMAGE_ASK_MODE;
	image.mode = 0600;
	start(&m);
	refuse_image(&m, &image, (int[]){ plain, direct }, EPERM, "mode");
	image.fds = DIRECT;
	refuse_image(&m, &image, &direct, EPERM, "mode");
	assert_true(is_direct(direct));
	stop(&m);
	image.fds = BOTH;
	image.ask = image.mode = 0;
	reply = accept_image(&image, (int[]){ plain, direct });
	assert_int_equal(reply.direct, 0);
	assert_true(is_direct(direct)); /* the buffered one serves */
	image.fds = DIRECT;
	image.direct = DIOH_DIRECT_PREFER;
	reply = accept_image(&image, &direct);
	assert_int_equal(reply.notes & DIOH_IMAGE_NOTE_LONE_DIRECT, DIOH_IMAGE_NOTE_LONE_DIRECT);
	close(plain);
	close(direct);
}

static void library_sends_no_closed_descriptor(void **state)
{
	struct dioh_spawn_options spawn = DIOH_SPAWN_OPTIONS_INIT;
	struct dioh_image_options options = DIOH_IMAGE_OPTIONS_INIT;
	struct dioh_msg_status_reply status;
	struct dioh_session *session;
	struct dioh_error err;

	(void)state;
	spawn.program = fixture_helper();
	assert_int_equal(dioh_spawn(&spawn, 0, &session, &err), 0);
	options.direction = SAVE;
	assert_int_equal(dioh_attach_image(session, &options, NULL, &err), -EINVAL);
	options.buffered_fd = 999;
	assert_int_equal(dioh_attach_image(session, &options, NULL, &err), -EBADF);
	assert_true(strlen(err.text) > 8);
	assert_int_equal(dioh_status(session, &status, &err), 0);
	must_close(session, 0);
}

static void engine_without_io_uring(void **state)
{
	struct raw_options options = RAW_OPTIONS_INIT;
	struct dioh_msg_attach_image image = { .fds = BUFFERED, .direction = SAVE, .engine = DIOH_ENGINE_IO_URING };
	const struct dioh_msg_finish finish = { 0 };
	struct dioh_msg_attach_image_reply reply;
	struct raw_manager m;
	int plain = open_file("image", O_RDWR);
	uint32_t id;

	(void)state;
	options.no_io_uring = true;
	raw_reach(&m, &options, NULL, SAVE, RAW_STAGE_ATTACH);
	refuse_image(&m, &image, &plain, EOPNOTSUPP, "io_uring");
	image.engine = DIOH_ENGINE_ANY;
	id = raw_request_fds(&m, DIOH_MSG_ATTACH_IMAGE, &image, sizeof(image), &plain, 1);
	raw_reply(&m, DIOH_MSG_ATTACH_IMAGE, id, &reply, sizeof(reply));
	assert_int_equal(reply.engine, DIOH_ENGINE_SYNC);
	assert_true(reply.notes & DIOH_IMAGE_NOTE_ENGINE_FALLBACK);
	stop(&m);
	/* And it does the work. */
	raw_reach(&m, &options, fixture_path("sync"), SAVE, RAW_STAGE_SAVED);
	raw_call(&m, DIOH_MSG_FINISH, &finish, sizeof(finish), NULL, 0);
	assert_int_equal(raw_complete(&m, m.last_id, NULL), 0);
	raw_ends(&m, 0);
	close(plain);
}

/* ---- ATTACH_MEMORY ---- */

static void start_with_image(struct raw_manager *m, uint32_t direction)
{
	const struct dioh_msg_attach_image image = { .fds = BUFFERED, .direction = direction };
	int fd = open_file("image", O_RDWR);
	uint32_t id;

	start(m);
	id = raw_request_fds(m, DIOH_MSG_ATTACH_IMAGE, &image, sizeof(image), &fd, 1);
	raw_reply(m, DIOH_MSG_ATTACH_IMAGE, id, NULL, 0);
	close(fd);
}

static void refuse_memory(struct raw_manager *m, const struct dioh_msg_attach_memory *memory, const int *fds, int code,
                          const char *text)
{
	unsigned count = (unsigned)__builtin_popcount(memory->fds);
	uint32_t id = raw_request_fds(m, DIOH_MSG_ATTACH_MEMORY, memory, sizeof(*memory), fds, count);
	struct dioh_msg_error error = raw_refused(m, DIOH_MSG_ATTACH_MEMORY, id, code, text);

	if (error.operation != DIOH_OP_PROTOCOL)
		expect_place(&error, DIOH_OP_ATTACH, DIOH_OBJECT_MEMORY, memory->memory);
}

static void refuse_memory_fd(struct raw_manager *m, int fd, int code, const char *text)
{
	const struct dioh_msg_attach_memory memory = { .memory = 9, .fds = DIOH_MEMORY_FD_MEMORY };

	refuse_memory(m, &memory, &fd, code, text);
	close(fd);
}

static struct dioh_msg_attach_memory_reply accept_memory(struct raw_manager *m, uint32_t number, int fd)
{
	const struct dioh_msg_attach_memory memory = { .memory = number, .fds = DIOH_MEMORY_FD_MEMORY };
	struct dioh_msg_attach_memory_reply reply;
	uint32_t id = raw_request_fds(m, DIOH_MSG_ATTACH_MEMORY, &memory, sizeof(memory), &fd, 1);

	raw_reply(m, DIOH_MSG_ATTACH_MEMORY, id, &reply, sizeof(reply));
	assert_int_equal(reply.reserved, 0);
	return reply;
}

static void memory_of_wrong_kind(void **state)
{
	struct raw_manager m;
	int ends[2];

	(void)state;
	assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
	start_with_image(&m, SAVE);
	refuse_memory_fd(&m, open_path("/", O_RDONLY), EINVAL, "memory 9: it is a directory");
	refuse_memory_fd(&m, open_path(fixture_path("image"), O_RDWR), EINVAL, "memory 9: it is the image itself");
	refuse_memory_fd(&m, ends[0], EINVAL, "memory 9: it is a pipe");
	refuse_memory_fd(&m, ends[1], EINVAL, "memory 9: it is a pipe");
	refuse_memory_fd(&m, open_path("/dev/zero", O_RDWR), EINVAL, "memory 9: it is a character device");
	refuse_memory_fd(&m, open_path("/", O_PATH), EBADF, "memory 9: ");
	refuse_memory_fd(&m, open_file("image", O_RDWR), EINVAL, "memory 9: it is the image");
	stop(&m);
}

static void memory_of_wrong_access(void **state)
{
	struct raw_manager m;
	int fd = must_memfd("memory", 8192, MFD_ALLOW_SEALING);

	(void)state;
	start_with_image(&m, SAVE);
	refuse_memory_fd(&m, reopen(fd, O_WRONLY), EBADF, "memory 9: it is open write-only");
	assert_int_equal(accept_memory(&m, 1, reopen(fd, O_RDONLY)).bytes, 8192);
	assert_int_equal(accept_memory(&m, 2, reopen(fd, O_RDONLY | O_APPEND)).bytes, 8192);
	stop(&m);
	start_with_image(&m, LOAD);
	refuse_memory_fd(&m, reopen(fd, O_RDWR | O_APPEND), EINVAL, "memory 9: it was opened with O_APPEND");
	refuse_memory_fd(&m, reopen(fd, O_RDONLY), EBADF, "memory 9: it is open read-only");
	refuse_memory_fd(&m, reopen(fd, O_WRONLY), EBADF, "memory 9: it is open write-only");
	assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK), 0);
	assert_int_equal(accept_memory(&m, 1, fd).seals, F_SEAL_SHRINK);
	assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE), 0);
	refuse_memory_fd(&m, dup(fd), EPERM, "memory 9: it is sealed");
	assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), 0);
	refuse_memory_fd(&m, dup(fd), EPERM, "memory 9: it is sealed");
	stop(&m);
	start_with_image(&m, SAVE);
	assert_true(accept_memory(&m, 1, fd).seals & F_SEAL_WRITE);
	stop(&m);
	close(fd);
}

static void memory_numbers(void **state)
{
	struct dioh_msg_attach_memory memory = { .memory = 9, .fds = DIOH_MEMORY_FD_MEMORY };
	struct raw_manager m;
	int fd = must_memfd("memory", 8192, 0);

	(void)state;
	start_with_image(&m, SAVE);
	memory.bytes = 8193;
	refuse_memory(&m, &memory, &fd, ERANGE, "8193");
	memory.bytes = UINT64_MAX;
	refuse_memory(&m, &memory, &fd, EINVAL, "bytes");
	memory.bytes = 0;
	memory.advice = 2;
	refuse_memory(&m, &memory, &fd, EINVAL, "advice");
	memory.advice = 0;
	memory.fds = DIOH_MEMORY_FD_SELECTION;
	refuse_memory(&m, &memory, &fd, EINVAL, "fds");
	memory.fds = 4;
	refuse_memory(&m, &memory, &fd, EINVAL, "fds");
	memory.fds = DIOH_MEMORY_FD_MEMORY;
	memory.memory = DIOH_MEMORIES_MAX;
	refuse_memory(&m, &memory, &fd, EINVAL, "memory 256");
	memory.memory = UINT32_MAX;
	refuse_memory(&m, &memory, &fd, EINVAL, "memory 4294967295");
	for (uint32_t i = 0; i < DIOH_MEMORIES_MAX; i++)
		assert_int_equal(accept_memory(&m, i, fd).kind, DIOH_MEMORY_SHMEM);
	for (memory.memory = 0; memory.memory < DIOH_MEMORIES_MAX; memory.memory += 255)
		refuse_memory(&m, &memory, &fd, EEXIST, "taken");
	stop(&m);
	close(fd);
}

static void refuse_selection(struct raw_manager *m, int selection, int code, const char *text)
{
	const struct dioh_msg_attach_memory memory = { .memory = 9, .fds = 3 };
	int fds[2] = { must_memfd("memory", 8192, 0), selection };

	refuse_memory(m, &memory, fds, code, text);
	close(fds[0]);
	close(fds[1]);
}

static void selection_of_wrong_kind(void **state)
{
	struct raw_manager m;
	int ends[2];

	(void)state;
	assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
	start_with_image(&m, LOAD);
	refuse_selection(&m, ends[0], EINVAL, "selection: it is a pipe");
	refuse_selection(&m, open_path("/", O_RDONLY), EINVAL, "selection: it is a directory");
	refuse_selection(&m, open_path("/dev/zero", O_RDONLY), EINVAL, "selection: it is a character device");
	refuse_selection(&m, open_path("/", O_PATH), EBADF, "selection");
	refuse_selection(&m, open_file("bits", O_WRONLY), EBADF, "selection");
	refuse_selection(&m, open_path(fixture_path("image"), O_RDONLY), EINVAL, "selection: it is the image itself");
	stop(&m);
	close(ends[1]);
}

/* ---- ATTACH_STREAM ---- */

static void refuse_stream(struct raw_manager *m, uint32_t number, int fd, int code, const char *text)
{
	const struct dioh_msg_attach_stream stream = { .stream = number };
	uint32_t id = raw_request_fds(m, DIOH_MSG_ATTACH_STREAM, &stream, sizeof(stream), &fd, 1);
	struct dioh_msg_error error = raw_refused(m, DIOH_MSG_ATTACH_STREAM, id, code, text);

	if (error.operation != DIOH_OP_PROTOCOL)
		expect_place(&error, DIOH_OP_ATTACH, DIOH_OBJECT_STREAM, number);
	close(fd);
}

static void accept_stream(struct raw_manager *m, uint32_t number, int fd, uint32_t kind)
{
	const struct dioh_msg_attach_stream stream = { .stream = number };
	struct dioh_msg_attach_stream_reply reply;
	uint32_t id = raw_request_fds(m, DIOH_MSG_ATTACH_STREAM, &stream, sizeof(stream), &fd, 1);

	raw_reply(m, DIOH_MSG_ATTACH_STREAM, id, &reply, sizeof(reply));
	assert_int_equal(reply.kind, kind);
	assert_int_equal(reply.reserved, 0);
	close(fd);
}

static int new_socket(int type)
{
	int pair[2];

	assert_int_equal(socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, pair), 0);
	close(pair[1]);
	return pair[0];
}

static void streams_of_wrong_kind(void **state)
{
	struct raw_manager m;

	(void)state;
	for (uint32_t direction = SAVE; direction <= LOAD; direction++) {
		start_with_image(&m, direction);
		if (direction == SAVE)
			refuse_stream(&m, 7, open_path("/", O_RDONLY), EINVAL, "stream 7: it is a directory");
		refuse_stream(&m, 7, open_path("/", O_PATH), EBADF, "O_PATH");
		refuse_stream(&m, 7, open_path("/dev/null", O_RDWR), EINVAL, "stream 7: it is a character device");
		refuse_stream(&m, 7, new_socket(SOCK_DGRAM), EINVAL, "stream 7: it is a socket");
		refuse_stream(&m, 7, new_socket(SOCK_SEQPACKET), EINVAL, "stream 7: it is a socket");
		refuse_stream(&m, 7, open_path(fixture_path("image"), O_RDWR), EINVAL, "stream 7: it is the image itself");
		refuse_stream(&m, DIOH_STREAMS_MAX, new_socket(SOCK_STREAM), EINVAL, "stream 64");
		accept_stream(&m, 7, new_socket(SOCK_STREAM), DIOH_STREAM_SOCKET);
		refuse_stream(&m, 7, new_socket(SOCK_STREAM), EEXIST, "taken");
		stop(&m);
	}
}

static void streams_of_wrong_access(void **state)
{
	struct raw_manager m;
	int ends[2];

	(void)state;
	assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
	start_with_image(&m, SAVE);
	refuse_stream(&m, 0, dup(ends[1]), EBADF, "stream 0: it is open write-only");
	refuse_stream(&m, 0, open_file("bytes", O_WRONLY), EBADF, "stream 0: it is open write-only");
	accept_stream(&m, 0, open_file("bytes", O_RDONLY), DIOH_STREAM_FILE);
	for (uint32_t i = 1; i < DIOH_STREAMS_MAX; i++)
		accept_stream(&m, i, dup(ends[0]), DIOH_STREAM_PIPE);
	stop(&m);
	start_with_image(&m, LOAD);
	refuse_stream(&m, 0, dup(ends[0]), EBADF, "stream 0: it is open read-only");
	refuse_stream(&m, 0, open_path("/", O_RDONLY), EBADF, "stream 0: it is open read-only");
	accept_stream(&m, 0, dup(ends[1]), DIOH_STREAM_PIPE);
	stop(&m);
	close(ends[0]);
	close(ends[1]);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(image_of_wrong_kind),
		cmocka_unit_test(image_of_wrong_access),
		cmocka_unit_test(image_descriptors_that_do_not_fit),
		cmocka_unit_test(image_numbers),
		cmocka_unit_test(image_asks_for_what_is_not_allowed),
		cmocka_unit_test(image_asks_for_what_is_allowed),
		cmocka_unit_test(unprivileged_manager_gives_nothing_away),
		cmocka_unit_test(allow_names_what_there_is),
		cmocka_unit_test(image_asks_for_what_is_not_served),
		cmocka_unit_test(image_is_accepted),
		cmocka_unit_test(image_with_a_direct_descriptor),
		cmocka_unit_test(library_sends_no_closed_descriptor),
		cmocka_unit_test(engine_without_io_uring),
		cmocka_unit_test(memory_of_wrong_kind),
		cmocka_unit_test(memory_of_wrong_access),
		cmocka_unit_test(memory_numbers),
		cmocka_unit_test(selection_of_wrong_kind),
		cmocka_unit_test(streams_of_wrong_kind),
		cmocka_unit_test(streams_of_wrong_access),
	};

	return cmocka_run_group_tests_name("attach", tests, NULL, NULL);
}
