/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * ingest.c - the verb `ingest`: what a QEMU sends when it migrates becomes a mapped-ram image, while it comes. The stream is
 * standard input, an inherited descriptor, or what connects to a socket; a sealed helper reads it and writes the image.
 * The tool looks at no byte of it. A stream that the helper does not understand is kept as it is, if that is wanted.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cleanup.h"
#include "ingest.h"

#define VERB "ingest"
#define UNIX_PREFIX "unix:"
#define POLL_MS 200
#define STREAM_ENTRY 0u
#define CHANNELS_MAX (DIOH_STREAMS_MAX - 1)

struct options {
	const char *path;
	const char *helper;
	const char *header_path;
	const char *fd_text;
	const char *listen;
	const char *engine_text;
	const char *multifd_text;
	uint64_t base_offset;
	bool or_raw;
	bool buffered;
	bool quiet;
	int fd;
	uint32_t channels; /* multifd's */
	uint32_t engine;
	struct sockaddr_un address;
};

struct ingestion {
	const struct options *options;
	bool made; /* the image's file is new */
	int image_fd;
	int direct_fd; /* -1: none */
	int directory_fd; /* -1: none */
	int stream_fds[DIOH_STREAMS_MAX]; /* the stream, then multifd's channels; -1: none */
	uint8_t *header;
	uint64_t header_bytes;
	bool raw; /* the stream is kept as it is; until it is complete the image is called `partial_path` */
	bool received; /* all of the stream: QEMU takes the machine for saved */
	bool unknown;  /* whether it was all, since the helper has gone */
	char partial_path[DIOH_TOOL_PATH_BYTES];
	char refusal[DIOH_TEXT_BYTES]; /* why */
	struct dioh_tool_progress progress;
};

/* ---- the command line ---------------------------------------------------------------------------------------- */

static const struct {
	const char *name;
	uint32_t engine;
} engines[] = {
	{ "io_uring", DIOH_ENGINE_IO_URING },
	{ "libaio", DIOH_ENGINE_LIBAIO },
	{ "sync", DIOH_ENGINE_SYNC },
};

static int take_engine(struct options *options)
{
	if (!options->engine_text)
		return -1;
	for (size_t i = 0; i < sizeof(engines) / sizeof(engines[0]); i++)
		if (strcmp(engines[i].name, options->engine_text) == 0)
			options->engine = engines[i].engine;
	if (options->engine)
		return -1;
	return dioh_tool_usage_error(VERB, "--engine: %s is not an engine (io_uring, libaio, sync)", options->engine_text);
}

static int take_fd(struct options *options)
{
	uint64_t fd = STDIN_FILENO;

	if (options->fd_text && (!dioh_tool_parse_size(options->fd_text, &fd) || fd > INT32_MAX))
		return dioh_tool_usage_error(VERB, "--fd: %s is not a descriptor's number", options->fd_text);
	options->fd = (int)fd;
	return -1;
}

static int take_multifd(struct options *options)
{
	uint64_t channels = 0;

	if (!options->multifd_text)
		return -1;
	if (!dioh_tool_parse_size(options->multifd_text, &channels) || channels < 1 || channels > CHANNELS_MAX)
		return dioh_tool_usage_error(VERB, "--multifd: %s is not a number from 1 to %u", options->multifd_text,
		                             CHANNELS_MAX);
	if (!options->listen)
		return dioh_tool_usage_error(VERB, "--multifd: this needs --listen");
	options->channels = (uint32_t)channels;
	return -1;
}

static int take_listen(struct options *options)
{
	const char *name;

	if (!options->listen)
		return -1;
	if (options->fd_text)
		return dioh_tool_usage_error(VERB, "--fd and --listen: one of them only");
	if (strncmp(options->listen, UNIX_PREFIX, strlen(UNIX_PREFIX)) != 0)
		return dioh_tool_usage_error(VERB, "--listen: %s does not begin with " UNIX_PREFIX, options->listen);
	name = options->listen + strlen(UNIX_PREFIX);
	if (*name == '\0' || strlen(name) >= sizeof(options->address.sun_path))
		return dioh_tool_usage_error(VERB, "--listen: a path has 1 to %zu bytes",
		                             sizeof(options->address.sun_path) - 1);
	options->address.sun_family = AF_UNIX;
	memcpy(options->address.sun_path, name, strlen(name) + 1);
	return -1;
}

