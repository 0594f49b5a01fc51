/* SPDX-License-Identifier: Apache-2.0 */
/* docs/format.md against the program: byte tables, limits, the example. */
#include "test.h"

#include "repo/node.h"
#include "repo/seg_aad.h"

struct field {
	const char *object, *name;
	size_t offset, size;
	bool seen;
};

#define F(o, f)                                                                  \
	{                                                                        \
#o, #f, offsetof(struct o, f), sizeof(((struct o *)0)->f), false \
	}

static struct field fields[] = {
	F(format_head, magic),
	F(format_head, version),
	F(format_head, head_len),
	F(format_head, reserved),
	F(format_head, incompat),
	F(format_head, ro_compat),
	F(format_head, compat),
	F(format_head, repo),
	F(format_repo, head),
	F(format_repo, domain),
	F(format_repo, data_slots_log2),
	F(format_repo, map_slots_log2),
	F(format_repo, block_bits),
	F(format_repo, cipher),
	F(format_repo, id_alg),
	F(format_repo, encrypted),
	F(format_repo, reserved),
	F(format_repo, mac),
	F(format_repo, crc),
	F(format_key, head),
	F(format_key, kid),
	F(format_key, kdf),
	F(format_key, cipher),
	F(format_key, role),
	F(format_key, log2_n),
	F(format_key, r),
	F(format_key, p),
	F(format_key, body_len),
	F(format_key, salt),
	F(format_key, created_ms),
	F(format_key, label),
	F(format_key, generation),
	F(format_key, scope),
	F(format_key, reserved),
	F(format_key, body_crc),
	F(format_key, crc),
	F(format_key_record, scope),
	F(format_key_record, has),
	F(format_key_record, generation),
	F(format_key_record, meta),
	F(format_key_record, id),
	F(format_key_record, data),
	F(format_paper, version),
	F(format_paper, role),
	F(format_paper, len),
	F(format_paper, repo),
	F(format_paper, crc),
	F(format_domain, head),
	F(format_domain, domain),
	F(format_domain, data_public),
	F(format_domain, generation),
	F(format_domain, reserved),
	F(format_domain, name),
	F(format_domain, mac),
	F(format_domain, crc),
	F(format_segment, head),
	F(format_segment, domain),
	F(format_segment, session),
	F(format_segment, index),
	F(format_segment, generation),
	F(format_segment, run),
	F(format_segment, type),
	F(format_segment, block_bits),
	F(format_segment, cipher),
	F(format_segment, reserved),
	F(format_segment, nslots),
	F(format_segment, nframes),
	F(format_segment, nextras),
	F(format_segment, desc_len),
	F(format_segment, payload_len),
	F(format_segment, wrap),
	F(format_segment, frames_crc),
	F(format_segment, desc_crc),
	F(format_segment, sealed_generation),
	F(format_segment, sealed_run),
	F(format_segment, reserved2),
	F(format_segment, crc),
	F(format_frame, first_slot),
	F(format_frame, nslots),
	F(format_frame, stored_len),
	F(format_frame, crc),
	F(seg_aad, repo),
	F(seg_aad, domain),
	F(seg_aad, session),
	F(seg_aad, type),
	F(seg_aad, index),
	F(seg_aad, first_slot),
	F(seg_aad, nslots),
	F(format_desc, place),
	F(format_desc, b),
	F(format_table_entry, session),
	F(format_table_entry, ndata),
	F(format_table_entry, nmap),
	F(format_point, head),
	F(format_point, domain),
	F(format_point, source),
	F(format_point, session),
	F(format_point, seq),
	F(format_point, body_len),
	F(format_point, plain_len),
	F(format_point, reserved),
	F(format_point, body_crc),
	F(format_point, crc),
	F(format_check, head),
	F(format_check, domain),
	F(format_check, level),
	F(format_check, reserved),
	F(format_check, objects),
	F(format_check, damaged),
	F(format_check, last),
	F(format_check, crc),
	F(format_tlv, tag),
	F(format_tlv, flags),
	F(format_tlv, len),
	F(format_disk_audit, data),
	F(format_disk_audit, empty),
	F(format_disk_audit, differed),
	F(format_disk_audit, whole_ms),
	F(format_disk_audit, all_data),
	F(format_disk_audit, all_empty),
	F(format_own_segment, nslots),
	F(format_own_segment, head_crc),
	F(format_own_segment, size),
	F(format_session, head),
	F(format_session, domain),
	F(format_session, session),
	F(format_session, pin),
	F(format_session, body_len),
	F(format_session, wrap),
	F(format_session, body_crc),
	F(format_session, crc),
	F(format_lost, head),
	F(format_lost, domain),
	F(format_lost, session),
	F(format_lost, type),
	F(format_lost, reserved),
	F(format_lost, index),
	F(format_lost, created_ms),
	F(format_lost, body_len),
	F(format_lost, body_crc),
	F(format_lost, crc),
	F(format_flag, head),
	F(format_flag, domain),
	F(format_flag, session),
	F(format_flag, kind),
	F(format_flag, reserved),
	F(format_flag, number),
	F(format_flag, created_ms),
	F(format_flag, crc),
};

