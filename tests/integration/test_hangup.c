/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test_hangup.c - managers that go away, that never read, and helpers that are killed: the helper is gone soon after,
 * no child is left, and what the image says is true.
 */
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
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cleanup.h"
#include "fixture.h"
#include "mapped_ram_format.h"
#include "qemu_maker.h"
#include "raw_manager.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define SAVE DIOH_DIRECTION_SAVE
#define LOAD DIOH_DIRECTION_LOAD

#define BIG_BYTES (256 * MIB)
#define END_MS 5000 /* it shall be one second; a loaded machine may take longer */
#define FLOOD 20000u
#define STREAMS 8u

/* ---- what the image says ---- */

/* 0: complete; else what OPEN_IMAGE is refused with. */
static int image_error(const char *path)
{
	const struct fixture_image image = { .path = path, .no_direct = true };
	const struct dioh_open_options options = { .layout = DIOH_LAYOUT_DETECT };
	struct dioh_session *session = must_session(&image, LOAD);
	struct dioh_msg_open_image_reply info;
	struct dioh_error err;
	int r;

	must_seal(session);
	r = dioh_open_image(session, &options, &info, &err);
	must_close(session, 0);
	return -r;
}

/* A fresh copy, so that each test finds a complete image to spoil. */
static const char *complete_image(void)
{
	const char *path = fixture_path("complete");

	(void)unlink(path);
	raw_make_image(path);
	assert_int_equal(image_error(path), 0);
	return path;
}

/* Whoever is a child of ours was waited for. */
static int no_child_is_left(void **state)
{
	(void)state;
	return waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD ? 0 : -1;
}

/* ---- hanging up ---- */

static void hang_up_at(uint32_t direction, enum raw_stage stage, int status, int error)
{
	const char *path = complete_image();
	struct raw_manager m;

	raw_reach(&m, NULL, path, direction, stage);
	raw_hang_up(&m);
	raw_ends(&m, status);
	assert_int_equal(image_error(path), error);
}

static void manager_hangs_up_in_a_save(void **state)
{
	(void)state;
	hang_up_at(SAVE, RAW_STAGE_START, 0, 0);
	hang_up_at(SAVE, RAW_STAGE_ATTACH, 0, 0);
	hang_up_at(SAVE, RAW_STAGE_IMAGE, 0, 0);
	hang_up_at(SAVE, RAW_STAGE_SEALED, 0, 0);
	hang_up_at(SAVE, RAW_STAGE_TABLE, 1, 0); /* the old image has not been touched yet */
	hang_up_at(SAVE, RAW_STAGE_READY, 1, ENODATA);
	hang_up_at(SAVE, RAW_STAGE_TRANSFER, 1, ENODATA);
	hang_up_at(SAVE, RAW_STAGE_SAVED, 1, ENODATA);
}

static void manager_hangs_up_in_a_load(void **state)
{
	(void)state;
	for (enum raw_stage stage = RAW_STAGE_START; stage <= RAW_STAGE_READY; stage++)
		hang_up_at(LOAD, stage, 0, 0);
	hang_up_at(LOAD, RAW_STAGE_TRANSFER, 1, 0);
}

/* Partial or wholly right, and the status tells which. */
static void hang_up_in_finish(useconds_t delay_us)
{
	const struct dioh_msg_finish finish = { 0 };
	const char *path = fixture_path("finishing");
	struct raw_manager m;
	int status, error;

	(void)unlink(path);
	raw_reach(&m, NULL, path, SAVE, RAW_STAGE_SAVED);
	(void)raw_request(&m, DIOH_MSG_FINISH, &finish, sizeof(finish));
	usleep(delay_us);
	raw_hang_up(&m);
	status = raw_wait(&m);
	assert_true(WIFEXITED(status));
	error = image_error(path);
	if (error != 0)
		assert_int_equal(error, ENODATA);
	assert_int_equal(WEXITSTATUS(status), error != 0);
}

static void manager_hangs_up_during_finish(void **state)
{
	(void)state;
	for (useconds_t delay_us = 0; delay_us <= 20000; delay_us = delay_us * 2 + 50)
		hang_up_in_finish(delay_us);
}

