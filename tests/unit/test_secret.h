/* SPDX-License-Identifier: Apache-2.0 */
/* Encrypted repositories for tests: secrets, opening anew, copies of all objects to be changed. */
#pragma once

#include "test_repo.h"

#include "repo/internal.h"

#define SECRET_BS 4096
#define LOG2_N    4 /* of scrypt: quick */

struct secret_box {
	struct repo_secret s;
	unsigned asked;
};

static inline int give(void *data, struct repo_secret *ret, struct error *err)
{
	struct secret_box *box = data;

	(void)err;
	box->asked++;
	*ret = box->s;
	return 0;
}

static inline struct repo_secret password(const char *text)
{
	return (struct repo_secret){REPO_SECRET_PASSWORD, text, strlen(text)};
}

static inline struct repo_secret key_file(const char *text)
{
	return (struct repo_secret){REPO_SECRET_KEY_FILE, text, strlen(text)};
}

static inline int key_add(struct repo *repo, enum repo_role role, const char *label,
			  const struct repo_secret *secret, struct tm_id *ret, struct error *err)
{
	return repo_key_add(repo, &(struct repo_key_options){.role = role, .label = label}, secret,
			    ret, err);
}

/* A rig whose repository is encrypted under "first". */
static inline void rig_up_encrypted(struct rig *rig, uint64_t seed)
{
	struct repo_secret first = password("first");
	const struct repo_init_options opt = {.block_size = SECRET_BS,
					      .secret = &first,
					      .label = "mine",
					      .scrypt_log2_n = LOG2_N};
	struct error err = {0};

	*rig = (struct rig){.random = seed | 1, .now = 1700000000000};
	assert_int_equal(loop_new(64, &rig->loop, NULL), 0);
	assert_int_equal(pool_new(rig->loop, 2, &rig->pool, NULL), 0);
	rig->store = rig_store(rig);
	if (repo_init(&rig->store->st, &opt, &rig->repo, &err) < 0)
		fail_msg("%s", err.text);
}

/* Opens the repository anew; after a failure there is none left. */
static inline int reopen(struct rig *rig, const struct repo_secret *secret, struct error *err)
{
	struct secret_box box = {.s = secret ? *secret : (struct repo_secret){0}};
	const struct repo_credentials cred = {.get = give, .data = &box, .given = secret != NULL};
	struct store *below = rig->store->below;
	struct failing *fresh = calloc(1, sizeof(*fresh));
	int r;

	error_clear(err);
	rig->store->below = NULL;
	repo_free(rig->repo);
	rig->repo = NULL;
	*fresh = (struct failing){.st = {.ops = &failing_ops, .loop = rig->loop}, .below = below};
	rig->store = fresh;
	r = repo_open_with(&fresh->st, secret ? &cred : NULL, &rig->repo, err);
	if (r == 0)
		rig->repo->log2_n = LOG2_N;
	return r;
}

/* All objects, so that they can be changed and opened as another repository. */
struct copy {
	char key[300][KEY_MAX];
	struct buf bytes[300];
	size_t n;
};

struct copy_run {
	struct copy *c;
	struct store *st;
};

static inline int copy_name(void *data, const char *key, uint64_t size, struct error *err)
{
	struct copy_run *run = data;

	(void)size;
	(void)err;
	assert_true(run->c->n < ARRAY_SIZE(run->c->key));
	(void)snprintf(run->c->key[run->c->n++], KEY_MAX, "%s", key);
	return 0;
}

static inline struct copy *copy_store(struct store *st)
{
	struct copy *c = calloc(1, sizeof(*c));
	struct copy_run run = {c, st};

	assert_non_null(c);
	assert_int_equal(st->ops->list(st, "", copy_name, &run, NULL), 0);
	for (size_t i = 0; i < c->n; i++)
		assert_int_equal(store_read(st, c->key[i], 64 << 20, &c->bytes[i], NULL), 0);
	return c;
}

static inline void copy_free(struct copy *c)
{
	for (size_t i = 0; i < c->n; i++)
		buf_done(&c->bytes[i]);
	free(c);
}

static inline struct failing *copy_to_store(struct rig *rig, const struct copy *c)
{
	struct failing *f = rig_store(rig);

	for (size_t i = 0; i < c->n; i++)
		assert_int_equal(store_put_wait(f->below, c->key[i], c->bytes[i].data,
						c->bytes[i].len, NULL),
				 0);
	return f;
}

/* Can a repository of these objects be opened so?  *ret_repo may be NULL. */
static inline int open_copy(struct rig *rig, const struct copy *c, const struct repo_secret *secret,
			    struct repo **ret_repo, struct error *err)
{
	struct secret_box box = {.s = secret ? *secret : (struct repo_secret){0}};
	const struct repo_credentials cred = {.get = give, .data = &box, .given = secret != NULL};
	struct failing *f = copy_to_store(rig, c);
	struct repo *repo = NULL;
	int r;

	error_clear(err);
	r = repo_open_with(&f->st, secret ? &cred : NULL, &repo, err);
	if (ret_repo && r == 0)
		*ret_repo = repo;
	else
		repo_free(repo);
	return r;
}

static inline int open_now(struct rig *rig, const struct repo_secret *secret, struct error *err)
{
	struct copy *c = copy_store(rig->store->below);
	int r = open_copy(rig, c, secret, NULL, err);

	copy_free(c);
	return r;
}

static inline void assert_opens(struct rig *rig, const char *text)
{
	struct repo_secret s = password(text);
	struct error err = {0};

	if (open_now(rig, &s, &err) < 0)
		fail_msg("%s: %s", text, err.text);
}

static inline void assert_denied(struct rig *rig, const struct repo_secret *secret,
				 const char *word)
{
	struct error err = {0};

	assert_int_equal(open_now(rig, secret, &err), TM_E_DENIED);
	if (!strstr(err.text, word))
		fail_msg("'%s' is not in: %s", word, err.text);
}
