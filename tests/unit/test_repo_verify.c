/* SPDX-License-Identifier: Apache-2.0 */
/* Damage to any object is found, named, and costs only the points that need it. */
#include "test_repo.h"

#include "repo/cache.h"
#include "repo/internal.h"
#include "repo/lost.h"
#include "repo/worker.h"

#define BS 4096

static uint64_t seed;

/* ---- content ids that are not those of the content ---- */

static bool spoil; /* what is backed up now */

static bool is_spoilt(const uint8_t *cluster)
{
	return cluster[0] % 4 == 0;
}

int __real_content_ids(struct worker *w, unsigned n, const uint8_t *const cluster[], size_t len,
		       uint8_t *const ret[], struct error *err);
int __wrap_content_ids(struct worker *w, unsigned n, const uint8_t *const cluster[], size_t len,
		       uint8_t *const ret[], struct error *err);

int __wrap_content_ids(struct worker *w, unsigned n, const uint8_t *const cluster[], size_t len,
		       uint8_t *const ret[], struct error *err)
{
	int r = __real_content_ids(w, n, cluster, len, ret, err);

	for (unsigned i = 0; spoil && i < n; i++)
		if (is_spoilt(cluster[i]))
			ret[i][0] ^= 1;
	return r;
}

struct keys {
	char key[64][KEY_MAX];
	uint64_t size[64];
	size_t n;
};

static int add_key(void *data, const char *key, uint64_t size, struct error *err)
{
	struct keys *k = data;

	(void)err;
	assert_true(k->n < ARRAY_SIZE(k->key));
	memcpy(k->key[k->n], key, strlen(key) + 1);
	k->size[k->n++] = size;
	return 0;
}

/* A repository object with empty caches over the same store. */
static int reopen(struct rig *rig, struct error *err)
{
	struct store *below = rig->store->below;

	rig->store->below = NULL;
	repo_free(rig->repo);
	rig->repo = NULL;
	rig->store = calloc(1, sizeof(*rig->store));
	*rig->store = (struct failing){.st = {.ops = &failing_ops, .loop = rig->loop}};
	rig->store->below = below;
	return repo_open(&rig->store->st, &rig->repo, err);
}

static void replace(struct store *st, const char *key, const void *bytes, size_t len)
{
	assert_int_equal(st->ops->remove(st, key, NULL), 0);
	assert_int_equal(store_put_wait(st, key, bytes, len, NULL), 0);
}

static int verify(struct rig *rig, struct repo_verify_report *report, bool read_data,
		  struct error *err)
{
	const struct repo_verify_options opt = {.pool = rig->pool, .read_data = read_data};

	return repo_verify(rig->repo, &opt, report, err);
}

static bool covered(const struct repo_verify_report *report, const struct point *p)
{
	for (size_t i = 0; i < report->ndamaged; i++)
		for (size_t k = 0; k < report->damaged[i].nranges; k++)
			if (id_equal(&report->damaged[i].ranges[k].point, &p->id))
				return true;
	return false;
}

/* Every point either reads back right or is named in the report. */
static void check_points(struct rig *rig, const struct image *images, size_t n,
			 const struct repo_verify_report *report)
{
	auto_point_list struct point_list l = {0};
	size_t damaged;

	assert_int_equal(repo_points(rig->repo, rig_guest, &l, &damaged, NULL), 0);
	assert_true(l.n + damaged == n);
	for (size_t i = 0; i < l.n; i++) {
		struct error err = {0};
		int r = rig_read(rig, l.v[i], &images[l.v[i]->seq - 1], &err);

		if (r < 0) {
			assert_int_equal(r, TM_E_CORRUPT);
			assert_true(covered(report, l.v[i]));
		} else if (damaged == 0) {
			assert_false(covered(report, l.v[i]));
		}
	}
}

