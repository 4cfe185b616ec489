/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * layout_mapped_ram.h - what the mapped-ram layout has beside tables and record; for its own files, for the payloads of
 * its stream (payload_qemu_*.c), and for the session that keeps a refused stream.
 */
#ifndef DIOH_LAYOUT_MAPPED_RAM_H
#define DIOH_LAYOUT_MAPPED_RAM_H

#include "layout.h"
#include "mapped_ram_format.h"
#include "qemu_source.h"

struct dioh_mapped_ram {
	struct dioh_qemu_source source; /* save */
	struct dioh_qemu_parser *image; /* load: it owns what `setup` points to, but for the blocks */
	struct dioh_qemu_setup setup;   /* a copy; its blocks are ours, regions[i] is blocks[i] */
	struct dioh_mapped_ram_plan plan;
	uint64_t stream_offset; /* QEMU's magic, from the image's start */
	unsigned tail_first;    /* the stream entry's extents from this one on are the tail */
	/* load */
	uint64_t setup_end_bytes; /* the tail begins with the setup's end */
};

void dioh_mapped_ram_free(struct dioh_mapped_ram *mapped_ram);

/* All that was read of the stream while its setup was awaited, to be freed by the caller. NULL: nothing. */
uint8_t *dioh_mapped_ram_take_input(struct dioh_image_layout *layout, size_t *ret_bytes);

/* Makes layout->mapped_ram with a copy of the setup. */
int dioh_mapped_ram_take_setup(struct dioh_mapped_ram *mapped_ram, const struct dioh_qemu_setup *setup,
                               struct dioh_error *err);

/*
 * The image's regions, one a block, in place of the manager's table, whose entries are found by name; those it does not
 * name are in the stream, and get the numbers it does not use. ENOENT: a name the image does not have; EINVAL: another
 * size or guest address.
 */
int dioh_mapped_ram_adopt_table(struct dioh_image_layout *layout, struct dioh_error *err);

/* EBADMSG: stream `number` brings, at `offset`, pages of a block that is to be saved from a memory. */
int dioh_mapped_ram_check_in_stream(const struct dioh_image_layout *layout, unsigned block, uint32_t number,
                                    uint64_t offset, struct dioh_error *err);

/* Does an image that begins with these bytes look like one? */
bool dioh_mapped_ram_is(const uint8_t *start, size_t count);

/* Length of the stream that a load gives. */
uint64_t dioh_mapped_ram_load_bytes(const struct dioh_image_layout *layout);

/* Operations of struct dioh_layout_ops. EBADMSG also if QEMU's magic has gone, which a save takes before the record's head. */
int dioh_mapped_ram_load_tables(struct dioh_image_layout *layout, struct dioh_tables *tables, struct dioh_error *err);
int dioh_mapped_ram_check_unchanged(struct dioh_image_layout *layout, struct dioh_error *err);

int dioh_mapped_ram_open(struct dioh_image_layout *layout, uint32_t flags, struct dioh_error *err);

#endif
