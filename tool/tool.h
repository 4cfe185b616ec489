/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * tool.h - what the verbs of diohelper-tool share: options, output, the image's descriptors and a sealed helper that
 * reads the image for them. The tool is a manager like any other: it parses no image byte and trusts no name, text or
 * number that comes out of one.
 */
#ifndef DIOH_TOOL_H
#define DIOH_TOOL_H

#include <jansson.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/stat.h>

#include "diohelper.h"

#define DIOH_TOOL_NAME "diohelper-tool"

enum dioh_tool_exit { DIOH_TOOL_OK = 0, DIOH_TOOL_FAILED = 1, DIOH_TOOL_USAGE = 2 };

/* ---- verbs and options (options.c) -------------------------------------------------------------------------- */

struct dioh_tool_verb {
	const char *name;
	const char *summary; /* one line, for the tool's --help */
	int (*run)(int argc, char **argv); /* argv[0] is the verb; answers the exit status */
};

/* An option and where its value goes: exactly one of the three pointers is set. The table also makes --help. */
struct dioh_tool_option {
	const char *name;
	const char *argument; /* what --help calls the argument; NULL: it takes none */
	const char *help;
	bool *flag;
	const char **text;
	uint64_t *size; /* bytes; suffixes K, M, G, T */
};

/* Options that several verbs have. */
#define DIOH_TOOL_BASE_OFFSET_HELP "where in IMAGE the image starts (default 0)"
#define DIOH_TOOL_HEADER_BYTES_HELP "mapped-ram: size of a header of another manager's in front"
#define DIOH_TOOL_HELPER_HELP "the diohelper to use (default: $DIOHELPER, the one beside this program, PATH)"

struct dioh_tool_usage {
	const char *verb;
	const char *operand; /* what --help and complaints call it */
	const char *description;
	const struct dioh_tool_option *options;
	unsigned option_count;
};

/*
 * Parses a verb's options and its one operand. Returns -1 to go on, else the exit status: --help has been printed, or
 * what is wrong with the command line.
 */
int dioh_tool_parse(const struct dioh_tool_usage *usage, int argc, char **argv, const char **ret_operand);
/* As above for a verb with one to `max` operands; those that were not given are NULL. */
int dioh_tool_parse_operands(const struct dioh_tool_usage *usage, int argc, char **argv, unsigned max,
                             const char **ret_operands);

/* "64", "4K", "1G": false if it is anything else or does not fit 64 bits. */
bool dioh_tool_parse_size(const char *text, uint64_t *ret_bytes);

