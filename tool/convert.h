/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * convert.h - the verb `convert` in four parts: what is to become of what (convert.c), OUT's file (convert_out.c), two sealed
 * helpers joined by pipes and a memfd (convert_join.c), and freeing IN behind the work, so that it can go on after a crash
 * (convert_consume.c).
 */
#ifndef DIOH_TOOL_CONVERT_H
#define DIOH_TOOL_CONVERT_H

#include <sys/stat.h>
#include <sys/types.h>

#include "tool.h"

/* ---- two helpers (convert_join.c) --------------------------------------------------------------------------- */

enum dioh_join_side { DIOH_JOIN_IN, DIOH_JOIN_OUT, DIOH_JOIN_SIDES };

/* Everything before this place of the regions that are moved through memory is in OUT. */
struct dioh_join_place {
	uint32_t index; /* which of these regions, in IN's order */
	uint64_t offset;
};

struct dioh_join_out {
	int buffered_fd;
	int direct_fd;    /* -1: not to be had */
	int directory_fd; /* -1, or synced in the end */
	int sync_fd;      /* -1, or OUT opened once more, which the helper does not get: for `durable` */
	uint32_t layout;  /* enum dioh_layout */
	uint64_t header_bytes;
	const uint8_t *header; /* as it is to stand there while OUT is partial */
	const uint8_t *patch;  /* what makes its first bytes complete */
	uint32_t patch_bytes;
	bool keep; /* OUT is partial already, up to `place` of the options */
};

/* `durable` is called that often, and as much again may be under way then. */
#define DIOH_JOIN_STEP_BYTES (UINT64_C(128) << 20)

struct dioh_join_options {
	const char *helper;
	struct dioh_tool_session_options in; /* without memory and streams: the join makes these */
	const uint8_t *in_header; /* as it was when IN was looked at: OUT's is made of it */
	uint64_t in_header_bytes;
	uint32_t stream_count; /* of IN */
	uint32_t region_count; /* of IN, for its table */
	struct dioh_join_out out;
	bool progress;
	struct dioh_join_place place; /* where to begin; 0: at the start */
	/*
	 * Called when everything before `place` is durable in OUT; `regions`: those that are moved through memory. NULL: not
	 * wanted, and then nothing is synced before the end.
	 */
	int (*durable)(void *owner, const struct dioh_msg_entry *regions, const struct dioh_join_place *place,
	               struct dioh_error *err);
	void *owner;
};

/*
 * IN's streams and regions into OUT, which is complete and durable afterwards. On failure `ret_side` says whose it was.
 */
int dioh_join_run(const struct dioh_join_options *options, enum dioh_join_side *ret_side, struct dioh_error *err);

/* ---- freeing IN (convert_consume.c) ------------------------------------------------------------------------- */

/* A file, wherever it is mounted. When it was made tells it from a later one that got its inode's number. */
struct dioh_consume_file {
	uint64_t inode;
	int64_t born_ns; /* 0: not known: then the inode has to do */
};

struct dioh_consume {
	char state_path[DIOH_TOOL_PATH_BYTES];
	char new_path[DIOH_TOOL_PATH_BYTES];
	const char *format; /* of OUT */
	uint64_t base_offset; /* of IN */
	uint64_t header_bytes; /* in front of a mapped-ram IN */
	int in_fd;          /* writable */
	int out_fd;
	int directory_fd;   /* OUT's */
	uint64_t in_bytes;
	uint64_t identity;            /* of the image in IN: another one in the same file has another */
	bool resumed;                 /* an earlier run left its state */
	struct dioh_consume_file out; /* that OUT */
	struct dioh_join_place place; /* where OUT came to, durably: as the state says */
	struct dioh_join_place freed; /* what this run has freed. An earlier one may have been interrupted before it had */
	bool whole;                   /* not a page of IN is gone */
};

/*
 * An earlier run may have been interrupted when OUT was complete already, and IN no image any more: what was left to do
 * is done. 1: so it was; 0: it was not.
 */
