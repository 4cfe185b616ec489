/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "errand.h"

#include "align.h"

static void answered(struct dioh_job *job) /* worker thread */
{
	struct dioh_errand *errand = dioh_container_of(job, struct dioh_errand, job);

	errand->runs = false;
	if (errand->result < 0)
		dioh_transfer_fail(errand->transfer, &errand->error);
	dioh_worker_settle(errand->transfer);
}

void dioh_errand_ask(struct dioh_errand *errand, void (*work)(struct dioh_job *job))
{
	errand->runs = true;
	dioh_worker_ask(errand->transfer->worker, errand->transfer, &errand->job, work);
}

void dioh_errand_answer(struct dioh_errand *errand)
{
	dioh_worker_answer(errand->transfer->worker, &errand->job, answered);
}

static void look_again(struct dioh_job *job) /* control-I/O thread */
{
	struct dioh_errand *errand = dioh_container_of(job, struct dioh_errand, job);

	errand->result = dioh_layout_check_unchanged(errand->layout, &errand->error);
	dioh_errand_answer(errand);
}

void dioh_errand_ask_unchanged(struct dioh_errand *errand, struct dioh_image_layout *layout)
{
	errand->layout = layout;
	dioh_errand_ask(errand, look_again);
}
