/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test_engine_fallback.c - a probe's small ring is to be had, and the session's are not, or not all of them: memory that
 * may be locked, a cgroup's memory, fs.aio-max-nr (faulty_engine.c). Who left the engine to the helper is served by the
 * next best one, in all workers, behind the same seal; who named one is refused, and his image is as it was.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "cleanup.h"
#include "moves.h"

#define REGIONS 3u /* transfers of memory go to the workers in turn */
#define REGION_BYTES (3 * MIB + 5 * PAGE)
#define LAYERS (DIOH_LAYER_SECCOMP | DIOH_LAYER_NO_CAPABILITIES | DIOH_LAYER_RING_RESTRICTIONS)

static char faulty[512];
static int sources[REGIONS], loaded[REGIONS];

struct shortage {
	const char *fault;
	bool direct;
	uint32_t workers;
	uint32_t engine; /* that runs */
};

static const struct shortage shortages[] = {
	{ "none:0", true, 2, DIOH_ENGINE_IO_URING },
	{ "ring:0", true, 1, DIOH_ENGINE_LIBAIO },
	{ "ring:0", false, 1, DIOH_ENGINE_SYNC },
	{ "ring:1", true, 2, DIOH_ENGINE_LIBAIO }, /* the first has its ring already */
	{ "ring:2", false, 3, DIOH_ENGINE_SYNC },
	{ "aio:0", true, 1, DIOH_ENGINE_SYNC },
	{ "aio:1", true, 3, DIOH_ENGINE_SYNC },
};

static void begin(const struct shortage *s, struct moves *m, uint32_t direction, const int *memories)
{
	*m = (struct moves)MOVES(WAY_CONTAINER, fixture_path("image"));
	m->way.fds = s->direct ? WAY_TWO : WAY_LONE_BUFFERED;
	m->way.workers = s->workers;
	setenv("DIOH_FAULT", s->fault, 1);
	for (unsigned i = 0; i < REGIONS; i++)
		moves_add_region(m, i, REGION_BYTES);
	moves_start(m, direction);
	for (unsigned i = 0; i < REGIONS; i++)
		moves_attach(m, i, memories[i], -1);
}

/* Seals on the way, and looks at what that answered. */
static void expect_sealed(const struct shortage *s, struct moves *m)
{
	struct dioh_msg_seal_reply sealed;

	must(dioh_seal(m->session, LAYERS, &sealed, &m->err), &m->err);
	if (sealed.engine != s->engine)
		fail_msg("%s, %u workers: engine %u runs, not %u", s->fault, s->workers, sealed.engine, s->engine);
}

static void save(const struct shortage *s)
{
	struct moves m;
	uint32_t finish;

	begin(s, &m, DIOH_DIRECTION_SAVE, sources);
	expect_sealed(s, &m);
	must(moves_create_sealed(&m), &m.err);
	for (unsigned i = 0; i < REGIONS; i++)
		must(moves_region(&m, i, 0), &m.err);
	must(dioh_finish(m.session, DIOH_FINISH_DURABLE, 0, NULL, 0, &finish, &m.err), &m.err);
	must(moves_wait(&m, finish), &m.err);
	moves_end(&m, 0);
}

static void load(const struct shortage *s)
{
	struct moves m;

	begin(s, &m, DIOH_DIRECTION_LOAD, loaded);
	expect_sealed(s, &m);
	must(moves_open_sealed(&m, 0), &m.err);
	for (unsigned i = 0; i < REGIONS; i++)
		must(moves_region(&m, i, 0), &m.err);
	moves_end(&m, 0);
}

static bool direct_possible(void)
{
	DIOH_AUTO_FD int fd = open(fixture_path("probe"), O_RDWR | O_CREAT | O_DIRECT | O_CLOEXEC, 0600);

	return fd >= 0;
}

static void the_next_one_serves(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof(shortages) / sizeof(shortages[0]); i++) {
		const struct shortage *s = &shortages[i];

		if (s->direct && !direct_possible()) {
			print_message("skipped: %s with O_DIRECT, which this directory has not\n", s->fault);
			continue;
		}
		for (unsigned k = 0; k < REGIONS; k++) {
			must_fill_mixed(sources[k], REGION_BYTES, 1, 40, 10 * i + k);
			must_fill(loaded[k], 0, REGION_BYTES, 77);
		}
		save(s);
		load(s);
		for (unsigned k = 0; k < REGIONS; k++)
			assert_true(same_bytes(sources[k], loaded[k]));
	}
}

static void refuse(uint32_t engine, const char *fault, int code)
{
	struct dioh_msg_seal_reply sealed;
	struct fixture_image image = { .path = fixture_path("older"), .options = { .engine = engine } };
	struct dioh_session *session;
	struct dioh_error err;

	setenv("DIOH_FAULT", fault, 1);
	session = must_session(&image, DIOH_DIRECTION_SAVE);
	assert_int_equal(dioh_seal(session, 0, &sealed, &err), -code);
	assert_error_is(&err, code, DIOH_OP_SEAL, DIOH_OBJECT_SESSION, 0, __FILE__, __LINE__);
	must_close(session, 1);
}

static void who_names_one_is_refused(void **state)
{
	DIOH_AUTO_FD int fd = must_open(fixture_path("older"), O_RDWR | O_CREAT);
	DIOH_AUTO_FD int copy = must_memfd("copy", MIB, 0);

	(void)state;
	must_fill(fd, 0, MIB, 5);
	must_fill(copy, 0, MIB, 5);
	refuse(DIOH_ENGINE_IO_URING, "ring:0", ENOMEM);
	refuse(DIOH_ENGINE_LIBAIO, "aio:0", EAGAIN);
	assert_true(same_bytes(fd, copy));
}

/* FILENAME FD: there is nobody to name an engine. */
static void drop_in(void **state)
{
	DIOH_AUTO_FD int stream = must_open(fixture_path("stream"), O_RDWR | O_CREAT);
	char command[2048];

	(void)state;
	must_fill(stream, 0, 5 * MIB + 777, 6);
	setenv("DIOH_FAULT", "aio:0", 1);
	(void)snprintf(command, sizeof(command),
	               "cd '%s' && '%s' image 3 <stream 3>saved 2>messages && '%s' image 3 3<saved >loaded 2>>messages && "
	               "cmp stream saved && cmp stream loaded && grep -c hit messages", fixture_dir(), faulty, faulty);
	assert_int_equal(system(command), 0);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_next_one_serves),
		cmocka_unit_test(who_names_one_is_refused),
		cmocka_unit_test(drop_in),
	};

	(void)argc;
	if (syscall(SYS_io_uring_setup, 0, NULL) < 0 && errno != EFAULT) {
		printf("io_uring is not to be had here: there is nothing to fall back from\n");
		return 77;
	}
	(void)snprintf(faulty, sizeof(faulty), "%.*s/faulty_engine", (int)(strrchr(argv[0], '/') - argv[0]), argv[0]);
	if (faulty[0] != '/') {
		char *whole = realpath(faulty, NULL);

		(void)snprintf(faulty, sizeof(faulty), "%s", whole ? whole : "faulty_engine");
		free(whole);
	}
	setenv("DIOHELPER", faulty, 1);
	for (unsigned i = 0; i < REGIONS; i++) {
		sources[i] = must_memfd("source", REGION_BYTES, 0);
		loaded[i] = must_memfd("loaded", REGION_BYTES, 0);
	}
	return cmocka_run_group_tests(tests, NULL, NULL);
}
