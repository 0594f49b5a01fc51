/* SPDX-License-Identifier: Apache-2.0 */
/* Opening a repository with a secret, and what the key that opened it may do. */
#include "domain.h"
#include "keyring.h"

#include <inttypes.h>
#include <string.h>

/* ---- opening ---- */

static void opened(const struct keyring *g, const struct key_slot *s)
{
	struct repo *repo = g->repo;

	repo->kid = s->kid;
	repo->role = s->slot.role;
	keyring_worn(s, repo->worn_slot);
}

/* Why no slot opened, of those that could not even be tried. */
static int nothing_opens(const struct keyring *g, const char *what, struct error *err)
{
	size_t damaged = 0, newer = 0, usable = 0;
	const struct key_slot *first = NULL;
	int r;

	for (size_t i = 0; i < g->n; i++) {
		const struct key_slot *s = &g->v[i];

		usable += s->usable;
		damaged += !s->usable && s->code != TM_E_UNSUPPORTED;
		newer += !s->usable && s->code == TM_E_UNSUPPORTED;
		if (!s->usable && !first)
			first = s;
	}
	if (usable == 0 && first) {
		(void)error_pass(err, first->code, &first->err);
		error_prefix(err, "the repository's keys cannot be read");
		return first->code;
	}
	if (usable == 0)
		return error_set(err, TM_E_CORRUPT, "the repository has no keys%s",
				 g->repo->encrypted ? "; a paper key opens it all the same: "
						      "--key-file takes its text"
						    : "; what is in keys/ of any copy of it does");
	r = error_set(err, TM_E_DENIED, "%s", what);
	if (damaged)
		error_append(err, " (%zu of the %zu keys cannot be read: damaged)", damaged, g->n);
	if (newer)
		error_append(err, " (%zu of the %zu keys need a newer program)", newer, g->n);
	return r;
}

/*
 * Keys of all domains go before those of one, and the newest generation goes first: after a
 * rotation that was interrupted both open.
 */
static bool goes_before(const struct slot *a, const struct slot *b)
{
	if (id_is_zero(&a->scope) != id_is_zero(&b->scope))
		return id_is_zero(&a->scope);
	return a->generation > b->generation;
}

