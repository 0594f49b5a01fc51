/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Making and opening a repository.  The object "repo" is written last: without it
 * there is no repository.
 */
#include "cache.h"
#include "internal.h"

#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>

#define DEFAULT_BLOCK_SIZE (64u << 10)

/* ---- encoding of the two descriptors ---- */

static int mac_with(const struct secret *meta, const char *label, const void *bytes, size_t len,
		    uint8_t ret[KEY_BYTES], struct error *err)
{
	auto_secret struct secret key = {{0}};
	int r = derive(meta, label, strlen(label), &key, err);

	return r < 0 ? r : mac_once(&key, bytes, len, ret, err);
}

static int repo_mac(const struct secret *meta, const struct format_repo *h, uint8_t ret[KEY_BYTES],
		    struct error *err)
{
	return mac_with(meta, "tidemark repo", h, offsetof(struct format_repo, mac), ret, err);
}

static int domain_mac(const struct secret *meta, const struct format_domain *h,
		      uint8_t ret[KEY_BYTES], struct error *err)
{
	return mac_with(meta, "tidemark domain", h, offsetof(struct format_domain, mac), ret, err);
}

static int put_repo(const struct repo *repo, struct error *err)
{
	struct format_repo h = {
		.domain = repo->domain,
		.data_slots_log2 = DATA_SLOTS_LOG2,
		.map_slots_log2 = MAP_SLOTS_LOG2,
		.block_bits = (uint8_t)repo->block_bits,
		.cipher = CIPHER_AES256_GCM,
		.id_alg = ID_ALG_HMAC_SHA256,
		.encrypted = repo->encrypted,
	};
	int r;

	format_head_init(&h.head, MAGIC_REPO, sizeof(h), &repo->id);
	r = repo_mac(&repo->master.meta, &h, h.mac, err);
	if (r < 0)
		return r;
	format_head_seal(&h, sizeof(h));
	return store_put_wait(repo->st, "repo", &h, sizeof(h), err);
}

int put_domain(const struct repo *repo, struct error *err)
{
	struct format_domain h = {
		.domain = repo->domain,
		.generation = le32_of(repo->keys.generation),
	};
	char key[KEY_MAX];
	int r;

	format_head_init(&h.head, MAGIC_DOMAIN, sizeof(h), &repo->id);
	memcpy(h.data_public, repo->keys.data_public, KEY_BYTES);
	r = domain_mac(&repo->keys.meta, &h, h.mac, err);
	if (r < 0)
		return r;
	format_head_seal(&h, sizeof(h));
	name_domain(repo, repo->keys.generation, key);
	return store_put_wait(repo->st, key, &h, sizeof(h), err);
}

/* ---- init ---- */

/* Without "repo", domains and key slots are what an interrupted init left: they belong to no
 * repository, and readers pass them by. */
