/* SPDX-License-Identifier: Apache-2.0 */
/* A limit on how fast something goes: a token bucket. */
#pragma once

#include "common/common.h"

struct rate {
	uint64_t limit; /* bytes per second; 0: none */
	int64_t tokens; /* bytes that may go now */
	uint64_t at_ms; /* when they were last counted */
};

/* Sets the limit, which may have changed. */
void rate_set(struct rate *rate, uint64_t limit, uint64_t now_ms);

/* Counts what has become allowed since the last time. */
void rate_refill(struct rate *rate, uint64_t now_ms);

/* Whether the next request may go; it may leave the bucket in debt. */
static inline bool rate_allows(const struct rate *rate)
{
	return !rate->limit || rate->tokens > 0;
}

void rate_take(struct rate *rate, uint64_t bytes);

/* How long nothing is allowed, in milliseconds. */
uint64_t rate_wait_ms(const struct rate *rate);
