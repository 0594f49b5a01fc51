/* SPDX-License-Identifier: Apache-2.0 */
/* Domains: a tenant's key opens its own only; no content, deletion or rotation crosses. */
#include "test_secret.h"

#include "repo/domain.h"

#define BS   SECRET_BS
#define SIZE (1024 * 1024 + 5)

static uint64_t seed;

/* A repository with the domains "default", "acme" and "zeta", and a full key each for two. */
struct tenants {
	struct rig rig;
	struct repo_secret all, acme, zeta;
	struct image im;
};

static void key_for(struct tenants *t, const char *domain, enum repo_role role, const char *text)
{
	const struct repo_key_options opt = {.role = role, .one_domain = true};
	struct repo_secret s = password(text);
	struct error err = {0};
	struct tm_id id;

	assert_int_equal(repo_domain_use(t->rig.repo, domain, &err), 0);
	if (repo_key_add(t->rig.repo, &opt, &s, &id, &err) < 0)
		fail_msg("%s", err.text);
}

static void up(struct tenants *t)
{
	struct error err = {0};
	struct tm_id id;

	*t = (struct tenants){
		.all = password("first"), .acme = password("acme"), .zeta = password("zeta")};
	rig_up_encrypted(&t->rig, seed);
	assert_int_equal(repo_domain_add(t->rig.repo, "acme", &id, &err), 0);
	assert_int_equal(repo_domain_add(t->rig.repo, "zeta", &id, &err), 0);
	key_for(t, "acme", REPO_ROLE_FULL, "acme");
	key_for(t, "zeta", REPO_ROLE_FULL, "zeta");
	assert_int_equal(repo_domain_use(t->rig.repo, "default", &err), 0);
	image_init(&t->im, SIZE, BS);
	image_change(&t->im, &t->rig.random, 30);
}

static void down(struct tenants *t)
{
	image_done(&t->im);
	rig_down(&t->rig);
}

static void open_as(struct tenants *t, const struct repo_secret *s, const char *domain)
{
	struct error err = {0};

	if (reopen(&t->rig, s, &err) < 0 ||
	    (domain && repo_domain_use(t->rig.repo, domain, &err) < 0))
		fail_msg("%s", err.text);
}

/* A point of the whole image, with no parent. */
static struct tm_id back_up(struct tenants *t)
{
	struct error err = {0};
	struct tm_id id;

	t->rig.whole = true;
	if (rig_backup(&t->rig, &t->im, NULL, &id, &err) < 0)
		fail_msg("%s", err.text);
	return id;
}

static size_t count_points(struct tenants *t)
{
	auto_point_list struct point_list l = {0};

	assert_int_equal(repo_points(t->rig.repo, NULL, &l, NULL, NULL), 0);
	return l.n;
}

/* All points of the domain in use are the image. */
static void check_points(struct tenants *t, size_t n)
{
	auto_point_list struct point_list l = {0};
	struct error err = {0};

	assert_int_equal(repo_points(t->rig.repo, NULL, &l, NULL, &err), 0);
	assert_int_equal(l.n, n);
	for (size_t i = 0; i < l.n; i++)
		if (rig_read(&t->rig, l.v[i], &t->im, &err) < 0)
			fail_msg("%s", err.text);
}

