cimport cython
from cpython.buffer cimport (PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_FillInfo, PyBuffer_Release)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals, PyErr_Clear
from cpython.object cimport PyObject
from cpython.pythread cimport PyThread_get_thread_ident
from libc.errno cimport EBUSY, EEXIST, EINVAL, EIO, ENOMEM, ENOSPC, errno
from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from posix.unistd cimport close as posix_close, getpid

from pagecache.core.admit cimport policy_init
from pagecache.core.atomic cimport (add_acq_rel_u32, add_relaxed_u64, cas_acq_rel_u32, ctz64, exchange_acq_rel_u32,
                                    exchange_acq_rel_u64, fence_acquire, fence_seq_cst, hint_u32, hint_u64,
                                    load_acquire_u32, load_acquire_u64, load_relaxed_u32, load_relaxed_u64, pc_u32,
                                    pc_u64, store_relaxed_u32, store_relaxed_u64, store_release_u32, store_release_u64,
                                    sub_acq_rel_u32)
from pagecache.core.balloon cimport (balloon_give_excess, balloon_init, balloon_missing, balloon_present, balloon_wanted,
                                     descriptor_bytes, descriptor_pages, fixed_pages, metadata_allowance, node_pages,
                                     records_pages)
from pagecache.core.node_memory cimport nodes_trim
from pagecache.core.buddy cimport memory_event
from pagecache.core.charge cimport balloon_fill, mapping_add_ensured, nodes_ensure, records_ensure
from pagecache.core.copy cimport copy_page, copy_shared
from pagecache.core.dirty cimport dirty_charged, dirty_is_plenty, flusher_wake
from pagecache.core.directory cimport (HAS_VALIDATOR, HOLDING_IDLE, KEY_BYTES_MAX, KEY_IS_HASHED, NAME_IS_PART, TEXT_WORDS,
                                       VALIDATOR_BYTES_MAX, VALIDATOR_IS_HASHED, directory_claim, directory_find,
                                       directory_publish, directory_set_text, directory_unpublish, generation_is,
                                       mapping_claim, mapping_park, text_load, words_of, ObjectKey as CObjectKey,
                                       ObjectText as CObjectText)
from pagecache.core.errseq cimport errseq_check_and_advance, errseq_sample, errseq_set
from pagecache.core.fill cimport filemap_fill_page
from pagecache.core.check cimport PC_OPTIMISTIC
from pagecache.core.config cimport BATCH_PAGES, MAX_FRAMES, MAX_ORDER, NIL, PAGE_SHIFT, PAGE_SIZE, STAT_SHARDS
from pagecache.core.folio cimport (FOLIO_ACCESSED, FOLIO_ACTIVE, FOLIO_DIRTY, FOLIO_DROPBEHIND, FOLIO_HANDOFF,
                                   FOLIO_LOCKED, FOLIO_LRU, FOLIO_MAPPED, FOLIO_READAHEAD, FOLIO_REFERENCED,
                                   FOLIO_UNEVICTABLE, FOLIO_UNUSED, FOLIO_UPTODATE, FOLIO_WAITERS, FOLIO_WORKINGSET,
                                   FOLIO_WRITEBACK, FolioWaiter, folio_address, folio_alloc_nowait, folio_clear,
                                   folio_end_read, folio_index, folio_lock_cancel, folio_lock_slice,
                                   folio_lock_uninterruptible, folio_mapping, folio_mark_accessed, folio_nr_pages,
                                   folio_order, folio_ref_add, folio_seq_bump, folio_set, folio_state, folio_test,
                                   folio_test_clear, folio_try_get, folio_trylock, folio_unlock, folio_wait_slice,
                                   folio_write_begin, folio_write_end, state_order)
from pagecache.core.fork cimport (fork_before, fork_child, fork_parent, fork_register, fork_setup, fork_unregister,
                                  segment_keep_from_children)
from pagecache.core.futex cimport futex_setup, futex_wait, futex_wake
from pagecache.core.io cimport (bytes_on_disk, file_has_bytes, iovec, punch_hole_fd, run_read_fd, run_vector, run_write_fd,
                                run_zero_tail, sync_file_system_of)
from libc.stdlib cimport calloc, free
from pagecache.core.io_queue cimport (IO_RING, IoQueue, IoRequest, io_prepare, io_queue_end, io_queue_init,
                                      io_request_new, io_submit)
