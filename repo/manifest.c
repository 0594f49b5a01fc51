/* SPDX-License-Identifier: Apache-2.0 */
#include "manifest.h"

#include "node.h"
#include "tlv.h"

#include <inttypes.h>
#include <openssl/crypto.h>
#include <string.h>
#include <zstd.h>

#define LEVEL 3

int own_segments_set(struct own_segments *l, uint32_t index, const struct own_segment *s,
		     struct error *err)
{
	if (index >= l->cap) {
		uint32_t cap = l->cap ? l->cap : 16;
		struct own_segment *v;

		while (cap <= index)
			cap *= 2;
		v = reallocarray(l->v, cap, sizeof(*v));
		if (!v)
			return error_nomem(err);
		memset(v + l->cap, 0, (cap - l->cap) * sizeof(*v));
		l->v = v;
		l->cap = cap;
	}
	l->v[index] = *s;
	if (l->n <= index)
		l->n = index + 1;
	return 0;
}

void own_segments_done(struct own_segments *l)
{
	free(l->v);
	*l = (struct own_segments){0};
}

/* ---- encoding ---- */

static int add_sessions(struct buf *b, const struct disk_map *m, struct error *err)
{
	auto_buf struct buf t = {0};

	for (uint32_t i = 0; i < m->nsessions; i++) {
		struct format_table_entry e = {
			.session = m->table[i].session,
			.ndata = le32_of(m->table[i].ndata),
			.nmap = le32_of(m->table[i].nmap),
		};
		int r = buf_add(&t, &e, sizeof(e), err);

		if (r < 0)
			return r;
	}
	return tlv_add(b, DISK_TAG_SESSIONS, true, t.data, t.len, err);
}

static int add_sketch(struct buf *b, const struct disk_map *m, struct error *err)
{
	uint8_t bytes[SKETCH_IDS * 8];
	uint32_t n = m->sketch ? m->sketch->n : 0;

	for (uint32_t i = 0; i < n; i++) {
		struct le64 v = le64_of(m->sketch->v[i]);

		memcpy(bytes + 8 * (size_t)i, &v, sizeof(v));
	}
	return n ? tlv_add(b, DISK_TAG_SKETCH, false, bytes, 8 * (size_t)n, err) : 0;
}

/* Left out when nothing is known. */
static int add_audit(struct buf *b, const struct disk_audit *a, struct error *err)
{
	const struct format_disk_audit raw = {
		.data = le64_of(a->data),
		.empty = le64_of(a->empty),
		.differed = le64_of(a->differed),
		.whole_ms = le64_of(a->whole_ms),
		.all_data = le64_of(a->all_data),
		.all_empty = le64_of(a->all_empty),
	};

	if (!a->data && !a->empty && !a->whole_ms)
		return 0;
	return tlv_add(b, DISK_TAG_AUDIT, false, &raw, sizeof(raw), err);
}

static unsigned bits_of(uint32_t block_size)
{
	return (unsigned)__builtin_ctz(block_size);
}

static int add_disk(struct buf *b, const struct point_disk *d, struct error *err)
{
	auto_buf struct buf t = {0};
	int r = tlv_add_text(&t, DISK_TAG_NAME, d->name, err);

	r = r ? r : tlv_add_u64(&t, DISK_TAG_SIZE, true, d->size, err);
	r = r ? r : tlv_add_u64(&t, DISK_TAG_BLOCK_BITS, true, bits_of(d->block_size), err);
	r = r ? r : tlv_add_u64(&t, DISK_TAG_RUNG, false, d->rung, err);
	r = r ? r : tlv_add_text(&t, DISK_TAG_REASON, d->reason, err);
	r = r ? r : tlv_add_text(&t, DISK_TAG_FORMAT, d->format, err);
	r = r ? r : tlv_add_text(&t, DISK_TAG_FILE, d->file, err);
	r = r ? r : tlv_add_text(&t, DISK_TAG_BITMAP, d->bitmap, err);
	r = r ? r : tlv_add(&t, DISK_TAG_PARENT, false, &d->parent, sizeof(d->parent), err);
	r = r ? r : tlv_add_u64(&t, DISK_TAG_DIRTY_BYTES, false, d->dirty_bytes, err);
	r = r ? r : tlv_add_u64(&t, DISK_TAG_READ_BYTES, false, d->read_bytes, err);
	r = r ? r : tlv_add_u64(&t, DISK_TAG_NEW_BYTES, false, d->new_bytes, err);
	r = r ? r : tlv_add_u64(&t, DISK_TAG_STORED_BYTES, false, d->stored_bytes, err);
	r = r ? r : tlv_add_u64(&t, DISK_TAG_PARENT_NUMBER, false, d->map->parent_number, err);
	r = r ? r : tlv_add_u64(&t, DISK_TAG_PARENT_ROOT, false, d->map->parent_root, err);
	r = r ? r : tlv_add_u64(&t, DISK_TAG_PARENT_SIZE, false, d->map->parent_size, err);
	r = r ? r : tlv_add_u64(&t, DISK_TAG_ROOT, true, d->map->root, err);
	r = r ? r : add_sessions(&t, d->map, err);
	r = r ? r : add_sketch(&t, d->map, err);
	r = r ? r : add_audit(&t, &d->audit, err);
	return r ? r : tlv_add(b, POINT_TAG_DISK, true, t.data, t.len, err);
}

