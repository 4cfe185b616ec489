/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * save.c - a running guest becomes an image. See save.h.
 *
 * The order matters:
 *   1. The helper gets all it needs before the guest is stopped: what can go wrong with files does so while the guest
 *      still runs.
 *   2. The guest stops, and QEMU sends the state of its devices through a pipe whose reading end only the helper has.
 *   3. Not before QEMU says that this is completed is the memory saved: devices may write to it until then.
 *   4. The image is finished. Only now does it say that it is complete.
 * From 2 on whatever fails or is cancelled ends in give_up(), which lets the guest run on.
 *
 * The image is created, and what stood there invalidated, at the end of 1 in the layout container. In the layout
 * mapped-ram it is early in 2: such an image is laid out by QEMU's list of its memory, with which the stream begins.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "save.h"

#define MIGRATION_POLL_MS 20
#define CLOSE_TIMEOUT_MS 10000
#define NOTE_BYTES 160

/* The guest is back within a second after a cancel, however slow the disk. */
#define FINISH_CANCEL_MS 300 /* how long a finish may take to say whether it could still be cancelled */
#define CLOSE_QUICKLY_MS 400

/* What the layouts do differently. */
struct layout {
	uint32_t number;      /* enum dioh_layout */
	uint64_t base_offset; /* not 0: our header stands in front of the image, not in it */
	bool wants_stream;    /* its creation waits for the stream's beginning */
};

static const struct layout mapped_ram = { DIOH_LAYOUT_MAPPED_RAM, HV_MAPPED_RAM_OFFSET, true };
static const struct layout container = { DIOH_LAYOUT_CONTAINER, 0, false };

struct save {
	struct hv_vm *vm;
	const struct layout *layout;
	struct hv_image image;
	struct hv_helper helper;
	int pipe[2];
	bool migrating; /* QEMU has been asked to send its state */
	bool stopped;   /* the guest has been asked to stop */
	int64_t stopped_at_ms;
};

/* ---- the image's beginning -------------------------------------------------------------------------------------- */

static int create_with(struct save *save, char *header, struct dioh_error *err)
{
	struct dioh_msg_entry entries[2] = {
		{ .kind = DIOH_ENTRY_REGION, .number = 0, .flags = DIOH_ENTRY_GUEST_ADDRESS,
		  .bytes = save->vm->machine.memory_bytes, .guest_address = 0, .name = HV_MEMORY_NAME },
		{ .kind = DIOH_ENTRY_STREAM, .number = 0, .name = HV_STATE_NAME },
	};
	struct dioh_create_options options = { .layout = save->layout->number, .entry_count = 2, .entries = entries,
		                               .stream = save->layout->wants_stream ? HV_STREAM : 0 };
	int rc;

	if (save->layout->base_offset == 0) {
		options.header = header;
		options.header_bytes = strlen(header);
	}
	rc = hv_helper_create_image(&save->helper, &options, err);
	/* In front: not before what stood there is invalid (of a container no more than its head is left). It becomes
	 * durable with the rest of the file, at the end. */
	if (rc == 0 && save->layout->base_offset)
		rc = hv_image_write_front(&save->image, header, err);
	return rc;
}

static int create_image(struct save *save, struct dioh_error *err)
{
	char *header = hv_header_encode(&save->vm->machine);
	int rc;

	if (!header)
		return hv_fail(err, ENOMEM, "no memory for the image's header");
	hv_helper_stage(&save->helper, "creating the image");
	rc = create_with(save, header, err);
	free(header);
	return rc;
}

/* ---- 1: before the guest is stopped ---------------------------------------------------------------------------- */

static int prepare(struct save *save, const char *path, const struct hv_helper_options *options, struct dioh_error *err)
{
	int rc;

	if (pipe2(save->pipe, O_CLOEXEC))
		return hv_fail(err, errno, "no pipe for the state of the devices: %m");
	rc = hv_image_open_for_save(&save->image, path, err);
	if (rc == 0)
		rc = hv_helper_start(&save->helper, options, DIOH_DIRECTION_SAVE, &save->image, save->vm->memory_fd,
		                     save->pipe[0], err);
	hv_close(&save->pipe[0]); /* QEMU must notice when the helper is gone */
	if (rc == 0 && !save->layout->wants_stream)
		rc = create_image(save, err);
	return rc;
}

