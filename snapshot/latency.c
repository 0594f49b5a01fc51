/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How long the guest's own writes take, by the histograms that QEMU keeps for a device when
 * asked to (qapi/block-core.json: BlockLatencyHistogramInfo).  One that somebody else asked for
 * is read and left as it is.
 */
#include "prepare.h"

#include <string.h>

#define WAIT_MS 2000 /* for QEMU's answer; one that hangs is found out by whoever reads */
/*
 * The last boundary of our histograms, ns: no write takes a thousand years, so it says whose the
 * histogram is and changes nothing in it.
 */
#define OUR_BOUNDARY ((json_int_t)0x746964656d61726b)

static bool reachable(const struct snapshot *s)
{
	return s->g->kind == GUEST_QMP && s->g->qmp && !qmp_lost(s->g->qmp);
}

/* The statistics of a device in the answer of query-blockstats, or NULL. */
static const json_t *find_stats(const json_t *list, const char *qdev)
{
	size_t at;
	const json_t *entry;

	json_array_foreach(list, at, entry)
	{
		const char *text = jsonx_text(entry, "qdev");

		if (text && strcmp(text, qdev) == 0)
			return json_object_get(entry, "stats");
	}
	return NULL;
}

static bool is_ours(const json_t *histogram)
{
	const json_t *v = json_object_get(histogram, "boundaries");
	size_t n = json_array_size(v);

	return n && json_integer_value(json_array_get(v, n - 1)) == OUR_BOUNDARY;
}

static int set_histogram(struct snapshot *s, const char *qdev, uint64_t slow_ns, struct error *err)
{
	json_t *args;
	int r = jsonx_make(&args, err, "{s:s, s:[I, I]}", "id", qdev, "boundaries-write",
			   (json_int_t)slow_ns, OUR_BOUNDARY);

	return r ? r : qmp_call(s->g->qmp, "block-latency-histogram-set", args, WAIT_MS, NULL, err);
}

/* Without boundaries all histograms of the device go: only where ours is the only one. */
static void drop_histogram(struct snapshot *s, const char *qdev, const json_t *stats)
{
	struct error e = {0};
	json_t *args;
	int r;

	if (!is_ours(json_object_get(stats, "wr_latency_histogram")) ||
	    json_object_get(stats, "rd_latency_histogram") ||
	    json_object_get(stats, "flush_latency_histogram"))
		return;
	r = jsonx_make(&args, &e, "{s:s}", "id", qdev);
	if (!r)
		r = qmp_call(s->g->qmp, "block-latency-histogram-set", args, WAIT_MS, NULL, &e);
	if (r)
		log_debug("the latency histogram of %s stays: %s", qdev, e.text);
}

int snapshot_watch_writes(struct snapshot *s, uint64_t slow_ns, struct error *err)
{
	auto_json json_t *list = NULL;
	int r;

	s->slow_ns = slow_ns;
	if (!reachable(s))
		return 0;
	r = qmp_call(s->g->qmp, "query-blockstats", NULL, WAIT_MS, &list, err);
	for (size_t i = 0; !r && i < s->j->ndisks; i++) {
		const char *qdev = s->j->disks[i].qdev;
		const json_t *stats = qdev ? find_stats(list, qdev) : NULL;
		const json_t *there = json_object_get(stats, "wr_latency_histogram");

		if (stats && (!there || is_ours(there)))
			r = set_histogram(s, qdev, slow_ns, err);
	}
	return r;
}

/* A bin is slow when all of it is: from its lower boundary on. */
static void add_histogram(const json_t *histogram, uint64_t slow_ns, struct write_counts *sum)
{
	const json_t *bins = json_object_get(histogram, "bins"), *bin;
	const json_t *boundaries = json_object_get(histogram, "boundaries");
	size_t at;

	json_array_foreach(bins, at, bin)
	{
		json_int_t n = json_integer_value(bin);
		json_int_t from = at ? json_integer_value(json_array_get(boundaries, at - 1)) : 0;

		if (n <= 0)
			continue;
		sum->all += (uint64_t)n;
		if (from > 0 && (uint64_t)from >= slow_ns)
			sum->slow += (uint64_t)n;
	}
}

bool snapshot_count_writes(struct snapshot *s, struct write_counts *ret)
{
	auto_json json_t *list = NULL;

	*ret = (struct write_counts){0};
	if (!reachable(s) || qmp_call(s->g->qmp, "query-blockstats", NULL, WAIT_MS, &list, NULL))
		return false;
	for (size_t i = 0; i < s->j->ndisks; i++) {
		const char *qdev = s->j->disks[i].qdev;

		if (qdev)
			add_histogram(
				json_object_get(find_stats(list, qdev), "wr_latency_histogram"),
				s->slow_ns, ret);
	}
	return true;
}

void latency_end(struct snapshot *s)
{
	auto_json json_t *list = NULL;

	if (!s->slow_ns || !reachable(s) ||
	    qmp_call(s->g->qmp, "query-blockstats", NULL, WAIT_MS, &list, NULL))
		return;
	s->slow_ns = 0;
	for (size_t i = 0; i < s->j->ndisks; i++) {
		const char *qdev = s->j->disks[i].qdev;

		if (qdev)
			drop_histogram(s, qdev, find_stats(list, qdev));
	}
}
