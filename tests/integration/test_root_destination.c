/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test_root_destination.c - where a load's pages come to lie: in huge pages where the manager advises it, in those that the
 * destination has already, and in the cgroup that it names (docs/protocol.md, ATTACH_MEMORY; dioh_spawn()). Root, for the
 * kernel's settings and a cgroup.
 */
/* alone: it changes the kernel's settings of huge pages */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cleanup.h"
#include "fixture.h"
#include "kinds.h"

#define SKIPPED 77
#define BYTES (24 * MIB)
#define ODD_BYTES (BYTES - 3 * (uint64_t)DIOH_PAGE_BYTES) /* its last huge page is not whole */

static const char *thp_absent;

/* `absent`: NULL, or why not. */
static void need(const char *absent)
{
	if (!absent)
		return;
	print_message("skipped: %s\n", absent);
	skip();
}

/* ---- saves and loads ---- */

static void save(const char *path, int memory, uint64_t bytes)
{
	const struct fixture_image image = { .path = path, .options = DIOH_IMAGE_OPTIONS_INIT };
	const struct fixture_region region = { 0, "ram", memory, bytes };
	struct dioh_error err;

	must(fixture_save(&image, &region, 1, 0, NULL, &err), &err);
}

static void load(const char *path, int memory, uint64_t bytes, uint32_t advice, uint32_t flags)
{
	const struct fixture_image image = { .path = path, .options = DIOH_IMAGE_OPTIONS_INIT };
	struct dioh_session *session = must_session(&image, DIOH_DIRECTION_LOAD);
	const struct dioh_open_options open = { .layout = DIOH_LAYOUT_DETECT };
	const struct dioh_msg_memory_transfer what = { .length = bytes, .flags = flags };
	struct dioh_memory_options options = DIOH_MEMORY_OPTIONS_INIT;
	struct dioh_error err;
	uint32_t transfer;

	options.fd = memory;
	options.advice = advice;
	must(dioh_attach_memory(session, 0, &options, NULL, &err), &err);
	must_seal(session);
	must(dioh_open_image(session, &open, NULL, &err), &err);
	must(dioh_load_memory(session, &what, &transfer, &err), &err);
	must(dioh_wait(session, transfer, NULL, &err), &err);
	must_close(session, 0);
}

/* ---- huge pages ---- */

static void huge_pages_are_made_where_advised(void **state)
{
	DIOH_AUTO_FD int source = must_memfd("source", BYTES, 0);
	DIOH_AUTO_FD int advised = must_kind(KIND_THP, BYTES);
	DIOH_AUTO_FD int plain = must_kind(KIND_THP, BYTES);

	(void)state;
	need(thp_absent);
	must_fill(source, 0, BYTES, 1);
	save(fixture_path("image"), source, BYTES);
	load(fixture_path("image"), advised, BYTES, DIOH_MEMORY_ADVICE_HUGEPAGE, DIOH_TRANSFER_FRESH);
	assert_true(same_bytes(source, advised));
	assert_int_equal(must_huge_bytes(advised, BYTES), BYTES);
	/* The kernel's setting is "advise": without advice there are none. */
	load(fixture_path("image"), plain, BYTES, DIOH_MEMORY_ADVICE_NONE, DIOH_TRANSFER_FRESH);
	assert_true(same_bytes(source, plain));
	assert_int_equal(must_huge_bytes(plain, BYTES), 0);
}

/* What is mapped along lies behind the memory's end. */
static void memory_that_ends_within_a_huge_page(void **state)
{
	DIOH_AUTO_FD int source = must_memfd("source", ODD_BYTES, 0);
	DIOH_AUTO_FD int loaded = must_kind(KIND_THP, ODD_BYTES);

	(void)state;
	need(thp_absent);
	must_fill_mixed(source, ODD_BYTES, 1, 700, 2);
	save(fixture_path("image"), source, ODD_BYTES);
	load(fixture_path("image"), loaded, ODD_BYTES, DIOH_MEMORY_ADVICE_HUGEPAGE, DIOH_TRANSFER_FRESH);
	assert_true(same_bytes(source, loaded));
	assert_int_equal(must_huge_bytes(loaded, BYTES - KIND_GRANULE_BYTES) > 0, 1);
}

/* The manager, or the guest's QEMU, has made them beforehand. */
static void huge_pages_are_kept(void **state)
{
	DIOH_AUTO_FD int source = must_memfd("source", BYTES, 0);

	(void)state;
	need(thp_absent);
	must_fill(source, 0, BYTES, 3);
	save(fixture_path("image"), source, BYTES);
	for (uint32_t advice = DIOH_MEMORY_ADVICE_NONE; advice <= DIOH_MEMORY_ADVICE_HUGEPAGE; advice++) {
		DIOH_AUTO_FD int memory = must_kind(KIND_THP, BYTES);

		(void)must_fill_kind(memory, BYTES, true, 4);
		assert_int_equal(must_huge_bytes(memory, BYTES), BYTES);
		load(fixture_path("image"), memory, BYTES, advice, 0);
		assert_true(same_bytes(source, memory));
		assert_int_equal(must_huge_bytes(memory, BYTES), BYTES);
	}
}

