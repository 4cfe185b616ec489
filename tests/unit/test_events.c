/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test_events.c - the public API when things do not come in turn: events before replies, ends and breaches at any
 * moment, signals, full sockets. The helper is a thread that plays a script (tests/lib/fake_helper.h).
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "fake_helper.h"
#include "fixture.h"

#define DELAY_MS 60

/* ---- events ---------------------------------------------------------------------------------- */

static void script_interleaved(struct fake *fake)
{
	uint32_t first, second;

	fake_greet(fake);
	first = fake_accept(fake, DIOH_MSG_SAVE_MEMORY);
	second = fake_accept(fake, DIOH_MSG_SAVE_MEMORY);
	fake_progress(fake, 2, 100);
	fake_stuck(fake, 1);
	fake_complete(fake, second, EIO, 2);
	fake_progress(fake, 1, 200);
	fake_stuck(fake, 3);
	fake_complete(fake, first, 0, 1);
	fake_progress(fake, DIOH_TRANSFERS_MAX, 300);
	fake_status(fake);
}

/* Every COMPLETE, the newest of the others, in the order in which they came. */
static void test_events_before_a_reply(void **state)
{
	struct client *f = *state;
	struct dioh_event event;
	uint32_t first, second;

	client_connect(f, script_interleaved);
	first = client_begin_save(f);
	second = client_begin_save(f);
	client_ask_status(f);
	client_assert_completes(f, second, EIO, 2);
	event = client_next_event(f, DIOH_EVENT_STUCK);
	assert_int_equal(event.stuck.in_flight, 3);
	client_assert_completes(f, first, 0, 1);
	event = client_next_event(f, DIOH_EVENT_PROGRESS);
	assert_int_equal(event.phase, DIOH_PHASE_TRANSFER);
	assert_int_equal(event.progress_count, DIOH_TRANSFERS_MAX);
	assert_int_equal(event.progress[DIOH_TRANSFERS_MAX - 1].transfer, DIOH_TRANSFERS_MAX - 1);
	assert_true(event.progress[5].done_bytes == 300);
	assert_int_equal(dioh_poll(f->session, &event, 0, &f->err), 0);
	client_assert_untouched(f);
	client_disconnect(f);
}

static void script_all_at_once(struct fake *fake)
{
	uint32_t ids[DIOH_TRANSFERS_MAX], finish;

	fake_greet(fake);
	for (unsigned i = 0; i < DIOH_TRANSFERS_MAX; i++)
		ids[i] = fake_accept(fake, DIOH_MSG_SAVE_MEMORY);
	finish = fake_accept(fake, DIOH_MSG_FINISH);
	for (unsigned i = DIOH_TRANSFERS_MAX; i-- > 0;)
		fake_complete(fake, ids[i], 0, i);
	fake_complete(fake, finish, 0, 1000);
	fake_status(fake);
	fake_complete(fake, fake_accept(fake, DIOH_MSG_SAVE_MEMORY), 0, 2000);
}

/* As many as there can be arrive during one call, and none is lost; and no more than that is ever begun. */
static void test_as_many_as_there_can_be(void **state)
{
	struct client *f = *state;
	struct dioh_msg_memory_transfer what = { .length = 4096 };
	uint32_t ids[DIOH_TRANSFERS_MAX], finish = 0, more = 4711;

	client_connect(f, script_all_at_once);
	for (unsigned i = 0; i < DIOH_TRANSFERS_MAX; i++)
		ids[i] = client_begin_save(f);
	assert_int_equal(dioh_save_memory(f->session, &what, &more, &f->err), -EBUSY);
	f->err = f->untouched;
	assert_int_equal(dioh_finish(f->session, 0, 0, NULL, 0, &finish, &f->err), 0);
	assert_int_equal(dioh_finish(f->session, 0, 0, NULL, 0, &more, NULL), -EBUSY);
	client_ask_status(f);
	assert_int_equal(dioh_save_memory(f->session, &what, &more, NULL), -EBUSY);
	assert_int_equal(more, 4711);
	for (unsigned i = DIOH_TRANSFERS_MAX; i-- > 0;)
		client_assert_completes(f, ids[i], 0, i);
	client_assert_completes(f, finish, 0, 1000);
	assert_int_equal(dioh_wait(f->session, client_begin_save(f), NULL, &f->err), 0);
	client_assert_untouched(f);
	client_disconnect(f);
}

