/* SPDX-License-Identifier: Apache-2.0 */
/* Passwords, key files, roles, rotation; damaged slots; changes that are interrupted. */
#include "test_secret.h"

#include <zstd.h>

#define BS SECRET_BS

static uint64_t seed;

/* ---- tests ---- */

static void only_the_password_opens(void **state)
{
	struct repo_secret wrong = password("First"), file;
	char text[REPO_KEY_FILE_TEXT];
	struct error err = {0};
	struct rig rig;

	(void)state;
	rig_up_encrypted(&rig, seed);
	assert_true(repo_encrypted(rig.repo));
	assert_opens(&rig, "first");
	assert_denied(&rig, &wrong, "wrong password");
	assert_denied(&rig, NULL, "encrypted");
	assert_int_equal(repo_key_file_new(text, &err), 0);
	file = key_file(text);
	assert_denied(&rig, &file, "key file");
	text[0] = 'x';
	assert_denied(&rig, &file, "hex");
	text[40] = 0;
	file = key_file(text);
	assert_denied(&rig, &file, "40 characters");
	rig_down(&rig);
}

static void a_plain_repository_takes_no_password(void **state)
{
	struct repo_secret any = password("any");
	struct error err = {0};
	struct tm_id id;
	struct rig rig;

	(void)state;
	rig_up(&rig, BS, seed);
	assert_false(repo_encrypted(rig.repo));
	assert_int_equal(open_now(&rig, NULL, &err), 0);
	assert_denied(&rig, &any, "not encrypted");
	assert_int_equal(key_add(rig.repo, REPO_ROLE_FULL, NULL, &any, &id, &err),
			 TM_E_UNSUPPORTED);
	rig_down(&rig);
}

static void keys_are_listed_added_and_removed(void **state)
{
	struct repo_secret second = password("second"), file;
	auto_key_list struct repo_key_list l = {0};
	char text[REPO_KEY_FILE_TEXT];
	struct tm_id a, b, first;
	struct error err = {0};
	struct rig rig;

	(void)state;
	rig_up_encrypted(&rig, seed);
	assert_int_equal(repo_key_file_new(text, &err), 0);
	file = key_file(text);
	assert_int_equal(repo_keys(rig.repo, &l, &err), 0);
	assert_int_equal(l.n, 1);
	assert_true(l.v[0].own && l.v[0].copies == 2 && l.v[0].role == REPO_ROLE_FULL);
	assert_string_equal(l.v[0].label, "mine");
	assert_string_equal(l.v[0].kdf, "scrypt");
	first = l.v[0].id;
	repo_key_list_done(&l);
	assert_int_equal(repo_key_remove(rig.repo, &first, &err), TM_E_DENIED);
	error_clear(&err);
	assert_int_equal(key_add(rig.repo, REPO_ROLE_BACKUP, "agent", &file, &a, &err), 0);
	assert_int_equal(repo_key_remove(rig.repo, &first, &err), TM_E_DENIED);
	error_clear(&err);
	assert_int_equal(key_add(rig.repo, REPO_ROLE_FULL, NULL, &second, &b, &err), 0);
	assert_opens(&rig, "second");
	assert_int_equal(open_now(&rig, &file, &err), 0);
	assert_int_equal(repo_key_remove(rig.repo, &first, &err), 0);
	{
		struct repo_secret gone = password("first");

		assert_denied(&rig, &gone, "wrong password");
	}
	assert_int_equal(repo_key_remove(rig.repo, &b, &err), TM_E_DENIED);
	error_clear(&err);
	assert_int_equal(repo_key_remove(rig.repo, &a, &err), 0);
	assert_int_equal(repo_key_remove(rig.repo, &a, &err), TM_E_NOTFOUND);
	rig_down(&rig);
}

static void a_password_is_changed(void **state)
{
	struct repo_secret old = password("first"), second = password("second");
	struct error err = {0};
	struct tm_id id;
	struct rig rig;

	(void)state;
	rig_up_encrypted(&rig, seed);
	assert_int_equal(repo_key_change(rig.repo, &second, &id, &err), 0);
	assert_opens(&rig, "second");
	assert_denied(&rig, &old, "wrong password");
	rig_down(&rig);
}

