/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test_root_disk_errors.c - a disk that answers, but not as it should: with an error, with less than it was given, or not
 * to everybody.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fixture.h"
#include "moves.h"
#include "sick_disk.h"

#define SOON_MS 3000
#define LIMIT_S 45 /* of the whole program: should it hang itself */

static const char *const keep_uid[] = { "--keep-uid", NULL };

static struct sick_disk disk;

static void open_disk(void **state)
{
	sick_open(&disk, *state, false);
}

static void expect_error(const struct dioh_event *event, int code, uint32_t operation, uint64_t offset)
{
	assert_int_equal(event->error.code, code);
	assert_int_equal(event->error.operation, operation);
	assert_int_equal(event->error.object, DIOH_OBJECT_IMAGE);
	assert_true(event->error.offset == offset);
	if (!strstr(event->error.text, strerror(code)))
		fail_msg("does not say \"%s\": %s", strerror(code), event->error.text);
}

/* ---- errors of writes ---- */

/* The session can go on after it: FINISH is refused, a second save may succeed. */
static void fail_a_page_write(int code, unsigned after)
{
	struct dioh_event event;
	struct dioh_error err;
	uint32_t finish;

	sick_begin_save(&disk, keep_uid);
	fuse_file_fault(disk.file, FUSE_WRITE, .kind = FUSE_FAULT_ERROR, .value = code,
	                .handles = FUSE_HANDLES_DIRECT, .after = after, .times = 1);
	sick_complete(&disk, sick_save_memory(&disk), SOON_MS, &event);
	assert_int_equal(fuse_file_hits(disk.file, FUSE_WRITE), 1);
	expect_error(&event, code, DIOH_OP_WRITE, fuse_file_hit_offset(disk.file, FUSE_WRITE));
	assert_int_equal(dioh_finish(disk.session, DIOH_FINISH_DURABLE, 0, NULL, 0, &finish, &err), -ENODATA);
	assert_int_equal(err.object, DIOH_OBJECT_REGION);
}

/* With EFAULT, too: what is copied aside is no page of the guest's that could not be touched. */
static void page_write_fails(void **state)
{
	static const int codes[] = { EIO, ENOSPC, EDQUOT, EFAULT };

	open_disk(state);
	for (unsigned i = 0; i < sizeof(codes) / sizeof(codes[0]); i++) {
		fail_a_page_write(codes[i], i * 7);
		sick_end(&disk, 1);
		sick_image_is_refused(&disk, ENODATA);
	}
}

static void page_write_fails_and_is_repeated(void **state)
{
	struct dioh_event event;

	open_disk(state);
	fail_a_page_write(ENOSPC, 3);
	assert_int_equal(sick_complete(&disk, sick_save_memory(&disk), SOON_MS, &event), 0);
	assert_int_equal(sick_complete(&disk, sick_finish(&disk), SOON_MS, &event), 0);
	sick_end(&disk, 0);
	sick_image_is_complete(&disk);
}

/* Bitmaps and checksums go by the header path. */
static void table_write_fails(void **state)
{
	struct dioh_event event;

	open_disk(state);
	sick_begin_save(&disk, keep_uid);
	fuse_file_fault(disk.file, FUSE_WRITE, .kind = FUSE_FAULT_ERROR, .value = EIO,
	                .handles = FUSE_HANDLES_BUFFERED);
	sick_complete(&disk, sick_save_memory(&disk), SOON_MS, &event);
	expect_error(&event, EIO, DIOH_OP_WRITE, fuse_file_hit_offset(disk.file, FUSE_WRITE));
	fuse_file_release(disk.file, 0);
	sick_end(&disk, 1);
	sick_image_is_refused(&disk, ENODATA);
}

/* ---- errors of syncs ---- */

