/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test_multifd.c - a multifd migration made without QEMU becomes a mapped-ram image: pages by several channels, some slow,
 * some of them more than once; and channels that are none. QEMU itself: test_qemu_ingest.py.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "guest_image.h"
#include "multifd_maker.h"
#include "pattern.h"

#define CHANNELS 3u
#define ROUNDS 3u
#define SECTION_END_BYTES 13u /* with its footer */

struct channel {
	uint8_t *bytes;
	size_t count;
	size_t room;
	struct dioh_multifd_packet packet;
};

struct migration {
	struct guest g; /* its stream is the main one, as an older QEMU sends it: each end of records is a sync point */
	struct channel channels[CHANNELS];
	uint64_t packets;
	uint8_t *flushing; /* the same stream as a newer QEMU sends it */
	size_t flushing_count;
	size_t flushes_at[2 * ROUNDS + 4];
	unsigned flushes;
};

/* ---- channels ---- */

static uint8_t *extend(struct channel *channel, size_t bytes)
{
	while (channel->count + bytes > channel->room) {
		channel->room = channel->room ? 2 * channel->room : 1u << 16;
		channel->bytes = realloc(channel->bytes, channel->room);
		assert_non_null(channel->bytes);
	}
	channel->count += bytes;
	return channel->bytes + channel->count - bytes;
}

static void put_init(struct channel *channel, uint8_t number, uint8_t machine)
{
	const struct dioh_multifd_init init = { .uuid = { machine }, .channel = number };

	multifd_put_init(extend(channel, DIOH_MULTIFD_INIT_BYTES), &init);
}

/* What has been gathered. */
static void put_packet(struct migration *mig, struct channel *channel, bool sync)
{
	struct dioh_multifd_packet *packet = &channel->packet;
	const unsigned data = packet->data_pages;

	packet->sync = sync;
	packet->number = mig->packets++;
	multifd_put_packet(extend(channel, DIOH_MULTIFD_PACKET_BYTES), &mig->g.q.setup, packet);
	for (unsigned i = 0; i < data; i++)
		memcpy(extend(channel, PAGE), mig->g.q.memory[packet->block] + packet->pages[i] * PAGE, PAGE);
	memset(packet, 0, sizeof(*packet));
}

/* A page of data; of one packet's block, or a packet begins. */
static void send_page(struct migration *mig, struct channel *channel, unsigned block, uint64_t page, uint64_t seed)
{
	struct dioh_multifd_packet *packet = &channel->packet;
	uint8_t *memory = mig->g.q.memory[block] + page * PAGE;

	if (packet->data_pages == DIOH_MULTIFD_PAGES_MAX || packet->block != block)
		put_packet(mig, channel, false);
	packet->block = block;
	pattern_fill(memory, PAGE, seed, page * PAGE);
	packet->pages[packet->data_pages++] = page;
}

static void send_zeros(struct migration *mig, struct channel *channel, unsigned block, uint64_t first, unsigned count)
{
	put_packet(mig, channel, false);
	channel->packet = (struct dioh_multifd_packet){ .block = block, .zero_pages = count };
	for (unsigned i = 0; i < count; i++)
		channel->packet.pages[i] = first + i;
	memset(mig->g.q.memory[block] + first * PAGE, 0, count * (size_t)PAGE);
	put_packet(mig, channel, false);
}

/* `by_packet`: with the last pages, as older QEMUs may; else a packet of its own. */
static void sync_all(struct migration *mig, bool by_packet)
{
	for (unsigned i = 0; i < CHANNELS; i++) {
		if (!by_packet && mig->channels[i].packet.data_pages)
			put_packet(mig, &mig->channels[i], false);
		put_packet(mig, &mig->channels[i], true);
	}
}

/* ---- a migration ---- */

static void end_section(struct migration *mig)
{
	mig->flushes_at[mig->flushes++] = mig->g.q.count;
	qemu_put_section_end(&mig->g.q);
}

static void send_round(struct migration *mig, unsigned round, uint64_t *random)
{
	for (unsigned block = 0; block < GUEST_BLOCKS; block++) {
		const uint64_t pages = mig->g.q.blocks[block].bytes / PAGE;

		/* In the first round all; each goes once in a round, now here, now there. */
		for (uint64_t page = 0; page < pages; page++) {
			struct channel *channel = &mig->channels[test_random(random) % CHANNELS];

			if (round > 0 && test_random(random) % 4)
				continue;
			if (test_random(random) % 16 == 0)
				send_zeros(mig, channel, block, page, 1);
			else
				send_page(mig, channel, block, page, 1 + test_random(random));
		}
	}
}

