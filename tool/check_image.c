/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * check_image.c - a session in which everything in an image is checked (check.c). It is the second with that image: what the
 * first has learnt says how many streams it is to be given a pipe for before it is sealed. Called by the verb `verify`, and
 * by `convert` before it frees what it has read.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cleanup.h"
#include "tool.h"

#define PIPE_BYTES (1 << 20)

struct attached {
	int memory_fd;
	int readers[DIOH_STREAMS_MAX]; /* -1: none */
	int writers[DIOH_STREAMS_MAX];
};

static int make_pipe(int *ret_reader, int *ret_writer, struct dioh_error *err)
{
	int fds[2];

	if (pipe2(fds, O_CLOEXEC) != 0)
		return dioh_tool_error_set(err, errno, "making a pipe failed: %s", strerror(errno));
	*ret_reader = fds[0];
	*ret_writer = fds[1];
	if (fcntl(fds[0], F_SETFL, O_NONBLOCK) != 0)
		return dioh_tool_error_set(err, errno, "fcntl failed: %s", strerror(errno));
	/* Larger is faster; a limit on it is no failure. */
	(void)fcntl(fds[0], F_SETPIPE_SZ, PIPE_BYTES);
	return 0;
}

/* The writing ends are the helper's alone, so that their end shows. */
static void close_writers(struct attached *attached)
{
	for (uint32_t i = 0; i < DIOH_STREAMS_MAX; i++) {
		dioh_cleanup_fd(&attached->writers[i]);
		attached->writers[i] = -1;
	}
}

static void close_all(struct attached *attached)
{
	close_writers(attached);
	for (uint32_t i = 0; i < DIOH_STREAMS_MAX; i++)
		dioh_cleanup_fd(&attached->readers[i]);
	dioh_cleanup_fd(&attached->memory_fd);
}

/* Memory, and a pipe a stream. */
static int make_attached(const struct dioh_tool_image_check_options *options, struct attached *ret_attached,
                         struct dioh_error *err)
{
	struct attached attached = { .memory_fd = -1 };
	int r;

	for (uint32_t i = 0; i < DIOH_STREAMS_MAX; i++)
		attached.readers[i] = attached.writers[i] = -1;
	r = dioh_tool_make_memory(DIOH_TOOL_CHECK_MEMORY_BYTES, &attached.memory_fd, err);
	for (uint32_t i = 0; r == 0 && i < options->table->stream_count; i++)
		r = make_pipe(&attached.readers[i], &attached.writers[i], err);
	if (r != 0)
		close_all(&attached);
	else
		*ret_attached = attached;
	return r;
}

/* Every region is loaded into memory: then the stream holds nothing twice. Where QEMU has them does not matter here. */
static int choose_regions(const struct dioh_tool_table *table, struct dioh_msg_entry **ret_entries, struct dioh_error *err)
{
	struct dioh_msg_entry *entries = calloc(table->region_count + 1, sizeof(*entries));

	if (!entries)
		return dioh_tool_error_set(err, ENOMEM, "there is no memory for a table");
	for (uint32_t i = 0; i < table->region_count; i++) {
		const struct dioh_msg_entry *entry = &table->entries[i];

		entries[i] = (struct dioh_msg_entry){ .kind = DIOH_ENTRY_REGION, .number = entry->number,
			                              .flags = DIOH_ENTRY_GUEST_ADDRESS, .bytes = entry->bytes,
			                              .guest_address = entry->guest_address };
		memcpy(entries[i].name, entry->name, sizeof(entry->name));
	}
	*ret_entries = entries;
	return 0;
}

static int start_session(const struct dioh_tool_image_check_options *options, const struct attached *attached,
                         struct dioh_session **ret_session, struct dioh_error *err)
{
	const bool mapped_ram = options->open->layout == DIOH_LAYOUT_MAPPED_RAM;
	DIOH_AUTO_FREE struct dioh_msg_entry *regions = NULL;
	struct dioh_tool_session_options session = {
		.helper = options->helper, .image = options->image, .memory_fd = attached->memory_fd,
		.stream_fds = attached->writers, .stream_count = options->table->stream_count, .layout = options->open->layout,
		.header_bytes = options->header_bytes, .open_flags = options->accept_written ? DIOH_OPEN_ACCEPT_WRITTEN : 0
	};
	struct dioh_msg_open_image_reply open;
	int r = mapped_ram ? choose_regions(options->table, &regions, err) : 0;

	session.regions = regions;
	session.region_count = mapped_ram ? options->table->region_count : 0;
	return r == 0 ? dioh_tool_session_start(&session, ret_session, &open, err) : r;
}

/* The same but for what follows from having every region loaded into memory. */
static bool is_same_entry(const struct dioh_msg_entry *again, const struct dioh_msg_entry *entry)
{
	return again->kind == entry->kind && again->number == entry->number && again->image_offset == entry->image_offset &&
	       (again->flags & DIOH_ENTRY_CHECKSUMS) == (entry->flags & DIOH_ENTRY_CHECKSUMS) &&
	       memcmp(again->name, entry->name, sizeof(entry->name)) == 0 &&
	       (entry->kind == DIOH_ENTRY_STREAM ||
	        (again->bytes == entry->bytes && again->present_bytes == entry->present_bytes));
}

/* Somebody may have written the image since it was looked at: pipes and numbers would not fit it any more. */
static int look_again(const struct dioh_tool_table *table, struct dioh_session *session,
                      struct dioh_tool_table *ret_table, struct dioh_error *err)
{
	struct dioh_tool_table again;
	bool same = true;
	int r = dioh_tool_table_read(session, table->region_count, table->stream_count, &again, err);

	if (r != 0)
		return r;
	for (uint32_t i = 0; i < table->region_count + table->stream_count; i++)
		same = same && is_same_entry(&again.entries[i], &table->entries[i]);
	if (!same) {
		free(again.entries);
		return dioh_tool_error_set(err, ESTALE, "the image was changed while it was being verified");
	}
	*ret_table = again;
	return 0;
}

static int check_in_session(const struct dioh_tool_image_check_options *options, const struct attached *attached,
                            struct dioh_session *session, struct dioh_tool_table *ret_table,
                            struct dioh_tool_check *ret_check, struct dioh_error *err)
{
	struct dioh_tool_table table;
	const struct dioh_tool_check_options check = {
		.session = session, .table = &table, .base_offset = options->image->base_offset, .stream_fds = attached->readers,
		.read_all = options->read_all, .progress = options->progress
	};
	int r = look_again(options->table, session, &table, err);

	if (r != 0)
		return r;
	r = dioh_tool_check_run(&check, ret_check, err);
	if (r != 0)
		free(table.entries);
	else
		*ret_table = table;
	return r;
}

int dioh_tool_check_image(const struct dioh_tool_image_check_options *options, struct dioh_tool_table *ret_table,
                          struct dioh_tool_check *ret_check, struct dioh_error *err)
{
	struct dioh_tool_check check;
	struct dioh_tool_table table;
	struct dioh_session *session;
	struct attached attached;
	int r = make_attached(options, &attached, err), checked;

	if (r != 0)
		return r;
	r = start_session(options, &attached, &session, err);
	close_writers(&attached);
	if (r == 0) {
		checked = check_in_session(options, &attached, session, &table, &check, err);
		r = dioh_tool_session_end(session, checked, err);
		if (checked == 0 && r != 0) {
			dioh_tool_check_free(&check);
			free(table.entries);
		}
	}
	close_all(&attached);
	if (r == 0) {
		*ret_table = table;
		*ret_check = check;
	}
	return r;
}
