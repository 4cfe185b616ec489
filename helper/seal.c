/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * seal.c - privileges only ever go down.
 *
 *   1. start       strays closed; SIGPIPE and SIGXFSZ become errors; no core dump (it would hold guest memory), not
 *                  ptraceable; of the capabilities only those that attach and the next stage need.
 *   -- attach: descriptors arrive, one thread; label, owner and mode are set (label.c) --
 *   2. privileges  in the order that the kernel demands: securebits and the identity, which take privilege (libcap-ng
 *                  clears the bounding set on the way); then every capability set; then NO_NEW_PRIVS and Landlock. All
 *                  of it acts on the calling thread only, hence before any other thread exists: they inherit it. Rings
 *                  were opened disabled, and restricted, before.
 *   3. threads     workers start, each enables its own ring; a barrier; and only then the system call filter, in all of
 *                  them at once (session_attach.c, dropin.c).
 */
#define _GNU_SOURCE
#include "seal.h"

#include <cap-ng.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/securebits.h>
#include <malloc.h>
#include <pwd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "engine.h"
#include "label.h"
#include "sandbox.h"

#define PLACE DIOH_PLACE(SEAL, SESSION, 0, DIOH_OFFSET_NONE)

/* What nobody is where no such user is known: the kernel's overflow id (/proc/sys/kernel/overflowuid). */
#define OVERFLOW_ID 65534

/* KEEP_CAPS stays unlocked, since libcap-ng uses it; it keeps nothing that is not there. */
#define SECUREBITS_LOCKED                                                                                              \
	(SECBIT_NOROOT | SECBIT_NOROOT_LOCKED | SECBIT_NO_SETUID_FIXUP | SECBIT_NO_SETUID_FIXUP_LOCKED |               \
	 SECBIT_NO_CAP_AMBIENT_RAISE | SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED)

/* poll(2) looks at so many descriptors at most, whatever their numbers. */
#define DESCRIPTORS_MAX DIOH_SLOTS_MAX

/* LeakSanitizer looks at its own process by ptrace(2), which a process that is not dumpable refuses. */
#if defined(__SANITIZE_ADDRESS__)
#define MUST_STAY_DUMPABLE 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define MUST_STAY_DUMPABLE 1
#endif
#endif
#ifndef MUST_STAY_DUMPABLE
#define MUST_STAY_DUMPABLE 0
#endif

void dioh_seal_default_identity(struct dioh_identity *identity)
{
	const struct passwd *user = getpwnam("diohelper");

	if (!user)
		user = getpwnam("nobody");
	identity->uid = user ? user->pw_uid : OVERFLOW_ID;
	identity->gid = user ? user->pw_gid : OVERFLOW_ID;
}

/* ---- stage 1 ---- */

/* A descriptor that is opened later must not land on 0, 1 or 2, where a message would go into it. */
static int fill_stdio(struct dioh_error *err)
{
	int fd;

	do {
		fd = open("/dev/null", O_RDWR);
		if (fd < 0)
			return dioh_error_errno(err, errno, PLACE, "helper: opening /dev/null failed");
	} while (fd <= STDERR_FILENO);
	close(fd);
	return 0;
}

static bool close_range_but(unsigned keep)
{
	return (keep <= STDERR_FILENO + 1 || syscall(SYS_close_range, STDERR_FILENO + 1, keep - 1, 0) == 0) &&
	       syscall(SYS_close_range, keep + 1, ~0u, 0) == 0;
}

/* Before Linux 5.9, or where a container's filter does not know the call. Limits say nothing of what is open already. */
static bool close_listed_but(unsigned keep)
{
	DIR *open_ones = opendir("/proc/self/fd");
	const struct dirent *entry;

	if (!open_ones)
		return false;
	while ((entry = readdir(open_ones)) != NULL) {
		const int fd = atoi(entry->d_name); /* 0 for "." and ".." */

		if (fd > STDERR_FILENO && (unsigned)fd != keep && fd != dirfd(open_ones))
			close(fd);
	}
	closedir(open_ones);
	return true;
}

static int close_strays(int keep_fd, struct dioh_error *err)
{
	const unsigned keep = keep_fd > STDERR_FILENO ? (unsigned)keep_fd : STDERR_FILENO;

	if (close_range_but(keep) || close_listed_but(keep))
		return 0;
	return dioh_error_errno(err, errno, PLACE,
	                        "helper: stray descriptors cannot be closed: close_range(2) is refused, and /proc/self/fd");
}