static int add_own(struct buf *b, unsigned tag, const struct own_segments *l, struct error *err)
{
	auto_buf struct buf t = {0};

	for (uint32_t i = 0; i < l->n; i++) {
		struct format_own_segment s = {
			.nslots = le32_of(l->v[i].nslots),
			.head_crc = le32_of(l->v[i].head_crc),
			.size = le64_of(l->v[i].size),
		};
		int r = buf_add(&t, &s, sizeof(s), err);

		if (r < 0)
			return r;
	}
	return tlv_add(b, tag, true, t.data, t.len, err);
}

static int add_digests(struct buf *b, const struct own_segments *map, struct error *err)
{
	auto_buf struct buf t = {0};
	int r = 0;

	for (uint32_t i = 0; r == 0 && i < map->n; i++)
		r = buf_add(&t, map->v[i].digest, DIGEST_BYTES, err);
	return r ? r : tlv_add(b, POINT_TAG_MAP_DIGESTS, false, t.data, t.len, err);
}

static int add_point(struct buf *b, const struct point *p, const struct manifest_own *own,
		     struct error *err)
{
	int r = tlv_add_text(b, POINT_TAG_GUEST, p->guest, err);

	r = r ? r : tlv_add_text(b, POINT_TAG_GUEST_UUID, p->guest_uuid, err);
	r = r ? r : tlv_add_text(b, POINT_TAG_NAME, p->name, err);
	r = r ? r : tlv_add_text(b, POINT_TAG_DESCRIPTION, p->description, err);
	r = r ? r : tlv_add_u64(b, POINT_TAG_CREATED_MS, false, p->created_ms, err);
	r = r ? r : tlv_add_u64(b, POINT_TAG_SECONDS_MS, false, p->seconds_ms, err);
	r = r ? r : tlv_add(b, POINT_TAG_PARENT, false, &p->parent, sizeof(p->parent), err);
	r = r ? r : tlv_add_u64(b, POINT_TAG_KIND, false, p->kind, err);
	r = r ? r : tlv_add_text(b, POINT_TAG_STATE, p->state, err);
	r = r ? r : tlv_add_u64(b, POINT_TAG_QUIESCED, false, p->quiesced, err);
	r = r ? r : tlv_add_u64(b, POINT_TAG_FREEZE_MS, false, p->freeze_ms, err);
	for (size_t i = 0; r == 0 && i < p->ntags; i++)
		r = tlv_add_text(b, POINT_TAG_TAG, p->tags[i], err);
	for (size_t i = 0; r == 0 && i < p->ndisks; i++)
		r = add_disk(b, &p->disks[i], err);
	r = r ? r : add_own(b, POINT_TAG_DATA_SEGMENTS, &own->data, err);
	r = r ? r : add_own(b, POINT_TAG_MAP_SEGMENTS, &own->map, err);
	return r ? r : add_digests(b, &own->map, err);
}

/* Gives it to repo->aead. */
static int manifest_key(const struct repo *repo, const struct tm_id *sid, struct error *err)
{
	static const char label[] = "tidemark manifest";
	auto_secret struct secret session = {{0}}, key = {{0}};
	int r;

	r = derive_id(&repo->keys.meta, "tidemark session", sid, &session, err);
	r = r ? r : derive(&session, label, sizeof(label) - 1, &key, err);
	return r ? r : aead_set_key(repo->aead, &key, err);
}

