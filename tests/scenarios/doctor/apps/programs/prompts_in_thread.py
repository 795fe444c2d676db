import sys
import threading
import time

reader = threading.Thread(target=sys.stdin.read)
reader.start()
while reader.is_alive():
    time.sleep(0.05)
