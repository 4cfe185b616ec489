/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * options.c - a verb's table of options becomes getopt_long's input, --help, and the hidden --long-options, by which
 * the tests compare the table with the manual page. Called by the verbs.
 */
#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "tool.h"

#define OPTIONS_MAX 32u /* of a verb, --help and --long-options included */

enum { VALUE_HELP = CHAR_MAX + 1, VALUE_LONG_OPTIONS, VALUE_FIRST };

int dioh_tool_usage_error(const char *verb, const char *format, ...)
{
	va_list arguments;

	fprintf(stderr, DIOH_TOOL_NAME "%s%s: ", verb ? " " : "", verb ? verb : "");
	va_start(arguments, format);
	vfprintf(stderr, format, arguments);
	va_end(arguments);
	fputc('\n', stderr);
	return DIOH_TOOL_USAGE;
}

int dioh_tool_check_base_offset(const char *verb, uint64_t base_offset)
{
	if (base_offset % DIOH_PAGE_BYTES != 0)
		return dioh_tool_usage_error(verb, "--base-offset: %llu is not a multiple of %u",
		                             (unsigned long long)base_offset, DIOH_PAGE_BYTES);
	if (base_offset >= DIOH_OFFSET_MAX)
		return dioh_tool_usage_error(verb, "--base-offset: %llu is too large", (unsigned long long)base_offset);
	return -1;
}

int dioh_tool_check_place(const char *verb, uint64_t base_offset, uint64_t header_bytes)
{
	if (header_bytes > DIOH_HEADER_BYTES_MAX)
		return dioh_tool_usage_error(verb, "--header-bytes: %llu is more than %u", (unsigned long long)header_bytes,
		                             DIOH_HEADER_BYTES_MAX);
	return dioh_tool_check_base_offset(verb, base_offset);
}

static void print_help(const struct dioh_tool_usage *usage)
{
	printf("Usage: " DIOH_TOOL_NAME " %s [OPTION...] %s\n%s\n\n", usage->verb, usage->operand,
	       usage->description);
	for (unsigned i = 0; i < usage->option_count; i++) {
		const struct dioh_tool_option *option = &usage->options[i];
		char left[64];

		snprintf(left, sizeof(left), "--%s%s%s", option->name, option->argument ? "=" : "",
		         option->argument ? option->argument : "");
		printf("  %-20s %s\n", left, option->help);
	}
	printf("  %-20s %s\n", "--help", "this text");
}

static void print_long_options(const struct dioh_tool_usage *usage)
{
	for (unsigned i = 0; i < usage->option_count; i++)
		printf("--%s\n", usage->options[i].name);
	printf("--help\n");
}

bool dioh_tool_parse_size(const char *text, uint64_t *ret_bytes)
{
	static const char suffixes[] = "KMGT";
	unsigned long long value;
	unsigned shift = 0;
	char *end;

	if (*text < '0' || *text > '9')
		return false;
	errno = 0;
	value = strtoull(text, &end, 10);
	if (errno != 0)
		return false;
	if (*end != '\0') {
		const char *suffix = strchr(suffixes, *end);

		if (!suffix || end[1] != '\0')
			return false;
		shift = 10 * (unsigned)(suffix - suffixes + 1);
	}
	if (value > UINT64_MAX >> shift)
		return false;
	*ret_bytes = (uint64_t)value << shift;
	return true;
}

static int take_value(const struct dioh_tool_usage *usage, const struct dioh_tool_option *option, const char *value)
{
	if (option->flag)
		*option->flag = true;
	else if (option->text)
		*option->text = value;
	else if (!dioh_tool_parse_size(value, option->size))
		return dioh_tool_usage_error(usage->verb,
		                             "--%s: %s is not a size (a number, then K, M, G, T or nothing)",
		                             option->name, value);
	return -1;
}

static void fill_table(const struct dioh_tool_usage *usage, struct option table[OPTIONS_MAX])
{
	unsigned i;

	memset(table, 0, OPTIONS_MAX * sizeof(*table));
	for (i = 0; i < usage->option_count && i < OPTIONS_MAX - 3; i++)
		table[i] = (struct option){ usage->options[i].name,
		                            usage->options[i].argument ? required_argument : no_argument, NULL,
		                            (int)(VALUE_FIRST + i) };
	table[i++] = (struct option){ "help", no_argument, NULL, VALUE_HELP };
	table[i] = (struct option){ "long-options", no_argument, NULL, VALUE_LONG_OPTIONS };
}

/*
 * getopt leaves a short option in optopt, and there too the table's value of a long one that was given an argument it
 * does not take.
 */
static int unknown_option(const char *verb, const char *text)
{
	if (optopt > 0 && optopt <= CHAR_MAX)
		return dioh_tool_usage_error(verb, "-%c: there is no such option; try --help", optopt);
	if (optopt)
		return dioh_tool_usage_error(verb, "%s: it takes no value; try --help", text);
	return dioh_tool_usage_error(verb, "%s: there is no such option; try --help", text);
}

/* The operands, behind the options. */
static int take_operands(const struct dioh_tool_usage *usage, int argc, char **argv, unsigned max,
                         const char **ret_operands)
{
	if (optind == argc)
		return dioh_tool_usage_error(usage->verb, "%s is missing; try --help", usage->operand);
	if (optind + (int)max < argc)
		return dioh_tool_usage_error(usage->verb, "%s: %s%s only; try --help", argv[optind + (int)max],
		                             max == 1 ? "one " : "", usage->operand);
	for (unsigned i = 0; i < max; i++) {
		const char *operand = optind + (int)i < argc ? argv[optind + (int)i] : NULL;

		if (operand && *operand == '\0')
			return dioh_tool_usage_error(usage->verb, "%s: the name is empty", usage->operand);
		ret_operands[i] = operand;
	}
	return -1;
}

int dioh_tool_parse(const struct dioh_tool_usage *usage, int argc, char **argv, const char **ret_operand)
{
	return dioh_tool_parse_operands(usage, argc, argv, 1, ret_operand);
}

int dioh_tool_parse_operands(const struct dioh_tool_usage *usage, int argc, char **argv, unsigned max,
                             const char **ret_operands)
{
	struct option table[OPTIONS_MAX];
	int value, status;

	fill_table(usage, table);
	opterr = 0;
	optind = 1;
	while ((value = getopt_long(argc, argv, ":", table, NULL)) != -1) {
		switch (value) {
		case VALUE_HELP:
			print_help(usage);
			return DIOH_TOOL_OK;
		case VALUE_LONG_OPTIONS:
			print_long_options(usage);
			return DIOH_TOOL_OK;
		case ':':
			return dioh_tool_usage_error(usage->verb, "%s: a value is missing", argv[optind - 1]);
		case '?':
			return unknown_option(usage->verb, argv[optind - 1]);
		default:
			status = take_value(usage, &usage->options[value - VALUE_FIRST], optarg);
			if (status >= 0)
				return status;
		}
	}
	return take_operands(usage, argc, argv, max, ret_operands);
}
