/* SPDX-License-Identifier: Apache-2.0 */
/* A key slot: header and body. */
#include "fuzz.h"

#include "repo/keys.h"
#include "repo/slot.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	auto_master struct master_keys keys = {.has = 0};
	struct slot parsed;
	uint8_t slot[4096];
	int r;
	struct error err = {0};
	struct format_key h;
	struct tm_id repo;

	if (size > sizeof(slot))
		return 0;
	memcpy(slot, data, size);
	if (size >= sizeof(h)) {
		memcpy(&h, slot, sizeof(h));
		memcpy(h.head.magic, MAGIC_KEY, sizeof(h.head.magic));
		h.body_crc = le32_of(crc32c(0, slot + sizeof(h), size - sizeof(h)));
		repo = h.head.repo;
		format_head_seal(&h, sizeof(h));
		memcpy(slot, &h, sizeof(h));
	}
	r = slot_parse(size >= sizeof(h) ? &repo : NULL, "slot", slot, size, &parsed, &err);
	if (r == 0 && parsed.kdf == KDF_NONE)
		r = slot_open(&parsed, NULL, "slot", slot, size, &keys, &err);
	fuzz_result(r, &err);
	return 0;
}
