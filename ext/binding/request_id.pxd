# Mirrors request_id.h; the documentation is there.

cdef extern from "front/request_id.h" nogil:
    enum:
        REQUEST_ID_SIZE

    void request_id_new(char *out)
