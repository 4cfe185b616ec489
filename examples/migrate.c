/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * migrate.c - the state of the devices as a migration stream without the memory; and, for comparison, all of it by QEMU
 * alone. See vm.h.
 *
 * With the capability x-ignore-shared QEMU lists memory that is shared with others by name, length and address, and
 * neither sends nor reads it: some hundred kilobytes remain. QEMU keeps a capability until somebody takes it back: whoever
 * migrates or saves this guest next, in another way, would get no memory either. So it is off again before the guest runs.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vm.h"

#define ABANDON_TIMEOUT_MS 5000
#define ABANDON_POLL_MS 10

static int ignore_shared_memory(struct hv_vm *vm, bool ignore, struct dioh_error *err)
{
	json_t *arguments = json_pack("{s:[{s:s, s:b}]}", "capabilities", "capability", "x-ignore-shared", "state",
	                              (int)ignore);

	return hv_qmp_command(&vm->qmp, "migrate-set-capabilities", arguments, NULL, err);
}

/* What QEMU was given stays with it until a migration takes it, and one that is refused takes nothing. */
static void take_back(struct hv_vm *vm, const char *name)
{
	(void)hv_qmp_command(&vm->qmp, "closefd", json_pack("{s:s}", "fdname", name), NULL, NULL);
}

/* Hands QEMU the descriptor and has it migrate to or from it. A name that was never used has nothing to replace. */
static int migrate(struct hv_vm *vm, const char *command, int fd, struct dioh_error *err)
{
	char name[HV_NAME_BYTES], address[HV_NAME_BYTES + 3];
	int rc;

	(void)snprintf(name, sizeof(name), "state-%u", ++vm->saves);
	(void)snprintf(address, sizeof(address), "fd:%s", name);
	rc = ignore_shared_memory(vm, true, err);
	if (rc == 0)
		rc = hv_qmp_give_fd(&vm->qmp, name, fd, err);
	if (rc)
		return rc;
	rc = hv_qmp_command(&vm->qmp, command, json_pack("{s:s}", "uri", address), NULL, err);
	if (rc == -EREMOTEIO)
		take_back(vm, name);
	return rc;
}

int hv_migrate_send(struct hv_vm *vm, int fd, struct dioh_error *err)
{
	return migrate(vm, "migrate", fd, err);
}

int hv_migrate_receive(struct hv_vm *vm, int fd, struct dioh_error *err)
{
	return migrate(vm, "migrate-incoming", fd, err);
}

/* In parallel: one thread that reads page after page is several times slower. */
int hv_migrate_load_file(struct hv_vm *vm, const char *path, uint64_t offset, struct dioh_error *err)
{
	json_t *both = json_pack("{s:[{s:s, s:b}, {s:s, s:b}]}", "capabilities", "capability", "mapped-ram", "state", 1,
	                         "capability", "multifd", "state", 1);
	char *address;
	int rc;

	if (asprintf(&address, "file:%s,offset=%llu", path, (unsigned long long)offset) < 0) {
		json_decref(both);
		return hv_fail(err, ENOMEM, "no memory for the image's address");
	}
	rc = hv_qmp_command(&vm->qmp, "migrate-set-capabilities", both, NULL, err);
	if (rc == 0)
		rc = hv_qmp_command(&vm->qmp, "migrate-incoming", json_pack("{s:s}", "uri", address), NULL, err);
	free(address);
	return rc;
}

int hv_migrate_status(struct hv_vm *vm, struct dioh_error *err)
{
	const char *status = NULL, *reason = NULL;
	json_t *result;
	int rc;

	rc = hv_qmp_command(&vm->qmp, "query-migrate", NULL, &result, err);
	if (rc)
		return rc;
	(void)json_unpack(result, "{s?s, s?s}", "status", &status, "error-desc", &reason);
	if (status && !strcmp(status, "completed"))
		rc = 1;
	else if (status && (!strcmp(status, "failed") || !strcmp(status, "cancelled")))
		rc = hv_fail(err, EREMOTEIO, "QEMU could not move the state of its devices: %s", reason ? reason : status);
	json_decref(result);
	return rc;
}

/* True while QEMU is still at it. */
static bool migrating(struct hv_vm *vm, struct dioh_error *err)
{
	const char *status = NULL;
	json_t *result;
	bool yes;

	if (hv_qmp_command(&vm->qmp, "query-migrate", NULL, &result, err))
		return false;
	(void)json_unpack(result, "{s?s}", "status", &status);
	yes = status && strcmp(status, "none") && strcmp(status, "completed") && strcmp(status, "failed") &&
	      strcmp(status, "cancelled");
	json_decref(result);
	return yes;
}

int hv_migrate_end(struct hv_vm *vm, struct dioh_error *err)
{
	return ignore_shared_memory(vm, false, err);
}

int hv_migrate_abandon(struct hv_vm *vm, struct dioh_error *err)
{
	int64_t deadline_ms = hv_now_ms() + ABANDON_TIMEOUT_MS;
	int rc = hv_qmp_command(&vm->qmp, "migrate_cancel", NULL, NULL, err), end;

	while (rc == 0 && migrating(vm, err) && hv_now_ms() < deadline_ms)
		(void)poll(NULL, 0, ABANDON_POLL_MS);
	end = hv_migrate_end(vm, rc ? NULL : err);
	return rc ? rc : end;
}
