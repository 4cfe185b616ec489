/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * attach.h - what a received descriptor really is. A manager's word is taken for nothing that can be asked of the
 * kernel. These calls may block on a sick file system; the session runs them under a timer, before any byte is written.
 */
#ifndef DIOH_ATTACH_H
#define DIOH_ATTACH_H

#include "image.h"
#include "memory.h"

/*
 * Examines an image's descriptors (buffered, direct, directory, as request->fds says; all in `fds`) and fills `image`, which
 * owns them on success. EBADF: O_PATH, or the wrong access mode. EISDIR, EINVAL: not a file or block device. EINVAL:
 * O_APPEND, O_DIRECT where it should not be or not where it should, two different files. EOPNOTSUPP: engine not
 * served. Changes nothing.
 */
int dioh_examine_image(const struct dioh_msg_attach_image *request, const int *fds, struct dioh_image *image,
                      struct dioh_error *err);

/*
 * How its page I/O goes, by direct I/O or not, and by which engine. Last, since it may turn O_DIRECT off: what is refused has
 * no effect. EOPNOTSUPP: direct I/O is required and not to be had.
 */
int dioh_settle_image(const struct dioh_msg_attach_image *request, struct dioh_image *image, struct dioh_error *err);

/* Examines a memory and its selection; `image`: to see that it is another file. */
int dioh_examine_memory(const struct dioh_msg_attach_memory *request, const int *fds, const struct dioh_image *image,
                       struct dioh_memory *memory, struct dioh_msg_attach_memory_reply *ret_reply,
                       struct dioh_error *err);

/* Makes a pipe as large as streams want it (DIOH_PIPE_BYTES), where that is permitted. Answers whether it is. */
bool dioh_enlarge_pipe(int fd);

/*
 * Examines a stream's descriptor, and enlarges a pipe. `ret_kind`: enum dioh_stream_kind. `ret_large_pipe`: it is a pipe
 * and large now.
 */
int dioh_examine_stream(uint32_t stream, int fd, const struct dioh_image *image, uint32_t *ret_kind, bool *ret_large_pipe,
                        struct dioh_error *err);

#endif
