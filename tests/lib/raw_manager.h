/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * raw_manager.h - a manager that speaks the control protocol byte by byte, without the library: it can say what no
 * library would. For cmocka programs: what is not as expected fails the running test, and all that waits has a limit.
 */
#ifndef DIOH_RAW_MANAGER_H
#define DIOH_RAW_MANAGER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "diohelper-protocol.h"

#define RAW_MEMORY 1u /* the memory's number, and what else the samples below name */
#define RAW_REGION 3u
#define RAW_STREAM 0u
#define RAW_ENTRY 5u
#define RAW_REGION_BYTES (UINT64_C(4) << 20)
#define RAW_STREAM_BYTES (UINT64_C(3) << 20) /* more than a pipe holds, however the helper enlarges it */
#define RAW_HEADER_BYTES 8u

struct raw_options {
	const char *const *args; /* behind "serve --fd=N", NULL-terminated; NULL: none */
	int fd_number;           /* N */
	unsigned descriptors_max; /* RLIMIT_NOFILE of the helper; 0: as it is here */
	uid_t user;              /* root only: the helper is started by this uid, and its group; 0: as we are */
	bool no_io_uring;        /* filters, as of a container: io_uring_setup(2) answers EPERM, */
	bool no_landlock;        /* landlock_create_ruleset(2) ENOSYS, */
	bool no_restrictions;    /* io_uring_register(2) for those EINVAL, */
	bool no_close_range;     /* close_range(2) EPERM, */
	bool no_seccomp;         /* seccomp(2) and the prctl(2) that does the same EPERM */
	bool alarm_blocked;      /* SIGALRM blocked and ignored, as a careless manager leaves it */
};

#define RAW_OPTIONS_INIT { .fd_number = 3 }

struct raw_complete {
	uint32_t id;
	struct dioh_msg_complete complete;
};

struct raw_manager {
	int fd; /* our end; -1 once closed */
	pid_t pid;
	uint32_t last_id;
	uint32_t direction; /* of raw_reach() */
	int memfd;
	int pipe_fd; /* our end of the attached stream */
	struct raw_complete completes[DIOH_TRANSFERS_MAX * 2]; /* that came and were not asked for yet */
	unsigned complete_count;
};

struct raw_packet {
	struct dioh_msg_header header;
	uint8_t payload[DIOH_PAYLOAD_BYTES_MAX];
	size_t bytes; /* of the whole packet */
};

/* Takes from this process, and all that it starts, what the options name: no_io_uring to no_seccomp. */
void raw_refuse_calls(const struct raw_options *options);

/* ---- the process ---- */

void raw_start(struct raw_manager *m, const struct raw_options *options); /* NULL: the defaults */
void raw_hang_up(struct raw_manager *m);
/* Waits for the helper's end and answers its wait status; fails after 5 s (and kills it). */
int raw_wait(struct raw_manager *m);
/* The connection ends (events and replies before that are dropped) and the helper exits with this status. */
void raw_ends(struct raw_manager *m, int status);
/* Nothing of it is left: closes what is open, kills and reaps. For managers that a test is done with. */
void raw_drop(struct raw_manager *m);
/* While the helper stands still, what is sent lies in its socket: it then finds it all at once. */
void raw_stop(const struct raw_manager *m);
void raw_continue(const struct raw_manager *m);

/* ---- packets ---- */

/* One packet, whatever is in it. false: the helper has closed. */
bool raw_send(struct raw_manager *m, const void *bytes, size_t count, const int *fds, unsigned fd_count);
/* A message with a fresh id, which is the answer. */
uint32_t raw_request(struct raw_manager *m, uint32_t type, const void *payload, size_t size);
uint32_t raw_request_fds(struct raw_manager *m, uint32_t type, const void *payload, size_t size, const int *fds,
                         unsigned fd_count);
/* The next packet; false: the connection has ended. Fails the test when neither comes within 10 s. */
bool raw_receive(struct raw_manager *m, struct raw_packet *ret_packet);

/* ---- replies; events that come before are kept (COMPLETE) or dropped ---- */

#define raw_reply(m, type, id, ret, size) raw_reply_at(m, type, id, ret, size, __FILE__, __LINE__)
#define raw_call(m, type, payload, size, ret, ret_size) \
	raw_reply(m, type, raw_request(m, type, payload, size), ret, ret_size)
/* An error reply with this code, whose form is right and whose text begins with a name (NULL: any text). */
#define raw_refused(m, type, id, code, name) raw_refused_at(m, type, id, code, name, __FILE__, __LINE__)
#define raw_call_refused(m, type, payload, size, code, name) \
	raw_refused(m, type, raw_request(m, type, payload, size), code, name)

void raw_reply_at(struct raw_manager *m, uint32_t type, uint32_t id, void *ret_payload, size_t size, const char *file,
                  int line);
struct dioh_msg_error raw_refused_at(struct raw_manager *m, uint32_t type, uint32_t id, int code, const char *text,
                                     const char *file, int line);
/* The COMPLETE of a transfer; its code. `ret_complete` may be NULL. */
int raw_complete(struct raw_manager *m, uint32_t id, struct dioh_msg_complete *ret_complete);
uint32_t raw_status_phase(struct raw_manager *m); /* asks STATUS: the session is alive */

/* ---- whole sessions ---- */

enum raw_stage { /* docs/protocol.md, "Phases" */
	RAW_STAGE_START,
	RAW_STAGE_ATTACH,
	RAW_STAGE_IMAGE, /* still attach: the image is there, and memory and stream */
	RAW_STAGE_SEALED,
	RAW_STAGE_TABLE, /* save: PUT_TABLE is missing. load: of a raw image */
	RAW_STAGE_READY,
	RAW_STAGE_TRANSFER, /* a stream that does not end is being moved */
	RAW_STAGE_SAVED,    /* as ready, and FINISH would be accepted */
	RAW_STAGE_FINISH,   /* the helper stands still, and FINISH lies in its socket: id m->last_id */
};

/* A well-formed message of a type for that direction; its size. Payload has room for DIOH_PAYLOAD_BYTES_MAX. */
size_t raw_sample(uint32_t type, uint32_t direction, void *ret_payload);
/* A message that is nothing without a descriptor. */
bool raw_needs_descriptor(uint32_t type);
/* Starts a helper and brings it there with samples, on the image at `path` (load: one that raw_make_image() made). */
void raw_reach(struct raw_manager *m, const struct raw_options *options, const char *path, uint32_t direction,
               enum raw_stage stage);
/* A complete image with the samples' region, stream and header. */
void raw_make_image(const char *path);
/* raw_reach() on an image of the fixture's: for loads a complete one, which is made once. */
void raw_reach_own(struct raw_manager *m, uint32_t direction, enum raw_stage stage);

int raw_open_image(const char *path, uint32_t direction); /* as a session of that direction needs it */

/* ---- /proc ---- */

/* A number behind "Name:" in /proc/PID/status (hexadecimal with base 16); fails the test if there is none. */
uint64_t raw_proc_status(const char *path, const char *name, int base);
/* Descriptors that it holds; -1 where we may not look. */
int raw_proc_descriptors(pid_t pid);
uint64_t raw_proc_cpu_ms(pid_t pid);

#endif
