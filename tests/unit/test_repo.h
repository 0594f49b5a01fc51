/* SPDX-License-Identifier: Apache-2.0 */
/* What the tests of repo/ share: a rig, and images to back up. */
#pragma once

#include "test_store.h"

/* ---- rig ---- */

struct rig {
	struct loop *loop;
	struct pool *pool;
	struct failing *store; /* the repository's */
	struct repo *repo;
	uint64_t random;
	uint64_t now;
	bool whole;                     /* backups name every block, parent or not */
	bool give_up;                   /* backups end before their commit, with TM_E_CANCELED */
	bool prove;                     /* reads compare content ids */
	bool siblings;                  /* backups look for the like of what they store */
	const struct point *like;       /* with siblings: this one is named, or NULL */
	const struct tm_id *forget;     /* a point that goes once siblings are listed, or NULL */
	char *guest;                    /* of backups; NULL: always the same */
	char *name;                     /* of the next point; NULL: always the same */
	struct repo_disk_counts counts; /* of the last backup */
};

static inline struct failing *rig_store(struct rig *rig)
{
	struct failing *f = calloc(1, sizeof(*f));

	assert_non_null(f);
	f->st.ops = &failing_ops;
	f->st.loop = rig->loop;
	assert_int_equal(store_memory_new(rig->loop, &f->below, NULL), 0);
	return f;
}

static inline void rig_up(struct rig *rig, uint32_t block_size, uint64_t seed)
{
	const struct repo_init_options opt = {.block_size = block_size};
	struct error err = {0};

	*rig = (struct rig){.random = seed | 1, .now = 1700000000000};
	assert_int_equal(loop_new(64, &rig->loop, NULL), 0);
	assert_int_equal(pool_new(rig->loop, 2, &rig->pool, NULL), 0);
	rig->store = rig_store(rig);
	if (repo_init(&rig->store->st, &opt, &rig->repo, &err) < 0)
		fail_msg("%s", err.text);
}

static inline void rig_down(struct rig *rig)
{
	repo_free(rig->repo);
	pool_free(rig->pool);
	loop_free(rig->loop);
}

/* ---- images ---- */

/* A disk and what its next point has to store. */
struct image {
	uint8_t *data;
	uint64_t size;
	uint64_t blocks;
	uint32_t bs;
	bool *dirty; /* per block */
};

static inline void image_init(struct image *im, uint64_t size, uint32_t bs)
{
	*im = (struct image){.size = size, .blocks = (size + bs - 1) / bs, .bs = bs};
	im->data = calloc(im->blocks + 1, bs);
	im->dirty = calloc(im->blocks + 1, sizeof(bool));
	assert_non_null(im->data);
	assert_non_null(im->dirty);
}

static inline void image_done(struct image *im)
{
	free(im->data);
	free(im->dirty);
}

static inline void image_copy(const struct image *from, struct image *to)
{
	image_init(to, from->size, from->bs);
	memcpy(to->data, from->data, from->size);
}

static inline void image_resize(struct image *im, uint64_t size)
{
	struct image n;
	uint64_t keep = im->size < size ? im->size : size;

	image_init(&n, size, im->bs);
	memcpy(n.data, im->data, keep);
	for (uint64_t b = 0; b < n.blocks && b < im->blocks; b++)
		n.dirty[b] = im->dirty[b];
	if (size < im->size && size % im->bs)
		n.dirty[n.blocks - 1] = true;
	image_done(im);
	*im = n;
}

/* Bytes that compress, noise, or zeroes. */
static inline void image_write(struct image *im, uint64_t *random, uint64_t block)
{
	uint8_t *p = im->data + block * im->bs;
	uint64_t kind = test_below(random, 10), left = im->size - block * im->bs;
	size_t len = left < im->bs ? (size_t)left : im->bs;

	im->dirty[block] = true;
	if (kind < 2) {
		memset(p, 0, len);
	} else if (kind < 5) {
		for (size_t i = 0; i < len; i++)
			p[i] = (uint8_t)test_random(random);
	} else {
		uint8_t c = (uint8_t)test_random(random);

		for (size_t i = 0; i < len; i++)
			p[i] = (uint8_t)(c + (i / 7) % 13);
	}
}

