/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Points that are lost whole.  A manifest that is gone leaves no trace, but others may use what its
 * session stored: a session that valid points use and that has neither manifest nor tombstone was
 * a point once.  Manifests are listed before tombstones: a manifest that was removed in order had
 * its tombstone before, and keeps it as long as a point uses the session (format.md 11.3, J7).
 */
#include "verify.h"

#include <string.h>

#define ANY "*/*-" /* instead of source and number, which nobody knows any more */

bool verify_is_lost_point(const struct repo *repo, const char *object, struct tm_id *ret)
{
	char prefix[KEY_MAX];
	size_t len;

	name_source_prefix(repo, NULL, prefix);
	len = strlen(prefix);
	return strncmp(object, prefix, len) == 0 && strncmp(object + len, ANY, strlen(ANY)) == 0 &&
	       id_parse(object + len + strlen(ANY), ret);
}

static int say_lost(struct verifier *v, const struct tm_id *sid, struct error *err)
{
	auto_free char *object = NULL;
	char prefix[KEY_MAX];
	int r;

	name_source_prefix(v->repo, NULL, prefix);
	r = text_format(&object, err, "%s" ANY "%s", prefix, id_text(sid).s);
	return r ? r
		 : damage_add(v->report, object,
			      "it is gone, and with it this point; others use what it stored, and "
			      "are whole",
			      err);
}

/* Sessions whose segments are used, each at least once. */
static int used_sessions(const struct verifier *v, struct id_set *ret, struct error *err)
{
	int r = 0;

	for (size_t i = 0; r == 0 && i < v->cap; i++)
		if (v->seg[i] && !(ret->n > 0 && id_equal(&ret->v[ret->n - 1], &v->seg[i]->sid)))
			r = id_set_add(ret, &v->seg[i]->sid, err);
	id_set_sort(ret);
	return r;
}

/* Sessions that are accounted for: by a manifest, or by the tombstone of one. */
static int known_sessions(struct verifier *v, struct id_set *ret, struct error *err)
{
	struct name_list names = {0};
	int r = points_manifests(v->repo, &names, err);

	for (size_t i = 0; r == 0 && i < names.n; i++)
		r = id_set_add(ret, &names.v[i].session, err);
	name_list_done(&names);
	return r ? r : points_flagged(v->repo, FLAG_TOMBSTONE, ret, err);
}

int verify_lost_points(struct verifier *v, struct error *err)
{
	struct id_set used = {0}, known = {0};
	size_t n = 0;
	int r = used_sessions(v, &used, err);

	r = r ? r : known_sessions(v, &known, err);
	for (size_t i = 0; r == 0 && i < used.n; i++)
		if (!id_set_has(&known, &used.v[i]) &&
		    (n == 0 || !id_equal(&used.v[n - 1], &used.v[i])))
			used.v[n++] = used.v[i];
	/* Where points were deleted meanwhile, their parents may be, too: the next run knows. */
	if (r == 0 && n > 0)
		r = verify_find_gone(v, err);
	for (size_t i = 0; r == 0 && v->gone.n == 0 && i < n; i++)
		r = say_lost(v, &used.v[i], err);
	id_set_done(&used);
	id_set_done(&known);
	return r;
}
