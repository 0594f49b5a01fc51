/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Flags: small objects whose names say something about a session for ever.  None is
 * taken back, so they need no lock: deleting is a tombstone, protecting an odd number of
 * holds, releasing one hold more.
 */
#include "points.h"

#include <inttypes.h>

#define MAX_HOLD 0xffff
#define TRIES    16

static bool is_numbered(enum session_flag flag)
{
	return flag == FLAG_FENCE || flag == FLAG_HOLD;
}

struct format_flag flag_body(const struct repo *repo, enum session_flag flag,
			     const struct tm_id *sid, uint32_t number, uint64_t now_ms)
{
	struct format_flag h = {
		.domain = repo->domain,
		.session = *sid,
		.kind = (uint8_t)flag,
		.number = le32_of(number),
		.created_ms = le64_of(now_ms),
	};

	format_head_init(&h.head, MAGIC_FLAG, sizeof(h), &repo->id);
	format_head_seal(&h, sizeof(h));
	return h;
}

/* TM_E_EXISTS when somebody has put it before. */
static int put_once(struct repo *repo, enum session_flag flag, const struct tm_id *sid,
		    uint32_t number, struct error *err)
{
	const struct format_flag h =
		flag_body(repo, flag, sid, number, clock_unix_ms(&clock_system));
	char key[KEY_MAX];

	if (is_numbered(flag))
		name_flag_number(repo, flag, sid, number, key);
	else
		name_flag(repo, flag, sid, key);
	return store_put_wait(repo->st, key, &h, sizeof(h), err);
}

int flag_put(struct repo *repo, enum session_flag flag, const struct tm_id *sid, uint32_t number,
	     struct error *err)
{
	struct error own = {0};
	int r = put_once(repo, flag, sid, number, &own);

	if (r == TM_E_EXISTS)
		return 0;
	return error_pass(err, r, &own);
}

int repo_forget(struct repo *repo, const struct tm_id *ids, size_t n, struct error *err)
{
	struct id_set held = {0};
	int r = repo_check_right(repo, REPO_MAY_PRUNE, err);

	r = r ? r : points_held(repo, &held, err);
	for (size_t i = 0; r == 0 && i < n; i++)
		if (id_set_has(&held, &ids[i]))
			r = error_set(err, TM_E_DENIED,
				      "point %.12s is protected; unprotect it first",
				      id_text(&ids[i]).s);
	/* what is left has to outlast what goes */
	r = r ? r : points_sync(repo, NULL, err);
	store_reserve(repo->st, true);
	for (size_t i = 0; r == 0 && i < n; i++)
		r = flag_put(repo, FLAG_TOMBSTONE, &ids[i], 0, err);
	store_reserve(repo->st, false);
	id_set_done(&held);
	return r;
}

/* ---- protection ---- */

static int take_number(void *data, const char *key, uint64_t size, struct error *err)
{
	uint32_t *last = data, n;

	(void)size;
	(void)err;
	if (name_parse_number(key, 4, &n) && n > *last)
		*last = n;
	return 0;
}

static int last_hold(struct repo *repo, const struct tm_id *id, uint32_t *ret, struct error *err)
{
	char prefix[KEY_MAX];

	name_flag(repo, FLAG_HOLD, id, prefix);
	*ret = 0;
	return repo->st->ops->list(repo->st, prefix, take_number, ret, err);
}

static int check_alive(struct repo *repo, const struct tm_id *id, struct error *err)
{
	struct id_set dead = {0};
	int r = points_dead(repo, &dead, err);

	if (r == 0 && id_set_has(&dead, id))
		r = error_set(err, TM_E_STALE, "point %.12s is being deleted", id_text(id).s);
	id_set_done(&dead);
	return r;
}

int repo_protect(struct repo *repo, const struct tm_id *id, bool on, struct error *err)
{
	uint32_t n;
	int r = repo_check_right(repo, REPO_MAY_PRUNE, err);

	if (r < 0)
		return r;
	for (unsigned i = 0; i < TRIES; i++) {
		struct error own = {0};

		r = last_hold(repo, id, &n, err);
		if (r == 0 && (n % 2 == 1) == on) {
			r = points_sync_flags(repo, FLAG_HOLD, err);
			break;
		}
		if (r == 0 && n == MAX_HOLD)
			r = error_set(err, TM_E_RANGE, "point %.12s was protected too often",
				      id_text(id).s);
		if (r < 0)
			return r;
		/* Two who put the same number want the same, so a put that is lost is as good. */
		r = put_once(repo, FLAG_HOLD, id, n + 1, &own);
		if (r < 0 && r != TM_E_EXISTS)
			return error_pass(err, r, &own);
	}
	if (r == TM_E_EXISTS)
		return error_set(
			err, r,
			"the store has another change of the protection of point %.12s and "
			"does not list it; nothing was decided, try again",
			id_text(id).s);
	return r == 0 && on ? check_alive(repo, id, err) : r;
}
