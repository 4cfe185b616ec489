/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test_stream_peers.c - who is at the other end of a stream: slow, vanished, silent or killed. The session goes on, and
 * what waits for a peer can be cancelled.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cleanup.h"
#include "moves.h"
#include "pattern.h"

#define SAVE DIOH_DIRECTION_SAVE
#define LOAD DIOH_DIRECTION_LOAD

/* ---- peers ---- */

static void expect_alive(struct moves *m, uint32_t stream, uint32_t entry, uint64_t bytes, int sink)
{
	must(moves_wait(m, moves_begin_stream(m, stream, entry, 0)), &m->err);
	assert_true(same_pattern(sink, 0, bytes, entry));
	moves_assert_alive(m);
}

/* An image with stream 3 of so many bytes. */
static void save_one(const struct way *way, const char *path, uint64_t bytes, uint32_t flags)
{
	struct moves m = MOVES(*way, path);
	int source = must_new_file("source", 3);

	must_write_pattern(source, 0, bytes, 3);
	moves_add_stream(&m, 3, bytes)->image_offset = 8;
	moves_start(&m, SAVE);
	moves_attach_stream(&m, 0, source);
	must(moves_create(&m), &m.err);
	must(moves_wait(&m, moves_begin_stream(&m, 0, 3, flags)), &m.err);
	must(moves_finish(&m, DIOH_FINISH_DURABLE), &m.err);
	moves_end(&m, 0);
}

static void load_with(struct moves *m, const struct way *way, const char *path, uint64_t bytes, int fd, int sink)
{
	*m = (struct moves)MOVES(*way, path);
	moves_add_stream(m, 3, bytes)->image_offset = 8;
	moves_start(m, LOAD);
	moves_attach_stream(m, 0, fd);
	moves_attach_stream(m, 1, fcntl(sink, F_DUPFD_CLOEXEC, 0));
	must(moves_open(m, 0), &m->err);
}

static void vanishing_reader(const struct way *way, enum peer_kind kind, uint64_t takes)
{
	const uint64_t bytes = 3 * MIB + 100;
	const char *path = fixture_path("vanish");
	int ends[2], sink = must_new_file("sink", 0);
	struct peer reader;
	struct moves m;
	uint32_t id;

	save_one(way, path, bytes, 0);
	must_ends(kind, ends);
	reader = (struct peer){ .fd = ends[0], .seed = 3, .bytes = takes, .pause_us = 500 };
	load_with(&m, way, path, bytes, ends[1], sink);
	id = moves_begin_stream(&m, 0, 3, 0);
	peer_read(&reader);
	assert_int_equal(moves_wait(&m, id), -EPIPE);
	moves_assert_error(&m, EPIPE, WRITE, STREAM, 0);
	assert_true(m.err.offset < bytes);
	peer_assert_read(&reader, takes);
	expect_alive(&m, 1, 3, bytes, sink);
	moves_end(&m, 0);
	close(sink);
}

static void vanishing_readers(const struct way *way)
{
	vanishing_reader(way, PEER_PIPE, 0);
	vanishing_reader(way, PEER_PIPE, MIB + 12345);
	vanishing_reader(way, PEER_SOCKET, 300000);
}

static void reader_vanishes(void **state)
{
	(void)state;
	for_each_way(vanishing_readers);
}

static void slow_reader(const struct way *way)
{
	const uint64_t bytes = 2 * MIB + 100;
	const char *path = fixture_path("slow");
	int ends[2], sink = must_new_file("sink", 0);
	struct peer reader;
	struct moves m;

	save_one(way, path, bytes, DIOH_TRANSFER_NO_CHECKSUM);
	must_ends(PEER_PIPE, ends);
	reader = (struct peer){ .fd = ends[0], .seed = 3, .bytes = bytes + 1, .piece_max = 40000, .pause_us = 2000 };
	load_with(&m, way, path, bytes, ends[1], sink);
	peer_read(&reader);
	must(moves_wait(&m, moves_begin_stream(&m, 0, 3, 0)), &m.err);
	peer_assert_read(&reader, bytes);
	moves_end(&m, 0);
	close(sink);
}

static void reader_is_slow(void **state)
{
	(void)state;
	for_each_way(slow_reader);
}

static pid_t writer_process(int fd, uint64_t bytes)
{
	pid_t pid = fork();

	if (pid == 0) {
		static uint8_t piece[4096];

		for (uint64_t done = 0; done < bytes; done += sizeof(piece)) {
			pattern_fill(piece, sizeof(piece), 3, done);
			if (write(fd, piece, sizeof(piece)) != sizeof(piece))
				_exit(1);
		}
		pause();
		_exit(0);
	}
	close(fd);
	return pid;
}

