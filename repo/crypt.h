/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Cryptography over OpenSSL.  Contexts are made once per thread or object and
 * reused; secrets are wiped when their object goes.
 */
#pragma once

#include "format.h"

struct secret {
	uint8_t b[KEY_BYTES];
};

void secret_wipe(struct secret *k);
#define auto_secret __attribute__((cleanup(secret_wipe)))

/* ret = HKDF-SHA256(key, info) */
int derive(const struct secret *key, const void *info, size_t len, struct secret *ret,
	   struct error *err) TM_WUR;
/* the same with info = label ‖ id */
int derive_id(const struct secret *key, const char *label, const struct tm_id *id,
	      struct secret *ret, struct error *err) TM_WUR;

/* scrypt; n is its N.  Takes 128 × n × r bytes and a while. */
int derive_scrypt(const void *password, size_t len, const uint8_t salt[KEY_BYTES], uint64_t n,
		  uint32_t r, uint32_t p, struct secret *ret, struct error *err) TM_WUR;

/* ---- AES-256-GCM: nonce = number (le32) ‖ 0^64 ---- */

struct aead;
int aead_new(struct aead **ret, struct error *err) TM_WUR;
void aead_free(struct aead *a);
TM_CLEANUP(struct aead, aead_free)

int aead_set_key(struct aead *a, const struct secret *key, struct error *err) TM_WUR;

/* In place or not; out has room for len + TAG_BYTES. */
int aead_seal(struct aead *a, uint32_t number, const void *aad, size_t aad_len, const void *in,
	      size_t len, void *out, struct error *err) TM_WUR;

/* len includes the tag; out gets len - TAG_BYTES bytes.  TM_E_CORRUPT without a text of its own
 * place: callers prefix it. */
int aead_open(struct aead *a, uint32_t number, const void *aad, size_t aad_len, const void *in,
	      size_t len, void *out, struct error *err) TM_WUR;

/*
 * The same in two steps, for what begins with a byte that says where the rest belongs: len is that
 * of all.  That byte is proved with the rest, so it may choose a place and nothing else before.
 */
int aead_open_first(struct aead *a, uint32_t number, const void *aad, size_t aad_len,
		    const void *in, size_t len, uint8_t *ret, struct error *err) TM_WUR;
/* Of what follows, with the tag. */
int aead_open_rest(struct aead *a, const void *in, size_t len, void *out, struct error *err) TM_WUR;

/* ---- HMAC-SHA256 ---- */

struct mac;
int mac_new(const struct secret *key, struct mac **ret, struct error *err) TM_WUR;
void mac_free(struct mac *m);
TM_CLEANUP(struct mac, mac_free)
int mac_do(struct mac *m, const void *bytes, size_t len, uint8_t ret[KEY_BYTES],
	   struct error *err) TM_WUR;

/* One shot. */
int mac_once(const struct secret *key, const void *bytes, size_t len, uint8_t ret[KEY_BYTES],
	     struct error *err) TM_WUR;

/* ---- SHA-256 ---- */

struct hash;
int hash_new(struct hash **ret, struct error *err) TM_WUR;
void hash_free(struct hash *h);
int hash_add(struct hash *h, const void *bytes, size_t len, struct error *err) TM_WUR;
/* The first bytes of the hash of all that was added; then it begins again. */
int hash_end(struct hash *h, uint8_t ret[DIGEST_BYTES], struct error *err) TM_WUR;

bool equal_secret(const void *a, const void *b, size_t len);

/* ---- X25519: sealing 32 bytes to a public key ---- */

int data_public(const struct secret *data, uint8_t ret[KEY_BYTES], struct error *err) TM_WUR;
int wrap_seal(const uint8_t data_pk[KEY_BYTES], const void *info, size_t info_len,
	      const struct secret *key, uint8_t ret[WRAP_BYTES], struct error *err) TM_WUR;
int wrap_open(const struct secret *data, const void *info, size_t info_len,
	      const uint8_t wrap[WRAP_BYTES], struct secret *ret, struct error *err) TM_WUR;