static void script_ids(struct fake *fake)
{
	fake_greet(fake);
	for (int i = 0; i < 3; i++)
		(void)fake_accept(fake, DIOH_MSG_SAVE_MEMORY);
}

/* Ids are never 0, and never those of a transfer that runs. */
static void test_ids_wrap_around(void **state)
{
	struct client *f = *state;
	uint32_t first, second, third;

	client_connect(f, script_ids);
	f->session->last_id = 0;
	first = client_begin_save(f);
	f->session->last_id = UINT32_MAX - 1;
	second = client_begin_save(f);
	third = client_begin_save(f);
	assert_int_equal(first, 1);
	assert_int_equal(second, UINT32_MAX);
	assert_int_equal(third, 2);
	client_disconnect(f);
}

static void script_wait(struct fake *fake)
{
	uint32_t first, second, third;

	fake_greet(fake);
	first = fake_accept(fake, DIOH_MSG_SAVE_MEMORY);
	second = fake_accept(fake, DIOH_MSG_SAVE_MEMORY);
	third = fake_accept(fake, DIOH_MSG_SAVE_MEMORY);
	fake_progress(fake, 3, 100);
	fake_complete(fake, third, 0, 3);
	fake_stuck(fake, 1);
	fake_complete(fake, first, ENOSPC, 1);
	fake_status(fake);
	sleep_ms(DELAY_MS);
	fake_progress(fake, 1, 200);
	fake_complete(fake, second, 0, 2);
}

static void test_wait(void **state)
{
	struct client *f = *state;
	struct dioh_msg_complete figures = { 0 };
	struct dioh_event event;
	uint32_t first, second, third;

	client_connect(f, script_wait);
	first = client_begin_save(f);
	second = client_begin_save(f);
	third = client_begin_save(f);
	assert_int_equal(dioh_wait(f->session, 4711, &figures, &f->err), -ENOENT);
	assert_int_equal(dioh_wait(f->session, 0, &figures, &f->err), -ENOENT);
	assert_int_equal(dioh_wait(f->session, first, &figures, &f->err), -ENOSPC);
	assert_int_equal(f->err.code, ENOSPC);
	assert_string_equal(f->err.text, "image: it failed");
	assert_true(figures.total_bytes == 1);
	f->err = f->untouched;
	client_ask_status(f);
	client_alarms(true); /* signals do not end the wait */
	assert_int_equal(dioh_wait(f->session, second, &figures, &f->err), 0);
	client_alarms(false);
	assert_true(figures.total_bytes == 2);
	client_assert_untouched(f);
	assert_int_equal(dioh_wait(f->session, second, NULL, NULL), -ENOENT); /* it was taken */
	client_assert_completes(f, third, 0, 3);                              /* it was kept */
	assert_int_equal(dioh_poll(f->session, &event, 0, &f->err), 0); /* the rest was dropped */
	client_disconnect(f);
}

/* ---- the end comes early --------------------------------------------------------------------- */

static void script_close_in_call(struct fake *fake)
{
	uint32_t first, second;

	fake_greet(fake);
	first = fake_accept(fake, DIOH_MSG_SAVE_MEMORY);
	second = fake_accept(fake, DIOH_MSG_SAVE_MEMORY);
	(void)fake_accept(fake, DIOH_MSG_SAVE_MEMORY);
	fake_take(fake, DIOH_MSG_STATUS);
	fake_progress(fake, 1, 100);
	fake_complete(fake, first, 0, 1);
	fake_complete(fake, second, EIO, 2);
	fake_hang_up(fake);
}

