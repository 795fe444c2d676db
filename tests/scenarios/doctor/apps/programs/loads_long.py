import time

until = time.monotonic() + 2.5
while time.monotonic() < until:
    pass
raise SystemExit("loaded, then failed")
