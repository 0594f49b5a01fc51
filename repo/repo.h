/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The public header of repo/: a repository of points.  The format and its rules
 * are in docs/format.md, which is normative.
 *
 *   store_dir_open()                     where the objects lie
 *   repo_init(), repo_open_with()        takes the store over; a domain is in use
 *   repo_session_begin() …               a backup: pieces of its disks in, then
 *   repo_session_commit()                  … its point
 *   repo_point_find(), repo_read_disk()  a restore
 *   repo_forget(), repo_prune()          upkeep,
 *   repo_verify(), repo_repair()           … and damage
 *   repo_free()
 *
 * All calls on a repository, its store and its sessions belong on the thread that runs the store's
 * loop, and block it until they are done; one that "runs the loop" calls others back meanwhile.
 * What *ret gets is the caller's, and goes with the function that ends in _free or _done; arguments
 * are borrowed during the call unless it is said otherwise.  Sizes and offsets are bytes, times
 * Unix milliseconds.
 */
#pragma once

#include "bitmap/bitmap.h"
#include "common/common.h"

/* ---- store: the seam to whatever keeps the objects (docs/format.md, "Store contract") ---- */

struct store;
struct store_req;

typedef void store_done_fn(struct store_req *req, int code);

/*
 * Embedded in the caller's object; borrowed by the store until done(), which runs on the loop and
 * never inside the call that made the request.
 */
struct store_req {
	store_done_fn *done; /* code 0 or TM_E_*, looked at first; err says more */
	struct error err;
	size_t got;        /* of a get: bytes read */
	struct loop_op op; /* the store's own, as is code */
	int code;
};

typedef int store_list_fn(void *data, const char *key, uint64_t size, struct error *err);

/* What interrupted puts left; it is no object. */
struct store_leftovers {
	uint64_t before_ms; /* Unix time; what is younger may be at work */
	bool dry_run;
	uint64_t files, bytes; /* out: removed, or would be */
};

struct store_ops {
	/*
	 * Makes object `key` of `len` bytes: whole and durable when done(0) is called, or not
	 * there. TM_E_EXISTS when the key is taken, durably.  key and bytes are borrowed until
	 * done().
	 */
	void (*put_new)(struct store *st, const char *key, const void *bytes, size_t len,
			struct store_req *req);
	/*
	 * Reads len bytes at offset; req->got is less only where the object ends.
	 * TM_E_NOTFOUND.  key is borrowed until done(), too.
	 */
	void (*get)(struct store *st, const char *key, void *bytes, size_t len, uint64_t offset,
		    struct store_req *req);
	/* Calls fn for every object whose key begins with prefix, in byte order.  Blocking. */
	int (*list)(struct store *st, const char *prefix, store_list_fn *fn, void *data,
		    struct error *err);
	/* Size in bytes.  TM_E_NOTFOUND.  Blocking. */
	int (*head)(struct store *st, const char *key, uint64_t *ret_size, struct error *err);
	/* Afterwards it is not there, durably; no such object is success.  Blocking. */
	int (*remove)(struct store *st, const char *key, struct error *err);
	/*
	 * Makes durable what list(prefix) shows, and that what it does not show is gone: a process
	 * that was killed leaves puts and removals which are seen and not yet durable.  prefix
	 * ends with '/'; none of that name is success.  Blocking.
	 */
	int (*sync)(struct store *st, const char *prefix, struct error *err);
	/* Removes leftovers, and folders that are empty; at any time beside puts.  Blocking. */
	int (*tidy)(struct store *st, struct store_leftovers *left, struct error *err);
	/*
	 * What deletes has to write first.  use: from now on puts may use up the room that the
	 * store keeps back for that.  Otherwise, as in the beginning, they may not, and it is kept
	 * back again as far as there is any.  NULL: a store that is never full.  Blocking.
	 */
	void (*reserve)(struct store *st, bool use);
	void (*free)(struct store *st);
};

