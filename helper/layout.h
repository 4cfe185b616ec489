/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * layout.h - where things stand in an image, and what makes it complete. A layout has regions and stream entries; its
 * operations say where their bytes go and keep bitmaps, checksums and tables.
 *
 * Every operation runs in the control-I/O thread and may block. What the workers and the session read (offsets, sizes
 * and flags of regions) does not change once the layout is ready. Offsets in records count from the image's start;
 * dioh_layout_at() makes file offsets of them.
 */
#ifndef DIOH_LAYOUT_H
#define DIOH_LAYOUT_H

#include "diohelper-image.h"
#include "image.h"
#include "intervals.h"

struct dioh_region {
	struct dioh_record_region record;
	bool unsummed; /* save: some of it has no checksum; control-I/O thread */
	struct dioh_intervals touched; /* chunks that a save has begun to write; session thread */
	struct dioh_intervals covered; /* chunks that a save has completed; session thread */
};

struct dioh_stream_entry {
	struct dioh_record_stream record;
	uint64_t image_offset; /* raw */
	struct dioh_record_extent *extents;
	unsigned extents_room;
	uint64_t load_bytes; /* mapped-ram: what a load gives, which is not what stands there */
	bool busy;  /* a save runs; session thread */
	bool begun; /* a save has begun; session thread */
	bool saved; /* it has completed; session thread */
};

struct dioh_layout_ops;
struct dioh_mapped_ram;

/* What is known of the manager's header: libvirt's is. */
struct dioh_header_info {
	uint32_t kind; /* enum dioh_header_kind */
	uint32_t format;
	uint32_t flags; /* enum dioh_header_flag */
	uint64_t memory_bytes;
	char uuid[40];
	char name[DIOH_NAME_BYTES];
};

/* The attached stream that brings QEMU's device state. */
struct dioh_device_state {
	int fd;
	uint32_t stream;              /* its number */
	uint32_t channels;            /* the streams behind it in number are multifd's channels */
};

struct dioh_image_layout {
	const struct dioh_layout_ops *ops;
	struct dioh_image *image;
	const atomic_bool *abandoned; /* the session has no use any more for what takes long */
	uint32_t state;
	bool ready; /* transfers are permitted */
	bool inspect_only;
	bool kept; /* save: it is continued; what has been stored in it stays */
	uint64_t compatible;
	uint64_t image_bytes;
	uint64_t header_offset;
	uint64_t header_bytes;
	uint64_t header_written; /* bytes from 0 that have come */
	struct dioh_header_info header_info;
	struct dioh_region *regions;
	unsigned region_count; /* announced */
	unsigned regions_put;  /* come so far */
	struct dioh_stream_entry *streams;
	unsigned stream_count;
	unsigned streams_put;
	/* What follows is the operations' own. */
	struct dioh_record_head head;
	uint64_t record_offset; /* where the head stands */
	unsigned extents_used;
	uint64_t extents_end; /* where the next extent may go */
	uint64_t file_bytes_kept; /* raw: the file's size before us */
	struct dioh_device_state device_state; /* mapped-ram, save */
	struct dioh_mapped_ram *mapped_ram;
};

/* FINISH. */
struct dioh_commit {
	uint32_t mode; /* enum dioh_finish_mode */
	uint64_t patch_offset;
	uint32_t patch_bytes;
	uint8_t patch[DIOH_HEADER_PATCH_BYTES_MAX];
	atomic_bool *cancelled; /* looked at before the mark is written */
	uint64_t sync_ns;       /* answered: time spent waiting for the disk */
};

/* Bitmap and checksums of some chunks of a region. */
struct dioh_tables {
	struct dioh_region *region;
	uint64_t first_chunk;
	unsigned chunks;
	uint8_t *bitmap;     /* DIOH_CHUNK_BITMAP_BYTES a chunk */
	uint32_t *checksums; /* one a chunk */
	bool fresh;          /* store: these chunks have never been stored since create */
	const atomic_bool *cancelled; /* store: they are not wanted any more, when this is set. NULL: it never is */
};

struct dioh_layout_ops {
	uint32_t id; /* enum dioh_layout */
	bool starts_absent; /* pages of chunks that have not been stored since create are absent */
	bool is_qemus; /* its stream is QEMU's: payload_qemu.h moves it */
	/* What create() needs from a stream, if anything: waits for it, and touches no image. */
	int (*prepare)(struct dioh_image_layout *layout, struct dioh_error *err);
	/* Lays out what has been put, checks that it can fit, invalidates durably what stands there. */
	int (*create)(struct dioh_image_layout *layout, struct dioh_error *err);
	/* Reads and checks an image; `flags`: enum dioh_open_flag. raw: takes the table that has been put. */
	int (*open)(struct dioh_image_layout *layout, uint32_t flags, struct dioh_error *err);
	int (*store_tables)(struct dioh_image_layout *layout, const struct dioh_tables *tables, struct dioh_error *err);
	int (*load_tables)(struct dioh_image_layout *layout, struct dioh_tables *tables, struct dioh_error *err);
	/* A further extent at the end of a stream being saved. */
	int (*add_extent)(struct dioh_image_layout *layout, struct dioh_stream_entry *entry, struct dioh_error *err);
	/* One checksum per 1 MiB of the entry's extent number `index`, whose final length is set. */
	int (*store_extent)(struct dioh_image_layout *layout, const struct dioh_stream_entry *entry, unsigned index,
	                    const uint32_t *checksums, struct dioh_error *err);
	int (*load_extent)(struct dioh_image_layout *layout, const struct dioh_stream_entry *entry, unsigned index,
	                   uint32_t *ret_checksums, struct dioh_error *err);
	/* Loads: EBADMSG if it is not the image that open() found any more. NULL: that cannot be told. */
	int (*check_unchanged)(struct dioh_image_layout *layout, struct dioh_error *err);
	/* Makes the image complete. */
	int (*commit)(struct dioh_image_layout *layout, struct dioh_commit *commit, struct dioh_error *err);
};

