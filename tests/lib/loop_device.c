/* SPDX-License-Identifier: LGPL-2.1-or-later */
#define _GNU_SOURCE
#include "loop_device.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/loop.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "cleanup.h"
#include "fixture.h"

#define TRIES 32 /* somebody else may take the free one first */

/* What is read ahead of a reader that has gone would be kept over loop_device_forget(). */
static const char *read_no_further(struct loop_device *device)
{
	return ioctl(device->fd, BLKRASET, 0ul) < 0 ? "a loop device that reads ahead" : NULL;
}

const char *loop_device_open(struct loop_device *device, int file, unsigned sector_bytes)
{
	const struct loop_config config = {
		.fd = (uint32_t)file, .block_size = sector_bytes, .info = { .lo_flags = LO_FLAGS_AUTOCLEAR }
	};
	DIOH_AUTO_FD int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);

	device->fd = -1;
	if (control < 0)
		return "no /dev/loop-control";
	for (unsigned i = 0; i < TRIES; i++) {
		int number = ioctl(control, LOOP_CTL_GET_FREE);

		(void)snprintf(device->path, sizeof(device->path), "/dev/loop%d", number);
		device->fd = number < 0 ? -1 : open(device->path, O_RDWR | O_CLOEXEC);
		if (device->fd < 0)
			return "no free loop device that can be opened";
		if (ioctl(device->fd, LOOP_CONFIGURE, &config) == 0)
			return read_no_further(device);
		loop_device_close(device);
		if (errno != EBUSY)
			break;
	}
	return "no loop device can be set up";
}

void loop_device_forget(const struct loop_device *device)
{
	if (ioctl(device->fd, BLKFLSBUF, 0) < 0)
		fixture_die(__FILE__, __LINE__, "BLKFLSBUF", strerror(errno));
}

void loop_device_close(struct loop_device *device)
{
	const int code = errno;

	if (device->fd >= 0)
		close(device->fd);
	device->fd = -1;
	errno = code;
}
