/* SPDX-License-Identifier: Apache-2.0 */
/* Map writer and cursor against a flat array, over epochs of random changes and resizes. */
#include "test.h"

#include "repo/map.h"

#define MAX_TEST_BLOCKS (3u * 128 * 256 + 1000) /* three levels */
#define EPOCHS          40

static uint64_t seed;

/* Nodes of all sessions, encoded. */
struct nodes {
	struct stored {
		uint8_t *bytes;
		size_t len;
		uint64_t ref;
	} * v;
	size_t n, cap;
	uint32_t session;
	uint64_t next; /* ordinal */
};

static int emit(void *data, const struct node *n, uint64_t *ret, struct error *err)
{
	struct nodes *all = data;
	uint8_t bytes[NODE_MAX_BYTES];
	size_t len = node_encode(n, bytes);

	(void)err;
	assert_true(len <= NODE_MAX_BYTES);
	if (all->n == all->cap) {
		all->cap = all->cap ? 2 * all->cap : 64;
		all->v = reallocarray(all->v, all->cap, sizeof(*all->v));
		assert_non_null(all->v);
	}
	all->v[all->n] = (struct stored){
		.bytes = malloc(len), .len = len, .ref = ref_of(all->session, all->next)};
	memcpy(all->v[all->n++].bytes, bytes, len);
	*ret = all->next++;
	return 0;
}

static const struct stored *find(const struct nodes *all, uint64_t ref)
{
	for (size_t i = all->n; i-- > 0;)
		if (all->v[i].ref == ref)
			return &all->v[i];
	fail_msg("no node");
	return NULL;
}

static void set(struct map_writer *w, const struct nodes *all, uint64_t block, uint64_t count,
		uint64_t ref)
{
	int r;

	while ((r = map_writer_set(w, block, count, ref, NULL)) == MAP_NEED) {
		const struct stored *s = find(all, w->need.ref);

		assert_int_equal(map_writer_supply(w, s->bytes, s->len, NULL), 0);
	}
	assert_int_equal(r, 0);
}

static uint64_t end(struct map_writer *w, const struct nodes *all)
{
	uint64_t root = 0;
	int r;

	while ((r = map_writer_end(w, &root, NULL)) == MAP_NEED) {
		const struct stored *s = find(all, w->need.ref);

		assert_int_equal(map_writer_supply(w, s->bytes, s->len, NULL), 0);
	}
	assert_int_equal(r, 0);
	return root;
}

static void compare(const struct nodes *all, const struct map_root *root, const uint64_t *shadow)
{
	struct map_cursor c;
	struct map_run run;
	uint64_t at = 0;
	int r;

	map_cursor_init(&c, root);
	for (;;) {
		while ((r = map_cursor_next(&c, &run, NULL)) == MAP_NEED) {
			const struct stored *s = find(all, c.need.ref);

			assert_int_equal(map_cursor_supply(&c, s->bytes, s->len, NULL), 0);
		}
		assert_int_equal(r, 0);
		if (run.count == 0)
			break;
		assert_true(run.block == at);
		for (uint64_t i = 0; i < run.count; i++)
			assert_true(shadow[at + i] ==
				    (run.ref == REF_HOLE ? REF_HOLE : run.ref + i));
		at += run.count;
	}
	assert_true(at == root->blocks);
}

/* From the end down: runs that end where the one before began, or inside it. */
static void compare_backwards(const struct nodes *all, const struct map_root *root,
			      const uint64_t *shadow, uint64_t *random)
{
	uint64_t end = root->blocks;
	struct map_cursor c;
	struct map_run run;

	map_cursor_init(&c, root);
	while (end > 0) {
		int r;

		map_cursor_seek(&c, end - 1);
		while ((r = map_cursor_until(&c, &run)) == MAP_NEED) {
			const struct stored *s = find(all, c.need.ref);

			assert_int_equal(map_cursor_supply(&c, s->bytes, s->len, NULL), 0);
		}
		assert_int_equal(r, 0);
		assert_true(run.count > 0 && run.block + run.count == end);
		for (uint64_t i = 0; i < run.count; i++)
			assert_true(shadow[run.block + i] ==
				    (run.ref == REF_HOLE ? REF_HOLE : run.ref + i));
		end = run.block + (test_below(random, 4) ? 0 : test_below(random, run.count));
	}
}

static uint64_t some_size(uint64_t *random)
{
	static const uint64_t edges[] = {1,         127,           128,          129, 128 * 256 - 1,
					 128 * 256, 128 * 256 + 1, 2 * 128 * 256};

	if (test_below(random, 2))
		return edges[test_below(random, sizeof(edges) / sizeof(edges[0]))];
	return 1 + test_below(random, MAX_TEST_BLOCKS);
}

