"""Script entry: serve a trained network over HTTP.

One process and one network. There is no login and no TLS, so that it binds to 127.0.0.1 unless told otherwise.
"""

import argparse
import ipaddress
import logging
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:  # started as a script: the project's root comes first, in place of this folder
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from nn_train.ending import DONE, FAILED, leave, option_parser, read_options, run_command
from nn_train.errors import ConfigError, short

if TYPE_CHECKING:
    import uvicorn

EXAMPLES = """examples:
  python -m nn_train.serve --run runs/telco
  python -m nn_train.serve --run bundle.zip --host 0.0.0.0 --port 80

It answers POST /predict with {"rows": [{column: value, ...}, ...]}, GET /health, and GET /openapi.json, which shows the
columns with their types. Ctrl-C or SIGTERM: what was taken is answered, and it ends with 0."""
END_S = 20  # in which a server that is stopped answers what it has taken; longer than a body may take to arrive
KEEP_ALIVE_S = 75  # of a connection without a request: longer than proxies keep theirs, which are then who closes them
MOST_CONNECTIONS = 1000
WAITING_CONNECTIONS = 2048  # that the system takes while the server is not up yet, or busy
MOST_PORT = 65535
MOST_WAIT_MS = 1000


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until Ctrl-C or SIGTERM; the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    return run_command(lambda: _serve(parse_arguments(words)))


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    """Read the command line. Raises ConfigError for an option that does not exist, is missing or out of range."""
    parser = option_parser("python -m nn_train.serve", "Serve a trained network over HTTP.", EXAMPLES, formatter=_Help)
    add = parser.add_argument
    add("--run", metavar="RUN", help="run folder, or a bundle.zip")
    add("--allow-custom", action="store_true", help="import the code of a custom network")
    add("--host", default="127.0.0.1", metavar="HOST", help="address to bind to; 0.0.0.0 is open to the network")
    add("--port", type=_whole(0, MOST_PORT), default=8000, metavar="N", help="0 takes a free one")
    add("--max-batch-rows", type=_whole(1), default=1024, metavar="N", help="rows computed together")
    add("--max-wait-ms", type=_milliseconds, default=0.0, metavar="MS", help="how long a request waits for others")
    add("--max-request-rows", type=_whole(1), default=1000, metavar="N", help="rows of one request")
    add("--max-request-bytes", type=_whole(1), default=2**20, metavar="N", help="bytes of one request's body")
    add("--threads", type=_whole(1), default=1, metavar="N", help="threads of one computation")
    return read_options(parser, words, required=("run",))


class _Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Examples as they are written, and defaults."""


def _serve(options: argparse.Namespace) -> int:
    """Load the bundle, bind, serve, and end once what was taken is answered.

    Raises:
        BundleError: there is no whole bundle.
        ConfigError: the address cannot be had, or the packages of the extra are not there.
    """
    try:  # torch: not for --help and mistakes
        import torch
        import uvicorn

        from nn_train.bundle import load_bundle
        from nn_train.serve_app import make_app
    except ModuleNotFoundError as error:
        raise ConfigError(f"the package {error.name} is not there", fix="pip install 'nn-train[serve]'") from None
    bundle = load_bundle(options.run, allow_custom=options.allow_custom)
    app = make_app(
        bundle,
        max_batch_rows=options.max_batch_rows,
        max_wait_ms=options.max_wait_ms,
        max_request_rows=options.max_request_rows,
        max_request_bytes=options.max_request_bytes,
    )
    config = uvicorn.Config(
        app,
        log_level="error",  # a line for each request that is no HTTP would let anybody fill the log
        access_log=False,
        lifespan="on",
        server_header=False,
        headers=[("X-Content-Type-Options", "nosniff")],
        timeout_keep_alive=KEEP_ALIVE_S,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_graceful_shutdown=END_S,
    )
    server = uvicorn.Server(config)
    with _bind(options.host, options.port) as listener:
        _end_by_signals(server)
        logging.basicConfig(format="%(levelname)s: %(message)s")
        torch.set_num_threads(options.threads)
        host, port = listener.getsockname()[:2]
        _tell(f"serving {options.run} ({bundle.task}) on http://{f'[{host}]' if ':' in host else host}:{port}")
        if not ipaddress.ip_address(host.partition("%")[0]).is_loopback:
            _tell("warning: whoever reaches this address can use it: there is no login and no TLS")
        server.run(sockets=[listener])
    counts = app.state.counts
    _tell(f"stopped; {counts['answered']} of {counts['requests']} requests answered, {counts['refused']} refused")
    return DONE if server.started else FAILED


def _end_by_signals(server: "uvicorn.Server") -> None:
    """End well: before uvicorn has handlers of its own, and after, when it raises once more what they have caught."""

    def end(*_: object) -> None:
        server.should_exit = True

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)


def _bind(host: str, port: int) -> socket.socket:
    """A socket that listens; what connects to it waits until the server is up."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=WAITING_CONNECTIONS)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        what = f"cannot listen on port {port} of {short(host)}: {reason}"
        raise ConfigError(what, fix="another --host or --port; --port=0 takes a free one") from None


def _tell(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - this is the command line, and a log may be read while it serves


def _whole(low: int, high: int | None = None) -> Callable[[str], int]:
    """Reads a whole number from `low` up to `high`."""

    def read(text: str) -> int:
        number = int(text)
        if number < low or (high is not None and number > high):
            raise argparse.ArgumentTypeError(f"{number} is not {f'{low} to {high}' if high else f'{low} or more'}")
        return number

    read.__name__ = "whole number"  # what argparse calls it where `int` fails
    return read


def _milliseconds(text: str) -> float:
    number = float(text)
    if not 0 <= number <= MOST_WAIT_MS:
        raise argparse.ArgumentTypeError(f"{text} is not 0 to {MOST_WAIT_MS}")
    return number


_milliseconds.__name__ = "number of milliseconds"

if __name__ == "__main__":
    leave(main())
