/* SPDX-License-Identifier: Apache-2.0 */
/* Forgetting, protecting and pruning, one at a time. */
#include "test_repo.h"

#include "repo/internal.h"

#define BS 4096
#define N  6

static uint64_t seed;

struct history {
	struct rig rig;
	struct image im, past[N];
	struct tm_id id[N];
};

static void history_up(struct history *h)
{
	rig_up(&h->rig, BS, seed);
	image_init(&h->im, 4 * 1024 * 1024, BS);
	image_change(&h->im, &h->rig.random, 60);
	for (unsigned i = 0; i < N; i++) {
		auto_point_list struct point_list l = {0};
		struct error err = {0};

		assert_int_equal(repo_points(h->rig.repo, rig_guest, &l, NULL, &err), 0);
		if (rig_backup(&h->rig, &h->im, i ? l.v[l.n - 1] : NULL, &h->id[i], &err) < 0)
			fail_msg("%s", err.text);
		image_init(&h->past[i], h->im.size, BS);
		memcpy(h->past[i].data, h->im.data, h->im.size);
		image_change(&h->im, &h->rig.random, 14);
	}
}

static void history_down(struct history *h)
{
	for (unsigned i = 0; i < N; i++)
		image_done(&h->past[i]);
	image_done(&h->im);
	rig_down(&h->rig);
}

/* The points named by the bits of `mask` are there and read right; no others are. */
static void check_points(struct history *h, unsigned mask)
{
	auto_point_list struct point_list l = {0};
	struct error err = {0};
	size_t damaged = 0, n = 0;

	assert_int_equal(repo_points(h->rig.repo, rig_guest, &l, &damaged, &err), 0);
	assert_int_equal(damaged, 0);
	for (unsigned i = 0; i < N; i++) {
		if (!(mask >> i & 1))
			continue;
		assert_true(n < l.n && id_equal(&l.v[n]->id, &h->id[i]));
		if (rig_read(&h->rig, l.v[n], &h->past[i], &err) < 0)
			fail_msg("%s", err.text);
		n++;
	}
	assert_int_equal(n, l.n);
}

static int prune(struct history *h, unsigned max_unused, uint64_t stale_ms,
		 struct repo_prune_report *rep, struct error *err)
{
	const struct repo_prune_options opt = {
		.max_unused = max_unused, .stale_ms = stale_ms, .now_ms = h->rig.now};

	return repo_prune(h->rig.repo, &opt, rep, err);
}

/* Structure, maps against descriptor tables, every byte, every cluster. */
static void verify_clean(struct rig *rig)
{
	const struct repo_verify_options opt = {
		.read_data = true, .scrub = true, .pool = rig->pool};
	struct repo_verify_report rep = {0};
	struct error err = {0};

	if (repo_verify(rig->repo, &opt, &rep, &err) < 0)
		fail_msg("%s", err.text);
	if (rep.ndamaged)
		fail_msg("%s: %s", rep.damaged[0].object, rep.damaged[0].reason);
	repo_verify_report_done(&rep);
}

static int add_size(void *data, const char *key, uint64_t size, struct error *err)
{
	(void)err;
	if (strstr(key, "/s/"))
		*(uint64_t *)data += size;
	return 0;
}

static uint64_t segment_bytes(struct history *h)
{
	struct store *st = &h->rig.store->st;
	uint64_t sum = 0;

	assert_int_equal(st->ops->list(st, "", add_size, &sum, NULL), 0);
	return sum;
}

