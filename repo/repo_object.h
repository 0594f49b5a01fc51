/* SPDX-License-Identifier: Apache-2.0 */
/* The object that makes a store a repository: "repo", and "repo.copy" with the same bytes. */
#pragma once

#include "copies.h"

struct repo_object {
	struct store_reading asked[COPIES];
	struct copies_read read;
	struct format_repo h[COPIES]; /* where read.err says nothing */
};

struct copy_names repo_object_names(void);
bool is_repo_object(const char *key);
/* Asks for both copies; repo_object_load() has to follow. */
void repo_object_ask(const struct repo *repo, struct repo_object *ret);
/* Waits for them.  proved: what the keys of the open repository prove is right only. */
void repo_object_load(const struct repo *repo, bool proved, struct repo_object *o);
void repo_object_done(struct repo_object *o);
#define auto_repo_object __attribute__((cleanup(repo_object_done)))
/* The copy to open with, where nothing is proved yet.  TM_E_NOTFOUND: this is no repository. */
int repo_object_choose(const struct repo_object *o, unsigned *ret, struct error *err) TM_WUR;
/* Both are right by themselves, and say different things. */
bool repo_object_differs(const struct repo_object *o);
/* Fills in what a copy says. */
void repo_object_adopt(struct repo *repo, const struct format_repo *h);
/* The name of the copy that is missing or damaged, or "", when `copy` has been proved. */
void repo_object_worn(const struct repo_object *o, unsigned copy, char key[KEY_MAX]);
/* TM_E_CORRUPT: it was not written with the keys of the repository.  A key of one domain has no key
 * for this MAC; the domain's own covers what matters. */
int repo_object_prove(const struct repo *repo, const struct format_repo *h,
		      struct error *err) TM_WUR;
/* A new repository's, all but the MAC; fills in repo->params as well. */
void repo_object_fill(struct repo *repo, struct format_repo *ret);
/* Puts both, when all else is there.  Only the first has to succeed. */
int repo_object_put(struct repo *repo, struct format_repo *h, struct error *err) TM_WUR;
/* Puts a missing or damaged copy again; *count grows. */
int repo_object_mend(const struct repo *repo, size_t *count, struct error *err) TM_WUR;
