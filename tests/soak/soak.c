/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * soak.c SECONDS [SESSIONS] - many helpers at once, for long. Each of SESSIONS threads (64) saves guests of random sizes, in
 * random layouts, by random engines, with direct and with buffered I/O, over what its last round has left; many saves are
 * disturbed: a transfer is cancelled, the helper killed, the manager goes, or (as root, one thread) the disk fails. Then all
 * that the image gives back is compared, byte by byte.
 *
 * Wrong, and the end of it with exit status 1: an image that gives other bytes than a guest's of this round or the one
 * before; one that was called complete and does not open; a call or a helper that does not end; a helper that dies of
 * anything but our signal; descriptors, memory, children or files that are left.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "cleanup.h"
#include "fixture.h"
#include "fuse_file.h"

#define SESSIONS_MAX 256u
#define REGIONS_MAX 3u
#define STREAM 7u
#define ROUND_S_MAX 240       /* a round that takes longer hangs: the busiest machine is done by then */
#define TOGETHER_S 20         /* how long the first wait for the last */
#define TOGETHER_EVERY 32u    /* rounds */
#define HEAP_GROWTH_MAX (4u << 20)

struct guest {
	unsigned count;
	int memories[REGIONS_MAX];
	uint64_t bytes[REGIONS_MAX];
	int stream; /* a file: what a stream brings */
	uint64_t stream_bytes;
	char name[REGIONS_MAX][32];
};

enum disturbance { UNDISTURBED, CANCEL, KILL, LEAVE, DISK, DISTURBANCES };
static const char *const disturbance_names[] = { "undisturbed", "cancelled", "killed", "left", "disk errors" };

struct worker {
	unsigned number;
	pthread_t thread;
	uint64_t chance;
	char path[256];
	struct guest guests[2]; /* this round's, and the one before whose image may still stand there */
	unsigned round;
	uint32_t layout; /* of the last save that may have written */
	bool disk;
	atomic_long begun_s; /* this round; 0: none runs */
	int stage;           /* that the save has passed, for messages */
};

static struct worker workers[SESSIONS_MAX];
static unsigned sessions = 64;
static struct fuse_file *disk;
static int null_fd; /* where helpers complain of managers that go */
static atomic_bool stop;
static atomic_uint active, active_max, together;
static atomic_uint rounds, saved, refused, restored, restored_older, by_disturbance[DISTURBANCES];
static atomic_ullong bytes_compared;

static uint64_t chance(struct worker *w)
{
	uint64_t z = w->chance += UINT64_C(0x9e3779b97f4a7c15);

	z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
	return z ^ z >> 31;
}

static unsigned below(struct worker *w, unsigned n)
{
	return (unsigned)(chance(w) % n);
}

static long now_s(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (long)now.tv_sec;
}

static void wrong(const struct worker *w, const char *what, const char *why)
{
	static pthread_mutex_t first = PTHREAD_MUTEX_INITIALIZER;

	pthread_mutex_lock(&first); /* the others wait for the end: what follows from it is not news */
	fprintf(stderr, "soak: thread %u, round %u, layout %u, stage %d: %s: %s\n", w->number, w->round, w->layout, w->stage, what,
	        why);
	exit(1);
}

/* ---- guests ---- */

static uint64_t some_bytes(struct worker *w)
{
	static const unsigned pages[] = { 1, 7, 256, 257, 300, 1024, 2000 };

	return (below(w, 40) ? pages[below(w, 7)] : 8192 + below(w, 8192)) * (uint64_t)DIOH_PAGE_BYTES;
}

static void make_guest(struct worker *w, struct guest *guest)
{
	guest->count = 1 + below(w, REGIONS_MAX);
	for (unsigned i = 0; i < guest->count; i++) {
		guest->bytes[i] = some_bytes(w);
		guest->memories[i] = must_memfd("guest", guest->bytes[i], 0);
		must_fill_mixed(guest->memories[i], guest->bytes[i], 1, 30, chance(w));
		snprintf(guest->name[i], sizeof(guest->name[i]), "t%u.r%u.%u", w->number, w->round, i);
	}
	guest->stream_bytes = below(w, 4) ? below(w, 100000) : 0;
	guest->stream = must_memfd("stream", guest->stream_bytes, 0);
	must_fill(guest->stream, 0, guest->stream_bytes, chance(w));
}

static void free_guest(struct guest *guest)
{
	for (unsigned i = 0; i < guest->count; i++)
		close(guest->memories[i]);
	if (guest->count)
		close(guest->stream);
	guest->count = 0;
}

