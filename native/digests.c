/* Digests of what lies in memory, without the interpreter's lock. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "digests.h"

#ifdef HAS_SHA256

const char digests_doc[] = "sha256(buffers) -> tuple: the SHA-256 of each of a tuple of contiguous buffers, 32 bytes. Only "
                           "where HASHES.";

static PyObject *told(const Message *messages, Py_ssize_t count) {
    PyObject *found = PyTuple_New(count);
    for (Py_ssize_t m = 0; found && m < count; m++) {
        PyObject *each = PyBytes_FromStringAndSize((const char *)messages[m].digest, SHA256_BYTES);
        if (each == NULL || PyTuple_SetItem(found, m, each) < 0) Py_CLEAR(found);
    }
    return found;
}

PyObject *digests(PyObject *self, PyObject *args) {
    PyObject *buffers, *found = NULL;
    Py_ssize_t held = 0, count;
    (void)self;
    if (!PyArg_ParseTuple(args, "O!", &PyTuple_Type, &buffers)) return NULL;
    count = PyTuple_Size(buffers);
    Py_buffer *views = PyMem_Calloc((size_t)count + 1, sizeof *views);
    Message *messages = PyMem_Calloc((size_t)count + 1, sizeof *messages);
    if (views == NULL || messages == NULL) PyErr_NoMemory();
    else
        while (held < count && PyObject_GetBuffer(PyTuple_GetItem(buffers, held), &views[held], PyBUF_SIMPLE) == 0) held++;
    for (Py_ssize_t m = 0; m < held; m++) {
        messages[m].bytes = views[m].buf;
        messages[m].length = (size_t)views[m].len;
    }
    if (!PyErr_Occurred()) {
        Py_BEGIN_ALLOW_THREADS
        sha256(messages, (size_t)count);
        Py_END_ALLOW_THREADS
        found = told(messages, count);
    }
    while (held) PyBuffer_Release(&views[--held]);
    PyMem_Free(views);
    PyMem_Free(messages);
    return found;
}

#endif
