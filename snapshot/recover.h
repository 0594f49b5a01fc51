/* SPDX-License-Identifier: Apache-2.0 */
/* The parts of recovery; for snapshot/ only. */
#pragma once

#include "guest.h"
#include "journal.h"

/*
 * QEMU is gone: brings the newest data into the base files, by the journal.  TM_E_STALE: the
 * evidence cannot decide; TM_E_BUSY: somebody uses the images.
 */
int recover_offline(struct guest *g, struct journal *j, struct text_list *lines,
		    struct error *err) TM_WUR;

/*
 * One journal of a state directory, as the guest that it names, or a copy of it beside a base, as
 * the images that it names.  No such journal is success.
 */
int recover_journal(const char *path, const struct recover_options *opt,
		    struct recover_report *report, struct error *err) TM_WUR;

/* Has the overlay of this disk the newest data, which are to get into its base? */
bool recover_needs_overlay(const struct journal_disk *d);

/* Is the process that wrote j, another than this one, still there? */
bool recover_agent_lives(const struct journal *j);

/* ---- recover_above.c ---- */

/*
 * TM_E_STALE: an image beside this overlay stands on it, which must not go then.  For when QEMU is
 * gone.
 */
int recover_check_above(const char *overlay, struct error *err) TM_WUR;

/* ---- recover_missing.c ---- */

/*
 * TM_E_STALE when an overlay that is needed, or its data, is not there: nothing may be merged then.
 * lines say what can be done.  bases_chosen: a base was changed, so that a person who removed all
 * overlays meant it.
 */
int recover_check_missing(const struct journal *j, bool bases_chosen, struct text_list *lines,
			  struct error *err) TM_WUR;
/* How a person does without the overlays of the run: the command, and what that means. */
int recover_tell_without(const struct journal *j, struct text_list *lines,
			 struct error *err) TM_WUR;
/* How a person merges them who knows that no guest was started on the bases. */
int recover_tell_merge(const struct journal *j, struct text_list *lines, struct error *err) TM_WUR;
/* Says so when the overlay of d is gone, or its data are. */
int recover_tell_missing(const struct journal_disk *d, struct text_list *lines,
			 struct error *err) TM_WUR;

/* ---- recover_stray.c ---- */

/*
 * Of a guest without a journal: what lies beside its files.  Overlays in which nothing is are
 * removed, or with check_only named; TM_E_STALE: others, or the data of one, or a note of a pull.
 */
int recover_strays(const struct guest *g, bool check_only, struct text_list *lines,
		   struct error *err) TM_WUR;

/* ---- recover_find.c ---- */

/* The journal that concerns g: its own, a copy beside its files.  *ret NULL: there is none. */
int recover_find(struct guest *g, struct journal **ret, struct error *err) TM_WUR;

/* Adds the files of a directory whose names end so.  No such directory is an empty one. */
int recover_list_dir(const char *dir_path, const char *end, struct text_list *ret,
		     struct error *err) TM_WUR;

/* Paths of all journals in state_dir. */
int recover_list(const char *state_dir, struct text_list *ret, struct error *err) TM_WUR;
