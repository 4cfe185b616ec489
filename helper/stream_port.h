/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * stream_port.h - a transfer's end of an attached stream: one read or write at a time, of as much as the peer has or takes.
 * Worker thread.
 */
#ifndef DIOH_STREAM_PORT_H
#define DIOH_STREAM_PORT_H

#include "errand.h"
#include "payload.h"

struct dioh_stream_port {
	struct dioh_transfer *transfer;
	uint32_t number; /* the manager's */
	int fd; /* -1: closed */
	unsigned slot;
	bool write;
	bool rests; /* now and then, so that the peer has the pipe for itself */
	uint64_t unrested; /* bytes moved since */
	struct dioh_io *under_way; /* or NULL */
	struct dioh_io io;
	struct iovec iov;
};

void dioh_port_init(struct dioh_stream_port *port, struct dioh_transfer *transfer,
                    const struct dioh_stream_params *params);
/* The same for one of the channels. */
void dioh_port_init_channel(struct dioh_stream_port *port, struct dioh_transfer *transfer,
                            const struct dioh_stream_params *params, unsigned channel);

/* Moves up to `bytes` at `data`; io->owner is the transfer. */
void dioh_port_move(struct dioh_stream_port *port, uint8_t *data, uint64_t bytes, void (*done)(struct dioh_io *io));
/* The same in pieces, whose list stays the caller's and is changed; io->owner is `owner`. */
void dioh_port_move_pieces(struct dioh_stream_port *port, struct iovec *pieces, unsigned count, void *owner,
                           void (*done)(struct dioh_io *io));
/* For `done`, first of all: errors become the transfer's. Answers false if the transfer has failed. */
bool dioh_port_moved(struct dioh_stream_port *port, struct dioh_io *io);

/* What waits for the peer ends soon. */
void dioh_port_abandon(struct dioh_stream_port *port);
/* All has been written: the peer sees the end. If what was written is lost after all, that is the errand's error. */
void dioh_port_ask_close(struct dioh_stream_port *port, struct dioh_errand *errand);
/* The transfer is over, and nothing is under way: closes what is not closed yet. */
void dioh_port_close(struct dioh_stream_port *port);

#endif
