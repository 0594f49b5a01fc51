/* SPDX-License-Identifier: Apache-2.0 */
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

int map_cursor_next(struct map_cursor *c, struct map_run *ret, struct error *err)
{
	uint64_t ref = c->root.ref;

	(void)err;
	if (c->next >= c->root.blocks || ref == REF_HOLE) {
		make_run(c, c->next < c->root.blocks ? UINT64_MAX : 0, REF_HOLE, ret);
		return 0;
	}
	for (unsigned l = c->level + 1; l-- > 0;) {
		struct map_level *at = &c->path[l];
		uint64_t pos = c->next / node_blocks(l), unit = entry_blocks(l);
		unsigned first = (unsigned)(c->next / unit % node_entries(l)), n;

		if (!at->open || at->node.pos != pos) {
			c->need = (struct map_need){.ref = ref, .level = l, .pos = pos};
			return MAP_NEED;
		}
		ref = at->node.e[first];
		if (l > 0 && !is_plain(ref))
			continue;
		n = same_entries(&at->node, first);
		make_run(c, n * unit - c->next % unit, ref, ret);
		return 0;
	}
	assert(false); /* a leaf ends the loop */
	return 0;
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
