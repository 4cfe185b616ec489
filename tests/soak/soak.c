/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * soak.c SECONDS [SESSIONS] - many helpers at once, for long. Each of SESSIONS threads (64) saves guests of random sizes, in
 * random layouts, by random engines, with direct and with buffered I/O, over what its last round there has left: in a file,
 * and as root on a disk of its own that fails (fuse_file.h). Many saves are disturbed: a transfer is cancelled, the helper
 * killed, the manager goes, the disk fails, tears, loses or delays. Then all that the image gives back is compared, byte by
 * byte; loads have disk errors, too.
 *
 * Wrong, and the end of it with exit status 1: an image that gives other bytes than a guest's of this round or the one
 * before; one that was called complete and does not open; a call or a helper that does not end; a helper that dies of
 * anything but our signal; descriptors, memory, children or files that are left.
 */
#define _GNU_SOURCE
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
#include "fuse_file.h"
#include "moves.h"
#include "random_guest.h"

#define SESSIONS_MAX 256u
#define PLACES_MAX 2u
#define REGIONS_MAX RANDOM_GUEST_MEMORIES
#define ROUND_S_MAX 240       /* a round that takes longer hangs: the busiest machine is done by then */
#define TOGETHER_S 20         /* how long the first wait for the last */
#define TOGETHER_EVERY 32u    /* rounds */
#define HEAP_GROWTH_MAX (4u << 20)
#define HELPER_KIB_MAX (192u << 10) /* whatever guests are there, windows into their memory included */
#define LATE_MS 20

enum disturbance { UNDISTURBED, CANCEL, KILL, LEAVE, DISK, DISTURBANCES };
static const char *const disturbance_names[] = { "undisturbed", "cancelled", "killed", "left", "disk errors" };

struct place { /* where a thread's images stand, one over the other */
	char path[256];
	struct fuse_file *disk; /* NULL: a file that does not fail */
	struct random_guest guests[2]; /* this round's, and the one before whose image may still stand there */
	unsigned round;
};

struct worker {
	unsigned number;
	pthread_t thread;
	uint64_t chance;
	struct place places[PLACES_MAX];
	unsigned place_count;
	unsigned round;
	uint32_t layout;     /* that is saved, for messages */
	atomic_long begun_s; /* this round; 0: none runs */
	int stage;           /* that the save has passed, for messages */
};

static struct worker workers[SESSIONS_MAX];
static unsigned sessions = 64;
static unsigned disks;
static int null_fd; /* where helpers complain of managers that go */
static atomic_bool stop;
static atomic_uint working; /* threads */
static atomic_uint active, active_max, together, largest_kib;
static atomic_uint rounds, saved, refused, restored, restored_older, load_errors, by_disturbance[DISTURBANCES],
        by_layout[DIOH_LAYOUT_MAPPED_RAM + 1];
static atomic_ullong bytes_compared;

static unsigned below(struct worker *w, unsigned n)
{
	return (unsigned)(test_random(&w->chance) % n);
}

static long now_s(void)
{
	return (long)(now_ms() / 1000);
}

static void wrong(const struct worker *w, const char *what, const char *why)
{
	static pthread_mutex_t first = PTHREAD_MUTEX_INITIALIZER;

	pthread_mutex_lock(&first); /* the others wait for the end: what follows from it is not news */
	fprintf(stderr, "soak: thread %u, round %u, layout %u, stage %d: %s: %s\n", w->number, w->round, w->layout, w->stage, what,
	        why);
	exit(1);
}

/* ---- sessions ---- */

static void note_most(atomic_uint *most, unsigned now)
{
	unsigned before = atomic_load(most);

	while (now > before && !atomic_compare_exchange_weak(most, &before, now))
		;
}

/* The most that a helper has had so far, which may be gone already. */
static void note_memory(struct dioh_session *session)
{
	char path[64], line[128];
	unsigned kib;
	FILE *status;

	(void)snprintf(path, sizeof(path), "/proc/%d/status", (int)dioh_session_pid(session));
	status = fopen(path, "re");
	while (status && fgets(line, sizeof(line), status))
		if (sscanf(line, "VmHWM: %u", &kib) == 1)
			note_most(&largest_kib, kib);
	if (status)
		(void)fclose(status);
}

