/* SPDX-License-Identifier: Apache-2.0 */
#include "node.h"

#include <inttypes.h>
#include <string.h>

#define RUN_HOLE 0
#define RUN_REFS 1
#define RUN_BITS 2

unsigned root_level(uint64_t blocks)
{
	unsigned level = 0;

	assert(blocks <= MAX_BLOCKS);
	while (node_blocks(level) < blocks)
		level++;
	return level;
}

void node_clear(struct node *n, unsigned level, uint64_t pos)
{
	n->level = level;
	n->pos = pos;
	for (unsigned i = 0; i < NODE_CHILDREN; i++)
		n->e[i] = REF_HOLE;
}

bool node_is_hole(const struct node *n)
{
	for (unsigned i = 0; i < node_entries(n->level); i++)
		if (n->e[i] != REF_HOLE)
			return false;
	return true;
}

/* ---- encoding ---- */

static uint8_t *put_varint(uint8_t *p, uint64_t v)
{
	while (v >= 0x80) {
		*p++ = (uint8_t)(v & 0x7f) | 0x80;
		v >>= 7;
	}
	*p++ = (uint8_t)v;
	return p;
}

static uint64_t zigzag(int64_t v)
{
	return v < 0 ? (uint64_t)(-(v + 1)) * 2 + 1 : (uint64_t)v * 2;
}

/* Modulo 2^64; without a branch, for signs are random. */
static uint64_t unzigzag(uint64_t v)
{
	return v >> 1 ^ -(v & 1);
}

/* Entries from i that make one run. */
static unsigned run_length(const struct node *n, unsigned i)
{
	unsigned end = node_entries(n->level), len = 1;

	while (i + len < end && n->e[i + len] == (n->e[i] == REF_HOLE ? REF_HOLE : n->e[i] + len))
		len++;
	return len;
}

/* Entries before the trailing hole. */
static unsigned used_entries(const struct node *n)
{
	unsigned end = node_entries(n->level);

	while (end > 0 && n->e[end - 1] == REF_HOLE)
		end--;
	return end;
}

size_t node_encode(const struct node *n, uint8_t *out)
{
	unsigned end = used_entries(n), nruns = 0, len;
	int64_t session = 0, ordinal = 0;
	uint8_t *p = out;

	assert(end > 0);
	for (unsigned i = 0; i < end; i += run_length(n, i))
		nruns++;
	*p++ = (uint8_t)n->level;
	*p++ = 0; /* flags */
	p = put_varint(p, n->pos);
	p = put_varint(p, nruns);
	for (unsigned i = 0; i < end; i += len) {
		len = run_length(n, i);
		if (n->e[i] == REF_HOLE) {
			p = put_varint(p, (uint64_t)(len - 1) << RUN_BITS | RUN_HOLE);
			continue;
		}
		p = put_varint(p, (uint64_t)(len - 1) << RUN_BITS | RUN_REFS);
		p = put_varint(p, zigzag((int64_t)ref_session(n->e[i]) - session));
		p = put_varint(p, zigzag((int64_t)ref_ordinal(n->e[i]) - ordinal));
		session = (int64_t)ref_session(n->e[i]);
		ordinal = (int64_t)ref_ordinal(n->e[i]) + len;
	}
	return (size_t)(p - out);
}

/* ---- decoding ---- */

struct cursor {
	const uint8_t *p, *end;
	bool bad;
};

static uint64_t get_long_varint(struct cursor *c)
{
	uint64_t v = 0;

	for (unsigned shift = 0; shift < 63; shift += 7) {
		uint8_t b;

		if (c->p == c->end)
			break;
		b = *c->p++;
		v |= (uint64_t)(b & 0x7f) << shift;
		if (b & 0x80)
			continue;
		if (b == 0 && shift > 0)
			break;
		return v;
	}
	c->bad = true;
	return 0;
}

/*
 * Minimal encodings only: one value has one form.  A map has hundreds of millions of them, nearly
 * all of one to three bytes.
 */
