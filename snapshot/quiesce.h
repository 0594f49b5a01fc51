/* SPDX-License-Identifier: Apache-2.0 */
/* The guest's file systems held still around the transaction, and never for longer. */
#pragma once

#include "guest.h"

struct freeze {
	struct qga *agent; /* NULL: not quiesced */
	uint64_t start_ms; /* monotonic */
	unsigned limit_ms;
};

/*
 * Freezes by policy.  0 with f->agent NULL: not possible, warnings say why.  On failure the guest
 * is thawed.
 */
int freeze_begin(struct guest *g, enum quiesce policy, unsigned limit_ms, struct freeze *f,
		 struct text_list *warnings, struct error *err) TM_WUR;
/* What is left of the limit for the transaction. */
unsigned freeze_left_ms(const struct freeze *f);
/* In every path.  Sets *ret_ms to how long the guest was held. */
int freeze_end(struct freeze *f, uint64_t *ret_ms, struct error *err) TM_WUR;

/*
 * After a death: thaws a guest that was left frozen.  *ret_thawed: it was.  An agent that does not
 * answer is TM_E_TIMEOUT.
 */
int freeze_recover(const char *agent_socket, bool check_only, bool *ret_frozen,
		   struct error *err) TM_WUR;