/* ---- 2 to 4 ---------------------------------------------------------------------------------------------------- */

static int stop_guest(struct save *save, struct dioh_error *err)
{
	save->stopped = true; /* it may be so even if the answer never comes */
	save->stopped_at_ms = hv_now_ms();
	return hv_vm_stop(save->vm, err);
}

/*
 * A stream that ends too early, or has been refused as none of QEMU's, is all that a helper sees of a migration that QEMU
 * gives up: it knows why.
 */
static int ask_qemu(struct save *save, int code, struct dioh_error *err)
{
	const struct dioh_error helpers = *err;
	struct dioh_error its;

	if (code == -EBADMSG && helpers.object == DIOH_OBJECT_STREAM && hv_migrate_status(save->vm, &its) == -EREMOTEIO)
		(void)snprintf(err->text, sizeof(err->text), "%.120s (%.120s)", its.text, helpers.text);
	return code;
}

static int begin_state(struct save *save, struct dioh_error *err)
{
	int rc;

	save->migrating = true; /* it may be so even if the answer never comes */
	rc = hv_migrate_send(save->vm, save->pipe[1], err);
	hv_close(&save->pipe[1]); /* the stream ends when QEMU closes its own */
	if (rc == 0 && save->layout->wants_stream)
		rc = ask_qemu(save, create_image(save, err), err);
	return rc;
}

/* The state is there when QEMU says so and the helper has seen the end of the stream. */
static int save_state(struct save *save, struct dioh_error *err)
{
	struct dioh_msg_stream_transfer what = hv_whole_stream();
	struct hv_helper *helper = &save->helper;
	int rc;

	hv_helper_stage(helper, "saving the state of the devices");
	rc = dioh_save_stream(helper->session, &what, &helper->state.id, err);
	while (rc == 0) {
		rc = hv_migrate_status(save->vm, err);
		if (rc == 0)
			rc = hv_helper_turn(helper, MIGRATION_POLL_MS, err);
	}
	if (rc < 0)
		return ask_qemu(save, hv_helper_blame(helper, rc, err), err);
	rc = hv_migrate_end(save->vm, err);
	if (rc)
		return rc;
	save->migrating = false;
	return hv_helper_wait(helper, &helper->state, err);
}

static int save_memory(struct save *save, struct dioh_error *err)
{
	struct dioh_msg_memory_transfer what = hv_whole_memory(save->vm->machine.memory_bytes, 0);
	struct hv_helper *helper = &save->helper;
	int rc;

	hv_helper_stage(helper, "saving the memory");
	rc = dioh_save_memory(helper->session, &what, &helper->memory.id, err);
	return rc ? rc : hv_helper_wait(helper, &helper->memory, err);
}

/*
 * Somebody wants a finish to end: it does, or it was too late, and then the image is complete after all. If the disk
 * leaves even that open the guest runs on, and what then becomes of the image is partial or wholly right.
 */
static int cancel_finish(struct save *save, struct dioh_error *err)
{
	struct hv_helper *helper = &save->helper;
	int64_t deadline_ms = hv_now_ms() + FINISH_CANCEL_MS;
	int rc = 0;

	helper->cancel = NULL;
	/* Whatever comes of that: the finish may have ended just before, and the helper with it. Its event is there then. */
	(void)dioh_cancel(helper->session, helper->finish.id, NULL, err);
	while (rc == 0 && !helper->finish.completed && hv_now_ms() < deadline_ms)
		rc = hv_helper_turn(helper, FINISH_CANCEL_MS, err);
	if (rc == 0 && !helper->finish.completed)
		rc = hv_fail(err, ECANCELED, "cancelled");
	return rc;
}