struct store {
	const struct store_ops *ops;
	struct loop *loop; /* borrowed */
};

/* A local directory, which exists already (create: is made when missing; must then be empty, or
 * hold no more than an interrupted init left). */
int store_dir_open(struct loop *loop, const char *path, bool create, struct store **ret,
		   struct error *err) TM_WUR;
/* Objects in memory, for tests. */
int store_memory_new(struct loop *loop, struct store **ret, struct error *err) TM_WUR;
void store_free(struct store *st);
TM_CLEANUP(struct store, store_free)

/* ---- repository ---- */

struct repo;

/* ---- secrets and roles (docs/format.md, "Keys") ---- */

enum repo_role {
	REPO_ROLE_FULL = 1,
	REPO_ROLE_BACKUP = 2,  /* makes backups and lists, cannot read data */
	REPO_ROLE_JANITOR = 3, /* lists, checks structure, prunes */
};

enum repo_secret_kind {
	REPO_SECRET_NONE = 0,
	REPO_SECRET_PASSWORD = 1,
	REPO_SECRET_KEY_FILE = 2, /* the text of a key file or of a paper key */
};

/* Borrowed by whoever gets it until the call returns; wiped by its owner. */
struct repo_secret {
	enum repo_secret_kind kind;
	const void *bytes;
	size_t len;
};

struct repo_credentials {
	/* Called once, and only for an encrypted repository.  TM_E_DENIED: there is no secret. */
	int (*get)(void *data, struct repo_secret *ret, struct error *err);
	void *data;
	/* A secret was named: a repository that is not encrypted is refused, because it may have
	 * been put in the place of one that is. */
	bool given;
};

#define REPO_KEY_FILE_TEXT 66 /* 64 hex digits, newline, end */
/* A new key file's text: 32 random bytes. */
int repo_key_file_new(char ret[REPO_KEY_FILE_TEXT], struct error *err) TM_WUR;
/* Whether it is the text of a key file. */
bool repo_key_file_ok(const struct repo_secret *secret);

struct repo_init_options {
	uint32_t block_size;              /* 64 KiB */
	const struct repo_secret *secret; /* NULL: not encrypted */
	const char *label;                /* of the first key, or NULL */
	unsigned scrypt_log2_n;           /* 0: 17, for everybody but tests */
};

/* Makes a repository in an empty store.  Takes the store over, also on failure. */
int repo_init(struct store *st, const struct repo_init_options *opt, struct repo **ret,
	      struct error *err) TM_WUR;
/*
 * TM_E_NOTFOUND: not a repository; TM_E_UNSUPPORTED: newer format; TM_E_DENIED: no secret, or not
 * one of this repository's.  Takes the store over.
 */
int repo_open_with(struct store *st, const struct repo_credentials *cred, struct repo **ret,
		   struct error *err) TM_WUR;
/*
 * The same, but the object of the default domain is put again when both copies are gone, which a
 * full key of all domains can.
 */
int repo_open_mending(struct store *st, const struct repo_credentials *cred, struct repo **ret,
		      struct error *err) TM_WUR;
/* The same as repo_open_with() without a secret. */
int repo_open(struct store *st, struct repo **ret, struct error *err) TM_WUR;
void repo_free(struct repo *repo);
TM_CLEANUP(struct repo, repo_free)

bool repo_encrypted(const struct repo *repo);
enum repo_role repo_role(const struct repo *repo);

enum repo_right {
	REPO_MAY_BACK_UP,
	REPO_MAY_READ,
	REPO_MAY_PRUNE,
	REPO_MAY_CHANGE_KEYS,
	REPO_MAY_ADD_DOMAINS,
};
/* TM_E_DENIED with a text that says what the key is and what it cannot do; TM_E_UNSUPPORTED when a
 * newer program made the repository so that this one may only read it. */
int repo_check_right(const struct repo *repo, enum repo_right right, struct error *err) TM_WUR;

