/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test_fs_matrix.c - file systems and devices × kinds of memory: each saves, loads and compares, and prints a row of what
 * came of it; then a disk behind a server whose errors come late. What is absent is named as skipped.
 * Rates are for the reader: no test depends on them. docs/storage.md explains the table.
 */
/* timeout: 300 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cleanup.h"
#include "fixture.h"
#include "kinds.h"
#include "measure.h"
#include "places.h"

#define SKIPPED 77
#define MEMORY_BYTES (64 * MIB) /* 40 of them data */
#define LARGE_BYTES GIB
#define ROOM_BYTES (2 * GIB)
/* Heads, tables, and what a file system allocates beside the data. */
#define BESIDE_BYTES (4 * MIB)

static unsigned failures, absences;

/* What a place is expected to answer. */
struct expectation {
	enum place_kind place;
	bool buffered; /* page I/O by a buffered descriptor only */
	uint32_t direct;
	uint32_t notes;
};

#define BUFFERED_NOTES (DIOH_IMAGE_NOTE_UNCACHED | DIOH_IMAGE_NOTE_DROPPED_BEHIND)

static const struct expectation expectations[] = {
	{ PLACE_EXT4, false, 1, 0 },
	{ PLACE_EXT4, true, 0, DIOH_IMAGE_NOTE_LONE_BUFFERED },
	{ PLACE_XFS, false, 1, 0 },
	{ PLACE_XFS_16K, false, 0, DIOH_IMAGE_NOTE_DIRECT_ALIGNMENT },
	{ PLACE_BTRFS, false, 0, DIOH_IMAGE_NOTE_DIRECT_CHECKSUMS },
	{ PLACE_BTRFS, true, 0, DIOH_IMAGE_NOTE_LONE_BUFFERED },
	{ PLACE_BTRFS_NOCOW, false, 1, 0 },
	{ PLACE_TMPFS, false, 1, 0 },
	{ PLACE_FUSE, false, 1, 0 },
	{ PLACE_FUSE, true, 0, DIOH_IMAGE_NOTE_LONE_BUFFERED },
	{ PLACE_LOOP_512, false, 1, 0 },
	{ PLACE_LOOP_4096, false, 1, 0 },
	{ PLACE_ZRAM, false, 1, 0 },
	{ PLACE_NETWORK, false, 1, 0 },
};

struct row {
	const struct expectation *expected;
	enum memory_kind memory;
	struct dioh_msg_attach_image_reply save, load;
	uint64_t data_bytes;
	uint64_t allocated_bytes; /* of a file */
	uint64_t saved_cached_bytes, loaded_cached_bytes; /* left in the page cache by each */
	double save_s, load_s;
};

static const char *kinds_absent[KIND_COUNT];

/* ---- the table ---- */

static void print_heading(void)
{
	printf("%-14s %-9s %-14s %-31s %9s  %15s  %13s  %9s\n", "image on", "asked", "memory", "came (save / load)", "alignment",
	       "data/allocated", "save / load", "cached");
	printf("%-14s %-9s %-14s %-31s %9s  %15s  %13s  %9s\n", "", "", "", "", "mem/file", "MiB", "MiB/s", "MiB");
}

static const char *outcome(const struct dioh_msg_attach_image_reply *reply)
{
	if (reply->direct)
		return "direct";
	return reply->notes & DIOH_IMAGE_NOTE_DIRECT_CHECKSUMS ? "copied by btrfs"
	       : reply->notes & DIOH_IMAGE_NOTE_UNCACHED      ? "uncached"
	       : reply->notes & DIOH_IMAGE_NOTE_DROPPED_BEHIND ? "dropped behind"
	                                                       : "buffered";
}

static double mib(uint64_t bytes)
{
	return (double)bytes / (double)MIB;
}

