/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* engine.c - which engine runs: the one asked for, else the first that this machine permits and has room for. */
#include <errno.h>
#include <stddef.h>

#include "engine.h"
#include "proto.h"

/* In order of preference. */
static const struct dioh_engine_ops *const engines[] = { &dioh_engine_uring, &dioh_engine_libaio,
	                                                &dioh_engine_sync };

#define ENGINES (sizeof(engines) / sizeof(engines[0]))

const struct dioh_engine_ops *dioh_engine_choose(uint32_t wanted, struct dioh_error *err)
{
	for (size_t i = 0; i < ENGINES; i++) {
		int r;

		if (wanted != DIOH_ENGINE_ANY && wanted != engines[i]->id)
			continue;
		r = engines[i]->probe();
		if (r == 0)
			return engines[i];
		if (wanted != DIOH_ENGINE_ANY) {
			dioh_error_set(err, EOPNOTSUPP, DIOH_PLACE(ATTACH, SESSION, 0, DIOH_OFFSET_NONE),
			               "helper: engine %s is not to be had here (sysctl kernel.io_uring_disabled, or a "
			               "container's seccomp filter?): %s", dioh_engine_name(wanted), dioh_error_text(r));
			return NULL;
		}
	}
	dioh_error_set(err, EOPNOTSUPP, DIOH_PLACE(ATTACH, SESSION, 0, DIOH_OFFSET_NONE),
	               "helper: engine %s is not in this build", dioh_engine_name(wanted));
	return NULL;
}

static size_t place_of(uint32_t id)
{
	size_t i = 0;

	while (engines[i]->id != id)
		i++;
	return i;
}

const struct dioh_engine_ops *dioh_engine_find(uint32_t id)
{
	return engines[place_of(id)];
}

bool dioh_engine_suits(uint32_t id, bool direct)
{
	return direct || id != DIOH_ENGINE_LIBAIO;
}

const struct dioh_engine_ops *dioh_engine_fall_back(const struct dioh_engine_ops *failed, bool direct)
{
	for (size_t i = place_of(failed->id) + 1; i < ENGINES; i++)
		if (dioh_engine_suits(engines[i]->id, direct) && engines[i]->probe() == 0)
			return engines[i];
	return NULL;
}
