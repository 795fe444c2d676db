import time

print("waiting for work", flush=True)
time.sleep(3600)
