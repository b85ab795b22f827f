# Mirrors pages.h, in its order; the documentation is there.

cdef extern from "http/pages.h" nogil:
    enum:
        PAGES_SLOTS
        PAGES_MAX
        PAGES_MAX_SIZE

    enum pages_set:
        PAGES_FRESH
        PAGES_EXPIRED
        PAGES_DRAINING
        PAGES_SETS

    enum pages_format:
        PAGES_TEXT
        PAGES_VERBOSE
        PAGES_JSON
        PAGES_FORMATS

    ctypedef struct pages:
        pass

    pages *pages_new(size_t max)
    void pages_free(pages *t)
    int pages_add(pages *t, const char *path, size_t path_len, unsigned slot)
    int pages_set_answer(pages *t, int number, pages_set set, pages_format format, unsigned status,
                         const char *headers, size_t headers_len, const char *body, size_t body_len)
