/* SPDX-License-Identifier: Apache-2.0 */
/* Content ids computed many at once are those computed one by one, by another library. */
#include "test.h"

#include "repo/worker.h"

#include <string.h>

struct fixture {
	struct secret key;
	struct workers workers;
	uint8_t *room;
	uint64_t random;
};

static int set_up(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	assert_non_null(f);
	f->random = test_seed() | 1;
	for (size_t i = 0; i < sizeof(f->key.b); i++)
		f->key.b[i] = (uint8_t)test_random(&f->random);
	assert_int_equal(workers_init(&f->workers, 1, &f->key, 0, 0, NULL), 0);
	f->room = malloc((size_t)2 * PIECE_CLUSTERS * LANES_MESSAGE_BYTES);
	assert_non_null(f->room);
	for (size_t i = 0; i < (size_t)2 * PIECE_CLUSTERS * LANES_MESSAGE_BYTES; i++)
		f->room[i] = (uint8_t)test_random(&f->random);
	*state = f;
	return 0;
}

static int tear_down(void **state)
{
	struct fixture *f = *state;

	workers_done(&f->workers);
	free(f->room);
	free(f);
	return 0;
}

static void compare(struct fixture *f, unsigned n, size_t len)
{
	struct worker *w = &f->workers.v[0];
	uint8_t id[PIECE_CLUSTERS][CONTENT_BYTES], want[CONTENT_BYTES];
	const uint8_t *data[PIECE_CLUSTERS] = {NULL};
	uint8_t *ret[PIECE_CLUSTERS] = {NULL};

	for (unsigned i = 0; i < n; i++) {
		data[i] = f->room +
			  test_below(&f->random, (uint64_t)PIECE_CLUSTERS * LANES_MESSAGE_BYTES);
		ret[i] = id[n - 1 - i];
	}
	assert_int_equal(content_ids(w, n, data, len, ret, NULL), 0);
	for (unsigned i = 0; i < n; i++) {
		assert_int_equal(content_id(w, data[i], len, want, NULL), 0);
		assert_memory_equal(ret[i], want, CONTENT_BYTES);
	}
}

/* Every number of clusters, of sizes below and above what lanes are for. */
static void ids_are_those_of_one_by_one(void **state)
{
	struct fixture *f = *state;

	for (size_t len = 512; len <= (size_t)2 * LANES_MESSAGE_BYTES; len *= 2)
		for (unsigned n = 0; n <= PIECE_CLUSTERS; n++)
			compare(f, n, len);
}

/* Contexts that were used before, with another number and size. */
static void lanes_can_be_used_again(void **state)
{
	struct fixture *f = *state;

	for (unsigned i = 0; i < 200; i++)
		compare(f, (unsigned)test_below(&f->random, PIECE_CLUSTERS + 1),
			(size_t)512 << test_below(&f->random, 8));
}

/* One bit of one cluster changes one id: no lane looks at another's data, or leaves out an end. */
static void a_bit_changes_one_id(void **state)
{
	struct fixture *f = *state;
	uint8_t before[PIECE_CLUSTERS][CONTENT_BYTES], after[PIECE_CLUSTERS][CONTENT_BYTES];
	const uint8_t *data[PIECE_CLUSTERS] = {NULL};
	uint8_t *ret[PIECE_CLUSTERS] = {NULL};

	for (unsigned i = 0; i < PIECE_CLUSTERS; i++) {
		data[i] = f->room + (size_t)i * LANES_MESSAGE_BYTES;
		ret[i] = before[i];
	}
	assert_int_equal(
		content_ids(&f->workers.v[0], PIECE_CLUSTERS, data, LANES_MESSAGE_BYTES, ret, NULL),
		0);
	for (unsigned i = 0; i < PIECE_CLUSTERS; i++)
		ret[i] = after[i];
	for (unsigned k = 0; k < 3 * PIECE_CLUSTERS; k++) {
		unsigned changed = k % PIECE_CLUSTERS;
		const size_t at[] = {0, test_below(&f->random, LANES_MESSAGE_BYTES),
				     LANES_MESSAGE_BYTES - 1};
		uint8_t *p =
			f->room + (size_t)changed * LANES_MESSAGE_BYTES + at[k / PIECE_CLUSTERS];

		*p ^= 1;
		assert_int_equal(content_ids(&f->workers.v[0], PIECE_CLUSTERS, data,
					     LANES_MESSAGE_BYTES, ret, NULL),
				 0);
		*p ^= 1;
		for (unsigned i = 0; i < PIECE_CLUSTERS; i++)
			assert_int_equal(memcmp(before[i], after[i], CONTENT_BYTES) != 0,
					 i == changed);
	}
}

/* A library that was linked and has failed its proof must not look like none. */
static void lanes_are_there_where_they_should_be(void **state)
{
	struct fixture *f = *state;
	bool has;

	compare(f, PIECE_CLUSTERS, LANES_MESSAGE_BYTES);
	has = f->workers.v[0].lanes != NULL;
	printf("lanes: %s\n", has ? "yes" : "no");
#if TEST_LANES /* the build has the library */
	assert_true(has || !__builtin_cpu_supports("avx512bw"));
#endif
	if (!has)
		skip();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(ids_are_those_of_one_by_one, set_up, tear_down),
		cmocka_unit_test_setup_teardown(lanes_can_be_used_again, set_up, tear_down),
		cmocka_unit_test_setup_teardown(a_bit_changes_one_id, set_up, tear_down),
		cmocka_unit_test_setup_teardown(lanes_are_there_where_they_should_be, set_up,
						tear_down),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