static void test_end_in_a_call(void **state)
{
	struct client *f = *state;
	struct dioh_msg_status_reply now = { .phase = 4711 };
	struct dioh_msg_complete figures = { .total_bytes = 4711 };
	uint32_t first, second, third;

	client_connect(f, script_close_in_call);
	first = client_begin_save(f);
	second = client_begin_save(f);
	third = client_begin_save(f);
	assert_int_equal(dioh_status(f->session, &now, &f->err), -EPIPE);
	assert_int_equal(f->err.code, EPIPE);
	assert_int_equal(now.phase, 4711);
	/* What came before is still there. */
	assert_int_equal(dioh_wait(f->session, second, NULL, NULL), -EIO);
	client_assert_completes(f, first, 0, 1);
	assert_int_equal(dioh_wait(f->session, third, &figures, &f->err), -EPIPE);
	assert_true(figures.total_bytes == 4711);
	client_assert_broken(f, EPIPE);
	client_disconnect(f);
}

static void script_close_before_call(struct fake *fake)
{
	uint32_t id;

	fake_greet(fake);
	id = fake_accept(fake, DIOH_MSG_SAVE_MEMORY);
	fake_complete(fake, id, 0, 1);
	fake_hang_up(fake);
}

/* The next request cannot even be sent. A COMPLETE that waits in the socket must come all the same. */
static void test_end_before_a_call(void **state)
{
	struct client *f = *state;
	struct dioh_msg_status_reply now;
	uint32_t transfer;

	client_connect(f, script_close_before_call);
	transfer = client_begin_save(f);
	client_end_fake(f);
	assert_int_equal(dioh_status(f->session, &now, &f->err), -EPIPE);
	client_assert_completes(f, transfer, 0, 1);
	client_assert_broken(f, EPIPE);
	assert_int_equal(dioh_close(f->session, 0, NULL), 0);
}

static void script_close_with_unread_request(struct fake *fake)
{
	struct pollfd request = { fake->fd, POLLIN, 0 };
	uint32_t id;

	fake_greet(fake);
	id = fake_accept(fake, DIOH_MSG_SAVE_MEMORY);
	fake_complete(fake, id, 0, 1);
	poll(&request, 1, 5000); /* STATUS is there and stays unread: that resets the connection */
	fake_hang_up(fake);
}

static void test_reset_in_a_call(void **state)
{
	struct client *f = *state;
	struct dioh_msg_status_reply now;
	uint32_t transfer;

	client_connect(f, script_close_with_unread_request);
	transfer = client_begin_save(f);
	assert_int_equal(dioh_status(f->session, &now, &f->err), -EPIPE);
	client_assert_completes(f, transfer, 0, 1);
	client_assert_broken(f, EPIPE);
	client_disconnect(f);
}

static void script_shut_for_reading(struct fake *fake)
{
	fake_greet(fake);
	shutdown(fake->fd, SHUT_RD);
	fake_progress(fake, 0, 0); /* the sign that it is done */
	sleep_ms(20 * DELAY_MS);
}

/* Requests do not get through, and still the end is not there: nobody may wait for it. */
static void test_shut_for_reading(void **state)
{
	struct client *f = *state;
	struct dioh_msg_status_reply now;
	uint64_t begun;

	client_connect(f, script_shut_for_reading);
	(void)client_next_event(f, DIOH_EVENT_PROGRESS);
	begun = now_ms();
	assert_int_equal(dioh_status(f->session, &now, &f->err), -EPIPE);
	client_assert_broken(f, EPIPE);
	assert_true(now_ms() - begun < 15 * DELAY_MS);
	client_disconnect(f);
}

/* ---- a helper that breaks the protocol ------------------------------------------------------- */

