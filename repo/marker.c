/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Markers and pins.  A session announces itself before it writes anything else, and each
 * point it will refer to before it relies on it; then it looks whether that point is being
 * deleted.  Janitors write first and list afterwards, so one of the two sees the other.
 */
#include "session.h"

#include "points.h"
#include "tlv.h"

#include <string.h>

#define BEAT_MS (UINT64_C(3600) * 1000)

enum marker_tag {
	MARKER_TAG_GUEST = 1,
	MARKER_TAG_HOST = 2,
	MARKER_TAG_STARTED_MS = 3,
	MARKER_TAG_PIN = 4,
};

static int marker_key(const struct secret *meta, struct aead *a, struct error *err)
{
	static const char label[] = "tidemark marker";
	auto_secret struct secret key = {{0}};
	int r = derive(meta, label, sizeof(label) - 1, &key, err);

	return r < 0 ? r : aead_set_key(a, &key, err);
}

static int make_object(struct repo_session *s, uint32_t pin, const struct buf *body,
		       struct buf *ret, struct error *err)
{
	auto_clean(aead_free) struct aead *a = NULL;
	auto_buf struct buf out = {0};
	struct format_session h = {
		.domain = s->repo->domain, .session = s->sid, .pin = le32_of(pin)};
	size_t sealed = body->len + TAG_BYTES;
	uint8_t *p;
	int r;

	r = aead_new(&a, err);
	r = r ? r : marker_key(&s->keys.meta, a, err);
	r = r ? r : buf_reserve(&out, sizeof(h) + sealed, err);
	if (r < 0)
		return r;
	p = out.data + sizeof(h);
	format_head_init(&h.head, MAGIC_SESSION, sizeof(h), &s->repo->id);
	h.body_len = le32_of((uint32_t)sealed);
	memcpy(h.wrap, s->keys.wrap, WRAP_BYTES);
	r = aead_seal(a, pin, &h, offsetof(struct format_session, body_crc), body->data, body->len,
		      p, err);
	if (r < 0)
		return r;
	h.body_crc = le32_of(crc32c(0, p, sealed));
	format_head_seal(&h, sizeof(h));
	assert(out.data);
	memcpy(out.data, &h, sizeof(h));
	out.len = sizeof(h) + sealed;
	*ret = out;
	out = (struct buf){0};
	return 0;
}

static int put_object(struct repo_session *s, const char *key, uint32_t pin, const struct buf *body,
		      struct error *err)
{
	auto_buf struct buf out = {0};
	int r = make_object(s, pin, body, &out, err);

	return r ? r : store_put_wait(s->repo->st, key, out.data, out.len, err);
}

int marker_put(struct repo_session *s, struct error *err)
{
	auto_buf struct buf body = {0};
	char host[256] = "", key[KEY_MAX];
	int r;

	if (gethostname(host, sizeof(host) - 1) < 0)
		host[0] = 0; /* only for people */
	r = tlv_add_text(&body, MARKER_TAG_GUEST, s->guest, err);
	r = r ? r : tlv_add_text(&body, MARKER_TAG_HOST, host, err);
	r = r ? r
	      : tlv_add_u64(&body, MARKER_TAG_STARTED_MS, false, clock_unix_ms(&clock_system), err);
	if (r < 0)
		return r;
	name_flag(s->repo, FLAG_MARKER, &s->sid, key);
	s->beat_ms = clock_monotonic_ms(&clock_system);
	return put_object(s, key, 0, &body, err);
}

static int found(void *data, const char *key, uint64_t size, struct error *err)
{
	(void)key;
	(void)size;
	(void)err;
	*(bool *)data = true;
	return 0;
}

static int exists(struct repo *repo, const char *key, bool *ret, struct error *err)
{
	struct error head_err = {0};
	uint64_t size;
	int r = repo->st->ops->head(repo->st, key, &size, &head_err);

	*ret = r == 0;
	if (r < 0 && r != TM_E_NOTFOUND)
		return error_pass(err, r, &head_err);
	return 0;
}

/* The fence first: it is removed only after a verdict was put, and that one stays. */
int marker_fenced(struct repo *repo, const struct tm_id *sid, bool *ret, struct error *err)
{
	char key[KEY_MAX];
	int r;

	name_flag(repo, FLAG_FENCE, sid, key);
	*ret = false;
	r = repo->st->ops->list(repo->st, key, found, ret, err);
	if (r < 0 || *ret)
		return r;
	name_flag(repo, FLAG_VERDICT, sid, key);
	return exists(repo, key, ret, err);
}

static void beat_done(struct store_req *req, int code)
{
	struct repo_session *s = container_of(req, struct repo_session, beat_req);

	/* Without it a prune may take the session for dead a day later: no reason to fail now. */
	if (code < 0)
		log_debug("heartbeat: %s", req->err.text);
	s->beating = false;
	s->in_flight--;
	session_pump(s);
}

