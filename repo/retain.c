/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Retention: which points of a guest stay.  No I/O, nothing but numbers.
 *
 * Points come with two orders: that of their commits (seq), which the repository made,
 * and that of their times, which some clock said.  Where the two disagree, or a time lies
 * in the future, the time is odd: such a point counts for no period, and no rule about
 * periods drops it.  So points with made-up times cannot push others out.
 */
#include "repo.h"

#include <string.h>
#include <time.h>

/* Clocks of hosts differ; steps below this are no sign of a wrong time. */
#define SLACK_MS (UINT64_C(3600) * 1000)

struct period {
	const char *reason;
	uint32_t left;
	/* Equal numbers, same period. */
	long (*number)(const struct tm *tm);
};

static long year_of(const struct tm *tm)
{
	return tm->tm_year;
}

static long month_of(const struct tm *tm)
{
	return 12L * tm->tm_year + tm->tm_mon;
}

/* ISO weeks: year and week of the Thursday. */
static long week_of(const struct tm *tm)
{
	char text[16];

	return strftime(text, sizeof(text), "%G%V", tm) ? strtol(text, NULL, 10) : 0;
}

static long day_of(const struct tm *tm)
{
	return 366L * tm->tm_year + tm->tm_yday;
}

static long hour_of(const struct tm *tm)
{
	return 24 * day_of(tm) + tm->tm_hour;
}

static int newest_first(const void *a, const void *b)
{
	const struct retain_point *x = a, *y = b;

	if (x->seq != y->seq)
		return x->seq > y->seq ? -1 : 1;
	if (x->created_ms != y->created_ms)
		return x->created_ms > y->created_ms ? -1 : 1;
	return memcmp(&y->id, &x->id, sizeof(x->id));
}

static void keep(struct retain_point *p, const char *reason)
{
	if (!p->reason)
		p->reason = reason;
}

/*
 * The time that counts, ascending with seq, into times[]; 0: odd.  From the oldest to the newest
 * a time may not fall behind what was reached before.
 */
static void settle_times(uint64_t now_ms, const struct retain_point *v, size_t n, uint64_t *times)
{
	uint64_t reached = 1;

	for (size_t i = n; i-- > 0;) {
		uint64_t t = v[i].created_ms;

		times[i] = 0;
		if (t > now_ms && t - now_ms > SLACK_MS)
			continue;
		if (t < reached && reached - t > SLACK_MS)
			continue;
		reached = max_u64(reached, t);
		times[i] = reached;
	}
}

static bool has_tag(const char *const *tags, size_t n, const char *tag, size_t len)
{
	for (size_t i = 0; i < n; i++)
		if (strlen(tags[i]) == len && memcmp(tags[i], tag, len) == 0)
			return true;
	return false;
}

static bool has_list(const char *const *tags, size_t n, const char *list)
{
	for (const char *part = list;; part++) {
		size_t len = strcspn(part, ",");

		if (!has_tag(tags, n, part, len))
			return false;
		part += len;
		if (!*part)
			return true;
	}
}

bool retain_has_tag(const struct retention *rule, const char *const *tags, size_t n)
{
	for (size_t k = 0; k < rule->ntags; k++)
		if (has_tag(tags, n, rule->tags[k], strlen(rule->tags[k])) ||
		    has_list(tags, n, rule->tags[k]))
			return true;
	return false;
}

static void keep_period(struct period *b, struct retain_point *v, size_t n, const uint64_t *times)
{
	size_t oldest = n;
	long last = -1;

	for (size_t i = n; oldest == n && i-- > 0;)
		if (times[i])
			oldest = i;
	for (size_t i = 0; b->left > 0 && i < n; i++) {
		time_t t = (time_t)(times[i] / 1000);
		struct tm tm;
		long now;

		if (!times[i] || !localtime_r(&t, &tm))
			continue;
		now = b->number(&tm);
		/* While the count lasts, the oldest point stays: history is as long as can be. */
		if (now == last && i != oldest)
			continue;
		last = now;
		keep(&v[i], b->reason);
		if (b->left != RETAIN_ALL)
			b->left--;
	}
}

static void keep_periods(const struct retention *rule, struct retain_point *v, size_t n,
			 const uint64_t *times)
{
	struct period periods[] = {
		{.reason = "hourly", .left = rule->hourly, .number = hour_of},
		{.reason = "daily", .left = rule->daily, .number = day_of},
		{.reason = "weekly", .left = rule->weekly, .number = week_of},
		{.reason = "monthly", .left = rule->monthly, .number = month_of},
		{.reason = "yearly", .left = rule->yearly, .number = year_of},
	};

	for (size_t i = 0; i < ARRAY_SIZE(periods); i++)
		keep_period(&periods[i], v, n, times);
}

/* The instant that the span before the newest time reaches back to. */
static uint64_t within_begin(const struct retention *rule, uint64_t newest_ms)
{
	time_t t = (time_t)(newest_ms / 1000), begin;
	struct tm tm;

	if (!localtime_r(&t, &tm))
		return 0;
	tm.tm_year -= (int)rule->within.years;
	tm.tm_mon -= (int)rule->within.months;
	tm.tm_mday -= (int)rule->within.days;
	tm.tm_isdst = -1;
	begin = mktime(&tm) - (time_t)rule->within.hours * 3600;
	return begin < 0 ? 0 : (uint64_t)begin * 1000 + newest_ms % 1000;
}

static bool has_within(const struct retention *rule)
{
	return rule->within.years || rule->within.months || rule->within.days || rule->within.hours;
}

static void keep_within(const struct retention *rule, struct retain_point *v, size_t n,
			const uint64_t *times)
{
	uint64_t begin = UINT64_MAX;

	if (!has_within(rule))
		return;
	for (size_t i = 0; i < n; i++) {
		if (!times[i])
			continue;
		if (begin == UINT64_MAX)
			begin = within_begin(rule, times[i]);
		if (times[i] > begin)
			keep(&v[i], "within");
	}
}

static bool uses_time(const struct retention *rule)
{
	return rule->hourly || rule->daily || rule->weekly || rule->monthly || rule->yearly ||
	       has_within(rule);
}

static void keep_odd(struct retain_point *v, size_t n, const uint64_t *times)
{
	for (size_t i = 0; i < n; i++)
		if (!times[i])
			keep(&v[i], "odd time");
}

void retain(const struct retention *rule, uint64_t now_ms, struct retain_point *v, size_t n)
{
	auto_free uint64_t *times = calloc(n ? n : 1, sizeof(*times));
	bool any = false;

	if (n > 1)
		qsort(v, n, sizeof(*v), newest_first);
	for (size_t i = 0; i < n; i++) {
		v[i].reason = times ? NULL : "out of memory";
		if (v[i].is_protected)
			keep(&v[i], "protected");
		if (retain_has_tag(rule, v[i].tags, v[i].ntags))
			keep(&v[i], "tag");
		if (i < rule->last)
			keep(&v[i], "last");
	}
	if (!times)
		return;
	settle_times(now_ms, v, n, times);
	keep_periods(rule, v, n, times);
	keep_within(rule, v, n, times);
	if (uses_time(rule))
		keep_odd(v, n, times);
	for (size_t i = 0; i < n; i++)
		any = any || v[i].reason;
	if (n > 0 && !any) /* no rule takes a guest's last point */
		keep(&v[0], "newest");
}