static void space_comes_back(void **state)
{
	struct repo_prune_report rep = {0};
	struct error err = {0};
	struct history h;
	uint64_t before;

	(void)state;
	history_up(&h);
	before = segment_bytes(&h);
	assert_int_equal(prune(&h, 0, UINT64_MAX, &rep, &err), 0);
	assert_int_equal(rep.removed_objects, 0);
	assert_int_equal(rep.kept_bytes, before);
	assert_int_equal(repo_forget(h.rig.repo, h.id, 3, &err), 0);
	check_points(&h, 0x38);
	if (prune(&h, 0, UINT64_MAX, &rep, &err) < 0)
		fail_msg("%s", err.text);
	check_points(&h, 0x38);
	assert_true(rep.removed_objects > 6);
	assert_int_equal(rep.kept_bytes, segment_bytes(&h));
	assert_true(rep.kept_bytes < before);
	verify_clean(&h.rig);
	/* A second one finds nothing; without any point everything goes. */
	assert_int_equal(prune(&h, 0, UINT64_MAX, &rep, &err), 0);
	assert_int_equal(rep.removed_objects, 0);
	assert_int_equal(repo_forget(h.rig.repo, h.id + 3, 3, &err), 0);
	assert_int_equal(prune(&h, 50, UINT64_MAX, &rep, &err), 0);
	assert_int_equal(segment_bytes(&h), 0);
	check_points(&h, 0);
	history_down(&h);
}

/* A segment without clusters says which blocks became holes; no map refers to it. */
static void holes_alone_are_kept(void **state)
{
	auto_point_list struct point_list l = {0};
	struct repo_prune_report rep = {0};
	struct error err = {0};
	struct history h;
	struct tm_id id;
	uint64_t before;

	(void)state;
	history_up(&h);
	memset(h.im.dirty, 0, h.im.blocks);
	memset(h.im.data, 0, (size_t)90 * BS);
	for (unsigned b = 0; b < 90; b++)
		h.im.dirty[b] = true;
	assert_int_equal(repo_points(h.rig.repo, rig_guest, &l, NULL, &err), 0);
	memcpy(h.im.data + (size_t)90 * BS, h.past[N - 1].data + (size_t)90 * BS,
	       h.im.size - (size_t)90 * BS);
	if (rig_backup(&h.rig, &h.im, l.v[l.n - 1], &id, &err) < 0)
		fail_msg("%s", err.text);
	before = segment_bytes(&h);
	assert_int_equal(prune(&h, 0, UINT64_MAX, &rep, &err), 0);
	assert_int_equal(rep.removed_objects, 0);
	assert_int_equal(segment_bytes(&h), before);
	verify_clean(&h.rig);
	assert_int_equal(repo_forget(h.rig.repo, h.id, N, &err), 0);
	assert_int_equal(prune(&h, 0, UINT64_MAX, &rep, &err), 0);
	verify_clean(&h.rig);
	point_list_done(&l);
	assert_int_equal(repo_points(h.rig.repo, rig_guest, &l, NULL, &err), 0);
	assert_int_equal(l.n, 1);
	if (rig_read(&h.rig, l.v[0], &h.im, &err) < 0)
		fail_msg("%s", err.text);
	history_down(&h);
}

static void a_dry_run_only_counts(void **state)
{
	struct repo_prune_options opt = {.stale_ms = UINT64_MAX, .dry_run = true};
	struct repo_prune_report dry = {0}, wet = {0};
	struct error err = {0};
	struct history h;
	uint64_t before;

	(void)state;
	history_up(&h);
	before = segment_bytes(&h);
	assert_int_equal(repo_forget(h.rig.repo, h.id + 1, 4, &err), 0);
	assert_int_equal(repo_prune(h.rig.repo, &opt, &dry, &err), 0);
	assert_int_equal(segment_bytes(&h), before);
	assert_int_equal(prune(&h, 0, UINT64_MAX, &wet, &err), 0);
	assert_int_equal(dry.removed_objects, wet.removed_objects);
	assert_int_equal(dry.removed_bytes, wet.removed_bytes);
	assert_int_equal(dry.kept_bytes, wet.kept_bytes);
	assert_int_equal(dry.compacted_bytes, wet.compacted_bytes);
	check_points(&h, 0x21);
	history_down(&h);
}

