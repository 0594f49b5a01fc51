/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The overlays take what the guest writes while it is backed up.  Where they fill their file
 * system, QEMU stops the guest; so the backup is given up while there is still room for the
 * guest's writes of the moment and for the merge.
 */
#include "room.h"

#include "migration.h"
#include "overlay.h"
#include "prepare.h"
#include "proc.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#define RESERVE_PART 8                   /* of the file system is kept free ... */
#define RESERVE_MAX  ((uint64_t)1 << 30) /* ... but no more than this */
#define STATE_MS     1000                /* how often the guest is asked whether it runs */
#define STATE_WAIT   2000                /* and how long QEMU may take to say so, ms */

static uint64_t allocated(const struct stat *st)
{
	return st->st_blocks > 0 ? (uint64_t)st->st_blocks * 512 : 0;
}

/* How much the base may grow by, on its overlay's file system, when the overlay is merged. */
static uint64_t growth(const struct journal_disk *d, const struct stat *overlay)
{
	struct stat base;
	uint64_t most;

	if (stat(d->base, &base) < 0 || base.st_dev != overlay->st_dev || !S_ISREG(base.st_mode))
		return 0;
	most = d->size + d->size / 1024; /* qcow2's tables */
	if (allocated(&base) >= most)
		return 0;
	return min_u64(allocated(overlay), most - allocated(&base));
}

int room_check_disk(const struct journal_disk *d, uint64_t *sum, struct error *err)
{
	struct statvfs fs;
	struct stat st;
	uint64_t reserve, need, left;
	int r = overlay_stat(d->overlay, &st, err);

	if (!r && statvfs(d->overlay, &fs) < 0)
		r = error_errno(err, errno, "cannot look at the file system of %s", d->overlay);
	if (r) {
		error_prefix(err, "disk %s", d->name);
		return r;
	}
	reserve = min_u64((uint64_t)fs.f_blocks * fs.f_frsize / RESERVE_PART, RESERVE_MAX);
	need = reserve + growth(d, &st);
	left = (uint64_t)fs.f_bavail * fs.f_frsize;
	*sum += allocated(&st);
	if (left >= need)
		return 0;
	return error_set(
		err, TM_E_NOSPACE,
		"disk %s: the file system of its overlay %s has %llu MiB left and %llu MiB "
		"are needed while the guest writes to it; make room, or name another "
		"directory with --overlay-dir",
		d->name, d->overlay, (unsigned long long)left >> 20,
		(unsigned long long)(need + (1 << 20) - 1) >> 20);
}

/*
 * A file system can refuse writes for reasons that it does not show, a quota for one.  And a guest
 * that is about to leave takes along what is in its own files.
 */
static int check_state(struct snapshot *s, struct error *err)
{
	uint64_t now = clock_monotonic_ms(&clock_system);
	auto_json json_t *status = NULL;
	const char *text;
	int r;

	if (now < s->state_ms)
		return 0;
	s->state_ms = now + STATE_MS;
	if (!s->g->qmp || qmp_lost(s->g->qmp)) {
		/* What is read outlives QEMU; but a guest that ended may have to start again. */
		if (proc_listener(s->g->qmp_socket, NULL))
			return 0;
		return error_set(err, TM_E_STALE, "the guest's QEMU has ended");
	}
	if (qmp_call(s->g->qmp, "query-status", NULL, STATE_WAIT, &status, NULL))
		return 0; /* QEMU that hangs or is gone is found out by whoever reads */
	text = jsonx_text(status, "status");
	r = migration_check(s->g, text, STATE_WAIT, err);
	if (r)
		return r;
	if (!text || strcmp(text, "io-error") != 0 || strcmp(s->state, "running") != 0)
		return 0;
	return error_set(err, TM_E_NOSPACE,
			 "QEMU stopped the guest because a write to a disk failed");
}

int snapshot_check_room(struct snapshot *s, struct error *err)
{
	uint64_t sum = 0;
	int r = 0;

	if (!s || s->g->kind != GUEST_QMP || s->collapsed)
		return 0;
	for (size_t i = 0; !r && i < s->j->ndisks; i++)
		r = room_check_disk(&s->j->disks[i], &sum, err);
	if (!r && s->overlay_limit && sum > s->overlay_limit)
		r = error_set(err, TM_E_NOSPACE,
			      "the guest has written %llu MiB to its overlays, more than "
			      "--overlay-limit allows",
			      (unsigned long long)sum >> 20);
	return r ? r : check_state(s, err);
}
