/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which clusters of a hashed piece have to be stored.  In the order of the pieces:
 *
 *	zero      a hole; nothing at all where the parent has one, too
 *	same      the parent has this content at this place, and it is not lost: nothing
 *	twin      the content index knows it: the map refers there
 *	new       stored, and announced to the index
 *
 * A cluster that is announced gets its place when its frame is appended.  Pieces are
 * appended in the same order, so that a twin's place is known when its turn comes.
 */
#include "session.h"

#include <string.h>

void decide_begin_disk(struct repo_session *s)
{
	s->next_block = 0;
	s->whole = s->gap = false;
	for (uint32_t i = 0; i < s->nsources; i++)
		s->sources[i].at = 0;
}

void decide_end_disk(struct repo_session *s)
{
	look_done(&s->look);
	ration_done(&s->ration);
}

/* ---- steps ---- */

static void add_step(struct work *w, enum step_kind kind, uint64_t block, uint64_t count,
		     unsigned at)
{
	assert(w->nsteps < WORK_MAX_STEPS);
	w->step[w->nsteps++] =
		(struct work_step){.block = block, .count = count, .kind = kind, .at = at};
}

static void add_hole(struct work *w, uint64_t block, uint64_t count)
{
	struct work_step *last = w->nsteps > 0 ? &w->step[w->nsteps - 1] : NULL;

	if (last && last->kind == STEP_HOLE && last->block + last->count == block)
		last->count += count;
	else
		add_step(w, STEP_HOLE, block, count, 0);
}

/*
 * Frames hold neighbours of one aligned group, so that what is overwritten together is
 * stored together and becomes garbage together.
 */
static bool joins_frame(const struct work *w, unsigned i, unsigned max)
{
	const struct cluster *c = &w->cluster[i], *prev;
	const struct work_frame *f;

	if (w->nframes == 0)
		return false;
	f = &w->frame[w->nframes - 1];
	prev = c - 1;
	return f->first + f->n == i && f->n < max && c->block == prev->block + 1 &&
	       c->block % max != 0 && c->data == prev->data + ((size_t)1 << w->s->repo->block_bits);
}

static void add_cluster(struct work *w, unsigned i)
{
	unsigned max = FRAME_TARGET_BYTES >> w->s->repo->block_bits;

	max = max < 1 ? 1 : max > FRAME_MAX_SLOTS ? FRAME_MAX_SLOTS : max;
	if (joins_frame(w, i, max)) {
		w->frame[w->nframes - 1].n++;
		w->step[w->nsteps - 1].count++;
		return;
	}
	add_step(w, STEP_FRAME, w->cluster[i].block, 1, w->nframes);
	w->frame[w->nframes++] = (struct work_frame){.first = i, .n = 1};
}

/* ---- against the parent ---- */

/*
 * Zeroes that the parent does not have as a hole.  One step is enough: it begins at the
 * first block with data and may have holes behind it.
 */
static int decide_zero(struct repo_session *s, struct work *w, uint64_t block, uint64_t count,
		       struct error *err)
{
	uint64_t end = block + count;

	/* Without a parent, holes are what nobody mentions. */
	while (s->has_parent && block < end) {
		int r = look_run(&s->look, block, err);

		if (r != 0)
			return r;
		if (s->look.run.count == 0)
			return 0; /* behind the parent's end */
		if (s->look.run.ref != REF_HOLE) {
			add_hole(w, block, end - block);
			return 0;
		}
		block = s->look.run.block + s->look.run.count;
	}
	return 0;
}

int decide_worth(struct repo_session *s, struct cluster *c, uint64_t ref, bool *ret,
		 struct error *err)
{
	bool worth = c->compare == COMPARE_YES;

	if (c->compare == COMPARE_UNKNOWN) {
		int r = ration_ask(&s->ration, ref, &worth, err);

		if (r < 0)
			return r;
		c->compare = worth ? COMPARE_YES : COMPARE_NO;
	}
	*ret = worth;
	return 0;
}

