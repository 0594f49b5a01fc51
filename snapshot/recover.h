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

/* ---- recover_find.c ---- */

/* The journal that concerns g: its own, a copy beside its files.  *ret NULL: there is none. */
int recover_find(struct guest *g, struct journal **ret, struct error *err) TM_WUR;

/* Paths of all journals in state_dir. */
int recover_list(const char *state_dir, struct text_list *ret, struct error *err) TM_WUR;
