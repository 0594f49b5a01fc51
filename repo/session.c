/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A session makes one point (docs/format.md, "Session protocol"):
 *
 *	begin       marker put
 *	disk begin  parent pinned, then looked at again
 *	disk end    all pieces in segments, the map closed
 *	commit      all segments durable → manifest put → no fence?
 *
 * Before the manifest is there nothing of the session can be seen.
 */
#include "session.h"

#include "points.h"

#include <inttypes.h>
#include <string.h>

#define DEFAULT_LEVEL 1

static int stale(struct error *err)
{
	return error_set(err, TM_E_STALE,
			 "the session was taken for dead by a prune that ran beside it; "
			 "run the backup again");
}

void session_fail(struct repo_session *s, int code, const struct error *err)
{
	bool fenced = false;

	if (s->code < 0)
		return;
	s->code = code;
	s->err = *err;
	/* Nobody keeps the parent of a dead session. */
	if (code == TM_E_CORRUPT && marker_fenced(s->repo, &s->sid, &fenced, NULL) == 0 && fenced) {
		error_clear(&s->err);
		s->code = stale(&s->err);
	}
}

int session_failure(const struct repo_session *s, struct error *err)
{
	return error_pass(err, s->code, &s->err);
}

static bool session_loads(const struct repo_session *s)
{
	return s->loading || session_looks(s) || s->ahead.in_flight > 0;
}

/* Runs the loop until all work has come back. */
static void session_settle(struct repo_session *s, bool segments_too)
{
	while (s->works || session_loads(s) || (segments_too && s->in_flight > 0)) {
		struct error err = {0};
		int r = loop_run_once(s->repo->loop, -1, &err);

		if (r < 0)
			session_fail(s, r, &err);
	}
}

/* ---- begin ---- */

static int next_seq(struct repo_session *s, struct error *err)
{
	struct name_list names = {0};
	int r = points_names(s->repo, &s->source, &names, err);

	s->seq = 1;
	for (size_t i = 0; r == 0 && i < names.n; i++)
		if (names.v[i].seq >= s->seq && names.v[i].seq < UINT32_MAX)
			s->seq = names.v[i].seq + 1;
	name_list_done(&names);
	return r;
}

static void looked(struct look *l, int code, const struct error *err)
{
	struct repo_session *s = container_of(l, struct repo_session, look);

	if (code < 0)
		session_fail(s, code, err);
	session_pump(s);
}

static void ahead_loaded(struct ahead *a)
{
	pipeline_ahead(container_of(a, struct repo_session, ahead));
}

static int session_init(struct repo_session *s, const struct repo_session_options *opt,
			struct error *err)
{
	int level = opt->compression ? opt->compression : DEFAULT_LEVEL;
	int r;

	s->data.type = SEGMENT_DATA;
	s->map.type = SEGMENT_MAP;
	s->pool = opt->pool;
	s->sid = opt->id;
	s->sink.put = pipeline_put;
	content_init(&s->content, CONTENT_MAX_ENTRIES);
	s->look.done = looked;
	s->ahead.done = ahead_loaded;
	s->sources = calloc(1, sizeof(*s->sources));
	if (!s->sources)
		return error_nomem(err);
	s->sources[s->nsources++].e.session = s->sid;
	r = page_out_init(&s->page_out, err);
	if (r < 0)
		return r;
	if (level < ZSTD_minCLevel() || level > ZSTD_maxCLevel())
		return error_set(err, TM_E_USAGE, "compression level %d is not from %d to %d",
				 level, ZSTD_minCLevel(), ZSTD_maxCLevel());
	r = repo_check_right(s->repo, REPO_MAY_BACK_UP, err);
	r = r ? r : text_copy(opt->guest, &s->guest, err);
	r = r ? r
	      : workers_init(&s->workers, pool_workers(s->pool), &s->repo->keys.id, level, 0, err);
	r = r ? r : source_id(&s->repo->keys, s->guest, &s->source, err);
	return r ? r : session_keys_new(&s->repo->keys, &s->repo->id, &s->sid, &s->keys, err);
}

