/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qemu_channel.h - one of multifd's channels: its packets' pages are received where their buffers have them, without a copy.
 * A transfer has all channels of a migration, beside the main stream. Worker thread; trusts no byte.
 *
 *      INIT -> { HEAD -> PAGES -> [SYNCED] } ... -> ENDED
 */
#ifndef DIOH_QEMU_CHANNEL_H
#define DIOH_QEMU_CHANNEL_H

#include "multifd_format.h"
#include "page_sink.h"
#include "stream_port.h"

enum dioh_channel_state {
	DIOH_CHANNEL_INIT,
	DIOH_CHANNEL_HEAD,   /* of a packet, or the channel's end */
	DIOH_CHANNEL_PAGES,
	DIOH_CHANNEL_SYNCED, /* nothing is read before dioh_channel_go_on() */
	DIOH_CHANNEL_ENDED,
};

struct dioh_channel_target {
	uint8_t *to;
	struct dioh_sink_chunk *chunk;
};

struct dioh_qemu_channel {
	struct dioh_stream_port port;
	struct dioh_page_sink *sink;
	const struct dioh_qemu_setup *setup;
	const struct dioh_qemu_channel *all; /* it and its siblings */
	unsigned count;
	enum dioh_channel_state state;
	uint64_t offset; /* bytes that have come */
	uint64_t packets;
	uint64_t highest; /* of the packets' numbers */
	struct dioh_multifd_init init;
	struct dioh_multifd_packet packet;
	unsigned placed;   /* of its data pages: have a place */
	unsigned received; /* have come */
	unsigned zeroed;   /* of its zero pages: have been noted */
	size_t partial;    /* bytes of the page that comes */
	size_t have;       /* bytes of `head` */
	uint8_t head[DIOH_MULTIFD_PACKET_BYTES]; /* init or packet; while pages come, the next packet's */
	struct dioh_channel_target targets[DIOH_MULTIFD_PAGES_MAX];
	struct iovec pieces[DIOH_MULTIFD_PAGES_MAX + 1];
};

/* Channel `index` of `all`, which are as many as params->channel_count. */
void dioh_channel_open(struct dioh_qemu_channel *all, unsigned index, struct dioh_page_sink *sink,
                       const struct dioh_qemu_setup *setup, const struct dioh_stream_params *params);
/* Goes on as far as there is room, and has a read under way unless the state or want of room forbids it. */
void dioh_channel_step(struct dioh_qemu_channel *channel);
/* Its siblings and the main stream are synced, too. */
void dioh_channel_go_on(struct dioh_qemu_channel *channel);
/*
 * All have ended. -EBADMSG: the migration had more channels than these: QEMU numbers the packets of all of them from 0 on, and
 * some are missing. (At each sync point every channel has one, so the missing ones are not the last.)
 */
int dioh_channels_check_whole(const struct dioh_qemu_channel *all, struct dioh_error *err);

#endif
