/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * diohelper-protocol.h - what travels over the control socket.
 *
 * docs/protocol.md is the authority for behaviour; this header gives the same bytes as C structs. Nothing but
 * structs, numbers and limits stands here.
 *
 * The socket is AF_UNIX, SOCK_SEQPACKET. One message = one packet: struct dioh_msg_header, then `size` bytes of
 * payload. All integers are little-endian; every struct is laid out without implicit padding. Fields named
 * `reserved` must be zero: a receiver refuses the message otherwise. Descriptors travel as SCM_RIGHTS beside the
 * packet; each message below says which, and in which order.
 */
#ifndef DIOHELPER_PROTOCOL_H
#define DIOHELPER_PROTOCOL_H

#include <stdint.h>

/* ---- limits ------------------------------------------------------------------------------------------------ */

#define DIOH_PROTOCOL_VERSION 1u

#define DIOH_PAYLOAD_BYTES_MAX 65536u             /* fits a SOCK_SEQPACKET packet under Linux' default wmem */
#define DIOH_FDS_MAX 3u                           /* most descriptors one message may carry */
#define DIOH_NAME_BYTES 256u                      /* a name and its NUL: QEMU's RAMBlock ids are 255 bytes at most */
#define DIOH_TEXT_BYTES 256u                      /* an error's sentence and its NUL */
#define DIOH_LABEL_BYTES 256u                     /* a security label and its NUL */
#define DIOH_MEMORIES_MAX 256u                    /* attached memories in a session */
#define DIOH_STREAMS_MAX 64u                      /* attached streams in a session, stream entries in an image */
#define DIOH_REGIONS_MAX 1024u                    /* region entries in an image */
#define DIOH_TRANSFERS_MAX 64u                    /* transfers that run at once */
#define DIOH_HEADER_BYTES_MAX (16u << 20)         /* the manager's own header in an image */
#define DIOH_HEADER_PATCH_BYTES_MAX 4096u         /* FINISH's last write */
#define DIOH_REGION_BYTES_MAX (UINT64_C(1) << 46) /* 64 TiB: twice what x86_64 servers hold today */
#define DIOH_MEMORY_BYTES_MAX DIOH_REGION_BYTES_MAX /* all regions of an image that has bitmaps */
#define DIOH_OFFSET_MAX (UINT64_C(1) << 62)       /* every image offset stays below: sums cannot wrap */
#define DIOH_BLOCK_BYTES_MIN (64u << 10)
#define DIOH_BLOCK_BYTES_MAX (4u << 20)
#define DIOH_IN_FLIGHT_MAX 128u
#define DIOH_WORKERS_MAX 16u

#define DIOH_PAGE_BYTES 4096u          /* a bit in a bitmap stands for this much memory, always */
#define DIOH_CHUNK_BYTES (1u << 20)    /* a checksum stands for this much memory; transfers start at multiples */

/* ---- the message header ------------------------------------------------------------------------------------ */

struct dioh_msg_header {
	uint32_t type;  /* enum dioh_msg */
	uint32_t flags; /* enum dioh_msg_flag */
	uint32_t id;    /* chosen by the manager, not 0; a reply repeats it; events carry the transfer's id, or 0 */
	uint32_t size;  /* payload bytes that follow */
};

enum dioh_msg_flag {
	DIOH_MSG_ERROR = 1u << 0, /* replies only: the payload is a struct dioh_msg_error, the request had no effect */
};

/* Requests are even, the reply to a request is its number + 1. Events are odd and come unasked. */
enum dioh_msg {
	DIOH_MSG_HELLO = 2,
	DIOH_MSG_ATTACH_IMAGE = 4,
	DIOH_MSG_ATTACH_MEMORY = 6,
	DIOH_MSG_ATTACH_STREAM = 8,
	DIOH_MSG_SEAL = 10,
	DIOH_MSG_CREATE_IMAGE = 12,
	DIOH_MSG_PUT_TABLE = 14,
	DIOH_MSG_WRITE_HEADER = 16,
	DIOH_MSG_OPEN_IMAGE = 18,
	DIOH_MSG_GET_TABLE = 20,
	DIOH_MSG_READ_HEADER = 22,
	DIOH_MSG_SAVE_MEMORY = 24,
	DIOH_MSG_LOAD_MEMORY = 26,
	DIOH_MSG_SAVE_STREAM = 28,
	DIOH_MSG_LOAD_STREAM = 30,
	DIOH_MSG_STATUS = 32,
	DIOH_MSG_CANCEL = 34,
	DIOH_MSG_FINISH = 36,
	DIOH_MSG_READ_BITMAP = 38,
	DIOH_MSG_KEEP_REGION = 40,