static int attach(struct worker *w, struct dioh_session *session, const struct place *place,
                  const struct random_guest *guest, const int *memories, int stream, uint32_t direction,
                  struct dioh_error *err)
{
	const int access = direction == DIOH_DIRECTION_SAVE ? O_RDWR : O_RDONLY;
	struct dioh_image_options options = DIOH_IMAGE_OPTIONS_INIT;
	DIOH_AUTO_FD int buffered = open(place->path, access | O_CLOEXEC | (direction == DIOH_DIRECTION_SAVE ? O_CREAT : 0), 0600);
	DIOH_AUTO_FD int direct = below(w, 3) ? open(place->path, access | O_DIRECT | O_CLOEXEC) : -1;
	struct dioh_msg_attach_image_reply info;
	int r;

	if (buffered < 0)
		wrong(w, place->path, strerror(errno));
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

static int move(struct dioh_session *session, const struct random_guest *guest, bool save, uint32_t *transfers,
                unsigned *count, struct dioh_error *err)
{
	const struct dioh_msg_stream_transfer stream = { .stream = 0, .entry = RANDOM_GUEST_ENTRY };
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

static int save_steps(struct worker *w, struct dioh_session *session, const struct random_guest *guest,
                      enum disturbance how, struct dioh_error *err)
{
	const int at = how == UNDISTURBED || how == DISK ? 0 : 1 + (int)below(w, 5);
	struct dioh_msg_entry entries[REGIONS_MAX + 1];
	const struct dioh_create_options create = { .layout = guest->layout, .entries = entries,
		                                    .entry_count = random_guest_entries(guest, false, entries) };
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
	note_memory(session);
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
	note_most(&active_max, atomic_fetch_add(&active, 1) + 1);
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
	if (WIFEXITED(status) && WEXITSTATUS(status) > 1)
		wrong(w, "the helper ended", "with a status of its own");
}

/* What the disk does to the save at a moment drawn by chance. Answers whether it may do harm: to be late does none. */
static bool make_sick(struct worker *w, struct fuse_file *disk)
{
	static const struct fuse_fault writes[] = {
		{ .kind = FUSE_FAULT_ERROR, .value = EIO }, { .kind = FUSE_FAULT_ERROR, .value = ENOSPC },
		{ .kind = FUSE_FAULT_TORN, .value = EIO },  { .kind = FUSE_FAULT_DONE, .value = EIO },
		{ .kind = FUSE_FAULT_LOST, .value = EIO },  { .kind = FUSE_FAULT_LATE, .value = LATE_MS },
	};
	struct fuse_fault fault = { .kind = FUSE_FAULT_ERROR, .value = below(w, 2) ? EIO : EDQUOT };
	const bool sync = below(w, 3) == 0;

	if (!sync)
		fault = writes[below(w, sizeof(writes) / sizeof(writes[0]))];
	fault.after = below(w, sync ? 4 : 40);
	fault.times = 1;
	fuse_file_set_fault(disk, sync ? FUSE_FSYNC : FUSE_WRITE, &fault);
	return fault.kind != FUSE_FAULT_LATE;
}

/* true: FINISH has said that the image is complete. */
static bool save(struct worker *w, const struct place *place, const struct random_guest *guest, enum disturbance how)
{
	struct dioh_session *session = start(w);
	struct dioh_msg_seal_reply sealed;
	struct dioh_error err = { 0 };
	bool harmed = how != UNDISTURBED;
	int r;

	w->stage = 0;
	r = attach(w, session, place, guest, guest->memories, guest->stream, DIOH_DIRECTION_SAVE, &err);
	if (r == 0)
		r = dioh_seal(session, 0, &sealed, &err);
	if (r < 0)
		wrong(w, "attaching and sealing", err.text);
	wait_together(w);
	if (how == DISK)
		harmed = make_sick(w, place->disk);
	r = save_steps(w, session, guest, how, &err);
	if (how == DISK)
		fuse_file_release(place->disk, 0);
	end(w, session, how == KILL);
	if (r < 0 && !harmed)
		wrong(w, "a save that nothing has harmed", err.text);
	return r == 0;
}

/* ---- what an image gives back ---- */

static bool is_guest(struct dioh_session *session, const struct random_guest *guest)
{
	struct dioh_msg_entry first;
	struct dioh_error err;
	uint32_t count;

	return dioh_get_table(session, 0, 1, &first, &count, &err) == 0 && count == 1 &&
	       strcmp(first.name, guest->name[0]) == 0;
}

static void compare(struct worker *w, const struct random_guest *guest, const int *memories, int stream)
{
	const char *what = random_guest_differs(guest, memories, stream);

	if (what)
		wrong(w, "WRONG BYTES", what);
	for (unsigned i = 0; i < guest->count; i++)
		atomic_fetch_add(&bytes_compared, guest->bytes[i]);
	atomic_fetch_add(&bytes_compared, guest->stream_bytes);
}

enum wanted { MAY_BE_THERE, MUST_BE_THERE, MAY_FAIL };

/* The image is open, and this guest's. false: it could not be read, which may be. */
static bool load_all(struct worker *w, struct dioh_session *session, const struct random_guest *guest, const int *memories,
                     int stream, enum wanted wanted)
{
	uint32_t transfers[REGIONS_MAX + 1];
	struct dioh_error err = { 0 };
	unsigned count = 0;
	int r = move(session, guest, false, transfers, &count, &err);
	int ended = wait_all(session, transfers, count, &err);

	if (r == 0 && ended == 0) {
		compare(w, guest, memories, stream);
		return true;
	}
	if (wanted != MAY_FAIL)
		wrong(w, "loading what is complete", err.text);
	return false;
}

/* Loads it as if it were this guest; false: it is refused, or is another one. */
static bool load(struct worker *w, const struct place *place, const struct random_guest *guest, enum wanted wanted)
{
	struct dioh_session *session = start(w);
	struct dioh_msg_entry entries[REGIONS_MAX + 1];
	struct dioh_open_options options = { .layout = guest->layout, .entries = entries };
	struct dioh_msg_open_image_reply info;
	struct dioh_msg_seal_reply sealed;
	int memories[REGIONS_MAX], stream = must_memfd("stream", 0, 0);
	struct dioh_error err = { 0 };
	bool is = false;
	int r;

	if (guest->layout == DIOH_LAYOUT_RAW)
		options.entry_count = random_guest_entries(guest, true, entries);
	for (unsigned i = 0; i < guest->count; i++)
		memories[i] = must_memfd("loaded", guest->bytes[i], 0);
	r = attach(w, session, place, guest, memories, stream, DIOH_DIRECTION_LOAD, &err);
	if (r == 0)
		r = dioh_seal(session, 0, &sealed, &err);
	if (r < 0)
		wrong(w, "attaching and sealing", err.text);
	if (wanted == MAY_FAIL)
		fuse_file_fault(place->disk, FUSE_READ, .kind = FUSE_FAULT_ERROR, .value = EIO, .after = below(w, 20), .times = 1);
	r = dioh_open_image(session, &options, &info, &err);
	if (r < 0 && wanted == MUST_BE_THERE)
		wrong(w, "FALSE COMPLETION: it does not open", err.text);
	if (r == 0)
		is = is_guest(session, guest);
	if (r == 0 && wanted == MUST_BE_THERE && !is)
		wrong(w, "FALSE COMPLETION", "it is of another round");
	if (is)
		is = load_all(w, session, guest, memories, stream, wanted);
	note_memory(session);
	if (wanted == MAY_FAIL)
		fuse_file_release(place->disk, 0);
	end(w, session, false);
	for (unsigned i = 0; i < guest->count; i++)
		close(memories[i]);
	close(stream);
	return is;
}

/* ---- rounds ---- */

static enum disturbance draw(struct worker *w, const struct place *place)
{
	const unsigned n = below(w, 10);

	if (place->disk && n < 7)
		return DISK;
	return n < 5 ? UNDISTURBED : n < 7 ? CANCEL : n < 9 ? KILL : LEAVE;
}

static void empty(const struct place *place)
{
	if (place->disk && ftruncate(fuse_file_memfd(place->disk), 0) < 0)
		fixture_die(__FILE__, __LINE__, "ftruncate", strerror(errno));
	if (!place->disk)
		(void)unlink(place->path);
}

static void look_at(struct worker *w, const struct place *place, const struct random_guest *guest,
                    const struct random_guest *before, bool complete)
{
	/* Raw keeps no mark of its own: a raw image that was not finished is the manager's to refuse. */
	if (!complete && guest->layout == DIOH_LAYOUT_RAW)
		return;
	if (complete && place->disk && below(w, 2) && !load(w, place, guest, MAY_FAIL))
		atomic_fetch_add(&load_errors, 1);
	if (load(w, place, guest, complete ? MUST_BE_THERE : MAY_BE_THERE))
		atomic_fetch_add(&restored, 1);
	else if (before->count && before->layout != DIOH_LAYOUT_RAW && load(w, place, before, MAY_BE_THERE))
		atomic_fetch_add(&restored_older, 1);
}

static void one_round(struct worker *w, struct place *place)
{
	struct random_guest *guest = &place->guests[place->round % 2], *before = &place->guests[(place->round + 1) % 2];
	const enum disturbance how = draw(w, place);
	char name[32];
	bool complete;

	place->round++;
	random_guest_free(guest);
	w->layout = DIOH_LAYOUT_RAW + below(w, 3);
	(void)snprintf(name, sizeof(name), "t%u.r%u", w->number, w->round);
	random_guest_make(guest, w->layout, name, test_random(&w->chance));
	if (below(w, 2)) {
		empty(place);
		random_guest_free(before);
	}
	complete = save(w, place, guest, how);
	atomic_fetch_add(&by_disturbance[how], 1);
	atomic_fetch_add(&by_layout[w->layout], 1);
	atomic_fetch_add(complete ? &saved : &refused, 1);
	look_at(w, place, guest, before, complete);
	random_guest_free(before);
	atomic_fetch_add(&rounds, 1);
}

static void *run(void *argument)
{
	struct worker *w = argument;

	while (!atomic_load(&stop)) {
		w->round++;
		atomic_store(&w->begun_s, now_s());
		one_round(w, &w->places[below(w, w->place_count)]);
	}
	atomic_store(&w->begun_s, 0);
	for (unsigned i = 0; i < w->place_count; i++) {
		random_guest_free(&w->places[i].guests[0]);
		random_guest_free(&w->places[i].guests[1]);
	}
	atomic_fetch_sub(&working, 1);
	return NULL;
}

/* ---- the whole ---- */

static void watch_rounds(void)
{
	for (unsigned i = 0; i < sessions; i++) {
		const long begun = atomic_load(&workers[i].begun_s);

		if (begun && now_s() - begun > ROUND_S_MAX)
			wrong(&workers[i], "HANG", "a round has not ended");
	}
}

/* Until the time is over, and the last round: one that hangs is found, too, when the time is shorter than it may take. */
static void watch(long until)
{
	while (now_s() < until) {
		sleep(1);
		watch_rounds();
	}
	atomic_store(&stop, true);
	while (atomic_load(&working) > 0) {
		sleep(1);
		watch_rounds();
	}
}

/* Before there are threads. */
static void open_places(struct worker *w, long seconds)
{
	const struct fuse_file_options options = { .async_dio = w->number % 2, .fallocate = w->number % 4 < 2,
		                                   .life_s = (unsigned)seconds + 2 * ROUND_S_MAX };
	const char *why = "not root";
	char name[32];

	(void)snprintf(name, sizeof(name), "image-%u", w->number);
	(void)snprintf(w->places[0].path, sizeof(w->places[0].path), "%s", fixture_path(name));
	w->place_count = 1;
	(void)snprintf(name, sizeof(name), "disk-%u", w->number);
	if (geteuid() == 0)
		w->places[1].disk = fuse_file_start(name, &options, &why);
	if (!w->places[1].disk) {
		printf("thread %u is without a disk that fails: %s\n", w->number, why);
		return;
	}
	(void)snprintf(w->places[1].path, sizeof(w->places[1].path), "%s", fuse_file_path(w->places[1].disk));
	w->place_count = 2;
	disks++;
}

static void begin_all(uint64_t seed)
{
	for (unsigned i = 0; i < sessions; i++) {
		struct worker *w = &workers[i];

		w->chance = seed + i * UINT64_C(0x100000001b3);
		atomic_fetch_add(&working, 1);
		if (pthread_create(&w->thread, NULL, run, w) != 0)
			fixture_die(__FILE__, __LINE__, "a thread", strerror(errno));
	}
}

static void print_figures(long seconds)
{
	printf("rounds %u in %ld s (raw %u, container %u, mapped-ram %u): complete %u, not complete %u; restored %u, the older "
	       "image instead %u; loads with an error %u; bytes compared %llu\n", atomic_load(&rounds), seconds,
	       atomic_load(&by_layout[DIOH_LAYOUT_RAW]), atomic_load(&by_layout[DIOH_LAYOUT_CONTAINER]),
	       atomic_load(&by_layout[DIOH_LAYOUT_MAPPED_RAM]), atomic_load(&saved), atomic_load(&refused),
	       atomic_load(&restored), atomic_load(&restored_older), atomic_load(&load_errors),
	       (unsigned long long)atomic_load(&bytes_compared));
	for (unsigned i = 0; i < DISTURBANCES; i++)
		printf("%s %u%s", disturbance_names[i], atomic_load(&by_disturbance[i]), i + 1 < DISTURBANCES ? ", " : "\n");
	printf("helpers at once: %u; disks that fail: %u\n", atomic_load(&active_max), disks);
}

/* What must be as it was before the threads. */
static int check_leftovers(unsigned descriptors, size_t heap)
{
	const unsigned descriptors_now = must_count_descriptors();
	const size_t heap_now = mallinfo2().uordblks;
	siginfo_t info = { 0 };

	printf("the largest helper had %u KiB\n", atomic_load(&largest_kib));
	printf("descriptors %u before, %u behind; heap in use %zu before, %zu behind\n", descriptors, descriptors_now, heap, heap_now);
	if (descriptors_now > descriptors + 1 || heap_now > heap + HEAP_GROWTH_MAX)
		return fprintf(stderr, "soak: something is left\n"), 1;
	/* But the disks' servers. */
	if (waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) == 0 && (info.si_pid != 0 || !disks))
		return fprintf(stderr, "soak: a child is left: %d\n", info.si_pid), 1;
	if (atomic_load(&largest_kib) > HELPER_KIB_MAX)
		return fprintf(stderr, "soak: a helper needed more than %u KiB\n", HELPER_KIB_MAX), 1;
	if (must_count_entries(fixture_dir()) > sessions + disks)
		return fprintf(stderr, "soak: files are left\n"), 1;
	return 0;
}

int main(int argc, char **argv)
{
	const long seconds = argc > 1 ? atol(argv[1]) : 60;
	const char *wish = getenv("DIOH_SEED");
	const uint64_t seed = wish ? strtoull(wish, NULL, 0) : (uint64_t)time(NULL);
	unsigned descriptors;
	long begun;
	size_t heap;

	if (argc > 2)
		sessions = (unsigned)atol(argv[2]);
	if (seconds < 1 || sessions < 1 || sessions > SESSIONS_MAX)
		return fprintf(stderr, "usage: soak SECONDS [SESSIONS]\n"), 2;
	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("DIOH_SEED=%llu: %u sessions for %ld s\n", (unsigned long long)seed, sessions, seconds);
	for (unsigned i = 0; i < sessions; i++) {
		workers[i].number = i;
		open_places(&workers[i], seconds);
	}
	null_fd = open("/dev/null", O_WRONLY | O_CLOEXEC);
	descriptors = must_count_descriptors();
	heap = mallinfo2().uordblks;
	begun = now_s();
	begin_all(seed);
	watch(begun + seconds);
	for (unsigned i = 0; i < sessions; i++)
		pthread_join(workers[i].thread, NULL);
	print_figures(now_s() - begun);
	if (check_leftovers(descriptors, heap))
		return 1;
	for (unsigned i = 0; i < sessions; i++)
		fuse_file_stop(workers[i].places[1].disk);
	if (atomic_load(&active_max) < sessions)
		return fprintf(stderr, "soak: never %u helpers at once: it was too short\n", sessions), 1;
	printf("wrong restores 0, false completions 0, hangs 0, crashes 0\n");
	return 0;
}