static inline void image_change(struct image *im, uint64_t *random, unsigned times)
{
	for (unsigned i = 0; i < times; i++) {
		uint64_t at = test_below(random, im->blocks), n = 1 + test_below(random, 24);

		for (uint64_t b = at; b < at + n && b < im->blocks; b++)
			image_write(im, random, b);
	}
}

/* What cannot be compressed. */
static inline void image_noise(struct image *im, uint64_t *random, uint64_t from, uint64_t to)
{
	for (uint64_t b = from; b < to; b++) {
		for (uint32_t i = 0; i < im->bs; i++)
			im->data[b * im->bs + i] = (uint8_t)test_random(random);
		im->dirty[b] = true;
	}
}

/* ---- a producer of pieces ---- */

#define FEED_PIECES 6

struct feed {
	struct rig *rig;
	struct image *im;
	struct piece piece[FEED_PIECES];
	struct piece *idle;
	unsigned out;
	uint64_t block; /* next */
	uint64_t seq;
	bool full; /* all blocks, not only dirty ones */
};

static struct feed *feed_of_release; /* release() has no argument for it */

static inline void feed_release(struct piece *p)
{
	p->next = feed_of_release->idle;
	feed_of_release->idle = p;
	feed_of_release->out--;
}

static inline void feed_init(struct feed *f, struct rig *rig, struct image *im, bool full)
{
	*f = (struct feed){.rig = rig, .im = im, .full = full};
	for (unsigned i = 0; i < FEED_PIECES; i++) {
		f->piece[i].data = malloc((size_t)PIECE_CLUSTERS * im->bs);
		f->piece[i].release = feed_release;
		f->piece[i].next = f->idle;
		f->idle = &f->piece[i];
	}
	feed_of_release = f;
}

static inline void feed_done(struct feed *f)
{
	assert_int_equal(f->out, 0);
	for (unsigned i = 0; i < FEED_PIECES; i++)
		free(f->piece[i].data);
}

static inline bool block_is_zero(const struct image *im, uint64_t block)
{
	const uint8_t *p = im->data + block * im->bs;

	for (uint32_t i = 0; i < im->bs; i++)
		if (p[i])
			return false;
	return true;
}

static inline void piece_add(struct piece *p, uint64_t block, bool zero)
{
	struct piece_run *last = p->nruns ? &p->run[p->nruns - 1] : NULL;

	if (last && last->zero == zero && last->block + last->count == block) {
		last->count++;
	} else {
		p->run[p->nruns++] = (struct piece_run){
			.block = block, .count = 1, .first = p->nclusters, .zero = zero};
	}
}

/* Fills p with what comes next; false at the end. */
static inline bool feed_next(struct feed *f, struct piece *p)
{
	unsigned clusters = 1 + (unsigned)test_below(&f->rig->random, PIECE_CLUSTERS);

	p->nruns = p->nclusters = 0;
	while (f->block < f->im->blocks && p->nclusters < clusters && p->nruns < PIECE_RUNS) {
		uint64_t b = f->block++;

		if (!f->full && !f->im->dirty[b])
			continue;
		/* some zeroes are known as such, others come as data */
		if (block_is_zero(f->im, b) && test_below(&f->rig->random, 2)) {
			piece_add(p, b, true);
			continue;
		}
		piece_add(p, b, false);
		memcpy(p->data + (size_t)p->nclusters * f->im->bs, f->im->data + b * f->im->bs,
		       f->im->bs);
		p->nclusters++;
	}
	if (p->nruns == 0)
		return false;
	p->seq = f->seq++;
	return true;
}

/* Hands two pieces over at a time, the later one first. */
static inline int feed_run(struct feed *f, struct piece_sink *sink, struct error *err)
{
	for (;;) {
		struct piece *pair[2] = {NULL, NULL};
		int r = 0;

		while (!f->idle || !f->idle->next)
			if (loop_run_once(f->rig->loop, 1000, err) < 0)
				return -1;
		for (int i = 0; i < 2; i++) {
			struct piece *p = f->idle;

			if (!feed_next(f, p))
				break;
			f->idle = p->next;
			pair[i] = p;
		}
		for (int i = 1; i >= 0; i--) {
			if (!pair[i])
				continue;
			f->out++;
			r = r ? r : piece_sink_put(sink, pair[i], err);
			if (r < 0)
				feed_release(pair[i]);
		}
		if (r < 0)
			return r;
		if (!pair[1])
			return 0;
	}
}

/* ---- points ---- */

