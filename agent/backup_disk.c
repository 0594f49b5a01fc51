/* SPDX-License-Identifier: Apache-2.0 */
/* One disk of a backup: which source its changes are read from, and the reading. */
#include "audit.h"

#include <string.h>

/* Buffers of PIECE_CLUSTERS clusters: 22 MiB, and as much for their frames. */
#define READ_PIECES     22
#define NBD_CONNECTIONS 4
#define NBD_CONNECT_MS  10000
#define STALL_MS        120000 /* QEMU answers no read for so long: the backup is given up */

/* The point and disk that the bitmap is relative to.  *ret NULL: there is none any more. */
static int find_parent(struct backup *b, const struct snapshot_disk *sd,
		       const struct point **ret_point, const struct point_disk **ret,
		       struct error *err)
{
	uint64_t size;
	bool there;
	int r;

	*ret = NULL;
	if (!sd->has_epoch || b->agent->opt.full)
		return 0;
	r = known_points_ask(&b->known, &sd->parent, sd->parent_disk, &there, &size, err);
	if (r || !there)
		return r;
	*ret_point = b->known.last;
	*ret = &b->known.last->disks[sd->parent_disk];
	return 0;
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
	progress_show(b->agent, b->phase, b->reading, counts->done_bytes, counts->dirty_bytes);
	return r ? r : agent_check_interrupt(err);
}

static int open_source(struct backup *b, const struct snapshot_disk *sd, enum source_map map,
		       struct block_source **ret, struct error *err)
{
	struct nbd_address addr = sd->nbd;
	int r;

	if (map == SOURCE_MAP_DATA)
		addr.bitmap = NULL;
	r = nbd_source_open(b->agent->loop, &addr, NBD_CONNECTIONS, NBD_CONNECT_MS, ret, err);
	if (r)
		return r;
	if ((*ret)->size != sd->size)
		return error_set(err, TM_E_STALE,
				 "its size is %llu bytes over NBD and was %llu at the freeze",
				 (unsigned long long)(*ret)->size, (unsigned long long)sd->size);
	return 0;
}

int backup_read(struct backup *b, const struct snapshot_disk *sd, enum source_map map,
		const struct extents *sample, struct piece_sink *sink, struct reader_counts *ret,
		struct error *err)
{
	struct agent *a = b->agent;
	auto_clean(block_source_free) struct block_source *src = NULL;
	struct reader_options opt = {
		.map = map,
		.sample = sample,
		.block_size = repo_block_size(a->repo),
		.pieces = READ_PIECES,
		.workers = pool_workers(a->pool),
		.rate = &b->governor.rate,
		.stall_ms = STALL_MS,
		.tick = read_tick,
		.data = b,
	};
	int r = open_source(b, sd, map, &src, err);

	if (r)
		return r;
	governor_disk(&b->governor, clock_monotonic_ms(&clock_system));
	return reader_run(a->loop, src, sink, &opt, ret, err);
}

static int reach_tick(void *data, const struct reader_counts *counts, struct error *err)
{
	struct backup *b = data;
	int r = snapshot_check_room(b->snapshot, err);

	(void)counts;
	return r ? r : agent_check_interrupt(err);
}

int backup_reach_clean(struct backup *b, const struct snapshot_disk *sd,
		       const struct extents *sample, uint64_t *ret_end, struct error *err)
{
	auto_clean(block_source_free) struct block_source *src = NULL;
	const struct reader_options opt = {
		.map = SOURCE_MAP_DIRTY,
		.sample = sample,
		.block_size = repo_block_size(b->agent->repo),
		.pieces = READ_PIECES,
		.stall_ms = STALL_MS,
		.tick = reach_tick,
		.data = b,
	};
	int r = open_source(b, sd, SOURCE_MAP_DIRTY, &src, err);

	return r ? r : reader_reach(b->agent->loop, src, &opt, ret_end, err);
}

/* What a disk begins with. */
struct base {
	enum disk_rung rung;
	const struct point *parent;
	bool known;    /* an earlier point has the disk */
	uint64_t lost; /* bytes of the bitmap's point, which is why the bitmap is not enough */
	bool unproved; /* that it has lost no bits could not be told, another reason */
};

