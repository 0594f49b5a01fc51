/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Choosing.  Clusters with data and holes are two groups: what is chosen of a group is uniform over
 * it, so that the counts of a group bound the share of it that differs (docs/epochs.md, "Audit").
 *
 *	by number   blocks of the whole disk are drawn, and looked up in the point's map, until
 *	            there are enough of both groups; what a group has enough of is dropped
 *	a share     one pass over the map: each cluster with data, and each aligned group of
 *	            holes, is taken with the same probability
 *
 * Damage of the point's map or tables is not the bitmap's fault: such blocks are passed over.
 */
#include "audit.h"

#include "node.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define DRAWS_MAX  8192 /* on a disk that is nearly all holes */
#define LOADS_MAX  256  /* of map nodes and tables, by drawing */
#define CHOICE_MAX 4096 /* clusters of one choice */
#define HOLE_GROUP 16   /* blocks: so much is asked for by allocation, and not read */
#define MILLION    1000000

/* splitmix64 */
static uint64_t random_next(struct repo_audit *a)
{
	uint64_t z = a->random += UINT64_C(0x9e3779b97f4a7c15);

	z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
	return z ^ z >> 31;
}

static uint64_t random_below(struct repo_audit *a, uint64_t n)
{
	return (uint64_t)((unsigned __int128)random_next(a) * n >> 64);
}

/* ---- the point ---- */

static void looked(struct look *l, int code, const struct error *err)
{
	struct repo_audit *a = container_of(l, struct repo_audit, look);

	a->look_code = code;
	if (code)
		a->look_err = *err;
}

static int wait_look(struct repo_audit *a, struct error *err)
{
	a->loads++;
	while (a->look.waiting) {
		int r = loop_run_once(a->repo->loop, -1, err);

		if (r < 0)
			return r;
	}
	return error_pass(err, a->look_code, &a->look_err);
}

int audit_look(struct repo_audit *a, int (*how)(struct look *, uint64_t, struct error *),
	       uint64_t block, struct error *err)
{
	int r;

	while ((r = how(&a->look, block, err)) == LOOK_WAIT) {
		r = wait_look(a, err);
		if (r < 0)
			break;
	}
	return r;
}

static bool is_damage(int code)
{
	return code == TM_E_CORRUPT || code == TM_E_NOTFOUND || code == TM_E_UNSUPPORTED;
}

/* The run around block.  *ret: it can be told. */
static int find_run(struct repo_audit *a, uint64_t block, bool *ret, struct error *err)
{
	struct error one = {0};
	int r = audit_look(a, look_run, block, &one);

	*ret = r == 0;
	if (r == 0 || is_damage(r))
		return 0;
	return error_pass(err, r, &one);
}

int audit_pick(struct repo_audit *a, uint64_t block, struct error *err)
{
	const struct map_run *run = &a->look.run;
	struct audit_pick p = {.block = block, .data = run->count > 0 && run->ref != REF_HOLE};
	const uint8_t *id = NULL;
	int r = 0;

	if (p.data) {
		while ((r = look_content(&a->look, run->ref + (block - run->block), &id, err)) ==
		       LOOK_WAIT) {
			r = wait_look(a, err);
			if (r < 0)
				return r;
		}
		if (r < 0 || !id)
			return r;
		memcpy(p.id, id, CONTENT_BYTES);
	}
	if (a->npicks == a->cap) {
		size_t cap = a->cap ? a->cap * 2 : 64;
		struct audit_pick *v = reallocarray(a->pick, cap, sizeof(*v));

		if (!v)
			return error_nomem(err);
		a->pick = v;
		a->cap = cap;
	}
	a->pick[a->npicks++] = p;
	return 0;
}

/* ---- by number ---- */

static bool is_picked(const struct repo_audit *a, uint64_t block)
{
	for (size_t i = 0; i < a->npicks; i++)
		if (a->pick[i].block == block)
			return true;
	return false;
}

static int draw(struct repo_audit *a, unsigned *data, unsigned *empty, struct error *err)
{
	uint64_t block = random_below(a, a->blocks);
	bool known, hole;
	size_t before = a->npicks;
	int r = find_run(a, block, &known, err);

	if (r < 0 || !known)
		return r;
	hole = a->look.run.count == 0 || a->look.run.ref == REF_HOLE;
	if ((hole ? *empty : *data) == 0 || is_picked(a, block))
		return 0;
	r = audit_pick(a, block, err);
	if (r == 0 && a->npicks > before)
		(*(hole ? empty : data))--;
	return r;
}