/* A point each by a full and by a backup key, the second one on top of the first. */
static void roles_do_what_they_may(void **state)
{
	struct repo_secret first = password("first"), agent = password("agent"),
			   janitor = password("janitor"), other = password("other");
	struct repo_verify_options data = {.read_data = true};
	struct repo_verify_report report = {0};
	struct error err = {0};
	struct image im;
	struct tm_id id;
	struct rig rig;

	(void)state;
	rig_up_encrypted(&rig, seed);
	data.pool = rig.pool;
	image_init(&im, 2 * 1024 * 1024 + 5, BS);
	image_change(&im, &rig.random, 20);
	assert_int_equal(key_add(rig.repo, REPO_ROLE_BACKUP, NULL, &agent, &id, &err), 0);
	assert_int_equal(key_add(rig.repo, REPO_ROLE_JANITOR, NULL, &janitor, &id, &err), 0);
	assert_int_equal(rig_backup(&rig, &im, NULL, &id, &err), 0);
	{
		auto_point_list struct point_list l = {0};

		assert_int_equal(reopen(&rig, &agent, &err), 0);
		assert_int_equal(repo_points(rig.repo, rig_guest, &l, NULL, &err), 0);
		assert_int_equal(l.n, 1);
		image_change(&im, &rig.random, 5);
		if (rig_backup(&rig, &im, l.v[0], &id, &err) < 0)
			fail_msg("%s", err.text);
		assert_int_equal(rig_read(&rig, l.v[0], &im, &err), TM_E_DENIED);
		assert_non_null(strstr(err.text, "this key cannot read data"));
		error_clear(&err);
		assert_int_equal(repo_verify(rig.repo, &data, &report, &err), TM_E_DENIED);
		error_clear(&err);
		assert_int_equal(key_add(rig.repo, REPO_ROLE_FULL, NULL, &other, &id, &err),
				 TM_E_DENIED);
	}
	{
		auto_point_list struct point_list l = {0};

		assert_int_equal(reopen(&rig, &janitor, &err), 0);
		assert_int_equal(repo_points(rig.repo, rig_guest, &l, NULL, &err), 0);
		assert_int_equal(l.n, 2);
		assert_int_equal(rig_backup(&rig, &im, NULL, &id, &err), TM_E_DENIED);
		assert_non_null(strstr(err.text, "cannot make backups"));
		error_clear(&err);
		assert_int_equal(repo_check_right(rig.repo, REPO_MAY_PRUNE, &err), 0);
		data.read_data = false;
		assert_int_equal(repo_verify(rig.repo, &data, &report, &err), 0);
		assert_int_equal(report.ndamaged, 0);
		repo_verify_report_done(&report);
	}
	{
		auto_point_list struct point_list l = {0};

		assert_int_equal(reopen(&rig, &first, &err), 0);
		assert_int_equal(repo_points(rig.repo, rig_guest, &l, NULL, &err), 0);
		if (rig_read(&rig, l.v[1], &im, &err) < 0)
			fail_msg("%s", err.text);
	}
	image_done(&im);
	rig_down(&rig);
}

static void after_a_rotation_old_keys_read_old_points_only(void **state)
{
	struct repo_secret first = password("first"), agent = password("agent"), paper;
	auto_point_list struct point_list l = {0};
	auto_free char *text = NULL;
	struct image old, im;
	struct error err = {0};
	struct tm_id id, kid;
	struct rig rig;

	(void)state;
	rig_up_encrypted(&rig, seed);
	image_init(&old, 1024 * 1024, BS);
	image_change(&old, &rig.random, 20);
	assert_int_equal(key_add(rig.repo, REPO_ROLE_BACKUP, NULL, &agent, &id, &err), 0);
	assert_int_equal(repo_key_paper(rig.repo, false, &text, &err), 0);
	assert_int_equal(rig_backup(&rig, &old, NULL, &id, &err), 0);
	for (int i = 0; i < 2; i++)
		if (repo_key_rotate(rig.repo, false, &first, &kid, &err) < 0)
			fail_msg("%s", err.text);
	assert_int_equal(reopen(&rig, &agent, &err), 0);
	image_init(&im, 1024 * 1024, BS);
	image_change(&im, &rig.random, 20);
	if (rig_backup(&rig, &im, NULL, &id, &err) < 0)
		fail_msg("%s", err.text);
	assert_int_equal(reopen(&rig, &first, &err), 0);
	assert_null(repo_key_remark(rig.repo));
	assert_int_equal(repo_points(rig.repo, rig_guest, &l, NULL, &err), 0);
	assert_int_equal(rig_read(&rig, l.v[0], &old, &err), 0);
	assert_int_equal(rig_read(&rig, l.v[1], &im, &err), 0);
	paper = key_file(text);
	assert_int_equal(reopen(&rig, &paper, &err), 0);
	assert_non_null(repo_key_remark(rig.repo));
	assert_int_equal(rig_read(&rig, l.v[0], &old, &err), 0);
	assert_true(rig_read(&rig, l.v[1], &im, &err) < 0);
	image_done(&old);
	image_done(&im);
	rig_down(&rig);
}

