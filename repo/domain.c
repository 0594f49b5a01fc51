/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Domains: what shares keys, deduplication and deletion.  Holders of the master keys derive the
 * keys and the id of each; a key of one domain knows that one only.
 */
#include "domain.h"

#include "cache.h"
#include "keyring.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

void domain_done(struct domain *d)
{
	domain_wipe(&d->keys);
}

/* ---- the object ---- */

static int domain_mac(const struct repo *repo, const struct secret *meta,
		      const struct format_domain *h, uint8_t ret[KEY_BYTES], struct error *err)
{
	static const char label[] = "tidemark domain";
	uint8_t bytes[offsetof(struct format_domain, mac) + REPO_PARAMS_BYTES];
	auto_secret struct secret key = {{0}};
	int r = derive(meta, label, sizeof(label) - 1, &key, err);

	memcpy(bytes, h, offsetof(struct format_domain, mac));
	memcpy(bytes + offsetof(struct format_domain, mac), repo->params, REPO_PARAMS_BYTES);
	return r ? r : mac_once(&key, bytes, sizeof(bytes), ret, err);
}

static int name_aead(const struct secret *meta, struct aead **ret, struct error *err)
{
	static const char label[] = "tidemark domain name";
	auto_clean(aead_free) struct aead *a = NULL;
	auto_secret struct secret key = {{0}};
	int r = derive(meta, label, sizeof(label) - 1, &key, err);

	r = r ? r : aead_new(&a, err);
	r = r ? r : aead_set_key(a, &key, err);
	if (r == 0)
		*ret = tm_steal(a);
	return r;
}

static int seal_name(const struct secret *meta, const char *name, struct format_domain *h,
		     struct error *err)
{
	auto_clean(aead_free) struct aead *a = NULL;
	char plain[DOMAIN_NAME_BYTES] = "";
	int r = name_aead(meta, &a, err);

	memcpy(plain, name, strlen(name));
	return r ? r
		 : aead_seal(a, le32_get(h->generation), h, offsetof(struct format_domain, name),
			     plain, sizeof(plain), h->name, err);
}

static int open_name(const struct secret *meta, const struct format_domain *h,
		     char ret[DOMAIN_NAME_BYTES + 1], struct error *err)
{
	auto_clean(aead_free) struct aead *a = NULL;
	int r = name_aead(meta, &a, err);

	r = r ? r
	      : aead_open(a, le32_get(h->generation), h, offsetof(struct format_domain, name),
			  h->name, sizeof(h->name), ret, err);
	ret[r ? 0 : DOMAIN_NAME_BYTES] = 0;
	return r;
}

struct copy_names domain_copy_names(const struct tm_id *id, uint32_t generation)
{
	struct copy_names n;

	for (unsigned copy = 0; copy < COPIES; copy++)
		name_domain(id, generation, copy, n.key[copy]);
	return n;
}

int domain_put(const struct repo *repo, const struct tm_id *id, const char *name, struct error *err)
{
	__attribute__((cleanup(domain_wipe))) struct domain_keys keys;
	struct format_domain h = {.domain = *id, .generation = le32_of(repo->master.generation)};
	struct copy_names n = domain_copy_names(id, repo->master.generation);
	int r = domain_derive(&repo->master, id, &keys, err);

	if (r < 0)
		return r;
	format_head_init(&h.head, MAGIC_DOMAIN, sizeof(h), &repo->id);
	memcpy(h.data_public, keys.data_public, KEY_BYTES);
	r = seal_name(&keys.meta, name, &h, err);
	r = r ? r : domain_mac(repo, &keys.meta, &h, h.mac, err);
	if (r < 0)
		return r;
	format_head_seal(&h, sizeof(h));
	return copies_put(repo, &n, &h, sizeof(h), err);
}

int domain_parse(const struct tm_id *repo, const struct domain_id *id, const char *key,
		 const void *bytes, size_t len, struct format_domain *ret, struct error *err)
{
	int r = format_head_check(bytes, len, MAGIC_DOMAIN, sizeof(*ret), repo, key, err);

	if (r < 0)
		return r;
	memcpy(ret, bytes, sizeof(*ret));
	if (len != sizeof(*ret) || !id_equal(&ret->domain, &id->id) ||
	    le32_get(ret->generation) != id->generation)
		return error_set(err, TM_E_CORRUPT, "%s: length, id or generation is wrong", key);
	return 0;
}

/* Who holds the data key does not have to believe the object. */
static int check_public(const struct domain_keys *k, const struct format_domain *h, const char *key,
			struct error *err)
{
	uint32_t g = le32_get(h->generation);
	uint8_t pk[KEY_BYTES];
	int r;

