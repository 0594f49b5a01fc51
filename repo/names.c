/* SPDX-License-Identifier: Apache-2.0 */
/* Object names (docs/format.md, "Names"). */
#include "names.h"

#include "internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* The longest name is far below KEY_MAX. */
static void name_print(char key[KEY_MAX], const char *fmt, ...) TM_PRINTF(2, 3);

static void name_print(char key[KEY_MAX], const char *fmt, ...)
{
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(key, KEY_MAX, fmt, ap);
	va_end(ap);
	assert(n > 0 && n < KEY_MAX);
}

void name_domain(const struct tm_id *domain, uint32_t generation, unsigned copy, char key[KEY_MAX])
{
	name_print(key, "domains/%s.%04" PRIx32 "%c", id_text(domain).s, generation,
		   (char)('a' + (char)copy));
}

void name_domain_folder(const struct repo *repo, char key[KEY_MAX])
{
	name_print(key, "d/%s/", id_text(&repo->domain).s);
}

void name_flag(const struct repo *repo, enum session_flag flag, const struct tm_id *sid,
	       char key[KEY_MAX])
{
	name_print(key, "d/%s/%c/%s", id_text(&repo->domain).s, (char)flag, id_text(sid).s);
}

void name_flag_number(const struct repo *repo, enum session_flag flag, const struct tm_id *sid,
		      uint32_t number, char key[KEY_MAX])
{
	name_print(key, flag == FLAG_HOLD ? "d/%s/%c/%s.%04" PRIx32 : "d/%s/%c/%s.%08" PRIx32,
		   id_text(&repo->domain).s, (char)flag, id_text(sid).s, number);
}

void name_flag_prefix(const struct repo *repo, enum session_flag flag, char key[KEY_MAX])
{
	name_print(key, "d/%s/%c/", id_text(&repo->domain).s, (char)flag);
}

void name_pin(const struct repo *repo, const struct tm_id *sid, uint32_t pin, char key[KEY_MAX])
{
	name_print(key, "d/%s/k/%s.p%04" PRIx32, id_text(&repo->domain).s, id_text(sid).s, pin);
}

void name_heartbeat(const struct repo *repo, const struct tm_id *sid, uint32_t seconds,
		    char key[KEY_MAX])
{
	name_print(key, "d/%s/k/%s.h%08" PRIx32, id_text(&repo->domain).s, id_text(sid).s, seconds);
}

void name_lost(const struct repo *repo, const struct tm_id *sid, uint8_t type, uint32_t index,
	       char key[KEY_MAX])
{
	name_print(key, "d/%s/%c/%s.%c%06" PRIx32 "-", id_text(&repo->domain).s, (char)FLAG_LOST,
		   id_text(sid).s, type == SEGMENT_DATA ? 'd' : 'm', index);
}

void name_segment(const struct repo *repo, const struct tm_id *sid, uint8_t type, uint32_t index,
		  uint32_t generation, uint32_t run, char key[KEY_MAX])
{
	name_print(key, "d/%s/s/%s/%03" PRIx32 "/%c%03" PRIx32 ".%04" PRIx32 "-%08" PRIx32,
		   id_text(&repo->domain).s, id_text(sid).s, index >> 12,
		   type == SEGMENT_DATA ? 'd' : 'm', index & 0xfff, generation, run);
}

void name_source_prefix(const struct repo *repo, const struct tm_id *src, char key[KEY_MAX])
{
	if (src)
		name_print(key, "d/%s/p/%s/", id_text(&repo->domain).s, id_text(src).s);
	else
		name_print(key, "d/%s/p/", id_text(&repo->domain).s);
}

void name_point(const struct repo *repo, const struct tm_id *src, uint32_t seq,
		const struct tm_id *sid, char key[KEY_MAX])
{
	name_print(key, "d/%s/p/%s/%08" PRIx32 "-%s", id_text(&repo->domain).s, id_text(src).s, seq,
		   id_text(sid).s);
}

static bool skip(const char **p, const char *text)
{
	size_t len = strlen(text);

	if (strncmp(*p, text, len) != 0)
		return false;
	*p += len;
	return true;
}

