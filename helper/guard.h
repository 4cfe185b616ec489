/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * guard.h - touching memory that somebody else may truncate. A touch behind the end of a shared file, or of bad RAM,
 * raises SIGBUS; inside a guard it becomes a return value instead.
 */
#ifndef DIOH_GUARD_H
#define DIOH_GUARD_H

#include <stdbool.h>

/* Installs the process' SIGBUS handler. Outside a guard SIGBUS still ends the process. */
void dioh_guard_install(void);

/*
 * Runs `touch(argument)`. true: it ran through; false: it met SIGBUS, and `ret_fault` is the address that could not be
 * touched. `touch` is left in its middle then: it may own nothing. Any thread; guards do not nest.
 */
bool dioh_guard_run(void (*touch)(void *argument), void *argument, const void **ret_fault);

#endif