static int no_segment(void *data, const char *key, uint64_t size, struct error *err)
{
	(void)data;
	(void)size;
	(void)err;
	fail_msg("%s is left of a session without a flag", key);
	return -1;
}

/* I9: a deleted point has its tombstone as long as there is a segment of its session. */
static void check_flags(struct history *h, const struct tm_id *deleted, unsigned n)
{
	struct store *st = h->rig.store->below;

	for (unsigned i = 0; i < n; i++) {
		char key[KEY_MAX];
		uint64_t size;

		name_flag(h->rig.repo, FLAG_TOMBSTONE, &deleted[i], key);
		if (st->ops->head(st, key, &size, NULL) == 0)
			continue;
		name_session_prefix(h->rig.repo, &deleted[i], key);
		assert_int_equal(st->ops->list(st, key, no_segment, NULL, NULL), 0);
	}
}

/* I13: a prune that ends anywhere is run again. */
static void a_prune_cut_anywhere_runs_again(void **state)
{
	(void)state;
	for (int for_good = 0; for_good < 2; for_good++) {
		struct repo_prune_report rep = {0};
		struct error err = {0};
		struct history h;
		unsigned n;
		int r = -1;

		history_up(&h);
		assert_int_equal(repo_forget(h.rig.repo, h.id + 1, 3, &err), 0);
		for (n = 1; r < 0; n++) {
			h.rig.store->calls = 0;
			h.rig.store->fail_at = n;
			h.rig.store->for_good = for_good;
			error_clear(&err);
			r = prune(&h, 0, 0, &rep, &err);
			h.rig.store->fail_at = 0;
			if (r < 0)
				assert_true(strlen(err.text) > 0);
			check_flags(&h, h.id + 1, 3);
			if (n % 5 == 0)
				check_points(&h, 0x31);
		}
		assert_true(n > 20);
		check_points(&h, 0x31);
		assert_int_equal(prune(&h, 0, 0, &rep, &err), 0);
		assert_int_equal(rep.removed_objects, 0);
		history_down(&h);
	}
}

static int take_map(void *data, const char *key, uint64_t size, struct error *err)
{
	(void)size;
	(void)err;
	if (strstr(key, "/m000."))
		memcpy(data, key, strlen(key) + 1);
	return 0;
}

static void an_unreadable_map_stops_everything(void **state)
{
	struct repo_prune_report rep = {0};
	struct error err = {0};
	char key[KEY_MAX] = "";
	struct history h;
	struct store *st;
	uint64_t before;

	(void)state;
	history_up(&h);
	st = &h.rig.store->st;
	assert_int_equal(repo_forget(h.rig.repo, h.id, 2, &err), 0);
	assert_int_equal(st->ops->list(st, "d/", take_map, key, NULL), 0);
	assert_int_equal(st->ops->remove(st, key, NULL), 0);
	{ /* nothing is cached */
		struct repo *again;

		h.rig.store = rig_store(&h.rig);
		store_free(h.rig.store->below);
		h.rig.store->below = container_of(st, struct failing, st)->below;
		assert_int_equal(repo_open(&h.rig.store->st, &again, &err), 0);
		container_of(st, struct failing, st)->below = NULL;
		repo_free(h.rig.repo);
		h.rig.repo = again;
	}
	before = segment_bytes(&h);
	assert_int_equal(prune(&h, 0, UINT64_MAX, &rep, &err), TM_E_CORRUPT);
	assert_non_null(strstr(err.text, key));
	assert_non_null(strstr(err.text, "nothing was removed"));
	assert_int_equal(segment_bytes(&h), before);
	history_down(&h);
}

static int count_one(void *data, const char *key, uint64_t size, struct error *err)
{
	(void)key;
	(void)size;
	(void)err;
	++*(unsigned *)data;
	return 0;
}

static unsigned count(struct history *h, const char *prefix)
{
	unsigned n = 0;

	assert_int_equal(h->rig.store->st.ops->list(&h->rig.store->st, prefix, count_one, &n, NULL),
			 0);
	return n;
}

