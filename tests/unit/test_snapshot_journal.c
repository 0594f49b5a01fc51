/* SPDX-License-Identifier: Apache-2.0 */
#include "test.h"

#include "../../snapshot/journal.h"

#include <sys/stat.h>
#include <unistd.h>

static struct journal *sample(void)
{
	struct journal *j = NULL;
	struct journal_disk *d = NULL;

	assert_int_equal(journal_new(&j, NULL), 0);
	j->phase = JOURNAL_PIVOTING;
	j->sequence = 7;
	j->guest = strdup("web");
	j->qmp_socket = strdup("/run/web.sock");
	j->repo_url = strdup("file:/backup");
	memset(j->repo.b, 0xa5, sizeof(j->repo.b));
	memset(j->point.b, 0x5a, sizeof(j->point.b));
	j->state = strdup("running");
	j->agent_pid = 4711;
	for (unsigned i = 0; i < 2; i++) {
		assert_int_equal(journal_add_disk(j, &d, NULL), 0);
		d->name = strdup(i ? "vdb" : "vda");
		d->qdev = i ? NULL : strdup("/machine/peripheral/vda/virtio-backend");
		d->drive = i ? strdup("drive1") : NULL;
		d->base = strdup(i ? "/images/b.qcow2" : "/images/a b.qcow2");
		d->format = strdup("qcow2");
		d->overlay = strdup("/images/x.tidemark-overlay");
		d->size = UINT64_C(33558016);
		d->frozen_mtime = UINT64_C(1795310000123456789);
		(void)snprintf(d->frozen_device, sizeof(d->frozen_device), "boot %u", i);
		d->base_id = (struct file_identity){4711 + i, UINT64_C(1795310000000000001)};
		d->overlay_id = (struct file_identity){5711 + i, 0};
		d->pivot = i ? PIVOT_NONE : PIVOT_BEGUN;
		d->how = i ? COLLAPSE_COMMIT : COLLAPSE_PULL_KEEP;
	}
	return j;
}

static void encode(struct buf *text)
{
	struct journal *j = sample();

	assert_int_equal(journal_encode(j, text, NULL), 0);
	journal_free(j);
}

static void what_was_written_is_read(void **state)
{
	struct buf text = {0};
	struct journal *j = NULL;

	(void)state;
	encode(&text);
	assert_int_equal(journal_decode(text.data, text.len, "x", &j, NULL), 0);
	assert_int_equal(j->phase, JOURNAL_PIVOTING);
	assert_int_equal(j->sequence, 7);
	assert_string_equal(j->guest, "web");
	assert_null(j->agent_socket);
	assert_int_equal(j->ndisks, 2);
	assert_string_equal(j->disks[0].base, "/images/a b.qcow2");
	assert_int_equal(j->disks[0].pivot, PIVOT_BEGUN);
	assert_int_equal(j->disks[0].how, COLLAPSE_PULL_KEEP);
	assert_int_equal(j->disks[0].frozen_mtime, UINT64_C(1795310000123456789));
	assert_string_equal(j->disks[1].frozen_device, "boot 1");
	assert_int_equal(j->disks[1].base_id.inode, 4712);
	assert_int_equal(j->disks[1].base_id.born, UINT64_C(1795310000000000001));
	assert_int_equal(j->disks[1].overlay_id.inode, 5712);
	assert_int_equal(j->disks[1].overlay_id.born, 0);
	assert_null(j->disks[1].qdev);
	assert_int_equal(j->point.b[15], 0x5a);
	journal_free(j);
	buf_done(&text);
}

static void every_truncation_is_an_error(void **state)
{
	struct buf text = {0};

	(void)state;
	encode(&text);
	for (size_t n = 0; n < text.len; n++) {
		/* A copy of just that size, so that a read beyond it is seen. */
		uint8_t *part = malloc(n + 1);
		struct journal *j = NULL;
		int r;

		memcpy(part, text.data, n);
		part = realloc(part, n ? n : 1);
		r = journal_decode(part, n, "x", &j, NULL);
		if (r != TM_E_CORRUPT)
			fail_msg("%zu of %zu bytes: %d", n, text.len, r);
		free(part);
	}
	buf_done(&text);
}

