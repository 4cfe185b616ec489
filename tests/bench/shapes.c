/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * shapes.c - how the shape of a save changes what it costs. Each shape is compared with a plain one of the same size,
 * in pairs that alternate in order too: going second costs a few per cent by itself. A ratio is the median over the
 * pairs, with the smallest and largest. shapes.sh runs them all.
 *
 *      shapes many [PAIRS [REGION_MIB]]   four regions and two streams at once | one region: rate, interleaving
 *      shapes sparse [PAIRS]              1 GiB spread over 512 GiB | 1 GiB: time and memory used, save and load
 *      shapes deaf [PAIRS]                a manager that reads nothing until the transfers are over | one that reads
 *      shapes blocks [MIB]                mixed memory: what the image takes, what the save allocates, what comes back
 *      shapes cache [MIB]                 what a save and a load leave in the page cache
 *
 * Memory is incompressible, FINISH is durable and inside the clock. Images stand in $TEST_DIR, $TMPDIR or /var/tmp.
 * Prints one line per result; exit status 1: a limit was missed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "align.h"
#include "cleanup.h"
#include "fixture.h"
#include "measure.h"
#include "pages.h"

#define PAIRS_DEFAULT 9u
#define PAIRS_MAX 99u
#define REGIONS_MAX 4u
#define STREAMS_MAX 2u
#define STREAM_BYTES (16 * MIB)
#define PIPE_BYTES MIB
#define GENTLE_PAUSE_US 30000
#define SAMPLE_US 2000

#define die(what) fixture_die(__FILE__, __LINE__, what, strerror(errno))

static bool missed;

/* ---- figures --------------------------------------------------------------------------------- */

struct figures {
	double values[PAIRS_MAX];
	unsigned count;
};

