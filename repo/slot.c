/* SPDX-License-Identifier: Apache-2.0 */
#include "slot.h"

#include <inttypes.h>
#include <openssl/crypto.h>
#include <string.h>

#define ALL_KEYS ((uint32_t)(KEY_HAS_META | KEY_HAS_ID | KEY_HAS_DATA))

static_assert((int)REPO_ROLE_FULL == ROLE_FULL && (int)REPO_ROLE_BACKUP == ROLE_BACKUP &&
		      (int)REPO_ROLE_JANITOR == ROLE_JANITOR,
	      "docs/format.md");

const char *slot_kdf_name(uint8_t kdf)
{
	switch (kdf) {
	case KDF_NONE:
		return "none";
	case KDF_SCRYPT:
		return "scrypt";
	default:
		return "key-file";
	}
}

const char *role_name(enum repo_role role)
{
	switch (role) {
	case REPO_ROLE_BACKUP:
		return "backup";
	case REPO_ROLE_JANITOR:
		return "janitor";
	case REPO_ROLE_FULL:
		break;
	}
	return "full";
}

uint32_t role_keys(enum repo_role role)
{
	switch (role) {
	case REPO_ROLE_JANITOR:
		return KEY_HAS_META;
	case REPO_ROLE_BACKUP:
		return KEY_HAS_META | KEY_HAS_ID;
	case REPO_ROLE_FULL:
		break;
	}
	return ALL_KEYS;
}

/* ---- records ---- */

size_t records_encode(const struct master_keys *keys, enum repo_role role, uint8_t *ret)
{
	uint32_t has = role_keys(role) & keys->has;
	struct format_key_record rec = {.scope = keys->scope, .has = le32_of(has)};
	size_t n = 0;

	memcpy(rec.meta, keys->meta.b, KEY_BYTES);
	if (has & KEY_HAS_ID)
		memcpy(rec.id, keys->id.b, KEY_BYTES);
	if (has & KEY_HAS_DATA) {
		rec.generation = le32_of(keys->generation);
		memcpy(rec.data, keys->data.b, KEY_BYTES);
	}
	memcpy(ret, &rec, sizeof(rec));
	n = sizeof(rec);
	for (uint32_t g = keys->generation; has & KEY_HAS_DATA && g > 0; g--) {
		rec = (struct format_key_record){.scope = keys->scope,
						 .has = le32_of(KEY_HAS_DATA),
						 .generation = le32_of(g - 1)};
		memcpy(rec.data, keys->old[g - 1].b, KEY_BYTES);
		memcpy(ret + n, &rec, sizeof(rec));
		n += sizeof(rec);
	}
	OPENSSL_cleanse(&rec, sizeof(rec));
	return n;
}

/* The first record, which says how many follow. */
static int take_first(const struct format_key_record *rec, size_t n, enum repo_role role,
		      struct master_keys *ret, struct error *err)
{
	uint32_t has = le32_get(rec->has), generation = le32_get(rec->generation);

	if (has & ~ALL_KEYS)
		return error_set(err, TM_E_UNSUPPORTED, "it holds keys of an unknown kind");
	if (has != role_keys(role))
		return error_set(err, TM_E_CORRUPT, "it does not hold the keys of its role");
	if (generation >= MAX_DATA_KEYS || n != (size_t)generation + 1 ||
	    (generation > 0 && !(has & KEY_HAS_DATA)))
		return error_set(err, TM_E_CORRUPT, "it holds %zu sets of keys of generation %u", n,
				 generation);
	ret->scope = rec->scope;
	ret->has = has;
	ret->generation = generation;
	memcpy(ret->meta.b, rec->meta, KEY_BYTES);
	memcpy(ret->id.b, rec->id, KEY_BYTES);
	memcpy(ret->data.b, rec->data, KEY_BYTES);
	return 0;
}

static int decode_records(const uint8_t *bytes, size_t len, enum repo_role role,
			  struct master_keys *k, struct format_key_record *rec, struct error *err)
{
	size_t n = len / sizeof(*rec);
	int r;

	if (len % sizeof(*rec) != 0 || n == 0 || n > MAX_DATA_KEYS)
		return error_set(err, TM_E_CORRUPT, "%zu bytes are no sets of keys", len);
	memcpy(rec, bytes, sizeof(*rec));
	r = take_first(rec, n, role, k, err);
	for (size_t i = 1; r == 0 && i < n; i++) {
		memcpy(rec, bytes + i * sizeof(*rec), sizeof(*rec));
		if (!id_equal(&rec->scope, &k->scope) || le32_get(rec->has) != KEY_HAS_DATA ||
		    le32_get(rec->generation) != n - 1 - i)
			return error_set(err, TM_E_CORRUPT, "its older data keys are out of order");
		memcpy(k->old[n - 1 - i].b, rec->data, KEY_BYTES);
	}
	return r;
}

