"""Systems that have less than Linux on x86: the engine's headers compile and work without futex, io_uring, memory files,
huge pages, holes and AVX2, and the cache without O_DIRECT. (`PAGECACHE_MODE=portable` builds all of it that way.)"""

import os
import shutil
import subprocess
import sysconfig

import pytest
from support import PAGE, ROOT

HEADERS = sorted((ROOT / "pagecache" / "core").glob("*.h"))

COPIES = """
#include <assert.h>
static void check_copies(void) {
    static char source[8192 + 64], target[8192 + 128], many[COPY_STREAMS * COPY_PAGE_BYTES + 8];
    for (size_t i = 0; i < sizeof source; i++) source[i] = (char)(i * 31 >> 3);
    for (size_t nbytes = 1; nbytes <= 8192; nbytes += nbytes < 300 ? 1 : 397) {
        memset(target, 0x55, sizeof target);
        copy_page(target + 3, source + 1, nbytes);
        assert(memcmp(target + 3, source + 1, nbytes) == 0);
        assert(target[2] == 0x55 && target[3 + nbytes] == 0x55);
    }
    for (unsigned nr = 1; nr <= COPY_STREAMS; nr++) {
        const char *pages[COPY_STREAMS];
        for (unsigned k = 0; k < nr; k++) pages[k] = source + (nr * 7 + k * 13) % 60;
        memset(many, 0x55, sizeof many);
        copy_pages(many + 3, pages, nr);
        for (unsigned k = 0; k < nr; k++) assert(memcmp(many + 3 + k * COPY_PAGE_BYTES, pages[k], COPY_PAGE_BYTES) == 0);
        assert(many[2] == 0x55 && many[3 + nr * COPY_PAGE_BYTES] == 0x55);
    }
    for (size_t nbytes = 4000; nbytes <= 8192; nbytes += 61) {
        memset(target, 0x55, sizeof target);
        copy_long(target + nbytes % 64 + 1, source + 1, nbytes);
        assert(memcmp(target + nbytes % 64 + 1, source + 1, nbytes) == 0);
        assert(target[nbytes % 64] == 0x55 && target[nbytes % 64 + 1 + nbytes] == 0x55);
    }
}
"""

PROGRAM = """
static uint32_t word;
static int woken;

static void *sleeper(void *unused) {
    (void)unused;
    while (__atomic_load_n(&word, __ATOMIC_ACQUIRE) == 7) assert(futex_wait(&word, 7, -1) == 0);
    woken = 1;
    return NULL;
}

int main(void) {
    pc_ring ring;
    futex_setup();
    assert(!futex_is_native());
    assert(futex_wait(&word, 1, -1) == 0);                  /* differs: does not sleep */
    assert(futex_wait(&word, 0, 1000) == -ETIMEDOUT);
    word = 7;
    pthread_t id;
    pthread_create(&id, NULL, sleeper, NULL);
    __atomic_store_n(&word, 8, __ATOMIC_RELEASE);
    futex_wake(&word, 1);
    pthread_join(id, NULL);
    assert(woken);
    assert(ring_setup(&ring, 8) == -ENOSYS);
    assert(memory_file(4096) == -ENOSYS);
    assert(punch_hole_fd(0, 0, 4096) == -EOPNOTSUPP);
    char *region = memory_map(3 << 21, 1 << 21, -1);
    assert(region && ((uintptr_t)region & ((1 << 21) - 1)) == 0);
    memory_advise_huge(region, 3 << 21);
    memory_advise_nodump(region, 3 << 21);
    region[(3 << 21) - 1] = 1;
    assert(memory_unmap(region, 3 << 21) == 0);
    check_copies();
    return 0;
}
"""
GONE = "#if defined(__linux__) || PC_HAVE_FUTEX || PC_HAVE_RING || defined(MADV_HUGEPAGE)\n#error not portable\n#endif\n"
THERE = "#if defined(__linux__) && !PC_HAVE_FUTEX\n#error the futex is missing\n#endif\n"


MUSL_LOADS = """
#include <dlfcn.h>
#include <stdio.h>
int main(int argc, char **argv) {
    void *library = dlopen(argv[1], RTLD_NOW);
    if (!library) { fprintf(stderr, "%s\\n", dlerror()); return argc; }
    uint32_t (*slot)(void) = (uint32_t (*)(void))dlsym(library, "slot_of_this_thread");
    return slot && slot() == 1 && slot() == 1 ? 0 : 2;
}
"""
AWAKE = """
static uint32_t word;
static void *waker(void *unused) {
    (void)unused;
    __atomic_store_n(&word, 1, __ATOMIC_RELEASE);
    futex_wake(&word, 1);
    return NULL;
}
int main(void) {
    futex_setup();
    assert(futex_is_native());
    pthread_t id;
    pthread_create(&id, NULL, waker, NULL);
    while (__atomic_load_n(&word, __ATOMIC_ACQUIRE) == 0) futex_wait(&word, 0, -1);
    pthread_join(id, NULL);
    check_copies();
    return 0;
}
"""


