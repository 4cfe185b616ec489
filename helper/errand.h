/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * errand.h - what a transfer has the control-I/O thread do for it, one thing at a time: header-path I/O that may block.
 *
 *      worker: dioh_errand_ask(work) --> control-I/O thread: work, dioh_errand_answer() --> worker: the next step
 */
#ifndef DIOH_ERRAND_H
#define DIOH_ERRAND_H

#include "error.h"
#include "layout.h"
#include "worker.h"

struct dioh_stream_port;

struct dioh_errand {
	struct dioh_transfer *transfer; /* set by its owner */
	struct dioh_job job;
	bool runs;
	int result; /* set by the work; negative: `error` becomes the transfer's */
	struct dioh_error error;
	struct dioh_image_layout *layout; /* of dioh_errand_ask_unchanged() */
	struct dioh_stream_port *port; /* of dioh_port_ask_close() */
};

void dioh_errand_ask(struct dioh_errand *errand, void (*work)(struct dioh_job *job));
/* A load's last look, when all has been read: is it still the image that was opened? */
void dioh_errand_ask_unchanged(struct dioh_errand *errand, struct dioh_image_layout *layout);
/* The work's last call. */
void dioh_errand_answer(struct dioh_errand *errand);

#endif