static void bad_status(struct fake *fake, struct dioh_msg_header change, size_t size)
{
	struct dioh_msg_status_reply now = { .phase = DIOH_PHASE_READY, .in_flight = 5 };
	struct dioh_msg_header header;

	fake_greet(fake);
	fake_take(fake, DIOH_MSG_STATUS);
	header = (struct dioh_msg_header){ .type = fake->in.header.type + 1 + change.type,
		                           .flags = change.flags,
		                           .id = fake->in.header.id + change.id };
	fake_send(fake, header, &now, size);
}

#define STATUS_BYTES sizeof(struct dioh_msg_status_reply)

static void script_other_id(struct fake *fake)
{
	bad_status(fake, (struct dioh_msg_header){ .id = 1 }, STATUS_BYTES);
}

static void script_other_type(struct fake *fake)
{
	bad_status(fake, (struct dioh_msg_header){ .type = 2 }, STATUS_BYTES);
}

static void script_short_reply(struct fake *fake)
{
	bad_status(fake, (struct dioh_msg_header){ 0 }, STATUS_BYTES - 1);
}

static void script_unknown_flag(struct fake *fake)
{
	bad_status(fake, (struct dioh_msg_header){ .flags = 2 }, STATUS_BYTES);
}

static void script_no_error_struct(struct fake *fake)
{
	bad_status(fake, (struct dioh_msg_header){ .flags = DIOH_MSG_ERROR }, STATUS_BYTES);
}

static void script_unknown_event(struct fake *fake)
{
	bad_status(fake, (struct dioh_msg_header){ .type = 200 }, STATUS_BYTES);
}

static void script_bad_phase(struct fake *fake)
{
	struct dioh_msg_status_reply now = { .phase = 99 };

	fake_greet(fake);
	fake_take(fake, DIOH_MSG_STATUS);
	fake_reply(fake, &now, sizeof(now));
}

static void script_error_without_code(struct fake *fake)
{
	struct dioh_msg_header header = { .type = DIOH_MSG_STATUS + 1, .flags = DIOH_MSG_ERROR };
	struct dioh_msg_error error = { .code = 0 };

	fake_greet(fake);
	fake_take(fake, DIOH_MSG_STATUS);
	header.id = fake->in.header.id;
	fake_send(fake, header, &error, sizeof(error));
}

static void script_descriptors(struct fake *fake)
{
	struct dioh_msg_status_reply now = { .phase = DIOH_PHASE_READY };
	struct dioh_msg_header header = { .type = DIOH_MSG_STATUS + 1, .size = sizeof(now) };
	int fds[] = { fake->fd, fake->fd };
	struct dioh_error err;

	fake_greet(fake);
	fake_take(fake, DIOH_MSG_STATUS);
	header.id = fake->in.header.id;
	if (dioh_channel_send(fake->fd, &header, &now, fds, 2, 0, &err) < 0)
		fake_blame(fake, err.text, err.code);
}

static void script_too_short_for_a_header(struct fake *fake)
{
	fake_greet(fake);
	fake_take(fake, DIOH_MSG_STATUS);
	if (send(fake->fd, "oops", 4, 0) != 4)
		fake_blame(fake, "send", errno);
}

static void script_size_lies(struct fake *fake)
{
	struct dioh_msg_header header = { .type = DIOH_MSG_STATUS + 1, .size = STATUS_BYTES };

	fake_greet(fake);
	fake_take(fake, DIOH_MSG_STATUS);
	header.id = fake->in.header.id;
	if (send(fake->fd, &header, sizeof(header), 0) != (ssize_t)sizeof(header))
		fake_blame(fake, "send", errno);
}

static void script_complete_of_nothing(struct fake *fake)
{
	fake_greet(fake);
	fake_take(fake, DIOH_MSG_STATUS);
	fake_complete(fake, 4711, 0, 1);
}

