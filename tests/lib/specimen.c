/* SPDX-License-Identifier: LGPL-2.1-or-later */
#define _GNU_SOURCE
#include "specimen.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "align.h"
#include "cleanup.h"
#include "libvirt_header.h"
#include "pattern.h"
#include "qemu_maker.h"

#define MEMORIES 2u
#define REGIONS_MAX (MEMORIES + 1)
#define STREAM 0u
#define STREAM_ENTRY 4u
#define STREAM_BYTES_MAX (UINT64_C(1) << 17)
#define RAW_HEADER_BYTES 512u /* one sector: it is there or it is not */
#define RAW_MARK_BYTES 16u
#define RAW_REGIONS_AT (UINT64_C(16) << 10)
#define HEADER_BYTES SPECIMEN_HEADER_BYTES
#define END_MS 20000

#define die(what) fixture_die(__FILE__, __LINE__, what, strerror(errno))

struct content {
	const char *name[REGIONS_MAX];
	uint64_t bytes[REGIONS_MAX];
	uint64_t stream_bytes; /* raw, container */
	uint64_t device_bytes, zero_page; /* of QEMU's stream; of the block in it */
	int memory[MEMORIES];
	struct qemu_maker qemu;
	/* By layout: what a load gives. */
	uint8_t *stream[DIOH_LAYOUT_MAPPED_RAM + 1];
	uint64_t stream_count[DIOH_LAYOUT_MAPPED_RAM + 1];
};

static struct content contents[SPECIMEN_CONTENTS] = {
	[SPECIMEN_OLD] = { .name = { "old ram", "old rom", "old bios" },
	                   .bytes = { MIB + 5 * PAGE, 7 * PAGE, 3 * PAGE },
	                   .stream_bytes = 12345, .device_bytes = 6001, .zero_page = 1 },
	[SPECIMEN_NEW] = { .name = { "new ram", "new rom", "new bios" },
	                   .bytes = { 2 * MIB + 3 * PAGE, 3 * PAGE, 5 * PAGE },
	                   .stream_bytes = 9001, .device_bytes = 6001, .zero_page = 1 },
	[SPECIMEN_BEGUN] = { .name = { "new ram", "new rom", "new bios" },
	                     .bytes = { 2 * MIB + 3 * PAGE, 3 * PAGE, 5 * PAGE },
	                     .stream_bytes = 20001, .device_bytes = 7003, .zero_page = 3 },
};

static int loaded[MEMORIES] = { -1, -1 };
static int silence = -1;

const char *specimen_verdict_name(enum specimen_verdict verdict)
{
	static const char *const names[] = { "refused", "failed", "the older content", "the newer content", "WRONG" };

	return names[verdict];
}

/* ---- headers ---- */

/* The header as it is in the end (`complete`) or before. */
static uint32_t make_header(uint32_t layout, enum specimen_content content, bool complete, uint8_t *bytes)
{
	static const char *const marks[] = { "specimen old", "specimen new" };
	const uint32_t libvirt[] = { 2, HEADER_BYTES - DIOH_LIBVIRT_HEADER_BYTES, 1, DIOH_LIBVIRT_SPARSE, 0 };
	const uint32_t count = layout == DIOH_LAYOUT_RAW ? RAW_HEADER_BYTES : HEADER_BYTES;

	pattern_fill(bytes, count, 900 + content, 0);
	if (layout == DIOH_LAYOUT_RAW) {
		memcpy(bytes, marks[content], 12);
		memcpy(bytes + 12, complete ? "DONE" : "PART", 4);
	} else if (layout == DIOH_LAYOUT_MAPPED_RAM) {
		memcpy(bytes, complete ? DIOH_LIBVIRT_MAGIC_COMPLETE : DIOH_LIBVIRT_MAGIC_PARTIAL, 16);
		memcpy(bytes + 16, libvirt, sizeof(libvirt));
		memset(bytes + 16 + sizeof(libvirt), 0, DIOH_LIBVIRT_HEADER_BYTES - 16 - sizeof(libvirt));
	}
	return count;
}

/* ---- entries ---- */

