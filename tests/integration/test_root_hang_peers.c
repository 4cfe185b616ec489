/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test_root_hang_peers.c - files that hang (FUSE, fuse_file.h) where no image is expected to: as memory, selection, stream, or
 * as QEMU's stream whose setup is read before an image is created. While they are attached the attach timer ends the helper;
 * later the session goes on talking, and a helper whose manager has gone goes, too. One that answers oddly is refused, and that
 * is all. test_root_hang.c has images.
 */
/* timeout: 120 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fixture.h"
#include "raw_manager.h"
#include "sick_disk.h"

#define SAVE DIOH_DIRECTION_SAVE
#define LOAD DIOH_DIRECTION_LOAD
#define FILE_BYTES (4 * MIB)
#define HANG_S 30
#define MEMORY 9u

static struct fuse_file *file;
static struct raw_manager m;
static bool running;
static int messages = -1, ours; /* standard error, the helper's and our own */

static int open_file(int flags)
{
	int fd = open(fuse_file_path(file), flags | O_CLOEXEC);

	assert_true(fd >= 0);
	return fd;
}

static void open_disk(void)
{
	const struct fuse_file_options options = { .fallocate = true };

	alarm(HANG_S);
	file = sick_file(&options);
	must_fill(fuse_file_memfd(file), 0, FILE_BYTES, 5);
}

static void start(const char *const *args, uint32_t direction, enum raw_stage stage)
{
	struct raw_options options = RAW_OPTIONS_INIT;

	options.args = args;
	messages = must_memfd("messages", 0, 0);
	(void)dup2(messages, STDERR_FILENO); /* the helper's */
	raw_reach(&m, &options, fixture_path("image"), direction, stage);
	(void)dup2(ours, STDERR_FILENO);
	running = true;
}

/* ---- attached ---- */

static void expect_alarm(uint32_t type, const void *payload, size_t size, const int *fds, unsigned fd_count)
{
	static const char *const args[] = { "--keep-uid", "--attach-timeout=1", NULL };
	int status;

	start(args, SAVE, RAW_STAGE_IMAGE);
	fuse_file_obey_interrupts(file, true); /* else the kernel would keep it */
	fuse_file_fault(file, FUSE_GETATTR, .kind = FUSE_FAULT_HOLD);
	(void)raw_request_fds(&m, type, payload, size, fds, fd_count);
	status = raw_wait(&m);
	running = false;
	assert_true(WIFSIGNALED(status));
	assert_int_equal(WTERMSIG(status), SIGALRM);
	raw_hang_up(&m);
	fuse_file_release(file, 0);
}

static void attach_ends(void **state)
{
	const struct dioh_msg_attach_memory memory = { .memory = MEMORY, .fds = DIOH_MEMORY_FD_MEMORY };
	const struct dioh_msg_attach_memory both = { .memory = MEMORY, .fds = DIOH_MEMORY_FD_MEMORY | DIOH_MEMORY_FD_SELECTION };
	const struct dioh_msg_attach_stream stream = { .stream = 7 };
	int fds[2];

	(void)state;
	open_disk();
	fds[1] = open_file(O_RDWR);
	expect_alarm(DIOH_MSG_ATTACH_MEMORY, &memory, sizeof(memory), &fds[1], 1);
	fds[0] = must_memfd("memory", FILE_BYTES, 0);
	expect_alarm(DIOH_MSG_ATTACH_MEMORY, &both, sizeof(both), fds, 2);
	expect_alarm(DIOH_MSG_ATTACH_STREAM, &stream, sizeof(stream), &fds[1], 1);
	close(fds[0]);
	close(fds[1]);
}

