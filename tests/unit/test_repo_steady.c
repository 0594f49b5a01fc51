/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What must not depend on how a backup goes: its output, on the order in which workers finish;
 * its memory, on the number of clusters.
 */
#include "test.h"

#include "bench/sim_disk.h"
#include "repo/internal.h"
#include "repo/segment.h"

#include <stdatomic.h>
#include <zstd.h>

#define BLOCK 4096U
#define DISK  (UINT64_C(1) << 30)

/* ---- allocations of our own code are counted; the linker puts these before malloc() ---- */

static atomic_ulong allocations;

void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t n);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t n);

void *__wrap_malloc(size_t n)
{
	atomic_fetch_add(&allocations, 1);
	return __real_malloc(n);
}

void *__wrap_calloc(size_t n, size_t size)
{
	atomic_fetch_add(&allocations, 1);
	return __real_calloc(n, size);
}

void *__wrap_realloc(void *p, size_t n)
{
	atomic_fetch_add(&allocations, 1);
	return __real_realloc(p, n);
}

/* ---- and so are passes of zstd over clusters ---- */

static atomic_ulong passes;

size_t __real_ZSTD_compress2(ZSTD_CCtx *c, void *to, size_t room, const void *from, size_t n);
size_t __wrap_ZSTD_compress2(ZSTD_CCtx *c, void *to, size_t room, const void *from, size_t n);

size_t __wrap_ZSTD_compress2(ZSTD_CCtx *c, void *to, size_t room, const void *from, size_t n)
{
	atomic_fetch_add(&passes, 1);
	return __real_ZSTD_compress2(c, to, room, from, n);
}

/* ---- a backup of a simulated disk ---- */

struct site {
	uint32_t block;
	struct loop *loop;
	struct pool *pool;
	struct repo *repo;
};

static void site_up(struct site *s, uint32_t block, unsigned workers)
{
	const struct repo_init_options opt = {.block_size = block};
	struct store *st;

	s->block = block;
	assert_int_equal(loop_new(64, &s->loop, NULL), 0);
	assert_int_equal(pool_new(s->loop, workers, &s->pool, NULL), 0);
	assert_int_equal(store_memory_new(s->loop, &st, NULL), 0);
	assert_int_equal(repo_init(st, &opt, &s->repo, NULL), 0);
}

static void site_down(struct site *s)
{
	repo_free(s->repo);
	pool_free(s->pool);
	loop_free(s->loop);
}

/* Counts allocations from the piece with which half of the blocks are there. */
struct halfway {
	struct piece_sink sink;
	struct piece_sink *below;
	uint64_t half, end;
	uint64_t blocks;
	unsigned long at_half, at_end;
};

static int halfway_put(struct piece_sink *sink, struct piece *p, struct error *err)
{
	struct halfway *h = container_of(sink, struct halfway, sink);

	h->blocks += p->nclusters;
	if (!h->at_half && h->blocks >= h->half)
		h->at_half = atomic_load(&allocations);
	if (h->blocks >= h->end)
		h->at_end = atomic_load(&allocations);
	return piece_sink_put(h->below, p, err);
}

/* A point of the disk, made from the one before where there is one. */
static void backup(struct site *s, struct sim_disk *disk, unsigned pieces, struct halfway *h,
		   const struct tm_id *before, struct tm_id *ret)
{
	static char name[] = "vda", guest[] = "guest", made[] = "point", state[] = "shutoff";
	struct repo_session_options opt = {.guest = guest, .pool = s->pool};
	const struct reader_options read = {
		.map = SOURCE_MAP_DIRTY, .block_size = s->block, .pieces = pieces};
	struct point_disk pd = {.name = name, .rung = before ? RUNG_BITMAP : RUNG_FULL};
	const struct point meta = {.guest = guest,
				   .name = made,
				   .state = state,
				   .disks = &pd,
				   .ndisks = 1,
				   .kind = POINT_OFFLINE};
	struct repo_session *session;
	auto_clean(point_free) struct point *parent = NULL;
	struct repo_disk_counts counts;
	struct reader_counts got;
	struct error err = {0};

	if (before)
		assert_int_equal(repo_point_get(s->repo, guest, before, &parent, &err), 0);
	h->sink.put = halfway_put;
	assert_int_equal(id_new_timed(before ? 2 : 1, &opt.id, NULL), 0);
	assert_int_equal(repo_session_begin(s->repo, &opt, &session, &err), 0);
	assert_int_equal(repo_session_disk_begin(session, name, disk->src.size, parent,
						 parent ? parent->disks : NULL, &h->below, &err),
			 0);
	if (reader_run(s->loop, &disk->src, &h->sink, &read, &got, &err))
		fail_msg("%s", err.text);
	assert_int_equal(got.read_bytes, disk->ndirty * s->block);
	assert_int_equal(repo_session_disk_end(session, &counts, &err), 0);
	if (repo_session_commit(session, &meta, &err))
		fail_msg("%s", err.text);
	repo_session_free(session);
	*ret = opt.id;
}

