/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * dropin.c - the legacy life. FD is the image, opened and positioned by whoever starts us; its access mode says which way:
 * write-only, standard input goes into the image; read-only, the image goes to standard output. Either standard
 * descriptor may be the image itself. FILENAME is only for messages, nothing is opened. Standard output carries nothing
 * but data; what went wrong is one sentence on standard error, which libvirt shows to its user.
 *
 * It is a session without a manager: one image (layout raw), one stream, one worker, the control-I/O thread. Before the
 * first byte is read every capability is gone; the uid stays, since root-reserved blocks and FUSE mounts look at it.
 */
#define _GNU_SOURCE
#include "dropin.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "align.h"
#include "attach.h"
#include "payload.h"
#include "sandbox.h"
#include "seal.h"
#include "worker.h"

/* An image that is saved to be restored at once may stay in the page cache. */
#define KEEP_CACHE_VARIABLE "DIOHELPER_KEEP_CACHE"

#define PLACE(op) DIOH_PLACE(op, IMAGE, 0, DIOH_OFFSET_NONE)

struct dropin {
	const char *program;
	const char *name;
	int fd;        /* the image */
	int stream_fd; /* standard input or output */
	int output_fd; /* load: standard output once more, if it is a file: to be synced; else -1 */
	bool large_pipe;
	bool save;
	int flags; /* F_GETFL as found: put back at the end */
	uint64_t start;
	struct dioh_image image;
	struct dioh_image_layout layout;
	struct dioh_mailbox mailbox;
	struct dioh_control control;
	struct dioh_worker worker;
	pthread_barrier_t barrier;
	struct dioh_transfer *transfer;
	bool ended; /* the transfer */
	struct dioh_job finish_job;
	bool finished;
	int finish_result;
	struct dioh_error finish_error;
};

/* ---- signals: the first one cancels ---- */

static volatile sig_atomic_t ended_by;
static int wake_fd;

static void on_signal(int signal_number)
{
	const uint64_t one = 1;
	int saved = errno;

	ended_by = signal_number;
	(void)!write(wake_fd, &one, sizeof(one));
	errno = saved;
}

static const struct dropin *plain;

/* Where bytes are copied plainly there is nothing to put right, and a read may never return. */
static void end_at_once(int signal_number)
{
	const char *const words[] = { plain->program, ": failure with ", plain->name, ": ended by signal ",
	                              sigabbrev_np(signal_number) };

	for (unsigned i = 0; i < sizeof(words) / sizeof(words[0]); i++)
		(void)!write(STDERR_FILENO, words[i], strlen(words[i]));
	_exit(EXIT_FAILURE);
}

static const int signals[] = { SIGTERM, SIGINT, SIGHUP };

static void catch_signals(struct dropin *d, bool plainly)
{
	struct sigaction action = { .sa_handler = plainly ? end_at_once : on_signal };

	plain = d;
	wake_fd = d->mailbox.event_fd;
	sigemptyset(&action.sa_mask);
	for (size_t i = 0; i < sizeof(signals) / sizeof(signals[0]); i++) {
		struct sigaction inherited;

		/* Who started us with nohup(1) wants it ignored. */
		if (sigaction(signals[i], NULL, &inherited) == 0 && inherited.sa_handler != SIG_IGN)
			sigaction(signals[i], &action, NULL);
	}
}

/* ---- what we were given ---- */

static int fail(const struct dropin *d, const struct dioh_error *err)
{
	fprintf(stderr, "%s: failure with %s: %s", d->program, d->name, err->text);
	return EXIT_FAILURE;
}

/* As libvirt's: usage on standard output if asked for, a hint otherwise. */
static int usage(const char *program, bool asked)
{
	if (asked)
		printf("Usage: %s FILENAME FD", program);
	else
		fprintf(stderr, "%s: try --help for more details", program);
	return asked ? EXIT_SUCCESS : EXIT_FAILURE;
}

static bool parse_fd(const char *text, int *ret_fd)
{
	char *end;
	long value;

	errno = 0;
	value = strtol(text, &end, 10);
	if (end == text || *end || errno || value < INT_MIN || value > INT_MAX)
		return false;
	*ret_fd = (int)value;
	return true;
}

