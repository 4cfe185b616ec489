/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test_error.c - common/error.c: sentences that fit, and what comes over the wire. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <string.h>

#include "error.h"

#define PLACE DIOH_PLACE(WRITE, REGION, 7, 4096)

static const char *long_word(void)
{
	static char word[2 * DIOH_TEXT_BYTES];

	memset(word, 'x', sizeof(word) - 1);
	return word;
}

static void assert_place(const struct dioh_error *err)
{
	assert_int_equal(err->operation, DIOH_OP_WRITE);
	assert_int_equal(err->object, DIOH_OBJECT_REGION);
	assert_int_equal(err->number, 7);
	assert_true(err->offset == 4096);
}

static void test_set(void **state)
{
	struct dioh_error err;

	(void)state;
	memset(&err, 0xff, sizeof(err));
	assert_int_equal(dioh_error_set(&err, EIO, PLACE, "page %d is bad", 3), -EIO);
	assert_int_equal(err.code, EIO);
	assert_place(&err);
	assert_string_equal(err.text, "page 3 is bad");
	assert_int_equal(dioh_error_set(&err, -ENOSPC, PLACE, "full"), -ENOSPC);
	assert_int_equal(err.code, ENOSPC);
	assert_string_equal(err.text, "full");
}

static void test_errno(void **state)
{
	struct dioh_error err;

	(void)state;
	memset(&err, 0xff, sizeof(err));
	assert_int_equal(dioh_error_errno(&err, -ENOSPC, PLACE, "write of %d bytes failed", 12),
	                 -ENOSPC);
	assert_int_equal(err.code, ENOSPC);
	assert_place(&err);
	assert_string_equal(err.text, "write of 12 bytes failed: No space left on device");
}

/* Nobody may take a failure for success because its code was lost. */
static void test_code_zero(void **state)
{
	struct dioh_error err;

	(void)state;
	assert_int_equal(dioh_error_set(&err, 0, PLACE, "x"), -EIO);
	assert_int_equal(err.code, EIO);
	assert_int_equal(dioh_error_errno(&err, 0, PLACE, "x"), -EIO);
	assert_int_equal(dioh_error_set(NULL, 0, PLACE, "x"), -EIO);
}

static void test_null(void **state)
{
	(void)state;
	assert_int_equal(dioh_error_set(NULL, -EINVAL, PLACE, "%s", long_word()), -EINVAL);
	assert_int_equal(dioh_error_errno(NULL, EINVAL, PLACE, "%s", long_word()), -EINVAL);
}

static void test_too_long(void **state)
{
	static const char reason[] = ": No space left on device";
	struct dioh_error err;

	(void)state;
	dioh_error_set(&err, EIO, PLACE, "%s", long_word());
	assert_int_equal(strlen(err.text), DIOH_TEXT_BYTES - 1);
	dioh_error_errno(&err, ENOSPC, PLACE, "%s", long_word());
	assert_int_equal(strlen(err.text), DIOH_TEXT_BYTES - 1);
	assert_string_equal(&err.text[DIOH_TEXT_BYTES - sizeof(reason)], reason);
}

static void test_own_text_as_argument(void **state)
{
	struct dioh_error err;

	(void)state;
	dioh_error_set(&err, EIO, PLACE, "first");
	dioh_error_errno(&err, EIO, PLACE, "then %s", err.text);
	assert_string_equal(err.text, "then first: Input/output error");
}

static void test_wire(void **state)
{
	struct dioh_error err, back;
	struct dioh_msg_error wire;

	(void)state;
	memset(&err, 'z', sizeof(err)); /* what lies behind the text must not leave the process */
	dioh_error_set(&err, EIO, PLACE, "bad page");
	memset(err.text + sizeof("bad page"), 'z', sizeof(err.text) - sizeof("bad page"));
	memset(&wire, 0xff, sizeof(wire));
	dioh_error_encode(&err, &wire);
	assert_int_equal(wire.code, EIO);
	assert_true(wire.reserved == 0);
	for (size_t i = strlen("bad page"); i < sizeof(wire.text); i++)
		assert_int_equal(wire.text[i], 0);

	memset(&back, 0xff, sizeof(back));
	dioh_error_decode(&wire, &back);
	assert_int_equal(back.code, EIO);
	assert_place(&back);
	assert_string_equal(back.text, "bad page");
}

static void test_wire_unterminated(void **state)
{
	struct dioh_msg_error wire = { .code = EIO };
	struct dioh_error err;

	(void)state;
	memset(wire.text, 'a', sizeof(wire.text));
	dioh_error_decode(&wire, &err);
	assert_int_equal(strlen(err.text), DIOH_TEXT_BYTES - 1);
	memset(err.text, 'a', sizeof(err.text));
	dioh_error_encode(&err, &wire);
	assert_int_equal(strnlen(wire.text, sizeof(wire.text)), DIOH_TEXT_BYTES - 1);
}

static void test_wire_control_characters(void **state)
{
	static const struct {
		const char *wire, *text;
	} cases[] = {
		{ "one\ntwo\t\x1b[31mred\x7f", "one?two??[31mred?" },
		{ "\xc2\x9b"
		  "31m",
		  "??31m" }, /* U+009B: a terminal's CSI */
		{ "\xc2\xa3 \xc3\xa9 \xe2\x82\xac",
		  "\xc2\xa3 \xc3\xa9 \xe2\x82\xac" }, /* pound, e acute, euro */
		{ "cut \xc2", "cut \xc2" },
		{ "", "" },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct dioh_msg_error wire = { .code = EIO };
		struct dioh_error err;

		memcpy(wire.text, cases[i].wire, strlen(cases[i].wire));
		dioh_error_decode(&wire, &err);
		assert_string_equal(err.text, cases[i].text);
	}
}

static void test_text(void **state)
{
	(void)state;
	assert_string_equal(dioh_error_text(EAGAIN), "Resource temporarily unavailable");
	assert_string_equal(dioh_error_text(-EAGAIN), "Resource temporarily unavailable");
	assert_string_equal(dioh_error_text(4000), "unknown error");
	for (int code = 1; code < 200; code++)
		assert_true(strlen(dioh_error_text(code)) > 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_set),
		cmocka_unit_test(test_errno),
		cmocka_unit_test(test_code_zero),
		cmocka_unit_test(test_null),
		cmocka_unit_test(test_too_long),
		cmocka_unit_test(test_own_text_as_argument),
		cmocka_unit_test(test_wire),
		cmocka_unit_test(test_wire_unterminated),
		cmocka_unit_test(test_wire_control_characters),
		cmocka_unit_test(test_text),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
