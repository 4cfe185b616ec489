/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * session.c - the image's descriptors, and a sealed helper that reads the image through them. What comes back has been
 * checked by the helper and again by the library; names in it are still the image's author's. Called by the verbs.
 */
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cleanup.h"
#include "tool.h"

#define FEATURES_REQUIRED                                                                                              \
	(DIOH_FEATURE_LAYOUT_CONTAINER | DIOH_FEATURE_LAYOUT_MAPPED_RAM | DIOH_FEATURE_CHECKSUM | DIOH_FEATURE_STREAM)

/* ---- the image ---------------------------------------------------------------------------------------------- */

static int check_kind(int fd, struct dioh_error *err)
{
	struct stat st;

	if (fstat(fd, &st) != 0)
		return dioh_tool_error_set(err, errno, "fstat failed: %s", strerror(errno));
	if (S_ISDIR(st.st_mode))
		return dioh_tool_error_set(err, EISDIR, "is a directory, not an image");
	if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
		return dioh_tool_error_set(err, EINVAL, "is neither a regular file nor a block device");
	if (S_ISREG(st.st_mode) && st.st_size == 0)
		return dioh_tool_error_set(err, EBADMSG, "is empty, so it is not an image");
	return 0;
}

/* O_NONBLOCK: opening a FIFO must not wait for its writer. It means nothing to what is accepted in the end. */
static int open_buffered(const char *path, int *ret_fd, struct dioh_error *err)
{
	DIOH_AUTO_FD int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
	int r;

	if (fd < 0)
		return dioh_tool_error_set(err, errno, "cannot be opened: %s", strerror(errno));
	r = check_kind(fd, err);
	if (r != 0)
		return r;
	if (fcntl(fd, F_SETFL, 0) != 0)
		return dioh_tool_error_set(err, errno, "fcntl failed: %s", strerror(errno));
	*ret_fd = dioh_steal_fd(&fd);
	return 0;
}

int dioh_tool_open_directory(const char *path)
{
	DIOH_AUTO_FREE char *copy = strdup(path);

	return copy ? open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
}

int dioh_tool_image_open(const char *path, uint64_t base_offset, bool direct, struct dioh_tool_image *ret_image,
                         struct dioh_error *err)
{
	int buffered_fd = -1, direct_fd = -1;
	int r = open_buffered(path, &buffered_fd, err);

	if (r != 0)
		return r;
	if (direct) {
		direct_fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK | O_DIRECT);
		/* EINVAL: this file system has none. Whatever else it is, without O_DIRECT the work can be done too. */
		if (direct_fd >= 0)
			(void)fcntl(direct_fd, F_SETFL, O_DIRECT);
	}
	*ret_image = (struct dioh_tool_image){ path, base_offset, buffered_fd, direct_fd };
	return 0;
}

void dioh_tool_image_close(struct dioh_tool_image *image)
{
	dioh_cleanup_fd(&image->buffered_fd);
	dioh_cleanup_fd(&image->direct_fd);
	image->buffered_fd = image->direct_fd = -1;
}

/* ---- the helper --------------------------------------------------------------------------------------------- */

/* The helper that stands beside this program, into `path`. */
static bool find_neighbour(char *path, size_t size)
{
	static const char name[] = "diohelper";
	ssize_t length = readlink("/proc/self/exe", path, size - 1);
	char *slash;

	if (length < 0 || (size_t)length >= size - sizeof(name))
		return false;
	path[length] = '\0';
	slash = strrchr(path, '/');
	if (!slash)
		return false;
	memcpy(slash + 1, name, sizeof(name));
	return access(path, X_OK) == 0;
}

const char *dioh_tool_helper(const char *helper, char path[DIOH_TOOL_PATH_BYTES])
{
	if (!helper)
		helper = getenv("DIOHELPER");
	if ((!helper || *helper == '\0') && find_neighbour(path, DIOH_TOOL_PATH_BYTES))
		helper = path;
	return helper && *helper ? helper : "diohelper";
}

