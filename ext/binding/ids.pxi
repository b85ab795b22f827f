# The ids of a request, which its response and every log record of its thread carry.

def new_request_id():
    cdef char[ids.REQUEST_ID_SIZE] text
    ids.request_id_new(text)
    return PyUnicode_DecodeLatin1(text, ids.REQUEST_ID_SIZE, NULL)


@cython.final
cdef class NewIds:
    """Called with a request: gives it a new id, in `context`, a ContextVar, as well.  A request that has one of the fields
    `names` is left to `read(request)`."""

    cdef object context, read
    cdef tuple names

    def __init__(self, context, tuple names not None, read):
        self.context = context
        self.names = names
        self.read = read

    def __call__(self, Request request not None):
        self.give(request)

    cdef int give(self, Request request) except -1:
        cdef char[ids.REQUEST_ID_SIZE] text
        cdef bytes name
        for name in self.names:
            if find_header(request, name, len(name)) is not NULL:
                self.read(request)
                return 0
        ids.request_id_new(text)
        request.request_id = PyBytes_FromStringAndSize(text, ids.REQUEST_ID_SIZE)
        request.context = ("", "", PyUnicode_DecodeLatin1(text, ids.REQUEST_ID_SIZE, NULL))
        PyContextVar_Set(self.context, request.context)
        return 0
