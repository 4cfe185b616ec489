/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "qemu_channel.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "align.h"
#include "layout_mapped_ram.h"

static struct dioh_transfer *transfer_of(const struct dioh_qemu_channel *channel)
{
	return channel->port.transfer;
}

static void fail(struct dioh_qemu_channel *channel, struct dioh_error *err)
{
	err->number = channel->port.number;
	dioh_transfer_fail(transfer_of(channel), err);
}

/* ---- what comes ---- */

static void take_pages(struct dioh_qemu_channel *channel, uint64_t *bytes)
{
	while (*bytes > 0 && channel->received < channel->placed) {
		const uint64_t n = dioh_min(*bytes, DIOH_PAGE_BYTES - channel->partial);

		*bytes -= n;
		channel->partial += n;
		if (channel->partial < DIOH_PAGE_BYTES)
			return;
		dioh_sink_filled(channel->targets[channel->received].chunk, 1);
		channel->received++;
		channel->partial = 0;
	}
}

static void end(struct dioh_qemu_channel *channel)
{
	struct dioh_error err;

	if (channel->state == DIOH_CHANNEL_HEAD && channel->have == 0) {
		channel->state = DIOH_CHANNEL_ENDED;
		return;
	}
	dioh_error_set(&err, EBADMSG, DIOH_PLACE(PARSE, STREAM, channel->port.number, channel->offset),
	               "stream %" PRIu32 ": this multifd channel ends too early, after %" PRIu64 " bytes",
	               channel->port.number, channel->offset);
	fail(channel, &err);
}

static void read_done(struct dioh_io *io)
{
	struct dioh_qemu_channel *channel = io->owner;
	struct dioh_transfer *transfer = transfer_of(channel);
	uint64_t bytes;

	if (!dioh_port_moved(&channel->port, io))
		return;
	bytes = (uint64_t)io->result;
	channel->offset += bytes;
	transfer->figures.total_bytes += bytes;
	transfer->figures.data_bytes = transfer->figures.total_bytes;
	atomic_fetch_add_explicit(&transfer->done_bytes, bytes, memory_order_relaxed);
	if (bytes == 0) {
		end(channel);
		return;
	}
	take_pages(channel, &bytes);
	channel->have += bytes;
}

/* ---- what is asked for ---- */

static void add_piece(struct dioh_qemu_channel *channel, unsigned *count, uint8_t *to, size_t bytes)
{
	struct iovec *last = *count ? &channel->pieces[*count - 1] : NULL;

	if (last && (uint8_t *)last->iov_base + last->iov_len == to)
		last->iov_len += bytes;
	else
		channel->pieces[(*count)++] = (struct iovec){ to, bytes };
}

static void read_head(struct dioh_qemu_channel *channel, size_t bytes)
{
	channel->pieces[0] = (struct iovec){ channel->head + channel->have, bytes - channel->have };
	dioh_port_move_pieces(&channel->port, channel->pieces, 1, channel, read_done);
}

/* All pages that have a place; behind the packet's last one the next packet's head. */
static void read_pages(struct dioh_qemu_channel *channel)
{
	unsigned count = 0;

	for (unsigned i = channel->received; i < channel->placed; i++) {
		const size_t skip = i == channel->received ? channel->partial : 0;

		add_piece(channel, &count, channel->targets[i].to + skip, DIOH_PAGE_BYTES - skip);
	}
	if (channel->placed == channel->packet.data_pages)
		channel->pieces[count++] = (struct iovec){ channel->head, sizeof(channel->head) };
	dioh_port_move_pieces(&channel->port, channel->pieces, count, channel, read_done);
}

/* ---- what it means ---- */

static int check_siblings(const struct dioh_qemu_channel *channel, struct dioh_error *err)
{
	const struct dioh_place *place = DIOH_PLACE(PARSE, STREAM, channel->port.number, 0);

	if (channel->init.channel >= channel->count)
		return dioh_error_set(err, EBADMSG, place,
		                      "stream %" PRIu32 ": it calls itself multifd channel %u, and there are %u",
		                      channel->port.number, channel->init.channel, channel->count);
	for (const struct dioh_qemu_channel *other = channel->all; other < channel->all + channel->count; other++) {
		if (other == channel || other->state == DIOH_CHANNEL_INIT)
			continue;
		if (other->init.channel == channel->init.channel)
			return dioh_error_set(err, EBADMSG, place,
			                      "streams %" PRIu32 " and %" PRIu32 " both call themselves multifd channel %u",
			                      other->port.number, channel->port.number, channel->init.channel);
		if (memcmp(other->init.uuid, channel->init.uuid, sizeof(other->init.uuid)) != 0)
			return dioh_error_set(err, EBADMSG, place,
			                      "streams %" PRIu32 " and %" PRIu32 " are multifd channels of two machines",
			                      other->port.number, channel->port.number);
	}
	return 0;
}

