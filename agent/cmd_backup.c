/* SPDX-License-Identifier: Apache-2.0 */
/*
 * backup: the one place where guest, reader and repository meet.
 *
 *	recover → settle bitmaps → session marker → freeze → read each disk →
 *	collapse → commit the point → settle bitmaps by whether that worked
 *
 * docs/epochs.md says why the order is what it is.  The guest comes first: once
 * disks are frozen, every way out of here goes through snapshot_finish().
 */
#include "agent.h"
#include "dry_run.h"
#include "governor.h"
#include "guest_repo.h"
#include "stall.h"
#include "target.h"

#include <stdio.h>
#include <string.h>

#define READ_PIECES     32 /* buffers of PIECE_CLUSTERS clusters: 32 MiB */
#define NBD_CONNECTIONS 4
#define NBD_CONNECT_MS  10000
#define STALL_MS        120000 /* QEMU answers no read for so long: the backup is given up */

struct backup {
	struct agent *agent;
	struct guest *guest;
	struct known_points known;
	struct earlier_points earlier;
	struct point *like; /* --like, or NULL */
	size_t *disks;      /* chosen, indices of guest_disk() */
	size_t ndisks;
	struct repo_session *session;
	struct snapshot *snapshot;
	struct point *point; /* as it is going to be committed */
	bool committed;
	uint64_t started_ms; /* monotonic */
	size_t ntold;        /* warnings of the snapshot that were printed */
	const char *reading; /* the disk being read, for progress */
	struct governor governor;
};

/* ---- which disks ---- */

static int find_all(struct backup *b, const struct string_list *names, bool *flags,
		    struct error *err)
{
	for (size_t i = 0; i < names->n; i++) {
		size_t index = 0;
		int r = guest_find_disk(b->guest, names->v[i], &index, err);

		if (r)
			return r;
		flags[index] = true;
	}
	return 0;
}

/* Drives that nobody expects in a backup are mentioned; anything else left out is a warning. */
static void tell_left_out(struct agent *a, const struct guest_disk *d)
{
	if (d->read_only || d->removable || d->empty)
		say(a, "disk %s left out: %s", d->name, d->left_out);
	else
		say_warning(a, "disk %s left out: %s", d->name, d->left_out);
}

static int choose_disks(struct backup *b, struct error *err)
{
	struct agent *a = b->agent;
	size_t n = guest_ndisks(b->guest);
	auto_free bool *wanted = calloc(n + 1, sizeof(bool)),
		       *unwanted = calloc(n + 1, sizeof(bool));
	int r;

	b->disks = calloc(n + 1, sizeof(*b->disks));
	if (!wanted || !unwanted || !b->disks)
		return error_nomem(err);
	r = find_all(b, &a->opt.disks, wanted, err);
	if (!r)
		r = find_all(b, &a->opt.exclude_disks, unwanted, err);
	for (size_t i = 0; !r && i < n; i++) {
		const struct guest_disk *d = guest_disk(b->guest, i);

		if (unwanted[i] || (a->opt.disks.n && !wanted[i]))
			continue;
		if (!d->left_out)
			b->disks[b->ndisks++] = i;
		else if (wanted[i])
			return error_set(err, TM_E_USAGE, "disk %s cannot be backed up: %s",
					 d->name, d->left_out);
		else
			tell_left_out(a, d);
	}
	if (!r && !b->ndisks)
		return error_set(err, TM_E_USAGE, "guest %s has no disk to back up",
				 guest_name(b->guest));
	return r;
}

/* ---- the point to be ---- */

static int copy_tags(const struct string_list *tags, struct point *p, struct error *err)
{
	p->tags = calloc(tags->n + 1, sizeof(char *));
	if (!p->tags)
		return error_nomem(err);
	for (; p->ntags < tags->n; p->ntags++) {
		int r = text_copy(tags->v[p->ntags], &p->tags[p->ntags], err);

		if (r)
			return r;
	}
	return 0;
}