	DIOH_MSG_PROGRESS = 129, /* event */
	DIOH_MSG_COMPLETE = 131, /* event, never lost: one per accepted SAVE_, LOAD_ and FINISH */
	DIOH_MSG_STUCK = 133,    /* event */
	DIOH_MSG_BROKEN = 135,   /* event, id 0, the last message: a struct dioh_msg_error with what ends the helper */
};

/* ---- errors ------------------------------------------------------------------------------------------------ */

enum dioh_operation {
	DIOH_OP_NONE = 0,
	DIOH_OP_PROTOCOL, /* reading or checking a message */
	DIOH_OP_ATTACH,   /* examining a descriptor */
	DIOH_OP_LABEL,    /* label, owner, mode */
	DIOH_OP_SEAL,
	DIOH_OP_PARSE,    /* an image's bytes are not what they should be */
	DIOH_OP_CHECKSUM, /* a checksum does not match */
	DIOH_OP_READ,
	DIOH_OP_WRITE,
	DIOH_OP_SYNC,
	DIOH_OP_SIZE,     /* ftruncate, fallocate, punching */
	DIOH_OP_SEEK,     /* finding data and holes */
	DIOH_OP_MAP,      /* mapping memory */
	DIOH_OP_CANCEL,
	DIOH_OP_FINISH,
	DIOH_OP_SPAWN,    /* set by the library only */
};

enum dioh_object {
	DIOH_OBJECT_NONE = 0,
	DIOH_OBJECT_SESSION, /* the control connection or the helper itself */
	DIOH_OBJECT_IMAGE,
	DIOH_OBJECT_MEMORY,  /* `number`: the manager's number */
	DIOH_OBJECT_STREAM,  /* `number`: the manager's number */
	DIOH_OBJECT_REGION,  /* `number`: the entry's number */
};

struct dioh_msg_error {
	int32_t code;       /* a positive errno value of Linux' generic table */
	uint32_t operation; /* enum dioh_operation */
	uint32_t object;    /* enum dioh_object */
	uint32_t number;    /* which memory, stream or region */
	uint64_t offset;    /* byte offset in the object; UINT64_MAX: none */
	uint64_t reserved;
	char text[DIOH_TEXT_BYTES]; /* one sentence for a person, NUL-terminated */
};

/* ---- HELLO: descriptors: [pidfd of the manager] -------------------------------------------------------------- */

enum dioh_feature {
	DIOH_FEATURE_LAYOUT_RAW = 1u << 0,
	DIOH_FEATURE_LAYOUT_CONTAINER = 1u << 1,
	DIOH_FEATURE_STREAM = 1u << 2,
	DIOH_FEATURE_SELECTION = 1u << 3,
	DIOH_FEATURE_CHECKSUM = 1u << 4,
	DIOH_FEATURE_WRITTEN = 1u << 5, /* FINISH without syncs */
	DIOH_FEATURE_LABEL = 1u << 6,   /* ATTACH_IMAGE sets label, owner, mode */
	DIOH_FEATURE_LAYOUT_MAPPED_RAM = 1u << 7,
	DIOH_FEATURE_READ_BITMAP = 1u << 8,
	DIOH_FEATURE_ALL_IN_STREAM = 1u << 9, /* OPEN_IMAGE's flag */
	DIOH_FEATURE_CONTINUE = 1u << 10,     /* CREATE_IMAGE's flag; KEEP_REGION */
	DIOH_FEATURE_MULTIFD = 1u << 11,      /* CREATE_IMAGE names channels */
	DIOH_FEATURE_VERBATIM = 1u << 12,     /* a stream that CREATE_IMAGE refused can be saved as it is */
};

