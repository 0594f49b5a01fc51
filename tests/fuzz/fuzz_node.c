/* SPDX-License-Identifier: Apache-2.0 */
/* A map node, and a page of them.  What decodes has one encoding (I10): it encodes back the same.
 */
#include "fuzz.h"

#include "repo/node.h"

static void one_node(const uint8_t *bytes, size_t len, unsigned level, uint64_t pos)
{
	struct error err = {0};
	uint8_t again[NODE_MAX_BYTES];
	struct node n;
	int r = node_decode(bytes, len, level, pos, 1000, &n, &err);

	fuzz_result(r, &err);
	if (r < 0)
		return;
	FUZZ_MUST(n.level == level && n.pos == pos);
	FUZZ_MUST(!node_is_hole(&n));
	FUZZ_MUST(node_encode(&n, again) == len && memcmp(again, bytes, len) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct error err = {0};
	unsigned nslots = size >= 2 ? data[0] | (unsigned)data[1] << 8 : 0;
	int r;

	/* level and position as in the node, for most of them */
	one_node(data, size, size > 0 ? data[0] % (NODE_MAX_LEVEL + 1) : 0,
		 size > 2 ? data[2] & 0x7f : 0);
	if (nslots == 0 || nslots > PAGE_MAX_NODES)
		return 0;
	r = page_check(data, size, nslots, &err);
	fuzz_result(r, &err);
	for (unsigned i = 0; r == 0 && i < nslots; i++) {
		size_t len;
		const uint8_t *bytes = page_node(data, i, &len);

		FUZZ_MUST(bytes >= data && len <= size && bytes + len <= data + size);
		one_node(bytes, len, len > 0 ? bytes[0] % (NODE_MAX_LEVEL + 1) : 0,
			 len > 2 ? bytes[2] & 0x7f : 0);
	}
	return 0;
}
