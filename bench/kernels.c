/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The work of a backup in small parts, for counting instructions:
 *
 *	kernels NAME TIMES
 *
 * does one of them so many times on data that is always the same, on one thread.  Two runs tell
 * what one time costs without the start of the program.
 */
#include "repo/map.h"
#include "repo/session.h"

#include "bench.h"
#include "sim_disk.h"

#include <string.h>

#define CLUSTER 65536U
#define FRAME   FRAME_TARGET_BYTES
#define LEVEL   1

struct kernel {
	const char *name;
	void (*run)(uint64_t times);
};

/* Like text: skewed bytes, with repetitions. */
static uint8_t *sample(size_t len)
{
	uint8_t *p = malloc(len);
	uint64_t random = 1;

	must(p, "memory");
	for (size_t i = 0; i < len; i++) {
		random = sim_mix(random);
		p[i] = i > 512 && random % 8 < 5 ? p[i - 64 - random / 8 % 448]
						 : (uint8_t)('a' + random / 64 % 16);
	}
	return p;
}

static void use(const void *p)
{
	__asm__ volatile("" : : "r"(p) : "memory");
}

static void worker(struct workers *w)
{
	static const struct secret key = {{1}};

	must(workers_init(w, 1, &key, LEVEL, FRAME, NULL) == 0, "workers");
	must(aead_set_key(w->v->aead, &key, NULL) == 0, "aead_set_key");
}

static void zero(uint64_t times)
{
	auto_free uint8_t *p = calloc(1, CLUSTER);

	must(p, "memory");
	for (uint64_t i = 0; i < times; i++) {
		use(p);
		must(p[0] == 0 && memcmp(p, p + 1, CLUSTER - 1) == 0, "zero");
	}
}

static void id(uint64_t times)
{
	auto_free uint8_t *p = sample(CLUSTER);
	uint8_t ret[CONTENT_BYTES];
	struct workers w;

	worker(&w);
	for (uint64_t i = 0; i < times; i++)
		must(content_id(w.v, p, CLUSTER, ret, NULL) == 0, "content_id");
	workers_done(&w);
}

static void compress(uint64_t times)
{
	auto_free uint8_t *p = sample(FRAME), *to = malloc(FRAME);
	struct workers w;

	must(to, "memory");
	worker(&w);
	for (uint64_t i = 0; i < times; i++)
		must(!ZSTD_isError(ZSTD_compress2(w.v->cctx, to, FRAME, p, FRAME)), "zstd");
	workers_done(&w);
}

static void unpack(uint64_t times)
{
	auto_free uint8_t *p = sample(FRAME), *to = malloc(FRAME);
	struct workers w;
	size_t n;

	must(to, "memory");
	worker(&w);
	n = ZSTD_compress2(w.v->cctx, to, FRAME, p, FRAME);
	must(!ZSTD_isError(n), "zstd");
	for (uint64_t i = 0; i < times; i++)
		must(ZSTD_decompressDCtx(w.v->dctx, p, FRAME, to, n) == FRAME, "zstd");
	workers_done(&w);
}

static void seal(uint64_t times)
{
	auto_free uint8_t *p = calloc(1, CLUSTER + TAG_BYTES);
	struct workers w;

	must(p, "memory");
	worker(&w);
	for (uint64_t i = 0; i < times; i++)
		must(aead_seal(w.v->aead, 0, "", 0, p, CLUSTER, p, NULL) == 0, "aead_seal");
	workers_done(&w);
}

static void crc(uint64_t times)
{
	auto_free uint8_t *p = sample(CLUSTER);
	uint32_t sum = 0;

	for (uint64_t i = 0; i < times; i++)
		sum = crc32c(sum, p, CLUSTER);
	use(&sum);
}

static void extents(uint64_t times)
{
	auto_extents struct extents set = {0};

	for (uint64_t i = 0; i < times; i++) {
		must(extents_add(&set, i % 4096 * 2 * CLUSTER, CLUSTER, NULL) == 0, "extents_add");
		if (i % 4096 == 4095)
			extents_clear(&set);
	}
}

static int count_node(void *data, const struct node *n, uint64_t *ret, struct error *err)
{
	uint64_t *nodes = data;
	uint8_t bytes[NODE_MAX_BYTES];

	(void)err;
	use(bytes);
	must(node_encode(n, bytes) > 0, "node_encode");
	*ret = (*nodes)++;
	return 0;
}

/* Scattered blocks of a new disk: a node for every 16 of them. */
static void map(uint64_t times)
{
	struct map_writer *w = malloc(sizeof(*w));
	uint64_t nodes = 0, root;

	must(w, "memory");
	map_writer_init(w, times * 16 + 1, 0, NULL, count_node, &nodes);
	for (uint64_t i = 0; i < times; i++)
		must(map_writer_set(w, i * 16, 1, ref_of(0, i), NULL) == 0, "map_writer_set");
	must(map_writer_end(w, &root, NULL) == 0, "map_writer_end");
	free(w);
}

/* Clusters of one frame each, small ones: what a segment does beside copying. */
static void segment(uint64_t times)
{
	const struct seg_address addr = {.type = SEGMENT_DATA, .block_bits = 16};
	const uint8_t content[CONTENT_BYTES] = {1}, data[16] = {0};
	const struct seg_sealing sealing = {0};
	struct seg_writer *w = NULL;

	must(seg_writer_new(&w, NULL) == 0, "seg_writer_new");
	seg_begin(w, &addr, &sealing);
	for (uint64_t i = 0; i < times; i++) {
		if (!seg_has_room(w, 1, sizeof(data)))
			seg_begin(w, &addr, &sealing);
		seg_describe(w, w->nslots, 0, i, content);
		seg_add_frame(w, 1, FRAME_RAW, data, sizeof(data));
	}
	seg_writer_free(w);
}

static int drop_piece(struct piece_sink *sink, struct piece *p, struct error *err)
{
	(void)sink;
	(void)err;
	piece_release(p);
	return 0;
}

/* Scattered blocks of 4 KiB: mapping, pieces, requests. */
static void reader(uint64_t times)
{
	const struct reader_options opt = {
		.map = SOURCE_MAP_DIRTY, .block_size = 4096, .pieces = 32};
	struct piece_sink sink = {.put = drop_piece};
	struct reader_counts counts;
	struct sim_disk disk;
	struct error err = {0};
	struct loop *loop;

	must_do(loop_new(64, &loop, &err), &err);
	sim_disk_init(&disk, loop, (times + 1) * 64 * 4096, 4096);
	sim_disk_choose(&disk, times, 1, 1);
	must_do(reader_run(loop, &disk.src, &sink, &opt, &counts, &err), &err);
	must(counts.read_bytes == times * 4096, "reader_run");
	sim_disk_done(&disk);
	loop_free(loop);
}

static const struct kernel kernels[] = {
	{"zero", zero},       {"id", id},         {"compress", compress}, {"unpack", unpack},
	{"seal", seal},       {"crc", crc},       {"extents", extents},   {"map", map},
	{"segment", segment}, {"reader", reader},
};

int main(int argc, char **argv)
{
	for (size_t i = 0; argc == 3 && i < ARRAY_SIZE(kernels); i++) {
		if (strcmp(kernels[i].name, argv[1]) != 0)
			continue;
		kernels[i].run(strtoull(argv[2], NULL, 10));
		return 0;
	}
	(void)fprintf(stderr, "usage: kernels NAME TIMES\n");
	return 2;
}
