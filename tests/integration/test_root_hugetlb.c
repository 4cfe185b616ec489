/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test_root_hugetlb.c - guest memory of 2 MiB pages. It shows no holes, and both reading it through a mapping and asking
 * io_uring for it would allocate what the guest never had. Root, to let the kernel make such pages.
 */
/* alone: it changes how many huge pages the kernel has */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <linux/fuse.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "cleanup.h"
#include "fixture.h"
#include "fuse_file.h"

#define HUGE_BYTES (UINT64_C(2) << 20)
#define HUGE_COUNT 12u
#define MEMORY_BYTES (HUGE_COUNT * HUGE_BYTES)
#define SKIPPED 77
#define LIMIT_S 50

/* Pages beyond the pool are made when they are needed and given back when their file is closed: nothing is left over. */
#define OVERCOMMIT "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_overcommit_hugepages"
#define POOL "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"
#define ROOM (4 * HUGE_COUNT)

#ifndef MFD_HUGE_2MB
#define MFD_HUGE_2MB (21u << 26)
#endif

static unsigned long overcommit_before;

static unsigned long read_number(const char *path)
{
	char text[32] = "";
	FILE *file = fopen(path, "re");

	if (!file)
		return 0;
	if (!fgets(text, sizeof(text), file))
		text[0] = '\0';
	(void)fclose(file);
	return strtoul(text, NULL, 10);
}

static bool write_number(const char *path, unsigned long number)
{
	FILE *file = fopen(path, "we");
	bool written;

	if (!file)
		return false;
	written = fprintf(file, "%lu\n", number) > 0;
	return fclose(file) == 0 && written;
}

static void restore_overcommit(void)
{
	(void)write_number(OVERCOMMIT, overcommit_before);
}

/* ---- memory ---- */

static int must_huge_memfd(void)
{
	return must_memfd("huge", MEMORY_BYTES, MFD_HUGETLB | MFD_HUGE_2MB);
}