static void script_progress_lies(struct fake *fake)
{
	struct dioh_msg_header header = { .type = DIOH_MSG_PROGRESS };
	struct dioh_msg_progress event = { .phase = DIOH_PHASE_TRANSFER, .count = UINT32_MAX };

	fake_greet(fake);
	fake_take(fake, DIOH_MSG_STATUS);
	fake_send(fake, header, &event, sizeof(event));
}

static void script_request(struct fake *fake)
{
	struct dioh_msg_header header = { .type = DIOH_MSG_STATUS, .id = 1 };

	fake_greet(fake);
	fake_take(fake, DIOH_MSG_STATUS);
	fake_send(fake, header, NULL, 0);
}

static void test_breaches_in_a_call(void **state)
{
	void (*scripts[])(struct fake *) = {
		script_other_id,        script_other_type,
		script_short_reply,     script_unknown_flag,
		script_no_error_struct, script_unknown_event,
		script_bad_phase,       script_error_without_code,
		script_descriptors,     script_too_short_for_a_header,
		script_size_lies,       script_complete_of_nothing,
		script_progress_lies,   script_request,
	};
	struct client *f = *state;

	for (size_t i = 0; i < sizeof(scripts) / sizeof(scripts[0]); i++) {
		struct dioh_msg_status_reply now = { .phase = 4711 };

		client_connect(f, scripts[i]);
		print_message("breach %zu\n", i);
		assert_int_equal(dioh_status(f->session, &now, &f->err), -EBADMSG);
		assert_int_equal(f->err.code, EBADMSG);
		assert_true(strlen(f->err.text) > 0);
		assert_int_equal(now.phase, 4711);
		client_assert_broken(f, EBADMSG);
		client_disconnect(f);
	}
}

static void script_unasked_reply(struct fake *fake)
{
	fake_greet(fake);
	fake_reply(fake, NULL, 0);
}

static void script_complete_twice(struct fake *fake)
{
	uint32_t id;

	fake_greet(fake);
	id = fake_accept(fake, DIOH_MSG_SAVE_MEMORY);
	fake_complete(fake, id, 0, 1);
	fake_complete(fake, id, 0, 2);
	fake_take(fake, DIOH_MSG_STATUS); /* for which no reply is needed any more */
}

static void test_breaches_between_calls(void **state)
{
	struct client *f = *state;
	struct dioh_msg_status_reply now;
	struct dioh_event event;
	uint32_t transfer;

	client_connect(f, script_unasked_reply);
	assert_int_equal(dioh_poll(f->session, &event, 5000, &f->err), -EBADMSG);
	assert_non_null(strstr(f->err.text, "unasked"));
	client_assert_broken(f, EBADMSG);
	client_disconnect(f);

	client_connect(f, script_complete_twice);
	transfer = client_begin_save(f);
	assert_int_equal(dioh_status(f->session, &now, &f->err), -EBADMSG);
	client_assert_completes(f, transfer, 0, 1);
	client_assert_broken(f, EBADMSG);
	client_disconnect(f);
}

/* ---- waiting --------------------------------------------------------------------------------- */

static void script_late_event(struct fake *fake)
{
	fake_greet(fake);
	fake_take(fake, DIOH_MSG_STATUS);
	sleep_ms(2 * DELAY_MS);
	fake_progress(fake, 0, 0);
	{
		struct dioh_msg_status_reply now = { .phase = DIOH_PHASE_READY, .in_flight = 5 };

		fake_reply(fake, &now, sizeof(now));
	}
}

static void script_only_status(struct fake *fake)
{
	fake_greet(fake);
	fake_status(fake);
}

