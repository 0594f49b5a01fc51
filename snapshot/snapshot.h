/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The public header of snapshot/: a guest and its disks, the cycle of freeze, read,
 * collapse and record, the life of its dirty bitmaps, and what to do after a death.
 * The protocol is in docs/epochs.md, which is normative.
 *
 * The life of a backup, as the caller sees it:
 *
 *   recover_guest()        finish what an interrupted run left (cheap when nothing is)
 *   guest_open()           connect, list the disks; with `exclusive` take the guest's lock
 *   guest_settle()         bitmaps of this repository: which epoch can be used, per disk
 *   snapshot_begin()       all chosen disks frozen at one instant and readable over NBD
 *     … read snapshot_disk.nbd of each disk …
 *   snapshot_collapse()    exports gone, overlays merged back, guest on its own files
 *     … write the point into the repository …
 *   snapshot_finish()      settle the bitmaps by whether the point was committed
 *
 * snapshot_finish(committed = false) is also the way out of every failure: it collapses first when
 * that has not been done.  All calls block, each wait inside is bounded, and all of one guest
 * belong on one thread.
 */
#pragma once

#include "common/common.h"
#include "transport/transport.h"

/* ---- what the caller hears while a call waits ---- */

struct snapshot_progress {
	const char *phase; /* "freeze", "export", "collapse", "commit", "pull", "settle",
			      "recover", "wait" */
	const char *disk;  /* or NULL */
	uint64_t done;     /* bytes of the commit or pull; 0 of 0 where nothing is counted */
	uint64_t total;
	const char *remark; /* for the person, to be told now, as a full disk is; or NULL */
};

struct snapshot_hooks {
	/*
	 * Called at least every 200 ms while a call waits.  A negative code asks to stop: before
	 * the freeze everything is undone and the code is returned; once disks are frozen the call
	 * goes on until the guest is in order again, and the code is ignored.  May be NULL.
	 */
	int (*tick)(void *data, const struct snapshot_progress *p, struct error *err);
	void *data;
};

/* Lines for the person, owned. */
struct text_list {
	char **v;
	size_t n;
};
void text_list_done(struct text_list *list);
int text_list_add(struct text_list *list, struct error *err, const char *fmt, ...) TM_WUR
	TM_PRINTF(3, 4);
#define auto_text_list __attribute__((cleanup(text_list_done)))

/* ---- target ---- */

enum guest_kind {
	GUEST_QMP = 1,   /* a running QEMU, by its QMP socket */
	GUEST_IMAGE = 2, /* image files of a guest that is off */
};

/* All borrowed during the call. */
struct guest_target {
	const char *name; /* or NULL: QEMU's -name, else made from the socket's or file's name */
	enum guest_kind kind;
	const char *qmp_socket;    /* GUEST_QMP */
	const char *agent_socket;  /* GUEST_QMP; or NULL: no guest agent */
	const char *const *images; /* GUEST_IMAGE */
	size_t nimages;
	const char *image_format; /* "raw", "qcow2", …; NULL: raw where the name ends so, else by
				     looking */
};

struct guest_options {
	const char *state_dir; /* journals and locks live in here; made when missing */
	bool exclusive;        /* take the guest's lock: needed for all that changes anything */
	struct snapshot_hooks hooks;
};

/* ---- bitmaps and epochs ---- */

#define SNAPSHOT_GRANULARITY 65536u /* bytes of a bit */

/* tidemark-1-<domain>-<point>-<parent>-<disk>-<chain>: 32, 32, 32, 4 and 8 hex digits */
#define BITMAP_NAME_MAX (11 + 3 * TM_ID_HEX + 2 + 1 + 4 + 1 + 8 + 1)

struct bitmap_id {
	struct tm_id repo;  /* the domain of the repository that its points are in */
	struct tm_id point; /* the bitmap records what changed since this point … */
	struct tm_id
		parent; /* whose bitmap was disabled in the very same transaction; zero: none */
	uint16_t disk;  /* … on this disk of it, by index: names of disks may change hands */
	uint32_t chain; /* identity of the images below: guest_disk.chain_id at the time */
};

/* False when it is not a name of ours. */
bool bitmap_name_parse(const char *name, struct bitmap_id *ret);
void bitmap_name_format(const struct bitmap_id *id, char text[BITMAP_NAME_MAX]);

/* A bitmap as QEMU shows it; ours and others'. */
struct disk_bitmap {
	char *name;
	bool ours;           /* the name is one of ours, of whatever domain */
	struct bitmap_id id; /* valid when ours */
	bool recording;
	bool inconsistent;
	bool busy;
	bool persistent;
	uint32_t granularity;
	uint64_t dirty_bytes; /* UINT64_MAX: not known (images at rest, but for epochs) */
};

