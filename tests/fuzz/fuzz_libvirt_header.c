/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * fuzz_libvirt_header.c - libvirt's header and the XML behind it, from any bytes: 92 of a header if there are so many,
 * the rest is XML; and all of it as XML once more.
 */
#include <string.h>

#include "fuzz.h"
#include "libvirt_header.h"

static void try_header(const uint8_t *data, size_t size)
{
	struct dioh_libvirt_header header;

	if (dioh_libvirt_header_read(data, size, &header, NULL) < 0)
		return;
	CHECK(dioh_libvirt_header_is(data, size));
	CHECK(header.data_bytes > 0 && header.data_bytes <= size - DIOH_LIBVIRT_HEADER_BYTES);
	CHECK(header.cookie_offset <= header.data_bytes);
	CHECK(header.format <= DIOH_LIBVIRT_SPARSE);
}

/* From memory that ends where the XML ends. */
static void try_xml(const uint8_t *data, size_t size)
{
	struct dioh_libvirt_domain domain;
	char *xml = malloc(size + 1);

	CHECK(xml != NULL);
	memcpy(xml + 1, data, size);
	dioh_libvirt_domain_read(xml + 1, size, &domain);
	CHECK(memchr(domain.name, '\0', sizeof(domain.name)) && memchr(domain.uuid, '\0', sizeof(domain.uuid)));
	for (const char *c = domain.name; *c; c++)
		CHECK((unsigned char)*c >= 0x20);
	for (const char *c = domain.uuid; *c; c++)
		CHECK((unsigned char)*c >= 0x20);
	free(xml);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (size >= DIOH_LIBVIRT_HEADER_BYTES) {
		try_header(data, size);
		try_xml(data + DIOH_LIBVIRT_HEADER_BYTES, size - DIOH_LIBVIRT_HEADER_BYTES);
	}
	try_xml(data, size);
	return 0;
}
