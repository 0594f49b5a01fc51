/* SPDX-License-Identifier: Apache-2.0 */
/* Private directories for sockets, gone when their owner is. */
#pragma once

#include "error.h"

/*
 * Makes one, mode 0700, which the owner of the file `like` (NULL: nobody else) can use, too.
 * Removes before those whose owners died without.  *ret_lock is to be closed after rundir_remove(),
 * or by the end of the process.
 */
int rundir_make(const char *like, char **ret, int *ret_lock, struct error *err) TM_WUR;

/* Removes it and the files and sockets in it. */
void rundir_remove(const char *path);
