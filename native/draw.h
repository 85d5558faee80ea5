/* What the Python module offers for draws, of draw.c. */
#ifndef LATENTMILL_DRAW_H
#define LATENTMILL_DRAW_H

PyObject *normals(PyObject *self, PyObject *args);
PyObject *draw(PyObject *self, PyObject *args);
extern const char normals_doc[], draw_doc[];

#endif
