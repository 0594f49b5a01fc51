/* SPDX-License-Identifier: Apache-2.0 */
#include "copies.h"

#include <string.h>

bool copies_take(struct copies *c, unsigned copy, struct buf *b)
{
	if (c->whole[0] || c->whole[1]) {
		c->whole[copy] =
			c->bytes.len == b->len && memcmp(c->bytes.data, b->data, b->len) == 0;
		return false;
	}
	c->whole[copy] = true;
	buf_done(&c->bytes);
	c->bytes = *b;
	*b = (struct buf){0};
	return true;
}

int copies_put(const struct repo *repo, const struct copy_names *n, const void *bytes, size_t len,
	       struct error *err)
{
	int r = 0;

	for (unsigned copy = 0; r == 0 && copy < COPIES; copy++)
		r = store_put_wait(repo->st, n->key[copy], bytes, len, err);
	return r;
}

int copies_mend(const struct repo *repo, const struct copy_names *n, const struct copies *c,
		size_t *count, struct error *err)
{
	int r = 0;

	if (!c->whole[0] && !c->whole[1])
		return 0;
	for (unsigned copy = 0; r == 0 && copy < COPIES; copy++) {
		if (c->whole[copy])
			continue;
		if (c->there[copy])
			r = repo->st->ops->remove(repo->st, n->key[copy], err);
		r = r ? r
		      : store_put_wait(repo->st, n->key[copy], c->bytes.data, c->bytes.len, err);
		*count += r == 0;
	}
	return r;
}

int copies_mend_read(const struct repo *repo, const struct copy_names *n,
		     const struct copies_read *c, size_t *count, struct error *err)
{
	for (unsigned copy = 0; copy < COPIES; copy++) {
		int code = c->err[copy].code;

		if (code == 0 || code == TM_E_NOTFOUND || code == TM_E_CORRUPT ||
		    code == TM_E_UNSUPPORTED)
			continue;
		return error_pass(err, code, &c->err[copy]);
	}
	return copies_mend(repo, n, &c->copies, count, err);
}
