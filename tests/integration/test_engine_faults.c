/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test_engine_faults.c - every single I/O of the image in a small save and a small load is answered once, in turn, in the
 * ways that no disk of ours can bring about, or that need none (faulty_engine.c): short, or with a number that no sector
 * has, EAGAIN, EINTR, EIO, nothing, in another order; in a save also each write of the header path and each sync, the
 * directory's too: EIO. For each layout and engine with O_DIRECT, and for io_uring without. And each I/O of a stream:
 * ECANCELED, which nobody has done. What can be repeated is; the rest is an error that says what and where. Nothing is
 * complete that does not load bit for bit.
 */
/* timeout: 240 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "specimen.h"

#define HANG_S 30
#define BLOCK_BYTES 524288u

static const struct {
	const char *name;
	int code; /* 0: nothing may come of it */
	uint32_t operation; /* that only a save has; 0: page I/O */
} kinds[] = {
	{ "short", 0, 0 }, { "odd", 0, 0 }, { "eagain", 0, 0 }, { "eintr", 0, 0 }, { "eio", EIO, 0 }, { "nothing", -1, 0 },
	{ "ecanceled", EAGAIN, 0 }, /* nobody has cancelled anything */
	{ "reorder", 0, 0 }, { "header", EIO, DIOH_OP_WRITE }, { "sync", EIO, DIOH_OP_SYNC },
	{ "sync", EINTR, DIOH_OP_SYNC }, /* so a server may call it that it has lost a write; told once, like any other */
};

#define KINDS (sizeof(kinds) / sizeof(kinds[0]))

static char faulty[512], healthy[512], image[512];
static int messages = -1;

/* The helper's next life has this fault in it. NULL: it is the real one. */
static void set_fault(const char *kind, unsigned index, int error)
{
	char fault[64];

	alarm(HANG_S);
	setenv("DIOHELPER", kind ? faulty : healthy, 1);
	(void)snprintf(fault, sizeof(fault), "%s:%u:%d", kind ? kind : "none", index, error);
	setenv("DIOH_FAULT", fault, 1);
	if (ftruncate(messages, 0) < 0 || lseek(messages, 0, SEEK_SET) < 0)
		fail_msg("ftruncate: %s", strerror(errno));
}

static bool was_hit(void)
{
	char text[256] = "";

	return pread(messages, text, sizeof(text) - 1, 0) > 0 && strstr(text, "fault: hit");
}

static bool says_so(const struct dioh_error *err, unsigned kind, bool save)
{
	const uint32_t operation = kinds[kind].operation ? kinds[kind].operation : save ? DIOH_OP_WRITE : DIOH_OP_READ;

	return err->operation == operation && err->object == DIOH_OBJECT_IMAGE && err->text[0] &&
	       (operation == DIOH_OP_SYNC) == (err->offset == DIOH_OFFSET_NONE) &&
	       (kinds[kind].code < 0 || err->code == kinds[kind].code);
}

/* `hit`: the fault has been there. Without it all goes well. */
static void expect(const struct specimen *s, unsigned kind, unsigned index, bool save, bool hit, bool ok)
{
	const struct dioh_error *err = &s->err;

	if (ok == (!hit || kinds[kind].code == 0)) {
		if (ok || says_so(err, kind, save))
			return;
		/* An image that ends too early is not called unreadable. */
		if (!save && kinds[kind].code < 0 && err->code == EBADMSG && err->object == DIOH_OBJECT_IMAGE)
			return;
	}
	fail_msg("%s: %s%s of I/O %u of a %s: code %d, operation %u, object %u, offset %lld: %s [%s]", way_name(&s->way),
	         hit ? "" : "no ", kinds[kind].name, index, save ? "save" : "load", err->code, err->operation, err->object,
	         (long long)err->offset, err->text, s->wrong);
}

static struct specimen specimen(const struct way *way)
{
	return (struct specimen){ .way = *way, .path = image, .content = SPECIMEN_NEW, .messages = messages,
	                          .directory = fixture_dir() };
}

static bool save_with(const struct way *way, unsigned kind, unsigned index)
{
	struct specimen s = specimen(way), again = specimen(way);
	enum specimen_verdict verdict;
	bool ok, hit;

	(void)unlink(image);
	set_fault(kinds[kind].name, index, kinds[kind].code);
	ok = specimen_save(&s);
	hit = was_hit();
	expect(&s, kind, index, true, hit, ok);
	set_fault(NULL, 0, 0);
	again.way.engine = DIOH_ENGINE_SYNC;
	verdict = specimen_load(&again, DIOH_LAYOUT_DETECT);
	/* Behind the mark a sync that fails leaves what may be whole: only COMPLETE counts. */
	if (verdict != (ok ? SPECIMEN_IS_NEW : SPECIMEN_REFUSED) &&
	    !(verdict == SPECIMEN_IS_NEW && kinds[kind].operation == DIOH_OP_SYNC))
		fail_msg("%s: %s of I/O %u: the save %s, and the image: %s %s", way_name(way), kinds[kind].name, index,
		         ok ? "is complete" : "failed", specimen_verdict_name(verdict), again.wrong);
	return hit;
}

