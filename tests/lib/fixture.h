/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * fixture.h - what tests and benchmarks share: guest memory with a known pattern, images in a temporary directory, whole
 * saves and loads through the library. Functions named must_* end the test program with a message when they fail.
 */
#ifndef DIOH_FIXTURE_H
#define DIOH_FIXTURE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "diohelper.h"

#define MIB (UINT64_C(1) << 20)
#define GIB (UINT64_C(1) << 30)

/* ---- where ---- */

/*
 * A directory of the test's own under $TEST_DIR, $TMPDIR or /var/tmp; removed at exit with all that is in it. From the first
 * call on signals that stop the test (SIGTERM, SIGALRM) make it exit, so that whatever atexit() knows of is undone.
 */
const char *fixture_dir(void);
/*
 * For tests of thousands of saves, before the first call: under /dev/shm, if TEST_DIR does not say otherwise, and if tmpfs has
 * O_DIRECT (Linux 6.6).
 */
void fixture_prefer_tmpfs(void);
/* fixture_dir()/name; valid until the next but 7 calls. */
const char *fixture_path(const char *name);
/* The helper under test: $DIOHELPER, or build/diohelper. */
const char *fixture_helper(void);

/* ---- time, and what is there ---- */

uint64_t now_ms(void); /* CLOCK_MONOTONIC */
void sleep_ms(unsigned ms); /* signals do not shorten it */
unsigned must_count_entries(const char *directory);
unsigned must_count_descriptors(void); /* that this process has open */

/* ---- memory ---- */

int must_memfd(const char *name, uint64_t bytes, unsigned flags);
/* Pseudo-random bytes from a seed: incompressible, no zero page. */
void must_fill(int fd, uint64_t offset, uint64_t bytes, uint64_t seed);
/* Pages that are allocated and zero. */
void must_fill_zero(int fd, uint64_t offset, uint64_t bytes);
/* Random stretches of data, zeros and holes, each a multiple of `granule` pages, up to `longest` granules. */
void must_fill_mixed(int fd, uint64_t bytes, unsigned granule_pages, unsigned longest, uint64_t seed);
uint64_t must_blocks_bytes(int fd); /* st_blocks * 512 */
/* Same size and same bytes (holes are zeros); reads without allocating. On a difference prints where. */
bool same_bytes(int fd_a, int fd_b);
bool same_range(int fd_a, uint64_t offset_a, int fd_b, uint64_t offset_b, uint64_t bytes);

/* ---- sessions ---- */

struct fixture_image {
	const char *path;
	bool no_direct; /* pass only the buffered descriptor */
	bool lone_direct;
	struct dioh_image_options options; /* direction and descriptors are filled in */
	const char *const *args; /* of the helper */
	struct dioh_msg_attach_image_reply *ret_info; /* NULL, or what ATTACH_IMAGE answered */
};

/* Opens (creates, for a save) path and starts a session with it attached; not sealed. */
struct dioh_session *must_session(const struct fixture_image *image, uint32_t direction);
void must_attach_memory(struct dioh_session *session, uint32_t number, int fd, int selection_fd);
void must_seal(struct dioh_session *session);
/* dioh_close; the helper must exit with `status`. */
void must_close(struct dioh_session *session, int status);

struct fixture_region {
	uint32_t number;
	const char *name;
	int memfd;
	uint64_t bytes;
};

/* A whole save of regions into a container, FINISH included, and a whole load of them into their memfds. */
int fixture_save(const struct fixture_image *image, const struct fixture_region *regions, unsigned count,
                 uint32_t flags, struct dioh_msg_complete *ret_complete, struct dioh_error *err);
int fixture_load(const struct fixture_image *image, const struct fixture_region *regions, unsigned count,
                 uint32_t flags, struct dioh_msg_complete *ret_complete, struct dioh_error *err);

struct dioh_msg_entry region_entry(uint32_t number, const char *name, uint64_t bytes);
struct dioh_msg_entry stream_entry(uint32_t number, const char *name);

#define must(call, err)                                                                                        \
	({                                                                                                     \
		int must_r_ = (call);                                                                          \
		if (must_r_ < 0)                                                                               \
			fixture_die(__FILE__, __LINE__, #call, (err)->text);                                   \
		must_r_;                                                                                       \
	})

_Noreturn void fixture_die(const char *file, int line, const char *what, const char *why);

#endif
