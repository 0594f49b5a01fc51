/* SPDX-License-Identifier: Apache-2.0 */
#include "apart.h"

#include "deadline.h"

struct apart {
	struct agent agent;
	char *repo; /* agent.opt.repo */
	apart_fn *fn;
	void *data;
};

void apart_free(struct agent *a, struct agent *apart)
{
	struct apart *p;

	if (!apart)
		return;
	p = container_of(apart, struct apart, agent);
	if (json_array_extend(a->warnings, apart->warnings) < 0)
		log_debug("no memory to repeat the warnings in the JSON output");
	a->warned |= apart->warned;
	json_decref(apart->warnings);
	repo_free(apart->repo);
	loop_free(apart->loop);
	free(apart->repo_url);
	free(p->repo);
	free(p->data);
	free(p);
}

/* data is taken over on success. */
static int apart_new(const struct agent *a, const char *repo, apart_fn *fn, void *data,
		     struct agent **ret, struct error *err)
{
	struct apart *p = calloc(1, sizeof(*p));
	int r = p ? text_copy(repo ? repo : a->opt.repo, &p->repo, err) : error_nomem(err);

	if (!r && !(p->agent.warnings = json_array()))
		r = error_nomem(err);
	if (!r)
		r = loop_new(AGENT_LOOP_DEPTH, &p->agent.loop, err);
	if (r) {
		if (p) {
			json_decref(p->agent.warnings);
			free(p->repo);
		}
		free(p);
		return r;
	}
	p->agent.opt = a->opt;
	p->agent.opt.repo = p->repo;
	if (repo)
		p->agent.opt.domain = NULL;
	p->agent.secrets = a->secrets;
	p->fn = fn;
	p->data = data;
	*ret = &p->agent;
	return 0;
}

static int ask(void *data, struct error *err)
{
	struct apart *p = data;
	int r = agent_open_unbounded(&p->agent, err);

	return r || !p->fn ? r : p->fn(&p->agent, p->data, err);
}

int apart_open(struct agent *a, const char *repo, apart_fn *fn, void *data, struct agent **ret,
	       struct error *err)
{
	struct agent *apart = NULL;
	int r;

	if (a->hung)
		r = error_set(err, TM_E_TIMEOUT,
			      "repository %s is not asked, after another one "
			      "that has not answered",
			      repo ? repo : a->opt.repo);
	else
		r = apart_new(a, repo, fn, data, &apart, err);
	if (r) {
		free(data);
		return r;
	}
	r = deadline_call(ask, container_of(apart, struct apart, agent), apart->opt.repo, &a->hung,
			  err);
	if (!r)
		*ret = apart;
	else if (!a->hung)
		apart_free(a, apart);
	return r;
}
