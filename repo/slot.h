/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A key slot: what a password or a key file opens (docs/format.md, "Keys").  Encoding and decoding
 * of one object; keyring.c knows which slots there are.
 */
#pragma once

#include "keys.h"

/* The header, checked and in memory. */
struct slot {
	struct tm_id kid;
	uint8_t kdf; /* KDF_… */
	enum repo_role role;
	uint32_t generation;
	struct tm_id scope; /* the only domain it opens; zero: all */
	uint64_t created_ms;
	char label[65];
	unsigned log2_n; /* scrypt */
	uint32_t r, p;
	uint8_t salt[KEY_BYTES];
};

/* "password", "key-file", "none". */
const char *slot_kdf_name(uint8_t kdf);
const char *role_name(enum repo_role role);
/* What a holder of the role has: KEY_HAS_… */
uint32_t role_keys(enum repo_role role);

/* Checks header and checksums, and that this program knows all of it.  No secret is needed. */
int slot_parse(const struct tm_id *repo, const char *name, const void *bytes, size_t len,
	       struct slot *ret, struct error *err) TM_WUR;

/*
 * The keys of a slot that slot_parse accepted.  secret NULL: for a slot that needs none.
 * TM_E_DENIED when the secret is not the slot's.
 */
int slot_open(const struct slot *slot, const struct repo_secret *secret, const char *name,
	      const void *bytes, size_t len, struct master_keys *ret, struct error *err) TM_WUR;

/* Makes a slot: those of the keys that its role has.  Fills in salt, generation and scope. */
int slot_encode(const struct tm_id *repo, struct slot *slot, const struct repo_secret *secret,
		const struct master_keys *keys, struct buf *ret, struct error *err) TM_WUR;

/* ---- the records of a slot; also what a paper key holds ---- */

#define RECORDS_MAX (MAX_DATA_KEYS * sizeof(struct format_key_record))

/* ret has room for RECORDS_MAX bytes. */
size_t records_encode(const struct master_keys *keys, enum repo_role role, uint8_t *ret);
int records_decode(const uint8_t *bytes, size_t len, enum repo_role role, struct master_keys *ret,
		   struct error *err) TM_WUR;
