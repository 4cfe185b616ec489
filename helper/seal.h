/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* seal.h - the staged loss of privilege. seal.c explains the order. */
#ifndef DIOH_SEAL_H
#define DIOH_SEAL_H

#include <stdbool.h>
#include <sys/types.h>

#include "error.h"

struct dioh_identity { /* whom to become if we are root */
	bool keep_uid;
	uid_t uid;
	gid_t gid;
};

/* The user that serve changes to by default: our own if it exists, else nobody. */
void dioh_seal_default_identity(struct dioh_identity *identity);

/*
 * Stage 1, first thing in main. `keep_fd` is the one descriptor beyond stdio that is kept; -1: none. `identity` and `allow`
 * (enum dioh_allow) say which capabilities will still be needed.
 */
int dioh_seal_start(int keep_fd, const struct dioh_identity *identity, uint32_t allow, struct dioh_error *err);

/* Stage 2, on SEAL, while the process has one thread. `ret_layers`: enum dioh_layer bits that hold now. */
int dioh_seal_privileges(const struct dioh_identity *identity, uint32_t *ret_layers, struct dioh_error *err);

/* Layers this build could give, for --print-capabilities; what the kernel really gives is in SEAL's reply. */
uint32_t dioh_seal_layers_available(void);

#endif
