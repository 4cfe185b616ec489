/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * fuse_file.h - a disk that does what the test says: a FUSE mount of our own with one file in it, "image", whose
 * server can be told to leave requests unanswered, to answer them with an error, or to write less than it was given.
 *
 * The server is a forked child that talks to /dev/fuse and keeps the file in a memfd; what the test tells it goes
 * through shared memory. It dies with the test program, and the mount stands in a mount namespace of the program's own:
 * nothing is left over however the program ends. Needs root. There may be several, each with a server of its own.
 */
#ifndef DIOH_FUSE_FILE_H
#define DIOH_FUSE_FILE_H

#include <stdbool.h>
#include <stdint.h>

#include <linux/fuse.h>

struct fuse_file_options {
	bool async_dio; /* direct I/O of io_uring needs no thread while it is under way */
	bool direct_io; /* what is cut short comes back short; else the kernel repeats the rest through its page cache */
	bool only_root; /* mounted without allow_other */
	bool direct_all; /* direct_io for descriptors without O_DIRECT, too: every I/O is one request */
	bool fallocate; /* known; else it is refused with EOPNOTSUPP */
	bool seek; /* holes are told of; else all is data */
	bool flush; /* each close(2) asks; else none does, whatever hangs */
	bool record; /* what the file was told is kept: fuse_file_record() */
	unsigned life_s; /* the server's, should everything else that ends it fail; 0: 300 */
};

#define FUSE_FILES_MAX 256u

struct fuse_file;

/*
 * Mounts on a new directory `name` in fixture_dir(). NULL: it cannot be had here, and *ret_why says why. To be called
 * before the program has threads.
 */
struct fuse_file *fuse_file_start(const char *name, const struct fuse_file_options *options, const char **ret_why);
/* Releases everything, unmounts, ends the server. NULL is accepted. */
void fuse_file_stop(struct fuse_file *file);

const char *fuse_file_path(const struct fuse_file *file);
const char *fuse_file_directory(const struct fuse_file *file);
/* The bytes of the file as the server has them; the file's owner is the server. */
int fuse_file_memfd(const struct fuse_file *file);

enum fuse_fault_kind {
	FUSE_FAULT_NONE,
	FUSE_FAULT_HOLD,  /* taken, and not answered before fuse_file_release() */
	FUSE_FAULT_ERROR, /* answered with errno `value` */
	FUSE_FAULT_SHORT, /* WRITE, READ: of the bytes only `value` are moved, if there are more */
	FUSE_FAULT_FREEZE, /* answered, and then no request is taken any more, as if the server had been stopped */
	FUSE_FAULT_LATE,  /* answered `value` ms later, as fuse_file_release_later() does it */
	FUSE_FAULT_TORN,  /* WRITE: every other sector is written, then the answer is errno `value` */
	FUSE_FAULT_DONE,  /* carried out, and then answered with errno `value` */
	FUSE_FAULT_LOST,  /* WRITE: acknowledged and dropped; the next FSYNC is answered with errno `value` */
};

enum fuse_fault_handles { FUSE_HANDLES_ALL, FUSE_HANDLES_DIRECT, FUSE_HANDLES_BUFFERED };

struct fuse_fault {
	enum fuse_fault_kind kind;
	int value;
	enum fuse_fault_handles handles; /* READ, WRITE, FSYNC: through descriptors with or without O_DIRECT only */
	unsigned after; /* let so many pass first */
	unsigned times; /* and only so many are hit; 0: all */
	bool same_place; /* READ, WRITE: but what begins where the first one did is hit whenever it comes again */
};

/* What happens to requests of an opcode (enum fuse_opcode) from now on: the fields of a struct fuse_fault. */
#define fuse_file_fault(file, opcode, ...) \
	fuse_file_set_fault(file, opcode, &(const struct fuse_fault){ __VA_ARGS__ })
void fuse_file_set_fault(struct fuse_file *file, uint32_t opcode, const struct fuse_fault *fault);
/* Whether FUSE_INTERRUPT for a held request is obeyed (EINTR) or ignored, as at the start. */
void fuse_file_obey_interrupts(struct fuse_file *file, bool obey);
/* All faults are over. Held requests are carried out now (0), or answered with this errno. */
void fuse_file_release(struct fuse_file *file, int error);
/* Held requests are carried out now, and the faults stay. */
void fuse_file_release_held(struct fuse_file *file);
/* fuse_file_release(file, 0), by the server itself, some time later: for a test whose thread is going to be stuck. */
void fuse_file_release_later(struct fuse_file *file, unsigned ms);

/* How many requests are held now. */
unsigned fuse_file_held(const struct fuse_file *file);
/* How many requests of an opcode have come; how many its fault has hit since it was set; where the first of these. */
unsigned fuse_file_count(const struct fuse_file *file, uint32_t opcode);
unsigned fuse_file_hits(const struct fuse_file *file, uint32_t opcode);
uint64_t fuse_file_hit_offset(const struct fuse_file *file, uint32_t opcode);
/* Of READ, WRITE and FSYNC: through descriptors with or without O_DIRECT. */
unsigned fuse_file_count_handles(const struct fuse_file *file, uint32_t opcode, enum fuse_fault_handles handles);

/* ---- what was carried out, in order ---- */

struct fuse_step {
	uint32_t opcode; /* FUSE_WRITE, FUSE_SETATTR (of the size), FUSE_FALLOCATE, FUSE_FSYNC */
	uint32_t flags;  /* FSYNC: FUSE_FSYNC_FDATASYNC; FALLOCATE: its mode */
	uint64_t offset; /* SETATTR: the size */
	uint64_t bytes;
	const uint8_t *data; /* WRITE */
};

/* true: forgets what was recorded, and records. */
void fuse_file_record(struct fuse_file *file, bool on);
/* The step at *cursor (0: the first), which is moved on; false: there are no more. */
bool fuse_file_step(const struct fuse_file *file, uint64_t *cursor, struct fuse_step *ret_step);

#endif
