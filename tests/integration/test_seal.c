/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test_seal.c - what a helper has given up: the start with whatever its manager left behind, and SEAL, as the kernel
 * tells about every thread. Runs as root, where there is much to give up, and as anybody.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/landlock.h>
#include <poll.h>
#include <pwd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cleanup.h"
#include "fixture.h"
#include "proto.h"
#include "raw_manager.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define SAVE DIOH_DIRECTION_SAVE
#define USER 12345 /* somebody, where root can become him */
#define CAP_SETPCAP_BIT (UINT64_C(1) << 8)

#define ALWAYS (DIOH_LAYER_STRAYS_CLOSED | DIOH_LAYER_NO_CAPABILITIES | DIOH_LAYER_NO_NEW_PRIVS)

/* Sanitizers want to look at their process. */
static bool is_sanitized(void)
{
	const char *sanitize = getenv("DIOH_SANITIZE");

	return sanitize && *sanitize;
}

/* What a sanitizer does not ask for, and a change of identity may bring all the same. */
#define DEPENDS (is_sanitized() ? (uint32_t)DIOH_LAYER_NOT_DUMPABLE : 0)

static bool has_landlock(void)
{
	return !is_sanitized() && syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION) >= 1;
}

static bool has_io_uring(void)
{
	return syscall(SYS_io_uring_setup, 0, NULL) < 0 && errno == EFAULT; /* else ENOSYS, EPERM */
}

/* What this kernel can give a helper that is started like that. */
static uint32_t layers_here(bool root, bool not_root_after)
{
	return ALWAYS | DIOH_LAYER_SECCOMP | DIOH_LAYER_RING_RESTRICTIONS | (is_sanitized() ? 0 : DIOH_LAYER_NOT_DUMPABLE) |
	       (has_landlock() ? DIOH_LAYER_LANDLOCK : 0) | (root ? DIOH_LAYER_SECUREBITS : 0) |
	       (not_root_after ? DIOH_LAYER_NOT_ROOT : 0);
}

static struct dioh_msg_seal_reply seal(struct raw_manager *m, uint32_t required)
{
	const struct dioh_msg_seal request = { .required = required };
	struct dioh_msg_seal_reply reply;

	raw_call(m, DIOH_MSG_SEAL, &request, sizeof(request), &reply, sizeof(reply));
	assert_int_equal(reply.reserved, 0);
	return reply;
}

/* ---- what the kernel says ---- */

static void check_thread(const char *path, bool root)
{
	assert_true(raw_proc_status(path, "CapEff", 16) == 0);
	assert_true(raw_proc_status(path, "CapPrm", 16) == 0);
	assert_true(raw_proc_status(path, "CapInh", 16) == 0);
	assert_true(raw_proc_status(path, "CapAmb", 16) == 0);
	if (root && raw_proc_status("/proc/self/status", "CapEff", 16) & CAP_SETPCAP_BIT)
		assert_true(raw_proc_status(path, "CapBnd", 16) == 0);
	assert_int_equal(raw_proc_status(path, "NoNewPrivs", 10), 1);
	assert_int_equal(raw_proc_status(path, "Seccomp", 10), 2);
}

static void check_ids(const char *path, uint32_t uid, uint32_t gid)
{
	char expected[128], line[512];
	FILE *file = fopen(path, "re");
	unsigned found = 0;

	assert_non_null(file);
	while (fgets(line, sizeof(line), file)) {
		uint32_t id = strncmp(line, "Uid:", 4) == 0 ? uid : gid;

		if (strncmp(line, "Uid:", 4) != 0 && strncmp(line, "Gid:", 4) != 0)
			continue;
		snprintf(expected, sizeof(expected), "%.4s\t%u\t%u\t%u\t%u\n", line, id, id, id, id);
		assert_string_equal(line, expected);
		found++;
	}
	fclose(file);
	assert_int_equal(found, 2);
}