/* Zeroed where nothing was saved, and not given back to the pool, whence another could take them. */
static void hugetlb_pages_are_kept(void **state)
{
	const char *absent = kind_prepare(KIND_HUGETLB, 2 * BYTES);
	DIOH_AUTO_FD int source = must_memfd("source", BYTES, 0);
	int memory;

	(void)state;
	need(absent);
	must_fill_mixed(source, BYTES, 16, 60, 5);
	save(fixture_path("image"), source, BYTES);
	memory = must_kind(KIND_HUGETLB, BYTES);
	(void)must_fill_kind(memory, BYTES, true, 6);
	load(fixture_path("image"), memory, BYTES, DIOH_MEMORY_ADVICE_NONE, 0);
	assert_true(same_bytes(source, memory));
	assert_int_equal(must_blocks_bytes(memory), BYTES);
	close(memory);
}

/* ---- cgroup ---- */

static int make_cgroup(char *path, size_t size)
{
	static const char *const roots[] = { "/sys/fs/cgroup", "/sys/fs/cgroup/unified" };

	for (size_t i = 0; i < sizeof(roots) / sizeof(roots[0]); i++) {
		char procs[64];

		(void)snprintf(procs, sizeof(procs), "%s/cgroup.procs", roots[i]);
		(void)snprintf(path, size, "%s/dioh-destination-%d", roots[i], (int)getpid());
		if (access(procs, F_OK) == 0 && mkdir(path, 0755) == 0)
			return open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	}
	return -1;
}

static bool thread_is_in(int pid, const char *thread, const char *name)
{
	char path[320], line[512];
	bool found = false;
	FILE *file;

	(void)snprintf(path, sizeof(path), "/proc/%d/task/%.16s/cgroup", pid, thread);
	file = fopen(path, "re");
	assert_non_null(file);
	while (fgets(line, sizeof(line), file))
		found |= strncmp(line, "0::", 3) == 0 && strstr(line, name);
	(void)fclose(file);
	return found;
}

/* How many threads it has; each must be there. */
static unsigned all_threads_are_in(int pid, const char *name)
{
	char path[64];
	struct dirent *entry;
	unsigned count = 0;
	DIR *tasks;

	(void)snprintf(path, sizeof(path), "/proc/%d/task", pid);
	tasks = opendir(path);
	assert_non_null(tasks);
	while ((entry = readdir(tasks))) {
		if (entry->d_name[0] == '.')
			continue;
		assert_true(thread_is_in(pid, entry->d_name, name));
		count++;
	}
	(void)closedir(tasks);
	return count;
}

/* Whatever the load makes is charged there, so no thread of the helper may be elsewhere, and none for a moment. */
static void the_cgroup_is_honoured(void **state)
{
	struct dioh_spawn_options spawn = DIOH_SPAWN_OPTIONS_INIT;
	struct dioh_image_options options = DIOH_IMAGE_OPTIONS_INIT;
	DIOH_AUTO_FD int image = open(fixture_path("image"), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	struct dioh_msg_seal_reply seal;
	struct dioh_session *session;
	struct dioh_error err;
	char path[128];
	int r;

	(void)state;
	spawn.program = fixture_helper();
	spawn.cgroup_fd = make_cgroup(path, sizeof(path));
	need(spawn.cgroup_fd < 0 ? "no cgroup v2 directory can be made here" : NULL);
	r = dioh_spawn(&spawn, 0, &session, &err);
	close(spawn.cgroup_fd);
	if (r < 0) {
		(void)rmdir(path);
		fail_msg("%s", err.text);
	}
	options.buffered_fd = image;
	options.direction = DIOH_DIRECTION_LOAD;
	options.workers = 3;
	must(dioh_attach_image(session, &options, NULL, &err), &err);
	must(dioh_seal(session, 0, &seal, &err), &err);
	assert_true(seal.threads >= 5);
	assert_true(all_threads_are_in(dioh_session_pid(session), strrchr(path, '/')) >= 5);
	must_close(session, 0);
	assert_int_equal(rmdir(path), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(huge_pages_are_made_where_advised),
		cmocka_unit_test(memory_that_ends_within_a_huge_page),
		cmocka_unit_test(huge_pages_are_kept),
		cmocka_unit_test(hugetlb_pages_are_kept),
		cmocka_unit_test(the_cgroup_is_honoured),
	};

	if (geteuid() != 0) {
		puts("needs root");
		return SKIPPED;
	}
	thp_absent = kind_prepare(KIND_THP, BYTES);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
