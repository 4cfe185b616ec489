/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test_refused_stream.c - a stream of QEMU's that is refused as a mapped-ram image can be saved as it is: every byte of it,
 * from the first one, behind a header or not. And when it cannot.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "align.h"
#include "guest_image.h"
#include "pattern.h"

#define HEADER_BYTES_MAX 70001u

static uint8_t header[HEADER_BYTES_MAX];

/* ---- streams ---- */

/* Behind its setup it starts another section that is sent in parts; then come so many bytes of whatever. */
static void with_dirty_bitmaps(struct guest *g, size_t bytes)
{
	uint8_t *rest = malloc(bytes + 1);

	assert_non_null(rest);
	guest_start(g, 0);
	qemu_put_be(&g->q, 1, 1);
	qemu_put_be(&g->q, 3, 4);
	qemu_put_name(&g->q, "dirty-bitmap");
	pattern_fill(rest, bytes, 5, 0);
	qemu_put(&g->q, rest, bytes);
	free(rest);
}

/* QEMU answers questions on a way back: the first thing in the stream announces it. */
static void with_a_command_first(struct guest *g)
{
	guest_start(g, 0);
	g->q.count = 0;
	qemu_put(&g->q, g->q.configuration, g->q.setup.configuration_bytes);
	qemu_put_command(&g->q, 1, "", 0);
	qemu_put(&g->q, header, 1000);
}

/* ---- a save that is refused, and goes on ---- */

static int file_with(const uint8_t *bytes, size_t count)
{
	int fd = must_new_file("stream", 0);

	assert_int_equal(pwrite(fd, bytes, count, 0), count);
	return fd;
}

/* Memory, where it is in a memory, is not asked for: what is refused is the stream. */
static void start(struct moves *m, int stream)
{
	moves_add_stream(m, GUEST_ENTRY, 0);
	moves_start(m, DIOH_DIRECTION_SAVE);
	moves_attach_stream(m, 0, stream);
}

static int create_as(struct moves *m, uint32_t layout, const struct dioh_msg_entry *more, unsigned more_count)
{
	struct dioh_msg_entry entries[2] = { stream_entry(GUEST_ENTRY, "stream") };
	const struct dioh_create_options options = {
		.layout = layout,
		.entry_count = 1 + more_count,
		.entries = entries,
		.header_bytes = m->header_bytes,
		.header = m->header,
	};

	if (layout == DIOH_LAYOUT_RAW)
		entries[0].image_offset = m->header_bytes;
	if (more_count)
		entries[1] = *more;
	return dioh_create_image(m->session, &options, &m->created, &m->err);
}

static void must_be_refused(struct moves *m, int code)
{
	assert_int_equal(moves_create(m), -code);
	moves_assert_error(m, code, PARSE, STREAM, 0);
	moves_assert_alive(m);
}

static void assert_file(const char *path, uint64_t base, const void *bytes, size_t count, bool to_its_end)
{
	int fd = must_open(path, O_RDONLY);
	uint8_t *there = malloc(count + 1);

	assert_non_null(there);
	assert_int_equal(pread(fd, there, count, (off_t)base), count);
	assert_memory_equal(there, bytes, count);
	if (to_its_end)
		assert_int_equal(must_bytes(fd), base + count);
	free(there);
	close(fd);
}

struct kept {
	struct way way;
	size_t piece; /* of the stream; SIZE_MAX: it is a file */
	uint64_t header_bytes;
};

/* The image is raw now: all of the stream comes into it, and nothing else. */
static void must_end_kept(struct moves *m, struct qemu_feeder *feeder, const struct guest *g)
{
	must(moves_wait(m, guest_begin_stream(m)), &m->err);
	must(moves_finish(m, DIOH_FINISH_DURABLE), &m->err);
	moves_end(m, 0);
	qemu_feeder_join(feeder);
	assert_file(m->path, 0, g->q.bytes, g->q.count, true);
}

