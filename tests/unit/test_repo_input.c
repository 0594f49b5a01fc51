/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a repository may meet: objects of newer programs, foreign objects, a clock that was set
 * back, two guests of one name.  Each has a clear error or a defined outcome, and nothing is lost.
 */
#include "test_secret.h"

#define BS   4096
#define SIZE (512 * 1024 + 7)

static uint64_t seed;

struct history {
	struct rig rig;
	struct image im, past;
};

static struct tm_id back_up(struct rig *rig, struct image *im, const struct point *parent)
{
	struct error err = {0};
	struct tm_id id;

	image_change(im, &rig->random, 4);
	if (rig_backup(rig, im, parent, &id, &err) < 0)
		fail_msg("%s", err.text);
	return id;
}

/* Two points, the first one's content in past. */
static void up(struct history *h)
{
	auto_point_list struct point_list l = {0};

	*h = (struct history){0};
	rig_up(&h->rig, BS, seed);
	image_init(&h->im, SIZE, BS);
	image_init(&h->past, SIZE, BS);
	(void)back_up(&h->rig, &h->im, NULL);
	memcpy(h->past.data, h->im.data, SIZE);
	assert_int_equal(repo_points(h->rig.repo, NULL, &l, NULL, NULL), 0);
	(void)back_up(&h->rig, &h->im, l.v[0]);
}

static void down(struct history *h)
{
	image_done(&h->im);
	image_done(&h->past);
	rig_down(&h->rig);
}

static void check_points(struct history *h)
{
	auto_point_list struct point_list l = {0};
	struct error err = {0};

	assert_int_equal(repo_points(h->rig.repo, NULL, &l, NULL, &err), 0);
	assert_int_equal(l.n, 2);
	if (rig_read(&h->rig, l.v[0], &h->past, &err) < 0 ||
	    rig_read(&h->rig, l.v[1], &h->im, &err) < 0)
		fail_msg("%s", err.text);
}

static size_t count_objects(struct rig *rig)
{
	struct copy *c = copy_store(rig->store->below);
	size_t n = c->n;

	copy_free(c);
	return n;
}

static struct repo_prune_options prune_options(const struct history *h)
{
	return (struct repo_prune_options){
		.max_unused = 0, .stale_ms = 86400000, .now_ms = h->rig.now};
}

/* ---- newer programs ---- */

enum bits { VERSION, INCOMPAT, RO_COMPAT, COMPAT };

/* Puts an object in the place of `key` as a newer program would write it. */
static void make_newer(struct history *h, const char *key, enum bits which)
{
	struct store *st = h->rig.store->below;
	auto_buf struct buf b = {0};
	struct format_head head;

	assert_int_equal(store_read(st, key, 1 << 20, &b, NULL), 0);
	memcpy(&head, b.data, sizeof(head));
	if (which == VERSION)
		head.version = le16_of(2);
	else if (which == INCOMPAT)
		head.incompat = le64_of(4);
	else if (which == RO_COMPAT)
		head.ro_compat = le64_of(4);
	else
		head.compat = le64_of(4);
	memcpy(b.data, &head, sizeof(head));
	if (strncmp(key, "repo", 4) == 0) { /* it knows the keys, too */
		auto_secret struct secret mac_key = {{0}};

		assert_int_equal(
			derive(&h->rig.repo->master.meta, "tidemark repo", 13, &mac_key, NULL), 0);
		assert_int_equal(mac_once(&mac_key, b.data, offsetof(struct format_repo, mac),
					  b.data + offsetof(struct format_repo, mac), NULL),
				 0);
	}
	format_head_seal(b.data, le16_get(head.head_len));
	assert_int_equal(st->ops->remove(st, key, NULL), 0);
	assert_int_equal(store_put_wait(st, key, b.data, b.len, NULL), 0);
}

static void a_newer_repository_is_refused(void **state)
{
	static const struct {
		enum bits which;
		const char *says;
	} newer[] = {{VERSION, "format version 2"}, {INCOMPAT, "features"}};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(newer); i++) {
		struct error err = {0};
		struct history h;

		up(&h);
		/* either copy says so, and the other one may be what is left of before */
		make_newer(&h, i ? "repo" : "repo.copy", newer[i].which);
		assert_int_equal(reopen(&h.rig, NULL, &err), TM_E_UNSUPPORTED);
		assert_non_null(strstr(err.text, newer[i].says));
		/* the store went with the attempt */
		image_done(&h.im);
		image_done(&h.past);
		pool_free(h.rig.pool);
		loop_free(h.rig.loop);
	}
}