/* Data is what matters: for holes alone no more is drawn than was for data. */
static int choose_few(struct repo_audit *a, struct error *err)
{
	unsigned data = REPO_AUDIT_DATA, empty = REPO_AUDIT_EMPTY, most = DRAWS_MAX;
	int r = 0;

	for (unsigned i = 0; r == 0 && i < most && a->loads < LOADS_MAX && data + empty; i++) {
		r = draw(a, &data, &empty, err);
		if (!data && most == DRAWS_MAX)
			most = 2 * (i + 1);
	}
	a->few_chosen = true;
	return r;
}

/* ---- a share ---- */

static bool by_chance(struct repo_audit *a)
{
	return random_below(a, MILLION) < a->opt.share;
}

static int choose_share(struct repo_audit *a, struct error *err)
{
	while (a->next < a->blocks && a->npicks + HOLE_GROUP <= CHOICE_MAX) {
		uint64_t end = a->next + 1;
		bool known, hole;
		int r = find_run(a, a->next, &known, err);

		if (r < 0)
			return r;
		hole = known && (a->look.run.count == 0 || a->look.run.ref == REF_HOLE);
		if (hole)
			end = min_u64(a->next - a->next % HOLE_GROUP + HOLE_GROUP, a->blocks);
		if (hole && a->look.run.count > 0)
			end = min_u64(end, a->look.run.block + a->look.run.count);
		if (!known || !by_chance(a)) {
			a->next = end;
			continue;
		}
		for (; a->next < end; a->next++) {
			r = audit_pick(a, a->next, err);
			if (r < 0)
				return r;
		}
	}
	return 0;
}

/* ---- the calls ---- */

static int by_block(const void *x, const void *y)
{
	const struct audit_pick *a = x, *b = y;

	return a->block < b->block ? -1 : a->block > b->block;
}

int repo_audit_choose(struct repo_audit *a, struct extents *ret, struct error *err)
{
	int r = 0;

	extents_clear(ret);
	a->npicks = 0;
	if (a->opt.share)
		r = choose_share(a, err);
	else if (!a->few_chosen && a->blocks)
		r = choose_few(a, err);
	if (a->npicks)
		qsort(a->pick, a->npicks, sizeof(*a->pick), by_block);
	for (size_t i = 0; r == 0 && i < a->npicks; i++) {
		uint64_t at = a->pick[i].block << a->repo->block_bits;

		r = extents_add(ret, at,
				min_u64(UINT64_C(1) << a->repo->block_bits, a->opt.size - at), err);
	}
	return r;
}

int repo_audit_begin(struct repo *repo, const struct point_disk *disk,
		     const struct repo_audit_options *opt, struct repo_audit **ret,
		     struct error *err)
{
	auto_clean(repo_audit_free) struct repo_audit *a = calloc(1, sizeof(*a));
	struct map_root root;
	int r;

	if (!a)
		return error_nomem(err);
	if (disk->block_size != repo_block_size(repo))
		return error_set(err, TM_E_RANGE,
				 "disk %s has blocks of %" PRIu32
				 " bytes, the repository of %" PRIu32,
				 disk->name, disk->block_size, repo_block_size(repo));
	if (opt->size > INT64_MAX)
		return error_set(err, TM_E_RANGE, "disk %s of %" PRIu64 " bytes is too large",
				 disk->name, opt->size);
	a->repo = repo;
	a->opt = *opt;
	a->blocks = disk_blocks(opt->size, repo->block_bits);
	a->random = opt->seed;
	a->sink.put = audit_put;
	root = (struct map_root){.ref = disk->map->root,
				 .blocks = disk_blocks(disk->size, repo->block_bits),
				 .nsessions = disk->map->nsessions};
	look_init(&a->look, repo, &root, disk->map->table, NULL);
	a->look.done = looked;
	r = workers_init(&a->workers, pool_workers(opt->pool), &repo->keys.id, 0, 0, err);
	if (r < 0)
		return r;
	*ret = tm_steal(a);
	return 0;
}

void repo_audit_free(struct repo_audit *a)
{
	if (!a)
		return;
	assert(!a->works);
	look_done(&a->look);
	workers_done(&a->workers);
	free(a->pick);
	free(a);
}
