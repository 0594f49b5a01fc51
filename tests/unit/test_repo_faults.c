/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Faults of the store itself, at each request of each command: it fails, done or not; is cut; is
 * late; lists an older state.  Afterwards every committed point that the command may not delete
 * reads bit by bit and is protected as it was; what the command makes or deletes is whole or not
 * there; without the fault the command runs again to its end, verify finds nothing, and after a
 * prune it is all the same.
 *
 *	SEED=n          where to begin (printed)
 *	STORE_FAULTS=n  one of n requests is hit, of repair and verify 4n (default 29; 1: each)
 */
#include "test_secret.h"

#define BS     4096
#define BLOCKS 96
#define POINTS 5

enum command {
	CMD_INIT,
	CMD_FULL,        /* of a guest with points: content it has is found again by itself */
	CMD_INCREMENTAL, /* on the newest point */
	CMD_CLONE,       /* of another guest, with siblings */
	CMD_FORGET,
	CMD_PROTECT,
	CMD_PRUNE, /* sweep of a dead session, and compaction */
	CMD_REPAIR,
	CMD_VERIFY,
	CMD_READ, /* list, and read all */
	COMMANDS,
};

static const char *const command_name[COMMANDS] = {
	"init",          "backup, full", "backup, incremental",
	"backup, clone", "forget",       "protect",
	"prune",         "repair",       "verify",
	"list, read",
};

/* What is hit, and of which requests. */
static const struct {
	const char *name;
	enum fault fault;
	unsigned of;
} way[] = {
	{"fails", FAULT_FAIL, 0},
	{"done, but fails", FAULT_LOST, REQUEST_PUT | REQUEST_REMOVE | REQUEST_SYNC},
	{"cut", FAULT_CUT, REQUEST_GET | REQUEST_LIST},
	{"late", FAULT_DELAY, REQUEST_PUT | REQUEST_GET},
	{"stale", FAULT_STALE, REQUEST_LIST}, /* as the command begins */
	{"older", FAULT_STALE, REQUEST_LIST}, /* before the two newest points */
};

#define WAYS       ARRAY_SIZE(way)
#define WAY_OLDER  (WAYS - 1)
#define FORGOTTEN  2U /* the first points */
#define PROTECTED  2U /* index of the point that is so */
#define TO_PROTECT 3U
#define DAMAGED    3U /* its map, before a repair */

static uint64_t seed;
static char clone_guest[] = "clone";

struct world {
	struct rig rig;
	struct image im[POINTS], next, clone_next; /* what is backed up next */
	struct tm_id id[POINTS];
	struct copy *base[COMMANDS], *earlier;
	struct failing top;
	struct store *below, *stale;
	uint64_t now; /* at the end of the history */
	enum command cmd;
	unsigned way, n;
	bool for_good;
	unsigned runs, hits, failed;
};

static void must(const struct world *w, const char *what, bool ok, const char *text)
{
	if (!ok)
		fail_msg("%s, %s at %u%s: %s: '%s'", command_name[w->cmd], way[w->way].name, w->n,
			 w->for_good ? " for good" : "", what, text);
}

/* ---- the repository at hand ---- */

static void close_repo(struct world *w)
{
	repo_free(w->rig.repo);
	w->rig.repo = NULL;
}

/* A store above w->below that hands everything on. */
static struct failing *put_above(struct world *w)
{
	w->top = (struct failing){
		.st = {.ops = &failing_ops, .loop = w->rig.loop}, .below = w->below, .keep = true};
	w->rig.store = &w->top;
	return &w->top;
}

static struct store *store_of(struct world *w, const struct copy *c)
{
	struct failing *f = copy_to_store(&w->rig, c);
	struct store *below = f->below;

	f->below = NULL;
	store_free(&f->st);
	return below;
}

/* ---- commands ---- */

static int back_up(struct world *w, const struct tm_id *parent, struct image *im, struct error *err)
{
	auto_clean(point_free) struct point *p = NULL;
	struct tm_id id;
	int r = 0;

	w->rig.siblings = w->cmd == CMD_CLONE;
	w->rig.guest = w->cmd == CMD_CLONE ? clone_guest : rig_guest;
	if (parent)
		r = repo_point_get(w->rig.repo, w->rig.guest, parent, &p, err);
	return r ? r : rig_backup(&w->rig, im, p, &id, err);
}

