/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * minimal.c - the smallest manager: saves a memory of 16 MiB into a container, and loads it back into another one. Whoever
 * names the image is trusted, and nobody else: what is in it the helper parses, without privileges.
 *     cc -o minimal minimal.c $(pkg-config --cflags --libs libdiohelper) && ./minimal IMAGE
 */
#define _GNU_SOURCE
#include <diohelper.h>
#include <err.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#define BYTES (16u << 20)
#define MUST(call) ((call) < 0 ? errx(1, "%s", e.text) : (void)0) /* a call that fails has filled `e` with a sentence */

static void run(uint32_t direction, int image_fd, int memory_fd) /* one session: one image, saved or loaded */
{
	struct dioh_image_options image = DIOH_IMAGE_OPTIONS_INIT;
	struct dioh_memory_options memory = DIOH_MEMORY_OPTIONS_INIT;
	struct dioh_msg_entry ram = { .kind = DIOH_ENTRY_REGION, .number = 7, .bytes = BYTES, .name = "ram" };
	struct dioh_create_options create = { .layout = DIOH_LAYOUT_CONTAINER, .entry_count = 1, .entries = &ram };
	struct dioh_msg_memory_transfer all = { .memory = 0, .region = 7, .length = BYTES };
	struct dioh_session *session;
	struct dioh_error e;
	uint32_t id;

	image.direction = direction;
	image.buffered_fd = image_fd; /* alone: by way of the page cache. image.direct_fd: the same file, with O_DIRECT */
	memory.fd = memory_fd;
	MUST(dioh_spawn(NULL, 0, &session, &e));
	MUST(dioh_attach_image(session, &image, NULL, &e));
	MUST(dioh_attach_memory(session, 0, &memory, NULL, &e));
	MUST(dioh_seal(session, DIOH_LAYER_NO_CAPABILITIES, NULL, &e)); /* the helper has no privileges from here on */
	if (direction == DIOH_DIRECTION_SAVE) { /* until finish has completed the image says that it is partial */
		MUST(dioh_create_image(session, &create, NULL, &e));
		MUST(dioh_save_memory(session, &all, &id, &e));
		MUST(dioh_wait(session, id, NULL, &e));
		MUST(dioh_finish(session, DIOH_FINISH_DURABLE, 0, NULL, 0, &id, &e));
	} else { /* every checksum is compared on the way */
		MUST(dioh_open_image(session, &(struct dioh_open_options){ .layout = DIOH_LAYOUT_DETECT }, NULL, &e));
		MUST(dioh_load_memory(session, &all, &id, &e));
	}
	MUST(dioh_wait(session, id, NULL, &e));
	dioh_close(session, -1, NULL);
}

int main(int argc, char **argv)
{
	int image = open(argc == 2 ? argv[1] : "", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	int before = memfd_create("before", MFD_CLOEXEC), after = memfd_create("after", MFD_CLOEXEC);
	char text[7] = "";

	if (image < 0 || ftruncate(before, BYTES) < 0 || ftruncate(after, BYTES) < 0 || pwrite(before, "memory", 7, BYTES / 3) != 7)
		err(1, "%s", argc == 2 ? argv[1] : "usage: minimal IMAGE");
	run(DIOH_DIRECTION_SAVE, image, before);
	run(DIOH_DIRECTION_LOAD, image, after);
	return pread(after, text, 7, BYTES / 3) != 7 || printf("saved and loaded: %.6s\n", text) < 0;
}
