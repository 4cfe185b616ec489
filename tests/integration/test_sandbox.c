/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test_sandbox.c - what code inside a sealed helper can still do: attack by attack, with each layer of the seal alone
 * and with all of them, as serve and as the drop-in, in the main thread and in a worker. The table below says beforehand
 * how each of them must end; attacker.c is the helper that carries them out. Best run by root, since most of what is to
 * be taken away is root's; anybody else tries what he can.
 *
 * $SANDBOX_PRINT=1 prints the tables as they came out.
 */
/* timeout: 180 */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <sys/mount.h> /* before linux/fs.h, for a glibc before 2.36 */
#include <fcntl.h>
#include <ftw.h>
#include <liburing.h>
#include <linux/landlock.h>
#include <netinet/in.h>
#include <seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "attacker.h"
#include "fixture.h"
#include "raw_manager.h"
#include "sandbox.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define TEXT_BYTES 16

/* ---- the table ---- */

enum column { NONE, IDS, CAPABILITIES, SECUREBITS, NO_NEW_PRIVS, LANDLOCK, RING, SECCOMP, ALL, COLUMNS };

static const struct {
	const char *name;
	unsigned layers;
} columns[COLUMNS] = {
	[NONE] = { "none", 0 },
	[IDS] = { "ids", LAYER_IDS },
	[CAPABILITIES] = { "capab.", LAYER_CAPABILITIES },
	[SECUREBITS] = { "secureb.", LAYER_SECUREBITS },
	[NO_NEW_PRIVS] = { "no-new-p.", LAYER_NO_NEW_PRIVS },
	[LANDLOCK] = { "Landlock", LAYER_LANDLOCK },
	[RING] = { "ring", LAYER_RING },
	[SECCOMP] = { "seccomp", LAYER_SECCOMP },
	[ALL] = { "all", LAYER_ALL },
};

enum where { /* a row is for some of these */
	SERVE = 1 << 0,
	DROP_IN = 1 << 1,
	MAIN = 1 << 2,
	WORKER = 1 << 3,
	BOTH_MODES = SERVE | DROP_IN,
	EVERYWHERE = BOTH_MODES | MAIN | WORKER,
};

#define AS_ROOT 1        /* nothing to be seen by anybody else, but what seccomp does */
#define NOT_EVERYWHERE 2 /* a kernel may be without it */
#define ONE_ISSUER 4     /* of a ring that is one thread's */

struct row {
	const char *attack;
	unsigned where;
	unsigned flags;
	int landlock_abi; /* the first that stops it; before, it is "ok" there */
	const char *cells[COLUMNS];
};

/*
 * "ok": the attack succeeds: the layer is not made for that. An errno: refused. KILL: the process is killed. TRAP: it ends
 * with a message and status 1. The drop-in keeps its uid: for it, "ids" is as "none".
 */
