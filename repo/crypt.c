/* SPDX-License-Identifier: Apache-2.0 */
#include "crypt.h"

#include <limits.h>
#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/kdf.h>
#include <openssl/params.h>
#include <string.h>

struct aead {
	EVP_CIPHER_CTX *ctx;
};

struct mac {
	EVP_MAC_CTX *ctx;
};

struct hash {
	EVP_MD_CTX *ctx;
};

static int crypt_failed(struct error *err, const char *what)
{
	return error_set(err, TM_E_NOMEM, "libcrypto: %s failed", what);
}

void secret_wipe(struct secret *k)
{
	OPENSSL_cleanse(k, sizeof(*k));
}

bool equal_secret(const void *a, const void *b, size_t len)
{
	return CRYPTO_memcmp(a, b, len) == 0;
}

/* OpenSSL's parameters take pointers to non-const. */
static void *unconst(const void *p)
{
	return (void *)(uintptr_t)p;
}

int derive(const struct secret *key, const void *info, size_t len, struct secret *ret,
	   struct error *err)
{
	EVP_KDF *kdf = EVP_KDF_fetch(NULL, "HKDF", NULL);
	EVP_KDF_CTX *ctx = kdf ? EVP_KDF_CTX_new(kdf) : NULL;
	char digest[] = "SHA256";
	OSSL_PARAM params[] = {
		OSSL_PARAM_construct_utf8_string(OSSL_KDF_PARAM_DIGEST, digest, 0),
		OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_KEY, unconst(key->b),
						  sizeof(key->b)),
		OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_INFO, unconst(info), len),
		OSSL_PARAM_construct_end(),
	};
	bool ok = ctx && EVP_KDF_derive(ctx, ret->b, sizeof(ret->b), params) == 1;

	EVP_KDF_CTX_free(ctx);
	EVP_KDF_free(kdf);
	return ok ? 0 : crypt_failed(err, "HKDF");
}

int derive_id(const struct secret *key, const char *label, const struct tm_id *id,
	      struct secret *ret, struct error *err)
{
	uint8_t info[64];
	size_t len = strlen(label);

	assert(len + sizeof(*id) <= sizeof(info));
	memcpy(info, label, len);
	memcpy(info + len, id, sizeof(*id));
	return derive(key, info, len + sizeof(*id), ret, err);
}

int derive_scrypt(const void *password, size_t len, const uint8_t salt[KEY_BYTES], uint64_t n,
		  uint32_t r, uint32_t p, struct secret *ret, struct error *err)
{
	/* Besides the large table, OpenSSL counts p blocks and a little more. */
	uint64_t room = 128 * (n + p + 2) * r + (UINT64_C(1) << 20);
	EVP_KDF *kdf = EVP_KDF_fetch(NULL, "SCRYPT", NULL);
	EVP_KDF_CTX *ctx = kdf ? EVP_KDF_CTX_new(kdf) : NULL;
	OSSL_PARAM params[] = {
		OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_PASSWORD, unconst(password), len),
		OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_SALT, unconst(salt), KEY_BYTES),
		OSSL_PARAM_construct_uint64(OSSL_KDF_PARAM_SCRYPT_N, &n),
		OSSL_PARAM_construct_uint32(OSSL_KDF_PARAM_SCRYPT_R, &r),
		OSSL_PARAM_construct_uint32(OSSL_KDF_PARAM_SCRYPT_P, &p),
		OSSL_PARAM_construct_uint64(OSSL_KDF_PARAM_SCRYPT_MAXMEM, &room),
		OSSL_PARAM_construct_end(),
	};
	bool ok = ctx && EVP_KDF_derive(ctx, ret->b, sizeof(ret->b), params) == 1;

	EVP_KDF_CTX_free(ctx);
	EVP_KDF_free(kdf);
	return ok ? 0 : crypt_failed(err, "scrypt (it may need more memory than there is)");
}

/* ---- AEAD ---- */

int aead_new(struct aead **ret, struct error *err)
{
	struct aead *a = calloc(1, sizeof(*a));

	if (!a)
		return error_nomem(err);
	a->ctx = EVP_CIPHER_CTX_new();
	if (!a->ctx) {
		free(a);
		return crypt_failed(err, "EVP_CIPHER_CTX_new");
	}
	*ret = a;
	return 0;
}

void aead_free(struct aead *a)
{
	if (!a)
		return;
	EVP_CIPHER_CTX_free(a->ctx); /* wipes the key */
	free(a);
}

int aead_set_key(struct aead *a, const struct secret *key, struct error *err)
{
	if (EVP_CipherInit_ex(a->ctx, EVP_aes_256_gcm(), NULL, key->b, NULL, 1) != 1)
		return crypt_failed(err, "AES-256-GCM");
	return 0;
}

static bool aead_begin(struct aead *a, uint32_t number, const void *aad, size_t aad_len, int enc)
{
	uint8_t nonce[12] = {0};
	struct le32 n = le32_of(number);
	int out;

	memcpy(nonce, n.b, sizeof(n.b));
	return EVP_CipherInit_ex(a->ctx, NULL, NULL, NULL, nonce, enc) == 1 &&
	       EVP_CipherUpdate(a->ctx, NULL, &out, aad, (int)aad_len) == 1;
}

