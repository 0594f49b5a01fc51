/* SPDX-License-Identifier: Apache-2.0 */
/* The head that all objects begin with. */
#include "format.h"

#include <inttypes.h>
#include <string.h>

void format_head_init(struct format_head *h, const char *magic, size_t head_len, const struct tm_id *repo)
{
	memset(h, 0, sizeof(*h));
	memcpy(h->magic, magic, sizeof(h->magic));
	h->version = le16_of(FORMAT_VERSION);
	h->head_len = le16_of((uint16_t)head_len);
	h->repo = *repo;
}

int format_head_check(const struct format_head *h, const char *magic, size_t head_len,
                      const struct tm_id *repo, const char *what, struct error *err)
{
	if (memcmp(h->magic, magic, sizeof(h->magic)) != 0)
		return error_set(err, TM_E_CORRUPT, "%s: wrong magic bytes", what);
	if (le16_get(h->version) != FORMAT_VERSION)
		return error_set(err, TM_E_UNSUPPORTED, "%s has format version %u, this program knows %u",
		                 what, (unsigned)le16_get(h->version), (unsigned)FORMAT_VERSION);
	if (le64_get(h->incompat) & ~KNOWN_INCOMPAT)
		return error_set(err, TM_E_UNSUPPORTED,
		                 "%s needs features this program does not have (bits %#" PRIx64 ")", what,
		                 le64_get(h->incompat) & ~KNOWN_INCOMPAT);
	if (le16_get(h->head_len) != head_len)
		return error_set(err, TM_E_CORRUPT, "%s: header of %u bytes, expected %zu", what,
		                 (unsigned)le16_get(h->head_len), head_len);
	if (le32_get(h->reserved) != 0)
		return error_set(err, TM_E_CORRUPT, "%s: reserved bytes are not zero", what);
	if (repo && !id_equal(&h->repo, repo))
		return error_set(err, TM_E_CORRUPT, "%s belongs to another repository", what);
	return 0;
}
