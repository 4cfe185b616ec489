/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * control.h - how `dioh-hypervisor save` reaches the dioh-hypervisor that runs the guest.
 *
 * Over a UNIX socket, SOCK_SEQPACKET: one request, then progress, then one result. Both ends are this program, so the
 * messages are structs. The socket belongs to the user who runs the guest, mode 0600. Whoever can reach it may have the
 * guest saved to any file that user may write.
 */
#ifndef HV_CONTROL_H
#define HV_CONTROL_H

#include <limits.h>

#include "save.h"

enum hv_verb { HV_VERB_SAVE = 1, HV_VERB_QUIT = 2 };

enum hv_request_flag { HV_REQUEST_KEEP_RUNNING = 1 << 0, HV_REQUEST_CONTAINER = 1 << 1 };

struct hv_request {
	uint32_t verb;
	uint32_t flags;
	char path[PATH_MAX]; /* absolute: the two ends may have different working directories */
};

enum hv_answer_kind { HV_ANSWER_PROGRESS = 1, HV_ANSWER_OK, HV_ANSWER_ERROR };

struct hv_answer {
	uint32_t kind;
	uint32_t reserved;
	uint64_t done_bytes, total_bytes, bytes_per_second;
	char text[HV_SUMMARY_BYTES]; /* progress: the stage */
};

struct hv_server {
	struct hv_vm *vm;
	struct hv_cancel *cancel;
	const char *helper_program;
	int listen_fd;
	int client_fd;
};

/* Makes the socket at `path`; one that a program which is gone left there is replaced. */
int hv_control_listen(const char *path, int *ret_fd, struct dioh_error *err);

/* Serves requests, one client after the other, until the guest is to end (0) or QEMU ends by itself (-EPIPE). */
int hv_control_serve(struct hv_server *server, struct dioh_error *err);

/*
 * The other end: sends the request, draws progress, and has the result's sentence in `text`. SIGINT asks the server to
 * cancel; if no answer comes within a second, or SIGINT a second time, it is no longer waited for.
 */
int hv_control_request(const char *path, const struct hv_request *request, struct hv_cancel *cancel,
                       char text[HV_SUMMARY_BYTES], struct dioh_error *err);

#endif