/* Remarks on the key the repository was opened with, NULL: none. */
const char *repo_key_remark(const struct repo *repo);

/* Objects that lie in the store twice. */
enum repo_twin { REPO_TWIN_REPO, REPO_TWIN_SLOT, REPO_TWIN_DOMAIN };
/* The copy that was missing at opening, or was read and is damaged; repo_keys_repair() puts it
 * again.  NULL: there was none. */
const char *repo_worn_copy(const struct repo *repo, enum repo_twin twin);

struct repo_key {
	struct tm_id id;
	enum repo_role role;
	const char *kdf; /* "scrypt", "key-file", "none" */
	char label[65];
	uint64_t created_ms;
	struct tm_id domain; /* the only one it opens; zero: all */
	bool own;            /* the repository was opened with it */
	unsigned copies;     /* that are whole, of 2 */
	char *problem;       /* NULL, or why it cannot be used; then only the id is known */
};

struct repo_key_list {
	struct repo_key *v; /* owned */
	size_t n;
};
void repo_key_list_done(struct repo_key_list *list);
#define auto_key_list __attribute__((cleanup(repo_key_list_done)))

const char *repo_role_name(enum repo_role role); /* "full", "backup", "janitor" */

/* All key slots, oldest first. */
int repo_keys(struct repo *repo, struct repo_key_list *ret, struct error *err) TM_WUR;

/*
 * Changes of keys.  An interrupted one leaves all keys usable that were so before; it is simply run
 * again.  They are made by one person at a time.
 */
struct repo_key_options {
	enum repo_role role;
	const char *label; /* or NULL */
	bool one_domain;   /* it opens the domain in use and no other */
};
/* TM_E_EXISTS: it is a key file that opens another key; the same key is success. */
int repo_key_add(struct repo *repo, const struct repo_key_options *opt,
		 const struct repo_secret *secret, struct tm_id *ret, struct error *err) TM_WUR;
/* TM_E_DENIED for the last full key. */
int repo_key_remove(struct repo *repo, const struct tm_id *id, struct error *err) TM_WUR;
/* Another secret for the key the repository was opened with; it gets a new id. */
int repo_key_change(struct repo *repo, const struct repo_secret *secret, struct tm_id *ret,
		    struct error *err) TM_WUR;
/* New sessions, of all domains or of the one in use, get a new data key.  secret: the one that the
 * repository was opened with. */
int repo_key_rotate(struct repo *repo, bool one_domain, const struct repo_secret *secret,
		    struct tm_id *ret, struct error *err) TM_WUR;
/* Writes damaged and missing copies of key slots and domains again; *ret counts them. */
int repo_keys_repair(struct repo *repo, size_t *ret, struct error *err) TM_WUR;
/* All secrets as lines for paper, which open the repository even when it has lost its slots.  The
 * caller wipes and frees *ret. */
int repo_key_paper(struct repo *repo, bool one_domain, char **ret, struct error *err) TM_WUR;

/* ---- domains: what shares keys, deduplication and deletion ---- */

/*
 * All calls on points and sessions act on the domain in use: after opening the default one, or the
 * only one that the key opens.  A change of it must find no session and nothing being read.
 */
const struct tm_id *repo_domain(const struct repo *repo);
const char *repo_domain_name(const struct repo *repo);
/* TM_E_NOTFOUND: no domain of that name that this key opens. */
int repo_domain_use(struct repo *repo, const char *name, struct error *err) TM_WUR;
int repo_domain_use_id(struct repo *repo, const struct tm_id *id, struct error *err) TM_WUR;
/* An empty domain.  The name is at most 64 bytes, readable with its keys only.  TM_E_EXISTS:
 * there is one, whole; copies of it that were not are put again, also both. */
int repo_domain_add(struct repo *repo, const char *name, struct tm_id *ret,
		    struct error *err) TM_WUR;

struct repo_domain {
	struct tm_id id;
	char name[65];
	unsigned copies; /* that are whole, of 2 */
	char *problem;   /* NULL, or why it cannot be used; then only the id is known */
};

