/* Makes a system look as if it had nothing but POSIX: no futex, io_uring, memory file, huge-page advice, holes in files,
 * AVX2. Included before all else (see the mode `portable` in setup.py), it leads the compiler through every fallback. The
 * system's own headers come first: they need to know the truth. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>
#undef __linux__
#undef __x86_64__
#undef __i386__
#undef __aarch64__
#undef MADV_HUGEPAGE
#undef MADV_COLLAPSE
#undef MADV_DONTDUMP
#undef FALLOC_FL_PUNCH_HOLE