static void sync_fails(unsigned after, int code, int in_image)
{
	struct dioh_event event;

	sick_begin_save(&disk, keep_uid);
	assert_int_equal(sick_complete(&disk, sick_save_memory(&disk), SOON_MS, &event), 0);
	fuse_file_fault(disk.file, FUSE_FSYNC, .kind = FUSE_FAULT_ERROR, .value = code,
	                .handles = FUSE_HANDLES_ALL, .after = after, .times = 1);
	sick_complete(&disk, sick_finish(&disk), SOON_MS, &event);
	assert_int_equal(fuse_file_hits(disk.file, FUSE_FSYNC), 1);
	expect_error(&event, code, DIOH_OP_SYNC, DIOH_OFFSET_NONE);
	sick_end(&disk, 1);
	if (in_image)
		sick_image_is_refused(&disk, in_image);
}

static void data_sync_fails(void **state)
{
	open_disk(state);
	sync_fails(0, EIO, ENODATA);
	sync_fails(0, ENOSPC, ENODATA);
}

/* The mark has been written then, and whether it will be there nobody knows: only COMPLETE counts. */
static void mark_sync_fails(void **state)
{
	open_disk(state);
	sync_fails(1, EIO, 0);
}

/* What stood there cannot be invalidated: it is not touched further, and no page is accepted. */
static void invalidating_sync_fails(void **state)
{
	const struct dioh_msg_entry entry = region_entry(SICK_REGION, "ram", SICK_MEMORY_BYTES);
	const struct dioh_create_options create = { .layout = DIOH_LAYOUT_CONTAINER, .entry_count = 1,
		                                    .entries = &entry };
	const struct dioh_msg_memory_transfer what = { .region = SICK_REGION, .length = SICK_MEMORY_BYTES };
	struct dioh_msg_image_reply info;
	struct dioh_event event;
	struct dioh_error err;

	open_disk(state);
	sick_begin_save(&disk, keep_uid);
	assert_int_equal(sick_complete(&disk, sick_save_memory(&disk), SOON_MS, &event), 0);
	assert_int_equal(sick_complete(&disk, sick_finish(&disk), SOON_MS, &event), 0);
	sick_end(&disk, 0);

	must(sick_attach(&disk, DIOH_DIRECTION_SAVE, keep_uid, &err), &err);
	must_attach_memory(disk.session, 0, disk.memfd, -1);
	must_seal(disk.session);
	fuse_file_fault(disk.file, FUSE_FSYNC, .kind = FUSE_FAULT_ERROR, .value = EIO, .times = 1);
	assert_int_equal(dioh_create_image(disk.session, &create, &info, &err), -EIO);
	assert_int_equal(err.operation, DIOH_OP_SYNC);
	assert_int_equal(err.object, DIOH_OBJECT_IMAGE);
	assert_int_equal(dioh_save_memory(disk.session, &what, NULL, &err), -EPROTO);
	sick_end(&disk, 1);
}

/* ---- short writes ---- */

static void save_by_pieces(int piece)
{
	struct dioh_event event;

	sick_begin_save(&disk, keep_uid);
	fuse_file_fault(disk.file, FUSE_WRITE, .kind = FUSE_FAULT_SHORT, .value = piece,
	                .handles = FUSE_HANDLES_DIRECT);
	if (sick_complete(&disk, sick_save_memory(&disk), SOON_MS, &event) != 0)
		fail_msg("pieces of %d: %s", piece, event.error.text);
	assert_true(fuse_file_hits(disk.file, FUSE_WRITE) > SICK_MEMORY_BYTES / (unsigned)piece / 2);
	/* An I/O is one, however many pieces it took. */
	assert_int_equal(event.complete.io_bytes, SICK_MEMORY_BYTES);
	assert_int_equal(event.complete.data_bytes, SICK_MEMORY_BYTES);
	fuse_file_release(disk.file, 0);
	assert_int_equal(sick_complete(&disk, sick_finish(&disk), SOON_MS, &event), 0);
	sick_end(&disk, 0);
	sick_image_is_complete(&disk);
}

static void short_writes_are_continued(void **state)
{
	open_disk(state);
	save_by_pieces(512 * 1024);
	save_by_pieces(300 * 1024 + 512); /* what is left must be aligned again */
}

