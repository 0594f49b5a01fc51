#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Domains: tenants of one repository who see, share and delete nothing of each other's."""

import os
import signal

from harness import HarnessError, Tidemark, Vm, assert_clean, image, make_rng, note_baseline, run, says
from harness.cases import case, main
from harness.vm import Disk

SIZE = 8 * image.MIB
EPOCHS = int(os.environ.get("DOMAIN_EPOCHS", "4"))


def check(ok, what):
    if not ok:
        raise HarnessError(what)


def tenants(scratch, *names):
    """A repository, its own key, and one for each domain."""
    tidemark, secret = Tidemark(scratch), ("--key-file", scratch / "all.key")
    tidemark("init", "--encrypt", *secret)
    keys = {None: secret}
    for name in names:
        file = scratch / f"{name}.key"
        tidemark("domain", "add", name, *secret)
        tidemark("key", "add", "--domain", name, "--new-key-file", file, *secret)
        keys[name] = ("--key-file", file)
    return tidemark, keys


def disk(scratch, name="disk", seed=1):
    path = image.create(scratch.dir("disks") / f"{name}.qcow2", SIZE)
    run(["qemu-io", "-c", f"write -P {seed} 0 1M", "-c", f"write -P {seed + 1} 3M 2M", path])
    return path


def same(scratch, tidemark, path, point, *words, expect=0):
    made, = tidemark("restore", point, "--to", scratch.dir("r"), "--force", *words,
                     expect=expect).json["disks"]
    image.assert_same(path, made["to"], "qcow2", "raw")


def points(tidemark, *words):
    return [p["point"] for p in tidemark("list", *words).json]


@case
def tenants_see_only_their_own(scratch):
    tidemark, keys = tenants(scratch, "acme", "zeta")
    a, z = disk(scratch, "a", 1), disk(scratch, "z", 11)
    acme = tidemark("backup", f"image:{a},name=guest", *keys["acme"]).json["point"]
    zeta = tidemark("backup", f"image:{z},name=guest", *keys["zeta"]).json["point"]
    check(points(tidemark, *keys["acme"]) == [acme], "list")
    check(points(tidemark, *keys[None]) == [], "the default domain holds points")
    same(scratch, tidemark, a, "guest", *keys["acme"])
    same(scratch, tidemark, z, "guest", *keys["zeta"])
    for words in (("show", zeta), ("restore", zeta, "--to", scratch / "no.raw"), ("forget", zeta),
                  ("protect", zeta), ("verify", zeta), ("list", "--domain", "zeta"),
                  ("list", "--domain", "default"), ("domain", "add", "more")):
        result = tidemark(*words, *keys["acme"], expect=(1, 2))
        check("acme" in result.err or zeta in result.err or "one domain" in result.err, result.err)
    check([d["domain"] for d in tidemark("domain", "list", *keys["acme"]).json] == ["acme"], "domains")
    # whoever has the keys of all chooses
    for name, path, point in (("acme", a, acme), ("zeta", z, zeta)):
        check(points(tidemark, "--domain", name, *keys[None]) == [point], name)
        check(points(tidemark, *keys[None], ) == [], "default")
        same(scratch, tidemark, path, point, "--domain", name, *keys[None])
        env = {"TIDEMARK_DOMAIN": name}
        check([p["point"] for p in tidemark("list", *keys[None], env=env).json] == [point], "env")
    # what a key opens is said, and the environment does not decide about new keys
    env = {"TIDEMARK_DOMAIN": "acme"}
    tidemark("key", "add", "--new-key-file", scratch / "second", *keys[None], env=env)
    got = [k["domain"] for k in tidemark("key", "list", *keys[None]).json]
    check(sorted(got, key=str) == [None, None, "acme", "zeta"], f"{got}")
    tidemark("key", "list", "--domain", "acme", *keys[None], expect=2)
    check(tidemark("stats", *keys["acme"]).json["points"][0]["point"] == acme, "stats")
    check(tidemark("verify", "--read-data", *keys[None]).json["points"] == 2, "verify of all")
    check(tidemark("verify", "--scrub", *keys["zeta"]).json["points"] == 1, "verify of one")