/* Entries as a manager announces them; raw: with their places. */
static unsigned make_entries(const struct guest *guest, uint32_t layout, bool load, struct dioh_msg_entry *entries)
{
	uint64_t at = 0;

	for (unsigned i = 0; i < guest->count; i++) {
		entries[i] = region_entry(i, guest->name[i], guest->bytes[i]);
		entries[i].image_offset = layout == DIOH_LAYOUT_RAW ? at : 0;
		at += guest->bytes[i];
	}
	entries[guest->count] = stream_entry(STREAM, "state");
	entries[guest->count].image_offset = layout == DIOH_LAYOUT_RAW ? at : 0;
	entries[guest->count].bytes = load ? guest->stream_bytes : 0;
	return guest->count + 1;
}

/* ---- sessions ---- */

static void enter(void)
{
	const unsigned now = atomic_fetch_add(&active, 1) + 1;
	unsigned most = atomic_load(&active_max);

	while (now > most && !atomic_compare_exchange_weak(&active_max, &most, now))
		;
}

static int attach(struct worker *w, struct dioh_session *session, const struct guest *guest, const int *memories, int stream,
                  uint32_t direction, struct dioh_error *err)
{
	const int access = direction == DIOH_DIRECTION_SAVE ? O_RDWR : O_RDONLY;
	struct dioh_image_options options = DIOH_IMAGE_OPTIONS_INIT;
	DIOH_AUTO_FD int buffered = open(w->path, access | O_CLOEXEC | (direction == DIOH_DIRECTION_SAVE ? O_CREAT : 0), 0600);
	DIOH_AUTO_FD int direct = below(w, 3) ? open(w->path, access | O_DIRECT | O_CLOEXEC) : -1;
	struct dioh_msg_attach_image_reply info;
	int r;

	if (buffered < 0)
		wrong(w, w->path, strerror(errno));
	options.buffered_fd = buffered;
	options.direct_fd = direct;
	options.direction = direction;
	options.engine = below(w, 4);
	options.block_bytes = below(w, 2) ? 0 : DIOH_BLOCK_BYTES_MIN << below(w, 4);
	options.in_flight = below(w, 2) ? 0 : 1 + below(w, 8);
	options.workers = 1 + below(w, 3);
	r = dioh_attach_image(session, &options, &info, err);
	for (unsigned i = 0; i < guest->count && r == 0; i++) {
		struct dioh_memory_options memory = DIOH_MEMORY_OPTIONS_INIT;
		struct dioh_msg_attach_memory_reply reply;

		memory.fd = memories[i];
		r = dioh_attach_memory(session, i, &memory, &reply, err);
	}
	if (r == 0) {
		struct dioh_msg_attach_stream_reply reply;

		lseek(stream, 0, SEEK_SET);
		r = dioh_attach_stream(session, 0, stream, &reply, err);
	}
	return r;
}

/* Now and then all wait here until all are here, each with a sealed helper. */
static void wait_together(struct worker *w)
{
	const long until = now_s() + TOGETHER_S;

	if (w->round % TOGETHER_EVERY != 1)
		return;
	atomic_fetch_add(&together, 1);
	while (atomic_load(&together) % sessions != 0 && now_s() < until && !atomic_load(&stop))
		usleep(2000);
}

/* What happens to a save at a place drawn beforehand: true, it is over. */
static bool disturb(struct worker *w, struct dioh_session *session, enum disturbance how, int at)
{
	struct dioh_error err;

	w->stage++;
	if (w->stage != at)
		return false;
	usleep(below(w, 8000));
	if (how == CANCEL)
		(void)dioh_cancel(session, 0, NULL, &err);
	if (how == KILL)
		kill(dioh_session_pid(session), SIGKILL);
	return how == LEAVE;
}

static int wait_all(struct dioh_session *session, const uint32_t *transfers, unsigned count, struct dioh_error *err)
{
	int result = 0;

	for (unsigned i = 0; i < count; i++) {
		struct dioh_error mine;
		int r = dioh_wait(session, transfers[i], NULL, &mine);

		if (r < 0 && result == 0) {
			result = r;
			*err = mine;
		}
	}
	return result;
}

static int move(struct dioh_session *session, const struct guest *guest, bool save, uint32_t *transfers, unsigned *count,
                struct dioh_error *err)
{
	const struct dioh_msg_stream_transfer stream = { .stream = 0, .entry = STREAM };
	int r = save ? dioh_save_stream(session, &stream, &transfers[0], err)
	             : dioh_load_stream(session, &stream, &transfers[0], err);