/* ---- equal input, equal output ---- */

struct keys {
	char v[256][KEY_MAX];
	size_t n;
};

static int take_key(void *data, const char *key, uint64_t size, struct error *err)
{
	struct keys *k = data;

	(void)size;
	(void)err;
	assert_true(k->n < ARRAY_SIZE(k->v));
	(void)snprintf(k->v[k->n++], KEY_MAX, "%s", key);
	return 0;
}

/* The segments of a session, in the order of their names. */
static void session_segments(const struct site *s, const struct tm_id *sid, struct keys *ret)
{
	struct store *st = s->repo->st;
	char prefix[KEY_MAX];

	ret->n = 0;
	name_session_prefix(s->repo, sid, prefix);
	assert_int_equal(st->ops->list(st, prefix, take_key, ret, NULL), 0);
}

struct opened {
	struct buf object;
	struct seg_tables *t;
	struct aead *aead;
};

static void open_segment(const struct site *s, const char *key, struct opened *ret)
{
	struct segment_name name;
	struct seg_address addr;
	struct error err = {0};

	*ret = (struct opened){0};
	assert_true(name_parse_segment(s->repo, key, &name));
	addr = (struct seg_address){.repo = s->repo->id,
				    .domain = s->repo->domain,
				    .session = name.session,
				    .type = name.type,
				    .block_bits = (uint8_t)s->repo->block_bits,
				    .index = name.index};
	assert_int_equal(store_read(s->repo->st, key, SIZE_MAX, &ret->object, NULL), 0);
	assert_int_equal(aead_new(&ret->aead, NULL), 0);
	if (seg_tables_parse(&addr, &s->repo->keys, ret->object.data, ret->object.len, ret->aead,
			     &ret->t, &err))
		fail_msg("%s", err.text);
	assert_int_equal(aead_set_key(ret->aead, &ret->t->key, NULL), 0);
}

static void close_segment(struct opened *o)
{
	seg_tables_free(o->t);
	aead_free(o->aead);
	buf_done(&o->object);
}

static void same_frame(struct opened *a, struct opened *b, uint32_t i)
{
	const struct seg_frame *fa = &a->t->frames[i], *fb = &b->t->frames[i];
	size_t len = fa->stored_len - TAG_BYTES;
	auto_free uint8_t *pa = malloc(fa->stored_len), *pb = malloc(fa->stored_len);

	assert_int_equal(fa->first_slot, fb->first_slot);
	assert_int_equal(fa->nslots, fb->nslots);
	assert_int_equal(fa->stored_len, fb->stored_len);
	assert_int_equal(frame_open(a->t, fa, a->aead, a->object.data + fa->offset, pa, NULL), 0);
	assert_int_equal(frame_open(b->t, fb, b->aead, b->object.data + fb->offset, pb, NULL), 0);
	assert_memory_equal(pa, pb, len);
}

static void same_segment(struct opened *a, struct opened *b)
{
	assert_int_equal(a->object.len, b->object.len);
	assert_int_equal(a->t->nslots, b->t->nslots);
	assert_int_equal(a->t->nframes, b->t->nframes);
	assert_int_equal(a->t->nextras, b->t->nextras);
	for (uint32_t i = 0; i < a->t->nframes; i++)
		same_frame(a, b, i);
	for (uint32_t i = 0; a->t->descs && i < a->t->nslots + a->t->nextras; i++) {
		const struct format_desc *da = &a->t->descs[i], *db = &b->t->descs[i];

		assert_int_equal(le64_get(da->place), le64_get(db->place));
		if (i >= a->t->nslots) /* content ids are keyed, what other records say is not */
			assert_memory_equal(da->b, db->b, sizeof(da->b));
	}
}

/* Content of few kinds, so that clusters occur twice; some zero, some noise. */
static uint8_t *some_content(uint64_t blocks)
{
	uint8_t *p = calloc(blocks, BLOCK);
	uint64_t random = 7;

	assert_non_null(p);
	for (uint64_t b = 0; b < blocks; b++)
		for (size_t i = 0; b % 4 && i < BLOCK; i++)
			p[b * BLOCK + i] = b % 4 == 1 ? (uint8_t)test_random(&random)
						      : (uint8_t)(b + i / 11 % 7);
	return p;
}

