/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Frames and map nodes become segments, segments become objects.  At most MAX_IN_FLIGHT
 * data segments are sealed or stored at a time; the next frame waits for one of them.
 * Map segments are few and do not wait.
 */
#include "session.h"

#include <string.h>

#define MAX_IN_FLIGHT 3

/* ---- segments to the store ---- */

static void job_end(struct seg_job *j, int code, const struct error *err)
{
	struct repo_session *s = j->s;

	if (code < 0)
		session_fail(s, code, err);
	j->next = s->idle;
	s->idle = j;
	s->in_flight--;
	session_pump(s);
}

static void job_stored(struct store_req *req, int code)
{
	struct seg_job *j = container_of(req, struct seg_job, req);
	struct error err = {0};

	if (code < 0) {
		job_end(j, code, &req->err);
		return;
	}
	{
		const struct seg_writer *w = j->w;
		struct seg_out *out = w->addr.type == SEGMENT_DATA ? &j->s->data : &j->s->map;
		struct own_segment own = {
			.nslots = w->nslots, .head_crc = w->head_crc, .size = w->object_len};

		memcpy(own.digest, j->digest, sizeof(own.digest));
		code = own_segments_set(&out->own, w->addr.index, &own, &err);
	}
	job_end(j, code, &err);
}

static void job_seal(struct pool_task *task, unsigned worker)
{
	struct seg_job *j = container_of(task, struct seg_job, task);

	error_clear(&j->req.err);
	j->code = seg_seal(j->w, j->s->workers.v[worker].aead, &j->s->keys, &j->req.err);
}

static void job_sealed(struct pool_task *task)
{
	struct seg_job *j = container_of(task, struct seg_job, task);
	struct store *st = j->s->repo->st;

	if (j->code < 0 || j->s->code < 0) {
		struct error err = j->req.err;

		job_end(j, j->code, &err);
		return;
	}
	name_segment(j->s->repo, &j->s->sid, j->w->addr.type, j->w->addr.index, 0, 0, j->key);
	j->req.done = job_stored;
	st->ops->put_new(st, j->key, j->w->object, j->w->object_len, &j->req);
}

static void segment_close(struct repo_session *s, struct seg_out *out)
{
	struct seg_job *j = out->open;

	struct error err = {0};

	if (!j)
		return;
	if (out->type == SEGMENT_MAP && page_out_digest(&s->page_out, j->digest, &err) < 0)
		session_fail(s, err.code, &err);
	out->open = NULL;
	s->in_flight++;
	j->task = (struct pool_task){.run = job_seal, .done = job_sealed};
	pool_submit(s->pool, &j->task);
}

static int segment_open(struct repo_session *s, struct seg_out *out, struct error *err)
{
	struct seg_address addr = {
		.repo = s->repo->id,
		.domain = s->repo->domain,
		.session = s->sid,
		.type = out->type,
		.block_bits = (uint8_t)s->repo->block_bits,
		.index = out->next_index,
	};
	struct seg_job *j = s->idle;

	if (out->next_index > MAX_SEGMENT_INDEX)
		return error_set(err, TM_E_RANGE, "the session has too many segments");
	if (j) {
		s->idle = j->next;
	} else {
		int r;

		j = calloc(1, sizeof(*j));
		if (!j)
			return error_nomem(err);
		r = seg_writer_new(&j->w, err);
		if (r < 0) {
			free(j);
			return r;
		}
		j->s = s;
	}
	seg_begin(j->w, &addr, &(struct seg_sealing){0});
	memset(j->digest, 0, sizeof(j->digest));
	out->next_index++;
	out->open = j;
	out->bytes += sizeof(struct format_segment);
	return 0;
}

/* An open data segment with room, or OUT_WAIT. */
static int data_ready(struct repo_session *s, unsigned nslots, size_t len, struct error *err)
{
	if (s->data.open && !seg_has_room(s->data.open->w, nslots, len))
		segment_close(s, &s->data);
	if (s->data.open)
		return 0;
	if (s->in_flight >= MAX_IN_FLIGHT)
		return OUT_WAIT;
	return segment_open(s, &s->data, err);
}

