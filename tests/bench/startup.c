/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * startup.c - how long a helper takes from its start to HELLO's answer and to SEAL's, with an image and a memory
 * attached; beside it other programs from start to end. In turn, so that what else runs here meets all of them. See startup.sh.
 *
 *   startup ROUNDS
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fixture.h"
#include "measure.h"

#define ROUNDS_MAX 10000

enum what { TRUE, IOHELPER, HELLO, SEALED, WHATS };

static const char *names[WHATS] = {
	[TRUE] = "/bin/true, start to end",
	[IOHELPER] = "libvirt_iohelper --help, start to end",
	[HELLO] = "diohelper serve, start to HELLO's answer",
	[SEALED] = "diohelper serve, start to SEAL's answer",
};

static double times_ms[WHATS][ROUNDS_MAX];

static double run(const char *program, const char *argument)
{
	double started = 1e3 * measure_now_s();
	pid_t pid = fork();
	int status;

	if (pid == 0) {
		close(STDOUT_FILENO);
		if (open("/dev/null", O_WRONLY) == STDOUT_FILENO)
			execl(program, program, argument, (char *)NULL);
		_exit(99);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid || status != 0)
		fixture_die(__FILE__, __LINE__, program, "cannot be run");
	return 1e3 * measure_now_s() - started;
}

/* The library asks for HELLO within dioh_spawn. */
static void run_helper(int image_fd, int memfd, unsigned round)
{
	struct dioh_spawn_options spawn = DIOH_SPAWN_OPTIONS_INIT;
	struct dioh_image_options image = DIOH_IMAGE_OPTIONS_INIT;
	struct dioh_session *session;
	struct dioh_error err;
	double started = 1e3 * measure_now_s();

	spawn.program = fixture_helper();
	must(dioh_spawn(&spawn, 0, &session, &err), &err);
	times_ms[HELLO][round] = 1e3 * measure_now_s() - started;
	image.direction = DIOH_DIRECTION_SAVE;
	image.buffered_fd = image_fd;
	must(dioh_attach_image(session, &image, NULL, &err), &err);
	must_attach_memory(session, 0, memfd, -1);
	must_seal(session);
	times_ms[SEALED][round] = 1e3 * measure_now_s() - started;
	must_close(session, 0);
}

static int by_value(const void *a, const void *b)
{
	const double *x = a, *y = b;

	return (*x > *y) - (*x < *y);
}

static const char *find_iohelper(void)
{
	static const char *const places[] = { "/usr/lib/libvirt/libvirt_iohelper", "/usr/libexec/libvirt_iohelper" };

	for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++)
		if (access(places[i], X_OK) == 0)
			return places[i];
	printf("libvirt_iohelper is not installed here\n");
	return NULL;
}

int main(int argc, char **argv)
{
	const unsigned rounds = argc > 1 ? (unsigned)strtoul(argv[1], NULL, 10) : 200;
	const char *iohelper = find_iohelper();
	int image_fd = open(fixture_path("image"), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	int memfd = must_memfd("ram", MIB, 0);

	if (rounds == 0 || rounds > ROUNDS_MAX)
		fixture_die(__FILE__, __LINE__, "ROUNDS", "1 to 10000");
	for (unsigned i = 0; i < rounds; i++) {
		times_ms[TRUE][i] = run("/bin/true", NULL);
		if (iohelper)
			times_ms[IOHELPER][i] = run(iohelper, "--help");
		run_helper(image_fd, memfd, i);
	}
	printf("%-42s %8s %8s %8s   ms, %u rounds\n", "", "quarter", "median", "3/4", rounds);
	for (enum what what = 0; what < WHATS; what++) {
		qsort(times_ms[what], rounds, sizeof(double), by_value);
		if (what != IOHELPER || iohelper)
			printf("%-42s %8.2f %8.2f %8.2f\n", names[what], times_ms[what][rounds / 4],
			       times_ms[what][rounds / 2], times_ms[what][rounds * 3 / 4]);
	}
	return EXIT_SUCCESS;
}
