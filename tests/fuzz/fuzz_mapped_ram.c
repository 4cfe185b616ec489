/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* LDFLAGS: -Wl,--wrap=dioh_seal_privileges,--wrap=dioh_sandbox_seccomp,--wrap=alarm */
/*
 * fuzz_mapped_ram.c - hostile mapped-ram images, ours (with a record) and QEMU's own, opened by the helper's code
 * (fuzz_image.h), both without a table and as a manager does that wants one region in a memory. CHOICE_OTHER: QEMU's own; with
 * CHOICE_LIBVIRT behind libvirt's header.
 */
#include "fuzz_image.h"

#define CHOICE_LIBVIRT 16

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const struct dioh_msg_entry ram = { .kind = DIOH_ENTRY_REGION, .number = 3, .bytes = INSIDE_RAM_BYTES,
		                                   .name = "ram", .flags = DIOH_ENTRY_GUEST_ADDRESS };
	static struct inside_image images[3];
	struct inside_image *image;

	if (!images[2].map) {
		inside_init();
		inside_make_image(&images[0], DIOH_LAYOUT_MAPPED_RAM);
		inside_make_foreign_image(&images[1], false);
		inside_make_foreign_image(&images[2], true);
		for (unsigned i = 0; i < 3; i++)
			CHECK(fuzz_open(images[i].fd, DIOH_LAYOUT_DETECT, 0, NULL) == 0);
	}
	if (size < 1)
		return 0;
	image = &images[!(data[0] & CHOICE_OTHER) ? 0 : data[0] & CHOICE_LIBVIRT ? 2 : 1];
	inside_change_image(image, data + 1, size - 1, 16, data[0] & CHOICE_RESEAL);
	fuzz_open(image->fd, DIOH_LAYOUT_MAPPED_RAM, fuzz_open_flags(data[0]), NULL);
	fuzz_open(image->fd, DIOH_LAYOUT_MAPPED_RAM, fuzz_open_flags(data[0]), &ram);
	inside_restore_image(image);
	return 0;
}