static void add(struct figures *figures, double value)
{
	if (figures->count < PAIRS_MAX)
		figures->values[figures->count++] = value;
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

/* Which of a pair's two comes j-th in pair i. */
static unsigned turn(unsigned i, unsigned j)
{
	return (i + j) % 2;
}

static double median(struct figures *figures)
{
	const double *v = figures->values;
	unsigned half = figures->count / 2;

	qsort(figures->values, figures->count, sizeof(*v), by_value);
	return figures->count % 2 ? v[half] : (v[half - 1] + v[half]) / 2;
}

static const char *verdict(bool kept)
{
	missed |= !kept;
	return kept ? "ok" : "MISSED";
}

static void judge_ratio(const char *what, struct figures *ratios, double floor, double limit)
{
	double middle = median(ratios);

	printf("%s: %.3f (%.3f to %.3f), ", what, middle, ratios->values[0], ratios->values[ratios->count - 1]);
	if (floor > 0)
		printf("floor %.2f: %s\n", floor, verdict(middle >= floor));
	else
		printf("limit %.2f: %s\n", limit, verdict(middle <= limit));
	fflush(stdout);
}

static void judge_kib(const char *what, int64_t kib, int64_t limit_kib)
{
	printf("%s: %" PRId64 " KiB, limit %" PRId64 " KiB: %s\n", what, kib, limit_kib, verdict(kib <= limit_kib));
	fflush(stdout);
}

/* ---- streams -------------------------------------------------------------------------------------- */

static uint8_t stream_bytes[STREAM_BYTES];

struct feeder {
	pthread_t thread;
	int fd;
	useconds_t pause_us; /* after each MiB */
};

static void *feed(void *argument)
{
	struct feeder *feeder = argument;

	for (uint64_t done = 0; done < STREAM_BYTES;) {
		ssize_t n = write(feeder->fd, stream_bytes + done, dioh_min(STREAM_BYTES - done, PIPE_BYTES));

		if (n <= 0)
			die("feeding a stream");
		done += (uint64_t)n;
		usleep(feeder->pause_us);
	}
	close(feeder->fd);
	return NULL;
}

static void fill_stream_bytes(void)
{
	DIOH_AUTO_FD int fd = must_memfd("stream", STREAM_BYTES, 0);

	must_fill(fd, 0, STREAM_BYTES, 77);
	if (pread(fd, stream_bytes, STREAM_BYTES, 0) != (ssize_t)STREAM_BYTES)
		die("pread");
}

/* The feeder fills its pipe and waits there until the transfer begins. */
static void start_feeder(struct dioh_session *session, struct feeder *feeder, uint32_t stream,
                         useconds_t pause_us)
{
	struct dioh_msg_attach_stream_reply info;
	struct dioh_error err;
	int fds[2];

	if (pipe2(fds, O_CLOEXEC) < 0 || fcntl(fds[1], F_SETPIPE_SZ, (int)PIPE_BYTES) < 0)
		die("pipe");
	must(dioh_attach_stream(session, stream, fds[0], &info, &err), &err);
	close(fds[0]);
	*feeder = (struct feeder){ .fd = fds[1], .pause_us = pause_us };
	if (pthread_create(&feeder->thread, NULL, feed, feeder))
		die("pthread_create");
}

/* ---- a save and a load ------------------------------------------------------------------------------ */

struct content {
	struct fixture_region regions[REGIONS_MAX];
	unsigned region_count;
	unsigned stream_count;
	bool gently; /* little at a time, so that it lasts for several PROGRESS */
};

struct seen {
	double seconds;
	uint64_t most_kib;
	unsigned progress_count;
	unsigned most_partial; /* transfers partly done in one PROGRESS */
	uint64_t apart_bytes;  /* most between the regions that were */
};

/* The old image's blocks are given back before the clock runs. */
static void remove_image(const char *path)
{
	DIOH_AUTO_FD int dir = open(fixture_dir(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (unlink(path) < 0 && errno != ENOENT)
		die(path);
	if (dir < 0 || fsync(dir) < 0)
		die("fsync");
}

static void look_at_progress(const struct dioh_event *event, struct seen *seen)
{
	uint64_t least = UINT64_MAX, most = 0;
	unsigned partial = 0;

	for (uint32_t i = 0; i < event->progress_count; i++) {
		const struct dioh_msg_progress_entry *entry = &event->progress[i];

		partial += entry->done_bytes > 0 && (!entry->total_bytes || entry->done_bytes < entry->total_bytes);
		if (!entry->total_bytes || entry->done_bytes == entry->total_bytes)
			continue;
		least = dioh_min(least, entry->done_bytes);
		most = dioh_max(most, entry->done_bytes);
	}
	seen->progress_count++;
	seen->most_partial = dioh_max(seen->most_partial, partial);
	seen->apart_bytes = dioh_max(seen->apart_bytes, most > least ? most - least : 0);
}

static void wait_for_all(struct dioh_session *session, unsigned transfers, struct seen *seen)
{
	struct dioh_event event;
	struct dioh_error err;

	while (transfers > 0) {
		must(dioh_poll(session, &event, -1, &err), &err);
		if (event.type == DIOH_EVENT_PROGRESS)
			look_at_progress(&event, seen);
		if (event.type != DIOH_EVENT_COMPLETE)
			continue;
		if (event.error.code)
			fixture_die(__FILE__, __LINE__, "transfer", event.error.text);
		transfers--;
	}
}

static void must_finish(struct dioh_session *session)
{
	struct dioh_error err;
	uint32_t transfer;

	must(dioh_finish(session, DIOH_FINISH_DURABLE, 0, NULL, 0, &transfer, &err), &err);
	must(dioh_wait(session, transfer, NULL, &err), &err);
}

static void must_create(struct dioh_session *session, const struct content *what)
{
	struct dioh_msg_entry entries[REGIONS_MAX + STREAMS_MAX];
	struct dioh_create_options create = {
		.layout = DIOH_LAYOUT_CONTAINER,
		.entry_count = what->region_count + what->stream_count,
		.entries = entries,
	};
	struct dioh_msg_image_reply info;
	struct dioh_error err;

	for (unsigned i = 0; i < what->region_count; i++)
		entries[i] = region_entry(what->regions[i].number, what->regions[i].name, what->regions[i].bytes);
	for (unsigned i = 0; i < what->stream_count; i++)
		entries[what->region_count + i] = stream_entry(i, i ? "vga" : "device-state");
	must(dioh_create_image(session, &create, &info, &err), &err);
}

static void begin_saves(struct dioh_session *session, const struct content *what)
{
	struct dioh_error err;

	for (unsigned i = 0; i < what->region_count; i++) {
		struct dioh_msg_memory_transfer memory = {
			.memory = i, .region = what->regions[i].number, .length = what->regions[i].bytes
		};

		must(dioh_save_memory(session, &memory, NULL, &err), &err);
	}
	for (unsigned i = 0; i < what->stream_count; i++) {
		struct dioh_msg_stream_transfer stream = { .stream = i, .entry = i };

		must(dioh_save_stream(session, &stream, NULL, &err), &err);
	}
}

static struct seen save(const char *path, const struct content *what)
{
	struct fixture_image image = { .path = path, .options = DIOH_IMAGE_OPTIONS_INIT };
	struct feeder feeders[STREAMS_MAX];
	struct dioh_session *session;
	struct measure_sampler sampler;
	struct seen seen = { 0 };

	image.options.in_flight = what->gently ? 1 : 0;
	image.options.block_bytes = what->gently ? DIOH_BLOCK_BYTES_MIN : 0;
	remove_image(path);
	session = must_session(&image, DIOH_DIRECTION_SAVE);
	for (unsigned i = 0; i < what->region_count; i++)
		must_attach_memory(session, i, what->regions[i].memfd, -1);
	for (unsigned i = 0; i < what->stream_count; i++)
		start_feeder(session, &feeders[i], i, what->gently ? GENTLE_PAUSE_US : 0);
	must_seal(session);
	measure_sampler_start(&sampler, dioh_session_pid(session));
	seen.seconds = measure_now_s();
	must_create(session, what);
	begin_saves(session, what);
	wait_for_all(session, what->region_count + what->stream_count, &seen);
	must_finish(session);
	seen.seconds = measure_now_s() - seen.seconds;
	seen.most_kib = measure_sampler_stop(&sampler);
	for (unsigned i = 0; i < what->stream_count; i++)
		pthread_join(feeders[i].thread, NULL);
	must_close(session, 0);
	return seen;
}

/* One region into memory that is all hole. */
static struct seen load(const char *path, const struct fixture_region *region, int memfd)
{
	struct fixture_image image = { .path = path, .options = DIOH_IMAGE_OPTIONS_INIT };
	struct dioh_open_options options = { .layout = DIOH_LAYOUT_DETECT };
	struct dioh_msg_memory_transfer memory = {
		.region = region->number, .length = region->bytes, .flags = DIOH_TRANSFER_FRESH
	};
	struct dioh_session *session = must_session(&image, DIOH_DIRECTION_LOAD);
	struct dioh_msg_open_image_reply info;
	struct measure_sampler sampler;
	struct seen seen = { 0 };
	struct dioh_error err;

	must_attach_memory(session, 0, memfd, -1);
	must_seal(session);
	measure_sampler_start(&sampler, dioh_session_pid(session));
	seen.seconds = measure_now_s();
	must(dioh_open_image(session, &options, &info, &err), &err);
	must(dioh_load_memory(session, &memory, NULL, &err), &err);
	wait_for_all(session, 1, &seen);
	seen.seconds = measure_now_s() - seen.seconds;
	seen.most_kib = measure_sampler_stop(&sampler);
	must_close(session, 0);
	return seen;
}

static struct content one_region(uint64_t bytes)
{
	struct content what = { .region_count = 1 };

	what.regions[0] = (struct fixture_region){ 0, "pc.ram", must_memfd("pc.ram", bytes, 0), bytes };
	return what;
}

static struct content one_filled_region(uint64_t bytes)
{
	struct content what = one_region(bytes);

	must_fill(what.regions[0].memfd, 0, bytes, 1);
	return what;
}

/* ---- many transfers at once -------------------------------------------------------------------------- */

#define GENTLE_REGION_MIB_MIN 256u /* smaller ones are over in the time between two PROGRESS */

static struct content four_regions(uint64_t bytes)
{
	static const char *const names[REGIONS_MAX] = { "pc.ram", "hotplug0", "hotplug1", "vga.vram" };
	struct content what = { .region_count = REGIONS_MAX, .stream_count = STREAMS_MAX };

	for (unsigned i = 0; i < REGIONS_MAX; i++) {
		what.regions[i] = (struct fixture_region){ i, names[i], must_memfd(names[i], bytes, 0), bytes };
		must_fill(what.regions[i].memfd, 0, bytes, 10 + i);
	}
	return what;
}

/* At full speed much is over before the first PROGRESS; and the less is in flight, the more somebody could go short. */
static void judge_interleaving(struct content *parts)
{
	struct seen seen;

	parts->gently = true;
	seen = save(fixture_path("image"), parts);
	printf("    gently: partly done in one of %u PROGRESS: %u of 6 transfers: %s\n", seen.progress_count,
	       seen.most_partial, verdict(seen.most_partial == REGIONS_MAX + STREAMS_MAX));
	judge_kib("    gently: regions apart from each other", (int64_t)seen.apart_bytes / 1024, 16 * 1024);
}

static void run_many(unsigned pairs, uint64_t region_mib)
{
	const uint64_t bytes = REGIONS_MAX * region_mib * MIB + STREAMS_MAX * STREAM_BYTES;
	struct content parts = four_regions(region_mib * MIB);
	struct content whole = one_filled_region(bytes);
	struct figures ratios = { 0 }, rates = { 0 };
	char what[256];

	fill_stream_bytes();
	for (unsigned i = 0; i < pairs; i++) {
		struct seen seen[2]; /* of the whole, of the parts */

		for (unsigned j = 0; j < 2; j++)
			seen[turn(i, j)] = save(fixture_path("image"), turn(i, j) ? &parts : &whole);
		add(&ratios, seen[0].seconds / seen[1].seconds);
		add(&rates, (double)bytes / MIB / seen[1].seconds);
	}
	snprintf(what, sizeof(what), "many: 4 regions of %" PRIu64 " MiB and 2 streams of 16 MiB, %.0f MiB/s, to one region",
	         region_mib, median(&rates));
	judge_ratio(what, &ratios, 0.95, 0);
	if (region_mib >= GENTLE_REGION_MIB_MIN)
		judge_interleaving(&parts);
}

/* ---- little data in much memory ------------------------------------------------------------------------ */

#define SPARSE_BYTES (512 * GIB)
#define SPARSE_DATA_BYTES GIB

static struct content sparse_region(void)
{
	const uint64_t runs = SPARSE_DATA_BYTES / MIB;
	struct content what = one_region(SPARSE_BYTES);

	for (uint64_t i = 0; i < runs; i++)
		must_fill(what.regions[0].memfd, i * (SPARSE_BYTES / runs), MIB, 1 + i);
	return what;
}

struct sparse_figures {
	struct figures ratios, sparse_seconds, dense_seconds, sparse_kib, dense_kib;
};

static void add_pair(struct sparse_figures *f, const struct seen *sparse, const struct seen *dense)
{
	add(&f->ratios, sparse->seconds / dense->seconds);
	add(&f->sparse_seconds, sparse->seconds);
	add(&f->dense_seconds, dense->seconds);
	add(&f->sparse_kib, (double)sparse->most_kib);
	add(&f->dense_kib, (double)dense->most_kib);
}

static void judge_sparse(const char *direction, struct sparse_figures *f)
{
	double sparse = median(&f->sparse_kib), dense = median(&f->dense_kib);
	char what[256];

	snprintf(what, sizeof(what), "sparse %s: 1 GiB in 512 GiB, %.3f s to %.3f s", direction,
	         median(&f->sparse_seconds), median(&f->dense_seconds));
	judge_ratio(what, &f->ratios, 0, 1.3);
	snprintf(what, sizeof(what), "    RssAnon + VmPTE %.0f KiB to %.0f KiB, more", sparse, dense);
	judge_kib(what, (int64_t)(sparse - dense), 8 * 1024);
}

static struct seen load_fresh(const char *path, const struct fixture_region *region)
{
	DIOH_AUTO_FD int fd = must_memfd("fresh", region->bytes, 0);

	return load(path, region, fd);
}

static void run_sparse(unsigned pairs)
{
	struct content sparse = sparse_region();
	struct content dense = one_filled_region(SPARSE_DATA_BYTES);
	struct sparse_figures saves = { 0 }, loads = { 0 };

	for (unsigned i = 0; i < pairs; i++) {
		struct seen saved[2], loaded[2]; /* of the sparse one, of the dense one */

		for (unsigned j = 0; j < 2; j++) {
			const struct content *what = turn(i, j) ? &dense : &sparse;

			saved[turn(i, j)] = save(fixture_path("image"), what);
			loaded[turn(i, j)] = load_fresh(fixture_path("image"), &what->regions[0]);
		}
		add_pair(&saves, &saved[0], &saved[1]);
		add_pair(&loads, &loaded[0], &loaded[1]);
	}
	judge_sparse("save", &saves);
	judge_sparse("load", &loads);
}

/* ---- a manager that does not read ------------------------------------------------------------------------ */

#define DEAF_TRANSFERS 16u
#define DEAF_TRANSFER_BYTES (128 * MIB)
#define DEAF_SOCKET_BYTES 4608 /* the least Linux gives: a few COMPLETEs fill it */
#define DEAF_REST_US 300000
#define DEAF_SECONDS_MAX 60

static pid_t spawn_narrow(int *ret_fd)
{
	const int bytes = DEAF_SOCKET_BYTES;
	char argument[32];
	int pair[2];
	pid_t pid;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0 ||
	    setsockopt(pair[1], SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes)) < 0)
		die("socketpair");
	snprintf(argument, sizeof(argument), "--fd=%d", pair[1]);
	fflush(NULL);
	pid = fork();
	if (pid < 0)
		die("fork");
	if (pid == 0) {
		if (fcntl(pair[1], F_SETFD, 0) == 0)
			execl(fixture_helper(), fixture_helper(), "serve", argument, (char *)NULL);
		_exit(99);
	}
	close(pair[1]);
	*ret_fd = pair[0];
	return pid;
}

/* A session whose socket takes little, with the image attached. */
static struct dioh_session *narrow_session(int image_fd, int direct_fd, pid_t *ret_pid)
{
	struct dioh_image_options options = DIOH_IMAGE_OPTIONS_INIT;
	struct dioh_session *session;
	struct dioh_error err;
	int fd;

	*ret_pid = spawn_narrow(&fd);
	must(dioh_connect(fd, 0, &session, &err), &err);
	options.buffered_fd = image_fd;
	options.direct_fd = direct_fd;
	options.direction = DIOH_DIRECTION_SAVE;
	must(dioh_attach_image(session, &options, NULL, &err), &err);
	return session;
}

static void begin_pieces(struct dioh_session *session, uint32_t *ret_transfers)
{
	for (unsigned i = 0; i < DEAF_TRANSFERS; i++) {
		struct dioh_msg_memory_transfer piece = {
			.memory_offset = i * DEAF_TRANSFER_BYTES,
			.region_offset = i * DEAF_TRANSFER_BYTES,
			.length = DEAF_TRANSFER_BYTES,
		};
		struct dioh_error err;

		must(dioh_save_memory(session, &piece, &ret_transfers[i], &err), &err);
	}
}

/* All data has its blocks in the image: the transfers are over but for what is in flight. */
static void sleep_until_written(int image_fd, uint64_t bytes)
{
	const double until = measure_now_s() + DEAF_SECONDS_MAX;

	while (must_blocks_bytes(image_fd) < bytes) {
		if (measure_now_s() > until)
			fixture_die(__FILE__, __LINE__, "deaf", "the save does not go on while the manager does not read");
		usleep(SAMPLE_US);
	}
}

/*
 * Every COMPLETE, each once, and the slowest transfer's time as the helper measured it: the manager may not look at
 * its socket, and all have begun at once.
 */
static double take_completes(struct dioh_session *session, const uint32_t *transfers)
{
	uint64_t slowest_ns = 0;

	for (unsigned i = 0; i < DEAF_TRANSFERS; i++) {
		struct dioh_msg_complete complete;
		struct dioh_error err;

		must(dioh_wait(session, transfers[i], &complete, &err), &err);
		if (complete.data_bytes != DEAF_TRANSFER_BYTES)
			fixture_die(__FILE__, __LINE__, "deaf", "a COMPLETE has wrong figures");
		slowest_ns = dioh_max(slowest_ns, complete.elapsed_ns);
	}
	return (double)slowest_ns / 1e9;
}

/* The transfers' time and FINISH's. Both kinds of manager rest between the two: the deaf one does not know the end. */
static double save_pieces(const char *path, const struct content *what, bool deaf)
{
	DIOH_AUTO_FD int image_fd = -1;
	DIOH_AUTO_FD int direct_fd = -1;
	uint32_t transfers[DEAF_TRANSFERS];
	struct dioh_session *session;
	double seconds, begun;
	int status;
	pid_t pid;

	remove_image(path);
	image_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	direct_fd = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
	session = narrow_session(image_fd, direct_fd, &pid);
	must_attach_memory(session, 0, what->regions[0].memfd, -1);
	must_seal(session);
	must_create(session, what);
	begin_pieces(session, transfers);
	if (deaf)
		sleep_until_written(image_fd, what->regions[0].bytes);
	else
		seconds = take_completes(session, transfers);
	usleep(DEAF_REST_US);
	if (deaf)
		seconds = take_completes(session, transfers);
	begun = measure_now_s();
	must_finish(session);
	seconds += measure_now_s() - begun;
	dioh_close(session, -1, NULL);
	if (waitpid(pid, &status, 0) != pid || status != 0)
		fixture_die(__FILE__, __LINE__, "deaf", "the helper did not end with exit status 0");
	return seconds;
}

static void run_deaf(unsigned pairs)
{
	struct content what = one_filled_region(DEAF_TRANSFERS * DEAF_TRANSFER_BYTES);
	struct figures ratios = { 0 }, rates = { 0 };
	char text[256];

	for (unsigned i = 0; i < pairs; i++) {
		double seconds[2]; /* reading, deaf */

		for (unsigned j = 0; j < 2; j++)
			seconds[turn(i, j)] = save_pieces(fixture_path("image"), &what, turn(i, j));
		add(&ratios, seconds[0] / seconds[1]);
		add(&rates, (double)what.regions[0].bytes / MIB / seconds[1]);
	}
	snprintf(text, sizeof(text), "deaf: 16 transfers of 128 MiB, every COMPLETE there, %.0f MiB/s, to one that reads",
	         median(&rates));
	judge_ratio(text, &ratios, 0.95, 0);
}

/* ---- what an image takes ------------------------------------------------------------------------------------ */

static uint64_t pages_with_data(int fd, uint64_t bytes)
{
	static uint8_t piece[MIB];
	uint64_t pages = 0;

	for (uint64_t at = 0; at < bytes; at += sizeof(piece)) {
		if (pread(fd, piece, sizeof(piece), (off_t)at) != (ssize_t)sizeof(piece))
			die("pread");
		for (size_t i = 0; i < sizeof(piece); i += DIOH_PAGE_BYTES)
			pages += !dioh_is_zero(piece + i, DIOH_PAGE_BYTES);
	}
	return pages * DIOH_PAGE_BYTES;
}

static void run_blocks(uint64_t mib)
{
	struct content what = one_region(mib * MIB);
	const struct fixture_region *ram = &what.regions[0];
	DIOH_AUTO_FD int image_fd = -1;
	DIOH_AUTO_FD int copy = must_memfd("copy", ram->bytes, 0);
	uint64_t before, after, data;

	must_fill_mixed(ram->memfd, ram->bytes, 16, 64, 4); /* runs of 64 KiB to 4 MiB */
	data = pages_with_data(ram->memfd, ram->bytes);
	before = must_blocks_bytes(ram->memfd);
	save(fixture_path("image"), &what);
	after = must_blocks_bytes(ram->memfd);
	printf("blocks: the memory's, before %" PRIu64 " KiB, after %" PRIu64 " KiB: %s\n", before / 1024, after / 1024,
	       verdict(before == after));
	image_fd = open(fixture_path("image"), O_RDONLY | O_CLOEXEC);
	printf("blocks: %" PRIu64 " MiB mixed, %" PRIu64 " KiB of it data\n", mib, data / 1024);
	judge_kib("blocks: the image's beyond that", (int64_t)(must_blocks_bytes(image_fd) - data) / 1024, 2 * 1024);
	load(fixture_path("image"), ram, copy);
	judge_kib("blocks: the loaded memory's beyond that", (int64_t)(must_blocks_bytes(copy) - data) / 1024, 0);
	printf("blocks: comes back the same: %s\n", verdict(same_bytes(ram->memfd, copy)));
}

/* ---- what stays in the page cache ----------------------------------------------------------------------------- */

static int64_t cached_kib(const char *path)
{
	return (int64_t)(measure_cached_bytes(path) / 1024);
}

static void forget(const char *path)
{
	DIOH_AUTO_FD int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0 || fsync(fd) < 0 || posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) != 0)
		die(path);
	if (cached_kib(path) > 0)
		printf("cache: %" PRId64 " KiB stay cached whatever is advised\n", cached_kib(path));
}

