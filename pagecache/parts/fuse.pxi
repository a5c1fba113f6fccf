from pagecache.core.fuse cimport (FUSE_CHUNK_SHIFT, FUSE_NR_CHUNKS, FUSE_NR_NODES, FUSE_PLACE_BITS, FUSE_GETATTRS,
                                  FUSE_PASSED_ON, FUSE_READS, FUSE_WRITES, FuseSlot, FuseStatus as CFuseStatus, FuseTable,
                                  PC_HAS_FUSE, fuse_clone, fuse_next_request, fuse_slot_at, fuse_slot_stop, fuse_touch)

cdef enum:
    FUSE_NO_PLACE = (1 << 16) - 1   # of numbers that have no slot


@cython.final
cdef class FuseStatus:
    """What a mount knows of one open file that its source does not, as long as that is not written back.

    fd: of the source; it stays open as long as this object lives. Numbers of writes: of the last
    (`written`), of the last that is in the source (`settled`), and of the one whose time was shown last (`shown`).
    """
    cdef CFuseStatus status
    cdef readonly Mutex lock            # held while they are compared, and times given to the source
    cdef AddressSpace mapping

    def __cinit__(self, int fd):
        self.lock = Mutex()
        self.status.lock = &self.lock.lock
        self.status.fd = fd

    def follow(self, AddressSpace mapping):
        """Take the size of these cached pages for the file's; None: it is not known without Python."""
        with self.lock.held():
            self.status.mapping = NULL if mapping is None else mapping.m
            self.status.seg = NULL if mapping is None else mapping.seg
            self.mapping = mapping

    def note_node(self, uint64_t node, uint64_t shown_ino):
        """Note the number by which the kernel knows the file, and the inode number that is shown of it."""
        store_release_u64(&self.status.shown_ino, shown_ino)
        store_release_u64(&self.status.node, node)

    def touch(self):
        """Note that the file has just been changed through the cache."""
        fuse_touch(&self.status)

    @property
    def mtime_ns(self):
        """Time of the last write (ns)."""
        return load_acquire_u64(&self.status.mtime_ns)

    @property
    def written(self):
        """Number of the last write."""
        return load_acquire_u64(&self.status.written)

    @property
    def settled(self):
        """Number of the last write that is in the source."""
        return load_acquire_u64(&self.status.settled)

    @settled.setter
    def settled(self, uint64_t number):
        store_release_u64(&self.status.settled, number)

    @property
    def shown(self):
        """Number of the write whose time was shown last."""
        return load_acquire_u64(&self.status.shown)

    @shown.setter
    def shown(self, uint64_t number):
        store_release_u64(&self.status.shown, number)

    @property
    def has_privileges(self):
        """Whether the mode has bits that a write takes away."""
        return load_acquire_u32(&self.status.has_privileges) != 0

    @has_privileges.setter
    def has_privileges(self, bint value):
        store_release_u32(&self.status.has_privileges, value)


