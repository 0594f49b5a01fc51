/* SPDX-License-Identifier: Apache-2.0 */
/* restore: disks of a point into files, devices or NBD servers. */
#include "agent.h"
#include "target_file.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define READ_PIECES 32 /* buffers of PIECE_CLUSTERS clusters: 32 MiB */

/* A disk that is to be restored. */
struct goal {
	const struct point_disk *disk;
	char *to;    /* as the user is told */
	char *place; /* what that is; no two goals have the same */
};

struct restore {
	struct agent *agent;
	struct point *point;
	bool into_dir;
	struct goal *goals;
	size_t ngoals;
	json_t *disks;              /* results */
	const char *disk;           /* being written, for progress */
	struct target_file *target; /* of it */
	struct loop_watch watch;
};

static bool chosen(const struct options *opt, const char *disk)
{
	if (!opt->disks.n)
		return true;
	for (size_t i = 0; i < opt->disks.n; i++) {
		if (strcmp(opt->disks.v[i], disk) == 0)
			return true;
	}
	return false;
}

/* Every --disk must name a disk of the point. */
static int check_names(const struct restore *rs, size_t *ret_chosen, struct error *err)
{
	const struct options *opt = &rs->agent->opt;
	const struct point *p = rs->point;
	int r;

	*ret_chosen = 0;
	for (size_t k = 0; k < p->ndisks; k++)
		*ret_chosen += chosen(opt, p->disks[k].name);
	for (size_t i = 0; i < opt->disks.n; i++) {
		size_t k = 0;

		while (k < p->ndisks && strcmp(p->disks[k].name, opt->disks.v[i]) != 0)
			k++;
		if (k < p->ndisks)
			continue;
		r = error_set(err, TM_E_USAGE, "the point has no disk '%s'; it has",
			      opt->disks.v[i]);
		for (k = 0; k < p->ndisks; k++)
			error_append(err, "%s %s", k ? "," : "", p->disks[k].name);
		return r;
	}
	return 0;
}

/* A directory when it is one, ends like one, or has to hold several disks. */
static int choose_place(struct restore *rs, size_t ndisks, struct error *err)
{
	const char *to = rs->agent->opt.to;
	size_t len = strlen(to);
	struct stat st;

	if (target_file_is_nbd(to)) {
		if (ndisks > 1)
			return error_set(err, TM_E_USAGE,
					 "%s takes one disk, the point has %zu; choose with --disk",
					 to, ndisks);
		return 0;
	}
	if (stat(to, &st) == 0) {
		rs->into_dir = S_ISDIR(st.st_mode);
		if (!rs->into_dir && ndisks > 1)
			return error_set(err, TM_E_USAGE,
					 "%s is one file, the point has %zu disks; choose with "
					 "--disk or name a directory",
					 to, ndisks);
		return 0;
	}
	if (errno != ENOENT)
		return error_errno(err, errno, "cannot look at %s", to);
	rs->into_dir = ndisks > 1 || (len && to[len - 1] == '/');
	return 0;
}

/* File names are made of the guest's and the disk's name; neither may lead elsewhere. */
static void defuse(char *name)
{
	for (char *p = name; *p; p++) {
		if (*p == '/' || (unsigned char)*p < ' ')
			*p = '_';
	}
	if (*name == '.')
		*name = '_';
}

static int target_path(const struct restore *rs, const struct point_disk *d, char **ret,
		       struct error *err)
{
	auto_free char *name = NULL;
	int r;

	if (!rs->into_dir)
		return text_copy(rs->agent->opt.to, ret, err);
	r = text_format(&name, err, "%s-%s.%s", rs->point->guest, d->name, rs->agent->opt.format);
	if (r)
		return r;
	defuse(name);
	return io_join(rs->agent->opt.to, name, ret, err);
}

static int tick(void *data, uint64_t done, uint64_t total, struct error *err)
{
	struct restore *rs = data;

	progress_show(rs->agent, "restore", rs->disk, done, total);
	return agent_check_interrupt(err);
}

/* Its server may never answer, its device be slow: whatever waits for them, ends. */
static void leave_when_interrupted(struct loop_watch *watch, uint64_t idle_ms)
{
	struct restore *rs = container_of(watch, struct restore, watch);

	(void)idle_ms;
	if (agent_interrupted)
		target_file_abort(rs->target, "interrupted");
}

static int report(struct restore *rs, const struct point_disk *d, const char *to,
		  const struct disk_sink_counts *counts, struct error *err)
{
	char size[SIZE_TEXT_MAX], bytes[SIZE_TEXT_MAX];
	json_t *o;

	progress_end(rs->agent);
	if (!rs->agent->opt.json) {
		size_format(d->size, size);
		size_format(counts->written_bytes, bytes);
		(void)printf("restored %s to %s: %s, %s written\n", shown(d->name).s, shown(to).s,
			     size, bytes);
	}
	o = json_pack("{s:o, s:o, s:I, s:I, s:I}", "disk", json_text(d->name), "to", json_text(to),
		      "size", (json_int_t)d->size, "written_bytes",
		      (json_int_t)counts->written_bytes, "unchanged_bytes", (json_int_t)0);
	if (counts->unflushed)
		say_warning(rs->agent,
			    "disk %s: %s does not offer to flush: what was written is not durable "
			    "before that server is stopped or writes it out by itself",
			    d->name, to);
	return json_array_append_new(rs->disks, o) ? error_nomem(err) : 0;
}

