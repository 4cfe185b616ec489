/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * bench_memory.c - one memfd stands for the guest's memory in all measurements. It is made of units, each data, zero
 * pages or a hole, mixed evenly. A load brings the data back that was given up before it, so that every save finds the
 * same memory. Called by bench.c and bench_run.c.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "align.h"
#include "bench.h"
#include "cleanup.h"

#define UNIT_BYTES (256u << 10)

enum unit { UNIT_DATA, UNIT_ZERO, UNIT_HOLE };

/* 37 has no divisor in common with 100: each hundred units has every slot once, and neighbours differ. */
static enum unit unit_kind(uint32_t zero_percent, uint32_t holes_percent, uint64_t unit)
{
	uint64_t slot = unit % 100 * 37 % 100;

	if (slot < holes_percent)
		return UNIT_HOLE;
	return slot < holes_percent + zero_percent ? UNIT_ZERO : UNIT_DATA;
}

uint64_t dioh_bench_memory_data_bytes(const struct dioh_bench_options *options, uint64_t bytes)
{
	uint64_t units = bytes / UNIT_BYTES, data = 0;

	data = units / 100 * (100 - options->zero_percent - options->holes_percent);
	for (uint64_t unit = units / 100 * 100; unit < units; unit++)
		data += unit_kind(options->zero_percent, options->holes_percent, unit) == UNIT_DATA;
	return data * UNIT_BYTES;
}

/* splitmix64 (public domain, Sebastiano Vigna): fast, and nothing compresses it. */
void dioh_bench_fill(void *bytes, size_t count, uint64_t seed)
{
	uint64_t state = seed * UINT64_C(0xd1342543de82ef95) + 1;
	uint64_t *words = bytes;

	for (size_t i = 0; i < count / sizeof(*words); i++) {
		uint64_t x = state += UINT64_C(0x9e3779b97f4a7c15);

		x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
		x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
		words[i] = x ^ x >> 31;
	}
}

/* ---- making it ---------------------------------------------------------------------------------------------- */

static uint64_t available_bytes(void)
{
	FILE *file = fopen("/proc/meminfo", "re");
	uint64_t kib = UINT64_MAX / 1024;
	char line[128];

	while (file && fgets(line, sizeof(line), file))
		if (sscanf(line, "MemAvailable: %" SCNu64, &kib) == 1)
			break;
	if (file)
		fclose(file);
	return kib * 1024;
}

static int check_available(const struct dioh_bench_options *options, struct dioh_error *err)
{
	uint64_t needed = options->size_bytes / 100 * (100 - options->holes_percent);
	uint64_t available = available_bytes();
	char needed_text[DIOH_TOOL_SIZE_BYTES], available_text[DIOH_TOOL_SIZE_BYTES];

	if (needed <= available)
		return 0;
	dioh_tool_format_size(needed, needed_text);
	dioh_tool_format_size(available, available_text);
	return dioh_tool_error_set(err, ENOMEM, "the memory to be saved takes %s, and %s are available: choose a "
	                           "smaller --size", needed_text, available_text);
}

static int write_unit(int fd, uint64_t unit, const void *bytes, struct dioh_error *err)
{
	const char *from = bytes;

	for (size_t done = 0; done < UNIT_BYTES;) {
		ssize_t n = pwrite(fd, from + done, UNIT_BYTES - done, (off_t)(unit * UNIT_BYTES + done));

		if (n < 0 && errno != EINTR)
			return dioh_tool_error_set(err, errno, "filling the memory to be saved failed: %s", strerror(errno));
		if (n > 0)
			done += (size_t)n;
	}
	return 0;
}

static int fill_unit(int fd, uint64_t unit, struct dioh_error *err)
{
	static uint64_t bytes[UNIT_BYTES / sizeof(uint64_t)];

	dioh_bench_fill(bytes, sizeof(bytes), unit);
	return write_unit(fd, unit, bytes, err);
}

int dioh_bench_memory_fill(struct dioh_bench_memory *memory, uint64_t bytes, struct dioh_error *err)
{
	const uint64_t begun_ns = dioh_tool_now_ns();

	for (uint64_t unit = memory->bytes / UNIT_BYTES; unit < bytes / UNIT_BYTES; unit++) {
		int r = 0;

		if (dioh_bench_interrupted())
			return dioh_tool_error_set(err, EINTR, "interrupted");
		if (unit_kind(memory->zero_percent, memory->holes_percent, unit) == UNIT_DATA)
			r = fill_unit(memory->fd, unit, err);
		if (r != 0)
			return r;
	}
	memory->bytes = dioh_max(memory->bytes, bytes);
	memory->fill_ns += dioh_tool_now_ns() - begun_ns;
	return 0;
}

int dioh_bench_memory_create(const struct dioh_bench_options *options, struct dioh_bench_memory *ret_memory,
                             struct dioh_error *err)
{
	DIOH_AUTO_FD int fd = -1;
	int r = check_available(options, err);

	if (r != 0)
		return r;
	fd = memfd_create("diohelper-bench", MFD_CLOEXEC);
	if (fd < 0 || ftruncate(fd, (off_t)options->size_bytes) != 0)
		return dioh_tool_memory_error(err);
	*ret_memory = (struct dioh_bench_memory){ .fd = dioh_steal_fd(&fd), .zero_percent = options->zero_percent,
		                                  .holes_percent = options->holes_percent };
	return 0;
}

void dioh_bench_memory_free(struct dioh_bench_memory *memory)
{
	dioh_cleanup_fd(&memory->fd);
	memory->fd = -1;
}

/* ---- around each measurement -------------------------------------------------------------------------------- */

/* Written: pages that fallocate(2) has made are holes to SEEK_DATA, and nobody would look at them. */
int dioh_bench_memory_before_save(const struct dioh_bench_memory *memory, struct dioh_error *err)
{
	static const char zeros[UNIT_BYTES];
	int r = 0;

	for (uint64_t unit = 0; r == 0 && memory->zero_percent && unit < memory->bytes / UNIT_BYTES; unit++)
		if (unit_kind(memory->zero_percent, memory->holes_percent, unit) == UNIT_ZERO)
			r = write_unit(memory->fd, unit, zeros, err);
	return r;
}

int dioh_bench_memory_before_load(const struct dioh_bench_memory *memory, uint64_t bytes, struct dioh_error *err)
{
	if (fallocate(memory->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, (off_t)bytes) != 0)
		return dioh_tool_error_set(err, errno, "giving up the memory's pages failed: %s", strerror(errno));
	return 0;
}

int dioh_bench_memory_check(const struct dioh_bench_memory *memory, uint64_t bytes, struct dioh_error *err)
{
	uint64_t want[DIOH_PAGE_BYTES / sizeof(uint64_t)], got[DIOH_PAGE_BYTES / sizeof(uint64_t)];

	for (uint64_t unit = 0; unit < bytes / UNIT_BYTES; unit++) {
		memset(want, 0, sizeof(want));
		if (unit_kind(memory->zero_percent, memory->holes_percent, unit) == UNIT_DATA)
			dioh_bench_fill(want, sizeof(want), unit);
		if (pread(memory->fd, got, sizeof(got), (off_t)(unit * UNIT_BYTES)) != (ssize_t)sizeof(got))
			return dioh_tool_error_set(err, EIO, "the memory could not be read: %s", strerror(errno));
		if (memcmp(want, got, sizeof(got)) != 0)
			return dioh_tool_error_set(err, EIO, "the load brought other bytes than were saved, at %" PRIu64
			                           " of the memory", unit * UNIT_BYTES);
	}
	return 0;
}