int repo_session_begin(struct repo *repo, const struct repo_session_options *opt,
		       struct repo_session **ret, struct error *err)
{
	auto_clean(repo_session_free) struct repo_session *s = calloc(1, sizeof(*s));
	int r;

	if (!s)
		return error_nomem(err);
	s->repo = repo;
	r = session_init(s, opt, err);
	r = r ? r : next_seq(s, err);
	r = r ? r : lost_load(repo, &s->lost, err);
	/* whoever made the domain may have been killed before it lasted */
	r = r ? r : repo->st->ops->sync(repo->st, "domains/", err);
	r = r ? r : marker_put(s, err);
	if (r < 0) {
		error_prefix(err, "beginning a session");
		return r;
	}
	store_reserve(repo->st, false);
	*ret = tm_steal(s);
	return 0;
}

/* ---- disks ---- */

static int check_parent(const struct repo_session *s, const struct point_disk *d, struct error *err)
{
	if (d->block_size != UINT32_C(1) << s->repo->block_bits)
		return error_set(err, TM_E_RANGE, "the parent has blocks of %" PRIu32 " bytes",
				 d->block_size);
	if (!d->map || d->map->nsessions >= MAX_SESSIONS)
		return error_set(err, TM_E_RANGE,
				 "the chain of points behind the parent is too long; a backup "
				 "with --full begins a new one");
	return 0;
}

/* The disk's record, its table being the parent's with room for one more. */
static int add_disk(struct repo_session *s, const char *name, uint64_t size,
		    const struct point_disk *parent, struct error *err)
{
	uint32_t n = parent ? parent->map->nsessions : 0;
	struct session_disk *v = reallocarray(s->disks, s->ndisks + 1, sizeof(*v));
	auto_free struct table_entry *table = NULL;
	auto_free struct sketch *sketch = calloc(1, sizeof(*sketch));
	auto_free char *copy = NULL;
	int r;

	if (!v)
		return error_nomem(err);
	s->disks = v;
	table = calloc((size_t)n + 1, sizeof(*table));
	if (!table || !sketch)
		return error_nomem(err);
	if (parent && parent->map->sketch)
		*sketch = *parent->map->sketch;
	r = text_copy(name, &copy, err);
	if (r < 0)
		return r;
	if (n > 0)
		memcpy(table, parent->map->table, n * sizeof(*table));
	table[n].session = s->sid;
	v[s->ndisks++] = (struct session_disk){
		.name = tm_steal(copy),
		.size = size,
		.map = {.root = REF_HOLE,
			.parent_root = REF_HOLE,
			.table = tm_steal(table),
			.nsessions = n,
			.sketch = tm_steal(sketch)},
		.own = n,
	};
	return 0;
}

static void start_disk(struct repo_session *s, uint64_t size, const struct point_disk *parent)
{
	unsigned bits = s->repo->block_bits;
	struct map_root root;

	if (parent)
		root = (struct map_root){
			.ref = parent->map->root,
			.blocks = disk_blocks(parent->size, bits),
			.nsessions = parent->map->nsessions,
		};
	map_writer_init(&s->map_writer, disk_blocks(size, bits),
			parent ? parent->map->nsessions : 0, parent ? &root : NULL, output_node, s);
	ahead_init(&s->ahead, s->repo, parent ? &root : NULL);
	ration_init(&s->ration, parent ? parent->map->nsessions : 0);
	memset(&s->ahead_at, 0, sizeof(s->ahead_at));
	s->has_parent = parent != NULL;
	if (parent)
		look_init(&s->look, s->repo, &root, session_disk(s)->map.table, &s->lost);
	s->parent_size = parent ? parent->size : 0;
	s->last_block_seen = false;
	s->next_decide = s->next_append = 0;
	s->new_bytes = s->same_bytes = s->known_bytes = s->lost_bytes = 0;
	s->stored_bytes = s->data.bytes + s->map.bytes;
	decide_begin_disk(s);
	s->disk_open = true;
}

int repo_session_disk_begin(struct repo_session *s, const char *name, uint64_t size,
			    const struct point *parent, const struct point_disk *parent_disk,
			    struct piece_sink **ret, struct error *err)
{
	int r = 0;

