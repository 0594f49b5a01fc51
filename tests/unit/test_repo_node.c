/* SPDX-License-Identifier: Apache-2.0 */
/* Map nodes and pages: round trips, one form only, and hostile bytes. */
#include "test.h"

#include "repo/node.h"

#define SESSIONS 1000

static uint64_t seed;

static void random_node(uint64_t *random, struct node *n)
{
	unsigned entries, i = 0;

	node_clear(n, (unsigned)test_below(random, 3), test_below(random, 1 << 20));
	entries = node_entries(n->level);
	while (i < entries) {
		unsigned len = 1 + (unsigned)test_below(random, test_below(random, 2) ? 4 : 60);
		uint64_t ref = ref_of((uint32_t)test_below(random, SESSIONS),
				      test_below(random, 1u << 30));
		bool hole = test_below(random, 3) == 0;

		for (; len > 0 && i < entries; len--, i++)
			n->e[i] = hole ? REF_HOLE : ref++;
	}
	if (node_is_hole(n))
		n->e[3] = ref_of(1, 2);
}

static bool same_node(const struct node *a, const struct node *b)
{
	for (unsigned i = 0; i < node_entries(a->level); i++)
		if (a->e[i] != b->e[i])
			return false;
	return a->level == b->level && a->pos == b->pos;
}

static void nodes_come_back(void **state)
{
	uint64_t random = seed | 1;

	(void)state;
	for (unsigned i = 0; i < 2000; i++) {
		uint8_t bytes[NODE_MAX_BYTES];
		struct node n, back;
		size_t len;

		random_node(&random, &n);
		len = node_encode(&n, bytes);
		assert_int_equal(node_decode(bytes, len, n.level, n.pos, SESSIONS, &back, NULL), 0);
		assert_true(same_node(&n, &back));
		assert_true(node_decode(bytes, len, n.level, n.pos + 1, SESSIONS, &back, NULL) < 0);
		assert_true(node_decode(bytes, len, n.level + 1, n.pos, SESSIONS, &back, NULL) < 0);
		assert_true(node_decode(bytes, len, n.level, n.pos, 0, &back, NULL) < 0);
	}
}

/* Bytes that decode are the one encoding of what they decode to. */
static void check_canonical(const uint8_t *bytes, size_t len, const struct node *like)
{
	uint8_t again[NODE_MAX_BYTES];
	struct node back;

	if (node_decode(bytes, len, like->level, like->pos, SESSIONS, &back, NULL) < 0)
		return;
	assert_int_equal(node_encode(&back, again), len);
	assert_memory_equal(again, bytes, len);
}

static void every_truncation_and_every_flip_is_seen_or_harmless(void **state)
{
	uint64_t random = seed | 1;

	(void)state;
	for (unsigned i = 0; i < 30; i++) {
		uint8_t bytes[NODE_MAX_BYTES];
		struct node n, back;
		size_t len;

		random_node(&random, &n);
		len = node_encode(&n, bytes);
		for (size_t cut = 0; cut < len; cut++) {
			uint8_t *exact = malloc(cut + 1); /* so that a read beyond is found */

			memcpy(exact, bytes, cut);
			assert_true(node_decode(exact, cut, n.level, n.pos, SESSIONS, &back, NULL) <
				    0);
			free(exact);
		}
		for (size_t bit = 0; bit < 8 * len; bit++) {
			bytes[bit / 8] ^= (uint8_t)(1U << bit % 8);
			check_canonical(bytes, len, &n);
			bytes[bit / 8] ^= (uint8_t)(1U << bit % 8);
		}
	}
}

static void the_worst_node_fits(void **state)
{
	uint8_t bytes[NODE_MAX_BYTES];
	struct node n;

	(void)state;
	node_clear(&n, NODE_MAX_LEVEL, UINT32_MAX);
	for (unsigned i = 0; i < NODE_CHILDREN; i++)
		n.e[i] = i % 2 ? ref_of(MAX_SESSIONS - 1, MAX_ORDINAL - 2) : ref_of(0, 0);
	assert_true(node_encode(&n, bytes) <= NODE_MAX_BYTES);
}

static void random_bytes_do_no_harm(void **state)
{
	uint64_t random = seed | 1;

	(void)state;
	for (unsigned i = 0; i < 20000; i++) {
		size_t len = test_below(&random, 200);
		uint8_t *bytes = malloc(len + 1);
		struct node n = {.level = 0, .pos = 0};

		for (size_t k = 0; k < len; k++)
			bytes[k] = (uint8_t)(test_below(&random, 3) ? test_below(&random, 9)
								    : test_random(&random));
		if (len > 2)
			memset(bytes, 0, 3); /* level, flags, position: further than the head */
		check_canonical(bytes, len, &n);
		(void)!page_check(bytes, len, (unsigned)test_below(&random, 20), NULL);
		free(bytes);
	}
}

static void pages_hold_their_nodes(void **state)
{
	static struct page_writer w;
	static uint8_t page[PAGE_MAX_BYTES];
	uint64_t random = seed | 1;
	struct node n[PAGE_MAX_NODES], back;
	unsigned count = 0;
	size_t len;

	(void)state;
	memset(&w, 0, sizeof(w));
	do
		random_node(&random, &n[count]);
	while (!page_add(&w, &n[count++]));
	len = page_finish(&w, page);
	assert_int_equal(w.n, 0);
	assert_int_equal(page_check(page, len, count, NULL), 0);
	for (unsigned i = 0; i < count; i++) {
		size_t node_len;
		const uint8_t *p = page_node(page, i, &node_len);

		assert_int_equal(
			node_decode(p, node_len, n[i].level, n[i].pos, SESSIONS, &back, NULL), 0);
		assert_true(same_node(&n[i], &back));
	}
	assert_true(page_check(page, len, count - 1, NULL) < 0);
	for (size_t cut = 0; cut < len; cut++) {
		uint8_t *exact = malloc(cut + 1);

		memcpy(exact, page, cut);
		assert_true(page_check(exact, cut, count, NULL) < 0);
		free(exact);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(nodes_come_back),
		cmocka_unit_test(every_truncation_and_every_flip_is_seen_or_harmless),
		cmocka_unit_test(the_worst_node_fits),
		cmocka_unit_test(random_bytes_do_no_harm),
		cmocka_unit_test(pages_hold_their_nodes),
	};

	seed = test_seed();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