/* The answer of guest_settle() for one disk. */
struct disk_epoch {
	bool usable;
	struct tm_id point; /* valid when usable: the bitmap names all that changed since */
	unsigned disk;      /* the index of this disk in that point */
	char bitmap[BITMAP_NAME_MAX]; /* its name; "" when not usable */
	uint64_t dirty_bytes;         /* UINT64_MAX: not known */
	char reason[256];             /* why it is not usable; "" when it is */
};

/*
 * Is `point` committed in the repository in question, with a disk of this index in it?  *ret_size:
 * the disk's size in that point, when it is.  An error when that cannot be told now.
 */
typedef int point_known_fn(void *data, const struct tm_id *point, unsigned disk, bool *ret,
			   uint64_t *ret_size, struct error *err);

/* ---- guest and disks ---- */

struct disk_layer {
	char *file;
	char *format;
	char *data_file; /* of a qcow2 image that has its data in another file; or NULL */
	uint64_t size;
	uint32_t id; /* of what chain_id is made of, as it was looked at */
};

struct guest_disk {
	char *name;    /* for people and points: device id, drive name, or file name; unique */
	char *qdev;    /* QOM path of the device, or NULL */
	char *drive;   /* name of -drive, or NULL */
	char *file;    /* absolute path of the active image, or what QEMU calls it */
	char *alias;   /* QEMU's own name for it, where that is a second one; or NULL */
	char *format;  /* "qcow2", "raw", … of the active image */
	uint64_t size; /* exact virtual size, bytes */
	bool read_only;
	bool removable;
	bool empty;       /* no medium */
	bool can_persist; /* bitmaps survive a stop of QEMU */
	char *left_out;   /* why it cannot or should not be backed up; NULL: it is chosen */
	char *overlay_of; /* the active image is an overlay left by an interrupted run of ours; its
			     base */
	char *top_node;   /* the node the device uses (perhaps a filter), as of now; or NULL */
	char *node;       /* the format node, as of now; or NULL */
	struct disk_layer *chain; /* backing files below the active image, nearest first */
	size_t nchain;
	uint32_t chain_id; /* of the chain's files, their formats, sizes and times, in order */
	bool chain_hidden; /* data of the chain are in files that chain_id does not cover */
	struct disk_bitmap *bitmaps;
	size_t nbitmaps;
	struct disk_epoch epoch; /* filled by guest_settle() and guest_epochs() */
};

struct guest;

/*
 * TM_E_NOTFOUND: no such socket or file, nobody listens.  TM_E_BUSY: another program holds the QMP
 * socket, an image, or (exclusive) the guest's lock; the text says who where that can be known.
 */
int guest_open(const struct guest_target *target, const struct guest_options *opt,
	       struct guest **ret, struct error *err) TM_WUR;
void guest_free(struct guest *g);
TM_CLEANUP(struct guest, guest_free)

/* Borrowed until guest_free(). */
const char *guest_name(const struct guest *g);
const char *guest_uuid(const struct guest *g);  /* or NULL */
const char *guest_state(const struct guest *g); /* "running", "paused", "shutoff", … */
enum guest_kind guest_kind(const struct guest *g);
bool guest_has_agent(const struct guest *g); /* an agent socket was given */
size_t guest_ndisks(const struct guest *g);
const struct guest_disk *guest_disk(const struct guest *g, size_t i);

/* Looks again at state, disks and bitmaps.  guest_disk() pointers of before are invalid. */
int guest_refresh(struct guest *g, struct error *err) TM_WUR;

/*
 * By name, qdev path, drive name, node name or file.  TM_E_NOTFOUND lists the known ones.
 */
int guest_find_disk(const struct guest *g, const char *text, size_t *ret, struct error *err) TM_WUR;

/*
 * Which epoch each disk has in this repository, and how much has changed in it; fills
 * guest_disk.epoch, changes nothing in QEMU or images.  Runs the loop.
 */
int guest_epochs(struct guest *g, const struct tm_id *repo, point_known_fn *known, void *data,
		 struct loop *loop, struct error *err) TM_WUR;

/*
 * The same, and puts the bitmaps of this repository in order: keeps the newest provable epoch,
 * merges uncommitted children back into it, removes inconsistent and superseded ones.  Of other
 * repositories it removes inconsistent ones, which would keep QEMU from making the disk larger, and
 * touches nothing else, of other programs nothing.  Needs `exclusive`, and no overlay
 * of ours on the guest.  A disk whose bitmaps cannot be settled has no usable epoch and a reason,
 * which is not an error.
 */
