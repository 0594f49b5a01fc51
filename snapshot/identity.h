/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Is what a name leads to the file that the guest has?  QEMU with auto-read-only opens a base again
 * by its name when it becomes read-only, and again when it becomes writable for the commit.
 */
#pragma once

#include "journal.h"

enum identity {
	IDENTITY_SAME,
	IDENTITY_OTHER, /* another file has the name */
	IDENTITY_GONE,  /* nothing has it */
	IDENTITY_UNKNOWN,
};

/* All zero where nothing is known: no regular file. */
struct file_identity identity_of(const char *path);

/* What has the name `path` now, while QEMU lives that opened `was`. */
enum identity identity_look(const char *path, const struct file_identity *was);

/*
 * With QEMU dead: is one of base and overlay not the file of the run?  Both of them are others when
 * a whole directory was moved to another file system, and without the time of birth a number may
 * have changed with the mount (FUSE): neither is a reason to refuse.  NULL: no, or not known.
 */
const char *identity_exchanged(const struct journal_disk *d);

/* Has the QEMU of this guest another file open than the one that has the name now?  NULL: no. */
bool identity_open_elsewhere(struct guest *g, const char *path);
