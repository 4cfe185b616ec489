/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* attacker.h - what test_sandbox.c tells the helper that it has taken over (attacker.c), and how that answers. */
#ifndef DIOH_TESTS_ATTACKER_H
#define DIOH_TESTS_ATTACKER_H

enum layer {
	LAYER_IDS = 1 << 0, /* serve only: off by --keep-uid */
	LAYER_CAPABILITIES = 1 << 1,
	LAYER_SECUREBITS = 1 << 2,
	LAYER_NO_NEW_PRIVS = 1 << 3,
	LAYER_LANDLOCK = 1 << 4,
	LAYER_RING = 1 << 5,
	LAYER_SECCOMP = 1 << 6,
	LAYER_ALL = (1 << 7) - 1,
};

/* Environment. */
#define ATTACK_NAME "ATTACK_NAME"
#define ATTACK_THREAD "ATTACK_THREAD"
#define ATTACK_LAYERS "ATTACK_LAYERS"
#define ATTACK_LEAVE_OUT "ATTACK_LEAVE_OUT"
#define ATTACK_DIRECTORY "ATTACK_DIRECTORY"
#define ATTACK_PORT "ATTACK_PORT"
#define ATTACK_ADDRESS "ATTACK_ADDRESS"

/* Whose the set-uid program is. */
#define SET_UID 12345
#define SET_UID_TEXT "12345"

/* Exit statuses. */
#define ATTACK_FAILED 64 /* and errno */
#define ATTACK_ALLOWED 200
#define ATTACK_UNKNOWN 201
#define ATTACK_NO_RING 202

#endif