int manifest_encode(const struct repo *repo, const struct tm_id *source, const struct point *p,
		    const struct manifest_own *own, struct buf *ret, struct error *err)
{
	auto_buf struct buf plain = {0}, out = {0};
	struct format_point h = {.domain = repo->domain, .source = *source, .session = p->id};
	uint8_t *body;
	size_t n;
	int r;

	r = add_point(&plain, p, own, err);
	r = r ? r : manifest_key(repo, &p->id, err);
	if (r < 0)
		return r;
	if (plain.len > MAX_MANIFEST)
		return error_set(err, TM_E_RANGE, "a manifest of %zu bytes is too long", plain.len);
	r = buf_reserve(&out, sizeof(h) + ZSTD_compressBound(plain.len) + TAG_BYTES, err);
	if (r < 0)
		return r;
	body = out.data + sizeof(h);
	n = ZSTD_compress(body, ZSTD_compressBound(plain.len), plain.data, plain.len, LEVEL);
	if (ZSTD_isError(n))
		return error_set(err, TM_E_NOMEM, "compressing the manifest: %s",
				 ZSTD_getErrorName(n));
	format_head_init(&h.head, MAGIC_POINT, sizeof(h), &repo->id);
	h.seq = le32_of(p->seq);
	h.body_len = le32_of((uint32_t)(n + TAG_BYTES));
	h.plain_len = le32_of((uint32_t)plain.len);
	r = aead_seal(repo->aead, 0, &h, offsetof(struct format_point, body_crc), body, n, body,
		      err);
	if (r < 0)
		return r;
	h.body_crc = le32_of(crc32c(0, body, n + TAG_BYTES));
	format_head_seal(&h, sizeof(h));
	memcpy(out.data, &h, sizeof(h));
	out.len = sizeof(h) + n + TAG_BYTES;
	buf_done(ret);
	*ret = out;
	out = (struct buf){0};
	return 0;
}

/* ---- decoding ---- */

static int parse_sessions(const struct tlv *t, struct disk_map *m, struct error *err)
{
	size_t n = t->len / sizeof(struct format_table_entry);

	if (t->len % sizeof(struct format_table_entry) != 0 || n > MAX_SESSIONS || m->table)
		return error_set(err, TM_E_CORRUPT, "session table of %zu bytes", t->len);
	m->table = calloc(n ? n : 1, sizeof(*m->table));
	if (!m->table)
		return error_nomem(err);
	for (size_t i = 0; i < n; i++) {
		struct format_table_entry e;

		memcpy(&e, t->bytes + i * sizeof(e), sizeof(e));
		m->table[i] = (struct table_entry){
			.session = e.session, .ndata = le32_get(e.ndata), .nmap = le32_get(e.nmap)};
		if (m->table[i].ndata > MAX_SEGMENT_INDEX + 1 ||
		    m->table[i].nmap > MAX_SEGMENT_INDEX + 1)
			return error_set(err, TM_E_CORRUPT,
					 "session table names too many segments");
	}
	m->nsessions = (uint32_t)n;
	return 0;
}

static int parse_sketch(const struct tlv *t, struct disk_map *m, struct error *err)
{
	size_t n = t->len / 8;

	if (t->len % 8 != 0 || n > SKETCH_IDS || m->sketch)
		return error_set(err, TM_E_CORRUPT, "sketch of %zu bytes", t->len);
	m->sketch = calloc(1, sizeof(*m->sketch));
	if (!m->sketch)
		return error_nomem(err);
	for (size_t i = 0; i < n; i++) {
		struct le64 v;

		memcpy(&v, t->bytes + 8 * i, sizeof(v));
		m->sketch->v[i] = le64_get(v);
		if (i > 0 && m->sketch->v[i] <= m->sketch->v[i - 1])
			return error_set(err, TM_E_CORRUPT, "a sketch that does not ascend");
	}
	m->sketch->n = (uint32_t)n;
	return 0;
}

static int parse_audit(const struct tlv *t, struct disk_audit *a, struct error *err)
{
	struct format_disk_audit raw;

	if (t->len != sizeof(raw))
		return error_set(err, TM_E_CORRUPT, "audit of %zu bytes", t->len);
	memcpy(&raw, t->bytes, sizeof(raw));
	*a = (struct disk_audit){
		.data = le64_get(raw.data),
		.empty = le64_get(raw.empty),
		.differed = le64_get(raw.differed),
		.whole_ms = le64_get(raw.whole_ms),
		.all_data = le64_get(raw.all_data),
		.all_empty = le64_get(raw.all_empty),
	};
	return 0;
}

