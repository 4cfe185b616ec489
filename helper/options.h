/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* options.h - the command line of diohelper: which of its lives it is to lead, and how. */
#ifndef DIOH_OPTIONS_H
#define DIOH_OPTIONS_H

#include "label.h"
#include "seal.h"

enum dioh_life {
	DIOH_LIFE_SERVE,
	DIOH_LIFE_DROP_IN,
	DIOH_LIFE_TOOL,         /* a verb of diohelper-tool */
	DIOH_LIFE_HELP,
	DIOH_LIFE_VERSION,
	DIOH_LIFE_CAPABILITIES,
	DIOH_LIFE_LONG_OPTIONS, /* for completion and tests: every option, a line each */
};

struct dioh_options {
	enum dioh_life life;
	int fd; /* serve: the control socket */
	struct dioh_identity identity;
	uint32_t allow; /* enum dioh_allow */
	unsigned attach_timeout_s;
	unsigned stuck_timeout_s;
};

/* 0, or -EINVAL with a sentence for standard error: exit status 2. */
int dioh_options_parse(int argc, char **argv, struct dioh_options *ret_options, struct dioh_error *err);

void dioh_options_print_help(void);
void dioh_options_print_long(void);

#endif