	if (s->code < 0)
		return session_failure(s, err);
	if (s->disk_open || s->committed)
		return error_set(err, TM_E_RANGE, "disk %s begins before the last one has ended",
				 name);
	if (size > INT64_MAX || disk_blocks(size, s->repo->block_bits) > MAX_BLOCKS ||
	    s->ndisks == MAX_DISKS)
		return error_set(err, TM_E_RANGE, "disk %s is too large, or one too many", name);
	if (parent)
		r = check_parent(s, parent_disk, err);
	if (r == 0 && parent)
		r = marker_pin(s, &parent->id, parent->object, err);
	r = r ? r : add_disk(s, name, size, parent ? parent_disk : NULL, err);
	if (r < 0) {
		error_prefix(err, "disk %s", name);
		return r;
	}
	if (parent) {
		struct disk_map *m = &session_disk(s)->map;

		m->parent_number = (uint32_t)(parent_disk - parent->disks) + 1;
		m->parent_root = parent_disk->map->root;
		m->parent_size = parent_disk->size;
	}
	start_disk(s, size, parent ? parent_disk : NULL);
	*ret = &s->sink;
	return 0;
}

void repo_session_disk_whole(struct repo_session *s)
{
	assert(s->disk_open);
	s->whole = true;
	s->ration.off = true;
	s->look.tolerant = true;
	session_disk(s)->map.sketch->n = 0;
}

static int end_map(struct repo_session *s, struct error *err)
{
	struct session_disk *d = session_disk(s);
	int r;

	while ((r = map_writer_end(&s->map_writer, &d->map.root, err)) == MAP_NEED) {
		if (session_supply(s, &r, err)) {
			session_settle(s, false);
			r = s->code < 0 ? session_failure(s, err) : 0;
		}
		if (r < 0)
			return r;
	}
	r = r ? r : output_end_disk(s, err);
	if (r == 0 && d->used_own)
		d->map.nsessions = d->own + 1 + d->nforeign;
	return r;
}

static int end_disk(struct repo_session *s, struct error *err)
{
	const struct session_disk *d = session_disk(s);
	uint64_t missing = s->next_append;

	if (s->code < 0)
		return session_failure(s, err);
	if (s->has_parent && d->size < s->parent_size &&
	    (d->size & ((UINT64_C(1) << s->repo->block_bits) - 1)) != 0 && !s->last_block_seen)
		return error_set(err, TM_E_RANGE,
				 "the disk became smaller, its last block is missing");
	if (s->works)
		return error_set(err, TM_E_RANGE, "piece %" PRIu64 " is missing", missing);
	if (s->whole && (s->gap || s->next_block != disk_blocks(d->size, s->repo->block_bits)))
		return error_set(err, TM_E_RANGE, "not all blocks of the disk were named");
	return end_map(s, err);
}

/* Works that wait for a piece which never came are given back. */
static void drop_works(struct repo_session *s, int code, const struct error *err)
{
	session_fail(s, code, err);
	session_pump(s);
	session_settle(s, true);
}

/* Waits until nothing moves any more: all done, or a piece is missing. */
static void settle_pieces(struct repo_session *s)
{
	for (;;) {
		bool moving = s->loading || session_looks(s) || s->in_flight > 0;
		struct error err = {0};
		int r;

		for (const struct work *w = s->works; w; w = w->next)
			moving |= w->state == WORK_HASHING || w->state == WORK_COMPRESSING;
		if (!s->works || !moving)
			return;
		r = loop_run_once(s->repo->loop, -1, &err);
		if (r < 0)
			session_fail(s, r, &err);
	}
}

int repo_session_disk_end(struct repo_session *s, struct repo_disk_counts *ret, struct error *err)
{
	struct error own = {0};
	int r;

	if (!s->disk_open)
		return s->code < 0 ? session_failure(s, err)
				   : error_set(err, TM_E_RANGE, "there is no disk to end");
	settle_pieces(s);
	r = end_disk(s, &own);
	s->disk_open = false;
	if (r < 0) {
		if (s->code == 0)
			error_prefix(&own, "disk %s", session_disk(s)->name);
		drop_works(s, r, &own);
		return session_failure(s, err);
	}
	session_settle(s, false);
	decide_end_disk(s);
	*ret = (struct repo_disk_counts){
		.same_bytes = s->same_bytes,
		.known_bytes = s->known_bytes,
		.new_bytes = s->new_bytes,
		.lost_bytes = s->lost_bytes,
		.stored_bytes = s->data.bytes + s->map.bytes - s->stored_bytes,
	};
	return 0;
}

