/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * error.c - filling struct dioh_error.
 *
 * Owns no memory and trusts its callers; what comes over the wire (dioh_error_decode) may be anything. Called by
 * everything that can fail, on both sides of the connection, also behind the seal: nothing here opens a file.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "error.h"

#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#define REASON_BYTES 96 /* ": " and the longest of the C library's texts, which has 49 bytes */

/* A failure without a code is a failure all the same: no caller may take it for success. */
static int positive(int code)
{
	if (code == 0)
		return EIO;
	return code < 0 ? -code : code;
}

/* A sentence that is too long is cut before `reason`, which tells most. The arguments may point into `err`. */
static void fill(struct dioh_error *err, int code, const struct dioh_place *place,
                 const char *reason, const char *format, va_list args)
	__attribute__((format(printf, 5, 0)));

static void fill(struct dioh_error *err, int code, const struct dioh_place *place,
                 const char *reason, const char *format, va_list args)
{
	char text[DIOH_TEXT_BYTES] = "";
	size_t reason_bytes = strlen(reason) + 1;

	vsnprintf(text, sizeof(text) - reason_bytes + 1, format, args);
	memcpy(&text[strlen(text)], reason, reason_bytes);
	err->code = code;
	err->operation = place->operation;
	err->object = place->object;
	err->number = place->number;
	err->offset = place->offset;
	memcpy(err->text, text, sizeof(err->text));
}

int dioh_error_set(struct dioh_error *err, int code, const struct dioh_place *place,
                   const char *format, ...)
{
	va_list args;

	code = positive(code);
	if (err) {
		va_start(args, format);
		fill(err, code, place, "", format, args);
		va_end(args);
	}
	return -code;
}

int dioh_error_errno(struct dioh_error *err, int code, const struct dioh_place *place,
                     const char *format, ...)
{
	char reason[REASON_BYTES];
	va_list args;

	code = positive(code);
	if (err) {
		snprintf(reason, sizeof(reason), ": %s", dioh_error_text(code));
		va_start(args, format);
		fill(err, code, place, reason, format, args);
		va_end(args);
	}
	return -code;
}

void dioh_error_encode(const struct dioh_error *err, struct dioh_msg_error *wire)
{
	*wire = (struct dioh_msg_error){
		.code = err->code,
		.operation = err->operation,
		.object = err->object,
		.number = err->number,
		.offset = err->offset,
	};
	memcpy(wire->text, err->text, strnlen(err->text, sizeof(wire->text) - 1));
}

static bool is_control(unsigned char c)
{
	return c < 0x20 || c == 0x7f;
}

/* U+0080 to U+009F in UTF-8: terminals obey them too. */
static bool is_c1_control(const char *text)
{
	return (unsigned char)text[0] == 0xc2 && (unsigned char)text[1] >= 0x80 &&
	       (unsigned char)text[1] < 0xa0;
}

void dioh_error_decode(const struct dioh_msg_error *wire, struct dioh_error *err)
{
	err->code = wire->code;
	err->operation = wire->operation;
	err->object = wire->object;
	err->number = wire->number;
	err->offset = wire->offset;
	memcpy(err->text, wire->text, sizeof(err->text));
	err->text[sizeof(err->text) - 1] = '\0';
	for (char *p = err->text; *p != '\0'; p++) {
		if (is_c1_control(p))
			*p++ = '?';
		else if (!is_control((unsigned char)*p))
			continue;
		*p = '?';
	}
}

const char *dioh_error_text(int code)
{
	const char *text = strerrordesc_np(positive(code));

	return text ? text : "unknown error";
}
