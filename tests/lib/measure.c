/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* measure.c - see measure.h. Benchmarks only; whatever cannot be looked at ends the program. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "align.h"
#include "cleanup.h"
#include "clock.h"
#include "fixture.h"
#include "measure.h"

#define SAMPLE_US 5000

#define die(what) fixture_die(__FILE__, __LINE__, what, strerror(errno))

double measure_now_s(void)
{
	return (double)dioh_now_ns() / 1e9;
}

double measure_children_cpu_s(void)
{
	struct rusage usage;

	getrusage(RUSAGE_CHILDREN, &usage);
	return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
	       (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

uint64_t measure_cached_bytes(const char *path)
{
	const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
	DIOH_AUTO_FD int fd = open(path, O_RDONLY | O_CLOEXEC);
	uint64_t pages, cached = 0;
	unsigned char *resident;
	struct stat st;
	void *map;

	if (fd < 0 || fstat(fd, &st) < 0)
		die(path);
	pages = dioh_div_up((uint64_t)st.st_size, page);
	resident = malloc(pages);
	map = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0);
	if (!resident || map == MAP_FAILED || mincore(map, (size_t)st.st_size, resident) < 0)
		die("mincore");
	for (uint64_t i = 0; i < pages; i++)
		cached += resident[i] & 1;
	munmap(map, (size_t)st.st_size);
	free(resident);
	return cached * page;
}

uint64_t measure_status_kib(int pid, const char *field)
{
	const size_t length = strlen(field);
	char path[64], line[256];
	uint64_t kib = 0;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/%d/status", pid);
	file = fopen(path, "re");
	while (file && fgets(line, sizeof(line), file))
		if (strncmp(line, field, length) == 0 && line[length] == ':')
			kib = strtoull(line + length + 1, NULL, 10);
	if (file)
		fclose(file);
	return kib;
}

static void *sample(void *argument)
{
	struct measure_sampler *sampler = argument;

	while (!atomic_load(&sampler->stop)) {
		uint64_t kib = measure_status_kib(sampler->pid, "RssAnon") + measure_status_kib(sampler->pid, "VmPTE");

		sampler->most_kib = dioh_max(sampler->most_kib, kib);
		usleep(SAMPLE_US);
	}
	return NULL;
}

void measure_sampler_start(struct measure_sampler *sampler, int pid)
{
	*sampler = (struct measure_sampler){ .pid = pid };
	errno = pthread_create(&sampler->thread, NULL, sample, sampler);
	if (errno)
		die("pthread_create");
}

uint64_t measure_sampler_stop(struct measure_sampler *sampler)
{
	atomic_store(&sampler->stop, true);
	pthread_join(sampler->thread, NULL);
	return sampler->most_kib;
}
