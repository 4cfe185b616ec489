/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * main.c - diohelper-tool: finds the verb and runs it. Also reached as `diohelper VERB ...`, which executes this
 * program. Exit status: 0 good news, 1 bad news or failure, 2 wrong command line.
 */
#include <errno.h>
#include <fcntl.h>
#include <locale.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "tool.h"

static const struct dioh_tool_verb *const verbs[] = {
	&dioh_tool_bench,
	&dioh_tool_convert,
	&dioh_tool_ingest,
	&dioh_tool_inspect,
	&dioh_tool_map,
	&dioh_tool_verify,
};

#define VERB_COUNT (sizeof(verbs) / sizeof(verbs[0]))

static void print_help(void)
{
	printf("Usage: " DIOH_TOOL_NAME " VERB [OPTION...] PATH\n"
	       "Looks at images of virtual machines, makes them of what QEMU sends, converts them, and measures disks; a sealed\n"
	       "diohelper does the I/O.\n\n"
	       "Verbs:\n");
	for (size_t i = 0; i < VERB_COUNT; i++)
		printf("  %-10s %s\n", verbs[i]->name, verbs[i]->summary);
	printf("\n"
	       "  " DIOH_TOOL_NAME " VERB --help   options of a verb\n"
	       "  " DIOH_TOOL_NAME " --help        this text\n"
	       "  " DIOH_TOOL_NAME " --version     version\n");
}

static int run(int argc, char **argv)
{
	if (argc < 2)
		return dioh_tool_usage_error(NULL, "a verb is missing; try --help");
	if (strcmp(argv[1], "--help") == 0) {
		print_help();
		return DIOH_TOOL_OK;
	}
	if (strcmp(argv[1], "--version") == 0) {
		printf(DIOH_TOOL_NAME " " DIOH_VERSION_STRING "\n");
		return DIOH_TOOL_OK;
	}
	for (size_t i = 0; i < VERB_COUNT; i++)
		if (strcmp(argv[1], verbs[i]->name) == 0)
			return verbs[i]->run(argc - 1, argv + 1);
	if (argv[1][0] == '-')
		return dioh_tool_usage_error(NULL, "%s: there is no such option; try --help", argv[1]);
	return dioh_tool_usage_error(NULL, "%s: there is no such verb; try --help", argv[1]);
}

/*
 * Nothing that is opened later may become standard input or output: an image would be taken for its own stream. What was
 * closed fails as before, by a descriptor for the wrong direction.
 */
static bool occupy_standard_fds(void)
{
	for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
		if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDONLY) != fd)
			return false;
	return true;
}

int main(int argc, char **argv)
{
	int status;

	if (!occupy_standard_fds()) {
		fprintf(stderr, DIOH_TOOL_NAME ": /dev/null, for standard descriptors that are closed: %s\n", strerror(errno));
		return DIOH_TOOL_FAILED;
	}
	/* Ignored by whoever started us: nobody would be told how a helper ended, and an image that is whole be called lost. */
	(void)signal(SIGCHLD, SIG_DFL);
	/* A file that grows beyond RLIMIT_FSIZE, memory in a memfd among them: an error, and not the end. */
	(void)signal(SIGXFSZ, SIG_IGN);
	/* What a terminal takes as text depends on it; numbers stay as they are. */
	setlocale(LC_CTYPE, "");
	status = run(argc, argv);
	if (fflush(stdout) != 0 || ferror(stdout)) {
		fprintf(stderr, DIOH_TOOL_NAME ": writing standard output failed: %s\n", strerror(errno));
		return DIOH_TOOL_FAILED;
	}
	return status;
}