#define ok "ok"
#define EACC "EACCES"
#define EPRM "EPERM"
#define ERNG "EEXIST" /* the ring belongs to the worker alone */
static const struct row table[] = {
	/* attack                where        flags  ABI  none  ids   capab secur nnp   landl ring  seccomp all */
	{ "open",                EVERYWHERE, 0,       1, { ok, ok, ok, ok, ok, EACC, ok, "TRAP", "TRAP" } },
	{ "open a secret",       EVERYWHERE, 0,       1, { ok, EACC, ok, ok, ok, EACC, ok, "TRAP", "TRAP" } },
	{ "openat2",             EVERYWHERE, 0,       1, { ok, ok, ok, ok, ok, EACC, ok, "TRAP", "TRAP" } },
	/* Landlock looks at what may be done with an open file; with O_PATH that is nothing. */
	{ "open O_PATH",         EVERYWHERE, 0,       0, { ok, ok, ok, ok, ok, ok, ok, "TRAP", "TRAP" } },
	/* Nor is asking. The filter lets the call in for open files, and does not see whether there is a path. */
	{ "stat",                EVERYWHERE, 0,       0, { ok, ok, ok, ok, ok, ok, ok, ok, ok } },
	{ "write /proc/self/mem", EVERYWHERE, 0,      1, { ok, EACC, ok, ok, ok, EACC, ok, "TRAP", "TRAP" } },
	{ "socket AF_INET",      EVERYWHERE, 0,       0, { ok, ok, ok, ok, ok, ok, ok, "KILL", "KILL" } },
	{ "connect TCP",         EVERYWHERE, 0,       4, { ok, ok, ok, ok, ok, EACC, ok, "KILL", "KILL" } },
	{ "connect unix path",   EVERYWHERE, 0,       0, { ok, ok, ok, ok, ok, ok, ok, "KILL", "KILL" } },
	{ "connect abstract",    EVERYWHERE, 0,       6, { ok, ok, ok, ok, ok, EPRM, ok, "KILL", "KILL" } },
	{ "execve",              EVERYWHERE, 0,       1, { ok, ok, ok, ok, ok, EACC, ok, "KILL", "KILL" } },
	{ "execve for capabilities", EVERYWHERE, AS_ROOT, 1, { ok, EPRM, EPRM, EPRM, ok, EACC, ok, "KILL", "KILL" } },
	{ "execve set-uid",      EVERYWHERE, AS_ROOT, 1, { ok, ok, ok, ok, EPRM, EACC, ok, "KILL", "KILL" } },
	/* A program in memory, which needs no other file. */
	{ "memfd + execveat",    EVERYWHERE, 0,       0, { ok, ok, ok, ok, ok, ok, ok, "KILL", "KILL" } },
	/* Its tracer, who knows nothing of it, would have to wait for a thread before the process could end. */
	{ "ptrace TRACEME",      BOTH_MODES | MAIN, 0,       0, { ok, ok, ok, ok, ok, ok, ok, "KILL", "KILL" } },
	{ "ptrace the manager",  EVERYWHERE, AS_ROOT, 1, { ok, EPRM, EPRM, ok, ok, EPRM, ok, "KILL", "KILL" } },
	{ "kill the manager",    EVERYWHERE, 0,       6, { ok, EPRM, ok, ok, ok, EPRM, ok, "TRAP", "TRAP" } },
	{ "read manager's memory", EVERYWHERE, AS_ROOT, 1, { ok, EPRM, EPRM, ok, ok, EPRM, ok, "KILL", "KILL" } },
	{ "setuid(0)",           EVERYWHERE, AS_ROOT, 0, { ok, EPRM, ok, ok, ok, ok, ok, "KILL", "KILL" } },
	{ "io_uring_setup",      EVERYWHERE, 0,       0, { ok, ok, ok, ok, ok, ok, ok, "TRAP", "TRAP" } },
	{ "ring: register",      BOTH_MODES | WORKER, 0, 0, { ok, ok, ok, ok, ok, ok, EACC, "TRAP", "TRAP" } },
	{ "ring: register",      BOTH_MODES | MAIN, ONE_ISSUER, 0, { ERNG, ERNG, ERNG, ERNG, ERNG, ERNG, ERNG, "TRAP", "TRAP" } },
	/* What is held may go into the table: a stream's slot is emptied so. */
	{ "ring: update files",  BOTH_MODES | WORKER, 0, 0, { ok, ok, ok, ok, ok, ok, ok, ok, ok } },
	{ "ring: update files",  BOTH_MODES | MAIN, ONE_ISSUER, 0, { ERNG, ERNG, ERNG, ERNG, ERNG, ERNG, ERNG, ERNG, ERNG } },
	/* The filter cannot see what is in the ring. */
	{ "ring: raw descriptor", BOTH_MODES | WORKER, 0, 0, { ok, ok, ok, ok, ok, ok, EACC, ok, EACC } },
	{ "ring: raw descriptor", BOTH_MODES | MAIN, ONE_ISSUER, 0, { ERNG, ERNG, ERNG, ERNG, ERNG, ERNG, ERNG, ERNG, ERNG } },
	{ "ring: OPENAT",        BOTH_MODES | WORKER, 0, 1, { ok, ok, ok, ok, ok, EACC, EACC, ok, EACC } },
	{ "ring: OPENAT",        BOTH_MODES | MAIN, ONE_ISSUER, 0, { ERNG, ERNG, ERNG, ERNG, ERNG, ERNG, ERNG, ERNG, ERNG } },
	{ "ring: SOCKET",        BOTH_MODES | WORKER, NOT_EVERYWHERE, 0, { ok, ok, ok, ok, ok, ok, EACC, ok, EACC } },
	{ "mount",               EVERYWHERE, AS_ROOT, 1, { ok, EPRM, EPRM, ok, ok, EPRM, ok, "KILL", "KILL" } },
	{ "unshare",             EVERYWHERE, AS_ROOT, 0, { ok, EPRM, EPRM, ok, ok, ok, ok, "KILL", "KILL" } },
	{ "fork",                EVERYWHERE, 0,       0, { ok, ok, ok, ok, ok, ok, ok, "TRAP", "TRAP" } },
	{ "mprotect PROT_EXEC",  EVERYWHERE, 0,       0, { ok, ok, ok, ok, ok, ok, ok, "TRAP", "TRAP" } },
	{ "mmap PROT_EXEC",      EVERYWHERE, 0,       0, { ok, ok, ok, ok, ok, ok, ok, "TRAP", "TRAP" } },
	/* serve must hear its manager. Whether he sends one is his; the helper's own code would close it and end. */
	{ "receive a descriptor", SERVE | MAIN | WORKER, 0, 0, { ok, ok, ok, ok, ok, ok, ok, ok, ok } },
	{ "receive a descriptor", DROP_IN | MAIN | WORKER, 0, 0, { ok, ok, ok, ok, ok, ok, ok, "TRAP", "TRAP" } },
	{ "chmod",               EVERYWHERE, 0,       0, { ok, EPRM, ok, ok, ok, ok, ok, "TRAP", "TRAP" } },
	{ "bpf",                 EVERYWHERE, AS_ROOT | NOT_EVERYWHERE, 0,
	  { ok, EPRM, EPRM, ok, ok, ok, ok, "KILL", "KILL" } },
};