static int parse_disk_number(const struct tlv *t, struct point_disk *d, struct error *err)
{
	uint64_t v;
	int r = tlv_u64(t, &v, err);

	if (r < 0)
		return r;
	switch (t->tag) {
	case DISK_TAG_SIZE:
		d->size = v;
		break;
	case DISK_TAG_BLOCK_BITS:
		if (v < MIN_BLOCK_BITS || v > MAX_BLOCK_BITS)
			return error_set(err, TM_E_CORRUPT,
					 "disk with blocks of 2^%" PRIu64 " bytes", v);
		d->block_size = UINT32_C(1) << v;
		break;
	case DISK_TAG_RUNG:
		d->rung = v <= RUNG_FULL ? (enum disk_rung)v : RUNG_FULL;
		break;
	case DISK_TAG_DIRTY_BYTES:
		d->dirty_bytes = v;
		break;
	case DISK_TAG_READ_BYTES:
		d->read_bytes = v;
		break;
	case DISK_TAG_NEW_BYTES:
		d->new_bytes = v;
		break;
	case DISK_TAG_STORED_BYTES:
		d->stored_bytes = v;
		break;
	case DISK_TAG_ROOT:
		d->map->root = v;
		break;
	case DISK_TAG_PARENT_NUMBER:
		d->map->parent_number = v <= MAX_DISKS ? (uint32_t)v : 0;
		break;
	case DISK_TAG_PARENT_ROOT:
		d->map->parent_root = v;
		break;
	case DISK_TAG_PARENT_SIZE:
		d->map->parent_size = v;
		break;
	default:
		return tlv_unknown(t, err);
	}
	return 0;
}

static int parse_disk_field(const struct tlv *t, struct point_disk *d, struct error *err)
{
	switch (t->tag) {
	case DISK_TAG_NAME:
		return tlv_text(t, &d->name, err);
	case DISK_TAG_REASON:
		return tlv_text(t, &d->reason, err);
	case DISK_TAG_FORMAT:
		return tlv_text(t, &d->format, err);
	case DISK_TAG_FILE:
		return tlv_text(t, &d->file, err);
	case DISK_TAG_BITMAP:
		return tlv_text(t, &d->bitmap, err);
	case DISK_TAG_PARENT:
		return tlv_id(t, &d->parent, err);
	case DISK_TAG_SESSIONS:
		return parse_sessions(t, d->map, err);
	case DISK_TAG_SKETCH:
		return parse_sketch(t, d->map, err);
	case DISK_TAG_AUDIT:
		return parse_audit(t, &d->audit, err);
	default:
		if (t->tag > DISK_TAG_PARENT_SIZE)
			return tlv_unknown(t, err);
		return parse_disk_number(t, d, err);
	}
}

static int check_disk(const struct repo *repo, const struct point_disk *d, struct error *err)
{
	if (!d->name || d->block_size == 0 || !d->map->table)
		return error_set(err, TM_E_CORRUPT,
				 "a disk without name, block size or session table");
	if (d->block_size != UINT32_C(1) << repo->block_bits)
		return error_set(err, TM_E_CORRUPT, "disk %s has blocks of %" PRIu32 " bytes",
				 d->name, d->block_size);
	if (disk_blocks(d->size, repo->block_bits) > MAX_BLOCKS || d->size > INT64_MAX)
		return error_set(err, TM_E_CORRUPT, "disk %s of %" PRIu64 " bytes is too large",
				 d->name, d->size);
	if (d->map->root != REF_HOLE && (ref_session(d->map->root) >= d->map->nsessions))
		return error_set(err, TM_E_CORRUPT, "disk %s: its root is in an unknown session",
				 d->name);
	if (d->map->parent_root != REF_HOLE &&
	    (ref_session(d->map->parent_root) >= d->map->nsessions ||
	     disk_blocks(d->map->parent_size, repo->block_bits) > MAX_BLOCKS))
		return error_set(err, TM_E_CORRUPT, "disk %s: its parent's root is impossible",
				 d->name);
	return 0;
}

static int parse_disk(const struct repo *repo, const struct tlv *t, struct point *p,
		      struct error *err)
{
	struct tlv_reader r = {.p = t->bytes, .end = t->bytes + t->len};
	struct point_disk *d, *v;
	struct tlv f;
	int code;