static void every_flipped_bit_is_an_error(void **state)
{
	struct buf text = {0};

	(void)state;
	encode(&text);
	for (size_t i = 0; i < text.len * 8; i++) {
		struct journal *j = NULL;

		text.data[i / 8] ^= (uint8_t)(1u << (i % 8));
		if (journal_decode(text.data, text.len, "x", &j, NULL) != TM_E_CORRUPT)
			fail_msg("bit %zu is not missed", i);
		text.data[i / 8] ^= (uint8_t)(1u << (i % 8));
	}
	buf_done(&text);
}

/* Replaces `from` by `to` and makes the sum right again. */
static void patched(const char *from, const char *to, struct buf *ret)
{
	struct buf text = {0};
	char *at;

	encode(&text);
	assert_int_equal(buf_add(&text, "", 1, NULL), 0);
	at = strstr((char *)text.data, from);
	assert_non_null(at);
	*strchr((char *)text.data, '\n') = '\0';
	*at = '\0';
	assert_int_equal(
		buf_printf(ret, NULL, "%s%s%s\n", (char *)text.data, to, at + strlen(from)), 0);
	assert_int_equal(
		buf_printf(ret, NULL, "{\"crc32c\":\"%08x\"}\n", crc32c(0, ret->data, ret->len)),
		0);
	buf_done(&text);
}

static void a_newer_format_is_refused_as_such(void **state)
{
	struct error err = {0};
	struct buf text = {0};
	struct journal *j = NULL;

	(void)state;
	patched("\"tidemark_journal\":1", "\"tidemark_journal\":2", &text);
	assert_int_equal(journal_decode(text.data, text.len, "x", &j, &err), TM_E_UNSUPPORTED);
	assert_non_null(strstr(err.text, "newer"));
	buf_done(&text);
}

static void nonsense_with_a_good_sum_is_an_error(void **state)
{
	static const char *const cases[][2] = {
		{"\"pivoting\"", "\"dancing\""},
		{"\"begun\"", "5"},
		{"\"size\":33558016", "\"size\":-1"},
		{"\"guest\":\"web\"", "\"guest\":null"},
		{"\"base\":", "\"bass\":"},
		{"\"disks\":[", "\"disks\":3,\"x\":["},
		{"\"qmp_socket\":", "\"no_socket\":"},
		{"\"kind\":\"qmp\"", "\"kind\":\"\""},
		{"{\"tidemark_journal\":1", "[{\"a\":1"},
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct buf text = {0};
		struct journal *j = NULL;

		patched(cases[i][0], cases[i][1], &text);
		if (journal_decode(text.data, text.len, "x", &j, NULL) != TM_E_CORRUPT)
			fail_msg("%s is taken", cases[i][1]);
		buf_done(&text);
	}
}

/* A state directory and the directories of two bases. */
struct place {
	char dir[32], path[64], base[2][64], copy[2][96];
};

static struct journal *make_place(struct place *p)
{
	struct journal *j = sample();

	(void)strcpy(p->dir, "/tmp/tidemark-test-XXXXXX");
	assert_non_null(mkdtemp(p->dir));
	(void)snprintf(p->path, sizeof(p->path), "%s/j.json", p->dir);
	j->path = strdup(p->path);
	for (int i = 0; i < 2; i++) {
		(void)snprintf(p->base[i], sizeof(p->base[i]), "%s/%d", p->dir, i);
		assert_int_equal(mkdir(p->base[i], 0700), 0);
		(void)strcat(p->base[i], "/disk.qcow2");
		(void)snprintf(p->copy[i], sizeof(p->copy[i]), "%s.tidemark-journal", p->base[i]);
		free(j->disks[i].base);
		j->disks[i].base = strdup(p->base[i]);
	}
	return j;
}

/* Nothing else is in it. */
static void drop_place(struct place *p)
{
	for (int i = 0; i < 2; i++) {
		*strrchr(p->base[i], '/') = '\0';
		assert_int_equal(rmdir(p->base[i]), 0);
	}
	assert_int_equal(rmdir(p->dir), 0);
}

static void set_path(struct journal *j, const char *path)
{
	free(j->path);
	j->path = strdup(path);
}

static void set_base(struct journal *j, int i, const char *path)
{
	free(j->disks[i].base);
	j->disks[i].base = strdup(path);
}

static void expect_phase(const char *path, enum journal_phase phase)
{
	struct journal *back = NULL;

	assert_int_equal(journal_read(path, &back, NULL), 0);
	assert_int_equal(back->phase, phase);
	assert_string_equal(back->path, path);
	journal_free(back);
}