static void an_unknown_compatible_feature_is_no_matter(void **state)
{
	struct error err = {0};
	struct history h;

	(void)state;
	up(&h);
	make_newer(&h, "repo", COMPAT);
	make_newer(&h, "repo.copy", COMPAT);
	assert_int_equal(reopen(&h.rig, NULL, &err), 0);
	check_points(&h);
	(void)back_up(&h.rig, &h.im, NULL);
	down(&h);
}

static void assert_read_only(int code, struct error *err)
{
	assert_int_equal(code, TM_E_UNSUPPORTED);
	assert_non_null(strstr(err->text, "not write"));
	error_clear(err);
}

static void features_for_reading_only_keep_writers_away(void **state)
{
	auto_point_list struct point_list l = {0};
	struct repo_verify_options verify = {.scrub = true, .budget_ms = 1000};
	struct repo_verify_report report = {0};
	struct repo_prune_options prune;
	struct repo_prune_report pruned;
	struct repo_secret s = password("x");
	struct error err = {0};
	struct history h;
	struct tm_id id;
	size_t n;

	(void)state;
	up(&h);
	prune = prune_options(&h);
	verify.pool = h.rig.pool;
	make_newer(&h, "repo", RO_COMPAT);
	make_newer(&h, "repo.copy", RO_COMPAT);
	assert_int_equal(reopen(&h.rig, NULL, &err), 0);
	n = count_objects(&h.rig);
	check_points(&h);
	assert_int_equal(repo_points(h.rig.repo, NULL, &l, NULL, &err), 0);
	assert_read_only(rig_backup(&h.rig, &h.im, NULL, &id, &err), &err);
	assert_read_only(repo_forget(h.rig.repo, &l.v[0]->id, 1, &err), &err);
	assert_read_only(repo_protect(h.rig.repo, &l.v[0]->id, true, &err), &err);
	assert_read_only(repo_prune(h.rig.repo, &prune, &pruned, &err), &err);
	assert_read_only(repo_domain_add(h.rig.repo, "x", &id, &err), &err);
	assert_read_only(repo_keys_repair(h.rig.repo, &n, &err), &err);
	assert_int_equal(repo_verify(h.rig.repo, &verify, &report, &err), 0);
	assert_non_null(strstr(report.unrecorded, "not write"));
	repo_verify_report_done(&report);
	h.rig.repo->encrypted = true; /* changes of keys get that far only then */
	assert_read_only(repo_key_change(h.rig.repo, &s, &id, &err), &err);
	assert_read_only(key_add(h.rig.repo, REPO_ROLE_FULL, NULL, &s, &id, &err), &err);
	verify.budget_ms = 0;
	assert_int_equal(repo_verify(h.rig.repo, &verify, &report, &err), 0);
	assert_int_equal(report.ndamaged, 0);
	repo_verify_report_done(&report);
	n = count_objects(&h.rig);
	check_points(&h);
	assert_int_equal(count_objects(&h.rig), n);
	down(&h);
}

static void a_point_of_a_newer_program_is_left_alone(void **state)
{
	auto_point_list struct point_list l = {0}, left = {0};
	struct repo_prune_options prune;
	struct repo_prune_report pruned;
	struct error err = {0};
	size_t damaged = 0, n;
	struct history h;
	struct tm_id id;

	(void)state;
	up(&h);
	prune = prune_options(&h);
	assert_int_equal(repo_points(h.rig.repo, NULL, &l, NULL, &err), 0);
	make_newer(&h, l.v[0]->object, INCOMPAT);
	assert_int_equal(reopen(&h.rig, NULL, &err), 0);
	assert_int_equal(repo_points(h.rig.repo, NULL, &left, &damaged, &err), 0);
	assert_int_equal(left.n, 1);
	assert_int_equal(damaged, 1);
	if (rig_read(&h.rig, left.v[0], &h.im, &err) < 0)
		fail_msg("%s", err.text);
	/* nobody knows what it needs, so nothing is removed */
	id = left.v[0]->id;
	assert_int_equal(repo_forget(h.rig.repo, &id, 1, &err), 0);
	n = count_objects(&h.rig);
	assert_true(repo_prune(h.rig.repo, &prune, &pruned, &err) < 0);
	assert_true(strlen(err.text) > 0);
	assert_int_equal(count_objects(&h.rig), n);
	down(&h);
}

/* ---- what others put there ---- */

