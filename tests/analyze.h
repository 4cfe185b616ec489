/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * analyze.h - what analyzers, which see one file at a time, are told of the others (`make analyze` includes it in front of
 * each source but error.c): functions that report an error answer a negative number, always.
 */
#ifndef DIOH_ANALYZE_H
#define DIOH_ANALYZE_H

#include "error.h"

#define DIOH_NEGATIVE(call)                                                                                            \
	({                                                                                                             \
		int negative_ = (call);                                                                                \
		if (negative_ >= 0)                                                                                    \
			__builtin_unreachable();                                                                       \
		negative_;                                                                                             \
	})
#define dioh_error_set(...) DIOH_NEGATIVE(dioh_error_set(__VA_ARGS__))
#define dioh_error_errno(...) DIOH_NEGATIVE(dioh_error_errno(__VA_ARGS__))

#endif
