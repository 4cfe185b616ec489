/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * inside.h - the helper's session inside the test program: its own code and threads at the other end of a socketpair, so
 * that a fuzzer sees which of its branches were taken. What would take privileges from the whole process is left out: the
 * program is linked with --wrap for each of these calls (fuzz_session.c), and inside.c has what is called instead.
 *
 * Also images made by such sessions, and changes to them that can be undone. For fuzzers: what is not as it must be aborts.
 */
#ifndef DIOH_INSIDE_H
#define DIOH_INSIDE_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "diohelper-image.h"
#include "diohelper-protocol.h"

#define INSIDE_MUST(condition) ((condition) ? (void)0 : inside_die(__FILE__, __LINE__, #condition))
_Noreturn void inside_die(const char *file, int line, const char *what);

/* Once, first of all: stray signals, size limits. */
void inside_init(void);

/* The layers that SEAL's reply speaks of here: others must not be required, since a helper whose seal failed exits. */
#define INSIDE_LAYERS (DIOH_LAYER_STRAYS_CLOSED | DIOH_LAYER_NO_CAPABILITIES | DIOH_LAYER_NO_NEW_PRIVS)

/* ---- a session ---- */

#define INSIDE_RUNNING_MAX (DIOH_TRANSFERS_MAX + 1)

struct inside {
	int fd; /* our end; -1 once closed */
	pthread_t thread;
	uint32_t last_id;
	bool ended; /* it has closed its end */
	/* What came, each checked for its form. */
	uint32_t running[INSIDE_RUNNING_MAX]; /* ids of transfers and FINISH, accepted and not complete */
	unsigned running_count;
	bool finished;      /* COMPLETE of a FINISH without an error */
	uint32_t finish_id;
	uint32_t pending_type; /* the request whose reply is waited for */
	int last_code;      /* of the last reply */
};

void inside_start(struct inside *s);
/* Sends one packet of any bytes. */
void inside_send(struct inside *s, const void *bytes, size_t count, const int *fds, unsigned fd_count);
/* A request with the next id. */
void inside_request(struct inside *s, uint32_t type, const void *payload, size_t size, const int *fds, unsigned fd_count);
/* Reads what comes until the reply to the last request is there; false: not within the time, or the session has ended. */
bool inside_reply(struct inside *s, int timeout_ms);
/* Until every accepted transfer has completed. */
bool inside_complete(struct inside *s, int timeout_ms);
/* Hangs up; the session must end, and with it its threads. */
void inside_end(struct inside *s);

/* ---- images ---- */

#define INSIDE_RAM_BYTES ((UINT64_C(1) << 20) + 3 * DIOH_PAGE_BYTES)

struct inside_image {
	int fd;          /* a memfd */
	uint8_t *map;    /* of it, shared */
	uint8_t *right;  /* a copy as it was made */
	size_t bytes;
	size_t record_at;
	struct { size_t at, count; } changed[64];
	unsigned changes;
	bool cut;
};

/* A complete image of a region and a stream. */
void inside_make_image(struct inside_image *image, uint32_t layout);
/* As QEMU itself writes it: mapped-ram without our record; behind a header of libvirt's, or not. */
void inside_make_foreign_image(struct inside_image *image, bool libvirt);

/*
 * Changes the image as bytes of an input say, until they end or `max` changes are made: each names a part of the image, a
 * place in it and the new bytes. Answers how much of the input was taken. With `reseal` all CRCs of the record, and counts
 * of bits, are put right afterwards, as far as the record's areas lie in the image.
 */
size_t inside_change_image(struct inside_image *image, const uint8_t *data, size_t size, unsigned max, bool reseal);
void inside_restore_image(struct inside_image *image);
/* Also if somebody else may have written to it. */
void inside_restore_whole_image(struct inside_image *image);

#endif