/* GUEST@NAME must go on naming one point. */
static int check_name(struct backup *b, struct error *err)
{
	auto_clean(point_free) struct point *p = NULL;
	auto_free char *spec = NULL;
	struct error found = {0};
	const char *name = b->agent->opt.name;
	int r;

	if (!name)
		return 0;
	if (!*name || strchr(name, '@') || strchr(name, '/'))
		return error_set(
			err, TM_E_USAGE,
			"'%s' cannot be a point's name: it is empty or has '@' or '/' in it", name);
	r = text_format(&spec, err, "%s@%s", guest_name(b->guest), name);
	if (r)
		return r;
	r = repo_point_find(b->agent->repo, spec, &p, &found);
	if (r == TM_E_NOTFOUND)
		return 0;
	if (r == 0 && strcmp(p->name, name) != 0)
		return 0; /* it was understood as a time */
	return error_set(err, TM_E_EXISTS, "guest %s has a point called '%s' already",
			 guest_name(b->guest), name);
}

static int new_point(struct backup *b, struct error *err)
{
	const struct options *opt = &b->agent->opt;
	struct point *p = calloc(1, sizeof(*p));
	int r;

	if (!p)
		return error_nomem(err);
	b->point = p;
	p->disks = calloc(b->ndisks, sizeof(*p->disks));
	if (!p->disks)
		return error_nomem(err);
	p->ndisks = b->ndisks;
	p->kind = guest_kind(b->guest) == GUEST_IMAGE ? POINT_OFFLINE : POINT_REDIRECT_ON_WRITE;
	r = id_new_timed(clock_unix_ms(&clock_system), &p->id, err);
	if (!r)
		r = text_copy(guest_name(b->guest), &p->guest, err);
	if (!r && guest_uuid(b->guest))
		r = text_copy(guest_uuid(b->guest), &p->guest_uuid, err);
	if (!r && opt->description)
		r = text_copy(opt->description, &p->description, err);
	if (!r)
		r = copy_tags(&opt->tags, p, err);
	return r;
}

static void tell_warnings(struct backup *b)
{
	const struct text_list *list = &snapshot_info(b->snapshot)->warnings;

	for (; b->ntold < list->n; b->ntold++)
		say_warning(b->agent, "%s", list->v[b->ntold]);
}

/* What is known from the freeze on. */
static int describe_freeze(struct backup *b, struct error *err)
{
	const struct snapshot_info *info = snapshot_info(b->snapshot);
	struct point *p = b->point;
	char utc[TIME_TEXT_MAX];
	int r;

	p->created_ms = info->created_ms;
	p->quiesced = info->quiesced;
	p->freeze_ms = info->freeze_ms;
	tell_warnings(b);
	r = text_copy(info->state, &p->state, err);
	if (r)
		return r;
	if (b->agent->opt.name)
		return text_copy(b->agent->opt.name, &p->name, err);
	/* The time to the second, and enough of the id to tell two points of one second apart. */
	time_format_utc(p->created_ms, utc);
	return text_format(&p->name, err, "%s-%.4s", utc, id_text(&p->id).s + TM_ID_HEX - 4);
}

/* ---- reading ---- */

/* The point and disk that the bitmap is relative to.  False: there is none any more. */
static const struct point_disk *find_parent(struct backup *b, const struct snapshot_disk *sd,
					    const struct point **ret_point)
{
	uint64_t size;

	if (!sd->has_epoch || b->agent->opt.full ||
	    !known_points_ask(&b->known, &sd->parent, sd->parent_disk, &size))
		return NULL;
	*ret_point = b->known.last;
	return &b->known.last->disks[sd->parent_disk];
}

static void govern(struct backup *b, uint64_t read_bytes)
{
	uint64_t now = clock_monotonic_ms(&clock_system);
	struct write_counts writes;

	if (governor_due(&b->governor, now) && snapshot_count_writes(b->snapshot, &writes))
		governor_look(&b->governor, now, read_bytes, &writes);
}

static int read_tick(void *data, const struct reader_counts *counts, struct error *err)
{
	struct backup *b = data;

	int r = snapshot_check_room(b->snapshot, err);

	govern(b, counts->read_bytes);
	progress_show(b->agent, "read", b->reading, counts->done_bytes, counts->dirty_bytes);
	return r ? r : agent_check_interrupt(err);
}

static int run_reader(struct backup *b, const struct snapshot_disk *sd, enum source_map map,
		      struct piece_sink *sink, struct reader_counts *ret, struct error *err)
{
	struct agent *a = b->agent;
	auto_clean(block_source_free) struct block_source *src = NULL;
	struct reader_options opt = {
		.map = map,
		.block_size = repo_block_size(a->repo),
		.pieces = READ_PIECES,
		.rate = &b->governor.rate,
		.stall_ms = STALL_MS,
		.tick = read_tick,
		.data = b,
	};
	struct nbd_address addr = sd->nbd;
	int r;