static void damage_one(struct rig *rig, const struct image *images, size_t n, const char *key,
		       uint64_t size)
{
	auto_free uint8_t *bytes = malloc(size);
	struct store *st = rig->store->below;
	struct repo_verify_report report = {0};
	struct error err = {0};
	auto_buf struct buf b = {0};
	uint64_t at = test_below(&rig->random, size);
	unsigned how = (unsigned)test_below(&rig->random, 8);
	int r;

	assert_int_equal(store_read(st, key, 64 << 20, &b, NULL), 0);
	memcpy(bytes, b.data, size);
	if (how < 6)
		bytes[at] ^= (uint8_t)(1U << test_below(&rig->random, 8));
	if (how < 7)
		replace(st, key, bytes, how < 6 ? (size_t)size : (size_t)at);
	else
		assert_int_equal(st->ops->remove(st, key, NULL), 0);
	r = reopen(rig, &err);
	assert_int_equal(r, 0); /* what opening needs is there twice */
	if (!strstr(key, "keys/") && !strstr(key, "/k/")) {
		assert_int_equal(verify(rig, &report, true, &err), 0);
		if (how < 7 || !strstr(key, "/p/"))
			assert_true(report.ndamaged > 0);
		check_points(rig, images, how == 7 && strstr(key, "/p/") ? n - 1 : n, &report);
		repo_verify_report_done(&report);
	}
	assert_int_equal(how < 7 ? 0 : store_put_wait(st, key, "x", 1, NULL), 0);
	replace(st, key, b.data, b.len);
}

/* The blocks of the only disk that the report says are lost. */
static void lost_blocks(const struct repo_verify_report *report, uint64_t blocks, bool lost[])
{
	memset(lost, 0, blocks * sizeof(*lost));
	for (size_t i = 0; i < report->ndamaged; i++)
		for (size_t k = 0; k < report->damaged[i].nranges; k++) {
			const struct repo_damage_range *range = &report->damaged[i].ranges[k];

			for (uint64_t b = range->offset / BS;
			     b * BS < range->offset + range->length; b++)
				lost[b] = true;
		}
}

/* Clusters are proved several frames at a time: each that is wrong costs its own frame alone. */
static void wrong_clusters_are_found_one_by_one(void **state)
{
	enum { BLOCKS = 600 };
	struct repo_verify_report report = {0};
	struct keys keys = {.n = 0};
	auto_buf struct buf b = {0};
	struct error err = {0};
	struct image im;
	bool lost[BLOCKS];
	struct rig rig;
	struct tm_id id;
	unsigned more = 0, wrong = 0;
	const char *data = NULL;

	(void)state;
	rig_up(&rig, BS, seed);
	image_init(&im, (uint64_t)BLOCKS * BS, BS);
	/* No two neighbours, so that each is a frame. */
	for (uint64_t block = 0; block < BLOCKS; block += 2)
		image_noise(&im, &rig.random, block, block + 1);
	spoil = true;
	assert_int_equal(rig_backup(&rig, &im, NULL, &id, &err), 0);
	spoil = false;
	assert_int_equal(verify(&rig, &report, true, &err), 0);
	lost_blocks(&report, BLOCKS, lost);
	repo_verify_report_done(&report);
	for (uint64_t block = 0; block < BLOCKS; block++) {
		bool is = block % 2 == 0 && is_spoilt(im.data + block * BS);

		assert_int_equal(lost[block], is);
		wrong += is;
	}
	assert_in_range(wrong, 1, BLOCKS / 2 - 1);

	/* A frame that cannot be opened while others wait takes none of them with it. */
	assert_int_equal(rig.store->below->ops->list(rig.store->below, "", add_key, &keys, NULL),
			 0);
	for (size_t i = 0; i < keys.n; i++)
		if (keys.size[i] > (uint64_t)BLOCKS / 2 * BS)
			data = keys.key[i];
	assert_non_null(data);
	assert_int_equal(store_read(rig.store->below, data, 64 << 20, &b, NULL), 0);
	b.data[b.len - b.len / 3] ^= 1;
	replace(rig.store->below, data, b.data, b.len);
	assert_int_equal(reopen(&rig, &err), 0);
	assert_int_equal(verify(&rig, &report, true, &err), 0);
	lost_blocks(&report, BLOCKS, lost);
	repo_verify_report_done(&report);
	for (uint64_t block = 0; block < BLOCKS; block++) {
		bool is = block % 2 == 0 && is_spoilt(im.data + block * BS);

		assert_true(lost[block] || !is);
		more += lost[block] && !is;
	}
	assert_in_range(more, 0, 1);
	image_done(&im);
	rig_down(&rig);
}

