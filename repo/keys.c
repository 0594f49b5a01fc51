/* SPDX-License-Identifier: Apache-2.0 */
#include "keys.h"

#include <openssl/crypto.h>
#include <string.h>

void master_wipe(struct master_keys *k)
{
	OPENSSL_cleanse(k, sizeof(*k));
}

void domain_wipe(struct domain_keys *k)
{
	OPENSSL_cleanse(k, sizeof(*k));
}

void session_keys_wipe(struct session_keys *k)
{
	OPENSSL_cleanse(k, sizeof(*k));
}

int master_new(struct master_keys *ret, struct error *err)
{
	auto_master struct master_keys k = {.has = KEY_HAS_META | KEY_HAS_ID | KEY_HAS_DATA};
	int r;

	r = random_bytes(k.meta.b, sizeof(k.meta.b), err);
	if (r == 0)
		r = random_bytes(k.id.b, sizeof(k.id.b), err);
	if (r == 0)
		r = random_bytes(k.data.b, sizeof(k.data.b), err);
	if (r == 0)
		*ret = k;
	return r;
}

int domain_derive(const struct master_keys *master, const struct tm_id *domain,
		  struct domain_keys *ret, struct error *err)
{
	int r = 0;

	*ret = (struct domain_keys){.has = master->has};
	if (master->has & KEY_HAS_META)
		r = derive_id(&master->meta, "tidemark domain meta", domain, &ret->meta, err);
	if (r == 0 && master->has & KEY_HAS_ID)
		r = derive_id(&master->id, "tidemark domain id", domain, &ret->id, err);
	if (r == 0 && master->has & KEY_HAS_DATA)
		r = derive_id(&master->data, "tidemark domain data", domain, &ret->data, err);
	if (r == 0 && master->has & KEY_HAS_DATA)
		r = data_public(&ret->data, ret->data_public, err);
	return r;
}

/* What a wrap is bound to: repository and session. */
static void wrap_info(const struct tm_id *repo, const struct tm_id *sid,
		      uint8_t info[2 * TM_ID_BYTES])
{
	memcpy(info, repo, TM_ID_BYTES);
	memcpy(info + TM_ID_BYTES, sid, TM_ID_BYTES);
}

int session_keys_new(const struct domain_keys *domain, const struct tm_id *repo,
		     const struct tm_id *sid, struct session_keys *ret, struct error *err)
{
	uint8_t info[2 * TM_ID_BYTES];
	int r;

	wrap_info(repo, sid, info);
	r = derive_id(&domain->meta, "tidemark session", sid, &ret->meta, err);
	if (r == 0)
		r = random_bytes(ret->data.b, sizeof(ret->data.b), err);
	if (r == 0)
		r = wrap_seal(domain->data_public, info, sizeof(info), &ret->data, ret->wrap, err);
	ret->has_data = r == 0;
	return r;
}

int session_keys_open(const struct domain_keys *domain, const struct tm_id *repo,
		      const struct tm_id *sid, const uint8_t wrap[WRAP_BYTES],
		      struct session_keys *ret, struct error *err)
{
	uint8_t info[2 * TM_ID_BYTES];
	int r;

	wrap_info(repo, sid, info);
	memcpy(ret->wrap, wrap, WRAP_BYTES);
	ret->has_data = false;
	r = derive_id(&domain->meta, "tidemark session", sid, &ret->meta, err);
	if (r < 0 || !(domain->has & KEY_HAS_DATA))
		return r;
	r = wrap_open(&domain->data, info, sizeof(info), wrap, &ret->data, err);
	ret->has_data = r == 0;
	return r;
}

int segment_key(const struct secret *session, uint8_t type, uint32_t index, struct secret *ret,
		struct error *err)
{
	static const char label[] = "tidemark segment";
	struct {
		char label[sizeof(label)];
		uint8_t type;
		struct le32 index;
	} info = {.type = type, .index = le32_of(index)};

	static_assert(sizeof(info) == sizeof(label) + 5, "no padding");
	memcpy(info.label, label, sizeof(label));
	return derive(session, &info, sizeof(info), ret, err);
}

