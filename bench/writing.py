# SPDX-License-Identifier: Apache-2.0
"""Writing to a disk of a QEMU without a guest."""


def write_through(execute, node, socket, writes):
    """Through an NBD server of its own: dirty bitmaps record that as they do what a guest writes.
    execute(command, arguments) is QMP's; writes are (offset, bytes) each, or a number for bytes: so many
    zeroes."""
    import nbd  # python3-libnbd
    execute("nbd-server-start", {"addr": {"type": "unix", "data": {"path": str(socket)}}, "max-connections": 4})
    execute("block-export-add", {"type": "nbd", "id": "w", "node-name": node, "name": "w", "writable": True})
    handle = nbd.NBD()
    try:
        handle.set_export_name("w")
        handle.connect_unix(str(socket))
        for offset, what in writes:  # one by one: aio_pwrite of libnbd 1.14 keeps each buffer for ever
            if isinstance(what, int):
                handle.zero(what, offset)
            else:
                handle.pwrite(what, offset)
        handle.flush()
    finally:
        handle.shutdown()
        execute("nbd-server-stop", {})
        socket.unlink(missing_ok=True)