int records_decode(const uint8_t *bytes, size_t len, enum repo_role role, struct master_keys *ret,
		   struct error *err)
{
	auto_master struct master_keys k = {.has = 0};
	struct format_key_record rec;
	int r = decode_records(bytes, len, role, &k, &rec, err);

	OPENSSL_cleanse(&rec, sizeof(rec));
	if (r == 0)
		*ret = k;
	return r;
}

/* ---- header ---- */

static int check_scrypt(const struct format_key *h, const char *name, struct error *err)
{
	uint64_t r = le32_get(h->r), p = le32_get(h->p), n = h->log2_n;

	if (n < 1 || r < 1 || p < 1)
		return error_set(err, TM_E_CORRUPT, "%s: its scrypt parameters are zero", name);
	if (n > SCRYPT_MAX_LOG2_N || r > SCRYPT_MAX_R || p > SCRYPT_MAX_P ||
	    (UINT64_C(128) << n) * r > SCRYPT_MAX_MEMORY ||
	    (UINT64_C(1) << n) * r * p > SCRYPT_MAX_WORK)
		return error_set(err, TM_E_UNSUPPORTED,
				 "%s asks for more scrypt work than this program does (N = 2^%u, r "
				 "= %" PRIu64 ", p = %" PRIu64 ")",
				 name, (unsigned)n, r, p);
	return 0;
}

static int check_kinds(const struct format_key *h, const char *name, struct error *err)
{
	if (h->cipher != CIPHER_AES256_GCM || h->kdf > KDF_KEY_FILE)
		return error_set(err, TM_E_UNSUPPORTED,
				 "%s: key derivation %u or cipher %u is unknown to this program",
				 name, (unsigned)h->kdf, (unsigned)h->cipher);
	if (h->role < ROLE_FULL || h->role > ROLE_JANITOR)
		return error_set(err, TM_E_UNSUPPORTED, "%s: role %u is unknown to this program",
				 name, (unsigned)h->role);
	return h->kdf == KDF_SCRYPT ? check_scrypt(h, name, err) : 0;
}

int slot_parse(const struct tm_id *repo, const char *name, const void *bytes, size_t len,
	       struct slot *ret, struct error *err)
{
	const uint8_t *body = (const uint8_t *)bytes + sizeof(struct format_key);
	struct format_key h;
	int r;

	r = format_head_check(bytes, len, MAGIC_KEY, sizeof(h), repo, name, err);
	if (r < 0)
		return r;
	memcpy(&h, bytes, sizeof(h));
	if (le32_get(h.body_len) != len - sizeof(h) ||
	    le32_get(h.body_crc) != crc32c(0, body, len - sizeof(h)))
		return error_set(err, TM_E_CORRUPT, "%s: body checksum is wrong", name);
	r = check_kinds(&h, name, err);
	if (r < 0)
		return r;
	*ret = (struct slot){
		.kid = h.kid,
		.kdf = h.kdf,
		.role = (enum repo_role)h.role,
		.generation = le32_get(h.generation),
		.scope = h.scope,
		.created_ms = le64_get(h.created_ms),
		.log2_n = h.log2_n,
		.r = le32_get(h.r),
		.p = le32_get(h.p),
	};
	memcpy(ret->label, h.label, sizeof(h.label)); /* one longer: there is an end */
	memcpy(ret->salt, h.salt, sizeof(h.salt));
	return 0;
}

/* ---- body ---- */

/* The key that seals the body. */
static int slot_kek(const struct slot *s, const struct repo_secret *secret, struct secret *ret,
		    struct error *err)
{
	static const char label[] = "tidemark key file";
	auto_secret struct secret key = {{0}};
	uint8_t info[sizeof(label) - 1 + KEY_BYTES];

	if (s->kdf == KDF_SCRYPT)
		return derive_scrypt(secret->bytes, secret->len, s->salt, UINT64_C(1) << s->log2_n,
				     s->r, s->p, ret, err);
	assert(secret->len == KEY_BYTES);
	memcpy(key.b, secret->bytes, KEY_BYTES);
	memcpy(info, label, sizeof(label) - 1);
	memcpy(info + sizeof(label) - 1, s->salt, KEY_BYTES);
	return derive(&key, info, sizeof(info), ret, err);
}

static bool fits(const struct slot *s, const struct repo_secret *secret)
{
	if (!secret)
		return s->kdf == KDF_NONE;
	return s->kdf == (secret->kind == REPO_SECRET_PASSWORD ? KDF_SCRYPT : KDF_KEY_FILE);
}

static int slot_aead(const struct slot *s, const struct repo_secret *secret, struct aead **ret,
		     struct error *err)
{
	auto_clean(aead_free) struct aead *a = NULL;
	auto_secret struct secret kek = {{0}};
	int r = slot_kek(s, secret, &kek, err);

