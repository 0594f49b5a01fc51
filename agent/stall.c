/* SPDX-License-Identifier: Apache-2.0 */
#include "stall.h"

#include <stdio.h>

#define LIMIT_MS       120000 /* without any completion */
#define ROOM_MS        2000   /* before the overlays are looked after from here */
#define INTERRUPTED_MS 10000  /* the same, after a signal */

/* For tests: the limit in milliseconds. */
#define DEBUG_LIMIT "TIDEMARK_DEBUG_STALL_MS"

void say_unfinished(struct agent *a, const struct error *why)
{
	say_warning(a,
		    "%s; the next backup puts it right; 'tidemark recover' does at once, but for "
		    "bitmaps that no journal tells of",
		    why->text);
}

_Noreturn static void give_up(struct stall_guard *g, uint64_t idle_ms, struct error err)
{
	enum exit_status status = agent_interrupted ? EXIT_INTERRUPTED : EXIT_FAILED;
	struct error finish_err = {0};
	bool had_snapshot = *g->snapshot != NULL;

	loop_set_watch(g->agent->loop, NULL);
	progress_end(g->agent);
	if (snapshot_finish(*g->snapshot, false, &finish_err)) {
		say_unfinished(g->agent, &finish_err);
		status = EXIT_RECOVERY;
		had_snapshot = false;
	}
	(void)error_set(&err, TM_E_TIMEOUT,
			"repository %s has not answered for %llu s: the backup is given up%s",
			g->agent->opt.repo, (unsigned long long)idle_ms / 1000,
			had_snapshot ? " and the guest put in order" : "");
	say_error(g->agent, &err);
	(void)fflush(NULL);
	_exit((int)status);
}

static void tick(struct loop_watch *watch, uint64_t idle_ms)
{
	struct stall_guard *g = container_of(watch, struct stall_guard, watch);

	struct error err = {0};

	/* While disks are read the reader asks; this is for when nothing moves. */
	if (idle_ms >= ROOM_MS && snapshot_check_room(*g->snapshot, &err))
		give_up(g, idle_ms, err);
	if (idle_ms >= g->limit_ms || (agent_interrupted && idle_ms >= INTERRUPTED_MS))
		give_up(g, idle_ms, err);
}

void stall_arm(struct stall_guard *g, struct agent *a, struct snapshot **snapshot)
{
	const char *debug = getenv(DEBUG_LIMIT);

	*g = (struct stall_guard){
		.watch.tick = tick, .agent = a, .snapshot = snapshot, .limit_ms = LIMIT_MS};
	if (debug && *debug)
		g->limit_ms = strtoull(debug, NULL, 10);
	/* A piece may have to wait for its turn as long as the rate makes it. */
	if (a->opt.limit_rate)
		g->limit_ms += UINT64_C(2000) * PIECE_CLUSTERS * repo_block_size(a->repo) /
			       a->opt.limit_rate;
	loop_set_watch(a->loop, &g->watch);
}

void stall_disarm(struct stall_guard *g)
{
	loop_set_watch(g->agent->loop, NULL);
}
