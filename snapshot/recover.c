/* SPDX-License-Identifier: Apache-2.0 */
/*
 * After the death of an agent.  With QEMU alive the state is read from QEMU and brought to its
 * end by the same steps that a run takes; with QEMU dead the journal decides.
 */
#include "recover.h"

#include "collapse.h"
#include "epochs.h"
#include "exports.h"
#include "guard.h"
#include "overlay.h"
#include "proc.h"
#include "quiesce.h"

#include <string.h>

struct recovery {
	struct guest *g;
	struct journal *j;
	const struct recover_options *opt;
	struct text_list *lines;
};

void recover_report_done(struct recover_report *r)
{
	text_list_done(&r->lines);
	free(r->running.guest);
	free(r->running.repo_url);
	*r = (struct recover_report){0};
}

static int describe(const struct recovery *v, bool alive, struct error *err)
{
	const struct journal *j = v->j;
	int r = text_list_add(
		v->lines, err,
		"guest %s: a backup was interrupted in the phase '%s' (point %.8s%s%s); QEMU is %s",
		j->guest, journal_phase_name(j->phase), id_text(&j->point).s,
		j->repo_url ? ", repository " : "", j->repo_url ? j->repo_url : "",
		j->kind == GUEST_IMAGE ? "not involved"
		: alive                ? "running"
				       : "gone");

	for (size_t i = 0; !r && i < j->ndisks; i++) {
		const struct journal_disk *d = &j->disks[i];

		if (d->overlay && access(d->overlay, F_OK) == 0)
			r = text_list_add(v->lines, err, "disk %s: overlay %s over %s%s", d->name,
					  d->overlay, d->base,
					  d->pivot == PIVOT_NONE      ? ""
					  : d->how == COLLAPSE_COMMIT ? ", merged already"
								      : ", complete");
		if (!r && d->overlay && recover_needs_overlay(d) && j->phase > JOURNAL_PREPARING &&
		    j->phase < JOURNAL_SETTLING)
			r = recover_tell_missing(d, v->lines, err);
	}
	return r;
}

/* A frozen guest can hang for as long as it likes: this comes first. */
static int thaw(const struct recovery *v, struct error *err)
{
	struct error e = {0};
	bool frozen = false;
	int r;

	if (!v->j->agent_socket ||
	    (v->j->phase != JOURNAL_FREEZING && v->j->phase != JOURNAL_FROZEN))
		return 0;
	r = freeze_recover(v->j->agent_socket, false, &frozen, &e);
	if (r && frozen)
		return error_pass(err, r, &e);
	if (r)
		return text_list_add(v->lines, err,
				     "whether its file systems are frozen cannot be told: %s",
				     e.text);
	return frozen ? text_list_add(v->lines, err, "thawed its file systems") : 0;
}

/* Bitmaps are settled now when the caller can tell; otherwise the next backup does it. */
static int settle(const struct recovery *v, struct error *err)
{
	struct error e = {0};
	bool committed = false;
	int r;

	r = epochs_void(v->g, v->j, v->lines, &e);
	if (r && v->opt->committed)
		return error_set(err, TM_E_STALE, "%s", e.text);
	if (!r && !v->opt->committed)
		return 0;
	if (!r)
		r = v->opt->committed(v->opt->data, v->j->repo_url, &v->j->repo, &v->j->point,
				      &committed, &e);
	if (!r)
		r = epochs_finish(v->g, v->j, committed, v->lines, &e);
	return r ? text_list_add(v->lines, err, "its bitmaps are left to the next backup: %s",
				 e.text)
		 : 0;
}

static int recover_online(const struct recovery *v, struct error *err)
{
	const struct collapse_options opt = {.lines = v->lines, .room_ms = COLLAPSE_ROOM_MS};
	int r = thaw(v, err);

	if (!r && v->j->kind == GUEST_QMP)
		r = exports_end(v->g, v->j, NULL, err);
	collapse_take_back(v->j);
	if (!r && v->j->kind == GUEST_QMP)
		r = collapse_disks(v->g, v->j, &opt, err);
	if (!r && v->j->kind == GUEST_QMP)
		r = collapse_resume(v->g, v->j, err);
	if (!r && v->j->kind == GUEST_IMAGE)
		exports_stop_servers(v->j, NULL);
	if (!r)
		r = journal_write(v->j, JOURNAL_SETTLING, err);
	return r ? r : settle(v, err);
}