static void any_file_leads_to_the_newest(void **state)
{
	struct place p;
	struct journal *j = make_place(&p), *back = NULL;
	const char *const files[] = {p.path, p.copy[0], p.copy[1]};
	struct buf old[3] = {{0}};

	(void)state;
	assert_int_equal(journal_write(j, JOURNAL_FROZEN, NULL), 0);
	for (int i = 0; i < 3; i++)
		assert_int_equal(io_read_file(files[i], JOURNAL_MAX, &old[i], NULL), 0);
	for (int newest = 0; newest < 3; newest++) {
		/* The others stay behind: as if only one could be written. */
		assert_int_equal(journal_write(j, JOURNAL_COMMITTING, NULL), 0);
		for (int i = 0; i < 3; i++) {
			if (i != newest)
				assert_int_equal(
					io_publish(files[i], old[i].data, old[i].len, 0600, NULL),
					0);
		}
		for (int i = 0; i < 3; i++) {
			/* Which file a copy is a copy of, it does not know. */
			expect_phase(files[i],
				     newest == 0 && i != 0 ? JOURNAL_FROZEN : JOURNAL_COMMITTING);
		}
	}
	/* A process died while it wrote any of them. */
	for (int i = 0; i < 3; i++) {
		char tmp[128];

		(void)snprintf(tmp, sizeof(tmp), "%s" IO_PUBLISH_TMP, files[i]);
		assert_int_equal(io_publish(tmp, "half", 4, 0600, NULL), 0);
		buf_done(&old[i]);
	}
	assert_int_equal(journal_read(p.path, &back, NULL), 0);
	assert_int_equal(journal_remove(back, NULL), 0);
	assert_false(journal_exists(j));
	drop_place(&p);
	journal_free(back);
	journal_free(j);
}

static void one_place_is_enough_once_frozen(void **state)
{
	struct place p;
	struct journal *j = make_place(&p);

	(void)state;
	set_base(j, 1, "/nonexistent/b");
	assert_int_equal(journal_write(j, JOURNAL_PREPARING, NULL), TM_E_NOTFOUND);
	assert_int_equal(journal_write(j, JOURNAL_COMMITTING, NULL), 0);
	set_path(j, "/nonexistent/j");
	assert_int_equal(journal_write(j, JOURNAL_PIVOTING, NULL), 0);
	expect_phase(p.copy[0], JOURNAL_PIVOTING);
	set_base(j, 0, "/nonexistent/a");
	assert_int_not_equal(journal_write(j, JOURNAL_PIVOTED, NULL), 0);
	assert_int_equal(j->phase, JOURNAL_PIVOTING);
	assert_false(journal_exists(j));
	set_base(j, 0, p.base[0]);
	assert_true(journal_exists(j));
	set_path(j, p.path);
	assert_int_equal(journal_remove(j, NULL), 0);
	drop_place(&p);
	journal_free(j);
}

/* What cannot be replaced goes, so that nobody finds it alone and takes it for the newest. */
static void a_file_that_cannot_be_written_is_removed(void **state)
{
	struct place p;
	struct journal *j = make_place(&p);
	char tmp[128];

	(void)state;
	assert_int_equal(journal_write(j, JOURNAL_FROZEN, NULL), 0);
	(void)snprintf(tmp, sizeof(tmp), "%s" IO_PUBLISH_TMP, p.copy[1]);
	assert_int_equal(mkdir(tmp, 0700), 0);
	assert_int_equal(journal_write(j, JOURNAL_COMMITTING, NULL), 0);
	assert_int_not_equal(access(p.copy[1], F_OK), 0);
	expect_phase(p.path, JOURNAL_COMMITTING);
	expect_phase(p.copy[0], JOURNAL_COMMITTING);
	assert_int_equal(rmdir(tmp), 0);
	assert_int_equal(journal_remove(j, NULL), 0);
	drop_place(&p);
	journal_free(j);
}

static bool no_sync; /* of directories */

int __wrap_io_sync_dir(const char *dir, struct error *err);
int __real_io_sync_dir(const char *dir, struct error *err);

int __wrap_io_sync_dir(const char *dir, struct error *err)
{
	return no_sync ? error_set(err, TM_E_IO, "cannot sync %s", dir)
		       : __real_io_sync_dir(dir, err);
}

