/* SPDX-License-Identifier: Apache-2.0 */
/* QEMU's block graph as of one moment: devices, nodes, and who stands on whom. */
#pragma once

#include "qmp.h"

struct block_node {
	const char *name;
	const char *drv;
	const char *file; /* the image's name as QEMU knows it */
	bool ro;
	bool encrypted;
	uint64_t size; /* virtual, bytes */
	const json_t *info;
	const struct block_node *file_child;
	const struct block_node *backing_child;
};

struct block_device {
	const char *qdev;  /* QOM path, or NULL */
	const char *drive; /* name of -drive, or NULL */
	bool removable;
	const struct block_node *top; /* NULL: no medium */
};

/* All strings are borrowed from the three replies, which the graph owns. */
struct block_graph {
	json_t *query_block, *named, *edges;
	struct block_node *nodes;
	size_t nnodes;
	struct block_device *devices;
	size_t ndevices;
};

#define auto_graph __attribute__((cleanup(block_graph_done)))

/* Takes new references on the replies; *ret must be {0} or done. */
int block_graph_parse(json_t *query_block, json_t *named, json_t *edges, struct block_graph *ret,
		      struct error *err) TM_WUR;
int block_graph_load(struct qmp *q, struct block_graph *ret, struct error *err) TM_WUR;
void block_graph_done(struct block_graph *g);

const struct block_node *block_graph_node(const struct block_graph *g, const char *name);

/* The node of the image itself, below throttle and other filters; NULL when there is none. */
const struct block_node *block_node_format(const struct block_node *top);
/* The node that opens the file or device below a format node. */
const struct block_node *block_node_storage(const struct block_node *format);
/* "qcow2", "raw", …: what qemu-img calls the format of this node. */
const char *block_node_format_name(const struct block_node *format);
/* A qcow2 node that can hold persistent bitmaps. */
bool block_node_can_persist(const struct block_node *format);