static void print_row(const struct row *row, const char *memory)
{
	const struct dioh_msg_attach_image_reply *save = &row->save;
	char came[64], sizes[32], rates[32], alignment[32], cached[32];

	(void)snprintf(came, sizeof(came), "%s / %s", outcome(save), outcome(&row->load));
	(void)snprintf(alignment, sizeof(alignment), "%u/%u", save->memory_alignment, save->offset_alignment);
	if (save->kind == DIOH_IMAGE_REGULAR)
		(void)snprintf(sizes, sizeof(sizes), "%.0f/%.1f", mib(row->data_bytes), mib(row->allocated_bytes));
	else
		(void)snprintf(sizes, sizeof(sizes), "%.0f/-", mib(row->data_bytes));
	(void)snprintf(rates, sizeof(rates), "%.0f / %.0f", mib(row->data_bytes) / row->save_s,
	               mib(row->data_bytes) / row->load_s);
	(void)snprintf(cached, sizeof(cached), "%.1f / %.1f", mib(row->saved_cached_bytes), mib(row->loaded_cached_bytes));
	printf("%-14s %-9s %-14s %-31s %9s  %15s  %13s  %9s\n", place_name(row->expected->place),
	       row->expected->buffered ? "buffered" : "direct", memory, came, alignment, sizes, rates, cached);
	fflush(stdout);
}

static void print_absent(const struct expectation *expected, const char *memory, const char *why)
{
	printf("%-14s %-9s %-14s skipped: %s\n", place_name(expected->place), expected->buffered ? "buffered" : "direct", memory,
	       why);
	absences++;
}

static void wrong(const struct row *row, const char *memory, const char *what, uint64_t is)
{
	printf("FAILED: %s, %s: %s: %llu\n", place_name(row->expected->place), memory, what, (unsigned long long)is);
	failures++;
}

/* ---- a row ---- */

/* Huge pages are not what a load makes of itself: the manager advises it. */
static void attach_memory(const struct row *row, struct dioh_session *session, int fd)
{
	struct dioh_memory_options options = DIOH_MEMORY_OPTIONS_INIT;
	struct dioh_error err;

	options.fd = fd;
	options.advice = row->memory == KIND_THP ? DIOH_MEMORY_ADVICE_HUGEPAGE : DIOH_MEMORY_ADVICE_NONE;
	must(dioh_attach_memory(session, 0, &options, NULL, &err), &err);
}

static struct fixture_image image_of(struct row *row, const char *path, bool load)
{
	struct fixture_image image = {
		.path = path, .no_direct = row->expected->buffered, .options = DIOH_IMAGE_OPTIONS_INIT,
	};

	image.ret_info = load ? &row->load : &row->save;
	return image;
}

/* From the first page to the mark on the disk. */
static void save(struct row *row, const char *path, int memory, uint64_t bytes)
{
	const struct fixture_image image = image_of(row, path, false);
	const struct dioh_msg_entry entry = region_entry(0, "ram", bytes);
	const struct dioh_create_options create = { .layout = DIOH_LAYOUT_CONTAINER, .entry_count = 1, .entries = &entry };
	const struct dioh_msg_memory_transfer what = { .length = bytes };
	struct dioh_session *session = must_session(&image, DIOH_DIRECTION_SAVE);
	struct dioh_msg_complete figures;
	struct dioh_error err;
	uint32_t transfer;

	attach_memory(row, session, memory);
	must_seal(session);
	must(dioh_create_image(session, &create, NULL, &err), &err);
	row->save_s = -measure_now_s();
	must(dioh_save_memory(session, &what, &transfer, &err), &err);
	must(dioh_wait(session, transfer, &figures, &err), &err);
	must(dioh_finish(session, DIOH_FINISH_DURABLE, 0, NULL, 0, &transfer, &err), &err);
	must(dioh_wait(session, transfer, NULL, &err), &err);
	row->save_s += measure_now_s();
	must_close(session, 0);
	row->data_bytes = figures.data_bytes;
}