/* io_uring's own threads come and go with the process' credentials. */
static bool is_ring_thread(const char *directory)
{
	char path[128], name[64] = "";
	FILE *file;

	snprintf(path, sizeof(path), "%.100s/comm", directory);
	file = fopen(path, "re");
	assert_non_null(file);
	(void)!fgets(name, sizeof(name), file);
	fclose(file);
	return strncmp(name, "iou-", 4) == 0;
}

/* How many threads there are, each of them checked. */
static unsigned check_threads(const struct raw_manager *m, const struct dioh_msg_seal_reply *reply)
{
	char directory[64], path[96], task[112];
	const struct dirent *entry;
	unsigned count = 0;
	DIR *dir;

	snprintf(directory, sizeof(directory), "/proc/%d/task", (int)m->pid);
	dir = opendir(directory);
	assert_non_null(dir);
	while ((entry = readdir(dir))) {
		if (!isdigit((unsigned char)entry->d_name[0]))
			continue;
		snprintf(path, sizeof(path), "%s/%.20s", directory, entry->d_name);
		snprintf(task, sizeof(task), "%s/status", path);
		check_thread(task, getuid() == 0);
		check_ids(task, reply->uid, reply->gid);
		count += !is_ring_thread(path);
	}
	closedir(dir);
	return count;
}

/* ---- SEAL ---- */

static void check_layers(const struct dioh_msg_seal_reply *reply)
{
	const uint32_t expected = layers_here(geteuid() == 0, reply->uid != 0 && reply->gid != 0);

	assert_int_equal(reply->layers & ~(DIOH_LAYER_SELINUX | DEPENDS), expected & ~DEPENDS);
	if (reply->context[0] == '\0')
		assert_int_equal(reply->layers & DIOH_LAYER_SELINUX, 0);
}

static void sealed_with(const char *const *args, uint32_t workers, struct dioh_msg_seal_reply *ret_reply)
{
	struct dioh_msg_attach_image image = { .fds = DIOH_IMAGE_FD_BUFFERED, .direction = SAVE, .workers = workers };
	struct raw_options options = RAW_OPTIONS_INIT;
	int fd = raw_open_image(fixture_path("image"), SAVE);
	struct raw_manager m;
	uint32_t id;

	options.args = args;
	raw_reach(&m, &options, NULL, SAVE, RAW_STAGE_ATTACH);
	id = raw_request_fds(&m, DIOH_MSG_ATTACH_IMAGE, &image, sizeof(image), &fd, 1);
	raw_reply(&m, DIOH_MSG_ATTACH_IMAGE, id, NULL, 0);
	*ret_reply = seal(&m, ALWAYS | DIOH_LAYER_SECCOMP | DIOH_LAYER_RING_RESTRICTIONS);
	check_layers(ret_reply);
	assert_int_equal(ret_reply->threads, workers + 2);
	assert_int_equal(check_threads(&m, ret_reply), workers + 2);
	assert_true(ret_reply->engine == DIOH_ENGINE_IO_URING || ret_reply->engine == DIOH_ENGINE_SYNC);
	raw_hang_up(&m);
	raw_ends(&m, 0);
	close(fd);
}

static void sealed_helper_has_nothing_left(void **state)
{
	const struct passwd *user = getpwnam("diohelper");
	struct dioh_msg_seal_reply reply;

	(void)state;
	for (uint32_t workers = 1; workers <= 4; workers += 3) {
		sealed_with(NULL, workers, &reply);
		if (!user)
			user = getpwnam("nobody");
		assert_int_equal(reply.uid, getuid() != 0 ? getuid() : user ? user->pw_uid : 65534);
		assert_int_equal(reply.gid, getuid() != 0 ? getgid() : user ? user->pw_gid : 65534);
	}
}

static void sealed_helper_keeps_its_uid(void **state)
{
	static const char *const args[] = { "--keep-uid", NULL };
	struct dioh_msg_seal_reply reply;

	(void)state;
	sealed_with(args, 1, &reply);
	assert_int_equal(reply.uid, getuid());
	assert_int_equal(reply.gid, getgid());
}