/* ---- one attack ---- */

static char public_dir[] = "/var/tmp/dioh-attack.XXXXXX"; /* where every uid comes */
static const char readable[] = "manager";
static int landlock_abi;
static bool root;
static bool one_issuer;
static pid_t owner; /* of that directory */

__attribute__((format(printf, 2, 3))) static void set(const char *name, const char *format, ...)
{
	char value[128];
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(value, sizeof(value), format, arguments);
	va_end(arguments);
	setenv(name, value, 1);
}

static void outcome_of(int status, char text[TEXT_BYTES])
{
	const int code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
	const char *name = code > ATTACK_FAILED && code < ATTACK_ALLOWED ? strerrorname_np(code - ATTACK_FAILED) : NULL;

	if (WIFSIGNALED(status))
		name = WTERMSIG(status) == SIGSYS ? "KILL" : sigabbrev_np(WTERMSIG(status));
	else if (code == ATTACK_ALLOWED)
		name = ok;
	else if (code == 1)
		name = "TRAP";
	snprintf(text, TEXT_BYTES, "%s", name ? name : "");
	if (!name)
		snprintf(text, TEXT_BYTES, "exit %d", code);
}

static int attack_serve(unsigned layers)
{
	static const char *const keep_uid[] = { "--keep-uid", NULL };
	const struct dioh_msg_attach_image image = { .fds = DIOH_IMAGE_FD_BUFFERED, .direction = DIOH_DIRECTION_SAVE };
	const struct dioh_msg_seal seal = { 0 };
	struct raw_options options = RAW_OPTIONS_INIT;
	int fd = raw_open_image(fixture_path("image"), DIOH_DIRECTION_SAVE);
	struct raw_manager m;

	options.args = layers & LAYER_IDS ? NULL : keep_uid;
	raw_reach(&m, &options, NULL, DIOH_DIRECTION_SAVE, RAW_STAGE_ATTACH);
	raw_reply(&m, DIOH_MSG_ATTACH_IMAGE, raw_request_fds(&m, DIOH_MSG_ATTACH_IMAGE, &image, sizeof(image), &fd, 1),
	          NULL, 0);
	raw_request(&m, DIOH_MSG_SEAL, &seal, sizeof(seal));
	raw_request_fds(&m, DIOH_MSG_STATUS, NULL, 0, &fd, 1); /* for whoever takes it */
	close(fd);
	return raw_wait(&m);
}