/* The main stream has zero pages of its own, one of which was data in the round before. */
static void make_migration(struct migration *mig, bool sync_by_packet)
{
	uint64_t random = test_seed();

	memset(mig, 0, sizeof(*mig));
	guest_start(&mig->g, 0);
	mig->flushes_at[mig->flushes++] = mig->g.q.count - SECTION_END_BYTES;
	for (unsigned i = 0; i < CHANNELS; i++)
		put_init(&mig->channels[i], (uint8_t)((i + 1) % CHANNELS), 7);
	sync_all(mig, false);
	for (unsigned round = 0; round < ROUNDS; round++) {
		qemu_put_section(&mig->g.q, QEMU_PART);
		send_round(mig, round, &random);
		end_section(mig);
		sync_all(mig, sync_by_packet);
	}
	qemu_put_section(&mig->g.q, QEMU_PART);
	qemu_put_page(&mig->g.q, GUEST_RAM, 5, 0);
	end_section(mig);
	sync_all(mig, false);
	qemu_put_section(&mig->g.q, QEMU_END);
	send_page(mig, &mig->channels[1], GUEST_RAM, 7, 99);
	qemu_put_section_end(&mig->g.q);
	sync_all(mig, false); /* newer QEMUs do so without a flush in the stream, or not at all */
	qemu_put_device(&mig->g.q, 3, 5000, 2);
	qemu_put_end(&mig->g.q);
}

static void make_flushing(struct migration *mig)
{
	const uint8_t *from = mig->g.q.bytes;
	uint8_t *to = mig->flushing = malloc(mig->g.q.count + 8 * (size_t)mig->flushes);
	size_t done = 0;

	assert_non_null(to);
	for (unsigned i = 0; i < mig->flushes; i++) {
		memcpy(to, from + done, mig->flushes_at[i] - done);
		to += mig->flushes_at[i] - done;
		done = mig->flushes_at[i];
		memcpy(to, "\0\0\0\0\0\0\2\0", 8);
		to += 8;
	}
	memcpy(to, from + done, mig->g.q.count - done);
	mig->flushing_count = (size_t)(to - mig->flushing) + mig->g.q.count - done;
}

static void free_migration(struct migration *mig)
{
	for (unsigned i = 0; i < CHANNELS; i++)
		free(mig->channels[i].bytes);
	free(mig->flushing);
	guest_free(&mig->g);
}

/* ---- into an image ---- */

struct feeders {
	struct qemu_feeder main;
	struct qemu_feeder channels[CHANNELS];
};

/* The error of the transfer. `slow`: a channel that comes in small pieces. */
static int save(struct moves *m, struct migration *mig, bool flushing, unsigned slow)
{
	struct feeders feeders;
	uint32_t transfer;
	int r;

	moves_add_stream(m, GUEST_ENTRY, 0);
	moves_start(m, DIOH_DIRECTION_SAVE);
	m->channels = CHANNELS;
	moves_attach_stream(m, 0, qemu_feed(&feeders.main, flushing ? mig->flushing : mig->g.q.bytes,
	                                    flushing ? mig->flushing_count : mig->g.q.count, 0));
	for (unsigned i = 0; i < CHANNELS; i++)
		moves_attach_stream(m, 1 + i, qemu_feed(&feeders.channels[i], mig->channels[i].bytes, mig->channels[i].count,
		                                        i == slow ? 1357 : 0));
	must(moves_create(m), &m->err);
	transfer = moves_begin_stream(m, 0, GUEST_ENTRY, 0);
	r = moves_wait(m, transfer);
	if (r == 0)
		must(moves_finish(m, DIOH_FINISH_DURABLE), &m->err);
	moves_end(m, r == 0 ? 0 : 1);
	qemu_feeder_join(&feeders.main);
	for (unsigned i = 0; i < CHANNELS; i++)
		qemu_feeder_join(&feeders.channels[i]);
	return r;
}

