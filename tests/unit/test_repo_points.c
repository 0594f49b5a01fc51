/* SPDX-License-Identifier: Apache-2.0 */
/* Manifests, and how a person names a point. */
#include "test_repo.h"

#include "repo/internal.h"
#include "repo/manifest.h"

#define BS 4096

static uint64_t seed;

static void commit(struct rig *rig, const char *guest, const char *name, uint64_t ms,
		   uint8_t id_byte)
{
	auto_clean(repo_session_free) struct repo_session *s = NULL;
	struct repo_session_options opt = {.guest = guest, .pool = rig->pool};
	char g[32], n[32];
	struct point meta = {
		.guest = g, .name = n, .state = rig_state, .kind = POINT_OFFLINE, .created_ms = ms};
	struct error err = {0};

	(void)snprintf(g, sizeof(g), "%s", guest);
	(void)snprintf(n, sizeof(n), "%s", name);
	memset(opt.id.b, id_byte, sizeof(opt.id.b));
	if (repo_session_begin(rig->repo, &opt, &s, &err) < 0 ||
	    repo_session_commit(s, &meta, &err) < 0)
		fail_msg("%s", err.text);
}

static int find(struct rig *rig, const char *spec)
{
	auto_clean(point_free) struct point *p = NULL;
	int r = repo_point_find(rig->repo, spec, &p, NULL);

	return r < 0 ? r : p->id.b[0];
}

static void points_are_found_by_what_people_type(void **state)
{
	/* 2023-11-14T22:13:20Z and the days after */
	const uint64_t day = 86400000, t = 1700000000000;
	struct rig rig;

	(void)state;
	(void)setenv("TZ", "UTC", 1);
	rig_up(&rig, BS, seed);
	assert_int_equal(find(&rig, "latest"), TM_E_NOTFOUND);
	commit(&rig, "web", "first", t, 0x1a);
	commit(&rig, "web", "second", t + day, 0x2b);
	commit(&rig, "db", "first", t + 2 * day, 0x3c);
	commit(&rig, "web", "abcd", t - day, 0x4d); /* the clock was set back */
	assert_int_equal(find(&rig, "latest"), 0x3c);
	assert_int_equal(find(&rig, "web"), 0x4d);
	assert_int_equal(find(&rig, "web@latest"), 0x4d);
	assert_int_equal(find(&rig, "web@first"), 0x1a);
	assert_int_equal(find(&rig, "db@first"), 0x3c);
	assert_int_equal(find(&rig, "first"), TM_E_USAGE);
	assert_int_equal(find(&rig, "second"), 0x2b);
	assert_int_equal(find(&rig, "1a1a"), 0x1a);
	assert_int_equal(find(&rig, "1a1"), TM_E_NOTFOUND);
	assert_int_equal(find(&rig, "3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c3c"), 0x3c);
	assert_int_equal(find(&rig, "db@2023-11-17"), 0x3c);
	assert_int_equal(find(&rig, "db@2023-11-15"), TM_E_NOTFOUND);
	assert_int_equal(find(&rig, "nobody"), TM_E_NOTFOUND);
	assert_int_equal(find(&rig, ""), TM_E_NOTFOUND);
	assert_int_equal(find(&rig, "@"), TM_E_NOTFOUND);
	rig_down(&rig);
}

static unsigned calls_to_find(struct rig *rig, const char *spec)
{
	unsigned before = rig->store->calls;

	assert_true(find(rig, spec) > 0);
	return rig->store->calls - before;
}

static bool is_named(void *data, const struct point *p)
{
	return strcmp(p->name, data) == 0;
}