static void load(struct row *row, const char *path, int memory, uint64_t bytes)
{
	const struct fixture_image image = image_of(row, path, true);
	const struct dioh_open_options open = { .layout = DIOH_LAYOUT_DETECT };
	const struct dioh_msg_memory_transfer what = { .length = bytes, .flags = DIOH_TRANSFER_FRESH };
	struct dioh_session *session = must_session(&image, DIOH_DIRECTION_LOAD);
	struct dioh_error err;
	uint32_t transfer;

	attach_memory(row, session, memory);
	must_seal(session);
	must(dioh_open_image(session, &open, NULL, &err), &err);
	row->load_s = -measure_now_s();
	must(dioh_load_memory(session, &what, &transfer, &err), &err);
	must(dioh_wait(session, transfer, NULL, &err), &err);
	row->load_s += measure_now_s();
	must(dioh_finish(session, DIOH_FINISH_DURABLE, 0, NULL, 0, &transfer, &err), &err);
	must(dioh_wait(session, transfer, NULL, &err), &err);
	must_close(session, 0);
}

static uint64_t cached_bytes(const char *path)
{
	static unsigned char vector[ROOM_BYTES / DIOH_PAGE_BYTES];
	DIOH_AUTO_FD int fd = open(path, O_RDONLY | O_CLOEXEC);
	const off_t bytes = lseek(fd, 0, SEEK_END);
	void *map = mmap(NULL, (size_t)bytes, PROT_READ, MAP_SHARED, fd, 0);
	uint64_t cached = 0;

	if (map == MAP_FAILED || (uint64_t)bytes > ROOM_BYTES || mincore(map, (size_t)bytes, vector) < 0)
		fixture_die(__FILE__, __LINE__, "mincore of the image", strerror(errno));
	for (uint64_t page = 0; page < ((uint64_t)bytes + DIOH_PAGE_BYTES - 1) / DIOH_PAGE_BYTES; page++)
		cached += (vector[page] & 1) * DIOH_PAGE_BYTES;
	munmap(map, (size_t)bytes);
	return cached;
}

static void check_replies(const struct row *row, const char *memory)
{
	const struct expectation *expected = row->expected;
	const uint32_t buffered = row->save.notes & BUFFERED_NOTES;
	const bool spares = !expected->direct && !(expected->notes & DIOH_IMAGE_NOTE_DIRECT_CHECKSUMS);

	if (row->save.direct != expected->direct)
		wrong(row, memory, "the save's reply says direct", row->save.direct);
	if ((row->save.notes & ~(uint32_t)BUFFERED_NOTES) != expected->notes)
		wrong(row, memory, "the save's reply has the notes", row->save.notes);
	/* One of the two, and only if page I/O goes through a buffered descriptor. */
	if (spares ? buffered == 0 || buffered == BUFFERED_NOTES : buffered != 0)
		wrong(row, memory, "how the page cache is spared", row->save.notes);
	if (row->load.direct == expected->buffered)
		wrong(row, memory, "the load's reply says direct", row->load.direct);
	if (row->save.direct && (row->save.offset_alignment < 512 || row->save.offset_alignment > 4096))
		wrong(row, memory, "alignment", row->save.offset_alignment);
}

static void check_space(const struct row *row, const char *memory, uint64_t data_bytes)
{
	if (row->data_bytes != data_bytes)
		wrong(row, memory, "bytes that are not zero were saved", row->data_bytes);
	if (row->save.kind == DIOH_IMAGE_REGULAR &&
	    (row->allocated_bytes < data_bytes || row->allocated_bytes > data_bytes + BESIDE_BYTES))
		wrong(row, memory, "the image has allocated", row->allocated_bytes);
	/* Where the page cache is the storage all of it is there. */
	if (row->expected->place == PLACE_TMPFS)
		return;
	if (row->saved_cached_bytes > BESIDE_BYTES)
		wrong(row, memory, "the save has left in the page cache", row->saved_cached_bytes);
	if (row->loaded_cached_bytes > BESIDE_BYTES)
		wrong(row, memory, "the load has left in the page cache", row->loaded_cached_bytes);
}

static uint64_t allocated_of(const char *path)
{
	DIOH_AUTO_FD int fd = open(path, O_RDONLY | O_CLOEXEC);

	return must_blocks_bytes(fd);
}