/* A channel's bytes are no stream, and what stands before a base offset must not go by another name meanwhile. */
static int check_or_raw(const struct options *options)
{
	if (options->or_raw && (options->channels || options->base_offset))
		return dioh_tool_usage_error(VERB, "--or-raw: not with --%s", options->channels ? "multifd" : "base-offset");
	return -1;
}

/* -1 to go on, else the exit status. */
static int parse_options(int argc, char **argv, struct options *options)
{
	const struct dioh_tool_option table[] = {
		{ "fd", "N", "read the stream from descriptor N (default: standard input)", NULL, &options->fd_text, NULL },
		{ "listen", "unix:PATH", "make a socket, and read the stream from what connects to it", NULL, &options->listen,
		  NULL },
		{ "multifd", "N", "with --listen: QEMU's capability multifd is on, with N channels", NULL,
		  &options->multifd_text, NULL },
		{ "or-raw", NULL, "keep a stream that is not understood as it is", &options->or_raw, NULL, NULL },
		{ "header", "FILE", "bytes to put in front of QEMU's part of IMAGE", NULL, &options->header_path, NULL },
		{ "base-offset", "BYTES", DIOH_TOOL_BASE_OFFSET_HELP, NULL, NULL, &options->base_offset },
		{ "engine", "NAME", "io_uring, libaio or sync (default: the best to be had)", NULL, &options->engine_text,
		  NULL },
		{ "buffered", NULL, "no direct I/O", &options->buffered, NULL, NULL },
		{ "quiet", NULL, "no progress on a terminal", &options->quiet, NULL, NULL },
		{ "helper", "PATH", DIOH_TOOL_HELPER_HELP, NULL, &options->helper, NULL },
	};
	const struct dioh_tool_usage usage = {
		VERB, "IMAGE",
		"Makes a mapped-ram image of QEMU's migration stream while it comes: one that QEMU 9 or later restores, in\n"
		"parallel and by direct I/O. IMAGE is made, or overwritten; a block device will do, too. In QEMU:\n"
		"    migrate \"exec:diohelper ingest /var/lib/guest.img\"",
		table, sizeof(table) / sizeof(table[0])
	};
	int status = dioh_tool_parse(&usage, argc, argv, &options->path);

	if (status < 0)
		status = dioh_tool_check_base_offset(VERB, options->base_offset);
	if (status < 0)
		status = take_engine(options);
	if (status < 0)
		status = take_fd(options);
	if (status < 0)
		status = take_multifd(options);
	if (status < 0)
		status = check_or_raw(options);
	return status < 0 ? take_listen(options) : status;
}

/* ---- the image, its header ----------------------------------------------------------------------------------- */