/* The helper finds FINISH and the hangup at once: that is a cancel before the mark. */
static void manager_has_gone_when_finish_is_read(void **state)
{
	const char *path = fixture_path("finishing");
	struct raw_manager m;

	(void)state;
	(void)unlink(path);
	raw_reach(&m, NULL, path, SAVE, RAW_STAGE_FINISH);
	raw_hang_up(&m);
	raw_continue(&m);
	raw_ends(&m, 1);
	assert_int_equal(image_error(path), ENODATA);
}

/* ---- big transfers, by the library ---- */

static int big_memory(void)
{
	static int fd = -1;

	if (fd < 0) {
		fd = must_memfd("big", BIG_BYTES, 0);
		must_fill(fd, 0, BIG_BYTES, 7);
	}
	return fd;
}

static struct dioh_session *begin_big_save(const char *path, uint32_t *ret_transfer)
{
	const struct fixture_image image = { .path = path };
	const struct dioh_msg_entry entry = region_entry(1, "big", BIG_BYTES);
	const struct dioh_create_options create = { .layout = DIOH_LAYOUT_CONTAINER, .entry_count = 1,
		                                    .entries = &entry };
	const struct dioh_msg_memory_transfer what = { .region = 1, .length = BIG_BYTES };
	struct dioh_session *session = must_session(&image, SAVE);
	struct dioh_error err;

	must_attach_memory(session, 0, big_memory(), -1);
	must_seal(session);
	must(dioh_create_image(session, &create, NULL, &err), &err);
	must(dioh_save_memory(session, &what, ret_transfer, &err), &err);
	return session;
}

static void expect_end(struct dioh_session *session, int status)
{
	const uint64_t begun = now_ms();
	int wait_status = -1;

	assert_int_equal(dioh_close(session, END_MS, &wait_status), 0);
	assert_true(WIFEXITED(wait_status));
	assert_int_equal(WEXITSTATUS(wait_status), status);
	if (now_ms() - begun > 1000)
		print_message("the helper took %d ms to end\n", (int)(now_ms() - begun));
}

static void manager_hangs_up_in_a_big_transfer(void **state)
{
	const struct fixture_region region = { .number = 1, .name = "big", .memfd = big_memory(),
		                               .bytes = BIG_BYTES };
	const struct dioh_msg_memory_transfer what = { .region = 1, .length = BIG_BYTES };
	const struct fixture_image image = { .path = fixture_path("big") };
	const struct dioh_open_options open_options = { .layout = DIOH_LAYOUT_DETECT };
	struct dioh_session *session;
	struct dioh_error err;
	uint32_t transfer;

	(void)state;
	session = begin_big_save(image.path, &transfer);
	expect_end(session, 1);
	assert_int_equal(image_error(image.path), ENODATA);
	must(fixture_save(&image, &region, 1, 0, NULL, &err), &err);
	session = must_session(&image, LOAD);
	must_attach_memory(session, 0, must_memfd("destination", BIG_BYTES, 0), -1);
	must_seal(session);
	must(dioh_open_image(session, &open_options, NULL, &err), &err);
	must(dioh_load_memory(session, &what, &transfer, &err), &err);
	expect_end(session, 1);
	assert_int_equal(image_error(image.path), 0);
	(void)unlink(image.path);
}

static void kill_helper(int signal_number, const char *name)
{
	const char *path = fixture_path("killed");
	struct dioh_session *session;
	struct dioh_error err;
	uint32_t transfer;
	int status = 0;

	(void)unlink(path);
	session = begin_big_save(path, &transfer);
	assert_int_equal(kill(dioh_session_pid(session), signal_number), 0);
	assert_int_equal(dioh_wait(session, transfer, NULL, &err), -EPIPE);
	assert_int_equal(err.object, DIOH_OBJECT_SESSION);
	if (!strstr(err.text, name))
		fail_msg("does not say how it ended: %s", err.text);
	assert_int_equal(dioh_status(session, NULL, &err), -EPIPE);
	assert_int_equal(dioh_close(session, END_MS, &status), 0);
	assert_true(WIFSIGNALED(status));
	assert_int_equal(WTERMSIG(status), signal_number);
	assert_int_equal(image_error(path), ENODATA);
	(void)unlink(path);
}