/* A disk that takes a few bytes and never a page: an end must come, whichever. */
static void hopelessly_short_writes_fail(void **state)
{
	struct dioh_event event;

	open_disk(state);
	sick_begin_save(&disk, keep_uid);
	fuse_file_fault(disk.file, FUSE_WRITE, .kind = FUSE_FAULT_SHORT, .value = 512,
	                .handles = FUSE_HANDLES_DIRECT);
	sick_complete(&disk, sick_save_memory(&disk), SOON_MS, &event);
	assert_int_equal(event.error.code, EIO);
	assert_int_equal(event.error.operation, DIOH_OP_WRITE);
	assert_int_equal(event.error.object, DIOH_OBJECT_IMAGE);
	fuse_file_release(disk.file, 0);
	sick_end(&disk, 1);
	sick_image_is_refused(&disk, ENODATA);
}

static void writes_of_nothing_mean_no_space(void **state)
{
	struct dioh_event event;

	open_disk(state);
	sick_begin_save(&disk, keep_uid);
	fuse_file_fault(disk.file, FUSE_WRITE, .kind = FUSE_FAULT_SHORT, .value = 0,
	                .handles = FUSE_HANDLES_DIRECT);
	sick_complete(&disk, sick_save_memory(&disk), SOON_MS, &event);
	assert_int_equal(event.error.code, ENOSPC);
	fuse_file_release(disk.file, 0);
	sick_end(&disk, 1);
}

/* ---- errors of reads ---- */

static void save_well(const char *const *args)
{
	struct dioh_event event;

	sick_begin_save(&disk, args);
	assert_int_equal(sick_complete(&disk, sick_save_memory(&disk), SOON_MS, &event), 0);
	assert_int_equal(sick_complete(&disk, sick_finish(&disk), SOON_MS, &event), 0);
	sick_end(&disk, 0);
}

static void save_and_begin_load(void)
{
	const int copy = must_memfd("copy", SICK_MEMORY_BYTES, 0);
	struct dioh_error err;

	save_well(keep_uid);
	must(sick_begin_load(&disk, copy, keep_uid, &err), &err);
	close(copy);
}

static uint32_t load_memory(uint32_t flags)
{
	const struct dioh_msg_memory_transfer what = { .region = SICK_REGION, .length = SICK_MEMORY_BYTES, .flags = flags };
	struct dioh_error err;
	uint32_t transfer;

	must(dioh_load_memory(disk.session, &what, &transfer, &err), &err);
	return transfer;
}

static void page_read_fails(void **state)
{
	struct dioh_event event;

	open_disk(state);
	save_and_begin_load();
	fuse_file_fault(disk.file, FUSE_READ, .kind = FUSE_FAULT_ERROR, .value = EIO,
	                .handles = FUSE_HANDLES_DIRECT, .after = 5, .times = 1);
	sick_complete(&disk, load_memory(0), SOON_MS, &event);
	/* One read may have become several requests. */
	assert_int_equal(event.error.code, EIO);
	assert_int_equal(event.error.operation, DIOH_OP_READ);
	assert_int_equal(event.error.object, DIOH_OBJECT_IMAGE);
	assert_true(event.error.offset <= fuse_file_hit_offset(disk.file, FUSE_READ));
	assert_true(event.error.offset + MIB > fuse_file_hit_offset(disk.file, FUSE_READ));
	sick_end(&disk, 0);
	sick_image_is_complete(&disk);
}