static unsigned make_entries(uint32_t layout, const struct content *c, bool save, struct dioh_msg_entry *entries)
{
	uint64_t at = RAW_REGIONS_AT;

	for (unsigned i = 0; i < MEMORIES; i++) {
		entries[i] = region_entry(10 + i, c->name[i], c->bytes[i]);
		entries[i].flags = layout == DIOH_LAYOUT_MAPPED_RAM ? DIOH_ENTRY_GUEST_ADDRESS : 0;
		entries[i].guest_address = layout == DIOH_LAYOUT_MAPPED_RAM ? i * GIB : 0;
		entries[i].image_offset = layout == DIOH_LAYOUT_RAW ? at : 0;
		at += c->bytes[i];
	}
	entries[MEMORIES] = stream_entry(STREAM_ENTRY, "device");
	if (layout == DIOH_LAYOUT_RAW) {
		entries[MEMORIES].image_offset = RAW_HEADER_BYTES;
		entries[MEMORIES].bytes = save ? 0 : c->stream_bytes;
	}
	return MEMORIES + 1;
}

/* ---- contents ---- */

static void make_qemu(struct content *c, uint64_t seed)
{
	struct dioh_qemu_block blocks[REGIONS_MAX] = { 0 };

	for (unsigned i = 0; i < REGIONS_MAX; i++) {
		snprintf(blocks[i].name, sizeof(blocks[i].name), "%s", c->name[i]);
		blocks[i].bytes = c->bytes[i];
		blocks[i].guest_address = i * GIB;
	}
	qemu_start(&c->qemu, blocks, REGIONS_MAX, DIOH_QEMU_IGNORE_SHARED);
	qemu_put_setup(&c->qemu);
	qemu_put_section(&c->qemu, QEMU_PART);
	for (uint64_t page = 0; page < c->bytes[MEMORIES] / PAGE; page++)
		qemu_put_page(&c->qemu, MEMORIES, page, page == c->zero_page ? 0 : seed + page);
	qemu_put_section_end(&c->qemu);
	qemu_put_section(&c->qemu, QEMU_END);
	qemu_put_section_end(&c->qemu);
	qemu_put_device(&c->qemu, 3, c->device_bytes, seed);
	qemu_put_end(&c->qemu);
}

static void make_content(struct content *c, uint64_t seed)
{
	for (unsigned i = 0; i < MEMORIES; i++) {
		c->memory[i] = must_memfd(c->name[i], c->bytes[i], 0);
		must_fill_mixed(c->memory[i], c->bytes[i], 1, 30, seed + i);
	}
	make_qemu(c, seed + 100);
	for (uint32_t layout = DIOH_LAYOUT_RAW; layout <= DIOH_LAYOUT_CONTAINER; layout++) {
		c->stream_count[layout] = c->stream_bytes;
		c->stream[layout] = malloc(c->stream_bytes);
		assert_non_null(c->stream[layout]);
		pattern_fill(c->stream[layout], c->stream_bytes, seed, 0);
	}
}

static void share_first_chunk(void)
{
	static uint8_t chunk[MIB];

	if (pread(contents[SPECIMEN_NEW].memory[0], chunk, sizeof(chunk), 0) != sizeof(chunk) ||
	    pwrite(contents[SPECIMEN_BEGUN].memory[0], chunk, sizeof(chunk), 0) != sizeof(chunk))
		die("memory");
}

/* All of it fits into the pipe. */
static int feed(const struct specimen *s)
{
	const struct content *c = &contents[s->content];
	const bool qemu = s->way.layout == DIOH_LAYOUT_MAPPED_RAM;
	const uint8_t *bytes = qemu ? c->qemu.bytes : c->stream[s->way.layout];
	const size_t count = qemu ? c->qemu.count : c->stream_bytes;
	int ends[2];

	if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) < 0 || write(ends[1], bytes, count) != (ssize_t)count)
		die("pipe");
	close(ends[1]);
	return ends[0];
}

/* ---- sessions ---- */

static int attach_image(struct specimen *s, uint32_t direction, struct dioh_session *session)
{
	const int access = direction == DIOH_DIRECTION_SAVE ? O_RDWR | O_CREAT : O_RDONLY;
	struct dioh_image_options options = DIOH_IMAGE_OPTIONS_INIT;
	struct dioh_msg_attach_image_reply info;
	DIOH_AUTO_FD int buffered = -1;
	DIOH_AUTO_FD int direct = -1;
	DIOH_AUTO_FD int directory = -1;

	if (s->way.fds != WAY_LONE_DIRECT)
		buffered = must_open(s->path, access);
	if (s->way.fds != WAY_LONE_BUFFERED)
		direct = must_open(s->path, access | O_DIRECT);
	if (s->directory && direction == DIOH_DIRECTION_SAVE)
		directory = must_open(s->directory, O_RDONLY | O_DIRECTORY);
	options.buffered_fd = buffered;
	options.direct_fd = direct;
	options.directory_fd = directory;
	options.direction = direction;
	options.engine = s->way.engine;
	options.block_bytes = s->way.block_bytes;
	options.workers = s->way.workers;
	return dioh_attach_image(session, &options, &info, &s->err);
}