static char rig_disk[] = "vda", rig_guest[] = "guest", rig_name[] = "name", rig_state[] = "running";

/* Backs the image up; parent NULL: all of it. */
static inline int rig_backup(struct rig *rig, struct image *im, const struct point *parent,
			     struct tm_id *ret_id, struct error *err)
{
	auto_clean(repo_session_free) struct repo_session *s = NULL;
	char *guest = rig->guest ? rig->guest : rig_guest;
	struct repo_session_options opt = {.guest = guest, .pool = rig->pool};
	struct point_disk disk = {.name = rig_disk, .rung = parent ? RUNG_BITMAP : RUNG_FULL};
	struct point meta = {.guest = guest,
			     .name = rig->name ? rig->name : rig_name,
			     .state = rig_state,
			     .disks = &disk,
			     .ndisks = 1,
			     .kind = POINT_OFFLINE};
	struct repo_disk_counts counts;
	struct piece_sink *sink;
	struct feed feed;
	int r;

	meta.created_ms = rig->now += 1000;
	if (parent)
		meta.parent = disk.parent = parent->id;
	r = id_new_timed(rig->now, &opt.id, err);
	r = r ? r : repo_session_begin(rig->repo, &opt, &s, err);
	if (r == 0 && rig->siblings)
		r = repo_session_siblings(s, rig->like, err);
	if (r == 0 && rig->forget)
		r = repo_forget(rig->repo, rig->forget, 1, err);
	r = r ? r
	      : repo_session_disk_begin(s, rig_disk, im->size, parent,
					parent ? &parent->disks[0] : NULL, &sink, err);
	if (r < 0)
		return r;
	if (rig->whole)
		repo_session_disk_whole(s);
	feed_init(&feed, rig, im, !parent || rig->whole);
	r = feed_run(&feed, sink, err);
	if (r == 0)
		r = repo_session_disk_end(s, &counts, err);
	else
		assert_true(repo_session_disk_end(s, &counts, NULL) < 0);
	feed_done(&feed);
	if (r == 0) {
		rig->counts = counts;
		disk.new_bytes = counts.new_bytes;
		disk.stored_bytes = counts.stored_bytes;
		r = rig->give_up ? TM_E_CANCELED : repo_session_commit(s, &meta, err);
	}
	if (r == 0) {
		*ret_id = opt.id;
		memset(im->dirty, 0, im->blocks);
	}
	return r;
}

struct collect {
	struct piece_sink sink;
	const struct image *im;
	uint8_t *got;
	uint64_t zeroes;
	struct piece *held; /* one at a time is kept for a while */
};

static inline int collect_put(struct piece_sink *sink, struct piece *p, struct error *err)
{
	struct collect *c = container_of(sink, struct collect, sink);

	(void)err;
	for (uint32_t i = 0; i < p->nruns; i++) {
		const struct piece_run *run = &p->run[i];

		assert_true(run->block + run->count <= c->im->blocks);
		if (run->zero)
			c->zeroes += run->count;
		else
			memcpy(c->got + run->block * c->im->bs,
			       p->data + (size_t)run->first * c->im->bs, run->count * c->im->bs);
	}
	piece_release(p);
	return 0;
}

static inline int rig_read(struct rig *rig, const struct point *p, const struct image *im,
			   struct error *err)
{
	struct collect c = {.sink.put = collect_put, .im = im};
	struct repo_read_options opt = {.pool = rig->pool,
					.pieces = 4,
					.prove = rig->prove,
					.zero_runs = test_below(&rig->random, 2) == 0};
	int r;

	assert_int_equal(p->disks[0].size, im->size);
	c.got = calloc(im->blocks + 1, im->bs);
	r = repo_read_disk(rig->repo, p, &p->disks[0], &c.sink, &opt, err);
	if (r == 0)
		assert_memory_equal(c.got, im->data, im->size);
	free(c.got);
	return r;
}

/* The guest's points are these images. */
static inline void rig_read_all(struct rig *rig, struct image *images, size_t n)
{
	auto_point_list struct point_list l = {0};
	struct error err = {0};

	assert_int_equal(repo_points(rig->repo, rig_guest, &l, NULL, &err), 0);
	assert_int_equal(l.n, n);
	for (size_t i = 0; i < n; i++)
		if (rig_read(rig, l.v[i], &images[i], &err) < 0)
			fail_msg("point %zu: %s", i, err.text);
}
