/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * bench_stream.c - one measurement of a pipe: the drop-in, started as libvirt starts it, takes what is written here, or
 * sends what is read here. The clock runs from its start to its end. What it complains is kept for the error's
 * sentence. Called by bench.c.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "align.h"
#include "bench.h"
#include "cleanup.h"

#define BUFFER_BYTES (16u << 20) /* repeated: farther apart than compressing disks look */
#define PIECE_BYTES (1u << 20)
#define PIPE_BYTES (1 << 20) /* as libvirt does */
#define NOT_STARTED 127

struct dropin {
	pid_t pid;
	int pipe_fd;      /* our end */
	int complaint_fd; /* its standard error */
};

/* ---- the program -------------------------------------------------------------------------------------------- */

static _Noreturn void become(const char *program, const char *path, bool load, int image_fd, int pipe_fd,
                             int complaint_fd)
{
	signal(SIGPIPE, SIG_DFL); /* ignoring it would be inherited */
	if (dup2(load ? image_fd : pipe_fd, STDIN_FILENO) >= 0 && dup2(load ? pipe_fd : image_fd, STDOUT_FILENO) >= 0 &&
	    dup2(complaint_fd, STDERR_FILENO) >= 0) {
		execlp(program, "diohelper", path, load ? "0" : "1", (char *)NULL);
		dprintf(STDERR_FILENO, "%s cannot be started: %s", program, strerror(errno));
	}
	_exit(NOT_STARTED);
}

static int start(const struct dioh_bench *bench, bool direct, bool load, struct dropin *ret_dropin,
                 struct dioh_error *err)
{
	char found[DIOH_TOOL_PATH_BYTES];
	const char *program = dioh_tool_helper(bench->options->helper, found);
	DIOH_AUTO_FD int image_fd = dioh_bench_target_reopen(&bench->target, (load ? O_RDONLY : O_WRONLY) |
	                                                     (direct ? O_DIRECT : 0));
	DIOH_AUTO_FD int complaint_fd = memfd_create("complaint", MFD_CLOEXEC);
	int ends[2];
	pid_t pid;

	if (image_fd < 0)
		return dioh_tool_error_set(err, -image_fd, "cannot be opened again: %s", strerror(-image_fd));
	if (complaint_fd < 0 || pipe2(ends, O_CLOEXEC) != 0)
		return dioh_tool_error_set(err, errno, "no pipe could be made: %s", strerror(errno));
	(void)fcntl(ends[0], F_SETPIPE_SZ, PIPE_BYTES);
	pid = fork();
	if (pid == 0)
		become(program, bench->target.path, load, image_fd, ends[load ? 1 : 0], complaint_fd);
	close(ends[load ? 1 : 0]);
	if (pid < 0) {
		close(ends[load ? 0 : 1]);
		return dioh_tool_error_set(err, errno, "fork failed: %s", strerror(errno));
	}
	*ret_dropin = (struct dropin){ pid, ends[load ? 0 : 1], dioh_steal_fd(&complaint_fd) };
	return 0;
}

/* ---- the pipe ----------------------------------------------------------------------------------------------- */

/* How many bytes went through: fewer than there are if the other end is gone, or Ctrl-C came. */
static uint64_t feed(const struct dioh_bench *bench, int fd, const char *data)
{
	uint64_t done = 0;

	while (done < bench->bytes && !dioh_bench_interrupted()) {
		ssize_t n = write(fd, data + done % BUFFER_BYTES, PIECE_BYTES - done % PIECE_BYTES);

		if (n < 0 && errno != EINTR)
			break;
		if (n > 0)
			done += (uint64_t)n;
		dioh_tool_progress_draw(bench->progress, bench->done_bytes + done);
	}
	return done;
}