@case
def nothing_is_shared_and_nothing_deleted_across(scratch):
    tidemark, keys = tenants(scratch, "acme", "zeta")
    path = disk(scratch)
    stored = []
    for name in (None, "acme", "zeta"):
        made = tidemark("backup", f"image:{path},name=guest", *keys[name]).json
        stored.append(made["disks"][0]["new_bytes"])
        tidemark("backup", f"image:{path},name=twin", "--full", *keys[name])
    check(stored[0] > 0 and stored == [stored[0]] * 3, f"content crossed: {stored}")
    before = {n: points(tidemark, *keys[n]) for n in keys}
    tidemark("forget", before["acme"][0], "--prune", "--max-unused", "0", *keys["acme"])
    removed = tidemark("prune", "--max-unused", "0", "--stale-hours", "0", *keys["acme"]).json
    check(removed["removed_objects"] == 0, f"prune after prune: {removed}")
    check(points(tidemark, *keys["acme"]) == before["acme"][1:], "acme")
    for name in (None, "zeta"):
        check(points(tidemark, *keys[name]) == before[name], f"{name}")
        for point in before[name]:
            same(scratch, tidemark, path, point, *keys[name])
    # without --domain, prune and verify do all
    for name in ("acme", "zeta"):
        tidemark("forget", points(tidemark, *keys[name])[0], *keys[name])
    check(tidemark("prune", "--max-unused", "0", *keys[None]).json["removed_objects"] > 4, "prune of all")
    check(tidemark("verify", "--read-data", *keys[None]).json["points"] == 3, "verify of all")
    # damage in one domain is named, and does not keep prune from the others
    acme, = [d["id"] for d in tidemark("domain", "list", *keys[None]).json if d["domain"] == "acme"]
    copies = sorted((tidemark.repo / "domains").glob(f"{acme}.*"))
    check([c.name for c in copies] == [f"{acme}.0000a", f"{acme}.0000b"], f"{copies}")
    good = copies[0].read_bytes()
    check(copies[1].read_bytes() == good, "the copies differ")
    for copy in copies:
        copy.chmod(0o600)
        copy.write_bytes(good[:-1])
    says(tidemark("prune", *keys[None], expect=(1, 4)), copies[0].name)
    says(tidemark("list", *keys["acme"], expect=(1, 4)), copies[0].name)
    for words in (("--scrub",), ()):
        result = tidemark("verify", *words, *keys[None], expect=4)
        named = {d["object"] for d in result.json["damaged"]}
        check({f"domains/{c.name}" for c in copies} <= named, result.out)
    check(len(points(tidemark, *keys["zeta"])) == 1, "zeta")
    for copy in copies:
        copy.write_bytes(good)
    tidemark("verify", "--scrub", *keys[None])