static bool load_with(const struct way *way, unsigned kind, unsigned index)
{
	struct specimen s = specimen(way);
	enum specimen_verdict verdict;
	bool hit;

	set_fault(kinds[kind].name, index, kinds[kind].code);
	verdict = specimen_load(&s, way->layout);
	hit = was_hit();
	expect(&s, kind, index, false, hit, verdict == SPECIMEN_IS_NEW);
	if (verdict != SPECIMEN_IS_NEW && verdict != SPECIMEN_FAILED && verdict != SPECIMEN_REFUSED)
		fail_msg("%s: %s of I/O %u of a load: %s: %s", way_name(way), kinds[kind].name, index,
		         specimen_verdict_name(verdict), s.wrong);
	return hit;
}

static unsigned each(const struct way *way, bool save, bool (*with)(const struct way *, unsigned, unsigned))
{
	unsigned hits = 0;

	for (unsigned kind = 0; kind < KINDS; kind++) {
		unsigned index = 0;

		if (kinds[kind].operation && !save)
			continue;
		while (with(way, kind, index))
			index++;
		if (index < 3)
			fail_msg("%s: only %u I/Os", way_name(way), index);
		hits += index;
	}
	return hits;
}

static void every_one(uint32_t layout)
{
	unsigned saves = 0, loads = 0;

	for (unsigned i = 0; i < 6; i++) {
		const struct way way = { .layout = layout, .engine = DIOH_ENGINE_IO_URING + i / 2, .block_bytes = BLOCK_BYTES,
			                 .fds = i % 2 ? WAY_LONE_BUFFERED : WAY_TWO };
		struct specimen s = specimen(&way);

		if (!way_possible(&way) || (way.fds != WAY_TWO && way.engine != DIOH_ENGINE_IO_URING))
			continue;
		saves += each(&way, true, save_with);
		(void)unlink(image);
		set_fault(NULL, 0, 0);
		assert_true(specimen_save(&s));
		loads += each(&way, false, load_with);
	}
	alarm(0);
	print_message("%u faults in saves, %u in loads\n", saves, loads);
}

static void raw(void **state)
{
	(void)state;
	every_one(DIOH_LAYOUT_RAW);
}

static void container(void **state)
{
	(void)state;
	every_one(DIOH_LAYOUT_CONTAINER);
}

static void mapped_ram(void **state)
{
	(void)state;
	every_one(DIOH_LAYOUT_MAPPED_RAM);
}

/* false: there are not so many I/Os. */
static bool stream_fails(unsigned index, bool save)
{
	static const struct way way = { .layout = DIOH_LAYOUT_CONTAINER };
	struct specimen s = specimen(&way);
	bool ok, hit;

	set_fault("stream", index, 0);
	ok = save ? specimen_save(&s) : specimen_load(&s, way.layout) == SPECIMEN_IS_NEW;
	hit = was_hit();
	assert_int_equal(ok, !hit);
	if (hit && (s.err.code != EAGAIN || s.err.object != DIOH_OBJECT_STREAM ||
	            s.err.operation != (save ? DIOH_OP_READ : DIOH_OP_WRITE)))
		fail_msg("I/O %u: code %d, operation %u, object %u: %s", index, s.err.code, s.err.operation, s.err.object, s.err.text);
	return hit;
}

static void streams(void **state)
{
	unsigned saves = 0, loads = 0;

	(void)state;
	while (stream_fails(saves, true))
		saves++;
	while (stream_fails(loads, false))
		loads++;
	alarm(0);
	assert_true(saves > 0 && loads > 0);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(raw),
		cmocka_unit_test(container),
		cmocka_unit_test(mapped_ram),
		cmocka_unit_test(streams),
	};

	(void)argc;
	fixture_prefer_tmpfs();
	(void)snprintf(healthy, sizeof(healthy), "%s", fixture_helper());
	(void)snprintf(faulty, sizeof(faulty), "%.*s/faulty_engine", (int)(strrchr(argv[0], '/') - argv[0]), argv[0]);
	(void)snprintf(image, sizeof(image), "%s", fixture_path("image"));
	messages = must_memfd("messages", 0, 0);
	return cmocka_run_group_tests(tests, specimen_prepare, NULL);
}