static int open_with(struct keyring *g, const struct repo_secret *secret, struct error *err)
{
	bool tried[MAX_KEY_SLOTS] = {false};
	const char *what = secret && secret->kind == REPO_SECRET_KEY_FILE
				   ? "this is not a key file of the repository"
				   : "wrong password";

	for (;;) {
		struct key_slot *best = NULL;
		struct error own = {0};
		int r;

		for (size_t i = 0; i < g->n; i++)
			if (g->v[i].usable && !tried[i] &&
			    (!best || goes_before(&g->v[i].slot, &best->slot)))
				best = &g->v[i];
		if (!best)
			return nothing_opens(g, what, err);
		tried[best - g->v] = true;
		r = slot_open(&best->slot, secret, "key slot", best->copies.bytes.data,
			      best->copies.bytes.len, &g->repo->master, &own);
		if (r == 0) {
			opened(g, best);
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

static int open_secret(struct keyring *g, const struct repo_secret *secret, struct error *err)
{
	auto_secret struct secret key = {{0}};
	struct repo_secret raw = *secret;
	int r;

	if (is_paper(secret))
		return open_paper(g->repo, secret, err);
	if (secret->kind == REPO_SECRET_KEY_FILE) {
		r = key_file_decode(secret, &key, err);
		if (r < 0)
			return r;
		raw.bytes = key.b;
		raw.len = sizeof(key.b);
	}
	r = keyring_read(g, false, err);
	return r ? r : open_with(g, &raw, err);
}

int keyring_open(struct keyring *g, const struct repo_credentials *cred, struct error *err)
{
	struct repo_secret secret;
	int r;

	if (g->repo->encrypted) {
		if (!cred)
			return error_set(err, TM_E_DENIED,
					 "the repository is encrypted: a password or a key file is "
					 "needed");
		r = cred->get(cred->data, &secret, err);
		return r ? r : open_secret(g, &secret, err);
	}
	if (cred && cred->given)
		return error_set(err, TM_E_DENIED,
				 "a password or key file is given, but the repository is not "
				 "encrypted");
	r = keyring_read(g, false, err);
	return r ? r : open_with(g, NULL, err);
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

int repo_check_writable(const struct repo *repo, struct error *err)
{
	if (!repo->read_only)
		return 0;
	return error_set(err, TM_E_UNSUPPORTED,
			 "the repository has features (bits %#" PRIx64 ") with which this program "
			 "can read it, but not write to it; use a newer one",
			 repo->read_only);
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
		[REPO_MAY_ADD_DOMAINS] = {"add domains", false, false},
	};

	if (right == REPO_MAY_ADD_DOMAINS && !id_is_zero(&repo->master.scope))
		return error_set(err, TM_E_DENIED,
				 "this key cannot add domains: it opens one domain only");
	if (right != REPO_MAY_READ) {
		int r = repo_check_writable(repo, err);

		if (r < 0)
			return r;
	}
	if (repo->role == REPO_ROLE_FULL ||
	    (repo->role == REPO_ROLE_BACKUP ? rights[right].backup : rights[right].janitor))
		return 0;
	return error_set(err, TM_E_DENIED, "this key cannot %s: its role is %s", rights[right].what,
			 role_name(repo->role));
}

static bool is_outdated(const struct repo *repo)
{
	return repo->role == REPO_ROLE_FULL && repo->keys.generation < repo->keys.public_generation;
}

static int outdated(struct error *err)
{
	return error_set(err, TM_E_DENIED,
			 "this key is from before the last 'key rotate': it cannot read the points "
			 "made since; use the present password or key file, or a paper key that "
			 "was printed after the rotation");
}

const char *repo_key_remark(const struct repo *repo)
{
	if (is_outdated(repo))
		return "this key is from before the last 'key rotate': it cannot read the points "
		       "made since";
	return NULL;
}

const char *repo_worn_copy(const struct repo *repo, enum repo_twin twin)
{
	const char *const keys[] = {
		[REPO_TWIN_REPO] = repo->worn_object,
		[REPO_TWIN_SLOT] = repo->worn_slot,
		[REPO_TWIN_DOMAIN] = repo->worn_domain,
	};

	return *keys[twin] ? keys[twin] : NULL;
}

int key_check_reads_all(const struct repo *repo, struct error *err)
{
	return is_outdated(repo) ? outdated(err) : repo_check_right(repo, REPO_MAY_READ, err);
}

/* Whether any domain has a newer data key than this key holds. */
static int check_present(struct repo *repo, struct error *err)
{
	struct domain_ids *l = calloc(1, sizeof(*l));
	int r = l ? domains_list(repo, l, err) : error_nomem(err);

	for (size_t i = 0; r == 0 && i < l->n; i++) {
		auto_domain struct domain d;

		if (l->v[i].generation <= repo->master.generation)
			continue;
		r = domain_load(repo, &l->v[i], false, &d, err); /* not by its name alone */
		r = r ? r : outdated(err);
	}
	free(l);
	return r;
}

int keyring_check_newest(struct repo *repo, struct error *err)
{
	auto_keyring struct keyring *g = NULL;
	int r = keyring_load(repo, &g, err);

	for (size_t i = 0; r == 0 && i < g->n; i++)
		if (g->v[i].usable && g->v[i].slot.generation > repo->master.generation)
			r = outdated(err);
	return r;
}

int keyring_check_change(struct repo *repo, struct error *err)
{
	int r;

	if (!repo->encrypted)
		return error_set(err, TM_E_UNSUPPORTED,
				 "the repository is not encrypted, so there are no keys to change; "
				 "'init --encrypt' makes one that is");
	r = repo_check_right(repo, REPO_MAY_CHANGE_KEYS, err);
	return r ? r : check_present(repo, err);
}
