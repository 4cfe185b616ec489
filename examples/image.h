/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * image.h - the image as a file, and the few bytes in it that are this program's own.
 */
#ifndef HV_IMAGE_H
#define HV_IMAGE_H

#include "vm.h"

#define HV_HEADER_BYTES_MAX 4096u

/*
 * Where QEMU's own format starts in a file of the layout mapped-ram: what goes behind "offset=" in an address that is
 * given to a stock QEMU, and behind --base-offset= to diohelper-tool. In front stands the header, padded with spaces.
 * (An image of the layout container starts at 0 and has the header inside.)
 */
#define HV_MAPPED_RAM_OFFSET 4096u

/* An image's descriptors: what the helper is handed, for it opens nothing. */
struct hv_image {
	int directory_fd;
	int buffered_fd;
	int direct_fd; /* -1: this file system has no O_DIRECT */
	bool created;  /* it was not there before, so a failed save removes it */
	uint64_t base_offset; /* 0 or HV_MAPPED_RAM_OFFSET: set by who saves, found out on loading */
	char name[256];
};

#define HV_IMAGE_INIT { .directory_fd = -1, .buffered_fd = -1, .direct_fd = -1 }

int hv_image_open_for_save(struct hv_image *image, const char *path, struct dioh_error *err);
int hv_image_open_for_load(struct hv_image *image, const char *path, struct dioh_error *err);

/* After a save that failed: removes the file if the save made it. (If not, the helper has marked it partial.) */
void hv_image_discard(struct hv_image *image);

void hv_image_close(struct hv_image *image);

/* The header in front of a mapped-ram image, which is a file's first HV_MAPPED_RAM_OFFSET bytes. */
int hv_image_write_front(const struct hv_image *image, const char *header, struct dioh_error *err);
int hv_image_read_front(const struct hv_image *image, struct hv_machine *ret_machine, struct dioh_error *err);

/* What restore must know of the machine, as JSON; the caller frees it. NULL: no memory. */
char *hv_header_encode(const struct hv_machine *machine);

/* The reverse. An image may come from anywhere: nothing but names and numbers that we know to be harmless passes. */
int hv_header_decode(const char *bytes, size_t count, struct hv_machine *ret_machine, struct dioh_error *err);

#endif