int aead_seal(struct aead *a, uint32_t number, const void *aad, size_t aad_len, const void *in,
	      size_t len, void *out, struct error *err)
{
	uint8_t *o = out;
	int n = 0, rest = 0;

	assert(len <= INT_MAX - TAG_BYTES && aad_len <= INT_MAX);
	if (!aead_begin(a, number, aad, aad_len, 1) ||
	    (len > 0 && EVP_CipherUpdate(a->ctx, o, &n, in, (int)len) != 1) ||
	    EVP_CipherFinal_ex(a->ctx, o + len, &rest) != 1 ||
	    EVP_CIPHER_CTX_ctrl(a->ctx, EVP_CTRL_AEAD_GET_TAG, TAG_BYTES, o + len) != 1)
		return crypt_failed(err, "encryption");
	return 0;
}

static int check_sealed(size_t len, size_t least, struct error *err)
{
	if (len < least + TAG_BYTES || len > INT_MAX)
		return error_set(err, TM_E_CORRUPT, "%zu sealed bytes are too few", len);
	return 0;
}

int aead_open_rest(struct aead *a, const void *in, size_t len, void *out, struct error *err)
{
	const uint8_t *i = in;
	uint8_t *o = out;
	int n = 0, rest = 0, r = check_sealed(len, 0, err);

	if (r < 0)
		return r;
	len -= TAG_BYTES;
	if ((len > 0 && EVP_CipherUpdate(a->ctx, o, &n, i, (int)len) != 1) ||
	    EVP_CIPHER_CTX_ctrl(a->ctx, EVP_CTRL_AEAD_SET_TAG, TAG_BYTES, unconst(i + len)) != 1)
		return crypt_failed(err, "decryption");
	if (EVP_CipherFinal_ex(a->ctx, o + len, &rest) != 1)
		return error_set(err, TM_E_CORRUPT,
				 "the seal is broken (wrong key or changed bytes)");
	return 0;
}

int aead_open_first(struct aead *a, uint32_t number, const void *aad, size_t aad_len,
		    const void *in, size_t len, uint8_t *ret, struct error *err)
{
	int n = 0, r = check_sealed(len, 1, err);

	if (r < 0)
		return r;
	if (!aead_begin(a, number, aad, aad_len, 0) ||
	    EVP_CipherUpdate(a->ctx, ret, &n, in, 1) != 1)
		return crypt_failed(err, "decryption");
	return 0;
}

int aead_open(struct aead *a, uint32_t number, const void *aad, size_t aad_len, const void *in,
	      size_t len, void *out, struct error *err)
{
	if (!aead_begin(a, number, aad, aad_len, 0))
		return crypt_failed(err, "decryption");
	return aead_open_rest(a, in, len, out, err);
}

/* ---- HMAC ---- */

int mac_new(const struct secret *key, struct mac **ret, struct error *err)
{
	struct mac *m = calloc(1, sizeof(*m));
	EVP_MAC *alg = EVP_MAC_fetch(NULL, "HMAC", NULL);
	char digest[] = "SHA256";
	const OSSL_PARAM params[] = {
		OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST, digest, 0),
		OSSL_PARAM_construct_end(),
	};

	if (m && alg)
		m->ctx = EVP_MAC_CTX_new(alg);
	EVP_MAC_free(alg);
	if (!m || !m->ctx || EVP_MAC_init(m->ctx, key->b, sizeof(key->b), params) != 1) {
		mac_free(m);
		return crypt_failed(err, "HMAC");
	}
	*ret = m;
	return 0;
}

void mac_free(struct mac *m)
{
	if (!m)
		return;
	EVP_MAC_CTX_free(m->ctx);
	free(m);
}

int mac_do(struct mac *m, const void *bytes, size_t len, uint8_t ret[KEY_BYTES], struct error *err)
{
	size_t n;

	if (EVP_MAC_init(m->ctx, NULL, 0, NULL) != 1 || EVP_MAC_update(m->ctx, bytes, len) != 1 ||
	    EVP_MAC_final(m->ctx, ret, &n, KEY_BYTES) != 1)
		return crypt_failed(err, "HMAC");
	return 0;
}

int mac_once(const struct secret *key, const void *bytes, size_t len, uint8_t ret[KEY_BYTES],
	     struct error *err)
{
	auto_clean(mac_free) struct mac *m = NULL;
	int r = mac_new(key, &m, err);

	return r < 0 ? r : mac_do(m, bytes, len, ret, err);
}

/* ---- SHA-256 ---- */

static int hash_begin(struct hash *h, struct error *err)
{
	return EVP_DigestInit_ex2(h->ctx, EVP_sha256(), NULL) == 1 ? 0
								   : crypt_failed(err, "SHA-256");
}