int output_frame(struct repo_session *s, const struct work *w, const struct work_frame *f,
		 uint64_t *ret, struct error *err)
{
	int r = data_ready(s, f->n, f->len, err);
	struct seg_writer *sw;

	if (r != 0)
		return r;
	sw = s->data.open->w;
	*ret = ((uint64_t)sw->addr.index << DATA_SLOTS_LOG2) + sw->nslots;
	for (unsigned i = 0; i < f->n; i++)
		seg_describe(sw, sw->nslots + i, s->ndisks - 1, w->cluster[f->first + i].block,
			     w->cluster[f->first + i].id);
	seg_add_frame(sw, f->n, f->method, f->data, f->len);
	s->new_bytes += (uint64_t)f->n << s->repo->block_bits;
	s->data.bytes += 1 + f->len + TAG_BYTES + sizeof(struct format_frame) +
			 f->n * sizeof(struct format_desc);
	return 0;
}

/* Room for n extra records in the open segment.  0, OUT_WAIT or an error. */
static int extra_ready(struct repo_session *s, unsigned n, struct error *err)
{
	if (s->data.open && s->data.open->w->nextras + n > SEGMENT_MAX_EXTRAS)
		segment_close(s, &s->data);
	return data_ready(s, 0, 0, err);
}

int output_hole(struct repo_session *s, uint64_t block, uint64_t count, struct error *err)
{
	unsigned n = seg_hole_records(count);
	int r = extra_ready(s, n, err);

	if (r != 0)
		return r;
	seg_add_hole(s->data.open->w, s->ndisks - 1, block, count);
	session_disk(s)->used_own = true; /* also when no node is left */
	s->data.bytes += n * sizeof(struct format_desc);
	return 0;
}

int output_alias(struct repo_session *s, uint64_t block, uint64_t ref, struct error *err)
{
	int r = extra_ready(s, 1, err);
	uint32_t before;

	if (r != 0)
		return r;
	before = s->data.open->w->nextras;
	seg_add_alias(s->data.open->w, s->ndisks - 1, block, ref_session(ref), ref_ordinal(ref));
	s->data.bytes += (s->data.open->w->nextras - before) * sizeof(struct format_desc);
	s->known_bytes += UINT64_C(1) << s->repo->block_bits;
	return 0;
}

/* ---- map nodes ---- */

static int page_flush(struct repo_session *s, struct error *err)
{
	struct seg_writer *w = s->map.open ? s->map.open->w : NULL;
	uint32_t before = w ? w->nframes : 0;
	int r = w ? page_out_flush(&s->page_out, w, err) : 0;

	if (r == 0 && w && w->nframes > before)
		s->map.bytes +=
			le32_get(w->frames[before].stored_len) + sizeof(struct format_frame);
	return r;
}

int output_node(void *data, const struct node *n, uint64_t *ret, struct error *err)
{
	struct repo_session *s = data;
	int r = 0;

	if (s->map.open && s->map.open->w->nslots + s->page_out.page.n == MAP_SLOTS)
		r = page_flush(s, err);
	if (r == 0 && s->map.open && s->page_out.page.n == 0 &&
	    !seg_has_room(s->map.open->w, 1, PAGE_MAX_BYTES))
		segment_close(s, &s->map);
	if (r == 0 && !s->map.open)
		r = segment_open(s, &s->map, err);
	if (r < 0)
		return r;
	*ret = ((uint64_t)s->map.open->w->addr.index << MAP_SLOTS_LOG2) + s->map.open->w->nslots +
	       s->page_out.page.n;
	session_disk(s)->used_own = true;
	return page_add(&s->page_out.page, n) ? page_flush(s, err) : 0;
}

int output_end_disk(struct repo_session *s, struct error *err)
{
	return page_flush(s, err);
}

void output_close(struct repo_session *s)
{
	segment_close(s, &s->data);
	segment_close(s, &s->map);
}

static void jobs_free(struct seg_job *j)
{
	while (j) {
		struct seg_job *next = j->next;

		seg_writer_free(j->w);
		free(j);
		j = next;
	}
}

void output_free(struct repo_session *s)
{
	assert(s->in_flight == 0);
	jobs_free(s->idle);
	if (s->data.open)
		s->data.open->next = NULL;
	if (s->map.open)
		s->map.open->next = NULL;
	jobs_free(s->data.open);
	jobs_free(s->map.open);
	own_segments_done(&s->data.own);
	own_segments_done(&s->map.own);
}
