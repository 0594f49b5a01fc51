/* SPDX-License-Identifier: Apache-2.0 */
#include "target.h"

#include <limits.h>
#include <string.h>

void target_done(struct target *t)
{
	free(t->text);
	free(t->images);
	*t = (struct target){0};
}

static bool take_key(const char *part, const char *key, const char **ret)
{
	size_t len = strlen(key);

	if (strncmp(part, key, len) != 0)
		return false;
	*ret = part + len;
	return true;
}

static int qmp_part(struct target *t, char *part, bool first, struct error *err)
{
	if (first) {
		t->guest.qmp_socket = part;
		return 0;
	}
	if (take_key(part, "agent=", &t->guest.agent_socket) ||
	    take_key(part, "name=", &t->guest.name))
		return 0;
	return error_set(
		err, TM_E_USAGE,
		"'%s' is not known behind qmp:SOCKET; there are agent=SOCKET and name=NAME", part);
}

static int image_part(struct target *t, char *part, struct error *err)
{
	const char **v;

	if (take_key(part, "name=", &t->guest.name) ||
	    take_key(part, "format=", &t->guest.image_format))
		return 0;
	v = realloc(t->images, (t->nimages + 1) * sizeof(*v));
	if (!v)
		return error_nomem(err);
	t->images = v;
	t->images[t->nimages++] = part;
	return 0;
}

/* The next part, ended at a comma that stands alone; of two, as in QEMU's options, one is left. */
static char *next_part(char **rest)
{
	char *part = *rest, *to = part, *from = part;

	if (!part)
		return NULL;
	for (; *from && (*from != ',' || from[1] == ','); from++) {
		if (*from == ',')
			from++;
		*to++ = *from;
	}
	*rest = *from ? from + 1 : NULL;
	*to = '\0';
	return part;
}

static int parse_parts(struct target *t, char *rest, struct error *err)
{
	bool first = true;
	char *part;
	int r = 0;

	while (!r && (part = next_part(&rest))) {
		if (!*part)
			return error_set(err, TM_E_USAGE, "a part is empty");
		r = t->guest.kind == GUEST_QMP ? qmp_part(t, part, first, err)
					       : image_part(t, part, err);
		first = false;
	}
	t->guest.images = t->images;
	t->guest.nimages = t->nimages;
	if (!r && t->guest.kind == GUEST_IMAGE && !t->nimages)
		return error_set(err, TM_E_USAGE, "no image is named");
	if (!r && t->guest.name && strlen(t->guest.name) > NAME_MAX)
		return error_set(err, TM_E_USAGE,
				 "the guest's name has %zu bytes; it may have at most %d",
				 strlen(t->guest.name), NAME_MAX);
	if (!r && t->guest.name &&
	    (!*t->guest.name || strchr(t->guest.name, '@') || strchr(t->guest.name, '/')))
		return error_set(
			err, TM_E_USAGE,
			"'%s' cannot be a guest's name: it is empty or has '@' or '/' in it",
			t->guest.name);
	return r;
}

int target_parse(const char *word, struct target *ret, struct error *err)
{
	struct target t = {0};
	char *rest;
	int r;

	if (strncmp(word, "qmp:", 4) == 0)
		t.guest.kind = GUEST_QMP;
	else if (strncmp(word, "image:", 6) == 0)
		t.guest.kind = GUEST_IMAGE;
	else
		return error_set(err, TM_E_USAGE,
				 "target '%.300s': this version knows qmp:SOCKET and image:FILE; a "
				 "guest of libvirt can be backed up while it is off, by the files "
				 "that 'virsh domblklist' shows: image:FILE,...,name=GUEST",
				 word);
	r = text_copy(word, &t.text, err);
	if (r)
		return r;
	rest = strchr(t.text, ':') + 1;
	r = parse_parts(&t, rest, err);
	if (r) {
		error_prefix(err, "target '%s'", word);
		target_done(&t);
		return r;
	}
	*ret = t;
	return 0;
}

void targets_done(struct target *v, size_t n)
{
	for (size_t i = 0; i < n; i++)
		target_done(&v[i]);
	free(v);
}

int targets_parse(const struct string_list *words, struct target **ret, struct error *err)
{
	struct target *v = calloc(words->n, sizeof(*v));
	int r = v ? 0 : error_nomem(err);

	for (size_t i = 0; !r && i < words->n; i++)
		r = target_parse(words->v[i], &v[i], err);
	if (r && v)
		targets_done(v, words->n);
	else
		*ret = v;
	return r;
}