static void a_tenant_sees_his_own_domain_only(void **state)
{
	auto_domain_list struct repo_domain_list l = {0};
	struct point *p = NULL;
	struct error err = {0};
	struct tm_id theirs, own, id;
	struct tenants t;

	(void)state;
	up(&t);
	back_up(&t);
	open_as(&t, &t.zeta, NULL);
	theirs = back_up(&t);
	open_as(&t, &t.acme, NULL);
	assert_string_equal(repo_domain_name(t.rig.repo), "acme");
	assert_int_equal(count_points(&t), 0);
	own = back_up(&t);
	check_points(&t, 1);
	assert_int_equal(repo_point_get(t.rig.repo, NULL, &theirs, &p, &err), TM_E_NOTFOUND);
	error_clear(&err);
	assert_int_equal(repo_forget(t.rig.repo, &theirs, 1, &err), 0); /* in his own */
	assert_int_equal(repo_domain_use(t.rig.repo, "zeta", &err), TM_E_NOTFOUND);
	assert_non_null(strstr(err.text, "only 'acme'"));
	error_clear(&err);
	assert_int_equal(repo_domain_use(t.rig.repo, "default", &err), TM_E_NOTFOUND);
	error_clear(&err);
	assert_int_equal(repo_domain_add(t.rig.repo, "more", &id, &err), TM_E_DENIED);
	error_clear(&err);
	assert_int_equal(repo_domains(t.rig.repo, &l, &err), 0);
	assert_int_equal(l.n, 1);
	assert_string_equal(l.v[0].name, "acme");
	open_as(&t, &t.all, "acme");
	check_points(&t, 1);
	assert_int_equal(repo_point_get(t.rig.repo, NULL, &own, &p, &err), 0);
	point_free(p);
	open_as(&t, &t.zeta, NULL);
	check_points(&t, 1);
	down(&t);
}

static void roles_hold_within_a_domain(void **state)
{
	struct repo_secret agent = password("agent"), janitor = password("janitor");
	auto_point_list struct point_list l = {0};
	struct error err = {0};
	struct tm_id id;
	struct tenants t;

	(void)state;
	up(&t);
	key_for(&t, "acme", REPO_ROLE_BACKUP, "agent");
	key_for(&t, "acme", REPO_ROLE_JANITOR, "janitor");
	open_as(&t, &agent, NULL);
	back_up(&t);
	assert_int_equal(repo_points(t.rig.repo, NULL, &l, NULL, &err), 0);
	assert_int_equal(rig_read(&t.rig, l.v[0], &t.im, &err), TM_E_DENIED);
	error_clear(&err);
	open_as(&t, &janitor, NULL);
	assert_int_equal(count_points(&t), 1);
	assert_int_equal(rig_backup(&t.rig, &t.im, NULL, &id, &err), TM_E_DENIED);
	error_clear(&err);
	open_as(&t, &t.acme, NULL);
	check_points(&t, 1);
	down(&t);
}

static void content_is_shared_within_a_domain_and_never_across(void **state)
{
	static const char *const names[] = {"default", "acme", "zeta"};
	uint64_t first = 0;
	struct tenants t;

	(void)state;
	up(&t);
	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		open_as(&t, &t.all, names[i]);
		back_up(&t);
		assert_true(t.rig.counts.new_bytes > SIZE / 4);
		if (i == 0)
			first = t.rig.counts.new_bytes;
		assert_int_equal(t.rig.counts.new_bytes, first);
		check_points(&t, 1);
	}
	down(&t);
}

/* The names of a domain's objects. */
static size_t objects_of(struct tenants *t, const char *domain)
{
	struct copy *c = copy_store(t->rig.store->below);
	char folder[KEY_MAX];
	size_t n = 0;

	open_as(t, &t->all, domain);
	name_domain_folder(t->rig.repo, folder);
	for (size_t i = 0; i < c->n; i++)
		n += strncmp(c->key[i], folder, strlen(folder)) == 0;
	copy_free(c);
	return n;
}

static void deletion_stays_within_a_domain(void **state)
{
	struct repo_prune_options opt = {.max_unused = 0, .stale_ms = 0, .now_ms = 1};
	struct repo_prune_report report;
	struct error err = {0};
	struct tm_id gone;
	struct tenants t;
	size_t zeta;

	(void)state;
	up(&t);
	opt.now_ms = t.rig.now + 86400000;
	open_as(&t, &t.zeta, NULL);
	back_up(&t);
	back_up(&t);
	zeta = objects_of(&t, "zeta");
	assert_true(zeta > 4);
	open_as(&t, &t.acme, NULL);
	gone = back_up(&t);
	back_up(&t);
	assert_int_equal(repo_forget(t.rig.repo, &gone, 1, &err), 0);
	if (repo_prune(t.rig.repo, &opt, &report, &err) < 0)
		fail_msg("%s", err.text);
	assert_true(report.removed_objects > 2);
	check_points(&t, 1);
	assert_int_equal(objects_of(&t, "zeta"), zeta);
	open_as(&t, &t.zeta, NULL);
	check_points(&t, 2);
	down(&t);
}

