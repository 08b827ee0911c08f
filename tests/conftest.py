"""The fixtures are in modules of their own."""

import signal

pytest_plugins = ["pgqrs_core.testing.postgres"]

# Whoever starts the tests in the background of a script lets them, and every program they start, ignore Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