static int run_recovery(const struct recovery *v, bool alive, struct error *err)
{
	int r;

	if (alive) {
		r = recover_online(v, err);
	} else {
		exports_stop_servers(v->j, NULL);
		r = recover_offline(v->g, v->j, v->lines, err);
	}
	if (!r)
		r = collapse_note_moved(v->j, err);
	if (!r && epochs_any_void(v->j)) /* no reason to keep the guest from starting */
		return journal_write(v->j, JOURNAL_SETTLING, err);
	if (!r)
		r = journal_remove(v->j, err);
	if (!r)
		r = text_list_add(v->lines, err, "guest %s: recovered", v->j->guest);
	return r;
}

bool recover_agent_lives(const struct journal *j)
{
	uint64_t start =
		j->agent_pid && j->agent_pid <= INT32_MAX ? proc_start((pid_t)j->agent_pid) : 0;

	return start && start == j->agent_start && j->agent_pid != (uint64_t)getpid();
}

/* Fills report->running by the journal of an agent that lives, and says so. */
static int tell_running(const struct journal *j, struct recover_report *report, struct error *err)
{
	struct recover_running *v = &report->running;
	char since[TIME_TEXT_MAX];
	int r;

	if (v->pid)
		return 0;
	time_format_utc(id_time_ms(&j->point), since);
	r = text_copy(j->guest, &v->guest, err);
	if (!r && j->repo_url)
		r = text_copy(j->repo_url, &v->repo_url, err);
	if (!r)
		r = text_list_add(&report->lines, err,
				  "guest %s: process %llu backs it up since %s%s%s, and is in the "
				  "phase '%s'",
				  j->guest, (unsigned long long)j->agent_pid, since,
				  j->repo_url ? " to " : "", j->repo_url ? j->repo_url : "",
				  journal_phase_name(j->phase));
	if (r)
		return r;
	v->pid = j->agent_pid;
	v->phase = journal_phase_name(j->phase);
	v->point = j->point;
	return 0;
}

/* Connects to the QEMU the journal speaks of.  *ret_alive: there is one. */
static int reach(struct guest *g, const struct journal *j, bool *ret_alive, struct error *err)
{
	struct error e = {0};
	int r;

	*ret_alive = true;
	if (j->kind == GUEST_IMAGE || (g->qmp && !qmp_lost(g->qmp)))
		return 0;
	if (!g->qmp_socket) {
		r = text_copy(j->qmp_socket, &g->qmp_socket, err);
		if (r)
			return r;
	}
	r = guest_connect(g, &e);
	if (r == TM_E_NOTFOUND) {
		*ret_alive = false;
		return 0;
	}
	return r ? error_pass(err, r, &e) : 0;
}

/*
 * A journal found through an image belongs to a guest with a socket, which has a lock of its own.
 * *ret_gone: another process has put it right meanwhile.
 */
static int lock_journal_of(struct guest *g, const struct journal *j, bool *ret_gone,
			   struct error *err)
{
	auto_free char *key = NULL;
	int r = journal_key_of(j->path, &key, err);

	*ret_gone = false;
	if (r || strcmp(key, g->key) == 0)
		return r;
	r = journal_lock(g->state_dir, key, &g->qmp_hooks, &g->lock_journal, err);
	*ret_gone = !r && !journal_exists(j);
	return r;
}

static int recover_found(struct guest *g, struct journal *j, const struct recover_options *opt,
			 struct recover_report *report, struct error *err)
{
	struct recovery v = {g, j, opt, &report->lines};
	bool alive, gone = false;
	struct error e = {0};
	int r = 0;

	if (recover_agent_lives(j)) {
		r = tell_running(j, report, err);
		if (r || opt->check_only)
			return r;
		return error_set(err, TM_E_BUSY,
				 "another tidemark, process %llu, is at work on this guest",
				 (unsigned long long)j->agent_pid);
	}
	if (!opt->check_only)
		r = lock_journal_of(g, j, &gone, err);
	if (r || gone)
		return r;
	report->found = report->left = true;
	r = reach(g, j, &alive, err);
	if (!r)
		r = describe(&v, alive, err);
	if (r || opt->check_only)
		return r;
	/* An image's guest may have been one with a socket: settle and find it as what it was. */
	g->kind = j->kind;
	if (!opt->unguarded && guard_start(j, g->state_dir, &g->guard, &e))
		r = text_list_add(&report->lines, err, "%s", e.text);
	if (!r)
		r = run_recovery(&v, alive, err);
	guard_end(tm_steal(g->guard));
	report->left = r != 0;
	return r;
}