struct dioh_msg_hello { /* request and reply */
	uint32_t version_min;
	uint32_t version_max;
	uint64_t offered;  /* features the sender has */
	uint64_t required; /* features the sender insists on */
	uint64_t reserved[2];
};

/* ---- ATTACH_IMAGE: descriptors: [buffered] [direct] [directory], as `fds` says ---------------------------------- */

enum dioh_image_fd {
	DIOH_IMAGE_FD_BUFFERED = 1u << 0,
	DIOH_IMAGE_FD_DIRECT = 1u << 1,
	DIOH_IMAGE_FD_DIRECTORY = 1u << 2, /* synced by FINISH, so that a new name is durable too */
};

enum dioh_direction { DIOH_DIRECTION_SAVE = 1, DIOH_DIRECTION_LOAD = 2 };

enum dioh_direct { DIOH_DIRECT_PREFER = 0, DIOH_DIRECT_REQUIRE = 1, DIOH_DIRECT_NEVER = 2 };

enum dioh_engine {
	DIOH_ENGINE_ANY = 0,
	DIOH_ENGINE_IO_URING = 1,
	DIOH_ENGINE_LIBAIO = 2,
	DIOH_ENGINE_SYNC = 3,
};

enum dioh_image_ask {
	DIOH_IMAGE_ASK_LABEL_REQUIRED = 1u << 0,
	DIOH_IMAGE_ASK_LABEL_IF_ENABLED = 1u << 1,
	DIOH_IMAGE_ASK_OWNER = 1u << 2, /* uid, gid */
	DIOH_IMAGE_ASK_MODE = 1u << 3,
};

struct dioh_msg_attach_image {
	uint32_t fds;         /* enum dioh_image_fd: which descriptors come, in this order */
	uint32_t direction;   /* enum dioh_direction */
	uint32_t direct;      /* enum dioh_direct */
	uint32_t engine;      /* enum dioh_engine */
	uint32_t block_bytes; /* largest page I/O, a power of two; 0: the default, 1 MiB */
	uint32_t in_flight;   /* blocks in flight, each worker; 0: the default, 16 for a save, 4 for a load */
	uint32_t workers;     /* data workers, which share a transfer of memory; 0: 1, and 2 for a load on two processors or more */
	uint32_t ask;         /* enum dioh_image_ask */
	uint64_t base_offset; /* where the image starts in the file, a multiple of 4096; nothing before it is touched */
	uint32_t uid;
	uint32_t gid;
	uint32_t mode;
	uint32_t reserved;
	char label[DIOH_LABEL_BYTES];
};

enum dioh_image_kind { DIOH_IMAGE_REGULAR = 1, DIOH_IMAGE_BLOCK_DEVICE = 2 };

enum dioh_image_note {
	DIOH_IMAGE_NOTE_LONE_BUFFERED = 1u << 0,      /* only a buffered descriptor came: page I/O is buffered */
	DIOH_IMAGE_NOTE_LONE_DIRECT = 1u << 1,        /* header I/O turns O_DIRECT off and on again (F_SETFL) */
	DIOH_IMAGE_NOTE_DIRECT_UNSUPPORTED = 1u << 2, /* the file system has no direct I/O for this file */
	DIOH_IMAGE_NOTE_DIRECT_ALIGNMENT = 1u << 3,   /* more than 4096-byte alignment, or (saves) larger cache units */
	DIOH_IMAGE_NOTE_ENGINE_FALLBACK = 1u << 4,    /* io_uring is not to be had here */
	DIOH_IMAGE_NOTE_DIRECT_CHECKSUMS = 1u << 5,   /* btrfs checksums the file: the kernel copies direct writes */
	DIOH_IMAGE_NOTE_UNCACHED = 1u << 6,           /* buffered page I/O is uncached (RWF_DONTCACHE) */
	DIOH_IMAGE_NOTE_DROPPED_BEHIND = 1u << 7,     /* it is not: what it leaves in the page cache is dropped behind it */
};

