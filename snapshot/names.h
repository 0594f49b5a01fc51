/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Names of images after a pull.  The overlay is the guest's disk then.  It either goes by a name of
 * its own, and a note beside the old base says so (BASE.tidemark-moved), or it has taken the name
 * of its base.  QEMU goes on to know it by the name it was opened with, and opens it again by that
 * when it becomes read-only: so it has both names (BASE.….tidemark-name is a hard link) until QEMU
 * ends.
 */
#pragma once

#include "guest.h"

/* The name for people of an image that QEMU calls `file`: another one only after a pull. */
int names_true(const char *file, char **ret, struct error *err) TM_WUR;

/* Has `name` the form of a second name of `file`?  Neither has to be there; both with a folder or
 * not. */
bool names_is_second(const char *name, const char *file);

/* Removes second names of `file` other than `except` (or NULL), which no QEMU uses any more. */
void names_tidy(const char *file, const char *except);

/* The overlay gets the name of the base, durably, and has both.  Can be repeated. */
int names_take_over(const char *overlay, const char *base, struct error *err) TM_WUR;

/* A note beside the base that the guest's disk is `overlay` now, and its end. */
int names_note_moved(const char *base, const char *overlay, struct error *err) TM_WUR;
int names_forget_moved(const char *base, struct error *err) TM_WUR;
/* TM_E_STALE when there is such a note for `file`; the text says what to do. */
int names_check_moved(const char *file, struct error *err) TM_WUR;
