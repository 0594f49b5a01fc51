/* SPDX-License-Identifier: Apache-2.0 */
/* Applying what settle_decide() decided, in QEMU or in image files. */
#pragma once

#include "guest.h"
#include "journal.h"

/* After a run: settles just the old and the new bitmap of each of its disks. Refreshes g. */
int epochs_finish(struct guest *g, const struct journal *j, bool committed, struct text_list *lines,
		  struct error *err) TM_WUR;

/*
 * What needs no repository: the old bitmaps that the run found wrong are removed, so that nobody
 * takes them for epochs; what is gone is marked in j no more.  Refreshes g.
 */
int epochs_void(struct guest *g, struct journal *j, struct text_list *lines,
		struct error *err) TM_WUR;
/* The same of one disk in its file, when QEMU is gone. */
int epochs_void_file(struct journal_disk *jd, struct text_list *lines, struct error *err) TM_WUR;

/* Is one left?  Then the journal stays, for it alone says that the bitmap is wrong. */
bool epochs_any_void(const struct journal *j);

/*
 * QEMU makes no image larger that has an inconsistent bitmap: removes the dead ones (settle.h) of
 * all repositories but `spare` (NULL: of all).  In QEMU when d has a node, else in the file, and g
 * may be NULL then.  Tries each; the error is the first one's.
 */
int epochs_bury(struct guest *g, const struct guest_disk *d, const struct tm_id *spare,
		struct error *err) TM_WUR;
/*
 * The same of all repositories, where an image has to become larger.  TM_E_STALE: another bitmap
 * keeps QEMU from that; the text says which, and what to do.
 */
int epochs_clear_way(struct guest *g, const struct guest_disk *d, struct error *err) TM_WUR;

/* ---- image.c: the same steps on files at rest ---- */

/*
 * Fills *d, which must be {0}, with what qemu-img says of a file; on failure, too, the caller owns
 * what is in it.  format NULL: by looking.
 */
int image_look(const char *file, const char *format, struct guest_disk *d,
	       struct error *err) TM_WUR;

int image_bitmap_add(const struct guest_disk *d, const char *name, uint32_t granularity,
		     struct error *err) TM_WUR;
int image_bitmap_remove(const struct guest_disk *d, const char *name, struct error *err) TM_WUR;
int image_bitmap_enable(const struct guest_disk *d, const char *name, struct error *err) TM_WUR;
int image_bitmap_merge(const struct guest_disk *d, const char *target, const char *source,
		       struct error *err) TM_WUR;

/* ---- image_count.c ---- */

/* Fills b->dirty_bytes, or leaves it unknown.  Changes nothing, hinders nobody.  Runs the loop. */
void image_count(const struct guest_disk *d, struct loop *loop, struct disk_bitmap *b);