static void must_keep(const struct guest *g, int code, const struct kept *how)
{
	struct moves m = MOVES(how->way, fixture_path("kept"));
	const bool fed = how->piece != SIZE_MAX;
	struct qemu_feeder feeder;

	unlink(m.path);
	m.header = how->header_bytes ? header : NULL;
	m.header_bytes = how->header_bytes;
	start(&m, fed ? qemu_feed(&feeder, g->q.bytes, g->q.count, how->piece) : file_with(g->q.bytes, g->q.count));
	must_be_refused(&m, code);
	must(create_as(&m, DIOH_LAYOUT_RAW, NULL, 0), &m.err);
	assert_int_equal(m.created.ready, 1);
	must(moves_wait(&m, guest_begin_stream(&m)), &m.err);
	assert_int_equal(m.complete.total_bytes, g->q.count);
	assert_int_equal(m.complete.data_bytes, g->q.count);
	must(moves_finish(&m, DIOH_FINISH_DURABLE), &m.err);
	moves_end(&m, 0);
	if (fed)
		qemu_feeder_join(&feeder);
	assert_file(m.path, how->way.base_offset, header, how->header_bytes, false);
	assert_file(m.path, how->way.base_offset + how->header_bytes, g->q.bytes, g->q.count, true);
}

static void every_byte_by_every_way(void **state)
{
	static const uint64_t headers[] = { 0, 1, 4096, HEADER_BYTES_MAX };
	static const size_t pieces[] = { 0, 4093, SIZE_MAX };

	(void)state;
	for (unsigned i = 0; i < 24; i++) {
		struct kept how = { WAY_MAPPED_RAM, pieces[i % 3], headers[i % 4] };
		struct guest g;

		how.way.engine = i & 1 ? DIOH_ENGINE_SYNC : DIOH_ENGINE_IO_URING;
		how.way.fds = i / 2 % 3;
		how.way.base_offset = i >= 12 ? 5 * PAGE : 0;
		if (!way_possible(&how.way))
			continue;
		with_dirty_bitmaps(&g, 3 * MIB + 12345 * i);
		must_keep(&g, EOPNOTSUPP, &how);
		guest_free(&g);
	}
}

/* Each piece has been read before the next one comes. */
static void *drip(void *argument)
{
	struct qemu_feeder *feeder = argument;
	const size_t step = feeder->count / 7 + 1;
	int left;

	for (size_t at = 0; at < feeder->count; at += step) {
		const size_t n = dioh_min(step, feeder->count - at);

		if (write(feeder->fd, feeder->bytes + at, n) != (ssize_t)n)
			break;
		while (ioctl(feeder->fd, FIONREAD, &left) == 0 && left > 0)
			usleep(1000);
	}
	close(feeder->fd);
	return NULL;
}

static void a_setup_in_pieces(void **state)
{
	struct moves m = MOVES(WAY_MAPPED_RAM, fixture_path("kept"));
	struct qemu_feeder feeder;
	struct guest g;
	int ends[2];

	(void)state;
	unlink(m.path);
	with_dirty_bitmaps(&g, 0);
	must_ends(PEER_PIPE, ends);
	feeder = (struct qemu_feeder){ .fd = ends[1], .bytes = g.q.bytes, .count = g.q.count };
	assert_int_equal(pthread_create(&feeder.thread, NULL, drip, &feeder), 0);
	start(&m, ends[0]);
	must_be_refused(&m, EOPNOTSUPP);
	must(create_as(&m, DIOH_LAYOUT_RAW, NULL, 0), &m.err);
	must_end_kept(&m, &feeder, &g);
	guest_free(&g);
}

/* All of it has been read when it is refused. */
static void short_streams(void **state)
{
	const struct kept by_bytes = { WAY_MAPPED_RAM, 1, 0 }, at_once = { WAY_MAPPED_RAM, 0, 5000 };
	struct guest g;

	(void)state;
	with_dirty_bitmaps(&g, 0);
	must_keep(&g, EOPNOTSUPP, &by_bytes);
	must_keep(&g, EOPNOTSUPP, &at_once);
	guest_free(&g);
	with_a_command_first(&g);
	must_keep(&g, EOPNOTSUPP, &by_bytes);
	guest_free(&g);
}

/* The helper makes no difference between what is foreign and what is wrong: that is the manager's to do. */
static void streams_that_are_none(void **state)
{
	const struct kept how = { WAY_MAPPED_RAM, 0, 0 };
	struct guest g;

	(void)state;
	guest_make(&g, 0);
	g.q.count = g.q.setup_bytes - 1;
	must_keep(&g, EBADMSG, &how);
	g.q.count = 0;
	must_keep(&g, EBADMSG, &how);
	qemu_put(&g.q, header, 20000);
	must_keep(&g, EBADMSG, &how);
	guest_free(&g);
}

/* ---- what is not possible then ---- */

