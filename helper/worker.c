/* SPDX-License-Identifier: LGPL-2.1-or-later */
#define _GNU_SOURCE
#include "worker.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "align.h"
#include "clock.h"

/* Steps between two looks at the engine, so that completions are not left lying while memory is all holes. */
#define STEPS_PER_ROUND 32u
/* And so long at most: steps that erase memory take some time each. */
#define ROUND_NS (20 * DIOH_NS_PER_MS)

/*
 * A transfer's turn: so many blocks before another comes first. Four regions were saved 6 to 15 % slower with turns of
 * one than with 8, in four runs on a busy machine; with 32 no better than with 8.
 */
#define TURN_STEPS 8u

/* An I/O that makes no progress this often in a row is given up: the device is lying. */
#define STALLS_MAX 64u

_Alignas(DIOH_PAGE_BYTES) const uint8_t dioh_zero_pages[DIOH_GAP_PAGES_MAX * DIOH_PAGE_BYTES];

void dioh_transfer_fail(struct dioh_transfer *transfer, const struct dioh_error *err)
{
	if (!transfer->failed)
		transfer->error = *err;
	transfer->failed = true;
	atomic_store(&transfer->cancel, true);
}

/* ---- in-flight bookkeeping ---- */

static void publish_oldest(struct dioh_worker *worker)
{
	const struct dioh_io *oldest = worker->flying.next;

	atomic_store_explicit(&worker->oldest_ns, oldest == &worker->flying ? 0 : oldest->begun_ns, memory_order_relaxed);
}

static void track(struct dioh_worker *worker, struct dioh_io *io)
{
	if (io->stream || io->tracked)
		return;
	io->tracked = true;
	io->prev = worker->flying.prev;
	io->next = &worker->flying;
	io->prev->next = io;
	io->next->prev = io;
	atomic_fetch_add_explicit(&worker->in_flight, 1, memory_order_relaxed);
	publish_oldest(worker);
}

static void untrack(struct dioh_worker *worker, struct dioh_io *io)
{
	if (!io->tracked)
		return;
	io->tracked = false;
	io->prev->next = io->next;
	io->next->prev = io->prev;
	atomic_fetch_sub_explicit(&worker->in_flight, 1, memory_order_relaxed);
	publish_oldest(worker);
}

/* ---- giving I/Os to the engine ---- */

static void put_waiting(struct dioh_worker *worker, struct dioh_io *io)
{
	io->engine_next = NULL;
	*worker->waiting_last = io;
	worker->waiting_last = &io->engine_next;
}

static void offer(struct dioh_worker *worker, struct dioh_io *io)
{
	track(worker, io);
	if (worker->waiting || !worker->engine->ops->queue(worker->engine, io))
		put_waiting(worker, io);
}

static void offer_waiting(struct dioh_worker *worker)
{
	while (worker->waiting) {
		struct dioh_io *io = worker->waiting;
		struct dioh_io *next = io->engine_next;

		if (!worker->engine->ops->queue(worker->engine, io))
			return;
		worker->waiting = next;
		if (!next)
			worker->waiting_last = &worker->waiting;
	}
}

void dioh_worker_submit(struct dioh_worker *worker, struct dioh_transfer *transfer, struct dioh_io *io)
{
	transfer->outstanding++;
	io->begun_ns = dioh_now_ns();
	io->uncached = worker->uncached && !io->stream;
	io->stalls = 0;
	io->tracked = false;
	io->cancelled = false;
	offer(worker, io);
}

void dioh_worker_ask(struct dioh_worker *worker, struct dioh_transfer *transfer, struct dioh_job *job,
                     void (*work)(struct dioh_job *job))
{
	transfer->outstanding++;
	job->handle = work;
	dioh_mailbox_post(&worker->config.control->mailbox, job);
}

void dioh_worker_answer(struct dioh_worker *worker, struct dioh_job *job, void (*handle)(struct dioh_job *job))
{
	job->handle = handle;
	dioh_mailbox_post(&worker->mailbox, job);
}