int guest_settle(struct guest *g, const struct tm_id *repo, point_known_fn *known, void *data,
		 struct error *err) TM_WUR;

/* ---- one backup ---- */

enum quiesce {
	QUIESCE_NEVER,
	QUIESCE_IF_POSSIBLE,
	QUIESCE_REQUIRE,
};

/* What becomes of the overlays; docs/epochs.md says what each way costs and leaves. */
enum collapse_mode {
	COLLAPSE_MODE_AUTO,
	COLLAPSE_MODE_COMMIT, /* merged into the bases */
	COLLAPSE_MODE_PULL,   /* bases are copied into them, and they are the guest's disks then */
};

struct snapshot_options {
	struct tm_id repo;
	struct tm_id point;
	const char *repo_url; /* for the journal */
	const size_t *disks;  /* indices of guest_disk(), none left_out */
	size_t ndisks;
	enum quiesce quiesce;
	const char *overlay_dir; /* or NULL: beside each base */
	enum collapse_mode collapse;
	bool keep_name;         /* with COLLAPSE_MODE_PULL: under the base's name at the end */
	uint32_t granularity;   /* 0: SNAPSHOT_GRANULARITY */
	unsigned freeze_ms;     /* bound on the guest's freeze; 0: 5000 */
	uint64_t overlay_limit; /* bytes of all overlays, see snapshot_check_room(); 0: none */
	uint64_t rate;          /* bytes a second that snapshot_collapse() may copy; 0: no limit */
};

struct snapshot_disk {
	size_t disk; /* index of guest_disk() */
	const char *name;
	const char *file; /* the base */
	const char *format;
	uint64_t size;
	struct nbd_address nbd; /* nbd.bitmap is NULL when there is no epoch to read from */
	bool has_epoch;
	struct tm_id parent;    /* the point of the old bitmap, valid with has_epoch */
	unsigned parent_disk;   /* the index of this disk in it */
	const char *old_bitmap; /* or NULL */
	const char *new_bitmap; /* records from this point on; NULL: none could be made */
	bool persistent;        /* of the new bitmap */
	const char
		*reason; /* why there is no epoch, or why no new bitmap; "" when both are there */
};

/* Everything is owned by the snapshot and valid until snapshot_finish(). */
struct snapshot_info {
	struct snapshot_disk *disks;
	size_t ndisks;
	uint64_t created_ms; /* Unix time of the freeze */
	bool quiesced;       /* file systems were frozen by the guest agent */
	uint64_t freeze_ms;  /* how long the guest was held: quiesce + transaction */
	const char *state;   /* of the guest at that instant */
	struct text_list warnings;
};

struct snapshot;

/*
 * Freezes the chosen disks at one instant and opens them for reading.  The guest must have been
 * opened exclusive, and guest_settle() called (else every disk is without an epoch).  A
 * failure that leaves *ret set came when something had been changed already: snapshot_finish() is
 * the way back, then as ever, and says whether it led there.
 */
int snapshot_begin(struct guest *g, const struct snapshot_options *opt, struct snapshot **ret,
		   struct error *err) TM_WUR;

const struct snapshot_info *snapshot_info(const struct snapshot *s);

/*
 * Reading disk i failed: appends to the message whether its server has ended and what that said.
 */
void snapshot_explain(struct snapshot *s, size_t i, struct error *err);

/*
 * Disk i has been read, and its server still runs.  TM_E_STALE: that opened another file, which had
 * taken the base's name, and not the one that the guest has; or a file below the base is not what
 * it was when the guest was opened.
 */
int snapshot_check_read(const struct snapshot *s, size_t i, struct error *err) TM_WUR;

/*
 * Disk i differs where its old bitmap said that it does not: the bitmap is removed at the end,
 * whether the point is committed or not.
 */
int snapshot_void_epoch(struct snapshot *s, size_t i, struct error *err) TM_WUR;

/*
 * Is there room for what the guest writes?  TM_E_NOSPACE: give the backup up, before its writes
 * fail (or now that they did).  To be asked several times a second while disks are read; s may be
 * NULL.
 */
int snapshot_check_room(struct snapshot *s, struct error *err) TM_WUR;

/* The guest's own writes to the disks of a snapshot, since QEMU began to count. */
struct write_counts {
	uint64_t all;
	uint64_t slow; /* of them: took at least as long as was asked */
};

