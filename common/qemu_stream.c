/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qemu_stream.c - reading what QEMU's migration streams say of guest memory. (Writing: qemu_stream_put.c.)
 *
 * A parser owns its setup and one page; it trusts no byte of its input. gather() brings the next item together and gives
 * it to its handler; a whole item in the input is handled where it lies, so pages are copied only if they come in pieces.
 * The items are in the files that qemu_parser.h names.
 *
 * Called by the mapped-ram layout and the payloads in the sealed helper, by the tests and by fuzzers.
 */
#include "qemu_stream.h"

#include <stdlib.h>

#include "align.h"
#include "qemu_parser.h"

struct dioh_qemu_parser *dioh_qemu_parser_new(enum dioh_qemu_form form, uint64_t start_offset,
                                              struct dioh_error *err)
{
	struct dioh_qemu_parser *p = calloc(1, sizeof(*p));

	if (!p) {
		dioh_error_errno(err, -ENOMEM,
		                 &(const struct dioh_place){ DIOH_OP_PARSE, object(form), 0,
		                                             DIOH_OFFSET_NONE },
		                 "QEMU %s: cannot be parsed", noun(form));
		return NULL;
	}
	p->form = form;
	p->offset = start_offset;
	p->stage = "in the configuration";
	p->setup.configuration = p->configuration;
	dioh_qemu_ending_init(&p->ending);
	expect(p, dioh_qemu_magic, 8);
	return p;
}

void dioh_qemu_parser_free(struct dioh_qemu_parser *parser)
{
	if (!parser)
		return;
	free(parser->setup.blocks);
	free(parser);
}

struct input {
	const uint8_t *bytes;
	size_t count;
};

static void take(struct dioh_qemu_parser *p, struct input *input, size_t count)
{
	input->bytes += count;
	input->count -= count;
	p->offset += count;
}

/* The next item: in the input if it lies there as a whole, else in the parser. NULL: it is not complete. */
static const uint8_t *gather(struct dioh_qemu_parser *p, struct input *input)
{
	const uint8_t *item = input->bytes;
	size_t count = (size_t)dioh_min(p->need - p->have, input->count);

	if (count == 0)
		return NULL;
	take(p, input, count);
	if (count == p->need)
		return item;
	memcpy(&p->buffer[p->have], item, count);
	p->have += count;
	if (p->have < p->need)
		return NULL;
	p->have = 0;
	return p->buffer;
}

static int pass_verbatim(struct dioh_qemu_parser *p, struct input *input,
                         struct dioh_qemu_piece *piece)
{
	size_t count = input->count;

	if (p->in_tail) {
		dioh_qemu_ending_watch(&p->ending, input->bytes, count, p->offset);
	} else {
		count = (size_t)dioh_min(count, p->verbatim_left);
		p->verbatim_left -= count;
	}
	*piece = (struct dioh_qemu_piece){ .event = DIOH_QEMU_VERBATIM,
		                           .bytes = input->bytes,
		                           .count = count };
	take(p, input, count);
	return 1;
}

static int next_piece(struct dioh_qemu_parser *p, struct input *input,
                      struct dioh_qemu_piece *piece, struct dioh_error *err)
{
	int r = 0;

	if (p->sync_due) {
		p->sync_due = false;
		*piece = (struct dioh_qemu_piece){ .event = DIOH_QEMU_SYNC };
		return 0;
	}
	while (r == 0) {
		const uint8_t *item;

		if (input->count > 0 && (p->in_tail || p->verbatim_left > 0))
			return pass_verbatim(p, input, piece);
		item = gather(p, input);
		if (!item) {
			*piece = (struct dioh_qemu_piece){ .event = DIOH_QEMU_MORE };
			return 1;
		}
		r = p->handle(p, item, piece, err);
	}
	if (p->untake) { /* an item of one byte always comes from this input */
		p->untake = false;
		input->bytes--;
		input->count++;
		p->offset--;
	}
	return r;
}

static int give_error(const struct dioh_error *from, struct dioh_error *err)
{
	if (err)
		*err = *from;
	return -from->code;
}

int dioh_qemu_parse(struct dioh_qemu_parser *parser, const uint8_t **bytes, size_t *count,
                    struct dioh_qemu_piece *ret_piece, struct dioh_error *err)
{
	struct input input = { *bytes, *count };
	struct dioh_qemu_piece piece;

	if (parser->error.code != 0)
		return give_error(&parser->error, err);
	if (next_piece(parser, &input, &piece, &parser->error) < 0)
		return give_error(&parser->error, err);
	*bytes = input.bytes;
	*count = input.count;
	*ret_piece = piece;
	return 0;
}

int dioh_qemu_parser_end(const struct dioh_qemu_parser *parser, struct dioh_error *err)
{
	if (parser->error.code != 0)
		return give_error(&parser->error, err);
	if (parser->in_tail && dioh_qemu_ending_may_be(&parser->ending, parser->setup.footers))
		return 0;
	return REFUSE(parser, err, -EBADMSG, parser->offset, "it ends too early, %s%s", parser->stage,
	              parser->in_tail ? ", or something stands behind its end" : "");
}

const struct dioh_qemu_setup *dioh_qemu_parser_setup(const struct dioh_qemu_parser *parser)
{
	return parser->setup_done ? &parser->setup : NULL;
}

bool dioh_qemu_parser_configured(const struct dioh_qemu_parser *parser)
{
	return parser->configured;
}

bool dioh_qemu_parser_in_tail(const struct dioh_qemu_parser *parser)
{
	return parser->in_tail;
}

uint64_t dioh_qemu_parser_offset(const struct dioh_qemu_parser *parser)
{
	return parser->offset;
}