	if (map == SOURCE_MAP_DATA)
		addr.bitmap = NULL;
	r = nbd_source_open(a->loop, &addr, NBD_CONNECTIONS, NBD_CONNECT_MS, &src, err);
	if (r)
		return r;
	if (src->size != sd->size)
		return error_set(err, TM_E_STALE,
				 "its size is %llu bytes over NBD and was %llu at the freeze",
				 (unsigned long long)src->size, (unsigned long long)sd->size);
	governor_disk(&b->governor, clock_monotonic_ms(&clock_system));
	return reader_run(a->loop, src, sink, &opt, ret, err);
}

/* Words for the point: which source and why. */
static int describe_disk(struct point_disk *pd, const struct snapshot_disk *sd,
			 const struct point *parent, bool forced, struct error *err)
{
	int r = text_copy(sd->name, &pd->name, err);

	pd->size = sd->size;
	if (!r && sd->format)
		r = text_copy(sd->format, &pd->format, err);
	if (!r && sd->file)
		r = text_copy(sd->file, &pd->file, err);
	if (!r && sd->new_bitmap)
		r = text_copy(sd->new_bitmap, &pd->bitmap, err);
	if (r)
		return r;
	if (parent)
		pd->parent = parent->id;
	if (pd->rung == RUNG_BITMAP)
		return text_format(&pd->reason, err, "bitmap since point %.12s",
				   id_text(&pd->parent).s);
	return text_copy(forced        ? "asked for with --full"
			 : *sd->reason ? sd->reason
				       : "the bitmap's point is gone",
			 &pd->reason, err);
}

/*
 * Begins the disk on the highest rung that holds: changes by bitmap, else all of it compared with
 * the newest point that has the disk, else all of it.  *ret_known: an earlier point has the disk.
 */
static int begin_disk(struct backup *b, const struct snapshot_disk *sd, enum disk_rung *ret_rung,
		      const struct point **ret_parent, bool *ret_known, struct piece_sink **ret,
		      struct error *err)
{
	const struct point_disk *disk = find_parent(b, sd, ret_parent);
	size_t at = SIZE_MAX;

	*ret_known = false;
	*ret_rung = RUNG_BITMAP;
	if (disk)
		return repo_session_disk_begin(b->session, sd->name, sd->size, *ret_parent, disk,
					       ret, err);
	*ret_rung = RUNG_HASH_DIFF;
	while (!b->agent->opt.full && earlier_next(b->agent, guest_name(b->guest), sd->name,
						   &b->earlier, &at, ret_parent, &disk)) {
		struct error one = {0};
		int r = repo_session_disk_begin(b->session, sd->name, sd->size, *ret_parent, disk,
						ret, &one);

		*ret_known = true;
		if (r == 0 || r != TM_E_STALE) {
			if (r && err)
				*err = one;
			return r;
		}
		log_debug("not compared: %s", one.text); /* it is being deleted; an older one? */
	}
	*ret_rung = RUNG_FULL;
	*ret_parent = NULL;
	if (!b->agent->opt.full) {
		int r = repo_session_siblings(b->session, b->like, err);

		if (r)
			return r;
	}
	return repo_session_disk_begin(b->session, sd->name, sd->size, NULL, NULL, ret, err);
}

static int read_disk(struct backup *b, const struct snapshot_disk *sd, struct point_disk *pd,
		     struct piece_sink *sink, struct error *err)
{
	enum source_map map = pd->rung == RUNG_BITMAP ? SOURCE_MAP_DIRTY : SOURCE_MAP_DATA;
	struct repo_disk_counts stored = {0};
	struct reader_counts counts = {0};
	int r;

	if (map == SOURCE_MAP_DATA)
		repo_session_disk_whole(b->session);
	r = run_reader(b, sd, map, sink, &counts, err);
	if (!r)
		r = repo_session_disk_end(b->session, &stored, err);
	progress_end(b->agent);
	pd->dirty_bytes = counts.dirty_bytes;
	pd->read_bytes = counts.read_bytes;
	pd->new_bytes = stored.new_bytes;
	pd->stored_bytes = stored.stored_bytes;
	return r;
}

