/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test_root_hang_header.c - a disk that does not answer the header path: while an image is created (a write, a size, a sync)
 * and while one is opened (a read). The session goes on talking: STATUS and CANCEL are answered, everything else is refused,
 * STUCK comes; when the disk is back the reply comes (to an opening that it was cancelled). Or the manager goes, and then the
 * helper. test_root_hang.c has pages and FINISH.
 */
/* timeout: 120 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fixture.h"
#include "raw_manager.h"
#include "sick_disk.h"

#define SAVE DIOH_DIRECTION_SAVE
#define LOAD DIOH_DIRECTION_LOAD
#define HANG_S 60

struct place { /* where it hangs */
	uint32_t direction;
	enum raw_stage stage; /* before it */
	uint32_t request;
	uint32_t opcode;
};

static const struct place creating_writes = { SAVE, RAW_STAGE_TABLE, DIOH_MSG_PUT_TABLE, FUSE_WRITE };
static const struct place creating_sizes = { SAVE, RAW_STAGE_TABLE, DIOH_MSG_PUT_TABLE, FUSE_SETATTR };
static const struct place creating_syncs = { SAVE, RAW_STAGE_TABLE, DIOH_MSG_PUT_TABLE, FUSE_FSYNC };
static const struct place opening_reads = { LOAD, RAW_STAGE_SEALED, DIOH_MSG_OPEN_IMAGE, FUSE_READ };

static struct fuse_file *file;
static struct raw_manager m;
static bool running;

/* A helper that waits for the disk, in the middle of a request: the id of that. */
static uint32_t hang(const struct place *place)
{
	static const char *const args[] = { "--keep-uid", "--stuck-timeout=1", NULL };
	const struct fuse_file_options options = { .direct_all = true };
	struct raw_options raw = RAW_OPTIONS_INIT;
	uint8_t payload[DIOH_PAYLOAD_BYTES_MAX];
	uint32_t id;

	alarm(HANG_S);
	file = sick_file(&options);
	raw_make_image(fuse_file_path(file));
	raw.args = args;
	raw_reach(&m, &raw, fuse_file_path(file), place->direction, place->stage);
	running = true;
	fuse_file_fault(file, place->opcode, .kind = FUSE_FAULT_HOLD, .times = 1);
	id = raw_request(&m, place->request, payload, raw_sample(place->request, place->direction, payload));
	while (fuse_file_held(file) == 0)
		(void)poll(NULL, 0, 1);
	return id;
}

static struct dioh_msg_stuck next_stuck(void)
{
	static struct raw_packet packet;
	struct dioh_msg_stuck stuck;

	do
		assert_true(raw_receive(&m, &packet));
	while (packet.header.type == DIOH_MSG_PROGRESS);
	assert_int_equal(packet.header.type, DIOH_MSG_STUCK);
	assert_int_equal(packet.header.size, sizeof(stuck));
	memcpy(&stuck, packet.payload, sizeof(stuck));
	return stuck;
}

static void hangs_and_goes_on(void **state)
{
	const struct place *place = *state;
	const struct dioh_msg_get_table table = { .count = 1 };
	const uint32_t id = hang(place);
	struct dioh_msg_status_reply status;
	struct dioh_msg_stuck stuck;

	raw_call(&m, DIOH_MSG_STATUS, NULL, 0, &status, sizeof(status));
	assert_int_equal(status.phase, DIOH_PHASE_SYNC);
	assert_int_equal(status.in_flight, 0); /* of pages */
	raw_call_refused(&m, DIOH_MSG_GET_TABLE, &table, sizeof(table), EBUSY, NULL);
	stuck = next_stuck();
	assert_int_equal(stuck.in_flight, 1);
	assert_true(stuck.oldest_ns >= UINT64_C(1000000000));
	assert_true(next_stuck().oldest_ns >= UINT64_C(2000000000)); /* said again */
	raw_call(&m, DIOH_MSG_CANCEL, &(const struct dioh_msg_cancel){ 0 }, sizeof(struct dioh_msg_cancel), NULL, 0);
	assert_int_equal(fuse_file_held(file), 1); /* nothing of this has waited for the disk */
	fuse_file_release(file, 0);
	if (place->direction == LOAD) /* what only looks has heard the CANCEL */
		raw_refused(&m, place->request, id, ECANCELED, NULL);
	else
		raw_reply(&m, place->request, id, NULL, 0);
	raw_hang_up(&m);
	raw_ends(&m, place->direction == SAVE);
}

static void hangs_and_the_manager_goes(void **state)
{
	const struct place *place = *state;
	int status;

	(void)hang(place);
	raw_hang_up(&m);
	(void)poll(NULL, 0, 300);
	fuse_file_release(file, 0);
	status = raw_wait(&m);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 1); /* something was under way */
	running = false;
}

static int tear_down(void **state)
{
	(void)state;
	alarm(0);
	fuse_file_stop(file); /* what waited for the disk has its answer now */
	file = NULL;
	if (running)
		raw_drop(&m);
	running = false;
	return 0;
}

#define CASE(test, place) { #test " (" #place ")", test, NULL, tear_down, (void *)(uintptr_t)&(place) }
#define CASES(place) CASE(hangs_and_goes_on, place), CASE(hangs_and_the_manager_goes, place)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASES(creating_writes),
		CASES(creating_sizes),
		CASES(creating_syncs),
		CASES(opening_reads),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
