/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "mailbox.h"

#include <assert.h>
#include <errno.h>
#include <stddef.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "cleanup.h"

int dioh_mailbox_open(struct dioh_mailbox *mailbox, struct dioh_error *err)
{
	mailbox->first = NULL;
	mailbox->last = &mailbox->first;
	mailbox->event_fd = eventfd(0, EFD_CLOEXEC);
	if (mailbox->event_fd < 0)
		return dioh_error_errno(err, errno, DIOH_PLACE(SEAL, SESSION, 0, DIOH_OFFSET_NONE), "helper: eventfd");
	pthread_mutex_init(&mailbox->lock, NULL);
	return 0;
}

void dioh_mailbox_close(struct dioh_mailbox *mailbox)
{
	dioh_cleanup_fd(&mailbox->event_fd);
	mailbox->event_fd = -1;
}

void dioh_mailbox_wake(struct dioh_mailbox *mailbox)
{
	const uint64_t one = 1;
	ssize_t n;

	do
		n = write(mailbox->event_fd, &one, sizeof(one));
	while (n < 0 && errno == EINTR);
	assert(n == sizeof(one));
}

void dioh_mailbox_post(struct dioh_mailbox *mailbox, struct dioh_job *job)
{
	job->next = NULL;
	pthread_mutex_lock(&mailbox->lock);
	*mailbox->last = job;
	mailbox->last = &job->next;
	/* Under the lock: the receiver may end, and close the event descriptor, once it has taken the job. */
	dioh_mailbox_wake(mailbox);
	pthread_mutex_unlock(&mailbox->lock);
}

void dioh_mailbox_handle(struct dioh_mailbox *mailbox)
{
	struct dioh_job *job;

	pthread_mutex_lock(&mailbox->lock);
	job = mailbox->first;
	mailbox->first = NULL;
	mailbox->last = &mailbox->first;
	pthread_mutex_unlock(&mailbox->lock);

	while (job) {
		struct dioh_job *next = job->next;

		job->handle(job);
		job = next;
	}
}
