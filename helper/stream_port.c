/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "stream_port.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <time.h>
#include <unistd.h>

#include "worker.h"

#define REST_NS 100000

void dioh_port_init(struct dioh_stream_port *port, struct dioh_transfer *transfer,
                    const struct dioh_stream_params *params)
{
	port->transfer = transfer;
	port->number = params->stream;
	port->fd = params->fd;
	port->slot = params->slot;
	port->write = !params->save;
	port->rests = params->save && params->large_pipe;
}

/*
 * The two ends of a pipe share a lock: who copies holds it, and the other end spins for it. A save that reads as soon as
 * there is something spends half of its CPU time so. The writer is given the time to fill what has been emptied instead,
 * unless other transfers of this worker would have to wait, too.
 */
static void rest(struct dioh_stream_port *port, const struct dioh_io *io)
{
	const struct timespec time = { .tv_nsec = REST_NS };
	const bool emptied = (uint64_t)io->result < io->bytes;
	const bool alone = !port->transfer->worker->transfers->next;

	port->unrested += (uint64_t)io->result;
	if (!port->rests || !alone || (!emptied && port->unrested < DIOH_PIPE_BYTES))
		return;
	port->unrested = 0;
	(void)ppoll(NULL, 0, &time, NULL);
}

void dioh_port_init_channel(struct dioh_stream_port *port, struct dioh_transfer *transfer,
                            const struct dioh_stream_params *params, unsigned channel)
{
	dioh_port_init(port, transfer, params);
	port->number += 1 + channel;
	port->slot += 1 + channel;
	port->rests = false;
	port->fd = params->channel_fds[channel];
}

void dioh_port_move(struct dioh_stream_port *port, uint8_t *data, uint64_t bytes, void (*done)(struct dioh_io *io))
{
	port->iov = (struct iovec){ data, bytes };
	dioh_port_move_pieces(port, &port->iov, 1, port->transfer, done);
}

void dioh_port_move_pieces(struct dioh_stream_port *port, struct iovec *pieces, unsigned count, void *owner,
                           void (*done)(struct dioh_io *io))
{
	uint64_t bytes = 0;

	for (unsigned i = 0; i < count; i++)
		bytes += pieces[i].iov_len;
	port->io = (struct dioh_io){
		.write = port->write,
		.stream = true,
		.slot = port->slot,
		.iov = pieces,
		.iov_count = count,
		.bytes = bytes,
		.owner = owner,
		.done = done,
	};
	port->under_way = &port->io;
	dioh_worker_submit(port->transfer->worker, port->transfer, &port->io);
}

bool dioh_port_moved(struct dioh_stream_port *port, struct dioh_io *io)
{
	struct dioh_transfer *transfer = port->transfer;
	const uint64_t moved = transfer->figures.total_bytes;
	struct dioh_error err;

	port->under_way = NULL;
	dioh_worker_settle(transfer);
	if (transfer->failed)
		return false;
	if (io->result > 0)
		rest(port, io);
	if (io->result >= 0)
		return true;
	if (io->result == -EPIPE)
		dioh_error_set(&err, EPIPE, DIOH_PLACE(WRITE, STREAM, port->number, moved),
		               "stream %" PRIu32 ": its reader has gone after %" PRIu64 " bytes", port->number, moved);
	else
		dioh_error_errno(&err, (int)io->result,
		                 &(const struct dioh_place){ io->write ? DIOH_OP_WRITE : DIOH_OP_READ, DIOH_OBJECT_STREAM,
		                                             port->number, moved },
		                 "stream %" PRIu32 ": %s after %" PRIu64 " bytes failed", port->number,
		                 io->write ? "write" : "read", moved);
	dioh_transfer_fail(transfer, &err);
	return false;
}

void dioh_port_abandon(struct dioh_stream_port *port)
{
	if (port->under_way)
		dioh_worker_cancel(port->transfer->worker, port->under_way);
}

static void leave_slot(struct dioh_stream_port *port)
{
	struct dioh_io_engine *engine = port->transfer->worker->engine;

	engine->ops->close_slot(engine, port->slot);
}

static void close_written(struct dioh_job *job) /* control-I/O thread */
{
	struct dioh_errand *errand = dioh_container_of(job, struct dioh_errand, job);
	struct dioh_stream_port *port = errand->port;
	const uint64_t moved = port->transfer->figures.total_bytes;

	errand->result = 0;
	if (close(port->fd) < 0)
		errand->result = dioh_error_errno(&errand->error, errno, DIOH_PLACE(WRITE, STREAM, port->number, moved),
		                                  "stream %" PRIu32 ": closing it after %" PRIu64 " bytes failed, what was "
		                                  "written may be lost", port->number, moved);
	port->fd = -1;
	dioh_errand_answer(errand);
}

/*
 * A file system with a server of its own (NFS, FUSE) may tell only now that it could not keep what was written. It may take
 * its time, and a worker that waits for it might be woken by what its ring has to tell: a server that obeys that makes it
 * EINTR.
 */
void dioh_port_ask_close(struct dioh_stream_port *port, struct dioh_errand *errand)
{
	leave_slot(port);
	errand->port = port;
	dioh_errand_ask(errand, close_written);
}

void dioh_port_close(struct dioh_stream_port *port)
{
	if (port->fd < 0)
		return;
	leave_slot(port);
	(void)close(port->fd); /* what was written to it is void, if anything was */
	port->fd = -1;
}