static int read_header(struct ingestion *ingestion, struct dioh_error *err)
{
	const char *path = ingestion->options->header_path;
	DIOH_AUTO_FD int fd = -1;
	struct stat st;

	if (!path)
		return 0;
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
	if (fd < 0 || fstat(fd, &st) != 0)
		return dioh_tool_error_set(err, errno, "--header: %s cannot be opened: %s", path, strerror(errno));
	if (!S_ISREG(st.st_mode) || st.st_size == 0 || (uint64_t)st.st_size > DIOH_HEADER_BYTES_MAX)
		return dioh_tool_error_set(err, EINVAL, "--header: %s is not a file of 1 to %u bytes", path,
		                           DIOH_HEADER_BYTES_MAX);
	ingestion->header_bytes = (uint64_t)st.st_size;
	ingestion->header = malloc(ingestion->header_bytes);
	if (!ingestion->header)
		return dioh_tool_error_set(err, ENOMEM, "--header: there is no memory for %s", path);
	for (uint64_t done = 0; done < ingestion->header_bytes;) {
		ssize_t n = read(fd, ingestion->header + done, ingestion->header_bytes - done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return dioh_tool_error_set(err, n < 0 ? errno : EIO, "--header: reading %s failed: %s", path,
			                           n < 0 ? strerror(errno) : "it became shorter");
		done += (uint64_t)n;
	}
	return 0;
}

/* The file that is open, and no link to it, must be what has the name: the name is to be taken from it. */
static int check_name(const struct ingestion *ingestion, const char *path, struct dioh_error *err)
{
	struct stat st;

	if (fstat(ingestion->image_fd, &st) != 0)
		return dioh_tool_error_set(err, errno, "fstat failed: %s", strerror(errno));
	if (!dioh_tool_has_name(ingestion->image_fd, path) || st.st_nlink != 1)
		return dioh_tool_error_set(err, EINVAL, "is a link, has further names, or was replaced: not with --or-raw");
	return 0;
}

/* What would keep a stream from being kept is told before a byte of it is taken. */
static int prepare_for_raw(struct ingestion *ingestion, struct dioh_error *err)
{
	int r;

	if (ingestion->directory_fd < 0 || faccessat(ingestion->directory_fd, ".", W_OK, AT_EACCESS) != 0)
		return dioh_tool_error_set(err, EACCES, "its directory can't be read or written: not with --or-raw");
	r = check_name(ingestion, ingestion->options->path, err);
	if (r == 0)
		r = dioh_tool_partial_check(ingestion->partial_path, err);
	return r < 0 ? r : 0;
}

static int name_partial(struct ingestion *ingestion, struct dioh_error *err)
{
	int n = snprintf(ingestion->partial_path, sizeof(ingestion->partial_path), "%s.partial", ingestion->options->path);

	if (n < 0 || (size_t)n >= sizeof(ingestion->partial_path))
		return dioh_tool_error_set(err, ENAMETOOLONG, "its name is too long for --or-raw");
	return 0;
}

static int check_kind(const struct stat *st, struct dioh_error *err)
{
	if (S_ISREG(st->st_mode) || S_ISBLK(st->st_mode))
		return 0;
	return dioh_tool_error_set(err, EINVAL, "is neither a regular file nor a block device");
}

static int open_image(struct ingestion *ingestion, struct dioh_error *err)
{
	const char *path = ingestion->options->path;
	struct stat st;
	int flags;

	ingestion->image_fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	ingestion->made = ingestion->image_fd >= 0;
	/* O_NONBLOCK: opening a FIFO must not wait. O_EXCL: no device that is mounted, or in use in another way. */
	if (!ingestion->made)
		ingestion->image_fd = open(path, O_RDWR | O_EXCL | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
	if (ingestion->image_fd < 0 || fstat(ingestion->image_fd, &st) != 0)
		return dioh_tool_error_set(err, errno, "cannot be opened: %s%s", strerror(errno),
		                           errno == EBUSY ? " (is it mounted?)" : "");
	if (check_kind(&st, err) != 0 || (!ingestion->made && dioh_tool_check_unused(ingestion->image_fd, err) != 0))
		return -err->code;
	if (S_ISREG(st.st_mode) && dioh_tool_lock(ingestion->image_fd, path, err) != 0) {
		ingestion->made = false; /* it is the other run's now */
		return -err->code;
	}
	flags = fcntl(ingestion->image_fd, F_GETFL);
	(void)fcntl(ingestion->image_fd, F_SETFL, flags & ~O_NONBLOCK);
	if (!ingestion->options->buffered) {
		/* EINVAL: this file system has none. Without it the work can be done, too. */
		ingestion->direct_fd = open(path, O_RDWR | O_CLOEXEC | O_NOCTTY | O_DIRECT);
	}
	/* So that a new image's name is durable, too. For one that cannot be read see sync_name(). */
	if (S_ISREG(st.st_mode))
		ingestion->directory_fd = dioh_tool_open_directory(path);
	else if (ingestion->options->or_raw)
		return dioh_tool_error_set(err, EINVAL, "is a device: nothing would say where a stream on it ends: not with --or-raw");
	return ingestion->options->or_raw ? prepare_for_raw(ingestion, err) : 0;
}

/* ---- the stream ---------------------------------------------------------------------------------------------- */

/* Nobody is to connect, only to be told then that an image cannot be made. */
static int check_place(const struct ingestion *ingestion, struct dioh_error *err)
{
	const char *path = ingestion->options->path;
	DIOH_AUTO_FD int directory_fd = -1;
	struct stat st;

	if (faccessat(AT_FDCWD, path, R_OK | W_OK, AT_EACCESS) == 0)
		return stat(path, &st) == 0 ? check_kind(&st, err) : 0;
	if (errno == ENOENT) {
		directory_fd = dioh_tool_open_directory(path);
		if (directory_fd >= 0 && faccessat(directory_fd, ".", W_OK | X_OK, AT_EACCESS) == 0)
			return 0;
	}
	return dioh_tool_error_set(err, errno, "cannot be opened: %s", strerror(errno));
}

static int take_descriptor(struct ingestion *ingestion, struct dioh_error *err)
{
	const int fd = ingestion->options->fd;
	const int flags = fcntl(fd, F_GETFL);

	if (flags < 0)
		return dioh_tool_error_set(err, errno, "descriptor %d: %s", fd, strerror(errno));
	if ((flags & O_ACCMODE) == O_WRONLY)
		return dioh_tool_error_set(err, EBADF, "descriptor %d%s is closed, or not open for reading", fd,
		                           fd == STDIN_FILENO ? " (standard input)" : "");
	ingestion->stream_fds[0] = fcntl(fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
	if (ingestion->stream_fds[0] < 0)
		return dioh_tool_error_set(err, errno, "descriptor %d: %s", fd, strerror(errno));
	return 0;
}

static int open_stream(struct ingestion *ingestion, struct dioh_error *err)
{
	const struct options *options = ingestion->options;
	int r;

	if (!options->listen)
		return take_descriptor(ingestion, err);
	r = check_place(ingestion, err);
	/* QEMU connects its main stream first, and the channels when that has been accepted. */
	return r != 0 ? r : dioh_ingest_accept(&options->address, options->channels + 1, ingestion->stream_fds, err);
}

/* It may be the only copy of a machine, and would be overwritten while it is read. */
static int check_stream(const struct ingestion *ingestion, struct dioh_error *err)
{
	const char *path = ingestion->options->path;
	struct stat stream, st;

	if (fstat(ingestion->stream_fds[0], &stream) != 0)
		return dioh_tool_error_set(err, errno, "fstat failed: %s", strerror(errno));
	if (stat(path, &st) == 0 && dioh_tool_is_same_file(&stream, &st))
		return dioh_tool_error_set(err, EINVAL, "the stream is IMAGE itself");
	if (ingestion->options->or_raw && stat(ingestion->partial_path, &st) == 0 && dioh_tool_is_same_file(&stream, &st))
		return dioh_tool_error_set(err, EINVAL, "the stream is %.120s, which IMAGE would replace",
		                           ingestion->partial_path);
	return 0;
}

/* ---- the session --------------------------------------------------------------------------------------------- */

static void close_streams(struct ingestion *ingestion)
{
	for (uint32_t i = 0; i < DIOH_STREAMS_MAX; i++) {
		dioh_cleanup_fd(&ingestion->stream_fds[i]);
		ingestion->stream_fds[i] = -1;
	}
}

static int attach(struct ingestion *ingestion, struct dioh_session *session, struct dioh_error *err)
{
	struct dioh_image_options image = DIOH_IMAGE_OPTIONS_INIT;
	struct dioh_msg_attach_image_reply image_reply;
	struct dioh_msg_attach_stream_reply stream_reply;
	struct dioh_msg_seal_reply seal_reply;
	int r;

	image.buffered_fd = ingestion->image_fd;
	image.direct_fd = ingestion->direct_fd;
	image.directory_fd = ingestion->directory_fd;
	image.direction = DIOH_DIRECTION_SAVE;
	image.engine = ingestion->options->engine;
	image.base_offset = ingestion->options->base_offset;
	r = dioh_attach_image(session, &image, &image_reply, err);
	for (uint32_t i = 0; r == 0 && i <= ingestion->options->channels; i++)
		r = dioh_attach_stream(session, i, ingestion->stream_fds[i], &stream_reply, err);
	if (r == 0)
		r = dioh_seal(session, DIOH_TOOL_LAYERS, &seal_reply, err);
	close_streams(ingestion); /* the helper's alone: their end is to show to whoever writes */
	return r;
}

static int create_as(const struct ingestion *ingestion, struct dioh_session *session, uint32_t layout,
                     struct dioh_msg_image_reply *ret_reply, struct dioh_error *err)
{
	const bool raw = layout == DIOH_LAYOUT_RAW;
	const struct dioh_msg_entry entry = {
		.kind = DIOH_ENTRY_STREAM,
		.number = STREAM_ENTRY,
		.name = "device-state",
		.image_offset = raw ? ingestion->header_bytes : 0,
	};
	const struct dioh_create_options options = {
		.layout = layout,
		.entry_count = 1,
		.entries = &entry,
		.header_bytes = ingestion->header_bytes,
		.header = ingestion->header,
		.channels = ingestion->options->channels,
	};

	return dioh_create_image(session, &options, ret_reply, err);
}

/* It is QEMU's, but has in it what is not understood. Nothing has been touched then. */
static bool is_not_understood(const struct dioh_error *err)
{
	return err->operation == DIOH_OP_PARSE && err->object == DIOH_OBJECT_STREAM &&
	       (err->code == EOPNOTSUPP || err->code == EFBIG);
}

static int rename_image(const struct ingestion *ingestion, const char *from, const char *to, struct dioh_error *err)
{
	if (dioh_tool_rename_new(from, to) != 0)
		return dioh_tool_error_set(err, errno, "renaming %.80s to %.80s failed: %s", from, to, strerror(errno));
	if (fsync(ingestion->directory_fd) == 0)
		return 0;
	dioh_tool_error_set(err, errno, "renaming %.80s to %.80s could not be made durable: %s", from, to, strerror(errno));
	(void)dioh_tool_rename_new(to, from);
	return -err->code;
}

/* A stream has no mark that would come last: its name does. What stood there is no image any more, durably. */
static int begin_raw(struct ingestion *ingestion, const struct dioh_error *refusal, struct dioh_error *err)
{
	const char *path = ingestion->options->path;
	int r = check_name(ingestion, path, err);

	memcpy(ingestion->refusal, refusal->text, sizeof(ingestion->refusal));
	if (r == 0 && ingestion->header && dioh_tool_libvirt_is_header(ingestion->header, ingestion->header_bytes) &&
	    !dioh_tool_libvirt_set_format(ingestion->header, ingestion->header_bytes, DIOH_TOOL_LIBVIRT_RAW))
		r = dioh_tool_error_set(err, EINVAL, "--header: it cannot be made the header of a stream: not as libvirt writes it "
		                                     "on this host");
	if (r == 0)
		r = dioh_tool_partial_remove(ingestion->partial_path, err);
	if (r == 0)
		r = rename_image(ingestion, path, ingestion->partial_path, err);
	if (r == 0 && ftruncate(ingestion->image_fd, 0) != 0) { /* it is as it was */
		r = dioh_tool_error_set(err, errno, "emptying it failed: %s", strerror(errno));
		(void)dioh_tool_rename_new(ingestion->partial_path, path);
	}
	if (r != 0)
		return r;
	ingestion->raw = true;
	if (fsync(ingestion->image_fd) != 0)
		return dioh_tool_error_set(err, errno, "emptying it failed: %s", strerror(errno));
	return 0;
}

static int create(struct ingestion *ingestion, struct dioh_session *session, struct dioh_error *err)
{
	struct dioh_msg_image_reply reply;
	struct dioh_error refusal;
	int r = create_as(ingestion, session, DIOH_LAYOUT_MAPPED_RAM, &reply, err);

	if (r != 0 && ingestion->options->or_raw && is_not_understood(err)) {
		refusal = *err;
		r = begin_raw(ingestion, &refusal, err);
		if (r == 0)
			r = create_as(ingestion, session, DIOH_LAYOUT_RAW, &reply, err);
	}
	if (r == 0)
		dioh_tool_progress_start(&ingestion->progress, !ingestion->options->quiet && isatty(STDERR_FILENO),
		                         reply.image_bytes);
	return r;
}

/* Draws what comes until the transfer has ended. */
static int await(struct ingestion *ingestion, struct dioh_session *session, uint32_t transfer, struct dioh_error *err)
{
	DIOH_AUTO_FREE struct dioh_event *event = malloc(sizeof(*event));
	int r = event ? 0 : dioh_tool_error_set(err, ENOMEM, "there is no memory for an event");

	while (r == 0 || r == -EINTR) {
		r = dioh_poll(session, event, POLL_MS, err);
		if (r <= 0)
			continue;
		r = 0;
		if (event->type == DIOH_EVENT_STUCK)
			fprintf(stderr, DIOH_TOOL_NAME ": %s: the disk has not answered for %" PRIu64 " s\n",
			        ingestion->options->path, event->stuck.oldest_ns / UINT64_C(1000000000));
		for (uint32_t i = 0; event->type == DIOH_EVENT_PROGRESS && i < event->progress_count; i++)
			dioh_tool_progress_draw(&ingestion->progress, event->progress[i].done_bytes);
		if (event->type != DIOH_EVENT_COMPLETE || event->transfer != transfer)
			continue;
		if (event->error.code != 0)
			*err = event->error;
		return -event->error.code;
	}
	return r;
}

static int move(struct ingestion *ingestion, struct dioh_session *session, struct dioh_error *err)
{
	const struct dioh_msg_stream_transfer what = { .stream = 0, .entry = STREAM_ENTRY };
	uint32_t transfer;
	int r = dioh_save_stream(session, &what, &transfer, err);

	if (r == 0)
		r = await(ingestion, session, transfer, err);
	ingestion->received = r == 0;
	ingestion->unknown = r != 0 && err->object == DIOH_OBJECT_SESSION;
	if (r == 0)
		r = dioh_finish(session, DIOH_FINISH_DURABLE, 0, NULL, 0, &transfer, err);
	if (r == 0)
		r = await(ingestion, session, transfer, err);
	dioh_tool_progress_end(&ingestion->progress);
	return r;
}

/* The image is complete and durable, and the stream cannot be had once more: however the helper ends, it stays. */
static void end_session(const struct ingestion *ingestion, struct dioh_session *session)
{
	struct dioh_error err;

	if (dioh_tool_session_end(session, 0, &err) != 0)
		fprintf(stderr, DIOH_TOOL_NAME ": %s: note: it is complete and durable, but %s\n", ingestion->options->path,
		        err.text);
}

static void name_descriptor(int fd, struct dioh_error *err)
{
	char name[32];

	snprintf(name, sizeof(name), "descriptor %d", fd);
	dioh_tool_name_stream(fd == STDIN_FILENO ? "standard input" : name, err);
}

static int run_session(struct ingestion *ingestion, struct dioh_error *err)
{
	struct dioh_session *session;
	const uint64_t multifd = ingestion->options->channels ? DIOH_FEATURE_MULTIFD : 0;
	const uint64_t verbatim = ingestion->options->or_raw ? DIOH_FEATURE_VERBATIM | DIOH_FEATURE_LAYOUT_RAW : 0;
	int r = dioh_tool_spawn(ingestion->options->helper,
	                        DIOH_FEATURE_LAYOUT_MAPPED_RAM | DIOH_FEATURE_STREAM | multifd | verbatim, &session, err);

	if (r != 0)
		return r;
	r = attach(ingestion, session, err);
	if (r == 0)
		r = create(ingestion, session, err);
	if (r == 0)
		r = move(ingestion, session, err);
	if (r == 0)
		end_session(ingestion, session);
	else
		(void)dioh_close(session, DIOH_TOOL_END_TIMEOUT_MS, NULL);
	if (r != 0 && !ingestion->options->listen)
		name_descriptor(ingestion->options->fd, err);
	return r;
}

/* ---- the verb ------------------------------------------------------------------------------------------------ */

/* Nobody has this machine any more: no run is to take it for what an interrupted one left. */
static void spare(const struct ingestion *ingestion)
{
	(void)fchmod(ingestion->image_fd, 0400);
	fprintf(stderr, DIOH_TOOL_NAME ": %s: note: all of the stream came, and is kept as %s\n", ingestion->options->path,
	        ingestion->partial_path);
}

/* In a directory that could not be opened to be synced: with all else in its file system. */
static int sync_name(const struct ingestion *ingestion, struct dioh_error *err)
{
	if (!ingestion->made || ingestion->directory_fd >= 0 || syncfs(ingestion->image_fd) == 0)
		return 0;
	return dioh_tool_error_set(err, errno, "is complete, but its name could not be made durable: %s", strerror(errno));
}

/* The whole of it is durable: now it may have its name. */
static int end_raw(const struct ingestion *ingestion, struct dioh_error *err)
{
	int r = rename_image(ingestion, ingestion->partial_path, ingestion->options->path, err);

	if (r == 0)
		fprintf(stderr, DIOH_TOOL_NAME ": %s: kept verbatim as raw: %s\n", ingestion->options->path,
		        ingestion->refusal);
	else
		spare(ingestion);
	return r;
}

/* A file of ours that nothing was written to, or a part of a stream, is of no use to anybody. */
static void remove_useless(const struct ingestion *ingestion)
{
	const char *path = ingestion->raw ? ingestion->partial_path : ingestion->options->path;
	struct stat st;

	if (ingestion->raw && ingestion->received)
		spare(ingestion);
	if (ingestion->raw && (ingestion->received || ingestion->unknown))
		return;
	if (!ingestion->made || fstat(ingestion->image_fd, &st) != 0)
		return;
	if ((ingestion->raw || st.st_size == 0) && dioh_tool_has_name(ingestion->image_fd, path))
		unlink(path);
}

static void close_all(struct ingestion *ingestion)
{
	dioh_cleanup_fd(&ingestion->image_fd);
	dioh_cleanup_fd(&ingestion->direct_fd);
	dioh_cleanup_fd(&ingestion->directory_fd);
	close_streams(ingestion);
	free(ingestion->header);
}

static int run(int argc, char **argv)
{
	struct options options = { 0 };
	struct ingestion ingestion = { .options = &options, .image_fd = -1, .direct_fd = -1, .directory_fd = -1 };
	struct dioh_error err;
	int status = parse_options(argc, argv, &options);
	int r;

	if (status >= 0)
		return status;
	memset(ingestion.stream_fds, -1, sizeof(ingestion.stream_fds));
	r = read_header(&ingestion, &err);
	if (r == 0 && options.or_raw)
		r = name_partial(&ingestion, &err);
	if (r == 0)
		r = open_stream(&ingestion, &err);
	if (r == 0)
		r = check_stream(&ingestion, &err);
	if (r == 0)
		r = open_image(&ingestion, &err);
	if (r == 0)
		r = run_session(&ingestion, &err);
	if (r != 0)
		remove_useless(&ingestion);
	else
		r = ingestion.raw ? end_raw(&ingestion, &err) : sync_name(&ingestion, &err);
	close_all(&ingestion);
	return r == 0 ? DIOH_TOOL_OK : dioh_tool_fail(options.path, options.base_offset, false, &err);
}

const struct dioh_tool_verb dioh_tool_ingest = { VERB, "QEMU's migration stream into a mapped-ram image", run };