/* The kernel keeps it there; then it is too late. */
static void ends_where_it_closes(enum raw_stage stage, uint32_t type, const void *payload, size_t size)
{
	static const char *const args[] = { "--keep-uid", "--attach-timeout=1", NULL };
	int fd, status;

	start(args, SAVE, stage);
	fd = open_file(O_RDWR); /* not before: exec(2) would close it, too */
	fuse_file_fault(file, FUSE_FLUSH, .kind = FUSE_FAULT_HOLD);
	(void)raw_request_fds(&m, type, payload, size, &fd, 1);
	while (fuse_file_held(file) == 0)
		(void)poll(NULL, 0, 1);
	fuse_file_release_later(file, 2000);
	status = raw_wait(&m);
	running = false;
	assert_true(WIFSIGNALED(status));
	assert_int_equal(WTERMSIG(status), SIGALRM);
	close(fd);
	raw_hang_up(&m);
}

/* A descriptor that nobody needs is closed, which asks its server once more: one too many, or what is no pidfd. */
static void attach_ends_where_it_closes(void **state)
{
	const struct fuse_file_options options = { .flush = true };
	const struct dioh_msg_attach_stream taken = { .stream = RAW_STREAM };
	uint8_t hello[DIOH_PAYLOAD_BYTES_MAX];

	(void)state;
	alarm(HANG_S);
	file = sick_file(&options);
	ends_where_it_closes(RAW_STAGE_IMAGE, DIOH_MSG_ATTACH_STREAM, &taken, sizeof(taken));
	ends_where_it_closes(RAW_STAGE_START, DIOH_MSG_HELLO, hello, raw_sample(DIOH_MSG_HELLO, SAVE, hello));
}

/* A file system may answer what it likes: that is no malformed message, which would end the session. */
static void odd_answer_is_a_refusal(void **state)
{
	const struct dioh_msg_attach_memory memory = { .memory = MEMORY, .fds = DIOH_MEMORY_FD_MEMORY };
	int fd;

	(void)state;
	open_disk();
	fd = open_file(O_RDWR);
	start(NULL, SAVE, RAW_STAGE_IMAGE);
	fuse_file_fault(file, FUSE_GETATTR, .kind = FUSE_FAULT_ERROR, .value = EBADMSG);
	raw_refused(&m, DIOH_MSG_ATTACH_MEMORY,
	            raw_request_fds(&m, DIOH_MSG_ATTACH_MEMORY, &memory, sizeof(memory), &fd, 1), EBADMSG, "fstat failed");
	fuse_file_release(file, 0);
	assert_int_equal(raw_status_phase(&m), DIOH_PHASE_ATTACH);
	raw_hang_up(&m);
	raw_ends(&m, 0);
	running = false;
	close(fd);
}

/* ---- moved ---- */

static const char *const one_second[] = { "--keep-uid", "--stuck-timeout=1", NULL };

static void say_sample(uint32_t type, uint32_t direction)
{
	uint8_t payload[DIOH_PAYLOAD_BYTES_MAX];

	raw_call(&m, type, payload, raw_sample(type, direction, payload), NULL, 0);
}

static void attach_and_seal(uint32_t direction, uint32_t type, const void *payload, size_t size, const int *fds,
                            unsigned fd_count)
{
	start(one_second, direction, RAW_STAGE_IMAGE);
	raw_reply(&m, type, raw_request_fds(&m, type, payload, size, fds, fd_count), NULL, 0);
	say_sample(DIOH_MSG_SEAL, direction);
}

static void hang(void)
{
	fuse_file_fault(file, FUSE_READ, .kind = FUSE_FAULT_HOLD);
	fuse_file_fault(file, FUSE_WRITE, .kind = FUSE_FAULT_HOLD);
}

/* Attached, and everything is ready for a transfer; from here on the file hangs. */
static void attach_and_hang(uint32_t direction, uint32_t type, const void *payload, size_t size, const int *fds,
                            unsigned fd_count)
{
	attach_and_seal(direction, type, payload, size, fds, fd_count);
	if (direction == SAVE) {
		say_sample(DIOH_MSG_CREATE_IMAGE, direction);
		say_sample(DIOH_MSG_PUT_TABLE, direction);
	} else {
		say_sample(DIOH_MSG_OPEN_IMAGE, direction);
	}
	hang();
}