static bool skip_id(const char **p, struct tm_id *ret)
{
	if (!hex_decode(*p, ret->b, sizeof(ret->b)))
		return false;
	*p += TM_ID_HEX;
	return true;
}

bool name_parse_point(const struct repo *repo, const char *key, struct point_name *ret)
{
	uint8_t seq[4];
	char prefix[KEY_MAX];
	const char *p = key;

	name_source_prefix(repo, NULL, prefix);
	if (strlen(key) != strlen(prefix) + TM_ID_HEX + 1 + 8 + 1 + TM_ID_HEX)
		return false;
	if (!skip(&p, prefix) || !skip_id(&p, &ret->source) || !skip(&p, "/"))
		return false;
	if (!hex_decode(p, seq, sizeof(seq)))
		return false;
	p += 8;
	ret->seq = (uint32_t)seq[0] << 24 | (uint32_t)seq[1] << 16 | (uint32_t)seq[2] << 8 | seq[3];
	return skip(&p, "-") && skip_id(&p, &ret->session) && *p == 0;
}

bool name_parse_flag(const struct repo *repo, enum session_flag flag, const char *key,
		     struct tm_id *ret)
{
	char prefix[KEY_MAX];
	const char *p = key;

	name_flag_prefix(repo, flag, prefix);
	if (strlen(key) < strlen(prefix) + TM_ID_HEX)
		return false;
	return skip(&p, prefix) && skip_id(&p, ret) && (*p == 0 || *p == '.');
}

void name_session_prefix(const struct repo *repo, const struct tm_id *sid, char key[KEY_MAX])
{
	if (sid)
		name_print(key, "d/%s/s/%s/", id_text(&repo->domain).s, id_text(sid).s);
	else
		name_print(key, "d/%s/s/", id_text(&repo->domain).s);
}

static bool skip_hex(const char **p, unsigned digits, uint32_t *ret)
{
	*ret = 0;
	for (unsigned i = 0; i < digits; i++, (*p)++) {
		unsigned c = (unsigned char)**p;

		if (c >= '0' && c <= '9')
			*ret = *ret << 4 | (c - '0');
		else if (c >= 'a' && c <= 'f')
			*ret = *ret << 4 | (c - 'a' + 10);
		else
			return false;
	}
	return true;
}

bool name_parse_segment(const struct repo *repo, const char *key, struct segment_name *ret)
{
	char prefix[KEY_MAX];
	const char *p = key;
	uint32_t high, low;

	name_session_prefix(repo, NULL, prefix);
	if (!skip(&p, prefix) || !skip_id(&p, &ret->session) || !skip(&p, "/") ||
	    !skip_hex(&p, 3, &high) || !skip(&p, "/") || (*p != 'd' && *p != 'm'))
		return false;
	ret->type = *p++ == 'd' ? SEGMENT_DATA : SEGMENT_MAP;
	if (!skip_hex(&p, 3, &low) || !skip(&p, ".") || !skip_hex(&p, 4, &ret->generation) ||
	    !skip(&p, "-") || !skip_hex(&p, 8, &ret->run))
		return false;
	ret->index = high << 12 | low;
	return *p == 0;
}

bool name_parse_domain(const char *key, struct tm_id *ret, uint32_t *ret_generation,
		       unsigned *ret_copy)
{
	const char *p = key;

	if (!skip(&p, "domains/") || !skip_id(&p, ret) || !skip(&p, ".") ||
	    !skip_hex(&p, 4, ret_generation) || (*p != 'a' && *p != 'b'))
		return false;
	*ret_copy = *p == 'b';
	return p[1] == 0;
}

bool name_parse_suffix(const char *text, unsigned digits, uint32_t *ret)
{
	return skip_hex(&text, digits, ret) && *text == 0;
}

bool name_parse_number(const char *key, unsigned digits, uint32_t *ret)
{
	const char *dot = strrchr(key, '.');

	return dot && name_parse_suffix(dot + 1, digits, ret);
}
