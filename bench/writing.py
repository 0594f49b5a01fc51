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
        for offset, what in writes:
            while handle.aio_in_flight() >= 32:
                handle.poll(-1)
            if isinstance(what, int):
                handle.aio_zero(what, offset, lambda error: 1)
            else:
                handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(what)), offset, lambda error: 1)
        while handle.aio_in_flight():
            handle.poll(-1)
        handle.flush()
    finally:
        handle.shutdown()
        execute("nbd-server-stop", {})
        socket.unlink(missing_ok=True)
