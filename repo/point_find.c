/* SPDX-License-Identifier: Apache-2.0 */
/* The POINT of the command line. */
#include "points.h"

#include <stdio.h>
#include <string.h>

#define MIN_ID_DIGITS  4
#define MAX_CANDIDATES 8

struct find {
	const struct point_list *l;
	const struct point *hit;
	unsigned hits;
	char candidates[512];
};

static void hit(struct find *f, const struct point *p)
{
	size_t used = strlen(f->candidates);

	if (f->hit == p)
		return;
	f->hit = p;
	if (f->hits++ < MAX_CANDIDATES)
		(void)snprintf(f->candidates + used, sizeof(f->candidates) - used,
			       "%s%.12s (%s@%s)", used ? ", " : "", id_text(&p->id).s, p->guest,
			       p->name);
}

static bool is_hex(const char *s)
{
	return *s && s[strspn(s, "0123456789abcdef")] == 0;
}

static void by_id(struct find *f, const char *spec)
{
	size_t len = strlen(spec);

	if (len < MIN_ID_DIGITS || len > TM_ID_HEX || !is_hex(spec))
		return;
	for (size_t i = 0; i < f->l->n; i++)
		if (strncmp(id_text(&f->l->v[i]->id).s, spec, len) == 0)
			hit(f, f->l->v[i]);
}

static void by_name(struct find *f, const char *guest, size_t guest_len, const char *name)
{
	for (size_t i = 0; i < f->l->n; i++) {
		const struct point *p = f->l->v[i];

		if (guest &&
		    (strlen(p->guest) != guest_len || strncmp(p->guest, guest, guest_len) != 0))
			continue;
		if (strcmp(p->name, name) == 0)
			hit(f, p);
	}
}

/* The newest of a guest (NULL: of all) made at or before a time. */
static void by_time(struct find *f, const char *guest, size_t guest_len, uint64_t until_ms)
{
	const struct point *best = NULL;

	for (size_t i = 0; i < f->l->n; i++) {
		const struct point *p = f->l->v[i];

		if (guest &&
		    (strlen(p->guest) != guest_len || strncmp(p->guest, guest, guest_len) != 0))
			continue;
		/* the list is in order of age; of one guest the later one is the newer one */
		if (p->created_ms <= until_ms &&
		    (guest || !best || p->created_ms >= best->created_ms))
			best = p;
	}
	if (best)
		hit(f, best);
}

static void by_guest_part(struct find *f, const char *guest, size_t guest_len, const char *part)
{
	uint64_t until;

	if (strcmp(part, "latest") == 0) {
		by_time(f, guest, guest_len, UINT64_MAX);
		return;
	}
	by_name(f, guest, guest_len, part);
	if (f->hits == 0 && time_parse(part, &until, NULL) == 0)
		by_time(f, guest, guest_len, until);
	if (f->hits == 0)
		by_id(f, part);
}

/* One meaning after the other; the first that fits any point is taken. */
/* Both, so that a point called like a guest is ambiguous and not silently the one meant. */
static void by_name_or_guest(struct find *f, const char *spec)
{
	by_name(f, NULL, 0, spec);
	by_time(f, spec, strlen(spec), UINT64_MAX);
}

static void resolve(struct find *f, const char *spec)
{
	const char *at = strrchr(spec, '@');

	if (strcmp(spec, "latest") == 0) {
		by_time(f, NULL, 0, UINT64_MAX);
		return;
	}
	by_id(f, spec);
	if (f->hits == 0)
		by_name_or_guest(f, spec);
	if (f->hits == 0 && at && at > spec)
		by_guest_part(f, spec, (size_t)(at - spec), at + 1);
}

int repo_point_find(struct repo *repo, const char *spec, struct point **ret, struct error *err)
{
	auto_point_list struct point_list l = {0};
	struct find f = {.l = &l};
	size_t damaged;
	int r = repo_points(repo, NULL, &l, &damaged, err);

	if (r < 0)
		return r;
	resolve(&f, spec);
	if (f.hits == 0) {
		r = error_set(err, TM_E_NOTFOUND, "no point '%s'", spec);
		if (l.n == 0)
			error_append(err, "; the repository holds no points yet");
		if (damaged)
			error_append(err, "; %zu points cannot be read, see 'tidemark verify'",
				     damaged);
		return r;
	}
	if (f.hits > 1)
		return error_set(err, TM_E_USAGE, "'%s' can be %u points: %s%s", spec, f.hits,
				 f.candidates, f.hits > MAX_CANDIDATES ? ", …" : "");
	for (size_t i = 0; i < l.n; i++)
		if (l.v[i] == f.hit)
			*ret = tm_steal(l.v[i]);
	return 0;
}
