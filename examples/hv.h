/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * hv.h - what the parts of dioh-hypervisor share: errors, waiting that can be cancelled, progress.
 *
 * Names that begin with hv_ are this program's, names that begin with dioh_ are the library's: a reader who wants to
 * know what a manager does with libdiohelper looks for the latter, nearly all of them in helper.c, save.c, restore.c.
 *
 * Functions return 0 or a negative errno value and fill a struct dioh_error, as the library does, so that one sentence
 * reaches the user wherever it came from.
 */
#ifndef HV_H
#define HV_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "diohelper.h"

/* Fills `err` (may be NULL) and returns -code. */
int hv_fail(struct dioh_error *err, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* Frees what the variable holds when it goes out of scope. */
#define HV_CLOSE __attribute__((cleanup(hv_close)))
void hv_close(int *fd); /* closes it if it is not -1, and makes it -1 */

/*
 * Who may end what is being done: SIGINT and SIGTERM, which are blocked and read from a signalfd, and the client that
 * asked for it, by closing its connection or by sending anything more.
 */
struct hv_cancel {
	int signal_fd;
	int client_fd;  /* -1: none */
	bool cancelled; /* stays set until the owner takes it back */
	bool quit;      /* SIGTERM came, or a SIGINT while nothing could be cancelled: the program is to end */
};

int hv_cancel_init(struct hv_cancel *cancel, struct dioh_error *err);

/*
 * Waits until `fd` (-1: none) can be read: 1. 0: `timeout_ms` (-1: for ever) have passed. -ECANCELED: cancelled, now or
 * before. `cancel` NULL: cannot be cancelled.
 */
int hv_wait_readable(struct hv_cancel *cancel, int fd, int timeout_ms, struct dioh_error *err);

/* How far something is; `stage` is a literal. */
struct hv_progress {
	const char *stage;
	uint64_t done_bytes;
	uint64_t total_bytes; /* 0: not known */
	uint64_t bytes_per_second;
};

/* Who wants to know. */
struct hv_reporter {
	void (*progress)(struct hv_reporter *reporter, const struct hv_progress *progress);
};

/* A reporter that draws on standard error: a bar on a terminal, plain lines elsewhere, few of them. */
struct hv_display {
	struct hv_reporter reporter;
	bool terminal;
	bool drawn; /* the cursor stands behind a bar */
	char stage[32];
	int64_t last_ms;
};

void hv_display_init(struct hv_display *display);
void hv_display_progress(struct hv_display *display, const struct hv_progress *progress);
void hv_display_end(struct hv_display *display); /* leaves the bar's line, before something else is printed */

/* "1.50 GiB" into `text`, which it returns. */
#define HV_SIZE_CHARS 32
char *hv_format_bytes(char text[HV_SIZE_CHARS], uint64_t bytes);

int64_t hv_now_ms(void); /* CLOCK_MONOTONIC */

#endif
