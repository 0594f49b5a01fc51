/* SPDX-License-Identifier: Apache-2.0 */
/* Arguments of options: each kind checked and put into its field of struct options. */
#include "options_table.h"

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

int option_set_flag(const struct option_spec *spec, void *field, const char *value,
		    struct error *err)
{
	(void)spec;
	(void)value;
	(void)err;
	*(bool *)field = true;
	return 0;
}

int option_set_any_text(const struct option_spec *spec, void *field, const char *value,
			struct error *err)
{
	(void)spec;
	(void)err;
	*(const char **)field = value;
	return 0;
}

/* A script's variable that is not set is no choice of nothing. */
static int refuse_empty(const struct option_spec *spec, const char *value, struct error *err)
{
	return *value ? 0 : error_set(err, TM_E_USAGE, "--%s is empty", spec->name);
}

int option_set_text(const struct option_spec *spec, void *field, const char *value,
		    struct error *err)
{
	int r = refuse_empty(spec, value, err);

	return r ? r : option_set_any_text(spec, field, value, err);
}

int option_set_list(const struct option_spec *spec, void *field, const char *value,
		    struct error *err)
{
	int r = refuse_empty(spec, value, err);

	return r ? r : string_list_add(field, value, err);
}

int option_set_size(const struct option_spec *spec, void *field, const char *value,
		    struct error *err)
{
	int r = size_parse(value, field, err);

	if (r)
		error_prefix(err, "--%s", spec->name);
	return r;
}

/* "90s", "30m", "2h", "1d". */
int option_set_time(const struct option_spec *spec, void *field, const char *value,
		    struct error *err)
{
	static const struct {
		char unit;
		uint64_t ms;
	} units[] = {{'s', 1000}, {'m', 60000}, {'h', 3600000}, {'d', 86400000}};
	char *end = NULL;
	unsigned long v = isdigit((unsigned char)value[0]) ? strtoul(value, &end, 10) : 0;

	for (size_t i = 0; end && *end && !end[1] && i < ARRAY_SIZE(units); i++) {
		if (*end != units[i].unit || v == 0 || v > 1000000)
			continue;
		*(uint64_t *)field = v * units[i].ms;
		return 0;
	}
	return error_set(err, TM_E_USAGE, "--%s '%s' is not a time like 90s, 30m or 2h", spec->name,
			 value);
}

static int parse_number(const struct option_spec *spec, const char *value, unsigned min,
			unsigned max, unsigned *ret, struct error *err)
{
	char *end;
	unsigned long v = strtoul(value, &end, 10);

	if (!isdigit((unsigned char)*value) || *end || v < min || v > max)
		return error_set(err, TM_E_USAGE, "--%s '%s' is not a number from %u to %u",
				 spec->name, value, min, max);
	*ret = (unsigned)v;
	return 0;
}

int option_set_number(const struct option_spec *spec, void *field, const char *value,
		      struct error *err)
{
	return parse_number(spec, value, spec->min, spec->max, field, err);
}

/* Percent with up to four digits behind the point, as parts of a million. */
int option_set_share(const struct option_spec *spec, void *field, const char *value,
		     struct error *err)
{
	const char *p = value;
	unsigned parts = 0, digits = 0;
	bool point = false;

	for (; *p && parts <= 100 * 10000; p++) {
		if (*p == '.' && !point && p > value)
			point = true;
		else if (isdigit((unsigned char)*p) && (!point || digits++ < 4))
			parts = parts * 10 + (unsigned)(*p - '0');
		else
			break;
	}
	for (unsigned i = digits; i < 4 && parts <= 100 * 10000; i++)
		parts *= 10;
	if (!*value || *p || parts > 100 * 10000)
		return error_set(err, TM_E_USAGE, "--%s '%s' is not a percentage like 0, 0.1 or 5",
				 spec->name, value);
	*(unsigned *)field = parts;
	return 0;
}

#define MAX_KEEP 1000000

int option_set_count(const struct option_spec *spec, void *field, const char *value,
		     struct error *err)
{
	*(uint32_t *)field = RETAIN_ALL;
	if (strcmp(value, "all") == 0 || strcmp(value, "unlimited") == 0)
		return 0;
	return parse_number(spec, value, 0, MAX_KEEP, field, err);
}

/* "2y5m7d3h" */
int option_set_within(const struct option_spec *spec, void *field, const char *value,
		      struct error *err)
{
	typeof(((struct retention *)0)->within) *within = field;
	const char *p = value;

	while (isdigit((unsigned char)*p)) {
		char *end;
		unsigned long v = strtoul(p, &end, 10);
		unsigned n = (unsigned)v;

		if (v > 100000)
			break;
		if (*end == 'y')
			within->years = n;
		else if (*end == 'm')
			within->months = n;
		else if (*end == 'd')
			within->days = n;
		else if (*end == 'h')
			within->hours = n;
		else
			break;
		p = end + 1;
	}
	if (*p || p == value)
		return error_set(err, TM_E_USAGE, "--%s '%s' is no duration like 2y5m7d3h",
				 spec->name, value);
	return 0;
}

static int find_word(const struct option_spec *spec, const char *value, unsigned *ret,
		     struct error *err)
{
	int r;

	for (unsigned i = 0; spec->words[i]; i++) {
		if (strcmp(value, spec->words[i]) == 0) {
			*ret = i;
			return 0;
		}
	}
	r = error_set(err, TM_E_USAGE, "--%s does not know '%s'; it takes", spec->name, value);
	for (unsigned i = 0; spec->words[i]; i++)
		error_append(err, "%s %s", i ? "," : "", spec->words[i]);
	return r;
}

int option_set_word(const struct option_spec *spec, void *field, const char *value,
		    struct error *err)
{
	unsigned word = 0;
	int r = find_word(spec, value, &word, err);

	if (r)
		return r;
	word += spec->min;
	*(unsigned *)field = word;
	return 0;
}

int option_set_choice(const struct option_spec *spec, void *field, const char *value,
		      struct error *err)
{
	unsigned word = 0;

	*(const char **)field = value;
	return find_word(spec, value, &word, err);
}

int option_check_word(const struct option_spec *spec, void *field, const char *value,
		      struct error *err)
{
	unsigned word = 0;

	(void)field;
	return find_word(spec, value, &word, err);
}
