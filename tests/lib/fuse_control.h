/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* fuse_control.h - between fuse_file.c, on the test's side, and fuse_server.c: what stands in the memory both share. */
#ifndef DIOH_FUSE_CONTROL_H
#define DIOH_FUSE_CONTROL_H

#include <stdatomic.h>
#include <stdint.h>

#include "fuse_file.h"

#define FUSE_OPCODES_MAX 64u
#define FUSE_LOG_BYTES (UINT64_C(256) << 20)

struct fuse_rule { /* what to do with an opcode's requests: the test writes, `kind` last, the server reads */
	atomic_uint kind;
	atomic_int value;
	atomic_uint handles;
	atomic_uint after;
	atomic_uint times;
	atomic_bool same_place;
	atomic_uint seen; /* by the rule */
	atomic_uint hits;
	atomic_ullong hit_offset;
};

struct fuse_control {
	atomic_int state; /* 0: starting; 1: mounted; below: -errno */
	atomic_bool frozen;
	atomic_bool obey_interrupts;
	atomic_uint release; /* counts */
	atomic_int release_error;
	atomic_ullong release_at_ns; /* CLOCK_MONOTONIC; 0: never */
	atomic_uint held;
	atomic_uint counts[FUSE_OPCODES_MAX];
	atomic_uint counts_direct[FUSE_OPCODES_MAX];
	atomic_bool recording;
	atomic_ullong log_bytes; /* behind this struct: each a struct fuse_step and its data */
	struct fuse_rule rules[FUSE_OPCODES_MAX];
};

/* Mounts on `path` and serves until it is unmounted: the child's whole life. */
_Noreturn void fuse_server_run(struct fuse_control *control, const char *path, int memfd,
                               const struct fuse_file_options *options);
static inline uint8_t *fuse_control_log(struct fuse_control *control)
{
	return (uint8_t *)(control + 1);
}

/* Clears all rules. */
void fuse_control_calm(struct fuse_control *control);

#endif
