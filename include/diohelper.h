/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * diohelper.h - libdiohelper: save and restore a virtual machine's memory through a diohelper process.
 *
 * A session is one helper process and one image, saved or loaded. The usual order of calls:
 *
 *   save: dioh_spawn, dioh_attach_image, dioh_attach_memory..., dioh_attach_stream..., dioh_seal,
 *         dioh_create_image, dioh_save_memory..., dioh_save_stream..., dioh_poll until each has completed,
 *         dioh_finish, dioh_poll until it has completed, dioh_close.
 *   load: dioh_spawn, dioh_attach_..., dioh_seal, dioh_open_image, dioh_get_table, dioh_load_memory...,
 *         dioh_load_stream..., dioh_poll, dioh_close.
 *   save for a stock QEMU (layout mapped-ram): the guest is stopped and QEMU, with x-ignore-shared, migrates into a pipe
 *         that is an attached stream; dioh_create_image, dioh_save_stream, and when it has completed and QEMU says that
 *         it has, too, dioh_save_memory...; dioh_finish.
 *   load of a mapped-ram image: dioh_load_memory... of the regions that are not in the stream, and after these have
 *         completed QEMU is told to migrate from the pipe that dioh_load_stream writes.
 *
 * The library parses no image, opens no file, starts no thread, prints nothing, never exits and installs no signal
 * handler. It is built for two kinds of caller: one with an event loop of its own (watch dioh_session_fd() for
 * reading and call dioh_poll() with a timeout of 0), and one without (dioh_poll() or dioh_wait() with a timeout).
 *
 * Conventions
 *  - A function returns 0 or a negative errno value, and takes a `struct dioh_error *` last, which may be NULL. On
 *    failure it is filled; on success it is not touched. Outputs (`ret_...`) are not touched on failure, except
 *    buffers that more than one message fills (dioh_get_table, dioh_read_header, dioh_read_bitmap). `ret_info` and
 *    `ret_transfer` may be NULL.
 *  - When the helper refused a request, the error is the helper's own, and the session goes on. -EINVAL also when the
 *    library did not even send it. -EPIPE: the helper is gone or has closed the connection; the text says how it ended,
 *    if that is known, or has its last words (BROKEN) and the name of their errno. -EBADMSG: the peer broke the protocol.
 *    After these two, when the error's object is DIOH_OBJECT_SESSION, only dioh_close() is useful, and dioh_poll() for
 *    events that came before; every call answers the same from then on. What ran has not completed.
 *  - Descriptors passed in stay the caller's: the library duplicates them into the helper by SCM_RIGHTS and keeps
 *    none. They may be closed when the call returns. Memory must not be reused, and the image's range not written,
 *    while a transfer runs: I/O in flight outlives cancel and even the helper (see DIOH_EVENT_STUCK).
 *  - Thread safety: a session may be used by one thread at a time. Different sessions are independent. Other threads may
 *    fork at any time. What they fork must not use their parent's sessions, nor call dioh_close() for them: the
 *    connection would be closed in the parent, too.
 *  - A call that waits for a slow disk (dioh_create_image, dioh_open_image) can be left early: shutdown(2) of
 *    dioh_session_fd(), from any thread or a signal handler, makes it return -EPIPE and cancels the session.
 *  - Structures of options that hold descriptors begin as their DIOH_..._INIT, since 0 is a descriptor; all others as zeros
 *    (a designated initializer's). What is not set then has its default.
 *  - All sizes and offsets are bytes.
 *
 * Sources: docs/protocol.md in this project; unix(7), cmsg(3), seqpacket semantics in socket(2).
 */
#ifndef DIOHELPER_H
#define DIOHELPER_H

#include "diohelper-protocol.h"

#ifdef __cplusplus
extern "C" {
#endif

#ifdef __GNUC__ /* what this header declares is what a library built with -fvisibility=hidden exports */
#pragma GCC visibility push(default)
#endif

#define DIOH_VERSION_MAJOR 0
#define DIOH_VERSION_MINOR 1
#define DIOH_VERSION_PATCH 0
#define DIOH_VERSION_STRING "0.1.0"

#define DIOH_OFFSET_NONE UINT64_MAX

struct dioh_error {
	int code;           /* a positive errno value */
	uint32_t operation; /* enum dioh_operation */
	uint32_t object;    /* enum dioh_object */
	uint32_t number;    /* which memory, stream or region */
	uint64_t offset;    /* in the object; DIOH_OFFSET_NONE where there is none */
	char text[DIOH_TEXT_BYTES]; /* one sentence for a person, ending without a newline */
};

struct dioh_session;

/* ---- starting and ending ---------------------------------------------------------------------------------------- */

struct dioh_spawn_options {
	const char *program;       /* path of diohelper; NULL: "diohelper", found through PATH */
	const char *const *args;   /* further arguments behind "serve --fd=N", NULL-terminated; NULL: none */
	int cgroup_fd;             /* -1, or a cgroup v2 directory in which the helper is born (clone3(2)) */
	int stderr_fd;             /* -1: inherited; else the helper's standard error */
};

#define DIOH_SPAWN_OPTIONS_INIT { 0, 0, -1, -1 }

struct dioh_hello_info {
	uint32_t version;  /* the protocol version in use */
	uint32_t reserved;
	uint64_t features; /* enum dioh_feature: what the helper offers */
};

/*
 * Starts `diohelper serve` on a fresh socket pair and negotiates. `required`: enum dioh_feature bits without which the
 * caller does not want to go on. The child gets /dev/null as standard input and output. `options` NULL: defaults.
 * Errors: -ENOENT, -EACCES (the program), -ENOTSUP (required feature missing; the text names it), -EPROTONOSUPPORT (no
 * common version), -EPIPE (it ended at once), -ETIMEDOUT (in 30 s it has not answered: it is no helper, or its cgroup is
 * frozen), any errno of socketpair(2), clone3(2), execve(2), pidfd_open(2).
 *
 * Of a failure nothing stays: a child that does not end by itself within a second is killed and reaped. If the kernel does
 * not let go of it for a second more (it is being executed from a disk that hangs, say), it stays the caller's child, to be
 * reaped by whoever takes care of SIGCHLD.
 *
 * The helper also ends when the calling process does, whoever else has the connection then. For that it is sent a pidfd of
 * this process; only where there can be none (ENOSYS, EPERM, EINVAL: an old kernel, a filter) does it go without.
 */
int dioh_spawn(const struct dioh_spawn_options *options, uint64_t required, struct dioh_session **ret_session,
               struct dioh_error *err);

/*
 * As dioh_spawn(), over a connected AF_UNIX SOCK_SEQPACKET socket whose other end a helper already holds. Takes
 * ownership of `fd` on success. There is no child to wait for: dioh_close() answers 0. After an error `fd` stays the
 * caller's, who closes it: the helper may have been asked already, and may yet answer.
 */
int dioh_connect(int fd, uint64_t required, struct dioh_session **ret_session, struct dioh_error *err);

/* What HELLO agreed on. */
void dioh_session_info(const struct dioh_session *session, struct dioh_hello_info *ret_info);

/* The helper's process id, or -1 after dioh_connect(). */
int dioh_session_pid(const struct dioh_session *session);

/* The control socket, to be watched for reading (POLLIN). Owned by the session. */
int dioh_session_fd(const struct dioh_session *session);

/*
 * Closes the connection, also in forked children, which cancels whatever runs, waits up to `timeout_ms` (-1: for ever) for
 * the helper to end, and frees the session in any case. `session` may be NULL. `ret_status` (may be NULL) gets the status
 * as waitpid(2) reports it. Returns 0; -ETIMEDOUT: it did not end in time (it will, once its I/O has; it is not killed,
 * since I/O in flight would go on without it; it stays the caller's child to reap); -ECHILD: somebody else reaped it, or
 * the kernel, since the process ignores SIGCHLD.
 */
int dioh_close(struct dioh_session *session, int timeout_ms, int *ret_status);

/* ---- attach: descriptors, before the seal ------------------------------------------------------------------------- */

struct dioh_image_options {
	int buffered_fd;      /* -1 or the image without O_DIRECT. At least one of the two */
	int direct_fd;        /* -1 or the same file, opened with O_DIRECT */
	int directory_fd;     /* -1 or the directory the image stands in, to be synced by FINISH */
	uint32_t direction;   /* enum dioh_direction */
	uint32_t direct;      /* enum dioh_direct */
	uint32_t engine;      /* enum dioh_engine */
	uint32_t block_bytes; /* 0: default */
	uint32_t in_flight;   /* 0: default */
	uint32_t workers;     /* 0: default */
	uint32_t ask;         /* enum dioh_image_ask */
	uint64_t base_offset;
	uint32_t uid, gid, mode;
	const char *label;    /* NULL or a security label */
};

#define DIOH_IMAGE_OPTIONS_INIT { -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 }

/*
 * Hands over the image. Access modes must suit the direction: save needs writing on every descriptor and reading on
 * the buffered one (O_RDWR; a lone O_WRONLY descriptor serves the raw layout only), load needs reading.
 * Errors from the helper: EBADF (O_PATH, access mode), EINVAL (kind, O_APPEND, alignment of base_offset, two
 * different files), EISDIR, EPERM (`ask` names what the helper's --allow does
 * not), EOPNOTSUPP (O_DIRECT required and not to be had; a label required where SELinux is off).
 */
int dioh_attach_image(struct dioh_session *session, const struct dioh_image_options *options,
                      struct dioh_msg_attach_image_reply *ret_info, struct dioh_error *err);

struct dioh_memory_options {
	int fd;           /* the memory: a memfd or another file that can be mapped MAP_SHARED */
	int selection_fd; /* -1 or a memfd with a page bitmap */
	uint32_t advice;  /* enum dioh_memory_advice */
	uint64_t bytes;   /* 0: what fstat says at each transfer */
};

#define DIOH_MEMORY_OPTIONS_INIT { -1, -1, 0, 0 }

/* `memory`: the caller's number for it, below DIOH_MEMORIES_MAX. EEXIST: the number is taken. */
int dioh_attach_memory(struct dioh_session *session, uint32_t memory, const struct dioh_memory_options *options,
                       struct dioh_msg_attach_memory_reply *ret_info, struct dioh_error *err);

/* `stream`: the caller's number. On save the helper reads `fd` to its end; on load it writes, and closes it after. */
int dioh_attach_stream(struct dioh_session *session, uint32_t stream, int fd,
                       struct dioh_msg_attach_stream_reply *ret_info, struct dioh_error *err);

/* `required`: enum dioh_layer bits. EPERM: one is missing; nothing has been written, and the helper ends. */
int dioh_seal(struct dioh_session *session, uint32_t required, struct dioh_msg_seal_reply *ret_info,
              struct dioh_error *err);

/* ---- the image ------------------------------------------------------------------------------------------------------- */

struct dioh_create_options {
	uint32_t layout;                      /* enum dioh_layout */
	uint32_t entry_count;
	/*
	 * Regions and streams in any order; borrowed for the call. mapped-ram: the regions that will be saved from memories, by
	 * QEMU's names and with QEMU's sizes, and one stream, the device state.
	 */
	const struct dioh_msg_entry *entries;
	uint64_t header_bytes;                /* size of the caller's own header */
	/* Its bytes, borrowed. NULL: dioh_write_header() brings them: before FINISH; with layout raw before anything else. */
	const void *header;
	uint32_t stream;                      /* mapped-ram: the attached stream with the device state */
	uint32_t flags;                       /* enum dioh_create_flag */
	uint32_t channels;                    /* mapped-ram: so many streams, numbered stream + 1 and on, are multifd's */
};

/*
 * With DIOH_CREATE_CONTINUE what an interrupted save of the same description has left there stays, as far as
 * dioh_keep_region() names it.
 *
 * Lays the image out and invalidates durably what stood there. ENOSPC: the preflight found too little space, nothing
 * was touched. May block as long as the disk does. Entries that no image could have (EINVAL; EEXIST: a number or name twice)
 * are refused before anything is sent. After another error the description cannot be given again: dioh_close(), and begin
 * anew, unless it is the stream's, below.
 *
 * raw: the image is ready once its header has come. With `header_bytes` and without `header`, `ready` of `ret_info` is
 * therefore 0, and until dioh_write_header() has brought the last byte other calls answer -EPROTO (dioh_finish(): -ENODATA).
 *
 * mapped-ram: waits until the stream has brought QEMU's RAM setup, so QEMU's migration must have been started. Blocks that
 * the entries do not name are in the stream: dioh_get_table() lists them behind this, with DIOH_ENTRY_IN_STREAM and numbers
 * of their own. ENOENT: QEMU has no block of a region's name; EINVAL: a block's size or guest address is another, or
 * x-ignore-shared is off; EBADMSG, EOPNOTSUPP: a stream that is not QEMU's, or has something in it that is not understood
 * (the text names it). After any of these the image is untouched. If it was the stream (operation PARSE, object STREAM), and
 * the helper has feature VERBATIM, dioh_create_image() with layout raw may follow, and dioh_save_stream() then saves that
 * stream as it is, from its first byte on.
 */
int dioh_create_image(struct dioh_session *session, const struct dioh_create_options *options,
                      struct dioh_msg_image_reply *ret_info, struct dioh_error *err);

/* Bytes of the caller's own header; splits what is longer than a message. */
int dioh_write_header(struct dioh_session *session, uint64_t offset, const void *bytes, uint64_t count,
                      struct dioh_error *err);

struct dioh_open_options {
	uint32_t layout; /* enum dioh_layout; DETECT knows container and mapped-ram */
	uint32_t flags;  /* enum dioh_open_flag */
	/* raw: as in dioh_create_options; mapped-ram: regions that will be loaded into memory, by QEMU's names */
	uint32_t entry_count;
	const struct dioh_msg_entry *entries;
	uint64_t header_bytes; /* raw; mapped-ram: 0: libvirt's header is looked for */
};

/*
 * Has the helper read and check the image's head and tables. EBADMSG: damaged or not an image; ENODATA: partial, a
 * save did not finish; ESTALE: written but never synced; EOPNOTSUPP: an incompatible feature, version or layout, or a save
 * image of libvirt's that is not in format sparse (with DIOH_OPEN_INSPECT it can be looked at).
 *
 * mapped-ram without entries: which regions are in the stream is what it was when the image was saved; in an image that
 * QEMU itself wrote, all; with DIOH_OPEN_ALL_IN_STREAM in any image all. With entries: these are not, all others are; an
 * entry gives the guest address
 * (DIOH_ENTRY_GUEST_ADDRESS) of a region of which the image does not know it. Of `ret_info` only `layout`, `image_bytes` and
 * `ready` mean something then, since it was answered before the image was read: for counts, state and libvirt's header open
 * the image with DIOH_OPEN_INSPECT, in a session of its own. ENOENT, EINVAL: a name, size or address that is not the image's.
 */
int dioh_open_image(struct dioh_session *session, const struct dioh_open_options *options,
                    struct dioh_msg_open_image_reply *ret_info, struct dioh_error *err);

/*
 * Fills up to `count` entries from index `first` (regions, then streams); `ret_count`: how many; 0 behind the end (-EINVAL
 * where `first` is above DIOH_REGIONS_MAX + DIOH_STREAMS_MAX, which no table reaches). A mapped-ram image may have more
 * regions than dioh_create_image() or dioh_open_image() named. `present_bytes` and flag DIOH_ENTRY_CHECKSUMS are what a load
 * finds. Of a mapped-ram image's stream `bytes` is the length of what dioh_load_stream() gives.
 */
int dioh_get_table(struct dioh_session *session, uint32_t first, uint32_t count, struct dioh_msg_entry *ret_entries,
                   uint32_t *ret_count, struct dioh_error *err);

/* Reads the caller's own header; `ret_count` is smaller than `count` only at its end. */
int dioh_read_header(struct dioh_session *session, uint64_t offset, void *bytes, uint64_t count, uint64_t *ret_count,
                     struct dioh_error *err);

/*
 * Which pages of a region are in the image: bit i, the lowest of a byte first, is page i. `offset`, in the bitmap, is a
 * multiple of 32 bytes (a chunk's); `ret_count` is smaller than `count` only at its end. Not for layout raw (EOPNOTSUPP), nor
 * for what is partial (ENODATA).
 */
int dioh_read_bitmap(struct dioh_session *session, uint32_t region, uint64_t offset, void *bytes, uint64_t count,
                     uint64_t *ret_count, struct dioh_error *err);

/*
 * In an image that was created with DIOH_CREATE_CONTINUE: these chunks stay as they stand there, and count as saved. That
 * they were saved, with the same regions, and are durable, the caller vouches for. EINVAL: no DIOH_CREATE_CONTINUE, a region
 * that is in the stream, not whole chunks, or chunks that a save of this session has begun to replace and not completed: these
 * are to be saved again; ENOENT: no such region; ERANGE: outside it; EBUSY: overlaps a running transfer, or
 * DIOH_TRANSFERS_MAX run or have an event that has not been taken; ENOBUFS: too many separate pieces.
 */
int dioh_keep_region(struct dioh_session *session, uint32_t region, uint64_t offset, uint64_t length,
                     struct dioh_error *err);

/* ---- transfers: begun by a call, ended by an event --------------------------------------------------------------------- */

/*
 * Begin to move memory. `ret_transfer` names the transfer until its DIOH_EVENT_COMPLETE. The memory must be quiet.
 * EBUSY: overlaps a running transfer, or DIOH_TRANSFERS_MAX run or have an event that has not been taken. ERANGE: outside
 * the region or the memory.
 */
int dioh_save_memory(struct dioh_session *session, const struct dioh_msg_memory_transfer *what, uint32_t *ret_transfer,
                     struct dioh_error *err);
int dioh_load_memory(struct dioh_session *session, const struct dioh_msg_memory_transfer *what, uint32_t *ret_transfer,
                     struct dioh_error *err);
int dioh_save_stream(struct dioh_session *session, const struct dioh_msg_stream_transfer *what, uint32_t *ret_transfer,
                     struct dioh_error *err);
int dioh_load_stream(struct dioh_session *session, const struct dioh_msg_stream_transfer *what, uint32_t *ret_transfer,
                     struct dioh_error *err);

/*
 * Begins to make the image complete: `mode` is an enum dioh_finish_mode; `patch` (borrowed, may be NULL) is written
 * into the caller's header at `patch_offset` (0 without a patch; mapped-ram: last of all, when everything else is
 * durable). Only its DIOH_EVENT_COMPLETE without error says that the image is complete. Refused at once with ENODATA, naming
 * what is missing, unless completed transfers cover every entry. On a load session it just ends the session in good order.
 */
int dioh_finish(struct dioh_session *session, uint32_t mode, uint64_t patch_offset, const void *patch,
                uint32_t patch_bytes, uint32_t *ret_transfer, struct dioh_error *err);

/*
 * `transfer` 0: all. `ret_in_flight` (may be NULL): I/Os still under way; DIOH_EVENT_COMPLETE comes when there are none.
 * -ENOENT: no such transfer runs. It may just have ended, and its event not been taken: that is no failure. Nor need -EPIPE
 * be one of a finish, with which the session ends: dioh_poll() has its event, if it came.
 */
int dioh_cancel(struct dioh_session *session, uint32_t transfer, uint32_t *ret_in_flight, struct dioh_error *err);

int dioh_status(struct dioh_session *session, struct dioh_msg_status_reply *ret_status, struct dioh_error *err);

/* ---- events ------------------------------------------------------------------------------------------------------------- */

enum dioh_event_type { DIOH_EVENT_PROGRESS = 1, DIOH_EVENT_COMPLETE = 2, DIOH_EVENT_STUCK = 3 };

struct dioh_event {
	uint32_t type;     /* enum dioh_event_type */
	uint32_t transfer; /* COMPLETE: which */
	struct dioh_error error;           /* COMPLETE: code 0 is success */
	struct dioh_msg_complete complete; /* COMPLETE: figures */
	struct dioh_msg_stuck stuck;       /* STUCK */
	uint32_t phase;          /* PROGRESS */
	uint32_t progress_count; /* PROGRESS */
	struct dioh_msg_progress_entry progress[DIOH_TRANSFERS_MAX];
};

/*
 * The next event: 1 and `ret_event` filled; 0: none came within `timeout_ms` (0: do not wait; -1: for ever). Events that
 * arrive while another call waits for its reply are kept: every COMPLETE, and the newest PROGRESS and STUCK. Call it
 * until it returns 0 whenever the descriptor is readable, and once after any other call of the library.
 * -EINTR: a signal came while waiting. -EPIPE with a `timeout_ms` of 0: how the helper ended may not be known yet; a
 * later call knows.
 */
int dioh_poll(struct dioh_session *session, struct dioh_event *ret_event, int timeout_ms, struct dioh_error *err);

/*
 * Waits for one transfer's COMPLETE, dropping PROGRESS and STUCK and keeping other COMPLETEs for later. Returns the
 * transfer's own result (0, or its error as -errno with `err` filled). `ret_complete` may be NULL; it is filled even if
 * the transfer failed. Signals do not end the wait: what returned before the transfer would be taken for its failure.
 * -ENOENT: no such transfer runs, or its event has been taken.
 */
int dioh_wait(struct dioh_session *session, uint32_t transfer, struct dioh_msg_complete *ret_complete,
              struct dioh_error *err);

#ifdef __GNUC__
#pragma GCC visibility pop
#endif

#ifdef __cplusplus
}
#endif

#endif