static void damage_is_found_and_named(void **state)
{
	enum { POINTS = 4 };
	struct repo_verify_report report = {0};
	struct image im, past[POINTS];
	struct error err = {0};
	struct keys keys = {.n = 0};
	struct rig rig;
	struct tm_id id;

	(void)state;
	rig_up(&rig, BS, seed);
	image_init(&im, 3 * 1024 * 1024 + 100, BS);
	for (unsigned i = 0; i < POINTS; i++) {
		auto_point_list struct point_list l = {0};

		assert_int_equal(repo_points(rig.repo, rig_guest, &l, NULL, &err), 0);
		image_change(&im, &rig.random, i ? 8 : 50);
		assert_int_equal(rig_backup(&rig, &im, i ? l.v[l.n - 1] : NULL, &id, &err), 0);
		image_init(&past[i], im.size, BS);
		memcpy(past[i].data, im.data, im.size);
	}
	assert_int_equal(verify(&rig, &report, true, &err), 0);
	assert_int_equal(report.ndamaged, 0);
	assert_int_equal(report.points, POINTS);
	assert_true(report.bytes > 0);
	repo_verify_report_done(&report);
	assert_int_equal(rig.store->below->ops->list(rig.store->below, "", add_key, &keys, NULL),
			 0);
	for (unsigned i = 0; i < 150; i++) {
		size_t k = test_below(&rig.random, keys.n);

		if (strncmp(keys.key[k], "repo", 4) == 0 ||
		    strncmp(keys.key[k], "domains/", 8) == 0)
			continue; /* that a copy is gone is seen elsewhere */
		damage_one(&rig, past, POINTS, keys.key[k], keys.size[k]);
	}
	for (unsigned i = 0; i < POINTS; i++)
		image_done(&past[i]);
	image_done(&im);
	rig_down(&rig);
}

static int scrub(struct rig *rig, uint64_t budget_ms, struct repo_verify_report *ret,
		 struct error *err)
{
	const struct repo_verify_options opt = {
		.pool = rig->pool, .scrub = true, .budget_ms = budget_ms};

	return repo_verify(rig->repo, &opt, ret, err);
}

static bool named(const struct repo_verify_report *report, const char *key)
{
	for (size_t i = 0; i < report->ndamaged; i++)
		if (strcmp(report->damaged[i].object, key) == 0)
			return true;
	return false;
}

/* A repository of one point. */
struct site {
	struct rig rig;
	struct image im;
	struct keys keys;
};

static struct site *site_up(void)
{
	struct site *s = calloc(1, sizeof(*s));
	struct error err = {0};
	struct store *st;
	struct tm_id id;

	assert_non_null(s);
	rig_up(&s->rig, BS, seed);
	image_init(&s->im, 1024 * 1024, BS);
	image_change(&s->im, &s->rig.random, 20);
	assert_int_equal(rig_backup(&s->rig, &s->im, NULL, &id, &err), 0);
	st = s->rig.store->below;
	assert_int_equal(st->ops->list(st, "", add_key, &s->keys, NULL), 0);
	return s;
}

static void site_down(struct site *s)
{
	image_done(&s->im);
	rig_down(&s->rig);
	free(s);
}

/* The first object with `part` in its name. */
static const char *site_key(const struct site *s, const char *part)
{
	for (size_t i = 0; i < s->keys.n; i++)
		if (strstr(s->keys.key[i], part))
			return s->keys.key[i];
	fail_msg("no object %s", part);
	return NULL;
}