static void helper_is_killed(void **state)
{
	(void)state;
	kill_helper(SIGKILL, "SIGKILL");
	kill_helper(SIGTERM, "SIGTERM");
}

/* ---- a manager that dies while somebody else has its socket ---- */

struct orphans {
	pid_t helper;
	pid_t holder;
};

/* In a child: a manager that starts a helper, and a process that has nothing to do with it but the socket. */
static _Noreturn void live_and_die(int report_fd, bool with_pidfd)
{
	const struct dioh_msg_hello hello = { .version_min = 1, .version_max = 1 };
	struct orphans orphans;
	struct raw_manager m;
	int pidfd;
	uint32_t id;

	raw_start(&m, NULL);
	orphans.helper = m.pid;
	orphans.holder = fork();
	if (orphans.holder == 0) {
		alarm(20); /* should the test not get to its end */
		pause();
		_exit(0);
	}
	pidfd = (int)syscall(SYS_pidfd_open, getpid(), 0);
	id = raw_request_fds(&m, DIOH_MSG_HELLO, &hello, sizeof(hello), &pidfd, with_pidfd);
	raw_reply(&m, DIOH_MSG_HELLO, id, NULL, 0);
	if (write(report_fd, &orphans, sizeof(orphans)) != sizeof(orphans))
		_exit(1);
	_exit(0);
}

static struct orphans leave_orphans(bool with_pidfd)
{
	struct orphans orphans;
	int ends[2], status;
	pid_t manager;

	assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
	fflush(NULL);
	manager = fork();
	if (manager == 0)
		live_and_die(ends[1], with_pidfd);
	close(ends[1]);
	assert_int_equal(read(ends[0], &orphans, sizeof(orphans)), sizeof(orphans));
	close(ends[0]);
	assert_int_equal(waitpid(manager, &status, 0), manager);
	assert_int_equal(status, 0);
	return orphans;
}

static bool ends_within(pid_t pid, int timeout_ms, int *ret_status)
{
	int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	struct pollfd end = { pidfd, POLLIN, 0 };
	bool ended = poll(&end, 1, timeout_ms) == 1;

	close(pidfd);
	if (ended)
		assert_int_equal(waitpid(pid, ret_status, 0), pid);
	return ended;
}

static void manager_dies_but_not_its_socket(void **state)
{
	struct orphans orphans;
	int status;

	(void)state;
	assert_int_equal(prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), 0);
	orphans = leave_orphans(true);
	assert_true(ends_within(orphans.helper, END_MS, &status));
	assert_int_equal(status, 0);
	kill(orphans.holder, SIGKILL);
	assert_true(ends_within(orphans.holder, END_MS, &status));
	/* Without the pidfd it is the socket alone that tells. */
	orphans = leave_orphans(false);
	assert_false(ends_within(orphans.helper, 300, &status));
	kill(orphans.holder, SIGKILL);
	assert_true(ends_within(orphans.holder, END_MS, &status));
	assert_true(ends_within(orphans.helper, END_MS, &status));
	assert_int_equal(status, 0);
}

/* ---- an image that takes long to be opened ---- */

/* QEMU's setup for a block as large as it may be: a file of a few pages that claims a bitmap of 2 GiB. */
static void put_vast_setup(int fd, struct dioh_qemu_setup *setup)
{
	struct dioh_record_region region = { 0 };
	struct dioh_record_extent extent = { 0 };
	struct dioh_record_head head = { .version = DIOH_RECORD_VERSION };
	struct dioh_mapped_ram_plan plan;
	struct dioh_error err;
	uint8_t bytes[1024];
	size_t count;

	must(dioh_mapped_ram_plan(setup, 0, 0, &head, &region, &extent, &plan, &err), &err);
	count = dioh_mapped_ram_put_extent(bytes, setup, 0);
	assert_true(count <= sizeof(bytes));
	assert_int_equal(pwrite(fd, bytes, count, 0), count);
	assert_int_equal(ftruncate(fd, (off_t)plan.tail_offset + DIOH_PAGE_BYTES), 0);
	/* The setup's end and its footer. */
	assert_int_equal(pwrite(fd, "\0\0\0\0\0\0\0\x10\x7e\0\0\0\x02", 13, (off_t)plan.tail_offset), 13);
}

