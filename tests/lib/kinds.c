/* SPDX-License-Identifier: LGPL-2.1-or-later */
#define _GNU_SOURCE
#include "kinds.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cleanup.h"
#include "fixture.h"

#define die(what) fixture_die(__FILE__, __LINE__, what, strerror(errno))

#define OVERCOMMIT "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_overcommit_hugepages"
#define SHMEM_HUGE "/sys/kernel/mm/transparent_hugepage/shmem_enabled"

#ifndef MFD_HUGE_2MB
#define MFD_HUGE_2MB (21u << 26)
#endif

/* ---- what the kernel is told, and told again at the end ---- */

struct setting {
	const char *path;
	char before[128]; /* empty: not changed */
};

static struct setting overcommit = { .path = OVERCOMMIT }, shmem_huge = { .path = SHMEM_HUGE };
static pid_t owner;

static bool write_text(const char *path, const char *text)
{
	DIOH_AUTO_FD int fd = open(path, O_WRONLY | O_CLOEXEC);

	return fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);
}

static void restore(const struct setting *setting)
{
	if (setting->before[0] && !write_text(setting->path, setting->before))
		fprintf(stderr, "%s could not be set back to %s\n", setting->path, setting->before);
}

static void restore_all(void)
{
	if (getpid() != owner)
		return;
	restore(&overcommit);
	restore(&shmem_huge);
	umount2(fixture_path("memory"), MNT_DETACH);
}

/* The value; of a choice ("always [never]") what stands in brackets. */
static bool read_setting(const char *path, char *text, size_t size)
{
	DIOH_AUTO_FD int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, text, size - 1);
	char *bracket;

	if (n <= 0)
		return false;
	text[n] = '\0';
	bracket = strchr(text, '[');
	if (bracket)
		memmove(text, bracket + 1, strlen(bracket));
	text[strcspn(text, "]\n")] = '\0';
	return true;
}

static bool change(struct setting *setting, const char *text)
{
	char before[sizeof(setting->before)];

	if (!read_setting(setting->path, before, sizeof(before)) || !write_text(setting->path, text))
		return false;
	if (!setting->before[0])
		memcpy(setting->before, before, sizeof(before));
	return true;
}

/* ---- kinds ---- */

const char *kind_name(enum memory_kind kind)
{
	static const char *const names[] = { "memfd", "THP memfd", "hugetlb memfd", "file on tmpfs" };

	return names[kind];
}

static const char *prepare_thp(void)
{
	int fd;
	bool huge;

	if (!change(&shmem_huge, "advise"))
		return "no huge pages of shmem in this kernel (" SHMEM_HUGE ")";
	fd = must_kind(KIND_THP, KIND_GRANULE_BYTES);
	(void)must_fill_kind(fd, KIND_GRANULE_BYTES, true, 1);
	huge = must_huge_bytes(fd, KIND_GRANULE_BYTES) > 0;
	close(fd);
	return huge ? NULL : "the kernel grants no huge page of shmem";
}

static const char *prepare_hugetlb(uint64_t bytes)
{
	char pages[32];
	void *map;
	int fd;

	(void)snprintf(pages, sizeof(pages), "%llu", (unsigned long long)(bytes / KIND_GRANULE_BYTES + 8));
	if (!change(&overcommit, pages))
		return "no 2 MiB pages of hugetlbfs in this kernel (" OVERCOMMIT ")";
	fd = memfd_create("probe", MFD_CLOEXEC | MFD_HUGETLB | MFD_HUGE_2MB);
	if (fd < 0 || ftruncate(fd, (off_t)bytes) < 0)
		return "no memfd of hugetlbfs";
	map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0); /* which reserves them all */
	close(fd);
	if (map == MAP_FAILED)
		return "the kernel grants too few 2 MiB pages: memory is short or fragmented";
	munmap(map, bytes);
	return NULL;
}

static const char *prepare_tmpfs(void)
{
	const char *path = fixture_path("memory");

	if (mkdir(path, 0755) < 0 || mount("memory", path, "tmpfs", 0, "size=50%") < 0)
		return "tmpfs cannot be mounted here";
	return NULL;
}

const char *kind_prepare(enum memory_kind kind, uint64_t bytes_at_once)
{
	if (!owner) {
		fixture_dir(); /* its removal comes after ours */
		owner = getpid();
		atexit(restore_all);
	}
	switch (kind) {
	case KIND_THP: return prepare_thp();
	case KIND_HUGETLB: return prepare_hugetlb(bytes_at_once);
	case KIND_TMPFS_FILE: return prepare_tmpfs();
	default: return NULL;
	}
}

