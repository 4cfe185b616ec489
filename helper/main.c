/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * main.c - diohelper: which life, then the start of it.
 *
 *   diohelper serve --fd=N      a session: seal.c's first stage, then session.c until its end
 *   diohelper FILENAME FD       the drop-in for libvirt_iohelper
 *   diohelper VERB ...          diohelper-tool, beside this program, before anything else is done
 *
 * Exit status: 0 all went well, 1 something failed, 2 the command line makes no sense.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "capabilities.h"
#include "dropin.h"
#include "guard.h"
#include "options.h"
#include "session.h"

#define EXIT_USAGE 2

static int fail(const char *text)
{
	fprintf(stderr, "diohelper: %s\n", text);
	return EXIT_FAILURE;
}

/* Opens nothing by a name that anybody else could change: the tool stands where we stand. */
static int run_tool(char **argv)
{
	char path[PATH_MAX];
	ssize_t n = readlink("/proc/self/exe", path, sizeof(path) - 1);
	char *slash;

	if (n < 0)
		return fail("/proc/self/exe cannot be read, so diohelper-tool is not to be found");
	path[n] = '\0';
	slash = strrchr(path, '/');
	if (!slash || (size_t)(slash + 1 - path) + sizeof("diohelper-tool") > sizeof(path))
		return fail("the path of this program is too long to find diohelper-tool");
	strcpy(slash + 1, "diohelper-tool");
	execv(path, argv);
	fprintf(stderr, "diohelper: %s: %s\n", path, strerror(errno));
	return EXIT_FAILURE;
}

static int check_control_fd(int fd, struct dioh_error *err)
{
	const struct dioh_place *place = DIOH_PLACE(PROTOCOL, SESSION, 0, DIOH_OFFSET_NONE);
	int domain, type;
	socklen_t length = sizeof(int);

	if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &length) < 0 ||
	    getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &length) < 0)
		return dioh_error_errno(err, errno, place, "--fd=%d is no socket", fd);
	if (domain != AF_UNIX || type != SOCK_SEQPACKET)
		return dioh_error_set(err, EINVAL, place, "--fd=%d is not an AF_UNIX SOCK_SEQPACKET socket", fd);
	return 0;
}

/* Not on 0, 1 or 2, where what is printed for people would go into it. */
static int move_control_fd(int *fd, struct dioh_error *err)
{
	int moved;

	if (*fd > STDERR_FILENO)
		return 0;
	moved = fcntl(*fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
	if (moved < 0)
		return dioh_error_errno(err, errno, DIOH_PLACE(PROTOCOL, SESSION, 0, DIOH_OFFSET_NONE),
		                        "--fd=%d cannot be duplicated", *fd);
	close(*fd);
	*fd = moved;
	return 0;
}

static int serve(struct dioh_options *options)
{
	struct dioh_error err;

	if (check_control_fd(options->fd, &err) < 0)
		return fail(err.text);
	if (move_control_fd(&options->fd, &err) < 0 || dioh_seal_start(options->fd, &options->identity, options->allow, &err) < 0)
		return fail(err.text);
	/* A terminal's reach the whole process group: what they mean for the session is the manager's to say. */
	signal(SIGINT, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	dioh_guard_install();
	return dioh_session_run(options);
}

int main(int argc, char **argv)
{
	struct dioh_options options;
	struct dioh_error err;

	if (dioh_options_parse(argc, argv, &options, &err) < 0) {
		fprintf(stderr, "diohelper: %s\n", err.text);
		return EXIT_USAGE;
	}
	switch (options.life) {
	case DIOH_LIFE_SERVE:
		return serve(&options);
	case DIOH_LIFE_TOOL:
		return run_tool(argv);
	case DIOH_LIFE_DROP_IN:
		return dioh_dropin_run(argc, argv);
	case DIOH_LIFE_HELP:
		dioh_options_print_help();
		break;
	case DIOH_LIFE_VERSION:
		printf("diohelper %s\n", DIOH_VERSION_STRING);
		break;
	case DIOH_LIFE_CAPABILITIES:
		dioh_capabilities_print();
		break;
	case DIOH_LIFE_LONG_OPTIONS:
		dioh_options_print_long();
		break;
	}
	if (fflush(stdout) == 0 && !ferror(stdout))
		return EXIT_SUCCESS;
	fprintf(stderr, "diohelper: writing standard output failed: %s\n", strerror(errno));
	return EXIT_FAILURE;
}