/* Flips a bit of an object's byte; the second time puts it right. */
static void flip(struct rig *rig, const char *key, uint64_t at)
{
	auto_buf struct buf b = {0};

	assert_int_equal(store_read(rig->store->below, key, 64 << 20, &b, NULL), 0);
	b.data[at] ^= 0x10;
	replace(rig->store->below, key, b.data, b.len);
	cache_drop(rig->repo->cache);
}

static void scrub_finds_damage_in_any_object(void **state)
{
	struct repo_verify_report report = {0};
	struct site *s = site_up();
	struct error err = {0};

	(void)state;
	assert_int_equal(scrub(&s->rig, 0, &report, &err), 0);
	assert_int_equal(report.ndamaged, 0);
	repo_verify_report_done(&report);
	for (size_t k = 0; k < s->keys.n; k++) {
		uint64_t at = test_below(&s->rig.random, s->keys.size[k]);

		flip(&s->rig, s->keys.key[k], at);
		assert_int_equal(scrub(&s->rig, 0, &report, &err), 0);
		if (!named(&report, s->keys.key[k]))
			fail_msg("%s, byte %u", s->keys.key[k], (unsigned)at);
		assert_int_equal(report.ndamaged, 1);
		repo_verify_report_done(&report);
		flip(&s->rig, s->keys.key[k], at);
	}
	site_down(s);
}

/* What somebody put beside the objects is no damage, and is not removed as a bad record. */
static void names_of_others_are_passed_by(void **state)
{
	static const char *const names[] = {"notes.txt", "t/foo", "k/foo", "p/foo", "p/x/readme",
					    "c/foo",     "c/s-1", "x/foo", "h/foo", "s/foo"};
	struct repo_verify_report report = {0};
	char key[ARRAY_SIZE(names)][KEY_MAX];
	struct site *s = site_up();
	struct error err = {0};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		(void)snprintf(key[i], sizeof(key[i]), "d/%s/%s", id_text(&s->rig.repo->domain).s,
			       names[i]);
		assert_int_equal(store_put_wait(s->rig.store->below, key[i], "abc", 3, &err), 0);
	}
	assert_int_equal(scrub(&s->rig, 0, &report, &err), 0);
	if (report.ndamaged)
		fail_msg("%s: %s", report.damaged[0].object, report.damaged[0].reason);
	repo_verify_report_done(&report);
	assert_int_equal(repo_repair(s->rig.repo,
				     &(struct repo_repair_options){.pool = s->rig.pool}, &report,
				     &err),
			 0);
	repo_verify_report_done(&report);
	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		auto_buf struct buf b = {0};

		assert_int_equal(store_read(s->rig.store->below, key[i], 64, &b, &err), 0);
	}
	site_down(s);
}

/* Who may only read verifies all the same, and is told what does not follow. */
static void damage_that_cannot_be_recorded_is_said(void **state)
{
	struct site *s = site_up();
	const char *map = site_key(s, "/000/m");
	struct failing *store = s->rig.store;
	struct error err = {0};

	(void)state;
	assert_int_equal(store->below->ops->remove(store->below, map, NULL), 0);
	cache_drop(s->rig.repo->cache);
	for (int may_put = 0; may_put < 2; may_put++) {
		const struct repo_verify_options opt = {.pool = s->rig.pool, .record = true};
		struct repo_verify_report report = {0};
		struct lost lost = {0};

		store->fault = FAULT_FAIL;
		store->of = REQUEST_PUT;
		store->fail_at = may_put ? 0 : 1;
		store->for_good = true;
		store->calls = 0;
		assert_int_equal(repo_verify(s->rig.repo, &opt, &report, &err), 0);
		assert_true(named(&report, map));
		assert_int_equal(!report.unrecorded, may_put);
		if (!may_put)
			assert_non_null(strstr(report.unrecorded, "put"));
		assert_int_equal(lost_load(s->rig.repo, &lost, NULL), 0);
		assert_int_equal(lost.n > 0, may_put);
		lost_done(&lost);
		repo_verify_report_done(&report);
	}
	site_down(s);
}