static void send_descriptor(int socket_fd)
{
	struct raw_manager m = { .fd = socket_fd };

	assert_true(raw_send(&m, "x", 1, &socket_fd, 1));
}

static _Noreturn void become_drop_in(const char *program, int image_fd, int output_fd)
{
	int moved = fcntl(image_fd, F_DUPFD, 10);

	if (dup2(output_fd, STDOUT_FILENO) < 0 || dup2(moved, 3) < 0)
		_exit(99);
	alarm(10);
	execl(program, program, "image", "3", (char *)NULL);
	_exit(99);
}

static int attack_drop_in(void)
{
	int fd = raw_open_image(fixture_path("image"), DIOH_DIRECTION_LOAD);
	int pair[2], status;
	pid_t pid;

	assert_int_equal(truncate(fixture_path("image"), 1), 0); /* an empty one is copied without an engine */
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
	send_descriptor(pair[0]);
	fflush(NULL);
	pid = fork();
	if (pid == 0)
		become_drop_in(fixture_helper(), fd, pair[1]);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	close(fd);
	close(pair[0]);
	close(pair[1]);
	return status;
}

static void attack(const struct row *row, unsigned where, enum column column, char text[TEXT_BYTES])
{
	unsigned layers = columns[column].layers;

	/* Who is not root may restrict himself only so. */
	if (!root && layers & (LAYER_LANDLOCK | LAYER_SECCOMP))
		layers |= LAYER_NO_NEW_PRIVS;
	set(ATTACK_NAME, "%s", row->attack);
	set(ATTACK_LAYERS, "%x", layers);
	set(ATTACK_THREAD, "%s", where & WORKER ? "worker" : "main");
	outcome_of(where & SERVE ? attack_serve(layers) : attack_drop_in(), text);
}

static const char *expected(const struct row *row, unsigned where, enum column column)
{
	if (column == IDS && (!root || where & DROP_IN))
		column = NONE;
	if (column == LANDLOCK && row->landlock_abi > landlock_abi)
		column = NONE;
	return row->cells[column];
}

/* Whether there is anything to see. */
static bool applies(const struct row *row, unsigned where, enum column column)
{
	if ((row->where & where) != where || (row->flags & ONE_ISSUER && !one_issuer))
		return false;
	return root || !(row->flags & AS_ROOT) || column == SECCOMP || column == ALL;
}

static bool not_here(const struct row *row, unsigned where)
{
	char text[TEXT_BYTES];

	if (!(row->flags & NOT_EVERYWHERE) || !applies(row, where, NONE))
		return false;
	attack(row, where, NONE, text);
	return strcmp(text, "ENOSYS") == 0 || strcmp(text, "EINVAL") == 0;
}

/* ---- all of them ---- */

typedef void wrong_cell(const struct row *row, enum column column, const char *text, void *argument);

static bool printing(void)
{
	const char *print = getenv("SANDBOX_PRINT");

	return print && *print == '1';
}

static void try_row(const struct row *row, unsigned where, unsigned which, wrong_cell *wrong, void *argument)
{
	const bool missing = not_here(row, where);

	if (printing())
		printf("%-24s", row->attack);
	for (enum column column = 0; column < COLUMNS; column++) {
		char text[TEXT_BYTES] = "-";
		bool right = true;

		if (which >> column & 1 && applies(row, where, column) && !(missing && column < SECCOMP)) {
			attack(row, where, column, text);
			right = strcmp(text, expected(row, where, column)) == 0;
		}
		if (!right)
			wrong(row, column, text, argument);
		if (printing())
			printf(" %s%-9s", right ? "" : "!", text);
	}
	if (printing())
		printf("\n");
}

static void try_table(unsigned where, unsigned which, wrong_cell *wrong, void *argument)
{
	if (printing()) {
		printf("\n%s, %s thread\n%-24s", where & SERVE ? "serve" : "drop-in", where & WORKER ? "worker" : "main", "");
		for (enum column column = 0; column < COLUMNS; column++)
			printf(" %-9s", columns[column].name);
		printf("\n");
	}
	for (size_t i = 0; i < COUNT(table); i++)
		if ((table[i].where & where) == where)
			try_row(&table[i], where, which, wrong, argument);
}