/* Of what runs of verify under a budget have put, the newest of each level stays. */
static void old_records_of_verification_go(void **state)
{
	struct repo_prune_report rep = {0};
	char prefix[KEY_MAX], key[KEY_MAX + 64];
	struct error err = {0};
	struct tm_id id = {{0}};
	struct history h;

	(void)state;
	history_up(&h);
	name_flag_prefix(h.rig.repo, FLAG_CHECKS, prefix);
	for (uint8_t i = 0; i < 12; i++) {
		id.b[0] = i;
		(void)snprintf(key, sizeof(key), "%s%c-%s", prefix, i < 4 ? 'r' : 's',
			       id_text(&id).s);
		assert_int_equal(store_put_wait(&h.rig.store->st, key, "x", 1, NULL), 0);
	}
	assert_int_equal(prune(&h, 0, UINT64_MAX, &rep, &err), 0);
	assert_int_equal(rep.removed_objects, 10);
	assert_int_equal(count(&h, prefix), 2);
	assert_int_equal(count(&h, key), 1);
	(void)snprintf(key, sizeof(key), "%sr-03", prefix);
	assert_int_equal(count(&h, key), 1);
	history_down(&h);
}

static void protected_points_are_not_forgotten(void **state)
{
	auto_point_list struct point_list l = {0};
	struct error err = {0};
	struct history h;

	(void)state;
	history_up(&h);
	for (unsigned i = 0; i < 3; i++) {
		error_clear(&err);
		assert_int_equal(repo_protect(h.rig.repo, &h.id[1], true, &err), 0);
		assert_int_equal(repo_protect(h.rig.repo, &h.id[1], true, &err), 0);
		assert_int_equal(repo_forget(h.rig.repo, h.id, 3, &err), TM_E_DENIED);
		check_points(&h, 0x3f);
		assert_int_equal(repo_points(h.rig.repo, NULL, &l, NULL, NULL), 0);
		for (unsigned k = 0; k < N; k++)
			assert_int_equal(l.v[k]->is_protected, k == 1);
		assert_int_equal(repo_protect(h.rig.repo, &h.id[1], false, NULL), 0);
	}
	error_clear(&err);
	assert_int_equal(repo_forget(h.rig.repo, h.id, 3, &err), 0);
	check_points(&h, 0x38);
	assert_int_equal(repo_protect(h.rig.repo, &h.id[1], true, &err), TM_E_STALE);
	history_down(&h);
}

/* A session that is taken for dead learns it, and what it left goes, but for its verdict (I15). */
static void a_session_taken_for_dead_cannot_commit(void **state)
{
	auto_clean(repo_session_free) struct repo_session *s = NULL;
	struct repo_session_options opt = {.guest = rig_guest};
	struct point meta = {
		.guest = rig_guest, .name = rig_name, .state = rig_state, .kind = POINT_OFFLINE};
	struct repo_prune_report rep = {0};
	struct format_flag beat;
	struct error err = {0};
	char key[KEY_MAX];
	struct history h;
	uint64_t size;

	(void)state;
	history_up(&h);
	h.rig.now -= h.rig.now % 1000;
	opt.pool = h.rig.pool;
	assert_int_equal(id_new_timed(h.rig.now - 5000, &opt.id, NULL), 0);
	assert_int_equal(repo_session_begin(h.rig.repo, &opt, &s, &err), 0);
	assert_int_equal(prune(&h, 0, 6000, &rep, &err), 0); /* too young */
	assert_int_equal(rep.removed_objects, 0);
	name_heartbeat(h.rig.repo, &opt.id, (uint32_t)(h.rig.now / 1000), key);
	beat = flag_body(h.rig.repo, FLAG_MARKER, &opt.id, (uint32_t)(h.rig.now / 1000), h.rig.now);
	assert_int_equal(store_put_wait(&h.rig.store->st, key, &beat, sizeof(beat), NULL), 0);
	verify_clean(&h.rig);
	assert_int_equal(prune(&h, 0, 5000, &rep, &err), 0); /* alive */
	assert_int_equal(rep.removed_objects, 0);
	assert_int_equal(prune(&h, 0, 1000, &rep, &err), 0);
	assert_int_equal(rep.removed_objects, 0);
	h.rig.now += 5000;
	assert_int_equal(prune(&h, 0, 5000, &rep, &err), 0);
	assert_int_equal(rep.removed_objects, 3); /* marker, heartbeat, fence */
	assert_int_equal(repo_session_commit(s, &meta, &err), TM_E_STALE);
	check_points(&h, 0x3f);
	assert_int_equal(prune(&h, 0, UINT64_MAX, &rep, &err), 0);
	assert_int_equal(rep.removed_objects, 1); /* the late manifest */
	name_flag(h.rig.repo, FLAG_VERDICT, &opt.id, key);
	assert_int_equal(h.rig.store->st.ops->head(&h.rig.store->st, key, &size, &err), 0);
	check_points(&h, 0x3f);
	history_down(&h);
}