static int vast_image(void)
{
	int fd = must_memfd("vast", DIOH_PAGE_BYTES, 0);
	const struct dioh_qemu_block block = { .name = "vast", .bytes = DIOH_PAGE_BYTES };
	struct qemu_maker q;

	qemu_start(&q, &block, 1, DIOH_QEMU_MAPPED_RAM);
	q.setup.total_bytes = q.blocks[0].bytes = DIOH_MEMORY_BYTES_MAX;
	put_vast_setup(fd, &q.setup);
	qemu_free(&q);
	return fd;
}

/* The helper is at it, or stands still with the request in front of it. Answers the request's id. */
static uint32_t begin_to_open_vast(struct raw_manager *m)
{
	const struct dioh_msg_attach_image image = { .fds = DIOH_IMAGE_FD_BUFFERED, .direction = LOAD };
	const struct dioh_msg_open_image open = { .layout = DIOH_LAYOUT_DETECT, .flags = DIOH_OPEN_INSPECT };
	const struct dioh_msg_seal seal = { 0 };
	int fd = vast_image();
	uint32_t id;

	raw_reach(m, NULL, NULL, LOAD, RAW_STAGE_ATTACH);
	id = raw_request_fds(m, DIOH_MSG_ATTACH_IMAGE, &image, sizeof(image), &fd, 1);
	raw_reply(m, DIOH_MSG_ATTACH_IMAGE, id, NULL, 0);
	close(fd);
	raw_call(m, DIOH_MSG_SEAL, &seal, sizeof(seal), NULL, 0);
	raw_stop(m);
	return raw_request(m, DIOH_MSG_OPEN_IMAGE, &open, sizeof(open));
}

static void vast_image_is_left_alone(void **state)
{
	const struct dioh_msg_cancel all = { 0 };
	struct dioh_msg_cancel_reply cancelled;
	struct raw_manager m;
	uint32_t open, cancel;

	(void)state;
	open = begin_to_open_vast(&m);
	cancel = raw_request(&m, DIOH_MSG_CANCEL, &all, sizeof(all));
	raw_continue(&m);
	raw_reply(&m, DIOH_MSG_CANCEL, cancel, &cancelled, sizeof(cancelled));
	(void)raw_refused(&m, DIOH_MSG_OPEN_IMAGE, open, ECANCELED, NULL);
	raw_hang_up(&m);
	raw_ends(&m, 0);
	(void)begin_to_open_vast(&m);
	raw_continue(&m);
	(void)raw_status_phase(&m); /* it has been read */
	raw_hang_up(&m);
	raw_ends(&m, 1);
}

/* ---- a manager that does not read ---- */

/* Sends until nothing has gone for a while; how many went. */
static unsigned flood(struct raw_manager *m, unsigned limit)
{
	struct dioh_msg_header header = { .type = DIOH_MSG_STATUS };
	struct pollfd writable = { m->fd, POLLOUT, 0 };
	unsigned sent = 0;

	while (sent < limit && poll(&writable, 1, 200) == 1) {
		header.id = m->last_id + 1;
		if (send(m->fd, &header, sizeof(header), MSG_DONTWAIT | MSG_NOSIGNAL) != sizeof(header))
			break;
		m->last_id++;
		sent++;
	}
	return sent;
}

static uint64_t resident_kib(const struct raw_manager *m)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/status", (int)m->pid);
	return raw_proc_status(path, "VmRSS", 10);
}

static void expect_statuses(struct raw_manager *m, uint32_t first, unsigned count)
{
	struct dioh_msg_status_reply status;

	for (uint32_t id = first; id < first + count; id++)
		raw_reply(m, DIOH_MSG_STATUS, id, &status, sizeof(status));
}

