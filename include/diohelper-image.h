/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * diohelper-image.h - the integrity record: what stands in an image.
 *
 * docs/image-format.md is the authority; this header gives the same bytes as C structs. All integers are
 * little-endian, no struct has implicit padding, all `reserved` bytes are zero. Offsets count from the image's start
 * (the base offset in its file). CRC32C is the Castagnoli polynomial as in RFC 3720 (iSCSI): initial value and final
 * XOR 0xffffffff; of no bytes it is 0.
 *
 * The format is unstable: version 0x8000xxxx until it is frozen.
 */
#ifndef DIOHELPER_IMAGE_H
#define DIOHELPER_IMAGE_H

#include "diohelper-protocol.h"

#define DIOH_RECORD_MAGIC "diohelper record" /* 16 bytes, no NUL */
#define DIOH_RECORD_VERSION 0x80000001u
#define DIOH_RECORD_HEAD_BYTES 4096u
#define DIOH_EXTENTS_MAX 8192u                          /* of all streams together */
#define DIOH_EXTENT_BYTES_MAX (UINT64_C(1) << 30)       /* so that an extent's checksums fit one 4 KiB page */
/* Of a container's page areas. Those of mapped-ram: a reader takes any multiple of 4096, a writer 2 MiB of the file. */
#define DIOH_PAGES_ALIGNMENT (UINT64_C(1) << 20)

/* Incompatible features: a reader that does not know one must refuse the image. None is defined yet. */
#define DIOH_RECORD_INCOMPATIBLE_KNOWN UINT64_C(0)

/* An area of 0 bytes has offset 0 and CRC 0; only the extent table keeps its offset while it has no entries. */
struct dioh_record_area {
	uint64_t offset;
	uint64_t bytes;
	uint32_t crc32c; /* over these bytes; 0 while the image is partial */
	uint32_t reserved;
};

/* The first 4096 bytes of a container; in mapped-ram at the first multiple of 4096 behind region 0's bitmap. */
struct dioh_record_head {
	char magic[16];
	uint32_t version;
	uint32_t state; /* enum dioh_image_state: PARTIAL, COMPLETE, WRITTEN */
	uint64_t incompatible;
	uint64_t compatible;
	uint32_t layout;      /* enum dioh_layout */
	uint32_t page_bytes;  /* DIOH_PAGE_BYTES */
	uint32_t chunk_bytes; /* DIOH_CHUNK_BYTES */
	uint32_t region_count;
	uint32_t stream_count;
	uint32_t extent_count;
	uint64_t image_bytes; /* up to the end of the last area, page area or extent */
	struct dioh_record_area header;  /* the manager's bytes; mapped-ram: without a CRC */
	struct dioh_record_area regions; /* struct dioh_record_region[region_count] */
	struct dioh_record_area streams; /* struct dioh_record_stream[stream_count] */
	struct dioh_record_area extents; /* struct dioh_record_extent[extent_count] */
	uint8_t reserved[4096 - 168 - 4];
	uint32_t crc32c; /* over the 4092 bytes before it */
};

enum dioh_record_region_flag {
	DIOH_REGION_GUEST_ADDRESS = 1u << 0, /* guest_address is known */
	DIOH_REGION_CHECKSUMS = 1u << 1,     /* the checksums area is valid for every chunk */
	DIOH_REGION_IN_STREAM = 1u << 2,     /* mapped-ram: its pages came with QEMU's stream, not from a memory */
};

struct dioh_record_region {
	uint32_t number;
	uint32_t flags;
	uint64_t bytes; /* a multiple of 4096 */
	uint64_t guest_address;
	uint64_t pages_offset;  /* page i stands at pages_offset + i * 4096 */
	uint64_t present_pages; /* bits set in the bitmap */
	struct dioh_record_area bitmap;    /* bit i%8 of byte i/8: page i is present; else it is zero */
	struct dioh_record_area checksums; /* u32 per 1 MiB chunk: CRC32C over its present pages in order */
	char name[DIOH_NAME_BYTES];
	uint64_t reserved[5];
};

struct dioh_record_stream {
	uint32_t number;
	uint32_t flags; /* DIOH_REGION_CHECKSUMS or 0 */
	uint64_t bytes;
	uint32_t first_extent; /* its extents follow each other in the extent table */
	uint32_t extent_count;
	char name[DIOH_NAME_BYTES];
	uint64_t reserved[5];
};

struct dioh_record_extent {
	uint64_t offset;
	uint64_t bytes; /* container: a multiple of 1 MiB but for a stream's last extent */
	struct dioh_record_area checksums; /* u32 per 1 MiB of the extent */
};

#endif