static void test_poll_waits(void **state)
{
	struct client *f = *state;
	struct dioh_event event;
	uint64_t begun;

	client_connect(f, script_only_status);
	memset(&event, 0x5a, sizeof(event));
	begun = now_ms();
	assert_int_equal(dioh_poll(f->session, &event, 0, &f->err), 0);
	assert_int_equal(dioh_poll(f->session, &event, DELAY_MS, &f->err), 0);
	assert_true(now_ms() - begun >= DELAY_MS);
	assert_int_equal(event.type, 0x5a5a5a5a);
	client_assert_untouched(f);
	client_alarms(true);
	assert_int_equal(dioh_poll(f->session, &event, -1, &f->err), -EINTR);
	client_alarms(false);
	assert_int_equal(f->err.code, EINTR);
	client_ask_status(f); /* it was no harm */
	client_disconnect(f);
}

/* A reply must not be lost because a signal came while it was awaited. */
static void test_signals_in_a_call(void **state)
{
	struct client *f = *state;

	client_connect(f, script_late_event);
	client_alarms(true);
	client_ask_status(f);
	client_alarms(false);
	(void)client_next_event(f, DIOH_EVENT_PROGRESS);
	client_disconnect(f);
}

static void script_event_loop(struct fake *fake)
{
	uint32_t first, second;

	fake_greet(fake);
	first = fake_accept(fake, DIOH_MSG_SAVE_MEMORY);
	second = fake_accept(fake, DIOH_MSG_SAVE_MEMORY);
	sleep_ms(DELAY_MS);
	fake_progress(fake, 2, 1);
	fake_complete(fake, first, 0, 1);
	fake_complete(fake, second, 0, 2);
}

/* A caller with an event loop of its own: the descriptor becomes readable, and is read until nothing is left. */
static void test_own_event_loop(void **state)
{
	struct client *f = *state;
	struct pollfd watched;
	unsigned completed = 0;

	client_connect(f, script_event_loop);
	(void)client_begin_save(f);
	(void)client_begin_save(f);
	watched = (struct pollfd){ dioh_session_fd(f->session), POLLIN, 0 };
	while (completed < 2) {
		struct dioh_event event;
		int r;

		assert_int_equal(poll(&watched, 1, 5000), 1);
		while ((r = dioh_poll(f->session, &event, 0, &f->err)) == 1)
			completed += event.type == DIOH_EVENT_COMPLETE;
		assert_int_equal(r, 0);
	}
	client_disconnect(f);
}

#define EVENTS_MANY 3000 /* many times what a socket holds */

static void script_talks_before_it_listens(struct fake *fake)
{
	uint32_t ids[3], type = 0;

	fake_greet(fake);
	for (int i = 0; i < 3; i++)
		ids[i] = fake_accept(fake, DIOH_MSG_SAVE_MEMORY);
	for (int i = 0; i < EVENTS_MANY; i++) {
		fake_progress(fake, DIOH_TRANSFERS_MAX, (uint64_t)i);
		if (i % 1000 == 0)
			fake_complete(fake, ids[i / 1000], 0, (uint64_t)i);
	}
	while (fake->fd >= 0 && fake->failure[0] == '\0' && type != DIOH_MSG_STATUS) {
		struct dioh_error err;

		if (dioh_channel_receive(fake->fd, &fake->in, 0, &err) < 0)
			fake_blame(fake, err.text, err.code);
		type = fake->in.header.type;
	}
	{
		struct dioh_msg_status_reply now = { .phase = DIOH_PHASE_READY, .in_flight = 5 };

		fake_reply(fake, &now, sizeof(now));
	}
}

/* The socket is full in both directions: who waits to send must listen, or both wait for ever. */
static void test_full_socket(void **state)
{
	struct client *f = *state;
	struct dioh_msg_header filler = { .type = DIOH_MSG_CANCEL, .id = 1, .size = 4096 };
	static const uint8_t bytes[4096];
	uint32_t ids[3];

	client_connect(f, script_talks_before_it_listens);
	for (int i = 0; i < 3; i++)
		ids[i] = client_begin_save(f);
	while (dioh_channel_send(dioh_session_fd(f->session), &filler, bytes, NULL, 0, MSG_DONTWAIT,
	                         &f->err) == 0)
		continue;
	client_ask_status(f);
	for (int i = 0; i < 3; i++)
		client_assert_completes(f, ids[i], 0, (uint64_t)i * 1000);
	assert_true(client_next_event(f, DIOH_EVENT_PROGRESS).progress[0].done_bytes ==
	            EVENTS_MANY - 1);
	client_disconnect(f);
}

