/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qemu_stream_put.c - writing what QEMU's migration streams say of guest memory: the encoders of qemu_stream.h. What they
 * are given has been read by its parser, or checked by the helper.
 */
#include "qemu_stream.h"

#include "qemu_wire.h"

static uint8_t *put_capabilities(uint8_t *to, uint32_t declared)
{
	uint32_t count = 0;

	for (unsigned i = 0; i < COUNT_OF(capabilities); i++)
		count += (declared & capabilities[i].capability) != 0;
	if (count == 0)
		return to;
	to = put_name(put_u8(to, SUBSECTION), CAPABILITIES_NAME);
	to = put_be32(put_be32(to, SUBSECTION_VERSION), count);
	for (unsigned i = 0; i < COUNT_OF(capabilities); i++) {
		if (declared & capabilities[i].capability)
			to = put_name(to, capabilities[i].name);
	}
	return to;
}

size_t dioh_qemu_put_configuration(uint8_t *to, const struct dioh_qemu_setup *setup,
                                   uint32_t declared)
{
	size_t at = setup->capabilities_at;
	uint8_t *end = put_bytes(to, setup->configuration, at);

	end = put_capabilities(end, declared);
	end = put_bytes(end, &setup->configuration[at], setup->configuration_bytes - at);
	return (size_t)(end - to);
}

size_t dioh_qemu_put_ram_start(uint8_t *to, const struct dioh_qemu_setup *setup)
{
	uint8_t *end = put_be32(put_u8(to, SECTION_START), setup->ram_section);

	end = put_be32(put_name(end, "ram"), 0);
	end = put_be32(end, setup->ram_version);
	end = put_be64(end, setup->total_bytes | RECORD_MEM_SIZE);
	return (size_t)(end - to);
}

size_t dioh_qemu_put_block(uint8_t *to, const struct dioh_qemu_block *entry, uint32_t declared)
{
	uint8_t *end = put_be64(put_name(to, entry->name), entry->bytes);

	if (declared & DIOH_QEMU_IGNORE_SHARED)
		end = put_be64(end, entry->guest_address);
	if (declared & DIOH_QEMU_MAPPED_RAM) {
		end = put_be32(end, MAPPED_VERSION_MAX);
		end = put_be64(end, DIOH_PAGE_BYTES);
		end = put_be64(end, entry->bitmap_offset);
		end = put_be64(end, entry->pages_offset);
	}
	return (size_t)(end - to);
}

size_t dioh_qemu_put_section_end(uint8_t *to, const struct dioh_qemu_setup *setup)
{
	uint8_t *end = put_be64(to, RECORD_EOS);

	if (setup->footers)
		end = put_be32(put_u8(end, SECTION_FOOTER), setup->ram_section);
	return (size_t)(end - to);
}

size_t dioh_qemu_put_part_start(uint8_t *to, const struct dioh_qemu_setup *setup)
{
	return (size_t)(put_be32(put_u8(to, SECTION_PART), setup->ram_section) - to);
}

size_t dioh_qemu_put_page(uint8_t *to, const char *name, uint64_t number, bool zero)
{
	uint64_t flags = (zero ? RECORD_ZERO : RECORD_PAGE) | (name ? 0 : RECORD_CONTINUE);
	uint8_t *end = put_be64(to, number * DIOH_PAGE_BYTES | flags);

	if (name)
		end = put_name(end, name);
	if (zero)
		end = put_u8(end, 0);
	return (size_t)(end - to);
}
