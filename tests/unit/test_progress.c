/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test_progress.c - the bar that the tool draws: share, rate and time left, also where an earlier run had begun. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tool.h"

#define MIB (UINT64_C(1) << 20)

static void expect(uint64_t base, uint64_t total, uint64_t done, double seconds, const char *wanted)
{
	const struct dioh_tool_progress progress = { .total_bytes = total * MIB, .base_bytes = base * MIB };
	char text[DIOH_TOOL_PROGRESS_BYTES];

	dioh_tool_progress_text(&progress, done * MIB, seconds, text);
	assert_string_equal(text, wanted);
}

static void test_from_the_start(void **state)
{
	(void)state;
	expect(0, 300, 0, 0, "[                              ]   0%  0 MiB/s");
	expect(0, 300, 100, 0.5, "[##########                    ]  33%  200 MiB/s");
	expect(0, 300, 100, 10, "[##########                    ]  33%  10 MiB/s  20 s left");
	expect(0, 300, 300, 10, "[##############################] 100%  30 MiB/s  0 s left");
}

/* What was done before took no time of this run's. */
static void test_from_a_base(void **state)
{
	(void)state;
	expect(200, 300, 200, 10, "[####################          ]  67%  0 MiB/s");
	expect(200, 300, 250, 10, "[#########################     ]  83%  5 MiB/s  10 s left");
}

/* How long a stream is may not be known, and an estimate too low. */
static void test_total_that_is_wrong(void **state)
{
	(void)state;
	expect(0, 0, 100, 10, "[                              ]   0%  10 MiB/s");
	expect(0, 100, 200, 10, "[##############################] 100%  20 MiB/s  0 s left");
	expect(200, 300, 100, 10, "[##########                    ]  33%  0 MiB/s");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_from_the_start),
		cmocka_unit_test(test_from_a_base),
		cmocka_unit_test(test_total_that_is_wrong),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
