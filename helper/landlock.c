/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* landlock.c - a ruleset without a rule: everything that this kernel's Landlock can refuse is refused. landlock(7). */
#define _GNU_SOURCE
#include <linux/landlock.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "sandbox.h"

/* As newer kernels have it; older headers lack the members. */
struct ruleset_attr {
	uint64_t handled_access_fs;
	uint64_t handled_access_net; /* ABI 4 */
	uint64_t scoped;             /* ABI 6 */
};

#define FS_ACCESSES_ABI_1 13 /* EXECUTE to MAKE_SYM */
#define NET_ACCESSES 2       /* TCP bind and connect */
#define SCOPES 2             /* abstract sockets, signals */

static uint64_t lowest_bits(unsigned count)
{
	return (UINT64_C(1) << count) - 1;
}

/* ABI 2 added REFER, 3 TRUNCATE, 5 IOCTL_DEV. What was opened before keeps what it could then. */
static unsigned fs_accesses(int abi)
{
	return FS_ACCESSES_ABI_1 + (abi >= 2) + (abi >= 3) + (abi >= 5);
}

static size_t attr_bytes(int abi)
{
	return abi >= 6 ? sizeof(struct ruleset_attr) : abi >= 4 ? 2 * sizeof(uint64_t) : sizeof(uint64_t);
}

bool dioh_sandbox_landlock(void)
{
	const int abi = (int)syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);
	const struct ruleset_attr attr = {
		.handled_access_fs = lowest_bits(fs_accesses(abi)),
		.handled_access_net = lowest_bits(NET_ACCESSES),
		.scoped = lowest_bits(SCOPES),
	};
	bool restricted;
	int fd;

	if (abi < 1 || DIOH_SANDBOX_WATCHED)
		return false;
	fd = (int)syscall(SYS_landlock_create_ruleset, &attr, attr_bytes(abi), 0);
	if (fd < 0)
		return false;
	restricted = syscall(SYS_landlock_restrict_self, fd, 0) == 0;
	close(fd);
	return restricted;
}
