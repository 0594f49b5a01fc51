/* SPDX-License-Identifier: Apache-2.0 */
/* stats: what the repository, its guests and its points cost. */
#include "agent.h"

#include <stdio.h>
#include <string.h>

#define DAY_MS UINT64_C(86400000)

/* Sums over points. */
struct sums {
	uint64_t points;
	struct repo_point_stats of;
	uint64_t grown[3]; /* stored in the last day, week, month before the newest point */
};

static const struct {
	const char *name;
	uint64_t ms;
} spans[] = {{"day", DAY_MS}, {"week", 7 * DAY_MS}, {"month", 30 * DAY_MS}};

static void add_point(struct sums *s, const struct point *p, const struct repo_point_stats *of,
		      uint64_t newest_ms)
{
	s->points++;
	s->of.raw_bytes += of->raw_bytes;
	s->of.data_bytes += of->data_bytes;
	s->of.new_bytes += of->new_bytes;
	s->of.stored_bytes += of->stored_bytes;
	s->of.unique_bytes += of->unique_bytes;
	for (size_t i = 0; i < ARRAY_SIZE(spans); i++)
		if (newest_ms - p->created_ms < spans[i].ms)
			s->grown[i] += of->stored_bytes;
}

/* Over all points, or those of one guest. */
static struct sums sum_up(const struct repo_stats *st, const char *guest)
{
	struct sums s = {0};
	uint64_t newest = 0;

	for (size_t i = 0; i < st->points.n; i++)
		newest = max_u64(newest, st->points.v[i]->created_ms);
	for (size_t i = 0; i < st->points.n; i++)
		if (!guest || strcmp(st->points.v[i]->guest, guest) == 0)
			add_point(&s, st->points.v[i], &st->point[i], newest);
	return s;
}

static double ratio(uint64_t a, uint64_t b)
{
	return b ? (double)a / (double)b : 1;
}

/* Whether a guest's points come up for the first time. */
static bool first_of_guest(const struct repo_stats *st, size_t i)
{
	for (size_t k = 0; k < i; k++)
		if (strcmp(st->points.v[k]->guest, st->points.v[i]->guest) == 0)
			return false;
	return true;
}

/* ---- JSON ---- */

static json_t *point_stats_json(const struct repo_point_stats *s)
{
	return json_pack("{s:I, s:I, s:I, s:I, s:I}", "raw_bytes", (json_int_t)s->raw_bytes,
			 "data_bytes", (json_int_t)s->data_bytes, "new_bytes",
			 (json_int_t)s->new_bytes, "stored_bytes", (json_int_t)s->stored_bytes,
			 "unique_bytes", (json_int_t)s->unique_bytes);
}

static json_t *sums_json(const struct sums *s)
{
	json_t *o = point_stats_json(&s->of), *grown = json_object();

	for (size_t i = 0; i < ARRAY_SIZE(spans); i++)
		(void)json_object_set_new(grown, spans[i].name,
					  json_integer((json_int_t)s->grown[i]));
	if (!o || json_object_set_new(o, "points", json_integer((json_int_t)s->points)) ||
	    json_object_set_new(o, "compression",
				json_real(ratio(s->of.new_bytes, s->of.stored_bytes))) ||
	    json_object_set(o, "growth", grown)) {
		json_decref(o);
		o = NULL;
	}
	json_decref(grown);
	return o;
}

/* Takes o, which may be NULL. */
static int append(json_t *array, json_t *o, const char *name, const char *value, struct error *err)
{
	if (!o || json_object_set_new(o, name, json_text(value))) {
		json_decref(o);
		return error_nomem(err);
	}
	return json_array_append_new(array, o) ? error_nomem(err) : 0;
}

static int lists_json(const struct repo_stats *st, json_t *guests, json_t *points,
		      struct error *err)
{
	int r = 0;

	for (size_t i = 0; r == 0 && i < st->points.n; i++) {
		const struct point *p = st->points.v[i];
		json_t *o = point_stats_json(&st->point[i]);

		if (first_of_guest(st, i)) {
			struct sums s = sum_up(st, p->guest);

			r = append(guests, sums_json(&s), "guest", p->guest, err);
		}
		if (o && json_object_set_new(o, "guest", json_text(p->guest))) {
			json_decref(o);
			o = NULL;
		}
		r = r ? r : append(points, o, "point", id_text(&p->id).s, err);
	}
	return r;
}

