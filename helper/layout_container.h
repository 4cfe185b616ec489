/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* layout_container.h - private to layout_container.c and layout_container_open.c. */
#ifndef DIOH_LAYOUT_CONTAINER_H
#define DIOH_LAYOUT_CONTAINER_H

#include "layout.h"

struct dioh_area_sum {
	uint32_t crc;
	uint64_t bits;   /* set in it */
	uint8_t last[8]; /* its last bytes, if it has so many */
};

int dioh_container_sum_area(struct dioh_image_layout *layout, const struct dioh_record_area *area,
                            struct dioh_area_sum *ret_sum, struct dioh_error *err);

int dioh_container_open(struct dioh_image_layout *layout, uint32_t flags, struct dioh_error *err);

#endif