/* ENODATA is the block layer's word for a bad medium. It is no image that ends there, nor is a write a read. */
static void bad_medium_is_no_end(void **state)
{
	struct dioh_event event;

	open_disk(state);
	sick_begin_save(&disk, keep_uid);
	fuse_file_fault(disk.file, FUSE_WRITE, .kind = FUSE_FAULT_ERROR, .value = ENODATA, .handles = FUSE_HANDLES_DIRECT,
	                .times = 1);
	sick_complete(&disk, sick_save_memory(&disk), SOON_MS, &event);
	expect_error(&event, EIO, DIOH_OP_WRITE, fuse_file_hit_offset(disk.file, FUSE_WRITE));
	fuse_file_release(disk.file, 0);
	sick_end(&disk, 1);
	save_and_begin_load();
	fuse_file_fault(disk.file, FUSE_READ, .kind = FUSE_FAULT_ERROR, .value = ENODATA, .handles = FUSE_HANDLES_DIRECT,
	                .times = 1);
	sick_complete(&disk, load_memory(0), SOON_MS, &event);
	assert_int_equal(event.error.code, EIO);
	assert_int_equal(event.error.operation, DIOH_OP_READ);
	assert_int_equal(event.error.object, DIOH_OBJECT_IMAGE);
	sick_end(&disk, 0);
}

/* The disk answers late, and the image is another one by then: without checksums nothing else tells. */
static void saved_over_while_its_pages_are_read(void **state)
{
	static const uint8_t zeros[512];
	struct dioh_event event;
	uint32_t transfer;
	int image;

	open_disk(state);
	save_and_begin_load();
	fuse_file_fault(disk.file, FUSE_READ, .kind = FUSE_FAULT_HOLD, .handles = FUSE_HANDLES_DIRECT, .after = 4);
	transfer = load_memory(DIOH_TRANSFER_NO_CHECKSUM);
	sick_wait_held(&disk, 1, SOON_MS);
	image = must_open(fuse_file_path(disk.file), O_WRONLY);
	assert_int_equal(pwrite(image, zeros, sizeof(zeros), 0), sizeof(zeros)); /* as a save does it first of all */
	close(image);
	fuse_file_release(disk.file, 0);
	assert_int_equal(sick_complete(&disk, transfer, SOON_MS, &event), EBADMSG);
	assert_int_equal(event.error.operation, DIOH_OP_PARSE);
	assert_int_equal(event.error.object, DIOH_OBJECT_IMAGE);
	sick_end(&disk, 0);
}

/* ---- memory on it ---- */

