/* SPDX-License-Identifier: Apache-2.0 */
/* The store contract, the same for every back end. */
#include "test_repo.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

static char dir[] = "/tmp/tidemark-store-XXXXXX";

struct keys {
	char text[4096];
};

static int note_key(void *data, const char *key, uint64_t size, struct error *err)
{
	struct keys *k = data;

	(void)err;
	(void)snprintf(k->text + strlen(k->text), sizeof(k->text) - strlen(k->text), "%s=%u ", key,
		       (unsigned)size);
	return 0;
}

static struct store *open_dir(struct loop *loop, const char *name, bool create)
{
	struct store *st = NULL;
	struct error err = {0};
	char path[256];

	(void)snprintf(path, sizeof(path), "%s/%s", dir, name);
	if (store_dir_open(loop, path, create, &st, &err) < 0)
		fail_msg("%s", err.text);
	return st;
}

static void list(struct store *st, const char *prefix, const char *want)
{
	struct keys k = {{0}};

	assert_int_equal(st->ops->list(st, prefix, note_key, &k, NULL), 0);
	assert_string_equal(k.text, want);
}

struct got {
	struct store_req req;
	int code;
	bool done;
};

static void got_done(struct store_req *req, int code)
{
	struct got *g = container_of(req, struct got, req);

	g->code = code;
	g->done = true;
}

static int get(struct store *st, const char *key, void *bytes, size_t len, uint64_t offset,
	       size_t *ret_got)
{
	struct got g = {.req.done = got_done};

	st->ops->get(st, key, bytes, len, offset, &g.req);
	assert_false(g.done); /* never from inside the call */
	while (!g.done)
		assert_int_equal(loop_run_once(st->loop, 1000, NULL), 0);
	*ret_got = g.req.got;
	return g.code;
}

static void check_contract(struct store *st)
{
	size_t big_len = 5 * 1024 * 1024 + 3, n;
	uint8_t *big = malloc(big_len), *back = malloc(big_len);
	uint64_t size;

	for (size_t i = 0; i < big_len; i++)
		big[i] = (uint8_t)(i * 7 + i / 1000);
	assert_int_equal(store_put_wait(st, "a/b/c", "hello", 5, NULL), 0);
	assert_int_equal(store_put_wait(st, "a/b-c", "x", 1, NULL), 0);
	assert_int_equal(store_put_wait(st, "a/b.c", "", 0, NULL), 0);
	assert_int_equal(store_put_wait(st, "top", big, big_len, NULL), 0);
	/* I1: what is there is not changed */
	assert_int_equal(store_put_wait(st, "a/b/c", "other", 5, NULL), TM_E_EXISTS);
	assert_int_equal(store_put_wait(st, "../up", "x", 1, NULL), TM_E_RANGE);
	assert_int_equal(store_put_wait(st, "UP", "x", 1, NULL), TM_E_RANGE);
	assert_int_equal(get(st, "a/b/c", back, 5, 0, &n), 0);
	assert_int_equal(n, 5);
	assert_memory_equal(back, "hello", 5);
	assert_int_equal(get(st, "a/b/c", back, 100, 3, &n), 0);
	assert_int_equal(n, 2);
	assert_int_equal(get(st, "a/b/c", back, 100, 1000, &n), 0);
	assert_int_equal(n, 0);
	assert_int_equal(get(st, "a/none", back, 100, 0, &n), TM_E_NOTFOUND);
	assert_int_equal(get(st, "top", back, big_len, 0, &n), 0);
	assert_int_equal(n, big_len);
	assert_memory_equal(back, big, big_len);
	assert_int_equal(st->ops->head(st, "top", &size, NULL), 0);
	assert_int_equal(size, big_len);
	assert_int_equal(st->ops->head(st, "a/none", &size, NULL), TM_E_NOTFOUND);
	assert_int_equal(st->ops->remove(st, "top", NULL), 0);
	assert_int_equal(st->ops->remove(st, "top", NULL), 0);
	assert_int_equal(st->ops->head(st, "top", &size, NULL), TM_E_NOTFOUND);
	free(big);
	free(back);
}

static void memory_keeps_the_contract(void **state)
{
	struct store *st = NULL;
	struct loop *loop = NULL;

	(void)state;
	assert_int_equal(loop_new(8, &loop, NULL), 0);
	assert_int_equal(store_memory_new(loop, &st, NULL), 0);
	check_contract(st);
	list(st, "a/b.", "a/b.c=0 ");
	store_free(st);
	loop_free(loop);
}

