/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A qcow2 image as the target of a restore: docs/interop/qcow2.txt of QEMU 7.2, version 3,
 * clusters of 64 KiB, refcounts of 16 bits, no features, no backing file.
 *
 *	header | L1 table | data clusters and L2 tables, as they come | refcount table | blocks
 *
 * Clusters of the file are allotted in this order, one after the other, and each is used
 * once: so every refcount is 1, and all of them follow from the number of clusters when the
 * last one is known.  A cluster of the disk gets one when its first byte comes, whole; what of
 * it does not come, and what of the tables is not used, stays a hole of the file, and that
 * reads as zeroes.
 *
 * The L2 tables of a large disk (128 KiB per GiB) do not stay in memory: a few do, those
 * used last; others are written out and, if the disk is not restored in order, read again.
 * Nothing refers to the image before it is complete, so no order of the writes matters.
 */
#include "sink_file.h"

#include <assert.h>
#include <string.h>

#define CLUSTER_BITS 16
#define CLUSTER      ((uint64_t)1 << CLUSTER_BITS)
#define SECTOR       512 /* virtual sizes are multiples of it */
/* Of a disk: QEMU opens no L1 table of more than 32 MiB, no refcount table of more than 8. */
#define SIZE_MOST ((uint64_t)1 << 50)

#define L2_ENTRIES     (CLUSTER / sizeof(struct be64))
#define TABLE_SPAN     (L2_ENTRIES * CLUSTER) /* bytes of the disk behind one L2 table */
#define REFCOUNTS      (CLUSTER / sizeof(struct be16))
#define REFCOUNT_ORDER 4                   /* 2^4 bits */
#define COPIED         ((uint64_t)1 << 63) /* its refcount is 1 */

#define TABLES   64 /* L2 tables in memory: 4 MiB, for 32 GiB of disk */
#define NO_TABLE UINT64_MAX

struct qcow2_header {
	uint8_t magic[4];
	struct be32 version;
	struct be64 backing_file_offset;
	struct be32 backing_file_size;
	struct be32 cluster_bits;
	struct be64 size;
	struct be32 crypt_method;
	struct be32 l1_size;
	struct be64 l1_table_offset;
	struct be64 refcount_table_offset;
	struct be32 refcount_table_clusters;
	struct be32 nb_snapshots;
	struct be64 snapshots_offset;
	struct be64 incompatible_features;
	struct be64 compatible_features;
	struct be64 autoclear_features;
	struct be32 refcount_order;
	struct be32 header_length;
};
static_assert(offsetof(struct qcow2_header, size) == 24, "qcow2.txt");
static_assert(offsetof(struct qcow2_header, refcount_table_offset) == 48, "qcow2.txt");
static_assert(offsetof(struct qcow2_header, incompatible_features) == 72, "qcow2.txt");
static_assert(sizeof(struct qcow2_header) == 104, "qcow2.txt");

/* An L2 table in memory. */
struct l2_table {
	uint64_t index; /* of its entry in the L1 table; NO_TABLE: none */
	uint64_t used;  /* when, on the layout's clock */
	bool dirty;     /* differs from what is in the file */
	struct be64 *entry;
};

/* What is left to write at the end. */
enum rest {
	REST_L2,
	REST_L1,
	REST_REFCOUNT_TABLE,
	REST_REFCOUNTS,
	REST_HEADER,
	REST_NONE,
};

struct qcow2 {
	struct sink_layout layout;
	uint64_t nclusters; /* allotted in the file */
	struct be64 *l1;
	uint64_t l1_size; /* entries */
	struct l2_table table[TABLES];
	uint64_t ntables;
	struct be64 *entries; /* of all tables */
	uint64_t clock;
	enum rest rest;
	uint64_t next; /* of the rest's present kind */
	struct be64 *refcount_table;
	uint64_t table_cluster; /* its first one */
	uint64_t nblocks;       /* of refcounts; their clusters come after the table's */
	struct be16 *ones;      /* a block of refcounts, each 1 */
	struct be16 *last;      /* the last block */
	struct qcow2_header header;
};

static struct qcow2 *qcow2_of(struct sink_layout *layout)
{
	return container_of(layout, struct qcow2, layout);
}

/* The offset in an entry of the L1 table or an L2 table; 0: nothing is allotted. */
static uint64_t offset_in(struct be64 entry)
{
	return be64_get(entry) & ~COPIED;
}

static struct be64 entry_of(uint64_t offset)
{
	return be64_of(offset | COPIED);
}

static uint64_t allot(struct qcow2 *q)
{
	return q->nclusters++ * CLUSTER;
}

static bool own_write(struct sink_op *op, const void *bytes, uint64_t length, uint64_t offset)
{
	op->data = bytes;
	op->offset = offset;
	op->length = length;
	return true;
}

