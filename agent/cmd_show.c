/* SPDX-License-Identifier: Apache-2.0 */
/* show: everything about one point. */
#include "audit.h"

static void line(const char *label, const char *text)
{
	if (text) {
		(void)printf("%-15s ", label);
		show_text(stdout, text);
		(void)putchar('\n');
	}
}

static void size_line(const char *label, uint64_t bytes)
{
	char size[SIZE_TEXT_MAX];

	size_format(bytes, size);
	(void)printf("%-15s %s (%llu bytes)\n", label, size, (unsigned long long)bytes);
}

static void show_disk(const struct point_disk *d)
{
	(void)printf("disk %s\n", shown(d->name).s);
	size_line("  size", d->size);
	line("  file", d->file);
	line("  format", d->format);
	line("  source", disk_rung_name(d->rung));
	line("  reason", d->reason);
	if (!id_is_zero(&d->parent))
		line(d->rung == RUNG_BITMAP ? "  changed since" : "  compared with",
		     id_text(&d->parent).s);
	size_line("  changed", d->dirty_bytes);
	size_line("  read", d->read_bytes);
	size_line("  new", d->new_bytes);
	size_line("  stored", d->stored_bytes);
	line("  bitmap", d->bitmap ? d->bitmap : "none begins with this point");
	if (d->audit.data + d->audit.empty)
		(void)printf("  audit         %llu clean clusters with data and %llu empty ones "
			     "compared, %llu differed\n",
			     (unsigned long long)d->audit.data, (unsigned long long)d->audit.empty,
			     (unsigned long long)d->audit.differed);
	audit_print(&d->audit);
}

static void show_point(const struct point *p)
{
	char when[TIME_TEXT_MAX];

	time_format_local(p->created_ms, when);
	line("point", id_text(&p->id).s);
	line("guest", p->guest);
	line("uuid", p->guest_uuid);
	line("name", p->name);
	line("description", p->description);
	for (size_t i = 0; i < p->ntags; i++)
		line("tag", p->tags[i]);
	if (p->is_protected)
		line("protected", "yes");
	line("created", when);
	line("kind", point_kind_name(p->kind));
	line("state", p->state);
	line("quiesced", p->quiesced ? "yes" : "no");
	(void)printf("%-15s %llu ms\n%-15s %.1f s\n", "frozen", (unsigned long long)p->freeze_ms,
		     "took", (double)p->seconds_ms / 1000);
	if (!id_is_zero(&p->parent))
		line("parent", id_text(&p->parent).s);
	for (size_t i = 0; i < p->ndisks; i++)
		show_disk(&p->disks[i]);
}

int cmd_show(struct agent *a, enum exit_status *status, struct error *err)
{
	auto_clean(point_free) struct point *p = NULL;
	int r = agent_open_repo(a, err);

	(void)status;
	if (!r)
		r = repo_point_find(a->repo, a->opt.args.v[0], &p, err);
	if (r)
		return r;
	if (a->opt.json)
		return print_json_warned(a, point_json(p, true), err);
	show_point(p);
	return 0;
}