	*count = r == 0;
	for (unsigned i = 0; i < guest->count && r == 0; i++) {
		const struct dioh_msg_memory_transfer what = { .memory = i, .region = i, .length = guest->bytes[i] };

		r = save ? dioh_save_memory(session, &what, &transfers[*count], err)
		         : dioh_load_memory(session, &what, &transfers[*count], err);
		*count += r == 0;
	}
	return r;
}

static int save_steps(struct worker *w, struct dioh_session *session, const struct guest *guest, enum disturbance how,
                      struct dioh_error *err)
{
	const int at = how == UNDISTURBED || how == DISK ? 0 : 1 + (int)below(w, 5);
	struct dioh_msg_entry entries[REGIONS_MAX + 1];
	const struct dioh_create_options create = { .layout = w->layout, .entries = entries,
		                                    .entry_count = make_entries(guest, w->layout, false, entries) };
	struct dioh_msg_image_reply info;
	uint32_t transfers[REGIONS_MAX + 1], finish;
	unsigned count = 0;
	int r, ended;

	if (disturb(w, session, how, at))
		return -ECANCELED;
	r = dioh_create_image(session, &create, &info, err);
	if (disturb(w, session, how, at))
		return -ECANCELED;
	if (r == 0)
		r = move(session, guest, true, transfers, &count, err);
	if (disturb(w, session, how, at))
		return -ECANCELED;
	ended = wait_all(session, transfers, count, err);
	r = r < 0 ? r : ended;
	if (disturb(w, session, how, at))
		return -ECANCELED;
	if (r == 0)
		r = dioh_finish(session, DIOH_FINISH_DURABLE, 0, NULL, 0, &finish, err);
	if (r == 0 && disturb(w, session, how, at))
		return -ECANCELED;
	return r == 0 ? dioh_wait(session, finish, NULL, err) : r;
}

static struct dioh_session *start(struct worker *w)
{
	struct dioh_spawn_options spawn = DIOH_SPAWN_OPTIONS_INIT;
	struct dioh_session *session;
	struct dioh_error err;
	spawn.program = fixture_helper();
	spawn.stderr_fd = null_fd;
	if (dioh_spawn(&spawn, 0, &session, &err) < 0)
		wrong(w, "starting a helper", err.text);
	enter();
	return session;
}

static void end(struct worker *w, struct dioh_session *session, bool killed)
{
	int status = 0;
	int r = dioh_close(session, ROUND_S_MAX * 1000, &status);

	atomic_fetch_sub(&active, 1);
	if (r < 0)
		wrong(w, "the helper does not end", strerror(-r));
	if (WIFSIGNALED(status) && !(killed && WTERMSIG(status) == SIGKILL))
		wrong(w, "the helper died of a signal", strsignal(WTERMSIG(status)));
}

/* true: FINISH has said that the image is complete. */
static bool save(struct worker *w, const struct guest *guest, enum disturbance how)
{
	struct dioh_session *session = start(w);
	struct dioh_msg_seal_reply sealed;
	struct dioh_error err = { 0 };
	int r;

	w->stage = 0;
	r = attach(w, session, guest, guest->memories, guest->stream, DIOH_DIRECTION_SAVE, &err);
	if (r == 0)
		r = dioh_seal(session, 0, &sealed, &err);
	if (r < 0 && how != DISK)
		wrong(w, "attaching and sealing", err.text);
	wait_together(w);
	if (how == DISK)
		fuse_file_fault(disk, below(w, 2) ? FUSE_WRITE : FUSE_FSYNC, FUSE_FAULT_ERROR, below(w, 2) ? EIO : ENOSPC,
		                .after = below(w, 12), .times = 1);
	if (r == 0)
		r = save_steps(w, session, guest, how, &err);
	if (how == DISK)
		fuse_file_release(disk, 0);
	end(w, session, how == KILL);
	if (r < 0 && how == UNDISTURBED)
		wrong(w, "an undisturbed save", err.text);
	return r == 0;
}

/* ---- what an image gives back ---- */

static bool is_guest(struct dioh_session *session, const struct guest *guest)
{
	struct dioh_msg_entry first;
	struct dioh_error err;
	uint32_t count;

	return dioh_get_table(session, 0, 1, &first, &count, &err) == 0 && count == 1 &&
	       strcmp(first.name, guest->name[0]) == 0;
}

