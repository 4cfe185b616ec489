/* SPDX-License-Identifier: LGPL-2.1-or-later */
#define _GNU_SOURCE
#include "writeback.h"

#include <errno.h>
#include <fcntl.h>

static void written(struct dioh_job *job) /* worker thread */
{
	dioh_container_of(job, struct dioh_writeback, job)->running = false;
}

/*
 * sync_file_range(2): waits for the window before, starts this one. Its errors are the file's write-back errors, and
 * having been told here they are not told to fdatasync(2) on the same descriptor. Where the file system knows no such
 * call, nothing is lost but the even pace.
 */
static void write_behind(struct dioh_job *job) /* control-I/O thread */
{
	struct dioh_writeback *writeback = dioh_container_of(job, struct dioh_writeback, job);
	int r;

	do
		r = sync_file_range(writeback->fd, 0, 0, SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE);
	while (r < 0 && errno == EINTR);
	if (r < 0 && errno != ENOSYS && errno != EINVAL && errno != ESPIPE && errno != EOPNOTSUPP)
		writeback->result = -errno;
	if (writeback->drop)
		(void)posix_fadvise(writeback->fd, 0, 0, POSIX_FADV_DONTNEED); /* a hint */
	job->handle = written;
	dioh_mailbox_post(writeback->worker, job);
}

void dioh_writeback_wrote(struct dioh_writeback *writeback, uint64_t bytes)
{
	writeback->dirty_bytes += bytes;
	if (writeback->running || writeback->dirty_bytes < DIOH_WRITEBACK_WINDOW_BYTES)
		return;
	writeback->dirty_bytes = 0;
	writeback->running = true;
	writeback->job.handle = write_behind;
	dioh_mailbox_post(writeback->control, &writeback->job);
}

bool dioh_writeback_full(const struct dioh_writeback *writeback)
{
	return writeback->running && writeback->dirty_bytes >= DIOH_WRITEBACK_WINDOW_BYTES;
}
