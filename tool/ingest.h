/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* ingest.h - what the files of the verb `ingest` share. */
#ifndef DIOH_INGEST_H
#define DIOH_INGEST_H

#include <sys/un.h>

#include "tool.h"

/*
 * Makes a socket of that name, waits until `count` have connected to it, and removes it. A signal that ends the program
 * does so when the socket has been removed. `ret_fds`: those that connected before a failure are there, too.
 */
int dioh_ingest_accept(const struct sockaddr_un *address, uint32_t count, int *ret_fds, struct dioh_error *err);

#endif
