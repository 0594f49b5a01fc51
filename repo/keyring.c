/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The key slots of a repository as they lie in its store.  A slot is two equal objects, keys/<kid>a
 * and b; one whole copy is enough.
 */
#include "keyring.h"

#include <openssl/crypto.h>
#include <stdio.h>
#include <string.h>

#define SCRYPT_LOG2_N 17
#define SCRYPT_R      8
#define SCRYPT_P      1

void keyring_free(struct keyring *g)
{
	if (!g)
		return;
	for (size_t i = 0; i < g->n; i++) {
		if (g->v[i].copies.bytes.data)
			OPENSSL_cleanse(g->v[i].copies.bytes.data, g->v[i].copies.bytes.len);
		buf_done(&g->v[i].copies.bytes);
	}
	free(g);
}

void name_key(const struct tm_id *kid, unsigned copy, char key[KEY_MAX])
{
	(void)snprintf(key, KEY_MAX, "keys/%s%c", id_text(kid).s, (char)('a' + (char)copy));
}

struct copy_names name_keys(const struct tm_id *kid)
{
	struct copy_names n;

	for (unsigned copy = 0; copy < COPIES; copy++)
		name_key(kid, copy, n.key[copy]);
	return n;
}

bool name_parse_key(const char *key, struct tm_id *ret, unsigned *ret_copy)
{
	static const char folder[] = "keys/";
	size_t at = sizeof(folder) - 1;
	char id[TM_ID_HEX + 1] = "";

	if (strlen(key) != at + TM_ID_HEX + 1 || memcmp(key, folder, at) != 0)
		return false;
	memcpy(id, key + at, TM_ID_HEX);
	if (key[at + TM_ID_HEX] != 'a' && key[at + TM_ID_HEX] != 'b')
		return false;
	*ret_copy = key[at + TM_ID_HEX] == 'b';
	return id_parse(id, ret);
}

/* ---- reading them ---- */

static int list_slot(void *data, const char *key, uint64_t size, struct error *err)
{
	struct keyring *g = data;
	struct key_slot *s = g->n ? &g->v[g->n - 1] : NULL;
	struct tm_id kid;
	unsigned copy;

	(void)size;
	if (!name_parse_key(key, &kid, &copy))
		return 0; /* something foreign */
	if (!s || !id_equal(&s->kid, &kid)) {
		if (g->n == MAX_KEY_SLOTS)
			return error_set(err, TM_E_UNSUPPORTED, "there are more than %d keys",
					 MAX_KEY_SLOTS);
		s = &g->v[g->n++];
		*s = (struct key_slot){.kid = kid};
	}
	s->copies.there[copy] = true;
	return 0;
}

/* What a copy says; b gets its bytes. */
static int read_copy(const struct keyring *g, const struct key_slot *s, struct store_reading *rd,
		     struct slot *ret, struct buf *b, struct error *err)
{
	int r = store_read_end(g->repo->st, rd, MAX_KEY_OBJECT, b, err);

	r = r ? r : slot_parse(&g->repo->id, rd->key, b->data, b->len, ret, err);
	if (r == 0 && !id_equal(&ret->kid, &s->kid))
		return error_set(err, TM_E_CORRUPT, "%s: this is the slot of another key", rd->key);
	return r;
}

static int take_copy(const struct keyring *g, struct key_slot *s, unsigned copy,
		     struct store_reading *rd, struct error *err)
{
	auto_buf struct buf b = {0};
	struct error own = {0};
	struct slot slot;
	int r = read_copy(g, s, rd, &slot, &b, &own);

	if (r == 0) {
		if (copies_take(&s->copies, copy, &b))
			s->slot = slot;
		s->usable = true;
	} else if (s->code == 0) {
		s->code = r;
		s->err = own;
	}
	s->bad[copy] = r == TM_E_NOTFOUND || r == TM_E_CORRUPT;
	if (b.data)
		OPENSSL_cleanse(b.data, b.len);
	if (r < 0 && g->every_copy && r != TM_E_CORRUPT && r != TM_E_UNSUPPORTED)
		return error_pass(err, r, &own);
	return 0;
}

/* One copy of each slot where it is wanted, all at once: `second` of those that may have two. */
static int read_copies(struct keyring *g, bool second, struct store_reading *rd, struct error *err)
{
	bool asked[MAX_KEY_SLOTS] = {false};
	int r = 0;

	for (size_t i = 0; i < g->n; i++) {
		const struct key_slot *s = &g->v[i];
		char key[KEY_MAX];

		asked[i] = s->copies.there[second] && (!s->usable || g->every_copy);
		name_key(&s->kid, second, key);
		if (asked[i])
			store_read_begin(g->repo->st, key, &rd[i]);
	}
	for (size_t i = 0; i < g->n; i++) {
		struct error one = {0};
		int code = asked[i] ? take_copy(g, &g->v[i], second, &rd[i], &one) : 0;

		if (r == 0 && code < 0)
			r = error_pass(err, code, &one);
	}
	return r;
}