static void complain(const struct row *row, enum column column, const char *text, void *argument)
{
	print_error("%s, %s: %s, where %s was expected\n", row->attack, columns[column].name, text,
	            row->cells[column]);
	++*(unsigned *)argument;
}

static void every_cell_is_as_expected(void **state)
{
	static const unsigned wheres[] = { SERVE | MAIN, SERVE | WORKER, DROP_IN | MAIN, DROP_IN | WORKER };
	unsigned failures = 0;

	(void)state;
	set(ATTACK_LEAVE_OUT, "%s", "");
	for (size_t i = 0; i < COUNT(wheres); i++)
		try_table(wheres[i], (1u << COLUMNS) - 1, complain, &failures);
	assert_int_equal(failures, 0);
}

/* ---- a rule left out: the table must tell, and of no other cell ---- */

struct hole {
	const char *rule;
	int landlock_abi; /* below, there is no such rule */
	struct {
		const char *attack;
		enum column column;
		const char *text;
	} cells[8];
	unsigned found;
	unsigned others;
};

static void in_the_hole(const struct row *row, enum column column, const char *text, void *argument)
{
	struct hole *hole = argument;

	for (size_t i = 0; i < COUNT(hole->cells) && hole->cells[i].attack; i++) {
		if (strcmp(hole->cells[i].attack, row->attack) == 0 && hole->cells[i].column == column &&
		    strcmp(hole->cells[i].text, text) == 0) {
			hole->found |= 1u << i;
			return;
		}
	}
	print_error("without \"%s\": %s, %s is %s too\n", hole->rule, row->attack, columns[column].name, text);
	hole->others++;
}

static void missing_rule_shows(void **state)
{
	static struct hole holes[] = {
		{ .rule = "seccomp: setuid",
		  .cells = { { "setuid(0)", SECCOMP, "TRAP" }, { "setuid(0)", ALL, "TRAP" } } },
		{ .rule = "seccomp: mprotect's argument",
		  .cells = { { "mprotect PROT_EXEC", SECCOMP, ok }, { "mprotect PROT_EXEC", ALL, ok } } },
		{ .rule = "ring: attached files only",
		  .cells = { { "ring: raw descriptor", RING, ok }, { "ring: raw descriptor", ALL, ok } } },
		{ .rule = "ring: no registering", .cells = { { "ring: register", RING, ok } } },
		{ .rule = "landlock: signals", .landlock_abi = 6, .cells = { { "kill the manager", LANDLOCK, ok } } },
		{ .rule = "landlock: reading", .landlock_abi = 1,
		  .cells = { { "open", LANDLOCK, ok }, { "open a secret", LANDLOCK, ok }, { "openat2", LANDLOCK, ok },
		             { "ring: OPENAT", LANDLOCK, ok } } },
	};

	(void)state;
	for (size_t i = 0; i < COUNT(holes); i++) {
		unsigned wanted = 0;

		if (holes[i].landlock_abi > landlock_abi)
			continue;
		while (holes[i].cells[wanted].attack)
			wanted++;
		set(ATTACK_LEAVE_OUT, "%s", holes[i].rule);
		try_table(SERVE | WORKER, 1u << LANDLOCK | 1u << RING | 1u << SECCOMP | 1u << ALL, in_the_hole, &holes[i]);
		if (holes[i].found != (1u << wanted) - 1)
			print_error("without \"%s\": cells 0x%x of 0x%x have changed\n", holes[i].rule, holes[i].found,
			            (1u << wanted) - 1);
		assert_int_equal(holes[i].found, (1u << wanted) - 1);
		assert_int_equal(holes[i].others, 0);
	}
	set(ATTACK_LEAVE_OUT, "%s", "");
}

/* ---- the calls that are let through ---- */

#define SERVE_CALLS_MOST 37 /* in serve, with io_uring; adding one wants a reason */

/* A line of dioh_sandbox_print(): "call: profiles: who: why". */
struct line {
	char call[32];
	char profiles[64];
	char who[64];
	char why[96];
};