static bool is_leftover(const char *key)
{
	struct tm_id id;
	size_t len = strlen(key);

	if (strncmp(key, "keys/", 5) == 0)
		return len == 5 + TM_ID_HEX + 1 && hex_decode(key + 5, id.b, sizeof(id.b));
	return strncmp(key, "d/", 2) == 0 && len == 2 + TM_ID_HEX + 4 &&
	       hex_decode(key + 2, id.b, sizeof(id.b)) && strcmp(key + 2 + TM_ID_HEX, "/dom") == 0;
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
	r = cache_new(repo, &repo->cache, err);
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
	int r;

	if (block_size < UINT32_C(1) << MIN_BLOCK_BITS ||
	    block_size > UINT32_C(1) << MAX_BLOCK_BITS || (block_size & (block_size - 1)) != 0)
		return error_set(err, TM_E_USAGE,
				 "block size %" PRIu32 " is not a power of two from 4K to 1M",
				 block_size);
	repo->block_bits = (unsigned)__builtin_ctz(block_size);
	r = repo->st->ops->list(repo->st, "", any_object, NULL, err);
	r = r ? r : id_new(&repo->id, err);
	r = r ? r : id_new(&repo->domain, err);
	r = r ? r : master_new(&repo->master, err);
	r = r ? r : domain_derive(&repo->master, &repo->domain, &repo->keys, err);
	r = r ? r : put_domain(repo, err);
	r = r ? r : keyring_init(repo, opt ? opt->label : NULL, opt ? opt->secret : NULL, err);
	return r ? r : put_repo(repo, err);
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

static int read_repo(struct repo *repo, struct format_repo *ret, struct error *err)
{
	auto_buf struct buf b = {0};
	int r = store_read(repo->st, "repo", 64 << 10, &b, err);

	if (r == TM_E_NOTFOUND) {
		error_clear(err);
		return error_set(err, TM_E_NOTFOUND,
				 "this is not a Tidemark repository (it has no object 'repo')");
	}
	if (r < 0)
		return r;
	r = format_head_check(b.data, b.len, MAGIC_REPO, sizeof(*ret), NULL, "the repository", err);
	if (r < 0)
		return r;
	if (b.len != sizeof(*ret))
		return error_set(err, TM_E_CORRUPT, "object repo is %zu bytes, expected %zu", b.len,
				 sizeof(*ret));
	memcpy(ret, b.data, sizeof(*ret));
	if (ret->cipher != CIPHER_AES256_GCM || ret->id_alg != ID_ALG_HMAC_SHA256 ||
	    ret->data_slots_log2 != DATA_SLOTS_LOG2 || ret->map_slots_log2 != MAP_SLOTS_LOG2 ||
	    ret->block_bits < MIN_BLOCK_BITS || ret->block_bits > MAX_BLOCK_BITS)
		return error_set(err, TM_E_UNSUPPORTED,
				 "the repository has parameters this program does not know");
	repo->id = ret->head.repo;
	repo->domain = ret->domain;
	repo->block_bits = ret->block_bits;
	if (ret->encrypted > 1)
		return error_set(err, TM_E_UNSUPPORTED,
				 "the repository is encrypted in a way this program does not know");
	repo->encrypted = ret->encrypted;
	return 0;
}

struct newest_domain {
	const struct repo *repo;
	uint32_t generation;
	bool found;
};

/* "d/<dom>/dom" or "d/<dom>/dom.<gggg>" */
static int see_domain(void *data, const char *key, uint64_t size, struct error *err)
{
	struct newest_domain *d = data;
	char first[KEY_MAX], exact[KEY_MAX];
	unsigned long g = 0;

	(void)size;
	(void)err;
	name_domain(d->repo, 0, first);
	if (key[strlen(first)] == '.')
		g = strtoul(key + strlen(first) + 1, NULL, 16);
	if (g >= MAX_DATA_KEYS)
		return 0;
	name_domain(d->repo, (uint32_t)g, exact);
	if (strcmp(key, exact) != 0)
		return 0;
	d->found = true;
	if (g > d->generation)
		d->generation = (uint32_t)g;
	return 0;
}

/* Who holds the data key does not have to believe the object. */
static int check_public(const struct repo *repo, const struct format_domain *h, const char *key,
			struct error *err)
{
	uint32_t g = le32_get(h->generation);
	const struct domain_keys *k = &repo->keys;
	uint8_t pk[KEY_BYTES];
	int r;

	if (!(k->has & KEY_HAS_DATA) || g > k->generation)
		return 0;
	r = data_public(g == k->generation ? &k->data : &k->old[g], pk, err);
	if (r == 0 && memcmp(pk, h->data_public, sizeof(pk)) != 0)
		return error_set(err, TM_E_CORRUPT, "%s holds a public key that is not ours", key);
	return r;
}

static int check_domain(const struct repo *repo, const struct format_domain *h, size_t len,
			uint32_t generation, const char *key, struct error *err)
{
	uint8_t mac[KEY_BYTES];
	int r;

	if (len != sizeof(*h) || !id_equal(&h->domain, &repo->domain) ||
	    le32_get(h->generation) != generation)
		return error_set(err, TM_E_CORRUPT, "%s: length, id or generation is wrong", key);
	r = domain_mac(&repo->keys.meta, h, mac, err);
	if (r == 0 && !equal_secret(mac, h->mac, sizeof(mac)))
		return error_set(err, TM_E_CORRUPT,
				 "%s was not written with this repository's keys", key);
	return r ? r : check_public(repo, h, key, err);
}

static int read_domain(struct repo *repo, struct error *err)
{
	struct newest_domain newest = {.repo = repo};
	auto_buf struct buf b = {0};
	struct format_domain h;
	char key[KEY_MAX];
	int r;

	name_domain(repo, 0, key);
	r = repo->st->ops->list(repo->st, key, see_domain, &newest, err);
	if (r == 0 && !newest.found)
		return error_set(err, TM_E_CORRUPT, "object %s is missing", key);
	name_domain(repo, newest.generation, key);
	r = r ? r : store_read(repo->st, key, 64 << 10, &b, err);
	if (r < 0)
		return r;
	r = format_head_check(b.data, b.len, MAGIC_DOMAIN, sizeof(h), &repo->id, key, err);
	if (r < 0)
		return r;
	memcpy(&h, b.data, sizeof(h));
	r = check_domain(repo, &h, b.len, newest.generation, key, err);
	if (r == 0) {
		memcpy(repo->keys.data_public, h.data_public, KEY_BYTES);
		repo->keys.public_generation = newest.generation;
	}
	return r;
}

static int do_open(struct repo *repo, const struct repo_credentials *cred, struct error *err)
{
	uint8_t mac[KEY_BYTES];
	struct format_repo h;
	int r;

	r = read_repo(repo, &h, err);
	r = r ? r : keyring_open(repo, cred, err);
	r = r ? r : repo_mac(&repo->master.meta, &h, mac, err);
	if (r < 0)
		return r;
	if (!equal_secret(mac, h.mac, sizeof(mac)))
		return error_set(err, TM_E_CORRUPT,
				 "object repo was not written with the repository's keys");
	r = domain_derive(&repo->master, &repo->domain, &repo->keys, err);
	return r ? r : read_domain(repo, err);
}

int repo_open_with(struct store *st, const struct repo_credentials *cred, struct repo **ret,
		   struct error *err)
{
	auto_clean(repo_free) struct repo *repo = NULL;
	int r = repo_alloc(st, &repo, err);

	r = r ? r : do_open(repo, cred, err);
	if (r == 0)
		*ret = tm_steal(repo);
	return r;
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
