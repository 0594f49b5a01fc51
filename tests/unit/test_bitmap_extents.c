/* SPDX-License-Identifier: Apache-2.0 */
/* The set algebra against a naive model: one bool per byte of a small space. */
#include "bitmap/bitmap.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#define SPACE 512

struct model {
	bool in[SPACE];
};

static unsigned failures_after; /* allocations that still succeed */
static bool failures_on;

static void *failing_realloc(void *p, size_t bytes)
{
	if (failures_on && failures_after-- == 0) {
		failures_after = 0;
		return NULL;
	}
	return realloc(p, bytes);
}

static unsigned seed_of_run(void)
{
	const char *env = getenv("SEED");
	unsigned seed =
		env ? (unsigned)strtoul(env, NULL, 0) : (unsigned)clock_unix_ms(&clock_system);

	print_message("SEED=%u\n", seed);
	return seed;
}

static unsigned below(unsigned *state, unsigned n)
{
	return (unsigned)rand_r(state) % n;
}

static void check_same(const struct extents *set, const struct model *m)
{
	uint64_t bytes = 0;

	for (size_t i = 0; i < set->n; i++) {
		assert_true(set->v[i].length > 0);
		if (i)
			assert_true(set->v[i - 1].offset + set->v[i - 1].length < set->v[i].offset);
	}
	for (unsigned i = 0; i < SPACE; i++) {
		assert_int_equal(extents_contain(set, i), m->in[i]);
		bytes += m->in[i];
	}
	assert_int_equal(extents_bytes(set), bytes);
}

static void random_set(unsigned *state, struct extents *set, struct model *m)
{
	unsigned n = below(state, 30);

	extents_clear(set);
	(void)memset(m, 0, sizeof(*m));
	for (unsigned i = 0; i < n; i++) {
		unsigned offset = below(state, SPACE), length = below(state, 40);

		if (length > SPACE - offset)
			length = SPACE - offset;
		assert_int_equal(extents_add(set, offset, length, NULL), 0);
		for (unsigned k = offset; k < offset + length; k++)
			m->in[k] = true;
		check_same(set, m);
	}
}

static void operations_agree_with_the_model(void **unused)
{
	auto_extents struct extents a = {0}, b = {0}, ret = {0};
	unsigned state = seed_of_run();
	struct model ma, mb, mr;

	(void)unused;
	for (unsigned round = 0; round < 400; round++) {
		unsigned unit = 1U << below(&state, 6), size = SPACE - below(&state, 100);

		random_set(&state, &a, &ma);
		random_set(&state, &b, &mb);
		for (unsigned i = 0; i < SPACE; i++)
			mr.in[i] = ma.in[i] && mb.in[i];
		assert_int_equal(extents_intersect(&a, &b, &ret, NULL), 0);
		check_same(&ret, &mr);
		for (unsigned i = 0; i < SPACE; i++)
			mr.in[i] = ma.in[i] && !mb.in[i];
		assert_int_equal(extents_subtract(&a, &b, &ret, NULL), 0);
		check_same(&ret, &mr);
		(void)memset(&mr, 0, sizeof(mr));
		for (unsigned i = 0; i < SPACE; i++) {
			for (unsigned k = i / unit * unit;
			     ma.in[i] && i < size && k < size && k < (i / unit + 1) * unit; k++)
				mr.in[k] = true;
		}
		extents_align(&a, unit, size);
		check_same(&a, &mr);
	}
}

static void add_refuses_a_range_that_wraps(void **unused)
{
	auto_extents struct extents set = {0};
	struct error err = {0};

	(void)unused;
	assert_int_equal(extents_add(&set, UINT64_MAX - 1, 1, &err), 0);
	assert_int_equal(extents_add(&set, UINT64_MAX - 1, 2, &err), TM_E_RANGE);
	assert_int_equal(set.n, 1);
	assert_int_equal(extents_bytes(&set), 1);
	extents_align(&set, 65536, UINT64_MAX);
	assert_int_equal(set.v[0].offset, UINT64_MAX - 65535);
	assert_int_equal(set.v[0].length, 65535);
}

static void a_failed_allocation_leaves_the_set_as_it_was(void **unused)
{
	extents_realloc = failing_realloc;
	(void)unused;
	for (unsigned n = 0; n < 8; n++) {
		auto_extents struct extents set = {0};
		struct error err = {0};
		uint64_t i = 0;

		failures_after = n;
		failures_on = true;
		while (extents_add(&set, i * 10, 5, &err) == 0)
			i++;
		assert_int_equal(err.code, TM_E_NOMEM);
		assert_int_equal(set.n, i);
		assert_int_equal(extents_bytes(&set), i * 5);
		failures_on = false;
		assert_int_equal(extents_add(&set, i * 10, 5, NULL), 0);
		assert_int_equal(set.n, i + 1);
	}
	extents_realloc = realloc;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(operations_agree_with_the_model),
		cmocka_unit_test(add_refuses_a_range_that_wraps),
		cmocka_unit_test(a_failed_allocation_leaves_the_set_as_it_was),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
