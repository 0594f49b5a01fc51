/* SPDX-License-Identifier: Apache-2.0 */
#include "rate.h"

#define BURST (1 << 20) /* bytes that may go ahead of the limit */

void rate_set(struct rate *rate, uint64_t limit, uint64_t now_ms)
{
	if (limit && !rate->limit) {
		rate->tokens = 1;
		rate->at_ms = now_ms; /* nobody counted until now */
	}
	rate->limit = limit;
}

void rate_refill(struct rate *rate, uint64_t now_ms)
{
	uint64_t passed = now_ms - rate->at_ms, added;

	if (!rate->limit || !passed)
		return;
	if (__builtin_mul_overflow(rate->limit, passed, &added) || added / 1000 > INT64_MAX / 2)
		added = (uint64_t)(INT64_MAX / 2);
	else
		added /= 1000;
	if (!added)
		return; /* very slow: wait until it makes a byte */
	rate->at_ms = now_ms;
	rate->tokens += (int64_t)added;
	if (rate->tokens > BURST)
		rate->tokens = BURST;
}

void rate_take(struct rate *rate, uint64_t bytes)
{
	if (rate->limit)
		rate->tokens -= (int64_t)bytes;
}

uint64_t rate_wait_ms(const struct rate *rate)
{
	uint64_t debt;

	if (rate_allows(rate))
		return 0;
	debt = (uint64_t)-rate->tokens + 1;
	return div_round_up(min_u64(debt, UINT64_MAX / 1000) * 1000, rate->limit);
}