int dioh_tool_spawn(const char *helper, uint64_t required, struct dioh_session **ret_session, struct dioh_error *err)
{
	struct dioh_spawn_options spawn_options = DIOH_SPAWN_OPTIONS_INIT;
	char path[DIOH_TOOL_PATH_BYTES];

	spawn_options.program = dioh_tool_helper(helper, path);
	return dioh_spawn(&spawn_options, required, ret_session, err);
}

int dioh_tool_memory_error(struct dioh_error *err)
{
	const int code = errno;

	return dioh_tool_error_set(err, code, "no memory could be made: %s%s", strerror(code),
	                           code == EFBIG ? " (a limit on the size of files, ulimit -f, counts for memory, too)" : "");
}

int dioh_tool_make_memory(uint64_t bytes, int *ret_fd, struct dioh_error *err)
{
	DIOH_AUTO_FD int fd = memfd_create(DIOH_TOOL_NAME, MFD_CLOEXEC | MFD_ALLOW_SEALING);

	if (fd < 0 || ftruncate(fd, (off_t)bytes) != 0 || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0)
		return dioh_tool_memory_error(err);
	*ret_fd = dioh_steal_fd(&fd);
	return 0;
}

static int attach(struct dioh_session *session, const struct dioh_tool_session_options *options, struct dioh_error *err)
{
	struct dioh_image_options image_options = DIOH_IMAGE_OPTIONS_INIT;
	struct dioh_memory_options memory_options = DIOH_MEMORY_OPTIONS_INIT;
	struct dioh_msg_attach_image_reply image;
	struct dioh_msg_attach_memory_reply memory;
	struct dioh_msg_attach_stream_reply stream;
	struct dioh_msg_seal_reply seal;
	int r;

	image_options.buffered_fd = options->image->buffered_fd;
	image_options.direct_fd = options->image->direct_fd;
	image_options.direction = DIOH_DIRECTION_LOAD;
	image_options.base_offset = options->image->base_offset;
	r = dioh_attach_image(session, &image_options, &image, err);
	if (r == 0 && options->memory_fd >= 0) {
		memory_options.fd = options->memory_fd;
		r = dioh_attach_memory(session, 0, &memory_options, &memory, err);
	}
	for (uint32_t i = 0; r == 0 && i < options->stream_count; i++)
		r = dioh_attach_stream(session, i, options->stream_fds[i], &stream, err);
	if (r != 0)
		return r;
	return dioh_seal(session, DIOH_TOOL_LAYERS, &seal, err);
}

static uint64_t feature_of(uint32_t open_flags)
{
	return open_flags & DIOH_OPEN_ALL_IN_STREAM ? DIOH_FEATURE_ALL_IN_STREAM : 0;
}

int dioh_tool_session_start(const struct dioh_tool_session_options *options, struct dioh_session **ret_session,
                            struct dioh_msg_open_image_reply *ret_open, struct dioh_error *err)
{
	const bool behind_header = options->header_bytes && options->layout == DIOH_LAYOUT_DETECT;
	struct dioh_open_options open_options = {
		.layout = behind_header ? DIOH_LAYOUT_MAPPED_RAM : options->layout, .flags = options->open_flags,
		.entry_count = options->region_count, .entries = options->regions, .header_bytes = options->header_bytes
	};
	struct dioh_msg_open_image_reply open;
	struct dioh_session *session;
	int r;

	r = dioh_tool_spawn(options->helper, FEATURES_REQUIRED | feature_of(options->open_flags), &session, err);
	if (r != 0)
		return r;
	r = attach(session, options, err);
	if (r == 0)
		r = dioh_open_image(session, &open_options, &open, err);
	if (r != 0) {
		(void)dioh_close(session, DIOH_TOOL_END_TIMEOUT_MS, NULL);
		return r;
	}
	*ret_session = session;
	*ret_open = open;
	return 0;
}

void dioh_tool_name_stream(const char *name, struct dioh_error *err)
{
	const struct dioh_error why = *err;
	unsigned number;
	int prefix = 0;

	if (why.object != DIOH_OBJECT_STREAM ||
	    (why.operation != DIOH_OP_ATTACH && why.operation != DIOH_OP_READ && why.operation != DIOH_OP_WRITE))
		return;
	(void)sscanf(why.text, "stream %u: %n", &number, &prefix);
	snprintf(err->text, sizeof(err->text), "%s: %.200s", name, why.text + prefix);
}