static void run_cache(uint64_t mib)
{
	struct content what = one_filled_region(mib * MIB);

	save(fixture_path("image"), &what);
	judge_kib("cache: of the image after its save", cached_kib(fixture_path("image")), 1024);
	forget(fixture_path("image"));
	load_fresh(fixture_path("image"), &what.regions[0]);
	judge_kib("cache: of the image after its load", cached_kib(fixture_path("image")), 1024);
}

static int usage(void)
{
	fprintf(stderr, "usage: shapes many [PAIRS [REGION_MIB]] | sparse [PAIRS] | deaf [PAIRS] |\n"
	                "              blocks [MIB] | cache [MIB]\n");
	return 2;
}

int main(int argc, char **argv)
{
	const char *shape = argc > 1 ? argv[1] : "";
	const unsigned first = argc > 2 ? (unsigned)atoi(argv[2]) : 0;
	const unsigned pairs = first ? (unsigned)dioh_min(first, PAIRS_MAX) : PAIRS_DEFAULT;

	if (strcmp(shape, "many") == 0)
		run_many(pairs, argc > 3 ? (uint64_t)atoi(argv[3]) : 16);
	else if (strcmp(shape, "sparse") == 0)
		run_sparse(pairs);
	else if (strcmp(shape, "deaf") == 0)
		run_deaf(pairs);
	else if (strcmp(shape, "blocks") == 0)
		run_blocks(first ? first : 4096);
	else if (strcmp(shape, "cache") == 0)
		run_cache(first ? first : 1024);
	else
		return usage();
	return missed;
}
