/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The key slots of a repository.  A slot is two equal objects, keys/<kid>a and b; one whole copy is
 * enough.  Changes put what is new before they remove what is old, so that an interruption at any
 * point leaves the repository open to those who could open it before.
 */
#include "internal.h"
#include "slot.h"

#include <openssl/crypto.h>
#include <stdio.h>
#include <string.h>

#define COPIES        2
#define SCRYPT_LOG2_N 17
#define SCRYPT_R      8
#define SCRYPT_P      1

struct ring_slot {
	struct tm_id kid;
	struct slot slot; /* when usable */
	bool usable;
	bool there[COPIES], whole[COPIES];
	struct buf bytes; /* of a whole copy */
	int code;         /* when not usable: why */
	struct error err;
};

struct ring {
	struct repo *repo;
	bool every_copy; /* read both, and stop at what the store cannot read */
	struct ring_slot v[MAX_KEY_SLOTS];
	size_t n;
};

static void ring_free(struct ring *g)
{
	for (size_t i = 0; i < g->n; i++) {
		if (g->v[i].bytes.data)
			OPENSSL_cleanse(g->v[i].bytes.data, g->v[i].bytes.len);
		buf_done(&g->v[i].bytes);
	}
	free(g);
}
TM_CLEANUP(struct ring, ring_free)

static void name_slot(const struct tm_id *kid, unsigned copy, char key[KEY_MAX])
{
	(void)snprintf(key, KEY_MAX, "keys/%s%c", id_text(kid).s, (char)('a' + (char)copy));
}

/* "keys/<kid>a" */
static bool parse_slot_name(const char *key, struct tm_id *ret, unsigned *ret_copy)
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
	struct ring *g = data;
	struct ring_slot *s = g->n ? &g->v[g->n - 1] : NULL;
	struct tm_id kid;
	unsigned copy;

	(void)size;
	if (!parse_slot_name(key, &kid, &copy))
		return 0; /* something foreign */
	if (!s || !id_equal(&s->kid, &kid)) {
		if (g->n == MAX_KEY_SLOTS)
			return error_set(err, TM_E_UNSUPPORTED, "there are more than %d keys",
					 MAX_KEY_SLOTS);
		s = &g->v[g->n++];
		*s = (struct ring_slot){.kid = kid};
	}
	s->there[copy] = true;
	return 0;
}

/* What a copy says; b gets its bytes. */
static int read_copy(const struct ring *g, const struct ring_slot *s, unsigned copy,
		     struct slot *ret, struct buf *b, struct error *err)
{
	char key[KEY_MAX];
	int r;

	name_slot(&s->kid, copy, key);
	r = store_read(g->repo->st, key, MAX_KEY_OBJECT, b, err);
	r = r ? r : slot_parse(&g->repo->id, key, b->data, b->len, ret, err);
	if (r == 0 && !id_equal(&ret->kid, &s->kid))
		return error_set(err, TM_E_CORRUPT, "%s: this is the slot of another key", key);
	return r;
}

static void take_copy(struct ring_slot *s, unsigned copy, const struct slot *slot, struct buf *b)
{
	if (s->usable) { /* two copies that differ: the first one is right */
		s->whole[copy] =
			s->bytes.len == b->len && memcmp(s->bytes.data, b->data, b->len) == 0;
		return;
	}
	s->slot = *slot;
	s->usable = s->whole[copy] = true;
	buf_done(&s->bytes);
	s->bytes = *b;
	*b = (struct buf){0};
}

static int load_slot(const struct ring *g, struct ring_slot *s, struct error *err)
{
	for (unsigned copy = 0; copy < COPIES; copy++) {
		auto_buf struct buf b = {0};
		struct error own = {0};
		struct slot slot;
		int r;

		if (!s->there[copy] || (s->usable && !g->every_copy))
			continue;
		r = read_copy(g, s, copy, &slot, &b, &own);
		if (r == 0)
			take_copy(s, copy, &slot, &b);
		else if (s->code == 0) {
			s->code = r;
			s->err = own;
		}
		if (b.data)
			OPENSSL_cleanse(b.data, b.len);
		if (r < 0 && g->every_copy && r != TM_E_CORRUPT && r != TM_E_UNSUPPORTED) {
			if (err && !err->code)
				*err = own;
			return r;
		}
	}
	return 0;
}

