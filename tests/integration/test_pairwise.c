/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test_pairwise.c - test_pairwise [DEVICE]: direct or buffered × engine × layout × checksums × a layer of the seal that
 * is missing × file or block device, in so few combinations that every two values meet: each saves, loads and compares.
 * Without DEVICE, whose content is lost, there are files only; test-root-pairwise.sh gives one.
 *
 * A combination runs in a child of its own: what is taken from it stays away from all that it starts.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "guest_image.h"
#include "moves.h"
#include "raw_manager.h"

#define RAM GUEST_IN(GUEST_RAM)
#define MEMORY_BYTES (5 * MIB + 3 * PAGE)
#define VALUES_MAX 5u
#define CASES_MAX 64u

enum axis { DIRECT, ENGINE, LAYOUT, CHECKSUM, MISSING, TARGET, AXES };

static const char *const names[AXES][VALUES_MAX] = {
	[DIRECT] = { "direct", "buffered" },
	[ENGINE] = { "io_uring", "libaio", "sync" },
	[LAYOUT] = { "raw", "container", "mapped-ram" },
	[CHECKSUM] = { "checksums", "no checksums" },
	[MISSING] = { "nothing", "Landlock", "seccomp", "ring restrictions", "io_uring" },
	[TARGET] = { "file", "device" },
};
static unsigned counts[AXES] = { 2, 3, 3, 2, 5, 1 };
static const char *device;

struct combination {
	unsigned value[AXES];
};

/* ---- which ---- */

static bool met[AXES][VALUES_MAX][AXES][VALUES_MAX];

static void meet(const struct combination *c)
{
	for (unsigned a = 0; a < AXES; a++)
		for (unsigned b = 0; b < AXES; b++)
			met[a][c->value[a]][b][c->value[b]] = true;
}

static bool find_unmet(struct combination *c, unsigned *ret_a, unsigned *ret_b)
{
	for (unsigned a = 0; a < AXES; a++)
		for (unsigned b = a + 1; b < AXES; b++)
			for (c->value[a] = 0; c->value[a] < counts[a]; c->value[a]++)
				for (c->value[b] = 0; c->value[b] < counts[b]; c->value[b]++)
					if (!met[a][c->value[a]][b][c->value[b]]) {
						*ret_a = a;
						*ret_b = b;
						return true;
					}
	return false;
}

/* The value of an axis that meets most others for the first time. */
static unsigned best_value(const struct combination *c, unsigned chosen, unsigned axis)
{
	unsigned best = 0, best_new = 0;

	for (unsigned v = 0; v < counts[axis]; v++) {
		unsigned new = 0;

		for (unsigned other = 0; other < AXES; other++)
			new += chosen >> other & 1 && !met[axis][v][other][c->value[other]];
		if (new > best_new) {
			best = v;
			best_new = new;
		}
	}
	return best;
}

static unsigned make_combinations(struct combination *all)
{
	unsigned count = 0, a, b;

	while (find_unmet(&all[count], &a, &b)) {
		struct combination *c = &all[count++];
		unsigned chosen = 1u << a | 1u << b;

		if (count == CASES_MAX)
			fixture_die(__FILE__, __LINE__, "make_combinations", "too many");
		for (unsigned axis = 0; axis < AXES; axis++) {
			if (chosen >> axis & 1)
				continue;
			c->value[axis] = best_value(c, chosen, axis);
			chosen |= 1u << axis;
		}
		meet(c);
	}
	return count;
}

/* ---- one ---- */

static struct way way_of(const struct combination *c)
{
	struct way way = {
		.layout = DIOH_LAYOUT_RAW + c->value[LAYOUT],
		.engine = DIOH_ENGINE_IO_URING + c->value[ENGINE],
		.fds = c->value[DIRECT] == 0 ? WAY_TWO : WAY_LONE_BUFFERED,
	};

	/* Who cannot have io_uring does not ask for it, and is given another. */
	if (c->value[MISSING] == 4 && way.engine == DIOH_ENGINE_IO_URING)
		way.engine = DIOH_ENGINE_ANY;
	return way;
}

static void take_away(unsigned missing)
{
	const struct raw_options options = {
		.no_landlock = missing == 1,
		.no_seccomp = missing == 2,
		.no_restrictions = missing == 3,
		.no_io_uring = missing == 4,
	};

	raw_refuse_calls(&options);
}

static bool move_guest(const struct way *way, const char *path, uint32_t flags)
{
	struct moves m = MOVES(*way, path);
	struct guest g;

	guest_make(&g, RAM);
	must_guest_save(&m, &g, 0, flags, DIOH_FINISH_DURABLE);
	must_guest_load(&g, way, path, 0, RAM);
	guest_free(&g);
	return true;
}

static bool move_memory(const struct way *way, const char *path, uint32_t flags, uint64_t seed)
{
	int memory = must_memfd("memory", MEMORY_BYTES, 0), loaded = must_memfd("loaded", MEMORY_BYTES, 0);
	uint64_t allocated;

	must_fill_mixed(memory, MEMORY_BYTES, 1, 60, seed);
	must_fill(loaded, 0, MEMORY_BYTES, seed + 1000); /* what was there has to go */
	allocated = must_blocks_bytes(memory);
	must_save_all(way, path, &memory, 1, flags);
	must_load_all(way, path, &loaded, 1, 0);
	return same_bytes(memory, loaded) && must_blocks_bytes(memory) == allocated;
}

static bool carry_out(const struct combination *c, uint64_t seed)
{
	const char *path = c->value[TARGET] == 1 ? device : fixture_path("image");
	const uint32_t flags = c->value[CHECKSUM] == 0 ? 0 : DIOH_TRANSFER_NO_CHECKSUM;
	const struct way way = way_of(c);

	take_away(c->value[MISSING]);
	return way.layout == DIOH_LAYOUT_MAPPED_RAM ? move_guest(&way, path, flags) : move_memory(&way, path, flags, seed);
}

static bool passes(const struct combination *c, uint64_t seed)
{
	int status = -1;
	pid_t pid;

	fflush(NULL);
	pid = fork();
	if (pid == 0)
		_exit(carry_out(c, seed) ? 0 : 1);
	return pid > 0 && waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static void print_combination(const struct combination *c, const char *verdict)
{
	printf("%-8s", verdict);
	for (unsigned axis = 0; axis < AXES; axis++)
		printf("  %-17s", names[axis][c->value[axis]]);
	printf("\n");
}

int main(int argc, char **argv)
{
	static struct combination all[CASES_MAX];
	const uint64_t seed = test_seed();
	unsigned count, failed = 0, skipped = 0;

	fixture_dir(); /* the parent's, who removes it */
	device = argc > 1 ? argv[1] : NULL;
	if (device)
		counts[TARGET] = 2;
	else
		puts("no device was named: files only");
	count = make_combinations(all);
	printf("%-8s  %-17s  %-17s  %-17s  %-17s  %-17s  %s\n", "", "page I/O", "engine", "layout", "", "missing", "image");
	for (unsigned i = 0; i < count; i++) {
		const struct way way = way_of(&all[i]);

		if (!way_possible(&way)) {
			print_combination(&all[i], "skipped");
			skipped++;
		} else if (passes(&all[i], seed + i)) {
			print_combination(&all[i], "ok");
		} else {
			print_combination(&all[i], "FAILED");
			failed++;
		}
	}
	printf("%u combinations, %u failed, %u skipped\n", count, failed, skipped);
	return failed || skipped == count;
}