int dioh_consume_finish(const char *in_path, uint64_t base_offset, const char *out_path, struct dioh_error *err);

/*
 * Begins, or finds where an earlier run came to. IN is opened for writing; its regions have checksums. EINVAL: IN is no
 * file, or the state is that of another conversion or of another image in IN.
 */
int dioh_consume_begin(const struct dioh_tool_image *image, const struct dioh_msg_open_image_reply *open,
                       const struct dioh_tool_table *table, const char *out_path, const char *format,
                       struct dioh_consume *ret_consume, struct dioh_error *err);

/*
 * Before the first page is freed: all of IN can be read, and is what was saved. Else what comes later would be lost with
 * what came before it. Of an IN in which pages are gone already nothing is said.
 */
int dioh_consume_check(const struct dioh_consume *consume, const struct dioh_tool_image_check_options *in,
                       struct dioh_error *err);

/* A part of IN is in an OUT already. */
bool dioh_consume_has_begun(const struct dioh_consume *consume);

/* Is it the OUT that an earlier run's state speaks of? `fd` -1: what has the name; else that is "". */
bool dioh_consume_is_out(const struct dioh_consume *consume, const char *path, int fd);

/*
 * EINVAL: OUT has what an earlier run has freed of an image, and nobody but who goes on with that may write to it. `out_fd` -1:
 * what has the name.
 */
int dioh_consume_check_other(const char *out_path, int out_fd, struct dioh_error *err);

/* OUT has been opened: if a part of IN is in it already, it has to be the one that the state speaks of. */
int dioh_consume_take_out(struct dioh_consume *consume, int out_fd, int directory_fd, struct dioh_error *err);

/* For struct dioh_join_options: writes the state, then frees. */
int dioh_consume_durable(void *owner, const struct dioh_msg_entry *regions, const struct dioh_join_place *place,
                         struct dioh_error *err);

/* OUT is complete and durable: IN is made no image any more, and the state goes. */
int dioh_consume_end(struct dioh_consume *consume, struct dioh_error *err);

/* Nothing becomes of OUT, and IN is whole: the state goes. */
void dioh_consume_drop(struct dioh_consume *consume);
void dioh_consume_close(struct dioh_consume *consume);

/* ---- OUT (convert_out.c) ------------------------------------------------------------------------------------ */

struct dioh_convert_out {
	const char *name;                   /* OUT */
	const struct stat *in;              /* IN, which it must not be */
	const struct dioh_consume *consume; /* NULL without --consume */
	bool is_stream;     /* nothing in it says whether it is complete: it has another name until then */
	bool to_be_emptied; /* layout raw makes no file shorter */
	bool force;
	char path[DIOH_TOOL_PATH_BYTES]; /* what is written */
	bool created;
	int fd, direct_fd, directory_fd, sync_fd; /* as in struct dioh_join_out */
};

#define DIOH_CONVERT_OUT_INIT { .fd = -1, .direct_fd = -1, .directory_fd = -1, .sync_fd = -1 }

/* Before anything is made: its directory, and whether what has the name may be overwritten. */
int dioh_convert_out_prepare(struct dioh_convert_out *out, struct dioh_error *err);

/*
 * ENOSPC: a file is to be overwritten, or IN to be freed, and `data_bytes` plainly do not fit, even in its place. Where IN's
 * pages give room to OUT only `ahead_bytes` need fit, which come before anything is freed.
 */
int dioh_convert_out_check_room(const struct dioh_convert_out *out, uint64_t data_bytes, uint64_t ahead_bytes,
                                struct dioh_error *err);

int dioh_convert_out_open(struct dioh_convert_out *out, struct dioh_error *err);

/* It is complete: only now has a stream its name. */
int dioh_convert_out_name(struct dioh_convert_out *out, struct dioh_error *err);

/* What was made for nothing goes. false: it stays, or it was not made. */
bool dioh_convert_out_drop(const struct dioh_convert_out *out);
void dioh_convert_out_close(struct dioh_convert_out *out);

#endif
