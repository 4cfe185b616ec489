/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * memory.c - makes memory of some shape, and times one save or load of it through a real helper. run.py calls it, and
 * lets it alternate with others. The memory is an inherited memfd, so that it is made once for many measurements.
 *
 *      memory fill FD BYTES UNIT STRIDE hole|zero [OPTION...]    UNIT bytes of data at each multiple of STRIDE, between
 *                                                                them holes, or pages that are there and zero
 *      memory save FD BYTES IMAGE [OPTION...]                    the first BYTES; the sync is inside the clock
 *      memory load FD BYTES IMAGE UNIT STRIDE [OPTION...]        into the memory, emptied before; looks at some pages after
 *
 * Data cannot be compressed and follows from its place. A save and a load print one JSON object: seconds (from
 * CREATE_IMAGE or OPEN_IMAGE to the end), CPU seconds of the helper (all of its life), the most RssAnon + VmPTE, what of
 * the image is in the page cache, how much the memory takes before and after, the I/Os, what the image takes.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "align.h"
#include "fixture.h"
#include "measure.h"

#define WINDOW_BYTES GIB
#define CHECKS 256u
#define CACHE_LOOK_BYTES_MAX (32 * GIB) /* beyond it mincore() takes long */

#define die(what) fixture_die(__FILE__, __LINE__, what, strerror(errno))

struct job {
	int fd;
	uint64_t bytes;
	const char *path;
	uint64_t unit_bytes, stride_bytes;
	bool zeros_between;
	bool hugepages; /* ask for them, when filling and loading */
	bool allocated; /* its pages are there before a load, as those of a guest with prealloc=on are */
	uint32_t save_flags; /* enum dioh_transfer_flags */
	struct dioh_image_options options;
};

/* ---- the memory ------------------------------------------------------------------------------------------------- */

/* splitmix64 (public domain, Sebastiano Vigna), seeded by the page's place. */
static void fill_page(uint64_t *words, uint64_t at)
{
	uint64_t state = (at / DIOH_PAGE_BYTES + 1) * UINT64_C(0xd1342543de82ef95);

	for (size_t i = 0; i < DIOH_PAGE_BYTES / sizeof(*words); i++) {
		uint64_t x = state += UINT64_C(0x9e3779b97f4a7c15);

		x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
		x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
		words[i] = x ^ x >> 31;
	}
}

static bool is_data(const struct job *job, uint64_t at)
{
	return at % job->stride_bytes < job->unit_bytes;
}

/* Through a mapping: hugetlb memory cannot be written otherwise. */
static void fill_window(const struct job *job, uint64_t begin, uint64_t bytes)
{
	uint8_t *map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, job->fd, (off_t)begin);

	if (map == MAP_FAILED || (job->hugepages && madvise(map, bytes, MADV_HUGEPAGE) < 0))
		die("mmap");
	for (uint64_t at = begin; at < begin + bytes; at += DIOH_PAGE_BYTES) {
		if (is_data(job, at))
			fill_page((uint64_t *)(map + (at - begin)), at);
		else if (job->zeros_between)
			memset(map + (at - begin), 0, DIOH_PAGE_BYTES);
	}
	munmap(map, bytes);
}

static void fill(const struct job *job)
{
	for (uint64_t at = 0; at < job->bytes; at += WINDOW_BYTES)
		fill_window(job, at, dioh_min(WINDOW_BYTES, job->bytes - at));
}

/* As prealloc=on does: fallocate(2) would leave it to the first write to find out whether a host has the page, too. */
static void touch(const struct job *job)
{
	struct job zeros = *job;

	zeros.unit_bytes = 0;
	zeros.zeros_between = true;
	fill(&zeros);
}

static void check_page(const struct job *job, uint64_t at)
{
	static uint64_t want[DIOH_PAGE_BYTES / sizeof(uint64_t)], got[DIOH_PAGE_BYTES / sizeof(uint64_t)];

	memset(want, 0, sizeof(want));
	if (is_data(job, at))
		fill_page(want, at);
	if (pread(job->fd, got, sizeof(got), (off_t)at) != (ssize_t)sizeof(got))
		die("reading the memory");
	if (memcmp(want, got, sizeof(got)) != 0)
		fixture_die(__FILE__, __LINE__, job->path, "the load brought other bytes than were saved");
}

