/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The key hierarchy (docs/format.md, "Keys"):
 *
 *	key slot ──▸ master keys {meta, id, data}
 *	               └─ per domain {meta, id, data pair}
 *	                    └─ per session {meta (derived), data (random, sealed to the pair)}
 *	                         └─ per segment
 */
#pragma once

#include "crypt.h"
#include "store.h"

/*
 * Data keys have generations: a rotation adds one.  Whoever may read holds all of them, `data`
 * being the newest and old[g] that of generation g.
 */
struct master_keys {
	struct tm_id scope; /* zero: of all domains; else this domain's own keys, derived */
	struct secret meta, id, data;
	uint32_t has; /* KEY_HAS_… */
	uint32_t generation;
	struct secret old[MAX_DATA_KEYS - 1];
};

struct domain_keys {
	struct secret meta, id, data;
	uint32_t has;
	uint32_t generation;
	struct secret old[MAX_DATA_KEYS - 1];
	uint8_t data_public[KEY_BYTES]; /* what new sessions are sealed to */
	uint32_t public_generation;
};

struct session_keys {
	struct secret meta, data;
	bool has_data;
	uint8_t wrap[WRAP_BYTES];
};

void master_wipe(struct master_keys *k);
#define auto_master __attribute__((cleanup(master_wipe)))
void domain_wipe(struct domain_keys *k);
void session_keys_wipe(struct session_keys *k);

int master_new(struct master_keys *ret, struct error *err) TM_WUR;
/* Puts a fresh data key in front of the present ones. */
int master_rotate(struct master_keys *keys, struct error *err) TM_WUR;

/*
 * All but data_public, which is computed when the data key is there.  Keys of one domain give that
 * domain's only.
 */
int domain_derive(const struct master_keys *master, const struct tm_id *domain,
		  struct domain_keys *ret, struct error *err) TM_WUR;

/* The domain's own keys, with data keys up to the one that is in use. */
void domain_own(const struct domain_keys *keys, const struct tm_id *domain,
		struct master_keys *ret);

/* Fresh keys for a session that begins, and keys of one that is read, from its wrap: without those
 * for data when the domain's keys have none, or none that new. */
int session_keys_new(const struct domain_keys *domain, const struct tm_id *repo,
		     const struct tm_id *sid, struct session_keys *ret, struct error *err) TM_WUR;
int session_keys_open(const struct domain_keys *domain, const struct tm_id *repo,
		      const struct tm_id *sid, const uint8_t wrap[WRAP_BYTES],
		      struct session_keys *ret, struct error *err) TM_WUR;

/* The object that a segment's payload was sealed for.  Compaction keeps it; what is built again has
 * another one, hence other keys: no nonce is used twice. */
struct seg_sealing {
	uint32_t generation, run;
};

/* The key of a segment's frames (session: of the data or of the map) or of its descriptor table. */
int segment_key(const struct secret *session, uint8_t type, uint32_t index,
		const struct seg_sealing *sealing, struct secret *ret, struct error *err) TM_WUR;

/* 16 bytes that stand for a guest's name in object names. */
int source_id(const struct domain_keys *domain, const char *guest, struct tm_id *ret,
	      struct error *err) TM_WUR;
