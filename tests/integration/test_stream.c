/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test_stream.c - streams go into images and come back identical: by pipe, socket and file, of every awkward length,
 * at any place of a raw image. Runs again on tmpfs.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "cleanup.h"
#include "moves.h"
#include "pattern.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

#define SAVE DIOH_DIRECTION_SAVE
#define LOAD DIOH_DIRECTION_LOAD

/* The last ones end at, before and behind an extent's end, and in the third extent. */
static const uint64_t lengths[] = {
	0, 1, 511, 4095, 4096, 4097, MIB - 1, MIB, MIB + 1, 4 * MIB - 1, 4 * MIB, 4 * MIB + 1, 13 * MIB + 777,
};

#define LENGTHS COUNT(lengths)

/* ---- all lengths, all kinds ---- */

struct bundle { /* a stream of each length */
	struct moves m;
	enum peer_kind kind;
	struct peer peers[LENGTHS];
	int files[LENGTHS];
	uint32_t ids[LENGTHS];
};

/* Raw places are on no boundary, with a byte of the header between them. */
static void describe(struct bundle *b, const struct way *way, enum peer_kind kind)
{
	memset(b, 0, sizeof(*b));
	b->m = (struct moves)MOVES(*way, fixture_path("image"));
	b->m.header = "header";
	b->m.header_bytes = 6;
	b->kind = kind;
	for (unsigned i = 0; i < LENGTHS; i++)
		moves_add_stream(&b->m, i, lengths[i])->image_offset += 1 + i % 3;
}

static void attach_source(struct bundle *b, unsigned i)
{
	/* Random pieces for most, tiny ones for some. */
	const unsigned piece_max = i % 2 ? 7000 : 0;
	int ends[2];

	if (b->kind == PEER_FILE) {
		int fd = must_new_file("source", i);

		must_write_pattern(fd, 0, lengths[i], i);
		moves_attach_stream(&b->m, i, fd);
		return;
	}
	must_ends(b->kind, ends);
	moves_attach_stream(&b->m, i, ends[0]);
	b->peers[i] = (struct peer){ .fd = ends[1], .seed = i, .bytes = lengths[i], .piece_max = piece_max };
	peer_write(&b->peers[i]);
}

static void attach_sink(struct bundle *b, unsigned i)
{
	int ends[2];

	if (b->kind == PEER_FILE) {
		b->files[i] = must_new_file("sink", i);
		moves_attach_stream(&b->m, i, fcntl(b->files[i], F_DUPFD_CLOEXEC, 0));
		return;
	}
	must_ends(b->kind == PEER_NONBLOCKING_PIPE ? PEER_PIPE : b->kind, ends);
	if (b->kind == PEER_NONBLOCKING_PIPE)
		assert_int_equal(fcntl(ends[1], F_SETFL, O_NONBLOCK), 0);
	moves_attach_stream(&b->m, i, ends[1]);
	/* One more than can come: it reads to the end. */
	b->peers[i] = (struct peer){ .fd = ends[0], .seed = i, .bytes = lengths[i] + 1 };
	peer_read(&b->peers[i]);
}

static void begin_and_wait(struct bundle *b)
{
	for (unsigned i = 0; i < LENGTHS; i++)
		b->ids[i] = moves_begin_stream(&b->m, i, i, 0);
	for (unsigned i = 0; i < LENGTHS; i++) {
		must(moves_wait(&b->m, b->ids[i]), &b->m.err);
		assert_int_equal(b->m.complete.total_bytes, lengths[i]);
		assert_int_equal(b->m.complete.data_bytes, lengths[i]);
	}
}

static void save_bundle(const struct way *way, enum peer_kind kind)
{
	struct bundle b;

	describe(&b, way, kind);
	moves_start(&b.m, SAVE);
	for (unsigned i = 0; i < LENGTHS; i++)
		attach_source(&b, i);
	must(moves_create(&b.m), &b.m.err);
	begin_and_wait(&b);
	must(moves_finish(&b.m, DIOH_FINISH_DURABLE), &b.m.err);
	moves_end(&b.m, 0);
	for (unsigned i = 0; i < LENGTHS && kind != PEER_FILE; i++) {
		peer_join(&b.peers[i]);
		assert_int_equal(b.peers[i].code, 0);
	}
}

