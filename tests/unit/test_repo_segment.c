/* SPDX-License-Identifier: Apache-2.0 */
/* Segments: sealed, parsed, opened; no changed byte and no cut goes unseen. */
#include "test.h"

#include "repo/decode.h"

#define BITS 12
#define BS   (1u << BITS)

static uint64_t seed;

struct fixture {
	struct domain_keys keys;
	struct session_keys session;
	struct seg_address addr;
	struct seg_sealing sealing;
	struct seg_writer *w;
	struct aead *aead;
	struct workers workers;
	uint8_t cluster[6][BS];
};

static void fill(struct fixture *f, uint64_t *random)
{
	for (unsigned i = 0; i < 6; i++)
		for (unsigned k = 0; k < BS; k++)
			f->cluster[i][k] = (uint8_t)(i < 4 ? i + k / 100 : test_random(random));
}

static void add_frame(struct fixture *f, unsigned first, unsigned n)
{
	static uint8_t data[16 * BS];
	uint8_t method = FRAME_ZSTD;
	size_t len = (size_t)n * BS, packed;
	uint32_t slot = f->w->nslots;

	packed = ZSTD_compress(data, len - 1, f->cluster[first], len, 1);
	if (ZSTD_isError(packed)) {
		method = FRAME_RAW;
		memcpy(data, f->cluster[first], len);
		packed = len;
	}
	for (unsigned i = 0; i < n; i++) {
		uint8_t id[CONTENT_BYTES];

		assert_int_equal(content_id(&f->workers.v[0], f->cluster[first + i], BS, id, NULL),
				 0);
		seg_describe(f->w, slot + i, 3, 100 + first + i, id);
	}
	assert_true(seg_has_room(f->w, n, packed));
	seg_add_frame(f->w, n, method, data, packed);
}

static void up(struct fixture *f)
{
	uint64_t random = seed | 1;
	struct master_keys master;

	memset(f, 0, sizeof(*f));
	assert_int_equal(master_new(&master, NULL), 0);
	assert_int_equal(id_new(&f->addr.repo, NULL), 0);
	assert_int_equal(id_new(&f->addr.domain, NULL), 0);
	assert_int_equal(id_new(&f->addr.session, NULL), 0);
	f->addr.type = SEGMENT_DATA;
	f->addr.block_bits = BITS;
	f->addr.index = 7;
	assert_int_equal(domain_derive(&master, &f->addr.domain, &f->keys, NULL), 0);
	assert_int_equal(
		session_keys_new(&f->keys, &f->addr.repo, &f->addr.session, &f->session, NULL), 0);
	assert_int_equal(workers_init(&f->workers, 1, &f->keys.id, 1, 16 * BS, NULL), 0);
	assert_int_equal(aead_new(&f->aead, NULL), 0);
	assert_int_equal(seg_writer_new(&f->w, NULL), 0);
	fill(f, &random);
	seg_begin(f->w, &f->addr, &f->sealing);
	add_frame(f, 0, 4);
	add_frame(f, 4, 2);
	seg_add_hole(f->w, 3, 500, 17);
	assert_int_equal(seg_seal(f->w, f->aead, &f->session, NULL), 0);
}

static void down(struct fixture *f)
{
	seg_writer_free(f->w);
	aead_free(f->aead);
	workers_done(&f->workers);
}

/* Reads everything; 0 only when every byte was proved. */
static int read_all(struct fixture *f, const uint8_t *bytes, size_t len)
{
	struct worker *w = &f->workers.v[0];
	struct seg_tables *t = NULL;
	static uint8_t out[16 * BS];
	unsigned n = 0;
	int r = seg_tables_parse(&f->addr, &f->keys, bytes, len, f->aead, &t, NULL);

	if (r < 0)
		return r;
	if (t->object_len != len)
		r = TM_E_CORRUPT;
	if (r == 0)
		r = aead_set_key(w->aead, &t->key, NULL);
	for (uint32_t i = 0; r == 0 && i < t->nframes; i++) {
		const struct seg_frame *fr = &t->frames[i];

		r = frame_decode(w, t, fr, bytes + fr->offset, out, NULL);
		for (unsigned k = 0; r == 0 && k < fr->nslots; k++, n++) {
			struct stored_cluster c = {out + k * BS, t, fr->first_slot + k};
			uint32_t wrong;

			r = clusters_prove(w, 1, &c, &wrong, NULL);
			assert_true(r < 0 || memcmp(out + k * BS, f->cluster[n], BS) == 0);
		}
	}
	seg_tables_free(t);
	return r;
}

static void segments_come_back(void **state)
{
	struct seg_tables *t = NULL;
	struct fixture f;

	(void)state;
	up(&f);
	assert_int_equal(read_all(&f, f.w->object, f.w->object_len), 0);
	assert_int_equal(
		seg_tables_parse(&f.addr, &f.keys, f.w->object, f.w->object_len, f.aead, &t, NULL),
		0);
	assert_int_equal(t->nslots, 6);
	assert_int_equal(t->nframes, 2);
	assert_int_equal(t->nextras, 1);
	assert_int_equal(desc_kind(&t->descs[6]), DESC_HOLE);
	assert_int_equal(desc_block(&t->descs[6]), 500);
	assert_int_equal(desc_disk(&t->descs[5]), 3);
	assert_ptr_equal(seg_find(t, 3), &t->frames[0]);
	assert_ptr_equal(seg_find(t, 4), &t->frames[1]);
	assert_null(seg_find(t, 6));
	seg_tables_free(t);
	down(&f);
}