static void a_rotation_wants_to_be_the_only_full_key(void **state)
{
	struct repo_secret first = password("first"), second = password("second");
	struct error err = {0};
	struct tm_id id, kid;
	struct rig rig;

	(void)state;
	rig_up_encrypted(&rig, seed);
	assert_int_equal(key_add(rig.repo, REPO_ROLE_FULL, NULL, &second, &id, &err), 0);
	assert_int_equal(repo_key_rotate(rig.repo, false, &first, &kid, &err), TM_E_BUSY);
	error_clear(&err);
	assert_int_equal(repo_key_remove(rig.repo, &id, &err), 0);
	assert_int_equal(repo_key_rotate(rig.repo, false, &first, &kid, &err), 0);
	assert_int_equal(key_add(rig.repo, REPO_ROLE_FULL, NULL, &second, &id, &err), 0);
	assert_opens(&rig, "second");
	rig_down(&rig);
}

static void paper_opens_without_any_slot(void **state)
{
	struct repo_secret second = password("second"), paper;
	auto_free char *text = NULL;
	struct error err = {0};
	struct tm_id id;
	struct rig rig, foreign;

	(void)state;
	rig_up_encrypted(&rig, seed);
	assert_int_equal(repo_key_paper(rig.repo, false, &text, &err), 0);
	{
		struct copy *c = copy_store(rig.store->below);

		for (size_t i = 0; i < c->n; i++)
			if (strncmp(c->key[i], "keys/", 5) == 0)
				assert_int_equal(rig.store->below->ops->remove(rig.store->below,
									       c->key[i], NULL),
						 0);
		copy_free(c);
	}
	assert_true(open_now(&rig, &second, &err) < 0);
	paper = key_file(text);
	assert_int_equal(reopen(&rig, &paper, &err), 0);
	assert_int_equal(key_add(rig.repo, REPO_ROLE_FULL, NULL, &second, &id, &err), 0);
	assert_opens(&rig, "second");
	rig_up_encrypted(&foreign, seed);
	assert_denied(&foreign, &paper, "paper key is that of repository");
	rig_down(&foreign);
	/* each character counts, and the line is named */
	for (size_t i = 0; text[i]; i++) {
		char was = text[i];

		if (text[i] == '#') {
			i += strcspn(text + i, "\n");
			continue;
		}
		if (was == ' ' || was == '\n')
			continue;
		text[i] = was == '7' ? '8' : '7';
		assert_denied(&rig, &paper, "line");
		text[i] = was;
	}
	for (char *p = text; *p; p++)
		if (*p >= 'a' && *p <= 'f' && p > strrchr(text, '#') + 90)
			*p = (char)(*p - 'a' + 'A');
	assert_int_equal(open_now(&rig, &paper, &err), 0);
	paper.len -= 20;
	assert_denied(&rig, &paper, "line");
	rig_down(&rig);
}

/* ---- damage ---- */

