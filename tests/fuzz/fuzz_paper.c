/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The text of a paper key.  Its checksums are right when the input says so: then what comes after
 * "bytes\n" are the bytes, of which the text is made.
 */
#include "fuzz.h"

#include "repo/internal.h"
#include "repo/slot.h"

#include <stdio.h>
#include <stdlib.h>

#define BYTES_MAX  (sizeof(struct format_paper) + RECORDS_MAX + 64)
#define LINE_BYTES 16

/* As paper.c writes them. */
static size_t to_text(const uint8_t *bytes, size_t len, char *text, size_t size)
{
	size_t at = 0;

	for (size_t i = 0; i * LINE_BYTES < len; i++) {
		size_t n = min_size(len - i * LINE_BYTES, LINE_BYTES);
		struct le16 number = le16_of((uint16_t)(i + 1));
		uint32_t crc = crc32c(crc32c(0, &number, 2), bytes + i * LINE_BYTES, n);

		at += (size_t)snprintf(text + at, size - at, "%03zu", i + 1);
		for (size_t k = 0; k < n; k++)
			at += (size_t)snprintf(text + at, size - at, "%02x",
					       bytes[i * LINE_BYTES + k]);
		at += (size_t)snprintf(text + at, size - at, "%04x\n",
				       (unsigned)(uint16_t)(crc ^ crc >> 16));
	}
	return at;
}

/* What was read is what is written again. */
static void round_trip(const struct tm_id *repo, const struct master_keys *keys)
{
	auto_master struct master_keys again = {.has = 0};
	struct repo_secret s = {.kind = REPO_SECRET_KEY_FILE};
	char *text = NULL;

	FUZZ_MUST(paper_encode(repo, keys, &text, NULL) == 0);
	s.bytes = text;
	s.len = strlen(text);
	FUZZ_MUST(is_paper(&s));
	FUZZ_MUST(paper_decode(&s, repo, &again, NULL) == 0);
	FUZZ_MUST(again.generation == keys->generation && id_equal(&again.scope, &keys->scope));
	FUZZ_MUST(memcmp(&again.data, &keys->data, sizeof(keys->data)) == 0);
	free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const char word[] = "bytes\n";
	static char text[3 * BYTES_MAX];
	auto_master struct master_keys keys = {.has = 0};
	struct repo_secret s = {REPO_SECRET_KEY_FILE, data, size};
	uint8_t bytes[BYTES_MAX];
	struct error err = {0};
	struct tm_id repo = {{0}};
	struct format_paper h;
	size_t n;
	int r;

	if (size >= sizeof(word) - 1 + sizeof(h) && memcmp(data, word, sizeof(word) - 1) == 0) {
		n = min_size(size - (sizeof(word) - 1), sizeof(bytes));
		memcpy(bytes, data + sizeof(word) - 1, n);
		memcpy(&h, bytes, sizeof(h));
		h.len = le16_of((uint16_t)n);
		h.crc = le32_of(crc32c(crc32c(0, &h, offsetof(struct format_paper, crc)),
				       bytes + sizeof(h), n - sizeof(h)));
		memcpy(bytes, &h, sizeof(h));
		repo = h.repo;
		s.bytes = text;
		s.len = to_text(bytes, n, text, sizeof(text));
	}
	(void)is_paper(&s);
	r = paper_decode(&s, &repo, &keys, &err);
	fuzz_result(r, &err);
	if (r == 0)
		round_trip(&repo, &keys);
	return 0;
}
