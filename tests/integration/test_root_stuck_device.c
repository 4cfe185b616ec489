/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test_root_stuck_device.c - a block device that stops answering: a loop device over a disk of ours (fuse_file.h). What a
 * manager was told then is what happens, also when the device comes back after the helper has gone.
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
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fixture.h"
#include "loop_device.h"
#include "sick_disk.h"

#define SOON_MS 5000
#define STUCK_MS 8000 /* until STUCK, of --stuck-timeout=1 */
#define LIMIT_S 100
#define DEVICE_BYTES (64 * MIB)

static const char *const one_second[] = { "--keep-uid", "--stuck-timeout=1", NULL };

static const struct sick_engine uring = { .engine = DIOH_ENGINE_IO_URING };
static const struct sick_engine libaio = { .engine = DIOH_ENGINE_LIBAIO };
static const struct sick_engine threads = { .engine = DIOH_ENGINE_SYNC };

static struct sick_disk disk;
static struct loop_device device = { .fd = -1 };

static void open_device(void **state)
{
	const char *why;
	int file;

	sick_open(&disk, *state, false);
	assert_int_equal(ftruncate(fuse_file_memfd(disk.file), DEVICE_BYTES), 0);
	file = open(fuse_file_path(disk.file), O_RDWR | O_CLOEXEC);
	assert_true(file >= 0);
	why = loop_device_open(&device, file);
	close(file);
	if (why) {
		print_message("skipped: %s\n", why);
		skip();
	}
	disk.path = device.path;
}

static uint32_t begin_stuck_save(void)
{
	uint32_t transfer;

	sick_begin_save(&disk, one_second);
	fuse_file_fault(disk.file, FUSE_WRITE, .kind = FUSE_FAULT_HOLD);
	transfer = sick_save_memory(&disk);
	sick_wait_held(&disk, 1, SOON_MS);
	return transfer;
}

static void expect_exit(int wait_status)
{
	assert_true(WIFEXITED(wait_status));
	assert_int_equal(WEXITSTATUS(wait_status), 1);
}

/* What is on the disk by now, of what the guest had. */
static uint64_t landed(void)
{
	return must_blocks_bytes(fuse_file_memfd(disk.file));
}

/* A new save does, and all of it: the older I/O is over by then, or it would be in it. */
static void save_again(void)
{
	struct dioh_event event;

	sick_begin_save(&disk, one_second);
	assert_int_equal(sick_complete(&disk, sick_save_memory(&disk), SOON_MS, &event), 0);
	assert_int_equal(sick_complete(&disk, sick_finish(&disk), SOON_MS, &event), 0);
	sick_end(&disk, 0);
	sick_image_is_complete(&disk);
}

/* No COMPLETE before the device has answered. */
static void cancel_waits_for_the_device(void **state)
{
	struct dioh_event event;
	struct dioh_error err;
	uint32_t transfer, in_flight;

	open_device(state);
	transfer = begin_stuck_save();
	sick_event(&disk, DIOH_EVENT_STUCK, STUCK_MS, &event);
	assert_true(event.stuck.in_flight >= 1);
	must(dioh_cancel(disk.session, transfer, &in_flight, &err), &err);
	assert_true(in_flight >= 1);
	sick_no_complete(&disk, 300);
	fuse_file_release(disk.file, 0);
	assert_int_equal(sick_complete(&disk, transfer, SOON_MS, &event), ECANCELED);
	sick_end(&disk, 1);
	sick_image_is_refused(&disk, ENODATA);
	save_again();
}

/* With io_uring the helper can be reaped, and its writes land when the device is back: that is why nothing may be reused. */
static void writes_land_after_the_helper(void **state)
{
	uint64_t before;

	open_device(state);
	(void)begin_stuck_save();
	sick_hang_up(&disk);
	expect_exit(sick_reap(&disk, STUCK_MS));
	sick_says(&disk, "have not come back for", 0);
	before = landed();
	assert_true(before < 2 * MIB); /* tables only */
	fuse_file_release(disk.file, 0);
	for (unsigned i = 0; landed() < before + 2 * MIB && i < 500; i++)
		(void)poll(NULL, 0, 10);
	assert_true(landed() >= before + 2 * MIB);
	sick_image_is_refused(&disk, ENODATA);
	save_again();
}

/* The other engines' I/O the kernel does not let a process leave behind: it has said its word, and goes when the disk does. */
static void helper_is_kept_for_the_device(void **state)
{
	open_device(state);
	(void)begin_stuck_save();
	sick_hang_up(&disk);
	sick_says(&disk, "have not come back for", STUCK_MS);
	sick_not_gone(&disk, 300);
	fuse_file_release(disk.file, 0);
	expect_exit(sick_reap(&disk, SOON_MS));
	sick_image_is_refused(&disk, ENODATA);
	save_again();
}

/* The device comes back with an error for what it had taken. */
static void device_comes_back_with_an_error(void **state)
{
	struct dioh_event event;
	uint32_t transfer;

	open_device(state);
	transfer = begin_stuck_save();
	fuse_file_release(disk.file, EIO);
	assert_int_equal(sick_complete(&disk, transfer, SOON_MS, &event), EIO);
	assert_int_equal(event.error.operation, DIOH_OP_WRITE);
	assert_int_equal(event.error.object, DIOH_OBJECT_IMAGE);
	sick_end(&disk, 1);
	sick_image_is_refused(&disk, ENODATA);
	save_again();
}

static int tear_down(void **state)
{
	loop_device_close(&device);
	disk.path = NULL;
	return sick_teardown(state);
}

#define CASE(test, engine) \
	{ #test ", " #engine, test, NULL, tear_down, (void *)(uintptr_t)&engine }

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(cancel_waits_for_the_device, uring),
		CASE(cancel_waits_for_the_device, libaio),
		CASE(cancel_waits_for_the_device, threads),
		CASE(writes_land_after_the_helper, uring),
		CASE(helper_is_kept_for_the_device, libaio),
		CASE(helper_is_kept_for_the_device, threads),
		CASE(device_comes_back_with_an_error, uring),
		CASE(device_comes_back_with_an_error, libaio),
		CASE(device_comes_back_with_an_error, threads),
	};

	alarm(LIMIT_S);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
