/* SPDX-License-Identifier: Apache-2.0 */
#include "sim_disk.h"

#include "bench.h"

#include <assert.h>
#include <string.h>

#define MAX_READ (512u << 10)
#define DEPTH    32

uint64_t sim_mix(uint64_t x)
{
	x += UINT64_C(0x9e3779b97f4a7c15);
	x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
	return x ^ x >> 31;
}

static struct sim_disk *sim_of(struct block_source *src)
{
	return container_of(src, struct sim_disk, src);
}

static void turn(struct loop_op *op, int res)
{
	struct sim_disk *d = container_of(op, struct sim_disk, turn);
	struct source_req *list = d->answered;

	(void)res;
	d->answered = NULL;
	d->answered_end = &d->answered;
	while (list) {
		struct source_req *req = list;

		list = req->next;
		req->done(req, 0);
	}
}

static void answer(struct sim_disk *d, struct source_req *req)
{
	error_clear(&req->err);
	req->next = NULL;
	*d->answered_end = req;
	d->answered_end = &req->next;
	if (!d->turn.armed)
		loop_defer(d->loop, &d->turn);
}

/* Index of the first dirty block that is not below `block`. */
static size_t first_dirty(const struct sim_disk *d, uint64_t block)
{
	size_t low = 0, high = d->ndirty;

	while (low < high) {
		size_t mid = low + (high - low) / 2;

		if (d->dirty[mid] < block)
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

static void sim_map(struct block_source *src, enum source_map map, uint64_t offset, uint64_t length,
		    struct extents *ret, uint64_t *ret_end, struct source_req *req)
{
	struct sim_disk *d = sim_of(src);
	uint64_t bs = d->block_size, end = offset + length;
	struct error err = {0};

	(void)map; /* what is dirty is what has data */
	for (size_t i = first_dirty(d, offset / bs); i < d->ndirty && d->dirty[i] * bs < end; i++) {
		uint64_t from = max_u64(d->dirty[i] * bs, offset);

		must_do(extents_add(ret, from, min_u64((d->dirty[i] + 1) * bs, end) - from, &err),
			&err);
	}
	*ret_end = end;
	answer(d, req);
}

/* Real data or zeroes, stamped. */
static void fill_block(const struct sim_disk *d, uint8_t *to, uint64_t block)
{
	const uint64_t stamp[2] = {sim_mix(block), d->epoch};

	if (d->content)
		memcpy(to,
		       d->content + sim_mix(block ^ d->epoch << 40) % d->ncontent * d->block_size,
		       d->block_size);
	else
		memset(to, 0, d->block_size);
	if (!d->plain)
		memcpy(to, stamp, sizeof(stamp));
}

static void sim_read(struct block_source *src, void *buf, uint32_t len, uint64_t offset,
		     struct source_req *req)
{
	struct sim_disk *d = sim_of(src);

	assert(offset % d->block_size == 0 && len % d->block_size == 0);
	for (uint64_t at = 0; at < len; at += d->block_size)
		fill_block(d, (uint8_t *)buf + at, (offset + at) / d->block_size);
	d->read_bytes += len;
	answer(d, req);
}

static void sim_abort(struct block_source *src)
{
	(void)src;
}

static void sim_free(struct block_source *src)
{
	(void)src;
}

static const struct block_source_ops sim_ops = {
	.map = sim_map, .read = sim_read, .abort = sim_abort, .free = sim_free};

void sim_disk_init(struct sim_disk *d, struct loop *loop, uint64_t size, uint64_t block_size)
{
	*d = (struct sim_disk){
		.src = {.ops = &sim_ops,
			.size = size,
			.max_read = (uint32_t)max_u64(MAX_READ, block_size),
			.depth = DEPTH,
			.has_dirty = true,
			.has_data = true},
		.loop = loop,
		.turn.done = turn,
		.block_size = block_size,
	};
	d->answered_end = &d->answered;
}

void sim_disk_done(struct sim_disk *d)
{
	assert(!d->answered);
	free(d->dirty);
}

static int by_number(const void *a, const void *b)
{
	const uint64_t *x = a, *y = b;

	return *x < *y ? -1 : *x > *y;
}

static void drop_twice(struct sim_disk *d)
{
	size_t kept = 0;

	qsort(d->dirty, d->ndirty, sizeof(*d->dirty), by_number);
	for (size_t i = 0; i < d->ndirty; i++)
		if (!kept || d->dirty[kept - 1] != d->dirty[i])
			d->dirty[kept++] = d->dirty[i];
	d->ndirty = kept;
}

void sim_disk_choose(struct sim_disk *d, size_t n, size_t run, uint64_t seed)
{
	uint64_t places = d->src.size / d->block_size / run, random = seed;

	must(n % run == 0 && places > n / run, "choosing blocks");
	free(d->dirty);
	d->dirty = calloc(n, sizeof(*d->dirty));
	must(d->dirty, "memory");
	d->ndirty = 0;
	/* Runs that came twice are drawn again. */
	while (d->ndirty < n) {
		while (d->ndirty < n) {
			random = sim_mix(random);
			for (size_t i = 0; i < run; i++)
				d->dirty[d->ndirty++] = random % places * run + i;
		}
		drop_twice(d);
	}
}