	if (!(k->has & KEY_HAS_DATA) || g > k->generation)
		return 0;
	r = data_public(g == k->generation ? &k->data : &k->old[g], pk, err);
	if (r == 0 && memcmp(pk, h->data_public, sizeof(pk)) != 0)
		return error_set(err, TM_E_CORRUPT, "%s holds a public key that is not ours", key);
	return r;
}

static int prove(const struct repo *repo, const struct format_domain *h, const char *key,
		 struct domain *d, struct error *err)
{
	uint8_t mac[KEY_BYTES];
	int r = domain_mac(repo, &d->keys.meta, h, mac, err);

	if (r == 0 && !equal_secret(mac, h->mac, sizeof(mac)))
		return error_set(err, TM_E_CORRUPT,
				 "%s was not written with this repository's keys", key);
	r = r ? r : check_public(&d->keys, h, key, err);
	return r ? r : open_name(&d->keys.meta, h, d->name, err);
}

/* What a copy says; b gets its bytes.  d has the domain's keys. */
static int read_copy(const struct repo *repo, const struct domain_id *id, unsigned copy,
		     struct domain *d, struct buf *b, struct error *err)
{
	struct format_domain h;
	char key[KEY_MAX];
	int r;

	name_domain(&id->id, id->generation, copy, key);
	if (!id->there[copy])
		return error_set(err, TM_E_NOTFOUND, "object %s is missing", key);
	r = store_read(repo->st, key, 64 << 10, b, err);
	r = r ? r : domain_parse(&repo->id, id, key, b->data, b->len, &h, err);
	r = r ? r : prove(repo, &h, key, d, err);
	if (r == 0)
		memcpy(d->keys.data_public, h.data_public, KEY_BYTES);
	return r;
}

int domain_load(const struct repo *repo, const struct domain_id *id, bool every_copy,
		struct domain *ret, struct error *err)
{
	struct error first = {0};
	char worn[KEY_MAX] = "";
	bool whole = false;
	int r;

	*ret = (struct domain){.id = id->id};
	r = domain_derive(&repo->master, &id->id, &ret->keys, err);
	if (r < 0)
		return r;
	for (unsigned copy = 0; copy < COPIES; copy++) {
		auto_buf struct buf b = {0};
		auto_domain struct domain d = *ret;
		struct error one = {0};

		if (whole && !every_copy && id->there[copy])
			continue;
		if (read_copy(repo, id, copy, &d, &b, &one) == 0) {
			if (!whole)
				*ret = d;
			whole = true;
			continue;
		}
		if (one.code == TM_E_NOTFOUND || one.code == TM_E_CORRUPT)
			name_domain(&id->id, id->generation, copy, worn);
		/* what is wrong with a copy that is there says more */
		if (!first.code || (first.code == TM_E_NOTFOUND && id->there[copy]))
			first = one;
	}
	if (whole) {
		ret->keys.public_generation = id->generation;
		memcpy(ret->worn, worn, sizeof(worn));
		return 0;
	}
	domain_wipe(&ret->keys);
	return error_pass(err, first.code, &first);
}

int domain_copies_load(const struct repo *repo, const struct domain_id *id, struct copies_read *ret,
		       struct error *err)
{
	auto_domain struct domain d;
	int r;

	d = (struct domain){.id = id->id};
	*ret = (struct copies_read){0};
	r = domain_derive(&repo->master, &id->id, &d.keys, err);
	for (unsigned copy = 0; r == 0 && copy < COPIES; copy++) {
		auto_buf struct buf b = {0};

		ret->copies.there[copy] = id->there[copy];
		if (read_copy(repo, id, copy, &d, &b, &ret->err[copy]) == 0)
			(void)copies_take(&ret->copies, copy, &b);
	}
	return r;
}

int domain_mend(const struct repo *repo, const struct domain_id *id, size_t *count,
		struct error *err)
{
	struct copy_names n = domain_copy_names(&id->id, id->generation);
	struct copies_read c;
	int r = domain_copies_load(repo, id, &c, err);

	r = r ? r : copies_mend_read(repo, &n, &c, count, err);
	buf_done(&c.copies.bytes);
	return r;
}

int domain_restore(struct repo *repo, const struct domain_id *id, const char *name,
		   struct error *err)
{
	struct copies_read c;
	int r = keyring_check_newest(repo, err);

	r = r ? r : domain_copies_load(repo, id, &c, err);
	if (r < 0)
		return r;
	buf_done(&c.copies.bytes);
	for (unsigned copy = 0; r == 0 && copy < COPIES; copy++) {
		char key[KEY_MAX];

		/* one that only could not be read now, or that a newer program wrote, stays */
		if (c.err[copy].code != TM_E_NOTFOUND && c.err[copy].code != TM_E_CORRUPT)
			return error_pass(err, c.err[copy].code ? c.err[copy].code : TM_E_EXISTS,
					  &c.err[copy]);
		name_domain(&id->id, id->generation, copy, key);
		if (id->there[copy] && id->generation == repo->master.generation)
			r = repo->st->ops->remove(repo->st, key, err);
	}
	return r ? r : domain_put(repo, &id->id, name, err);
}

