/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fuzz targets for what is parsed out of objects.  Checksums and seals would keep a fuzzer out, so
 * each target puts them right around its input before it calls the parser.
 *
 *	CC=clang meson setup build-fuzz -Dfuzz=true -Db_sanitize=address,undefined -Db_lundef=false
 *	build-fuzz/tests/fuzz/fuzz_node -max_total_time=60 NEW tests/fuzz/corpus/node
 *
 * Without -Dfuzz, standalone.c runs each file of the corpus once, as a plain test.
 */
#pragma once

#include "common/common.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A broken promise of the parser: found by the fuzzer like any other crash. */
#define FUZZ_MUST(x)             \
	do {                     \
		if (!(x))        \
			abort(); \
	} while (0)

/* Every refusal says why. */
static inline void fuzz_result(int code, const struct error *err)
{
	FUZZ_MUST(code <= 0);
	FUZZ_MUST((code < 0) == (err->code != 0));
	FUZZ_MUST(code == 0 || err->text[0]);
}
