/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Repair beside another repair and beside a prune: one runs as a whole, by itself, before the n-th
 * request of the other, for each n.  Whatever both answer, no point that is kept is lost or wrong;
 * a repair afterwards ends with nothing damaged, and a prune after that with nothing removed that
 * is needed.
 *
 *	BESIDE=n   one of n requests (default 7; 1: each)
 */
#include "test_secret.h"

#define BS     4096
#define BLOCKS 64
#define POINTS 3

static uint64_t seed;

enum command { REPAIR, PRUNE };

static const char *const command_name[] = {"repair", "prune"};

struct world {
	struct failing top; /* first: the hook finds the world by it */
	struct rig rig, other;
	struct copy *base;
	struct store *below;
	struct tm_id id[POINTS];
	struct image im[POINTS];
	enum command first, second;
	unsigned n; /* the request of the first that the second comes before */
	bool came;
};

static void must(const struct world *w, const char *what, bool ok, const char *text)
{
	if (!ok)
		fail_msg("%s, before request %u of %s: %s: '%s'", command_name[w->second], w->n,
			 command_name[w->first], what, text);
}

/* ---- objects, without a turn of the loop that runs the first ---- */

static void let_go(struct store_req *req, int code)
{
	(void)code; /* a store in memory has answered in the call */
	free(req);
}

static struct store_req *new_req(void)
{
	struct store_req *req = calloc(1, sizeof(*req));

	assert_non_null(req);
	req->done = let_go;
	return req;
}

static int peek_object(void *data, const char *key, uint64_t size, struct error *err)
{
	struct copy_run *run = data;
	struct buf *b = &run->c->bytes[run->c->n];

	(void)err;
	assert_true(run->c->n < ARRAY_SIZE(run->c->key));
	assert_int_equal(buf_reserve(b, (size_t)size + 1, NULL), 0);
	b->len = (size_t)size;
	run->st->ops->get(run->st, key, b->data, b->len, 0, new_req());
	(void)snprintf(run->c->key[run->c->n++], KEY_MAX, "%s", key);
	return 0;
}

static struct copy *peek(struct store *st)
{
	struct copy *c = calloc(1, sizeof(*c));
	struct copy_run run = {c, st};

	assert_non_null(c);
	assert_int_equal(st->ops->list(st, "", peek_object, &run, NULL), 0);
	return c;
}

static bool has(const struct copy *c, const char *key)
{
	for (size_t i = 0; i < c->n; i++)
		if (strcmp(c->key[i], key) == 0)
			return true;
	return false;
}

/* What the second did, done to the store of the first. */
static void apply(struct store *st, const struct copy *was, const struct copy *is)
{
	for (size_t i = 0; i < is->n; i++)
		if (!has(was, is->key[i]))
			st->ops->put_new(st, is->key[i], is->bytes[i].data, is->bytes[i].len,
					 new_req());
	for (size_t i = 0; i < was->n; i++)
		if (!has(is, was->key[i]))
			assert_int_equal(st->ops->remove(st, was->key[i], NULL), 0);
}

/* ---- commands ---- */

static int repair(struct rig *rig, size_t *ret_left, struct error *err)
{
	const struct repo_repair_options opt = {.pool = rig->pool, .read_data = true};
	struct repo_verify_report rep = {0};
	int r = repo_repair(rig->repo, &opt, &rep, err);

	*ret_left = 0;
	for (size_t i = 0; i < rep.ndamaged; i++)
		*ret_left += !rep.damaged[i].repaired;
	repo_verify_report_done(&rep);
	return r;
}

static int prune(struct rig *rig, struct error *err)
{
	const struct repo_prune_options opt = {.stale_ms = 3600000, .now_ms = rig->now};
	struct repo_prune_report rep = {0};

	return repo_prune(rig->repo, &opt, &rep, err);
}

static int run(struct rig *rig, enum command cmd, struct error *err)
{
	size_t left;

	return cmd == REPAIR ? repair(rig, &left, err) : prune(rig, err);
}

/* A prune that meets a map that is lost removes nothing; all else works. */
static bool right_answer(enum command cmd, int r)
{
	return r == 0 || (cmd == PRUNE && r == TM_E_CORRUPT);
}

static void come_between(struct failing *f)
{
	struct world *w = (struct world *)f;
	struct copy *was, *is;
	struct error err = {0};
	int r;

	if (f->calls + 1 != w->n)
		return;
	w->came = true;
	was = peek(w->below);
	w->other.store = copy_to_store(&w->other, was);
	must(w, "opening", repo_open(&w->other.store->st, &w->other.repo, &err) == 0, err.text);
	r = run(&w->other, w->second, &err);
	must(w, "the second", right_answer(w->second, r), err.text);
	is = copy_store(w->other.store->below);
	repo_free(w->other.repo);
	w->other.repo = NULL;
	apply(w->below, was, is);
	copy_free(was);
	copy_free(is);
}

static void open_top(struct world *w, void (*before)(struct failing *f))
{
	struct error err = {0};

	w->top = (struct failing){.st = {.ops = &failing_ops, .loop = w->rig.loop},
				  .below = w->below,
				  .keep = true,
				  .before = before};
	must(w, "opening", repo_open(&w->top.st, &w->rig.repo, &err) == 0, err.text);
}

static void close_top(struct world *w)
{
	repo_free(w->rig.repo);
	w->rig.repo = NULL;
}

