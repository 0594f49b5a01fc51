/* SPDX-License-Identifier: Apache-2.0 */
/* Rotation of the data key (docs/format.md, "Rotation of the data key"). */
#include "keyring.h"

/* ---- rotation ---- */

/*
 * The other full keys would not get the new data key, whose holder only their owners' secrets could
 * tell.  Those that are older than ours are what an interrupted rotation left.
 */
static int check_alone(const struct keyring *g, struct error *err)
{
	for (size_t i = 0; i < g->n; i++) {
		const struct key_slot *s = &g->v[i];

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

static int remove_older(const struct keyring *g, const struct repo *repo, struct error *err)
{
	int r = 0;

	for (size_t i = 0; r == 0 && i < g->n; i++) {
		const struct key_slot *s = &g->v[i];

		if (s->usable && s->slot.role == REPO_ROLE_FULL &&
		    s->slot.generation < repo->master.generation)
			r = keyring_remove(repo, &s->kid, err);
	}
	return r;
}

/* A slot of our secret with one more data key. */
static int put_rotated(struct repo *repo, const struct keyring *g, const struct repo_secret *secret,
		       struct error *err)
{
	auto_master struct master_keys next = repo->master;
	const struct key_slot *s = NULL;
	int r = check_alone(g, err);

	for (size_t i = 0; i < g->n; i++)
		if (id_equal(&g->v[i].kid, &repo->kid))
			s = &g->v[i];
	r = r ? r : master_rotate(&next, err);
	r = r ? r
	      : keyring_put(repo, REPO_ROLE_FULL, s && s->usable ? s->slot.label : NULL, secret,
			    &next, &repo->kid, err);
	if (r == 0)
		repo->master = next;
	return r;
}

int repo_key_rotate(struct repo *repo, const struct repo_secret *secret, struct tm_id *ret,
		    struct error *err)
{
	auto_keyring struct keyring *g = NULL;
	int r = keyring_check_change(repo, err);

	if (r == 0 && id_is_zero(&repo->kid))
		return error_set(err, TM_E_DENIED,
				 "a paper key cannot be rotated; use a password or a key file");
	r = r ? r : keyring_load(repo, true, &g, err);
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
