/* SPDX-License-Identifier: Apache-2.0 */
/* Sessions, points and reads on a memory store, against images kept beside them. */
#include "test_repo.h"

#include "repo/cache.h"
#include "repo/crypt.h"
#include "repo/internal.h"
#include "repo/scrub.h"

#define BS     4096
#define EPOCHS 12

static uint64_t seed;

/* I4: what a session is called in a map, it is called in all maps that are made from that one. */
static void check_tables(const struct point_list *l)
{
	for (size_t i = 1; i < l->n; i++) {
		const struct disk_map *a = l->v[i - 1]->disks[0].map, *b = l->v[i]->disks[0].map;

		assert_true(a->nsessions <= b->nsessions);
		if (a->nsessions)
			assert_memory_equal(a->table, b->table, a->nsessions * sizeof(*a->table));
	}
}

struct ordinals {
	struct rig *rig;
	struct tm_id session;
	uint64_t next; /* blocks before have an ordinal */
	unsigned slots;
};

static int see_segment(void *data, const char *key, uint64_t size, struct error *err)
{
	struct ordinals *o = data;
	auto_clean(seg_tables_free) struct seg_tables *t = NULL;
	auto_clean(aead_free) struct aead *aead = NULL;
	auto_buf struct buf b = {0};
	struct seg_address a;

	(void)size;
	if (!scrub_parse_segment(o->rig->repo, key, &a) || a.type != SEGMENT_DATA)
		return 0;
	if (!id_equal(&a.session, &o->session))
		o->next = 0;
	o->session = a.session;
	assert_int_equal(store_read(o->rig->store->below, key, 64 << 20, &b, err), 0);
	assert_int_equal(aead_new(&aead, err), 0);
	assert_int_equal(seg_tables_parse(&a, &o->rig->repo->keys, b.data, b.len, aead, &t, err),
			 0);
	for (uint32_t i = 0; i < t->nslots; i++, o->slots++) {
		assert_true(desc_block(&t->descs[i]) >= o->next);
		o->next = desc_block(&t->descs[i]) + 1;
	}
	return 0;
}

/* I5: names of segments come in the order of their ordinals; there is one disk. */
static void check_ordinals(struct rig *rig)
{
	struct ordinals o = {.rig = rig};
	struct store *st = rig->store->below;

	assert_int_equal(st->ops->list(st, "d/", see_segment, &o, NULL), 0);
	assert_true(o.slots > 100);
}

/* Epochs of random changes and resizes; after each one all points are read back. */
static void every_point_reads_back_what_was_backed_up(void **state)
{
	struct image im, past[EPOCHS];
	struct rig rig;

	(void)state;
	rig_up(&rig, BS, seed);
	image_init(&im, 5 * 1024 * 1024 + 777, BS);
	image_change(&im, &rig.random, 60);
	for (unsigned epoch = 0; epoch < EPOCHS; epoch++) {
		auto_point_list struct point_list l = {0};
		struct error err = {0};
		struct tm_id id;

		assert_int_equal(repo_points(rig.repo, rig_guest, &l, NULL, &err), 0);
		check_tables(&l);
		if (rig_backup(&rig, &im, epoch ? l.v[l.n - 1] : NULL, &id, &err) < 0)
			fail_msg("epoch %u: %s", epoch, err.text);
		image_copy(&im, &past[epoch]);
		rig_read_all(&rig, past, epoch + 1);
		if (test_below(&rig.random, 2))
			image_resize(&im, 1 + test_below(&rig.random, 9 * 1024 * 1024));
		image_change(&im, &rig.random, (unsigned)test_below(&rig.random, 20));
	}
	check_ordinals(&rig);
	for (unsigned i = 0; i < EPOCHS; i++)
		image_done(&past[i]);
	image_done(&im);
	rig_down(&rig);
}

/* What a backup of `im` does when its n-th call of the store fails, for all n. */
static void sweep_failures(struct rig *rig, struct image *im, struct image *past, bool for_good)
{
	auto_free bool *dirty = malloc(im->blocks);
	unsigned n, borne = 0;

	assert_non_null(dirty);
	memcpy(dirty, im->dirty, im->blocks);
	for (n = 1;; n++) {
		auto_point_list struct point_list l = {0};
		struct error err = {0};
		struct tm_id id;
		int r;

		assert_int_equal(repo_points(rig->repo, rig_guest, &l, NULL, &err), 0);
		rig->store->calls = 0;
		rig->store->fail_at = n;
		rig->store->for_good = for_good;
		r = rig_backup(rig, im, l.v[0], &id, &err);
		rig->store->fail_at = 0;
		if (r == 0 && rig->store->calls < n)
			break;
		if (r == 0) { /* only what was loaded ahead is asked for again */
			assert_false(for_good);
			memcpy(im->dirty, dirty, im->blocks);
			borne++;
			continue;
		}
		assert_int_equal(r, TM_E_IO);
		assert_true(strlen(err.text) > 0);
	}
	assert_true(n > 8 && borne <= 2);
	{
		auto_point_list struct point_list l = {0};
		struct error err = {0};

		assert_int_equal(repo_points(rig->repo, rig_guest, &l, NULL, &err), 0);
		if (rig_read(rig, l.v[0], past, &err) < 0)
			fail_msg("%s", err.text);
		if (rig_read(rig, l.v[l.n - 1], im, &err) < 0)
			fail_msg("%s", err.text);
	}
}

