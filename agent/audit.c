/* SPDX-License-Identifier: Apache-2.0 */
#include "audit.h"

#include <stdio.h>

static int read_sample(struct backup *b, const struct snapshot_disk *sd,
		       const struct extents *sample, struct repo_audit *a, struct point_disk *pd,
		       struct error *err)
{
	struct reader_counts counts = {0};
	int r = backup_read(b, sd, SOURCE_MAP_DIRTY, sample, repo_audit_sink(a), &counts, err);

	pd->read_bytes += counts.read_bytes;
	return r;
}

/* The bitmap cannot help it when the repository cannot be read. */
static int not_done(struct backup *b, const struct snapshot_disk *sd, const struct error *e)
{
	say_warning(b->agent, "disk %s: its bitmap is not audited: %s", sd->name, e->text);
	return 0;
}

static void take_counts(struct point_disk *pd, const struct repo_audit_counts *c)
{
	pd->audit.data = c->data;
	pd->audit.empty = c->empty;
	pd->audit.differed = c->differed;
}

static int audit_sample(struct backup *b, const struct snapshot_disk *sd, struct repo_audit *a,
			struct point_disk *pd, struct error *err)
{
	auto_extents struct extents sample = {0};
	struct repo_audit_counts c = {0};
	struct error e = {0};
	int r;

	for (;;) {
		if (repo_audit_choose(a, &sample, &e))
			return not_done(b, sd, &e);
		if (!sample.n)
			break;
		r = read_sample(b, sd, &sample, a, pd, err);
		if (r)
			return r;
	}
	if (repo_audit_counts(a, &c, &e))
		return not_done(b, sd, &e);
	take_counts(pd, &c);
	return 0;
}

/* ---- the end ---- */

/* It cannot be told whether bits were lost: what is not proved is read. */
static int not_proved(struct backup *b, const struct snapshot_disk *sd, const struct error *e)
{
	say_warning(b->agent,
		    "disk %s: whether it was made smaller and larger again cannot be told: %s",
		    sd->name, e->text);
	return 0;
}

struct reaching {
	struct backup *b;
	const struct snapshot_disk *sd;
	bool failed; /* the disk, not the repository */
};

static int reach_clean(void *data, const struct extents *part, uint64_t *ret_end, struct error *err)
{
	struct reaching *to = data;
	int r = backup_reach_clean(to->b, to->sd, part, ret_end, err);

	to->failed = r != 0;
	return r;
}

static int prove_end(struct backup *b, const struct snapshot_disk *sd, struct repo_audit *a,
		     struct point_disk *pd, bool *ret_proved, struct error *err)
{
	auto_extents struct extents highest = {0};
	struct reaching to = {.b = b, .sd = sd};
	struct repo_audit_counts before, c;
	struct error e = {0};
	int r = repo_audit_counts(a, &before, err);

	if (r)
		return r;
	r = repo_audit_highest(a, reach_clean, &to, &highest, &e);
	if (r == TM_E_NOTFOUND && !to.failed)
		return not_proved(b, sd, &e);
	if (r)
		return error_pass(err, r, &e);
	*ret_proved = !highest.n;
	if (!highest.n)
		return 0;
	r = read_sample(b, sd, &highest, a, pd, err);
	if (!r)
		r = repo_audit_counts(a, &c, err);
	if (r)
		return r;
	*ret_proved = c.data > before.data;
	/* Not chosen by chance: counted, it would make the published bound a wrong one. */
	if (c.differed)
		take_counts(pd, &c);
	return 0;
}

/* ---- both ---- */

static int tell_wrong(struct backup *b, const struct snapshot_disk *sd, const struct repo_audit *a,
		      struct error *err)
{
	struct repo_audit_counts c;
	uint64_t all;
	int r = repo_audit_counts(a, &c, err);

	if (r)
		return r;
	all = c.data + c.empty;
	say_warning(b->agent,
		    "disk %s: ITS BITMAP IS WRONG: %llu of %llu clusters that it calls "
		    "clean have changed, the first at offset %llu: the image was changed "
		    "behind QEMU's back, or made smaller and larger again. The disk is read "
		    "whole and compared now, so that this point is right; points of this "
		    "disk since it was last read whole may lack such changes",
		    sd->name, (unsigned long long)c.differed, (unsigned long long)all,
		    (unsigned long long)c.first);
	return 0;
}

int audit_disk(struct backup *b, const struct snapshot_disk *sd, const struct point_disk *parent,
	       struct point_disk *pd, bool *ret_proved, struct error *err)
{
	auto_clean(repo_audit_free) struct repo_audit *a = NULL;
	struct repo_audit_options opt = {
		.size = sd->size,
		.share = b->agent->opt.audit == AUDIT_FEW ? 0 : b->agent->opt.audit,
		.pool = b->agent->pool,
	};
	int r = random_bytes(&opt.seed, sizeof(opt.seed), err);

	*ret_proved = false;
	if (!r)
		r = repo_audit_begin(b->agent->repo, parent, &opt, &a, err);
	if (r)
		return r;
	b->phase = "audit";
	if (b->agent->opt.audit)
		r = audit_sample(b, sd, a, pd, err);
	if (!r && !pd->audit.differed)
		r = prove_end(b, sd, a, pd, ret_proved, err);
	if (!r && pd->audit.differed)
		r = tell_wrong(b, sd, a, err);
	b->phase = "read";
	return r;
}

/* ---- what it is worth ---- */

double audit_bound(uint64_t n)
{
	double percent = n ? 300.0 / (double)n : -1; /* the rule of three */

	return percent > 100 ? 100 : percent;
}

static void print_bound(const char *what, uint64_t n)
{
	if (n)
		(void)printf(
			"  bound         at most %.2g %% of the %s that its bitmaps call clean "
			"have changed (95 %%)\n",
			audit_bound(n), what);
}

void audit_print(const struct disk_audit *a)
{
	char when[TIME_TEXT_MAX];

	if (!a->whole_ms)
		return;
	time_format_local(a->whole_ms, when);
	(void)printf("  read whole    %s\n", when);
	if (!a->all_data && !a->all_empty)
		return;
	(void)printf("  audited       %llu clusters with data and %llu empty ones since then, none "
		     "differed\n",
		     (unsigned long long)a->all_data, (unsigned long long)a->all_empty);
	print_bound("clusters with data", a->all_data);
	print_bound("empty ones", a->all_empty);
}

static json_t *bound_json(uint64_t n)
{
	return n ? json_real(audit_bound(n)) : json_null();
}

json_t *audit_json(const struct disk_audit *a)
{
	char since[TIME_TEXT_MAX];

	if (!a->whole_ms)
		return json_null();
	time_format_utc(a->whole_ms, since);
	return json_pack("{s:I, s:I, s:I, s:s, s:I, s:I, s:o, s:o}", "data_clusters",
			 (json_int_t)a->data, "empty_clusters", (json_int_t)a->empty, "differed",
			 (json_int_t)a->differed, "whole", since, "data_clusters_since_whole",
			 (json_int_t)a->all_data, "empty_clusters_since_whole",
			 (json_int_t)a->all_empty, "bound_percent_data", bound_json(a->all_data),
			 "bound_percent_empty", bound_json(a->all_empty));
}
