/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* chance.h - seeds, and the numbers that follow from them. Every seed is printed; $DIOH_SEED repeats a run. */
#ifndef DIOH_CHANCE_H
#define DIOH_CHANCE_H

#include <stdint.h>

/* $DIOH_SEED or a fixed number; printed once. */
uint64_t test_seed(void);
uint64_t test_random(uint64_t *state);

/* One sequence for a whole program, from another seed each time that it runs. The set-up is one for cmocka. */
int random_set_up(void **state);
uint64_t random_u64(void);

#endif