static int back_up_next(struct world *w, struct error *err)
{
	const struct image *was = &w->im[w->cmd == CMD_CLONE ? 4 : 3];
	struct image *im = w->cmd == CMD_CLONE ? &w->clone_next : &w->next;

	for (uint64_t b = 0; b < im->blocks; b++)
		im->dirty[b] = memcmp(im->data + b * BS, was->data + b * BS, BS) != 0;
	return back_up(w, w->cmd == CMD_INCREMENTAL ? &w->id[3] : NULL, im, err);
}

static int prune(struct world *w, uint64_t stale_ms, struct error *err)
{
	const struct repo_prune_options opt = {.stale_ms = stale_ms, .now_ms = w->rig.now};
	struct repo_prune_report rep = {0};

	return repo_prune(w->rig.repo, &opt, &rep, err);
}

static int verify(struct world *w, bool whole, struct error *err)
{
	const struct repo_verify_options opt = {
		.scrub = true, .read_data = true, .record = true, .pool = w->rig.pool};
	struct repo_verify_report rep = {0};
	int r = repo_verify(w->rig.repo, &opt, &rep, err);

	if (whole)
		must(w, "damage", r < 0 || rep.ndamaged == 0,
		     rep.ndamaged ? rep.damaged[0].reason : "");
	repo_verify_report_done(&rep);
	return r;
}

static int repair(struct world *w, struct error *err)
{
	const struct repo_repair_options opt = {.read_data = true, .pool = w->rig.pool};
	struct repo_verify_report rep = {0};
	int r = repo_repair(w->rig.repo, &opt, &rep, err);

	repo_verify_report_done(&rep);
	return r;
}

static const struct image *image_of(const struct world *w, const struct point *p)
{
	for (unsigned i = 0; i < POINTS; i++)
		if (id_equal(&p->id, &w->id[i]))
			return &w->im[i];
	return w->cmd == CMD_CLONE ? &w->clone_next : &w->next;
}

static int list_and_read(struct world *w, struct error *err)
{
	auto_point_list struct point_list l = {0};
	int r = repo_points(w->rig.repo, NULL, &l, NULL, err);

	for (size_t i = 0; r == 0 && i < l.n; i++)
		r = rig_read(&w->rig, l.v[i], image_of(w, l.v[i]), err);
	return r;
}

/* Takes the store over. */
static int run(struct world *w, struct failing *f, struct error *err)
{
	const struct repo_init_options opt = {.block_size = BS};
	int r;

	if (w->cmd == CMD_INIT)
		return repo_init(&f->st, &opt, &w->rig.repo, err);
	r = repo_open(&f->st, &w->rig.repo, err);
	if (r < 0)
		return r;
	switch (w->cmd) {
	case CMD_FORGET:
		return repo_forget(w->rig.repo, w->id, FORGOTTEN, err);
	case CMD_PROTECT:
		return repo_protect(w->rig.repo, &w->id[TO_PROTECT], true, err);
	case CMD_PRUNE:
		return prune(w, 3500, err);
	case CMD_REPAIR:
		return repair(w, err);
	case CMD_VERIFY:
		return verify(w, way[w->way].fault == FAULT_DELAY, err);
	case CMD_READ:
		return list_and_read(w, err);
	case CMD_INIT:
	case CMD_FULL:
	case CMD_INCREMENTAL:
	case CMD_CLONE:
	case COMMANDS:
		break;
	}
	return back_up_next(w, err);
}

/* ---- what has to be there ---- */

static bool makes_points(enum command cmd)
{
	return cmd == CMD_FULL || cmd == CMD_INCREMENTAL || cmd == CMD_CLONE;
}

/* done: the command has reported success. */
static void check(struct world *w, bool done)
{
	auto_point_list struct point_list l = {0};
	unsigned seen = 0, gone = w->cmd == CMD_PRUNE ? 3 : 0, made = 0;
	struct error err = {0};
	size_t damaged = 0;

	must(w, "cannot be opened", repo_open(&put_above(w)->st, &w->rig.repo, &err) == 0,
	     err.text);
	must(w, "no list", repo_points(w->rig.repo, NULL, &l, &damaged, &err) == 0, err.text);
	must(w, "damaged manifests", damaged == 0, "");
	for (size_t i = 0; i < l.n; i++) {
		int r = rig_read(&w->rig, l.v[i], image_of(w, l.v[i]), &err);
		unsigned k = 0;

		while (k < POINTS && !id_equal(&l.v[i]->id, &w->id[k]))
			k++;
		must(w, "a point cannot be read",
		     r == 0 || (r == TM_E_CORRUPT && w->cmd == CMD_REPAIR && k == DAMAGED && !done),
		     err.text);
		error_clear(&err);
		made += k == POINTS;
		seen |= 1U << k;
		must(w, "protection",
		     k == TO_PROTECT && w->cmd == CMD_PROTECT
			     ? l.v[i]->is_protected || !done
			     : l.v[i]->is_protected == (k == PROTECTED),
		     l.v[i]->guest);
	}
	if (w->cmd == CMD_FORGET)
		gone = done ? 3 : 3 & ~seen;
	must(w, "points are gone or back", (seen & 31) == (31U & ~gone), "");
	must(w, "points from nowhere", made == 0 || makes_points(w->cmd), "");
	must(w, "no new point", made > 0 || !done || !makes_points(w->cmd), "");
	close_repo(w);
}