static void compare(struct worker *w, const struct guest *guest, const int *memories, int stream)
{
	for (unsigned i = 0; i < guest->count; i++) {
		if (!same_bytes(guest->memories[i], memories[i]))
			wrong(w, "WRONG BYTES", guest->name[i]);
		atomic_fetch_add(&bytes_compared, guest->bytes[i]);
	}
	if (!same_bytes(guest->stream, stream))
		wrong(w, "WRONG BYTES", "the stream");
	atomic_fetch_add(&bytes_compared, guest->stream_bytes);
}

/* Loads it as if it were this guest; false: it is refused, or is another one. */
static bool load(struct worker *w, const struct guest *guest, bool must_open)
{
	struct dioh_session *session = start(w);
	struct dioh_msg_entry entries[REGIONS_MAX + 1];
	struct dioh_open_options options = { .layout = w->layout, .entries = entries };
	struct dioh_msg_open_image_reply info;
	struct dioh_msg_seal_reply sealed;
	uint32_t transfers[REGIONS_MAX + 1];
	int memories[REGIONS_MAX], stream = must_memfd("stream", 0, 0);
	struct dioh_error err = { 0 };
	unsigned count = 0;
	bool is = false;
	int r;

	if (w->layout == DIOH_LAYOUT_RAW)
		options.entry_count = make_entries(guest, w->layout, true, entries);
	for (unsigned i = 0; i < guest->count; i++)
		memories[i] = must_memfd("loaded", guest->bytes[i], 0);
	r = attach(w, session, guest, memories, stream, DIOH_DIRECTION_LOAD, &err);
	if (r == 0)
		r = dioh_seal(session, 0, &sealed, &err);
	if (r < 0)
		wrong(w, "attaching and sealing", err.text);
	r = dioh_open_image(session, &options, &info, &err);
	if (r < 0 && must_open)
		wrong(w, "FALSE COMPLETION: it does not open", err.text);
	if (r == 0)
		is = is_guest(session, guest);
	if (r == 0 && must_open && !is)
		wrong(w, "FALSE COMPLETION", "it is of another round");
	if (is) {
		int ended;

		r = move(session, guest, false, transfers, &count, &err);
		ended = wait_all(session, transfers, count, &err);
		if (r < 0 || ended < 0)
			wrong(w, "loading what is complete", err.text);
		compare(w, guest, memories, stream);
	}
	end(w, session, false);
	for (unsigned i = 0; i < guest->count; i++)
		close(memories[i]);
	close(stream);
	return is;
}

/* ---- rounds ---- */

static enum disturbance draw(struct worker *w)
{
	const unsigned n = below(w, 10);

	if (w->disk && n < 8)
		return DISK;
	return n < 5 ? UNDISTURBED : n < 7 ? CANCEL : n < 9 ? KILL : LEAVE;
}

static void one_round(struct worker *w)
{
	struct guest *guest = &w->guests[w->round % 2], *before = &w->guests[(w->round + 1) % 2];
	const enum disturbance how = draw(w);
	const uint32_t layout_before = w->layout;
	bool complete;

	free_guest(guest);
	make_guest(w, guest);
	if (below(w, 2) && !w->disk) {
		(void)unlink(w->path);
		free_guest(before);
	}
	w->layout = below(w, 3) ? DIOH_LAYOUT_CONTAINER : DIOH_LAYOUT_RAW;
	complete = save(w, guest, how);
	atomic_fetch_add(&by_disturbance[how], 1);
	atomic_fetch_add(complete ? &saved : &refused, 1);
	/* Raw keeps no mark of its own: a raw image that was not finished is the manager's to refuse. */
	if (complete || w->layout == DIOH_LAYOUT_CONTAINER) {
		if (load(w, guest, complete))
			atomic_fetch_add(&restored, 1);
		else if (layout_before == DIOH_LAYOUT_CONTAINER && before->count && load(w, before, false))
			atomic_fetch_add(&restored_older, 1);
	}
	free_guest(before);
	atomic_fetch_add(&rounds, 1);
}

static void *run(void *argument)
{
	struct worker *w = argument;

	while (!atomic_load(&stop)) {
		w->round++;
		atomic_store(&w->begun_s, now_s());
		one_round(w);
	}
	atomic_store(&w->begun_s, 0);
	free_guest(&w->guests[0]);
	free_guest(&w->guests[1]);
	return NULL;
}

/* ---- the whole ---- */

static unsigned count_entries(const char *path)
{
	DIR *directory = opendir(path);
	unsigned count = 0;

	while (directory && readdir(directory))
		count++;
	if (directory)
		closedir(directory);
	return count;
}

