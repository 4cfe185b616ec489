/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "qemu_source.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <unistd.h>

/* How long a session that ends may have to wait for us: the stream is looked at again this often. */
#define LOOK_MS 50

/* All of a setup stays in the buffer, and there is room for more. */
_Static_assert(2 * (DIOH_QEMU_CONFIGURATION_BYTES_MAX + DIOH_QEMU_RAM_START_BYTES +
                    DIOH_REGIONS_MAX * DIOH_QEMU_BLOCK_BYTES_MAX + DIOH_QEMU_SECTION_END_BYTES) < DIOH_QEMU_INPUT_BYTES,
               "a setup fits");

int dioh_qemu_source_open(struct dioh_qemu_source *source, bool multifd, struct dioh_error *err)
{
	source->parser = dioh_qemu_parser_new(multifd ? DIOH_QEMU_MULTIFD : DIOH_QEMU_STREAM, 0, err);
	if (!source->parser)
		return -ENOMEM;
	source->input = malloc(DIOH_QEMU_INPUT_BYTES);
	source->left = source->filled = 0;
	if (source->input)
		return 0;
	dioh_qemu_source_close(source);
	return dioh_error_errno(err, ENOMEM, DIOH_PLACE(NONE, STREAM, 0, DIOH_OFFSET_NONE), "stream: room for its bytes");
}

void dioh_qemu_source_close(struct dioh_qemu_source *source)
{
	dioh_qemu_parser_free(source->parser);
	free(source->input);
	source->parser = NULL;
	source->input = NULL;
}

static int wait_readable(const struct dioh_image_layout *layout, struct dioh_error *err)
{
	const struct dioh_device_state *from = &layout->device_state;
	struct pollfd wait = { .fd = from->fd, .events = POLLIN };

	while (!atomic_load(layout->abandoned)) {
		int n = poll(&wait, 1, LOOK_MS);

		if (n > 0)
			return 0;
		if (n < 0 && errno != EINTR)
			return dioh_error_errno(err, errno, DIOH_PLACE(READ, STREAM, from->stream, DIOH_OFFSET_NONE),
			                        "stream %" PRIu32 ": waiting for it failed", from->stream);
	}
	return dioh_error_set(err, ECANCELED, DIOH_PLACE(CANCEL, STREAM, from->stream, DIOH_OFFSET_NONE),
	                      "CREATE_IMAGE was cancelled while it waited for stream %" PRIu32, from->stream);
}

static int fill(struct dioh_qemu_source *source, const struct dioh_image_layout *layout, struct dioh_error *err)
{
	const struct dioh_device_state *from = &layout->device_state;
	ssize_t n;

	do {
		int r = wait_readable(layout, err);

		if (r < 0)
			return r;
		n = read(from->fd, source->input + source->filled, DIOH_QEMU_INPUT_BYTES - source->filled);
	} while (n < 0 && (errno == EINTR || errno == EAGAIN));
	if (n < 0)
		return dioh_error_errno(err, errno, DIOH_PLACE(READ, STREAM, from->stream, 0), "stream %" PRIu32
		                        ": reading its setup failed", from->stream);
	if (n == 0)
		return dioh_error_set(err, EBADMSG,
		                      DIOH_PLACE(PARSE, STREAM, from->stream, dioh_qemu_parser_offset(source->parser)),
		                      "stream %" PRIu32 ": it ends after %" PRIu64 " bytes, before its RAM setup is complete",
		                      from->stream, dioh_qemu_parser_offset(source->parser));
	source->next = source->input + source->filled;
	source->left = (size_t)n;
	source->filled += (size_t)n;
	return 0;
}

int dioh_qemu_source_read_setup(struct dioh_qemu_source *source, const struct dioh_image_layout *layout,
                                struct dioh_error *err)
{
	struct dioh_qemu_piece piece = { .event = DIOH_QEMU_MORE };

	while (piece.event != DIOH_QEMU_SETUP) {
		int r = source->left == 0 ? fill(source, layout, err) : 0;

		if (r == 0)
			r = dioh_qemu_parse(source->parser, &source->next, &source->left, &piece, err);
		if (r < 0) {
			if (err && err->object == DIOH_OBJECT_STREAM)
				err->number = layout->device_state.stream;
			return r;
		}
	}
	return 0;
}
