/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "chance.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <inttypes.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static uint64_t sequence;

static uint64_t seed_or(uint64_t other)
{
	const char *wish = getenv("DIOH_SEED");
	const uint64_t seed = wish ? strtoull(wish, NULL, 0) : other;

	print_message("DIOH_SEED=%" PRIu64 "\n", seed);
	return seed;
}

uint64_t test_seed(void)
{
	static uint64_t seed;

	if (!seed)
		seed = seed_or(20240229);
	return seed;
}

uint64_t test_random(uint64_t *state) /* splitmix64, Steele 2014 */
{
	uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);

	z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
	return z ^ z >> 31;
}

int random_set_up(void **state)
{
	(void)state;
	sequence = seed_or((uint64_t)time(NULL) << 20 ^ (uint64_t)getpid());
	return 0;
}

uint64_t random_u64(void)
{
	return test_random(&sequence);
}