static void wait_held(uint32_t phase)
{
	while (fuse_file_held(file) == 0)
		(void)poll(NULL, 0, 1);
	assert_int_equal(raw_status_phase(&m), phase);
}

/* Begins a transfer, which hangs; the session does not. */
static void hangs_in(uint32_t type, const void *payload, size_t size)
{
	raw_call(&m, type, payload, size, NULL, 0);
	wait_held(DIOH_PHASE_TRANSFER);
}

static void hangs_in_memory(uint32_t direction, bool in_selection)
{
	const struct dioh_msg_attach_memory memory = { .memory = MEMORY, .fds = in_selection ? 3 : DIOH_MEMORY_FD_MEMORY };
	const struct dioh_msg_memory_transfer what = { .memory = MEMORY, .region = RAW_REGION, .length = RAW_REGION_BYTES,
		                                       .flags = in_selection ? DIOH_TRANSFER_SELECTION : 0 };
	int fds[2] = { must_memfd("memory", FILE_BYTES, 0), open_file(O_RDWR) };

	must_fill(fds[0], 0, FILE_BYTES, 1);
	attach_and_hang(direction, DIOH_MSG_ATTACH_MEMORY, &memory, sizeof(memory), fds + !in_selection, 1 + in_selection);
	close(fds[0]);
	close(fds[1]);
	hangs_in(direction == SAVE ? DIOH_MSG_SAVE_MEMORY : DIOH_MSG_LOAD_MEMORY, &what, sizeof(what));
}

static void hangs_in_stream(uint32_t direction)
{
	const struct dioh_msg_attach_stream stream = { .stream = 7 };
	const struct dioh_msg_stream_transfer what = { .stream = 7, .entry = RAW_ENTRY };
	int fd = open_file(direction == SAVE ? O_RDONLY : O_WRONLY);

	attach_and_hang(direction, DIOH_MSG_ATTACH_STREAM, &stream, sizeof(stream), &fd, 1);
	close(fd);
	hangs_in(direction == SAVE ? DIOH_MSG_SAVE_STREAM : DIOH_MSG_LOAD_STREAM, &what, sizeof(what));
}

/* QEMU's stream, whose setup is read before an image is created. */
static void hangs_in_setup(void)
{
	const struct dioh_msg_attach_stream stream = { .stream = 7 };
	const struct dioh_msg_create_image create = { .layout = DIOH_LAYOUT_MAPPED_RAM, .stream_count = 1, .stream = 7 };
	const struct {
		struct dioh_msg_put_table table;
		struct dioh_msg_entry entry;
	} table = { { .count = 1 }, { .kind = DIOH_ENTRY_STREAM, .number = 1, .name = "state" } };
	int fd = open_file(O_RDONLY);

	attach_and_seal(SAVE, DIOH_MSG_ATTACH_STREAM, &stream, sizeof(stream), &fd, 1);
	close(fd);
	hang();
	raw_call(&m, DIOH_MSG_CREATE_IMAGE, &create, sizeof(create), NULL, 0);
	(void)raw_request(&m, DIOH_MSG_PUT_TABLE, &table, sizeof(table));
	wait_held(DIOH_PHASE_SYNC);
}

static bool is_gone(void)
{
	siginfo_t info = { 0 };

	assert_int_equal(waitid(P_PID, (id_t)m.pid, &info, WEXITED | WNOHANG | WNOWAIT), 0);
	return info.si_pid != 0;
}

/*
 * Whether the kernel lets go of it before the file answers is not its own to say; that it does not wait any more is. It needs
 * to say nothing where the kernel could take the I/O back.
 */