/* A block device goes on behind what was saved: there the drop-in is left, as QEMU leaves it. */
static uint64_t drain(const struct dioh_bench *bench, int fd, char *buffer)
{
	uint64_t done = 0;

	while (done < bench->bytes && !dioh_bench_interrupted()) {
		ssize_t n = read(fd, buffer, dioh_min(PIECE_BYTES, bench->bytes - done));

		if (n == 0 || (n < 0 && errno != EINTR))
			break;
		if (n > 0)
			done += (uint64_t)n;
		dioh_tool_progress_draw(bench->progress, bench->done_bytes + done);
	}
	return done;
}

/* ---- its end ------------------------------------------------------------------------------------------------ */

static int fail(const struct dropin *dropin, int status, struct dioh_error *err)
{
	char text[DIOH_TEXT_BYTES];
	ssize_t n = pread(dropin->complaint_fd, text, sizeof(text) - 1, 0);

	text[n > 0 ? n : 0] = '\0';
	text[strcspn(text, "\n")] = '\0';
	if (text[0] != '\0')
		return dioh_tool_error_set(err, EPIPE, "%s", text);
	if (WIFSIGNALED(status))
		return dioh_tool_error_set(err, EPIPE, "the drop-in was killed by signal %d", WTERMSIG(status));
	return dioh_tool_error_set(err, EPIPE, "the drop-in ended with status %d, and had moved less than all",
	                           WEXITSTATUS(status));
}

/* Closes the pipe, which ends it when all is durable: that may take its time. */
static int finish(struct dioh_bench *bench, struct dropin *dropin, bool all, struct dioh_error *err)
{
	int status = 0, r;

	dioh_bench_signals_watch(-1);
	dioh_cleanup_fd(&dropin->pipe_fd);
	r = dioh_bench_end(bench, dropin->pid, false, &status, err);
	if (r == 0 && (status != 0 || !all))
		r = fail(dropin, status, err);
	dioh_cleanup_fd(&dropin->complaint_fd);
	return r;
}

static int run_dropin(struct dioh_bench *bench, bool direct, bool load, char *buffer,
                      struct dioh_bench_sample *sample, struct dioh_error *err)
{
	uint64_t begun_ns = dioh_tool_now_ns(), moved_ns, done;
	struct dropin dropin;
	int r = start(bench, direct, load, &dropin, err);

	if (r != 0)
		return r;
	dioh_bench_signals_watch(dropin.pipe_fd);
	done = load ? drain(bench, dropin.pipe_fd, buffer) : feed(bench, dropin.pipe_fd, buffer);
	moved_ns = dioh_tool_now_ns();
	r = finish(bench, &dropin, done == bench->bytes, err);
	sample->seconds = (double)(dioh_tool_now_ns() - begun_ns) / 1e9;
	sample->sync_seconds = (double)(dioh_tool_now_ns() - moved_ns) / 1e9;
	return r;
}

int dioh_bench_measure_stream(struct dioh_bench *bench, bool direct, bool load, struct dioh_bench_sample *ret_sample,
                              struct dioh_error *err)
{
	struct dioh_bench_sample sample = { .bytes = bench->bytes, .cached_bytes = DIOH_OFFSET_NONE };
	DIOH_AUTO_FREE char *buffer = malloc(BUFFER_BYTES);
	double cpu_before_s;
	int r;

	if (!buffer)
		return dioh_tool_error_set(err, ENOMEM, "there is no memory for a buffer");
	dioh_bench_fill(buffer, BUFFER_BYTES, UINT64_MAX);
	r = load ? dioh_bench_target_drop_cache(&bench->target, err) : dioh_bench_target_empty(&bench->target, err);
	if (r != 0)
		return r;
	cpu_before_s = dioh_bench_children_cpu_s();
	r = run_dropin(bench, direct, load, buffer, &sample, err);
	if (r != 0)
		return r;
	sample.cpu_seconds = dioh_bench_children_cpu_s() - cpu_before_s;
	if (!load)
		sample.cached_bytes = dioh_bench_target_cached(&bench->target);
	*ret_sample = sample;
	return 0;
}
