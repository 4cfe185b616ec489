/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* cleanup.h - ownership in a scope: attributes that free at its end, and stealing for the success path. */
#ifndef DIOH_CLEANUP_H
#define DIOH_CLEANUP_H

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

static inline void dioh_cleanup_fd(int *fd)
{
	int saved = errno;

	if (*fd >= 0)
		close(*fd);
	errno = saved;
}

static inline void dioh_cleanup_free(void *p)
{
	int saved = errno;

	free(*(void **)p);
	errno = saved;
}

static inline int dioh_steal_fd(int *fd)
{
	int taken = *fd;

	*fd = -1;
	return taken;
}

#define DIOH_AUTO_FD __attribute__((cleanup(dioh_cleanup_fd)))
#define DIOH_AUTO_FREE __attribute__((cleanup(dioh_cleanup_free)))

#endif
