/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * minimal.c - the smallest manager: saves a memory of 16 MiB into a container, and loads it back into another one.
 *
 *     cc -o minimal minimal.c $(pkg-config --cflags --libs libdiohelper)
 *     ./minimal IMAGE
 *
 * It trusts whoever calls it with the image's name, and nobody else: the helper parses the image, without privileges.
 * Every call that fails fills `err` with one sentence, so nothing but that is looked at until the end.
 */
#include <diohelper.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#define MEMORY_BYTES (16u << 20)
#define PLACE (5u << 20)

/* Starts a helper and gives it all it will ever have: the image, and memory number 0. Then it has no privileges left. */
static int start(uint32_t direction, int image_fd, int memory_fd, struct dioh_session **ret_session,
                 struct dioh_error *err)
{
	struct dioh_image_options image = DIOH_IMAGE_OPTIONS_INIT;
	struct dioh_memory_options memory = DIOH_MEMORY_OPTIONS_INIT;
	int rc;

	image.direction = direction;
	image.buffered_fd = image_fd; /* alone: pages go through the page cache. image.direct_fd: the same file, O_DIRECT */
	memory.fd = memory_fd;
	if ((rc = dioh_spawn(NULL, 0, ret_session, err)) < 0)
		return rc;
	if ((rc = dioh_attach_image(*ret_session, &image, NULL, err)) == 0 &&
	    (rc = dioh_attach_memory(*ret_session, 0, &memory, NULL, err)) == 0)
		rc = dioh_seal(*ret_session, DIOH_LAYER_NO_CAPABILITIES, NULL, err);
	return rc;
}

static int save(int image_fd, int memory_fd, struct dioh_error *err)
{
	struct dioh_msg_entry region = { .kind = DIOH_ENTRY_REGION, .number = 7, .bytes = MEMORY_BYTES, .name = "ram" };
	struct dioh_create_options create = { .layout = DIOH_LAYOUT_CONTAINER, .entry_count = 1, .entries = &region };
	struct dioh_msg_memory_transfer all = { .memory = 0, .region = 7, .length = MEMORY_BYTES };
	struct dioh_session *session = NULL;
	uint32_t transfer;
	int rc = start(DIOH_DIRECTION_SAVE, image_fd, memory_fd, &session, err);

	/* From create_image until finish has completed the image says of itself that it is partial. */
	if (rc == 0 && (rc = dioh_create_image(session, &create, NULL, err)) == 0 &&
	    (rc = dioh_save_memory(session, &all, &transfer, err)) == 0 &&
	    (rc = dioh_wait(session, transfer, NULL, err)) == 0 &&
	    (rc = dioh_finish(session, DIOH_FINISH_DURABLE, 0, NULL, 0, &transfer, err)) == 0)
		rc = dioh_wait(session, transfer, NULL, err);
	dioh_close(session, -1, NULL);
	return rc;
}

static int load(int image_fd, int memory_fd, struct dioh_error *err)
{
	struct dioh_open_options open = { .layout = DIOH_LAYOUT_DETECT };
	struct dioh_msg_memory_transfer all = { .memory = 0, .region = 7, .length = MEMORY_BYTES };
	struct dioh_session *session = NULL;
	uint32_t transfer;
	int rc = start(DIOH_DIRECTION_LOAD, image_fd, memory_fd, &session, err);

	/* Every checksum is compared on the way: a load that completes has brought what was saved. */
	if (rc == 0 && (rc = dioh_open_image(session, &open, NULL, err)) == 0 &&
	    (rc = dioh_load_memory(session, &all, &transfer, err)) == 0)
		rc = dioh_wait(session, transfer, NULL, err);
	dioh_close(session, -1, NULL);
	return rc;
}

int main(int argc, char **argv)
{
	struct dioh_error err = { 0 };
	int image = argc == 2 ? open(argv[1], O_RDWR | O_CREAT | O_CLOEXEC, 0600) : -1;
	int before = memfd_create("before", MFD_CLOEXEC), after = memfd_create("after", MFD_CLOEXEC);
	char text[6] = "";

	if (image < 0 || ftruncate(before, MEMORY_BYTES) < 0 || ftruncate(after, MEMORY_BYTES) < 0 ||
	    pwrite(before, "memory", sizeof(text), PLACE) != sizeof(text)) {
		perror(argc == 2 ? argv[1] : "usage: minimal IMAGE");
		return 1;
	}
	if (save(image, before, &err) < 0 || load(image, after, &err) < 0) {
		fprintf(stderr, "minimal: %s\n", err.text);
		return 1;
	}
	if (pread(after, text, sizeof(text), PLACE) != sizeof(text))
		return 1;
	printf("saved and loaded: %.*s\n", (int)sizeof(text), text);
	return 0;
}
