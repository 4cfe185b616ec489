/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qemu_configuration.c - a migration stream's magic and configuration: the machine, and what the sender declares.
 *
 * It is kept, but for the capabilities, for whoever composes an image of the stream. Of the parser: see qemu_parser.h.
 */
#include "qemu_parser.h"

#define MAGIC 0x5145564du /* "QEVM" */
#define STREAM_VERSION 3u
#define TARGET_PAGE_BITS 12u
#define UUID_BYTES 16u

_Static_assert(DIOH_PAGE_BYTES == 1u << TARGET_PAGE_BITS, "a page is QEMU's page");

static const struct {
	const char *name;
	size_t bytes; /* version and the content's fixed part */
} subsections[] = {
	[PAGE_BITS] = { "configuration/target-page-bits", 8 },
	[CAPABILITIES] = { CAPABILITIES_NAME, 8 },
	[UUID] = { "configuration/uuid", 4 + UUID_BYTES },
};

static handler configuration_type, configuration_bytes, machine, configuration_next, early_command;
static handler subsection_name_bytes, subsection_name, subsection_content;
static handler capability_name_bytes, capability_name;

static void keep(struct dioh_qemu_parser *p, const void *bytes, size_t count)
{
	memcpy(&p->configuration[p->setup.configuration_bytes], bytes, count);
	p->setup.configuration_bytes += count;
}

int dioh_qemu_magic(struct dioh_qemu_parser *p, const uint8_t *item, struct dioh_qemu_piece *piece,
                    struct dioh_error *err)
{
	(void)piece;
	if (get_be32(item) != MAGIC)
		return REFUSE(p, err, -EBADMSG, item_at(p),
		              "it starts with 0x%08" PRIx32 " instead of QEMU's magic", get_be32(item));
	if (get_be32(&item[4]) != STREAM_VERSION)
		return REFUSE(p, err, -EOPNOTSUPP, item_at(p) + 4,
		              "version %" PRIu32 " is not understood, only %u", get_be32(&item[4]),
		              STREAM_VERSION);
	keep(p, item, 8);
	return expect(p, configuration_type, 1);
}

static int configuration_type(struct dioh_qemu_parser *p, const uint8_t *item,
                              struct dioh_qemu_piece *piece, struct dioh_error *err)
{
	(void)piece;
	if (*item != SECTION_CONFIGURATION)
		return REFUSE(p, err, is_known_section(*item) ? -EOPNOTSUPP : -EBADMSG, item_at(p),
		              "it has no configuration section, but a section of type 0x%02x", *item);
	keep(p, item, 1);
	return expect(p, configuration_bytes, 4);
}

static int configuration_bytes(struct dioh_qemu_parser *p, const uint8_t *item,
                               struct dioh_qemu_piece *piece, struct dioh_error *err)
{
	uint32_t bytes = get_be32(item);

	(void)piece;
	if (bytes == 0)
		return REFUSE(p, err, -EBADMSG, item_at(p), "the machine's name is empty");
	if (bytes >= DIOH_NAME_BYTES)
		return REFUSE(p, err, -EFBIG, item_at(p),
		              "the machine's name of %" PRIu32 " bytes is longer than %u", bytes,
		              DIOH_NAME_BYTES - 1);
	keep(p, item, 4);
	return expect(p, machine, bytes);
}

static int machine(struct dioh_qemu_parser *p, const uint8_t *item, struct dioh_qemu_piece *piece,
                   struct dioh_error *err)
{
	(void)piece;
	if (!is_printable(item, p->need))
		return REFUSE(p, err, -EBADMSG, item_at(p),
		              "the machine's name \"%s\" has characters that are not printable",
		              show(item, p->need).text);
	memcpy(p->setup.machine, item, p->need);
	keep(p, item, p->need);
	p->setup.capabilities_at = p->setup.configuration_bytes;
	return expect(p, configuration_next, 1);
}

/* Both forms begin alike; what declares mapped-ram has its pages elsewhere. */
static int check_form(const struct dioh_qemu_parser *p, struct dioh_error *err)
{
	bool mapped = p->setup.capabilities & DIOH_QEMU_MAPPED_RAM;

	if (mapped && p->form != DIOH_QEMU_IMAGE)
		return REFUSE(p, err, -EOPNOTSUPP, item_at(p),
		              "it declares mapped-ram: it is an image, whose pages do not stand in the stream");
	if (!mapped && p->form == DIOH_QEMU_IMAGE)
		return REFUSE(p, err, -EOPNOTSUPP, item_at(p),
		              "it does not declare mapped-ram: it is a stream, whose pages stand in it");
	/* QEMU 10.0 cannot load that: it writes guest addresses that it does not read. */
	if (mapped && (p->setup.capabilities & DIOH_QEMU_IGNORE_SHARED))
		return REFUSE(p, err, -EOPNOTSUPP, item_at(p),
		              "it declares both mapped-ram and x-ignore-shared, which QEMU cannot load");
	return 0;
}

static int configuration_next(struct dioh_qemu_parser *p, const uint8_t *item,
                              struct dioh_qemu_piece *piece, struct dioh_error *err)
{
	int r;

