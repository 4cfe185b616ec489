/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test_tool_images.c - diohelper-tool on real images: what `inspect` shows, and whether `verify` names exactly the
 * places that were damaged, no more and no fewer. The command line is test-tool.sh's.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cleanup.h"
#include "fixture.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

#define RAM_BYTES (150 * MIB) /* more than two of verify's windows */
#define RAM_DATA_BYTES (140 * MIB)
#define ROM_BYTES (2 * MIB + 5 * DIOH_PAGE_BYTES)
#define STREAM_BYTES (5 * MIB + 1234)
#define CHUNK DIOH_CHUNK_BYTES

struct recipe {
	const char *name; /* of the file */
	uint32_t flags;   /* enum dioh_transfer_flag, of all transfers */
	uint32_t mode;    /* enum dioh_finish_mode */
	uint64_t base_offset;
	const char *region_name;
	const char *header;
	bool unfinished;
};

/* ---- images ---- */

static int make_stream(const char *name, uint64_t bytes)
{
	int fd = open(fixture_path(name), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	assert_true(fd >= 0);
	if (bytes)
		must_fill(fd, 0, bytes, 77);
	assert_true(lseek(fd, 0, SEEK_SET) == 0);
	return fd;
}

static void attach_all(struct dioh_session *session)
{
	DIOH_AUTO_FD int ram = must_memfd("ram", RAM_BYTES, 0);
	DIOH_AUTO_FD int rom = must_memfd("rom", ROM_BYTES, 0);
	DIOH_AUTO_FD int stream = make_stream("source", STREAM_BYTES);
	DIOH_AUTO_FD int empty = make_stream("empty", 0);
	struct dioh_msg_attach_stream_reply info;
	struct dioh_error err;

	must_fill(ram, 0, RAM_DATA_BYTES, 1);
	must_fill(rom, 0, ROM_BYTES, 2);
	must_attach_memory(session, 0, ram, -1);
	must_attach_memory(session, 1, rom, -1);
	must(dioh_attach_stream(session, 0, stream, &info, &err), &err);
	must(dioh_attach_stream(session, 1, empty, &info, &err), &err);
	must_seal(session);
}

static void create(struct dioh_session *session, const struct recipe *recipe)
{
	struct dioh_msg_entry entries[] = {
		region_entry(3, recipe->region_name ? recipe->region_name : "pc.ram", RAM_BYTES),
		region_entry(7, "pc.rom", ROM_BYTES),
		stream_entry(0, "devices"),
		stream_entry(5, "nothing"),
	};
	struct dioh_create_options options = {
		.layout = DIOH_LAYOUT_CONTAINER, .entry_count = COUNT(entries), .entries = entries,
		.header = recipe->header, .header_bytes = recipe->header ? strlen(recipe->header) : 0
	};
	struct dioh_msg_image_reply info;
	struct dioh_error err;

	entries[0].flags = DIOH_ENTRY_GUEST_ADDRESS;
	entries[0].guest_address = UINT64_C(1) << 32;
	must(dioh_create_image(session, &options, &info, &err), &err);
}

static void save_all(struct dioh_session *session, const struct recipe *recipe)
{
	const uint32_t flags = recipe->flags;
	const struct dioh_msg_memory_transfer ram = { .memory = 0, .region = 3, .length = RAM_BYTES, .flags = flags };
	const struct dioh_msg_memory_transfer rom = { .memory = 1, .region = 7, .length = ROM_BYTES, .flags = flags };
	const struct dioh_msg_stream_transfer devices = { .stream = 0, .entry = 0, .flags = flags };
	const struct dioh_msg_stream_transfer nothing = { .stream = 1, .entry = 5, .flags = flags };
	uint32_t ids[4];
	struct dioh_error err;

	must(dioh_save_memory(session, &ram, &ids[0], &err), &err);
	must(dioh_save_memory(session, &rom, &ids[1], &err), &err);
	must(dioh_save_stream(session, &devices, &ids[2], &err), &err);
	must(dioh_save_stream(session, &nothing, &ids[3], &err), &err);
	for (size_t i = 0; i < COUNT(ids); i++)
		must(dioh_wait(session, ids[i], NULL, &err), &err);
}

/* The path is valid until the next image is made. */
static const char *make_image(const struct recipe *recipe)
{
	static char path[4096];
	const struct fixture_image image = { .path = path, .options = { .base_offset = recipe->base_offset } };
	struct dioh_session *session;
	struct dioh_error err;
	uint32_t id;

	snprintf(path, sizeof(path), "%s", fixture_path(recipe->name));
	session = must_session(&image, DIOH_DIRECTION_SAVE);
	attach_all(session);
	create(session, recipe);
	save_all(session, recipe);
	if (!recipe->unfinished) {
		must(dioh_finish(session, recipe->mode, 0, NULL, 0, &id, &err), &err);
		must(dioh_wait(session, id, NULL, &err), &err);
	}
	must_close(session, recipe->unfinished);
	return path;
}

static void flip_bit(const char *path, uint64_t offset)
{
	DIOH_AUTO_FD int fd = open(path, O_RDWR | O_CLOEXEC);
	uint8_t byte;

	assert_int_equal(pread(fd, &byte, 1, (off_t)offset), 1);
	byte ^= 0x10;
	assert_int_equal(pwrite(fd, &byte, 1, (off_t)offset), 1);
}

/* ---- the tool ---- */

static void print_file(const char *path)
{
	FILE *file = fopen(path, "r");
	char line[512];

	while (file && fgets(line, sizeof(line), file))
		fputs(line, stderr);
	if (file)
		fclose(file);
}

/* Runs the tool; its standard output stands in fixture_path("stdout"). */
static void run_tool(int status, const char *arguments, const char *path)
{
	const char *tool = getenv("DIOHELPER_TOOL");
	char command[4096];
	int wait_status;

	snprintf(command, sizeof(command), "LC_ALL=C '%s' %s '%s' >'%s' 2>'%s'", tool ? tool : "build/diohelper-tool",
	         arguments, path, fixture_path("stdout"), fixture_path("stderr"));
	wait_status = system(command);
	assert_true(WIFEXITED(wait_status));
	if (WEXITSTATUS(wait_status) != status) {
		print_file(fixture_path("stderr"));
		fail_msg("%s: exit status %d, expected %d", command, WEXITSTATUS(wait_status), status);
	}
}

static json_t *tool_json(int status, const char *arguments, const char *path)
{
	json_error_t error;
	json_t *root;

	run_tool(status, arguments, path);
	root = json_load_file(fixture_path("stdout"), 0, &error);
	if (!root)
		fail_msg("%s: no JSON: %s", arguments, error.text);
	return root;
}

static const char *tool_text(int status, const char *arguments, const char *path)
{
	static char text[65536];
	DIOH_AUTO_FD int fd = -1;
	ssize_t count;

	run_tool(status, arguments, path);
	fd = open(fixture_path("stdout"), O_RDONLY | O_CLOEXEC);
	count = read(fd, text, sizeof(text) - 1);
	assert_true(count >= 0);
	text[count] = '\0';
	return text;
}

static const char *text_of(json_t *object, const char *key)
{
	const char *text = json_string_value(json_object_get(object, key));

	return text ? text : "(none)";
}

static uint64_t number_of(json_t *object, const char *key)
{
	json_t *value = json_object_get(object, key);

	if (!json_is_integer(value))
		fail_msg("%s is not an integer", key);
	return (uint64_t)json_integer_value(value);
}

/* Where an entry's bytes start in the file. */
static uint64_t place_of(const char *path, const char *kind, size_t index)
{
	json_t *root = tool_json(0, "inspect --json", path);
	uint64_t place = number_of(json_array_get(json_object_get(root, kind), index), "image_offset");

	json_decref(root);
	return place;
}

/* ---- what is right ---- */

static void good_image_is_shown(void **state)
{
	const char *path = make_image(&(const struct recipe){ .name = "good", .header = "{\"machine\": \"q35\"}\n" });
	json_t *root = tool_json(0, "inspect --json", path);
	json_t *ram = json_array_get(json_object_get(root, "regions"), 0);
	json_t *rom = json_array_get(json_object_get(root, "regions"), 1);
	json_t *devices = json_array_get(json_object_get(root, "streams"), 0);
	json_t *nothing = json_array_get(json_object_get(root, "streams"), 1);
	const char *text;

	(void)state;
	assert_string_equal(text_of(root, "layout"), "container");
	assert_string_equal(text_of(root, "state"), "complete");
	assert_true(json_is_true(json_object_get(root, "record")));
	assert_true(json_is_null(json_object_get(root, "libvirt")));
	assert_true(json_is_false(json_object_get(root, "holes_filled")));
	assert_string_equal(text_of(root, "header_text"), "{\"machine\": \"q35\"}\n");
	assert_string_equal(text_of(ram, "name"), "pc.ram");
	assert_int_equal(number_of(ram, "number"), 3);
	assert_int_equal(number_of(ram, "bytes"), RAM_BYTES);
	assert_int_equal(number_of(ram, "present_bytes"), RAM_DATA_BYTES);
	assert_string_equal(text_of(ram, "guest_address"), "0x100000000");
	assert_true(json_is_true(json_object_get(ram, "checksums")));
	assert_true(json_is_false(json_object_get(ram, "in_stream")));
	assert_int_equal(number_of(rom, "present_bytes"), ROM_BYTES);
	assert_true(json_is_null(json_object_get(rom, "guest_address")));
	assert_int_equal(number_of(devices, "bytes"), STREAM_BYTES);
	assert_int_equal(number_of(nothing, "number"), 5);
	assert_int_equal(number_of(nothing, "bytes"), 0);
	json_decref(root);

	text = tool_text(0, "inspect", path);
	assert_non_null(strstr(text, "    {\"machine\": \"q35\"}\n"));
	assert_non_null(strstr(text, "  150.0 MiB    0x100000000  140.0 MiB (93.3%)  yes "));
}

static void good_image_is_verified(void **state)
{
	const char *path = make_image(&(const struct recipe){ .name = "good" });
	json_t *root = tool_json(0, "verify --json", path);

	(void)state;
	assert_string_equal(text_of(root, "result"), "ok");
	assert_int_equal(number_of(root, "checked_bytes"), RAM_DATA_BYTES + ROM_BYTES + STREAM_BYTES);
	assert_int_equal(number_of(json_array_get(json_object_get(root, "regions"), 1), "read_bytes"), ROM_BYTES);
	assert_int_equal(number_of(root, "unchecked"), 0);
	assert_int_equal(json_array_size(json_object_get(root, "damages")), 0);
	json_decref(root);
	assert_non_null(strstr(tool_text(0, "verify", path), ": ok\n"));
	assert_string_equal(tool_text(0, "verify --quiet", path), "");
}

static void base_offset_is_counted(void **state)
{
	const char *path = make_image(&(const struct recipe){ .name = "based", .base_offset = 3 * MIB });
	json_t *root = tool_json(0, "verify --json --base-offset=3M", path);

	(void)state;
	assert_int_equal(number_of(root, "base_offset"), 3 * MIB);
	assert_string_equal(text_of(root, "result"), "ok");
	json_decref(root);
	run_tool(1, "inspect", path);
}

/* ---- what is damaged ---- */

struct place {
	const char *kind;
	uint64_t number;
	uint64_t offset;
	uint64_t bytes; /* 0: null */
};

static void expect_damages(const char *path, const struct place *places, size_t count)
{
	json_t *root = tool_json(1, "verify --json", path);
	json_t *damages = json_object_get(root, "damages");

	assert_string_equal(text_of(root, "result"), "damaged");
	assert_true(json_is_false(json_object_get(root, "damages_stopped")));
	for (size_t i = 0; i < count && i < json_array_size(damages); i++) {
		json_t *damage = json_array_get(damages, i);

		assert_string_equal(text_of(damage, "kind"), places[i].kind);
		assert_int_equal(number_of(damage, "number"), places[i].number);
		assert_int_equal(number_of(damage, "offset"), places[i].offset);
		if (places[i].bytes)
			assert_int_equal(number_of(damage, "bytes"), places[i].bytes);
		else
			assert_true(json_is_null(json_object_get(damage, "bytes")));
	}
	assert_int_equal(json_array_size(damages), count);
	json_decref(root);
}

/* First and last chunk, neighbours, both sides of a window's edge, the last byte of all, and streams between them. */
static void every_damaged_place_is_named(void **state)
{
	static const struct place places[] = {
		{ "region", 3, 0, CHUNK },
		{ "region", 3, 4 * CHUNK, CHUNK },
		{ "region", 3, 5 * CHUNK, CHUNK },
		{ "region", 3, 63 * CHUNK, CHUNK },
		{ "region", 3, 64 * CHUNK, CHUNK },
		{ "region", 3, 139 * CHUNK, CHUNK },
		{ "region", 7, 2 * CHUNK, 5 * DIOH_PAGE_BYTES },
		{ "stream", 0, 3 * CHUNK, 0 },
	};
	const char *path = make_image(&(const struct recipe){ .name = "damaged" });
	const uint64_t ram = place_of(path, "regions", 0);
	const uint64_t rom = place_of(path, "regions", 1);
	const uint64_t devices = place_of(path, "streams", 0);
	const char *text;

	(void)state;
	flip_bit(path, ram);
	flip_bit(path, ram + 4 * CHUNK + 1);
	flip_bit(path, ram + 4 * CHUNK + 777);
	flip_bit(path, ram + 5 * CHUNK);
	flip_bit(path, ram + 64 * CHUNK - 1);
	flip_bit(path, ram + 64 * CHUNK);
	flip_bit(path, ram + RAM_DATA_BYTES - 1);
	flip_bit(path, rom + ROM_BYTES - 1);
	flip_bit(path, devices + 3 * CHUNK + 5);
	flip_bit(path, devices + 4 * CHUNK);
	expect_damages(path, places, COUNT(places));

	text = tool_text(1, "verify --quiet", path);
	assert_non_null(strstr(text, "region 7 \"pc.rom\": damaged at offset 2097152, 20480 bytes: "));
	assert_non_null(strstr(text, "stream 0 \"devices\": damaged from offset 3145728 on: "));
	assert_non_null(strstr(text, ": damaged in 8 places\n"));
}

static void damage_everywhere(void **state)
{
	struct place places[RAM_DATA_BYTES / CHUNK];
	const char *path = make_image(&(const struct recipe){ .name = "ruined" });
	const uint64_t ram = place_of(path, "regions", 0);

	(void)state;
	for (size_t i = 0; i < COUNT(places); i++) {
		places[i] = (struct place){ "region", 3, i * CHUNK, CHUNK };
		flip_bit(path, ram + i * CHUNK + i);
	}
	expect_damages(path, places, COUNT(places));
}

static void damaged_record_is_no_image(void **state)
{
	const char *path = make_image(&(const struct recipe){ .name = "headless" });
	json_t *root;

	(void)state;
	flip_bit(path, 100);
	root = tool_json(1, "verify --json", path);
	assert_string_equal(text_of(root, "result"), "unreadable");
	assert_string_equal(text_of(json_object_get(root, "error"), "object"), "image");
	json_decref(root);
	run_tool(1, "inspect", path);
}

/* ---- what is not finished, or cannot be known ---- */

static void partial_image(void **state)
{
	const char *path = make_image(&(const struct recipe){ .name = "partial", .unfinished = true });
	json_t *root = tool_json(0, "inspect --json", path);
	json_t *ram = json_array_get(json_object_get(root, "regions"), 0);

	(void)state;
	assert_string_equal(text_of(root, "state"), "partial");
	assert_true(json_is_null(json_object_get(ram, "present_bytes")));
	json_decref(root);
	root = tool_json(1, "verify --json", path);
	assert_string_equal(text_of(root, "result"), "partial");
	json_decref(root);
	assert_non_null(strstr(tool_text(1, "verify --quiet", path), ": partial: "));
}

static void written_image(void **state)
{
	const char *path = make_image(&(const struct recipe){ .name = "written", .mode = DIOH_FINISH_WRITTEN });
	json_t *root = tool_json(1, "verify --json", path);

	(void)state;
	assert_string_equal(text_of(root, "result"), "written");
	assert_int_equal(number_of(root, "checked_bytes"), RAM_DATA_BYTES + ROM_BYTES + STREAM_BYTES);
	json_decref(root);
}

static void image_without_checksums(void **state)
{
	static const struct recipe recipe = { .name = "unchecked", .flags = DIOH_TRANSFER_NO_CHECKSUM };
	const char *path = make_image(&recipe);
	json_t *root = tool_json(0, "verify --json", path);
	const char *text;

	(void)state;
	assert_int_equal(number_of(root, "unchecked"), 4);
	assert_int_equal(number_of(root, "checked_bytes"), 0);
	json_decref(root);
	text = tool_text(0, "verify", path);
	assert_non_null(strstr(text, "region 7 \"pc.rom\": not checked"));
	assert_non_null(strstr(text, "stream 0 \"devices\": not checked"));
	assert_null(strstr(text, ": ok\n"));
}

/* ---- what is meant to harm ---- */

static void hostile_text_is_escaped(void **state)
{
	static const struct recipe recipe = {
		.name = "hostile", .region_name = "\xe2\x80\xae" "evil\xff\xc2\x9b" "2J", .header = "\033]0;title\007"
	};
	const char *path = make_image(&recipe);
	const char *text = tool_text(0, "inspect", path);
	json_t *root;

	(void)state;
	assert_non_null(strstr(text, "\\u{202e}evil\\xff\\u{9b}2J"));
	for (const char *c = text; *c; c++)
		assert_true(*c == '\n' || (*c >= 0x20 && *c < 0x7f));
	root = tool_json(0, "inspect --json", path);
	assert_true(json_is_null(json_object_get(root, "header_text")));
	json_decref(root);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(good_image_is_shown),
		cmocka_unit_test(good_image_is_verified),
		cmocka_unit_test(base_offset_is_counted),
		cmocka_unit_test(every_damaged_place_is_named),
		cmocka_unit_test(damage_everywhere),
		cmocka_unit_test(damaged_record_is_no_image),
		cmocka_unit_test(partial_image),
		cmocka_unit_test(written_image),
		cmocka_unit_test(image_without_checksums),
		cmocka_unit_test(hostile_text_is_escaped),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
