raise SystemExit("usage: no")