static int print_stats_json(struct agent *a, const struct repo_stats *st, struct error *err)
{
	struct sums all = sum_up(st, NULL);
	json_t *guests = json_array(), *points = json_array(), *o = sums_json(&all);
	int r = lists_json(st, guests, points, err);

	if (r == 0 &&
	    (!o ||
	     json_object_set_new(o, "dedup",
				 json_real(ratio(all.of.data_bytes, st->cluster_bytes))) ||
	     json_object_set_new(o, "cluster_bytes", json_integer((json_int_t)st->cluster_bytes)) ||
	     json_object_set_new(o, "objects", json_integer((json_int_t)st->objects)) ||
	     json_object_set_new(o, "object_bytes", json_integer((json_int_t)st->object_bytes)) ||
	     json_object_set(o, "guests", guests) || json_object_set(o, "points", points) ||
	     json_object_set_new(o, "warnings", take_warnings(a))))
		r = error_nomem(err);
	json_decref(guests);
	json_decref(points);
	if (r) {
		json_decref(o);
		return r;
	}
	return print_json(o, err);
}

/* ---- tables ---- */

static void print_row(const char *label, const struct repo_point_stats *s)
{
	char raw[SIZE_TEXT_MAX], data[SIZE_TEXT_MAX], stored[SIZE_TEXT_MAX], unique[SIZE_TEXT_MAX];

	size_format(s->raw_bytes, raw);
	size_format(s->data_bytes, data);
	size_format(s->stored_bytes, stored);
	size_format(s->unique_bytes, unique);
	(void)printf("%s %11s %11s %11s %11s\n", shown_column(label, 32).s, raw, data, stored,
		     unique);
}

static void print_head(const char *what)
{
	(void)printf("%-32s %11s %11s %11s %11s\n", what, "RAW", "DATA", "STORED", "UNIQUE");
}

static void print_totals(const struct repo_stats *st)
{
	struct sums all = sum_up(st, NULL);
	char size[SIZE_TEXT_MAX], data[SIZE_TEXT_MAX];

	size_format(st->object_bytes, size);
	size_format(all.of.data_bytes, data);
	(void)printf("%s in %llu objects hold %s of %llu points: %.1f:1 by deduplication, %.1f:1 "
		     "by compression\n",
		     size, (unsigned long long)st->objects, data, (unsigned long long)all.points,
		     ratio(all.of.data_bytes, st->cluster_bytes),
		     ratio(all.of.new_bytes, all.of.stored_bytes));
	(void)printf("stored in the last");
	for (size_t i = 0; i < ARRAY_SIZE(spans); i++) {
		size_format(all.grown[i], size);
		(void)printf("%s %s: %s", i ? "," : "", spans[i].name, size);
	}
	(void)printf("\n");
}

static void print_stats(const struct repo_stats *st)
{
	print_head("POINT");
	for (size_t i = 0; i < st->points.n; i++) {
		char label[64];

		(void)snprintf(label, sizeof(label), "%.12s %.18s", id_text(&st->points.v[i]->id).s,
			       st->points.v[i]->guest);
		print_row(label, &st->point[i]);
	}
	(void)printf("\n");
	print_head("GUEST");
	for (size_t i = 0; i < st->points.n; i++) {
		struct sums s;

		if (!first_of_guest(st, i))
			continue;
		s = sum_up(st, st->points.v[i]->guest);
		print_row(st->points.v[i]->guest, &s.of);
	}
	(void)printf("\n");
	print_totals(st);
}

int cmd_stats(struct agent *a, enum exit_status *status, struct error *err)
{
	struct repo_stats st = {0};
	int r = agent_open_repo(a, err);

	(void)status;
	r = r ? r : repo_stats(a->repo, &st, err);
	if (r)
		return r;
	if (st.damaged)
		say_warning(a,
			    "%llu objects could not be read and are not counted; 'tidemark verify' "
			    "tells more",
			    (unsigned long long)st.damaged);
	if (a->opt.json)
		r = print_stats_json(a, &st, err);
	else
		print_stats(&st);
	repo_stats_done(&st);
	return r;
}