struct dioh_msg_attach_image_reply {
	uint32_t kind;             /* enum dioh_image_kind */
	uint32_t direct;           /* 1: page I/O is direct */
	uint32_t engine;           /* enum dioh_engine: the one chosen; with ANY SEAL may take another */
	uint32_t notes;            /* enum dioh_image_note */
	uint32_t memory_alignment; /* bytes, for direct I/O; 0 where there is none */
	uint32_t offset_alignment; /* bytes */
	uint32_t block_bytes;
	uint32_t in_flight;
	uint32_t workers;
	uint32_t done;       /* enum dioh_image_ask: what was set of what was asked */
	uint64_t file_bytes; /* regular: its size now; device: its capacity */
	char label_before[DIOH_LABEL_BYTES]; /* if a label was set; empty: it had none */
	char label_after[DIOH_LABEL_BYTES];
};

/* ---- ATTACH_MEMORY: descriptors: memory [selection] -------------------------------------------------------------- */

enum dioh_memory_fd {
	DIOH_MEMORY_FD_MEMORY = 1u << 0,
	DIOH_MEMORY_FD_SELECTION = 1u << 1, /* bit i = page i of the REGION; read anew by each transfer that asks for it */
};

enum dioh_memory_advice { DIOH_MEMORY_ADVICE_NONE = 0, DIOH_MEMORY_ADVICE_HUGEPAGE = 1 };

struct dioh_msg_attach_memory {
	uint32_t memory; /* the manager's number, < DIOH_MEMORIES_MAX */
	uint32_t fds;    /* enum dioh_memory_fd; MEMORY always */
	uint32_t advice; /* enum dioh_memory_advice, for loads */
	uint32_t reserved;
	uint64_t bytes; /* bytes usable from offset 0; 0: what fstat says at each transfer */
};

enum dioh_memory_kind { DIOH_MEMORY_SHMEM = 1, DIOH_MEMORY_HUGETLB = 2, DIOH_MEMORY_FILE = 3 };

struct dioh_msg_attach_memory_reply {
	uint32_t kind;  /* enum dioh_memory_kind */
	uint32_t seals; /* F_GET_SEALS, 0 where there are none */
	uint64_t bytes; /* size now */
	uint64_t page_bytes;
	uint64_t reserved;
};

/* ---- ATTACH_STREAM: descriptors: stream ----------------------------------------------------------------------------- */

struct dioh_msg_attach_stream {
	uint32_t stream; /* the manager's number, < DIOH_STREAMS_MAX */
	uint32_t reserved;
};

enum dioh_stream_kind { DIOH_STREAM_PIPE = 1, DIOH_STREAM_SOCKET = 2, DIOH_STREAM_FILE = 3 };

struct dioh_msg_attach_stream_reply {
	uint32_t kind; /* enum dioh_stream_kind */
	uint32_t reserved;
};

/* ---- SEAL --------------------------------------------------------------------------------------------------------------- */

enum dioh_layer {
	DIOH_LAYER_STRAYS_CLOSED = 1u << 0,   /* no descriptor but those attached */
	DIOH_LAYER_NO_CAPABILITIES = 1u << 1, /* every set, the bounding set included where it could be */
	DIOH_LAYER_NOT_ROOT = 1u << 2,        /* neither uid nor gid 0 */
	DIOH_LAYER_NO_NEW_PRIVS = 1u << 3,
	DIOH_LAYER_NOT_DUMPABLE = 1u << 4,
	DIOH_LAYER_SECUREBITS = 1u << 5,
	DIOH_LAYER_LANDLOCK = 1u << 6,
	DIOH_LAYER_SECCOMP = 1u << 7,
	DIOH_LAYER_RING_RESTRICTIONS = 1u << 8,
	DIOH_LAYER_SELINUX = 1u << 9, /* in a domain of its own: diohelper_t */
};

struct dioh_msg_seal {
	uint32_t required; /* enum dioh_layer: refused, before any byte is written, if one of these is missing */
	uint32_t reserved;
};

struct dioh_msg_seal_reply {
	uint32_t layers; /* enum dioh_layer: what holds now, in every thread */
	uint32_t uid;
	uint32_t gid;
	uint32_t threads;
	uint32_t engine; /* enum dioh_engine that runs */
	uint32_t reserved;
	char context[DIOH_LABEL_BYTES]; /* the helper's own SELinux context; empty where SELinux is off */
};