/* The names have changed, but who wrote is told that it failed: recovery must not read more. */
static void what_was_not_told_is_not_read(void **state)
{
	struct place p;
	struct journal *j = make_place(&p), *back = NULL;

	(void)state;
	j->disks[0].pivot = PIVOT_NONE;
	assert_int_equal(journal_write(j, JOURNAL_COMMITTING, NULL), 0);
	for (int again = 0; again < 2; again++) {
		no_sync = true;
		j->disks[0].pivot = PIVOT_BEGUN;
		assert_int_equal(journal_write(j, JOURNAL_PIVOTING, NULL), TM_E_IO);
		assert_int_equal(j->phase, JOURNAL_COMMITTING);
		no_sync = false;
		for (int i = 0; i < 3; i++)
			expect_phase(i ? p.copy[i - 1] : p.path, JOURNAL_COMMITTING);
		journal_free(back);
		back = NULL;
		assert_int_equal(journal_read(p.path, &back, NULL), 0);
		assert_int_equal(back->disks[0].pivot, PIVOT_NONE);
		/* One that was read knows it as well. */
		journal_free(j);
		j = back;
		back = NULL;
	}
	assert_int_equal(journal_write(j, JOURNAL_PIVOTING, NULL), 0);
	expect_phase(p.copy[1], JOURNAL_PIVOTING);
	assert_int_equal(journal_remove(j, NULL), 0);
	drop_place(&p);
	journal_free(j);
}

static void a_first_journal_that_failed_is_not_there(void **state)
{
	struct place p;
	struct journal *j = make_place(&p);

	(void)state;
	no_sync = true;
	assert_int_equal(journal_write(j, JOURNAL_PREPARING, NULL), TM_E_IO);
	no_sync = false;
	assert_false(journal_exists(j));
	drop_place(&p);
	journal_free(j);
}

static void images_of_a_guest_that_is_off_have_no_copies(void **state)
{
	struct place p;
	struct journal *j = make_place(&p);

	(void)state;
	for (int i = 0; i < 2; i++) {
		free(j->disks[i].overlay);
		j->disks[i].overlay = NULL;
	}
	assert_int_equal(journal_write(j, JOURNAL_FROZEN, NULL), 0);
	assert_int_not_equal(access(p.copy[0], F_OK), 0);
	assert_int_equal(journal_remove(j, NULL), 0);
	drop_place(&p);
	journal_free(j);
}

static void the_lock_names_its_holder(void **state)
{
	char dir[] = "/tmp/tidemark-test-XXXXXX", path[80], pid[32];
	struct error err = {0};
	int one = -1, two = -1;

	(void)state;
	assert_non_null(mkdtemp(dir));
	assert_int_equal(journal_lock(dir, "k", NULL, &one, NULL), 0);
	assert_int_equal(journal_lock(dir, "k", NULL, &two, &err), TM_E_BUSY);
	(void)snprintf(pid, sizeof(pid), "process %d", (int)getpid());
	assert_non_null(strstr(err.text, pid));
	(void)close(one);
	assert_int_equal(journal_lock(dir, "k", NULL, &two, NULL), 0);
	(void)close(two);
	(void)snprintf(path, sizeof(path), "%s/journal/k.lock", dir);
	(void)unlink(path);
	(void)snprintf(path, sizeof(path), "%s/journal", dir);
	(void)rmdir(path);
	assert_int_equal(rmdir(dir), 0);
}

static void keys_are_file_names_that_differ(void **state)
{
	char *a = NULL, *b = NULL;

	(void)state;
	assert_int_equal(journal_key("/run/a/q.sock", &a, NULL), 0);
	assert_int_equal(journal_key("/run/b/q.sock", &b, NULL), 0);
	assert_string_not_equal(a, b);
	assert_null(strchr(a, '/'));
	free(a);
	free(b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_was_written_is_read),
		cmocka_unit_test(every_truncation_is_an_error),
		cmocka_unit_test(every_flipped_bit_is_an_error),
		cmocka_unit_test(a_newer_format_is_refused_as_such),
		cmocka_unit_test(nonsense_with_a_good_sum_is_an_error),
		cmocka_unit_test(any_file_leads_to_the_newest),
		cmocka_unit_test(one_place_is_enough_once_frozen),
		cmocka_unit_test(a_file_that_cannot_be_written_is_removed),
		cmocka_unit_test(what_was_not_told_is_not_read),
		cmocka_unit_test(a_first_journal_that_failed_is_not_there),
		cmocka_unit_test(images_of_a_guest_that_is_off_have_no_copies),
		cmocka_unit_test(the_lock_names_its_holder),
		cmocka_unit_test(keys_are_file_names_that_differ),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
