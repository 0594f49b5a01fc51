/* SPDX-License-Identifier: Apache-2.0 */
/* Time, behind a seam so that tests can replace it. */
#pragma once

#include <stdint.h>

struct clock {
	uint64_t (*unix_ms)(const struct clock *);      /* wall clock, milliseconds since 1970 */
	uint64_t (*monotonic_ms)(const struct clock *); /* never goes back */
	void (*sleep_ms)(const struct clock *, uint64_t ms);
};

extern const struct clock clock_system;

static inline uint64_t clock_unix_ms(const struct clock *c)
{
	return c->unix_ms(c);
}

static inline uint64_t clock_monotonic_ms(const struct clock *c)
{
	return c->monotonic_ms(c);
}

static inline void clock_sleep_ms(const struct clock *c, uint64_t ms)
{
	c->sleep_ms(c, ms);
}