static int backup_disk(struct backup *b, size_t i, struct error *err)
{
	const struct snapshot_disk *sd = &snapshot_info(b->snapshot)->disks[i];
	struct point_disk *pd = &b->point->disks[i];
	const struct point *parent = NULL;
	struct piece_sink *sink = NULL;
	bool known;
	int r;

	b->reading = sd->name;
	pd->block_size = repo_block_size(b->agent->repo);
	r = begin_disk(b, sd, &pd->rung, &parent, &known, &sink, err);
	if (!r)
		r = describe_disk(pd, sd, parent, b->agent->opt.full, err);
	if (!r && known)
		say_warning(b->agent, "disk %s is read %s: %s", sd->name,
			    pd->rung == RUNG_HASH_DIFF ? "and compared" : "whole", pd->reason);
	if (!r)
		r = read_disk(b, sd, pd, sink, err);
	if (r)
		error_prefix(err, "disk %s", sd->name);
	return r;
}

/* The newest parent of the disks: ids begin with the time. */
static void set_parent(struct point *p)
{
	for (size_t i = 0; i < p->ndisks; i++) {
		if (memcmp(p->disks[i].parent.b, p->parent.b, sizeof(p->parent.b)) > 0)
			p->parent = p->disks[i].parent;
	}
}

/* ---- the run ---- */

static void watch_writes(struct backup *b)
{
	const struct options *opt = &b->agent->opt;
	struct error err = {0};

	governor_init(&b->governor, opt->latency_limit, opt->limit_rate);
	if (opt->latency_limit && snapshot_watch_writes(b->snapshot, b->governor.slow_ns, &err))
		say_warning(b->agent,
			    "the guest's writes cannot be watched, nothing slows for them: %s",
			    err.text);
}

static int freeze(struct backup *b, struct error *err)
{
	struct agent *a = b->agent;
	const struct snapshot_options opt = {
		.repo = *repo_id(a->repo),
		.point = b->point->id,
		.repo_url = a->repo_url,
		.disks = b->disks,
		.ndisks = b->ndisks,
		.quiesce = a->opt.quiesce,
		.overlay_dir = a->opt.overlay_dir,
		.overlay_limit = a->opt.overlay_limit,
		.granularity = repo_block_size(a->repo),
	};
	int r = snapshot_begin(b->guest, &opt, &b->snapshot, err);

	if (!r)
		watch_writes(b);
	return r ? r : describe_freeze(b, err);
}

/*
 * From the freeze to the commit.  A collapse that found no room is told and left to recovery: what
 * was read is a good point all the same.
 */
static int make_point(struct backup *b, enum exit_status *status, struct error *err)
{
	const struct repo_session_options opt = {
		.guest = guest_name(b->guest),
		.compression = (int)b->agent->opt.compression,
		.id = b->point->id,
		.pool = b->agent->pool,
	};
	struct error collapse_err = {0};
	int r = repo_session_begin(b->agent->repo, &opt, &b->session, err);

	if (!r)
		r = freeze(b, err);
	for (size_t i = 0; !r && i < b->ndisks; i++)
		r = backup_disk(b, i, err);
	if (r)
		return r;
	if (b->governor.slowed_ms)
		say(b->agent, "read slowly for %.1f s, for the guest's writes",
		    (double)b->governor.slowed_ms / 1000);
	set_parent(b->point);
	if (snapshot_collapse(b->snapshot, &collapse_err)) {
		say_warning(b->agent, "the overlays are not merged back yet: %s",
			    collapse_err.text);
		*status = EXIT_RECOVERY;
	}
	tell_warnings(b);
	progress_end(b->agent);
	b->point->seconds_ms = clock_monotonic_ms(&clock_system) - b->started_ms;
	r = repo_session_commit(b->session, b->point, err);
	b->committed = r == 0;
	return r;
}