static void every_change_of_one_copy_is_survived(void **state)
{
	struct repo_secret first = password("first");
	struct error err = {0};
	size_t copies[2], n = 0;
	struct rig rig;
	struct copy *c;

	(void)state;
	rig_up_encrypted(&rig, seed);
	c = copy_store(rig.store->below);
	for (size_t i = 0; i < c->n; i++)
		if (strncmp(c->key[i], "keys/", 5) == 0)
			copies[n++] = i;
	assert_int_equal(n, 2);
	for (size_t at = 0; at < c->bytes[copies[0]].len; at++) {
		for (unsigned which = 0; which < 2; which++)
			c->bytes[copies[which]].data[at] ^= (uint8_t)(1U << at % 8);
		assert_true(open_copy(&rig, c, &first, NULL, &err) < 0);
		assert_true(err.code == TM_E_CORRUPT || err.code == TM_E_UNSUPPORTED);
		c->bytes[copies[1]].data[at] ^= (uint8_t)(1U << at % 8);
		if (open_copy(&rig, c, &first, NULL, &err) < 0)
			fail_msg("byte %zu: %s", at, err.text);
		c->bytes[copies[0]].data[at] ^= (uint8_t)(1U << at % 8);
	}
	for (size_t len = c->bytes[copies[0]].len; len-- > 0;) {
		size_t was = c->bytes[copies[0]].len;

		c->bytes[copies[0]].len = len;
		assert_int_equal(open_copy(&rig, c, &first, NULL, &err), 0);
		c->bytes[copies[1]].len = len;
		assert_int_equal(open_copy(&rig, c, &first, NULL, &err), TM_E_CORRUPT);
		c->bytes[copies[0]].len = c->bytes[copies[1]].len = was;
	}
	copy_free(c);
	rig_down(&rig);
}

static void a_damaged_copy_is_reported_and_written_again(void **state)
{
	struct repo_secret first = password("first");
	auto_key_list struct repo_key_list l = {0};
	struct error err = {0};
	struct repo *repo = NULL;
	size_t n;
	struct rig rig;
	struct copy *c;

	(void)state;
	rig_up_encrypted(&rig, seed);
	c = copy_store(rig.store->below);
	for (size_t i = 0; i < c->n; i++)
		if (strncmp(c->key[i], "keys/", 5) == 0 && c->key[i][strlen(c->key[i]) - 1] == 'a')
			c->bytes[i].data[100] ^= 1;
	assert_int_equal(open_copy(&rig, c, &first, &repo, &err), 0);
	assert_non_null(repo_worn_copy(repo, REPO_TWIN_SLOT));
	assert_null(repo_worn_copy(repo, REPO_TWIN_DOMAIN));
	assert_int_equal(repo_keys(repo, &l, &err), 0);
	assert_int_equal(l.v[0].copies, 1);
	repo_key_list_done(&l);
	assert_int_equal(repo_keys_repair(repo, &n, &err), 0);
	assert_int_equal(n, 1);
	assert_null(repo_worn_copy(repo, REPO_TWIN_SLOT));
	assert_int_equal(repo_keys(repo, &l, &err), 0);
	assert_int_equal(l.v[0].copies, 2);
	repo_free(repo);
	copy_free(c);
	rig_down(&rig);
}

/* Both copies changed by `change`, checksums made right again. */
static int open_forged(struct rig *rig, void (*change)(struct format_key *h), struct error *err)
{
	struct repo_secret first = password("first");
	struct copy *c = copy_store(rig->store->below);
	int r;

	for (size_t i = 0; i < c->n; i++) {
		struct format_key h;

		if (strncmp(c->key[i], "keys/", 5) != 0)
			continue;
		memcpy(&h, c->bytes[i].data, sizeof(h));
		change(&h);
		format_head_seal(&h, sizeof(h));
		memcpy(c->bytes[i].data, &h, sizeof(h));
	}
	r = open_copy(rig, c, &first, NULL, err);
	copy_free(c);
	return r;
}

static void newer_kdf(struct format_key *h)
{
	h->kdf = 9;
}

static void newer_version(struct format_key *h)
{
	h->head.version = le16_of(2);
}

static void newer_role(struct format_key *h)
{
	h->role = 4;
}

static void absurd_n(struct format_key *h)
{
	h->log2_n = 63;
}

static void absurd_r(struct format_key *h)
{
	h->r = le32_of(UINT32_MAX);
}

static void absurd_work(struct format_key *h)
{
	h->log2_n = 20;
	h->r = le32_of(8);
	h->p = le32_of(16);
}

static void zero_n(struct format_key *h)
{
	h->log2_n = 0;
}

static void other_role(struct format_key *h)
{
	h->role = ROLE_BACKUP;
}

static void other_salt(struct format_key *h)
{
	h->salt[3] ^= 1;
}