/* Runs of one object each go round until the damage is found, wherever it is. */
static void a_budget_is_spent_on_what_was_verified_longest_ago(void **state)
{
	unsigned all_runs = 0, cases = 0;
	struct site *s = site_up();

	(void)state;
	s->rig.store->delay_ms = 2; /* longer than the budget */
	for (size_t k = 0; k < s->keys.n; k++) {
		const char *key = s->keys.key[k];
		unsigned runs = 0;
		bool found = false;

		if (strstr(key, "/s/") || strstr(key, "/p/"))
			continue; /* found by the structure check in every run */
		flip(&s->rig, key, s->keys.size[k] - 1);
		while (!found && runs++ < 3 * s->keys.n) {
			struct repo_verify_report report = {0};
			struct error err = {0};

			if (scrub(&s->rig, 1, &report, &err) < 0)
				fail_msg("%s", err.text);
			found = named(&report, key);
			repo_verify_report_done(&report);
		}
		assert_true(found);
		all_runs += runs;
		cases++;
		flip(&s->rig, key, s->keys.size[k] - 1);
	}
	assert_true(all_runs > cases + 2); /* no run does it all */
	site_down(s);
}

/* What was found is not lost with the record of how far the run came. */
static void a_budget_is_reported_where_nothing_can_be_written(void **state)
{
	struct repo_verify_report report = {0};
	struct site *s = site_up();
	const char *key = site_key(s, "/s/");
	struct failing *store = s->rig.store;
	struct error err = {0};

	(void)state;
	flip(&s->rig, key, 300);
	store->of = REQUEST_PUT;
	store->for_good = true;
	store->fail_at = store->calls + 1;
	assert_int_equal(scrub(&s->rig, 60000, &report, &err), 0);
	assert_true(store->hits > 0);
	assert_true(named(&report, key));
	assert_non_null(report.unrecorded);
	assert_non_null(strstr(report.unrecorded, "under a budget"));
	repo_verify_report_done(&report);
	site_down(s);
}

struct counts {
	uint64_t objects, bytes;
};

static struct counts counts_of(struct rig *rig, bool scrub_all, bool read_data)
{
	const struct repo_verify_options opt = {
		.pool = rig->pool, .scrub = scrub_all, .read_data = read_data};
	struct repo_verify_report report = {0}, own = {0};
	struct counts ret;
	struct error err = {0};

	if (repo_verify_domains(rig->repo, &report, &err) < 0)
		fail_msg("%s", err.text);
	if (repo_verify(rig->repo, &opt, &own, &err) < 0)
		fail_msg("%s", err.text);
	assert_int_equal(repo_verify_report_add(&report, &own, &err), 0);
	assert_int_equal(report.ndamaged, 0);
	ret = (struct counts){report.objects, report.bytes};
	repo_verify_report_done(&report);
	return ret;
}

/* Each level looks at what the one before it does, and nothing counts twice. */
static void a_level_counts_more_than_the_one_before(void **state)
{
	struct counts structure, data, all, both;
	struct site *s = site_up();
	uint64_t bytes = 0;

	(void)state;
	for (size_t i = 0; i < s->keys.n; i++)
		bytes += s->keys.size[i];
	structure = counts_of(&s->rig, false, false);
	data = counts_of(&s->rig, false, true);
	all = counts_of(&s->rig, true, false);
	both = counts_of(&s->rig, true, true);
	assert_int_equal(structure.objects, data.objects);
	assert_true(structure.bytes < data.bytes);
	assert_true(data.objects < all.objects && data.bytes < all.bytes);
	assert_int_equal(all.objects, s->keys.n);
	assert_int_equal(all.bytes, bytes);
	assert_int_equal(both.objects, s->keys.n);
	assert_int_equal(both.bytes, bytes);
	site_down(s);
}

