/* SPDX-License-Identifier: Apache-2.0 */
#include "governor.h"

#define SLOW_SHARE 100 /* one write in so many may be slow */

void governor_init(struct governor *g, uint64_t slow_ms, uint64_t limit)
{
	*g = (struct governor){.slow_ns = slow_ms * 1000000, .limit = limit, .rate = limit};
}

void governor_disk(struct governor *g, uint64_t now_ms)
{
	g->last_bytes = 0;
	g->last_ms = now_ms;
	g->next_ms = now_ms + GOVERNOR_MS;
}

bool governor_due(const struct governor *g, uint64_t now_ms)
{
	return g->slow_ns && now_ms >= g->next_ms;
}

static bool held_down(const struct governor *g)
{
	return g->rate && g->rate != g->limit;
}

static void slow_down(struct governor *g, uint64_t speed)
{
	uint64_t now = g->rate && g->rate < speed ? g->rate : speed;

	g->rate = max_u64(now / 2, GOVERNOR_LEAST);
	if (g->limit && g->rate > g->limit)
		g->rate = g->limit;
}

/* Back to no limit of ours once twice the fastest that was ever read would be allowed. */
static void speed_up(struct governor *g)
{
	g->rate += g->rate / 4;
	if (g->limit ? g->rate >= g->limit : g->rate > 2 * g->fastest)
		g->rate = g->limit;
}

void governor_look(struct governor *g, uint64_t now_ms, uint64_t read_bytes,
		   const struct write_counts *writes)
{
	uint64_t ms = now_ms - g->last_ms;
	uint64_t speed = ms ? (read_bytes - g->last_bytes) * 1000 / ms : 0;
	/* QEMU counts anew when it was started anew. */
	bool same = writes->all >= g->last.all && writes->slow >= g->last.slow;
	uint64_t all = same ? writes->all - g->last.all : 0;
	uint64_t slow = same ? writes->slow - g->last.slow : 0;

	if (held_down(g))
		g->slowed_ms += ms;
	else if (speed > g->fastest)
		g->fastest = speed;
	if (slow && slow > all / SLOW_SHARE)
		slow_down(g, speed);
	else if (held_down(g))
		speed_up(g);
	g->last = *writes;
	g->last_bytes = read_bytes;
	g->last_ms = now_ms;
	g->next_ms = now_ms + GOVERNOR_MS;
}