/* I14: what an open session builds on stays, even when it is deleted. */
static void what_is_pinned_stays(void **state)
{
	auto_clean(repo_session_free) struct repo_session *s = NULL;
	auto_point_list struct point_list l = {0};
	struct repo_session_options opt = {.guest = rig_guest};
	struct point_disk disk = {.name = rig_disk, .rung = RUNG_BITMAP};
	struct point meta = {.guest = rig_guest,
			     .name = rig_name,
			     .state = rig_state,
			     .kind = POINT_OFFLINE,
			     .disks = &disk,
			     .ndisks = 1};
	struct repo_prune_report rep = {0};
	struct repo_disk_counts counts;
	struct piece_sink *sink;
	struct error err = {0};
	struct history h;

	(void)state;
	history_up(&h);
	opt.pool = h.rig.pool;
	assert_int_equal(repo_points(h.rig.repo, NULL, &l, NULL, NULL), 0);
	assert_int_equal(id_new_timed(h.rig.now, &opt.id, NULL), 0);
	assert_int_equal(repo_session_begin(h.rig.repo, &opt, &s, &err), 0);
	assert_int_equal(repo_session_disk_begin(s, rig_disk, h.im.size, l.v[N - 1],
						 &l.v[N - 1]->disks[0], &sink, &err),
			 0);
	assert_int_equal(repo_forget(h.rig.repo, h.id, N, &err), 0);
	assert_int_equal(prune(&h, 0, UINT64_MAX, &rep, &err), 0);
	assert_int_equal(repo_session_disk_end(s, &counts, &err), 0);
	if (repo_session_commit(s, &meta, &err) < 0)
		fail_msg("%s", err.text);
	assert_int_equal(prune(&h, 0, UINT64_MAX, &rep, &err), 0);
	point_list_done(&l);
	assert_int_equal(repo_points(h.rig.repo, NULL, &l, NULL, NULL), 0);
	assert_int_equal(l.n, 1);
	if (rig_read(&h.rig, l.v[0], &h.past[N - 1], &err) < 0)
		fail_msg("%s", err.text);
	history_down(&h);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(space_comes_back),
		cmocka_unit_test(holes_alone_are_kept),
		cmocka_unit_test(a_dry_run_only_counts),
		cmocka_unit_test(a_prune_cut_anywhere_runs_again),
		cmocka_unit_test(an_unreadable_map_stops_everything),
		cmocka_unit_test(old_records_of_verification_go),
		cmocka_unit_test(protected_points_are_not_forgotten),
		cmocka_unit_test(a_session_taken_for_dead_cannot_commit),
		cmocka_unit_test(what_is_pinned_stays),
	};

	seed = test_seed();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
