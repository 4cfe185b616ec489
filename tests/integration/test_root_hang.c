/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test_root_hang.c - a disk that does not answer: while the image is attached, while pages are written, while FINISH
 * syncs. What the helper tells meanwhile, what a cancel does, how it ends when its manager has gone, and what of it the
 * kernel keeps until the disk answers.
 */
/* timeout: 60 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cleanup.h"
#include "fixture.h"
#include "sick_disk.h"

#define PROMPT_MS 500 /* "at once", on a busy machine */
#define SOON_MS 1500
#define STUCK_MS 3500 /* until STUCK, of --stuck-timeout=1 */
#define LIMIT_S 170  /* of the whole program: should it hang itself */

static const char *const one_second[] = { "--keep-uid", "--stuck-timeout=1", NULL };
static const char *const half_a_minute[] = { "--keep-uid", NULL };
static const char *const short_attach[] = { "--keep-uid", "--attach-timeout=1", NULL };

static struct sick_disk disk;

static void open_disk(void **state)
{
	sick_open(&disk, *state, false);
}

/* ---- attach ---- */

static void expect_killed_by_alarm(int r, const struct dioh_error *err)
{
	assert_int_equal(r, -EPIPE);
	assert_int_equal(err->object, DIOH_OBJECT_SESSION);
	if (!strstr(err->text, "attach timer"))
		fail_msg("does not say how the helper ended: %s", err->text);
}

static void expect_alarm_status(void)
{
	int status = -1;

	assert_int_equal(dioh_close(disk.session, 1000, &status), 0);
	disk.session = NULL;
	disk.pid = 0;
	assert_true(WIFSIGNALED(status));
	assert_int_equal(WTERMSIG(status), SIGALRM);
}

static void expect_untouched(void)
{
	assert_int_equal(fuse_file_count(disk.file, FUSE_WRITE), 0);
	assert_int_equal(fuse_file_count(disk.file, FUSE_SETATTR), 0);
	assert_int_equal(must_blocks_bytes(fuse_file_memfd(disk.file)), 0);
}

static void expect_attach_ends(unsigned after_ms, unsigned before_ms)
{
	const uint64_t begun = now_ms();
	struct dioh_error err;
	int r = sick_attach(&disk, DIOH_DIRECTION_SAVE, short_attach, &err);

	assert_in_range(now_ms() - begun, after_ms, before_ms);
	expect_killed_by_alarm(r, &err);
	expect_alarm_status();
	expect_untouched();
}

/* Whoever should serve the file has been stopped. */
static void attach_to_a_stopped_server_ends(void **state)
{
	open_disk(state);
	/* The test itself opens the file twice. */
	fuse_file_fault(disk.file, FUSE_OPEN, .kind = FUSE_FAULT_FREEZE, .after = 1);
	expect_attach_ends(900, 2500);
}

/* It has taken the request, and gives it up when it is told to. */
static void attach_to_a_hanging_server_ends(void **state)
{
	open_disk(state);
	fuse_file_obey_interrupts(disk.file, true);
	fuse_file_fault(disk.file, FUSE_GETATTR, .kind = FUSE_FAULT_HOLD);
	expect_attach_ends(900, 2500);
}

/* It has taken the request and listens to nothing: the kernel waits, and the signal is obeyed when that is over. */
static void attach_waits_for_a_deaf_server(void **state)
{
	open_disk(state);
	fuse_file_fault(disk.file, FUSE_GETATTR, .kind = FUSE_FAULT_HOLD);
	fuse_file_release_later(disk.file, 1900);
	expect_attach_ends(1800, 3500);
}

/* ---- pages ---- */

static void hold_pages(void)
{
	fuse_file_fault(disk.file, FUSE_WRITE, .kind = FUSE_FAULT_HOLD,
	                .handles = FUSE_HANDLES_DIRECT);
}

static uint32_t begin_hanging_save(const char *const *args)
{
	uint32_t transfer;

	sick_begin_save(&disk, args);
	hold_pages();
	transfer = sick_save_memory(&disk);
	sick_wait_held(&disk, 1, SOON_MS);
	return transfer;
}

