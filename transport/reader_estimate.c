/* SPDX-License-Identifier: Apache-2.0 */
/* How much there is to report or read, and how far it reaches: the mapping alone. */
#include "alive.h"
#include "mapper.h"

#define TICK_MS    100
#define PIECES_MAX 65536

static bool sample_fits(const struct extents *sample, uint64_t size, uint32_t block_size)
{
	for (size_t i = 0; i < sample->n; i++) {
		const struct extent *e = &sample->v[i];

		if (!range_inside(e->offset, e->length, size) || e->offset % block_size ||
		    (e->length % block_size && e->offset + e->length != size))
			return false;
	}
	return true;
}

int reader_check(const struct block_source *src, const struct reader_options *opt,
		 struct error *err)
{
	uint32_t bs = opt->block_size;

	if (!bs || (bs & (bs - 1)) || !opt->pieces || opt->pieces > PIECES_MAX)
		return error_set(err, TM_E_RANGE,
				 "cannot read with %u pieces of blocks of %u bytes", opt->pieces,
				 bs);
	if (opt->map == SOURCE_MAP_DIRTY && !src->has_dirty)
		return error_set(err, TM_E_UNSUPPORTED, "the disk has no dirty bitmap");
	if (opt->sample &&
	    (opt->map != SOURCE_MAP_DIRTY || !sample_fits(opt->sample, src->size, bs)))
		return error_set(err, TM_E_RANGE, "cannot read such a sample of the disk");
	if (!src->max_read || !src->depth || src->size > INT64_MAX)
		return error_set(err, TM_E_PEER, "cannot read a disk of %llu bytes, %u at once",
				 (unsigned long long)src->size, src->max_read);
	return 0;
}

static int tick(const struct mapper *m, const struct reader_options *opt, struct alive *alive,
		uint64_t now_ms, struct error *err)
{
	const struct reader_counts counts = {.dirty_bytes = m->dirty_bytes};
	int r = alive_check(alive, m->answers, m->running, now_ms, opt->stall_ms, err);

	return !r && opt->tick ? opt->tick(opt->data, &counts, err) : r;
}

struct estimate {
	uint64_t bytes;
	uint64_t end; /* of the last range */
};

static int run_mapper(struct loop *loop, struct mapper *m, const struct reader_options *opt,
		      struct estimate *ret, struct error *err)
{
	uint64_t now_ms = clock_monotonic_ms(&clock_system), tick_at = now_ms + TICK_MS;
	struct alive alive = {.at_ms = now_ms};

	*ret = (struct estimate){0};
	for (;;) {
		struct map_range range;
		enum mapper_state state;
		int r;

		mapper_pump(m);
		if (m->code) {
			return error_pass(err, m->code, &m->err);
		}
		state = mapper_next(m, &range);
		if (state == MAPPER_END)
			return 0;
		if (state == MAPPER_RANGE) {
			if (range.zero && opt->map == SOURCE_MAP_DATA)
				continue;
			ret->bytes += range.length;
			ret->end = range.offset + range.length;
			continue;
		}
		r = loop_run_once(loop, TICK_MS, err);
		now_ms = clock_monotonic_ms(&clock_system);
		if (!r && now_ms >= tick_at) {
			tick_at = now_ms + TICK_MS;
			r = tick(m, opt, &alive, now_ms, err);
		}
		if (r)
			return r;
	}
}

static int estimate(struct loop *loop, struct block_source *src, const struct reader_options *opt,
		    struct estimate *ret, struct error *err)
{
	struct mapper *m;
	int r = reader_check(src, opt, err);

	if (r)
		return r;
	m = calloc(1, sizeof(*m));
	if (!m)
		return error_nomem(err);
	mapper_init(m, src, opt);
	if (opt->map == SOURCE_MAP_DIRTY)
		m->refine = false; /* zero or not, it is dirty */
	r = run_mapper(loop, m, opt, ret, err);
	if (r && m->running) {
		mapper_stop(m);
		src->ops->abort(src);
	}
	while (m->running) {
		if (loop_run_once(loop, TICK_MS, NULL))
			return r; /* the loop is broken; m is left to the source */
	}
	mapper_done(m);
	free(m);
	return r;
}

int reader_estimate(struct loop *loop, struct block_source *src, const struct reader_options *opt,
		    uint64_t *ret_bytes, struct error *err)
{
	struct estimate e;
	int r = estimate(loop, src, opt, &e, err);

	if (!r)
		*ret_bytes = e.bytes;
	return r;
}

int reader_reach(struct loop *loop, struct block_source *src, const struct reader_options *opt,
		 uint64_t *ret_end, struct error *err)
{
	struct estimate e;
	int r = estimate(loop, src, opt, &e, err);

	if (!r)
		*ret_end = e.end;
	return r;
}
