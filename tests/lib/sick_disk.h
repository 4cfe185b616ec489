/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * sick_disk.h - sessions whose image stands on a FUSE mount that misbehaves (fuse_file.h). For cmocka programs: what is
 * not as expected fails the running test, and everything that waits has a limit.
 */
#ifndef DIOH_SICK_DISK_H
#define DIOH_SICK_DISK_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "diohelper.h"
#include "fuse_file.h"

#define SICK_MEMORY_BYTES (UINT64_C(24) << 20)
#define SICK_REGION 3u

struct sick_engine { /* how page I/O waits: for the disk, or a thread for it */
	uint32_t engine; /* enum dioh_engine */
	bool async_dio, direct_io, fallocate; /* of the mount: struct fuse_file_options */
};

/*
 * io_uring where the file system works asynchronously; where a thread of the kernel waits instead; and no io_uring. Only
 * the last sees short writes as such: of the first's Linux makes EIO; of the second's it continues the rest itself, and
 * with direct_io takes it from the wrong place (6.18), which is nothing that a helper could notice.
 */
extern const struct sick_engine sick_uring, sick_uring_thread, sick_sync;

struct sick_disk {
	const struct sick_engine *engine;
	struct fuse_file *file;
	const char *path; /* where the image is opened; NULL: the file itself */
	struct dioh_session *session; /* NULL: none */
	pid_t pid;                    /* of its helper, until it is reaped; 0: none */
	int messages_fd;              /* what helpers say on standard error */
	int memfd;                    /* SICK_MEMORY_BYTES without a zero page */
};

/* A mount of its own; without FUSE the running test is skipped. */
struct fuse_file *sick_file(const struct fuse_file_options *options);

/* A mount, no session yet. Skips the running test where there is no FUSE. */
void sick_open(struct sick_disk *disk, const struct sick_engine *engine, bool only_root);
/* For a test's teardown: lets everything go, ends everything. */
void sick_close(struct sick_disk *disk);
/* cmocka's form of it, for what the test has open; it needs no state. */
int sick_teardown(void **state);

/* A helper with these arguments (NULL-terminated), its image attached: what ATTACH_IMAGE answered. */
int sick_attach(struct sick_disk *disk, uint32_t direction, const char *const *args, struct dioh_error *err);
/* A whole session up to where the image is ready: created, or opened (what OPEN_IMAGE answered). */
void sick_begin_save(struct sick_disk *disk, const char *const *args);
int sick_begin_load(struct sick_disk *disk, int memfd, const char *const *args, struct dioh_error *err);
uint32_t sick_save_memory(struct sick_disk *disk);
uint32_t sick_finish(struct sick_disk *disk);

/* The next event of a type within a time; what else comes is dropped, but a COMPLETE fails the test. */
void sick_event(struct sick_disk *disk, uint32_t type, unsigned limit_ms, struct dioh_event *ret_event);
/* No COMPLETE comes for that long. */
void sick_no_complete(struct sick_disk *disk, unsigned ms);
/* The transfer's end: its error's code. */
int sick_complete(struct sick_disk *disk, uint32_t transfer, unsigned limit_ms, struct dioh_event *ret_event);
/* Until so many requests are held by the server. */
void sick_wait_held(struct sick_disk *disk, unsigned count, unsigned limit_ms);

/* Closes the connection, waits for nothing. */
void sick_hang_up(struct sick_disk *disk);
/* The helper is gone within that time: its wait status. Or it still is there after it. */
int sick_reap(struct sick_disk *disk, unsigned limit_ms);
void sick_not_gone(struct sick_disk *disk, unsigned ms);
/* Closes the session; the helper must exit with that status soon. */
void sick_end(struct sick_disk *disk, int status);
/* Until a helper has said this on standard error. */
void sick_says(const struct sick_disk *disk, const char *text, unsigned limit_ms);
void sick_says_nothing(const struct sick_disk *disk);

/* What a new session finds on the mount: no error, and the memory as it was; or this error of OPEN_IMAGE. */
void sick_image_is_complete(struct sick_disk *disk);
void sick_image_is_refused(struct sick_disk *disk, int code);

#endif