int dioh_tool_check_status(int status, struct dioh_error *err)
{
	if (WIFSIGNALED(status))
		return dioh_tool_error_set(err, EPIPE, "the helper was killed by signal %d", WTERMSIG(status));
	if (WEXITSTATUS(status) != 0)
		return dioh_tool_error_set(err, EPIPE, "the helper ended with status %d", WEXITSTATUS(status));
	return 0;
}

int dioh_tool_session_end(struct dioh_session *session, int r, struct dioh_error *err)
{
	int status = 0;
	const int closed = session ? dioh_close(session, DIOH_TOOL_END_TIMEOUT_MS, &status) : 0;

	if (r != 0)
		return r;
	if (closed == -ETIMEDOUT)
		return dioh_tool_error_set(err, ETIMEDOUT, "the helper has not ended in %d s: the disk may hang",
		                           DIOH_TOOL_END_TIMEOUT_MS / 1000);
	if (closed != 0)
		return dioh_tool_error_set(err, -closed, "waiting for the helper failed: %s", strerror(-closed));
	return dioh_tool_check_status(status, err);
}

/* ---- the table ---------------------------------------------------------------------------------------------- */

static bool entry_fits(const struct dioh_msg_entry *entry, uint32_t index, uint32_t region_count)
{
	if (entry->kind != (index < region_count ? DIOH_ENTRY_REGION : DIOH_ENTRY_STREAM))
		return false;
	if (entry->kind == DIOH_ENTRY_REGION)
		return entry->bytes <= DIOH_REGION_BYTES_MAX && entry->present_bytes <= entry->bytes;
	return entry->bytes <= DIOH_OFFSET_MAX;
}

/* The counts may be what an earlier session was told. */
static int check_end(struct dioh_session *session, uint32_t total, struct dioh_error *err)
{
	struct dioh_msg_entry more;
	uint32_t count = 0;
	int r = dioh_get_table(session, total, 1, &more, &count, err);

	if (r == 0 && count > 0)
		r = dioh_tool_error_set(err, ESTALE, "was saved over meanwhile: it has more regions or streams than before");
	return r;
}

int dioh_tool_table_read(struct dioh_session *session, uint32_t region_count, uint32_t stream_count,
                         struct dioh_tool_table *ret_table, struct dioh_error *err)
{
	DIOH_AUTO_FREE struct dioh_msg_entry *entries = NULL;
	uint32_t total, got = 0;
	int r;

	if (region_count > DIOH_REGIONS_MAX || stream_count > DIOH_STREAMS_MAX)
		return dioh_tool_error_set(err, EBADMSG, "the helper tells of more entries than there can be");
	total = region_count + stream_count;
	entries = calloc(total ? total : 1, sizeof(*entries));
	if (!entries)
		return dioh_tool_error_set(err, ENOMEM, "there is no memory for the image's table");
	while (got < total) {
		uint32_t count = 0;

		r = dioh_get_table(session, got, total - got, entries + got, &count, err);
		if (r != 0)
			return r;
		if (count == 0 || count > total - got)
			return dioh_tool_error_set(err, EBADMSG, "the helper's table has %u entries instead of %u", got,
			                           total);
		got += count;
	}
	r = check_end(session, total, err);
	if (r != 0)
		return r;
	for (uint32_t i = 0; i < total; i++)
		if (!entry_fits(&entries[i], i, region_count))
			return dioh_tool_error_set(err, EBADMSG, "the helper's table makes no sense at entry %u", i);
	*ret_table = (struct dioh_tool_table){ region_count, stream_count, entries };
	entries = NULL;
	return 0;
}

bool dioh_tool_has_record(const struct dioh_msg_open_image_reply *open, const struct dioh_tool_table *table)
{
	if (open->layout != DIOH_LAYOUT_MAPPED_RAM)
		return open->layout == DIOH_LAYOUT_CONTAINER;
	/* A record's stream begins where QEMU's bytes do, right behind the header; without one only their end is listed. */
	return table->stream_count > 0 && table->entries[table->region_count].image_offset <= open->header_bytes;
}
