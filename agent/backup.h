/* SPDX-License-Identifier: Apache-2.0 */
/* A backup as its own files see it: cmd_backup.c is the run, backup_disk.c the disks. */
#pragma once

#include "governor.h"
#include "guest_repo.h"

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
	uint64_t started_ms;     /* monotonic */
	uint64_t started_cpu_ms; /* CPU time used before */
	size_t ntold;            /* warnings of the snapshot that were printed */
	const char *reading;     /* the disk being read, for progress … */
	const char *phase;       /* … and what for */
	struct governor governor;
};

/*
 * Reads a disk of the snapshot.  sample: NULL, or the parts whose clean clusters are read instead
 * of the dirty ones.
 */
int backup_read(struct backup *b, const struct snapshot_disk *sd, enum source_map map,
		const struct extents *sample, struct piece_sink *sink, struct reader_counts *ret,
		struct error *err) TM_WUR;

/* Where the last cluster of sample ends that is clean; 0: all of them are dirty. */
int backup_reach_clean(struct backup *b, const struct snapshot_disk *sd,
		       const struct extents *sample, uint64_t *ret_end, struct error *err) TM_WUR;

/* Reads disk i of the snapshot into the session, and describes it in the point. */
int backup_disk(struct backup *b, size_t i, struct error *err) TM_WUR;
