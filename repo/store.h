/* SPDX-License-Identifier: Apache-2.0 */
/* The store as the rest of repo/ uses it: calls that run the loop until the answer is there. */
#pragma once

#include "repo.h"

/* Names: lower-case hex ids under short prefixes; see docs/format.md, "Names". */
#define KEY_MAX 192

int store_put_wait(struct store *st, const char *key, const void *bytes, size_t len,
		   struct error *err) TM_WUR;

/* An object that is being read beside others: each that was begun has to be ended. */
struct store_reading {
	struct store_req req;
	char key[KEY_MAX];
	struct buf b;
	int code;
	bool done;
};
void store_read_begin(struct store *st, const char *key, struct store_reading *rd);
/* Waits for it: the whole object, at most max bytes.  TM_E_NOTFOUND. */
int store_read_end(struct store *st, struct store_reading *rd, size_t max, struct buf *ret,
		   struct error *err) TM_WUR;
/* Both. */
int store_read(struct store *st, const char *key, size_t max, struct buf *ret,
	       struct error *err) TM_WUR;

/* Part of an object; *ret_got is less than len only where the object ends. */
int store_get_wait(struct store *st, const char *key, void *bytes, size_t len, uint64_t offset,
		   size_t *ret_got, struct error *err) TM_WUR;

/* Puts may use, or not, what is kept back for deletions. */
void store_reserve(struct store *st, bool use);

/* For back ends: calls req->done(code) soon, from the loop. */
void store_answer(struct store *st, struct store_req *req, int code);

bool store_key_ok(const char *key);
