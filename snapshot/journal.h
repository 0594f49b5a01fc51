/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The journal of a running backup: one small file, replaced as a whole before each step that
 * needs it.  Fields, phases and what a death in each leaves: docs/epochs.md.
 */
#pragma once

#include "base_state.h"
#include "snapshot.h"

#define JOURNAL_FORMAT 1
#define JOURNAL_MAX    ((size_t)4 << 20) /* bytes; a guest has few disks */

enum journal_phase {
	JOURNAL_PREPARING = 1, /* overlays are being made; the guest knows nothing yet */
	JOURNAL_FREEZING,      /* the transaction may happen from here on */
	JOURNAL_FROZEN,        /* it has happened; the bases do not change */
	JOURNAL_PULLING,       /* the exports are gone, bases are copied into their overlays */
	JOURNAL_PULLED,        /* the overlay of the disk marked so has all that its base has */
	JOURNAL_COMMITTING,    /* the exports are gone, overlays are merged into the bases */
	JOURNAL_PIVOTING, /* the base of the disk marked so equals its overlay, which gets stale */
	JOURNAL_PIVOTED,  /* that disk is on its base again */
	JOURNAL_SETTLING, /* all disks are; only bitmaps are left */
};

const char *journal_phase_name(enum journal_phase phase);
bool journal_phase_parse(const char *text, enum journal_phase *ret);

/* With a commit the overlay must never be committed again from PIVOT_BEGUN on. */
enum journal_pivot {
	PIVOT_NONE,
	PIVOT_BEGUN, /* written while the job is pending: base and overlay are equal, or, with a
			pull, nothing is missing in the overlay */
	PIVOT_DONE,  /* the guest is on its base; with a pull: the overlay needs its base no more */
};

/* What becomes of the overlay. */
enum collapse_how {
	COLLAPSE_COMMIT, /* it is merged into the base */
	COLLAPSE_PULL,   /* the base is copied into it, and it is the guest's disk from then on */
	COLLAPSE_PULL_KEEP, /* the same, and it takes the base's name */
};

/* Which file a name led to; identity.h. */
struct file_identity {
	uint64_t inode; /* 0: not known */
	uint64_t born;  /* ns; 0: not known */
};

/* Strings are owned. */
struct journal_disk {
	char *name;
	char *qdev;  /* or NULL */
	char *drive; /* or NULL */
	char *base;  /* absolute path */
	char *format;
	char *overlay;      /* absolute path; NULL: images of a guest that is off */
	char *overlay_node; /* names as of the run, unique to it; or NULL */
	char *old_bitmap;   /* or NULL */
	char *new_bitmap;   /* or NULL */
	uint64_t size;
	uint64_t frozen_mtime; /* of the base while frozen, ns; 0: not known, or it changes */
	char frozen_device[BASE_DEVICE_MAX]; /* the same of a base on a device; "": not known */
	struct file_identity base_id;        /* at the freeze */
	struct file_identity overlay_id;     /* when it was made */
	enum collapse_how how;
	enum journal_pivot pivot;
	bool void_epoch; /* the old bitmap was found to be wrong: it is an epoch no more */

	int lock; /* not stored: base_lock.h; -1: none */
};

struct journal {
	uint64_t sequence; /* grows with each write */
	enum journal_phase phase;
	enum guest_kind kind;
	char *guest;
	char *qmp_socket;   /* or NULL */
	char *agent_socket; /* or NULL */
	char *repo_url;     /* or NULL */
	struct tm_id repo;
	struct tm_id point;
	uint64_t agent_pid; /* the process that writes it, and when that started (clock ticks since
			     */
	uint64_t agent_start; /* boot): it may live, under another state directory */
	char *state;          /* of the guest at the freeze, or NULL */
	char *socket_dir;     /* private directory of the NBD sockets, or NULL */
	struct journal_disk *disks;
	size_t ndisks;

	int socket_lock; /* not stored: of socket_dir, rundir.h; -1: none */
	struct buf told; /* not stored: the text that was written last, or read */

	char *path; /* not stored: in the state directory; copies lie beside the bases */
};

int journal_new(struct journal **ret, struct error *err) TM_WUR;
void journal_free(struct journal *j);
TM_CLEANUP(struct journal, journal_free)
int journal_add_disk(struct journal *j, struct journal_disk **ret, struct error *err) TM_WUR;

int journal_encode(const struct journal *j, struct buf *ret, struct error *err) TM_WUR;
/* TM_E_CORRUPT, or TM_E_UNSUPPORTED for a newer format.  `path` is for messages. */
int journal_decode(const void *bytes, size_t len, const char *path, struct journal **ret,
		   struct error *err) TM_WUR;

/* Writes phase durably, at path and beside each base that has an overlay. */
int journal_write(struct journal *j, enum journal_phase phase, struct error *err) TM_WUR;
/*
 * For tests of recovery only: when TIDEMARK_DEBUG_KILL_AT or TIDEMARK_DEBUG_STOP_AT is this name,
 * of a phase that was just journalled or of another point, the process kills or stops itself.
 */
void journal_debug_point(const char *name);
/*
 * The newest of the journal at path and its copies.  TM_E_NOTFOUND without one at path, which is
 * remembered in the journal.
 */
int journal_read(const char *path, struct journal **ret, struct error *err) TM_WUR;
/* All its files: its own where that is known, then the copies. */
int journal_list_files(const struct journal *j, struct text_list *ret, struct error *err) TM_WUR;
/* Is any of its files there? */
bool journal_exists(const struct journal *j);
/* Removes all its files. */
int journal_remove(const struct journal *j, struct error *err) TM_WUR;

/* A file name for a guest, made from its socket's or first image's path. */
int journal_key(const char *path, char **ret, struct error *err) TM_WUR;
/* The key in the path of a journal. */
int journal_key_of(const char *path, char **ret, struct error *err) TM_WUR;
/* <state>/journal/<key>.json */
int journal_path(const char *state_dir, const char *key, char **ret, struct error *err) TM_WUR;
/*
 * Takes the guest's lock, held until *ret is closed or the process ends.  TM_E_BUSY names the
 * process that has it.  With hooks, a guard that is just recovering the guest is waited for, ten
 * minutes at most.
 */
int journal_lock(const char *state_dir, const char *key, const struct snapshot_hooks *hooks,
		 int *ret, struct error *err) TM_WUR;
