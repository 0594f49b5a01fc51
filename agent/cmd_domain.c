/* SPDX-License-Identifier: Apache-2.0 */
/* domain list and add. */
#include "agent.h"

#include <stdio.h>
#include <string.h>

static json_t *domain_json(const struct repo_domain *d)
{
	return json_pack("{s:s, s:s?, s:i, s:s?}", "id", id_text(&d->id).s, "domain",
			 d->problem ? NULL : d->name, "copies", (int)d->copies, "problem",
			 d->problem);
}

/* What opening has not told of already. */
static void warn_copies(struct agent *a, const struct repo_domain *d)
{
	if (d->copies == 1 &&
	    !(id_equal(&d->id, repo_domain(a->repo)) && repo_worn_copy(a->repo, REPO_TWIN_DOMAIN)))
		say_warning(a,
			    "of the two copies of domain %s one is damaged or missing; "
			    "'tidemark key repair' puts it again",
			    shown(d->name).s);
}

static int domain_list(struct agent *a, enum exit_status *status, struct error *err)
{
	auto_domain_list struct repo_domain_list l = {0};
	int r = repo_domains(a->repo, &l, err);
	json_t *out;

	if (r)
		return r;
	for (size_t i = 0; i < l.n; i++) {
		if (l.v[i].problem)
			*status = EXIT_DAMAGE;
		warn_copies(a, &l.v[i]);
	}
	if (!a->opt.json) {
		for (size_t i = 0; i < l.n; i++)
			(void)printf("%.12s  %s%s%s\n", id_text(&l.v[i].id).s,
				     l.v[i].problem ? "cannot be used: " : "",
				     shown(l.v[i].problem ? l.v[i].problem : l.v[i].name).s,
				     l.v[i].copies == 1
					     ? "  (one copy is damaged or missing: key repair)"
					     : "");
		return 0;
	}
	out = json_array();
	for (size_t i = 0; i < l.n && !r; i++)
		if (json_array_append_new(out, domain_json(&l.v[i])))
			r = error_nomem(err);
	if (!r)
		return print_json(out, err);
	json_decref(out);
	return r;
}

static int domain_add(struct agent *a, struct error *err)
{
	const char *name = a->opt.args.v[1];
	struct tm_id id;
	int r = repo_domain_add(a->repo, name, &id, err);

	if (r)
		return r;
	if (a->opt.json)
		return print_json_warned(
			a, json_pack("{s:s, s:s}", "id", id_text(&id).s, "domain", name), err);
	(void)printf("added domain %s\n", name);
	return 0;
}

int cmd_domain(struct agent *a, enum exit_status *status, struct error *err)
{
	const char *action = a->opt.args.v[0];
	bool list = strcmp(action, "list") == 0, add = strcmp(action, "add") == 0;
	int r;

	if (!list && !add)
		return error_set(err, TM_E_USAGE, "domain does not know '%s'; it takes list, add",
				 action);
	if (a->opt.args.n != (list ? 1 : 2))
		return error_set(err, TM_E_USAGE, "domain %s takes %s", action,
				 list ? "no argument" : "the NAME of a domain");
	r = agent_open_repo(a, err);
	if (r)
		return r;
	return list ? domain_list(a, status, err) : domain_add(a, err);
}