from pagecache.core.lock cimport (RwSem, FutexLock, WAIT_SLICE_NS, WAKE_ALL, rwsem_read_begin, rwsem_read_end,
                                  rwsem_read_slice, rwsem_try_read, rwsem_try_write, rwsem_unlock_read,
                                  rwsem_unlock_write, rwsem_write_begin, rwsem_write_end, rwsem_write_slice,
                                  futex_give, futex_is_locked, futex_lock, futex_lock_slice, futex_take,
                                  futex_unlock)
from pagecache.core.lock_watch cimport lock_watch_set
from pagecache.core.lookup cimport (COPY_PAGE_MAX, filemap_get_entry, folio_hint, folio_is, folio_readable, folio_used,
                                    hint_holds, hint_source, prefetch_cached, read_cached)
from pagecache.core.lru cimport (folio_free_last, folio_put, folio_put_many, lru_move)
from pagecache.core.mapping cimport (MARK_DIRTY, MARK_WRITEBACK, Mark, entry_frame, entry_order, filemap_remove_clean,
                                     filemap_remove_folio, filemap_replace_folio, filemap_zero_unshared,
                                     mapping_alloc, mapping_free, mapping_not_truncated_since,
                                     mapping_remove, mapping_set_size, mapping_set_tenant)
from pagecache.core.memory cimport memory_file, memory_unmap, memory_unpoison
from pagecache.core.reclaim cimport folio_alloc, kswapd_end, kswapd_main, reclaim_pages
from pagecache.core.residency cimport (Residency, mapping_list_folios, mapping_mincore, mapping_next_folio,
                                       mapping_next_present, mapping_nr_unused, mapping_residency)
from pagecache.core.segment cimport (BYTES_ASKED, Counter, DROP_PAGECACHE, HITS, LRU_ACTIVE, LRU_AHEAD, LRU_FIRST,
                                     LRU_INACTIVE, LRU_LAST, LRU_UNEVICTABLE, MAPPING_STABLE_WRITES, MISSES,
                                     NR_COUNTERS, NR_DIRTY, NR_FILE_PAGES, NR_PINNED, NR_PROBES, NR_TENANTS,
                                     NR_WRITEBACK, POLICY_ADAPTIVE, READAHEAD_PAGES, STORE_READ_BYTES, STORE_READS,
                                     STORE_WRITE_BYTES, STORE_WRITES, header_set_budget, header_set_dirty_limits,
                                     Adaptive as CAdaptive, Folio as CFolio, Mapping as CMapping, Segment as CSegment,
                                     Header, count, count_store_read, counted, folio_number, segment_attach,
                                     segment_budget, segment_create, segment_layout, segment_nr_nodes)
from pagecache.core.split cimport folio_split
from pagecache.core.stamp cimport (STAMP_DOUBTFUL as C_STAMP_DOUBTFUL, STAMP_OTHER as C_STAMP_OTHER,
                                   STAMP_SAME as C_STAMP_SAME, own_write_begin, own_write_end, stamp_is_current,
                                   stamp_look, stamp_set, stamp_take)
from pagecache.core.thread cimport (COARSE_TICK_NS, PC_THREAD_SLOTS, THREAD_KIND_NATIVE, THREAD_KIND_PYTHON,
                                    THREAD_KIND_UNKNOWN, monotonic_coarse_ns, monotonic_ns, pc_thread, thread_events,
                                    thread_join, thread_kind, thread_kind_set, thread_start)
from pagecache.core.verify cimport Finding, segment_verify
from pagecache.core.write cimport folio_writable_now, folio_write, size_extend, write_cached
from pagecache.core.writeback cimport (disk_size_reached, folio_drop_behind, folio_end_writeback, folio_mark_dirty,
                                       folio_redirty, folio_wants_writeback, next_marked, tag_for_writeback,
                                       writeback_collect)
from pagecache.core.workingset cimport shadow_is_recent, shadow_nodes_trim, workingset_update_node
from pagecache.core.xa_entry cimport xa_entry, xa_is_pointer, xa_is_value, xa_to_value
from pagecache.core.xa_find cimport xas_find, xas_find_marked
from pagecache.core.xa_multi cimport xas_get_order
from pagecache.core.xa_state cimport (XaState as CXaState, xas_clear_mark, xas_get_mark, xas_init, xas_load, xas_set_mark,
                                      xas_store)
from pagecache.core.xa_walk cimport xa_load
from pagecache.core.xarray cimport xa_empty, xa_marked