struct repo_domain_list {
	struct repo_domain *v; /* owned */
	size_t n;
};
void repo_domain_list_done(struct repo_domain_list *list);
#define auto_domain_list __attribute__((cleanup(repo_domain_list_done)))

/* Those that the key opens, by name. */
int repo_domains(struct repo *repo, struct repo_domain_list *ret, struct error *err) TM_WUR;

const struct tm_id *repo_id(const struct repo *repo);
uint32_t repo_block_size(const struct repo *repo);
uint32_t repo_format(const struct repo *repo);

/* ---- points ---- */

enum point_kind {
	POINT_REDIRECT_ON_WRITE = 1, /* overlay */
	POINT_COPY_BEFORE_WRITE = 2, /* fleecing */
	POINT_OFFLINE = 3,           /* the guest was off */
};

enum disk_rung {
	RUNG_BITMAP = 1,
	RUNG_HASH_DIFF = 2,
	RUNG_FULL = 3,
};

const char *point_kind_name(enum point_kind kind); /* "redirect-on-write", … */
const char *disk_rung_name(enum disk_rung rung);   /* "bitmap", "hash-diff", "full" */

/* How far the bitmaps that a disk's points were made with have been compared with the disk. */
struct disk_audit {
	uint64_t data, empty; /* clusters that this run compared: with data, and holes */
	uint64_t differed;    /* of them */
	uint64_t whole_ms;    /* when the disk was last read whole, Unix time; 0: not known */
	uint64_t all_data, all_empty; /* clusters compared by all runs since, with this one */
};

struct point_disk {
	char *name; /* "vda" */
	uint64_t size;
	uint32_t block_size;
	enum disk_rung rung;
	char *reason;        /* why this rung, one phrase */
	char *format;        /* of the source: "qcow2", "raw" */
	char *file;          /* of the source */
	char *bitmap;        /* the bitmap that records from this point on, or NULL */
	struct tm_id parent; /* the point it was compared with; zero: none */
	uint64_t dirty_bytes;
	uint64_t read_bytes;
	uint64_t new_bytes;    /* data stored by this point, before compression */
	uint64_t stored_bytes; /* the same in the repository */
	struct disk_audit audit;
	struct disk_map *map; /* repo/'s own: session table and root */
};

struct point {
	struct tm_id id;
	char *guest;
	char *guest_uuid;    /* or NULL */
	char *name;          /* made up when absent */
	char *description;   /* or NULL */
	uint64_t created_ms; /* Unix time of the freeze */
	uint64_t seconds_ms; /* how long the run took */
	struct tm_id parent; /* zero: none */
	enum point_kind kind;
	char *state; /* of the guest at the freeze: "running", "paused", "shutoff" */
	bool quiesced;
	uint64_t freeze_ms;
	char **tags;
	size_t ntags;
	struct point_disk *disks;
	size_t ndisks;
	uint32_t seq; /* counts the guest's points; orders them even if the clock was set back */
	char *object; /* key of the manifest; set by repo/ */
	/* not in the manifest: */
	bool is_protected; /* of repo_points(); retention and forget leave it alone */
};

void point_free(struct point *p);
TM_CLEANUP(struct point, point_free)

struct point_list {
	struct point **v; /* owned, oldest first */
	size_t n;
};
void point_list_done(struct point_list *list);
#define auto_point_list __attribute__((cleanup(point_list_done)))

/* All valid points, of one guest when guest is not NULL.  Unreadable manifests are counted in
 * *ret_damaged (may be NULL) and left out. */
int repo_points(struct repo *repo, const char *guest, struct point_list *ret, size_t *ret_damaged,
		struct error *err) TM_WUR;

/* The same without what is needed to read or continue them, which grows with a guest's history:
 * disks[].map is NULL. */
