/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test_engine_uring.c - a ring of which the kernel takes nothing for a while (EBUSY: its completions have no room; EAGAIN:
 * no memory): what was asked for meanwhile is done later, cancels of streams too.
 */
/* LDFLAGS: -Wl,--wrap=io_uring_submit */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <liburing.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "engine.h"

#define LIMIT_S 30
#define DEPTH 248u /* with 8 entries more it would be 256, which a ring has without rounding */

static bool busy;

int __real_io_uring_submit(struct io_uring *ring);
int __wrap_io_uring_submit(struct io_uring *ring);

int __wrap_io_uring_submit(struct io_uring *ring)
{
	return busy ? -EBUSY : __real_io_uring_submit(ring);
}

static struct dioh_io ios[DEPTH];
static struct iovec iovs[DEPTH];
static uint8_t bytes[DEPTH];
static int writers[DIOH_STREAMS_MAX];

/* A ring with an attached pipe for each stream, in all of which nothing comes. */
static struct dioh_io_engine *open_ring(struct dioh_engine_config *config)
{
	struct dioh_io_engine *engine = NULL;
	struct dioh_error err;

	config->depth = DEPTH;
	config->fd_count = DIOH_SLOTS_MAX;
	config->fds[DIOH_SLOT_WAKE] = eventfd(0, EFD_CLOEXEC);
	config->fds[DIOH_SLOT_PAGE] = -1;
	for (unsigned i = 0; i < DIOH_STREAMS_MAX; i++) {
		int ends[2];

		assert_int_equal(pipe(ends), 0);
		config->fds[DIOH_SLOT_STREAM + i] = ends[0];
		writers[i] = ends[1];
	}
	if (dioh_engine_uring.open(config, &engine, &err) < 0 || dioh_engine_uring.start(engine, &err) < 0)
		fail_msg("%s", err.text);
	return engine;
}

static void queue_reads(struct dioh_io_engine *engine)
{
	for (unsigned i = 0; i < DEPTH; i++) {
		iovs[i] = (struct iovec){ .iov_base = &bytes[i], .iov_len = 1 };
		ios[i] = (struct dioh_io){ .stream = true, .slot = DIOH_SLOT_STREAM + i % DIOH_STREAMS_MAX, .iov = &iovs[i],
			                   .iov_count = 1, .bytes = 1 };
		assert_true(dioh_engine_uring.queue(engine, &ios[i]));
	}
}

/* Waits until so many more have ended; each must have ended so. */
static void expect_ends(struct dioh_io_engine *engine, unsigned count, int64_t result)
{
	while (count > 0) {
		struct dioh_io *completed;
		struct dioh_error err;

		assert_int_equal(dioh_engine_uring.run(engine, true, &completed, &err), 0);
		for (; completed; completed = completed->engine_next, count--) {
			assert_true(count > 0);
			assert_int_equal(completed->result, result);
		}
	}
}

static void no_cancel_is_lost(void **state)
{
	struct dioh_engine_config config;
	struct dioh_io_engine *engine = open_ring(&config);

	(void)state;
	alarm(LIMIT_S);
	busy = true;
	queue_reads(engine);
	for (unsigned i = 0; i < DIOH_STREAMS_MAX; i++)
		dioh_engine_uring.cancel(engine, &ios[i]);
	busy = false;
	expect_ends(engine, DIOH_STREAMS_MAX, -ECANCELED);
	for (unsigned i = 0; i < DIOH_STREAMS_MAX; i++)
		close(writers[i]);
	expect_ends(engine, DEPTH - DIOH_STREAMS_MAX, 0);
	dioh_engine_uring.close(engine);
	for (unsigned i = 0; i < DIOH_STREAMS_MAX; i++)
		close(config.fds[DIOH_SLOT_STREAM + i]);
	close(config.fds[DIOH_SLOT_WAKE]);
	alarm(0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(no_cancel_is_lost),
	};

	if (dioh_engine_uring.probe() < 0) {
		printf("no io_uring here\n");
		return 77;
	}
	return cmocka_run_group_tests(tests, NULL, NULL);
}
