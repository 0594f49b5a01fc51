/* SPDX-License-Identifier: Apache-2.0 */
/* The parts of a directory store. */
#pragma once

#include "store.h"

#define DIR_FOLDERS 32 /* kept open */

struct folder;

struct dir_store {
	struct store st;
	char *path;
	int root;
	int tmp;
	bool use_reserve;
	uint64_t clock; /* of the folders' use */
	struct folder *folders[DIR_FOLDERS];
};

static inline struct dir_store *dir_of(struct store *st)
{
	return container_of(st, struct dir_store, st);
}

/* ---- store_dir_put.c ---- */

void dir_put_new(struct store *st, const char *key, const void *bytes, size_t len,
		 struct store_req *req);
void dir_folders_free(struct dir_store *d);

/* ---- store_dir_list.c ---- */

/* Calls fn for the objects under root whose key begins with prefix, in byte order of the keys. */
int dir_walk(int root, const char *root_path, const char *prefix, store_list_fn *fn, void *data,
	     struct error *err) TM_WUR;

/* Syncs all folders below prefix, which ends with '/'.  Where nothing can be written there is
 * nothing to sync: success. */
int dir_sync_below(int root, const char *root_path, const char *prefix, struct error *err) TM_WUR;

/*
 * Makes the folders of a new store, durably.  TM_E_EXISTS unless path does not exist or is a
 * directory that is empty or has no other folders than an interrupted init leaves; what is in them
 * is repo_init()'s to judge.
 */
int dir_make(const char *path, struct error *err) TM_WUR;

/* ---- store_dir_reserve.c ---- */

void dir_reserve(struct store *st, bool use);
/* Gives up so much of the reserve that a put of `bytes` may find room; false: it may not be used,
 * or there is nothing left. */
bool dir_reserve_cut(const struct dir_store *d, uint64_t bytes);

/* ---- store_dir_tidy.c ---- */

int dir_tidy(struct store *st, struct store_leftovers *left, struct error *err) TM_WUR;
