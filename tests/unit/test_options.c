/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* test_options.c - diohelper's command line: what it becomes, and what is refused with a sentence that names the option. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <string.h>

#include "options.h"

#define ARGUMENTS_MAX 8u

/* A line of words. */
static int parse(const char *line, struct dioh_options *options, struct dioh_error *err)
{
	static char text[256];
	char *argv[ARGUMENTS_MAX + 1];
	int argc = 0;

	assert_true(strlen(line) < sizeof(text));
	strcpy(text, line);
	for (char *word = strtok(text, " "); word; word = strtok(NULL, " ")) {
		assert_true(argc < (int)ARGUMENTS_MAX);
		argv[argc++] = word;
	}
	argv[argc] = NULL;
	memset(err, 0, sizeof(*err));
	return dioh_options_parse(argc, argv, options, err);
}

static void refuses(void **state)
{
	static const char *const cases[][2] = { /* and what the sentence says */
		{ "diohelper", "nothing to do" },
		{ "diohelper --", "nothing to do" },
		{ "diohelper --nonsense", "unknown option" },
		{ "diohelper serve", "--fd=N" },
		{ "diohelper serve --fd", "needs a value" },
		{ "diohelper serve --fd=", "--fd: : not a number" },
		{ "diohelper serve --fd=-1", "not a number" },
		{ "diohelper serve --fd=3x", "not a number" },
		{ "diohelper serve --fd=2147483648", "too large" },
		{ "diohelper serve --fd=99999999999999999999", "not a number" },
		{ "diohelper serve --fd=3 more", "unexpected argument" },
		{ "diohelper serve --fd=3 --version=1", "unknown option" },
		{ "diohelper serve --fd=3 --user=0:5", "root" },
		{ "diohelper serve --fd=3 --user=5:0", "root" },
		{ "diohelper serve --fd=3 --user=root", "root" },
		{ "diohelper serve --fd=3 --user=5:", "not a number" },
		{ "diohelper serve --fd=3 --user=:5", "not a number" },
		{ "diohelper serve --fd=3 --user=4294967295:5", "too large" },
		/* Its first 15 digits are a good uid. */
		{ "diohelper serve --fd=3 --user=0000000000012345:5", "too many digits" },
		{ "diohelper serve --fd=3 --user=nobody-has-this-name", "no such user" },
		{ "diohelper serve --fd=3 --allow=", "label, owner, mode" },
		{ "diohelper serve --fd=3 --allow=label,", "label, owner, mode" },
		{ "diohelper serve --fd=3 --allow=labels", "label, owner, mode" },
		{ "diohelper serve --fd=3 --attach-timeout=0", "--attach-timeout" },
		{ "diohelper serve --fd=3 --stuck-timeout=0", "at least one second" },
		{ "diohelper serve --fd=3 --stuck-timeout=86401", "too large" },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct dioh_options options = { .fd = 77 };
		struct dioh_error err;
		int r = parse(cases[i][0], &options, &err);

		if (r != -EINVAL || !strstr(err.text, cases[i][1]))
			fail_msg("\"%s\": %d, \"%s\", and not \"%s\"", cases[i][0], r, err.text, cases[i][1]);
		assert_int_equal(options.fd, 77); /* nothing is answered */
	}
}

static void takes(void **state)
{
	struct dioh_options options;
	struct dioh_error err;

	(void)state;
	assert_int_equal(parse("diohelper serve --fd=5 --user=12:34 --allow=mode,label --attach-timeout=7 --stuck-timeout=86400",
	                       &options, &err), 0);
	assert_int_equal(options.life, DIOH_LIFE_SERVE);
	assert_int_equal(options.fd, 5);
	assert_int_equal(options.identity.uid, 12);
	assert_int_equal(options.identity.gid, 34);
	assert_false(options.identity.keep_uid);
	assert_int_equal(options.allow, DIOH_ALLOW_LABEL | DIOH_ALLOW_MODE);
	assert_int_equal(options.attach_timeout_s, 7);
	assert_int_equal(options.stuck_timeout_s, 86400);
	assert_int_equal(parse("diohelper serve --fd=0 --keep-uid", &options, &err), 0);
	assert_true(options.identity.keep_uid);
	assert_int_equal(options.allow, 0);
	assert_int_equal(options.stuck_timeout_s, 30);
}

static void lives(void **state)
{
	static const struct {
		const char *line;
		enum dioh_life life;
	} cases[] = {
		{ "diohelper image 5", DIOH_LIFE_DROP_IN },
		{ "diohelper serve 5", DIOH_LIFE_DROP_IN }, /* a file of that name */
		{ "/usr/libexec/libvirt_iohelper", DIOH_LIFE_DROP_IN },
		{ "libvirt_iohelper serve --fd=3", DIOH_LIFE_DROP_IN },
		{ "diohelper inspect image", DIOH_LIFE_TOOL },
		{ "diohelper image 5x", DIOH_LIFE_TOOL },
		{ "diohelper --help", DIOH_LIFE_HELP },
		{ "diohelper serve --help", DIOH_LIFE_HELP },
		{ "diohelper --version", DIOH_LIFE_VERSION },
		{ "diohelper --print-capabilities", DIOH_LIFE_CAPABILITIES },
	};
	struct dioh_options options;
	struct dioh_error err;

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
		if (parse(cases[i].line, &options, &err) != 0 || options.life != cases[i].life)
			fail_msg("\"%s\": %s", cases[i].line, err.text);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(refuses),
		cmocka_unit_test(takes),
		cmocka_unit_test(lives),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
