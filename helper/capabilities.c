/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "capabilities.h"

#include <stdio.h>

#include "diohelper.h"
#include "engine.h"
#include "layout.h"
#include "proto.h"
#include "seal.h"

/* The names are ours and need no escaping. */
static void print_bits(const char *key, uint64_t bits, const char *(*name_of)(uint64_t bit))
{
	const char *separator = "";

	printf("  \"%s\": [", key);
	for (unsigned i = 0; i < 64; i++) {
		if (bits >> i & 1) {
			printf("%s\"%s\"", separator, name_of(UINT64_C(1) << i));
			separator = ", ";
		}
	}
	printf("],\n");
}

static const char *layer_name(uint64_t bit)
{
	return dioh_layer_name((uint32_t)bit);
}

static const char *layout_name(uint64_t bit)
{
	return dioh_layout_name((uint32_t)__builtin_ctzll(bit));
}

static const char *engine_name(uint64_t bit)
{
	return dioh_engine_name((uint32_t)__builtin_ctzll(bit));
}

static uint64_t layouts(void)
{
	uint64_t bits = 0;

	for (uint32_t id = DIOH_LAYOUT_RAW; id <= DIOH_LAYOUT_MAPPED_RAM; id++)
		if (dioh_layout_find(id))
			bits |= UINT64_C(1) << id;
	return bits;
}

static uint64_t engines(void)
{
	uint64_t bits = 0;

	for (uint32_t id = DIOH_ENGINE_IO_URING; id <= DIOH_ENGINE_SYNC; id++)
		if (dioh_engine_choose(id, NULL))
			bits |= UINT64_C(1) << id;
	return bits;
}

void dioh_capabilities_print(void)
{
	printf("{\n");
	printf("  \"type\": \"diohelper\",\n");
	printf("  \"version\": \"%s\",\n", DIOH_VERSION_STRING);
	printf("  \"protocol\": { \"min\": %u, \"max\": %u },\n", DIOH_PROTOCOL_VERSION, DIOH_PROTOCOL_VERSION);
	print_bits("features", DIOH_FEATURES_OFFERED, dioh_feature_name);
	print_bits("layouts", layouts(), layout_name);
	print_bits("engines", engines(), engine_name);
	print_bits("layers", dioh_seal_layers_available(), layer_name);
	printf("  \"drop_in\": true\n");
	printf("}\n");
}
