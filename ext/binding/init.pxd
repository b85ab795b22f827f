cdef extern from "front/init.h" nogil:
    void init_watch_over(int child)