int repo_points_brief(struct repo *repo, const char *guest, struct point_list *ret,
		      size_t *ret_damaged, struct error *err) TM_WUR;

/*
 * The newest point of a guest that `wanted` (NULL: any) agrees to, of those before point `before`
 * when it is not NULL.  Reads no more manifests than it needs.  Unreadable ones are passed over.
 * TM_E_NOTFOUND.
 */
typedef bool repo_point_test(void *data, const struct point *p);
int repo_point_newest(struct repo *repo, const char *guest, const struct tm_id *before,
		      repo_point_test *wanted, void *data, struct point **ret,
		      struct error *err) TM_WUR;

/*
 * The POINT of the command line: full or unique abbreviated id (4 digits or more), a point name,
 * "latest", GUEST, GUEST@latest, GUEST@NAME, GUEST@TIME (newest at or before).
 * TM_E_NOTFOUND, or TM_E_USAGE when it is ambiguous (the text lists the candidates).
 */
int repo_point_find(struct repo *repo, const char *spec, struct point **ret,
		    struct error *err) TM_WUR;

/* A point by id, of one guest (which is quicker) or of any (NULL).  TM_E_NOTFOUND when it is not
 * committed here. */
int repo_point_get(struct repo *repo, const char *guest, const struct tm_id *id, struct point **ret,
		   struct error *err) TM_WUR;

/* ---- deletion ---- */

#define RETAIN_ALL UINT32_MAX

/* What to keep of a guest's points; a point is kept when any of the rules keeps it. */
struct retention {
	uint32_t last; /* in order of commit; RETAIN_ALL: all, as in those below */
	uint32_t hourly, daily, weekly, monthly, yearly;
	struct {
		unsigned years, months, days, hours;
	} within; /* before the newest point */
	/* Points with any of these; "a,b" is also one with both a and b. */
	const char *const *tags;
	size_t ntags;
};

/* A point as retention sees it. */
struct retain_point {
	uint32_t seq;
	struct tm_id id;
	uint64_t created_ms;
	const char *const *tags;
	size_t ntags;
	bool is_protected;
	const char *reason; /* set: why it is kept, or NULL: it may go */
};

/* Whether the rule about tags keeps a point with these n. */
bool retain_has_tag(const struct retention *rule, const char *const *tags, size_t n);

/*
 * Decides for the points of one guest, which get sorted, the newest first.  Local time makes the
 * days.  docs/format.md, "Retention".
 */
void retain(const struct retention *rule, uint64_t now_ms, struct retain_point *v, size_t n);

/*
 * Puts tombstones: the points are gone for everybody at once, their space comes back with
 * repo_prune().  TM_E_DENIED when one of them is protected; then nothing was done.
 */
int repo_forget(struct repo *repo, const struct tm_id *ids, size_t n, struct error *err) TM_WUR;

/* TM_E_STALE: it is being deleted already. */
int repo_protect(struct repo *repo, const struct tm_id *id, bool on, struct error *err) TM_WUR;

#define PRUNE_MAX_UNUSED  50
#define PRUNE_STALE_HOURS 24

struct repo_prune_options {
	unsigned max_unused; /* percent: segments with a larger unused share are rewritten */
	/* Sessions without a point that began longer ago are taken for dead; guessing wrong costs
	 * that session, never a point. */
	uint64_t stale_ms;
	uint64_t now_ms; /* Unix time that ages are measured against */
	bool dry_run;
	const struct tm_id *dropped; /* in a dry run, points taken for deleted */
	size_t ndropped;
	int (*tick)(void *data, struct error *err); /* may end it; then it can be run again */
	void *data;
};

struct repo_prune_report {
	uint64_t removed_objects, removed_bytes;
	uint64_t compacted_bytes; /* put again, in rewritten segments */
	uint64_t kept_bytes;      /* of all segments that are left */
	uint64_t unreadable;      /* segments that would have been rewritten but cannot be read */
	uint64_t no_room;         /* … but there was no room to; the next run goes on with them */
};

