/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * fuzz.h - what each fuzz_*.c defines, for libFuzzer (clang -fsanitize=fuzzer) or for replay.c, which runs a corpus
 * with any compiler. CHECK() is no assert(): it stays whatever NDEBUG says.
 */
#ifndef DIOH_FUZZ_H
#define DIOH_FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define CHECK(condition)                                                                           \
	do {                                                                                       \
		if (!(condition)) {                                                                \
			fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);    \
			abort();                                                                   \
		}                                                                                  \
	} while (0)

#endif
