/* SPDX-License-Identifier: Apache-2.0 */
/* Names of our bitmaps, which say what they record (docs/epochs.md). */
#include "snapshot.h"

#include <stdio.h>
#include <string.h>

#define PREFIX "tidemark-1-"

/* 32 hex digits at p, followed by end. */
static bool parse_part(const char *p, char end, struct tm_id *ret)
{
	return memchr(p, '\0', TM_ID_HEX) == NULL && p[TM_ID_HEX] == end &&
	       hex_decode(p, ret->b, sizeof(ret->b));
}

/* The digits at p as a number, followed by end. */
static bool parse_number(const char *p, unsigned digits, char end, uint32_t *ret)
{
	uint8_t bytes[4] = {0};
	unsigned n = digits / 2;

	if (memchr(p, '\0', digits) || p[digits] != end || !hex_decode(p, bytes + 4 - n, n))
		return false;
	*ret = (uint32_t)bytes[0] << 24 | (uint32_t)bytes[1] << 16 | (uint32_t)bytes[2] << 8 |
	       bytes[3];
	return true;
}

bool bitmap_name_parse(const char *name, struct bitmap_id *ret)
{
	static const size_t part = TM_ID_HEX + 1;
	struct bitmap_id id;
	uint32_t disk;

	if (strncmp(name, PREFIX, strlen(PREFIX)) != 0)
		return false;
	name += strlen(PREFIX);
	if (!parse_part(name, '-', &id.repo) || !parse_part(name + part, '-', &id.point) ||
	    !parse_part(name + 2 * part, '-', &id.parent) ||
	    !parse_number(name + 3 * part, 4, '-', &disk) ||
	    !parse_number(name + 3 * part + 5, 8, '\0', &id.chain))
		return false;
	id.disk = (uint16_t)disk;
	*ret = id;
	return true;
}

void bitmap_name_format(const struct bitmap_id *id, char text[BITMAP_NAME_MAX])
{
	if (snprintf(text, BITMAP_NAME_MAX, PREFIX "%s-%s-%s-%04x-%08x", id_text(&id->repo).s,
		     id_text(&id->point).s, id_text(&id->parent).s, (unsigned)id->disk,
		     (unsigned)id->chain) < 0)
		text[0] = '\0';
}
