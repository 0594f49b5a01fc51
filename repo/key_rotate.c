/* SPDX-License-Identifier: Apache-2.0 */
/* Rotation of the data key (docs/format.md, "Rotation of the data key"). */
#include "domain.h"
#include "keyring.h"

static bool is_full(const struct key_slot *s)
{
	return s->usable && s->slot.role == REPO_ROLE_FULL;
}

/* A full key of all domains that is older than ours is what an interrupted rotation left. */
static bool is_left(const struct keyring *g, const struct key_slot *s)
{
	return is_full(s) && id_is_zero(&s->slot.scope) &&
	       s->slot.generation < g->repo->master.generation;
}

/*
 * The other full keys would not get the new data key, whose holder only their owners' secrets could
 * tell.
 */
static int check_alone(const struct keyring *g, bool one_domain, struct error *err)
{
	const struct repo *repo = g->repo;

	for (size_t i = 0; i < g->n; i++) {
		const struct key_slot *s = &g->v[i];
		const struct tm_id *scope = &s->slot.scope;

		if (!is_full(s) || id_equal(&s->kid, &repo->kid) ||
		    (one_domain && !id_is_zero(scope) && !id_equal(scope, &repo->domain)))
			continue;
		return error_set(err, TM_E_BUSY,
				 "key %.12s is a full one, too, and could not read new points: "
				 "remove it first, and add it again afterwards",
				 id_text(&s->kid).s);
	}
	return 0;
}

static int remove_left(const struct keyring *g, struct error *err)
{
	int r = 0;

	for (size_t i = 0; r == 0 && i < g->n; i++)
		if (is_left(g, &g->v[i]))
			r = keyring_remove(g->repo, &g->v[i].kid, err);
	return r;
}

/* A slot of our secret with one more data key. */
static int put_rotated(struct repo *repo, struct keyring *g, const struct repo_secret *secret,
		       struct error *err)
{
	auto_master struct master_keys next = repo->master;
	const struct key_slot *s = keyring_find(g, &repo->kid);
	int r = master_rotate(&next, err);

	r = r ? r
	      : keyring_put(repo, REPO_ROLE_FULL, s && s->usable ? s->slot.label : NULL, secret,
			    &next, &repo->kid, err);
	if (r == 0)
		repo->master = next;
	return r;
}

/* From here on the domain's new sessions are sealed to the new key. */
static int publish(const struct repo *repo, const struct domain_id *id, struct error *err)
{
	auto_domain struct domain d;
	size_t n = 0;
	int r;

	if (id->generation >= repo->master.generation)
		return domain_mend(repo, id, &n, err);
	r = domain_load(repo, id, false, &d, err);
	return r ? r : domain_put(repo, &id->id, d.name, err);
}

static int publish_all(struct repo *repo, bool one_domain, struct error *err)
{
	struct domain_ids *l = calloc(1, sizeof(*l));
	int r = l ? domains_list(repo, l, err) : error_nomem(err);

	for (size_t i = 0; r == 0 && i < l->n; i++)
		if (!one_domain || id_equal(&l->v[i].id, &repo->domain))
			r = publish(repo, &l->v[i], err);
	free(l);
	return r;
}

static int check_rotate(struct repo *repo, struct error *err)
{
	int r = keyring_check_change(repo, err);

	if (r == 0 && id_is_zero(&repo->kid))
		r = error_set(err, TM_E_DENIED,
			      "a paper key cannot be rotated; use a password or a key file");
	if (r == 0 && !id_is_zero(&repo->master.scope))
		r = error_set(err, TM_E_DENIED,
			      "this key opens one domain: who has a key of all domains can rotate "
			      "its data key");
	return r;
}

int repo_key_rotate(struct repo *repo, bool one_domain, const struct repo_secret *secret,
		    struct tm_id *ret, struct error *err)
{
	auto_keyring struct keyring *g = NULL;
	bool interrupted = false;
	int r = check_rotate(repo, err);

	r = r ? r : keyring_load(repo, &g, err);
	if (r < 0)
		return r;
	for (size_t i = 0; i < g->n; i++)
		interrupted = interrupted || is_left(g, &g->v[i]);
	if (!interrupted) {
		r = check_alone(g, one_domain, err);
		r = r ? r : put_rotated(repo, g, secret, err);
	}
	r = r ? r : publish_all(repo, one_domain, err);
	r = r ? r : domain_use(repo, &repo->domain, err);
	/* g was read before the new slot was put: ours of then is older than ours of now */
	r = r ? r : remove_left(g, err);
	if (r == 0)
		*ret = repo->kid;
	return r;
}