static int finish(struct save *save, struct dioh_error *err)
{
	struct hv_helper *helper = &save->helper;
	int rc;

	hv_helper_stage(helper, "waiting for the disk");
	rc = dioh_finish(helper->session, DIOH_FINISH_DURABLE, 0, NULL, 0, &helper->finish.id, err);
	if (rc)
		return rc;
	rc = hv_helper_wait(helper, &helper->finish, err);
	if (rc == -ECANCELED && !helper->finish.completed)
		rc = cancel_finish(save, err);
	return rc;
}

/* ---- the ends -------------------------------------------------------------------------------------------------- */

/* Worse news than why the save has failed, and somebody has to act on it: it goes first. */
static void tell_of_standstill(const struct dioh_error *why, struct dioh_error *err)
{
	const struct dioh_error failed = *err;

	(void)snprintf(err->text, sizeof(err->text), "the guest stands still (%.100s); the save has failed: %.100s", why->text,
	               failed.text);
}

/*
 * Undoes what was done, in the order that gets the guest going soonest: the helper lets go of the pipe, so QEMU cannot
 * hang in it; QEMU gives its migration up; the guest runs. A helper that still waits for the disk then writes pages
 * that change under it, into an image that nobody will take for complete.
 */
static void give_up(struct save *save, struct dioh_error *err)
{
	struct hv_vm *vm = save->vm;
	struct dioh_error why;

	vm->qmp.cancel = NULL;
	hv_close(&save->pipe[1]);
	(void)hv_helper_close(&save->helper, CLOSE_QUICKLY_MS);
	hv_image_discard(&save->image);
	if (save->migrating)
		(void)hv_migrate_abandon(vm, NULL);
	if (save->stopped && hv_vm_cont(vm, &why) < 0)
		tell_of_standstill(&why, err);
}

static int run_steps(struct save *save, const char *path, const struct hv_helper_options *options,
                     struct dioh_error *err)
{
	int rc = prepare(save, path, options, err);

	if (rc == 0)
		rc = stop_guest(save, err);
	if (rc == 0)
		rc = begin_state(save, err);
	if (rc == 0)
		rc = save_state(save, err);
	if (rc == 0)
		rc = save_memory(save, err);
	if (rc == 0)
		rc = finish(save, err);
	return rc;
}

/* The layout that was asked for, or the one that this QEMU can make sense of; `note` says which, and why. */
static const struct layout *choose_layout(const struct hv_vm *vm, enum hv_layout wanted, char note[NOTE_BYTES])
{
	note[0] = '\0';
	if (wanted == HV_LAYOUT_CONTAINER)
		return &container;
	if (hv_vm_knows_mapped_ram(vm)) {
		(void)snprintf(note, NOTE_BYTES, "\n  layout mapped-ram: a stock QEMU loads it too, file:IMAGE,offset=%u",
		               HV_MAPPED_RAM_OFFSET);
		return &mapped_ram;
	}
	(void)snprintf(note, NOTE_BYTES, "\n  layout container: QEMU %s has no mapped-ram, which came with QEMU 9",
	               vm->machine.qemu_version);
	return &container;
}

int hv_save(struct hv_vm *vm, const char *path, enum hv_layout layout, const struct hv_helper_options *options,
            char summary[HV_SUMMARY_BYTES], struct dioh_error *err)
{
	struct save save = { .vm = vm, .image = HV_IMAGE_INIT, .pipe = { -1, -1 } };
	struct hv_cancel *cancel = vm->qmp.cancel;
	char note[NOTE_BYTES];
	int rc;

	if (vm->memory_fd < 0)
		return hv_fail(err, EOPNOTSUPP, "this guest's memory is QEMU's own: it was restored with --stock");
	save.layout = choose_layout(vm, layout, note);
	save.image.base_offset = save.layout->base_offset;
	rc = run_steps(&save, path, options, err);
	if (rc) {
		give_up(&save, err);
	} else {
		hv_summarize(summary, "saved", &save.helper, hv_now_ms() - save.stopped_at_ms);
		strncat(summary, note, HV_SUMMARY_BYTES - strlen(summary) - 1);
		(void)hv_helper_close(&save.helper, CLOSE_TIMEOUT_MS);
	}
	vm->qmp.cancel = cancel;
	hv_image_close(&save.image);
	return rc;
}
