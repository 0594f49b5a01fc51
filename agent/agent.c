/* SPDX-License-Identifier: Apache-2.0 */
#include "agent.h"
#include "deadline.h"
#include "secret.h"

#include <errno.h>
#include <limits.h>
#include <string.h>

void agent_block_signals(sigset_t *ret_was)
{
	sigset_t ends;

	(void)sigemptyset(&ends);
	(void)sigaddset(&ends, SIGINT);
	(void)sigaddset(&ends, SIGTERM);
	(void)sigaddset(&ends, SIGHUP);
	(void)pthread_sigmask(SIG_BLOCK, &ends, ret_was);
}

/* Signals come to who waits for a person or a repository, and not to a worker. */
static int start_pool(struct agent *a, struct error *err)
{
	sigset_t was;
	int r;

	agent_block_signals(&was);
	r = pool_new(a->loop, 0, &a->pool, err);
	(void)pthread_sigmask(SIG_SETMASK, &was, NULL);
	return r;
}

int agent_start(struct agent *a, struct error *err)
{
	int r = secrets_start(a, err);

	if (!r)
		r = loop_new(AGENT_LOOP_DEPTH, &a->loop, err);
	if (!r)
		r = start_pool(a, err);
	if (!r && !(a->warnings = json_array()))
		r = error_nomem(err);
	return r;
}

void agent_stop(struct agent *a)
{
	repo_free(a->repo);
	pool_free(a->pool);
	loop_free(a->loop);
	json_decref(a->warnings);
	free(a->state_dir);
	free(a->repo_url);
	secrets_stop(a);
}

/* "sftp:host:/x": somebody means a kind of repository that is kept elsewhere. */
static bool names_a_kind(const char *spec)
{
	size_t len = strcspn(spec, "/:");

	return len && spec[len] == ':';
}

/* The directory named by -r: "DIR" or "file:DIR". */
static int repo_path(const struct agent *a, const char **ret, struct error *err)
{
	const char *spec = a->opt.repo;

	if (strncmp(spec, "file:", 5) == 0)
		spec += 5;
	else if (strncmp(spec, "s3:", 3) == 0)
		return error_set(err, TM_E_UNSUPPORTED,
				 "%s: this version keeps repositories in directories only", spec);
	else if (names_a_kind(spec))
		return error_set(
			err, TM_E_USAGE,
			"'%s': this version keeps repositories in directories only; one of "
			"that name is './%s'",
			spec, spec);
	if (!*spec)
		return error_set(err, TM_E_USAGE, "the repository's name is empty");
	*ret = spec;
	return 0;
}

int agent_open_store(struct agent *a, bool create, struct store **ret, struct error *err)
{
	const char *path = NULL;
	auto_free char *real = NULL;
	int r = repo_path(a, &path, err);

	if (!r)
		r = store_dir_open(a->loop, path, create, ret, err);
	if (r)
		return r;
	real = realpath(path, NULL);
	free(a->repo_url);
	a->repo_url = NULL;
	r = text_format(&a->repo_url, err, "file:%s", real ? real : path);
	if (r) {
		store_free(*ret);
		*ret = NULL;
	}
	return r;
}

void agent_warn_opened(struct agent *a)
{
	static const char *const twins[] = {
		[REPO_TWIN_REPO] = "the repository's object",
		[REPO_TWIN_SLOT] = "this key's slot",
		[REPO_TWIN_DOMAIN] = "the domain's object",
	};

	if (repo_key_remark(a->repo))
		say_warning(a, "%s", repo_key_remark(a->repo));
	for (int i = 0; i < (int)ARRAY_SIZE(twins); i++) {
		const char *key = repo_worn_copy(a->repo, (enum repo_twin)i);

		if (key)
			say_warning(a,
				    "of the two copies of %s one is damaged or missing (%s); "
				    "'tidemark key repair' puts it again",
				    twins[i], key);
	}
}

int agent_open_unbounded(struct agent *a, struct error *err)
{
	struct repo_credentials cred = secret_credentials(a);
	bool mend = a->opt.command == CMD_KEY && strcmp(a->opt.args.v[0], "repair") == 0;
	struct store *st = NULL;
	int r = agent_open_store(a, false, &st, err);

	if (r)
		return r;
	r = mend ? repo_open_mending(st, &cred, &a->repo, err)
		 : repo_open_with(st, &cred, &a->repo, err);
	if (!r && a->opt.domain)
		r = repo_domain_use(a->repo, a->opt.domain, err);
	if (r)
		error_prefix(err, "repository %s", a->opt.repo);
	else if (a->warnings && !mend)
		agent_warn_opened(a);
	return r;
}

/* A server that is dead mostly is so when a command begins; nothing else would end its wait. */
int agent_open_repo(struct agent *a, struct error *err)
{
	struct deadline deadline;
	int r = deadline_begin(&deadline, a->opt.repo, err);

	if (r)
		return r;
	r = agent_open_unbounded(a, err);
	deadline_end(&deadline);
	return r;
}

static int in_domain(struct agent *a, const struct repo_domain *d, agent_domain_fn *fn, void *data,
		     size_t left, struct error *err)
{
	int r = d->problem ? error_set(err, TM_E_CORRUPT, "%s", d->problem)
			   : repo_domain_use_id(a->repo, &d->id, err);

	r = r ? r : fn(a, data, left, err);
	if (r && *d->name)
		error_prefix(err, "domain %s", d->name);
	return r;
}

int agent_result(struct agent *a, int so_far, int r, const struct error *one, struct error *err)
{
	if (so_far && r == TM_E_CANCELED) {
		say_error(a, err);
		error_clear(err);
		return error_pass(err, r, one);
	}
	if (so_far && r)
		say_error(a, one);
	return so_far ? so_far : error_pass(err, r, one);
}

int agent_each_domain(struct agent *a, agent_domain_fn *fn, void *data, struct error *err)
{
	auto_domain_list struct repo_domain_list l = {0};
	int r, first = 0;

	if (a->opt.domain)
		return fn(a, data, 1, err);
	r = repo_domains(a->repo, &l, err);
	for (size_t i = 0; r != TM_E_CANCELED && i < l.n; i++) {
		struct error one = {0};

		r = in_domain(a, &l.v[i], fn, data, l.n - i, &one);
		first = agent_result(a, first, r, &one, err);
	}
	return first ? first : r;
}

int agent_state_dir(struct agent *a, struct error *err)
{
	const char *dir = getenv("TIDEMARK_STATE_DIR"), *xdg = getenv("XDG_STATE_HOME"),
		   *home = getenv("HOME");
	int r;

	if (a->state_dir)
		return 0;
	if (dir && *dir)
		r = text_copy(dir, &a->state_dir, err);
	else if (xdg && *xdg)
		r = text_format(&a->state_dir, err, "%s/tidemark", xdg);
	else if (geteuid() == 0)
		r = text_copy("/var/lib/tidemark", &a->state_dir, err);
	else if (home && *home)
		r = text_format(&a->state_dir, err, "%s/.local/state/tidemark", home);
	else
		return error_set(err, TM_E_USAGE,
				 "no place for the state of this host: set TIDEMARK_STATE_DIR");
	if (!r)
		r = io_mkdirs(a->state_dir, err);
	if (r)
		error_prefix(err, "state directory");
	return r;
}

int agent_check_interrupt(struct error *err)
{
	if (!agent_interrupted)
		return 0;
	return error_set(err, TM_E_CANCELED, "interrupted");
}