static int describe_reason(struct point_disk *pd, const struct snapshot_disk *sd,
			   const struct base *base, bool forced, struct error *err)
{
	uint64_t audited = pd->audit.data + pd->audit.empty;
	char lost[SIZE_TEXT_MAX];

	if (base->rung == RUNG_BITMAP)
		return text_format(&pd->reason, err, "bitmap since point %.12s",
				   id_text(&pd->parent).s);
	if (pd->audit.differed)
		return text_format(&pd->reason, err,
				   "the audit found %llu of %llu clusters changed that the bitmap "
				   "called clean",
				   (unsigned long long)pd->audit.differed,
				   (unsigned long long)audited);
	if (base->unproved)
		return text_copy("the repository cannot tell whether the bitmap has lost its end",
				 &pd->reason, err);
	size_format(base->lost, lost);
	if (base->lost)
		return text_format(&pd->reason, err, "%s of point %.12s are damaged", lost,
				   id_text(&pd->parent).s);
	return text_copy(forced        ? "asked for with --full"
			 : *sd->reason ? sd->reason
				       : "the bitmap's point is gone",
			 &pd->reason, err);
}

/* Words for the point: which source and why. */
static int describe_disk(struct point_disk *pd, const struct snapshot_disk *sd,
			 const struct base *base, bool forced, struct error *err)
{
	int r = text_copy(sd->name, &pd->name, err);

	pd->size = sd->size;
	pd->rung = base->rung;
	if (!r && sd->format)
		r = text_copy(sd->format, &pd->format, err);
	if (!r && sd->file)
		r = text_copy(sd->file, &pd->file, err);
	if (!r && sd->new_bitmap)
		r = text_copy(sd->new_bitmap, &pd->bitmap, err);
	return r ? r : describe_reason(pd, sd, base, forced, err);
}

/* By the bitmap; what the point has lost is in none, so then all is compared with the point. */
static int begin_epoch(struct backup *b, const struct snapshot_disk *sd,
		       const struct point_disk *disk, struct base *base, struct piece_sink **ret,
		       struct error *err)
{
	int r = repo_disk_lost(b->agent->repo, disk, &base->lost, err);

	base->known = base->lost > 0;
	base->rung = base->lost ? RUNG_HASH_DIFF : RUNG_BITMAP;
	return r ? r
		 : repo_session_disk_begin(b->session, sd->name, sd->size, base->parent, disk, ret,
					   err);
}

/* Compared with the newest point that has the disk and is not being deleted.  TM_E_NOTFOUND. */
static int begin_compared(struct backup *b, const struct snapshot_disk *sd, struct base *base,
			  struct piece_sink **ret, struct error *err)
{
	const char *guest = guest_name(b->guest);
	const struct point_disk *disk;

	base->rung = RUNG_HASH_DIFF;
	base->parent = NULL;
	for (;;) {
		struct error e = {0};
		int r = earlier_next(b->agent, guest, sd->name, &b->earlier, &base->parent, &disk,
				     err);

		if (r)
			return r;
		base->known = true;
		r = repo_session_disk_begin(b->session, sd->name, sd->size, base->parent, disk, ret,
					    &e);
		if (r != TM_E_STALE)
			return r ? error_pass(err, r, &e) : 0;
		log_debug("not compared: %s", e.text);
	}
}

static int begin_full(struct backup *b, const struct snapshot_disk *sd, struct base *base,
		      struct piece_sink **ret, struct error *err)
{
	int r = b->agent->opt.full ? 0 : repo_session_siblings(b->session, b->like, err);

	base->rung = RUNG_FULL;
	base->parent = NULL;
	return r ? r
		 : repo_session_disk_begin(b->session, sd->name, sd->size, NULL, NULL, ret, err);
}

/*
 * Begins the disk on the highest rung that holds: changes by bitmap, else all of it compared with
 * the newest point that has the disk, else all of it.  A repository that cannot be read now is no
 * reason for a lower one.
 */
static int begin_disk(struct backup *b, const struct snapshot_disk *sd, struct base *base,
		      struct piece_sink **ret, struct error *err)
{
	const struct point_disk *disk;
	struct error e = {0};
	int r = find_parent(b, sd, &base->parent, &disk, err);