static void run_row(const struct place *place, const struct expectation *expected, enum memory_kind kind, uint64_t bytes,
                    bool full)
{
	struct row row = { .expected = expected, .memory = kind };
	DIOH_AUTO_FD int memory = must_kind(kind, bytes);
	DIOH_AUTO_FD int loaded = must_kind(kind, bytes);
	const uint64_t data_bytes = must_fill_kind(memory, bytes, full, 1 + (uint64_t)kind);
	const uint64_t allocated = must_blocks_bytes(memory);
	char name[32];

	(void)snprintf(name, sizeof(name), "%s%s", kind_name(kind), bytes == LARGE_BYTES ? ", 1G" : "");
	save(&row, place->path, memory, bytes);
	row.saved_cached_bytes = cached_bytes(place->path);
	row.allocated_bytes = place->is_device ? 0 : allocated_of(place->path);
	load(&row, place->path, loaded, bytes);
	row.loaded_cached_bytes = cached_bytes(place->path);
	print_row(&row, name);
	check_replies(&row, name);
	check_space(&row, name, data_bytes);
	if (!same_bytes(memory, loaded))
		wrong(&row, name, "what was loaded differs", 0);
	if (must_blocks_bytes(memory) != allocated)
		wrong(&row, name, "the save has allocated memory", must_blocks_bytes(memory));
	if (must_blocks_bytes(loaded) > allocated)
		wrong(&row, name, "the load has allocated", must_blocks_bytes(loaded));
	if (kind == KIND_THP && must_huge_bytes(loaded, bytes) < must_huge_bytes(memory, bytes) / 2)
		wrong(&row, name, "huge pages in what was loaded", must_huge_bytes(loaded, bytes));
	if (!place->is_device && !place->fuse)
		(void)unlink(place->path);
}