static void a_directory_keeps_the_contract(void **state)
{
	struct store *st;
	struct loop *loop = NULL;
	struct stat sb;
	char path[256];

	(void)state;
	assert_int_equal(loop_new(8, &loop, NULL), 0);
	st = open_dir(loop, "one", true);
	check_contract(st);
	list(st, "", "a/b-c=1 a/b.c=0 a/b/c=5 ");
	list(st, "a/b", "a/b-c=1 a/b.c=0 a/b/c=5 ");
	list(st, "a/b/", "a/b/c=5 ");
	list(st, "a/b.", "a/b.c=0 ");
	list(st, "b", "");
	list(st, "no/such/folder", "");
	store_free(st);
	st = open_dir(loop, "one", false);
	list(st, "a/b/", "a/b/c=5 ");
	store_free(st);
	(void)snprintf(path, sizeof(path), "%s/one/a/b", dir);
	assert_int_equal(stat(path, &sb), 0);
	assert_int_equal(sb.st_mode & 0777, 0700);
	(void)snprintf(path, sizeof(path), "%s/one/a/b/c", dir);
	assert_int_equal(stat(path, &sb), 0);
	assert_int_equal(sb.st_mode & 0777, 0600);
	loop_free(loop);
}

/* Nor does get wait for the writer of a pipe. */
static void what_is_no_regular_file_is_no_object(void **state)
{
	static const char *const odd[] = {"pipe", "folder", "link"};
	uint64_t size;
	struct store *st;
	struct loop *loop = NULL;
	uint8_t byte;
	size_t got;
	char path[256];

	(void)state;
	assert_int_equal(loop_new(8, &loop, NULL), 0);
	st = open_dir(loop, "odd", true);
	assert_int_equal(store_put_wait(st, "file", "x", 1, NULL), 0);
	(void)snprintf(path, sizeof(path), "%s/odd/pipe", dir);
	assert_int_equal(mkfifo(path, 0600), 0);
	(void)snprintf(path, sizeof(path), "%s/odd/folder", dir);
	assert_int_equal(mkdir(path, 0700), 0);
	(void)snprintf(path, sizeof(path), "%s/odd/link", dir);
	assert_int_equal(symlink("file", path), 0);
	assert_int_equal(get(st, "file", &byte, 1, 0, &got), 0);
	for (size_t i = 0; i < ARRAY_SIZE(odd); i++) {
		assert_int_equal(get(st, odd[i], &byte, 1, 0, &got), TM_E_NOTFOUND);
		assert_int_equal(st->ops->head(st, odd[i], &size, NULL), TM_E_NOTFOUND);
	}
	list(st, "", "file=1 ");
	store_free(st);
	loop_free(loop);
}

static unsigned files_in(const char *path)
{
	DIR *d = opendir(path);
	unsigned n = 0;

	assert_non_null(d);
	while (readdir(d))
		n++;
	(void)closedir(d);
	return n - 2;
}

static void leftovers_in_tmp_are_no_objects(void **state)
{
	struct store *st;
	struct loop *loop = NULL;
	char path[256];
	int fd;

	(void)state;
	assert_int_equal(loop_new(8, &loop, NULL), 0);
	st = open_dir(loop, "two", true);
	(void)snprintf(path, sizeof(path), "%s/two/tmp/0123", dir);
	fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	(void)close(fd);
	list(st, "", "");
	assert_int_equal(store_put_wait(st, "k", "x", 1, NULL), 0);
	assert_int_equal(store_put_wait(st, "k", "x", 1, NULL), TM_E_EXISTS);
	(void)snprintf(path, sizeof(path), "%s/two/tmp", dir);
	assert_int_equal(files_in(path), 1); /* a put leaves none, done or failed */
	store_free(st);
	loop_free(loop);
}

static void leave_file(const char *name, time_t age)
{
	const struct timespec when[2] = {{.tv_sec = time(NULL) - age},
					 {.tv_sec = time(NULL) - age}};
	char path[256];
	int fd;

	(void)snprintf(path, sizeof(path), "%s/four/tmp/%s", dir, name);
	fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	assert_int_equal(write(fd, "12345", 5), 5);
	assert_int_equal(futimens(fd, when), 0);
	(void)close(fd);
}

/* Folders go while a store has them open; its next puts make them again. */
static void what_crashes_leave_is_tidied_away_beside_puts(void **state)
{
	struct store_leftovers left = {.before_ms = (uint64_t)(time(NULL) - 3600) * 1000};
	struct store *a, *b;
	struct loop *loop = NULL;
	char path[256];

	(void)state;
	assert_int_equal(loop_new(8, &loop, NULL), 0);
	a = open_dir(loop, "four", true);
	b = open_dir(loop, "four", false);
	leave_file("0123456789abcdef", 7200);
	leave_file("fedcba9876543210", 60); /* somebody may be writing it */
	leave_file("precious", 7200);       /* no put has made it */
	for (unsigned i = 0; i < 3; i++) {
		assert_int_equal(store_put_wait(a, "d/x/s/y/one", "1", 1, NULL), 0);
		assert_int_equal(store_put_wait(a, "d/x/p/z", "2", 1, NULL), 0);
		assert_int_equal(a->ops->remove(a, "d/x/s/y/one", NULL), 0);
		left.dry_run = i == 0;
		left.files = left.bytes = 0;
		assert_int_equal(b->ops->tidy(b, &left, NULL), 0);
		assert_int_equal(left.files, i < 2);
		assert_int_equal(left.bytes, i < 2 ? 5 : 0);
		(void)snprintf(path, sizeof(path), "%s/four/d/x/s", dir);
		assert_int_equal(access(path, F_OK), i == 0 ? 0 : -1);
		list(a, "", "d/x/p/z=1 ");
		assert_int_equal(a->ops->remove(a, "d/x/p/z", NULL), 0);
	}
	(void)snprintf(path, sizeof(path), "%s/four/tmp", dir);
	assert_int_equal(files_in(path), 2);
	store_free(a);
	store_free(b);
	loop_free(loop);
}