static void a_rotation_of_one_domain_leaves_the_others(void **state)
{
	struct repo_secret agent = password("agent"), paper;
	auto_free char *text = NULL;
	auto_point_list struct point_list l = {0};
	struct repo_verify_options data = {.read_data = true};
	struct repo_verify_report report = {0};
	struct error err = {0};
	struct tm_id id, kid;
	struct tenants t;

	(void)state;
	up(&t);
	data.pool = t.rig.pool;
	key_for(&t, "acme", REPO_ROLE_BACKUP, "agent");
	open_as(&t, &t.acme, NULL);
	back_up(&t);
	kid = t.rig.repo->kid;
	assert_int_equal(repo_key_paper(t.rig.repo, false, &text, &err), 0);
	paper = key_file(text);
	assert_int_equal(repo_key_rotate(t.rig.repo, true, &t.acme, &id, &err), TM_E_DENIED);
	error_clear(&err);
	open_as(&t, &t.all, "acme");
	assert_int_equal(repo_key_rotate(t.rig.repo, false, &t.all, &id, &err), TM_E_BUSY);
	error_clear(&err);
	assert_int_equal(repo_key_rotate(t.rig.repo, true, &t.all, &id, &err), TM_E_BUSY);
	error_clear(&err);
	assert_int_equal(repo_key_remove(t.rig.repo, &kid, &err), 0);
	for (int i = 0; i < 2; i++)
		if (repo_key_rotate(t.rig.repo, true, &t.all, &id, &err) < 0)
			fail_msg("%s", err.text);
	key_for(&t, "acme", REPO_ROLE_FULL, "acme");
	open_as(&t, &agent, NULL);
	back_up(&t);
	open_as(&t, &t.acme, NULL);
	assert_null(repo_key_remark(t.rig.repo));
	check_points(&t, 2);
	assert_int_equal(t.rig.repo->master.generation, 2);
	/* the old paper: what was, and a word about why not more */
	open_as(&t, &paper, NULL);
	assert_non_null(repo_key_remark(t.rig.repo));
	assert_int_equal(repo_points(t.rig.repo, NULL, &l, NULL, &err), 0);
	assert_int_equal(rig_read(&t.rig, l.v[0], &t.im, &err), 0);
	assert_int_equal(rig_read(&t.rig, l.v[1], &t.im, &err), TM_E_DENIED);
	assert_non_null(strstr(err.text, "rotate"));
	error_clear(&err);
	assert_int_equal(repo_verify(t.rig.repo, &data, &report, &err), TM_E_DENIED);
	error_clear(&err);
	data.read_data = false;
	assert_int_equal(repo_verify(t.rig.repo, &data, &report, &err), 0);
	assert_int_equal(report.ndamaged, 0);
	repo_verify_report_done(&report);
	/* others were not asked */
	open_as(&t, &t.zeta, NULL);
	assert_null(repo_key_remark(t.rig.repo));
	back_up(&t);
	check_points(&t, 1);
	assert_int_equal(t.rig.repo->keys.public_generation, 0);
	down(&t);
}

