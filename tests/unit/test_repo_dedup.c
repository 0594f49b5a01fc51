/* SPDX-License-Identifier: Apache-2.0 */
/* What is not stored because it is there already, against a model that compares all bytes. */
#include "test_repo.h"

#include "repo/content.h"
#include "repo/internal.h"

#define BS     4096
#define EPOCHS 10

static uint64_t seed;

static const uint8_t *block_of(const struct image *im, uint64_t block)
{
	return im->data + block * im->bs;
}

/* ---- the model ---- */

/* What one backup has stored so far: blocks of images. */
struct model {
	const uint8_t *stored[8192];
	size_t n;
	struct repo_disk_counts want;
};

static bool model_knows(const struct model *m, const uint8_t *block, uint32_t bs)
{
	for (size_t i = 0; i < m->n; i++)
		if (memcmp(m->stored[i], block, bs) == 0)
			return true;
	return false;
}

static void model_disk(struct model *m, const struct image *im, const struct image *parent,
		       bool whole)
{
	m->want = (struct repo_disk_counts){0};
	for (uint64_t b = 0; b < im->blocks; b++) {
		const uint8_t *block = block_of(im, b);

		if ((!whole && !im->dirty[b]) || block_is_zero(im, b))
			continue;
		if (parent && b < parent->blocks &&
		    memcmp(block, block_of(parent, b), im->bs) == 0) {
			m->want.same_bytes += im->bs;
		} else if (model_knows(m, block, im->bs)) {
			m->want.known_bytes += im->bs;
		} else {
			assert_true(m->n < ARRAY_SIZE(m->stored));
			m->stored[m->n++] = block;
			m->want.new_bytes += im->bs;
		}
	}
}

static void check_counts(const struct repo_disk_counts *got, const struct repo_disk_counts *want)
{
	assert_int_equal(got->new_bytes, want->new_bytes);
	assert_int_equal(got->known_bytes, want->known_bytes);
	assert_int_equal(got->same_bytes, want->same_bytes);
}

static void nothing_is_damaged(struct rig *rig)
{
	const struct repo_verify_options opt = {.pool = rig->pool, .read_data = true};
	struct repo_verify_report report = {0};
	struct error err = {0};

	assert_int_equal(repo_verify(rig->repo, &opt, &report, &err), 0);
	assert_int_equal(report.ndamaged, 0);
	repo_verify_report_done(&report);
}

/* Contents from a small set, so that they meet again elsewhere. */
static void image_repeat(struct image *im, uint64_t *random, unsigned times)
{
	for (unsigned i = 0; i < times; i++) {
		uint64_t b = test_below(random, im->blocks), left = im->size - b * im->bs;

		memset(im->data + b * im->bs, 1 + (int)test_below(random, 20),
		       left < im->bs ? (size_t)left : im->bs);
		im->dirty[b] = true;
	}
}

/* ---- tests ---- */

/* Epochs of changes, repeats and resizes, some by bitmap and some whole. */
static void only_what_is_new_is_stored(void **state)
{
	struct image im, past[EPOCHS];
	struct rig rig;

	(void)state;
	rig_up(&rig, BS, seed);
	image_init(&im, 5 * 1024 * 1024 + 777, BS);
	image_change(&im, &rig.random, 60);
	for (unsigned epoch = 0; epoch < EPOCHS; epoch++) {
		auto_point_list struct point_list l = {0};
		auto_free struct model *m = calloc(1, sizeof(*m));
		struct error err = {0};
		struct tm_id id;

		assert_int_equal(repo_points(rig.repo, rig_guest, &l, NULL, &err), 0);
		rig.whole = test_below(&rig.random, 2) == 0;
		model_disk(m, &im, epoch ? &past[epoch - 1] : NULL, rig.whole || epoch == 0);
		if (rig_backup(&rig, &im, epoch ? l.v[l.n - 1] : NULL, &id, &err) < 0)
			fail_msg("epoch %u: %s", epoch, err.text);
		check_counts(&rig.counts, &m->want);
		image_copy(&im, &past[epoch]);
		rig_read_all(&rig, past, epoch + 1);
		if (test_below(&rig.random, 2))
			image_resize(&im, 1 + test_below(&rig.random, 9 * 1024 * 1024));
		image_change(&im, &rig.random, (unsigned)test_below(&rig.random, 20));
		image_repeat(&im, &rig.random, (unsigned)test_below(&rig.random, 60));
	}
	nothing_is_damaged(&rig);
	for (unsigned i = 0; i < EPOCHS; i++)
		image_done(&past[i]);
	image_done(&im);
	rig_down(&rig);
}

