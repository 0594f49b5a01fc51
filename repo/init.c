/* SPDX-License-Identifier: Apache-2.0 */
/* Making and opening a repository. */
#include "cache.h"
#include "domain.h"
#include "keyring.h"
#include "repo_object.h"

#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>

#define DEFAULT_BLOCK_SIZE (64u << 10)

/* ---- init ---- */

/* Without "repo", domains and key slots are what an interrupted init left: they belong to no
 * repository, and readers pass them by. */
static bool is_leftover(const char *key)
{
	struct tm_id id;
	uint32_t generation;
	unsigned copy;

	if (strncmp(key, "keys/", 5) == 0)
		return strlen(key) == 5 + TM_ID_HEX + 1 && hex_decode(key + 5, id.b, sizeof(id.b));
	return name_parse_domain(key, &id, &generation, &copy) && generation == 0;
}

static int any_object(void *data, const char *key, uint64_t size, struct error *err)
{
	(void)data;
	(void)size;
	if (is_leftover(key))
		return 0;
	return error_set(err, TM_E_EXISTS, "there is something already (%s)", key);
}

static int repo_alloc(struct store *st, struct repo **ret, struct error *err)
{
	struct repo *repo = calloc(1, sizeof(*repo));
	int r;

	if (!repo) {
		store_free(st);
		return error_nomem(err);
	}
	(void)mlock(repo, sizeof(*repo)); /* keys do not go to swap, where that is allowed */
	repo->st = st;
	repo->loop = st->loop;
	r = aead_new(&repo->aead, err);
	repo->dctx = ZSTD_createDCtx();
	if (r == 0 && !repo->dctx)
		r = error_nomem(err);
	r = r ? r : cache_new(repo, &repo->cache, err);
	if (r < 0) {
		repo_free(repo);
		return r;
	}
	*ret = repo;
	return 0;
}

static int do_init(struct repo *repo, uint32_t block_size, const struct repo_init_options *opt,
		   struct error *err)
{
	struct format_repo h;
	int r;

	if (block_size < UINT32_C(1) << MIN_BLOCK_BITS ||
	    block_size > UINT32_C(1) << MAX_BLOCK_BITS || (block_size & (block_size - 1)) != 0)
		return error_set(err, TM_E_USAGE,
				 "block size %" PRIu32 " is not a power of two from 4K to 1M",
				 block_size);
	repo->block_bits = (unsigned)__builtin_ctz(block_size);
	r = repo->st->ops->list(repo->st, "", any_object, NULL, err);
	r = r ? r : id_new(&repo->id, err);
	r = r ? r : master_new(&repo->master, err);
	r = r ? r : domain_id_of(repo, DEFAULT_DOMAIN_NAME, &repo->default_domain, err);
	if (r < 0)
		return r;
	repo_object_fill(repo, &h);
	r = domain_put(repo, &repo->default_domain, DEFAULT_DOMAIN_NAME, err);
	r = r ? r : domain_use(repo, &repo->default_domain, err);
	r = r ? r : keyring_init(repo, opt ? opt->label : NULL, opt ? opt->secret : NULL, err);
	r = r ? r : repo_object_put(repo, &h, err);
	if (r == 0)
		store_reserve(repo->st, false);
	return r;
}

int repo_init(struct store *st, const struct repo_init_options *opt, struct repo **ret,
	      struct error *err)
{
	auto_clean(repo_free) struct repo *repo = NULL;
	int r = repo_alloc(st, &repo, err);

	if (r == 0 && opt) {
		repo->encrypted = opt->secret != NULL;
		repo->log2_n = opt->scrypt_log2_n;
	}
	r = r ? r
	      : do_init(repo, opt && opt->block_size ? opt->block_size : DEFAULT_BLOCK_SIZE, opt,
			err);
	if (r == 0)
		*ret = tm_steal(repo);
	return r;
}

/* ---- open ---- */

/* Puts the object of the default domain again: nothing else of it is lost. */
static int restore_default(struct repo *repo, struct error *err)
{
	struct domain_id id = {.id = repo->default_domain, .generation = repo->master.generation};
	struct error none = {0};
	int r = repo_check_right(repo, REPO_MAY_ADD_DOMAINS, err);

	if (r < 0)
		return r;
	r = domain_find(repo, &repo->default_domain, &id, &none);
	if (r < 0 && r != TM_E_NOTFOUND)
		return error_pass(err, r, &none);
	r = domain_restore(repo, &id, DEFAULT_DOMAIN_NAME, err);
	if (r == 0)
		repo->mended = COPIES;
	return r;
}