static int attach_memories(struct specimen *s, struct dioh_session *session, const int *memories)
{
	struct dioh_memory_options options = DIOH_MEMORY_OPTIONS_INIT;
	struct dioh_msg_attach_memory_reply info;
	int r = 0;

	for (unsigned i = 0; i < MEMORIES && r == 0; i++) {
		options.fd = memories[i];
		r = dioh_attach_memory(session, i, &options, &info, &s->err);
	}
	return r;
}

/* Starts a helper and gives it everything. NULL: s->err. */
static struct dioh_session *begin(struct specimen *s, uint32_t direction, const int *memories, int stream)
{
	struct dioh_spawn_options options = DIOH_SPAWN_OPTIONS_INIT;
	struct dioh_msg_attach_stream_reply info;
	struct dioh_msg_seal_reply sealed;
	struct dioh_session *session;
	int r;

	memset(&s->err, 0, sizeof(s->err));
	s->wait_status = -1;
	s->wrong[0] = '\0';
	if (silence < 0)
		silence = must_open("/dev/null", O_WRONLY);
	options.program = fixture_helper();
	options.stderr_fd = s->messages ? s->messages : silence;
	r = dioh_spawn(&options, 0, &session, &s->err);
	if (r < 0)
		return NULL;
	if (s->watch && direction == DIOH_DIRECTION_SAVE)
		s->watch(SPECIMEN_SPAWNED, dioh_session_pid(session), s->context);
	r = attach_image(s, direction, session);
	if (r == 0)
		r = attach_memories(s, session, memories);
	if (r == 0)
		r = dioh_attach_stream(session, STREAM, stream, &info, &s->err);
	if (r == 0 && s->watch && direction == DIOH_DIRECTION_SAVE)
		s->watch(SPECIMEN_ATTACHED, dioh_session_pid(session), s->context);
	if (r == 0)
		r = dioh_seal(session, 0, &sealed, &s->err);
	if (r == 0)
		return session;
	(void)dioh_close(session, END_MS, &s->wait_status);
	return NULL;
}

/* Whether the helper came to an end of its own. */
static bool end(struct specimen *s, struct dioh_session *session)
{
	int r = dioh_close(session, END_MS, &s->wait_status);

	if (r == 0 && WIFEXITED(s->wait_status) && WEXITSTATUS(s->wait_status) <= 1)
		return true;
	snprintf(s->wrong, sizeof(s->wrong), "the helper does not end, or ended with wait status 0x%x",
	         (unsigned)s->wait_status);
	return false;
}

/* ---- save ---- */

static int reach(struct specimen *s, struct dioh_session *session, enum specimen_step step, int r)
{
	if (r == 0 && s->watch)
		s->watch(step, dioh_session_pid(session), s->context);
	return r == 0 && step == s->leave ? -ECANCELED : r;
}

static int create(struct specimen *s, struct dioh_session *session)
{
	struct dioh_msg_entry entries[MEMORIES + 1];
	uint8_t header[HEADER_BYTES];
	struct dioh_create_options options = { .layout = s->way.layout, .entries = entries, .header = header,
		                               .flags = s->continues ? DIOH_CREATE_CONTINUE : 0 };
	struct dioh_msg_image_reply info;

	options.entry_count = make_entries(s->way.layout, &contents[s->content], true, entries);
	options.header_bytes = make_header(s->way.layout, s->content, false, header);
	return dioh_create_image(session, &options, &info, &s->err);
}

static int save_stream(struct specimen *s, struct dioh_session *session)
{
	const struct dioh_msg_stream_transfer what = { .stream = STREAM, .entry = STREAM_ENTRY };
	uint32_t transfer;
	int r = reach(s, session, SPECIMEN_STREAM_BEGUN, dioh_save_stream(session, &what, &transfer, &s->err));

	return r < 0 ? r : reach(s, session, SPECIMEN_STREAM_SAVED, dioh_wait(session, transfer, NULL, &s->err));
}

