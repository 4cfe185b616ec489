/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "guard.h"

#include <setjmp.h>
#include <signal.h>
#include <stddef.h>

struct guard {
	sigjmp_buf jump;
	const void *volatile fault;
};

static __thread struct guard *active;

static void on_sigbus(int signal_number, siginfo_t *info, void *context)
{
	struct guard *guard = active;

	(void)context;
	if (!guard) {
		/* Not ours: die of it, as without a handler, when the instruction runs again. */
		signal(signal_number, SIG_DFL);
		return;
	}
	guard->fault = info->si_addr;
	siglongjmp(guard->jump, 1);
}

void dioh_guard_install(void)
{
	/* SA_NODEFER: the jump leaves the handler without restoring the mask, which saves two system calls a guard. */
	struct sigaction action = { .sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO | SA_NODEFER };

	sigemptyset(&action.sa_mask);
	sigaction(SIGBUS, &action, NULL);
}

bool dioh_guard_run(void (*touch)(void *argument), void *argument, const void **ret_fault)
{
	struct guard guard;

	if (sigsetjmp(guard.jump, 0) != 0) {
		*ret_fault = active->fault;
		active = NULL;
		return false;
	}
	active = &guard;
	touch(argument);
	active = NULL;
	return true;
}
