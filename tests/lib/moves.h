/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * moves.h - sessions of a real helper for tests that move bytes: the ways an image can be reached, entries, pieces.
 * What differs between two ways must make no difference to what comes back. Needs what fixture.h has.
 */
#ifndef DIOH_MOVES_H
#define DIOH_MOVES_H

#include "chance.h"
#include "fixture.h"

#define PAGE DIOH_PAGE_BYTES
#define CHUNK ((uint64_t)DIOH_CHUNK_BYTES)

/* ---- ways ---- */

enum way_fds { WAY_TWO, WAY_LONE_BUFFERED, WAY_LONE_DIRECT };

struct way {
	uint32_t layout;      /* enum dioh_layout */
	uint32_t engine;      /* enum dioh_engine */
	enum way_fds fds;     /* which descriptors of the image the helper gets */
	uint32_t block_bytes; /* 0: the default */
	uint64_t base_offset;
	uint32_t workers;     /* 0: the default */
};

#define WAY_CONTAINER ((struct way){ .layout = DIOH_LAYOUT_CONTAINER })
#define WAY_RAW ((struct way){ .layout = DIOH_LAYOUT_RAW })

const char *way_name(const struct way *way);
/* What this machine and the directory of the test have not. */
bool way_possible(const struct way *way);
/* Calls `test` for both layouts, both engines: with two descriptors and default blocks. */
void for_each_way(void (*test)(const struct way *way));

/* ---- a session ---- */

#define MOVES_ENTRIES_MAX 64u

struct moves {
	struct way way;
	const char *path;
	struct dioh_msg_entry entries[MOVES_ENTRIES_MAX]; /* raw: with places; streams with their lengths, for loads */
	unsigned entry_count;
	const void *header;
	uint64_t header_bytes;
	uint32_t channels; /* mapped-ram, save: streams 1 and on */
	uint32_t create_flags; /* enum dioh_create_flag */
	uint32_t in_flight; /* 0: the default */
	struct dioh_session *session;
	struct dioh_error err; /* what failed last */
	struct dioh_msg_complete complete; /* of what was waited for last */
	struct dioh_msg_image_reply created;
	struct dioh_msg_open_image_reply opened;
};

#define MOVES(w, p) { .way = (w), .path = (p) }

/* Entries stand one behind the other in a raw image, behind the header: regions on pages. */
struct dioh_msg_entry *moves_add_region(struct moves *m, uint32_t number, uint64_t bytes);
struct dioh_msg_entry *moves_add_stream(struct moves *m, uint32_t number, uint64_t bytes);

/* A helper with the image attached; then attach memories and streams, and go on. */
void moves_start(struct moves *m, uint32_t direction);
void moves_attach(struct moves *m, uint32_t number, int memfd, int selection_fd);
/* Closes our copy. */
void moves_attach_stream(struct moves *m, uint32_t number, int fd);
/* SEAL, then CREATE_IMAGE or OPEN_IMAGE. These and what follows answer 0 or the error, which is in m->err. */
int moves_create(struct moves *m);
int moves_create_sealed(struct moves *m); /* SEAL has been */
int moves_open(struct moves *m, uint32_t flags);
int moves_open_sealed(struct moves *m, uint32_t flags); /* SEAL has been */

/* Transfers: begin answers the id. */
uint32_t moves_begin(struct moves *m, const struct dioh_msg_memory_transfer *what);
uint32_t moves_begin_stream(struct moves *m, uint32_t stream, uint32_t entry, uint32_t flags);
int moves_wait(struct moves *m, uint32_t transfer);
/* The whole region from or to the memory of the same number. */
int moves_region(struct moves *m, uint32_t number, uint32_t flags);
int moves_piece(struct moves *m, const struct dioh_msg_memory_transfer *what);
int moves_finish(struct moves *m, uint32_t mode);
/* Closes; the helper must exit with `status`. */
void moves_end(struct moves *m, int status);
/* Whether the helper still answers. */
void moves_assert_alive(struct moves *m);

/* The error names this; its sentence is not empty. `offset`: DIOH_OFFSET_NONE checks that there is one. */
#define moves_assert_error(m, code, operation, object, number) \
	assert_error_is(&(m)->err, code, DIOH_OP_##operation, DIOH_OBJECT_##object, number, __FILE__, __LINE__)
void assert_error_is(const struct dioh_error *err, int code, uint32_t operation, uint32_t object, uint32_t number,
                     const char *file, int line);

/* Ends a load whose image was saved over: the rest of its stream is read (and `reader` closed), and its transfer says so. */
void moves_end_saved_over(struct moves *m, uint32_t transfer, int reader);

/* ---- whole saves and loads ---- */

/* Regions 0 to count-1, whole, each of the memfd of its number. */
void must_save_all(const struct way *way, const char *path, const int *memfds, unsigned count, uint32_t flags);
void must_load_all(const struct way *way, const char *path, const int *memfds, unsigned count, uint32_t flags);

uint64_t must_bytes(int fd);
/* Bytes of pages that are not all zero. */
uint64_t must_count_data(int fd);
int must_open(const char *path, int flags);

/* ---- places ---- */

/* Runs the program again on tmpfs, unless TEST_DIR says where it is to run. Answers the exit status. */
int again_on_tmpfs(char **argv);

#endif
