/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * pattern.h - bytes that follow from a seed and their place, and threads that write them into a stream or expect them
 * from one. The threads make no assertions; what they found is looked at when they are joined.
 */
#ifndef DIOH_PATTERN_H
#define DIOH_PATTERN_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

uint8_t pattern_byte(uint64_t seed, uint64_t at);
void pattern_fill(uint8_t *bytes, size_t count, uint64_t seed, uint64_t at);

/* Writes them to a file at an offset; whether they stand there. A difference is printed. */
void must_write_pattern(int fd, uint64_t offset, uint64_t bytes, uint64_t seed);
bool same_pattern(int fd, uint64_t offset, uint64_t bytes, uint64_t seed);

enum peer_kind { PEER_PIPE, PEER_SOCKET, PEER_FILE, PEER_NONBLOCKING_PIPE };

/* ends[0] is read from, ends[1] written to. */
void must_ends(enum peer_kind kind, int *ends);
/* A new, empty file of the test's directory. */
int must_new_file(const char *name, unsigned number);

#define PEER_GATE_BYTES (UINT64_C(2) << 20)

struct peer {
	int fd; /* closed when it is done */
	uint64_t seed;
	uint64_t bytes;      /* of a reader: those that it takes before it goes away */
	unsigned piece_max;  /* pieces of 1 to so many bytes; 0: 64 KiB each */
	unsigned pause_us;   /* after each piece */
	const atomic_bool *gate; /* NULL, or: after PEER_GATE_BYTES it waits until this is set */
	pthread_t thread;
	uint64_t moved;
	bool right;          /* reader: nothing else came */
	int code;            /* an errno, or 0 */
};

void peer_write(struct peer *peer); /* starts the thread */
void peer_read(struct peer *peer);
void peer_join(struct peer *peer);

/* Reads to the end, and all must be as it should. */
void peer_assert_read(struct peer *peer, uint64_t bytes);

#endif
