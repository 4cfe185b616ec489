/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * payload_memory.h - private to payload_memory.c (spans, windows, runs), payload_memory_save.c, payload_memory_load.c.
 *
 * A transfer is walked in spans of at most 1 GiB, each with its piece of the region's bitmap and checksums. Several may
 * be open: some drain while the next begins, and where each holds little data, together they keep the disk busy. A span
 * is walked in units: what one block of the worker's budget stands for (a chunk, or more where I/O blocks are larger).
 * A unit is copied by way of its block's buffer, of huge pages; memory of huge pages is mapped, a unit at a time: unmapping
 * more at once would hold up the worker for longer than the I/O in flight lasts, and page tables stay small.
 *
 *      save:  [open span] -> unit: data? selected? zero? checksum -> runs -> I/O ... -> [store tables] -> [close]
 *      load:  [open span] -> [load tables] -> unit: runs -> I/O -> checksum ... -> [close]
 */
#ifndef DIOH_PAYLOAD_MEMORY_H
#define DIOH_PAYLOAD_MEMORY_H

#include "errand.h"
#include "pages.h"
#include "payload.h"
#include "worker.h"

#define DIOH_SPAN_BYTES (UINT64_C(1) << 30) /* 32 KiB of bitmap, 4 KiB of checksums */
#define DIOH_SPANS 8u

enum span_state { SPAN_FREE, SPAN_LOADING, SPAN_OPEN, SPAN_STORING };

struct memory_transfer;

struct span {
	struct memory_transfer *owner;
	enum span_state state;
	uint64_t first; /* byte in the transfer */
	uint64_t bytes;
	bool walked;     /* the cursor has passed it */
	unsigned units;  /* blocks under way */
	uint8_t *bitmap;      /* present pages; from the span's first chunk on */
	uint8_t *selected;    /* with SELECTION */
	uint32_t *checksums;
	struct dioh_job job;
	struct dioh_tables tables;
	int job_result;
	struct dioh_error job_error;
	uint64_t job_begun_ns;
};

struct memory_transfer {
	struct dioh_transfer base;
	struct dioh_memory_params params;
	bool aside; /* pages go through the blocks' own buffers; else straight from or to a mapping */
	uint64_t cursor; /* bytes from the transfer's start */
	struct span spans[DIOH_SPANS];
	struct dioh_memory_extent extent;
	uint64_t erase_first; /* load: a range of the transfer that is absent and not erased yet */
	uint64_t erase_end;
	struct dioh_errand last_look; /* load: all has been read; is it still the image that was opened? */
	bool looked;
};

struct span *dioh_span_current(struct memory_transfer *t);
/* Takes a free span for the cursor; NULL: none, or the transfer has failed. */
struct span *dioh_span_open(struct memory_transfer *t);
void dioh_span_close(struct span *span);
/* Has the control-I/O thread do `work` on the span's tables; the answer begins with dioh_span_answered(). */
void dioh_span_ask(struct span *span, enum span_state state, void (*work)(struct dioh_job *job));
void dioh_span_answered(struct span *span);
/* Page number in the span of a byte of the transfer. */
static inline unsigned dioh_span_page(const struct span *span, uint64_t at)
{
	return (unsigned)((at - span->first) / DIOH_PAGE_BYTES);
}

/* Byte in the region, in the memory, in the image's file, of a byte of the transfer. */
static inline uint64_t dioh_region_at(const struct memory_transfer *t, uint64_t at)
{
	return t->params.region_offset + at;
}

static inline uint64_t dioh_memory_at(const struct memory_transfer *t, uint64_t at)
{
	return t->params.memory_offset + at;
}

/* The block's unit of memory, mapped; dioh_block_end() unmaps it. NULL: err is set. */
uint8_t *dioh_block_map(struct dioh_block *block, struct dioh_error *err);

/*
 * Makes I/Os of the present pages of a block's unit, `data` being the unit's bytes in memory or in the block's buffer, and
 * starts them. Short gaps are moved along: in a buffer as they are (a save has zeros there, a load ignores them), else from
 * or to the worker's own pages. Nothing present: no I/O, block->outstanding stays 0.
 */
void dioh_block_start(struct memory_transfer *t, struct dioh_block *block, uint8_t *data,
                      void (*done)(struct dioh_io *io));
/* Common part of an I/O's end. true: it was the block's last one. */
bool dioh_block_io_done(struct dioh_io *io);
/* The block's end: unmaps, gives it back, counts progress. */
void dioh_block_end(struct dioh_block *block);

void dioh_memory_fail(struct memory_transfer *t, const struct dioh_error *err);

/* The last step: DONE, unless the memory has become shorter, which holes and absent pages do not show. */
enum dioh_step dioh_memory_done(struct memory_transfer *t);

/* The steps of the two directions. */
enum dioh_step dioh_memory_save_step(struct dioh_transfer *transfer);
enum dioh_step dioh_memory_load_step(struct dioh_transfer *transfer);

#endif
