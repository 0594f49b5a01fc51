/* SPDX-License-Identifier: Apache-2.0 */
/* Listing of a directory store. */
#pragma once

#include "store.h"

/* Calls fn for the objects under root whose key begins with prefix, in byte order of the keys. */
int dir_walk(int root, const char *root_path, const char *prefix, store_list_fn *fn, void *data,
	     struct error *err) TM_WUR;

/*
 * Makes the folders of a new store, durably.  TM_E_EXISTS unless path does not exist or is a
 * directory that is empty or has no other folders than an interrupted init leaves; what is in them
 * is repo_init()'s to judge.
 */
int dir_make(const char *path, struct error *err) TM_WUR;
