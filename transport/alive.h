/* SPDX-License-Identifier: Apache-2.0 */
/* Whether a source still answers what it is asked. */
#pragma once

#include "common/common.h"

struct alive {
	uint64_t answers; /* that there had been … */
	uint64_t at_ms;   /* … when it last answered, or had nothing to answer */
};

/*
 * `answers` counts those so far; `waiting`: there are requests without one.  TM_E_TIMEOUT when none
 * has come for limit_ms; 0: there is no limit.
 */
int alive_check(struct alive *alive, uint64_t answers, bool waiting, uint64_t now_ms,
		unsigned limit_ms, struct error *err) TM_WUR;
