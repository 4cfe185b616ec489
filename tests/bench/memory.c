/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * memory.c - times one save and one load of incompressible memory through a real helper. memory.sh alternates it with fio.
 *
 *      memory save|load IMAGE MIB [IN_FLIGHT [BLOCK_KIB [WORKERS]]]
 *
 * Prints one line: MiB/s of transfer and FINISH together (the sync is inside), the helper's CPU seconds per GiB, the most
 * RssAnon + VmPTE that was seen of it, in KiB.
 */
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "fixture.h"

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static uint64_t status_kib(int pid, const char *field)
{
	char path[64], line[256];
	uint64_t kib = 0;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/%d/status", pid);
	file = fopen(path, "r");
	while (file && fgets(line, sizeof(line), file))
		if (strncmp(line, field, strlen(field)) == 0)
			kib = strtoull(line + strlen(field) + 1, NULL, 10);
	if (file)
		fclose(file);
	return kib;
}

static double cpu_seconds(int pid)
{
	char path[64], text[1024];
	unsigned long long user = 0, kernel = 0;
	const char *at;
	FILE *file;
	size_t n = 0;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	file = fopen(path, "r");
	if (file) {
		n = fread(text, 1, sizeof(text) - 1, file);
		fclose(file);
	}
	text[n] = '\0';
	at = strrchr(text, ')');
	if (at)
		sscanf(at + 2, "%*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %llu %llu", &user, &kernel);
	return (double)(user + kernel) / (double)sysconf(_SC_CLK_TCK);
}

static uint64_t most_kib;

/* Waits for a transfer; looks at the helper's memory with each PROGRESS. */
static void wait_for(struct dioh_session *session, uint32_t transfer)
{
	struct dioh_event event;
	struct dioh_error err;
	int pid = dioh_session_pid(session);

	for (;;) {
		uint64_t kib;

		must(dioh_poll(session, &event, -1, &err), &err);
		kib = status_kib(pid, "RssAnon:") + status_kib(pid, "VmPTE:");
		if (kib > most_kib)
			most_kib = kib;
		if (event.type != DIOH_EVENT_COMPLETE || event.transfer != transfer)
			continue;
		if (event.error.code)
			fixture_die(__FILE__, __LINE__, "transfer", event.error.text);
		return;
	}
}

static void report(struct dioh_session *session, double begun, uint64_t bytes)
{
	double seconds = now() - begun;

	printf("%.1f %.4f %" PRIu64 "\n", (double)bytes / MIB / seconds,
	       cpu_seconds(dioh_session_pid(session)) / ((double)bytes / GIB), most_kib);
	fflush(stdout);
}

static void save(const struct fixture_image *image, int memory, uint64_t bytes)
{
	struct dioh_session *session = must_session(image, DIOH_DIRECTION_SAVE);
	struct dioh_msg_entry entry = region_entry(0, "pc.ram", bytes);
	struct dioh_create_options create = { .layout = DIOH_LAYOUT_CONTAINER, .entry_count = 1, .entries = &entry };
	struct dioh_msg_memory_transfer what = { .length = bytes };
	struct dioh_msg_image_reply info;
	struct dioh_error err;
	uint32_t transfer;
	double begun;

	must_attach_memory(session, 0, memory, -1);
	must_seal(session);
	begun = now();
	must(dioh_create_image(session, &create, &info, &err), &err);
	must(dioh_save_memory(session, &what, &transfer, &err), &err);
	wait_for(session, transfer);
	must(dioh_finish(session, DIOH_FINISH_DURABLE, 0, NULL, 0, &transfer, &err), &err);
	must(dioh_wait(session, transfer, NULL, &err), &err);
	report(session, begun, bytes);
	must_close(session, 0);
}

static void load(const struct fixture_image *image, int memory, uint64_t bytes)
{
	struct dioh_session *session = must_session(image, DIOH_DIRECTION_LOAD);
	struct dioh_open_options open_options = { .layout = DIOH_LAYOUT_DETECT };
	struct dioh_msg_memory_transfer what = { .length = bytes, .flags = DIOH_TRANSFER_FRESH };
	struct dioh_msg_open_image_reply info;
	struct dioh_error err;
	uint32_t transfer;
	double begun;

	must_attach_memory(session, 0, memory, -1);
	must_seal(session);
	begun = now();
	must(dioh_open_image(session, &open_options, &info, &err), &err);
	must(dioh_load_memory(session, &what, &transfer, &err), &err);
	wait_for(session, transfer);
	report(session, begun, bytes);
	must_close(session, 0);
}

int main(int argc, char **argv)
{
	struct fixture_image image = { .options = DIOH_IMAGE_OPTIONS_INIT };
	const bool saves = argc > 1 && strcmp(argv[1], "save") == 0;
	uint64_t bytes;
	int memory;

	if (argc < 4) {
		fprintf(stderr, "usage: memory save|load IMAGE MIB [IN_FLIGHT [BLOCK_KIB [WORKERS]]]\n");
		return 2;
	}
	image.path = argv[2];
	bytes = strtoull(argv[3], NULL, 10) * MIB;
	image.options.in_flight = argc > 4 ? (uint32_t)atoi(argv[4]) : 0;
	image.options.block_bytes = argc > 5 ? (uint32_t)atoi(argv[5]) * 1024 : 0;
	image.options.workers = argc > 6 ? (uint32_t)atoi(argv[6]) : 0;
	memory = must_memfd("memory", bytes, 0);
	if (saves) {
		must_fill(memory, 0, bytes, 1);
		save(&image, memory, bytes);
	} else {
		load(&image, memory, bytes);
	}
	return 0;
}