	if (p->ndisks == MAX_DISKS)
		return error_set(err, TM_E_CORRUPT, "more than %d disks", MAX_DISKS);
	v = reallocarray(p->disks, p->ndisks + 1, sizeof(*v));
	if (!v)
		return error_nomem(err);
	p->disks = v;
	d = &v[p->ndisks++];
	*d = (struct point_disk){.rung = RUNG_FULL, .map = calloc(1, sizeof(*d->map))};
	if (!d->map)
		return error_nomem(err);
	d->map->root = d->map->parent_root = REF_HOLE;
	while ((code = tlv_next(&r, &f, err)) > 0) {
		code = parse_disk_field(&f, d, err);
		if (code < 0)
			return code;
	}
	return code < 0 ? code : check_disk(repo, d, err);
}

static int parse_own(const struct tlv *t, struct own_segments *ret, struct error *err)
{
	size_t n = t->len / sizeof(struct format_own_segment);

	if (t->len % sizeof(struct format_own_segment) != 0 || n > MAX_SEGMENT_INDEX + 1)
		return error_set(err, TM_E_CORRUPT, "segment list of %zu bytes", t->len);
	for (size_t i = 0; ret && i < n; i++) {
		struct format_own_segment raw;
		struct own_segment s;
		int r;

		memcpy(&raw, t->bytes + i * sizeof(raw), sizeof(raw));
		s = (struct own_segment){.nslots = le32_get(raw.nslots),
					 .head_crc = le32_get(raw.head_crc),
					 .size = le64_get(raw.size)};
		r = own_segments_set(ret, (uint32_t)i, &s, err);
		if (r < 0)
			return r;
	}
	return 0;
}

/* Follows the segments they belong to. */
static int parse_digests(const struct tlv *t, struct own_segments *ret, struct error *err)
{
	if (!ret)
		return 0;
	if (t->len != (size_t)ret->n * DIGEST_BYTES)
		return error_set(err, TM_E_CORRUPT, "digests of %zu bytes for %" PRIu32 " segments",
				 t->len, ret->n);
	for (uint32_t i = 0; i < ret->n; i++)
		memcpy(ret->v[i].digest, t->bytes + (size_t)i * DIGEST_BYTES, DIGEST_BYTES);
	return 0;
}

static int parse_tag(const struct tlv *t, struct point *p, struct error *err)
{
	char **v = reallocarray(p->tags, p->ntags + 1, sizeof(*v));

	if (!v)
		return error_nomem(err);
	p->tags = v;
	v[p->ntags++] = NULL;
	return tlv_text(t, &v[p->ntags - 1], err);
}

static int parse_point_number(const struct tlv *t, struct point *p, struct error *err)
{
	uint64_t v;
	int r = tlv_u64(t, &v, err);

	if (r < 0)
		return r;
	switch (t->tag) {
	case POINT_TAG_CREATED_MS:
		p->created_ms = v;
		break;
	case POINT_TAG_SECONDS_MS:
		p->seconds_ms = v;
		break;
	case POINT_TAG_KIND:
		p->kind = v <= POINT_OFFLINE ? (enum point_kind)v : POINT_REDIRECT_ON_WRITE;
		break;
	case POINT_TAG_QUIESCED:
		p->quiesced = v != 0;
		break;
	case POINT_TAG_FREEZE_MS:
		p->freeze_ms = v;
		break;
	default:
		return tlv_unknown(t, err);
	}
	return 0;
}

static int parse_point_field(const struct repo *repo, const struct tlv *t, struct point *p,
			     struct manifest_own *own, struct error *err)
{
	switch (t->tag) {
	case POINT_TAG_GUEST:
		return tlv_text(t, &p->guest, err);
	case POINT_TAG_GUEST_UUID:
		return tlv_text(t, &p->guest_uuid, err);
	case POINT_TAG_NAME:
		return tlv_text(t, &p->name, err);
	case POINT_TAG_DESCRIPTION:
		return tlv_text(t, &p->description, err);
	case POINT_TAG_STATE:
		return tlv_text(t, &p->state, err);
	case POINT_TAG_PARENT:
		return tlv_id(t, &p->parent, err);
	case POINT_TAG_TAG:
		return parse_tag(t, p, err);
	case POINT_TAG_DISK:
		return parse_disk(repo, t, p, err);
	case POINT_TAG_DATA_SEGMENTS:
		return parse_own(t, own ? &own->data : NULL, err);
	case POINT_TAG_MAP_SEGMENTS:
		return parse_own(t, own ? &own->map : NULL, err);
	case POINT_TAG_MAP_DIGESTS:
		return parse_digests(t, own ? &own->map : NULL, err);
	default:
		if (t->tag > POINT_TAG_MAP_DIGESTS)
			return tlv_unknown(t, err);
		return parse_point_number(t, p, err);
	}
}