int source_id(const struct domain_keys *domain, const char *guest, struct tm_id *ret,
	      struct error *err)
{
	static const char label[] = "tidemark source names";
	auto_secret struct secret key = {{0}};
	uint8_t mac[KEY_BYTES];
	int r;

	r = derive(&domain->meta, label, sizeof(label) - 1, &key, err);
	if (r == 0)
		r = mac_once(&key, guest, strlen(guest), mac, err);
	if (r == 0)
		memcpy(ret->b, mac, sizeof(ret->b));
	return r;
}

/* ---- key slots ---- */

int slot_encode_plain(const struct tm_id *repo, const struct tm_id *kid,
		      const struct master_keys *keys, struct buf *ret, struct error *err)
{
	struct format_key_record rec = {.has = le32_of(keys->has)};
	struct format_key h = {
		.kid = *kid, .kdf = KDF_NONE, .cipher = CIPHER_AES256_GCM, .role = ROLE_FULL};
	int r;

	memcpy(rec.meta, keys->meta.b, KEY_BYTES);
	memcpy(rec.id, keys->id.b, KEY_BYTES);
	memcpy(rec.data, keys->data.b, KEY_BYTES);
	format_head_init(&h.head, MAGIC_KEY, sizeof(h), repo);
	h.body_len = le32_of(sizeof(rec));
	h.body_crc = le32_of(crc32c(0, &rec, sizeof(rec)));
	format_head_seal(&h, sizeof(h));
	r = buf_add(ret, &h, sizeof(h), err);
	if (r == 0)
		r = buf_add(ret, &rec, sizeof(rec), err);
	OPENSSL_cleanse(&rec, sizeof(rec));
	return r;
}

static int slot_check(const char *name, const struct format_key *h, const uint8_t *body,
		      size_t body_len, struct error *err)
{
	if (le32_get(h->body_len) != body_len || le32_get(h->body_crc) != crc32c(0, body, body_len))
		return error_set(err, TM_E_CORRUPT, "%s: body checksum is wrong", name);
	if (h->cipher != CIPHER_AES256_GCM || h->kdf > KDF_SCRYPT)
		return error_set(err, TM_E_UNSUPPORTED, "%s: unknown cipher or key derivation",
				 name);
	if (h->kdf != KDF_NONE)
		return error_set(err, TM_E_DENIED, "%s needs a password", name);
	return 0;
}

int slot_decode(const struct tm_id *repo, const char *name, const void *bytes, size_t len,
		struct master_keys *ret, struct error *err)
{
	struct format_key h;
	struct format_key_record rec;
	uint32_t has;
	int r;

	r = format_head_check(bytes, len, MAGIC_KEY, sizeof(h), repo, name, err);
	if (r < 0)
		return r;
	memcpy(&h, bytes, sizeof(h));
	r = slot_check(name, &h, (const uint8_t *)bytes + sizeof(h), len - sizeof(h), err);
	if (r < 0)
		return r;
	if (len - sizeof(h) != sizeof(rec))
		return error_set(err, TM_E_UNSUPPORTED, "%s does not hold exactly one set of keys",
				 name);
	memcpy(&rec, (const uint8_t *)bytes + sizeof(h), sizeof(rec));
	has = le32_get(rec.has);
	if (!id_is_zero(&rec.scope) ||
	    has & ~(uint32_t)(KEY_HAS_META | KEY_HAS_ID | KEY_HAS_DATA) || !(has & KEY_HAS_META)) {
		OPENSSL_cleanse(&rec, sizeof(rec));
		return error_set(err, TM_E_UNSUPPORTED, "%s holds keys of an unknown kind", name);
	}
	ret->has = has;
	memcpy(ret->meta.b, rec.meta, KEY_BYTES);
	memcpy(ret->id.b, rec.id, KEY_BYTES);
	memcpy(ret->data.b, rec.data, KEY_BYTES);
	OPENSSL_cleanse(&rec, sizeof(rec));
	return 0;
}
