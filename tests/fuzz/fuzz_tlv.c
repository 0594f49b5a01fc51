/* SPDX-License-Identifier: Apache-2.0 */
/* Fields of a manifest, one behind the other. */
#include "fuzz.h"

#include "repo/tlv.h"

static void values(const struct tlv *t)
{
	struct error err[4] = {{0}};
	char *text = NULL;
	struct tm_id id;
	uint64_t v;

	fuzz_result(tlv_u64(t, &v, &err[0]), &err[0]);
	fuzz_result(tlv_id(t, &id, &err[1]), &err[1]);
	fuzz_result(tlv_unknown(t, &err[2]), &err[2]);
	if (tlv_text(t, &text, &err[3]) == 0)
		FUZZ_MUST(strlen(text) == t->len);
	free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct tlv_reader r = {.p = data, .end = data + size};
	struct error err = {0};
	struct tlv t;
	int code;

	while ((code = tlv_next(&r, &t, &err)) > 0) {
		FUZZ_MUST(t.bytes >= data && t.bytes <= data + size);
		FUZZ_MUST(t.len <= (size_t)(data + size - t.bytes));
		values(&t);
	}
	fuzz_result(code, &err);
	return 0;
}