static void a_second_reading_of_the_same_disk_stores_nothing(void **state)
{
	auto_point_list struct point_list l = {0};
	struct error err = {0};
	struct image im, past[2];
	struct rig rig;
	struct tm_id id;

	(void)state;
	rig_up(&rig, BS, seed);
	image_init(&im, 16 * 1024 * 1024 + 5, BS);
	image_change(&im, &rig.random, 200);
	assert_int_equal(rig_backup(&rig, &im, NULL, &id, &err), 0);
	assert_int_equal(repo_points(rig.repo, rig_guest, &l, NULL, &err), 0);
	rig.whole = true;
	assert_int_equal(rig_backup(&rig, &im, l.v[0], &id, &err), 0);
	assert_int_equal(rig.counts.new_bytes, 0);
	assert_int_equal(rig.counts.known_bytes, 0);
	assert_int_equal(rig.counts.stored_bytes, 0);
	image_copy(&im, &past[0]);
	image_copy(&im, &past[1]);
	rig_read_all(&rig, past, 2);
	for (int i = 0; i < 2; i++)
		image_done(&past[i]);
	image_done(&im);
	rig_down(&rig);
}

/* A session whose disks are given one after the other; parent disks by index. */
static int backup_disks(struct rig *rig, struct image *im, size_t n, const struct point *parent,
			struct repo_disk_counts *counts, struct error *err)
{
	auto_clean(repo_session_free) struct repo_session *s = NULL;
	static char names[2][4] = {"vda", "vdb"};
	struct repo_session_options opt = {.guest = rig_guest, .pool = rig->pool};
	struct point_disk disk[2] = {{.name = names[0], .rung = RUNG_FULL},
				     {.name = names[1], .rung = RUNG_FULL}};
	struct point meta = {.guest = rig_guest,
			     .name = rig_name,
			     .state = rig_state,
			     .disks = disk,
			     .ndisks = n,
			     .kind = POINT_OFFLINE};
	int r;

	meta.created_ms = rig->now += 1000;
	for (size_t i = 0; parent && i < n; i++)
		meta.parent = disk[i].parent = parent->id;
	r = id_new_timed(rig->now, &opt.id, err);
	r = r ? r : repo_session_begin(rig->repo, &opt, &s, err);
	for (size_t i = 0; r == 0 && i < n; i++) {
		struct piece_sink *sink;
		struct feed feed;

		if (parent)
			disk[i].parent = parent->id;
		r = repo_session_disk_begin(s, names[i], im[i].size, parent,
					    parent ? &parent->disks[i] : NULL, &sink, err);
		if (r < 0)
			return r;
		repo_session_disk_whole(s);
		feed_init(&feed, rig, &im[i], true);
		r = feed_run(&feed, sink, err);
		r = r ? r : repo_session_disk_end(s, &counts[i], err);
		feed_done(&feed);
	}
	return r ? r : repo_session_commit(s, &meta, err);
}

static void a_second_disk_like_the_first_costs_a_map(void **state)
{
	auto_point_list struct point_list l = {0};
	auto_free struct model *m = calloc(1, sizeof(*m));
	struct repo_disk_counts counts[2];
	struct repo_read_options opt = {.pieces = 4};
	struct error err = {0};
	struct image im[2];
	struct rig rig;

	(void)state;
	rig_up(&rig, BS, seed);
	image_init(&im[0], 6 * 1024 * 1024, BS);
	image_change(&im[0], &rig.random, 80);
	image_copy(&im[0], &im[1]);
	image_change(&im[1], &rig.random, 2);
	for (unsigned epoch = 0; epoch < 2; epoch++) {
		struct repo_disk_counts want;

		if (backup_disks(&rig, im, 2, epoch ? l.v[0] : NULL, counts, &err) < 0)
			fail_msg("%s", err.text);
		point_list_done(&l);
		assert_int_equal(repo_points(rig.repo, rig_guest, &l, NULL, &err), 0);
		if (epoch)
			break;
		model_disk(m, &im[0], NULL, true);
		check_counts(&counts[0], &m->want);
		model_disk(m, &im[1], NULL, true);
		want = m->want;
		check_counts(&counts[1], &want);
		assert_true(want.new_bytes < 60 * BS && want.known_bytes > 100 * BS);
	}
	opt.pool = rig.pool;
	assert_int_equal(counts[0].new_bytes + counts[1].new_bytes, 0);
	for (size_t p = 0; p < 2; p++) {
		for (size_t i = 0; i < 2; i++) {
			struct collect c = {.sink.put = collect_put, .im = &im[i]};

			c.got = calloc(im[i].blocks + 1, BS);
			assert_int_equal(repo_read_disk(rig.repo, l.v[p], &l.v[p]->disks[i],
							&c.sink, &opt, &err),
					 0);
			assert_memory_equal(c.got, im[i].data, im[i].size);
			free(c.got);
		}
	}
	nothing_is_damaged(&rig);
	image_done(&im[0]);
	image_done(&im[1]);
	rig_down(&rig);
}