/* The one to begin with: what mends it is said where it cannot be used. */
static int use_first_domain(struct repo *repo, bool mend, struct error *err)
{
	const struct tm_id *scope = &repo->master.scope;
	bool all = id_is_zero(scope);
	const struct tm_id *id = all ? &repo->default_domain : scope;
	struct error one = {0};
	int r = domain_use(repo, id, &one);

	if (all && mend && (r == TM_E_NOTFOUND || r == TM_E_CORRUPT)) {
		r = restore_default(repo, err);
		return r ? r : domain_use(repo, id, err);
	}
	if (r == TM_E_NOTFOUND || r == TM_E_CORRUPT) {
		error_prefix(&one, "both copies of the object of domain %.12s are lost",
			     id_text(id).s);
		error_append(&one,
			     "; nothing else of it is, and '%s' with a full key of all domains "
			     "puts them again",
			     all ? "tidemark key repair" : "tidemark domain add NAME");
		one.code = r = TM_E_CORRUPT;
	}
	return r < 0 ? error_pass(err, r, &one) : r;
}

static int try_copy(struct keyring *g, const struct format_repo *h,
		    const struct repo_credentials *cred, struct error *err)
{
	int r;

	repo_object_adopt(g->repo, h);
	r = keyring_open(g, cred, err);
	return r ? r : repo_object_prove(g->repo, h, err);
}

static int open_keys(struct repo *repo, const struct repo_credentials *cred, struct error *err)
{
	auto_keyring struct keyring *g = NULL;
	auto_repo_object struct repo_object o;
	struct error one = {0};
	unsigned copy = 0;
	int r;

	repo_object_ask(repo, &o);
	r = keyring_list(repo, &g, &one);
	repo_object_load(repo, false, &o);
	r = r ? r : repo_object_choose(&o, &copy, &one);
	r = r ? r : try_copy(g, &o.h[copy], cred, &one);
	/* its checksum is right, and still it is not what belongs to the keys */
	if (r == TM_E_CORRUPT && repo_object_differs(&o) && try_copy(g, &o.h[1], cred, NULL) == 0) {
		copy = 1;
		r = 0;
	}
	if (r == 0)
		repo_object_worn(&o, copy, repo->worn_object);
	else
		(void)error_pass(err, r, &one);
	return r;
}

static int do_open(struct repo *repo, const struct repo_credentials *cred, bool mend,
		   struct error *err)
{
	int r = open_keys(repo, cred, err);

	return r ? r : use_first_domain(repo, mend, err);
}

static int open_repo(struct store *st, const struct repo_credentials *cred, bool mend,
		     struct repo **ret, struct error *err)
{
	auto_clean(repo_free) struct repo *repo = NULL;
	int r = repo_alloc(st, &repo, err);

	r = r ? r : do_open(repo, cred, mend, err);
	if (r == 0)
		*ret = tm_steal(repo);
	return r;
}

int repo_open_with(struct store *st, const struct repo_credentials *cred, struct repo **ret,
		   struct error *err)
{
	return open_repo(st, cred, false, ret, err);
}

int repo_open_mending(struct store *st, const struct repo_credentials *cred, struct repo **ret,
		      struct error *err)
{
	return open_repo(st, cred, true, ret, err);
}

int repo_open(struct store *st, struct repo **ret, struct error *err)
{
	return repo_open_with(st, NULL, ret, err);
}

void repo_free(struct repo *repo)
{
	if (!repo)
		return;
	cache_free(repo->cache);
	aead_free(repo->aead);
	ZSTD_freeDCtx(repo->dctx);
	store_free(repo->st);
	domain_wipe(&repo->keys);
	master_wipe(&repo->master);
	(void)munlock(repo, sizeof(*repo));
	free(repo);
}

const struct tm_id *repo_id(const struct repo *repo)
{
	return &repo->id;
}

uint32_t repo_block_size(const struct repo *repo)
{
	return UINT32_C(1) << repo->block_bits;
}

uint32_t repo_format(const struct repo *repo)
{
	(void)repo;
	return FORMAT_VERSION;
}