/* ---- which there are ---- */

struct find_domains {
	const struct repo *repo;
	struct domain_ids *ids;
};

static int see_domain(void *data, const char *key, uint64_t size, struct error *err)
{
	const struct find_domains *f = data;
	const struct tm_id *scope = &f->repo->master.scope;
	struct domain_ids *l = f->ids;
	struct domain_id *d;
	struct tm_id id;
	unsigned copy;
	uint32_t g;

	(void)size;
	if (!name_parse_domain(key, &id, &g, &copy) || g >= MAX_DATA_KEYS ||
	    (!id_is_zero(scope) && !id_equal(scope, &id)))
		return 0;
	if (l->n == 0 || !id_equal(&l->v[l->n - 1].id, &id)) {
		if (l->n == MAX_DOMAINS)
			return error_set(err, TM_E_UNSUPPORTED, "there are more than %d domains",
					 MAX_DOMAINS);
		l->v[l->n++] = (struct domain_id){.id = id, .generation = g};
	}
	d = &l->v[l->n - 1];
	if (d->generation != g) /* they come in order */
		*d = (struct domain_id){.id = id, .generation = g};
	d->there[copy] = true;
	return 0;
}

int domains_list(struct repo *repo, struct domain_ids *ret, struct error *err)
{
	struct find_domains f = {repo, ret};

	ret->n = 0;
	return repo->st->ops->list(repo->st, "domains/", see_domain, &f, err);
}

int domain_find(struct repo *repo, const struct tm_id *id, struct domain_id *ret, struct error *err)
{
	struct find_domains f = {.repo = repo};
	char prefix[KEY_MAX];
	int r;

	f.ids = calloc(1, sizeof(*f.ids));
	if (!f.ids)
		return error_nomem(err);
	(void)snprintf(prefix, sizeof(prefix), "domains/%s.", id_text(id).s);
	r = repo->st->ops->list(repo->st, prefix, see_domain, &f, err);
	if (r == 0 && f.ids->n == 0) {
		name_domain(id, 0, 0, prefix);
		r = error_set(err, TM_E_NOTFOUND, "object %s is missing", prefix);
	}
	if (r == 0)
		*ret = f.ids->v[0];
	free(f.ids);
	return r;
}

int domain_use(struct repo *repo, const struct tm_id *id, struct error *err)
{
	auto_domain struct domain d = {.id = *id};
	struct domain_id newest;
	int r = domain_find(repo, id, &newest, err);

	r = r ? r : domain_load(repo, &newest, false, &d, err);
	if (r < 0)
		return r;
	cache_drop(repo->cache); /* nothing of one domain is taken for something of another */
	repo->domain = *id;
	repo->keys = d.keys;
	memcpy(repo->domain_name, d.name, sizeof(repo->domain_name));
	memcpy(repo->worn_domain, d.worn, sizeof(repo->worn_domain));
	return 0;
}

/* ---- by name ---- */

int domain_id_of(const struct repo *repo, const char *name, struct tm_id *ret, struct error *err)
{
	static const char label[] = "tidemark domain ids";
	auto_secret struct secret key = {{0}};
	uint8_t mac[KEY_BYTES];
	int r = derive(&repo->master.meta, label, sizeof(label) - 1, &key, err);

	r = r ? r : mac_once(&key, name, strlen(name), mac, err);
	if (r == 0)
		memcpy(ret->b, mac, sizeof(ret->b));
	return r;
}

static int check_name(const char *name, struct error *err)
{
	size_t len = strlen(name);

	if (len == 0 || len > DOMAIN_NAME_BYTES)
		return error_set(err, TM_E_USAGE, "a domain's name has 1 to %d bytes, not %zu",
				 DOMAIN_NAME_BYTES, len);
	for (size_t i = 0; i < len; i++)
		if (iscntrl((unsigned char)name[i]))
			return error_set(err, TM_E_USAGE,
					 "a domain's name holds a control character");
	return text_is_utf8(name) ? 0 : error_set(err, TM_E_USAGE, "a domain's name is not UTF-8");
}

/* An add that was interrupted between the copies is finished by running it again. */
static int there_already(struct repo *repo, const struct domain_id *id, const char *name,
			 struct error *err)
{
	auto_domain struct domain d = {.id = id->id};
	size_t n = 0;
	int r = domain_mend(repo, id, &n, err);