	r = r ? r : aead_new(&a, err);
	r = r ? r : aead_set_key(a, &kek, err);
	if (r == 0)
		*ret = tm_steal(a);
	return r;
}

static int open_body(const struct slot *s, const struct repo_secret *secret, const void *bytes,
		     size_t len, uint8_t *plain, size_t *ret_len, struct error *err)
{
	const uint8_t *body = (const uint8_t *)bytes + sizeof(struct format_key);
	auto_clean(aead_free) struct aead *a = NULL;
	size_t body_len = len - sizeof(struct format_key);
	size_t tag = s->kdf == KDF_NONE ? 0 : TAG_BYTES;
	int r;

	if (body_len < tag || body_len - tag > RECORDS_MAX)
		return error_set(err, TM_E_CORRUPT, "%zu bytes are no sets of keys", body_len);
	*ret_len = body_len - tag;
	if (s->kdf == KDF_NONE) {
		memcpy(plain, body, body_len);
		return 0;
	}
	r = slot_aead(s, secret, &a, err);
	if (r < 0)
		return r;
	/* Both checksums were right: what does not open was sealed with something else. */
	if (aead_open(a, 0, bytes, offsetof(struct format_key, body_crc), body, body_len, plain,
		      NULL) < 0)
		return error_set(err, TM_E_DENIED, "the %s is not this slot's",
				 s->kdf == KDF_SCRYPT ? "password" : "key file");
	return 0;
}

int slot_open(const struct slot *slot, const struct repo_secret *secret, const char *name,
	      const void *bytes, size_t len, struct master_keys *ret, struct error *err)
{
	uint8_t plain[RECORDS_MAX];
	size_t n = 0;
	int r;

	if (!fits(slot, secret))
		return error_set(err, TM_E_DENIED, "%s needs another kind of secret", name);
	r = open_body(slot, secret, bytes, len, plain, &n, err);
	r = r ? r : records_decode(plain, n, slot->role, ret, err);
	OPENSSL_cleanse(plain, sizeof(plain));
	if (r == 0 && !id_equal(&ret->scope, &slot->scope)) {
		master_wipe(ret);
		r = error_set(err, TM_E_CORRUPT, "it holds keys of another domain than it says");
	}
	if (r < 0)
		error_prefix(err, "%s", name);
	return r;
}

static void encode_head(const struct tm_id *repo, const struct slot *s, size_t body_len,
			struct format_key *h)
{
	*h = (struct format_key){
		.kid = s->kid,
		.kdf = s->kdf,
		.cipher = CIPHER_AES256_GCM,
		.role = (uint8_t)s->role,
		.body_len = le32_of((uint32_t)body_len),
		.created_ms = le64_of(s->created_ms),
		.generation = le32_of(s->generation),
		.scope = s->scope,
	};
	format_head_init(&h->head, MAGIC_KEY, sizeof(*h), repo);
	if (s->kdf == KDF_SCRYPT) {
		h->log2_n = (uint8_t)s->log2_n;
		h->r = le32_of(s->r);
		h->p = le32_of(s->p);
	}
	memcpy(h->salt, s->salt, sizeof(h->salt));
	memcpy(h->label, s->label, sizeof(h->label));
}

int slot_encode(const struct tm_id *repo, struct slot *slot, const struct repo_secret *secret,
		const struct master_keys *keys, struct buf *ret, struct error *err)
{
	auto_clean(aead_free) struct aead *a = NULL;
	struct {
		struct format_key h;
		uint8_t body[RECORDS_MAX + TAG_BYTES];
	} o;
	size_t n, body_len;
	int r = 0;

	slot->kdf = !secret                                ? KDF_NONE
		    : secret->kind == REPO_SECRET_PASSWORD ? KDF_SCRYPT
							   : KDF_KEY_FILE;
	slot->generation = role_keys(slot->role) & KEY_HAS_DATA ? keys->generation : 0;
	slot->scope = keys->scope;
	n = records_encode(keys, slot->role, o.body);
	body_len = secret ? n + TAG_BYTES : n;
	if (secret)
		r = random_bytes(slot->salt, sizeof(slot->salt), err);
	if (r == 0 && secret)
		r = slot_aead(slot, secret, &a, err);
	encode_head(repo, slot, body_len, &o.h);
	if (r == 0 && secret)
		r = aead_seal(a, 0, &o.h, offsetof(struct format_key, body_crc), o.body, n, o.body,
			      err);
	if (r == 0) {
		o.h.body_crc = le32_of(crc32c(0, o.body, body_len));
		format_head_seal(&o.h, sizeof(o.h));
		r = buf_add(ret, &o, sizeof(o.h) + body_len, err);
	}
	OPENSSL_cleanse(&o, sizeof(o));
	return r;
}