static void arrange_signals(void)
{
	sigset_t none;

	/* EPIPE and EFBIG instead of death. */
	signal(SIGPIPE, SIG_IGN);
	signal(SIGXFSZ, SIG_IGN);
	/* A manager's threads may block signals, which is inherited: the attach timer would be none. */
	signal(SIGALRM, SIG_DFL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
}

/* What attach and stage 2 need, and nothing else from here on. Who has no capabilities has nothing to drop. */
static int keep_capabilities(const struct dioh_identity *identity, uint32_t allow, struct dioh_error *err)
{
	capng_clear(CAPNG_SELECT_BOTH);
	if (capng_get_caps_process() < 0 || capng_have_capabilities(CAPNG_SELECT_CAPS) == CAPNG_NONE)
		return 0;
	capng_clear(CAPNG_SELECT_BOTH);
	capng_update(CAPNG_ADD, CAPNG_EFFECTIVE | CAPNG_PERMITTED, CAP_SETPCAP); /* for the bounding set and securebits */
	if (geteuid() == 0 && !identity->keep_uid)
		capng_updatev(CAPNG_ADD, CAPNG_EFFECTIVE | CAPNG_PERMITTED, CAP_SETUID, CAP_SETGID, -1);
	if (allow & DIOH_ALLOW_OWNER)
		capng_update(CAPNG_ADD, CAPNG_EFFECTIVE | CAPNG_PERMITTED, CAP_CHOWN);
	if (allow & (DIOH_ALLOW_LABEL | DIOH_ALLOW_MODE))
		capng_update(CAPNG_ADD, CAPNG_EFFECTIVE | CAPNG_PERMITTED, CAP_FOWNER);
	/* An unprivileged manager may have some capabilities and not these. */
	if (capng_apply(CAPNG_SELECT_BOTH) < 0 && capng_apply(CAPNG_SELECT_CAPS) < 0) {
		capng_clear(CAPNG_SELECT_BOTH);
		if (capng_apply(CAPNG_SELECT_CAPS) < 0)
			return dioh_error_set(err, EPERM, PLACE, "helper: dropping capabilities at the start failed");
	}
	return 0;
}

int dioh_seal_start(int keep_fd, const struct dioh_identity *identity, uint32_t allow, struct dioh_error *err)
{
	const struct rlimit no_core = { 0, 0 };
	int r = fill_stdio(err);

	/* glibc opens a file of /proc before it shrinks a thread's heap: behind the seal there is none but the first one. */
	(void)mallopt(M_ARENA_MAX, 1);

	if (r == 0)
		r = close_strays(keep_fd, err);
	if (r < 0)
		return r;
	arrange_signals();
	if (setrlimit(RLIMIT_CORE, &no_core) < 0)
		return dioh_error_errno(err, errno, PLACE, "helper: turning core dumps off failed");
	if (!MUST_STAY_DUMPABLE && prctl(PR_SET_DUMPABLE, 0) < 0)
		return dioh_error_errno(err, errno, PLACE, "helper: turning ptrace access off failed");
	return keep_capabilities(identity, allow, err);
}

/* ---- stage 2 ---- */

/* That uid 0 and a change of uid bring capabilities back is over for good. Takes CAP_SETPCAP: who has none stays as he is. */
static void lock_securebits(void)
{
	(void)prctl(PR_SET_SECUREBITS, SECUREBITS_LOCKED, 0, 0, 0);
}

static int change_identity(const struct dioh_identity *identity, struct dioh_error *err)
{
	int r;

	if (geteuid() != 0 || identity->keep_uid)
		return 0;
	capng_clear(CAPNG_SELECT_BOTH);
	r = capng_change_id((int)identity->uid, (int)identity->gid, CAPNG_DROP_SUPP_GRP | CAPNG_CLEAR_BOUNDING);
	if (r < 0)
		return dioh_error_set(err, EPERM, PLACE, "helper: changing to uid %u, gid %u failed (libcap-ng says %d)",
		                      (unsigned)identity->uid, (unsigned)identity->gid, r);
	return 0;
}

/*
 * Who has no CAP_SETPCAP, or no more, keeps the bounding set as it is; NO_NEW_PRIVS makes it worthless. Asked all the same,
 * libcap-ng opens a socket and complains to syslog.
 */
static int drop_capabilities(struct dioh_error *err)
{
	capng_select_t what = CAPNG_SELECT_CAPS;

	capng_clear(CAPNG_SELECT_BOTH);
	if (capng_get_caps_process() == 0 && capng_have_capability(CAPNG_EFFECTIVE, CAP_SETPCAP))
		what = CAPNG_SELECT_BOTH;
	capng_clear(CAPNG_SELECT_BOTH);
	if (capng_apply(what) < 0)
		return dioh_error_set(err, EPERM, PLACE, "helper: dropping all capabilities failed");
	return 0;
}

static int clear_ambient(struct dioh_error *err)
{
	if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0 && errno != EINVAL)
		return dioh_error_errno(err, errno, PLACE, "helper: clearing the ambient capabilities failed");
	return 0;
}