	if (r < 0 || n > 0)
		return r;
	if (domain_load(repo, id, false, &d, NULL) < 0)
		return domain_restore(repo, id, name, err);
	return error_set(err, TM_E_EXISTS, "there is a domain '%s' already", name);
}

int repo_domain_add(struct repo *repo, const char *name, struct tm_id *ret, struct error *err)
{
	struct domain_ids *l = calloc(1, sizeof(*l));
	struct tm_id id;
	int r = l ? repo_check_right(repo, REPO_MAY_ADD_DOMAINS, err) : error_nomem(err);

	r = r ? r : check_name(name, err);
	r = r ? r : domain_id_of(repo, name, &id, err);
	r = r ? r : domains_list(repo, l, err);
	for (size_t i = 0; r == 0 && i < l->n; i++)
		if (id_equal(&l->v[i].id, &id)) {
			r = there_already(repo, &l->v[i], name, err);
			free(l);
			if (r == 0)
				*ret = id;
			return r;
		}
	if (r == 0 && l->n == MAX_DOMAINS)
		r = error_set(err, TM_E_RANGE, "there are %zu domains, more cannot be", l->n);
	free(l);
	r = r ? r : keyring_check_newest(repo, err);
	r = r ? r : domain_put(repo, &id, name, err);
	if (r == 0)
		*ret = id;
	return r;
}

/* ---- choosing ---- */

void repo_domain_list_done(struct repo_domain_list *list)
{
	for (size_t i = 0; i < list->n; i++)
		free(list->v[i].problem);
	free(list->v);
	*list = (struct repo_domain_list){0};
}

static int fill(const struct repo *repo, const struct domain_id *id, struct repo_domain *ret,
		struct error *err)
{
	auto_domain struct domain d;
	struct error one = {0};
	int r = domain_load(repo, id, true, &d, &one);

	*ret = (struct repo_domain){.id = id->id};
	memcpy(ret->name, d.name, sizeof(ret->name));
	ret->copies = r ? 0 : d.worn[0] ? 1 : COPIES;
	if (r == TM_E_CORRUPT || r == TM_E_UNSUPPORTED || r == TM_E_NOTFOUND)
		return text_copy(one.text, &ret->problem, err);
	return error_pass(err, r, &one);
}

static int by_name(const void *a, const void *b)
{
	return strcmp(((const struct repo_domain *)a)->name, ((const struct repo_domain *)b)->name);
}

int repo_domains(struct repo *repo, struct repo_domain_list *ret, struct error *err)
{
	auto_domain_list struct repo_domain_list list = {0};
	struct domain_ids *l = calloc(1, sizeof(*l));
	int r = l ? domains_list(repo, l, err) : error_nomem(err);

	if (r == 0) {
		list.v = calloc(l->n + 1, sizeof(*list.v));
		r = list.v ? 0 : error_nomem(err);
	}
	for (size_t i = 0; r == 0 && i < l->n; i++) {
		r = fill(repo, &l->v[i], &list.v[i], err);
		list.n = i + 1;
	}
	free(l);
	if (r < 0)
		return r;
	if (list.n > 1)
		qsort(list.v, list.n, sizeof(*list.v), by_name);
	*ret = list;
	list = (struct repo_domain_list){0};
	return 0;
}

static int no_such_domain(struct repo *repo, const char *name, struct error *err)
{
	auto_domain_list struct repo_domain_list l = {0};
	struct error ignored = {0};
	int r = error_set(err, TM_E_NOTFOUND, "this key opens no domain '%s'", name);

	if (repo_domains(repo, &l, &ignored) < 0)
		return r;
	for (size_t i = 0; i < l.n && i < 8; i++)
		error_append(err, "%s'%s'", i ? ", " : ", only ", l.v[i].name);
	return r;
}

int repo_domain_use(struct repo *repo, const char *name, struct error *err)
{
	struct error one = {0};
	struct tm_id id;
	int r;

	if (strcmp(name, repo->domain_name) == 0)
		return 0;
	if (!id_is_zero(&repo->master.scope))
		return no_such_domain(repo, name, err);
	r = domain_id_of(repo, name, &id, &one);
	r = r ? r : domain_use(repo, &id, &one);
	if (r == TM_E_NOTFOUND)
		return no_such_domain(repo, name, err);
	return error_pass(err, r, &one);
}

int repo_domain_use_id(struct repo *repo, const struct tm_id *id, struct error *err)
{
	if (id_equal(id, &repo->domain))
		return 0;
	if (!id_is_zero(&repo->master.scope))
		return error_set(err, TM_E_DENIED, "this key opens another domain than %s",
				 id_text(id).s);
	return domain_use(repo, id, err);
}

const struct tm_id *repo_domain(const struct repo *repo)
{
	return &repo->domain;
}

const char *repo_domain_name(const struct repo *repo)
{
	return repo->domain_name;
}