static struct dioh_msg_status_reply prompt_status(void)
{
	const uint64_t begun = now_ms();
	struct dioh_msg_status_reply status;
	struct dioh_error err;

	must(dioh_status(disk.session, &status, &err), &err);
	assert_true(now_ms() - begun < PROMPT_MS);
	return status;
}

static uint32_t prompt_cancel(uint32_t transfer)
{
	const uint64_t begun = now_ms();
	struct dioh_error err;
	uint32_t in_flight;

	must(dioh_cancel(disk.session, transfer, &in_flight, &err), &err);
	assert_true(now_ms() - begun < PROMPT_MS);
	return in_flight;
}

static void expect_stuck(unsigned nth)
{
	struct dioh_event event;

	sick_event(&disk, DIOH_EVENT_STUCK, STUCK_MS, &event);
	assert_true(event.stuck.in_flight >= 1);
	assert_true(event.stuck.oldest_ns >= nth * UINT64_C(1000000000));
	assert_true(event.stuck.oldest_ns < (nth + 2) * UINT64_C(1000000000));
}

static void pages_hang_then_cancel(void **state)
{
	struct dioh_msg_status_reply status;
	struct dioh_event event;
	uint32_t transfer;
	unsigned held;

	open_disk(state);
	transfer = begin_hanging_save(one_second);
	expect_stuck(1);
	status = prompt_status();
	assert_int_equal(status.phase, DIOH_PHASE_TRANSFER);
	assert_int_equal(status.transfers, 1);
	assert_true(status.in_flight >= 1 && status.oldest_ns >= UINT64_C(1000000000));
	held = fuse_file_held(disk.file);
	assert_true(status.in_flight >= held);

	assert_true(prompt_cancel(transfer) >= 1);
	sick_no_complete(&disk, 300);
	expect_stuck(2); /* it is said again */
	assert_true(prompt_cancel(0) >= 1);

	fuse_file_release(disk.file, 0);
	assert_int_equal(sick_complete(&disk, transfer, SOON_MS, &event), ECANCELED);
	assert_int_equal(event.error.operation, DIOH_OP_CANCEL);
	status = prompt_status();
	assert_int_equal(status.transfers, 0);
	assert_int_equal(status.in_flight, 0);
	assert_int_equal(status.oldest_ns, 0);
	sick_end(&disk, 1); /* an image that was not finished */
	sick_says_nothing(&disk);
	sick_image_is_refused(&disk, ENODATA);
}

/* STUCK is no error. */
static void pages_hang_then_go_on(void **state)
{
	struct dioh_event event;
	uint32_t transfer;

	open_disk(state);
	transfer = begin_hanging_save(one_second);
	expect_stuck(1);
	fuse_file_release(disk.file, 0);
	assert_int_equal(sick_complete(&disk, transfer, SOON_MS, &event), 0);
	assert_int_equal(sick_complete(&disk, sick_finish(&disk), SOON_MS, &event), 0);
	sick_end(&disk, 0);
	sick_image_is_complete(&disk);
}

/* ---- the manager goes ---- */

static void expect_exit(int wait_status, int status)
{
	assert_true(WIFEXITED(wait_status));
	assert_int_equal(WEXITSTATUS(wait_status), status);
}

static void hangup_waits_for_pages(void **state)
{
	open_disk(state);
	(void)begin_hanging_save(half_a_minute);
	sick_hang_up(&disk);
	sick_not_gone(&disk, 300);
	fuse_file_release(disk.file, 0);
	expect_exit(sick_reap(&disk, 1000), 1);
	sick_says_nothing(&disk);
	sick_image_is_refused(&disk, ENODATA);
}

