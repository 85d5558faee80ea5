/* What the Python module offers for reading, of reading.c. */
#ifndef LATENTMILL_READING_H
#define LATENTMILL_READING_H

#ifndef _WIN32
#define CAN_READ 1
PyObject *read_file(PyObject *self, PyObject *args);
PyObject *read_part(PyObject *self, PyObject *args);
extern const char read_file_doc[], read_part_doc[];
#endif

#endif