static void a_tenant_changes_his_own_keys_only(void **state)
{
	struct repo_secret second = password("second");
	auto_key_list struct repo_key_list l = {0};
	struct error err = {0};
	struct tm_id own, id;
	struct tenants t;
	size_t of_all = 0;

	(void)state;
	up(&t);
	open_as(&t, &t.acme, NULL);
	own = t.rig.repo->kid;
	assert_int_equal(repo_keys(t.rig.repo, &l, &err), 0);
	assert_int_equal(l.n, 3);
	for (size_t i = 0; i < l.n; i++) {
		error_clear(&err);
		assert_int_equal(repo_key_remove(t.rig.repo, &l.v[i].id, &err), TM_E_DENIED);
		of_all += id_is_zero(&l.v[i].domain);
	}
	assert_int_equal(of_all, 1);
	error_clear(&err);
	assert_int_equal(key_add(t.rig.repo, REPO_ROLE_FULL, NULL, &second, &id, &err), 0);
	assert_int_equal(repo_key_remove(t.rig.repo, &own, &err), 0);
	open_as(&t, &second, NULL);
	assert_string_equal(repo_domain_name(t.rig.repo), "acme");
	assert_denied(&t.rig, &t.acme, "wrong password");
	/* the last one goes only by who can make another */
	assert_int_equal(repo_key_remove(t.rig.repo, &id, &err), TM_E_DENIED);
	error_clear(&err);
	open_as(&t, &t.all, NULL);
	assert_int_equal(repo_key_remove(t.rig.repo, &id, &err), 0);
	down(&t);
}

/* ---- what is forged ---- */

static struct buf *object(struct copy *c, const char *key)
{
	for (size_t i = 0; i < c->n; i++)
		if (strcmp(c->key[i], key) == 0)
			return &c->bytes[i];
	fail_msg("there is no %s", key);
	return NULL;
}

static void a_domain_is_proved_to_its_tenant(void **state)
{
	struct error err = {0};
	struct tenants t;
	struct buf *repo, *dom[COPIES];
	char key[KEY_MAX];
	struct copy *c;

	(void)state;
	up(&t);
	open_as(&t, &t.acme, NULL);
	c = copy_store(t.rig.store->below);
	repo = object(c, "repo");
	for (unsigned copy = 0; copy < COPIES; copy++) {
		name_domain(&t.rig.repo->domain, 0, copy, key);
		dom[copy] = object(c, key);
	}
	assert_int_equal(open_copy(&t.rig, c, &t.acme, NULL, &err), 0);
	repo->data[offsetof(struct format_repo, block_bits)] ^= 1;
	format_head_seal(repo->data, repo->len);
	assert_int_equal(open_copy(&t.rig, c, &t.acme, NULL, &err), TM_E_CORRUPT);
	repo->data[offsetof(struct format_repo, block_bits)] ^= 1;
	repo->data[offsetof(struct format_repo, encrypted)] = 0;
	format_head_seal(repo->data, repo->len);
	assert_int_equal(open_copy(&t.rig, c, &t.acme, NULL, &err), TM_E_DENIED);
	repo->data[offsetof(struct format_repo, encrypted)] = 1;
	format_head_seal(repo->data, repo->len);
	assert_int_equal(open_copy(&t.rig, c, &t.acme, NULL, &err), 0);
	for (size_t at = 56; at < sizeof(struct format_domain) - 4; at++) {
		for (unsigned copy = 0; copy < COPIES; copy++) {
			dom[copy]->data[at] ^= (uint8_t)(1U << at % 8);
			format_head_seal(dom[copy]->data, dom[copy]->len);
		}
		assert_int_equal(open_copy(&t.rig, c, &t.acme, NULL, &err), TM_E_CORRUPT);
		for (unsigned copy = 0; copy < COPIES; copy++) { /* one whole copy is enough */
			dom[copy]->data[at] ^= (uint8_t)(1U << at % 8);
			format_head_seal(dom[copy]->data, dom[copy]->len);
			assert_int_equal(open_copy(&t.rig, c, &t.acme, NULL, &err), 0);
		}
	}
	copy_free(c);
	down(&t);
}

/* ---- copies of the object ---- */

/* What a verification names, exactly: these copies of the domain, and its folder or not. */
static void assert_named(struct tenants *t, const struct tm_id *id, bool a, bool b, bool folder)
{
	struct repo_verify_report report = {0};
	const bool want[COPIES] = {a, b};
	struct error err = {0};
	char key[KEY_MAX];

	assert_int_equal(repo_verify_domains(t->rig.repo, &report, &err), 0);
	assert_int_equal(report.ndamaged, (size_t)a + (size_t)b + (size_t)folder);
	for (unsigned copy = 0; copy < COPIES; copy++) {
		bool found = false;

		name_domain(id, 0, copy, key);
		for (size_t i = 0; i < report.ndamaged; i++)
			found = found || strcmp(report.damaged[i].object, key) == 0;
		assert_int_equal(found, want[copy]);
	}
	(void)snprintf(key, sizeof(key), "d/%s/", id_text(id).s);
	if (folder)
		assert_string_equal(report.damaged[0].object, key);
	repo_verify_report_done(&report);
}