/* ---- a fault ---- */

static bool right_error(const struct world *w, int r)
{
	switch (way[w->way].fault) {
	case FAULT_DELAY:
		return r == 0;
	case FAULT_CUT:
		return r == 0 || r == TM_E_IO || r == TM_E_CORRUPT;
	case FAULT_STALE:
		return true;
	case FAULT_FAIL:
	case FAULT_LOST:
		break;
	}
	return r == 0 || r == TM_E_IO;
}

static void run_again(struct world *w)
{
	struct error err = {0};
	int r = 0;

	if (w->cmd == CMD_INIT && repo_open(&put_above(w)->st, &w->rig.repo, &err) == 0) {
		close_repo(w);
		return;
	}
	error_clear(&err);
	r = run(w, put_above(w), &err);
	must(w, "does not run again", r == 0, err.text);
	close_repo(w);
}

/* After a fault that the command answered with r. */
static void look_after(struct world *w, int r)
{
	bool plain = w->cmd != CMD_INIT;
	struct error err = {0};

	if (plain)
		check(w, r == 0 && w->cmd != CMD_REPAIR); /* its report may say otherwise */
	run_again(w);
	if (plain)
		check(w, true);
	must(w, "cannot be opened", repo_open(&put_above(w)->st, &w->rig.repo, &err) == 0,
	     err.text);
	must(w, "no prune", prune(w, 0, &err) == 0, err.text);
	must(w, "no verify", verify(w, true, &err) == 0, err.text);
	close_repo(w);
	if (plain)
		check(w, true);
}

/* False when the command has fewer than n requests of the kind. */
static bool hit(struct world *w)
{
	bool older = w->way == WAY_OLDER && w->cmd != CMD_INIT;
	struct failing *f;
	struct error err = {0};
	unsigned hits;
	int r;

	w->rig.now = w->now;
	w->below = store_of(w, w->base[w->cmd]);
	w->stale = store_of(w, older ? w->earlier : w->base[w->cmd]);
	f = put_above(w);
	f->fault = way[w->way].fault;
	f->of = way[w->way].of;
	f->fail_at = w->n;
	f->for_good = w->for_good;
	f->stale = w->stale;
	r = run(w, f, &err);
	close_repo(w);
	hits = f->hits;
	must(w, "an error without a text", r == 0 || err.text[0], "");
	must(w, "the wrong error", right_error(w, r), err.text);
	must(w, "fails without a fault", r == 0 || hits > 0, err.text);
	if (hits > 0) {
		w->runs++;
		w->hits += hits;
		w->failed += r < 0;
		look_after(w, r);
	}
	store_free(w->below);
	store_free(w->stale);
	return hits > 0;
}

/* ---- the history ---- */

static void past_point(struct world *w, unsigned i, struct image *im)
{
	const struct tm_id *parent = i && i < 4 ? &w->id[i - 1] : NULL;
	auto_clean(point_free) struct point *p = NULL;
	struct error err = {0};

	w->rig.siblings = i == 4;
	w->rig.guest = i == 4 ? clone_guest : rig_guest;
	if (parent)
		assert_int_equal(repo_point_get(w->rig.repo, rig_guest, parent, &p, &err), 0);
	if (rig_backup(&w->rig, im, p, &w->id[i], &err) < 0)
		fail_msg("%s", err.text);
	image_copy(im, &w->im[i]);
}

/* The same blocks at other places, a few of them changed. */
static void shuffle(struct world *w, const struct image *from, struct image *ret)
{
	image_init(ret, from->size, BS);
	for (uint64_t b = 0; b < ret->blocks; b++)
		memcpy(ret->data + b * BS, from->data + (b * 7 + 5) % from->blocks * BS, BS);
	image_change(ret, &w->rig.random, 1);
}

