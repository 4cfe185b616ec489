/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qemu_source.h - the stream that brings QEMU's device state: its bytes and the parser that reads them. Up to the end of its
 * setup it is read by the control-I/O thread, which waits for it; then it is its transfer's. All that has been read by then
 * is kept: a stream that is refused can still be saved as it is.
 */
#ifndef DIOH_QEMU_SOURCE_H
#define DIOH_QEMU_SOURCE_H

#include "layout.h"
#include "qemu_stream.h"

#define DIOH_QEMU_INPUT_BYTES (UINT64_C(1) << 20)

struct dioh_qemu_source {
	struct dioh_qemu_parser *parser;
	uint8_t *input; /* DIOH_QEMU_INPUT_BYTES */
	size_t filled;  /* of it, by what came up to the setup's end */
	const uint8_t *next; /* in `input`: not parsed yet */
	size_t left;
};

/* `multifd`: channels bring pages, too. */
int dioh_qemu_source_open(struct dioh_qemu_source *source, bool multifd, struct dioh_error *err);
void dioh_qemu_source_close(struct dioh_qemu_source *source);

/* Reads and parses the layout's device state up to its setup's end. ECANCELED: abandoned meanwhile. */
int dioh_qemu_source_read_setup(struct dioh_qemu_source *source, const struct dioh_image_layout *layout,
                                struct dioh_error *err);

#endif