void dioh_worker_settle(struct dioh_transfer *transfer)
{
	transfer->outstanding--;
}

/* ---- taking them back ---- */

static void advance(struct dioh_io *io, uint64_t bytes)
{
	io->offset += bytes;
	io->bytes -= bytes;
	while (bytes > 0) {
		uint64_t n = dioh_min(bytes, io->iov->iov_len);

		io->iov->iov_base = (char *)io->iov->iov_base + n;
		io->iov->iov_len -= n;
		bytes -= n;
		if (io->iov->iov_len == 0) {
			io->iov++;
			io->iov_count--;
		}
	}
}

/* How far a short image I/O counts: what follows must be aligned again. */
static uint64_t progress_of(const struct dioh_worker *worker, const struct dioh_io *io)
{
	uint64_t n = (uint64_t)io->result;

	return worker->config.direct ? dioh_align_down(n, DIOH_PAGE_BYTES) : n;
}

/* Before Linux 6.14, and on file systems that do not know it. */
static void give_up_uncached(struct dioh_worker *worker, struct dioh_io *io)
{
	io->uncached = false;
	worker->uncached = false;
	worker->write_behind = true;
}

/* 0: again; 1: it is over, io->result says how. */
static int settle_image_io(struct dioh_worker *worker, struct dioh_io *io)
{
	uint64_t progress;

	if (io->result == -EOPNOTSUPP && io->uncached) {
		give_up_uncached(worker, io);
		return 0;
	}
	if (io->result == -EINTR || io->result == -EAGAIN) {
		progress = 0;
	} else if (io->result < 0) {
		if (io->result == -ENODATA) /* the block layer's word for a bad medium; ours is for a read behind the end */
			io->result = -EIO;
		return 1;
	} else if ((uint64_t)io->result >= io->bytes) {
		io->result = 0;
		return 1;
	} else if (io->result == 0) {
		/* A write of nothing: no room. A read of nothing: the image ends here. */
		io->result = io->write ? -ENOSPC : -ENODATA;
		return 1;
	} else {
		progress = progress_of(worker, io);
	}
	io->stalls = progress ? 0 : io->stalls + 1;
	if (io->stalls > STALLS_MAX) {
		/* Part of a page, again and again: a file that ends there. */
		if (io->result >= 0)
			io->result = io->write ? -EIO : -ENODATA;
		return 1;
	}
	advance(io, progress);
	return 0;
}

/* Continued or not, an I/O ends where it was to end. */
static void count_cached(struct dioh_worker *worker, const struct dioh_io *io)
{
	const uint64_t start = io->offset + io->bytes - io->moved;

	if (io->write)
		dioh_writeback_wrote(&worker->writeback, start, io->moved);
	else
		dioh_writeback_read(&worker->writeback, start, io->moved);
}

static bool is_over(struct dioh_worker *worker, struct dioh_io *io)
{
	if (io->result == -ECANCELED && !io->cancelled) {
		io->result = -EAGAIN; /* io_uring has no thread for it (RLIMIT_NPROC): nobody has cancelled it */
		return true;
	}
	if (io->stream)
		return io->cancelled || (io->result != -EINTR && io->result != -EAGAIN);
	return settle_image_io(worker, io) == 1;
}

static void take_back(struct dioh_worker *worker, struct dioh_io *io)
{
	if (!is_over(worker, io)) {
		offer(worker, io);
		return;
	}
	untrack(worker, io);
	if (worker->write_behind && !io->stream && io->result == 0)
		count_cached(worker, io);
	io->done(io);
}

/* Takes an I/O back that the engine has not been given yet. */
static bool withdraw(struct dioh_worker *worker, struct dioh_io *io)
{
	struct dioh_io **link = &worker->waiting;

	while (*link && *link != io)
		link = &(*link)->engine_next;
	if (!*link)
		return false;
	*link = io->engine_next;
	if (worker->waiting_last == &io->engine_next)
		worker->waiting_last = link;
	return true;
}

