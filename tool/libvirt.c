/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * libvirt.c - the one field of libvirt's header that is set anew when something else is to stand behind it. Called by
 * convert.c, of a header that a helper has checked, and by ingest.c, of one that the user brings.
 *
 * libvirt's contract: src/qemu/qemu_saveimage_format.h. Numbers in the byte order of the host that wrote them.
 */
#include <string.h>

#include "tool.h"

#define HEADER_BYTES 92u
#define VERSION_AT 16u
#define VERSION 2u
#define FORMAT_AT 28u

bool dioh_tool_libvirt_is_header(const uint8_t *header, uint64_t bytes)
{
	return bytes >= DIOH_TOOL_LIBVIRT_MAGIC_BYTES &&
	       (memcmp(header, DIOH_TOOL_LIBVIRT_COMPLETE, DIOH_TOOL_LIBVIRT_MAGIC_BYTES) == 0 ||
	        memcmp(header, DIOH_TOOL_LIBVIRT_PARTIAL, DIOH_TOOL_LIBVIRT_MAGIC_BYTES) == 0);
}

bool dioh_tool_libvirt_set_format(uint8_t *header, uint64_t bytes, uint32_t format)
{
	uint32_t version;

	if (bytes < HEADER_BYTES || !dioh_tool_libvirt_is_header(header, bytes))
		return false;
	memcpy(&version, header + VERSION_AT, sizeof(version));
	if (version != VERSION)
		return false;
	memcpy(header + FORMAT_AT, &format, sizeof(format));
	return true;
}
