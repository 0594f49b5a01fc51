/* SPDX-License-Identifier: Apache-2.0 */
/* Comparing: workers hash, the loop thread looks up what was chosen and counts. */
#include "audit.h"

#include <string.h>

struct audit_work {
	struct pool_task task;
	struct repo_audit *a;
	struct piece *piece;
	bool zero[PIECE_CLUSTERS];
	uint8_t id[PIECE_CLUSTERS][CONTENT_BYTES];
	int code;
	struct error err;
};

static void hash_run(struct pool_task *task, unsigned worker)
{
	struct audit_work *w = container_of(task, struct audit_work, task);
	size_t len = (size_t)1 << w->a->repo->block_bits;
	const uint8_t *data[PIECE_CLUSTERS];
	uint8_t *id[PIECE_CLUSTERS];
	unsigned n = 0;

	for (uint32_t i = 0; i < w->piece->nclusters; i++) {
		const uint8_t *cluster = w->piece->data + i * len;

		w->zero[i] = cluster_is_zero(cluster, len);
		if (!w->zero[i]) {
			data[n] = cluster;
			id[n++] = w->id[i];
		}
	}
	w->code = content_ids(&w->a->workers.v[worker], n, data, len, id, &w->err);
}

/* The first pick at or behind block. */
static size_t find_pick(const struct repo_audit *a, uint64_t block)
{
	size_t lo = 0, hi = a->npicks;

	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;

		if (a->pick[mid].block < block)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

/* id NULL: the cluster reads as zeroes now. */
static void count(struct repo_audit *a, const struct audit_pick *p, const uint8_t *id)
{
	uint64_t offset = p->block << a->repo->block_bits;
	bool same = p->data ? id && memcmp(p->id, id, CONTENT_BYTES) == 0 : !id;

	if (p->data)
		a->counts.data++;
	else
		a->counts.empty++;
	if (same)
		return;
	if (!a->counts.differed++ || offset < a->counts.first)
		a->counts.first = offset;
}

static void hash_done(struct pool_task *task)
{
	struct audit_work *w = container_of(task, struct audit_work, task);
	struct repo_audit *a = w->a;
	struct piece *piece = w->piece;

	if (w->code && !a->code) {
		a->code = w->code;
		a->err = w->err;
	}
	for (uint32_t i = 0; !w->code && i < piece->nruns; i++) {
		const struct piece_run *run = &piece->run[i];

		for (size_t k = find_pick(a, run->block);
		     k < a->npicks && a->pick[k].block - run->block < run->count; k++) {
			uint64_t at = run->first + (a->pick[k].block - run->block);

			count(a, &a->pick[k], run->zero || w->zero[at] ? NULL : w->id[at]);
		}
	}
	a->works--;
	free(w);
	piece_release(piece);
}

int audit_put(struct piece_sink *sink, struct piece *piece, struct error *err)
{
	struct repo_audit *a = container_of(sink, struct repo_audit, sink);
	struct audit_work *w;

	if (a->code)
		return repo_audit_counts(a, NULL, err);
	w = calloc(1, sizeof(*w));
	if (!w)
		return error_nomem(err);
	w->a = a;
	w->piece = piece;
	w->task = (struct pool_task){.run = hash_run, .done = hash_done};
	a->works++;
	pool_submit(a->opt.pool, &w->task);
	return 0;
}

struct piece_sink *repo_audit_sink(struct repo_audit *a)
{
	return &a->sink;
}

int repo_audit_counts(const struct repo_audit *a, struct repo_audit_counts *ret, struct error *err)
{
	if (a->code)
		return error_pass(err, a->code, &a->err);
	if (ret)
		*ret = a->counts;
	return 0;
}
