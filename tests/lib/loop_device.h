/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* loop_device.h - a block device over a file, gone when its last descriptor is: nothing outlives the test. Needs root. */
#ifndef DIOH_LOOP_DEVICE_H
#define DIOH_LOOP_DEVICE_H

#include <stdint.h>

struct loop_device {
	int fd; /* -1: there is none */
	char path[64];
};

/* Over `file`, which may be closed then, with its size of now. NULL, or why it cannot be had. */
const char *loop_device_open(struct loop_device *device, int file, unsigned sector_bytes);
/* What the device has in memory is forgotten: the file was changed behind its back. */
void loop_device_forget(const struct loop_device *device);
void loop_device_close(struct loop_device *device);

#endif