static const struct dioh_msg_error *last_words;

/* Behind a transfer's end, and instead of a reply. */
static void script_last_words(struct fake *fake)
{
	struct dioh_msg_header header = { .type = DIOH_MSG_BROKEN };
	uint32_t id;

	fake_greet(fake);
	id = fake_accept(fake, DIOH_MSG_SAVE_MEMORY);
	(void)fake_accept(fake, DIOH_MSG_SAVE_MEMORY);
	fake_take(fake, DIOH_MSG_STATUS);
	fake_complete(fake, id, 0, 1);
	fake_send(fake, header, last_words, sizeof(*last_words));
	fake_hang_up(fake);
}

static void assert_last_words(struct client *f, const struct dioh_msg_error *words, const char *text)
{
	struct dioh_msg_complete figures = { .total_bytes = 4711 };
	struct dioh_msg_status_reply status;
	uint32_t first, second;

	last_words = words;
	client_connect(f, script_last_words);
	first = client_begin_save(f);
	second = client_begin_save(f);
	assert_int_equal(dioh_status(f->session, &status, &f->err), -EPIPE);
	client_assert_completes(f, first, 0, 1);
	client_assert_broken(f, EPIPE);
	f->err = f->untouched;
	assert_int_equal(dioh_wait(f->session, second, &figures, &f->err), -EPIPE);
	assert_true(figures.total_bytes == 4711);
	assert_string_equal(f->err.text, text);
	assert_int_equal(f->err.code, EPIPE);
	assert_int_equal(f->err.object, DIOH_OBJECT_SESSION);
	assert_int_equal(f->err.operation, words->operation);
	client_disconnect(f);
}

/*
 * What the helper ended for is in what this call and all further ones answer. But it is the helper's end, not a transfer
 * that failed with EIO and is over, nor -EAGAIN for a caller who would come again.
 */
static void test_last_words(void **state)
{
	struct dioh_msg_error words = { .code = ENOSYS, .operation = DIOH_OP_SEAL, .text = "its last words" };
	char text[DIOH_TEXT_BYTES];

	assert_last_words(*state, &words, "its last words (ENOSYS)");
	words = (struct dioh_msg_error){ .code = EIO, .object = DIOH_OBJECT_STREAM, .text = "no I/O" };
	assert_last_words(*state, &words, "no I/O (EIO)");
	words.code = EAGAIN;
	assert_last_words(*state, &words, "no I/O (EAGAIN)");
	words.code = 4000;
	memset(words.text, 'x', sizeof(words.text) - 1); /* as long as it can be */
	memset(text, 'x', sizeof(text));
	strcpy(&text[sizeof(text) - sizeof(" (errno 4000)")], " (errno 4000)");
	assert_last_words(*state, &words, text);
}

#define TEST(function) cmocka_unit_test_setup_teardown(function, client_set_up, client_tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_events_before_a_reply),
		TEST(test_as_many_as_there_can_be),
		TEST(test_ids_wrap_around),
		TEST(test_wait),
		TEST(test_end_in_a_call),
		TEST(test_end_before_a_call),
		TEST(test_reset_in_a_call),
		TEST(test_shut_for_reading),
		TEST(test_breaches_in_a_call),
		TEST(test_breaches_between_calls),
		TEST(test_poll_waits),
		TEST(test_signals_in_a_call),
		TEST(test_own_event_loop),
		TEST(test_full_socket),
		TEST(test_last_words),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