static void a_failing_store_fails_the_backup_and_nothing_else(void **state)
{
	(void)state;
	for (int for_good = 0; for_good < 2; for_good++) {
		struct image im, past;
		struct error err = {0};
		struct tm_id id;
		struct rig rig;

		rig_up(&rig, BS, seed);
		image_init(&im, 3 * 1024 * 1024, BS);
		image_change(&im, &rig.random, 40);
		assert_int_equal(rig_backup(&rig, &im, NULL, &id, &err), 0);
		image_copy(&im, &past);
		image_change(&im, &rig.random, 10);
		sweep_failures(&rig, &im, &past, for_good);
		image_done(&im);
		image_done(&past);
		rig_down(&rig);
	}
}

static void a_failing_store_fails_the_read(void **state)
{
	auto_point_list struct point_list l = {0};
	struct error err = {0};
	struct image im;
	struct tm_id id;
	struct rig rig;
	unsigned n;

	(void)state;
	rig_up(&rig, BS, seed);
	image_init(&im, 3 * 1024 * 1024, BS);
	image_change(&im, &rig.random, 40);
	assert_int_equal(rig_backup(&rig, &im, NULL, &id, &err), 0);
	for (n = 1;; n++) {
		struct store *below = rig.store->below;
		struct repo *again;
		int r;

		/* a new repository object, so that nothing is cached */
		rig.store->below = NULL;
		repo_free(rig.repo);
		rig.store = calloc(1, sizeof(*rig.store));
		*rig.store = (struct failing){.st = {.ops = &failing_ops, .loop = rig.loop},
					      .below = below};
		assert_int_equal(repo_open(&rig.store->st, &again, &err), 0);
		rig.repo = again;
		point_list_done(&l);
		assert_int_equal(repo_points(rig.repo, rig_guest, &l, NULL, &err), 0);
		rig.store->calls = 0;
		rig.store->fail_at = n;
		error_clear(&err);
		r = rig_read(&rig, l.v[0], &im, &err);
		if (r == 0)
			break;
		assert_int_equal(r, TM_E_IO);
	}
	assert_true(n > 2);
	image_done(&im);
	rig_down(&rig);
}

/*
 * Each block was stored by another session, so that comparing each needs other tables: that many
 * are not worth it.  Which ones are loaded is the same whatever the cache holds, and in
 * whatever order the store answers; so is what is stored.
 */
static void what_is_compared_depends_on_nothing_but_the_input(void **state)
{
	const unsigned sessions = 80, worth = 64;
	struct error err = {0};
	struct rig rig;
	struct image im;
	struct tm_id id;

	(void)state;
	rig_up(&rig, BS, seed);
	image_init(&im, (uint64_t)sessions * 3 * BS, BS);
	for (unsigned i = 0; i < sessions; i++) {
		auto_clean(point_free) struct point *p = NULL;

		if (i > 0)
			assert_int_equal(repo_point_get(rig.repo, NULL, &id, &p, &err), 0);
		image_noise(&im, &rig.random, 3 * i, 3 * i + 1);
		assert_int_equal(rig_backup(&rig, &im, p, &id, &err), 0);
	}
	rig.give_up = true;
	for (unsigned how = 0; how < 8; how++) {
		auto_clean(point_free) struct point *p = NULL;

		assert_int_equal(repo_point_get(rig.repo, NULL, &id, &p, &err), 0);
		for (unsigned i = 0; i < sessions; i++)
			im.dirty[3 * i] = true;
		if (how > 0)
			cache_drop(rig.repo->cache);
		rig.store->fault = FAULT_DELAY;
		rig.store->of = REQUEST_GET;
		rig.store->calls = rig.store->hits = 0;
		rig.store->for_good = true;
		rig.store->fail_at = how / 2;
		error_clear(&err);
		assert_int_equal(rig_backup(&rig, &im, p, &(struct tm_id){{0}}, &err),
				 TM_E_CANCELED);
		rig.store->fail_at = 0;
		assert_int_equal(rig.counts.same_bytes, worth * BS);
		assert_int_equal(rig.counts.new_bytes, (sessions - worth) * BS);
	}
	image_done(&im);
	rig_down(&rig);
}

/* Content ids that are not those of the content, under seals that are right. */
static void a_read_proves_content_ids_when_asked(void **state)
{
	auto_point_list struct point_list l = {0};
	struct error err = {0};
	struct image im;
	struct rig rig;
	struct tm_id id;

	(void)state;
	rig_up(&rig, BS, seed);
	image_init(&im, 1024 * 1024, BS);
	image_change(&im, &rig.random, 20);
	rig.repo->keys.id.b[0] ^= 1;
	assert_int_equal(rig_backup(&rig, &im, NULL, &id, &err), 0);
	rig.repo->keys.id.b[0] ^= 1;
	assert_int_equal(repo_points(rig.repo, rig_guest, &l, NULL, &err), 0);
	assert_int_equal(rig_read(&rig, l.v[0], &im, &err), 0);
	rig.prove = true;
	assert_int_equal(rig_read(&rig, l.v[0], &im, &err), TM_E_CORRUPT);
	assert_non_null(strstr(err.text, "is not the one that was stored"));
	image_done(&im);
	rig_down(&rig);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_point_reads_back_what_was_backed_up),
		cmocka_unit_test(a_failing_store_fails_the_backup_and_nothing_else),
		cmocka_unit_test(a_failing_store_fails_the_read),
		cmocka_unit_test(what_is_compared_depends_on_nothing_but_the_input),
		cmocka_unit_test(a_read_proves_content_ids_when_asked),
	};

	seed = test_seed();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
