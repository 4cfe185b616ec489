/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test_mask_kernel.c - diohelper-5.15 is what it says: each newer feature that the helper asks for is refused as Linux
 * 5.15 refused it, and the helper does its work without. Run by `make check-masked`, with $DIOHELPER naming it.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <fcntl.h>
#include <linux/stat.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "cleanup.h"
#include "fixture.h"

#ifndef STATX_DIOALIGN
#define STATX_DIOALIGN 0x2000u
#endif

#define MEMORY_BYTES (40 * MIB) /* of which what is written behind has more than one step */
#define LAYERS (DIOH_LAYER_LANDLOCK | DIOH_LAYER_SECCOMP | DIOH_LAYER_NO_CAPABILITIES)

struct work {
	uint32_t engine;
	bool direct;
	int said_fd; /* what the mask has said */
	struct dioh_msg_attach_image_reply image;
	struct dioh_msg_seal_reply seal;
};

static struct dioh_session *begin(struct work *w, uint32_t direction, const char *path, int memfd)
{
	struct dioh_image_options options = DIOH_IMAGE_OPTIONS_INIT;
	struct dioh_spawn_options spawn = DIOH_SPAWN_OPTIONS_INIT;
	DIOH_AUTO_FD int buffered = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	DIOH_AUTO_FD int direct = w->direct ? open(path, O_RDWR | O_DIRECT | O_CLOEXEC) : -1;
	struct dioh_session *session;
	struct dioh_error err;

	spawn.program = fixture_helper();
	spawn.stderr_fd = w->said_fd;
	must(dioh_spawn(&spawn, 0, &session, &err), &err);
	options.buffered_fd = buffered;
	options.direct_fd = direct;
	options.direction = direction;
	options.engine = w->engine;
	must(dioh_attach_image(session, &options, &w->image, &err), &err);
	must_attach_memory(session, 0, memfd, -1);
	must(dioh_seal(session, 0, &w->seal, &err), &err);
	return session;
}

static void save(struct work *w, const char *path, int memfd)
{
	const struct dioh_msg_entry entry = region_entry(0, "ram", MEMORY_BYTES);
	const struct dioh_create_options create = { .layout = DIOH_LAYOUT_CONTAINER, .entry_count = 1, .entries = &entry };
	const struct dioh_msg_memory_transfer what = { .length = MEMORY_BYTES };
	struct dioh_session *session = begin(w, DIOH_DIRECTION_SAVE, path, memfd);
	struct dioh_error err;
	uint32_t transfer;

	must(dioh_create_image(session, &create, NULL, &err), &err);
	must(dioh_save_memory(session, &what, &transfer, &err), &err);
	must(dioh_wait(session, transfer, NULL, &err), &err);
	must(dioh_finish(session, DIOH_FINISH_DURABLE, 0, NULL, 0, &transfer, &err), &err);
	must(dioh_wait(session, transfer, NULL, &err), &err);
	must_close(session, 0);
}

static void load(struct work *w, const char *path, int memfd)
{
	const struct dioh_open_options options = { .layout = DIOH_LAYOUT_DETECT };
	const struct dioh_msg_memory_transfer what = { .length = MEMORY_BYTES };
	struct dioh_session *session = begin(w, DIOH_DIRECTION_LOAD, path, memfd);
	struct dioh_error err;
	uint32_t transfer;

	must(dioh_open_image(session, &options, NULL, &err), &err);
	must(dioh_load_memory(session, &what, &transfer, &err), &err);
	must(dioh_wait(session, transfer, NULL, &err), &err);
	must_close(session, 0);
}

static void round_trip(struct work *w)
{
	DIOH_AUTO_FD int source = must_memfd("source", MEMORY_BYTES, 0);
	DIOH_AUTO_FD int loaded = must_memfd("loaded", MEMORY_BYTES, 0);
	const char *path = fixture_path("image");

	(void)unlink(path);
	must_fill_mixed(source, MEMORY_BYTES, 16, 40, w->engine);
	w->said_fd = must_memfd("said", 0, 0);
	save(w, path, source);
	load(w, path, loaded);
	assert_true(same_bytes(source, loaded));
	assert_int_equal(w->seal.layers & LAYERS, LAYERS);
}

static void expect_said(struct work *w, const char *text)
{
	char said[4096] = "";

	assert_true(pread(w->said_fd, said, sizeof(said) - 1, 0) >= 0);
	if (!strstr(said, text))
		fail_msg("\"%s\" was not masked, but: %s", text, said);
}

/* Whether the real kernel has something to hide. */
static bool has_dioalign(void)
{
	DIOH_AUTO_FD int fd = open(fixture_path("probe"), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	uint32_t statx[64] = { 0 }; /* the mask stands first */

	return syscall(SYS_statx, fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, statx) == 0 && statx[0] & STATX_DIOALIGN;
}

static void direct_io(void **state)
{
	(void)state;
	for (uint32_t engine = DIOH_ENGINE_IO_URING; engine <= DIOH_ENGINE_SYNC; engine++) {
		struct work w = { .engine = engine, .direct = true };

		round_trip(&w);
		assert_int_equal(w.image.direct, 1);
		assert_in_range(w.image.offset_alignment, 512, 4096); /* found by trying */
		expect_said(&w, "Landlock's ABI");
		if (engine == DIOH_ENGINE_IO_URING)
			expect_said(&w, "flags of io_uring_setup");
		if (has_dioalign())
			expect_said(&w, "fields of statx");
		close(w.said_fd);
	}
}

static void buffered_io(void **state)
{
	(void)state;
	for (uint32_t engine = DIOH_ENGINE_IO_URING; engine <= DIOH_ENGINE_SYNC; engine++) {
		struct work w = { .engine = engine };

		round_trip(&w);
		assert_int_equal(w.image.direct, 0);
		assert_int_equal(w.image.notes, DIOH_IMAGE_NOTE_LONE_BUFFERED | DIOH_IMAGE_NOTE_DROPPED_BEHIND);
		expect_said(&w, "flags of a read or write");
		close(w.said_fd);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(direct_io),
		cmocka_unit_test(buffered_io),
	};

	setenv("DIOH_MASK_SAYS", "1", 1);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