static void slots_of_another_kind_are_refused_at_once(void **state)
{
	static const struct {
		void (*change)(struct format_key *h);
		int code;
	} forged[] = {
		{newer_kdf, TM_E_UNSUPPORTED},  {newer_version, TM_E_UNSUPPORTED},
		{newer_role, TM_E_UNSUPPORTED}, {absurd_n, TM_E_UNSUPPORTED},
		{absurd_r, TM_E_UNSUPPORTED},   {absurd_work, TM_E_UNSUPPORTED},
		{zero_n, TM_E_CORRUPT},         {other_role, TM_E_DENIED},
		{other_salt, TM_E_DENIED},
	};
	struct rig rig;

	(void)state;
	rig_up_encrypted(&rig, seed);
	for (size_t i = 0; i < ARRAY_SIZE(forged); i++) {
		struct error err = {0};

		assert_int_equal(open_forged(&rig, forged[i].change, &err), forged[i].code);
		assert_true(strlen(err.text) > 0);
	}
	rig_down(&rig);
}

/* ---- interruptions ---- */

enum change { ADD, REMOVE, CHANGE, ROTATE, REPAIR, CHANGES };

static int do_change(struct repo *repo, enum change change, const struct tm_id *victim,
		     struct error *err)
{
	struct repo_secret first = password("first"), third = password("third");
	struct tm_id id;
	size_t n;

	switch (change) {
	case ADD:
		return key_add(repo, REPO_ROLE_FULL, NULL, &third, &id, err);
	case REMOVE:
		return repo_key_remove(repo, victim, err);
	case CHANGE:
		return repo_key_change(repo, &third, &id, err);
	case ROTATE:
		return repo_key_rotate(repo, false, &first, &id, err);
	case REPAIR:
	case CHANGES:
		break;
	}
	return repo_keys_repair(repo, &n, err);
}

/* What must open afterwards, whatever happened. */
static void check_after(struct rig *rig, enum change change, bool done)
{
	struct repo_secret first = password("first"), third = password("third");
	struct error err = {0};

	if (change == CHANGE) /* the old one, the new one, or both */
		assert_true(open_now(rig, &first, &err) == 0 || open_now(rig, &third, &err) == 0);
	else
		assert_opens(rig, "first");
	assert_opens(rig, "agent");
	if (done && (change == ADD || change == CHANGE))
		assert_opens(rig, "third");
}

static void interrupt(enum change change, bool for_good)
{
	struct repo_secret first = password("first"), second = password("second"),
			   agent = password("agent");
	struct error err = {0};
	unsigned n;

	for (n = 1;; n++) {
		struct tm_id victim = {{0}}, id;
		struct rig rig;
		int r;

		rig_up_encrypted(&rig, seed);
		if (change != ROTATE)
			assert_int_equal(
				key_add(rig.repo, REPO_ROLE_FULL, NULL, &second, &victim, &err), 0);
		assert_int_equal(key_add(rig.repo, REPO_ROLE_BACKUP, NULL, &agent, &id, &err), 0);
		error_clear(&err);
		rig.store->calls = 0;
		rig.store->fail_at = n;
		rig.store->for_good = for_good;
		r = do_change(rig.repo, change, &victim, &err);
		rig.store->fail_at = 0;
		check_after(&rig, change, r == 0);
		if (r == 0) {
			bool all = rig.store->calls < n;

			/* one copy of a domain that cannot be read is passed by */
			assert_true(all || (change == ROTATE && !for_good));
			rig_down(&rig);
			if (all)
				break;
			continue;
		}
		assert_int_equal(r, TM_E_IO);
		/* and it is simply run again */
		if (change != CHANGE) {
			assert_int_equal(reopen(&rig, &first, &err), 0);
			if (do_change(rig.repo, change, &victim, &err) < 0)
				fail_msg("call %u, again: %s", n, err.text);
			check_after(&rig, change, true);
		}
		rig_down(&rig);
	}
	assert_true(n > 4);
}

static void interrupted_changes_leave_the_keys_usable(void **state)
{
	(void)state;
	for (int change = 0; change < CHANGES; change++)
		for (int for_good = 0; for_good < 2; for_good++)
			interrupt((enum change)change, for_good);
}

/* ---- nothing readable ---- */

/* ---- what a thief of the store sees ---- */

static const char pattern[] = "a pattern that a disk holds", secret_domain[] = "a tenant's name";

static bool holds(const struct buf *b, const void *bytes, size_t len)
{
	return memmem(b->data, b->len, bytes, len) != NULL;
}

