/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* dropin.h - `diohelper FILENAME FD`: what libvirt_iohelper does, in its words, by the stream path. */
#ifndef DIOH_DROPIN_H
#define DIOH_DROPIN_H

/* A copy of the whole command line of libvirt_iohelper. The answer is the exit status: 0 or 1. */
int dioh_dropin_run(int argc, char **argv);

#endif
