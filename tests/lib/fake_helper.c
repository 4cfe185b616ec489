/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* fake_helper.c - a helper that is not one, and a client's fixture. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <unistd.h>

#include "fake_helper.h"
#include "fixture.h"

/* ---- the fake helper ------------------------------------------------------------------------- */

void fake_blame(struct fake *fake, const char *what, long value)
{
	if (fake->failure[0] == '\0')
		snprintf(fake->failure, sizeof(fake->failure), "%s (%ld)", what, value);
}

void fake_hang_up(struct fake *fake)
{
	close(fake->fd);
	fake->fd = -1;
}

void fake_take(struct fake *fake, uint32_t type)
{
	struct dioh_error err = { .text = "" };
	int r;

	dioh_message_close_fds(&fake->in);
	if (fake->failure[0] != '\0' || fake->fd < 0)
		return;
	do
		r = dioh_channel_receive(fake->fd, &fake->in, 0, &err);
	while (r == -EINTR);
	if (r == 0)
		r = dioh_proto_check_request(&fake->in.header, fake->in.payload, fake->in.fd_count,
		                             &err);
	if (r < 0)
		fake_blame(fake, err.text, r);
	else if (fake->in.header.type != type)
		fake_blame(fake, "another request was expected; this came", fake->in.header.type);
	if (fake->failure[0] != '\0' && fake->fd >= 0)
		fake_hang_up(fake); /* so that nobody waits for a reply */
}

void fake_send(struct fake *fake, struct dioh_msg_header header, const void *payload, size_t size)
{
	struct dioh_error err;

	header.size = (uint32_t)size;
	if (fake->fd >= 0 && dioh_channel_send(fake->fd, &header, payload, NULL, 0, 0, &err) < 0)
		fake_blame(fake, err.text, err.code);
}

void fake_reply(struct fake *fake, const void *payload, size_t size)
{
	struct dioh_msg_header header = { .type = fake->in.header.type + 1,
		                          .id = fake->in.header.id };

	fake_send(fake, header, payload, size);
}

void fake_refuse(struct fake *fake, int code, const char *text)
{
	struct dioh_msg_header header = { .type = fake->in.header.type + 1,
		                          .flags = DIOH_MSG_ERROR,
		                          .id = fake->in.header.id };
	struct dioh_error err;
	struct dioh_msg_error wire;

	dioh_error_set(&err, code, DIOH_PLACE(WRITE, REGION, 7, 8192), "%s", text);
	dioh_error_encode(&err, &wire);
	fake_send(fake, header, &wire, sizeof(wire));
}

/* `total` tells one COMPLETE from another. */
void fake_complete(struct fake *fake, uint32_t id, int code, uint64_t total_bytes)
{
	struct dioh_msg_header header = { .type = DIOH_MSG_COMPLETE, .id = id };
	struct dioh_msg_complete event = { .total_bytes = total_bytes };

	event.error.code = code;
	if (code != 0)
		strcpy(event.error.text, "image: it failed");
	fake_send(fake, header, &event, sizeof(event));
}

void fake_progress(struct fake *fake, uint32_t count, uint64_t done_bytes)
{
	struct dioh_msg_header header = { .type = DIOH_MSG_PROGRESS };
	struct {
		struct dioh_msg_progress head;
		struct dioh_msg_progress_entry entries[DIOH_TRANSFERS_MAX];
	} event = { .head = { .phase = DIOH_PHASE_TRANSFER, .count = count } };

	for (uint32_t i = 0; i < count; i++)
		event.entries[i] = (struct dioh_msg_progress_entry){ .transfer = i,
			                                             .phase = DIOH_PHASE_TRANSFER,
			                                             .done_bytes = done_bytes };
	fake_send(fake, header, &event, sizeof(event.head) + count * sizeof(event.entries[0]));
}

void fake_stuck(struct fake *fake, uint32_t in_flight)
{
	struct dioh_msg_header header = { .type = DIOH_MSG_STUCK };
	struct dioh_msg_stuck event = { .in_flight = in_flight };

	fake_send(fake, header, &event, sizeof(event));
}

void fake_greet(struct fake *fake)
{
	struct dioh_msg_hello hello = { .version_min = 1, .version_max = 1, .offered = FEATURES_ALL };

	fake_take(fake, DIOH_MSG_HELLO);
	fake_reply(fake, &hello, sizeof(hello));
}

void fake_status(struct fake *fake)
{
	struct dioh_msg_status_reply now = { .phase = DIOH_PHASE_READY, .in_flight = 5 };

	fake_take(fake, DIOH_MSG_STATUS);
	fake_reply(fake, &now, sizeof(now));
}

uint32_t fake_accept(struct fake *fake, uint32_t type)
{
	fake_take(fake, type);
	fake_reply(fake, NULL, 0);
	return fake->in.header.id;
}

void fake_await_hangup(struct fake *fake)
{
	struct dioh_error err;
	int r;

	dioh_message_close_fds(&fake->in);
	if (fake->fd < 0)
		return;
	do
		r = dioh_channel_receive(fake->fd, &fake->in, 0, &err);
	while (r == -EINTR);
	if (r != -EPIPE)
		fake_blame(fake, "a message came behind the script's end", fake->in.header.type);
	dioh_message_close_fds(&fake->in);
	fake_hang_up(fake);
}