static int print_point(struct backup *b, struct error *err)
{
	const struct point *p = b->point;
	json_t *o;

	if (b->agent->opt.json) {
		o = point_json(p, true);
		if (!o || json_object_set_new(o, "warnings", take_warnings(b->agent)) ||
		    json_object_set_new(o, "slowed_ms",
					json_integer((json_int_t)b->governor.slowed_ms)))
			return error_nomem(err);
		return print_json(o, err);
	}
	(void)printf("point %s of %s: %s%llu ms frozen, %.1f s\n", id_text(&p->id).s, p->guest,
		     p->quiesced ? "quiesced, " : "", (unsigned long long)p->freeze_ms,
		     (double)p->seconds_ms / 1000);
	for (size_t i = 0; i < p->ndisks; i++) {
		const struct point_disk *d = &p->disks[i];
		char changed[SIZE_TEXT_MAX], readb[SIZE_TEXT_MAX], stored[SIZE_TEXT_MAX];

		size_format(d->dirty_bytes, changed);
		size_format(d->read_bytes, readb);
		size_format(d->stored_bytes, stored);
		(void)printf("  %-10s %-9s %s, read %s, stored %s (%s)\n", d->name,
			     disk_rung_name(d->rung), changed, readb, stored, d->reason);
	}
	return 0;
}

/* The way out, whatever happened: sessions, overlays and bitmaps in order. */
static int wind_up(struct backup *b, int r, enum exit_status *status, struct error *err)
{
	struct error finish_err = {0};
	int rf;

	rf = snapshot_finish(tm_steal(b->snapshot), b->committed, &finish_err);
	repo_session_free(b->session);
	progress_end(b->agent);
	if (rf && b->committed) {
		say_warning(b->agent,
			    "the point is stored, but the guest could not be put in order: %s",
			    finish_err.text);
		*status = EXIT_RECOVERY;
	} else if (rf) {
		*status = EXIT_RECOVERY;
		say_warning(b->agent, "%s; 'tidemark recover' or the next backup puts it right",
			    finish_err.text);
	}
	if (!r && b->committed)
		r = print_point(b, err);
	return r;
}

static int backup_opened(struct backup *b, enum exit_status *status, struct error *err)
{
	struct agent *a = b->agent;
	struct stall_guard stall;
	int r;

	b->known = (struct known_points){.agent = a, .guest = guest_name(b->guest)};
	r = check_name(b, err);
	if (!r && a->opt.dry_run)
		r = guest_epochs(b->guest, repo_id(a->repo), known_points_ask, &b->known, err);
	else if (!r)
		r = guest_settle(b->guest, repo_id(a->repo), known_points_ask, &b->known, err);
	if (!r)
		r = choose_disks(b, err);
	if (!r && a->opt.like)
		r = repo_point_find(a->repo, a->opt.like, &b->like, err);
	if (!r && a->opt.dry_run)
		return dry_run(a, b->guest, b->disks, b->ndisks, err);
	if (!r)
		r = new_point(b, err);
	if (!r) {
		stall_arm(&stall, a, &b->snapshot);
		r = make_point(b, status, err);
		r = wind_up(b, r, status, err);
		stall_disarm(&stall);
	}
	return r;
}

static int backup_target(struct agent *a, const char *word, enum exit_status *status,
			 struct error *err)
{
	struct backup b = {.agent = a, .started_ms = clock_monotonic_ms(&clock_system)};
	auto_target struct target t = {0};
	struct guest_options opt;
	int r = target_parse(word, &t, err);

	if (r)
		return r;
	if (!a->opt.dry_run)
		r = recover_before(a, &t.guest, err);
	if (r == TM_E_STALE)
		*status = EXIT_RECOVERY;
	opt = (struct guest_options){.state_dir = a->state_dir,
				     .exclusive = !a->opt.dry_run,
				     .hooks = {snapshot_tick, a}};
	if (!r)
		r = guest_open(&t.guest, &opt, &b.guest, err);
	if (!r)
		r = backup_opened(&b, status, err);
	known_points_done(&b.known);
	point_list_done(&b.earlier.list);
	point_free(b.like);
	point_free(b.point);
	free(b.disks);
	guest_free(b.guest);
	return r;
}

int cmd_backup(struct agent *a, enum exit_status *status, struct error *err)
{
	int r = agent_state_dir(a, err), first = 0;

	if (!r)
		r = agent_open_repo(a, err);
	if (!r)
		r = repo_check_right(a->repo, REPO_MAY_BACK_UP, err);
	if (r)
		return r;
	/* One guest's failure does not cost the others their backup. */
	for (size_t i = 0; i < a->opt.args.n; i++) {
		struct error one = {0};

		r = backup_target(a, a->opt.args.v[i], status, &one);
		if (!r)
			continue;
		if (!first) {
			first = r;
			if (err)
				*err = one;
		} else {
			say_error(a, &one);
		}
		if (r == TM_E_CANCELED)
			break;
	}
	return first;
}