def build(tmp_path, source, *flags, compiler=None, name="program"):
    """Compile a program over all headers of the engine; returns its path."""
    if compiler is None:
        named = (sysconfig.get_config_var("CC") or "cc").split()[0]
        compiler = shutil.which(named) or shutil.which("cc")
    if compiler is None or not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")):
        pytest.skip("needs a C compiler and Python.h")
    program = tmp_path / name
    includes = "".join(f'#include "{header}"\n' for header in HEADERS)
    program.with_suffix(".c").write_text(includes + source)
    ran = subprocess.run(
        [compiler, "-std=gnu11", "-D_GNU_SOURCE", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unused-function",
         "-Wno-unused-parameter", "-Wno-sign-compare", f"-I{sysconfig.get_path('include')}", f"-I{ROOT / 'pagecache'}",
         *flags, program.with_suffix(".c"), "-o", program, "-pthread"],
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return program


def needed(*programs):
    """Return the paths of programs; skips where one is missing."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    return [shutil.which(program) for program in programs]


def test_headers_work_with_posix_alone(tmp_path):
    program = build(tmp_path, GONE + COPIES + PROGRAM, "-include", ROOT / "tests" / "support" / "portable.h")
    ran = subprocess.run([program], capture_output=True, text=True, timeout=100)
    assert ran.returncode == 0, ran.stderr


def test_headers_compile_with_what_there_is(tmp_path):
    build(tmp_path, f"{THERE}int main(void) {{ return 0; }}\n")


def test_copies_with_what_there_is_bring_every_byte_and_no_other(tmp_path):
    program = build(tmp_path, COPIES + "int main(void) { check_copies(); return 0; }\n", "-O3")
    ran = subprocess.run([program], capture_output=True, text=True, timeout=100)
    assert ran.returncode == 0, ran.stderr


SHARDS = """
static pthread_barrier_t all_have_one;
static uint32_t seen[40];
static void *take(void *number) {
    seen[(uintptr_t)number] = thread_slot();
    return thread_slot() == seen[(uintptr_t)number] ? NULL : number;
}
static void *take_together(void *number) {
    void *wrong = take(number);
    pthread_barrier_wait(&all_have_one);
    return wrong;
}
static int run(int nr, void *(*main)(void *), int at_once) {
    pthread_t threads[40];
    void *wrong = NULL;
    for (int i = 0; i < nr; i++) {
        if (pthread_create(&threads[i], NULL, main, (void *)(uintptr_t)i)) return 1;
        if (!at_once) pthread_join(threads[i], &wrong);
        if (wrong) return 2;
    }
    for (int i = 0; at_once && i < nr; i++) {
        pthread_join(threads[i], &wrong);
        if (wrong) return 3;
    }
    return 0;
}
static int check_shards(void) {
    int nr_own = 0, own[PC_THREAD_SLOTS + 1] = {0};
    pthread_barrier_init(&all_have_one, NULL, 40);
    for (int round = 0; round < 3; round++) {                           /* threads that come and go find one each time */
        if (run(40, take, 0)) return 1;
        for (int i = 0; i < 40; i++) if (seen[i] < 1 || seen[i] >= PC_THREAD_SLOTS) return 2;
    }
    if (run(40, take_together, 1)) return 3;                            /* no two have the same at once */
    for (int i = 0; i < 40; i++) nr_own += own[seen[i]]++ == 0 && seen[i] < PC_THREAD_SLOTS;
    if (nr_own != PC_THREAD_SLOTS - 1 || own[PC_THREAD_SLOTS] != 40 - nr_own) return 4;
    if (run(1, take, 0) || seen[0] >= PC_THREAD_SLOTS) return 5;        /* and all were given back */
    return 0;
}
"""


def test_counter_shards_go_to_threads_that_are_alive(tmp_path):
    program = build(tmp_path, SHARDS + "int main(void) { return check_shards(); }\n")
    assert subprocess.run([program], timeout=100).returncode == 0


def test_musl_loads_a_library_made_of_the_headers(tmp_path):
    """As Python does an extension: thread-local variables of the initial-exec model could not be loaded there."""
    [compiler] = needed("musl-gcc")
    kernel = ["-idirafter", "/usr/include", "-idirafter", f"/usr/include/{os.uname().machine}-linux-gnu"]
    source = "uint32_t slot_of_this_thread(void) { return thread_slot(); }\n"
    library = build(tmp_path, source, "-shared", "-fPIC", *kernel, compiler=compiler, name="library")
    program = build(tmp_path, MUSL_LOADS, *kernel, compiler=compiler)
    ran = subprocess.run([program, library], capture_output=True, text=True, timeout=100)
    assert ran.returncode == 0, ran.stderr


def test_headers_work_on_aarch64(tmp_path):
    compiler, emulator = needed("aarch64-linux-gnu-gcc", "qemu-aarch64")
    program = build(tmp_path, COPIES + AWAKE, "-static", "-O2", compiler=compiler)
    ran = subprocess.run([emulator, program], capture_output=True, text=True, timeout=100)
    assert ran.returncode == 0, ran.stderr


def test_direct_files_are_buffered_where_there_is_no_o_direct(monkeypatch, make_cache, data_file):
    monkeypatch.delattr(os, "O_DIRECT", raising=False)
    path, data = data_file(20 * PAGE + 5)
    with make_cache(64 * PAGE).open(path, "r+b", direct=True) as file:
        assert not file.mapping.direct
        assert file.pread(len(data), 0) == data
        file.pwrite(b"new", 20 * PAGE + 1)
        file.fsync()
    assert path.read_bytes() == data[: 20 * PAGE + 1] + b"new" + data[20 * PAGE + 4 :]