/* What the newest point costs does not grow with the history. */
static void only_manifests_that_are_needed_are_read(void **state)
{
	auto_point_list struct point_list l = {0};
	struct point *p = NULL;
	unsigned few, first = 0;
	struct tm_id id;
	struct rig rig;
	char name[] = "name 7";
	size_t damaged;

	(void)state;
	rig_up(&rig, BS, seed);
	commit(&rig, "db", "other", 5000000, 0xee);
	for (uint8_t i = 1; i <= 100; i++) {
		(void)snprintf(name, sizeof(name), "name %u", i % 10U);
		commit(&rig, "web", name, i * UINT64_C(10000), i);
		few = calls_to_find(&rig, "web@latest");
		first = i == 1 ? few : first;
		assert_int_equal(few, first);
		assert_int_equal(calls_to_find(&rig, "latest"), few + 1);
	}
	assert_true(calls_to_find(&rig, "web@1970-01-01") > 100);
	assert_int_equal(repo_points_brief(rig.repo, "web", &l, &damaged, NULL), 0);
	assert_int_equal(l.n, 100);
	for (uint8_t i = 1; i <= 100; i++)
		assert_int_equal(l.v[i - 1]->id.b[0], i);
	memset(&id, 60, sizeof(id));
	assert_int_equal(repo_point_newest(rig.repo, "web", NULL, NULL, NULL, &p, NULL), 0);
	assert_int_equal(p->id.b[0], 100);
	point_free(p);
	memcpy(name, "name 7", sizeof(name));
	assert_int_equal(repo_point_newest(rig.repo, "web", &id, is_named, name, &p, NULL), 0);
	assert_int_equal(p->id.b[0], 57);
	point_free(p);
	memset(&id, 7, sizeof(id));
	assert_int_equal(repo_point_newest(rig.repo, "web", &id, is_named, name, &p, NULL),
			 TM_E_NOTFOUND);
	rig_down(&rig);
}

/* A damaged newest point is not silently replaced by the one before. */
/* A store may be far away. */
static void to_open_and_to_find_the_newest_few_things_are_asked_for(void **state)
{
	auto_clean(point_free) struct point *p = NULL;
	struct repo *repo = NULL;
	struct error err = {0};
	struct failing *f;
	struct rig rig;

	(void)state;
	rig_up(&rig, BS, seed);
	for (uint8_t i = 1; i < 100; i++)
		commit(&rig, "web", "point", UINT64_C(1700000000000) + i, i);
	f = rig_store(&rig);
	store_free(f->below);
	f->below = rig.store->below;
	f->keep = true;
	f->of = REQUEST_GET | REQUEST_LIST | REQUEST_HEAD;
	assert_int_equal(repo_open(&f->st, &repo, &err), 0);
	assert_int_equal(repo_point_newest(repo, "web", NULL, NULL, NULL, &p, &err), 0);
	assert_int_equal(p->id.b[0], 99);
	/* repo, its copy, the lists of keys and of the domain, a slot, the domain; the lists of
	 * tombstones, verdicts and points, a manifest */
	assert_int_equal(f->calls, 10);
	repo_free(repo);
	free(f);
	rig_down(&rig);
}

static void a_damaged_point_that_was_meant_is_an_error(void **state)
{
	struct tm_id source, id;
	struct rig rig;
	char key[KEY_MAX];

	(void)state;
	(void)setenv("TZ", "UTC", 1);
	rig_up(&rig, BS, seed);
	commit(&rig, "web", "first", 1000, 0x00);
	commit(&rig, "web", "second", 1700000000000, 0x02);
	assert_int_equal(source_id(&rig.repo->keys, "web", &source, NULL), 0);
	memset(&id, 0x02, sizeof(id));
	name_point(rig.repo, &source, 2, &id, key);
	assert_int_equal(rig.store->st.ops->remove(&rig.store->st, key, NULL), 0);
	assert_int_equal(store_put_wait(&rig.store->st, key, "?", 1, NULL), 0);
	assert_int_equal(find(&rig, "latest"), TM_E_CORRUPT);
	assert_int_equal(find(&rig, "web"), TM_E_CORRUPT);
	assert_int_equal(find(&rig, "web@latest"), TM_E_CORRUPT);
	assert_int_equal(find(&rig, "0202"), TM_E_CORRUPT);
	assert_int_equal(find(&rig, "web@second"), TM_E_NOTFOUND);
	assert_int_equal(find(&rig, "web@first"), 0);
	assert_int_equal(find(&rig, "web@2023-12-01"), 0); /* its id is of a later time */
	assert_int_equal(find(&rig, "web@9000-01-01"), TM_E_CORRUPT);
	rig_down(&rig);
}

