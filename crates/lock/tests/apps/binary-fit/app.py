"""A compiled package was made for NumPy 1, and its metadata allow any."""

import pywt

print(pywt.wavelist()[:3])