/* ---- where data go ---- */

static struct l2_table *find_table(struct qcow2 *q, uint64_t index)
{
	for (uint64_t i = 0; i < q->ntables; i++) {
		if (q->table[i].index == index)
			return &q->table[i];
	}
	return NULL;
}

static struct l2_table *oldest_table(struct qcow2 *q)
{
	struct l2_table *oldest = &q->table[0];

	for (uint64_t i = 1; i < q->ntables; i++) {
		if (q->table[i].used < oldest->used)
			oldest = &q->table[i];
	}
	return oldest;
}

/*
 * The table in memory; NULL: op has become what has to be done before.  That a table is clean, or
 * there, is noted at once: nobody looks before op has ended, nor at all when it has failed.
 */
static struct l2_table *take_table(struct qcow2 *q, uint64_t index, struct sink_op *op)
{
	struct l2_table *t = find_table(q, index);

	if (t)
		return t;
	t = oldest_table(q);
	if (t->dirty) {
		t->dirty = false;
		(void)own_write(op, t->entry, CLUSTER, offset_in(q->l1[t->index]));
		return NULL;
	}
	t->index = index;
	t->used = ++q->clock;
	if (offset_in(q->l1[index])) {
		op->into = (uint8_t *)t->entry;
		op->offset = offset_in(q->l1[index]);
		op->length = CLUSTER;
		return NULL;
	}
	(void)memset(t->entry, 0, CLUSTER);
	q->l1[index] = entry_of(allot(q));
	t->dirty = true;
	return t;
}

/* Whether the cluster of entry i lies at offset, or is allotted there now. */
static bool lies_at(struct qcow2 *q, struct l2_table *t, uint64_t i, uint64_t offset)
{
	if (offset_in(t->entry[i]))
		return offset_in(t->entry[i]) == offset;
	if (q->nclusters * CLUSTER != offset)
		return false;
	t->entry[i] = entry_of(allot(q));
	t->dirty = true;
	return true;
}

static bool qcow2_place(struct sink_layout *layout, struct sink_op *op)
{
	struct qcow2 *q = qcow2_of(layout);
	uint64_t i = op->offset / CLUSTER % L2_ENTRIES, inside = op->offset % CLUSTER, start, end;
	struct l2_table *t = take_table(q, op->offset / TABLE_SPAN, op);

	if (!t)
		return false;
	t->used = ++q->clock;
	start = offset_in(t->entry[i]);
	if (!start)
		start = q->nclusters * CLUSTER;
	for (end = start; end - start < inside + op->length; end += CLUSTER, i++) {
		if (i == L2_ENTRIES || !lies_at(q, t, i, end))
			break;
	}
	op->length = min_u64(op->length, end - start - inside);
	op->offset = start + inside;
	return true;
}

/* ---- what comes after the data ---- */

/* The refcounts have clusters and so refcounts, too.  body: clusters of everything else. */
static void count_refcounts(uint64_t body, uint64_t *ret_blocks, uint64_t *ret_table_clusters)
{
	uint64_t blocks = 0, table = 0, all = body;

	while (blocks * REFCOUNTS < all) {
		blocks = div_round_up(all, REFCOUNTS);
		table = div_round_up(blocks, L2_ENTRIES);
		all = body + table + blocks;
	}
	*ret_blocks = blocks;
	*ret_table_clusters = table;
}

/* All clusters but these have been allotted. */
static void lay_refcounts(struct qcow2 *q)
{
	uint64_t table_clusters, first, in_last;

	count_refcounts(q->nclusters, &q->nblocks, &table_clusters);
	q->table_cluster = q->nclusters;
	first = q->table_cluster + table_clusters;
	q->nclusters = first + q->nblocks;
	for (uint64_t i = 0; i < q->nblocks; i++)
		q->refcount_table[i] = be64_of((first + i) * CLUSTER);
	in_last = q->nclusters - (q->nblocks - 1) * REFCOUNTS;
	(void)memcpy(q->last, q->ones, in_last * sizeof(*q->last));
	q->header.refcount_table_offset = be64_of(q->table_cluster * CLUSTER);
	q->header.refcount_table_clusters = be32_of((uint32_t)table_clusters);
}

static bool rest_l2(struct qcow2 *q, struct sink_op *op)
{
	while (q->next < q->ntables) {
		struct l2_table *t = &q->table[q->next++];

		if (!t->dirty)
			continue;
		t->dirty = false;
		return own_write(op, t->entry, CLUSTER, offset_in(q->l1[t->index]));
	}
	return false;
}

