/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which segments' tables are worth loading only to compare content ids with them: where few of
 * their ids are asked for, storing the clusters again costs less.  The answers depend on what was
 * asked before alone, not on what a cache holds, so that they are the same on every run.
 */
#pragma once

#include "node.h"

struct ration_session {
	uint32_t index; /* of the segment allowed last */
	uint64_t used;  /* loads when it was asked for last, plus 1; 0: never */
};

struct ration {
	bool off; /* all are worth it */
	uint64_t asked, loads;
	struct ration_session *v; /* by index in the session table; of n when used */
	uint32_t n;
};

/* References have sessions below nsessions. */
void ration_init(struct ration *r, uint32_t nsessions);
void ration_done(struct ration *r);
/* Whether to load the tables of the segment that ref leads to.  Once for each cluster. */
int ration_ask(struct ration *r, uint64_t ref, bool *ret, struct error *err) TM_WUR;
