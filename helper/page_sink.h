/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * page_sink.h - where pages go that come one by one, in any order and more than once: to their places in their regions.
 * They gather in buffers of a chunk, several of which are open at a time. Worker thread.
 *
 *      FREE -> FILLING -> [LOADING] -> WRITING -> STORING -> FREE        a chunk that has come, or some pages of it
 *      FREE -> CHECKING -> [READING -> SUMMING] -> FREE                  at the end: a chunk of which some came again
 *
 * What came last counts: a chunk has one buffer at a time, and takes no page while that is on its way into the image. Pages
 * are written alone, without their neighbours. A chunk that came once, or at last as a whole, gets its checksum from its
 * buffer; one of which only some pages came again gets it at the end, from the image. Pages that were data and became
 * zero are punched out of a file then; on a device their bit alone says that they are zero.
 *
 * That is for a guest's memory. Flash is not empty in a fresh QEMU, which leaves absent pages as they are: zero pages of a
 * small region are present.
 */
#ifndef DIOH_PAGE_SINK_H
#define DIOH_PAGE_SINK_H

#include "buffers.h"
#include "errand.h"
#include "pages.h"

#define DIOH_SINK_CHUNKS 16u /* all of its memory, in MiB, but for the I/Os' own */
/* Zero pages of a region of fewer bytes are present. Flash has 8 MiB at most unless QEMU is told otherwise; video memory, 16. */
#define DIOH_SINK_ZEROS_BYTES (UINT64_C(16) << 20)

enum dioh_sink_state {
	DIOH_SINK_FREE,
	DIOH_SINK_FILLING,
	DIOH_SINK_LOADING,  /* errand: which pages the image has of this chunk */
	DIOH_SINK_WRITING,  /* page I/O */
	DIOH_SINK_STORING,  /* errand: bitmap and checksum */
	DIOH_SINK_CHECKING, /* errand: which pages there are; the others are punched */
	DIOH_SINK_READING,  /* page I/O */
	DIOH_SINK_SUMMING,  /* errand: checksum */
};

struct dioh_sink_run {
	struct dioh_io io;
	struct iovec iov;
};

struct dioh_page_sink;

struct dioh_sink_chunk {
	struct dioh_page_sink *sink;
	enum dioh_sink_state state;
	unsigned region;
	uint64_t chunk;
	uint64_t used;       /* when: the clock's value */
	unsigned fills;      /* pages whose bytes are still to come */
	unsigned came_pages;
	uint8_t came[DIOH_CHUNK_BITMAP_BYTES];    /* in this buffer, data or zero */
	uint8_t present[DIOH_CHUNK_BITMAP_BYTES]; /* of them: those that are to be in the image */
	uint8_t stored[DIOH_CHUNK_BITMAP_BYTES];  /* what the image's bitmap has, or is to have */
	bool again;  /* it has been stored before */
	bool became_zero; /* some page of it that the image has is zero now */
	bool stale; /* CHECKING: its checksum is to be made anew */
	bool dusty; /* CHECKING: absent pages of it may have bytes in the file */
	uint8_t *pages;
	unsigned ios_left;
	struct dioh_sink_run *runs; /* as many as can be: every other page */
	struct dioh_errand errand;
};

struct dioh_sink_region { /* a bit a chunk; made when needed */
	bool came; /* some page of it, data or zero */
	uint8_t *stored;
	uint8_t *stale;
	uint8_t *dusty;
};

struct dioh_page_sink {
	struct dioh_transfer *transfer;
	struct dioh_image_layout *layout;
	bool checksums;
	bool has_data; /* some page came that was not announced as zero */
	struct dioh_buffers memory;
	struct dioh_sink_chunk chunks[DIOH_SINK_CHUNKS];
	struct dioh_sink_chunk *last; /* used */
	uint64_t clock;
	struct dioh_sink_region *regions;
	unsigned check_region; /* at the end: what is to be checked next */
	uint64_t check_chunk;
};

/* `flags`: enum dioh_transfer_flag. false: no memory; closing is permitted all the same. */
bool dioh_sink_open(struct dioh_page_sink *sink, struct dioh_transfer *transfer, struct dioh_image_layout *layout,
                    uint32_t flags);
/* Nothing may be under way. */
void dioh_sink_close(struct dioh_page_sink *sink);

/*
 * Where a page's bytes are to be put. Its chunk stays where it is until dioh_sink_filled() says that they are there. NULL: no
 * room now, ask again at a later step.
 */
uint8_t *dioh_sink_page(struct dioh_page_sink *sink, unsigned region, uint64_t page,
                        struct dioh_sink_chunk **ret_chunk);
void dioh_sink_filled(struct dioh_sink_chunk *chunk, unsigned pages);
/* A zero page. false: no room now. */
bool dioh_sink_zero(struct dioh_page_sink *sink, unsigned region, uint64_t page);

/* At each step, first of all: what has come back goes on. */
void dioh_sink_advance(struct dioh_page_sink *sink);
/* No more pages will come. At each step: true once all is in the image. */
bool dioh_sink_finish(struct dioh_page_sink *sink);

#endif