static bool rest_refcounts(struct qcow2 *q, struct sink_op *op)
{
	uint64_t i = q->next++;

	if (i >= q->nblocks)
		return false;
	return own_write(op, i + 1 < q->nblocks ? q->ones : q->last, CLUSTER,
			 be64_get(q->refcount_table[i]));
}

static bool rest_of(struct qcow2 *q, struct sink_op *op)
{
	switch (q->rest) {
	case REST_L2:
		return rest_l2(q, op);
	case REST_L1:
		return !q->next++ && q->l1_size &&
		       own_write(op, q->l1, q->l1_size * sizeof(*q->l1), CLUSTER);
	case REST_REFCOUNT_TABLE:
		if (q->next++)
			return false;
		lay_refcounts(q);
		return own_write(op, q->refcount_table, q->nblocks * sizeof(*q->refcount_table),
				 q->table_cluster * CLUSTER);
	case REST_REFCOUNTS:
		return rest_refcounts(q, op);
	case REST_HEADER:
		return !q->next++ && own_write(op, &q->header, sizeof(q->header), 0);
	case REST_NONE:
		break;
	}
	return false;
}

static bool qcow2_rest(struct sink_layout *layout, struct sink_op *op)
{
	struct qcow2 *q = qcow2_of(layout);

	for (; q->rest != REST_NONE; q->rest++, q->next = 0) {
		if (rest_of(q, op))
			return true;
	}
	return false;
}

/* ---- life ---- */

static void qcow2_free(struct sink_layout *layout)
{
	struct qcow2 *q = qcow2_of(layout);

	free(q->l1);
	free(q->entries);
	free(q->refcount_table);
	free(q->ones);
	free(q->last);
	free(q);
}

static const struct sink_layout_ops qcow2_ops = {
	.place = qcow2_place,
	.rest = qcow2_rest,
	.free = qcow2_free,
};

static void fill_header(struct qcow2 *q, uint64_t size)
{
	q->header = (struct qcow2_header){
		.magic = {'Q', 'F', 'I', 0xfb},
		.version = be32_of(3),
		.cluster_bits = be32_of(CLUSTER_BITS),
		.size = be64_of(size),
		.l1_size = be32_of((uint32_t)q->l1_size),
		.l1_table_offset = be64_of(CLUSTER),
		.refcount_order = be32_of(REFCOUNT_ORDER),
		.header_length = be32_of(sizeof(q->header)),
	};
}

static int layout_new(uint64_t size, struct sink_layout **ret, struct error *err)
{
	struct qcow2 *q = calloc(1, sizeof(*q));
	uint64_t l1_clusters, most, blocks, table_clusters;

	if (!q)
		return error_nomem(err);
	q->layout.ops = &qcow2_ops;
	q->l1_size = div_round_up(size, TABLE_SPAN);
	q->ntables = min_u64(q->l1_size, TABLES);
	l1_clusters = div_round_up(q->l1_size, L2_ENTRIES);
	q->nclusters = 1 + l1_clusters;
	most = q->nclusters + q->l1_size * (1 + L2_ENTRIES);
	count_refcounts(most, &blocks, &table_clusters);
	/* Sizes of more than 0, also where there is nothing. */
	q->l1 = calloc(q->l1_size + 1, sizeof(*q->l1));
	q->entries = calloc(q->ntables + 1, CLUSTER);
	q->refcount_table = calloc(blocks + 1, sizeof(*q->refcount_table));
	q->ones = calloc(REFCOUNTS, sizeof(*q->ones));
	q->last = calloc(REFCOUNTS, sizeof(*q->last));
	if (!q->l1 || !q->entries || !q->refcount_table || !q->ones || !q->last) {
		qcow2_free(&q->layout);
		return error_nomem(err);
	}
	for (uint64_t i = 0; i < q->ntables; i++) {
		q->table[i].index = NO_TABLE;
		q->table[i].entry = q->entries + i * L2_ENTRIES;
	}
	for (uint64_t i = 0; i < REFCOUNTS; i++)
		q->ones[i] = be16_of(1);
	fill_header(q, size);
	*ret = &q->layout;
	return 0;
}

int qcow2_sink_open(struct loop *loop, const char *path, uint64_t size, uint32_t block_size,
		    struct disk_sink **ret, struct error *err)
{
	struct sink_layout *layout;
	uint64_t whole;
	int r;

	if (!align_up(size, SECTOR, &whole) || whole > SIZE_MOST)
		return error_set(err, TM_E_RANGE,
				 "%s: a disk of %llu bytes is too large for qcow2 with clusters of "
				 "64 KiB; restore it as raw",
				 path, (unsigned long long)size);
	r = layout_new(whole, &layout, err);
	if (r)
		return r;
	return file_sink_open_layout(loop, path, size, block_size, layout, ret, err);
}