int hash_new(struct hash **ret, struct error *err)
{
	struct hash *h = calloc(1, sizeof(*h));
	int r;

	if (!h)
		return error_nomem(err);
	h->ctx = EVP_MD_CTX_new();
	r = h->ctx ? hash_begin(h, err) : error_nomem(err);
	if (r < 0) {
		hash_free(h);
		return r;
	}
	*ret = h;
	return 0;
}

void hash_free(struct hash *h)
{
	if (!h)
		return;
	EVP_MD_CTX_free(h->ctx);
	free(h);
}

int hash_add(struct hash *h, const void *bytes, size_t len, struct error *err)
{
	return EVP_DigestUpdate(h->ctx, bytes, len) == 1 ? 0 : crypt_failed(err, "SHA-256");
}

int hash_end(struct hash *h, uint8_t ret[DIGEST_BYTES], struct error *err)
{
	uint8_t all[EVP_MAX_MD_SIZE];

	if (EVP_DigestFinal_ex(h->ctx, all, NULL) != 1)
		return crypt_failed(err, "SHA-256");
	memcpy(ret, all, DIGEST_BYTES);
	return hash_begin(h, err);
}

/* ---- X25519 ---- */

static void cleanup_pkey(EVP_PKEY **p)
{
	EVP_PKEY_free(*p);
}
#define auto_pkey __attribute__((cleanup(cleanup_pkey)))

int data_public(const struct secret *data, uint8_t ret[KEY_BYTES], struct error *err)
{
	auto_pkey EVP_PKEY *k =
		EVP_PKEY_new_raw_private_key(EVP_PKEY_X25519, NULL, data->b, KEY_BYTES);
	size_t n = KEY_BYTES;

	if (!k || EVP_PKEY_get_raw_public_key(k, ret, &n) != 1)
		return crypt_failed(err, "X25519");
	return 0;
}

/* ret = HKDF(X25519(mine, theirs), theirs' and my public key ‖ info) */
static int agree(const struct secret *mine, const uint8_t theirs[KEY_BYTES],
		 const uint8_t epk[KEY_BYTES], const void *info, size_t info_len,
		 struct secret *ret, struct error *err)
{
	auto_pkey EVP_PKEY *sk =
		EVP_PKEY_new_raw_private_key(EVP_PKEY_X25519, NULL, mine->b, KEY_BYTES);
	auto_pkey EVP_PKEY *pk =
		EVP_PKEY_new_raw_public_key(EVP_PKEY_X25519, NULL, theirs, KEY_BYTES);
	EVP_PKEY_CTX *ctx = sk ? EVP_PKEY_CTX_new(sk, NULL) : NULL;
	auto_secret struct secret shared = {{0}};
	uint8_t all[128];
	size_t n = KEY_BYTES;
	bool ok = ctx && pk && EVP_PKEY_derive_init(ctx) == 1 &&
		  EVP_PKEY_derive_set_peer(ctx, pk) == 1 &&
		  EVP_PKEY_derive(ctx, shared.b, &n) == 1 && n == KEY_BYTES;

	EVP_PKEY_CTX_free(ctx);
	if (!ok)
		return error_set(err, TM_E_CORRUPT,
				 "the session's key wrap holds no valid public key");
	assert(KEY_BYTES + info_len <= sizeof(all));
	memcpy(all, epk, KEY_BYTES);
	memcpy(all + KEY_BYTES, info, info_len);
	return derive(&shared, all, KEY_BYTES + info_len, ret, err);
}

int wrap_seal(const uint8_t data_pk[KEY_BYTES], const void *info, size_t info_len,
	      const struct secret *key, uint8_t ret[WRAP_BYTES], struct error *err)
{
	auto_clean(aead_free) struct aead *a = NULL;
	auto_secret struct secret esk = {{0}}, kek = {{0}};
	uint8_t out[WRAP_BYTES];
	int r;

	r = random_bytes(esk.b, sizeof(esk.b), err);
	if (r == 0)
		r = data_public(&esk, out, err);
	if (r == 0)
		r = agree(&esk, data_pk, out, info, info_len, &kek, err);
	if (r == 0)
		r = aead_new(&a, err);
	if (r == 0)
		r = aead_set_key(a, &kek, err);
	if (r == 0)
		r = aead_seal(a, 0, info, info_len, key->b, sizeof(key->b), out + KEY_BYTES, err);
	if (r == 0)
		memcpy(ret, out, sizeof(out));
	return r;
}

int wrap_open(const struct secret *data, const void *info, size_t info_len,
	      const uint8_t wrap[WRAP_BYTES], struct secret *ret, struct error *err)
{
	auto_clean(aead_free) struct aead *a = NULL;
	auto_secret struct secret kek = {{0}}, key = {{0}};
	int r;

	r = agree(data, wrap, wrap, info, info_len, &kek, err);
	if (r == 0)
		r = aead_new(&a, err);
	if (r == 0)
		r = aead_set_key(a, &kek, err);
	if (r == 0)
		r = aead_open(a, 0, info, info_len, wrap + KEY_BYTES, WRAP_BYTES - KEY_BYTES, key.b,
			      err);
	if (r == 0)
		*ret = key;
	return r;
}