static void required_on_btrfs(const struct place *place)
{
	DIOH_AUTO_FD int buffered = open(place->path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	DIOH_AUTO_FD int direct = open(place->path, O_RDWR | O_DIRECT | O_CLOEXEC);
	struct dioh_image_options options = DIOH_IMAGE_OPTIONS_INIT;
	struct dioh_spawn_options spawn = DIOH_SPAWN_OPTIONS_INIT;
	struct dioh_session *session;
	struct dioh_error err;
	int r;

	spawn.program = fixture_helper();
	must(dioh_spawn(&spawn, 0, &session, &err), &err);
	options.buffered_fd = buffered;
	options.direct_fd = direct;
	options.direction = DIOH_DIRECTION_SAVE;
	options.direct = DIOH_DIRECT_REQUIRE;
	r = dioh_attach_image(session, &options, NULL, &err);
	if (r != -EOPNOTSUPP || !strstr(err.text, "chattr +C")) {
		printf("FAILED: direct I/O required on btrfs: %d\n", r);
		failures++;
	}
	must_close(session, 0);
}

static void run_place(const struct expectation *expected)
{
	struct place place;
	const char *why = place_open(&place, expected->place, ROOM_BYTES);

	for (enum memory_kind kind = 0; kind < (expected->buffered ? 1 : KIND_COUNT); kind++) {
		if (why || kinds_absent[kind])
			print_absent(expected, kind_name(kind), why ? why : kinds_absent[kind]);
		else
			run_row(&place, expected, kind, MEMORY_BYTES, false);
	}
	if (why)
		return;
	if (expected->notes & DIOH_IMAGE_NOTE_DIRECT_CHECKSUMS) {
		run_row(&place, expected, KIND_MEMFD, LARGE_BYTES, true);
		required_on_btrfs(&place);
	}
	place_close(&place);
}

/* ---- a disk behind a server ---- */

struct late { /* what the server answers to which request, once all memory is saved or before */
	const char *name;
	enum place_kind place;
	uint32_t opcode;
	bool buffered;
	bool early; /* while pages are being written: the error may come with them, or as late as the sync */
	int code;
};

static const struct late lates[] = {
	{ "fsync of the file fails", PLACE_FUSE, FUSE_FSYNC, false, false, EIO },
	{ "fsync of the file fails: no room", PLACE_FUSE, FUSE_FSYNC, false, false, ENOSPC },
	{ "fsync of the file fails, buffered", PLACE_FUSE, FUSE_FSYNC, true, false, EIO },
	{ "flush of the disk fails", PLACE_NETWORK, FUSE_FSYNC, false, false, EIO },
	{ "flush of the disk fails, buffered", PLACE_NETWORK, FUSE_FSYNC, true, false, EIO },
	{ "writes of the disk fail", PLACE_NETWORK, FUSE_WRITE, false, true, EIO },
	{ "writes of the disk fail behind the page cache", PLACE_NETWORK, FUSE_WRITE, true, true, EIO },
};

static void set_fault(const struct late *late, struct place *place)
{
	fuse_file_fault(place->fuse, late->opcode, .kind = FUSE_FAULT_ERROR, .value = late->code,
	                .handles = FUSE_HANDLES_ALL);
}

/* The error that ends the save: of its memory, or of FINISH; 0 would be COMPLETE. */
static int save_late(const struct late *late, struct place *place, int memory, struct dioh_error *err)
{
	const struct fixture_image image = { .path = place->path, .no_direct = late->buffered };
	const struct dioh_msg_entry entry = region_entry(0, "ram", MEMORY_BYTES);
	const struct dioh_create_options create = { .layout = DIOH_LAYOUT_CONTAINER, .entry_count = 1, .entries = &entry };
	const struct dioh_msg_memory_transfer what = { .length = MEMORY_BYTES };
	struct dioh_session *session = must_session(&image, DIOH_DIRECTION_SAVE);
	uint32_t transfer;
	int r;

	must_attach_memory(session, 0, memory, -1);
	must_seal(session);
	must(dioh_create_image(session, &create, NULL, err), err);
	if (late->early)
		set_fault(late, place);
	must(dioh_save_memory(session, &what, &transfer, err), err);
	r = dioh_wait(session, transfer, NULL, err);
	if (!late->early)
		set_fault(late, place);
	if (r == 0)
		r = dioh_finish(session, DIOH_FINISH_DURABLE, 0, NULL, 0, &transfer, err);
	if (r == 0)
		r = dioh_wait(session, transfer, NULL, err);
	must_close(session, r < 0);
	return r;
}

static void run_late(const struct late *late)
{
	DIOH_AUTO_FD int memory = must_kind(KIND_MEMFD, MEMORY_BYTES);
	struct place place;
	struct dioh_error err = { 0 };
	const char *why = place_open(&place, late->place, ROOM_BYTES);
	bool told;
	int r;

	if (why) {
		print_absent(&(struct expectation){ .place = late->place, .buffered = late->buffered }, late->name, why);
		return;
	}
	(void)must_fill_kind(memory, MEMORY_BYTES, false, 77);
	r = save_late(late, &place, memory, &err);
	/* A device tells EIO, whatever its server said. */
	told = r < 0 && (late->early || err.operation == DIOH_OP_SYNC) && err.object == DIOH_OBJECT_IMAGE &&
	       (err.code == late->code || err.code == EIO) && fuse_file_hits(place.fuse, late->opcode) > 0;
	printf("%-14s %-48s %s: %s\n", place_name(late->place), late->name, told ? "refused" : "FAILED",
	       r < 0 ? err.text : "the save was called complete");
	failures += !told;
	fuse_file_release(place.fuse, 0);
	place_close(&place);
}

/* ---- all of it ---- */

int main(void)
{
	const char *why;

	if (geteuid() != 0) {
		puts("needs root");
		return SKIPPED;
	}
	why = place_own_namespace();
	if (why) {
		puts(why);
		return SKIPPED;
	}
	for (enum memory_kind kind = 0; kind < KIND_COUNT; kind++)
		kinds_absent[kind] = kind_prepare(kind, 2 * MEMORY_BYTES);
	print_heading();
	for (size_t i = 0; i < sizeof(expectations) / sizeof(expectations[0]); i++)
		run_place(&expectations[i]);
	for (size_t i = 0; i < sizeof(lates) / sizeof(lates[0]); i++)
		run_late(&lates[i]);
	printf("%u failures, %u absent\n", failures, absences);
	return failures ? 1 : 0;
}