static void watch(long until)
{
	while (now_s() < until) {
		sleep(1);
		for (unsigned i = 0; i < sessions; i++) {
			const long begun = atomic_load(&workers[i].begun_s);

			if (begun && now_s() - begun > ROUND_S_MAX)
				wrong(&workers[i], "HANG", "a round has not ended");
		}
	}
}

static void begin_all(uint64_t seed)
{
	for (unsigned i = 0; i < sessions; i++) {
		struct worker *w = &workers[i];

		w->number = i;
		w->chance = seed + i * UINT64_C(0x100000001b3);
		w->disk = disk && i == 0;
		snprintf(w->path, sizeof(w->path), "%s", w->disk ? fuse_file_path(disk) : fixture_path("image"));
		if (!w->disk)
			snprintf(w->path + strlen(w->path), 16, "-%u", i);
		if (pthread_create(&w->thread, NULL, run, w) != 0)
			fixture_die(__FILE__, __LINE__, "a thread", strerror(errno));
	}
}

static void print_figures(long seconds)
{
	printf("rounds %u in %ld s: complete %u, not complete %u; restored %u, the older image instead %u; bytes compared %llu\n",
	       atomic_load(&rounds), seconds, atomic_load(&saved), atomic_load(&refused), atomic_load(&restored),
	       atomic_load(&restored_older), (unsigned long long)atomic_load(&bytes_compared));
	for (unsigned i = 0; i < DISTURBANCES; i++)
		printf("%s %u%s", disturbance_names[i], atomic_load(&by_disturbance[i]), i + 1 < DISTURBANCES ? ", " : "\n");
	printf("helpers at once: %u\n", atomic_load(&active_max));
}

/* What must be as it was; `heap`: what the threads' first rounds had left in use. */
static int check_leftovers(unsigned descriptors, size_t heap)
{
	const unsigned descriptors_now = count_entries("/proc/self/fd");
	const size_t heap_now = mallinfo2().uordblks;
	const unsigned children = disk ? 1 : 0; /* its server */
	siginfo_t info = { 0 };

	printf("descriptors %u before, %u behind; heap in use %zu, %zu\n", descriptors, descriptors_now, heap, heap_now);
	if (descriptors_now > descriptors + 1 || heap_now > heap + HEAP_GROWTH_MAX)
		return fprintf(stderr, "soak: something is left\n"), 1;
	if (waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) == 0 && (info.si_pid != 0 || !children))
		return fprintf(stderr, "soak: a child is left: %d\n", info.si_pid), 1;
	if (count_entries(fixture_dir()) > sessions + 2 + children)
		return fprintf(stderr, "soak: files are left\n"), 1;
	return 0;
}

int main(int argc, char **argv)
{
	const long seconds = argc > 1 ? atol(argv[1]) : 60;
	const char *wish = getenv("DIOH_SEED");
	const uint64_t seed = wish ? strtoull(wish, NULL, 0) : (uint64_t)time(NULL);
	const struct fuse_file_options options = { 0 };
	const char *why = "not root";
	unsigned descriptors;
	long begun;
	size_t heap;

	if (argc > 2)
		sessions = (unsigned)atol(argv[2]);
	if (seconds < 1 || sessions < 1 || sessions > SESSIONS_MAX)
		return fprintf(stderr, "usage: soak SECONDS [SESSIONS]\n"), 2;
	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("DIOH_SEED=%llu: %u sessions for %ld s\n", (unsigned long long)seed, sessions, seconds);
	if (geteuid() == 0)
		disk = fuse_file_start("disk", &options, &why);
	if (!disk)
		printf("without a disk that fails: %s\n", why);
	null_fd = open("/dev/null", O_WRONLY | O_CLOEXEC);
	descriptors = count_entries("/proc/self/fd");
	begun = now_s();
	begin_all(seed);
	watch(begun + seconds / 3);
	heap = mallinfo2().uordblks;
	watch(begun + seconds);
	atomic_store(&stop, true);
	for (unsigned i = 0; i < sessions; i++)
		pthread_join(workers[i].thread, NULL);
	print_figures(now_s() - begun);
	if (check_leftovers(descriptors, heap))
		return 1;
	fuse_file_stop(disk);
	if (atomic_load(&active_max) < sessions)
		return fprintf(stderr, "soak: never %u helpers at once: it was too short\n", sessions), 1;
	printf("wrong restores 0, false completions 0, hangs 0, crashes 0\n");
	return 0;
}
