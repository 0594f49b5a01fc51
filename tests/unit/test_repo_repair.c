/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Damage and what follows it: verify records what is lost, the next backup stores it again, repair
 * builds again what can be.  After each, every point reads back right or is named, and the newest
 * one reads back right.
 */
#include "test_secret.h"

#include "repo/cache.h"
#include "repo/lost.h"
#include "repo/points.h"

#define BS     4096
#define POINTS 4

static uint64_t seed;

/* Histories a test goes through: REPAIR_RUNS, for longer ones by hand. */
static unsigned runs(void)
{
	const char *text = getenv("REPAIR_RUNS");

	return text ? (unsigned)strtoul(text, NULL, 10) : 10;
}

/* ---- objects ---- */

struct keys {
	char key[96][KEY_MAX];
	size_t n;
};

static int add_key(void *data, const char *key, uint64_t size, struct error *err)
{
	struct keys *k = data;

	(void)size;
	(void)err;
	assert_true(k->n < ARRAY_SIZE(k->key));
	memcpy(k->key[k->n++], key, strlen(key) + 1);
	return 0;
}

static void list_keys(struct rig *rig, const char *prefix, struct keys *ret)
{
	ret->n = 0;
	assert_int_equal(
		rig->store->below->ops->list(rig->store->below, prefix, add_key, ret, NULL), 0);
}

/* A flipped bit, a cut, a few bytes more, or gone. */
static void damage(struct rig *rig, const char *key)
{
	struct store *st = rig->store->below;
	auto_buf struct buf b = {0};
	unsigned how = (unsigned)test_below(&rig->random, 8);
	size_t at;

	assert_int_equal(store_read(st, key, 64 << 20, &b, NULL), 0);
	at = test_below(&rig->random, b.len);
	assert_int_equal(st->ops->remove(st, key, NULL), 0);
	if (how < 6)
		b.data[at] ^= (uint8_t)(1U << test_below(&rig->random, 8));
	if (how < 7)
		assert_int_equal(store_put_wait(st, key, b.data, how < 6 ? b.len : at, NULL), 0);
	cache_drop(rig->repo->cache);
}

/* ---- a history ---- */

struct history {
	struct rig rig;
	struct image now, past[64];
	size_t n; /* points */
};

static void keep_past(struct history *h)
{
	assert_true(h->n < ARRAY_SIZE(h->past));
	image_copy(&h->now, &h->past[h->n++]);
}

/* The next point; what has been lost of the newest one is read from the disk, as the agent does. */
static void back_up(struct history *h)
{
	auto_point_list struct point_list l = {0};
	struct error err = {0};
	uint64_t lost = 0;
	struct tm_id id;

	assert_int_equal(repo_points(h->rig.repo, rig_guest, &l, NULL, &err), 0);
	if (l.n)
		assert_int_equal(repo_disk_lost(h->rig.repo, &l.v[l.n - 1]->disks[0], &lost, &err),
				 0);
	h->rig.whole = lost > 0;
	if (rig_backup(&h->rig, &h->now, l.n ? l.v[l.n - 1] : NULL, &id, &err) < 0)
		fail_msg("%s", err.text);
	keep_past(h);
}

static void history_up(struct history *h, uint64_t size)
{
	*h = (struct history){.n = 0};
	rig_up(&h->rig, BS, seed);
	image_init(&h->now, size, BS);
	for (unsigned i = 0; i < POINTS; i++) {
		image_change(&h->now, &h->rig.random, i ? 8 : 50);
		back_up(h);
	}
}

static void history_down(struct history *h)
{
	for (size_t i = 0; i < h->n; i++)
		image_done(&h->past[i]);
	image_done(&h->now);
	rig_down(&h->rig);
}

static void verify(struct history *h, bool record, struct repo_verify_report *ret)
{
	const struct repo_verify_options opt = {
		.pool = h->rig.pool, .read_data = true, .record = record};
	struct error err = {0};

	if (repo_verify(h->rig.repo, &opt, ret, &err) < 0)
		fail_msg("%s", err.text);
}

static bool named(const struct repo_verify_report *report, const struct tm_id *point)
{
	for (size_t i = 0; i < report->ndamaged; i++)
		for (size_t k = 0; k < report->damaged[i].nranges; k++)
			if (id_equal(&report->damaged[i].ranges[k].point, point))
				return true;
	return false;
}