/* Answers how many replies lie unread. */
static unsigned flood_until_stopped(struct raw_manager *m, uint64_t rss_max_kib)
{
	unsigned sent = flood(m, FLOOD);
	uint64_t cpu_ms = raw_proc_cpu_ms(m->pid);

	assert_in_range(sent, 100, FLOOD - 1); /* the socket has stopped us */
	usleep(500000);
	assert_in_range(raw_proc_cpu_ms(m->pid) - cpu_ms, 0, 50);
	assert_in_range(resident_kib(m), 0, rss_max_kib);
	return sent;
}

static void flooded_helper_stays_small_and_still(void **state)
{
	uint64_t rss_max_kib;
	struct raw_manager m;
	uint32_t first;
	unsigned sent;

	(void)state;
	raw_reach(&m, NULL, fixture_path("image"), SAVE, RAW_STAGE_SEALED);
	first = m.last_id + 1;
	sent = flood(&m, 100);
	expect_statuses(&m, first, sent); /* what is allocated once has been */
	rss_max_kib = resident_kib(&m) + 2048;
	for (int i = 0; i < 2; i++) {
		first = m.last_id + 1;
		sent = flood_until_stopped(&m, rss_max_kib);
		expect_statuses(&m, first, sent);
	}
	/* Reading and writing at once, thousands more. */
	for (first = m.last_id + 1; first < 10000; first += sent) {
		sent = flood(&m, 200);
		expect_statuses(&m, first, sent);
	}
	assert_in_range(resident_kib(&m), 0, rss_max_kib);
	raw_hang_up(&m);
	raw_ends(&m, 0);
}

static void attach_pipes(struct raw_manager *m, int *ret_writers)
{
	for (uint32_t i = 0; i < STREAMS; i++) {
		const struct dioh_msg_attach_stream stream = { .stream = i };
		int ends[2];
		uint32_t id;

		assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
		id = raw_request_fds(m, DIOH_MSG_ATTACH_STREAM, &stream, sizeof(stream), &ends[0], 1);
		raw_reply(m, DIOH_MSG_ATTACH_STREAM, id, NULL, 0);
		close(ends[0]);
		ret_writers[i] = ends[1];
	}
}

static void create_streams(struct raw_manager *m)
{
	const struct dioh_msg_create_image create = { .layout = DIOH_LAYOUT_CONTAINER, .stream_count = STREAMS };
	const struct dioh_msg_seal seal = { 0 };
	struct {
		struct dioh_msg_put_table table;
		struct dioh_msg_entry entries[STREAMS];
	} put = { { .count = STREAMS }, { { 0 } } };
	char name[16];

	for (uint32_t i = 0; i < STREAMS; i++) {
		snprintf(name, sizeof(name), "stream %u", (unsigned)i);
		put.entries[i] = stream_entry(i, name);
	}
	raw_call(m, DIOH_MSG_SEAL, &seal, sizeof(seal), NULL, 0);
	raw_call(m, DIOH_MSG_CREATE_IMAGE, &create, sizeof(create), NULL, 0);
	raw_call(m, DIOH_MSG_PUT_TABLE, &put, sizeof(put), NULL, 0);
}

/* Several streams are being saved, and wait for their bytes. */
static void begin_streams(struct raw_manager *m, const char *path, int *ret_writers, uint32_t *ret_ids)
{
	const struct dioh_msg_attach_image image = { .fds = DIOH_IMAGE_FD_BUFFERED, .direction = SAVE };
	int fd = raw_open_image(path, SAVE);
	uint32_t id;

	raw_reach(m, NULL, NULL, SAVE, RAW_STAGE_ATTACH);
	id = raw_request_fds(m, DIOH_MSG_ATTACH_IMAGE, &image, sizeof(image), &fd, 1);
	raw_reply(m, DIOH_MSG_ATTACH_IMAGE, id, NULL, 0);
	close(fd);
	attach_pipes(m, ret_writers);
	create_streams(m);
	for (uint32_t i = 0; i < STREAMS; i++) {
		const struct dioh_msg_stream_transfer what = { .stream = i, .entry = i };

		ret_ids[i] = raw_request(m, DIOH_MSG_SAVE_STREAM, &what, sizeof(what));
		raw_reply(m, DIOH_MSG_SAVE_STREAM, ret_ids[i], NULL, 0);
	}
}