static int save_memory(struct specimen *s, struct dioh_session *session, unsigned memory, uint64_t from, uint64_t to,
                       uint32_t *ret_transfer)
{
	const struct dioh_msg_memory_transfer what = { .memory = memory, .region = 10 + memory, .memory_offset = from,
		                                       .region_offset = from, .length = to - from };

	return dioh_save_memory(session, &what, ret_transfer, &s->err);
}

static int begin_with_first_chunk(struct specimen *s, struct dioh_session *session)
{
	uint32_t transfer;
	int r;

	if (s->keeps)
		return dioh_keep_region(session, 10, 0, MIB, &s->err);
	r = save_memory(s, session, 0, 0, MIB, &transfer);
	if (r == 0)
		r = dioh_wait(session, transfer, NULL, &s->err);
	if (r == 0)
		s->sync(s);
	return r;
}

static int save_memories(struct specimen *s, struct dioh_session *session)
{
	const struct content *c = &contents[s->content];
	const bool begins = s->keeps || s->sync;
	uint32_t transfers[MEMORIES];
	int r = begins ? begin_with_first_chunk(s, session) : 0;

	for (unsigned i = 0; i < MEMORIES && r == 0; i++)
		r = save_memory(s, session, i, begins && i == 0 ? MIB : 0, c->bytes[i], &transfers[i]);
	r = reach(s, session, SPECIMEN_MEMORY_BEGUN, r);
	for (unsigned i = 0; i < MEMORIES && r == 0; i++)
		r = dioh_wait(session, transfers[i], NULL, &s->err);
	return reach(s, session, SPECIMEN_MEMORY_SAVED, r);
}

static int finish(struct specimen *s, struct dioh_session *session)
{
	const uint32_t mark_bytes = s->way.layout == DIOH_LAYOUT_CONTAINER ? 0 : RAW_MARK_BYTES;
	uint8_t header[HEADER_BYTES];
	uint32_t transfer;
	int r;

	make_header(s->way.layout, s->content, true, header);
	r = dioh_finish(session, s->mode, 0, header, mark_bytes, &transfer, &s->err);
	r = reach(s, session, SPECIMEN_FINISH_BEGUN, r);
	return r < 0 ? r : reach(s, session, SPECIMEN_FINISHED, dioh_wait(session, transfer, NULL, &s->err));
}

bool specimen_save(struct specimen *s)
{
	const int stream = feed(s);
	struct dioh_session *session = begin(s, DIOH_DIRECTION_SAVE, contents[s->content].memory, stream);
	int r;

	close(stream);
	if (!session)
		return false;
	r = reach(s, session, SPECIMEN_SEALED, 0);
	r = reach(s, session, SPECIMEN_CREATED, r < 0 ? r : create(s, session));
	if (r == 0)
		r = save_stream(s, session);
	if (r == 0)
		r = save_memories(s, session);
	if (r == 0)
		r = finish(s, session);
	(void)end(s, session);
	return r == 0;
}

/* ---- load ---- */

struct look {
	struct specimen *s;
	struct dioh_session *session;
	uint32_t layout;
	const struct content *content; /* what the image says it is */
	int sink;
};

static enum specimen_verdict is_wrong(struct look *look, const char *what)
{
	snprintf(look->s->wrong, sizeof(look->s->wrong), "%s", what);
	return SPECIMEN_WRONG;
}

static enum specimen_verdict worth(enum specimen_content content)
{
	return content == SPECIMEN_NEW ? SPECIMEN_IS_NEW : SPECIMEN_IS_OLD;
}

static enum specimen_verdict has_failed(struct look *look, const char *what)
{
	snprintf(look->s->wrong, sizeof(look->s->wrong), "%s: %.120s", what, look->s->err.text);
	return SPECIMEN_FAILED;
}

/* A raw image's mark is for its manager to read: us. false: it is partial. */
static bool read_raw_mark(const struct specimen *s, struct look *look)
{
	DIOH_AUTO_FD int fd = must_open(s->path, O_RDONLY);
	uint8_t there[RAW_HEADER_BYTES] = { 0 }, header[HEADER_BYTES];

	if (pread(fd, there, sizeof(there), 0) < 0)
		die(s->path);
	look->layout = DIOH_LAYOUT_DETECT;
	for (unsigned i = 0; i < SPECIMEN_BEGUN; i++) {
		make_header(DIOH_LAYOUT_RAW, i, true, header);
		if (memcmp(there, header, sizeof(there)) == 0) {
			look->layout = DIOH_LAYOUT_RAW;
			look->content = &contents[i];
		}
	}
	return look->layout == DIOH_LAYOUT_RAW || memcmp(there, "specimen ", 9) != 0;
}