static void same_segments(const struct site *a, const struct tm_id *sid_a, const struct site *b,
			  const struct tm_id *sid_b)
{
	static struct keys keys[2];

	session_segments(a, sid_a, &keys[0]);
	session_segments(b, sid_b, &keys[1]);
	assert_true(keys[0].n >= 2);
	assert_int_equal(keys[0].n, keys[1].n);
	for (size_t k = 0; k < keys[0].n; k++) {
		struct opened oa, ob;

		open_segment(a, keys[0].v[k], &oa);
		open_segment(b, keys[1].v[k], &ob);
		same_segment(&oa, &ob);
		close_segment(&oa);
		close_segment(&ob);
	}
}

/* One worker and few pieces, or many: the first point and those made from it. */
static void runs_on_equal_input_make_equal_segments(void **state)
{
	enum { POINTS = 6 };
	auto_free uint8_t *content = some_content(64);
	struct tm_id sid[2][POINTS];
	struct site site[2];

	(void)state;
	for (unsigned i = 0; i < 2; i++) {
		struct sim_disk disk;

		site_up(&site[i], BLOCK, i ? 4 : 1);
		sim_disk_init(&disk, site[i].loop, DISK, BLOCK);
		disk.content = content;
		disk.ncontent = 64;
		disk.plain = true;
		for (unsigned n = 0; n < POINTS; n++) {
			struct halfway h = {.end = UINT64_MAX, .half = UINT64_MAX};

			sim_disk_choose(&disk, n ? 2000 : 6000, n ? 1 : 3, 1 + n);
			disk.epoch = n;
			backup(&site[i], &disk, i ? 32 : 3, &h, n ? &sid[i][n - 1] : NULL,
			       &sid[i][n]);
		}
		sim_disk_done(&disk);
	}
	for (unsigned n = 0; n < POINTS; n++)
		same_segments(&site[0], &sid[0][n], &site[1], &sid[1][n]);
	site_down(&site[0]);
	site_down(&site[1]);
}

/* ---- no allocation per cluster ---- */

static void a_cluster_costs_no_allocation(void **state)
{
	struct halfway h = {.half = 20000, .end = 40000};
	struct sim_disk disk;
	struct site site;
	struct tm_id sid;

	(void)state;
	site_up(&site, BLOCK, 2);
	sim_disk_init(&disk, site.loop, DISK, BLOCK);
	sim_disk_choose(&disk, 40000, 1, 1);
	backup(&site, &disk, 32, &h, NULL, &sid);
	sim_disk_done(&disk);
	site_down(&site);
	assert_true(h.at_half > 0);
	printf("%lu allocations for %d clusters\n", h.at_end - h.at_half, 20000);
	/* of a segment, 1024 clusters, some: those of the store for one */
	assert_true(h.at_end - h.at_half < 20000 / 1024 * 40);
}

/* ---- what does not shrink ---- */

/* A disk of `content` in pieces of two frames: how often zstd goes over them. */
static unsigned long passes_over(const uint8_t *content, uint64_t blocks)
{
	enum { CLUSTER = 65536, PIECES = 16 };
	struct halfway h = {.half = UINT64_MAX, .end = UINT64_MAX};
	unsigned long before = atomic_load(&passes);
	struct sim_disk disk;
	struct site site;
	struct tm_id sid;

	site_up(&site, CLUSTER, 2);
	sim_disk_init(&disk, site.loop, DISK, CLUSTER);
	disk.content = content;
	disk.ncontent = blocks;
	sim_disk_choose(&disk, (size_t)PIECES * PIECE_CLUSTERS, PIECE_CLUSTERS, 1);
	backup(&site, &disk, 32, &h, NULL, &sid);
	sim_disk_done(&disk);
	site_down(&site);
	return (atomic_load(&passes) - before) / PIECES;
}

static void noise_costs_no_pass(void **state)
{
	enum { BLOCKS = 256 }; /* so many that a frame hardly has the same one twice */
	auto_free uint8_t *content = malloc((size_t)BLOCKS << 16);
	uint64_t random = 11;

	(void)state;
	assert_non_null(content);
	for (size_t i = 0; i < (size_t)BLOCKS << 16; i++)
		content[i] = (uint8_t)test_random(&random);
	assert_int_equal(passes_over(content, BLOCKS), 0);
	/* records of random numbers with empty fields are none, whatever their length */
	for (size_t i = 0; i < (size_t)BLOCKS << 16; i++)
		if (i % 128 >= 64)
			content[i] = 0;
	assert_int_equal(passes_over(content, BLOCKS), 2);
	for (size_t i = 0; i < (size_t)BLOCKS << 16; i++)
		content[i] = (uint8_t)(i / 100);
	assert_int_equal(passes_over(content, BLOCKS), 2);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(runs_on_equal_input_make_equal_segments),
		cmocka_unit_test(a_cluster_costs_no_allocation),
		cmocka_unit_test(noise_costs_no_pass),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
