/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test_kills.c - the helper or its manager is killed in the middle of a save, by SIGKILL or SIGTERM: at each step of the
 * protocol, and at random moments. What is left is refused as partial or loads bit for bit; an older complete image is whole
 * until CREATE_IMAGE has begun to take it away, and never comes back behind it. The helper is always gone soon.
 *
 * DIOH_KILLS: how many at least. DIOH_SEED: which.
 */
/* timeout: 480 */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "align.h"
#include "clock.h"
#include "specimen.h"

#define KILLS 700u /* of `make check`; `make kills` asks for more */
#define HANG_S 30
#define DELAY_US_MAX 600u
#define NO_STEP SPECIMEN_STEPS

struct plan {
	uint32_t layout;
	uint32_t before; /* enum dioh_layout of the older image; DETECT: there is none */
	bool manager;    /* is the victim; else the helper */
	int signal_number;
	unsigned step;   /* at which, NO_STEP: counted from the start */
	unsigned delay_us;
	uint32_t workers;
};

static struct shared { /* by the manager, which is a child */
	atomic_int step; /* the last that was reached, -1: none */
	atomic_bool complete; /* FINISH's COMPLETE has come */
	atomic_bool struck;
} *shared;

static struct {
	unsigned kills, refused, old, new, complete;
} seen;

static const struct plan *plan; /* the manager's own from here on */
static pid_t helper; /* 0: not yet, or it may have been reaped */
static char image[512];
static unsigned save_us; /* a save that nobody kills */

/* ---- the manager ---- */

static void strike(int number)
{
	(void)number;
	atomic_store(&shared->struck, true);
	if (plan->manager || helper == 0)
		kill(getpid(), plan->signal_number);
	else
		kill(helper, plan->signal_number);
}

static void strike_later(void)
{
	const struct itimerval when = { .it_value = { .tv_usec = plan->delay_us } };

	if (plan->delay_us == 0)
		strike(SIGALRM);
	else
		setitimer(ITIMER_REAL, &when, NULL);
}

static void reached(enum specimen_step step, pid_t pid, void *context)
{
	(void)context;
	helper = pid;
	atomic_store(&shared->step, (int)step);
	if (step == SPECIMEN_FINISHED) {
		atomic_store(&shared->complete, true);
		if (plan->step != SPECIMEN_FINISHED)
			helper = 0; /* it goes by itself now */
	}
	if (step == plan->step)
		strike_later();
}

static _Noreturn void manage(void)
{
	const struct sigaction action = { .sa_handler = strike, .sa_flags = SA_RESTART };
	struct specimen s = { .way = { .layout = plan->layout, .workers = plan->workers }, .path = image,
		              .content = SPECIMEN_NEW, .watch = reached };

	sigaction(SIGALRM, &action, NULL);
	if (plan->step == NO_STEP)
		strike_later();
	(void)specimen_save(&s);
	_exit(0);
}

/* ---- the judge ---- */

static const char *older_path(uint32_t layout)
{
	static const char *const names[] = { "", "older-raw", "older-container", "older-mapped-ram" };

	return fixture_path(names[layout]);
}

static void must_copy(const char *from, const char *to)
{
	static uint8_t bytes[MIB];
	int in = must_open(from, O_RDONLY), out = must_open(to, O_WRONLY | O_CREAT | O_TRUNC);
	ssize_t n;

	while ((n = read(in, bytes, sizeof(bytes))) > 0)
		assert_int_equal(write(out, bytes, (size_t)n), n);
	assert_int_equal(n, 0);
	close(in);
	close(out);
}

/* The manager, and the helper that it left behind: we are the one who gets it then. */
static void reap_all(void)
{
	for (;;)
		if (waitpid(-1, NULL, 0) < 0 && errno != EINTR)
			break;
	assert_int_equal(errno, ECHILD);
}

static bool may_be(enum specimen_verdict verdict)
{
	const int step = atomic_load(&shared->step);

	if (atomic_load(&shared->complete))
		return verdict == SPECIMEN_IS_NEW;
	if (verdict == SPECIMEN_IS_OLD)
		return plan->before != DIOH_LAYOUT_DETECT && step < SPECIMEN_CREATED;
	if (verdict == SPECIMEN_IS_NEW)
		return step >= SPECIMEN_MEMORY_SAVED; /* FINISH may have been sent */
	return verdict == SPECIMEN_REFUSED && (plan->before == DIOH_LAYOUT_DETECT || step >= SPECIMEN_ATTACHED);
}

