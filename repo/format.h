/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The objects as they lie in the store: fixed structures, constants and limits.
 * docs/format.md is normative; tests compare its tables with this file.
 */
#pragma once

#include "common/common.h"

#include <assert.h>
#include <stddef.h>

#define FORMAT_VERSION 1

/* First eight bytes of each kind of object. */
#define MAGIC_REPO    "TMRKREPO"
#define MAGIC_KEY     "TMRKKEYS"
#define MAGIC_DOMAIN  "TMRKDOMN"
#define MAGIC_SESSION "TMRKSESS"
#define MAGIC_SEGMENT "TMRKSEGM"
#define MAGIC_POINT   "TMRKPOIN"
#define MAGIC_CHECK   "TMRKCHCK"
#define MAGIC_FLAG    "TMRKFLAG"
#define MAGIC_LOST    "TMRKLOST"

#define CIPHER_AES256_GCM  1
#define ID_ALG_HMAC_SHA256 1

#define KEY_BYTES     32
#define TAG_BYTES     16
#define CONTENT_BYTES 16
#define DIGEST_BYTES  16
#define WRAP_BYTES    80 /* ephemeral public key, sealed session data key, tag */

/* Feature bits that this version knows: none. */
#define KNOWN_INCOMPAT  UINT64_C(0)
#define KNOWN_RO_COMPAT UINT64_C(0)

/* What all objects begin with. */
struct format_head {
	char magic[8];
	struct le16 version;
	struct le16 head_len; /* of the whole fixed header */
	struct le32 reserved;
	struct le64 incompat;  /* unknown bit: refuse the object */
	struct le64 ro_compat; /* unknown bit: read only */
	struct le64 compat;    /* unknown bit: ignore */
	struct tm_id repo;
};
static_assert(sizeof(struct format_head) == 56, "docs/format.md");

/* Object "repo". */
struct format_repo {
	struct format_head head;
	struct tm_id domain; /* the default domain */
	uint8_t data_slots_log2;
	uint8_t map_slots_log2;
	uint8_t block_bits;
	uint8_t cipher;
	uint8_t id_alg;
	uint8_t encrypted; /* 1: no key slot is stored unwrapped */
	uint8_t reserved[18];
	uint8_t mac[KEY_BYTES]; /* HMAC-SHA256 of all before it */
	struct le32 crc;        /* of all before it */
};
static_assert(sizeof(struct format_repo) == 132, "docs/format.md");

/* What holders of one domain's keys prove by the domain's MAC. */
#define REPO_PARAMS_AT    72
#define REPO_PARAMS_BYTES 24
static_assert(offsetof(struct format_repo, data_slots_log2) == REPO_PARAMS_AT &&
		      offsetof(struct format_repo, mac) == REPO_PARAMS_AT + REPO_PARAMS_BYTES,
	      "docs/format.md");

/* Object "keys/<kid>": header, then the body (struct format_key_record, …), then a tag if wrapped.
 */
#define KDF_NONE     0
#define KDF_SCRYPT   1
#define KDF_KEY_FILE 2

#define ROLE_FULL    1
#define ROLE_BACKUP  2
#define ROLE_JANITOR 3

struct format_key {
	struct format_head head;
	struct tm_id kid;
	uint8_t kdf;
	uint8_t cipher;
	uint8_t role;
	uint8_t log2_n; /* scrypt */
	struct le32 r;
	struct le32 p;
	struct le32 body_len; /* tag included */
	uint8_t salt[32];
	struct le64 created_ms;
	uint8_t label[64];      /* UTF-8, filled up with zeroes */
	struct le32 generation; /* of the newest data key; 0 when none is held */
	struct tm_id scope;     /* the only domain it opens; zero: all */
	uint8_t reserved[20];
	struct le32 body_crc;
	struct le32 crc;
};
static_assert(sizeof(struct format_key) == 240, "docs/format.md");

#define KEY_HAS_META 1
#define KEY_HAS_ID   2
#define KEY_HAS_DATA 4

struct format_key_record {
	struct tm_id scope; /* as in the header */
	struct le32 has;
	struct le32 generation; /* of data */
	uint8_t meta[KEY_BYTES];
	uint8_t id[KEY_BYTES];
	uint8_t data[KEY_BYTES];
};
static_assert(sizeof(struct format_key_record) == 120, "docs/format.md");

/* A paper key: this, then the records of a full key; as text. */
struct format_paper {
	uint8_t version;
	uint8_t role;
	struct le16 len; /* of all */
	struct tm_id repo;
	struct le32 crc; /* of all but this field */
};
static_assert(sizeof(struct format_paper) == 24, "docs/format.md");

#define DOMAIN_NAME_BYTES 64