static void a_block_that_was_not_named_fails_a_whole_disk(void **state)
{
	auto_clean(repo_session_free) struct repo_session *s = NULL;
	struct repo_session_options opt = {.guest = rig_guest};
	struct repo_disk_counts counts;
	struct error err = {0};
	struct piece_sink *sink;
	struct feed feed;
	struct image im;
	struct rig rig;

	(void)state;
	rig_up(&rig, BS, seed);
	opt.pool = rig.pool;
	image_init(&im, 1024 * 1024, BS);
	image_change(&im, &rig.random, 20);
	assert_int_equal(id_new_timed(rig.now, &opt.id, &err), 0);
	assert_int_equal(repo_session_begin(rig.repo, &opt, &s, &err), 0);
	assert_int_equal(
		repo_session_disk_begin(s, rig_disk, im.size + BS, NULL, NULL, &sink, &err), 0);
	repo_session_disk_whole(s);
	feed_init(&feed, &rig, &im, true);
	assert_int_equal(feed_run(&feed, sink, &err), 0);
	assert_int_equal(repo_session_disk_end(s, &counts, &err), TM_E_RANGE);
	feed_done(&feed);
	repo_session_free(tm_steal(s));
	image_done(&im);
	rig_down(&rig);
}

/* The n-th call of the store fails, for all n: the backup fails, the old points stay. */
static void a_failing_store_fails_the_comparison_and_nothing_else(void **state)
{
	struct image im, past;
	struct error err = {0};
	struct tm_id id;
	struct rig rig;
	unsigned n;

	(void)state;
	rig_up(&rig, BS, seed);
	image_init(&im, 3 * 1024 * 1024, BS);
	image_change(&im, &rig.random, 40);
	assert_int_equal(rig_backup(&rig, &im, NULL, &id, &err), 0);
	image_copy(&im, &past);
	image_change(&im, &rig.random, 10);
	image_repeat(&im, &rig.random, 50);
	rig.whole = true;
	for (n = 1;; n++) {
		auto_point_list struct point_list l = {0};
		int r;

		error_clear(&err);
		assert_int_equal(repo_points(rig.repo, rig_guest, &l, NULL, &err), 0);
		rig.store->calls = 0;
		rig.store->fail_at = n;
		r = rig_backup(&rig, &im, l.v[0], &id, &err);
		rig.store->fail_at = 0;
		if (r == 0)
			break;
		assert_int_equal(r, TM_E_IO);
		assert_int_equal(rig_read(&rig, l.v[0], &past, &err), 0);
	}
	assert_true(n > 8);
	nothing_is_damaged(&rig);
	image_done(&im);
	image_done(&past);
	rig_down(&rig);
}

/* ---- siblings ---- */

static char clone_guest[] = "clone";

/* A golden image in the repository, and a clone: its blocks in another order, a few of its own. */
struct clones {
	struct rig rig; /* backs up the clone */
	struct image golden, clone;
	struct point_list points; /* of the golden image */
};

static void clones_up(struct clones *c)
{
	struct error err = {0};
	struct tm_id id;

	*c = (struct clones){.points = {0}};
	rig_up(&c->rig, BS, seed);
	image_init(&c->golden, 6 * 1024 * 1024, BS);
	image_noise(&c->golden, &c->rig.random, 0, c->golden.blocks);
	image_copy(&c->golden, &c->clone);
	for (uint64_t b = 0; b < c->clone.blocks; b++) {
		uint64_t from = (b * 7 + 5) % c->clone.blocks;

		memcpy(c->clone.data + b * BS, c->golden.data + from * BS, BS);
	}
	for (unsigned i = 0; i < 20; i++)
		c->clone.data[test_below(&c->rig.random, c->clone.size)] ^= 1;
	if (rig_backup(&c->rig, &c->golden, NULL, &id, &err) < 0)
		fail_msg("%s", err.text);
	assert_int_equal(repo_points(c->rig.repo, rig_guest, &c->points, NULL, &err), 0);
	c->rig.guest = clone_guest;
	c->rig.siblings = true;
}