/*
 * Removes what no valid point and no session at work needs; at any time, beside anything.  When a
 * point's map cannot be read nothing is removed (TM_E_CORRUPT).  Runs the loop.
 */
int repo_prune(struct repo *repo, const struct repo_prune_options *opt,
	       struct repo_prune_report *ret, struct error *err) TM_WUR;

/* ---- writing: one session makes one point ---- */

struct repo_session;

/* What the session knows before it starts; strings are borrowed until the commit. */
struct repo_session_options {
	const char *guest;
	int compression;   /* zstd level; 0: the default */
	struct tm_id id;   /* of the point to be (id_new_timed) */
	struct pool *pool; /* borrowed */
};

int repo_session_begin(struct repo *repo, const struct repo_session_options *opt,
		       struct repo_session **ret, struct error *err) TM_WUR;

/*
 * Begins a disk.  parent NULL: blocks that no piece mentions are holes.  Otherwise they are as in
 * disk `parent_disk` of `parent` (which may have another size, but not another block size;
 * TM_E_RANGE); TM_E_STALE when the parent is being deleted.  When the disk became smaller and its
 * size is no multiple of the block size, the last block must be among the pieces.  Pieces come in
 * ascending order of their blocks by seq.  One disk at a time.  Nothing is stored of what is as in
 * the parent, of zeroes, and of content that the session has stored before.  Runs the loop.
 */
int repo_session_disk_begin(struct repo_session *s, const char *name, uint64_t size,
			    const struct point *parent, const struct point_disk *parent_disk,
			    struct piece_sink **ret, struct error *err) TM_WUR;

/*
 * After disk_begin: every block of the disk is going to be named, as data or as zeroes
 * (TM_E_RANGE at the end when one was not).  With a parent, this is the comparison by content
 * that replaces a lost bitmap: what is as in the parent costs nothing.  It also heals: what the
 * parent has lost is stored again.
 */
void repo_session_disk_whole(struct repo_session *s);

/*
 * How many bytes of a disk are known to be lost (by repo_verify() or repo_repair()).  Where it is
 * not 0, a session that continues the disk has to be told every block.  Runs the loop.
 */
int repo_disk_lost(struct repo *repo, const struct point_disk *disk, uint64_t *ret,
		   struct error *err) TM_WUR;

/*
 * Content of other points is not stored again, either: of the point `like` when it is not NULL, and
 * of the few that turn out to have much in common with what is written, among the newest points of
 * all guests.  They are pinned before anything refers to them.  Counts for the session from now
 * on.  Runs the loop.
 */
int repo_session_siblings(struct repo_session *s, const struct point *like,
			  struct error *err) TM_WUR;

struct repo_disk_counts {
	uint64_t same_bytes;   /* named, and as in the parent at that place */
	uint64_t known_bytes;  /* stored elsewhere already */
	uint64_t new_bytes;    /* clusters stored, before compression */
	uint64_t lost_bytes;   /* named, and the parent's at that place cannot be read any more */
	uint64_t stored_bytes; /* the same in the repository, tables and map included */
};

/* After the last piece: waits for this disk's work and closes its map.  Runs the loop. */
int repo_session_disk_end(struct repo_session *s, struct repo_disk_counts *ret,
			  struct error *err) TM_WUR;

/*
 * Commits: everything durable, then the manifest.  `meta` gives all fields of the point but id and
 * maps; meta->disks are in the order of repo_session_disk_begin, each with the parent it began
 * with.  After success the point exists for good.  TM_E_STALE: a janitor has declared the session
 * dead.  Runs the loop.
 */
int repo_session_commit(struct repo_session *s, const struct point *meta, struct error *err) TM_WUR;

/* Also after failure or without commit: what was written is garbage for prune.  Runs the loop until
 * all that is in flight has come back. */
void repo_session_free(struct repo_session *s);
TM_CLEANUP(struct repo_session, repo_session_free)

