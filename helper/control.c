/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "control.h"

#include <errno.h>
#include <unistd.h>

int dioh_control_open(struct dioh_control *control, struct dioh_error *err)
{
	return dioh_mailbox_open(&control->mailbox, err);
}

static void *control_main(void *argument)
{
	struct dioh_control *control = argument;

	pthread_barrier_wait(control->barrier);
	while (!atomic_load(&control->stop)) {
		uint64_t count;

		if (read(control->mailbox.event_fd, &count, sizeof(count)) < 0 && errno != EINTR)
			break;
		dioh_mailbox_handle(&control->mailbox);
	}
	return NULL;
}

int dioh_control_start(struct dioh_control *control, pthread_barrier_t *barrier, struct dioh_error *err)
{
	int r;

	control->barrier = barrier;
	r = pthread_create(&control->thread, NULL, control_main, control);

	if (r != 0)
		return dioh_error_errno(err, r, DIOH_PLACE(SEAL, SESSION, 0, DIOH_OFFSET_NONE),
		                        "helper: starting the control-I/O thread failed");
	control->running = true;
	return 0;
}

void dioh_control_stop(struct dioh_control *control)
{
	if (control->running) {
		atomic_store(&control->stop, true);
		dioh_mailbox_wake(&control->mailbox);
		pthread_join(control->thread, NULL);
		control->running = false;
	}
	dioh_mailbox_close(&control->mailbox);
}