static void one_copy_of_a_domain_is_enough_and_the_other_is_put_again(void **state)
{
	struct error err = {0};
	struct tenants t;
	struct tm_id id, same;
	struct store *st;
	size_t n;

	(void)state;
	up(&t);
	st = t.rig.store->below;
	assert_int_equal(repo_domain_use(t.rig.repo, "acme", &err), 0);
	id = *repo_domain(t.rig.repo);
	assert_int_equal(repo_domain_use(t.rig.repo, "default", &err), 0);
	for (unsigned how = 0; how < 3 * COPIES; how++) {
		auto_buf struct buf good = {0}, again = {0};
		unsigned copy = how % COPIES;
		char key[KEY_MAX];

		name_domain(&id, 0, copy, key);
		assert_int_equal(store_read(st, key, 4096, &good, &err), 0);
		assert_int_equal(st->ops->remove(st, key, &err), 0);
		if (how / COPIES == 1) { /* damaged */
			good.data[40] ^= 1;
			assert_int_equal(store_put_wait(st, key, good.data, good.len, &err), 0);
			good.data[40] ^= 1;
		}
		assert_named(&t, &id, copy == 0, copy == 1, false);
		open_as(&t, &t.acme, NULL);
		assert_string_equal(repo_domain_name(t.rig.repo), "acme");
		assert_named(&t, &id, copy == 0, copy == 1, false);
		open_as(&t, &t.all, NULL);
		if (how / COPIES == 2) {
			assert_int_equal(repo_domain_add(t.rig.repo, "acme", &same, &err), 0);
			assert_true(id_equal(&same, &id));
		} else {
			assert_int_equal(repo_keys_repair(t.rig.repo, &n, &err), 0);
			assert_int_equal(n, 1);
		}
		assert_int_equal(store_read(st, key, 4096, &again, &err), 0);
		assert_int_equal(again.len, good.len);
		assert_memory_equal(again.data, good.data, good.len);
		assert_named(&t, &id, false, false, false);
		assert_int_equal(repo_keys_repair(t.rig.repo, &n, &err), 0);
		assert_int_equal(n, 0);
	}
	down(&t);
}

static void a_domain_that_lost_both_copies_is_missed(void **state)
{
	struct error err = {0};
	struct tm_id id, same;
	char key[KEY_MAX];
	struct tenants t;
	struct store *st;
	size_t n;

	(void)state;
	up(&t);
	st = t.rig.store->below;
	assert_int_equal(repo_domain_use(t.rig.repo, "acme", &err), 0);
	id = *repo_domain(t.rig.repo);
	(void)snprintf(key, sizeof(key), "d/%s/x/y", id_text(&id).s);
	assert_int_equal(store_put_wait(st, key, "", 0, &err), 0);
	assert_int_equal(repo_domain_use(t.rig.repo, "default", &err), 0);
	for (unsigned copy = 0; copy < COPIES; copy++) {
		name_domain(&id, 0, copy, key);
		assert_int_equal(st->ops->remove(st, key, &err), 0);
	}
	assert_named(&t, &id, false, false, true);
	assert_int_equal(repo_keys_repair(t.rig.repo, &n, &err), 0);
	assert_int_equal(n, 0);
	assert_int_equal(repo_domain_add(t.rig.repo, "acme", &same, &err), 0);
	assert_true(id_equal(&same, &id));
	assert_named(&t, &id, false, false, false);
	open_as(&t, &t.acme, NULL);
	down(&t);
}

