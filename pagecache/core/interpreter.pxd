"""Who sleeps for an engine lock does not hold the interpreter."""

cdef extern from "core/interpreter.h" nogil:
    ctypedef struct pc_interpreter_calls:
        pass
    pc_interpreter_calls pc_interpreter
    bint interpreter_is_held() noexcept
    void interpreter_leave() noexcept
    void lock_count_add() noexcept
    void lock_count_sub() noexcept
