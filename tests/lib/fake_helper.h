/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * fake_helper.h - a helper that is not one, for tests of the library: a thread that plays a script at the other end
 * of a socket pair; and the client at this end, as a cmocka fixture.
 *
 * A script makes no assertions, since cmocka's work in the test's own thread only: what goes wrong in it is kept,
 * hangs up, and fails the test in client_end_fake(). When the script is over the client must be the one to hang up.
 */
#ifndef DIOH_FAKE_HELPER_H
#define DIOH_FAKE_HELPER_H

#include <pthread.h>
#include <stdbool.h>

#include "exchange.h"
#include "proto.h"

#define FEATURES_ALL (DIOH_FEATURE_VERBATIM * 2 - 1)

/* Minor numbers of well-known devices: descriptors that can be told from one another. */
#define DEV_NULL 3
#define DEV_ZERO 5

/* ---- in scripts ------------------------------------------------------------------------------ */

struct fake {
	int fd; /* -1: the script has closed it */
	void (*script)(struct fake *fake);
	pthread_t thread;
	char failure[DIOH_TEXT_BYTES + 32];
	struct dioh_message in; /* the request last taken */
};

/* Keeps what went wrong, if nothing has before. */
void fake_blame(struct fake *fake, const char *what, long value);
void fake_expect(struct fake *fake, bool right, const char *what);
bool fake_is_device(int fd, unsigned minor_number);

/* Takes the next request, which must be well-formed and of this type. */
void fake_take(struct fake *fake, uint32_t type);

/* Answer the request last taken. */
void fake_reply(struct fake *fake, const void *payload, size_t size);
void fake_refuse(struct fake *fake, int code, const char *text);

void fake_send(struct fake *fake, struct dioh_msg_header header, const void *payload, size_t size);
void fake_complete(struct fake *fake, uint32_t id, int code, uint64_t total_bytes);
void fake_progress(struct fake *fake, uint32_t count, uint64_t done_bytes);
void fake_stuck(struct fake *fake, uint32_t in_flight);

/*
 * Take a request and answer it: HELLO; STATUS, as client_ask_status() wants it; one that begins a transfer, whose
 * id it is.
 */
void fake_greet(struct fake *fake);
void fake_status(struct fake *fake);
uint32_t fake_accept(struct fake *fake, uint32_t type);

void fake_hang_up(struct fake *fake);

/* Waits until the client has hung up; nothing else may come. */
void fake_await_hangup(struct fake *fake);

/* ---- in tests -------------------------------------------------------------------------------- */

struct client {
	unsigned fds_before; /* none may be left open by a test */
	struct fake fake;
	struct dioh_session *session;
	struct dioh_error err, untouched; /* alike until a call fails */
};

int client_set_up(void **state);
int client_tear_down(void **state);

/* Starts the script and returns the client's end of the connection. */
int client_start_fake(struct client *f, void (*script)(struct fake *fake));
void client_connect(struct client *f, void (*script)(struct fake *fake));
void client_disconnect(struct client *f);

/* Waits for the end of the script, which must have found nothing wrong. */
void client_end_fake(struct client *f);

uint32_t client_begin_save(struct client *f);
void client_ask_status(struct client *f);
struct dioh_event client_next_event(struct client *f, int type);
void client_assert_completes(struct client *f, uint32_t transfer, int code, uint64_t total_bytes);
void client_assert_untouched(const struct client *f);

/* The connection is beyond use, and says so whatever is asked of it. */
void client_assert_broken(struct client *f, int code);

/* A signal every 10 ms, which is caught and does nothing. */
void client_alarms(bool on);

#endif
