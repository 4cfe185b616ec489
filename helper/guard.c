/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "guard.h"

#include <setjmp.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <unistd.h>

struct guard {
	sigjmp_buf jump;
	const void *volatile fault;
};

static const char unguarded[] = "helper: SIGBUS outside of the guest's memory: bad RAM?\n";

static __thread struct guard *active;

static void on_sigbus(int signal_number, siginfo_t *info, void *context)
{
	struct guard *guard = active;

	(void)context;
	(void)signal_number;
	if (!guard) {
		/* Not in what is guarded. To die of it, as without a handler, would take a system call that the seal forbids. */
		(void)!write(STDERR_FILENO, unguarded, sizeof(unguarded) - 1);
		_exit(EXIT_FAILURE);
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
