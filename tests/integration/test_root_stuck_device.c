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
static const struct sick_engine punches = { .engine = DIOH_ENGINE_SYNC, .fallocate = true };

static struct sick_disk disk;
static struct loop_device device = { .fd = -1 };

static void open_device(void **state, uint64_t bytes)
{
	const char *why;
	int file;

	sick_open(&disk, *state, false);
	assert_int_equal(ftruncate(fuse_file_memfd(disk.file), (off_t)bytes), 0);
	file = open(fuse_file_path(disk.file), O_RDWR | O_CLOEXEC);
	assert_true(file >= 0);
	why = loop_device_open(&device, file, 512);
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

	open_device(state, DEVICE_BYTES);
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

	open_device(state, DEVICE_BYTES);
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
	open_device(state, DEVICE_BYTES);
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

	open_device(state, DEVICE_BYTES);
	transfer = begin_stuck_save();
	fuse_file_release(disk.file, EIO);
	assert_int_equal(sick_complete(&disk, transfer, SOON_MS, &event), EIO);
	assert_int_equal(event.error.operation, DIOH_OP_WRITE);
	assert_int_equal(event.error.object, DIOH_OBJECT_IMAGE);
	sick_end(&disk, 1);
	sick_image_is_refused(&disk, ENODATA);
	save_again();
}

/* ---- absent pages of a raw image ---- */

#define EMPTY_BYTES (8 * GIB)
#define OLD 0x5a

/* One byte of every GiB is left of something older; sparse, and so is the device. */
static void open_old_device(void **state)
{
	static const uint8_t old = OLD;

	open_device(state, EMPTY_BYTES);
	for (uint64_t at = 0; at < EMPTY_BYTES; at += GIB)
		assert_int_equal(pwrite(fuse_file_memfd(disk.file), &old, 1, (off_t)at), 1);
}

static unsigned count_old(void)
{
	unsigned count = 0;

	for (uint64_t at = 0; at < EMPTY_BYTES; at += GIB) {
		uint8_t byte;

		assert_int_equal(pread(fuse_file_memfd(disk.file), &byte, 1, (off_t)at), 1);
		count += byte == OLD;
	}
	return count;
}

static uint32_t begin_empty_save(void)
{
	const struct dioh_msg_entry entry = region_entry(SICK_REGION, "ram", EMPTY_BYTES);
	const struct dioh_create_options create = { .layout = DIOH_LAYOUT_RAW, .entry_count = 1, .entries = &entry };
	const struct dioh_msg_memory_transfer what = { .region = SICK_REGION, .length = EMPTY_BYTES };
	struct dioh_error err;
	uint32_t transfer;
	int memory = must_memfd("empty", EMPTY_BYTES, 0);

	must(sick_attach(&disk, DIOH_DIRECTION_SAVE, one_second, &err), &err);
	must_attach_memory(disk.session, 0, memory, -1);
	must_seal(disk.session);
	must(dioh_create_image(disk.session, &create, NULL, &err), &err);
	fuse_file_fault(disk.file, FUSE_FALLOCATE, .kind = FUSE_FAULT_HOLD);
	must(dioh_save_memory(disk.session, &what, &transfer, &err), &err);
	close(memory);
	return transfer;
}

/* Beyond the piece at hand nothing is erased any more. */
static void cancel_ends_erasing(void **state)
{
	struct dioh_event event;
	struct dioh_error err;
	uint32_t transfer, in_flight;

	open_old_device(state);
	transfer = begin_empty_save();
	sick_wait_held(&disk, 1, SOON_MS);
	must(dioh_cancel(disk.session, transfer, &in_flight, &err), &err);
	fuse_file_release(disk.file, 0);
	assert_int_equal(sick_complete(&disk, transfer, SOON_MS, &event), ECANCELED);
	assert_int_equal(event.error.operation, DIOH_OP_CANCEL);
	assert_int_equal(count_old(), EMPTY_BYTES / GIB - 1);
	sick_end(&disk, 1);
}

/* What the device punched out reads as zeros, through the helper and beside it. */
static void erased_is_zero(void **state)
{
	struct dioh_event event;
	uint32_t transfer;

	open_old_device(state);
	transfer = begin_empty_save();
	fuse_file_release(disk.file, 0);
	assert_int_equal(sick_complete(&disk, transfer, 10 * SOON_MS, &event), 0);
	assert_int_equal(sick_complete(&disk, sick_finish(&disk), SOON_MS, &event), 0);
	sick_end(&disk, 0);
	assert_int_equal(count_old(), 0);
	assert_int_equal(must_blocks_bytes(fuse_file_memfd(disk.file)), 0);
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
		CASE(cancel_ends_erasing, punches),
		CASE(erased_is_zero, punches),
	};

	alarm(LIMIT_S);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
