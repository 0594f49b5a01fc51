/* SPDX-License-Identifier: Apache-2.0 */
#include "text.h"

#include "checked.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

/* The length of the sequence at p, 0: it is none. */
static size_t utf8_sequence(const unsigned char *p)
{
	size_t n = *p < 0x80                 ? 1
		   : *p >= 0xc2 && *p < 0xe0 ? 2
		   : *p >= 0xe0 && *p < 0xf0 ? 3
		   : *p >= 0xf0 && *p < 0xf5 ? 4
					     : 0;

	for (size_t i = 1; i < n; i++) {
		if ((p[i] & 0xc0) != 0x80)
			return 0;
	}
	/* overlong, a surrogate, or beyond U+10FFFF */
	if ((*p == 0xe0 && p[1] < 0xa0) || (*p == 0xed && p[1] > 0x9f) ||
	    (*p == 0xf0 && p[1] < 0x90) || (*p == 0xf4 && p[1] > 0x8f))
		return 0;
	return n;
}

bool text_is_utf8(const char *text)
{
	size_t n;

	for (const unsigned char *p = (const unsigned char *)text; *p; p += n) {
		n = utf8_sequence(p);
		if (!n)
			return false;
	}
	return true;
}

static const char size_units[] = "KMGTP";

/* Digits at *p, moved behind them; false when they are too many, and *p is somewhere among them. */
static bool whole_number(const char **p, uint64_t *ret)
{
	*ret = 0;
	for (; isdigit((unsigned char)**p); ++*p) {
		if (__builtin_mul_overflow(*ret, 10u, ret) ||
		    __builtin_add_overflow(*ret, (unsigned)(**p - '0'), ret))
			return false;
	}
	return true;
}

/* ".25" as 25 of 100; digits behind the sixth change nothing. */
static void fraction_of(const char **p, uint64_t *ret, uint64_t *ret_scale)
{
	*ret = 0;
	*ret_scale = 1;
	if (**p != '.')
		return;
	for (++*p; isdigit((unsigned char)**p); ++*p) {
		if (*ret_scale >= 1000000)
			continue;
		*ret = *ret * 10 + (unsigned)(**p - '0');
		*ret_scale *= 10;
	}
}

/* The unit at *p, with or without "iB"; 1 when there is none. */
static bool unit_of(const char **p, uint64_t *ret)
{
	const char *u = strchr(size_units, toupper((unsigned char)**p));

	*ret = 1;
	if (!**p)
		return true;
	if (!u)
		return false;
	*ret = UINT64_C(1) << (10 * (unsigned)(u - size_units + 1));
	++*p;
	if ((*p)[0] == 'i' && (*p)[1] == 'B')
		*p += 2;
	return **p == '\0';
}

int size_parse(const char *text, uint64_t *ret, struct error *err)
{
	uint64_t whole, fraction, scale, unit;
	const char *p = text;

	if (!isdigit((unsigned char)*p))
		return error_set(err, TM_E_USAGE,
				 "'%s' is not a size (a number, perhaps with K, M, G, T or P)",
				 text);
	if (!whole_number(&p, &whole))
		return error_set(err, TM_E_USAGE, "the size '%s' is too large", text);
	fraction_of(&p, &fraction, &scale);
	if (!unit_of(&p, &unit))
		return error_set(err, TM_E_USAGE, "'%s' is not a size (units are K, M, G, T and P)",
				 text);
	/* fraction < 10^6 and unit <= 2^50 in the divided form: no overflow */
	if (__builtin_mul_overflow(whole, unit, &whole) ||
	    __builtin_add_overflow(whole, unit / 1024 * fraction / scale * 1024, ret))
		return error_set(err, TM_E_USAGE, "the size '%s' is too large", text);
	return 0;
}

void size_format(uint64_t bytes, char text[SIZE_TEXT_MAX])
{
	unsigned u = 0;
	double v = (double)bytes;

	while (v >= 1023.95 && u < sizeof(size_units) - 1) {
		v /= 1024;
		u++;
	}
	if (u == 0)
		(void)snprintf(text, SIZE_TEXT_MAX, "%u B", (unsigned)bytes);
	else
		(void)snprintf(text, SIZE_TEXT_MAX, "%.1f %ciB", v, size_units[u - 1]);
}

