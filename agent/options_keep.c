/* SPDX-License-Identifier: Apache-2.0 */
#include "options_keep.h"

#include <ctype.h>
#include <string.h>

int string_list_add(struct string_list *list, const char *value, struct error *err)
{
	const char **v = realloc(list->v, (list->n + 1) * sizeof(*v));

	if (!v)
		return error_nomem(err);
	list->v = v;
	list->v[list->n++] = value;
	return 0;
}

static int parse_number(const char *option, const char *value, unsigned long max, uint32_t *ret,
			struct error *err)
{
	char *end;
	unsigned long v = strtoul(value, &end, 10);

	if (!isdigit((unsigned char)*value) || *end || v > max)
		return error_set(err, TM_E_USAGE, "--%s '%s' is not a number from 0 to %lu", option,
				 value, max);
	*ret = (uint32_t)v;
	return 0;
}

#define MAX_KEEP 1000000

static int parse_keep(const char *option, const char *value, uint32_t *ret, struct error *err)
{
	*ret = RETAIN_ALL;
	if (strcmp(value, "all") == 0 || strcmp(value, "unlimited") == 0)
		return 0;
	return parse_number(option, value, MAX_KEEP, ret, err);
}

/* "2y5m7d3h" */
static int parse_within(const char *value, struct retention *ret, struct error *err)
{
	const char *p = value;

	while (isdigit((unsigned char)*p)) {
		char *end;
		unsigned long v = strtoul(p, &end, 10);
		unsigned n = (unsigned)v;

		if (v > 100000)
			break;
		if (*end == 'y')
			ret->within.years = n;
		else if (*end == 'm')
			ret->within.months = n;
		else if (*end == 'd')
			ret->within.days = n;
		else if (*end == 'h')
			ret->within.hours = n;
		else
			break;
		p = end + 1;
	}
	if (*p || p == value)
		return error_set(err, TM_E_USAGE, "--keep-within '%s' is no duration like 2y5m7d3h",
				 value);
	return 0;
}

/* The rule that counts what the option names, or NULL. */
static uint32_t *keep_count(struct retention *r, const char *option)
{
	const struct {
		const char *option;
		uint32_t *count;
	} counts[] = {
		{"keep-last", &r->last},       {"keep-hourly", &r->hourly},
		{"keep-daily", &r->daily},     {"keep-weekly", &r->weekly},
		{"keep-monthly", &r->monthly}, {"keep-yearly", &r->yearly},
	};

	for (size_t i = 0; i < ARRAY_SIZE(counts); i++)
		if (strcmp(option, counts[i].option) == 0)
			return counts[i].count;
	return NULL;
}

int options_keep_apply(struct options *o, const char *option, const char *value, struct error *err)
{
	uint32_t *count = keep_count(&o->retention, option), n = 0;
	int r;

	if (count)
		return parse_keep(option, value, count, err);
	if (strcmp(option, "keep-within") == 0)
		return parse_within(value, &o->retention, err);
	if (strcmp(option, "keep-tag") == 0)
		return string_list_add(&o->keep_tags, value, err);
	if (strcmp(option, "prune") == 0) {
		o->prune = true;
		return 0;
	}
	if (strcmp(option, "max-unused") == 0) {
		r = parse_number(option, value, 100, &n, err);
		o->max_unused = n;
		return r;
	}
	if (strcmp(option, "stale-hours") != 0)
		abort(); /* every option has a meaning */
	r = parse_number(option, value, 100000, &n, err);
	o->stale_hours = n;
	return r;
}

static bool has_retention(const struct options *o)
{
	const struct retention *r = &o->retention;

	return r->last || r->hourly || r->daily || r->weekly || r->monthly || r->yearly ||
	       r->within.years || r->within.months || r->within.days || r->within.hours ||
	       o->keep_tags.n;
}

int options_keep_check(const struct options *o, struct error *err)
{
	if (o->args.n == 0 && !has_retention(o))
		return error_set(err, TM_E_USAGE,
				 "forget needs points, or a rule like --keep-daily 7");
	if (o->args.n > 0 && (has_retention(o) || o->guest))
		return error_set(err, TM_E_USAGE, "forget takes either points or rules, not both");
	return 0;
}