static int open_image(struct look *look)
{
	struct dioh_open_options options = { .layout = look->layout };
	struct dioh_msg_entry entries[MEMORIES + 1];
	struct dioh_msg_open_image_reply info;
	int r;

	if (look->layout == DIOH_LAYOUT_RAW) {
		options.entry_count = make_entries(DIOH_LAYOUT_RAW, look->content, false, entries);
		options.entries = entries;
		options.header_bytes = RAW_HEADER_BYTES;
	}
	r = dioh_open_image(look->session, &options, &info, &look->s->err);
	if (r == 0)
		look->layout = info.layout;
	return r;
}

/* Whose header it is; SPECIMEN_CONTENTS: nobody's. A raw image has been opened as somebody's already. */
static int find_content(struct look *look, unsigned *ret_which)
{
	const bool is_raw = look->layout == DIOH_LAYOUT_RAW;
	uint8_t there[HEADER_BYTES], header[HEADER_BYTES];
	uint64_t count;
	int r = dioh_read_header(look->session, 0, there, is_raw ? RAW_HEADER_BYTES : HEADER_BYTES, &count, &look->s->err);

	if (r < 0)
		return r;
	for (*ret_which = 0; *ret_which < SPECIMEN_CONTENTS; ++*ret_which) {
		if (is_raw && look->content != &contents[*ret_which])
			continue;
		if (count == make_header(look->layout, *ret_which, true, header) && memcmp(there, header, count) == 0)
			break;
	}
	return 0;
}

static bool stream_is_right(const struct look *look)
{
	static uint8_t bytes[STREAM_BYTES_MAX];
	const uint64_t count = look->content->stream_count[look->layout];

	return must_bytes(look->sink) == count && pread(look->sink, bytes, count, 0) == (ssize_t)count &&
	       memcmp(bytes, look->content->stream[look->layout], count) == 0;
}

static int load_region(struct look *look, unsigned memory, const struct dioh_msg_entry *entry)
{
	const struct dioh_msg_memory_transfer what = { .memory = memory, .region = entry->number, .length = entry->bytes };
	uint32_t transfer;
	int r = dioh_load_memory(look->session, &what, &transfer, &look->s->err);

	return r < 0 ? r : dioh_wait(look->session, transfer, NULL, &look->s->err);
}

static int load_stream(struct look *look)
{
	const struct dioh_msg_stream_transfer what = { .stream = STREAM, .entry = STREAM_ENTRY };
	uint32_t transfer;
	int r = dioh_load_stream(look->session, &what, &transfer, &look->s->err);

	return r < 0 ? r : dioh_wait(look->session, transfer, NULL, &look->s->err);
}

static enum specimen_verdict load_memories(struct look *look, const struct dioh_msg_entry *entries)
{
	for (unsigned i = 0; i < MEMORIES; i++) {
		if (entries[i].bytes != look->content->bytes[i])
			return is_wrong(look, "a region's size");
		if (load_region(look, i, &entries[i]) < 0)
			return has_failed(look, "memory");
		if (!same_range(loaded[i], 0, look->content->memory[i], 0, entries[i].bytes))
			return is_wrong(look, "a byte of memory");
	}
	return SPECIMEN_IS_OLD;
}

/* The image is open: all that it says must be right. */
static enum specimen_verdict compare(struct look *look)
{
	struct dioh_msg_entry entries[REGIONS_MAX + 1];
	enum specimen_verdict verdict;
	uint32_t count;
	unsigned which;

	if (find_content(look, &which) < 0)
		return has_failed(look, "the header");
	if (which == SPECIMEN_CONTENTS)
		return is_wrong(look, "the header");
	look->content = &contents[which];
	if (dioh_get_table(look->session, 0, REGIONS_MAX + 1, entries, &count, &look->s->err) < 0)
		return has_failed(look, "the table");
	if (count != (look->layout == DIOH_LAYOUT_MAPPED_RAM ? 4 : 3) ||
	    strcmp(entries[0].name, look->content->name[0]) != 0 || strcmp(entries[1].name, look->content->name[1]) != 0)
		return is_wrong(look, "the table");
	verdict = load_memories(look, entries);
	if (verdict != SPECIMEN_IS_OLD)
		return verdict;
	if (load_stream(look) < 0)
		return has_failed(look, "the stream");
	if (look->content->stream_count[look->layout] && !stream_is_right(look))
		return is_wrong(look, "a byte of the stream");
	return worth(which);
}