static void foreign_objects_are_passed_by(void **state)
{
	char names[8][KEY_MAX] = {"readme", "keys/notes", "domains/notes", "d/notes", "lost/found"};
	const struct repo_verify_options verify = {.scrub = true};
	struct repo_verify_report report = {0};
	struct repo_prune_options prune;
	struct repo_prune_report pruned;
	struct error err = {0};
	struct history h;
	char folder[KEY_MAX];

	(void)state;
	up(&h);
	prune = prune_options(&h);
	prune.now_ms += UINT64_C(365) * 86400000;
	name_domain_folder(h.rig.repo, folder);
	(void)snprintf(names[5], KEY_MAX, "%.60sp/notes", folder);
	(void)snprintf(names[6], KEY_MAX, "%.60ss/notes", folder);
	(void)snprintf(names[7], KEY_MAX, "%.60st/notes", folder);
	for (size_t i = 0; i < ARRAY_SIZE(names); i++)
		assert_int_equal(store_put_wait(h.rig.store->below, names[i], "dear", 4, &err), 0);
	assert_int_equal(reopen(&h.rig, NULL, &err), 0);
	check_points(&h);
	if (repo_prune(h.rig.repo, &prune, &pruned, &err) < 0)
		fail_msg("%s", err.text);
	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		uint64_t size;

		assert_int_equal(
			h.rig.store->below->ops->head(h.rig.store->below, names[i], &size, &err),
			0);
		if (i > 4) /* what lies among a domain's objects is taken for damaged ones */
			assert_int_equal(
				h.rig.store->below->ops->remove(h.rig.store->below, names[i], &err),
				0);
	}
	assert_int_equal(repo_verify(h.rig.repo, &verify, &report, &err), 0);
	assert_int_equal(report.ndamaged, 0);
	repo_verify_report_done(&report);
	check_points(&h);
	down(&h);
}

/* ---- clocks and names ---- */

static void a_clock_that_was_set_back_changes_no_order(void **state)
{
	auto_point_list struct point_list l = {0}, after = {0};
	struct repo_prune_options prune;
	struct repo_prune_report pruned;
	struct error err = {0};
	struct point *p = NULL;
	struct history h;
	struct tm_id id;

	(void)state;
	up(&h);
	prune = prune_options(&h);
	assert_int_equal(repo_points(h.rig.repo, NULL, &l, NULL, &err), 0);
	h.rig.now -= UINT64_C(30) * 86400000;
	memcpy(h.past.data, h.im.data, SIZE);
	id = back_up(&h.rig, &h.im, l.v[1]);
	assert_int_equal(repo_point_find(h.rig.repo, "guest@latest", &p, &err), 0);
	assert_true(id_equal(&p->id, &id));
	assert_true(p->created_ms < l.v[0]->created_ms);
	point_free(p);
	/* neither a janitor of today nor one of that time takes it for stale */
	for (int i = 0; i < 2; i++) {
		if (repo_prune(h.rig.repo, &prune, &pruned, &err) < 0)
			fail_msg("%s", err.text);
		prune.now_ms = h.rig.now;
	}
	assert_int_equal(repo_points(h.rig.repo, NULL, &after, NULL, &err), 0);
	assert_int_equal(after.n, 3);
	assert_true(id_equal(&after.v[2]->id, &id));
	assert_int_equal(rig_read(&h.rig, after.v[1], &h.past, &err), 0);
	assert_int_equal(rig_read(&h.rig, after.v[2], &h.im, &err), 0);
	down(&h);
}

/* Two hosts, each with a guest of that name and its own last point. */
static void two_guests_of_one_name_keep_their_own_data(void **state)
{
	struct point *last[2] = {NULL, NULL};
	struct image im[2];
	struct error err = {0};
	struct history h;

	(void)state;
	up(&h);
	for (int i = 0; i < 2; i++)
		image_init(&im[i], SIZE + 100000 * (uint64_t)i, BS);
	for (int turn = 0; turn < 6; turn++) {
		int i = (int)test_below(&h.rig.random, 2);
		struct tm_id id = back_up(&h.rig, &im[i], last[i]);

		point_free(last[i]);
		assert_int_equal(repo_point_get(h.rig.repo, rig_guest, &id, &last[i], &err), 0);
		for (int k = 0; k < 2; k++)
			if (last[k] && rig_read(&h.rig, last[k], &im[k], &err) < 0)
				fail_msg("%s", err.text);
	}
	for (int i = 0; i < 2; i++) {
		point_free(last[i]);
		image_done(&im[i]);
	}
	down(&h);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_newer_repository_is_refused),
		cmocka_unit_test(an_unknown_compatible_feature_is_no_matter),
		cmocka_unit_test(features_for_reading_only_keep_writers_away),
		cmocka_unit_test(a_point_of_a_newer_program_is_left_alone),
		cmocka_unit_test(foreign_objects_are_passed_by),
		cmocka_unit_test(a_clock_that_was_set_back_changes_no_order),
		cmocka_unit_test(two_guests_of_one_name_keep_their_own_data),
	};

	seed = test_seed();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
