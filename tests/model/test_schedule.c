/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The real code under a scheduler: three writers, two janitors and a reader on one store
 * in memory, each a thread that stops before every request to the store.  A seeded choice
 * lets one of them go on at a time; some stall, for ever or until the others are done.
 * Afterwards every valid point must read bit-exact, and whatever was reported as committed
 * and not deleted must be there (docs/format.md, I3, I8, I11, I12).
 *
 *	SEED=n        where to begin (printed)
 *	SCHEDULES=n   how many (default 600)
 *	TRACE=1       prints every request
 */
#include "../unit/test_repo.h"

#include "repo/cache.h"
#include "repo/internal.h"

#include <pthread.h>
#include <semaphore.h>

#define BS         4096
#define BLOCKS     40
#define BASE       3 /* points there are at first */
#define WRITERS    3
#define JANITORS   2
#define ACTORS     (WRITERS + JANITORS + 1)
#define MAX_POINTS 64
#define ID_MS      UINT64_C(1700000000000)

enum role {
	WRITER,
	JANITOR,
	READER,
};

struct content {
	struct tm_id id;
	bool reported;  /* the writer was told that it is committed */
	bool forgotten; /* somebody has put a tombstone, or tried to */
	uint8_t tag[BLOCKS];
};

struct actor {
	struct store gate; /* what its repository sees */
	enum role role;
	pthread_t thread;
	sem_t go;
	struct loop *loop;
	struct pool *pool;
	struct repo *repo;
	uint64_t random;
	bool gated;
	/* of the present schedule: */
	bool waiting, done, canceled;
	unsigned requests, stall_at; /* 0: never */
	bool for_ever;
};

static struct {
	uint64_t seed;       /* of the present schedule */
	struct store *below; /* the store in memory; its loop is that of whoever runs */
	sem_t arrived;
	struct actor actor[ACTORS];
	struct content content[MAX_POINTS];
	unsigned ncontent;
	bool quit, trace;
	struct {
		char *key;
		struct buf bytes;
	} base[64];
	unsigned nbase;
	unsigned long commits, refused, removals, rewrites, reads, failed_reads, prunes, stalled,
		gave_up;
} w;

/* From any thread. */
#define die(...)                                                                                 \
	(printf("SEED=%llu: ", (unsigned long long)w.seed), printf(__VA_ARGS__), fflush(stdout), \
	 abort())

/* ---- the gate ---- */

/* False when the actor was stalled for ever: nothing it asks for happens any more. */
static bool gate_pass(struct store *st, const char *what, const char *key)
{
	struct actor *a = container_of(st, struct actor, gate);

	if (a->gated && !a->canceled) {
		a->waiting = true;
		sem_post(&w.arrived);
		while (sem_wait(&a->go) != 0)
			continue;
		a->waiting = false;
		a->requests++;
	}
	if (w.trace && a->gated && !a->canceled)
		printf("%c%td %s %s\n", "WJR"[a->role], a - w.actor, what, key);
	w.below->loop = a->loop;
	return !a->canceled;
}

static void gate_put(struct store *st, const char *key, const void *bytes, size_t len,
		     struct store_req *req)
{
	error_clear(&req->err);
	if (gate_pass(st, "put", key))
		w.below->ops->put_new(w.below, key, bytes, len, req);
	else
		store_answer(st, req, error_set(&req->err, TM_E_CANCELED, "stalled for ever"));
}

static void gate_get(struct store *st, const char *key, void *bytes, size_t len, uint64_t offset,
		     struct store_req *req)
{
	error_clear(&req->err);
	req->got = 0;
	if (gate_pass(st, "get", key))
		w.below->ops->get(w.below, key, bytes, len, offset, req);
	else
		store_answer(st, req, error_set(&req->err, TM_E_CANCELED, "stalled for ever"));
}

static int gate_list(struct store *st, const char *prefix, store_list_fn *fn, void *data,
		     struct error *err)
{
	if (!gate_pass(st, "list", prefix))
		return error_set(err, TM_E_CANCELED, "stalled for ever");
	return w.below->ops->list(w.below, prefix, fn, data, err);
}

static int gate_head(struct store *st, const char *key, uint64_t *ret, struct error *err)
{
	if (!gate_pass(st, "head", key))
		return error_set(err, TM_E_CANCELED, "stalled for ever");
	return w.below->ops->head(w.below, key, ret, err);
}

static int gate_remove(struct store *st, const char *key, struct error *err)
{
	if (!gate_pass(st, "remove", key))
		return error_set(err, TM_E_CANCELED, "stalled for ever");
	return w.below->ops->remove(w.below, key, err);
}