static void pages_by_channels(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 8; i++) {
		struct way way = WAY_MAPPED_RAM;
		struct migration mig;
		struct moves m;

		way.engine = i & 1 ? DIOH_ENGINE_SYNC : DIOH_ENGINE_IO_URING;
		way.fds = i / 2 % 3;
		if (!way_possible(&way))
			continue;
		m = (struct moves)MOVES(way, fixture_path("image"));
		make_migration(&mig, i & 4);
		make_flushing(&mig);
		must(save(&m, &mig, i & 2, i % CHANNELS), &m.err);
		must_guest_load(&mig.g, &way, m.path, 0, 0);
		for (unsigned block = 0; block < GUEST_BLOCKS; block++) /* small ones: with their zeros */
			assert_int_equal(guest_present_bytes(&mig.g, &way, m.path, block), mig.g.q.blocks[block].bytes);
		free_migration(&mig);
	}
}

/* ---- channels that are none ---- */

static void same_number(struct migration *mig)
{
	mig->channels[2].bytes[24] = mig->channels[0].bytes[24];
}

static void number_too_high(struct migration *mig)
{
	mig->channels[2].bytes[24] = CHANNELS;
}

static void another_machine(struct migration *mig)
{
	mig->channels[1].bytes[8] ^= 1;
}

static void ends_in_its_init(struct migration *mig)
{
	mig->channels[1].count = 30;
}

static void ends_before_the_setup_is_synced(struct migration *mig)
{
	mig->channels[1].count = DIOH_MULTIFD_INIT_BYTES;
}

static void ends_in_a_page(struct migration *mig)
{
	mig->channels[1].count = DIOH_MULTIFD_INIT_BYTES + 2 * DIOH_MULTIFD_PACKET_BYTES + 5000;
}

static void a_page_behind_its_block(struct migration *mig)
{
	mig->channels[0].bytes[DIOH_MULTIFD_INIT_BYTES + DIOH_MULTIFD_PACKET_BYTES + 320 + 4] = 0x40;
}

static void an_unknown_block(struct migration *mig)
{
	mig->channels[0].bytes[DIOH_MULTIFD_INIT_BYTES + DIOH_MULTIFD_PACKET_BYTES + 64] = 'X';
}

static void a_count_that_wraps(struct migration *mig)
{
	memset(mig->channels[0].bytes + DIOH_MULTIFD_INIT_BYTES + DIOH_MULTIFD_PACKET_BYTES + 32, 0xff, 4);
}

static void compression(struct migration *mig)
{
	mig->channels[0].bytes[DIOH_MULTIFD_INIT_BYTES + DIOH_MULTIFD_PACKET_BYTES + 11] = 2;
}

static void a_migration_stream(struct migration *mig)
{
	memcpy(mig->channels[0].bytes, "QEVM", 4);
}

static void the_main_stream_ends_early(struct migration *mig)
{
	mig->g.q.count /= 2;
}

static void other_channels(void **state)
{
	static const struct {
		void (*change)(struct migration *mig);
		const char *part;
		int code;
	} cases[] = {
		{ same_number, "both call themselves multifd channel 1", EBADMSG },
		{ number_too_high, "it calls itself multifd channel 3, and there are 3", EBADMSG },
		{ another_machine, "are multifd channels of two machines", EBADMSG },
		{ ends_in_its_init, "stream 2: this multifd channel ends too early, after 30 bytes", EBADMSG },
		{ ends_before_the_setup_is_synced, "ends without the sync point that stream 0 has at byte", EBADMSG },
		{ ends_in_a_page, "stream 2: this multifd channel ends too early", EBADMSG },
		{ a_page_behind_its_block, "a page at offset", EBADMSG },
		{ an_unknown_block, "which the stream's setup does not have", EBADMSG },
		{ a_count_that_wraps, "of zeros", EBADMSG },
		{ compression, "compression by zlib", EOPNOTSUPP },
		{ a_migration_stream, "it is the main one", EBADMSG },
		{ the_main_stream_ends_early, "it ends too early", EBADMSG },
	};

	(void)state;
	for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct moves m = MOVES(WAY_MAPPED_RAM, fixture_path("image"));
		struct migration mig;

		make_migration(&mig, false);
		cases[i].change(&mig);
		if (save(&m, &mig, false, CHANNELS) != -cases[i].code || !strstr(m.err.text, cases[i].part))
			fail_msg("case %u: \"%s\" does not say \"%s\"", i, m.err.text, cases[i].part);
		assert_int_equal(m.err.operation, DIOH_OP_PARSE);
		assert_int_equal(m.err.object, DIOH_OBJECT_STREAM);
		guest_expect_open(&mig.g, m.path, 0, ENODATA);
		free_migration(&mig);
	}
}