/* Whether what looks like a zstd frame somewhere in the object is one. */
static bool holds_zstd(const struct buf *b)
{
	static const uint8_t magic[] = {0x28, 0xb5, 0x2f, 0xfd};
	auto_free uint8_t *out = malloc(1 << 20);
	const uint8_t *at = b->data, *end = b->data + b->len;
	bool found = false;

	assert_non_null(out);
	while (!found && (at = memmem(at, (size_t)(end - at), magic, sizeof(magic)))) {
		size_t len = ZSTD_findFrameCompressedSize(at, (size_t)(end - at));

		found = !ZSTD_isError(len) && !ZSTD_isError(ZSTD_decompress(out, 1 << 20, at, len));
		at++;
	}
	return found;
}

/* How many of the objects, and of their names, hold something of the guest or one of the keys. */
static size_t count_leaks(struct rig *rig)
{
	const struct repo *repo = rig->repo;
	const struct secret *const keys[] = {&repo->master.meta, &repo->master.id,
					     &repo->master.data, &repo->keys.meta,
					     &repo->keys.id,     &repo->keys.data};
	const char *const words[] = {rig_guest, rig_disk, rig_state,     pattern,
				     rig_name,  "first",  secret_domain, "agent"};
	struct copy *c = copy_store(rig->store->below);
	size_t n = 0;

	for (size_t i = 0; i < c->n; i++) {
		bool leak = holds_zstd(&c->bytes[i]);

		for (size_t w = 0; w < ARRAY_SIZE(words); w++)
			leak = leak || holds(&c->bytes[i], words[w], strlen(words[w])) ||
			       strstr(c->key[i], words[w]);
		for (size_t k = 0; k < ARRAY_SIZE(keys); k++)
			leak = leak || holds(&c->bytes[i], keys[k]->b, KEY_BYTES);
		n += leak;
	}
	copy_free(c);
	return n;
}

static void fill(struct rig *rig, struct image *im)
{
	struct error err = {0};
	struct tm_id id;

	assert_int_equal(repo_domain_add(rig->repo, secret_domain, &id, &err), 0);
	for (int i = 0; i < 2; i++) {
		memset(im->dirty, 1, im->blocks);
		assert_int_equal(rig_backup(rig, im, NULL, &id, &err), 0);
		assert_int_equal(repo_protect(rig->repo, &id, true, &err), 0);
		assert_int_equal(repo_domain_use(rig->repo, secret_domain, &err), 0);
	}
}

static void no_stored_byte_tells_of_the_guest(void **state)
{
	struct repo_secret agent = password("agent"), first = password("first");
	struct error err = {0};
	struct image im;
	struct tm_id id;
	struct rig rig;

	(void)state;
	image_init(&im, 64 * BS, BS);
	for (size_t at = 0; at + sizeof(pattern) < im.size; at += 1000)
		memcpy(im.data + at, pattern, sizeof(pattern));
	rig_up_encrypted(&rig, seed);
	fill(&rig, &im);
	assert_int_equal(repo_key_add(rig.repo,
				      &(struct repo_key_options){.role = REPO_ROLE_BACKUP,
								 .one_domain = true},
				      &agent, &id, &err),
			 0);
	assert_int_equal(count_leaks(&rig), 0);
	assert_int_equal(repo_key_rotate(rig.repo, false, &first, &id, &err), 0);
	assert_int_equal(count_leaks(&rig), 0);
	rig_down(&rig);
	/* the keys of a plain one lie beside its data: two copies */
	rig_up(&rig, BS, seed);
	fill(&rig, &im);
	assert_int_equal(count_leaks(&rig), 2);
	image_done(&im);
	rig_down(&rig);
}

static void without(struct copy *c, size_t i, struct copy *ret)
{
	*ret = *c;
	ret->n--;
	for (size_t k = i; k < ret->n; k++) {
		memcpy(ret->key[k], c->key[k + 1], sizeof(c->key[k]));
		ret->bytes[k] = c->bytes[k + 1];
	}
}

