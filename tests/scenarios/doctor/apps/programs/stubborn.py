"""Will not end when asked, and leaves processes in sessions of their own behind; each notes its pid."""

import os
import signal
import time


def note():
    with open(os.environ["PIDS"], "a") as file:
        file.write("{}\n".format(os.getpid()))


signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
note()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        note()
        time.sleep(3600)
    os._exit(0)
for _ in range(3):
    if os.fork() == 0:
        note()
        time.sleep(3600)
os.close(2)
time.sleep(3600)
