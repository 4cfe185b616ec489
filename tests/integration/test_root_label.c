/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test_root_label.c - owner and mode as a root manager has them set, and the capabilities that a helper keeps for that:
 * those that its command line calls for, from its start to the seal, and no others. Labels take SELinux: tests/vm.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fixture.h"
#include "raw_manager.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define SAVE DIOH_DIRECTION_SAVE
#define BIT(capability) (UINT64_C(1) << (CAP_##capability))
#define OWNER DIOH_IMAGE_ASK_OWNER
#define MODE DIOH_IMAGE_ASK_MODE

static void check_sets(const struct raw_manager *m, uint64_t expected)
{
	static const char *const sets[] = { "CapEff", "CapPrm", "CapInh", "CapAmb" };
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/status", (int)m->pid);
	for (size_t i = 0; i < COUNT(sets); i++) {
		uint64_t found = raw_proc_status(path, sets[i], 16);

		if (found != (i < 2 ? expected : 0))
			fail_msg("%s is 0x%llx, not 0x%llx", sets[i], (unsigned long long)found,
			         (unsigned long long)(i < 2 ? expected : 0));
	}
}

static void capabilities_during_attach(void **state)
{
	static const uint64_t change = BIT(SETUID) | BIT(SETGID);
	static const struct {
		const char *args[3];
		uid_t user;
		uint64_t expected;
	} cases[] = {
		{ { NULL }, 0, BIT(SETPCAP) | change },
		{ { "--keep-uid" }, 0, BIT(SETPCAP) },
		{ { "--allow=label" }, 0, BIT(SETPCAP) | change | BIT(FOWNER) },
		{ { "--allow=owner" }, 0, BIT(SETPCAP) | change | BIT(CHOWN) },
		{ { "--allow=mode" }, 0, BIT(SETPCAP) | change | BIT(FOWNER) },
		{ { "--allow=label,owner,mode" }, 0, BIT(SETPCAP) | change | BIT(FOWNER) | BIT(CHOWN) },
		{ { "--keep-uid", "--allow=owner" }, 0, BIT(SETPCAP) | BIT(CHOWN) },
		{ { "--keep-uid", "--allow=mode,owner" }, 0, BIT(SETPCAP) | BIT(FOWNER) | BIT(CHOWN) },
		{ { "--allow=label,owner,mode" }, 12345, 0 },
	};

	(void)state;
	for (size_t i = 0; i < COUNT(cases); i++) {
		struct raw_options options = RAW_OPTIONS_INIT;
		const struct dioh_msg_seal seal = { .required = DIOH_LAYER_NO_CAPABILITIES };
		struct raw_manager m;

		options.args = cases[i].args;
		options.user = cases[i].user;
		raw_reach(&m, &options, fixture_path("image"), SAVE, RAW_STAGE_IMAGE);
		check_sets(&m, cases[i].expected);
		raw_call(&m, DIOH_MSG_SEAL, &seal, sizeof(seal), NULL, 0);
		check_sets(&m, 0);
		raw_hang_up(&m);
		raw_ends(&m, 0);
	}
}

/* An image of 4321:8765, mode 0600: not ours, which is what makes FOWNER needed. */
static int others_image(void)
{
	int fd = open(fixture_path("others"), O_RDWR | O_CREAT | O_CLOEXEC, 0600);

	assert_int_equal(fchown(fd, 4321, 8765), 0);
	assert_int_equal(fchmod(fd, 0600), 0);
	return fd;
}

static void check_image(int fd, uid_t uid, gid_t gid, mode_t mode)
{
	struct stat st;

	assert_int_equal(fstat(fd, &st), 0);
	assert_int_equal(st.st_uid, uid);
	assert_int_equal(st.st_gid, gid);
	assert_int_equal(st.st_mode & 07777, mode);
}

static uint32_t ask(struct raw_manager *m, const char *const *args, uint32_t what, int fd)
{
	const struct dioh_msg_attach_image image = {
		.fds = DIOH_IMAGE_FD_BUFFERED, .direction = SAVE, .ask = what,
		.uid = what & OWNER ? 1111 : 0, .gid = what & OWNER ? 2222 : 0, .mode = what & MODE ? 0440 : 0,
	};
	struct raw_options options = RAW_OPTIONS_INIT;

	options.args = args;
	raw_reach(m, &options, NULL, SAVE, RAW_STAGE_ATTACH);
	return raw_request_fds(m, DIOH_MSG_ATTACH_IMAGE, &image, sizeof(image), &fd, 1);
}

static void owner_and_mode_are_set(void **state)
{
	static const struct {
		const char *args[3];
		uint32_t ask;
	} cases[] = {
		{ { "--allow=owner" }, OWNER },
		{ { "--allow=mode" }, MODE },
		{ { "--allow=owner,mode" }, OWNER | MODE },
		{ { "--allow=mode,owner,label" }, OWNER },
		{ { "--keep-uid", "--allow=owner,mode" }, OWNER | MODE },
		{ { "--allow=owner", "--allow=mode" }, OWNER | MODE },
	};

	(void)state;
	for (size_t i = 0; i < COUNT(cases); i++) {
		const struct dioh_msg_seal seal = { 0 };
		struct dioh_msg_attach_image_reply reply;
		int fd = others_image();
		struct raw_manager m;

		raw_reply(&m, DIOH_MSG_ATTACH_IMAGE, ask(&m, cases[i].args, cases[i].ask, fd), &reply, sizeof(reply));
		assert_int_equal(reply.done, cases[i].ask);
		check_image(fd, cases[i].ask & OWNER ? 1111 : 4321, cases[i].ask & OWNER ? 2222 : 8765,
		            cases[i].ask & MODE ? 0440 : 0600);
		raw_call(&m, DIOH_MSG_SEAL, &seal, sizeof(seal), NULL, 0); /* it can still write to what is now others' */
		raw_hang_up(&m);
		raw_ends(&m, 0);
		close(fd);
	}
}

static void what_is_not_allowed_is_not_set(void **state)
{
	static const struct {
		const char *args[2];
		uint32_t ask;
		const char *text;
	} cases[] = {
		{ { NULL }, OWNER, "--allow=owner" },
		{ { NULL }, MODE, "--allow=mode" },
		{ { "--allow=owner" }, OWNER | MODE, "--allow=mode" },
		{ { "--allow=mode,label" }, OWNER | MODE, "--allow=owner" },
	};

	(void)state;
	for (size_t i = 0; i < COUNT(cases); i++) {
		int fd = others_image();
		struct raw_manager m;

		raw_refused(&m, DIOH_MSG_ATTACH_IMAGE, ask(&m, cases[i].args, cases[i].ask, fd), EPERM, cases[i].text);
		check_image(fd, 4321, 8765, 0600);
		raw_hang_up(&m);
		raw_ends(&m, 0);
		close(fd);
	}
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(capabilities_during_attach),
		cmocka_unit_test(owner_and_mode_are_set),
		cmocka_unit_test(what_is_not_allowed_is_not_set),
	};

	if (geteuid() != 0) {
		printf("this needs root\n");
		return 77;
	}
	return cmocka_run_group_tests_name("label, owner, mode as root", tests, NULL, NULL);
}
