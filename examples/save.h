/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * save.h - from a running guest to an image, and back.
 */
#ifndef HV_SAVE_H
#define HV_SAVE_H

#include "helper.h"

#define HV_SUMMARY_BYTES 1024

/* How an image is laid out; a restore finds out by itself. */
enum hv_layout {
	HV_LAYOUT_MAPPED_RAM, /* QEMU's own format behind a header of ours: a stock QEMU loads it */
	HV_LAYOUT_CONTAINER,
};

/*
 * Saves the guest into the file `path`. On success the guest stands still and `summary` says what was moved; only then
 * is the image complete, and durably so. On failure, and when it was cancelled (-ECANCELED), the guest runs on (if QEMU
 * does not let it, the error begins with that) and no image claims to be complete.
 */
int hv_save(struct hv_vm *vm, const char *path, enum hv_layout layout, const struct hv_helper_options *options,
            char summary[HV_SUMMARY_BYTES], struct dioh_error *err);

/*
 * Starts a QEMU that goes on where the image's guest was. On success it runs. On failure hv_vm_end() is due, and no
 * instruction of the guest has been executed.
 */
int hv_restore(struct hv_vm *vm, const char *path, const struct hv_vm_options *vm_options,
               const struct hv_helper_options *options, char summary[HV_SUMMARY_BYTES], struct dioh_error *err);

/* stock.c: the same by QEMU alone, without diohelper. The memory is then QEMU's own, and the guest cannot be saved. */
int hv_restore_stock(struct hv_vm *vm, const char *path, const struct hv_vm_options *vm_options,
                     struct hv_cancel *cancel, struct dioh_error *err);

/* summary.c: what was moved, in words. */
void hv_summarize(char summary[HV_SUMMARY_BYTES], const char *what, const struct hv_helper *helper, int64_t stopped_ms);

#endif