/* ---- the image's tables ---------------------------------------------------------------------------------------------------- */

enum dioh_layout {
	DIOH_LAYOUT_DETECT = 0, /* OPEN_IMAGE only */
	DIOH_LAYOUT_RAW = 1,
	DIOH_LAYOUT_CONTAINER = 2,
	DIOH_LAYOUT_MAPPED_RAM = 3,
};

enum dioh_entry_kind { DIOH_ENTRY_REGION = 1, DIOH_ENTRY_STREAM = 2 };

enum dioh_entry_flag {
	DIOH_ENTRY_GUEST_ADDRESS = 1u << 0, /* guest_address is known */
	DIOH_ENTRY_CHECKSUMS = 1u << 1,     /* GET_TABLE: every chunk has a checksum */
	DIOH_ENTRY_IN_STREAM = 1u << 2,     /* GET_TABLE, mapped-ram: the stream brings this region's pages too */
};

struct dioh_msg_entry {
	uint32_t kind;          /* enum dioh_entry_kind */
	uint32_t number;        /* the manager's: unique within its kind in an image */
	uint32_t flags;         /* enum dioh_entry_flag */
	uint32_t reserved;
	uint64_t bytes;         /* region: its size, a multiple of 4096; stream: 0 on save, its length on load */
	uint64_t guest_address; /* region */
	uint64_t image_offset;  /* from the image's start. raw: given by the manager; else answered by GET_TABLE */
	uint64_t present_bytes; /* GET_TABLE on load: bytes of pages that are in the image */
	char name[DIOH_NAME_BYTES];
};

/* PUT_TABLE's and GET_TABLE's reply's largest count: what fits a payload. */
#define DIOH_ENTRIES_PER_MESSAGE_MAX 200u

enum dioh_create_flag {
	/* container, mapped-ram: an image of just this description stands there, and its pages stay: see KEEP_REGION */
	DIOH_CREATE_CONTINUE = 1u << 0,
};

/* CREATE_IMAGE. With both counts 0 and no raw header to wait for, the reply comes when the image is ready. */
struct dioh_msg_create_image {
	uint32_t layout;
	uint32_t region_count;
	uint32_t stream_count;
	uint32_t flags; /* enum dioh_create_flag */
	uint64_t header_bytes;
	uint32_t stream; /* mapped-ram: the attached stream that brings the device state; else 0 */
	uint32_t channels; /* mapped-ram: so many attached streams, numbered from stream + 1 on, are its multifd channels */
};

/* Reply to CREATE_IMAGE, PUT_TABLE and WRITE_HEADER. */
struct dioh_msg_image_reply {
	uint32_t ready; /* 1: what stood there is durably invalidated, transfers are permitted */
	uint32_t reserved;
	uint64_t needed_bytes; /* once ready: most that this save may still take from the file system */
	uint64_t free_bytes;   /* once ready: what the file system has for us; UINT64_MAX: not known */
	uint64_t image_bytes;  /* once ready: fixed part of the image, from base_offset */
};

struct dioh_msg_put_table {
	uint32_t first; /* index of the first entry: 0, then where the last message ended */
	uint32_t count;
	/* struct dioh_msg_entry entries[count] */
};

struct dioh_msg_write_header {
	uint64_t offset; /* in the manager's header */
	/* bytes */
};

enum dioh_open_flag {
	DIOH_OPEN_ACCEPT_WRITTEN = 1u << 0, /* an image FINISHed without syncs, if every region has checksums */
	DIOH_OPEN_INSPECT = 1u << 1,        /* any state; GET_TABLE, READ_HEADER, READ_BITMAP may follow */
	DIOH_OPEN_ALL_IN_STREAM = 1u << 2,  /* mapped-ram: LOAD_STREAM gives a plain migration stream, whatever the record says */
};

