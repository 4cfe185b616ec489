/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * sandbox.h - what the kernel refuses us from the seal on, whoever we have become: paths and peers (landlock.c), system
 * calls (seccomp.c). seal.c and session_attach.c say when. docs/security.md says what each layer is for.
 */
#ifndef DIOH_SANDBOX_H
#define DIOH_SANDBOX_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "error.h"

/*
 * Sanitizers watch us from inside: they read /proc, and make calls of their own. In such builds there is no Landlock, and of
 * calls only those are refused that kill.
 */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define DIOH_SANDBOX_WATCHED true
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#define DIOH_SANDBOX_WATCHED true
#endif
#endif
#ifndef DIOH_SANDBOX_WATCHED
#define DIOH_SANDBOX_WATCHED false
#endif

/*
 * Landlock: no path, no TCP port, no signal and no abstract socket beyond this process. Acts on the calling thread and on
 * those it starts later; needs NO_NEW_PRIVS. false: the kernel, or this build, has none.
 */
bool dioh_sandbox_landlock(void);

enum dioh_sandbox_profile { /* a bit each: which lives and engines a call is for */
	DIOH_SANDBOX_SERVE = 1 << 0,
	DIOH_SANDBOX_DROP_IN = 1 << 1,
	DIOH_SANDBOX_URING = 1 << 2,
	DIOH_SANDBOX_LIBAIO = 1 << 3,
	DIOH_SANDBOX_SYNC = 1 << 4,
};

/* The bit of an engine (enum dioh_engine). */
uint32_t dioh_sandbox_engine(uint32_t engine);

/*
 * The system call filter, in every thread at once; the last layer. `profile`: a life and the engine that runs. Installs the
 * handler that names a call which is not in the table, to the manager (`control_fd`; -1: there is none) and on standard
 * error. false: the kernel, or a container's filter, does not let us.
 */
bool dioh_sandbox_seccomp(uint32_t profile, int control_fd);

/* The filter's table for people and tests, a line a call. */
void dioh_sandbox_print(FILE *to);

#endif