/* Objects "domains/<dom>.<gggg>". */
struct format_domain {
	struct format_head head;
	struct tm_id domain;
	uint8_t data_public[KEY_BYTES]; /* X25519 */
	struct le32 generation;         /* of the data key */
	uint8_t reserved[20];
	uint8_t name[DOMAIN_NAME_BYTES + TAG_BYTES]; /* sealed; filled up with zeroes */
	uint8_t mac[KEY_BYTES]; /* of all before it and the parameters in "repo" */
	struct le32 crc;
};
static_assert(sizeof(struct format_domain) == 244, "docs/format.md");

/* Objects "d/<dom>/k/<sid>" and "d/<dom>/k/<sid>.p<nnnn>": header, then the sealed body. */
struct format_session {
	struct format_head head;
	struct tm_id domain;
	struct tm_id session;
	struct le32 pin;      /* 0: the marker; n: pin n */
	struct le32 body_len; /* tag included */
	uint8_t wrap[WRAP_BYTES];
	struct le32 body_crc;
	struct le32 crc;
};
static_assert(sizeof(struct format_session) == 184, "docs/format.md");

/* Tombstones, fences, verdicts, holds: the name says all; the body is for people. */
struct format_flag {
	struct format_head head;
	struct tm_id domain;
	struct tm_id session;
	uint8_t kind; /* as in the name: t, f, v, h */
	uint8_t reserved[3];
	struct le32 number; /* as in the name, or 0 */
	struct le64 created_ms;
	struct le32 crc;
};
static_assert(sizeof(struct format_flag) == 108, "docs/format.md");

/* Object "d/<dom>/x/<sid>.<segment>-<random>": header, then a bit for each slot. */
struct format_lost {
	struct format_head head;
	struct tm_id domain;
	struct tm_id session;
	uint8_t type; /* of the segment */
	uint8_t reserved[3];
	struct le32 index;
	struct le64 created_ms;
	struct le32 body_len;
	struct le32 body_crc;
	struct le32 crc;
};
static_assert(sizeof(struct format_lost) == 116, "docs/format.md");

#define SEGMENT_DATA 1
#define SEGMENT_MAP  2

/* Segments: header, frame table, descriptor table, payload. */
struct format_segment {
	struct format_head head;
	struct tm_id domain;
	struct tm_id session;
	struct le32 index;
	struct le32 generation;
	struct le32 run;
	uint8_t type;
	uint8_t block_bits;
	uint8_t cipher;
	uint8_t reserved;
	struct le32 nslots;
	struct le32 nframes;
	struct le32 nextras;
	struct le32 desc_len; /* tag included; 0: no table */
	struct le64 payload_len;
	uint8_t wrap[WRAP_BYTES];
	struct le32 frames_crc; /* of the frame table */
	struct le32 desc_crc;   /* of the descriptor table as stored */
	/* The object that the payload was sealed for, which the keys are made from. */
	struct le32 sealed_generation;
	struct le32 sealed_run;
	uint8_t reserved2[28];
	struct le32 crc; /* of the header before it */
};
static_assert(sizeof(struct format_segment) == 256, "docs/format.md");

struct format_frame {
	struct le16 first_slot;
	struct le16 nslots;
	struct le32 stored_len; /* tag included; 0: removed by compaction */
	struct le32 crc;        /* of the stored bytes */
};
static_assert(sizeof(struct format_frame) == 12, "docs/format.md");

/* First byte of an opened frame. */
#define FRAME_RAW  0
#define FRAME_ZSTD 1

#define DESC_SLOT  0
#define DESC_HOLE  1
#define DESC_ALIAS 2

/* One per slot, in slot order, then the extra records. */
struct format_desc {
	struct le64 place; /* block (48 bits), disk (8), kind (8) */
	uint8_t b[16];     /* slot: content id; hole: count (le32), zeroes;
			    * alias: count (le32), session index (le32), ordinal (le64) */
};
static_assert(sizeof(struct format_desc) == 24, "docs/format.md");

/* Object "d/<dom>/p/<src>/<seq>-<sid>": header, then the sealed, compressed body of TLVs. */
struct format_point {
	struct format_head head;
	struct tm_id domain;
	struct tm_id source;
	struct tm_id session;
	struct le32 seq;
	struct le32 body_len;  /* as stored, tag included */
	struct le32 plain_len; /* decompressed */
	uint8_t reserved[20];
	struct le32 body_crc;
	struct le32 crc;
};
static_assert(sizeof(struct format_point) == 144, "docs/format.md");