@case
def copies_of_a_domain_are_missed_and_put_again(scratch):
    tidemark, keys = tenants(scratch, "acme")
    path = disk(scratch)
    point = tidemark("backup", f"image:{path},name=guest", *keys["acme"]).json["point"]
    acme, = [d["id"] for d in tidemark("domain", "list", *keys["acme"]).json]
    copies = sorted((tidemark.repo / "domains").glob(f"{acme}.*"))
    good = copies[0].read_bytes()

    def named(who):
        text = tidemark("verify", *keys[who], expect=4, json_output=False).out
        check("DAMAGED" in text and "no damage" not in text, text)
        return [d["object"] for d in tidemark("verify", *keys[who], expect=4).json["damaged"]]

    for copy in copies:
        for lost in (True, False):
            copy.unlink()
            if not lost:
                copy.write_bytes(good[:40] + b"oops" + good[44:])
            for who in keys:
                check(named(who) == [f"domains/{copy.name}"], f"{copy} {lost} {who}")
            # Of two copies that are there the second is not read by who only opens.
            told = lost or copy == copies[0]
            same(scratch, tidemark, path, point, *keys["acme"], expect=3 if told else 0)
            shown, = tidemark("domain", "list", *keys["acme"], expect=3).json
            check(shown["copies"] == 1 and shown["domain"] == "acme", f"{shown}")
            check(tidemark("key", "repair", *keys[None]).json["repaired"] == 1, "repair")
            check(copy.read_bytes() == good, "not the same bytes")
            tidemark("verify", "--scrub", *keys[None])
    copies[1].unlink()
    tidemark("domain", "add", "acme", *keys[None])
    check(copies[1].read_bytes() == good, "add does not complete it")
    tidemark("domain", "add", "acme", *keys[None], expect=1)
    for copy in copies:
        copy.unlink()
    check(named(None) == [f"d/{acme}/"], "points without a domain")
    tidemark("domain", "add", "acme", *keys[None])
    check([c.read_bytes() for c in copies] == [good, good], "not the same bytes")
    same(scratch, tidemark, path, point, *keys["acme"])
    tidemark("verify", "--read-data", *keys[None])


@case
def a_domain_that_lost_both_copies_comes_back(scratch):
    """Missing or damaged; also the default one, without which nothing opens."""
    tidemark, keys = tenants(scratch, "acme")
    path = disk(scratch)
    for who in ("acme", None):
        point = tidemark("backup", f"image:{path},name=guest", *keys[who]).json["point"]
        name = who or "default"
        own, = [d["id"] for d in tidemark("domain", "list", *keys[None]).json
                if d["domain"] == name]
        copies = sorted((tidemark.repo / "domains").glob(f"{own}.*"))
        good = copies[0].read_bytes()
        for damage in ((None, None), (None, 60), (60, 130)):
            for copy, at in zip(copies, damage):
                copy.unlink()
                if at:
                    copy.write_bytes(good[:at] + b"oops" + good[at + 4:])
            mend = ("domain", "add", "acme") if who else ("key", "repair")
            says(tidemark("list", *keys[who], expect=4), " ".join(mend[:2]), own[:12])
            if who:
                listed = tidemark("domain", "list", *keys[None], expect=4 if any(damage) else 0)
                check(len([d for d in listed.json if d["problem"]]) == any(damage), f"{listed}")
            done = tidemark(*mend, *keys[None])
            check(who or done.json["repaired"] == 2, f"{done.json}")
            check([c.read_bytes() for c in copies] == [good, good], "not the same bytes")
            same(scratch, tidemark, path, point, *keys[who])
    tidemark("verify", "--read-data", *keys[None])