static void flip_in_map(struct world *w, struct store *below)
{
	struct copy *c = copy_store(below);
	size_t map = c->n;
	char part[64];

	(void)snprintf(part, sizeof(part), "/s/%s/000/m", id_text(&w->id[DAMAGED]).s);
	for (size_t i = 0; i < c->n; i++)
		if (strstr(c->key[i], part))
			map = i;
	assert_true(map < c->n);
	c->bytes[map].data[c->bytes[map].len / 2] ^= 4;
	assert_int_equal(below->ops->remove(below, c->key[map], NULL), 0);
	assert_int_equal(
		store_put_wait(below, c->key[map], c->bytes[map].data, c->bytes[map].len, NULL), 0);
	copy_free(c);
}

/* What a command finds. */
static struct copy *base_of(struct world *w, const struct copy *history, enum command cmd)
{
	struct copy *ret;

	w->below = store_of(w, history);
	if (cmd == CMD_PRUNE) {
		assert_int_equal(repo_open(&put_above(w)->st, &w->rig.repo, NULL), 0);
		assert_int_equal(repo_forget(w->rig.repo, w->id, FORGOTTEN, NULL), 0);
		close_repo(w);
	}
	if (cmd == CMD_REPAIR)
		flip_in_map(w, w->below);
	ret = copy_store(w->below);
	store_free(w->below);
	return ret;
}

static void world_up(struct world *w)
{
	struct copy *history;
	struct image im, lost, clone;
	struct tm_id id;

	*w = (struct world){.n = 0};
	rig_up(&w->rig, BS, seed);
	w->base[CMD_INIT] = calloc(1, sizeof(struct copy));
	assert_non_null(w->base[CMD_INIT]);
	image_init(&im, (uint64_t)BLOCKS * BS, BS);
	image_change(&im, &w->rig.random, 40);
	for (unsigned i = 0; i < 4; i++) {
		past_point(w, i, &im);
		image_change(&im, &w->rig.random, 3);
		if (i == 0) {
			shuffle(w, &im, &lost);
			image_change(&lost, &w->rig.random, 10);
			w->rig.give_up = true;
			assert_int_equal(rig_backup(&w->rig, &lost, NULL, &id, NULL),
					 TM_E_CANCELED);
			w->rig.give_up = false;
			image_done(&lost);
		}
		if (i == 2)
			w->earlier = copy_store(&w->rig.store->st);
	}
	w->next = im;
	assert_int_equal(repo_protect(w->rig.repo, &w->id[PROTECTED], true, NULL), 0);
	shuffle(w, &w->next, &clone);
	past_point(w, 4, &clone);
	shuffle(w, &clone, &w->clone_next);
	image_done(&clone);
	w->now = w->rig.now;
	history = copy_store(&w->rig.store->st);
	close_repo(w);
	for (unsigned c = CMD_FULL; c < COMMANDS; c++)
		w->base[c] = base_of(w, history, (enum command)c);
	copy_free(history);
}

static void world_down(struct world *w)
{
	for (unsigned c = 0; c < COMMANDS; c++)
		copy_free(w->base[c]);
	copy_free(w->earlier);
	for (unsigned i = 0; i < POINTS; i++)
		image_done(&w->im[i]);
	image_done(&w->next);
	image_done(&w->clone_next);
	rig_down(&w->rig);
}

/* ---- the sweep ---- */

/* Repair and verify have most of the requests. */
static unsigned stride(enum command cmd)
{
	const char *text = getenv("STORE_FAULTS");
	unsigned n = text ? (unsigned)strtoul(text, NULL, 10) : 0;

	n = n ? n : 29;
	return n > 1 && (cmd == CMD_REPAIR || cmd == CMD_VERIFY) ? 4 * n : n;
}

static void nothing_is_lost_at_any_request(void **state)
{
	struct world *w = calloc(1, sizeof(*w));
	unsigned turn = (unsigned)(seed % 1024);

	(void)state;
	assert_non_null(w);
	world_up(w);
	for (unsigned c = 0; c < COMMANDS; c++) {
		unsigned step = stride((enum command)c);

		w->cmd = (enum command)c;
		w->runs = w->hits = w->failed = 0;
		for (unsigned i = 0; i < 2 * WAYS; i++) {
			bool reached = true;

			w->way = i / 2;
			w->for_good = i % 2;
			for (w->n = 1 + turn % step; reached; w->n += step)
				reached = hit(w);
			turn += w->n;
		}
		printf("%-20s %5u runs, %6u requests hit, %5u runs failed\n", command_name[c],
		       w->runs, w->hits, w->failed);
		(void)fflush(stdout);
	}
	world_down(w);
	free(w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(nothing_is_lost_at_any_request),
	};

	seed = test_seed();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
