# A walk over the frames of a thread: an ORM's call has thirty, and each would cost Python as much as a short function.

cdef extern from *:
    ctypedef struct PyCodeObject:
        PyObject *co_filename
    PyObject *frame_back "(PyObject *)PyFrame_GetBack"(PyFrameObject *)
    PyCodeObject *PyFrame_GetCode(PyFrameObject *)
    ctypedef struct PyFrameObject
    bint PyFrame_Check(object)


def first_outside(frame, set files not None):
    cdef PyCodeObject *code
    cdef PyObject *back
    if not PyFrame_Check(frame):
        raise TypeError("not a frame")
    while True:
        code = PyFrame_GetCode(<PyFrameObject *>frame)
        found = <object>code.co_filename not in files
        Py_DECREF(<object><PyObject *>code)
        if found:
            return frame
        back = frame_back(<PyFrameObject *>frame)
        if back is NULL:
            return None
        frame = <object>back
        Py_DECREF(frame)
