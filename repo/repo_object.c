/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The object "repo" is put when all else of a new repository is there: without it there is none.
 * Its copy follows, so that a copy says that there was one.
 */
#include "repo_object.h"

#include <string.h>

static const char *const names[COPIES] = {"repo", "repo.copy"};

struct copy_names repo_object_names(void)
{
	struct copy_names n;

	for (unsigned copy = 0; copy < COPIES; copy++)
		memcpy(n.key[copy], names[copy], strlen(names[copy]) + 1);
	return n;
}

bool is_repo_object(const char *key)
{
	return strcmp(key, names[0]) == 0 || strcmp(key, names[1]) == 0;
}

static int repo_mac(const struct secret *meta, const struct format_repo *h, uint8_t ret[KEY_BYTES],
		    struct error *err)
{
	static const char label[] = "tidemark repo";
	auto_secret struct secret key = {{0}};
	int r = derive(meta, label, sizeof(label) - 1, &key, err);

	return r ? r : mac_once(&key, h, offsetof(struct format_repo, mac), ret, err);
}

int repo_object_prove(const struct repo *repo, const struct format_repo *h, struct error *err)
{
	uint8_t mac[KEY_BYTES];
	int r;

	if (!id_is_zero(&repo->master.scope))
		return 0;
	r = repo_mac(&repo->master.meta, h, mac, err);
	if (r == 0 && !equal_secret(mac, h->mac, sizeof(mac)))
		return error_set(err, TM_E_CORRUPT,
				 "object repo was not written with the repository's keys");
	return r;
}

/* ---- reading ---- */

static int parse(const char *key, const struct tm_id *repo, const struct buf *b,
		 struct format_repo *ret, struct error *err)
{
	int r = format_head_check(b->data, b->len, MAGIC_REPO, sizeof(*ret), repo, key, err);

	if (r < 0)
		return r;
	if (b->len != sizeof(*ret))
		return error_set(err, TM_E_CORRUPT, "object %s is %zu bytes, expected %zu", key,
				 b->len, sizeof(*ret));
	memcpy(ret, b->data, sizeof(*ret));
	if (ret->cipher != CIPHER_AES256_GCM || ret->id_alg != ID_ALG_HMAC_SHA256 ||
	    ret->data_slots_log2 != DATA_SLOTS_LOG2 || ret->map_slots_log2 != MAP_SLOTS_LOG2 ||
	    ret->block_bits < MIN_BLOCK_BITS || ret->block_bits > MAX_BLOCK_BITS)
		return error_set(err, TM_E_UNSUPPORTED,
				 "the repository has parameters this program does not know; use a "
				 "newer one");
	if (ret->encrypted > 1)
		return error_set(err, TM_E_UNSUPPORTED,
				 "the repository is encrypted in a way this program does not know; "
				 "use a newer one");
	return 0;
}

void repo_object_ask(const struct repo *repo, struct repo_object *ret)
{
	*ret = (struct repo_object){0};
	for (unsigned copy = 0; copy < COPIES; copy++)
		store_read_begin(repo->st, names[copy], &ret->asked[copy]);
}

void repo_object_load(const struct repo *repo, bool proved, struct repo_object *o)
{
	for (unsigned copy = 0; copy < COPIES; copy++) {
		auto_buf struct buf b = {0};
		struct error *err = &o->read.err[copy];
		int r = store_read_end(repo->st, &o->asked[copy], 64 << 10, &b, err);

		o->read.copies.there[copy] = r != TM_E_NOTFOUND;
		r = r ? r : parse(names[copy], proved ? &repo->id : NULL, &b, &o->h[copy], err);
		r = r || !proved ? r : repo_object_prove(repo, &o->h[copy], err);
		if (r == 0)
			(void)copies_take(&o->read.copies, copy, &b);
	}
}

void repo_object_done(struct repo_object *o)
{
	buf_done(&o->read.copies.bytes);
}

int repo_object_choose(const struct repo_object *o, unsigned *ret, struct error *err)
{
	const struct error *e = o->read.err, *why = NULL;

	for (unsigned copy = 0; copy < COPIES; copy++)
		if (!why && e[copy].code == TM_E_UNSUPPORTED)
			why = &e[copy]; /* whoever wrote it meant this program, too */
	for (unsigned copy = 0; !why && copy < COPIES; copy++) {
		*ret = copy;
		if (e[copy].code == 0)
			return 0;
		if (e[copy].code != TM_E_NOTFOUND && e[copy].code != TM_E_CORRUPT)
			why = &e[copy]; /* another try may bring it */
	}
	for (unsigned copy = 0; !why && copy < COPIES; copy++)
		if (e[copy].code == TM_E_CORRUPT)
			why = &e[copy];
	if (!why)
		return error_set(err, TM_E_NOTFOUND,
				 "this is not a Tidemark repository (it has no object 'repo')");
	return error_pass(err, why->code, why);
}

bool repo_object_differs(const struct repo_object *o)
{
	return o->read.err[0].code == 0 && o->read.err[1].code == 0 && !o->read.copies.whole[1];
}

void repo_object_adopt(struct repo *repo, const struct format_repo *h)
{
	repo->id = h->head.repo;
	repo->default_domain = h->domain;
	memcpy(repo->params, (const uint8_t *)h + REPO_PARAMS_AT, REPO_PARAMS_BYTES);
	repo->block_bits = h->block_bits;
	repo->read_only = le64_get(h->head.ro_compat) & ~KNOWN_RO_COMPAT;
	repo->encrypted = h->encrypted;
}

void repo_object_worn(const struct repo_object *o, unsigned copy, char key[KEY_MAX])
{
	unsigned other = 1 - copy;
	int code = o->read.err[other].code;

	key[0] = 0;
	if (code == TM_E_NOTFOUND || code == TM_E_CORRUPT || repo_object_differs(o))
		memcpy(key, names[other], strlen(names[other]) + 1);
}

/* ---- writing ---- */

void repo_object_fill(struct repo *repo, struct format_repo *ret)
{
	*ret = (struct format_repo){
		.domain = repo->default_domain,
		.data_slots_log2 = DATA_SLOTS_LOG2,
		.map_slots_log2 = MAP_SLOTS_LOG2,
		.block_bits = (uint8_t)repo->block_bits,
		.cipher = CIPHER_AES256_GCM,
		.id_alg = ID_ALG_HMAC_SHA256,
		.encrypted = repo->encrypted,
	};
	format_head_init(&ret->head, MAGIC_REPO, sizeof(*ret), &repo->id);
	memcpy(repo->params, (const uint8_t *)ret + REPO_PARAMS_AT, REPO_PARAMS_BYTES);
}

int repo_object_put(struct repo *repo, struct format_repo *h, struct error *err)
{
	struct error one = {0};
	int r = repo_mac(&repo->master.meta, h, h->mac, err);

	if (r < 0)
		return r;
	format_head_seal(h, sizeof(*h));
	r = store_put_wait(repo->st, names[0], h, sizeof(*h), err);
	if (r < 0)
		return r;
	if (store_put_wait(repo->st, names[1], h, sizeof(*h), &one) < 0) {
		log_debug("%s: %s", names[1], one.text);
		memcpy(repo->worn_object, names[1], strlen(names[1]) + 1);
	}
	return 0;
}

int repo_object_mend(const struct repo *repo, size_t *count, struct error *err)
{
	struct copy_names n = repo_object_names();
	auto_repo_object struct repo_object o;

	repo_object_ask(repo, &o);
	repo_object_load(repo, true, &o);
	return copies_mend_read(repo, &n, &o.read, count, err);
}
