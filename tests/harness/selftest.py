#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The harness itself: that it sees what it has to see. Needs no Tidemark.

  tests/harness/selftest.py [-v] [NAME...]      about 20 seconds"""

import os
import signal
import subprocess
import sys
import time
import unittest
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness import (Disk, GuestLog, HarnessError, QmpError, Scratch, Tidemark, Vm,  # noqa: E402
                     assert_clean, image, judge_tree, make_rng, note_baseline, wait_for)
from harness.checks import leftovers  # noqa: E402

MIB = image.MIB


class WithScratch(unittest.TestCase):
    def setUp(self):
        self.scratch = Scratch("selftest")
        self.addCleanup(self.scratch.close)

    def vm(self, **kwargs):
        path = image.create(self.scratch.dir("disks") / "vda.qcow2", 64 * MIB)
        return Vm(self.scratch, [Disk(path, "vda", **kwargs)], guest=False).start()

    def overlay(self, vm):
        """Puts an overlay of ours on top, as Tidemark would."""
        path = self.scratch / "disks/overlay.qcow2"
        image.create(path, 64 * MIB)
        vm.qmp.execute("blockdev-add", {
            "driver": "qcow2", "node-name": "ov", "backing": None,
            "file": {"driver": "file", "filename": str(path)}})
        vm.qmp.execute("blockdev-snapshot", node="vda-node", overlay="ov")
        return path


class NoGuest(WithScratch):
    def same_as_shadow(self, vm, shadow, disk="vda"):
        shadow.assert_equals(vm.dump(disk, self.scratch / "dump.raw"))

    def every_kind_of_write(self, vm, disk="vda"):
        rng = make_rng("writes")
        shadow = image.Shadow(self.scratch / f"{disk}.shadow", 64 * MIB)
        for _ in range(30):
            offset, length = rng.randrange(20) * MIB // 2, rng.randrange(1, 2048) * 512
            rng.choice((
                lambda: vm.write(disk, offset, length, rng.randrange(1, 256), shadow),
                lambda: vm.write_zeroes(disk, offset, length, shadow=shadow),
                lambda: vm.write_zeroes(disk, offset, length, unmap=True, shadow=shadow),
                lambda: vm.discard(disk, offset, 65536 * 4, shadow)))()
        self.same_as_shadow(vm, shadow, disk)
        return shadow

    def test_writes_reach_every_kind_of_disk(self):
        for number, kwargs in enumerate(({}, {"style": "drive"}, {"bus": "virtio-scsi"},
                                         {"throttle": True},
                                         {"options": {"detect-zeroes": "unmap"}})):
            with self.subTest(**kwargs):
                path = image.create(self.scratch.dir("disks") / f"{number}.qcow2", 64 * MIB)
                vm = Vm(self.scratch, [Disk(path, "vda", **kwargs)], guest=False,
                        name=f"vm{number}").start()
                shadow = self.every_kind_of_write(vm)
                vm.quit()
                shadow.assert_equals(path, "qcow2")
                image.check(path)

    def test_writes_follow_the_overlay(self):
        vm = self.vm()
        vm.write("vda", 0, MIB, 1)
        path = self.overlay(vm)
        self.assertEqual(vm.active_file("vda"), path)
        vm.write("vda", 0, 65536, 2)
        vm.terminate()
        self.assertEqual(image.read(vm.disks[0].path, 0, 4, self.scratch / "s"), b"\1" * 4)
        self.assertEqual(image.read(path, 0, 4, self.scratch / "s"), b"\2" * 4)

    def test_a_write_that_fails_is_an_error(self):
        vm = self.vm()
        with self.assertRaises(HarnessError):
            vm.io("vda", "aio_write -P 1 64M 64k", timeout=3)
        with self.assertRaises(HarnessError):
            vm.io("vda", "no-such-command", timeout=3)
        with self.assertRaises(HarnessError):
            vm.write("vdz", 0, 512, 1)

    def test_a_write_outlives_kill_9(self):
        vm = self.vm()
        shadow = image.Shadow(self.scratch / "shadow", 64 * MIB)
        vm.write("vda", 5 * MIB, 3 * MIB + 512, 7, shadow)
        vm.kill()
        self.assertFalse(vm.running)
        image.check(vm.disks[0].path, leaks_ok=True)
        vm.start()
        self.same_as_shadow(vm, shadow)

    def test_quit_and_sigterm_keep_bitmaps_and_kill_9_does_not(self):
        vm = self.vm()
        vm.qmp.execute("block-dirty-bitmap-add", node="vda-node", name="tidemark-x",
                       persistent=True)
        for end, flags in ((vm.quit, {"auto"}), (vm.terminate, {"auto"}),
                           (vm.kill, {"auto", "in-use"})):
            end()
            self.assertEqual(image.bitmaps(vm.disks[0].path), {"tidemark-x": flags})
            vm.start()
        self.assertTrue(vm.bitmaps("vda")["tidemark-x"]["inconsistent"])

    def test_errors_of_qemu_are_exceptions(self):
        vm = self.vm()
        with self.assertRaises(QmpError) as caught:
            vm.qmp.execute("block-dirty-bitmap-remove", node="vda-node", name="none")
        self.assertIn("not found", caught.exception.desc)

    def test_a_disk_that_is_missing_says_so(self):
        vm = Vm(self.scratch, [Disk(self.scratch / "none.qcow2", "vda")], guest=False)
        with self.assertRaisesRegex(HarnessError, "No such file"):
            vm.start()


class Leftovers(WithScratch):
    def setUp(self):
        super().setUp()
        self.guest = self.vm()
        note_baseline(self.guest)
        assert_clean(self.guest)

    def found(self, pattern, **kwargs):
        with self.assertRaisesRegex(HarnessError, pattern):
            assert_clean(self.guest, **kwargs)

    def add_bitmap(self, name):
        self.guest.qmp.execute("block-dirty-bitmap-add", node="vda-node", name=name,
                               persistent=True)

    def test_an_overlay_is_found(self):
        self.overlay(self.guest)
        self.found("instead of .*node of qcow2.*file .*overlay.qcow2")

    def test_one_bitmap_an_epoch_is_right(self):
        self.add_bitmap("somebody-elses")
        self.add_bitmap("tidemark-1")
        assert_clean(self.guest)
        self.add_bitmap("tidemark-2")
        self.found("2 bitmaps")
        assert_clean(self.guest, epochs=2)
        self.guest.qmp.execute("block-dirty-bitmap-disable", node="vda-node", name="tidemark-1")
        self.found("tidemark-1 is not of use", epochs=2)

    def test_a_server_and_an_export_are_found(self):
        self.guest.qmp.execute("nbd-server-start", {
            "addr": {"type": "unix", "data": {"path": str(self.scratch / "nbd")}}})
        self.found("listens on .*/nbd")
        self.guest.qmp.execute("block-export-add", {
            "type": "nbd", "id": "e", "node-name": "vda-node"})
        self.found("export e")
        self.guest.qmp.execute("nbd-server-stop")
        assert_clean(self.guest, timeout=2)

    def test_a_tcp_server_is_found(self):
        self.guest.qmp.execute("nbd-server-start", {
            "addr": {"type": "inet", "data": {"host": "127.0.0.1", "port": "0"}}})
        self.found("listens on tcp")

    def test_a_file_and_a_missing_file_are_found(self):
        stray = self.scratch / "disks/stray"
        stray.touch()
        self.found("file .*stray")

    def test_a_job_is_found(self):
        target = image.create(self.scratch / "target.qcow2", 64 * MIB)
        self.guest.write("vda", 0, 16 * MIB, 3)
        self.guest.qmp.execute("blockdev-add", {
            "driver": "qcow2", "node-name": "t",
            "file": {"driver": "file", "filename": str(target)}})
        self.guest.qmp.execute("blockdev-backup", {
            "job-id": "j", "device": "vda-node", "target": "t", "sync": "full", "speed": 1})
        self.found("job j")

    def test_a_paused_guest_is_found(self):
        self.guest.qmp.execute("stop")
        self.assertEqual(leftovers(self.guest), ["the guest is paused"])


class Children(WithScratch):
    def stub(self, text):
        path = self.scratch / "stub"
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o700)
        return Tidemark(self.scratch, binary=path)

    def test_output_status_and_events_are_taken_apart(self):
        tidemark = self.stub('echo \'{"a":1}\'; echo \'{"b":2}\'; '
                             'echo \'{"event":"progress"}\' >&2; echo text >&2; exit 3')
        result = tidemark("list", expect=(0, 3))
        self.assertEqual(result.docs, [{"a": 1}, {"b": 2}])
        self.assertEqual(result.events, [{"event": "progress"}])
        with self.assertRaisesRegex(HarnessError, "2 JSON documents"):
            _ = result.json
        with self.assertRaisesRegex(HarnessError, "expected exit 0"):
            tidemark("list")

    def test_a_sanitizer_report_is_a_failure_whatever_the_status(self):
        tidemark = self.stub("echo 'x.c:1: runtime error: shift' >&2")
        with self.assertRaisesRegex(HarnessError, "runtime error"):
            tidemark("list")

    def test_the_callers_settings_are_not_seen(self):
        os.environ["TIDEMARK_REPO"] = "/nowhere"
        self.addCleanup(os.environ.pop, "TIDEMARK_REPO")
        tidemark = self.stub('echo "{\\"repo\\":\\"$TIDEMARK_REPO\\",'
                             '\\"state\\":\\"$TIDEMARK_STATE_DIR\\"}"')
        self.assertEqual(tidemark("list").json, {"repo": "", "state": str(self.scratch / "state")})

    def test_a_run_that_hangs_is_ended(self):
        tidemark = self.stub("exec sleep 60")
        with self.assertRaisesRegex(HarnessError, "longer than"):
            tidemark("list", timeout=0.3)

    def test_a_run_can_be_killed(self):
        run = self.stub("exec sleep 60").start("backup")
        self.assertTrue(run.running)
        run.kill()
        self.assertEqual(run.finish(expect=-signal.SIGKILL).status, -9)

    def test_nothing_outlives_a_test_that_is_ended(self):
        program = (
            "import sys; sys.dont_write_bytecode = True; sys.path.insert(0, sys.argv[1])\n"
            "from harness import *\n"
            "scratch = Scratch('victim'); vm = Vm(scratch, [], guest=False).start()\n"
            "print(vm.pid, scratch.path, flush=True)\n"
            "import time; time.sleep(60)\n")
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL):
            with self.subTest(number=number):
                victim = subprocess.Popen(
                    [sys.executable, "-c", program, str(Path(__file__).resolve().parents[1])],
                    stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
                with victim:
                    pid, path = victim.stdout.readline().split()
                    victim.send_signal(number)
                    victim.wait(10)
                wait_for("QEMU to end", lambda: not Path(f"/proc/{pid}").exists(), 10)
                if number == signal.SIGKILL:  # then nobody can remove files
                    subprocess.run(["rm", "-rf", path], check=True)
                self.assertFalse(Path(path).exists())


class Journals(WithScratch):
    LOG = ("1 begin a\n1 put a {a}\n2 begin b\n2 put b {b}\n3 begin b\n3 del b\n4 begin c\n")

    def setUp(self):
        super().setUp()
        import hashlib
        self.log = self.LOG.format(a=hashlib.sha256(b"A").hexdigest(), b="0" * 64)
        self.tree = self.scratch.dir("tree")
        (self.tree / "log").write_text(self.log)
        self.files = self.scratch.dir("tree/files")
        (self.files / "a").write_text("A")
        (self.files / ".new").write_text("half")

    def bad(self, pattern, **kwargs):
        with self.assertRaisesRegex(HarnessError, pattern):
            judge_tree(self.tree, **kwargs)

    def test_a_tree_of_the_right_time_is_right(self):
        self.assertEqual(judge_tree(self.tree, self.log + "4 put c 0\n", 3, 3), 1)
        (self.files / "c").write_text("anything")
        self.assertEqual(judge_tree(self.tree, self.log), 1)

    def test_a_wrong_tree_is_found(self):
        (self.files / "b").touch()
        self.bad("should not be there, e.g. b")
        (self.files / "b").unlink()
        self.bad("another time", at_least=4)
        self.bad("another time", at_most=2)
        self.bad("not what the guest wrote", reference="1 begin x\n")
        (self.files / "a").write_text("B")
        self.bad("files/a has not the content")
        (self.files / "a").unlink()
        self.bad("missing, e.g. a")

    def test_a_log_out_of_order_is_found(self):
        for text in ("1 put a 0\n", "1 begin a\n2 put a 0\n", "1 begin a\n2 begin b\n"):
            with self.assertRaises(HarnessError):
                GuestLog(text)
        self.assertEqual(GuestLog("1 begin a\n1 put a 0").done, 0)  # cut off


class Guest(WithScratch):
    def test_the_guest_boots_writes_freezes_and_survives_kill_9(self):
        path = image.create(self.scratch.dir("disks") / "vda.qcow2", 256 * MIB)
        vm = Vm(self.scratch, [Disk(path, "vda")]).start()
        print(f"the guest booted in {vm.started_in:.1f} s", file=sys.stderr)
        self.assertEqual(vm.console.run("echo \"it's\"; exit 7"), (7, "it's\n"))
        self.assertEqual(vm.console.run("if")[0], 2)     # a syntax error ends nothing
        data = os.urandom(20000)
        vm.console.put("/put", data)
        vm.console.sh("mkfs.ext4 -q -E nodiscard /dev/vda && mount /dev/vda /mnt && cp /put /mnt")
        with vm.agent() as agent:
            self.assertEqual(agent.read_file("/mnt/put"), data)
            self.assertEqual(agent.execute("guest-fsfreeze-freeze"), 1)
            vm.console.background("echo blocked >/mnt/new")
            time.sleep(0.3)
            vm.dump("vda", self.scratch / "frozen.raw")
            self.assertEqual(agent.execute("guest-fsfreeze-thaw"), 1)
        self.assertIn("blocked", vm.console.sh("sleep 0.5; cat /mnt/new"))
        from harness import journal
        journal.fsck(self.scratch / "frozen.raw")
        tree = journal.extract(self.scratch / "frozen.raw", self.scratch / "tree")
        self.assertEqual((tree / "put").read_bytes(), data)
        self.assertFalse((tree / "new").exists())
        vm.console.sh("sync")
        vm.kill()
        vm.start()
        vm.console.sh("mount /dev/vda /mnt && cmp /mnt/new - <<'END'\nblocked\nEND")
        vm.poweroff()
        image.check(path, leaks_ok=True)


if __name__ == "__main__":
    unittest.main()