static void spoil_memories(void)
{
	static uint8_t garbage[MIB];
	const uint64_t bytes = contents[SPECIMEN_NEW].bytes[0];

	memset(garbage, 0x5a, sizeof(garbage));
	for (unsigned i = 0; i < MEMORIES; i++) {
		if (loaded[i] < 0)
			loaded[i] = must_memfd("loaded", bytes, 0);
		for (uint64_t at = 0; at < bytes; at += sizeof(garbage))
			if (pwrite(loaded[i], garbage, dioh_min(sizeof(garbage), bytes - at), (off_t)at) < 0)
				die("memory");
	}
}

static enum specimen_verdict look_at(struct look *look, uint32_t layout)
{
	enum specimen_verdict verdict;
	int r;

	look->layout = layout;
	look->content = &contents[look->s->content];
	if (layout == DIOH_LAYOUT_DETECT && !read_raw_mark(look->s, look))
		return SPECIMEN_REFUSED;
	spoil_memories();
	look->sink = must_memfd("sink", 0, 0);
	look->session = begin(look->s, DIOH_DIRECTION_LOAD, loaded, look->sink);
	if (!look->session)
		return SPECIMEN_FAILED;
	r = open_image(look);
	if (r == 0)
		verdict = compare(look);
	else
		verdict = r == -ENODATA || r == -ESTALE || r == -EBADMSG ? SPECIMEN_REFUSED : has_failed(look, "opening");
	return end(look->s, look->session) ? verdict : SPECIMEN_WRONG;
}

enum specimen_verdict specimen_load(struct specimen *s, uint32_t layout)
{
	struct look look = { .s = s, .sink = -1 };
	enum specimen_verdict verdict = look_at(&look, layout);

	if (look.sink >= 0)
		close(look.sink);
	return verdict;
}

/* ---- once ---- */

/* What QEMU gets of its stream is what the first load gives: that it means the same is another test's business. */
static void keep_stream(struct content *c, struct look *look)
{
	const uint64_t count = must_bytes(look->sink);
	uint8_t *bytes = malloc(count + 1);

	assert_non_null(bytes);
	assert_true(count > 6001 + PAGE && count <= STREAM_BYTES_MAX);
	assert_int_equal(pread(look->sink, bytes, count, 0), count);
	c->stream[DIOH_LAYOUT_MAPPED_RAM] = bytes;
	c->stream_count[DIOH_LAYOUT_MAPPED_RAM] = count;
}

static void prove(const char *path, uint32_t layout, enum specimen_content content)
{
	struct specimen s = { .way = { .layout = layout, .fds = WAY_LONE_BUFFERED }, .path = path, .content = content };
	struct look look = { .s = &s, .sink = -1 };

	if (!specimen_save(&s))
		fail_msg("layout %u: a save without any fault: %s", layout, s.err.text);
	if (look_at(&look, DIOH_LAYOUT_DETECT) != worth(content))
		fail_msg("layout %u: a load without any fault: %s %s", layout, s.wrong, s.err.text);
	if (layout == DIOH_LAYOUT_MAPPED_RAM)
		keep_stream(&contents[content], &look);
	close(look.sink);
	if (specimen_load(&s, DIOH_LAYOUT_DETECT) != worth(content))
		fail_msg("layout %u: a second load without any fault: %s %s", layout, s.wrong, s.err.text);
}

int specimen_prepare(void **state)
{
	char path[512];

	(void)state;
	for (unsigned i = 0; i < SPECIMEN_CONTENTS; i++)
		make_content(&contents[i], test_seed() + 1000 * i);
	share_first_chunk();
	snprintf(path, sizeof(path), "%s", fixture_path("specimen"));
	for (unsigned i = 0; i < SPECIMEN_CONTENTS; i++)
		for (uint32_t layout = DIOH_LAYOUT_RAW + (i == SPECIMEN_BEGUN); layout <= DIOH_LAYOUT_MAPPED_RAM; layout++)
			prove(path, layout, i);
	return unlink(path);
}
