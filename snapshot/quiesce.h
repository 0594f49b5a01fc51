/* SPDX-License-Identifier: Apache-2.0 */
/* The guest's file systems held still around the transaction, and never for longer. */
#pragma once

#include "guest.h"

#include <sys/types.h>

struct freeze {
	int fd;            /* to the guard; -1: not quiesced */
	pid_t guard;       /* the process that thaws, whatever happens here */
	uint64_t start_ms; /* monotonic */
	unsigned limit_ms;
};

/* What became of it. */
struct freeze_result {
	uint64_t held_ms; /* how long the guest was held */
	bool quiesced;    /* its file systems were frozen until the transaction had ended */
	uint64_t count;   /* of those; 0 with quiesced: the guest agent found none to freeze */
};

/*
 * Freezes by policy.  0 with f->fd -1: not possible, warnings say why.  On failure the guest
 * is thawed.
 */
int freeze_begin(struct guest *g, enum quiesce policy, unsigned limit_ms, struct freeze *f,
		 struct text_list *warnings, struct error *err) TM_WUR;
/* What is left of the limit for the transaction. */
unsigned freeze_left_ms(const struct freeze *f);
/* In every path, right after the transaction. */
int freeze_end(struct guest *g, struct freeze *f, struct freeze_result *ret,
	       struct error *err) TM_WUR;

/*
 * After a death: thaws a guest that was left frozen.  *ret_frozen: it was.  An agent that does not
 * answer is TM_E_TIMEOUT.
 */
int freeze_recover(const char *agent_socket, bool check_only, bool *ret_frozen,
		   struct error *err) TM_WUR;
