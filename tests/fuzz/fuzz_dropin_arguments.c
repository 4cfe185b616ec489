/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * fuzz_dropin_arguments.c - any command line: which life it asks for, and what the drop-in makes of its own.
 *
 * The input is the arguments, each ended by a NUL; its first byte, if odd, calls the program libvirt_iohelper. The drop-in
 * is run as far as it looks at arguments: its descriptor is one that is not open here, whatever number it is given. What
 * needs a number that is open would move bytes, and is left to the tests.
 */
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <unistd.h>

#include "dropin.h"
#include "fuzz.h"
#include "options.h"

#define ARGUMENTS_MAX 12

static int split(char *text, size_t size, char **argv)
{
	int argc = 1;

	for (size_t at = 0; at < size && argc < ARGUMENTS_MAX; at += strlen(text + at) + 1)
		argv[argc++] = text + at;
	argv[argc] = NULL;
	return argc;
}

/* The whole of it is a number that no descriptor has. */
static int is_closed_descriptor(const char *text)
{
	char *end;
	long value;

	errno = 0;
	value = strtol(text, &end, 10);
	return end == text || *end || errno || value < 0 || value > INT_MAX || fcntl((int)value, F_GETFD) < 0;
}

static void check_options(const struct dioh_options *options)
{
	CHECK(options->attach_timeout_s > 0 && options->attach_timeout_s <= 86400);
	CHECK(options->stuck_timeout_s > 0 && options->stuck_timeout_s <= 86400);
	CHECK(options->life != DIOH_LIFE_SERVE || options->fd >= 0);
	CHECK(options->life != DIOH_LIFE_SERVE || (options->identity.uid != 0 && options->identity.gid != 0));
	CHECK(options->allow <= (DIOH_ALLOW_LABEL | DIOH_ALLOW_OWNER | DIOH_ALLOW_MODE));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char *argv[ARGUMENTS_MAX + 1], *text;
	char called[] = "libvirt_iohelper", plain[] = "/usr/bin/diohelper";
	struct dioh_options options;
	struct dioh_error err = { 0 };
	int argc, r;

	if (size < 1 || size > 4096)
		return 0;
	text = malloc(size);
	CHECK(text != NULL);
	memcpy(text, data + 1, size - 1);
	text[size - 1] = '\0';
	argv[0] = data[0] & 1 ? called : plain;
	argc = split(text, size - 1, argv);
	r = dioh_options_parse(argc, argv, &options, &err);
	CHECK(r == 0 || (r == -EINVAL && err.text[0] && memchr(err.text, 0, sizeof(err.text))));
	if (r == 0)
		check_options(&options);
	CHECK(!(data[0] & 1) || (r == 0 && options.life == DIOH_LIFE_DROP_IN)); /* whatever else stands there */
	if (r == 0 && options.life == DIOH_LIFE_DROP_IN && (argc != 3 || is_closed_descriptor(argv[2]))) {
		r = dioh_dropin_run(argc, argv);
		CHECK(r == (argc > 1 && strcmp(argv[1], "--help") == 0 ? 0 : 1));
	}
	free(text);
	return 0;
}