static int ring_load(struct repo *repo, bool every_copy, struct ring **ret, struct error *err)
{
	auto_clean(ring_free) struct ring *g = calloc(1, sizeof(*g));
	int r;

	if (!g)
		return error_nomem(err);
	g->repo = repo;
	g->every_copy = every_copy;
	r = repo->st->ops->list(repo->st, "keys/", list_slot, g, err);
	for (size_t i = 0; r == 0 && i < g->n; i++)
		r = load_slot(g, &g->v[i], err);
	if (r == 0)
		*ret = tm_steal(g);
	return r;
}

static struct ring_slot *ring_find(struct ring *g, const struct tm_id *kid)
{
	for (size_t i = 0; i < g->n; i++)
		if (id_equal(&g->v[i].kid, kid))
			return &g->v[i];
	return NULL;
}

/* ---- opening ---- */

static void opened(struct repo *repo, const struct ring_slot *s)
{
	repo->kid = s->kid;
	repo->role = s->slot.role;
	repo->slot_damaged = s->code == TM_E_CORRUPT;
}

/* Why no slot opened, of those that could not even be tried. */
static int nothing_opens(const struct ring *g, const char *what, struct error *err)
{
	size_t damaged = 0, newer = 0, usable = 0;
	const struct ring_slot *first = NULL;
	int r;

	for (size_t i = 0; i < g->n; i++) {
		const struct ring_slot *s = &g->v[i];

		usable += s->usable;
		damaged += !s->usable && s->code != TM_E_UNSUPPORTED;
		newer += !s->usable && s->code == TM_E_UNSUPPORTED;
		if (!s->usable && !first)
			first = s;
	}
	if (usable == 0 && first) {
		if (err && !err->code)
			*err = first->err;
		error_prefix(err, "the repository's keys cannot be read");
		return first->code;
	}
	if (usable == 0)
		return error_set(err, TM_E_CORRUPT, "the repository has no keys");
	r = error_set(err, TM_E_DENIED, "%s", what);
	if (damaged)
		error_append(err, " (%zu of the %zu keys cannot be read: damaged)", damaged, g->n);
	if (newer)
		error_append(err, " (%zu of the %zu keys need a newer program)", newer, g->n);
	return r;
}

/* Keys of the newest generation first: after a rotation that was interrupted both open. */
static int open_with(struct ring *g, const struct repo_secret *secret, struct error *err)
{
	bool tried[MAX_KEY_SLOTS] = {false};
	const char *what = secret && secret->kind == REPO_SECRET_KEY_FILE
				   ? "this is not a key file of the repository"
				   : "wrong password";

	for (;;) {
		struct ring_slot *best = NULL;
		struct error own = {0};
		int r;

		for (size_t i = 0; i < g->n; i++)
			if (g->v[i].usable && !tried[i] &&
			    (!best || g->v[i].slot.generation > best->slot.generation))
				best = &g->v[i];
		if (!best)
			return nothing_opens(g, what, err);
		tried[best - g->v] = true;
		r = slot_open(&best->slot, secret, "key slot", best->bytes.data, best->bytes.len,
			      &g->repo->master, &own);
		if (r == 0) {
			opened(g->repo, best);
			return 0;
		}
		if (r != TM_E_DENIED) {
			best->usable = false;
			best->code = r;
			best->err = own;
		}
	}
}

static int open_paper(struct repo *repo, const struct repo_secret *secret, struct error *err)
{
	repo->role = REPO_ROLE_FULL;
	repo->kid = (struct tm_id){{0}};
	return paper_decode(secret, &repo->id, &repo->master, err);
}

static int open_secret(struct repo *repo, const struct repo_secret *secret, struct error *err)
{
	auto_clean(ring_free) struct ring *g = NULL;
	auto_secret struct secret key = {{0}};
	struct repo_secret raw = *secret;
	int r;

	if (is_paper(secret))
		return open_paper(repo, secret, err);
	if (secret->kind == REPO_SECRET_KEY_FILE) {
		r = key_file_decode(secret, &key, err);
		if (r < 0)
			return r;
		raw.bytes = key.b;
		raw.len = sizeof(key.b);
	}
	r = ring_load(repo, false, &g, err);
	return r ? r : open_with(g, &raw, err);
}