/* ---- commit ---- */

static int check_meta(const struct repo_session *s, const struct point *meta, struct error *err)
{
	if (!meta->guest || strcmp(meta->guest, s->guest) != 0 || !meta->name)
		return error_set(err, TM_E_RANGE,
				 "the point's guest is not the session's, or it has no name");
	if (meta->ndisks != s->ndisks)
		return error_set(err, TM_E_RANGE, "the point names %zu disks, the session has %u",
				 meta->ndisks, s->ndisks);
	for (unsigned i = 0; i < s->ndisks; i++)
		if (strcmp(meta->disks[i].name, s->disks[i].name) != 0)
			return error_set(err, TM_E_RANGE, "disk %u is %s, the session has %s", i,
					 meta->disks[i].name, s->disks[i].name);
	return 0;
}

static int build_manifest(struct repo_session *s, const struct point *meta, struct buf *ret,
			  struct error *err)
{
	const struct manifest_own own = {.data = s->data.own, .map = s->map.own};
	auto_free struct point_disk *disks = calloc(s->ndisks ? s->ndisks : 1, sizeof(*disks));
	struct point p = *meta;

	if (!disks)
		return error_nomem(err);
	for (unsigned i = 0; i < s->ndisks; i++) {
		struct session_disk *d = &s->disks[i];

		if (d->used_own) {
			d->map.table[d->own].ndata = s->data.own.n;
			d->map.table[d->own].nmap = s->map.own.n;
		}
		disks[i] = meta->disks[i];
		disks[i].size = d->size;
		disks[i].block_size = UINT32_C(1) << s->repo->block_bits;
		disks[i].map = &d->map;
	}
	p.id = s->sid;
	p.seq = s->seq;
	p.disks = disks;
	return manifest_encode(s->repo, &s->source, &p, &own, ret, err);
}

static int put_manifest(struct repo_session *s, const struct point *meta, struct error *err)
{
	auto_buf struct buf b = {0};
	char key[KEY_MAX];
	bool fenced;
	int r = build_manifest(s, meta, &b, err);

	if (r < 0)
		return r;
	name_point(s->repo, &s->source, s->seq, &s->sid, key);
	r = store_put_wait(s->repo->st, key, b.data, b.len, err);
	r = r ? r : marker_fenced(s->repo, &s->sid, &fenced, err);
	if (r == 0 && fenced)
		return stale(err);
	return r;
}

int repo_session_commit(struct repo_session *s, const struct point *meta, struct error *err)
{
	struct error own = {0};
	int r;

	if (s->code < 0)
		return session_failure(s, err);
	if (s->disk_open || s->committed)
		return error_set(err, TM_E_RANGE, "the session is not ready for a commit");
	r = check_meta(s, meta, err);
	if (r < 0)
		return r;
	output_close(s);
	session_settle(s, true);
	r = s->code < 0 ? session_failure(s, &own) : put_manifest(s, meta, &own);
	if (r < 0) {
		session_fail(s, r, &own);
		return session_failure(s, err);
	}
	s->committed = true;
	return 0;
}

void repo_session_free(struct repo_session *s)
{
	struct error err = {0};

	if (!s)
		return;
	if (s->works || session_loads(s) || s->in_flight > 0)
		drop_works(s, error_set(&err, TM_E_CANCELED, "the session was given up"), &err);
	decide_end_disk(s);
	siblings_free(s);
	content_done(&s->content);
	lost_done(&s->lost);
	free(s->sources);
	pipeline_free(s);
	output_free(s);
	for (unsigned i = 0; i < s->ndisks; i++) {
		free(s->disks[i].name);
		free(s->disks[i].map.table);
		free(s->disks[i].map.sketch);
	}
	free(s->disks);
	free(s->pins);
	free(s->guest);
	workers_done(&s->workers);
	page_out_done(&s->page_out);
	session_keys_wipe(&s->keys);
	free(s);
}
