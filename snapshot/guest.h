/* SPDX-License-Identifier: Apache-2.0 */
/* The inside of struct guest; for snapshot/ only. */
#pragma once

#include "graph.h"
#include "qga.h"

#define OVERLAY_SUFFIX      ".tidemark-overlay"
#define OVERLAY_DATA_SUFFIX "-data" /* behind the name of an overlay, see overlay_create() */
#define JOURNAL_SUFFIX      ".tidemark-journal"
#define NAME_SUFFIX         ".tidemark-name" /* of a second name of an image, see names.h */
#define MOVED_SUFFIX        ".tidemark-moved"

#define QMP_GREETING_MS 5000

struct guest {
	enum guest_kind kind;
	char *name;
	char *uuid; /* or NULL */
	char *state;
	char *qmp_socket;   /* GUEST_QMP */
	char *agent_socket; /* or NULL */
	char **images;      /* GUEST_IMAGE */
	size_t nimages;
	char *image_format; /* or NULL: by the name, else by looking */
	char *state_dir;
	char *key;        /* file name of this guest's journal and lock */
	int lock;         /* -1 without `exclusive` */
	int lock_disk;    /* of its first disk, rival.h; or -1 */
	int lock_journal; /* of the guest whose journal is recovered, where that is another; or -1
			   */
	struct snapshot_hooks hooks;
	struct snapshot_hooks qmp_hooks; /* around them */
	bool quiet;                      /* hooks are not called: the guest's I/O stands */
	struct guard *guard;             /* of the run; or NULL */
	struct qmp *qmp;                 /* NULL for images, and when recovery found QEMU dead */
	struct guest_disk *disks;
	size_t ndisks;
};

/* The same as guest_open(), without connecting or looking at the disks. */
int guest_new(const struct guest_target *target, const struct guest_options *opt,
	      struct guest **ret, struct error *err) TM_WUR;

/* Connects again after the connection was lost; QEMU itself may have gone (TM_E_NOTFOUND). */
int guest_connect(struct guest *g, struct error *err) TM_WUR;

/* qmp_call() without a result. args is stolen. */
int guest_do(struct guest *g, const char *command, json_t *args, struct error *err) TM_WUR;

/* blockdev-del, with patience for a job that is just letting go.  A node that is gone is success.
 */
int guest_delete_node(struct guest *g, const char *node, struct error *err) TM_WUR;

/* status of query-status; the caller owns *ret. */
int guest_query_state(struct guest *g, char **ret, struct error *err) TM_WUR;

/* While set, hooks are not called: for the moments when the guest's I/O stands. */
void guest_set_quiet(struct guest *g, bool quiet);

/* Calls the hook; its answer. */
int guest_tick(const struct guest *g, const char *phase, const char *disk, uint64_t done,
	       uint64_t total, struct error *err);

/* Something that the person should know while a call goes on. */
void guest_remark(const struct guest *g, const char *phase, const char *disk, const char *text);

/* ---- disks.c ---- */

void guest_disks_free(struct guest_disk *v, size_t n);
/* Devices of the graph as disks. */
int disks_from_graph(const struct block_graph *graph, struct guest_disk **ret, size_t *ret_n,
		     struct error *err) TM_WUR;
/* A format node that is no device's, as one disk: its name, file, read_only and bitmaps alone. */
int disks_from_node(const struct block_node *format, struct guest_disk **ret,
		    struct error *err) TM_WUR;
/* Fills chain_id, chain_hidden and the layers' ids from the files of the chain. */
void disk_identify_chain(struct guest_disk *d);
/* Are they still as they were then?  TM_E_STALE names the one that is not. */
int disk_check_chain(const struct guest *g, const struct guest_disk *d, struct error *err) TM_WUR;
/* Copies the name of the data file from what QEMU says of an image; NULL: it has none. */
int disk_data_file(const json_t *info, char **ret, struct error *err) TM_WUR;
/* Makes names unique in place. */
int disks_unique_names(struct guest_disk *v, size_t n, struct error *err) TM_WUR;
/* The device a disk belongs to; NULL when it is gone. */
const struct block_device *graph_find_device(const struct block_graph *graph, const char *qdev,
					     const char *drive);
/* Both name one existing file. */
bool same_file(const char *a, const char *b);
bool text_ends_with(const char *text, const char *end);

/* ---- image.c ---- */

int image_disks(struct guest *g, struct guest_disk **ret, size_t *ret_n, struct error *err) TM_WUR;
