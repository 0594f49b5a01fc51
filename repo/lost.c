/* SPDX-License-Identifier: Apache-2.0 */
#include "lost.h"

#include "segment.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static size_t slots_of(uint8_t type)
{
	return (size_t)1 << seg_slots_log2(type);
}

/* ---- the set ---- */

void lost_done(struct lost *l)
{
	for (size_t i = 0; i < l->n; i++)
		free(l->v[i].bits);
	free(l->v);
	*l = (struct lost){0};
}

static int compare(const struct lost_segment *a, const struct tm_id *sid, uint8_t type,
		   uint32_t index)
{
	int c = memcmp(&a->sid, sid, sizeof(*sid));

	if (c != 0)
		return c;
	if (a->type != type)
		return a->type < type ? -1 : 1;
	return (a->index > index) - (a->index < index);
}

/* Where the segment is, or would be. */
static size_t place_of(const struct lost *l, const struct tm_id *sid, uint8_t type, uint32_t index)
{
	size_t lo = 0, hi = l->n;

	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;

		if (compare(&l->v[mid], sid, type, index) < 0)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

const uint64_t *lost_bits(const struct lost *l, const struct tm_id *sid, uint8_t type,
			  uint32_t index)
{
	size_t at = place_of(l, sid, type, index);

	return at < l->n && compare(&l->v[at], sid, type, index) == 0 ? l->v[at].bits : NULL;
}

bool lost_has(const struct lost *l, const struct tm_id *sid, uint8_t type, uint64_t ordinal)
{
	uint64_t slot = ordinal & (slots_of(type) - 1), index = ordinal >> seg_slots_log2(type);
	const uint64_t *bits = l->n > 0 ? lost_bits(l, sid, type, (uint32_t)index) : NULL;

	return bits && (bits[slot / 64] >> slot % 64 & 1);
}

bool lost_touches(const struct lost *l, const struct tm_id *sid)
{
	size_t at = place_of(l, sid, 0, 0);

	return at < l->n && id_equal(&l->v[at].sid, sid);
}

static int get(struct lost *l, const struct tm_id *sid, uint8_t type, uint32_t index,
	       uint64_t **ret, struct error *err)
{
	size_t at = place_of(l, sid, type, index);

	if (at < l->n && compare(&l->v[at], sid, type, index) == 0) {
		*ret = l->v[at].bits;
		return 0;
	}
	if (l->n == l->cap) {
		size_t cap = l->cap ? 2 * l->cap : 16;
		struct lost_segment *v = reallocarray(l->v, cap, sizeof(*v));

		if (!v)
			return error_nomem(err);
		l->v = v;
		l->cap = cap;
	}
	*ret = calloc(slots_of(type) / 64, sizeof(**ret));
	if (!*ret)
		return error_nomem(err);
	memmove(&l->v[at + 1], &l->v[at], (l->n - at) * sizeof(*l->v));
	l->v[at] = (struct lost_segment){.sid = *sid, .type = type, .index = index, .bits = *ret};
	l->n++;
	return 0;
}

int lost_add(struct lost *l, const struct tm_id *sid, uint8_t type, uint64_t ordinal,
	     struct error *err)
{
	uint64_t slot = ordinal & (slots_of(type) - 1), *bits;
	int r = get(l, sid, type, (uint32_t)(ordinal >> seg_slots_log2(type)), &bits, err);

	if (r == 0)
		bits[slot / 64] |= UINT64_C(1) << slot % 64;
	return r;
}

/* ---- records ---- */

struct names {
	char (*v)[KEY_MAX];
	size_t n, cap;
};

static int add_name(void *data, const char *key, uint64_t size, struct error *err)
{
	struct names *l = data;

	(void)size;
	if (l->n == l->cap) {
		size_t cap = l->cap ? 2 * l->cap : 8;
		void *v = reallocarray(l->v, cap, sizeof(l->v[0]));

		if (!v)
			return error_nomem(err);
		l->v = v;
		l->cap = cap;
	}
	memcpy(l->v[l->n++], key, strlen(key) + 1);
	return 0;
}

/* The segment that a record is about is in its header; the name says the same. */
static int parse(const struct repo *repo, const char *key, const struct buf *b,
		 struct format_lost *ret, struct error *err)
{
	char want[KEY_MAX];
	size_t len;
	int r = format_head_check(b->data, b->len, MAGIC_LOST, sizeof(*ret), &repo->id, key, err);

	if (r < 0)
		return r;
	memcpy(ret, b->data, sizeof(*ret));
	len = b->len - sizeof(*ret);
	if ((ret->type != SEGMENT_DATA && ret->type != SEGMENT_MAP) ||
	    len != slots_of(ret->type) / 8 || le32_get(ret->body_len) != len ||
	    le32_get(ret->body_crc) != crc32c(0, b->data + sizeof(*ret), len))
		return error_set(err, TM_E_CORRUPT, "%s: the body is not what its header says",
				 key);
	name_lost(repo, &ret->session, ret->type, le32_get(ret->index), want);
	if (!id_equal(&ret->domain, &repo->domain) || strncmp(want, key, strlen(want)) != 0)
		return error_set(err, TM_E_CORRUPT, "%s is another record than its name says", key);
	return 0;
}

static int load_one(struct repo *repo, const char *key, struct lost *l, struct error *err)
{
	auto_buf struct buf b = {0};
	struct format_lost h;
	const uint8_t *body;
	uint64_t *bits;
	int r = store_read(repo->st, key, sizeof(h) + MAP_SLOTS / 8, &b, err);

	r = r ? r : parse(repo, key, &b, &h, err);
	r = r ? r : get(l, &h.session, h.type, le32_get(h.index), &bits, err);
	if (r)
		return r;
	body = b.data + sizeof(h);
	for (size_t i = 0; i < slots_of(h.type); i++)
		if (body[i / 8] >> i % 8 & 1)
			bits[i / 64] |= UINT64_C(1) << i % 64;
	return 0;
}

int lost_load(struct repo *repo, struct lost *ret, struct error *err)
{
	struct names l = {0};
	char prefix[KEY_MAX];
	int r;

	name_flag_prefix(repo, FLAG_LOST, prefix);
	r = repo->st->ops->list(repo->st, prefix, add_name, &l, err);
	for (size_t i = 0; r == 0 && i < l.n; i++) {
		struct error one = {0};

		r = load_one(repo, l.v[i], ret, &one);
		if (r == TM_E_CORRUPT || r == TM_E_UNSUPPORTED || r == TM_E_NOTFOUND) {
			log_debug("no record of lost slots: %s", one.text);
			r = 0;
		}
		(void)error_pass(err, r, &one); /* what cannot be read now may tell of damage */
	}
	free(l.v);
	return r;
}

int lost_put(struct repo *repo, const struct tm_id *sid, uint8_t type, uint32_t index,
	     const uint64_t *bits, struct error *err)
{
	struct {
		struct format_lost h;
		uint8_t body[MAP_SLOTS / 8];
	} o = {.h = {.domain = repo->domain, .session = *sid, .type = type}};
	size_t slots = slots_of(type);
	char prefix[KEY_MAX], key[KEY_MAX];
	uint32_t run;
	int r = repo_check_writable(repo, err);

	r = r ? r : random_bytes(&run, sizeof(run), err);
	if (r < 0)
		return r;
	for (size_t i = 0; i < slots; i++)
		if (bits[i / 64] >> i % 64 & 1)
			o.body[i / 8] |= (uint8_t)(1U << i % 8);
	format_head_init(&o.h.head, MAGIC_LOST, sizeof(o.h), &repo->id);
	o.h.index = le32_of(index);
	o.h.created_ms = le64_of(clock_unix_ms(&clock_system));
	o.h.body_len = le32_of((uint32_t)(slots / 8));
	o.h.body_crc = le32_of(crc32c(0, o.body, slots / 8));
	format_head_seal(&o.h, sizeof(o.h));
	name_lost(repo, sid, type, index, prefix);
	(void)snprintf(key, sizeof(key), "%.*s%08" PRIx32, KEY_MAX - 9, prefix, run);
	return store_put_wait(repo->st, key, &o, sizeof(o.h) + slots / 8, err);
}

int lost_remove(struct repo *repo, const struct tm_id *sid, uint8_t type, uint32_t index,
		struct error *err)
{
	struct names l = {0};
	char prefix[KEY_MAX];
	int r;

	name_lost(repo, sid, type, index, prefix);
	r = repo->st->ops->list(repo->st, prefix, add_name, &l, err);
	for (size_t i = 0; r == 0 && i < l.n; i++)
		r = repo->st->ops->remove(repo->st, l.v[i], err);
	free(l.v);
	return r;
}
