/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Listing and changing keys.  Changes put what is new before they remove what is old, so that an
 * interruption at any point leaves the repository open to those who could open it before.
 */
#include "domain.h"
#include "keyring.h"
#include "repo_object.h"

#include <stdio.h>
#include <string.h>

/* ---- list ---- */

void repo_key_list_done(struct repo_key_list *list)
{
	for (size_t i = 0; i < list->n; i++)
		free(list->v[i].problem);
	free(list->v);
	*list = (struct repo_key_list){0};
}

static int fill_key(const struct repo *repo, const struct key_slot *s, struct repo_key *k,
		    struct error *err)
{
	k->id = s->kid;
	k->own = id_equal(&s->kid, &repo->kid);
	k->role = REPO_ROLE_FULL;
	k->kdf = "unknown";
	if (!s->usable)
		return text_copy(s->err.text, &k->problem, err);
	k->role = s->slot.role;
	k->domain = s->slot.scope;
	k->kdf = slot_kdf_name(s->slot.kdf);
	k->created_ms = s->slot.created_ms;
	k->copies = (unsigned)s->copies.whole[0] + (unsigned)s->copies.whole[1];
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
	auto_keyring struct keyring *g = NULL;
	auto_key_list struct repo_key_list list = {0};
	int r = keyring_load(repo, &g, err);

	if (r < 0)
		return r;
	list.v = calloc(g->n ? g->n : 1, sizeof(*list.v));
	if (!list.v)
		return error_nomem(err);
	for (; r == 0 && list.n < g->n; list.n++)
		r = fill_key(repo, &g->v[list.n], &list.v[list.n], err);
	if (r < 0)
		return r;
	if (list.n > 1)
		qsort(list.v, list.n, sizeof(*list.v), by_age);
	*ret = list;
	list = (struct repo_key_list){0};
	return 0;
}

/* ---- changes ---- */

/* The same but for id, age and secret. */
static bool is_like(const struct slot *a, const struct slot *b)
{
	return a->role == b->role && id_equal(&a->scope, &b->scope) &&
	       a->generation == b->generation && strcmp(a->label, b->label) == 0;
}

/* The keys that a key to be made holds. */
static void take_keys(const struct repo *repo, bool one_domain, struct master_keys *ret)
{
	if (one_domain)
		domain_own(&repo->keys, &repo->domain, ret);
	else
		*ret = repo->master;
}

/*
 * The slot that a secret opens already, of all or of those that are like `like` but for the secret:
 * what an interrupted change has put.  NULL: there is none.
 */
static int find_opened(struct keyring *g, const struct repo_secret *secret,
		       const struct key_slot *like, struct key_slot **ret, struct error *err)
{
	auto_secret struct secret key = {{0}};
	struct repo_secret raw = *secret;
	int r = 0;

	if (secret->kind == REPO_SECRET_KEY_FILE) {
		r = key_file_decode(secret, &key, err);
		raw.bytes = key.b;
		raw.len = sizeof(key.b);
	}
	*ret = NULL;
	for (size_t i = 0; r == 0 && !*ret && i < g->n; i++) {
		auto_master struct master_keys keys = {.has = 0};
		struct key_slot *s = &g->v[i];

		if (!s->usable || (like && (s == like || !is_like(&s->slot, &like->slot))))
			continue;
		if (slot_open(&s->slot, &raw, "key slot", s->copies.bytes.data, s->copies.bytes.len,
			      &keys, NULL) == 0)
			*ret = s;
	}
	return r;
}

/* One of its copies may be missing. */
static int finish_slot(const struct repo *repo, const struct key_slot *s, struct error *err)
{
	struct copy_names n = name_keys(&s->kid);
	size_t count = 0;

	return copies_mend(repo, &n, &s->copies, &count, err);
}

/* A key file that is one of the repository's already is what an interrupted run of the same left,
 * or a mistake. */
static int add_again(const struct repo *repo, const struct repo_key_options *opt,
		     const struct master_keys *keys, const struct key_slot *s, struct error *err)
{
	struct slot wanted = {.role = opt->role, .scope = keys->scope};

	wanted.generation = opt->role == REPO_ROLE_FULL ? keys->generation : 0;
	(void)snprintf(wanted.label, sizeof(wanted.label), "%s", opt->label ? opt->label : "");
	if (is_like(&s->slot, &wanted))
		return finish_slot(repo, s, err);
	return error_set(err, TM_E_EXISTS,
			 "the key file opens the repository already, as key %.12s (%s, label '%s')",
			 id_text(&s->kid).s, repo_role_name(s->slot.role), s->slot.label);
}