static void expect_lengths(struct bundle *b)
{
	struct dioh_msg_entry entries[LENGTHS];
	uint32_t count;

	must(dioh_get_table(b->m.session, 0, LENGTHS, entries, &count, &b->m.err), &b->m.err);
	assert_int_equal(count, LENGTHS);
	for (unsigned i = 0; i < LENGTHS; i++)
		assert_int_equal(entries[i].bytes, lengths[i]);
}

static void load_bundle(const struct way *way, enum peer_kind kind)
{
	struct bundle b;

	describe(&b, way, kind);
	moves_start(&b.m, LOAD);
	for (unsigned i = 0; i < LENGTHS; i++)
		attach_sink(&b, i);
	must(moves_open(&b.m, 0), &b.m.err);
	expect_lengths(&b);
	begin_and_wait(&b);
	moves_end(&b.m, 0);
	for (unsigned i = 0; i < LENGTHS; i++) {
		if (kind == PEER_FILE) {
			assert_int_equal(must_bytes(b.files[i]), lengths[i]);
			assert_true(same_pattern(b.files[i], 0, lengths[i], i));
			close(b.files[i]);
		} else {
			peer_assert_read(&b.peers[i], lengths[i]);
		}
	}
}

static void bundle_round_trip(const struct way *way)
{
	for (enum peer_kind kind = PEER_PIPE; kind <= PEER_NONBLOCKING_PIPE; kind++) {
		struct way with_fds = *way;

		with_fds.fds = kind % 3;
		if (!way_possible(&with_fds))
			continue;
		print_message("kind %d, %s\n", kind, way_name(&with_fds));
		save_bundle(&with_fds, kind);
		load_bundle(&with_fds, (kind + 1) % (PEER_NONBLOCKING_PIPE + 1));
	}
}

static void every_length_by_every_kind(void **state)
{
	(void)state;
	for_each_way(bundle_round_trip);
}

/* ---- raw: what stands around a stream ---- */

#define AROUND (3 * MIB)

static void place_raw(uint64_t offset, uint64_t bytes, uint64_t old_bytes, const struct way *way)
{
	const uint64_t base = 2 * PAGE, end = base + offset + bytes;
	struct moves m = MOVES(*way, fixture_path("around"));
	int image = must_open(m.path, O_RDWR | O_CREAT | O_TRUNC), source = must_new_file("source", 0);

	must_write_pattern(image, 0, old_bytes, 50);
	must_write_pattern(source, 0, bytes, 51);
	m.way.base_offset = base;
	moves_add_stream(&m, 0, bytes)->image_offset = offset;
	moves_start(&m, SAVE);
	moves_attach_stream(&m, 0, source);
	must(moves_create(&m), &m.err);
	must(moves_wait(&m, moves_begin_stream(&m, 0, 0, 0)), &m.err);
	must(moves_finish(&m, DIOH_FINISH_DURABLE), &m.err);
	moves_end(&m, 0);
	assert_int_equal(must_bytes(image), old_bytes > end ? old_bytes : end);
	assert_true(same_pattern(image, base + offset, bytes, 51));
	for (uint64_t at = 0; at < old_bytes; at++) {
		uint8_t byte;

		if (at == base + offset)
			at = end;
		if (at % PAGE > 8 && at % PAGE < PAGE - 8 && at != end && at + 1 != base + offset)
			continue; /* the edges of pages tell */
		if (at < old_bytes && (pread(image, &byte, 1, (off_t)at) != 1 || byte != pattern_byte(50, at)))
			fail_msg("%s: byte %llu around the stream at %llu was changed", way_name(way), (unsigned long long)at,
			         (unsigned long long)offset);
	}
	close(image);
}