void marker_beat(struct repo_session *s)
{
	uint64_t now = clock_monotonic_ms(&clock_system);
	uint64_t unix_ms = clock_unix_ms(&clock_system);
	struct store *st = s->repo->st;

	if (s->beating || now - s->beat_ms < BEAT_MS)
		return;
	s->beat_ms = now;
	s->beat = flag_body(s->repo, FLAG_MARKER, &s->sid, (uint32_t)(unix_ms / 1000), unix_ms);
	name_heartbeat(s->repo, &s->sid, (uint32_t)(unix_ms / 1000), s->beat_key);
	s->beat_req.done = beat_done;
	s->beating = true;
	s->in_flight++;
	st->ops->put_new(st, s->beat_key, &s->beat, sizeof(s->beat), &s->beat_req);
}

/* The point may be built upon: it is there and nobody is removing it. */
static int check_point(struct repo *repo, const struct tm_id *point, const char *manifest_key,
		       struct error *err)
{
	struct point_name name;
	bool there = false, bad = false;
	char key[KEY_MAX];
	int r;

	/* The manifest last: it goes before the tombstone does. */
	name_flag(repo, FLAG_TOMBSTONE, point, key);
	r = exists(repo, key, &bad, err);
	if (r == 0 && !bad)
		r = marker_fenced(repo, point, &bad, err);
	r = r ? r : exists(repo, manifest_key, &there, err);
	if (r < 0)
		return r;
	if (bad || !there)
		return error_set(err, TM_E_STALE, "parent point %s is being deleted",
				 id_text(point).s);
	return name_parse_point(repo, manifest_key, &name) ? points_sync(repo, &name.source, err)
							   : 0;
}

int marker_read_pin(struct repo *repo, const struct tm_id *sid, uint32_t pin, struct tm_id *ret,
		    struct error *err)
{
	auto_clean(aead_free) struct aead *a = NULL;
	auto_secret struct secret meta = {{0}};
	auto_buf struct buf b = {0};
	struct format_session h;
	struct tlv_reader fields;
	char key[KEY_MAX];
	struct tlv t;
	uint8_t *body;
	size_t len;
	int r;

	name_pin(repo, sid, pin, key);
	r = store_read(repo->st, key, MAX_MARKER, &b, err);
	r = r ? r : format_head_check(b.data, b.len, MAGIC_SESSION, sizeof(h), &repo->id, key, err);
	if (r < 0)
		return r;
	memcpy(&h, b.data, sizeof(h));
	len = b.len - sizeof(h);
	body = b.data + sizeof(h);
	if (le32_get(h.body_len) != len || len < TAG_BYTES || !id_equal(&h.session, sid) ||
	    !id_equal(&h.domain, &repo->domain) || le32_get(h.pin) != pin ||
	    crc32c(0, body, len) != le32_get(h.body_crc))
		return error_set(err, TM_E_CORRUPT, "object %s is not what its name says", key);
	r = derive_id(&repo->keys.meta, "tidemark session", sid, &meta, err);
	r = r ? r : aead_new(&a, err);
	r = r ? r : marker_key(&meta, a, err);
	r = r ? r
	      : aead_open(a, pin, &h, offsetof(struct format_session, body_crc), body, len, body,
			  err);
	fields = (struct tlv_reader){.p = body, .end = body + (len - TAG_BYTES)};
	while (r == 0 && (r = tlv_next(&fields, &t, err)) == 1) {
		if (t.tag == MARKER_TAG_PIN)
			return tlv_id(&t, ret, err);
		r = tlv_unknown(&t, err);
	}
	if (r == 0)
		r = error_set(err, TM_E_CORRUPT, "it names no point");
	error_prefix(err, "object %s", key);
	return r;
}

bool marker_pinned(const struct repo_session *s, const struct tm_id *point)
{
	for (uint32_t i = 0; i < s->npins; i++)
		if (id_equal(&s->pins[i], point))
			return true;
	return false;
}

int marker_make_pin(struct repo_session *s, const struct tm_id *point, char key[KEY_MAX],
		    struct buf *ret, struct error *err)
{
	auto_buf struct buf body = {0};
	struct tm_id *v = reallocarray(s->pins, s->npins + 1, sizeof(*v));
	int r;

	if (!v)
		return error_nomem(err);
	s->pins = v;
	r = tlv_add(&body, MARKER_TAG_PIN, true, point, sizeof(*point), err);
	if (r < 0)
		return r;
	name_pin(s->repo, &s->sid, ++s->last_pin, key);
	return make_object(s, s->last_pin, &body, ret, err);
}

int marker_check_pin(struct repo_session *s, const struct tm_id *point, const char *manifest_key,
		     struct error *err)
{
	int r = check_point(s->repo, point, manifest_key, err);

	if (r == 0)
		s->pins[s->npins++] = *point;
	return r;
}

int marker_pin(struct repo_session *s, const struct tm_id *point, const char *manifest_key,
	       struct error *err)
{
	auto_buf struct buf b = {0};
	char key[KEY_MAX];
	int r;

	if (marker_pinned(s, point))
		return 0;
	r = marker_make_pin(s, point, key, &b, err);
	r = r ? r : store_put_wait(s->repo->st, key, b.data, b.len, err);
	return r ? r : marker_check_pin(s, point, manifest_key, err);
}