/* Complains "diohelper-tool VERB: ..." on stderr. Returns DIOH_TOOL_USAGE. */
int dioh_tool_usage_error(const char *verb, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Check what --base-offset and --header-bytes brought: -1 to go on, else the exit status. */
int dioh_tool_check_base_offset(const char *verb, uint64_t base_offset);
int dioh_tool_check_place(const char *verb, uint64_t base_offset, uint64_t header_bytes);

/* ---- output (output.c) -------------------------------------------------------------------------------------- */

#define DIOH_TOOL_SIZE_BYTES 32u                            /* room for a size as people read it */
#define DIOH_TOOL_ESCAPED_BYTES (4u * DIOH_NAME_BYTES + 1u) /* room for any name, escaped */

const char *dioh_tool_layout_name(uint32_t layout);
const char *dioh_tool_state_name(uint32_t state);
const char *dioh_tool_format_name(uint32_t format); /* of libvirt's header, as libvirt calls it */

/* "4096.0 MiB"; KiB and bytes below 1 MiB. */
void dioh_tool_format_size(uint64_t bytes, char text[DIOH_TOOL_SIZE_BYTES]);

/* `name` (at most DIOH_NAME_BYTES, NUL or not) with everything escaped that could act on a terminal. */
void dioh_tool_escape_name(const char *name, char escaped[DIOH_TOOL_ESCAPED_BYTES]);

/* Columns that an escaped name takes. */
size_t dioh_tool_columns(const char *escaped);

/* All bytes are text that people can read: valid UTF-8, no control characters but tab and newline. */
bool dioh_tool_is_text(const char *bytes, size_t count);

/* Prints text, escaped, every line behind `indent`. */
void dioh_tool_print_text(FILE *file, const char *indent, const char *bytes, size_t count);

/* Fills `err` for a failure of the tool's own; returns -code. */
int dioh_tool_error_set(struct dioh_error *err, int code, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

/* ---- JSON (json.c): keys are documented in docs/tool.md ----------------------------------------------------- */

json_t *dioh_tool_json_text(const char *bytes, size_t count);
json_t *dioh_tool_json_name(const char name[DIOH_NAME_BYTES]);
json_t *dioh_tool_json_hex(uint64_t value);
json_t *dioh_tool_json_bytes(uint64_t value); /* an integer */
json_t *dioh_tool_json_error(const struct dioh_error *err);

/* The keys that every document begins with; `open` NULL: those of an image that could not be read. */
json_t *dioh_tool_json_image(const char *path, uint64_t base_offset, const struct dioh_msg_open_image_reply *open,
                             bool record);

/* Prints `root` and frees it; NULL: memory ran out while it was made. Returns 0 or -errno with `err` filled. */
int dioh_tool_json_print(json_t *root, struct dioh_error *err);

/*
 * A verb could not do its work: "diohelper-tool: PATH: what went wrong" on stderr, and a document with the keys
 * `result` and `error` if `json`. Returns DIOH_TOOL_FAILED.
 */
int dioh_tool_fail(const char *path, uint64_t base_offset, bool json, const struct dioh_error *err);

/* ---- the image and its helper (session.c) ------------------------------------------------------------------- */

struct dioh_tool_image {
	const char *path;
	uint64_t base_offset;
	int buffered_fd;
	int direct_fd; /* -1: not asked for, or the file system has no O_DIRECT */
};

/* Opens for reading; `direct`: a second time with O_DIRECT, if that can be had. */
int dioh_tool_image_open(const char *path, uint64_t base_offset, bool direct, struct dioh_tool_image *ret_image,
                         struct dioh_error *err);
void dioh_tool_image_close(struct dioh_tool_image *image);

/* The directory in which `path` stands; -1 and errno. */
int dioh_tool_open_directory(const char *path);

#define DIOH_TOOL_PATH_BYTES 4096u

/* ---- files and their names (files.c) ------------------------------------------------------------------------ */

/* Of block devices: the same device, by whatever node. */
bool dioh_tool_is_same_file(const struct stat *a, const struct stat *b);

/* The file that is open, and no link to it, is what has the name. */
bool dioh_tool_has_name(int fd, const char *path);

/* What a file may take: free blocks, and those that it gives back when it is emptied. UINT64_MAX: nobody knows. */
uint64_t dioh_tool_file_room(int fd);

/* What is about to be written to is no disk of a machine that runs (EBUSY). */
int dioh_tool_check_unused(int fd, struct dioh_error *err);

/*
 * A regular file that this run writes. EBUSY: another run of the tool has it, or the name is not the file's any more. Held
 * until `fd` is closed everywhere.
 */
int dioh_tool_lock(int fd, const char *path, struct dioh_error *err);

/* rename(2), but nothing that has the name `to` is replaced: -1 and errno. */
int dioh_tool_rename_new(const char *from, const char *to);

/* Whatever stands at the name of something partial. 0: nothing; 1: what an interrupted run leaves; EEXIST: else. */
int dioh_tool_partial_check(const char *path, struct dioh_error *err);
/* The name is free afterwards. */
int dioh_tool_partial_remove(const char *path, struct dioh_error *err);
/* A new and empty file of that name for reading and writing, locked: a descriptor. */
int dioh_tool_partial_open(const char *path, struct dioh_error *err);

/* ---- sessions (session.c) ----------------------------------------------------------------------------------- */

/* Bytes of hostile images are parsed behind these. They can be had everywhere: no helper without them is to be used. */
#define DIOH_TOOL_LAYERS (DIOH_LAYER_STRAYS_CLOSED | DIOH_LAYER_NO_CAPABILITIES | DIOH_LAYER_NO_NEW_PRIVS)

struct dioh_tool_session_options {
	const char *helper; /* --helper, or NULL */
	const struct dioh_tool_image *image;
	int memory_fd;         /* -1, or attached as memory 0 */
	const int *stream_fds; /* attached as streams 0 to stream_count - 1 */
	uint32_t stream_count;
	uint32_t layout;     /* enum dioh_layout */
	uint32_t open_flags; /* enum dioh_open_flag */
	uint64_t header_bytes; /* not 0: mapped-ram behind a header of so many bytes, which is not libvirt's; raw: of its header */
	uint32_t region_count; /* mapped-ram: regions that will be loaded into memory; raw: all entries */
	const struct dioh_msg_entry *regions;
};

/* Spawns a helper, attaches, seals, opens the image for a load. */
int dioh_tool_session_start(const struct dioh_tool_session_options *options, struct dioh_session **ret_session,
                            struct dioh_msg_open_image_reply *ret_open, struct dioh_error *err);

/* Which diohelper to use: `helper` (--helper, may be NULL) and what DIOH_TOOL_HELPER_HELP says. For execvp(3). */
const char *dioh_tool_helper(const char *helper, char path[DIOH_TOOL_PATH_BYTES]);

/* What errno says of a memfd that was to be made. */
int dioh_tool_memory_error(struct dioh_error *err);
/* Of that size for good, to be loaded into: a descriptor. */
int dioh_tool_make_memory(uint64_t bytes, int *ret_fd, struct dioh_error *err);

/* Spawns a helper that has the features `required`. */
int dioh_tool_spawn(const char *helper, uint64_t required, struct dioh_session **ret_session, struct dioh_error *err);

/* The helper ends at once when nothing runs; a disk that hangs must not hang the tool as well. */
#define DIOH_TOOL_END_TIMEOUT_MS 10000

/*
 * Closes the session; an error if the helper did not end as it should. `r`: what the work in it has come to; unless
 * that is 0 it is answered, and `err` stays. `session` may be NULL.
 */
int dioh_tool_session_end(struct dioh_session *session, int r, struct dioh_error *err);

/* A stream whose own end fails, and not what comes through it, gets the name by which the user knows it. */
void dioh_tool_name_stream(const char *name, struct dioh_error *err);

/* An error if the helper's status, as of waitpid(2), is not that of one that ended as it should. */
int dioh_tool_check_status(int status, struct dioh_error *err);

struct dioh_tool_table {
	uint32_t region_count;
	uint32_t stream_count;
	struct dioh_msg_entry *entries; /* regions, then streams; to be freed */
};

/* All of the table; -ESTALE: there is more in it than the counts say, which an earlier session was told. */
int dioh_tool_table_read(struct dioh_session *session, uint32_t region_count, uint32_t stream_count,
                         struct dioh_tool_table *ret_table, struct dioh_error *err);

/* Does the image have the record of docs/image-format.md? A raw one has none, nor has a mapped-ram one of QEMU's own. */
bool dioh_tool_has_record(const struct dioh_msg_open_image_reply *open, const struct dioh_tool_table *table);

/* ---- libvirt's header (libvirt.c) --------------------------------------------------------------------------- */

/* libvirt's numbers of what stands behind it. */
enum { DIOH_TOOL_LIBVIRT_RAW = 0, DIOH_TOOL_LIBVIRT_SPARSE = 6 };

#define DIOH_TOOL_LIBVIRT_MAGIC_BYTES 16u
#define DIOH_TOOL_LIBVIRT_PARTIAL "LibvirtQemudPart"
#define DIOH_TOOL_LIBVIRT_COMPLETE "LibvirtQemudSave"

/* By its magic: complete or partial. */
bool dioh_tool_libvirt_is_header(const uint8_t *header, uint64_t bytes);
/* Says what stands behind the header. false: it is none of libvirt's, or of a host of the other byte order. */
bool dioh_tool_libvirt_set_format(uint8_t *header, uint64_t bytes, uint32_t format);

/* ---- checking everything in an image (check.c) -------------------------------------------------------------- */

#define DIOH_TOOL_DAMAGES_MAX 1000u /* more are of no use to anybody */

struct dioh_tool_damage {
	uint32_t entry;  /* index in the table */
	uint64_t offset; /* in the region or stream; DIOH_OFFSET_NONE: the entry as a whole */
	uint64_t bytes;  /* what is lost with it; 0: not known */
	bool mismatch;   /* a checksum that does not match; else `text` says more */
	char text[DIOH_TEXT_BYTES];
};

struct dioh_tool_entry_check {
	bool wanted;  /* it was to be read */
	bool checked; /* it has checksums, and they were compared */
	uint32_t damages;
	uint64_t read_bytes;
};

struct dioh_tool_check {
	struct dioh_tool_entry_check *entries; /* one for each of the table's */
	struct dioh_tool_damage *damages;      /* in the table's order, then by offset */
	uint32_t damage_count;
	bool stopped; /* after DIOH_TOOL_DAMAGES_MAX damages */
	uint64_t elapsed_ns;
};

struct dioh_tool_check_options {
	struct dioh_session *session;
	const struct dioh_tool_table *table;
	uint64_t base_offset;
	const int *stream_fds; /* reading ends of the attached streams' pipes, non-blocking */
	bool read_all;         /* entries without checksums as well */
	bool progress;         /* a bar on stderr */
};

#define DIOH_TOOL_CHECK_MEMORY_BYTES (UINT64_C(128) << 20) /* size of memory 0, which is loaded into */

/*
 * Compares every checksum of every entry by loading it; with `read_all` it loads everything. Damage is no error of this
 * function: it is listed, and the check goes on behind it. Errors: whatever makes going on impossible.
 */
int dioh_tool_check_run(const struct dioh_tool_check_options *options, struct dioh_tool_check *ret_check,
                        struct dioh_error *err);
void dioh_tool_check_free(struct dioh_tool_check *check);

/* ---- the same in a session of its own (check_image.c) ------------------------------------------------------- */

struct dioh_tool_image_check_options {
	const char *helper;
	const struct dioh_tool_image *image;
	uint64_t header_bytes; /* as for struct dioh_tool_session_options */
	const struct dioh_msg_open_image_reply *open; /* what a look at it has told */
	const struct dioh_tool_table *table;
	bool accept_written;
	bool read_all;
	bool progress;
};

/* As dioh_tool_check_run(). `ret_table`: the table in that session, for its entries' names; to be freed. */
int dioh_tool_check_image(const struct dioh_tool_image_check_options *options, struct dioh_tool_table *ret_table,
                          struct dioh_tool_check *ret_check, struct dioh_error *err);

/* ---- progress (progress.c) ---------------------------------------------------------------------------------- */

struct dioh_tool_progress {
	bool on;
	uint64_t total_bytes;
	uint64_t base_bytes; /* that an earlier run had done: no rate comes of them */
	uint64_t started_ns;
	uint64_t drawn_ns;
};

uint64_t dioh_tool_now_ns(void);
void dioh_tool_progress_start(struct dioh_tool_progress *progress, bool on, uint64_t total_bytes);

#define DIOH_TOOL_PROGRESS_BYTES 128u
/* The bar after so many seconds. */
void dioh_tool_progress_text(const struct dioh_tool_progress *progress, uint64_t done_bytes, double seconds,
                             char text[DIOH_TOOL_PROGRESS_BYTES]);
void dioh_tool_progress_draw(struct dioh_tool_progress *progress, uint64_t done_bytes);
void dioh_tool_progress_end(struct dioh_tool_progress *progress); /* removes the bar */

/* ---- the verbs ---------------------------------------------------------------------------------------------- */

extern const struct dioh_tool_verb dioh_tool_bench;
extern const struct dioh_tool_verb dioh_tool_convert;
extern const struct dioh_tool_verb dioh_tool_ingest;
extern const struct dioh_tool_verb dioh_tool_inspect;
extern const struct dioh_tool_verb dioh_tool_map;
extern const struct dioh_tool_verb dioh_tool_verify;

#endif
