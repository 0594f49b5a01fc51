/* SPDX-License-Identifier: Apache-2.0 */
/* A domain object: what can be said without its keys, then name and public key with them. */
#include "fuzz.h"

#include "repo/domain.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct domain_id id = {.generation = 0};
	struct format_domain h, parsed;
	struct error err = {0};
	uint8_t object[1024];
	struct tm_id repo;
	char key[KEY_MAX];
	unsigned copy;
	uint32_t g;
	int r;

	if (size > sizeof(object))
		return 0;
	memcpy(object, data, size);
	if (size >= sizeof(h)) {
		memcpy(&h, object, sizeof(h));
		memcpy(h.head.magic, MAGIC_DOMAIN, sizeof(h.head.magic));
		repo = h.head.repo;
		id = (struct domain_id){.id = h.domain, .generation = le32_get(h.generation)};
		format_head_seal(&h, sizeof(h));
		memcpy(object, &h, sizeof(h));
	}
	r = domain_parse(size >= sizeof(h) ? &repo : NULL, &id, "domain", object, size, &parsed,
			 &err);
	fuzz_result(r, &err);
	if (r == 0)
		FUZZ_MUST(id_equal(&parsed.domain, &id.id) && size == sizeof(h));

	/* the input as a name in the store, too */
	memcpy(object, data, size);
	object[size < sizeof(key) ? size : sizeof(key) - 1] = 0;
	memcpy(key, object, sizeof(key));
	if (name_parse_domain(key, &id.id, &g, &copy)) {
		char again[KEY_MAX];

		name_domain(&id.id, g, copy, again);
		FUZZ_MUST(strcmp(key, again) == 0);
	}
	return 0;
}