/*
 * Has QEMU count the guest's writes that take slow_ns and longer, until snapshot_collapse(). Disks
 * without a device id are not counted, nor images of a guest that is off.  Where somebody else has
 * a latency histogram on a disk, its boundaries decide: those at or above slow_ns count as slow.
 */
int snapshot_watch_writes(struct snapshot *s, uint64_t slow_ns, struct error *err) TM_WUR;
/* False when QEMU gave no answer: nothing is known now. */
bool snapshot_count_writes(struct snapshot *s, struct write_counts *ret);

/*
 * Readers have stopped and closed their connections: ends the exports, merges the overlays back
 * and moves the guest onto its own files.  TM_E_NOSPACE: no room for it in the base's file system,
 * though it was waited for; the guest runs on in the overlay, the call can be repeated (and does
 * not wait again), or recovery does it later.
 */
int snapshot_collapse(struct snapshot *s, struct error *err) TM_WUR;

/*
 * Collapses when that has not been done, settles the bitmaps of the disks by whether the point
 * was committed, removes the journal.  Frees s in every case; what could not be finished is left
 * to recovery, and the error says so.  s may be NULL.
 */
int snapshot_finish(struct snapshot *s, bool committed, struct error *err);

/* ---- recovery ---- */

struct recover_options {
	const char *state_dir;
	struct snapshot_hooks hooks;
	bool check_only; /* look, say, change nothing */
	bool unguarded;  /* no process watches over this one: it is that process itself */
	/*
	 * When known: is the journal's point committed?  May be NULL, then the bitmaps are left to
	 * the next guest_settle().  TM_E_* when it cannot be told now.
	 */
	int (*committed)(void *data, const char *repo_url, const struct tm_id *repo,
			 const struct tm_id *point, bool *ret, struct error *err);
	void *data;
};

/* A backup whose agent lives. */
struct recover_running {
	uint64_t pid;      /* 0: there is none */
	const char *phase; /* of its journal, docs/epochs.md; static */
	struct tm_id point;
	char *guest;    /* owned */
	char *repo_url; /* owned, or NULL */
};

struct recover_report {
	struct recover_running running;
	bool found;             /* something was left by an interrupted run */
	bool left;              /* something still is (check_only, or it could not be done) */
	bool unknown;           /* of recover_guest(): no QEMU listens there, no journal knows it */
	struct text_list lines; /* what was left and what was done, in order */
};
void recover_report_done(struct recover_report *r);
#define auto_recover_report __attribute__((cleanup(recover_report_done)))

/*
 * Finishes or undoes what an interrupted run left on one guest.  Without a journal in state_dir
 * the copies beside overlays are looked for.  TM_E_BUSY: another agent is at work on this guest,
 * report->running tells which where it backs it up; with check_only that is no error.
 * TM_E_STALE: the evidence cannot decide, nothing was touched, the text says what to do.
 * *report is filled on failure too; it may hold lines of before (they are kept).
 */
int recover_guest(const struct guest_target *target, const struct recover_options *opt,
		  struct recover_report *report, struct error *err) TM_WUR;

/* The same for every journal in state_dir; goes on after a failure, reports the first. */
int recover_all(const struct recover_options *opt, struct recover_report *report,
		struct error *err) TM_WUR;

/* ---- images that guests may run on ---- */

/*
 * Claims a file or device that is going to be replaced or written over: until *ret_lock is closed
 * no QEMU opens it.  TM_E_BUSY: one has it open, perhaps below an overlay; the text says who.
 * *ret_lock is -1 where nothing can be known, as on a file system without locks.
 */
int image_claim(const char *path, int *ret_lock, struct error *err) TM_WUR;

/* ---- the guard of a freeze ---- */

/*
 * A freeze is held by a process of its own, which is this very program with these words on its
 * command line: FREEZE_GUARD_WORD, the guest agent's socket, the bound in milliseconds.
 * Returns its exit status.
 */
#define FREEZE_GUARD_WORD "__guard-freeze"
int freeze_guard_main(const char *socket, const char *limit_ms);

/* ---- the guard of a run ---- */

/*
 * A backup and a recovery are watched over by such a process as well: RECOVERY_GUARD_WORD, the
 * state directory, the path of the journal, the agent's process, the bases of the run, beside which
 * copies of the journal may lie (NULL-terminated).  When the agent ends without a word it puts the
 * guest in order.
 */
#define RECOVERY_GUARD_WORD "__guard-recovery"
int recovery_guard_main(const char *state_dir, const char *journal, const char *agent,
			char *const bases[]);