/* Where the disk works by itself the process can go, and what it gave to the disk lands all the same. */
static void hangup_gives_up_pages_that_land_later(void **state)
{
	unsigned held;

	open_disk(state);
	(void)begin_hanging_save(one_second);
	sick_hang_up(&disk);
	expect_exit(sick_reap(&disk, STUCK_MS), 1);
	sick_says(&disk, "have not come back for", 0);
	held = fuse_file_held(disk.file);
	assert_true(held >= 1);
	assert_int_equal(must_blocks_bytes(fuse_file_memfd(disk.file)) >= MIB, 0); /* tables only */
	fuse_file_release(disk.file, 0);
	for (unsigned i = 0; fuse_file_held(disk.file) > 0 && i < 100; i++)
		(void)poll(NULL, 0, 10);
	assert_true(must_blocks_bytes(fuse_file_memfd(disk.file)) >= held * MIB / 2);
	sick_image_is_refused(&disk, ENODATA);
}

/* Where a thread waits for the disk the helper has said its word and exited, but the kernel keeps it until then. */
static void hangup_gives_up_pages_but_is_kept(void **state)
{
	open_disk(state);
	(void)begin_hanging_save(one_second);
	sick_hang_up(&disk);
	sick_says(&disk, "have not come back for", STUCK_MS);
	sick_not_gone(&disk, 300);
	fuse_file_release(disk.file, 0);
	expect_exit(sick_reap(&disk, SOON_MS), 1);
	sick_image_is_refused(&disk, ENODATA);
}

/* What nobody has taken the kernel can take back. */
static void hangup_gives_up_pages_not_taken(void **state)
{
	const char *sanitizers = getenv("DIOH_SANITIZE");

	if (sanitizers && *sanitizers) {
		print_message("skipped: before it exits LeakSanitizer waits for the thread that waits for the disk\n");
		skip();
	}
	open_disk(state);
	sick_begin_save(&disk, one_second);
	fuse_file_fault(disk.file, FUSE_WRITE, .kind = FUSE_FAULT_FREEZE,
	                .handles = FUSE_HANDLES_DIRECT);
	(void)sick_save_memory(&disk);
	(void)poll(NULL, 0, 200);
	assert_int_equal(fuse_file_hits(disk.file, FUSE_WRITE), 1);
	sick_hang_up(&disk);
	expect_exit(sick_reap(&disk, STUCK_MS), 1);
	sick_says(&disk, "have not come back for", 0);
	fuse_file_release(disk.file, 0);
	sick_image_is_refused(&disk, ENODATA);
}

/* Killing it is no way out, and takes away who would tell when it is over. */
static void kill_does_not_end_a_waiting_thread(void **state)
{
	struct pollfd connection;
	int status;

	open_disk(state);
	(void)begin_hanging_save(half_a_minute);
	kill(disk.pid, SIGKILL);
	sick_not_gone(&disk, 300);
	connection = (struct pollfd){ .fd = dioh_session_fd(disk.session) };
	assert_int_equal(poll(&connection, 1, 0), 0); /* not even the connection has ended */
	fuse_file_release(disk.file, 0);
	status = sick_reap(&disk, SOON_MS);
	assert_true(WIFSIGNALED(status));
	(void)dioh_close(disk.session, 0, NULL);
	disk.session = NULL;
	sick_image_is_refused(&disk, ENODATA);
}

/* ---- loads ---- */

static void begin_hanging_load(int memfd)
{
	struct dioh_memory_options memory = DIOH_MEMORY_OPTIONS_INIT;
	const struct dioh_open_options options = { .layout = DIOH_LAYOUT_DETECT };
	const struct dioh_msg_memory_transfer what = { .region = SICK_REGION, .length = SICK_MEMORY_BYTES };
	struct dioh_msg_open_image_reply info;
	struct dioh_error err;

	must(sick_attach(&disk, DIOH_DIRECTION_LOAD, one_second, &err), &err);
	memory.fd = memfd;
	memory.advice = DIOH_MEMORY_ADVICE_HUGEPAGE; /* pages are read straight into their place */
	must(dioh_attach_memory(disk.session, 0, &memory, NULL, &err), &err);
	must_seal(disk.session);
	must(dioh_open_image(disk.session, &options, &info, &err), &err);
	fuse_file_fault(disk.file, FUSE_READ, .kind = FUSE_FAULT_HOLD, .handles = FUSE_HANDLES_DIRECT);
	must(dioh_load_memory(disk.session, &what, NULL, &err), &err);
	sick_wait_held(&disk, 1, SOON_MS);
}

