/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Map segments that are lost are written again: the session's descriptor tables say what it
 * changed, its manifest says from which root.  The map writer makes the same nodes in the same
 * order out of that, so every node gets its old ordinal.  Proof is the digest in the manifest: what
 * does not have it is thrown away.
 */
#include "repair.h"

#include "manifest.h"
#include "page_out.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

struct rebuild {
	struct repair *p;
	struct point *point;
	struct manifest_own own;
	struct vseg *const *v; /* to be built again */
	struct remedy *remedy;
	size_t n;
	uint32_t index, slot; /* of the next node */
	struct page_out out;
	struct seg_writer *w;
	struct aead *aead;
	struct session_keys keys;
};

/* Which of the segments the next node goes to; n: none of them. */
static size_t current(const struct rebuild *b)
{
	size_t i = 0;

	while (i < b->n && b->v[i]->index != b->index)
		i++;
	return i;
}

/* A segment has all its nodes. */
static int finish(struct rebuild *b, size_t i, struct error *err)
{
	uint8_t digest[DIGEST_BYTES];
	int r = page_out_flush(&b->out, b->w, err);

	r = r ? r : page_out_digest(&b->out, digest, err);
	if (r < 0)
		return r;
	if (memcmp(digest, b->own.map.v[b->index].digest, sizeof(digest)) != 0)
		return error_set(err, TM_E_CORRUPT,
				 "what the descriptor tables give is not what was stored");
	r = seg_seal(b->w, b->aead, &b->keys, err);
	r = r ? r : repair_put(b->p, b->v[i], b->w, NULL, err);
	if (r < 0)
		return r;
	b->remedy[i].done = true;
	(void)snprintf(b->remedy[i].text, sizeof(b->remedy[i].text),
		       "map built again from the tables of its session (%" PRIu32 " nodes)",
		       b->own.map.v[b->index].nslots);
	return 0;
}

static int begin(struct rebuild *b, size_t i, struct error *err)
{
	const struct seg_address addr = repair_address(b->p->v->repo, b->v[i]);
	struct seg_sealing sealing;
	int r = repair_sealing(b->p, b->v[i], &sealing, err);

	if (r == 0)
		seg_begin(b->w, &addr, &sealing);
	return r;
}

static int add_node(struct rebuild *b, const struct node *n, struct error *err)
{
	if (!seg_has_room(b->w, 1, PAGE_MAX_BYTES))
		return error_set(err, TM_E_RANGE, "the nodes do not fit a segment any more");
	return page_add(&b->out.page, n) ? page_out_flush(&b->out, b->w, err) : 0;
}

static int emit(void *data, const struct node *n, uint64_t *ret, struct error *err)
{
	struct rebuild *b = data;
	size_t i = current(b);
	int r = 0;

	if (b->index >= b->own.map.n)
		return error_set(err, TM_E_CORRUPT, "the tables give more nodes than were stored");
	*ret = ((uint64_t)b->index << MAP_SLOTS_LOG2) + b->slot;
	if (i < b->n && b->slot == 0)
		r = begin(b, i, err);
	if (r == 0 && i < b->n)
		r = add_node(b, n, err);
	if (r < 0 || ++b->slot < b->own.map.v[b->index].nslots)
		return r;
	if (i < b->n)
		r = finish(b, i, err);
	b->index++;
	b->slot = 0;
	return r;
}

/* ---- a disk ---- */

/* What cannot be read of the parent may have been so for the writer, too: then it has said of every
 * block what it is.  The digest tells. */
static int supply(struct rebuild *b, const struct point_disk *d, struct map_writer *w,
		  struct error *err)
{
	const uint8_t *bytes;
	size_t len;
	struct error one = {0};
	int r = verify_node_bytes(b->p->v, d, w->need.ref, &bytes, &len, &one);

	r = r ? r : map_writer_supply(w, bytes, len, &one);
	if (verify_is_damage(r)) {
		map_writer_supply_lost(w);
		return 0;
	}
	return r < 0 ? error_pass(err, r, &one) : r;
}

static int set(struct rebuild *b, const struct point_disk *d, struct map_writer *w,
	       const struct change *c, struct error *err)
{
	int r;

	while ((r = map_writer_set(w, c->block, c->count, c->ref, err)) == MAP_NEED) {
		r = supply(b, d, w, err);
		if (r < 0)
			return r;
	}
	return r;
}

static int end(struct rebuild *b, const struct point_disk *d, struct map_writer *w,
	       struct error *err)
{
	uint64_t root = REF_HOLE;
	int r;

	while ((r = map_writer_end(w, &root, err)) == MAP_NEED) {
		r = supply(b, d, w, err);
		if (r < 0)
			return r;
	}
	if (r == 0 && root != d->map->root)
		return error_set(err, TM_E_CORRUPT, "disk %s: the tables give another root",
				 d->name);
	return r;
}