/* Read back from the kernel: what counts is what it says, not that a call returned 0. */
static uint32_t layers_that_hold(void)
{
	uint32_t layers = DIOH_LAYER_STRAYS_CLOSED;

	capng_clear(CAPNG_SELECT_BOTH);
	if (capng_get_caps_process() == 0 && capng_have_capabilities(CAPNG_SELECT_CAPS) == CAPNG_NONE)
		layers |= DIOH_LAYER_NO_CAPABILITIES;
	if (getuid() != 0 && geteuid() != 0 && getgid() != 0 && getegid() != 0)
		layers |= DIOH_LAYER_NOT_ROOT;
	if (prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1)
		layers |= DIOH_LAYER_NO_NEW_PRIVS;
	if (prctl(PR_GET_DUMPABLE, 0, 0, 0, 0) != 1)
		layers |= DIOH_LAYER_NOT_DUMPABLE;
	if (prctl(PR_GET_SECUREBITS, 0, 0, 0, 0) == SECUREBITS_LOCKED)
		layers |= DIOH_LAYER_SECUREBITS;
	return layers;
}

static int limit_descriptors(struct dioh_error *err)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
		return dioh_error_errno(err, errno, PLACE, "helper: asking for the limit of descriptors failed");
	limit.rlim_max = limit.rlim_max < DESCRIPTORS_MAX ? limit.rlim_max : DESCRIPTORS_MAX;
	limit.rlim_cur = limit.rlim_max;
	if (setrlimit(RLIMIT_NOFILE, &limit) < 0)
		return dioh_error_errno(err, errno, PLACE, "helper: limiting the number of descriptors failed");
	return 0;
}

int dioh_seal_privileges(const struct dioh_identity *identity, uint32_t *ret_layers, struct dioh_error *err)
{
	int r;

	lock_securebits();
	r = change_identity(identity, err);
	if (r == 0)
		r = drop_capabilities(err);
	if (r == 0)
		r = clear_ambient(err);
	if (r < 0)
		return r;
	/* A change of identity sets it anew from fs.suid_dumpable. */
	if (!MUST_STAY_DUMPABLE && prctl(PR_SET_DUMPABLE, 0) < 0)
		return dioh_error_errno(err, errno, PLACE, "helper: turning ptrace access off failed");
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return dioh_error_errno(err, errno, PLACE, "helper: setting NO_NEW_PRIVS failed");
	/* While a file of /proc can still be opened: libcap-ng up to 0.7 reads one. */
	*ret_layers = layers_that_hold();
	if (!(*ret_layers & DIOH_LAYER_NO_CAPABILITIES))
		return dioh_error_set(err, EPERM, PLACE, "helper: capabilities are left after dropping them all");
	if (dioh_sandbox_landlock()) /* takes a descriptor for a moment */
		*ret_layers |= DIOH_LAYER_LANDLOCK;
	return limit_descriptors(err);
}

uint32_t dioh_seal_layers_available(void)
{
	return DIOH_LAYER_STRAYS_CLOSED | DIOH_LAYER_NO_CAPABILITIES | DIOH_LAYER_NOT_ROOT | DIOH_LAYER_NO_NEW_PRIVS |
	       DIOH_LAYER_SECUREBITS | DIOH_LAYER_LANDLOCK | DIOH_LAYER_SECCOMP | DIOH_LAYER_RING_RESTRICTIONS |
	       (MUST_STAY_DUMPABLE ? 0 : DIOH_LAYER_NOT_DUMPABLE);
}