/* What opens with one copy of "repo" tells which is worn, and mends it. */
static void check_worn_object(struct rig *rig, const struct copy *c, const char *key,
			      const struct repo_secret *secret, const struct buf *good)
{
	struct repo_verify_report report = {0};
	auto_buf struct buf again = {0};
	struct error err = {0};
	struct repo *repo = NULL;
	size_t n = 0;

	if (open_copy(rig, c, secret, &repo, &err) < 0)
		fail_msg("%s: %s", key, err.text);
	assert_string_equal(repo_worn_copy(repo, REPO_TWIN_REPO), key);
	assert_int_equal(repo_verify_domains(repo, &report, &err), 0);
	assert_int_equal(report.ndamaged, 1);
	assert_string_equal(report.damaged[0].object, key);
	repo_verify_report_done(&report);
	assert_int_equal(repo_keys_repair(repo, &n, &err), 0);
	assert_int_equal(n, 1);
	assert_null(repo_worn_copy(repo, REPO_TWIN_REPO));
	assert_int_equal(store_read(repo->st, key, 1024, &again, &err), 0);
	assert_int_equal(again.len, good->len);
	assert_memory_equal(again.data, good->data, good->len);
	assert_int_equal(repo_verify_domains(repo, &report, &err), 0);
	assert_int_equal(report.ndamaged, 0);
	repo_verify_report_done(&report);
	repo_free(repo);
}

/* Every byte changed, whatever the checksum says to it; every length; gone; and both at once. */
static void one_copy_of_repo_is_enough_and_the_other_is_put_again(void **state)
{
	struct repo_secret first = password("first");
	struct error err = {0};
	size_t at[2], n = 0;
	struct rig rig;
	struct copy *c;

	(void)state;
	rig_up_encrypted(&rig, seed);
	c = copy_store(rig.store->below);
	for (size_t i = 0; i < c->n; i++)
		if (strncmp(c->key[i], "repo", 4) == 0)
			at[n++] = i;
	assert_int_equal(n, 2);
	for (unsigned which = 0; which < 2; which++) {
		struct buf *b = &c->bytes[at[which]], *other = &c->bytes[at[1 - which]];
		const char *key = c->key[at[which]];
		size_t len = b->len;
		auto_free struct copy *less = malloc(sizeof(*less));

		assert_non_null(less);
		for (size_t i = 0; i < len; i++) {
			uint8_t bit = (uint8_t)(1U << i % 8);

			b->data[i] ^= bit;
			check_worn_object(&rig, c, key, &first, other);
			/* a right checksum; not where a newer program could have written it */
			if (i >= 40 && (i < 72 || i >= 78) && i < len - 4) {
				format_head_seal(b->data, len);
				check_worn_object(&rig, c, key, &first, other);
			}
			memcpy(b->data, other->data, len);
			b->data[i] ^= bit;
			other->data[i] ^= bit;
			assert_true(open_copy(&rig, c, &first, NULL, &err) < 0);
			other->data[i] ^= bit;
			memcpy(b->data, other->data, len);
		}
		for (b->len = 0; b->len < len; b->len++) {
			size_t cut = b->len;

			check_worn_object(&rig, c, key, &first, other);
			other->len = cut;
			assert_int_equal(open_copy(&rig, c, &first, NULL, &err), TM_E_CORRUPT);
			other->len = len;
		}
		without(c, at[which], less);
		check_worn_object(&rig, less, key, &first, other);
		without(less, at[0], less);
		assert_int_equal(open_copy(&rig, less, &first, NULL, &err), TM_E_NOTFOUND);
	}
	copy_free(c);
	rig_down(&rig);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(only_the_password_opens),
		cmocka_unit_test(a_plain_repository_takes_no_password),
		cmocka_unit_test(keys_are_listed_added_and_removed),
		cmocka_unit_test(a_password_is_changed),
		cmocka_unit_test(roles_do_what_they_may),
		cmocka_unit_test(after_a_rotation_old_keys_read_old_points_only),
		cmocka_unit_test(a_rotation_wants_to_be_the_only_full_key),
		cmocka_unit_test(paper_opens_without_any_slot),
		cmocka_unit_test(every_change_of_one_copy_is_survived),
		cmocka_unit_test(one_copy_of_repo_is_enough_and_the_other_is_put_again),
		cmocka_unit_test(a_damaged_copy_is_reported_and_written_again),
		cmocka_unit_test(slots_of_another_kind_are_refused_at_once),
		cmocka_unit_test(interrupted_changes_leave_the_keys_usable),
		cmocka_unit_test(no_stored_byte_tells_of_the_guest),
	};

	seed = test_seed();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