void dioh_worker_cancel(struct dioh_worker *worker, struct dioh_io *io)
{
	io->cancelled = true;
	if (!withdraw(worker, io)) {
		worker->engine->ops->cancel(worker->engine, io);
		return;
	}
	untrack(worker, io);
	io->result = -ECANCELED;
	io->done(io);
}

/* ---- the loop ---- */

static bool runs(const struct dioh_transfer *transfer)
{
	return !transfer->failed && !transfer->done;
}

static void look_for_cancel(struct dioh_worker *worker)
{
	for (struct dioh_transfer *transfer = worker->transfers; transfer; transfer = transfer->next) {
		struct dioh_error cancelled;

		if (!runs(transfer) || !atomic_load_explicit(&transfer->cancel, memory_order_relaxed))
			continue;
		dioh_error_set(&cancelled, ECANCELED, DIOH_PLACE(CANCEL, SESSION, 0, DIOH_OFFSET_NONE),
		               "transfer %u was cancelled", transfer->id);
		dioh_transfer_fail(transfer, &cancelled);
	}
}

/* Whoever found it: the image is lost, and there is nothing left to save into it. */
static void look_for_sync_error(struct dioh_worker *worker)
{
	const int code = atomic_load_explicit(worker->config.sync_error, memory_order_relaxed);
	struct dioh_error err;

	if (code == 0 || !worker->transfers)
		return;
	dioh_error_errno(&err, code, DIOH_PLACE(SYNC, IMAGE, 0, DIOH_OFFSET_NONE),
	                 "image: writing it back failed, what was written may be lost");
	for (struct dioh_transfer *transfer = worker->transfers; transfer; transfer = transfer->next)
		dioh_transfer_fail(transfer, &err);
}

/* true: there is more to do at once. */
static bool step(struct dioh_transfer *transfer)
{
	enum dioh_step answer = transfer->payload->step(transfer);

	if (transfer->failed)
		return false;
	transfer->done = answer == DIOH_STEP_DONE;
	return answer == DIOH_STEP_MORE;
}

/*
 * Steps every transfer once. Whatever block becomes free next is for the first in the list that can use it; one that
 * has had its turn goes behind all others. true: one has more to do.
 */
static bool step_each(struct dioh_worker *worker)
{
	struct dioh_transfer *served = NULL;
	struct dioh_transfer **served_last = &served;
	struct dioh_transfer **link = &worker->transfers;
	bool more = false;

	while (*link) {
		struct dioh_transfer *transfer = *link;
		bool again = runs(transfer) && step(transfer);

		more |= again;
		if (!again || ++transfer->turn_steps < TURN_STEPS) {
			link = &transfer->next;
			continue;
		}
		transfer->turn_steps = 0;
		*link = transfer->next;
		transfer->next = NULL;
		*served_last = transfer;
		served_last = &transfer->next;
	}
	*link = served;
	return more;
}

/* Steps the transfers in turn. true: there was more to do when the rounds were over. */
static bool step_all(struct dioh_worker *worker)
{
	const uint64_t begun = dioh_now_ns();
	bool more = true;

	for (unsigned i = 0; i < STEPS_PER_ROUND && more && dioh_now_ns() - begun < ROUND_NS; i++) {
		if (dioh_writeback_full(&worker->writeback))
			return false;
		more = step_each(worker);
		worker->engine->ops->submit(worker->engine);
	}
	return more;
}

/* However it came to fail: what waits for a peer would wait for ever. */
static void abandon_failed(struct dioh_worker *worker)
{
	for (struct dioh_transfer *transfer = worker->transfers; transfer; transfer = transfer->next) {
		if (!transfer->failed || transfer->abandoned)
			continue;
		transfer->abandoned = true;
		transfer->payload->abandon(transfer);
	}
}

