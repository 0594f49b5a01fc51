#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Encrypted repositories: secrets and where they come from, keys, roles, and what a thief sees."""

import os
import pty
import resource
import select
import signal
import stat
import subprocess
import time

from harness import HarnessError, Tidemark, image, run, says, wait_for
from harness.cases import case, main

SIZE = 4 * image.MIB
DATA = b"the quick brown fox jumps over the lazy dog. "


def check(ok, what):
    if not ok:
        raise HarnessError(what)


def write(path, text):
    path.write_text(text)
    return path


def disk(scratch):
    """Text that compresses, noise with text in it that does not, zeroes."""
    raw = scratch / "disk.raw"
    noise = b"".join(os.urandom(65536 - len(DATA)) + DATA for _ in range(8))
    text = (DATA * (SIZE // len(DATA)))[:SIZE // 2]
    raw.write_bytes(text + noise + bytes(SIZE // 2 - len(noise)))
    path = scratch.dir("secretfolder") / "secretdisk.qcow2"
    run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, path])
    return path


def password(scratch, text="correct horse"):
    return ("--password-file", write(scratch / f"pw-{abs(hash(text))}", text + "\n"))


def setup(scratch, secret=None):
    """An encrypted repository with one point; a key file is quick, a password takes work on purpose."""
    tidemark, secret = Tidemark(scratch), secret or ("--key-file", scratch / "first.key")
    made = tidemark("init", "--encrypt", "--label", "first", *secret).json
    check(made["encrypted"] is True, f"{made}")
    path = disk(scratch)
    target = f"image:{path},name=secretguest"
    tidemark("backup", target, "--description", "secretdescription", "--tag", "secrettag", *secret)
    return tidemark, secret, path, target


def same(scratch, tidemark, secret, path, point="latest"):
    made, = tidemark("restore", point, "--to", scratch.dir("r"), "--force", *secret).json["disks"]
    image.assert_same(path, made["to"], "qcow2", "raw")


def keys(tidemark, secret):
    return tidemark("key", "list", *secret).json


def slots(tidemark):
    return sorted((tidemark.repo / "keys").iterdir())


@case
def the_password_may_come_from_anywhere(scratch):
    tidemark, secret, path, _ = setup(scratch, password(scratch))
    same(scratch, tidemark, secret, path)
    pw = secret[1]
    for env in ({"TIDEMARK_PASSWORD": "correct horse"}, {"TIDEMARK_PASSWORD_FILE": str(pw)},
                {"TIDEMARK_PASSWORD_COMMAND": f"cat  {pw}"}):
        check(len(tidemark("list", env=env).json) == 1, f"{env}")
    # options before the environment; only the first line counts
    more = write(scratch / "more", "correct horse\r\nand more\n")
    tidemark("list", "--password-file", more, env={"TIDEMARK_PASSWORD": "wrong"})
    says(tidemark("list", env={"TIDEMARK_PASSWORD_COMMAND": "false"}, expect=1), "PASSWORD_COMMAND")
    says(tidemark("list", env={"TIDEMARK_PASSWORD_COMMAND": "no-such-program-here"}, expect=1),
         "no-such-program-here")
    # no shell
    says(tidemark("list", env={"TIDEMARK_PASSWORD_COMMAND": f"cat {pw}; true"}, expect=1), "COMMAND")


@case
def bad_secrets_get_a_clear_error(scratch):
    tidemark, secret, path, target = setup(scratch, password(scratch))
    wrong = password(scratch, "wrong horse")
    says(tidemark("list", *wrong, expect=1), "wrong password", tidemark.repo)
    says(tidemark("backup", target, *wrong, expect=1), "wrong password")
    says(tidemark("list", expect=1), "encrypted", "--password-file")
    says(tidemark("list", "--password-file", scratch / "none", expect=1), "none")
    says(tidemark("list", "--password-file", write(scratch / "e", "\n"), expect=1), "empty")
    says(tidemark("list", "--password-file", write(scratch / "l", "x" * 2000), expect=1), "longer")
    says(tidemark("list", "--key-file", write(scratch / "k", "abcd\n"), expect=1), "4 characters")
    says(tidemark("list", "--key-file", write(scratch / "k", "z" * 64), expect=1), "hex")
    says(tidemark("list", "--key-file", write(scratch / "k", "0" * 64), expect=1), "key file")
    says(tidemark("list", "--key-file", "/dev/zero", expect=1), "too long")
    tidemark("list", "--key-file", "x", *secret, expect=2)
    same(scratch, tidemark, secret, path)


@case
def a_plain_repository_is_not_taken_for_an_encrypted_one(scratch):
    tidemark, secret = Tidemark(scratch), password(scratch)
    tidemark("init", *secret, expect=2)
    check(not tidemark.repo.exists(), "something was made")
    check(tidemark("init").json["encrypted"] is False, "encrypted?")
    says(tidemark("list", *secret, expect=1), "not encrypted")
    check(tidemark("list").json == [], "list")
    says(tidemark("key", "add", "--new-key-file", scratch / "k", expect=1), "not encrypted")
    check(not (scratch / "k").exists(), "a key file was left")
    check([k["kdf"] for k in keys(tidemark, ())] == ["none"], "kdf")


@case
def nothing_of_a_guest_is_readable(scratch):
    tidemark, secret, path, target = setup(scratch, password(scratch))
    with open(path, "rb") as file:
        check(DATA in file.read(), "the pattern is not in the image")
    tidemark("backup", target, "--full", "--name", "secretpoint", *secret)
    tidemark("key", "add", "--new-key-file", scratch / "k", *secret)
    seen = 0
    noise = (scratch / "disk.raw").read_bytes()[SIZE // 2:][:32]
    words = [noise, b"secret", b"qcow2", DATA[:12], b"correct horse", b"shutoff",
             (scratch / "k").read_bytes().strip(), bytes.fromhex((scratch / "k").read_text())]
    for folder, _, names in os.walk(tidemark.repo):
        for name in names:
            where = os.path.join(folder, name)
            with open(where, "rb") as file:
                stored = file.read()
            seen += len(stored)
            for word in words:
                if word in stored or word in os.fsencode(os.path.relpath(where, tidemark.repo)):
                    raise HarnessError(f"{where} holds {word}")
    check(seen > 500000, "nothing was looked at")


@case
def keys_come_and_go(scratch):
    tidemark, secret, path, _ = setup(scratch, password(scratch))
    first, = keys(tidemark, secret)
    check({k: first[k] for k in ("role", "label", "kdf")} ==
          {"role": "full", "label": "first", "kdf": "scrypt"} and "T" in first["created"], f"{first}")
    says(tidemark("key", "remove", first["key"], *secret, expect=1), "last full one")
    file = scratch / "key"
    added = tidemark("key", "add", "--label", "agent", "--new-key-file", file, *secret).json["key"]
    check(stat.S_IMODE(file.stat().st_mode) == 0o600, "mode of the key file")
    says(tidemark("key", "add", "--new-key-file", file, *secret, expect=1), file)
    check(len(file.read_text().strip()) == 64, "the key file was overwritten")
    other = ("--key-file", file)
    same(scratch, tidemark, other, path)
    tidemark("key", "remove", first["key"][:6], *other)
    says(tidemark("list", *secret, expect=1), "wrong password")
    same(scratch, tidemark, other, path)
    tidemark("key", "passwd", "--new-password-file", password(scratch, "next")[1], *other)
    same(scratch, tidemark, password(scratch, "next"), path)
    says(tidemark("list", *other, expect=1), "not a key file of the repository")
    says(tidemark("key", "remove", added, *password(scratch, "next"), expect=1), added)
    says(tidemark("key", "add", *password(scratch, "next"), expect=1), "--new-password-file")
    for words in (("key",), ("key", "melt"), ("key", "remove"), ("key", "list", "x"),
                  ("key", "add", "--role", "king"), ("list", "--role", "full")):
        tidemark(*words, *password(scratch, "next"), expect=2)


@case
def an_interrupted_change_is_run_again(scratch):
    """Killed between any two of its steps, with the key file made."""
    tidemark, secret, path, _ = setup(scratch)
    file, again = scratch / "next.key", ("--new-key-file", scratch / "next.key")
    (scratch / "empty").write_text("")
    says(tidemark("key", "passwd", "--new-key-file", scratch / "empty", *secret, expect=1),
         "is no key file", scratch / "empty")
    before = {slot: slot.read_bytes() for slot in slots(tidemark)}
    key = tidemark("key", "passwd", *again, *secret).json["key"]
    text = file.read_text()
    after = {slot: slot.read_bytes() for slot in slots(tidemark)}
    new, old = sorted(after), sorted(before)
    for there in ([], new[:1], new):  # the slot is not there, half, whole; the old one still is
        for slot in slots(tidemark):
            slot.unlink()
        for slot in [*old, *there]:
            slot.write_bytes((before | after)[slot])
        made = tidemark("key", "passwd", *again, *secret).json["key"]
        check((made == key) == bool(there), "another slot was made")
        check(file.read_text() == text, "the key file was replaced")
        same(scratch, tidemark, ("--key-file", file), path)
        says(tidemark("list", *secret, expect=1), "not a key file of the repository")
        left, = keys(tidemark, ("--key-file", file))
        check(left["copies"] == 2, f"{left}")
    other, label = ("--key-file", file), ("--label", "a", "--role", "backup")
    key = tidemark("key", "add", "--new-key-file", scratch / "b.key", *label, *other).json["key"]
    slot = tidemark.repo / "keys" / f"{key}b"
    slot.unlink()
    check(tidemark("key", "add", "--new-key-file", scratch / "b.key", *label,
                   *other).json["key"] == key and slot.exists(), "not finished")
    says(tidemark("key", "add", "--new-key-file", scratch / "b.key", *other, expect=1),
         key[:12], "b.key", "backup")
    check((scratch / "b.key").exists() and len(slots(tidemark)) == 4, "something changed")


@case
def init_makes_a_key_file(scratch):
    tidemark, file = Tidemark(scratch), scratch / "key"
    tidemark("init", "--encrypt", "--key-file", file)
    check(stat.S_IMODE(file.stat().st_mode) == 0o600, "mode")
    check(keys(tidemark, ("--key-file", file))[0]["kdf"] == "key-file", "kdf")
    tidemark("list", env={"TIDEMARK_KEY_FILE": str(file)})
    # a file that is there is used, not replaced
    text, second = file.read_text(), Tidemark(scratch, repo=scratch / "second")
    second("init", "--encrypt", "--key-file", file)
    check(file.read_text() == text, "the key file was replaced")
    # none is left when nothing was made
    says(second("init", "--encrypt", "--key-file", scratch / "more", expect=1), "second")
    check(not (scratch / "more").exists(), "a key file that opens nothing")


@case
def a_backup_key_backs_up_and_cannot_read(scratch):
    tidemark, secret, path, target = setup(scratch)
    for role in ("backup", "janitor"):
        tidemark("key", "add", "--role", role, "--new-key-file", scratch / role, *secret)
    agent, janitor = ("--key-file", scratch / "backup"), ("--key-file", scratch / "janitor")
    run(["qemu-io", "-c", "write -P 7 1M 64k", path])
    point = tidemark("backup", target, *agent).json
    check(point["disks"][0]["source"] == "bitmap", f"{point}")
    check(len(tidemark("list", *agent).json) == 2, "list")
    out = scratch / "out.raw"
    says(tidemark("restore", "latest", "--to", out, *agent, expect=1), "this key cannot read data", "backup")
    check(not out.exists(), "a target was made")
    says(tidemark("verify", "--read-data", *agent, expect=1), "cannot read data")
    says(tidemark("key", "add", "--new-key-file", scratch / "x", *agent, expect=1), "cannot change keys")
    check(not (scratch / "x").exists(), "a key file was left")
    says(tidemark("key", "export", *agent, expect=1), "cannot change keys")
    tidemark("verify", *agent)
    check(len(tidemark("list", *janitor).json) == 2, "list")
    tidemark("verify", *janitor)
    says(tidemark("backup", target, *janitor, expect=1), "cannot make backups", "janitor")
    says(tidemark("restore", "latest", "--to", out, *janitor, expect=1), "cannot read data")
    check([k["role"] for k in keys(tidemark, janitor)] == ["full", "backup", "janitor"], "roles")
    same(scratch, tidemark, secret, path)
    tidemark("verify", "--read-data", *secret)


@case
def a_janitor_key_deletes_and_a_backup_key_does_not(scratch):
    tidemark, secret, path, target = setup(scratch)
    for role in ("backup", "janitor"):
        tidemark("key", "add", "--role", role, "--new-key-file", scratch / role, *secret)
    agent, janitor = ("--key-file", scratch / "backup"), ("--key-file", scratch / "janitor")
    run(["qemu-io", "-c", "write -P 7 0 2M", path])
    point = tidemark("backup", target, "--full", *agent).json["point"]
    old = tidemark("list", *agent).json[0]["point"]
    for words in (("forget", old), ("prune",), ("protect", old)):
        says(tidemark(*words, *agent, expect=1), "cannot delete points", "backup")
    check(len(tidemark("list", *agent).json) == 2, "a point is gone")
    tidemark("protect", point, *janitor)
    tidemark("forget", old, *janitor)
    tidemark("prune", "--max-unused", "0", *janitor)
    check([p["point"] for p in tidemark("list", *janitor).json] == [point], "list")
    tidemark("verify", "--read-data", *secret)
    same(scratch, tidemark, secret, path)


@case
def paper_brings_it_back(scratch):
    tidemark, secret, path, _ = setup(scratch, password(scratch))
    text = tidemark("key", "export", *secret, json_output=False).out
    check(tidemark("key", "export", *secret).json["paper"] == text, "the same twice")
    paper = ("--key-file", write(scratch / "paper", text))
    for slot in slots(tidemark):
        slot.unlink()
    says(tidemark("list", *secret, expect=(1, 4)), "no keys")
    same(scratch, tidemark, paper, path)
    tidemark("key", "add", "--new-password-file", secret[1], *paper)
    same(scratch, tidemark, secret, path)
    line = next(i for i, l in enumerate(text.splitlines()) if l.startswith("003"))
    lines = text.splitlines()
    lines[line] = lines[line].translate(str.maketrans("0123456789abcdef", "123456789abcdef0"))
    says(tidemark("list", "--key-file", write(scratch / "bad", "\n".join(lines)), expect=1), "line 3")
    del lines[line]
    says(tidemark("list", "--key-file", write(scratch / "bad", "\n".join(lines)), expect=1), "line 3")


@case
def a_rotation_ends_what_an_old_key_reads(scratch):
    tidemark, secret, path, target = setup(scratch)
    first = tidemark("list", *secret).json[0]["point"]
    old = ("--key-file", write(scratch / "paper", tidemark("key", "export", *secret).json["paper"]))
    tidemark("key", "add", "--role", "backup", "--new-key-file", scratch / "agent", *secret)
    tidemark("key", "rotate", *secret)
    run(["qemu-io", "-c", "write -P 9 0 1M", path])
    tidemark("backup", target, "--key-file", scratch / "agent")
    same(scratch, tidemark, secret, path)
    tidemark("verify", "--read-data", *secret)
    tidemark("restore", first, "--to", scratch / "first.raw", *secret)
    result = tidemark("restore", "latest", "--to", scratch / "no.raw", *old, expect=(1, 4))
    says(result, "rotate")
    check(not (scratch / "no.raw").exists(), "a file was made")
    tidemark("restore", first, "--to", scratch / "old.raw", *old, expect=3)
    check((scratch / "old.raw").read_bytes() == (scratch / "first.raw").read_bytes(), "old point")


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)


@case
def damaged_slots(scratch):
    tidemark, secret, path, _ = setup(scratch)
    a, b = slots(tidemark)
    good = a.read_bytes()
    for damage in (lambda p: flip(p, 10), lambda p: flip(p, 100), lambda p: flip(p, 300),
                   lambda p: p.write_bytes(good[:200]), lambda p: p.write_bytes(b"")):
        damage(a)
        result = tidemark("list", *secret, expect=3)
        check("damaged" in result.err, result.err)
        check([k["copies"] for k in tidemark("key", "list", *secret, expect=3).json] == [1], "copies")
        check(tidemark("key", "repair", *secret).json["repaired"] == 1, "repair")
        check(a.read_bytes() == good, "not the same bytes")
        tidemark("list", *secret)
        damage(b)
        check([k["copies"] for k in tidemark("key", "list", *secret, expect=3).json] == [1], "copies")
        tidemark("list", *secret)  # which reads the first one
        named = {d["object"] for d in tidemark("verify", *secret, expect=4).json["damaged"]}
        check(named == {f"keys/{b.name}"}, f"{named}")
        damage(a)
        says(tidemark("list", *secret, expect=(1, 4)), "keys")
        a.write_bytes(good)
        tidemark("key", "repair", *secret)
        check(b.read_bytes() == good, "not the same bytes")
    b.unlink()
    check(b.name in tidemark("list", *secret, expect=3).err, "the copy is not named")
    check(tidemark("key", "repair", *secret).json["repaired"] == 1, "a missing copy")
    same(scratch, tidemark, secret, path)


def at_terminal(tidemark, *args, answers):
    """Runs with a terminal as stdin; returns exit status and all that the terminal showed."""
    master, slave = pty.openpty()
    argv = [str(x) for x in (tidemark.binary, "-r", tidemark.repo, *args)]
    with subprocess.Popen(argv, stdin=slave, stdout=slave, stderr=slave, env=tidemark.env,
                          start_new_session=True) as process:
        os.close(slave)
        shown, answers, deadline = b"", list(answers), time.monotonic() + 60
        prompts = 0
        while time.monotonic() < deadline:
            if not select.select([master], [], [], 1)[0]:
                if process.poll() is not None:
                    break
                continue
            try:
                got = os.read(master, 4096)
            except OSError:
                break
            if not got:
                break
            shown += got
            if answers and (shown.count(b": ") > prompts and shown.endswith(b": ")):
                prompts = shown.count(b": ")
                os.write(master, answers.pop(0).encode() + b"\n")
        status = process.wait(30)
    os.close(master)
    return status, shown.decode()


@case
def a_terminal_is_asked_without_echo(scratch):
    tidemark = Tidemark(scratch)
    status, shown = at_terminal(tidemark, "init", "--encrypt", answers=["typed", "typo"])
    check(status == 1 and "differ" in shown and not tidemark.repo.exists(), shown)
    status, shown = at_terminal(tidemark, "init", "--encrypt", answers=["typed", "typed"])
    check(status == 0 and "made encrypted" in shown, shown)
    check("typed" not in shown, f"the password was shown: {shown}")
    status, shown = at_terminal(tidemark, "list", answers=["typed"])
    check(status == 0 and "typed" not in shown, shown)
    status, shown = at_terminal(tidemark, "list", answers=["wrong"])
    check(status == 1 and "wrong password" in shown, shown)
    tidemark("list", env={"TIDEMARK_PASSWORD": "typed"})


def wiped(running, word):
    """It has taken the word out of its environment."""
    with open(f"/proc/{running.process.pid}/environ", "rb") as file:
        text = file.read()
    return b"TIDEMARK_STATE_DIR" in text and word not in text


@case
def secrets_stay_in_the_process(scratch):
    tidemark, secret, _, target = setup(scratch, password(scratch))
    fifo = scratch / "fifo"
    os.mkfifo(fifo)
    # While it waits for the password, nothing in its environment tells the other one.
    env = {"TIDEMARK_PASSWORD": "sesame"}
    running = tidemark.start("list", "--password-file", fifo, env=env)
    wait_for("the password to go", lambda: wiped(running, b"sesame"), 20)
    fifo.write_text("correct horse\n")
    check(len(running.finish().json) == 1, "list")
    # No core is dumped while there is a secret.
    running = tidemark.start("list", "--password-file", fifo, env=env)
    wait_for("the password to go", lambda: wiped(running, b"sesame"), 20)
    resource.prlimit(running.process.pid, resource.RLIMIT_CORE, (resource.RLIM_INFINITY,) * 2)
    running.signal(signal.SIGQUIT)
    ended = os.waitid(os.P_PID, running.process.pid, os.WEXITED | os.WNOWAIT)
    check(ended.si_code == os.CLD_KILLED, f"{ended}")
    running.finish(-signal.SIGQUIT)
    # children do not get it: a password command sees an environment without it
    spy = write(scratch / "spy", "#!/bin/sh\nenv >$0.env\necho correct horse\n")
    spy.chmod(0o700)
    result = tidemark("backup", target, "-v", "--full", *secret, env={"TIDEMARK_PASSWORD": "sesame"})
    check("correct horse" not in result.err + result.out, "the password is in the log")
    tidemark("list", env={"TIDEMARK_PASSWORD_COMMAND": str(spy)})
    check("horse" not in (scratch / "spy.env").read_text(), "environment")


if __name__ == "__main__":
    main()