static int rebuild_disk(struct rebuild *b, const struct point_disk *d, struct error *err)
{
	unsigned bits = b->p->v->repo->block_bits;
	const struct disk_map *m = d->map;
	const struct map_root parent = {.ref = m->parent_root,
					.blocks = disk_blocks(m->parent_size, bits),
					.nsessions = m->nsessions};
	auto_free struct map_writer *w = malloc(sizeof(*w));
	struct changes changes = {.n = 0};
	uint32_t own = verify_own_index(b->point, d);
	int r;

	if (own == UINT32_MAX)
		return 0; /* it stored nothing for this disk */
	if (!w)
		return error_nomem(err);
	/* References of the parent's nodes are of sessions before the own one. */
	map_writer_init(w, disk_blocks(d->size, bits), own,
			m->parent_number ? &(struct map_root){.ref = parent.ref,
							      .blocks = parent.blocks,
							      .nsessions = own}
					 : NULL,
			emit, b);
	r = changes_load(b->p->v, b->point, d, own, &changes, err);
	for (size_t i = 0; r == 0 && i < changes.n; i++)
		r = set(b, d, w, &changes.v[i], err);
	r = r ? r : end(b, d, w, err);
	free(changes.v);
	return r;
}

/* ---- a session ---- */

/* The wrap of the session's data key, which every segment carries. */
static int find_wrap(struct rebuild *b, struct error *err)
{
	struct repo *repo = b->p->v->repo;
	struct error one = {0};
	auto_buf struct buf o = {0};
	struct format_session h;
	char key[KEY_MAX];
	int r;

	for (uint32_t i = 0; i < b->own.data.n; i++) {
		struct vseg s = {.sid = b->point->id, .type = SEGMENT_DATA, .index = i};
		struct tables *t = NULL;

		if (verify_load_tables(b->p->v, &s, &t, &one) < 0)
			continue;
		b->keys = t->t->keys;
		tables_unref(t);
		return 0;
	}
	name_flag(repo, FLAG_MARKER, &b->point->id, key);
	r = store_read(repo->st, key, MAX_MARKER, &o, err);
	r = r ? r : format_head_check(o.data, o.len, MAGIC_SESSION, sizeof(h), &repo->id, key, err);
	if (r < 0)
		return r;
	memcpy(&h, o.data, sizeof(h));
	return session_keys_open(&repo->keys, &repo->id, &b->point->id, h.wrap, &b->keys, err);
}

static int load_point(struct rebuild *b, struct error *err)
{
	struct repo *repo = b->p->v->repo;
	const struct name_list *names = &b->p->names;
	auto_buf struct buf bytes = {0};
	char key[KEY_MAX];
	size_t i = 0;
	int r;

	while (i < names->n && !id_equal(&names->v[i].session, &b->v[0]->sid))
		i++;
	if (i == names->n)
		return error_set(err, TM_E_CORRUPT, "its point was dropped");
	name_point(repo, &names->v[i].source, names->v[i].seq, &names->v[i].session, key);
	r = store_read(repo->st, key, MAX_MANIFEST, &bytes, err);
	return r ? r
		 : manifest_decode(repo, &names->v[i], key, bytes.data, bytes.len, &b->point,
				   &b->own, err);
}

static int rebuild_all(struct rebuild *b, struct error *err)
{
	int r = load_point(b, err);

	r = r ? r : page_out_init(&b->out, err);
	r = r ? r : seg_writer_new(&b->w, err);
	r = r ? r : aead_new(&b->aead, err);
	r = r ? r : find_wrap(b, err);
	for (size_t i = 0; r == 0 && i < b->point->ndisks; i++)
		r = rebuild_disk(b, &b->point->disks[i], err);
	return r;
}

int repair_maps(struct repair *p, struct vseg *const *v, size_t n, struct remedy *ret,
		struct error *err)
{
	struct rebuild b = {.p = p, .v = v, .remedy = ret, .n = n};
	struct error one = {0};
	int r = rebuild_all(&b, &one);

	for (size_t i = 0; verify_is_damage(r) && i < n; i++)
		if (!ret[i].done)
			(void)snprintf(ret[i].text, sizeof(ret[i].text),
				       "the map cannot be built again: %.190s", one.text);
	page_out_done(&b.out);
	seg_writer_free(b.w);
	aead_free(b.aead);
	session_keys_wipe(&b.keys);
	point_free(b.point);
	own_segments_done(&b.own.data);
	own_segments_done(&b.own.map);
	if (r == 0 || verify_is_damage(r) || r == TM_E_RANGE)
		return 0;
	return error_pass(err, r, &one);
}