/* Without a journal of its own the files that the guest uses lead to a copy. */
static int look_at_disks(struct guest *g, bool *ret_gone, struct error *err)
{
	struct error e = {0};
	int r;

	if (g->kind == GUEST_IMAGE)
		return 0;
	r = guest_connect(g, &e);
	if (!r)
		r = guest_refresh(g, &e);
	*ret_gone = r == TM_E_NOTFOUND;
	return *ret_gone ? 0 : error_pass(err, r, &e);
}

static int recover_opened(struct guest *g, const struct recover_options *opt,
			  struct recover_report *report, struct error *err)
{
	auto_clean(journal_free) struct journal *j = NULL;
	auto_free char *path = NULL;
	size_t before = report->lines.n;
	bool gone = false;
	int r = journal_path(g->state_dir, g->key, &path, err);

	if (!r && access(path, F_OK) < 0)
		r = look_at_disks(g, &gone, err);
	if (!r)
		r = recover_find(g, &j, err);
	if (!r && !j) {
		r = recover_strays(g, opt->check_only, &report->lines, err);
		report->found = report->lines.n > before;
		report->left = report->found && opt->check_only;
		report->unknown = gone && !report->found;
	}
	if (r == TM_E_STALE)
		report->found = report->left = true; /* and a person has to decide */
	if (r || !j)
		return r;
	return recover_found(g, j, opt, report, err);
}

/* Somebody holds the guest's lock: a backup, which its journal tells of, or another command. */
static void tell_locked(const struct guest_target *target, const struct recover_options *opt,
			struct recover_report *report)
{
	const struct guest_options gopt = {opt->state_dir, false, opt->hooks};
	auto_clean(guest_free) struct guest *g = NULL;
	auto_clean(journal_free) struct journal *j = NULL;
	auto_free char *path = NULL;

	if (guest_new(target, &gopt, &g, NULL) == 0 &&
	    journal_path(g->state_dir, g->key, &path, NULL) == 0 &&
	    journal_read(path, &j, NULL) == 0 && recover_agent_lives(j) &&
	    tell_running(j, report, NULL))
		log_debug("no memory for a line of the report");
}

int recover_guest(const struct guest_target *target, const struct recover_options *opt,
		  struct recover_report *report, struct error *err)
{
	const struct guest_options gopt = {opt->state_dir, !opt->check_only, opt->hooks};
	auto_clean(guest_free) struct guest *g = NULL;
	int r = guest_new(target, &gopt, &g, err);

	if (r == TM_E_BUSY)
		tell_locked(target, opt, report);
	return r ? r : recover_opened(g, opt, report, err);
}

int recover_journal(const char *path, const struct recover_options *opt,
		    struct recover_report *report, struct error *err)
{
	auto_clean(journal_free) struct journal *j = NULL;
	auto_free const char **images = NULL;
	struct guest_target target;
	bool lost;
	int r = journal_read(path, &j, err);

	if (r == TM_E_NOTFOUND) {
		error_clear(err);
		return 0;
	}
	if (r)
		return r;
	images = calloc(j->ndisks + 1, sizeof(char *));
	if (!images)
		return error_nomem(err);
	for (size_t i = 0; i < j->ndisks; i++)
		images[i] = j->disks[i].base;
	/* Where the one in the state directory is lost, the images lead to it, whatever QEMU does.
	 */
	lost = text_ends_with(path, JOURNAL_SUFFIX);
	target = (struct guest_target){.kind = lost ? GUEST_IMAGE : j->kind,
				       .name = j->guest,
				       .qmp_socket = j->qmp_socket,
				       .agent_socket = j->agent_socket,
				       .images = images,
				       .nimages = j->ndisks};
	return recover_guest(&target, opt, report, err);
}

int recover_all(const struct recover_options *opt, struct recover_report *report, struct error *err)
{
	auto_text_list struct text_list files = {0};
	struct error first = {0};
	int r = recover_list(opt->state_dir, &files, err);

	if (r)
		return r;
	for (size_t i = 0; i < files.n; i++) {
		struct recover_report one = {0};
		struct error e = {0};
		int rl = recover_journal(files.v[i], opt, &one, &e);

		if (rl == TM_E_BUSY && one.running.pid)
			rl = 0; /* it is in good hands */
		report->found |= one.found;
		report->left |= one.left || rl;
		for (size_t k = 0; !r && k < one.lines.n; k++)
			r = text_list_add(&report->lines, err, "%s", one.lines.v[k]);
		recover_report_done(&one);
		if (rl && !first.code)
			first = e;
	}
	if (!r && first.code)
		return error_pass(err, first.code, &first);
	return r;
}