static uint8_t *must_map(int fd)
{
	void *map = mmap(NULL, MEMORY_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (map == MAP_FAILED)
		fixture_die(__FILE__, __LINE__, "mmap of huge pages", strerror(errno));
	return map;
}

/* write(2) does not work there. */
static void fill_huge(int fd, unsigned number, uint64_t seed)
{
	DIOH_AUTO_FD int bytes = must_memfd("bytes", HUGE_BYTES, 0);
	uint8_t *map = must_map(fd);

	must_fill(bytes, 0, HUGE_BYTES, seed);
	if (pread(bytes, map + number * HUGE_BYTES, HUGE_BYTES, 0) != (ssize_t)HUGE_BYTES)
		fixture_die(__FILE__, __LINE__, "filling a huge page", strerror(errno));
	munmap(map, MEMORY_BYTES);
}

static void fill_all(int fd, uint64_t seed)
{
	for (unsigned i = 0; i < HUGE_COUNT; i++)
		fill_huge(fd, i, seed + i);
}

/* Every other page; the last of them with zeros inside, and one that is there and zero. */
static int half_populated(void)
{
	int fd = must_huge_memfd();
	uint8_t *map;

	for (unsigned i = 0; i < HUGE_COUNT; i += 2)
		fill_huge(fd, i, 100 + i);
	map = must_map(fd);
	memset(map + 2 * HUGE_BYTES, 0, HUGE_BYTES);
	for (unsigned page = 0; page < HUGE_BYTES / DIOH_PAGE_BYTES; page += 3)
		memset(map + 4 * HUGE_BYTES + page * (uint64_t)DIOH_PAGE_BYTES, 0, DIOH_PAGE_BYTES);
	munmap(map, MEMORY_BYTES);
	assert_int_equal(must_blocks_bytes(fd), MEMORY_BYTES / 2);
	return fd;
}

static int fully_populated(uint64_t seed)
{
	int fd = must_huge_memfd();

	fill_all(fd, seed);
	assert_int_equal(must_blocks_bytes(fd), MEMORY_BYTES);
	return fd;
}

static bool is_zero(int fd, uint64_t offset, uint64_t bytes)
{
	DIOH_AUTO_FD int zeros = must_memfd("zeros", bytes, 0);

	return same_range(fd, offset, zeros, 0, bytes);
}

/* ---- saves and loads ---- */

static struct fixture_image image_of(const char *name, uint32_t engine)
{
	struct fixture_image image = { .path = fixture_path(name), .options = DIOH_IMAGE_OPTIONS_INIT };

	image.options.engine = engine;
	return image;
}

static void save(const struct fixture_image *image, int fd, struct dioh_msg_complete *ret_figures)
{
	const struct fixture_region region = { 3, "ram", fd, MEMORY_BYTES };
	struct dioh_error err;

	must(fixture_save(image, &region, 1, 0, ret_figures, &err), &err);
}

static void load(const struct fixture_image *image, int fd, uint32_t flags)
{
	const struct fixture_region region = { 3, "ram", fd, MEMORY_BYTES };
	struct dioh_error err;

	must(fixture_load(image, &region, 1, flags, NULL, &err), &err);
}

static void round_trip(uint32_t engine)
{
	const struct fixture_image image = image_of("image", engine);
	DIOH_AUTO_FD int source = half_populated();
	DIOH_AUTO_FD int fresh = must_huge_memfd();
	DIOH_AUTO_FD int garbage = fully_populated(500);
	struct dioh_msg_complete figures;

	save(&image, source, &figures);
	assert_int_equal(must_blocks_bytes(source), MEMORY_BYTES / 2);
	/* What is not there is read as zeros: of huge memory nobody can tell. */
	assert_int_equal(figures.data_bytes + figures.zero_bytes + figures.hole_bytes, MEMORY_BYTES);
	assert_true(figures.data_bytes < MEMORY_BYTES / 2);

	load(&image, fresh, DIOH_TRANSFER_FRESH);
	assert_true(same_bytes(source, fresh));
	assert_true(must_blocks_bytes(fresh) <= MEMORY_BYTES / 2);
	load(&image, garbage, 0);
	assert_true(same_bytes(source, garbage));
	assert_int_equal(must_blocks_bytes(source), MEMORY_BYTES / 2);
}

static void round_trip_io_uring(void **state)
{
	(void)state;
	round_trip(DIOH_ENGINE_IO_URING);
}

static void round_trip_sync(void **state)
{
	(void)state;
	round_trip(DIOH_ENGINE_SYNC);
}

/* All there: mapped, as any other memory. */
static void round_trip_of_full_memory(void **state)
{
	const struct fixture_image image = image_of("full", DIOH_ENGINE_ANY);
	DIOH_AUTO_FD int source = fully_populated(900);
	DIOH_AUTO_FD int fresh = must_huge_memfd();
	struct dioh_msg_complete figures;

	(void)state;
	save(&image, source, &figures);
	assert_int_equal(figures.data_bytes, MEMORY_BYTES);
	load(&image, fresh, 0); /* it is, and is not said to be */
	assert_true(same_bytes(source, fresh));
}

/* A guest that had small pages goes on with huge ones, and back. */
static void small_to_huge_and_back(void **state)
{
	const struct fixture_image image = image_of("small", DIOH_ENGINE_ANY);
	DIOH_AUTO_FD int source = must_memfd("small", MEMORY_BYTES, 0);
	DIOH_AUTO_FD int huge = fully_populated(77);
	DIOH_AUTO_FD int back = must_memfd("back", MEMORY_BYTES, 0);
	struct dioh_msg_complete figures;

	(void)state;
	must_fill_mixed(source, MEMORY_BYTES, 1, 40, 5);
	save(&image, source, &figures);
	load(&image, huge, 0);
	assert_true(same_bytes(source, huge));
	save(&image, huge, &figures);
	load(&image, back, DIOH_TRANSFER_FRESH);
	assert_true(same_bytes(source, back));
}

/* ---- selection ---- */

#define SELECTED_STEP 5u

/* Of each five 4 KiB pages one, and of the first two huge pages none. */
static bool selected(uint64_t page)
{
	return page >= 2 * HUGE_BYTES / DIOH_PAGE_BYTES && page % SELECTED_STEP == 0;
}

static int selection(void)
{
	uint8_t bits[MEMORY_BYTES / DIOH_PAGE_BYTES / 8] = { 0 };
	int fd = must_memfd("selection", sizeof(bits), 0);

	for (uint64_t page = 0; page < MEMORY_BYTES / DIOH_PAGE_BYTES; page++)
		if (selected(page))
			bits[page / 8] |= (uint8_t)(1u << page % 8);
	assert_int_equal(pwrite(fd, bits, sizeof(bits), 0), sizeof(bits));
	return fd;
}

static const struct dioh_msg_memory_transfer chosen = { .region = 3, .length = MEMORY_BYTES,
	                                                .flags = DIOH_TRANSFER_SELECTION };

static void save_selected(const struct fixture_image *image, int fd, int selection_fd)
{
	struct dioh_session *session = must_session(image, DIOH_DIRECTION_SAVE);
	const struct dioh_msg_entry entry = region_entry(3, "ram", MEMORY_BYTES);
	const struct dioh_create_options create = { .layout = DIOH_LAYOUT_CONTAINER, .entry_count = 1,
		                                    .entries = &entry };
	struct dioh_msg_image_reply info;
	struct dioh_error err;
	uint32_t transfer;

	must_attach_memory(session, 0, fd, selection_fd);
	must_seal(session);
	must(dioh_create_image(session, &create, &info, &err), &err);
	must(dioh_save_memory(session, &chosen, &transfer, &err), &err);
	must(dioh_wait(session, transfer, NULL, &err), &err);
	must(dioh_finish(session, DIOH_FINISH_DURABLE, 0, NULL, 0, &transfer, &err), &err);
	must(dioh_wait(session, transfer, NULL, &err), &err);
	must_close(session, 0);
}

static void load_selected(const struct fixture_image *image, int fd, int selection_fd)
{
	struct dioh_session *session = must_session(image, DIOH_DIRECTION_LOAD);
	const struct dioh_open_options options = { .layout = DIOH_LAYOUT_DETECT };
	struct dioh_msg_open_image_reply info;
	struct dioh_error err;
	uint32_t transfer;

	must_attach_memory(session, 0, fd, selection_fd);
	must_seal(session);
	must(dioh_open_image(session, &options, &info, &err), &err);
	must(dioh_load_memory(session, &chosen, &transfer, &err), &err);
	must(dioh_wait(session, transfer, NULL, &err), &err);
	must_close(session, 0);
}

/* Page by page: as in one where it was selected, as in the other where it was not (-1: zero). */
static void expect_mix(int fd, int where_selected, int elsewhere)
{
	for (uint64_t page = 0; page < MEMORY_BYTES / DIOH_PAGE_BYTES; page++) {
		const uint64_t at = page * DIOH_PAGE_BYTES;
		const int model = selected(page) ? where_selected : elsewhere;

		if (model < 0 ? !is_zero(fd, at, DIOH_PAGE_BYTES) : !same_range(fd, at, model, at, DIOH_PAGE_BYTES))
			fail_msg("page %llu", (unsigned long long)page);
	}
}

static void selected_pages_are_saved(void **state)
{
	const struct fixture_image image = image_of("selected", DIOH_ENGINE_ANY);
	DIOH_AUTO_FD int source = half_populated();
	DIOH_AUTO_FD int bits = selection();
	DIOH_AUTO_FD int garbage = fully_populated(300);

	(void)state;
	save_selected(&image, source, bits);
	assert_int_equal(must_blocks_bytes(source), MEMORY_BYTES / 2);
	load(&image, garbage, 0);
	expect_mix(garbage, source, -1);
}

static void selected_pages_are_loaded(void **state)
{
	const struct fixture_image image = image_of("whole", DIOH_ENGINE_ANY);
	DIOH_AUTO_FD int source = half_populated();
	DIOH_AUTO_FD int bits = selection();
	DIOH_AUTO_FD int garbage = fully_populated(700);
	DIOH_AUTO_FD int before = fully_populated(700);
	DIOH_AUTO_FD int fresh = must_huge_memfd();
	struct dioh_msg_complete figures;

	(void)state;
	save(&image, source, &figures);
	load_selected(&image, garbage, bits);
	expect_mix(garbage, source, before);
	load_selected(&image, fresh, bits);
	expect_mix(fresh, source, -1);
	/* Where nothing was selected nothing was made. */
	assert_true(must_blocks_bytes(fresh) <= MEMORY_BYTES - 2 * HUGE_BYTES);
}

/* ---- no pages left ---- */

/* Mapped memory that cannot be had is an error of the transfer, not the end of the helper. */
static void no_huge_pages_left(void **state)
{
	const struct fixture_image image = image_of("none", DIOH_ENGINE_ANY);
	struct fixture_region region = { 3, "ram", -1, MEMORY_BYTES };
	DIOH_AUTO_FD int source = must_memfd("small", MEMORY_BYTES, 0);
	DIOH_AUTO_FD int fresh = must_huge_memfd();
	struct dioh_msg_complete figures;
	struct dioh_error err;
	int r;

	(void)state;
	if (read_number(POOL) > 0) {
		print_message("skipped: there is a pool of huge pages, which this test does not empty\n");
		skip();
	}
	must_fill(source, 0, MEMORY_BYTES, 3);
	save(&image, source, &figures);
	assert_true(write_number(OVERCOMMIT, 0));
	region.memfd = fresh;
	r = fixture_load(&image, &region, 1, 0, &figures, &err); /* closes with 0: the helper went on */
	assert_true(write_number(OVERCOMMIT, overcommit_before + ROOM));
	assert_int_equal(r, -ENOMEM);
	assert_int_equal(err.object, DIOH_OBJECT_MEMORY);
}

/* ---- memory that was cut short ---- */

/* To map it for writing would make it as long as it was, and nobody would know that what was there is gone. */
static void truncated_memory_stays_short(void **state)
{
	const struct fuse_file_options options = { .async_dio = true };
	const char *why;
	struct fuse_file *disk = fuse_file_start("disk", &options, &why);
	struct fixture_image image = image_of("short", DIOH_ENGINE_ANY);
	struct dioh_memory_options memory = DIOH_MEMORY_OPTIONS_INIT;
	const struct dioh_open_options open = { .layout = DIOH_LAYOUT_DETECT };
	const struct dioh_msg_memory_transfer what = { .region = 3, .length = MEMORY_BYTES, .flags = DIOH_TRANSFER_NO_CHECKSUM };
	DIOH_AUTO_FD int source = half_populated();
	DIOH_AUTO_FD int target = must_huge_memfd();
	struct dioh_msg_complete figures;
	struct dioh_session *session;
	struct dioh_error err;
	uint32_t transfer;

	(void)state;
	if (!disk) {
		print_message("skipped: %s\n", why);
		skip();
	}
	image.path = fuse_file_path(disk);
	image.options.in_flight = image.options.workers = 1;
	save(&image, source, &figures);
	session = must_session(&image, DIOH_DIRECTION_LOAD);
	memory.fd = target;
	must(dioh_attach_memory(session, 0, &memory, NULL, &err), &err);
	must_seal(session);
	must(dioh_open_image(session, &open, NULL, &err), &err);
	fuse_file_fault(disk, FUSE_READ, .kind = FUSE_FAULT_HOLD, .handles = FUSE_HANDLES_DIRECT); /* its pages are pinned */
	must(dioh_load_memory(session, &what, &transfer, &err), &err);
	while (fuse_file_held(disk) == 0)
		(void)poll(NULL, 0, 1);
	assert_int_equal(ftruncate(target, 0), 0);
	fuse_file_release(disk, 0);
	assert_int_equal(dioh_wait(session, transfer, &figures, &err), -EFAULT);
	assert_int_equal(err.object, DIOH_OBJECT_MEMORY);
	assert_int_equal(lseek(target, 0, SEEK_END), 0);
	must_close(session, 0);
	fuse_file_stop(disk);
}

/* ---- all of them ---- */

/* Does the kernel make such pages here? */
static bool can_have_huge_pages(void)
{
	int fd = memfd_create("probe", MFD_CLOEXEC | MFD_HUGETLB | MFD_HUGE_2MB);
	void *map;
	bool can;

	if (fd < 0)
		return false;
	can = ftruncate(fd, (off_t)(3 * MEMORY_BYTES)) == 0;
	map = can ? mmap(NULL, 3 * MEMORY_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) : MAP_FAILED;
	can = map != MAP_FAILED && madvise(map, 3 * MEMORY_BYTES, MADV_POPULATE_WRITE) == 0;
	if (map != MAP_FAILED)
		munmap(map, 3 * MEMORY_BYTES);
	close(fd);
	return can;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(round_trip_io_uring),
		cmocka_unit_test(round_trip_sync),
		cmocka_unit_test(round_trip_of_full_memory),
		cmocka_unit_test(small_to_huge_and_back),
		cmocka_unit_test(selected_pages_are_saved),
		cmocka_unit_test(selected_pages_are_loaded),
		cmocka_unit_test(no_huge_pages_left),
		cmocka_unit_test(truncated_memory_stays_short),
	};

	fixture_dir(); /* its removal comes after ours, and signals make us exit */
	alarm(LIMIT_S);
	overcommit_before = read_number(OVERCOMMIT);
	if (!write_number(OVERCOMMIT, overcommit_before + ROOM)) {
		printf("this kernel has no 2 MiB huge pages, or lets nobody set their number\n");
		return SKIPPED;
	}
	atexit(restore_overcommit);
	if (!can_have_huge_pages()) {
		printf("the kernel grants no %u huge pages of 2 MiB: memory is short or fragmented\n", 3 * HUGE_COUNT);
		return SKIPPED;
	}
	return cmocka_run_group_tests(tests, NULL, NULL);
}