static void judge(void)
{
	struct specimen s = { .way = { .layout = plan->layout, .engine = DIOH_ENGINE_SYNC, .fds = WAY_LONE_BUFFERED },
		              .path = image };
	const enum specimen_verdict verdict = specimen_load(&s, DIOH_LAYOUT_DETECT);

	seen.kills += atomic_load(&shared->struck);
	seen.complete += atomic_load(&shared->complete);
	seen.refused += verdict == SPECIMEN_REFUSED;
	seen.old += verdict == SPECIMEN_IS_OLD;
	seen.new += verdict == SPECIMEN_IS_NEW;
	if (!may_be(verdict))
		fail_msg("layout %u over %u, signal %d of the %s at step %u + %u us: the last step was %d%s: %s: %s %s", plan->layout,
		         plan->before, plan->signal_number, plan->manager ? "manager" : "helper", plan->step, plan->delay_us,
		         atomic_load(&shared->step), atomic_load(&shared->complete) ? ", complete" : "",
		         specimen_verdict_name(verdict), s.wrong, s.err.text);
}

static void run_plan(const struct plan *next)
{
	pid_t manager;

	alarm(HANG_S);
	plan = next;
	atomic_store(&shared->step, -1);
	atomic_store(&shared->complete, false);
	atomic_store(&shared->struck, false);
	if (plan->before == DIOH_LAYOUT_DETECT)
		close(must_open(image, O_WRONLY | O_CREAT | O_TRUNC));
	else
		must_copy(older_path(plan->before), image);
	fflush(NULL);
	manager = fork();
	if (manager == 0)
		manage();
	assert_true(manager > 0);
	reap_all();
	judge();
	alarm(0);
}

/* ---- plans ---- */

static void print_seen(const char *what)
{
	print_message("%s: %u kills: %u refused, %u the older image, %u the newer, %u of them said to be complete\n", what,
	              seen.kills, seen.refused, seen.old, seen.new, seen.complete);
}

static void victims(struct plan *next)
{
	for (unsigned i = 0; i < 4; i++) {
		next->manager = i / 2;
		next->signal_number = i % 2 ? SIGTERM : SIGKILL;
		run_plan(next);
	}
}

static void at_each_step(void **state)
{
	struct plan next = { 0 };

	(void)state;
	memset(&seen, 0, sizeof(seen));
	for (next.layout = DIOH_LAYOUT_RAW; next.layout <= DIOH_LAYOUT_MAPPED_RAM; next.layout++)
		for (next.step = SPECIMEN_SPAWNED; next.step <= SPECIMEN_FINISHED; next.step++) {
			next.before = DIOH_LAYOUT_DETECT;
			victims(&next);
			next.before = 1 + (next.layout + next.step) % 3;
			victims(&next);
		}
	print_seen("at each step");
	assert_int_equal(seen.kills, 3 * SPECIMEN_STEPS * 8);
	assert_true(seen.refused > 0 && seen.old > 0 && seen.new > 0);
}

static unsigned wanted(void)
{
	const char *wish = getenv("DIOH_KILLS");

	return wish ? (unsigned)strtoul(wish, NULL, 0) : KILLS;
}

static void at_random(void **state)
{
	uint64_t random = test_seed();
	unsigned runs = 0;

	(void)state;
	memset(&seen, 0, sizeof(seen));
	/* One that comes too late is no kill. */
	for (; seen.kills + 3 * SPECIMEN_STEPS * 8 < wanted(); runs++) {
		struct plan next = {
			.layout = DIOH_LAYOUT_RAW + (uint32_t)(test_random(&random) % 3),
			.before = (uint32_t)(test_random(&random) % 4),
			.manager = test_random(&random) % 2,
			.signal_number = test_random(&random) % 2 ? SIGTERM : SIGKILL,
			.step = (unsigned)(test_random(&random) % SPECIMEN_FINISHED),
			.delay_us = 1 + (unsigned)(test_random(&random) % DELAY_US_MAX),
			.workers = 1 + (unsigned)(test_random(&random) % 3),
		};

		if (test_random(&random) % 4 == 0) {
			next.step = NO_STEP;
			next.delay_us = 1 + (unsigned)(test_random(&random) % save_us);
		}
		run_plan(&next);
		assert_true(runs < 100000);
	}
	print_seen("at random");
	assert_true(seen.kills == 0 || (seen.refused > 0 && seen.new > 0));
}

/* ---- the ground ---- */

static int make_ground(void **state)
{
	struct specimen s = { .content = SPECIMEN_OLD };

	if (specimen_prepare(state) < 0)
		return -1;
	snprintf(image, sizeof(image), "%s", fixture_path("image"));
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED || prctl(PR_SET_CHILD_SUBREAPER, 1) < 0)
		return -1;
	for (s.way.layout = DIOH_LAYOUT_RAW; s.way.layout <= DIOH_LAYOUT_MAPPED_RAM; s.way.layout++) {
		const uint64_t begun = dioh_now_ns() / 1000;

		s.path = older_path(s.way.layout);
		if (!specimen_save(&s))
			return -1;
		save_us = (unsigned)dioh_min(dioh_now_ns() / 1000 - begun, 900000);
	}
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(at_each_step),
		cmocka_unit_test(at_random),
	};

	/* Where a sync costs nothing there are more moments in a second. */
	fixture_prefer_tmpfs();
	return cmocka_run_group_tests(tests, make_ground, NULL);
}
