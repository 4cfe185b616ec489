/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * faulty_tool.c - diohelper-tool, its own objects, on a disk that fails once where no disk of ours does: fsync(2) number
 * $DIOH_FAULT of a directory, counted from 0, tells of EIO. The helper that it starts is the real one. test-tool.sh judges.
 */
/* LDFLAGS: -Wl,--wrap=fsync */
#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>

int __real_fsync(int fd);
int __wrap_fsync(int fd);

int __wrap_fsync(int fd)
{
	static unsigned long calls; /* the tool has one thread */
	const char *fault = getenv("DIOH_FAULT");
	struct stat st;

	if (!fault || fstat(fd, &st) < 0 || !S_ISDIR(st.st_mode) || calls++ != strtoul(fault, NULL, 10))
		return __real_fsync(fd);
	errno = EIO;
	return -1;
}