static void a_point_is_gone_with_its_tombstone(void **state)
{
	struct tm_id id;
	char key[KEY_MAX];
	struct rig rig;
	struct point *p = NULL;

	(void)state;
	rig_up(&rig, BS, seed);
	commit(&rig, "web", "first", 1000, 0x1a);
	commit(&rig, "web", "second", 2000, 0x2b);
	memset(&id, 0x2b, sizeof(id));
	assert_int_equal(repo_point_get(rig.repo, "web", &id, &p, NULL), 0);
	point_free(p);
	name_flag(rig.repo, FLAG_TOMBSTONE, &id, key);
	assert_int_equal(store_put_wait(&rig.store->st, key, "", 0, NULL), 0);
	assert_int_equal(repo_point_get(rig.repo, "web", &id, &p, NULL), TM_E_NOTFOUND);
	assert_int_equal(find(&rig, "web"), 0x1a);
	rig_down(&rig);
}

/* A session is refused when its parent goes, or when a prune took it for dead. */
static void the_protocol_is_kept(void **state)
{
	struct image im;
	struct error err = {0};
	struct tm_id id;
	struct rig rig;
	auto_point_list struct point_list l = {0};
	char key[KEY_MAX];

	(void)state;
	rig_up(&rig, BS, seed);
	image_init(&im, 100000, BS);
	image_change(&im, &rig.random, 3);
	assert_int_equal(rig_backup(&rig, &im, NULL, &id, &err), 0);
	assert_int_equal(repo_points(rig.repo, rig_guest, &l, NULL, NULL), 0);
	name_flag(rig.repo, FLAG_FENCE, &id, key);
	(void)snprintf(key + strlen(key), 8, ".0001");
	assert_int_equal(store_put_wait(&rig.store->st, key, "", 0, NULL), 0);
	assert_int_equal(rig_backup(&rig, &im, l.v[0], &id, &err), TM_E_STALE);
	{
		auto_clean(repo_session_free) struct repo_session *s = NULL;
		struct repo_session_options opt = {.guest = rig_guest, .pool = rig.pool};
		struct point meta = {.guest = rig_guest, .name = rig_name};

		memset(opt.id.b, 0x77, sizeof(opt.id.b));
		assert_int_equal(repo_session_begin(rig.repo, &opt, &s, NULL), 0);
		name_flag(rig.repo, FLAG_FENCE, &opt.id, key);
		(void)snprintf(key + strlen(key), 8, ".0001");
		assert_int_equal(store_put_wait(&rig.store->st, key, "", 0, NULL), 0);
		assert_int_equal(repo_session_commit(s, &meta, NULL), TM_E_STALE);
	}
	image_done(&im);
	rig_down(&rig);
}

/* Nothing that identifies the guest is readable in any object or name. */
static int search(void *data, const char *key, uint64_t size, struct error *err)
{
	struct rig *rig = data;
	auto_buf struct buf b = {0};

	(void)size;
	(void)err;
	assert_null(strstr(key, "secretname"));
	assert_int_equal(store_read(&rig->store->st, key, 1 << 20, &b, NULL), 0);
	assert_null(memmem(b.data, b.len, "secretname", 10));
	return 0;
}

static void names_are_not_readable(void **state)
{
	struct rig rig;

	(void)state;
	rig_up(&rig, BS, seed);
	commit(&rig, "secretname", "secretname", 1000, 0x1a);
	assert_int_equal(rig.store->below->ops->list(rig.store->below, "", search, &rig, NULL), 0);
	rig_down(&rig);
}

