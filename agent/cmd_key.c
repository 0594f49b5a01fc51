/* SPDX-License-Identifier: Apache-2.0 */
/* key list, add, remove, passwd, rotate, repair and export. */
#include "agent.h"
#include "secret.h"

#include <stdio.h>
#include <string.h>

/* What a key opens: a domain's name, or its id when only others' keys tell the name; NULL: all. */
static const char *domain_of(const struct repo_key *k, const struct repo_domain_list *domains,
			     struct tm_id_text *id)
{
	if (id_is_zero(&k->domain))
		return NULL;
	for (size_t i = 0; i < domains->n; i++)
		if (id_equal(&domains->v[i].id, &k->domain) && !domains->v[i].problem)
			return domains->v[i].name;
	*id = id_text(&k->domain);
	return id->s;
}

static json_t *key_json(const struct repo_key *k, const struct repo_domain_list *domains)
{
	struct tm_id_text id;
	char created[TIME_TEXT_MAX];

	if (k->problem)
		return json_pack("{s:s, s:n, s:n, s:n, s:n, s:n, s:b, s:i, s:s}", "key",
				 id_text(&k->id).s, "role", "label", "kdf", "created", "domain",
				 "own", 0, "copies", 0, "problem", k->problem);
	time_format_utc(k->created_ms, created);
	return json_pack("{s:s, s:s, s:s, s:s, s:s?, s:b, s:i, s:o}", "key", id_text(&k->id).s,
			 "role", repo_role_name(k->role), "kdf", k->kdf, "created", created,
			 "domain", domain_of(k, domains, &id), "own", (int)k->own, "copies",
			 (int)k->copies, "label", json_text(k->label));
}

static void print_key(const struct repo_key *k, const struct repo_domain_list *domains)
{
	const char *domain;
	char when[TIME_TEXT_MAX];
	struct tm_id_text id;

	if (k->problem) {
		(void)printf("%.12s  cannot be used: %s\n", id_text(&k->id).s, shown(k->problem).s);
		return;
	}
	time_format_local(k->created_ms, when);
	domain = domain_of(k, domains, &id);
	(void)printf("%.12s%c %-8s %-9s %s  %s  %s%s\n", id_text(&k->id).s, k->own ? '*' : ' ',
		     repo_role_name(k->role), k->kdf, when,
		     shown_column(domain ? domain : "(all)", 12).s, shown(k->label).s,
		     k->copies < 2 ? "  (one copy is damaged or missing: key repair)" : "");
}

/* What opening has not told of already. */
static void warn_copies(struct agent *a, const struct repo_key *k)
{
	if (!k->problem && k->copies < 2 && !(k->own && repo_worn_copy(a->repo, REPO_TWIN_SLOT)))
		say_warning(a,
			    "of the two copies of key %.12s one is damaged or missing; "
			    "'tidemark key repair' puts it again",
			    id_text(&k->id).s);
}

static int key_list(struct agent *a, struct error *err)
{
	auto_domain_list struct repo_domain_list domains = {0};
	auto_key_list struct repo_key_list l = {0};
	int r = repo_keys(a->repo, &l, err);
	json_t *out;

	r = r ? r : repo_domains(a->repo, &domains, err);
	if (r)
		return r;
	for (size_t i = 0; i < l.n; i++)
		warn_copies(a, &l.v[i]);
	if (!a->opt.json) {
		(void)printf("%-12s  %-8s %-9s %-19s  %-12s  %s\n", "KEY", "ROLE", "KIND",
			     "CREATED", "DOMAIN", "LABEL");
		for (size_t i = 0; i < l.n; i++)
			print_key(&l.v[i], &domains);
		(void)printf("* in use now\n");
		return 0;
	}
	out = json_array();
	for (size_t i = 0; i < l.n && !r; i++)
		if (json_array_append_new(out, key_json(&l.v[i], &domains)))
			r = error_nomem(err);
	if (!r)
		return print_json(out, err);
	json_decref(out);
	return r;
}

/* By the beginning of its id. */
static int find_key(struct agent *a, const char *text, struct tm_id *ret, struct error *err)
{
	auto_key_list struct repo_key_list l = {0};
	size_t len = strlen(text), found = 0;
	int r = repo_keys(a->repo, &l, err);

	if (r)
		return r;
	for (size_t i = 0; i < l.n; i++) {
		if (len < 4 || strncmp(id_text(&l.v[i].id).s, text, len) != 0)
			continue;
		*ret = l.v[i].id;
		found++;
	}
	if (found == 1)
		return 0;
	return found ? error_set(err, TM_E_USAGE, "several keys begin with '%s'", text)
		     : error_set(err, TM_E_NOTFOUND,
				 "there is no key '%s'; 'key list' shows them, 4 digits are enough",
				 text);
}