int keyring_list(struct repo *repo, struct keyring **ret, struct error *err)
{
	struct keyring *g = calloc(1, sizeof(*g));

	if (!g)
		return error_nomem(err);
	g->repo = repo;
	g->code = repo->st->ops->list(repo->st, "keys/", list_slot, g, &g->err);
	*ret = g;
	return 0;
}

static void forget_slots(struct keyring *g)
{
	for (size_t i = 0; i < g->n; i++) {
		struct key_slot *s = &g->v[i];
		struct key_slot fresh = {.kid = s->kid};

		for (unsigned copy = 0; copy < COPIES; copy++)
			fresh.copies.there[copy] = s->copies.there[copy];
		if (s->copies.bytes.data)
			OPENSSL_cleanse(s->copies.bytes.data, s->copies.bytes.len);
		buf_done(&s->copies.bytes);
		*s = fresh;
	}
}

int keyring_read(struct keyring *g, bool every_copy, struct error *err)
{
	auto_free struct store_reading *rd = calloc(MAX_KEY_SLOTS, sizeof(*rd));
	int r = g->code;

	if (!rd)
		return error_nomem(err);
	if (r < 0)
		(void)error_pass(err, r, &g->err);
	g->every_copy = every_copy;
	forget_slots(g);
	r = r ? r : read_copies(g, false, rd, err);
	return r ? r : read_copies(g, true, rd, err);
}

int keyring_load(struct repo *repo, struct keyring **ret, struct error *err)
{
	auto_keyring struct keyring *g = NULL;
	int r = keyring_list(repo, &g, err);

	r = r ? r : keyring_read(g, true, err);
	/* Who changes keys, or tells which there are, relies on what is there and what is not. */
	r = r ? r : repo->st->ops->sync(repo->st, "keys/", err);
	if (r == 0)
		*ret = tm_steal(g);
	return r;
}

void keyring_worn(const struct key_slot *s, char key[KEY_MAX])
{
	key[0] = 0;
	for (unsigned copy = COPIES; copy-- > 0;)
		if (!s->copies.there[copy] || s->bad[copy])
			name_key(&s->kid, copy, key);
}

struct key_slot *keyring_find(struct keyring *g, const struct tm_id *kid)
{
	for (size_t i = 0; i < g->n; i++)
		if (id_equal(&g->v[i].kid, kid))
			return &g->v[i];
	return NULL;
}

/* ---- writing them ---- */

int keyring_remove(const struct repo *repo, const struct tm_id *kid, struct error *err)
{
	int r = 0;

	for (unsigned copy = 0; r == 0 && copy < COPIES; copy++) {
		char key[KEY_MAX];

		name_key(kid, copy, key);
		r = repo->st->ops->remove(repo->st, key, err);
	}
	return r;
}

static int check_label(const char *label, struct error *err)
{
	size_t len = strlen(label);

	for (size_t i = 0; i < len; i++)
		if ((unsigned char)label[i] < ' ' || label[i] == 0x7f)
			return error_set(err, TM_E_USAGE, "the label holds a control character");
	if (len > sizeof(((struct format_key *)0)->label))
		return error_set(err, TM_E_USAGE, "the label is %zu bytes, at most 64 are kept",
				 len);
	return 0;
}

int keyring_put(const struct repo *repo, enum repo_role role, const char *label,
		const struct repo_secret *secret, const struct master_keys *master,
		struct tm_id *ret, struct error *err)
{
	auto_buf struct buf b = {0};
	auto_secret struct secret key = {{0}};
	struct repo_secret raw = {0};
	struct slot s = {.role = role, .r = SCRYPT_R, .p = SCRYPT_P};
	struct copy_names n;
	int r = check_label(label ? label : "", err);

	if (r < 0)
		return r;
	s.log2_n = repo->log2_n ? repo->log2_n : SCRYPT_LOG2_N;
	s.created_ms = clock_unix_ms(&clock_system);
	memcpy(s.label, label ? label : "", label ? strlen(label) : 0);
	if (secret) {
		raw = *secret;
		if (secret->kind == REPO_SECRET_KEY_FILE) {
			r = key_file_decode(secret, &key, err);
			raw.bytes = key.b;
			raw.len = sizeof(key.b);
		} else if (secret->len == 0) {
			r = error_set(err, TM_E_DENIED, "the password is empty");
		}
	}
	r = r ? r : id_new(&s.kid, err);
	r = r ? r : slot_encode(&repo->id, &s, secret ? &raw : NULL, master, &b, err);
	if (r < 0)
		return r;
	n = name_keys(&s.kid);
	r = copies_put(repo, &n, b.data, b.len, err);
	if (b.data)
		OPENSSL_cleanse(b.data, b.len);
	if (r < 0 && keyring_remove(repo, &s.kid, NULL) < 0)
		log_debug("a copy of key slot %s may be left", id_text(&s.kid).s);
	if (r == 0)
		*ret = s.kid;
	return r;
}

int keyring_init(struct repo *repo, const char *label, const struct repo_secret *secret,
		 struct error *err)
{
	repo->role = REPO_ROLE_FULL;
	return keyring_put(repo, REPO_ROLE_FULL, label, secret, &repo->master, &repo->kid, err);
}
