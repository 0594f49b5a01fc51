/* SPDX-License-Identifier: Apache-2.0 */
/* Whatever state a disk is in, look at it, and take the next step from there. */
#include "collapse_disk.h"
#include "names.h"
#include "overlay.h"

#include "guard.h"

#include <stdio.h>
#include <string.h>

#define RECONNECT_MS 30000

static uint64_t now_ms(void)
{
	return clock_monotonic_ms(&clock_system);
}

void collapse_say(struct collapse *c, const char *what)
{
	log_debug("disk %s: %s", c->d->name, what);
	if (c->opt->lines && text_list_add(c->opt->lines, NULL, "disk %s: %s", c->d->name, what))
		log_debug("no memory for a line of the report");
}

void collapse_hold(struct collapse *c, bool held)
{
	guest_set_quiet(c->g, held);
	if (held)
		guard_hold(c->g->guard);
	else
		guard_release(c->g->guard);
}

static bool is_file(const struct block_node *format, const char *file)
{
	return format && same_file(block_node_storage(format)->file, file);
}

/* What stands on it, filters only: the node that a device had.  NULL: something else does. */
static const struct block_node *root_above(const struct block_graph *graph,
					   const struct block_node *node)
{
	for (size_t i = 0, depth = 0; i < graph->nnodes && depth < 64; i++) {
		const struct block_node *n = &graph->nodes[i];

		if (n->file_child != node && n->backing_child != node)
			continue;
		if (block_node_format(n) == n)
			return NULL;
		node = n;
		depth++;
		i = SIZE_MAX; /* once more from the first */
	}
	return node;
}

/* A device that was unplugged leaves its nodes behind. */
static void look_without_device(const struct block_graph *graph, const struct journal_disk *d,
				struct collapse_view *v)
{
	const struct block_node *base, *top;

	if (!is_file(v->ours, d->overlay))
		return;
	base = block_node_format(v->ours->backing_child);
	top = root_above(graph, v->ours);
	if (!is_file(base, d->base))
		base = NULL;
	if (!top || (!base && (d->how == COLLAPSE_COMMIT || d->pivot == PIVOT_NONE)))
		return; /* only a pull takes it off its base */
	v->no_device = true;
	v->state = COLLAPSE_ON_OVERLAY;
	v->top = top;
	v->active = v->ours;
	v->base = base;
}

struct collapse_view collapse_look(const struct block_graph *graph, const struct journal_disk *d)
{
	const struct block_device *dev = graph_find_device(graph, d->qdev, d->drive);
	struct collapse_view v = {.state = COLLAPSE_GONE};

	v.ours = d->overlay_node ? block_graph_node(graph, d->overlay_node) : NULL;
	v.top = dev ? dev->top : NULL;
	v.active = block_node_format(v.top);
	if (is_file(v.active, d->overlay)) {
		v.state = COLLAPSE_ON_OVERLAY;
		v.base = block_node_format(v.active->backing_child);
		if (!is_file(v.base, d->base))
			v.base = NULL;
	} else if (is_file(v.active, d->base)) {
		v.state = COLLAPSE_ON_BASE;
		v.base = v.active;
	} else {
		look_without_device(graph, d, &v);
	}
	return v;
}

int collapse_drop_overlay(struct guest *g, const struct journal_disk *d, struct error *err)
{
	int r = d->overlay_node ? guest_delete_node(g, d->overlay_node, err) : 0;

	return r ? r : overlay_remove(d->overlay, err);
}

/* The connection was lost: in PENDING the guest's I/O stands until we are back. */
int collapse_reconnect(struct guest *g, struct error *err)
{
	uint64_t deadline = now_ms() + RECONNECT_MS;

	for (;;) {
		struct error e = {0};
		int r = guest_connect(g, &e);

		if (!r)
			return 0;
		if (r == TM_E_NOTFOUND || now_ms() >= deadline)
			return error_set(err, r, "QEMU cannot be reached again: %s", e.text);
		clock_sleep_ms(&clock_system, 100);
	}
}

int collapse_name_job(struct collapse *c, const char *kind, struct error *err)
{
	c->phase = kind;
	c->progress = c->moved_ms = c->first = c->starved_ms = c->starved_at = 0;
	c->jobs = 0;
	c->unlimited = false;
	if (snprintf(c->job, sizeof(c->job), "tm-%.12s-%zu-%s",
		     id_text(&c->j->point).s + TM_ID_HEX - 12, (size_t)(c->d - c->j->disks),
		     kind) < 0)
		return error_set(err, TM_E_RANGE, "job name");
	return 0;
}

static int collapse_disk(struct collapse *c, struct error *err)
{
	bool done = false;
	int r = collapse_name_job(c, c->d->how == COLLAPSE_COMMIT ? "commit" : "pull", err);

	while (!r && !done) {
		struct error e = {0};

		r = c->d->how == COLLAPSE_COMMIT ? collapse_commit_step(c, &done, &e)
						 : collapse_pull_step(c, &done, &e);
		if (r && c->g->qmp && qmp_lost(c->g->qmp)) {
			log_debug("%s", e.text);
			e = (struct error){0};
			r = collapse_reconnect(c->g, &e);
		}
		(void)error_pass(err, r, &e);
	}
	collapse_hold(c, false);
	if (r)
		error_prefix(err, "disk %s", c->d->name);
	return r;
}

int collapse_resume(struct guest *g, const struct journal *j, struct error *err)
{
	char *state;
	int r;

	if (!j->state || strcmp(j->state, "running") != 0)
		return 0;
	r = guest_query_state(g, &state, err);
	if (r)
		return r;
	if (strcmp(state, "io-error") == 0)
		r = guest_do(g, "cont", NULL, err);
	free(state);
	return r;
}

void collapse_take_back(struct journal *j)
{
	for (size_t i = 0; j->phase < JOURNAL_PULLING && i < j->ndisks; i++)
		j->disks[i].how = COLLAPSE_COMMIT;
}

int collapse_note_moved(const struct journal *j, struct error *err)
{
	int r = 0;

	for (size_t i = 0; !r && i < j->ndisks; i++) {
		const struct journal_disk *d = &j->disks[i];

		if (d->how == COLLAPSE_PULL && d->pivot == PIVOT_DONE)
			r = names_note_moved(d->base, d->overlay, err);
	}
	return r;
}

int collapse_disks(struct guest *g, struct journal *j, const struct collapse_options *opt,
		   struct error *err)
{
	struct error first = {0};
	int r = 0;

	for (size_t i = 0; i < j->ndisks; i++) {
		struct collapse c = {.g = g, .j = j, .d = &j->disks[i], .opt = opt};
		struct error e = {0};
		int rd;

		if (!c.d->overlay)
			continue;
		rd = collapse_disk(&c, &e);
		if (rd && !r) { /* the other disks are still worth it */
			r = rd;
			first = e;
		}
		if (rd && (!g->qmp || qmp_lost(g->qmp)))
			break;
	}
	return error_pass(err, r, &first);
}