/* ---- audit of a bitmap ---- */

/*
 * Compares some clusters of a point's disk, chosen at random, with what is there now.  Those that a
 * bitmap calls clean since that point must be the same.  By turns:
 *
 *	repo_audit_choose()   clusters; none: the sample is complete
 *	  … read those of them that are clean, as pieces into repo_audit_sink()
 *
 * and, whatever that found, the one cluster that proves that the disk did not lose its end:
 *
 *	repo_audit_highest()  none: there is nothing to prove
 *	  … read it likewise
 *
 * Needs no key that can read data.
 */
struct repo_audit;

#define REPO_AUDIT_DATA  48 /* clusters with data that are chosen by number … */
#define REPO_AUDIT_EMPTY 16 /* … and holes */

struct repo_audit_options {
	uint64_t size;  /* of the disk now, bytes; behind the point's end there are holes */
	unsigned share; /* of a million clusters; 0: by number */
	uint64_t seed;  /* of the choice */
	struct pool *pool;
};

struct repo_audit_counts {
	uint64_t data;  /* clusters compared that hold data in the point */
	uint64_t empty; /* … that are holes there */
	uint64_t differed;
	uint64_t first; /* offset of the first that differed */
};

/* disk: of a point; borrowed. */
int repo_audit_begin(struct repo *repo, const struct point_disk *disk,
		     const struct repo_audit_options *opt, struct repo_audit **ret,
		     struct error *err) TM_WUR;
/* Chooses the next clusters (*ret is overwritten); all pieces of those before are back.  Runs the
 * loop. */
int repo_audit_choose(struct repo_audit *a, struct extents *ret, struct error *err) TM_WUR;
/* *ret_end: where the last of those clusters of part ends that are clean; 0: none is. */
typedef int repo_audit_reach_fn(void *data, const struct extents *part, uint64_t *ret_end,
				struct error *err);
/*
 * Chooses the highest cluster that has data in the point and is clean (*ret is overwritten); all
 * pieces are back.  Asks `reach` about more and more of the point's data, from above, while all of
 * it is dirty; its failures are passed on.  TM_E_NOTFOUND: the repository does not know any more
 * what that cluster held.  Runs the loop.
 */
int repo_audit_highest(struct repo_audit *a, repo_audit_reach_fn *reach, void *data,
		       struct extents *ret, struct error *err) TM_WUR;
/* Pieces are given back when they have been compared; blocks that were not chosen are ignored. */
struct piece_sink *repo_audit_sink(struct repo_audit *a);
/* What was compared so far; or the first failure. */
int repo_audit_counts(const struct repo_audit *a, struct repo_audit_counts *ret,
		      struct error *err) TM_WUR;
/* No piece may be out. */
void repo_audit_free(struct repo_audit *a);
TM_CLEANUP(struct repo_audit, repo_audit_free)

/* ---- reading ---- */

struct repo_read_options {
	struct pool *pool;
	bool zero_runs;  /* report holes as zero runs, too (for targets that may hold old data) */
	bool prove;      /* compare every cluster with its content id, too */
	unsigned pieces; /* buffers; the bound on memory */
	/* As in the reader of transport/: progress and cancellation, at least every 200 ms. */
	int (*tick)(void *data, uint64_t done_bytes, uint64_t total_bytes, struct error *err);
	void *data;
};

/*
 * Reads a disk of a point as pieces into `sink`, every frame's seal checked.  Damage is
 * TM_E_CORRUPT with object and byte range of the disk in the text.  Returns when every piece has
 * been released. Runs the loop.
 */
int repo_read_disk(struct repo *repo, const struct point *p, const struct point_disk *disk,
		   struct piece_sink *sink, const struct repo_read_options *opt,
		   struct error *err) TM_WUR;

/* ---- verify ---- */

/* Bytes of a disk of a point that cannot be read. */
struct repo_damage_range {
	struct tm_id point;
	char *disk; /* owned */
	uint64_t offset, length;
};

