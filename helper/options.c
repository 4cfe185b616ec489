/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * options.c - one table makes getopt_long's input, --help and --long-options. Which life it is: a program called
 * libvirt_iohelper, or exactly two arguments of which the second is a number, is the drop-in; a verb of its own is
 * serve; any other verb belongs to diohelper-tool.
 */
#include "options.h"

#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PLACE DIOH_PLACE(NONE, NONE, 0, DIOH_OFFSET_NONE)

#define DEFAULT_ATTACH_TIMEOUT_S 30
#define DEFAULT_STUCK_TIMEOUT_S 30
#define TIMEOUT_S_MAX 86400

enum {
	OPT_FD = CHAR_MAX + 1,
	OPT_KEEP_UID,
	OPT_USER,
	OPT_ALLOW,
	OPT_ATTACH_TIMEOUT,
	OPT_STUCK_TIMEOUT,
	OPT_HELP,
	OPT_VERSION,
	OPT_CAPABILITIES,
	OPT_LONG_OPTIONS,
};

struct option_row {
	const char *name;
	int value;
	bool serve; /* belongs to serve, else stands alone */
	const char *argument;
	const char *help; /* NULL: hidden */
};

static const struct option_row rows[] = {
	{ "fd", OPT_FD, true, "N", "the control socket, a connected AF_UNIX SOCK_SEQPACKET descriptor" },
	{ "keep-uid", OPT_KEEP_UID, true, NULL, "keep the user and group id; drop only capabilities" },
	{ "user", OPT_USER, true, "NAME|UID:GID", "the user to become at the seal, if root (default: diohelper or nobody)" },
	{ "allow", OPT_ALLOW, true, "WHAT,...", "what the manager may ask for the image: label, owner, mode (default: none)" },
	{ "attach-timeout", OPT_ATTACH_TIMEOUT, true, "SECONDS", "a file that hangs while it is attached ends us (default: 30)" },
	{ "stuck-timeout", OPT_STUCK_TIMEOUT, true, "SECONDS", "report I/O that is older (default: 30)" },
	{ "print-capabilities", OPT_CAPABILITIES, false, NULL, "what this build and kernel can do, as JSON" },
	{ "help", OPT_HELP, false, NULL, "this text" },
	{ "version", OPT_VERSION, false, NULL, "the version" },
	{ "long-options", OPT_LONG_OPTIONS, false, NULL, NULL },
};

#define ROWS (sizeof(rows) / sizeof(rows[0]))

void dioh_options_print_help(void)
{
	printf("Usage: diohelper serve --fd=N [OPTION...]   save or restore, as a manager says over descriptor N\n"
	       "       diohelper FILENAME FD                stand in for libvirt_iohelper\n"
	       "       diohelper VERB ...                   run diohelper-tool: bench, convert, ingest, inspect, map, verify\n\n");
	for (size_t i = 0; i < ROWS; i++) {
		char option[48];

		if (!rows[i].help)
			continue;
		snprintf(option, sizeof(option), "--%s%s%s", rows[i].name, rows[i].argument ? "=" : "",
		         rows[i].argument ? rows[i].argument : "");
		printf("  %-26s %s\n", option, rows[i].help);
	}
}

void dioh_options_print_long(void)
{
	for (size_t i = 0; i < ROWS; i++)
		if (rows[i].help)
			printf("--%s\n", rows[i].name);
}

static int bad(struct dioh_error *err, const char *option, const char *value, const char *why)
{
	return dioh_error_set(err, EINVAL, PLACE, "--%s: %s: %s", option, value, why);
}

static int parse_number(const char *option, const char *text, unsigned long max, unsigned long *ret,
                        struct dioh_error *err)
{
	char *end;

	errno = 0;
	*ret = strtoul(text, &end, 10);
	if (!isdigit((unsigned char)text[0]) || *end || errno)
		return bad(err, option, text, "not a number");
	if (*ret > max)
		return bad(err, option, text, "too large");
	return 0;
}

static int parse_user(const char *text, struct dioh_identity *identity, struct dioh_error *err)
{
	const char *colon = strchr(text, ':');
	unsigned long uid, gid;
	char uid_text[16];

	if (!colon) {
		const struct passwd *user = getpwnam(text);

		if (!user)
			return bad(err, "user", text, "no such user");
		identity->uid = user->pw_uid;
		identity->gid = user->pw_gid;
	} else {
		if (snprintf(uid_text, sizeof(uid_text), "%.*s", (int)(colon - text), text) >= (int)sizeof(uid_text))
			return bad(err, "user", text, "too many digits");
		if (parse_number("user", uid_text, UINT_MAX - 1, &uid, err) < 0 ||
		    parse_number("user", colon + 1, UINT_MAX - 1, &gid, err) < 0)
			return -EINVAL;
		identity->uid = (uid_t)uid;
		identity->gid = (gid_t)gid;
	}
	if (identity->uid == 0 || identity->gid == 0)
		return bad(err, "user", text, "root is what we are to stop being; --keep-uid keeps the id without capabilities");
	return 0;
}

static int parse_allow(const char *text, uint32_t *ret, struct dioh_error *err)
{
	static const char *const names[] = { "label", "owner", "mode" }; /* enum dioh_allow, bit by bit */
	size_t length;

	for (const char *at = text;; at += length + 1) {
		unsigned i = 0;

		length = strcspn(at, ",");
		while (i < sizeof(names) / sizeof(names[0]) && (strlen(names[i]) != length || strncmp(names[i], at, length) != 0))
			i++;
		if (i == sizeof(names) / sizeof(names[0]))
			return bad(err, "allow", text, "label, owner, mode, or some of them with commas between");
		*ret |= 1u << i;
		if (at[length] == '\0')
			return 0;
	}
}