static void sealed_helper_becomes_whom_it_is_told(void **state)
{
	static const char *const args[] = { "--user=12345:23456", NULL };
	struct dioh_msg_seal_reply reply;

	(void)state;
	sealed_with(args, 1, &reply);
	assert_int_equal(reply.uid, getuid() == 0 ? 12345 : getuid());
	assert_int_equal(reply.gid, getuid() == 0 ? 23456 : getgid());
}

/* More than it keeps a limit of descriptors for. */
static void sealed_helper_with_many_memories(void **state)
{
	const uint32_t required = layers_here(geteuid() == 0, geteuid() != 0) & ~DEPENDS;
	struct raw_manager m;

	(void)state;
	raw_reach(&m, NULL, fixture_path("image"), SAVE, RAW_STAGE_IMAGE);
	for (uint32_t i = 0; i < 100; i++) {
		const struct dioh_msg_attach_memory memory = { .memory = 100 + i, .fds = DIOH_MEMORY_FD_MEMORY };
		int memfd = memfd_create("memory", MFD_CLOEXEC);

		assert_int_equal(ftruncate(memfd, 4096), 0);
		raw_reply(&m, DIOH_MSG_ATTACH_MEMORY,
		          raw_request_fds(&m, DIOH_MSG_ATTACH_MEMORY, &memory, sizeof(memory), &memfd, 1), NULL, 0);
		close(memfd);
	}
	(void)seal(&m, required);
	raw_hang_up(&m);
	raw_ends(&m, 0);
}

static void expect_content(const char *path, const char *content)
{
	char bytes[256] = "";
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = read(fd, bytes, sizeof(bytes) - 1);

	close(fd);
	assert_int_equal(n, strlen(content));
	assert_string_equal(bytes, content);
}

/* Layer by layer; what is to be had is granted, what is not ends the session with the image as it was. */
static void require_each(const struct raw_options *options, uint32_t here)
{
	static const char content[] = "what stood there before";

	for (uint32_t layer = 1; layer <= DIOH_LAYER_SELINUX; layer <<= 1) {
		const struct dioh_msg_seal request = { .required = layer };
		const char *path = fixture_path("precious");
		int fd = layer & DEPENDS ? -1 : open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
		struct dioh_msg_error error;
		struct raw_manager m;

		if (layer & DEPENDS)
			continue;
		assert_int_equal(write(fd, content, strlen(content)), strlen(content));
		close(fd);
		raw_reach(&m, options, path, SAVE, RAW_STAGE_IMAGE);
		if (here & layer) {
			assert_true(seal(&m, layer).layers & layer);
			raw_hang_up(&m);
			raw_ends(&m, 0);
		} else {
			error = raw_call_refused(&m, DIOH_MSG_SEAL, &request, sizeof(request), EPERM, dioh_layer_name(layer));
			assert_int_equal(error.operation, DIOH_OP_SEAL);
			assert_int_equal(error.object, DIOH_OBJECT_SESSION);
			raw_ends(&m, 1);
		}
		expect_content(path, content);
	}
}

/* Of several, the one that is missing is named. */
static void missing_one_of_many_is_named(void **state)
{
	const struct dioh_msg_seal request = { .required = ALWAYS | DIOH_LAYER_SECCOMP };
	struct raw_options options = RAW_OPTIONS_INIT;
	struct raw_manager m;

	(void)state;
	options.no_seccomp = true;
	raw_reach(&m, &options, fixture_path("image"), SAVE, RAW_STAGE_IMAGE);
	raw_call_refused(&m, DIOH_MSG_SEAL, &request, sizeof(request), EPERM, "seccomp");
	raw_ends(&m, 1);
}

static bool selinux_is_on(void)
{
	int fd = open("/proc/self/attr/current", O_RDONLY | O_CLOEXEC);
	char context[256] = "";
	ssize_t n = fd < 0 ? -1 : read(fd, context, sizeof(context) - 1);

	if (fd >= 0)
		close(fd);
	return n > 0 && strchr(context, ':') != strrchr(context, ':');
}

