/* SPDX-License-Identifier: Apache-2.0 */
/* A frozen base that nobody may start a guest on. */
#pragma once

#include "journal.h"

/*
 * From here on QEMU refuses to open the disk's base for writing, until base_unlock() or the end of
 * this process.  It refuses our own commit as well, which therefore unlocks first.  A file system
 * without locks is an error that does not matter to the backup.
 */
int base_lock(struct journal_disk *d, struct error *err) TM_WUR;
void base_unlock(struct journal_disk *d);

/*
 * The same for any image: *ret is to be closed.  Fails where somebody has it open for writing, and
 * where the file system has no locks.
 */
int image_lock(const char *path, int *ret, struct error *err) TM_WUR;
