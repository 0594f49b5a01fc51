/* SPDX-License-Identifier: Apache-2.0 */
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

bool bitmap_name_parse(const char *name, struct bitmap_id *ret)
{
	struct bitmap_id id;

	if (strncmp(name, PREFIX, strlen(PREFIX)) != 0)
		return false;
	name += strlen(PREFIX);
	if (!parse_part(name, '-', &id.repo) || !parse_part(name + TM_ID_HEX + 1, '-', &id.point) ||
	    !parse_part(name + (size_t)2 * (TM_ID_HEX + 1), '\0', &id.parent))
		return false;
	*ret = id;
	return true;
}

void bitmap_name_format(const struct bitmap_id *id, char text[BITMAP_NAME_MAX])
{
	if (snprintf(text, BITMAP_NAME_MAX, PREFIX "%s-%s-%s", id_text(&id->repo).s,
		     id_text(&id->point).s, id_text(&id->parent).s) < 0)
		text[0] = '\0';
}
