/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qmp.h - a small client of QEMU's machine protocol: one command at a time, events are read past.
 *
 * Owns its end of a socket pair whose other end QEMU was born with. QEMU is not trusted to answer, nor to be brief:
 * every wait has an end, and so has the size of an answer.
 */
#ifndef HV_QMP_H
#define HV_QMP_H

#include <jansson.h>

#include "hv.h"

#define HV_QMP_ANSWER_BYTES_MAX (1u << 20) /* the longest we ask for is some kilobytes */

struct hv_qmp {
	int fd;
	uint64_t last_id;
	struct hv_cancel *cancel; /* what may end a wait; NULL: only the time limit */
	char *buffer;             /* HV_QMP_ANSWER_BYTES_MAX, what has come and is not yet a whole line */
	size_t used;
};

/* Takes `fd` over, also on failure; reads the greeting and leaves negotiation. */
int hv_qmp_open(struct hv_qmp *qmp, int fd, struct hv_cancel *cancel, struct dioh_error *err);

void hv_qmp_close(struct hv_qmp *qmp);

/*
 * Carries out a command. `arguments` (may be NULL) is taken over. `ret_result` (may be NULL) is the caller's to free.
 * -EPIPE: QEMU is gone. -EREMOTEIO: QEMU refused, the text says what it said. -ECANCELED, -ETIMEDOUT: it has not
 * answered yet; its answer will be read past.
 */
int hv_qmp_command(struct hv_qmp *qmp, const char *command, json_t *arguments, json_t **ret_result,
                   struct dioh_error *err);

/* Gives QEMU a duplicate of `fd`, to be called `name` ("fd:name" in a migration address). */
int hv_qmp_give_fd(struct hv_qmp *qmp, const char *name, int fd, struct dioh_error *err);

/* Reads past events that have come while nothing was asked, so that they do not pile up in QEMU. Does not wait. */
void hv_qmp_skip_events(struct hv_qmp *qmp);

#endif
