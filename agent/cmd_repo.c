/* SPDX-License-Identifier: Apache-2.0 */
/* init and list: commands that need a repository only. */
#include "agent.h"
#include "secret.h"

#include <stdio.h>
#include <string.h>

static int init_options(struct agent *a, struct repo_init_options *opt, struct repo_secret *secret,
			struct error *err)
{
	int r;

	opt->block_size = 64 * 1024;
	opt->label = a->opt.label;
	if (!a->opt.encrypt) {
		if (a->opt.label || secret_given(a))
			return error_set(
				err, TM_E_USAGE,
				"a password, key file or label is given, but not --encrypt");
		return 0;
	}
	r = secret_new(a, secret, err);
	opt->secret = secret;
	return r;
}

int cmd_init(struct agent *a, enum exit_status *status, struct error *err)
{
	struct repo_init_options opt = {0};
	struct repo_secret secret;
	struct store *st = NULL;
	int r = init_options(a, &opt, &secret, err);

	(void)status;
	if (r)
		return r;
	r = agent_open_store(a, true, &st, err);
	if (!r)
		r = repo_init(st, &opt, &a->repo, err);
	if (r) {
		secret_forget(a);
		error_prefix(err, "cannot make a repository in %s", a->opt.repo);
		return r;
	}
	agent_warn_opened(a);
	if (a->opt.json)
		return print_json_warned(a,
					 json_pack("{s:s, s:i, s:b}", "repository",
						   id_text(repo_id(a->repo)).s, "format",
						   (int)repo_format(a->repo), "encrypted",
						   (int)repo_encrypted(a->repo)),
					 err);
	(void)printf("made %srepository %s in %s\n", repo_encrypted(a->repo) ? "encrypted " : "",
		     id_text(repo_id(a->repo)).s, a->opt.repo);
	return 0;
}

static bool has_tags(const struct point *p, const struct string_list *tags)
{
	for (size_t i = 0; i < tags->n; i++) {
		bool found = false;

		for (size_t k = 0; k < p->ntags; k++)
			found = found || strcmp(p->tags[k], tags->v[i]) == 0;
		if (!found)
			return false;
	}
	return true;
}

struct widths {
	int guest, name;
};

static void print_row(const struct point *p, const struct widths *w)
{
	char when[TIME_TEXT_MAX], stored[SIZE_TEXT_MAX], size[SIZE_TEXT_MAX];
	uint64_t bytes = 0, all = 0;

	for (size_t i = 0; i < p->ndisks; i++) {
		bytes += p->disks[i].stored_bytes;
		all += p->disks[i].size;
	}
	size_format(bytes, stored);
	size_format(all, size);
	time_format_local(p->created_ms, when);
	(void)printf("%.12s  %s  %s  %s  %10s %10s  ", id_text(&p->id).s, when,
		     shown_column(p->guest, w->guest).s, shown_column(p->name, w->name).s, size,
		     stored);
	for (size_t i = 0; i < p->ndisks; i++)
		(void)printf("%s%s:%s", i ? " " : "", shown(p->disks[i].name).s,
			     disk_rung_name(p->disks[i].rung));
	(void)printf("%s\n", p->is_protected ? "  (protected)" : "");
}

static void warn_damaged(struct agent *a, size_t damaged)
{
	if (damaged)
		say_warning(
			a,
			"%zu point%s cannot be read and %s left out; 'tidemark verify' tells more",
			damaged, damaged == 1 ? "" : "s", damaged == 1 ? "is" : "are");
}

static void print_list(struct agent *a, const struct point_list *list)
{
	struct widths w = {strlen("GUEST"), strlen("NAME")};
	size_t n = 0;

	for (size_t i = 0; i < list->n; i++) {
		if (!has_tags(list->v[i], &a->opt.tags))
			continue;
		w.guest = column_with(w.guest, list->v[i]->guest);
		w.name = column_with(w.name, list->v[i]->name);
		n++;
	}
	if (n)
		(void)printf("%-12s  %-19s  %-*s  %-*s  %10s %10s  %s\n", "POINT", "CREATED",
			     w.guest, "GUEST", w.name, "NAME", "SIZE", "STORED", "DISKS");
	else if (a->opt.guest)
		say(a, "no points of a guest '%s'", a->opt.guest);
	else
		say(a, "no points");
	for (size_t i = 0; i < list->n; i++) {
		if (has_tags(list->v[i], &a->opt.tags))
			print_row(list->v[i], &w);
	}
}

static int print_list_json(struct agent *a, const struct point_list *list, struct error *err)
{
	json_t *out = json_array();

	for (size_t i = 0; i < list->n; i++) {
		if (has_tags(list->v[i], &a->opt.tags) &&
		    json_array_append_new(out, point_json(list->v[i], false))) {
			json_decref(out);
			return error_nomem(err);
		}
	}
	return print_json(out, err);
}

int cmd_list(struct agent *a, enum exit_status *status, struct error *err)
{
	auto_point_list struct point_list list = {0};
	size_t damaged = 0;
	int r = agent_open_repo(a, err);

	(void)status;
	if (!r)
		r = repo_points_brief(a->repo, a->opt.guest, &list, &damaged, err);
	if (r)
		return r;
	warn_damaged(a, damaged);
	if (a->opt.json)
		return print_list_json(a, &list, err);
	print_list(a, &list);
	return 0;
}