static void clones_down(struct clones *c)
{
	point_list_done(&c->points);
	image_done(&c->golden);
	image_done(&c->clone);
	rig_down(&c->rig);
}

static void back_up_clone(struct clones *c)
{
	auto_point_list struct point_list l = {0};
	struct error err = {0};
	struct tm_id id;

	assert_int_equal(repo_points(c->rig.repo, clone_guest, &l, NULL, &err), 0);
	if (rig_backup(&c->rig, &c->clone, l.n ? l.v[l.n - 1] : NULL, &id, &err) < 0)
		fail_msg("%s", err.text);
}

static void read_clone(struct clones *c, size_t index, const struct image *im)
{
	auto_point_list struct point_list l = {0};
	struct error err = {0};

	assert_int_equal(repo_points(c->rig.repo, clone_guest, &l, NULL, &err), 0);
	assert_true(index < l.n);
	if (rig_read(&c->rig, l.v[index], im, &err) < 0)
		fail_msg("%s", err.text);
}

static void a_clone_is_recognized_and_stores_little(void **state)
{
	struct image before;
	struct clones c;

	(void)state;
	clones_up(&c);
	back_up_clone(&c);
	printf("clone of %llu blocks: %llu new, %llu known\n", (unsigned long long)c.clone.blocks,
	       (unsigned long long)c.rig.counts.new_bytes / BS,
	       (unsigned long long)c.rig.counts.known_bytes / BS);
	assert_true(c.rig.counts.new_bytes < c.clone.size / 10);
	read_clone(&c, 0, &c.clone);
	/* its own increments go on from the table with the foreign sessions */
	image_copy(&c.clone, &before);
	image_change(&c.clone, &c.rig.random, 10);
	c.rig.siblings = false;
	back_up_clone(&c);
	read_clone(&c, 0, &before);
	read_clone(&c, 1, &c.clone);
	nothing_is_damaged(&c.rig);
	image_done(&before);
	clones_down(&c);
}

static void a_named_sibling_is_used_from_the_first_block_on(void **state)
{
	struct clones c;

	(void)state;
	clones_up(&c);
	c.rig.like = c.points.v[0];
	back_up_clone(&c);
	assert_true(c.rig.counts.new_bytes <= 20 * BS);
	assert_int_equal(c.rig.counts.new_bytes + c.rig.counts.known_bytes, c.clone.size);
	read_clone(&c, 0, &c.clone);
	nothing_is_damaged(&c.rig);
	clones_down(&c);
}

static void a_sibling_that_is_being_deleted_is_not_referred_to(void **state)
{
	struct clones c;

	(void)state;
	clones_up(&c);
	c.rig.like = c.points.v[0];
	c.rig.forget = &c.points.v[0]->id;
	back_up_clone(&c);
	assert_int_equal(c.rig.counts.known_bytes, 0);
	assert_int_equal(c.rig.counts.new_bytes, c.clone.size);
	read_clone(&c, 0, &c.clone);
	clones_down(&c);
}

static void a_failing_store_fails_the_clone_and_nothing_else(void **state)
{
	struct clones c;
	unsigned n;

	(void)state;
	clones_up(&c);
	for (n = 1;; n++) {
		struct error err = {0};
		struct tm_id id;
		int r;

		c.rig.store->calls = 0;
		c.rig.store->fail_at = n;
		r = rig_backup(&c.rig, &c.clone, NULL, &id, &err);
		c.rig.store->fail_at = 0;
		if (r == 0)
			break;
		assert_int_equal(r, TM_E_IO);
	}
	assert_true(n > 12);
	read_clone(&c, 0, &c.clone);
	nothing_is_damaged(&c.rig);
	clones_down(&c);
}

/* Which contents each of n images has, and how many of them no other image has. */
static uint64_t only_here(const struct image *images, size_t n, size_t which)
{
	const struct image *im = &images[which];
	uint64_t found = 0;

	for (uint64_t b = 0; b < im->blocks; b++) {
		bool elsewhere = block_is_zero(im, b);

		for (size_t i = 0; !elsewhere && i < n; i++)
			for (uint64_t k = 0; !elsewhere && k < images[i].blocks; k++)
				elsewhere = (i != which || k < b) &&
					    memcmp(block_of(im, b), block_of(&images[i], k),
						   im->bs) == 0;
		found += !elsewhere;
	}
	return found;
}