static int say_key(struct agent *a, const struct tm_id *id, const char *done, struct error *err)
{
	if (a->opt.json)
		return print_json_warned(a, json_pack("{s:s}", "key", id_text(id).s), err);
	(void)printf("%s %.12s\n", done, id_text(id).s);
	return 0;
}

static int key_add(struct agent *a, struct error *err)
{
	struct repo_secret secret;
	struct tm_id id;
	int r = repo_check_right(a->repo, REPO_MAY_CHANGE_KEYS, err);

	r = r ? r : secret_new(a, &secret, err);
	if (r)
		return r;
	r = repo_key_add(a->repo,
			 &(struct repo_key_options){.role = a->opt.role,
						    .label = a->opt.label,
						    .one_domain = a->opt.domain != NULL},
			 &secret, &id, err);
	if (r == TM_E_EXISTS && a->opt.new_key_file)
		error_prefix(err, "%s", a->opt.new_key_file);
	if (r)
		secret_forget(a);
	return r ? r : say_key(a, &id, "added key", err);
}

static int key_remove(struct agent *a, struct error *err)
{
	struct tm_id id;
	int r = find_key(a, a->opt.args.v[1], &id, err);

	r = r ? r : repo_key_remove(a->repo, &id, err);
	return r ? r : say_key(a, &id, "removed key", err);
}

static int key_passwd(struct agent *a, struct error *err)
{
	struct repo_secret secret;
	struct tm_id id;
	int r = secret_new(a, &secret, err);

	if (r)
		return r;
	r = repo_key_change(a->repo, &secret, &id, err);
	if (r)
		error_append(err, "; the old password or key file still opens");
	return r ? r : say_key(a, &id, "changed; the key is now", err);
}

static int key_rotate(struct agent *a, struct error *err)
{
	struct repo_secret secret = secret_used(a);
	struct tm_id id;
	int r = repo_key_rotate(a->repo, a->opt.domain != NULL, &secret, &id, err);

	if (r)
		return r;
	say(a, "new points have a new data key; print a new paper key with 'key export'");
	return say_key(a, &id, "rotated; the key is now", err);
}

static int key_repair(struct agent *a, struct error *err)
{
	size_t n = 0;
	int r = repo_keys_repair(a->repo, &n, err);

	if (r)
		return r;
	if (a->opt.json)
		return print_json_warned(a, json_pack("{s:I}", "repaired", (json_int_t)n), err);
	(void)printf("%zu cop%s written again\n", n, n == 1 ? "y" : "ies");
	return 0;
}

static int key_export(struct agent *a, struct error *err)
{
	char *text = NULL;
	int r = repo_key_paper(a->repo, a->opt.domain != NULL, &text, err);

	if (r)
		return r;
	if (a->opt.json)
		r = print_json_warned(a, json_pack("{s:s}", "paper", text), err);
	else
		(void)fputs(text, stdout);
	explicit_bzero(text, strlen(text));
	free(text);
	return r;
}

static const struct {
	const char *name;
	size_t args;
	bool domain; /* --domain says how far it goes */
	int (*run)(struct agent *a, struct error *err);
} actions[] = {
	{"list", 0, false, key_list},     {"add", 0, true, key_add},
	{"remove", 1, false, key_remove}, {"passwd", 0, false, key_passwd},
	{"rotate", 0, true, key_rotate},  {"repair", 0, false, key_repair},
	{"export", 0, true, key_export},
};

int cmd_key(struct agent *a, enum exit_status *status, struct error *err)
{
	const char *name = a->opt.args.v[0];
	int r;

	(void)status;
	for (size_t i = 0; i < ARRAY_SIZE(actions); i++) {
		if (strcmp(actions[i].name, name) != 0)
			continue;
		if (a->opt.args.n - 1 != actions[i].args)
			return error_set(err, TM_E_USAGE, "key %s takes %s", name,
					 actions[i].args ? "the ID of a key" : "no argument");
		if (a->opt.domain && !actions[i].domain)
			return error_set(err, TM_E_USAGE, "key %s has no option --domain", name);
		r = agent_open_repo(a, err);
		return r ? r : actions[i].run(a, err);
	}
	r = error_set(err, TM_E_USAGE, "key does not know '%s'; it takes", name);
	for (size_t i = 0; i < ARRAY_SIZE(actions); i++)
		error_append(err, "%s %s", i ? "," : "", actions[i].name);
	return r;
}