static int gate_sync(struct store *st, const char *prefix, struct error *err)
{
	if (!gate_pass(st, "sync", prefix))
		return error_set(err, TM_E_CANCELED, "stalled for ever");
	return w.below->ops->sync(w.below, prefix, err);
}

static int gate_tidy(struct store *st, struct store_leftovers *left, struct error *err)
{
	if (!gate_pass(st, "tidy", ""))
		return error_set(err, TM_E_CANCELED, "stalled for ever");
	return w.below->ops->tidy(w.below, left, err);
}

static void gate_free(struct store *st)
{
	(void)st; /* inside the actor */
}

static const struct store_ops gate_ops = {
	.put_new = gate_put,
	.get = gate_get,
	.list = gate_list,
	.head = gate_head,
	.remove = gate_remove,
	.sync = gate_sync,
	.tidy = gate_tidy,
	.free = gate_free,
};

/* ---- what points contain ---- */

/* Tag 0: zeroes; even ones compress, odd ones do not. */
static void fill(uint8_t *p, unsigned block, uint8_t tag)
{
	uint64_t random = (uint64_t)tag << 32 | (block + 1);

	memset(p, tag, BS);
	for (unsigned i = 0; tag % 2 && i < BS; i++)
		p[i] = (uint8_t)test_random(&random);
}

static struct content *content_of(const struct tm_id *id)
{
	for (unsigned i = 0; i < w.ncontent; i++)
		if (id_equal(&w.content[i].id, id))
			return &w.content[i];
	return NULL;
}

/* ---- writers ---- */

struct feeder {
	struct piece piece;
	struct actor *a;
	bool out;
};

static void feeder_back(struct piece *p)
{
	container_of(p, struct feeder, piece)->out = false;
}

/* All blocks that differ from the parent, a few at a time. */
static int feed_blocks(struct feeder *f, struct piece_sink *sink, const struct content *c,
		       const struct content *parent, struct error *err)
{
	uint64_t seq = 0;

	for (unsigned b = 0; b < BLOCKS;) {
		struct piece *p = &f->piece;
		int r;

		p->nruns = p->nclusters = 0;
		for (; b < BLOCKS && p->nclusters < 8 && p->nruns < PIECE_RUNS; b++) {
			if (parent && parent->tag[b] == c->tag[b])
				continue;
			piece_add(p, b, c->tag[b] == 0);
			if (c->tag[b])
				fill(p->data + (size_t)p->nclusters++ * BS, b, c->tag[b]);
		}
		if (p->nruns == 0)
			return 0;
		p->seq = seq++;
		f->out = true;
		r = piece_sink_put(sink, p, err);
		if (r < 0) {
			f->out = false;
			return r;
		}
		while (f->out)
			if (loop_run_once(f->a->loop, -1, err) < 0)
				abort();
	}
	return 0;
}

static int back_up_to(struct actor *a, struct repo_session *s, struct content *c,
		      const struct point *parent, struct error *err)
{
	struct point_disk disk = {.name = rig_disk, .rung = RUNG_BITMAP};
	struct point meta = {.guest = rig_guest,
			     .name = rig_name,
			     .state = rig_state,
			     .disks = &disk,
			     .ndisks = 1,
			     .kind = POINT_OFFLINE,
			     .created_ms = ID_MS};
	struct feeder f = {.a = a, .piece.release = feeder_back};
	struct repo_disk_counts counts;
	struct piece_sink *sink;
	int r, end;

	r = repo_session_disk_begin(s, rig_disk, BLOCKS * BS, parent,
				    parent ? &parent->disks[0] : NULL, &sink, err);
	if (r < 0)
		return r;
	f.piece.data = malloc((size_t)PIECE_CLUSTERS * BS);
	r = feed_blocks(&f, sink, c, parent ? content_of(&parent->id) : NULL, err);
	end = repo_session_disk_end(s, &counts, r < 0 ? NULL : err);
	r = r ? r : end;
	r = r ? r : repo_session_commit(s, &meta, err);
	free(f.piece.data);
	return r;
}

/* Ids are seeded, too, so that a schedule can be had again. */
static void make_id(struct actor *a, struct tm_id *ret)
{
	for (unsigned i = 0; i < 6; i++)
		ret->b[i] = (uint8_t)(ID_MS >> (40 - 8 * i));
	for (unsigned i = 6; i < sizeof(ret->b); i++)
		ret->b[i] = (uint8_t)test_random(&a->random);
}