	if (r)
		return r;
	if (disk) {
		r = begin_epoch(b, sd, disk, base, ret, &e);
		if (r != TM_E_STALE)
			return r ? error_pass(err, r, &e) : 0;
		log_debug("not by the bitmap: %s", e.text); /* forgotten since it was looked up */
		error_clear(&e);
		base->lost = 0;
	}
	if (b->agent->opt.full)
		return begin_full(b, sd, base, ret, err);
	r = begin_compared(b, sd, base, ret, &e);
	if (r == TM_E_NOTFOUND)
		return begin_full(b, sd, base, ret, err);
	return r ? error_pass(err, r, &e) : 0;
}

static void tell_healed(struct backup *b, const struct point_disk *pd, uint64_t bytes)
{
	char text[SIZE_TEXT_MAX];

	if (bytes == 0)
		return;
	size_format(bytes, text);
	say_warning(b->agent,
		    "disk %s: %s that point %.12s cannot give back any more are stored anew; "
		    "'tidemark repair' may restore older points with them",
		    pd->name, text, id_text(&pd->parent).s);
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
	r = backup_read(b, sd, map, NULL, sink, &counts, err);
	if (!r)
		r = repo_session_disk_end(b->session, &stored, err);
	progress_end(b->agent);
	pd->dirty_bytes = counts.dirty_bytes;
	pd->read_bytes += counts.read_bytes;
	pd->new_bytes = stored.new_bytes;
	pd->stored_bytes = stored.stored_bytes;
	tell_healed(b, pd, stored.lost_bytes);
	return r;
}

/*
 * A bitmap that was caught is not used again, and the next rung is taken; so it is where the
 * repository cannot tell.
 */
static int audit(struct backup *b, size_t i, struct base *base, struct error *err)
{
	const struct snapshot_disk *sd = &snapshot_info(b->snapshot)->disks[i];
	const struct point_disk *parent = &base->parent->disks[sd->parent_disk];
	struct point_disk *pd = &b->point->disks[i];
	bool proved;
	int r = audit_disk(b, sd, parent, pd, &proved, err);

	if (r)
		return r;
	if (pd->audit.differed) {
		base->rung = RUNG_HASH_DIFF;
		return snapshot_void_epoch(b->snapshot, i, err);
	}
	if (!proved) {
		base->rung = RUNG_HASH_DIFF;
		base->unproved = base->known = true;
		return 0;
	}
	pd->audit.whole_ms = parent->audit.whole_ms;
	pd->audit.all_data = parent->audit.all_data + pd->audit.data;
	pd->audit.all_empty = parent->audit.all_empty + pd->audit.empty;
	return 0;
}

int backup_disk(struct backup *b, size_t i, struct error *err)
{
	const struct snapshot_disk *sd = &snapshot_info(b->snapshot)->disks[i];
	struct point_disk *pd = &b->point->disks[i];
	struct piece_sink *sink = NULL;
	struct base base = {.parent = NULL};
	int r;

	b->reading = sd->name;
	b->phase = "read";
	pd->block_size = repo_block_size(b->agent->repo);
	r = begin_disk(b, sd, &base, &sink, err);
	if (!r && base.parent)
		pd->parent = base.parent->id;
	if (!r && base.rung == RUNG_BITMAP)
		r = audit(b, i, &base, err);
	if (base.rung != RUNG_BITMAP)
		pd->audit.whole_ms = b->point->created_ms;
	if (!r)
		r = describe_disk(pd, sd, &base, b->agent->opt.full, err);
	if (!r && base.known)
		say_warning(b->agent, "disk %s is read %s: %s", sd->name,
			    pd->rung == RUNG_HASH_DIFF ? "and compared" : "whole", pd->reason);
	if (!r)
		r = read_disk(b, sd, pd, sink, err);
	if (!r)
		r = snapshot_check_read(b->snapshot, i, err);
	if (r && r != TM_E_CANCELED)
		snapshot_explain(b->snapshot, i, err);
	if (r)
		error_prefix(err, "disk %s", sd->name);
	return r;
}