void fake_expect(struct fake *fake, bool right, const char *what)
{
	if (!right)
		fake_blame(fake, what, -1);
}

bool fake_is_device(int fd, unsigned minor_number)
{
	struct stat st;

	return fstat(fd, &st) == 0 && S_ISCHR(st.st_mode) && major(st.st_rdev) == 1 &&
	       minor(st.st_rdev) == minor_number;
}

static void *play(void *argument)
{
	struct fake *fake = argument;
	sigset_t all;

	sigfillset(&all); /* signals are the test's */
	pthread_sigmask(SIG_SETMASK, &all, NULL);
	fake->script(fake);
	fake_await_hangup(fake);
	return NULL;
}

/* ---- fixture --------------------------------------------------------------------------------- */

int client_set_up(void **state)
{
	struct client *f = calloc(1, sizeof(*f));

	assert_non_null(f);
	f->fds_before = must_count_descriptors();
	f->fake.fd = -1;
	memset(&f->err, 0x5a, sizeof(f->err));
	f->untouched = f->err;
	*state = f;
	return 0;
}

int client_tear_down(void **state)
{
	struct client *f = *state;
	unsigned fds_before = f->fds_before;

	free(f);
	if (must_count_descriptors() == fds_before)
		return 0;
	print_error("%u descriptors were open before, %u are now\n", fds_before, must_count_descriptors());
	return -1;
}

int client_start_fake(struct client *f, void (*script)(struct fake *fake))
{
	int pair[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
	f->fake.fd = pair[1];
	f->fake.script = script;
	assert_int_equal(pthread_create(&f->fake.thread, NULL, play, &f->fake), 0);
	return pair[0];
}

void client_connect(struct client *f, void (*script)(struct fake *fake))
{
	int fd = client_start_fake(f, script);

	assert_int_equal(dioh_connect(fd, 0, &f->session, &f->err), 0);
	assert_int_equal(dioh_session_fd(f->session), fd);
	assert_int_equal(dioh_session_pid(f->session), -1);
}

void client_end_fake(struct client *f)
{
	pthread_join(f->fake.thread, NULL);
	assert_string_equal(f->fake.failure, "");
}

void client_disconnect(struct client *f)
{
	assert_int_equal(dioh_close(f->session, 0, NULL), 0);
	client_end_fake(f);
}

void client_assert_untouched(const struct client *f)
{
	assert_memory_equal(&f->err, &f->untouched, sizeof(f->err));
}

void client_assert_broken(struct client *f, int code)
{
	struct dioh_msg_memory_transfer what = { .length = 4096 };
	struct dioh_msg_status_reply now;
	struct dioh_event event;

	for (int i = 0; i < 2; i++) {
		assert_int_equal(dioh_status(f->session, &now, &f->err), -code);
		assert_int_equal(f->err.code, code);
		assert_int_equal(f->err.object, DIOH_OBJECT_SESSION);
		assert_int_equal(dioh_poll(f->session, &event, -1, &f->err), -code);
		assert_int_equal(dioh_save_memory(f->session, &what, NULL, NULL), -code);
		assert_int_equal(dioh_seal(f->session, 0, NULL, NULL), -code);
	}
}

uint32_t client_begin_save(struct client *f)
{
	struct dioh_msg_memory_transfer what = { .length = 4096 };
	uint32_t transfer = 0;

	assert_int_equal(dioh_save_memory(f->session, &what, &transfer, &f->err), 0);
	assert_int_not_equal(transfer, 0);
	return transfer;
}

void client_ask_status(struct client *f)
{
	struct dioh_msg_status_reply now = { 0 };

	assert_int_equal(dioh_status(f->session, &now, &f->err), 0);
	assert_int_equal(now.in_flight, 5);
}

struct dioh_event client_next_event(struct client *f, int type)
{
	struct dioh_event event;

	memset(&event, 0x5a, sizeof(event)); /* what an event does not say is zero */
	assert_int_equal(dioh_poll(f->session, &event, 5000, &f->err), 1);
	assert_int_equal(event.type, type);
	assert_true(type == DIOH_EVENT_COMPLETE || (event.transfer == 0 && event.error.code == 0));
	assert_true(type == DIOH_EVENT_PROGRESS || event.progress_count == 0);
	return event;
}

void client_assert_completes(struct client *f, uint32_t transfer, int code, uint64_t total_bytes)
{
	struct dioh_event event = client_next_event(f, DIOH_EVENT_COMPLETE);

	assert_int_equal(event.transfer, transfer);
	assert_int_equal(event.error.code, code);
	if (code != 0)
		assert_string_equal(event.error.text, "image: it failed");
	assert_true(event.complete.total_bytes == total_bytes);
}

/* ---- signals ---- */

static void do_nothing(int number)
{
	(void)number;
}

/* A signal every 10 ms: had one come before the wait, the next ends it. One that comes late does nothing, either. */
void client_alarms(bool on)
{
	struct sigaction action = { .sa_handler = on ? do_nothing : SIG_IGN };
	struct itimerval timer = { { 0, on ? 10000 : 0 }, { 0, on ? 10000 : 0 } };

	if (on)
		assert_int_equal(sigaction(SIGALRM, &action, NULL), 0);
	assert_int_equal(setitimer(ITIMER_REAL, &timer, NULL), 0);
	if (!on)
		assert_int_equal(sigaction(SIGALRM, &action, NULL), 0);
}
