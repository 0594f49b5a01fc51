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
 * takes them for epochs.  Refreshes g.
 */
int epochs_void(struct guest *g, const struct journal *j, struct text_list *lines,
		struct error *err) TM_WUR;
/* The same of one disk in its file, when QEMU is gone. */
int epochs_void_file(const struct journal_disk *jd, struct text_list *lines,
		     struct error *err) TM_WUR;

/* ---- image.c: the same steps on files at rest ---- */

int image_bitmap_add(const struct guest_disk *d, const char *name, uint32_t granularity,
		     struct error *err) TM_WUR;
int image_bitmap_remove(const struct guest_disk *d, const char *name, struct error *err) TM_WUR;
int image_bitmap_enable(const struct guest_disk *d, const char *name, struct error *err) TM_WUR;
int image_bitmap_merge(const struct guest_disk *d, const char *target, const char *source,
		       struct error *err) TM_WUR;

/* ---- image_count.c ---- */

/* Fills b->dirty_bytes, or leaves it unknown.  Changes nothing, hinders nobody.  Runs the loop. */
void image_count(const struct guest_disk *d, struct loop *loop, struct disk_bitmap *b);
