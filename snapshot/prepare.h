/* SPDX-License-Identifier: Apache-2.0 */
/* What is made before the freeze: journal, overlays and their nodes, and what kind of bitmap. */
#pragma once

#include "collapse.h"
#include "exports.h"

struct snapshot {
	struct guest *g; /* borrowed */
	struct journal *j;
	struct export *exports;    /* j->ndisks */
	struct snapshot_info info; /* info.disks: j->ndisks, borrows from j, g and exports */
	char **reasons;            /* owned texts behind info.disks[].reason */
	char *state;
	uint32_t granularity;
	uint64_t overlay_limit; /* bytes; 0: none */
	struct collapse_options collapse;
	json_t *pull_actions; /* for the transaction: bitmaps of overlays that are to stay */
	bool may_commit;      /* the way is still to be chosen by what is allocated */
	uint64_t state_ms;    /* when the guest is asked next whether it runs, monotonic */
	uint64_t slow_ns;     /* of snapshot_watch_writes(); 0: nobody watches */
	int *locks_below;     /* images at rest: on the files below the disks' own; owned */
	size_t nlocks_below;
	bool collapsed;
	bool offline; /* by way of the files, for QEMU was gone: its bitmaps are left as they are */
};

/* Journal "preparing", socket directory, disks filled in. Nothing in the guest is touched. */
int prepare_journal(struct snapshot *s, const struct snapshot_options *opt,
		    struct error *err) TM_WUR;
/* Overlay files and nodes. */
int prepare_overlays(struct snapshot *s, struct error *err) TM_WUR;
/* Finds out per disk whether a bitmap can be added, persistent or not. */
int prepare_bitmaps(struct snapshot *s, struct error *err) TM_WUR;

/* ---- prepare_pull.c ---- */

/* Which way a disk is prepared for. */
enum collapse_how pull_choose(const struct guest_disk *d, const struct snapshot_options *opt);
/* Can the disks that are to be pulled be?  Fills pull_actions. */
int prepare_pulls(struct snapshot *s, struct error *err) TM_WUR;
/* At the collapse: by commit after all, where that copies less. */
void pull_decide(struct snapshot *s);

/* A disk of the guest as the snapshot's i-th. */
const struct guest_disk *prepare_disk(const struct snapshot *s, size_t i);

/* ---- image.c ---- */

int image_begin(struct snapshot *s, const struct snapshot_options *opt, struct error *err) TM_WUR;
/* The other end: qemu-nbd and the locks gone. */
int image_collapse(struct snapshot *s, struct error *err) TM_WUR;
/* Gives back the locks on the disks' files and on those below. */
void image_unlock(struct snapshot *s);

/* ---- latency.c ---- */

/* Takes back what snapshot_watch_writes() asked of QEMU. */
void latency_end(struct snapshot *s);