/* Every point reads back right, or fails as damage and is named; how many failed. */
static unsigned check_points(struct history *h, const struct repo_verify_report *report)
{
	auto_point_list struct point_list l = {0};
	unsigned failed = 0;

	assert_int_equal(repo_points(h->rig.repo, rig_guest, &l, NULL, NULL), 0);
	assert_int_equal(l.n, h->n);
	for (size_t i = 0; i < l.n; i++) {
		struct error err = {0};
		int r = rig_read(&h->rig, l.v[i], &h->past[l.v[i]->seq - 1], &err);

		if (r == 0) {
			assert_false(named(report, &l.v[i]->id));
			continue;
		}
		assert_int_equal(r, TM_E_CORRUPT);
		assert_true(named(report, &l.v[i]->id));
		failed++;
	}
	return failed;
}

static void newest_is_right(struct history *h)
{
	auto_point_list struct point_list l = {0};
	struct repo_verify_report report = {0};
	struct error err = {0};

	verify(h, false, &report);
	assert_int_equal(repo_points(h->rig.repo, rig_guest, &l, NULL, NULL), 0);
	assert_false(named(&report, &l.v[l.n - 1]->id));
	if (rig_read(&h->rig, l.v[l.n - 1], &h->past[h->n - 1], &err) < 0)
		fail_msg("%s", err.text);
	check_points(h, &report);
	repo_verify_report_done(&report);
}

static void the_next_backup_stores_what_was_lost(void **state)
{
	struct keys *keys = calloc(1, sizeof(*keys));
	unsigned hit = 0;

	(void)state;
	for (unsigned i = 0; i < runs(); i++) {
		struct repo_verify_report report = {0};
		struct history h;

		seed = seed * 6364136223846793005u + 1442695040888963407u;
		history_up(&h, 3 * 1024 * 1024 + 100);
		list_keys(&h.rig, "d/", keys);
		for (;;) {
			const char *key = keys->key[test_below(&h.rig.random, keys->n)];

			if (!strstr(key, "/s/"))
				continue;
			damage(&h.rig, key);
			break;
		}
		verify(&h, true, &report);
		hit += check_points(&h, &report);
		repo_verify_report_done(&report);
		image_change(&h.now, &h.rig.random, 3);
		back_up(&h);
		newest_is_right(&h);
		/* and the one after it is an ordinary increment */
		image_change(&h.now, &h.rig.random, 3);
		back_up(&h);
		assert_false(h.rig.whole);
		newest_is_right(&h);
		history_down(&h);
	}
	assert_true(hit > 0);
	free(keys);
}

/* A record of damage that cannot be read now is no reason to trust what it may speak of. */
static void a_record_of_damage_that_cannot_be_read_is_an_error(void **state)
{
	struct keys *keys = calloc(1, sizeof(*keys));
	struct repo_verify_report report = {0};
	struct lost lost = {0};
	struct history h;
	struct failing *f;
	size_t k = 0;

	(void)state;
	history_up(&h, 3 * 1024 * 1024);
	list_keys(&h.rig, "d/", keys);
	while (!strstr(keys->key[k], "/s/"))
		k++;
	damage(&h.rig, keys->key[k]);
	verify(&h, true, &report);
	assert_true(report.ndamaged > 0);
	repo_verify_report_done(&report);
	f = h.rig.store;
	f->of = REQUEST_GET;
	f->calls = 0;
	f->fail_at = 1;
	assert_int_equal(lost_load(h.rig.repo, &lost, NULL), TM_E_IO);
	lost_done(&lost);
	f->fail_at = 0;
	assert_int_equal(lost_load(h.rig.repo, &lost, NULL), 0);
	assert_int_equal(lost.n, 1);
	lost_done(&lost);
	history_down(&h);
	free(keys);
}

/* ---- repair ---- */

static void repair(struct history *h, bool dry_run, struct repo_verify_report *ret)
{
	const struct repo_repair_options opt = {
		.pool = h->rig.pool, .read_data = true, .dry_run = dry_run};
	struct error err = {0};

	if (repo_repair(h->rig.repo, &opt, ret, &err) < 0)
		fail_msg("%s", err.text);
	for (size_t i = 0; i < ret->ndamaged; i++)
		assert_non_null(ret->damaged[i].remedy);
}

static void all_is_well(struct history *h)
{
	struct repo_verify_report report = {0};
	struct lost lost = {0};

	verify(h, false, &report);
	if (report.ndamaged)
		fail_msg("%s: %s", report.damaged[0].object, report.damaged[0].reason);
	assert_int_equal(check_points(h, &report), 0);
	repo_verify_report_done(&report);
	assert_int_equal(lost_load(h->rig.repo, &lost, NULL), 0);
	assert_int_equal(lost.n, 0);
	lost_done(&lost);
}

