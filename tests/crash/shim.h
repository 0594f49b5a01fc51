/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A shim below the directory store.  The tests of this folder are linked with
 * -Wl,--wrap=CALL for every call that store_dir*.c and common/io.c make of the
 * system or the loop, so the production code runs unchanged and without a hook.  The shim
 *
 *	records what a run does to the files below `root`, with the moments at which each call
 *	was issued and answered (disk.h turns the record into what a power cut may leave), or
 *	makes the n-th call fail.
 *
 * Everything happens on the thread that runs the loop.
 */
#pragma once

#include "common/common.h"

enum shim_kind {
	SHIM_CREATE, /* path */
	SHIM_WRITE,  /* path: what the file was called when it was made */
	SHIM_SYNC,   /* file or folder */
	SHIM_MKDIR,
	SHIM_RENAME, /* path to `to` */
	SHIM_LINK,
	SHIM_UNLINK,
	SHIM_MARK, /* the test's own: a command has returned */
};

struct shim_event {
	enum shim_kind kind;
	unsigned issued, done; /* ticks */
	int res;
	char *path, *to; /* below root */
	uint8_t *bytes;
	size_t len;
	uint64_t offset;
};

enum shim_fault {
	FAULT_NONE,
	FAULT_EIO,
	FAULT_ENOSPC,
	FAULT_SHORT, /* reads and writes transfer half, other calls work */
};

struct shim {
	char *root;  /* what is above is left alone; NULL: the shim sleeps */
	bool record; /* else only faults */
	unsigned tick;
	struct shim_event *events;
	size_t nevents, cap;
	unsigned calls;
	enum shim_fault fault;
	unsigned fail_at; /* counts from 1 */
	bool for_good;    /* all later calls fail, too */
	unsigned hits;    /* calls that failed or came short */
};

extern struct shim shim;

void shim_start(const char *root, bool record);
/* Records what lies below the root as there and durable. */
void shim_load(void);
/* Counts calls from now on. */
void shim_arm(enum shim_fault fault, unsigned fail_at, bool for_good);
void shim_disarm(void);
void shim_mark(void);
/* Stops; the record stays until shim_clear(). */
void shim_stop(void);
void shim_clear(void);