static void complete(struct dioh_transfer *transfer)
{
	transfer->payload->close(transfer);
	transfer->figures.elapsed_ns = dioh_now_ns() - transfer->begun_ns;
	transfer->job.handle = transfer->completed;
	dioh_mailbox_post(transfer->answers, &transfer->job);
}

static bool complete_ended(struct dioh_worker *worker)
{
	struct dioh_transfer **link = &worker->transfers;
	bool any = false;

	/* Its errors may be this transfer's. */
	if (worker->writeback.running)
		return false;

	while (*link) {
		struct dioh_transfer *transfer = *link;

		if (runs(transfer) || transfer->outstanding > 0) {
			link = &transfer->next;
			continue;
		}
		*link = transfer->next;
		complete(transfer);
		any = true;
	}
	return any;
}

static void count_wait(struct dioh_worker *worker, uint64_t waited_ns)
{
	if (atomic_load_explicit(&worker->in_flight, memory_order_relaxed) == 0)
		return;
	for (struct dioh_transfer *transfer = worker->transfers; transfer; transfer = transfer->next)
		transfer->figures.io_ns += waited_ns;
}

static int run_engine(struct dioh_worker *worker, bool wait)
{
	struct dioh_io *completed = NULL;
	uint64_t begun = wait ? dioh_now_ns() : 0;
	int r;

	r = worker->engine->ops->run(worker->engine, wait, &completed, &worker->broken_error);
	if (r < 0)
		return r;
	if (wait)
		count_wait(worker, dioh_now_ns() - begun);
	while (completed) {
		struct dioh_io *next = completed->engine_next;

		take_back(worker, completed);
		completed = next;
	}
	offer_waiting(worker);
	return 0;
}

/*
 * A ring that is closed lets go of its files some time later, even after the process has gone: a file system could not be
 * unmounted, nor a device be detached, right after us. Emptying the table lets go of them now.
 */
static void close_slots(struct dioh_worker *worker)
{
	for (unsigned slot = 0; slot < DIOH_SLOTS_MAX; slot++)
		worker->engine->ops->close_slot(worker->engine, slot);
}

static void report_broken(struct dioh_worker *worker)
{
	worker->broken_job.handle = worker->config.broken;
	dioh_mailbox_post(worker->config.session, &worker->broken_job);
}

static void *worker_main(void *argument)
{
	struct dioh_worker *worker = argument;

	worker->start_result = worker->engine->ops->start(worker->engine, &worker->start_error);
	pthread_barrier_wait(worker->barrier);
	if (worker->start_result < 0)
		return NULL;
	while (!atomic_load(&worker->stop) || worker->transfers || worker->writeback.running) {
		bool more;

		dioh_mailbox_handle(&worker->mailbox);
		look_for_cancel(worker);
		look_for_sync_error(worker);
		more = step_all(worker);
		abandon_failed(worker);
		/* What has ended may have freed blocks that others wait for. */
		more |= complete_ended(worker);
		if (run_engine(worker, !more) < 0) {
			report_broken(worker);
			return NULL;
		}
	}
	close_slots(worker);
	return NULL;
}

static void begin(struct dioh_job *job)
{
	struct dioh_transfer *transfer = dioh_container_of(job, struct dioh_transfer, job);
	struct dioh_transfer **last = &transfer->worker->transfers;

	while (*last)
		last = &(*last)->next;
	transfer->next = NULL;
	transfer->begun_ns = dioh_now_ns();
	*last = transfer;
}

void dioh_worker_begin(struct dioh_worker *worker, struct dioh_transfer *transfer)
{
	transfer->worker = worker;
	transfer->job.handle = begin;
	dioh_mailbox_post(&worker->mailbox, &transfer->job);
}

/* ---- life ---- */