static void a_directory_in_use_is_not_taken(void **state)
{
	struct store *st = NULL;
	struct loop *loop = NULL;
	struct error err = {0};
	char path[256];

	(void)state;
	assert_int_equal(loop_new(8, &loop, NULL), 0);
	assert_int_equal(store_dir_open(loop, dir, true, &st, &err), TM_E_EXISTS);
	(void)snprintf(path, sizeof(path), "%s/none", dir);
	assert_int_equal(store_dir_open(loop, path, false, &st, NULL), TM_E_NOTFOUND);
	loop_free(loop);
}

static void a_copy_without_tmp_is_the_same_repository(void **state)
{
	struct store *st = NULL;
	struct loop *loop = NULL;
	struct error err = {0};
	char path[256];

	(void)state;
	assert_int_equal(loop_new(8, &loop, NULL), 0);
	st = open_dir(loop, "copied", true);
	(void)snprintf(path, sizeof(path), "%s/copied/tmp", dir);
	store_free(st);
	assert_int_equal(rmdir(path), 0);
	(void)snprintf(path, sizeof(path), "%s/copied", dir);
	assert_int_equal(store_dir_open(loop, path, false, &st, &err), TM_E_NOTFOUND);
	(void)snprintf(path, sizeof(path), "%s/copied/tmp", dir);
	assert_int_equal(mkdir(path, 0700), 0);
	st = open_dir(loop, "copied", false);
	assert_int_equal(store_put_wait(st, "repo", "abc", 3, &err), 0);
	store_free(st);
	assert_int_equal(rmdir(path), 0);
	st = open_dir(loop, "copied", false);
	assert_int_equal(store_put_wait(st, "d/x", "abc", 3, &err), 0);
	list(st, "", "d/x=3 repo=3 ");
	store_free(st);
	loop_free(loop);
}

struct many {
	struct store_req req;
	char key[KEY_MAX];
	unsigned *left;
};

static void many_done(struct store_req *req, int code)
{
	struct many *m = container_of(req, struct many, req);

	assert_int_equal(code, 0);
	--*m->left;
}

/* More folders than are kept open, all at once. */
static void many_puts_at_once(void **state)
{
	static struct many m[300];
	struct store *st;
	struct loop *loop = NULL;
	unsigned left = 300;

	(void)state;
	assert_int_equal(loop_new(8, &loop, NULL), 0);
	st = open_dir(loop, "three", true);
	for (unsigned i = 0; i < 300; i++) {
		m[i] = (struct many){.req.done = many_done, .left = &left};
		(void)snprintf(m[i].key, sizeof(m[i].key), "f%u/g%u/%u", i % 5, i % 60, i);
		st->ops->put_new(st, m[i].key, m[i].key, strlen(m[i].key), &m[i].req);
	}
	while (left > 0)
		assert_int_equal(loop_run_once(loop, 1000, NULL), 0);
	for (unsigned i = 0; i < 300; i++) {
		char back[KEY_MAX] = "";
		size_t n;

		assert_int_equal(get(st, m[i].key, back, sizeof(back), 0, &n), 0);
		assert_int_equal(n, strlen(m[i].key));
		assert_memory_equal(back, m[i].key, n);
	}
	store_free(st);
	loop_free(loop);
}

static int make_dir(void **state)
{
	(void)state;
	return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state)
{
	const char *const argv[] = {"rm", "-rf", dir, NULL};

	(void)state;
	return spawn_run(argv, 60000, NULL, NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(memory_keeps_the_contract),
		cmocka_unit_test(a_directory_keeps_the_contract),
		cmocka_unit_test(what_is_no_regular_file_is_no_object),
		cmocka_unit_test(leftovers_in_tmp_are_no_objects),
		cmocka_unit_test(what_crashes_leave_is_tidied_away_beside_puts),
		cmocka_unit_test(a_directory_in_use_is_not_taken),
		cmocka_unit_test(a_copy_without_tmp_is_the_same_repository),
		cmocka_unit_test(many_puts_at_once),
	};

	return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
