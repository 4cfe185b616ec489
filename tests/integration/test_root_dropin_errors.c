/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test_root_dropin_errors.c - the drop-in, and libvirt's own program where it is installed, over a disk that answers
 * with errors: both exit with 1 and say why; ours names the operation too.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fixture.h"
#include "fuse_file.h"

#define STREAM_BYTES (6 * MIB + 777)
#define LIMIT_S 50 /* of the whole program: should it hang itself */

static const char *const stock = "/usr/lib/libvirt/libvirt_iohelper";

static struct fuse_file *file;
static uint8_t *data;

struct ended {
	int status;
	char error[1024];
};

static int open_setup(void **state)
{
	static const struct fuse_file_options options = { .direct_io = false };
	const char *why = NULL;

	(void)state;
	file = fuse_file_start("mount", &options, &why);
	if (!file)
		printf("skip: %s\n", why);
	return file ? 0 : -1;
}

static int close_teardown(void **state)
{
	(void)state;
	fuse_file_stop(file);
	return 0;
}

/* ---- a run ---- */

static int start(const char *program, bool save, bool direct, int *ret_stream, int *ret_error)
{
	int image = open(fuse_file_path(file), (save ? O_WRONLY | O_TRUNC : O_RDONLY) | (direct ? O_DIRECT : 0) | O_CLOEXEC);
	int stream[2], error[2];
	int pid;

	if (image < 0 || pipe2(stream, O_CLOEXEC) < 0 || pipe2(error, O_CLOEXEC) < 0)
		fail_msg("open or pipe: %s", strerror(errno));
	pid = fork();
	if (pid == 0) {
		dup2(save ? stream[0] : image, STDIN_FILENO);
		dup2(save ? image : stream[1], STDOUT_FILENO);
		dup2(error[1], STDERR_FILENO);
		execl(program, "libvirt_iohelper", "/the/image", save ? "1" : "0", (char *)NULL);
		_exit(127);
	}
	close(image);
	close(stream[save ? 0 : 1]);
	close(error[1]);
	*ret_stream = stream[save ? 1 : 0];
	*ret_error = error[0];
	return pid;
}

static void feed(int fd)
{
	for (size_t done = 0; done < STREAM_BYTES;) {
		ssize_t n = write(fd, data + done, STREAM_BYTES - done);

		if (n < 0)
			return; /* it has given up */
		done += (size_t)n;
	}
}

static void drain(int fd)
{
	static uint8_t bytes[MIB];

	while (read(fd, bytes, sizeof(bytes)) > 0)
		continue;
}

static void end(int pid, int error, struct ended *ret)
{
	size_t length = 0;
	int status;
	ssize_t n;

	while ((n = read(error, ret->error + length, sizeof(ret->error) - 1 - length)) > 0)
		length += (size_t)n;
	ret->error[length] = '\0';
	close(error);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	ret->status = WEXITSTATUS(status);
}

static void run(const char *program, bool save, bool direct, struct ended *ret)
{
	int stream, error;
	int pid = start(program, save, direct, &stream, &error);

	if (save)
		feed(stream);
	else
		drain(stream);
	close(stream);
	end(pid, error, ret);
}

/* ---- the table ---- */

struct fault_case {
	bool save;
	bool direct;
	uint32_t opcode;
	int code;
	unsigned after;
	const char *ours; /* says this beside strerror(code) */
};

static const struct fault_case cases[] = {
	{ true, true, FUSE_WRITE, EIO, 0, "image: O_DIRECT write of " },
	{ true, true, FUSE_WRITE, ENOSPC, 3, "image: O_DIRECT write of " },
	{ true, true, FUSE_WRITE, EDQUOT, 2, "image: O_DIRECT write of " },
	{ true, false, FUSE_WRITE, EIO, 0, "" },
	{ true, false, FUSE_WRITE, ENOSPC, 3, "" },
	{ true, false, FUSE_FSYNC, EIO, 0, "Unable to sync /the/image" },
	{ true, true, FUSE_FSYNC, EIO, 0, "Unable to sync /the/image" },
	{ false, true, FUSE_READ, EIO, 0, "read of " },
	{ false, true, FUSE_READ, EIO, 2, "read of " },
	{ false, false, FUSE_READ, EIO, 0, "image: read of " },
};