static void raw_places(const struct way *way)
{
	static const uint64_t offsets[] = { 0, 1, 511, 4095, 4096, 4097, 70001 };
	static const uint64_t sizes[] = { 1, 4096, 4095, MIB + 3, 100 };
	struct way each = *way;
	unsigned turn = 0;

	if (way->layout != DIOH_LAYOUT_RAW)
		return;
	for (unsigned i = 0; i < COUNT(offsets); i++, turn++) {
		each.fds = turn % 3;
		if (!way_possible(&each))
			each.fds = WAY_TWO;
		place_raw(offsets[i], sizes[turn % COUNT(sizes)], turn % 2 ? AROUND : 9 * PAGE + 17, &each);
	}
}

static void raw_leaves_what_is_around(void **state)
{
	(void)state;
	for_each_way(raw_places);
}

/* Two streams side by side, to the byte: one fills its room exactly, or has one byte too many. */
static int fill_room(const struct way *way, uint64_t room, uint64_t bytes, struct moves *m)
{
	int sources[2] = { must_new_file("source", 0), must_new_file("source", 1) };

	*m = (struct moves)MOVES(*way, fixture_path("room"));
	moves_add_stream(m, 0, room)->image_offset = 100;
	moves_add_stream(m, 1, 5000);
	must_write_pattern(sources[0], 0, bytes, 1);
	must_write_pattern(sources[1], 0, 5000, 2);
	moves_start(m, SAVE);
	moves_attach_stream(m, 0, sources[0]);
	moves_attach_stream(m, 1, sources[1]);
	must(moves_create(m), &m->err);
	must(moves_wait(m, moves_begin_stream(m, 1, 1, 0)), &m->err);
	return moves_wait(m, moves_begin_stream(m, 0, 0, 0));
}

static void expect_room(const struct way *way, uint64_t room)
{
	int image;
	struct moves m;

	unlink(fixture_path("room"));
	must(fill_room(way, room, room, &m), &m.err);
	must(moves_finish(&m, DIOH_FINISH_DURABLE), &m.err);
	moves_end(&m, 0);
	image = must_open(m.path, O_RDONLY);
	assert_int_equal(must_bytes(image), 100 + room + 5000);
	assert_true(same_pattern(image, 100, room, 1));
	assert_true(same_pattern(image, 100 + room, 5000, 2));
	assert_int_equal(fill_room(way, room, room + 1, &m), -EFBIG);
	moves_assert_error(&m, EFBIG, WRITE, IMAGE, 0);
	assert_int_equal(m.err.offset, 100 + room);
	assert_true(same_pattern(image, 100 + room, 5000, 2));
	moves_end(&m, 1);
	close(image);
}

static void room_of(const struct way *way)
{
	if (way->layout != DIOH_LAYOUT_RAW)
		return;
	expect_room(way, 3996);
	expect_room(way, MIB + 1);
	expect_room(way, 77);
}

static void raw_stream_and_its_room(void **state)
{
	(void)state;
	for_each_way(room_of);
}

static void raw_streams_in_one_place(void **state)
{
	struct moves m = MOVES(WAY_RAW, fixture_path("same"));

	(void)state;
	moves_add_stream(&m, 0, 0)->image_offset = 4096;
	moves_add_stream(&m, 1, 0)->image_offset = 4096;
	moves_start(&m, SAVE);
	assert_int_equal(moves_create(&m), -EINVAL);
	moves_end(&m, 1);
}

int main(int argc, char **argv)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_length_by_every_kind),
		cmocka_unit_test(raw_leaves_what_is_around),
		cmocka_unit_test(raw_stream_and_its_room),
		cmocka_unit_test(raw_streams_in_one_place),
	};
	int failed;

	(void)argc;
	signal(SIGPIPE, SIG_IGN);
	failed = cmocka_run_group_tests_name("stream", tests, NULL, NULL);
	return failed ? failed : again_on_tmpfs(argv);
}