/* Those that are there are whole, and call themselves 0 and 1; of QEMU's third one nobody was told. */
static void one_channel_too_few(void **state)
{
	struct moves m = MOVES(WAY_MAPPED_RAM, fixture_path("image"));
	struct qemu_feeder feeders[CHANNELS];
	struct migration mig;

	(void)state;
	make_migration(&mig, false);
	moves_add_stream(&m, GUEST_ENTRY, 0);
	moves_start(&m, DIOH_DIRECTION_SAVE);
	m.channels = 2;
	moves_attach_stream(&m, 0, qemu_feed(&feeders[0], mig.g.q.bytes, mig.g.q.count, 0));
	for (unsigned i = 1; i < CHANNELS; i++)
		moves_attach_stream(&m, i, qemu_feed(&feeders[i], mig.channels[(i + 1) % CHANNELS].bytes,
		                                     mig.channels[(i + 1) % CHANNELS].count, 0));
	must(moves_create(&m), &m.err);
	assert_int_equal(moves_wait(&m, moves_begin_stream(&m, 0, GUEST_ENTRY, 0)), -EBADMSG);
	assert_non_null(strstr(m.err.text, "were all of QEMU's channels attached"));
	assert_int_equal(m.err.operation, DIOH_OP_PARSE);
	moves_end(&m, 1);
	for (unsigned i = 0; i < CHANNELS; i++)
		qemu_feeder_join(&feeders[i]);
	guest_expect_open(&mig.g, m.path, 0, ENODATA);
	free_migration(&mig);
}

/* Nothing is touched when channels are named that are not there. */
static void channels_that_were_not_attached(void **state)
{
	struct moves m = MOVES(WAY_MAPPED_RAM, fixture_path("none"));
	struct qemu_feeder feeder;
	struct migration mig;

	(void)state;
	make_migration(&mig, false);
	moves_add_stream(&m, GUEST_ENTRY, 0);
	moves_start(&m, DIOH_DIRECTION_SAVE);
	moves_attach_stream(&m, 0, qemu_feed(&feeder, mig.g.q.bytes, mig.g.q.count, 0));
	m.channels = 2;
	assert_int_equal(moves_create(&m), -ENOENT);
	assert_non_null(strstr(m.err.text, "stream 1 was not attached"));
	moves_end(&m, 0);
	qemu_feeder_join(&feeder);
	free_migration(&mig);
}

/* A channel on which nothing comes: CANCEL ends it. */
static void a_channel_that_hangs(void **state)
{
	struct moves m = MOVES(WAY_MAPPED_RAM, fixture_path("image"));
	struct qemu_feeder feeders[3];
	struct migration mig;
	uint32_t transfer;
	int ends[2];

	(void)state;
	make_migration(&mig, false);
	moves_add_stream(&m, GUEST_ENTRY, 0);
	moves_start(&m, DIOH_DIRECTION_SAVE);
	m.channels = CHANNELS;
	moves_attach_stream(&m, 0, qemu_feed(&feeders[0], mig.g.q.bytes, mig.g.q.count, 0));
	moves_attach_stream(&m, 1, qemu_feed(&feeders[1], mig.channels[0].bytes, mig.channels[0].count, 0));
	moves_attach_stream(&m, 2, qemu_feed(&feeders[2], mig.channels[1].bytes, mig.channels[1].count, 0));
	assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
	moves_attach_stream(&m, 3, ends[0]);
	must(moves_create(&m), &m.err);
	transfer = moves_begin_stream(&m, 0, GUEST_ENTRY, 0);
	must(dioh_cancel(m.session, transfer, NULL, &m.err), &m.err);
	assert_int_equal(moves_wait(&m, transfer), -ECANCELED);
	moves_end(&m, 1);
	for (unsigned i = 0; i < 3; i++)
		qemu_feeder_join(&feeders[i]);
	close(ends[1]);
	free_migration(&mig);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(pages_by_channels),
		cmocka_unit_test(other_channels),
		cmocka_unit_test(one_channel_too_few),
		cmocka_unit_test(channels_that_were_not_attached),
		cmocka_unit_test(a_channel_that_hangs),
	};

	signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests_name("multifd", tests, NULL, NULL);
}