static int find_direction(struct dropin *d, struct dioh_error *err)
{
	const int flags = d->flags = fcntl(d->fd, F_GETFL);

	if (flags < 0)
		return dioh_error_errno(err, errno, PLACE(ATTACH), "descriptor %d cannot be used", d->fd);
	if (flags & O_PATH)
		return dioh_error_set(err, EBADF, PLACE(ATTACH), "descriptor %d was opened with O_PATH", d->fd);
	if ((flags & O_ACCMODE) != O_RDONLY && (flags & O_ACCMODE) != O_WRONLY)
		return dioh_error_set(err, EINVAL, PLACE(ATTACH), "Unable to process file with flags %d", flags & O_ACCMODE);
	d->save = (flags & O_ACCMODE) == O_WRONLY;
	d->stream_fd = d->save ? STDIN_FILENO : STDOUT_FILENO;
	if (fcntl(d->stream_fd, F_GETFL) < 0)
		return dioh_error_errno(err, errno, DIOH_PLACE(ATTACH, STREAM, 0, DIOH_OFFSET_NONE), "standard %s is not open",
		                        d->save ? "input" : "output");
	return 0;
}

/* The transfer closes standard output. A pipe's reader must see its end then: of that nothing is kept. */
static int keep_output(struct dropin *d, struct dioh_error *err)
{
	struct stat st;

	if (d->save || fstat(d->stream_fd, &st) < 0 || !(S_ISREG(st.st_mode) || S_ISBLK(st.st_mode)))
		return 0;
	d->output_fd = fcntl(d->stream_fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
	if (d->output_fd < 0)
		return dioh_error_errno(err, errno, DIOH_PLACE(ATTACH, STREAM, 0, DIOH_OFFSET_NONE),
		                        "standard output cannot be duplicated");
	return 0;
}

static bool keeps_cache(void)
{
	const char *keep = getenv(KEEP_CACHE_VARIABLE);

	return keep && *keep && strcmp(keep, "0") != 0;
}

/*
 * O_APPEND would send every write to the end, wherever it was meant to go. O_DIRECT, where it can be had, takes less of the
 * processor than a copy into the page cache, from which the bytes would have to be dropped again.
 */
static int set_flags(const struct dropin *d, int *ret_flags, struct dioh_error *err)
{
	const int flags = d->flags & ~O_APPEND;

	*ret_flags = flags | O_DIRECT;
	if (d->save && !(flags & O_DIRECT) && !keeps_cache() && fcntl(d->fd, F_SETFL, flags | O_DIRECT) == 0)
		return 0;
	*ret_flags = flags;
	if (flags != d->flags && fcntl(d->fd, F_SETFL, flags) < 0)
		return dioh_error_errno(err, errno, PLACE(ATTACH), "turning O_APPEND off failed");
	return 0;
}

static int restore_flags(const struct dropin *d, struct dioh_error *err)
{
	if (fcntl(d->fd, F_SETFL, d->flags) < 0)
		return dioh_error_errno(err, errno, PLACE(ATTACH), "putting the descriptor's flags back failed");
	return 0;
}

static int examine_image(struct dropin *d, struct dioh_error *err)
{
	struct dioh_msg_attach_image request = {
		.direction = d->save ? DIOH_DIRECTION_SAVE : DIOH_DIRECTION_LOAD,
		.in_flight = 1, /* of memory, of which there is none: streams have buffers of their own */
	};
	off_t start;
	int flags;
	int r = set_flags(d, &flags, err);

	request.fds = flags & O_DIRECT ? DIOH_IMAGE_FD_DIRECT : DIOH_IMAGE_FD_BUFFERED;
	if (r == 0)
		r = dioh_examine_image(&request, &d->fd, &d->image, err);
	if (r == 0)
		r = dioh_settle_image(&request, &d->image, err);
	if (r < 0)
		return r;
	start = lseek(d->fd, 0, d->save && d->flags & O_APPEND ? SEEK_END : SEEK_CUR);
	if (start < 0)
		return dioh_error_errno(err, errno, PLACE(SEEK), "asking for the file's position failed");
	d->start = (uint64_t)start;
	return 0;
}

/* ---- what is only read or written from end to end: pipes, sockets, character devices ---- */

/* Files of /proc, and some of FUSE: there is more to be read than their size says. */
static bool hides_size(const struct dropin *d, const struct stat *st)
{
	return S_ISREG(st->st_mode) && st->st_size == 0 && (fcntl(d->fd, F_GETFL) & O_ACCMODE) == O_RDONLY;
}

static bool has_offsets(const struct dropin *d)
{
	struct stat st;

	/* A directory or something odder is for the examination to refuse. */
	return fstat(d->fd, &st) < 0 ||
	       !(S_ISFIFO(st.st_mode) || S_ISSOCK(st.st_mode) || S_ISCHR(st.st_mode) || hides_size(d, &st));
}

static int write_all(int fd, const char *bytes, size_t count)
{
	while (count > 0) {
		ssize_t n = write(fd, bytes, count);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -ENOSPC;
		bytes += n;
		count -= (size_t)n;
	}
	return 0;
}

static int copy_plainly(const struct dropin *d, struct dioh_error *err)
{
	static char buffer[256 * 1024] __attribute__((aligned(DIOH_PAGE_BYTES)));
	int from = d->save ? d->stream_fd : d->fd;
	int to = d->save ? d->fd : d->stream_fd;

	for (;;) {
		ssize_t n = read(from, buffer, sizeof(buffer));
		int r;

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return dioh_error_errno(err, errno, PLACE(READ), "Unable to read %s", d->save ? "standard input" : d->name);
		if (n == 0)
			return 0;
		r = write_all(to, buffer, (size_t)n);
		if (r < 0)
			return dioh_error_errno(err, r, PLACE(WRITE), "Unable to write %s", d->save ? d->name : "standard output");
	}
}

/* ---- the stream path ---- */

static int make_layout(struct dropin *d, struct dioh_error *err)
{
	struct dioh_msg_entry entry = { .kind = DIOH_ENTRY_STREAM, .name = "stream", .image_offset = d->start };
	uint64_t file_bytes;
	int r = dioh_image_size(&d->image, &file_bytes, err);

	d->layout.ops = &dioh_layout_raw;
	d->layout.image = &d->image;
	if (r == 0 && !d->save) {
		/* Behind the end there is nothing to read, which is no error. */
		entry.image_offset = dioh_min(d->start, file_bytes);
		entry.bytes = file_bytes - entry.image_offset;
	}
	if (r == 0)
		r = dioh_layout_allocate(&d->layout, 0, 1, err);
	if (r == 0)
		r = dioh_layout_put(&d->layout, &entry, 1, err);
	if (r == 0)
		r = d->save ? d->layout.ops->create(&d->layout, err) : d->layout.ops->open(&d->layout, 0, err);
	return r;
}

static void completed(struct dioh_job *job)
{
	struct dioh_transfer *transfer = dioh_container_of(job, struct dioh_transfer, job);

	((struct dropin *)transfer->owner)->ended = true;
}

static void broken(struct dioh_job *job)
{
	const struct dioh_worker *worker = dioh_container_of(job, struct dioh_worker, broken_job);

	/* I/O may be in flight that nobody can wait for any more. */
	fprintf(stderr, "diohelper: %s\n", worker->broken_error.text);
	_exit(EXIT_FAILURE);
}

/*
 * A write to the page cache is a copy. io_uring has a thread of the kernel make it, since it might wait: that is one
 * more thread, with a cold cache, beside the writer of the pipe and us.
 */
static uint32_t wanted_engine(const struct dropin *d)
{
	return d->save && !d->image.direct ? DIOH_ENGINE_SYNC : d->image.engine;
}

static int open_threads(struct dropin *d, struct dioh_error *err)
{
	struct dioh_worker_config config = {
		.block_bytes = d->image.block_bytes,
		.in_flight = d->image.in_flight,
		.direct = d->image.direct,
		.fill_buffers = d->image.reads_present_only,
		.cache = keeps_cache() ? DIOH_CACHE_KEEP : DIOH_CACHE_NONE,
		.sync_error = &d->image.sync_error,
		.waits_since_ns = &d->image.waits_since_ns,
		.control = &d->control,
		.session = &d->mailbox,
		.broken = broken,
	};
	int r = dioh_control_open(&d->control, err);

	for (unsigned i = 0; i < DIOH_SLOTS_MAX; i++)
		config.slots.fds[i] = -1;
	config.slots.fds[DIOH_SLOT_PAGE] = d->image.page_fd;
	config.slots.fds[DIOH_SLOT_STREAM] = d->stream_fd;
	config.slots.fd_count = DIOH_SLOTS_MAX;
	if (r == 0)
		r = dioh_worker_open(&d->worker, &config, err);
	return r < 0 ? r : dioh_workers_open_engines(&d->worker, 1, dioh_engine_find(wanted_engine(d)), d->image.any_engine, err);
}

static int start_threads(struct dropin *d, struct dioh_error *err)
{
	sigset_t ours, before;
	int r;

	sigemptyset(&ours);
	for (size_t i = 0; i < sizeof(signals) / sizeof(signals[0]); i++)
		sigaddset(&ours, signals[i]);
	pthread_barrier_init(&d->barrier, NULL, 3);
	/* The main thread's alone: a sync may be one that a signal ends. */
	(void)pthread_sigmask(SIG_BLOCK, &ours, &before);
	r = dioh_control_start(&d->control, &d->barrier, err);
	if (r == 0)
		r = dioh_worker_start(&d->worker, &d->barrier, err);
	(void)pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (r < 0)
		return r;
	pthread_barrier_wait(&d->barrier);
	if (d->worker.start_result < 0)
		*err = d->worker.start_error;
	return d->worker.start_result;
}

static void wait_for_mail(struct dropin *d)
{
	struct pollfd wake = { .fd = d->mailbox.event_fd, .events = POLLIN };
	uint64_t count;

	if (poll(&wake, 1, -1) > 0)
		(void)!read(d->mailbox.event_fd, &count, sizeof(count));
	dioh_mailbox_handle(&d->mailbox);
}

static void wait_for_transfer(struct dropin *d)
{
	while (!d->ended) {
		wait_for_mail(d);
		if (ended_by && !atomic_exchange(&d->transfer->cancel, true))
			dioh_mailbox_wake(&d->worker.mailbox);
	}
}

static int move_stream(struct dropin *d, struct dioh_error *err)
{
	const struct dioh_stream_params params = {
		.save = d->save,
		.layout = &d->layout,
		.entry = &d->layout.streams[0],
		.fd = d->stream_fd,
		.slot = DIOH_SLOT_STREAM,
		.large_pipe = d->large_pipe,
		.flags = DIOH_TRANSFER_NO_CHECKSUM,
	};

	d->transfer = dioh_payload_stream(&params, err);
	if (!d->transfer)
		return -ENOMEM;
	d->transfer->answers = &d->mailbox;
	d->transfer->completed = completed;
	d->transfer->owner = d;
	dioh_worker_begin(&d->worker, d->transfer);
	wait_for_transfer(d);
	if (!d->transfer->failed)
		return 0;
	if (ended_by)
		return dioh_error_set(err, EINTR, PLACE(CANCEL), "ended by signal %d (%s) after %" PRIu64 " bytes",
		                      (int)ended_by, sigabbrev_np((int)ended_by), d->transfer->figures.total_bytes);
	/*
	 * What is on a device may be longer than the stream that was saved there: only its reader knows the end, and leaves.
	 */
	if (!d->save && d->image.kind == DIOH_IMAGE_BLOCK_DEVICE && d->transfer->error.code == EPIPE)
		return 0;
	*err = d->transfer->error;
	return -err->code;
}

/* ---- the end of a save ---- */

/* What a save that failed leaves is no longer than what came: the steps in which a file grows are ours alone. */
static void cut_failed(struct dropin *d)
{
	struct dioh_error ignored;
	uint64_t came = d->transfer ? d->transfer->figures.total_bytes : 0;
	uint64_t end = dioh_max(d->start + came, d->layout.file_bytes_kept);

	if (d->save && d->image.kind == DIOH_IMAGE_REGULAR && d->layout.extents_end > end)
		(void)dioh_image_resize(&d->image, end, &ignored);
}

/* Where another process that has the same open file would go on. */
static void leave_position(const struct dropin *d)
{
	(void)lseek(d->fd, (off_t)(d->start + d->transfer->figures.total_bytes), SEEK_SET);
}

/* Whatever has been written to. */
static int sync_destination(const struct dropin *d, struct dioh_error *err)
{
	const int fd = d->save ? d->fd : d->output_fd;
	int r;

	if (fd < 0)
		return 0;
	r = dioh_sync_if_known(fd);
	return r < 0 ? dioh_error_errno(err, r, PLACE(SYNC), "Unable to sync %s", d->save ? d->name : "standard output") : 0;
}

static int finish(struct dropin *d, struct dioh_error *err)
{
	atomic_bool never = false;
	struct dioh_commit commit = { .mode = DIOH_FINISH_WRITTEN, .cancelled = &never };
	int r = d->save && d->transfer ? d->layout.ops->commit(&d->layout, &commit, err) : 0;

	if (r == 0 && d->transfer)
		leave_position(d);
	if (r == 0 && d->transfer)
		r = restore_flags(d, err);
	if (r == 0)
		r = sync_destination(d, err);
	if (r == 0 && close(d->fd) < 0)
		r = dioh_error_errno(err, errno, PLACE(SYNC), "Unable to close %s", d->name);
	return r;
}

static void finished(struct dioh_job *job)
{
	dioh_container_of(job, struct dropin, finish_job)->finished = true;
}

static void finish_there(struct dioh_job *job) /* control-I/O thread */
{
	struct dropin *d = dioh_container_of(job, struct dropin, finish_job);

	d->finish_result = finish(d, &d->finish_error);
	job->handle = finished;
	dioh_mailbox_post(&d->mailbox, job);
}

/*
 * By the thread that never had a ring: a ring that goes, a probe's or the worker's, has the kernel wake whoever made it, and
 * what waits for a server that obeys interrupts fails then.
 */
static int finish_apart(struct dropin *d, struct dioh_error *err)
{
	d->finish_job.handle = finish_there;
	dioh_mailbox_post(&d->control.mailbox, &d->finish_job);
	while (!d->finished) /* all has come: a signal is too late */
		wait_for_mail(d);
	*err = d->finish_error;
	return d->finish_result;
}

/* ---- the life ---- */

static const struct dioh_identity same = { .keep_uid = true };

static int prepare(struct dropin *d, bool offsets, struct dioh_error *err)
{
	int r = find_direction(d, err);

	if (r == 0)
		r = dioh_seal_start(d->fd, &same, 0, err);
	if (r == 0)
		r = keep_output(d, err);
	if (r == 0)
		r = dioh_mailbox_open(&d->mailbox, err);
	if (r < 0)
		return r;
	catch_signals(d, !offsets);
	d->large_pipe = dioh_enlarge_pipe(d->stream_fd);
	if (!offsets)
		return 0;
	r = examine_image(d, err);
	if (r == 0)
		r = make_layout(d, err);
	if (r == 0)
		r = open_threads(d, err);
	return r;
}

static int run(struct dropin *d, struct dioh_error *err)
{
	const bool offsets = has_offsets(d);
	uint32_t layers;
	int r = prepare(d, offsets, err);

	if (r == 0)
		r = dioh_seal_privileges(&same, &layers, err);
	if (r == 0 && offsets)
		r = start_threads(d, err);
	if (r == 0) {
		/* Where there is no such filter the other layers must do: libvirt's own helper has none of them. */
		(void)dioh_sandbox_seccomp(DIOH_SANDBOX_DROP_IN |
		                           dioh_sandbox_engine(offsets ? d->worker.engine->ops->id : DIOH_ENGINE_SYNC), -1);
		r = offsets ? move_stream(d, err) : copy_plainly(d, err);
	}
	/* Lets go of the image: whoever waits for our end may unmount it then. */
	if (d->worker.running)
		dioh_worker_stop(&d->worker);
	if (r == 0)
		return offsets ? finish_apart(d, err) : finish(d, err);
	if (offsets) {
		cut_failed(d);
		(void)restore_flags(d, NULL);
	}
	return r;
}

int dioh_dropin_run(int argc, char **argv)
{
	static struct dropin d; /* zeroed, and not on the stack of a thread that others outlive */
	struct dioh_error err;

	d.program = argv[0];
	if (argc > 1 && strcmp(argv[1], "--help") == 0)
		return usage(d.program, true);
	if (argc != 3)
		return usage(d.program, false);
	d.name = argv[1];
	d.output_fd = -1;
	dioh_image_init(&d.image);
	if (!parse_fd(argv[2], &d.fd)) {
		fprintf(stderr, "%s: malformed fd %s", d.program, argv[2]);
		return EXIT_FAILURE;
	}
	return run(&d, &err) < 0 ? fail(&d, &err) : EXIT_SUCCESS;
}
