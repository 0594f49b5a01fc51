/* SPDX-License-Identifier: Apache-2.0 */
#include "clock.h"

#include <errno.h>
#include <time.h>

static uint64_t read_clock(clockid_t id)
{
	struct timespec ts = {0};

	(void)clock_gettime(id, &ts); /* cannot fail for these two clocks */
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

static uint64_t system_unix_ms(const struct clock *c)
{
	(void)c;
	return read_clock(CLOCK_REALTIME);
}

static uint64_t system_monotonic_ms(const struct clock *c)
{
	(void)c;
	return read_clock(CLOCK_MONOTONIC);
}

static void system_sleep_ms(const struct clock *c, uint64_t ms)
{
	struct timespec ts = {.tv_sec = (time_t)(ms / 1000),
			      .tv_nsec = (long)(ms % 1000) * 1000000};

	(void)c;
	while (nanosleep(&ts, &ts) < 0 && errno == EINTR)
		;
}

const struct clock clock_system = {system_unix_ms, system_monotonic_ms, system_sleep_ms};