static bool holds_data(int memfd)
{
	DIOH_AUTO_FD int zeros = must_memfd("zeros", SICK_MEMORY_BYTES, 0);

	/* Prints where they differ, if they do. */
	return !same_bytes(memfd, zeros);
}

/* Why the memory must not be used again: the disk writes into it when nobody reads any more. */
static void hangup_gives_up_reads_that_land_later(void **state)
{
	DIOH_AUTO_FD int memfd = must_memfd("loaded", SICK_MEMORY_BYTES, 0);
	struct dioh_event event;

	open_disk(state);
	sick_begin_save(&disk, one_second);
	assert_int_equal(sick_complete(&disk, sick_save_memory(&disk), SOON_MS, &event), 0);
	assert_int_equal(sick_complete(&disk, sick_finish(&disk), SOON_MS, &event), 0);
	sick_end(&disk, 0);

	begin_hanging_load(memfd);
	expect_stuck(1);
	sick_hang_up(&disk);
	expect_exit(sick_reap(&disk, STUCK_MS), 1);
	assert_false(holds_data(memfd));
	fuse_file_release(disk.file, 0);
	for (unsigned i = 0; fuse_file_held(disk.file) > 0 && i < 100; i++)
		(void)poll(NULL, 0, 10);
	assert_true(holds_data(memfd));
}

/* ---- syncs ---- */

static uint32_t begin_hanging_finish(const char *const *args)
{
	struct dioh_event event;
	uint32_t transfer;

	sick_begin_save(&disk, args);
	assert_int_equal(sick_complete(&disk, sick_save_memory(&disk), SOON_MS, &event), 0);
	fuse_file_fault(disk.file, FUSE_FSYNC, .kind = FUSE_FAULT_HOLD, .times = 1);
	transfer = sick_finish(&disk);
	sick_wait_held(&disk, 1, SOON_MS);
	return transfer;
}

static void expect_sync_progress(uint32_t transfer)
{
	struct dioh_event event;

	for (unsigned i = 0; i < 3; i++) {
		sick_event(&disk, DIOH_EVENT_PROGRESS, SOON_MS, &event);
		assert_int_equal(event.phase, DIOH_PHASE_SYNC);
		assert_int_equal(event.progress_count, 1);
		assert_int_equal(event.progress[0].transfer, transfer);
		assert_int_equal(event.progress[0].phase, DIOH_PHASE_SYNC);
	}
}

static void finish_hangs_then_goes_on(void **state)
{
	struct dioh_event event;
	uint32_t transfer;

	open_disk(state);
	transfer = begin_hanging_finish(one_second);
	expect_sync_progress(transfer);
	assert_int_equal(prompt_status().phase, DIOH_PHASE_SYNC);
	expect_stuck(1);
	expect_sync_progress(transfer);
	fuse_file_release(disk.file, 0);
	assert_int_equal(sick_complete(&disk, transfer, SOON_MS, &event), 0);
	assert_true(event.complete.sync_ns >= UINT64_C(1000000000));
	sick_end(&disk, 0);
	sick_image_is_complete(&disk);
}

/* STUCK tells the age of the sync that hangs, not of all that FINISH has had to wait for. */
static void stuck_is_of_one_sync(void **state)
{
	struct dioh_event event;
	uint64_t released_ms;
	uint32_t transfer;

	open_disk(state);
	sick_begin_save(&disk, one_second);
	assert_int_equal(sick_complete(&disk, sick_save_memory(&disk), SOON_MS, &event), 0);
	fuse_file_fault(disk.file, FUSE_FSYNC, .kind = FUSE_FAULT_HOLD);
	transfer = sick_finish(&disk);
	expect_stuck(1);
	released_ms = now_ms();
	fuse_file_release_held(disk.file);
	do /* one of the first sync's may be on its way */
		sick_event(&disk, DIOH_EVENT_STUCK, STUCK_MS, &event);
	while (event.stuck.oldest_ns / 1000000 > now_ms() - released_ms + 1 && now_ms() - released_ms < STUCK_MS);
	assert_in_range(event.stuck.oldest_ns / 1000000, 1000, now_ms() - released_ms + 1);
	assert_true(fuse_file_hits(disk.file, FUSE_FSYNC) >= 2);
	fuse_file_release(disk.file, 0);
	assert_int_equal(sick_complete(&disk, transfer, SOON_MS, &event), 0);
	sick_end(&disk, 0);
}

