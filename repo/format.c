/* SPDX-License-Identifier: Apache-2.0 */
/* The head that all objects begin with. */
#include "format.h"

#include <inttypes.h>
#include <string.h>

void format_head_init(struct format_head *h, const char *magic, size_t head_len,
		      const struct tm_id *repo)
{
	memset(h, 0, sizeof(*h));
	memcpy(h->magic, magic, sizeof(h->magic));
	h->version = le16_of(FORMAT_VERSION);
	h->head_len = le16_of((uint16_t)head_len);
	h->repo = *repo;
}

static uint32_t header_crc(const uint8_t *header, size_t head_len)
{
	return crc32c(0, header, head_len - sizeof(struct le32));
}

void format_head_seal(void *header, size_t head_len)
{
	struct le32 crc = le32_of(header_crc(header, head_len));

	memcpy((uint8_t *)header + head_len - sizeof(crc), &crc, sizeof(crc));
}

/* Whole and unchanged, whatever its version. */
static int check_intact(const uint8_t *object, size_t len, const char *magic, const char *what,
			struct error *err)
{
	struct format_head h;
	struct le32 crc;
	size_t head_len;

	if (len < sizeof(h))
		return error_set(err, TM_E_CORRUPT, "%s is only %zu bytes", what, len);
	memcpy(&h, object, sizeof(h));
	if (memcmp(h.magic, magic, sizeof(h.magic)) != 0)
		return error_set(err, TM_E_CORRUPT, "%s: wrong magic bytes", what);
	head_len = le16_get(h.head_len);
	if (head_len < sizeof(h) + sizeof(crc) || head_len > len)
		return error_set(err, TM_E_CORRUPT, "%s is %zu bytes, its header %zu", what, len,
				 head_len);
	memcpy(&crc, object + head_len - sizeof(crc), sizeof(crc));
	if (le32_get(crc) != header_crc(object, head_len))
		return error_set(err, TM_E_CORRUPT, "%s: the header's checksum is wrong", what);
	return 0;
}

int format_head_check(const void *object, size_t len, const char *magic, size_t head_len,
		      const struct tm_id *repo, const char *what, struct error *err)
{
	struct format_head h;
	int r = check_intact(object, len, magic, what, err);

	if (r < 0)
		return r;
	memcpy(&h, object, sizeof(h));
	if (le16_get(h.version) != FORMAT_VERSION)
		return error_set(err, TM_E_UNSUPPORTED,
				 "%s has format version %u, this program knows %u", what,
				 (unsigned)le16_get(h.version), (unsigned)FORMAT_VERSION);
	if (le64_get(h.incompat) & ~KNOWN_INCOMPAT)
		return error_set(err, TM_E_UNSUPPORTED,
				 "%s needs features this program does not have (bits %#" PRIx64 ")",
				 what, le64_get(h.incompat) & ~KNOWN_INCOMPAT);
	if (le16_get(h.head_len) != head_len || le32_get(h.reserved) != 0)
		return error_set(err, TM_E_CORRUPT, "%s: a header of %u bytes, expected %zu", what,
				 (unsigned)le16_get(h.head_len), head_len);
	if (repo && !id_equal(&h.repo, repo))
		return error_set(err, TM_E_CORRUPT, "%s belongs to another repository", what);
	return 0;
}