/* So that nobody is fast by doing nothing. Half of the pages are data, whatever the shape. */
static void check_pages(const struct job *job)
{
	for (unsigned i = 0; i < CHECKS; i++) {
		uint64_t at = job->bytes / CHECKS * i;

		check_page(job, dioh_align_down(at, job->stride_bytes));
		check_page(job, dioh_align_down(at, DIOH_PAGE_BYTES));
	}
}

/* ---- a save and a load -------------------------------------------------------------------------------------------- */

struct seen {
	double seconds, cpu_s, sync_s;
	uint64_t own_kib, memory_before, memory_after;
	struct dioh_msg_complete moved;
};

static void begin(const struct job *job, uint32_t direction, struct dioh_session **ret_session,
                  struct measure_sampler *sampler, struct seen *seen)
{
	struct fixture_image image = { .path = job->path, .options = job->options };
	struct dioh_memory_options memory = DIOH_MEMORY_OPTIONS_INIT;
	struct dioh_error err;

	*ret_session = must_session(&image, direction);
	memory.fd = job->fd;
	memory.advice = job->hugepages ? DIOH_MEMORY_ADVICE_HUGEPAGE : DIOH_MEMORY_ADVICE_NONE;
	must(dioh_attach_memory(*ret_session, 0, &memory, NULL, &err), &err);
	must_seal(*ret_session);
	measure_sampler_start(sampler, dioh_session_pid(*ret_session));
	seen->memory_before = must_blocks_bytes(job->fd);
	seen->seconds = measure_now_s();
}

static void end(struct dioh_session *session, const struct job *job, struct measure_sampler *sampler,
                struct seen *seen)
{
	seen->seconds = measure_now_s() - seen->seconds;
	seen->memory_after = must_blocks_bytes(job->fd);
	seen->own_kib = measure_sampler_stop(sampler);
	must_close(session, 0);
	seen->cpu_s = measure_children_cpu_s();
}

static void save(const struct job *job, struct seen *seen)
{
	struct dioh_msg_entry entry = region_entry(0, "pc.ram", job->bytes);
	struct dioh_create_options create = { .layout = DIOH_LAYOUT_CONTAINER, .entry_count = 1, .entries = &entry };
	struct dioh_msg_memory_transfer what = { .length = job->bytes, .flags = job->save_flags };
	struct dioh_msg_complete finished;
	struct measure_sampler sampler;
	struct dioh_session *session;
	struct dioh_error err;
	uint32_t transfer;

	begin(job, DIOH_DIRECTION_SAVE, &session, &sampler, seen);
	must(dioh_create_image(session, &create, NULL, &err), &err);
	must(dioh_save_memory(session, &what, &transfer, &err), &err);
	must(dioh_wait(session, transfer, &seen->moved, &err), &err);
	must(dioh_finish(session, DIOH_FINISH_DURABLE, 0, NULL, 0, &transfer, &err), &err);
	must(dioh_wait(session, transfer, &finished, &err), &err);
	end(session, job, &sampler, seen);
	seen->sync_s = (double)finished.sync_ns / 1e9;
}

static void load(const struct job *job, struct seen *seen)
{
	struct dioh_open_options open_options = { .layout = DIOH_LAYOUT_DETECT };
	struct dioh_msg_memory_transfer what = { .length = job->bytes, .flags = DIOH_TRANSFER_FRESH };
	struct measure_sampler sampler;
	struct dioh_session *session;
	struct dioh_error err;
	uint32_t transfer;

	what.flags |= job->save_flags & DIOH_TRANSFER_NO_CHECKSUM;
	if (fallocate(job->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, (off_t)job->bytes) < 0)
		die("emptying the memory");
	if (job->allocated)
		touch(job);
	begin(job, DIOH_DIRECTION_LOAD, &session, &sampler, seen);
	must(dioh_open_image(session, &open_options, NULL, &err), &err);
	must(dioh_load_memory(session, &what, &transfer, &err), &err);
	must(dioh_wait(session, transfer, &seen->moved, &err), &err);
	end(session, job, &sampler, seen);
	check_pages(job);
}