static int parse_timeout(const char *option, const char *text, unsigned *ret, struct dioh_error *err)
{
	unsigned long seconds;
	int r = parse_number(option, text, TIMEOUT_S_MAX, &seconds, err);

	if (r == 0 && seconds == 0)
		r = bad(err, option, text, "at least one second");
	if (r == 0)
		*ret = (unsigned)seconds;
	return r;
}

static int take_option(int option, const char *value, struct dioh_options *options, struct dioh_error *err)
{
	unsigned long fd;
	int r = 0;

	switch (option) {
	case OPT_FD:
		r = parse_number("fd", value, INT_MAX, &fd, err);
		options->fd = (int)fd;
		break;
	case OPT_KEEP_UID: options->identity.keep_uid = true; break;
	case OPT_USER: r = parse_user(value, &options->identity, err); break;
	case OPT_ALLOW: r = parse_allow(value, &options->allow, err); break;
	case OPT_ATTACH_TIMEOUT: r = parse_timeout("attach-timeout", value, &options->attach_timeout_s, err); break;
	case OPT_STUCK_TIMEOUT: r = parse_timeout("stuck-timeout", value, &options->stuck_timeout_s, err); break;
	case OPT_HELP: options->life = DIOH_LIFE_HELP; break;
	case OPT_VERSION: options->life = DIOH_LIFE_VERSION; break;
	case OPT_CAPABILITIES: options->life = DIOH_LIFE_CAPABILITIES; break;
	case OPT_LONG_OPTIONS: options->life = DIOH_LIFE_LONG_OPTIONS; break;
	default: r = -EINVAL; break;
	}
	return r;
}

static void make_getopt(struct option *table, bool serve)
{
	size_t n = 0;

	for (size_t i = 0; i < ROWS; i++)
		if (rows[i].serve == serve || rows[i].value == OPT_HELP)
			table[n++] = (struct option){ rows[i].name, rows[i].argument ? required_argument : no_argument, NULL,
				                      rows[i].value };
	memset(&table[n], 0, sizeof(table[n]));
}

static int parse_options(int argc, char **argv, bool serve, struct dioh_options *options, struct dioh_error *err)
{
	struct option table[ROWS + 1];
	int option;
	int r = 0;

	make_getopt(table, serve);
	opterr = 0;
	optind = 1;
	while (r == 0 && (option = getopt_long(argc, argv, "+:", table, NULL)) != -1) {
		if (option == ':')
			return dioh_error_set(err, EINVAL, PLACE, "%s: it needs a value", argv[optind - 1]);
		if (option == '?')
			return dioh_error_set(err, EINVAL, PLACE, "%s: unknown option%s", argv[optind - 1],
			                      serve ? " of serve" : "");
		r = take_option(option, optarg, options, err);
	}
	if (r == 0 && optind < argc)
		return dioh_error_set(err, EINVAL, PLACE, "%s: unexpected argument", argv[optind]);
	return r;
}

static int parse_serve(int argc, char **argv, struct dioh_options *options, struct dioh_error *err)
{
	int r;

	options->life = DIOH_LIFE_SERVE;
	dioh_seal_default_identity(&options->identity);
	r = parse_options(argc, argv, true, options, err);
	if (r == 0 && options->life == DIOH_LIFE_SERVE && options->fd < 0)
		r = dioh_error_set(err, EINVAL, PLACE, "serve: --fd=N is needed");
	return r;
}

static int nothing_to_do(struct dioh_error *err)
{
	return dioh_error_set(err, EINVAL, PLACE, "nothing to do; --help says what there is");
}

/* Options without a verb. "--" ends them, and asks for nothing. */
static int parse_alone(int argc, char **argv, struct dioh_options *options, struct dioh_error *err)
{
	int r = parse_options(argc, argv, false, options, err);

	return r == 0 && options->life == DIOH_LIFE_SERVE ? nothing_to_do(err) : r;
}

static bool all_digits(const char *text)
{
	return *text && text[strspn(text, "0123456789")] == '\0';
}

static bool called_iohelper(const char *program)
{
	const char *slash = strrchr(program, '/');

	return strcmp(slash ? slash + 1 : program, "libvirt_iohelper") == 0;
}

int dioh_options_parse(int argc, char **argv, struct dioh_options *ret_options, struct dioh_error *err)
{
	struct dioh_options options = {
		.fd = -1,
		.attach_timeout_s = DEFAULT_ATTACH_TIMEOUT_S,
		.stuck_timeout_s = DEFAULT_STUCK_TIMEOUT_S,
	};
	int r = 0;

	if (argc < 1)
		return dioh_error_set(err, EINVAL, PLACE, "called without even a name");
	if (called_iohelper(argv[0]) || (argc == 3 && all_digits(argv[2])))
		options.life = DIOH_LIFE_DROP_IN;
	else if (argc < 2)
		r = nothing_to_do(err);
	else if (strcmp(argv[1], "serve") == 0)
		r = parse_serve(argc - 1, argv + 1, &options, err);
	else if (argv[1][0] != '-')
		options.life = DIOH_LIFE_TOOL;
	else
		r = parse_alone(argc, argv, &options, err);
	if (r == 0)
		*ret_options = options;
	return r;
}
