/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * label.h - label, owner and mode of the image, as ATTACH_IMAGE asks for them: by descriptor, before the seal, since they
 * take privilege. What may be asked at all is named on serve's command line.
 */
#ifndef DIOH_LABEL_H
#define DIOH_LABEL_H

#include "error.h"
#include "image.h"

/* serve's --allow: a bit each. */
enum dioh_allow { DIOH_ALLOW_LABEL = 1 << 0, DIOH_ALLOW_OWNER = 1 << 1, DIOH_ALLOW_MODE = 1 << 2 };

/* Whether the command line allows (enum dioh_allow) what is asked; else EPERM. */
int dioh_label_check(const struct dioh_msg_attach_image *request, uint32_t allowed, struct dioh_error *err);

/*
 * Sets what is asked: label, then owner, then mode. Fills the reply's label_before, label_after and done. EPERM: not
 * permitted by the kernel; EOPNOTSUPP: a label is required and SELinux is off, or the file system has none.
 */
int dioh_label_image(const struct dioh_msg_attach_image *request, struct dioh_image *image,
                     struct dioh_msg_attach_image_reply *reply, struct dioh_error *err);

/* This process's own SELinux context; false, and empty, where SELinux is off. Before the seal only: it opens a file. */
bool dioh_label_own_context(char context[DIOH_LABEL_BYTES]);

#endif
