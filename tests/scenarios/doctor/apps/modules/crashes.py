import ctypes


def read_nothing():
    ctypes.string_at(0)


read_nothing()
