/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every byte of an object against its checksums, without a key (docs/format.md, "Verification").
 */
#include "scrub.h"

#include "keyring.h"
#include "repo_object.h"

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

/* "d/<dom>/c/<level>-<id>" */
static bool is_check(const struct repo *repo, const char *key)
{
	char prefix[KEY_MAX];
	struct tm_id id;
	size_t len;

	name_flag_prefix(repo, FLAG_CHECKS, prefix);
	len = strlen(prefix);
	return strncmp(key, prefix, len) == 0 && strlen(key) == len + 2 + TM_ID_HEX &&
	       (key[len] == 's' || key[len] == 'r') && key[len + 1] == '-' &&
	       hex_decode(key + len + 2, id.b, sizeof(id.b));
}

static const char *magic_in_domain(const struct repo *repo, const char *key)
{
	static const enum session_flag flags[] = {FLAG_TOMBSTONE, FLAG_FENCE, FLAG_VERDICT,
						  FLAG_HOLD};
	struct point_name point;
	struct tm_id id;

	if (name_parse_point(repo, key, &point))
		return MAGIC_POINT;
	if (name_parse_flag(repo, FLAG_MARKER, key, &id))
		return strstr(key, ".h") ? MAGIC_FLAG : MAGIC_SESSION; /* else a pin */
	if (name_parse_flag(repo, FLAG_LOST, key, &id))
		return MAGIC_LOST;
	for (size_t i = 0; i < ARRAY_SIZE(flags); i++)
		if (name_parse_flag(repo, flags[i], key, &id))
			return MAGIC_FLAG;
	return is_check(repo, key) ? MAGIC_CHECK : NULL;
}

/* What lies under a name; NULL: this version does not know, and it may be anybody's. */
static const struct small_kind *kind_of(const struct repo *repo, const char *key)
{
	const char *magic;
	uint32_t generation;
	unsigned copy;
	struct tm_id id;

	if (is_repo_object(key))
		magic = MAGIC_REPO;
	else if (name_parse_key(key, &id, &copy))
		magic = MAGIC_KEY;
	else if (name_parse_domain(key, &id, &generation, &copy))
		magic = MAGIC_DOMAIN;
	else
		magic = magic_in_domain(repo, key);
	for (size_t i = 0; magic && i < ARRAY_SIZE(small_kinds); i++)
		if (strcmp(small_kinds[i].magic, magic) == 0)
			return &small_kinds[i];
	return NULL;
}

bool scrub_knows(const struct repo *repo, const char *key)
{
	return kind_of(repo, key) != NULL;
}

int scrub_small(const struct repo *repo, const char *key, const void *bytes, size_t len,
		struct error *err)
{
	const struct small_kind *k = kind_of(repo, key);
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

bool scrub_parse_segment(const struct repo *repo, const char *key, struct seg_address *ret)
{
	struct segment_name name;

	if (!name_parse_segment(repo, key, &name))
		return false;
	*ret = (struct seg_address){.repo = repo->id,
				    .domain = repo->domain,
				    .session = name.session,
				    .type = name.type,
				    .block_bits = (uint8_t)repo->block_bits,
				    .index = name.index};
	return true;
}
