/* SPDX-License-Identifier: Apache-2.0 */
/* Bringing a running guest back onto its own files, from whatever state it is in. */
#pragma once

#include "guest.h"
#include "journal.h"

#define COLLAPSE_ROOM_MS 30000 /* how long a full file system is waited for */

struct collapse_options {
	struct text_list *lines; /* what was done is added; or NULL */
	uint64_t rate;           /* bytes a second to copy at most; 0: no limit */
	unsigned room_ms;        /* how long to wait for room in a full file system */
};

/*
 * Looks at what QEMU shows (never at events) and goes on from there, disk by disk: a run that
 * just read its disks and the recovery of a run that died take the same path.  Exports must be
 * gone.  Can be repeated after any failure.
 */
int collapse_disks(struct guest *g, struct journal *j, const struct collapse_options *opt,
		   struct error *err) TM_WUR;

/* A run that did not come to its collapse leaves the guest on its own files: no pulls. */
void collapse_take_back(struct journal *j);

/* The last step before the journal is removed: bases that are no longer used say so. */
int collapse_note_moved(const struct journal *j, struct error *err) TM_WUR;

/* Where a disk of the journal stands now. */
enum collapse_state {
	COLLAPSE_GONE, /* the device uses neither base nor overlay, or is not there */
	COLLAPSE_ON_BASE,
	COLLAPSE_ON_OVERLAY,
};

struct collapse_view {
	enum collapse_state state;
	const struct block_node *top;    /* of the device */
	const struct block_node *active; /* its format node */
	const struct block_node
		*base; /* the base's format node, below or equal to active; or NULL */
	const struct block_node
		*ours;  /* the overlay node this run made; NULL: another QEMU process */
	bool no_device; /* it was taken away, and left its overlay to nobody */
};

struct collapse_view collapse_look(const struct block_graph *graph, const struct journal_disk *d);

/*
 * Connects again, with patience for another program that holds the socket for a while.
 * TM_E_NOTFOUND: QEMU is gone.
 */
int collapse_reconnect(struct guest *g, struct error *err) TM_WUR;

/* A guest that ran out of room in its overlay was stopped by QEMU: back on its base it can go on.
 */
int collapse_resume(struct guest *g, const struct journal *j, struct error *err) TM_WUR;

/* Removes node and file of an overlay that nothing needs. Takes nodes that are gone for granted. */
int collapse_drop_overlay(struct guest *g, const struct journal_disk *d, struct error *err) TM_WUR;