int keyring_open(struct repo *repo, const struct repo_credentials *cred, struct error *err)
{
	auto_clean(ring_free) struct ring *g = NULL;
	struct repo_secret secret;
	int r;

	if (repo->encrypted) {
		if (!cred)
			return error_set(err, TM_E_DENIED,
					 "the repository is encrypted: a password or a key file is "
					 "needed");
		r = cred->get(cred->data, &secret, err);
		return r ? r : open_secret(repo, &secret, err);
	}
	if (cred && cred->given)
		return error_set(err, TM_E_DENIED,
				 "a password or key file is given, but the repository is not "
				 "encrypted");
	r = ring_load(repo, false, &g, err);
	return r ? r : open_with(g, NULL, err);
}

/* ---- writing them ---- */

static int put_copy(const struct repo *repo, const struct tm_id *kid, unsigned copy,
		    const struct buf *b, struct error *err)
{
	char key[KEY_MAX];

	name_slot(kid, copy, key);
	return store_put_wait(repo->st, key, b->data, b->len, err);
}

static int remove_copies(const struct repo *repo, const struct tm_id *kid, struct error *err)
{
	int r = 0;

	for (unsigned copy = 0; r == 0 && copy < COPIES; copy++) {
		char key[KEY_MAX];

		name_slot(kid, copy, key);
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

/* A key's slot; nothing of it stays when it cannot be written whole. */
static int put_slot(const struct repo *repo, enum repo_role role, const char *label,
		    const struct repo_secret *secret, const struct master_keys *master,
		    struct tm_id *ret, struct error *err)
{
	auto_buf struct buf b = {0};
	auto_secret struct secret key = {{0}};
	struct repo_secret raw = {0};
	struct slot s = {.role = role, .r = SCRYPT_R, .p = SCRYPT_P};
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
	for (unsigned copy = 0; r == 0 && copy < COPIES; copy++)
		r = put_copy(repo, &s.kid, copy, &b, err);
	if (b.data)
		OPENSSL_cleanse(b.data, b.len);
	if (r < 0 && remove_copies(repo, &s.kid, NULL) < 0)
		log_debug("a copy of key slot %s may be left", id_text(&s.kid).s);
	if (r == 0)
		*ret = s.kid;
	return r;
}

int keyring_init(struct repo *repo, const char *label, const struct repo_secret *secret,
		 struct error *err)
{
	repo->role = REPO_ROLE_FULL;
	return put_slot(repo, REPO_ROLE_FULL, label, secret, &repo->master, &repo->kid, err);
}

/* ---- rights ---- */

bool repo_encrypted(const struct repo *repo)
{
	return repo->encrypted;
}

enum repo_role repo_role(const struct repo *repo)
{
	return repo->role;
}

const char *repo_role_name(enum repo_role role)
{
	return role_name(role);
}

int repo_check_right(const struct repo *repo, enum repo_right right, struct error *err)
{
	static const struct {
		const char *what;
		bool backup, janitor;
	} rights[] = {
		[REPO_MAY_BACK_UP] = {"make backups", true, false},
		[REPO_MAY_READ] = {"read data", false, false},
		[REPO_MAY_PRUNE] = {"delete points", false, true},
		[REPO_MAY_CHANGE_KEYS] = {"change keys", false, false},
	};

	if (repo->role == REPO_ROLE_FULL ||
	    (repo->role == REPO_ROLE_BACKUP ? rights[right].backup : rights[right].janitor))
		return 0;
	return error_set(err, TM_E_DENIED, "this key cannot %s: its role is %s", rights[right].what,
			 role_name(repo->role));
}

static bool outdated(const struct repo *repo)
{
	return repo->role == REPO_ROLE_FULL && repo->keys.generation < repo->keys.public_generation;
}

const char *repo_key_remark(const struct repo *repo)
{
	if (outdated(repo))
		return "this key is from before the last 'key rotate': it cannot read the points "
		       "made since";
	if (repo->slot_damaged)
		return "a copy of this key's slot is damaged; 'tidemark key repair' writes it "
		       "again";
	return NULL;
}

static int check_change(const struct repo *repo, struct error *err)
{
	if (!repo->encrypted)
		return error_set(err, TM_E_UNSUPPORTED,
				 "the repository is not encrypted, so there are no keys to change; "
				 "'init --encrypt' makes one that is");
	if (outdated(repo))
		return error_set(err, TM_E_DENIED, "%s", repo_key_remark(repo));
	return repo_check_right(repo, REPO_MAY_CHANGE_KEYS, err);
}

/* ---- list ---- */

void repo_key_list_done(struct repo_key_list *list)
{
	for (size_t i = 0; i < list->n; i++)
		free(list->v[i].problem);
	free(list->v);
	*list = (struct repo_key_list){0};
}

static int fill_key(const struct repo *repo, const struct ring_slot *s, struct repo_key *k,
		    struct error *err)
{
	k->id = s->kid;
	k->own = id_equal(&s->kid, &repo->kid);
	k->role = REPO_ROLE_FULL;
	k->kdf = "unknown";
	if (!s->usable)
		return text_copy(s->err.text, &k->problem, err);
	k->role = s->slot.role;
	k->kdf = slot_kdf_name(s->slot.kdf);
	k->created_ms = s->slot.created_ms;
	k->copies = (unsigned)s->whole[0] + (unsigned)s->whole[1];
	memcpy(k->label, s->slot.label, sizeof(k->label));
	return 0;
}

static int by_age(const void *a, const void *b)
{
	const struct repo_key *x = a, *y = b;

	if (x->created_ms != y->created_ms)
		return x->created_ms < y->created_ms ? -1 : 1;
	return memcmp(&x->id, &y->id, sizeof(x->id));
}

int repo_keys(struct repo *repo, struct repo_key_list *ret, struct error *err)
{
	auto_clean(ring_free) struct ring *g = NULL;
	auto_key_list struct repo_key_list list = {0};
	int r = ring_load(repo, true, &g, err);

	if (r < 0)
		return r;
	list.v = calloc(g->n ? g->n : 1, sizeof(*list.v));
	if (!list.v)
		return error_nomem(err);
	for (; r == 0 && list.n < g->n; list.n++)
		r = fill_key(repo, &g->v[list.n], &list.v[list.n], err);
	if (r < 0)
		return r;
	qsort(list.v, list.n, sizeof(*list.v), by_age);
	*ret = list;
	list = (struct repo_key_list){0};
	return 0;
}

/* ---- changes ---- */

int repo_key_add(struct repo *repo, enum repo_role role, const char *label,
		 const struct repo_secret *secret, struct tm_id *ret, struct error *err)
{
	auto_clean(ring_free) struct ring *g = NULL;
	int r = check_change(repo, err);

	r = r ? r : ring_load(repo, true, &g, err);
	if (r < 0)
		return r;
	if (g->n >= MAX_KEY_SLOTS)
		return error_set(err, TM_E_RANGE, "there are %zu keys already, at most %d can be",
				 g->n, MAX_KEY_SLOTS);
	return put_slot(repo, role, label, secret, &repo->master, ret, err);
}

/* Full keys of the newest generation but this one. */
static bool other_full(const struct ring *g, const struct ring_slot *but)
{
	for (size_t i = 0; i < g->n; i++)
		if (&g->v[i] != but && g->v[i].usable && g->v[i].slot.role == REPO_ROLE_FULL &&
		    g->v[i].slot.generation >= g->repo->keys.public_generation)
			return true;
	return false;
}

int repo_key_remove(struct repo *repo, const struct tm_id *id, struct error *err)
{
	auto_clean(ring_free) struct ring *g = NULL;
	const struct ring_slot *s;
	int r = check_change(repo, err);

	r = r ? r : ring_load(repo, true, &g, err);
	if (r < 0)
		return r;
	s = ring_find(g, id);
	if (!s)
		return error_set(err, TM_E_NOTFOUND, "there is no key %s", id_text(id).s);
	if ((!s->usable || s->slot.role == REPO_ROLE_FULL) && !other_full(g, s))
		return error_set(err, TM_E_DENIED,
				 "%s is the last full key: without it nothing could be restored",
				 id_text(id).s);
	return remove_copies(repo, id, err);
}

int repo_key_change(struct repo *repo, const struct repo_secret *secret, struct tm_id *ret,
		    struct error *err)
{
	auto_clean(ring_free) struct ring *g = NULL;
	const struct ring_slot *s;
	struct tm_id kid;
	int r;

	if (!repo->encrypted)
		return check_change(repo, err);
	r = ring_load(repo, true, &g, err);
	if (r < 0)
		return r;
	s = ring_find(g, &repo->kid);
	if (!s || !s->usable)
		return error_set(err, TM_E_DENIED,
				 "a paper key has no password to change; 'key add' makes a key");
	r = put_slot(repo, repo->role, s->slot.label, secret, &repo->master, &kid, err);
	r = r ? r : remove_copies(repo, &repo->kid, err);
	if (r == 0)
		*ret = repo->kid = kid;
	return r;
}

static int repair_slot(const struct repo *repo, const struct ring_slot *s, size_t *count,
		       struct error *err)
{
	int r = 0;

	for (unsigned copy = 0; r == 0 && s->usable && copy < COPIES; copy++) {
		char key[KEY_MAX];

		if (s->whole[copy])
			continue;
		name_slot(&s->kid, copy, key);
		if (s->there[copy])
			r = repo->st->ops->remove(repo->st, key, err);
		r = r ? r : put_copy(repo, &s->kid, copy, &s->bytes, err);
		*count += r == 0;
	}
	return r;
}

int repo_keys_repair(struct repo *repo, size_t *ret, struct error *err)
{
	auto_clean(ring_free) struct ring *g = NULL;
	int r = ring_load(repo, true, &g, err);

	*ret = 0;
	for (size_t i = 0; r == 0 && i < g->n; i++)
		r = repair_slot(repo, &g->v[i], ret, err);
	if (r == 0)
		repo->slot_damaged = false;
	return r;
}

/* ---- rotation ---- */

/*
 * The other full keys would not get the new data key, whose holder only their owners' secrets could
 * tell.  Those that are older than ours are what an interrupted rotation left.
 */
static int check_alone(const struct ring *g, struct error *err)
{
	for (size_t i = 0; i < g->n; i++) {
		const struct ring_slot *s = &g->v[i];

		if (s->usable && s->slot.role == REPO_ROLE_FULL &&
		    !id_equal(&s->kid, &g->repo->kid) &&
		    s->slot.generation >= g->repo->master.generation)
			return error_set(err, TM_E_BUSY,
					 "%s is a full key, too, and could not read new points: "
					 "remove it first, and add it again afterwards",
					 id_text(&s->kid).s);
	}
	return 0;
}

static int remove_older(const struct ring *g, const struct repo *repo, struct error *err)
{
	int r = 0;

	for (size_t i = 0; r == 0 && i < g->n; i++) {
		const struct ring_slot *s = &g->v[i];

		if (s->usable && s->slot.role == REPO_ROLE_FULL &&
		    s->slot.generation < repo->master.generation)
			r = remove_copies(repo, &s->kid, err);
	}
	return r;
}

/* A slot of our secret with one more data key. */
static int put_rotated(struct repo *repo, const struct ring *g, const struct repo_secret *secret,
		       struct error *err)
{
	auto_master struct master_keys next = repo->master;
	const struct ring_slot *s = NULL;
	int r = check_alone(g, err);

	for (size_t i = 0; i < g->n; i++)
		if (id_equal(&g->v[i].kid, &repo->kid))
			s = &g->v[i];
	r = r ? r : master_rotate(&next, err);
	r = r ? r
	      : put_slot(repo, REPO_ROLE_FULL, s && s->usable ? s->slot.label : NULL, secret, &next,
			 &repo->kid, err);
	if (r == 0)
		repo->master = next;
	return r;
}

int repo_key_rotate(struct repo *repo, const struct repo_secret *secret, struct tm_id *ret,
		    struct error *err)
{
	auto_clean(ring_free) struct ring *g = NULL;
	int r = check_change(repo, err);

	if (r == 0 && id_is_zero(&repo->kid))
		return error_set(err, TM_E_DENIED,
				 "a paper key cannot be rotated; use a password or a key file");
	r = r ? r : ring_load(repo, true, &g, err);
	/* one that was interrupted has its slot already */
	if (r == 0 && repo->master.generation == repo->keys.public_generation)
		r = put_rotated(repo, g, secret, err);
	r = r ? r : domain_derive(&repo->master, &repo->domain, &repo->keys, err);
	r = r ? r : put_domain(repo, err);
	r = r ? r : remove_older(g, repo, err);
	if (r == 0)
		*ret = repo->kid;
	return r;
}

int repo_key_paper(struct repo *repo, char **ret, struct error *err)
{
	int r = check_change(repo, err);

	return r ? r : paper_encode(&repo->id, &repo->master, ret, err);
}
