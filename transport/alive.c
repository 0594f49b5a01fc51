/* SPDX-License-Identifier: Apache-2.0 */
#include "alive.h"

int alive_check(struct alive *alive, uint64_t answers, bool waiting, uint64_t now_ms,
		unsigned limit_ms, struct error *err)
{
	uint64_t silent_ms = now_ms - alive->at_ms;

	if (answers != alive->answers || !waiting) {
		*alive = (struct alive){.answers = answers, .at_ms = now_ms};
		return 0;
	}
	if (!limit_ms || silent_ms < limit_ms)
		return 0;
	return error_set(err, TM_E_TIMEOUT, "the disk has not answered any request for %llu s",
			 (unsigned long long)silent_ms / 1000);
}