/* One damaged map segment of any session, or all of them. */
static void maps_are_built_again(void **state)
{
	struct keys *keys = calloc(1, sizeof(*keys));

	(void)state;
	for (unsigned i = 0; i < runs(); i++) {
		struct repo_verify_report report = {0};
		struct history h;
		bool all = i % 3 == 0;
		size_t which = 0, maps = 0;

		seed = seed * 6364136223846793005u + 1442695040888963407u;
		history_up(&h, (i % 2 ? 3 : 1) * 1024 * 1024 + 100);
		list_keys(&h.rig, "d/", keys);
		for (size_t k = 0; k < keys->n; k++)
			if (strstr(keys->key[k], "/000/m"))
				memmove(keys->key[maps++], keys->key[k], KEY_MAX);
		assert_int_equal(maps, POINTS);
		which = test_below(&h.rig.random, maps);
		for (size_t k = 0; k < maps; k++)
			if (all || k == which)
				damage(&h.rig, keys->key[k]);
		repair(&h, true, &report);
		assert_true(report.ndamaged > 0);
		repo_verify_report_done(&report);
		repair(&h, false, &report);
		assert_int_equal(report.ndamaged, all ? POINTS : 1);
		for (size_t k = 0; k < report.ndamaged; k++)
			if (!report.damaged[k].repaired)
				fail_msg("%s: %s", report.damaged[k].object,
					 report.damaged[k].remedy);
		repo_verify_report_done(&report);
		all_is_well(&h);
		image_change(&h.now, &h.rig.random, 3);
		back_up(&h);
		assert_false(h.rig.whole);
		all_is_well(&h);
		history_down(&h);
	}
	free(keys);
}

/* Data of the first point: the next backup has what did not change since, and older points get it.
 */
static void older_points_get_back_what_is_stored_anew(void **state)
{
	unsigned before = 0, after = 0, restored = 0;

	(void)state;
	for (unsigned i = 0; i < runs(); i++) {
		struct keys *keys = calloc(1, sizeof(*keys));
		struct repo_verify_report report = {0};
		struct history h;
		size_t k = 0;

		seed = seed * 6364136223846793005u + 1442695040888963407u;
		history_up(&h, 1024 * 1024 + 100);
		list_keys(&h.rig, "d/", keys);
		while (!strstr(keys->key[k], "/000/d"))
			k++;
		damage(&h.rig, keys->key[k]);
		verify(&h, true, &report);
		before += check_points(&h, &report);
		repo_verify_report_done(&report);
		back_up(&h);
		newest_is_right(&h);
		repair(&h, false, &report);
		for (k = 0; k < report.ndamaged; k++)
			restored += report.damaged[k].repaired;
		repo_verify_report_done(&report);
		verify(&h, false, &report);
		after += check_points(&h, &report);
		repo_verify_report_done(&report);
		newest_is_right(&h);
		history_down(&h);
		free(keys);
	}
	printf("points that failed: %u, after backup and repair: %u; %u segments restored\n",
	       before, after, restored);
	assert_true(after < before || before == 0);
}

/* The checksum of a segment's first frame is wrong, those of its tables are right again. */
static void spoil_frame_crc(struct rig *rig, const char *key)
{
	struct store *st = rig->store->below;
	auto_buf struct buf b = {0};
	struct format_segment h;
	struct format_frame f;
	size_t frames;

	assert_int_equal(store_read(st, key, 64 << 20, &b, NULL), 0);
	memcpy(&h, b.data, sizeof(h));
	memcpy(&f, b.data + sizeof(h), sizeof(f));
	f.crc = le32_of(le32_get(f.crc) ^ 1);
	memcpy(b.data + sizeof(h), &f, sizeof(f));
	frames = le32_get(h.nframes) * sizeof(f);
	h.frames_crc = le32_of(crc32c(0, b.data + sizeof(h), frames));
	h.crc = le32_of(crc32c(0, &h, offsetof(struct format_segment, crc)));
	memcpy(b.data, &h, sizeof(h));
	assert_int_equal(st->ops->remove(st, key, NULL), 0);
	assert_int_equal(store_put_wait(st, key, b.data, b.len, NULL), 0);
	cache_drop(rig->repo->cache);
}

