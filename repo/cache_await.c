/* SPDX-License-Identifier: Apache-2.0 */
/* Waiting for the cache, for whoever has nothing else to do meanwhile. */
#include "cache.h"

void cache_await_done(struct cache_wait *wait, int code)
{
	struct cache_await *w = container_of(wait, struct cache_await, wait);

	w->code = code;
	w->done = true;
}

int cache_await(struct repo *repo, struct cache_await *w, struct error *err)
{
	while (!w->done) {
		struct error loop_err = {0};

		if (loop_run_once(repo->loop, -1, &loop_err) < 0)
			log_debug("loop: %s", loop_err.text);
	}
	return error_pass(err, w->code, &w->wait.err);
}
