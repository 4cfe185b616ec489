/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* error.h - filling struct dioh_error. Every function returns -code, so that a failing branch is one line. */
#ifndef DIOH_ERROR_H
#define DIOH_ERROR_H

#include "diohelper.h"

struct dioh_place { /* what an error is about */
	uint32_t operation;
	uint32_t object;
	uint32_t number;
	uint64_t offset;
};

#define DIOH_PLACE(op, obj, num, off) (&(const struct dioh_place){ DIOH_OP_##op, DIOH_OBJECT_##obj, (num), (off) })

/*
 * Sets code, place and text. `code` may be given as errno or -errno. The text is `format`, nothing is added. `err` may
 * be NULL. Returns the negative code.
 */
int dioh_error_set(struct dioh_error *err, int code, const struct dioh_place *place, const char *format, ...)
	__attribute__((format(printf, 4, 5)));

/* As dioh_error_set(), with ": " and the errno's text appended, for which a long sentence is cut. */
int dioh_error_errno(struct dioh_error *err, int code, const struct dioh_place *place, const char *format, ...)
	__attribute__((format(printf, 4, 5)));

/* To and from the wire. Decoding forces a NUL into the text and makes control characters printable. */
void dioh_error_encode(const struct dioh_error *err, struct dioh_msg_error *wire);
void dioh_error_decode(const struct dioh_msg_error *wire, struct dioh_error *err);

/* The errno's text; needs no file, so it works behind the seal. */
const char *dioh_error_text(int code);

#endif