/* A record has 32 bits for the length of a hole. */
static void a_long_hole_takes_several_records(void **state)
{
	struct seg_tables *t = NULL;
	struct fixture f;

	(void)state;
	up(&f);
	seg_begin(f.w, &f.addr, &f.sealing);
	assert_int_equal(seg_hole_records(UINT32_MAX), 1);
	assert_int_equal(seg_hole_records(MAX_BLOCKS), 129);
	for (unsigned i = 0; i < SEGMENT_MAX_EXTRAS - 129; i++)
		seg_add_hole(f.w, 0, 2 * i, 1);
	seg_add_hole(f.w, 1, 0, MAX_BLOCKS);
	assert_int_equal(f.w->nextras, SEGMENT_MAX_EXTRAS);
	assert_int_equal(seg_seal(f.w, f.aead, &f.session, NULL), 0);
	assert_int_equal(
		seg_tables_parse(&f.addr, &f.keys, f.w->object, f.w->object_len, f.aead, &t, NULL),
		0);
	assert_int_equal(t->nextras, SEGMENT_MAX_EXTRAS);
	seg_tables_free(t);
	down(&f);
}

/* I7, of segments; test_golden does it to all objects of a repository. */
static void every_flipped_bit_is_seen(void **state)
{
	struct fixture f;
	uint8_t *bytes;

	(void)state;
	up(&f);
	bytes = malloc(f.w->object_len);
	memcpy(bytes, f.w->object, f.w->object_len);
	for (size_t i = 0; i < f.w->object_len; i++) {
		/* all bits of the tables, one of each payload byte */
		for (unsigned bit = 0; bit < (i < 800 ? 8 : 1); bit++) {
			bytes[i] ^= (uint8_t)(1U << bit);
			assert_true(read_all(&f, bytes, f.w->object_len) < 0);
			bytes[i] ^= (uint8_t)(1U << bit);
		}
	}
	free(bytes);
	down(&f);
}

static void every_cut_is_seen(void **state)
{
	struct fixture f;

	(void)state;
	up(&f);
	for (size_t cut = 0; cut < f.w->object_len; cut++) {
		uint8_t *exact = malloc(cut + 1);
		struct seg_tables *t = NULL;

		memcpy(exact, f.w->object, cut);
		if (seg_tables_parse(&f.addr, &f.keys, exact, cut, f.aead, &t, NULL) == 0)
			assert_true(t->object_len > cut);
		seg_tables_free(t);
		free(exact);
	}
	down(&f);
}

/* I7, the address: the store may hand out any object that was once written under any name. */
static void segments_are_bound_to_their_place(void **state)
{
	struct fixture f;
	struct seg_address other;
	struct seg_tables *t = NULL;

	(void)state;
	up(&f);
	other = f.addr;
	other.index++;
	assert_true(seg_tables_parse(&other, &f.keys, f.w->object, f.w->object_len, f.aead, &t,
				     NULL) < 0);
	other = f.addr;
	other.session.b[3] ^= 1;
	assert_true(seg_tables_parse(&other, &f.keys, f.w->object, f.w->object_len, f.aead, &t,
				     NULL) < 0);
	other = f.addr;
	other.repo.b[3] ^= 1;
	assert_true(seg_tables_parse(&other, &f.keys, f.w->object, f.w->object_len, f.aead, &t,
				     NULL) < 0);
	down(&f);
}

/* Header and tables with right checksums but wrong numbers. */
static void lying_headers_are_refused(void **state)
{
	uint64_t random = seed | 1;
	struct fixture f;
	uint8_t *bytes;

	(void)state;
	up(&f);
	bytes = malloc(f.w->object_len);
	for (unsigned i = 0; i < 20000; i++) {
		struct format_segment h;
		size_t at = 88 + test_below(&random, 256 - 88 - 4);
		struct seg_tables *t = NULL;

		memcpy(bytes, f.w->object, f.w->object_len);
		bytes[at] = (uint8_t)test_random(&random);
		if (test_below(&random, 2))
			bytes[256 + test_below(&random, 24)] = (uint8_t)test_random(&random);
		memcpy(&h, bytes, sizeof(h));
		h.frames_crc = le32_of(crc32c(0, bytes + 256, 24));
		h.crc = le32_of(crc32c(0, &h, offsetof(struct format_segment, crc)));
		memcpy(bytes, &h, sizeof(h));
		if (seg_tables_scan(&f.addr, bytes, f.w->object_len, &t, NULL) == 0)
			assert_true(t->object_len <= f.w->object_len || t->nframes > 0);
		seg_tables_free(t);
		t = NULL;
		if (seg_tables_parse(&f.addr, &f.keys, bytes, f.w->object_len, f.aead, &t, NULL) ==
			    0 &&
		    t->object_len == f.w->object_len)
			(void)!read_all(&f, bytes, f.w->object_len);
		seg_tables_free(t);
	}
	free(bytes);
	down(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(segments_come_back),
		cmocka_unit_test(a_long_hole_takes_several_records),
		cmocka_unit_test(every_flipped_bit_is_seen),
		cmocka_unit_test(every_cut_is_seen),
		cmocka_unit_test(segments_are_bound_to_their_place),
		cmocka_unit_test(lying_headers_are_refused),
	};

	seed = test_seed();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