/* For a load: what is read comes from the disk, and not from a cache of what was written just now. */
static void make_image(void)
{
	int memfd = fuse_file_memfd(file);

	assert_int_equal(ftruncate(memfd, 0), 0);
	assert_true(pwrite(memfd, data, STREAM_BYTES, 0) == (ssize_t)STREAM_BYTES);
	close(open(fuse_file_path(file), O_RDONLY)); /* the size is asked for anew */
}

static void check(const char *program, const struct fault_case *c, bool ours)
{
	const char prefix[] = "libvirt_iohelper: failure with /the/image: ";
	struct ended ended;

	if (!c->save)
		make_image();
	fuse_file_fault(file, c->opcode, .kind = FUSE_FAULT_ERROR, .value = c->code, .after = c->after);
	run(program, c->save, c->direct, &ended);
	if (fuse_file_hits(file, c->opcode) == 0)
		fail_msg("no request was hit: %s", ended.error);
	fuse_file_release(file, 0);
	if (ended.status != 1 || !strstr(ended.error, prefix))
		fail_msg("%s: exit status %d: %s", program, ended.status, ended.error);
	if (!ours)
		return;
	if (strncmp(ended.error, prefix, strlen(prefix)) != 0 || strchr(ended.error, '\n'))
		fail_msg("not one sentence: %s", ended.error);
	if (!strstr(ended.error, strerror(c->code)) || !strstr(ended.error, c->ours))
		fail_msg("does not say \"%s\" and \"%s\": %s", c->ours, strerror(c->code), ended.error);
}

static void all_cases(const char *program, bool ours)
{
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		print_message("%s of %s, opcode %u: %s\n", cases[i].save ? "save" : "load",
		              cases[i].direct ? "O_DIRECT" : "buffered", cases[i].opcode, strerror(cases[i].code));
		check(program, &cases[i], ours);
	}
}

static void errors_end_ours(void **state)
{
	(void)state;
	all_cases(fixture_helper(), true);
}

static void errors_end_libvirts(void **state)
{
	(void)state;
	if (access(stock, X_OK) < 0) {
		print_message("skipped: no libvirt_iohelper is installed here\n");
		skip();
	}
	all_cases(stock, false);
}

/* ---- standard output on the disk ---- */

