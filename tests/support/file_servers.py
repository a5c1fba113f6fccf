"""Servers of the protocols that fsspec speaks synchronously, over a directory: FTP and SFTP, in this process.

While one runs, only what calls gc.collect() collects: fsspec's archives close their remote file when they are collected,
and wait for the server's answer, which never comes if the collector has run in the server's own thread.
"""

import asyncio
import gc
import logging
import threading

USER, PASSWORD = "user", "pass"


class Serving:
    """A server that runs: the collector stays out of its thread. Counts how many there are."""

    _nr = 0

    @classmethod
    def begin(cls):
        gc.disable()
        cls._nr += 1

    @classmethod
    def end(cls):
        """Collect in this thread, while the server still answers."""
        gc.collect()
        cls._nr -= 1
        if not cls._nr:
            gc.enable()


class FtpServer:
    """An FTP server on 127.0.0.1. directory: what it serves. Context manager; needs pyftpdlib."""

    def __init__(self, directory, max_connections=64):
        from pyftpdlib.authorizers import DummyAuthorizer
        from pyftpdlib.handlers import FTPHandler
        from pyftpdlib.ioloop import Poll  # unlike epoll, it is not confused by a fork()
        from pyftpdlib.servers import FTPServer

        logging.getLogger("pyftpdlib").setLevel(logging.CRITICAL)
        authorizer = DummyAuthorizer()
        authorizer.add_user(USER, PASSWORD, str(directory), perm="elradfmwMT")
        handler = type("Handler", (FTPHandler,), {"authorizer": authorizer, "use_sendfile": False})
        handler.on_connect = self._count
        self.nr_connections = 0
        self._server = FTPServer(("127.0.0.1", 0), handler, ioloop=Poll())
        self._server.max_cons = max_connections
        self.port = self._server.address[1]
        self.options = {"host": "127.0.0.1", "port": self.port, "username": USER, "password": PASSWORD}
        self._is_over = False
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def _count(self):
        self.nr_connections += 1

    def _serve(self):
        while not self._is_over:
            self._server.ioloop.loop(0.02, blocking=False)
        self._server.close_all()

    def url(self, name):
        """Return the URL of a file."""
        return f"ftp://{USER}:{PASSWORD}@127.0.0.1:{self.port}/{name}"

    def __enter__(self):
        Serving.begin()
        self._thread.start()
        return self

    def __exit__(self, *exc):
        Serving.end()
        self._is_over = True
        self._thread.join()


class SftpServer:
    """An SSH server with SFTP on 127.0.0.1. directory: what it serves. Context manager; needs asyncssh."""

    def __init__(self, directory):
        self._directory = str(directory)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.nr_connections = 0

    async def _listen(self):
        import asyncssh

        logging.getLogger("asyncssh").setLevel(logging.CRITICAL)
        logging.getLogger("paramiko").setLevel(logging.CRITICAL)
        outer = self

        class Access(asyncssh.SSHServer):
            def connection_made(self, connection):
                outer.nr_connections += 1

            def begin_auth(self, username):
                return True

            def password_auth_supported(self):
                return True

            def validate_password(self, username, password):
                return (username, password) == (USER, PASSWORD)

        return await asyncssh.listen(
            "127.0.0.1",
            0,
            server_factory=Access,
            server_host_keys=[asyncssh.generate_private_key("ssh-ed25519")],
            sftp_factory=lambda channel: asyncssh.SFTPServer(channel, chroot=self._directory.encode()),
        )

    def _run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    def url(self, name):
        """Return the URL of a file."""
        return f"sftp://{USER}:{PASSWORD}@127.0.0.1:{self.port}/{name}"

    def __enter__(self):
        Serving.begin()
        self._thread.start()
        self._listener = self._run(self._listen())
        self.port = self._listener.get_port()
        self.options = {
            "host": "127.0.0.1", "port": self.port, "username": USER, "password": PASSWORD,
            "look_for_keys": False, "allow_agent": False,
        }  # fmt: skip
        return self

    async def _close(self):
        self._listener.close()  # waiting for that waits for clients to go, since Python 3.12
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def __exit__(self, *exc):
        Serving.end()
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