static void sound(struct rig *rig)
{
	struct repo_verify_report report = {0};
	struct error err = {0};

	assert_int_equal(verify(rig, &report, true, &err), 0);
	if (report.ndamaged)
		fail_msg("%s: %s", report.damaged[0].object, report.damaged[0].reason);
	repo_verify_report_done(&report);
}

/* Epochs of changes and resizes: every map is its parent's with the session's changes. */
static void maps_fit_what_their_sessions_stored(void **state)
{
	struct image im;
	struct rig rig;

	(void)state;
	rig_up(&rig, BS, seed);
	image_init(&im, 3 * 1024 * 1024 + 77, BS);
	image_change(&im, &rig.random, 40);
	for (unsigned epoch = 0; epoch < 10; epoch++) {
		auto_point_list struct point_list l = {0};
		struct error err = {0};
		struct tm_id id;

		assert_int_equal(repo_points(rig.repo, rig_guest, &l, NULL, &err), 0);
		if (rig_backup(&rig, &im, epoch ? l.v[l.n - 1] : NULL, &id, &err) < 0)
			fail_msg("%s", err.text);
		sound(&rig);
		if (test_below(&rig.random, 2))
			image_resize(&im, 1 + test_below(&rig.random, 5 * 1024 * 1024));
		image_change(&im, &rig.random, (unsigned)test_below(&rig.random, 9));
	}
	image_done(&im);
	rig_down(&rig);
}

/*
 * A writer with a mistake: it takes its parent's tree from the point before that.  Everything is
 * sealed and every cluster is one that was stored, but what the parent changed is lost.
 */
static void a_map_that_leads_to_an_old_version_is_found(void **state)
{
	auto_point_list struct point_list l = {0};
	struct repo_verify_report report = {0};
	struct error err = {0};
	struct tm_id id[3];
	struct image im;
	struct rig rig;

	(void)state;
	rig_up(&rig, BS, seed);
	image_init(&im, 2 * 1024 * 1024, BS);
	for (unsigned i = 0; i < 3; i++) {
		for (uint64_t b = i ? 10 * i : 0; b < (i ? 10 * i + 4 : im.blocks); b++) {
			memset(im.data + b * BS, (int)(b + 3 * i + 1) & 0xff, BS);
			im.data[b * BS] = (uint8_t)(b >> 8);
			im.dirty[b] = true;
		}
		point_list_done(&l);
		assert_int_equal(repo_points(rig.repo, rig_guest, &l, NULL, &err), 0);
		if (i == 2)
			l.v[1]->disks[0].map->root = l.v[0]->disks[0].map->root;
		if (rig_backup(&rig, &im, i ? l.v[i - 1] : NULL, &id[i], &err) < 0)
			fail_msg("%s", err.text);
		if (i < 2)
			sound(&rig);
	}
	assert_int_equal(verify(&rig, &report, true, &err), 0);
	assert_int_equal(report.ndamaged, 1);
	assert_non_null(strstr(report.damaged[0].reason, "first at block 10"));
	assert_int_equal(report.damaged[0].nranges, 1);
	assert_true(id_equal(&report.damaged[0].ranges[0].point, &id[2]));
	assert_int_equal(report.damaged[0].ranges[0].offset, 10 * BS);
	assert_int_equal(report.damaged[0].ranges[0].length, 4 * BS);
	repo_verify_report_done(&report);
	image_done(&im);
	rig_down(&rig);
}

/* All of a disk becomes zeroes: the session has holes to tell of, and no node. */
static void a_disk_that_became_empty_fits(void **state)
{
	auto_point_list struct point_list l = {0};
	struct error err = {0};
	struct tm_id id;
	struct image im;
	struct rig rig;

	(void)state;
	rig_up(&rig, BS, seed);
	image_init(&im, 1024 * 1024, BS);
	memset(im.data, 3, im.size);
	memset(im.dirty, 1, im.blocks);
	assert_int_equal(rig_backup(&rig, &im, NULL, &id, &err), 0);
	assert_int_equal(repo_points(rig.repo, rig_guest, &l, NULL, &err), 0);
	memset(im.data, 0, im.size);
	memset(im.dirty, 1, im.blocks);
	assert_int_equal(rig_backup(&rig, &im, l.v[0], &id, &err), 0);
	sound(&rig);
	image_done(&im);
	rig_down(&rig);
}

