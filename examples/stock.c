/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * stock.c - what it takes to restore a mapped-ram image where there is no diohelper: a QEMU with memory of its own, two
 * capabilities and the image's address. See save.h.
 *
 * QEMU takes the image's word for everything: nothing is checked but that it ends well.
 */
#include <errno.h>
#include <stdio.h>

#include "save.h"

#define MIGRATION_POLL_MS 20

static int read_machine(struct hv_vm *vm, const char *path, struct dioh_error *err)
{
	struct hv_image image = HV_IMAGE_INIT;
	int rc = hv_image_open_for_load(&image, path, err);

	if (rc == 0 && image.base_offset == 0)
		rc = hv_fail(err, EOPNOTSUPP, "%s: it is no mapped-ram image of dioh-hypervisor: QEMU alone cannot load it", path);
	if (rc == 0)
		rc = hv_image_read_front(&image, &vm->machine, err);
	hv_image_close(&image);
	return rc;
}

int hv_restore_stock(struct hv_vm *vm, const char *path, const struct hv_vm_options *vm_options,
                     struct hv_cancel *cancel, struct dioh_error *err)
{
	int rc = read_machine(vm, path, err);

	if (rc == 0)
		rc = hv_vm_start(vm, vm_options, true, cancel, err);
	if (rc == 0)
		rc = hv_migrate_load_file(vm, path, HV_MAPPED_RAM_OFFSET, err);
	while (rc == 0) {
		rc = hv_migrate_status(vm, err);
		if (rc == 0)
			rc = hv_wait_readable(cancel, -1, MIGRATION_POLL_MS, err);
	}
	return rc < 0 ? rc : hv_vm_cont(vm, err);
}
