/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The map writer.  level[root … 0] is the open path.  A node is loaded from the parent's
 * tree when a run touches it, written when the path leaves it, and only if it changed;
 * its new reference then goes into the node above.
 *
 *	grown disk    the levels above the parent's root are made at once, dirty
 *	shrunk disk   the parent's tree is entered further down; blocks behind the end
 *	              become holes at the end
 */
#include "map.h"

#include "common/common.h"

#include <inttypes.h>

static void open_cleared(struct map_writer *w, unsigned level, uint64_t pos, bool dirty)
{
	node_clear(&w->level[level].node, level, pos);
	w->level[level].open = true;
	w->level[level].dirty = dirty;
}

void map_writer_init(struct map_writer *w, uint64_t blocks, uint32_t own,
		     const struct map_root *parent, map_emit_fn *emit, void *data)
{
	assert(blocks <= MAX_BLOCKS && (!parent || own >= parent->nsessions));
	w->blocks = blocks;
	w->root = root_level(blocks);
	w->own = own;
	w->next = 0;
	w->resuming = false;
	w->cut = parent && parent->blocks > blocks;
	w->old_ref = parent ? parent->ref : REF_HOLE;
	w->old_level = parent ? root_level(parent->blocks) : w->root;
	w->root_ref = REF_HOLE;
	w->root_known = w->old_ref == REF_HOLE;
	w->emit = emit;
	w->data = data;
	for (unsigned l = 0; l <= NODE_MAX_LEVEL; l++)
		w->level[l].open = false;
	if (w->old_ref == REF_HOLE || w->old_level > w->root)
		return;
	if (w->old_level == w->root) {
		w->root_ref = w->old_ref;
		w->root_known = true;
		return;
	}
	for (unsigned l = w->root; l > w->old_level; l--)
		open_cleared(w, l, 0, true);
	w->level[w->old_level + 1].node.e[0] = w->old_ref;
	w->root_known = true;
}

static int need_node(struct map_writer *w, uint64_t ref, unsigned level, uint64_t pos)
{
	w->need = (struct map_need){.ref = ref, .level = level, .pos = pos};
	return MAP_NEED;
}

/* A shrunk disk: follows the parent's tree down to this tree's height. */
static int find_root(struct map_writer *w)
{
	if (w->root_known)
		return 0;
	if (w->old_ref != REF_HOLE && w->old_level > w->root)
		return need_node(w, w->old_ref, w->old_level, 0);
	w->root_ref = w->old_ref;
	w->root_known = true;
	return 0;
}

/* Where the reference to the open node of this level is kept. */
static uint64_t *parent_entry(struct map_writer *w, unsigned level, uint64_t pos)
{
	if (level == w->root)
		return &w->root_ref;
	assert(w->level[level + 1].open && w->level[level + 1].node.pos == pos / NODE_CHILDREN);
	return &w->level[level + 1].node.e[pos % NODE_CHILDREN];
}

static int close_level(struct map_writer *w, unsigned level, struct error *err)
{
	struct map_level *l = &w->level[level];
	uint64_t ref = REF_HOLE, ordinal;
	int r;

	if (!l->open)
		return 0;
	l->open = false;
	if (!l->dirty)
		return 0;
	if (!node_is_hole(&l->node)) {
		r = w->emit(w->data, &l->node, &ordinal, err);
		if (r < 0)
			return r;
		ref = ref_of(w->own, ordinal);
	}
	*parent_entry(w, level, l->node.pos) = ref;
	if (level < w->root)
		w->level[level + 1].dirty = true;
	return 0;
}

static int close_up_to(struct map_writer *w, unsigned level, struct error *err)
{
	for (unsigned l = 0; l <= level; l++) {
		int r = close_level(w, l, err);

		if (r < 0)
			return r;
	}
	return 0;
}

/*
 * Opens the path to the node of `level` that holds block.  fresh: that node's old content
 * does not matter, all its entries will be set.
 */
static int open_path(struct map_writer *w, unsigned level, uint64_t block, bool fresh,
		     struct error *err)
{
	int r = find_root(w);

