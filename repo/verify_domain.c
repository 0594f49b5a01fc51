/* SPDX-License-Identifier: Apache-2.0 */
/* What all points hang on: both copies of the repository's object, of each domain's and of key
 * slots, and points that have no domain. */
#include "domain.h"
#include "keyring.h"
#include "repo_object.h"
#include "verify.h"

#include <stdio.h>
#include <string.h>

static int check_copies(const struct copies_read *c, const struct copy_names *n,
			struct repo_verify_report *report, struct error *err)
{
	int r = 0;

	for (unsigned copy = 0; r == 0 && copy < COPIES; copy++) {
		report->objects += c->copies.there[copy];
		if (c->copies.whole[copy]) {
			report->bytes += c->copies.bytes.len;
			continue;
		}
		if (c->err[copy].code && !verify_is_damage(c->err[copy].code) &&
		    c->err[copy].code != TM_E_NOTFOUND) {
			r = error_pass(err, c->err[copy].code, &c->err[copy]);
		} else {
			r = damage_add(report, n->key[copy],
				       c->err[copy].code ? c->err[copy].text
							 : "it differs from the other copy",
				       err);
		}
	}
	return r;
}

static int check_repo_object(struct repo *repo, struct repo_verify_report *report,
			     struct error *err)
{
	struct copy_names n = repo_object_names();
	auto_repo_object struct repo_object o;

	repo_object_ask(repo, &o);
	repo_object_load(repo, true, &o);
	return check_copies(&o.read, &n, report, err);
}

static int check_domain(struct repo *repo, const struct domain_id *id,
			struct repo_verify_report *report, struct error *err)
{
	struct copy_names n = domain_copy_names(&id->id, id->generation);
	struct copies_read c;
	int r = domain_copies_load(repo, id, &c, err);

	r = r ? r : check_copies(&c, &n, report, err);
	buf_done(&c.copies.bytes);
	return r;
}

/* One copy that is missing may be what an interrupted change of keys left. */
static int check_slots(struct repo *repo, struct repo_verify_report *report, struct error *err)
{
	auto_keyring struct keyring *g = NULL;
	int r = keyring_list(repo, &g, err);

	r = r ? r : keyring_read(g, true, err);
	for (size_t i = 0; r == 0 && i < g->n; i++) {
		struct copy_names n = name_keys(&g->v[i].kid);

		for (unsigned copy = 0; r == 0 && copy < COPIES; copy++)
			if (g->v[i].bad[copy])
				r = damage_add(report, n.key[copy], "a copy of a key is damaged",
					       err);
	}
	return r;
}

/* ---- points without a domain ---- */

struct find_folders {
	struct id_set ids;
	char last[KEY_MAX]; /* "d/<dom>/" of the last object */
};

static int see_object(void *data, const char *key, uint64_t size, struct error *err)
{
	static const size_t len = 2 + TM_ID_HEX + 1; /* of the folder's name */
	struct find_folders *f = data;
	struct tm_id id;

	(void)size;
	if (strlen(key) <= len || key[len - 1] != '/' || strncmp(key, f->last, len) == 0)
		return 0;
	memcpy(f->last, key, len);
	f->last[len] = 0;
	if (!hex_decode(key + 2, id.b, sizeof(id.b)))
		return 0; /* something foreign */
	return id_set_add(&f->ids, &id, err);
}

static bool has_domain(const struct domain_ids *l, const struct tm_id *id)
{
	for (size_t i = 0; i < l->n; i++)
		if (id_equal(&l->v[i].id, id))
			return true;
	return false;
}

static int check_folders(const struct find_folders *f, const struct domain_ids *l,
			 struct repo_verify_report *report, struct error *err)
{
	int r = 0;

	for (size_t i = 0; r == 0 && i < f->ids.n; i++) {
		char key[KEY_MAX];

		if (has_domain(l, &f->ids.v[i]))
			continue;
		(void)snprintf(key, sizeof(key), "d/%s/", id_text(&f->ids.v[i]).s);
		r = damage_add(report, key,
			       "both copies of its domain's object are missing; 'domain add' with "
			       "the domain's name puts them again",
			       err);
	}
	return r;
}

int repo_verify_domains(struct repo *repo, struct repo_verify_report *ret, struct error *err)
{
	struct domain_ids *l = calloc(1, sizeof(*l));
	struct find_folders f = {0};
	int r = l ? check_repo_object(repo, ret, err) : error_nomem(err);

	r = r ? r : check_slots(repo, ret, err);
	/* folders first: what lies in one was put after its domain */
	if (r == 0 && id_is_zero(&repo->master.scope))
		r = repo->st->ops->list(repo->st, "d/", see_object, &f, err);
	r = r ? r : domains_list(repo, l, err);
	for (size_t i = 0; r == 0 && i < l->n; i++)
		r = check_domain(repo, &l->v[i], ret, err);
	r = r ? r : check_folders(&f, l, ret, err);
	id_set_done(&f.ids);
	free(l);
	return r;
}