static struct target_file_options options_of(const struct restore *rs, const struct goal *g)
{
	return (struct target_file_options){.loop = rs->agent->loop,
					    .to = g->place ? g->place : g->to,
					    .format = rs->agent->opt.format,
					    .size = g->disk->size,
					    .block_size = g->disk->block_size,
					    .force = rs->agent->opt.force};
}

/* Names of disks may differ in what a file's name cannot have; names of files may be links. */
static int refuse_shared_place(const struct restore *rs, const struct goal *g, struct error *err)
{
	for (const struct goal *other = rs->goals; other < g; other++) {
		if (strcmp(other->place, g->place) == 0)
			return error_set(err, TM_E_USAGE,
					 "disks '%s' and '%s' would both become %s; choose one "
					 "with --disk",
					 other->disk->name, g->disk->name, g->place);
	}
	return 0;
}

/* Where each chosen disk goes, and that it may: all of them before the first is written. */
static int look_at_goals(struct restore *rs, struct error *err)
{
	for (size_t i = 0; i < rs->point->ndisks; i++) {
		const struct point_disk *d = &rs->point->disks[i];
		struct goal *g = &rs->goals[rs->ngoals];
		struct target_file_options opt;
		int r;

		if (!chosen(&rs->agent->opt, d->name))
			continue;
		rs->ngoals++;
		g->disk = d;
		r = target_path(rs, d, &g->to, err);
		opt = options_of(rs, g);
		if (!r)
			r = target_file_look(&opt, &g->place, err);
		if (r) {
			error_prefix(err, "disk %s", d->name);
			return r;
		}
		r = refuse_shared_place(rs, g, err);
		if (r)
			return r;
	}
	return 0;
}

static int restore_disk(struct restore *rs, const struct goal *g, struct error *err)
{
	struct agent *a = rs->agent;
	struct repo_read_options read = {.pool = a->pool,
					 .prove = a->opt.prove,
					 .pieces = READ_PIECES,
					 .tick = tick,
					 .data = rs};
	const struct target_file_options opt = options_of(rs, g);
	auto_clean(target_file_free) struct target_file *t = NULL;
	struct disk_sink_counts counts = {0};
	int r = target_file_open(&opt, &t, err);

	rs->disk = g->disk->name;
	if (r)
		return r;
	rs->target = t;
	loop_set_watch(a->loop, &rs->watch);
	read.zero_runs = target_file_needs_zeroes(t);
	r = repo_read_disk(a->repo, rs->point, g->disk, target_file_sink(t), &read, err);
	if (r == TM_E_CORRUPT)
		error_append(err, "; 'tidemark verify --read-data' says what else is damaged, "
				  "'tidemark repair' mends what can be");
	if (!r)
		r = target_file_finish(t, &counts, err);
	loop_set_watch(a->loop, NULL);
	return r ? r : report(rs, g->disk, g->to, &counts, err);
}

static int restore_disks(struct restore *rs, struct error *err)
{
	size_t n = 0;
	int r = check_names(rs, &n, err);

	if (!r)
		r = choose_place(rs, n, err);
	if (r)
		return r;
	rs->goals = calloc(n + 1, sizeof(*rs->goals));
	r = rs->goals ? look_at_goals(rs, err) : error_nomem(err);
	if (!r && rs->into_dir)
		r = io_mkdirs(rs->agent->opt.to, err);
	for (size_t i = 0; !r && i < rs->ngoals; i++) {
		r = restore_disk(rs, &rs->goals[i], err);
		if (r)
			error_prefix(err, "disk %s", rs->goals[i].disk->name);
	}
	return r;
}

static void goals_free(struct restore *rs)
{
	for (size_t i = 0; i < rs->ngoals; i++) {
		free(rs->goals[i].to);
		free(rs->goals[i].place);
	}
	free(rs->goals);
}

int cmd_restore(struct agent *a, enum exit_status *status, struct error *err)
{
	auto_clean(point_free) struct point *p = NULL;
	struct restore rs = {
		.agent = a, .disks = json_array(), .watch.tick = leave_when_interrupted};
	int r = rs.disks ? agent_open_repo(a, err) : error_nomem(err);

	(void)status;
	if (!r)
		r = repo_check_right(a->repo, REPO_MAY_READ, err);
	if (!r)
		r = repo_point_find(a->repo, a->opt.args.v[0], &p, err);
	rs.point = p;
	if (!r)
		r = restore_disks(&rs, err);
	goals_free(&rs);
	if (r || !a->opt.json) {
		json_decref(rs.disks);
		return r;
	}
	return print_json_warned(
		a, json_pack("{s:s, s:o}", "point", id_text(&p->id).s, "disks", rs.disks), err);
}
