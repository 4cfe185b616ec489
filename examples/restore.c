/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * restore.c - an image becomes a running guest. See save.h.
 *
 * Memory and stream must be attached before the helper gives its privileges up, and only after that does it read the
 * image. So the memory is attached without a size and gets it when the image has told: transfers look at it anew.
 *
 * The guest runs when all of it is known to be right: the helper checks every byte's checksum on the way, and says so
 * by completing both transfers.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "save.h"

#define MIGRATION_POLL_MS 20
#define CLOSE_TIMEOUT_MS 10000

struct restore {
	struct hv_vm *vm;
	struct hv_image image;
	struct hv_helper helper;
	int pipe[2];
};

static int prepare(struct restore *restore, const char *path, const struct hv_helper_options *options,
                   struct dioh_error *err)
{
	int rc;

	if (pipe2(restore->pipe, O_CLOEXEC))
		return hv_fail(err, errno, "no pipe for the state of the devices: %m");
	rc = hv_image_open_for_load(&restore->image, path, err);
	if (rc == 0)
		rc = hv_memory_create(&restore->vm->memory_fd, err);
	if (rc == 0)
		rc = hv_helper_start(&restore->helper, options, DIOH_DIRECTION_LOAD, &restore->image,
		                     restore->vm->memory_fd, restore->pipe[1], err);
	hv_close(&restore->pipe[1]); /* QEMU must see the end of the stream */
	return rc;
}

/* ---- what the image holds -------------------------------------------------------------------------------------- */

static int read_machine(struct restore *restore, uint64_t header_bytes, struct dioh_error *err)
{
	char header[HV_HEADER_BYTES_MAX];
	uint64_t count;
	int rc;

	if (restore->image.base_offset)
		return hv_image_read_front(&restore->image, &restore->vm->machine, err);
	if (header_bytes > sizeof(header))
		return hv_fail(err, EBADMSG, "the image was not made by dioh-hypervisor");
	rc = dioh_read_header(restore->helper.session, 0, header, header_bytes, &count, err);
	return rc ? rc : hv_header_decode(header, count, &restore->vm->machine, err);
}

/* Region 0 is what we load into the memory. All others, ROMs and such, QEMU must be going to find in the stream. */
static bool expected(const struct dioh_msg_entry *entry, uint64_t bytes)
{
	if (entry->kind == DIOH_ENTRY_STREAM || entry->number != 0)
		return entry->kind == DIOH_ENTRY_STREAM ? entry->number == 0 : entry->flags & DIOH_ENTRY_IN_STREAM;
	return entry->bytes == bytes && !(entry->flags & DIOH_ENTRY_IN_STREAM) &&
	       strcmp(entry->name, HV_MEMORY_NAME) == 0; /* the library lets no name through that has no end */
}

static int check_table(struct restore *restore, uint32_t entry_count, struct dioh_error *err)
{
	const uint64_t bytes = restore->vm->machine.memory_bytes;
	struct dioh_msg_entry entry;
	bool memory = false;
	uint32_t i, count;
	int rc;

	for (i = 0; i < entry_count; i++) {
		rc = dioh_get_table(restore->helper.session, i, 1, &entry, &count, err);
		if (rc)
			return rc;
		if (count != 1 || !expected(&entry, bytes))
			break;
		memory |= entry.kind == DIOH_ENTRY_REGION && entry.number == 0;
	}
	if (i < entry_count || !memory)
		return hv_fail(err, EBADMSG, "the image does not hold the memory and the devices that its header tells of");
	return 0;
}

static int open_image(struct restore *restore, struct dioh_error *err)
{
	struct dioh_open_options options = { .layout = DIOH_LAYOUT_DETECT };
	struct dioh_msg_open_image_reply info;
	int rc;

	hv_helper_stage(&restore->helper, "opening the image");
	rc = dioh_open_image(restore->helper.session, &options, &info, err);
	if (rc)
		return rc;
	if (info.stream_count != 1)
		return hv_fail(err, EBADMSG, "the image was not made by dioh-hypervisor");
	rc = read_machine(restore, info.header_bytes, err);
	return rc ? rc : check_table(restore, info.region_count + info.stream_count, err);
}

/* ---- bringing it back ------------------------------------------------------------------------------------------ */

static int load_memory(struct restore *restore, struct dioh_error *err)
{
	const uint64_t bytes = restore->vm->machine.memory_bytes;
	struct dioh_msg_memory_transfer what = hv_whole_memory(bytes, DIOH_TRANSFER_FRESH);
	struct hv_helper *helper = &restore->helper;
	int rc;

	rc = hv_memory_size(restore->vm->memory_fd, bytes, err);
	if (rc)
		return rc;
	hv_helper_stage(helper, "loading the memory");
	rc = dioh_load_memory(helper->session, &what, &helper->memory.id, err);
	return rc ? rc : hv_helper_wait(helper, &helper->memory, err);
}

static int load_state(struct restore *restore, struct dioh_error *err)
{
	struct dioh_msg_stream_transfer what = hv_whole_stream();
	struct hv_helper *helper = &restore->helper;
	int rc;

	hv_helper_stage(helper, "loading the state of the devices");
	rc = hv_migrate_receive(restore->vm, restore->pipe[0], err);
	hv_close(&restore->pipe[0]); /* the helper must notice when QEMU is gone */
	if (rc == 0)
		rc = dioh_load_stream(helper->session, &what, &helper->state.id, err);
	while (rc == 0) {
		rc = hv_migrate_status(restore->vm, err);
		if (rc == 0)
			rc = hv_helper_turn(helper, MIGRATION_POLL_MS, err);
	}
	if (rc < 0)
		return hv_helper_blame(helper, rc, err);
	rc = hv_migrate_end(restore->vm, err);
	return rc ? rc : hv_helper_wait(helper, &helper->state, err);
}

static int run_steps(struct restore *restore, const char *path, const struct hv_vm_options *vm_options,
                     const struct hv_helper_options *options, struct dioh_error *err)
{
	int rc = prepare(restore, path, options, err);

	if (rc == 0)
		rc = open_image(restore, err);
	if (rc == 0)
		rc = load_memory(restore, err);
	if (rc == 0)
		rc = hv_vm_start(restore->vm, vm_options, true, options->cancel, err);
	if (rc == 0)
		rc = load_state(restore, err);
	if (rc == 0)
		rc = hv_vm_cont(restore->vm, err);
	return rc;
}

int hv_restore(struct hv_vm *vm, const char *path, const struct hv_vm_options *vm_options,
               const struct hv_helper_options *options, char summary[HV_SUMMARY_BYTES], struct dioh_error *err)
{
	struct restore restore = { .vm = vm, .image = HV_IMAGE_INIT, .pipe = { -1, -1 } };
	int rc;

	rc = run_steps(&restore, path, vm_options, options, err);
	if (rc == 0)
		hv_summarize(summary, "restored", &restore.helper, -1);
	/* Nothing runs any more, or nobody wants it: closing is all that a load session needs for an end. */
	(void)hv_helper_close(&restore.helper, CLOSE_TIMEOUT_MS);
	hv_close(&restore.pipe[0]);
	hv_image_close(&restore.image);
	return rc;
}
