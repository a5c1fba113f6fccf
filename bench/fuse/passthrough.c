/* A plain pass-through file system in C, over libfuse's low-level interface, as its own example `passthrough_ll` is: what a
 * mount of pagecache is measured beside.  Only what the benchmark does is there.
 *
 *     cc -O2 passthrough.c $(pkg-config --cflags --libs fuse3) -o passthrough
 *     passthrough SOURCE MOUNTPOINT
 */
#define _GNU_SOURCE
#define FUSE_USE_VERSION 312
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct node {           /* an inode of the source that the kernel knows; its address is the kernel's number */
    struct node *next, *previous;
    int fd;                     /* O_PATH */
    ino_t ino;
    dev_t device;
    uint64_t nr_lookups;
} node;

static node root = {.next = &root, .previous = &root, .nr_lookups = 2};
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static node *node_of(fuse_ino_t ino) { return ino == FUSE_ROOT_ID ? &root : (node *)(uintptr_t)ino; }
static int fd_of(fuse_ino_t ino) { return node_of(ino)->fd; }

static int look_up(fuse_ino_t parent, const char *name, struct fuse_entry_param *entry) {
    memset(entry, 0, sizeof *entry);
    entry->attr_timeout = entry->entry_timeout = 1;
    int fd = openat(fd_of(parent), name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &entry->attr) < 0) { int number = errno; if (fd >= 0) close(fd); return number; }
    pthread_mutex_lock(&lock);
    node *found = root.next;
    while (found != &root && (found->ino != entry->attr.st_ino || found->device != entry->attr.st_dev)) found = found->next;
    if (found != &root) {
        close(fd);
    } else {
        found = calloc(1, sizeof *found);
        if (found == NULL) { pthread_mutex_unlock(&lock); close(fd); return ENOMEM; }
        found->fd = fd;
        found->ino = entry->attr.st_ino;
        found->device = entry->attr.st_dev;
        found->next = root.next;
        found->previous = &root;
        root.next->previous = found;
        root.next = found;
    }
    found->nr_lookups++;
    pthread_mutex_unlock(&lock);
    entry->ino = (uintptr_t)found;
    return 0;
}

static void on_lookup(fuse_req_t request, fuse_ino_t parent, const char *name) {
    struct fuse_entry_param entry;
    int number = look_up(parent, name, &entry);
    if (number) fuse_reply_err(request, number);
    else fuse_reply_entry(request, &entry);
}

static void on_forget(fuse_req_t request, fuse_ino_t ino, uint64_t nr_lookups) {
    node *one = node_of(ino);
    pthread_mutex_lock(&lock);
    one->nr_lookups -= nr_lookups;
    int is_last = one != &root && one->nr_lookups == 0;
    if (is_last) {
        one->next->previous = one->previous;
        one->previous->next = one->next;
    }
    pthread_mutex_unlock(&lock);
    if (is_last) { close(one->fd); free(one); }
    fuse_reply_none(request);
}

static void on_getattr(fuse_req_t request, fuse_ino_t ino, struct fuse_file_info *file) {
    struct stat status;
    (void)file;
    if (fstatat(fd_of(ino), "", &status, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW) < 0) fuse_reply_err(request, errno);
    else fuse_reply_attr(request, &status, 1);
}

static void on_open(fuse_req_t request, fuse_ino_t ino, struct fuse_file_info *file) {
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd_of(ino));
    int fd = open(path, (file->flags & ~O_NOFOLLOW) | O_CLOEXEC);
    if (fd < 0) { fuse_reply_err(request, errno); return; }
    file->fh = (uint64_t)fd;
    file->direct_io = 1;
    fuse_reply_open(request, file);
}

static void on_create(fuse_req_t request, fuse_ino_t parent, const char *name, mode_t mode, struct fuse_file_info *file) {
    struct fuse_entry_param entry;
    int fd = openat(fd_of(parent), name, (file->flags | O_CREAT | O_CLOEXEC) & ~O_NOFOLLOW, mode);
    int number = fd < 0 ? errno : look_up(parent, name, &entry);
    if (number) { if (fd >= 0) close(fd); fuse_reply_err(request, number); return; }
    file->fh = (uint64_t)fd;
    file->direct_io = 1;
    fuse_reply_create(request, &entry, file);
}

static void on_read(fuse_req_t request, fuse_ino_t ino, size_t size, off_t offset, struct fuse_file_info *file) {
    static __thread char *buffer;
    static __thread size_t room;
    (void)ino;
    if (room < size) {
        free(buffer);
        room = posix_memalign((void **)&buffer, 4096, size) ? 0 : size;
        if (room == 0) { buffer = NULL; fuse_reply_err(request, ENOMEM); return; }
    }
    ssize_t got = pread((int)file->fh, buffer, size, offset);
    if (got < 0) fuse_reply_err(request, errno);
    else fuse_reply_buf(request, buffer, (size_t)got);
}

static void on_write(fuse_req_t request, fuse_ino_t ino, const char *data, size_t size, off_t offset,
                     struct fuse_file_info *file) {
    (void)ino;
    ssize_t wrote = pwrite((int)file->fh, data, size, offset);
    if (wrote < 0) fuse_reply_err(request, errno);
    else fuse_reply_write(request, (size_t)wrote);
}

static void on_unlink(fuse_req_t request, fuse_ino_t parent, const char *name) {
    fuse_reply_err(request, unlinkat(fd_of(parent), name, 0) < 0 ? errno : 0);
}

static void on_release(fuse_req_t request, fuse_ino_t ino, struct fuse_file_info *file) {
    (void)ino;
    close((int)file->fh);
    fuse_reply_err(request, 0);
}

static void on_fsync(fuse_req_t request, fuse_ino_t ino, int datasync, struct fuse_file_info *file) {
    (void)ino;
    int r = datasync ? fdatasync((int)file->fh) : fsync((int)file->fh);
    fuse_reply_err(request, r < 0 ? errno : 0);
}

static const struct fuse_lowlevel_ops operations = {
    .lookup = on_lookup, .forget = on_forget, .getattr = on_getattr, .open = on_open, .create = on_create, .read = on_read,
    .write = on_write, .unlink = on_unlink, .release = on_release, .fsync = on_fsync,
};

int main(int nr_words, char **words) {
    char *options[] = {words[0], "-odefault_permissions,fsname=passthrough"};
    struct fuse_args arguments = FUSE_ARGS_INIT(2, options);
    struct fuse_loop_config *config = fuse_loop_cfg_create();
    fuse_loop_cfg_set_clone_fd(config, 1);
    if (nr_words != 3) { fprintf(stderr, "passthrough SOURCE MOUNTPOINT\n"); return 2; }
    root.fd = open(words[1], O_PATH | O_CLOEXEC);
    if (root.fd < 0) { perror(words[1]); return 1; }
    struct fuse_session *session = fuse_session_new(&arguments, &operations, sizeof operations, NULL);
    if (session == NULL || fuse_set_signal_handlers(session) != 0 || fuse_session_mount(session, words[2]) != 0) return 1;
    int r = fuse_session_loop_mt(session, config);
    fuse_loop_cfg_destroy(config);
    fuse_session_unmount(session);
    fuse_remove_signal_handlers(session);
    fuse_session_destroy(session);
    return r != 0;
}