/* All that had been written before the writer was killed is a stream like any other. */
static void killed_writer(const struct way *way, enum peer_kind kind)
{
	const uint64_t bytes = 300 * 1024;
	struct moves m = MOVES(*way, fixture_path("killed"));
	struct dioh_msg_status_reply status;
	int ends[2], sink = must_new_file("sink", 0);
	uint32_t id;
	pid_t pid;

	moves_add_stream(&m, 3, bytes)->image_offset = 8;
	must_ends(kind, ends);
	moves_start(&m, SAVE);
	moves_attach_stream(&m, 0, ends[0]);
	must(moves_create(&m), &m.err);
	pid = writer_process(ends[1], bytes);
	id = moves_begin_stream(&m, 0, 3, 0);
	do {
		usleep(1000);
		must(dioh_status(m.session, &status, &m.err), &m.err);
	} while (status.done_bytes < bytes);
	kill(pid, SIGKILL);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
	must(moves_wait(&m, id), &m.err);
	assert_int_equal(m.complete.total_bytes, bytes);
	must(moves_finish(&m, DIOH_FINISH_DURABLE), &m.err);
	moves_end(&m, 0);
	load_with(&m, way, m.path, bytes, fcntl(sink, F_DUPFD_CLOEXEC, 0), sink);
	expect_alive(&m, 1, 3, bytes, sink);
	moves_end(&m, 0);
	close(sink);
}

static void killed_writers(const struct way *way)
{
	killed_writer(way, PEER_PIPE);
	killed_writer(way, PEER_SOCKET);
}

static void writer_is_killed(void **state)
{
	(void)state;
	for_each_way(killed_writers);
}

/* ---- cancel ---- */

/* At once, that is: not when the silent peer speaks. Generous, since the machine may be busy. */
#define PROMPT_MS 10000

static void expect_cancelled(struct moves *m, uint32_t id)
{
	uint64_t begun = now_ms();
	uint32_t in_flight;

	must(dioh_cancel(m->session, id, &in_flight, &m->err), &m->err);
	assert_int_equal(moves_wait(m, id), -ECANCELED);
	assert_int_equal(m->err.code, ECANCELED);
	assert_true(now_ms() - begun < PROMPT_MS);
	moves_assert_alive(m);
}

/* While the session goes on: whoever writes or reads sees that nobody is there any more. */
static void expect_peer_told(int fd)
{
	struct pollfd hung_up = { .fd = fd };

	assert_int_equal(poll(&hung_up, 1, PROMPT_MS), 1);
	assert_true(hung_up.revents & (POLLERR | POLLHUP));
}

static void cancel_silent_save(const struct way *way, enum peer_kind kind)
{
	struct moves m = MOVES(*way, fixture_path("silent"));
	int ends[2], memory = must_memfd("memory", MIB, 0);
	uint32_t id;

	moves_add_region(&m, 0, MIB);
	moves_add_stream(&m, 3, 0);
	must_ends(kind, ends);
	moves_start(&m, SAVE);
	moves_attach(&m, 0, memory, -1);
	moves_attach_stream(&m, 0, ends[0]);
	must(moves_create(&m), &m.err);
	id = moves_begin_stream(&m, 0, 3, 0);
	must(moves_region(&m, 0, 0), &m.err); /* nobody is held up by it */
	assert_int_equal(write(ends[1], "a few", 5), 5);
	usleep(20000);
	expect_cancelled(&m, id);
	expect_peer_told(ends[1]);
	assert_int_equal(moves_finish(&m, DIOH_FINISH_DURABLE), -ENODATA);
	moves_assert_error(&m, ENODATA, FINISH, STREAM, 3);
	moves_end(&m, 1);
	close(ends[1]);
	close(memory);
}

static void cancel_unread_load(const struct way *way, enum peer_kind kind)
{
	const uint64_t bytes = 6 * MIB;
	const char *path = fixture_path("unread");
	int ends[2], sink = must_new_file("sink", 0);
	struct moves m;
	uint32_t id;

	save_one(way, path, bytes, 0);
	must_ends(kind, ends);
	load_with(&m, way, path, bytes, ends[1], sink);
	id = moves_begin_stream(&m, 0, 3, 0);
	usleep(20000);
	expect_cancelled(&m, id);
	expect_peer_told(ends[0]);
	expect_alive(&m, 1, 3, bytes, sink);
	moves_end(&m, 0);
	close(ends[0]);
	close(sink);
}