static int back_up(struct actor *a, const struct point *parent, struct error *err)
{
	struct content *c = &w.content[w.ncontent++], *from = NULL;
	struct repo_session_options opt = {.guest = rig_guest, .pool = a->pool};
	struct repo_session *s = NULL;
	int r;

	assert(w.ncontent <= MAX_POINTS);
	*c = (struct content){.reported = false};
	make_id(a, &c->id);
	opt.id = c->id;
	if (parent) {
		from = content_of(&parent->id);
		assert(from);
		memcpy(c->tag, from->tag, sizeof(c->tag));
	}
	for (unsigned n = 1 + (unsigned)test_below(&a->random, BLOCKS); n > 0; n--)
		c->tag[test_below(&a->random, BLOCKS)] = (uint8_t)test_below(&a->random, 200);
	r = repo_session_begin(a->repo, &opt, &s, err);
	r = r ? r : back_up_to(a, s, c, parent, err);
	repo_session_free(s);
	c->reported = r == 0;
	return r;
}

static void write_points(struct actor *a)
{
	for (unsigned n = 1 + (unsigned)test_below(&a->random, 2); n > 0; n--) {
		auto_point_list struct point_list l = {0};
		struct error err = {0};
		const struct point *parent = NULL;
		int r = repo_points(a->repo, NULL, &l, NULL, &err);

		if (r == 0 && l.n > 0 && test_below(&a->random, 8) > 0)
			parent = l.v[test_below(&a->random, l.n)];
		r = r ? r : back_up(a, parent, &err);
		if (r == 0)
			w.commits++;
		else if (r == TM_E_STALE)
			w.refused++;
		else if (r != TM_E_CANCELED)
			die("a backup fails with %d: %s", r, err.text);
	}
}

/* ---- janitors ---- */

static int forget_some(struct actor *a, struct error *err)
{
	auto_point_list struct point_list l = {0};
	int r = repo_points(a->repo, NULL, &l, NULL, err);

	for (unsigned n = (unsigned)test_below(&a->random, 3); r == 0 && l.n > 0 && n > 0; n--) {
		const struct tm_id *id = &l.v[test_below(&a->random, l.n)]->id;

		content_of(id)->forgotten = true;
		r = repo_forget(a->repo, id, 1, err);
	}
	return r;
}

static void clean_up(struct actor *a)
{
	for (unsigned n = 1 + (unsigned)test_below(&a->random, 2); n > 0; n--) {
		struct repo_prune_report rep = {0};
		struct error err = {0};
		struct repo_prune_options opt = {
			.max_unused = (unsigned)test_below(&a->random, 3) * 40,
			.stale_ms = test_below(&a->random, 2) ? 0 : UINT64_MAX,
			.now_ms = ID_MS,
		};
		int r = forget_some(a, &err);

		r = r ? r : repo_prune(a->repo, &opt, &rep, &err);
		w.removals += rep.removed_objects;
		w.rewrites += rep.compacted_bytes > 0;
		if (r == 0)
			w.prunes++;
		else if (r == TM_E_CANCELED)
			w.stalled++;
		else
			w.gave_up++;
		if (r < 0 && r != TM_E_CANCELED && r != TM_E_CORRUPT && r != TM_E_NOTFOUND)
			die("a prune fails with %d: %s", r, err.text);
	}
}

/* ---- readers ---- */

struct reading {
	struct piece_sink sink;
	uint8_t *got;
};

static int reading_put(struct piece_sink *sink, struct piece *p, struct error *err)
{
	struct reading *c = container_of(sink, struct reading, sink);

	(void)err;
	for (uint32_t i = 0; i < p->nruns; i++)
		if (!p->run[i].zero)
			memcpy(c->got + p->run[i].block * BS,
			       p->data + (size_t)p->run[i].first * BS, p->run[i].count * BS);
	piece_release(p);
	return 0;
}

static int read_point(struct actor *a, const struct point *p, struct error *err)
{
	struct reading c = {.sink.put = reading_put, .got = calloc(BLOCKS, BS)};
	struct repo_read_options opt = {.pool = a->pool, .pieces = 2};
	const struct content *want = content_of(&p->id);
	uint8_t block[BS];
	int r;

	assert(want);
	r = repo_read_disk(a->repo, p, &p->disks[0], &c.sink, &opt, err);
	for (unsigned b = 0; r == 0 && b < BLOCKS; b++) {
		fill(block, b, want->tag[b]);
		if (memcmp(block, c.got + (size_t)b * BS, BS) != 0)
			die("point %s: block %u is not what was backed up", id_text(&p->id).s, b);
	}
	free(c.got);
	return r;
}