/* Object "d/<dom>/c/<level>-<id>": where a verification under a budget ended. */
struct format_check {
	struct format_head head;
	struct tm_id domain;
	uint8_t level; /* 's' or 'r' */
	uint8_t reserved[7];
	struct le64 objects; /* looked at by this run */
	struct le64 damaged; /* of them, found so far */
	uint8_t last[192];   /* name of the last object, filled up with zeroes */
	struct le32 crc;
};
static_assert(sizeof(struct format_check) == 292, "docs/format.md");

/* A field of a manifest: tag, length, then the bytes. */
struct format_tlv {
	struct le16 tag;
	struct le16 flags; /* bit 0: refuse the point when the tag is unknown */
	struct le32 len;
};
static_assert(sizeof(struct format_tlv) == 8, "docs/format.md");
#define TLV_CRITICAL 1

/* An entry of a disk's session table. */
struct format_table_entry {
	struct tm_id session;
	struct le32 ndata; /* data segments of that session */
	struct le32 nmap;
};
static_assert(sizeof(struct format_table_entry) == 24, "docs/format.md");

/* Of a disk, in the manifest. */
struct format_disk_audit {
	struct le64 data;
	struct le64 empty;
	struct le64 differed;
	struct le64 whole_ms;
	struct le64 all_data;
	struct le64 all_empty;
};
static_assert(sizeof(struct format_disk_audit) == 48, "docs/format.md");

/* The session's own segments, in the manifest. */
struct format_own_segment {
	struct le32 nslots;
	struct le32 head_crc; /* the header's crc field */
	struct le64 size;     /* of the object */
};
static_assert(sizeof(struct format_own_segment) == 16, "docs/format.md");

/* ---- limits ---- */

#define DATA_SLOTS_LOG2 10
#define DATA_SLOTS      (1U << DATA_SLOTS_LOG2)
#define MAP_SLOTS_LOG2  14
#define MAP_SLOTS       (1U << MAP_SLOTS_LOG2)
#define MIN_BLOCK_BITS  12
#define MAX_BLOCK_BITS  20

#define FRAME_TARGET_BYTES (512u << 10) /* of the aligned group that writers make a frame of */
#define FRAME_MAX_SLOTS    16           /* of a data frame: what a piece carries */
#define PAGE_MAX_NODES     1024         /* of a map frame */
#define PAGE_MAX_BYTES     (40u << 10)  /* decompressed: the writer's target plus one node */
#define PAGE_TARGET_BYTES  (32u << 10)

/* Writers close a segment at this payload, so that a few of them in memory stay small. */
#define SEGMENT_TARGET_PAYLOAD (16u << 20)
#define SEGMENT_MAX_EXTRAS     1024
/* What a reader accepts: 1024 incompressible slots of the largest block. */
#define SEGMENT_MAX_PAYLOAD \
	((UINT64_C(1) << (DATA_SLOTS_LOG2 + MAX_BLOCK_BITS)) + (UINT64_C(1) << 20))

#define NODE_LEAF_BLOCKS  128
#define NODE_CHILDREN     256
#define NODE_MAX_LEVEL    4
#define NODE_MAX_BYTES    3072 /* 256 runs of at most 11 bytes, and the head */
#define MAX_BLOCKS        (UINT64_C(1) << 39)
#define MAX_SESSIONS      (1U << 20) /* of a disk's session table: 20-bit index */
#define MAX_ORDINAL       ((UINT64_C(1) << 40) - 1)
#define MAX_SEGMENT_INDEX ((1U << 24) - 1) /* twice three hex digits in names */
#define MAX_DISKS         256
#define MAX_MANIFEST      (64u << 20)
#define MAX_KEY_OBJECT    (64u << 10)
#define MAX_DATA_KEYS     32 /* generations: the first one and 31 rotations */
#define MAX_KEY_SLOTS     64 /* each may cost a key derivation */
#define MAX_DOMAINS       1024

/* What scrypt may be asked for: 1 GiB of memory, 64 times the work of a new slot. */
#define SCRYPT_MAX_LOG2_N 20
#define SCRYPT_MAX_R      32
#define SCRYPT_MAX_P      16
#define SCRYPT_MAX_MEMORY (UINT64_C(1) << 30) /* 128 × N × r */
#define SCRYPT_MAX_WORK   (UINT64_C(1) << 26) /* N × r × p */
#define MAX_MARKER        (64u << 10)

void format_head_init(struct format_head *h, const char *magic, size_t head_len,
		      const struct tm_id *repo);

/*
 * Checks the fixed header of head_len bytes that an object of len bytes begins with: its
 * checksum (the last four bytes of the header, in every version), then version, features and
 * repository (NULL: any).  `what` names the object in messages.
 */
int format_head_check(const void *object, size_t len, const char *magic, size_t head_len,
		      const struct tm_id *repo, const char *what, struct error *err) TM_WUR;

/* Sets the checksum of a header whose other fields are final. */
void format_head_seal(void *header, size_t head_len);
