/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Verification under a budget.  Objects are taken in the order of their names, as in a ring; a run
 * that stops leaves an object that says where, and the next one goes on behind it.  So what was
 * verified longest ago comes first, and after enough runs everything has been.
 */
#include "verify.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static void record_prefix(const struct repo *repo, char level, char key[KEY_MAX])
{
	char prefix[KEY_MAX];

	name_flag_prefix(repo, FLAG_CHECKS, prefix);
	(void)snprintf(key, KEY_MAX, "%.*s%c-", KEY_MAX - 8, prefix, level);
}

static int take_last(void *data, const char *key, uint64_t size, struct error *err)
{
	(void)size;
	(void)err;
	memcpy(data, key, strlen(key) + 1);
	return 0;
}

/* Where the last run ended.  A record that cannot be read means a start from the first object. */
static int read_last(struct ring *ring, struct error *err)
{
	const struct repo *repo = ring->v->repo;
	char prefix[KEY_MAX], key[KEY_MAX] = "";
	auto_buf struct buf b = {0};
	struct error one = {0};
	struct format_check h;
	int r;

	record_prefix(repo, ring->level, prefix);
	r = repo->st->ops->list(repo->st, prefix, take_last, key, err);
	if (r < 0 || !key[0])
		return r;
	r = store_read(repo->st, key, sizeof(h), &b, &one);
	r = r ? r : format_head_check(b.data, b.len, MAGIC_CHECK, sizeof(h), &repo->id, key, &one);
	if (r == TM_E_NOMEM)
		return error_pass(err, r, &one);
	if (r < 0) {
		log_debug("%s", one.text);
		return 0;
	}
	memcpy(&h, b.data, sizeof(h));
	h.last[sizeof(h.last) - 1] = 0;
	memcpy(ring->last, h.last, sizeof(ring->last));
	return 0;
}

int ring_open(struct ring *ring, struct verifier *v, char level, struct error *err)
{
	*ring = (struct ring){.v = v, .level = level};
	if (!v->opt->budget_ms)
		return 0;
	ring->until = clock_monotonic_ms(&clock_system) + v->opt->budget_ms;
	return read_last(ring, err);
}

bool ring_goes_on(const struct ring *ring)
{
	return ring->n == 0 || !ring->until || clock_monotonic_ms(&clock_system) < ring->until;
}

void ring_did(struct ring *ring, const char *key)
{
	ring->n++;
	memcpy(ring->last, key, strlen(key) + 1);
}

static int put_record(const struct ring *ring, struct error *err)
{
	const struct repo *repo = ring->v->repo;
	struct format_check h = {.level = (uint8_t)ring->level};
	char prefix[KEY_MAX], key[KEY_MAX];
	struct tm_id id;
	int r = repo_check_writable(repo, err);

	r = r ? r : id_new_timed(clock_unix_ms(&clock_system), &id, err);
	if (r < 0)
		return r;
	record_prefix(repo, ring->level, prefix);
	(void)snprintf(key, sizeof(key), "%.*s%s", KEY_MAX - TM_ID_HEX - 1, prefix, id_text(&id).s);
	format_head_init(&h.head, MAGIC_CHECK, sizeof(h), &repo->id);
	h.domain = repo->domain;
	h.objects = le64_of(ring->n);
	h.damaged = le64_of(ring->v->report->ndamaged);
	memcpy(h.last, ring->last, sizeof(h.last));
	format_head_seal(&h, sizeof(h));
	return store_put_wait(repo->st, key, &h, sizeof(h), err);
}

int ring_close(struct ring *ring, struct error *err)
{
	struct error one = {0};

	if (!ring->until || ring->n == 0 || put_record(ring, &one) == 0)
		return 0;
	return verify_unrecorded(ring->v, "the next run under a budget begins where this one did",
				 &one, err);
}
