/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test_root_attach.c - block devices as images: needs root and loop devices. test_attach.c has what is for everybody.
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
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "fixture.h"
#include "loop_device.h"
#include "raw_manager.h"

#define SAVE DIOH_DIRECTION_SAVE
#define LOAD DIOH_DIRECTION_LOAD
#define DEVICE_BYTES (32 * MIB)

static struct loop_device loop, other;

/* Over a file of its own. NULL, or why there is none. */
static const char *make_device(struct loop_device *device, const char *name)
{
	int file = open(fixture_path(name), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	const char *why;

	if (file < 0 || ftruncate(file, DEVICE_BYTES) < 0)
		fixture_die(__FILE__, __LINE__, name, strerror(errno));
	why = loop_device_open(device, file, 512);
	close(file);
	return why;
}

static int open_device(const char *path, int flags)
{
	int fd = open(path, flags | O_CLOEXEC);

	assert_true(fd >= 0);
	return fd;
}

static uint32_t ask(struct raw_manager *m, const struct dioh_msg_attach_image *image, const int *fds)
{
	return raw_request_fds(m, DIOH_MSG_ATTACH_IMAGE, image, sizeof(*image), fds,
	                       (unsigned)__builtin_popcount(image->fds));
}

static void device_is_attached(void **state)
{
	const struct dioh_msg_attach_image image = { .fds = 3, .direction = SAVE };
	struct dioh_msg_attach_image_reply reply;
	int fds[2] = { open_device(loop.path, O_RDWR), open_device(loop.path, O_RDWR | O_DIRECT) };
	struct raw_manager m;

	(void)state;
	raw_reach(&m, NULL, NULL, SAVE, RAW_STAGE_ATTACH);
	raw_reply(&m, DIOH_MSG_ATTACH_IMAGE, ask(&m, &image, fds), &reply, sizeof(reply));
	assert_int_equal(reply.kind, DIOH_IMAGE_BLOCK_DEVICE);
	assert_int_equal(reply.direct, 1);
	assert_in_range(reply.offset_alignment, 512, 4096);
	assert_int_equal(reply.file_bytes, DEVICE_BYTES);
	raw_hang_up(&m);
	raw_ends(&m, 0);
	close(fds[0]);
	close(fds[1]);
}

/* Another node with the same number is the same device; another number is not. */
static void device_nodes(void **state)
{
	const struct dioh_msg_attach_image image = { .fds = 3, .direction = SAVE };
	const char *node = fixture_path("node");
	int fds[2] = { open_device(loop.path, O_RDWR), open_device(other.path, O_RDWR | O_DIRECT) };
	struct raw_manager m;
	struct stat st;

	(void)state;
	raw_reach(&m, NULL, NULL, SAVE, RAW_STAGE_ATTACH);
	raw_refused(&m, DIOH_MSG_ATTACH_IMAGE, ask(&m, &image, fds), EINVAL, "different files");
	close(fds[1]);
	assert_int_equal(fstat(fds[0], &st), 0);
	assert_int_equal(mknod(node, S_IFBLK | 0600, st.st_rdev), 0);
	fds[1] = open(node, O_RDWR | O_DIRECT | O_CLOEXEC);
	if (fds[1] < 0)
		print_message("skipped: device nodes do not work here: %s\n", strerror(errno));
	else
		raw_reply(&m, DIOH_MSG_ATTACH_IMAGE, ask(&m, &image, fds), NULL, 0);
	raw_hang_up(&m);
	raw_ends(&m, 0);
	close(fds[0]);
	if (fds[1] >= 0)
		close(fds[1]);
}

static void device_of_wrong_access(void **state)
{
	struct dioh_msg_attach_image image = { .fds = 1, .direction = SAVE };
	int fd = open_device(loop.path, O_RDONLY);
	struct raw_manager m;

	(void)state;
	raw_reach(&m, NULL, NULL, SAVE, RAW_STAGE_ATTACH);
	raw_refused(&m, DIOH_MSG_ATTACH_IMAGE, ask(&m, &image, &fd), EBADF, "read-only");
	close(fd);
	fd = open_device(loop.path, O_WRONLY);
	image.direction = LOAD;
	raw_refused(&m, DIOH_MSG_ATTACH_IMAGE, ask(&m, &image, &fd), EBADF, "write-only");
	close(fd);
	raw_hang_up(&m);
	raw_ends(&m, 0);
}

/* A whole save and load, and then a save that is left half-way: the old image must not be taken for good. */
static void device_holds_an_image(void **state)
{
	const struct dioh_msg_open_image detect = { 0 };
	struct raw_manager m;

	(void)state;
	raw_make_image(loop.path);
	raw_reach(&m, NULL, loop.path, LOAD, RAW_STAGE_TRANSFER);
	raw_hang_up(&m);
	raw_ends(&m, 1);
	raw_reach(&m, NULL, loop.path, SAVE, RAW_STAGE_READY);
	raw_hang_up(&m);
	raw_ends(&m, 1);
	raw_reach(&m, NULL, loop.path, LOAD, RAW_STAGE_SEALED);
	raw_call_refused(&m, DIOH_MSG_OPEN_IMAGE, &detect, sizeof(detect), ENODATA, "image");
	raw_hang_up(&m);
	raw_ends(&m, 0);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(device_is_attached),
		cmocka_unit_test(device_nodes),
		cmocka_unit_test(device_of_wrong_access),
		cmocka_unit_test(device_holds_an_image),
	};
	const char *why;
	int failed;

	if (geteuid() != 0) {
		printf("this needs root\n");
		return 77;
	}
	if ((why = make_device(&loop, "disk")) || (why = make_device(&other, "other-disk"))) {
		puts(why);
		return 77;
	}
	failed = cmocka_run_group_tests_name("attach, block devices", tests, NULL, NULL);
	loop_device_close(&loop);
	loop_device_close(&other);
	return failed;
}
