/* SPDX-License-Identifier: Apache-2.0 */
#include "content.h"

#include <string.h>

#define FIRST_SLOTS 32

enum {
	FREE = 0,
	PENDING = 1,
	PLACES = 2, /* what is added to a place */
};

void content_init(struct content_index *c, uint32_t max)
{
	*c = (struct content_index){.max = max};
}

void content_done(struct content_index *c)
{
	for (unsigned i = 0; i < CONTENT_TABLES; i++)
		free(c->table[i].v);
	*c = (struct content_index){0};
}

/* Where an id belongs in a table: its second to fifth byte, spread over the slots. */
static uint32_t home(const struct content_table *t, const uint8_t *id)
{
	uint32_t h;

	memcpy(&h, id + 1, sizeof(h));
	return (uint32_t)((uint64_t)h * t->cap >> 32);
}

/* The entry of the id, or the free one where it goes. */
static struct content_entry *probe(const struct content_table *t, const uint8_t *id)
{
	uint32_t i = home(t, id);

	while (t->v[i].place != FREE && memcmp(t->v[i].id, id, CONTENT_BYTES) != 0)
		i = i + 1 == t->cap ? 0 : i + 1;
	return &t->v[i];
}

bool content_find(const struct content_index *c, const uint8_t id[CONTENT_BYTES],
		  uint64_t *ret_place)
{
	const struct content_table *t = &c->table[id[0]];
	const struct content_entry *e;

	if (t->n == 0)
		return false;
	e = probe(t, id);
	if (e->place == FREE)
		return false;
	*ret_place = e->place == PENDING ? CONTENT_PENDING : e->place - PLACES;
	return true;
}

static int grow(struct content_table *t, struct error *err)
{
	struct content_table n = {.cap = t->cap ? t->cap + t->cap / 2 : FIRST_SLOTS, .n = t->n};

	if (n.cap > CONTENT_TABLE_SLOTS)
		n.cap = CONTENT_TABLE_SLOTS;
	n.v = calloc(n.cap, sizeof(*n.v));
	if (!n.v)
		return error_nomem(err);
	for (uint32_t i = 0; i < t->cap; i++)
		if (t->v[i].place != FREE)
			*probe(&n, t->v[i].id) = t->v[i];
	free(t->v);
	*t = n;
	return 0;
}

/* Room for one more entry, at most 7/8 full: 0, or 1 when there is none. */
static int make_room(const struct content_index *c, struct content_table *t, struct error *err)
{
	if (c->n == c->max)
		return 1;
	if (t->n + 1 <= t->cap - t->cap / 8 && t->cap > 0)
		return 0;
	return t->cap == CONTENT_TABLE_SLOTS ? 1 : grow(t, err);
}

int content_put(struct content_index *c, const uint8_t id[CONTENT_BYTES], uint64_t place,
		struct error *err)
{
	struct content_table *t = &c->table[id[0]];
	struct content_entry *e = t->n > 0 ? probe(t, id) : NULL;
	int r;

	if (!e || e->place == FREE) {
		r = make_room(c, t, err);
		if (r != 0)
			return r < 0 ? r : 0;
		e = probe(t, id);
		memcpy(e->id, id, CONTENT_BYTES);
		t->n++;
		c->n++;
	}
	e->place = place == CONTENT_PENDING ? PENDING : place + PLACES;
	return 0;
}

size_t content_memory(const struct content_index *c)
{
	size_t sum = sizeof(*c);

	for (unsigned i = 0; i < CONTENT_TABLES; i++)
		sum += c->table[i].cap * sizeof(struct content_entry);
	return sum;
}