@cython.final
cdef class FuseHandles:
    """The numbers of a mount's open files, and what of them is served without Python (core/fuse.pxd).

    Raises OSError (ENOSYS) where there is no /dev/fuse.
    Context: numbers are made and given up by any thread, `next_request` runs in many.
    """
    cdef FuseTable table
    cdef Mutex lock
    cdef list free_places
    cdef uint32_t nr_places             # ever used
    cdef uint64_t nr_numbers            # ever made
    cdef dict kept                      # what slots name, by number

    def __cinit__(self):
        if not PC_HAS_FUSE:
            raise OSError(_errno.ENOSYS, "this system has no /dev/fuse")
        self.lock = Mutex()
        self.free_places = []
        self.kept = {}

    def __dealloc__(self):
        cdef int i
        for i in range(FUSE_NR_CHUNKS):
            free(self.table.chunks[i])

    def new(self):
        """Returns a number that was never used, and that nothing is served of yet."""
        cdef uint32_t place, chunk
        with self.lock.held():
            self.nr_numbers += 1
            if self.free_places:
                place = self.free_places.pop()
            elif self.nr_places < FUSE_NO_PLACE:
                place = self.nr_places
                chunk = place >> FUSE_CHUNK_SHIFT
                if self.table.chunks[chunk] == NULL:
                    self.table.chunks[chunk] = <FuseSlot*>calloc(1 << FUSE_CHUNK_SHIFT, sizeof(FuseSlot))
                    if self.table.chunks[chunk] == NULL:
                        raise MemoryError("no memory for the number of an open file")
                self.nr_places += 1
            else:
                place = FUSE_NO_PLACE
            return self.nr_numbers << FUSE_PLACE_BITS | place

    def serve(self, uint64_t number, FileLines file, FuseStatus status=None):
        """Serves an open file by a number: reads, and with its status attributes and writes. file: None for attributes
        alone. A number without a slot is served by Python as before."""
        cdef FuseSlot* slot
        with self.lock.held():
            slot = fuse_slot_at(&self.table, number)
            if slot == NULL or number & FUSE_NO_PLACE == FUSE_NO_PLACE or load_acquire_u32(&self.table.has_ended):
                return
            slot.seg = NULL
            if file is not None:
                slot.seg = file.seg
                slot.mapping = file.m
                slot.mapping_number = file.number
                slot.prev_pos = &file.ra.prev_pos
                slot.is_open = &file.is_open
                slot.is_noting = &file.is_noting
                slot.store_fd = &file.mapping.fd
                slot.may_write = file.may_write and not file.is_through
            slot.status = NULL if status is None else &status.status
            self.kept[number] = (file, status)
            store_release_u64(&slot.number, number)

    def serve_node(self, uint64_t node, uint64_t number):
        """Serves attributes of the kernel's node by the number of its open file."""
        store_release_u64(&self.table.nodes[node % FUSE_NR_NODES], number)

    def stop(self, uint64_t number):
        """Serves a number no more; what is asked for by it goes to Python. Context: waits for requests under way."""
        with nogil:
            fuse_slot_stop(&self.table, number)
        self.kept.pop(number, None)

    def give_up(self, uint64_t number):
        """As `stop`, and the number is not used any more."""
        self.stop(number)
        with self.lock.held():
            if number & FUSE_NO_PLACE != FUSE_NO_PLACE:
                self.free_places.append(number & FUSE_NO_PLACE)

    def end(self):
        """Serves nothing any more. Context: as `stop`."""
        with self.lock.held():
            store_release_u32(&self.table.has_ended, 1)
            numbers = list(self.kept)
        for number in numbers:
            self.stop(number)

    def next_request(self, int fd, buffer):
        """Waits for requests of a descriptor of /dev/fuse, and answers them as long as it can.

        buffer: writable; bytes of the largest request, more than a page. Returns the bytes of the first that it cannot
        answer, which the buffer then begins with; 0 after `end`. Raises OSError: ENODEV when the mount is gone.
        Context: without the GIL.
        """
        cdef Py_buffer view
        cdef int64_t got
        if PyObject_GetBuffer_raw(buffer, &view, PyBUF_WRITABLE) != 0:
            PyErr_Clear()
            raise TypeError(f"a contiguous, writable buffer is needed, not {type(buffer).__name__}")
        try:
            with nogil:
                got = fuse_next_request(&self.table, fd, <char*>view.buf, <uint64_t>view.len)
        finally:
            PyBuffer_Release(&view)
        if got < 0:
            raise_errno(got, "requests of the kernel cannot be read")
        return got

    @staticmethod
    def clone(int fd):
        """Returns another descriptor of the mount of one, which the caller closes. Raises OSError."""
        cdef int r = fuse_clone(fd)
        if r < 0:
            raise_errno(r, "no other descriptor of the mount can be had")
        return r

    def counts(self):
        """Requests by how they were served: "read", "write" and "getattr" here, "python" those that were passed on."""
        return {
            "read": load_acquire_u64(&self.table.counts[<int>FUSE_READS]),
            "write": load_acquire_u64(&self.table.counts[<int>FUSE_WRITES]),
            "getattr": load_acquire_u64(&self.table.counts[<int>FUSE_GETATTRS]),
            "python": load_acquire_u64(&self.table.counts[<int>FUSE_PASSED_ON]),
        }
