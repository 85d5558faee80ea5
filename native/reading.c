/* A file, or a part of one, read straight to where its bytes are wanted, without the interpreter's lock. POSIX. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "reading.h"

#ifdef CAN_READ

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#define MOST_HEAD 4096 /* bytes that are compared and not kept */

enum { FAILED = -1, OTHER, AS_EXPECTED };

/* Bytes of a file from `at` on to the parts, one after another; as many as there are, or -1. */
static ssize_t scatter(int file, off_t at, const struct iovec *parts, int count) {
#ifdef __linux__
    ssize_t got;
    do got = preadv(file, parts, count, at);
    while (got < 0 && errno == EINTR);
    return got;
#else
    ssize_t all = 0;
    for (int p = 0; p < count; p++) {
        ssize_t got;
        do got = pread(file, parts[p].iov_base, parts[p].iov_len, at + all);
        while (got < 0 && errno == EINTR);
        if (got < 0) return got;
        all += got;
        if ((size_t)got < parts[p].iov_len) break;
    }
    return all;
#endif
}

/* Whether `head` lies at `at`, and behind it as many bytes as `out` takes, which they are written to; `last`: and no
 * more. A read of one byte too many tells that, for less than asking for the file's size. */
static int read_parts(int file, off_t at, const Py_buffer *head, const Py_buffer *out, int last) {
    uint8_t found[MOST_HEAD], beyond;
    struct iovec parts[] = {{found, (size_t)head->len}, {out->buf, (size_t)out->len}, {&beyond, 1}};
    ssize_t got = scatter(file, at, parts, last ? 3 : 2);
    if (got < 0) return FAILED;
    return got == head->len + out->len && memcmp(found, head->buf, (size_t)head->len) == 0 ? AS_EXPECTED : OTHER;
}

static int read_whole(const char *path, const Py_buffer *head, const Py_buffer *out) {
    int file;
    do file = open(path, O_RDONLY | O_CLOEXEC);
    while (file < 0 && errno == EINTR);
    if (file < 0) return FAILED;
    int found = read_parts(file, 0, head, out, 1), why = errno;
    close(file);
    errno = why;
    return found;
}

/* Buffers that were taken, released; what was found, as Python has it. path: that an error tells, or NULL. */
static PyObject *told(int found, int why, PyObject *path, Py_buffer *head, Py_buffer *out) {
    PyBuffer_Release(head);
    PyBuffer_Release(out);
    errno = why;
    if (found != FAILED) return PyBool_FromLong(found);
    return path ? PyErr_SetFromErrnoWithFilenameObject(PyExc_OSError, path) : PyErr_SetFromErrno(PyExc_OSError);
}

static int fits(const Py_buffer *head) {
    if (head->len <= MOST_HEAD) return 1;
    PyErr_Format(PyExc_ValueError, "the head must be at most %d bytes. Found: %zd", MOST_HEAD, head->len);
    return 0;
}

const char read_file_doc[] = "read_file(path, head, out) -> bool: fill `out` with what stands behind `head` in a file; "
                             "whether the file is just these two.";

PyObject *read_file(PyObject *self, PyObject *args) {
    PyObject *path, *encoded;
    Py_buffer head, out;
    int found = FAILED, why = 0;
    (void)self;
    if (!PyArg_ParseTuple(args, "Uy*w*", &path, &head, &out)) return NULL;
    if (!fits(&head) || !PyUnicode_FSConverter(path, &encoded)) {
        PyBuffer_Release(&head);
        PyBuffer_Release(&out);
        return NULL;
    }
    const char *name = PyBytes_AsString(encoded);
    Py_BEGIN_ALLOW_THREADS
    found = read_whole(name, &head, &out);
    why = errno;
    Py_END_ALLOW_THREADS
    Py_DECREF(encoded);
    return told(found, why, path, &head, &out);
}

const char read_part_doc[] = "read_part(file, at, head, out) -> bool: fill `out` with what stands behind `head` at a "
                             "place of an open file; whether they do stand there. Moves no position.";

PyObject *read_part(PyObject *self, PyObject *args) {
    Py_buffer head, out;
    int file, found = FAILED, why = 0;
    long long at;
    (void)self;
    if (!PyArg_ParseTuple(args, "iLy*w*", &file, &at, &head, &out)) return NULL;
    if (!fits(&head)) {
        PyBuffer_Release(&head);
        PyBuffer_Release(&out);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    found = read_parts(file, (off_t)at, &head, &out, 0);
    why = errno;
    Py_END_ALLOW_THREADS
    return told(found, why, NULL, &head, &out);
}

#endif
