/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* LDFLAGS: -Wl,--wrap=dioh_seal_privileges,--wrap=dioh_sandbox_seccomp,--wrap=alarm */
/* fuzz_container.c - hostile containers, opened by the helper's code (fuzz_image.h). CHOICE_OTHER: the layout is detected. */
#include "fuzz_image.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct inside_image image;
	uint32_t id;

	if (!image.map) {
		inside_init();
		inside_make_image(&image, DIOH_LAYOUT_CONTAINER);
		CHECK(fuzz_open(image.fd, DIOH_LAYOUT_DETECT, 0, NULL) == 0);
	}
	if (size < 1)
		return 0;
	inside_change_image(&image, data + 1, size - 1, 16, data[0] & CHOICE_RESEAL);
	id = data[0] & CHOICE_OTHER ? DIOH_LAYOUT_DETECT : DIOH_LAYOUT_CONTAINER;
	fuzz_open(image.fd, id, fuzz_open_flags(data[0]), NULL);
	inside_restore_image(&image);
	return 0;
}