static int take_init(struct dioh_qemu_channel *channel, struct dioh_error *err)
{
	int r = dioh_multifd_get_init(channel->head, 0, &channel->init, err);

	if (r == 0)
		r = check_siblings(channel, err);
	channel->state = DIOH_CHANNEL_HEAD;
	channel->have = 0;
	return r;
}

static int take_head(struct dioh_qemu_channel *channel, struct dioh_error *err)
{
	const uint64_t at = channel->offset - DIOH_MULTIFD_PACKET_BYTES;
	const struct dioh_multifd_packet *packet = &channel->packet;
	int r = dioh_multifd_get_packet(channel->head, at, channel->setup, &channel->packet, err);

	if (r == 0 && packet->data_pages + packet->zero_pages > 0)
		r = dioh_mapped_ram_check_in_stream(channel->sink->layout, packet->block, channel->port.number, at, err);
	channel->packets++;
	channel->highest = dioh_max(channel->highest, packet->number);
	channel->state = DIOH_CHANNEL_PAGES;
	channel->have = 0;
	channel->placed = channel->received = channel->zeroed = 0;
	channel->partial = 0;
	return r;
}

static bool place_pages(struct dioh_qemu_channel *channel)
{
	const struct dioh_multifd_packet *packet = &channel->packet;

	while (channel->placed < packet->data_pages) {
		struct dioh_channel_target *target = &channel->targets[channel->placed];

		target->to = dioh_sink_page(channel->sink, packet->block, packet->pages[channel->placed], &target->chunk);
		if (!target->to)
			break;
		channel->placed++;
	}
	while (channel->received == packet->data_pages && channel->zeroed < packet->zero_pages) {
		if (!dioh_sink_zero(channel->sink, packet->block, packet->pages[packet->data_pages + channel->zeroed]))
			return false;
		channel->zeroed++;
	}
	return channel->received == packet->data_pages;
}

/* true: there is more to do at once. */
static bool go_on(struct dioh_qemu_channel *channel, struct dioh_error *err)
{
	switch (channel->state) {
	case DIOH_CHANNEL_INIT:
		if (channel->have == DIOH_MULTIFD_INIT_BYTES)
			return take_init(channel, err) == 0;
		read_head(channel, DIOH_MULTIFD_INIT_BYTES);
		return false;
	case DIOH_CHANNEL_HEAD:
		if (channel->have == DIOH_MULTIFD_PACKET_BYTES)
			return take_head(channel, err) == 0;
		read_head(channel, DIOH_MULTIFD_PACKET_BYTES);
		return false;
	case DIOH_CHANNEL_PAGES:
		if (place_pages(channel)) {
			channel->state = channel->packet.sync ? DIOH_CHANNEL_SYNCED : DIOH_CHANNEL_HEAD;
			return true;
		}
		if (channel->received < channel->placed)
			read_pages(channel);
		return false;
	default:
		return false;
	}
}

void dioh_channel_step(struct dioh_qemu_channel *channel)
{
	struct dioh_error err = { 0 };

	while (!channel->port.under_way && !transfer_of(channel)->failed && go_on(channel, &err))
		;
	if (err.code != 0)
		fail(channel, &err);
}

void dioh_channel_go_on(struct dioh_qemu_channel *channel)
{
	if (channel->state == DIOH_CHANNEL_SYNCED)
		channel->state = DIOH_CHANNEL_HEAD;
}

int dioh_channels_check_whole(const struct dioh_qemu_channel *all, struct dioh_error *err)
{
	uint64_t packets = 0, highest = 0;

	for (const struct dioh_qemu_channel *channel = all; channel < all + all->count; channel++) {
		packets += channel->packets;
		highest = dioh_max(highest, channel->highest);
	}
	if (packets > highest) /* more of them: QEMU before 9.0 may give a number twice, in place of another */
		return 0;
	return dioh_error_set(err, EBADMSG, DIOH_PLACE(PARSE, STREAM, all->port.number, all->offset),
	                      "stream %" PRIu32 " and the other multifd channels: %" PRIu64 " packets have come, and one calls "
	                      "itself number %" PRIu64 ": were all of QEMU's channels attached (multifd-channels)?",
	                      all->port.number, packets, highest);
}

void dioh_channel_open(struct dioh_qemu_channel *all, unsigned index, struct dioh_page_sink *sink,
                       const struct dioh_qemu_setup *setup, const struct dioh_stream_params *params)
{
	struct dioh_qemu_channel *channel = &all[index];

	dioh_port_init_channel(&channel->port, sink->transfer, params, index);
	channel->sink = sink;
	channel->setup = setup;
	channel->all = all;
	channel->count = params->channel_count;
}