static void every_layer_may_be_required(void **state)
{
	static const char *const keep[] = { "--keep-uid", NULL };
	const bool root = geteuid() == 0;
	const uint32_t here = layers_here(root, true);
	struct raw_options options = RAW_OPTIONS_INIT;

	(void)state;
	if (selinux_is_on()) {
		print_message("skipped: SELinux is on, which tests/vm has\n");
		skip();
	}
	require_each(&options, here);
	options.no_landlock = true;
	require_each(&options, here & ~(uint32_t)DIOH_LAYER_LANDLOCK);
	options = (struct raw_options)RAW_OPTIONS_INIT;
	options.no_seccomp = true;
	require_each(&options, here & ~(uint32_t)DIOH_LAYER_SECCOMP);
	options = (struct raw_options)RAW_OPTIONS_INIT;
	options.no_restrictions = true;
	require_each(&options, has_io_uring() ? here & ~(uint32_t)DIOH_LAYER_RING_RESTRICTIONS : here);
	options.no_io_uring = true; /* no ring, nothing to restrict */
	require_each(&options, here);
	options = (struct raw_options)RAW_OPTIONS_INIT;
	options.args = keep;
	require_each(&options, layers_here(root, !root));
	options.user = USER;
	require_each(&options, layers_here(false, true));
}

static void unknown_layer_is_only_refused(void **state)
{
	const struct dioh_msg_seal request = { .required = 1u << 30 };
	struct raw_manager m;

	(void)state;
	raw_reach(&m, NULL, fixture_path("image"), SAVE, RAW_STAGE_IMAGE);
	raw_call_refused(&m, DIOH_MSG_SEAL, &request, sizeof(request), EINVAL, "required");
	(void)seal(&m, 0);
	assert_int_equal(raw_status_phase(&m), DIOH_PHASE_READY);
	raw_hang_up(&m);
	raw_ends(&m, 0);
}

/* ---- another process of the same user ---- */

/* How tracing ends for who has the same uid and no privilege: 0 or errno. */
static int trace_as_user(pid_t pid)
{
	int status;
	pid_t child = fork();

	if (child == 0) {
		if (geteuid() == 0 && (setresgid(USER, USER, USER) < 0 || setresuid(USER, USER, USER) < 0))
			_exit(255);
		_exit(ptrace(PTRACE_SEIZE, pid, NULL, NULL) < 0 ? errno : 0);
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFEXITED(status));
	return WEXITSTATUS(status);
}

static pid_t ordinary_process(void)
{
	int ready[2];
	pid_t pid;
	char byte;

	assert_int_equal(pipe(ready), 0);
	pid = fork();
	if (pid == 0) {
		if (geteuid() == 0 && (setresgid(USER, USER, USER) < 0 || setresuid(USER, USER, USER) < 0))
			_exit(99);
		prctl(PR_SET_PDEATHSIG, SIGKILL); /* a failed test leaves nobody behind */
		prctl(PR_SET_DUMPABLE, 1);
		prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY); /* where Yama is */
		(void)!write(ready[1], "", 1);
		for (;;)
			pause();
	}
	assert_int_equal(read(ready[0], &byte, 1), 1);
	close(ready[0]);
	close(ready[1]);
	return pid;
}

/* From the start on, as serve's and the drop-in's user may be that of other helpers. */
static void nobody_of_the_same_user_traces_it(void **state)
{
	struct raw_options options = RAW_OPTIONS_INIT;
	struct raw_manager m;
	pid_t other;

	(void)state;
	if (is_sanitized()) {
		print_message("skipped: a sanitizer looks at its own process\n");
		skip();
	}
	other = ordinary_process();
	assert_int_equal(trace_as_user(other), 0); /* else this test would show nothing */
	kill(other, SIGKILL);
	waitpid(other, NULL, 0);
	options.user = USER;
	raw_reach(&m, &options, fixture_path("image"), SAVE, RAW_STAGE_IMAGE);
	assert_int_equal(trace_as_user(m.pid), EPERM);
	(void)seal(&m, DIOH_LAYER_NOT_DUMPABLE);
	assert_int_equal(trace_as_user(m.pid), EPERM);
	raw_hang_up(&m);
	raw_ends(&m, 0);
}

