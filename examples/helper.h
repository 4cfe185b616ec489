/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * helper.h - a session with diohelper, as save and restore both need it: begun, watched, ended.
 */
#ifndef HV_HELPER_H
#define HV_HELPER_H

#include "image.h"

/* The numbers by which the session's parts go: there is one of each. */
#define HV_MEMORY 0
#define HV_STREAM 0

struct hv_transfer {
	uint32_t id; /* 0: not begun */
	bool completed;
	struct dioh_error error; /* once completed; code 0: success */
	struct dioh_msg_complete figures;
};

struct hv_helper {
	struct dioh_session *session; /* NULL: none */
	struct hv_cancel *cancel;     /* NULL: what is waited for can no longer be cancelled */
	struct hv_reporter *reporter;
	const char *stage; /* what it is doing, for the reporter; a literal */
	struct hv_transfer state, memory, finish;
	struct dioh_msg_attach_image_reply image;
};

/* What a save and a restore need to know besides. */
struct hv_helper_options {
	const char *program; /* NULL: diohelper in PATH */
	struct hv_cancel *cancel;
	struct hv_reporter *reporter;
};

/* Spawns the helper, hands it image, memory and one end of a pipe, and has it drop its privileges. */
int hv_helper_start(struct hv_helper *helper, const struct hv_helper_options *options, uint32_t direction,
                    const struct hv_image *image, int memory_fd, int stream_fd, struct dioh_error *err);

/*
 * As dioh_create_image(), which waits for the disk, and for QEMU where the layout wants the stream's beginning first;
 * but it can be cancelled. The session is then of no more use.
 */
int hv_helper_create_image(struct hv_helper *helper, const struct dioh_create_options *options, struct dioh_error *err);

/* The image's memory and device state, whole: for dioh_save_... and dioh_load_... */
struct dioh_msg_memory_transfer hv_whole_memory(uint64_t bytes, uint32_t flags);
struct dioh_msg_stream_transfer hv_whole_stream(void);

/* Says what is being done now. */
void hv_helper_stage(struct hv_helper *helper, const char *stage);

/*
 * Takes one event, or waits for one for at most `timeout_ms`. The error of a transfer that failed is returned here.
 * -ECANCELED: somebody wants this to end.
 */
int hv_helper_turn(struct hv_helper *helper, int timeout_ms, struct dioh_error *err);

/* Takes events until `transfer` has completed. */
int hv_helper_wait(struct hv_helper *helper, const struct hv_transfer *transfer, struct dioh_error *err);

/*
 * QEMU failed with `code` while the helper sat at the other end of the pipe. If that was because the helper had failed
 * first, `err` becomes the helper's error. Returns the code that goes with it.
 */
int hv_helper_blame(struct hv_helper *helper, int code, struct dioh_error *err);

/* Ends the session, cancelling what still runs. -ETIMEDOUT: I/O is still under way; the helper ends when it is done. */
int hv_helper_close(struct hv_helper *helper, int timeout_ms);

#endif