static void finish_hangs_then_cancel(void **state)
{
	struct dioh_event event;
	uint32_t transfer;

	open_disk(state);
	transfer = begin_hanging_finish(half_a_minute);
	assert_int_equal(prompt_cancel(transfer), 0); /* page I/Os, of which there are none */
	sick_no_complete(&disk, 300);
	assert_int_equal(prompt_status().phase, DIOH_PHASE_SYNC);
	fuse_file_release(disk.file, 0);
	assert_int_equal(sick_complete(&disk, transfer, SOON_MS, &event), ECANCELED);
	sick_end(&disk, 1);
	sick_image_is_refused(&disk, ENODATA);
}

static void finish_hangs_and_manager_goes(void **state)
{
	open_disk(state);
	(void)begin_hanging_finish(one_second);
	sick_hang_up(&disk);
	sick_says(&disk, "have not come back for", STUCK_MS);
	sick_not_gone(&disk, 300); /* its thread waits in fsync(2) */
	fuse_file_release(disk.file, 0);
	expect_exit(sick_reap(&disk, SOON_MS), 1);
	sick_image_is_refused(&disk, ENODATA);
}

/* A helper that has been left alone in FINISH still finishes, as soon as it can. */
static void finish_hangs_manager_goes_disk_returns(void **state)
{
	open_disk(state);
	(void)begin_hanging_finish(half_a_minute);
	sick_hang_up(&disk);
	sick_not_gone(&disk, 300);
	fuse_file_release(disk.file, 0);
	expect_exit(sick_reap(&disk, 1000), 1);
	sick_image_is_refused(&disk, ENODATA);
}

/* ---- all of them ---- */

#define CASE(test, engine) { #test " (" #engine ")", test, NULL, sick_teardown, (void *)(uintptr_t)&(engine) }
#define CASE_EACH(test) CASE(test, sick_uring), CASE(test, sick_uring_thread), CASE(test, sick_sync)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(attach_to_a_stopped_server_ends, sick_uring),
		CASE(attach_to_a_hanging_server_ends, sick_uring),
		CASE(attach_waits_for_a_deaf_server, sick_uring),
		CASE_EACH(pages_hang_then_cancel),
		CASE(pages_hang_then_go_on, sick_uring),
		CASE(pages_hang_then_go_on, sick_sync),
		CASE_EACH(hangup_waits_for_pages),
		CASE(hangup_gives_up_pages_that_land_later, sick_uring),
		CASE(hangup_gives_up_pages_but_is_kept, sick_uring_thread),
		CASE(hangup_gives_up_pages_but_is_kept, sick_sync),
		CASE(hangup_gives_up_pages_not_taken, sick_uring_thread),
		CASE(hangup_gives_up_pages_not_taken, sick_sync),
		CASE(kill_does_not_end_a_waiting_thread, sick_uring_thread),
		CASE(kill_does_not_end_a_waiting_thread, sick_sync),
		CASE(hangup_gives_up_reads_that_land_later, sick_uring),
		CASE(finish_hangs_then_goes_on, sick_uring),
		CASE(stuck_is_of_one_sync, sick_uring),
		CASE(finish_hangs_then_cancel, sick_uring),
		CASE(finish_hangs_and_manager_goes, sick_uring),
		CASE(finish_hangs_manager_goes_disk_returns, sick_uring),
	};

	alarm(LIMIT_S);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
