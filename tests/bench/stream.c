/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * stream.c - times one pipe through an I/O helper, ours or libvirt's: both have the same command line. rows/stream.py
 * alternates them.
 *
 *      stream save|load direct|buffered PROGRAM FILE MIB
 *
 * Incompressible data; the pipe is enlarged as libvirt does. Prints one line: MiB/s from the start to the helper's exit
 * (its sync is inside), the helper's CPU seconds per GiB, the most RssAnon seen of it in KiB, KiB of the file left in the
 * page cache, milliseconds from the end of the stream to the exit.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fixture.h"
#include "measure.h"

#define BUFFER_BYTES (64u << 20)
#define PIECE_BYTES (1u << 20)
#define PIPE_BYTES (1 << 20)

static _Noreturn void die(const char *what)
{
	fixture_die(__FILE__, __LINE__, what, strerror(errno));
}

static uint8_t *random_bytes(void)
{
	int fd = must_memfd("bytes", BUFFER_BYTES, 0);
	void *map;

	must_fill(fd, 0, BUFFER_BYTES, 1);
	map = mmap(NULL, BUFFER_BYTES, PROT_READ, MAP_SHARED | MAP_POPULATE, fd, 0);
	if (map == MAP_FAILED)
		die("mmap");
	return map;
}

/*
 * In a virtual machine free memory may have gone back to the host, and costs a fault there when it is used: a lottery
 * of up to 1.5 s/GiB for whoever fills the page cache. What a file has just given back costs everybody the same. That
 * file goes before it is written to the disk.
 */
static void warm_page_cache(const char *path, const uint8_t *data, uint64_t bytes)
{
	char scratch[4096];
	int fd;

	snprintf(scratch, sizeof(scratch), "%s.warm", path);
	fd = open(scratch, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	if (fd < 0 || unlink(scratch) < 0)
		die(scratch);
	for (uint64_t done = 0; done < bytes; done += PIECE_BYTES)
		if (write(fd, data + done % BUFFER_BYTES, PIECE_BYTES) != PIECE_BYTES)
			die(scratch);
	close(fd);
}

static uint64_t most_rss_kib;

static void sample_rss(int pid)
{
	uint64_t kib = measure_status_kib(pid, "RssAnon");

	if (kib > most_rss_kib)
		most_rss_kib = kib;
}

/* The helper with the image on one of its standard descriptors and our pipe on the other. */
static int start(const char *program, const char *path, bool save, bool direct, int *ret_pipe)
{
	int ends[2];
	int pid, image;

	image = open(path, (save ? O_WRONLY | O_CREAT | O_TRUNC : O_RDONLY) | (direct ? O_DIRECT : 0), 0600);
	if (image < 0 || pipe2(ends, O_CLOEXEC) < 0)
		die(path);
	(void)fcntl(ends[0], F_SETPIPE_SZ, PIPE_BYTES);
	pid = fork();
	if (pid < 0)
		die("fork");
	if (pid == 0) {
		dup2(save ? ends[0] : image, STDIN_FILENO);
		dup2(save ? image : ends[1], STDOUT_FILENO);
		execl(program, "libvirt_iohelper", path, save ? "1" : "0", (char *)NULL);
		_exit(127);
	}
	close(image);
	close(ends[save ? 0 : 1]);
	*ret_pipe = ends[save ? 1 : 0];
	return pid;
}

static void feed(int pid, int fd, const uint8_t *data, uint64_t bytes)
{
	for (uint64_t done = 0; done < bytes;) {
		ssize_t n = write(fd, data + done % BUFFER_BYTES, PIECE_BYTES);

		if (n <= 0)
			die("the helper does not read");
		done += (uint64_t)n;
		if (done % (256 * MIB) == 0)
			sample_rss(pid);
	}
	sample_rss(pid);
}

static void drain(int pid, int fd, uint64_t bytes)
{
	static uint8_t data[PIECE_BYTES];
	uint64_t done = 0;
	ssize_t n;

	while ((n = read(fd, data, sizeof(data))) > 0) {
		if (done / (256 * MIB) != (done + (uint64_t)n) / (256 * MIB))
			sample_rss(pid);
		done += (uint64_t)n;
	}
	if (done != bytes)
		die("the helper sent another length");
}

int main(int argc, char **argv)
{
	double begun, ended, exited, cpu;
	struct rusage usage;
	const uint8_t *data;
	uint64_t bytes;
	bool save;
	int pid, fd, status;

	if (argc != 6) {
		fprintf(stderr, "usage: stream save|load direct|buffered PROGRAM FILE MIB\n");
		return 2;
	}
	save = strcmp(argv[1], "save") == 0;
	bytes = strtoull(argv[5], NULL, 10) * MIB;
	data = random_bytes(); /* not inside the clock */
	if (save && strcmp(argv[2], "buffered") == 0)
		warm_page_cache(argv[4], data, bytes);
	begun = measure_now_s();
	pid = start(argv[3], argv[4], save, strcmp(argv[2], "direct") == 0, &fd);
	if (save)
		feed(pid, fd, data, bytes);
	else
		drain(pid, fd, bytes);
	close(fd);
	ended = measure_now_s();
	if (wait4(pid, &status, 0, &usage) < 0 || status != 0)
		die("the helper failed");
	exited = measure_now_s();
	cpu = (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
	      (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
	printf("%.1f %.4f %" PRIu64 " %" PRIu64 " %.1f\n", (double)bytes / MIB / (exited - begun),
	       cpu / ((double)bytes / GIB), most_rss_kib, measure_cached_bytes(argv[4]) / 1024, (exited - ended) * 1000);
	return 0;
}