/* The seal proves more than the checksum: the data are there, and only the checksum is mended. */
static void a_frame_whose_checksum_alone_is_wrong_is_kept(void **state)
{
	struct keys *keys = calloc(1, sizeof(*keys));
	struct repo_verify_report report = {0};
	struct history h;
	size_t k = 0;

	(void)state;
	history_up(&h, 1024 * 1024 + 100);
	list_keys(&h.rig, "d/", keys);
	while (!strstr(keys->key[k], "/000/d"))
		k++;
	spoil_frame_crc(&h.rig, keys->key[k]);
	verify(&h, false, &report);
	assert_int_equal(report.ndamaged, 1);
	repo_verify_report_done(&report);
	repair(&h, false, &report);
	assert_int_equal(report.ndamaged, 1);
	if (!report.damaged[0].repaired)
		fail_msg("%s", report.damaged[0].remedy);
	assert_string_equal(report.damaged[0].remedy, "written again; its data can be read");
	repo_verify_report_done(&report);
	all_is_well(&h);
	history_down(&h);
	free(keys);
}

/* ---- a store that fails for a while ---- */

/* A repair with a get that brings half, then another one; all is there.  False: no such get. */
static bool repair_short(const struct copy *base, struct history *h, const struct image *twin,
			 unsigned n)
{
	const struct repo_repair_options opt = {.pool = h->rig.pool, .read_data = true};
	auto_point_list struct point_list l = {0};
	struct repo_verify_report report = {0};
	struct error err = {0};
	unsigned hits;

	h->rig.store = copy_to_store(&h->rig, base);
	assert_int_equal(repo_open(&h->rig.store->st, &h->rig.repo, &err), 0);
	h->rig.store->fault = FAULT_CUT;
	h->rig.store->of = REQUEST_GET;
	h->rig.store->calls = 0;
	h->rig.store->fail_at = n;
	if (repo_repair(h->rig.repo, &opt, &report, &err) < 0)
		assert_int_equal(err.code, TM_E_CORRUPT);
	hits = h->rig.store->hits;
	repo_verify_report_done(&report);
	h->rig.store->fail_at = 0;
	cache_drop(h->rig.repo->cache);
	repair(h, false, &report);
	repo_verify_report_done(&report);
	verify(h, false, &report);
	assert_int_equal(report.ndamaged, 0);
	repo_verify_report_done(&report);
	assert_int_equal(repo_points(h->rig.repo, NULL, &l, NULL, NULL), 0);
	assert_int_equal(l.n, 2);
	for (size_t i = 0; i < l.n; i++) {
		bool own = strcmp(l.v[i]->guest, rig_guest) == 0;

		error_clear(&err);
		if (rig_read(&h->rig, l.v[i], own ? &h->now : twin, &err) < 0)
			fail_msg("short at get %u: %s", n, err.text);
	}
	repo_free(h->rig.repo);
	h->rig.repo = NULL;
	return hits > 0;
}

/* Segments with some clusters that are elsewhere, too, and some that are not: those must not go
 * because a segment could not be read once. */
static void what_came_short_once_is_not_given_up(void **state)
{
	static char twin_guest[] = "twin";
	struct history h = {.n = 0};
	struct image twin;
	struct copy *base;
	struct tm_id id;
	unsigned n = 1;

	(void)state;
	rig_up(&h.rig, BS, seed);
	image_init(&h.now, UINT64_C(48) * BS, BS);
	image_noise(&h.now, &h.rig.random, 0, 48);
	assert_int_equal(rig_backup(&h.rig, &h.now, NULL, &id, NULL), 0);
	image_copy(&h.now, &twin);
	image_noise(&twin, &h.rig.random, 16, 32);
	h.rig.guest = twin_guest;
	assert_int_equal(rig_backup(&h.rig, &twin, NULL, &id, NULL), 0);
	base = copy_store(h.rig.store->below);
	repo_free(h.rig.repo);
	h.rig.repo = NULL;
	while (repair_short(base, &h, &twin, n))
		n++;
	printf("%u gets\n", n - 1);
	assert_true(n > 20);
	copy_free(base);
	image_done(&twin);
	history_down(&h);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_next_backup_stores_what_was_lost),
		cmocka_unit_test(a_record_of_damage_that_cannot_be_read_is_an_error),
		cmocka_unit_test(maps_are_built_again),
		cmocka_unit_test(older_points_get_back_what_is_stored_anew),
		cmocka_unit_test(a_frame_whose_checksum_alone_is_wrong_is_kept),
		cmocka_unit_test(what_came_short_once_is_not_given_up),
	};

	seed = test_seed();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
