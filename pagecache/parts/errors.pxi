import errno as _errno
import os as _os


class CacheFullError(OSError):
    """No page frame could be freed: all are pinned, dirty, under write-back or in use (errno ENOMEM).

    Attributes say how many pages: `nr_pinned` (held by views and maps), `nr_dirty`, `nr_writeback`, `nr_frames`.
    """

    def __init__(self, message="no page frame can be freed", *, nr_pinned=0, nr_dirty=0, nr_writeback=0, nr_frames=0):
        super().__init__(_errno.ENOMEM, message)
        self.nr_pinned = nr_pinned
        self.nr_dirty = nr_dirty
        self.nr_writeback = nr_writeback
        self.nr_frames = nr_frames


cdef object raise_errno(int64_t negative, str what):
    """Raises the OSError of a negative errno."""
    raise OSError(<int>-negative, f"{what}: {_os.strerror(<int>-negative)}")


cdef int wait_interrupted(int r) except -1:
    """After a wait slice: lets Python handle a pending signal, which may raise. Returns whether to go on waiting."""
    if r == 0:
        return 0
    PyErr_CheckSignals()
    return 1


cdef extern from *:
    """
    #include "core/interpreter.h"

    /* Not PyGILState_Check, which says yes in every thread once there has been a second interpreter. */
    static int pc_python_is_held(void) {
        PyThreadState *mine = PyGILState_GetThisThreadState();
    #if PY_VERSION_HEX >= 0x030D0000
        return mine != NULL && mine == PyThreadState_GetUnchecked();
    #else
        return mine != NULL && mine == _PyThreadState_UncheckedGet();
    #endif
    }
    static void *pc_python_leave(void) { return PyEval_SaveThread(); }
    static void pc_python_enter(void *thread) { PyEval_RestoreThread((PyThreadState *)thread); }
    static void pc_python_setup(void) {
        pc_interpreter.is_held = pc_python_is_held;
        pc_interpreter.leave = pc_python_leave;
        pc_interpreter.enter = pc_python_enter;
    }
    """
    void pc_python_setup() noexcept
