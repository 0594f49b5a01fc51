/* SPDX-License-Identifier: Apache-2.0 */
#include "verify.h"

#include "lost.h"
#include "manifest.h"

#include <string.h>

#define TICK_MS 100

bool verify_is_damage(int code)
{
	return code == TM_E_CORRUPT || code == TM_E_UNSUPPORTED || code == TM_E_IO;
}

void verify_wait(struct verifier *v)
{
	uint64_t now = clock_monotonic_ms(&clock_system);
	struct error err = {0};

	if (now >= v->next_tick && v->code == 0) {
		v->next_tick = now + TICK_MS;
		if (v->opt->tick)
			v->code = v->opt->tick(v->opt->data, v->done, v->total, &v->err);
	}
	if (loop_run_once(v->repo->loop, TICK_MS, &err) < 0)
		log_debug("loop: %s", err.text);
}

/* ---- segments ---- */

static size_t vseg_hash(const struct tm_id *sid, uint8_t type, uint32_t index)
{
	uint64_t h;

	memcpy(&h, sid->b + 8, sizeof(h)); /* random bytes */
	h ^= ((uint64_t)index << 2 | type) * UINT64_C(0x9e3779b97f4a7c15);
	return (size_t)(h ^ h >> 29);
}

static int vseg_grow(struct verifier *v, struct error *err)
{
	size_t cap = v->cap ? 2 * v->cap : 256;
	struct vseg **seg = calloc(cap, sizeof(struct vseg *));

	if (!seg)
		return error_nomem(err);
	for (size_t i = 0; i < v->cap; i++) {
		size_t at;

		if (!v->seg[i])
			continue;
		at = vseg_hash(&v->seg[i]->sid, v->seg[i]->type, v->seg[i]->index) & (cap - 1);
		while (seg[at])
			at = (at + 1) & (cap - 1);
		seg[at] = v->seg[i];
	}
	free(v->seg);
	v->seg = seg;
	v->cap = cap;
	return 0;
}

static void vseg_free(struct vseg *s)
{
	if (!s)
		return;
	free(s->used);
	free(s->bad);
	free(s->reason);
	free(s->key);
	free(s);
}

static int vseg_new(const struct repo *repo, const struct tm_id *sid, uint8_t type, uint32_t index,
		    struct vseg **ret, struct error *err)
{
	struct vseg *s = calloc(1, sizeof(*s));
	char key[KEY_MAX];

	if (!s)
		return error_nomem(err);
	name_segment(repo, sid, type, index, 0, 0, key);
	*s = (struct vseg){.sid = *sid, .type = type, .index = index, .damage = -1};
	s->nwords = (1U << seg_slots_log2(type)) / 64;
	s->used = calloc(s->nwords, sizeof(*s->used));
	s->key = strdup(key);
	if (!s->used || !s->key) {
		vseg_free(s);
		return error_nomem(err);
	}
	*ret = s;
	return 0;
}

int vseg_get(struct verifier *v, const struct tm_id *sid, uint8_t type, uint32_t index,
	     struct vseg **ret, struct error *err)
{
	size_t at;
	int r;

	if (2 * (v->nseg + 1) > v->cap) {
		r = vseg_grow(v, err);
		if (r < 0)
			return r;
	}
	for (at = vseg_hash(sid, type, index) & (v->cap - 1); v->seg[at];
	     at = (at + 1) & (v->cap - 1)) {
		struct vseg *s = v->seg[at];

		if (s->index == index && s->type == type && id_equal(&s->sid, sid)) {
			*ret = s;
			return 0;
		}
	}
	r = vseg_new(v->repo, sid, type, index, ret, err);
	if (r < 0)
		return r;
	v->seg[at] = *ret;
	v->nseg++;
	return 0;
}

int vseg_damaged(struct verifier *v, struct vseg *s, uint32_t slot, uint32_t count,
		 const char *reason, struct error *err)
{
	v->damage = true;
	if (!s->reason) {
		s->reason = strdup(reason);
		if (!s->reason)
			return error_nomem(err);
	}
	if (slot == UINT32_MAX) {
		s->all_bad = true;
		return 0;
	}
	if (!s->bad)
		s->bad = calloc(s->nwords, sizeof(*s->bad));
	if (!s->bad)
		return error_nomem(err);
	for (uint32_t i = 0; i < count; i++)
		bit_set(s->bad, slot + i);
	return 0;
}

