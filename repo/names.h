/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Object names (docs/format.md, "Names").  name_x() writes one, name_parse_x() says whether a name
 * is one of that kind, and what it says.  Names in "d/" are of the domain in use.
 */
#pragma once

#include "store.h"

struct repo;

/* The letter of a folder "d/<dom>/<letter>/" and of the flag objects in it. */
enum session_flag {
	FLAG_MARKER = 'k',
	FLAG_TOMBSTONE = 't',
	FLAG_FENCE = 'f',
	FLAG_VERDICT = 'v',
	FLAG_SEGMENTS = 's', /* no flag: a session's segments */
	FLAG_CHECKS = 'c',   /* no flag: records of verifications */
	FLAG_HOLD = 'h',
	FLAG_LOST = 'x', /* no flag: records of lost slots */
};

/* "domains/<dom>.<gggg>a" or b */
void name_domain(const struct tm_id *domain, uint32_t generation, unsigned copy, char key[KEY_MAX]);
bool name_parse_domain(const char *key, struct tm_id *ret, uint32_t *ret_generation,
		       unsigned *ret_copy);
/* "d/<dom>/": all that belongs to the domain in use */
void name_domain_folder(const struct repo *repo, char key[KEY_MAX]);
void name_flag(const struct repo *repo, enum session_flag flag, const struct tm_id *sid,
	       char key[KEY_MAX]);
void name_flag_prefix(const struct repo *repo, enum session_flag flag, char key[KEY_MAX]);
/* One of several flags of a session: fences by run (8 digits), holds by count (4 digits). */
void name_flag_number(const struct repo *repo, enum session_flag flag, const struct tm_id *sid,
		      uint32_t number, char key[KEY_MAX]);
void name_pin(const struct repo *repo, const struct tm_id *sid, uint32_t pin, char key[KEY_MAX]);
void name_heartbeat(const struct repo *repo, const struct tm_id *sid, uint32_t seconds,
		    char key[KEY_MAX]);
/* What the names of all records about a segment begin with; 8 hex digits follow. */
void name_lost(const struct repo *repo, const struct tm_id *sid, uint8_t type, uint32_t index,
	       char key[KEY_MAX]);
void name_segment(const struct repo *repo, const struct tm_id *sid, uint8_t type, uint32_t index,
		  uint32_t generation, uint32_t run, char key[KEY_MAX]);
void name_point(const struct repo *repo, const struct tm_id *src, uint32_t seq,
		const struct tm_id *sid, char key[KEY_MAX]);
void name_source_prefix(const struct repo *repo, const struct tm_id *src, char key[KEY_MAX]);

struct point_name {
	struct tm_id source, session;
	uint32_t seq;
	uint64_t size; /* of the manifest, where it was listed */
};
/* "d/<dom>/p/<src>/<seq>-<sid>" of this repository's domain. */
bool name_parse_point(const struct repo *repo, const char *key, struct point_name *ret);
/* "d/<dom>/<flag>/<sid>", perhaps with ".…" behind it. */
bool name_parse_flag(const struct repo *repo, enum session_flag flag, const char *key,
		     struct tm_id *ret);
struct segment_name {
	struct tm_id session;
	uint8_t type;
	uint32_t index, generation, run;
};
bool name_parse_segment(const struct repo *repo, const char *key, struct segment_name *ret);
/* "d/<dom>/s/" or "d/<dom>/s/<sid>/" */
void name_session_prefix(const struct repo *repo, const struct tm_id *sid, char key[KEY_MAX]);
/* The hex digits behind the last dot of a name, or false. */
bool name_parse_number(const char *key, unsigned digits, uint32_t *ret);
/* Exactly so many hex digits. */
bool name_parse_suffix(const char *text, unsigned digits, uint32_t *ret);