static void run_into_file(const char *program, struct ended *ret)
{
	int image = open(fixture_path("image"), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	int output = open(fuse_file_path(file), O_WRONLY | O_CLOEXEC);
	int error[2], pid;

	if (image < 0 || output < 0 || pipe2(error, O_CLOEXEC) < 0)
		fail_msg("open or pipe: %s", strerror(errno));
	assert_true(write(image, data, STREAM_BYTES) == (ssize_t)STREAM_BYTES);
	pid = fork();
	if (pid == 0) {
		dup2(open(fixture_path("image"), O_RDONLY), STDIN_FILENO);
		dup2(output, STDOUT_FILENO);
		dup2(error[1], STDERR_FILENO);
		execl(program, "libvirt_iohelper", "/the/image", "0", (char *)NULL);
		_exit(127);
	}
	close(image);
	close(output);
	close(error[1]);
	end(pid, error[0], ret);
}

static void output_that_is_a_file_is_synced(void **state)
{
	struct ended ended;

	(void)state;
	fuse_file_fault(file, FUSE_FSYNC, .kind = FUSE_FAULT_ERROR, .value = EIO);
	if (access(stock, X_OK) == 0) {
		run_into_file(stock, &ended);
		assert_int_equal(ended.status, 1);
	}
	run_into_file(fixture_helper(), &ended);
	assert_int_equal(ended.status, 1);
	if (!strstr(ended.error, "Unable to sync standard output") || !strstr(ended.error, strerror(EIO)))
		fail_msg("does not say what: %s", ended.error);
	fuse_file_release(file, 0);
	run_into_file(fixture_helper(), &ended);
	assert_string_equal(ended.error, "");
	assert_int_equal(ended.status, 0);
}

static void assert_saved(const struct ended *ended)
{
	uint8_t *image = malloc(STREAM_BYTES);

	assert_string_equal(ended->error, "");
	assert_int_equal(ended->status, 0);
	assert_true(pread(fuse_file_memfd(file), image, STREAM_BYTES, 0) == (ssize_t)STREAM_BYTES);
	assert_memory_equal(image, data, STREAM_BYTES);
	free(image);
}

/* Some file systems of FUSE cannot make a file longer but by writing to it. */
static void a_file_that_only_grows_by_writes(void **state)
{
	const char *const programs[] = { stock, fixture_helper() };
	struct ended ended;

	(void)state;
	for (unsigned i = access(stock, X_OK) == 0 ? 0 : 1; i < 2; i++) {
		/* The first is its opening, with O_TRUNC. */
		fuse_file_fault(file, FUSE_SETATTR, .kind = FUSE_FAULT_ERROR, .value = EOPNOTSUPP, .after = 1);
		run(programs[i], true, false, &ended);
		fuse_file_release(file, 0);
		assert_saved(&ended);
	}
}

/* What an ext4 or a btrfs says that has stopped writing. libvirt's program takes it for a file system that is only read. */
static void a_file_system_that_broke_down(void **state)
{
	struct ended ended;

	(void)state;
	fuse_file_fault(file, FUSE_FSYNC, .kind = FUSE_FAULT_ERROR, .value = EROFS);
	for (unsigned direct = 0; direct < 2; direct++) {
		run(fixture_helper(), true, direct, &ended);
		assert_int_equal(ended.status, 1);
		assert_non_null(strstr(ended.error, "Unable to sync /the/image: Read-only file system"));
	}
	run_into_file(fixture_helper(), &ended);
	assert_int_equal(ended.status, 1);
	assert_non_null(strstr(ended.error, "Unable to sync standard output: Read-only file system"));
	fuse_file_release(file, 0);
}

/* All has come and is being synced: whoever wants it to end is too late, and nothing is lost. */
static void a_signal_while_it_syncs(void **state)
{
	static const int signals[] = { SIGTERM, SIGINT, SIGHUP };

	(void)state;
	for (unsigned i = 0; i < 2 * sizeof(signals) / sizeof(signals[0]); i++) {
		int stream, error, pid = start(fixture_helper(), true, i % 2, &stream, &error);
		struct ended ended;

		fuse_file_obey_interrupts(file, true);
		fuse_file_fault(file, FUSE_FSYNC, .kind = FUSE_FAULT_HOLD);
		feed(stream);
		close(stream);
		while (fuse_file_held(file) == 0)
			usleep(1000);
		for (unsigned k = 0; k < 3; k++) {
			kill(pid, signals[i / 2]);
			usleep(10000);
		}
		fuse_file_release(file, 0);
		end(pid, error, &ended);
		assert_saved(&ended);
		fuse_file_obey_interrupts(file, false);
	}
}

/* The rings that are closed when the stream has come have the kernel wake who made them: no sync may wait there then. */
static void a_slow_sync_that_may_be_interrupted(void **state)
{
	struct ended ended;

	(void)state;
	fuse_file_obey_interrupts(file, true);
	for (unsigned direct = 0; direct < 2; direct++) {
		fuse_file_fault(file, FUSE_FSYNC, .kind = FUSE_FAULT_LATE, .value = 400);
		run(fixture_helper(), true, direct, &ended);
		assert_int_equal(fuse_file_hits(file, FUSE_FSYNC), 1);
		assert_saved(&ended);
	}
	run_into_file(fixture_helper(), &ended);
	assert_string_equal(ended.error, "");
	assert_int_equal(ended.status, 0);
	fuse_file_release(file, 0);
	fuse_file_obey_interrupts(file, false);
}

/* The disk is well again: nothing of the failures before is left. */
static void works_without_faults(void **state)
{
	struct ended ended;

	(void)state;
	run(fixture_helper(), true, true, &ended);
	assert_saved(&ended);
	run(fixture_helper(), true, false, &ended);
	assert_saved(&ended);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(errors_end_ours),
		cmocka_unit_test(errors_end_libvirts),
		cmocka_unit_test(output_that_is_a_file_is_synced),
		cmocka_unit_test(a_file_that_only_grows_by_writes),
		cmocka_unit_test(a_file_system_that_broke_down),
		cmocka_unit_test(a_slow_sync_that_may_be_interrupted),
		cmocka_unit_test(a_signal_while_it_syncs),
		cmocka_unit_test(works_without_faults),
	};

	if (geteuid() != 0) {
		puts("skip: this needs root");
		return 77;
	}
	signal(SIGPIPE, SIG_IGN);
	alarm(LIMIT_S);
	data = malloc(STREAM_BYTES);
	if (!data)
		return 1;
	for (size_t i = 0; i < STREAM_BYTES; i++)
		data[i] = (uint8_t)(i * 2654435761u >> 24);
	if (open_setup(NULL) < 0)
		return 77;
	return cmocka_run_group_tests(tests, NULL, close_teardown);
}