static unsigned read_lines(struct line *lines, unsigned max)
{
	char text[256], *buffer = NULL;
	size_t bytes;
	unsigned count = 0;
	FILE *file = open_memstream(&buffer, &bytes);

	dioh_sandbox_print(file);
	fclose(file);
	file = fmemopen(buffer, bytes, "r");
	while (fgets(text, sizeof(text), file)) {
		struct line *line = &lines[count++];

		assert_true(count <= max);
		if (sscanf(text, "%31[^:]: %63[^:]: %63[^:]: %95[^\n]", line->call, line->profiles, line->who, line->why) != 4)
			fail_msg("the table has no reason in: %s", text);
	}
	fclose(file);
	free(buffer);
	return count;
}

/* Distinct calls: fcntl stands there twice. */
static unsigned count_calls(const struct line *lines, unsigned count, const char *life, const char *engine)
{
	unsigned calls = 0;

	for (unsigned i = 0; i < count; i++) {
		bool again = i > 0 && strcmp(lines[i].call, lines[i - 1].call) == 0;

		calls += !again && strstr(lines[i].profiles, life) && strstr(lines[i].profiles, engine);
	}
	return calls;
}

static struct line lines[96];

static void allowed_calls_are_few(void **state)
{
	const unsigned count = read_lines(lines, COUNT(lines));
	const unsigned serve = count_calls(lines, count, "serve", "io_uring");

	(void)state;
	print_message("allowed calls: serve %u with io_uring, %u with sync; drop-in %u with io_uring, %u with sync\n", serve,
	              count_calls(lines, count, "serve", "sync"), count_calls(lines, count, "drop-in", "io_uring"),
	              count_calls(lines, count, "drop-in", "sync"));
	assert_in_range(serve, 10, SERVE_CALLS_MOST);
}

/* docs/security.md has a row "| `call` | profiles | who | why |" for each, in the same words, and no other. */
static void documentation_has_the_same_table(void **state)
{
	const unsigned count = read_lines(lines, COUNT(lines));
	FILE *file = fopen("docs/security.md", "re");
	char row[512], expected[512];
	unsigned at = 0;

	(void)state;
	if (!file) {
		print_message("skipped: run elsewhere than in the tree\n");
		skip();
	}
	while (fgets(row, sizeof(row), file) && strncmp(row, "| call |", 8) != 0)
		;
	(void)!fgets(row, sizeof(row), file);
	while (fgets(row, sizeof(row), file) && row[0] == '|') {
		assert_true(at < count);
		snprintf(expected, sizeof(expected), "| `%s` | %s | %s | %s |\n", lines[at].call, lines[at].profiles,
		         lines[at].who, lines[at].why);
		assert_string_equal(row, expected);
		at++;
	}
	fclose(file);
	assert_int_equal(at, count);
}

/* A call without a number on the other architecture would be let through, or killed, on this one only. */
static void names_are_known_on_every_architecture(void **state)
{
	static const char *const aarch64_has_none[] = { "poll" };
	const unsigned count = read_lines(lines, COUNT(lines));

	(void)state;
	for (unsigned i = 0; i < count; i++) {
		bool absent = false;

		for (size_t k = 0; k < COUNT(aarch64_has_none); k++)
			absent |= strcmp(lines[i].call, aarch64_has_none[k]) == 0;
		if (seccomp_syscall_resolve_name_arch(SCMP_ARCH_X86_64, lines[i].call) < 0)
			fail_msg("%s: x86_64 has no such call", lines[i].call);
		if ((seccomp_syscall_resolve_name_arch(SCMP_ARCH_AARCH64, lines[i].call) < 0) != absent)
			fail_msg("%s: aarch64 has %s such call", lines[i].call, absent ? "a" : "no");
	}
}

/* ---- where ---- */

static void listen_on(int fd, const void *address, socklen_t length)
{
	if (fd < 0 || bind(fd, address, length) < 0)
		fixture_die(__FILE__, __LINE__, "a socket to connect to", strerror(errno));
}