static uint64_t allocated_bytes(const char *path)
{
	struct stat st;

	if (stat(path, &st) < 0)
		die(path);
	return (uint64_t)st.st_blocks * 512;
}

static void report(const struct job *job, const struct seen *seen)
{
	printf("{\"seconds\": %.6f, \"cpu_s\": %.6f, \"sync_s\": %.6f, \"own_kib\": %" PRIu64, seen->seconds, seen->cpu_s,
	       seen->sync_s, seen->own_kib);
	printf(", \"memory_before_bytes\": %" PRIu64 ", \"memory_after_bytes\": %" PRIu64, seen->memory_before,
	       seen->memory_after);
	printf(", \"io_count\": %" PRIu64 ", \"data_bytes\": %" PRIu64 ", \"image_bytes\": %" PRIu64, seen->moved.io_count,
	       seen->moved.data_bytes, allocated_bytes(job->path));
	if (job->bytes <= CACHE_LOOK_BYTES_MAX)
		printf(", \"cached_bytes\": %" PRIu64, measure_cached_bytes(job->path));
	printf("}\n");
}

/* ---- the command line ---------------------------------------------------------------------------------------------- */

static _Noreturn void usage(void)
{
	fprintf(stderr, "usage: memory fill FD BYTES UNIT STRIDE hole|zero [OPTION...]\n"
	                "       memory save FD BYTES IMAGE [OPTION...]\n"
	                "       memory load FD BYTES IMAGE UNIT STRIDE [OPTION...]\n"
	                "options: --engine=NUMBER --block=BYTES --depth=N --workers=N --no-checksum --no-scan --hugepages\n"
	                "         --allocated\n");
	exit(2);
}

static void take_options(int argc, char **argv, struct job *job)
{
	static const struct option table[] = {
		{ "engine", required_argument, NULL, 'e' }, { "block", required_argument, NULL, 'b' },
		{ "depth", required_argument, NULL, 'd' },  { "workers", required_argument, NULL, 'w' },
		{ "no-checksum", no_argument, NULL, 'c' },  { "no-scan", no_argument, NULL, 's' },
		{ "hugepages", no_argument, NULL, 'h' },    { "allocated", no_argument, NULL, 'a' },
		{ NULL, 0, NULL, 0 },
	};
	int option;

	while ((option = getopt_long(argc, argv, "", table, NULL)) != -1) {
		const uint32_t number = optarg ? (uint32_t)strtoul(optarg, NULL, 10) : 0;

		switch (option) {
		case 'e': job->options.engine = number; break;
		case 'b': job->options.block_bytes = number; break;
		case 'd': job->options.in_flight = number; break;
		case 'w': job->options.workers = number; break;
		case 'c': job->save_flags |= DIOH_TRANSFER_NO_CHECKSUM; break;
		case 's': job->save_flags |= DIOH_TRANSFER_NO_SCAN; break;
		case 'h': job->hugepages = true; break;
		case 'a': job->allocated = true; break;
		default: usage();
		}
	}
}

static void take_stride(char **argv, struct job *job)
{
	job->unit_bytes = strtoull(argv[0], NULL, 10);
	job->stride_bytes = strtoull(argv[1], NULL, 10);
	if (job->unit_bytes == 0 || job->stride_bytes == 0)
		usage();
}

int main(int argc, char **argv)
{
	struct job job = { .options = DIOH_IMAGE_OPTIONS_INIT };
	struct seen seen = { 0 };
	const char *verb;

	take_options(argc, argv, &job); /* moves the other words to the end */
	argc -= optind;
	argv += optind;
	if (argc < 4)
		usage();
	verb = argv[0];
	job.fd = atoi(argv[1]);
	job.bytes = strtoull(argv[2], NULL, 10);
	job.path = argv[3];
	if (strcmp(verb, "fill") == 0 && argc == 6) {
		take_stride(argv + 3, &job);
		job.zeros_between = strcmp(argv[5], "zero") == 0;
		fill(&job);
		return 0;
	}
	if (strcmp(verb, "save") == 0 && argc == 4) {
		save(&job, &seen);
	} else if (strcmp(verb, "load") == 0 && argc == 6) {
		take_stride(argv + 4, &job);
		load(&job, &seen);
	} else {
		usage();
	}
	report(&job, &seen);
	return 0;
}