struct dioh_msg_open_image {
	uint32_t layout;       /* enum dioh_layout */
	uint32_t flags;        /* enum dioh_open_flag */
	/* Entries that PUT_TABLE brings. raw: all; mapped-ram: regions that are to be loaded into memory, or 0; else 0. */
	uint32_t region_count;
	uint32_t stream_count; /* raw only */
	uint64_t header_bytes; /* raw; mapped-ram: 0: libvirt's header is looked for, else there is none */
};

enum dioh_header_kind { /* of the manager's header */
	DIOH_HEADER_OPAQUE = 0,
	DIOH_HEADER_LIBVIRT = 1, /* libvirt's save image: 92 bytes, XML, cookie */
};

enum dioh_header_flag { /* libvirt's */
	DIOH_HEADER_COMPLETE = 1u << 0,
	DIOH_HEADER_WAS_RUNNING = 1u << 1,
};

enum dioh_image_state {
	DIOH_STATE_UNKNOWN = 0,  /* raw: the layout keeps none */
	DIOH_STATE_PARTIAL = 1,
	DIOH_STATE_COMPLETE = 2, /* durable */
	DIOH_STATE_WRITTEN = 3,  /* complete, but never synced */
};

struct dioh_msg_open_image_reply {
	uint32_t layout; /* enum dioh_layout: what was found */
	uint32_t state;  /* enum dioh_image_state */
	uint32_t region_count;
	uint32_t stream_count;
	uint64_t header_bytes;
	uint64_t image_bytes;
	uint64_t compatible_features; /* of the record */
	uint32_t ready;         /* 0: PUT_TABLE has yet to come */
	uint32_t header_kind;   /* enum dioh_header_kind; what follows is libvirt's, and 0 or empty otherwise */
	uint32_t header_format; /* of what stands behind the header: 0 raw, 1 gzip, 2 bzip2, 3 xz, 4 lzop, 5 zstd, 6 sparse */
	uint32_t header_flags;  /* enum dioh_header_flag */
	uint64_t domain_memory_bytes;
	char domain_uuid[40];
	char domain_name[DIOH_NAME_BYTES];
};

struct dioh_msg_get_table {
	uint32_t first; /* regions come first, then streams */
	uint32_t count; /* <= DIOH_ENTRIES_PER_MESSAGE_MAX */
};

struct dioh_msg_get_table_reply {
	uint32_t first;
	uint32_t count; /* 0 behind the end */
	/* struct dioh_msg_entry entries[count] */
};

struct dioh_msg_read_header {
	uint64_t offset;
	uint32_t bytes; /* <= DIOH_PAYLOAD_BYTES_MAX */
	uint32_t reserved;
};
/* READ_HEADER's reply: the bytes; fewer at the header's end */

struct dioh_msg_read_bitmap {
	uint32_t region; /* the entry's number */
	uint32_t bytes;  /* <= DIOH_PAYLOAD_BYTES_MAX */
	uint64_t offset; /* in the bitmap: a multiple of 32, what a chunk has */
};
/* READ_BITMAP's reply: the bytes; fewer at the bitmap's end. Bit i = page i, the lowest bit of a byte first */

struct dioh_msg_keep_region { /* no payload in the reply: the chunks count as saved */
	uint32_t region;
	uint32_t reserved;
	uint64_t offset; /* as in SAVE_MEMORY */
	uint64_t length;
};

/* ---- transfers: the request's id names the transfer until its COMPLETE ------------------------------------------------------- */

enum dioh_transfer_flag {
	DIOH_TRANSFER_SELECTION = 1u << 0,   /* only the pages of the memory's selection */
	DIOH_TRANSFER_FRESH = 1u << 1,       /* load: the destination is known to be all zero */
	DIOH_TRANSFER_NO_SCAN = 1u << 2,     /* save: zero pages are written like others */
	DIOH_TRANSFER_NO_CHECKSUM = 1u << 3, /* save: none made (the region loses its checksums); load: not checked */
};