	(void)piece;
	if (*item == SUBSECTION)
		return expect(p, subsection_name_bytes, 1);
	r = check_form(p, err);
	if (r < 0)
		return r;
	p->configured = true;
	p->stage = "in the RAM section's start";
	if (*item == SECTION_START)
		return expect(p, dioh_qemu_start_head, 5);
	if (*item == SECTION_FULL)
		return dioh_qemu_expect_foreign(p, *item);
	if (*item == SECTION_COMMAND)
		return expect(p, early_command, 4);
	return REFUSE(p, err, is_known_section(*item) ? -EOPNOTSUPP : -EBADMSG, item_at(p),
	              "a section of type 0x%02x instead of the RAM section's start", *item);
}

/* Postcopy begins with one, and so does a migration that wants answers. */
static int early_command(struct dioh_qemu_parser *p, const uint8_t *item,
                         struct dioh_qemu_piece *piece, struct dioh_error *err)
{
	(void)piece;
	return REFUSE(p, err, -EOPNOTSUPP, item_at(p) - 1,
	              "command %" PRIu32 ", %s, instead of the RAM section's start is not understood",
	              get_be16(item), dioh_qemu_command_name(get_be16(item)));
}

static int subsection_name_bytes(struct dioh_qemu_parser *p, const uint8_t *item,
                                 struct dioh_qemu_piece *piece, struct dioh_error *err)
{
	(void)piece;
	return expect_name(p, item, subsection_name, 0, "a subsection of the configuration", err);
}

static int subsection_name(struct dioh_qemu_parser *p, const uint8_t *item,
                           struct dioh_qemu_piece *piece, struct dioh_error *err)
{
	(void)piece;
	for (unsigned i = 0; i < COUNT_OF(subsections); i++) {
		if (!is_name(subsections[i].name, item, p->need))
			continue;
		if (p->subsections_seen & 1u << i)
			return REFUSE(p, err, -EBADMSG, item_at(p), "it has two subsections \"%s\"",
			              subsections[i].name);
		p->subsections_seen |= 1u << i;
		p->subsection = i;
		return expect(p, subsection_content, subsections[i].bytes);
	}
	return REFUSE(p, err, -EOPNOTSUPP, item_at(p),
	              "the configuration's subsection \"%s\" is not understood",
	              show(item, p->need).text);
}

static void keep_subsection(struct dioh_qemu_parser *p, const uint8_t *content)
{
	const char *name = subsections[p->subsection].name;
	const uint8_t head[] = { SUBSECTION, (uint8_t)strlen(name) };

	keep(p, head, sizeof(head));
	keep(p, name, strlen(name));
	keep(p, content, p->need);
}

static int page_bits(struct dioh_qemu_parser *p, const uint8_t *item, struct dioh_error *err)
{
	uint32_t bits = get_be32(&item[4]);

	if (bits != TARGET_PAGE_BITS)
		return REFUSE(p, err, -EOPNOTSUPP, item_at(p) + 4,
		              "\"configuration/target-page-bits\" is %" PRIu32 ", but only %u is understood",
		              bits, TARGET_PAGE_BITS);
	keep_subsection(p, item);
	/* QEMU puts the capabilities behind this one. */
	if (!(p->subsections_seen & 1u << CAPABILITIES))
		p->setup.capabilities_at = p->setup.configuration_bytes;
	return expect(p, configuration_next, 1);
}

static int next_capability(struct dioh_qemu_parser *p)
{
	if (p->capabilities_left == 0)
		return expect(p, configuration_next, 1);
	p->capabilities_left--;
	return expect(p, capability_name_bytes, 1);
}

static int subsection_content(struct dioh_qemu_parser *p, const uint8_t *item,
                              struct dioh_qemu_piece *piece, struct dioh_error *err)
{
	(void)piece;
	if (get_be32(item) != SUBSECTION_VERSION)
		return REFUSE(p, err, -EOPNOTSUPP, item_at(p),
		              "version %" PRIu32 " of \"%s\" is not understood, only %u",
		              get_be32(item), subsections[p->subsection].name, SUBSECTION_VERSION);
	if (p->subsection == PAGE_BITS)
		return page_bits(p, item, err);
	if (p->subsection == CAPABILITIES) {
		p->setup.capabilities_at = p->setup.configuration_bytes;
		p->capabilities_left = get_be32(&item[4]);
		return next_capability(p);
	}
	keep_subsection(p, item);
	return expect(p, configuration_next, 1);
}

static int capability_name_bytes(struct dioh_qemu_parser *p, const uint8_t *item,
                                 struct dioh_qemu_piece *piece, struct dioh_error *err)
{
	(void)piece;
	return expect_name(p, item, capability_name, 0, "a capability", err);
}

/* None may come twice: however many are announced, no more are read than there are. */
static int capability_name(struct dioh_qemu_parser *p, const uint8_t *item,
                           struct dioh_qemu_piece *piece, struct dioh_error *err)
{
	(void)piece;
	for (unsigned i = 0; i < COUNT_OF(capabilities); i++) {
		if (!is_name(capabilities[i].name, item, p->need))
			continue;
		if (p->setup.capabilities & capabilities[i].capability)
			return REFUSE(p, err, -EBADMSG, item_at(p), "it declares \"%s\" twice",
			              capabilities[i].name);
		p->setup.capabilities |= capabilities[i].capability;
		return next_capability(p);
	}
	return REFUSE(p, err, -EOPNOTSUPP, item_at(p),
	              "it declares the capability \"%s\", which is not understood",
	              show(item, p->need).text);
}