static void nothing_but_raw(void **state)
{
	struct moves m = MOVES(WAY_MAPPED_RAM, fixture_path("kept"));
	struct dioh_msg_entry entry;
	struct qemu_feeder feeder;
	struct guest g;
	uint32_t count;

	(void)state;
	unlink(m.path);
	with_dirty_bitmaps(&g, 100);
	start(&m, qemu_feed(&feeder, g.q.bytes, g.q.count, 0));
	must_be_refused(&m, EOPNOTSUPP);
	assert_int_equal(create_as(&m, DIOH_LAYOUT_MAPPED_RAM, NULL, 0), -EPROTO);
	moves_assert_error(&m, EPROTO, PROTOCOL, SESSION, 0);
	assert_non_null(strstr(m.err.text, "as it is"));
	assert_int_equal(create_as(&m, DIOH_LAYOUT_CONTAINER, NULL, 0), -EPROTO);
	assert_int_equal(dioh_get_table(m.session, 0, 1, &entry, &count, &m.err), -EPROTO);
	assert_int_equal(moves_finish(&m, DIOH_FINISH_DURABLE), -ENODATA);
	must(create_as(&m, DIOH_LAYOUT_RAW, NULL, 0), &m.err);
	assert_int_equal(create_as(&m, DIOH_LAYOUT_RAW, NULL, 0), -EPROTO);
	must_end_kept(&m, &feeder, &g);
	guest_free(&g);
}

/* What was read does not fit in front of what stands behind it. */
static void no_room_for_what_was_read(void **state)
{
	struct moves m = MOVES(WAY_MAPPED_RAM, fixture_path("kept"));
	struct dioh_msg_entry region = region_entry(1, "behind", PAGE);
	struct guest g;

	(void)state;
	region.image_offset = 4 * PAGE;
	with_dirty_bitmaps(&g, 10 * PAGE);
	start(&m, file_with(g.q.bytes, g.q.count));
	must_be_refused(&m, EOPNOTSUPP);
	must(create_as(&m, DIOH_LAYOUT_RAW, &region, 1), &m.err);
	assert_int_equal(moves_wait(&m, guest_begin_stream(&m)), -EFBIG);
	moves_assert_error(&m, EFBIG, WRITE, IMAGE, 0);
	moves_end(&m, 1);
	guest_free(&g);
}

/* With channels the stream is not all of it. */
static void not_with_channels(void **state)
{
	struct moves m = MOVES(WAY_MAPPED_RAM, fixture_path("kept"));
	struct qemu_feeder feeders[2];
	struct guest g;

	(void)state;
	with_a_command_first(&g);
	moves_add_stream(&m, GUEST_ENTRY, 0);
	moves_start(&m, DIOH_DIRECTION_SAVE);
	moves_attach_stream(&m, 0, qemu_feed(&feeders[0], g.q.bytes, g.q.count, 0));
	moves_attach_stream(&m, 1, qemu_feed(&feeders[1], header, 100, 0));
	m.channels = 1;
	must_be_refused(&m, EOPNOTSUPP);
	assert_int_equal(create_as(&m, DIOH_LAYOUT_RAW, NULL, 0), -EPROTO);
	moves_end(&m, 1);
	qemu_feeder_join(&feeders[0]);
	qemu_feeder_join(&feeders[1]);
	guest_free(&g);
}

/* A table that does not fit is no fault of the stream's. */
static void not_for_another_refusal(void **state)
{
	struct moves m = MOVES(WAY_MAPPED_RAM, fixture_path("kept"));
	struct qemu_feeder feeder;
	struct guest g;

	(void)state;
	guest_make(&g, GUEST_IN(GUEST_RAM));
	start(&m, qemu_feed(&feeder, g.q.bytes, g.q.count, 0));
	moves_add_region(&m, 1, PAGE);
	assert_int_equal(moves_create(&m), -ENOENT);
	moves_assert_error(&m, ENOENT, PARSE, REGION, 1);
	assert_int_equal(create_as(&m, DIOH_LAYOUT_RAW, NULL, 0), -EPROTO);
	moves_end(&m, 1);
	qemu_feeder_join(&feeder);
	guest_free(&g);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_byte_by_every_way),
		cmocka_unit_test(a_setup_in_pieces),
		cmocka_unit_test(short_streams),
		cmocka_unit_test(streams_that_are_none),
		cmocka_unit_test(nothing_but_raw),
		cmocka_unit_test(no_room_for_what_was_read),
		cmocka_unit_test(not_with_channels),
		cmocka_unit_test(not_for_another_refusal),
	};

	signal(SIGPIPE, SIG_IGN);
	pattern_fill(header, sizeof(header), 98, 0);
	return cmocka_run_group_tests_name("refused-stream", tests, NULL, NULL);
}