@case
def one_guest_in_two_domains_keeps_both_epochs(scratch):
    tidemark, keys = tenants(scratch, "acme")
    rng = make_rng("domains")
    path = image.create(scratch.dir("disks") / "vda.qcow2", SIZE)
    shadow = image.Shadow(scratch / "shadow", SIZE)
    vm = Vm(scratch, [Disk(path, "vda")], guest=False).start()
    note_baseline(vm)
    made = []
    for epoch in range(EPOCHS):
        for name in (None, "acme"):
            vm.write("vda", rng.randrange(SIZE // 65536) * 65536, 65536, rng.randrange(1, 256), shadow)
            if epoch == 2:  # it dies in the middle, and the other domain's run puts the guest right
                tidemark("backup", vm.target(), *keys[name], expect=-signal.SIGKILL,
                         env={"TIDEMARK_DEBUG_KILL_AT": "frozen"})
                vm.write("vda", 0, 65536, 100 + epoch, shadow)
                other = "acme" if name is None else None
                point = tidemark("backup", vm.target(), *keys[other]).json
                check(point["disks"][0]["source"] == "bitmap", f"{point}")
                made.append((other, point["point"], shadow.copy(scratch / f"s{len(made)}")))
            point = tidemark("backup", vm.target(), *keys[name]).json
            check(point["disks"][0]["source"] == ("bitmap" if epoch else "full"), f"{point}")
            check(epoch == 0 or point["disks"][0]["dirty_bytes"] <= 8 * 65536, f"{point}")
            made.append((name, point["point"], shadow.copy(scratch / f"s{len(made)}")))
    bitmaps = list(vm.bitmaps("vda"))
    check(len(bitmaps) == 2 and len({b.split("-")[2] for b in bitmaps}) == 2, f"{bitmaps}")
    assert_clean(vm, epochs=2)
    vm.quit()
    for name, point, reference in made:
        out, = tidemark("restore", point, "--to", scratch.dir("r"), "--force", *keys[name]).json["disks"]
        image.assert_same(reference, out["to"], "raw", "raw")


@case
def a_tenants_key_is_rotated_alone(scratch):
    tidemark, keys = tenants(scratch, "acme", "zeta")
    path = disk(scratch)
    target = f"image:{path},name=guest"
    first = tidemark("backup", target, *keys["acme"]).json["point"]
    text = tidemark("key", "export", *keys["acme"]).json["paper"]
    (scratch / "paper").write_text(text)
    paper = ("--key-file", scratch / "paper")
    same(scratch, tidemark, path, first, *paper)
    says(tidemark("key", "rotate", *keys["acme"], expect=1), "one domain")
    says(tidemark("key", "rotate", "--domain", "acme", *keys[None], expect=1), "full one, too")
    own, = [k["key"] for k in tidemark("key", "list", *keys[None]).json if k["domain"] == "acme"]
    tidemark("key", "remove", own, *keys[None])
    says(tidemark("list", *keys["acme"], expect=1), "not a key file of the repository")
    tidemark("key", "rotate", "--domain", "acme", *keys[None])
    tidemark("key", "add", "--domain", "acme", "--new-key-file", scratch / "next", *keys[None])
    keys["acme"] = ("--key-file", scratch / "next")
    run(["qemu-io", "-c", "write -P 77 1M 1M", path])
    second = tidemark("backup", target, *keys["acme"]).json["point"]
    for key in (keys["acme"], (*keys[None], "--domain", "acme")):
        same(scratch, tidemark, path, second, *key)
    # the old paper reads what was, and says why not more
    tidemark("restore", first, "--to", scratch / "old.raw", *paper, expect=3)
    says(tidemark("restore", second, "--to", scratch / "no.raw", *paper, expect=1), "key rotate", "present")
    check(not (scratch / "no.raw").exists(), "a file was made")
    says(tidemark("verify", "--read-data", *paper, expect=1), "key rotate")
    tidemark("verify", *paper, expect=3)
    # the other tenant was not asked
    tidemark("backup", target, *keys["zeta"])
    same(scratch, tidemark, path, "latest", *keys["zeta"])
    tidemark("verify", "--read-data", *keys[None])


@case
def a_plain_repository_has_domains_too(scratch):
    tidemark = Tidemark(scratch)
    tidemark("init")
    path = disk(scratch)
    says(tidemark("domain", "add", "default", expect=1), "already")
    says(tidemark("domain", "add", "x" * 65, expect=2), "64")
    tidemark("domain", "add", "acme")
    tidemark("backup", f"image:{path},name=guest")
    tidemark("backup", f"image:{path},name=guest", "--domain", "acme")
    check(points(tidemark) != points(tidemark, "--domain", "acme"), "the same points")
    same(scratch, tidemark, path, "latest", "--domain", "acme")
    says(tidemark("list", "--domain", "nope", expect=1), "'nope'", "'acme'", "'default'")
    for words in (("domain",), ("domain", "melt"), ("domain", "list", "x"), ("domain", "add"),
                  ("init", "--domain", "x"), ("domain", "list", "--domain", "x")):
        tidemark(*words, expect=2)


if __name__ == "__main__":
    main()
