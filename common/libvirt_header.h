/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * libvirt_header.h - the header that libvirt's QEMU driver puts before QEMU's bytes in a save image: 92 bytes, then the
 * domain's XML and a cookie. Pure functions; every byte may come from a hostile image.
 *
 * Source: libvirt 11.3, src/qemu/qemu_saveimage.h, qemu_saveimage.c. Private to helper, tests and fuzzers.
 */
#ifndef DIOH_LIBVIRT_HEADER_H
#define DIOH_LIBVIRT_HEADER_H

#include <stdbool.h>
#include <stddef.h>

#include "diohelper-protocol.h"
#include "error.h"

#define DIOH_LIBVIRT_HEADER_BYTES 92u
#define DIOH_LIBVIRT_MAGIC_COMPLETE "LibvirtQemudSave" /* 16 bytes, no NUL */
#define DIOH_LIBVIRT_MAGIC_PARTIAL "LibvirtQemudPart"

enum dioh_libvirt_format { /* of what follows the header; never renumbered by libvirt */
	DIOH_LIBVIRT_RAW = 0,
	DIOH_LIBVIRT_GZIP = 1,
	DIOH_LIBVIRT_BZIP2 = 2,
	DIOH_LIBVIRT_XZ = 3,
	DIOH_LIBVIRT_LZOP = 4,
	DIOH_LIBVIRT_ZSTD = 5,
	DIOH_LIBVIRT_SPARSE = 6, /* mapped-ram */
};

struct dioh_libvirt_header {
	bool complete; /* the magic says so */
	bool swapped;  /* written on a host of the other endianness */
	bool was_running;
	uint32_t format;
	uint32_t data_bytes;    /* XML, cookie and padding, behind the 92 bytes */
	uint32_t cookie_offset; /* in these; 0, or their end: none */
};

/* Is this libvirt's? (the magic alone) */
bool dioh_libvirt_header_is(const void *bytes, size_t count);

/*
 * Reads 92 bytes; `file_bytes`: what the file has from the header on. -EBADMSG: not libvirt's, or a length or offset that
 * cannot be; -EOPNOTSUPP: a version or format that is not known. Operation PARSE, object IMAGE, the field's offset.
 */
int dioh_libvirt_header_read(const void *bytes, uint64_t file_bytes, struct dioh_libvirt_header *ret_header,
                             struct dioh_error *err);

/* What `inspect` shows of the domain. Empty strings and 0 where the XML does not have it. */
struct dioh_libvirt_domain {
	char name[DIOH_NAME_BYTES];
	char uuid[40];
	uint64_t memory_bytes;
};

/*
 * Finds name, uuid and memory among the children of the XML's outermost element; libvirt's save images have <domain>, or
 * <domstatus>-like wrappers around it are not followed. `xml` need not be NUL-terminated and may be cut off. Entities of
 * XML are decoded; bytes below 0x20 become '?'. Not a validating parser: what it cannot follow it leaves empty.
 */
void dioh_libvirt_domain_read(const char *xml, size_t count, struct dioh_libvirt_domain *ret_domain);

#endif
