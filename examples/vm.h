/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * vm.h - one virtual machine: a QEMU whose memory is a memfd that this program made and keeps (or, for a stock restore,
 * memory of its own).
 */
#ifndef HV_VM_H
#define HV_VM_H

#include "qmp.h"

#define HV_NAME_BYTES 64
#define HV_MEMORY_BYTES_MIN (UINT64_C(8) << 20)
#define HV_MEMORY_BYTES_MAX (UINT64_C(1) << 40)

/* QEMU's name for the memory of a PC, and ours for the region and the stream in an image. */
#define HV_MEMORY_NAME "pc.ram"
#define HV_STATE_NAME "device-state"

/* What a QEMU must be started with so that it is the same machine again. It goes into an image's header. */
struct hv_machine {
	char type[HV_NAME_BYTES];         /* "q35", or with its version, "pc-q35-7.2" */
	char accel[HV_NAME_BYTES];        /* "tcg" or "kvm" */
	char qemu_version[HV_NAME_BYTES]; /* for people */
	uint64_t memory_bytes;
};

struct hv_vm_options {
	const char *qemu;   /* program */
	const char *disk;   /* file, attached read-only */
	const char *serial; /* file to which the first serial port is appended */
};

struct hv_vm {
	struct hv_machine machine;
	int memory_fd; /* -1: QEMU has memory of its own */
	pid_t pid; /* -1: not running */
	struct hv_qmp qmp;
	uint32_t saves; /* how many have been tried: names what is handed to QEMU */
};

#define HV_VM_INIT { .memory_fd = -1, .pid = -1, .qmp = { .fd = -1 } }

/* A memfd for guest memory, of no size yet. */
int hv_memory_create(int *ret_fd, struct dioh_error *err);

/* Gives it its size, for good: nobody, QEMU included, can take pages away from a save any more. */
int hv_memory_size(int fd, uint64_t bytes, struct dioh_error *err);

/*
 * Starts QEMU for vm->machine and vm->memory_fd, which are set, and fills in what it says about itself. The guest does
 * not run yet; `incoming`: it waits for a migration.
 */
int hv_vm_start(struct hv_vm *vm, const struct hv_vm_options *options, bool incoming, struct hv_cancel *cancel,
                struct dioh_error *err);

/* Whether it loads what the layout mapped-ram is made for: QEMU 9 and newer. */
bool hv_vm_knows_mapped_ram(const struct hv_vm *vm);

int hv_vm_stop(struct hv_vm *vm, struct dioh_error *err);
int hv_vm_cont(struct hv_vm *vm, struct dioh_error *err);

/* False once QEMU has ended, on its own or not. Also reaps helpers that outlived their session. */
bool hv_vm_alive(struct hv_vm *vm);

/* Ends QEMU if it runs, and frees what `vm` holds. */
void hv_vm_end(struct hv_vm *vm);

/* ---- migrate.c: the state of the devices, which QEMU sends and reads as a migration without the memory --------- */

/* Begins to send it to `fd`. The guest must be stopped. */
int hv_migrate_send(struct hv_vm *vm, int fd, struct dioh_error *err);

/* Begins to read it from `fd`. QEMU was started with `incoming`; the memory must be there. */
int hv_migrate_receive(struct hv_vm *vm, int fd, struct dioh_error *err);

/* Begins to read state and memory from the file `path`, by itself: a mapped-ram image that starts at `offset`. */
int hv_migrate_load_file(struct hv_vm *vm, const char *path, uint64_t offset, struct dioh_error *err);

/* 1: it is completed. 0: not yet. -EREMOTEIO: it has failed, QEMU's reason in `err`. */
int hv_migrate_status(struct hv_vm *vm, struct dioh_error *err);

/* It is completed: QEMU's next migration is to have the memory in it, unless it is one of these. */
int hv_migrate_end(struct hv_vm *vm, struct dioh_error *err);

/* Ends a sending that may be under way, and waits until the guest may run again. As above then. */
int hv_migrate_abandon(struct hv_vm *vm, struct dioh_error *err);

#endif