/* The manifest of the first point goes; the second one uses what it stored. */
static void lose_first(struct rig *rig, struct image *im, struct tm_id *lost)
{
	auto_point_list struct point_list l = {0};
	struct error err = {0};
	struct tm_id source, id;
	char key[KEY_MAX];

	rig_up(rig, BS, seed);
	image_init(im, 1024 * 1024, BS);
	image_change(im, &rig->random, 20);
	assert_int_equal(rig_backup(rig, im, NULL, lost, &err), 0);
	assert_int_equal(repo_points(rig->repo, rig_guest, &l, NULL, &err), 0);
	image_write(im, &rig->random, 3);
	assert_int_equal(rig_backup(rig, im, l.v[0], &id, &err), 0);
	sound(rig);
	assert_int_equal(source_id(&rig->repo->keys, rig_guest, &source, &err), 0);
	name_point(rig->repo, &source, l.v[0]->seq, lost, key);
	assert_int_equal(rig->store->below->ops->remove(rig->store->below, key, NULL), 0);
	cache_drop(rig->repo->cache);
}

static void a_point_whose_manifest_is_gone_is_missed(void **state)
{
	const struct repo_prune_options prune = {.now_ms = UINT64_C(1) << 47};
	auto_point_list struct point_list l = {0};
	struct repo_repair_options repair = {.dry_run = true};
	struct repo_verify_report report = {0};
	struct repo_prune_report pruned = {0};
	struct error err = {0};
	struct tm_id lost;
	struct image im;
	struct rig rig;

	(void)state;
	lose_first(&rig, &im, &lost);
	repair.pool = rig.pool;
	for (unsigned i = 0; i < 3; i++) { /* verify, repair only to say what it would do, repair */
		assert_int_equal(i == 0 ? verify(&rig, &report, true, &err)
					: repo_repair(rig.repo, &repair, &report, &err),
				 0);
		assert_int_equal(report.ndamaged, 1);
		assert_non_null(strstr(report.damaged[0].object, id_text(&lost).s));
		assert_int_equal(report.damaged[0].repaired, i > 0);
		repo_verify_report_done(&report);
		repair.dry_run = i == 0;
	}
	sound(&rig);
	assert_int_equal(repo_prune(rig.repo, &prune, &pruned, &err), 0);
	cache_drop(rig.repo->cache);
	sound(&rig);
	assert_int_equal(repo_points(rig.repo, rig_guest, &l, NULL, &err), 0);
	assert_int_equal(l.n, 1);
	assert_int_equal(rig_read(&rig, l.v[0], &im, &err), 0);
	image_done(&im);
	rig_down(&rig);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(damage_is_found_and_named),
		cmocka_unit_test(wrong_clusters_are_found_one_by_one),
		cmocka_unit_test(scrub_finds_damage_in_any_object),
		cmocka_unit_test(maps_fit_what_their_sessions_stored),
		cmocka_unit_test(a_map_that_leads_to_an_old_version_is_found),
		cmocka_unit_test(a_disk_that_became_empty_fits),
		cmocka_unit_test(a_point_whose_manifest_is_gone_is_missed),
		cmocka_unit_test(names_of_others_are_passed_by),
		cmocka_unit_test(damage_that_cannot_be_recorded_is_said),
		cmocka_unit_test(a_budget_is_spent_on_what_was_verified_longest_ago),
		cmocka_unit_test(a_budget_is_reported_where_nothing_can_be_written),
		cmocka_unit_test(a_level_counts_more_than_the_one_before),
	};

	seed = test_seed();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