/* The first point is forgotten. */
static void check_points(struct world *w)
{
	auto_point_list struct point_list l = {0};
	struct error err = {0};
	size_t damaged = 0;
	unsigned seen = 0;

	must(w, "listing", repo_points(w->rig.repo, rig_guest, &l, &damaged, &err) == 0, err.text);
	must(w, "manifests", damaged == 0, "");
	for (size_t i = 0; i < l.n; i++)
		for (unsigned k = 0; k < POINTS; k++) {
			if (!id_equal(&l.v[i]->id, &w->id[k]))
				continue;
			must(w, "a point", rig_read(&w->rig, l.v[i], &w->im[k], &err) == 0,
			     err.text);
			seen |= 1U << k;
		}
	must(w, "points are gone", seen == 6, "");
}

static void check_after(struct world *w)
{
	struct error err = {0};
	size_t left;

	open_top(w, NULL);
	must(w, "repair afterwards", repair(&w->rig, &left, &err) == 0, err.text);
	must(w, "not all is repaired", left == 0, "");
	check_points(w);
	must(w, "prune afterwards", prune(&w->rig, &err) == 0, err.text);
	check_points(w);
	must(w, "repair at the end", repair(&w->rig, &left, &err) == 0 && left == 0, err.text);
	close_top(w);
}

/* False when the first has fewer than n requests. */
static bool beside(struct world *w)
{
	struct failing *f = copy_to_store(&w->rig, w->base);
	struct error err = {0};
	int r;

	w->below = f->below;
	f->below = NULL;
	store_free(&f->st);
	w->came = false;
	open_top(w, come_between);
	r = run(&w->rig, w->first, &err);
	must(w, "the first", right_answer(w->first, r), err.text);
	close_top(w);
	if (w->came)
		check_after(w);
	store_free(w->below);
	return w->came;
}

/* ---- what they find ---- */

static void flip(struct store *st, const char *part, unsigned nth, size_t from_end)
{
	struct copy *c = copy_store(st);
	size_t at = c->n;

	for (size_t i = 0; i < c->n; i++)
		if (strstr(c->key[i], part) && nth-- == 0)
			at = i;
	assert_true(at < c->n);
	c->bytes[at].data[c->bytes[at].len - from_end] ^= 1;
	assert_int_equal(st->ops->remove(st, c->key[at], NULL), 0);
	assert_int_equal(store_put_wait(st, c->key[at], c->bytes[at].data, c->bytes[at].len, NULL),
			 0);
	copy_free(c);
}

/*
 * Three points; the first is forgotten, and half of its segment is not used any more.  A frame of
 * the rest of that segment is damaged, and another guest stored the same content; so is the map of
 * the second point.
 */
static void world_up(struct world *w)
{
	static char twin[] = "twin";
	struct image im;
	struct error err = {0};
	struct tm_id id;
	char part[64];

	rig_up(&w->rig, BS, seed);
	assert_int_equal(loop_new(64, &w->other.loop, NULL), 0);
	assert_int_equal(pool_new(w->other.loop, 1, &w->other.pool, NULL), 0);
	w->other.random = seed | 1;
	image_init(&im, (uint64_t)BLOCKS * BS, BS);
	image_noise(&im, &w->rig.random, 0, BLOCKS);
	for (unsigned i = 0; i < POINTS; i++) {
		auto_clean(point_free) struct point *p = NULL;

		if (i > 0) {
			image_noise(&im, &w->rig.random, i == 1 ? 0 : 2, i == 1 ? 36 : 5);
			assert_int_equal(
				repo_point_get(w->rig.repo, rig_guest, &w->id[i - 1], &p, &err), 0);
		}
		assert_int_equal(rig_backup(&w->rig, &im, p, &w->id[i], &err), 0);
		image_copy(&im, &w->im[i]);
	}
	w->rig.guest = twin;
	assert_int_equal(rig_backup(&w->rig, &im, NULL, &id, &err), 0);
	image_done(&im);
	assert_int_equal(repo_forget(w->rig.repo, &w->id[0], 1, &err), 0);
	(void)snprintf(part, sizeof(part), "/s/%s/000/d", id_text(&w->id[0]).s);
	flip(w->rig.store->below, part, 0, 5);
	(void)snprintf(part, sizeof(part), "/s/%s/000/m", id_text(&w->id[1]).s);
	flip(w->rig.store->below, part, 0, 5);
	w->base = copy_store(w->rig.store->below);
	w->other.now = w->rig.now;
	close_top(w);
}

static void world_down(struct world *w)
{
	copy_free(w->base);
	for (unsigned i = 0; i < POINTS; i++)
		image_done(&w->im[i]);
	rig_down(&w->rig);
	pool_free(w->other.pool);
	loop_free(w->other.loop);
}

static void each_request(enum command first, enum command second)
{
	const char *text = getenv("BESIDE");
	unsigned step = text ? (unsigned)strtoul(text, NULL, 10) : 7, times = 0;
	struct world *w = calloc(1, sizeof(*w));

	assert_non_null(w);
	assert_true(step > 0);
	w->first = first;
	w->second = second;
	world_up(w);
	for (w->n = 1 + (unsigned)(seed % step); beside(w); w->n += step)
		times++;
	printf("%s before %u requests of %s\n", command_name[second], times, command_name[first]);
	assert_true(w->n > 20);
	world_down(w);
	free(w);
}

static void two_repairs_at_once(void **state)
{
	(void)state;
	each_request(REPAIR, REPAIR);
}

static void a_prune_beside_a_repair(void **state)
{
	(void)state;
	each_request(REPAIR, PRUNE);
}

static void a_repair_beside_a_prune(void **state)
{
	(void)state;
	each_request(PRUNE, REPAIR);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(two_repairs_at_once),
		cmocka_unit_test(a_prune_beside_a_repair),
		cmocka_unit_test(a_repair_beside_a_prune),
	};

	seed = test_seed();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