static void make_sockets(void)
{
	struct sockaddr_in inet = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	struct sockaddr_un local = { .sun_family = AF_UNIX };
	socklen_t length = sizeof(inet);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	listen_on(fd, &inet, length);
	if (listen(fd, 4096) < 0 || getsockname(fd, (struct sockaddr *)&inet, &length) < 0)
		fixture_die(__FILE__, __LINE__, "listen", strerror(errno));
	set(ATTACK_PORT, "%u", ntohs(inet.sin_port));
	snprintf(local.sun_path, sizeof(local.sun_path), "%s/socket", public_dir);
	listen_on(socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0), &local, sizeof(local));
	chmod(local.sun_path, 0666);
	memset(local.sun_path, 0, sizeof(local.sun_path));
	snprintf(local.sun_path + 1, sizeof(local.sun_path) - 1, "%s", public_dir);
	listen_on(socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0), &local, sizeof(local));
}

static void copy_shell(const char *to, mode_t mode)
{
	static char bytes[1 << 20];
	int in = open("/bin/sh", O_RDONLY | O_CLOEXEC), out = open(to, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	ssize_t n = in < 0 ? -1 : read(in, bytes, sizeof(bytes));

	if (out < 0 || n <= 0 || write(out, bytes, (size_t)n) != n || (root && fchown(out, SET_UID, SET_UID) < 0) ||
	    fchmod(out, mode) < 0)
		fixture_die(__FILE__, __LINE__, to, strerror(errno));
	close(in);
	close(out);
}

static const char *in_public(const char *name)
{
	static char path[128];

	snprintf(path, sizeof(path), "%s/%s", public_dir, name);
	return path;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	(void)st;
	(void)type;
	(void)ftw;
	return remove(path);
}

static void clean_up(void)
{
	if (getpid() != owner)
		return;
	if (root)
		umount2(in_public("mount"), MNT_DETACH);
	nftw(public_dir, remove_one, 8, FTW_DEPTH | FTW_PHYS | FTW_MOUNT);
}

static void arrange(const char *attacker)
{
	close(raw_open_image(fixture_path("image"), DIOH_DIRECTION_SAVE)); /* from here on signals make us exit */
	owner = getpid();
	atexit(clean_up); /* a set-uid shell must not stay */
	if (!mkdtemp(public_dir) || chmod(public_dir, 0711) < 0 || mkdir(in_public("mount"), 0700) < 0)
		fixture_die(__FILE__, __LINE__, public_dir, strerror(errno));
	close(open(in_public("secret"), O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
	copy_shell(in_public("set-uid"), 04755);
	make_sockets();
	set(ATTACK_DIRECTORY, "%s", public_dir);
	set(ATTACK_ADDRESS, "%llx", (unsigned long long)(uintptr_t)readable);
	set("DIOHELPER", "%s", attacker);
}

static bool has_one_issuer(void)
{
#ifdef IORING_SETUP_SINGLE_ISSUER
	struct io_uring_params params = { .flags = IORING_SETUP_SINGLE_ISSUER };
	struct io_uring ring;

	if (io_uring_queue_init_params(1, &ring, &params) == 0) {
		io_uring_queue_exit(&ring);
		return true;
	}
#endif
	return false;
}

int main(int argc, char **argv)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_cell_is_as_expected),
		cmocka_unit_test(missing_rule_shows),
		cmocka_unit_test(allowed_calls_are_few),
		cmocka_unit_test(documentation_has_the_same_table),
		cmocka_unit_test(names_are_known_on_every_architecture),
	};
	const char *sanitize = getenv("DIOH_SANITIZE");
	char attacker[512];

	(void)argc;
	if (sanitize && *sanitize) {
		printf("a sanitizer makes calls of its own, and the filter lets it\n");
		return 77;
	}
	if (syscall(SYS_io_uring_setup, 0, NULL) < 0 && errno != EFAULT) {
		printf("io_uring is not to be had here: %s\n", strerror(errno));
		return 77;
	}
	root = geteuid() == 0;
	landlock_abi = (int)syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);
	if (landlock_abi < 1)
		printf("skipped: no Landlock here\n");
	one_issuer = has_one_issuer();
	if (!one_issuer)
		printf("skipped: no SINGLE_ISSUER before Linux 6.0\n");
	snprintf(attacker, sizeof(attacker), "%.*s/attacker", (int)(strrchr(argv[0], '/') - argv[0]), argv[0]);
	arrange(attacker);
	return cmocka_run_group_tests_name("sandbox", tests, NULL, NULL);
}
