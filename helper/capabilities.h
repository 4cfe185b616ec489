/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* capabilities.h - what this build can do: for HELLO, and for managers that probe before they spawn. */
#ifndef DIOH_CAPABILITIES_H
#define DIOH_CAPABILITIES_H

#include "diohelper-protocol.h"

#define DIOH_FEATURES_OFFERED                                                                     \
	((uint64_t)(DIOH_FEATURE_LAYOUT_RAW | DIOH_FEATURE_LAYOUT_CONTAINER |                     \
	            DIOH_FEATURE_LAYOUT_MAPPED_RAM | DIOH_FEATURE_STREAM |                        \
	            DIOH_FEATURE_SELECTION | DIOH_FEATURE_CHECKSUM | DIOH_FEATURE_WRITTEN |        \
	            DIOH_FEATURE_LABEL | DIOH_FEATURE_READ_BITMAP |                               \
	            DIOH_FEATURE_ALL_IN_STREAM | DIOH_FEATURE_CONTINUE |          \
	            DIOH_FEATURE_MULTIFD | DIOH_FEATURE_VERBATIM))

/* JSON on standard output. */
void dioh_capabilities_print(void);

#endif
