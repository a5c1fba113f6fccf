"""The words of the software address space: flags of areas and faults, and results of faults."""

# What an area allows, and how it will be read.
VM_READ = 0x1
VM_WRITE = 0x2
VM_EXEC = 0x4
VM_SHARED = 0x8
VM_LOCKED = 0x2000
VM_SEQ_READ = 0x8000
VM_RAND_READ = 0x10000
VM_DONTCOPY = 0x20000
VM_HUGEPAGE = 0x20000000
VM_NOHUGEPAGE = 0x40000000

# What came of a fault (a set of bits).
VM_FAULT_OOM = 0x1
VM_FAULT_SIGBUS = 0x2
VM_FAULT_MAJOR = 0x4
VM_FAULT_SIGSEGV = 0x40
VM_FAULT_NOPAGE = 0x100  # the page is mapped already
VM_FAULT_LOCKED = 0x200  # vmf.folio comes back locked and referenced
VM_FAULT_RETRY = 0x400  # the mmap lock was dropped: look the area up again
VM_FAULT_DONE_COW = 0x1000
VM_FAULT_COMPLETED = 0x4000  # the mmap lock was dropped, and all is done
VM_FAULT_ERROR = VM_FAULT_OOM | VM_FAULT_SIGBUS | VM_FAULT_SIGSEGV

# How a fault may be served.
FAULT_FLAG_WRITE = 0x1
FAULT_FLAG_MKWRITE = 0x2
FAULT_FLAG_ALLOW_RETRY = 0x4
FAULT_FLAG_RETRY_NOWAIT = 0x8  # give up with RETRY, lock kept, rather than wait for a folio lock
FAULT_FLAG_KILLABLE = 0x10
FAULT_FLAG_TRIED = 0x20  # the second attempt: the mmap lock is kept from now on
FAULT_FLAG_USER = 0x40
FAULT_FLAG_REMOTE = 0x80
FAULT_FLAG_INSTRUCTION = 0x100
FAULT_FLAG_INTERRUPTIBLE = 0x200
FAULT_FLAG_ORIG_PTE_VALID = 0x800  # vmf.orig_pte says what the page table held
FAULT_FLAG_MISSED = 0x10000  # an earlier attempt at this fault missed: it is counted, and readahead was done
FAULT_FLAG_DEFAULT = FAULT_FLAG_ALLOW_RETRY | FAULT_FLAG_KILLABLE | FAULT_FLAG_INTERRUPTIBLE


def fault_flag_allow_retry_first(flags: int) -> bool:
    """Return whether the mmap lock may be dropped: only on the first attempt."""
    return flags & (FAULT_FLAG_ALLOW_RETRY | FAULT_FLAG_TRIED) == FAULT_FLAG_ALLOW_RETRY
