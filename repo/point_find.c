/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The POINT of the command line.  Names of objects tell ids, and which points are of one guest
 * in which order; so most meanings need few manifests, and only a point's name alone needs all.
 */
#include "points.h"

#include <stdio.h>
#include <string.h>

#define MIN_ID_DIGITS  4
#define MAX_CANDIDATES 8

struct find {
	struct points_reader reader;
	struct name_list names; /* valid points of all guests, by guest and order */
	const char *spec;
	const char *name;  /* looked for */
	struct point *hit; /* the first */
	unsigned hits;
	struct point *best; /* the newest that is old enough */
	uint64_t until_ms;
	bool doubt; /* a damaged one may be that */
	size_t damaged;
	struct error why; /* of the last damaged one */
	char candidates[512];
};

/* Takes p over. */
static void hit(struct find *f, struct point *p)
{
	size_t used = strlen(f->candidates);

	if (f->hits++ < MAX_CANDIDATES)
		(void)snprintf(f->candidates + used, sizeof(f->candidates) - used,
			       "%s%.12s (%s@%s)", used ? ", " : "", id_text(&p->id).s, p->guest,
			       p->name);
	if (f->hit)
		point_free(p);
	else
		f->hit = p;
}

static bool is_hex(const char *s)
{
	return *s && s[strspn(s, "0123456789abcdef")] == 0;
}

static void note_damage(struct find *f, const struct error *why)
{
	log_debug("%s", why->text);
	f->damaged++;
	f->why = *why;
}

/* ---- by id ---- */

static int hit_each(struct points_reader *r, const struct point_name *name, struct point *p,
		    const struct error *why, struct error *err)
{
	struct find *f = container_of(r, struct find, reader);

	(void)name;
	(void)err;
	if (p)
		hit(f, p);
	else
		note_damage(f, why);
	return 0;
}

/* Among v.  A damaged one that was meant is an error of its own. */
static int by_id(struct find *f, const struct point_name *v, size_t n, const char *spec,
		 struct error *err)
{
	auto_free struct point_name *meant = NULL;
	size_t len = strlen(spec), count = 0;
	int r;

	if (len < MIN_ID_DIGITS || len > TM_ID_HEX || !is_hex(spec))
		return 0;
	meant = calloc(n ? n : 1, sizeof(*meant));
	if (!meant)
		return error_nomem(err);
	for (size_t i = 0; i < n; i++)
		if (strncmp(id_text(&v[i].session).s, spec, len) == 0)
			meant[count++] = v[i];
	f->reader.each = hit_each;
	r = points_read(&f->reader, meant, count, false, err);
	if (r == 0 && f->hits == 0 && f->damaged > 0)
		return error_pass(err, f->why.code, &f->why);
	return r;
}

/* ---- the newest ---- */

/* Of each guest's newest point the youngest. */
static int take_youngest(struct points_reader *r, const struct point_name *name, struct point *p,
			 const struct error *why, struct error *err)
{
	struct find *f = container_of(r, struct find, reader);

	(void)name;
	if (!p) {
		(void)error_pass(err, why->code, why);
		error_append(err, "; it is the newest of its guest: to have an older one, name it");
		return why->code;
	}
	if (f->best && f->best->created_ms > p->created_ms) {
		point_free(p);
		return 0;
	}
	point_free(f->best);
	f->best = p;
	return 0;
}

/* The number of names from v on that are of one guest. */
static size_t same_guest(const struct find *f, const struct point_name *v)
{
	const struct point_name *end = f->names.v + f->names.n;
	size_t n = 0;

	while (v + n < end && id_equal(&v[n].source, &v->source))
		n++;
	return n;
}

static void hit_best(struct find *f)
{
	if (f->best)
		hit(f, tm_steal(f->best));
}

static int newest_of_all(struct find *f, struct error *err)
{
	auto_free struct point_name *v = calloc(f->names.n ? f->names.n : 1, sizeof(*v));
	size_t count = 0;
	int r;

	if (!v)
		return error_nomem(err);
	for (size_t at = 0; at < f->names.n;) {
		at += same_guest(f, f->names.v + at);
		v[count++] = f->names.v[at - 1];
	}
	f->reader.each = take_youngest;
	r = points_read(&f->reader, v, count, false, err);
	if (r == 0)
		hit_best(f);
	return r;
}

/* v: all of one guest. */
static int newest_of(struct find *f, const struct point_name *v, size_t n, struct error *err)
{
	f->reader.each = take_youngest;
	return n ? points_read(&f->reader, v + n - 1, 1, false, err) : 0;
}

static int names_of_guest(const struct find *f, const char *guest, size_t len,
			  const struct point_name **ret, size_t *ret_n, struct error *err)
{
	auto_free char *copy = strndup(guest, len);
	struct tm_id source;
	int r;

	*ret = NULL;
	*ret_n = 0;
	if (!copy)
		return error_nomem(err);
	r = source_id(&f->reader.repo->keys, copy, &source, err);
	for (size_t at = 0; r == 0 && *ret_n == 0 && at < f->names.n; at++) {
		if (id_equal(&f->names.v[at].source, &source)) {
			*ret = f->names.v + at;
			*ret_n = same_guest(f, *ret);
		}
	}
	return r;
}

/* ---- by name or time ---- */