int must_kind(enum memory_kind kind, uint64_t bytes)
{
	int fd;

	if (kind == KIND_HUGETLB)
		return must_memfd("huge", bytes, MFD_HUGETLB | MFD_HUGE_2MB);
	if (kind != KIND_TMPFS_FILE)
		return must_memfd("memory", bytes, 0);
	fd = open(fixture_path("memory"), O_RDWR | O_TMPFILE | O_CLOEXEC, 0600);
	if (fd < 0 || ftruncate(fd, (off_t)bytes) < 0)
		die("a file on tmpfs");
	return fd;
}

/* ---- content ---- */

/* On a boundary of 2 MiB, so that huge pages can be mapped; `advice` has them wanted. */
static uint8_t *must_map(int fd, uint64_t bytes)
{
	const uint64_t room = bytes + KIND_GRANULE_BYTES;
	uint8_t *reserved = mmap(NULL, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	uint8_t *aligned, *map;

	if (reserved == MAP_FAILED)
		die("room for a mapping");
	aligned = reserved + (KIND_GRANULE_BYTES - (uintptr_t)reserved % KIND_GRANULE_BYTES) % KIND_GRANULE_BYTES;
	map = mmap(aligned, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
	if (map == MAP_FAILED)
		die("mapping memory");
	(void)madvise(map, bytes, MADV_HUGEPAGE); /* which means something for KIND_THP, if it has been prepared */
	return map;
}

static void fill_granule(uint8_t *granule, uint64_t data_bytes, int bytes_fd, uint64_t seed)
{
	must_fill(bytes_fd, 0, KIND_GRANULE_BYTES, seed);
	if (pread(bytes_fd, granule, data_bytes, 0) != (ssize_t)data_bytes)
		die("filling memory");
	memset(granule + data_bytes, 0, KIND_GRANULE_BYTES - data_bytes);
}

uint64_t must_fill_kind(int fd, uint64_t bytes, bool full, uint64_t seed)
{
	static const uint64_t shares[] = { KIND_GRANULE_BYTES, 0, KIND_GRANULE_BYTES / 2, KIND_GRANULE_BYTES };
	DIOH_AUTO_FD int bytes_fd = must_memfd("bytes", KIND_GRANULE_BYTES, 0);
	uint8_t *map = must_map(fd, bytes);
	uint64_t data_bytes = 0;

	for (uint64_t i = 0; i < bytes / KIND_GRANULE_BYTES; i++) {
		const uint64_t share = full ? KIND_GRANULE_BYTES : shares[i % 4];

		if (share)
			fill_granule(map + i * KIND_GRANULE_BYTES, share, bytes_fd, seed * 1000 + i);
		data_bytes += share;
	}
	munmap(map, bytes);
	return data_bytes;
}

/* ---- huge pages ---- */

static void touch_data(const volatile uint8_t *map, int fd, uint64_t bytes)
{
	for (uint64_t at = 0; at < bytes; at += KIND_GRANULE_BYTES) {
		off_t data = lseek(fd, (off_t)at, SEEK_DATA);

		if (data >= 0 && (uint64_t)data == at)
			(void)map[at];
	}
}

/* kB of a field, summed up from the mapping's first address on to its end. */
static uint64_t smaps_bytes(const uint8_t *map, uint64_t bytes, const char *field)
{
	FILE *file = fopen("/proc/self/smaps", "re");
	unsigned long start, end, kb, sum = 0;
	bool inside = false;
	char line[512];

	if (!file)
		die("/proc/self/smaps");
	while (fgets(line, sizeof(line), file)) {
		if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
			inside = start >= (uintptr_t)map && end <= (uintptr_t)map + bytes;
		else if (inside && strncmp(line, field, strlen(field)) == 0 && sscanf(line + strlen(field), "%lu", &kb) == 1)
			sum += kb;
	}
	(void)fclose(file);
	return (uint64_t)sum * 1024;
}

uint64_t must_huge_bytes(int fd, uint64_t bytes)
{
	uint8_t *map = must_map(fd, bytes);
	uint64_t huge;

	touch_data(map, fd, bytes);
	huge = smaps_bytes(map, bytes, "ShmemPmdMapped:");
	munmap(map, bytes);
	return huge;
}
