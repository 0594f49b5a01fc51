/* SPDX-License-Identifier: Apache-2.0 */
/* What the agent and the process that guards a freeze tell each other; both are this program. */
#pragma once

#include "snapshot.h"

#define FREEZE_OPEN_MS      3000   /* for a guest agent to answer at all */
#define FREEZE_LIMIT_MAX_MS 600000 /* no file system should be held still for longer */

enum freeze_word {
	FREEZE_SILENT, /* nothing was heard yet */
	FREEZE_HELD,   /* frozen; the agent's turn */
	FREEZE_ENDED,  /* thawed; the guard's last word */
	FREEZE_FAILED, /* its last word as well */
};

/* One packet from the guard.  Times are of CLOCK_MONOTONIC. */
struct freeze_report {
	enum freeze_word what;
	int code;          /* FREEZE_FAILED: enum tm_code */
	bool asked;        /* FREEZE_ENDED: by the agent; else its deadline passed */
	uint64_t count;    /* file systems frozen */
	uint64_t start_ms; /* the guest agent was asked to freeze */
	uint64_t thaw_ms;  /* and to thaw */
	uint64_t end_ms;   /* and said that it has */
	char text[sizeof(((struct error *)0)->text)];
};
