/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Another run on the same guest, which its lock does not keep away: by another socket of its QEMU,
 * or with another state directory.
 */
#pragma once

#include "guest.h"
#include "journal.h"

/*
 * Keeps out runs by other sockets, for as long as g lives: all see the same first disk.  TM_E_BUSY
 * names the process that is at work.
 */
int rival_lock(struct guest *g, struct error *err) TM_WUR;

/* Before anything is written.  TM_E_STALE or TM_E_BUSY: a journal of another run is there. */
int rival_check_journal(struct guest *g, struct error *err) TM_WUR;

/*
 * Has another run begun a bitmap where the old one of jd ends?  That one ended before the run of j
 * froze, or will: either may be the epoch of the next run, and neither can stand for the other.
 */
bool rival_began(const struct guest_disk *d, const struct journal *j,
		 const struct journal_disk *jd);

/*
 * TM_E_STALE: the old bitmap of jd on its base is not what was settled any more.  frozen: the run's
 * own transaction has ended it.
 */
int rival_check_base(const struct block_node *base, const struct journal *j,
		     const struct journal_disk *jd, bool frozen, struct error *err) TM_WUR;