struct dioh_msg_memory_transfer { /* SAVE_MEMORY, LOAD_MEMORY; the reply has no payload: it has begun */
	uint32_t memory;
	uint32_t region;        /* the entry's number */
	uint64_t memory_offset; /* a multiple of 4096; of DIOH_CHUNK_BYTES where the memory is hugetlb */
	uint64_t region_offset; /* a multiple of DIOH_CHUNK_BYTES */
	uint64_t length;        /* a multiple of DIOH_CHUNK_BYTES, or up to the region's end */
	uint32_t flags;         /* enum dioh_transfer_flag */
	uint32_t reserved;
};

struct dioh_msg_stream_transfer { /* SAVE_STREAM, LOAD_STREAM; the reply has no payload */
	uint32_t stream; /* the attached stream */
	uint32_t entry;  /* the stream entry's number */
	uint32_t flags;  /* enum dioh_transfer_flag: NO_CHECKSUM */
	uint32_t reserved;
};

#define DIOH_HISTOGRAM_BUCKETS 32u

struct dioh_msg_complete { /* event; header id = the transfer's */
	struct dioh_msg_error error; /* code 0: success */
	uint64_t total_bytes;   /* memory: the length asked for; stream: what came */
	uint64_t data_bytes;    /* bytes of pages present in the image afterwards, or of stream */
	uint64_t zero_bytes;    /* pages found zero by scanning, short holes behind data among them */
	uint64_t hole_bytes;    /* other pages: save: other holes, and unselected ones; load: absent ones */
	uint64_t io_bytes;      /* written to or read from the image by the page path, gaps included */
	uint64_t io_count;
	uint64_t elapsed_ns;
	uint64_t scan_ns;  /* zero scan and checksums */
	uint64_t io_ns;    /* the worker had nothing to do but wait for the image */
	uint64_t table_ns; /* bitmaps and checksums through the header path */
	uint64_t sync_ns;  /* FINISH */
	uint64_t histogram[DIOH_HISTOGRAM_BUCKETS]; /* I/Os whose latency was in [2^i, 2^(i+1)) microseconds; the last: more */
};

enum dioh_phase {
	DIOH_PHASE_ATTACH = 1,
	DIOH_PHASE_READY = 2,    /* sealed, no transfer runs */
	DIOH_PHASE_TRANSFER = 3,
	DIOH_PHASE_SYNC = 4,     /* FINISH or a header-path request is being carried out */
	DIOH_PHASE_FINISHED = 5,
};

struct dioh_msg_progress_entry {
	uint32_t transfer; /* its id */
	uint32_t phase;    /* TRANSFER, or SYNC for FINISH */
	uint64_t done_bytes;
	uint64_t total_bytes;       /* 0: not known (streams) */
	uint64_t bytes_per_second;  /* over the last second or so */
};

struct dioh_msg_progress { /* event, id 0: sent only when the manager has read all that came before */
	uint32_t phase; /* enum dioh_phase */
	uint32_t count; /* <= DIOH_TRANSFERS_MAX */
	/* struct dioh_msg_progress_entry entries[count] */
};

struct dioh_msg_status_reply {
	uint32_t phase;
	uint32_t transfers;     /* running */
	uint32_t in_flight;     /* page I/Os not yet completed */
	uint32_t reserved;
	uint64_t oldest_ns;     /* age of the oldest of them */
	uint64_t done_bytes;    /* over all transfers of the session */
};

struct dioh_msg_cancel {
	uint32_t transfer; /* its id; 0: all */
	uint32_t reserved;
};

struct dioh_msg_cancel_reply {
	uint32_t in_flight; /* page I/Os not yet completed; COMPLETE(ECANCELED) comes when there are none */
	uint32_t reserved;
};

struct dioh_msg_stuck { /* event, id 0: I/O older than the helper's limit. The memory and the image range stay in use */
	uint32_t in_flight;
	uint32_t reserved;
	uint64_t oldest_ns;
};

enum dioh_finish_mode { DIOH_FINISH_DURABLE = 0, DIOH_FINISH_WRITTEN = 1 };

struct dioh_msg_finish { /* reply: no payload; then COMPLETE with this id, then the helper exits: 0 if its code is 0 */
	uint32_t mode;
	uint32_t patch_bytes;  /* <= DIOH_HEADER_PATCH_BYTES_MAX */
	uint64_t patch_offset; /* in the manager's header */
	/* patch bytes */
};

#endif
