/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * names.c - the protocol's numbers as words, for sentences and for machines (JSON). Tables only; any number may be
 * asked for. Declared in proto.h.
 */
#include "proto.h"

#include <stddef.h>

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static const char *const messages[] = {
	[DIOH_MSG_HELLO] = "HELLO",
	[DIOH_MSG_ATTACH_IMAGE] = "ATTACH_IMAGE",
	[DIOH_MSG_ATTACH_MEMORY] = "ATTACH_MEMORY",
	[DIOH_MSG_ATTACH_STREAM] = "ATTACH_STREAM",
	[DIOH_MSG_SEAL] = "SEAL",
	[DIOH_MSG_CREATE_IMAGE] = "CREATE_IMAGE",
	[DIOH_MSG_PUT_TABLE] = "PUT_TABLE",
	[DIOH_MSG_WRITE_HEADER] = "WRITE_HEADER",
	[DIOH_MSG_OPEN_IMAGE] = "OPEN_IMAGE",
	[DIOH_MSG_GET_TABLE] = "GET_TABLE",
	[DIOH_MSG_READ_HEADER] = "READ_HEADER",
	[DIOH_MSG_SAVE_MEMORY] = "SAVE_MEMORY",
	[DIOH_MSG_LOAD_MEMORY] = "LOAD_MEMORY",
	[DIOH_MSG_SAVE_STREAM] = "SAVE_STREAM",
	[DIOH_MSG_LOAD_STREAM] = "LOAD_STREAM",
	[DIOH_MSG_STATUS] = "STATUS",
	[DIOH_MSG_CANCEL] = "CANCEL",
	[DIOH_MSG_FINISH] = "FINISH",
	[DIOH_MSG_READ_BITMAP] = "READ_BITMAP",
	[DIOH_MSG_KEEP_REGION] = "KEEP_REGION",
	[DIOH_MSG_PROGRESS] = "PROGRESS",
	[DIOH_MSG_COMPLETE] = "COMPLETE",
	[DIOH_MSG_STUCK] = "STUCK",
	[DIOH_MSG_BROKEN] = "BROKEN",
};

static const char *const engines[] = {
	[DIOH_ENGINE_ANY] = "any",
	[DIOH_ENGINE_IO_URING] = "io_uring",
	[DIOH_ENGINE_LIBAIO] = "libaio",
	[DIOH_ENGINE_SYNC] = "sync",
};

static const char *const layouts[] = {
	[DIOH_LAYOUT_DETECT] = "detect",
	[DIOH_LAYOUT_RAW] = "raw",
	[DIOH_LAYOUT_CONTAINER] = "container",
	[DIOH_LAYOUT_MAPPED_RAM] = "mapped-ram",
};

/* By the number of the bit. */
static const char *const features[] = {
	"layout-raw", "layout-container", "stream", "selection",
	"checksum",   "written",          "label",  "layout-mapped-ram",
	"read-bitmap", "all-in-stream",   "continue", "multifd",
	"verbatim",
};

static const char *const layers[] = {
	"strays-closed", "no-capabilities", "not-root", "no-new-privs",      "not-dumpable",
	"securebits",    "landlock",        "seccomp",  "ring-restrictions", "selinux",
};

_Static_assert(1u << (COUNT(features) - 1) == DIOH_FEATURE_VERBATIM,
               "a feature has no name");
_Static_assert(1u << (COUNT(layers) - 1) == DIOH_LAYER_SELINUX, "a layer has no name");

static const char *pick(const char *const *names, size_t count, uint32_t i)
{
	return i < count && names[i] ? names[i] : "unknown";
}

static const char *pick_lowest(const char *const *names, size_t count, uint64_t bits)
{
	return bits == 0 ? "none" : pick(names, count, (uint32_t)__builtin_ctzll(bits));
}

const char *dioh_msg_name(uint32_t type)
{
	/* A reply is known by its request; events are odd in their own right. */
	return pick(messages, COUNT(messages), type < DIOH_MSG_PROGRESS ? type & ~1u : type);
}

const char *dioh_engine_name(uint32_t engine)
{
	return pick(engines, COUNT(engines), engine);
}

const char *dioh_layout_name(uint32_t layout)
{
	return pick(layouts, COUNT(layouts), layout);
}

const char *dioh_feature_name(uint64_t bits)
{
	return pick_lowest(features, COUNT(features), bits);
}

const char *dioh_layer_name(uint32_t bits)
{
	return pick_lowest(layers, COUNT(layers), bits);
}