static void feed(int fd)
{
	static const uint8_t bytes[MIB] = { 1 };

	for (size_t done = 0; done < sizeof(bytes);) {
		ssize_t n = write(fd, bytes + done, sizeof(bytes) - done);

		assert_true(n > 0);
		done += (size_t)n;
	}
	close(fd);
}

/* The transfers end although their COMPLETEs find the socket full. */
static void every_complete_waits_for_its_reader(void **state)
{
	const struct dioh_msg_finish finish = { 0 };
	uint32_t ids[STREAMS], first;
	int writers[STREAMS];
	struct raw_manager m;
	unsigned sent;

	(void)state;
	begin_streams(&m, fixture_path("streams"), writers, ids);
	first = m.last_id + 1;
	sent = flood(&m, FLOOD);
	assert_in_range(sent, 1, FLOOD - 1);
	for (uint32_t i = 0; i < STREAMS; i++)
		feed(writers[i]);
	usleep(300000);
	expect_statuses(&m, first, sent);
	for (uint32_t i = 0; i < STREAMS; i++) {
		struct dioh_msg_complete complete;

		assert_int_equal(raw_complete(&m, ids[i], &complete), 0);
		assert_int_equal(complete.total_bytes, MIB);
	}
	raw_call(&m, DIOH_MSG_FINISH, &finish, sizeof(finish), NULL, 0);
	assert_int_equal(raw_complete(&m, m.last_id, NULL), 0);
	raw_ends(&m, 0);
}

/* Hanging up cancels what runs also when the helper is at sending, not at reading. */
static void hangup_is_noticed_behind_a_full_socket(void **state)
{
	uint32_t ids[STREAMS];
	int writers[STREAMS];
	struct raw_manager m;

	(void)state;
	begin_streams(&m, fixture_path("streams"), writers, ids);
	assert_in_range(flood(&m, FLOOD), 1, FLOOD - 1);
	raw_hang_up(&m);
	raw_ends(&m, 1);
	for (uint32_t i = 0; i < STREAMS; i++)
		close(writers[i]);
	assert_int_equal(image_error(fixture_path("streams")), ENODATA);
}

/* The same when it only says that it will send no more: it reads nothing, so nothing moves but that. */
static void half_hangup_is_noticed_behind_a_full_socket(void **state)
{
	uint32_t ids[STREAMS];
	int writers[STREAMS], status;
	struct raw_manager m;

	(void)state;
	begin_streams(&m, fixture_path("streams"), writers, ids);
	assert_in_range(flood(&m, FLOOD), 1, FLOOD - 1);
	assert_int_equal(shutdown(m.fd, SHUT_WR), 0);
	status = raw_wait(&m);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 1);
	raw_hang_up(&m);
	for (uint32_t i = 0; i < STREAMS; i++)
		close(writers[i]);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(manager_hangs_up_in_a_save, no_child_is_left),
		cmocka_unit_test_teardown(manager_hangs_up_in_a_load, no_child_is_left),
		cmocka_unit_test_teardown(manager_hangs_up_during_finish, no_child_is_left),
		cmocka_unit_test_teardown(manager_has_gone_when_finish_is_read, no_child_is_left),
		cmocka_unit_test_teardown(manager_hangs_up_in_a_big_transfer, no_child_is_left),
		cmocka_unit_test_teardown(helper_is_killed, no_child_is_left),
		cmocka_unit_test_teardown(manager_dies_but_not_its_socket, no_child_is_left),
		cmocka_unit_test_teardown(vast_image_is_left_alone, no_child_is_left),
		cmocka_unit_test_teardown(flooded_helper_stays_small_and_still, no_child_is_left),
		cmocka_unit_test_teardown(every_complete_waits_for_its_reader, no_child_is_left),
		cmocka_unit_test_teardown(hangup_is_noticed_behind_a_full_socket, no_child_is_left),
		cmocka_unit_test_teardown(half_hangup_is_noticed_behind_a_full_socket, no_child_is_left),
	};

	return cmocka_run_group_tests_name("hangup", tests, NULL, NULL);
}
