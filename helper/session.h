/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * session.h - the control connection and all that hangs on it. The session thread owns everything here; what it has
 * handed to the control-I/O thread or a worker it does not touch until it comes back through the mailbox.
 *
 *      session.c            the door: one table, one loop
 *      session_out.c        what is sent: replies, events, backpressure
 *      session_attach.c     HELLO, ATTACH_*, SEAL
 *      session_image.c      CREATE_IMAGE ... READ_HEADER: carried out by the control-I/O thread
 *      session_transfer.c   SAVE_*, LOAD_*, KEEP_REGION, CANCEL
 *      session_running.c    transfers handed to the workers, and their ends
 *      session_finish.c     FINISH
 *      session_progress.c   STATUS, PROGRESS, STUCK
 */
#ifndef DIOH_SESSION_H
#define DIOH_SESSION_H

#include "channel.h"
#include "layout.h"
#include "memory.h"
#include "options.h"
#include "payload.h"
#include "worker.h"

enum dioh_door_phase { /* what is permitted: a bit each, the table in session.c has masks of them */
	PHASE_START = 1 << 0, /* nothing but HELLO */
	PHASE_ATTACH = 1 << 1,
	PHASE_TRANSFER = 1 << 2, /* sealed */
	PHASE_FINISH = 1 << 3,   /* FINISH has been accepted */
};

enum dioh_image_stage {
	IMAGE_NONE,
	IMAGE_TABLE,  /* CREATE_IMAGE or raw OPEN_IMAGE has come, entries are missing */
	IMAGE_HEADER, /* raw: its header must come before any page */
	IMAGE_READY,
	IMAGE_REFUSED, /* its stream is not understood: nothing was touched, and it can still be saved as it is */
	IMAGE_BROKEN, /* creating it failed half-way: it is neither old nor new */
};

struct dioh_session_stream {
	int fd;      /* -1: free, or used up */
	bool known;  /* it has been attached */
	uint32_t kind;
	bool large_pipe;
	uint8_t *early; /* what was read of it before it was refused: saved first. NULL: nothing */
	size_t early_bytes;
};

/* A request that the control-I/O thread carries out: one at a time. */
struct dioh_image_request {
	struct dioh_job job;
	struct dioh_session_state *session;
	bool active;
	uint32_t type;
	uint32_t id;
	uint32_t size;
	int result;
	struct dioh_error error;
	uint32_t reply_size;
	_Alignas(8) uint8_t payload[DIOH_PAYLOAD_BYTES_MAX];
	_Alignas(8) uint8_t reply[DIOH_PAYLOAD_BYTES_MAX];
};

struct dioh_running { /* a transfer as the session sees it */
	struct dioh_running *next;
	struct dioh_session_state *session;
	uint32_t id;
	bool save;
	struct dioh_transfer *parts[DIOH_WORKERS_MAX]; /* one for each worker that has a share in it */
	unsigned part_count;
	unsigned parts_left;
	bool failed;
	struct dioh_error error;          /* of the part that failed first */
	struct dioh_msg_complete figures; /* of the parts that have ended */
	uint64_t begun_ns;
	struct dioh_region *region; /* memory transfers */
	uint64_t region_first, region_end;
	const struct dioh_memory *memory;
	uint64_t memory_first, memory_end;
	struct dioh_stream_entry *entry; /* stream transfers */
	uint64_t sampled_bytes; /* for the rate */
	uint64_t sampled_ns;
	uint64_t bytes_per_second;
};

struct dioh_finish {
	struct dioh_job job;
	struct dioh_session_state *session;
	bool active;
	uint32_t id;
	struct dioh_commit commit;
	int result;
	struct dioh_error error;
	uint64_t begun_ns;
};

struct dioh_out { /* a message that waits to be sent */
	struct dioh_out *next;
	bool completes; /* a COMPLETE of a transfer: it counts until it is gone */
	struct dioh_msg_header header;
	_Alignas(8) uint8_t payload[];
};

struct dioh_session_state {
	const struct dioh_options *options;
	int fd;
	int manager_pidfd; /* or -1 */
	uint32_t phase; /* enum dioh_door_phase; what goes on, enum dioh_phase, STATUS tells */
	bool hung_up;
	bool ending; /* leave once everything has been sent */
	int exit_status;
	struct dioh_message message;
	struct dioh_out *out;
	struct dioh_out **out_last;
	unsigned completes_waiting;

