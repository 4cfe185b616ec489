/* SPDX-License-Identifier: LGPL-2.1-or-later */
#define _GNU_SOURCE
#include "pattern.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "align.h"
#include "moves.h"

#define PIECE_BYTES (64u * 1024)

static uint64_t pattern_word(uint64_t seed, uint64_t index)
{
	uint64_t state = (seed << 40) + index * UINT64_C(0x2545f4914f6cdd1d);

	return test_random(&state);
}

uint8_t pattern_byte(uint64_t seed, uint64_t at)
{
	return (uint8_t)(pattern_word(seed, at / 8) >> at % 8 * 8);
}

void pattern_fill(uint8_t *bytes, size_t count, uint64_t seed, uint64_t at)
{
	for (size_t i = 0; i < count;) {
		uint64_t word = pattern_word(seed, (at + i) / 8) >> (at + i) % 8 * 8;
		size_t n = dioh_min(8 - (at + i) % 8, count - i);

		memcpy(bytes + i, &word, n);
		i += n;
	}
}

void must_write_pattern(int fd, uint64_t offset, uint64_t bytes, uint64_t seed)
{
	uint8_t piece[PIECE_BYTES];

	for (uint64_t done = 0; done < bytes; done += sizeof(piece)) {
		size_t n = dioh_min(sizeof(piece), bytes - done);

		pattern_fill(piece, n, seed, done);
		if (pwrite(fd, piece, n, (off_t)(offset + done)) != (ssize_t)n)
			fixture_die(__FILE__, __LINE__, "pwrite", strerror(errno));
	}
}

bool same_pattern(int fd, uint64_t offset, uint64_t bytes, uint64_t seed)
{
	uint8_t piece[PIECE_BYTES], wanted[PIECE_BYTES];

	for (uint64_t done = 0; done < bytes; done += sizeof(piece)) {
		size_t n = dioh_min(sizeof(piece), bytes - done);
		ssize_t got = pread(fd, piece, n, (off_t)(offset + done));

		pattern_fill(wanted, n, seed, done);
		if (got == (ssize_t)n && memcmp(piece, wanted, n) == 0)
			continue;
		fprintf(stderr, "pattern %llu differs between %llu and %llu of %llu, read %zd\n", (unsigned long long)seed,
		        (unsigned long long)done, (unsigned long long)(done + n), (unsigned long long)bytes, got);
		return false;
	}
	return true;
}

/* ---- peers ---- */

void must_ends(enum peer_kind kind, int *ends)
{
	const int flags = kind == PEER_NONBLOCKING_PIPE ? O_CLOEXEC | O_NONBLOCK : O_CLOEXEC;
	int r = kind == PEER_SOCKET ? socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) : pipe2(ends, flags);

	if (r < 0)
		fixture_die(__FILE__, __LINE__, "must_ends", strerror(errno));
}

int must_new_file(const char *name, unsigned number)
{
	char path[64];

	snprintf(path, sizeof(path), "%s-%u", name, number);
	return must_open(fixture_path(path), O_RDWR | O_CREAT | O_TRUNC);
}

static size_t next_piece(const struct peer *peer, uint64_t *state)
{
	return peer->piece_max ? 1 + test_random(state) % peer->piece_max : PIECE_BYTES;
}

static void pause_now(const struct peer *peer)
{
	if (peer->pause_us)
		usleep(peer->pause_us);
	while (peer->gate && peer->moved >= PEER_GATE_BYTES && !atomic_load(peer->gate))
		usleep(1000);
}

static ssize_t write_all(int fd, const uint8_t *bytes, size_t count)
{
	for (size_t done = 0; done < count;) {
		ssize_t n = write(fd, bytes + done, count - done);

		if (n < 0 && errno == EAGAIN) /* a descriptor with O_NONBLOCK */
			poll(&(struct pollfd){ .fd = fd, .events = POLLOUT }, 1, -1);
		else if (n < 0)
			return -1;
		else
			done += (size_t)n;
	}
	return (ssize_t)count;
}

static void *writer_main(void *argument)
{
	struct peer *peer = argument;
	uint64_t state = peer->seed;
	uint8_t piece[PIECE_BYTES];

	while (peer->moved < peer->bytes) {
		size_t n = dioh_min(next_piece(peer, &state), peer->bytes - peer->moved);

		pattern_fill(piece, n, peer->seed, peer->moved);
		if (write_all(peer->fd, piece, n) < 0) {
			peer->code = errno;
			break;
		}
		peer->moved += n;
		pause_now(peer);
	}
	close(peer->fd);
	return NULL;
}

static void *reader_main(void *argument)
{
	struct peer *peer = argument;
	uint64_t state = peer->seed;
	uint8_t piece[PIECE_BYTES], wanted[PIECE_BYTES];

	peer->right = true;
	while (peer->moved < peer->bytes) {
		ssize_t n = read(peer->fd, piece, dioh_min(next_piece(peer, &state), peer->bytes - peer->moved));

		if (n < 0)
			peer->code = errno;
		if (n <= 0)
			break;
		pattern_fill(wanted, (size_t)n, peer->seed, peer->moved);
		peer->right &= memcmp(piece, wanted, (size_t)n) == 0;
		peer->moved += (uint64_t)n;
		pause_now(peer);
	}
	close(peer->fd);
	return NULL;
}

static void start(struct peer *peer, void *(*peer_main)(void *))
{
	peer->moved = 0;
	peer->code = 0;
	if (pthread_create(&peer->thread, NULL, peer_main, peer) != 0)
		fixture_die(__FILE__, __LINE__, "pthread_create", "failed");
}

void peer_write(struct peer *peer)
{
	start(peer, writer_main);
}

void peer_read(struct peer *peer)
{
	start(peer, reader_main);
}

void peer_join(struct peer *peer)
{
	pthread_join(peer->thread, NULL);
}

void peer_assert_read(struct peer *peer, uint64_t bytes)
{
	peer_join(peer);
	assert_int_equal(peer->code, 0);
	assert_true(peer->right);
	assert_int_equal(peer->moved, bytes);
}