int dioh_worker_open(struct dioh_worker *worker, const struct dioh_worker_config *config, struct dioh_error *err)
{
	struct dioh_engine_config *slots = &worker->config.slots;
	void *discard;
	int r;

	worker->config = *config;
	worker->waiting_last = &worker->waiting;
	worker->flying.prev = worker->flying.next = &worker->flying;
	worker->uncached = !config->direct && config->cache == DIOH_CACHE_NONE;
	worker->write_behind = !config->direct && config->cache == DIOH_CACHE_KEEP;
	worker->writeback = (struct dioh_writeback){
		.fd = config->slots.fds[DIOH_SLOT_PAGE],
		.known = dioh_writeback_known(config->slots.fds[DIOH_SLOT_PAGE]),
		.drop = config->cache == DIOH_CACHE_NONE,
		.control = &config->control->mailbox,
		.worker = &worker->mailbox,
		.sync_error = config->sync_error,
		.waits_since_ns = config->waits_since_ns,
	};
	r = dioh_mailbox_open(&worker->mailbox, err);
	if (r == 0)
		r = dioh_bufpool_open(&worker->pool, config->block_bytes, config->in_flight, err);
	if (r == 0 && config->fill_buffers)
		dioh_buffers_fill(&worker->pool.buffers);
	if (r < 0)
		return r;
	discard = mmap(NULL, sizeof(dioh_zero_pages), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (discard == MAP_FAILED)
		return dioh_error_errno(err, errno, DIOH_PLACE(SEAL, SESSION, 0, DIOH_OFFSET_NONE), "helper: a buffer");
	worker->discard = discard;
	slots->fds[DIOH_SLOT_WAKE] = worker->mailbox.event_fd;
	slots->depth = (unsigned)dioh_min(dioh_bufpool_ios_max(&worker->pool), 512);
	/* Reads of streams may wait for ever: page I/O must not have to wait behind them. */
	slots->depth = dioh_max(slots->depth, 2 * DIOH_STREAMS_MAX);
	return 0;
}

static void close_engine(struct dioh_worker *worker)
{
	if (worker->engine)
		worker->engine->ops->close(worker->engine);
	worker->engine = NULL;
}

static int open_engines(struct dioh_worker *workers, unsigned count, const struct dioh_engine_ops *engine,
                        struct dioh_error *err)
{
	int r = 0;

	for (unsigned i = 0; i < count && r == 0; i++)
		r = engine->open(&workers[i].config.slots, &workers[i].engine, err);
	for (unsigned i = 0; i < count && r < 0; i++)
		close_engine(&workers[i]);
	return r;
}

int dioh_workers_open_engines(struct dioh_worker *workers, unsigned count, const struct dioh_engine_ops *engine, bool any,
                              struct dioh_error *err)
{
	struct dioh_error why;
	int r;

	do
		r = open_engines(workers, count, engine, &why);
	while (r < 0 && any && (engine = dioh_engine_fall_back(engine, workers->config.direct)));
	if (r < 0)
		*err = why;
	return r;
}

int dioh_worker_start(struct dioh_worker *worker, pthread_barrier_t *barrier, struct dioh_error *err)
{
	int r;

	worker->barrier = barrier;
	r = pthread_create(&worker->thread, NULL, worker_main, worker);
	if (r != 0)
		return dioh_error_errno(err, r, DIOH_PLACE(SEAL, SESSION, 0, DIOH_OFFSET_NONE),
		                        "helper: starting a data worker failed");
	worker->running = true;
	return 0;
}

void dioh_worker_stop(struct dioh_worker *worker)
{
	if (worker->running) {
		atomic_store(&worker->stop, true);
		dioh_mailbox_wake(&worker->mailbox);
		pthread_join(worker->thread, NULL);
		worker->running = false;
	}
	close_engine(worker);
	if (worker->discard)
		munmap(worker->discard, sizeof(dioh_zero_pages));
	worker->discard = NULL;
	dioh_bufpool_close(&worker->pool);
	dioh_mailbox_close(&worker->mailbox);
}