	bool image_attached;
	struct dioh_image image;
	struct dioh_memory memories[DIOH_MEMORIES_MAX];
	struct dioh_session_stream streams[DIOH_STREAMS_MAX];

	bool sealed;
	uint32_t layers;
	uid_t uid;
	gid_t gid;
	char context[DIOH_LABEL_BYTES]; /* our own, under SELinux */
	struct dioh_mailbox mailbox;
	struct dioh_control control;
	struct dioh_worker *workers;
	unsigned worker_count;
	unsigned worker_next;
	atomic_bool abandoned; /* the control-I/O thread's request, or FINISH, is of no use any more */

	enum dioh_image_stage stage;
	bool opening; /* the table belongs to OPEN_IMAGE */
	uint32_t open_flags;
	struct dioh_image_layout layout;
	struct dioh_image_request *request;

	struct dioh_running *running;
	unsigned running_count;
	uint64_t done_bytes; /* of transfers that have ended */
	struct dioh_finish finish;
	bool finished;
	uint64_t progress_ns; /* when the last tick was */
	uint64_t stuck_ns;    /* when STUCK was last due */
	uint64_t left_ns; /* when the session was hung up or began to end */
	bool half_built; /* the seal failed in its middle: end without taking anything down */
};

/* Runs a session to its end; the answer is the exit status. */
int dioh_session_run(const struct dioh_options *options);

/* session_out.c. A reply to the message at hand; an event. Never block; what the socket does not take waits. */
void dioh_session_reply(struct dioh_session_state *session, uint32_t type, uint32_t id, const void *payload, uint32_t size);
void dioh_session_refuse(struct dioh_session_state *session, uint32_t type, uint32_t id, const struct dioh_error *err);
void dioh_session_event(struct dioh_session_state *session, uint32_t type, uint32_t id, const void *payload, uint32_t size);
void dioh_session_flush(struct dioh_session_state *session);
void dioh_session_drop_out(struct dioh_session_state *session);
/* The manager has read all that was sent. */
bool dioh_session_out_empty(const struct dioh_session_state *session);

/* Handlers: answer 0 (the reply has been sent, or will be) or fill err, which is then the reply. */
typedef int dioh_handler(struct dioh_session_state *session, struct dioh_message *message, struct dioh_error *err);
dioh_handler dioh_on_hello, dioh_on_attach_image, dioh_on_attach_memory, dioh_on_attach_stream, dioh_on_seal;
dioh_handler dioh_on_create_image, dioh_on_put_table, dioh_on_write_header, dioh_on_open_image, dioh_on_get_table,
        dioh_on_read_header, dioh_on_read_bitmap;
dioh_handler dioh_on_memory_transfer, dioh_on_keep_region, dioh_on_stream_transfer, dioh_on_status, dioh_on_cancel;
dioh_handler dioh_on_finish;

/* EPROTO: what would have to come, or should have come, before. */
int dioh_wrong_stage(const struct dioh_session_state *session, const struct dioh_message *message,
                     struct dioh_error *err);
void dioh_session_cancel_all(struct dioh_session_state *session);
/* The manager is gone, or cannot be reached: what runs is cancelled, nothing is sent any more. */
void dioh_session_hang_up(struct dioh_session_state *session);
/* Something runs on another thread. */
bool dioh_session_busy(const struct dioh_session_state *session);
unsigned dioh_session_in_flight(const struct dioh_session_state *session, uint64_t *ret_oldest_ns);
/* What the disk has not answered yet, page I/O and header-path work alike: how many, and the age of the oldest. */
struct dioh_msg_stuck dioh_session_waits(const struct dioh_session_state *session, uint64_t now);
/* PROGRESS and STUCK, as they are due. */
void dioh_session_tick(struct dioh_session_state *session);
/* A worker's engine is beyond use (job handler). */
void dioh_session_broken(struct dioh_job *job);
/* Hands the parts that were made to the workers, one each in turn; from now on they are freed when the last has ended. */
void dioh_running_begin(struct dioh_session_state *session, struct dioh_running *running);
/* One that has not begun. */
void dioh_running_free(struct dioh_running *running);
void dioh_running_cancel(struct dioh_running *running);
uint64_t dioh_running_done_bytes(const struct dioh_running *running);
uint64_t dioh_running_total_bytes(const struct dioh_running *running); /* 0: not known */
/* Turns transfer figures into a COMPLETE. */
void dioh_session_complete(struct dioh_session_state *session, uint32_t id, struct dioh_msg_complete *figures,
                           const struct dioh_error *err);

#endif
