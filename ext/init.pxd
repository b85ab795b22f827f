cdef extern from "init.h" nogil:
    void init_watch_over(int child)
