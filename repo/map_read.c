/* SPDX-License-Identifier: Apache-2.0 */
/* Reading a map: a cursor that names the nodes it needs, and is given them by its user. */
#include "map.h"

void map_cursor_init(struct map_cursor *c, const struct map_root *root)
{
	c->root = *root;
	c->level = root_level(root->blocks);
	c->next = 0;
	for (unsigned l = 0; l <= NODE_MAX_LEVEL; l++)
		c->path[l].open = false;
}

void map_cursor_seek(struct map_cursor *c, uint64_t block)
{
	c->next = block;
}

/* No reference: what is below all entries of the node is alike. */
static bool is_plain(uint64_t ref)
{
	return ref == REF_HOLE || ref == REF_LOST;
}

/* Entries from `first` that continue the one there. */
static unsigned same_entries(const struct node *n, unsigned first)
{
	unsigned len = 1, end = node_entries(n->level);
	uint64_t e = n->e[first];

	while (first + len < end && n->e[first + len] == (is_plain(e) ? e : e + len))
		len++;
	return len;
}

static void make_run(struct map_cursor *c, uint64_t count, uint64_t ref, struct map_run *ret)
{
	count = min_u64(count, c->root.blocks - c->next);
	*ret = (struct map_run){.block = c->next, .count = count, .ref = ref};
	c->next += count;
}

/*
 * Follows the path to the next block down to the node of `floor`, or to where everything below
 * is alike: *ret_level is that node's level, *ret the entry there.
 */
static int descend(struct map_cursor *c, unsigned floor, unsigned *ret_level, uint64_t *ret)
{
	*ret = c->root.ref;
	for (unsigned l = c->level + 1; l-- > floor;) {
		const struct map_level *at = &c->path[l];
		uint64_t pos = c->next / node_blocks(l);

		if (!at->open || at->node.pos != pos) {
			c->need = (struct map_need){.ref = *ret, .level = l, .pos = pos};
			return MAP_NEED;
		}
		*ret = at->node.e[c->next / entry_blocks(l) % node_entries(l)];
		*ret_level = l;
		if (is_plain(*ret))
			break;
	}
	return 0;
}

int map_cursor_next(struct map_cursor *c, struct map_run *ret, struct error *err)
{
	const struct node *n;
	unsigned level = 0;
	uint64_t ref, unit;
	int r;

	(void)err;
	if (c->next >= c->root.blocks || c->root.ref == REF_HOLE) {
		make_run(c, c->next < c->root.blocks ? UINT64_MAX : 0, REF_HOLE, ret);
		return 0;
	}
	r = descend(c, 0, &level, &ref);
	if (r != 0)
		return r;
	n = &c->path[level].node;
	unit = entry_blocks(level);
	make_run(c,
		 same_entries(n, (unsigned)(c->next / unit % node_entries(level))) * unit -
			 c->next % unit,
		 ref, ret);
	return 0;
}

int map_cursor_until(struct map_cursor *c, struct map_run *ret)
{
	uint64_t ref = REF_HOLE, unit, first, before;
	const struct node *n;
	unsigned level = 0;
	int r;

	*ret = (struct map_run){.count = c->next + 1, .ref = ref};
	if (c->root.ref == REF_HOLE)
		return 0;
	r = descend(c, 0, &level, &ref);
	if (r != 0)
		return r;
	n = &c->path[level].node;
	unit = entry_blocks(level);
	first = c->next / unit;
	for (; first % node_entries(level) > 0; first--) {
		before = n->e[first % node_entries(level) - 1];
		if (is_plain(before) ? before != ref : before + 1 != ref)
			break;
		ref = before;
	}
	*ret = (struct map_run){
		.block = first * unit, .count = c->next + 1 - first * unit, .ref = ref};
	return 0;
}

int map_cursor_leaf(struct map_cursor *c, uint64_t *ret)
{
	unsigned level;

	if (c->next >= c->root.blocks || c->root.ref == REF_HOLE) {
		*ret = REF_HOLE;
		return 0;
	}
	return descend(c, 1, &level, ret);
}

int map_cursor_supply(struct map_cursor *c, const uint8_t *bytes, size_t len, struct error *err)
{
	struct map_level *at = &c->path[c->need.level];
	int r = node_decode(bytes, len, c->need.level, c->need.pos, c->root.nsessions, &at->node,
			    err);

	at->open = r == 0;
	return r;
}

void map_cursor_supply_lost(struct map_cursor *c)
{
	struct map_level *at = &c->path[c->need.level];

	node_clear(&at->node, c->need.level, c->need.pos);
	for (unsigned i = 0; i < node_entries(c->need.level); i++)
		at->node.e[i] = REF_LOST;
	at->open = true;
}