int repo_key_add(struct repo *repo, const struct repo_key_options *opt,
		 const struct repo_secret *secret, struct tm_id *ret, struct error *err)
{
	auto_keyring struct keyring *g = NULL;
	auto_master struct master_keys keys;
	struct key_slot *there = NULL;
	int r = keyring_check_change(repo, err);

	take_keys(repo, opt->one_domain, &keys);
	r = r ? r : keyring_load(repo, &g, err);
	if (r == 0 && secret->kind == REPO_SECRET_KEY_FILE)
		r = find_opened(g, secret, NULL, &there, err);
	if (r < 0)
		return r;
	if (there) {
		*ret = there->kid;
		return add_again(repo, opt, &keys, there, err);
	}
	if (g->n >= MAX_KEY_SLOTS)
		return error_set(err, TM_E_RANGE, "there are %zu keys already, at most %d can be",
				 g->n, MAX_KEY_SLOTS);
	return keyring_put(repo, opt->role, opt->label, secret, &keys, ret, err);
}

/* Full keys that open as much as ours, of the newest generation, but this one. */
static bool other_full(const struct keyring *g, const struct key_slot *but)
{
	for (size_t i = 0; i < g->n; i++)
		if (&g->v[i] != but && g->v[i].usable && g->v[i].slot.role == REPO_ROLE_FULL &&
		    id_equal(&g->v[i].slot.scope, &g->repo->master.scope) &&
		    g->v[i].slot.generation >= g->repo->master.generation)
			return true;
	return false;
}

/* Keys of all domains open each domain, so the last key of one may go; but its holder knows only
 * that domain's, and removes no others. */
static int check_remove(const struct keyring *g, const struct key_slot *s, struct error *err)
{
	const struct tm_id *scope = &g->repo->master.scope;
	bool same = s->usable && id_equal(&s->slot.scope, scope);

	if (!id_is_zero(scope) && !same)
		return error_set(err, TM_E_DENIED, "key %.12s is not one of this domain",
				 id_text(&s->kid).s);
	if ((!s->usable || (same && s->slot.role == REPO_ROLE_FULL)) && !other_full(g, s))
		return error_set(
			err, TM_E_DENIED,
			"key %.12s is the last full one: without it nothing could be restored",
			id_text(&s->kid).s);
	return 0;
}

int repo_key_remove(struct repo *repo, const struct tm_id *id, struct error *err)
{
	auto_keyring struct keyring *g = NULL;
	const struct key_slot *s;
	int r = keyring_check_change(repo, err);

	r = r ? r : keyring_load(repo, &g, err);
	if (r < 0)
		return r;
	s = keyring_find(g, id);
	if (!s)
		return error_set(err, TM_E_NOTFOUND, "there is no key %.12s any more",
				 id_text(id).s);
	r = check_remove(g, s, err);
	return r ? r : keyring_remove(repo, id, err);
}

int repo_key_change(struct repo *repo, const struct repo_secret *secret, struct tm_id *ret,
		    struct error *err)
{
	auto_keyring struct keyring *g = NULL;
	struct key_slot *s, *there = NULL;
	struct tm_id kid;
	int r;

	if (!repo->encrypted)
		return keyring_check_change(repo, err);
	r = repo_check_writable(repo, err);
	r = r ? r : keyring_load(repo, &g, err);
	if (r < 0)
		return r;
	s = keyring_find(g, &repo->kid);
	if (!s || !s->usable)
		return error_set(err, TM_E_DENIED,
				 "a paper key has no password to change; 'key add' makes a key");
	r = find_opened(g, secret, s, &there, err);
	if (r == 0 && there) {
		kid = there->kid;
		r = finish_slot(repo, there, err);
	} else if (r == 0) {
		r = keyring_put(repo, repo->role, s->slot.label, secret, &repo->master, &kid, err);
	}
	r = r ? r : keyring_remove(repo, &repo->kid, err);
	if (r == 0)
		*ret = repo->kid = kid;
	return r;
}

static int repair_domains(struct repo *repo, size_t *count, struct error *err)
{
	struct domain_ids *l = calloc(1, sizeof(*l));
	int r = l ? domains_list(repo, l, err) : error_nomem(err);

	for (size_t i = 0; r == 0 && i < l->n; i++)
		r = domain_mend(repo, &l->v[i], count, err);
	free(l);
	return r;
}

int repo_keys_repair(struct repo *repo, size_t *ret, struct error *err)
{
	auto_keyring struct keyring *g = NULL;
	int r = repo_check_writable(repo, err);

	r = r ? r : keyring_load(repo, &g, err);
	*ret = repo->mended;
	for (size_t i = 0; r == 0 && i < g->n; i++) {
		struct copy_names n = name_keys(&g->v[i].kid);

		r = copies_mend(repo, &n, &g->v[i].copies, ret, err);
	}
	r = r ? r : repair_domains(repo, ret, err);
	r = r ? r : repo_object_mend(repo, ret, err);
	if (r == 0)
		repo->worn_object[0] = repo->worn_slot[0] = repo->worn_domain[0] = 0;
	return r;
}

int repo_key_paper(struct repo *repo, bool one_domain, char **ret, struct error *err)
{
	auto_master struct master_keys keys;
	int r = keyring_check_change(repo, err);

	take_keys(repo, one_domain, &keys);
	return r ? r : paper_encode(&repo->id, &keys, ret, err);
}