static void manifests_are_proved_or_refused(void **state)
{
	struct table_entry table[2] = {{.session = {{1}}, .ndata = 3, .nmap = 1},
				       {.session = {{2}}, .ndata = 4, .nmap = 2}};
	struct disk_map map = {.root = 5, .table = table, .nsessions = 2};
	char file[] = "/images/a.qcow2", tag[] = "t", *tags[] = {tag};
	struct point_disk disk = {.name = rig_disk,
				  .size = 12345678,
				  .block_size = BS,
				  .rung = RUNG_BITMAP,
				  .file = file,
				  .map = &map,
				  .dirty_bytes = 77};
	struct point p = {.guest = rig_guest,
			  .name = rig_name,
			  .state = rig_state,
			  .disks = &disk,
			  .ndisks = 1,
			  .tags = tags,
			  .ntags = 1,
			  .seq = 9,
			  .kind = POINT_REDIRECT_ON_WRITE,
			  .freeze_ms = 12};
	struct own_segment own_v[2] = {{.nslots = 1024, .head_crc = 1, .size = 99}, {.nslots = 3}};
	const struct manifest_own own = {.data = {.v = own_v, .n = 2}};
	struct point_name name = {.source = {{3}}, .session = {{4}}, .seq = 9};
	struct manifest_own own_back = {.data = {0}};
	auto_buf struct buf b = {0};
	struct point *back = NULL;
	struct rig rig;

	(void)state;
	rig_up(&rig, BS, seed);
	p.id = name.session;
	assert_int_equal(manifest_encode(rig.repo, &name.source, &p, &own, &b, NULL), 0);
	assert_int_equal(
		manifest_decode(rig.repo, &name, "key", b.data, b.len, &back, &own_back, NULL), 0);
	assert_string_equal(back->disks[0].file, file);
	assert_int_equal(back->disks[0].size, 12345678);
	assert_int_equal(back->disks[0].map->table[1].ndata, 4);
	assert_int_equal(back->disks[0].map->root, 5);
	assert_int_equal(back->ntags, 1);
	assert_int_equal(back->freeze_ms, 12);
	assert_int_equal(own_back.data.n, 2);
	assert_int_equal(own_back.data.v[0].size, 99);
	point_free(back);
	own_segments_done(&own_back.data);
	own_segments_done(&own_back.map);
	for (size_t i = 0; i < b.len; i++) {
		uint8_t *exact = malloc(i + 1);

		memcpy(exact, b.data, i);
		assert_true(manifest_decode(rig.repo, &name, "key", exact, i, &back, NULL, NULL) <
			    0);
		free(exact);
		for (unsigned bit = 0; bit < 8; bit++) {
			b.data[i] ^= (uint8_t)(1U << bit);
			assert_true(manifest_decode(rig.repo, &name, "key", b.data, b.len, &back,
						    NULL, NULL) < 0);
			b.data[i] ^= (uint8_t)(1U << bit);
		}
	}
	name.seq++;
	assert_true(manifest_decode(rig.repo, &name, "key", b.data, b.len, &back, NULL, NULL) < 0);
	rig_down(&rig);
}

static void only_repositories_open(void **state)
{
	struct rig rig;
	struct repo *repo = NULL;
	struct store *st = NULL;
	struct error err = {0};

	(void)state;
	rig_up(&rig, BS, seed);
	assert_int_equal(store_memory_new(rig.loop, &st, NULL), 0);
	assert_int_equal(repo_open(st, &repo, &err), TM_E_NOTFOUND);
	assert_int_equal(store_memory_new(rig.loop, &st, NULL), 0);
	assert_int_equal(store_put_wait(st, "something", "x", 1, NULL), 0);
	assert_int_equal(repo_init(st, NULL, &repo, NULL), TM_E_EXISTS);
	rig_down(&rig);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(points_are_found_by_what_people_type),
		cmocka_unit_test(only_manifests_that_are_needed_are_read),
		cmocka_unit_test(to_open_and_to_find_the_newest_few_things_are_asked_for),
		cmocka_unit_test(a_damaged_point_that_was_meant_is_an_error),
		cmocka_unit_test(a_point_is_gone_with_its_tombstone),
		cmocka_unit_test(the_protocol_is_kept),
		cmocka_unit_test(names_are_not_readable),
		cmocka_unit_test(manifests_are_proved_or_refused),
		cmocka_unit_test(only_repositories_open),
	};

	seed = test_seed();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