static inline uint64_t get_varint(struct cursor *c)
{
	const uint8_t *p = c->p;
	struct cursor rare = *c; /* a copy, so that *c stays in registers */
	uint64_t v;

	if (c->end - p >= 3) {
		if (p[0] < 0x80) {
			c->p += 1;
			return p[0];
		}
		if (p[1] < 0x80 && p[1] > 0) {
			c->p += 2;
			return (uint64_t)p[1] << 7 | (p[0] & 0x7f);
		}
		if (p[1] >= 0x80 && p[2] < 0x80 && p[2] > 0) {
			c->p += 3;
			return (uint64_t)p[2] << 14 | (uint64_t)(p[1] & 0x7f) << 7 | (p[0] & 0x7f);
		}
	}
	v = get_long_varint(&rare);
	*c = rare;
	return v;
}

struct run_state {
	unsigned at;      /* entries passed */
	unsigned last;    /* kind of the run before, or ~0 */
	uint64_t session; /* where the run of references before ended */
	uint64_t ordinal;
};

static int decode_refs(struct cursor *c, unsigned len, uint32_t nsessions, struct node_run *ret,
		       struct run_state *s, struct error *err)
{
	/* Modulo 2^64: what would be negative is too large. */
	uint64_t dsession = unzigzag(get_varint(c));
	uint64_t dordinal = unzigzag(get_varint(c));
	uint64_t session = s->session + dsession, ordinal = s->ordinal + dordinal;

	if (c->bad)
		return error_set(err, TM_E_CORRUPT, "a reference cannot be read");
	if (session >= nsessions || ordinal > MAX_ORDINAL - len)
		return error_set(err, TM_E_CORRUPT,
				 "reference to session %" PRId64 " of %" PRIu32
				 ", ordinal %" PRId64,
				 (int64_t)session, nsessions, (int64_t)ordinal);
	if (s->last == RUN_REFS && dsession == 0 && dordinal == 0)
		return error_set(err, TM_E_CORRUPT, "one run is written as two");
	*ret = (struct node_run){ref_of((uint32_t)session, ordinal), s->at, len};
	s->session = session;
	s->ordinal = ordinal + len;
	return 0;
}

static int decode_run(struct cursor *c, bool last, unsigned entries, uint32_t nsessions,
		      struct node_runs *ret, struct run_state *s, struct error *err)
{
	uint64_t v = get_varint(c);
	uint64_t len = (v >> RUN_BITS) + 1;
	unsigned kind = (unsigned)(v & ((1U << RUN_BITS) - 1));
	int r = 0;

	if (c->bad || len > entries - s->at)
		return error_set(err, TM_E_CORRUPT, "a run does not fit the node");
	if (kind == RUN_REFS)
		r = decode_refs(c, (unsigned)len, nsessions, &ret->v[ret->n++], s, err);
	else if (kind != RUN_HOLE)
		r = error_set(err, TM_E_CORRUPT, "a run of unknown kind %u", kind);
	else if (last || s->last == RUN_HOLE)
		r = error_set(err, TM_E_CORRUPT, "holes are not written in the one way allowed");
	s->last = kind;
	s->at += (unsigned)len;
	return r;
}

int node_decode_runs(const uint8_t *bytes, size_t len, unsigned level, uint64_t pos,
		     uint32_t nsessions, struct node_runs *ret, struct error *err)
{
	struct cursor c = {.p = bytes, .end = bytes + len};
	struct run_state s = {.last = ~0U};
	uint64_t got_pos, nruns;

	if (len < 2 || bytes[0] != level || bytes[1] != 0)
		return error_set(err, TM_E_CORRUPT, "map node is not one of level %u", level);
	c.p += 2;
	got_pos = get_varint(&c);
	nruns = get_varint(&c);
	if (c.bad || got_pos != pos)
		return error_set(err, TM_E_CORRUPT, "map node of another place than %" PRIu64, pos);
	if (nruns == 0 || nruns > node_entries(level))
		return error_set(err, TM_E_CORRUPT, "map node of %" PRIu64 " runs", nruns);
	ret->n = 0;
	for (uint64_t i = 0; i < nruns; i++) {
		int r = decode_run(&c, i + 1 == nruns, node_entries(level), nsessions, ret, &s,
				   err);

		if (r < 0)
			return r;
	}
	if (c.p != c.end)
		return error_set(err, TM_E_CORRUPT, "%zu bytes after the map node's end",
				 (size_t)(c.end - c.p));
	return 0;
}