static bool is_valid(struct repo *repo, const struct tm_id *id)
{
	auto_point_list struct point_list l = {0};

	if (repo_points(repo, NULL, &l, NULL, NULL) < 0)
		return false;
	for (size_t i = 0; i < l.n; i++)
		if (id_equal(&l.v[i]->id, id))
			return true;
	return false;
}

/* A point that is still valid when its reading has failed should have been readable. */
static void read_points(struct actor *a)
{
	auto_point_list struct point_list l = {0};
	struct error err = {0};

	if (repo_points(a->repo, NULL, &l, NULL, &err) < 0)
		return;
	for (size_t i = 0; i < l.n; i++) {
		int r;

		error_clear(&err);
		r = read_point(a, l.v[i], &err);
		w.reads += r == 0;
		w.failed_reads += r < 0;
		if (r < 0 && r != TM_E_CANCELED && is_valid(a->repo, &l.v[i]->id))
			die("a valid point cannot be read: %s", err.text);
	}
}

/* ---- schedules ---- */

static void *actor_run(void *data)
{
	struct actor *a = data;

	for (;;) {
		while (sem_wait(&a->go) != 0)
			continue;
		if (w.quit)
			return NULL;
		a->gated = true;
		if (a->role == WRITER)
			write_points(a);
		else if (a->role == JANITOR)
			clean_up(a);
		else
			read_points(a);
		a->gated = false;
		a->done = true;
		sem_post(&w.arrived);
	}
}

/* One more request of an actor; it comes back at its next gate, or when it is done. */
static void actor_step(struct actor *a)
{
	sem_post(&a->go);
	while (sem_wait(&w.arrived) != 0)
		continue;
}

static bool is_stalled(const struct actor *a, bool late)
{
	return a->stall_at && a->requests >= a->stall_at && (a->for_ever || !late);
}

/* Runs until all are done or stalled. */
static void run_actors(uint64_t *random, bool late)
{
	for (;;) {
		struct actor *can[ACTORS];
		unsigned n = 0;

		for (unsigned i = 0; i < ACTORS; i++)
			if (!w.actor[i].done && !is_stalled(&w.actor[i], late))
				can[n++] = &w.actor[i];
		if (n == 0)
			return;
		actor_step(can[test_below(random, n)]);
	}
}

static void start_actors(uint64_t *random)
{
	for (unsigned i = 0; i < ACTORS; i++) {
		struct actor *a = &w.actor[i];

		cache_drop(a->repo->cache);
		a->random = test_random(random) | 1;
		a->done = a->canceled = false;
		a->requests = 0;
		a->stall_at = test_below(random, 2) ? 1 + (unsigned)test_below(random, 60) : 0;
		a->for_ever = test_below(random, 2);
		if (test_below(random, 6) == 0) { /* not there at all */
			a->done = true;
			continue;
		}
		actor_step(a);
	}
}

static void end_actors(void)
{
	for (unsigned i = 0; i < ACTORS; i++) {
		struct actor *a = &w.actor[i];

		if (a->done)
			continue;
		a->canceled = true;
		actor_step(a);
		assert(a->done);
		a->canceled = false;
	}
}

static void fresh_store(void)
{
	struct error err = {0};
	struct loop *loop = w.actor[0].loop;

	store_free(w.below);
	assert_int_equal(store_memory_new(loop, &w.below, NULL), 0);
	for (unsigned i = 0; i < w.nbase; i++)
		if (store_put_wait(w.below, w.base[i].key, w.base[i].bytes.data,
				   w.base[i].bytes.len, &err) < 0)
			die("%s", err.text);
	w.ncontent = BASE;
}

/* All valid points read right, and none is missing. */
static void check_points(struct actor *a)
{
	auto_point_list struct point_list l = {0};
	struct error err = {0};
	size_t damaged = 0;

	cache_drop(a->repo->cache);
	if (repo_points(a->repo, NULL, &l, &damaged, &err) < 0)
		die("%s", err.text);
	assert_int_equal(damaged, 0);
	for (size_t i = 0; i < l.n; i++)
		if (read_point(a, l.v[i], &err) < 0)
			die("%s", err.text);
	for (unsigned i = 0; i < w.ncontent; i++) {
		bool there = false;

		for (size_t k = 0; k < l.n; k++)
			there = there || id_equal(&l.v[k]->id, &w.content[i].id);
		if (w.content[i].reported && !there && !w.content[i].forgotten)
			die("point %s was reported and is gone", id_text(&w.content[i].id).s);
	}
}

