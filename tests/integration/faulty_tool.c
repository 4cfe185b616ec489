/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * faulty_tool.c - diohelper-tool, its own objects, on a disk that fails once where no disk of ours does: fsync(2) number
 * $DIOH_FAULT of a directory, counted from 0, tells of EIO, and syncfs(2) does, if that is 0. And with $DIOH_LATE=MS it looks
 * only so long afterwards at what its two helpers say: by then they have done all that they were asked. They are the real
 * ones. test-tool.sh and test_tool_files.py judge.
 */
/* LDFLAGS: -Wl,--wrap=fsync,--wrap=syncfs,--wrap=poll */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

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

int __real_syncfs(int fd);
int __wrap_syncfs(int fd);

int __wrap_syncfs(int fd)
{
	const char *fault = getenv("DIOH_FAULT");

	if (!fault || fault[0] != '0')
		return __real_syncfs(fd);
	errno = EIO;
	return -1;
}

int __real_poll(struct pollfd *fds, nfds_t count, int timeout_ms);
int __wrap_poll(struct pollfd *fds, nfds_t count, int timeout_ms);

int __wrap_poll(struct pollfd *fds, nfds_t count, int timeout_ms)
{
	const char *late = getenv("DIOH_LATE");

	if (late && count == 2)
		usleep((useconds_t)strtoul(late, NULL, 10) * 1000);
	return __real_poll(fds, count, timeout_ms);
}