/* ---- report ---- */

void damage_done(struct repo_damage *d)
{
	for (size_t i = 0; i < d->nranges; i++)
		free(d->ranges[i].disk);
	free(d->ranges);
	free(d->object);
	free(d->reason);
	free(d->remedy);
}

void repo_verify_report_done(struct repo_verify_report *r)
{
	for (size_t i = 0; i < r->ndamaged; i++)
		damage_done(&r->damaged[i]);
	free(r->damaged);
	free(r->unrecorded);
	*r = (struct repo_verify_report){0};
}

bool damage_has(const struct repo_verify_report *r, const char *object)
{
	for (size_t i = 0; i < r->ndamaged; i++)
		if (strcmp(r->damaged[i].object, object) == 0)
			return true;
	return false;
}

int damage_add(struct repo_verify_report *r, const char *object, const char *reason,
	       struct error *err)
{
	struct repo_damage *v = reallocarray(r->damaged, r->ndamaged + 1, sizeof(*v));
	struct repo_damage d = {.object = strdup(object), .reason = strdup(reason)};

	if (v)
		r->damaged = v;
	if (!v || !d.object || !d.reason) {
		damage_done(&d);
		return error_nomem(err);
	}
	v[r->ndamaged++] = d;
	return 0;
}

int damage_add_range(struct repo_damage *d, const struct tm_id *point, const char *disk,
		     uint64_t offset, uint64_t length, struct error *err)
{
	struct repo_damage_range *last = d->nranges ? &d->ranges[d->nranges - 1] : NULL, *v;
	char *copy;

	if (last && id_equal(&last->point, point) && strcmp(last->disk, disk) == 0 &&
	    last->offset + last->length == offset) {
		last->length += length;
		return 0;
	}
	v = reallocarray(d->ranges, d->nranges + 1, sizeof(*v));
	if (!v)
		return error_nomem(err);
	d->ranges = v;
	copy = strdup(disk);
	if (!copy)
		return error_nomem(err);
	v[d->nranges++] = (struct repo_damage_range){
		.point = *point, .disk = copy, .offset = offset, .length = length};
	return 0;
}

/* ---- phases ---- */

typedef int disk_fn(struct verifier *, const struct point *, const struct point_disk *,
		    struct error *);

static int for_disks(struct verifier *v, const struct point *p, disk_fn *fn, struct error *err)
{
	int r = 0;

	for (size_t i = 0; r == 0 && i < p->ndisks; i++)
		r = fn(v, p, &p->disks[i], err);
	return r;
}

/* Manifests are read anew for each pass: those of many points are larger than all else. */
struct pass {
	struct points_reader reader;
	struct verifier *v;
	disk_fn *fn;
};

static int count_point(struct verifier *v, const struct point_name *name, const struct point *p,
		       const struct error *why, struct error *err)
{
	char key[KEY_MAX];
	int r = id_set_add(&v->counted, &name->session, err);

	v->report->points++;
	v->report->objects++;
	v->report->bytes += name->size;
	if (r < 0 || p)
		return r;
	name_point(v->repo, &name->source, name->seq, &name->session, key);
	return damage_add(v->report, key, why->text, err);
}

static int mark_point(struct points_reader *reader, const struct point_name *name, struct point *p,
		      const struct error *why, struct error *err)
{
	struct verifier *v = container_of(reader, struct pass, reader)->v;
	int r = count_point(v, name, p, why, err);

	if (r == 0 && p)
		r = for_disks(v, p, verify_mark, err);
	point_free(p);
	return r;
}

/* The first pass, which says what manifests there are. */
static int mark_points(struct verifier *v, struct error *err)
{
	struct pass pass = {.reader = {.repo = v->repo, .each = mark_point}, .v = v};
	int r = points_names(v->repo, NULL, &v->names, err);

	r = r ? r : points_read(&pass.reader, v->names.v, v->names.n, false, err);
	id_set_sort(&v->counted);
	return r;
}

