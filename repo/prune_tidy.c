/* SPDX-License-Identifier: Apache-2.0 */
/* Leftovers that no protocol needs: old records of verification, and what the store knows of. */
#include "prune.h"

#include <string.h>

struct records {
	char (*key)[KEY_MAX]; /* in byte order: by level, then age */
	uint64_t *size;
	size_t n, cap;
};

static int add_record(void *data, const char *key, uint64_t size, struct error *err)
{
	struct records *l = data;

	if (l->n == l->cap) {
		size_t cap = l->cap ? 2 * l->cap : 16;
		void *keys = reallocarray(l->key, cap, sizeof(l->key[0]));
		uint64_t *sizes = reallocarray(l->size, cap, sizeof(*sizes));

		l->key = keys ? keys : l->key;
		l->size = sizes ? sizes : l->size;
		if (!keys || !sizes)
			return error_nomem(err);
		l->cap = cap;
	}
	memcpy(l->key[l->n], key, strlen(key) + 1);
	l->size[l->n++] = size;
	return 0;
}

/* Of each level the newest one says where the next run begins; the others say nothing. */
static int drop_records(struct prune *p, struct error *err)
{
	struct records l = {.n = 0};
	char prefix[KEY_MAX];
	size_t level;
	int r;

	name_flag_prefix(p->repo, FLAG_CHECKS, prefix);
	level = strlen(prefix);
	r = p->repo->st->ops->list(p->repo->st, prefix, add_record, &l, err);
	for (size_t i = 0; r == 0 && i + 1 < l.n; i++)
		if (l.key[i][level] == l.key[i + 1][level] && l.key[i][level + 1] == '-' &&
		    l.key[i + 1][level + 1] == '-')
			r = prune_remove(p, l.key[i], l.size[i], err);
	free(l.key);
	free(l.size);
	return r;
}

int tidy(struct prune *p, struct error *err)
{
	struct store *st = p->repo->st;
	uint64_t now = p->opt->now_ms, stale = p->opt->stale_ms;
	struct store_leftovers left = {
		.before_ms = now > stale ? now - stale : 0,
		.dry_run = p->opt->dry_run,
	};
	int r = drop_records(p, err);

	r = r ? r : st->ops->tidy(st, &left, err);
	p->report.removed_objects += left.files;
	p->report.removed_bytes += left.bytes;
	return r;
}
