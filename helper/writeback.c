/* SPDX-License-Identifier: LGPL-2.1-or-later */
#define _GNU_SOURCE
#include "writeback.h"

#include <errno.h>
#include <fcntl.h>

#include "align.h"
#include "clock.h"

static void written(struct dioh_job *job) /* worker thread */
{
	dioh_container_of(job, struct dioh_writeback, job)->running = false;
}

/* Without flags the call does nothing, and tells of no write-back's error. */
bool dioh_writeback_known(int fd)
{
	return sync_file_range(fd, 0, 0, 0) == 0;
}

/*
 * sync_file_range(2). Its errors are the file's write-back errors, whoever wrote the bytes and whatever they are called, and
 * having been told here they are not told to fdatasync(2) on the same descriptor, nor to who asks once more: all workers and
 * FINISH must know.
 */
static void sync_window(struct dioh_writeback *writeback, const struct dioh_writeback_window *window, unsigned flags)
{
	int none = 0, r;

	if (!writeback->known || window->start == window->end) /* none yet; to the system call it would be all of the file */
		return;
	dioh_clock_start(writeback->waits_since_ns);
	r = sync_file_range(writeback->fd, (off_t)window->start, (off_t)(window->end - window->start), flags);
	dioh_clock_stop(writeback->waits_since_ns);
	if (r < 0)
		(void)atomic_compare_exchange_strong(writeback->sync_error, &none, errno);
}

/* Starts this window, and only then waits for the one before: the disk has something to do at any time. */
static void write_behind(struct dioh_job *job) /* control-I/O thread */
{
	struct dioh_writeback *writeback = dioh_container_of(job, struct dioh_writeback, job);
	const struct dioh_writeback_window *before = &writeback->before;

	sync_window(writeback, &writeback->sent, SYNC_FILE_RANGE_WRITE);
	sync_window(writeback, before, SYNC_FILE_RANGE_WAIT_BEFORE);
	if (writeback->drop && before->start < before->end)
		(void)posix_fadvise(writeback->fd, (off_t)before->start, (off_t)(before->end - before->start),
		                    POSIX_FADV_DONTNEED); /* a hint */
	writeback->before = writeback->sent;
	job->handle = written;
	dioh_mailbox_post(writeback->worker, job);
}

void dioh_writeback_wrote(struct dioh_writeback *writeback, uint64_t offset, uint64_t bytes)
{
	struct dioh_writeback_window *filling = &writeback->filling;

	if (writeback->dirty_bytes == 0)
		*filling = (struct dioh_writeback_window){ offset, offset };
	filling->start = dioh_min(filling->start, offset);
	filling->end = dioh_max(filling->end, offset + bytes);
	writeback->dirty_bytes += bytes;
	if (writeback->running || writeback->dirty_bytes < DIOH_WRITEBACK_WINDOW_BYTES)
		return;
	writeback->dirty_bytes = 0;
	writeback->sent = *filling;
	writeback->running = true;
	writeback->job.handle = write_behind;
	dioh_mailbox_post(writeback->control, &writeback->job);
}

/* Its pages are clean: nothing is waited for. */
void dioh_writeback_read(const struct dioh_writeback *writeback, uint64_t offset, uint64_t bytes)
{
	if (writeback->drop && bytes > 0)
		(void)posix_fadvise(writeback->fd, (off_t)offset, (off_t)bytes, POSIX_FADV_DONTNEED); /* a hint */
}

bool dioh_writeback_full(const struct dioh_writeback *writeback)
{
	return writeback->running && writeback->dirty_bytes >= DIOH_WRITEBACK_WINDOW_BYTES;
}
