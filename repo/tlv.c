/* SPDX-License-Identifier: Apache-2.0 */
#include "tlv.h"

#include <string.h>

int tlv_add(struct buf *b, unsigned tag, bool critical, const void *bytes, size_t len,
	    struct error *err)
{
	struct format_tlv h = {
		.tag = le16_of((uint16_t)tag),
		.flags = le16_of(critical ? TLV_CRITICAL : 0),
		.len = le32_of((uint32_t)len),
	};
	int r;

	if (len > MAX_MANIFEST)
		return error_set(err, TM_E_RANGE, "a field of %zu bytes is too long for a manifest",
				 len);
	r = buf_add(b, &h, sizeof(h), err);
	return r < 0 ? r : buf_add(b, bytes, len, err);
}

int tlv_add_u64(struct buf *b, unsigned tag, bool critical, uint64_t v, struct error *err)
{
	struct le64 raw = le64_of(v);

	return tlv_add(b, tag, critical, &raw, sizeof(raw), err);
}

int tlv_add_text(struct buf *b, unsigned tag, const char *text, struct error *err)
{
	return text ? tlv_add(b, tag, false, text, strlen(text), err) : 0;
}

int tlv_next(struct tlv_reader *r, struct tlv *ret, struct error *err)
{
	struct format_tlv h;
	size_t len;

	if (r->p == r->end)
		return 0;
	if ((size_t)(r->end - r->p) < sizeof(h))
		return error_set(err, TM_E_CORRUPT, "a field's head is cut off");
	memcpy(&h, r->p, sizeof(h));
	r->p += sizeof(h);
	len = le32_get(h.len);
	if (len > (size_t)(r->end - r->p))
		return error_set(err, TM_E_CORRUPT, "field %u of %zu bytes, %zu are left",
				 (unsigned)le16_get(h.tag), len, (size_t)(r->end - r->p));
	*ret = (struct tlv){.tag = le16_get(h.tag),
			    .critical = le16_get(h.flags) & TLV_CRITICAL,
			    .bytes = r->p,
			    .len = len};
	r->p += len;
	return 1;
}

int tlv_u64(const struct tlv *t, uint64_t *ret, struct error *err)
{
	struct le64 raw;

	if (t->len != sizeof(raw))
		return error_set(err, TM_E_CORRUPT, "field %u is %zu bytes, expected 8", t->tag,
				 t->len);
	memcpy(&raw, t->bytes, sizeof(raw));
	*ret = le64_get(raw);
	return 0;
}

int tlv_id(const struct tlv *t, struct tm_id *ret, struct error *err)
{
	if (t->len != sizeof(*ret))
		return error_set(err, TM_E_CORRUPT, "field %u is %zu bytes, expected 16", t->tag,
				 t->len);
	memcpy(ret, t->bytes, sizeof(*ret));
	return 0;
}

int tlv_text(const struct tlv *t, char **ret, struct error *err)
{
	char *s;

	if (*ret)
		return error_set(err, TM_E_CORRUPT, "field %u comes twice", t->tag);
	if (memchr(t->bytes, 0, t->len))
		return error_set(err, TM_E_CORRUPT, "field %u is no text", t->tag);
	s = malloc(t->len + 1);
	if (!s)
		return error_nomem(err);
	memcpy(s, t->bytes, t->len);
	s[t->len] = 0;
	*ret = s;
	return 0;
}

int tlv_unknown(const struct tlv *t, struct error *err)
{
	if (!t->critical)
		return 0;
	return error_set(err, TM_E_UNSUPPORTED, "the point needs a newer program (field %u)",
			 t->tag);
}
