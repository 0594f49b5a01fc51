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

/* Runs name every entry that is not a hole, in order, and are as long as they can be. */
static void check_runs(const uint8_t *bytes, size_t len, const struct node *n)
{
	struct node_runs runs;
	uint64_t before = REF_HOLE;
	unsigned at = 0;

	assert_int_equal(node_decode_runs(bytes, len, n->level, n->pos, SESSIONS, &runs, NULL), 0);
	for (unsigned i = 0; i < runs.n; i++) {
		const struct node_run *run = &runs.v[i];

		assert_true(run->count > 0);
		assert_true(run->first > at || (run->first == at && run->ref != before));
		for (; at < run->first; at++)
			assert_true(n->e[at] == REF_HOLE);
		for (unsigned k = 0; k < run->count; k++, at++)
			assert_true(n->e[at] == run->ref + k);
		before = run->ref + run->count;
	}
	for (; at < node_entries(n->level); at++)
		assert_true(n->e[at] == REF_HOLE);
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
		check_runs(bytes, len, &n);
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

/* A node of one reference whose ordinal is written so. */
static void numbers_have_one_form(void **state)
{
	static const struct {
		uint8_t bytes[10];
		size_t len;
		int64_t zigzag; /* -1: not to be taken */
	} form[] = {
		{{0x06}, 1, 0x06},
		{{0x86, 0x01}, 2, 0x86},
		{{0x86, 0x80, 0x01}, 3, 0x4006},
		{{0x86, 0x80, 0x80, 0x02}, 4, 0x400006},
		{{0x86, 0x80, 0x80, 0x80, 0x80, 0x20}, 6, 0x10000000006},
		{{0x86, 0x00}, 2, -1},
		{{0x86, 0x80, 0x00}, 3, -1},
		{{0x86, 0x80, 0x80, 0x00}, 4, -1},
		{{0x86, 0x00, 0x01}, 3, -1}, /* not one of three bytes */
		{{0x86, 0x80, 0x00, 0x01}, 4, -1},
		{{0x06, 0x01}, 2, -1},
		{{0x86}, 1, -1},
		{{0x86, 0x80}, 2, -1},
		{{0x86, 0x80, 0x80}, 3, -1},
		{{0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01}, 10, -1},
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(form); i++) {
		const size_t head = 6; /* level, flags, position, runs, kind, session */
		uint8_t *exact = calloc(1, head + form[i].len);
		struct node back;
		int r;

		exact[3] = exact[4] = 1;
		memcpy(exact + head, form[i].bytes, form[i].len);
		r = node_decode(exact, head + form[i].len, 0, 0, SESSIONS, &back, NULL);
		free(exact);
		if (form[i].zigzag < 0)
			assert_int_equal(r, TM_E_CORRUPT);
		else
			assert_int_equal(r, 0);
		if (r == 0)
			assert_true(back.e[0] == ref_of(0, (uint64_t)form[i].zigzag / 2));
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
		cmocka_unit_test(numbers_have_one_form),
		cmocka_unit_test(the_worst_node_fits),
		cmocka_unit_test(random_bytes_do_no_harm),
		cmocka_unit_test(pages_hold_their_nodes),
	};

	seed = test_seed();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