int node_decode(const uint8_t *bytes, size_t len, unsigned level, uint64_t pos, uint32_t nsessions,
		struct node *ret, struct error *err)
{
	struct node_runs runs;
	int r = node_decode_runs(bytes, len, level, pos, nsessions, &runs, err);

	if (r < 0)
		return r;
	node_clear(ret, level, pos);
	for (unsigned i = 0; i < runs.n; i++)
		for (unsigned k = 0; k < runs.v[i].count; k++)
			ret->e[runs.v[i].first + k] = runs.v[i].ref + k;
	return 0;
}

/* ---- pages: le16 n, n × le16 end, nodes ---- */

bool page_add(struct page_writer *p, const struct node *n)
{
	assert(p->n < PAGE_MAX_NODES && p->len < PAGE_TARGET_BYTES);
	p->len += node_encode(n, p->nodes + p->len);
	p->end[p->n++] = (uint16_t)p->len;
	return p->n == PAGE_MAX_NODES || p->len >= PAGE_TARGET_BYTES;
}

size_t page_finish(struct page_writer *p, uint8_t *out)
{
	size_t head = 2 + 2 * (size_t)p->n, total = head + p->len;
	struct le16 v = le16_of((uint16_t)p->n);

	static_assert(2 + 2 * PAGE_MAX_NODES + PAGE_TARGET_BYTES + NODE_MAX_BYTES <= PAGE_MAX_BYTES,
		      "a page fits");
	memcpy(out, v.b, 2);
	for (unsigned i = 0; i < p->n; i++) {
		v = le16_of(p->end[i]);
		memcpy(out + 2 + 2 * (size_t)i, v.b, 2);
	}
	memcpy(out + head, p->nodes, p->len);
	p->n = 0;
	p->len = 0;
	return total;
}

static size_t page_end(const uint8_t *page, unsigned i)
{
	struct le16 v;

	memcpy(v.b, page + 2 + 2 * (size_t)i, 2);
	return le16_get(v);
}

int page_check(const uint8_t *page, size_t len, unsigned nslots, struct error *err)
{
	size_t head = 2 + 2 * (size_t)nslots, last = 0;
	struct le16 n;

	if (nslots == 0 || len < head)
		return error_set(err, TM_E_CORRUPT, "map page of %zu bytes for %u nodes", len,
				 nslots);
	memcpy(n.b, page, 2);
	if (le16_get(n) != nslots)
		return error_set(err, TM_E_CORRUPT, "map page of %u nodes, %u expected",
				 (unsigned)le16_get(n), nslots);
	for (unsigned i = 0; i < nslots; i++) {
		size_t end = page_end(page, i);

		if (end <= last || end > len - head)
			return error_set(err, TM_E_CORRUPT, "map page: node %u ends at %zu", i,
					 end);
		last = end;
	}
	if (last != len - head)
		return error_set(err, TM_E_CORRUPT, "map page: %zu bytes after its nodes",
				 len - head - last);
	return 0;
}

const uint8_t *page_node(const uint8_t *page, unsigned i, size_t *ret_len)
{
	struct le16 n;
	size_t begin = i == 0 ? 0 : page_end(page, i - 1);

	memcpy(n.b, page, 2);
	assert(i < le16_get(n));
	*ret_len = page_end(page, i) - begin;
	return page + 2 + 2 * (size_t)le16_get(n) + begin;
}