/* ---- the start ---- */

/* One below and one above what the helper could open. */
static void strays_are_closed(void **state)
{
	struct raw_options options = { .fd_number = 3, .descriptors_max = 256 };

	(void)state;
	for (int i = 0; i < 4; i++) {
		struct pollfd reader;
		struct raw_manager m;
		int ends[2], inherited;

		assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
		inherited = fcntl(ends[1], F_DUPFD, i & 1 ? 500 : 5);
		assert_true(inherited >= 5);
		close(ends[1]);
		options.no_close_range = i & 2;
		raw_reach(&m, &options, NULL, SAVE, RAW_STAGE_ATTACH);
		close(inherited);
		reader = (struct pollfd){ ends[0], POLLIN, 0 };
		assert_int_equal(poll(&reader, 1, 5000), 1);
		assert_true(reader.revents & POLLHUP);
		raw_hang_up(&m);
		raw_ends(&m, 0);
		close(ends[0]);
	}
}

/* Whatever number the control socket has, messages for people go neither into it nor into what is attached. */
static void any_control_descriptor_does(void **state)
{
	static const int numbers[] = { 0, 1, 2, 3, 4, 77 };
	static const uint8_t malformed[20] = { DIOH_MSG_STATUS, 0, 0, 0, 0, 0, 0, 0, 99 };

	(void)state;
	for (size_t i = 0; i < COUNT(numbers); i++) {
		struct raw_options options = RAW_OPTIONS_INIT;
		const char *path = fixture_path("untouched");
		struct raw_manager m;
		struct raw_packet *packet = malloc(sizeof(*packet));
		struct stat st;

		assert_non_null(packet);
		options.fd_number = numbers[i];
		raw_reach(&m, &options, path, SAVE, RAW_STAGE_IMAGE);
		assert_true(raw_send(&m, malformed, sizeof(malformed), NULL, 0));
		raw_refused(&m, DIOH_MSG_STATUS, 99, EBADMSG, NULL);
		assert_false(raw_receive(&m, packet)); /* nothing but the end comes behind it */
		raw_ends(&m, 1);
		assert_int_equal(stat(path, &st), 0);
		assert_int_equal(st.st_size, 0);
		free(packet);
	}
}

/* The attach timer is of no use when SIGALRM does not reach the helper. */
static void alarm_is_armed_whatever_was_inherited(void **state)
{
	struct raw_options options = RAW_OPTIONS_INIT;
	const uint64_t bit = UINT64_C(1) << (SIGALRM - 1);
	struct raw_manager m;
	char path[64];

	(void)state;
	options.alarm_blocked = true;
	raw_reach(&m, &options, NULL, SAVE, RAW_STAGE_ATTACH);
	snprintf(path, sizeof(path), "/proc/%d/status", (int)m.pid);
	assert_true((raw_proc_status(path, "SigBlk", 16) & bit) == 0);
	assert_true((raw_proc_status(path, "SigIgn", 16) & bit) == 0);
	raw_hang_up(&m);
	raw_ends(&m, 0);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(sealed_helper_has_nothing_left),
		cmocka_unit_test(sealed_helper_keeps_its_uid),
		cmocka_unit_test(sealed_helper_becomes_whom_it_is_told),
		cmocka_unit_test(sealed_helper_with_many_memories),
		cmocka_unit_test(every_layer_may_be_required),
		cmocka_unit_test(missing_one_of_many_is_named),
		cmocka_unit_test(unknown_layer_is_only_refused),
		cmocka_unit_test(nobody_of_the_same_user_traces_it),
		cmocka_unit_test(strays_are_closed),
		cmocka_unit_test(any_control_descriptor_does),
		cmocka_unit_test(alarm_is_armed_whatever_was_inherited),
	};

	if (!is_sanitized() && !has_landlock())
		printf("skipped: no Landlock here\n");
	return cmocka_run_group_tests_name("seal", tests, NULL, NULL);
}
