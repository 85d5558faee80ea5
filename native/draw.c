/* Normal numbers of a key, and draws from a posterior made of them: what the Python module offers of that. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "draw.h"
#include "resample.h"

#include <string.h>

typedef struct {
    const float *mean, *deviation;
    float shift, scale;
} Posterior;

/* `count` numbers, a block at a time; of the last one as many as are wanted. */
static void fill_normals(uint64_t key, float *out, size_t count) {
    float last[NORMALS];
    uint32_t block = 0;
    for (; count >= NORMALS; count -= NORMALS, out += NORMALS) kernels->normals(key, block++, out);
    if (count == 0) return;
    kernels->normals(key, block, last);
    memcpy(out, last, count * sizeof *out);
}

static void fill_draw(uint64_t key, const Posterior *from, float *out, size_t count) {
    float z[NORMALS];
    uint32_t block = 0;
    for (size_t at = 0; at < count; at += NORMALS) {
        size_t width = count - at < NORMALS ? count - at : NORMALS;
        kernels->normals(key, block++, z);
        kernels->place(from->mean + at, from->deviation + at, z, from->shift, from->scale, out + at, width);
    }
}

static int take(PyObject *object, Py_buffer *view, int flags) {
    if (PyObject_GetBuffer(object, view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | flags) < 0) return 0;
    if (view->format && strcmp(view->format, "f") == 0) return 1;
    PyErr_SetString(PyExc_ValueError, "moments and draws must be float32 and contiguous");
    PyBuffer_Release(view);
    return 0;
}

const char normals_doc[] = "normals(key, out): fill float32 `out` with the normal numbers of a 64-bit key.";

PyObject *normals(PyObject *self, PyObject *args) {
    unsigned long long key;
    PyObject *out;
    Py_buffer to;
    (void)self;
    if (!PyArg_ParseTuple(args, "KO", &key, &out) || !take(out, &to, PyBUF_WRITABLE)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    fill_normals(key, to.buf, (size_t)to.len / sizeof(float));
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&to);
    Py_RETURN_NONE;
}

const char draw_doc[] = "draw(moments, key, out, shift, scale): of float32 means, then as many deviations, `out` becomes "
                        "(mean + deviation * z - shift) * scale, z being the key's normal numbers.";

PyObject *draw(PyObject *self, PyObject *args) {
    unsigned long long key;
    PyObject *moments, *out;
    Py_buffer from, to;
    double shift, scale;
    (void)self;
    if (!PyArg_ParseTuple(args, "OKOdd", &moments, &key, &out, &shift, &scale) || !take(moments, &from, 0)) return NULL;
    if (!take(out, &to, PyBUF_WRITABLE)) {
        PyBuffer_Release(&from);
        return NULL;
    }
    int fits = from.len == 2 * to.len;
    if (fits) {
        size_t count = (size_t)to.len / sizeof(float);
        Posterior posterior = {from.buf, (const float *)from.buf + count, (float)shift, (float)scale};
        Py_BEGIN_ALLOW_THREADS
        fill_draw(key, &posterior, to.buf, count);
        Py_END_ALLOW_THREADS
    } else {
        PyErr_SetString(PyExc_ValueError, "moments must be twice as many as what is drawn");
    }
    PyBuffer_Release(&from);
    PyBuffer_Release(&to);
    if (!fits) return NULL;
    Py_RETURN_NONE;
}
