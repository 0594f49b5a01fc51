/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every byte of an object against its checksums, without a key (docs/format.md, "Verification").
 */
#include "scrub.h"

#include "keyring.h"

#include <inttypes.h>
#include <string.h>

/* Objects with a fixed header and, where body_len is not 0, a body behind it. */
struct small_kind {
	const char *magic;
	size_t head_len;
	size_t body_len, body_crc; /* offsets of the fields */
};

static const struct small_kind small_kinds[] = {
	{MAGIC_REPO, sizeof(struct format_repo), 0, 0},
	{MAGIC_DOMAIN, sizeof(struct format_domain), 0, 0},
	{MAGIC_CHECK, sizeof(struct format_check), 0, 0},
	{MAGIC_FLAG, sizeof(struct format_flag), 0, 0},
	{MAGIC_KEY, sizeof(struct format_key), offsetof(struct format_key, body_len),
	 offsetof(struct format_key, body_crc)},
	{MAGIC_SESSION, sizeof(struct format_session), offsetof(struct format_session, body_len),
	 offsetof(struct format_session, body_crc)},
	{MAGIC_LOST, sizeof(struct format_lost), offsetof(struct format_lost, body_len),
	 offsetof(struct format_lost, body_crc)},
	{MAGIC_POINT, sizeof(struct format_point), offsetof(struct format_point, body_len),
	 offsetof(struct format_point, body_crc)},
};

static bool has(const char *text, const char *part)
{
	return strstr(text, part) != NULL;
}

static bool is_flag(const char *key)
{
	return has(key, "/t/") || has(key, "/f/") || has(key, "/v/") || has(key, "/h/") ||
	       (has(key, "/k/") && has(key, ".h"));
}

/* What lies under a name; NULL: this version does not know. */
static const struct small_kind *kind_of(const char *key)
{
	const char *magic = NULL;
	uint32_t generation;
	unsigned copy;
	struct tm_id id;

	if (strcmp(key, "repo") == 0)
		magic = MAGIC_REPO;
	else if (name_parse_key(key, &id, &copy))
		magic = MAGIC_KEY;
	else if (name_parse_domain(key, &id, &generation, &copy))
		magic = MAGIC_DOMAIN;
	else if (strncmp(key, "d/", 2) == 0 && is_flag(key))
		magic = MAGIC_FLAG;
	else if (strncmp(key, "d/", 2) == 0 && has(key, "/k/"))
		magic = MAGIC_SESSION;
	else if (strncmp(key, "d/", 2) == 0 && has(key, "/p/"))
		magic = MAGIC_POINT;
	else if (strncmp(key, "d/", 2) == 0 && has(key, "/x/"))
		magic = MAGIC_LOST;
	else if (strncmp(key, "d/", 2) == 0 && has(key, "/c/"))
		magic = MAGIC_CHECK;
	for (size_t i = 0; magic && i < ARRAY_SIZE(small_kinds); i++)
		if (strcmp(small_kinds[i].magic, magic) == 0)
			return &small_kinds[i];
	return NULL;
}

bool scrub_knows(const char *key)
{
	return kind_of(key) != NULL;
}

int scrub_small(const char *key, const void *bytes, size_t len, struct error *err)
{
	const struct small_kind *k = kind_of(key);
	const uint8_t *b = bytes;
	struct le32 field;
	size_t body = 0;
	int r;

	if (!k)
		return 0;
	r = format_head_check(bytes, len, k->magic, k->head_len, NULL, key, err);
	if (r < 0)
		return r;
	if (k->body_len) {
		memcpy(&field, b + k->body_len, sizeof(field));
		body = le32_get(field);
	}
	if (len != k->head_len + body)
		return error_set(err, TM_E_CORRUPT, "%s is %zu bytes, expected %zu", key, len,
				 k->head_len + body);
	if (!k->body_len)
		return 0;
	memcpy(&field, b + k->body_crc, sizeof(field));
	if (crc32c(0, b + k->head_len, body) != le32_get(field))
		return error_set(err, TM_E_CORRUPT, "%s: body checksum is wrong", key);
	return 0;
}

static bool hex_number(const char **p, size_t digits, uint32_t *ret)
{
	*ret = 0;
	for (size_t i = 0; i < digits; i++, (*p)++) {
		char c = **p;

		if (!((c >= '0' && c <= '9') || (c >= 'a' && c <= 'f')))
			return false;
		*ret = *ret << 4 | (uint32_t)(c <= '9' ? c - '0' : c - 'a' + 10);
	}
	return true;
}

static bool skip_char(const char **p, char c)
{
	return *(*p)++ == c;
}

bool scrub_parse_segment(const struct repo *repo, const char *key, struct seg_address *ret)
{
	uint32_t high, low, generation, run;
	char prefix[KEY_MAX];
	const char *p = key;

	name_flag_prefix(repo, FLAG_SEGMENTS, prefix);
	if (strncmp(key, prefix, strlen(prefix)) != 0)
		return false;
	p += strlen(prefix);
	*ret = (struct seg_address){
		.repo = repo->id, .domain = repo->domain, .block_bits = (uint8_t)repo->block_bits};
	if (strlen(p) != TM_ID_HEX + 1 + 3 + 1 + 4 + 1 + 4 + 1 + 8 ||
	    !hex_decode(p, ret->session.b, sizeof(ret->session.b)))
		return false;
	p += TM_ID_HEX;
	if (!skip_char(&p, '/') || !hex_number(&p, 3, &high) || !skip_char(&p, '/') ||
	    (*p != 'd' && *p != 'm'))
		return false;
	ret->type = *p++ == 'd' ? SEGMENT_DATA : SEGMENT_MAP;
	if (!hex_number(&p, 3, &low) || !skip_char(&p, '.') || !hex_number(&p, 4, &generation) ||
	    !skip_char(&p, '-') || !hex_number(&p, 8, &run))
		return false;
	ret->index = high << 12 | low;
	return true;
}