static int parse_body(const struct repo *repo, const uint8_t *plain, size_t len, struct point *p,
		      struct manifest_own *own, struct error *err)
{
	struct tlv_reader reader = {.p = plain, .end = plain + len};
	struct tlv t;
	int r;

	while ((r = tlv_next(&reader, &t, err)) > 0) {
		r = parse_point_field(repo, &t, p, own, err);
		if (r < 0)
			return r;
	}
	if (r < 0)
		return r;
	if (!p->guest || !p->name)
		return error_set(err, TM_E_CORRUPT, "a point without guest or name");
	if (!p->state && !(p->state = strdup("unknown")))
		return error_nomem(err);
	return 0;
}

static int check_header(const struct repo *repo, const struct point_name *name, const char *key,
			const struct format_point *h, const uint8_t *body, size_t body_len,
			struct error *err)
{
	if (!id_equal(&h->domain, &repo->domain) || !id_equal(&h->source, &name->source) ||
	    !id_equal(&h->session, &name->session) || le32_get(h->seq) != name->seq)
		return error_set(err, TM_E_CORRUPT, "%s is another point than its name says", key);
	if (le32_get(h->body_len) != body_len || le32_get(h->body_crc) != crc32c(0, body, body_len))
		return error_set(err, TM_E_CORRUPT, "%s: body checksum is wrong", key);
	if (le32_get(h->plain_len) > MAX_MANIFEST)
		return error_set(err, TM_E_CORRUPT, "%s: body of %u bytes", key,
				 le32_get(h->plain_len));
	return 0;
}

static int open_body(const struct repo *repo, const struct format_point *h, const uint8_t *body,
		     size_t len, struct buf *ret, struct error *err)
{
	auto_buf struct buf packed = {0};
	size_t plain_len = le32_get(h->plain_len), n;
	int r;

	r = manifest_key(repo, &h->session, err);
	r = r ? r : buf_reserve(&packed, len, err);
	r = r ? r
	      : aead_open(repo->aead, 0, h, offsetof(struct format_point, body_crc), body, len,
			  packed.data, err);
	r = r ? r : buf_reserve(ret, plain_len + 1, err);
	if (r < 0)
		return r;
	n = ZSTD_decompressDCtx(repo->dctx, ret->data, plain_len, packed.data, len - TAG_BYTES);
	if (ZSTD_isError(n) || n != plain_len)
		return error_set(err, TM_E_CORRUPT, "the body cannot be decompressed");
	ret->len = n;
	return 0;
}

int manifest_decode(const struct repo *repo, const struct point_name *name, const char *key,
		    const void *bytes, size_t len, struct point **ret, struct manifest_own *own,
		    struct error *err)
{
	auto_clean(point_free) struct point *p = NULL;
	auto_buf struct buf plain = {0};
	const uint8_t *body = (const uint8_t *)bytes + sizeof(struct format_point);
	struct format_point h;
	int r;

	r = format_head_check(bytes, len, MAGIC_POINT, sizeof(h), &repo->id, key, err);
	if (r < 0)
		return r;
	memcpy(&h, bytes, sizeof(h));
	r = check_header(repo, name, key, &h, body, len - sizeof(h), err);
	if (r < 0)
		return r;
	r = open_body(repo, &h, body, len - sizeof(h), &plain, err);
	p = calloc(1, sizeof(*p));
	if (r == 0 && !p)
		r = error_nomem(err);
	if (r == 0) {
		p->id = name->session;
		p->seq = name->seq;
		p->kind = POINT_REDIRECT_ON_WRITE;
		r = text_copy(key, &p->object, err);
	}
	if (r == 0)
		r = parse_body(repo, plain.data, plain.len, p, own, err);
	if (r < 0) {
		error_prefix(err, "point %s", key);
		return r;
	}
	*ret = tm_steal(p);
	return 0;
}