struct repo_damage {
	char *object; /* key; owned */
	char *reason; /* owned */
	struct repo_damage_range
		*ranges; /* by point, disk, offset; none: a manifest, or what no point uses */
	size_t nranges;
	/* of repo_repair(): */
	bool repaired;
	char *remedy; /* what was done, or why nothing could be; owned */
};

struct repo_verify_report {
	uint64_t points;
	/* What was looked at, each object and byte once.  Of the segments that points need: the
	 * tables of those with data, all of those with maps; with read_data all of both.  With
	 * scrub of all objects all. */
	uint64_t objects, bytes;
	struct repo_damage *damaged;
	size_t ndamaged;
	char *unrecorded; /* NULL, or what could not be recorded, its consequence, and why; owned */
};
void repo_verify_report_done(struct repo_verify_report *r);
/* Adds what `from` found, once for each object; from is empty afterwards. */
int repo_verify_report_add(struct repo_verify_report *to, struct repo_verify_report *from,
			   struct error *err) TM_WUR;

struct repo_verify_options {
	const struct point_list *points; /* NULL: all */
	bool scrub;                      /* also every byte of every object, without a data key */
	bool read_data;                  /* also decrypt, decompress and hash every cluster */
	uint64_t budget_ms;              /* stop scrub or read_data after so long; 0: never */
	/* Say in the repository which slots are lost, so that nothing new refers to them. */
	bool record;
	struct pool *pool;
	int (*tick)(void *data, uint64_t done_bytes, uint64_t total_bytes, struct error *err);
	void *data;
};

/*
 * Damage is in the report and is no error here; where points are named, what hits none of them is
 * left out.  Runs the loop.
 */
int repo_verify(struct repo *repo, const struct repo_verify_options *opt,
		struct repo_verify_report *ret, struct error *err) TM_WUR;

/*
 * Adds to the report: copies of the repository's object and of the domains' that are missing or
 * damaged, of all domains that the key opens; and, for keys of all domains, what lies in a domain
 * that has no object.
 */
int repo_verify_domains(struct repo *repo, struct repo_verify_report *ret,
			struct error *err) TM_WUR;

struct repo_repair_options {
	const struct point_list *points; /* NULL: all */
	bool read_data;                  /* also look for damage that checksums do not show */
	bool dry_run;
	struct pool *pool;
	int (*tick)(void *data, uint64_t done_bytes, uint64_t total_bytes, struct error *err);
	void *data;
};

/*
 * Scrubs, and builds again what can be: maps from what their sessions say, lost clusters from the
 * same content elsewhere.  *ret: all damage that was met, each with what became of it; what is not
 * repaired is still there, and recorded.  TM_E_DENIED for a key that removes nothing.  May be
 * interrupted and run again, beside anything.  Runs the loop.
 */
int repo_repair(struct repo *repo, const struct repo_repair_options *opt,
		struct repo_verify_report *ret, struct error *err) TM_WUR;

/* ---- stats ---- */

struct repo_point_stats {
	uint64_t raw_bytes;    /* sizes of the disks */
	uint64_t data_bytes;   /* of it not holes: what the point holds */
	uint64_t new_bytes;    /* data that its backup stored, before compression */
	uint64_t stored_bytes; /* the same in the repository */
	/* What only this point refers to, as stored: what its deletion would free. A cluster's part
	 * of its frame. */
	uint64_t unique_bytes;
};

struct repo_stats {
	struct point_list points;
	struct repo_point_stats *point; /* in the same order */
	uint64_t cluster_bytes;         /* different clusters that points refer to */
	uint64_t objects, object_bytes; /* all that lies in the domain */
	uint64_t damaged;               /* points, nodes and tables that could not be read */
};
void repo_stats_done(struct repo_stats *s);

/* Reads all maps, no data.  Runs the loop. */
int repo_stats(struct repo *repo, struct repo_stats *ret, struct error *err) TM_WUR;
