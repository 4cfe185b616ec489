/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * save.h - from a running guest to an image, and back.
 */
#ifndef HV_SAVE_H
#define HV_SAVE_H

#include "helper.h"

#define HV_SUMMARY_BYTES 1024

/*
 * Saves the guest into the file `path`. On success the guest stands still and `summary` says what was moved; only then
 * is the image complete, and durably so. On failure, and when it was cancelled (-ECANCELED), the guest runs on and no
 * image claims to be complete.
 */
int hv_save(struct hv_vm *vm, const char *path, const struct hv_helper_options *options, char summary[HV_SUMMARY_BYTES],
            struct dioh_error *err);

/*
 * Starts a QEMU that goes on where the image's guest was. On success it runs. On failure hv_vm_end() is due, and no
 * instruction of the guest has been executed.
 */
int hv_restore(struct hv_vm *vm, const char *path, const struct hv_vm_options *vm_options,
               const struct hv_helper_options *options, char summary[HV_SUMMARY_BYTES], struct dioh_error *err);

/* summary.c: what was moved, in words. */
void hv_summarize(char summary[HV_SUMMARY_BYTES], const char *what, const struct hv_helper *helper, int64_t stopped_ms);

#endif