static void change(struct map_writer *w, struct nodes *all, uint64_t *shadow, uint64_t blocks,
		   uint64_t *random)
{
	uint64_t at = test_below(random, blocks), data = 0;
	unsigned n = (unsigned)test_below(random, 40);

	while (n-- > 0 && at < blocks) {
		uint64_t max = test_below(random, 4) ? 40 : 40000,
			 count = 1 + test_below(random, max);
		uint64_t ref = test_below(random, 3) ? ref_of(all->session, data) : REF_HOLE;

		count = count < blocks - at ? count : blocks - at;
		set(w, all, at, count, ref);
		for (uint64_t i = 0; i < count; i++)
			shadow[at + i] = ref == REF_HOLE ? REF_HOLE : ref + i;
		data += count + test_below(random, 2) * 100;
		at += count + test_below(random, 2) * test_below(random, 5000);
	}
}

static void writer_and_cursor_agree_with_a_flat_map(void **state)
{
	uint64_t random = seed | 1;

	(void)state;
	for (unsigned round = 0; round < 6; round++) {
		struct nodes all = {.session = 0};
		uint64_t *shadow = malloc(MAX_TEST_BLOCKS * sizeof(*shadow));
		struct map_root root = {.ref = REF_HOLE, .blocks = some_size(&random)};

		for (uint64_t i = 0; i < MAX_TEST_BLOCKS; i++)
			shadow[i] = REF_HOLE;
		for (unsigned epoch = 0; epoch < EPOCHS; epoch++) {
			struct map_writer w;
			struct map_root parent = root;
			size_t before = all.n;

			all.session = epoch;
			all.next = 0;
			if (test_below(&random, 3) == 0)
				root.blocks = some_size(&random);
			for (uint64_t i = root.blocks; i < MAX_TEST_BLOCKS; i++)
				shadow[i] = REF_HOLE;
			map_writer_init(&w, root.blocks, epoch, epoch ? &parent : NULL, emit, &all);
			change(&w, &all, shadow, root.blocks, &random);
			root.ref = end(&w, &all);
			root.nsessions = epoch + 1;
			compare(&all, &root, shadow);
			compare_backwards(&all, &root, shadow, &random);
			if (root.ref == parent.ref && root.blocks == parent.blocks)
				assert_int_equal(all.n, before);
		}
		for (size_t i = 0; i < all.n; i++)
			free(all.v[i].bytes);
		free(all.v);
		free(shadow);
	}
}

static void huge_holes_cost_nothing(void **state)
{
	struct map_root parent = {.ref = REF_HOLE, .blocks = MAX_BLOCKS}, root;
	struct nodes all = {.session = 0};
	struct map_writer w;

	(void)state;
	map_writer_init(&w, MAX_BLOCKS, 0, NULL, emit, &all);
	set(&w, &all, 5, 10, ref_of(0, 0));
	set(&w, &all, 1000, MAX_BLOCKS - 2000, REF_HOLE);
	set(&w, &all, MAX_BLOCKS - 1, 1, ref_of(0, 10));
	parent.ref = end(&w, &all);
	parent.nsessions = 1;
	assert_int_equal(all.n, 9); /* two paths that meet in the root */
	all.session = 1;
	all.next = 0;
	root = parent;
	map_writer_init(&w, MAX_BLOCKS, 1, &parent, emit, &all);
	set(&w, &all, 0, MAX_BLOCKS, REF_HOLE);
	root.ref = end(&w, &all);
	assert_true(root.ref == REF_HOLE);
	assert_int_equal(all.n, 9);
	for (size_t i = 0; i < all.n; i++)
		free(all.v[i].bytes);
	free(all.v);
}

static void set_refuses_what_is_outside_or_late(void **state)
{
	struct nodes all = {.session = 0};
	struct map_writer w;

	(void)state;
	map_writer_init(&w, 100, 0, NULL, emit, &all);
	assert_int_equal(map_writer_set(&w, 90, 11, REF_HOLE, NULL), TM_E_RANGE);
	assert_int_equal(map_writer_set(&w, UINT64_MAX, 2, REF_HOLE, NULL), TM_E_RANGE);
	set(&w, &all, 50, 2, ref_of(0, 0));
	assert_int_equal(map_writer_set(&w, 51, 1, REF_HOLE, NULL), TM_E_RANGE);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(writer_and_cursor_agree_with_a_flat_map),
		cmocka_unit_test(huge_holes_cost_nothing),
		cmocka_unit_test(set_refuses_what_is_outside_or_late),
	};

	seed = test_seed();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