static int pass_point(struct points_reader *reader, const struct point_name *name, struct point *p,
		      const struct error *why, struct error *err)
{
	struct pass *pass = container_of(reader, struct pass, reader);
	int r = 0;

	(void)name;
	(void)why; /* the first pass told */
	if (p && !id_set_has(&pass->v->gone, &p->id))
		r = for_disks(pass->v, p, pass->fn, err);
	point_free(p);
	return r;
}

static int for_all_disks(struct verifier *v, disk_fn *fn, struct error *err)
{
	const struct point_list *l = v->opt->points;
	struct pass pass = {.reader = {.repo = v->repo, .each = pass_point}, .v = v, .fn = fn};
	int r = 0;

	if (!l)
		return points_read(&pass.reader, v->names.v, v->names.n, false, err);
	for (size_t i = 0; r == 0 && i < l->n; i++)
		if (!id_set_has(&v->gone, &l->v[i]->id))
			r = for_disks(v, l->v[i], fn, err);
	return r;
}

int repo_verify_report_add(struct repo_verify_report *to, struct repo_verify_report *from,
			   struct error *err)
{
	struct repo_damage *v =
		reallocarray(to->damaged, to->ndamaged + from->ndamaged + 1, sizeof(*v));

	if (!v) {
		repo_verify_report_done(from);
		return error_nomem(err);
	}
	to->damaged = v;
	to->points += from->points;
	to->objects += from->objects;
	to->bytes += from->bytes;
	for (size_t i = 0; i < from->ndamaged; i++) {
		if (damage_has(to, from->damaged[i].object))
			damage_done(&from->damaged[i]);
		else
			v[to->ndamaged++] = from->damaged[i];
	}
	from->ndamaged = 0;
	if (!to->unrecorded) {
		to->unrecorded = from->unrecorded;
		from->unrecorded = NULL;
	}
	repo_verify_report_done(from);
	return 0;
}

static int check_tables(struct verifier *v, struct error *err)
{
	int r = 0;

	for (size_t i = 0; r == 0 && i < v->cap; i++) {
		if (!v->seg[i])
			continue;
		v->seg[i]->needed = true;
		r = verify_tables(v, v->seg[i], err);
		if (r == 0 && v->code < 0)
			r = v->code;
		v->total += v->seg[i]->size;
	}
	return r;
}

static int compare_damage(const void *a, const void *b)
{
	return strcmp(((const struct repo_damage *)a)->object,
		      ((const struct repo_damage *)b)->object);
}

/* Points that were deleted while this ran; their space may have been freed already. */
int verify_find_gone(struct verifier *v, struct error *err)
{
	const struct point_list *l = v->opt->points;
	struct name_list names = {0};
	struct id_set valid = {0};
	size_t n = l ? l->n : v->names.n;
	int r = points_names(v->repo, NULL, &names, err);

	for (size_t i = 0; r == 0 && i < names.n; i++)
		r = id_set_add(&valid, &names.v[i].session, err);
	id_set_sort(&valid);
	for (size_t i = 0; r == 0 && i < n; i++) {
		const struct tm_id *id = l ? &l->v[i]->id : &v->names.v[i].session;

		if (!id_set_has(&valid, id))
			r = id_set_add(&v->gone, id, err);
	}
	id_set_sort(&v->gone);
	name_list_done(&names);
	id_set_done(&valid);
	return r;
}

/* Damage that hits none of the points that are asked for, or left. */
static void drop_unused(struct verifier *v, size_t first)
{
	struct repo_verify_report *r = v->report;
	size_t n = first;

	for (size_t i = first; i < r->ndamaged; i++) {
		if (r->damaged[i].nranges == 0)
			damage_done(&r->damaged[i]);
		else
			r->damaged[n++] = r->damaged[i];
	}
	r->ndamaged = n;
}

/* Whom the damage hits. */
static int report_damage(struct verifier *v, struct error *err)
{
	size_t first = v->report->ndamaged;
	int r;

	if (!v->damage)
		return 0;
	r = verify_find_gone(v, err);
	for (size_t i = 0; r == 0 && i < v->cap; i++) {
		struct vseg *s = v->seg[i];

		if (!s || !s->reason)
			continue;
		s->damage = (ssize_t)v->report->ndamaged;
		r = damage_add(v->report, s->key, s->reason, err);
	}
	r = r ? r : for_all_disks(v, verify_blame, err);
	if (r == 0 && (v->gone.n > 0 || v->opt->points))
		drop_unused(v, first);
	if (v->report->ndamaged > 1)
		qsort(v->report->damaged, v->report->ndamaged, sizeof(*v->report->damaged),
		      compare_damage);
	return r;
}