static FILE *open_document(void)
{
	FILE *f = fopen(TEST_DATA "/../../../docs/format.md", "re");

	assert_non_null(f);
	return f;
}

static struct field *find(const char *object, const char *name)
{
	for (size_t i = 0; i < ARRAY_SIZE(fields); i++)
		if (strcmp(fields[i].object, object) == 0 && strcmp(fields[i].name, name) == 0)
			return &fields[i];
	fail_msg("%s has no field %s", object, name);
	return NULL;
}

/* Rows "| offset | size | field |" below a heading "#### object (n bytes)". */
static void byte_tables_are_the_structures(void **state)
{
	FILE *f = open_document();
	char line[1024], object[64] = "", name[64];
	size_t total = 0, end = 0, offset, size, tables = 0;

	(void)state;
	while (fgets(line, sizeof(line), f)) {
		if (sscanf(line, "#### %63s (%zu bytes)", object, &total) == 2) {
			end = 0;
			tables++;
			continue;
		}
		if (line[0] == '#')
			object[0] = 0;
		if (!object[0] || sscanf(line, "| %zu | %zu | %63s |", &offset, &size, name) != 3)
			continue;
		{
			struct field *fd = find(object, name);

			assert_false(fd->seen);
			fd->seen = true;
			assert_int_equal(fd->offset, offset);
			assert_int_equal(fd->size, size);
			assert_int_equal(offset, end); /* no gaps */
			end = offset + size;
			assert_true(end <= total);
			if (end == total)
				object[0] = 0;
		}
	}
	(void)fclose(f);
	assert_int_equal(tables, 19);
	for (size_t i = 0; i < ARRAY_SIZE(fields); i++)
		if (!fields[i].seen)
			fail_msg("format.md does not describe %s.%s", fields[i].object,
				 fields[i].name);
}

static void limits_are_the_constants(void **state)
{
	static const struct {
		const char *name;
		unsigned long long value;
	} limits[] = {
		{"blocks of a disk", MAX_BLOCKS},
		{"sessions of a table", MAX_SESSIONS},
		{"ordinal", MAX_ORDINAL - 1},
		{"segments of a session and type", MAX_SEGMENT_INDEX + 1ULL},
		{"disks of a point", MAX_DISKS},
		{"manifest, decompressed", MAX_MANIFEST},
		{"encoded node", NODE_MAX_BYTES},
		{"page", PAGE_MAX_BYTES},
		{"data keys", MAX_DATA_KEYS},
		{"key slots", MAX_KEY_SLOTS},
		{"scrypt, N × r × p", SCRYPT_MAX_WORK},
		{"scrypt, memory", SCRYPT_MAX_MEMORY},
	};
	FILE *f = open_document();
	char line[1024], name[128];
	unsigned long long value;
	size_t found = 0;

	(void)state;
	while (fgets(line, sizeof(line), f))
		for (size_t i = 0; i < ARRAY_SIZE(limits); i++)
			if (sscanf(line, "| %127[^|] | %llu |", name, &value) == 2 &&
			    strncmp(name, limits[i].name, strlen(limits[i].name)) == 0 &&
			    strlen(name) <= strlen(limits[i].name) + 1) {
				assert_int_equal(value, limits[i].value);
				found++;
			}
	(void)fclose(f);
	assert_int_equal(found, ARRAY_SIZE(limits));
}

static size_t read_example(uint8_t *bytes, size_t max)
{
	FILE *f = open_document();
	char line[1024];
	bool inside = false;
	size_t n = 0;

	while (fgets(line, sizeof(line), f)) {
		if (strncmp(line, "```", 3) == 0) {
			inside = strcmp(line, "```hex\n") == 0;
			continue;
		}
		if (!inside)
			continue;
		for (char *save, *p = strtok_r(line, " \n", &save); p;
		     p = strtok_r(NULL, " \n", &save)) {
			assert_true(n < max);
			bytes[n++] = (uint8_t)strtoul(p, NULL, 16);
		}
	}
	(void)fclose(f);
	return n;
}

static void the_example_is_the_encoding(void **state)
{
	uint8_t want[64], got[NODE_MAX_BYTES];
	size_t len = read_example(want, sizeof(want));
	struct node n, back;

	(void)state;
	node_clear(&n, 0, 5);
	for (unsigned i = 0; i < 4; i++)
		n.e[i] = ref_of(2, 4096 + i);
	n.e[10] = ref_of(0, 70);
	n.e[11] = ref_of(0, 71);
	assert_int_equal(node_encode(&n, got), len);
	assert_memory_equal(got, want, len);
	assert_int_equal(node_decode(want, len, 0, 5, 3, &back, NULL), 0);
	assert_memory_equal(back.e, n.e, sizeof(n.e));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(byte_tables_are_the_structures),
		cmocka_unit_test(limits_are_the_constants),
		cmocka_unit_test(the_example_is_the_encoding),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