static void helper_goes(const char *text)
{
	char said[512] = "";
	int status;

	raw_hang_up(&m);
	while (!strstr(said, text) && !is_gone())
		if (pread(messages, said, sizeof(said) - 1, 0) <= 0)
			(void)poll(NULL, 0, 10);
	fuse_file_release(file, 0);
	status = raw_wait(&m);
	running = false;
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 1);
}

static void memory_hangs(void **state)
{
	(void)state;
	open_disk();
	hangs_in_memory(SAVE, false);
	helper_goes("has not ended");
	raw_make_image(fixture_path("image"));
	hangs_in_memory(LOAD, false);
	helper_goes("leaving");
}

static void selection_hangs(void **state)
{
	(void)state;
	open_disk();
	hangs_in_memory(SAVE, true);
	helper_goes("has not ended");
}

/* Nor does the session wait for what its server would have to be asked. */
static void size_hangs(uint32_t direction, bool in_selection, uint32_t advice)
{
	const struct dioh_msg_attach_memory memory = { .memory = MEMORY, .advice = advice,
		                                       .fds = in_selection ? 3 : DIOH_MEMORY_FD_MEMORY };
	const struct dioh_msg_memory_transfer what = { .memory = MEMORY, .region = RAW_REGION, .length = RAW_REGION_BYTES,
		                                       .flags = in_selection ? DIOH_TRANSFER_SELECTION : 0 };
	int fds[2] = { must_memfd("memory", FILE_BYTES, 0), open_file(O_RDWR) };

	must_fill(fds[0], 0, FILE_BYTES, 1);
	attach_and_hang(direction, DIOH_MSG_ATTACH_MEMORY, &memory, sizeof(memory), fds + !in_selection, 1 + in_selection);
	fuse_file_fault(file, FUSE_GETATTR, .kind = FUSE_FAULT_HOLD);
	close(fds[0]);
	close(fds[1]);
	hangs_in(direction == SAVE ? DIOH_MSG_SAVE_MEMORY : DIOH_MSG_LOAD_MEMORY, &what, sizeof(what));
}

static void size_of_memory_hangs(void **state)
{
	(void)state;
	open_disk();
	size_hangs(SAVE, false, DIOH_MEMORY_ADVICE_NONE);
	helper_goes("has not ended");
	size_hangs(SAVE, false, DIOH_MEMORY_ADVICE_HUGEPAGE);
	helper_goes("has not ended");
	size_hangs(SAVE, true, DIOH_MEMORY_ADVICE_NONE);
	helper_goes("has not ended");
	raw_make_image(fixture_path("image"));
	size_hangs(LOAD, false, DIOH_MEMORY_ADVICE_NONE);
	helper_goes("leaving");
}

static void stream_hangs(void **state)
{
	(void)state;
	open_disk();
	hangs_in_stream(SAVE);
	helper_goes("has not ended");
	raw_make_image(fixture_path("image"));
	hangs_in_stream(LOAD);
	helper_goes("has not ended");
}

static void setup_hangs(void **state)
{
	(void)state;
	open_disk();
	hangs_in_setup();
	helper_goes("has not ended");
}

static int tear_down(void **state)
{
	(void)state;
	alarm(0);
	fuse_file_stop(file);
	file = NULL;
	if (running)
		raw_drop(&m);
	running = false;
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(attach_ends, tear_down),
		cmocka_unit_test_teardown(attach_ends_where_it_closes, tear_down),
		cmocka_unit_test_teardown(odd_answer_is_a_refusal, tear_down),
		cmocka_unit_test_teardown(memory_hangs, tear_down),
		cmocka_unit_test_teardown(selection_hangs, tear_down),
		cmocka_unit_test_teardown(size_of_memory_hangs, tear_down),
		cmocka_unit_test_teardown(stream_hangs, tear_down),
		cmocka_unit_test_teardown(setup_hangs, tear_down),
	};

	ours = dup(STDERR_FILENO);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
