/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * libvirt_header.c - reading what libvirt puts in front of QEMU's bytes: 92 bytes, and the domain's XML.
 *
 * Trusts nothing but the lengths its callers give. The XML is scanned, not understood: one walk over its
 * bytes, no recursion, no allocation, nothing expanded. Every function that looks at it moves a `struct
 * scanner` forward and never past its end. Called by the sealed helper, by the tests and by fuzzers.
 */
#include "libvirt_header.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <strings.h>

#define MAGIC_BYTES 16
#define VERSION 2u
#define COUNT_OF(array) (sizeof(array) / sizeof((array)[0]))

struct wire_header { /* in the byte order of the host that wrote it */
	char magic[MAGIC_BYTES];
	uint32_t version;
	uint32_t data_bytes;
	uint32_t was_running;
	uint32_t format;
	uint32_t cookie_offset;
	uint32_t unused[14];
};

_Static_assert(sizeof(struct wire_header) == DIOH_LIBVIRT_HEADER_BYTES, "header");

#define HEADER_AT(field) offsetof(struct wire_header, field)
#define REFUSE(err, code, at, format, ...)                                                         \
	dioh_error_set(err, code, DIOH_PLACE(PARSE, IMAGE, 0, at),                                 \
	               "image: libvirt's header: " format " (byte %zu)", ##__VA_ARGS__, (size_t)(at))

/* ---- the 92 bytes -------------------------------------------------------------------------------- */

bool dioh_libvirt_header_is(const void *bytes, size_t count)
{
	return count >= MAGIC_BYTES &&
	       (memcmp(bytes, DIOH_LIBVIRT_MAGIC_COMPLETE, MAGIC_BYTES) == 0 ||
	        memcmp(bytes, DIOH_LIBVIRT_MAGIC_PARTIAL, MAGIC_BYTES) == 0);
}

static void swap_header(struct wire_header *wire)
{
	wire->version = __builtin_bswap32(wire->version);
	wire->data_bytes = __builtin_bswap32(wire->data_bytes);
	wire->was_running = __builtin_bswap32(wire->was_running);
	wire->format = __builtin_bswap32(wire->format);
	wire->cookie_offset = __builtin_bswap32(wire->cookie_offset);
}

static int check_header(const struct wire_header *wire, uint64_t file_bytes, struct dioh_error *err)
{
	if (wire->version != VERSION)
		return REFUSE(err, -EOPNOTSUPP, HEADER_AT(version),
		              "version %" PRIu32 " is not known here, only %u", wire->version, VERSION);
	if (wire->data_bytes == 0)
		return REFUSE(err, -EBADMSG, HEADER_AT(data_bytes), "it has no XML");
	if (wire->data_bytes > file_bytes - sizeof(*wire))
		return REFUSE(err, -EBADMSG, HEADER_AT(data_bytes),
		              "XML and cookie have %" PRIu32 " bytes, but only %" PRIu64 " follow",
		              wire->data_bytes, file_bytes - sizeof(*wire));
	if (wire->cookie_offset > wire->data_bytes) /* at their end: none, as with 0; libvirt takes it so, too */
		return REFUSE(err, -EBADMSG, HEADER_AT(cookie_offset),
		              "its cookie at %" PRIu32 " lies outside its %" PRIu32 " bytes",
		              wire->cookie_offset, wire->data_bytes);
	if (wire->format > DIOH_LIBVIRT_SPARSE)
		return REFUSE(err, -EOPNOTSUPP, HEADER_AT(format),
		              "format %" PRIu32 " is not known here, only 0 to %u", wire->format,
		              DIOH_LIBVIRT_SPARSE);
	return 0;
}

int dioh_libvirt_header_read(const void *bytes, uint64_t file_bytes,
                             struct dioh_libvirt_header *ret_header, struct dioh_error *err)
{
	struct wire_header wire;
	bool swapped;
	int r;

	if (file_bytes < sizeof(wire))
		return REFUSE(err, -EBADMSG, file_bytes, "it is cut off");
	memcpy(&wire, bytes, sizeof(wire));
	if (!dioh_libvirt_header_is(&wire, sizeof(wire)))
		return REFUSE(err, -EBADMSG, HEADER_AT(magic), "the magic is missing");
	swapped = wire.version == __builtin_bswap32(VERSION);
	if (swapped)
		swap_header(&wire);
	r = check_header(&wire, file_bytes, err);
	if (r < 0)
		return r;
	*ret_header = (struct dioh_libvirt_header){
		.complete = memcmp(wire.magic, DIOH_LIBVIRT_MAGIC_COMPLETE, MAGIC_BYTES) == 0,
		.swapped = swapped,
		.was_running = wire.was_running != 0,
		.format = wire.format,
		.data_bytes = wire.data_bytes,
		.cookie_offset = wire.cookie_offset,
	};
	return 0;
}

/* ---- text that is collected ---------------------------------------------------------------------- */

struct text {
	size_t length;
	bool useless; /* too long, or not XML's */
	char bytes[DIOH_NAME_BYTES];
};

static void text_put(struct text *text, char byte)
{
	if (text->length + 1 < sizeof(text->bytes))
		text->bytes[text->length++] = byte;
	else
		text->useless = true;
}

static void text_put_utf8(struct text *text, uint32_t code)
{
	if (code < 0x80) {
		text_put(text, (char)code);
		return;
	}
	if (code < 0x800) {
		text_put(text, (char)(0xc0 | code >> 6));
	} else {
		if (code < 0x10000) {
			text_put(text, (char)(0xe0 | code >> 12));
		} else {
			text_put(text, (char)(0xf0 | code >> 18));
			text_put(text, (char)(0x80 | (code >> 12 & 0x3f)));
		}
		text_put(text, (char)(0x80 | (code >> 6 & 0x3f)));
	}
	text_put(text, (char)(0x80 | (code & 0x3f)));
}

static int digit_value(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return 16;
}

/* `#65` or `#x41`. 0, which XML does not have, stands for anything else that it does not have. */
static uint32_t character_of(const char *entity, size_t count)
{
	bool hexadecimal = count >= 2 && entity[1] == 'x';
	int base = hexadecimal ? 16 : 10;
	uint32_t code = 0;

	if (count < 1 || entity[0] != '#')
		return 0;
	for (size_t i = hexadecimal ? 2 : 1; i < count; i++) {
		int digit = digit_value(entity[i]);

		if (digit >= base)
			return 0;
		code = code * (uint32_t)base + (uint32_t)digit;
		if (code > 0x10ffff)
			return 0;
	}
	return code >= 0xd800 && code <= 0xdfff ? 0 : code;
}

/* What stands between `&` and `;`. */
static void text_put_entity(struct text *text, const char *entity, size_t count)
{
	static const struct {
		const char *name;
		char byte;
	} entities[] = { { "lt", '<' }, { "gt", '>' }, { "amp", '&' }, { "quot", '"' }, { "apos", '\'' } };
	uint32_t code = character_of(entity, count);

	for (size_t i = 0; i < COUNT_OF(entities); i++)
		if (strlen(entities[i].name) == count && memcmp(entities[i].name, entity, count) == 0)
			code = (unsigned char)entities[i].byte;
	if (code == 0)
		text->useless = true;
	else
		text_put_utf8(text, code);
}

/* Stops at the first byte too many: what is useless stays so. */
static void text_put_raw(struct text *text, const char *bytes, size_t count)
{
	for (size_t i = 0; i < count && !text->useless; i++)
		text_put(text, bytes[i]);
}

static void text_put_decoded(struct text *text, const char *bytes, size_t count)
{
	const char *end = bytes + count;

	while (bytes < end && !text->useless) {
		const char *semicolon = *bytes == '&' ? memchr(bytes, ';', (size_t)(end - bytes)) : NULL;

		if (semicolon) {
			text_put_entity(text, bytes + 1, (size_t)(semicolon - bytes - 1));
			bytes = semicolon + 1;
		} else {
			text->useless = *bytes == '&';
			text_put(text, *bytes++);
		}
	}
}

static bool is_space(char c)
{
	return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

/* Cuts off white space at both ends. */
static void text_trim(struct text *text)
{
	size_t start = 0;

	while (text->length > 0 && is_space(text->bytes[text->length - 1]))
		text->length--;
	while (start < text->length && is_space(text->bytes[start]))
		start++;
	text->length -= start;
	memmove(text->bytes, text->bytes + start, text->length);
}

/* As a string, or an empty one if it does not fit. */
static void text_get(const struct text *text, char *to, size_t room)
{
	size_t length = text->useless || text->length >= room ? 0 : text->length;

	for (size_t i = 0; i < length; i++)
		to[i] = (unsigned char)text->bytes[i] < 0x20 ? '?' : text->bytes[i];
	to[length] = '\0';
}

/* ---- XML ----------------------------------------------------------------------------------------- */

struct scanner {
	const char *at;
	const char *end;
};

enum token_kind {
	TOKEN_TEXT,
	TOKEN_CDATA,
	TOKEN_OPEN,  /* <a b="c"> */
	TOKEN_EMPTY, /* <a b="c"/> */
	TOKEN_CLOSE, /* </a> */
	TOKEN_SKIP,  /* comment, <?...?> */
};

struct token {
	enum token_kind kind;
	const char *bytes; /* the text, or what stands in the tag: name and attributes */
	size_t count;
};

static size_t left(const struct scanner *scanner)
{
	return (size_t)(scanner->end - scanner->at);
}

static bool starts_with(const struct scanner *scanner, const char *word)
{
	size_t count = strlen(word);

	return left(scanner) >= count && memcmp(scanner->at, word, count) == 0;
}

/* From behind `open`, which stands here, up to `close`, which may not come. */
static bool scan_enclosed(struct scanner *scanner, const char *open, const char *close,
                          struct token *token)
{
	const char *end;

	scanner->at += strlen(open);
	end = memmem(scanner->at, left(scanner), close, strlen(close));
	if (!end)
		return false;
	token->bytes = scanner->at;
	token->count = (size_t)(end - scanner->at);
	scanner->at = end + strlen(close);
	return true;
}

/* A tag ends at the first '>' that stands in no quotes. */
static bool scan_tag(struct scanner *scanner, struct token *token)
{
	char quote = '\0';

	token->bytes = ++scanner->at;
	for (; scanner->at < scanner->end; scanner->at++) {
		char c = *scanner->at;

		if (quote != '\0')
			quote = c == quote ? '\0' : quote;
		else if (c == '"' || c == '\'')
			quote = c;
		else if (c == '>')
			break;
	}
	if (scanner->at == scanner->end)
		return false;
	token->count = (size_t)(scanner->at++ - token->bytes);
	token->kind = TOKEN_OPEN;
	if (token->count > 0 && token->bytes[0] == '/') {
		token->kind = TOKEN_CLOSE;
	} else if (token->count > 0 && token->bytes[token->count - 1] == '/') {
		token->kind = TOKEN_EMPTY;
		token->count--;
	}
	return true;
}

/* false: there is nothing more, or nothing that can be followed. Document types are among that: libvirt has none. */
static bool scan_token(struct scanner *scanner, struct token *token)
{
	static const struct {
		const char *open, *close;
		enum token_kind kind;
	} enclosed[] = { { "<!--", "-->", TOKEN_SKIP },
		         { "<![CDATA[", "]]>", TOKEN_CDATA },
		         { "<?", "?>", TOKEN_SKIP } };
	const char *tag;

	if (left(scanner) == 0)
		return false;
	for (size_t i = 0; i < COUNT_OF(enclosed); i++)
		if (starts_with(scanner, enclosed[i].open)) {
			token->kind = enclosed[i].kind;
			return scan_enclosed(scanner, enclosed[i].open, enclosed[i].close, token);
		}
	if (starts_with(scanner, "<!"))
		return false;
	if (*scanner->at == '<')
		return scan_tag(scanner, token);
	tag = memchr(scanner->at, '<', left(scanner));
	token->kind = TOKEN_TEXT;
	token->bytes = scanner->at;
	token->count = tag ? (size_t)(tag - scanner->at) : left(scanner);
	scanner->at += token->count;
	return true;
}

/* The bytes up to a space or '='. */
static struct token scan_word(struct scanner *scanner)
{
	struct token word = { .bytes = scanner->at };

	while (scanner->at < scanner->end && !is_space(*scanner->at) && *scanner->at != '=')
		scanner->at++;
	word.count = (size_t)(scanner->at - word.bytes);
	return word;
}

static void skip_spaces(struct scanner *scanner)
{
	while (scanner->at < scanner->end && is_space(*scanner->at))
		scanner->at++;
}

static bool is_word(const struct token *token, const char *word)
{
	return token->count == strlen(word) && memcmp(token->bytes, word, token->count) == 0;
}

/* name = "value" */
static bool scan_attribute(struct scanner *scanner, struct token *name, struct token *value)
{
	char quote[2] = "";

	skip_spaces(scanner);
	*name = scan_word(scanner);
	skip_spaces(scanner);
	if (!starts_with(scanner, "="))
		return false;
	scanner->at++;
	skip_spaces(scanner);
	if (!starts_with(scanner, "\"") && !starts_with(scanner, "'"))
		return false;
	quote[0] = *scanner->at;
	return scan_enclosed(scanner, quote, quote, value);
}

/* An empty text if the tag does not have it. */
static void read_attribute(const struct token *tag, const char *wanted, struct text *ret_text)
{
	struct scanner scanner = { tag->bytes, tag->bytes + tag->count };
	struct token name, value;

	ret_text->length = 0;
	ret_text->useless = false;
	(void)scan_word(&scanner); /* the tag's name */
	while (scan_attribute(&scanner, &name, &value))
		if (is_word(&name, wanted)) {
			text_put_decoded(ret_text, value.bytes, value.count);
			return;
		}
}

/* ---- the domain ---------------------------------------------------------------------------------- */

/*
 * libvirt's units: KiB if there is none; a letter alone or with "iB" counts in 1024, with "B" in 1000. Case makes no
 * difference. 0: no such unit, or beyond 64 bits.
 */
static uint64_t unit_bytes(const char *unit)
{
	static const char letters[] = "kmgtpe";
	const char *letter;
	uint64_t base, bytes = 1;

	if (unit[0] == '\0')
		return 1024;
	if (strcasecmp(unit, "b") == 0 || strcasecmp(unit, "byte") == 0 || strcasecmp(unit, "bytes") == 0)
		return 1;
	letter = strchr(letters, unit[0] | 0x20); /* lower case; what is no letter becomes none of these */
	if (!letter)
		return 0;
	if (unit[1] == '\0' || strcasecmp(unit + 1, "ib") == 0)
		base = 1024;
	else if (strcasecmp(unit + 1, "b") == 0)
		base = 1000;
	else
		return 0;
	for (const char *at = letters; at <= letter; at++)
		bytes *= base; /* 2^60 at most */
	return bytes;
}

static uint64_t memory_bytes(const char *number, const char *unit)
{
	uint64_t scale = unit_bytes(unit), value = 0, bytes;

	for (; *number >= '0' && *number <= '9'; number++)
		if (__builtin_mul_overflow(value, UINT64_C(10), &value) ||
		    __builtin_add_overflow(value, (uint64_t)(*number - '0'), &value))
			return 0;
	if (*number != '\0' || __builtin_mul_overflow(value, scale, &bytes))
		return 0;
	return bytes;
}

/* The children of the outermost element that are looked for; of several of a kind the first counts, as in libvirt. */
enum child { CHILD_NAME, CHILD_UUID, CHILD_MEMORY, CHILDREN };

struct domain_reader {
	struct dioh_libvirt_domain *domain;
	size_t depth;    /* elements that are open */
	enum child open; /* CHILDREN: none of these */
	bool seen[CHILDREN];
	char unit[16];
	bool unit_useless;
	struct text text;
};

static void child_begins(struct domain_reader *reader, const struct token *tag)
{
	static const char *const names[CHILDREN] = { "name", "uuid", "memory" };
	struct scanner scanner = { tag->bytes, tag->bytes + tag->count };
	const struct token name = scan_word(&scanner);

	reader->open = CHILDREN;
	for (enum child i = 0; i < CHILDREN; i++)
		if (is_word(&name, names[i]) && !reader->seen[i])
			reader->open = i;
	if (reader->open == CHILDREN)
		return;
	reader->seen[reader->open] = true;
	read_attribute(tag, "unit", &reader->text);
	reader->unit_useless = reader->text.useless || reader->text.length >= sizeof(reader->unit);
	text_get(&reader->text, reader->unit, sizeof(reader->unit));
	reader->text.length = 0;
	reader->text.useless = false;
}

static void child_ends(struct domain_reader *reader)
{
	struct dioh_libvirt_domain *domain = reader->domain;
	char number[24]; /* 2^64 has 20 digits */

	switch (reader->open) {
	case CHILD_NAME:
		text_get(&reader->text, domain->name, sizeof(domain->name));
		break;
	case CHILD_UUID:
		text_trim(&reader->text);
		text_get(&reader->text, domain->uuid, sizeof(domain->uuid));
		break;
	case CHILD_MEMORY:
		text_trim(&reader->text);
		text_get(&reader->text, number, sizeof(number));
		if (!reader->unit_useless)
			domain->memory_bytes = memory_bytes(number, reader->unit);
		break;
	case CHILDREN:
		break;
	}
	reader->open = CHILDREN;
}

/* Text counts where it stands in the child itself, not in elements of its own. */
static void take_text(struct domain_reader *reader, const struct token *token)
{
	if (reader->depth != 2 || reader->open == CHILDREN)
		return;
	if (token->kind == TOKEN_CDATA)
		text_put_raw(&reader->text, token->bytes, token->count);
	else
		text_put_decoded(&reader->text, token->bytes, token->count);
}

/* false: the outermost element has ended. */
static bool take_token(struct domain_reader *reader, const struct token *token)
{
	switch (token->kind) {
	case TOKEN_OPEN:
		if (++reader->depth == 2)
			child_begins(reader, token);
		return true;
	case TOKEN_EMPTY:
		if (reader->depth == 1) {
			child_begins(reader, token);
			child_ends(reader);
		}
		return reader->depth > 0;
	case TOKEN_CLOSE:
		if (reader->depth == 2)
			child_ends(reader);
		return reader->depth > 0 && --reader->depth > 0;
	case TOKEN_TEXT:
	case TOKEN_CDATA:
		take_text(reader, token);
		return true;
	case TOKEN_SKIP:
		return true;
	}
	return false;
}

void dioh_libvirt_domain_read(const char *xml, size_t count, struct dioh_libvirt_domain *ret_domain)
{
	const char *nul = memchr(xml, '\0', count);
	struct scanner scanner = { xml, nul ? nul : xml + count };
	struct domain_reader reader = { .domain = ret_domain, .open = CHILDREN };
	struct token token;

	memset(ret_domain, 0, sizeof(*ret_domain));
	while (scan_token(&scanner, &token) && take_token(&reader, &token))
		;
}
