/* SPDX-License-Identifier: Apache-2.0 */
/* The repository as its own files see it. */
#pragma once

#include "keys.h"
#include "names.h"
#include "repo.h"
#include "store.h"

#include <zstd.h>

struct cache;

struct repo {
	struct store *st; /* owned */
	struct loop *loop;
	struct tm_id id;
	struct tm_id default_domain;
	uint8_t params[REPO_PARAMS_BYTES]; /* as in the object "repo" */
	uint64_t read_only;                /* features that a writer would have to know */
	unsigned block_bits;
	/* the domain in use */
	struct tm_id domain;
	char domain_name[DOMAIN_NAME_BYTES + 1];
	struct domain_keys keys;
	struct master_keys master;
	bool encrypted;
	enum repo_role role;
	struct tm_id kid;          /* of the slot that was opened; zero: a paper key */
	char worn_object[KEY_MAX]; /* a copy of "repo" that is missing or damaged; "": none */
	char worn_slot[KEY_MAX];   /* the same of the slot */
	char worn_domain[KEY_MAX]; /* the same of the object of the domain in use */
	unsigned log2_n;           /* of new slots */
	unsigned mended;           /* copies that were put again to open it */
	struct cache *cache;
	/* For an object's whole decoding, on the loop thread.  Kept, for zstd asks the processor
	 * what it can when one is made, which in a virtual machine takes longer than a manifest. */
	struct aead *aead;
	ZSTD_DCtx *dctx;
};

/* ---- keys: key_open.c, keyring.c ---- */

/* The first slot; secret NULL: stored unwrapped. */
int keyring_init(struct repo *repo, const char *label, const struct repo_secret *secret,
		 struct error *err) TM_WUR;

/* TM_E_UNSUPPORTED: only a newer program may write to it. */
int repo_check_writable(const struct repo *repo, struct error *err) TM_WUR;
/* TM_E_DENIED: there may be points that this key cannot read. */
int key_check_reads_all(const struct repo *repo, struct error *err) TM_WUR;

/* ---- paper.c ---- */

/* 64 hex digits; secret is that of a file. */
int key_file_decode(const struct repo_secret *secret, struct secret *ret, struct error *err) TM_WUR;
bool is_paper(const struct repo_secret *secret);
int paper_encode(const struct tm_id *repo, const struct master_keys *keys, char **ret,
		 struct error *err) TM_WUR;
int paper_decode(const struct repo_secret *secret, const struct tm_id *repo,
		 struct master_keys *ret, struct error *err) TM_WUR;

struct table_entry {
	struct tm_id session;
	uint32_t ndata, nmap; /* segments of that session */
};

/* The least content ids of a disk, by their first 8 bytes: what two disks have in common shows in
 * what their sketches have in common. */
#define SKETCH_IDS 256

struct sketch {
	uint32_t n;
	uint64_t v[SKETCH_IDS]; /* ascending */
};

/* How to read a disk of a point: struct point_disk.map. */
struct disk_map {
	uint64_t root; /* reference, REF_HOLE: all hole */
	struct table_entry *table;
	uint32_t nsessions;
	uint32_t parent_number; /* the parent's disk, counted from 1; 0: none */
	/* The map this one was made from, in the same table: what a rebuild begins with. */
	uint64_t parent_root;
	uint64_t parent_size;
	struct sketch *sketch; /* or NULL */
};

void disk_map_free(struct disk_map *m);

static inline uint64_t disk_blocks(uint64_t size, unsigned block_bits)
{
	return (size >> block_bits) + ((size & ((UINT64_C(1) << block_bits) - 1)) != 0);
}

/* ---- flags (marker.c, flag.c) ---- */

/* The point that pin n of a session names. */
int marker_read_pin(struct repo *repo, const struct tm_id *sid, uint32_t pin, struct tm_id *ret,
		    struct error *err) TM_WUR;
/* Whether a janitor took the session for dead: looked for after the commit. */
int marker_fenced(struct repo *repo, const struct tm_id *sid, bool *ret, struct error *err) TM_WUR;

struct format_flag flag_body(const struct repo *repo, enum session_flag flag,
			     const struct tm_id *sid, uint32_t number, uint64_t now_ms);
/* Puts a tombstone, fence or verdict; one that is there already is success. */
int flag_put(struct repo *repo, enum session_flag flag, const struct tm_id *sid, uint32_t number,
	     struct error *err) TM_WUR;
