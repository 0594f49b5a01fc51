/* SPDX-License-Identifier: Apache-2.0 */
#include "test.h"

#include "common/common.h"

struct square {
	struct pool_task task;
	uint64_t value;
	unsigned *handed_back;
};

static void square_run(struct pool_task *t, unsigned worker)
{
	struct square *s = (struct square *)(void *)t;

	(void)worker;
	s->value *= s->value;
}

static void square_done(struct pool_task *t)
{
	++*((struct square *)(void *)t)->handed_back;
}

static void workers_hand_every_task_back(void **state)
{
	enum { N = 1000 };
	struct loop *loop = NULL;
	struct pool *pool = NULL;
	struct square *s = calloc(N, sizeof(*s));
	unsigned back = 0;

	(void)state;
	assert_non_null(s);
	assert_int_equal(loop_new(8, &loop, NULL), 0);
	assert_int_equal(pool_new(loop, 3, &pool, NULL), 0);
	assert_int_equal(pool_workers(pool), 3);
	for (unsigned i = 0; i < N; i++) {
		s[i] = (struct square){{.run = square_run, .done = square_done}, i, &back};
		pool_submit(pool, &s[i].task);
	}
	for (int i = 0; i < 10000 && back < N; i++)
		assert_int_equal(loop_run_once(loop, 100, NULL), 0);
	assert_int_equal(back, N);
	for (unsigned i = 0; i < N; i++)
		assert_int_equal(s[i].value, (uint64_t)i * i);
	pool_free(pool);
	loop_free(loop);
	free(s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(workers_hand_every_task_back),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