static void format_time(uint64_t ms, bool utc, char text[TIME_TEXT_MAX])
{
	time_t t = (time_t)(ms / 1000);
	struct tm tm;

	if (ms / 1000 > INT64_C(253402300799) ||
	    !(utc ? gmtime_r(&t, &tm) : localtime_r(&t, &tm)) ||
	    !strftime(text, TIME_TEXT_MAX, utc ? "%Y-%m-%dT%H:%M:%SZ" : "%Y-%m-%d %H:%M:%S", &tm))
		(void)snprintf(text, TIME_TEXT_MAX, "?");
}

void time_format_utc(uint64_t ms, char text[TIME_TEXT_MAX])
{
	format_time(ms, true, text);
}

void time_format_local(uint64_t ms, char text[TIME_TEXT_MAX])
{
	format_time(ms, false, text);
}

/* Two digits at *p after the separator sep; moves *p behind them. */
static bool two_digits(const char **p, char sep, int *ret)
{
	const char *s = *p;

	if (s[0] != sep || !isdigit((unsigned char)s[1]) || !isdigit((unsigned char)s[2]))
		return false;
	*ret = (s[1] - '0') * 10 + (s[2] - '0');
	*p = s + 3;
	return true;
}

/* "Z", "+01:00", "-0130" or nothing: minutes east of UTC. */
static bool parse_zone(const char *p, bool *ret_given, int *ret_minutes)
{
	int sign = *p == '-' ? -1 : 1, h, m;

	*ret_given = true;
	*ret_minutes = 0;
	if (!*p) {
		*ret_given = false;
		return true;
	}
	if (strcmp(p, "Z") == 0)
		return true;
	if (*p != '+' && *p != '-')
		return false;
	if (!two_digits(&p, *p, &h))
		return false;
	if (*p == ':')
		p++;
	if (!isdigit((unsigned char)p[0]) || !isdigit((unsigned char)p[1]) || p[2])
		return false;
	m = (p[0] - '0') * 10 + (p[1] - '0');
	*ret_minutes = sign * (h * 60 + m);
	return true;
}

int time_parse(const char *text, uint64_t *ret, struct error *err)
{
	struct tm tm = {.tm_mday = 1, .tm_isdst = -1};
	const char *p = text + strspn(text, "0123456789");
	uint64_t span = 86400; /* seconds that the text names */
	bool zone;
	int offset;
	time_t t;

	if (p - text != 4)
		goto bad;
	tm.tm_year = (text[0] - '0') * 1000 + (text[1] - '0') * 100 + (text[2] - '0') * 10 +
		     text[3] - '0' - 1900;
	if (!two_digits(&p, '-', &tm.tm_mon) || !two_digits(&p, '-', &tm.tm_mday))
		goto bad;
	tm.tm_mon--;
	if (two_digits(&p, *p == ' ' ? ' ' : 'T', &tm.tm_hour)) {
		span = 3600;
		if (two_digits(&p, ':', &tm.tm_min))
			span = 60;
		if (span == 60 && two_digits(&p, ':', &tm.tm_sec))
			span = 1;
		if (span == 1 && *p == '.')
			p += 1 + strspn(p + 1, "0123456789");
	}
	if (tm.tm_mon < 0 || tm.tm_mon > 11 || tm.tm_mday < 1 || tm.tm_mday > 31 ||
	    tm.tm_hour > 23 || tm.tm_min > 59 || tm.tm_sec > 60 || tm.tm_year < 70 ||
	    !parse_zone(p, &zone, &offset))
		goto bad;
	t = zone ? timegm(&tm) - (time_t)offset * 60 : mktime(&tm);
	if (t < 0)
		goto bad;
	*ret = ((uint64_t)t + span) * 1000 - 1;
	return 0;
bad:
	return error_set(err, TM_E_USAGE, "'%s' is not a time like 2026-11-21T03:00", text);
}