/* From the newest on: the first that is old enough is the one for a time. */
static int by_name_each(struct points_reader *r, const struct point_name *name, struct point *p,
			const struct error *why, struct error *err)
{
	struct find *f = container_of(r, struct find, reader);

	(void)err;
	if (!p) {
		note_damage(f, why);
		if (!f->best && id_time_ms(&name->session) <= f->until_ms)
			f->doubt = true;
	} else if (strcmp(p->name, f->name) == 0) {
		hit(f, p);
	} else if (!f->best && p->created_ms <= f->until_ms) {
		f->best = p;
	} else {
		point_free(p);
	}
	return 0;
}

static int by_name(struct find *f, const struct point_name *v, size_t n, const char *name,
		   uint64_t until_ms, struct error *err)
{
	int r;

	f->name = name;
	f->until_ms = until_ms;
	f->reader.each = by_name_each;
	r = points_read(&f->reader, v, n, true, err);
	if (r == 0 && f->hits == 0 && f->doubt) {
		r = error_pass(err, f->why.code, &f->why);
		error_append(err,
			     "; it may be the one for that time: to have another one, name it");
	}
	if (r < 0 || f->hits > 0) {
		point_free(f->best);
		f->best = NULL;
	}
	return r;
}

/* What is behind GUEST@. */
static int by_guest_part(struct find *f, const char *guest, size_t guest_len, const char *part,
			 struct error *err)
{
	const struct point_name *v;
	uint64_t until = 0;
	size_t n;
	int r = names_of_guest(f, guest, guest_len, &v, &n, err);

	if (r < 0)
		return r;
	if (strcmp(part, "latest") == 0) {
		r = newest_of(f, v, n, err);
	} else {
		bool is_time = time_parse(part, &until, NULL) == 0;

		r = by_name(f, v, n, part, is_time ? until : 0, err);
	}
	hit_best(f);
	return r == 0 && f->hits == 0 ? by_id(f, v, n, part, err) : r;
}

/* Both, so that a point called like a guest is ambiguous and not silently the one meant. */
static int by_name_or_guest(struct find *f, const char *spec, struct error *err)
{
	const struct point_name *v;
	size_t n;
	int r = 0;

	if (!strchr(spec, '@')) /* no point's name has one */
		r = by_name(f, f->names.v, f->names.n, spec, 0, err);
	point_free(f->best);
	f->best = NULL;
	r = r ? r : names_of_guest(f, spec, strlen(spec), &v, &n, err);
	r = r ? r : newest_of(f, v, n, err);
	if (f->hit && f->best && id_equal(&f->hit->id, &f->best->id)) {
		point_free(f->best);
		f->best = NULL;
	}
	hit_best(f);
	return r;
}

/* One meaning after the other; the first that fits any point is taken. */
static int resolve(struct find *f, const char *spec, struct error *err)
{
	const char *at = strrchr(spec, '@');
	int r;

	if (strcmp(spec, "latest") == 0)
		return newest_of_all(f, err);
	r = by_id(f, f->names.v, f->names.n, spec, err);
	if (r == 0 && f->hits == 0)
		r = by_name_or_guest(f, spec, err);
	if (r == 0 && f->hits == 0 && at && at > spec)
		r = by_guest_part(f, spec, (size_t)(at - spec), at + 1, err);
	return r;
}

static int judge(struct find *f, struct error *err)
{
	if (f->hits > 1)
		return error_set(err, TM_E_USAGE, "'%s' can be %u points: %s%s", f->spec, f->hits,
				 f->candidates, f->hits > MAX_CANDIDATES ? ", …" : "");
	if (f->hits == 1)
		return 0;
	(void)error_set(err, TM_E_NOTFOUND, "no point '%s'", f->spec);
	if (f->names.n == 0)
		error_append(err, "; domain '%s' holds no points yet",
			     repo_domain_name(f->reader.repo));
	if (f->damaged)
		error_append(err, "; %zu points cannot be read, see 'tidemark verify'", f->damaged);
	return TM_E_NOTFOUND;
}

/* As in a listing: it lasts, where that is possible. */
static void sync_found(struct find *f)
{
	struct error err = {0};
	size_t i = 0;

	while (i < f->names.n && !id_equal(&f->names.v[i].session, &f->hit->id))
		i++;
	if (i < f->names.n && points_sync(f->reader.repo, &f->names.v[i].source, &err) < 0)
		log_debug("%s", err.text);
}

static int set_protected(struct repo *repo, struct point *p, struct error *err)
{
	struct id_set held = {0};
	int r = points_held(repo, &held, err);

	p->is_protected = id_set_has(&held, &p->id);
	id_set_done(&held);
	return r;
}

int repo_point_find(struct repo *repo, const char *spec, struct point **ret, struct error *err)
{
	struct find f = {.reader.repo = repo, .spec = spec};
	int r = points_names(repo, NULL, &f.names, err);

	r = r ? r : resolve(&f, spec, err);
	r = r ? r : judge(&f, err);
	r = r ? r : set_protected(repo, f.hit, err);
	if (r == 0)
		sync_found(&f);
	if (r == 0)
		*ret = tm_steal(f.hit);
	point_free(f.hit);
	point_free(f.best);
	name_list_done(&f.names);
	return r;
}