extern const struct dioh_layout_ops dioh_layout_raw;
extern const struct dioh_layout_ops dioh_layout_container;
extern const struct dioh_layout_ops dioh_layout_mapped_ram;

/* What an image begins like (enum dioh_layout): a guess that its open() then proves. */
int dioh_layout_detect(struct dioh_image *image, uint32_t *ret_id, struct dioh_error *err);

/* NULL: not in this build. */
const struct dioh_layout_ops *dioh_layout_find(uint32_t id);

static inline uint64_t dioh_layout_at(const struct dioh_image_layout *layout, uint64_t image_offset)
{
	return layout->image->base_offset + image_offset;
}

/* The image's length in its file, as far as the file goes now. */
int dioh_layout_file_bytes(struct dioh_image_layout *layout, uint64_t *ret_bytes, struct dioh_error *err);

/*
 * The preflight: ENOSPC, and nothing has been written, if so many bytes are surely not to be had; EFBIG, if a file may not become
 * as long as the image will be.
 */
int dioh_layout_check_room(const struct dioh_image_layout *layout, uint64_t needed_bytes, struct dioh_error *err);

/* For creates: what stands there, if anything, is durably no complete image any more. */
int dioh_layout_invalidate(struct dioh_image_layout *layout, struct dioh_error *err);

/* The same for a mark that begins elsewhere: from there to the end of its sector, durably. */
int dioh_layout_take_mark(struct dioh_image_layout *layout, uint64_t offset, struct dioh_error *err);

/* Makes room for the announced entries, in place of what there was. */
int dioh_layout_allocate(struct dioh_image_layout *layout, unsigned region_count, unsigned stream_count,
                         struct dioh_error *err);
/* All that the layout holds. */
void dioh_layout_free(struct dioh_image_layout *layout);

/* Takes entries of PUT_TABLE: all or none. EINVAL: more than announced; EEXIST: a number or name twice. */
int dioh_layout_put(struct dioh_image_layout *layout, const struct dioh_msg_entry *entries, unsigned count,
                    struct dioh_error *err);
static inline bool dioh_layout_table_complete(const struct dioh_image_layout *layout)
{
	return layout->regions_put == layout->region_count && layout->streams_put == layout->stream_count;
}

/* Entry `index` (regions first) for GET_TABLE. false: behind the end. */
bool dioh_layout_get(const struct dioh_image_layout *layout, unsigned index, struct dioh_msg_entry *ret_entry);

struct dioh_region *dioh_layout_region(struct dioh_image_layout *layout, uint32_t number);
struct dioh_stream_entry *dioh_layout_stream(struct dioh_image_layout *layout, uint32_t number);

/*
 * For loads, once all has been read, which need not have had checksums: whoever saves into an image takes its mark away before
 * he touches anything else, so what was read while that stood is this image's.
 */
int dioh_layout_check_unchanged(struct dioh_image_layout *layout, struct dioh_error *err);

/* The manager's own header. Writing must leave no gap. */
int dioh_layout_write_header(struct dioh_image_layout *layout, const void *bytes, uint64_t count, uint64_t offset,
                             struct dioh_error *err);
int dioh_layout_read_header(struct dioh_image_layout *layout, void *bytes, uint64_t offset, uint64_t count,
                            uint64_t *ret_count, struct dioh_error *err);

/* A piece of a region's bitmap, *count bytes at most, from a chunk's on. ENOENT: no such region; ENODATA: partial. */
int dioh_layout_read_bitmap(struct dioh_image_layout *layout, uint32_t region, uint64_t offset, void *bytes,
                            uint32_t *count, struct dioh_error *err);

/* For what may take long by what an image or a stream claims, before each piece: ECANCELED once it has been abandoned. */
int dioh_layout_wanted(const struct dioh_image_layout *layout, struct dioh_error *err);

/* For stores that may take long, before each piece: ECANCELED once what asked for it has been cancelled, or has failed. */
int dioh_tables_wanted(const struct dioh_tables *tables, struct dioh_error *err);

/* For commits: patch, sync with its time taken, the check for CANCEL. */
int dioh_layout_patch_header(struct dioh_image_layout *layout, const struct dioh_commit *commit,
                             struct dioh_error *err);
int dioh_layout_commit_sync(struct dioh_image_layout *layout, struct dioh_commit *commit, struct dioh_error *err);
int dioh_layout_commit_sync_directory(struct dioh_image_layout *layout, struct dioh_commit *commit,
                                      struct dioh_error *err);
int dioh_layout_commit_may_mark(const struct dioh_commit *commit, struct dioh_error *err);

/* Takes the last extent away, which holds nothing. */
void dioh_layout_drop_extent(struct dioh_image_layout *layout, struct dioh_stream_entry *entry);

/* Room for one more extent in an entry's list. */
struct dioh_record_extent *dioh_layout_grow_extents(struct dioh_image_layout *layout, struct dioh_stream_entry *entry,
                                                    struct dioh_error *err);

#endif