/* A prune that is alone leaves only what is needed: another one finds nothing. */
static void check_clean(struct actor *a)
{
	struct repo_prune_options opt = {.max_unused = 0, .now_ms = ID_MS};
	struct repo_prune_report rep;
	struct error err = {0};

	for (unsigned i = 0; i < 2; i++) {
		cache_drop(a->repo->cache);
		if (repo_prune(a->repo, &opt, &rep, &err) < 0)
			die("a prune that is alone fails: %s", err.text);
	}
	assert_int_equal(rep.removed_objects, 0);
	check_points(a);
}

static void run_schedule(uint64_t seed)
{
	uint64_t random = seed * UINT64_C(0x9e3779b97f4a7c15) | 1;
	struct actor *a = &w.actor[0];

	fresh_store();
	start_actors(&random);
	run_actors(&random, false);
	run_actors(&random, true);
	end_actors();
	check_points(a);
	check_clean(a);
}

/* ---- set up ---- */

static int save_object(void *data, const char *key, uint64_t size, struct error *err)
{
	(void)data;
	(void)size;
	(void)err;
	assert(w.nbase < ARRAY_SIZE(w.base));
	w.base[w.nbase++].key = strdup(key);
	return 0;
}

static void actor_up(struct actor *a, unsigned i)
{
	struct error err = {0};

	a->gate = (struct store){.ops = &gate_ops};
	a->role = i < WRITERS ? WRITER : i < WRITERS + JANITORS ? JANITOR : READER;
	assert_int_equal(sem_init(&a->go, 0, 0), 0);
	assert_int_equal(loop_new(64, &a->loop, NULL), 0);
	assert_int_equal(pool_new(a->loop, 1, &a->pool, NULL), 0);
	a->gate.loop = a->loop;
	if (i == 0) {
		const struct repo_init_options opt = {.block_size = BS};

		assert_int_equal(store_memory_new(a->loop, &w.below, NULL), 0);
		if (repo_init(&a->gate, &opt, &a->repo, &err) < 0)
			die("%s", err.text);
	} else if (repo_open(&a->gate, &a->repo, &err) < 0) {
		die("%s", err.text);
	}
	assert_int_equal(pthread_create(&a->thread, NULL, actor_run, a), 0);
}

static void make_base(struct actor *a)
{
	struct error err = {0};

	a->random = 12345;
	for (unsigned i = 0; i < BASE; i++) {
		auto_point_list struct point_list l = {0};

		assert_int_equal(repo_points(a->repo, NULL, &l, NULL, &err), 0);
		if (back_up(a, i ? l.v[l.n - 1] : NULL, &err) < 0)
			die("%s", err.text);
	}
	assert_int_equal(w.below->ops->list(w.below, "", save_object, NULL, NULL), 0);
	for (unsigned i = 0; i < w.nbase; i++)
		assert_int_equal(
			store_read(w.below, w.base[i].key, 1 << 20, &w.base[i].bytes, NULL), 0);
}

static void every_schedule_keeps_every_point(void **state)
{
	const char *text = getenv("SCHEDULES");
	unsigned long n = text ? strtoul(text, NULL, 0) : 600;
	uint64_t seed = test_seed();

	(void)state;
	w.trace = getenv("TRACE") != NULL;
	assert_int_equal(sem_init(&w.arrived, 0, 0), 0);
	for (unsigned i = 0; i < ACTORS; i++)
		actor_up(&w.actor[i], i);
	make_base(&w.actor[0]);
	for (unsigned long i = 0; i < n; i++) {
		w.seed = seed + i;
		run_schedule(seed + i);
	}
	printf("%lu schedules: %lu commits, %lu refused; %lu prunes, %lu stalled for ever, %lu "
	       "gave up, %lu objects "
	       "removed, %lu runs rewrote segments; %lu reads, %lu of dead points failed\n",
	       n, w.commits, w.refused, w.prunes, w.stalled, w.gave_up, w.removals, w.rewrites,
	       w.reads, w.failed_reads);
	w.quit = true;
	for (unsigned i = 0; i < ACTORS; i++) {
		struct actor *a = &w.actor[i];

		sem_post(&a->go);
		assert_int_equal(pthread_join(a->thread, NULL), 0);
		repo_free(a->repo);
		pool_free(a->pool);
		loop_free(a->loop);
	}
	for (unsigned i = 0; i < w.nbase; i++) {
		free(w.base[i].key);
		buf_done(&w.base[i].bytes);
	}
	store_free(w.below);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_schedule_keeps_every_point),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