	if (r != 0)
		return r;
	for (unsigned l = w->root + 1; l-- > level;) {
		uint64_t pos = block / node_blocks(l), ref;

		if (w->level[l].open && w->level[l].node.pos == pos)
			continue;
		r = close_up_to(w, l, err);
		if (r < 0)
			return r;
		ref = *parent_entry(w, l, pos);
		if (ref == REF_HOLE)
			open_cleared(w, l, pos, false);
		else if (fresh && l == level)
			open_cleared(w, l, pos, true);
		else
			return need_node(w, ref, l, pos);
	}
	return 0;
}

static void set_entry(struct map_level *l, unsigned i, uint64_t ref)
{
	if (l->node.e[i] != ref) {
		l->node.e[i] = ref;
		l->dirty = true;
	}
}

/* The highest level with an entry that begins at block and lies inside the hole. */
static unsigned hole_level(const struct map_writer *w, uint64_t block, uint64_t end)
{
	unsigned level = 0;

	while (level < w->root && block % entry_blocks(level + 1) == 0 &&
	       end - block >= entry_blocks(level + 1))
		level++;
	return level;
}

/* One step: the entries of one node. */
static int set_step(struct map_writer *w, uint64_t end, uint64_t ref, struct error *err)
{
	unsigned level = ref == REF_HOLE ? hole_level(w, w->next, end) : 0, first;
	uint64_t unit = entry_blocks(level), n;
	bool fresh = w->next % node_blocks(level) == 0 && end - w->next >= node_blocks(level);
	int r = open_path(w, level, w->next, fresh, err);

	if (r != 0)
		return r;
	first = (unsigned)(w->next / unit % node_entries(level));
	n = min_u64(node_entries(level) - first, (end - w->next) / unit);
	for (uint64_t i = 0; i < n; i++)
		set_entry(&w->level[level], first + (unsigned)i,
			  ref == REF_HOLE ? REF_HOLE : ref + i);
	w->next += n * unit;
	return 0;
}

static int set_range(struct map_writer *w, uint64_t block, uint64_t end, uint64_t ref,
		     struct error *err)
{
	if (!w->resuming)
		w->next = block;
	w->resuming = false;
	while (w->next < end) {
		int r = set_step(w, end, ref == REF_HOLE ? REF_HOLE : ref + (w->next - block), err);

		if (r == MAP_NEED)
			w->resuming = true;
		if (r != 0)
			return r;
	}
	return 0;
}

int map_writer_set(struct map_writer *w, uint64_t block, uint64_t count, uint64_t ref,
		   struct error *err)
{
	uint64_t end;

	if (!range_end(block, count, &end) || end > w->blocks)
		return error_set(err, TM_E_RANGE,
				 "blocks %" PRIu64 " + %" PRIu64
				 " are outside the disk of %" PRIu64,
				 block, count, w->blocks);
	if (!w->resuming && block < w->next)
		return error_set(err, TM_E_RANGE, "block %" PRIu64 " comes after block %" PRIu64,
				 block, w->next);
	/* Behind the disk's end there are only holes, so that a hole up to it may go on. */
	if (ref == REF_HOLE && end == w->blocks && count > 0)
		end = node_blocks(w->root);
	return set_range(w, block, end, ref, err);
}

int map_writer_end(struct map_writer *w, uint64_t *ret, struct error *err)
{
	int r = find_root(w);

	if (r == 0 && w->cut && w->next < node_blocks(w->root))
		r = set_range(w, w->blocks, node_blocks(w->root), REF_HOLE, err);
	if (r == 0)
		r = close_up_to(w, w->root, err);
	if (r == 0)
		*ret = w->root_ref;
	return r;
}

int map_writer_supply(struct map_writer *w, const uint8_t *bytes, size_t len, struct error *err)
{
	struct map_level *l = &w->level[w->need.level];
	int r;

	if (!w->root_known) {
		struct node n;

		r = node_decode(bytes, len, w->old_level, 0, w->own, &n, err);
		if (r < 0)
			return r;
		w->old_ref = n.e[0];
		w->old_level--;
		return 0;
	}
	assert(!l->open);
	r = node_decode(bytes, len, w->need.level, w->need.pos, w->own, &l->node, err);
	l->open = r == 0;
	l->dirty = false;
	return r;
}

void map_writer_supply_lost(struct map_writer *w)
{
	if (!w->root_known)
		w->old_ref = REF_HOLE;
	else
		open_cleared(w, w->need.level, w->need.pos, true);
}
