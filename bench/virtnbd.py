# SPDX-License-Identifier: Apache-2.0
"""virtnbdbackup with a libvirt domain, as a peer."""

import json
import os
import shutil
from pathlib import Path

from harness import HarnessError, image as images, run

from measure import measure, tree_bytes
from writing import write_through

NAME = f"tidemark-bench-{os.getpid()}"
NEEDS = ("virtnbdbackup", "virsh")
# The device lets the bench's NBD server write as well.
DOMAIN = """<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
 <name>{name}</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>
 <os><type arch='x86_64' machine='q35'>hvm</type></os>
 <devices><disk type='file' device='disk'><driver name='qemu' type='qcow2'/>
  <source file='{disk}'/><target dev='vda' bus='virtio'/></disk></devices>
 <qemu:override><qemu:device alias='virtio-disk0'><qemu:frontend>
  <qemu:property name='share-rw' type='bool' value='true'/></qemu:frontend></qemu:device></qemu:override>
</domain>
"""


class Domain:
    """A domain that stands still, with one disk of `size` and what virtnbdbackup made of it."""

    def __init__(self, bench, size):
        self.where = bench.dir("virtnbd")
        self.to, self.disk = self.where / "to", images.create(self.where / "disk.qcow2", size)
        xml = self.where / "domain.xml"
        xml.write_text(DOMAIN.format(name=NAME, disk=self.disk))
        run(["virsh", "-q", "define", xml])
        bench.scratch.defer(self._end)
        run(["virsh", "-q", "start", "--paused", NAME])
        self.pid = int(Path(f"/run/libvirt/qemu/{NAME}.pid").read_text())
        self.node = next(node["node-name"] for node in self._qmp("query-named-block-nodes", {"flat": True})
                         if node["drv"] == "qcow2")

    def _qmp(self, command, arguments=None):
        request = json.dumps({"execute": command, "arguments": arguments or {}})
        answer = json.loads(run(["virsh", "qemu-monitor-command", NAME, request]).stdout)
        if "return" not in answer:
            raise HarnessError(f"{command}: {answer}")
        return answer["return"]

    def write(self, writes):
        write_through(self._qmp, self.node, self.where / "write.sock", writes)

    def backup(self, level):
        before = tree_bytes(self.to) if self.to.exists() else 0
        taken = measure(["virtnbdbackup", "-d", NAME, "-l", level, "-o", self.to], servers=[self.pid])
        return {**taken, "grown_bytes": tree_bytes(self.to) - before}

    @staticmethod
    def _end():
        run(["virsh", "-q", "destroy", NAME], check=False)
        run(["virsh", "-q", "undefine", NAME, "--checkpoints-metadata"], check=False)

    def close(self):
        self._end()
        shutil.rmtree(self.where)
