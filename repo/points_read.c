/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading manifests, several at a time.  They are asked for in batches which become larger,
 * so that whoever needs the newest one reads one, and whoever needs all does not wait for each.
 */
#include "points.h"

#include "manifest.h"

#include <inttypes.h>
#include <string.h>

#define BATCH_MOST  32
#define BATCH_BYTES (16u << 20) /* of a batch, beyond its first manifest */

struct reading {
	struct store_req req;
	struct batch *batch;
	const struct point_name *name;
	char key[KEY_MAX];
	uint8_t *bytes;
	int code;
};

struct batch {
	struct repo *repo;
	struct reading v[BATCH_MOST];
	size_t n, pending;
	uint64_t bytes;
};

static void read_done(struct store_req *req, int code)
{
	struct reading *g = container_of(req, struct reading, req);

	if (code == 0 && g->req.got != g->name->size)
		code = error_set(&g->req.err, TM_E_CORRUPT, "%s ends at %zu of %" PRIu64 " bytes",
				 g->key, g->req.got, g->name->size);
	g->code = code;
	g->batch->pending--;
}

/* False when the batch is full; *ret_code is that of getting memory. */
static bool batch_add(struct batch *b, const struct point_name *name, int *ret_code,
		      struct error *err)
{
	struct store *st = b->repo->st;
	struct reading *g = &b->v[b->n];

	*ret_code = 0;
	if (b->n > 0 && b->bytes + name->size > BATCH_BYTES)
		return false;
	*g = (struct reading){.req.done = read_done, .batch = b, .name = name};
	name_point(b->repo, &name->source, name->seq, &name->session, g->key);
	if (name->size > MAX_MANIFEST) {
		g->code = error_set(&g->req.err, TM_E_CORRUPT,
				    "%s is %" PRIu64 " bytes, more than the %u allowed", g->key,
				    name->size, MAX_MANIFEST);
		b->n++;
		return true;
	}
	g->bytes = malloc((size_t)name->size + 1);
	if (!g->bytes) {
		*ret_code = error_nomem(err);
		return false;
	}
	b->n++;
	b->pending++;
	b->bytes += name->size;
	st->ops->get(st, g->key, g->bytes, (size_t)name->size, 0, &g->req);
	return true;
}

/* Requests cannot be taken back: an error of the loop is remembered while waiting goes on. */
static void batch_wait(struct batch *b)
{
	while (b->pending > 0) {
		struct error err = {0};

		if (loop_run_once(b->repo->loop, -1, &err) < 0)
			log_debug("loop: %s", err.text);
	}
}

static int decode(struct points_reader *r, struct reading *g, struct error *err)
{
	struct point *p = NULL;

	if (g->code == 0)
		g->code = manifest_decode(r->repo, g->name, g->key, g->bytes, (size_t)g->name->size,
					  &p, NULL, &g->req.err);
	if (g->code == TM_E_NOTFOUND)
		return 0; /* removed since it was listed */
	if (g->code < 0 && !points_is_damage(g->code))
		return error_pass(err, g->code, &g->req.err);
	return r->each(r, g->name, p, &g->req.err, err);
}

static int run_batch(struct points_reader *r, struct batch *b, struct error *err)
{
	int code = 0;

	batch_wait(b);
	for (size_t i = 0; i < b->n; i++) {
		if (code == 0)
			code = decode(r, &b->v[i], err);
		free(b->v[i].bytes);
	}
	b->n = 0;
	b->bytes = 0;
	return code;
}

int points_read(struct points_reader *r, const struct point_name *v, size_t n, bool newest_first,
		struct error *err)
{
	auto_free struct batch *b = calloc(1, sizeof(*b));
	size_t most = newest_first ? 1 : BATCH_MOST, at = 0;
	int code = 0;

	if (!b)
		return error_nomem(err);
	b->repo = r->repo;
	while (code == 0 && at < n) {
		int full = 0, ran;

		while (at < n && b->n < most &&
		       batch_add(b, &v[newest_first ? n - 1 - at : at], &full, err))
			at++;
		ran = run_batch(r, b, err);
		code = full ? full : ran;
		most = most * 2 > BATCH_MOST ? BATCH_MOST : most * 2;
	}
	return code < 0 ? code : 0;
}