/* As a guest writes: through a mapping. The server, which is asked for holes, knows nothing of it yet. */
static void memory_that_its_server_has_not_seen(void **state)
{
	static const struct fuse_file_options options = { .seek = true };
	const struct sick_engine *engine = *state;
	struct fuse_file *file = sick_file(&options);
	struct moves m = MOVES(WAY_CONTAINER, fixture_path("image"));
	int memory = must_open(fuse_file_path(file), O_RDWR), copy = must_memfd("copy", 4 * MIB, 0);
	uint8_t *map;

	m.way.engine = engine->engine;
	assert_int_equal(ftruncate(memory, 4 * MIB), 0);
	map = mmap(NULL, 4 * MIB, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
	assert_true(map != MAP_FAILED);
	moves_add_region(&m, 0, 4 * MIB);
	moves_start(&m, DIOH_DIRECTION_SAVE);
	moves_attach(&m, 0, memory, -1);
	must(moves_create(&m), &m.err);
	memset(map + MIB, 0x55, MIB);
	must(moves_region(&m, 0, 0), &m.err);
	assert_int_equal(m.complete.data_bytes, MIB);
	must(moves_finish(&m, DIOH_FINISH_DURABLE), &m.err);
	moves_end(&m, 0);
	must_load_all(&m.way, m.path, &copy, 1, 0);
	assert_true(same_bytes(memory, copy));
	munmap(map, 4 * MIB);
	close(memory);
	close(copy);
	fuse_file_stop(file);
}

/* OPEN_IMAGE of a raw image in which something is written once nobody opens it any more: that would tell its server. */
static int open_raw_written_to(struct moves *m, int memory, uint8_t *bytes)
{
	moves_add_region(m, 0, 4 * MIB);
	moves_start(m, DIOH_DIRECTION_LOAD);
	moves_attach(m, 0, memory, -1);
	memset(bytes, 0x55, MIB);
	return moves_open(m, 0);
}

/* The same of a raw image, in which nothing but its holes tells what is absent. Where nothing can be synced, nothing need be. */
static void raw_image_that_its_server_has_not_seen(void **state)
{
	static const struct fuse_file_options options = { .seek = true };
	const struct sick_engine *engine = *state;
	struct fuse_file *file = sick_file(&options);
	int image = must_open(fuse_file_path(file), O_RDWR), copy = must_memfd("copy", 4 * MIB, 0);
	const struct moves fresh = MOVES(WAY_RAW, fuse_file_path(file));
	struct moves m = fresh, failing = m;
	uint8_t *map;

	m.way.engine = engine->engine;
	assert_int_equal(ftruncate(image, 4 * MIB), 0);
	map = mmap(NULL, 4 * MIB, PROT_READ | PROT_WRITE, MAP_SHARED, image, 0);
	assert_true(map != MAP_FAILED);
	fuse_file_fault(file, FUSE_FSYNC, .kind = FUSE_FAULT_ERROR, .value = EINVAL);
	must(open_raw_written_to(&m, copy, map + MIB), &m.err);
	must(moves_region(&m, 0, 0), &m.err);
	assert_int_equal(m.complete.data_bytes, MIB);
	moves_end(&m, 0);
	assert_true(same_bytes(image, copy));
	fuse_file_fault(file, FUSE_FSYNC, .kind = FUSE_FAULT_ERROR, .value = EIO);
	assert_int_equal(open_raw_written_to(&failing, copy, map), -EIO);
	moves_assert_error(&failing, EIO, SYNC, IMAGE, 0);
	moves_end(&failing, 0);
	/* What stood there is lost, and that is told once, by a name that "cannot be synced" has, too: for good, then. */
	for (unsigned i = 0; i < 2; i++) {
		struct moves lost = fresh;

		fuse_file_fault(file, FUSE_FSYNC, .kind = i ? FUSE_FAULT_ERROR : FUSE_FAULT_NONE, .value = EINVAL);
		fuse_file_fault(file, FUSE_WRITE, .kind = FUSE_FAULT_ERROR, .value = EINVAL);
		assert_int_equal(open_raw_written_to(&lost, copy, map), -EINVAL);
		moves_assert_error(&lost, EINVAL, SYNC, IMAGE, 0);
		assert_int_equal(moves_open_sealed(&lost, 0), -EINVAL);
		moves_assert_error(&lost, EINVAL, SYNC, IMAGE, 0);
		moves_end(&lost, 0);
	}
	munmap(map, 4 * MIB);
	close(image);
	close(copy);
	fuse_file_stop(file);
}

/* ---- a stream's file ---- */

static void save_stream(struct moves *m, const char *bytes)
{
	int ends[2];

	assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
	moves_add_stream(m, 0, 0);
	moves_start(m, DIOH_DIRECTION_SAVE);
	moves_attach_stream(m, 0, ends[0]);
	must(moves_create(m), &m->err);
	assert_int_equal(write(ends[1], bytes, strlen(bytes)), strlen(bytes));
	close(ends[1]);
	must(moves_wait(m, moves_begin_stream(m, 0, 0, 0)), &m->err);
	must(moves_finish(m, DIOH_FINISH_DURABLE), &m->err);
	moves_end(m, 0);
}

/* As a network's file system does it that has no room left on its server. */
static void closing_a_streams_file_fails(void **state)
{
	static const struct fuse_file_options options = { .flush = true };
	const struct sick_engine *engine = *state;
	struct fuse_file *file = sick_file(&options);
	struct moves saved = MOVES(WAY_CONTAINER, fixture_path("image"));
	struct moves m = MOVES(WAY_CONTAINER, fixture_path("image"));

	save_stream(&saved, "device state");
	m.way.engine = engine->engine;
	moves_start(&m, DIOH_DIRECTION_LOAD);
	moves_attach_stream(&m, 0, must_open(fuse_file_path(file), O_WRONLY));
	fuse_file_fault(file, FUSE_FLUSH, .kind = FUSE_FAULT_ERROR, .value = ENOSPC);
	must(moves_open(&m, 0), &m.err);
	assert_int_equal(moves_wait(&m, moves_begin_stream(&m, 0, 0, 0)), -ENOSPC);
	moves_assert_error(&m, ENOSPC, WRITE, STREAM, 0);
	assert_int_equal(m.err.offset, strlen("device state"));
	moves_end(&m, 0);
	fuse_file_stop(file);
}

/* ---- who may ---- */

static void nobody_may_with_allow_other(void **state)
{
	open_disk(state);
	save_well(NULL);
	sick_image_is_complete(&disk);
}

/* fstat(2) and ftruncate(2) of a mount that is root's alone are refused to others, whatever descriptor they have. */
static void nobody_is_refused_without(void **state)
{
	const struct dioh_msg_entry entry = region_entry(SICK_REGION, "ram", SICK_MEMORY_BYTES);
	const struct dioh_create_options create = { .layout = DIOH_LAYOUT_CONTAINER, .entry_count = 1,
		                                    .entries = &entry };
	struct dioh_msg_image_reply info;
	struct dioh_error err;

	sick_open(&disk, *state, true);
	must(sick_attach(&disk, DIOH_DIRECTION_SAVE, NULL, &err), &err);
	must_attach_memory(disk.session, 0, disk.memfd, -1);
	must_seal(disk.session);
	assert_int_equal(dioh_create_image(disk.session, &create, &info, &err), -EACCES);
	assert_int_equal(err.object, DIOH_OBJECT_IMAGE);
	sick_end(&disk, 1);
	assert_int_equal(fuse_file_count(disk.file, FUSE_WRITE), 0);
}

static void keep_uid_may_without(void **state)
{
	struct dioh_event event;

	sick_open(&disk, *state, true);
	sick_begin_save(&disk, keep_uid);
	assert_int_equal(sick_complete(&disk, sick_save_memory(&disk), SOON_MS, &event), 0);
	assert_int_equal(sick_complete(&disk, sick_finish(&disk), SOON_MS, &event), 0);
	sick_end(&disk, 0);
}

/* ---- all of them ---- */

#define CASE(test, engine) { #test " (" #engine ")", test, NULL, sick_teardown, (void *)(uintptr_t)&(engine) }
#define CASE_EACH(test) CASE(test, sick_uring), CASE(test, sick_uring_thread), CASE(test, sick_sync)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE_EACH(page_write_fails),
		CASE_EACH(page_write_fails_and_is_repeated),
		CASE(table_write_fails, sick_uring),
		CASE(data_sync_fails, sick_uring),
		CASE(data_sync_fails, sick_sync),
		CASE(mark_sync_fails, sick_uring),
		CASE(invalidating_sync_fails, sick_uring),
		CASE(short_writes_are_continued, sick_uring_thread),
		CASE(short_writes_are_continued, sick_sync),
		CASE(hopelessly_short_writes_fail, sick_sync),
		CASE(writes_of_nothing_mean_no_space, sick_sync),
		CASE_EACH(page_read_fails),
		CASE_EACH(bad_medium_is_no_end),
		CASE(saved_over_while_its_pages_are_read, sick_uring),
		CASE(saved_over_while_its_pages_are_read, sick_sync),
		CASE(memory_that_its_server_has_not_seen, sick_uring),
		CASE(raw_image_that_its_server_has_not_seen, sick_uring),
		CASE(closing_a_streams_file_fails, sick_uring),
		CASE(closing_a_streams_file_fails, sick_sync),
		CASE(nobody_may_with_allow_other, sick_uring),
		CASE(nobody_may_with_allow_other, sick_sync),
		CASE(nobody_is_refused_without, sick_uring),
		CASE(keep_uid_may_without, sick_uring),
	};

	alarm(LIMIT_S);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