static void names_are_checked(void **state)
{
	static const char *const bad[] = {
		"", "\n", "a\tb", "\xff\xfe",
		"12345678901234567890123456789012345678901234567890123456789012345"};
	char longest[DOMAIN_NAME_BYTES + 1];
	struct error err = {0};
	struct tenants t;
	struct tm_id id;

	(void)state;
	up(&t);
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		assert_int_equal(repo_domain_add(t.rig.repo, bad[i], &id, &err), TM_E_USAGE);
		error_clear(&err);
	}
	assert_int_equal(repo_domain_add(t.rig.repo, "default", &id, &err), TM_E_EXISTS);
	error_clear(&err);
	memset(longest, 'x', DOMAIN_NAME_BYTES);
	longest[DOMAIN_NAME_BYTES] = 0;
	assert_int_equal(repo_domain_add(t.rig.repo, longest, &id, &err), 0);
	assert_int_equal(repo_domain_use(t.rig.repo, longest, &err), 0);
	assert_string_equal(repo_domain_name(t.rig.repo), longest);
	assert_int_equal(repo_domain_use(t.rig.repo, "nope", &err), TM_E_NOTFOUND);
	assert_string_equal(repo_domain_name(t.rig.repo), longest);
	down(&t);
}

/* ---- interruptions ---- */

/* After any failure of a rotation both keys or one open, and run again it is complete. */
static void rotate_interrupted(bool one_domain, bool for_good)
{
	struct repo_secret agent = password("agent");
	struct error err = {0};
	struct tm_id id;

	for (unsigned n = 1;; n++) {
		struct tenants t;
		int r;

		up(&t);
		key_for(&t, "acme", REPO_ROLE_BACKUP, "agent");
		for (int i = 0; i < 2; i++) { /* no full key of a tenant may be there */
			open_as(&t, i ? &t.zeta : &t.acme, NULL);
			id = t.rig.repo->kid;
			open_as(&t, &t.all, "acme");
			assert_int_equal(repo_key_remove(t.rig.repo, &id, &err), 0);
		}
		t.rig.store->calls = 0;
		t.rig.store->fail_at = n;
		t.rig.store->for_good = for_good;
		r = repo_key_rotate(t.rig.repo, one_domain, &t.all, &id, &err);
		t.rig.store->fail_at = 0;
		open_as(&t, &agent, NULL);
		back_up(&t);
		open_as(&t, &t.all, "acme");
		check_points(&t, 1);
		error_clear(&err);
		if (r < 0 && repo_key_rotate(t.rig.repo, one_domain, &t.all, &id, &err) < 0)
			fail_msg("call %u: %s", n, err.text);
		open_as(&t, &t.all, "acme");
		assert_int_equal(t.rig.repo->master.generation, t.rig.repo->keys.public_generation);
		assert_true(t.rig.repo->keys.public_generation >= 1);
		check_points(&t, 1);
		open_as(&t, &t.all, "zeta");
		assert_int_equal(t.rig.repo->keys.public_generation > 0, !one_domain);
		down(&t);
		if (r == 0)
			break;
	}
}

static void a_rotation_may_end_anywhere(void **state)
{
	(void)state;
	for (int i = 0; i < 4; i++)
		rotate_interrupted(i & 1, i & 2);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_tenant_sees_his_own_domain_only),
		cmocka_unit_test(roles_hold_within_a_domain),
		cmocka_unit_test(content_is_shared_within_a_domain_and_never_across),
		cmocka_unit_test(deletion_stays_within_a_domain),
		cmocka_unit_test(a_rotation_of_one_domain_leaves_the_others),
		cmocka_unit_test(a_tenant_changes_his_own_keys_only),
		cmocka_unit_test(a_domain_is_proved_to_its_tenant),
		cmocka_unit_test(one_copy_of_a_domain_is_enough_and_the_other_is_put_again),
		cmocka_unit_test(a_domain_that_lost_both_copies_is_missed),
		cmocka_unit_test(names_are_checked),
		cmocka_unit_test(a_rotation_may_end_anywhere),
	};

	seed = test_seed();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