static void stats_tell_what_only_one_point_has(void **state)
{
	enum { POINTS = 4 };
	struct image im, past[POINTS];
	struct repo_stats st = {0};
	struct error err = {0};
	uint64_t all = 0;
	struct rig rig;
	struct tm_id id;

	(void)state;
	rig_up(&rig, BS, seed);
	image_init(&im, 2 * 1024 * 1024, BS);
	for (unsigned i = 0; i < POINTS; i++) {
		auto_point_list struct point_list l = {0};

		/* noise, so that a frame's part of each cluster is its size */
		for (unsigned k = 0; k < (i ? 30 : 300); k++) {
			uint64_t b = test_below(&rig.random, im.blocks);

			for (size_t n = 0; n < BS; n++)
				im.data[b * BS + n] = (uint8_t)test_random(&rig.random);
			im.dirty[b] = true;
		}
		assert_int_equal(repo_points(rig.repo, rig_guest, &l, NULL, &err), 0);
		if (rig_backup(&rig, &im, i ? l.v[l.n - 1] : NULL, &id, &err) < 0)
			fail_msg("%s", err.text);
		image_copy(&im, &past[i]);
	}
	if (repo_stats(rig.repo, &st, &err) < 0)
		fail_msg("%s", err.text);
	assert_int_equal(st.points.n, POINTS);
	assert_int_equal(st.damaged, 0);
	for (unsigned i = 0; i < POINTS; i++) {
		uint64_t data = 0, unique = only_here(past, POINTS, i);

		for (uint64_t b = 0; b < im.blocks; b++)
			data += !block_is_zero(&past[i], b);
		assert_int_equal(st.point[i].raw_bytes, im.size);
		assert_int_equal(st.point[i].data_bytes, data * BS);
		/* a method byte and a tag for up to 16 clusters */
		assert_in_range(st.point[i].unique_bytes, unique * BS, unique * (BS + 17));
		all += st.point[i].new_bytes;
	}
	assert_int_equal(st.cluster_bytes, all);
	assert_true(st.object_bytes > all);
	repo_stats_done(&st);
	for (unsigned i = 0; i < POINTS; i++)
		image_done(&past[i]);
	image_done(&im);
	rig_down(&rig);
}

static void made_id(uint64_t n, uint8_t id[CONTENT_BYTES])
{
	for (unsigned i = 0; i < CONTENT_BYTES / 8; i++) {
		uint64_t x = (n + 1) * UINT64_C(0x9e3779b97f4a7c15) + i;

		x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
		x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
		x ^= x >> 31;
		memcpy(id + 8 * i, &x, sizeof(x));
	}
}

static void the_index_is_bounded_and_finds_all_it_took(void **state)
{
	struct content_index *c = calloc(1, sizeof(*c));
	struct error err = {0};
	uint8_t id[CONTENT_BYTES];
	uint64_t place;

	(void)state;
	content_init(c, CONTENT_MAX_ENTRIES);
	for (uint64_t i = 0; i < CONTENT_MAX_ENTRIES + 100000; i++) {
		made_id(i, id);
		assert_int_equal(content_put(c, id, i, &err), 0);
	}
	assert_int_equal(c->n, CONTENT_MAX_ENTRIES);
	for (uint64_t i = 0; i < CONTENT_MAX_ENTRIES; i++) {
		made_id(i, id);
		assert_true(content_find(c, id, &place) && place == i);
	}
	for (uint64_t i = CONTENT_MAX_ENTRIES; i < CONTENT_MAX_ENTRIES + 100000; i++) {
		made_id(i, id);
		assert_false(content_find(c, id, &place));
	}
	printf("index of %u clusters: %zu bytes\n", c->n, content_memory(c));
	assert_true(content_memory(c) < 91u << 20);
	content_done(c);
	free(c);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(only_what_is_new_is_stored),
		cmocka_unit_test(a_second_reading_of_the_same_disk_stores_nothing),
		cmocka_unit_test(a_second_disk_like_the_first_costs_a_map),
		cmocka_unit_test(a_block_that_was_not_named_fails_a_whole_disk),
		cmocka_unit_test(a_failing_store_fails_the_comparison_and_nothing_else),
		cmocka_unit_test(a_clone_is_recognized_and_stores_little),
		cmocka_unit_test(a_named_sibling_is_used_from_the_first_block_on),
		cmocka_unit_test(a_sibling_that_is_being_deleted_is_not_referred_to),
		cmocka_unit_test(a_failing_store_fails_the_clone_and_nothing_else),
		cmocka_unit_test(stats_tell_what_only_one_point_has),
		cmocka_unit_test(the_index_is_bounded_and_finds_all_it_took),
	};

	seed = test_seed();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