/* ---- records ---- */

int verify_unrecorded(struct verifier *v, const char *so, const struct error *why,
		      struct error *err)
{
	free(v->report->unrecorded);
	v->report->unrecorded = NULL;
	return text_format(&v->report->unrecorded, err, "%s: %s", so, why->text);
}

/* What of the segment is lost and not yet known to be. */
static bool newly_lost(const struct vseg *s, const struct lost *known, uint64_t *ret)
{
	const uint64_t *old = lost_bits(known, &s->sid, s->type, s->index);
	bool any = false;

	for (uint32_t i = 0; i < s->nwords; i++) {
		ret[i] = s->all_bad ? UINT64_MAX : s->bad ? s->bad[i] : 0;
		any |= (ret[i] & ~(old ? old[i] : 0)) != 0;
	}
	return any;
}

static int put_records(struct verifier *v, struct error *err)
{
	uint64_t bits[MAP_SLOTS / 64];
	struct lost known = {0};
	int r = lost_load(v->repo, &known, err);

	for (size_t i = 0; r == 0 && i < v->cap; i++) {
		const struct vseg *s = v->seg[i];

		if (s && s->needed && newly_lost(s, &known, bits))
			r = lost_put(v->repo, &s->sid, s->type, s->index, bits, err);
	}
	lost_done(&known);
	return r;
}

static int record(struct verifier *v, struct error *err)
{
	struct error one = {0};
	int r = v->damage ? put_records(v, &one) : 0;

	return r < 0 ? verify_unrecorded(v, "the next backup does not know of the damage", &one,
					 err)
		     : 0;
}

/* Those that were named are here already. */
static int mark_named(struct verifier *v, struct error *err)
{
	const struct point_list *l = v->opt->points;
	int r = 0;

	v->report->points = v->report->objects = l->n;
	for (size_t i = 0; r == 0 && i < l->n; i++)
		r = id_set_add(&v->counted, &l->v[i]->id, err);
	id_set_sort(&v->counted);
	return r ? r : for_all_disks(v, verify_mark, err);
}

static void count_segments(struct verifier *v)
{
	for (size_t i = 0; i < v->cap; i++) {
		if (!v->seg[i] || !v->seg[i]->needed)
			continue;
		v->report->objects++;
		v->report->bytes += v->seg[i]->checked;
	}
}

static int run_phases(struct verifier *v, struct error *err)
{
	int r = v->opt->points ? mark_named(v, err) : mark_points(v, err);

	r = r || v->opt->points ? r : verify_lost_points(v, err);
	r = r ? r : check_tables(v, err);
	if (r == 0 && v->opt->read_data)
		r = for_all_disks(v, verify_map, err);
	if (r == 0 && v->opt->scrub)
		r = verify_scrub(v, err);
	if (r == 0 && v->opt->read_data)
		r = verify_read(v, err);
	if (r == 0 && v->code == 0 && v->opt->tick)
		v->code = v->opt->tick(v->opt->data, v->total, v->total, &v->err);
	count_segments(v);
	r = r ? r : report_damage(v, err);
	return r == 0 && v->opt->record ? record(v, err) : r;
}

int verifier_run(struct verifier *v, struct error *err)
{
	int r = run_phases(v, err);

	return v->code < 0 ? error_pass(err, v->code, &v->err) : r;
}

void verifier_done(struct verifier *v)
{
	for (size_t i = 0; i < v->cap; i++)
		vseg_free(v->seg[i]);
	free(v->seg);
	name_list_done(&v->names);
	id_set_done(&v->counted);
	id_set_done(&v->gone);
}

int repo_verify(struct repo *repo, const struct repo_verify_options *opt,
		struct repo_verify_report *ret, struct error *err)
{
	struct repo_verify_report report = {0};
	struct verifier v = {.repo = repo, .opt = opt, .report = &report};
	int r = opt->read_data ? key_check_reads_all(repo, err) : 0;

	r = r ? r : verifier_run(&v, err);
	verifier_done(&v);
	if (r < 0)
		repo_verify_report_done(&report);
	else
		*ret = report;
	return r;
}