static void cancels(const struct way *way)
{
	cancel_silent_save(way, PEER_PIPE);
	cancel_silent_save(way, PEER_SOCKET);
	cancel_unread_load(way, PEER_PIPE);
	cancel_unread_load(way, PEER_SOCKET);
}

static void cancel_while_the_peer_is_silent(void **state)
{
	(void)state;
	for_each_way(cancels);
}

/* Pages one by one, more of them in flight than an engine takes: the stream's own I/O has to wait for its turn. */
static int scattered(uint64_t bytes)
{
	int fd = must_memfd("scattered", bytes, 0);

	for (uint64_t at = 0; at < bytes; at += 9 * PAGE)
		must_write_pattern(fd, at, PAGE, at);
	return fd;
}

#define WAITING 12u /* streams; at one of these moments the queue is full and the I/O of one waits */

static void expect_all_cancelled(struct moves *m, const uint32_t *ids)
{
	const uint64_t begun = now_ms();

	for (unsigned left = WAITING; left > 0;) {
		struct dioh_event event;

		assert_true(now_ms() - begun < 2 * PROMPT_MS); /* PROGRESS comes as long as one runs */
		assert_int_equal(dioh_poll(m->session, &event, 5000, &m->err), 1);
		if (event.type != DIOH_EVENT_COMPLETE)
			continue;
		assert_true(event.transfer >= ids[0] && event.transfer <= ids[WAITING - 1]);
		assert_int_equal(event.error.code, ECANCELED);
		left--;
	}
}

static void cancel_before_its_turn(const struct way *way)
{
	const uint64_t bytes = 64 * MIB;
	const struct dioh_msg_memory_transfer what = { .length = bytes };
	struct moves m = MOVES(*way, fixture_path("turn"));
	int memory = scattered(bytes), writers[WAITING];
	uint32_t region, ids[WAITING], in_flight;

	m.in_flight = DIOH_IN_FLIGHT_MAX;
	moves_add_region(&m, 0, bytes);
	moves_start(&m, SAVE);
	moves_attach(&m, 0, memory, -1);
	for (unsigned i = 0; i < WAITING; i++) {
		int ends[2];

		must_ends(PEER_PIPE, ends);
		moves_add_stream(&m, i, 0);
		moves_attach_stream(&m, i, ends[0]);
		writers[i] = ends[1];
	}
	must(moves_create(&m), &m.err);
	region = moves_begin(&m, &what);
	for (unsigned i = 0; i < WAITING; i++) {
		ids[i] = moves_begin_stream(&m, i, i, 0);
		usleep(500 * i);
		must(dioh_cancel(m.session, ids[i], &in_flight, &m.err), &m.err);
	}
	must(moves_wait(&m, region), &m.err);
	expect_all_cancelled(&m, ids);
	moves_end(&m, 1);
	for (unsigned i = 0; i < WAITING; i++)
		close(writers[i]);
	close(memory);
}

static void cancel_behind_a_full_queue(void **state)
{
	(void)state;
	cancel_before_its_turn(&(struct way){ .layout = DIOH_LAYOUT_CONTAINER });
	cancel_before_its_turn(&(struct way){ .layout = DIOH_LAYOUT_CONTAINER, .engine = DIOH_ENGINE_SYNC });
}

/* Hanging up does the same. */
static void hang_up(const struct way *way)
{
	struct moves m = MOVES(*way, fixture_path("hangup"));
	uint64_t begun;
	int ends[2];

	moves_add_stream(&m, 3, 0);
	must_ends(PEER_PIPE, ends);
	moves_start(&m, SAVE);
	moves_attach_stream(&m, 0, ends[0]);
	must(moves_create(&m), &m.err);
	moves_begin_stream(&m, 0, 3, 0);
	begun = now_ms();
	moves_end(&m, 1);
	assert_true(now_ms() - begun < PROMPT_MS);
	close(ends[1]);
}

static void hang_up_while_the_peer_is_silent(void **state)
{
	(void)state;
	for_each_way(hang_up);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(reader_vanishes),
		cmocka_unit_test(reader_is_slow),
		cmocka_unit_test(writer_is_killed),
		cmocka_unit_test(cancel_while_the_peer_is_silent),
		cmocka_unit_test(cancel_behind_a_full_queue),
		cmocka_unit_test(hang_up_while_the_peer_is_silent),
	};

	signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests_name("stream peers", tests, NULL, NULL);
}