static int same_as_parent(struct repo_session *s, struct cluster *c, bool *ret, struct error *err)
{
	const struct map_run *run = &s->look.run;
	const uint8_t *id = NULL;
	uint64_t ref;
	bool worth;
	int r;

	*ret = false;
	if (!s->has_parent)
		return 0;
	r = look_run(&s->look, c->block, err);
	if (r != 0 || run->count == 0 || run->ref == REF_HOLE)
		return r;
	ref = run->ref == REF_LOST ? REF_LOST : run->ref + (c->block - run->block);
	if (look_lost(&s->look, ref)) {
		s->lost_bytes += UINT64_C(1) << s->repo->block_bits;
		return 0;
	}
	r = decide_worth(s, c, ref, &worth, err);
	if (r == 0 && worth)
		r = look_content(&s->look, ref, &id, err);
	if (r == 0 && id)
		*ret = memcmp(id, c->id, CONTENT_BYTES) == 0;
	return r;
}

/* ---- pieces ---- */

static int decide_cluster(struct repo_session *s, struct work *w, unsigned i, struct error *err)
{
	struct cluster *c = &w->cluster[i];
	uint64_t place;
	bool same;
	int r;

	if (c->zero)
		return decide_zero(s, w, c->block, 1, err);
	r = siblings_take(s, err);
	r = r ? r : same_as_parent(s, c, &same, err);
	if (r != 0)
		return r;
	sketch_add(session_disk(s)->map.sketch, c->id);
	if (same) {
		s->same_bytes += UINT64_C(1) << s->repo->block_bits;
		return 0;
	}
	if (content_find(&s->content, c->id, &place)) {
		add_step(w, STEP_TWIN, c->block, 1, i);
		return 0;
	}
	siblings_ask(s, c->id);
	add_cluster(w, i);
	return content_put(&s->content, c->id, CONTENT_PENDING, err);
}

static int decide_run(struct repo_session *s, struct work *w, struct error *err)
{
	const struct piece_run *run = &w->piece->run[w->run];

	if (run->zero)
		return decide_zero(s, w, run->block, run->count, err);
	for (; w->in_run < run->count; w->in_run++) {
		int r = decide_cluster(s, w, w->cluster_at, err);

		if (r != 0)
			return r;
		w->cluster_at++;
	}
	return 0;
}

int decide(struct repo_session *s, struct work *w, struct error *err)
{
	for (; w->run < w->piece->nruns; w->run++) {
		const struct piece_run *run = &w->piece->run[w->run];
		int r = decide_run(s, w, err);

		if (r != 0)
			return r;
		w->in_run = 0;
		s->gap |= run->block != s->next_block;
		s->next_block = run->block + run->count;
	}
	return 0;
}

/* ---- the content index ---- */

int decide_stored(struct repo_session *s, const struct cluster *c, uint64_t ordinal,
		  struct error *err)
{
	uint64_t place;

	if (!content_find(&s->content, c->id, &place))
		return 0; /* the index is full */
	return content_put(&s->content, c->id, ref_of(0, ordinal), err);
}

/* Index of a source's session in the disk's table; appended when it is not there yet. */
static int table_index(struct repo_session *s, uint32_t source, uint32_t *ret, struct error *err)
{
	struct content_source *src = &s->sources[source];
	struct session_disk *d = session_disk(s);
	uint32_t n = d->own + 1 + d->nforeign;
	struct table_entry *v;

	if (source == 0) {
		*ret = d->own;
		return 0;
	}
	for (uint32_t i = 0; src->at == 0 && i < n; i++)
		if (i != d->own && id_equal(&d->map.table[i].session, &src->e.session))
			src->at = i + 1;
	if (src->at > 0) {
		*ret = src->at - 1;
		return 0;
	}
	if (n == MAX_SESSIONS)
		return error_set(err, TM_E_RANGE,
				 "the disk refers to %u sessions, more cannot be; 'backup --full' "
				 "begins anew",
				 n);
	v = reallocarray(d->map.table, n + 1, sizeof(*v));
	if (!v)
		return error_nomem(err);
	v[n] = src->e;
	d->map.table = v;
	s->look.table = v;
	d->nforeign++;
	src->at = n + 1;
	*ret = n;
	return 0;
}

int decide_twin(struct repo_session *s, const struct cluster *c, uint64_t *ret_ref,
		struct error *err)
{
	uint64_t place = CONTENT_PENDING;
	uint32_t index;
	bool known = content_find(&s->content, c->id, &place);
	int r;

	assert(known && place != CONTENT_PENDING);
	(void)known;
	r = table_index(s, ref_session(place), &index, err);
	if (r == 0)
		*ret_ref = ref_of(index, ref_ordinal(place));
	return r;
}
